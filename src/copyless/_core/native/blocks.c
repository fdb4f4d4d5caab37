/* Blocks in the registry: their sizes, and the lists of free blocks.
 *
 * Promise: a block's entry is returned only after its segment was checked. A free block is on exactly one list, the
 * list of its size. The lists are doubly linked; the block that was freed last is first.
 *
 *   small   19 sizes, 128 B to 64 KiB (two per power of two); up to 64 blocks of a size share a segment
 *   large   whole pages, alone in a segment; a free block serves requests of at least four fifths of its size
 *   objects the small sizes again, for objects: a write past the end of an array cannot hit a lock or a queue
 *   spilled like large, but files on disk: for transfers that must succeed when shared memory is full; never kept warm
 *
 * What SIGKILL leaves: the state before or after a transaction, never a state between. */
#define _GNU_SOURCE
#include "store.h"

int cl_block_checked(cl_store *store, uint32_t number, cl_block **block)
{
    uint32_t slot = number / CL_BLOCKS, index = number % CL_BLOCKS;
    if (slot >= store->control->segments_high || slot >= CL_MAX_SEGMENTS) {
        return cl_fail(CL_CORRUPT, 0, "registry: block %u is outside the table of %u segments", number,
                       store->control->segments_high);
    }
    cl_segment *s = &store->segments[slot];
    if (s->nblocks > CL_BLOCKS || index >= s->nblocks || s->state > CL_SEGMENT_EXTERNAL ||
        s->class_index >= CL_CLASSES) {
        return cl_fail(CL_CORRUPT, 0, "registry: segment slot %u is overwritten", slot);
    }
    *block = &s->blocks[index];
    return CL_OK;
}

uint64_t cl_class_size(uint32_t k)
{
    k = k >= CL_OBJECTS ? k - CL_OBJECTS : k;
    return (k % 2 ? (uint64_t)192 : (uint64_t)128) << (k / 2);
}

uint32_t cl_class_of(uint64_t nbytes)
{
    uint32_t k = 0;
    while (k < CL_LARGE && cl_class_size(k) < nbytes) {
        k++;
    }
    return k;
}

uint64_t cl_capacity_for(uint64_t nbytes)
{
    uint32_t k = cl_class_of(nbytes);
    return k < CL_LARGE ? cl_class_size(k) : (nbytes + CL_PAGE - 1) / CL_PAGE * CL_PAGE;
}

uint32_t cl_blocks_for(uint32_t k)
{
    uint64_t n = k == CL_LARGE ? 1 : ((uint64_t)1 << 20) / cl_class_size(k);
    return n > CL_BLOCKS ? CL_BLOCKS : (uint32_t)n;
}

int cl_unlink_free(cl_store *store, cl_txn *txn, uint32_t number)
{
    cl_control *c = store->control;
    cl_block *b, *other;
    int rc = cl_block_checked(store, number, &b);
    uint32_t k = store->segments[number / CL_BLOCKS].class_index;
    if (rc == CL_OK && b->prev != 0) {
        rc = cl_block_checked(store, b->prev - 1, &other);
        if (rc == CL_OK) {
            cl_set32(txn, &other->next, b->next);
        }
    } else if (rc == CL_OK) {
        cl_set32(txn, &c->first[k], b->next);
    }
    if (rc == CL_OK && b->next != 0) {
        rc = cl_block_checked(store, b->next - 1, &other);
        if (rc == CL_OK) {
            cl_set32(txn, &other->prev, b->prev);
        }
    } else if (rc == CL_OK) {
        cl_set32(txn, &c->last[k], b->prev);
    }
    return rc;
}

void cl_free_block(cl_store *store, cl_txn *txn, uint32_t number)
{
    cl_control *c = store->control;
    cl_segment *s = &store->segments[number / CL_BLOCKS];
    cl_block *b = &s->blocks[number % CL_BLOCKS], *head;
    uint32_t k = s->class_index, first = c->first[k];
    cl_set32(txn, &b->state, CL_BLOCK_FREE);
    cl_set32(txn, &b->prev, 0);
    cl_set32(txn, &b->next, first);
    cl_set32(txn, &c->first[k], number + 1);
    if (first == 0 || cl_block_checked(store, first - 1, &head) != CL_OK) {
        cl_set32(txn, &c->last[k], number + 1);
    } else {
        cl_set32(txn, &head->prev, number + 1);
    }
    cl_set32(txn, &s->used, s->used - (s->used != 0));
    if (s->used == 1) {
        s->idle_since_ns = cl_monotonic_ns();
        cl_set64(txn, &c->warm_bytes, c->warm_bytes + s->file_size);
    }
}
