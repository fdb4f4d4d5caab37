/* The ring of frames: no torn frame under many threads (also under TSan), which process waits for which, and a death
 * and a stop at every step: no slot and no loan is left, no half-written frame is seen, and no process waits for a
 * stopped one. */
#include "check.h"
#include "ring.h"

#include <pthread.h>
#include <sched.h>
#include <sys/mman.h>

#define STRIDE 1024u
#define MEMBERS 128u
static cl_store store;
static cl_block_ref place;

static cl_ring_head *make(uint32_t slots, uint64_t flags, int64_t block_timeout_ns)
{
    uint64_t n = cl_ring_bytes(slots, MEMBERS, STRIDE, 5);
    CHECK(cl_alloc(&store, n, CL_MAY_WAIT, &place) == CL_OK);
    cl_ring_head *h = (cl_ring_head *)(void *)place.data;
    memset(h, 0, n);
    h->head.magic = CL_OBJECT_MAGIC;
    h->head.kind = CL_KIND_RING;
    h->head.flags = flags;
    cl_ring_begin(h, slots, MEMBERS, STRIDE, 5);
    h->head.spare[1] = (uint64_t)block_timeout_ns;
    return h;
}

static void attach(cl_ring *r, cl_store *s, cl_ring_head *h)
{
    CHECK(cl_ring_attach(r, s, h, place.capacity, place.segment * CL_BLOCKS + place.index) == CL_OK);
}

static int claim(cl_ring *r, int64_t deadline, uint32_t *slot)
{
    int64_t since = 0;
    int rc;
    while ((rc = cl_ring_claim(r, deadline, CL_MAY_WAIT, &since, slot)) == CL_AGAIN) {
    }
    return rc;
}

static void fill(cl_ring *r, uint32_t slot, uint64_t value)
{
    uint64_t *p = (uint64_t *)(void *)(r->data + slot * r->stride);
    for (uint32_t i = 0; i < STRIDE / 8; i++) {
        p[i] = value;
    }
}

static uint64_t check_whole(cl_ring *r, uint32_t slot)
{
    const uint64_t *p = (const uint64_t *)(const void *)(r->data + slot * r->stride);
    for (uint32_t i = 1; i < STRIDE / 8; i++) {
        CHECK(p[i] == p[0]);
    }
    return p[0];
}

static int write_one(cl_ring *r, uint64_t value, int64_t deadline)
{
    uint32_t slot;
    cl_frame frame;
    int rc = claim(r, deadline, &slot);
    if (rc == CL_OK) {
        fill(r, slot, value);
        CHECK(cl_ring_publish(r, slot, &frame) == CL_OK && frame.slot == slot);
    }
    return rc;
}

static int next(cl_ring *r, uint32_t reader, int64_t deadline, cl_frame *out)
{
    int rc;
    while ((rc = cl_ring_next(r, reader, deadline, CL_MAY_WAIT, out)) == CL_AGAIN) {
    }
    return rc;
}

static int latest(cl_ring *r, uint64_t after, int64_t deadline, cl_frame *out)
{
    int rc;
    while ((rc = cl_ring_latest(r, after, deadline, CL_MAY_WAIT, out)) == CL_AGAIN) {
    }
    return rc;
}

static uint64_t word_of(const cl_ring *r, uint32_t slot)
{
    return atomic_load(&cl_ring_slot(r, slot)->word);
}

static int is_lent(const cl_ring *r, uint32_t slot)
{
    uint64_t any = 0;
    for (uint32_t k = 0; k < r->room / 64; k++) {
        any |= atomic_load(&cl_ring_slot(r, slot)->loans[k]);
    }
    return any != 0;
}

/* Has a frame that can be found, or that some process uses. */
static int has_frame(const cl_ring *r, uint32_t slot)
{
    uint64_t w = word_of(r, slot);
    return CL_SLOT_STATE(w) == CL_SLOT_PUBLISHED &&
           (CL_SLOT_SEQ(w) + r->slots > atomic_load(&r->head->last) || is_lent(r, slot));
}

/* Slots that a writer gets without overwriting a frame; each is known to some writer. */
static uint32_t free_slots(const cl_ring *r)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < r->slots; i++) {
        unsigned state = CL_SLOT_STATE(word_of(r, i));
        if (state == CL_SLOT_FREE || (state == CL_SLOT_PUBLISHED && !has_frame(r, i))) {
            CHECK(atomic_load(&r->spare[i / 64]) >> (i % 64) & 1);
            n++;
        }
    }
    return n;
}

/* No slot is lent or being written; each other slot is a frame at its place or known to be free. */
static void quiet(const cl_ring *r)
{
    uint32_t frames = 0;
    for (uint32_t i = 0; i < r->slots; i++) {
        uint64_t w = word_of(r, i), s = CL_SLOT_SEQ(w);
        CHECK(CL_SLOT_STATE(w) == CL_SLOT_FREE || CL_SLOT_STATE(w) == CL_SLOT_PUBLISHED);
        CHECK(!is_lent(r, i));
        CHECK(!has_frame(r, i) || atomic_load(&r->index[s % r->slots]) == CL_INDEX_ENTRY(s, i));
        frames += has_frame(r, i) != 0;
    }
    CHECK(frames + free_slots(r) == r->slots);
}

/* The newest frame is lent while newer ones overwrite it: after its return the slot is free, and is not lent again. */
static void newest_given_back(void)
{
    cl_ring r;
    cl_frame f, g;
    uint32_t slot;
    cl_ring_head *h = make(2, 0, 0);
    attach(&r, &store, h);
    CHECK(write_one(&r, 1, 0) == CL_OK && write_one(&r, 2, 0) == CL_OK && latest(&r, 0, 0, &f) == CL_OK && f.seq == 2);
    CHECK(write_one(&r, 3, 0) == CL_OK && write_one(&r, 4, 0) == CL_OK && claim(&r, 0, &slot) == CL_OK &&
          slot != f.slot);
    CHECK(free_slots(&r) == 0 && latest(&r, 0, 0, &g) == CL_TIMEOUT);
    CHECK(cl_ring_return(&r, f.slot) == CL_OK && free_slots(&r) == 1 && !has_frame(&r, f.slot));
    CHECK(latest(&r, 0, 0, &g) == CL_TIMEOUT && cl_ring_publish(&r, slot, &f) == CL_OK && f.seq == 5);
    CHECK(latest(&r, 0, 0, &g) == CL_OK && g.seq == 5 && cl_ring_return(&r, g.slot) == CL_OK);
    cl_ring_detach(&r);
    release(&store, &place);
}

