#define _GNU_SOURCE
#include "queue_parts.h"
#include "tell.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define RELAXED memory_order_relaxed

/* ---- put */

/* Write one item after the last one. */
static int add(cl_queue *q, cl_position *p, const cl_item *item, uint64_t sequence, unsigned flags, int *dirty)
{
    int simple = item->payload == NULL && item->ntokens == 0;
    if (!simple && !(flags & CL_MAY_WAIT)) {
        return CL_AGAIN;
    }
    uint64_t length = sizeof(cl_record) + (item->payload != NULL ? sizeof(cl_elsewhere) : (item->nbytes + 7) / 8 * 8);
    int rc = CL_OK, spilled = 0;
    if (p->segment_id != 0) {
        rc = cl_queue_stand_on(q, &q->put_chunk, p->segment_id, p->generation, p->block, p->serial, flags);
        if (rc == CL_OK && !CL_MUTANT(queue_end_unchecked)) {
            rc = cl_queue_check_offset(&q->put_chunk, p->offset, "end");
        }
        if (rc != CL_OK) {
            return rc;
        }
    }
    if (p->segment_id == 0 || length > q->put_chunk.ref.capacity - CL_JUMP_BYTES - p->offset) {
        if (!(flags & CL_MAY_WAIT)) {
            return CL_AGAIN;
        }
        rc = cl_queue_add_chunk(q, p, &spilled, dirty);
        if (rc != CL_OK) {
            return rc;
        }
    }
    uint8_t *at = q->put_chunk.ref.data + p->offset;
    cl_record r = {.length = (uint32_t)length, .ntokens = item->ntokens, .nbytes = item->nbytes};
    if (!simple) {
        cl_token hold = {0};
        rc = cl_give(q->store, q->number, sequence, item->tokens, item->ntokens, item->payload, CL_MAY_WAIT, &hold);
        if (rc != CL_OK) {
            *dirty |= rc != CL_AGAIN; /* some may have been given already */
            return rc;
        }
        CL_KILL_POINT();
        if (item->payload != NULL) {
            const cl_block_ref *b = item->payload;
            cl_elsewhere to = {.segment_id = b->segment_id,
                               .generation = b->generation,
                               .block = (uint64_t)b->segment * CL_BLOCKS + b->index,
                               .hold = hold};
            memcpy(at + sizeof r, &to, sizeof to);
            r.ntokens |= CL_ELSEWHERE;
            spilled |= b->spilled;
        }
    }
    if (item->payload == NULL) {
        memcpy(at + sizeof r, item->body, item->nbytes);
    }
    memcpy(at, &r, sizeof r);
    CL_KILL_POINT();
    p->offset += length;
    p->bytes += item->nbytes;
    if (spilled) {
        cl_store64(&q->head->spilled, cl_load64(&q->head->spilled) + 1);
    }
    return CL_OK;
}

/* CL_OK, or CL_TIMEOUT: there is no room. The other end's word is in the caches of other processes, so it is read only
 * if its last known value is not enough. Under the lock of the `put` end. */
static int has_room(cl_queue *q, uint64_t count, uint64_t bytes, uint64_t more)
{
    const cl_queue_head *h = q->head;
    uint64_t most = q->most_bytes;
    if (count < q->known_got) {
        return cl_queue_counts_differ(q->known_got, count);
    }
    if (q->most != 0 && count - q->known_got >= q->most) {
        uint64_t got = cl_passed(&h->get);
        if (got > count) {
            return cl_queue_counts_differ(got, count);
        }
        q->known_got = got;
        if (count - got >= q->most) {
            return CL_TIMEOUT;
        }
    }
    if (most == 0 || count == cl_passed(&h->get)) {
        return CL_OK;
    }
    uint64_t gone = cl_bytes_passed(&h->get), in = bytes > gone ? bytes - gone : 0;
    return in <= most && more <= most - in ? CL_OK : CL_TIMEOUT;
}

