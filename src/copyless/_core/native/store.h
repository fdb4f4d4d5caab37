/* The store: one process's use of one user's registry and segments. The native floor's interface to the binding.
 *
 * Promise: any thread may call any function. Functions marked (wait) return CL_AGAIN instead of waiting unless
 * CL_MAY_WAIT is given; with it they may sleep for a slice and still return CL_AGAIN, so that the caller serves
 * signals and calls again. They never wait for longer than that at once, and a dead process never makes them wait.
 *
 * Two locks, always taken in this order: the store's own mutex (the process's tables, and fork), then the registry's
 * lock. Neither is held across a file's reservation or destruction. */
#ifndef CL_STORE_H
#define CL_STORE_H

#include "journal.h"
#include "lock.h"
#include "process.h"
#include "thread_lock.h"

#include <fcntl.h>
#include <pthread.h>
#include <sys/types.h>

#define CL_MAY_WAIT 1u
#define CL_MAY_SPILL 2u /* an allocation: on disk when shared memory is full */
#define CL_FOR_OBJECT 4u /* an allocation: in a segment of objects only */
#define CL_ALONE 8u /* an allocation: in a segment of its own */
#define CL_STAY 16u /* an allocation: in this store even when it is adrift, then on disk */

/* Why files are gone, for messages. */
#define CL_WHY_REMOVED                                                                                                 \
    "removed while in use, by systemd at logout (unless logind.conf has RemoveIPC=no or the user lingers) or by a "    \
    "cleaner"

/* What this process knows of one segment: its mapping, and its own hold on each block. Kept while mapped. */
typedef struct cl_local_block {
    uint64_t generation;
    uint32_t references; /* objects of this process that stand on it */
    uint32_t hold; /* index + 1 of our hold, or of the one that we inherited (estate.c); 0: none */
    int private; /* never sent on by its address: a value that came by a queue, or the memory of a ring's frames */
} cl_local_block;

typedef struct cl_map {
    uint64_t id;
    uint64_t inode, device;
    uint8_t *base; /* NULL: external, not mapped by us */
    uint64_t size;
    uint64_t block_size;
    uint32_t slot;
    uint32_t nblocks;
    uint32_t in_use; /* blocks with references */
    char file[CL_FILE_NAME];
    cl_header header; /* as it was validated */
    int fd; /* to look at the file by one cheap call; -1 when there are many mappings */
    uint32_t kept; /* 1: it is one of store->kept */
    int64_t ctime_ns; /* of the file when its name was last checked: any rename, link or cut moves it on */
    struct cl_map *next; /* of those that are still to be unmapped */
    cl_local_block blocks[CL_BLOCKS];
} cl_map;

typedef struct cl_identity {
    uint64_t host, boot, family;
    uint64_t start, parent_start, pid_namespace;
    uint32_t pid, parent_pid;
    char command[32];
} cl_identity;

typedef struct cl_settings {
    uint64_t warm_limit; /* bytes of free blocks kept warm */
    int64_t idle_ns; /* free segments older than this go back */
    int64_t message_ttl_ns;
    char spill
        [CL_SPILL_PATH]; /* for a registry that is made: where on disk items go when shared memory is full, without the
                                 registry's id at its end; empty: nowhere */
} cl_settings;