/* Wild words: an index out of bounds gives CL_CORRUPT, and the description of the ring is not read again. */
static void damage(void)
{
    cl_ring r, late;
    cl_frame f, some[4];
    uint32_t reader, n, slot;
    cl_ring_head *h = make(4, 0, 0);
    attach(&r, &store, h);
    for (uint64_t i = 1; i <= 6; i++) {
        CHECK(write_one(&r, i, 0) == CL_OK);
    }
    CHECK(cl_ring_subscribe(&r, CL_READER_DROPS, 2, CL_MAY_WAIT, &reader) == CL_OK);
    cl_head kept = h->head;
    memset((uint8_t *)&h->head + 8, 0xff, sizeof h->head - 8);
    CHECK(cl_ring_attach(&late, &store, h, place.capacity, 0) == CL_CORRUPT && late.head == NULL);
    CHECK(write_one(&r, 7, 0) == CL_OK && next(&r, reader, 0, &f) == CL_OK && f.seq == 4 &&
          cl_ring_return(&r, f.slot) == CL_OK);
    h->head = kept;
    atomic_store(&h->last, UINT64_MAX);
    CHECK(latest(&r, 0, 0, &f) == CL_CORRUPT && next(&r, reader, 0, &f) == CL_CORRUPT);
    CHECK(cl_ring_last(&r, 4, CL_MAY_WAIT, some, &n) == CL_CORRUPT && claim(&r, 0, &slot) == CL_CORRUPT);
    atomic_store(&h->last, 7);
    uint64_t at[4];
    memcpy(at, (void *)r.index, sizeof at);
    for (uint32_t k = 0; k < 3; k++) { /* a frame that is in no slot has been overwritten */
        for (uint32_t i = 0; i < 4; i++) {
            atomic_store(&r.index[i], (at[i] & ~(uint64_t)0xffff) | ((uint32_t[]){4, 1u << 15, UINT16_MAX})[k]);
        }
        CHECK(cl_ring_last(&r, 4, CL_MAY_WAIT, some, &n) == CL_OK && n == 0 && next(&r, reader, 0, &f) == CL_TIMEOUT);
        CHECK(latest(&r, 0, 0, &f) == CL_TIMEOUT);
    }
    memcpy((void *)r.index, at, sizeof at);
    atomic_store(&r.readers[reader].cursor, 8);
    CHECK(next(&r, reader, 0, &f) == CL_CORRUPT);
    atomic_store(&r.readers[reader].cursor, 6);
    /* an entry of the index with a number that was not given: frame 8 was missed; with one far beyond: it was
     * overwritten */
    atomic_store(&r.index[0], CL_INDEX_ENTRY(8, 77));
    CHECK(next(&r, reader, 0, &f) == CL_OK && f.seq == 7 && cl_ring_return(&r, f.slot) == CL_OK);
    CHECK(atomic_load(&h->last) == 8 && latest(&r, 7, 0, &f) == CL_TIMEOUT);
    atomic_store(&r.index[1], CL_INDEX_ENTRY(800, 1));
    CHECK(write_one(&r, 9, 0) == CL_OK && next(&r, reader, 0, &f) == CL_OK && f.seq == 9 && f.missed == 1);
    CHECK(cl_ring_return(&r, f.slot) == CL_OK);
    /* slots that wild words made unusable come back when there is no other */
    for (uint32_t i = 0; i < 4; i++) {
        cl_slot *s = cl_ring_slot(&r, i);
        atomic_store(&s->word,
                     ((uint64_t[]){CL_SLOT_WORD(CL_SLOT_CLAIMED, 100, 5, 7), CL_SLOT_WORD(CL_SLOT_WRITING, 300, 0, 5),
                                   CL_SLOT_WORD(CL_SLOT_PUBLISHED, 0, 0, CL_RING_SEQ_MAX - 1),
                                   CL_SLOT_WORD(CL_SLOT_PUBLISHED, 3, 3, 7)})[i]);
        atomic_store(&s->loans[1], i == 3 ? UINT64_MAX : 0);
        atomic_store(&s->loans[0], i == 2 ? 1 : 0); /* our own, although nothing is lent to us */
    }
    atomic_store(&r.spare[0], 0);
    for (uint32_t i = 0; i < 4; i++) {
        CHECK(claim(&r, 0, &slot) == CL_OK && !is_lent(&r, slot));
    }
    CHECK(claim(&r, 0, &slot) == CL_TIMEOUT);
    cl_ring_detach(&r);
    release(&store, &place);
}

static void in_one_thread(void)
{
    cl_ring r;
    cl_frame f, g, some[4];
    uint32_t slot, reader, blocking, n;
    cl_ring_head *h = make(4, CL_RING_MAY_BLOCK, 0);
    attach(&r, &store, h);
    CHECK(latest(&r, 0, 0, &f) == CL_TIMEOUT);
    for (uint64_t i = 1; i <= 10; i++) {
        CHECK(write_one(&r, i, 0) == CL_OK);
    }
    CHECK(latest(&r, 0, 0, &f) == CL_OK && f.seq == 10 && check_whole(&r, f.slot) == 10);
    CHECK(latest(&r, 10, 0, &g) == CL_TIMEOUT);
    CHECK(cl_ring_last(&r, 4, CL_MAY_WAIT, some, &n) == CL_OK && n == 4 && some[0].seq == 7 && some[3].seq == 10);
    CHECK(write_one(&r, 11, 0) == CL_TIMEOUT && atomic_load(&h->waits) == 1); /* all are lent */
    CHECK(cl_ring_return(&r, some[1].slot) == CL_OK && write_one(&r, 11, 0) == CL_OK); /* frame 8 was overwritten */
    CHECK(check_whole(&r, some[0].slot) == 7 && check_whole(&r, f.slot) == 10);
    for (int i = 0; i < 4; i++) {
        CHECK(i == 1 || cl_ring_return(&r, some[i].slot) == CL_OK);
    }
    CHECK(write_one(&r, 12, 0) == CL_OK && write_one(&r, 13, 0) == CL_OK && write_one(&r, 14, 0) == CL_OK);
    CHECK(check_whole(&r, f.slot) == 10 && cl_ring_return(&r, f.slot) == CL_OK && free_slots(&r) == 1);
    quiet(&r);
    /* a writer that gives up; the newest frame claimed again */
    CHECK(claim(&r, 0, &slot) == CL_OK && cl_ring_give_up(&r, slot) == CL_OK);
    CHECK(cl_ring_give_up(&r, slot) == CL_OK && free_slots(&r) == 1 && cl_ring_publish(&r, slot, &f) == CL_STALE);
    quiet(&r);
    /* a reader that drops and one that blocks */
    CHECK(cl_ring_subscribe(&r, CL_READER_DROPS, UINT64_MAX, CL_MAY_WAIT, &reader) == CL_OK);
    CHECK(next(&r, reader, 0, &f) == CL_TIMEOUT);
    for (uint64_t i = 15; i <= 24; i++) {
        CHECK(write_one(&r, i, 0) == CL_OK);
    }
    CHECK(next(&r, reader, 0, &f) == CL_OK && f.seq == 21 && f.missed == 6 && cl_ring_return(&r, f.slot) == CL_OK);
    CHECK(cl_ring_subscribe(&r, CL_READER_BLOCKS, UINT64_MAX, CL_MAY_WAIT, &blocking) == CL_OK);
    for (uint64_t i = 25; i <= 28; i++) {
        CHECK(write_one(&r, i, 0) == CL_OK);
    }
    CHECK(write_one(&r, 29, 0) == CL_TIMEOUT);
    CHECK(next(&r, blocking, 0, &f) == CL_OK && f.seq == 25 && f.missed == 0);
    CHECK(write_one(&r, 29, 0) == CL_TIMEOUT); /* it is lent to the reader */
    CHECK(cl_ring_return(&r, f.slot) == CL_OK && write_one(&r, 29, 0) == CL_OK && write_one(&r, 30, 0) == CL_TIMEOUT);
    r.block_timeout_ns = 1000000;
    CHECK(write_one(&r, 30, cl_monotonic_ns() + 2000000000) == CL_OK &&
          CL_READER_POLICY(atomic_load(&r.readers[blocking].policy)) == CL_READER_DEMOTED);
    CHECK(next(&r, blocking, 0, &f) == CL_OK && f.seq == 27 && f.missed == 1 && cl_ring_return(&r, f.slot) == CL_OK);
    CHECK(cl_ring_unsubscribe(&r, reader) == CL_OK && cl_ring_unsubscribe(&r, blocking) == CL_OK);
    cl_ring_shut(&r);
    CHECK(claim(&r, 0, &slot) == CL_CLOSED && latest(&r, 0, 0, &f) == CL_OK && cl_ring_return(&r, f.slot) == CL_OK);
    CHECK(latest(&r, 30, 0, &f) == CL_CLOSED);
    quiet(&r);
    cl_ring_detach(&r);
    release(&store, &place);
}

