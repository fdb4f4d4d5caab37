/* The heap: blocks of shared memory, which are reused while their pages are warm.
 *
 * Promise: a block that is handed out is reserved memory that no other process holds. The block that was freed last is
 * reused first, so its pages are in the page tables (and often in the cache) of the processes that used it last.
 *
 * Steps to make a segment, and what SIGKILL leaves: (1) a slot in state `making` with the name of this process: the
 * reaper frees it; (2) the file, in any state of completeness: no process reads it, the reaper unlinks it; (3) one
 * transaction makes the slot `ready`, its first block a block of this process, and the others free. How a segment is
 * given back: segment_table.c. */
#define _GNU_SOURCE
#include "store.h"

#include <errno.h>
#include <stdlib.h>

#define FULL_NS ((int64_t)20000000) /* and at least 16 times the cost of finding memory full */

/* Find a free block of at least nbytes: block number + 1, or 0. */
static int find_free(cl_store *store, uint32_t k, uint64_t capacity, uint32_t *found)
{
    uint32_t at = store->control->first[k], steps = 0;
    *found = 0;
    while (at != 0) {
        cl_block *b;
        int rc = cl_block_checked(store, at - 1, &b);
        if (rc != CL_OK) {
            return rc;
        }
        cl_segment *s = &store->segments[(at - 1) / CL_BLOCKS];
        if (b->state != CL_BLOCK_FREE || s->class_index != k) {
            return cl_fail(CL_CORRUPT, 0, "registry: block %u on free list %u is in state %u", at - 1, k, b->state);
        }
        uint32_t next = b->next;
        if (s->state == CL_SEGMENT_GOING &&
            !CL_MUTANT(heap_hands_out_going)) { /* its owner was killed while giving it back */
            cl_txn txn = cl_begin(store->base);
            rc = cl_unlink_free(store, &txn, at - 1);
            if (rc != CL_OK) {
                return rc;
            }
            cl_set32(&txn, &b->state, CL_BLOCK_NONE);
            cl_commit(&txn);
        } else if (s->block_size >= capacity && s->block_size - capacity <= capacity / 4) {
            *found = at;
            return CL_OK;
        }
        at = next;
        if (++steps > 512) { /* some 50 us with the registry's lock held */
            return CL_OK;
        }
    }
    return CL_OK;
}

/* Record that a free block becomes one of this process. The transaction must be empty. */
static int occupy(cl_store *store, cl_txn *txn, uint32_t number, uint64_t nbytes, uint32_t *hold)
{
    int rc = cl_hold_take(store, txn, CL_HOLD_OWNER, store->slot + 1, number, hold);
    if (rc != CL_OK) {
        return rc;
    }
    cl_block *b = &store->segments[number / CL_BLOCKS].blocks[number % CL_BLOCKS];
    b->nbytes = nbytes; /* of a free block: for display */
    b->creator_pid = store->identity.pid;
    b->created_ns = cl_realtime_ns();
    cl_set32(txn, &b->state, CL_BLOCK_USED);
    cl_set32(txn, &b->holds, 1);
    cl_set32(txn, &b->name, 0);
    cl_set32(txn, &b->children, 0);
    return CL_OK;
}

static int occupy_listed(cl_store *store, uint32_t number, uint64_t nbytes, uint32_t *hold)
{
    cl_control *c = store->control;
    cl_segment *s = &store->segments[number / CL_BLOCKS];
    cl_txn txn = cl_begin(store->base);
    int rc = occupy(store, &txn, number, nbytes, hold);
    if (rc == CL_OK) {
        rc = cl_unlink_free(store, &txn, number);
    }
    if (rc != CL_OK) {
        return rc;
    }
    cl_set32(&txn, &s->used, s->used + 1);
    if (s->used == 0) {
        cl_set64(&txn, &c->warm_bytes, c->warm_bytes - (c->warm_bytes < s->file_size ? 0 : s->file_size));
    }
    cl_commit(&txn);
    return CL_OK;
}

/* Make the new segment in slot `map->slot` ready, its first block one of this process: one transaction. Under the
 * lock. */
