/* How much memory a new segment may take: the room of the mount, of the machine, and of the control group.
 *
 * A tmpfs may be larger than the free memory. Reserving memory there that does not exist starts the OOM killer instead
 * of failing with ENOSPC. So large requests are compared with the three limits first. The answer may be out of date a
 * moment later; the reservation itself decides. */
#define _GNU_SOURCE
#include "platform.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/statvfs.h>
#include <unistd.h>

static uint64_t number_in(const char *path)
{
    unsigned long long n;
    FILE *f = fopen(path, "re");
    if (f == NULL) {
        return UINT64_MAX;
    }
    int got = fscanf(f, "%llu", &n); /* "max" is not a number */
    fclose(f);
    return got == 1 ? n : UINT64_MAX;
}

static uint64_t machine_room(void)
{
    char line[128];
    unsigned long long kb, sum = 0;
    FILE *f = fopen("/proc/meminfo", "re");
    if (f == NULL) {
        return UINT64_MAX;
    }
    while (fgets(line, sizeof line, f) != NULL) {
        if (sscanf(line, "MemAvailable: %llu", &kb) == 1 || sscanf(line, "SwapFree: %llu", &kb) == 1) {
            sum += kb * 1024;
        }
    }
    fclose(f);
    return sum == 0 ? UINT64_MAX : sum;
}

/* The room below the limit of one group directory. Its page cache can be reclaimed, so the room is `max - anon -
 * shmem`. */
static uint64_t group_room(const char *directory, uint64_t *limit)
{
    char path[400], line[128], key[64];
    unsigned long long value, used = 0;
    snprintf(path, sizeof path, "%s/memory.max", directory);
    uint64_t max = number_in(path);
    if (max == UINT64_MAX) {
        snprintf(path, sizeof path, "%s/memory.limit_in_bytes", directory);
        max = number_in(path);
    }
    if (max >= (uint64_t)1 << 60) {
        return UINT64_MAX;
    }
    snprintf(path, sizeof path, "%s/memory.stat", directory);
    FILE *f = fopen(path, "re");
    if (f == NULL) {
        return UINT64_MAX;
    }
    while (fgets(line, sizeof line, f) != NULL) {
        if (sscanf(line, "%63s %llu", key, &value) == 2 &&
            (!strcmp(key, "anon") || !strcmp(key, "shmem") || !strcmp(key, "rss"))) {
            used += value;
        }
    }
    fclose(f);
    if (max < *limit) {
        *limit = max;
    }
    return max > used ? max - used : 0;
}

static uint64_t groups_room(uint64_t *limit)
{
    char line[300];
    uint64_t room = UINT64_MAX;
    FILE *f = fopen("/proc/self/cgroup", "re");
    while (f != NULL && fgets(line, sizeof line, f) != NULL) {
        char directory[330], *path = strchr(line, ':');
        path = path == NULL ? NULL : strchr(path + 1, ':');
        if (path == NULL) {
            continue;
        }
        int unified = strncmp(line, "0::", 3) == 0;
        if (!unified && strstr(line, ":memory:") == NULL) {
            continue;
        }
        path[strcspn(path, "\n")] = 0;
        snprintf(directory, sizeof directory, "/sys/fs/cgroup%s%s", unified ? "" : "/memory", path + 1);
        uint64_t here = group_room(directory, limit);
        if (here == UINT64_MAX) { /* in a container the group is mounted as the root */
            here = group_room(unified ? "/sys/fs/cgroup" : "/sys/fs/cgroup/memory", limit);
        }
        room = here < room ? here : room;
    }
    if (f != NULL) {
        fclose(f);
    }
    return room;
}

int cl_mount_room(int fd, struct statvfs *fs)
{
    return fstatvfs(fd, fs) == 0 && fs->f_blocks != 0;
}

int cl_capacity_check(int fd, uint64_t size)
{
    struct statvfs fs;
    if (cl_mount_room(fd, &fs) && (uint64_t)fs.f_bavail < size / fs.f_frsize) {
        cl_fail(CL_FULL, ENOSPC, "the mount has %llu bytes free", (unsigned long long)fs.f_bavail * fs.f_frsize);
        cl_last_error()->asked = size;
        return CL_FULL;
    }
    if (size >= CL_CAPACITY_LARGE) {
        uint64_t limit = UINT64_MAX, machine = machine_room(), group = groups_room(&limit);
        if (size > machine || size > group) {
            cl_fail(CL_FULL, ENOMEM,
                    group < machine ? "the control group's memory.max leaves %llu bytes"
                                    : "the machine has %llu bytes of memory available",
                    (unsigned long long)(group < machine ? group : machine));
            cl_last_error()->asked = size;
            return CL_FULL;
        }
    }
    return CL_OK;
}
