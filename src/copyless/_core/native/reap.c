/* Reaping: takes back what dead processes held.
 *
 * Promise: after a forced scan there is no hold of a dead owner that none of its forked children uses, no unfinished
 * segment of a dead owner, and no message whose time or family has ended. Any process may scan at any time, and may be
 * killed during the scan: every step is a transaction, the owner's slot is freed last, and the next scan continues from
 * there.
 *
 * An owner that has ended goes through stages, which are recorded in its slot: its unfinished SEGMENTS, its own HOLDS,
 * its ESTATE, DONE. `sweep` is the next hold. A living owner's estate is swept again when an heir has ended. The
 * registry's lock is released after SWEEP_HOLDS holds, so that the end of a process that held very many does not delay
 * others. All other passes over a table are done in steps, too: a forced scan releases the lock between the steps; an
 * ordinary scan sweeps for ORDINARY_NS, does one step of each other pass, and leaves the next steps to later scans
 * (each process has its own positions, which are hints).
 *
 * A scan costs one system call per owner. An ordinary call scans if the last scan, by any process, was more than 10 ms
 * ago and more than a hundred times its own cost ago. Joining, publishing, looking up a name, a full mount and `reap`
 * always scan. */
#define _GNU_SOURCE
#include "store.h"

#include <time.h>

#define SWEEP_HOLDS 32u /* holds per step: some tens of microseconds when they are not cached */
#define ORDINARY_NS 200000 /* the longest time that an ordinary call sweeps at once: a program may make only one call */
#define LOOK_SEGMENTS 4u /* segment slots that together cost as much to sweep as a hold */
#define LOOK_HOLDS 2048u /* holds of others per step, of which only the kind is read */
#define LOOK_OWNERS 32u /* owners per step: each costs a system call of up to a microsecond */

/* Finish the segments that an ended owner was making or giving back. The files are removed in cl_finish_going, without
 * the lock. `look` is the progress: a place in the table, advanced after the work there is done. 1: done, 0: more than
 * fits in one step, 2: this process cannot do it. */
static int finish_segments(cl_store *store, uint32_t slot, uint32_t *budget, cl_reaped *reaped)
{
    cl_owner *o = &store->owners[slot];
    for (uint32_t i; (i = o->look) < store->control->segments_high && i < CL_MAX_SEGMENTS; o->look = i + 1) {
        if (i % LOOK_SEGMENTS == LOOK_SEGMENTS - 1 && --*budget == 0) {
            o->look = i;
            ++*budget;
            return 0;
        }
        cl_segment *s = &store->segments[i];
        int going = s->state == CL_SEGMENT_GOING && !CL_MUTANT(reap_leaves_going);
        int making = s->state == CL_SEGMENT_MAKING && !CL_MUTANT(reap_leaves_making);
        if ((!making && !going) || s->owner != slot + 1) {
            continue;
        }
        if (store->slot == CL_CARETAKER) {
            return 2; /* the caretaker has no entry by which it could be reaped, so it takes nothing over */
        }
        if (store->ngoing == CL_GOING) {
            return 0;
        }
        if (s->state == CL_SEGMENT_MAKING) { /* none of its blocks is on a list yet */
            cl_txn txn = cl_begin(store->base);
            cl_set32(&txn, &s->nblocks, 0);
            cl_set32(&txn, &s->owner, store->slot + 1);
            cl_set32(&txn, &s->state, CL_SEGMENT_GOING);
            cl_commit(&txn);
        } else {
            int rc = cl_segment_retire(store, i);
            if (rc != CL_OK) {
                return rc;
            }
        }
        store->going[store->ngoing++] = i;
        reaped->segments++;
    }
    o->look = 0; /* it is checked once more before its slot is freed */
    return 1;
}

/* Check the next hold of the owner's sweep: keep it for the owner's heirs, or drop it. */
static int sweep_hold(cl_store *store, cl_owner *o, int lineage, cl_reaped *reaped)
{
    uint32_t index = o->sweep - 1;
    if (index >= store->control->holds_high || index >= CL_MAX_HOLDS ||
        store->holds[index].owner != (uint32_t)(o - store->owners) + 1) {
        return cl_fail(CL_CORRUPT, 0, "registry: a list of holds has the invalid entry %u", o->sweep);
    }
    if (!CL_MUTANT(reap_takes_from_heirs) && cl_is_used_by_heirs(store, index, UINT32_MAX, lineage)) {
        o->sweep = store->holds[index].next; /* only a place: from the old one a hold is checked twice */
        return CL_OK;
    }
    reaped->blocks++;
    return cl_hold_drop(store, index); /* which advances the sweep */
}

