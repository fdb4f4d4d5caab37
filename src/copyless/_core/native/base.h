/* The base of every native file: fixed-width atomics, error codes, kill points, clocks. No Python. */
#ifndef CL_BASE_H
#define CL_BASE_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

typedef _Atomic uint32_t cl_au32;
typedef _Atomic uint64_t cl_au64;

_Static_assert(ATOMIC_INT_LOCK_FREE == 2 && ATOMIC_LLONG_LOCK_FREE == 2, "shared words need lock-free atomics");
_Static_assert(sizeof(cl_au32) == 4, "a futex word is 32 bits");

/* Result of every fallible call; the detail is in cl_last_error(). */
enum cl_result {
    CL_OK = 0,
    CL_AGAIN = -1, /* it would have to wait: call again with CL_MAY_WAIT, without the GIL */
    CL_TIMEOUT = -2, /* the deadline passed */
    CL_OWNER_DIED = -3, /* the lock came from a dead owner: repair, then continue */
    CL_CORRUPT = -4, /* a shared field or file is damaged */
    CL_STALE = -5, /* the block that a handle names no longer exists */
    CL_FULL = -6, /* the mount (or the cgroup) has no room */
    CL_TABLE_FULL = -7, /* a table of the registry has no free entry */
    CL_EXISTS = -8, /* the name is taken */
    CL_MISSING = -9, /* no such name */
    CL_SYSTEM = -10, /* a system call failed: errno is in the detail */
    CL_RETRY = -11, /* the registry was removed while it was opened: open again */
    CL_CLOSED = -12, /* the store is not open */
    CL_FOREIGN = -13, /* it belongs to another kernel, or is in a place that this process does not see */
    CL_FORKED = -14, /* this process is a copy, made by clone(), of a process that opened the store: it cannot use it */
    CL_OTHER_FORMAT = -15, /* the registry belongs to a version that stores items in another format */
    CL_REMOVED = -16, /* the store's files were removed while in use: new objects go to another store */
};

typedef struct cl_error {
    int code; /* enum cl_result */
    int sys; /* errno, or 0 */
    uint64_t asked; /* bytes that were requested, if that matters */
    char what[360]; /* what was found, as text */
} cl_error;

cl_error *cl_last_error(void); /* this thread's */
int cl_fail(int code, int sys, const char *format, ...) __attribute__((format(printf, 3, 4)));

int64_t cl_monotonic_ns(void);
uint64_t cl_realtime_ns(void);
uint64_t cl_random64(void);
uint64_t cl_hash64(const void *data, size_t n); /* FNV-1a with a final mix: a checksum, not a secret */

/* Kill points. A build with -DCL_KILL_POINTS dies by SIGKILL at the cl_kill_at-th point that it passes, or gets
 * cl_kill_signal there (SIGSTOP, for example). Other builds contain no trace of them. */
#ifdef CL_KILL_POINTS
extern _Atomic long cl_kill_at; /* 0: never */
extern _Atomic long cl_kill_passed; /* points passed so far */
extern _Atomic int
    cl_kill_signal; /* SIGKILL; SIGSTOP: it stops there until SIGCONT; or another signal, with a handler */
void cl_kill_point(void);
#define CL_KILL_POINT() cl_kill_point()
#else
#define CL_KILL_POINT() ((void)0)
#endif

/* Mutants: named mistakes, at the places where they could be made. In a build with -DCL_MUTANTS, the mutant that the
 * environment variable CL_MUTANT names is active, and a test must notice it (tests/native/mutants.py). In other builds
 * all are 0. */
#ifdef CL_MUTANTS
int cl_mutant_is(const char *name);
#define CL_MUTANT(name)                                                                                                \
    (__extension__({                                                                                                   \
        static _Atomic int cl_mutant_known; /* 0: not asked, 1: no, 2: yes */                                          \
        if (atomic_load_explicit(&cl_mutant_known, memory_order_relaxed) == 0) {                                       \
            atomic_store_explicit(&cl_mutant_known, 1 + cl_mutant_is(#name), memory_order_relaxed);                    \
        }                                                                                                              \
        atomic_load_explicit(&cl_mutant_known, memory_order_relaxed) == 2;                                             \
    }))
#else
#define CL_MUTANT(name) 0
#endif
/* A memory order that a mutant weakens, as the thread sanitizer sees it. (The compiler itself uses the strongest order
 * if the order is not a constant.) */
#define CL_ORDER(name, order) (CL_MUTANT(name) ? memory_order_relaxed : (order))

#endif
