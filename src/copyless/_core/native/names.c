/* Names: arrays and POSIX objects that unrelated programs find.
 *
 * Promise: a name appears in one transaction, after all that it names is in place, and goes in the transaction that
 * frees its block; two processes that publish the same name never both succeed.
 *
 *   free --(entry filled, then linked into its bucket)--> published --(unlink, or the block's last hold gone)--> free
 *
 * What SIGKILL leaves: before the link, a free entry with stale text. After it, a name whose block its creator held: the
 * reaper drops that hold, and the name goes with the block (or stays, with persist).
 *
 * A POSIX object is recorded before it is linked into /dev/shm: killed between, the record names an inode that no file
 * has, and is dropped to no effect. */
#define _GNU_SOURCE
#include "store.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

int cl_name_check(const char *name, uint32_t length)
{
    if (length == 0 || length > CL_NAME_MAX) {
        return cl_fail(CL_SYSTEM, length == 0 ? EINVAL : ENAMETOOLONG, "a name of %u bytes", length);
    }
    for (uint32_t i = 0; i < length; i++) {
        if (name[i] == '/' || name[i] == 0) {
            return cl_fail(CL_SYSTEM, EINVAL, "a name with '/' or NUL");
        }
    }
    return CL_OK;
}

static uint64_t hash_of(const char *name, uint32_t length, uint32_t kind)
{
    return cl_hash64(name, length) ^ kind;
}

/* What is looked for. POSIX objects are told apart by device and inode too: a name may have been given again. */
typedef struct key {
    const char *name;
    uint32_t length, kind;
    uint64_t device, inode;
} key;

static key array_key(const char *name, uint32_t length)
{
    return (key){.name = name, .length = length, .kind = CL_NAME_ARRAY};
}

static key posix_key(const char *name, uint32_t length, uint64_t device, uint64_t inode)
{
    return (key){.name = name, .length = length, .kind = CL_NAME_POSIX, .device = device, .inode = inode};
}

/* The entry of a name, or NULL; *before is the chain word that leads to it. */
static int find(cl_store *store, key k, cl_name **entry, uint32_t **before)
{
    uint64_t hash = hash_of(k.name, k.length, k.kind);
    uint32_t *link = &store->buckets[hash % CL_BUCKETS];
    *entry = NULL;
    for (uint32_t steps = 0; *link != 0; steps++) {
        if (*link > store->control->names_high || *link > CL_MAX_NAMES || steps > CL_MAX_NAMES) {
            return cl_fail(CL_CORRUPT, 0, "registry: a chain of names leads to entry %u", *link);
        }
        cl_name *n = &store->names[*link - 1];
        if (n->kind == k.kind && n->hash == hash && n->device == k.device && n->inode == k.inode &&
            n->length == k.length && memcmp(n->name, k.name, k.length) == 0) {
            *entry = n;
            break;
        }
        link = &n->next;
    }
    if (before != NULL) {
        *before = link;
    }
    return CL_OK;
}

static int grow(cl_store *store)
{
    cl_control *c = store->control;
    uint32_t high = c->names_high, n = 32;
    if (high + n > CL_MAX_NAMES) {
        return cl_fail(CL_TABLE_FULL, 0, "all %u names are taken", high);
    }
    int rc = cl_reserve(store, CL_OFF_NAMES + (uint64_t)high * sizeof(cl_name), n * sizeof(cl_name));
    if (rc != CL_OK) {
        return rc;
    }
    for (uint32_t i = high; i < high + n; i++) {
        store->names[i].kind = CL_NAME_FREE;
        store->names[i].next = i + 1 < high + n ? i + 2 : 0;
    }
    cl_txn txn = cl_begin(store->base);
    cl_set32(&txn, &c->names_free, high + 1);
    cl_set32(&txn, &c->names_high, high + n);
    cl_commit(&txn);
    return CL_OK;
}