static void next_stage(cl_store *store, cl_owner *o, uint32_t stage)
{
    cl_txn txn = cl_begin(store->base);
    cl_set32(&txn, &o->stage, stage);
    cl_set32(&txn, &o->sweep, stage == CL_STAGE_HOLDS ? o->first_hold : stage == CL_STAGE_ESTATE ? o->first_estate : 0);
    cl_commit(&txn);
}

/* Take back, within the budget, what an ended owner held, and what a living owner left to heirs that no longer use
 * it. */
static int sweep_owner(cl_store *store, uint32_t slot, uint32_t *budget, cl_reaped *reaped)
{
    cl_owner *o = &store->owners[slot];
    int gone = o->state == CL_OWNER_GONE, rc = CL_OK;
    if (gone && o->stage == CL_STAGE_SEGMENTS) {
        rc = finish_segments(store, slot, budget, reaped);
        if (rc != 1) {
            *budget = rc == 0 ? 0 : *budget;
            return rc < 0 ? rc : CL_OK;
        }
        next_stage(store, o, CL_STAGE_HOLDS);
    }
    /* A copy of its memory that could not be registered may use everything that is as old as that fork. */
    int lineage = o->unregistered != 0 && (!gone || cl_lineage_lives(store, slot));
    if (gone && o->unregistered != 0 && !lineage) {
        cl_look_above(store, slot);
        cl_txn txn = cl_begin(store->base);
        cl_set32(&txn, &o->unregistered, 0); /* it belongs to a dead owner: no other process writes it */
        cl_set32(&txn, &o->stage, CL_STAGE_HOLDS);
        cl_set32(&txn, &o->sweep, o->first_hold);
        cl_commit(&txn);
    }
    rc = CL_OK;
    while (rc == CL_OK && o->stage != CL_STAGE_DONE && *budget != 0) {
        if (o->sweep != 0) {
            --*budget;
            rc = sweep_hold(store, o, lineage, reaped);
        } else {
            next_stage(store, o, o->stage == CL_STAGE_HOLDS ? CL_STAGE_ESTATE : CL_STAGE_DONE);
        }
    }
    if (rc == CL_OK && gone && !lineage && o->stage == CL_STAGE_DONE && o->first_hold == 0 && o->first_estate == 0 &&
        slot != store->slot && cl_owner_life(store, slot, o->incarnation) != CL_ALIVE) {
        rc = finish_segments(store, slot, budget,
                             reaped); /* again: a leaving process gives segments back after its slot is gone */
        if (rc == 1) {
            rc = cl_owner_free(store, slot);
        } else if (rc >= 0) {
            *budget = rc == 0 ? 0 : *budget;
            rc = CL_OK;
        }
    }
    return rc;
}

/* One step of the sweep for all owners; `sweeping` stays set while there is more. */
static int sweep_owners(cl_store *store, uint32_t budget, cl_reaped *reaped)
{
    cl_control *c = store->control;
    int rc = CL_OK, again = 0;
    c->sweeping = 0; /* a hint: set again by any process that finds more to do, and by the next check of the owners */
    for (uint32_t i = 0; rc == CL_OK && i < c->owners_high && i < CL_CARETAKER; i++) {
        const cl_owner *o = &store->owners[i];
        if (o->state == CL_OWNER_GONE || (o->state == CL_OWNER_LIVE && o->stage == CL_STAGE_ESTATE)) {
            rc = sweep_owner(store, i, &budget, reaped);
            again |= o->state != CL_OWNER_FREE && o->stage != CL_STAGE_DONE && o->stage != CL_STAGE_SEGMENTS;
            if (budget == 0) {
                again = 1;
                break;
            }
        }
    }
    if (rc != CL_OK || again) {
        c->sweeping = 1;
    }
    return rc;
}

/* The families of the registry's owners. Which of the owners have died is found out first, by checking the owners. */
static uint32_t families_of(const cl_store *store, uint64_t *families)
{
    const cl_control *c = store->control;
    uint32_t n = 0;
    for (uint32_t i = 0; i < c->owners_high && i < CL_CARETAKER; i++) {
        const cl_owner *o = &store->owners[i];
        if (o->state == CL_OWNER_LIVE && !(i == store->slot && o->leaving) &&
            (n == 0 || families[n - 1] != o->family)) {
            families[n++] = o->family;
        }
    }
    return n;
}

/* Drop messages whose time or family has ended, and holds of names whose removal was interrupted: from one hold on, so
 * many holds. */
