/* Who makes an object ready tells those who asked for it: see bells.h. */
#ifndef CL_TELL_H
#define CL_TELL_H

#include "store.h"

#define CL_BELL_BITS 64u

static inline cl_au32 *cl_bell_of(const cl_store *store) /* this process's */
{
    return &store->owners[store->slot].bell;
}

void cl_bells_ring(const cl_store *store, cl_head *head);

/* Wait until those that this copy of the library has rung have written their descriptors, until the deadline at the longest: for who is about
 * to end, so that nobody sees its end by a descriptor before what it did. CL_OK, CL_AGAIN, CL_TIMEOUT. */
int cl_bells_heard(cl_store *store, int64_t deadline_ns);

/* After an object was made ready by a sequentially consistent write: tell those who asked. One load, as long as nobody did. */
static inline void cl_bells_tell(const cl_store *store, cl_head *head)
{
#if !defined(__x86_64__) && !defined(__i386__) /* where every such write is a fence */
    atomic_thread_fence(memory_order_seq_cst);
#endif
    if (atomic_load(&head->bells) != 0) { /* pairs with "asked" */
        cl_bells_ring(store, head);
    }
}

#endif
