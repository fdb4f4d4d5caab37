/* A list of fixed slots in shared memory. Any process reads and replaces its items, each in one step.
 *
 *   +------+--------+--------+-----+-- ... --+-- ... --+
 *   | head | slot 0 | slot 1 |     | side 0  | side 1  |   long values (text, bytes) lie behind the slots, two sides each
 *   +------+--------+--------+-----+-- ... --+-- ... --+
 *
 * Promise: a reader gets a value that one writer stored, never a mixture of two, and takes no lock. Writers of a slot
 * exclude each other with the slot's robust lock.
 *
 * A slot has two sides; the low bit of `commit` says which one is valid. A writer fills the other side, then adds one
 * to `commit`. A reader copies the valid side and reads `commit` again. If it is unchanged, no writer can have touched
 * that side, because the next writer fills the other one. If it has changed, the reader tries again, and after
 * CL_LIST_TRIES tries it reads under the lock.
 *
 * What SIGKILL leaves: before the commit, bytes in the side that is not valid; after it, the new value. The next writer
 * gets the lock with CL_OWNER_DIED, and there is nothing to repair. */
#ifndef CL_LIST_H
#define CL_LIST_H

#include "sync.h"

#define CL_LIST_MAGIC 0x3174736c6c79706cu
#define CL_LIST_TRIES 100

typedef struct cl_list_slot {
    cl_au64 commit; /* times the value was replaced */
    cl_au32 lock;
    uint32_t pad;
    uint64_t room; /* bytes of a side behind the slots; 0: only values of at most 8 bytes */
    uint64_t offset; /* offset of its two sides, one after the other */
    cl_au64 kind[2]; /* one per side: | length (56) | enum of the binding (8) | */
    cl_au64 word[2]; /* a value of 8 bytes */
} cl_list_slot;
_Static_assert(sizeof(cl_list_slot) == 64, "one cache line");

typedef struct cl_list {
    uint64_t magic;
    uint64_t nbytes; /* of all */
    uint64_t nslots;
    uint64_t registry; /* the registry whose owners the lock words name */
    uint64_t pad[4];
    cl_list_slot slots[];
} cl_list;

uint64_t cl_list_bytes(uint64_t nslots, const uint64_t *rooms); /* 0: too many */
void cl_list_begin(cl_list *l, uint64_t nslots, const uint64_t *rooms, uint64_t registry); /* over zeros */
/* CL_CORRUPT: this is not a list. CL_STALE: it belongs to another registry. The caller keeps `nslots`: it is not read
 * again. */
int cl_list_check(const cl_list *l, uint64_t capacity, uint64_t registry, uint64_t *nslots);

typedef struct cl_value {
    uint64_t kind; /* only the low 8 bits; the binding defines their meaning */
    uint64_t word;
    uint64_t length; /* of `bytes` */
} cl_value;
/* The following functions check the slot's number against `nslots`, and the slot's offset and length against
 * `capacity`, each time: CL_CORRUPT. */
/* Read the value of a slot. CL_FULL: it has more bytes than *room, namely value->length; call again with more room. */
int cl_list_get(cl_store *store, cl_list *l, uint64_t capacity, uint64_t nslots, uint64_t at, cl_value *value,
                void *bytes, uint64_t room, int64_t deadline_ns);
/* Replace the value of a slot. CL_FULL: it is longer than the slot's room; nothing changed. */
int cl_list_set(cl_store *store, cl_list *l, uint64_t capacity, uint64_t nslots, uint64_t at, const cl_value *value,
                const void *bytes, int64_t deadline_ns);

#endif
