#define _GNU_SOURCE
#include "queue_parts.h"

#include <string.h>

void cl_queue_give_back(cl_queue *q, const cl_block_ref *r)
{
    while (cl_release(q->store, r->segment_id, r->segment, r->index, CL_MAY_WAIT) == CL_AGAIN) {
    }
}

void cl_queue_drop_chunk(cl_queue *q, cl_cached *c)
{
    if (c->held) {
        c->held = 0;
        cl_queue_give_back(q, &c->ref);
    }
}

static int is_at(const cl_cached *c, uint64_t segment_id, uint64_t generation, uint64_t block)
{
    return c->held && c->ref.segment_id == segment_id && c->ref.generation == generation &&
           (uint64_t)c->ref.segment * CL_BLOCKS + c->ref.index == block;
}

int cl_queue_load(cl_queue *q, uint64_t segment_id, uint64_t generation, uint64_t block, unsigned flags,
                  cl_block_ref *out)
{
    if (block >= (uint64_t)CL_MAX_SEGMENTS * CL_BLOCKS) {
        return cl_fail(CL_CORRUPT, 0, "queue: block %llu does not exist", (unsigned long long)block);
    }
    cl_address a = {.segment_id = segment_id,
                    .generation = generation,
                    .segment = (uint32_t)(block / CL_BLOCKS),
                    .index = (uint32_t)(block % CL_BLOCKS)};
    return cl_load(q->store, &a, flags, out);
}

int cl_queue_stand_on(cl_queue *q, cl_cached *c, uint64_t segment_id, uint64_t generation, uint64_t block,
                      uint64_t serial, unsigned flags)
{
    if (is_at(c, segment_id, generation, block)) {
        return CL_OK;
    }
    if (!(flags & CL_MAY_WAIT)) {
        return CL_AGAIN;
    }
    cl_block_ref ref;
    int rc = cl_queue_load(q, segment_id, generation, block, flags, &ref);
    if (rc == CL_STALE) { /* the queue holds its chunks, so its description of them is wrong */
        return cl_fail(CL_CORRUPT, 0, "queue: chunk %llu is not in block %llu, where the queue expects it",
                       (unsigned long long)serial, (unsigned long long)block);
    }
    if (rc != CL_OK) {
        return rc;
    }
    uint64_t is = 0;
    if (ref.capacity >= sizeof(cl_chunk) + CL_JUMP_BYTES) {
        cl_read_words(&is, ref.data + offsetof(cl_chunk, serial), sizeof is);
    }
    if (ref.capacity < sizeof(cl_chunk) + CL_JUMP_BYTES || (serial != 0 && is != serial)) {
        cl_queue_give_back(q, &ref);
        return cl_fail(CL_CORRUPT, 0, "queue: block %llu contains chunk %llu, expected %llu", (unsigned long long)block,
                       (unsigned long long)is, (unsigned long long)serial);
    }
    cl_queue_drop_chunk(q, c);
    c->ref = ref;
    c->held = 1;
    return CL_OK;
}

int cl_queue_check_offset(const cl_cached *c, uint64_t offset, const char *end)
{
    if (offset < sizeof(cl_chunk) || offset > c->ref.capacity - CL_JUMP_BYTES || offset % 8 != 0) {
        return cl_fail(CL_CORRUPT, 0, "queue: the %s is at offset %llu of a chunk of %llu bytes", end,
                       (unsigned long long)offset, (unsigned long long)c->ref.capacity);
    }
    return CL_OK;
}

/* Add a chunk, with a jump to it from the last one. Until the commit only its hold names it. */
int cl_queue_add_chunk(cl_queue *q, cl_position *p, int *spilled, int *dirty)
{
    cl_block_ref ref;
    cl_token token;
    int rc = cl_alloc(q->store, CL_CHUNK_BYTES, CL_MAY_WAIT | CL_FOR_OBJECT, &ref);
    /* On disk chunks are few and large, since each takes a segment of the registry; if there is no room for one, a
     * small chunk. */
    for (uint64_t nbytes = CL_SPILLED_CHUNK_BYTES; (rc == CL_FULL || rc == CL_REMOVED) && nbytes != 0;
         nbytes = nbytes == CL_CHUNK_BYTES ? 0 : CL_CHUNK_BYTES) {
        rc = cl_alloc(q->store, nbytes, CL_MAY_WAIT | CL_MAY_SPILL | CL_STAY, &ref);
    }
    if (rc != CL_OK) {
        return rc;
    }
    *spilled = ref.spilled;
    CL_KILL_POINT();
    uint64_t block = (uint64_t)ref.segment * CL_BLOCKS + ref.index;
    rc = cl_give(q->store, q->number, CL_CHUNK_BIT | (p->serial + 1), NULL, 0, &ref, CL_MAY_WAIT, &token);
    if (rc != CL_OK) {
        cl_queue_give_back(q, &ref);
        return rc;
    }
    CL_KILL_POINT();
    cl_elsewhere to = {.segment_id = ref.segment_id, .generation = ref.generation, .block = block, .hold = token};
    cl_cached before = q->put_chunk;
    q->put_chunk.held = 0;
    rc = cl_queue_stand_on(q, &q->put_chunk, ref.segment_id, ref.generation, block, 0, CL_MAY_WAIT);
    if (rc != CL_OK) {
        q->put_chunk = before;
        *dirty = 1; /* the queue holds a chunk that nothing names */
        return rc;
    }
    cl_chunk *chunk = (cl_chunk *)(void *)q->put_chunk.ref.data;
    chunk->serial = p->serial + 1;
    chunk->hold = token;
    if (p->segment_id == 0) {
        cl_side *first = &q->head->first;
        cl_position at = {to.segment_id, to.generation, to.block, sizeof(cl_chunk), 1, 0};
        cl_write_side(first, &at);
    } else {
        cl_record jump = {.length = 0};
        memcpy(before.ref.data + p->offset, &jump, sizeof jump);
        memcpy(before.ref.data + p->offset + sizeof jump, &to, sizeof to);
    }
    CL_KILL_POINT();
    cl_queue_drop_chunk(q, &before);
    p->segment_id = to.segment_id;
    p->generation = to.generation;
    p->block = to.block;
    p->offset = sizeof(cl_chunk);
    p->serial++;
    return CL_OK;
}
