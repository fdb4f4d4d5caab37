/* Audit: counts every entry and every list of the registry again, and compares the results with what is recorded.
 *
 * Promise: it only reads. The result is CL_OK, or CL_CORRUPT with the first difference. The kill tests call it after
 * each death, under the lock. `copyless doctor` calls it on a copy that was made without the lock. */
#define _GNU_SOURCE
#include "store.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define EXPECT(condition, ...)                                                                                         \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            return cl_fail(CL_CORRUPT, 0, __VA_ARGS__);                                                                \
        }                                                                                                              \
    } while (0)

/* Check that every hold on a list has the list's kind and owner or channel, and is linked both ways; subtract them from
 * *left. */
static int walk_holds(cl_store *store, uint32_t at, uint32_t kind, uint32_t of, uint32_t *left)
{
    for (uint32_t before = 0; at != 0; at = store->holds[at - 1].next) {
        EXPECT(at <= store->control->holds_high && *left != 0, "a list of holds has the invalid entry %u", at);
        const cl_hold *h = &store->holds[at - 1];
        EXPECT(h->kind == kind && (kind == CL_HOLD_CHANNEL ? h->channel : h->owner) == of && h->prev == before,
               "hold %u of kind %u is on a list of kind %u of %u", at - 1, h->kind, kind, of);
        before = at;
        --*left;
    }
    return CL_OK;
}

/* counts[b]: holds that name block b; children[b]: holds that belong to it. */
static int count_holds(cl_store *store, uint32_t *counts, uint32_t *children, uint32_t blocks)
{
    const cl_control *c = store->control;
    uint32_t messages = 0, persistent = 0, unused = 0, listed = 0, lists = 0;
    for (uint32_t i = 0; i < c->holds_high; i++) {
        const cl_hold *h = &store->holds[i];
        EXPECT(h->kind <= CL_HOLD_ESTATE, "hold %u has the unknown kind %u", i, h->kind);
        if (h->kind == CL_HOLD_FREE) {
            unused++;
            continue;
        }
        EXPECT(h->block != 0 && h->block <= blocks, "hold %u names block %u, which does not exist", i, h->block);
        int owned = h->kind == CL_HOLD_OWNER || h->kind == CL_HOLD_ESTATE;
        EXPECT(!owned ||
                   (h->owner != 0 && h->owner <= c->owners_high && store->owners[h->owner - 1].state != CL_OWNER_FREE),
               "hold %u names owner %u, which does not exist", i, h->owner);
        lists += owned || h->kind == CL_HOLD_CHANNEL;
        EXPECT(h->kind != CL_HOLD_CHANNEL || (h->channel != 0 && h->channel <= blocks),
               "hold %u names channel %u, which does not exist", i, h->channel);
        counts[h->block - 1]++;
        if (h->kind == CL_HOLD_CHANNEL) {
            children[h->channel - 1]++;
        }
        messages += h->kind == CL_HOLD_MESSAGE || h->kind == CL_HOLD_FAMILY;
        persistent += h->kind == CL_HOLD_PERSIST;
    }
    for (uint32_t at = c->holds_free; at != 0; at = store->holds[at - 1].next) {
        EXPECT(at <= c->holds_high && ++listed <= unused && store->holds[at - 1].kind == CL_HOLD_FREE,
               "the free list of holds has the invalid entry %u", at);
    }
    EXPECT(listed == unused, "%u of %u free holds are on the free list", listed, unused);
    for (uint32_t i = 0; i < c->owners_high; i++) {
        const cl_owner *o = &store->owners[i];
        if (o->state != CL_OWNER_FREE) {
            int rc = walk_holds(store, o->first_hold, CL_HOLD_OWNER, i + 1, &lists);
            if (rc == CL_OK) {
                rc = walk_holds(store, o->first_estate, CL_HOLD_ESTATE, i + 1, &lists);
            }
            if (rc != CL_OK) {
                return rc;
            }
        }
    }
    for (uint32_t b = 0; b < blocks; b++) {
        if (children[b] != 0) {
            int rc = walk_holds(store, store->segments[b / CL_BLOCKS].blocks[b % CL_BLOCKS].first_child,
                                CL_HOLD_CHANNEL, b + 1, &lists);
            if (rc != CL_OK) {
                return rc;
            }
        }
    }
    EXPECT(lists == 0, "%u holds are on no list", lists);
    EXPECT(messages == c->messages && persistent == c->persistent,
           "%u messages and %u persistent holds are recorded, %u and %u were found", c->messages, c->persistent,
           messages, persistent);
    return CL_OK;
}

/* For a copy: whether the segment, and its file, was given back after the copy was made. */
static int went_since(const cl_store *store, uint32_t slot)
{
    cl_segment now;
    return store->copy != NULL && cl_snapshot_segment_now(store->copy, slot, &now) == CL_OK &&
           (now.id != store->segments[slot].id || now.state != CL_SEGMENT_READY);
}

