/* A library to preload: the n-th call of some functions fails, in the thread that asked for it.
 *
 * Memory functions count when our own libraries call them (an interpreter without memory dies by itself). System
 * calls count whoever calls them. A failed call returns an error that the system could return: no descriptors, no
 * space, no memory. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <link.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

enum {
    MALLOC = 1,
    MMAP = 2,
    OPEN = 4,
    ROOM = 8,
    FSTAT = 16,
    FUTEX = 32,
    FORK = 64,
    DUP = 128,
    PIPE = 256,
    THREAD = 512
};

static __thread unsigned armed;
static __thread long left, seen;
static __thread int fired;
static __thread void *where;
static __thread const char *what;

#define RANGES 64
static struct {
    uintptr_t from, to;
} ours[RANGES];
static int nours;

static int note(struct dl_phdr_info *info, size_t size, void *arg)
{
    (void)size, (void)arg;
    if (!info->dlpi_name || !strstr(info->dlpi_name, "/copyless/_native."))
        return 0;
    for (int i = 0; i < info->dlpi_phnum && nours < RANGES; i++) {
        const ElfW(Phdr) *p = &info->dlpi_phdr[i];
        if (p->p_type != PT_LOAD || !(p->p_flags & PF_X))
            continue;
        ours[nours].from = info->dlpi_addr + p->p_vaddr;
        ours[nours++].to = info->dlpi_addr + p->p_vaddr + p->p_memsz;
    }
    return 0;
}

void inject_arm(unsigned kinds, long n)
{
    nours = 0;
    dl_iterate_phdr(note, NULL);
    left = n, seen = 0, fired = 0, where = NULL, what = "";
    armed = kinds;
}

/* Whether a call failed since. Writes the name of the function and the place that called it to `text`. */
int inject_disarm(char *text, size_t size)
{
    armed = 0;
    Dl_info info;
    if (text && fired && dladdr(where, &info) && info.dli_fname) {
        const char *name = strrchr(info.dli_fname, '/');
        snprintf(text, size, "%s in %s+0x%lx (%s)", what, name ? name + 1 : info.dli_fname,
                 (unsigned long)((uintptr_t)where - (uintptr_t)info.dli_fbase), info.dli_sname ? info.dli_sname : "?");
    } else if (text && size) {
        snprintf(text, size, "%s", fired ? what : "");
    }
    return fired;
}

static int is_ours(void *caller)
{
    for (int i = 0; i < nours; i++)
        if ((uintptr_t)caller >= ours[i].from && (uintptr_t)caller < ours[i].to)
            return 1;
    return 0;
}

static int fails(unsigned kind, const char *name, void *caller)
{
    if (!(armed & kind))
        return 0;
    if (kind == MALLOC && !is_ours(caller))
        return 0;
    seen++;
    if (--left)
        return 0;
    armed = 0, fired = 1, where = caller, what = name;
    return 1;
}

#define REAL(result, name, ...)                                                                                        \
    static result (*real)(__VA_ARGS__);                                                                                \
    if (!real)                                                                                                         \
    real = (result (*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name)
#define CALLER __builtin_return_address(0)

extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t);

void *malloc(size_t n)
{
    if (fails(MALLOC, "malloc", CALLER))
        return errno = ENOMEM, NULL;
    return __libc_malloc(n);
}

void *calloc(size_t n, size_t size)
{
    if (fails(MALLOC, "calloc", CALLER))
        return errno = ENOMEM, NULL;
    return __libc_calloc(n, size);
}

void *realloc(void *p, size_t n)
{
    if (fails(MALLOC, "realloc", CALLER))
        return errno = ENOMEM, NULL;
    return __libc_realloc(p, n);
}

