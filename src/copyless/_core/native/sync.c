#define _GNU_SOURCE
#include "sync.h"

#include <limits.h>

static cl_life life_of(void *context, uint32_t slot, uint32_t incarnation)
{
    /* Unlike the registry's lock, a user's may be held by somebody reaped long ago, whose slot is another's now. */
    cl_life life = cl_owner_life(context, slot, incarnation);
    return life == CL_NOBODY && slot < CL_MAX_OWNERS - 1 ? CL_DEAD : life;
}

int cl_mutex_lock(cl_store *store, cl_au32 *word, int64_t deadline_ns, cl_spin *spin)
{
    return cl_lock(word, cl_self(store), deadline_ns, spin, life_of, store);
}

/* ---- recursive lock. `thread` and `depth` are the holder's: whoever takes the lock over writes them anew. */

int cl_rlock_is_mine(const cl_store *store, cl_mutex *m, uint64_t thread)
{
    return (atomic_load_explicit(&m->word, memory_order_relaxed) & ~CL_LOCK_SLEEP) == cl_self(store) &&
           atomic_load_explicit(&m->thread, memory_order_relaxed) == thread &&
           atomic_load_explicit(&m->depth, memory_order_relaxed) != 0; /* all three are ours, or somebody else's */
}

int cl_rlock(cl_store *store, cl_mutex *m, uint64_t thread, int64_t deadline_ns, cl_spin *spin)
{
    if (cl_rlock_is_mine(store, m, thread)) {
        uint32_t depth = atomic_load_explicit(&m->depth, memory_order_relaxed);
        if (depth == UINT32_MAX) {
            return cl_fail(CL_FULL, 0, "acquired too often");
        }
        atomic_store_explicit(&m->depth, depth + 1, memory_order_relaxed);
        return CL_OK;
    }
    int rc = cl_mutex_lock(store, &m->word, deadline_ns, spin);
    if (rc == CL_OK || rc == CL_OWNER_DIED) {
        atomic_store_explicit(&m->thread, thread, memory_order_relaxed);
        atomic_store_explicit(&m->depth, 1, memory_order_relaxed);
    }
    return rc;
}

void cl_runlock(cl_mutex *m)
{
    uint32_t depth = atomic_load_explicit(&m->depth, memory_order_relaxed);
    atomic_store_explicit(&m->depth, depth - 1, memory_order_relaxed);
    if (depth == 1) {
        atomic_store_explicit(&m->thread, 0, memory_order_relaxed);
        cl_unlock(&m->word);
    }
}

/* ---- semaphore */

int cl_sem_acquire(cl_semaphore *s, int64_t deadline_ns, cl_spin *spin)
{
    uint32_t slept = 0;
    for (;;) {
        uint32_t v = atomic_load_explicit(&s->word, memory_order_relaxed);
        if ((v & ~CL_SEM_SLEEP) != 0) {
            /* acquire, pairs with "permit given back" */
            if (atomic_compare_exchange_weak_explicit(&s->word, &v, (v - 1) | slept, memory_order_acquire,
                                                      memory_order_relaxed)) {
                CL_KILL_POINT();
                if (slept && ((v - 1) & ~CL_SEM_SLEEP) != 0) {
                    cl_wake(&s->word, 1); /* several were given back at once: pass the wake on */
                }
                return CL_OK;
            }
            continue;
        }
        if (deadline_ns == 0) {
            return CL_AGAIN;
        }
        if (cl_spin_wait(&s->word, v, spin)) {
            continue;
        }
        if (!(v & CL_SEM_SLEEP) && !atomic_compare_exchange_strong(&s->word, &v, v | CL_SEM_SLEEP)) {
            continue;
        }
        int rc = cl_sleep(&s->word, v | CL_SEM_SLEEP, deadline_ns, spin);
        slept = CL_SEM_SLEEP; /* others may sleep too */
        if (rc == CL_TIMEOUT || rc == CL_AGAIN) {
            v = atomic_load_explicit(&s->word, memory_order_relaxed);
            if ((v & ~CL_SEM_SLEEP) == 0) {
                return rc;
            }
        }
    }
}

