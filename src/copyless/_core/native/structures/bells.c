#define _GNU_SOURCE
#include "bells.h"

#include <limits.h>

#include "queue_parts.h"

#define RELAXED memory_order_relaxed

/* ---- ringing */

static cl_au64 rung; /* bits that were rung since the last wait until they were heard; a hint */

void cl_bells_ring(const cl_store *store, cl_head *head)
{
    uint32_t high = *(const volatile uint32_t *)&store->control->owners_high;
    uint64_t left = atomic_load(&head->bells);
    high = high < CL_MAX_OWNERS ? high : CL_MAX_OWNERS;
    while (left != 0) {
        uint32_t bit = (uint32_t)__builtin_ctzll(left);
        left &= left - 1;
        CL_KILL_POINT();
        if (!(atomic_fetch_and(&head->bells, ~((uint64_t)1 << bit)) >> bit & 1)) {
            continue; /* another thread rings them */
        }
        CL_KILL_POINT();
        atomic_fetch_or_explicit(&rung, (uint64_t)1 << bit, RELAXED);
        for (uint32_t slot = bit; slot < high && !CL_MUTANT(bells_not_rung); slot += CL_BELL_BITS) {
            cl_bell_ring(&store->owners[slot].bell, INT_MAX);
        }
    }
}

int cl_bells_heard(cl_store *store, int64_t deadline_ns)
{
    uint32_t high = *(const volatile uint32_t *)&store->control->owners_high;
    uint64_t left = atomic_load_explicit(&rung, RELAXED);
    int rc = CL_OK;
    high = high < CL_MAX_OWNERS ? high : CL_MAX_OWNERS;
    for (uint32_t slot = 0; rc == CL_OK && left != 0 && slot < high; slot++) {
        cl_owner *o = &store->owners[slot];
        if (!(left >> slot % CL_BELL_BITS & 1) || slot == store->slot) {
            continue;
        }
        uint32_t heard, bell = atomic_load(&o->bell); /* rings from now on are not by this process */
        while (rc == CL_OK && (heard = atomic_load(&o->heard)) != 0 && (int32_t)((bell | 1u) - heard) > 0 &&
               cl_owner_life(store, slot, o->incarnation) == CL_ALIVE) {
            rc = cl_wait(&o->heard, heard, deadline_ns, NULL);
        }
    }
    if (rc != CL_AGAIN) { /* after one wait the same bits are not waited for again */
        atomic_store_explicit(&rung, 0, RELAXED);
    }
    return rc;
}

/* ---- asking */

void cl_watch_ask(const cl_watch *w)
{
    uint64_t bit = (uint64_t)1 << (w->store->slot % CL_BELL_BITS);
    if (!(atomic_load(&w->head->bells) & bit)) {
        atomic_fetch_or(&w->head->bells, bit); /* "asked" */
    }
    CL_KILL_POINT();
    switch (w->is.kind) { /* the other objects tell whether or not a thread sleeps */
    case CL_KIND_QUEUE: {
        cl_end *put = &((cl_queue_head *)(void *)w->head)->put;
        if (!(atomic_load(&put->commit) & CL_COMMIT_SLEEP) && !CL_MUTANT(bells_queue_unmarked)) {
            atomic_fetch_or(&put->commit, CL_COMMIT_SLEEP);
        }
        break;
    }
    case CL_KIND_LOCK: { /* a free word has no mark: the check that follows finds it free */
        cl_au32 *word = &((cl_mutex *)(void *)w->head)->word;
        uint32_t v = atomic_load(word);
        while ((v & ~CL_LOCK_SLEEP) != 0 && !(v & CL_LOCK_SLEEP) &&
               !atomic_compare_exchange_weak(word, &v, v | CL_LOCK_SLEEP)) {
        }
        break;
    }
    default:
        break;
    }
    CL_KILL_POINT();
}

/* ---- checking */

/* An item of a queue that redelivers was taken, and its consumer gave it back or, if that is checked, died. */
static int is_given_back(const cl_watch *w, int look)
{
    cl_queue_head *h = (cl_queue_head *)(void *)w->head;
    uint64_t most = w->is.spare[1], got = cl_passed(&h->get);
    for (uint32_t i = 0; i < w->is.room; i++) {
        cl_lease *l = &h->leases[i];
        uint32_t owner = atomic_load_explicit(&l->owner, memory_order_acquire);
        if (owner != 0 && owner != CL_SET_ASIDE && cl_load64(&l->sequence) < got &&
            (owner == CL_LOCK_LEFT || (look && cl_is_dead(w->store, owner))) &&
            (most == 0 || (uint64_t)atomic_load(&l->again) + 1 < most)) {
            return 1;
        }
    }
    return 0;
}

