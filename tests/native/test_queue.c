/* The queue: items stay in order and whole under many threads (also under TSan), bounds, and death at every step of
 * put and get. No item is lost once put has returned for it, none comes twice, no hold and no block is left. */
#include "check.h"
#include "queue_parts.h"

#include <linux/futex.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/syscall.h>

static cl_store store;
static cl_block_ref place; /* the queue's own block */

static cl_queue_head *make(uint32_t most, uint64_t flags, uint32_t leases)
{
    uint64_t n = sizeof(cl_queue_head) + leases * sizeof(cl_lease);
    CHECK(cl_alloc(&store, n, CL_MAY_WAIT, &place) == CL_OK);
    cl_queue_head *h = (cl_queue_head *)(void *)place.data;
    memset(h, 0, n);
    h->head.magic = CL_OBJECT_MAGIC;
    h->head.kind = CL_KIND_QUEUE;
    h->head.number = most;
    h->head.room = leases;
    h->head.flags = flags;
    return h;
}

static void attach(cl_queue *q, cl_store *s, cl_queue_head *h)
{
    CHECK(cl_queue_attach(q, s, h, place.capacity, place.segment * CL_BLOCKS + place.index) == CL_OK);
}

static int put(cl_queue *q, uint64_t number, uint64_t nbytes, int64_t deadline)
{
    static _Thread_local uint8_t body[CL_INLINE_MAX];
    uint32_t done = 0;
    int rc;
    memset(body, (int)(number & 0xff), nbytes);
    memcpy(body, &number, 8);
    cl_item item = {.body = body, .nbytes = nbytes};
    while ((rc = cl_queue_put(q, &item, 1, &done, deadline, CL_MAY_WAIT)) == CL_AGAIN) {
    }
    CHECK((rc == CL_OK) == (done == 1));
    return rc;
}

/* An item in a block of its own that refers to another block, by a drafted hold. */
static int put_far(cl_queue *q, uint64_t number, uint64_t nbytes)
{
    cl_block_ref payload, other;
    cl_address draft;
    uint32_t done = 0;
    int rc;
    CHECK(cl_alloc(q->store, nbytes, CL_MAY_WAIT, &payload) == CL_OK);
    CHECK(cl_alloc(q->store, 300, CL_MAY_WAIT, &other) == CL_OK);
    other.data[0] = (uint8_t)number;
    CHECK(cl_draft(q->store, other.segment, other.index, CL_MAY_WAIT, &draft) == CL_OK);
    cl_token token = {.hold = draft.hold, .nonce = draft.nonce};
    memset(payload.data, (int)(number & 0xff), nbytes);
    memcpy(payload.data, &token, sizeof token);
    memcpy(payload.data + 16, &number, 8);
    memcpy(payload.data + 24, &draft, sizeof draft);
    cl_item item = {.nbytes = nbytes, .tokens = &token, .ntokens = 1, .payload = &payload};
    while ((rc = cl_queue_put(q, &item, 1, &done, CL_FOREVER, CL_MAY_WAIT)) == CL_AGAIN) {
    }
    release(q->store, &other);
    CHECK(rc == CL_OK && done == 1);
    return rc;
}

/* Take one item: its number; 0 with *rc set when there is none. */
static uint64_t get(cl_queue *q, int64_t deadline, int *result, uint64_t *sequence)
{
    cl_got got;
    uint64_t number = 0;
    int rc;
    while ((rc = cl_queue_begin(q, deadline, CL_MAY_WAIT)) == CL_AGAIN) {
    }
    *result = rc;
    if (rc != CL_OK) {
        return 0;
    }
    rc = cl_queue_next(q, &got, CL_MAY_WAIT);
    if (rc == CL_MISSING || (rc != CL_OK && rc != CL_STALE)) {
        CHECK(rc == CL_MISSING || rc == CL_AGAIN);
        cl_queue_abort(q);
        return get(q, deadline, result, sequence);
    }
    CHECK(rc == CL_OK);
    const uint8_t *body = got.body;
    if (body != NULL) {
        memcpy(&number, body, 8);
        for (uint64_t i = 8; i < got.nbytes; i++) {
            CHECK(body[i] == (uint8_t)number);
        }
    }
    while (cl_queue_commit(q) == CL_AGAIN) {
    }
    if (sequence != NULL) {
        *sequence = got.sequence;
    }
    if (body == NULL) {
        body = got.payload.data;
        cl_address draft;
        cl_block_ref other;
        memcpy(&number, body + 16, 8);
        memcpy(&draft, body + 24, sizeof draft);
        for (uint64_t i = 24 + sizeof draft; i < got.nbytes; i++) {
            CHECK(body[i] == (uint8_t)number);
        }
        CHECK(got.ntokens == 1 && cl_load(q->store, &draft, CL_MAY_WAIT, &other) == CL_OK);
        CHECK(other.data[0] == (uint8_t)number);
        release(q->store, &other);
        release(q->store, &got.payload);
        if (q->head->head.room == 0) {
            CHECK(cl_unsend(q->store, draft.hold, draft.nonce, CL_MAY_WAIT) == CL_OK);
        }
    }
    return number;
}

