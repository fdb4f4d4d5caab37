/* Room for the registry's tables: in the registry's own file and, when memory is full, in a file beside the spilled
 * items (the file of books).
 *
 * Promise: operations that must work when memory is full need no shared memory for their table entries. If the mount
 * has no room for the next part of a table, that part is put into a file in the spill directory, at the same offset,
 * and is mapped at the same address. Code that reads or writes an entry does not notice the difference.
 *
 *   the registry, as each process has it mapped
 *   +---------+--------+------------------------+----------+-------------------------------------+
 *   | ...     | names  | holds                  | segments                                       |
 *   |         |        |          : beside[..]  |          : beside[CL_TABLE_SEGMENTS]           |
 *   +---------+--------+----------:-------------+----------:-------------------------------------+
 *    registry.N                   : books.N.<id>  registry.N : books.N.<id>
 *
 * A table has pages for one step more than it counts, as long as the mount has room for them. The last step is reserved
 * for spilled blocks and for processes that join: a segment in the mount does not use it (cl_table_grow, `last`). 32
 * KiB of the mount are reserved for the table of owners, which is read without the lock and never continues in the file
 * of books.
 *
 * Steps, and what SIGKILL leaves: (1) the file is made and its room reserved: a file that is removed with the registry;
 * (2) this process maps it; (3) `beside` of the table is set: no process reads it before step 4; (4) the table's bit in
 * `books` is set: the new part has no entry yet; (5) one transaction counts the entries. Every process reads `books`
 * when it takes the lock, before it applies what a dead holder had committed. */
#define _GNU_SOURCE
#include "store.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#define KEPT_FOR_OWNERS ((uint64_t)32 << 10)

static const struct {
    uint64_t begin, end;
} TABLES[CL_TABLES] = {
    [CL_TABLE_NAMES] = {CL_OFF_NAMES, CL_OFF_HOLDS},
    [CL_TABLE_HOLDS] = {CL_OFF_HOLDS, CL_OFF_SEGMENTS},
    [CL_TABLE_SEGMENTS] = {CL_OFF_SEGMENTS, CL_OFF_MARKS},
};
_Static_assert(CL_OFF_HOLDS % CL_PAGE == 0 && CL_OFF_MARKS % CL_PAGE == 0, "tables end on pages");

static int open_file(cl_store *store, int make)
{
    char file[CL_FILE_NAME];
    struct stat st;
    cl_file_name(file, CL_BOOKS_PREFIX, store->registry_id);
    int flags = O_RDWR | O_NOFOLLOW | O_CLOEXEC | (make ? O_CREAT : 0);
    int fd = -1;
    for (int again = 0; again < 2 && fd < 0; again++) {
        int directory = cl_home(store, CL_SPILLED, make);
        if (directory < 0) {
            errno = ENOENT;
            return -1;
        }
        fd = openat(directory, file, flags, 0600);
        if (fd < 0 && errno == EACCES && fchmodat(directory, file, 0600, 0) == 0) { /* made under an unusual umask */
            fd = openat(directory, file, flags, 0600);
        }
        if (fd < 0 && errno != ENOENT) {
            return -1;
        }
        if (fd < 0) {
            cl_spill_forget(store); /* the directory was removed, and another was made, meanwhile */
            errno = ENOENT;
        }
    }
    if (fd < 0) {
        return -1;
    }
    if ((make && fchmod(fd, 0600) != 0) || fstat(fd, &st) != 0 || !S_ISREG(st.st_mode) || st.st_uid != geteuid() ||
        ((uint64_t)st.st_size < CL_REGISTRY_SIZE && (!make || ftruncate(fd, (off_t)CL_REGISTRY_SIZE) != 0))) {
        close(fd);
        errno = EINVAL;
        return -1;
    }
    return fd;
}

