/* Waiting for a shared 32-bit word to change: a short polite spin, then the kernel.
 *
 * Promise: never busy for longer than CL_SPIN_MAX_NS (or what cl_poll is told), never early, wakes at a change or at the
 * deadline, and comes back at least every CL_SLICE_NS so that the caller can serve signals and ask whether its peer still lives.
 * Any thread of any process that maps the word may wait or wake. The caller must not hold the GIL.
 *
 * A spinner gives way to others. When the one it waits for runs on the same processor, the two take turns there although
 * another may be idle, at four times the price; who finds that out time and again moves to another processor.
 *
 * The spin is learnt: what it cost to see the last changes decides how long the next wait spins, so a word that
 * changes within microseconds is answered in microseconds and one that does not costs no processor time. */
#ifndef CL_WAIT_H
#define CL_WAIT_H

#include "base.h"

#define CL_SPIN_MAX_NS 50000
#define CL_SPIN_MIN_NS 1000
#define CL_WAKE_NS 200000 /* what waking a sleeper may take, on a busy machine */
#define CL_SLICE_NS 50000000
#define CL_FOREVER INT64_MAX

/* One for each place that waits; any number of threads may share it (a lost update only costs a little spin). */
typedef struct cl_spin {
    cl_au32 budget_ns;
    cl_au32 crowded; /* waits in a row that were for somebody who needed our own processor to end them */
    cl_au32 crowded_ms; /* when the last of them was */
} cl_spin;

/* Wait while *word == expected. CL_OK: it changed (or may have: look again). CL_TIMEOUT: the absolute monotonic
 * deadline passed. CL_AGAIN: a slice ended or a signal came: serve signals, then call again. */
int cl_wait(cl_au32 *word, uint32_t expected, int64_t deadline_ns, cl_spin *spin); /* spin NULL: sleep at once */

/* Only the sleep, after a spin of one's own that failed; learns from it how long the next spin should be. */
int cl_sleep(cl_au32 *word, uint32_t expected, int64_t deadline_ns, cl_spin *spin);

/* Only the spin: 1 when the word changed within the learnt budget. */
int cl_spin_wait(cl_au32 *word, uint32_t expected, cl_spin *spin);

/* A spin of so long, for who knows that it is worth it; nothing is learnt. */
int cl_poll(cl_au32 *word, uint32_t expected, int64_t budget_ns, cl_spin *spin);

/* A bell: | times rung (31) | somebody sleeps (1) |. The mark lies in the very word that is slept on, so that nobody who
 * rings late, for something long past, can take it from one who is about to sleep: only a new ring takes it, and wakes. */
#define CL_BELL_SLEEP 1u
void cl_bell_ring(cl_au32 *bell, int n); /* wakes up to n */
/* Wait until it has been rung since it was `seen` (the mark does not count). As cl_wait. */
int cl_bell_wait(cl_au32 *bell, uint32_t seen, int64_t deadline_ns, cl_spin *spin);

/* Wait until one of n words differs from what is expected of it: its index, or a cl_result as cl_wait. At most
 * CL_WAIT_MANY; for loops of events, which have many things to wait for and one thread. */
#define CL_WAIT_MANY 127
int cl_wait_many(cl_au32 *const *words, const uint32_t *expected, int n, int64_t deadline_ns);

/* Wake up to n waiters. One system call: call it only when somebody is known to sleep. */
void cl_wake(cl_au32 *word, int n);

#endif