typedef struct cl_store cl_store;
struct cl_store {
    cl_thread_lock mutex;
    int open;
    int joining; /* our slot is not live yet */
    int leaving; /* nobody else is left, and what is unlinked now goes with this process */
    /* The registry's file was removed while this process used it: enter.c says what goes on. Never taken back. */
    _Atomic int adrift;
    int observer; /* it has not joined: observe.c */
    const struct cl_snapshot *copy; /* it is the view of this copy: snapshot.c */
    int orphan; /* a forked child that could not be registered: it has its parent's mappings, and no part in anything */
    _Atomic int directory; /* by cl_directory */
    int registry_fd;
    _Atomic int live_fd; /* to ask about others' bytes; locks nothing */
    int spill_fd; /* 0: not opened yet */
    void *spill_mark; /* a mapping that keeps home.N of the spill directory read-locked; NULL: not opened yet */
    cl_spill spill; /* as the registry says */
    int made; /* this process made the registry that it joined */
    uint32_t slot, incarnation;
    /* liveness.c: what holds our two bytes */
    void *life, *lineage;
    int life_fd; /* weak_liveness: instead of `life`; else -1 */
    int weak_liveness; /* this system ignores MADV_DONTFORK */
    int spare_fd; /* an opening of the liveness file for a fork that finds no free descriptor */
    volatile uint32_t *here; /* 0: we are a copy of the process that opened the store, made behind our back */
    /* fork.c: between prepare and the end of a fork */
    uint32_t fork_slot; /* slot + 1 of the child to be; 0: it could not be registered */
    void *fork_life;
    int fork_life_fd;
    uint64_t registry_device, registry_inode, live_device, live_inode, directory_device, directory_inode, spill_device,
        spill_inode; /* what our descriptors must be: a program may close them, and give their numbers to files of its own */
    char path[4096]; /* of the storage directory */
    uint64_t registry_id;
    uint32_t books; /* the tables whose parts beside the spilled files are mapped here, as bits */
    uint8_t *base; /* of the mapped registry */
    cl_control *control;
    cl_owner *owners;
    uint32_t *buckets;
    cl_name *names;
    cl_hold *holds;
    cl_segment *segments;
    cl_mark_page *marks;
    uint64_t *mark_bits;
    cl_map **maps; /* by segment slot */
    cl_map **by_address; /* mapped ones, by base */
    cl_map *dropped; /* in no table any more, to be unmapped without a lock */
    uint32_t nmaps, maps_room;
    uint32_t kept; /* descriptors of mappings that are open */
    uint32_t keep_most; /* 1 + how many may be, after there were too few; 0: as many as usual */
    uint64_t nonce;
    cl_identity identity;
    cl_settings settings;
    cl_spin spin;
#define CL_GOING 64u
#define CL_LATER_MOST 1048576u
    _Atomic int64_t full_until_ns; /* memory was found full a moment ago: see cl_alloc */
    uint32_t going[CL_GOING]; /* slots that we retired and whose files are still to be unlinked */
    uint32_t ngoing;
    uint32_t trim_at; /* the slot that is looked at next for a free segment of small blocks */
    uint32_t look_at, message_at; /* likewise, of the owners, and of the holds for messages that are over */
    struct cl_later *later; /* operation.c: what waits for the next time that this process has the registry's lock */
    uint32_t nlater, later_room;
    cl_store *older; /* for the binding: the one that this process used before, whose blocks it may still have */
};

/* A block as its user sees it. */
typedef struct cl_block_ref {
    uint64_t segment_id;
    uint64_t generation;
    uint64_t capacity;
    uint64_t offset; /* of the block in its file */
    uint8_t *data;
    uint32_t segment;
    uint32_t index;
    int recycled; /* the memory was used before: not zero */
    int spilled; /* it is a file on disk */
} cl_block_ref;

/* The files of the floor, lowest first: each calls those above it in this list, never those below.
 *
 * ---- files.c: names of files, and the lock that allows to remove them */
int cl_is_file(int fd, uint64_t device, uint64_t inode); /* a program may have closed it, and reused its number */
void cl_directory_keep(cl_store *store, int fd); /* from now on the storage directory */
int cl_directory(cl_store *store); /* its descriptor, checked, opened again if the program closed it; -1 and errno */
void cl_file_name(char *out, const char *prefix, uint64_t id); /* CL_FILE_NAME bytes; so for the next two */
void cl_segment_file(char *out, uint64_t id);
void cl_live_file(char *out, uint64_t id);
uint64_t cl_file_id(const char *name, const char *prefix); /* the id in a name of this kind; 0: it is none */
int cl_is_named(int directory, const char *name, int fd); /* the name leads to this very file */
/* Lock every byte of a liveness file through this opening: 1 if no other opening has any. From then on nobody can join.
 * The lock ends with the opening. */
