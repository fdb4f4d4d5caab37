# cython: language_level=3, freethreading_compatible=True, auto_pickle=False
"""What keeps the type of a shared array true: an array that NumPy makes as one, over private memory, is an ordinary one.

NumPy makes results of the type of what they were made from: copies, `zeros_like`, `take`, `array(..., subok=True)` and many
more, in C as in Python. Each passes `__array_finalize__` while nobody has it yet. There its base says whether its memory is
shared, and its type is set to `ndarray` where it is not. The two types lie alike in memory: `SharedArray` has no slots, no
dict, and no part in garbage collection, which every class has that a class statement makes; so it is made otherwise. A class of the user's that derives from it has a dict; for it a twin is made, which
derives from `ndarray` and lies alike.
"""
from cpython.object cimport PyObject, PyTypeObject
from cpython.ref cimport Py_DECREF, Py_INCREF, Py_TYPE

from copyless._core._blocks cimport Block, Mapping

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
    LAYOUT = 0x1c  # where dict and weak references lie: inline values, managed weak references, managed dict

cdef object SHARED = None, PLAIN = None, LIES_SHARED = None


def know_types(shared, plain, lies_shared):
    """The type of shared arrays, `ndarray`, and what tells of an array whose base tells nothing. Called once."""
    global SHARED, PLAIN, LIES_SHARED
    SHARED, PLAIN, LIES_SHARED = shared, plain, lies_shared


cdef PyType_Slot NO_SLOTS[1]


def lying_as_its_base(type kind):
    """A class that says what this one says, for whose objects the memory is that of its base's. A decorator.

    Its methods must not call `super()` without arguments: that names the class they were written in.
    """
    cdef PyType_Spec spec
    NO_SLOTS[0].slot, NO_SLOTS[0].pfunc = 0, NULL
    spec.name = b"copyless.arrays.SharedArray"
    spec.basicsize = spec.itemsize = 0  # the base's
    spec.flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE
    spec.slots = NO_SLOTS
    made = PyType_FromSpecWithBases(&spec, kind.__bases__)
    for name, value in vars(kind).items():
        if name not in ("__dict__", "__weakref__", "__slots__"):
            setattr(made, name, value)
    return made


def lie_alike(type a, type b):
    """Whether an object of one type may become one of the other."""
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
            return array.size == 0 or not LIES_SHARED(array)
        base = base.base


cdef int become(array, type target) except -1:
    cdef PyTypeObject *old = Py_TYPE(array)
    if target.__dictoffset__:
        array.__dict__  # from here on a dict of its own, which names no keys of the old type
    Py_INCREF(target)
    Py_SET_TYPE(array, <PyTypeObject *>target)
    Py_DECREF(<object>old)  # an object of a class holds its class
    return 0


def array_finalize(self, obj):
    """As `ndarray.__array_finalize__`."""
    if type(self) is SHARED:
        if is_private(self):
            become(self, PLAIN)
    elif not type(self)._settles_later:
        settle(self)


def settle(self):
    """What `array_finalize` does, for an array of a class that was derived."""
    if isinstance(self, SHARED) and is_private(self):
        twin = type(self)._private_twin()
        if twin is not None:
            become(self, twin)


def array_wrap(self, array, context=None, bint return_scalar=False):
    """As `ndarray.__array_wrap__`: a result is what it is, in memory of its own; the target of out= is that."""
    if array is not self and (return_scalar or (context is not None and array.ndim == 0)):
        return array[()]
    return array
