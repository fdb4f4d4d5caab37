# Objects into messages and back, for the bindings of queues and of the communicator.
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from copyless._core._blocks cimport Block
from copyless._core.c_library cimport cl_item, cl_store, cl_token
from copyless._transfer._plain cimport Walk


cdef struct Abroad:
    cl_store *store
    cl_token token


cdef class Packed:
    """A packed object for a queue. It holds the memory that it names until a queue does, or until it is released."""
    cdef bytes body
    cdef Block block
    cdef uint64_t nbytes
    cdef cl_store *store  # the store of the holds
    cdef cl_token *tokens
    cdef uint32_t ntokens
    cdef Abroad *abroad  # holds of other stores, which are already holds of messages
    cdef uint32_t nabroad
    cdef bint given
    cdef void describe(self, cl_item *item) noexcept
    cdef void was_given(self) noexcept


cdef class Taken:
    """An item that was taken and not loaded yet, with the memory that it names."""
    cdef cl_store *store
    cdef object body
    cdef uint32_t ntokens, nlabel
    cdef int64_t sequence  # the sequence number of the lease, in a queue that redelivers; -1: none
    cdef list blocks  # the blocks that were loaded: they keep the memory that it names
    cdef int pid
    cdef object load(self, int64_t deadline)


cdef Taken taken(cl_store *store, body, uint32_t ntokens, uint32_t nlabel, int64_t sequence)
cdef Packed pack(cl_store *store, obj, bint in_block, bint lasting, const uint8_t *label, uint32_t nlabel, watch, int64_t deadline)
cdef Packed pack_walked(cl_store *store, obj, Walk *walked, size_t nbytes, bint in_block, bint lasting,
                        const uint8_t *label, uint32_t nlabel, watch, int64_t deadline)
cdef object unpack(cl_store *store, body, uint32_t ntokens, uint32_t nlabel)
cdef void unsend(cl_store *store, const cl_token *tokens, uint32_t n) noexcept