int cl_exclude_all(int live_fd);
int cl_exclude_others(cl_store *store); /* ... but for our own two, which we have */
void cl_exclude_nobody(cl_store *store);
int cl_is_excluded(int live_fd); /* another opening has done so: the registry is being made or removed */

/* ---- liveness.c: which owners live */
int cl_live_open(cl_store *store); /* a new opening of the liveness file, or -1 and errno */
cl_life cl_owner_life(cl_store *store, uint32_t slot, uint32_t incarnation);
int cl_lineage_lives(cl_store *store, uint32_t slot); /* may a copy of its address space live? */
int cl_byte_lock(int fd, uint32_t byte); /* CL_AGAIN: another has it */
void cl_byte_unlock(int fd, uint32_t byte);
int cl_life_map(int fd, void **page); /* a page that keeps an opening */
int cl_life_keep(cl_store *store); /* ... out of forked children */
int cl_advice_is_ignored(void *page);
int cl_lineage_begin(cl_store *store);
void cl_spare_opening(cl_store *store);
void cl_life_end(cl_store *store);

/* ---- spill.c: the directory on disk for what does not fit */
void cl_spill_decide(cl_spill *spill, const char *prefix, uint64_t registry);
int cl_spill_join(cl_store *store); /* read what the registry says */
int cl_spill_check(const cl_spill *spill); /* ... is it what was written? */
int cl_spill_is_here(const cl_spill *spill); /* this process sees the place that was decided on */
int cl_home(cl_store *store, uint32_t class_index, int make); /* the directory of such segments; -1: see the error */
void cl_spill_fork_child(void);
void cl_spill_forget(cl_store *store); /* it was removed: look anew */
void cl_spill_remove(cl_store *store); /* with the registry that is being removed */
void cl_spill_sweep(cl_store *store); /* after making a registry: what earlier ones of this storage directory left */

/* ---- books.c: room for the tables, in the mount or beside the spilled items */
int cl_reserve(cl_store *store, uint64_t offset, uint64_t length); /* pages of the registry */
int cl_reserve_fd(int fd, uint64_t offset, uint64_t length); /* ... of one that is being made */
int cl_books_follow(cl_store *store); /* map here what lies beside; under the mutex */
/* A table of the registry whose unused entries are chained: state 0, and the index + 1 of the next one. */
typedef struct cl_table {
    const char *what; /* its entries are, for people */
    uint64_t offset; /* of its first entry in the registry */
    uint64_t stride; /* bytes of an entry */
    size_t state_at, next_at; /* where in an entry the two words lie */
    uint32_t most; /* entries that there may ever be */
    enum cl_table_number number;
    uint32_t *free, *high; /* the first unused entry's index + 1; how many entries have pages */
} cl_table;
/* Pages and free-list links for the next n entries, or fewer, of a table that has no unused one. A transaction of its own.
 * Without `last`, the last entries that there is room for in the mount are left alone. Under the registry's lock. */
int cl_table_grow(cl_store *store, const cl_table *table, uint32_t n, int last);
void cl_books_remove(cl_store *store); /* the file of a registry that goes */

/* ---- enter.c: the way in */
void cl_set_op(cl_store *store, enum cl_op op);
/* Its file is whole, header and control area are not overwritten. A file that is gone is no error: the store is adrift. */
int cl_check_registry(cl_store *store);
int cl_check_lengths(const cl_control *control); /* how long its tables say that they are: part of the former */
int cl_enter_tables(cl_store *store, unsigned flags); /* (wait) the mutex alone: this process's tables */
void cl_leave_tables(cl_store *store);
/* The process that a lock word names, for display; 0: none. */
uint32_t cl_owner_pid(const cl_store *store, uint32_t word);
/* The second lock alone; checks the registry first. CL_AGAIN: not within the deadline; `awake`: not without sleeping. */
int cl_lock_registry(cl_store *store, enum cl_op op, int64_t deadline_ns);
int cl_lock_registry_awake(cl_store *store, enum cl_op op, int slept, uint32_t *seen);

