/* Owners: how a process starts to use the registry.
 *
 * Promise: a slot belongs to one process at a time. A process that joins changes no word of the registry before it has
 * the lock.
 *
 * States of a slot, and who moves them:
 *
 *   free --(byte won, then one transaction under the registry's lock)--> live
 *   live --(its process ended, or leaves: one transaction)--> gone --(nothing names it any more)--> free
 *
 * `gone`: the process has ended or is about to end. What it held is being taken back, or kept for its forked children
 * (estate.c). Another process frees the slot while it holds the registry's lock: so no lock word names the slot any
 * more.
 *
 * Joining, and what SIGKILL leaves. (1) Lock a byte whose slot is free (liveness.c): nothing is written. (2) Take the
 * registry's lock under the name (slot, incarnation): if the process is killed there, the lock's word names a slot
 * whose byte is free, and the next process takes the lock over, also if it has won the same slot. (3) One transaction
 * makes the slot `live`. The incarnation was written by the transaction that freed the slot, so replaying a dead
 * process's journal cannot take the slot away from a process that has joined since.
 *
 * If all slots are taken, perhaps by dead processes, a process that joins enters as the caretaker: slot CL_CARETAKER,
 * which has a byte but no entry. It reaps, widens the table, and tries again. */
#define _GNU_SOURCE
#include "store.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define SCAN_CHEAP_NS 1000000u
#define JOIN_NS ((int64_t)20000000000) /* how long a joining process tries while all slots are taken */

/* Lock the byte of a free slot, through this descriptor. */
static int take_slot(cl_store *store, int fd, uint32_t *slot)
{
    uint32_t high = store->control->owners_high;
    for (uint32_t i = 0; i < high && i < CL_CARETAKER; i++) {
        /* acquire, pairs with "slot freed": the incarnation that goes with it is there too */
        cl_au32 *state = (cl_au32 *)&store->owners[i].state;
        if (atomic_load_explicit(state, memory_order_acquire) != CL_OWNER_FREE) {
            continue;
        }
        int rc = cl_byte_lock(fd, i);
        if (rc == CL_OK && (CL_MUTANT(owners_slot_looked_at_once) ||
                            atomic_load_explicit(state, memory_order_acquire) == CL_OWNER_FREE)) {
            CL_KILL_POINT();
            *slot = i;
            return CL_OK;
        }
        if (rc == CL_OK) { /* another process had it, and joined, between the two checks */
            cl_byte_unlock(fd, i);
        } else if (rc != CL_AGAIN) {
            return rc;
        }
    }
    return cl_fail(CL_TABLE_FULL, 0, "%u processes use this user's shared memory, or have just ended", high);
}

/* Make room for the next owners, so that joining never has to grow a table without holding the lock. Under the lock. */
static void widen(cl_store *store)
{
    cl_control *c = store->control;
    uint32_t spare = 0;
    for (uint32_t i = 0; i < c->owners_high && spare < 32; i++) {
        spare += store->owners[i].state == CL_OWNER_FREE;
    }
    for (uint32_t n = 256; n >= 16 && spare < 32; n /= 4) { /* on a nearly full mount a small step may still succeed */
        if (c->owners_high + n <= CL_MAX_OWNERS &&
            cl_reserve(store, CL_OFF_OWNERS + (uint64_t)c->owners_high * sizeof(cl_owner), n * sizeof(cl_owner)) ==
                CL_OK) {
            for (uint32_t i = c->owners_high; i < c->owners_high + n; i++) {
                store->owners[i].incarnation = 1; /* never 0: a lock word that is 1 by accident must name no owner */
            }
            cl_txn txn = cl_begin(store->base);
            cl_set32(&txn, &c->owners_high, c->owners_high + n);
            cl_commit(&txn);
            return;
        }
    }
}

/* Fill a free slot whose byte this process has locked, and make it live. Under the lock. `heir_of`: slot + 1 of the
 * owner whose forked child it is, or 0. */
static void go_live(cl_store *store, uint32_t slot, const cl_identity *who, uint32_t heir_of, uint32_t heir_epoch)
{
    cl_owner *o = &store->owners[slot];
    o->op = CL_OP_JOIN;
    o->pid = who->pid;
    o->start = who->start;
    o->pid_namespace = who->pid_namespace;
    o->family = who->family;
    o->parent_pid = who->parent_pid;
    o->parent_start = who->parent_start;
    o->leaving = 0;
    o->since_ns = cl_realtime_ns();
    memcpy(o->command, who->command, sizeof o->command);
    o->epoch = 1;
    o->first_hold = o->first_estate = o->sweep = o->children = o->unregistered = 0;
    o->stage = CL_STAGE_SEGMENTS;
    o->look = 0;
    o->heir_of = heir_of;
    o->heir_epoch = heir_epoch;
    memset(o->marks, 0, sizeof o->marks);
    atomic_store_explicit(&o->heard, 0, memory_order_relaxed); /* the bell keeps its count */
    CL_KILL_POINT();
    cl_txn txn = cl_begin(store->base);
    cl_set32(&txn, &o->state, CL_OWNER_LIVE);
    if (heir_of != 0) {
        cl_owner *parent = &store->owners[heir_of - 1];
        cl_set32(&txn, &parent->children, parent->children + 1);
        cl_marks_share(store, &txn, parent, o);
    }
    cl_commit(&txn);
    widen(store);
}