int cl_sem_release(cl_semaphore *s, uint32_t n)
{
    uint32_t v = atomic_load_explicit(&s->word, memory_order_relaxed), most = s->head.number;
    do {
        if ((v & ~CL_SEM_SLEEP) + (uint64_t)n > (most != 0 ? most : 0x7fffffffu)) {
            return CL_FULL;
        }
        /* release: "permit given back" */
    } while (!atomic_compare_exchange_weak_explicit(&s->word, &v, (v & ~CL_SEM_SLEEP) + n, memory_order_release,
                                                    memory_order_relaxed));
    CL_KILL_POINT();
    if (v & CL_SEM_SLEEP) {
        cl_wake(&s->word, n < INT_MAX ? (int)n : INT_MAX);
    }
    return CL_OK;
}

/* ---- monitor */

static int enter(cl_store *store, cl_monitor *m)
{
    static cl_spin spin; /* held for some ten instructions: the spin is nearly always enough */
    int rc;
    while ((rc = cl_mutex_lock(store, &m->mutex, cl_monotonic_ns() + CL_SLICE_NS, &spin)) == CL_AGAIN ||
           rc == CL_TIMEOUT) {
    }
    CL_KILL_POINT();
    return rc == CL_OWNER_DIED ? CL_OK : rc; /* every change below is one store: nothing to repair */
}

static void leave(cl_monitor *m, int changed)
{
    int wake = changed && atomic_load_explicit(&m->sleeping, memory_order_relaxed); /* under the mutex */
    if (wake) {
        atomic_store_explicit(&m->sleeping, 0, memory_order_relaxed);
        atomic_fetch_add_explicit(&m->change, 1, memory_order_relaxed);
    }
    CL_KILL_POINT();
    cl_unlock(&m->mutex);
    if (wake) {
        cl_wake(&m->change, INT_MAX);
    }
}

/* Leave, and wait until something changes. Killed waiters leave `sleeping` set: one wake too many. */
static int leave_and_wait(cl_monitor *m, int64_t deadline_ns, cl_spin *spin)
{
    uint32_t seen = atomic_load_explicit(&m->change, memory_order_relaxed);
    atomic_store_explicit(&m->sleeping, 1, memory_order_relaxed);
    cl_unlock(&m->mutex);
    return cl_wait(&m->change, seen, deadline_ns, spin);
}

static void put(cl_entry *e, uint32_t owner, uint32_t state)
{
    atomic_store_explicit(&e->state, state, memory_order_relaxed);
    CL_KILL_POINT();
    atomic_store_explicit(&e->owner, owner, memory_order_release); /* last: an entry without owner is empty */
}

static uint32_t owner_of(const cl_entry *e)
{
    return atomic_load_explicit(&e->owner, memory_order_acquire);
}

static uint32_t state_of(const cl_entry *e)
{
    return atomic_load_explicit(&e->state, memory_order_acquire);
}

/* ---- robust semaphore */

int cl_robust_acquire(cl_store *store, cl_robust *s, int64_t deadline_ns, cl_spin *spin)
{
    for (int look = 0;; look = 1) {
        int rc = enter(store, &s->monitor);
        if (rc != CL_OK) {
            return rc;
        }
        for (uint32_t i = 0; i < s->head.room; i++) {
            uint32_t owner = owner_of(&s->entries[i]);
            if (owner == 0 || (look && cl_is_dead(store, owner))) {
                put(&s->entries[i], cl_self(store), 0);
                leave(&s->monitor, 0);
                return owner == 0 ? CL_OK : CL_OWNER_DIED;
            }
        }
        if (deadline_ns == 0) {
            leave(&s->monitor, 0);
            return CL_AGAIN;
        }
        if (!look) {
            leave(&s->monitor, 0);
            continue; /* nothing free: now see whether a holder is dead */
        }
        rc = leave_and_wait(&s->monitor, deadline_ns, spin);
        if (rc != CL_OK) {
            return rc;
        }
    }
}

int cl_robust_release(cl_store *store, cl_robust *s)
{
    int rc = enter(store, &s->monitor);
    if (rc != CL_OK) {
        return rc;
    }
    for (uint32_t i = 0; i < s->head.room; i++) {
        if (owner_of(&s->entries[i]) == cl_self(store)) {
            put(&s->entries[i], 0, 0);
            leave(&s->monitor, 1);
            return CL_OK;
        }
    }
    leave(&s->monitor, 0);
    return CL_MISSING;
}