/* A put or take that needs the registry's lock (for a chunk, or to repair what a dead process left) and cannot get it.
 * The lock's holder may be stopped, so the call ends at its deadline. */
static int in_time(int rc, int64_t begun_ns, int64_t deadline_ns, unsigned flags)
{
    return rc == CL_AGAIN && (flags & CL_MAY_WAIT) && cl_queue_is_late(begun_ns, deadline_ns) ? CL_TIMEOUT : rc;
}

static int put(cl_queue *q, const cl_item *items, uint32_t n, uint32_t *done, int64_t deadline_ns, unsigned flags)
{
    cl_queue_head *h = q->head;
    int64_t begun = 0;
    cl_queue_update_self(q);
    for (int slept = 0;;) {
        if (atomic_load_explicit(&h->state, RELAXED) != CL_QUEUE_OPEN) {
            return CL_CLOSED;
        }
        if (slept) {
            cl_queue_others_may_sleep(&h->get);
        }
        int rc = cl_queue_enter(q, 1, deadline_ns, flags);
        if (rc != CL_OK) {
            return rc;
        }
        uint64_t seen = 0;
        int meanwhile = 0, slept_on = 0, dirty = 0;
        uint64_t count = cl_passed(&h->put), before = count;
        cl_position p = cl_read_side(cl_active_side(&h->put));
        uint64_t chunk = p.serial;
        while (*done < n && (rc = has_room(q, count, p.bytes, items[*done].nbytes)) == CL_OK &&
               (rc = add(q, &p, &items[*done], count, flags, &dirty)) == CL_OK) {
            count++;
            ++*done;
        }
        if (rc == CL_TIMEOUT) {
            seen = atomic_load(&h->get.commit);
            meanwhile = has_room(q, count, p.bytes, items[*done].nbytes) == CL_OK;
        }
        int more = rc == CL_OK && slept && has_room(q, count, p.bytes, 1) == CL_OK; /* another sleeper may go on, too */
        if (count != before || p.serial != chunk) {
            cl_write_side(&h->put.side[(cl_load64(&h->put.commit) & 1) ^ 1], &p);
            slept_on = cl_queue_publish(&h->put, count);
        }
        cl_queue_leave(q, &h->put, dirty);
        if (slept_on) {
            cl_queue_wake(&h->put, count - before);
            cl_bells_tell(q->store, &h->head);
        }
        if (more) {
            cl_queue_wake(&h->get, 1);
        }
        if (rc != CL_TIMEOUT) {
            return rc;
        }
        if (meanwhile) {
            continue;
        }
        if (deadline_ns == 0 || !(flags & CL_MAY_WAIT)) {
            return flags & CL_MAY_WAIT ? CL_TIMEOUT : CL_AGAIN;
        }
        rc = cl_wait_again(&begun, deadline_ns);
        rc = rc == CL_OK ? cl_queue_wait(&h->get, seen, deadline_ns, &q->spin_put, &slept) : rc;
        if (rc != CL_OK) {
            return rc;
        }
    }
}

int cl_queue_put(cl_queue *q, const cl_item *items, uint32_t n, uint32_t *done, int64_t deadline_ns, unsigned flags)
{
    int64_t begun = flags & CL_MAY_WAIT ? cl_monotonic_ns() : 0;
    return in_time(put(q, items, n, done, deadline_ns, flags), begun, deadline_ns, flags);
}

/* ---- get */

/* Find an item that a dead consumer had taken and not acknowledged: index + 1 of its lease. Under the lock. */
static uint32_t orphan(cl_queue *q)
{
    for (uint32_t i = 0; i < q->leases; i++) {
        if (cl_queue_is_orphan(q, &q->head->leases[i])) {
            return i + 1;
        }
    }
    return 0;
}

/* The same for items; the producers' word is read only if its last known value is not enough. */
static int looks_empty(cl_queue *q)
{
    return cl_load64(&q->known_put) <= cl_passed(&q->head->get) && cl_queue_is_empty(q->head);
}

