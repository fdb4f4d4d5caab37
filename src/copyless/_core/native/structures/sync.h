/* Synchronisation objects in shared memory: lock, recursive lock, readers-writer lock, semaphore, condition, event,
 * barrier. Each is in a block of its own, and is all zeros except for its head when it is made.
 *
 * Promise: any thread of any process that maps the block may call. No call spins for long, and an operation that need
 * not wait makes no system call. No death of a process makes another process wait for ever:
 *
 *   holder of a lock, a recursive lock, a writer     the next acquirer gets CL_OWNER_DIED, with the lock
 *   reader                                           no longer counts
 *   holder of a robust semaphore's permit            the next acquirer gets CL_OWNER_DIED, with the permit
 *   holder of a plain semaphore's permit             unknown, as in POSIX: the permit is lost
 *   waiter on a condition, not yet notified          is skipped; notified, not yet back: another waiter gets its notice
 *   party that had arrived at a barrier              the barrier breaks
 *   a process inside one of the operations           every change is one store; the small mutex of some is robust
 *
 * A sleeping waiter checks again every CL_SLICE_NS, so a wake that a dead process did not send costs that much at
 * most. */
#ifndef CL_SYNC_H
#define CL_SYNC_H

#include "object.h"

/* If an object has entries or a limit, the functions use this process's copy of them (object.h), and check every index
 * against it. CL_CORRUPT, from any of them: a lock word in the object names no owner. Functions that need a monitor
 * return CL_AGAIN if another process holds it for a whole slice: serve signals and call again. */

/* ---- lock: see lock.h; the owner is a process. For a recursive lock, `thread` and `depth` belong to the holder. */
typedef struct cl_mutex {
    cl_head head;
    cl_au32 word;
    cl_au32 depth;
    _Atomic uint64_t thread;
} cl_mutex;

static inline uint32_t cl_self(const cl_store *store) /* the lock word of this process */
{
    return CL_LOCK_WORD(store->slot, store->incarnation);
}
int cl_mutex_lock(cl_store *store, cl_au32 *word, int64_t deadline_ns, cl_spin *spin);
/* For a lock that is held for some ten instructions: it spins for a moment, but never sleeps; takes the lock over from
 * a dead holder. CL_AGAIN: its holder makes no progress. */
#define CL_TRY_NS 20000
int cl_mutex_try(cl_store *store, cl_au32 *word, cl_spin *spin);
/* Recursive: CL_OK also if this thread already holds it. */
int cl_rlock(cl_store *store, cl_mutex *m, uint64_t thread, int64_t deadline_ns, cl_spin *spin);
int cl_rlock_is_mine(const cl_store *store, cl_mutex *m, uint64_t thread);
void cl_runlock(cl_mutex *m); /* by its holder */
/* Release it completely, and return how often the holder had acquired it. And acquire it as often again, as
 * cl_rlock. */
uint32_t cl_rlock_save(cl_mutex *m);
int cl_rlock_restore(cl_store *store, cl_mutex *m, uint64_t thread, uint32_t depth, int64_t deadline_ns, cl_spin *spin);

/* Whether the process that a lock word names is gone. Unlike the registry's lock, a lock of a user may name a process
 * that was reaped long ago, and whose slot another process has now. */
static inline int cl_is_dead(cl_store *store, uint32_t word)
{
    cl_life life = cl_owner_life(store, CL_LOCK_SLOT(word) - 1, CL_LOCK_INCARNATION(word));
    return life == CL_DEAD || (life == CL_NOBODY && !CL_MUTANT(sync_nobody_lives));
}

/* ---- semaphore: | sleep (1) | value (31) | */
typedef struct cl_semaphore {
    cl_head head;
    cl_au32 word;
} cl_semaphore;
#define CL_SEM_SLEEP 0x80000000u
int cl_sem_acquire(cl_semaphore *s, int64_t deadline_ns, cl_spin *spin);
int cl_sem_release(const cl_object *o, uint32_t n); /* CL_FULL: above the highest value */

/* ---- monitor, used by the following objects: a small robust mutex, a word that changes when sleepers should check
 * again, and a flag for sleepers */
typedef struct cl_monitor {
    cl_au32 mutex;
    cl_au32 change;
    cl_au32 sleeping;
    cl_au32 pad;
} cl_monitor;

typedef struct cl_entry {
    cl_au32 owner; /* lock word of a process; 0: none */
    cl_au32 state;
} cl_entry;