/* ---- segment_file.c: files and mappings */
int cl_segment_create(cl_store *store, cl_map *map, uint64_t id, uint32_t class_index, uint64_t block_size,
                      uint32_t nblocks);
int cl_segment_map(cl_store *store, uint64_t id, uint32_t slot, cl_map **map); /* under the mutex */
/* Of a file of so many bytes; CL_CORRUPT unless every field agrees. */
int cl_segment_header_check(const cl_header *header, uint64_t id, uint64_t file_size, const char *file);
int cl_segment_check(cl_store *store, cl_map *map); /* the file is still the one that we mapped */
int cl_segment_agrees(cl_store *store, const cl_map *map); /* ... and the registry says the same of it */
void cl_segment_destroy(cl_store *store, uint64_t id); /* the file; quiet when it is gone */
int cl_map_add(cl_store *store, cl_map *map);
void cl_map_drop(cl_store *store, cl_map *map); /* out of the tables; what it takes long to unmap comes later: */
cl_map *cl_maps_dropped(cl_store *store); /* ... these, under the mutex, */
void cl_maps_discard(cl_map *dropped); /* ... which go without any lock */
void cl_map_discard(cl_map *map); /* one that is in no table */
int cl_descriptors_give_back(
    cl_store *store); /* the process has no more: close those kept here. Takes the mutex. 1: some */
void cl_map_prune(cl_store *store); /* unmap what no longer exists */

/* ---- blocks.c: sizes, and free lists. Under the registry's lock. */
int cl_block_checked(cl_store *store, uint32_t number, cl_block **block); /* CL_CORRUPT unless sound */
uint32_t cl_class_of(uint64_t nbytes);
uint64_t cl_capacity_for(uint64_t nbytes);
uint32_t cl_blocks_for(uint32_t class_index); /* how many of a class share a segment */
int cl_unlink_free(cl_store *store, cl_txn *txn, uint32_t number); /* off its free list */
void cl_free_block(cl_store *store, cl_txn *txn, uint32_t number); /* onto its free list */

/* ---- segment_table.c: a segment's slot, from the first to the last. Under the registry's lock. */
/* A slot in `making` or `external`; `last`: it may be the last one that there is. */
int cl_segment_slot(cl_store *store, uint32_t state, uint64_t id, int last, uint32_t *slot);
int cl_segment_retire(cl_store *store, uint32_t slot); /* ready -> going: no block of it is free any more */
void cl_segment_forget(cl_store *store, uint32_t slot); /* going, file gone -> free */
void cl_finish_going(cl_store *store, int keep_locked); /* unlink what we retired; lets the lock go meanwhile, or not */
/* `steps`: how much work at most, some 0.3 us each; what is left of it. 0: there may be more to give back. */
int cl_trim_locked(cl_store *store, uint64_t keep_bytes, int64_t idle_before_ns, uint64_t *freed, uint32_t *steps);
#define CL_TRIM_STEPS 128u

/* ---- name_table.c: entries and chains of names. Under the registry's lock. */
/* What is looked for. POSIX objects are told apart by device and inode too: a name may have been given again. */
typedef struct cl_name_key {
    const char *name;
    uint32_t length, kind;
    uint64_t device, inode;
} cl_name_key;
cl_name_key cl_array_key(const char *name, uint32_t length);
cl_name_key cl_posix_key(const char *name, uint32_t length, uint64_t device, uint64_t inode);
int cl_name_check(const char *name, uint32_t length);
int cl_name_find(cl_store *store, cl_name_key key, cl_name **entry, uint32_t **before);
int cl_name_prepare(cl_store *store, cl_name_key key, uint32_t number, cl_name **out);
void cl_name_link(cl_store *store, cl_txn *txn, uint32_t kind, cl_name *entry);
void cl_name_remove(cl_store *store, cl_txn *txn, uint32_t entry);

