#define _GNU_SOURCE
#include "monitor.h"

int cl_robust_acquire(cl_store *store, const cl_object *o, int64_t deadline_ns, cl_spin *spin)
{
    cl_robust *s = (cl_robust *)(void *)o->head;
    int64_t begun = 0;
    for (int look = 0;; look = 1) {
        int rc = cl_monitor_enter(store, &s->monitor, deadline_ns);
        if (rc != CL_OK) {
            return rc;
        }
        for (uint32_t i = 0; i < o->is.room; i++) {
            uint32_t owner = cl_entry_owner(&s->entries[i]);
            if (owner == 0 || (look && !CL_MUTANT(semaphore_dead_holder_keeps) && cl_is_dead(store, owner))) {
                cl_entry_put(&s->entries[i], cl_self(store), 0);
                cl_monitor_leave(store, &s->monitor, 0);
                return owner == 0 ? CL_OK : CL_OWNER_DIED;
            }
        }
        if (deadline_ns == 0 || (deadline_ns < 0 && look)) {
            cl_monitor_leave(store, &s->monitor, 0);
            return CL_AGAIN;
        }
        if (!look) {
            cl_monitor_leave(store, &s->monitor, 0);
            continue; /* no free permit: now check whether a holder is dead */
        }
        rc = cl_monitor_wait(store, &s->monitor, &begun, deadline_ns, spin);
        if (rc != CL_OK) {
            return rc;
        }
    }
}

int cl_robust_release(cl_store *store, const cl_object *o, int64_t deadline_ns)
{
    cl_robust *s = (cl_robust *)(void *)o->head;
    int rc = cl_monitor_enter(store, &s->monitor, deadline_ns);
    if (rc != CL_OK) {
        return rc;
    }
    for (uint32_t i = 0; i < o->is.room; i++) {
        if (cl_entry_owner(&s->entries[i]) == cl_self(store)) {
            cl_entry_put(&s->entries[i], 0, 0);
            cl_monitor_leave(store, &s->monitor, 1);
            return CL_OK;
        }
    }
    cl_monitor_leave(store, &s->monitor, 0);
    return CL_MISSING;
}

uint32_t cl_robust_value(cl_store *store, const cl_object *o)
{
    cl_robust *s = (cl_robust *)(void *)o->head;
    uint32_t n = 0;
    for (uint32_t i = 0; i < o->is.room; i++) {
        uint32_t owner = cl_entry_owner(&s->entries[i]);
        n += owner == 0 || cl_is_dead(store, owner);
    }
    return n;
}