/* A filled entry, not yet linked. */
static int prepare(cl_store *store, key k, uint32_t number, cl_name **out)
{
    cl_control *c = store->control;
    int rc = c->names_free == 0 ? grow(store) : CL_OK;
    if (rc != CL_OK) {
        return rc;
    }
    uint32_t i = c->names_free - 1;
    if (i >= c->names_high || store->names[i].kind != CL_NAME_FREE) {
        return cl_fail(CL_CORRUPT, 0, "registry: the free list of names leads to %u", i);
    }
    cl_name *n = &store->names[i];
    n->block = number + 1;
    n->length = k.length;
    n->hash = hash_of(k.name, k.length, k.kind);
    n->device = k.device;
    n->inode = k.inode;
    n->generation = store->segments[number / CL_BLOCKS].blocks[number % CL_BLOCKS].generation;
    n->hold = 0;
    memset(n->name, 0, sizeof n->name);
    memcpy(n->name, k.name, k.length);
    *out = n;
    return CL_OK;
}

static void link_name(cl_store *store, cl_txn *txn, uint32_t kind, cl_name *n)
{
    uint32_t *bucket = &store->buckets[n->hash % CL_BUCKETS], number = n->block - 1;
    cl_set32(txn, &store->control->names_free, n->next);
    cl_set32(txn, &n->next, *bucket);
    cl_set32(txn, &n->kind, kind);
    cl_set32(txn, bucket, (uint32_t)(n - store->names) + 1);
    cl_set32(txn, &store->segments[number / CL_BLOCKS].blocks[number % CL_BLOCKS].name,
             (uint32_t)(n - store->names) + 1);
}

void cl_name_remove(cl_store *store, cl_txn *txn, uint32_t entry)
{
    if (entry >= store->control->names_high) {
        return;
    }
    cl_name *n = &store->names[entry], *found;
    uint32_t *before;
    key k = {.name = n->name, .length = n->length, .kind = n->kind, .device = n->device, .inode = n->inode};
    if (n->length > CL_NAME_MAX || find(store, k, &found, &before) != CL_OK || found != n) {
        return;
    }
    cl_set32(txn, before, n->next);
    cl_set32(txn, &n->kind, CL_NAME_FREE);
    cl_set32(txn, &n->next, store->control->names_free);
    cl_set32(txn, &store->control->names_free, entry + 1);
}

