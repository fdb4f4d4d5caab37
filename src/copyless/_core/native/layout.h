/* The only declaration of the data in shared memory. All other code accesses it through these structs.
 *
 * A user's directory holds one registry and any number of data segments:
 *
 *   registry.4     (sparse; pages are reserved before they are first used)
 *   +--------+---------+--------+----------+---------+-------+-----------------------------+
 *   | header | control | owners | buckets  | names   | holds | segments, each with the     |
 *   | 4 KiB  | 8 KiB   |        | of names |         |       | records of its up to 64     |
 *   |        |         |        |          |         |       | blocks                      |
 *   +--------+---------+--------+----------+---------+-------+-----------------------------+
 *
 *   seg.4.<id>     (fully reserved when created)
 *   +--------+---------+---------+-- ... --+
 *   | header | block 0 | block 1 |         |   blocks of one size; a large block is alone in its segment
 *   | 4 KiB  |         |         |         |
 *   +--------+---------+---------+-- ... --+
 *
 *   live.4.<id>    empty: byte n is locked (OFD) by owner n while it lives; all bytes, to the end of all files, by the
 *                  one process that makes or removes the registry
 *
 * Data segments hold no bookkeeping except their constant header: user code that writes past the end of its array
 * cannot damage the registry through them. Small objects (locks, queues and their chunks) have segments of their own
 * size classes, which contain no arrays; a ring, whose frames are bytes of users, is alone in its segment. So no array
 * ends where an object begins. (A value with its lock in one block is the exception: it is among arrays, behind a
 * constant head.)
 *
 * Every mutable field of the registry is protected by its lock and changes only in a transaction of journal.h, so a
 * reader that holds the lock never sees half a change, whichever process was killed before. Exceptions, each a single
 * word: the lock itself, `names_seq` (a futex), an owner's `op`, `bell` and `heard`, and the words that only their
 * owner writes before others may read them. A process that only reads needs no lock: a copy made while `entries` did
 * not change and the lock was free is as good (snapshot.c). */
#ifndef CL_LAYOUT_H
#define CL_LAYOUT_H

#include "base.h"

/* The layout's number is part of every file's name: versions of copyless with different layouts use one directory side
 * by side, and none of them can name, map or remove a file of another. */
#define CL_LAYOUT 4
#define CL_TEXT_OF(x) #x
#define CL_TEXT(x) CL_TEXT_OF(x)
#define CL_LAYOUT_VERSION ((uint32_t)CL_LAYOUT)
#define CL_LAYOUT_TEXT CL_TEXT(CL_LAYOUT)
#define CL_REGISTRY_FILE "registry." CL_LAYOUT_TEXT
#define CL_SEGMENT_PREFIX "seg." CL_LAYOUT_TEXT "."
#define CL_LIVE_PREFIX "live." CL_LAYOUT_TEXT "."
#define CL_BOOKS_PREFIX "books." CL_LAYOUT_TEXT "."
#define CL_NEW_PREFIX "new." CL_LAYOUT_TEXT "."
#define CL_FILE_NAME 32 /* room for the name of any file of copyless */
_Static_assert(sizeof(CL_BOOKS_PREFIX "0123456789abcdef") <= CL_FILE_NAME, "names fit");

#define CL_FORMAT 1u /* of stored items: the plain codec, the parts of an item, names in pickles, messages of ranks */
#define CL_MAGIC 0x7373656c79706f63u /* "copyless" read as a little-endian word */
#define CL_PAGE 4096u
#define CL_KIND_REGISTRY 1u
#define CL_KIND_DATA 2u

#define CL_MAX_OWNERS 4096u /* slot + 1 fits the 12 bits of a lock word; slot 4095 is never used */
#define CL_CARETAKER 4094u /* a slot without an entry: for a joining process that reaps others (owners.c) */
#define CL_INCARNATION 0x7ffffu /* the bits of an incarnation that a lock word has */
#define CL_MAX_SEGMENTS 32768u
#define CL_MAX_HOLDS 1048576u
#define CL_MAX_NAMES 8192u
#define CL_BUCKETS 1024u
#define CL_BLOCKS 64u /* the most blocks of one segment */
#define CL_NAME_MAX 255u