static int reap_messages(cl_store *store, uint32_t *from, uint32_t n, cl_reaped *reaped)
{
    cl_control *c = store->control;
    uint64_t families[CL_MAX_OWNERS];
    uint32_t nfamilies = families_of(store, families);
    int64_t now = cl_monotonic_ns();
    uint32_t asked_pid = 0;
    uint64_t asked_start = 0;
    int asked_alive = 0, rc = CL_OK;
    for (; rc == CL_OK && n != 0 && *from < c->holds_high && *from < CL_MAX_HOLDS; ++*from, n--) {
        uint32_t i = *from;
        const cl_hold *h = &store->holds[i];
        cl_block *block;
        int over = 0, expired = 0;
        if (h->kind != CL_HOLD_MESSAGE && h->kind != CL_HOLD_FAMILY && h->kind != CL_HOLD_PERSIST) {
            continue;
        }
        rc = cl_block_checked(store, h->block - 1, &block);
        if (rc != CL_OK) {
            break;
        }
        if (h->kind != CL_HOLD_MESSAGE && block->name == 0) {
            over = 1; /* its name was removed by a process that was killed before it could drop this hold */
        } else if (h->kind == CL_HOLD_MESSAGE && now >= h->deadline_ns && !CL_MUTANT(reap_messages_never_end)) {
            over = expired = 1;
        } else if (h->kind != CL_HOLD_PERSIST) {
            int alive = 0;
            for (uint32_t f = 0; f < nfamilies && !alive; f++) {
                alive = families[f] == h->family;
            }
            if (!alive && h->parent_pid != 0) {
                if (h->pid_namespace != (uint32_t)store->identity.pid_namespace) {
                    alive = 1; /* its process numbers mean nothing here: left to its own container, or to its time */
                } else {
                    if (h->parent_pid != asked_pid ||
                        (h->parent_start != asked_start && !CL_MUTANT(reap_parents_of_one_number))) {
                        asked_pid = h->parent_pid;
                        asked_start = h->parent_start;
                        asked_alive = cl_process_lives(asked_pid, h->parent_start);
                    }
                    alive = asked_alive;
                }
            }
            over = !alive;
        }
        if (over) {
            rc = cl_hold_drop(store, i);
            reaped->messages++;
            reaped->expired += (uint32_t)expired;
        }
    }
    return rc;
}

static int is_due(const cl_control *c, int64_t now)
{
    uint64_t pause = c->scan_cost_ns > 100000 ? c->scan_cost_ns * 100 : 10000000;
    if (pause > 1000000000) {
        pause = 1000000000;
    }
    return (uint64_t)now - c->scanned_ns >= pause;
}

/* Find the owners that have ended since the last check: from one slot on, so many owners that live as far as is
 * known. */
static void look_at_owners(cl_store *store, uint32_t *from, uint32_t n, cl_reaped *reaped)
{
    cl_control *c = store->control;
    for (; n != 0 && *from < c->owners_high && *from < CL_CARETAKER; ++*from) {
        uint32_t i = *from;
        const cl_owner *o = &store->owners[i];
        if (o->state == CL_OWNER_FREE) {
            continue;
        }
        c->sweeping |= o->state == CL_OWNER_LIVE && o->stage == CL_STAGE_ESTATE;
        if (o->state == CL_OWNER_GONE) { /* its unregistered copies may have ended, and its slot may be free now */
            c->sweeping |=
                o->unregistered != 0 || o->stage != CL_STAGE_DONE || (o->first_hold == 0 && o->first_estate == 0);
            continue;
        }
        n--;
        if (i != store->slot && cl_owner_life(store, i, o->incarnation) != CL_ALIVE) {
            c->deaths++;
            c->deaths_in_op += atomic_load_explicit(&store->owners[i].op, memory_order_relaxed) != CL_OP_NONE;
            cl_news_of_death(store, i);
            cl_owner_end(store, i);
            reaped->owners++;
        }
    }
}

/* Release the lock between two steps. Spinning waiters get it in a microsecond, sleeping ones must be woken first.
 * CL_AGAIN: the lock could not be taken again. */
static int breathe(cl_store *store)
{
    struct timespec nap = {.tv_nsec = 20000};
    int sleepers = (atomic_load_explicit(&store->control->lock, memory_order_relaxed) & CL_LOCK_SLEEP) != 0;
    cl_unlock_registry(store);
    if (sleepers) {
        nanosleep(&nap, NULL);
    } else {
        cl_spin none = {0};
        cl_poll(&store->control->lock, 0, 1000, &none);
    }
    return cl_lock_registry(store, CL_OP_REAP, cl_monotonic_ns() + CL_SLICE_NS);
}

