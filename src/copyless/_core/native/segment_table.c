/* The table of segments: taking a slot, and giving a segment back.
 *
 * Promise: a slot in `making` or `going` names the owner that works on it, so that other processes can finish the work
 * of a dead owner. No block of a segment in `going` is handed out.
 *
 * Giving a segment back, and what SIGKILL leaves: (1) the slot is `going`, with the name of this process; (2) its
 * blocks leave the free list one by one; (3) the file is unlinked; (4) the slot is free. If the process is killed at
 * any step, the reaper continues from there, and an allocation that meets a free block of a `going` segment takes it
 * off the list.
 *
 * Segments whose blocks are all free stay, up to settings.warm_limit bytes; those that were unused longest are given
 * back first. They are given back at once if another allocation would otherwise fail, and when they have been unused
 * for longer than settings.idle_ns. The search for them is done in steps, and each process continues where it stopped,
 * so that the registry's lock is never held for a pass over the whole table. */
#define _GNU_SOURCE
#include "store.h"

static int grow(cl_store *store, int last)
{
    cl_control *c = store->control;
    const cl_table table = {.what = "segments",
                            .number = CL_TABLE_SEGMENTS,
                            .offset = CL_OFF_SEGMENTS,
                            .stride = sizeof(cl_segment),
                            .state_at = offsetof(cl_segment, state),
                            .next_at = offsetof(cl_segment, next),
                            .most = CL_MAX_SEGMENTS,
                            .free = &c->segments_free,
                            .high = &c->segments_high};
    _Static_assert(CL_SEGMENT_FREE == 0, "a grown table's entries are in state 0");
    return cl_table_grow(store, &table, 8, last);
}

int cl_segment_slot(cl_store *store, uint32_t state, uint64_t id, int last, uint32_t *slot)
{
    cl_control *c = store->control;
    int rc = c->segments_free == 0 ? grow(store, last) : CL_OK;
    if (rc != CL_OK) {
        return rc;
    }
    uint32_t i = c->segments_free - 1;
    if (i >= c->segments_high || store->segments[i].state != CL_SEGMENT_FREE) {
        return cl_fail(CL_CORRUPT, 0, "registry: the free list of segments has the invalid entry %u", i);
    }
    cl_segment *s = &store->segments[i];
    s->nblocks = 0; /* this process may prepare a free slot: no other reads it before its state changes */
    s->used = 0;
    s->file_size = 0;
    cl_txn txn = cl_begin(store->base);
    cl_set32(&txn, &c->segments_free, s->next);
    cl_set64(&txn, &s->id, id);
    cl_set32(&txn, &s->owner, store->slot + 1);
    cl_set32(&txn, &s->state, state);
    cl_commit(&txn);
    *slot = i;
    return CL_OK;
}

void cl_segment_forget(cl_store *store, uint32_t slot)
{
    cl_segment *s = &store->segments[slot];
    cl_control *c = store->control;
    cl_txn txn = cl_begin(store->base);
    cl_set64(&txn, &c->total_bytes, c->total_bytes - (c->total_bytes < s->file_size ? c->total_bytes : s->file_size));
    cl_set32(&txn, &s->state, CL_SEGMENT_FREE);
    cl_set32(&txn, &s->next, c->segments_free);
    cl_set32(&txn, &c->segments_free, slot + 1);
    cl_commit(&txn);
}

int cl_segment_retire(cl_store *store, uint32_t slot)
{
    cl_segment *s = &store->segments[slot];
    if (s->state == CL_SEGMENT_READY || s->owner != store->slot + 1) {
        cl_txn txn = cl_begin(store->base);
        cl_set32(&txn, &s->owner, store->slot + 1);
        cl_set32(&txn, &s->state, CL_SEGMENT_GOING);
        if (s->state == CL_SEGMENT_READY) {
            cl_set64(&txn, &store->control->warm_bytes,
                     store->control->warm_bytes - (store->control->warm_bytes < s->file_size ? 0 : s->file_size));
        }
        cl_commit(&txn);
    }
    for (uint32_t i = 0; i < s->nblocks && i < CL_BLOCKS; i++) {
        if (s->blocks[i].state == CL_BLOCK_FREE) {
            cl_txn txn = cl_begin(store->base);
            int rc = cl_unlink_free(store, &txn, slot * CL_BLOCKS + i);
            if (rc != CL_OK) {
                return rc;
            }
            cl_set32(&txn, &s->blocks[i].state, CL_BLOCK_NONE);
            cl_commit(&txn);
        }
    }
    return CL_OK;
}