static int audit_segments(cl_store *store, const uint32_t *counts, const uint32_t *children)
{
    const cl_control *c = store->control;
    uint64_t total = 0, warm = 0;
    uint32_t free_blocks[CL_CLASSES] = {0}, unused = 0, listed = 0;
    for (uint32_t i = 0; i < c->segments_high; i++) {
        const cl_segment *s = &store->segments[i];
        uint32_t used = 0;
        EXPECT(s->state <= CL_SEGMENT_EXTERNAL, "segment %u has the unknown state %u", i, s->state);
        unused += s->state == CL_SEGMENT_FREE;
        total += s->state == CL_SEGMENT_GOING ? s->file_size : 0; /* counted until its file is gone */
        if (s->state == CL_SEGMENT_GOING && s->class_index < CL_CLASSES) {
            for (uint32_t b = 0; b < s->nblocks && b < CL_BLOCKS; b++) { /* still listed: its owner was killed */
                free_blocks[s->class_index] += s->blocks[b].state == CL_BLOCK_FREE;
            }
        }
        if (s->state != CL_SEGMENT_READY && s->state != CL_SEGMENT_EXTERNAL) {
            continue;
        }
        EXPECT(s->nblocks <= CL_BLOCKS && s->class_index < CL_CLASSES,
               "segment %u records %u blocks of class %u, which is invalid", i, s->nblocks, s->class_index);
        for (uint32_t b = 0; b < s->nblocks; b++) {
            const cl_block *block = &s->blocks[b];
            used += block->state == CL_BLOCK_USED;
            free_blocks[s->class_index] += block->state == CL_BLOCK_FREE;
            EXPECT(block->state == CL_BLOCK_USED || block->state == CL_BLOCK_FREE,
                   "block %u of segment %u has the invalid state %u", b, i, block->state);
            EXPECT(counts[i * CL_BLOCKS + b] == (block->state == CL_BLOCK_USED ? block->holds : 0),
                   "block %u of segment %u (state %u) records %u holds and has %u", b, i, block->state, block->holds,
                   counts[i * CL_BLOCKS + b]);
            EXPECT(children[i * CL_BLOCKS + b] == (block->state == CL_BLOCK_USED ? block->children : 0),
                   "block %u of segment %u records %u holds as a channel and has %u", b, i, block->children,
                   children[i * CL_BLOCKS + b]);
            EXPECT(block->state != CL_BLOCK_USED || block->holds != 0,
                   "block %u of segment %u is in use but has no hold", b, i);
        }
        if (s->state == CL_SEGMENT_READY) {
            char file[CL_FILE_NAME];
            struct stat st;
            cl_segment_file(file, s->id);
            EXPECT(used == s->used, "segment %u records %u blocks in use and has %u", i, s->used, used);
            if (s->class_index == CL_SPILLED || !atomic_load_explicit(&store->adrift, memory_order_relaxed)) {
                int missing = fstatat(cl_home(store, s->class_index, 0), file, &st, AT_SYMLINK_NOFOLLOW) != 0;
                int other = !missing && ((uint64_t)st.st_size != s->file_size || st.st_ino != s->inode);
                EXPECT((!missing && !other) || went_since(store, i), "%s is %s", file,
                       missing ? "missing" : "not the file that was created");
            }
            total += s->file_size;
            warm += used == 0 ? s->file_size : 0;
        }
    }
    EXPECT(total == c->total_bytes && warm == c->warm_bytes,
           "%llu bytes (%llu of them warm) are recorded, %llu and %llu were found", (unsigned long long)c->total_bytes,
           (unsigned long long)c->warm_bytes, (unsigned long long)total, (unsigned long long)warm);
    for (uint32_t at = c->segments_free; at != 0; at = store->segments[at - 1].next) {
        EXPECT(at <= c->segments_high && ++listed <= unused && store->segments[at - 1].state == CL_SEGMENT_FREE,
               "the free list of segments has the invalid entry %u", at);
    }
    EXPECT(listed == unused, "%u of %u free segments are on the free list", listed, unused);
    for (uint32_t k = 0; k < CL_CLASSES; k++) {
        uint32_t n = 0, before = 0;
        for (uint32_t at = c->first[k]; at != 0;) {
            cl_block *b;
            EXPECT(cl_block_checked(store, at - 1, &b) == CL_OK && ++n <= free_blocks[k] && b->prev == before &&
                       b->state == CL_BLOCK_FREE,
                   "free list %u is invalid at block %u", k, at - 1);
            before = at;
            at = b->next;
        }
        EXPECT(n == free_blocks[k] && c->last[k] == before,
               "free list %u has %u of %u free blocks; tail %u is recorded, %u was found", k, n, free_blocks[k],
               c->last[k], before);
    }
    return CL_OK;
}

