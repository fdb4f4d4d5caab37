# What `_queue` shares with `_inbox`: the C floor's queue, and an item's way into one and out of it.
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from copyless._core._native cimport Block, Object, cl_block_ref, cl_head, cl_store, cl_token

cdef extern from "queue.h" nogil:
    enum: CL_KIND_QUEUE, CL_QUEUE_JOINABLE, CL_QUEUE_REDELIVER, CL_ROLE_PUTS, CL_ROLE_GETS, CL_ROLE_CLOSED, CL_USERS, CL_LEASES
    enum: CL_QUEUE_OPEN, CL_QUEUE_SHUT_NOW
    uint64_t CL_INLINE_MAX
    ctypedef struct cl_end:
        uint64_t commit
    ctypedef struct cl_lease:
        uint32_t owner
    ctypedef struct cl_queue_head:
        cl_head head
        uint32_t state
        uint64_t dropped, spilled
        cl_end put, get
        cl_lease leases[1]
    ctypedef struct cl_queue:
        cl_queue_head *head
        uint32_t self
    ctypedef struct cl_item:
        const void *body
        uint64_t nbytes
        const cl_token *tokens
        uint32_t ntokens
        const cl_block_ref *payload
    ctypedef struct cl_got:
        const uint8_t *body
        uint64_t nbytes
        uint32_t ntokens
        uint64_t sequence
        cl_block_ref payload
    int cl_queue_attach(cl_queue *q, cl_store *store, cl_queue_head *head, uint64_t capacity, uint32_t number)
    void cl_queue_detach(cl_queue *q)
    int cl_queue_put(cl_queue *q, const cl_item *items, uint32_t n, uint32_t *done, int64_t deadline_ns, unsigned flags)
    int cl_queue_begin(cl_queue *q, int64_t deadline_ns, unsigned flags)
    int cl_queue_poll(cl_queue *q, int64_t budget_ns)
    int cl_queue_next(cl_queue *q, cl_got *out, unsigned flags)
    int cl_queue_needs_registry(const cl_queue *q)
    void cl_queue_commit(cl_queue *q)
    void cl_queue_abort(cl_queue *q)
    uint64_t cl_queue_size(const cl_queue_head *h)
    uint64_t cl_queue_bytes(const cl_queue_head *h)
    uint64_t cl_queue_unfinished(cl_queue *q)
    int cl_queue_done(cl_queue *q, uint64_t sequence)
    int cl_queue_join(cl_queue *q, int64_t deadline_ns, uint64_t *lost)
    int cl_queue_shut(cl_queue *q, int now)
    void cl_queue_role(cl_queue *q, uint32_t role, int on)
    void cl_queue_use(cl_queue *q, uint32_t role)
    int cl_queue_deserted(cl_queue *q)


cdef enum:
    PLAIN_MOST = 2048  # bytes of the pickle of a plain value that needs no pickler


cdef class Packed:
    """An object as a queue takes it. Holds what it names until a queue does; let go, it takes that back."""
    cdef bytes body
    cdef Block block
    cdef uint64_t nbytes
    cdef cl_token *tokens
    cdef uint32_t ntokens
    cdef bint given
    cdef void describe(self, cl_item *item) noexcept
    cdef void was_given(self) noexcept


cdef class _Queue(Object):
    cdef cl_queue q
    cdef readonly bint redelivers
    cdef uint32_t puts_of  # the lock word of the process that has put by this object
    cdef public bint closed
    cdef int use(self, uint32_t role) except -1
    cdef int insert(self, cl_item *items, uint32_t n, uint32_t *done, int64_t deadline) except -100
    cdef int refuse(self, int rc) except -1
    cdef int64_t deadline(self, block, timeout) except -1
    cdef int begin(self, int64_t deadline, cl_got *got, bint ends=*) except -100
    cdef object body(self, cl_got *got)
    cdef object end(self, cl_got *got)
    cdef void commit(self) noexcept


cdef size_t dump_plain(obj, uint8_t *out, size_t room)
cdef object load_plain(const uint8_t *data, uint64_t nbytes)
cdef Packed pack(obj, bint in_block, const uint8_t *label, uint32_t nlabel, watch)
cdef object unpack(body, uint32_t ntokens, uint32_t nlabel)
cdef void unsend(const cl_token *tokens, uint32_t n) noexcept
cdef object NOTHING
