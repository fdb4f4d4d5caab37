# The open store, for the other bindings.
from copyless._core.c_library cimport cl_snapshot, cl_store

cdef cl_store *the_store() noexcept nogil
cdef int tell_news(cl_store *store) except -1
cpdef scan(bint force=*)
cdef dict listing(cl_snapshot *all)
