/* The lock: exclusion, a dead holder, a word without an owner, no early and no late return. */
#include "check.h"
#include "thread_lock.h"

#include <pthread.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>

static cl_life alive(void *context, uint32_t slot, uint32_t incarnation)
{
    (void)context, (void)incarnation;
    return slot == 7 ? CL_DEAD : slot == 9 ? CL_NOBODY : CL_ALIVE;
}

static cl_au32 word;
static long counter;
static cl_spin spin;

static void *add(void *arg)
{
    uint32_t self = CL_LOCK_WORD((uint32_t)(uintptr_t)arg, 1u);
    for (int i = 0; i < 20000; i++) {
        int rc;
        while ((rc = cl_lock(&word, self, CL_FOREVER, &spin, alive, NULL)) != CL_OK) {
            CHECK(rc == CL_AGAIN);
        }
        counter++;
        cl_unlock(&word);
    }
    return NULL;
}

/* Two threads take turns, told by words that order nothing: only the lock orders what it guards. Run under the
 * thread sanitizer too. */
static cl_au32 turn;

static void *takes_turns(void *arg)
{
    uint32_t me = (uint32_t)(uintptr_t)arg;
    for (uint32_t i = 0; i < 200; i++) {
        while (atomic_load_explicit(&turn, memory_order_relaxed) != 2 * i + me) {
            sched_yield();
        }
        CHECK(cl_lock(&word, CL_LOCK_WORD(me, 1u), CL_FOREVER, &spin, alive, NULL) == CL_OK);
        counter++;
        cl_unlock(&word);
        atomic_store_explicit(&turn, 2 * i + me + 1, memory_order_relaxed);
    }
    return NULL;
}

static void test_turns(void)
{
    pthread_t other;
    long before = counter;
    CHECK(pthread_create(&other, NULL, takes_turns, (void *)1) == 0);
    takes_turns((void *)0);
    pthread_join(other, NULL);
    CHECK(counter == before + 400);
}

/* A thread that takes the lock while others may sleep for it keeps the sleeper bit in the word, and wakes one of
 * them when it releases it. */
static void test_marks(void)
{
    uint32_t me = CL_LOCK_WORD(1u, 5u), seen;
    atomic_store(&word, CL_LOCK_SLEEP | CL_LOCK_WORD(7u, 3u)); /* a dead holder, and a sleeper */
    CHECK(cl_lock(&word, me, CL_FOREVER, &spin, alive, NULL) == CL_OWNER_DIED &&
          atomic_load(&word) == (me | CL_LOCK_SLEEP));
    atomic_store(&word, 0);
    CHECK(cl_lock_awake(&word, me, 1, &seen, &spin, alive, NULL) == CL_OK &&
          atomic_load(&word) == (me | CL_LOCK_SLEEP));
    atomic_store(&word, 0);
    CHECK(cl_lock_awake(&word, me, 0, &seen, &spin, alive, NULL) == CL_OK && atomic_load(&word) == me);
    atomic_store(&word, 0);
}

static cl_au32 sleeper; /* its thread number */

static void *sleep_for_it(void *arg)
{
    uint32_t held = CL_LOCK_SLEEP | CL_LOCK_WORD(1u, 5u);
    int *woken = arg, rc;
    do {
        atomic_store(&sleeper, (uint32_t)syscall(SYS_gettid));
        rc = cl_sleep(&word, held, CL_FOREVER, NULL);
    } while (rc == CL_AGAIN && atomic_load(&word) == held);
    *woken += rc == CL_OK; /* and not by the end of its slice */
    return NULL;
}

static void test_wakes(void)
{
    enum { ROUNDS = 12 };
    uint32_t me = CL_LOCK_WORD(1u, 5u);
    int woken = 0;
    for (int i = 0; i < ROUNDS; i++) {
        pthread_t thread;
        atomic_store(&sleeper, 0);
        atomic_store(&word, me | CL_LOCK_SLEEP);
        CHECK(pthread_create(&thread, NULL, sleep_for_it, &woken) == 0);
        wait_asleep(&sleeper);
        if (i % 2) {
            cl_unlock(&word);
        } else {
            CHECK(cl_unlock_own(&word, me) == CL_OK);
        }
        pthread_join(thread, NULL);
    }
    CHECK(woken > ROUNDS * 3 / 4); /* a slice may end at the same moment */
}

#ifndef __SANITIZE_THREAD__
/* The holder releases the lock and is killed before it wakes a sleeper, at the moment our sleep ends. */
static void die_before_the_wake(int number)
{
    uint32_t held = CL_LOCK_SLEEP | CL_LOCK_WORD(3u, 3u);
    (void)number;
    atomic_compare_exchange_strong(&word, &held, 0);
}

