/* What the native tests share: a storage directory of their own, checks that print the line, children that exit by
 * themselves. */
#ifndef CHECK_H
#define CHECK_H

#define _GNU_SOURCE
#include "store.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHECK(condition)                                                                                               \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "%s:%d: %s [%s]\n", __FILE__, __LINE__, #condition, cl_last_error()->what);                \
            abort();                                                                                                   \
        }                                                                                                              \
    } while (0)

static char check_path[256];

static inline int open_directory(void)
{
    if (check_path[0] == 0) {
        const char *in = getenv("CL_TEST_DIR"); /* set by a runner that removes what a failed test leaves */
        snprintf(check_path, sizeof check_path, "%s/copyless-test-XXXXXX", in != NULL ? in : "/dev/shm");
        CHECK(mkdtemp(check_path) != NULL);
    }
    int fd = open(check_path, O_PATH | O_DIRECTORY | O_CLOEXEC);
    CHECK(fd >= 0);
    return fd;
}

/* Wait until a thread of this process, whose thread number appears in *thread, sleeps in the kernel. */
static inline void wait_asleep(cl_au32 *thread)
{
    for (int64_t until = cl_monotonic_ns() + 20000000000;;) {
        char path[64], text[256] = "";
        uint32_t number = atomic_load(thread);
        snprintf(path, sizeof path, "/proc/self/task/%u/stat", number);
        int fd = number != 0 ? open(path, O_RDONLY | O_CLOEXEC) : -1;
        const char *state = fd >= 0 && read(fd, text, sizeof text - 1) > 0 ? strrchr(text, ')') : NULL;
        if (fd >= 0) {
            close(fd);
        }
        if (state != NULL && state[2] == 'S') {
            return;
        }
        CHECK(cl_monotonic_ns() < until);
        usleep(100);
    }
}

static inline int count_files(const char *prefix)
{
    DIR *d = opendir(check_path);
    int n = 0;
    CHECK(d != NULL);
    for (struct dirent *e; (e = readdir(d)) != NULL;) {
        n += strncmp(e->d_name, prefix, strlen(prefix)) == 0 && e->d_name[0] != '.';
    }
    closedir(d);
    return n;
}

static inline void remove_directory(void)
{
    DIR *d = opendir(check_path);
    for (struct dirent *e; d != NULL && (e = readdir(d)) != NULL;) {
        unlinkat(dirfd(d), e->d_name, 0);
    }
    closedir(d);
    CHECK(rmdir(check_path) == 0);
}

static inline void open_store(cl_store *store, uint64_t family)
{
    cl_identity who = {.host = 11,
                       .boot = 22,
                       .family = family,
                       .pid = (uint32_t)getpid(),
                       .start = cl_process_start((uint32_t)getpid()),
                       .command = "check"};
    cl_settings settings = {.warm_limit = (uint64_t)256 << 20, .idle_ns = 0, .message_ttl_ns = 600000000000};
    int rc;
    int64_t until =
        cl_monotonic_ns() +
        120000000000; /* as in the binding: 0.2 s are too short for 300 processes at once under an emulator */
    while ((rc = cl_store_open(store, open_directory(), &who, &settings)) == CL_RETRY && cl_monotonic_ns() < until) {
    }
    CHECK(rc == CL_OK);
}

static inline void release(cl_store *store, const cl_block_ref *r)
{
    int rc;
    while ((rc = cl_release(store, r->segment_id, r->segment, r->index, CL_MAY_WAIT)) == CL_AGAIN) {
    }
    CHECK(rc == CL_OK);
}

static inline void audit(cl_store *store)
{
    int rc;
    while ((rc = cl_enter(store, CL_OP_LIST, CL_MAY_WAIT)) == CL_AGAIN) {
    }
    CHECK(rc == CL_OK);
    rc = cl_audit(store);
    CHECK(rc == CL_OK);
    cl_leave(store);
}

/* Wait for a child. 1: it exited by itself with code 0. 0: its kill point killed it. */
static inline int ended(pid_t child)
{
    int status;
    CHECK(waitpid(child, &status, 0) == child);
    if (WIFSIGNALED(status)) {
        CHECK(WTERMSIG(status) == SIGKILL);
        return 0;
    }
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    return 1;
}

#endif