/* Go to the chunk of the next item. */
static int find_place(cl_queue *q, unsigned flags)
{
    cl_queue_head *h = q->head;
    cl_position p = cl_read_side(cl_active_side(&h->get));
    if (p.segment_id == 0) {
        p = cl_read_side(&h->first);
    }
    int rc = cl_queue_stand_on(q, &q->get_chunk, p.segment_id, p.generation, p.block, p.serial, flags);
    if (rc == CL_OK && !CL_MUTANT(queue_head_unchecked)) {
        rc = cl_queue_check_offset(&q->get_chunk, p.offset, "head");
    }
    if (rc != CL_OK) {
        return rc;
    }
    q->offset = p.offset;
    q->serial = p.serial;
    q->bytes = p.bytes;
    cl_record r;
    cl_read_words(&r, q->get_chunk.ref.data + q->offset, sizeof r);
    if (r.length == 0) {
        if (!(flags & CL_MAY_WAIT)) {
            return CL_AGAIN;
        }
        cl_elsewhere to;
        cl_read_words(&to, q->get_chunk.ref.data + q->offset + sizeof r, sizeof to);
        q->left = q->get_chunk;
        q->get_chunk.held = 0;
        rc = cl_queue_stand_on(q, &q->get_chunk, to.segment_id, to.generation, to.block, q->serial + 1, flags);
        if (rc != CL_OK) {
            q->get_chunk = q->left;
            q->left.held = 0;
            return rc;
        }
        q->offset = sizeof(cl_chunk);
        q->serial++;
    }
    return CL_OK;
}

static int begin(cl_queue *q, int64_t deadline_ns, unsigned flags)
{
    cl_queue_head *h = q->head;
    int64_t begun = 0;
    cl_queue_update_self(q);
    int look = 0;
    if (q->leases != 0) { /* items of dead consumers: checked now and then, and when empty */
        int64_t now = cl_monotonic_ns();
        look = cl_queue_is_empty(h) || now - q->looked_ns > 2 * CL_SLICE_NS;
        q->looked_ns = look ? now : q->looked_ns;
    }
    for (int slept = 0;;) {
        if (slept) {
            cl_queue_others_may_sleep(&h->put);
        }
        int empty = looks_empty(q), state = (int)atomic_load_explicit(&h->state, RELAXED);
        if (state == CL_QUEUE_SHUT_NOW) {
            if (cl_queue_is_to_drain(
                    q)) { /* the process that shut it died before it dropped the items, or a put came between */
                int rc = flags & CL_MAY_WAIT ? cl_queue_finish_shutting(q) : CL_AGAIN;
                if (rc != CL_OK) {
                    return rc;
                }
            }
            return CL_CLOSED;
        }
        if (!empty || look) {
            int rc = cl_queue_enter(q, 0, deadline_ns, flags);
            if (rc != CL_OK) {
                return rc;
            }
            q->lease = 0;
            q->moved = 0;
            q->ntokens = 0;
            q->drop.nonce = 0;
            q->pass_on = slept;
            q->got = cl_passed(&h->get);
            q->available = cl_load64(&q->known_put);
            if (q->available <= q->got) {
                q->available = cl_passed(&h->put);
                cl_store64(&q->known_put, q->available);
            }
            if (look && (q->lease = orphan(q)) != 0) {
                return CL_OK;
            }
            if (q->available > q->got) {
                rc = find_place(q, flags);
                if (rc == CL_OK) {
                    return CL_OK;
                }
                cl_unlock_own(&h->get.lock, cl_self(q->store));
                return rc;
            }
            cl_unlock_own(&h->get.lock, cl_self(q->store));
            look = 0;
            continue;
        }
        uint64_t got = cl_passed(&h->get), put = cl_passed(&h->put); /* in this order, so that put is never less */
        if (put < got) {
            return cl_queue_counts_differ(got, put);
        }
        if (state != CL_QUEUE_OPEN) {
            return CL_CLOSED;
        }
        if (deadline_ns == 0 || !(flags & CL_MAY_WAIT)) {
            return flags & CL_MAY_WAIT ? CL_TIMEOUT : CL_AGAIN;
        }
        uint64_t seen = atomic_load(&h->put.commit);
        if (!cl_queue_is_empty(h)) {
            continue;
        }
        int rc = cl_wait_again(&begun, deadline_ns);
        rc = rc == CL_OK ? cl_queue_wait(&h->put, seen, deadline_ns, &q->spin_get, &slept) : rc;
        if (rc != CL_OK) {
            return rc;
        }
        look = q->leases != 0 && cl_queue_is_empty(h); /* woken, but nothing was put: maybe given back */
    }
}