/* ---- semaphore that knows the holder of each permit: one entry per permit */
typedef struct cl_robust {
    cl_head head;
    cl_monitor monitor;
    cl_entry entries[];
} cl_robust;
/* With a deadline of 0 or less it does not sleep: CL_AGAIN. With a deadline of 0 it does not take permits of dead
 * processes: checking each entry costs time. */
int cl_robust_acquire(cl_store *store, const cl_object *o, int64_t deadline_ns, cl_spin *spin);
int cl_robust_release(cl_store *store, const cl_object *o,
                      int64_t deadline_ns); /* 0: only tries; CL_MISSING: this process holds no permit */
uint32_t cl_robust_value(cl_store *store, const cl_object *o);

/* ---- readers-writer lock; a waiting writer keeps new readers out. Entries: readers; state: how many times */
typedef struct cl_rwlock {
    cl_head head;
    cl_monitor monitor;
    cl_au32 writer;
    cl_au32 writer_waiting;
    cl_entry readers[];
} cl_rwlock;
int cl_rw_read(cl_store *store, const cl_object *o, int64_t deadline_ns,
               cl_spin *spin); /* CL_TABLE_FULL: too many readers */
/* A deadline below 0: as 0, but new readers are kept out until the next try, or until cl_rw_forget. */
int cl_rw_write(cl_store *store, const cl_object *o, int64_t deadline_ns, cl_spin *spin);
int cl_rw_forget(cl_store *store, const cl_object *o); /* a writer no longer waits */
int cl_rw_release(cl_store *store, const cl_object *o, int write); /* CL_MISSING: not held by this process */

/* ---- event: | sets (30) | sleep | set |. It has no owner and no lock, so a signal handler may set it. */
typedef struct cl_event {
    cl_head head;
    cl_au32 word;
} cl_event;
void cl_event_set(cl_event *e);
void cl_event_clear(cl_event *e);
/* *seen is 0 at the first call of a wait: an event that was set and cleared again before the waiter checked still
 * counts. */
int cl_event_wait(cl_event *e, uint32_t *seen, int64_t deadline_ns, cl_spin *spin);

/* ---- condition: entries for waiters. state = ticket << 2 | one of these */
enum { CL_WAITER_NONE, CL_WAITER_WAITING, CL_WAITER_NOTIFIED };
typedef struct cl_condition {
    cl_head head;
    cl_au32 ticket;
    cl_au32 pad;
    cl_entry waiters[];
} cl_condition;
/* The caller holds the condition's lock for begin and notify. */
int cl_condition_begin(cl_store *store, const cl_object *o, uint32_t *entry); /* CL_TABLE_FULL */
int cl_condition_wait(cl_store *store, const cl_object *o, uint32_t entry, int64_t deadline_ns, cl_spin *spin);
int cl_condition_end(const cl_object *o, uint32_t entry); /* 1: it was notified */
uint32_t cl_condition_notify(cl_store *store, const cl_object *o, uint32_t n);
/* The recursive lock that a condition may have behind its waiters. CL_CORRUPT: there is no room for one. */
int cl_condition_lock(const cl_object *o, uint64_t capacity, cl_object *lock);

/* ---- barrier: entries for parties */
enum { CL_PARTY_NONE, CL_PARTY_ARRIVED, CL_PARTY_RELEASED, CL_PARTY_BROKEN };
typedef struct cl_barrier {
    cl_head head;
    cl_monitor monitor;
    cl_au32 broken;
    cl_au32 pad;
    cl_entry parties[];
} cl_barrier;
/* CL_OK: arrived as *index in entry *entry. CL_CLOSED: the barrier is broken. CL_AGAIN, CL_TIMEOUT: not arrived. */
int cl_barrier_arrive(cl_store *store, const cl_object *o, uint32_t *entry, uint32_t *index, int64_t deadline_ns);
/* CL_OK and CL_CLOSED (it broke) leave the entry empty, also if the monitor's holder is stopped until the deadline. */
int cl_barrier_wait(cl_store *store, const cl_object *o, uint32_t entry, int64_t deadline_ns);
/* Called by the last party to arrive, before it waits. CL_TIMEOUT: no party is released, and the wait of the last one
 * breaks the barrier. */
int cl_barrier_release(cl_store *store, const cl_object *o, uint32_t entry, int64_t deadline_ns);
int cl_barrier_break(cl_store *store, const cl_object *o,
                     int reset); /* reset: the waiting parties leave, and the barrier is usable again */
int cl_barrier_waiting(cl_store *store, const cl_object *o, uint32_t *n);

#endif
