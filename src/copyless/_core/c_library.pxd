# The only declaration of the C library for all bindings: the functions, constants and structs that they use. The headers in
# native/ document them. The compiler checks every use against the headers (-Werror=incompatible-pointer-types).
#
# The last error is the thread's: a function that got one checks it before it calls anything else, see _check.pxd.
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

cdef extern from "base.h" nogil:
    enum: CL_OK, CL_AGAIN, CL_TIMEOUT, CL_OWNER_DIED, CL_CORRUPT, CL_STALE, CL_FULL, CL_TABLE_FULL, CL_EXISTS, CL_MISSING, CL_SYSTEM
    enum: CL_CLOSED, CL_FORKED, CL_RETRY, CL_FOREIGN, CL_OTHER_FORMAT, CL_REMOVED
    ctypedef struct cl_au32:  # a word that other processes change: only read and written with the functions at the end
        pass
    ctypedef struct cl_error:
        int code
        int sys
        uint64_t asked
        char what[360]
    cl_error *cl_last_error()
    int64_t cl_monotonic_ns()

cdef extern from "wait.h" nogil:
    ctypedef struct cl_spin:
        pass
    enum: CL_WAIT_MANY, CL_BELL_SLEEP, CL_SLICE_NS
    int64_t CL_FOREVER
    int cl_wait(cl_au32 *word, uint32_t expected, int64_t deadline_ns, cl_spin *spin)
    void cl_stay_awake(int on)
    int cl_wait_many(cl_au32 **words, const uint32_t *expected, int n, int64_t deadline_ns)
    void cl_wake(cl_au32 *word, int n)

cdef extern from "copy.h" nogil:
    uint64_t CL_COPY_LARGE
    void cl_copy(void *to, const void *source, uint64_t n, uint64_t whole)

cdef extern from "platform.h" nogil:
    int cl_capacity_check(int fd, uint64_t size)
    int cl_wake_descriptor()
    void cl_raise_descriptor(int fd)
    int cl_lower_descriptor(int fd)
    int cl_place_descriptor(int fd, int number)

cdef extern from "platform.h" nogil:
    ctypedef struct sigset_t:
        pass
    int sigemptyset(sigset_t *signals)
    int sigaddset(sigset_t *signals, int number)
    ctypedef struct cl_program:
        char **paths
        char **arguments
        char **environment
        sigset_t *blocked
        int descriptors[3]
        int processor
    int cl_start_program(const cl_program *program)
    enum: CL_FS_MEMORY, CL_FS_LOCAL
    int cl_filesystem_of(int directory)

cdef extern from "lock.h" nogil:
    uint32_t CL_LOCK_SLEEP
    uint32_t CL_LOCK_SLOT(uint32_t word)
    ctypedef enum cl_life:
        CL_ALIVE
    void cl_unlock(cl_au32 *word)
    ctypedef struct cl_waiting:
        uint32_t holder, pid
        int64_t since_ns
    cl_waiting *cl_waits()

cdef extern from "layout.h" nogil:
    enum cl_kind:  # the kinds of objects in blocks; Python has the numbers from c_library.pyx
        CL_KIND_LOCK
        CL_KIND_RLOCK
        CL_KIND_RWLOCK
        CL_KIND_SEMAPHORE
        CL_KIND_ROBUST_SEMAPHORE
        CL_KIND_CONDITION
        CL_KIND_EVENT
        CL_KIND_BARRIER
        CL_KIND_QUEUE
        CL_KIND_RING
    enum cl_op:
        CL_OP_REAP
        CL_OP_LIST
    enum: CL_BLOCKS, CL_NAME_MAX, CL_OBJECTS, CL_OBJECT_MAGIC, CL_LAYOUT, CL_FORMAT, CL_FILE_NAME
    enum: CL_CARETAKER, CL_MAX_SEGMENTS, CL_MAX_HOLDS, CL_MAX_NAMES, CL_SPILLED
    ctypedef struct cl_spill:
        char path[320]
    enum: CL_OWNER_FREE, CL_OWNER_GONE, CL_HOLD_FREE, CL_HOLD_MESSAGE, CL_HOLD_CHANNEL, CL_HOLD_ESTATE, CL_BLOCK_USED, CL_NAME_FREE, CL_NAME_ARRAY
    enum: CL_SEGMENT_FREE, CL_SEGMENT_READY, CL_SEGMENT_EXTERNAL
    ctypedef struct cl_control:
        cl_au32 lock, names_seq
        uint32_t owners_high, segments_high, holds_high, names_high, messages, persistent
        uint64_t total_bytes, warm_bytes, deaths, deaths_in_op, recoveries, heals
    ctypedef struct cl_owner:
        uint32_t state, incarnation, pid, parent_pid, leaving, heir_of
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
        uint64_t generation, spec_offset, spec_length
        char name[256]
    ctypedef struct cl_head:
        uint32_t magic, kind, number, room
        uint32_t flags
        cl_au32 renamed
        uint64_t spare[4]

