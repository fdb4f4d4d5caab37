from libc.stdint cimport uint64_t

cdef bint is_sound(const unsigned char *data, uint64_t size) noexcept nogil
