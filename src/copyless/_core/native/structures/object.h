/* An object as one process uses it: what its head says, taken down once.
 *
 * The head of an object describes it: its kind, how many entries follow, its limits. It is constant, so a process copies it out of shared
 * memory when it attaches, checks the copy against the size of the block, and from then on reads the copy only. Whatever is
 * written over the head later changes nothing for those who have attached, and is found by who attaches next. */
#ifndef CL_OBJECT_H
#define CL_OBJECT_H

#include "store.h"

typedef struct cl_object {
    cl_head *head; /* in shared memory: where the object begins */
    cl_head is; /* our copy of it, checked */
} cl_object;

/* CL_CORRUPT: the block holds no sound object of a kind that sync.h declares (queues and rings check more: see there). */
int cl_object_attach(cl_object *o, cl_head *head, uint64_t capacity, uint32_t block);

/* The copy, made once: what is checked is what is used. */
cl_head cl_head_copy(const cl_head *head);

#endif