/* ---- threads */

#define FRAMES 3000u
static cl_ring_head *shared;
static cl_au32 read_in_all;

static void *produce(void *arg)
{
    cl_ring r;
    attach(&r, &store, shared);
    for (uint64_t i = 1; i <= FRAMES; i++) {
        CHECK(write_one(&r, (uint64_t)(uintptr_t)arg << 32 | i, CL_FOREVER) == CL_OK);
    }
    cl_ring_detach(&r);
    return NULL;
}

static void *follow(void *arg)
{
    cl_ring r;
    cl_frame f, g;
    uint32_t reader, taken = 0;
    uint64_t last = 0, of_each[2] = {0, 0}, missed = 0;
    uint32_t policy = arg == NULL ? CL_READER_DROPS : CL_READER_BLOCKS;
    int rc;
    attach(&r, &store, shared);
    CHECK(cl_ring_subscribe(&r, policy, 0, CL_MAY_WAIT, &reader) == CL_OK);
    while ((rc = next(&r, reader, CL_FOREVER, &f)) == CL_OK) {
        uint64_t value = check_whole(&r, f.slot);
        CHECK(f.seq == last + 1 + f.missed && (value & UINT32_MAX) > of_each[value >> 32]);
        last = f.seq;
        of_each[value >> 32] = value & UINT32_MAX;
        missed += f.missed;
        taken++;
        if (latest(&r, 0, 0, &g) == CL_OK) {
            check_whole(&r, g.slot);
            CHECK(cl_ring_return(&r, g.slot) == CL_OK);
        }
        CHECK(check_whole(&r, f.slot) == value && cl_ring_return(&r, f.slot) == CL_OK);
    }
    CHECK(rc == CL_CLOSED && taken + missed == 2 * FRAMES && (policy == CL_READER_DROPS || missed == 0));
    atomic_fetch_add(&read_in_all, taken);
    CHECK(cl_ring_unsubscribe(&r, reader) == CL_OK);
    cl_ring_detach(&r);
    return NULL;
}

static void in_threads(void)
{
    pthread_t threads[5];
    shared = make(6, CL_RING_MAY_BLOCK, 0);
    cl_ring r;
    attach(&r, &store, shared);
    for (uintptr_t i = 0; i < 3; i++) {
        CHECK(pthread_create(&threads[2 + i], NULL, follow, (void *)(i % 2)) == 0);
    }
    for (;;) { /* all readers have subscribed */
        uint32_t n = 0;
        struct timespec nap = {.tv_nsec = 1000000};
        CHECK(cl_ring_release_dead(&r, CL_MAY_WAIT) == CL_OK);
        for (uint32_t i = 0; i < r.room; i++) {
            n += CL_READER_POLICY(atomic_load(&r.readers[i].policy)) == CL_READER_BLOCKS ||
                 atomic_load(&r.readers[i].owner) != 0;
        }
        if (n == 3) {
            break;
        }
        nanosleep(&nap, NULL);
    }
    for (uintptr_t i = 0; i < 2; i++) {
        CHECK(pthread_create(&threads[i], NULL, produce, (void *)i) == 0);
    }
    pthread_join(threads[0], NULL);
    pthread_join(threads[1], NULL);
    cl_ring_shut(&r);
    for (int i = 2; i < 5; i++) {
        pthread_join(threads[i], NULL);
    }
    CHECK(atomic_load(&read_in_all) >= 2 * FRAMES);
    quiet(&r);
    cl_ring_detach(&r);
    release(&store, &place);
    audit(&store);
}

/* Threads of one member: their loans share one bit, their claims of one slot are told apart. There are three slots,
 * so that the threads collide. */
static cl_ring of_all;

static void *write_together(void *arg)
{
    uint32_t slot;
    cl_frame frame;
    for (uint64_t i = 1; i <= FRAMES; i++) {
        CHECK(claim(&of_all, CL_FOREVER, &slot) == CL_OK);
        fill(&of_all, slot, (uint64_t)(uintptr_t)arg << 32 | i);
        if (i % 7 == 0) {
            CHECK(cl_ring_give_up(&of_all, slot) == CL_OK);
        } else {
            CHECK(cl_ring_publish(&of_all, slot, &frame) == CL_OK);
        }
    }
    return NULL;
}

static void *read_together(void *arg)
{
    cl_frame f;
    uint64_t last = 0, value;
    int rc;
    (void)arg;
    while ((rc = latest(&of_all, last, CL_FOREVER, &f)) == CL_OK) {
        CHECK(f.seq > last);
        last = f.seq;
        value = check_whole(&of_all, f.slot);
        sched_yield();
        CHECK(check_whole(&of_all, f.slot) == value && cl_ring_return(&of_all, f.slot) == CL_OK);
    }
    CHECK(rc == CL_CLOSED);
    return NULL;
}

