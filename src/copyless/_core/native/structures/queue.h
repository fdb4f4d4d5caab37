/* A queue as one process uses it. The description of the queue is copied and checked when the process attaches. What is
 * read later (a position, a length, a lease) is checked against its bounds where it is used; if it is out of bounds,
 * the result is CL_CORRUPT. The data in shared memory, and what a death leaves of it: queue_layout.h. */
#ifndef CL_QUEUE_H
#define CL_QUEUE_H

#include "queue_layout.h"

/* Any number of the process's threads may share a queue. */
typedef struct cl_cached { /* the chunk that an end of this process used last */
    cl_block_ref ref;
    int held;
} cl_cached;

typedef struct cl_queue {
    cl_store *store;
    cl_queue_head *head;
    uint32_t number; /* of the head's block */
    /* the description of the queue: copied and checked when the process attached */
    uint32_t most; /* the most items; 0: unlimited */
    uint32_t leases;
    uint64_t most_bytes; /* 0: unlimited */
    uint64_t deliveries; /* the most deliveries of an item; 0: unlimited */
    uint64_t flags;
    cl_au32 self; /* lock word of the process that set the following fields */
    cl_au32 user; /* index + 1 in users; 0: none yet */
    cl_spin spin_lock, spin_put, spin_get;
    cl_au64 known_put; /* its last known value; it only grows */
    uint64_t known_got; /* the same, under the put lock */
    cl_cached put_chunk; /* under the put lock */
    cl_cached get_chunk, left; /* under the get lock; left: the chunk before, to be dropped after the commit */
    /* the state of a get in progress, under the get lock */
    uint64_t got, available, bytes, offset;
    uint64_t serial;
    int64_t looked_ns; /* when leases of dead consumers were last checked */
    int moved, pass_on;
    uint32_t lease; /* index + 1 */
    cl_token drop; /* the hold on the item's block */
    const cl_token *tokens;
    uint32_t ntokens;
} cl_queue;

typedef struct cl_item {
    const void *body; /* the bytes, tokens first; NULL: they are in `payload` */
    uint64_t nbytes;
    const cl_token *tokens; /* drafts, to be given to the queue */
    uint32_t ntokens;
    const cl_block_ref *payload;
} cl_item;

/* An item that was taken. */
typedef struct cl_got {
    const uint8_t *body; /* in the chunk: copy it before the commit; NULL: in `payload` */
    uint64_t nbytes;
    uint32_t ntokens;
    uint64_t sequence;
    cl_block_ref payload; /* loaded: the caller's reference */
    int settled; /* already committed; `body` is a copy that the caller frees */
} cl_got;

int cl_queue_attach(cl_queue *q, cl_store *store, cl_queue_head *head, uint64_t capacity, uint32_t number);
void cl_queue_detach(cl_queue *q); /* releases the chunks that it uses */
/* Puts *done of n items; call again for the others. CL_TIMEOUT: full, or not within the deadline. CL_CLOSED: shut.
 * Without CL_MAY_WAIT it returns CL_AGAIN if another caller is inside, or if it needs the registry. */
int cl_queue_put(cl_queue *q, const cl_item *items, uint32_t n, uint32_t *done, int64_t deadline_ns, unsigned flags);
/* Whether a try that began then, and found the registry's lock taken, must give up. Not waiting for an item does not
 * mean not waiting for that lock, but a stopped process holds it for longer than a slice. */
static inline int cl_queue_is_late(int64_t begun_ns, int64_t deadline_ns)
{
    int64_t now = cl_monotonic_ns();
    return now >= deadline_ns && now >= begun_ns + CL_SLICE_NS;
}
/* Begin to take. CL_OK: the get lock is held; end with commit or abort. CL_TIMEOUT: empty. CL_CLOSED: empty and
 * shut. */
int cl_queue_begin(cl_queue *q, int64_t deadline_ns, unsigned flags);
/* Watch for at most the given time, without sleeping: whether there may be something to take. */
int cl_queue_poll(cl_queue *q, int64_t budget_ns);
/* The next item of this take. CL_MISSING: this take has no further item. An item with a block or tokens is the last. */
int cl_queue_next(cl_queue *q, cl_got *out, unsigned flags);
int cl_queue_needs_registry(const cl_queue *q); /* whether the commit does: then settle, without the GIL */
/* CL_AGAIN: it needs the registry, whose lock cannot be taken now; nothing has changed. */
int cl_queue_commit(cl_queue *q);
void cl_queue_abort(cl_queue *q);
/* Commit the single item of a take that needs the registry, or put it back. CL_AGAIN: it was put back; serve signals,
 * begin again. */
int cl_queue_settle(cl_queue *q, cl_got *got);

uint64_t cl_queue_size(const cl_queue_head *h);
uint64_t cl_queue_bytes(const cl_queue_head *h);
uint64_t cl_queue_unfinished(cl_queue *q);
/* Acknowledge one item; in a queue that redelivers, the item with `sequence`. CL_MISSING: nothing to acknowledge. */
int cl_queue_done(cl_queue *q, uint64_t sequence);
/* Give one item back, to be delivered again, or set aside if it was delivered as often as allowed. CL_MISSING: as
 * above. */
int cl_queue_nack(cl_queue *q, uint64_t sequence);
/* The next dead letter, in a lease from index *at on; sets *at to its index. Its bytes are in the payload, a reference
 * of the caller. *deliveries: times it was delivered. CL_MISSING: there is no further one. */
int cl_queue_dead_letter(cl_queue *q, uint32_t *at, cl_got *out, uint32_t *deliveries);
int cl_queue_discard(cl_queue *q, uint64_t sequence); /* discard a dead letter; CL_MISSING: it is no longer one */
/* Wait until all items are acknowledged. CL_OWNER_DIED: *lost items died with their consumers, and now count as
 * acknowledged. */
int cl_queue_join(cl_queue *q, int64_t deadline_ns, uint64_t *lost);
int cl_queue_shut(cl_queue *q, int now); /* CL_AGAIN: call again */
void cl_queue_role(cl_queue *q, uint32_t role, int on);
void cl_queue_use(cl_queue *q, uint32_t role); /* record that this process puts or gets, and has not closed the queue */
/* Whether no process is left that could put: some other process has put, all that did have ended or closed, and the
 * others only take. 1: all of them closed it (CL_ROLE_CLOSED), 2: a process died. */
int cl_queue_deserted(cl_queue *q);

#endif
