/* The store: one process's use of one user's registry and segments. It is the C library's interface to the bindings.
 *
 * Promise: any thread may call any function. Functions marked (wait) return CL_AGAIN instead of waiting unless
 * CL_MAY_WAIT is given; with it they may sleep for a slice and still return CL_AGAIN, so that the caller serves
 * signals and calls again. They never wait longer than that in one call, and a dead process never makes them wait.
 *
 * There are two locks, always taken in this order: the store's own mutex (for the process's tables, and fork), then the
 * registry's lock. Neither is held while a file's memory is reserved or released. */
#ifndef CL_STORE_H
#define CL_STORE_H

#include "journal.h"
#include "lock.h"
#include "platform.h"
#include "thread_lock.h"

#include <fcntl.h>
#include <pthread.h>
#include <sys/types.h>

#define CL_MAY_WAIT 1u
#define CL_MAY_SPILL 2u /* for an allocation: on disk if shared memory is full */
#define CL_FOR_OBJECT 4u /* for an allocation: in a segment for objects */
#define CL_ALONE 8u /* for an allocation: in a segment of its own */
#define CL_STAY 16u /* for an allocation: in this store even if it is adrift, then on disk */

/* Why files were removed, for error texts. */
#define CL_WHY_REMOVED                                                                                                 \
    "removed while in use, by systemd at logout (unless logind.conf has RemoveIPC=no or lingering is enabled for the " \
    "user) or by a cleanup program"

/* One segment in this process: its mapping, and its own hold on each block. Kept while it is mapped. */
typedef struct cl_local_block {
    uint64_t generation;
    uint32_t references; /* objects of this process that use the block */
    uint32_t hold; /* index + 1 of this process's hold, or of an inherited one (estate.c); 0: none */
    int private; /* never sent by its address: a value that came by a queue, or the memory of a ring's frames */
} cl_local_block;

typedef struct cl_map {
    uint64_t id;
    uint64_t inode, device;
    uint8_t *base; /* NULL: external, not mapped here */
    uint64_t size;
    uint64_t block_size;
    uint32_t slot;
    uint32_t nblocks;
    uint32_t in_use; /* blocks with references */
    char file[CL_FILE_NAME];
    cl_header header; /* as it was when validated */
    int fd; /* to check the file with one cheap call; -1 if there are many mappings */
    uint32_t kept; /* 1: it is one of store->kept */
    int64_t ctime_ns; /* of the file when its name was last checked: a rename, link or truncation changes it */
    struct cl_map *next; /* in the list of mappings that must still be unmapped */
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
    int64_t idle_ns; /* free segments that are idle for longer are given back */
    int64_t message_ttl_ns;
    /* for a registry that is made: the directory on disk for items when shared memory is full, without the registry's
     * id at its end; empty: none */
    char spill[CL_SPILL_PATH];
} cl_settings;

typedef struct cl_reaped {
    uint32_t owners, blocks, segments, messages;
    uint32_t expired; /* of the messages, those whose time was over */
} cl_reaped;

/* What this process has taken back from others and not yet told its user: news.c */
#define CL_DEATHS 8u
typedef struct cl_death {
    uint32_t pid;
    uint32_t op; /* enum cl_op: what it was doing in the registry */
    char command[32];
} cl_death;
typedef struct cl_news {
    cl_reaped reclaimed;
    uint32_t spilled; /* blocks that this process made on disk, as shared memory had no room */
    cl_death deaths[CL_DEATHS]; /* the first of the owners */
} cl_news;