static int queue_is_ready(cl_watch *w, int look)
{
    cl_queue_head *h = (cl_queue_head *)(void *)w->head;
    if (!cl_queue_is_empty(h) || atomic_load(&h->state) != CL_QUEUE_OPEN ||
        (w->is.room != 0 && is_given_back(w, look))) {
        return 1;
    }
    if (look && w->queue != NULL) {
        w->deserted = cl_queue_deserted(w->queue) >= 2 ? w->deserted + 1 : 0;
        return w->deserted > 20 / CL_LOOK_SLICES; /* a second, as a get waits before it raises */
    }
    return 0;
}

static int lock_is_ready(const cl_watch *w, int look)
{
    cl_mutex *m = (cl_mutex *)(void *)w->head;
    uint32_t word = atomic_load(&m->word) & ~CL_LOCK_SLEEP;
    return word == 0 || (w->is.kind == CL_KIND_RLOCK && cl_rlock_is_mine(w->store, m, w->thread)) ||
           (look && cl_is_dead(w->store, word));
}

static int robust_is_ready(const cl_watch *w, int look)
{
    cl_robust *s = (cl_robust *)(void *)w->head;
    for (uint32_t i = 0; i < w->is.room; i++) {
        uint32_t owner = atomic_load(&s->entries[i].owner);
        if (owner == 0 || (look && cl_is_dead(w->store, owner))) {
            return 1;
        }
    }
    return 0;
}

static int event_is_ready(cl_watch *w)
{
    uint32_t v = atomic_load(&((cl_event *)(void *)w->head)->word), sets = (v >> 2) + 1;
    int was_set = w->sets != 0 && w->sets != sets; /* also if it was cleared before the check */
    w->sets = sets;
    return (v & 1u) || was_set;
}

static int ring_is_ready(const cl_watch *w)
{
    return w->self != cl_self(w->store) ||
           cl_ring_has_next((cl_ring_head *)(void *)w->head, &w->is, w->reader, w->self);
}

int cl_watch_is_ready(cl_watch *w, int look)
{
    if (w->closed != NULL && *(const volatile int *)w->closed) {
        return 1;
    }
    switch (w->is.kind) {
    case CL_KIND_QUEUE:
        return queue_is_ready(w, look);
    case CL_KIND_LOCK:
    case CL_KIND_RLOCK:
        return lock_is_ready(w, look);
    case CL_KIND_SEMAPHORE:
        return (atomic_load(&((cl_semaphore *)(void *)w->head)->word) & ~CL_SEM_SLEEP) != 0;
    case CL_KIND_ROBUST_SEMAPHORE:
        return robust_is_ready(w, look);
    case CL_KIND_EVENT:
        return event_is_ready(w);
    default:
        return ring_is_ready(w);
    }
}

uint32_t cl_watch_pass(cl_watch *watches, uint32_t n, uint8_t *ready, int ask, int look)
{
    uint32_t found = 0;
    for (uint32_t i = 0; i < n; i++) {
        if (ask) {
            cl_watch_ask(&watches[i]);
        }
        found += ready[i] = (uint8_t)cl_watch_is_ready(&watches[i], look);
    }
    return found;
}

int cl_watch_any(cl_watch *watches, uint32_t n, uint8_t *ready, uint32_t *slices, int64_t deadline_ns, cl_spin *spin)
{
    if (*slices == 0 && cl_watch_pass(watches, n, ready, 0, deadline_ns == 0)) {
        return CL_OK;
    }
    if (deadline_ns == 0 || n == 0) {
        return CL_TIMEOUT;
    }
    cl_au32 *bell = cl_bell_of(watches[0].store);
    int look = ++*slices % CL_LOOK_SLICES == 0;
    for (int64_t begun = 0;;) {
        uint32_t seen = atomic_load(bell);
        CL_KILL_POINT();
        if (cl_watch_pass(watches, n, ready, !CL_MUTANT(bells_not_asked), look)) {
            return CL_OK;
        }
        CL_KILL_POINT();
        int rc = cl_wait_again(&begun, deadline_ns); /* it may ring for other objects of the process */
        rc = rc == CL_OK ? cl_bell_wait(bell, seen, deadline_ns, spin) : rc;
        if (rc == CL_TIMEOUT && cl_watch_pass(watches, n, ready, 0, 0)) {
            return CL_OK; /* just now */
        }
        if (rc != CL_OK) {
            return rc;
        }
        look = 0;
    }
}
