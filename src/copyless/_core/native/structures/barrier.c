#define _GNU_SOURCE
#include "monitor.h"

static cl_barrier *barrier_of(const cl_object *o)
{
    return (cl_barrier *)(void *)o->head;
}

static uint32_t count(const cl_object *o, uint32_t state)
{
    const cl_barrier *b = barrier_of(o);
    uint32_t n = 0;
    for (uint32_t i = 0; i < o->is.room; i++) {
        n += cl_entry_owner(&b->parties[i]) != 0 && cl_entry_state(&b->parties[i]) == state;
    }
    return n;
}

static void set_arrived(const cl_object *o, uint32_t state, uint32_t last)
{
    cl_barrier *b = barrier_of(o);
    for (uint32_t i = 0; i <= o->is.room; i++) {
        uint32_t at = i < o->is.room ? i : last; /* the entry of the releasing party is last: see below */
        if ((at != last || i == o->is.room) && at < o->is.room && cl_entry_owner(&b->parties[at]) != 0 &&
            cl_entry_state(&b->parties[at]) == CL_PARTY_ARRIVED) {
            atomic_store_explicit(&b->parties[at].state, state, memory_order_release);
            CL_KILL_POINT();
        }
    }
}

/* A party that died after it arrived breaks the barrier; one that died on its way out is forgotten. */
static int release_dead(cl_store *store, const cl_object *o)
{
    cl_barrier *b = barrier_of(o);
    int changed = 0;
    for (uint32_t i = 0; i < o->is.room; i++) {
        uint32_t owner = cl_entry_owner(&b->parties[i]);
        if (owner != 0 && !CL_MUTANT(barrier_dead_party_waited_for) && cl_is_dead(store, owner)) {
            if (cl_entry_state(&b->parties[i]) == CL_PARTY_ARRIVED) {
                atomic_store(&b->broken, 1);
                set_arrived(o, CL_PARTY_BROKEN, UINT32_MAX);
            }
            cl_entry_put(&b->parties[i], 0, 0);
            changed = 1;
        }
    }
    return changed;
}

int cl_barrier_arrive(cl_store *store, const cl_object *o, uint32_t *entry, uint32_t *index, int64_t deadline_ns)
{
    cl_barrier *b = barrier_of(o);
    for (int64_t begun = 0;;) {
        int rc = cl_monitor_enter(store, &b->monitor, deadline_ns > 0 ? deadline_ns : 1);
        if (rc != CL_OK) {
            return rc;
        }
        if (atomic_load(&b->broken)) {
            cl_monitor_leave(store, &b->monitor, 0);
            return CL_CLOSED;
        }
        uint32_t arrived = count(o, CL_PARTY_ARRIVED);
        for (uint32_t i = 0; arrived < o->is.number && i < o->is.room; i++) {
            if (cl_entry_owner(&b->parties[i]) == 0) {
                cl_entry_put(&b->parties[i], cl_self(store), CL_PARTY_ARRIVED);
                *entry = i;
                *index = arrived;
                cl_monitor_leave(store, &b->monitor, 0);
                return CL_OK;
            }
        }
        /* The last party still runs the action, or others are still leaving. */
        if (release_dead(store, o)) {
            cl_monitor_leave(store, &b->monitor, 1);
            continue;
        }
        rc = cl_monitor_wait(store, &b->monitor, &begun, deadline_ns, NULL);
        if (rc != CL_OK) {
            return rc;
        }
    }
}

/* A party leaves without the monitor, because the monitor's holder is stopped. What was decided about the party is in
 * its entry. If nothing was decided, the barrier breaks by one word, and the waiters see that under the monitor. Only
 * the entry's owner, which lives, empties the entry; a later write of the stopped holder to the state of an empty entry
 * has no effect. */
