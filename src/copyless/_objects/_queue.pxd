# The class of the binding, for the inbox of the communicator.
from libc.stdint cimport int64_t, uint32_t, uint64_t

from copyless._core._blocks cimport Object
from copyless._core.c_library cimport cl_got, cl_item, cl_queue
from copyless._transfer._codec cimport Taken


cdef class _Queue(Object):
    cdef cl_queue q
    cdef readonly bint redelivers
    cdef readonly bint lasts  # items may be taken twice, or after their producer has ended
    cdef uint32_t puts_of  # the lock word of the process that has put with this object
    cdef public bint closed
    cdef int ready_here  # it was closed, or an item is kept: a wait for it need not wait
    cdef list unread  # errors of items that get_many took and could not load
    cdef int unread_of  # the process that took them
    cdef list kept  # items that were taken and not loaded yet: (object,), bytes of an item without tokens, or `Taken`
    cdef int kept_of
    cdef int use(self, uint32_t role) except -1
    cdef int insert(self, cl_item *items, uint32_t n, uint32_t *done, int64_t deadline) except -100
    cdef int refuse(self, int rc) except -1
    cdef int64_t deadline(self, block, timeout) except -1
    cdef int begin(self, int64_t deadline, cl_got *got, bint ends=*) except -100
    cdef object body(self, cl_got *got)
    cdef int tell_unread(self) except -1
    cdef bint has_kept(self) except -1
    cdef object next_kept(self, int64_t deadline)
    cdef int keep(self, list entries) except -1
    cdef int keep_only(self, list entries) except -1
    cdef object loaded(self, Taken entry, int64_t deadline)
    cdef list many(self, cl_got *got, uint64_t most, int64_t deadline)
    cdef list load_all(self, list bodies, int64_t deadline)
    cdef object end(self, cl_got *got, int64_t deadline)
    cdef object settled(self, obj)
    cdef void finish(self, cl_got *got) noexcept
    cdef void forget(self, cl_got *got) noexcept

