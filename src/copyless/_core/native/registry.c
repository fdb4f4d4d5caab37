/* A user's registry: opening it, making it, and leaving it for good.
 *
 * States under the name registry.N and who moves them:
 *
 *   nothing --(creator, with every byte of live.N.<id> locked: links the finished registry)--> in use
 *   in use --(last owner out, or the first of another boot; every byte locked: `removed` set, files unlinked)--> nothing
 *
 * What SIGKILL leaves: before the link, a liveness file that no process has locked, for the next sweep (the registry
 * itself had no name); after it, a valid registry without owners. Between `removed` and the unlinks: a registry that
 * every process that opens it sees as removed; such a process finishes the removal and makes a new registry. A process
 * that opens the registry while another makes or removes it tries again, for OPEN_NS, and then lets its caller decide
 * (CL_RETRY).
 *
 * A registry of another boot is obsolete only if no other kernel can be using it: on a disk of this machine. A registry
 * in memory (tmpfs) cannot be older than this kernel, so another kernel uses it. On a network file system it cannot be
 * known whether another kernel uses it. */
#define _GNU_SOURCE
#include "store.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define OPEN_NS 200000000 /* so that the caller can serve signals */

/* ---- making a registry */

/* Write the first n entries of a table at once: zeros, and one word of each entry. The word is 1, or it links the
 * entries into a free list in order. */
static int first_entries(int fd, uint64_t table, size_t stride, size_t word_at, uint32_t n, int linked)
{
    char *entries = calloc(n, stride);
    if (entries == NULL) {
        return 0;
    }
    for (uint32_t i = 0; i < n; i++) {
        uint32_t next = i + 1 < n ? i + 2 : 0, word = linked ? next : 1;
        memcpy(entries + i * stride + word_at, &word, sizeof word);
    }
    int ok = pwrite(fd, entries, n * stride, (off_t)table) == (ssize_t)(n * stride);
    int error = errno;
    free(entries);
    errno = error;
    return ok;
}

static int fill_new(int fd, const cl_header *header, const cl_spill *spill)
{
    if (ftruncate(fd, (off_t)CL_REGISTRY_SIZE) != 0) {
        return cl_fail(CL_SYSTEM, errno, "sizing the registry");
    }
    const struct {
        uint64_t offset, length;
    } first[] = {
        {0, CL_OFF_OWNERS + 256 * sizeof(cl_owner)},
        {CL_OFF_BUCKETS, CL_BUCKETS * 4 + 32 * sizeof(cl_name)},
        {CL_OFF_HOLDS, 256 * sizeof(cl_hold)},
        {CL_OFF_SEGMENTS, 8 * sizeof(cl_segment)},
    };
    for (size_t i = 0; i < sizeof first / sizeof *first; i++) {
        int rc = cl_reserve_fd(fd, first[i].offset, first[i].length);
        if (rc != CL_OK) {
            return rc;
        }
    }
    cl_control control = {.guard = CL_GUARD,
                          .guard_end = CL_GUARD,
                          .owners_high = 256,
                          .names_high = 32,
                          .holds_high = 256,
                          .segments_high = 8,
                          .paged = {[CL_TABLE_NAMES] = 32, [CL_TABLE_HOLDS] = 256, [CL_TABLE_SEGMENTS] = 8},
                          .holds_free = 1,
                          .names_free = 1,
                          .segments_free = 1};
    if (pwrite(fd, &control, sizeof control, CL_OFF_CONTROL) != (ssize_t)sizeof control ||
        pwrite(fd, spill, sizeof *spill, CL_OFF_SPILL) != (ssize_t)sizeof *spill ||
        pwrite(fd, header, sizeof *header, 0) != (ssize_t)sizeof *header || fchmod(fd, 0600) != 0) {
        return cl_fail(CL_SYSTEM, errno, "writing the registry");
    }
    /* An owner's incarnation is never 0: see owners.c. */
    if (!first_entries(fd, CL_OFF_OWNERS, sizeof(cl_owner), offsetof(cl_owner, incarnation), control.owners_high, 0) ||
        !first_entries(fd, CL_OFF_HOLDS, sizeof(cl_hold), offsetof(cl_hold, next), control.holds_high, 1) ||
        !first_entries(fd, CL_OFF_NAMES, sizeof(cl_name), offsetof(cl_name, next), control.names_high, 1) ||
        !first_entries(fd, CL_OFF_SEGMENTS, sizeof(cl_segment), offsetof(cl_segment, next), control.segments_high, 1)) {
        return cl_fail(CL_SYSTEM, errno, "writing the registry");
    }
    return CL_OK;
}