static uint32_t channel_holds(void)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < store.control->holds_high; i++) {
        n += store.holds[i].kind == CL_HOLD_CHANNEL;
    }
    return n;
}

static uint32_t used_blocks(void)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < store.control->segments_high; i++) {
        n += store.segments[i].state == CL_SEGMENT_READY ? store.segments[i].used : 0;
    }
    return n;
}

static void in_one_thread(void)
{
    cl_queue q;
    int rc;
    cl_queue_head *h = make(0, 0, 0);
    attach(&q, &store, h);
    CHECK(get(&q, 0, &rc, NULL) == 0 && rc == CL_TIMEOUT);
    uint64_t in = 0, out = 0;
    for (int round = 0; round < 40; round++) {
        for (int i = 0; i < 100; i++) {
            in++;
            CHECK((in % 7 == 0 ? put_far(&q, in, 200 + in * 10)
                               : put(&q, in, 8 + in * 37 % (CL_INLINE_MAX - 8), CL_FOREVER)) == CL_OK);
        }
        for (int i = 0; i < (round < 20 ? 60 : 140); i++) {
            out++;
            CHECK(get(&q, 0, &rc, NULL) == out && rc == CL_OK);
        }
        CHECK(cl_queue_size(h) == in - out);
        audit(&store);
    }
    CHECK(in == out && cl_queue_bytes(h) == 0 && channel_holds() == 1);
    /* several at once, and a take of several */
    cl_item items[50];
    uint64_t numbers[50];
    uint32_t done = 0;
    for (uint64_t i = 0; i < 50; i++) {
        numbers[i] = i + 1;
        items[i] = (cl_item){.body = &numbers[i], .nbytes = 8};
    }
    CHECK(cl_queue_put(&q, items, 50, &done, 0, CL_MAY_WAIT) == CL_OK && done == 50);
    cl_got got;
    CHECK(cl_queue_begin(&q, 0, 0) == CL_OK);
    for (int i = 0; i < 20; i++) {
        CHECK(cl_queue_next(&q, &got, 0) == CL_OK && got.sequence == in + (uint64_t)i);
    }
    cl_queue_abort(&q);
    CHECK(cl_queue_size(h) == 50 && cl_queue_begin(&q, 0, 0) == CL_OK);
    for (int i = 0; i < 50; i++) {
        CHECK(cl_queue_next(&q, &got, 0) == CL_OK);
    }
    CHECK(cl_queue_next(&q, &got, 0) == CL_MISSING);
    cl_queue_commit(&q);
    CHECK(cl_queue_size(h) == 0);
    for (int i = 0; i < 30; i++) {
        put_far(&q, 5, 5000);
    }
    CHECK(cl_queue_shut(&q, 1) == CL_OK && cl_queue_size(h) == 0 && channel_holds() == 1);
    CHECK(put(&q, 1, 8, 0) == CL_CLOSED && get(&q, 0, &rc, NULL) == 0 && rc == CL_CLOSED);
    cl_queue_detach(&q);
    release(&store, &place);
    CHECK(used_blocks() == 0 && channel_holds() == 0);
}

