/* Entering the registry: the store's mutex, the registry's lock, and the check whether the lock's holder lives.
 *
 * A thread that sleeps for the registry's lock never holds the mutex: the lock's holder may be stopped, and a fork in
 * another thread needs the mutex (operation.c).
 *
 * Promise: the registry is entered only after its file was checked. A process that dies with the lock does not keep
 * others out: the next process that waits for the lock takes it over and finishes what the dead process had committed.
 *
 * Adrift: the registry's file was removed while this process used it. The memory that this process has mapped stays
 * whole and is shared with all processes that have it mapped, so existing locks, queues and arrays continue to work.
 * But no other process can join, and no process can map a segment that it has not mapped yet. So new objects go to
 * another store. Items of this store's queues must stay in it: they go through files in the spill directory. Each
 * process notices the removal by itself, when it next checks the registry. The state never ends.
 *
 * A lock word that names no owner is damage. It is repaired while other processes live if that provably does no harm:
 * the journal is empty, and the audit finds every count and list in order.
 *
 * What SIGKILL leaves: the registry's lock with the name of a dead owner, and at most one committed transaction that
 * is not fully applied. */
#define _GNU_SOURCE
#include "store.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static void go_adrift(cl_store *store)
{
    if (!atomic_exchange_explicit(&store->adrift, 1, memory_order_relaxed)) {
        cl_home(store, CL_SPILLED,
                0); /* marks the directory as used: a new registry in this place would take it for a dead one's */
    }
}

/* The descriptor of the registry's file. The program may have closed it, and its number may belong to a file of the
 * program now. */
