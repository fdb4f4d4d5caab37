#define _GNU_SOURCE
#include "bell_thread.h"
#include "platform.h"

#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

typedef struct bell_thread {
    struct bell_thread *next;
    cl_store *store;
    cl_signal *signals;
    uint32_t seen; /* value of the bell when all signals were last checked */
    pthread_t thread;
} bell_thread;

static pthread_mutex_t mutex =
    PTHREAD_MUTEX_INITIALIZER; /* protects all of the following; held for microseconds, never during a sleep */
static pthread_cond_t some = PTHREAD_COND_INITIALIZER;
static bell_thread *threads;
static int stopping;
static pid_t begun_by;

cl_descriptor_id cl_descriptor_id_of(int fd)
{
    struct stat st;
    cl_descriptor_id none = {0, 0};
    return fstat(fd, &st) != 0 ? none : (cl_descriptor_id){st.st_dev, st.st_ino};
}

int cl_descriptor_is_there(int fd, cl_descriptor_id is)
{
    struct stat st;
    if (is.inode == 0) {
        return 1; /* it could not ask at that time */
    }
    if (fstat(fd, &st) != 0) {
        return errno != EBADF; /* and cannot now */
    }
    return st.st_dev == is.device && st.st_ino == is.inode;
}

static void write_to(const cl_signal *s)
{
    if (cl_descriptor_is_there(s->fd, s->is)) {
        cl_raise_descriptor(s->fd);
    }
}

static void empty(const cl_signal *s)
{
    if (cl_descriptor_is_there(s->fd, s->is)) {
        cl_lower_descriptor(s->fd);
    }
}

static void raise_it(cl_signal *s)
{
    s->raised = 1;
    write_to(s);
}

/* Whether the descriptor is readable now. */
static int look(cl_signal *s, int at_deaths)
{
    if (s->shut) {
        return 1;
    }
    if (s->kept || cl_watch_is_ready(&s->watch, at_deaths)) {
        if (!s->raised) {
            raise_it(s);
        }
        return 1;
    }
    if (s->raised) {
        s->raised = 0;
        empty(s);
    }
    cl_watch_ask(&s->watch);
    if (cl_watch_is_ready(&s->watch, 0)) { /* it became ready before the bell was asked for */
        raise_it(s);
        return 1;
    }
    return 0;
}

/* All descriptors are written for this ring of the bell; a process that is about to end waits for that. */
static void heard(const bell_thread *t, uint32_t ring)
{
    cl_au32 *word = &t->store->owners[t->store->slot].heard;
    if (atomic_exchange(word, ring | 1u) != (ring | 1u)) {
        cl_wake(word, INT_MAX);
    }
}

static void *run(void *argument)
{
    bell_thread *t = argument;
    cl_au32 *bell = cl_bell_of(t->store);
    unsigned slices = 0;
    pthread_mutex_lock(&mutex);
    while (!stopping) {
        if (t->signals == NULL) {
            atomic_store(&t->store->owners[t->store->slot].heard, 0);
            cl_wake(&t->store->owners[t->store->slot].heard, INT_MAX);
            pthread_cond_wait(&some, &mutex);
            continue;
        }
        uint32_t before = t->seen, now = atomic_load(bell);
        int rung = ((now ^ before) & ~CL_BELL_SLEEP) != 0, again = ++slices % 2 == 0;
        t->seen = now;
        for (cl_signal *s = t->signals; s != NULL && (rung || again); s = s->next) {
            if (s->listens) {
                if (rung) {
                    write_to(s);
                }
            } else if (!s->raised || again) {
                look(s, slices % CL_LOOK_SLICES == 0);
            }
        }
        heard(t, now);
        pthread_mutex_unlock(&mutex);
        cl_bell_wait(bell, now, CL_FOREVER, NULL);
        pthread_mutex_lock(&mutex);
    }
    pthread_mutex_unlock(&mutex);
    return NULL;
}

static int start(bell_thread *t)
{
    sigset_t all, before;
    pthread_attr_t attributes;
    sigfillset(&all);
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, 256 * 1024);
    pthread_sigmask(SIG_SETMASK, &all, &before); /* signals are for the program's threads */
    int rc = pthread_create(&t->thread, &attributes, run, t);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
    return rc;
}