/* Two threads take turns at one subscription: each frame comes to one of them. */
static uint32_t common_reader;
static cl_au32 taken_together;

static void *follow_together(void *arg)
{
    cl_frame f;
    int rc;
    (void)arg;
    while ((rc = next(&of_all, common_reader, CL_FOREVER, &f)) == CL_OK) {
        check_whole(&of_all, f.slot);
        CHECK(f.missed == 0 && cl_ring_return(&of_all, f.slot) == CL_OK);
        atomic_fetch_add(&taken_together, 1);
    }
    CHECK(rc == CL_CLOSED);
    return NULL;
}

static void in_threads_of_one_member(void)
{
    pthread_t threads[6];
    cl_ring_head *h = make(5, CL_RING_MAY_BLOCK, 0);
    attach(&of_all, &store, h);
    for (int blocks = 0; blocks < 2; blocks++) {
        uint64_t before = atomic_load(&h->last);
        if (blocks) {
            atomic_store(&h->state, CL_RING_OPEN);
            CHECK(cl_ring_subscribe(&of_all, CL_READER_BLOCKS, UINT64_MAX, CL_MAY_WAIT, &common_reader) == CL_OK);
        }
        for (uintptr_t i = 0; i < 6; i++) {
            void *(*what)(void *) = i < 2 ? write_together : i < 4 ? read_together : follow_together;
            CHECK((i >= 4 && !blocks) || pthread_create(&threads[i], NULL, what, (void *)i) == 0);
        }
        pthread_join(threads[0], NULL);
        pthread_join(threads[1], NULL);
        cl_ring_shut(&of_all);
        for (int i = 2; i < (blocks ? 6 : 4); i++) {
            pthread_join(threads[i], NULL);
        }
        CHECK(atomic_load(&h->last) - before == 2 * (FRAMES - FRAMES / 7));
        CHECK(atomic_load(&taken_together) == (blocks ? atomic_load(&h->last) - before : 0));
        quiet(&of_all);
    }
    CHECK(cl_ring_unsubscribe(&of_all, common_reader) == CL_OK);
    cl_ring_detach(&of_all);
    release(&store, &place);
}

/* ---- kills */

#ifndef __SANITIZE_THREAD__
static struct notes {
    uint64_t published, publishing;
    cl_address ring;
    volatile int claimed;
} *notes;

static void victim(cl_ring *r, int kind)
{
    cl_frame f, some[3];
    uint32_t slot, reader, n;
    switch (kind) {
    case 0:
        for (uint64_t i = 1; i <= 6; i++) {
            notes->publishing = i;
            CHECK(write_one(r, 100 + i, 0) == CL_OK);
            notes->published = i;
        }
        CHECK(claim(r, 0, &slot) == CL_OK);
        fill(r, slot, 999);
        CL_KILL_POINT();
        CHECK(cl_ring_give_up(r, slot) == CL_OK);
        break;
    case 1:
        CHECK(latest(r, 0, 0, &f) == CL_OK && cl_ring_last(r, 3, CL_MAY_WAIT, some, &n) == CL_OK && n == 3);
        CL_KILL_POINT();
        for (uint32_t i = 0; i < 3; i++) {
            CHECK(cl_ring_return(r, some[i].slot) == CL_OK);
        }
        CHECK(cl_ring_return(r, f.slot) == CL_OK);
        break;
    default:
        CHECK(cl_ring_subscribe(r, CL_READER_BLOCKS, 0, CL_MAY_WAIT, &reader) == CL_OK);
        while (next(r, reader, 0, &f) == CL_OK) {
            CL_KILL_POINT();
            CHECK(cl_ring_return(r, f.slot) == CL_OK);
        }
        CHECK(cl_ring_unsubscribe(r, reader) == CL_OK);
        cl_ring_shut(r);
    }
}

/* All the ring's tables agree with its slots, and no dead member has a slot. */
static void consistent(const cl_ring *r)
{
    uint64_t last = atomic_load(&r->head->last);
    for (uint32_t i = 0; i < r->slots; i++) {
        uint64_t w = word_of(r, i), s = CL_SLOT_SEQ(w);
        unsigned state = CL_SLOT_STATE(w);
        uint32_t m = CL_SLOT_MEMBER(w);
        CHECK((state != CL_SLOT_WRITING && state != CL_SLOT_CLAIMED) ||
              (m < r->room && !cl_is_dead(r->store, atomic_load(&r->members[m]))));
        CHECK(s <= last);
        CHECK(state != CL_SLOT_PUBLISHED || s + r->slots <= last ||
              atomic_load(&r->index[s % r->slots]) == CL_INDEX_ENTRY(s, i));
        for (uint32_t k = 0; k < r->room; k++) {
            CHECK(!(atomic_load(&cl_ring_slot(r, i)->loans[k / 64]) >> (k % 64) & 1) ||
                  atomic_load(&r->members[k]) != 0);
        }
    }
    for (uint32_t m = 0; m < r->room; m++) {
        uint32_t who = atomic_load(&r->members[m]), reads = atomic_load(&r->readers[m].owner);
        CHECK((who == 0 || !cl_is_dead(r->store, who)) && (reads == 0 || !cl_is_dead(r->store, reads)));
    }
}

static cl_ring_head *in_child(cl_store *own, cl_ring *theirs)
{
    cl_block_ref there;
    open_store(own, 5);
    CHECK(cl_load(own, &notes->ring, CL_MAY_WAIT, &there) == CL_OK);
    attach(theirs, own, (cl_ring_head *)(void *)there.data);
    return theirs->head;
}

static void note_the_ring(void)
{
    memset(notes, 0, sizeof *notes);
    notes->ring = (cl_address){
        .segment_id = place.segment_id, .generation = place.generation, .segment = place.segment, .index = place.index};
}

