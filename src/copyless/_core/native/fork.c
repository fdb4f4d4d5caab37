/* Fork: how a child comes to own what its parent owned.
 *
 * Promise: what the parent held at the fork stays alive while the child lives and has not let it go, whatever becomes of the
 * parent. The fork costs the same however much the parent holds. A fork cannot be refused, so where the child cannot be
 * registered, memory older than the fork is not given to anybody while a copy of this address space may live.
 *
 * The handlers are C functions (pthread_atfork), so all hooks of Python have run before ours take a lock, and forks that
 * Python does not see (fork(2) in an embedding server) are handled too. prepare takes the mutex of the store's tables, and the
 * registry's lock for a moment. No thread may wait for the GIL while it holds that mutex.
 *
 *   prepare   a new owner for the child: byte locked through a mapping that the child inherits, slot `live`, heir of the
 *             parent's present epoch (estate.c). The registry's lock is let go, the mutex is kept.
 *   parent    the parent's copy of that mapping goes; the parent's epoch moves on: what it takes from now on is its own
 *   child     the mapping is its life now; the parent's lineage goes, its own begins
 *
 * What SIGKILL leaves:
 *
 *   in prepare            the mapping goes with the process: the child's slot looks dead and is reaped
 *   fork fails            the parent's handler runs all the same (POSIX) and unmaps: the same
 *   parent after fork     the child has the mapping: a whole owner. What the parent held stays as its estate
 *   child at any step     its mapping goes; while the parent has not unmapped its own copy yet, that copy keeps the byte
 *
 * When the child cannot be registered (no slot free, no descriptor, the registry's lock not to be had within FORK_NS because
 * its holder is stopped), the parent notes in its own slot that nothing it holds from this epoch or before may be recycled
 * while its lineage byte is locked: the child has inherited that mapping. The child's store is closed; it is told at once by a
 * warning, and by an error at its next call on an object that it inherited.
 *
 * A child that no handler saw (a raw clone) finds the page `here` wiped (MADV_WIPEONFORK): each call into the store looks at
 * it and fails. Its parent's memory is safe from it only while the parent lives; it has no business with it. */
#define _GNU_SOURCE
#include "store.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#ifndef MADV_WIPEONFORK
#define MADV_WIPEONFORK 18
#endif
#define FORK_NS ((int64_t)2000000000)
#define STORES 64 /* one more for each time that the storage directory was removed under this process */

static cl_store *stores[STORES]; /* changed only under `listing` */
static pthread_mutex_t listing = PTHREAD_MUTEX_INITIALIZER;

/* ---- a child that no handler saw */

