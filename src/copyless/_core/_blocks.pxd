# Blocks, for the other bindings.
from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from copyless._core.c_library cimport cl_block_ref, cl_head, cl_seen, cl_store, cl_watch


cdef inline bint is_elsewhere(const cl_store *store) noexcept nogil:
    """This process is an unregistered copy of the one that opened the store, and must change nothing there."""
    return store.here[0] == 0 or store.orphan != 0


cdef class Block:
    cdef cl_block_ref ref
    cdef cl_store *store  # the store of the block: it is released there
    cdef readonly uint64_t nbytes
    cdef object __weakref__


cdef class Object:
    cdef readonly Block block
    cdef cl_head *head
    cdef cl_store *store  # the store of the block
    cdef public object _signal  # its descriptor for select and similar functions (_bells.Signal), once it was requested
    cdef uint32_t names_seen  # `names_seq` at the last look-up of the name of this object, after the name was removed
    cdef bint name_seen
    cdef object __weakref__
    cdef void take(self, Block block, cl_head *head) noexcept
    cdef int watch(self, cl_watch *out, uint32_t reader) except -1
    cdef cl_head *_open_head(self) except NULL
    cdef int look_up_name(self) except -1


cdef inline int look_at_name(Object thing) except -1:
    """StaleNameError if the name of this object belongs to another one. Costs one load unless the name was removed."""
    if thing.head != NULL and cl_seen(&thing.head.renamed) != 0:
        thing.look_up_name()
    return 0


cdef class Mapping:
    cdef uint8_t *base
    cdef readonly uint64_t nbytes
    cdef readonly bint readonly
    cdef cl_store *store  # the store of the hold
    cdef uint64_t hold_id  # 0: none
    cdef uint32_t hold_slot
    cdef object behind
    cdef Mapping heir  # takes over the memory instead of unmapping it
    cdef object __weakref__
    cdef int map(self, int fd, uint64_t nbytes, bint readonly, uint64_t offset) except -1
    cdef void release(self) noexcept


cdef Block stand(cl_store *store, const cl_block_ref *ref, uint64_t nbytes)
cdef Block allocate(cl_store *store, uint64_t nbytes, unsigned flags)
cdef void set_private(Block block) noexcept
cdef int64_t hurry(int64_t deadline) noexcept
cdef int64_t due() noexcept
cdef PyObject *gather(PyObject *into) noexcept
cdef int was_loaded(Block block) except -1
