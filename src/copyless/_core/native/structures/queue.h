/* A queue as one process uses it. What describes the queue is copied and checked when the process attaches; what is read of it later
 * (a position, a length, a lease) is bounded where it is used, and what is out of bounds is CL_CORRUPT. What lies in shared memory, and what a death leaves of it: queue_layout.h. */
#ifndef CL_QUEUE_H
#define CL_QUEUE_H

#include "queue_layout.h"

/* Any number of the process's threads may share it. */
typedef struct cl_cached { /* the chunk that an end of ours stood on last */
    cl_block_ref ref;
    int held;
} cl_cached;

typedef struct cl_queue {
    cl_store *store;
    cl_queue_head *head;
    uint32_t number; /* of the head's block */
    /* what describes the queue: copied and checked when the process attached */
    uint32_t most; /* items; 0: unlimited */
    uint32_t leases;
    uint64_t most_bytes; /* 0: unlimited */
    uint64_t deliveries; /* of an item, at most; 0: unlimited */
    uint64_t flags;
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
    int settled; /* committed already; `body` is a copy, for the caller to free */
} cl_got;

int cl_queue_attach(cl_queue *q, cl_store *store, cl_queue_head *head, uint64_t capacity, uint32_t number);
void cl_queue_detach(cl_queue *q); /* gives up the chunks it stands on */
/* *done of n items, more when called again. CL_TIMEOUT: full, or not within the deadline; CL_CLOSED: shut. Without CL_MAY_WAIT it gives the way
 * (CL_AGAIN) when anybody is in it, and when it needs the registry. */
int cl_queue_put(cl_queue *q, const cl_item *items, uint32_t n, uint32_t *done, int64_t deadline_ns, unsigned flags);
/* A try that begun then found the registry's lock taken: not to wait for an item is not to wait for that lock, but who is
 * stopped has it for longer than a slice. */
static inline int cl_queue_is_late(int64_t begun_ns, int64_t deadline_ns)
{
    int64_t now = cl_monotonic_ns();
    return now >= deadline_ns && now >= begun_ns + CL_SLICE_NS;
}
/* Begin to take. CL_OK: under the lock, end with commit or abort. CL_TIMEOUT: empty; CL_CLOSED: empty and shut. */
int cl_queue_begin(cl_queue *q, int64_t deadline_ns, unsigned flags);
/* Look on, without sleeping, for so long at most: whether there may be something to take. */
int cl_queue_poll(cl_queue *q, int64_t budget_ns);
/* The next item of this take. CL_MISSING: no further one in this take. An item with a block or tokens is the last. */
int cl_queue_next(cl_queue *q, cl_got *out, unsigned flags);
int cl_queue_needs_registry(const cl_queue *q); /* the commit will: settle, without the GIL */
/* CL_AGAIN, where it needs the registry: its lock is not to be had now; all is as before the commit. */
int cl_queue_commit(cl_queue *q);
void cl_queue_abort(cl_queue *q);
/* Commit the one item of a take that needs the registry, or put it back. CL_AGAIN: it is back; serve signals, begin again. */
int cl_queue_settle(cl_queue *q, cl_got *got);

uint64_t cl_queue_size(const cl_queue_head *h);
uint64_t cl_queue_bytes(const cl_queue_head *h);
uint64_t cl_queue_unfinished(cl_queue *q);
/* Acknowledge one item; of a queue that delivers again, that of `sequence`. CL_MISSING: nothing to acknowledge. */
int cl_queue_done(cl_queue *q, uint64_t sequence);
/* Give one back, to be delivered again, or set aside when it was delivered as often as may be. CL_MISSING: as above. */
int cl_queue_nack(cl_queue *q, uint64_t sequence);
/* The dead letter in a lease from *at on, whose index is in *at then: its bytes are in the payload, the caller's reference.
 * *deliveries: how often it was handed out. CL_MISSING: no further one. */
int cl_queue_dead_letter(cl_queue *q, uint32_t *at, cl_got *out, uint32_t *deliveries);
int cl_queue_discard(cl_queue *q, uint64_t sequence); /* a dead letter; CL_MISSING: it is none any more */
/* Wait until all is acknowledged. CL_OWNER_DIED: *lost items died with their consumers, which now count as done. */
int cl_queue_join(cl_queue *q, int64_t deadline_ns, uint64_t *lost);
int cl_queue_shut(cl_queue *q, int now); /* CL_AGAIN: call again */
void cl_queue_role(cl_queue *q, uint32_t role, int on);
void cl_queue_use(cl_queue *q, uint32_t role); /* this process puts or gets, and has not closed it */
/* Whether nobody is left who could put: some other process put, all that did have ended or closed, and whoever still
 * has the queue only takes from it. 1: all of them said so (CL_ROLE_CLOSED), 2: somebody died. */
int cl_queue_deserted(cl_queue *q);

#endif