static int publish(cl_store *store, const cl_map *map, uint32_t k, uint64_t nbytes, uint32_t *hold)
{
    cl_control *c = store->control;
    cl_segment *s = &store->segments[map->slot];
    s->block_size = map->block_size; /* a slot in `making` belongs to its maker */
    s->inode = map->inode;
    s->class_index = k;
    s->idle_since_ns = cl_monotonic_ns();
    s->nblocks = map->nblocks;
    uint32_t base = map->slot * CL_BLOCKS, n = map->nblocks, head = c->first[k];
    for (uint32_t i = 0; i < n; i++) {
        cl_block *b = &s->blocks[i];
        b->generation +=
            !CL_MUTANT(heap_new_generation_stays); /* it only ever grows, whatever segment the slot held before */
        b->holds = 0;
        b->name = 0;
        b->state = i == 0 ? CL_BLOCK_NONE : CL_BLOCK_FREE;
        b->prev = i <= 1 ? 0 : base + i;
        b->next = i + 1 < n ? base + i + 2 : head;
    }
    CL_KILL_POINT();
    cl_txn txn = cl_begin(store->base);
    int rc = occupy(store, &txn, base, nbytes, hold);
    if (rc == CL_OK && n > 1) {
        cl_block *old;
        cl_set32(&txn, &c->first[k], base + 2);
        if (head == 0) {
            cl_set32(&txn, &c->last[k], base + n);
        } else if ((rc = cl_block_checked(store, head - 1, &old)) == CL_OK) {
            cl_set32(&txn, &old->prev, base + n);
        }
    }
    if (rc != CL_OK) {
        return rc;
    }
    cl_set64(&txn, &c->total_bytes, c->total_bytes + map->size);
    cl_set64(&txn, &s->file_size, map->size);
    cl_set32(&txn, &s->used, 1);
    cl_set32(&txn, &s->owner, 0);
    cl_set32(&txn, &s->state, CL_SEGMENT_READY);
    cl_commit(&txn);
    return CL_OK;
}

/* Record a new object of this process in the process's tables. Under the mutex. */
static void stand_on(cl_store *store, cl_map *map, uint32_t index, uint32_t hold, cl_block_ref *out)
{
    cl_local_block *local = &map->blocks[index];
    local->generation = store->segments[map->slot].blocks[index].generation;
    local->hold = hold + 1;
    local->references = 1;
    map->in_use++;
    cl_refer(map, index, local->generation, out);
}

/* Get a free block, if there is one. Under both locks. CL_OK with out->data NULL: there is none. */
static int alloc_warm(cl_store *store, uint32_t k, uint64_t nbytes, cl_block_ref *out)
{
    out->data = NULL;
    for (int tries = 0; tries < 64; tries++) {
        uint32_t found, hold;
        int rc = find_free(store, k, cl_capacity_for(nbytes), &found);
        if (rc != CL_OK || found == 0) {
            return rc;
        }
        uint32_t slot = (found - 1) / CL_BLOCKS;
        cl_segment *s = &store->segments[slot];
        cl_map *map;
        rc = cl_segment_map(store, s->id, slot, &map);
        if (rc == CL_CORRUPT || rc == CL_STALE) {
            if (s->used != 0) {
                return CL_CORRUPT;
            }
            rc = cl_segment_retire(store, slot); /* a file that no process uses was damaged: continue without it */
            if (rc == CL_OK && store->ngoing < CL_GOING) {
                store->going[store->ngoing++] = slot;
            }
        } else if (rc == CL_OK) {
            rc = cl_segment_agrees(store, map);
            if (rc == CL_OK && map->block_size < nbytes) {
                rc = cl_fail(CL_CORRUPT, 0, "registry: a block of %llu bytes is on the free list for %llu",
                             (unsigned long long)map->block_size, (unsigned long long)nbytes);
            }
            if (rc != CL_OK) {
                return rc;
            }
            rc = occupy_listed(store, found - 1, nbytes, &hold);
            if (rc == CL_OK) {
                stand_on(store, map, (found - 1) % CL_BLOCKS, hold, out);
                return CL_OK;
            }
        }
        if (rc != CL_OK) {
            return rc;
        }
    }
    return CL_OK;
}

/* Give up a new segment that cannot be recorded now: its file is removed at once, its slot when this process next has
 * the lock. */
static void give_up(cl_store *store, cl_map *map, uint64_t id, uint32_t slot)
{
    cl_error kept = *cl_last_error();
    if (map != NULL) {
        cl_map_discard(map);
        cl_segment_destroy(store, id);
    }
    if (cl_enter_tables(store, CL_MAY_WAIT) == CL_OK) { /* otherwise it is given back when this process ends */
        cl_put_off(store, CL_LATER_SEGMENT, slot, id);
        cl_leave_tables(store);
    }
    *cl_last_error() = kept;
}