static void bounds(void)
{
    cl_queue q;
    int rc;
    cl_queue_head *h = make(2, 0, 0);
    attach(&q, &store, h);
    CHECK(put(&q, 1, 8, 0) == CL_OK && put(&q, 2, 8, 0) == CL_OK && put(&q, 3, 8, 0) == CL_TIMEOUT);
    int64_t deadline = cl_monotonic_ns() + 60000000;
    CHECK(put(&q, 3, 8, deadline) == CL_TIMEOUT && cl_monotonic_ns() >= deadline);
    CHECK(get(&q, 0, &rc, NULL) == 1 && put(&q, 3, 8, 0) == CL_OK);
    q.most = 0;
    q.most_bytes = 100;
    CHECK(put(&q, 4, 90, 0) == CL_TIMEOUT && put(&q, 4, 80, 0) == CL_OK && put(&q, 5, 8, 0) == CL_TIMEOUT);
    for (uint64_t i = 2; i < 5; i++) {
        CHECK(get(&q, 0, &rc, NULL) == i);
    }
    CHECK(put(&q, 6, 5000, 0) == CL_OK && put(&q, 7, 8, 0) == CL_TIMEOUT && get(&q, 0, &rc, NULL) == 6);
    cl_queue_detach(&q);
    release(&store, &place);
}

/* A consumer that peeks at the next item and leaves it stays at its position, also if the item is in the next chunk. */
static void looked_at(void)
{
    cl_queue q;
    int rc;
    attach(&q, &store, make(0, 0, 0));
    for (uint64_t i = 1; i <= 30; i++) {
        CHECK(put(&q, i, CL_INLINE_MAX, CL_FOREVER) == CL_OK);
    }
    for (uint64_t i = 1; i <= 30; i++) {
        for (int k = 0; k < 2; k++) {
            while ((rc = cl_queue_begin(&q, 0, CL_MAY_WAIT)) == CL_AGAIN) {
            }
            CHECK(rc == CL_OK);
            cl_queue_abort(&q);
        }
        CHECK(get(&q, 0, &rc, NULL) == i && rc == CL_OK);
    }
    CHECK(channel_holds() == 1);
    cl_queue_detach(&q);
    release(&store, &place);
    CHECK(used_blocks() == 0 && channel_holds() == 0);
}

/* ---- wakes: a woken process says that others may still sleep, and wakes the next when there is more to take */

static cl_queue watched;
static cl_au32 getter, sleeper;
static int woken;

static void *takes_one(void *arg)
{
    int rc;
    (void)arg;
    atomic_store(&getter, (uint32_t)syscall(SYS_gettid));
    CHECK(get(&watched, CL_FOREVER, &rc, NULL) == 1);
    return NULL;
}

static void *sleeps_on(void *arg)
{
    cl_au32 *commit = cl_low_word(&watched.head->put);
    struct timespec most = {.tv_nsec = 200000000};
    uint32_t seen = (uint32_t)(uintptr_t)arg;
    atomic_store(&sleeper, (uint32_t)syscall(SYS_gettid));
    woken = syscall(SYS_futex, commit, FUTEX_WAIT, seen, &most, NULL, 0) == 0;
    return NULL;
}

static int is_marked(int64_t for_ns)
{
    int64_t until = cl_monotonic_ns() + for_ns;
    while (!(atomic_load(&watched.head->put.commit) & CL_COMMIT_SLEEP) && cl_monotonic_ns() < until) {
        usleep(50);
    }
    return (atomic_load(&watched.head->put.commit) & CL_COMMIT_SLEEP) != 0;
}

