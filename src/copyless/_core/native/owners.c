/* Owners: how a process joins the registry. Which owners live: enter.c.
 *
 * Promise: a process that has joined is `live` in a slot whose byte of the liveness file it has locked. While it lives, no
 * other process changes that slot.
 *
 * Joining, and what SIGKILL leaves: (1) lock a byte whose slot is free: nothing; (2) mark it `joining`: the reaper finds
 * the byte unlocked and frees the slot; (3) one transaction makes it `live`: reaped like any owner. */
#define _GNU_SOURCE
#include "store.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>

/* Win a byte of the liveness file whose slot is free, and mark the slot. */
int cl_owner_take_slot(cl_store *store, int live_fd, uint32_t *slot)
{
    uint32_t high = store->control->owners_high;
    for (uint32_t i = 0; i < high && i < CL_MAX_OWNERS - 1; i++) {
        cl_owner *o = &store->owners[i];
        if (*(volatile uint32_t *)&o->state != CL_OWNER_FREE) {
            continue;
        }
        struct flock fl = cl_owner_byte(i, F_WRLCK);
        if (fcntl(live_fd, F_OFD_SETLK, &fl) != 0) {
            if (errno == EAGAIN || errno == EACCES) {
                continue; /* somebody is joining there, or an unfinished exec still holds a dead owner's descriptor */
            }
            return cl_fail(CL_SYSTEM, errno, "locking the liveness file");
        }
        if (*(volatile uint32_t *)&o->state != CL_OWNER_FREE) {
            fl = cl_owner_byte(i, F_UNLCK);
            fcntl(live_fd, F_OFD_SETLK, &fl);
            continue;
        }
        CL_KILL_POINT();
        o->incarnation++; /* the byte is ours: nobody else writes this slot while it is free */
        if ((o->incarnation & 0x7ffffu) == 0) {
            o->incarnation++;
        }
        atomic_store_explicit(&o->op, CL_OP_JOIN, memory_order_relaxed);
        atomic_thread_fence(memory_order_release);
        *(volatile uint32_t *)&o->state = CL_OWNER_JOINING;
        CL_KILL_POINT();
        *slot = i;
        return CL_OK;
    }
    return cl_fail(CL_TABLE_FULL, 0, "all %u owner slots are taken", high);
}

/* Room for the next ones, so that joining never has to grow a table without holding the lock. Under the lock. */
static void widen(cl_store *store)
{
    cl_control *c = store->control;
    uint32_t spare = 0;
    for (uint32_t i = 0; i < c->owners_high && spare < 32; i++) {
        spare += store->owners[i].state == CL_OWNER_FREE;
    }
    if (spare < 32 && c->owners_high + 256 <= CL_MAX_OWNERS &&
        cl_reserve(store, CL_OFF_OWNERS + (uint64_t)c->owners_high * sizeof(cl_owner), 256 * sizeof(cl_owner)) ==
            CL_OK) {
        cl_txn txn = cl_begin(store->base);
        cl_set32(&txn, &c->owners_high, c->owners_high + 256);
        cl_commit(&txn);
    }
}

/* Fill a slot that is `joining` and ours, and make it live. Under the lock. */
void cl_owner_go_live(cl_store *store, uint32_t slot, const cl_identity *who)
{
    cl_owner *o = &store->owners[slot];
    o->pid = who->pid;
    o->start = who->start;
    o->pid_namespace = who->pid_namespace;
    o->family = who->family;
    o->parent_pid = who->parent_pid;
    o->parent_start = who->parent_start;
    o->leaving = 0;
    o->since_ns = cl_realtime_ns();
    memcpy(o->command, who->command, sizeof o->command);
    CL_KILL_POINT();
    cl_txn txn = cl_begin(store->base);
    cl_set32(&txn, &o->state, CL_OWNER_LIVE);
    cl_commit(&txn);
    widen(store);
}

int cl_join(cl_store *store)
{
    store->slot = CL_MAX_OWNERS; /* nobody yet */
    uint32_t slot;
    int rc = cl_owner_take_slot(store, store->live_fd, &slot);
    if (rc != CL_OK) {
        return rc;
    }
    store->slot = slot;
    store->incarnation = store->owners[slot].incarnation;
    while ((rc = cl_enter(store, CL_OP_JOIN, CL_MAY_WAIT)) == CL_AGAIN) {
    }
    if (rc != CL_OK) {
        return rc;
    }
    if (store->control->removed) {
        rc = CL_RETRY;
    } else {
        cl_owner_go_live(store, slot, &store->identity);
        cl_scan(store, CL_SCAN_FORCE, NULL);
    }
    cl_leave(store);
    return rc;
}
