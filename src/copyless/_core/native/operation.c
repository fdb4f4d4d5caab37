/* One operation on the registry: both locks, and the work that is done on the way out.
 *
 * Promise: between cl_enter and cl_leave no other thread and no other process changes the registry, but where a function
 * says that it lets the registry's lock go for a moment. Files of segments that were given back meanwhile are unlinked in
 * cl_leave, without the registry's lock.
 *
 * What SIGKILL leaves: what enter.c says; and segments in `going`, which the reaper finishes. */
#include "store.h"

int cl_enter(cl_store *store, enum cl_op op, unsigned flags)
{
    int rc = cl_enter_tables(store, flags);
    if (rc != CL_OK) {
        return rc;
    }
    rc = cl_lock_registry(store, op, flags & CL_MAY_WAIT ? cl_monotonic_ns() + CL_SLICE_NS : 0);
    if (rc == CL_OK) {
        CL_KILL_POINT();
        return CL_OK;
    }
    cl_error kept = *cl_last_error();
    cl_leave_tables(store);
    *cl_last_error() = kept;
    return rc;
}

void cl_unlock_registry(cl_store *store)
{
    if (store->ngoing != 0) {
        cl_finish_going(store, 0);
    }
    cl_set_op(store, CL_OP_NONE);
    /* From our own word only: if the lock could not be had again in cl_finish_going it is another's now, and stays so. */
    cl_unlock_own(&store->control->lock, CL_LOCK_WORD(store->slot, store->incarnation));
}

void cl_leave(cl_store *store)
{
    cl_unlock_registry(store);
    cl_leave_tables(store);
}

int cl_peek(cl_store *store, cl_control *copy, unsigned flags)
{
    int rc = cl_enter(store, CL_OP_LIST, flags);
    if (rc == CL_OK) {
        *copy = *store->control;
        cl_leave(store);
    }
    return rc;
}

void cl_leave_keeping_error(cl_store *store)
{
    cl_error kept = *cl_last_error();
    cl_leave(store);
    *cl_last_error() = kept;
}