static int open_again(cl_store *store)
{
    int directory = cl_directory(store);
    int fd = directory < 0 ? -1 : openat(directory, CL_REGISTRY_FILE, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
    if (fd >= 0 && !cl_is_file(fd, store->registry_device, store->registry_inode)) {
        close(fd);
        fd = -1;
        errno = ENOENT;
    }
    if (fd < 0 && errno == ENOENT) {
        store->registry_fd = -1; /* its number may later be that of another registry */
        go_adrift(store);
        return CL_OK;
    }
    if (fd < 0) {
        return cl_fail(CL_SYSTEM, errno, "reopening the registry");
    }
    store->registry_fd = fd;
    return CL_OK;
}

int cl_check_registry(cl_store *store)
{
    struct stat st;
    int ours = fstat(store->registry_fd, &st) == 0 && st.st_ino == store->registry_inode &&
               st.st_dev == store->registry_device;
    if (!ours && !atomic_load_explicit(&store->adrift, memory_order_relaxed)) {
        int rc = open_again(store);
        if (rc != CL_OK) {
            return rc;
        }
        ours = fstat(store->registry_fd, &st) == 0;
    }
    if (ours && (uint64_t)st.st_size != CL_REGISTRY_SIZE) { /* before any access: beyond the end is SIGBUS */
        return cl_fail(CL_CORRUPT, 0, "registry: the file has %lld bytes, expected %llu", (long long)st.st_size,
                       (unsigned long long)CL_REGISTRY_SIZE);
    }
    if (ours && st.st_nlink == 0) {
        go_adrift(store);
    }
    if (*(volatile uint64_t *)store->base != CL_MAGIC || store->control->guard != CL_GUARD ||
        store->control->guard_end != CL_GUARD) {
        return cl_fail(CL_CORRUPT, 0, "registry: the header or the control area is overwritten");
    }
    return cl_check_lengths(store->control);
}

static cl_life life_of(void *context, uint32_t slot, uint32_t incarnation)
{
    return cl_owner_life(context, slot, incarnation);
}

void cl_set_op(cl_store *store, enum cl_op op)
{
    if (store->slot < CL_CARETAKER) {
        /* relaxed: others read it only after this process's death */
        atomic_store_explicit(&store->owners[store->slot].op, op, memory_order_relaxed);
    }
}

/* The word names no owner. Take the lock from exactly that word; keep it only if nothing else is damaged. */
static int heal(cl_store *store)
{
    uint32_t self = CL_LOCK_WORD(store->slot, store->incarnation);
    uint32_t seen = atomic_load(&store->control->lock);
    if ((seen & ~CL_LOCK_SLEEP) == 0 || (seen & ~CL_LOCK_SLEEP) == self) {
        return CL_AGAIN;
    }
    uint32_t slot = CL_LOCK_SLOT(seen);
    if (slot != 0 && cl_owner_life(store, slot - 1, CL_LOCK_INCARNATION(seen)) != CL_NOBODY) {
        return CL_AGAIN;
    }
    if (!atomic_compare_exchange_strong(&store->control->lock, &seen, self | CL_LOCK_SLEEP)) {
        return CL_AGAIN;
    }
    CL_KILL_POINT();
    int rc = cl_books_follow(store);
    if (rc == CL_OK) {
        rc = atomic_load(&store->control->journal.committed) == 0
                 ? CL_MUTANT(enter_heals_unaudited) ? CL_OK : cl_audit(store)
                 : cl_fail(CL_CORRUPT, 0, "lock word 0x%08x names no owner, and a change is incomplete", seen);
    }
    if (rc != CL_OK) {
        cl_error kept = *cl_last_error();
        atomic_store(&store->control->lock, seen); /* as it was before, so that the next process gets the same error */
        *cl_last_error() = kept;
        return rc;
    }
    store->control->heals++;
    return CL_OK;
}

uint32_t cl_owner_pid(const cl_store *store, uint32_t word)
{
    uint32_t slot = CL_LOCK_SLOT(word); /* + 1 */
    if (slot == 0 || slot >= CL_MAX_OWNERS || slot > store->control->owners_high) {
        return 0;
    }
    const cl_owner *o = &store->owners[slot - 1];
    return ((o->incarnation ^ CL_LOCK_INCARNATION(word)) & CL_INCARNATION) == 0 ? o->pid : 0;
}

static int before_lock(cl_store *store, enum cl_op op)
{
    int rc = store->open ? cl_check_registry(store) : cl_fail(CL_CLOSED, 0, "the store is not open");
    if (rc == CL_OK) {
        rc = cl_books_follow(store);
    }
    if (rc == CL_OK) {
        cl_set_op(store, op);
    }
    return rc;
}

/* Show readers without the lock that the lock was taken. Before anything else is written: "entry counted". */
static void count_entry(cl_control *c)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
    atomic_store_explicit(&c->entries, atomic_load_explicit(&c->entries, memory_order_relaxed) + 1,
                          memory_order_relaxed);
    c->entered_ns = (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
    atomic_thread_fence(memory_order_release);
}

/* The steps that follow with the lock, or without it: `rc` is the result of locking. */
static int after_lock(cl_store *store, int rc)
{
    if (rc == CL_CORRUPT) {
        rc = heal(store);
    }
    if (rc == CL_OK || rc == CL_OWNER_DIED) {
        count_entry(store->control);
    }
    if (rc == CL_OWNER_DIED) {
        store->control->recoveries++;
        rc = CL_OK;
    } else if (rc != CL_OK) {
        cl_set_op(store, CL_OP_NONE);
        cl_waits()->pid = cl_owner_pid(store, cl_waits()->holder);
        return rc == CL_TIMEOUT ? CL_AGAIN : rc;
    }
    rc = cl_books_follow(store); /* an earlier holder may have put tables there; before a journal is applied there */
    if (rc == CL_OK && atomic_load_explicit(&store->control->journal.committed, memory_order_acquire) != 0) {
        rc = cl_replay(store->base); /* of a dead holder, or of one that took over and could not continue */
        rc = rc == CL_OK ? cl_check_lengths(store->control) : rc;
    }
    if (rc == CL_OK && store->slot < CL_CARETAKER && !store->joining) {
        const cl_owner *me = &store->owners[store->slot];
        if ((me->incarnation != store->incarnation || me->state == CL_OWNER_FREE) &&
            !CL_MUTANT(enter_own_slot_unchecked)) {
            rc =
                cl_fail(CL_CORRUPT, 0, "registry: owner slot %u, which is this process's, is overwritten", store->slot);
        }
    }
    if (rc != CL_OK) {
        cl_unlock_own(&store->control->lock, CL_LOCK_WORD(store->slot, store->incarnation));
    }
    return rc;
}

int cl_lock_registry(cl_store *store, enum cl_op op, int64_t deadline_ns)
{
    int rc = before_lock(store, op);
    if (rc == CL_OK) {
        rc = cl_lock(&store->control->lock, CL_LOCK_WORD(store->slot, store->incarnation), deadline_ns, &store->spin,
                     life_of, store);
        rc = after_lock(store, rc);
    }
    return rc;
}

int cl_lock_registry_awake(cl_store *store, enum cl_op op, int slept, uint32_t *seen)
{
    int rc = before_lock(store, op);
    if (rc == CL_OK) {
        rc = cl_lock_awake(&store->control->lock, CL_LOCK_WORD(store->slot, store->incarnation), slept, seen,
                           &store->spin, life_of, store);
        rc = after_lock(store, rc);
    }
    return rc;
}

int cl_enter_tables(cl_store *store, unsigned flags)
{
    if (store->here != NULL && *store->here == 0) {
        return cl_fail(CL_FORKED, 0,
                       "this process was created by clone() without the C library's knowledge: it cannot use its "
                       "parent's shared memory. Use fork(), or call exec");
    }
    if (cl_thread_trylock(&store->mutex)) {
        return CL_OK;
    }
    if (!(flags & CL_MAY_WAIT)) {
        return CL_AGAIN;
    }
    return cl_thread_lock_until(&store->mutex, cl_monotonic_ns() + CL_SLICE_NS) ? CL_OK : CL_AGAIN;
}

void cl_leave_tables(cl_store *store)
{
    cl_thread_unlock(&store->mutex);
}

void cl_point_tables(cl_store *store)
{
    uint8_t *base = store->base;
    store->control = (cl_control *)(void *)(base + CL_OFF_CONTROL);
    store->owners = (cl_owner *)(void *)(base + CL_OFF_OWNERS);
    store->buckets = (uint32_t *)(void *)(base + CL_OFF_BUCKETS);
    store->names = (cl_name *)(void *)(base + CL_OFF_NAMES);
    store->holds = (cl_hold *)(void *)(base + CL_OFF_HOLDS);
    store->segments = (cl_segment *)(void *)(base + CL_OFF_SEGMENTS);
    store->marks = (cl_mark_page *)(void *)(base + CL_OFF_MARKS);
    store->mark_bits = (uint64_t *)(void *)(base + CL_OFF_MARK_BITS);
}