typedef struct cl_store cl_store;
struct cl_store {
    cl_thread_lock mutex;
    int open;
    int joining; /* the slot of this process is not live yet */
    int leaving; /* no other process is left, and blocks unlinked now are removed with this process */
    /* The registry's file was removed while this process used it: enter.c describes this state. It never ends. */
    _Atomic int adrift;
    int observer; /* it has not joined: observe.c */
    const struct cl_snapshot *copy; /* this store is the view of this copy: snapshot.c */
    int orphan; /* a forked child that could not be registered: it has its parent's mappings, but cannot use anything */
    _Atomic int directory; /* use cl_directory */
    int registry_fd;
    _Atomic int live_fd; /* to read the locks of others; locks nothing itself */
    int spill_fd; /* 0: not opened yet */
    void *spill_mark; /* a mapping that keeps home.N of the spill directory read-locked; NULL: not opened yet */
    cl_spill spill; /* as the registry says */
    int made; /* this process made the registry that it joined */
    cl_reaped joined; /* what joining took back, until cl_reap reports it */
    cl_news news; /* under the mutex */
    cl_au32 untold; /* whether there are news; a hint */
    uint32_t slot, incarnation;
    /* liveness.c: what keeps the two bytes of this process locked */
    void *life, *lineage;
    int life_fd; /* with weak_liveness: used instead of `life`; else -1 */
    int weak_liveness; /* this system ignores MADV_DONTFORK */
    int spare_fd; /* the liveness file, opened in advance for a fork that finds no free descriptor */
    volatile uint32_t *here; /* 0: this process is a copy, made unseen, of the process that opened the store */
    /* fork.c: between prepare and the end of a fork */
    uint32_t fork_slot; /* slot + 1 of the future child; 0: it could not be registered */
    void *fork_life;
    int fork_life_fd;
    cl_error fork_failed; /* why it could not be registered */
    /* what the descriptors must refer to: a program may close them, and reuse their numbers for files of its own */
    uint64_t registry_device, registry_inode, live_device, live_inode, directory_device, directory_inode, spill_device,
        spill_inode;
    char path[4096]; /* of the storage directory */
    uint64_t registry_id;
    uint32_t books; /* bits: the tables whose parts in the file of books are mapped here */
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
    cl_map *dropped; /* no longer in a table, to be unmapped without a lock */
    uint32_t nmaps, maps_room;
    uint32_t kept; /* number of mappings with an open descriptor */
    uint32_t keep_most; /* 1 + the most that may be open, since there were too few; 0: the usual number */
    uint64_t nonce;
    cl_identity identity;
    cl_settings settings;
    cl_spin spin;
#define CL_GOING 64u
#define CL_LATER_MOST 1048576u
    _Atomic int64_t full_until_ns; /* memory was full a moment ago: see cl_alloc */
    uint32_t going[CL_GOING]; /* slots that this process retired, whose files must still be unlinked */
    uint32_t ngoing;
    uint32_t trim_at; /* the next slot to check for a free segment of small blocks */
    uint32_t look_at, message_at; /* the same for the owners, and for holds of messages that have ended */
    struct cl_later *later; /* operation.c: what was put off until this process next has the registry's lock */
    uint32_t nlater, later_room;
    cl_store *older; /* for the binding: the store that this process used before, whose blocks it may still have */
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
    int spilled; /* the block is in a file on disk */
} cl_block_ref;

/* The files of the floor, lowest first: each calls those above it in this list, never those below.
 *
 * ---- files.c: names of files, and the lock that allows to remove them */
int cl_is_file(int fd, uint64_t device, uint64_t inode); /* the program may have closed it, and reused its number */
void cl_directory_keep(cl_store *store, int fd); /* this is the storage directory from now on */
int cl_directory(cl_store *store); /* its descriptor, checked; reopened if the program closed it; -1 with errno */
void cl_file_name(char *out, const char *prefix, uint64_t id); /* writes CL_FILE_NAME bytes, as do the next two */
void cl_segment_file(char *out, uint64_t id);
void cl_live_file(char *out, uint64_t id);
uint64_t cl_file_id(const char *name, const char *prefix); /* the id in a name of this kind; 0: it is not one */
int cl_is_named(int directory, const char *name, int fd); /* whether the name leads to this file */
/* Lock every byte of a liveness file through this descriptor. 1: no other process has a byte locked; from then on none
 * can join. The lock ends with the open file. */
int cl_exclude_all(int live_fd);
int cl_exclude_others(cl_store *store); /* ... except the two of this process */
void cl_exclude_nobody(cl_store *store);
int cl_is_excluded(int live_fd); /* another process has done so: the registry is being made or removed */

