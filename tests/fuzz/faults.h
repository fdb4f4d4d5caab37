/* What the system refuses, and what other processes do while a call sleeps or is in progress, all as the input says.
 *
 * The library's system calls go through the functions here (the linker's --wrap, see WRAPPED in Makefile and in
 * tests/fuzz/__main__.py). A call that is to fail returns an error that the system could return. Before a call
 * sleeps or yields, `fuzz_meanwhile` is called first: it does what another process did at that moment. In a build
 * with kill points the same happens at any of them (`fuzz_stop_at`): between two steps of an operation, which
 * otherwise only a race reaches. */
#ifndef FUZZ_FAULTS_H
#define FUZZ_FAULTS_H

#include "fuzz.h"

#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <time.h>

enum {
    REFUSES_OPEN,
    REFUSES_STAT,
    REFUSES_ROOM,
    REFUSES_WRITE,
    REFUSES_MAP,
    REFUSES_MEMORY,
    REFUSES_LOCK,
    REFUSES_LINK,
    REFUSES_SLEEP,
    REFUSALS,
    /* Answers of the system that are not errors. */
    SAYS_NAME = REFUSALS, /* for what a name leads to */
    SAYS_LIMIT, /* few descriptors */
    SAYS_FILES, /* another kind of file system */
    SAYS_USER, /* another user */
    SAYS_LATE, /* ten seconds have passed */
    SAYINGS
};

static struct {
    uint16_t left; /* calls until the first that fails, 0 for none */
    uint8_t times; /* how many fail */
    int why;
} fuzz_refused[SAYINGS];
static void (*fuzz_meanwhile)(void);
static int fuzz_asleep; /* not before it sleeps */
static int fuzz_slow; /* the action takes longer than any process spins */
static int (*fuzz_each_sleep)(void); /* 1: a signal ends it */
static void (*fuzz_at_point)(void); /* the action at a kill point */
static int fuzz_alone; /* no process wakes a sleeper: each sleep ends at its time, at once */
static int64_t fuzz_ahead_ns; /* before the system's clock: the time that naps, sleeps and delays would have taken */
static _Thread_local int fuzz_ours; /* the target's own thread: other threads of the library are not affected */

static inline void fuzz_refuse(fuzz_input *in)
{
    static const int why[SAYINGS][5] = {
        {EMFILE, ENFILE, ENOSPC, EACCES, ENOENT},
        {EIO, EIO, EIO, EIO, EIO},
        {ENOSPC, EDQUOT, EFBIG, EIO, EINTR},
        {EIO, ENOSPC, EIO, ENOSPC, EIO},
        {ENOMEM, ENOMEM, EAGAIN, EPERM, ENOMEM},
        {ENOMEM, ENOMEM, ENOMEM, ENOMEM, ENOMEM},
        {ENOLCK, ENOLCK, EACCES, EAGAIN, ENOLCK},
        {EEXIST, ENOENT, EPERM, ENOSPC, EXDEV},
        {EINTR, EINTR, EAGAIN, 0 /* woken, and nothing changed */, EINTR},
        {EIO, ENOENT, EACCES, EIO, EIO},
        {4, 16, 64, 8, 0},
        {0xef53 /* ext4 */, 0x6969 /* NFS */, 0x58465342 /* XFS */, 0, 0},
        {1, 1, 1, 1, 1},
        {1, 1, 1, 1, 1},
    };
    uint8_t which = fuzz_8(in), when = fuzz_8(in);
    int kind = which < 236 ? which % REFUSALS : SAYS_NAME + (which - 236) % (SAYINGS - REFUSALS);
    fuzz_refused[kind].left = (uint16_t)(1 + (when & 32 ? 3 * fuzz_8(in) : when & 15));
    fuzz_refused[kind].times = kind == REFUSES_SLEEP ? 1 : when & 16 ? 40 : 1 + (when >> 6);
    fuzz_refused[kind].why = why[kind][which < 236 ? which / REFUSALS % 5 : (which - 236) / (SAYINGS - REFUSALS)];
}

static inline void fuzz_allow_all(void)
{
    fuzz_ahead_ns = 0;
    memset(fuzz_refused, 0, sizeof fuzz_refused);
    fuzz_meanwhile = NULL;
    fuzz_ours = 1;
#ifdef CL_KILL_POINTS
    cl_kill_at = 0;
#endif
}

#ifdef CL_KILL_POINTS
static inline void at_point(int signal)
{
    (void)signal;
    if (fuzz_paused) {
        cl_kill_at = cl_kill_passed + 1;
    } else {
        fuzz_at_point();
    }
}
#endif

