/* Processes: whether the process with a given number is still the same process (the only reader of /proc/<pid>/stat),
 * and programs that are started as children.
 *
 * Promise: a process number may be reused; number and start time together identify one process of a boot. A program
 * that was started ends with the thread that started it.
 *
 * A program is started with vfork: the child uses this process's memory, and the calling thread waits, until the child
 * has executed the program or ended. So the child writes only to its own stack and to one word for errno, and no
 * handler of this process runs in it: all signals are blocked before it starts, and no signal has a handler when they
 * are unblocked. docs/design/communicator.md says, for each step, which process ends which. */
#define _GNU_SOURCE
#include "platform.h"

#include "base.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

uint64_t cl_process_start(uint32_t pid)
{
    char path[32], text[1024];
    snprintf(path, sizeof path, "/proc/%u/stat", pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        return 0;
    }
    ssize_t n = read(fd, text, sizeof text - 1);
    close(fd);
    if (n <= 0) {
        return 0;
    }
    text[n] = 0;
    const char *p = strrchr(text, ')'); /* the name before it may contain any character */
    unsigned long long start = 0;
    char state = 0;
    if (p == NULL || sscanf(p + 1, " %c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d %*d %*d %llu",
                            &state, &start) != 2) {
        return 0;
    }
    return start;
}

/* A pidfd decides: a zombie is dead, a process of which only the main thread has ended is not; /proc shows both as
 * zombies. */
int cl_process_lives(uint32_t pid, uint64_t start)
{
    int fd = (int)syscall(SYS_pidfd_open, pid, 0);
    if (fd < 0 && errno == ESRCH) {
        return 0;
    }
    uint64_t now = cl_process_start(pid);
    int ended = 0;
    if (fd >= 0) { /* otherwise there is no pidfd, or no descriptor left: in doubt it lives */
        struct pollfd p = {.fd = fd, .events = POLLIN};
        ended = poll(&p, 1, 0) == 1;
        close(fd);
    }
    return !ended && (now == start || now == 0 || CL_MUTANT(process_start_unchecked));
}

/* ---- programs */

#ifndef SYS_close_range
#define SYS_close_range 436 /* on every machine */
#endif

#define WORD_BITS (8 * sizeof(unsigned long))
#define MOST_PROCESSORS 8192u /* of a kernel that is built for the highest possible number */

/* Before Linux 5.9 a child closes its descriptors one by one, up to the highest open one, which this returns. 0: the
 * kernel closes them. */
static int highest_descriptor(void)
{
    if (syscall(SYS_close_range, ~0u, ~0u, 0u) == 0) {
        return 0;
    }
    int highest = 2;
    DIR *open_ones = opendir("/proc/self/fd");
    if (open_ones == NULL) {
        return (int)sysconf(_SC_OPEN_MAX);
    }
    for (struct dirent *each; (each = readdir(open_ones)) != NULL;) {
        int fd = atoi(each->d_name);
        highest = fd > highest ? fd : highest;
    }
    closedir(open_ones);
    return highest;
}

/* In the child: close all descriptors except 0, 1 and 2. */
static void close_others(int highest)
{
    if (highest == 0) {
        syscall(SYS_close_range, 3u, ~0u, 0u);
    }
    for (int fd = 3; fd <= highest; fd++) {
        close(fd);
    }
}

/* In the child: reset all signal handlers, because they would run in memory that is not the child's. */
static void forget_handlers(void)
{
    struct sigaction now, plain = {.sa_handler = SIG_DFL};
    for (int number = 1; number < NSIG; number++) {
        if (sigaction(number, NULL, &now) == 0 &&
            ((now.sa_handler != SIG_DFL && now.sa_handler != SIG_IGN) || number == SIGPIPE || number == SIGXFSZ)) {
            sigaction(number, &plain, NULL);
        }
    }
}

/* In the child: run only on this processor. */
static int stay_on(unsigned processor)
{
    unsigned long one[MOST_PROCESSORS / WORD_BITS] = {0}; /* a cpu_set_t has 1024 */
    if (processor >= MOST_PROCESSORS) {
        errno = EINVAL;
        return -1;
    }
    one[processor / WORD_BITS] = 1ul << processor % WORD_BITS;
    return (int)syscall(SYS_sched_setaffinity, 0, sizeof one, one);
}

/* In the child: put the new descriptors 0, 1 and 2 in their places; each is 3 or more before. */
static int place_descriptors(const int descriptors[3])
{
    for (int fd = 0; fd < 3; fd++) {
        if (descriptors[fd] >= 0 && dup2(descriptors[fd], fd) < 0) {
            return -1;
        }
    }
    return 0;
}

/* Everything that the child does. It returns only if there is no program: errno says why. */
static void become(const cl_program *program, const int descriptors[3], pid_t parent, int highest)
{
    forget_handlers();
    if (prctl(PR_SET_PDEATHSIG, SIGTERM) != 0) {
        return;
    }
    if (getppid() != parent) { /* the parent has ended already: no signal would come */
        _exit(1);
    }
    if (program->processor >= 0 && stay_on((unsigned)program->processor) != 0) {
        return;
    }
    if (place_descriptors(descriptors) != 0) {
        return;
    }
    close_others(highest);
    sigprocmask(SIG_SETMASK, program->blocked, NULL);
    int refused = 0; /* errors where the program exists count more than ENOENT elsewhere */
    for (char *const *path = program->paths; *path != NULL; path++) {
        execve(*path, program->arguments, program->environment);
        if (errno != ENOENT && errno != ENOTDIR && refused == 0) {
            refused = errno;
        }
    }
    errno = refused != 0 ? refused : errno;
}

/* A separate function, so that the child writes to no part of the stack that its caller uses. */
static __attribute__((noinline)) pid_t start_in_borrowed_memory(const cl_program *program, const int descriptors[3],
                                                                pid_t parent, int highest, volatile int *error)
{
    pid_t pid = vfork();
    if (pid == 0) {
        become(program, descriptors, parent, highest);
        *error = errno;
        _exit(127);
    }
    return pid;
}

int cl_start_program(const cl_program *program)
{
    int descriptors[3], made[3] = {-1, -1, -1};
    volatile int error = 0;
    pid_t pid = -1;
    for (int i = 0; i < 3; i++) { /* none may have the number of another's target, and exec must not close any */
        descriptors[i] = program->descriptors[i];
        if (descriptors[i] >= 0 && descriptors[i] < 3) {
            descriptors[i] = made[i] = fcntl(descriptors[i], F_DUPFD_CLOEXEC, 3);
            if (made[i] < 0) {
                error = errno;
            }
        }
    }
    if (error == 0) {
        sigset_t all, before;
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before);
        pid = start_in_borrowed_memory(program, descriptors, getpid(), highest_descriptor(), &error);
        if (pid < 0) {
            error = errno;
        }
        pthread_sigmask(SIG_SETMASK, &before, NULL);
    }
    for (int i = 0; i < 3; i++) {
        if (made[i] >= 0) {
            close(made[i]);
        }
    }
    if (pid > 0 && error != 0) {
        while (waitpid(pid, NULL, 0) < 0 && errno == EINTR) {
        }
        pid = -1;
    }
    errno = error;
    return pid;
}
