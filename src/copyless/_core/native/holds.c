/* Holds: the reasons why a block lives.
 *
 * Promise: a block is free exactly when it has no hold. The block's entry is verified before a hold is taken, so a hold
 * always names a real block.
 *
 *   free --(owner allocates, loads)--> owner's --(last object gone, or death reaped)--> free
 *                            --(its owner drops it, or dies, while a forked child uses it: estate.c)--> estate --> free
 *   free --(send)--> message --(load with the right nonce)--> owner's
 *                            --(failed pickling, end of the family, time)--> free
 *   owner's --(draft, give: put into a queue)--> channel's --(take)--> owner's
 *                            --(the queue's own block is freed)--> free
 *   free --(posix object created)--> family --(end of the family)--> free
 *   free --(name with persist)--> persist --(unlink)--> free
 *
 * An owner has a list of its holds and another list of its estate. A channel's holds are on a list of the channel's
 * block. So the holds of a process or a queue are found without reading those of others.
 *
 * What SIGKILL leaves: the state before or after a transaction, never a state between. A hold whose owner died is
 * reaped. */
#define _GNU_SOURCE
#include "store.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

static int grow(cl_store *store)
{
    cl_control *c = store->control;
    const cl_table table = {.what = "holds",
                            .number = CL_TABLE_HOLDS,
                            .offset = CL_OFF_HOLDS,
                            .stride = sizeof(cl_hold),
                            .state_at = offsetof(cl_hold, kind),
                            .next_at = offsetof(cl_hold, next),
                            .most = CL_MAX_HOLDS,
                            .free = &c->holds_free,
                            .high = &c->holds_high};
    _Static_assert(CL_HOLD_FREE == 0, "a grown table's entries are in state 0");
    return cl_table_grow(store, &table, 256, 1);
}

uint64_t cl_new_nonce(cl_store *store)
{
    return ++store->nonce * 0x9e3779b97f4a7c15u | 1u;
}

/* The head of the list that a hold is on, or will be on if it gets this kind; NULL: none. */
static int head_of(cl_store *store, uint32_t kind, const cl_hold *h, uint32_t **head)
{
    *head = NULL;
    if (kind == CL_HOLD_OWNER || kind == CL_HOLD_ESTATE) {
        if (h->owner == 0 || h->owner > store->control->owners_high) {
            return cl_fail(CL_CORRUPT, 0, "registry: a hold names owner %u, which does not exist", h->owner);
        }
        cl_owner *o = &store->owners[h->owner - 1];
        *head = kind == CL_HOLD_OWNER ? &o->first_hold : &o->first_estate;
    } else if (kind == CL_HOLD_CHANNEL) {
        cl_block *channel;
        int rc = h->channel == 0 ? cl_fail(CL_CORRUPT, 0, "registry: a hold names no channel")
                                 : cl_block_checked(store, h->channel - 1, &channel);
        if (rc != CL_OK) {
            return rc;
        }
        *head = &channel->first_child;
    }
    return CL_OK;
}

static int is_index(const cl_store *store, uint32_t link)
{
    return link <= store->control->holds_high && link <= CL_MAX_HOLDS;
}

int cl_hold_link(cl_store *store, cl_txn *txn, uint32_t index, uint32_t kind)
{
    uint32_t *head;
    cl_hold *h = &store->holds[index];
    int rc = head_of(store, kind, h, &head);
    if (rc != CL_OK || head == NULL) {
        return rc;
    }
    if (!is_index(store, *head)) {
        return cl_fail(CL_CORRUPT, 0, "registry: a list of holds begins with the invalid entry %u", *head);
    }
    cl_set32(txn, &h->prev, 0);
    cl_set32(txn, &h->next, *head);
    if (*head != 0) {
        cl_set32(txn, &store->holds[*head - 1].prev, index + 1);
    }
    cl_set32(txn, head, index + 1);
    return CL_OK;
}

int cl_hold_unlink(cl_store *store, cl_txn *txn, uint32_t index)
{
    uint32_t *head;
    cl_hold *h = &store->holds[index];
    int rc = head_of(store, h->kind, h, &head);
    if (rc != CL_OK || head == NULL) {
        return rc;
    }
    if (!is_index(store, h->prev) || !is_index(store, h->next) || (h->prev == 0 && *head != index + 1)) {
        return cl_fail(CL_CORRUPT, 0, "registry: hold %u has invalid neighbours, %u and %u", index, h->prev, h->next);
    }
    cl_set32(txn, h->prev != 0 ? &store->holds[h->prev - 1].next : head, h->next);
    if (h->next != 0) {
        cl_set32(txn, &store->holds[h->next - 1].prev, h->prev);
    }
    if (h->kind != CL_HOLD_CHANNEL && store->owners[h->owner - 1].sweep == index + 1) {
        cl_set32(txn, &store->owners[h->owner - 1].sweep, h->next); /* a sweep of the list continues behind it */
    }
    return CL_OK;
}

