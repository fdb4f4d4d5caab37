/* What the system refuses, and what others do while one sleeps or is in the middle of a call, all as the input says.
 *
 * The library's calls of the system go through the functions here (the linker's --wrap, see WRAPPED in Makefile and in
 * tests/fuzz/__main__.py). A call that is to fail says what the system would say. Where one is about to sleep, or gives way to
 * others, `fuzz_meanwhile` is called first: what it does is what another process did just then. In a build with kill points the same
 * is done at any of them (`fuzz_stop_at`): between two steps of an operation, where only a race leads otherwise. */
#ifndef FUZZ_FAULTS_OBJECTS_H
#define FUZZ_FAULTS_OBJECTS_H

#include "fuzz.h"

#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/syscall.h>

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
    REFUSALS
};

static struct {
    uint8_t left, times; /* calls until the first that fails, 0 for none; how many fail */
    int why;
} fuzz_refused[REFUSALS];
static void (*fuzz_meanwhile)(void);
static int fuzz_asleep; /* not before it sleeps */
static int fuzz_slow; /* what they do takes longer than anybody spins */
static int (*fuzz_each_sleep)(void); /* 1: nobody sleeps long, a signal comes */
static void (*fuzz_at_point)(void); /* what is done at a kill point */
static _Thread_local int fuzz_ours; /* the target's own thread: another of the library's is left alone */

static inline void fuzz_refuse(fuzz_input *in)
{
    static const int why[REFUSALS][4] = {
        {EMFILE, ENFILE, ENOSPC, EACCES},
        {EIO, EIO, EIO, EIO},
        {ENOSPC, EDQUOT, EFBIG, EIO},
        {EIO, ENOSPC, EIO, ENOSPC},
        {ENOMEM, ENOMEM, EAGAIN, EPERM},
        {ENOMEM, ENOMEM, ENOMEM, ENOMEM},
        {ENOLCK, ENOLCK, EACCES, EAGAIN},
        {EEXIST, ENOENT, EPERM, ENOSPC},
        {EINTR, EINTR, EAGAIN, 0 /* woken, and nothing changed */},
    };
    uint8_t which = fuzz_8(in), when = fuzz_8(in);
    int kind = which % REFUSALS;
    fuzz_refused[kind].left = 1 + (when & 15);
    fuzz_refused[kind].times = kind == REFUSES_SLEEP ? 1 : when & 16 ? 40 : 1 + (when >> 6);
    fuzz_refused[kind].why = why[kind][which / REFUSALS & 3];
}

static inline void fuzz_allow_all(void)
{
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

/* At the n-th kill point from here, `what` is done; what is done there may say so again. */
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
        fuzz_meanwhile = NULL; /* nobody acts twice while one sleeps */
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

long __real_syscall(long number, ...);
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
        if (fuzz_ours && fuzz_each_sleep != NULL && fuzz_each_sleep()) {
            errno = EINTR;
            return -1;
        }
        if (refuses(REFUSES_SLEEP)) {
            return errno != 0 ? -1 : 0;
        }
    }
    return __real_syscall(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}

#endif
