# The C floor, declared once for the bindings, and what they share of `_native`: the store and its blocks.
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

cdef extern from "wait.h" nogil:
    ctypedef struct cl_spin:
        pass
    ctypedef struct cl_au32:
        pass
    int64_t CL_SLICE_NS
    int cl_wait(cl_au32 *word, uint32_t expected, int64_t deadline_ns, cl_spin *spin)
    enum: CL_WAIT_MANY
    int cl_wait_many(cl_au32 **words, const uint32_t *expected, int n, int64_t deadline_ns)
    void cl_wake(cl_au32 *word, int n)

cdef extern from "copy.h" nogil:
    uint64_t CL_COPY_LARGE
    void cl_copy(void *to, const void *source, uint64_t n, uint64_t whole)

cdef extern from "store.h" nogil:
    enum: CL_OK, CL_AGAIN, CL_TIMEOUT, CL_OWNER_DIED, CL_TABLE_FULL, CL_CORRUPT, CL_STALE, CL_FULL, CL_EXISTS, CL_MISSING, CL_SYSTEM, CL_CLOSED
    enum: CL_MAY_WAIT, CL_MAY_SPILL, CL_OP_LIST, CL_OP_REAP, CL_PAGE, CL_BLOCKS
    enum: CL_OWNER_FREE, CL_OWNER_LIVE, CL_HOLD_FREE, CL_HOLD_MESSAGE, CL_BLOCK_USED, CL_NAME_FREE, CL_NAME_ARRAY, CL_SEGMENT_FREE
    enum: CL_SEGMENT_READY, CL_SEGMENT_EXTERNAL
    int64_t CL_FOREVER
    ctypedef int cl_life
    enum: CL_ALIVE
    ctypedef struct cl_error:
        int code
        int sys
        uint64_t asked
        char what[160]
    ctypedef struct cl_identity:
        uint64_t host, boot, family, start, parent_start, pid_namespace
        uint32_t pid, parent_pid
        char command[32]
    ctypedef struct cl_settings:
        uint64_t warm_limit
        int64_t idle_ns
        int64_t message_ttl_ns
        char spill[256]
    ctypedef struct cl_owner:
        uint32_t state, incarnation, pid, parent_pid, leaving
        uint64_t start, pid_namespace, family, since_ns
        char command[32]
    ctypedef struct cl_hold:
        uint32_t kind, owner, block, channel
        int64_t deadline_ns
        uint64_t family
    ctypedef struct cl_block:
        uint64_t generation, nbytes, created_ns
        uint32_t state, holds, name, creator_pid
    ctypedef struct cl_segment:
        uint64_t id, file_size, block_size
        int64_t idle_since_ns
        uint32_t state, owner, nblocks, used, class_index
        cl_block blocks[64]
    ctypedef struct cl_name:
        uint32_t kind, block, length
        uint64_t spec_offset, spec_length
        char name[256]
    ctypedef struct cl_control:
        cl_au32 names_seq
        uint32_t owners_high, segments_high, holds_high, names_high, messages, persistent
        uint64_t total_bytes, warm_bytes, deaths, deaths_in_op, recoveries
    ctypedef struct cl_store:
        int open
        int forking
        int directory
        uint32_t slot
        uint64_t registry_id
        cl_control *control
        cl_owner *owners
        cl_name *names
        cl_hold *holds
        cl_segment *segments
        cl_identity identity
        cl_settings settings
    ctypedef struct cl_block_ref:
        uint64_t segment_id, generation, capacity, offset
        uint8_t *data
        uint32_t segment, index
        int recycled
        int spilled
    ctypedef struct cl_address:
        uint64_t segment_id, generation, nonce
        uint32_t segment, index, hold
    ctypedef struct cl_head:
        uint32_t magic, kind, number, room
        uint64_t flags
        uint64_t spare[5]
    enum: CL_OBJECT_MAGIC
    ctypedef struct cl_named:
        cl_address address
        uint64_t spec_offset, spec_length, nbytes
    ctypedef struct cl_reaped:
        uint32_t owners, blocks, segments, messages
    cl_error *cl_last_error()
    int64_t cl_monotonic_ns()
    uint64_t cl_process_start(uint32_t pid)
    int cl_store_open(cl_store *store, int directory, const cl_identity *identity, const cl_settings *settings)
    int cl_store_leave(cl_store *store)
    int cl_enter(cl_store *store, int op, unsigned flags)
    void cl_leave(cl_store *store)
    cl_life cl_owner_life(cl_store *store, uint32_t slot, uint32_t incarnation)
    int cl_fork_prepare(cl_store *store, unsigned flags)
    void cl_fork_parent(cl_store *store)
    int cl_fork_child(cl_store *store, uint32_t pid, uint64_t start, uint32_t parent_pid, uint64_t parent_start)
    int cl_reap(cl_store *store, unsigned flags, cl_reaped *reaped)
    int cl_scan(cl_store *store, unsigned flags, cl_reaped *reaped)
    enum: CL_SCAN_FORCE
    int cl_audit(cl_store *store)
    int cl_alloc(cl_store *store, uint64_t nbytes, unsigned flags, cl_block_ref *out)
    int cl_release(cl_store *store, uint64_t segment_id, uint32_t segment, uint32_t index, unsigned flags)
    int cl_find(cl_store *store, const void *address, uint64_t nbytes, unsigned flags, cl_block_ref *out)
    int cl_mark_private(cl_store *store, const cl_block_ref *ref, unsigned flags)
    int cl_home(cl_store *store, uint32_t class_index, int make)
    void cl_segment_file(char *out, uint64_t id)
    enum: CL_SPILLED, CL_LARGE
    int cl_trim(cl_store *store, uint64_t keep_bytes, unsigned flags, uint64_t *freed)
    int cl_send(cl_store *store, uint32_t segment, uint32_t index, unsigned flags, cl_address *out)
    int cl_hold_drop(cl_store *store, uint32_t index)
    int cl_unsend(cl_store *store, uint32_t hold, uint64_t nonce, unsigned flags)
    int cl_load(cl_store *store, const cl_address *address, unsigned flags, cl_block_ref *out)
    ctypedef struct cl_token:
        uint64_t nonce
        uint32_t hold
    int cl_draft(cl_store *store, uint32_t segment, uint32_t index, unsigned flags, cl_address *out)
    int cl_publish(cl_store *store, const char *name, uint32_t length, uint32_t segment, uint32_t index,
                   uint64_t spec_offset, uint64_t spec_length, int persist, unsigned flags)
    int cl_lookup(cl_store *store, const char *name, uint32_t length, unsigned flags, cl_named *out)
    int cl_unpublish(cl_store *store, const char *name, uint32_t length, unsigned flags)
    int cl_posix_record(cl_store *store, const char *name, uint32_t length, uint64_t device, uint64_t inode,
                        uint64_t nbytes, int family, unsigned flags, uint64_t *id, uint32_t *slot)
    int cl_posix_attach(cl_store *store, const char *name, uint32_t length, uint64_t device, uint64_t inode,
                        unsigned flags, uint64_t *id, uint32_t *slot)
    int cl_posix_forget(cl_store *store, const char *name, uint32_t length, uint64_t device, uint64_t inode,
                        unsigned flags)


cdef class Block:
    cdef cl_block_ref ref
    cdef readonly uint64_t nbytes
    cdef object __weakref__


cdef class Object:
    cdef readonly Block block
    cdef cl_head *head
    cdef object __weakref__
    cdef cl_head *_need(self) except NULL

cdef cl_store *the_store() noexcept nogil
cdef Block stand(const cl_block_ref *ref, uint64_t nbytes)
cdef Block allocate(uint64_t nbytes, unsigned flags)
cdef int fail(int rc) except -1
cdef int64_t deadline_of(timeout) except -1
cdef bint token_of(bytes handle, cl_token *token)
cdef void set_private(const cl_block_ref *ref) noexcept
cdef int copy_into(uint8_t *out, uint64_t room, list parts, uint64_t align, tell) except -1
cpdef uint64_t room_of(list parts, uint64_t align) except? 0
