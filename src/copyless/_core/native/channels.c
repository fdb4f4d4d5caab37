/* Channels: the queue's own block holds the blocks of the items in the queue.
 *
 * Promise: an item's holds move from the sender to the queue's block, and from there to the receiver, each in one
 * transaction. So a block that is being transferred always has a hold.
 *
 *   owner's --(draft, give: put into a queue)--> channel's --(take)--> owner's
 *                            --(the queue's own block is freed)--> free
 *
 * What SIGKILL leaves: holds of a channel that no item names, if the sender dies between giving and publishing, or the
 * receiver between the queue's commit and cl_take. cl_clean drops these holds. */
#define _GNU_SOURCE
#include "store.h"

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
        if (h->kind == CL_HOLD_MESSAGE) {
            cl_set32(&txn, &store->control->messages, store->control->messages - (store->control->messages != 0));
        } else {
            rc = cl_hold_unlink(store, &txn, hold);
        }
        h->channel = channel + 1; /* only read of a channel's hold, and by code that lists it */
        cl_set32(&txn, &h->kind, CL_HOLD_CHANNEL);
        cl_set32(&txn, &h->owner, 0);
        cl_set64(&txn, &h->sequence, sequence);
        cl_set32(&txn, &block->children, block->children + 1);
        if (rc == CL_OK) {
            rc = cl_hold_link(store, &txn, hold, CL_HOLD_CHANNEL);
        }
        if (rc == CL_OK) {
            cl_commit(&txn);
        }
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
        rc = cl_is_message(store, tokens[i].hold, tokens[i].nonce, UINT32_MAX)
                 ? give(store, channel, sequence, tokens[i].hold)
                 : cl_fail(CL_STALE, 0, "the memory to be sent no longer exists");
    }
    if (rc == CL_OK && payload != NULL) {
        cl_map *map = store->maps[payload->segment];
        cl_local_block *local = &map->blocks[payload->index];
        uint32_t hold = local->hold - 1;
        const cl_hold *held = hold < store->control->holds_high && hold < CL_MAX_HOLDS ? &store->holds[hold] : NULL;
        if (held == NULL || held->kind != CL_HOLD_OWNER || held->owner != store->slot + 1 ||
            held->block != payload->segment * CL_BLOCKS + payload->index + 1) {
            cl_fail(CL_STALE, 0, "this process does not hold the memory to be sent");
            cl_leave_keeping_error(store);
            return CL_STALE;
        }
        uint32_t number = payload->segment * CL_BLOCKS + payload->index, given = hold;
        if (held->from < store->owners[store->slot].epoch) { /* a child was forked meanwhile, and inherited this hold */
            cl_txn txn = cl_begin(store->base);
            rc = cl_hold_take(store, &txn, CL_HOLD_OWNER, store->slot + 1, number, &given);
            if (rc == CL_OK) {
                cl_commit(&txn);
            }
        }
        if (rc == CL_OK) {
            store->holds[given].nonce = cl_new_nonce(store); /* belongs to this process alone until it is given */
            *payload_token = (cl_token){.hold = given, .nonce = store->holds[given].nonce};
            rc = give(store, channel, sequence, given);
        }
        if (rc == CL_OK) {
            local->hold = 0;
            local->references = 0;
            map->in_use--;
            if (given != hold) {
                rc = cl_hold_release(store, hold, number);
            }
        }
    }
    cl_leave_keeping_error(store);
    return rc;
}

int cl_take_entered(cl_store *store, uint32_t channel, const cl_token *tokens, uint32_t n, const cl_token *drop)
{
    cl_block *block;
    int rc = cl_block_checked(store, channel, &block);
    for (uint32_t i = 0; rc == CL_OK && i < n; i++) {
        if (is_channels(store, channel, &tokens[i])) { /* otherwise it no longer exists, and loading it fails */
            cl_txn txn = cl_begin(store->base);
            rc = cl_hold_unlink(store, &txn, tokens[i].hold);
            cl_set32(&txn, &block->children, block->children - (block->children != 0));
            if (rc == CL_OK) {
                rc = cl_hold_own(store, &txn, tokens[i].hold, store->slot + 1, tokens[i].nonce);
            }
            if (rc == CL_OK) {
                cl_commit(&txn);
            }
        }
    }
    if (rc == CL_OK && drop != NULL && is_channels(store, channel, drop)) {
        rc = cl_hold_drop(store, drop->hold);
    }
    return rc;
}

int cl_take(cl_store *store, uint32_t channel, const cl_token *tokens, uint32_t n, const cl_token *drop, unsigned flags)
{
    int rc = cl_enter(store, CL_OP_LOAD, flags);
    if (rc == CL_OK) {
        rc = cl_take_entered(store, channel, tokens, n, drop);
        cl_leave_keeping_error(store);
    }
    return rc;
}

int cl_clean(cl_store *store, uint32_t channel, int (*keep)(void *context, uint64_t sequence, uint64_t nonce),
             void *context, unsigned flags)
{
    int rc = cl_enter(store, CL_OP_REAP, flags);
    if (rc != CL_OK) {
        return rc;
    }
    cl_block *block;
    rc = cl_block_checked(store, channel, &block);
    uint32_t at = rc == CL_OK ? block->first_child : 0;
    for (uint32_t steps = 0; rc == CL_OK && at != 0; steps++) {
        if (at > store->control->holds_high || steps > CL_MAX_HOLDS || store->holds[at - 1].kind != CL_HOLD_CHANNEL ||
            store->holds[at - 1].channel != channel + 1) {
            rc = cl_fail(CL_CORRUPT, 0, "registry: the list of a channel has the invalid entry %u", at);
            break;
        }
        const cl_hold *h = &store->holds[at - 1];
        uint32_t next = h->next;
        if (!keep(context, h->sequence, h->nonce)) {
            rc = cl_hold_drop(store, at - 1);
        }
        at = next;
    }
    cl_leave_keeping_error(store);
    return rc;
}
