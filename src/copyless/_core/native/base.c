#define _GNU_SOURCE
#include "base.h"
#include "platform.h"

#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static _Thread_local cl_error last_error;

cl_error *cl_last_error(void)
{
    return &last_error;
}

int cl_fail(int code, int sys, const char *format, ...)
{
    va_list args;
    last_error.code = code;
    last_error.sys = sys;
    last_error.asked = 0;
    va_start(args, format);
    vsnprintf(last_error.what, sizeof last_error.what, format, args);
    va_end(args);
    return code;
}

int64_t cl_monotonic_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

uint64_t cl_realtime_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

uint64_t cl_random64(void)
{
    uint64_t r = 0;
    /* Eight bytes are never returned incompletely once the system has enough randomness, and the call waits for
     * that. */
    while (!cl_random_bytes(&r, sizeof r) || r == 0) {
    }
    return r;
}

uint64_t cl_hash64(const void *data, size_t n)
{
    const unsigned char *p = data;
    uint64_t h = 0xcbf29ce484222325u;
    for (size_t i = 0; i < n; i++) {
        h = (h ^ p[i]) * 0x100000001b3u;
    }
    h ^= h >> 31;
    h *= 0x7fb5d329728ea185u;
    h ^= h >> 27;
    return h ? h : 1;
}

#ifdef CL_KILL_POINTS
_Atomic long cl_kill_at;
_Atomic long cl_kill_passed;
_Atomic int cl_kill_signal = SIGKILL;

void cl_kill_point(void)
{
    /* Relaxed: it must order nothing, or the thread sanitizer would see no race between two threads that pass here. */
    long at = atomic_load_explicit(&cl_kill_at, memory_order_relaxed);
    if (atomic_fetch_add_explicit(&cl_kill_passed, 1, memory_order_relaxed) + 1 == at) {
        int signal = atomic_load_explicit(&cl_kill_signal, memory_order_relaxed);
        raise(signal); /* to this thread, if a handler waits for it */
        while (signal == SIGKILL) {
            pause();
        }
    }
}
#endif

#ifdef CL_MUTANTS
int cl_mutant_is(const char *name)
{
    const char *wanted = getenv("CL_MUTANT"), *reached = getenv("CL_MUTANT_REACHED");
    if (wanted == NULL || strcmp(wanted, name) != 0) {
        return 0;
    }
    int kept = errno;
    if (reached != NULL && mkdir(reached, 0700) != 0) { /* shows that a test came here, also if no file can be opened */
        errno = kept;
    }
    return 1;
}
#endif