/* At the n-th kill point from here, `what` is called; it may call this again. */
static inline void fuzz_stop_at(long n, void (*what)(void))
{
    fuzz_at_point = what;
#ifdef CL_KILL_POINTS
    struct sigaction action = {.sa_handler = at_point, .sa_flags = SA_NODEFER};
    sigaction(SIGURG, &action, NULL);
    cl_kill_signal = SIGURG;
    cl_kill_at = cl_kill_passed + n;
#else
    (void)n;
#endif
}

static int refuses(int kind)
{
    if (fuzz_paused || !fuzz_ours || fuzz_refused[kind].left == 0 || fuzz_refused[kind].left-- > 1) {
        return 0;
    }
    fuzz_refused[kind].left = --fuzz_refused[kind].times != 0;
    errno = fuzz_refused[kind].why;
    return 1;
}

static void others_act(void)
{
    void (*what)(void) = fuzz_meanwhile;
    if (what != NULL && fuzz_ours) {
        fuzz_meanwhile = NULL; /* no second action while one is in progress */
        what();
        for (int64_t until = cl_monotonic_ns() + 2 * CL_SPIN_MAX_NS; fuzz_slow && cl_monotonic_ns() < until;) {
        }
    }
}

#define WRAP(type, name, kind, failed, parameters, arguments)                                                          \
    type __real_##name parameters;                                                                                     \
    type __wrap_##name parameters;                                                                                     \
    type __wrap_##name parameters                                                                                      \
    {                                                                                                                  \
        return refuses(kind) ? failed : __real_##name arguments;                                                       \
    }

WRAP(int, fstat, REFUSES_STAT, -1, (int fd, struct stat *st), (fd, st))
WRAP(int, ftruncate, REFUSES_ROOM, -1, (int fd, off_t size), (fd, size))
WRAP(int, posix_fallocate, REFUSES_ROOM, fuzz_refused[REFUSES_ROOM].why, (int fd, off_t at, off_t n), (fd, at, n))
WRAP(int, fchmod, REFUSES_WRITE, -1, (int fd, mode_t mode), (fd, mode))
WRAP(ssize_t, pwrite, REFUSES_WRITE, -1, (int fd, const void *p, size_t n, off_t at), (fd, p, n, at))
WRAP(void *, mmap, REFUSES_MAP, MAP_FAILED, (void *p, size_t n, int prot, int flags, int fd, off_t at),
     (p, n, prot, flags, fd, at))
WRAP(void *, malloc, REFUSES_MEMORY, NULL, (size_t n), (n))
WRAP(void *, calloc, REFUSES_MEMORY, NULL, (size_t n, size_t size), (n, size))
WRAP(void *, realloc, REFUSES_MEMORY, NULL, (void *p, size_t n), (p, n))
WRAP(DIR *, fdopendir, REFUSES_OPEN, NULL, (int fd), (fd))
WRAP(int, linkat, REFUSES_LINK, -1, (int from, const char *old, int to, const char *name, int flags),
     (from, old, to, name, flags))
WRAP(int, mkdir, REFUSES_LINK, -1, (const char *path, mode_t mode), (path, mode))

long __real_syscall(long number, ...);

/* These replace functions of the C library, so they need no --wrap. A sanitizer calls some of them before its own
 * memory exists. */
#define EARLY __attribute__((no_sanitize("address", "undefined")))

int fstatfs(int fd, struct statfs *st)
{
    int rc = (int)__real_syscall(SYS_fstatfs, fd, st);
    if (rc == 0 && refuses(SAYS_FILES)) {
        st->f_type = fuzz_refused[SAYS_FILES].why;
        return fuzz_refused[SAYS_FILES].why == 0 ? -1 : 0;
    }
    return rc;
}

int fstatat(int directory, const char *restrict path, struct stat *restrict st, int flags)
{
    return refuses(SAYS_NAME) ? -1 : (int)__real_syscall(SYS_newfstatat, directory, path, st, flags);
}

ssize_t readlink(const char *restrict path, char *restrict to, size_t n)
{
    return refuses(SAYS_NAME) ? -1 : (ssize_t)__real_syscall(SYS_readlinkat, AT_FDCWD, path, to, n);
}

int unlinkat(int directory, const char *path, int flags)
{
    if (fuzz_alone && !fuzz_paused) { /* often without a lock: others may come first */
        others_act();
    }
    return (int)__real_syscall(SYS_unlinkat, directory, path, flags);
}