#define CL_SMALL_MAX 65536u /* larger blocks have a segment of their own */
#define CL_CLASSES 40u /* 19 small sizes, the large class, files on disk, and the small sizes again, for objects */
#define CL_LARGE 19u
#define CL_SPILLED 20u
#define CL_OBJECTS 21u

typedef struct cl_header {
    uint64_t magic;
    uint32_t layout;
    uint32_t kind;
    uint64_t id; /* random, never reused */
    uint64_t file_size;
    uint64_t host; /* hash of the machine's identity */
    uint64_t boot; /* hash of this boot's identity */
    uint64_t created_ns; /* wall clock, for display */
    uint64_t creator_start;
    uint32_t creator_pid;
    uint32_t class_index; /* data */
    uint64_t live_device; /* registry: which file holds the liveness locks */
    uint64_t live_inode;
    uint64_t block_size; /* data */
    uint32_t nblocks; /* data */
    uint32_t format; /* registry: CL_FORMAT of the process that made it */
    uint64_t checksum; /* of all before it */
} cl_header;
_Static_assert(sizeof(cl_header) == 112, "constant header");

/* Where items go when shared memory is full. In the registry's first page at CL_OFF_SPILL. The process that made the
 * registry decides it; it is constant from then on. */
#define CL_SPILL_PATH 320u
typedef struct cl_spill {
    char path[CL_SPILL_PATH]; /* the directory, made when first needed; empty: none */
    uint64_t device,
        inode; /* of the directory in which it is made: a process that sees another one there cannot use it */
    uint64_t checksum; /* of all before it */
} cl_spill;
#define CL_OFF_SPILL 1024u

/* The file `home.4` in a spill directory: which registry it belongs to. Every process that uses the directory has it
 * read-locked. */
typedef struct cl_spill_mark {
    uint64_t magic;
    uint32_t layout;
    uint32_t pad;
    uint64_t registry, boot;
    uint64_t device, inode; /* of the storage directory */
    uint64_t checksum;
} cl_spill_mark;
/* The tables that may continue in a file beside the spilled items: books.c. */
enum cl_table_number { CL_TABLE_NAMES, CL_TABLE_HOLDS, CL_TABLE_SEGMENTS, CL_TABLES };

#define CL_JOURNAL_MAX 48u
typedef struct cl_write {
    uint64_t offset; /* in the registry; bit 0 set: a 64-bit field, clear: 32-bit */
    uint64_t value;
} cl_write;
typedef struct cl_journal {
    cl_au32 committed; /* number of writes to apply; 0: none */
    uint32_t pad;
    cl_write writes[CL_JOURNAL_MAX];
} cl_journal;