/* Make and lock the liveness file. If a sweep found it before it was locked, the sweep has removed its name. */
static int make_live(int directory, const char *name, struct stat *st)
{
    int fd = openat(directory, name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0) {
        int rc = errno == ENOSPC ? CL_FULL : CL_SYSTEM;
        return errno == ENOENT ? CL_RETRY : cl_fail(rc, errno, "creating %s", name);
    }
    CL_KILL_POINT();
    int excluded = cl_exclude_all(fd);
    if (fchmod(fd, 0600) != 0 || fstat(fd, st) != 0) {
        int rc = cl_fail(CL_SYSTEM, errno, "creating %s", name);
        unlinkat(directory, name, 0);
        close(fd);
        return rc;
    }
    if (!excluded || st->st_nlink == 0) {
        close(fd);
        return CL_RETRY;
    }
    return fd;
}

static int make_registry(int directory, const cl_identity *identity, const cl_settings *settings)
{
    cl_header header = {.magic = CL_MAGIC,
                        .layout = CL_LAYOUT_VERSION,
                        .kind = CL_KIND_REGISTRY,
                        .format = CL_FORMAT,
                        .id = cl_random64(),
                        .file_size = CL_REGISTRY_SIZE,
                        .host = identity->host,
                        .boot = identity->boot,
                        .created_ns = cl_realtime_ns(),
                        .creator_pid = identity->pid,
                        .creator_start = identity->start};
    cl_spill spill;
    cl_spill_decide(&spill, settings->spill, header.id);
    char live[CL_FILE_NAME], temporary[CL_FILE_NAME] = "";
    cl_live_file(live, header.id);
    int fd = -1, rc = CL_OK;
    struct stat st;
    int live_fd = make_live(directory, live, &st);
    if (live_fd < 0) {
        return live_fd;
    }
    CL_KILL_POINT();
    header.live_device = st.st_dev;
    header.live_inode = st.st_ino;
    header.checksum = cl_hash64(&header, offsetof(cl_header, checksum));
    fd = cl_open_nameless(directory);
    if (fd < 0) { /* a file system that has no nameless files */
        cl_file_name(temporary, CL_NEW_PREFIX, header.id);
        fd = openat(directory, temporary, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
    }
    if (fd < 0) {
        rc =
            errno == ENOENT ? CL_RETRY : cl_fail(errno == ENOSPC ? CL_FULL : CL_SYSTEM, errno, "creating the registry");
        goto out;
    }
    rc = fill_new(fd, &header, &spill);
    CL_KILL_POINT();
    if (rc == CL_OK) {
        int linked = temporary[0] ? linkat(directory, temporary, directory, CL_REGISTRY_FILE, 0)
                                  : cl_give_name(fd, directory, CL_REGISTRY_FILE);
        if (linked != 0) {
            rc = errno == EEXIST || errno == ENOENT ? CL_RETRY : cl_fail(CL_SYSTEM, errno, "publishing the registry");
        }
        CL_KILL_POINT();
    }
out:;
    cl_error kept = *cl_last_error();
    if (temporary[0]) {
        unlinkat(directory, temporary, 0);
    }
    if (rc != CL_OK) {
        unlinkat(directory, live, 0);
    }
    if (fd >= 0) {
        close(fd);
    }
    close(live_fd); /* from here on others may join */
    *cl_last_error() = kept;
    return rc;
}

/* ---- opening a registry */

static int check_header(const cl_header *h, uint64_t file_size)
{
    if (h->magic != CL_MAGIC) {
        return cl_fail(CL_CORRUPT, 0, "registry: wrong magic number %016llx", (unsigned long long)h->magic);
    }
    if (h->layout != CL_LAYOUT_VERSION || h->kind != CL_KIND_REGISTRY) {
        return cl_fail(CL_CORRUPT, 0, "registry: layout %u and kind %u, expected %u and %u", h->layout, h->kind,
                       CL_LAYOUT_VERSION, CL_KIND_REGISTRY);
    }
    if (h->checksum != cl_hash64(h, offsetof(cl_header, checksum)) && !CL_MUTANT(registry_checksum_unchecked)) {
        return cl_fail(CL_CORRUPT, 0, "registry: the header's checksum does not match");
    }
    if (h->format != CL_FORMAT) {
        return cl_fail(CL_OTHER_FORMAT, 0,
                       "the registry's items have format %u, this version reads %u: use one version of copyless in all "
                       "processes, or another COPYLESS_DIR",
                       h->format, CL_FORMAT);
    }
    if (h->file_size != CL_REGISTRY_SIZE || file_size != CL_REGISTRY_SIZE) {
        return cl_fail(CL_CORRUPT, 0, "registry: the file has %llu bytes, its header records %llu",
                       (unsigned long long)file_size, (unsigned long long)h->file_size);
    }
    return CL_OK;
}

int cl_read_header(int fd, cl_header *header, struct stat *st)
{
    if (fstat(fd, st) != 0) {
        return cl_fail(CL_SYSTEM, errno, "reading the registry");
    }
    if (!S_ISREG(st->st_mode) || st->st_uid != geteuid() ||
        pread(fd, header, sizeof *header, 0) != (ssize_t)sizeof *header) {
        return cl_fail(CL_CORRUPT, 0,
                       "registry: it is not a regular file of this user, or it is too short (%lld bytes)",
                       (long long)st->st_size);
    }
    return check_header(header, (uint64_t)st->st_size);
}

static void close_files(cl_store *store)
{
    if (store->base != NULL) {
        munmap(store->base, CL_REGISTRY_SIZE);
        store->base = NULL;
        store->books = 0;
    }
    if (store->registry_fd >= 0) {
        close(store->registry_fd);
    }
    if (store->live_fd >= 0) {
        close(store->live_fd);
    }
    store->registry_fd = -1;
    store->live_fd = -1;
    cl_life_end(store);
}

/* ---- removing a registry */

/* Lock all bytes, except this process's own ones if it has joined. A process that has just left releases its bytes a
 * moment later: wait for that, but not for a process that joins, since that one may be waiting for this one. */
static int exclude_others(cl_store *store)
{
    int64_t until = cl_monotonic_ns() + OPEN_NS;
    while (!(store->open ? cl_exclude_others(store) : cl_exclude_all(store->live_fd))) {
        for (uint32_t i = 0; i < store->control->owners_high && i < CL_CARETAKER; i++) {
            if (i != store->slot && *(volatile uint32_t *)&store->owners[i].state == CL_OWNER_LIVE) {
                return 0;
            }
        }
        if (cl_is_excluded(store->live_fd) || cl_monotonic_ns() > until) {
            return 0;
        }
        struct timespec nap = {.tv_nsec = 200000};
        nanosleep(&nap, NULL);
    }
    return 1;
}

/* CL_OK. CL_AGAIN: a process has a byte of the liveness file locked, or another has removed the registry already.
 * CL_EXISTS: it has persistent names. */
static int discard(cl_store *store)
{
    char live[CL_FILE_NAME];
    if (atomic_load_explicit(&store->adrift, memory_order_relaxed)) { /* the other files are gone, or another's */
        /* No process can join by name any more. Forked children of owners could, but there is no other owner. */
        if (!cl_is_file(store->live_fd, store->live_device, store->live_inode) || exclude_others(store)) {
            cl_books_remove(store);
            cl_spill_remove(store);
        }
        return CL_AGAIN;
    }
    cl_live_file(live, store->registry_id);
    if (!exclude_others(store) || !cl_is_named(cl_directory(store), CL_REGISTRY_FILE, store->registry_fd) ||
        !cl_is_named(cl_directory(store), live, store->live_fd)) {
        return CL_AGAIN;
    }
    if (store->control->persistent != 0) {
        cl_exclude_nobody(store);
        return CL_EXISTS;
    }
    CL_KILL_POINT();
    store->control->removed = 1;
    CL_KILL_POINT();
    cl_books_remove(store);
    cl_spill_remove(store);
    CL_KILL_POINT();
    unlinkat(cl_directory(store), CL_REGISTRY_FILE, 0);
    CL_KILL_POINT();
    unlinkat(cl_directory(store), live, 0);
    return CL_OK;
}

/* The registry was made under another boot id. */
static int of_another_boot(cl_store *store)
{
    switch (cl_filesystem_of(cl_directory(store))) {
    case CL_FS_MEMORY:
        return cl_fail(CL_FOREIGN, 0,
                       "%s is in use by another kernel, or by processes that see another " CL_BOOT_ID_PLACE
                       " than this one: set COPYLESS_DIR to a directory of this kernel's "
                       "own",
                       CL_REGISTRY_FILE);
    case CL_FS_SHARED:
        return cl_fail(CL_FOREIGN, 0,
                       "%s was created under another boot ID, on a file system that other machines may share, so it "
                       "may be in use there: set COPYLESS_DIR to a tmpfs, or remove the file yourself",
                       CL_REGISTRY_FILE);
    default:
        break;
    }
    int rc = CL_AGAIN;
    if (cl_exclude_all(store->live_fd)) {
        rc = cl_replay(store->base); /* the journal of the lock's last holder: afterwards the counts are right */
        rc = rc == CL_OK ? discard(store) : rc;
    } else if (!cl_is_excluded(store->live_fd)) {
        return cl_fail(CL_FOREIGN, 0, "%s was created under another boot ID, and live processes use it",
                       CL_REGISTRY_FILE);
    }
    if (rc == CL_EXISTS) {
        return cl_fail(
            CL_FOREIGN, 0,
            "%s was created under an earlier boot and has %u persistent names: 'copyless reap --force' removes it",
            CL_REGISTRY_FILE, store->control->persistent);
    }
    return rc == CL_OK || rc == CL_AGAIN ? CL_RETRY : rc;
}

/* ---- joining */

/* Open the liveness file. CL_RETRY: it was removed with its registry just now. */
static int open_live(cl_store *store, const cl_header *header)
{
    char live[CL_FILE_NAME];
    struct stat st;
    cl_live_file(live, header->id);
    store->live_fd = openat(cl_directory(store), live, O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (store->live_fd < 0) {
        int why = errno;
        if (why == ENOENT && !cl_is_named(cl_directory(store), CL_REGISTRY_FILE, store->registry_fd)) {
            return CL_RETRY;
        }
        return why == ENOENT ? cl_fail(CL_CORRUPT, 0, "registry: %s does not exist", live)
                             : cl_fail(CL_SYSTEM, why, "opening %s", live);
    }
    if (fstat(store->live_fd, &st) != 0) {
        return cl_fail(CL_SYSTEM, errno, "reading the status of %s", live);
    }
    /* The number of a disk's device may change from boot to boot. */
    if (!S_ISREG(st.st_mode) || st.st_ino != header->live_inode ||
        (st.st_dev != header->live_device && header->boot == store->identity.boot)) {
        return cl_fail(CL_CORRUPT, 0, "registry: %s is not the file that was created with it", live);
    }
    return CL_OK;
}

static int open_once(cl_store *store)
{
    int rc;
    store->registry_fd = openat(cl_directory(store), CL_REGISTRY_FILE, O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (store->registry_fd < 0) {
        if (errno != ENOENT) {
            return cl_fail(CL_SYSTEM, errno, "opening the registry");
        }
        rc = make_registry(cl_directory(store), &store->identity, &store->settings);
        store->made |= rc == CL_OK;
        return rc == CL_OK ? CL_RETRY : rc;
    }
    struct stat st;
    cl_header header;
    rc = cl_read_header(store->registry_fd, &header, &st);
    if (rc == CL_OK) {
        store->registry_id = header.id;
        rc = open_live(store, &header);
    }
    if (rc != CL_OK) {
        return rc;
    }
    store->base = mmap(NULL, CL_REGISTRY_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, store->registry_fd, 0);
    if (store->base == MAP_FAILED) {
        store->base = NULL;
        return cl_fail(CL_SYSTEM, errno, "mapping the registry");
    }
    cl_keep_out_of_dumps(store->base, CL_REGISTRY_SIZE);
    cl_point_tables(store);
    if (store->control->guard != CL_GUARD || store->control->guard_end != CL_GUARD) {
        return cl_fail(CL_CORRUPT, 0, "registry: the control area is overwritten");
    }
    rc = cl_check_lengths(store->control);
    if (rc != CL_OK) {
        return rc;
    }
    rc = cl_spill_join(store);
    if (rc != CL_OK) {
        return rc;
    }
    if (header.boot != store->identity.boot) {
        return of_another_boot(store);
    }
    if (store->control->removed && !CL_MUTANT(registry_opened_though_removed)) {
        rc = discard(store); /* its last owner was killed, or is removing it: then CL_AGAIN */
        return rc == CL_OK || rc == CL_AGAIN
                   ? CL_RETRY
                   : cl_fail(CL_CORRUPT, 0, "registry: it is marked as removed but has names");
    }
    store->registry_device = st.st_dev;
    store->registry_inode = st.st_ino;
    store->live_device = header.live_device;
    store->live_inode = header.live_inode;
    rc = cl_here_begin(store);
    if (rc == CL_OK) {
        store->open = 1;
        rc = cl_join(store);
        if (rc != CL_OK) {
            store->open = 0;
        }
    }
    return rc;
}

int cl_store_open(cl_store *store, int directory, const cl_identity *identity, const cl_settings *settings)
{
    memset(store, 0, sizeof *store);
    cl_thread_lock_init(&store->mutex);
    cl_directory_keep(store, directory);
    store->registry_fd = store->life_fd = store->spare_fd = store->fork_life_fd = -1;
    store->live_fd = -1;
    store->identity = *identity;
    store->settings = *settings;
    store->nonce = cl_random64();
    store->slot = CL_MAX_OWNERS; /* there is none yet */
    int rc = CL_RETRY;
    int64_t until = cl_monotonic_ns() + OPEN_NS;
    for (int tries = 0; rc == CL_RETRY || rc == CL_TIMEOUT; tries++) {
        if (tries > 4) { /* making a registry takes some 0.1 ms */
            struct timespec nap = {.tv_nsec = 500000};
            nanosleep(&nap, NULL);
        }
        rc = open_once(store);
        if (rc != CL_OK) {
            cl_error kept = *cl_last_error();
            close_files(store);
            *cl_last_error() = kept;
        }
        if (cl_monotonic_ns() > until) {
            break;
        }
    }
    if (rc == CL_TIMEOUT) {
        rc = cl_fail(CL_RETRY, 0, "process %u holds the registry's lock and makes no progress: it may be stopped",
                     cl_waits()->pid);
    } else if (rc == CL_RETRY) {
        cl_fail(CL_RETRY, 0, "another process is creating or removing %s and makes no progress", CL_REGISTRY_FILE);
    }
    if (rc == CL_OK && store->made) {
        cl_sweep(store);
        cl_spill_sweep(store);
    }
    return rc;
}

/* ---- leaving for good */

/* How many other processes use the registry, and how many of them are leaving it. */
static int others_live(cl_store *store, int *leaving)
{
    int n = 0;
    *leaving = 0;
    for (uint32_t i = 0; i < store->control->owners_high && i < CL_CARETAKER; i++) {
        const cl_owner *o = &store->owners[i];
        if (i != store->slot && o->state != CL_OWNER_FREE && cl_owner_life(store, i, o->incarnation) == CL_ALIVE) {
            n++;
            *leaving += o->leaving != 0;
        } else if (i != store->slot && o->state == CL_OWNER_GONE && o->unregistered != 0) {
            n++; /* a forked copy of it may live, with everything that it held */
        }
    }
    return n + (store->owners[store->slot].unregistered != 0);
}

/* Unmap what this process does not use. Under the mutex, before the registry's lock is taken: it may take long. */
static int drop_maps(cl_store *store)
{
    int in_use = 0;
    for (uint32_t i = store->nmaps; i-- > 0;) {
        if (store->by_address[i]->in_use == 0) {
            cl_map_drop(store, store->by_address[i]);
        } else {
            in_use = 1;
        }
    }
    cl_maps_discard(cl_maps_dropped(store));
    if (store->nmaps == 0) {
        free(store->maps);
        free(store->by_address);
        store->maps = store->by_address = NULL;
        store->maps_room = 0;
    }
    return in_use;
}

/* No other process is left: remove everything that was not asked to persist. The lock is kept, or a process could join
 * what is about to be removed. 1: the registry is removed. */
static int take_all_away(cl_store *store)
{
    uint32_t given;
    store->leaving = 1;
    cl_scan(store, CL_SCAN_FORCE | CL_SCAN_KEEP_LOCK, NULL);
    do { /* this many at a time */
        uint32_t steps = UINT32_MAX;
        cl_trim_locked(store, 0, INT64_MAX, NULL, &steps);
        given = store->ngoing;
        cl_finish_going(store, 1);
    } while (given != 0);
    int kept = store->control->total_bytes != 0 || store->control->messages != 0 || store->control->persistent != 0;
    if (kept && !atomic_load_explicit(&store->adrift, memory_order_relaxed)) { /* adrift: no process can come for it */
        return 0;
    }
    return discard(store) == CL_OK; /* not now: a process is joining */
}

/* Leaving, and what SIGKILL leaves: the slot belongs to this process until it ends. When this process no longer uses
 * memory, the slot is marked gone, under the lock; then the lock is released; then the byte. If the process is killed
 * at any step, the byte is free and the next scan continues; that scan frees the slot in any case. */
int cl_store_leave(cl_store *store)
{
    int removed = 0;
    int64_t deadline = cl_monotonic_ns() + 200000000;
    cl_fork_forget(store);
    for (;;) {
        int rc = cl_enter_tables(store, CL_MAY_WAIT);
        int mine = rc == CL_OK && drop_maps(store);
        if (rc == CL_OK) {
            rc = cl_lock_registry(store, CL_OP_REAP, cl_monotonic_ns() + CL_SLICE_NS);
            if (rc != CL_OK) {
                cl_leave_tables(store);
            }
        }
        if (rc == CL_AGAIN && cl_monotonic_ns() < deadline) {
            continue;
        }
        if (rc != CL_OK) {
            return 0;
        }
        store->owners[store->slot].leaving = 1;
        int leaving, others;
        if (cl_scan(store, CL_SCAN_FORCE, NULL) == CL_AGAIN) { /* and the lock could not be taken again */
            cl_leave(store);
            continue;
        }
        others = others_live(store, &leaving);
        if (others == 0 || others > leaving || cl_monotonic_ns() >= deadline) {
            /* Arrays that are still in use are released only by the end of the process: a thread may write to them. The
             * other holds are drafts for a queue that were never put. */
            int ends = others == 0 || !mine;
            if (ends) {
                cl_owner_end(store, store->slot);
                if (others == 0) {
                    removed = take_all_away(store);
                } else {
                    cl_scan(store, CL_SCAN_FORCE, NULL);
                }
            }
            cl_unlock_registry(store);
            store->open = 0;
            if (ends) {
                drop_maps(store); /* those whose segments were removed */
                cl_life_end(store);
            }
            cl_leave_tables(store);
            return removed;
        }
        cl_leave(store);
        struct timespec nap = {.tv_nsec = 1000000};
        nanosleep(&nap, NULL);
    }
}