cdef extern from "store.h" nogil:
    enum: CL_MAY_WAIT, CL_MAY_SPILL, CL_FOR_OBJECT, CL_ALONE, CL_STAY, CL_SCAN_FORCE
    ctypedef struct cl_identity:
        uint64_t host, boot, family, start, parent_start, pid_namespace
        uint32_t pid, parent_pid
        char command[32]
    ctypedef struct cl_settings:
        uint64_t warm_limit
        int64_t idle_ns
        int64_t message_ttl_ns
        char spill[320]
    ctypedef struct cl_store:
        int open
        int adrift
        int orphan
        cl_error fork_failed
        int weak_liveness
        cl_au32 untold
        cl_segment *segments
        uint32_t slot, incarnation
        uint64_t registry_id
        uint8_t *base
        cl_store *older
        volatile uint32_t *here
        cl_control *control
        cl_owner *owners
        cl_name *names
        cl_hold *holds
        cl_segment *segments
        cl_identity identity
        cl_settings settings
        cl_spill spill
    ctypedef struct cl_block_ref:
        uint64_t segment_id, generation, capacity, offset
        uint8_t *data
        uint32_t segment, index
        int recycled
        int spilled
    ctypedef struct cl_address:
        uint64_t segment_id, generation, nonce
        uint32_t segment, index, hold
    ctypedef struct cl_token:
        uint64_t nonce
        uint32_t hold
    ctypedef struct cl_named:
        cl_address address
        uint64_t spec_offset, spec_length, nbytes, device, inode
        int persists
    ctypedef struct cl_reaped:
        uint32_t owners, blocks, segments, messages, expired
    enum: CL_DEATHS
    ctypedef struct cl_death:
        uint32_t pid, op
        char command[32]
    ctypedef struct cl_news:
        cl_reaped reclaimed
        uint32_t spilled
        cl_death deaths[8]
    int cl_news_take(cl_store *store, cl_news *news)
    int cl_used_here(cl_store *store, unsigned flags, uint64_t *blocks, uint64_t *nbytes)
    int cl_store_open(cl_store *store, int directory, const cl_identity *identity, const cl_settings *settings)
    int cl_store_leave(cl_store *store)
    int cl_enter(cl_store *store, cl_op op, unsigned flags)
    void cl_leave(cl_store *store)
    void cl_leave_keeping_error(cl_store *store)
    cl_life cl_owner_life(cl_store *store, uint32_t slot, uint32_t incarnation)
    void cl_fork_hold()
    int cl_fork_release(cl_store *store)
    int cl_before_fork(cl_store *store)
    enum cl_snapshot_state:
        CL_SNAPSHOT_WHOLE
        CL_SNAPSHOT_MOVED
        CL_SNAPSHOT_HELD
    ctypedef struct cl_snapshot:
        cl_store *view
        cl_snapshot_state state
        uint32_t holder, pid
        int lives
        int64_t held_ns
        cl_control control
        cl_owner *owners
        cl_segment *segments
        cl_hold *holds
        cl_name *names
    int cl_snapshot_take(cl_store *store, cl_snapshot *out, unsigned flags)
    void cl_snapshot_free(cl_snapshot *snapshot)
    int cl_observe(cl_store *store, int directory)
    void cl_observe_end(cl_store *store)
    int cl_observe_segment(const cl_snapshot *snapshot, uint32_t slot)
    int cl_observe_block(const cl_snapshot *snapshot, int fd, uint32_t slot, uint32_t index, uint64_t offset, void *to, uint64_t nbytes)
    int cl_observe_still(const cl_snapshot *snapshot, uint32_t slot, uint32_t index)
    int cl_advice_is_ignored(void *page)
    int cl_peek(cl_store *store, cl_control *copy, unsigned flags)
    int cl_process_lives(uint32_t pid, uint64_t start)
    int cl_find_any(cl_store *newest, const void *address, uint64_t nbytes, unsigned flags, cl_block_ref *out, cl_store **store)
    int cl_reap(cl_store *store, unsigned flags, cl_reaped *reaped)
    int cl_scan(cl_store *store, unsigned flags, cl_reaped *reaped)
    uint64_t cl_process_start(uint32_t pid)
    int cl_audit(cl_store *store)
    int cl_directory(cl_store *store)
    void cl_segment_file(char *out, uint64_t id)
    int cl_spill_is_here(const cl_spill *spill)
    int cl_alloc(cl_store *store, uint64_t nbytes, unsigned flags, cl_block_ref *out)
    int cl_release(cl_store *store, uint64_t segment_id, uint32_t segment, uint32_t index, unsigned flags)
    int cl_find(cl_store *store, const void *address, uint64_t nbytes, unsigned flags, cl_block_ref *out)
    int cl_mark_private(cl_store *store, const cl_block_ref *ref, unsigned flags)
    int cl_trim(cl_store *store, uint64_t keep_bytes, unsigned flags, uint64_t *freed)
    int cl_hold_drop(cl_store *store, uint32_t index)
    int cl_send(cl_store *store, uint32_t segment, uint32_t index, unsigned flags, cl_address *out)
    int cl_draft(cl_store *store, uint32_t segment, uint32_t index, unsigned flags, cl_address *out)
    int cl_mail(cl_store *store, uint32_t hold, uint64_t nonce, unsigned flags)
    int cl_unsend(cl_store *store, uint32_t hold, uint64_t nonce, unsigned flags)
    int cl_load(cl_store *store, const cl_address *address, unsigned flags, cl_block_ref *out)
    int cl_publish(cl_store *store, const char *name, uint32_t length, uint32_t segment, uint32_t index,
                   uint64_t spec_offset, uint64_t spec_length, int persist, unsigned flags)
    int cl_lookup(cl_store *store, const char *name, uint32_t length, unsigned flags, cl_named *out)
    int cl_unpublish(cl_store *store, const char *name, uint32_t length, unsigned flags)
    int cl_unpublish_of(cl_store *store, const char *name, uint32_t length, uint32_t segment, uint32_t index, unsigned flags)
    int cl_posix_record(cl_store *store, const char *name, uint32_t length, uint64_t device, uint64_t inode,
                        uint64_t nbytes, int family, unsigned flags, uint64_t *id, uint32_t *slot)
    int cl_posix_attach(cl_store *store, const char *name, uint32_t length, uint64_t device, uint64_t inode,
                        unsigned flags, uint64_t *id, uint32_t *slot)
    int cl_posix_forget(cl_store *store, const char *name, uint32_t length, uint64_t device, uint64_t inode,
                        unsigned flags)

