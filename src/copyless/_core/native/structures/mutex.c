#define _GNU_SOURCE
#include "sync.h"

static cl_life life_of(void *context, uint32_t slot, uint32_t incarnation)
{
    /* Unlike the registry's lock, a user's lock may be held by a process that was reaped long ago, and whose slot
     * another process has now. */
    cl_life life = cl_owner_life(context, slot, incarnation);
    return life == CL_NOBODY && slot < CL_MAX_OWNERS - 1 && !CL_MUTANT(lock_nobody_is_damage) ? CL_DEAD : life;
}

int cl_mutex_lock(cl_store *store, cl_au32 *word, int64_t deadline_ns, cl_spin *spin)
{
    int rc = cl_lock(word, cl_self(store), deadline_ns, spin, life_of, store);
    if ((rc == CL_AGAIN || rc == CL_TIMEOUT) && deadline_ns != 0) {
        cl_waits()->pid = cl_owner_pid(store, cl_waits()->holder);
    }
    return rc;
}

int cl_mutex_try(cl_store *store, cl_au32 *word, cl_spin *spin)
{
    uint32_t seen;
    int rc = cl_lock_awake(word, cl_self(store), 0, &seen, spin, life_of, store);
    if (rc == CL_AGAIN && cl_poll(word, seen, CL_TRY_NS, spin)) {
        rc = cl_lock_awake(word, cl_self(store), 1, &seen, spin, life_of, store);
    }
    return rc;
}

/* The recursive lock. `thread` and `depth` belong to the holder: a process that takes the lock over sets them again. */

int cl_rlock_is_mine(const cl_store *store, cl_mutex *m, uint64_t thread)
{
    return (atomic_load_explicit(&m->word, memory_order_relaxed) & ~CL_LOCK_SLEEP) == cl_self(store) &&
           atomic_load_explicit(&m->thread, memory_order_relaxed) == thread &&
           atomic_load_explicit(&m->depth, memory_order_relaxed) != 0; /* all three are of this thread or of another */
}

int cl_rlock(cl_store *store, cl_mutex *m, uint64_t thread, int64_t deadline_ns, cl_spin *spin)
{
    if (cl_rlock_is_mine(store, m, thread)) {
        uint32_t depth = atomic_load_explicit(&m->depth, memory_order_relaxed);
        if (depth == UINT32_MAX) {
            return cl_fail(CL_FULL, 0, "the lock was acquired too many times");
        }
        atomic_store_explicit(&m->depth, depth + 1, memory_order_relaxed);
        return CL_OK;
    }
    int rc = cl_mutex_lock(store, &m->word, deadline_ns, spin);
    if (rc == CL_OK || rc == CL_OWNER_DIED) {
        atomic_store_explicit(&m->thread, thread, memory_order_relaxed);
        atomic_store_explicit(&m->depth, 1, memory_order_relaxed);
    }
    return rc;
}

void cl_runlock(cl_mutex *m)
{
    uint32_t depth = atomic_load_explicit(&m->depth, memory_order_relaxed);
    atomic_store_explicit(&m->depth, depth - 1, memory_order_relaxed);
    if (depth == 1) {
        atomic_store_explicit(&m->thread, 0, memory_order_relaxed);
        cl_unlock(&m->word);
    }
}

uint32_t cl_rlock_save(cl_mutex *m)
{
    uint32_t depth = atomic_load_explicit(&m->depth, memory_order_relaxed);
    atomic_store_explicit(&m->depth, 1, memory_order_relaxed);
    cl_runlock(m);
    return depth;
}

int cl_rlock_restore(cl_store *store, cl_mutex *m, uint64_t thread, uint32_t depth, int64_t deadline_ns, cl_spin *spin)
{
    int rc = cl_rlock(store, m, thread, deadline_ns, spin);
    if (rc == CL_OK || rc == CL_OWNER_DIED) {
        atomic_store_explicit(&m->depth, depth, memory_order_relaxed);
    }
    return rc;
}
