/* Waiting for many objects at once: each process has one bell, and who makes an object ready rings the bells of those who asked.
 *
 *   head of an object                            owners of the registry
 *   +---------------------------+-------+        +-- slot 0 --+-- slot 1 --+-- slot 2 --+
 *   | constant                  | bells |        |      bell  |      bell  |      bell  | ...
 *   +---------------------------+-------+        +------------+------------+------------+
 *          one bit for the slots s, s + 64, s + 128 ...         | times rung (31) | somebody sleeps (1) |
 *
 * Promise: a process that has asked for an object (its bit) and then found it not ready hears its bell when the object becomes ready. Nobody
 * waits for a process that asked, whether it sleeps, is stopped or is dead. Asking never fails: there is no table that could be full.
 *
 *   ask       own bit set in `bells`  -  mark in the object's own word, where it has one  -  look  -  sleep on the own bell
 *   ring      object made ready  -  [the mark was there, or always]  -  each bit: cleared, then the bells of its slots rung
 *
 * Both sides order their two steps (all are sequentially consistent), so one of them sees the other: no wake-up is missed. A bit says
 * only "look again". So it needs no owner's incarnation and is never taken back: of a process that looked elsewhere meanwhile, or is dead and
 * whose slot is another's now, it costs one ring of a bell that nobody minds. More than 64 processes share bits; they look once
 * too often. What SIGKILL leaves: of one who asked, a bit; of one who rings, killed after it made the object ready, up to all bits set or
 * one of them cleared and not rung: who sleeps looks again by himself after CL_SLICE_NS. */
#ifndef CL_BELLS_H
#define CL_BELLS_H

#include "queue.h"
#include "ring.h"
#include "tell.h"

/* What a process waits for; copied from what it has of the object, so that it may outlive that as long as the block stays mapped. */
typedef struct cl_watch {
    cl_store *store;
    cl_head *head;
    cl_head is; /* our copy, checked */
    uint64_t thread; /* recursive lock: who asks */
    uint32_t reader, self; /* ring: whose subscription, and the process that has it */
    uint32_t sets; /* event: so often it had been set, + 1; 0: not looked at yet */
    uint32_t deserted; /* queue: looks in a row at which nobody was left who could put */
    cl_queue *queue; /* NULL: not to be looked at for who is left */
    const int *closed; /* this process closed what it waits for; NULL: it cannot be */
} cl_watch;

/* Whether what would wait for it need not. `look`: also for what nobody tells, the deaths of others, which costs system calls. */
int cl_watch_is_ready(cl_watch *w, int look);
void cl_watch_ask(const cl_watch *w); /* from now on; then look whether it is ready */

/* Wait until one of n is ready: all that are, as 1 in `ready`. One call is a slice: CL_AGAIN, serve signals and call again. All are of one
 * store. *slices: 0 at the first call of a wait. */
int cl_watch_any(cl_watch *watches, uint32_t n, uint8_t *ready, uint32_t *slices, int64_t deadline_ns, cl_spin *spin);
#define CL_LOOK_SLICES 3u /* every so many of them one looks for deaths: within 200 ms */
/* A pass over all, as above; `ask` too. How many are ready. */
uint32_t cl_watch_pass(cl_watch *watches, uint32_t n, uint8_t *ready, int ask, int look);

#endif
