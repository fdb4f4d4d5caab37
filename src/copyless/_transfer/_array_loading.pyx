# cython: language_level=3, freethreading_compatible=True, auto_pickle=False
"""The fast path to an array whose description is known: from its handle in one call."""
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport uint64_t

from copyless._core._blocks cimport Block
from copyless._core._handles cimport ARRAY, Wire, load_block

import numpy

from copyless._transfer import handles
from copyless._transfer.shared_array import SharedArray as _SharedArray

cdef dict specs = handles.specs
cdef int WRITEABLE = handles.WRITEABLE, SHARED_ARRAY = handles.SHARED_ARRAY
cdef object PLAIN = numpy.ndarray, SharedArray = _SharedArray, new = numpy.ndarray.__new__


def load_array(bytes handle):
    """The array of a handle whose description is known, or None: use the slow path.

    Does the same as `resolve` and `array_reductions.decode` in one call, because every message costs this time.
    """
    cdef Wire w
    cdef tuple spec
    if len(handle) <= <Py_ssize_t>sizeof(Wire) or PyBytes_AS_STRING(handle)[3] != ARRAY:
        return None
    spec = specs.get(PyBytes_FromStringAndSize(PyBytes_AS_STRING(handle) + sizeof(Wire), len(handle) - sizeof(Wire)))
    if spec is None or (spec[6] is not None and spec[6] != spec[0]):  # the program renamed the fields of an earlier array
        return None
    block = load_block(handle, &w)
    if type(block) is not Block:
        return None
    if <uint64_t>spec[5] > w.nbytes:
        raise ValueError(f"the handle is damaged: it describes an array of shape {spec[1]} in {w.nbytes} bytes")
    flags = <int>spec[4]
    array = new(SharedArray if flags & SHARED_ARRAY else PLAIN, spec[1], spec[0], block, w.offset + <uint64_t>spec[3],
                       spec[2])
    if not flags & WRITEABLE:
        array.flags.writeable = False
    return array


def array_over(buffer, code, shape):
    """A plain array over a buffer."""
    return new(PLAIN, shape, code, buffer)
