/* The sweep: removes files of this layout that no registry can name, left by killed processes.
 *
 * Promise: a file is removed only if the registry under the name registry.N, which this process has joined, does not
 * know it, and no other liveness file of layout N in the directory is locked. Then no registry of any process can name
 * the file: registries of other layouts name files with their own number, and a registry whose liveness file no process
 * has locked is not in use and has no name. Cost: the directory is read once; the registry's lock is taken for some 30
 * us at a time. */
#define _GNU_SOURCE
#include "store.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#define SLOTS_AT_ONCE 256u /* entries of the segment table that are checked in one step under the lock */

typedef struct stray {
    uint64_t id;
    int kind; /* index of the prefix */
    int known;
} stray;
enum { SEGMENT, NEW };

static int by_id(const void *a, const void *b)
{
    uint64_t x = ((const stray *)a)->id, y = ((const stray *)b)->id;
    return x < y ? -1 : x > y;
}

/* List the segments and unfinished registries of this layout in a directory; returns their number, or -1. `live_ones`:
 * whether another liveness file than this registry's is locked. One that is not locked belongs to a registry that is
 * gone, since this registry has the name. */
static long list_files(cl_store *store, int directory, stray **out, int *live_ones)
{
    int fd = openat(directory, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *d = fd < 0 ? NULL : fdopendir(fd);
    if (d == NULL) {
        if (fd >= 0) {
            close(fd);
        }
        return -1;
    }
    stray *files = NULL;
    long n = 0, room = 0;
    for (struct dirent *e; (e = readdir(d)) != NULL;) {
        uint64_t live = cl_file_id(e->d_name, CL_LIVE_PREFIX), segment = cl_file_id(e->d_name, CL_SEGMENT_PREFIX);
        uint64_t unfinished = cl_file_id(e->d_name, CL_NEW_PREFIX);
        if (live != 0 && live != store->registry_id) {
            int live_fd = openat(fd, e->d_name, O_RDWR | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
            if (live_fd >= 0 && cl_exclude_all(live_fd)) {
                unlinkat(fd, e->d_name, 0); /* its maker checks, after locking it, whether it still has its name */
            } else if (live_fd >= 0 || errno != ENOENT) {
                *live_ones = 1;
            }
            if (live_fd >= 0) {
                close(live_fd);
            }
        }
        if (segment == 0 && unfinished == 0) {
            continue;
        }
        if (n == room) {
            stray *more = realloc(files, (size_t)(room ? room * 2 : 64) * sizeof *files);
            if (more == NULL) {
                break; /* these now, the others in the next sweep */
            }
            files = more;
            room = room ? room * 2 : 64;
        }
        files[n++] = segment ? (stray){.id = segment, .kind = SEGMENT} : (stray){.id = unfinished, .kind = NEW};
    }
    closedir(d);
    *out = files;
    return n;
}

/* Mark the files that the registry knows. The list was made before: a file in it got its entry before it was made, and
 * an entry does not move. So the lock can be released between the steps. */
static int mark_known(cl_store *store, stray *files, size_t n)
{
    for (uint32_t at = 0, high = 1; at < high; at += SLOTS_AT_ONCE) {
        int rc = cl_enter(store, CL_OP_REAP, CL_MAY_WAIT);
        if (rc != CL_OK) {
            return rc;
        }
        high = store->control->segments_high < CL_MAX_SEGMENTS ? store->control->segments_high : CL_MAX_SEGMENTS;
        for (uint32_t i = at; i < high && i < at + SLOTS_AT_ONCE; i++) {
            if (store->segments[i].state != CL_SEGMENT_FREE) {
                stray asked = {.id = store->segments[i].id};
                stray *found = bsearch(&asked, files, n, sizeof *files, by_id);
                if (found != NULL) {
                    found->known = 1;
                }
            }
        }
        rc = cl_is_named(cl_directory(store), CL_REGISTRY_FILE, store->registry_fd) ? CL_OK : CL_CORRUPT;
        cl_leave(store);
        if (rc != CL_OK) {
            return rc; /* another registry has the name now, and may know the files */
        }
    }
    return CL_OK;
}

static void sweep(cl_store *store, int directory)
{
    stray *files = NULL;
    int live_ones = 0;
    if (atomic_load_explicit(&store->adrift, memory_order_relaxed) ||
        !cl_is_named(cl_directory(store), CL_REGISTRY_FILE, store->registry_fd)) {
        return; /* another registry has the name now, or none: this process must not remove the files */
    }
    long n = list_files(store, directory, &files, &live_ones);
    if (n > 0 && !live_ones) {
        qsort(files, (size_t)n, sizeof *files, by_id);
        if (mark_known(store, files, (size_t)n) == CL_OK) {
            for (long i = 0; i < n; i++) {
                char name[CL_FILE_NAME];
                if (files[i].kind == SEGMENT) {
                    cl_segment_file(name, files[i].id);
                } else {
                    cl_file_name(name, CL_NEW_PREFIX, files[i].id);
                }
                if (!files[i].known) {
                    unlinkat(directory, name, 0);
                }
            }
        }
    }
    free(files);
}

void cl_sweep(cl_store *store)
{
    sweep(store, cl_directory(store));
    int spill = cl_home(store, CL_SPILLED, 0);
    if (spill >= 0) {
        sweep(store, spill);
    }
}