static void passed_on(void)
{
    int marked = 0, rc;
    woken = 0;
    for (int round = 0; round < 20 && !woken; round++) { /* a slice that ends in between makes a round void */
        pthread_t first, second;
        uint64_t numbers[2] = {1, 2};
        cl_item items[2] = {{.body = &numbers[0], .nbytes = 8}, {.body = &numbers[1], .nbytes = 8}};
        uint32_t done = 0;
        atomic_store(&getter, 0);
        atomic_store(&sleeper, 0);
        cl_queue_head *h = make(0, 0, 0);
        attach(&watched, &store, h);
        CHECK(pthread_create(&first, NULL, takes_one, NULL) == 0);
        CHECK(is_marked(20000000000));
        wait_asleep(&getter);
        cl_spin spin = {0};
        CHECK(cl_mutex_lock(&store, &h->get.lock, 0, &spin) == CL_OK); /* a woken process gets no further than this */
        while ((rc = cl_queue_put(&watched, items, 2, &done, CL_FOREVER, CL_MAY_WAIT)) == CL_AGAIN) {
        }
        CHECK(rc == CL_OK);
        if (is_marked(30000000)) {
            marked = 1;
            uintptr_t seen = atomic_load(cl_low_word(&h->put));
            CHECK(pthread_create(&second, NULL, sleeps_on, (void *)seen) == 0);
            wait_asleep(&sleeper);
            CHECK(cl_unlock_own(&h->get.lock, cl_self(&store)) == CL_OK);
            pthread_join(second, NULL);
        } else {
            CHECK(cl_unlock_own(&h->get.lock, cl_self(&store)) == CL_OK);
        }
        pthread_join(first, NULL);
        CHECK(get(&watched, 0, &rc, NULL) == 2);
        cl_queue_detach(&watched);
        release(&store, &place);
    }
    CHECK(marked);
    CHECK(woken);
}

/* ---- threads */

#define EACH 20000u
static cl_queue shared;
static cl_au32 finished_producers;
static uint8_t seen[2][EACH + 1];

static void *produce(void *arg)
{
    uint64_t me = (uintptr_t)arg;
    for (uint64_t i = 1; i <= EACH; i++) {
        CHECK((i % 500 == 0 ? put_far(&shared, me << 32 | i, 400)
                            : put(&shared, me << 32 | i, 8 + i % 60, CL_FOREVER)) == CL_OK);
    }
    atomic_fetch_add(&finished_producers, 1);
    return NULL;
}

static void *consume(void *arg)
{
    uint64_t last[2] = {0, 0};
    int rc;
    (void)arg;
    for (;;) {
        uint64_t number = get(&shared, CL_FOREVER, &rc, NULL);
        if (rc == CL_CLOSED) {
            return NULL;
        }
        CHECK(rc == CL_OK && number >> 32 < 2);
        uint64_t i = number & UINT32_MAX;
        CHECK(i > last[number >> 32]); /* each producer's items come first in, first out */
        last[number >> 32] = i;
        CHECK(seen[number >> 32][i]++ == 0); /* only one thread counts each: no race unless it came twice */
    }
}

static void in_threads(uint32_t most)
{
    pthread_t threads[4];
    memset(seen, 0, sizeof seen);
    cl_queue_head *h = make(most, 0, 0);
    attach(&shared, &store, h);
    for (uintptr_t i = 0; i < 4; i++) {
        CHECK(pthread_create(&threads[i], NULL, i < 2 ? produce : consume, (void *)i) == 0);
    }
    pthread_join(threads[0], NULL);
    pthread_join(threads[1], NULL);
    CHECK(cl_queue_shut(&shared, 0) == CL_OK);
    pthread_join(threads[2], NULL);
    pthread_join(threads[3], NULL);
    for (uint32_t i = 1; i <= EACH; i++) {
        CHECK(seen[0][i] == 1 && seen[1][i] == 1);
    }
    cl_queue_detach(&shared);
    release(&store, &place);
    audit(&store);
    CHECK(used_blocks() == 0 && channel_holds() == 0);
}

/* ---- kills */

#ifndef __SANITIZE_THREAD__
static struct notes { /* what the victim was told, outside the queue */
    uint64_t put, putting, got, getting, acknowledging, acknowledged;
    cl_address queue;
} *notes;

enum { PUTS, PUTS_FAR, GETS, LEASES, SHUTS, KINDS };

