#define _GNU_SOURCE
#include "queue_parts.h"
#include "tell.h"

#include <limits.h>
#include <string.h>

#define RELAXED memory_order_relaxed
#define BRIEF_NS 1000000 /* time for the lock after the deadline */

/* ---- attaching */

int cl_queue_attach(cl_queue *q, cl_store *store, cl_queue_head *head, uint64_t capacity, uint32_t number)
{
    memset(q, 0, sizeof *q);
    if (capacity < sizeof *head) {
        return cl_fail(CL_CORRUPT, 0, "block %u of %llu bytes does not contain a queue", number,
                       (unsigned long long)capacity);
    }
    const cl_head is = cl_head_copy(&head->head);
    if (is.magic != CL_OBJECT_MAGIC || is.kind != CL_KIND_QUEUE ||
        is.room > (capacity - sizeof *head) / sizeof(cl_lease) ||
        (is.room != 0) != ((is.flags & CL_QUEUE_REDELIVER) != 0)) {
        return cl_fail(CL_CORRUPT, 0, "block %u does not contain a valid queue (%u items, %u leases, flags %llx)",
                       number, is.number, is.room, (unsigned long long)is.flags);
    }
    q->most = is.number;
    q->leases = is.room;
    q->most_bytes = is.spare[0];
    q->deliveries = is.spare[1];
    q->flags = is.flags;
    q->store = store;
    q->head = head;
    q->number = number;
    return CL_OK;
}

void cl_queue_detach(cl_queue *q)
{
    if (q->head != NULL) {
        cl_queue_drop_chunk(q, &q->put_chunk);
        cl_queue_drop_chunk(q, &q->get_chunk);
        cl_queue_drop_chunk(q, &q->left);
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
            if (owner == cl_queue_self(q)) {
                return i + 1;
            }
            if ((owner == 0 || (look && cl_is_dead(q->store, owner) && cl_load64(&u->taken) == cl_load64(&u->done))) &&
                atomic_compare_exchange_strong(&u->owner, &owner, cl_queue_self(q))) {
                CL_KILL_POINT();
                atomic_store(&u->role, 0);
                return i + 1;
            }
        }
    }
    return CL_USERS; /* the last entry is shared by all processes for which there is no room: it never dies */
}

cl_user *cl_queue_user(cl_queue *q)
{
    cl_queue_update_self(q);
    uint32_t at = atomic_load_explicit(&q->user, RELAXED);
    if (at == 0) {
        at = find_user(q);
        atomic_store_explicit(&q->user, at, RELAXED);
    }
    return &q->head->users[at - 1];
}

void cl_queue_role(cl_queue *q, uint32_t role, int on)
{
    cl_user *u = cl_queue_user(q);
    if (on && (atomic_load_explicit(&u->role, RELAXED) & role) != role) {
        atomic_fetch_or(&u->role, role);
    } else if (!on && (atomic_load_explicit(&u->role, RELAXED) & role) != 0) {
        atomic_fetch_and(&u->role, ~role);
    }
}

