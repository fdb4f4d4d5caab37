/* For who waits by descriptors (select, poll, epoll): eventfds that this process writes when an object is ready, or its bell rang.
 *
 * Promise: a signal's descriptor is readable while its object is ready. It may be readable for a moment when the object is not any
 * more (another was faster), and is never unreadable while it is: who empties it looks at the object afterwards. A listener's is
 * readable after every ring of the bell.
 *
 * One thread of the process for each store (there is one but for a process whose directory was removed) sleeps on the bell and
 * writes. It needs no interpreter: no lock of Python's is taken, no signal is delivered to it, no patched module sees it. It starts with the
 * first signal or listener, sleeps while there is none, is gone in a forked child (begin anew there), and ends before the
 * process unmaps the registry.
 *
 * A signal: lowered --(ready: written)--> raised --(looked at, and not ready: emptied, asked, looked at again)--> lowered
 *
 * Only a lowered one asks, so an object that is filled without being emptied rings once. Whoever finds the object empty in this process
 * (a get, a clear) lowers; the thread lowers what others have emptied, within 2 * CL_SLICE_NS. */
#ifndef CL_BELL_THREAD_H
#define CL_BELL_THREAD_H

#include "bells.h"

/* A program may close all descriptors there are (a daemon that starts, os.closerange) and have one of ours for a file of its own.
 * So whoever writes, reads or closes one asks before whether it is there still. An eventfd of another's is not told from ours. */
typedef struct cl_eventfd {
    uint64_t device, inode;
} cl_eventfd;

cl_eventfd cl_eventfd_of(int fd);
int cl_eventfd_is_there(int fd, cl_eventfd is);

typedef struct cl_signal {
    struct cl_signal *next;
    cl_store *store;
    int fd; /* an eventfd that does not block */
    cl_eventfd is; /* by which it is known, from cl_signal_add on */
    int listens; /* to every ring; no object */
    int raised;
    int shut; /* raised for good: the object was closed here */
    cl_watch watch;
} cl_signal;

/* Begins anew by itself in a forked child, where all earlier ones are the parent's. */
int cl_signal_add(cl_signal *s); /* CL_SYSTEM: no thread could be started */
void cl_signal_remove(cl_signal *s); /* nobody writes to its descriptor any more */
int cl_signal_settle(cl_signal *s); /* lowered unless it is ready: whether it is */
void cl_signal_shut(cl_signal *s);
/* Go on with another descriptor, if the program closed the one there was. 1: with `fd`; 0: the old one is there. */
int cl_signal_replace(cl_signal *s, int fd);
void cl_signals_forget(void); /* in a forked child */
void cl_signals_stop(void); /* before the registry is unmapped */

#endif