/* ---- snapshot.c: the tables, copied and read without the lock */
enum cl_snapshot_state {
    CL_SNAPSHOT_WHOLE, /* nobody changed anything meanwhile */
    CL_SNAPSHOT_MOVED, /* others changed the registry all the time */
    CL_SNAPSHOT_HELD, /* its holder does not go on: stopped, or dead */
};
typedef struct cl_snapshot {
    cl_store *view; /* a store over the copy, of which nothing but the tables, and who lives, may be asked */
    cl_store *of;
    cl_control control;
    cl_owner *owners;
    cl_segment *segments;
    cl_hold *holds;
    cl_name *names;
    enum cl_snapshot_state state;
    uint32_t holder; /* held: the lock word */
    uint32_t pid; /* ... its process; 0: not known */
    int lives;
    int64_t held_ns; /* ... for how long, when that is known; else 0 */
    int live_fd, directory; /* the view's, as it got them */
} cl_snapshot;
int cl_snapshot_take(cl_store *store, cl_snapshot *out, unsigned flags); /* (wait) */
/* A slot of the table of segments, as it is now, not in the copy. */
int cl_snapshot_segment_now(const cl_snapshot *snapshot, uint32_t slot, cl_segment *now);
void cl_snapshot_free(cl_snapshot *snapshot);

/* ---- observe.c: looking on without joining */
int cl_observe(cl_store *store, int directory); /* CL_MISSING: there is no registry */
void cl_observe_end(cl_store *store);
/* A descriptor to read a segment of a snapshot; below 0: a result, CL_STALE when its file is gone. */
int cl_observe_segment(const cl_snapshot *snapshot, uint32_t slot);
/* Bytes of one of its blocks, which count only if it is `still` the same afterwards: else CL_STALE. */
int cl_observe_still(const cl_snapshot *snapshot, uint32_t slot, uint32_t index);
int cl_observe_block(const cl_snapshot *snapshot, int fd, uint32_t slot, uint32_t index, uint64_t offset, void *to,
                     uint64_t nbytes);

/* ---- audit.c: is the registry consistent in itself? Under the registry's lock, or of the view of a
 * copy that is whole. */
int cl_audit(cl_store *store);

/* ---- holds.c: why blocks live. Under the registry's lock. */
uint64_t cl_new_nonce(cl_store *store);
int cl_hold_take(cl_store *store, cl_txn *txn, uint32_t kind, uint32_t owner, uint32_t number, uint32_t *index);
/* Whose message's or family's hold it is; returns when it ends. */
int64_t cl_hold_describe(cl_store *store, uint32_t index, uint32_t kind);
int cl_hold_drop(cl_store *store, uint32_t index); /* one transaction; frees the block with its last hold */
/* Parts of a transaction: onto the list that goes with its kind, off it; onto an owner's, `nonce` not 0: as a drafted one. */
int cl_hold_link(cl_store *store, cl_txn *txn, uint32_t index, uint32_t kind);
int cl_hold_unlink(cl_store *store, cl_txn *txn, uint32_t index);
int cl_hold_own(cl_store *store, cl_txn *txn, uint32_t index, uint32_t owner, uint64_t nonce);
int cl_is_message(cl_store *store, uint32_t hold, uint64_t nonce,
                  uint32_t number); /* under the lock; UINT32_MAX: of any block */
void cl_refer(const cl_map *map, uint32_t index, uint64_t generation, cl_block_ref *out); /* describe a block */

/* ---- estate.c: what forked children inherit. Under the registry's lock. */
void cl_mark_clear(cl_store *store, cl_txn *txn, uint32_t hold); /* our own mark: the entry is used anew */
void cl_marks_share(cl_store *store, cl_txn *txn, const cl_owner *parent, cl_owner *child);
void cl_marks_drop(cl_store *store, uint32_t slot);
int cl_hold_is_inherited(cl_store *store, uint32_t index, uint32_t number); /* by us, on this block */
int cl_is_used_by_heirs(cl_store *store, uint32_t hold, uint32_t except, int lineage);
int cl_hold_let_go(cl_store *store, uint32_t index, uint32_t number); /* our own or an inherited one */
void cl_owner_end(cl_store *store, uint32_t slot); /* live -> gone */
void cl_look_above(cl_store *store, uint32_t slot); /* sweep again what those above it left to it */
int cl_owner_free(cl_store *store, uint32_t slot); /* gone -> free: nothing names it any more */
/* ---- sweep.c: files that no registry can name */
void cl_sweep(cl_store *store); /* (wait) */