static void kill_everywhere(int kind)
{
    long n = 1;
    for (;; n++) {
        cl_ring_head *h = make(4, CL_RING_MAY_BLOCK, 0);
        cl_ring r;
        cl_frame f, some[4];
        uint32_t reader, have;
        attach(&r, &store, h);
        CHECK(cl_ring_subscribe(&r, CL_READER_DROPS, 0, CL_MAY_WAIT, &reader) == CL_OK);
        for (uint64_t i = 1; i <= 4; i++) {
            CHECK(write_one(&r, i, 0) == CL_OK);
        }
        CHECK(latest(&r, 0, 0, &f) == CL_OK && f.seq == 4); /* our frame, whichever process dies */
        note_the_ring();
        pid_t child = fork();
        if (child == 0) {
            static cl_store own;
            cl_ring theirs;
            in_child(&own, &theirs);
            cl_kill_at = cl_kill_passed + n;
            victim(&theirs, kind);
            cl_ring_detach(&theirs);
            cl_kill_at = 0;
            _exit(0);
        }
        int well = ended(child);
        CHECK(check_whole(&r, f.slot) == 4);
        if (atomic_load(&h->state) != CL_RING_OPEN) {
            atomic_store(&h->state, CL_RING_OPEN);
        }
        /* a writer finds a slot for each frame, as if the dead process had never existed; it looks for it only when
         * slots are short */
        if (n % 2 == 0) {
            CHECK(cl_ring_release_dead(&r, CL_MAY_WAIT) == CL_OK);
            consistent(&r);
        }
        for (uint64_t i = 0; i < 6; i++) {
            CHECK(write_one(&r, 200 + i, cl_monotonic_ns() + 5000000000) == CL_OK);
        }
        CHECK(cl_ring_last(&r, 4, CL_MAY_WAIT, some, &have) == CL_OK);
        CHECK(have == 3 || (have != 0 && n % 2)); /* the fourth slot is lent to us */
        for (uint32_t i = 0; i < have; i++) {
            CHECK(check_whole(&r, some[i].slot) == 206 - have + i && cl_ring_return(&r, some[i].slot) == CL_OK);
        }
        CHECK(atomic_load(&h->last) >= 4 + 6 + notes->published && atomic_load(&h->last) <= 4 + 6 + notes->publishing);
        CHECK(check_whole(&r, f.slot) == 4 && cl_ring_return(&r, f.slot) == CL_OK);
        CHECK(cl_ring_release_dead(&r, CL_MAY_WAIT) == CL_OK);
        quiet(&r);
        for (uint32_t i = 0; i < r.room; i++) {
            CHECK(atomic_load(&r.members[i]) == 0 || i == r.member);
        }
        while (next(&r, reader, 0, &f) == CL_OK) {
            uint64_t value = check_whole(&r, f.slot);
            CHECK(value < 5 || (value > 100 && value < 107) || (value >= 200 && value < 206));
            CHECK(cl_ring_return(&r, f.slot) == CL_OK);
        }
        CHECK(cl_ring_unsubscribe(&r, reader) == CL_OK);
        cl_ring_detach(&r);
        release(&store, &place);
        CHECK(cl_reap(&store, CL_MAY_WAIT, NULL) == CL_OK);
        audit(&store);
        if (well) {
            break;
        }
    }
    CHECK(n > 5);
}

/* All operations of a member, without waiting. `blocked`: a reader may block writers. */
static void use_at_once(cl_ring *r, uint64_t value, int blocked)
{
    cl_frame f, some[3];
    uint32_t reader, n = 0, written = 0;
    CHECK(cl_ring_subscribe(r, CL_READER_DROPS, UINT64_MAX, 0, &reader) == CL_OK);
    for (uint64_t i = 0; i < 3; i++) {
        uint32_t slot;
        int rc = claim(r, 0, &slot); /* a deadline of 0: a call that waited would get CL_TIMEOUT */
        CHECK(rc == CL_OK || (blocked && rc == CL_TIMEOUT));
        if (rc == CL_OK) {
            fill(r, slot, value + i);
            CHECK(cl_ring_publish(r, slot, &f) == CL_OK);
            written++;
            CHECK(latest(r, 0, 0, &f) == CL_OK && f.slot == slot && check_whole(r, slot) == value + i);
            CHECK(cl_ring_return(r, slot) == CL_OK);
        }
        CHECK(claim(r, 0, &slot) != CL_OK || cl_ring_give_up(r, slot) == CL_OK);
    }
    CHECK(cl_ring_last(r, 3, 0, some, &n) == CL_OK && n == 3);
    for (uint32_t i = 0; i < n; i++) {
        CHECK(i == 0 || some[i].seq > some[i - 1].seq);
        check_whole(r, some[i].slot);
        CHECK(cl_ring_return(r, some[i].slot) == CL_OK);
    }
    for (uint64_t i = 0; i < written; i++) {
        CHECK(next(r, reader, 0, &f) == CL_OK);
        check_whole(r, f.slot);
        CHECK(cl_ring_return(r, f.slot) == CL_OK);
    }
    CHECK(cl_ring_unsubscribe(r, reader) == CL_OK);
}

/* A process is stopped at each step of each operation. Meanwhile we, who joined before, and a new process write,
 * read and subscribe, each with a deadline of 0: a call that waits for the stopped process would miss it. Then that
 * process continues, and must find everything consistent. */
static void stop_everywhere(int kind)
{
    long n = 1;
    for (int well = 0; !well; n++) {
        int status;
        cl_ring r;
        cl_frame f;
        uint32_t reader, found = 0;
        cl_ring_head *h = make(10, CL_RING_MAY_BLOCK, 0);
        attach(&r, &store, h);
        CHECK(cl_ring_subscribe(&r, CL_READER_DROPS, 0, CL_MAY_WAIT, &reader) == CL_OK);
        for (uint64_t i = 1; i <= 4; i++) {
            CHECK(write_one(&r, i, 0) == CL_OK);
        }
        note_the_ring();
        pid_t child = fork();
        if (child == 0) {
            static cl_store own;
            cl_ring theirs;
            in_child(&own, &theirs);
            cl_kill_signal = SIGSTOP;
            cl_kill_at = cl_kill_passed + n;
            victim(&theirs, kind);
            cl_ring_detach(&theirs);
            cl_kill_at = 0;
            _exit(0);
        }
        CHECK(waitpid(child, &status, WUNTRACED) == child);
        well = !WIFSTOPPED(status);
        CHECK(!well || (WIFEXITED(status) && WEXITSTATUS(status) == 0));
        atomic_store(&h->state, CL_RING_OPEN);
        use_at_once(&r, 200, kind == 2);
        pid_t newcomer = fork();
        if (newcomer == 0) {
            static cl_store own;
            cl_ring theirs;
            in_child(&own, &theirs);
            use_at_once(&theirs, 300, kind == 2);
            cl_ring_detach(&theirs);
            CHECK(cl_store_leave(&own) >= 0);
            _exit(0);
        }
        CHECK(ended(newcomer)); /* the other process is still stopped: only we continue it */
        if (!well) {
            CHECK(kill(child, SIGCONT) == 0 && ended(child));
        }
        for (uint64_t at = 0; next(&r, reader, 0, &f) == CL_OK; at = f.seq) { /* each frame once, whole and in order */
            uint64_t value = check_whole(&r, f.slot);
            CHECK(f.seq == at + 1 + f.missed);
            CHECK(value < 5 || (value > 100 && value < 107) || (value >= 200 && value < 203) ||
                  (value >= 300 && value < 303));
            found++;
            CHECK(cl_ring_return(&r, f.slot) == CL_OK);
        }
        CHECK(found >= 4); /* of ten slots four were lent at most, and each claim took the oldest frame only */
        CHECK(cl_ring_release_dead(&r, CL_MAY_WAIT) == CL_OK);
        consistent(&r);
        quiet(&r);
        CHECK(cl_ring_unsubscribe(&r, reader) == CL_OK);
        cl_ring_detach(&r);
        release(&store, &place);
        CHECK(cl_reap(&store, CL_MAY_WAIT, NULL) == CL_OK);
        audit(&store);
    }
    CHECK(n > 15);
}