#define CL_GUARD 0xc0bb1e5500d5eedfu
typedef struct cl_control {
    uint64_t guard; /* CL_GUARD here and at the end: stray writes over the control area are detected at once */
    cl_au32 lock;
    cl_au32 names_seq; /* a futex: changes with every published name */
    uint32_t removed; /* 1: the last owner has removed the files; open again */
    uint32_t owners_high; /* entries below have pages reserved; likewise for the next three */
    uint32_t segments_high;
    uint32_t holds_high;
    uint32_t names_high;
    uint32_t segments_free; /* heads of free lists, index + 1 */
    uint32_t holds_free;
    uint32_t names_free;
    uint32_t messages; /* holds of kind message or family: whether a scan must check holds */
    uint32_t persistent; /* holds of kind persist */
    uint64_t total_bytes; /* of data segments */
    uint64_t warm_bytes; /* of whole free segments among them */
    uint64_t scanned_ns; /* monotonic: last search for dead owners; a hint */
    uint64_t scan_cost_ns;
    uint64_t deaths; /* owners found dead */
    uint64_t deaths_in_op; /* ... inside a core operation */
    uint64_t recoveries; /* times the lock came from a dead holder */
    uint64_t heals; /* times its word named no owner, and nothing was damaged */
    uint32_t sweeping; /* there are owners whose holds a scan must check */
    uint32_t marks_high; /* as above, of pages of marks */
    uint32_t marks_free;
    cl_au32 entries; /* grows each time the lock is taken, before anything else is written: snapshot.c */
    uint64_t entered_ns; /* monotonic, from the coarse clock: when the lock was last taken; for display */
    uint32_t first[CL_CLASSES]; /* free blocks of each class, last freed first; block number + 1 */
    uint32_t last[CL_CLASSES];
    uint64_t beside[CL_TABLES]; /* offset from which a table is in the file of books; 0: none */
    uint32_t paged[CL_TABLES]; /* entries of each table, from the first, that surely have pages; a hint */
    cl_au32 books; /* bits: which `beside` are valid; only ever set */
    cl_journal journal;
    uint64_t guard_end;
} cl_control;
_Static_assert(sizeof(cl_control) <= 2 * CL_PAGE, "control area");
/* Other layouts read these two, to learn whether a registry is in use. They stay in the same place in every layout. */
_Static_assert(offsetof(cl_control, guard) == 0 && offsetof(cl_control, removed) == 16, "kept from layout 2 on");
_Static_assert(offsetof(cl_control, persistent) == 52, "kept from layout 2 on");

/* Owner: a process that uses the registry.
 *   free --(byte lock won, transaction)--> live --(ended, or leaves)--> gone --(nothing names it any more)--> free
 * live and gone are believed only as far as byte `slot` of the liveness file goes: liveness.c. */
enum { CL_OWNER_FREE, CL_OWNER_LIVE, CL_OWNER_GONE };
/* What a scan must still check of an owner that is gone; of a living owner only its estate, or nothing. */
enum { CL_STAGE_SEGMENTS, CL_STAGE_HOLDS, CL_STAGE_ESTATE, CL_STAGE_DONE };

#define CL_MARK_BITS 32768u /* holds per page of marks */
#define CL_MARK_WORDS (CL_MARK_BITS / 64u)
#define CL_MARK_PAGES (CL_MAX_HOLDS / CL_MARK_BITS)
#define CL_MAX_MARKS 8192u

typedef struct cl_owner {
    uint32_t state;
    uint32_t incarnation; /* of the process that has the slot, or will have it next; grows when the slot is freed */
    cl_au32 op; /* enum cl_op: its current operation; read after its death */
    uint32_t pid; /* for display; 0: a forked child that has not set it yet */
    uint64_t start; /* clock ticks after boot, of /proc; for display */
    uint64_t pid_namespace;
    uint64_t family;
    uint64_t parent_start;
    uint32_t parent_pid;
    uint32_t leaving; /* 1: it is exiting, and has arrays that are released only when the process ends */
    uint64_t since_ns; /* wall clock */
    char command[32];
    uint32_t epoch; /* grows with each fork; only its own process writes it */
    uint32_t first_hold; /* lists of holds, index + 1: its own, */
    uint32_t first_estate; /* ... and those that it dropped while a forked child used them */
    uint32_t heir_of; /* slot + 1 of the owner whose forked child this is: it inherits */
    uint32_t heir_epoch; /* ... what that owner held in this epoch and before */
    uint32_t children; /* owners that are heirs of this one */
    uint32_t unregistered; /* last epoch with a forked child that could not be registered, or 0 */
    uint32_t stage;
    uint32_t sweep; /* the next hold to check, index + 1 */
    uint32_t look; /* gone: the next segment slot to check for unfinished work */
    cl_au32 bell; /* rung by others when something that this process waits for may be ready: bells.h. Never reset */
    cl_au32 heard; /* | the ring for which this process's descriptors are written | 1 |; 0: it has none */
    uint32_t spare[4];
    uint32_t marks[CL_MARK_PAGES]; /* pages of marks, index + 1: inherited holds that it no longer uses */
} cl_owner;
_Static_assert(sizeof(cl_owner) == 288, "owner slot");