static int alloc_fresh(cl_store *store, uint32_t k, uint64_t nbytes, uint32_t nblocks, cl_block_ref *out)
{
    uint32_t slot, hold;
    uint64_t id = cl_random64();
    cl_map *map = malloc(sizeof *map);
    if (map == NULL) {
        return cl_fail(CL_SYSTEM, ENOMEM, "allocating the table of a mapping");
    }
    int rc = cl_enter(store, CL_OP_ALLOC, CL_MAY_WAIT);
    if (rc == CL_OK) {
        rc = cl_segment_slot(store, CL_SEGMENT_MAKING, id, k == CL_SPILLED, &slot);
        cl_leave(store);
    }
    if (rc != CL_OK) {
        free(map);
        return rc;
    }
    atomic_store_explicit(&store->owners[store->slot].op, CL_OP_ALLOC, memory_order_relaxed);
    int made = cl_segment_create(store, map, id, k, cl_capacity_for(nbytes), nblocks);
    cl_error kept = *cl_last_error();
    map->slot = slot;
    if (made != CL_OK) {
        cl_segment_destroy(store, id);
    }
    rc = cl_enter(store, CL_OP_ALLOC, CL_MAY_WAIT);
    if (rc != CL_OK) {
        give_up(store, made == CL_OK ? map : NULL, id, slot);
        if (made != CL_OK) {
            free(map);
        }
        return rc;
    }
    if (made == CL_OK) {
        made = cl_map_add(store, map);
        if (made == CL_OK) {
            made = publish(store, map, k, nbytes, &hold);
            if (made == CL_OK) {
                stand_on(store, map, 0, hold, out);
                out->recycled = 0;
                if (k == CL_SPILLED) {
                    cl_news_of_spilling(store);
                }
            } else {
                cl_map_drop(store, map);
                cl_segment_destroy(store, id);
            }
        } else {
            kept = *cl_last_error();
            cl_map_discard(map);
            cl_segment_destroy(store, id);
            *cl_last_error() = kept;
        }
        kept = *cl_last_error();
    } else {
        free(map);
    }
    if (made != CL_OK) {
        cl_segment_forget(store, slot);
    }
    cl_leave(store);
    *cl_last_error() = kept;
    return made;
}

/* In a store that is adrift, a block that others can map is in a file on disk. */
static int alloc_beside(cl_store *store, uint64_t nbytes, cl_block_ref *out)
{
    if (cl_home(store, CL_SPILLED, 1) < 0) {
        cl_error why = *cl_last_error();
        return cl_fail(CL_REMOVED, 0, "%.160s; the registry's file was " CL_WHY_REMOVED, why.what);
    }
    return alloc_fresh(store, CL_SPILLED, nbytes, 1, out);
}

/* How many blocks a new segment has: it takes 64 KiB, or a quarter of what all segments take. So a program that needs
 * few blocks does not wait for the pages of many, and one that needs many makes few segments. */
static uint32_t blocks_beside(uint32_t k, uint64_t total_bytes)
{
    uint64_t quarter = total_bytes / 4, most = (quarter > CL_SMALL_MAX ? quarter : CL_SMALL_MAX) / cl_class_size(k);
    uint32_t n = cl_blocks_for(k);
    return most >= n ? n : (uint32_t)most;
}