int cl_queue_begin(cl_queue *q, int64_t deadline_ns, unsigned flags)
{
    int64_t begun = flags & CL_MAY_WAIT ? cl_monotonic_ns() : 0;
    return in_time(begin(q, deadline_ns, flags), begun, deadline_ns, flags);
}

int cl_queue_poll(cl_queue *q, int64_t budget_ns)
{
    uint64_t seen = atomic_load(&q->head->put.commit);
    return !cl_queue_is_empty(q->head) || cl_poll(cl_low_word(&q->head->put), (uint32_t)seen, budget_ns, &q->spin_get);
}

static int load_body(cl_queue *q, const cl_elsewhere *to, uint64_t nbytes, cl_got *out)
{
    int rc = cl_queue_load(q, to->segment_id, to->generation, to->block, CL_MAY_WAIT, &out->payload);
    if (rc == CL_OK && nbytes > out->payload.capacity && !CL_MUTANT(queue_body_unchecked)) {
        uint64_t room = out->payload.capacity;
        cl_queue_give_back(q, &out->payload);
        return cl_fail(CL_CORRUPT, 0, "queue: an item records %llu bytes, and its block has %llu",
                       (unsigned long long)nbytes, (unsigned long long)room);
    }
    return rc;
}

static int lend(cl_queue *q, const cl_elsewhere *to, uint64_t nbytes, uint32_t ntokens, uint64_t sequence)
{
    for (uint32_t i = 0; i < q->leases; i++) {
        cl_lease *l = &q->head->leases[i];
        if (atomic_load(&l->owner) == 0) {
            cl_store64(&l->sequence, sequence);
            cl_store64(&l->segment_id, to->segment_id);
            cl_store64(&l->generation, to->generation);
            cl_store64(&l->block, to->block);
            cl_store64(&l->nbytes, nbytes);
            cl_store64(&l->nonce, to->hold.nonce);
            atomic_store_explicit(&l->hold, to->hold.hold, RELAXED);
            atomic_store_explicit(&l->ntokens, ntokens, RELAXED);
            atomic_store(&l->again, 0);
            CL_KILL_POINT();
            atomic_store(&l->owner,
                         cl_queue_self(q)); /* not valid before the commit: its sequence is not before the head */
            CL_KILL_POINT();
            q->lease = i + 1;
            return CL_OK;
        }
    }
    return cl_fail(CL_TABLE_FULL, 0, "%u items are taken and not acknowledged", q->leases);
}

