/* Estates: what a forked child inherits, without a copy of anything.
 *
 * Promise: a block that a process held at a fork lives until that process and every heir of that fork have let it go or died,
 * and is free at once when the last of them does. The fork writes one record; nothing is counted a block.
 *
 * Each owner has an epoch, which grows with each of its forks. A hold says in which epoch it was taken (`from`). A forked child
 * is one record: heir of owner P, of all that P held in epoch e and before. What the parent had inherited itself, the child
 * inherits through it: the links make a tree, and the way up from an heir to a hold's owner says whether it inherits it.
 *
 *   owner P, epoch 3      holds: a (from 1)   b (from 2)   c (from 3)
 *     |- heir, epoch 1    inherits a
 *     |- heir, epoch 2    inherits a, b
 *
 * When P drops a hold that a living heir still uses, the hold is not freed: it goes to P's list of estates and notes the last
 * epoch in which P had it (`until`). When P dies, its holds stay where they are: P's slot is `gone`, and its holds with it
 * until no heir uses them.
 *
 * An heir that lets an inherited block go while others still use it sets a mark: one bit for the hold's index. The bits lie in
 * pages of 32,768, which an heir gets when it first needs one; a forked child shares its parent's pages, and either copies a
 * page before it sets a bit in it. A bit is cleared when its own heir takes that entry of the table for a hold of its own: only
 * then could a child of that heir take the old bit for a new one.
 *
 * States of one hold, for its owner P and an heir C:
 *
 *   P has it, C uses it --(C lets go: mark)--> P has it --(P drops: no heir uses it)--> free
 *   P has it, C uses it --(P drops, or dies)--> estate, C uses it --(C lets go or dies)--> free
 *
 * What SIGKILL leaves: each arrow is one transaction. An heir's death is noted on the owners above it (`sweep`) before the heir
 * is marked gone, so the scan that follows looks through their estates, also when its own process is killed (reap.c).
 *
 * Without room for a page of marks an heir's let-go is forgotten: the block then lives until the heir ends. */
#define _GNU_SOURCE
#include "store.h"

#include <string.h>

/* Counts of the registry, bounded by what there can be: two damaged words must not lead outside. */
static uint32_t owners_high(const cl_store *store)
{
    uint32_t high = store->control->owners_high;
    return high < CL_MAX_OWNERS ? high : CL_MAX_OWNERS;
}

static uint32_t marks_high(const cl_store *store)
{
    uint32_t high = store->control->marks_high;
    return high < CL_MAX_MARKS ? high : CL_MAX_MARKS;
}

/* ---- marks */

static uint64_t *word_of(cl_store *store, uint32_t page, uint32_t hold)
{
    return &store->mark_bits[(uint64_t)page * CL_MARK_WORDS + hold % CL_MARK_BITS / 64];
}

static int page_of(cl_store *store, const cl_owner *o, uint32_t hold, uint32_t *page)
{
    uint32_t at = o->marks[hold / CL_MARK_BITS];
    if (at == 0 || at > marks_high(store)) {
        return 0;
    }
    *page = at - 1;
    return 1;
}

static int is_marked(cl_store *store, const cl_owner *o, uint32_t hold)
{
    uint32_t page;
    return page_of(store, o, hold, &page) && *word_of(store, page, hold) >> hold % 64 & 1;
}

void cl_mark_clear(cl_store *store, cl_txn *txn, uint32_t hold)
{
    uint32_t page;
    if (store->slot >= CL_CARETAKER || !page_of(store, &store->owners[store->slot], hold, &page)) {
        return;
    }
    uint64_t *word = word_of(store, page, hold), bit = (uint64_t)1 << hold % 64;
    if ((*word & bit) && !CL_MUTANT(estate_mark_not_cleared)) {
        cl_set64(txn, word,
                 *word & ~bit); /* in a shared page too: for the others the hold that it meant is long gone */
    }
}

void cl_marks_share(cl_store *store, cl_txn *txn, const cl_owner *parent, cl_owner *child)
{
    for (uint32_t k = 0; k < CL_MARK_PAGES; k++) {
        uint32_t at = parent->marks[k];
        if (at != 0 && at <= marks_high(store) && !CL_MUTANT(estate_marks_not_inherited)) {
            child->marks[k] = at; /* a slot that is not live yet */
            cl_set32(txn, &store->marks[at - 1].users, store->marks[at - 1].users + 1);
        }
    }
}

void cl_marks_drop(cl_store *store, uint32_t slot)
{
    cl_control *c = store->control;
    cl_owner *o = &store->owners[slot];
    for (uint32_t k = 0; k < CL_MARK_PAGES; k++) {
        uint32_t at = o->marks[k];
        if (at == 0 || at > marks_high(store)) {
            continue;
        }
        cl_mark_page *page = &store->marks[at - 1];
        cl_txn txn = cl_begin(store->base);
        cl_set32(&txn, &o->marks[k], 0);
        cl_set32(&txn, &page->users, page->users - (page->users != 0));
        if (page->users <= 1) {
            cl_set32(&txn, &page->next, c->marks_free);
            cl_set32(&txn, &c->marks_free, at);
        }
        cl_commit(&txn);
    }
}