/* ---- liveness.c: which owners live */
int cl_live_open(cl_store *store); /* open the liveness file once more; -1 with errno */
cl_life cl_owner_life(cl_store *store, uint32_t slot, uint32_t incarnation);
int cl_lineage_lives(cl_store *store, uint32_t slot); /* whether a copy of its address space may live */
int cl_byte_lock(int fd, uint32_t byte); /* CL_AGAIN: another process has it */
void cl_byte_unlock(int fd, uint32_t byte);
int cl_life_map(int fd, void **page); /* map a page that keeps the file open */
int cl_life_keep(cl_store *store); /* ... out of forked children */
int cl_advice_is_ignored(void *page);
int cl_lineage_begin(cl_store *store);
void cl_spare_opening(cl_store *store);
void cl_life_end(cl_store *store);

/* ---- spill.c: the directory on disk for what does not fit */
void cl_spill_decide(cl_spill *spill, const char *prefix, uint64_t registry);
int cl_spill_join(cl_store *store); /* read what the registry says */
int cl_spill_check(const cl_spill *spill); /* ... whether it is undamaged */
int cl_spill_is_here(const cl_spill *spill); /* whether this process sees the same parent directory */
/* the directory of such segments; -1: cl_last_error() says why */
int cl_home(cl_store *store, uint32_t class_index, int make);
void cl_spill_fork_child(void);
void cl_spill_forget(cl_store *store); /* it was removed: look for it again */
void cl_spill_remove(cl_store *store); /* with the registry that is being removed */
/* after making a registry: remove what earlier registries of this storage directory left */
void cl_spill_sweep(cl_store *store);

/* ---- books.c: room for the tables, in the mount or beside the spilled items */
int cl_reserve(cl_store *store, uint64_t offset, uint64_t length); /* pages of the registry */
int cl_reserve_fd(int fd, uint64_t offset, uint64_t length); /* ... of a registry that is being made */
int cl_books_follow(cl_store *store); /* map the parts of tables in the file of books; under the mutex */
/* A table of the registry whose unused entries are chained: state 0, and the index + 1 of the next one. */
typedef struct cl_table {
    const char *what; /* the name of its entries, for error texts */
    uint64_t offset; /* of its first entry in the registry */
    uint64_t stride; /* bytes of an entry */
    size_t state_at, next_at; /* where in an entry the two words lie */
    uint32_t most; /* the highest possible number of entries */
    enum cl_table_number number;
    uint32_t *free, *high; /* the first unused entry's index + 1; how many entries have pages */
} cl_table;
/* Get pages and free-list links for the next n entries, or fewer, of a table without unused entries. This is a
 * transaction of its own. Without `last`, the last entries that the mount has room for are left alone. Under the
 * registry's lock. */
int cl_table_grow(cl_store *store, const cl_table *table, uint32_t n, int last);
void cl_books_remove(cl_store *store); /* remove the file of books of a registry that is removed */

/* ---- enter.c: the way in */
void cl_point_tables(cl_store *store); /* set the pointers to the tables in the mapping at `base` */
void cl_set_op(cl_store *store, enum cl_op op);
/* Check that the registry's file is whole, and that its header and control area are not overwritten. A file that was
 * removed is no error: then the store is adrift. */
int cl_check_registry(cl_store *store);
int cl_enter_tables(cl_store *store, unsigned flags); /* (wait) the mutex alone: this process's tables */
void cl_leave_tables(cl_store *store);
/* The process that a lock word names, for display; 0: none. */
uint32_t cl_owner_pid(const cl_store *store, uint32_t word);
/* Take only the registry's lock, after checking the registry. CL_AGAIN: not within the deadline; `awake`: not without
 * sleeping. */
int cl_lock_registry(cl_store *store, enum cl_op op, int64_t deadline_ns);
int cl_lock_registry_awake(cl_store *store, enum cl_op op, int slept, uint32_t *seen);

/* ---- segment_file.c: files and mappings */
int cl_segment_create(cl_store *store, cl_map *map, uint64_t id, uint32_t class_index, uint64_t block_size,
                      uint32_t nblocks);
