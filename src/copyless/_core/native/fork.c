/* Fork: the child is an owner of its own, with a hold of its own on every block that it inherits.
 *
 * Promise: at every instant each inherited block is held by a living owner, whichever of the two processes is killed.
 *
 * What SIGKILL leaves of parent or child. The parent, in prepare, opens the liveness file anew for the child,
 * locks a byte, joins for it and gives it a copy of every hold. From then on a whole owner exists whose life is that
 * descriptor. fork() gives the descriptor to the child too; the parent closes its own.
 *
 *   killed in prepare         the descriptor goes with the process: reaped, copies and all
 *   fork fails                the parent closes it: the same
 *   parent killed after fork  the child holds both descriptors until it has closed the parent's: for that moment the
 *                             parent looks alive, then it is reaped; the child's holds were whole before the fork
 *   child killed at any step  its descriptor goes; if the parent has not closed its own yet, when it does
 *
 * The store's mutex is held from prepare to the end, so no thread allocates in between; the forking thread itself may
 * (a finaliser that runs there), and then allocates for both. */
#define _GNU_SOURCE
#include "store.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

static int prepare_child(cl_store *store)
{
    char live[40];
    snprintf(live, sizeof live, "live.%016llx", (unsigned long long)store->registry_id);
    store->fork_live_fd = openat(store->directory, live, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
    if (store->fork_live_fd < 0) {
        return cl_fail(CL_SYSTEM, errno, "opening %s for a forked child", live);
    }
    CL_KILL_POINT();
    uint32_t slot;
    int rc = cl_owner_take_slot(store, store->fork_live_fd, &slot);
    if (rc != CL_OK) {
        return rc;
    }
    store->fork_slot = slot + 1;
    cl_identity child = store->identity;
    child.pid = 0;
    child.start = 0;
    child.parent_pid = store->identity.pid;
    child.parent_start = store->identity.start;
    cl_owner_go_live(store, slot, &child);
    for (uint32_t m = 0; m < store->nmaps; m++) {
        cl_map *map = store->by_address[m];
        for (uint32_t i = 0; i < map->nblocks; i++) {
            cl_local_block *local = &map->blocks[i];
            if (local->hold != 0) {
                uint32_t hold;
                cl_txn txn = cl_begin(store->base);
                rc = cl_hold_take(store, &txn, CL_HOLD_OWNER, slot + 1, map->slot * CL_BLOCKS + i, &hold);
                if (rc != CL_OK) {
                    return rc;
                }
                cl_commit(&txn);
                local->fork_hold = hold + 1;
            }
        }
    }
    atomic_store_explicit(&store->owners[slot].op, CL_OP_NONE, memory_order_relaxed);
    return CL_OK;
}

int cl_fork_prepare(cl_store *store, unsigned flags)
{
    int rc = cl_enter(store, CL_OP_FORK, flags);
    if (rc != CL_OK) {
        return rc;
    }
    rc = prepare_child(store);
    atomic_store(&store->fork_thread, pthread_self());
    atomic_store_explicit(&store->forking, 1, memory_order_release);
    /* The registry is let go, the mutex is kept: only this process waits for the fork. */
    cl_leave(store);
    return rc;
}

static void end_fork(cl_store *store)
{
    store->fork_slot = 0;
    store->fork_live_fd = -1;
    atomic_store_explicit(&store->forking, 0, memory_order_release);
}

void cl_fork_parent(cl_store *store)
{
    uint32_t slot = store->fork_slot;
    if (store->fork_live_fd >= 0) {
        CL_KILL_POINT();
        close(store->fork_live_fd); /* closed, not unlocked: the child's copy keeps the lock */
        CL_KILL_POINT();
    }
    for (uint32_t i = 0; i < store->nmaps; i++) {
        for (uint32_t b = 0; b < store->by_address[i]->nblocks; b++) {
            store->by_address[i]->blocks[b].fork_hold = 0;
        }
    }
    if (slot != 0 && !cl_owner_byte_locked(store->live_fd, slot - 1)) {
        store->control->scanned_ns = 0; /* the fork failed, or the child is dead already: look soon */
    }
    end_fork(store);
    pthread_mutex_unlock(&store->mutex);
}

int cl_fork_child(cl_store *store, uint32_t pid, uint64_t start, uint32_t parent_pid, uint64_t parent_start)
{
    int ok = store->fork_slot != 0 && store->fork_live_fd >= 0;
    pthread_mutex_init(&store->mutex, NULL); /* the thread that held it is the parent's */
    CL_KILL_POINT();
    if (ok) {
        int parents = store->live_fd;
        store->live_fd = store->fork_live_fd;
        store->slot = store->fork_slot - 1;
        cl_owner *me = &store->owners[store->slot];
        store->incarnation = me->incarnation;
        store->identity.pid = pid;
        store->identity.start = start;
        store->identity.parent_pid = parent_pid;
        store->identity.parent_start = parent_start;
        me->pid = pid; /* our own slot, for display */
        me->start = start;
        for (uint32_t i = 0; i < store->nmaps; i++) {
            for (uint32_t b = 0; b < store->by_address[i]->nblocks; b++) {
                cl_local_block *local = &store->by_address[i]->blocks[b];
                local->hold = local->fork_hold;
                local->fork_hold = 0;
            }
        }
        store->nonce = cl_random64();
        CL_KILL_POINT();
        close(parents); /* last: until here a dead parent still looks alive, and keeps what we had not yet made ours */
        CL_KILL_POINT();
    } else {
        store->open = 0;
    }
    end_fork(store);
    return ok ? CL_OK : CL_CLOSED;
}