EARLY int getrlimit(__rlimit_resource_t what, struct rlimit *limit)
{
    int rc = (int)__real_syscall(SYS_prlimit64, 0, what, NULL, limit);
    if (rc == 0 && fuzz_alone && refuses(SAYS_LIMIT)) {
        limit->rlim_cur = (rlim_t)fuzz_refused[SAYS_LIMIT].why;
    }
    return rc;
}

EARLY uid_t geteuid(void)
{
    return (uid_t)__real_syscall(SYS_geteuid) + (uid_t)(fuzz_alone && refuses(SAYS_USER));
}

int nanosleep(const struct timespec *nap, struct timespec *left)
{
    if (!fuzz_alone) {
        return (int)__real_syscall(SYS_nanosleep, nap, left);
    }
    fuzz_ahead_ns += (int64_t)nap->tv_sec * 1000000000 + nap->tv_nsec;
    return 0;
}

EARLY int clock_gettime(clockid_t which, struct timespec *now)
{
    int rc = (int)__real_syscall(SYS_clock_gettime, which, now);
    if (fuzz_alone && which == CLOCK_MONOTONIC) {
        fuzz_ahead_ns += refuses(SAYS_LATE) ? 10000000000 : 0;
        int64_t ns = now->tv_nsec + fuzz_ahead_ns;
        now->tv_sec += ns / 1000000000;
        now->tv_nsec = ns % 1000000000;
    }
    return rc;
}

int __real_openat(int directory, const char *path, int flags, ...);
int __wrap_openat(int directory, const char *path, int flags, ...);
int __wrap_openat(int directory, const char *path, int flags, ...)
{
    va_list list;
    va_start(list, flags);
    unsigned mode = va_arg(list, unsigned);
    va_end(list);
    return refuses(REFUSES_OPEN) ? -1 : __real_openat(directory, path, flags, mode);
}

int __real_fcntl(int fd, int command, ...);
int __wrap_fcntl(int fd, int command, ...);
int __wrap_fcntl(int fd, int command, ...)
{
    va_list list;
    va_start(list, command);
    void *argument = va_arg(list, void *);
    va_end(list);
    return command == F_OFD_SETLK && refuses(REFUSES_LOCK) ? -1 : __real_fcntl(fd, command, argument);
}

int __real_madvise(void *p, size_t n, int advice);
int __wrap_madvise(void *p, size_t n, int advice);
int __wrap_madvise(void *p, size_t n, int advice)
{
    return advice != 22 /* MADV_POPULATE_READ: it asks whether there is anything */ && refuses(REFUSES_MAP)
               ? -1
               : __real_madvise(p, n, advice);
}

int __real_sched_yield(void);
int __wrap_sched_yield(void);
int __wrap_sched_yield(void)
{
    if (!fuzz_asleep) {
        others_act();
    }
    return __real_sched_yield();
}

/* The whole time of a sleep at once, if its word has not changed. */
static int passes(const long *futex)
{
    const struct timespec *until = (const struct timespec *)futex[3];
    struct timespec now;
    if (atomic_load((cl_au32 *)futex[0]) != (uint32_t)futex[2]) {
        return 0;
    }
    clock_gettime(CLOCK_MONOTONIC, &now);
    int64_t ns = (until->tv_sec - now.tv_sec) * 1000000000 + until->tv_nsec - now.tv_nsec;
    fuzz_ahead_ns += ns > 0 ? ns : 0;
    return 1;
}

long __wrap_syscall(long number, ...);
long __wrap_syscall(long number, ...)
{
    long a[6] = {0};
    va_list list;
    va_start(list, number);
    for (int i = 0; i < (number == SYS_futex ? 6 : number == 449 /* futex_waitv */ ? 5 : 3); i++) {
        a[i] = va_arg(list, long);
    }
    va_end(list);
    if (number == SYS_futex && a[3] != 0) { /* with a time: it waits */
        others_act();
        if (fuzz_alone && !passes(a)) {
            errno = EAGAIN;
            return -1;
        }
        if (fuzz_ours && fuzz_each_sleep != NULL && fuzz_each_sleep()) {
            errno = EINTR;
            return -1;
        }
        if (refuses(REFUSES_SLEEP)) {
            return errno != 0 ? -1 : 0;
        }
        if (fuzz_alone) {
            errno = ETIMEDOUT;
            return -1;
        }
    }
    return __real_syscall(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}

#endif