int cl_alloc(cl_store *store, uint64_t nbytes, unsigned flags, cl_block_ref *out)
{
    if ((flags & CL_ALONE) && nbytes <= CL_SMALL_MAX) {
        nbytes = CL_SMALL_MAX + 1; /* as large ones are */
    }
    uint32_t k = cl_class_of(nbytes);
    if ((flags & CL_FOR_OBJECT) && k < CL_LARGE) {
        k += CL_OBJECTS;
    }
    int rc = cl_enter(store, CL_OP_ALLOC, flags);
    if (rc != CL_OK) {
        return rc;
    }
    cl_scan(store, 0, NULL);
    int adrift = atomic_load_explicit(&store->adrift, memory_order_relaxed);
    out->data = NULL;
    rc = adrift ? CL_OK : alloc_warm(store, k, nbytes, out);
    uint32_t nblocks = k == CL_LARGE ? 1 : blocks_beside(k, store->control->total_bytes);
    cl_leave_keeping_error(store);
    if (adrift && !(flags & CL_STAY)) {
        return cl_fail(CL_REMOVED, 0, "the registry's file was " CL_WHY_REMOVED);
    }
    if (rc != CL_OK || out->data != NULL) {
        return rc;
    }
    if (!(flags & CL_MAY_WAIT)) {
        return CL_AGAIN; /* making a segment takes a while: come back without the GIL */
    }
    if (adrift) {
        return alloc_beside(store, nbytes, out);
    }
    int spill = (flags & CL_MAY_SPILL) && store->spill.path[0] != 0;
    rc = alloc_fresh(store, k, nbytes, nblocks, out);
    if (rc == CL_FULL || rc == CL_TABLE_FULL) {
        int64_t begun = cl_monotonic_ns();
        if (!spill || begun >= atomic_load_explicit(&store->full_until_ns, memory_order_relaxed)) {
            uint64_t freed; /* everything that is not in use is given back first */
            cl_reap(store, CL_MAY_WAIT, NULL);
            cl_trim(store, 0, CL_MAY_WAIT, &freed);
            rc = alloc_fresh(store, k, nbytes, 1, out);
            if (rc == CL_FULL) { /* for a while, blocks that may be on disk go there without another search for room */
                int64_t now = cl_monotonic_ns(), pause = 16 * (now - begun);
                atomic_store_explicit(&store->full_until_ns, now + (pause > FULL_NS ? pause : FULL_NS),
                                      memory_order_relaxed);
            }
        }
        if (rc == CL_FULL && spill) {
            if (cl_home(store, CL_SPILLED, 1) >= 0) {
                rc = alloc_fresh(store, CL_SPILLED, nbytes, 1, out);
            } else {
                cl_last_error()->code = CL_FULL; /* with the reason why it could not go there */
            }
        }
        cl_last_error()->asked = nbytes; /* the size that the caller asked for, not the size of the segment */
    }
    return rc;
}

/* One object less uses a block that other objects of this process still use: the registry is not needed. 1: done. */
static int release_one_of_several(cl_store *store, uint64_t segment_id, uint32_t segment, uint32_t index)
{
    if (segment >= CL_MAX_SEGMENTS || cl_enter_tables(store, 0) != CL_OK) {
        return 0;
    }
    cl_map *map = store->open && store->maps != NULL ? store->maps[segment] : NULL;
    int several = map != NULL && map->id == segment_id && index < map->nblocks && map->blocks[index].references > 1;
    if (several) {
        map->blocks[index].references--;
    }
    cl_leave_tables(store);
    return several;
}

/* The lock cannot be taken: this process's own tables are updated now, its hold is dropped when it next has the
 * lock. */
static int release_later(cl_store *store, uint64_t segment_id, uint32_t segment, uint32_t index)
{
    int rc = cl_enter_tables(store, CL_MAY_WAIT);
    if (rc != CL_OK) {
        return rc;
    }
    cl_map *map = store->open && segment < CL_MAX_SEGMENTS && store->maps != NULL ? store->maps[segment] : NULL;
    cl_local_block *local = map != NULL && index < map->nblocks ? &map->blocks[index] : NULL;
    if (local != NULL && map->id == segment_id && local->references != 0) {
        if (local->references == 1 && local->hold != 0 &&
            !cl_put_off(store, CL_LATER_HOLD, local->hold - 1, segment * CL_BLOCKS + index)) {
            rc = CL_AGAIN; /* there is no memory to note it in */
        } else if (--local->references == 0) {
            map->in_use--;
            local->hold = 0;
            local->private = 0;
        }
    }
    cl_leave_tables(store);
    return rc;
}

