/* The table of names: the entries, and the chains of a hash table that find them.
 *
 * Promise: an entry is filled before it is linked. It is linked and unlinked in the caller's transaction.
 *
 *   free --(entry filled, then linked into its bucket)--> published --(unlink, or the block's last hold gone)--> free
 *
 * What SIGKILL leaves: before the link, a free entry with stale text; after it, a name. */
#define _GNU_SOURCE
#include "store.h"

#include <errno.h>
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

cl_name_key cl_array_key(const char *name, uint32_t length)
{
    return (cl_name_key){.name = name, .length = length, .kind = CL_NAME_ARRAY};
}

cl_name_key cl_posix_key(const char *name, uint32_t length, uint64_t device, uint64_t inode)
{
    return (cl_name_key){.name = name, .length = length, .kind = CL_NAME_POSIX, .device = device, .inode = inode};
}

/* Find the entry of a name, or NULL; *before is the chain word that names it. */
int cl_name_find(cl_store *store, cl_name_key k, cl_name **entry, uint32_t **before)
{
    uint64_t hash = hash_of(k.name, k.length, k.kind);
    uint32_t *link = &store->buckets[hash % CL_BUCKETS];
    *entry = NULL;
    for (uint32_t steps = 0; *link != 0; steps++) {
        if (*link > store->control->names_high || *link > CL_MAX_NAMES || steps > CL_MAX_NAMES) {
            return cl_fail(CL_CORRUPT, 0, "registry: a chain of names has the invalid entry %u", *link);
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
    const cl_table table = {.what = "names",
                            .number = CL_TABLE_NAMES,
                            .offset = CL_OFF_NAMES,
                            .stride = sizeof(cl_name),
                            .state_at = offsetof(cl_name, kind),
                            .next_at = offsetof(cl_name, next),
                            .most = CL_MAX_NAMES,
                            .free = &c->names_free,
                            .high = &c->names_high};
    _Static_assert(CL_NAME_FREE == 0, "a grown table's entries are in state 0");
    return cl_table_grow(store, &table, 32, 1);
}

/* Get a filled entry, not linked yet. */
int cl_name_prepare(cl_store *store, cl_name_key k, uint32_t number, cl_name **out)
{
    cl_control *c = store->control;
    int rc = c->names_free == 0 ? grow(store) : CL_OK;
    if (rc != CL_OK) {
        return rc;
    }
    uint32_t i = c->names_free - 1;
    if (i >= c->names_high || store->names[i].kind != CL_NAME_FREE) {
        return cl_fail(CL_CORRUPT, 0, "registry: the free list of names has the invalid entry %u", i);
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

void cl_name_link(cl_store *store, cl_txn *txn, uint32_t kind, cl_name *n)
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
    if (entry >= store->control->names_high || entry >= CL_MAX_NAMES) {
        return;
    }
    cl_name *n = &store->names[entry], *found;
    uint32_t *before;
    cl_name_key k = {.name = n->name, .length = n->length, .kind = n->kind, .device = n->device, .inode = n->inode};
    if (n->length > CL_NAME_MAX || cl_name_find(store, k, &found, &before) != CL_OK || found != n) {
        return;
    }
    cl_set32(txn, before, n->next);
    cl_set32(txn, &n->kind, CL_NAME_FREE);
    cl_set32(txn, &n->next, store->control->names_free);
    cl_set32(txn, &store->control->names_free, entry + 1);
}
