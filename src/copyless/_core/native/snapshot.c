/* A snapshot: the registry's tables, copied without its lock, for those who only look.
 *
 * Promise: never waits for the holder of the lock, whoever that is and wherever it was stopped or killed; comes back within
 * TRY_NS and the time of a copy. What was copied is bounded by what the file has, and says how good it is:
 *
 *   whole   the lock was free before and after, no change was half applied, and nobody had entered meanwhile: the tables
 *           agree with each other
 *   moved   others entered each time: each word is right for some moment of the copy, the tables need not agree
 *   held    one process had the lock from before to after, and still has it after TRY_NS: stopped, or dead, or slow. What it
 *           had committed is applied to the copy; what it was at besides may be half done
 *
 * How it is known: whoever takes the lock counts it in `entries` before it writes anything else ("entry counted"), so a
 * copy between two looks at the same count, with the lock free at both, saw nobody's writing. The file is read by pread():
 * a registry that is cut short meanwhile gives an error, not a SIGBUS, and pages that nobody has used stay unused.
 *
 * The copy is an image of the registry, in private memory, and a `view` stands on it: who lives, the audit and the replay
 * of a journal are the same code as on the registry itself.
 *
 * A member that finds the lock's holder dead takes the lock over first, as every call does, and then copies; an observer
 * (observe.c) cannot, and tells. */
#define _GNU_SOURCE
#include "store.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define TRY_NS ((int64_t)100000000)
#define NAP_NS 500000

static int read_all(int fd, uint64_t offset, void *to, uint64_t length)
{
    for (uint64_t done = 0; done < length;) {
        ssize_t n = pread(fd, (uint8_t *)to + done, length - done, (off_t)(offset + done));
        if (n > 0) {
            done += (uint64_t)n;
        } else if (n == 0) {
            return cl_fail(CL_CORRUPT, 0, "registry: its file ends at %llu", (unsigned long long)(offset + done));
        } else if (errno != EINTR) {
            return cl_fail(CL_SYSTEM, errno, "reading the registry");
        }
    }
    return CL_OK;
}

typedef struct source {
    const cl_store *store;
    int fd; /* -1: the file is gone, and its descriptor closed; what is mapped is left */
    int books;
} source;

static int read_part(const source *from, uint64_t offset, void *to, uint64_t length)
{
    if (from->fd < 0) {
        memcpy(to, from->store->base + offset, length);
        return CL_OK;
    }
    return read_all(from->fd, offset, to, length);
}

/* A table, a part of which may lie in the file of books. */
static int read_table(const source *from, const cl_control *c, enum cl_table_number table, uint64_t offset, void *to,
                      uint64_t length)
{
    uint64_t here = length;
    if ((atomic_load_explicit(&c->books, memory_order_relaxed) >> table & 1u) != 0 && from->fd >= 0) {
        uint64_t beside = c->beside[table];
        here = beside <= offset ? 0 : beside - offset < length ? beside - offset : length;
    }
    int rc = read_part(from, offset, to, here);
    if (rc == CL_OK && here < length) {
        rc = from->books < 0 ? cl_fail(CL_FOREIGN, 0, "a part of the books lies in %.160s, which cannot be opened here",
                                       from->store->spill.path)
                             : read_all(from->books, offset + here, (uint8_t *)to + here, length - here);
    }
    return rc;
}

static int read_control(const source *from, cl_control *c)
{
    atomic_thread_fence(memory_order_seq_cst);
    int rc = read_part(from, CL_OFF_CONTROL, c, sizeof *c);
    atomic_thread_fence(memory_order_seq_cst);
    if (rc == CL_OK && (c->guard != CL_GUARD || c->guard_end != CL_GUARD)) {
        rc = cl_fail(CL_CORRUPT, 0, "registry: header or control area is overwritten");
    }
    return rc == CL_OK ? cl_check_lengths(c) : rc;
}

static uint32_t holder_of(const cl_control *c)
{
    return atomic_load_explicit(&c->lock, memory_order_relaxed) & ~CL_LOCK_SLEEP;
}

static int is_idle(const cl_control *c)
{
    return holder_of(c) == 0 && atomic_load_explicit(&c->journal.committed, memory_order_relaxed) == 0;
}

static uint32_t entries_of(const cl_control *c)
{
    return atomic_load_explicit(&c->entries, memory_order_relaxed);
}