cdef extern from "sync.h" nogil:
    enum: CL_SEM_SLEEP
    ctypedef struct cl_mutex:
        cl_head head
        cl_au32 word
    ctypedef struct cl_semaphore:
        cl_head head
        cl_au32 word
    ctypedef struct cl_object:
        cl_head *head
        cl_head is_ "is"
    int cl_object_attach(cl_object *o, cl_head *head, uint64_t capacity, uint32_t block)
    uint32_t cl_owner_pid(const cl_store *store, uint32_t word)
    ctypedef struct cl_monitor:
        cl_au32 change
        cl_au32 sleeping
    ctypedef struct cl_entry:
        cl_au32 owner
    ctypedef struct cl_robust:
        cl_head head
        cl_monitor monitor
    ctypedef struct cl_rwlock:
        cl_head head
        cl_monitor monitor
        cl_au32 writer
        cl_entry readers[1]
    ctypedef struct cl_event:
        cl_head head
        cl_au32 word
    ctypedef struct cl_condition:
        cl_head head
    ctypedef struct cl_barrier:
        cl_head head
        cl_au32 broken
    uint32_t cl_self(const cl_store *store)
    int cl_mutex_lock(cl_store *store, cl_au32 *word, int64_t deadline_ns, cl_spin *spin)
    int cl_rlock(cl_store *store, cl_mutex *m, uint64_t thread, int64_t deadline_ns, cl_spin *spin)
    int cl_is_dead(cl_store *store, uint32_t word)
    int cl_rlock_is_mine(const cl_store *store, cl_mutex *m, uint64_t thread)
    void cl_runlock(cl_mutex *m)
    uint32_t cl_rlock_save(cl_mutex *m)
    int cl_rlock_restore(cl_store *store, cl_mutex *m, uint64_t thread, uint32_t depth, int64_t deadline_ns, cl_spin *spin)
    int cl_sem_acquire(cl_semaphore *s, int64_t deadline_ns, cl_spin *spin)
    int cl_sem_release(const cl_object *o, uint32_t n)
    int cl_robust_acquire(cl_store *store, const cl_object *o, int64_t deadline_ns, cl_spin *spin)
    int cl_robust_release(cl_store *store, const cl_object *o, int64_t deadline_ns)
    uint32_t cl_robust_value(cl_store *store, const cl_object *o)
    int cl_rw_read(cl_store *store, const cl_object *o, int64_t deadline_ns, cl_spin *spin)
    int cl_rw_write(cl_store *store, const cl_object *o, int64_t deadline_ns, cl_spin *spin)
    int cl_rw_forget(cl_store *store, const cl_object *o)
    int cl_rw_release(cl_store *store, const cl_object *o, int write)
    void cl_event_set(cl_event *e)
    void cl_event_clear(cl_event *e)
    int cl_event_wait(cl_event *e, uint32_t *seen, int64_t deadline_ns, cl_spin *spin)
    int cl_condition_begin(cl_store *store, const cl_object *o, uint32_t *entry)
    int cl_condition_wait(cl_store *store, const cl_object *o, uint32_t entry, int64_t deadline_ns, cl_spin *spin)
    int cl_condition_end(const cl_object *o, uint32_t entry)
    uint32_t cl_condition_notify(cl_store *store, const cl_object *o, uint32_t n)
    int cl_condition_lock(const cl_object *o, uint64_t capacity, cl_object *lock)
    int cl_barrier_arrive(cl_store *store, const cl_object *o, uint32_t *entry, uint32_t *index, int64_t deadline_ns)
    int cl_barrier_wait(cl_store *store, const cl_object *o, uint32_t entry, int64_t deadline_ns)
    int cl_barrier_release(cl_store *store, const cl_object *o, uint32_t entry, int64_t deadline_ns)
    int cl_barrier_break(cl_store *store, const cl_object *o, int reset)
    int cl_barrier_waiting(cl_store *store, const cl_object *o, uint32_t *n)

