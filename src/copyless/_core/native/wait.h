/* Waiting for a shared 32-bit word to change: a short spin, then a sleep in the kernel.
 *
 * Promise: it never spins for longer than CL_SPIN_MAX_NS (or than cl_poll is told), never returns early, wakes at a
 * change or at the deadline, and returns at least every CL_SLICE_NS, so that the caller can serve signals and check
 * whether its peer still lives. Any thread of any process that maps the word may wait or wake. The caller must not hold
 * the GIL.
 *
 * A spinning thread yields to others. If the process that it waits for runs on the same processor, the two take turns
 * there although another processor may be idle, and both are four times slower. A thread that notices this several
 * times moves to another processor.
 *
 * The length of the spin is learnt: the time that the last changes took decides how long the next wait spins. So a word
 * that changes within microseconds is noticed within microseconds, and a word that does not change costs no processor
 * time. */
#ifndef CL_WAIT_H
#define CL_WAIT_H

#include "base.h"

#define CL_SPIN_MAX_NS 50000
#define CL_SPIN_MIN_NS 1000
#define CL_WAKE_NS 200000 /* the time that waking a sleeper may take on a busy machine */
#define CL_SLICE_NS 50000000
#define CL_FOREVER INT64_MAX

/* One for each place in the code that waits. Any number of threads may share it (a lost update only costs a little
 * spin). */
typedef struct cl_spin {
    cl_au32 budget_ns;
    cl_au32 crowded; /* successive waits for a process that needed this processor */
    cl_au32 crowded_ms; /* when the last of them ended */
} cl_spin;

/* Wait while *word == expected. CL_OK: it changed (or may have: check again). CL_TIMEOUT: the absolute monotonic
 * deadline passed. CL_AGAIN: a slice ended or a signal came: serve signals, then call again. */
int cl_wait(cl_au32 *word, uint32_t expected, int64_t deadline_ns, cl_spin *spin); /* spin NULL: sleep at once */

/* Only the sleep, for a caller that has already spun without success. It learns from the sleep how long the next spin
 * should be. */
int cl_sleep(cl_au32 *word, uint32_t expected, int64_t deadline_ns, cl_spin *spin);

/* From now on this thread only spins, and cl_sleep returns CL_AGAIN at once: for the thread of an event loop, which
 * must serve others. The caller that switches it on switches it off before it returns. */
void cl_stay_awake(int on);

/* Only the spin. 1: the word changed within the learnt time. */
int cl_spin_wait(cl_au32 *word, uint32_t expected, cl_spin *spin);

/* A spin of the given time, for callers that know that it pays; nothing is learnt from it. */
int cl_poll(cl_au32 *word, uint32_t expected, int64_t budget_ns, cl_spin *spin);

/* A bell: | times rung (31) | a thread sleeps (1) |. The mark is in the word that the thread sleeps on. So a late ring
 * for an earlier event cannot clear the mark of a thread that is about to sleep: only a new ring clears it, and
 * wakes. */
#define CL_BELL_SLEEP 1u
void cl_bell_ring(cl_au32 *bell, int n); /* wakes up to n */
/* Wait until it has been rung since it was `seen` (the mark does not count). Returns as cl_wait. */
int cl_bell_wait(cl_au32 *bell, uint32_t seen, int64_t deadline_ns, cl_spin *spin);

/* Wait until one of n words differs from its expected value. Returns its index, or a cl_result as cl_wait. At most
 * CL_WAIT_MANY words; for event loops, in which one thread waits for many things. */
#define CL_WAIT_MANY 127
int cl_wait_many(cl_au32 *const *words, const uint32_t *expected, int n, int64_t deadline_ns);

/* Called before each wait by code that waits in a loop, because a wake need not be for it. Without this call, if others
 * make one change after another, the loop would never check its deadline or serve signals. CL_OK: wait (*begun_ns, 0 at
 * first, is when the wait began). CL_AGAIN: a slice is over. CL_TIMEOUT: the deadline has passed. */
int cl_wait_again(int64_t *begun_ns, int64_t deadline_ns);

/* Wake up to n waiters. This is one system call: call it only if a thread is known to sleep. */
void cl_wake(cl_au32 *word, int n);

#endif
