/* A snapshot: a copy of the registry's tables, made without its lock, for processes that only read.
 *
 * Promise: it never waits for the holder of the lock, whichever process that is and wherever it was stopped or killed.
 * It returns within TRY_NS and the time of a copy. The copy is limited to the length of the file, and says how good it
 * is:
 *
 *   whole   the lock was free before and after, no change was partly applied, and no process had entered meanwhile: the
 *           tables agree with each other
 *   moved   others entered each time: each word is right for some moment of the copy, the tables need not agree
 *   held    one process had the lock from before to after, and still has it after TRY_NS: stopped, or dead, or slow.
 *           What it had committed is applied to the copy; its current operation may be incomplete
 *
 * How this is known: a process that takes the lock counts that in `entries` before it writes anything else ("entry
 * counted"). So if a copy finds the same count before and after, and the lock free both times, no process wrote during
 * the copy. The file is read with pread(): if the registry is truncated during the read, the result is an error, not a
 * SIGBUS, and pages that were never used stay unused.
 *
 * The copy is an image of the registry in private memory, with a `view`, a store over it: the same code as for the
 * registry itself tells which owners live, audits the tables, and replays a journal.
 *
 * A member that finds the lock's holder dead takes the lock over first, as every call does, and then copies. An
 * observer (observe.c) cannot do that, and reports it. */
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

/* Make one copy. The state says what happened; HELD: the same process had the lock all the time. */
static int copy_once(const cl_image *from, cl_store *view, enum cl_snapshot_state *state)
{
    cl_control before, *c = view->control;
    int rc = cl_image_control(from, &before);
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
                 ? cl_image_part(from, parts[i].offset, parts[i].to, parts[i].length)
                 : cl_image_table(from, &before, parts[i].table, parts[i].offset, parts[i].to, parts[i].length);
    }
    if (rc == CL_OK) {
        rc = cl_image_control(from, c); /* pairs with "entry counted" */
    }
    if (rc != CL_OK) {
        return rc;
    }
    int same = entries_of(&before) == entries_of(c) || CL_MUTANT(snapshot_ignores_entries);
    *state = same && is_idle(&before) && is_idle(c)                            ? CL_SNAPSHOT_WHOLE
             : same && holder_of(c) != 0 && holder_of(&before) == holder_of(c) ? CL_SNAPSHOT_HELD
                                                                               : CL_SNAPSHOT_MOVED;
    /* Tables that grew meanwhile were copied up to their earlier length. */
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
    view->base = mmap(NULL, CL_REGISTRY_SIZE, PROT_READ | PROT_WRITE, CL_MAP_LAZILY, -1, 0);
    if (view->base == MAP_FAILED) {
        free(view);
        return NULL;
    }
    cl_keep_out_of_dumps(view->base, CL_REGISTRY_SIZE);
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
        /* Descriptors that had to be reopened for an answer belong to the view. */
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

/* Apply what a holder that makes no progress had committed, and find out which process it is. */
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

/* Check a member's own access to the registry: its descriptor is reopened if it was closed, and a dead holder's lock is
 * taken over. */
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
        rc = rc == CL_AGAIN ? CL_OK : rc; /* another process was faster, and lives */
    }
    return rc;
}

static int copy(cl_store *store, cl_snapshot *out)
{
    cl_image from = {.store = store, .fd = store->registry_fd, .books = -1};
    if (!cl_is_file(from.fd, store->registry_device, store->registry_inode)) {
        if (store->observer) {
            return cl_fail(CL_SYSTEM, EBADF, "this program closed the registry's file descriptor");
        }
        from.fd = -1;
    }
    from.books = cl_image_books(store);
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
        return cl_fail(CL_SYSTEM, ENOMEM, "allocating a copy of the registry's tables");
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