cdef extern from "queue.h" nogil:
    enum: CL_QUEUE_JOINABLE, CL_QUEUE_REDELIVER, CL_ROLE_PUTS, CL_ROLE_GETS, CL_ROLE_CLOSED, CL_LEASES, CL_INLINE_MAX
    ctypedef struct cl_au64:  # as cl_au32
        pass
    ctypedef struct cl_end:
        cl_au64 commit
    ctypedef struct cl_lease:
        cl_au32 owner
    ctypedef struct cl_queue_head:
        cl_head head
        cl_au32 state
        cl_au64 dropped, spilled
        cl_end put, get
    ctypedef struct cl_queue:
        cl_store *store
        cl_queue_head *head
        uint32_t most, leases
        uint64_t most_bytes, deliveries, flags
        cl_au32 self
    ctypedef struct cl_item:
        const void *body
        uint64_t nbytes
        const cl_token *tokens
        uint32_t ntokens
        const cl_block_ref *payload
    ctypedef struct cl_got:
        const uint8_t *body
        uint64_t nbytes
        uint32_t ntokens
        uint64_t sequence
        cl_block_ref payload
        int settled
    int cl_queue_attach(cl_queue *q, cl_store *store, cl_queue_head *head, uint64_t capacity, uint32_t number)
    void cl_queue_detach(cl_queue *q)
    int cl_queue_put(cl_queue *q, const cl_item *items, uint32_t n, uint32_t *done, int64_t deadline_ns, unsigned flags)
    int cl_queue_begin(cl_queue *q, int64_t deadline_ns, unsigned flags)
    int cl_queue_poll(cl_queue *q, int64_t budget_ns)
    int cl_queue_next(cl_queue *q, cl_got *out, unsigned flags)
    int cl_queue_needs_registry(const cl_queue *q)
    int cl_queue_commit(cl_queue *q)
    int cl_queue_settle(cl_queue *q, cl_got *got)
    int cl_queue_is_late(int64_t begun_ns, int64_t deadline_ns)
    void cl_queue_abort(cl_queue *q)
    uint64_t cl_queue_size(const cl_queue_head *h)
    uint64_t cl_queue_bytes(const cl_queue_head *h)
    uint64_t cl_queue_unfinished(cl_queue *q)
    int cl_queue_done(cl_queue *q, uint64_t sequence)
    int cl_queue_nack(cl_queue *q, uint64_t sequence)
    int cl_queue_dead_letter(cl_queue *q, uint32_t *at, cl_got *out, uint32_t *deliveries)
    int cl_queue_discard(cl_queue *q, uint64_t sequence)
    int cl_queue_join(cl_queue *q, int64_t deadline_ns, uint64_t *lost)
    int cl_queue_shut(cl_queue *q, int now)
    void cl_queue_role(cl_queue *q, uint32_t role, int on)
    void cl_queue_use(cl_queue *q, uint32_t role)
    int cl_queue_deserted(cl_queue *q)