/* Called between two steps of a forced scan. CL_AGAIN: the lock belongs to another process now. */
static int pause_scan(cl_store *store, unsigned flags, int64_t *others)
{
    if (flags & CL_SCAN_KEEP_LOCK) {
        cl_finish_going(store, 1);
        return CL_OK;
    }
    int64_t begun = cl_monotonic_ns();
    int rc = breathe(store);
    *others += cl_monotonic_ns() - begun;
    return rc;
}

/* Check the owners: all of them, or only the next ones. */
static int scan_owners(cl_store *store, unsigned flags, cl_reaped *reaped, int64_t *others)
{
    uint32_t from = flags & CL_SCAN_FORCE ? 0 : store->look_at;
    for (;;) {
        look_at_owners(store, &from, LOOK_OWNERS, reaped);
        int end = from >= store->control->owners_high || from >= CL_CARETAKER;
        if (end || !(flags & CL_SCAN_FORCE)) {
            store->look_at = end ? 0 : from;
            return CL_OK;
        }
        int rc = pause_scan(store, flags, others);
        if (rc != CL_OK) {
            return rc;
        }
    }
}

static int scan_messages(cl_store *store, unsigned flags, cl_reaped *reaped, int64_t *others)
{
    cl_control *c = store->control;
    uint32_t from = flags & CL_SCAN_FORCE ? 0 : store->message_at;
    while (c->messages != 0 || c->persistent != 0) {
        int rc = reap_messages(store, &from, LOOK_HOLDS, reaped);
        int end = from >= c->holds_high;
        if (rc != CL_OK || end || !(flags & CL_SCAN_FORCE)) {
            store->message_at = end ? 0 : from;
            return rc;
        }
        rc = pause_scan(store, flags, others);
        if (rc != CL_OK) {
            return rc;
        }
    }
    return CL_OK;
}

static int scan(cl_store *store, unsigned flags, cl_reaped *reaped)
{
    cl_control *c = store->control;
    int64_t now = cl_monotonic_ns(), others = 0; /* time in which others had the lock, or could have had it */
    int timely = is_due(c, now), due = (flags & CL_SCAN_FORCE) || timely, rc = CL_OK;
    if (!due && !c->sweeping) {
        return CL_OK;
    }
    uint32_t ended = reaped->owners;
    if (due) {
        rc = scan_owners(store, flags, reaped, &others);
    }
    int64_t swept = cl_monotonic_ns(),
            paused = others; /* done in steps, with the lock released between: not part of the cost of a scan */
    while (rc == CL_OK && c->sweeping) {
        rc = sweep_owners(store, SWEEP_HOLDS, reaped);
        if (rc != CL_OK || !c->sweeping) {
            break;
        }
        if (flags & CL_SCAN_FORCE) {
            rc = pause_scan(store, flags, &paused);
        } else if (cl_monotonic_ns() - swept > ORDINARY_NS || store->ngoing >= CL_GOING / 2) {
            break;
        }
    }
    others += cl_monotonic_ns() - swept;
    if (rc == CL_AGAIN || !due) {
        return rc;
    }
    /* A lookup of a name need not check all messages each time. */
    if (rc == CL_OK && (!(flags & CL_SCAN_FOR_NAME) || timely || reaped->owners != ended)) {
        rc = scan_messages(store, flags, reaped, &others);
        if (rc == CL_AGAIN) {
            return rc;
        }
    }
    if (rc == CL_OK && store->settings.idle_ns > 0 && store->slot != CL_CARETAKER) {
        uint32_t steps = CL_TRIM_STEPS;
        rc = cl_trim_locked(store, store->settings.warm_limit, now - store->settings.idle_ns, NULL, &steps);
    }
    cl_map_prune(store);
    c->scanned_ns = (uint64_t)now;
    c->scan_cost_ns = (uint64_t)(cl_monotonic_ns() - now - others);
    return rc;
}

int cl_scan(cl_store *store, unsigned flags, cl_reaped *reaped)
{
    cl_reaped counted = {0};
    cl_reaped *all = reaped != NULL ? reaped : &counted;
    cl_reaped before = *all;
    int rc = scan(store, flags, all);
    cl_news_add(store, &before, all);
    return rc;
}

int cl_reap(cl_store *store, unsigned flags, cl_reaped *reaped)
{
    cl_reaped counted = {0};
    int rc = cl_enter(store, CL_OP_REAP, flags);
    if (rc != CL_OK) {
        return rc;
    }
    if (reaped != NULL) {
        counted = store->joined;
        store->joined = (cl_reaped){0};
    }
    rc = cl_scan(store, CL_SCAN_FORCE, &counted);
    cl_leave_keeping_error(store);
    if (rc == CL_OK && (flags & CL_MAY_WAIT)) {
        cl_sweep(store);
    }
    if (reaped != NULL) {
        *reaped = counted;
    }
    return rc;
}
