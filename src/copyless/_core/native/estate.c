/* Estates: what a forked child inherits, without any copying.
 *
 * Promise: a block that a process held at a fork lives until that process and every heir of that fork have released it
 * or died. When the last of them does so, the block is free at once. The fork writes one record; it writes nothing per
 * block.
 *
 * Each owner has an epoch, a number that grows with each of its forks. A hold records the epoch in which it was taken
 * (`from`). A forked child is one record: the heir of owner P, of all that P held in epoch e and before. The child also
 * inherits, through its parent, what the parent had inherited. So the records form a tree, and the path from an heir up
 * to a hold's owner shows whether the heir inherits the hold.
 *
 *   owner P, epoch 3      holds: a (from 1)   b (from 2)   c (from 3)
 *     |- heir, epoch 1    inherits a
 *     |- heir, epoch 2    inherits a, b
 *
 * When P drops a hold that a living heir still uses, the hold is not freed: it moves to P's list of estates and records
 * the last epoch in which P had it (`until`). When P dies, its holds stay where they are: P's slot becomes `gone`, and
 * keeps the holds until no heir uses them.
 *
 * An heir that releases an inherited block while others still use it sets a mark: one bit for the hold's index. The
 * bits are in pages of 32,768 bits. An heir gets a page when it first needs it. A forked child shares its parent's
 * pages, and each of the two copies a page before it sets a bit in it. A bit is cleared when its own heir takes that
 * entry of the table for a hold of its own: otherwise a child of that heir could mistake the old bit for a new one.
 *
 * States of one hold, for its owner P and an heir C:
 *
 *   P has it, C uses it --(C releases it: mark)--> P has it --(P drops: no heir uses it)--> free
 *   P has it, C uses it --(P drops, or dies)--> estate, C uses it --(C releases it or dies)--> free
 *
 * What SIGKILL leaves: each arrow is one transaction. The death of an heir is recorded on the owners above it (`sweep`)
 * before the heir is marked gone, so the next scan checks their estates, also if the scanning process is killed
 * (reap.c).
 *
 * If there is no room for a page of marks, an heir's release is forgotten: the block then lives until the heir ends. */
#define _GNU_SOURCE
#include "store.h"

/* A count of the registry, limited to the possible range: a damaged word must not lead outside the table. */
static uint32_t owners_high(const cl_store *store)
{
    uint32_t high = store->control->owners_high;
    return high < CL_MAX_OWNERS ? high : CL_MAX_OWNERS;
}

/* ---- inheriting */

/* The epoch of owner `of` of which owner `slot` is an heir, through any number of forks; 0: it is not an heir. */
static uint32_t epoch_inherited(cl_store *store, uint32_t slot, uint32_t of)
{
    for (uint32_t steps = 0; steps < CL_MAX_OWNERS; steps++) {
        const cl_owner *o = &store->owners[slot];
        if (o->heir_of == 0 || o->heir_of > owners_high(store)) {
            return 0;
        }
        if (o->heir_of - 1 == of) {
            return o->heir_epoch;
        }
        slot = o->heir_of - 1;
    }
    return 0;
}

static uint32_t last_epoch(const cl_hold *h)
{
    return h->kind == CL_HOLD_ESTATE ? h->until : UINT32_MAX - 1;
}

/* Whether it inherited the hold at its fork. It may have released it since. */
static int inherited(cl_store *store, uint32_t slot, uint32_t hold)
{
    const cl_hold *h = &store->holds[hold];
    uint32_t epoch = epoch_inherited(store, slot, h->owner - 1);
    return epoch != 0 && epoch >= h->from && epoch <= last_epoch(h);
}

static int inherits(cl_store *store, uint32_t slot, uint32_t hold)
{
    return inherited(store, slot, hold) &&
           (!cl_is_marked(store, &store->owners[slot], hold) || CL_MUTANT(estate_marks_ignored));
}

/* Whether a copy of this owner's memory may live that could not be registered. The copy may use what the owner has
 * released since. */
static int may_have_a_copy(cl_store *store, uint32_t slot)
{
    const cl_owner *o = &store->owners[slot];
    return o->unregistered != 0 && (o->state == CL_OWNER_LIVE || cl_lineage_lives(store, slot));
}

/* Whether a living heir, other than this one, still uses the hold, or a copy of the owner's memory that could not be
 * registered may use it. `lineage`: whether such a copy may live. */
int cl_is_used_by_heirs(cl_store *store, uint32_t hold, uint32_t except, int lineage)
{
    const cl_hold *h = &store->holds[hold];
    if (h->owner == 0 || h->owner > owners_high(store)) {
        return 0;
    }
    const cl_owner *o = &store->owners[h->owner - 1];
    if (lineage && o->unregistered != 0 && h->from <= o->unregistered) {
        return 1;
    }
    if (o->children == 0) {
        return 0;
    }
    for (uint32_t i = 0; i < owners_high(store) && i < CL_CARETAKER; i++) {
        if (store->owners[i].state == CL_OWNER_FREE || store->owners[i].heir_of == 0) {
            continue;
        }
        if ((i != except && store->owners[i].state == CL_OWNER_LIVE && inherits(store, i, hold)) ||
            (store->owners[i].unregistered != 0 && inherited(store, i, hold) && may_have_a_copy(store, i))) {
            return 1;
        }
    }
    return 0;
}

int cl_hold_is_inherited(cl_store *store, uint32_t index, uint32_t number)
{
    if (index >= store->control->holds_high || index >= CL_MAX_HOLDS) {
        return 0;
    }
    const cl_hold *h = &store->holds[index];
    return (h->kind == CL_HOLD_OWNER || h->kind == CL_HOLD_ESTATE) && h->owner != 0 && h->owner <= owners_high(store) &&
           h->block == number + 1 && inherits(store, store->slot, index);
}

