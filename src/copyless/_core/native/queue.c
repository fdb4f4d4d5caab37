#define _GNU_SOURCE
#include "queue.h"

#include <limits.h>
#include <string.h>

#define CL_COMMIT_SLEEP ((uint64_t)2)
#define CL_COMMIT_SHIFT 2
#define CHUNK_BIT ((uint64_t)1 << 63) /* in a hold's sequence: of a chunk, not of an item */
#define RELAXED memory_order_relaxed

typedef struct record {
    uint32_t length; /* with this header, a multiple of 8; 0: a jump to the next chunk */
    uint32_t ntokens;
    uint64_t nbytes; /* of the body */
} record;

typedef struct elsewhere { /* follows a record whose body lies in a block, or a jump */
    uint64_t segment_id, generation, block;
    cl_token hold;
} elsewhere;

#define ELSEWHERE 0x80000000u /* in ntokens: the body lies in a block */
#define JUMP_BYTES ((uint64_t)(sizeof(record) + sizeof(elsewhere)))

static uint64_t get64(const cl_au64 *p)
{
    return atomic_load_explicit(p, RELAXED);
}

static void set64(cl_au64 *p, uint64_t v)
{
    atomic_store_explicit(p, v, RELAXED);
}

static uint64_t passed(const cl_end *end)
{
    return atomic_load_explicit(&end->commit, memory_order_acquire) >> CL_COMMIT_SHIFT; /* pairs with "passed" */
}

static cl_side *active(cl_end *end)
{
    return &end->side[get64(&end->commit) & 1];
}

static cl_au32 *low_word(cl_end *end)
{
    /* A futex is 32 bits. Only ever compared for change, and read anew as a whole. */
    return (cl_au32 *)(void *)&end->commit + (__BYTE_ORDER__ == __ORDER_BIG_ENDIAN__);
}

/* ---- attaching */

static void give_back(cl_queue *q, const cl_block_ref *r)
{
    while (cl_release(q->store, r->segment_id, r->segment, r->index, CL_MAY_WAIT) == CL_AGAIN) {
    }
}

static void let_go(cl_queue *q, cl_cached *c)
{
    if (c->held) {
        c->held = 0;
        give_back(q, &c->ref);
    }
}

/* After a fork the child is somebody else; what it inherited of the chunks it has holds on. */
static uint32_t self_of(cl_queue *q)
{
    return atomic_load_explicit(&q->self, RELAXED);
}

static void know_self(cl_queue *q)
{
    uint32_t self = cl_self(q->store);
    if (self_of(q) != self) {
        atomic_store_explicit(&q->user, 0, RELAXED);
        atomic_store_explicit(&q->self, self, RELAXED);
    }
}

int cl_queue_attach(cl_queue *q, cl_store *store, cl_queue_head *head, uint64_t capacity, uint32_t number)
{
    memset(q, 0, sizeof *q);
    if (head->head.kind != CL_KIND_QUEUE || capacity < sizeof *head ||
        (capacity - sizeof *head) / sizeof(cl_lease) < head->head.room) {
        return cl_fail(CL_CORRUPT, 0, "block %u holds no queue", number);
    }
    q->store = store;
    q->head = head;
    q->number = number;
    return CL_OK;
}

void cl_queue_detach(cl_queue *q)
{
    if (q->head != NULL) {
        let_go(q, &q->put_chunk);
        let_go(q, &q->get_chunk);
        let_go(q, &q->left);
        q->head = NULL;
    }
}

/* ---- users */

static uint32_t find_user(cl_queue *q)
{
    for (int look = 0; look < 2; look++) {
        for (uint32_t i = 0; i < CL_USERS - 1; i++) {
            cl_user *u = &q->head->users[i];
            uint32_t owner = atomic_load(&u->owner);
            if (owner == self_of(q)) {
                return i + 1;
            }
            if ((owner == 0 || (look && cl_is_dead(q->store, owner) && get64(&u->taken) == get64(&u->done))) &&
                atomic_compare_exchange_strong(&u->owner, &owner, self_of(q))) {
                CL_KILL_POINT();
                atomic_store(&u->role, 0);
                return i + 1;
            }
        }
    }
    return CL_USERS; /* the last is everybody's for whom there is no room: alive for ever */
}

static cl_user *user(cl_queue *q)
{
    know_self(q);
    uint32_t at = atomic_load_explicit(&q->user, RELAXED);
    if (at == 0) {
        at = find_user(q);
        atomic_store_explicit(&q->user, at, RELAXED);
    }
    return &q->head->users[at - 1];
}

void cl_queue_role(cl_queue *q, uint32_t role, int on)
{
    cl_user *u = user(q);
    if (on && (atomic_load_explicit(&u->role, RELAXED) & role) != role) {
        atomic_fetch_or(&u->role, role);
    } else if (!on && (atomic_load_explicit(&u->role, RELAXED) & role) != 0) {
        atomic_fetch_and(&u->role, ~role);
    }
}

