/* The ring of frames: no torn frame under many threads (also under TSan), who waits for whom, and death at every step:
 * no slot and no loan is left, no half-written frame is seen. */
#include "check.h"
#include "ring.h"

#include <pthread.h>
#include <sys/mman.h>

#define STRIDE 1024u
static cl_store store;
static cl_block_ref place;

static cl_ring_head *make(uint32_t slots, uint64_t flags, int64_t block_timeout_ns)
{
    uint64_t n = cl_ring_bytes(slots, STRIDE, 5);
    CHECK(cl_alloc(&store, n, CL_MAY_WAIT, &place) == CL_OK);
    cl_ring_head *h = (cl_ring_head *)(void *)place.data;
    memset(h, 0, n);
    h->head.magic = CL_OBJECT_MAGIC;
    h->head.kind = CL_KIND_RING;
    h->head.flags = flags;
    cl_ring_begin(h, slots, STRIDE, 5);
    h->head.spare[3] = (uint64_t)block_timeout_ns;
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
        CHECK(cl_ring_publish(r, slot, CL_MAY_WAIT, &frame) == CL_OK && frame.slot == slot);
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

/* Counts agree with the slots; nothing is on loan or being written. */
static void quiet(cl_ring_head *h)
{
    uint32_t nfree = 0;
    for (uint32_t i = 0; i < h->head.number; i++) {
        const cl_slot *s = &h->slots[i];
        nfree += s->state == CL_SLOT_FREE;
        CHECK(s->state != CL_SLOT_WRITING);
        CHECK((s->loans[0] | s->loans[1] | s->loans[2] | s->loans[3]) == 0);
        CHECK(s->state != CL_SLOT_PUBLISHED || s->seq + h->head.number > h->last);
    }
    CHECK(nfree == h->nfree);
}

/* The newest frame is on loan while newer ones are written over: given back, it is nobody's, and is not lent again. */
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
    CHECK(cl_ring_return(&r, f.slot) == CL_OK && h->newest == 0 && h->slots[f.slot].state == CL_SLOT_FREE);
    CHECK(latest(&r, 0, 0, &g) == CL_TIMEOUT && cl_ring_publish(&r, slot, CL_MAY_WAIT, &f) == CL_OK && f.seq == 5);
    CHECK(latest(&r, 0, 0, &g) == CL_OK && g.seq == 5 && cl_ring_return(&r, g.slot) == CL_OK);
    cl_ring_detach(&r);
    release(&store, &place);
}

