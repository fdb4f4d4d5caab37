/* Monitors: the common part of the robust semaphore, the readers-writer lock and the barrier.
 *
 * A monitor is a small robust mutex, a word that changes when sleepers should check again, and a flag that a thread
 * sleeps. Every change under the mutex is one store, so a holder that dies leaves nothing to repair. An entry belongs
 * to one process; it is empty when it has no owner. */
#ifndef CL_MONITOR_H
#define CL_MONITOR_H

#include "sync.h"

/* CL_OK: inside. CL_AGAIN: another living process has held it for a whole slice (it may be stopped): serve signals and
 * call again. CL_TIMEOUT: the same, and the deadline has passed (CL_FOREVER: never). With a deadline of 0 or less it
 * does not sleep: CL_AGAIN. */
int cl_monitor_enter(cl_store *store, cl_monitor *m, int64_t deadline_ns);
void cl_monitor_leave(cl_store *store, cl_monitor *m, int changed); /* changed: sleepers must check again */
/* Leave, and wait until something changes; *begun_ns as in cl_wait_again. Killed waiters leave `sleeping` set, which
 * costs one unneeded wake. */
int cl_monitor_wait(cl_store *store, cl_monitor *m, int64_t *begun_ns, int64_t deadline_ns, cl_spin *spin);
/* Make sleepers check again, after a change that was made without the monitor. */
void cl_monitor_tell(cl_monitor *m);

static inline void cl_entry_put(cl_entry *e, uint32_t owner, uint32_t state)
{
    atomic_store_explicit(&e->state, state, memory_order_relaxed);
    CL_KILL_POINT();
    atomic_store_explicit(&e->owner, owner, memory_order_release); /* last: an entry without an owner is empty */
}

static inline uint32_t cl_entry_owner(const cl_entry *e)
{
    return atomic_load_explicit(&e->owner, memory_order_acquire);
}

static inline uint32_t cl_entry_state(const cl_entry *e)
{
    return atomic_load_explicit(&e->state, memory_order_acquire);
}

#endif