void cl_queue_use(cl_queue *q, uint32_t role)
{
    cl_user *u = user(q);
    if ((atomic_load_explicit(&u->role, RELAXED) & (role | CL_ROLE_CLOSED)) != role) {
        cl_queue_role(q, role, 1);
        cl_queue_role(q, CL_ROLE_CLOSED, 0); /* by another object of this process it was */
    }
}

int cl_queue_deserted(cl_queue *q)
{
    cl_queue_head *h = q->head;
    uint32_t self = cl_self(q->store);
    int others = 0, died = 0;
    for (uint32_t i = 0; i < CL_USERS; i++) {
        uint32_t role = atomic_load(&h->users[i].role), owner = atomic_load(&h->users[i].owner);
        if (!(role & CL_ROLE_PUTS)) {
            continue;
        }
        if (i == CL_USERS - 1 || (!(role & CL_ROLE_CLOSED) && !cl_is_dead(q->store, owner))) {
            return 0;
        }
        died |= !(role & CL_ROLE_CLOSED);
        others |= owner != self;
    }
    if (!others || cl_enter(q->store, CL_OP_LIST, CL_MAY_WAIT) != CL_OK) {
        return 0;
    }
    cl_store *s = q->store;
    int deserted = 1;
    for (uint32_t i = 0; deserted && i < s->control->holds_high && i < CL_MAX_HOLDS; i++) {
        const cl_hold *hold = &s->holds[i];
        if (hold->kind == CL_HOLD_FREE || hold->block != q->number + 1) {
            continue;
        }
        deserted = 0;
        if (hold->kind == CL_HOLD_OWNER && hold->owner != 0 && hold->owner < CL_MAX_OWNERS) {
            uint32_t word = CL_LOCK_WORD(hold->owner - 1, s->owners[hold->owner - 1].incarnation);
            deserted = cl_is_dead(q->store, word);
            for (uint32_t u = 0; !deserted && u < CL_USERS - 1; u++) {
                uint32_t role = atomic_load(&h->users[u].role);
                deserted = atomic_load(&h->users[u].owner) == word && ((role & CL_ROLE_CLOSED) || role == CL_ROLE_GETS);
            }
        }
    }
    cl_leave(s);
    return deserted && cl_queue_size(h) == 0 ? 1 + died : 0;
}

/* ---- locks, and what is left to do when one comes from the dead */

typedef struct keeping {
    cl_queue *q;
    uint64_t count, serial;
    int puts;
} keeping;

static int leased(const cl_queue_head *h, uint64_t sequence)
{
    for (uint32_t i = 0; i < h->head.room; i++) {
        if (atomic_load(&h->leases[i].owner) != 0 && get64(&h->leases[i].sequence) == sequence) {
            return 1;
        }
    }
    return 0;
}

static int keep(void *context, uint64_t sequence, uint64_t nonce)
{
    const keeping *k = context;
    (void)nonce;
    uint64_t number = sequence & ~CHUNK_BIT;
    if (k->puts) { /* what lies beyond the end was never published */
        return sequence & CHUNK_BIT ? number <= k->serial : number < k->count;
    }
    return sequence & CHUNK_BIT ? number >= k->serial : number >= k->count || leased(k->q->head, number);
}

static int clean(cl_queue *q, int puts, uint64_t count, uint64_t serial)
{
    keeping k = {.q = q, .count = count, .serial = serial, .puts = puts};
    int rc;
    while ((rc = cl_clean(q->store, q->number, keep, &k, CL_MAY_WAIT)) == CL_AGAIN) {
    }
    return rc;
}

static void apply_taken(cl_queue *q)
{
    const cl_side *side = active(&q->head->get);
    uint64_t who = get64(&side->user), taken = get64(&side->taken);
    if (who == CL_DRAINED) {
        set64(&q->head->dropped, taken);
    } else if (who != 0 && who <= CL_USERS) {
        set64(&q->head->users[who - 1].taken, taken);
    }
}

/* Leases that no commit made valid: their consumer died before it. */
static void drop_leases_beyond(cl_queue *q)
{
    uint64_t got = passed(&q->head->get);
    for (uint32_t i = 0; i < q->head->head.room; i++) {
        if (atomic_load(&q->head->leases[i].owner) != 0 && get64(&q->head->leases[i].sequence) >= got) {
            atomic_store(&q->head->leases[i].owner, 0);
        }
    }
}

static int enter(cl_queue *q, int puts, int64_t deadline_ns, unsigned flags)
{
    cl_end *end = puts ? &q->head->put : &q->head->get;
    int rc = cl_mutex_lock(q->store, &end->lock, 0, &q->spin_lock);
    if (rc == CL_AGAIN &&
        (flags & CL_MAY_WAIT)) { /* held for microseconds: not to wait means not to wait for an item */
        int64_t until = cl_monotonic_ns() + CL_SLICE_NS;
        rc = cl_mutex_lock(q->store, &end->lock, deadline_ns > until ? deadline_ns : until, &q->spin_lock);
    }
    if (rc == CL_OWNER_DIED) {
        CL_KILL_POINT();
        if (!puts) {
            apply_taken(q);
            drop_leases_beyond(q);
        }
        rc = clean(q, puts, passed(end), get64(&active(end)->serial));
        if (rc != CL_OK) {
            cl_unlock(&end->lock);
        }
    }
    return rc;
}

