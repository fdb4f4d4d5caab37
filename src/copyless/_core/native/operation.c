/* One operation on the registry: both locks, and the work that is done on entry and exit.
 *
 * Promise: between cl_enter and cl_leave no other thread and no other process changes the registry, except in functions
 * that are documented to release the registry's lock for a moment. Files of segments that were given back in the
 * operation are unlinked in cl_leave, without the registry's lock; their mappings are unmapped without either lock.
 *
 * Waiting: the holder of the registry's lock may be stopped (SIGSTOP, a debugger, a paused container). So a waiter
 * holds nothing: the mutex is released before the sleep, and cl_enter returns CL_AGAIN after a slice. Its caller, which
 * has changed nothing yet, serves signals, checks its deadline and calls again. A release must not fail, so it waits
 * for one slice at most: then it is put off until this process next has the lock.
 *
 *   held --(released, the lock not available)--> noted in store->later --(the next cl_enter)--> released
 *
 * What SIGKILL leaves: what enter.c says; segments in `going`, which the reaper finishes; and what was put off, which
 * still belongs to the dead process and is reaped with it. A forked child inherits what its parent put off as it
 * inherits the holds. */
#define _GNU_SOURCE
#include "store.h"

#include <stdlib.h>

typedef struct cl_later {
    enum cl_later_kind kind;
    uint32_t index; /* of a hold, or of a segment */
    uint64_t id; /* the block's number, the message's nonce, the segment's id */
} cl_later;

int cl_put_off(cl_store *store, enum cl_later_kind kind, uint32_t index, uint64_t id)
{
    if (store->nlater == store->later_room) {
        uint32_t room = store->later_room != 0 ? store->later_room * 2 : 64;
        cl_later *wider = room > CL_LATER_MOST ? NULL : realloc(store->later, room * sizeof *wider);
        if (wider == NULL) {
            return 0;
        }
        store->later = wider;
        store->later_room = room;
    }
    store->later[store->nlater++] = (cl_later){.kind = kind, .index = index, .id = id};
    return 1;
}

int cl_puts_off(cl_store *store, unsigned flags)
{
    int some = cl_enter_tables(store, flags) == CL_OK;
    if (some) {
        some = store->nlater != 0;
        cl_leave_tables(store);
    }
    return some;
}

void cl_put_off_in_child(cl_store *store)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < store->nlater; i++) {
        if (store->later[i].kind == CL_LATER_HOLD) { /* inherited: the child does not use it either */
            store->later[n++] = store->later[i];
        }
    }
    store->nlater = n;
}

/* Under both locks. A step that fails is damage, which the next access to the same entry reports. */
static void do_what_was_put_off(cl_store *store)
{
    while (store->nlater != 0) {
        cl_later l = store->later[--store->nlater];
        if (l.kind == CL_LATER_HOLD) {
            cl_hold_release(store, l.index, (uint32_t)l.id);
        } else if (l.kind == CL_LATER_MESSAGE) {
            if (cl_is_message(store, l.index, l.id, UINT32_MAX)) {
                cl_hold_drop(store, l.index);
            }
        } else if (l.index < store->control->segments_high) {
            const cl_segment *s = &store->segments[l.index];
            if (s->id == l.id && s->state == CL_SEGMENT_MAKING && s->owner == store->slot + 1) {
                cl_segment_forget(store, l.index);
            }
        }
        CL_KILL_POINT();
    }
}

int cl_enter(cl_store *store, enum cl_op op, unsigned flags)
{
    int64_t until = 0;
    for (int slept = 0;; slept = 1) {
        uint32_t seen = 0;
        int rc = cl_enter_tables(store, flags);
        if (rc != CL_OK) {
            return rc;
        }
        rc = flags & CL_MAY_WAIT ? cl_lock_registry_awake(store, op, slept, &seen) : cl_lock_registry(store, op, 0);
        if (rc == CL_OK) {
            CL_KILL_POINT();
            if (store->nlater != 0) {
                do_what_was_put_off(store);
            }
            return CL_OK;
        }
        cl_error kept = *cl_last_error();
        cl_au32 *lock = store->open ? &store->control->lock : NULL;
        cl_leave_tables(store);
        *cl_last_error() = kept;
        if (rc != CL_AGAIN || !(flags & CL_MAY_WAIT) || lock == NULL) {
            return rc;
        }
        int64_t now = cl_monotonic_ns();
        if (until != 0 && now >= until) {
            return CL_AGAIN; /* the lock has changed hands all the time */
        }
        until = until != 0 ? until : now + CL_SLICE_NS;
        if (seen == 0) { /* damaged, and its repair waits for others: sleep, too */
            seen = atomic_load(lock);
        }
        if (cl_sleep(lock, seen, until, &store->spin) != CL_OK) {
            return CL_AGAIN;
        }
    }
}

void cl_unlock_registry(cl_store *store)
{
    if (store->ngoing != 0) {
        cl_finish_going(store, 0);
    }
    cl_set_op(store, CL_OP_NONE);
    /* Only if the word is this process's: if cl_finish_going could not take the lock again, it belongs to another
     * process and stays so. */
    cl_unlock_own(&store->control->lock, CL_LOCK_WORD(store->slot, store->incarnation));
}

void cl_leave(cl_store *store)
{
    cl_unlock_registry(store);
    cl_map *dropped = cl_maps_dropped(store);
    cl_leave_tables(store);
    cl_maps_discard(dropped);
}

/* Each word is right by itself; it is not promised that they agree, so the lock is not needed. */
int cl_peek(cl_store *store, cl_control *copy, unsigned flags)
{
    int rc = cl_enter_tables(store, flags);
    if (rc != CL_OK) {
        return rc;
    }
    rc = store->open ? cl_check_registry(store) : cl_fail(CL_CLOSED, 0, "the store is not open");
    if (rc == CL_OK) {
        *copy = *store->control;
    }
    cl_error kept = *cl_last_error();
    cl_leave_tables(store);
    *cl_last_error() = kept;
    return rc;
}

void cl_leave_keeping_error(cl_store *store)
{
    cl_error kept = *cl_last_error();
    cl_leave(store);
    *cl_last_error() = kept;
}