/* One copy. The state says what was seen; HELD: the same process had the lock all the time. */
static int copy_once(const source *from, cl_store *view, enum cl_snapshot_state *state)
{
    cl_control before, *c = view->control;
    int rc = read_control(from, &before);
    if (rc != CL_OK) {
        return rc;
    }
    const struct {
        enum cl_table_number table;
        uint64_t offset, length;
        void *to;
    } parts[] = {
        {CL_TABLES, CL_OFF_OWNERS, before.owners_high * sizeof(cl_owner), view->owners},
        {CL_TABLES, CL_OFF_BUCKETS, CL_BUCKETS * sizeof(uint32_t), view->buckets},
        {CL_TABLES, CL_OFF_MARKS, before.marks_high * sizeof(cl_mark_page), view->marks},
        {CL_TABLE_NAMES, CL_OFF_NAMES, before.names_high * sizeof(cl_name), view->names},
        {CL_TABLE_HOLDS, CL_OFF_HOLDS, before.holds_high * sizeof(cl_hold), view->holds},
        {CL_TABLE_SEGMENTS, CL_OFF_SEGMENTS, before.segments_high * sizeof(cl_segment), view->segments},
    };
    for (size_t i = 0; rc == CL_OK && i < sizeof parts / sizeof *parts; i++) {
        rc = parts[i].table == CL_TABLES
                 ? read_part(from, parts[i].offset, parts[i].to, parts[i].length)
                 : read_table(from, &before, parts[i].table, parts[i].offset, parts[i].to, parts[i].length);
    }
    if (rc == CL_OK) {
        rc = read_control(from, c); /* pairs with "entry counted" */
    }
    if (rc != CL_OK) {
        return rc;
    }
    int same = entries_of(&before) == entries_of(c) || CL_MUTANT(snapshot_ignores_entries);
    *state = same && is_idle(&before) && is_idle(c)                            ? CL_SNAPSHOT_WHOLE
             : same && holder_of(c) != 0 && holder_of(&before) == holder_of(c) ? CL_SNAPSHOT_HELD
                                                                               : CL_SNAPSHOT_MOVED;
    /* Tables that grew meanwhile were copied as far as they reached before. */
    c->owners_high = before.owners_high;
    c->names_high = before.names_high;
    c->holds_high = before.holds_high;
    c->segments_high = before.segments_high;
    c->marks_high = before.marks_high;
    return CL_OK;
}