static void victim(cl_queue *q, int kind)
{
    int rc;
    uint64_t sequence;
    switch (kind) {
    case PUTS:
    case PUTS_FAR:
        for (uint64_t i = 1001; i < 1012; i++) { /* enough for a chunk or two */
            notes->putting = i;
            CHECK((kind == PUTS ? put(q, i, CL_INLINE_MAX, CL_FOREVER) : put_far(q, i, 5000)) == CL_OK);
            notes->put = i;
        }
        break;
    case GETS:
        for (uint64_t i = 1; i < 21; i++) {
            notes->getting = i;
            CHECK(get(q, 0, &rc, NULL) == i && rc == CL_OK);
            notes->got = i;
            CHECK(cl_queue_done(q, 0) == CL_OK);
        }
        break;
    case LEASES:
        for (uint64_t i = 1; i < 5; i++) {
            notes->getting = i;
            CHECK(get(q, 0, &rc, &sequence) == i && rc == CL_OK);
            notes->got = i;
            notes->acknowledging = i;
            CHECK(cl_queue_done(q, sequence) == CL_OK);
            notes->acknowledged = i;
        }
        break;
    default:
        CHECK(cl_queue_shut(q, 1) == CL_OK);
    }
}

static void kill_everywhere(int kind)
{
    long n = 1;
    for (;; n++) {
        int leases = kind == LEASES;
        cl_queue_head *h =
            make(0, leases ? CL_QUEUE_JOINABLE | CL_QUEUE_REDELIVER : CL_QUEUE_JOINABLE, leases ? 16 : 0);
        cl_queue q;
        int rc;
        attach(&q, &store, h);
        uint64_t before = kind == LEASES ? 6 : 24;
        for (uint64_t i = 1; i <= before; i++) {
            CHECK((i % 2 || leases ? put_far(&q, i, 700) : put(&q, i, CL_INLINE_MAX, 0)) == CL_OK);
        }
        memset(notes, 0, sizeof *notes);
        notes->queue = (cl_address){.segment_id = place.segment_id,
                                    .generation = place.generation,
                                    .segment = place.segment,
                                    .index = place.index};
        pid_t child = fork();
        if (child == 0) {
            static cl_store own;
            cl_block_ref there;
            cl_queue theirs;
            open_store(&own, 5);
            CHECK(cl_load(&own, &notes->queue, CL_MAY_WAIT, &there) == CL_OK);
            attach(&theirs, &own, (cl_queue_head *)(void *)there.data);
            cl_kill_at = cl_kill_passed + n;
            victim(&theirs, kind);
            cl_kill_at = 0;
            _exit(0);
        }
        int well = ended(child);
        CHECK(cl_reap(&store, CL_MAY_WAIT, NULL) == CL_OK);
        audit(&store);
        /* The survivor puts and takes; what it takes shows the true state. */
        if (kind != SHUTS) {
            CHECK((leases ? put_far(&q, 5000, 700) : put(&q, 5000, 50, CL_FOREVER)) == CL_OK);
        }
        uint64_t expect = 1, number, sequence, times[7] = {0};
        while ((number = get(&q, cl_monotonic_ns() + 1000000, &rc, &sequence)) != 0) {
            if (leases) {
                CHECK(number == 5000 || (number > notes->acknowledged && number <= before && times[number]++ == 0));
                CHECK(cl_queue_done(&q, sequence) == CL_OK);
                continue;
            }
            CHECK(cl_queue_done(&q, 0) == CL_OK);
            if (kind == GETS && expect == 1) { /* the item that get returned to the victim is gone; one more may be */
                CHECK(number == notes->got + 1 || (number == notes->got + 2 && notes->getting == notes->got + 1));
                expect = number;
            }
            if (expect == before + 1 && number != 5000) {
                expect = 1001;
            }
            if (number == 5000) {
                CHECK(expect == notes->put + 1 || expect == notes->putting + 1 || notes->putting == 0 ||
                      (notes->put == 0 && expect == before + 1));
                expect = 0;
            } else {
                CHECK(number == expect);
                expect++;
            }
        }
        CHECK(rc == CL_TIMEOUT || (kind == SHUTS && rc == CL_CLOSED));
        if (kind == SHUTS) { /* no process shuts it again: the get has finished that */
            CHECK(rc == CL_CLOSED && cl_queue_size(h) == 0 && cl_queue_unfinished(&q) == 0);
        }
        if (leases) {
            for (uint64_t i = notes->acknowledged + 1; i <= before; i++) {
                CHECK(times[i] == 1 || i == notes->acknowledging); /* done, but its result was not received */
            }
            CHECK(cl_queue_unfinished(&q) == 0);
        } else if (kind != SHUTS) {
            uint64_t lost = 0;
            rc = cl_queue_join(&q, cl_monotonic_ns() + 1000000000, &lost);
            CHECK(rc == CL_OK || (rc == CL_OWNER_DIED && lost <= 1 && kind == GETS));
            CHECK(cl_queue_join(&q, 0, &lost) == CL_OK);
        }
        audit(&store);
        if (channel_holds() != 1) {
            fprintf(stderr, "kind %d point %ld: %u holds\n", kind, n, channel_holds());
        }
        CHECK(channel_holds() == 1);
        cl_queue_detach(&q);
        release(&store, &place);
        CHECK(channel_holds() == 0 && used_blocks() == 0);
        if (well) {
            break;
        }
    }
    CHECK(n > 10);
}

