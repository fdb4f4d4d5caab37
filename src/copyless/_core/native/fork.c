/* Fork: how a child becomes an owner of what its parent owned.
 *
 * Promise: what the parent held at the fork stays alive until the child has released it or died, whatever happens to
 * the parent. The cost of a fork does not depend on how much the parent holds. A fork cannot be refused. So if the
 * child cannot be registered, memory older than the fork is not given to any process while a copy of this address space
 * may live.
 *
 * The handlers are C functions (pthread_atfork). So all hooks of Python have run before the handlers take a lock, and
 * forks that Python does not see (fork(2) in an embedding server) are handled, too. prepare takes the mutex of the
 * store's tables, and the registry's lock for a moment. No thread may wait for the GIL while it holds that mutex. If
 * the lock's holder is stopped, a fork by Python waits for it in cl_before_fork, without the GIL and the mutex, so that
 * other threads continue.
 *
 *   prepare   a new owner for the child: byte locked through a mapping that the child inherits, slot `live`, heir of
 *             the parent's present epoch (estate.c). The registry's lock is released, the mutex is kept.
 *   parent    unmaps its copy of that mapping and increments its epoch: what it takes from now on is its own
 *   child     the mapping is its life now; it ends the parent's lineage and begins its own
 *
 * What SIGKILL leaves:
 *
 *   in prepare            the mapping ends with the process: the child's slot looks dead and is reaped
 *   fork fails            the parent's handler runs all the same (POSIX) and unmaps: the same
 *   parent after fork     the child has the mapping: a complete owner. What the parent held stays as its estate
 *   child at any step     its mapping ends; until the parent unmaps its own copy, that copy keeps the byte
 *
 * The child cannot be registered if no slot or no descriptor is free, or if the registry's lock cannot be taken because
 * the same process has held it for FORK_NS: it is stopped. Then the parent records in its own slot that nothing it holds from this epoch
 * or before may be reused while its lineage byte is locked: the child has inherited that mapping. The child's store is
 * closed. The child gets a warning at once, and an error when it first uses an object that it inherited.
 *
 * A child that no handler saw (a raw clone) finds zeros in the page `here` (MADV_WIPEONFORK): each call into the store
 * reads that page and fails. The parent's memory is protected from such a child only while the parent lives; the child
 * must not use it. */
#define _GNU_SOURCE
#include "store.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define FORK_NS ((int64_t)2000000000) /* for one holder */
#define FORK_MOST_NS ((int64_t)10000000000) /* while the lock goes from holder to holder */
#define STORES 64 /* one more each time the storage directory was removed under this process */

static cl_store *stores[STORES]; /* changed only under `listing` */
static pthread_mutex_t listing = PTHREAD_MUTEX_INITIALIZER;

/* ---- a child that no handler saw (a raw clone) */

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
    if (cl_wipe_in_children(page, CL_PAGE) != 0) { /* before Linux 4.14, and under emulators */
        munmap(page, CL_PAGE);
        store->here = &always;
        return CL_OK;
    }
    store->here = page;
    *store->here = 1;
    return CL_OK;
}

/* ---- the three handlers */

static _Thread_local int gave_up; /* this thread's fork has waited enough */

/* Whether a fork that began to wait at `start` waits on. A lock that goes from holder to holder is only contended. */
static int waits_on(int64_t start)
{
    int64_t now = cl_monotonic_ns();
    int64_t since = cl_waits()->holder != 0 ? cl_waits()->since_ns : start;
    return now - since < FORK_NS && now - start < FORK_MOST_NS;
}

int cl_before_fork(cl_store *store)
{
    int rc = store->open ? CL_AGAIN : CL_CLOSED;
    cl_waits()->holder = 0;
    for (int64_t start = cl_monotonic_ns(); rc == CL_AGAIN && waits_on(start);) {
        rc = cl_enter(store, CL_OP_FORK, CL_MAY_WAIT);
    }
    if (rc == CL_OK) {
        cl_leave(store);
    }
    gave_up = rc == CL_AGAIN;
    return gave_up;
}

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
    int64_t start = cl_monotonic_ns();
    cl_waits()->holder = 0;
    do {
        rc = cl_lock_registry(store, CL_OP_FORK, gave_up ? start : cl_monotonic_ns() + CL_SLICE_NS);
    } while (rc == CL_AGAIN && !gave_up && waits_on(start));
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
        store->fork_failed = *cl_last_error();
        store->fork_failed.code = rc;
        cl_lineage_begin(store); /* if it could not be opened before */
        /* Before the fork: the copy must be safe also if this process is killed right after the fork. Only its own
         * process writes the word; it is read when the process drops a hold, or has ended. */
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
    memset(&store->news, 0, sizeof store->news); /* its parent tells it */
    atomic_store(&store->untold, 0);
    if (!store->open || store->here == NULL) {
        return;
    }
    *store->here = 1;
    CL_KILL_POINT();
    if (store->fork_slot == 0) {
        store->open = 0; /* its lineage mapping stays: it shows that this copy lives */
        store->orphan = 1;
        store->slot = CL_CARETAKER; /* no longer the parent's: this process does not use the holds of the parent */
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
    if (store->weak_liveness) { /* there the mapping was inherited, and the descriptor, too */
        munmap(store->life, CL_PAGE);
        store->life = NULL;
        close(store->life_fd);
        store->life_fd = store->fork_life_fd;
    }
    store->fork_life_fd = -1;
    cl_life_keep(store);
    CL_KILL_POINT();
    store->identity.pid = me->pid = (uint32_t)getpid(); /* the slot of this process, for display */
    store->identity.start = me->start = cl_process_start(store->identity.pid);
    store->identity.parent_pid = parent_pid;
    store->identity.parent_start = parent_start;
    store->nonce = CL_MUTANT(fork_child_keeps_its_parents_nonce) ? store->nonce : cl_random64();
    store->ngoing = 0; /* the parent must finish it */
    cl_put_off_in_child(store);
    store->joined = (cl_reaped){0};
    store->lineage = NULL;
    if (store->spare_fd >= 0 && cl_is_file(store->spare_fd, store->live_device, store->live_inode)) {
        close(store->spare_fd); /* all copies of a descriptor share one open file: the parent may lock through it */
    }
    store->spare_fd = -1;
    cl_lineage_begin(store);
    cl_spare_opening(store);
    if (parents != NULL) {
        munmap(parents, CL_PAGE); /* this copy is registered, so the parent's lineage does not depend on it */
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
    gave_up = 0;
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
