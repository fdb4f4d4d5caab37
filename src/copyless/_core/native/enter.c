/* The way in: the store's mutex, the registry's lock, and whether the owner of that lock lives.
 *
 * Promise: the registry is entered only after its file was seen to be whole. A process that dies with the lock keeps
 * no other out: the next process that waits for it takes the lock over and finishes what the dead one had committed.
 *
 * An owner is alive exactly as long as byte `slot` of the liveness file is locked. The kernel drops the lock with the
 * last descriptor of the opening that took it, so at the owner's end however it ends. The file is opened once per
 * owner, never mapped and never passed on through exec.
 *
 * What SIGKILL leaves: the registry's lock with a dead owner's name in it, and at most one committed transaction that
 * is not applied to its end. */
#define _GNU_SOURCE
#include "store.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>

struct flock cl_owner_byte(uint32_t slot, short type)
{
    return (struct flock){.l_type = type, .l_whence = SEEK_SET, .l_start = slot, .l_len = 1};
}

int cl_owner_byte_locked(int fd, uint32_t slot)
{
    struct flock fl = cl_owner_byte(slot, F_WRLCK);
    return fcntl(fd, F_OFD_GETLK, &fl) != 0 || fl.l_type != F_UNLCK; /* in doubt it lives */
}

cl_life cl_owner_life(cl_store *store, uint32_t slot, uint32_t incarnation)
{
    if (slot >= CL_MAX_OWNERS - 1 || slot >= store->control->owners_high) {
        return CL_NOBODY;
    }
    /* The incarnation alone tells: an owner that leaves frees its slot while it still holds the registry's lock. */
    const cl_owner *o = &store->owners[slot];
    if (*(const volatile uint32_t *)&o->state > CL_OWNER_LIVE ||
        ((*(const volatile uint32_t *)&o->incarnation ^ incarnation) & 0x7ffffu) != 0) {
        return CL_NOBODY;
    }
    if (slot == store->slot || slot + 1 == store->fork_slot) {
        return CL_ALIVE; /* our own descriptor does not conflict with itself */
    }
    return cl_owner_byte_locked(store->live_fd, slot) ? CL_ALIVE : CL_DEAD;
}

int cl_reserve_fd(int fd, uint64_t offset, uint64_t length)
{
    int rc;
    do {
        rc = posix_fallocate(fd, (off_t)offset, (off_t)length);
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
    return cl_reserve_fd(store->registry_fd, offset, length);
}

int cl_check_registry(cl_store *store)
{
    struct stat st;
    if (fstat(store->registry_fd, &st) != 0) {
        return cl_fail(CL_SYSTEM, errno, "reading the registry");
    }
    if ((uint64_t)st.st_size != CL_REGISTRY_SIZE) { /* before any access: beyond the end is SIGBUS */
        return cl_fail(CL_CORRUPT, 0, "registry: file of %lld bytes, expected %llu", (long long)st.st_size,
                       (unsigned long long)CL_REGISTRY_SIZE);
    }
    if (st.st_nlink == 0) {
        return cl_fail(CL_CORRUPT, 0, "registry: the file was removed or replaced under us");
    }
    if (*(volatile uint64_t *)store->base != CL_MAGIC || store->control->guard != CL_GUARD ||
        store->control->guard_end != CL_GUARD) {
        return cl_fail(CL_CORRUPT, 0, "registry: header or control area is overwritten");
    }
    return CL_OK;
}

static cl_life life_of(void *context, uint32_t slot, uint32_t incarnation)
{
    return cl_owner_life(context, slot, incarnation);
}

int cl_lock_registry(cl_store *store, enum cl_op op, int64_t deadline_ns)
{
    int rc = store->open ? cl_check_registry(store) : cl_fail(CL_CLOSED, 0, "the store is not open");
    if (rc != CL_OK) {
        return rc;
    }
    cl_owner *me = &store->owners[store->slot];
    /* relaxed: read by others only after our death */
    atomic_store_explicit(&me->op, op, memory_order_relaxed);
    rc = cl_lock(&store->control->lock, CL_LOCK_WORD(store->slot, store->incarnation), deadline_ns, &store->spin,
                 life_of, store);
    if (rc == CL_OWNER_DIED) {
        store->control->recoveries++;
        rc = cl_replay(store->base);
    } else if (rc != CL_OK) {
        atomic_store_explicit(&me->op, CL_OP_NONE, memory_order_relaxed);
        return rc == CL_TIMEOUT ? CL_AGAIN : rc;
    }
    if (rc == CL_OK && (me->state == CL_OWNER_FREE || me->incarnation != store->incarnation)) {
        rc = cl_fail(CL_CORRUPT, 0, "registry: our owner slot %u is overwritten", store->slot);
    }
    if (rc != CL_OK) {
        cl_unlock(&store->control->lock);
    }
    return rc;
}

/* The forking thread already has the mutex, from prepare to the end of the fork. */
static int in_own_fork(cl_store *store)
{
    return atomic_load_explicit(&store->forking, memory_order_acquire) &&
           pthread_equal(atomic_load(&store->fork_thread), pthread_self());
}

int cl_enter_tables(cl_store *store, unsigned flags)
{
    if (in_own_fork(store) || pthread_mutex_trylock(&store->mutex) == 0) {
        return CL_OK;
    }
    if (!(flags & CL_MAY_WAIT)) {
        return CL_AGAIN;
    }
    int64_t until = cl_monotonic_ns() + CL_SLICE_NS;
    struct timespec t = {.tv_sec = until / 1000000000, .tv_nsec = until % 1000000000};
#ifdef __SANITIZE_THREAD__ /* its runtime does not know clocklock */
    return (void)t, pthread_mutex_lock(&store->mutex) == 0 ? CL_OK : CL_AGAIN;
#else
    return pthread_mutex_clocklock(&store->mutex, CLOCK_MONOTONIC, &t) == 0 ? CL_OK : CL_AGAIN;
#endif
}

void cl_leave_tables(cl_store *store)
{
    if (!in_own_fork(store)) {
        pthread_mutex_unlock(&store->mutex);
    }
}
