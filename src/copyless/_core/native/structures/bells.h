/* Waiting for many objects at once: each process has one bell, and a process that makes an object ready rings the bells
 * of the processes that asked for it.
 *
 *   head of an object                            owners of the registry
 *   +---------------------------+-------+        +-- slot 0 --+-- slot 1 --+-- slot 2 --+
 *   | constant                  | bells |        |      bell  |      bell  |      bell  | ...
 *   +---------------------------+-------+        +------------+------------+------------+
 *          one bit for the slots s, s + 64, s + 128 ...         | times rung (31) | somebody sleeps (1) |
 *
 * Promise: a process that has asked for an object (has set its bit) and then found it not ready hears its bell when the
 * object becomes ready. No process waits for a process that asked, whether that one sleeps, is stopped or is dead.
 * Asking never fails: there is no table that could be full.
 *
 *   ask       own bit set in `bells`  -  mark in the object's own word, where it has one  -  look  -  sleep on the own bell
 *   ring      object made ready  -  [the mark was there, or always]  -  each bit: cleared, then the bells of its slots rung
 *
 * Both sides order their two steps (all are sequentially consistent), so one of them sees the other: no wake-up is
 * missed. A bit means only "check again". So it needs no owner's incarnation and is never taken back: if its process
 * waits for something else now, or is dead and another process has its slot, the bit costs one unneeded ring. More than
 * 64 processes share bits; they check more often than needed.
 *
 * What SIGKILL leaves: of a process that asked, a bit. Of a process that rings, killed after it made the object ready,
 * up to all bits set, or one of them cleared and not rung: a sleeper checks again by itself after CL_SLICE_NS. */
#ifndef CL_BELLS_H
#define CL_BELLS_H

#include "queue.h"
#include "ring.h"
#include "tell.h"

/* An object that a process waits for. It is a copy, so it may outlive the process's own object as long as the block
 * stays mapped. */
typedef struct cl_watch {
    cl_store *store;
    cl_head *head;
    cl_head is; /* a checked copy of the head */
    uint64_t thread; /* recursive lock: the thread that asks */
    uint32_t reader, self; /* ring: the subscription, and the process that has it */
    uint32_t sets; /* event: times it had been set, + 1; 0: not read yet */
    uint32_t deserted; /* queue: successive checks that found no process that could put */
    cl_queue *queue; /* NULL: do not check whether a process that could put is left */
    const int *closed; /* set when this process closes the object; NULL: it cannot be closed */
} cl_watch;

/* Whether a call that waits for the object would return at once. `look`: also check for what no process tells, the
 * deaths of others, which costs system calls. */
int cl_watch_is_ready(cl_watch *w, int look);
void cl_watch_ask(const cl_watch *w); /* ask from now on; afterwards check whether it is ready */

/* Wait until one of n is ready; sets `ready` to 1 for all that are. One call is a slice: on CL_AGAIN serve signals and
 * call again. All are of one store. *slices: 0 at the first call of a wait. */
int cl_watch_any(cl_watch *watches, uint32_t n, uint8_t *ready, uint32_t *slices, int64_t deadline_ns, cl_spin *spin);
#define CL_LOOK_SLICES 3u /* deaths are checked every so many slices: within 200 ms */
/* One pass over all, as above; with `ask` it also asks. Returns how many are ready. */
uint32_t cl_watch_pass(cl_watch *watches, uint32_t n, uint8_t *ready, int ask, int look);

#endif
