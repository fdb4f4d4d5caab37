#define _GNU_SOURCE
#include "object.h"
#include "sync.h"

#include <string.h>

#define MOST_PERMITS 0x7fffffffu

cl_head cl_head_copy(const cl_head *head)
{
    union {
        cl_head head;
        uint64_t words[sizeof(cl_head) / 8];
    } copy;
    for (size_t i = 0; i < sizeof copy.words / sizeof *copy.words; i++) {
        copy.words[i] = ((const volatile uint64_t *)(const void *)head)[i];
    }
    return copy.head;
}

/* Size of an object without its entries, in bytes; 0: no such kind. */
static uint64_t bytes_of(uint32_t kind)
{
    switch (kind) {
    case CL_KIND_LOCK:
    case CL_KIND_RLOCK:
        return sizeof(cl_mutex);
    case CL_KIND_RWLOCK:
        return sizeof(cl_rwlock);
    case CL_KIND_SEMAPHORE:
        return sizeof(cl_semaphore);
    case CL_KIND_ROBUST_SEMAPHORE:
        return sizeof(cl_robust);
    case CL_KIND_CONDITION:
        return sizeof(cl_condition);
    case CL_KIND_EVENT:
        return sizeof(cl_event);
    case CL_KIND_BARRIER:
        return sizeof(cl_barrier);
    default:
        return 0;
    }
}

static int is_sound(const cl_head *h, uint64_t capacity)
{
    uint64_t fixed = bytes_of(h->kind);
    if (h->magic != CL_OBJECT_MAGIC || fixed == 0 || capacity < fixed ||
        h->room > (capacity - fixed) / sizeof(cl_entry)) {
        return 0;
    }
    switch (h->kind) {
    case CL_KIND_SEMAPHORE:
        return h->number <= MOST_PERMITS;
    case CL_KIND_ROBUST_SEMAPHORE:
        return h->number == h->room;
    case CL_KIND_BARRIER:
        return h->number != 0 && h->number == h->room;
    case CL_KIND_RWLOCK:
    case CL_KIND_CONDITION:
        return h->room != 0;
    default:
        return 1;
    }
}

int cl_object_attach(cl_object *o, cl_head *head, uint64_t capacity, uint32_t block)
{
    cl_head copy = {0};
    if (capacity >= sizeof copy) {
        copy = cl_head_copy(head);
    }
    if (!is_sound(&copy, capacity)) {
        return cl_fail(CL_CORRUPT, 0,
                       "block %u of %llu bytes does not contain a valid object (kind %u, number %u, room %u)", block,
                       (unsigned long long)capacity, copy.kind, copy.number, copy.room);
    }
    *o = (cl_object){.head = head, .is = copy};
    return CL_OK;
}
