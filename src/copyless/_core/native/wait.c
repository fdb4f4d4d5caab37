#define _GNU_SOURCE
#include "wait.h"

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static void pause_cpu(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("isb" ::: "memory");
#endif
}

#define SWITCH_NS 3000 /* a yield that took longer let somebody else run */
#define CROWDED 16u /* so many such waits, */
#define CROWDED_MS 2u /* each so soon after the last, and the two part */

static int one_processor(void)
{
    static _Atomic int known; /* 0: not asked, 1: one, 2: several */
    int k = atomic_load_explicit(&known, memory_order_relaxed); /* a benign cache: every thread computes the same */
    if (k == 0) {
        cpu_set_t set;
        k = sched_getaffinity(0, sizeof set, &set) == 0 && CPU_COUNT(&set) == 1 ? 1 : 2;
        atomic_store_explicit(&known, k, memory_order_relaxed);
    }
    return k == 1;
}

/* The one we waited for needed our own processor to answer: the two of us share it, and as both are busy for moments
 * only, the kernel would leave it so for long. Go to another; which ones we may use stays as it was. */
static void part(cl_spin *spin, int64_t now)
{
    uint32_t ms = (uint32_t)(now / 1000000), before = atomic_load_explicit(&spin->crowded_ms, memory_order_relaxed);
    uint32_t times = ms - before > CROWDED_MS ? 1 : atomic_load_explicit(&spin->crowded, memory_order_relaxed) + 1;
    atomic_store_explicit(&spin->crowded_ms, ms, memory_order_relaxed);
    atomic_store_explicit(&spin->crowded, times < CROWDED ? times : 0, memory_order_relaxed);
    if (times < CROWDED) {
        return; /* a message now and then is answered soonest by one processor: the other would have to be woken */
    }
    cpu_set_t may, others;
    int here = sched_getcpu();
    if (here < 0 || sched_getaffinity(0, sizeof may, &may) != 0 || CPU_COUNT(&may) < 2) {
        return;
    }
    others = may;
    CPU_CLR(here, &others);
    if (sched_setaffinity(0, sizeof others, &others) == 0) {
        sched_setaffinity(0, sizeof may, &may);
    }
}

/* Look on for so long at most: whether the word changed, and after what time. */
static int look_on(cl_au32 *word, uint32_t expected, int64_t budget, int64_t *spent, cl_spin *spin)
{
    int64_t start = cl_monotonic_ns();
    int gave_way = 0;
    *spent = 0;
    for (int round = 0; *spent < budget; round++) {
        for (int i = 0; i < 32; i++) {
            if (atomic_load_explicit(word, memory_order_acquire) != expected) {
                if (gave_way) {
                    part(spin, start);
                }
                return 1;
            }
            pause_cpu();
        }
        if (round >= 4) {
            sched_yield(); /* with more runners than processors the peer may need this one */
            gave_way = cl_monotonic_ns() - start - *spent > SWITCH_NS;
        }
        *spent = cl_monotonic_ns() - start;
    }
    return 0;
}

int cl_spin_wait(cl_au32 *word, uint32_t expected, cl_spin *spin)
{
    if (one_processor()) {
        return 0;
    }
    uint32_t budget = atomic_load_explicit(&spin->budget_ns, memory_order_relaxed); /* a hint, nothing hangs on it */
    if (budget < CL_SPIN_MIN_NS) {
        budget = CL_SPIN_MIN_NS;
    }
    int64_t spent;
    int changed = look_on(word, expected, budget, &spent, spin);
    uint64_t learnt = changed ? ((uint64_t)budget * 7 + (uint64_t)spent * 4 + CL_SPIN_MIN_NS) / 8 : budget / 2;
    atomic_store_explicit(&spin->budget_ns, learnt < CL_SPIN_MAX_NS ? (uint32_t)learnt : CL_SPIN_MAX_NS,
                          memory_order_relaxed);
    return changed;
}

int cl_poll(cl_au32 *word, uint32_t expected, int64_t budget_ns, cl_spin *spin)
{
    int64_t spent;
    return !one_processor() && look_on(word, expected, budget_ns, &spent, spin);
}

int cl_wait(cl_au32 *word, uint32_t expected, int64_t deadline_ns, cl_spin *spin)
{
    if (atomic_load_explicit(word, memory_order_acquire) != expected) {
        return CL_OK;
    }
    if (cl_monotonic_ns() >= deadline_ns) {
        return CL_TIMEOUT;
    }
    if (spin != NULL && cl_spin_wait(word, expected, spin)) {
        return CL_OK;
    }
    return cl_sleep(word, expected, deadline_ns, spin);
}