enum { LENDS_ALL, CLAIMS_ALL, WRITES_MANY, READS_ALL, SCENES };

/* A process writes a frame, or subscribes, and is stopped at each step. Meanwhile we do something that conflicts
 * with it, and keep it until that process has continued and finished. */
static void meet_everywhere(int scene, int subscribes, int one_free)
{
    long n = 1;
    for (int well = 0; !well; n++) {
        enum { MEET = 4 };
        int status;
        cl_ring r;
        cl_frame f, some[MEET];
        uint32_t slots[MEET], have = 0, claimed = 0, reader = 0, given_up;
        uint64_t values[MEET];
        cl_ring_head *h = make(MEET, CL_RING_MAY_BLOCK, 0);
        attach(&r, &store, h);
        for (uint64_t i = 1; i <= 6; i++) {
            CHECK(write_one(&r, i, 0) == CL_OK);
        }
        if (one_free) { /* a slot that is free, besides those that have frames */
            CHECK(claim(&r, 0, &given_up) == CL_OK && write_one(&r, 7, 0) == CL_OK); /* it has left the index */
            CHECK(cl_ring_give_up(&r, given_up) == CL_OK);
        }
        note_the_ring();
        pid_t child = fork();
        if (child == 0) {
            static cl_store own;
            cl_ring theirs;
            in_child(&own, &theirs);
            CHECK(latest(&theirs, 0, 0, &f) == CL_OK && cl_ring_return(&theirs, f.slot) == CL_OK);
            cl_kill_signal = SIGSTOP;
            cl_kill_at = cl_kill_passed + n;
            if (subscribes) {
                CHECK(cl_ring_subscribe(&theirs, CL_READER_BLOCKS, UINT64_MAX, 0, &reader) == CL_OK);
                while (next(&theirs, reader, 0, &f) == CL_OK) {
                    CHECK(f.missed == 0 && cl_ring_return(&theirs, f.slot) == CL_OK);
                }
                CHECK(cl_ring_unsubscribe(&theirs, reader) == CL_OK);
            } else {
                int rc = write_one(&theirs, 100, 0);
                CHECK(rc == CL_OK || rc == CL_TIMEOUT);
            }
            cl_kill_at = 0;
            _exit(0);
        }
        CHECK(waitpid(child, &status, WUNTRACED) == child);
        well = !WIFSTOPPED(status);
        CHECK(!well || (WIFEXITED(status) && WEXITSTATUS(status) == 0));
        uint32_t there = 0, writing = 0;
        switch (scene) {
        case READS_ALL:
        case LENDS_ALL: /* every frame that is not being overwritten is there, also a claimed one */
            CHECK(cl_ring_last(&r, MEET, 0, some, &have) == CL_OK);
            for (uint32_t i = 0; i < MEET; i++) {
                uint64_t w = word_of(&r, i);
                there += (CL_SLOT_STATE(w) == CL_SLOT_PUBLISHED || CL_SLOT_STATE(w) == CL_SLOT_CLAIMED) &&
                         CL_SLOT_SEQ(w) + MEET > atomic_load(&h->last);
            }
            CHECK(have == there && have >= 2);
            for (uint32_t i = 0; i < have; i++) {
                values[i] = check_whole(&r, some[i].slot);
                CHECK(scene == LENDS_ALL || cl_ring_return(&r, some[i].slot) == CL_OK);
            }
            break;
        case CLAIMS_ALL: /* every slot that it is not writing can be claimed */
            while (claimed < MEET && claim(&r, 0, &slots[claimed]) == CL_OK) {
                fill(&r, slots[claimed], 50 + claimed);
                claimed++;
            }
            for (uint32_t i = 0; i < MEET; i++) {
                writing += CL_SLOT_STATE(word_of(&r, i)) == CL_SLOT_WRITING;
            }
            CHECK(writing == MEET && claimed >= MEET - 1);
            break;
        default: /* as many as it permits, if it blocks */
            for (uint64_t i = 0; i < 2 * MEET; i++) {
                int rc = write_one(&r, 200 + i, 0);
                CHECK(rc == CL_OK || (subscribes && rc == CL_TIMEOUT));
            }
        }
        if (!well) {
            CHECK(kill(child, SIGCONT) == 0 && ended(child));
        }
        for (uint32_t i = 0; i < have && scene == LENDS_ALL; i++) {
            CHECK(check_whole(&r, some[i].slot) == values[i] && cl_ring_return(&r, some[i].slot) == CL_OK);
        }
        for (uint32_t i = 0; i < claimed; i++) {
            CHECK(check_whole(&r, slots[i]) == 50 + i && cl_ring_publish(&r, slots[i], &f) == CL_OK);
        }
        CHECK(cl_ring_release_dead(&r, CL_MAY_WAIT) == CL_OK);
        consistent(&r);
        quiet(&r);
        for (uint64_t i = 0; i < MEET; i++) {
            CHECK(write_one(&r, 300 + i, 0) == CL_OK);
        }
        cl_ring_detach(&r);
        release(&store, &place);
        CHECK(cl_reap(&store, CL_MAY_WAIT, NULL) == CL_OK);
    }
    CHECK(n > 5);
}

/* Two processes, each stopped at each step. The first continues first, so the step of the other happens in between. */
static pid_t stopped_at(long n, int writes, uint64_t value, int *status)
{
    pid_t child = fork();
    if (child == 0) {
        static cl_store own;
        cl_ring theirs;
        cl_frame f;
        in_child(&own, &theirs);
        CHECK(latest(&theirs, 0, 0, &f) == CL_OK && cl_ring_return(&theirs, f.slot) == CL_OK);
        cl_kill_signal = SIGSTOP;
        cl_kill_at = cl_kill_passed + n;
        if (writes) {
            CHECK(write_one(&theirs, value, 0) == CL_OK);
        } else {
            CHECK(latest(&theirs, 0, 0, &f) == CL_OK);
            check_whole(&theirs, f.slot);
            CHECK(cl_ring_return(&theirs, f.slot) == CL_OK);
        }
        cl_kill_at = 0;
        _exit(0);
    }
    CHECK(waitpid(child, status, WUNTRACED) == child);
    return child;
}

