/* A lock between the threads of one process, with a deadline on the monotonic clock.
 *
 * pthread_mutex_clocklock does the same, but glibc has it only since 2.30, and musl does not have it. The word: 0 free,
 * 1 held, 2 held and a thread may sleep. It is never in shared memory, so it ends with its process. */
#ifndef CL_THREAD_LOCK_H
#define CL_THREAD_LOCK_H

#include "wait.h"

typedef struct cl_thread_lock {
    cl_au32 word;
} cl_thread_lock;

static inline void cl_thread_lock_init(cl_thread_lock *lock)
{
    atomic_init(&lock->word, 0);
}

/* 1: this thread has the lock now. */
static inline int cl_thread_trylock(cl_thread_lock *lock)
{
    uint32_t is_free = 0;
    return atomic_compare_exchange_strong_explicit(&lock->word, &is_free, 1, memory_order_acquire,
                                                   memory_order_relaxed);
}

/* 1: this thread has the lock; 0: the deadline passed, or a signal came. */
int cl_thread_lock_until(cl_thread_lock *lock, int64_t deadline_ns);
void cl_thread_lock_take(cl_thread_lock *lock); /* waits without a deadline */
void cl_thread_unlock(cl_thread_lock *lock);

#endif