/* shutdown(immediate=True) by a process that is killed in it, at each of its steps: of a queue with items, with
 * items in blocks of their own, and of one with redelivery whose consumer has died. The join of the other processes
 * ends, alone and without a get; so does get. Where items are delivered once, a taken item becomes a dead letter, at
 * whichever step the process died. */
static void shut_by_who_dies(int leases, int deliveries, int by_get)
{
    long n = 1;
    for (;; n++) {
        cl_queue_head *h =
            make(0, leases ? CL_QUEUE_JOINABLE | CL_QUEUE_REDELIVER : CL_QUEUE_JOINABLE, leases ? 16 : 0);
        h->head.spare[1] = (uint64_t)deliveries;
        cl_queue q;
        int rc;
        attach(&q, &store, h);
        for (uint64_t i = 1; i <= 6; i++) {
            put_far(&q, i, 700);
        }
        notes->queue = (cl_address){.segment_id = place.segment_id,
                                    .generation = place.generation,
                                    .segment = place.segment,
                                    .index = place.index};
        pid_t child = fork();
        if (child == 0) {
            static cl_store own;
            cl_block_ref there;
            cl_queue theirs;
            open_store(&own, 5);
            CHECK(cl_load(&own, &notes->queue, CL_MAY_WAIT, &there) == CL_OK);
            attach(&theirs, &own, (cl_queue_head *)(void *)there.data);
            if (leases) {
                CHECK(get(&theirs, 0, &rc, NULL) == 1);
            }
            cl_kill_at = cl_kill_passed + n;
            CHECK(cl_queue_shut(&theirs, 1) == CL_OK);
            cl_kill_at = 0;
            _exit(0);
        }
        int well = ended(child);
        CHECK(cl_reap(&store, CL_MAY_WAIT, NULL) == CL_OK);
        CHECK(atomic_load(&h->state) == CL_QUEUE_SHUT_NOW);
        uint64_t lost = 0;
        if (by_get) {
            while ((rc = cl_queue_begin(&q, cl_monotonic_ns() + 5000000000, CL_MAY_WAIT)) == CL_AGAIN) {
            }
            CHECK(rc == CL_CLOSED);
        } else {
            while ((rc = cl_queue_join(&q, cl_monotonic_ns() + 5000000000, &lost)) == CL_AGAIN) {
            }
            CHECK(rc == CL_OK);
        }
        CHECK(cl_queue_size(h) == 0 && cl_queue_unfinished(&q) == 0);
        audit(&store);
        cl_got got;
        uint32_t at = 0, times = 0;
        while ((rc = cl_queue_dead_letter(&q, &at, &got, &times)) == CL_AGAIN) {
        }
        CHECK(rc == (deliveries ? CL_OK : CL_MISSING));
        if (deliveries) {
            CHECK(times == 1 && got.sequence == 0);
            release(&store, &got.payload);
            while ((rc = cl_queue_discard(&q, 0)) == CL_AGAIN) {
            }
            CHECK(rc == CL_OK && cl_queue_dead_letter(&q, &at, &got, &times) == CL_MISSING);
        }
        CHECK(cl_queue_shut(&q, 1) == CL_OK && channel_holds() == 1);
        cl_queue_detach(&q);
        release(&store, &place);
        CHECK(channel_holds() == 0 && used_blocks() == 0);
        if (well) {
            break;
        }
    }
    CHECK(n > 6);
}