int64_t cl_hold_describe(cl_store *store, uint32_t index, uint32_t kind)
{
    const cl_identity *me = &store->identity;
    cl_hold *h = &store->holds[index];
    h->family = me->family;
    h->parent_pid = me->parent_pid;
    h->parent_start = me->parent_start;
    h->pid_namespace = (uint32_t)me->pid_namespace;
    return kind == CL_HOLD_FAMILY || store->settings.message_ttl_ns == 0
               ? INT64_MAX
               : cl_monotonic_ns() + store->settings.message_ttl_ns;
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
        return cl_fail(CL_CORRUPT, 0, "registry: the free list of holds has the invalid entry %u", i);
    }
    cl_hold *h = &store->holds[i];
    cl_set32(txn, &c->holds_free, h->next);
    cl_set32(txn, &block->holds, block->holds + 1);
    if (kind == CL_HOLD_OWNER) {
        h->block = number + 1;
        *index = i;
        return cl_hold_own(store, txn, i, owner, 0);
    }
    cl_set32(txn, &h->kind, kind);
    /* A free entry: no process reads the rest of it before the transaction. */
    h->owner = owner;
    h->block = number + 1;
    h->nonce = 0;
    if (kind == CL_HOLD_MESSAGE || kind == CL_HOLD_FAMILY) {
        h->nonce = cl_new_nonce(store);
        h->deadline_ns = cl_hold_describe(store, i, kind);
        cl_set32(txn, &c->messages, c->messages + 1);
    } else if (kind == CL_HOLD_PERSIST) {
        cl_set32(txn, &c->persistent, c->persistent + 1);
    }
    *index = i;
    return CL_OK;
}

int cl_hold_own(cl_store *store, cl_txn *txn, uint32_t index, uint32_t owner, uint64_t nonce)
{
    cl_hold *h = &store->holds[index];
    if (owner == 0 || owner > store->control->owners_high) {
        return cl_fail(CL_CORRUPT, 0, "registry: a hold was to go to owner %u, which does not exist", owner);
    }
    cl_owner *o = &store->owners[owner - 1];
    if (!is_index(store, o->first_hold)) {
        return cl_fail(CL_CORRUPT, 0, "registry: a list of holds begins with the invalid entry %u", o->first_hold);
    }
    cl_set32(txn, &h->kind, CL_HOLD_OWNER);
    cl_set32(txn, &h->owner, owner);
    cl_set64(txn, &h->nonce, nonce);
    cl_set32(txn, &h->from, nonce != 0 ? CL_NEVER : o->epoch);
    cl_set32(txn, &h->prev, 0);
    cl_set32(txn, &h->next, o->first_hold);
    if (o->first_hold != 0) {
        cl_set32(txn, &store->holds[o->first_hold - 1].prev, index + 1);
    }
    cl_set32(txn, &o->first_hold, index + 1);
    cl_mark_clear(store, txn, index);
    return CL_OK;
}

/* The common part of removing a hold: put its own entry on the free list. */
static int put_back(cl_store *store, cl_txn *txn, uint32_t index)
{
    cl_control *c = store->control;
    cl_hold *h = &store->holds[index];
    int rc = cl_hold_unlink(store, txn, index);
    if (rc != CL_OK) {
        return rc;
    }
    if (h->kind == CL_HOLD_MESSAGE || h->kind == CL_HOLD_FAMILY) {
        cl_set32(txn, &c->messages, c->messages - (c->messages != 0));
    } else if (h->kind == CL_HOLD_PERSIST) {
        cl_set32(txn, &c->persistent, c->persistent - (c->persistent != 0));
    } else if (h->kind == CL_HOLD_CHANNEL) {
        cl_block *channel;
        rc = cl_block_checked(store, h->channel - 1, &channel);
        if (rc != CL_OK) {
            return rc;
        }
        cl_set32(txn, &channel->children, channel->children - (channel->children != 0));
    }
    cl_set32(txn, &h->kind, CL_HOLD_FREE);
    cl_set32(txn, &h->next, c->holds_free);
    cl_set32(txn, &c->holds_free, index + 1);
    return CL_OK;
}