static cl_store *view_of(cl_store *store)
{
    cl_store *view = calloc(1, sizeof *view);
    if (view == NULL) {
        return NULL;
    }
    view->base =
        mmap(NULL, CL_REGISTRY_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (view->base == MAP_FAILED) {
        free(view);
        return NULL;
    }
    madvise(view->base, CL_REGISTRY_SIZE, MADV_DONTDUMP);
    cl_point_tables(view);
    view->adrift = atomic_load_explicit(&store->adrift, memory_order_relaxed);
    view->directory = atomic_load_explicit(&store->directory, memory_order_relaxed);
    view->live_fd = atomic_load_explicit(&store->live_fd, memory_order_relaxed);
    view->spare_fd = view->life_fd = view->registry_fd = -1;
    view->live_device = store->live_device;
    view->live_inode = store->live_inode;
    view->directory_device = store->directory_device;
    view->directory_inode = store->directory_inode;
    view->spill = store->spill;
    view->spill_fd = store->spill_fd;
    view->spill_device = store->spill_device;
    view->spill_inode = store->spill_inode;
    memcpy(view->path, store->path, sizeof view->path);
    view->registry_id = store->registry_id;
    view->identity = store->identity;
    view->slot = store->slot;
    view->incarnation = store->incarnation;
    return view;
}

void cl_snapshot_free(cl_snapshot *snapshot)
{
    cl_store *view = snapshot->view;
    if (view != NULL) {
        munmap(view->base, CL_REGISTRY_SIZE);
        /* What had to be opened anew to answer is the view's own. */
        if (view->live_fd != snapshot->live_fd && cl_is_file(view->live_fd, view->live_device, view->live_inode)) {
            close(view->live_fd);
        }
        if (view->directory != snapshot->directory &&
            cl_is_file(view->directory, view->directory_device, view->directory_inode)) {
            close(view->directory);
        }
        free(view);
    }
    memset(snapshot, 0, sizeof *snapshot);
}

/* What a holder that does not go on had committed; and who it is. */
static int tell_of_holder(cl_snapshot *out)
{
    cl_control *c = out->view->control;
    int64_t now = cl_monotonic_ns();
    out->holder = holder_of(c);
    out->pid = cl_owner_pid(out->view, out->holder);
    uint32_t slot = CL_LOCK_SLOT(out->holder);
    out->lives = slot != 0 && cl_owner_life(out->view, slot - 1, CL_LOCK_INCARNATION(out->holder)) == CL_ALIVE;
    out->held_ns = c->entered_ns != 0 && (int64_t)c->entered_ns <= now ? now - (int64_t)c->entered_ns : 0;
    if (atomic_load_explicit(&c->journal.committed, memory_order_relaxed) == 0) {
        return CL_OK;
    }
    int rc = cl_replay(out->view->base);
    return rc == CL_OK ? cl_check_lengths(c) : rc;
}

static int open_books(const cl_store *store)
{
    char file[CL_FILE_NAME];
    cl_file_name(file, CL_BOOKS_PREFIX, store->registry_id);
    return store->spill_fd > 0 ? openat(store->spill_fd, file, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC) : -1;
}

/* A member's own way to the registry: sound, found again if its descriptor was closed; and no dead holder in it. */
static int look_in(cl_store *store, unsigned flags)
{
    int rc = cl_enter_tables(store, flags);
    if (rc != CL_OK) {
        return rc;
    }
    rc = store->open ? cl_check_registry(store) : cl_fail(CL_CLOSED, 0, "the store is not open");
    if (rc == CL_OK) {
        rc = cl_books_follow(store);
    }
    uint32_t word = rc == CL_OK ? holder_of(store->control) : 0;
    cl_error kept = *cl_last_error();
    cl_leave_tables(store);
    *cl_last_error() = kept;
    if (word != 0 && cl_owner_life(store, CL_LOCK_SLOT(word) - 1, CL_LOCK_INCARNATION(word)) != CL_ALIVE) {
        rc = cl_enter(store, CL_OP_LIST, flags);
        if (rc == CL_OK) {
            cl_leave(store);
        }
        rc = rc == CL_AGAIN ? CL_OK : rc; /* another was faster, who lives */
    }
    return rc;
}

static int copy(cl_store *store, cl_snapshot *out)
{
    source from = {.store = store, .fd = store->registry_fd, .books = -1};
    if (!cl_is_file(from.fd, store->registry_device, store->registry_inode)) {
        if (store->observer) {
            return cl_fail(CL_SYSTEM, EBADF, "the registry's descriptor was closed just now");
        }
        from.fd = -1;
    }
    from.books = open_books(store);
    int64_t until = cl_monotonic_ns() + TRY_NS;
    int rc;
    for (;;) {
        rc = copy_once(&from, out->view, &out->state);
        if (rc != CL_OK || out->state == CL_SNAPSHOT_WHOLE || cl_monotonic_ns() >= until) {
            break;
        }
        struct timespec nap = {.tv_nsec = NAP_NS};
        nanosleep(&nap, NULL);
    }
    if (rc == CL_OK && out->state == CL_SNAPSHOT_HELD) {
        rc = tell_of_holder(out);
    }
    if (from.books >= 0) {
        close(from.books);
    }
    return rc;
}

int cl_snapshot_take(cl_store *store, cl_snapshot *out, unsigned flags)
{
    memset(out, 0, sizeof *out);
    int rc = store->observer ? CL_OK : look_in(store, flags);
    if (rc != CL_OK) {
        return rc;
    }
    out->of = store;
    out->view = view_of(store);
    if (out->view == NULL) {
        return cl_fail(CL_SYSTEM, ENOMEM, "a copy of the registry's tables");
    }
    out->live_fd = out->view->live_fd;
    out->directory = out->view->directory;
    rc = copy(store, out);
    if (rc != CL_OK) {
        cl_error kept = *cl_last_error();
        cl_snapshot_free(out);
        *cl_last_error() = kept;
        return rc;
    }
    out->view->copy = out;
    out->control = *out->view->control;
    out->owners = out->view->owners;
    out->segments = out->view->segments;
    out->holds = out->view->holds;
    out->names = out->view->names;
    return CL_OK;
}

int cl_snapshot_segment_now(const cl_snapshot *snapshot, uint32_t slot, cl_segment *now)
{
    source from = {.store = snapshot->of, .fd = snapshot->of->registry_fd, .books = open_books(snapshot->of)};
    cl_control c;
    if (!cl_is_file(from.fd, snapshot->of->registry_device, snapshot->of->registry_inode)) {
        from.fd = -1;
    }
    int rc = from.fd < 0 && snapshot->of->base == NULL ? CL_SYSTEM : read_control(&from, &c);
    if (rc == CL_OK) {
        rc = read_table(&from, &c, CL_TABLE_SEGMENTS, CL_OFF_SEGMENTS + (uint64_t)slot * sizeof *now, now, sizeof *now);
    }
    if (from.books >= 0) {
        close(from.books);
    }
    return rc;
}