/* Map the part of a table in the file over the registry's. */
static int cover(cl_store *store, int fd, uint32_t table, uint64_t begin)
{
    if (begin % CL_PAGE != 0 || begin < TABLES[table].begin || begin >= TABLES[table].end) {
        return cl_fail(CL_CORRUPT, 0, "registry: the recorded place %llu of a table is invalid",
                       (unsigned long long)begin);
    }
    uint64_t length = TABLES[table].end - begin;
    if (mmap(store->base + begin, length, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, (off_t)begin) ==
        MAP_FAILED) {
        return cl_fail(CL_SYSTEM, errno, "mapping the registry's tables in the spill directory");
    }
    cl_keep_out_of_dumps(store->base + begin, length);
    return CL_OK;
}

int cl_books_follow(cl_store *store)
{
    /* acquire, pairs with "books lie there": the offsets are in memory before their bit is */
    uint32_t there = atomic_load_explicit(&store->control->books, memory_order_acquire);
    if (there == store->books) {
        return CL_OK;
    }
    int fd = open_file(store, 0);
    if (fd < 0) {
        return cl_fail(
            CL_FOREIGN, errno,
            "when memory was full, part of the registry's tables was written to %.64s, which cannot be opened here "
            "(%s): give all processes the same directory; if it was removed, end the programs that use shared memory",
            store->spill.path[0] ? store->spill.path : "a spill directory", strerror(errno));
    }
    int rc = CL_OK;
    for (uint32_t table = 0; rc == CL_OK && table < CL_TABLES; table++) {
        if ((there & ~store->books & 1u << table) != 0) {
            rc = cover(store, fd, table, store->control->beside[table]);
            store->books |= rc == CL_OK ? 1u << table : 0;
        }
    }
    close(fd);
    return rc;
}

int cl_reserve_fd(int fd, uint64_t offset, uint64_t length)
{
    int rc;
    do {
        rc = cl_reserve_room(fd, offset, length);
    } while (rc == EINTR);
    if (rc == ENOSPC) {
        cl_fail(CL_FULL, rc, "no room for %llu bytes of bookkeeping", (unsigned long long)length);
        cl_last_error()->asked = length;
        return CL_FULL;
    }
    return rc == 0 ? CL_OK : cl_fail(CL_SYSTEM, rc, "reserving the registry");
}

int cl_reserve(cl_store *store, uint64_t offset, uint64_t length)
{
    if (!cl_is_file(store->registry_fd, store->registry_device, store->registry_inode)) {
        if (atomic_load_explicit(&store->adrift, memory_order_relaxed)) { /* for ever: the tables go on beside it */
            return cl_fail(CL_FULL, ENOENT, "the registry's file was " CL_WHY_REMOVED);
        }
        return cl_fail(CL_SYSTEM, EBADF, "this program closed the registry's file descriptor");
    }
    return cl_reserve_fd(store->registry_fd, offset, length);
}

/* Get pages in the mount. If there is a spill directory, a margin is left in the mount, since there is another way. */
static int reserve_here(cl_store *store, uint64_t begin, uint64_t length)
{
    struct statvfs fs;
    if (store->spill.path[0] != 0 && cl_mount_room(store->registry_fd, &fs) &&
        (uint64_t)fs.f_bavail * fs.f_frsize < length + KEPT_FOR_OWNERS) {
        cl_fail(CL_FULL, ENOSPC, "no room for %llu bytes of bookkeeping", (unsigned long long)length);
        cl_last_error()->asked = length;
        return CL_FULL;
    }
    return cl_reserve(store, begin, length);
}

static int lies_beside(const cl_control *control, uint32_t table)
{
    return (atomic_load_explicit(&control->books, memory_order_relaxed) & 1u << table) != 0;
}