/* A consumer that takes and gives back, and is killed at each step of it: the item is delivered again, at most as
 * often as allowed, then it is a dead letter. It is never lost and never both; join ends. */
static void nack_by_who_dies(void)
{
    long n = 1;
    for (;; n++) {
        cl_queue_head *h = make(0, CL_QUEUE_JOINABLE | CL_QUEUE_REDELIVER, 4);
        h->head.spare[1] = 2;
        cl_queue q;
        int rc;
        uint64_t sequence, lost;
        attach(&q, &store, h);
        put_far(&q, 1, 700);
        notes->queue = (cl_address){.segment_id = place.segment_id,
                                    .generation = place.generation,
                                    .segment = place.segment,
                                    .index = place.index};
        pid_t child = fork();
        if (child == 0) {
            static cl_store own;
            cl_block_ref there;
            cl_queue theirs;
            cl_got got;
            uint32_t at = 0, deliveries = 0;
            open_store(&own, 5);
            CHECK(cl_load(&own, &notes->queue, CL_MAY_WAIT, &there) == CL_OK);
            attach(&theirs, &own, (cl_queue_head *)(void *)there.data);
            cl_kill_at = cl_kill_passed + n;
            for (int i = 0; i < 2; i++) {
                CHECK(get(&theirs, cl_monotonic_ns() + 5000000000, &rc, &sequence) == 1);
                CHECK(cl_queue_nack(&theirs, sequence) == CL_OK);
            }
            CHECK(cl_queue_dead_letter(&theirs, &at, &got, &deliveries) == CL_OK && deliveries == 2);
            release(&own, &got.payload);
            CHECK(cl_queue_discard(&theirs, got.sequence) == CL_OK);
            cl_kill_at = 0;
            _exit(0);
        }
        int well = ended(child);
        CHECK(cl_reap(&store, CL_MAY_WAIT, NULL) == CL_OK);
        audit(&store);
        uint64_t taken = get(&q, cl_monotonic_ns() + 1000000, &rc, &sequence);
        CHECK(taken == 1 || rc == CL_TIMEOUT);
        if (taken) { /* it was delivered less often than allowed: once more, then no more */
            CHECK(cl_queue_nack(&q, sequence) == CL_OK);
            if (get(&q, cl_monotonic_ns() + 1000000, &rc, &sequence) == 1) {
                CHECK(cl_queue_nack(&q, sequence) == CL_OK);
            }
            CHECK(get(&q, cl_monotonic_ns() + 1000000, &rc, &sequence) == 0 && rc == CL_TIMEOUT);
        }
        while ((rc = cl_queue_join(&q, cl_monotonic_ns() + 5000000000, &lost)) == CL_AGAIN) {
        }
        CHECK(rc == CL_OK);
        cl_got got;
        uint32_t at = 0, deliveries = 0;
        rc = cl_queue_dead_letter(&q, &at, &got, &deliveries);
        CHECK(rc == CL_OK || (rc == CL_MISSING && !taken)); /* discarded, without the result being received */
        if (rc == CL_OK) {
            CHECK(deliveries >= 2 && deliveries <= 3);
            release(&store, &got.payload);
            CHECK(cl_queue_discard(&q, got.sequence) == CL_OK && cl_queue_discard(&q, got.sequence) == CL_MISSING);
        }
        while ((rc = cl_queue_done(&q, 77)) == CL_AGAIN) { /* the next process that enters repairs */
        }
        CHECK(rc == CL_MISSING);
        audit(&store);
        if (channel_holds() != 1) {
            fprintf(stderr, "nack, point %ld: %u holds\n", n, channel_holds());
        }
        CHECK(channel_holds() == 1);
        cl_queue_detach(&q);
        release(&store, &place);
        CHECK(channel_holds() == 0 && used_blocks() == 0);
        if (well) {
            break;
        }
    }
    CHECK(n > 20);
}

