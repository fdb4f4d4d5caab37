/* For waiting with descriptors (select, poll, epoll): descriptors that this process raises when an object is ready, or
 * when its bell was rung.
 *
 * Promise: a signal's descriptor is readable while its object is ready. It may be readable for a moment after another
 * process has used the object up, but it is never unreadable while the object is ready: after emptying the descriptor,
 * the reader checks the object. The descriptor of a listener is readable after every ring of the bell.
 *
 * For each store, one thread of the process sleeps on the bell and writes to the descriptors. (A process has one store,
 * except if its directory was removed.) The thread needs no interpreter: it takes no lock of Python's, no signal is
 * delivered to it, and patched modules do not affect it. It starts with the first signal or listener, sleeps while
 * there is none, does not exist in a forked child (which must start again), and ends before the process unmaps the
 * registry.
 *
 * A signal:
 *
 *   lowered --(ready: written)--> raised
 *   raised --(looked at, and not ready: emptied, asked, looked at again)--> lowered
 *
 * Only a lowered signal asks for the bell, so an object that is filled several times before it is emptied rings once. A
 * call of this process that finds the object empty (a get, a clear) lowers the signal. If another process has emptied
 * the object, the thread lowers the signal within 2 * CL_SLICE_NS. */
#ifndef CL_BELL_THREAD_H
#define CL_BELL_THREAD_H

#include "bells.h"

/* A program may close all descriptors (a daemon at its start, os.closerange) and get the number of one of these for a
 * file of its own. So code that writes, reads or closes one checks before whether it is still the same. If the system
 * gives all such descriptors one identity, one that belongs to other code cannot be told apart. */
typedef struct cl_descriptor_id {
    uint64_t device, inode;
} cl_descriptor_id;

cl_descriptor_id cl_descriptor_id_of(int fd);
int cl_descriptor_is_there(int fd, cl_descriptor_id is);

typedef struct cl_signal {
    struct cl_signal *next;
    cl_store *store;
    int fd; /* from `cl_wake_descriptor` */
    cl_descriptor_id is; /* its identity, set by cl_signal_add */
    int listens; /* to every ring; it has no object */
    int raised;
    int kept; /* raised in any case: this process has taken something that no caller has got yet */
    int shut; /* raised for ever: the object was closed in this process */
    cl_watch watch;
} cl_signal;

/* In a forked child it starts again by itself: all earlier signals are the parent's. */
int cl_signal_add(cl_signal *s); /* CL_SYSTEM: no thread could be started */
void cl_signal_remove(cl_signal *s); /* no thread writes to its descriptor any more */
int cl_signal_settle(cl_signal *s); /* lower it unless the object is ready; returns whether it is */
void cl_signal_shut(cl_signal *s);
void cl_signal_keep(cl_signal *s, int on);
/* Continue with another descriptor if the program closed the present one. 1: with `fd`; 0: the present one is still
 * open. */
int cl_signal_replace(cl_signal *s, int fd);
void cl_signals_forget(void); /* in a forked child */
void cl_signals_stop(void); /* before the registry is unmapped */

#endif
