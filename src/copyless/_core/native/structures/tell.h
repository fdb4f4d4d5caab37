/* Telling the processes that asked for an object that it is ready: see bells.h. */
#ifndef CL_TELL_H
#define CL_TELL_H

#include "store.h"

#define CL_BELL_BITS 64u

static inline cl_au32 *cl_bell_of(const cl_store *store) /* the bell of this process */
{
    return &store->owners[store->slot].bell;
}

void cl_bells_ring(const cl_store *store, cl_head *head);

/* Wait until the processes whose bells this copy of the library has rung have written their descriptors, at most until
 * the deadline. For a process that is about to end, so that no other process sees its end through a descriptor before
 * it sees what the process did. CL_OK, CL_AGAIN, CL_TIMEOUT. */
int cl_bells_heard(cl_store *store, int64_t deadline_ns);

/* After an object was made ready by a sequentially consistent write: tell the processes that asked. This is one load if
 * none did. */
static inline void cl_bells_tell(const cl_store *store, cl_head *head)
{
#if !defined(__x86_64__) && !defined(__i386__) /* on these, every such write is a fence */
    atomic_thread_fence(memory_order_seq_cst);
#endif
    if (atomic_load(&head->bells) != 0) { /* pairs with "asked" */
        cl_bells_ring(store, head);
    }
}

#endif
