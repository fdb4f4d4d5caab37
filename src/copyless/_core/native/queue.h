/* A queue of items in shared memory: many producers, many consumers, first in first out.
 *
 *   the queue's own block                         chunks (blocks that the queue holds)
 *   +------+-------+-----+-----+-------+--------+     +--------+------+------+-----+------+
 *   | head | first | put | get | users | leases |     | header | item | item | ... | jump |--> next chunk
 *   +------+-------+-----+-----+-------+--------+     +--------+------+------+-----+------+
 *
 * An item is bytes, in the chunk when short, else in a block of its own; the bytes may begin with tokens of holds, on
 * what else the item names. Producers append under the lock of the `put` end, consumers take under that of the `get`
 * end; the two ends share nothing but a word each.
 *
 * Each end has two sides. The 64-bit word `commit` says how many items have passed, which side counts (bit 0), and
 * whether somebody sleeps until it moves on (bit 1: in the very word that is slept on, so that only the next commit, which
 * wakes, takes the mark away); an operation writes the other side and then stores the word. So every operation, also of many items
 * and with new chunks, happens by one store, and there is nothing half done to repair:
 *
 *   put   lock - [chunk made and given to the queue] - item written - [its holds given to the queue] - COMMIT - wake
 *   get   lock - [block of the item loaded] - [lease written] - COMMIT - [holds taken over or dropped] - unlock
 *
 * What SIGKILL leaves: before its commit, a put leaves bytes beyond the end, which the next put overwrites, and holds
 * that name items or chunks beyond the end; the next producer gets the lock with CL_OWNER_DIED and drops those (cl_clean).
 * After its commit the item is there. A get leaves nothing before its commit; after it, holds of items before the head
 * and of chunks left behind, which the next consumer drops; and the consumer's own count of what it took, which stands
 * in the side too and is written again. A wake that a dead process swallowed costs others CL_SLICE_NS.
 *
 * A lease (of queues that deliver again) is written before the commit and valid once its sequence number lies before
 * the head: what a consumer that dies had taken and not acknowledged is handed out again, from the same bytes. */
#ifndef CL_QUEUE_H
#define CL_QUEUE_H

#include "sync.h"

#define CL_QUEUE_JOINABLE 1u /* flags of the head */
#define CL_QUEUE_REDELIVER 2u
#define CL_CHUNK_BYTES CL_SMALL_MAX
#define CL_SPILLED_CHUNK_BYTES ((uint64_t)4 << 20)
#define CL_INLINE_MAX 8192u /* longer items have a block of their own */
#define CL_USERS 256u
#define CL_LEASES 1024u

typedef _Atomic uint64_t cl_au64;

typedef struct cl_side {
    cl_au64 segment_id, generation; /* of the chunk; segment_id 0: none yet */
    cl_au64 block; /* its number */
    cl_au64 offset; /* of the next item in it */
    cl_au64 serial; /* of the chunk, from 1 */
    cl_au64 bytes; /* that have passed, of items' contents */
    cl_au64 user; /* get: whose count this changes, index + 1; CL_DRAINED: `dropped` */
    cl_au64 taken; /* ... to what */
} cl_side;
#define CL_DRAINED UINT64_MAX

typedef struct cl_end {
    cl_au64 commit; /* | items that have passed (62) | the other end's users sleep on it | which side counts | */
    uint32_t pad[14];
    cl_au32 lock;
    uint32_t pad2[15];
    cl_side side[2];
} cl_end;

enum { CL_ROLE_PUTS = 1, CL_ROLE_GETS = 2, CL_ROLE_CLOSED = 4 };
typedef struct cl_user {
    cl_au32 owner;
    cl_au32 role;
    cl_au64 taken, done; /* items, of joinable queues */
} cl_user;

typedef struct cl_lease {
    cl_au32 owner; /* 0: free */
    cl_au32 again; /* times it was handed out again */
    cl_au64 sequence;
    cl_au64 segment_id, generation, block, nbytes;
    cl_au64 nonce; /* of the block's hold */
    cl_au32 hold;
    cl_au32 ntokens; /* that the bytes begin with */
} cl_lease;
_Static_assert(sizeof(cl_lease) == 64, "lease");

enum { CL_QUEUE_OPEN, CL_QUEUE_SHUT, CL_QUEUE_SHUT_NOW };
typedef struct cl_queue_head {
    cl_head head; /* number: most items, 0 unlimited; room: leases; spare[0]: most bytes, 0 unlimited */
    cl_side first; /* where the first chunk is */
    cl_au32 state;
    cl_au32 finished; /* a bell: rung when everything put has been acknowledged */
    uint32_t spare[2];
    cl_au64 dropped; /* items counted as acknowledged, because they died with their consumers or were shut away */
    cl_au64 spilled; /* items that went by a file on disk */
    uint32_t pad[8];
    cl_end put, get;
    cl_user users[CL_USERS];
    cl_lease leases[];
} cl_queue_head;