/* A queue that is in itself must not live because of that: count the holds on a block that belong to the block
 * itself. */
static uint32_t own_holds(cl_store *store, uint32_t number, const cl_block *block)
{
    uint32_t n = 0, at = block->first_child;
    for (uint32_t steps = 0; at != 0 && is_index(store, at) && steps < block->children; steps++) {
        n += !CL_MUTANT(holds_queue_keeps_itself) && store->holds[at - 1].block == number + 1;
        at = store->holds[at - 1].next;
    }
    return n;
}

#define DEEPEST 64

/* A channel's hold becomes one of this process, which ends with it: for deeply nested queues the stack would not
 * suffice. */
static int keep_for_the_end(cl_store *store, uint32_t index)
{
    cl_block *channel;
    int rc = cl_block_checked(store, store->holds[index].channel - 1, &channel);
    if (rc != CL_OK) {
        return rc;
    }
    cl_txn txn = cl_begin(store->base);
    rc = cl_hold_unlink(store, &txn, index);
    cl_set32(&txn, &channel->children, channel->children - (channel->children != 0));
    if (rc == CL_OK) {
        rc = cl_hold_own(store, &txn, index, store->slot + 1, cl_new_nonce(store));
    }
    if (rc == CL_OK) {
        cl_commit(&txn);
    }
    return rc;
}

/* The contents of a channel are dropped before the channel, one transaction each. If the process is killed between, the
 * channel's last hold still exists, and the next process that drops it continues. */
static int drop_children(cl_store *store, uint32_t number, const cl_block *block)
{
    static _Thread_local int depth; /* for queues in queues */
    while (block->first_child != 0) {
        uint32_t at = block->first_child;
        if (!is_index(store, at) || store->holds[at - 1].kind != CL_HOLD_CHANNEL ||
            store->holds[at - 1].channel != number + 1) {
            return cl_fail(CL_CORRUPT, 0, "registry: the list of a channel has the invalid entry %u", at);
        }
        depth++;
        int rc = depth <= DEEPEST ? cl_hold_drop(store, at - 1) : keep_for_the_end(store, at - 1);
        depth--;
        if (rc != CL_OK) {
            return rc;
        }
    }
    return CL_OK;
}

/* A POSIX object is removed with its last hold, if it is still the one that copyless made. */
static void unlink_posix(const cl_name *name)
{
    struct stat st;
    int directory = cl_open_posix_directory();
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
        return cl_fail(CL_CORRUPT, 0, "registry: a hold names block %u, whose state is %u and which has %u holds",
                       number, block->state, block->holds);
    }
    if (block->children != 0 && !(h->kind == CL_HOLD_CHANNEL && h->channel == number + 1) &&
        (block->holds == 1 || block->holds - 1 == own_holds(store, number, block))) {
        rc = drop_children(store, number, block);
        if (rc != CL_OK) {
            return rc;
        }
    }
    cl_segment *segment = &store->segments[number / CL_BLOCKS];
    int external = segment->state == CL_SEGMENT_EXTERNAL;
    if (external && block->holds == 1 && block->name != 0 && block->name <= store->control->names_high &&
        block->name <= CL_MAX_NAMES) {
        unlink_posix(&store->names[block->name - 1]); /* before: repeated without effect if killed after it */
        CL_KILL_POINT();
    }
    cl_txn txn = cl_begin(store->base);
    rc = put_back(store, &txn, index);
    if (rc != CL_OK) {
        return rc;
    }
    cl_set32(&txn, &block->holds, block->holds - 1);
    if (block->holds == 1) {
        if (block->name != 0) {
            cl_name_remove(store, &txn, block->name - 1);
            cl_set32(&txn, &block->name, 0);
        }
        cl_set64(&txn, &block->generation, block->generation + !CL_MUTANT(holds_generation_stays));
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

/* Whether a hold travels with bytes: a message's, or a hold of this process on its way into or out of a channel. */
int cl_is_message(cl_store *store, uint32_t hold, uint64_t nonce, uint32_t number)
{
    if (nonce == 0 || hold >= store->control->holds_high) {
        return 0;
    }
    const cl_hold *h = &store->holds[hold];
    return (h->kind == CL_HOLD_MESSAGE || (h->kind == CL_HOLD_OWNER && h->owner == store->slot + 1)) &&
           (h->nonce == nonce || CL_MUTANT(holds_nonce_unchecked)) && (number == UINT32_MAX || h->block == number + 1);
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