typedef struct cl_mark_page {
    uint32_t users; /* number of owners that name it */
    uint32_t next; /* free list */
} cl_mark_page;

enum cl_op {
    CL_OP_NONE,
    CL_OP_JOIN,
    CL_OP_ALLOC,
    CL_OP_FREE,
    CL_OP_LOAD,
    CL_OP_SEND,
    CL_OP_NAME,
    CL_OP_REAP,
    CL_OP_FORK,
    CL_OP_LIST
};

/* Hold: a reason why a block lives. A block without holds is freed in the transaction that removes its last one. A
 * channel's hold keeps a block of an item in a queue; it belongs to the queue's own block and ends with it. An estate's
 * hold was an owner's that dropped it, and lives while a forked child of that owner uses it. */
enum { CL_HOLD_FREE, CL_HOLD_OWNER, CL_HOLD_MESSAGE, CL_HOLD_FAMILY, CL_HOLD_PERSIST, CL_HOLD_CHANNEL, CL_HOLD_ESTATE };
#define CL_NEVER UINT32_MAX /* `from` of a hold that no forked child inherits: it is on its way to or from a channel */
typedef struct cl_hold {
    uint32_t kind;
    uint32_t owner; /* slot + 1 of the owner, or of the sender of the message */
    uint32_t block; /* block number + 1 */
    uint32_t next; /* free list; the owner's, its estate's or the channel's list; index + 1 */
    uint32_t prev; /* the same lists, except the free list */
    uint32_t channel; /* channel: block number + 1 of the queue */
    uint64_t nonce; /* message, channel, and an owner's on its way to or from one: must match to be taken over */
    union {
        int64_t deadline_ns; /* message: monotonic */
        uint64_t sequence; /* channel: the sequence number of the item */
        struct {
            uint32_t from; /* owner, estate: the owner's epoch in which it was taken */
            uint32_t until; /* estate: the last epoch in which the owner had it */
        };
    };
    uint64_t family;
    uint64_t parent_start; /* message, family: the sender's parent, which may not use copyless yet */
    uint32_t parent_pid;
    uint32_t pid_namespace; /* inode number of the namespace */
} cl_hold;
_Static_assert(sizeof(cl_hold) == 64, "hold");

/* Block number = segment slot * 64 + index in the segment.
 *   none --(segment made)--> free --(alloc)--> used --(last hold gone: generation + 1)--> free --(segment given back)--> none */
enum { CL_BLOCK_NONE, CL_BLOCK_FREE, CL_BLOCK_USED };
typedef struct cl_block {
    uint64_t generation;
    uint64_t nbytes; /* asked for */
    uint32_t state;
    uint32_t holds;
    uint32_t next, prev; /* free list; block number + 1 */
    uint32_t name; /* name entry + 1 */
    uint32_t creator_pid;
    uint64_t created_ns;
    uint32_t children; /* holds that belong to this block: then it is a channel */
    uint32_t first_child; /* ... index + 1 of the first of them */
} cl_block;
_Static_assert(sizeof(cl_block) == 56, "block");

/* Segment:
 *   free --(slot taken)--> making --(file whole, transaction)--> ready --(given back)--> going --(file gone)--> free
 * making and going name the owner at work: when it dies, the reaper unlinks the file and frees the slot.
 * An `external` segment is a POSIX object at the standard library's place; it has one block and no file of ours. */
enum { CL_SEGMENT_FREE, CL_SEGMENT_MAKING, CL_SEGMENT_READY, CL_SEGMENT_GOING, CL_SEGMENT_EXTERNAL };
typedef struct cl_segment {
    uint64_t id;
    uint64_t file_size;
    uint64_t block_size;
    uint64_t inode; /* of the file: if the file is replaced by another, that is detected */
    int64_t idle_since_ns; /* monotonic; when its last block was freed */
    uint32_t state;
    uint32_t owner; /* slot + 1, while making or going */
    uint32_t nblocks;
    uint32_t used; /* blocks in use */
    uint32_t class_index;
    uint32_t next; /* free list */
    cl_block blocks[CL_BLOCKS];
} cl_segment;
_Static_assert(sizeof(cl_segment) == 64 + 56 * CL_BLOCKS, "segment");

