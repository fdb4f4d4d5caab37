/* A robust lock in shared memory: one word, and no system call if no other thread wants the lock.
 *
 * Promise: mutual exclusion among all threads of all processes that map the word. If its holder is killed, exactly
 * one waiter gets CL_OWNER_DIED with the lock held, and must repair what the lock protects before it unlocks.
 *
 *     31      30 ........ 12   11 ...... 0
 *   +-------+-----------------+------------+
 *   | sleep | incarnation     | slot + 1   |      0: free
 *   +-------+-----------------+------------+
 *
 * The word names its holder by owner slot and incarnation, never by a thread or process number: numbers are reused
 * and differ between pid namespaces. States and who moves them:
 *
 *   free --(acquirer: CAS)--> held --(holder: swap with 0)--> free
 *   held --(waiter: CAS, sets `sleep` before it sleeps)--> held, with a sleeper
 *   held by a dead owner --(one waiter: CAS)--> held by the waiter, CL_OWNER_DIED
 *
 * What SIGKILL leaves: killed before the CAS, nothing; while holding, a word that names a dead owner (the next waiter
 * takes it over); between the swap and the wake, a free word with sleepers, which check again within CL_SLICE_NS. */
#ifndef CL_LOCK_H
#define CL_LOCK_H

#include "wait.h"

#define CL_LOCK_SLEEP 0x80000000u
#define CL_LOCK_SLOT(word) ((word) & 0xfffu)
#define CL_LOCK_INCARNATION(word) (((word) >> 12) & 0x7ffffu)
#define CL_LOCK_WORD(slot, incarnation) ((((incarnation) & 0x7ffffu) << 12) | ((slot) + 1u))

typedef enum cl_life { CL_ALIVE, CL_DEAD, CL_NOBODY } cl_life; /* CL_NOBODY: no such owner: the word is damaged */

/* Whether the owner that a lock word names lives. */
typedef cl_life (*cl_life_of)(void *context, uint32_t slot, uint32_t incarnation);

/* CL_OK or CL_OWNER_DIED: the lock is held. CL_AGAIN: a slice ended, serve signals and call again; with deadline_ns 0
 * it does not wait at all, and CL_AGAIN means that the lock is taken. CL_TIMEOUT. CL_CORRUPT: the word names no
 * owner. */
int cl_lock(cl_au32 *word, uint32_t self, int64_t deadline_ns, cl_spin *spin, cl_life_of life_of, void *context);
/* The same, but it does not sleep: after its spin it returns CL_AGAIN with *seen, the value of the word for cl_sleep.
 * For a caller that must release something before it sleeps. `slept`: the caller has slept on the word, and others may
 * still sleep. */
int cl_lock_awake(cl_au32 *word, uint32_t self, int slept, uint32_t *seen, cl_spin *spin, cl_life_of life_of,
                  void *context);
/* A lock word that no owner has, so the next process to lock gets CL_OWNER_DIED. For a process that cannot finish a
 * repair now. It is slot 0 with an incarnation that is never used. */
#define CL_LOCK_LEFT CL_LOCK_WORD(0, 0)

/* The holder that this thread is waiting for, which may be stopped, and since when. `holder` is its lock word; 0: this
 * thread does not wait. */
typedef struct cl_waiting {
    uint32_t holder; /* code that waits slice by slice reads it after each slice, and sets it to 0 */
    uint32_t pid; /* set by code that knows the owners; 0: not known */
    int64_t since_ns;
} cl_waiting;
cl_waiting *cl_waits(void); /* this thread's */
void cl_unlock(cl_au32 *word); /* whichever process holds it: for locks that any process may release */
int cl_unlock_own(cl_au32 *word, uint32_t self); /* only if the word is `self`; else CL_CORRUPT, and it is unchanged */

#endif
