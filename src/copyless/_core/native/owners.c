/* Owners: which processes use the registry, and which of them live.
 *
 * Promise: an owner is alive exactly as long as byte `slot` of the liveness file is locked. The kernel drops the lock
 * with the last descriptor of the opening that took it, so at the owner's end however it ends. The file is opened once
 * per owner, never mapped and never passed on through exec.
 *
 * Joining, and what SIGKILL leaves: (1) lock a byte whose slot is free: nothing; (2) mark it `joining`: the reaper finds
 * the byte unlocked and frees the slot; (3) one transaction makes it `live`: reaped like any owner.
 *
 * Fork, and what SIGKILL leaves of parent or child. The parent, in prepare, opens the liveness file anew for the child,
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
#include <string.h>
#include <unistd.h>

static struct flock byte_of(uint32_t slot, short type)
{
    return (struct flock){.l_type = type, .l_whence = SEEK_SET, .l_start = slot, .l_len = 1};
}

static int byte_locked(int fd, uint32_t slot)
{
    struct flock fl = byte_of(slot, F_WRLCK);
    return fcntl(fd, F_OFD_GETLK, &fl) != 0 || fl.l_type != F_UNLCK; /* in doubt it lives */
}

cl_life cl_owner_life(cl_store *store, uint32_t slot, uint32_t incarnation)
{
    if (slot >= CL_MAX_OWNERS - 1 || slot >= store->control->owners_high) {
        return CL_NOBODY;
    }
    /* The incarnation alone tells: an owner that leaves frees its slot while it still holds the registry's lock. */
    const cl_owner *o = &store->owners[slot];
    if (*(const volatile uint32_t *)&o->state > CL_OWNER_LIVE ||
        ((*(const volatile uint32_t *)&o->incarnation ^ incarnation) & 0x7ffffu) != 0) {
        return CL_NOBODY;
    }
    if (slot == store->slot || slot + 1 == store->fork_slot) {
        return CL_ALIVE; /* our own descriptor does not conflict with itself */
    }
    return byte_locked(store->live_fd, slot) ? CL_ALIVE : CL_DEAD;
}

/* Win a byte of the liveness file whose slot is free, and mark the slot. */
static int take_slot(cl_store *store, int live_fd, uint32_t *slot)
{
    uint32_t high = store->control->owners_high;
    for (uint32_t i = 0; i < high && i < CL_MAX_OWNERS - 1; i++) {
        cl_owner *o = &store->owners[i];
        if (*(volatile uint32_t *)&o->state != CL_OWNER_FREE) {
            continue;
        }
        struct flock fl = byte_of(i, F_WRLCK);
        if (fcntl(live_fd, F_OFD_SETLK, &fl) != 0) {
            if (errno == EAGAIN || errno == EACCES) {
                continue; /* somebody is joining there, or an unfinished exec still holds a dead owner's descriptor */
            }
            return cl_fail(CL_SYSTEM, errno, "locking the liveness file");
        }
        if (*(volatile uint32_t *)&o->state != CL_OWNER_FREE) {
            fl = byte_of(i, F_UNLCK);
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
static void go_live(cl_store *store, uint32_t slot, const cl_identity *who)
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
    int rc = take_slot(store, store->live_fd, &slot);
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
        go_live(store, slot, &store->identity);
        cl_scan(store, CL_SCAN_FORCE, NULL);
    }
    cl_leave(store);
    return rc;
}

/* ---- fork */

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
    int rc = take_slot(store, store->fork_live_fd, &slot);
    if (rc != CL_OK) {
        return rc;
    }
    store->fork_slot = slot + 1;
    cl_identity child = store->identity;
    child.pid = 0;
    child.start = 0;
    child.parent_pid = store->identity.pid;
    child.parent_start = store->identity.start;
    go_live(store, slot, &child);
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
    if (slot != 0 && !byte_locked(store->live_fd, slot - 1)) {
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