typedef struct cl_chunk {
    uint64_t serial;
    cl_token hold;
    uint64_t pad[5];
} cl_chunk;

/* ---- one process's use of a queue; any number of its threads may share it */
typedef struct cl_cached { /* the chunk that an end of ours stood on last */
    cl_block_ref ref;
    int held;
} cl_cached;

typedef struct cl_queue {
    cl_store *store;
    cl_queue_head *head;
    uint32_t number; /* of the head's block */
    cl_au32 self; /* lock word of the process that filled in what follows */
    cl_au32 user; /* index + 1 in users; 0: none yet */
    cl_spin spin_lock, spin_put, spin_get;
    cl_au64 known_put; /* as it was seen last: it only grows */
    uint64_t known_got; /* likewise, under the put lock */
    cl_cached put_chunk; /* under the put lock */
    cl_cached get_chunk, left; /* under the get lock; left: behind, to be dropped after the commit */
    /* what a get has under way, under the get lock */
    uint64_t got, available, bytes, offset;
    uint64_t serial;
    int64_t looked_ns; /* for leases of the dead */
    int moved, pass_on;
    uint32_t lease; /* index + 1 */
    cl_token drop; /* the item's block's hold */
    const cl_token *tokens;
    uint32_t ntokens;
} cl_queue;

typedef struct cl_item {
    const void *body; /* the bytes, tokens first; or NULL: they lie in `payload` */
    uint64_t nbytes;
    const cl_token *tokens; /* drafted holds, to be given to the queue */
    uint32_t ntokens;
    const cl_block_ref *payload;
} cl_item;

/* What was taken. */
typedef struct cl_got {
    const uint8_t *body; /* in the chunk: to be copied before the commit; NULL: in `payload` */
    uint64_t nbytes;
    uint32_t ntokens;
    uint64_t sequence;
    cl_block_ref payload; /* loaded: the caller's reference */
} cl_got;

int cl_queue_attach(cl_queue *q, cl_store *store, cl_queue_head *head, uint64_t capacity, uint32_t number);
void cl_queue_detach(cl_queue *q); /* gives up the chunks it stands on */
/* *done of n items, more when called again. CL_TIMEOUT: full; CL_CLOSED: shut. Without CL_MAY_WAIT it gives the way
 * (CL_AGAIN) when anybody is in it, and when it needs the registry. */
int cl_queue_put(cl_queue *q, const cl_item *items, uint32_t n, uint32_t *done, int64_t deadline_ns, unsigned flags);
/* Begin to take. CL_OK: under the lock, end with commit or abort. CL_TIMEOUT: empty; CL_CLOSED: empty and shut. */
int cl_queue_begin(cl_queue *q, int64_t deadline_ns, unsigned flags);
/* Look on, without sleeping, for so long at most: whether there may be something to take. */
int cl_queue_poll(cl_queue *q, int64_t budget_ns);
/* The next item of this take. CL_MISSING: no further one in this take. An item with a block or tokens is the last. */
int cl_queue_next(cl_queue *q, cl_got *out, unsigned flags);
int cl_queue_needs_registry(const cl_queue *q); /* the commit will: let the GIL go */
void cl_queue_commit(cl_queue *q);
void cl_queue_abort(cl_queue *q);

uint64_t cl_queue_size(const cl_queue_head *h);
uint64_t cl_queue_bytes(const cl_queue_head *h);
uint64_t cl_queue_unfinished(cl_queue *q);
/* Acknowledge one item; of a queue that delivers again, that of `sequence`. CL_MISSING: nothing to acknowledge. */
int cl_queue_done(cl_queue *q, uint64_t sequence);
/* Wait until all is acknowledged. CL_OWNER_DIED: *lost items died with their consumers, which now count as done. */
int cl_queue_join(cl_queue *q, int64_t deadline_ns, uint64_t *lost);
int cl_queue_shut(cl_queue *q, int now); /* CL_AGAIN: call again */
void cl_queue_role(cl_queue *q, uint32_t role, int on);
void cl_queue_use(cl_queue *q, uint32_t role); /* this process puts or gets, and has not closed it */
/* Whether nobody is left who could put: some other process put, all that did have ended or closed, and whoever still
 * has the queue only takes from it. 1: all of them said so (CL_ROLE_CLOSED), 2: somebody died. */
int cl_queue_deserted(cl_queue *q);

#endif