cdef extern from "ring.h" nogil:
    enum: CL_RING_MEMBERS, CL_RING_MEMBERS_MAX, CL_RING_MAY_BLOCK, CL_RING_OPEN, CL_READER_DROPS, CL_READER_BLOCKS, CL_READER_DEMOTED
    ctypedef struct cl_reader:
        cl_au32 owner, policy
        cl_au64 cursor, taken, dropped
    uint32_t CL_READER_POLICY(uint32_t word)
    ctypedef struct cl_ring_head:
        cl_head head
        cl_au32 state, published, changed
        cl_au64 last, waits
    ctypedef struct cl_ring:
        cl_store *store
        cl_ring_head *head
        cl_reader *readers
        uint8_t *data
        uint8_t *spec
        uint32_t slots, room
        uint64_t stride, spec_bytes, flags
        cl_au32 self
    ctypedef struct cl_frame:
        uint32_t slot
        uint64_t seq
        int64_t time_ns
        uint64_t missed
    ctypedef struct cl_ring_counts:
        uint32_t held, writing, on_loan
        uint64_t last
        int64_t oldest_ns, newest_ns
    uint32_t cl_ring_members(uint32_t wanted)
    uint64_t cl_ring_bytes(uint32_t slots, uint32_t members, uint64_t stride, uint64_t spec)
    void cl_ring_begin(cl_ring_head *head, uint32_t slots, uint32_t members, uint64_t stride, uint64_t spec)
    uint8_t *cl_ring_spec(cl_ring_head *head, uint32_t slots, uint32_t members)
    int cl_ring_attach(cl_ring *r, cl_store *store, cl_ring_head *head, uint64_t capacity, uint32_t number)
    void cl_ring_detach(cl_ring *r)
    int cl_ring_claim(cl_ring *r, int64_t deadline_ns, unsigned flags, int64_t *since_ns, uint32_t *slot)
    int cl_ring_publish(cl_ring *r, uint32_t slot, cl_frame *out)
    int cl_ring_give_up(cl_ring *r, uint32_t slot)
    int cl_ring_latest(cl_ring *r, uint64_t after, int64_t deadline_ns, unsigned flags, cl_frame *out)
    int cl_ring_last(cl_ring *r, uint32_t most, unsigned flags, cl_frame *out, uint32_t *n)
    int cl_ring_subscribe(cl_ring *r, uint32_t policy, uint64_t since, unsigned flags, uint32_t *reader)
    int cl_ring_unsubscribe(cl_ring *r, uint32_t reader)
    int cl_ring_next(cl_ring *r, uint32_t reader, int64_t deadline_ns, unsigned flags, cl_frame *out)
    int cl_ring_return(cl_ring *r, uint32_t slot)
    void cl_ring_shut(cl_ring *r)
    int cl_ring_release_dead(cl_ring *r, unsigned flags)
    void cl_ring_count(const cl_ring *r, cl_ring_counts *out)

