# The bytes of a handle, for the other bindings.
from libc.stdint cimport uint64_t

from copyless._core.c_library cimport cl_address, cl_block_ref, cl_store, cl_token

cdef bytes wire_of_memory(const cl_store *store, const cl_address *address, uint64_t nbytes)
cdef int find_block(const void *address, uint64_t nbytes, cl_block_ref *ref, cl_store **store) except -1
cdef cl_store *token_of(bytes handle, cl_store *queues, cl_token *token) except? NULL