void cl_finish_going(cl_store *store, int keep_locked)
{
    uint32_t n = store->ngoing, slots[64];
    uint64_t ids[64];
    store->ngoing = 0;
    for (uint32_t i = 0; i < n; i++) {
        slots[i] = store->going[i];
        ids[i] = store->segments[slots[i]].id;
    }
    if (!keep_locked) {
        cl_unlock_own(&store->control->lock, CL_LOCK_WORD(store->slot, store->incarnation));
    }
    for (uint32_t i = 0; i < n; i++) {
        cl_segment_destroy(store, ids[i]);
        CL_KILL_POINT();
    }
    if (!keep_locked) {
        int rc = cl_lock_registry(store, CL_OP_REAP, cl_monotonic_ns() + CL_SLICE_NS);
        if (rc == CL_AGAIN) { /* its holder may be stopped: the slots stay this process's until it next has the lock */
            for (uint32_t i = 0; i < n; i++) {
                store->going[i] = slots[i];
            }
            store->ngoing = n;
        }
        if (rc != CL_OK) { /* or it is damaged: the next process to read it reports that */
            return;
        }
    }
    for (uint32_t i = 0; i < n; i++) {
        /* Check that it is still this process's. It is in the list twice when a leaving process checks its own
         * segments. And since the lock was released, another process may have finished it, and its slot may have been
         * reused. */
        const cl_segment *s = &store->segments[slots[i]];
        if (s->state == CL_SEGMENT_GOING && s->id == ids[i] && s->owner == store->slot + 1) {
            cl_segment_forget(store, slots[i]);
        }
    }
}

/* Find the next wholly free segment of small blocks to give back; UINT32_MAX: none, or not within the steps. */
static uint32_t small_victim(cl_store *store, int over, int64_t idle_before_ns, uint32_t *left, uint32_t *steps)
{
    cl_control *c = store->control;
    for (; c->warm_bytes != 0 && *left != 0 && *steps != 0; --*left, --*steps) {
        uint32_t i = store->trim_at < c->segments_high ? store->trim_at : 0;
        store->trim_at = i + 1;
        const cl_segment *s = &store->segments[i];
        if (s->state == CL_SEGMENT_READY && s->used == 0 && s->class_index != CL_LARGE &&
            (over || s->idle_since_ns < idle_before_ns)) {
            return i;
        }
    }
    return UINT32_MAX;
}

int cl_trim_locked(cl_store *store, uint64_t keep_bytes, int64_t idle_before_ns, uint64_t *freed, uint32_t *steps)
{
    cl_control *c = store->control;
    uint32_t left = c->segments_high; /* slots left to check */
    while (*steps != 0 && store->ngoing < CL_GOING) {
        uint32_t victim = UINT32_MAX;
        int over = c->warm_bytes > keep_bytes;
        if (c->first[CL_SPILLED] != 0) {
            cl_block *b;
            int rc = cl_block_checked(store, c->first[CL_SPILLED] - 1, &b);
            if (rc != CL_OK) {
                return rc;
            }
            victim = (c->first[CL_SPILLED] - 1) / CL_BLOCKS;
            if (store->segments[victim].class_index != CL_SPILLED || b->state != CL_BLOCK_FREE) {
                return cl_fail(CL_CORRUPT, 0, "registry: block %u is not a free block on disk",
                               c->first[CL_SPILLED] - 1);
            }
        }
        /* Large segments first, starting with the one that was unused longest: the tail of their list. */
        if (victim == UINT32_MAX && c->last[CL_LARGE] != 0) {
            cl_block *b;
            uint32_t slot = (c->last[CL_LARGE] - 1) / CL_BLOCKS;
            int rc = cl_block_checked(store, c->last[CL_LARGE] - 1, &b);
            if (rc != CL_OK) {
                return rc;
            }
            if (store->segments[slot].class_index != CL_LARGE || b->state != CL_BLOCK_FREE) {
                return cl_fail(CL_CORRUPT, 0, "registry: block %u is not a free large block", c->last[CL_LARGE] - 1);
            }
            if (over || store->segments[slot].idle_since_ns < idle_before_ns) {
                victim = slot;
            }
        }
        if (victim == UINT32_MAX) {
            victim = small_victim(store, over, idle_before_ns, &left, steps);
        }
        if (victim == UINT32_MAX) {
            break;
        }
        cl_segment *s = &store->segments[victim];
        int rc = cl_segment_retire(store, victim);
        if (rc != CL_OK) {
            return rc;
        }
        if (freed != NULL) {
            *freed += s->file_size;
        }
        if (store->maps != NULL && store->maps[victim] != NULL && store->maps[victim]->id == s->id) {
            cl_map_drop(store, store->maps[victim]);
        }
        store->going[store->ngoing++] = victim;
        uint32_t work = 1 + (s->nblocks < CL_BLOCKS ? s->nblocks : CL_BLOCKS);
        *steps -= work < *steps ? work : *steps;
    }
    *steps = store->ngoing == CL_GOING ? 0 : *steps;
    return CL_OK;
}