int cl_here_begin(cl_store *store)
{
    static uint32_t always = 1;
    if (store->here != NULL) {
        return CL_OK;
    }
    void *page = mmap(NULL, CL_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (page == MAP_FAILED) {
        return cl_fail(CL_SYSTEM, errno, "mapping a page");
    }
    if (madvise(page, CL_PAGE, MADV_WIPEONFORK) != 0) { /* before Linux 4.14, and under emulators */
        munmap(page, CL_PAGE);
        store->here = &always;
        return CL_OK;
    }
    store->here = page;
    *store->here = 1;
    return CL_OK;
}

/* ---- the three handlers */

static void prepare_store(cl_store *store)
{
    cl_thread_lock_take(&store->mutex);
    store->fork_slot = 0;
    store->fork_life = NULL;
    store->fork_life_fd = -1;
    if (!store->open || *store->here == 0) {
        return;
    }
    int rc;
    int64_t deadline = cl_monotonic_ns() + FORK_NS;
    while ((rc = cl_lock_registry(store, CL_OP_FORK, deadline)) == CL_AGAIN && cl_monotonic_ns() < deadline) {
    }
    if (rc == CL_OK) {
        uint32_t slot;
        cl_scan(store, 0, NULL); /* a program that does nothing but fork leaves dead owners, too */
        rc = cl_join_child(store, &store->fork_life, &slot);
        if (rc == CL_TABLE_FULL && cl_scan(store, CL_SCAN_FORCE | CL_SCAN_KEEP_LOCK, NULL) == CL_OK) {
            rc = cl_join_child(store, &store->fork_life, &slot);
        }
        if (rc == CL_OK) {
            store->fork_slot = slot + 1;
        } else if (store->fork_life != NULL) {
            munmap(store->fork_life, CL_PAGE);
            store->fork_life = NULL;
        }
        cl_unlock_registry(store);
    }
    if (store->fork_slot == 0) {
        cl_lineage_begin(store); /* if it could not be had before */
        /* Before the fork: the copy must be safe also when we are killed right after it. A word that only its own process
         * writes, and that is read when the process drops a hold, or has ended. */
        cl_owner *me = &store->owners[store->slot];
        me->unregistered = CL_MUTANT(fork_copy_not_noted) ? 0 : me->epoch;
    }
}

static void in_parent(cl_store *store)
{
    if (store->open && *store->here != 0) {
        cl_owner *me = &store->owners[store->slot];
        CL_KILL_POINT();
        if (store->fork_life != NULL) {
            munmap(store->fork_life, CL_PAGE); /* the child's copy keeps the byte */
            store->fork_life = NULL;
        }
        if (store->fork_life_fd >= 0) {
            close(store->fork_life_fd);
            store->fork_life_fd = -1;
        }
        CL_KILL_POINT();
        me->epoch += !CL_MUTANT(fork_epoch_stays);
        store->fork_slot = 0;
        cl_spare_opening(store);
    }
    cl_thread_unlock(&store->mutex);
}

static void in_child(cl_store *store)
{
    cl_thread_lock_init(&store->mutex); /* the thread that held it is the parent's */
    if (!store->open || store->here == NULL) {
        return;
    }
    *store->here = 1;
    CL_KILL_POINT();
    if (store->fork_slot == 0) {
        store->open = 0; /* its lineage mapping stays: it says that this copy lives */
        store->orphan = 1;
        store->slot = CL_CARETAKER; /* no longer the parent's: what the parent holds and uses is not this process's */
        store->incarnation = 0;
        store->life = NULL;
        if (store->weak_liveness) {
            close(store->life_fd);
        }
        store->life_fd = -1;
        return;
    }
    uint32_t parent_pid = store->identity.pid;
    uint64_t parent_start = store->identity.start;
    void *parents = store->lineage;
    store->slot = store->fork_slot - 1;
    store->fork_slot = 0;
    cl_owner *me = &store->owners[store->slot];
    store->incarnation = me->incarnation;
    store->life = store->fork_life; /* the parent's own was not inherited */
    store->fork_life = NULL;
    if (store->weak_liveness) { /* there it was, and so was the descriptor */
        munmap(store->life, CL_PAGE);
        store->life = NULL;
        close(store->life_fd);
        store->life_fd = store->fork_life_fd;
    }
    store->fork_life_fd = -1;
    cl_life_keep(store);
    CL_KILL_POINT();
    store->identity.pid = me->pid = (uint32_t)getpid(); /* our own slot, for display */
    store->identity.start = me->start = cl_process_start(store->identity.pid);
    store->identity.parent_pid = parent_pid;
    store->identity.parent_start = parent_start;
    store->nonce = CL_MUTANT(fork_child_keeps_its_parents_nonce) ? store->nonce : cl_random64();
    store->ngoing = 0; /* the parent's to finish */
    cl_put_off_in_child(store);
    store->lineage = NULL;
    if (store->spare_fd >= 0 && cl_is_file(store->spare_fd, store->live_device, store->live_inode)) {
        close(store->spare_fd); /* an opening is shared by all copies of its descriptor: the parent may lock by it */
    }
    store->spare_fd = -1;
    cl_lineage_begin(store);
    cl_spare_opening(store);
    if (parents != NULL) {
        munmap(parents, CL_PAGE); /* this copy is registered: the parent's lineage need not wait for it */
    }
    CL_KILL_POINT();
    atomic_store_explicit(&me->op, CL_OP_NONE, memory_order_relaxed);
}

static void prepare(void)
{
    pthread_mutex_lock(&listing);
    for (int i = 0; i < STORES; i++) {
        if (stores[i] != NULL) {
            prepare_store(stores[i]);
        }
    }
}

static void parent(void)
{
    for (int i = STORES; i-- > 0;) {
        if (stores[i] != NULL) {
            in_parent(stores[i]);
        }
    }
    pthread_mutex_unlock(&listing);
}

static void child(void)
{
    pthread_mutex_init(&listing, NULL);
    cl_spill_fork_child();
    for (int i = 0; i < STORES; i++) {
        if (stores[i] != NULL) {
            in_child(stores[i]);
        }
    }
}

static void hook(void)
{
    pthread_atfork(prepare, parent, child);
}

void cl_fork_hold(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, hook);
    pthread_mutex_lock(&listing);
}

int cl_fork_release(cl_store *store)
{
    int rc = store == NULL ? CL_OK : CL_TABLE_FULL;
    for (int i = 0; i < STORES && rc != CL_OK; i++) {
        if (stores[i] == NULL || stores[i] == store) {
            stores[i] = store;
            rc = CL_OK;
        }
    }
    pthread_mutex_unlock(&listing);
    return rc == CL_OK ? CL_OK : cl_fail(CL_TABLE_FULL, 0, "%d stores are open in this process", STORES);
}

int cl_fork_follow(cl_store *store)
{
    cl_fork_hold();
    return cl_fork_release(store);
}

void cl_fork_forget(cl_store *store)
{
    pthread_mutex_lock(&listing);
    for (int i = 0; i < STORES; i++) {
        if (stores[i] == store) {
            stores[i] = NULL;
        }
    }
    pthread_mutex_unlock(&listing);
}