int cl_segment_map(cl_store *store, uint64_t id, uint32_t slot, cl_map **map); /* under the mutex */
/* Check the header of a file of `file_size` bytes; CL_CORRUPT unless every field agrees. */
int cl_segment_header_check(const cl_header *header, uint64_t id, uint64_t file_size, const char *file);
int cl_segment_check(cl_store *store, cl_map *map); /* whether the file is still the one that was mapped */
int cl_segment_agrees(cl_store *store, const cl_map *map); /* ... and whether the registry agrees with it */
void cl_segment_destroy(cl_store *store, uint64_t id); /* remove the file; no error if it does not exist */
int cl_map_add(cl_store *store, cl_map *map);
/* remove it from the tables; unmapping takes longer and is done later: */
void cl_map_drop(cl_store *store, cl_map *map);
cl_map *cl_maps_dropped(cl_store *store); /* ... these, under the mutex, */
void cl_maps_discard(cl_map *dropped); /* ... unmap them, without any lock */
void cl_map_discard(cl_map *map); /* one that is in no table */
/* the process has no descriptors left: close those kept here. Takes the mutex. 1: some were closed */
int cl_descriptors_give_back(cl_store *store);
void cl_map_prune(cl_store *store); /* unmap segments that no longer exist */

/* ---- blocks.c: sizes, and free lists. Under the registry's lock. */
int cl_block_checked(cl_store *store, uint32_t number, cl_block **block); /* CL_CORRUPT if it is invalid */
uint32_t cl_class_of(uint64_t nbytes);
uint64_t cl_capacity_for(uint64_t nbytes);
uint64_t cl_class_size(uint32_t class_index); /* bytes of a block of a small class */
uint32_t cl_blocks_for(uint32_t class_index); /* how many blocks of a class share a segment at most */
int cl_unlink_free(cl_store *store, cl_txn *txn, uint32_t number); /* remove it from its free list */
void cl_free_block(cl_store *store, cl_txn *txn, uint32_t number); /* put it on its free list */

/* ---- segment_table.c: a segment's slot, from the first to the last. Under the registry's lock. */
/* Get a slot in `making` or `external`. `last`: it may use the last slot that there is room for. */
int cl_segment_slot(cl_store *store, uint32_t state, uint64_t id, int last, uint32_t *slot);
int cl_segment_retire(cl_store *store, uint32_t slot); /* ready -> going: none of its blocks is free any more */
void cl_segment_forget(cl_store *store, uint32_t slot); /* going, file gone -> free */
/* unlink retired segments; releases the lock meanwhile, unless keep_locked */
void cl_finish_going(cl_store *store, int keep_locked);
/* `steps`: the most work to do, in steps of some 0.3 us; on return what is left of it. 0: there may be more to give
 * back. */
int cl_trim_locked(cl_store *store, uint64_t keep_bytes, int64_t idle_before_ns, uint64_t *freed, uint32_t *steps);
#define CL_TRIM_STEPS 128u

/* ---- name_table.c: entries and chains of names. Under the registry's lock. */
/* The key of a search. POSIX objects are also distinguished by device and inode: a name may have been reused. */
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

/* ---- image.c: the tables read through the registry's file, without its lock */
typedef struct cl_image {
    const cl_store *store;
    int fd; /* -1: the file was removed, and its descriptor closed; only the mapping is left */
    int books;
} cl_image;
int cl_image_books(const cl_store *store); /* a descriptor of the file of books; -1: there is none */
int cl_check_lengths(const cl_control *control); /* check the recorded lengths of its tables */
int cl_image_part(const cl_image *from, uint64_t offset, void *to, uint64_t length);
/* Read a table, part of which may be in the file of books. */
int cl_image_table(const cl_image *from, const cl_control *c, enum cl_table_number table, uint64_t offset, void *to,
                   uint64_t length);
int cl_image_control(const cl_image *from, cl_control *c); /* with valid guards and lengths */