/* A dead letter is not skipped when another process has the registry's lock for longer than a call waits. */
static void dead_letter_beside_who_holds_the_registry(void)
{
    cl_queue_head *h = make(0, CL_QUEUE_JOINABLE | CL_QUEUE_REDELIVER, 4);
    h->head.spare[1] = 1;
    cl_queue q;
    int rc, up[2], go[2];
    uint64_t sequence;
    uint32_t at = 0, deliveries = 0;
    char byte = 0;
    cl_got got;
    attach(&q, &store, h);
    put_far(&q, 1, 700);
    CHECK(get(&q, CL_FOREVER, &rc, &sequence) == 1 && cl_queue_nack(&q, sequence) == CL_OK);
    CHECK(pipe(up) == 0 && pipe(go) == 0);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        cl_store own = {0};
        close(go[1]);
        open_store(&own, 7);
        while (cl_enter(&own, CL_OP_LIST, CL_MAY_WAIT) != CL_OK) {
        }
        CHECK(write(up[1], &byte, 1) == 1 && read(go[0], &byte, 1) >= 0);
        cl_leave(&own);
        CHECK(cl_store_leave(&own) >= 0);
        _exit(0);
    }
    CHECK(read(up[0], &byte, 1) == 1);
    CHECK(cl_queue_dead_letter(&q, &at, &got, &deliveries) == CL_AGAIN);
    CHECK(write(go[1], &byte, 1) == 1);
    CHECK(ended(child));
    while ((rc = cl_queue_dead_letter(&q, &at, &got, &deliveries)) == CL_AGAIN) {
    }
    CHECK(rc == CL_OK && deliveries == 1 && got.sequence == sequence);
    release(&store, &got.payload);
    CHECK(cl_queue_discard(&q, sequence) == CL_OK);
    for (int i = 0; i < 2; i++) {
        close(up[i]);
        close(go[i]);
    }
    cl_queue_detach(&q);
    release(&store, &place);
}

/* A put that read the state before the shutdown, and continued after it. */
static void put_behind_a_shutdown(void)
{
    cl_queue_head *h = make(0, CL_QUEUE_JOINABLE, 0);
    cl_queue q;
    uint64_t lost = 0;
    int rc;
    attach(&q, &store, h);
    CHECK(cl_queue_shut(&q, 1) == CL_OK);
    atomic_store(&h->state, CL_QUEUE_OPEN);
    CHECK(put(&q, 1, 50, CL_FOREVER) == CL_OK);
    atomic_store(&h->state, CL_QUEUE_SHUT_NOW);
    while ((rc = cl_queue_join(&q, cl_monotonic_ns() + 5000000000, &lost)) == CL_AGAIN) {
    }
    CHECK(rc == CL_OK && cl_queue_size(h) == 0);
    cl_queue_detach(&q);
    release(&store, &place);
}

/* A producer is killed while it holds the registry's lock, and no other process is left to take the lock over. */
static void deserted_by_who_held_the_registry(void)
{
    cl_queue q;
    attach(&q, &store, make(0, 0, 0));
    cl_queue_use(&q, CL_ROLE_GETS);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        cl_store own = {0};
        open_store(&own, 7);
        cl_queue mine;
        attach(&mine, &own, q.head);
        cl_queue_use(&mine, CL_ROLE_PUTS);
        while (cl_enter(&own, CL_OP_LIST, CL_MAY_WAIT) != CL_OK) {
        }
        kill(getpid(), SIGKILL);
    }
    CHECK(!ended(child));
    CHECK(cl_queue_deserted(&q) == 2);
    audit(&store);
    cl_queue_detach(&q);
    release(&store, &place);
}
#endif

int main(void)
{
    open_store(&store, 1);
    in_one_thread();
    bounds();
    looked_at();
    passed_on();
    in_threads(0);
    in_threads(3);
#ifndef __SANITIZE_THREAD__
    notes = mmap(NULL, sizeof *notes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(notes != MAP_FAILED);
    for (int kind = 0; kind < KINDS; kind++) {
        kill_everywhere(kind);
    }
    for (int by_get = 0; by_get < 2; by_get++) {
        shut_by_who_dies(0, 0, by_get);
        shut_by_who_dies(1, 0, by_get);
        shut_by_who_dies(1, 1, by_get);
    }
    nack_by_who_dies();
    deserted_by_who_held_the_registry();
    dead_letter_beside_who_holds_the_registry();
    put_behind_a_shutdown();
#endif
    CHECK(cl_store_leave(&store) >= 0);
    remove_directory();
    puts("queue: ok");
    return 0;
}