static void two_meet(int first_writes, int helped)
{
    for (long n = 1, end = 0; !end; n++) {
        for (long k = 1, over = 0; !over; k++) {
            int status, other;
            cl_ring r;
            cl_frame f, some[5];
            uint32_t have;
            cl_ring_head *h = make(5, 0, 0);
            attach(&r, &store, h);
            for (uint64_t i = 1; i <= 6; i++) {
                CHECK(write_one(&r, i, 0) == CL_OK);
            }
            note_the_ring();
            pid_t a = stopped_at(n, first_writes, 100, &status), b = stopped_at(k, 1, 101, &other);
            end = !WIFSTOPPED(status);
            over = !WIFSTOPPED(other);
            if (helped) {
                CHECK(write_one(&r, 102, 0) == CL_OK && latest(&r, 0, 0, &f) == CL_OK);
                CHECK(cl_ring_return(&r, f.slot) == CL_OK);
            }
            CHECK(end || (kill(a, SIGCONT) == 0 && ended(a)));
            CHECK(over || (kill(b, SIGCONT) == 0 && ended(b)));
            CHECK(cl_ring_last(&r, 5, 0, some, &have) == CL_OK && have >= 2);
            uint32_t found = 0;
            for (uint32_t i = 0; i < have; i++) {
                uint64_t value = check_whole(&r, some[i].slot);
                CHECK(i == 0 || some[i].seq > some[i - 1].seq);
                found |= value >= 100 ? 1u << (value - 100) : 0;
                CHECK(cl_ring_return(&r, some[i].slot) == CL_OK);
            }
            CHECK(found == (uint32_t)(first_writes + 2 + 4 * helped));
            CHECK(atomic_load(&h->last) == (uint64_t)(7 + first_writes + helped));
            CHECK(cl_ring_release_dead(&r, CL_MAY_WAIT) == CL_OK);
            consistent(&r);
            quiet(&r);
            cl_ring_detach(&r);
            release(&store, &place);
        }
        CHECK(cl_reap(&store, CL_MAY_WAIT, NULL) == CL_OK);
    }
}

/* One process read a hint and the last number, and is stopped. Another found a frame that had to be finished, and is
 * stopped. Meanwhile that frame is finished, the ring wraps, and its slot is given up. The first takes that slot,
 * and the other must not publish it. */
static void number_never_smaller(void)
{
    for (long n = 1; n <= 6; n++) {
        for (long k = 1; k <= 6; k++) {
            int status;
            uint32_t x, slot;
            cl_ring r;
            cl_frame f;
            cl_ring_head *h = make(5, 0, 0);
            attach(&r, &store, h);
            for (uint64_t i = 1; i <= 4; i++) {
                CHECK(write_one(&r, i, 0) == CL_OK);
            }
            CHECK(claim(&r, 0, &x) == CL_OK);
            fill(&r, x, 5);
            atomic_fetch_or(&r.spare[0], (uint64_t)1 << x); /* a hint that came late */
            note_the_ring();
            notes->claimed = 0;
            pid_t both[2];
            for (int who = 0; who < 2; who++) {
                both[who] = fork();
                if (both[who] == 0) {
                    static cl_store own;
                    cl_ring theirs;
                    in_child(&own, &theirs);
                    CHECK(latest(&theirs, 0, 0, &f) == CL_OK && cl_ring_return(&theirs, f.slot) == CL_OK);
                    cl_kill_signal = SIGSTOP;
                    if (who == 0) {
                        cl_kill_at = cl_kill_passed + n;
                        CHECK(claim(&theirs, CL_FOREVER, &slot) == CL_OK);
                        cl_kill_at = 0;
                        notes->claimed = 1;
                        raise(SIGSTOP);
                        fill(&theirs, slot, 100);
                        CHECK(cl_ring_publish(&theirs, slot, &f) == CL_OK);
                    } else {
                        raise(SIGSTOP);
                        cl_kill_at = cl_kill_passed + k;
                        CHECK(latest(&theirs, 0, 0, &f) == CL_OK);
                        check_whole(&theirs, f.slot);
                        CHECK(cl_ring_return(&theirs, f.slot) == CL_OK);
                    }
                    cl_kill_at = 0;
                    _exit(0);
                }
                CHECK(waitpid(both[who], &status, WUNTRACED) == both[who] && WIFSTOPPED(status));
            }
            atomic_store(&r.index[5 % 5], CL_INDEX_ENTRY(5, x)); /* published; the next process finishes it */
            CHECK(kill(both[1], SIGCONT) == 0 && waitpid(both[1], &status, WUNTRACED) == both[1]);
            int over = !WIFSTOPPED(status);
            for (uint64_t i = 6; i < 11 && claim(&r, 0, &slot) == CL_OK; i++) {
                fill(&r, slot, i);
                if (slot == x) {
                    CHECK(cl_ring_give_up(&r, slot) == CL_OK);
                    break;
                }
                CHECK(cl_ring_publish(&r, slot, &f) == CL_OK);
            }
            if (!notes->claimed) {
                CHECK(kill(both[0], SIGCONT) == 0 && waitpid(both[0], &status, WUNTRACED) == both[0]);
                CHECK(WIFSTOPPED(status) && notes->claimed);
            }
            CHECK(over || (kill(both[1], SIGCONT) == 0 && ended(both[1])));
            CHECK(kill(both[0], SIGCONT) == 0 && ended(both[0]));
            CHECK(latest(&r, 0, 0, &f) == CL_OK && check_whole(&r, f.slot) == 100);
            CHECK(cl_ring_return(&r, f.slot) == CL_OK && cl_ring_release_dead(&r, CL_MAY_WAIT) == CL_OK);
            consistent(&r);
            quiet(&r);
            cl_ring_detach(&r);
            release(&store, &place);
        }
        CHECK(cl_reap(&store, CL_MAY_WAIT, NULL) == CL_OK);
    }
}

/* The stops of a process that runs step by step: at each kill point. */
static void stop_again(int signal)
{
    (void)signal;
    raise(SIGSTOP);
    cl_kill_at = cl_kill_passed + 1;
}

/* A process checks for damage, step by step. Between two of its steps a member that writes gives up and leaves;
 * between two more a new member gets its place and writes to the same slot: that slot belongs to the new member. */
