/* Sleeping on words of shared memory, and which processor a thread runs on. See platform.h. */
#define _GNU_SOURCE
#include "platform.h"

#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>

static struct timespec time_of(int64_t ns)
{
    return (struct timespec){.tv_sec = ns / 1000000000, .tv_nsec = ns % 1000000000};
}

int cl_sleep_on_word(const cl_au32 *word, uint32_t expected, int64_t until_ns)
{
    struct timespec t = time_of(until_ns);
    /* The bitset form takes an absolute monotonic time, so a spurious return cannot extend the wait. */
    return (int)syscall(SYS_futex, word, FUTEX_WAIT_BITSET, expected, &t, NULL, FUTEX_BITSET_MATCH_ANY);
}

long cl_sleep_on_words(cl_au32 *const *words, const uint32_t *expected, int n, int64_t until_ns)
{
    struct {
        uint64_t value, address;
        uint32_t flags, reserved;
    } each[CL_WORDS_AT_ONCE];
    struct timespec t = time_of(until_ns);
    for (int i = 0; i < n; i++) {
        each[i].value = expected[i];
        each[i].address = (uint64_t)(uintptr_t)words[i];
        each[i].flags = 2; /* FUTEX_32, shared between processes */
        each[i].reserved = 0;
    }
    return syscall(449 /* futex_waitv, Linux 5.16 */, each, n, 0, &t, CLOCK_MONOTONIC);
}

void cl_wake_word(const cl_au32 *word, int n)
{
    syscall(SYS_futex, word, FUTEX_WAKE, n, NULL, NULL, 0);
}

int cl_has_one_processor(void)
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

void cl_leave_processor(void)
{
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
