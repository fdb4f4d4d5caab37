# What `_queue` shares with `_inbox`: an item's way into a queue and out of it.
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from copyless._core._blocks cimport Block, Object
from copyless._core.c_library cimport cl_got, cl_item, cl_queue, cl_store, cl_token


cdef enum:
    PLAIN_MOST = 2048  # bytes of the pickle of a plain value that needs no pickler


cdef struct Abroad:
    cl_store *store
    cl_token token


cdef class Packed:
    """An object as a queue takes it. Holds what it names until a queue does; let go, it takes that back."""
    cdef bytes body
    cdef Block block
    cdef uint64_t nbytes
    cdef cl_store *store  # of the holds
    cdef cl_token *tokens
    cdef uint32_t ntokens
    cdef Abroad *abroad  # holds of other stores, which are messages' already
    cdef uint32_t nabroad
    cdef bint given
    cdef void describe(self, cl_item *item) noexcept
    cdef void was_given(self) noexcept


cdef class _Queue(Object):
    cdef cl_queue q
    cdef readonly bint redelivers
    cdef readonly bint lasts  # items may be taken twice, or when who put them is gone
    cdef uint32_t puts_of  # the lock word of the process that has put by this object
    cdef public bint closed
    cdef list unread  # errors of items that get_many took and could not load
    cdef int unread_of  # the process that did
    cdef list kept  # what a get_many that was broken off had taken: (object,), or bytes to load
    cdef int kept_of
    cdef int use(self, uint32_t role) except -1
    cdef int insert(self, cl_item *items, uint32_t n, uint32_t *done, int64_t deadline) except -100
    cdef int refuse(self, int rc) except -1
    cdef int64_t deadline(self, block, timeout) except -1
    cdef int begin(self, int64_t deadline, cl_got *got, bint ends=*) except -100
    cdef object body(self, cl_got *got)
    cdef int tell_unread(self) except -1
    cdef bint has_kept(self) except -1
    cdef object next_kept(self)
    cdef int keep(self, list entries) except -1
    cdef list load_all(self, list bodies)
    cdef object end(self, cl_got *got)
    cdef object settled(self, obj)
    cdef void finish(self, cl_got *got) noexcept
    cdef void forget(self, cl_got *got) noexcept


cdef size_t dump_plain(obj, uint8_t *out, size_t room)
cdef object load_plain(const uint8_t *data, uint64_t nbytes)
cdef Packed pack(cl_store *store, obj, bint in_block, bint lasting, const uint8_t *label, uint32_t nlabel, watch, int64_t deadline)
cdef object unpack(cl_store *store, body, uint32_t ntokens, uint32_t nlabel)
cdef void unsend(cl_store *store, const cl_token *tokens, uint32_t n) noexcept
cdef object NOTHING
