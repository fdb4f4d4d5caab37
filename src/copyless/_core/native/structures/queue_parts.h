/* Functions that only the files of the queue share. */
#ifndef CL_QUEUE_PARTS_H
#define CL_QUEUE_PARTS_H

#include "queue.h"

typedef struct cl_position { /* the position of the next item, from a side */
    uint64_t segment_id, generation, block, offset, serial, bytes;
} cl_position;

/* ---- queue_state.c: users, locks, waiters, acknowledging, shutdown */
cl_user *cl_queue_user(cl_queue *q);
/* Take the lock of an end. What a dead holder left is repaired first. */
int cl_queue_enter(cl_queue *q, int puts, int64_t deadline_ns, unsigned flags);
/* Release it. `dirty`: a repair could not be done now, and the next holder must do it. */
void cl_queue_leave(cl_queue *q, cl_end *end, int dirty);
/* Drop the holds of items beyond the end (puts), or before the head and not leased. CL_AGAIN: not possible now. */
int cl_queue_clean(cl_queue *q, int puts, uint64_t count, uint64_t serial);
void cl_queue_apply_taken(cl_queue *q);
int cl_queue_counts_differ(uint64_t got, uint64_t put); /* CL_CORRUPT: more was taken than put */
/* Whether the consumer of an item is dead, or gave it back. An item that was delivered as often as allowed is set aside
 * here. Under the lock. */
int cl_queue_is_orphan(cl_queue *q, cl_lease *l);
/* Whether the queue was shut at once and still contains items, which no process will take: then finish the shutdown. If
 * it cannot be finished now, it stays as it is. */
int cl_queue_is_to_drain(cl_queue *q);
int cl_queue_finish_shutting(cl_queue *q);
/* Wait until an end differs from the value that was seen. *slept: the thread did not only spin. */
int cl_queue_wait(cl_end *end, uint64_t seen, int64_t deadline_ns, cl_spin *spin, int *slept);
void cl_queue_others_may_sleep(cl_end *end);
void cl_queue_wake(cl_end *end, uint64_t n);
uint64_t cl_bytes_passed(const cl_end *end); /* bytes of items' contents; may be read while another thread works */

/* ---- queue_chunks.c */
void cl_queue_give_back(cl_queue *q, const cl_block_ref *r);
void cl_queue_drop_chunk(cl_queue *q, cl_cached *c);
int cl_queue_load(cl_queue *q, uint64_t segment_id, uint64_t generation, uint64_t block, unsigned flags,
                  cl_block_ref *out);
/* `serial`: the number that the chunk must have; 0: a new chunk, which has no number yet. */
int cl_queue_stand_on(cl_queue *q, cl_cached *c, uint64_t segment_id, uint64_t generation, uint64_t block,
                      uint64_t serial, unsigned flags);
int cl_queue_check_offset(const cl_cached *c, uint64_t offset, const char *end); /* check an item's offset in a chunk */
/* *dirty: it failed, and left a chunk that must be removed. */
int cl_queue_add_chunk(cl_queue *q, cl_position *p, int *spilled, int *dirty);

/* ---- words */

static inline uint64_t cl_load64(const cl_au64 *p)
{
    return atomic_load_explicit(p, memory_order_relaxed);
}

static inline void cl_store64(cl_au64 *p, uint64_t v)
{
    atomic_store_explicit(p, v, memory_order_relaxed);
}

/* Read words of a chunk, each once, so that the values that are checked are the values that are used. */
static inline void cl_read_words(void *to, const uint8_t *from, size_t n)
{
    uint64_t *out = to;
    for (size_t i = 0; i < n / 8; i++) {
        out[i] = ((const volatile uint64_t *)(const void *)from)[i];
    }
}

static inline uint64_t cl_passed(const cl_end *end)
{
    return atomic_load_explicit(&end->commit, memory_order_acquire) >> CL_COMMIT_SHIFT; /* pairs with "passed" */
}

static inline cl_side *cl_active_side(cl_end *end)
{
    return &end->side[cl_load64(&end->commit) & 1];
}

static inline cl_au32 *cl_low_word(cl_end *end)
{
    /* A futex has 32 bits. It is only compared for a change, then the whole word is read again. */
    return (cl_au32 *)(void *)&end->commit + (__BYTE_ORDER__ == __ORDER_BIG_ENDIAN__);
}

/* A forked child has its own owner slot; it has holds on the chunks that it inherited. */
static inline uint32_t cl_queue_self(cl_queue *q)
{
    return atomic_load_explicit(&q->self, memory_order_relaxed);
}

static inline void cl_queue_update_self(cl_queue *q)
{
    uint32_t self = cl_self(q->store);
    if (cl_queue_self(q) != self) {
        atomic_store_explicit(&q->user, 0, memory_order_relaxed);
        atomic_store_explicit(&q->self, self, memory_order_relaxed);
    }
}

static inline cl_position cl_read_side(const cl_side *s)
{
    return (cl_position){cl_load64(&s->segment_id), cl_load64(&s->generation), cl_load64(&s->block),
                         cl_load64(&s->offset),     cl_load64(&s->serial),     cl_load64(&s->bytes)};
}

static inline void cl_write_side(cl_side *s, const cl_position *p)
{
    cl_store64(&s->segment_id, p->segment_id);
    cl_store64(&s->generation, p->generation);
    cl_store64(&s->block, p->block);
    cl_store64(&s->offset, p->offset);
    cl_store64(&s->serial, p->serial);
    cl_store64(&s->bytes, p->bytes);
}

/* Publish the other side. 1: a thread slept on the word, and must be woken. */
static inline int cl_queue_publish(cl_end *end, uint64_t count)
{
    uint64_t other = (cl_load64(&end->commit) & 1) ^ 1;
    CL_KILL_POINT();
    uint64_t old = atomic_exchange(&end->commit, count << CL_COMMIT_SHIFT | other); /* release: "passed" */
    CL_KILL_POINT();
    return (old & CL_COMMIT_SLEEP) != 0;
}

static inline int cl_queue_is_empty(cl_queue_head *h)
{
    return cl_passed(&h->put) <= cl_passed(&h->get);
}

#endif