uint32_t cl_robust_value(cl_store *store, cl_robust *s)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < s->head.room; i++) {
        uint32_t owner = owner_of(&s->entries[i]);
        n += owner == 0 || cl_is_dead(store, owner);
    }
    return n;
}

/* ---- readers and a writer */

static int someone_reads(cl_store *store, cl_rwlock *l)
{
    for (uint32_t i = 0; i < l->head.room; i++) {
        uint32_t owner = owner_of(&l->readers[i]);
        if (owner != 0 && cl_is_dead(store, owner)) {
            put(&l->readers[i], 0, 0);
        } else if (owner != 0) {
            return 1;
        }
    }
    return 0;
}

static int add_reader(cl_store *store, cl_rwlock *l)
{
    cl_entry *empty = NULL;
    uint32_t self = cl_self(store);
    for (int look = 0; look < 2; look++) {
        for (uint32_t i = 0; i < l->head.room; i++) {
            uint32_t owner = owner_of(&l->readers[i]);
            if (owner == self) {
                atomic_store_explicit(&l->readers[i].state, state_of(&l->readers[i]) + 1, memory_order_relaxed);
                return CL_OK;
            }
            if (empty == NULL && (owner == 0 || (look && cl_is_dead(store, owner)))) {
                empty = &l->readers[i];
            }
        }
        if (empty != NULL) {
            if (owner_of(empty) != 0) {
                put(empty, 0, 0);
            }
            put(empty, self, 1);
            return CL_OK;
        }
    }
    return cl_fail(CL_TABLE_FULL, 0, "%u processes read already", l->head.room);
}

int cl_rw_read(cl_store *store, cl_rwlock *l, int64_t deadline_ns, cl_spin *spin)
{
    for (;;) {
        int rc = enter(store, &l->monitor);
        if (rc != CL_OK) {
            return rc;
        }
        uint32_t writer = atomic_load_explicit(&l->writer, memory_order_relaxed);
        uint32_t waiting = atomic_load_explicit(&l->writer_waiting, memory_order_relaxed);
        int died = writer != 0 && cl_is_dead(store, writer);
        if (waiting != 0 && cl_is_dead(store, waiting)) {
            atomic_store_explicit(&l->writer_waiting, 0, memory_order_relaxed);
            waiting = 0;
        }
        if ((writer == 0 && waiting == 0) || died) {
            rc = add_reader(store, l);
            if (rc == CL_OK && died) {
                atomic_store_explicit(&l->writer, 0, memory_order_relaxed);
                rc = CL_OWNER_DIED;
            }
            leave(&l->monitor, died);
            return rc;
        }
        if (deadline_ns == 0) {
            leave(&l->monitor, 0);
            return CL_AGAIN;
        }
        rc = leave_and_wait(&l->monitor, deadline_ns, spin);
        if (rc != CL_OK) {
            return rc;
        }
    }
}

int cl_rw_write(cl_store *store, cl_rwlock *l, int64_t deadline_ns, cl_spin *spin)
{
    uint32_t self = cl_self(store);
    for (int given_up = CL_OK;;) {
        int rc = enter(store, &l->monitor);
        if (rc != CL_OK) {
            return rc;
        }
        uint32_t writer = atomic_load_explicit(&l->writer, memory_order_relaxed);
        uint32_t waiting = atomic_load_explicit(&l->writer_waiting, memory_order_relaxed);
        int died = writer != 0 && cl_is_dead(store, writer);
        if ((writer == 0 || died) && !someone_reads(store, l)) {
            atomic_store_explicit(&l->writer, self, memory_order_relaxed);
            CL_KILL_POINT();
            if (waiting == self) {
                atomic_store_explicit(&l->writer_waiting, 0, memory_order_relaxed);
            }
            leave(&l->monitor, 0);
            return died ? CL_OWNER_DIED : CL_OK;
        }
        if (given_up != CL_OK || deadline_ns == 0) {
            if (waiting == self && given_up == CL_TIMEOUT) {
                atomic_store_explicit(&l->writer_waiting, 0, memory_order_relaxed);
            }
            leave(&l->monitor, given_up == CL_TIMEOUT);
            return given_up != CL_OK ? given_up : CL_AGAIN;
        }
        if (waiting == 0 || cl_is_dead(store, waiting)) {
            atomic_store_explicit(&l->writer_waiting, self, memory_order_relaxed);
        }
        if (deadline_ns < 0) {
            leave(&l->monitor, 0);
            return CL_AGAIN;
        }
        given_up = leave_and_wait(&l->monitor, deadline_ns, spin);
    }
}

