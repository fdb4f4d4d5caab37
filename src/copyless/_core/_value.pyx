# cython: language_level=3, freethreading_compatible=True, auto_pickle=False
"""A C number in shared memory, read and written under the recursive lock before it.

The public classes and their documentation are in `copyless.sharedctypes`. This is the fast path; other types, other locks and
a lock that is taken are handled by the Python objects.
"""
from libc.stdint cimport int32_t, int64_t, uint64_t
from libc.string cimport memcpy, memset

from copyless._core._blocks cimport Block
from copyless._core.c_library cimport CL_OK, cl_bells_tell, cl_mutex, cl_rlock, cl_rlock_is_mine, cl_runlock, cl_spin, cl_store

from copyless.errors import CorruptSegmentError

cdef extern from "Python.h":
    unsigned long PyThread_get_thread_ident()
    long long PyLong_AsLongLongAndOverflow(object o, int *overflow) except? -1

DATA_OFFSET = 128  # the offset of the data behind a lock in its block: on a separate cache line


cdef class _Value:
    """Base class of `Synchronized`: `_obj` is the ctypes object, `_lock` its lock."""
    cdef public object _obj, _lock
    cdef object block
    cdef cl_store *store_of_block
    cdef cl_mutex *mutex  # NULL: the lock is not a copyless lock in the same block
    cdef char *data
    cdef char code  # 0: not a plain number
    cdef int size
    cdef cl_spin spin

    def __cinit__(self, *args, **kwargs):
        memset(&self.spin, 0, sizeof(self.spin))

    def _stand(self, obj, lock, Block block, str code, int size):
        self._obj, self._lock, self.block = obj, lock, block
        if block is not None:
            if size < 0 or block.ref.capacity < <uint64_t>DATA_OFFSET + <uint64_t>size:
                raise CorruptSegmentError(f"a value of {size} bytes does not fit its block of {block.ref.capacity}")
            self.mutex = <cl_mutex *>block.ref.data
            self.store_of_block = block.store
            self.data = <char *>block.ref.data + <int>DATA_OFFSET
            self.code = ord(code) if code and code in "bBhHiIlLqQfd" else 0
            self.size = size

    cdef bint is_mine(self) noexcept:
        """Whether this thread already holds the lock, and the value is a plain C number."""
        return self.code != 0 and self.mutex != NULL and cl_rlock_is_mine(self.store_of_block, self.mutex, PyThread_get_thread_ident())

    cdef bint enter(self) except -1:
        """Acquire the lock. Returns whether by the fast path."""
        if self.mutex != NULL and cl_rlock(self.store_of_block, self.mutex, PyThread_get_thread_ident(), 0, &self.spin) == CL_OK:
            return True
        self._lock.acquire()
        return False

    cdef int leave(self, bint short_way) except -1:
        if short_way:
            cl_runlock(self.mutex)
            cl_bells_tell(self.store_of_block, &self.mutex.head)
        else:
            self._lock.release()
        return 0

    cdef object load(self):
        cdef double d
        cdef float f
        cdef int64_t i = 0
        cdef uint64_t u = 0
        if self.code == 0:
            return self._obj.value
        if self.code == c"d":
            memcpy(&d, self.data, 8)
            return d
        if self.code == c"f":
            memcpy(&f, self.data, 4)
            return <double>f
        if self.code in (c"B", c"H", c"I", c"L", c"Q"):
            memcpy(&u, self.data, self.size)
            return u
        if self.size == 1:
            return (<signed char *>self.data)[0]
        if self.size == 2:
            return (<short *>self.data)[0]
        if self.size == 4:
            return (<int *>self.data)[0]
        memcpy(&i, self.data, 8)
        return i

    cdef int store(self, value) except -1:
        cdef double d
        cdef float f
        cdef int64_t i
        cdef int overflow
        if self.code == c"d" and type(value) is float:
            d = value
            memcpy(self.data, &d, 8)
            return 0
        if self.code == c"f" and type(value) is float:
            f = value
            memcpy(self.data, &f, 4)
            return 0
        if self.code != 0 and self.code != c"d" and self.code != c"f" and type(value) is int:
            i = PyLong_AsLongLongAndOverflow(value, &overflow)
            if not overflow:
                if self.size == 4:
                    (<int32_t *>self.data)[0] = <int32_t>i
                else:
                    memcpy(self.data, &i, self.size)  # the low bytes, as in ctypes
                return 0
        self._obj.value = value
        return 0

    def get_obj(self):
        """The ctypes object."""
        return self._obj

    def get_lock(self):
        """The lock."""
        return self._lock

    @property
    def value(self):
        """The value; each access takes the lock. For a change that depends on the old value use `add`, or ``with v.get_lock():``."""
        cdef bint how
        if self.is_mine():
            return self.load()
        how = self.enter()
        try:
            return self.load()
        finally:
            self.leave(how)

    @value.setter
    def value(self, value):
        cdef bint how
        if self.is_mine():
            self.store(value)
            return
        how = self.enter()
        try:
            self.store(value)
        finally:
            self.leave(how)

    def add(self, amount):
        """add(amount)

        Add to the value atomically. Returns the new value.
        """
        cdef bint how = self.enter()
        try:
            self.store(self.load() + amount)
            return self.load()
        finally:
            self.leave(how)

    def exchange(self, value):
        """exchange(value)

        Set the value atomically. Returns the previous one.
        """
        cdef bint how = self.enter()
        try:
            before = self.load()
            self.store(value)
            return before
        finally:
            self.leave(how)

    def compare_exchange(self, expected, value):
        """compare_exchange(expected, value)

        Set the value if the present one equals `expected`, atomically. Returns whether it did.
        """
        cdef bint how = self.enter()
        try:
            if self.load() != expected:
                return False
            self.store(value)
            return True
        finally:
            self.leave(how)
