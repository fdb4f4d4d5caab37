/* The files of a storage directory: their names, and who may remove them.
 *
 *   name              made by                          removed by
 *   registry.N        the first process, whole (link)  its last owner, or the first of another boot (registry.c)
 *   live.N.<id>       the same, before it              the same, after it; or the sweep
 *   new.N.<id>        the same, where files cannot be  its maker; or the sweep
 *                     made without a name
 *   seg.N.<id>        its owner, after the registry    the process that gives it back; or the sweep
 *                     has an entry for it
 *
 * N is the layout. No code in this directory looks at a file with another number, or with none.
 *
 * Promise: a process removes a registry only while it has every byte of the registry's liveness file locked. So during
 * the removal no owner lives, no process can join, no other process removes the same registry, and no process makes
 * another one under its name. */
#define _GNU_SOURCE
#include "store.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define NO_OWNERS_BYTE 0x40000000 /* this byte is locked only together with all others */

int cl_is_file(int fd, uint64_t device, uint64_t inode)
{
    struct stat st;
    return fd >= 0 && fstat(fd, &st) == 0 && st.st_dev == device && st.st_ino == inode;
}

/* Written without printf: every allocation of a segment of its own calls it. */
void cl_file_name(char *out, const char *prefix, uint64_t id)
{
    static const char digits[] = "0123456789abcdef";
    size_t length = strlen(prefix);
    memcpy(out, prefix, length);
    for (int i = 0; i < 16; i++) {
        out[length + (size_t)i] = digits[(id >> (60 - 4 * i)) & 15];
    }
    out[length + 16] = 0;
}

void cl_segment_file(char *out, uint64_t id)
{
    cl_file_name(out, CL_SEGMENT_PREFIX, id);
}

void cl_live_file(char *out, uint64_t id)
{
    cl_file_name(out, CL_LIVE_PREFIX, id);
}

uint64_t cl_file_id(const char *name, const char *prefix)
{
    size_t length = strlen(prefix);
    uint64_t id = 0;
    if (strncmp(name, prefix, length) != 0 || strlen(name) != length + 16) {
        return 0;
    }
    for (const char *p = name + length; *p != 0; p++) {
        const char *digits = "0123456789abcdef", *digit = strchr(digits, *p);
        if (digit == NULL) {
            return 0;
        }
        id = id << 4 | (uint64_t)(digit - digits);
    }
    return id;
}

void cl_directory_keep(cl_store *store, int fd)
{
    char link[CL_DESCRIPTOR_PATH];
    struct stat st;
    store->directory = fd;
    ssize_t n = readlink(cl_path_of_descriptor(fd, link), store->path, sizeof store->path - 1);
    store->path[n > 0 ? n : 0] = 0;
    if (fstat(fd, &st) == 0) {
        store->directory_device = st.st_dev;
        store->directory_inode = st.st_ino;
    }
}

int cl_directory(cl_store *store)
{
    int fd = atomic_load_explicit(&store->directory, memory_order_relaxed);
    if (cl_is_file(fd, store->directory_device, store->directory_inode)) {
        return fd;
    }
    int fresh = open(store->path, CL_OPEN_PLACE);
    if (fresh >= 0 && !cl_is_file(fresh, store->directory_device, store->directory_inode)) {
        close(fresh);
        errno = ENOENT; /* it was removed; another one is there now */
        return -1;
    }
    if (fresh >= 0 && !atomic_compare_exchange_strong(&store->directory, &fd, fresh)) {
        close(fresh); /* another thread was faster */
        return atomic_load(&store->directory);
    }
    return fresh;
}

int cl_exclude_all(int live_fd)
{
    return cl_lock_range(live_fd, F_WRLCK, 0, 0) == 0;
}

static int lock_range(int fd, short type, off_t begin, off_t length)
{
    return cl_lock_range(fd, type, begin, length) == 0;
}

int cl_exclude_others(cl_store *store)
{
    off_t life = store->slot, lineage = CL_MAX_OWNERS + store->slot;
    int fd = store->live_fd;
    int all = cl_is_file(fd, store->live_device, store->live_inode) &&
              (life == 0 || lock_range(fd, F_WRLCK, 0, life)) &&
              lock_range(fd, F_WRLCK, life + 1, lineage - life - 1) && lock_range(fd, F_WRLCK, lineage + 1, 0);
    if (!all) {
        cl_exclude_nobody(store);
    }
    return all;
}

void cl_exclude_nobody(cl_store *store)
{
    lock_range(store->live_fd, F_UNLCK, 0, 0);
}

int cl_is_excluded(int live_fd)
{
    return cl_range_is_locked(live_fd, NO_OWNERS_BYTE, 1) > 0;
}

int cl_is_named(int directory, const char *name, int fd)
{
    struct stat named, ours;
    return fstat(fd, &ours) == 0 && fstatat(directory, name, &named, AT_SYMLINK_NOFOLLOW) == 0 &&
           named.st_ino == ours.st_ino && named.st_dev == ours.st_dev;
}