/* ---- snapshot.c: the tables, copied and read without the lock */
enum cl_snapshot_state {
    CL_SNAPSHOT_WHOLE, /* no process changed anything meanwhile */
    CL_SNAPSHOT_MOVED, /* others changed the registry all the time */
    CL_SNAPSHOT_HELD, /* the lock's holder makes no progress: it is stopped or dead */
};
typedef struct cl_snapshot {
    cl_store *view; /* a store over the copy; only its tables, and which owners live, may be read */
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
    int64_t held_ns; /* ... for how long, if that is known; else 0 */
    int live_fd, directory; /* descriptors of the view, as they were set */
} cl_snapshot;
int cl_snapshot_take(cl_store *store, cl_snapshot *out, unsigned flags); /* (wait) */
/* Read a slot of the table of segments as it is now, not from the copy. */
int cl_snapshot_segment_now(const cl_snapshot *snapshot, uint32_t slot, cl_segment *now);
void cl_snapshot_free(cl_snapshot *snapshot);

/* ---- observe.c: looking on without joining */
int cl_observe(cl_store *store, int directory); /* CL_MISSING: there is no registry */
void cl_observe_end(cl_store *store);
/* Open a segment of a snapshot for reading. Returns a descriptor, or a result below 0: CL_STALE if its file is gone. */
int cl_observe_segment(const cl_snapshot *snapshot, uint32_t slot);
/* Read bytes of one of its blocks. They are valid only if cl_observe_still says so afterwards: else CL_STALE. */
int cl_observe_still(const cl_snapshot *snapshot, uint32_t slot, uint32_t index);
int cl_observe_block(const cl_snapshot *snapshot, int fd, uint32_t slot, uint32_t index, uint64_t offset, void *to,
                     uint64_t nbytes);

/* ---- audit.c: is the registry consistent in itself? Under the registry's lock, or of the view of a
 * copy that is whole. */
int cl_audit(cl_store *store);

/* ---- holds.c: why blocks live. Under the registry's lock. */
uint64_t cl_new_nonce(cl_store *store);
int cl_hold_take(cl_store *store, cl_txn *txn, uint32_t kind, uint32_t owner, uint32_t number, uint32_t *index);
/* Record whose hold it is, for a message or family; returns when it ends. */
int64_t cl_hold_describe(cl_store *store, uint32_t index, uint32_t kind);
int cl_hold_drop(cl_store *store, uint32_t index); /* one transaction; frees the block with its last hold */
/* Parts of a transaction: put a hold on the list for its kind; take it off; put it on an owner's list (`nonce` not 0:
 * as a draft). */
int cl_hold_link(cl_store *store, cl_txn *txn, uint32_t index, uint32_t kind);
int cl_hold_unlink(cl_store *store, cl_txn *txn, uint32_t index);
int cl_hold_own(cl_store *store, cl_txn *txn, uint32_t index, uint32_t owner, uint64_t nonce);
int cl_is_message(cl_store *store, uint32_t hold, uint64_t nonce,
                  uint32_t number); /* under the lock; UINT32_MAX: of any block */
/* fill in the description of a block */
void cl_refer(const cl_map *map, uint32_t index, uint64_t generation, cl_block_ref *out);

/* ---- marks.c: inherited holds that are no longer used. Under the registry's lock. */
int cl_mark_set(cl_store *store, uint32_t hold); /* this process no longer uses a hold that it inherited */
int cl_is_marked(cl_store *store, const cl_owner *o, uint32_t hold);
/* clear this process's own mark: the entry is used again */
void cl_mark_clear(cl_store *store, cl_txn *txn, uint32_t hold);
void cl_marks_share(cl_store *store, cl_txn *txn, const cl_owner *parent, cl_owner *child);
void cl_marks_drop(cl_store *store, uint32_t slot);

/* ---- estate.c: what forked children inherit. Under the registry's lock. */
int cl_hold_is_inherited(cl_store *store, uint32_t index, uint32_t number); /* by this process, on this block */
int cl_is_used_by_heirs(cl_store *store, uint32_t hold, uint32_t except, int lineage);
/* release a hold of this process, or an inherited one */
int cl_hold_release(cl_store *store, uint32_t index, uint32_t number);
void cl_owner_end(cl_store *store, uint32_t slot); /* live -> gone */
void cl_look_above(cl_store *store, uint32_t slot); /* sweep the estates of the owners above it again */
int cl_owner_free(cl_store *store, uint32_t slot); /* gone -> free, when nothing names it any more */
/* ---- sweep.c: files that no registry can name */
void cl_sweep(cl_store *store); /* (wait) */