static int reserve_beside(cl_store *store, uint32_t table, uint64_t begin, uint64_t length)
{
    cl_control *c = store->control;
    int there = lies_beside(c, table);
    uint64_t from = there ? c->beside[table] : (begin + CL_PAGE - 1) / CL_PAGE * CL_PAGE;
    uint64_t at = begin > from ? begin : from; /* the first entry may begin in a page that the mount has */
    int fd = open_file(store, 1);
    if (fd < 0) {
        return cl_fail(errno == ENOSPC ? CL_FULL : CL_SYSTEM, errno,
                       "reserving room for the registry's tables in %.64s", store->spill.path);
    }
    int rc = begin + length > at ? cl_reserve_fd(fd, at, begin + length - at) : CL_OK;
    CL_KILL_POINT();
    if (rc == CL_OK && !there) {
        rc = cover(store, fd, table, from);
        if (rc == CL_OK) {
            store->books |= 1u << table;
            c->beside[table] = from;
            CL_KILL_POINT();
            atomic_fetch_or_explicit(&c->books, 1u << table, memory_order_release); /* "books lie there" */
            CL_KILL_POINT();
        }
    }
    close(fd);
    return rc;
}

/* Get pages for up to *n entries from `from` on; for fewer if there is room only for fewer. */
static int reserve(cl_store *store, const cl_table *table, uint32_t from, uint32_t *n, int beside)
{
    uint64_t begin = table->offset + (uint64_t)from * table->stride;
    int rc = CL_FULL, elsewhere = lies_beside(store->control, table->number);
    *n = *n < table->most - from ? *n : table->most - from;
    uint32_t most = *n;
    while (!elsewhere && (rc = reserve_here(store, begin, *n * table->stride)) == CL_FULL && *n > 1) {
        *n = *n > 4 ? *n / 4 : 1;
    }
    cl_error here = *cl_last_error();
    if (rc == CL_FULL && (beside || elsewhere) && store->spill.path[0] != 0) {
        *n = most;
        while ((rc = reserve_beside(store, table->number, begin, *n * table->stride)) == CL_FULL && *n > 1) {
            *n = *n > 4 ? *n / 4 : 1;
        }
    }
    if (rc == CL_OK) {
        return rc;
    }
    if (rc == CL_FULL && beside && !elsewhere) { /* using the margin is better than failing */
        rc = cl_reserve(store, begin, *n * table->stride);
        if (rc == CL_FULL) {
            *cl_last_error() = here;
        }
    }
    return rc;
}

int cl_table_grow(cl_store *store, const cl_table *table, uint32_t n, int last)
{
    uint32_t high = *table->high, *paged = &store->control->paged[table->number];
    if (high >= table->most) {
        return cl_fail(CL_TABLE_FULL, 0, "all %u %s are taken", high, table->what);
    }
    n = n < table->most - high ? n : table->most - high;
    uint32_t ready = *paged > high ? *paged - high : 0, ahead = n;
    int rc = CL_OK;
    if (ready == 0) {
        ready = n;
        rc = reserve(store, table, high, &ready, last);
        if (rc != CL_OK) {
            return rc;
        }
        *paged = high + ready; /* after the pages are there; a hint */
    }
    n = n < ready ? n : ready;
    if (n == ready && high + n < table->most) { /* one step ahead */
        rc = reserve(store, table, high + n, &ahead, 0);
        if (rc == CL_OK) {
            *paged = high + n + ahead;
        } else if (!last) {
            return rc; /* these are for spilled blocks, and for processes that join */
        }
    }
    uint8_t *entry = store->base + table->offset + (uint64_t)high * table->stride;
    for (uint32_t i = high; i < high + n; i++, entry += table->stride) {
        *(uint32_t *)(void *)(entry + table->state_at) = 0;
        *(uint32_t *)(void *)(entry + table->next_at) = i + 1 < high + n ? i + 2 : 0;
    }
    cl_txn txn = cl_begin(store->base);
    cl_set32(&txn, table->free, high + 1);
    cl_set32(&txn, table->high, high + n);
    cl_commit(&txn);
    return CL_OK;
}

void cl_books_remove(cl_store *store)
{
    char file[CL_FILE_NAME];
    cl_file_name(file, CL_BOOKS_PREFIX, store->registry_id);
    int directory = store->spill.path[0] != 0 ? cl_home(store, CL_SPILLED, 0) : -1;
    if (directory >= 0) {
        unlinkat(directory, file, 0);
    }
}
