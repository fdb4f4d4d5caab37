/* Names of arrays: one program publishes a name, and an unrelated program finds it.
 *
 * Promise: a name appears in one transaction, after everything that it names is in place, and disappears in the
 * transaction that frees its block. If two processes publish the same name, at most one of them succeeds.
 *
 * What SIGKILL leaves: a name whose block its creator held: the reaper drops that hold, and the name is removed with
 * the block (or stays, with persist). Between the removal of a name and that of its hold: a hold without a name, which
 * the next scan drops. */
#define _GNU_SOURCE
#include "store.h"

#include <errno.h>

int cl_publish(cl_store *store, const char *name, uint32_t length, uint32_t segment, uint32_t index,
               uint64_t spec_offset, uint64_t spec_length, int persist, unsigned flags)
{
    int rc = cl_name_check(name, length);
    if (rc == CL_OK) {
        rc = cl_enter(store, CL_OP_NAME, flags);
    }
    if (rc != CL_OK) {
        return rc;
    }
    if (cl_scan(store, CL_SCAN_FORCE | CL_SCAN_FOR_NAME, NULL) ==
        CL_AGAIN) { /* the name of a dead producer is free again at once */
        cl_leave(store);
        return CL_AGAIN;
    }
    cl_name *entry;
    uint32_t number = segment * CL_BLOCKS + index;
    rc = cl_name_find(store, cl_array_key(name, length), &entry, NULL);
    if (rc == CL_OK && entry != NULL) {
        rc = CL_EXISTS;
    }
    cl_block *block;
    if (rc == CL_OK) {
        rc = cl_block_checked(store, number, &block);
    }
    if (rc == CL_OK && block->name != 0) {
        rc = cl_fail(CL_SYSTEM, EINVAL, "block %u already has a name", number);
    }
    if (rc == CL_OK) {
        rc = cl_name_prepare(store, cl_array_key(name, length), number, &entry);
    }
    if (rc == CL_OK) {
        uint32_t hold = 0;
        cl_txn txn = cl_begin(store->base);
        if (persist) {
            rc = cl_hold_take(store, &txn, CL_HOLD_PERSIST, 0, number, &hold);
            entry->hold = hold + 1;
        }
        if (rc == CL_OK) {
            entry->spec_offset = spec_offset;
            entry->spec_length = spec_length;
            cl_name_link(store, &txn, CL_NAME_ARRAY, entry);
            cl_commit(&txn);
            atomic_fetch_add_explicit(&store->control->names_seq, 1, memory_order_release); /* "name published" */
        }
    }
    cl_leave(store);
    if (rc == CL_OK) {
        cl_wake(&store->control->names_seq, INT32_MAX);
    }
    return rc;
}

int cl_lookup(cl_store *store, const char *name, uint32_t length, unsigned flags, cl_named *out)
{
    int rc = cl_name_check(name, length);
    if (rc == CL_OK) {
        rc = cl_enter(store, CL_OP_NAME, flags);
    }
    if (rc != CL_OK) {
        return rc;
    }
    if (cl_scan(store, CL_SCAN_FORCE | CL_SCAN_FOR_NAME, NULL) == CL_AGAIN) {
        cl_leave(store);
        return CL_AGAIN;
    }
    cl_name *n;
    cl_block *block;
    rc = cl_name_find(store, cl_array_key(name, length), &n, NULL);
    if (rc == CL_OK && n == NULL) {
        rc = CL_MISSING;
    }
    if (rc == CL_OK) {
        rc = cl_block_checked(store, n->block - 1, &block);
    }
    if (rc == CL_OK && block->generation != n->generation) {
        rc = CL_MISSING; /* the block that had the name no longer exists */
    }
    if (rc == CL_OK) {
        uint32_t slot = (n->block - 1) / CL_BLOCKS;
        uint64_t size = store->segments[slot].block_size;
        if (n->spec_length > size || n->spec_offset > size - n->spec_length || block->nbytes > size) {
            rc = cl_fail(CL_CORRUPT, 0, "registry: the description of a name is outside its block");
        } else {
            *out = (cl_named){.address = {.segment_id = store->segments[slot].id,
                                          .generation = block->generation,
                                          .segment = slot,
                                          .index = (n->block - 1) % CL_BLOCKS},
                              .spec_offset = n->spec_offset,
                              .spec_length = n->spec_length,
                              .nbytes = block->nbytes,
                              .persists = n->hold != 0};
        }
    }
    cl_leave(store);
    return rc;
}

/* Remove a name, and the hold that belongs to it. */
int cl_name_withdraw(cl_store *store, cl_name *n)
{
    cl_block *block;
    int rc = cl_block_checked(store, n->block - 1, &block);
    if (rc != CL_OK) {
        return rc;
    }
    uint32_t index = n->hold - 1, of = n->block;
    cl_txn txn = cl_begin(store->base);
    cl_name_remove(store, &txn, (uint32_t)(n - store->names));
    cl_set32(&txn, &block->name, 0);
    cl_commit(&txn);
    /* If the process is killed here, the hold is left without a name. The next scan finds and drops it. */
    CL_KILL_POINT();
    /* A family that ended has dropped its hold; the entry may belong to another by now. */
    const cl_hold *h = index < store->control->holds_high && index < CL_MAX_HOLDS ? &store->holds[index] : NULL;
    int stands = h != NULL && (h->kind == CL_HOLD_FAMILY || h->kind == CL_HOLD_PERSIST) && h->block == of;
    return stands ? cl_hold_drop(store, index) : CL_OK;
}

/* `block`: its number + 1, or 0 for any. */
static int unpublish(cl_store *store, const char *name, uint32_t length, uint32_t block, unsigned flags)
{
    int rc = cl_name_check(name, length);
    if (rc == CL_OK) {
        rc = cl_enter(store, CL_OP_NAME, flags);
    }
    if (rc != CL_OK) {
        return rc;
    }
    cl_name *n;
    rc = cl_name_find(store, cl_array_key(name, length), &n, NULL);
    if (rc == CL_OK) {
        rc = n == NULL || (block != 0 && n->block != block) ? CL_MISSING : cl_name_withdraw(store, n);
    }
    cl_leave(store);
    return rc;
}

int cl_unpublish(cl_store *store, const char *name, uint32_t length, unsigned flags)
{
    return unpublish(store, name, length, 0, flags);
}

int cl_unpublish_of(cl_store *store, const char *name, uint32_t length, uint32_t segment, uint32_t index,
                    unsigned flags)
{
    return unpublish(store, name, length, segment * CL_BLOCKS + index + 1, flags);
}