/* A free page for marks. Under the lock; its own transaction. */
static int grow_marks(cl_store *store)
{
    cl_control *c = store->control;
    uint32_t high = c->marks_high;
    for (uint32_t n = 8; n != 0; n /= 8) {
        if (high + n <= CL_MAX_MARKS &&
            cl_reserve(store, CL_OFF_MARKS + (uint64_t)high * sizeof(cl_mark_page), n * sizeof(cl_mark_page)) ==
                CL_OK &&
            cl_reserve(store, CL_OFF_MARK_BITS + (uint64_t)high * CL_PAGE, (uint64_t)n * CL_PAGE) == CL_OK) {
            for (uint32_t i = high; i < high + n; i++) {
                store->marks[i] = (cl_mark_page){.next = i + 1 < high + n ? i + 2 : 0};
            }
            cl_txn txn = cl_begin(store->base);
            cl_set32(&txn, &c->marks_free, high + 1);
            cl_set32(&txn, &c->marks_high, high + n);
            cl_commit(&txn);
            return CL_OK;
        }
    }
    return cl_fail(CL_FULL, 0, "no room for a page of marks");
}

/* Note that this process no longer uses a hold that it inherited. */
static int mark(cl_store *store, uint32_t hold)
{
    cl_control *c = store->control;
    cl_owner *me = &store->owners[store->slot];
    uint32_t old = 0, k = hold / CL_MARK_BITS;
    int has = page_of(store, me, hold, &old);
    int own = has && store->marks[old].users == 1;
    if (!own && c->marks_free == 0) {
        int rc = grow_marks(store);
        if (rc != CL_OK) {
            return rc;
        }
    }
    uint32_t page = own ? old : c->marks_free - 1;
    if (page >= c->marks_high || page >= CL_MAX_MARKS) {
        return cl_fail(CL_CORRUPT, 0, "registry: the free list of marks names %u", page);
    }
    if (!own) { /* a free page: nobody reads it yet */
        uint64_t *fresh = word_of(store, page, 0);
        if (has) {
            memcpy(fresh, word_of(store, old, 0), CL_PAGE);
        } else {
            memset(fresh, 0, CL_PAGE);
        }
    }
    uint64_t *word = word_of(store, page, hold);
    cl_txn txn = cl_begin(store->base);
    cl_set64(&txn, word, *word | (uint64_t)1 << hold % 64);
    if (!own) {
        cl_set32(&txn, &c->marks_free, store->marks[page].next);
        cl_set32(&txn, &store->marks[page].users, 1);
        cl_set32(&txn, &me->marks[k], page + 1);
        if (has) {
            cl_set32(&txn, &store->marks[old].users, store->marks[old].users - 1);
        }
    }
    cl_commit(&txn);
    return CL_OK;
}

/* ---- who inherits what */

/* The epoch of owner `of` that owner `slot` is an heir of, by way of any number of forks; 0: it is none. */
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

/* Did it inherit the hold at its fork? It may have let it go since. */
static int inherited(cl_store *store, uint32_t slot, uint32_t hold)
{
    const cl_hold *h = &store->holds[hold];
    uint32_t epoch = epoch_inherited(store, slot, h->owner - 1);
    return epoch != 0 && epoch >= h->from && epoch <= last_epoch(h);
}

static int inherits(cl_store *store, uint32_t slot, uint32_t hold)
{
    return inherited(store, slot, hold) &&
           (!is_marked(store, &store->owners[slot], hold) || CL_MUTANT(estate_marks_ignored));
}

/* May a copy of this owner's memory live that could not be registered? What the owner has let go since, the copy has not. */
static int may_have_a_copy(cl_store *store, uint32_t slot)
{
    const cl_owner *o = &store->owners[slot];
    return o->unregistered != 0 && (o->state == CL_OWNER_LIVE || cl_lineage_lives(store, slot));
}

/* Does a living heir, other than this one, still use the hold? Or may a copy of the owner's memory that could not be
 * registered? `lineage`: whether such a copy may live. */
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

/* ---- letting go */

/* The owner's own hold: free, or to its estate. */
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

int cl_hold_let_go(cl_store *store, uint32_t index, uint32_t number)
{
    cl_hold *h = &store->holds[index];
    if (index < store->control->holds_high && index < CL_MAX_HOLDS && h->kind == CL_HOLD_OWNER &&
        h->owner == store->slot + 1) {
        return h->block == number + 1 ? drop_own(store, index) : CL_OK; /* else the entry is used anew */
    }
    if (!cl_hold_is_inherited(store, index, number)) {
        return CL_OK; /* it was given away: to a queue, as part of a message */
    }
    int kept = h->kind == CL_HOLD_OWNER && store->owners[h->owner - 1].state == CL_OWNER_LIVE;
    if (!kept && !cl_is_used_by_heirs(store, index, store->slot, cl_lineage_lives(store, h->owner - 1))) {
        return cl_hold_drop(store, index);
    }
    int rc = mark(store, index);
    return rc == CL_FULL ? CL_OK : rc;
}

/* ---- the end of an owner */

/* Its estates must be looked through again, from the beginning. */
static void look_again(cl_store *store, uint32_t slot)
{
    cl_owner *o = &store->owners[slot];
    int gone = o->state == CL_OWNER_GONE;
    if ((gone && o->stage == CL_STAGE_SEGMENTS) || (!gone && o->first_estate == 0)) {
        return; /* it is still to come to its holds; there are none */
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
    cl_look_above(store, slot); /* before: killed between, they are looked through once too often */
    cl_owner *o = &store->owners[slot];
    o->look = 0; /* nobody reads it before */
    cl_txn txn = cl_begin(store->base);
    cl_set32(&txn, &o->state, CL_OWNER_GONE);
    cl_set32(&txn, &o->stage, CL_STAGE_SEGMENTS);
    cl_set32(&txn, &store->control->sweeping, 1);
    cl_commit(&txn);
}

int cl_owner_free(cl_store *store, uint32_t slot)
{
    cl_owner *o = &store->owners[slot];
    /* Its heirs inherit from now on straight from the owner above it, what it had inherited itself: that alone is left. */
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