void cl_rw_forget(cl_store *store, cl_rwlock *l)
{
    if (enter(store, &l->monitor) == CL_OK) {
        int mine = atomic_load_explicit(&l->writer_waiting, memory_order_relaxed) == cl_self(store);
        if (mine) {
            atomic_store_explicit(&l->writer_waiting, 0, memory_order_relaxed);
        }
        leave(&l->monitor, mine);
    }
}

int cl_rw_release(cl_store *store, cl_rwlock *l, int write)
{
    int rc = enter(store, &l->monitor);
    if (rc != CL_OK) {
        return rc;
    }
    uint32_t self = cl_self(store);
    if (write) {
        int mine = atomic_load_explicit(&l->writer, memory_order_relaxed) == self;
        if (mine) {
            atomic_store_explicit(&l->writer, 0, memory_order_relaxed);
        }
        leave(&l->monitor, mine);
        return mine ? CL_OK : CL_MISSING;
    }
    for (uint32_t i = 0; i < l->head.room; i++) {
        if (owner_of(&l->readers[i]) == self) {
            uint32_t n = state_of(&l->readers[i]);
            if (n > 1) {
                atomic_store_explicit(&l->readers[i].state, n - 1, memory_order_relaxed);
            } else {
                atomic_store_explicit(&l->readers[i].owner, 0, memory_order_release);
            }
            leave(&l->monitor, n <= 1);
            return CL_OK;
        }
    }
    leave(&l->monitor, 0);
    return CL_MISSING;
}

/* ---- event */

void cl_event_set(cl_event *e)
{
    uint32_t v = atomic_load(&e->word);
    do {
        if (v & 1u) {
            return;
        }
    } while (!atomic_compare_exchange_weak(&e->word, &v, ((v | 3u) + 1u) | 1u));
    CL_KILL_POINT();
    if (v & 2u) {
        cl_wake(&e->word, INT_MAX);
    }
}

void cl_event_clear(cl_event *e)
{
    atomic_fetch_and(&e->word, ~1u);
}

int cl_event_wait(cl_event *e, uint32_t *seen, int64_t deadline_ns, cl_spin *spin)
{
    for (;;) {
        uint32_t v = atomic_load(&e->word);
        if ((v & 1u) || (*seen != 0 && (v >> 2) + 1 != *seen)) {
            return CL_OK;
        }
        *seen = (v >> 2) + 1;
        if (deadline_ns == 0) {
            return CL_AGAIN;
        }
        if (cl_spin_wait(&e->word, v, spin)) {
            continue;
        }
        if (!(v & 2u) && !atomic_compare_exchange_strong(&e->word, &v, v | 2u)) {
            continue;
        }
        int rc = cl_sleep(&e->word, v | 2u, deadline_ns, spin);
        if (rc != CL_OK) {
            v = atomic_load(&e->word);
            return (v & 1u) || (v >> 2) + 1 != *seen ? CL_OK : rc;
        }
    }
}

/* ---- condition */

static int waits_as(uint32_t state, uint32_t what)
{
    return (state & 3u) == what;
}

int cl_condition_begin(cl_store *store, cl_condition *c, uint32_t *entry)
{
    uint32_t ticket = atomic_fetch_add_explicit(&c->ticket, 1, memory_order_relaxed);
    for (int look = 0; look < 2; look++) {
        for (uint32_t i = 0; i < c->head.room; i++) {
            cl_entry *e = &c->waiters[i];
            uint32_t owner = owner_of(e);
            if (look && owner != 0 && cl_is_dead(store, owner) && !waits_as(state_of(e), CL_WAITER_NOTIFIED)) {
                atomic_store(&e->state, 0);
                atomic_compare_exchange_strong(&e->owner, &owner, 0);
                owner = 0;
            }
            if (owner == 0 && atomic_compare_exchange_strong(&e->owner, &owner, cl_self(store))) {
                CL_KILL_POINT();
                atomic_store(&e->state, ticket << 2 | CL_WAITER_WAITING);
                CL_KILL_POINT();
                *entry = i;
                return CL_OK;
            }
        }
    }
    return cl_fail(CL_TABLE_FULL, 0, "%u wait already", c->head.room);
}