/* ---- operation.c: both locks, and what was put off */
int cl_enter(cl_store *store, enum cl_op op, unsigned flags); /* (wait) both locks */
void cl_unlock_registry(cl_store *store); /* release only the registry's lock; unlinks segments that were given back */
void cl_leave(cl_store *store);
int cl_peek(cl_store *store, cl_control *copy, unsigned flags); /* (wait) the totals */
void cl_leave_keeping_error(cl_store *store); /* ... and keep the error of the operation in cl_last_error() */
/* A release need not wait for a stopped process: it is noted, and done when this process next has the registry's lock.
 * If the process ends before that, the memory is reaped with the rest. Under the mutex. 0: there is no memory to note
 * it in. */
enum cl_later_kind { CL_LATER_HOLD, CL_LATER_MESSAGE, CL_LATER_SEGMENT };
int cl_put_off(cl_store *store, enum cl_later_kind kind, uint32_t index, uint64_t id);
/* (wait) Whether something was put off. Then the lock could not be taken a moment ago, although this waited for one
 * slice, and that is enough. */
int cl_puts_off(cl_store *store, unsigned flags);
void cl_put_off_in_child(cl_store *store); /* after a fork: keep what the child must do, too */

/* ---- reap.c: taking back what dead processes held. cl_scan is under the registry's lock. */
#define CL_SCAN_FORCE 1u /* scan now and completely; releases the registry's lock between its steps */
#define CL_SCAN_KEEP_LOCK 2u /* ... but keep the lock */
#define CL_SCAN_FOR_NAME                                                                                               \
    4u /* ... messages only if it is time, or a process died: a name is free when its holders are dead */
int cl_scan(cl_store *store, unsigned flags, cl_reaped *reaped);
/* (wait) A full scan. The first one of a process also counts what its joining took back. */
int cl_reap(cl_store *store, unsigned flags, cl_reaped *reaped);

/* ---- news.c: what happened, for the binding to tell */
void cl_news_add(cl_store *store, const cl_reaped *before, const cl_reaped *now); /* under the mutex */
void cl_news_of_spilling(cl_store *store); /* under the mutex */
void cl_news_of_death(cl_store *store, uint32_t slot); /* under both locks, before the owner's slot changes */
int cl_news_take(cl_store *store, cl_news *news); /* and forget them; never waits: CL_AGAIN */
/* (wait) The blocks that objects of this process use, and the bytes that were asked for in them. */
int cl_used_here(cl_store *store, unsigned flags, uint64_t *blocks, uint64_t *nbytes);

/* ---- heap.c: blocks, allocated and released */
/* CL_REMOVED: the store is adrift, and the block was not to stay in it (CL_STAY), or cannot. */
int cl_alloc(cl_store *store, uint64_t nbytes, unsigned flags, cl_block_ref *out); /* (wait) */
int cl_release(cl_store *store, uint64_t segment_id, uint32_t segment, uint32_t index, unsigned flags); /* (wait) */
/* (wait) by address: the whole range in a block that this process holds; 1: found, 0: not shared memory of this store,
 * 2: found, but private */
int cl_find(cl_store *store, const void *address, uint64_t nbytes, unsigned flags, cl_block_ref *out);
/* ... in any store that this process has used. 3: in a store inherited by a fork that could not be registered. */
int cl_find_any(cl_store *newest, const void *address, uint64_t nbytes, unsigned flags, cl_block_ref *out,
                cl_store **store); /* (wait) */
/* (wait) from now on cl_find returns 2 for it */
int cl_mark_private(cl_store *store, const cl_block_ref *ref, unsigned flags);
int cl_trim(cl_store *store, uint64_t keep_bytes, unsigned flags, uint64_t *freed); /* (wait) */

