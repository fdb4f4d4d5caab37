/* Messages: a block on its way to another process, and its arrival.
 *
 * Promise: loading verifies the block's generation under the registry's lock, so a process never gets the bytes of
 * another block. A message's hold becomes its receiver's hold in one transaction: at every moment one of the two
 * exists, whichever process is killed.
 *
 *   free --(send)--> message --(load with the right nonce)--> owner's
 *                            --(failed pickling, end of the family, time)--> free
 *   owner's, drafted --(mail: its queue lies in another store)--> message
 *
 * What SIGKILL leaves: a message that was sent and never loaded; the reaper drops it when its time or its family ends.
 * A receiver that is killed after the load leaves an owner's hold, which is reaped with the owner. */
#define _GNU_SOURCE
#include "store.h"

static int send(cl_store *store, uint32_t segment, uint32_t index, int draft, unsigned flags, cl_address *out)
{
    int rc = cl_enter(store, CL_OP_SEND, flags);
    if (rc != CL_OK) {
        return rc;
    }
    cl_map *map = segment < CL_MAX_SEGMENTS && store->maps != NULL ? store->maps[segment] : NULL;
    if (map == NULL || map->base == NULL /* a POSIX object: it is sent by its name */ || index >= map->nblocks ||
        map->blocks[index].references == 0) {
        rc = cl_fail(CL_STALE, 0, "this process does not hold this block");
    } else {
        rc = cl_segment_check(store, map);
    }
    if (rc == CL_OK) {
        uint32_t hold;
        cl_txn txn = cl_begin(store->base);
        rc = cl_hold_take(store, &txn, draft ? CL_HOLD_OWNER : CL_HOLD_MESSAGE, store->slot + 1,
                          segment * CL_BLOCKS + index, &hold);
        if (rc == CL_OK) {
            if (draft) {
                cl_set64(&txn, &store->holds[hold].nonce, cl_new_nonce(store));
                cl_set32(&txn, &store->holds[hold].from, CL_NEVER);
            }
            cl_commit(&txn);
            *out = (cl_address){.segment_id = map->id,
                                .generation = map->blocks[index].generation,
                                .segment = segment,
                                .index = index,
                                .hold = hold,
                                .nonce = store->holds[hold].nonce};
        }
    }
    cl_leave(store);
    return rc;
}

int cl_send(cl_store *store, uint32_t segment, uint32_t index, unsigned flags, cl_address *out)
{
    return send(store, segment, index, 0, flags, out);
}

int cl_draft(cl_store *store, uint32_t segment, uint32_t index, unsigned flags, cl_address *out)
{
    return send(store, segment, index, 1, flags, out);
}

int cl_mail(cl_store *store, uint32_t hold, uint64_t nonce, unsigned flags)
{
    int rc = cl_enter(store, CL_OP_SEND, flags);
    if (rc != CL_OK) {
        return rc;
    }
    if (!cl_is_message(store, hold, nonce, UINT32_MAX) || store->holds[hold].kind != CL_HOLD_OWNER) {
        rc = cl_fail(CL_CORRUPT, 0, "registry: hold %u is not a draft of this process", hold);
    } else {
        cl_txn txn = cl_begin(store->base);
        rc = cl_hold_unlink(store, &txn, hold);
        if (rc == CL_OK) {
            cl_set32(&txn, &store->holds[hold].kind, CL_HOLD_MESSAGE);
            cl_set64(&txn, (uint64_t *)(void *)&store->holds[hold].deadline_ns,
                     (uint64_t)cl_hold_describe(store, hold, CL_HOLD_MESSAGE)); /* which is never read of a draft */
            cl_set32(&txn, &store->control->messages, store->control->messages + 1);
            cl_commit(&txn);
        }
    }
    cl_leave_keeping_error(store);
    return rc;
}

int cl_unsend(cl_store *store, uint32_t hold, uint64_t nonce, unsigned flags)
{
    int wait = (flags & CL_MAY_WAIT) && !cl_puts_off(store, flags); /* only the first of many holds */
    int rc = cl_enter(store, CL_OP_SEND, wait ? flags : flags & ~CL_MAY_WAIT);
    if (rc == CL_OK) {
        if (cl_is_message(store, hold, nonce, UINT32_MAX)) {
            rc = cl_hold_drop(store, hold);
        }
        cl_leave(store);
    } else if (rc == CL_AGAIN && (flags & CL_MAY_WAIT) && cl_enter_tables(store, flags) == CL_OK) {
        rc = cl_put_off(store, CL_LATER_MESSAGE, hold, nonce) ? CL_OK : rc;
        cl_leave_tables(store);
    }
    return rc;
}

/* A message's hold, or a draft, becomes the hold of an object of this process. */
static int receive(cl_store *store, uint32_t index)
{
    cl_hold *h = &store->holds[index];
    cl_txn txn = cl_begin(store->base);
    int rc = CL_OK;
    if (h->kind == CL_HOLD_MESSAGE) {
        cl_set32(&txn, &store->control->messages, store->control->messages - (store->control->messages != 0));
        rc = cl_hold_own(store, &txn, index, store->slot + 1, 0);
    } else { /* already on this process's list */
        cl_set64(&txn, &h->nonce, 0);
        cl_set32(&txn, &h->from, store->owners[store->slot].epoch);
        cl_mark_clear(store, &txn, index);
    }
    if (rc == CL_OK) {
        cl_commit(&txn);
    }
    return rc;
}