#define MAPPER(name, offset)                                                                                           \
    void *name(void *p, size_t n, int protection, int flags, int fd, offset at)                                        \
    {                                                                                                                  \
        REAL(void *, name, void *, size_t, int, int, int, offset);                                                     \
        if (is_ours(CALLER) && fails(MMAP, #name, CALLER))                                                             \
            return errno = ENOMEM, MAP_FAILED;                                                                         \
        return real(p, n, protection, flags, fd, at);                                                                  \
    }
MAPPER(mmap, off_t)
MAPPER(mmap64, off64_t)

static mode_t mode_of(int flags, va_list list)
{
    return flags & (O_CREAT | __O_TMPFILE) ? va_arg(list, mode_t) : 0;
}

#define OPENER(name)                                                                                                   \
    int name(const char *path, int flags, ...)                                                                         \
    {                                                                                                                  \
        REAL(int, name, const char *, int, ...);                                                                       \
        va_list list;                                                                                                  \
        va_start(list, flags);                                                                                         \
        mode_t mode = mode_of(flags, list);                                                                            \
        va_end(list);                                                                                                  \
        if (fails(OPEN, #name, CALLER))                                                                                \
            return errno = EMFILE, -1;                                                                                 \
        return real(path, flags, mode);                                                                                \
    }
OPENER(open)
OPENER(open64)

#define OPENER_AT(name)                                                                                                \
    int name(int at, const char *path, int flags, ...)                                                                 \
    {                                                                                                                  \
        REAL(int, name, int, const char *, int, ...);                                                                  \
        va_list list;                                                                                                  \
        va_start(list, flags);                                                                                         \
        mode_t mode = mode_of(flags, list);                                                                            \
        va_end(list);                                                                                                  \
        if (fails(OPEN, #name, CALLER))                                                                                \
            return errno = EMFILE, -1;                                                                                 \
        return real(at, path, flags, mode);                                                                            \
    }
OPENER_AT(openat)
OPENER_AT(openat64)

#define RESERVER(name, offset)                                                                                         \
    int name(int fd, offset at, offset n)                                                                              \
    {                                                                                                                  \
        REAL(int, name, int, offset, offset);                                                                          \
        if (fails(ROOM, #name, CALLER))                                                                                \
            return ENOSPC;                                                                                             \
        return real(fd, at, n);                                                                                        \
    }
RESERVER(posix_fallocate, off_t)
RESERVER(posix_fallocate64, off64_t)

#define ALLOCATOR(name, offset)                                                                                        \
    int name(int fd, int mode, offset at, offset n)                                                                    \
    {                                                                                                                  \
        REAL(int, name, int, int, offset, offset);                                                                     \
        if (fails(ROOM, #name, CALLER))                                                                                \
            return errno = ENOSPC, -1;                                                                                 \
        return real(fd, mode, at, n);                                                                                  \
    }
ALLOCATOR(fallocate, off_t)
ALLOCATOR(fallocate64, off64_t)

#define SIZER(name, offset)                                                                                            \
    int name(int fd, offset n)                                                                                         \
    {                                                                                                                  \
        REAL(int, name, int, offset);                                                                                  \
        if (fails(ROOM, #name, CALLER))                                                                                \
            return errno = ENOSPC, -1;                                                                                 \
        return real(fd, n);                                                                                            \
    }
SIZER(ftruncate, off_t)
SIZER(ftruncate64, off64_t)

#define STATTER(name, buffer)                                                                                          \
    int name(int fd, struct buffer *st)                                                                                \
    {                                                                                                                  \
        REAL(int, name, int, struct buffer *);                                                                         \
        if (is_ours(CALLER) && fails(FSTAT, #name, CALLER))                                                            \
            return errno = EIO, -1;                                                                                    \
        return real(fd, st);                                                                                           \
    }
STATTER(fstat, stat)
STATTER(fstat64, stat64)

pid_t fork(void)
{
    REAL(pid_t, fork, void);
    if (fails(FORK, "fork", CALLER))
        return errno = EAGAIN, -1;
    pid_t pid = real();
    if (pid == 0)
        armed = 0;
    return pid;
}

int dup(int fd)
{
    REAL(int, dup, int);
    if (fails(DUP, "dup", CALLER))
        return errno = EMFILE, -1;
    return real(fd);
}

#define CONTROL(name)                                                                                                  \
    int name(int fd, int command, ...)                                                                                 \
    {                                                                                                                  \
        REAL(int, name, int, int, ...);                                                                                \
        va_list list;                                                                                                  \
        va_start(list, command);                                                                                       \
        void *arg = va_arg(list, void *);                                                                              \
        va_end(list);                                                                                                  \
        if ((command == F_DUPFD || command == F_DUPFD_CLOEXEC) && fails(DUP, #name, CALLER))                           \
            return errno = EMFILE, -1;                                                                                 \
        return real(fd, command, arg);                                                                                 \
    }
CONTROL(fcntl)
CONTROL(fcntl64)

#define DESCRIPTOR(name, parameters, arguments, ...)                                                                   \
    int name parameters                                                                                                \
    {                                                                                                                  \
        REAL(int, name, __VA_ARGS__);                                                                                  \
        if (fails(PIPE, #name, CALLER))                                                                                \
            return errno = EMFILE, -1;                                                                                 \
        return real arguments;                                                                                         \
    }
DESCRIPTOR(pipe2, (int fds[2], int flags), (fds, flags), int *, int)
DESCRIPTOR(socketpair, (int domain, int type, int protocol, int fds[2]), (domain, type, protocol, fds), int, int, int,
           int *)
DESCRIPTOR(socket, (int domain, int type, int protocol), (domain, type, protocol), int, int, int)
DESCRIPTOR(accept4, (int fd, struct sockaddr *address, socklen_t *n, int flags), (fd, address, n, flags), int,
           struct sockaddr *, socklen_t *, int)
DESCRIPTOR(eventfd, (unsigned value, int flags), (value, flags), unsigned, int)
DESCRIPTOR(memfd_create, (const char *text, unsigned flags), (text, flags), const char *, unsigned)
DESCRIPTOR(epoll_create1, (int flags), (flags), int)

int pthread_create(pthread_t *made, const pthread_attr_t *how, void *(*work)(void *), void *arg)
{
    REAL(int, pthread_create, pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);
    if (fails(THREAD, "pthread_create", CALLER))
        return EAGAIN;
    return real(made, how, work, arg);
}

long syscall(long number, ...)
{
    static long (*real)(long, ...);
    if (!real)
        real = (long (*)(long, ...))dlsym(RTLD_NEXT, "syscall");
    va_list list;
    va_start(list, number);
    long a[6];
    for (int i = 0; i < 6; i++)
        a[i] = va_arg(list, long);
    va_end(list);
    /* A wait may always return early, and a wake may find no sleeper. Only the wait is ever told that memory is
     * short. */
    if (number == SYS_futex && is_ours(CALLER) && ((int)a[1] & 0x7f) != 1 && fails(FUTEX, "futex", CALLER))
        return errno = ENOMEM, -1;
    return real(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}
