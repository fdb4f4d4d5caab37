#define _GNU_SOURCE
#include "sync.h"

#include <limits.h>

int cl_sem_acquire(cl_semaphore *s, int64_t deadline_ns, cl_spin *spin)
{
    uint32_t slept = 0;
    for (;;) {
        uint32_t v = atomic_load_explicit(&s->word, memory_order_relaxed);
        if ((v & ~CL_SEM_SLEEP) != 0) {
            /* acquire, pairs with "permit given back" */
            if (atomic_compare_exchange_weak_explicit(&s->word, &v, (v - 1) | slept, memory_order_acquire,
                                                      memory_order_relaxed)) {
                CL_KILL_POINT();
                if (slept && ((v - 1) & ~CL_SEM_SLEEP) != 0) {
                    cl_wake(&s->word, 1); /* several permits were given back at once: pass the wake on */
                }
                return CL_OK;
            }
            continue;
        }
        if (deadline_ns == 0) {
            return CL_AGAIN;
        }
        if (cl_spin_wait(&s->word, v, spin)) {
            continue;
        }
        if (!(v & CL_SEM_SLEEP) && !atomic_compare_exchange_strong(&s->word, &v, v | CL_SEM_SLEEP)) {
            continue;
        }
        int rc = cl_sleep(&s->word, v | CL_SEM_SLEEP, deadline_ns, spin);
        slept = CL_SEM_SLEEP; /* others may sleep too */
        if (rc == CL_TIMEOUT || rc == CL_AGAIN) {
            v = atomic_load_explicit(&s->word, memory_order_relaxed);
            if ((v & ~CL_SEM_SLEEP) == 0) {
                return rc;
            }
        }
    }
}

int cl_sem_release(const cl_object *o, uint32_t n)
{
    cl_semaphore *s = (cl_semaphore *)(void *)o->head;
    uint32_t v = atomic_load_explicit(&s->word, memory_order_relaxed), most = o->is.number;
    do {
        if ((v & ~CL_SEM_SLEEP) + (uint64_t)n > (most != 0 ? most : 0x7fffffffu)) {
            return CL_FULL;
        }
        /* release: "permit given back" */
    } while (!atomic_compare_exchange_weak_explicit(&s->word, &v, (v & ~CL_SEM_SLEEP) + n, memory_order_release,
                                                    memory_order_relaxed));
    CL_KILL_POINT();
    if (v & CL_SEM_SLEEP) {
        cl_wake(&s->word, n < INT_MAX ? (int)n : INT_MAX);
    }
    return CL_OK;
}
