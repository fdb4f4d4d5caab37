# cython: language_level=3, freethreading_compatible=True, auto_pickle=False
"""Memory that is lent: once nothing uses it, it is kept for others."""
cimport cython
from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_FillInfo, PyBuffer_Release, PyObject_GetBuffer


@cython.final
@cython.no_gc  # what it refers to is deleted after it
cdef class Lent:
    """Lent(memory, begin, nbytes, free, most)

    The bytes of `memory` from `begin` on. Once nothing uses them, the memory is appended to the list `free`, unless that
    would then hold more than `most` bytes.
    """
    cdef Py_buffer whole
    cdef bint held
    cdef object memory
    cdef list free
    cdef Py_ssize_t begin, nbytes, most

    def __cinit__(self, memory, Py_ssize_t begin, Py_ssize_t nbytes, list free, Py_ssize_t most):
        PyObject_GetBuffer(memory, &self.whole, PyBUF_WRITABLE)
        self.held = True
        if begin < 0 or nbytes < 0 or begin > self.whole.len or nbytes > self.whole.len - begin:
            raise ValueError("not in the memory")
        self.memory, self.begin, self.nbytes, self.free, self.most = memory, begin, nbytes, free, most

    def __len__(self):
        return self.nbytes

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        PyBuffer_FillInfo(buffer, self, <char *>self.whole.buf + self.begin, self.nbytes, 0, flags)

    def __dealloc__(self):
        # In C, without a lock: it runs wherever an array is deleted, and must not swallow Ctrl-C.
        cdef Py_ssize_t total
        if not self.held:
            return
        total = self.whole.len
        PyBuffer_Release(&self.whole)
        if self.free is None:
            return
        for other in self.free:
            total += len(other)
        if total <= self.most:
            self.free.append(self.memory)
