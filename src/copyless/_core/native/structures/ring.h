/* A ring of frames in shared memory: several writers, many readers, each frame in a slot of fixed size.
 *
 *   +------+---------+---------+-------+-------+-------+------+--------+--------+-- ... --+
 *   | head | members | readers | slots | index | spare | spec | frame  | frame  |         |
 *   +------+---------+---------+-------+-------+-------+------+--------+--------+-- ... --+
 *
 * Promise: claiming, publishing, giving up, taking and returning a slot never wait for another process, at whatever
 * instruction that process is stopped. Joining, leaving and subscribing do not wait either, as long as there is a free
 * place. Each operation is a few atomic steps. If a process stops in a step that concerns others (a frame that has its
 * number, a claim), other processes finish or undo that step. docs/design/rings.md has every state, what changes it,
 * and what SIGKILL, SIGSTOP and fork do at each step. In short:
 *
 *   free --(a writer)--> writing --(its number is in the index: anybody)--> published --(a writer)--> claimed
 *   claimed --(no loan, nobody needs it: the same writer)--> writing     claimed --(a reader wants it)--> published
 *   writing --(writer gives up, or is dead: its members are released)--> free
 *
 * A loan is a bit of the slot, one for each member (a process's use of the ring); a member counts its own loans. A
 * reader sets its bit and then reads the slot's word; a writer changes the word and then reads the bits. */
#ifndef CL_RING_H
#define CL_RING_H

#include "sync.h"

#define CL_RING_MEMBERS 256u /* the default */
#define CL_RING_READERS 256u /* as many as members */
#define CL_RING_MEMBERS_MAX 4096u
#define CL_RING_SLOTS_MAX 65536u
#define CL_RING_MAY_BLOCK 1u /* flags of the head */
#define CL_RING_SEQ_BITS 44
#define CL_RING_SEQ_MAX ((uint64_t)1 << CL_RING_SEQ_BITS) /* no camera reaches this number: a higher number is damage */

/* A slot's word: | state 2 | member 12 | which of its calls 6 | number of the frame, or of the last one in the slot 44
 * | */
enum { CL_SLOT_FREE, CL_SLOT_CLAIMED, CL_SLOT_WRITING, CL_SLOT_PUBLISHED };
#define CL_SLOT_WORD(state, member, call, seq)                                                                         \
    ((uint64_t)(state) << 62 | (uint64_t)(member) << 50 | (uint64_t)(call) << CL_RING_SEQ_BITS | (seq))
#define CL_SLOT_STATE(word) ((unsigned)((word) >> 62))
#define CL_SLOT_MEMBER(word) ((uint32_t)((word) >> 50) & 0xfffu)
#define CL_SLOT_SEQ(word) ((word) & (CL_RING_SEQ_MAX - 1))

typedef struct cl_slot {
    cl_au64 word;
    _Atomic int64_t time_ns; /* monotonic, when it was published */
    cl_au64 loans[]; /* one bit per member */
} cl_slot;

/* An entry of the index, of sequence number s at s % slots: | number | slot 16 | */
#define CL_INDEX_ENTRY(seq, slot) ((uint64_t)(seq) << 16 | (slot))
#define CL_INDEX_SEQ(entry) ((entry) >> 16)
#define CL_INDEX_SLOT(entry) ((uint32_t)(entry) & 0xffffu)

enum { CL_READER_DROPS, CL_READER_BLOCKS, CL_READER_DEMOTED }; /* demoted: it blocked for too long, now it drops */
typedef struct cl_reader {
    cl_au32 owner; /* lock word of a process; 0: free */
    cl_au32 policy; /* | which subscription at this place 30 | one of these 2 |: only those that block are waited for */
    cl_au64 cursor; /* the last frame that it got */
    cl_au64 taken, dropped;
} cl_reader;
_Static_assert(sizeof(cl_reader) == 32, "reader");
#define CL_READER_POLICY(word) ((word) & 3u)

enum { CL_RING_OPEN, CL_RING_SHUT };
typedef struct cl_ring_head {
    cl_head head; /* number: slots; room: members; flags; spare: bytes a slot, block timeout in ns, bytes of the spec */
    cl_au32 lock; /* for releasing dead members, and for finding damage */
    cl_au32 state;
    cl_au32 published; /* a bell: rung for every frame */
    cl_au32 changed; /* a bell: rung when a writer that found no slot should try again */
    cl_au64 last; /* the highest sequence number in use, or one less: the index decides */
    cl_au64 waits; /* times a writer found no slot */
    cl_au32 readers_high; /* the entries from here on were never used */
    uint32_t pad[7];
} cl_ring_head;
_Static_assert(sizeof(cl_ring_head) == 128, "what follows is aligned");