void cl_queue_use(cl_queue *q, uint32_t role)
{
    cl_user *u = cl_queue_user(q);
    if ((atomic_load_explicit(&u->role, RELAXED) & (role | CL_ROLE_CLOSED)) != role) {
        cl_queue_role(q, role, 1);
        cl_queue_role(q, CL_ROLE_CLOSED, 0); /* another object of this process has recorded it */
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

/* ---- locks, and the repairs after a dead holder */

typedef struct keeping {
    cl_queue *q;
    uint64_t count, serial;
    int puts;
} keeping;

static int leased(const cl_queue *q, uint64_t sequence)
{
    const cl_queue_head *h = q->head;
    for (uint32_t i = 0; i < q->leases; i++) {
        if (atomic_load(&h->leases[i].owner) != 0 && cl_load64(&h->leases[i].sequence) == sequence) {
            return 1;
        }
    }
    return 0;
}

static int keep(void *context, uint64_t sequence, uint64_t nonce)
{
    const keeping *k = context;
    (void)nonce;
    uint64_t number = sequence & ~CL_CHUNK_BIT;
    if (k->puts) { /* what is beyond the end was never published */
        return sequence & CL_CHUNK_BIT ? number <= k->serial : number < k->count;
    }
    return sequence & CL_CHUNK_BIT ? number >= k->serial
                                   : number >= k->count || (leased(k->q, number) && !CL_MUTANT(queue_cleans_leased));
}

int cl_queue_clean(cl_queue *q, int puts, uint64_t count, uint64_t serial)
{
    keeping k = {.q = q, .count = count, .serial = serial, .puts = puts};
    return cl_clean(q->store, q->number, keep, &k, CL_MAY_WAIT);
}

void cl_queue_leave(cl_queue *q, cl_end *end, int dirty)
{
    if (!dirty) {
        cl_unlock_own(&end->lock, cl_self(q->store));
        return;
    }
    /* Leave the lock as if this process had died here: the next one to lock it makes the repair. */
    if (atomic_exchange(&end->lock, CL_LOCK_LEFT) & CL_LOCK_SLEEP) {
        cl_wake(&end->lock, 1);
    }
}

void cl_queue_apply_taken(cl_queue *q)
{
    const cl_side *side = cl_active_side(&q->head->get);
    uint64_t who = cl_load64(&side->user), taken = cl_load64(&side->taken);
    if (who == CL_DRAINED) {
        if (taken > cl_load64(&q->head->dropped)) { /* it only grows; items may have died with their consumers since */
            cl_store64(&q->head->dropped, taken);
        }
    } else if (who != 0 && who <= CL_USERS) {
        cl_store64(&q->head->users[who - 1].taken, taken);
    }
}

int cl_queue_counts_differ(uint64_t got, uint64_t put)
{
    return cl_fail(CL_CORRUPT, 0, "queue: %llu items were taken and %llu were put", (unsigned long long)got,
                   (unsigned long long)put);
}

/* Free leases that no commit made valid: their consumer died before its commit. */
static void drop_leases_beyond(cl_queue *q)
{
    uint64_t got = cl_passed(&q->head->get);
    for (uint32_t i = 0; i < q->leases; i++) {
        if (atomic_load(&q->head->leases[i].owner) != 0 && cl_load64(&q->head->leases[i].sequence) >= got) {
            atomic_store(&q->head->leases[i].owner, 0);
        }
    }
}

int cl_queue_enter(cl_queue *q, int puts, int64_t deadline_ns, unsigned flags)
{
    cl_end *end = puts ? &q->head->put : &q->head->get;
    int rc = cl_mutex_lock(q->store, &end->lock, 0, &q->spin_lock);
    if (rc == CL_AGAIN &&
        (flags & CL_MAY_WAIT)) { /* held for microseconds: not waiting means not waiting for an item */
        int64_t until = cl_monotonic_ns() + (deadline_ns == 0 ? CL_SLICE_NS : BRIEF_NS);
        rc = cl_mutex_lock(q->store, &end->lock, deadline_ns > until ? deadline_ns : until, &q->spin_lock);
    }
    if (rc == CL_OWNER_DIED) {
        CL_KILL_POINT();
        if (!puts && !CL_MUTANT(queue_taken_not_counted)) {
            cl_queue_apply_taken(q);
        }
        if (!puts && !CL_MUTANT(queue_leases_beyond_kept)) {
            drop_leases_beyond(q);
        }
        int clean = puts ? !CL_MUTANT(queue_producer_not_cleaned) : !CL_MUTANT(queue_consumer_not_cleaned);
        rc = clean ? cl_queue_clean(q, puts, cl_passed(end), cl_load64(&cl_active_side(end)->serial)) : CL_OK;
        if (rc != CL_OK) {
            cl_queue_leave(q, end, 1);
        }
    }
    return rc;
}

/* Wait until an end differs from the value that was seen. *slept: the thread did not only spin. */
int cl_queue_wait(cl_end *end, uint64_t seen, int64_t deadline_ns, cl_spin *spin, int *slept)
{
    cl_au32 *word = cl_low_word(end);
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

/* A thread that was woken does not know about the others: they may still sleep. */
void cl_queue_others_may_sleep(cl_end *end)
{
    atomic_fetch_or(&end->commit, CL_MUTANT(queue_others_do_not_sleep) ? 0 : CL_COMMIT_SLEEP);
}

void cl_queue_wake(cl_end *end, uint64_t n)
{
    CL_KILL_POINT();
    cl_wake(cl_low_word(end), n < INT_MAX ? (int)n : INT_MAX);
}

/* ---- how much it contains */

uint64_t cl_bytes_passed(const cl_end *end)
{
    for (;;) {
        uint64_t seen = atomic_load(&end->commit);
        uint64_t bytes = cl_load64(&end->side[seen & 1].bytes);
        atomic_thread_fence(memory_order_acquire);
        if (atomic_load(&end->commit) == seen) {
            return bytes;
        }
    }
}

uint64_t cl_queue_size(const cl_queue_head *h)
{
    uint64_t got = cl_passed(&h->get), put = cl_passed(&h->put); /* in this order: negative only after damage */
    return put > got ? put - got : 0;
}

uint64_t cl_queue_bytes(const cl_queue_head *h)
{
    uint64_t got = cl_bytes_passed(&h->get), put = cl_bytes_passed(&h->put);
    return put > got ? put - got : 0;
}

/* ---- acknowledging */

uint64_t cl_queue_unfinished(cl_queue *q)
{
    cl_queue_head *h = q->head;
    if (q->leases != 0) {
        uint64_t n = 0, got = cl_passed(&h->get);
        for (uint32_t i = 0; i < q->leases; i++) {
            uint32_t owner = atomic_load(&h->leases[i].owner);
            n += owner != 0 && owner != CL_SET_ASIDE && cl_load64(&h->leases[i].sequence) < got;
        }
        return n + cl_queue_size(h);
    }
    uint64_t done = cl_load64(&h->dropped);
    for (uint32_t i = 0; i < CL_USERS; i++) {
        done += cl_load64(&h->users[i].done);
    }
    uint64_t put = cl_passed(&h->put);
    return put > done ? put - done : 0;
}

static void tell_finished(cl_queue *q)
{
    cl_bell_ring(&q->head->finished, INT_MAX);
}

static int is_orphan(const cl_queue *q, const cl_lease *l)
{
    uint32_t owner = atomic_load(&l->owner);
    return owner != 0 && owner != CL_SET_ASIDE && (owner == CL_LOCK_LEFT || cl_is_dead(q->store, owner));
}

static int is_exhausted(const cl_queue *q, const cl_lease *l)
{
    return q->deliveries != 0 && (uint64_t)atomic_load(&l->again) + 1 >= q->deliveries;
}

/* One store, so nothing is left incomplete: if the process is killed before it, the next one to check does it. */
static void set_aside(cl_queue *q, cl_lease *l)
{
    CL_KILL_POINT();
    atomic_store(&l->owner, CL_SET_ASIDE);
    CL_KILL_POINT();
    tell_finished(q);
}

int cl_queue_is_orphan(cl_queue *q, cl_lease *l)
{
    if (!is_orphan(q, l)) {
        return 0;
    }
    if (cl_load64(&l->sequence) < cl_passed(&q->head->get) && is_exhausted(q, l)) {
        set_aside(q, l);
        return 0;
    }
    return 1;
}

/* Find a lease of this owner; NULL: there is none. Under the lock. */
static cl_lease *find_lease(cl_queue *q, uint32_t owner, uint64_t sequence)
{
    for (uint32_t i = 0; i < q->leases; i++) {
        cl_lease *l = &q->head->leases[i];
        if (atomic_load(&l->owner) == owner && cl_load64(&l->sequence) == sequence) {
            return l;
        }
    }
    return NULL;
}

/* The item is finished: free its lease, then drop the queue's holds for it. CL_AGAIN: nothing has changed. */
static int end_lease(cl_queue *q, cl_lease *l, int *dirty)
{
    cl_queue_head *h = q->head;
    cl_token hold = {.nonce = cl_load64(&l->nonce), .hold = atomic_load_explicit(&l->hold, RELAXED)};
    int rc = cl_enter(q->store, CL_OP_LOAD, CL_MAY_WAIT);
    if (rc != CL_OK) {
        return rc;
    }
    uint32_t ntokens = atomic_load_explicit(&l->ntokens, RELAXED);
    atomic_store(&l->owner, 0);
    CL_KILL_POINT();
    rc = cl_take_entered(q->store, q->number, NULL, 0, &hold);
    cl_leave_keeping_error(q->store);
    if (rc == CL_OK && ntokens != 0) { /* the holds that its tokens name */
        rc = cl_queue_clean(q, 0, cl_passed(&h->get), cl_load64(&cl_active_side(&h->get)->serial));
        *dirty = rc == CL_AGAIN;
        rc = *dirty ? CL_OK : rc;
    }
    return rc;
}

int cl_queue_done(cl_queue *q, uint64_t sequence)
{
    cl_queue_head *h = q->head;
    cl_queue_update_self(q);
    int rc = cl_queue_enter(q, 0, 0, CL_MAY_WAIT), dirty = 0;
    if (rc != CL_OK) {
        return rc == CL_TIMEOUT ? CL_AGAIN : rc;
    }
    rc = CL_MISSING;
    if (q->leases != 0) {
        cl_lease *l = find_lease(q, cl_queue_self(q), sequence);
        rc = l == NULL ? CL_MISSING : end_lease(q, l, &dirty);
    } else if (cl_queue_unfinished(q) != 0) {
        cl_user *u = cl_queue_user(q);
        cl_store64(&u->done, cl_load64(&u->done) + 1);
        rc = CL_OK;
    }
    CL_KILL_POINT();
    cl_queue_leave(q, &h->get, dirty);
    if (rc == CL_OK && cl_queue_unfinished(q) == 0) {
        tell_finished(q);
    }
    return rc;
}

int cl_queue_nack(cl_queue *q, uint64_t sequence)
{
    cl_queue_update_self(q);
    int rc = cl_queue_enter(q, 0, 0, CL_MAY_WAIT);
    if (rc != CL_OK) {
        return rc == CL_TIMEOUT ? CL_AGAIN : rc;
    }
    cl_lease *l = find_lease(q, cl_queue_self(q), sequence);
    if (l != NULL && is_exhausted(q, l)) {
        set_aside(q, l);
    } else if (l != NULL) {
        CL_KILL_POINT();
        atomic_store(&l->owner, CL_LOCK_LEFT);
        CL_KILL_POINT();
    }
    cl_queue_leave(q, &q->head->get, 0);
    cl_wake(cl_low_word(&q->head->put), INT_MAX); /* waiters for an item; one that misses it checks again */
    cl_bells_tell(q->store, &q->head->head);
    return l == NULL ? CL_MISSING : CL_OK;
}

int cl_queue_dead_letter(cl_queue *q, uint32_t *at, cl_got *out, uint32_t *deliveries)
{
    cl_queue_update_self(q);
    int rc = cl_queue_enter(q, 0, 0, CL_MAY_WAIT);
    if (rc != CL_OK) {
        return rc == CL_TIMEOUT ? CL_AGAIN : rc;
    }
    rc = CL_MISSING;
    while (rc == CL_MISSING && *at < q->leases) {
        cl_lease *l = &q->head->leases[*at];
        cl_queue_is_orphan(q, l); /* which sets items aside if needed */
        if (atomic_load(&l->owner) == CL_SET_ASIDE) {
            *deliveries = atomic_load(&l->again) + 1;
            *out = (cl_got){.nbytes = cl_load64(&l->nbytes),
                            .ntokens = atomic_load_explicit(&l->ntokens, RELAXED),
                            .sequence = cl_load64(&l->sequence)};
            rc = cl_queue_load(q, cl_load64(&l->segment_id), cl_load64(&l->generation), cl_load64(&l->block),
                               CL_MAY_WAIT, &out->payload);
            if (rc == CL_OK && (out->nbytes > out->payload.capacity || out->ntokens > out->nbytes / sizeof(cl_token))) {
                cl_queue_give_back(q, &out->payload);
                rc = cl_fail(CL_CORRUPT, 0, "queue: a dead letter records %llu bytes and %u tokens",
                             (unsigned long long)out->nbytes, out->ntokens);
            }
        }
        *at += rc != CL_AGAIN; /* the registry's lock could not be taken: try the same one again */
    }
    cl_queue_leave(q, &q->head->get, 0);
    return rc;
}

int cl_queue_discard(cl_queue *q, uint64_t sequence)
{
    cl_queue_update_self(q);
    int rc = cl_queue_enter(q, 0, 0, CL_MAY_WAIT), dirty = 0;
    if (rc != CL_OK) {
        return rc == CL_TIMEOUT ? CL_AGAIN : rc;
    }
    cl_lease *l = find_lease(q, CL_SET_ASIDE, sequence);
    rc = l == NULL ? CL_MISSING : end_lease(q, l, &dirty);
    CL_KILL_POINT();
    cl_queue_leave(q, &q->head->get, dirty);
    return rc;
}

/* Perhaps no process is left that gets items: a process that joins sets aside items that were delivered as often as
 * allowed. */
static void set_aside_the_exhausted(cl_queue *q)
{
    int any = 0;
    for (uint32_t i = 0; q->deliveries != 0 && !any && i < q->leases; i++) {
        any = is_orphan(q, &q->head->leases[i]) && is_exhausted(q, &q->head->leases[i]);
    }
    if (any && cl_queue_enter(q, 0, 0, CL_MAY_WAIT) == CL_OK) {
        for (uint32_t i = 0; i < q->leases; i++) {
            cl_queue_is_orphan(q, &q->head->leases[i]);
        }
        cl_queue_leave(q, &q->head->get, 0);
    }
}

/* ---- shut at once: the items in the queue are dropped. The process that shuts the queue does that. If it dies before,
 * or if a put comes between, the next process that joins or gets does it. */

/* For a queue that delivers nothing any more: no process will acknowledge the items that dead consumers had taken.
 * Under the lock. */
static int drop_leases_of_the_dead(cl_queue *q)
{
    int n = 0;
    for (uint32_t i = 0; i < q->leases; i++) {
        if (cl_queue_is_orphan(q, &q->head->leases[i])) { /* items to be set aside stay */
            atomic_store(&q->head->leases[i].owner, 0);
            CL_KILL_POINT();
            n++;
        }
    }
    return n;
}

static int drain(cl_queue *q)
{
    cl_queue_head *h = q->head;
    int rc = cl_queue_enter(q, 0, 0, CL_MAY_WAIT), dirty = 0;
    if (rc != CL_OK) {
        return rc;
    }
    rc = cl_queue_enter(q, 1, 0, CL_MAY_WAIT);
    if (rc == CL_OK) {
        uint64_t put = cl_passed(&h->put), got = cl_passed(&h->get), n = put - got;
        if (put < got) {
            rc = cl_queue_counts_differ(got, put);
        } else {
            int dropped = drop_leases_of_the_dead(q);
            if (n != 0) {
                cl_position p = cl_read_side(cl_active_side(&h->put));
                cl_side *side = &h->get.side[(cl_load64(&h->get.commit) & 1) ^ 1];
                cl_write_side(side, &p);
                cl_store64(&side->user, CL_DRAINED);
                cl_store64(&side->taken, cl_load64(&h->dropped) + n);
                cl_queue_publish(&h->get, put);
                cl_queue_apply_taken(q);
                CL_KILL_POINT();
            }
            if (n != 0 || dropped) {
                rc = cl_queue_clean(q, 0, put, cl_load64(&cl_active_side(&h->get)->serial));
                dirty = rc != CL_OK; /* it is dropped; the next process releases the holds that it named */
            }
        }
        CL_KILL_POINT();
        cl_unlock_own(&h->put.lock, cl_self(q->store));
        cl_queue_wake(&h->get, UINT64_MAX);
    }
    CL_KILL_POINT();
    cl_queue_leave(q, &h->get, dirty);
    CL_KILL_POINT();
    tell_finished(q);
    return rc;
}

/* Whether a process died in an end, or left a repair there that it could not make. */
static int is_left(const cl_queue *q, const cl_end *end)
{
    uint32_t holder = atomic_load(&end->lock) & ~CL_LOCK_SLEEP;
    return holder == CL_LOCK_LEFT || (holder != 0 && cl_is_dead(q->store, holder));
}

int cl_queue_is_to_drain(cl_queue *q)
{
    if (atomic_load_explicit(&q->head->state, RELAXED) != CL_QUEUE_SHUT_NOW) {
        return 0;
    }
    int n = !cl_queue_is_empty(q->head) || is_left(q, &q->head->get) || is_left(q, &q->head->put);
    for (uint32_t i = 0; !n && i < q->leases; i++) {
        n = is_orphan(q, &q->head->leases[i]);
    }
    return n;
}

int cl_queue_finish_shutting(cl_queue *q)
{
    int rc = cl_queue_is_to_drain(q) ? drain(q) : CL_OK;
    return rc == CL_TIMEOUT || rc == CL_AGAIN ? CL_OK : rc; /* delayed: the next one to check does it */
}

/* Items whose consumers died, once no process is left that could acknowledge anything else; now counted as dropped. */
static uint64_t died_with_consumers(cl_queue *q)
{
    cl_queue_head *h = q->head;
    uint64_t lost = 0;
    if (q->leases != 0 || !cl_queue_is_empty(h) || cl_queue_enter(q, 0, 0, CL_MAY_WAIT) != CL_OK) {
        return 0;
    }
    int someone = !cl_queue_is_empty(h);
    for (uint32_t i = 0; i < CL_USERS; i++) {
        uint32_t owner = atomic_load(&h->users[i].owner);
        someone |= owner != 0 && cl_load64(&h->users[i].taken) > cl_load64(&h->users[i].done) &&
                   (i == CL_USERS - 1 || !cl_is_dead(q->store, owner));
    }
    if (!someone) {
        lost = cl_queue_unfinished(q);
        cl_store64(&h->dropped, cl_load64(&h->dropped) + lost);
    }
    cl_unlock_own(&h->get.lock, cl_self(q->store));
    return lost;
}

int cl_queue_join(cl_queue *q, int64_t deadline_ns, uint64_t *lost)
{
    cl_queue_head *h = q->head;
    cl_queue_update_self(q);
    for (int64_t begun = 0;;) {
        uint32_t seen = atomic_load(&h->finished);
        int rc = cl_queue_finish_shutting(q);
        if (rc != CL_OK) {
            return rc;
        }
        set_aside_the_exhausted(q);
        if (cl_queue_unfinished(q) == 0) {
            return CL_OK;
        }
        *lost = died_with_consumers(q);
        if (*lost != 0) {
            tell_finished(q);
            return CL_OWNER_DIED;
        }
        rc = cl_wait_again(&begun, deadline_ns);
        rc = rc == CL_OK ? cl_bell_wait(&h->finished, seen, deadline_ns, NULL) : rc;
        if (rc != CL_OK) {
            return rc;
        }
    }
}

/* ---- shutdown */

int cl_queue_shut(cl_queue *q, int now)
{
    cl_queue_head *h = q->head;
    cl_queue_update_self(q);
    uint32_t want = now ? CL_QUEUE_SHUT_NOW : CL_QUEUE_SHUT, is = atomic_load(&h->state);
    while (is < want && !atomic_compare_exchange_weak(&h->state, &is, want)) {
    }
    CL_KILL_POINT();
    int rc = now ? drain(q) : CL_OK;
    cl_wake(cl_low_word(&h->put), INT_MAX); /* a waiter that misses this checks again within a slice */
    cl_wake(cl_low_word(&h->get), INT_MAX);
    cl_bells_tell(q->store, &h->head);
    return rc == CL_TIMEOUT ? CL_AGAIN : rc;
}
