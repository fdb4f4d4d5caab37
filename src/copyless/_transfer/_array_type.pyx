# cython: language_level=3, freethreading_compatible=True, auto_pickle=False
"""Keeps the type of shared arrays correct: an array over private memory never stays a `SharedArray`.

NumPy gives results the type of their source: copies, `zeros_like`, `take`, `array(..., subok=True)` and many more, in C and in
Python. Each result passes `__array_finalize__` before any other code has it. There its base shows whether its memory is
shared; if not, its type is changed to `ndarray`. Both types have the same memory layout: `SharedArray` has no slots, no dict
and does not take part in garbage collection. A class statement always adds these, so the class is made another way. A class of
the user that derives from it has a dict; for it, a private class is made that derives from `ndarray` and has the same layout.
"""
from cpython.object cimport PyObject, PyTypeObject
from cpython.ref cimport Py_DECREF, Py_INCREF, Py_TYPE

from copyless._core._blocks cimport Block, Mapping

import numpy as _numpy

from copyless._core import _handles
from copyless._storage import user_files

cdef extern from "Python.h":
    void Py_SET_TYPE(object o, PyTypeObject *kind)
    unsigned long PyType_GetFlags(PyTypeObject *kind)
    unsigned long Py_TPFLAGS_HAVE_GC

    unsigned int Py_TPFLAGS_DEFAULT, Py_TPFLAGS_BASETYPE
    ctypedef struct PyType_Slot:
        int slot
        void *pfunc
    ctypedef struct PyType_Spec:
        const char *name
        int basicsize
        int itemsize
        unsigned int flags
        PyType_Slot *slots
    object PyType_FromSpecWithBases(PyType_Spec *spec, object bases)

cdef enum:
    LAYOUT = 0x1c  # the flags for the place of dict and weak references: inline values, managed weak references, managed dict

cdef object PLAIN = _numpy.ndarray
cdef object SHARED = None  # SharedArray, once `lying_as_its_base` has made it


cdef PyType_Slot NO_SLOTS[1]


def shared_memory_of(array):
    """Whether all elements of an array are in shared memory."""
    if array.size == 0:
        return is_shared_array(array)
    first, nbytes = _handles.extent_of(array)
    return _handles.find(first, nbytes) is not None or user_files.mapped_at(first, nbytes) is not None


def shared_array_type():
    """`SharedArray`, if it exists already."""
    return SHARED


def is_shared_array(array):
    """Whether an object is a `SharedArray`."""
    return SHARED is not None and isinstance(array, SHARED)


def lying_as_its_base(type kind):
    """Decorator: a class with the same attributes whose objects have the memory layout of its base class.

    Its methods must not call `super()` without arguments, which would refer to the original class.
    """
    cdef PyType_Spec spec
    NO_SLOTS[0].slot, NO_SLOTS[0].pfunc = 0, NULL
    spec.name = b"copyless.arrays.SharedArray"
    spec.basicsize = spec.itemsize = 0  # those of the base class
    spec.flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE
    spec.slots = NO_SLOTS
    global SHARED
    SHARED = made = PyType_FromSpecWithBases(&spec, kind.__bases__)
    for name, value in vars(kind).items():
        if name not in ("__dict__", "__weakref__", "__slots__"):
            setattr(made, name, value)
    return made


def lie_alike(type a, type b):
    """Whether the type of an object may be changed from one type to the other."""
    flags = LAYOUT | Py_TPFLAGS_HAVE_GC
    return (
        a.__basicsize__ == b.__basicsize__ and a.__itemsize__ == b.__itemsize__ and a.__dictoffset__ == b.__dictoffset__
        and a.__weakrefoffset__ == b.__weakrefoffset__
        and (PyType_GetFlags(<PyTypeObject *>a) & flags) == (PyType_GetFlags(<PyTypeObject *>b) & flags)
    )


cdef bint is_private(array) except -1:
    base = array.base
    while True:
        if type(base) is SHARED or isinstance(base, (Block, Mapping, SHARED)):
            return False
        if base is None:
            return True
        if not isinstance(base, PLAIN):
            return array.size == 0 or not shared_memory_of(array)
        base = base.base


cdef int become(array, type target) except -1:
    cdef PyTypeObject *old = Py_TYPE(array)
    if target.__dictoffset__:
        array.__dict__  # from here on it has its own dict, which does not refer to keys of the old type
    Py_INCREF(target)
    Py_SET_TYPE(array, <PyTypeObject *>target)
    Py_DECREF(<object>old)  # an object has a reference to its class
    return 0


def array_finalize(self, obj):
    """The `__array_finalize__` of `SharedArray`."""
    if type(self) is SHARED:
        if is_private(self):
            become(self, PLAIN)
    elif not type(self)._settles_later:
        settle(self)


def settle(self):
    """`array_finalize` for an array of a derived class."""
    if isinstance(self, SHARED) and is_private(self):
        private = type(self)._private_class()
        if private is not None:
            become(self, private)


def array_wrap(self, array, context=None, bint return_scalar=False):
    """The `__array_wrap__` of `SharedArray`: a result in its own memory keeps its type; the target of out= is returned."""
    if array is not self and (return_scalar or (context is not None and array.ndim == 0)):
        return array[()]
    return array