/* Wild words: out of bounds is CL_CORRUPT, and what describes the ring is not read again. */
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
    for (uint32_t k = 0; k < 4; k++) {
        h->newest = ((uint32_t[]){5, 1u << 30, UINT32_MAX, 1u << 31})[k];
        CHECK(latest(&r, 0, 0, &f) == CL_CORRUPT);
    }
    h->last = UINT64_MAX;
    CHECK(latest(&r, 0, 0, &f) == CL_CORRUPT && next(&r, reader, 0, &f) == CL_CORRUPT);
    CHECK(cl_ring_last(&r, 4, CL_MAY_WAIT, some, &n) == CL_CORRUPT && claim(&r, 0, &slot) == CL_CORRUPT);
    h->last = 7;
    uint32_t at[4];
    memcpy(at, r.by_seq, sizeof at);
    for (uint32_t k = 0; k < 4; k++) { /* a frame that is nowhere is one that has been written over */
        for (uint32_t i = 0; i < 4; i++) {
            r.by_seq[i] = ((uint32_t[]){4, 1u << 30, UINT32_MAX, 1u << 31})[k];
        }
        CHECK(cl_ring_last(&r, 4, CL_MAY_WAIT, some, &n) == CL_OK && n == 0 && next(&r, reader, 0, &f) == CL_TIMEOUT);
    }
    memcpy(r.by_seq, at, sizeof at);
    h->readers[reader].cursor = 8;
    CHECK(next(&r, reader, 0, &f) == CL_CORRUPT);
    /* slots that wild words took out of use come back when there is no other */
    for (uint32_t i = 0; i < 4; i++) {
        h->slots[i].state = i == 0 ? 77 : i == 1 ? CL_SLOT_WRITING : CL_SLOT_PUBLISHED;
        h->slots[i].writer = 300;
        h->slots[i].seq = i == 2 ? UINT64_MAX : 7;
        h->slots[i].loans[3] = i == 3 ? UINT64_MAX : 0;
    }
    h->nfree = 0;
    for (uint32_t i = 0; i < 4; i++) {
        CHECK(claim(&r, 0, &slot) == CL_OK);
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
    CHECK(write_one(&r, 11, 0) == CL_TIMEOUT && h->waits == 1); /* all are on loan */
    CHECK(cl_ring_return(&r, some[1].slot) == CL_OK && write_one(&r, 11, 0) == CL_OK); /* 8 went */
    CHECK(check_whole(&r, some[0].slot) == 7 && check_whole(&r, f.slot) == 10);
    for (int i = 0; i < 4; i++) {
        CHECK(i == 1 || cl_ring_return(&r, some[i].slot) == CL_OK);
    }
    CHECK(write_one(&r, 12, 0) == CL_OK && write_one(&r, 13, 0) == CL_OK && write_one(&r, 14, 0) == CL_OK);
    CHECK(check_whole(&r, f.slot) == 10 && cl_ring_return(&r, f.slot) == CL_OK && h->nfree == 1);
    quiet(h);
    /* one who gives up; the newest claimed again */
    CHECK(claim(&r, 0, &slot) == CL_OK && cl_ring_give_up(&r, slot) == CL_OK);
    CHECK(cl_ring_give_up(&r, slot) == CL_OK && h->nfree == 1 &&
          cl_ring_publish(&r, slot, CL_MAY_WAIT, &f) == CL_STALE);
    quiet(h);
    /* who drops and who blocks */
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
    CHECK(write_one(&r, 29, 0) == CL_TIMEOUT); /* it has it on loan */
    CHECK(cl_ring_return(&r, f.slot) == CL_OK && write_one(&r, 29, 0) == CL_OK && write_one(&r, 30, 0) == CL_TIMEOUT);
    r.block_timeout_ns = 1000000;
    CHECK(write_one(&r, 30, cl_monotonic_ns() + 2000000000) == CL_OK && h->readers[blocking].demoted);
    CHECK(next(&r, blocking, 0, &f) == CL_OK && f.seq == 27 && f.missed == 1 && cl_ring_return(&r, f.slot) == CL_OK);
    CHECK(cl_ring_unsubscribe(&r, reader) == CL_OK && cl_ring_unsubscribe(&r, blocking) == CL_OK);
    cl_ring_shut(&r);
    CHECK(claim(&r, 0, &slot) == CL_CLOSED && latest(&r, 0, 0, &f) == CL_OK && cl_ring_return(&r, f.slot) == CL_OK);
    CHECK(latest(&r, 30, 0, &f) == CL_CLOSED);
    quiet(h);
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
    for (;;) { /* all readers are there */
        uint32_t n = 0;
        struct timespec nap = {.tv_nsec = 1000000};
        CHECK(cl_ring_bury(&r, CL_MAY_WAIT) == CL_OK); /* and its lock makes their entries visible */
        while (cl_mutex_lock(&store, &shared->lock, CL_FOREVER, &r.spin_lock) != CL_OK) {
        }
        for (uint32_t i = 0; i < CL_RING_READERS; i++) {
            n += shared->readers[i].owner != 0;
        }
        cl_unlock(&shared->lock);
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
    quiet(shared);
    cl_ring_detach(&r);
    release(&store, &place);
    audit(&store);
}

/* ---- kills */

#ifndef __SANITIZE_THREAD__
static struct notes {
    uint64_t published, publishing;
    cl_address ring;
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

/* Everything that the ring says of itself follows from its slots, and nobody who is dead has one. */
static void consistent(cl_ring *r)
{
    const cl_ring_head *h = r->head;
    uint32_t nfree = 0, newest = 0;
    uint64_t last = 0;
    for (uint32_t i = 0; i < r->slots; i++) {
        const cl_slot *s = &h->slots[i];
        nfree += s->state == CL_SLOT_FREE;
        CHECK(s->state != CL_SLOT_WRITING || (s->writer != 0 && !cl_is_dead(r->store, h->members[s->writer - 1])));
        if (s->state == CL_SLOT_PUBLISHED && s->seq > last) {
            last = s->seq;
            newest = i + 1;
        }
        CHECK(s->state != CL_SLOT_PUBLISHED || s->seq + r->slots <= h->last || r->by_seq[s->seq % r->slots] == i);
    }
    CHECK(nfree == h->nfree && newest == h->newest && last <= h->last);
    for (uint32_t m = 0; m < CL_RING_MEMBERS; m++) {
        CHECK(h->members[m] == 0 || !cl_is_dead(r->store, h->members[m]));
    }
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
        CHECK(latest(&r, 0, 0, &f) == CL_OK && f.seq == 4); /* ours, whoever dies */
        memset(notes, 0, sizeof *notes);
        notes->ring = (cl_address){.segment_id = place.segment_id,
                                   .generation = place.generation,
                                   .segment = place.segment,
                                   .index = place.index};
        pid_t child = fork();
        if (child == 0) {
            static cl_store own;
            cl_block_ref there;
            cl_ring theirs;
            open_store(&own, 5);
            CHECK(cl_load(&own, &notes->ring, CL_MAY_WAIT, &there) == CL_OK);
            attach(&theirs, &own, (cl_ring_head *)(void *)there.data);
            cl_kill_at = cl_kill_passed + n;
            victim(&theirs, kind);
            cl_ring_detach(&theirs);
            cl_kill_at = 0;
            _exit(0);
        }
        int well = ended(child);
        CHECK(check_whole(&r, f.slot) == 4);
        if (atomic_load(&h->lock) != 0) { /* it died inside: whoever comes in next puts all right, if only to read */
            cl_frame g;
            CHECK(latest(&r, 0, 0, &g) == CL_OK && cl_ring_return(&r, g.slot) == CL_OK);
            consistent(&r);
        }
        if (atomic_load(&h->state) != CL_RING_OPEN) {
            atomic_store(&h->state, CL_RING_OPEN);
        }
        /* a writer finds a slot for each frame, as if the dead had never been; by itself only when it is short of them */
        CHECK(n % 2 || cl_ring_bury(&r, CL_MAY_WAIT) == CL_OK);
        for (uint64_t i = 0; i < 6; i++) {
            CHECK(write_one(&r, 200 + i, cl_monotonic_ns() + 5000000000) == CL_OK);
        }
        CHECK(cl_ring_last(&r, 4, CL_MAY_WAIT, some, &have) == CL_OK);
        CHECK(have == 3 || (have != 0 && n % 2)); /* the fourth slot is on loan to us */
        for (uint32_t i = 0; i < have; i++) {
            CHECK(check_whole(&r, some[i].slot) == 206 - have + i && cl_ring_return(&r, some[i].slot) == CL_OK);
        }
        CHECK(h->last >= 4 + 6 + notes->published && h->last <= 4 + 6 + notes->publishing);
        CHECK(check_whole(&r, f.slot) == 4 && cl_ring_return(&r, f.slot) == CL_OK);
        CHECK(cl_ring_bury(&r, CL_MAY_WAIT) == CL_OK);
        quiet(h);
        for (uint32_t i = 0; i < CL_RING_MEMBERS; i++) {
            CHECK(h->members[i] == 0 || i == r.member - 1);
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

/* Who buries another and is no member itself dies while he does: there is nobody left to bury, and all to compute. */
static void burier_dies(void)
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
                CHECK(cl_ring_bury(&theirs, CL_MAY_WAIT) == CL_OK);
                cl_kill_at = 0;
                _exit(0);
            }
            well = ended(child);
        }
        int inside = atomic_load(&h->lock) != 0;
        CHECK(latest(&r, 0, 0, &f) == CL_OK && f.seq == 2 && cl_ring_return(&r, f.slot) == CL_OK);
        if (inside || well) {
            consistent(&r);
        }
        CHECK(cl_ring_bury(&r, CL_MAY_WAIT) == CL_OK);
        quiet(h);
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
#ifndef __SANITIZE_THREAD__
    notes = mmap(NULL, sizeof *notes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(notes != MAP_FAILED);
    for (int kind = 0; kind < 3; kind++) {
        kill_everywhere(kind);
    }
    burier_dies();
#endif
    CHECK(cl_store_leave(&store) >= 0);
    remove_directory();
    puts("ring: ok");
    return 0;
}