/* ---- operation.c: both locks, and what was put off */
int cl_enter(cl_store *store, enum cl_op op, unsigned flags); /* (wait) both locks */
void cl_unlock_registry(cl_store *store); /* the registry's lock alone; unlinks what was given back */
void cl_leave(cl_store *store);
int cl_peek(cl_store *store, cl_control *copy, unsigned flags); /* (wait) the totals */
void cl_leave_keeping_error(cl_store *store); /* what cl_last_error() says is still what the operation said */
/* What lets something go need not wait for a stopped process: it is noted, and done the next time that this process has the
 * registry's lock; when it ends, it is reaped with the rest. Under the mutex. 0: there is no memory to note it in. */
enum cl_later_kind { CL_LATER_HOLD, CL_LATER_MESSAGE, CL_LATER_SEGMENT };
int cl_put_off(cl_store *store, enum cl_later_kind kind, uint32_t index, uint64_t id);
/* (wait) Whether something is: then the lock was not to be had a moment ago, one slice was waited for it, and that is enough. */
int cl_puts_off(cl_store *store, unsigned flags);
void cl_put_off_in_child(cl_store *store); /* after a fork: what of it is the child's, too */

/* ---- reap.c: taking back what the dead held. cl_scan is under the registry's lock. */
typedef struct cl_reaped {
    uint32_t owners, blocks, segments, messages;
} cl_reaped;
#define CL_SCAN_FORCE 1u /* now, and wholly: lets the registry's lock go between its steps */
#define CL_SCAN_KEEP_LOCK 2u /* ... but not that */
#define CL_SCAN_FOR_NAME                                                                                               \
    4u /* ... messages only if it is time, or somebody died: a name is free when its holders are dead */
int cl_scan(cl_store *store, unsigned flags, cl_reaped *reaped);
int cl_reap(cl_store *store, unsigned flags, cl_reaped *reaped); /* (wait) a full scan */

/* ---- heap.c: blocks, allocated and released */
/* CL_REMOVED: the store is adrift, and the block was not to stay in it, or cannot. */
int cl_alloc(cl_store *store, uint64_t nbytes, unsigned flags, cl_block_ref *out); /* (wait) */
int cl_release(cl_store *store, uint64_t segment_id, uint32_t segment, uint32_t index, unsigned flags); /* (wait) */
int cl_find(
    cl_store *store, const void *address, uint64_t nbytes, unsigned flags,
    cl_block_ref *
        out); /* (wait) by address, whole range in a block that we hold; 1: found, 0: not ours, 2: found, but private */
/* ... in any store that this process has used. 3: in one that it inherited by a fork that could not be registered. */
int cl_find_any(cl_store *newest, const void *address, uint64_t nbytes, unsigned flags, cl_block_ref *out,
                cl_store **store); /* (wait) */
int cl_mark_private(cl_store *store, const cl_block_ref *ref, unsigned flags); /* (wait) cl_find says 2 */
int cl_trim(cl_store *store, uint64_t keep_bytes, unsigned flags, uint64_t *freed); /* (wait) */

/* ---- messages.c: a block on its way to another process */
typedef struct cl_address { /* what a handle says of a block */
    uint64_t segment_id, generation, nonce;
    uint32_t segment, index, hold;
} cl_address;
int cl_send(cl_store *store, uint32_t segment, uint32_t index, unsigned flags, cl_address *out); /* (wait) */
int cl_draft(cl_store *store, uint32_t segment, uint32_t index, unsigned flags, cl_address *out); /* (wait) */
/* A drafted hold becomes a message's: it goes with an item of a queue that lies in another store. */
int cl_mail(cl_store *store, uint32_t hold, uint64_t nonce, unsigned flags); /* (wait) */
int cl_unsend(cl_store *store, uint32_t hold, uint64_t nonce, unsigned flags); /* (wait) */
int cl_load(cl_store *store, const cl_address *address, unsigned flags, cl_block_ref *out); /* (wait) */

