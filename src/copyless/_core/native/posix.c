/* POSIX objects: shared memory in the standard library's place, which the registry knows by its name.
 *
 * Promise: an object that copyless made is recorded before it appears under its name, and forgotten when it is
 * unlinked. So it is removed with its last hold even if its creator is killed.
 *
 * What SIGKILL leaves: an object is recorded before it is linked into /dev/shm. If the process is killed between the
 * two steps, the record names an inode that no file has. Dropping the record then has no effect on any file. */
#define _GNU_SOURCE
#include "store.h"

#include <errno.h>
#include <stdlib.h>

/* This process's own entry for it. It is made before anything is recorded, because it takes memory, of which there may
 * be none. */
static int external_map(cl_store *store, uint32_t slot, uint64_t id, cl_map **found)
{
    cl_map *map = store->maps != NULL ? store->maps[slot] : NULL;
    if (map == NULL || map->id != id) {
        map = calloc(1, sizeof *map);
        if (map == NULL) {
            return cl_fail(CL_SYSTEM, ENOMEM, "allocating the table of a mapping");
        }
        map->id = id;
        map->slot = slot;
        map->nblocks = 1;
        int rc = cl_map_add(store, map);
        if (rc != CL_OK) {
            free(map);
            return rc;
        }
    }
    *found = map;
    return CL_OK;
}

static void stand_on_external(cl_store *store, cl_map *map, uint32_t hold)
{
    cl_local_block *local = &map->blocks[0];
    if (hold != 0) {
        local->hold = hold;
        local->generation = store->segments[map->slot].blocks[0].generation;
    }
    map->in_use += local->references == 0;
    local->references++;
}

int cl_posix_record(cl_store *store, const char *name, uint32_t length, uint64_t device, uint64_t inode,
                    uint64_t nbytes, int family, unsigned flags, uint64_t *id, uint32_t *slot)
{
    int rc = cl_name_check(name, length);
    if (rc == CL_OK) {
        rc = cl_enter(store, CL_OP_NAME, flags);
    }
    if (rc != CL_OK) {
        return rc;
    }
    cl_scan(store, 0, NULL);
    cl_name *entry;
    cl_map *map = NULL;
    rc = cl_name_find(store, cl_posix_key(name, length, device, inode), &entry, NULL);
    if (rc == CL_OK && entry != NULL) {
        rc = cl_name_withdraw(store, entry); /* of an object that no longer exists: its inode was reused */
    }
    if (rc == CL_OK) {
        *id = cl_random64();
        rc = cl_segment_slot(store, CL_SEGMENT_MAKING, *id, 1, slot);
    }
    if (rc == CL_OK) {
        cl_segment *s = &store->segments[*slot];
        cl_block *b = &s->blocks[0];
        uint32_t number = *slot * CL_BLOCKS, hold = 0;
        s->nblocks = 1;
        s->class_index = CL_LARGE;
        b->generation++;
        b->nbytes = nbytes;
        b->holds = 0;
        b->state = CL_BLOCK_NONE;
        b->creator_pid = store->identity.pid;
        b->created_ns = cl_realtime_ns();
        rc = external_map(store, *slot, *id, &map);
        if (rc == CL_OK) {
            rc = cl_name_prepare(store, cl_posix_key(name, length, device, inode), number, &entry);
        }
        if (rc == CL_OK) {
            cl_txn txn = cl_begin(store->base);
            rc = cl_hold_take(store, &txn, family ? CL_HOLD_FAMILY : CL_HOLD_OWNER, store->slot + 1, number, &hold);
            if (rc == CL_OK) {
                entry->hold = family ? hold + 1 : 0;
                cl_name_link(store, &txn, CL_NAME_POSIX, entry);
                cl_set32(&txn, &b->state, CL_BLOCK_USED);
                cl_set32(&txn, &s->owner, 0);
                cl_set32(&txn, &s->state, CL_SEGMENT_EXTERNAL);
                cl_commit(&txn);
            }
        }
        if (rc != CL_OK) {
            cl_segment_forget(store, *slot);
        } else if (family) {
            cl_txn txn = cl_begin(store->base);
            rc = cl_hold_take(store, &txn, CL_HOLD_OWNER, store->slot + 1, number, &hold);
            if (rc == CL_OK) {
                cl_commit(&txn);
            } else {
                cl_name_withdraw(store, entry);
            }
        }
        if (rc == CL_OK) {
            stand_on_external(store, map, hold + 1);
        }
    }
    cl_leave(store);
    return rc;
}

int cl_posix_attach(cl_store *store, const char *name, uint32_t length, uint64_t device, uint64_t inode, unsigned flags,
                    uint64_t *id, uint32_t *slot)
{
    int rc = cl_name_check(name, length);
    if (rc == CL_OK) {
        rc = cl_enter(store, CL_OP_LOAD, flags);
    }
    if (rc != CL_OK) {
        return rc;
    }
    cl_name *n;
    rc = cl_name_find(store, cl_posix_key(name, length, device, inode), &n, NULL);
    if (rc == CL_OK && n == NULL) {
        rc = CL_MISSING;
    }
    if (rc == CL_OK) {
        cl_block *block;
        rc = cl_block_checked(store, n->block - 1, &block);
    }
    if (rc == CL_OK) {
        *slot = (n->block - 1) / CL_BLOCKS;
        *id = store->segments[*slot].id;
        uint32_t hold = 0;
        cl_map *map;
        rc = external_map(store, *slot, *id, &map);
        if (rc == CL_OK && map->blocks[0].hold == 0) {
            cl_txn txn = cl_begin(store->base);
            rc = cl_hold_take(store, &txn, CL_HOLD_OWNER, store->slot + 1, n->block - 1, &hold);
            if (rc == CL_OK) {
                cl_commit(&txn);
                hold++;
            }
        }
        if (rc == CL_OK) {
            stand_on_external(store, map, hold);
        }
    }
    cl_leave(store);
    return rc;
}

int cl_posix_forget(cl_store *store, const char *name, uint32_t length, uint64_t device, uint64_t inode, unsigned flags)
{
    int rc = cl_name_check(name, length);
    if (rc == CL_OK) {
        rc = cl_enter(store, CL_OP_NAME, flags);
    }
    if (rc != CL_OK) {
        return rc;
    }
    cl_name *n;
    rc = cl_name_find(store, cl_posix_key(name, length, device, inode), &n, NULL);
    if (rc == CL_OK && n != NULL) {
        rc = cl_name_withdraw(store, n);
    }
    cl_leave(store);
    return rc;
}