static int go(cl_barrier *b, uint32_t entry)
{
    cl_entry *e = &b->parties[entry];
    uint32_t state = CL_PARTY_ARRIVED;
    if (atomic_compare_exchange_strong(&e->state, &state, CL_PARTY_BROKEN)) {
        CL_KILL_POINT();
        atomic_store(&b->broken, 1);
        CL_KILL_POINT();
    }
    atomic_store(&e->owner, 0);
    CL_KILL_POINT();
    cl_monitor_tell(&b->monitor);
    return state == CL_PARTY_RELEASED ? CL_OK : CL_CLOSED;
}

int cl_barrier_wait(cl_store *store, const cl_object *o, uint32_t entry, int64_t deadline_ns)
{
    cl_barrier *b = barrier_of(o);
    int64_t begun = 0;
    for (int rc = CL_OK;;) {
        int entered = cl_monitor_enter(store, &b->monitor, deadline_ns > 0 ? deadline_ns : 1);
        if (entered == CL_TIMEOUT) {
            return go(b, entry);
        }
        if (entered != CL_OK) {
            return entered;
        }
        if (rc == CL_AGAIN && release_dead(store, o)) {
            cl_monitor_leave(store, &b->monitor, 1);
            rc = CL_OK;
            continue;
        }
        uint32_t state = cl_entry_state(&b->parties[entry]);
        if (state == CL_PARTY_ARRIVED &&
            (rc == CL_TIMEOUT || atomic_load(&b->broken))) { /* by a party that could not get the monitor */
            atomic_store(&b->broken, 1);
            set_arrived(o, CL_PARTY_BROKEN, UINT32_MAX);
            state = CL_PARTY_BROKEN;
        }
        if (state != CL_PARTY_ARRIVED) {
            cl_entry_put(&b->parties[entry], 0, 0);
            cl_monitor_leave(store, &b->monitor, 1);
            return state == CL_PARTY_RELEASED ? CL_OK : CL_CLOSED;
        }
        if (rc == CL_AGAIN) {
            cl_monitor_leave(store, &b->monitor, 0);
            return CL_AGAIN;
        }
        static cl_spin spin;
        rc = cl_monitor_wait(store, &b->monitor, &begun, deadline_ns, &spin);
    }
}

int cl_barrier_release(cl_store *store, const cl_object *o, uint32_t entry, int64_t deadline_ns)
{
    cl_barrier *b = barrier_of(o);
    int rc = cl_monitor_enter(store, &b->monitor, deadline_ns > 0 ? deadline_ns : 1);
    if (rc == CL_OK) {
        /* The entry of this party is last. If it is killed before that, the entry looks arrived and dead, and the
         * waiters that are left are released for that reason. */
        if (cl_entry_state(&b->parties[entry]) == CL_PARTY_ARRIVED) {
            set_arrived(o, CL_PARTY_RELEASED, entry);
        }
        cl_monitor_leave(store, &b->monitor, 1);
    }
    return rc;
}

int cl_barrier_break(cl_store *store, const cl_object *o, int reset)
{
    cl_barrier *b = barrier_of(o);
    int rc = cl_monitor_enter(store, &b->monitor, CL_FOREVER);
    if (rc == CL_OK) {
        atomic_store(&b->broken, 1);
        set_arrived(o, CL_PARTY_BROKEN, UINT32_MAX);
        if (reset) {
            atomic_store(&b->broken, 0);
        }
        cl_monitor_leave(store, &b->monitor, 1);
    }
    return rc;
}

int cl_barrier_waiting(cl_store *store, const cl_object *o, uint32_t *n)
{
    cl_barrier *b = barrier_of(o);
    int rc = cl_monitor_enter(store, &b->monitor, CL_FOREVER);
    if (rc == CL_OK) {
        uint32_t arrived = count(o, CL_PARTY_ARRIVED);
        *n = arrived >= o->is.number ? 0 : arrived;
        cl_monitor_leave(store, &b->monitor, 0);
    }
    return rc;
}