int cl_release(cl_store *store, uint64_t segment_id, uint32_t segment, uint32_t index, unsigned flags)
{
    if (release_one_of_several(store, segment_id, segment, index)) {
        return CL_OK;
    }
    int wait = (flags & CL_MAY_WAIT) && !cl_puts_off(store, flags); /* only for the first of many blocks */
    int rc = cl_enter(store, CL_OP_FREE, wait ? flags : flags & ~CL_MAY_WAIT);
    if (rc == CL_AGAIN && (flags & CL_MAY_WAIT)) {
        return release_later(store, segment_id, segment, index);
    }
    if (rc != CL_OK) {
        return rc;
    }
    cl_map *map = segment < CL_MAX_SEGMENTS && store->maps != NULL ? store->maps[segment] : NULL;
    cl_local_block *local = map != NULL && index < map->nblocks ? &map->blocks[index] : NULL;
    if (local != NULL && map->id == segment_id && local->references != 0 && --local->references == 0) {
        map->in_use--;
        if (local->hold != 0) {
            rc = cl_hold_release(store, local->hold - 1, segment * CL_BLOCKS + index);
        }
        local->hold = 0;
        local->private = 0;
        if (map->base == NULL && map->in_use == 0) {
            cl_map_drop(store, map);
        }
        uint64_t keep = atomic_load_explicit(&store->adrift, memory_order_relaxed) ? 0 : store->settings.warm_limit;
        if (store->control->warm_bytes > keep || store->control->first[CL_SPILLED] != 0) {
            uint32_t steps = CL_TRIM_STEPS;
            cl_trim_locked(store, keep, 0, NULL, &steps); /* may drop the map, too */
        }
    }
    cl_leave(store);
    return rc;
}

static int find(const cl_store *store, const uint8_t *p, uint64_t nbytes, cl_block_ref *out)
{
    uint32_t low = 0, high = store->nmaps;
    while (low < high) { /* the last mapping that begins at or before p */
        uint32_t middle = (low + high) / 2;
        if (store->by_address[middle]->base <= p) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    if (low == 0) {
        return 0;
    }
    const cl_map *map = store->by_address[low - 1];
    uint64_t at = (uint64_t)(p - map->base);
    if (map->base == NULL || at < CL_PAGE || at >= map->size) {
        return 0;
    }
    uint64_t index = (at - CL_PAGE) / map->block_size, inside = (at - CL_PAGE) % map->block_size;
    if (index >= map->nblocks || nbytes > map->block_size - inside || map->blocks[index].references == 0) {
        return 0;
    }
    cl_refer(map, (uint32_t)index, map->blocks[index].generation, out);
    return map->blocks[index].private ? 2 : 1;
}

int cl_mark_private(cl_store *store, const cl_block_ref *ref, unsigned flags)
{
    int rc = cl_enter_tables(store, flags);
    if (rc != CL_OK) {
        return rc;
    }
    cl_map *map = store->maps != NULL ? store->maps[ref->segment] : NULL;
    if (map != NULL && map->id == ref->segment_id) {
        map->blocks[ref->index].private = 1;
    }
    cl_leave_tables(store);
    return CL_OK;
}

int cl_find(cl_store *store, const void *address, uint64_t nbytes, unsigned flags, cl_block_ref *out)
{
    int rc = cl_enter_tables(store, flags);
    if (rc != CL_OK) {
        return rc;
    }
    rc = store->open || store->orphan ? find(store, address, nbytes, out) : 0;
    cl_leave_tables(store);
    return rc;
}

int cl_find_any(cl_store *newest, const void *address, uint64_t nbytes, unsigned flags, cl_block_ref *out,
                cl_store **store)
{
    int rc = 0;
    for (*store = newest; *store != NULL; *store = (*store)->older) {
        rc = (*store)->open || (*store)->orphan ? cl_find(*store, address, nbytes, flags, out) : 0;
        if (rc != 0) {
            return rc > 0 && (*store)->orphan ? 3 : rc;
        }
    }
    return 0;
}

int cl_trim(cl_store *store, uint64_t keep_bytes, unsigned flags, uint64_t *freed)
{
    *freed = 0;
    uint32_t looked = 0, slots;
    do { /* in steps, with the lock released between; until a pass over all slots finds nothing */
        uint64_t before = *freed;
        uint32_t steps = CL_TRIM_STEPS;
        int rc = cl_enter(store, CL_OP_REAP, flags);
        if (rc != CL_OK) {
            return rc == CL_AGAIN && *freed != 0 ? CL_OK : rc;
        }
        slots = store->control->segments_high;
        rc = cl_trim_locked(store, keep_bytes, 0, freed, &steps);
        cl_leave(store);
        if (rc != CL_OK) {
            return rc;
        }
        looked = *freed != before ? 0 : steps != 0 ? slots : looked + CL_TRIM_STEPS;
    } while (looked < slots);
    return CL_OK;
}
