/* A robust lock in shared memory: one word, no system call when nobody else wants it.
 *
 * Promise: mutual exclusion among all threads of all processes that map the word; when its holder is killed, exactly
 * one waiter gets CL_OWNER_DIED with the lock held, and must repair what the lock guards before it unlocks.
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
 * takes it over); between the swap and the wake, a free word with sleepers, who look again within CL_SLICE_NS. */
#ifndef CL_LOCK_H
#define CL_LOCK_H

#include "wait.h"

#define CL_LOCK_SLEEP 0x80000000u
#define CL_LOCK_SLOT(word) ((word) & 0xfffu)
#define CL_LOCK_INCARNATION(word) (((word) >> 12) & 0x7ffffu)
#define CL_LOCK_WORD(slot, incarnation) ((((incarnation) & 0x7ffffu) << 12) | ((slot) + 1u))

typedef enum cl_life { CL_ALIVE, CL_DEAD, CL_NOBODY } cl_life; /* CL_NOBODY: no such owner, so the word is damaged */

/* Tells whether the owner that a lock word names lives. */
typedef cl_life (*cl_life_of)(void *context, uint32_t slot, uint32_t incarnation);

/* CL_OK or CL_OWNER_DIED: held. CL_AGAIN: a slice ended, serve signals and call again; with deadline_ns 0 it does not
 * wait at all and CL_AGAIN means that it is taken. CL_TIMEOUT. CL_CORRUPT: the word names nobody. */
int cl_lock(cl_au32 *word, uint32_t self, int64_t deadline_ns, cl_spin *spin, cl_life_of life_of, void *context);
/* The same, but it does not sleep: after its spin, CL_AGAIN with *seen, the word on which to cl_sleep. For who has something
 * to let go before it sleeps. `slept`: the caller has slept on it, and others may sleep still. */
int cl_lock_awake(cl_au32 *word, uint32_t self, int slept, uint32_t *seen, cl_spin *spin, cl_life_of life_of,
                  void *context);
/* What nobody holds, in a lock word: whoever locks next gets CL_OWNER_DIED. For one who finds that it cannot finish a repair
 * now: slot 0 of an incarnation that there never is. */
#define CL_LOCK_LEFT CL_LOCK_WORD(0, 0)

/* For whom this thread has been waiting since when: the lock word of the holder, who is stopped perhaps. 0: for nobody. */
typedef struct cl_waiting {
    uint32_t holder; /* who waits slice by slice reads it after each, and puts 0 here */
    uint32_t pid; /* filled in by who knows the owners; 0: not known */
    int64_t since_ns;
} cl_waiting;
cl_waiting *cl_waits(void); /* this thread's */
void cl_unlock(cl_au32 *word); /* whoever holds it: for locks that anybody may release */
int cl_unlock_own(cl_au32 *word, uint32_t self); /* only from our own word; CL_CORRUPT: it is another's, and stays so */

#endif