/* Wait until an end moves on from what was seen of it; *slept: not only by looking on. */
static int wait_for(cl_end *end, uint64_t seen, int64_t deadline_ns, cl_spin *spin, int *slept)
{
    cl_au32 *word = low_word(end);
    for (int spun = 0;;) {
        uint64_t v = atomic_load(&end->commit);
        if ((v ^ seen) & ~CL_COMMIT_SLEEP) {
            return CL_OK;
        }
        if (!spun) {
            spun = !cl_spin_wait(word, (uint32_t)v, spin);
            continue;
        }
        if ((v & CL_COMMIT_SLEEP) || atomic_compare_exchange_strong(&end->commit, &v, v | CL_COMMIT_SLEEP)) {
            CL_KILL_POINT();
            *slept = 1;
            return cl_sleep(word, (uint32_t)(v | CL_COMMIT_SLEEP), deadline_ns, spin);
        }
    }
}

/* One who was woken knows nothing of the others: they may sleep still. */
static void others_may_sleep(cl_end *end)
{
    atomic_fetch_or(&end->commit, CL_COMMIT_SLEEP);
}

static void wake(cl_end *end, uint64_t n)
{
    CL_KILL_POINT();
    cl_wake(low_word(end), n < INT_MAX ? (int)n : INT_MAX);
}

/* ---- chunks */

static int is_at(const cl_cached *c, uint64_t segment_id, uint64_t generation, uint64_t block)
{
    return c->held && c->ref.segment_id == segment_id && c->ref.generation == generation &&
           (uint64_t)c->ref.segment * CL_BLOCKS + c->ref.index == block;
}

static int load(cl_queue *q, uint64_t segment_id, uint64_t generation, uint64_t block, unsigned flags,
                cl_block_ref *out)
{
    if (block >= (uint64_t)CL_MAX_SEGMENTS * CL_BLOCKS) {
        return cl_fail(CL_CORRUPT, 0, "queue: block %llu", (unsigned long long)block);
    }
    cl_address a = {.segment_id = segment_id,
                    .generation = generation,
                    .segment = (uint32_t)(block / CL_BLOCKS),
                    .index = (uint32_t)(block % CL_BLOCKS)};
    int rc;
    while ((rc = cl_load(q->store, &a, flags, out)) == CL_AGAIN && (flags & CL_MAY_WAIT)) {
    }
    return rc;
}

static int stand_on(cl_queue *q, cl_cached *c, uint64_t segment_id, uint64_t generation, uint64_t block, unsigned flags)
{
    if (is_at(c, segment_id, generation, block)) {
        return CL_OK;
    }
    if (!(flags & CL_MAY_WAIT)) {
        return CL_AGAIN;
    }
    cl_block_ref ref;
    int rc = load(q, segment_id, generation, block, flags, &ref);
    if (rc == CL_OK) {
        let_go(q, c);
        c->ref = ref;
        c->held = 1;
    }
    return rc;
}

/* ---- put */

typedef struct position {
    uint64_t segment_id, generation, block, offset, serial, bytes;
} position;

static position read_side(const cl_side *s)
{
    return (position){get64(&s->segment_id), get64(&s->generation), get64(&s->block),
                      get64(&s->offset),     get64(&s->serial),     get64(&s->bytes)};
}

static void write_side(cl_side *s, const position *p)
{
    set64(&s->segment_id, p->segment_id);
    set64(&s->generation, p->generation);
    set64(&s->block, p->block);
    set64(&s->offset, p->offset);
    set64(&s->serial, p->serial);
    set64(&s->bytes, p->bytes);
}

/* Publishes the other side. 1: somebody slept on the word, and must be woken. */
static int commit(cl_end *end, uint64_t count)
{
    uint64_t other = (get64(&end->commit) & 1) ^ 1;
    CL_KILL_POINT();
    uint64_t old = atomic_exchange(&end->commit, count << CL_COMMIT_SHIFT | other); /* release: "passed" */
    CL_KILL_POINT();
    return (old & CL_COMMIT_SLEEP) != 0;
}

