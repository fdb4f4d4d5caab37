#define _GNU_SOURCE
#include "thread_lock.h"

#define HELD_WANTED 2u

int cl_thread_lock_until(cl_thread_lock *lock, int64_t deadline_ns)
{
    if (cl_thread_trylock(lock)) {
        return 1;
    }
    /* A thread that finds it free here sets 2 although perhaps no other thread waits: that costs one unneeded wake. */
    while (atomic_exchange_explicit(&lock->word, HELD_WANTED, memory_order_acquire) != 0) {
        if (cl_wait(&lock->word, HELD_WANTED, deadline_ns, NULL) != CL_OK) {
            return 0;
        }
    }
    return 1;
}

void cl_thread_lock_take(cl_thread_lock *lock)
{
    while (!cl_thread_lock_until(lock, CL_FOREVER)) {
    }
}

void cl_thread_unlock(cl_thread_lock *lock)
{
    if (atomic_exchange_explicit(&lock->word, 0, memory_order_release) == HELD_WANTED) {
        cl_wake(&lock->word, 1);
    }
}
