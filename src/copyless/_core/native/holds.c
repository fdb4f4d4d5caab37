/* Holds: why a block lives, and how it passes from hand to hand.
 *
 * Promise: a block is free exactly when it has no hold. Taking a hold verifies the block's generation in the same
 * transaction, so nobody ever holds another's bytes. A message's hold becomes its receiver's in one transaction: at
 * every instant one of the two exists, whoever is killed.
 *
 *   free --(owner allocates, loads, forks)--> owner's --(last object gone, or death reaped)--> free
 *   free --(send)--> message --(load with the right nonce)--> owner's
 *                            --(failed pickling, end of the family, time)--> free
 *   owner's --(draft, give: put into a queue)--> channel's --(take)--> owner's
 *                            --(the queue's own block is freed)--> free
 *   free --(posix object created)--> family --(end of the family)--> free
 *   free --(name with persist)--> persist --(unlink)--> free
 *
 * What SIGKILL leaves: the state before or after a transaction, never between. A hold whose owner died is reaped. */
#define _GNU_SOURCE
#include "store.h"

#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

int cl_block_checked(cl_store *store, uint32_t number, cl_block **block)
{
    uint32_t slot = number / CL_BLOCKS, index = number % CL_BLOCKS;
    if (slot >= store->control->segments_high || slot >= CL_MAX_SEGMENTS) {
        return cl_fail(CL_CORRUPT, 0, "registry: block %u lies beyond %u segments", number,
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

/* Pages and free-list links for the next holds. Under the lock; killed before the commit, the same work is done again. */
static int grow(cl_store *store)
{
    cl_control *c = store->control;
    uint32_t high = c->holds_high, n = high < 4096 ? 256 : 4096;
    if (high + n > CL_MAX_HOLDS) {
        return cl_fail(CL_TABLE_FULL, 0, "all %u holds are taken", high);
    }
    int rc = cl_reserve(store, CL_OFF_HOLDS + (uint64_t)high * sizeof(cl_hold), n * sizeof(cl_hold));
    if (rc != CL_OK) {
        return rc;
    }
    for (uint32_t i = high; i < high + n; i++) {
        store->holds[i].kind = CL_HOLD_FREE;
        store->holds[i].next = i + 1 < high + n ? i + 2 : 0;
    }
    cl_txn txn = cl_begin(store->base);
    cl_set32(&txn, &c->holds_free, high + 1);
    cl_set32(&txn, &c->holds_high, high + n);
    cl_commit(&txn);
    return CL_OK;
}

static uint64_t new_nonce(cl_store *store)
{
    return ++store->nonce * 0x9e3779b97f4a7c15u | 1u;
}

int cl_hold_take(cl_store *store, cl_txn *txn, uint32_t kind, uint32_t owner, uint32_t number, uint32_t *index)
{
    cl_control *c = store->control;
    cl_block *block;
    int rc = cl_block_checked(store, number, &block);
    if (rc != CL_OK) {
        return rc;
    }
    if (c->holds_free == 0) {
        cl_txn started = *txn; /* growing is a transaction of its own: only an empty one may be open */
        rc = started.n == 0 ? grow(store) : CL_TABLE_FULL;
        if (rc != CL_OK) {
            return rc;
        }
    }
    uint32_t i = c->holds_free - 1;
    if (i >= c->holds_high || store->holds[i].kind != CL_HOLD_FREE) {
        return cl_fail(CL_CORRUPT, 0, "registry: the free list of holds names %u", i);
    }
    cl_hold *h = &store->holds[i];
    cl_set32(txn, &c->holds_free, h->next);
    cl_set32(txn, &h->kind, kind);
    cl_set32(txn, &h->owner, owner);
    cl_set32(txn, &h->block, number + 1);
    cl_set32(txn, &block->holds, block->holds + 1);
    if (kind == CL_HOLD_MESSAGE || kind == CL_HOLD_FAMILY) {
        const cl_identity *me = &store->identity;
        /* Read by a scan only while the hold is in use, so they may be written ahead of the transaction. */
        h->nonce = new_nonce(store);
        h->deadline_ns = kind == CL_HOLD_FAMILY || store->settings.message_ttl_ns == 0
                             ? INT64_MAX
                             : cl_monotonic_ns() + store->settings.message_ttl_ns;
        h->family = me->family;
        h->parent_pid = me->parent_pid;
        h->parent_start = me->parent_start;
        h->pid_namespace = me->pid_namespace;
        cl_set32(txn, &c->messages, c->messages + 1);
    } else if (kind == CL_HOLD_PERSIST) {
        cl_set32(txn, &c->persistent, c->persistent + 1);
    } else {
        h->nonce = 0;
    }
    *index = i;
    return CL_OK;
}

/* The common part of taking a hold away: its own entry back to the free list. */
static void put_back(cl_store *store, cl_txn *txn, uint32_t index)
{
    cl_control *c = store->control;
    cl_hold *h = &store->holds[index];
    if (h->kind == CL_HOLD_MESSAGE || h->kind == CL_HOLD_FAMILY) {
        cl_set32(txn, &c->messages, c->messages - (c->messages != 0));
    } else if (h->kind == CL_HOLD_PERSIST) {
        cl_set32(txn, &c->persistent, c->persistent - (c->persistent != 0));
    }
    if (h->kind == CL_HOLD_CHANNEL) {
        cl_block *channel;
        if (h->channel != 0 && cl_block_checked(store, h->channel - 1, &channel) == CL_OK) {
            cl_set32(txn, &channel->children, channel->children - (channel->children != 0));
        }
    }
    cl_set32(txn, &h->kind, CL_HOLD_FREE);
    cl_set32(txn, &h->next, c->holds_free);
    cl_set32(txn, &c->holds_free, index + 1);
}

/* A queue that lies in itself must not live for that: holds on a block that belong to it. */
static uint32_t own_holds(cl_store *store, uint32_t number)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < store->control->holds_high && i < CL_MAX_HOLDS; i++) {
        const cl_hold *h = &store->holds[i];
        n += h->kind == CL_HOLD_CHANNEL && h->channel == number + 1 && h->block == number + 1;
    }
    return n;
}

/* What lies in a channel goes before the channel itself does, one transaction each; killed between, the channel's last
 * hold still stands and whoever drops it goes on. */
static int drop_children(cl_store *store, uint32_t number)
{
    for (uint32_t i = 0; i < store->control->holds_high && i < CL_MAX_HOLDS; i++) {
        if (store->holds[i].kind == CL_HOLD_CHANNEL && store->holds[i].channel == number + 1) {
            int rc = cl_hold_drop(store, i);
            if (rc != CL_OK) {
                return rc;
            }
        }
    }
    return CL_OK;
}

/* A POSIX object goes with its last hold, if it is still the one that we made. */
static void unlink_posix(const cl_name *name)
{
    struct stat st;
    int directory = open("/dev/shm", O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (directory < 0) {
        return;
    }
    if (fstatat(directory, name->name, &st, AT_SYMLINK_NOFOLLOW) == 0 && st.st_dev == name->device &&
        st.st_ino == name->inode) {
        unlinkat(directory, name->name, 0);
    }
    close(directory);
}

int cl_hold_drop(cl_store *store, uint32_t index)
{
    cl_block *block;
    cl_hold *h = &store->holds[index];
    if (index >= store->control->holds_high || h->kind == CL_HOLD_FREE || h->block == 0) {
        return cl_fail(CL_CORRUPT, 0, "registry: hold %u is not in use", index);
    }
    uint32_t number = h->block - 1;
    int rc = cl_block_checked(store, number, &block);
    if (rc != CL_OK) {
        return rc;
    }
    if (block->state != CL_BLOCK_USED || block->holds == 0) {
        return cl_fail(CL_CORRUPT, 0, "registry: held block %u is in state %u with %u holds", number, block->state,
                       block->holds);
    }
    if (block->children != 0 && !(h->kind == CL_HOLD_CHANNEL && h->channel == number + 1) &&
        (block->holds == 1 || block->holds - 1 == own_holds(store, number))) {
        rc = drop_children(store, number);
        if (rc != CL_OK) {
            return rc;
        }
    }
    cl_segment *segment = &store->segments[number / CL_BLOCKS];
    int external = segment->state == CL_SEGMENT_EXTERNAL;
    if (external && block->holds == 1 && block->name != 0 && block->name <= store->control->names_high) {
        unlink_posix(&store->names[block->name - 1]); /* before: killed after it, it is done again, to no effect */
        CL_KILL_POINT();
    }
    cl_txn txn = cl_begin(store->base);
    put_back(store, &txn, index);
    cl_set32(&txn, &block->holds, block->holds - 1);
    if (block->holds == 1) {
        if (block->name != 0) {
            cl_name_remove(store, &txn, block->name - 1);
            cl_set32(&txn, &block->name, 0);
        }
        cl_set64(&txn, &block->generation, block->generation + 1);
        if (external) {
            cl_set32(&txn, &block->state, CL_BLOCK_NONE);
            cl_set32(&txn, &segment->state, CL_SEGMENT_FREE);
            cl_set32(&txn, &segment->next, store->control->segments_free);
            cl_set32(&txn, &store->control->segments_free, number / CL_BLOCKS + 1);
        } else {
            cl_free_block(store, &txn, number);
        }
    }
    cl_commit(&txn);
    return CL_OK;
}

void cl_refer(const cl_map *map, uint32_t index, uint64_t generation, cl_block_ref *out)
{
    *out = (cl_block_ref){.segment_id = map->id,
                          .generation = generation,
                          .capacity = map->block_size,
                          .offset = CL_PAGE + index * map->block_size,
                          .data = map->base + CL_PAGE + index * map->block_size,
                          .segment = map->slot,
                          .index = index,
                          .recycled = 1,
                          .spilled = map->header.class_index == CL_SPILLED};
}

/* ---- messages */

static int send(cl_store *store, uint32_t segment, uint32_t index, int draft, unsigned flags, cl_address *out)
{
    int rc = cl_enter(store, CL_OP_SEND, flags);
    if (rc != CL_OK) {
        return rc;
    }
    cl_map *map = segment < CL_MAX_SEGMENTS && store->maps != NULL ? store->maps[segment] : NULL;
    if (map == NULL || index >= map->nblocks || map->blocks[index].references == 0) {
        rc = cl_fail(CL_STALE, 0, "this process holds no such block");
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
                store->holds[hold].nonce = new_nonce(store); /* a free hold's: nobody reads it yet */
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

/* A hold that travels with bytes: a message's, or our own on its way into or out of a channel. */
static int is_message(cl_store *store, uint32_t hold, uint64_t nonce, uint32_t number)
{
    if (nonce == 0 || hold >= store->control->holds_high) {
        return 0;
    }
    const cl_hold *h = &store->holds[hold];
    return (h->kind == CL_HOLD_MESSAGE || (h->kind == CL_HOLD_OWNER && h->owner == store->slot + 1)) &&
           h->nonce == nonce && (number == UINT32_MAX || h->block == number + 1);
}

int cl_unsend(cl_store *store, uint32_t hold, uint64_t nonce, unsigned flags)
{
    int rc = cl_enter(store, CL_OP_SEND, flags);
    if (rc == CL_OK) {
        if (is_message(store, hold, nonce, UINT32_MAX)) {
            rc = cl_hold_drop(store, hold);
        }
        cl_leave(store);
    }
    return rc;
}

/* The hold part of a load: ours already, or the message's made ours, or a new one. */
static int hold_for_load(cl_store *store, const cl_address *a, cl_map *map, const cl_block *block)
{
    uint32_t number = a->segment * CL_BLOCKS + a->index;
    cl_local_block *local = &map->blocks[a->index];
    int message = is_message(store, a->hold, a->nonce, number);
    int rc = CL_OK;
    if (local->hold != 0) {
        return message ? cl_hold_drop(store, a->hold) : CL_OK;
    }
    if (message && !atomic_load(&store->forking)) {
        cl_hold *h = &store->holds[a->hold];
        cl_txn txn = cl_begin(store->base);
        cl_set32(&txn, &h->kind, CL_HOLD_OWNER);
        cl_set32(&txn, &h->owner, store->slot + 1);
        cl_set64(&txn, &h->nonce, 0);
        if (h->kind == CL_HOLD_MESSAGE) {
            cl_set32(&txn, &store->control->messages, store->control->messages - (store->control->messages != 0));
        }
        cl_commit(&txn);
        local->hold = a->hold + 1;
    } else {
        uint32_t hold;
        cl_txn txn = cl_begin(store->base);
        rc = cl_hold_take(store, &txn, CL_HOLD_OWNER, store->slot + 1, number, &hold);
        if (rc == CL_OK) {
            cl_commit(&txn);
            local->hold = hold + 1;
            if (store->fork_slot != 0) { /* a fork is under way in this thread: the child will have the object too */
                txn = cl_begin(store->base);
                rc = cl_hold_take(store, &txn, CL_HOLD_OWNER, store->fork_slot, number, &hold);
                if (rc == CL_OK) {
                    cl_commit(&txn);
                    local->fork_hold = hold + 1;
                }
            }
        }
    }
    local->generation = block->generation;
    return rc;
}

/* Whether the registry looks sound without its lock; with the lock taken it cannot be told so cheaply. */
static int looks_sound(cl_store *store)
{
    const cl_owner *me = &store->owners[store->slot];
    return cl_check_registry(store) == CL_OK && atomic_load(&store->control->lock) == 0 &&
           me->incarnation == store->incarnation && me->state == CL_OWNER_LIVE;
}

/* Another object over a block that this process holds already: its own tables tell, the registry is only looked at.
 * CL_AGAIN: go the long way, which also says what is wrong. */
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
        if (local->references != 0 && local->hold != 0 && local->generation == a->generation && looks_sound(store) &&
            !atomic_load_explicit(&store->forking,
                                  memory_order_relaxed)) { /* our own thread's, or excluded by the mutex */
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
        segment->state != CL_SEGMENT_READY || segment->blocks[a->index].generation != a->generation ||
        segment->blocks[a->index].state != CL_BLOCK_USED) {
        return cl_fail(CL_STALE, 0, "the block is gone (segment %016llx, generation %llu)",
                       (unsigned long long)a->segment_id, (unsigned long long)a->generation);
    }
    rc = cl_block_checked(store, a->segment * CL_BLOCKS + a->index, &block);
    if (rc == CL_OK) {
        rc = cl_segment_map(store, a->segment_id, a->segment, &map);
        if (rc == CL_STALE) {
            rc = cl_fail(CL_CORRUPT, 0, "segment %016llx: its file was removed", (unsigned long long)a->segment_id);
        }
    }
    if (rc == CL_OK) {
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

static void leave_keeping_error(cl_store *store)
{
    cl_error kept = *cl_last_error();
    cl_leave(store);
    *cl_last_error() = kept;
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
    if (cl_monotonic_ns() - (int64_t)store->control->scanned_ns > 1000000000) {
        cl_scan(store, 0, NULL); /* a program that only reads takes back what the dead held, too */
    }
    rc = load_entered(store, a, out);
    leave_keeping_error(store);
    return rc;
}

/* ---- channels: what lies in a queue is held by the queue's own block */

static int is_channels(cl_store *store, uint32_t channel, const cl_token *t)
{
    if (t->nonce == 0 || t->hold >= store->control->holds_high) {
        return 0;
    }
    const cl_hold *h = &store->holds[t->hold];
    return h->kind == CL_HOLD_CHANNEL && h->channel == channel + 1 && h->nonce == t->nonce;
}

static int give(cl_store *store, uint32_t channel, uint64_t sequence, uint32_t hold)
{
    cl_block *block;
    int rc = cl_block_checked(store, channel, &block);
    if (rc == CL_OK) {
        cl_hold *h = &store->holds[hold];
        cl_txn txn = cl_begin(store->base);
        cl_set32(&txn, &h->kind, CL_HOLD_CHANNEL);
        cl_set32(&txn, &h->owner, 0);
        cl_set32(&txn, &h->channel, channel + 1);
        cl_set64(&txn, &h->sequence, sequence);
        cl_set32(&txn, &block->children, block->children + 1);
        cl_commit(&txn);
    }
    return rc;
}

int cl_give(cl_store *store, uint32_t channel, uint64_t sequence, const cl_token *tokens, uint32_t n,
            const cl_block_ref *payload, unsigned flags, cl_token *payload_token)
{
    int rc = cl_enter(store, CL_OP_SEND, flags);
    if (rc != CL_OK) {
        return rc;
    }
    for (uint32_t i = 0; rc == CL_OK && i < n; i++) {
        rc = is_message(store, tokens[i].hold, tokens[i].nonce, UINT32_MAX)
                 ? give(store, channel, sequence, tokens[i].hold)
                 : cl_fail(CL_STALE, 0, "what was to be sent is gone");
    }
    if (rc == CL_OK && payload != NULL) {
        cl_map *map = store->maps[payload->segment];
        cl_local_block *local = &map->blocks[payload->index];
        uint32_t hold = local->hold - 1;
        store->holds[hold].nonce = new_nonce(store); /* ours alone until it is given */
        *payload_token = (cl_token){.hold = hold, .nonce = store->holds[hold].nonce};
        rc = give(store, channel, sequence, hold);
        if (rc == CL_OK) {
            local->hold = 0;
            local->references = 0;
            map->in_use--;
        }
    }
    leave_keeping_error(store);
    return rc;
}

int cl_take(cl_store *store, uint32_t channel, const cl_token *tokens, uint32_t n, const cl_token *drop, unsigned flags)
{
    int rc = cl_enter(store, CL_OP_LOAD, flags);
    if (rc != CL_OK) {
        return rc;
    }
    cl_block *block;
    rc = cl_block_checked(store, channel, &block);
    for (uint32_t i = 0; rc == CL_OK && i < n; i++) {
        if (is_channels(store, channel, &tokens[i])) { /* else it is gone, and loading it will say so */
            cl_hold *h = &store->holds[tokens[i].hold];
            cl_txn txn = cl_begin(store->base);
            cl_set32(&txn, &h->kind, CL_HOLD_OWNER);
            cl_set32(&txn, &h->owner, store->slot + 1);
            cl_set32(&txn, &block->children, block->children - (block->children != 0));
            cl_commit(&txn);
        }
    }
    if (rc == CL_OK && drop != NULL && is_channels(store, channel, drop)) {
        rc = cl_hold_drop(store, drop->hold);
    }
    leave_keeping_error(store);
    return rc;
}

int cl_clean(cl_store *store, uint32_t channel, int (*keep)(void *context, uint64_t sequence, uint64_t nonce),
             void *context, unsigned flags)
{
    int rc = cl_enter(store, CL_OP_REAP, flags);
    if (rc != CL_OK) {
        return rc;
    }
    for (uint32_t i = 0; rc == CL_OK && i < store->control->holds_high && i < CL_MAX_HOLDS; i++) {
        const cl_hold *h = &store->holds[i];
        if (h->kind == CL_HOLD_CHANNEL && h->channel == channel + 1 && !keep(context, h->sequence, h->nonce)) {
            rc = cl_hold_drop(store, i);
        }
    }
    leave_keeping_error(store);
    return rc;
}