/* A further chunk, with a jump to it from the last. Until the commit nobody knows of it but its hold. */
static int add_chunk(cl_queue *q, position *p, int *spilled)
{
    cl_block_ref ref;
    cl_token token;
    int rc;
    while ((rc = cl_alloc(q->store, CL_CHUNK_BYTES, CL_MAY_WAIT, &ref)) == CL_AGAIN) {
    }
    /* On disk few and large ones, since each costs a segment in the registry; where there is no room, a small one. */
    for (uint64_t nbytes = CL_SPILLED_CHUNK_BYTES; rc == CL_FULL && nbytes != 0;
         nbytes = nbytes == CL_CHUNK_BYTES ? 0 : CL_CHUNK_BYTES) {
        while ((rc = cl_alloc(q->store, nbytes, CL_MAY_WAIT | CL_MAY_SPILL, &ref)) == CL_AGAIN) {
        }
    }
    if (rc != CL_OK) {
        return rc;
    }
    *spilled = ref.spilled;
    CL_KILL_POINT();
    uint64_t block = (uint64_t)ref.segment * CL_BLOCKS + ref.index;
    while ((rc = cl_give(q->store, q->number, CHUNK_BIT | (p->serial + 1), NULL, 0, &ref, CL_MAY_WAIT, &token)) ==
           CL_AGAIN) {
    }
    if (rc != CL_OK) {
        give_back(q, &ref);
        return rc;
    }
    CL_KILL_POINT();
    elsewhere to = {.segment_id = ref.segment_id, .generation = ref.generation, .block = block, .hold = token};
    cl_cached before = q->put_chunk;
    q->put_chunk.held = 0;
    rc = stand_on(q, &q->put_chunk, ref.segment_id, ref.generation, block, CL_MAY_WAIT);
    if (rc != CL_OK) {
        q->put_chunk = before;
        while (cl_take(q->store, q->number, NULL, 0, &token, CL_MAY_WAIT) == CL_AGAIN) {
        }
        return rc;
    }
    cl_chunk *chunk = (cl_chunk *)(void *)q->put_chunk.ref.data;
    chunk->serial = p->serial + 1;
    chunk->hold = token;
    if (p->segment_id == 0) {
        cl_side *first = &q->head->first;
        position at = {to.segment_id, to.generation, to.block, sizeof(cl_chunk), 1, 0};
        write_side(first, &at);
    } else {
        record jump = {.length = 0};
        memcpy(before.ref.data + p->offset, &jump, sizeof jump);
        memcpy(before.ref.data + p->offset + sizeof jump, &to, sizeof to);
    }
    CL_KILL_POINT();
    let_go(q, &before);
    p->segment_id = to.segment_id;
    p->generation = to.generation;
    p->block = to.block;
    p->offset = sizeof(cl_chunk);
    p->serial++;
    return CL_OK;
}

