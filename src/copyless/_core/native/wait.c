#define _GNU_SOURCE
#include "platform.h"
#include "wait.h"

#include <errno.h>
#include <limits.h>
#include <sched.h>
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

#define NAP_NS 2000000 /* between two checks of several words, if the kernel cannot wait for several */
#define SWITCH_NS 3000 /* a yield that took longer let another thread run */
#define CROWDED 16u /* after so many such waits, */
#define CROWDED_MS 2u /* each so soon after the last one, this thread moves to another processor */

/* The peer needed this thread's own processor to answer: the two share it, and since both are busy only for moments,
 * the kernel would leave it so for long. Move to another processor; the set of allowed processors stays as it was. */
static void part(cl_spin *spin, int64_t now)
{
    uint32_t ms = (uint32_t)(now / 1000000), before = atomic_load_explicit(&spin->crowded_ms, memory_order_relaxed);
    uint32_t times = ms - before > CROWDED_MS ? 1 : atomic_load_explicit(&spin->crowded, memory_order_relaxed) + 1;
    atomic_store_explicit(&spin->crowded_ms, ms, memory_order_relaxed);
    atomic_store_explicit(&spin->crowded, times < CROWDED ? times : 0, memory_order_relaxed);
    if (times < CROWDED) {
        return; /* for rare messages one processor is fastest: another one would have to be woken */
    }
    cl_leave_processor();
}

/* Watch the word for at most the given time: whether it changed, and after what time. */
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
            sched_yield(); /* with more running threads than processors the peer may need this one */
            gave_way = cl_monotonic_ns() - start - *spent > SWITCH_NS;
        }
        *spent = cl_monotonic_ns() - start;
    }
    return 0;
}

int cl_spin_wait(cl_au32 *word, uint32_t expected, cl_spin *spin)
{
    if (cl_has_one_processor()) {
        return 0;
    }
    uint32_t budget = atomic_load_explicit(&spin->budget_ns, memory_order_relaxed); /* only a hint */
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
    return !cl_has_one_processor() && look_on(word, expected, budget_ns, &spent, spin);
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

/* A longer spin would have avoided a sleep that was shorter than a wake takes. */
static void learn(cl_spin *spin, int64_t slept)
{
    if (slept < CL_WAKE_NS) {
        atomic_store_explicit(&spin->budget_ns, CL_SPIN_MAX_NS, memory_order_relaxed);
    }
}

static _Thread_local int stays_awake;

void cl_stay_awake(int on)
{
    stays_awake = on;
}

int cl_sleep(cl_au32 *word, uint32_t expected, int64_t deadline_ns, cl_spin *spin)
{
    if (stays_awake) {
        return atomic_load_explicit(word, memory_order_acquire) != expected ? CL_OK : CL_AGAIN;
    }
    int64_t now = cl_monotonic_ns();
    if (now >= deadline_ns) {
        return atomic_load_explicit(word, memory_order_acquire) != expected ? CL_OK : CL_TIMEOUT;
    }
    int last = deadline_ns - now <= CL_SLICE_NS;
    int64_t until = last ? deadline_ns : now + CL_SLICE_NS;
    if (cl_sleep_on_word(word, expected, until) == 0) {
        if (spin != NULL) {
            learn(spin, cl_monotonic_ns() - now);
        }
        return CL_OK;
    }
    if (errno == ETIMEDOUT) {
        return last ? CL_TIMEOUT : CL_AGAIN;
    }
    return errno == EINTR ? CL_AGAIN : CL_OK; /* EAGAIN: it changed before the sleep */
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
    int changed = first_changed(words, expected, n);
    if (changed >= 0) {
        return changed;
    }
    int64_t now = cl_monotonic_ns();
    if (now >= deadline_ns) {
        return CL_TIMEOUT;
    }
    if (n == 1) {
        int rc = cl_sleep(words[0], expected[0], deadline_ns, NULL);
        return rc == CL_OK ? 0 : rc;
    }
    int last = deadline_ns - now <= CL_SLICE_NS;
    int64_t until = last ? deadline_ns : now + CL_SLICE_NS;
    long rc = cl_sleep_on_words(words, expected, n, until);
    if (rc >= 0) {
        return (int)rc;
    }
    if (errno != EAGAIN && errno != EINTR && errno != ETIMEDOUT) { /* an old kernel, or a filter, which may say EPERM */
        int64_t nap = cl_monotonic_ns() + NAP_NS;
        cl_sleep(words[0], expected[0], nap < until ? nap : until, NULL);
    }
    changed = first_changed(words, expected, n);
    return changed >= 0 ? changed : cl_monotonic_ns() >= deadline_ns ? CL_TIMEOUT : CL_AGAIN;
}

int cl_wait_again(int64_t *begun_ns, int64_t deadline_ns)
{
    int64_t now = cl_monotonic_ns();
    if (*begun_ns == 0) {
        *begun_ns = now;
        return CL_OK; /* the first wait checks the deadline itself */
    }
    return now >= deadline_ns ? CL_TIMEOUT : now - *begun_ns >= CL_SLICE_NS ? CL_AGAIN : CL_OK;
}

void cl_wake(cl_au32 *word, int n)
{
    cl_wake_word(word, n);
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