static void forget(cl_entry *e)
{
    atomic_store(&e->state, 0);
    CL_KILL_POINT();
    atomic_store(&e->owner, 0);
}

/* Notices that were given to somebody who died before he came back: taken, to be passed on. */
static uint32_t swallowed(cl_store *store, cl_condition *c, uint32_t most)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < c->head.room && n < most; i++) {
        cl_entry *e = &c->waiters[i];
        uint32_t state = state_of(e), owner = owner_of(e);
        if (owner != 0 && waits_as(state, CL_WAITER_NOTIFIED) && cl_is_dead(store, owner) &&
            atomic_compare_exchange_strong(&e->state, &state, 0)) {
            atomic_compare_exchange_strong(&e->owner, &owner, 0);
            n++;
        }
    }
    return n;
}

int cl_condition_wait(cl_store *store, cl_condition *c, uint32_t entry, int64_t deadline_ns, cl_spin *spin)
{
    cl_entry *e = &c->waiters[entry];
    uint32_t state = state_of(e);
    if (!waits_as(state, CL_WAITER_WAITING)) {
        return CL_OK;
    }
    int rc = cl_wait(&e->state, state, deadline_ns, spin);
    if (!waits_as(state_of(e), CL_WAITER_WAITING)) {
        return CL_OK;
    }
    if (rc == CL_AGAIN && swallowed(store, c, 1)) {
        atomic_compare_exchange_strong(&e->state, &state, (state & ~3u) | CL_WAITER_NOTIFIED);
        return CL_OK;
    }
    return rc == CL_OK ? CL_AGAIN : rc;
}

int cl_condition_end(cl_condition *c, uint32_t entry)
{
    cl_entry *e = &c->waiters[entry];
    uint32_t state = state_of(e);
    int notified = !(waits_as(state, CL_WAITER_WAITING) && atomic_compare_exchange_strong(&e->state, &state, 0));
    forget(e);
    return notified;
}

uint32_t cl_condition_notify(cl_store *store, cl_condition *c, uint32_t n)
{
    uint32_t done = 0, extra = swallowed(store, c, UINT32_MAX);
    n = n > UINT32_MAX - extra ? UINT32_MAX : n + extra;
    while (done < n) {
        uint32_t first = UINT32_MAX, lowest = 0;
        for (uint32_t i = 0; i < c->head.room; i++) { /* the one that has waited longest */
            uint32_t state = state_of(&c->waiters[i]);
            if (waits_as(state, CL_WAITER_WAITING) &&
                (first == UINT32_MAX || (int32_t)(state - lowest) < 0)) { /* tickets wrap round */
                first = i;
                lowest = state;
            }
        }
        if (first == UINT32_MAX) {
            break;
        }
        cl_entry *e = &c->waiters[first];
        uint32_t owner = owner_of(e);
        if (owner != 0 && cl_is_dead(store, owner)) {
            if (atomic_compare_exchange_strong(&e->state, &lowest, 0)) {
                atomic_compare_exchange_strong(&e->owner, &owner, 0);
            }
        } else if (atomic_compare_exchange_strong(&e->state, &lowest, (lowest & ~3u) | CL_WAITER_NOTIFIED)) {
            CL_KILL_POINT();
            cl_wake(&e->state, 1);
            done++;
        }
    }
    return done;
}

/* ---- barrier */

static uint32_t count(const cl_barrier *b, uint32_t state)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < b->head.room; i++) {
        n += owner_of(&b->parties[i]) != 0 && state_of(&b->parties[i]) == state;
    }
    return n;
}

static void set_arrived(cl_barrier *b, uint32_t state, uint32_t last)
{
    for (uint32_t i = 0; i <= b->head.room; i++) {
        uint32_t at = i < b->head.room ? i : last; /* the releasing party's own goes last: see below */
        if ((at != last || i == b->head.room) && at < b->head.room && owner_of(&b->parties[at]) != 0 &&
            state_of(&b->parties[at]) == CL_PARTY_ARRIVED) {
            atomic_store_explicit(&b->parties[at].state, state, memory_order_release);
            CL_KILL_POINT();
        }
    }
}