/* Write one item behind the last. */
static int add(cl_queue *q, position *p, const cl_item *item, uint64_t sequence, unsigned flags)
{
    int simple = item->payload == NULL && item->ntokens == 0;
    if (!simple && !(flags & CL_MAY_WAIT)) {
        return CL_AGAIN;
    }
    uint64_t length = sizeof(record) + (item->payload != NULL ? sizeof(elsewhere) : (item->nbytes + 7) / 8 * 8);
    int rc = CL_OK, spilled = 0;
    if (p->segment_id != 0) {
        rc = stand_on(q, &q->put_chunk, p->segment_id, p->generation, p->block, flags);
        if (rc != CL_OK) {
            return rc;
        }
        if (p->offset > q->put_chunk.ref.capacity - JUMP_BYTES) {
            return cl_fail(CL_CORRUPT, 0, "queue: the end lies at %llu of a chunk", (unsigned long long)p->offset);
        }
    }
    if (p->segment_id == 0 || length > q->put_chunk.ref.capacity - JUMP_BYTES - p->offset) {
        if (!(flags & CL_MAY_WAIT)) {
            return CL_AGAIN;
        }
        rc = add_chunk(q, p, &spilled);
        if (rc != CL_OK) {
            return rc;
        }
    }
    uint8_t *at = q->put_chunk.ref.data + p->offset;
    record r = {.length = (uint32_t)length, .ntokens = item->ntokens, .nbytes = item->nbytes};
    if (!simple) {
        cl_token hold = {0};
        while ((rc = cl_give(q->store, q->number, sequence, item->tokens, item->ntokens, item->payload, CL_MAY_WAIT,
                             &hold)) == CL_AGAIN) {
        }
        if (rc != CL_OK) {
            clean(q, 1, sequence, p->serial); /* some may have been given */
            return rc;
        }
        CL_KILL_POINT();
        if (item->payload != NULL) {
            const cl_block_ref *b = item->payload;
            elsewhere to = {.segment_id = b->segment_id,
                            .generation = b->generation,
                            .block = (uint64_t)b->segment * CL_BLOCKS + b->index,
                            .hold = hold};
            memcpy(at + sizeof r, &to, sizeof to);
            r.ntokens |= ELSEWHERE;
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
        set64(&q->head->spilled, get64(&q->head->spilled) + 1);
    }
    return CL_OK;
}

/* Bytes that have left; read beside a consumer at work. */
static uint64_t bytes_passed(const cl_end *end)
{
    for (;;) {
        uint64_t seen = atomic_load(&end->commit);
        uint64_t bytes = get64(&end->side[seen & 1].bytes);
        atomic_thread_fence(memory_order_acquire);
        if (atomic_load(&end->commit) == seen) {
            return bytes;
        }
    }
}

/* The other end's word is looked at only when what is known of it does not do: it lies in the others' caches. Under the
 * lock of the `put` end. */
static int has_room(cl_queue *q, uint64_t count, uint64_t bytes, uint64_t more)
{
    const cl_queue_head *h = q->head;
    uint64_t most = h->head.spare[0];
    if (h->head.number != 0 && count - q->known_got >= h->head.number) {
        q->known_got = passed(&h->get);
        if (count - q->known_got >= h->head.number) {
            return 0;
        }
    }
    return most == 0 || count == passed(&h->get) || bytes - bytes_passed(&h->get) + more <= most;
}

int cl_queue_put(cl_queue *q, const cl_item *items, uint32_t n, uint32_t *done, int64_t deadline_ns, unsigned flags)
{
    cl_queue_head *h = q->head;
    know_self(q);
    for (int slept = 0;;) {
        if (atomic_load_explicit(&h->state, RELAXED) != CL_QUEUE_OPEN) {
            return CL_CLOSED;
        }
        if (slept) {
            others_may_sleep(&h->get);
        }
        int rc = enter(q, 1, deadline_ns, flags);
        if (rc != CL_OK) {
            return rc;
        }
        uint64_t seen = 0;
        int meanwhile = 0, slept_on = 0;
        uint64_t count = passed(&h->put), before = count;
        position p = read_side(active(&h->put));
        uint64_t chunk = p.serial;
        while (*done < n && (rc = has_room(q, count, p.bytes, items[*done].nbytes) ? CL_OK : CL_TIMEOUT) == CL_OK &&
               (rc = add(q, &p, &items[*done], count, flags)) == CL_OK) {
            count++;
            ++*done;
        }
        if (rc == CL_TIMEOUT) {
            seen = atomic_load(&h->get.commit);
            meanwhile = has_room(q, count, p.bytes, items[*done].nbytes);
        }
        int more = rc != CL_TIMEOUT && slept && has_room(q, count, p.bytes, 1); /* another sleeper may go on, too */
        if (count != before || p.serial != chunk) {
            write_side(&h->put.side[(get64(&h->put.commit) & 1) ^ 1], &p);
            slept_on = commit(&h->put, count);
        }
        cl_unlock(&h->put.lock);
        if (slept_on) {
            wake(&h->put, count - before);
        }
        if (more) {
            wake(&h->get, 1);
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
        rc = wait_for(&h->get, seen, deadline_ns, &q->spin_put, &slept);
        if (rc != CL_OK) {
            return rc;
        }
    }
}

/* ---- get */

/* An item that a dead consumer had taken and not acknowledged; index + 1 of its lease. Under the lock. */
static uint32_t orphan(cl_queue *q)
{
    for (uint32_t i = 0; i < q->head->head.room; i++) {
        uint32_t owner = atomic_load(&q->head->leases[i].owner);
        if (owner != 0 && cl_is_dead(q->store, owner)) {
            return i + 1;
        }
    }
    return 0;
}

static int is_empty(cl_queue_head *h)
{
    return passed(&h->put) <= passed(&h->get);
}

/* The same, looking at the producers' word only when what is known of it does not do. */
static int looks_empty(cl_queue *q)
{
    return get64(&q->known_put) <= passed(&q->head->get) && is_empty(q->head);
}

/* Stand on the chunk of the next item. */
static int find_place(cl_queue *q, unsigned flags)
{
    cl_queue_head *h = q->head;
    position p = read_side(active(&h->get));
    if (p.segment_id == 0) {
        p = read_side(&h->first);
    }
    int rc = stand_on(q, &q->get_chunk, p.segment_id, p.generation, p.block, flags);
    if (rc != CL_OK) {
        return rc;
    }
    q->offset = p.offset;
    q->serial = p.serial;
    q->bytes = p.bytes;
    record r;
    if (q->offset < sizeof(cl_chunk) || q->offset > q->get_chunk.ref.capacity - JUMP_BYTES) {
        return cl_fail(CL_CORRUPT, 0, "queue: the head lies at %llu of a chunk", (unsigned long long)q->offset);
    }
    memcpy(&r, q->get_chunk.ref.data + q->offset, sizeof r);
    if (r.length == 0) {
        if (!(flags & CL_MAY_WAIT)) {
            return CL_AGAIN;
        }
        elsewhere to;
        memcpy(&to, q->get_chunk.ref.data + q->offset + sizeof r, sizeof to);
        q->left = q->get_chunk;
        q->get_chunk.held = 0;
        rc = stand_on(q, &q->get_chunk, to.segment_id, to.generation, to.block, flags);
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

int cl_queue_begin(cl_queue *q, int64_t deadline_ns, unsigned flags)
{
    cl_queue_head *h = q->head;
    know_self(q);
    int look = 0;
    if (h->head.room != 0) { /* for what the dead have not acknowledged: now and then, and when there is nothing else */
        int64_t now = cl_monotonic_ns();
        look = is_empty(h) || now - q->looked_ns > 2 * CL_SLICE_NS;
        q->looked_ns = look ? now : q->looked_ns;
    }
    for (int slept = 0;;) {
        if (slept) {
            others_may_sleep(&h->put);
        }
        int empty = looks_empty(q), state = (int)atomic_load_explicit(&h->state, RELAXED);
        if (state == CL_QUEUE_SHUT_NOW) {
            return CL_CLOSED;
        }
        if (!empty || look) {
            int rc = enter(q, 0, deadline_ns, flags);
            if (rc != CL_OK) {
                return rc;
            }
            q->lease = 0;
            q->moved = 0;
            q->ntokens = 0;
            q->drop.nonce = 0;
            q->pass_on = slept;
            q->got = passed(&h->get);
            q->available = get64(&q->known_put);
            if (q->available <= q->got) {
                q->available = passed(&h->put);
                set64(&q->known_put, q->available);
            }
            if (look && (q->lease = orphan(q)) != 0) {
                return CL_OK;
            }
            if (q->available > q->got) {
                rc = find_place(q, flags);
                if (rc == CL_OK) {
                    return CL_OK;
                }
                cl_unlock(&h->get.lock);
                return rc;
            }
            cl_unlock(&h->get.lock);
            look = 0;
            continue;
        }
        if (state != CL_QUEUE_OPEN) {
            return CL_CLOSED;
        }
        if (deadline_ns == 0 || !(flags & CL_MAY_WAIT)) {
            return flags & CL_MAY_WAIT ? CL_TIMEOUT : CL_AGAIN;
        }
        uint64_t seen = atomic_load(&h->put.commit);
        if (!is_empty(h)) {
            continue;
        }
        int rc = wait_for(&h->put, seen, deadline_ns, &q->spin_get, &slept);
        if (rc != CL_OK) {
            return rc;
        }
    }
}

int cl_queue_poll(cl_queue *q, int64_t budget_ns)
{
    uint64_t seen = atomic_load(&q->head->put.commit);
    return !is_empty(q->head) || cl_poll(low_word(&q->head->put), (uint32_t)seen, budget_ns, &q->spin_get);
}

static int load_body(cl_queue *q, const elsewhere *to, uint64_t nbytes, cl_got *out)
{
    int rc = load(q, to->segment_id, to->generation, to->block, CL_MAY_WAIT, &out->payload);
    if (rc == CL_OK && nbytes > out->payload.capacity) {
        uint64_t room = out->payload.capacity;
        give_back(q, &out->payload);
        return cl_fail(CL_CORRUPT, 0, "queue: an item of %llu bytes in a block of %llu", (unsigned long long)nbytes,
                       (unsigned long long)room);
    }
    return rc;
}

static int lend(cl_queue *q, const elsewhere *to, uint64_t nbytes, uint32_t ntokens, uint64_t sequence)
{
    for (uint32_t i = 0; i < q->head->head.room; i++) {
        cl_lease *l = &q->head->leases[i];
        if (atomic_load(&l->owner) == 0) {
            set64(&l->sequence, sequence);
            set64(&l->segment_id, to->segment_id);
            set64(&l->generation, to->generation);
            set64(&l->block, to->block);
            set64(&l->nbytes, nbytes);
            set64(&l->nonce, to->hold.nonce);
            atomic_store_explicit(&l->hold, to->hold.hold, RELAXED);
            atomic_store_explicit(&l->ntokens, ntokens, RELAXED);
            atomic_store(&l->again, 0);
            CL_KILL_POINT();
            atomic_store(&l->owner, self_of(q)); /* not valid before the commit: its sequence is not before the head */
            CL_KILL_POINT();
            q->lease = i + 1;
            return CL_OK;
        }
    }
    return cl_fail(CL_TABLE_FULL, 0, "%u items are taken and not acknowledged", q->head->head.room);
}

static int again(cl_queue *q, cl_got *out)
{
    cl_lease *l = &q->head->leases[q->lease - 1];
    elsewhere to = {
        .segment_id = get64(&l->segment_id), .generation = get64(&l->generation), .block = get64(&l->block)};
    out->body = NULL;
    out->nbytes = get64(&l->nbytes);
    out->ntokens = atomic_load_explicit(&l->ntokens, RELAXED);
    out->sequence = get64(&l->sequence);
    int rc = load_body(q, &to, out->nbytes, out);
    if (rc == CL_STALE) { /* acknowledged, and killed before the lease was free */
        atomic_store(&l->owner, 0);
    } else if (rc == CL_OK) {
        atomic_fetch_add(&l->again, 1);
        atomic_store(&l->owner, self_of(q));
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
        q->available = q->got; /* nothing further */
        return rc == CL_STALE ? CL_MISSING : rc;
    }
    const cl_block_ref *c = &q->get_chunk.ref;
    if (q->got >= q->available || q->offset > c->capacity - JUMP_BYTES) {
        return CL_MISSING;
    }
    record r;
    memcpy(&r, c->data + q->offset, sizeof r);
    if (r.length == 0) {
        return CL_MISSING; /* the next take follows the jump */
    }
    int there = (r.ntokens & ELSEWHERE) != 0;
    uint32_t ntokens = r.ntokens & ~ELSEWHERE;
    uint64_t inside = there ? sizeof(elsewhere) : r.nbytes;
    if (r.length > c->capacity - JUMP_BYTES - q->offset || inside > r.length - sizeof r ||
        ntokens > r.nbytes / sizeof(cl_token)) {
        return cl_fail(CL_CORRUPT, 0, "queue: an item of %u bytes at %llu", r.length, (unsigned long long)q->offset);
    }
    if ((there || ntokens != 0) && (q->moved || !(flags & CL_MAY_WAIT))) {
        return q->moved ? CL_MISSING : CL_AGAIN; /* it ends the take before it */
    }
    const uint8_t *body = c->data + q->offset + sizeof r;
    *out = (cl_got){.body = body, .nbytes = r.nbytes, .ntokens = ntokens, .sequence = q->got};
    int rc = CL_OK;
    if (there) {
        elsewhere to;
        memcpy(&to, body, sizeof to);
        rc = load_body(q, &to, r.nbytes, out);
        if (rc == CL_OK) {
            out->body = NULL;
            body = out->payload.data;
            q->drop = to.hold;
        } else if (rc != CL_STALE && rc != CL_CORRUPT) {
            return rc; /* the item stays: a later try may find room for it */
        }
        if (rc == CL_OK && q->head->head.room != 0) {
            rc = lend(q, &to, r.nbytes, ntokens, q->got);
            q->drop.nonce = 0;
            if (rc != CL_OK) {
                give_back(q, &out->payload);
                return rc;
            }
        }
    }
    if ((there || ntokens != 0) && rc == CL_OK) {
        if (q->head->head.room == 0) {
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
    if (q->left.held) { /* nobody has moved on: stand where the head is */
        let_go(q, &q->get_chunk);
        q->get_chunk = q->left;
        q->left.held = 0;
    }
    cl_unlock(&q->head->get.lock);
}

void cl_queue_commit(cl_queue *q)
{
    cl_queue_head *h = q->head;
    int moved = q->moved, more = 0, slept_on = 0;
    if (moved) {
        cl_side *side = &h->get.side[(get64(&h->get.commit) & 1) ^ 1];
        const cl_block_ref *c = &q->get_chunk.ref;
        position p = {c->segment_id, c->generation, (uint64_t)c->segment * CL_BLOCKS + c->index,
                      q->offset,     q->serial,     q->bytes};
        write_side(side, &p);
        uint64_t who = 0;
        if ((h->head.flags & CL_QUEUE_JOINABLE) && h->head.room == 0) {
            cl_user *u = user(q);
            who = atomic_load_explicit(&q->user, RELAXED);
            set64(&side->taken, get64(&u->taken) + (uint64_t)moved);
        }
        set64(&side->user, who);
        slept_on = commit(&h->get, q->got);
        apply_taken(q);
        CL_KILL_POINT();
        if (q->ntokens != 0 || q->drop.nonce != 0) {
            while (cl_take(q->store, q->number, q->tokens, q->ntokens, q->drop.nonce ? &q->drop : NULL, CL_MAY_WAIT) ==
                   CL_AGAIN) {
            }
            CL_KILL_POINT();
        }
        if (q->left.held) {
            cl_token hold = ((const cl_chunk *)(const void *)q->left.ref.data)->hold;
            while (cl_take(q->store, q->number, NULL, 0, &hold, CL_MAY_WAIT) == CL_AGAIN) {
            }
            CL_KILL_POINT();
            let_go(q, &q->left);
        }
        more = q->pass_on && passed(&h->put) > q->got;
    }
    cl_unlock(&h->get.lock);
    if (slept_on) {
        wake(&h->get, (uint64_t)moved);
    }
    if (more) {
        wake(&h->put, 1);
    }
}

uint64_t cl_queue_size(const cl_queue_head *h)
{
    uint64_t got = passed(&h->get), put = passed(&h->put); /* in this order: never negative */
    return put - got;
}

uint64_t cl_queue_bytes(const cl_queue_head *h)
{
    uint64_t got = bytes_passed(&h->get), put = bytes_passed(&h->put);
    return put - got;
}

/* ---- acknowledging */

uint64_t cl_queue_unfinished(cl_queue *q)
{
    cl_queue_head *h = q->head;
    if (h->head.room != 0) {
        uint64_t n = 0, got = passed(&h->get);
        for (uint32_t i = 0; i < h->head.room; i++) {
            n += atomic_load(&h->leases[i].owner) != 0 && get64(&h->leases[i].sequence) < got;
        }
        return n + cl_queue_size(h);
    }
    uint64_t done = get64(&h->dropped);
    for (uint32_t i = 0; i < CL_USERS; i++) {
        done += get64(&h->users[i].done);
    }
    uint64_t put = passed(&h->put);
    return put > done ? put - done : 0;
}

static void tell_finished(cl_queue *q)
{
    cl_bell_ring(&q->head->finished, INT_MAX);
}

int cl_queue_done(cl_queue *q, uint64_t sequence)
{
    cl_queue_head *h = q->head;
    know_self(q);
    int rc = enter(q, 0, 0, CL_MAY_WAIT);
    if (rc != CL_OK) {
        return rc == CL_TIMEOUT ? CL_AGAIN : rc;
    }
    rc = CL_MISSING;
    if (h->head.room != 0) {
        for (uint32_t i = 0; i < h->head.room; i++) {
            cl_lease *l = &h->leases[i];
            if (atomic_load(&l->owner) == self_of(q) && get64(&l->sequence) == sequence) {
                cl_token hold = {.nonce = get64(&l->nonce), .hold = atomic_load_explicit(&l->hold, RELAXED)};
                uint32_t ntokens = atomic_load_explicit(&l->ntokens, RELAXED);
                atomic_store(&l->owner, 0);
                CL_KILL_POINT();
                do {
                    rc = cl_take(q->store, q->number, NULL, 0, &hold, CL_MAY_WAIT);
                } while (rc == CL_AGAIN);
                if (ntokens != 0) { /* those that it named within */
                    rc = clean(q, 0, passed(&h->get), get64(&active(&h->get)->serial));
                }
                break;
            }
        }
    } else if (cl_queue_unfinished(q) != 0) {
        cl_user *u = user(q);
        set64(&u->done, get64(&u->done) + 1);
        rc = CL_OK;
    }
    CL_KILL_POINT();
    cl_unlock(&h->get.lock);
    if (rc == CL_OK && cl_queue_unfinished(q) == 0) {
        tell_finished(q);
    }
    return rc;
}

/* Items whose consumers died, when nobody is left who could acknowledge anything else; now counted as dropped. */
static uint64_t died_with_consumers(cl_queue *q)
{
    cl_queue_head *h = q->head;
    uint64_t lost = 0;
    if (h->head.room != 0 || !is_empty(h) || enter(q, 0, 0, CL_MAY_WAIT) != CL_OK) {
        return 0;
    }
    int someone = !is_empty(h);
    for (uint32_t i = 0; i < CL_USERS; i++) {
        uint32_t owner = atomic_load(&h->users[i].owner);
        someone |= owner != 0 && get64(&h->users[i].taken) > get64(&h->users[i].done) &&
                   (i == CL_USERS - 1 || !cl_is_dead(q->store, owner));
    }
    if (!someone) {
        lost = cl_queue_unfinished(q);
        set64(&h->dropped, get64(&h->dropped) + lost);
    }
    cl_unlock(&h->get.lock);
    return lost;
}

int cl_queue_join(cl_queue *q, int64_t deadline_ns, uint64_t *lost)
{
    cl_queue_head *h = q->head;
    know_self(q);
    for (;;) {
        uint32_t seen = atomic_load(&h->finished);
        if (cl_queue_unfinished(q) == 0) {
            return CL_OK;
        }
        *lost = died_with_consumers(q);
        if (*lost != 0) {
            tell_finished(q);
            return CL_OWNER_DIED;
        }
        int rc = cl_bell_wait(&h->finished, seen, deadline_ns, NULL);
        if (rc != CL_OK) {
            return rc;
        }
    }
}

/* ---- the end */

static int drain(cl_queue *q)
{
    cl_queue_head *h = q->head;
    int rc = enter(q, 0, 0, CL_MAY_WAIT);
    if (rc != CL_OK) {
        return rc;
    }
    rc = enter(q, 1, 0, CL_MAY_WAIT);
    if (rc == CL_OK) {
        uint64_t put = passed(&h->put), n = put - passed(&h->get);
        if (n != 0) {
            position p = read_side(active(&h->put));
            cl_side *side = &h->get.side[(get64(&h->get.commit) & 1) ^ 1];
            write_side(side, &p);
            set64(&side->user, CL_DRAINED);
            set64(&side->taken, get64(&h->dropped) + n);
            commit(&h->get, put);
            apply_taken(q);
            rc = clean(q, 0, put, p.serial);
        }
        cl_unlock(&h->put.lock);
        wake(&h->get, UINT64_MAX);
    }
    cl_unlock(&h->get.lock);
    tell_finished(q);
    return rc;
}

int cl_queue_shut(cl_queue *q, int now)
{
    cl_queue_head *h = q->head;
    know_self(q);
    uint32_t want = now ? CL_QUEUE_SHUT_NOW : CL_QUEUE_SHUT, is = atomic_load(&h->state);
    while (is < want && !atomic_compare_exchange_weak(&h->state, &is, want)) {
    }
    CL_KILL_POINT();
    int rc = now ? drain(q) : CL_OK;
    cl_wake(low_word(&h->put), INT_MAX); /* who misses this looks again within a slice */
    cl_wake(low_word(&h->get), INT_MAX);
    return rc == CL_TIMEOUT ? CL_AGAIN : rc;
}
