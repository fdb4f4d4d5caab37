/* A ring of frames in shared memory: several writers, many readers, each frame in a slot of fixed size.
 *
 *   +------+---------+---------+-------+-------+------+--------+--------+-- ... --+
 *   | head | members | readers | slots | by seq | spec | frame  | frame  |         |
 *   +------+---------+---------+-------+-------+------+--------+--------+-- ... --+
 *
 * A slot:
 *   free --(claim: a writer's)--> writing --(publish: gets the next sequence number)--> published --(claim)--> writing
 *            writing --(writer gives up, or dies)--> free
 *            published, older than as many frames as there are slots, last loan returned --> free
 *
 * A published slot is claimed again, the oldest first, when nobody has it on loan and no reader that blocks still needs
 * it. A loan is a bit of the slot, one for each member (a process's use of the ring); a member counts its own loans.
 *
 * Everything is changed under one robust lock, for some dozen instructions; pixels move outside it. What SIGKILL leaves is
 * repaired from the slots alone: whoever gets the lock with CL_OWNER_DIED, and a writer that finds no slot, frees what dead
 * writers were writing, returns the loans of dead members, forgets dead readers, and computes all that can be computed
 * (the newest frame, how many are free, the index by sequence number). Publishing writes number and time first, the
 * state last: a frame is there whole or not at all, and readers see only slots in state published. */
#ifndef CL_RING_H
#define CL_RING_H

#include "sync.h"

#define CL_RING_MEMBERS 256u
#define CL_RING_READERS 256u
#define CL_RING_SLOTS_MAX 65536u
#define CL_RING_MAY_BLOCK 1u /* flags of the head */
#define CL_RING_SEQ_MAX                                                                                                \
    ((uint64_t)1 << 62) /* no camera is that quick: what is beyond is damage, and sums stay in 64 bits */

enum { CL_SLOT_FREE, CL_SLOT_WRITING, CL_SLOT_PUBLISHED };
typedef struct cl_slot {
    uint32_t state;
    uint32_t writer; /* member + 1, while writing */
    uint64_t seq; /* from 1 */
    int64_t time_ns; /* monotonic, when it was published */
    uint64_t loans[CL_RING_MEMBERS / 64];
    uint64_t pad;
} cl_slot;
_Static_assert(sizeof(cl_slot) == 64, "slot");

enum { CL_READER_DROPS, CL_READER_BLOCKS };
typedef struct cl_reader {
    uint32_t owner; /* lock word of a process; 0: free */
    uint32_t policy;
    uint64_t cursor; /* the last frame it had */
    uint64_t taken, dropped;
    uint32_t demoted; /* it blocked for too long: now it drops */
    uint32_t pad;
} cl_reader;

enum { CL_RING_OPEN, CL_RING_SHUT };
typedef struct cl_ring_head {
    cl_head
        head; /* number: slots; flags; spare: bytes a slot, where slots begin, bytes of the spec, block timeout in ns */
    cl_au32 lock;
    cl_au32 state;
    cl_au32 published; /* a bell: rung for every frame */
    cl_au32 changed; /* a bell: rung when a writer that found no slot should look again */
    uint32_t nfree;
    uint32_t newest; /* slot + 1 of the newest frame */
    uint64_t last; /* the highest sequence number given */
    uint64_t waits; /* times a writer found no slot */
    uint32_t members[CL_RING_MEMBERS]; /* lock words of processes */
    cl_reader readers[CL_RING_READERS];
    cl_slot slots[];
} cl_ring_head;

/* One process's use of a ring: a member. Any number of its threads may share it. What describes the ring was copied and
 * checked when the process attached; what is read of the ring later (a slot, a sequence number, a cursor) is bounded where it is
 * used, and what is out of bounds is CL_CORRUPT. */
typedef struct cl_ring {
    cl_store *store;
    cl_ring_head *head;
    uint32_t *by_seq; /* slot of sequence number s at s % slots */
    uint8_t *data;
    uint8_t *spec;
    uint32_t slots;
    uint64_t stride;
    uint64_t spec_bytes;
    uint64_t flags;
    int64_t block_timeout_ns; /* 0: none */
    uint32_t self; /* lock word of the process that is the member */
    uint32_t member; /* + 1; 0: not joined */
    uint32_t *loans; /* ours, by slot */
    cl_au32 *owed; /* by slot: what of ours is to be given back when we next enter */
    cl_au64 unsubscribed[CL_RING_READERS / 64]; /* likewise */
    cl_au32 owing; /* there is something of that kind */
    cl_spin spin_lock, spin_read, spin_write;
} cl_ring;

typedef struct cl_frame {
    uint32_t slot;
    uint64_t seq;
    int64_t time_ns;
    uint64_t missed;
} cl_frame;

uint64_t cl_ring_bytes(uint32_t slots, uint64_t stride, uint64_t spec);
void cl_ring_begin(cl_ring_head *head, uint32_t slots, uint64_t stride, uint64_t spec); /* of a block of zeros */
uint8_t *cl_ring_spec(cl_ring_head *head, uint32_t slots);
int cl_ring_attach(cl_ring *r, cl_store *store, cl_ring_head *head, uint64_t capacity, uint32_t number);
void cl_ring_detach(cl_ring *r);

/* As everywhere: CL_AGAIN: with flags 0, somebody is in it or there is nothing; with CL_MAY_WAIT, serve signals and call
 * again. CL_TIMEOUT. CL_CLOSED: shut (readers: and nothing newer). With a deadline of 0 nobody is waited for, not even one who is
 * stopped in the lock: CL_TIMEOUT. What gives something back never waits for longer than a slice: it is noted and done later. */
int cl_ring_claim(cl_ring *r, int64_t deadline_ns, unsigned flags, int64_t *since_ns, uint32_t *slot);
int cl_ring_publish(cl_ring *r, uint32_t slot, unsigned flags, cl_frame *out);
int cl_ring_give_up(cl_ring *r, uint32_t slot);
int cl_ring_latest(cl_ring *r, uint64_t after, int64_t deadline_ns, unsigned flags, cl_frame *out);
int cl_ring_last(cl_ring *r, uint32_t most, unsigned flags, cl_frame *out, uint32_t *n); /* the newest, oldest first */
/* since UINT64_MAX: from now */
int cl_ring_subscribe(cl_ring *r, uint32_t policy, uint64_t since, unsigned flags, uint32_t *reader);
int cl_ring_unsubscribe(cl_ring *r, uint32_t reader);
int cl_ring_next(cl_ring *r, uint32_t reader, int64_t deadline_ns, unsigned flags, cl_frame *out);
int cl_ring_return(cl_ring *r, uint32_t slot); /* one loan of ours */
void cl_ring_shut(cl_ring *r);
int cl_ring_bury(cl_ring *r, unsigned flags); /* take back what the dead had */

#endif
