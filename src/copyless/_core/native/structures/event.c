#define _GNU_SOURCE
#include "sync.h"

#include <limits.h>

void cl_event_set(cl_event *e)
{
    uint32_t v = atomic_load(&e->word);
    do {
        if (v & 1u) {
            return;
        }
    } while (!atomic_compare_exchange_weak(&e->word, &v, ((v | 3u) + 1u) | 1u));
    CL_KILL_POINT();
    if (v & 2u) {
        cl_wake(&e->word, INT_MAX);
    }
}

void cl_event_clear(cl_event *e)
{
    atomic_fetch_and(&e->word, ~1u);
}

int cl_event_wait(cl_event *e, uint32_t *seen, int64_t deadline_ns, cl_spin *spin)
{
    for (;;) {
        uint32_t v = atomic_load(&e->word);
        if ((v & 1u) || (*seen != 0 && (v >> 2) + 1 != *seen)) {
            return CL_OK;
        }
        *seen = (v >> 2) + 1;
        if (deadline_ns == 0) {
            return CL_AGAIN;
        }
        if (cl_spin_wait(&e->word, v, spin)) {
            continue;
        }
        if (!(v & 2u) && !atomic_compare_exchange_strong(&e->word, &v, v | 2u)) {
            continue;
        }
        int rc = cl_sleep(&e->word, v | 2u, deadline_ns, spin);
        if (rc != CL_OK) {
            v = atomic_load(&e->word);
            return (v & 1u) || (v >> 2) + 1 != *seen ? CL_OK : rc;
        }
    }
}
