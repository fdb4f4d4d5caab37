# The bytes of a handle, for the other bindings.
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from copyless._core.c_library cimport cl_address, cl_block_ref, cl_store, cl_token

# The first part of a handle; little-endian, 84 bytes. Its layout is defined only here.
cdef struct Wire:
    uint8_t magic[2]
    uint8_t version
    uint8_t kind
    uint32_t hold
    uint64_t host
    uint64_t boot
    uint64_t registry
    uint64_t segment_id
    uint64_t generation
    uint64_t nonce
    uint32_t segment
    uint32_t index
    uint64_t offset
    uint64_t nbytes

cdef enum:
    VERSION = 1
    ARRAY = 1
    MEMORY = 2
    FILE = 3
    OBJECT = 4

cdef object load_block(bytes handle, Wire *w)
cdef bytes wire_of_memory(const cl_store *store, const cl_address *address, uint64_t nbytes)
cdef int find_block(const void *address, uint64_t nbytes, cl_block_ref *ref, cl_store **store) except -1
cdef cl_store *token_of(bytes handle, cl_store *queues, cl_token *token) except? NULL
