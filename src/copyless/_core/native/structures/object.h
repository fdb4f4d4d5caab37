/* An object as one process uses it: a copy of its head, made once.
 *
 * The head of an object describes it: its kind, how many entries follow, its limits. The head is constant. So a process
 * copies it when it attaches, checks the copy against the size of the block, and from then on reads only the copy. A
 * write over the head later does not affect processes that have attached; the next process that attaches detects it. */
#ifndef CL_OBJECT_H
#define CL_OBJECT_H

#include "store.h"

typedef struct cl_object {
    cl_head *head; /* in shared memory, at the start of the object */
    cl_head is; /* a checked copy of it */
} cl_object;

/* CL_CORRUPT: the block does not contain a valid object of a kind that sync.h declares (queues and rings check more
 * themselves). */
int cl_object_attach(cl_object *o, cl_head *head, uint64_t capacity, uint32_t block);

/* Copy the head once, so that the values that are checked are the values that are used. */
cl_head cl_head_copy(const cl_head *head);

#endif