/* Enter as the caretaker to make room among the slots. */
static int make_room(cl_store *store, int fd)
{
    int rc = cl_byte_lock(fd, CL_CARETAKER);
    if (rc != CL_OK) {
        return rc; /* CL_AGAIN: another joining process does it now */
    }
    store->slot = CL_CARETAKER;
    store->incarnation = 1;
    rc = cl_enter(store, CL_OP_JOIN, CL_MAY_WAIT);
    if (rc == CL_OK) {
        rc = cl_scan(store, CL_SCAN_FORCE, &store->joined);
        if (rc != CL_AGAIN) {
            widen(store);
        }
        cl_leave(store);
    }
    cl_byte_unlock(fd, CL_CARETAKER);
    store->slot = CL_MAX_OWNERS;
    return rc;
}

/* Get a slot; wait while so many processes start at once that the table must grow between. */
static int win_slot(cl_store *store, int fd, uint32_t *slot)
{
    int64_t deadline = cl_monotonic_ns() + JOIN_NS;
    for (;;) {
        int rc = take_slot(store, fd, slot);
        if (rc == CL_TABLE_FULL && (store->control->removed || cl_is_excluded(fd))) {
            return CL_RETRY; /* no byte could be locked: the registry is being made or removed */
        }
        if (rc != CL_TABLE_FULL || cl_monotonic_ns() >= deadline) {
            return rc;
        }
        rc = make_room(store, fd);
        if (rc != CL_OK && rc != CL_AGAIN) {
            return rc;
        }
        struct timespec nap = {.tv_nsec = 5000000};
        nanosleep(&nap, NULL);
    }
}

/* Get a slot and lock its byte. */
static int hold_slot(cl_store *store)
{
    store->slot = CL_MAX_OWNERS; /* no owner yet */
    int fd = cl_live_open(store);
    if (fd < 0) {
        return errno == ENOENT ? CL_RETRY : cl_fail(CL_SYSTEM, errno, "opening the liveness file");
    }
    uint32_t slot;
    int rc = win_slot(store, fd, &slot);
    if (rc == CL_OK) {
        rc = cl_life_map(fd, &store->life);
    }
    if (rc == CL_OK && cl_advice_is_ignored(store->life)) {
        store->weak_liveness = 1;
        munmap(store->life, CL_PAGE);
        store->life = NULL;
        store->life_fd = fd;
        fd = -1;
    }
    if (rc == CL_OK) {
        rc = cl_life_keep(store);
    }
    if (fd >= 0) {
        close(fd);
    }
    if (rc == CL_OK) {
        store->slot = slot;
        store->incarnation = store->owners[slot].incarnation;
    }
    return rc;
}

/* One try. CL_AGAIN: the slot belongs to another process. CL_TIMEOUT: the registry's lock could not be taken for a
 * slice. */
static int join_once(cl_store *store)
{
    int rc = hold_slot(store);
    if (rc != CL_OK) {
        return rc;
    }
    store->joining = 1;
    rc = cl_enter(store, CL_OP_JOIN, CL_MAY_WAIT);
    store->joining = 0;
    if (rc != CL_OK) {
        return rc == CL_AGAIN ? CL_TIMEOUT : rc;
    }
    if (store->control->removed && !CL_MUTANT(owners_join_ignores_removed)) {
        rc = CL_RETRY;
    } else if (store->owners[store->slot].state != CL_OWNER_FREE) {
        rc = CL_AGAIN; /* a process that was killed while joining wrote this: it must be reaped first */
    } else {
        go_live(store, store->slot, &store->identity, 0, 0);
        /* If hundreds start at once, each need not check all the others. */
        rc = cl_scan(store, store->control->scan_cost_ns < SCAN_CHEAP_NS ? CL_SCAN_FORCE : 0, &store->joined);
        rc = rc == CL_AGAIN ? CL_OK : rc; /* another process continues the scan: this one has joined */
    }
    cl_leave_keeping_error(store);
    return rc;
}

int cl_join(cl_store *store)
{
    int rc;
    do {
        rc = join_once(store);
        if (rc != CL_OK) {
            cl_life_end(store);
        }
    } while (rc == CL_AGAIN);
    if (rc == CL_OK) {
        cl_lineage_begin(store); /* the lack of these two is an error only for a fork that has nothing else: fork.c */
        cl_spare_opening(store);
    }
    return rc;
}

/* ---- for a forked child; under the lock */

int cl_join_child(cl_store *store, void **life, uint32_t *slot)
{
    int fd = cl_live_open(store);
    if (fd < 0 && store->spare_fd >= 0 && cl_is_file(store->spare_fd, store->live_device, store->live_inode)) {
        fd = store->spare_fd;
        store->spare_fd = -1;
    }
    if (fd < 0) {
        return cl_fail(CL_SYSTEM, errno, "opening the liveness file for a forked child");
    }
    CL_KILL_POINT();
    int rc = take_slot(store, fd, slot);
    if (rc == CL_OK) {
        rc = cl_life_map(fd, life);
    }
    if (rc == CL_OK) {
        cl_identity child = store->identity;
        child.pid = 0;
        child.start = 0;
        child.parent_pid = store->identity.pid;
        child.parent_start = store->identity.start;
        uint32_t parent = CL_MUTANT(fork_child_inherits_nothing) ? 0 : store->slot + 1;
        go_live(store, *slot, &child, parent, store->owners[store->slot].epoch);
    }
    if (rc == CL_OK && store->weak_liveness) {
        store->fork_life_fd = fd; /* there the descriptor keeps the byte locked */
    } else {
        close(fd);
    }
    return rc;
}
