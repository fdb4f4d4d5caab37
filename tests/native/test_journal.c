/* Transactions: all or nothing at every kill point. Damage in the journal is reported, not applied. */
#include "check.h"

#include <pthread.h>
#include <sched.h>
#include <sys/mman.h>

static uint8_t *base;
static cl_control *c;

static void change(uint32_t owners, uint64_t bytes, uint32_t messages)
{
    cl_txn txn = cl_begin(base);
    cl_set32(&txn, &c->owners_high, owners);
    cl_set64(&txn, &c->total_bytes, bytes);
    cl_set32(&txn, &c->messages, messages);
    cl_commit(&txn);
}

/* After a replay the transaction is finished: a process that dies while it fills in the next one leaves nothing of
 * it. */
static void test_replayed_once(void)
{
    const long at[] = {2, 1}; /* committed, not applied; then: filled in, not committed */
    for (int i = 0; i < 2; i++) {
        pid_t child = fork();
        if (child == 0) {
            cl_kill_at = cl_kill_passed + at[i];
            change(30 + (uint32_t)i, 40, 50);
        }
        CHECK(!ended(child) && cl_replay(base) == CL_OK);
        CHECK(c->owners_high == 30 && c->total_bytes == 40 && c->messages == 50);
    }
}

/* An offset so near the maximum that the addition wraps to the beginning. */
static void test_wild_offset(void)
{
    for (uint64_t wild = UINT64_MAX - 31; wild != 0; wild++) {
        c->journal.writes[0] = (cl_write){.offset = wild, .value = 1};
        atomic_store(&c->journal.committed, 1);
        CHECK(cl_replay(base) == CL_CORRUPT);
    }
    atomic_store(&c->journal.committed, 0);
}

/* A count that is too high, and after the journal words that look like more of it. */
static void test_count(void)
{
    for (uint32_t i = 0; i < CL_JOURNAL_MAX; i++) {
        c->journal.writes[i] = (cl_write){.offset = CL_OFF_CONTROL + offsetof(cl_control, messages), .value = 50};
    }
    uint64_t *behind = &c->guard_end; /* and the word after it: what would be the next write */
    behind[0] = CL_OFF_CONTROL + offsetof(cl_control, messages);
    behind[1] = 666;
    atomic_store(&c->journal.committed, CL_JOURNAL_MAX + 1);
    CHECK(cl_replay(base) == CL_CORRUPT && c->messages == 50);
    atomic_store(&c->journal.committed, 0);
}

/* One thread commits; another sees that and replays: what it reads was written before the number. Run under the
 * thread sanitizer too. */
static cl_au32 ready, made, over, enough;
static uint32_t seen; /* rounds in which the other thread came in time */

static void *replays(void *arg)
{
    (void)arg;
    for (uint32_t round = 1; !atomic_load(&enough); round++) {
        uint32_t n = 0;
        atomic_store_explicit(&ready, round, memory_order_relaxed); /* so that nothing but the journal orders the two */
        for (int i = 1; n == 0 && atomic_load_explicit(&made, memory_order_relaxed) != round; i++) {
            n = atomic_load_explicit(&c->journal.committed, memory_order_relaxed);
            if (i % 10000 == 0) {
                sched_yield();
            }
        }
        CHECK(cl_replay(base) == CL_OK);
        seen += n != 0;
        atomic_store(&over, round);
    }
    return NULL;
}

static void test_order(void)
{
    pthread_t thread;
    int64_t until = cl_monotonic_ns() + 5000000000;
    CHECK(pthread_create(&thread, NULL, replays, NULL) == 0);
    for (uint32_t round = 1; !atomic_load(&enough); round++) {
        while (atomic_load_explicit(&ready, memory_order_relaxed) != round) {
            sched_yield();
        }
        cl_txn txn = cl_begin(base);
        for (uint32_t i = 0; i < CL_JOURNAL_MAX; i++) { /* to apply them takes a while */
            cl_set32(&txn, &c->messages, round + i);
        }
        atomic_store(&enough, seen >= 50 || cl_monotonic_ns() > until);
        cl_commit(&txn);
        atomic_store_explicit(&made, round, memory_order_relaxed);
        while (atomic_load(&over) != round) {
            sched_yield();
        }
        CHECK(c->messages == round + CL_JOURNAL_MAX - 1);
    }
    pthread_join(thread, NULL);
}

int main(void)
{
    base = mmap(NULL, CL_REGISTRY_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    CHECK(base != MAP_FAILED);
    c = (cl_control *)(void *)(base + CL_OFF_CONTROL);
    for (long n = 1;; n++) {
        c->owners_high = 1;
        c->total_bytes = 10;
        c->messages = 100;
        pid_t child = fork();
        if (child == 0) {
            cl_kill_at = cl_kill_passed + n;
            change(2, 20, 200);
            _exit(0);
        }
        int whole = ended(child);
        CHECK(cl_replay(base) == CL_OK);
        int before = c->owners_high == 1 && c->total_bytes == 10 && c->messages == 100;
        int after = c->owners_high == 2 && c->total_bytes == 20 && c->messages == 200;
        CHECK(before || after);
        CHECK(!whole || after);
        if (whole) {
            CHECK(n > 4);
            break;
        }
    }
    test_replayed_once();
    test_count();
    test_wild_offset();
    test_order();
    atomic_store(&c->journal.committed, CL_JOURNAL_MAX + 1);
    CHECK(cl_replay(base) == CL_CORRUPT);
    atomic_store(&c->journal.committed, 1);
    c->journal.writes[0].offset = CL_REGISTRY_SIZE;
    CHECK(cl_replay(base) == CL_CORRUPT);
    puts("journal: ok");
    return 0;
}
