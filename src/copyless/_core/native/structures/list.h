/* A list of fixed slots in shared memory, whose items any process reads and replaces, each in one step.
 *
 *   +------+--------+--------+-----+-- ... --+-- ... --+
 *   | head | slot 0 | slot 1 |     | side 0  | side 1  |   long values (text, bytes) lie behind the slots, two sides each
 *   +------+--------+--------+-----+-- ... --+-- ... --+
 *
 * Promise: a reader gets a value that some writer put there whole, never a mixture; it takes no lock. Writers of a slot
 * exclude each other by the slot's robust lock.
 *
 * A slot has two sides; the low bit of `commit` says which counts. A writer fills the other side, then adds one to
 * `commit`. A reader copies the side that counts and looks at `commit` once more: unchanged, no writer can have touched that
 * side, since the next one fills the other; changed, it reads again, and after CL_LIST_TRIES under the lock.
 *
 * What SIGKILL leaves: before the commit, bytes in the side that does not count; after it, the new value. The lock comes to the
 * next writer with CL_OWNER_DIED, and there is nothing to repair. */
#ifndef CL_LIST_H
#define CL_LIST_H

#include "sync.h"

#define CL_LIST_MAGIC 0x3174736c6c79706cu
#define CL_LIST_TRIES 100

typedef struct cl_list_slot {
    cl_au64 commit; /* times the value was replaced */
    cl_au32 lock;
    uint32_t pad;
    uint64_t room; /* bytes of a side behind the slots; 0: values of at most 8 bytes only */
    uint64_t offset; /* where its two sides lie, one after the other */
    cl_au64 kind[2]; /* | length (56) | enum of the binding (8) |, a side each */
    cl_au64 word[2]; /* a value of 8 bytes */
} cl_list_slot;
_Static_assert(sizeof(cl_list_slot) == 64, "one cache line");

typedef struct cl_list {
    uint64_t magic;
    uint64_t nbytes; /* of all */
    uint64_t nslots;
    uint64_t registry; /* whose owners the locks name */
    uint64_t pad[4];
    cl_list_slot slots[];
} cl_list;

uint64_t cl_list_bytes(uint64_t nslots, const uint64_t *rooms); /* 0: too many */
void cl_list_begin(cl_list *l, uint64_t nslots, const uint64_t *rooms, uint64_t registry); /* over zeros */
/* CL_CORRUPT: this is no list of ours. CL_STALE: of another registry. `nslots` is what the caller keeps: it is not read again. */
int cl_list_check(const cl_list *l, uint64_t capacity, uint64_t registry, uint64_t *nslots);

typedef struct cl_value {
    uint64_t kind; /* the low 8 bits; what they mean is the binding's */
    uint64_t word;
    uint64_t length; /* of `bytes` */
} cl_value;
/* What follows bounds the slot's number by `nslots`, and what the slot says of its bytes by `capacity`, each time: CL_CORRUPT. */
/* Read the value of a slot. Longer bytes than *room: CL_FULL, value->length says how many; ask again with room. */
int cl_list_get(cl_store *store, cl_list *l, uint64_t capacity, uint64_t nslots, uint64_t at, cl_value *value,
                void *bytes, uint64_t room, int64_t deadline_ns);
/* Replace it. CL_FULL: longer than the slot's room; nothing changed. */
int cl_list_set(cl_store *store, cl_list *l, uint64_t capacity, uint64_t nslots, uint64_t at, const cl_value *value,
                const void *bytes, int64_t deadline_ns);

#endif