static int again(cl_queue *q, cl_got *out)
{
    cl_lease *l = &q->head->leases[q->lease - 1];
    cl_elsewhere to = {.segment_id = cl_load64(&l->segment_id),
                       .generation = cl_load64(&l->generation),
                       .block = cl_load64(&l->block)};
    out->body = NULL;
    out->nbytes = cl_load64(&l->nbytes);
    out->ntokens = atomic_load_explicit(&l->ntokens, RELAXED);
    out->sequence = cl_load64(&l->sequence);
    int rc = out->ntokens > out->nbytes / sizeof(cl_token)
                 ? cl_fail(CL_CORRUPT, 0, "queue: a lease records %u tokens in %llu bytes", out->ntokens,
                           (unsigned long long)out->nbytes)
                 : load_body(q, &to, out->nbytes, out);
    if (rc == CL_STALE || rc == CL_CORRUPT) { /* acknowledged, but its lease was not freed; or no process can read it */
        atomic_store(&l->owner, 0);
    } else if (rc == CL_OK) {
        atomic_fetch_add(&l->again, 1);
        atomic_store(&l->owner, cl_queue_self(q));
        CL_KILL_POINT();
    }
    return rc;
}

int cl_queue_next(cl_queue *q, cl_got *out, unsigned flags)
{
    if (q->lease != 0 && q->moved == 0) {
        if (!(flags & CL_MAY_WAIT)) {
            return CL_AGAIN;
        }
        int rc = again(q, out);
        q->available = q->got; /* no further item */
        return rc == CL_STALE ? CL_MISSING : rc;
    }
    const cl_block_ref *c = &q->get_chunk.ref;
    if (q->got >= q->available || q->offset > c->capacity - CL_JUMP_BYTES) {
        return CL_MISSING;
    }
    cl_record r;
    cl_read_words(&r, c->data + q->offset, sizeof r);
    if (r.length == 0 && q->moved != 0) {
        return CL_MISSING; /* the next take follows the jump */
    }
    int there = (r.ntokens & CL_ELSEWHERE) != 0;
    uint32_t ntokens = r.ntokens & ~CL_ELSEWHERE;
    uint64_t room = c->capacity - CL_JUMP_BYTES - q->offset, inside = there ? sizeof(cl_elsewhere) : r.nbytes;
    int fits = inside <= room && r.length <= room && r.length == sizeof r + (inside + 7) / 8 * 8;
    if ((!fits || ntokens > r.nbytes / sizeof(cl_token)) && !CL_MUTANT(queue_lengths_unchecked)) {
        return cl_fail(
            CL_CORRUPT, 0,
            "queue: a record of %u bytes (an item of %llu bytes, %u tokens) at offset %llu of a chunk is invalid",
            r.length, (unsigned long long)r.nbytes, ntokens, (unsigned long long)q->offset);
    }
    if ((there || ntokens != 0) && (q->moved || !(flags & CL_MAY_WAIT))) {
        return q->moved ? CL_MISSING : CL_AGAIN; /* the take ends before it */
    }
    const uint8_t *body = c->data + q->offset + sizeof r;
    *out = (cl_got){.body = body, .nbytes = r.nbytes, .ntokens = ntokens, .sequence = q->got};
    int rc = CL_OK;
    if (there) {
        cl_elsewhere to;
        cl_read_words(&to, body, sizeof to);
        rc = load_body(q, &to, r.nbytes, out);
        if (rc == CL_OK) {
            out->body = NULL;
            body = out->payload.data;
            q->drop = to.hold;
        } else if (rc != CL_STALE && rc != CL_CORRUPT) {
            return rc; /* the item stays: a later try may find room for it */
        }
        if (rc == CL_OK && q->leases != 0) {
            rc = lend(q, &to, r.nbytes, ntokens, q->got);
            q->drop.nonce = 0;
            if (rc != CL_OK) {
                cl_queue_give_back(q, &out->payload);
                return rc;
            }
        }
    }
    if ((there || ntokens != 0) && rc == CL_OK) {
        if (q->leases == 0) {
            q->tokens = (const cl_token *)(const void *)body;
            q->ntokens = ntokens;
        }
        q->available = q->got + 1;
    }
    q->moved++;
    q->got++;
    q->offset += r.length;
    q->bytes += r.nbytes;
    return rc;
}

int cl_queue_needs_registry(const cl_queue *q)
{
    return q->left.held || q->drop.nonce != 0 || q->ntokens != 0;
}