/* ---- names.c: arrays by name */
typedef struct cl_named {
    cl_address address;
    uint64_t spec_offset, spec_length, nbytes, device, inode;
    int persists;
} cl_named;
int cl_publish(cl_store *store, const char *name, uint32_t length, uint32_t segment, uint32_t index,
               uint64_t spec_offset, uint64_t spec_length, int persist, unsigned flags); /* (wait) */
int cl_lookup(cl_store *store, const char *name, uint32_t length, unsigned flags, cl_named *out); /* (wait) */
int cl_unpublish(cl_store *store, const char *name, uint32_t length, unsigned flags); /* (wait) */
/* The same, only if it leads to this block, which the caller holds; else CL_MISSING. */
int cl_unpublish_of(cl_store *store, const char *name, uint32_t length, uint32_t segment, uint32_t index,
                    unsigned flags); /* (wait) */
int cl_name_withdraw(cl_store *store, cl_name *entry); /* under the lock: the name, and the hold that goes with it */

/* ---- owners.c: joining */
int cl_join(cl_store *store);
int cl_join_child(cl_store *store, void **life,
                  uint32_t *slot); /* under the lock: for a child that is about to be forked */

/* ---- channels.c: what lies in a queue
 *
 * A token names a hold by index and nonce. An item's holds are drafted (still ours, gone with us), given to the queue's
 * own block before the item is published in it, and taken by its receiver. */
typedef struct cl_token {
    uint64_t nonce;
    uint32_t hold;
    uint32_t pad;
} cl_token;
int cl_give(cl_store *store, uint32_t channel, uint64_t sequence, const cl_token *tokens, uint32_t n,
            const cl_block_ref *payload, unsigned flags, cl_token *payload_token); /* (wait) */
/* The holds of `tokens` become ours, as drafted ones; that of `drop` (or NULL) ends. */
int cl_take(cl_store *store, uint32_t channel, const cl_token *tokens, uint32_t n, const cl_token *drop,
            unsigned flags); /* (wait) */
int cl_take_entered(cl_store *store, uint32_t channel, const cl_token *tokens, uint32_t n,
                    const cl_token *drop); /* the same, under both locks */
/* Drop the holds of a channel that no item of it names. */
int cl_clean(cl_store *store, uint32_t channel, int (*keep)(void *context, uint64_t sequence, uint64_t nonce),
             void *context, unsigned flags); /* (wait) */

/* ---- posix.c: POSIX objects, recorded before they appear under their name, forgotten when unlinked */
int cl_posix_record(cl_store *store, const char *name, uint32_t length, uint64_t device, uint64_t inode,
                    uint64_t nbytes, int family, unsigned flags, uint64_t *id, uint32_t *slot); /* (wait) */
int cl_posix_attach(cl_store *store, const char *name, uint32_t length, uint64_t device, uint64_t inode, unsigned flags,
                    uint64_t *id, uint32_t *slot); /* (wait) */
int cl_posix_forget(cl_store *store, const char *name, uint32_t length, uint64_t device, uint64_t inode,
                    unsigned flags); /* (wait) */

/* ---- fork.c */
int cl_here_begin(cl_store *store); /* a page that copies of this process find wiped */
int cl_fork_follow(cl_store *store); /* forks of this process carry the store on: by pthread_atfork */
void cl_fork_hold(void); /* no fork until the release: a child must not get a store that is half open */
int cl_fork_release(cl_store *store); /* ... and follow this one, if not NULL */
void cl_fork_forget(cl_store *store);

/* ---- registry.c: opening, leaving */
struct stat;
int cl_read_header(int fd, cl_header *header, struct stat *st); /* of a registry's file; CL_CORRUPT unless sound */
void cl_point_tables(cl_store *store); /* into what is mapped at `base` */
int cl_store_open(cl_store *store, int directory, const cl_identity *identity, const cl_settings *settings);
/* Leave for good: give up what nothing of this process uses; if nobody else lives, take the files away (returns 1). */
int cl_store_leave(cl_store *store);

#endif
