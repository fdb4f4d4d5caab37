# cython: language_level=3, freethreading_compatible=True
"""Checks a pickle before it is loaded: how many objects would the unpickler remember?

The unpickler makes its memo as large as the largest number in a pickle, and fills it: one damaged byte can cost many gigabytes.
A valid pickle of n bytes remembers fewer than n objects.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport uint64_t

import pickle

from copyless.errors import CorruptSegmentError

cdef object unpickle = pickle.loads


class CorruptPickleError(CorruptSegmentError, pickle.UnpicklingError):
    """A pickle that asks for far more memory than it has bytes."""


cdef inline uint64_t number(const unsigned char *at, int nbytes) noexcept nogil:
    cdef uint64_t value = 0
    while nbytes > 0:
        nbytes -= 1
        value = value << 8 | at[nbytes]
    return value


cdef inline uint64_t after_line(const unsigned char *data, uint64_t at, uint64_t size) noexcept nogil:
    """The offset of the next line; beyond the end if there is none."""
    while at < size and data[at] != c"\n":
        at += 1
    return at + 1


cdef bint is_sound(const unsigned char *data, uint64_t size) noexcept nogil:
    """Whether no number in the memo is larger than the size of the pickle. For a truncated pickle the unpickler raises the error."""
    cdef uint64_t at = 0, index, end
    cdef unsigned char op
    cdef int width
    while at < size:
        op = data[at]
        at += 1
        if op == c".":
            return True
        width = 0
        if op == c"K" or op == c"h" or op == c"q" or op == 0x80 or op == 0x82:
            at += 1
        elif op == c"M" or op == 0x83:
            at += 2
        elif op == c"J" or op == c"j" or op == 0x84:
            at += 4
        elif op == c"G" or op == 0x95:
            at += 8
        elif op == c"r":
            if size - at < 4:
                return True
            if number(data + at, 4) > size:
                return False
            at += 4
        elif op == c"p":
            end = after_line(data, at, size)
            index = 0
            while at < end and at < size:
                if c"0" <= data[at] <= c"9":
                    index = index * 10 + (data[at] - c"0")
                    if index > size:
                        return False
                at += 1
        elif op == c"F" or op == c"I" or op == c"L" or op == c"P" or op == c"S" or op == c"V" or op == c"g":
            at = after_line(data, at, size)
        elif op == c"c" or op == c"i":
            at = after_line(data, after_line(data, at, size), size)
        elif op == c"U" or op == c"C" or op == 0x8A or op == 0x8C:
            width = 1
        elif op == c"T" or op == c"X" or op == c"B" or op == 0x8B:
            width = 4
        elif op == 0x8D or op == 0x8E or op == 0x96:
            width = 8
        if width:
            if at >= size or size - at < <uint64_t>width:
                return True
            index = number(data + at, width)
            at += width
            if index > size - at:
                # The unpickler reports that it is truncated, but for bytes and bytearrays it allocates the memory first.
                return not (op == 0x96 or op == 0x8E or op == c"B") or index <= size
            at += index
    return True


cdef int look_at(const unsigned char *data, uint64_t size) except -1:
    cdef bint sound
    if size < 65536:
        sound = is_sound(data, size)
    else:
        with nogil:
            sound = is_sound(data, size)
    if not sound:
        raise CorruptPickleError("the pickle is damaged: it asks for far more memory than it has bytes")
    return 0


cdef object loads_at(const unsigned char *at, uint64_t size, data, buffers):
    look_at(at, size)
    return unpickle(data) if buffers is None else unpickle(data, buffers=buffers)


def check_pickle(data):
    """Raise `CorruptPickleError` for a pickle that makes the unpickler ask for far more memory than the pickle has bytes.

    Checks each operation of the pickle, for some nanoseconds each.
    """
    cdef Py_buffer view
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    try:
        look_at(<const unsigned char *>view.buf, view.len)
    finally:
        PyBuffer_Release(&view)


def loads(data, buffers=None):
    """The object of a received pickle and the buffers beside it: `pickle.loads` after a check.

    Every pickle that this package loads is loaded here, since data in shared memory may have been damaged.
    """
    check_pickle(data)
    return unpickle(data) if buffers is None else unpickle(data, buffers=buffers)