/* An object (a lock, a queue, a ring) has a block of its own and begins with this head. The head is constant after it
 * is made, except for `renamed` and `bells`. */
enum cl_kind {
    CL_KIND_LOCK = 1,
    CL_KIND_RLOCK,
    CL_KIND_RWLOCK,
    CL_KIND_SEMAPHORE,
    CL_KIND_ROBUST_SEMAPHORE,
    CL_KIND_CONDITION,
    CL_KIND_EVENT,
    CL_KIND_BARRIER,
    CL_KIND_QUEUE,
    CL_KIND_RING,
};

#define CL_OBJECT_MAGIC 0x636c6f62u
typedef struct cl_head {
    uint32_t magic;
    uint32_t kind;
    uint32_t number; /* semaphore: highest value, or 0; barrier: parties; condition, barrier: */
    uint32_t room; /* number of entries that follow */
    uint32_t flags; /* flags of the object's class */
    cl_au32 renamed; /* not constant: its name was taken away, so processes look the name up again */
    uint64_t spare[4];
    cl_au64 bells; /* which processes must be told when it is ready: bells.h */
} cl_head;
_Static_assert(sizeof(cl_head) == 64, "one cache line");

/* A name of an array (kind array), or of a POSIX object that copyless created (kind posix). The description of a named
 * array (its dtype and shape) is in the block itself, after the data. */
enum { CL_NAME_FREE, CL_NAME_ARRAY, CL_NAME_POSIX };
typedef struct cl_name {
    uint32_t kind;
    uint32_t next; /* bucket chain or free list; index + 1 */
    uint32_t block; /* block number + 1 */
    uint32_t length;
    uint64_t hash;
    uint64_t generation;
    uint64_t spec_offset; /* array: offset of the description in the block */
    uint64_t spec_length;
    uint64_t device, inode; /* posix */
    uint32_t hold; /* index + 1 of the persist or family hold that belongs to the name */
    uint32_t pad;
    char name[CL_NAME_MAX + 1];
    uint64_t spare[23];
} cl_name;
_Static_assert(sizeof(cl_name) == 512, "name");

#define CL_OFF_CONTROL ((uint64_t)CL_PAGE)
#define CL_OFF_OWNERS (CL_OFF_CONTROL + 2 * CL_PAGE)
#define CL_OFF_BUCKETS (CL_OFF_OWNERS + (uint64_t)CL_MAX_OWNERS * sizeof(cl_owner))
#define CL_OFF_NAMES (CL_OFF_BUCKETS + CL_BUCKETS * 4u)
#define CL_OFF_HOLDS (CL_OFF_NAMES + (uint64_t)CL_MAX_NAMES * sizeof(cl_name))
#define CL_OFF_SEGMENTS (CL_OFF_HOLDS + (uint64_t)CL_MAX_HOLDS * sizeof(cl_hold))
#define CL_OFF_MARKS (CL_OFF_SEGMENTS + (uint64_t)CL_MAX_SEGMENTS * sizeof(cl_segment))
#define CL_OFF_MARK_BITS (CL_OFF_MARKS + (uint64_t)CL_MAX_MARKS * sizeof(cl_mark_page))
#define CL_REGISTRY_SIZE (CL_OFF_MARK_BITS + (uint64_t)CL_MAX_MARKS * CL_PAGE)
_Static_assert(CL_OFF_BUCKETS % CL_PAGE == 0 && CL_OFF_NAMES % CL_PAGE == 0 && CL_OFF_SEGMENTS % CL_PAGE == 0 &&
                   CL_OFF_MARKS % CL_PAGE == 0 && CL_OFF_MARK_BITS % CL_PAGE == 0,
               "tables begin on pages");

#endif