static void test_last_look(void)
{
    struct sigaction act = {.sa_handler = die_before_the_wake}, before;
    struct itimerval soon = {{0, 5000}, {0, 5000}}, never = {{0, 0}, {0, 0}};
    CHECK(sigaction(SIGALRM, &act, &before) == 0);
    for (int i = 0; i < 5; i++) {
        atomic_store(&word, CL_LOCK_WORD(3u, 3u));
        CHECK(setitimer(ITIMER_REAL, &soon, NULL) == 0);
        CHECK(cl_lock(&word, CL_LOCK_WORD(1u, 5u), CL_FOREVER, &spin, alive, NULL) == CL_OK);
        CHECK(setitimer(ITIMER_REAL, &never, NULL) == 0);
        cl_unlock(&word);
    }
    CHECK(sigaction(SIGALRM, &before, NULL) == 0);
}
#endif

/* The lock between threads of one process: the same exclusion, and a deadline. */
static cl_thread_lock between_threads;
static long guarded;

static void *add_between_threads(void *arg)
{
    (void)arg;
    for (int i = 0; i < 20000; i++) {
        cl_thread_lock_take(&between_threads);
        guarded++;
        cl_thread_unlock(&between_threads);
    }
    return NULL;
}

static void *lets_go_late(void *arg)
{
    (void)arg;
    struct timespec nap = {.tv_nsec = 20000000};
    nanosleep(&nap, NULL);
    cl_thread_unlock(&between_threads);
    return NULL;
}

static void test_thread_lock(void)
{
    pthread_t threads[4];
    cl_thread_lock_init(&between_threads);
    for (int i = 0; i < 4; i++) {
        CHECK(pthread_create(&threads[i], NULL, add_between_threads, NULL) == 0);
    }
    for (int i = 0; i < 4; i++) {
        pthread_join(threads[i], NULL);
    }
    CHECK(guarded == 80000 && cl_thread_trylock(&between_threads));
    CHECK(!cl_thread_trylock(&between_threads));
    int64_t deadline = cl_monotonic_ns() + 30000000;
    while (!cl_thread_lock_until(&between_threads, deadline) && cl_monotonic_ns() < deadline) {
    }
    CHECK(cl_monotonic_ns() >= deadline); /* it was never free */
    CHECK(pthread_create(&threads[0], NULL, lets_go_late, NULL) == 0);
    cl_thread_lock_take(&between_threads); /* woken, or this test does not end */
    pthread_join(threads[0], NULL);
    cl_thread_unlock(&between_threads);
    CHECK(cl_thread_trylock(&between_threads));
}

int main(void)
{
    test_thread_lock();
    pthread_t threads[4];
    for (uintptr_t i = 0; i < 4; i++) {
        CHECK(pthread_create(&threads[i], NULL, add, (void *)i) == 0);
    }
    for (int i = 0; i < 4; i++) {
        pthread_join(threads[i], NULL);
    }
    CHECK(counter == 80000 && atomic_load(&word) == 0);

    uint32_t me = CL_LOCK_WORD(1u, 5u);
    CHECK(CL_LOCK_SLOT(me) == 2 && CL_LOCK_INCARNATION(me) == 5);
    atomic_store(&word, CL_LOCK_WORD(7u, 3u)); /* of a dead process */
    CHECK(cl_lock(&word, me, CL_FOREVER, &spin, alive, NULL) == CL_OWNER_DIED);
    CHECK((atomic_load(&word) & ~CL_LOCK_SLEEP) == me);
    cl_unlock(&word);
    atomic_store(&word, CL_LOCK_WORD(9u, 3u)); /* noise */
    CHECK(cl_lock(&word, me, CL_FOREVER, &spin, alive, NULL) == CL_CORRUPT);
    atomic_store(&word, CL_LOCK_WORD(3u, 3u)); /* held */
    CHECK(cl_lock(&word, me, 0, &spin, alive, NULL) == CL_AGAIN);
    int64_t start = cl_monotonic_ns(), deadline = start + 120000000;
    int rc;
    while ((rc = cl_lock(&word, me, deadline, &spin, alive, NULL)) == CL_AGAIN) {
    }
    CHECK(rc == CL_TIMEOUT && cl_monotonic_ns() >= deadline);
    CHECK(cl_waits()->holder == CL_LOCK_WORD(3u, 3u) && cl_waits()->since_ns >= start);
    atomic_store(&word, 0); /* got at the next call's first look: the call waits for no process any more */
    CHECK(cl_lock(&word, me, CL_FOREVER, &spin, alive, NULL) == CL_OK && cl_waits()->holder == 0);
    atomic_store(&word, CL_LOCK_SLEEP); /* a holder that was killed between its swap and its wake */
    CHECK(cl_lock(&word, me, CL_FOREVER, &spin, alive, NULL) == CL_OK);
    cl_unlock(&word);
    test_turns();
    test_marks();
    test_wakes();
#ifndef __SANITIZE_THREAD__
    test_last_look();
#endif
    puts("lock: ok");
    return 0;
}