static bell_thread *thread_of(cl_store *store)
{
    bell_thread *t = threads;
    while (t != NULL && t->store != store) {
        t = t->next;
    }
    return t;
}

int cl_signal_add(cl_signal *s)
{
    if (begun_by != getpid()) { /* also after a fork that no handler saw */
        cl_signals_forget();
        begun_by = getpid();
    }
    pthread_mutex_lock(&mutex);
    bell_thread *t = thread_of(s->store);
    int rc = stopping ? ECANCELED : 0;
    if (t == NULL && rc == 0) {
        t = calloc(1, sizeof *t);
        rc = t == NULL ? ENOMEM : 0;
        if (t != NULL) {
            t->store = s->store;
            t->seen = atomic_load(cl_bell_of(s->store));
            rc = start(t);
        }
        if (t != NULL && rc != 0) {
            free(t);
        } else if (t != NULL) {
            t->next = threads;
            threads = t;
        }
    }
    if (rc == 0) {
        s->next = t->signals;
        t->signals = s;
        atomic_store(&s->store->owners[s->store->slot].heard, t->seen | 1u);
        s->raised = s->shut = s->kept = 0;
        s->is = cl_descriptor_id_of(s->fd);
        if (!s->listens) {
            look(s, 0);
        }
        pthread_cond_broadcast(&some);
    }
    pthread_mutex_unlock(&mutex);
    return rc == 0 ? CL_OK : cl_fail(CL_SYSTEM, rc, "starting the thread that waits for wake-ups");
}

void cl_signal_remove(cl_signal *s)
{
    pthread_mutex_lock(&mutex);
    bell_thread *t = thread_of(s->store);
    for (cl_signal **at = t != NULL ? &t->signals : NULL; at != NULL && *at != NULL; at = &(*at)->next) {
        if (*at == s) {
            *at = s->next;
            break;
        }
    }
    pthread_mutex_unlock(&mutex);
}

int cl_signal_settle(cl_signal *s)
{
    pthread_mutex_lock(&mutex);
    int readable = look(s, 0);
    pthread_mutex_unlock(&mutex);
    return readable;
}

void cl_signal_keep(cl_signal *s, int on)
{
    pthread_mutex_lock(&mutex);
    s->kept = on;
    look(s, 0);
    pthread_mutex_unlock(&mutex);
}

void cl_signal_shut(cl_signal *s)
{
    pthread_mutex_lock(&mutex);
    s->shut = 1;
    raise_it(s);
    pthread_mutex_unlock(&mutex);
}

int cl_signal_replace(cl_signal *s, int fd)
{
    pthread_mutex_lock(&mutex);
    int gone = !cl_descriptor_is_there(s->fd, s->is);
    if (gone) {
        s->fd = fd;
        s->is = cl_descriptor_id_of(fd);
        s->raised = 0;
        if (s->shut) {
            raise_it(s);
        }
    }
    pthread_mutex_unlock(&mutex);
    return gone;
}

void cl_signals_forget(void)
{
    static const pthread_mutex_t fresh = PTHREAD_MUTEX_INITIALIZER; /* a thread of the parent may have held it */
    static const pthread_cond_t fresh_cond = PTHREAD_COND_INITIALIZER;
    mutex = fresh;
    some = fresh_cond;
    threads = NULL; /* a thread may have been changing what they point to: it is not freed */
    stopping = 0;
}

void cl_signals_stop(void)
{
    if (begun_by != getpid()) {
        return; /* they belong to the parent */
    }
    pthread_mutex_lock(&mutex);
    stopping = 1;
    pthread_cond_broadcast(&some);
    bell_thread *t = threads;
    pthread_mutex_unlock(&mutex);
    for (; t != NULL; t = t->next) {
        if (!pthread_equal(t->thread, pthread_self())) {
            cl_bell_ring(cl_bell_of(t->store), 1 << 20);
            pthread_join(t->thread, NULL);
        }
    }
}
