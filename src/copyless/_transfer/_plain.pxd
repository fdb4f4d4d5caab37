# Plain values and arrays of numbers, pickled in C, for the other bindings.
from cpython.object cimport PyObject, PyTypeObject
from libc.stdint cimport uint8_t, uint64_t

cdef extern from "plain.h":
    enum: PLAIN_ARRAYS
    ctypedef struct plain_arrays:
        PyTypeObject *type
        Py_ssize_t beside
        int (*is_shared)(const void *data, uint64_t nbytes) noexcept
        PyObject *seen[PLAIN_ARRAYS]
        int n
        uint8_t is_beside[PLAIN_ARRAYS]

cdef enum:
    PLAIN_MOST = 2048  # the most bytes of the pickle of a plain value that needs no pickler
    WALK_MOST = 16384  # the same, for `walk`


cdef struct Walk:
    plain_arrays arrays  # the arrays found; large ones are sent beside the pickle
    uint8_t pickle[WALK_MOST]


cdef object NOTHING
cdef size_t dump_plain(obj, uint8_t *out, size_t room)
cdef object load_plain(const uint8_t *data, uint64_t nbytes)
cdef size_t walk(obj, Walk *out, bint by_value=*) except? 0
cdef list take_arrays(Walk *out, size_t *n)
cdef bint arrays_come() except -1
cdef object take_reference(PyObject *value)