/* ---- arrays */

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
    cl_scan(store, CL_SCAN_FORCE, NULL); /* a dead producer's name is free again at once */
    cl_name *entry;
    uint32_t number = segment * CL_BLOCKS + index;
    rc = find(store, array_key(name, length), &entry, NULL);
    if (rc == CL_OK && entry != NULL) {
        rc = CL_EXISTS;
    }
    if (rc == CL_OK) {
        rc = prepare(store, array_key(name, length), number, &entry);
    }
    if (rc == CL_OK) {
        uint32_t hold;
        cl_txn txn = cl_begin(store->base);
        if (persist) {
            rc = cl_hold_take(store, &txn, CL_HOLD_PERSIST, 0, number, &hold);
            entry->hold = hold + 1;
        }
        if (rc == CL_OK) {
            entry->spec_offset = spec_offset;
            entry->spec_length = spec_length;
            link_name(store, &txn, CL_NAME_ARRAY, entry);
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
    cl_scan(store, CL_SCAN_FORCE, NULL);
    cl_name *n;
    cl_block *block;
    rc = find(store, array_key(name, length), &n, NULL);
    if (rc == CL_OK && n == NULL) {
        rc = CL_MISSING;
    }
    if (rc == CL_OK) {
        rc = cl_block_checked(store, n->block - 1, &block);
    }
    if (rc == CL_OK) {
        uint32_t slot = (n->block - 1) / CL_BLOCKS;
        uint64_t size = store->segments[slot].block_size;
        if (n->spec_length > size || n->spec_offset > size - n->spec_length || block->nbytes > size) {
            rc = cl_fail(CL_CORRUPT, 0, "registry: the description of a name lies outside its block");
        } else {
            *out = (cl_named){.address = {.segment_id = store->segments[slot].id,
                                          .generation = block->generation,
                                          .segment = slot,
                                          .index = (n->block - 1) % CL_BLOCKS},
                              .spec_offset = n->spec_offset,
                              .spec_length = n->spec_length,
                              .nbytes = block->nbytes};
        }
    }
    cl_leave(store);
    return rc;
}

/* Take a name away, and the hold that goes with it. */
static int remove_name(cl_store *store, cl_name *n)
{
    cl_block *block;
    int rc = cl_block_checked(store, n->block - 1, &block);
    if (rc != CL_OK) {
        return rc;
    }
    uint32_t hold = n->hold;
    cl_txn txn = cl_begin(store->base);
    cl_name_remove(store, &txn, (uint32_t)(n - store->names));
    cl_set32(&txn, &block->name, 0);
    cl_commit(&txn);
    /* Killed here: the hold stands without a name. The next scan finds and drops it. */
    CL_KILL_POINT();
    return hold != 0 ? cl_hold_drop(store, hold - 1) : CL_OK;
}

int cl_unpublish(cl_store *store, const char *name, uint32_t length, unsigned flags)
{
    int rc = cl_name_check(name, length);
    if (rc == CL_OK) {
        rc = cl_enter(store, CL_OP_NAME, flags);
    }
    if (rc != CL_OK) {
        return rc;
    }
    cl_name *n;
    rc = find(store, array_key(name, length), &n, NULL);
    if (rc == CL_OK) {
        rc = n == NULL ? CL_MISSING : remove_name(store, n);
    }
    cl_leave(store);
    return rc;
}

/* ---- POSIX objects */

static int stand_on_external(cl_store *store, uint32_t slot, uint32_t hold)
{
    cl_map *map = store->maps != NULL ? store->maps[slot] : NULL;
    if (map == NULL || map->id != store->segments[slot].id) {
        map = calloc(1, sizeof *map);
        if (map == NULL) {
            return cl_fail(CL_SYSTEM, ENOMEM, "a mapping's table");
        }
        map->id = store->segments[slot].id;
        map->slot = slot;
        map->nblocks = 1;
        int rc = cl_map_add(store, map);
        if (rc != CL_OK) {
            free(map);
            return rc;
        }
    }
    cl_local_block *local = &map->blocks[0];
    if (hold != 0) {
        local->hold = hold;
        local->generation = store->segments[slot].blocks[0].generation;
    }
    map->in_use += local->references == 0;
    local->references++;
    return CL_OK;
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
    rc = find(store, posix_key(name, length, device, inode), &entry, NULL);
    if (rc == CL_OK && entry != NULL) {
        rc = remove_name(store, entry); /* of an object that is gone: its inode is given again */
    }
    if (rc == CL_OK) {
        *id = cl_random64();
        rc = cl_segment_slot(store, CL_SEGMENT_MAKING, *id, slot);
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
        rc = prepare(store, posix_key(name, length, device, inode), number, &entry);
        if (rc == CL_OK) {
            cl_txn txn = cl_begin(store->base);
            rc = cl_hold_take(store, &txn, family ? CL_HOLD_FAMILY : CL_HOLD_OWNER, store->slot + 1, number, &hold);
            if (rc == CL_OK) {
                entry->hold = family ? hold + 1 : 0;
                link_name(store, &txn, CL_NAME_POSIX, entry);
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
            }
        }
        if (rc == CL_OK) {
            rc = stand_on_external(store, *slot, hold + 1);
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
    rc = find(store, posix_key(name, length, device, inode), &n, NULL);
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
        const cl_map *map = store->maps != NULL ? store->maps[*slot] : NULL;
        if (map == NULL || map->id != *id || map->blocks[0].hold == 0) {
            cl_txn txn = cl_begin(store->base);
            rc = cl_hold_take(store, &txn, CL_HOLD_OWNER, store->slot + 1, n->block - 1, &hold);
            if (rc == CL_OK) {
                cl_commit(&txn);
                hold++;
            }
        }
        if (rc == CL_OK) {
            rc = stand_on_external(store, *slot, hold);
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
    rc = find(store, posix_key(name, length, device, inode), &n, NULL);
    if (rc == CL_OK && n != NULL) {
        rc = remove_name(store, n);
    }
    cl_leave(store);
    return rc;
}
