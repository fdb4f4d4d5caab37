#define _GNU_SOURCE
#include "monitor.h"

static int waits_as(uint32_t state, uint32_t what)
{
    return (state & 3u) == what;
}

int cl_condition_begin(cl_store *store, const cl_object *o, uint32_t *entry)
{
    cl_condition *c = (cl_condition *)(void *)o->head;
    uint32_t ticket = atomic_fetch_add_explicit(&c->ticket, 1, memory_order_relaxed);
    for (int look = 0; look < 2; look++) {
        for (uint32_t i = 0; i < o->is.room; i++) {
            cl_entry *e = &c->waiters[i];
            uint32_t owner = cl_entry_owner(e);
            if (look && owner != 0 && cl_is_dead(store, owner) && !waits_as(cl_entry_state(e), CL_WAITER_NOTIFIED)) {
                atomic_store(&e->state, 0);
                atomic_compare_exchange_strong(&e->owner, &owner, 0);
                owner = 0;
            }
            if (owner == 0 && atomic_compare_exchange_strong(&e->owner, &owner, cl_self(store))) {
                CL_KILL_POINT();
                atomic_store(&e->state, ticket << 2 | CL_WAITER_WAITING);
                CL_KILL_POINT();
                *entry = i;
                return CL_OK;
            }
        }
    }
    return cl_fail(CL_TABLE_FULL, 0, "%u waiters are already waiting", o->is.room);
}

static void forget(cl_entry *e)
{
    atomic_store(&e->state, 0);
    CL_KILL_POINT();
    atomic_store(&e->owner, 0);
}

/* Take the notices of waiters that died before they returned, to pass them on. */
static uint32_t swallowed(cl_store *store, const cl_object *o, uint32_t most)
{
    cl_condition *c = (cl_condition *)(void *)o->head;
    uint32_t n = 0;
    for (uint32_t i = 0; i < o->is.room && n < most; i++) {
        cl_entry *e = &c->waiters[i];
        uint32_t state = cl_entry_state(e), owner = cl_entry_owner(e);
        if (owner != 0 && waits_as(state, CL_WAITER_NOTIFIED) && !CL_MUTANT(condition_notice_dies) &&
            cl_is_dead(store, owner) && atomic_compare_exchange_strong(&e->state, &state, 0)) {
            atomic_compare_exchange_strong(&e->owner, &owner, 0);
            n++;
        }
    }
    return n;
}

int cl_condition_wait(cl_store *store, const cl_object *o, uint32_t entry, int64_t deadline_ns, cl_spin *spin)
{
    cl_condition *c = (cl_condition *)(void *)o->head;
    cl_entry *e = &c->waiters[entry];
    uint32_t state = cl_entry_state(e);
    if (!waits_as(state, CL_WAITER_WAITING)) {
        return CL_OK;
    }
    int rc = cl_wait(&e->state, state, deadline_ns, spin);
    if (!waits_as(cl_entry_state(e), CL_WAITER_WAITING)) {
        return CL_OK;
    }
    if (rc == CL_AGAIN && swallowed(store, o, 1)) {
        atomic_compare_exchange_strong(&e->state, &state, (state & ~3u) | CL_WAITER_NOTIFIED);
        return CL_OK;
    }
    return rc == CL_OK ? CL_AGAIN : rc;
}

int cl_condition_end(const cl_object *o, uint32_t entry)
{
    cl_condition *c = (cl_condition *)(void *)o->head;
    cl_entry *e = &c->waiters[entry];
    uint32_t state = cl_entry_state(e);
    int notified = !(waits_as(state, CL_WAITER_WAITING) && atomic_compare_exchange_strong(&e->state, &state, 0));
    forget(e);
    return notified;
}

uint32_t cl_condition_notify(cl_store *store, const cl_object *o, uint32_t n)
{
    cl_condition *c = (cl_condition *)(void *)o->head;
    uint32_t done = 0, extra = swallowed(store, o, UINT32_MAX);
    n = n > UINT32_MAX - extra ? UINT32_MAX : n + extra;
    while (done < n) {
        uint32_t first = UINT32_MAX, lowest = 0;
        for (uint32_t i = 0; i < o->is.room; i++) { /* the one that has waited longest */
            uint32_t state = cl_entry_state(&c->waiters[i]);
            if (waits_as(state, CL_WAITER_WAITING) && cl_entry_owner(&c->waiters[i]) != 0 &&
                (first == UINT32_MAX || (int32_t)(state - lowest) < 0)) { /* tickets wrap round */
                first = i;
                lowest = state;
            }
        }
        if (first == UINT32_MAX) {
            break;
        }
        cl_entry *e = &c->waiters[first];
        uint32_t owner = cl_entry_owner(e);
        if (!CL_MUTANT(condition_notifies_the_dead) && cl_is_dead(store, owner)) {
            if (atomic_compare_exchange_strong(&e->state, &lowest, 0)) {
                atomic_compare_exchange_strong(&e->owner, &owner, 0);
            }
        } else if (atomic_compare_exchange_strong(&e->state, &lowest, (lowest & ~3u) | CL_WAITER_NOTIFIED)) {
            CL_KILL_POINT();
            cl_wake(&e->state, 1);
            done++;
        }
    }
    return done;
}

int cl_condition_lock(const cl_object *o, uint64_t capacity, cl_object *lock)
{
    uint64_t at = sizeof(cl_condition) + o->is.room * sizeof(cl_entry);
    if (at > capacity || capacity - at < sizeof(cl_mutex)) {
        return cl_fail(CL_CORRUPT, 0, "the condition's block has no room for its own lock");
    }
    /* Its head is all zeros, so no process can attach to it as an object. */
    *lock = (cl_object){.head = (cl_head *)(void *)((uint8_t *)o->head + at), .is = {.kind = CL_KIND_RLOCK}};
    return CL_OK;
}
