# Copies, for the other bindings.
from libc.stdint cimport uint8_t, uint64_t

cdef int copy_into(uint8_t *out, uint64_t room, list parts, uint64_t align, tell) except -1
cpdef uint64_t room_of(list parts, uint64_t align) except? 0