void cl_queue_abort(cl_queue *q)
{
    if (q->lease != 0 && q->moved) {
        atomic_store(&q->head->leases[q->lease - 1].owner, 0);
    }
    if (q->left.held && !CL_MUTANT(queue_abort_keeps_the_next_chunk)) { /* nothing was committed: go back to the head */
        cl_queue_drop_chunk(q, &q->get_chunk);
        q->get_chunk = q->left;
        q->left.held = 0;
    }
    cl_unlock_own(&q->head->get.lock, cl_self(q->store));
}

int cl_queue_commit(cl_queue *q)
{
    cl_queue_head *h = q->head;
    int moved = q->moved, registry = cl_queue_needs_registry(q);
    if (!moved) {
        cl_queue_abort(q);
        return CL_OK;
    }
    if (registry) { /* first, so that nothing is published that cannot be finished */
        int rc = cl_enter(q->store, CL_OP_LOAD, CL_MAY_WAIT);
        if (rc != CL_OK) {
            return rc;
        }
    }
    cl_side *side = &h->get.side[(cl_load64(&h->get.commit) & 1) ^ 1];
    const cl_block_ref *c = &q->get_chunk.ref;
    cl_position p = {c->segment_id, c->generation, (uint64_t)c->segment * CL_BLOCKS + c->index,
                     q->offset,     q->serial,     q->bytes};
    cl_write_side(side, &p);
    uint64_t who = 0;
    if ((q->flags & CL_QUEUE_JOINABLE) && q->leases == 0) {
        cl_user *u = cl_queue_user(q);
        who = atomic_load_explicit(&q->user, RELAXED);
        cl_store64(&side->taken, cl_load64(&u->taken) + (uint64_t)moved);
    }
    cl_store64(&side->user, who);
    int slept_on = cl_queue_publish(&h->get, q->got);
    cl_queue_apply_taken(q);
    CL_KILL_POINT();
    if (q->ntokens != 0 || q->drop.nonce != 0) {
        cl_take_entered(q->store, q->number, q->tokens, q->ntokens, q->drop.nonce ? &q->drop : NULL);
        CL_KILL_POINT();
    }
    if (q->left.held) {
        cl_token hold = ((const cl_chunk *)(const void *)q->left.ref.data)->hold;
        cl_take_entered(q->store, q->number, NULL, 0, &hold);
        CL_KILL_POINT();
    }
    if (registry) {
        cl_leave(q->store);
    }
    cl_queue_drop_chunk(q, &q->left);
    int more = q->pass_on && !CL_MUTANT(queue_wake_not_passed_on) && cl_passed(&h->put) > q->got;
    cl_unlock_own(&h->get.lock, cl_self(q->store));
    if (slept_on) {
        cl_queue_wake(&h->get, (uint64_t)moved);
    }
    if (more) {
        cl_queue_wake(&h->put, 1);
    }
    return CL_OK;
}

int cl_queue_settle(cl_queue *q, cl_got *got)
{
    uint8_t *copy = NULL;
    int rc = CL_OK;
    if (got->body != NULL) { /* another thread may leave this chunk as soon as the lock is released */
        copy = malloc(got->nbytes != 0 ? got->nbytes : 1);
        rc = copy == NULL ? cl_fail(CL_SYSTEM, ENOMEM, "copying an item of %llu bytes", (unsigned long long)got->nbytes)
                          : CL_OK;
    }
    if (rc == CL_OK) {
        if (copy != NULL) {
            memcpy(copy, got->body, got->nbytes);
        }
        rc = cl_queue_commit(q);
    }
    if (rc == CL_OK) {
        got->settled = 1;
        got->body = copy;
        return CL_OK;
    }
    cl_error kept = *cl_last_error();
    cl_queue_abort(q);
    if (got->body == NULL) {
        cl_queue_give_back(q, &got->payload);
    }
    free(copy);
    *cl_last_error() = kept;
    return rc;
}