/* ---- releasing */

/* Drop the owner's own hold: it becomes free, or moves to the estate. */
static int drop_own(cl_store *store, uint32_t index)
{
    cl_hold *h = &store->holds[index];
    cl_owner *me = &store->owners[store->slot];
    if (h->from == CL_NEVER || h->from >= me->epoch || CL_MUTANT(estate_dropped_from_heirs) ||
        !cl_is_used_by_heirs(store, index, store->slot, 1)) {
        return cl_hold_drop(store, index);
    }
    cl_txn txn = cl_begin(store->base);
    int rc = cl_hold_unlink(store, &txn, index);
    if (rc == CL_OK) {
        cl_set32(&txn, &h->kind, CL_HOLD_ESTATE);
        cl_set32(&txn, &h->until, me->epoch - 1);
        rc = cl_hold_link(store, &txn, index, CL_HOLD_ESTATE);
    }
    if (rc == CL_OK) {
        cl_commit(&txn);
    }
    return rc;
}

int cl_hold_release(cl_store *store, uint32_t index, uint32_t number)
{
    cl_hold *h = &store->holds[index];
    if (index < store->control->holds_high && index < CL_MAX_HOLDS && h->kind == CL_HOLD_OWNER &&
        h->owner == store->slot + 1) {
        return h->block == number + 1 ? drop_own(store, index) : CL_OK; /* otherwise the entry is used again */
    }
    if (!cl_hold_is_inherited(store, index, number)) {
        return CL_OK; /* it was given away: to a queue, as part of a message */
    }
    int kept = h->kind == CL_HOLD_OWNER && store->owners[h->owner - 1].state == CL_OWNER_LIVE;
    if (!kept && !cl_is_used_by_heirs(store, index, store->slot, cl_lineage_lives(store, h->owner - 1))) {
        return cl_hold_drop(store, index);
    }
    int rc = cl_mark_set(store, index);
    return rc == CL_FULL ? CL_OK : rc;
}

/* ---- the end of an owner */

/* Its estate must be swept again, from the beginning. */
static void look_again(cl_store *store, uint32_t slot)
{
    cl_owner *o = &store->owners[slot];
    int gone = o->state == CL_OWNER_GONE;
    if ((gone && o->stage == CL_STAGE_SEGMENTS) || (!gone && o->first_estate == 0)) {
        return; /* its holds are not swept yet; or there are none */
    }
    cl_txn txn = cl_begin(store->base);
    cl_set32(&txn, &o->stage, gone ? CL_STAGE_HOLDS : CL_STAGE_ESTATE);
    cl_set32(&txn, &o->sweep, gone ? o->first_hold : o->first_estate);
    cl_set32(&txn, &store->control->sweeping, 1);
    cl_commit(&txn);
}

void cl_look_above(cl_store *store, uint32_t slot)
{
    uint32_t above = store->owners[slot].heir_of;
    for (uint32_t steps = CL_MUTANT(estate_not_looked_through) ? CL_MAX_OWNERS : 0;
         above != 0 && above <= owners_high(store) && steps < CL_MAX_OWNERS; steps++) {
        look_again(store, above - 1);
        CL_KILL_POINT();
        above = store->owners[above - 1].heir_of;
    }
}

void cl_owner_end(cl_store *store, uint32_t slot)
{
    cl_look_above(store, slot); /* before: if the process is killed between, they are swept once too often */
    cl_owner *o = &store->owners[slot];
    o->look = 0; /* no process reads it before */
    cl_txn txn = cl_begin(store->base);
    cl_set32(&txn, &o->state, CL_OWNER_GONE);
    cl_set32(&txn, &o->stage, CL_STAGE_SEGMENTS);
    cl_set32(&txn, &store->control->sweeping, 1);
    cl_commit(&txn);
}

int cl_owner_free(cl_store *store, uint32_t slot)
{
    cl_owner *o = &store->owners[slot];
    /* From now on its heirs inherit directly from the owner above it what it had inherited itself: only that is
     * left. */
    for (uint32_t i = 0; o->children != 0 && i < owners_high(store) && i < CL_CARETAKER; i++) {
        cl_owner *heir = &store->owners[i];
        if (heir->state == CL_OWNER_FREE || heir->heir_of != slot + 1) {
            continue;
        }
        cl_txn txn = cl_begin(store->base);
        cl_set32(&txn, &heir->heir_of, o->heir_of);
        cl_set32(&txn, &heir->heir_epoch, o->heir_epoch);
        cl_set32(&txn, &o->children, o->children - 1);
        if (o->heir_of != 0 && o->heir_of <= owners_high(store)) {
            cl_owner *above = &store->owners[o->heir_of - 1];
            cl_set32(&txn, &above->children, above->children + 1);
        }
        cl_commit(&txn);
    }
    cl_marks_drop(store, slot);
    uint32_t next = (o->incarnation + (CL_MUTANT(owners_incarnation_stays) ? 0 : 1)) & CL_INCARNATION;
    cl_txn txn = cl_begin(store->base);
    if (o->heir_of != 0 && o->heir_of <= owners_high(store)) {
        cl_owner *above = &store->owners[o->heir_of - 1];
        cl_set32(&txn, &above->children, above->children - (above->children != 0));
    }
    cl_set32(&txn, &o->heir_of, 0);
    cl_set32(&txn, &o->incarnation, next != 0 ? next : 1);
    cl_set32(&txn, &o->state, CL_OWNER_FREE); /* last: "slot freed" */
    cl_commit(&txn);
    return CL_OK;
}
