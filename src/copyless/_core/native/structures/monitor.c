#define _GNU_SOURCE
#include "monitor.h"

#include <limits.h>

int cl_monitor_enter(cl_store *store, cl_monitor *m, int64_t deadline_ns)
{
    static cl_spin spin; /* held for some ten instructions: the spin is almost always enough */
    int64_t until = deadline_ns > 0 ? cl_monotonic_ns() + CL_SLICE_NS : 0;
    int rc = deadline_ns > 0 ? cl_mutex_lock(store, &m->mutex, until, &spin) : cl_mutex_try(store, &m->mutex, &spin);
    if (rc == CL_OK || rc == CL_OWNER_DIED) {
        CL_KILL_POINT();
        return CL_OK;
    }
    if (rc == CL_AGAIN || rc == CL_TIMEOUT) {
        return deadline_ns > 0 && deadline_ns <= until ? CL_TIMEOUT : CL_AGAIN;
    }
    return rc;
}

void cl_monitor_leave(cl_store *store, cl_monitor *m, int changed)
{
    int wake = changed && atomic_load_explicit(&m->sleeping, memory_order_relaxed); /* under the mutex */
    if (wake) {
        atomic_store_explicit(&m->sleeping, 0, memory_order_relaxed);
        atomic_fetch_add_explicit(&m->change, 1, memory_order_relaxed);
    }
    CL_KILL_POINT();
    cl_unlock_own(&m->mutex, cl_self(store));
    if (wake) {
        cl_wake(&m->change, INT_MAX);
    }
}

int cl_monitor_wait(cl_store *store, cl_monitor *m, int64_t *begun_ns, int64_t deadline_ns, cl_spin *spin)
{
    uint32_t seen = atomic_load_explicit(&m->change, memory_order_relaxed);
    atomic_store_explicit(&m->sleeping, 1, memory_order_relaxed);
    cl_unlock_own(&m->mutex, cl_self(store));
    int rc = cl_wait_again(begun_ns, deadline_ns);
    return rc == CL_OK ? cl_wait(&m->change, seen, deadline_ns, spin) : rc;
}

void cl_monitor_tell(cl_monitor *m)
{
    atomic_fetch_add(&m->change, 1);
    if (atomic_load(&m->sleeping)) {
        cl_wake(&m->change, INT_MAX);
    }
}
