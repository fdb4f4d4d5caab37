/* A queue of items in shared memory: many producers, many consumers, first in first out.
 *
 *   the queue's own block                         chunks (blocks that the queue holds)
 *   +------+-------+-----+-----+-------+--------+     +--------+------+------+-----+------+
 *   | head | first | put | get | users | leases |     | header | item | item | ... | jump |--> next chunk
 *   +------+-------+-----+-----+-------+--------+     +--------+------+------+-----+------+
 *
 * An item is bytes: in the chunk if it is short, else in a block of its own. The bytes may begin with tokens of the
 * holds on other blocks that the item names. Producers append under the lock of the `put` end, consumers take under the
 * lock of the `get` end; the two ends share only one word each.
 *
 * Each end has two sides. The 64-bit word `commit` says how many items have passed, which side is valid (bit 0), and
 * whether a thread sleeps until the word changes (bit 1). The bit is in the word that the thread sleeps on, so that
 * only the next commit, which wakes the thread, clears it. An operation writes the other side and then stores the word.
 * So every operation, also of many items and with new chunks, happens by one store, and nothing incomplete has to be
 * repaired:
 *
 *   put   lock - [chunk made and given to the queue] - item written - [its holds given to the queue] - COMMIT - wake
 *   get   lock - [block of the item loaded] - [lease written] - COMMIT - [holds taken over or dropped] - unlock
 *
 * What SIGKILL leaves: before its commit, a put leaves bytes beyond the end, which the next put overwrites, and holds
 * that name items or chunks beyond the end; the next producer gets the lock with CL_OWNER_DIED and drops those
 * (cl_clean). After its commit the item is in the queue. A get leaves nothing before its commit; after it, holds of
 * items before the head and of chunks left behind, which the next consumer drops; and the consumer's own count of the
 * items that it took, which is also in the side and is written again. If a process dies instead of waking others, they
 * wait for CL_SLICE_NS.
 *
 * A lease (of queues that redeliver) is written before the commit and becomes valid when its sequence number is before
 * the head. If a consumer dies, the items that it had taken and not acknowledged are delivered again, from the same
 * bytes. */
#ifndef CL_QUEUE_LAYOUT_H
#define CL_QUEUE_LAYOUT_H

#include "sync.h"

#define CL_QUEUE_JOINABLE 1u /* flags of the head */
#define CL_QUEUE_REDELIVER 2u
#define CL_CHUNK_BYTES CL_SMALL_MAX
#define CL_SPILLED_CHUNK_BYTES ((uint64_t)4 << 20)
#define CL_INLINE_MAX 8192u /* longer items get a block of their own */
#define CL_USERS 256u
#define CL_LEASES 1024u

typedef struct cl_side {
    cl_au64 segment_id, generation; /* of the chunk; segment_id 0: none yet */
    cl_au64 block; /* its number */
    cl_au64 offset; /* of the next item in it */
    cl_au64 serial; /* of the chunk, from 1 */
    cl_au64 bytes; /* bytes of items' contents that have passed */
    cl_au64 user; /* get: the user whose count this changes, index + 1; CL_DRAINED: `dropped` */
    cl_au64 taken; /* ... and its new count */
} cl_side;
#define CL_DRAINED UINT64_MAX

typedef struct cl_end {
    cl_au64 commit; /* | items that have passed (62) | users of the other end sleep on it | valid side | */
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
    cl_au32 owner; /* 0: free; CL_LOCK_LEFT: given back; CL_SET_ASIDE: see below */
    cl_au32 again; /* times it was delivered again */
    cl_au64 sequence;
    cl_au64 segment_id, generation, block, nbytes;
    cl_au64 nonce; /* of the block's hold */
    cl_au32 hold;
    cl_au32 ntokens; /* number of tokens at the start of the bytes */
} cl_lease;
_Static_assert(sizeof(cl_lease) == 64, "lease");
#define CL_SET_ASIDE                                                                                                   \
    UINT32_MAX /* owner of a lease: delivered as often as allowed, a dead letter until it is discarded */

enum { CL_QUEUE_OPEN, CL_QUEUE_SHUT, CL_QUEUE_SHUT_NOW };
typedef struct cl_queue_head {
    cl_head
        head; /* number: most items, 0 unlimited; room: leases; spare[0]: most bytes, 0 unlimited; spare[1]: most deliveries, likewise */
    cl_side first; /* the position of the first chunk */
    cl_au32 state;
    cl_au32 finished; /* a bell: rung when all items have been acknowledged */
    uint32_t spare[2];
    cl_au64 dropped; /* items counted as acknowledged: their consumers died, or a shutdown dropped them */
    cl_au64 spilled; /* items that were sent in a file on disk */
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

/* In a chunk: a record and its body, or a record of length 0 and the place of the next chunk (a jump). */
typedef struct cl_record {
    uint32_t length; /* with this header, a multiple of 8; 0: a jump to the next chunk */
    uint32_t ntokens;
    uint64_t nbytes; /* of the body */
} cl_record;

typedef struct cl_elsewhere { /* follows a jump, or a record whose body is in a block */
    uint64_t segment_id, generation, block;
    cl_token hold;
} cl_elsewhere;

#define CL_ELSEWHERE 0x80000000u /* in ntokens: the body is in a block */
#define CL_JUMP_BYTES ((uint64_t)(sizeof(cl_record) + sizeof(cl_elsewhere)))
#define CL_CHUNK_BIT ((uint64_t)1 << 63) /* in a hold's sequence: of a chunk, not of an item */
#define CL_COMMIT_SLEEP ((uint64_t)2)
#define CL_COMMIT_SHIFT 2

#endif