/* The hold for a load: one that this process has already, or the message's, or a new one. */
static int hold_for_load(cl_store *store, const cl_address *a, cl_map *map, const cl_block *block)
{
    uint32_t number = a->segment * CL_BLOCKS + a->index;
    cl_local_block *local = &map->blocks[a->index];
    int message = cl_is_message(store, a->hold, a->nonce, number);
    int rc = CL_OK;
    if (local->hold != 0) {
        return message ? cl_hold_drop(store, a->hold) : CL_OK;
    }
    if (message) {
        rc = receive(store, a->hold);
        if (rc == CL_OK) {
            local->hold = a->hold + 1;
        }
    } else {
        uint32_t hold;
        cl_txn txn = cl_begin(store->base);
        rc = cl_hold_take(store, &txn, CL_HOLD_OWNER, store->slot + 1, number, &hold);
        if (rc == CL_OK) {
            cl_commit(&txn);
            local->hold = hold + 1;
        }
    }
    local->generation = block->generation;
    return rc;
}

/* Whether the registry looks valid without its lock; while the lock is taken this cannot be decided cheaply. */
static int looks_sound(cl_store *store)
{
    const cl_owner *me = &store->owners[store->slot];
    return cl_check_registry(store) == CL_OK && atomic_load(&store->control->lock) == 0 &&
           me->incarnation == store->incarnation && me->state == CL_OWNER_LIVE;
}

/* Another object for a block that this process holds already: its own tables suffice, the registry is only read.
 * CL_AGAIN: use the full way, which also reports errors. */
static int load_held(cl_store *store, const cl_address *a, unsigned flags, cl_block_ref *out)
{
    if (a->nonce != 0 || a->segment >= CL_MAX_SEGMENTS || a->index >= CL_BLOCKS ||
        cl_enter_tables(store, flags) != CL_OK) {
        return CL_AGAIN;
    }
    int rc = CL_AGAIN;
    cl_map *map = store->open && store->maps != NULL ? store->maps[a->segment] : NULL;
    if (map != NULL && map->id == a->segment_id && map->base != NULL && a->index < map->nblocks) {
        cl_local_block *local = &map->blocks[a->index];
        if (local->references != 0 && local->hold != 0 && local->generation == a->generation && looks_sound(store)) {
            rc = cl_segment_check(store, map);
            if (rc == CL_OK) {
                local->references++;
                cl_refer(map, a->index, local->generation, out);
            }
        }
    }
    cl_leave_tables(store);
    return rc;
}

static int load_entered(cl_store *store, const cl_address *a, cl_block_ref *out)
{
    int rc;
    cl_block *block = NULL;
    cl_map *map = NULL;
    cl_segment *segment = &store->segments[a->segment < CL_MAX_SEGMENTS ? a->segment : 0];
    if (a->segment >= store->control->segments_high || a->index >= CL_BLOCKS || segment->id != a->segment_id ||
        segment->state != CL_SEGMENT_READY ||
        (segment->blocks[a->index].generation != a->generation && !CL_MUTANT(load_ignores_generation)) ||
        segment->blocks[a->index].state != CL_BLOCK_USED) {
        return cl_fail(CL_STALE, 0, "the block no longer exists (segment %016llx, generation %llu)",
                       (unsigned long long)a->segment_id, (unsigned long long)a->generation);
    }
    rc = cl_block_checked(store, a->segment * CL_BLOCKS + a->index, &block);
    if (rc == CL_OK) {
        rc = cl_segment_map(store, a->segment_id, a->segment, &map);
        if (rc == CL_STALE && atomic_load_explicit(&store->adrift, memory_order_relaxed)) {
            return cl_fail(CL_STALE, 0, "this process has not mapped segment %016llx, and its file was " CL_WHY_REMOVED,
                           (unsigned long long)a->segment_id);
        }
        if (rc == CL_STALE) {
            rc = cl_fail(CL_CORRUPT, 0, "segment %016llx: its file was removed", (unsigned long long)a->segment_id);
        }
    }
    if (rc == CL_OK && !CL_MUTANT(load_agreement_unchecked)) {
        rc = cl_segment_agrees(store, map);
    }
    if (rc == CL_OK) {
        rc = hold_for_load(store, a, map, block);
    }
    if (rc == CL_OK) {
        map->in_use += map->blocks[a->index].references == 0;
        map->blocks[a->index].references++;
        cl_refer(map, a->index, a->generation, out);
    }
    return rc;
}

int cl_load(cl_store *store, const cl_address *a, unsigned flags, cl_block_ref *out)
{
    int rc = load_held(store, a, flags, out);
    if (rc != CL_AGAIN) {
        return rc;
    }
    rc = cl_enter(store, CL_OP_LOAD, flags);
    if (rc != CL_OK) {
        return rc;
    }
    if ((uint64_t)cl_monotonic_ns() - store->control->scanned_ns > 1000000000) {
        cl_scan(store, 0, NULL); /* a program that only reads also reclaims what dead processes held */
    }
    rc = load_entered(store, a, out);
    cl_leave_keeping_error(store);
    return rc;
}
