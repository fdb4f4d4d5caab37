# The open store, for the other bindings.
from copyless._core.c_library cimport cl_store

cdef cl_store *the_store() noexcept nogil
cdef int enter_listing(cl_store *store) except -1
cpdef scan(bint force=*)