/* A party that died after it arrived breaks the barrier; one that died on its way out is forgotten. */
static int bury(cl_store *store, cl_barrier *b)
{
    int changed = 0;
    for (uint32_t i = 0; i < b->head.room; i++) {
        uint32_t owner = owner_of(&b->parties[i]);
        if (owner != 0 && cl_is_dead(store, owner)) {
            if (state_of(&b->parties[i]) == CL_PARTY_ARRIVED) {
                atomic_store(&b->broken, 1);
                set_arrived(b, CL_PARTY_BROKEN, UINT32_MAX);
            }
            put(&b->parties[i], 0, 0);
            changed = 1;
        }
    }
    return changed;
}

int cl_barrier_arrive(cl_store *store, cl_barrier *b, uint32_t *entry, uint32_t *index, int64_t deadline_ns)
{
    for (;;) {
        int rc = enter(store, &b->monitor);
        if (rc != CL_OK) {
            return rc;
        }
        if (atomic_load(&b->broken)) {
            leave(&b->monitor, 0);
            return CL_CLOSED;
        }
        uint32_t arrived = count(b, CL_PARTY_ARRIVED);
        for (uint32_t i = 0; arrived < b->head.number && i < b->head.room; i++) {
            if (owner_of(&b->parties[i]) == 0) {
                put(&b->parties[i], cl_self(store), CL_PARTY_ARRIVED);
                *entry = i;
                *index = arrived;
                leave(&b->monitor, 0);
                return CL_OK;
            }
        }
        /* The last party still runs the action, or others are on their way out. */
        if (bury(store, b)) {
            leave(&b->monitor, 1);
            continue;
        }
        rc = leave_and_wait(&b->monitor, deadline_ns, NULL);
        if (rc != CL_OK) {
            return rc;
        }
    }
}

int cl_barrier_wait(cl_store *store, cl_barrier *b, uint32_t entry, int64_t deadline_ns)
{
    for (int rc = CL_OK;;) {
        int entered = enter(store, &b->monitor);
        if (entered != CL_OK) {
            return entered;
        }
        if (rc == CL_AGAIN && bury(store, b)) {
            leave(&b->monitor, 1);
            rc = CL_OK;
            continue;
        }
        uint32_t state = state_of(&b->parties[entry]);
        if (state == CL_PARTY_ARRIVED && rc == CL_TIMEOUT) {
            atomic_store(&b->broken, 1);
            set_arrived(b, CL_PARTY_BROKEN, UINT32_MAX);
            state = CL_PARTY_BROKEN;
        }
        if (state != CL_PARTY_ARRIVED) {
            put(&b->parties[entry], 0, 0);
            leave(&b->monitor, 1);
            return state == CL_PARTY_RELEASED ? CL_OK : CL_CLOSED;
        }
        if (rc == CL_AGAIN) {
            leave(&b->monitor, 0);
            return CL_AGAIN;
        }
        static cl_spin spin;
        rc = leave_and_wait(&b->monitor, deadline_ns, &spin);
    }
}

int cl_barrier_release(cl_store *store, cl_barrier *b, uint32_t entry)
{
    int rc = enter(store, &b->monitor);
    if (rc == CL_OK) {
        /* Our own entry last: killed before, it stands as arrived and dead, and whoever is left is let go by that. */
        if (state_of(&b->parties[entry]) == CL_PARTY_ARRIVED) {
            set_arrived(b, CL_PARTY_RELEASED, entry);
        }
        leave(&b->monitor, 1);
    }
    return rc;
}

int cl_barrier_break(cl_store *store, cl_barrier *b, int reset)
{
    int rc = enter(store, &b->monitor);
    if (rc == CL_OK) {
        atomic_store(&b->broken, 1);
        set_arrived(b, CL_PARTY_BROKEN, UINT32_MAX);
        if (reset) {
            atomic_store(&b->broken, 0);
        }
        leave(&b->monitor, 1);
    }
    return rc;
}

uint32_t cl_barrier_waiting(cl_store *store, cl_barrier *b)
{
    uint32_t n = 0;
    if (enter(store, &b->monitor) == CL_OK) {
        n = count(b, CL_PARTY_ARRIVED);
        leave(&b->monitor, 0);
    }
    return n >= b->head.number ? 0 : n;
}
