# cython: language_level=3, freethreading_compatible=True, auto_pickle=False
"""Copying many buffers into one, without the GIL; signals are handled between spans."""
from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.exc cimport PyErr_CheckSignals
from cpython.sequence cimport PySequence_GetSlice
from libc.stdint cimport uint8_t, uint64_t
from libc.stdlib cimport free, malloc

from copyless._core.c_library cimport CL_COPY_LARGE, cl_copy

cdef enum:
    SPAN = 1 << 26  # bytes copied between two checks for signals: some milliseconds

COPY_LARGE = CL_COPY_LARGE


def copy_parts(target, list parts, uint64_t align, tell=None):
    """Copy buffers into one, each aligned to `align`; `tell`, if given, is called after each span with its number of bytes."""
    cdef Py_buffer whole
    PyObject_GetBuffer(target, &whole, PyBUF_WRITABLE)
    try:
        copy_into(<uint8_t *>whole.buf, whole.len, parts, align, tell)
    finally:
        PyBuffer_Release(&whole)


cpdef uint64_t room_of(list parts, uint64_t align) except? 0:
    """The bytes that buffers take one after the other, each aligned to `align`."""
    cdef uint64_t at = 0
    for part in parts:
        at = (at + align - 1) // align * align + <uint64_t>part.nbytes
    return at


def cut(whole, sizes, uint64_t align):
    """Views of these sizes in a buffer, each aligned to `align`, as `copy_parts` places them."""
    cdef uint64_t at = 0, size
    cdef list views = []
    view = memoryview(whole)
    for size in sizes:
        at = (at + align - 1) // align * align
        views.append(PySequence_GetSlice(view, at, at + size))
        at += size
    return views


cdef int copy_into(uint8_t *out, uint64_t room, list parts, uint64_t align, tell) except -1:
    """As `copy_parts`."""
    cdef Py_buffer *views
    cdef Py_ssize_t i = 0, n = len(parts), taken = 0
    cdef uint64_t whole, at = 0, done = 0, span, some, most = SPAN if tell is None else SPAN // 16
    views = <Py_buffer *>malloc((n or 1) * sizeof(Py_buffer))
    if views == NULL:
        raise MemoryError
    try:
        for part in parts:
            PyObject_GetBuffer(part, &views[taken], PyBUF_SIMPLE)
            taken += 1
            at = (at + align - 1) // align * align + <uint64_t>views[taken - 1].len
        if at > room:
            raise ValueError(f"{at} bytes do not fit into {room} bytes")
        whole, at = at, 0
        while i < n:
            span = 0
            with nogil:
                while i < n and span < most:
                    some = <uint64_t>views[i].len - done
                    if some > most - span:
                        some = most - span
                    cl_copy(out + at + done, <uint8_t *>views[i].buf + done, some, whole)
                    done += some
                    span += some
                    if done == <uint64_t>views[i].len:
                        at = (at + done + align - 1) // align * align
                        done = 0
                        i += 1
            PyErr_CheckSignals()
            if tell is not None:
                tell(span)
    finally:
        for i in range(taken):
            PyBuffer_Release(&views[i])
        free(views)
    return 0