/* ---- messages.c: a block on its way to another process */
typedef struct cl_address { /* the address of a block in a handle */
    uint64_t segment_id, generation, nonce;
    uint32_t segment, index, hold;
} cl_address;
int cl_send(cl_store *store, uint32_t segment, uint32_t index, unsigned flags, cl_address *out); /* (wait) */
int cl_draft(cl_store *store, uint32_t segment, uint32_t index, unsigned flags, cl_address *out); /* (wait) */
/* A draft becomes a message's hold: it is sent with an item of a queue in another store. */
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
/* The same, but only if the name leads to this block, which the caller holds; else CL_MISSING. */
int cl_unpublish_of(cl_store *store, const char *name, uint32_t length, uint32_t segment, uint32_t index,
                    unsigned flags); /* (wait) */
/* under the lock: remove the name, and the hold that belongs to it */
int cl_name_withdraw(cl_store *store, cl_name *entry);

/* ---- owners.c: joining */
int cl_join(cl_store *store);
int cl_join_child(cl_store *store, void **life,
                  uint32_t *slot); /* under the lock: for a child that will be forked now */

/* ---- channels.c: holds on the blocks in a queue. A token names a hold by index and nonce. An item's holds are drafts
 * first (they belong to the sender, and end with it). They are given to the queue's own block before the item is
 * published in the queue, and taken by its receiver. */
typedef struct cl_token {
    uint64_t nonce;
    uint32_t hold;
    uint32_t pad;
} cl_token;
int cl_give(cl_store *store, uint32_t channel, uint64_t sequence, const cl_token *tokens, uint32_t n,
            const cl_block_ref *payload, unsigned flags, cl_token *payload_token); /* (wait) */
/* The holds of `tokens` become drafts of this process; the hold of `drop` (or NULL) ends. */
int cl_take(cl_store *store, uint32_t channel, const cl_token *tokens, uint32_t n, const cl_token *drop,
            unsigned flags); /* (wait) */
int cl_take_entered(cl_store *store, uint32_t channel, const cl_token *tokens, uint32_t n,
                    const cl_token *drop); /* the same, under both locks */
/* Drop the holds of a channel that none of its items names. */
int cl_clean(cl_store *store, uint32_t channel, int (*keep)(void *context, uint64_t sequence, uint64_t nonce),
             void *context, unsigned flags); /* (wait) */

/* ---- posix.c: POSIX objects: recorded before they appear under their names, forgotten when unlinked */
int cl_posix_record(cl_store *store, const char *name, uint32_t length, uint64_t device, uint64_t inode,
                    uint64_t nbytes, int family, unsigned flags, uint64_t *id, uint32_t *slot); /* (wait) */
int cl_posix_attach(cl_store *store, const char *name, uint32_t length, uint64_t device, uint64_t inode, unsigned flags,
                    uint64_t *id, uint32_t *slot); /* (wait) */
int cl_posix_forget(cl_store *store, const char *name, uint32_t length, uint64_t device, uint64_t inode,
                    unsigned flags); /* (wait) */

/* ---- fork.c */
int cl_here_begin(cl_store *store); /* map a page that copies of this process find filled with zeros */
int cl_fork_follow(cl_store *store); /* from now on forked children of this process get the store, by pthread_atfork */
void cl_fork_hold(void); /* block forks until the release: a child must not get a store that is half open */
int cl_fork_release(cl_store *store); /* ... and follow this store, if it is not NULL */
void cl_fork_forget(cl_store *store);
/* Wait for the registry's lock as long as a fork by this thread may; the fork itself then does not wait. 1: the lock
 * could not be taken, and cl_waits says which process has it. */
int cl_before_fork(cl_store *store);

/* ---- registry.c: opening, leaving */
struct stat;
/* read and check the header of a registry's file; CL_CORRUPT if it is invalid */
int cl_read_header(int fd, cl_header *header, struct stat *st);
int cl_store_open(cl_store *store, int directory, const cl_identity *identity, const cl_settings *settings);
/* Leave for good: release what this process no longer uses; if no other owner lives, remove the files (returns 1). */
int cl_store_leave(cl_store *store);

#endif