/* One process's use of a ring: a member. Any number of its threads may share it. The description of the ring was copied
 * and checked when the process attached. What is read of the ring later (a slot, a sequence number, a cursor) is
 * checked against its bounds where it is used; if it is out of bounds, the result is CL_CORRUPT, or no frame. */
typedef struct cl_ring {
    cl_store *store;
    cl_ring_head *head;
    cl_au32 *members; /* lock words of processes */
    cl_reader *readers;
    uint8_t *first; /* slot */
    cl_au64 *index;
    cl_au64 *spare; /* a bit for each slot that may be free */
    uint8_t *data;
    uint8_t *spec;
    uint32_t slots;
    uint32_t room; /* number of members, and of readers: a multiple of 64 */
    uint64_t slot_bytes;
    uint64_t stride;
    uint64_t spec_bytes;
    uint64_t flags;
    int64_t block_timeout_ns; /* 0: none */
    cl_au32 self; /* lock word of the process that is the member; the following fields belong to that process */
    cl_au32 joining; /* lock word of a process that is joining in one of its threads; else 0 */
    uint32_t member; /* valid while `self` is this process */
    cl_au32 *loans; /* loans of this process, by slot */
    cl_au64 calls; /* calls of this process that claim */
    cl_spin spin_lock, spin_read, spin_write;
} cl_ring;

typedef struct cl_frame {
    uint32_t slot;
    uint64_t seq;
    int64_t time_ns;
    uint64_t missed;
} cl_frame;

typedef struct cl_ring_counts {
    uint32_t held, writing, on_loan;
    uint64_t last;
    int64_t oldest_ns, newest_ns; /* of those held */
} cl_ring_counts;

static inline cl_slot *cl_ring_slot(const cl_ring *r, uint32_t i)
{
    return (cl_slot *)(void *)(r->first + i * r->slot_bytes);
}

/* members: a multiple of 64, from cl_ring_members */
uint32_t cl_ring_members(uint32_t wanted);
uint64_t cl_ring_bytes(uint32_t slots, uint32_t members, uint64_t stride, uint64_t spec);
/* the block is all zeros before */
void cl_ring_begin(cl_ring_head *head, uint32_t slots, uint32_t members, uint64_t stride, uint64_t spec);
uint8_t *cl_ring_spec(cl_ring_head *head, uint32_t slots, uint32_t members);
int cl_ring_attach(cl_ring *r, cl_store *store, cl_ring_head *head, uint64_t capacity, uint32_t number);
void cl_ring_detach(cl_ring *r);

/* CL_AGAIN: with flags 0, there is nothing; with CL_MAY_WAIT, serve signals and call again. CL_TIMEOUT. CL_CLOSED: the
 * ring was shut (readers: and there is nothing newer). */
int cl_ring_claim(cl_ring *r, int64_t deadline_ns, unsigned flags, int64_t *since_ns, uint32_t *slot);
int cl_ring_publish(cl_ring *r, uint32_t slot, cl_frame *out);
int cl_ring_give_up(cl_ring *r, uint32_t slot);
int cl_ring_latest(cl_ring *r, uint64_t after, int64_t deadline_ns, unsigned flags, cl_frame *out);
int cl_ring_last(cl_ring *r, uint32_t most, unsigned flags, cl_frame *out, uint32_t *n); /* the newest, oldest first */
/* since UINT64_MAX: from now */
int cl_ring_subscribe(cl_ring *r, uint32_t policy, uint64_t since, unsigned flags, uint32_t *reader);
int cl_ring_unsubscribe(cl_ring *r, uint32_t reader);
int cl_ring_next(cl_ring *r, uint32_t reader, int64_t deadline_ns, unsigned flags, cl_frame *out);
/* Whether cl_ring_next would return at once. For a caller with a checked copy of the head that waits for other things,
 * too. */
int cl_ring_has_next(const cl_ring_head *h, const cl_head *is, uint32_t reader, uint32_t owner);
int cl_ring_return(cl_ring *r, uint32_t slot); /* return one loan of this process */
void cl_ring_shut(cl_ring *r);
/* Take back what dead members had. With flags 0: CL_AGAIN if another process does that now, or was stopped while it
 * did. */
int cl_ring_release_dead(cl_ring *r, unsigned flags);
void cl_ring_count(const cl_ring *r, cl_ring_counts *out);

#endif
