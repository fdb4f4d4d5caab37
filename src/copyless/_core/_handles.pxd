# The bytes of a handle, for the other bindings.
from libc.stdint cimport uint64_t

from copyless._core.c_library cimport cl_address, cl_store, cl_token

cdef bytes wire_of_memory(const cl_store *store, const cl_address *address, uint64_t nbytes)
cdef bint token_of(bytes handle, cl_token *token)
