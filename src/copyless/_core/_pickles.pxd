from libc.stdint cimport uint64_t

# The object of the `size` bytes at `at`, which are those of `data`: `pickle.loads` after a look at it.
cdef object loads_at(const unsigned char *at, uint64_t size, data, buffers)
