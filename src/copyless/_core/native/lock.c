#define _GNU_SOURCE
#include "lock.h"

static int take(cl_au32 *word, uint32_t expected, uint32_t desired)
{
    /* acquire, pairs with "lock released" in cl_unlock: all writes of the last holder are visible */
    return atomic_compare_exchange_strong_explicit(
        word, &expected, desired, CL_ORDER(lock_acquire_relaxed, memory_order_acquire), memory_order_relaxed);
}

cl_waiting *cl_waits(void)
{
    static _Thread_local cl_waiting waiting;
    return &waiting;
}

static void waits_for(uint32_t seen)
{
    cl_waiting *w = cl_waits();
    if (w->holder != (seen & ~CL_LOCK_SLEEP)) {
        *w = (cl_waiting){.holder = seen & ~CL_LOCK_SLEEP, .since_ns = cl_monotonic_ns()};
    }
}

int cl_lock_awake(cl_au32 *word, uint32_t self, int slept, uint32_t *out, cl_spin *spin, cl_life_of life_of,
                  void *context)
{
    uint32_t mine = slept && !CL_MUTANT(lock_sleeper_forgets_others)
                        ? self | CL_LOCK_SLEEP
                        : self; /* a thread that slept wakes one more when it unlocks */
    for (;;) {
        uint32_t seen = atomic_load_explicit(word, memory_order_relaxed); /* take() synchronises */
        if ((seen & ~CL_LOCK_SLEEP) == 0) {
            if (take(word, seen, mine)) {
                CL_KILL_POINT();
                cl_waits()->holder = 0;
                return CL_OK;
            }
            continue;
        }
        if (cl_spin_wait(word, seen, spin)) {
            continue;
        }
        uint32_t slot = CL_LOCK_SLOT(seen);
        switch (slot == 0 ? CL_NOBODY : life_of(context, slot - 1, CL_LOCK_INCARNATION(seen))) {
        case CL_ALIVE:
            break;
        case CL_DEAD:
            if (take(word, seen, self | (CL_MUTANT(lock_takeover_loses_sleepers) ? 0 : CL_LOCK_SLEEP))) {
                CL_KILL_POINT();
                cl_waits()->holder = 0;
                return CL_OWNER_DIED;
            }
            continue;
        case CL_NOBODY:
            /* The holder may have unlocked and been freed between the two reads. If the word is unchanged, that proves
             * damage, because a holder's slot is never given away. */
            if (atomic_load(word) == seen) {
                return cl_fail(CL_CORRUPT, 0, "lock word 0x%08x names no owner", seen);
            }
            continue;
        }
        if (!(seen & CL_LOCK_SLEEP) &&
            !atomic_compare_exchange_strong_explicit(word, &seen, seen | CL_LOCK_SLEEP, memory_order_relaxed,
                                                     memory_order_relaxed)) { /* only marks: it publishes nothing */
            continue;
        }
        waits_for(seen);
        *out = seen | CL_LOCK_SLEEP;
        return CL_AGAIN;
    }
}

int cl_lock(cl_au32 *word, uint32_t self, int64_t deadline_ns, cl_spin *spin, cl_life_of life_of, void *context)
{
    uint32_t seen = atomic_load_explicit(word, memory_order_relaxed);
    while (deadline_ns == 0) {
        if ((seen & ~CL_LOCK_SLEEP) != 0) {
            return CL_AGAIN;
        }
        if (take(word, seen, self)) {
            CL_KILL_POINT();
            return CL_OK;
        }
        seen = atomic_load_explicit(word, memory_order_relaxed);
    }
    for (int slept = 0;; slept = 1) {
        int rc = cl_lock_awake(word, self, slept, &seen, spin, life_of, context);
        if (rc != CL_AGAIN) {
            return rc;
        }
        int waited = cl_sleep(word, seen, deadline_ns, spin);
        if (waited == CL_TIMEOUT || waited == CL_AGAIN) {
            /* A free word with sleepers is left by a holder that was killed before its wake: check once more before
             * leaving. */
            seen = atomic_load_explicit(word, memory_order_relaxed);
            if ((seen & ~CL_LOCK_SLEEP) == 0 && !CL_MUTANT(lock_looks_once) && take(word, seen, self | CL_LOCK_SLEEP)) {
                CL_KILL_POINT();
                cl_waits()->holder = 0;
                return CL_OK;
            }
            return waited;
        }
    }
}

int cl_unlock_own(cl_au32 *word, uint32_t self)
{
    uint32_t seen = atomic_load_explicit(word, memory_order_relaxed);
    do {
        if ((seen & ~CL_LOCK_SLEEP) != self) {
            return cl_fail(CL_CORRUPT, 0, "this process does not hold the lock: its word is 0x%08x, expected 0x%08x",
                           seen, self);
        }
        /* release: "lock released" */
    } while (!atomic_compare_exchange_weak_explicit(
        word, &seen, 0, CL_ORDER(lock_release_relaxed, memory_order_release), memory_order_relaxed));
    CL_KILL_POINT();
    if ((seen & CL_LOCK_SLEEP) && !CL_MUTANT(lock_wakes_nobody)) {
        cl_wake(word, 1);
    }
    return CL_OK;
}

void cl_unlock(cl_au32 *word)
{
    /* release: "lock released" */
    uint32_t old = atomic_exchange_explicit(word, 0, CL_ORDER(lock_release_relaxed, memory_order_release));
    CL_KILL_POINT();
    if ((old & CL_LOCK_SLEEP) && !CL_MUTANT(lock_wakes_nobody)) {
        cl_wake(word, 1);
    }
}
