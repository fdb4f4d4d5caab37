/* Marks: the inherited holds that a forked child no longer uses. Why marks are needed: estate.c.
 *
 * Promise: setting or clearing a mark is a transaction of its own, or a part of the caller's. A page that two heirs
 * share is copied before one of them sets a bit in it. */
#define _GNU_SOURCE
#include "store.h"

#include <string.h>

/* A count of the registry, limited to the possible range: a damaged word must not lead outside the table. */
static uint32_t marks_high(const cl_store *store)
{
    uint32_t high = store->control->marks_high;
    return high < CL_MAX_MARKS ? high : CL_MAX_MARKS;
}

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

int cl_is_marked(cl_store *store, const cl_owner *o, uint32_t hold)
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
                 *word & ~bit); /* also in a shared page: for the others the hold that the bit meant ended long ago */
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

/* Get a free page for marks. Under the lock; a transaction of its own. */
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

int cl_mark_set(cl_store *store, uint32_t hold)
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
        return cl_fail(CL_CORRUPT, 0, "registry: the free list of marks has the invalid entry %u", page);
    }
    if (!own) { /* a free page: no process reads it yet */
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
