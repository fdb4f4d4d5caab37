from libc.stdint cimport uint64_t

# The object of the `size` bytes at `at`, which belong to `data`: `pickle.loads` after a check.
cdef object loads_at(const unsigned char *at, uint64_t size, data, buffers)