cdef extern from "tell.h" nogil:
    void cl_bells_tell(const cl_store *store, cl_head *head)
    int cl_bells_heard(cl_store *store, int64_t deadline_ns)

cdef extern from "bells.h" nogil:
    ctypedef struct cl_watch:
        cl_store *store
        cl_head *head
        cl_head is_ "is"
        uint64_t thread
        uint32_t reader
        uint32_t self
        cl_queue *queue
        const int *closed
    int cl_watch_any(cl_watch *watches, uint32_t n, uint8_t *ready, uint32_t *slices, int64_t deadline_ns, cl_spin *spin)
    uint32_t cl_watch_pass(cl_watch *watches, uint32_t n, uint8_t *ready, int ask, int look)
    enum: CL_LOOK_SLICES

cdef extern from "bell_thread.h" nogil:
    ctypedef struct cl_descriptor_id:
        pass
    cl_descriptor_id cl_descriptor_id_of(int fd)
    bint cl_descriptor_is_there(int fd, cl_descriptor_id kept)
    ctypedef struct cl_signal:
        cl_store *store
        int fd
        cl_descriptor_id known "is"
        int listens
        cl_watch watch
    int cl_signal_add(cl_signal *s)
    void cl_signal_remove(cl_signal *s)
    int cl_signal_settle(cl_signal *s)
    void cl_signal_shut(cl_signal *s)
    void cl_signal_keep(cl_signal *s, int on)
    bint cl_signal_replace(cl_signal *s, int fd)
    void cl_signals_forget()
    void cl_signals_stop()

cdef extern from "list.h" nogil:
    ctypedef struct cl_list_slot:
        uint64_t room
    ctypedef struct cl_list:
        uint64_t nslots
        cl_list_slot slots[1]
    ctypedef struct cl_value:
        uint64_t kind, word, length
    uint64_t cl_list_bytes(uint64_t nslots, const uint64_t *rooms)
    void cl_list_begin(cl_list *l, uint64_t nslots, const uint64_t *rooms, uint64_t registry)
    int cl_list_check(const cl_list *l, uint64_t capacity, uint64_t registry, uint64_t *nslots)
    int cl_list_get(cl_store *store, cl_list *l, uint64_t capacity, uint64_t nslots, uint64_t at, cl_value *value, void *bytes, uint64_t room,
                    int64_t deadline_ns)
    int cl_list_set(cl_store *store, cl_list *l, uint64_t capacity, uint64_t nslots, uint64_t at, const cl_value *value, const void *bytes,
                    int64_t deadline_ns)

cdef extern from *:
    """
    #include <stdatomic.h>
    #include "queue.h"

    static inline uint32_t cl_seen(const cl_au32 *word)
    {
        return atomic_load_explicit(word, memory_order_acquire);
    }
    static inline uint64_t cl_seen64(const cl_au64 *word)
    {
        return atomic_load_explicit(word, memory_order_acquire);
    }
    static inline void cl_put(cl_au32 *word, uint32_t value)
    {
        atomic_store_explicit(word, value, memory_order_release);
    }
    static inline uint32_t cl_swap(cl_au32 *word, uint32_t value)
    {
        return atomic_exchange_explicit(word, value, memory_order_release);
    }
    static inline int cl_mark(cl_au32 *word, uint32_t seen, uint32_t value)
    {
        return atomic_compare_exchange_strong(word, &seen, value);
    }
    static inline uint32_t cl_add_bits(cl_au32 *word, uint32_t bits)
    {
        return atomic_fetch_or(word, bits) | bits;
    }
    static inline uint64_t cl_add_bits64(cl_au64 *word, uint64_t bits)
    {
        return atomic_fetch_or(word, bits) | bits;
    }
    """
    uint32_t cl_seen(const cl_au32 *word) nogil
    uint64_t cl_seen64(const cl_au64 *word) nogil
    void cl_put(cl_au32 *word, uint32_t value) nogil
    uint32_t cl_swap(cl_au32 *word, uint32_t value) nogil
    int cl_mark(cl_au32 *word, uint32_t seen, uint32_t value) nogil  # whether it was `seen`, and is now `value`
    uint32_t cl_add_bits(cl_au32 *word, uint32_t bits) nogil  # the word with these bits
    uint64_t cl_add_bits64(cl_au64 *word, uint64_t bits) nogil
