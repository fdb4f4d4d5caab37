/* Processes: is the process of this number still the one that we knew? The one reader of /proc/<pid>/stat.
 *
 * Promise: reads only. A number may be given again; number and start time together name one process of a boot. */
#define _GNU_SOURCE
#include "process.h"

#include "base.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
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
    const char *p = strrchr(text, ')'); /* the name before it may hold anything */
    unsigned long long start = 0;
    char state = 0;
    if (p == NULL || sscanf(p + 1, " %c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d %*d %*d %llu",
                            &state, &start) != 2) {
        return 0;
    }
    return start;
}

/* Judged by a pidfd: a zombie is dead, a process whose main thread alone has ended is not; /proc shows both as zombies. */
int cl_process_lives(uint32_t pid, uint64_t start)
{
    int fd = (int)syscall(SYS_pidfd_open, pid, 0);
    if (fd < 0 && errno == ESRCH) {
        return 0;
    }
    uint64_t now = cl_process_start(pid);
    int ended = 0;
    if (fd >= 0) { /* else a kernel or a filter without pidfds, or no descriptor left: in doubt it lives */
        struct pollfd p = {.fd = fd, .events = POLLIN};
        ended = poll(&p, 1, 0) == 1;
        close(fd);
    }
    return !ended && (now == start || now == 0 || CL_MUTANT(process_start_unchecked));
}