/* A sleep that was over sooner than a wake takes would have been spared by a longer spin. */
static void learn(cl_spin *spin, int64_t slept)
{
    if (slept < CL_WAKE_NS) {
        atomic_store_explicit(&spin->budget_ns, CL_SPIN_MAX_NS, memory_order_relaxed);
    }
}

int cl_sleep(cl_au32 *word, uint32_t expected, int64_t deadline_ns, cl_spin *spin)
{
    int64_t now = cl_monotonic_ns();
    if (now >= deadline_ns) {
        return atomic_load_explicit(word, memory_order_acquire) != expected ? CL_OK : CL_TIMEOUT;
    }
    int last = deadline_ns - now <= CL_SLICE_NS;
    int64_t until = last ? deadline_ns : now + CL_SLICE_NS;
    struct timespec t = {.tv_sec = until / 1000000000, .tv_nsec = until % 1000000000};
    /* The bitset form takes an absolute monotonic time: a spurious return cannot stretch the wait. */
    if (syscall(SYS_futex, word, FUTEX_WAIT_BITSET, expected, &t, NULL, FUTEX_BITSET_MATCH_ANY) == 0) {
        if (spin != NULL) {
            learn(spin, cl_monotonic_ns() - now);
        }
        return CL_OK;
    }
    if (errno == ETIMEDOUT) {
        return last ? CL_TIMEOUT : CL_AGAIN;
    }
    return errno == EINTR ? CL_AGAIN : CL_OK; /* EAGAIN: it changed before we slept */
}

static int first_changed(cl_au32 *const *words, const uint32_t *expected, int n)
{
    for (int i = 0; i < n; i++) {
        if (atomic_load_explicit(words[i], memory_order_acquire) != expected[i]) {
            return i;
        }
    }
    return -1;
}

int cl_wait_many(cl_au32 *const *words, const uint32_t *expected, int n, int64_t deadline_ns)
{
    struct {
        uint64_t value, address;
        uint32_t flags, reserved;
    } each[CL_WAIT_MANY];
    int changed = first_changed(words, expected, n);
    if (changed >= 0) {
        return changed;
    }
    int64_t now = cl_monotonic_ns();
    if (now >= deadline_ns) {
        return CL_TIMEOUT;
    }
    int last = deadline_ns - now <= CL_SLICE_NS;
    int64_t until = last ? deadline_ns : now + CL_SLICE_NS;
    for (int i = 0; i < n; i++) {
        each[i].value = expected[i];
        each[i].address = (uint64_t)(uintptr_t)words[i];
        each[i].flags = 2; /* FUTEX_32, shared between processes */
        each[i].reserved = 0;
    }
    struct timespec t = {.tv_sec = until / 1000000000, .tv_nsec = until % 1000000000};
    long rc = syscall(449 /* futex_waitv, Linux 5.16 */, each, n, 0, &t, CLOCK_MONOTONIC);
    if (rc >= 0) {
        return (int)rc;
    }
    if (errno != EAGAIN && errno != EINTR && errno != ETIMEDOUT) { /* an old kernel, or a filter, which may say EPERM */
        struct timespec nap = {.tv_nsec = 2000000};
        nanosleep(&nap, NULL);
    }
    changed = first_changed(words, expected, n);
    return changed >= 0 ? changed : cl_monotonic_ns() >= deadline_ns ? CL_TIMEOUT : CL_AGAIN;
}

void cl_wake(cl_au32 *word, int n)
{
    syscall(SYS_futex, word, FUTEX_WAKE, n, NULL, NULL, 0);
}

void cl_bell_ring(cl_au32 *bell, int n)
{
    uint32_t v = atomic_load_explicit(bell, memory_order_relaxed);
    while (!atomic_compare_exchange_weak(bell, &v, (v | CL_BELL_SLEEP) + 1)) {
    }
    CL_KILL_POINT();
    if (v & CL_BELL_SLEEP) {
        cl_wake(bell, n);
    }
}

int cl_bell_wait(cl_au32 *bell, uint32_t seen, int64_t deadline_ns, cl_spin *spin)
{
    for (int spun = 0;;) {
        uint32_t v = atomic_load(bell);
        if ((v ^ seen) & ~CL_BELL_SLEEP) {
            return CL_OK;
        }
        if (!spun && spin != NULL) {
            spun = !cl_spin_wait(bell, v, spin);
            continue;
        }
        if ((v & CL_BELL_SLEEP) || atomic_compare_exchange_strong(bell, &v, v | CL_BELL_SLEEP)) {
            CL_KILL_POINT();
            return cl_sleep(bell, v | CL_BELL_SLEEP, deadline_ns, spin);
        }
    }
}