static void place_taken_again(void)
{
    for (long n = 1, end = 0; !end; n++) {
        for (long k = 1; k <= 3; k++) {
            int status;
            uint32_t slot;
            cl_ring r;
            cl_frame f;
            pid_t looks, leaves, comes = 0;
            cl_ring_head *h = make(2, 0, 0);
            attach(&r, &store, h);
            CHECK(claim(&r, 0, &slot) == CL_OK);
            note_the_ring();
            for (int who = 0; who < 2; who++) { /* the one that leaves; the one that checks */
                pid_t child = fork();
                if (child == 0) {
                    static cl_store own;
                    cl_ring theirs;
                    in_child(&own, &theirs);
                    if (who == 0) {
                        CHECK(claim(&theirs, 0, &slot) == CL_OK);
                        raise(SIGSTOP);
                        CHECK(cl_ring_give_up(&theirs, slot) == CL_OK);
                        cl_ring_detach(&theirs);
                        _exit(0);
                    }
                    signal(SIGUSR1, stop_again);
                    cl_kill_signal = SIGUSR1;
                    cl_kill_at = cl_kill_passed + 1;
                    int rc = claim(&theirs, 0, &slot);
                    cl_kill_at = 0;
                    CHECK(rc == CL_OK || rc == CL_TIMEOUT);
                    if (rc == CL_OK) {
                        fill(&theirs, slot, 7);
                        raise(SIGSTOP);
                        CHECK(cl_ring_publish(&theirs, slot, &f) == CL_OK);
                    }
                    _exit(0);
                }
                CHECK(waitpid(child, &status, WUNTRACED) == child && WIFSTOPPED(status));
                *(who == 0 ? &leaves : &looks) = child;
            }
            for (long step = 1; WIFSTOPPED(status); step++) {
                if (step == n) {
                    CHECK(kill(leaves, SIGCONT) == 0 && ended(leaves));
                    leaves = 0;
                }
                if (step == n + k) {
                    comes = fork();
                    if (comes == 0) {
                        static cl_store own;
                        cl_ring theirs;
                        in_child(&own, &theirs);
                        notes->claimed = claim(&theirs, 0, &slot) == CL_OK;
                        if (notes->claimed) {
                            raise(SIGSTOP);
                            CHECK(cl_ring_publish(&theirs, slot, &f) == CL_OK);
                        }
                        _exit(0);
                    }
                    int other;
                    CHECK(waitpid(comes, &other, WUNTRACED) == comes);
                    comes = WIFSTOPPED(other) ? comes : 0;
                }
                CHECK(kill(looks, SIGCONT) == 0 && waitpid(looks, &status, WUNTRACED) == looks);
            }
            CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
            CHECK(comes == 0 || (kill(comes, SIGCONT) == 0 && ended(comes)));
            end = leaves != 0;
            CHECK(leaves == 0 || (kill(leaves, SIGCONT) == 0 && ended(leaves)));
            CHECK(cl_ring_give_up(&r, slot) == CL_OK && cl_ring_release_dead(&r, CL_MAY_WAIT) == CL_OK);
            consistent(&r);
            quiet(&r);
            cl_ring_detach(&r);
            release(&store, &place);
        }
        CHECK(cl_reap(&store, CL_MAY_WAIT, NULL) == CL_OK);
    }
}

/* A process is stopped while it releases a dead member: no other process releases that member, and none waits. */
static void releaser_stopped(void)
{
    for (long n = 1;; n++) {
        cl_ring_head *h = make(6, 0, 0);
        cl_ring r;
        int status = 0;
        attach(&r, &store, h);
        CHECK(write_one(&r, 1, 0) == CL_OK);
        pid_t child = 0;
        for (int who = 0; who < 2; who++) {
            child = fork();
            if (child == 0) {
                static cl_store own;
                cl_ring theirs;
                cl_frame f;
                uint32_t slot;
                open_store(&own, 5);
                attach(&theirs, &own, h);
                if (who == 0) {
                    CHECK(claim(&theirs, 0, &slot) == CL_OK && latest(&theirs, 0, 0, &f) == CL_OK);
                    _exit(0);
                }
                cl_kill_signal = SIGSTOP;
                cl_kill_at = cl_kill_passed + n;
                CHECK(cl_ring_release_dead(&theirs, CL_MAY_WAIT) == CL_OK);
                cl_kill_at = 0;
                _exit(0);
            }
            CHECK(waitpid(child, &status, WUNTRACED) == child);
        }
        use_at_once(&r, 200, 0);
        if (!WIFSTOPPED(status)) {
            cl_ring_detach(&r);
            release(&store, &place);
            CHECK(n > 6);
            return;
        }
        int rc = cl_ring_release_dead(&r, 0);
        CHECK(rc == CL_OK || rc == CL_AGAIN);
        CHECK(kill(child, SIGCONT) == 0 && ended(child));
        CHECK(cl_ring_release_dead(&r, CL_MAY_WAIT) == CL_OK);
        consistent(&r);
        quiet(&r);
        cl_ring_detach(&r);
        release(&store, &place);
    }
}

/* A process that is no member dies while it releases a dead member: then no member needs a release, and all must be
 * counted. */
static void releaser_dies(void)
{
    for (long n = 1;; n++) {
        cl_ring_head *h = make(4, 0, 0);
        cl_ring r;
        cl_frame f;
        attach(&r, &store, h);
        CHECK(write_one(&r, 1, 0) == CL_OK && write_one(&r, 2, 0) == CL_OK);
        int well = 0;
        for (int who = 0; who < 2; who++) {
            pid_t child = fork();
            if (child == 0) {
                static cl_store own;
                cl_ring theirs;
                uint32_t slot;
                open_store(&own, 5);
                attach(&theirs, &own, h);
                if (who == 0) {
                    CHECK(claim(&theirs, 0, &slot) == CL_OK && claim(&theirs, 0, &slot) == CL_OK);
                    _exit(0);
                }
                cl_kill_at = cl_kill_passed + n;
                CHECK(cl_ring_release_dead(&theirs, CL_MAY_WAIT) == CL_OK);
                cl_kill_at = 0;
                _exit(0);
            }
            well = ended(child);
        }
        CHECK(latest(&r, 0, 0, &f) == CL_OK && f.seq == 2 && cl_ring_return(&r, f.slot) == CL_OK);
        CHECK(cl_ring_release_dead(&r, CL_MAY_WAIT) == CL_OK);
        consistent(&r);
        quiet(&r);
        cl_ring_detach(&r);
        release(&store, &place);
        if (well) {
            CHECK(n > 4);
            break;
        }
    }
}
#endif

int main(void)
{
    open_store(&store, 1);
    in_one_thread();
    newest_given_back();
    damage();
    in_threads();
    in_threads_of_one_member();
#ifndef __SANITIZE_THREAD__
    notes = mmap(NULL, sizeof *notes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(notes != MAP_FAILED);
    number_never_smaller();
    place_taken_again();
    for (int kind = 0; kind < 3; kind++) {
        kill_everywhere(kind);
        stop_everywhere(kind);
    }
    for (int scene = 0; scene < SCENES; scene++) {
        for (int one_free = 0; one_free < 2; one_free++) {
            meet_everywhere(scene, 0, one_free);
            meet_everywhere(scene, 1, one_free);
        }
    }
    for (int helped = 0; helped < 2; helped++) {
        two_meet(0, helped);
        two_meet(1, helped);
    }
    releaser_stopped();
    releaser_dies();
#endif
    CHECK(cl_store_leave(&store) >= 0);
    remove_directory();
    puts("ring: ok");
    return 0;
}