/* Check the heirs of owners, and the pages of their marks. */
static int audit_owners(cl_store *store)
{
    const cl_control *c = store->control;
    uint32_t *users = calloc(c->marks_high + 1, sizeof *users), *children = calloc(c->owners_high, sizeof *children);
    int rc = users == NULL || children == NULL ? cl_fail(CL_SYSTEM, ENOMEM, "counting heirs") : CL_OK;
    for (uint32_t i = 0; rc == CL_OK && i < c->owners_high; i++) {
        const cl_owner *o = &store->owners[i];
        if (o->state == CL_OWNER_FREE) {
            continue;
        }
        if (o->state > CL_OWNER_GONE || o->heir_of > c->owners_high || o->heir_of == i + 1 ||
            (o->heir_of != 0 && store->owners[o->heir_of - 1].state == CL_OWNER_FREE)) {
            rc = cl_fail(CL_CORRUPT, 0, "owner %u (state %u) is the heir of %u, which is invalid", i, o->state,
                         o->heir_of);
        } else if (o->heir_of != 0) {
            children[o->heir_of - 1]++;
        }
        for (uint32_t k = 0; rc == CL_OK && k < CL_MARK_PAGES; k++) {
            if (o->marks[k] > c->marks_high) {
                rc = cl_fail(CL_CORRUPT, 0, "owner %u names page of marks %u, which does not exist", i, o->marks[k]);
            } else {
                users[o->marks[k]]++;
            }
        }
    }
    uint32_t unused = 0, listed = 0;
    for (uint32_t i = 0; rc == CL_OK && i < c->marks_high; i++) {
        unused += users[i + 1] == 0;
        if (store->marks[i].users != users[i + 1]) {
            rc = cl_fail(CL_CORRUPT, 0, "page of marks %u has %u users and records %u", i, users[i + 1],
                         store->marks[i].users);
        }
    }
    for (uint32_t at = c->marks_free; rc == CL_OK && at != 0; at = store->marks[at - 1].next) {
        if (at > c->marks_high || ++listed > unused) {
            rc = cl_fail(CL_CORRUPT, 0, "the free list of marks has the invalid entry %u", at);
            break;
        }
    }
    if (rc == CL_OK && listed != unused) {
        rc = cl_fail(CL_CORRUPT, 0, "%u of %u free pages of marks are on the free list", listed, unused);
    }
    for (uint32_t i = 0; rc == CL_OK && i < c->owners_high; i++) {
        if (store->owners[i].state != CL_OWNER_FREE && store->owners[i].children != children[i]) {
            rc = cl_fail(CL_CORRUPT, 0, "owner %u has %u heirs and records %u", i, children[i],
                         store->owners[i].children);
        }
    }
    free(users);
    free(children);
    return rc;
}

static int audit_names(cl_store *store)
{
    const cl_control *c = store->control;
    uint32_t used = 0, unused = 0, listed = 0, chained = 0;
    for (uint32_t i = 0; i < c->names_high; i++) {
        const cl_name *n = &store->names[i];
        cl_block *b;
        unused += n->kind == CL_NAME_FREE;
        used += n->kind != CL_NAME_FREE;
        EXPECT(n->kind == CL_NAME_FREE || (cl_block_checked(store, n->block - 1, &b) == CL_OK && b->name == i + 1 &&
                                           b->state == CL_BLOCK_USED),
               "name %u and its block disagree", i);
    }
    for (uint32_t i = 0; i < CL_BUCKETS; i++) {
        for (uint32_t at = store->buckets[i]; at != 0; at = store->names[at - 1].next) {
            EXPECT(at <= c->names_high && ++chained <= used && store->names[at - 1].kind != CL_NAME_FREE,
                   "chain %u of names has the invalid entry %u", i, at);
        }
    }
    for (uint32_t at = c->names_free; at != 0; at = store->names[at - 1].next) {
        EXPECT(at <= c->names_high && ++listed <= unused && store->names[at - 1].kind == CL_NAME_FREE,
               "the free list of names has the invalid entry %u", at);
    }
    EXPECT(chained == used && listed == unused,
           "%u of %u names are in chains, %u of %u free entries are on the free list", chained, used, listed, unused);
    return CL_OK;
}

int cl_audit(cl_store *store)
{
    const cl_control *c = store->control;
    EXPECT(c->owners_high <= CL_MAX_OWNERS && c->segments_high <= CL_MAX_SEGMENTS && c->holds_high <= CL_MAX_HOLDS &&
               c->names_high <= CL_MAX_NAMES && c->marks_high <= CL_MAX_MARKS,
           "invalid table sizes: %u owners, %u segments, %u holds, %u names, %u pages of marks", c->owners_high,
           c->segments_high, c->holds_high, c->names_high, c->marks_high);
    uint32_t blocks = c->segments_high * CL_BLOCKS;
    uint32_t *counts = calloc(2 * (size_t)blocks + 1, sizeof *counts);
    if (counts == NULL) {
        return cl_fail(CL_SYSTEM, ENOMEM, "counting holds");
    }
    uint32_t *children = counts + blocks;
    int rc = count_holds(store, counts, children, blocks);
    if (rc == CL_OK) {
        rc = audit_segments(store, counts, children);
    }
    if (rc == CL_OK) {
        rc = audit_owners(store);
    }
    free(counts);
    return rc == CL_OK ? audit_names(store) : rc;
}
