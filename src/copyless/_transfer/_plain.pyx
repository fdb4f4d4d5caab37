# cython: language_level=3, freethreading_compatible=True, auto_pickle=False
"""Plain values and arrays of numbers as pickles, made and read in C (plain.h) without a pickler."""
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.object cimport PyObject, PyTypeObject
from cpython.ref cimport Py_DECREF
from libc.stdint cimport uint8_t, uint64_t

from copyless._core._store cimport the_store
from copyless._core.c_library cimport CL_OK, cl_block_ref, cl_find_any, cl_store

import sys

from copyless._transfer.in_flight import BESIDE as _beside

cdef extern from "plain.h":
    size_t plain_dump(object o, uint8_t *out, size_t room)
    size_t plain_dump_with(object o, uint8_t *out, size_t room, plain_arrays *arrays)
    PyObject *plain_load(const uint8_t *p, size_t nbytes) except? NULL

NOTHING = object()
cdef Py_ssize_t BESIDE = _beside
cdef object ARRAY = None, ARE_PLAIN = None


cdef object take_reference(PyObject *value):
    made = <object>value
    Py_DECREF(made)
    return made


cdef size_t dump_plain(obj, uint8_t *out, size_t room):
    """The size of the pickle of a small plain value; 0: it is not one."""
    return plain_dump(obj, out, room)


cdef object load_plain(const uint8_t *data, uint64_t nbytes):
    """The plain value in a pickle; NOTHING: use the pickle module."""
    cdef PyObject *value = plain_load(data, nbytes)
    return NOTHING if value == NULL else take_reference(value)


cdef bint arrays_come() except -1:
    """Whether this process has NumPy, so that there may be arrays; their reductions are registered then."""
    global ARRAY, ARE_PLAIN
    if ARRAY is None:
        if "numpy" not in sys.modules:
            return False
        from copyless._transfer import array_reductions
        ARE_PLAIN = array_reductions.are_plain
        ARRAY = array_reductions.ARRAY
    return True


cdef int is_shared(const void *data, uint64_t nbytes) noexcept:
    cdef cl_store *store
    cdef cl_block_ref ref
    cdef int rc
    if not the_store().open and the_store().older == NULL and not the_store().orphan:
        return False
    rc = cl_find_any(the_store(), data, nbytes, 0, &ref, &store)
    return rc != CL_OK and rc != 2  # 2: memory that arrived by value; for 3 or a busy lock, the slow path raises the error


cdef int is_never_shared(const void *data, uint64_t nbytes) noexcept:
    return False


cdef size_t walk(obj, Walk *out, bint by_value=False) except? 0:
    """The size of the pickle of plain values and arrays of numbers; 0: use the pickle module.

    If there are arrays, `take_arrays` must be called next. An array in shared memory also needs the pickle module, unless
    everything is sent `by_value`.
    """
    cdef size_t n
    out.arrays.n = 0
    if ARRAY is None:
        n = plain_dump(obj, out.pickle, WALK_MOST)
        if n != 0 or not arrays_come():
            return n
    out.arrays.type, out.arrays.beside = <PyTypeObject *>ARRAY, BESIDE
    out.arrays.is_shared = is_never_shared if by_value else is_shared
    return plain_dump_with(obj, out.pickle, WALK_MOST, &out.arrays)


cdef list take_arrays(Walk *out, size_t *n):
    """The buffers of the large arrays that `walk` found, in order, to send beside the pickle; `n` becomes 0 if the pickle module is needed."""
    cdef list beside = []
    cdef int i
    for i in range(out.arrays.n):
        array = take_reference(out.arrays.seen[i])
        if n[0] != 0 and out.arrays.is_beside[i]:
            beside.append(memoryview(array).cast("B"))
    out.arrays.n = 0
    if n[0] != 0 and not ARE_PLAIN():
        n[0] = 0
        return []
    return beside


def dumps(obj, bint by_value=False):
    """(pickle, large buffers beside it) of plain values and arrays of numbers, or None: use the pickle module."""
    cdef Walk made
    cdef list beside = []
    cdef size_t n = walk(obj, &made, by_value)
    if made.arrays.n:
        beside = take_arrays(&made, &n)
    return (PyBytes_FromStringAndSize(<char *>made.pickle, n), beside) if n else None


def expect_arrays():
    """Register the reductions of arrays if NumPy is loaded."""
    arrays_come()


def plain_dumps(obj):
    """The pickle of a small plain value, or None: for tests."""
    cdef uint8_t out[PLAIN_MOST]
    cdef size_t n = plain_dump(obj, out, PLAIN_MOST)
    return PyBytes_FromStringAndSize(<char *>out, n) if n else None


def plain_loads(bytes data):
    """(the value,), or None: use the pickle module. For tests."""
    value = load_plain(<const uint8_t *>PyBytes_AS_STRING(data), len(data))
    return None if value is NOTHING else (value,)
