/* Synchronisation objects: a stress test by threads (also under TSan), and the death of a process at every step of
 * each. */
#include "check.h"
#include "sync.h"

#include <pthread.h>
#include <sys/mman.h>

#define ROOM 16
static cl_store store;
static struct objects {
    cl_mutex lock, recursive;
    cl_semaphore seats;
    cl_event event;
    char robust[sizeof(cl_robust) + ROOM * sizeof(cl_entry)];
    char rw[sizeof(cl_rwlock) + ROOM * sizeof(cl_entry)];
    char condition[sizeof(cl_condition) + ROOM * sizeof(cl_entry)];
    char barrier[sizeof(cl_barrier) + ROOM * sizeof(cl_entry)];
    uint64_t pad;
} *o;

#define SEATS (&seats)
#define ROBUST (&robust)
#define RW (&rw)
#define CONDITION (&condition)
#define BARRIER (&barrier)
static cl_object seats, robust, rw, condition, barrier; /* as this process recorded them */

static int64_t soon(void)
{
    return cl_monotonic_ns() + 5000000000;
}

/* Call until it has a result; a hang is a failure. */
#define DECIDED(rc, call)                                                                                              \
    do {                                                                                                               \
        int64_t deadline = soon();                                                                                     \
        while (((rc) = (call)) == CL_AGAIN) {                                                                          \
            CHECK(cl_monotonic_ns() < deadline);                                                                       \
        }                                                                                                              \
        CHECK((rc) != CL_TIMEOUT);                                                                                     \
    } while (0)

static void attach(cl_object *to, void *at, size_t n, uint32_t kind, uint32_t number, uint32_t room)
{
    cl_head *head = at;
    *head = (cl_head){.magic = CL_OBJECT_MAGIC, .kind = kind, .number = number, .room = room};
    CHECK(cl_object_attach(to, head, n, 0) == CL_OK);
}

static void begin(void)
{
    memset(o, 0, sizeof *o);
    atomic_store(&o->seats.word, 2);
    attach(SEATS, &o->seats, sizeof o->seats, CL_KIND_SEMAPHORE, 0, 0);
    attach(ROBUST, o->robust, sizeof o->robust, CL_KIND_ROBUST_SEMAPHORE, 2, 2);
    attach(RW, o->rw, sizeof o->rw, CL_KIND_RWLOCK, 0, ROOM);
    attach(CONDITION, o->condition, sizeof o->condition, CL_KIND_CONDITION, 0, ROOM);
    attach(BARRIER, o->barrier, sizeof o->barrier, CL_KIND_BARRIER, 2, 2);
}

static int lock(cl_au32 *word)
{
    static cl_spin spin;
    int rc;
    DECIDED(rc, cl_mutex_lock(&store, word, deadline, &spin));
    return rc;
}

/* ---- threads */

static long counter, reads, written;
static cl_au32 inside;

static void *work(void *arg)
{
    static cl_spin spin; /* shared on purpose */
    uint64_t me = (uintptr_t)arg;
    int rc;
    for (int i = 0; i < 300; i++) {
        CHECK(lock(&o->lock.word) == CL_OK);
        counter++;
        cl_unlock(&o->lock.word);
        DECIDED(rc, cl_rlock(&store, &o->recursive, me, deadline, &spin));
        CHECK(rc == CL_OK && cl_rlock(&store, &o->recursive, me, 0, &spin) == CL_OK);
        reads++;
        cl_runlock(&o->recursive);
        CHECK(cl_rlock_is_mine(&store, &o->recursive, me));
        cl_runlock(&o->recursive);
        DECIDED(rc, cl_sem_acquire(&o->seats, deadline, &spin));
        CHECK(rc == CL_OK && atomic_fetch_add(&inside, 1) < 2);
        atomic_fetch_sub(&inside, 1);
        CHECK(cl_sem_release(SEATS, 1) == CL_OK);
        DECIDED(rc, cl_robust_acquire(&store, ROBUST, deadline, &spin));
        CHECK(rc == CL_OK && cl_robust_release(&store, ROBUST, CL_FOREVER) == CL_OK);
        int write = i % 8 == 0;
        DECIDED(rc, write ? cl_rw_write(&store, RW, deadline, &spin) : cl_rw_read(&store, RW, deadline, &spin));
        CHECK(rc == CL_OK);
        if (write) {
            written++;
        }
        CHECK(cl_rw_release(&store, RW, write) == CL_OK);
    }
    return NULL;
}

static int turns;
static void *take_turns(void *arg)
{
    int me = (int)(uintptr_t)arg;
    for (int i = 0; i < 200; i++) {
        CHECK(lock(&o->lock.word) == CL_OK);
        while (turns % 2 != me) {
            uint32_t entry;
            int rc;
            CHECK(cl_condition_begin(&store, CONDITION, &entry) == CL_OK);
            cl_unlock(&o->lock.word);
            DECIDED(rc, cl_condition_wait(&store, CONDITION, entry, deadline, NULL));
            CHECK(rc == CL_OK && cl_condition_end(CONDITION, entry) == 1);
            CHECK(lock(&o->lock.word) == CL_OK);
        }
        turns++;
        cl_condition_notify(&store, CONDITION, 1);
        cl_unlock(&o->lock.word);
    }
    return NULL;
}

static cl_au32 rounds;
static void *meet(void *arg)
{
    (void)arg;
    for (int i = 0; i < 200; i++) {
        uint32_t entry, index;
        int rc;
        DECIDED(rc, cl_barrier_arrive(&store, BARRIER, &entry, &index, deadline));
        CHECK(rc == CL_OK && index < 2);
        if (index == 1) {
            atomic_fetch_add(&rounds, 1);
            CHECK(cl_barrier_release(&store, BARRIER, entry, CL_FOREVER) == CL_OK);
        }
        DECIDED(rc, cl_barrier_wait(&store, BARRIER, entry, deadline));
        CHECK(rc == CL_OK && atomic_load(&rounds) >= (uint32_t)i + 1);
    }
    return NULL;
}

static void *wait_for_it(void *arg)
{
    (void)arg;
    uint32_t seen = 0;
    int rc;
    cl_spin spin = {0};
    DECIDED(rc, cl_event_wait(&o->event, &seen, deadline, &spin));
    CHECK(rc == CL_OK);
    return NULL;
}

static void both(void *(*what)(void *))
{
    pthread_t threads[4];
    uintptr_t n = what == work || what == wait_for_it ? 4 : 2;
    for (uintptr_t i = 0; i < n; i++) {
        CHECK(pthread_create(&threads[i], NULL, what, (void *)(what == work ? i + 1 : i)) == 0);
    }
    if (what == wait_for_it) {
        cl_event_set(&o->event);
        cl_event_clear(&o->event);
        cl_event_set(&o->event);
    }
    for (uintptr_t i = 0; i < n; i++) {
        pthread_join(threads[i], NULL);
    }
}

/* ---- kills: the victim does one round of everything, in whatever state it finds; then the survivor must be able to do the same */

#ifndef __SANITIZE_THREAD__
static void settle_lock(cl_au32 *word)
{
    int rc = lock(word);
    CHECK(rc == CL_OK || rc == CL_OWNER_DIED);
    cl_unlock(word);
}

static void victim(int which)
{
    static cl_spin spin;
    uint32_t entry = 0, index = 0, seen = 0;
    int rc;
    switch (which) {
    case 0:
        lock(&o->lock.word);
        CL_KILL_POINT();
        cl_unlock(&o->lock.word);
        DECIDED(rc, cl_rlock(&store, &o->recursive, 5, deadline, &spin));
        CL_KILL_POINT();
        cl_runlock(&o->recursive);
        break;
    case 1:
        DECIDED(rc, cl_robust_acquire(&store, ROBUST, deadline, &spin));
        CL_KILL_POINT();
        cl_robust_release(&store, ROBUST, CL_FOREVER);
        break;
    case 2:
        DECIDED(rc, cl_rw_read(&store, RW, deadline, &spin));
        CL_KILL_POINT();
        cl_rw_release(&store, RW, 0);
        DECIDED(rc, cl_rw_write(&store, RW, deadline, &spin));
        CL_KILL_POINT();
        cl_rw_release(&store, RW, 1);
        CHECK(cl_rw_write(&store, RW, -1, &spin) == CL_OK);
        CL_KILL_POINT();
        cl_rw_release(&store, RW, 1);
        break;
    case 3:
        lock(&o->lock.word);
        CHECK(cl_condition_begin(&store, CONDITION, &entry) == CL_OK);
        cl_unlock(&o->lock.word);
        CL_KILL_POINT();
        CHECK(cl_condition_wait(&store, CONDITION, entry, 1, NULL) == CL_TIMEOUT);
        lock(&o->lock.word);
        cl_condition_notify(&store, CONDITION, 1);
        cl_condition_end(CONDITION, entry);
        cl_condition_notify(&store, CONDITION, 5);
        cl_unlock(&o->lock.word);
        break;
    case 4:
        rc = cl_barrier_arrive(&store, BARRIER, &entry, &index, 1);
        CHECK(rc == CL_OK);
        CL_KILL_POINT();
        if (index == 1) {
            cl_barrier_release(&store, BARRIER, entry, CL_FOREVER);
        }
        DECIDED(rc, cl_barrier_wait(&store, BARRIER, entry, deadline));
        break;
    default:
        cl_event_set(&o->event);
        cl_event_clear(&o->event);
        cl_event_wait(&o->event, &seen, 0, &spin);
        DECIDED(rc, cl_sem_acquire(&o->seats, deadline, &spin));
        cl_sem_release(SEATS, 1);
    }
}

static void survive(int which, int arrived, uint32_t entry)
{
    static cl_spin spin;
    int rc;
    settle_lock(&o->lock.word);
    switch (which) {
    case 0:
        DECIDED(rc, cl_rlock(&store, &o->recursive, 1, deadline, &spin));
        CHECK(rc == CL_OK || rc == CL_OWNER_DIED);
        CHECK(cl_rlock_is_mine(&store, &o->recursive, 1) && atomic_load(&o->recursive.depth) == 1);
        cl_runlock(&o->recursive);
        CHECK((atomic_load(&o->recursive.word) & ~CL_LOCK_SLEEP) == 0);
        break;
    case 1:
        CHECK(cl_robust_value(&store, ROBUST) == 2);
        for (int i = 0; i < 2; i++) {
            DECIDED(rc, cl_robust_acquire(&store, ROBUST, deadline, &spin));
            CHECK(rc == CL_OK || rc == CL_OWNER_DIED);
        }
        CHECK(cl_robust_acquire(&store, ROBUST, 0, &spin) == CL_AGAIN);
        break;
    case 2:
        DECIDED(rc, cl_rw_write(&store, RW, deadline, &spin));
        CHECK(rc == CL_OK || rc == CL_OWNER_DIED);
        CHECK(cl_rw_release(&store, RW, 1) == CL_OK);
        DECIDED(rc, cl_rw_read(&store, RW, deadline, &spin));
        CHECK(rc == CL_OK && cl_rw_release(&store, RW, 0) == CL_OK);
        break;
    case 3: {
        /* a notification reaches the live waiter, whichever process died on the way */
        uint32_t mine;
        lock(&o->lock.word);
        CHECK(cl_condition_begin(&store, CONDITION, &mine) == CL_OK);
        cl_condition_notify(&store, CONDITION, 1);
        cl_unlock(&o->lock.word);
        DECIDED(rc, cl_condition_wait(&store, CONDITION, mine, deadline, NULL));
        CHECK(rc == CL_OK && cl_condition_end(CONDITION, mine) == 1);
        break;
    }
    case 4: /* we had arrived: passed, or broken by the death, or still waiting because the victim never arrived */
        if (arrived) {
            rc = CL_AGAIN;
            for (int i = 0; i < 6 && rc == CL_AGAIN; i++) {
                rc = cl_barrier_wait(&store, BARRIER, entry, soon());
            }
            uint32_t waiting = 0;
            CHECK(cl_barrier_waiting(&store, BARRIER, &waiting) == CL_OK);
            CHECK(rc == CL_OK || rc == CL_CLOSED || (rc == CL_AGAIN && waiting == 1));
            CHECK(cl_barrier_break(&store, BARRIER, 1) == CL_OK);
            if (rc == CL_AGAIN) {
                CHECK(cl_barrier_wait(&store, BARRIER, entry, 1) == CL_CLOSED);
            }
        }
        break;
    default:
        cl_event_set(&o->event);
        CHECK(cl_event_wait(&o->event, &(uint32_t){0}, 0, &spin) == CL_OK);
    }
}

static void kill_everywhere(int which)
{
    int n = 1;
    for (;; n++) {
        begin();
        uint32_t entry = 0, index = 0;
        int arrived = which == 4 && cl_barrier_arrive(&store, BARRIER, &entry, &index, 1) == CL_OK;
        pid_t child = fork();
        if (child == 0) {
            memset(&store, 0, sizeof store);
            open_store(&store, 5);
            cl_kill_at = cl_kill_passed + n;
            victim(which);
            _exit(0);
        }
        int well = ended(child);
        survive(which, arrived, entry);
        if (well) {
            break;
        }
    }
    CHECK(n > 2);
}
#endif

/* ---- deaths, one by one */

#ifndef __SANITIZE_THREAD__
/* A process of its own that does `what` and dies; with `stay` it waits to be ended, once it is done. */
static pid_t another(void (*what)(void), int stay)
{
    int done[2];
    char c;
    CHECK(pipe(done) == 0);
    pid_t child = fork();
    if (child == 0) {
        memset(&store, 0, sizeof store);
        open_store(&store, 5);
        o->pad = store.slot;
        what();
        CHECK(write(done[1], "x", 1) == 1);
        while (stay) {
            pause();
        }
        kill(getpid(), SIGKILL);
    }
    CHECK(read(done[0], &c, 1) == 1);
    close(done[0]);
    close(done[1]);
    CHECK(stay || !ended(child));
    return child;
}

static void end(pid_t child)
{
    CHECK(kill(child, SIGKILL) == 0 && !ended(child));
    CHECK(cl_reap(&store, CL_MAY_WAIT, NULL) == CL_OK);
}

static void takes_all(void)
{
    cl_spin spin = {0};
    CHECK(lock(&o->lock.word) == CL_OK && cl_robust_acquire(&store, ROBUST, 0, &spin) == CL_OK);
    CHECK(cl_robust_acquire(&store, ROBUST, 0, &spin) == CL_OK);
}

static void does_nothing(void)
{
}

/* It died and was forgotten, and its slot now belongs to a live process: the locks that it had are still those of a
 * dead process. */
static void test_slot_given_again(void)
{
    cl_spin spin = {0};
    int rc;
    begin();
    another(takes_all, 0);
    uint64_t slot = o->pad;
    CHECK(cl_reap(&store, CL_MAY_WAIT, NULL) == CL_OK && store.owners[slot].state == CL_OWNER_FREE);
    pid_t heir = another(does_nothing, 1);
    CHECK(o->pad == slot && store.owners[slot].state == CL_OWNER_LIVE);
    CHECK(lock(&o->lock.word) == CL_OWNER_DIED);
    CHECK(cl_robust_value(&store, ROBUST) == 2);
    for (int i = 0; i < 2; i++) {
        DECIDED(rc, cl_robust_acquire(&store, ROBUST, deadline, &spin));
        CHECK(rc == CL_OWNER_DIED);
    }
    end(heir);
}

static void waits_for_a_notice(void)
{
    uint32_t entry;
    lock(&o->lock.word);
    CHECK(cl_condition_begin(&store, CONDITION, &entry) == CL_OK);
    cl_unlock(&o->lock.word);
}

/* The waiter that has waited longest is dead: the notification is not for it. Or it dies with the notification,
 * which then passes on. */
static void test_notices(void)
{
    uint32_t mine;
    int rc;
    begin();
    another(waits_for_a_notice, 0);
    CHECK(cl_condition_begin(&store, CONDITION, &mine) == CL_OK && mine == 1);
    CHECK(cl_condition_notify(&store, CONDITION, 1) == 1 && cl_condition_end(CONDITION, mine) == 1); /* at once */

    begin();
    pid_t child = another(waits_for_a_notice, 1);
    CHECK(cl_condition_begin(&store, CONDITION, &mine) == CL_OK && mine == 1);
    CHECK(cl_condition_notify(&store, CONDITION, 1) == 1);
    end(child);
    DECIDED(rc, cl_condition_wait(&store, CONDITION, mine, deadline, NULL));
    CHECK(rc == CL_OK && cl_condition_end(CONDITION, mine) == 1);

    begin(); /* or the next notify passes it on, and gives two */
    child = another(waits_for_a_notice, 1);
    CHECK(cl_condition_notify(&store, CONDITION, 1) == 1);
    end(child);
    for (int i = 0; i < 2; i++) {
        CHECK(cl_condition_begin(&store, CONDITION, &mine) == CL_OK);
    }
    CHECK(cl_condition_notify(&store, CONDITION, 1) == 2);
}

static void waits_to_write(void)
{
    cl_spin spin = {0};
    CHECK(cl_rw_write(&store, RW, -1, &spin) == CL_AGAIN);
}

/* A writer that gives up while another live process is stopped inside the monitor of the lock still admits readers
 * again. */
static void test_writer_gives_up(void)
{
    cl_spin spin = {0};
    begin();
    cl_rwlock *l = (cl_rwlock *)(void *)o->rw;
    CHECK(cl_rw_read(&store, RW, 0, &spin) == CL_OK);
    for (int forgets = 0; forgets < 2; forgets++) {
        CHECK(cl_rw_write(&store, RW, -1, &spin) == CL_AGAIN && cl_rw_read(&store, RW, 0, &spin) == CL_AGAIN);
        atomic_store(&l->monitor.mutex, cl_self(&store));
        CHECK(forgets ? cl_rw_forget(&store, RW) == CL_OK
                      : cl_rw_write(&store, RW, cl_monotonic_ns() + 1000000, &spin) == CL_TIMEOUT);
        CHECK((atomic_load(&l->monitor.mutex) & ~CL_LOCK_SLEEP) == cl_self(&store));
        atomic_store(&l->monitor.mutex, 0);
        CHECK(cl_rw_read(&store, RW, 0, &spin) == CL_OK && cl_rw_release(&store, RW, 0) == CL_OK);
    }
    CHECK(cl_rw_release(&store, RW, 0) == CL_OK);
}

static void reads_on(void)
{
    cl_spin spin = {0};
    CHECK(cl_rw_read(&store, RW, 0, &spin) == CL_OK);
}

/* A waiting writer keeps new readers out as long as it lives; a reader keeps writers out as long. */
static void test_waiting_writer(void)
{
    cl_spin spin = {0};
    int rc;
    begin();
    CHECK(cl_rw_read(&store, RW, 0, &spin) == CL_OK);
    pid_t child = another(waits_to_write, 1);
    CHECK(cl_rw_read(&store, RW, 0, &spin) == CL_AGAIN);
    end(child);
    DECIDED(rc, cl_rw_read(&store, RW, deadline, &spin));
    CHECK(rc == CL_OK && cl_rw_release(&store, RW, 0) == CL_OK && cl_rw_release(&store, RW, 0) == CL_OK);
    child = another(reads_on, 1);
    CHECK(cl_rw_write(&store, RW, 0, &spin) == CL_AGAIN);
    end(child);
    DECIDED(rc, cl_rw_write(&store, RW, deadline, &spin));
    CHECK(rc == CL_OK && cl_rw_release(&store, RW, 1) == CL_OK);
}
#endif

/* ---- wild words: the description of an object is checked once; later it is not read again */

static int refused(uint32_t kind, uint32_t number, uint32_t room, uint64_t capacity)
{
    cl_object out;
    cl_head head = {.magic = CL_OBJECT_MAGIC, .kind = kind, .number = number, .room = room};
    return cl_object_attach(&out, &head, capacity, 7) == CL_CORRUPT;
}

static void damage(void)
{
    uint64_t four = sizeof(cl_barrier) + 4 * sizeof(cl_entry);
    CHECK(!refused(CL_KIND_BARRIER, 4, 4, four) && refused(CL_KIND_BARRIER, 4, 4, four - 1));
    CHECK(refused(CL_KIND_BARRIER, 5, 5, four) && refused(CL_KIND_BARRIER, 3, 4, four) &&
          refused(CL_KIND_BARRIER, 0, 0, four) && refused(CL_KIND_BARRIER, UINT32_MAX, UINT32_MAX, four));
    CHECK(refused(CL_KIND_RWLOCK, 0, UINT32_MAX, four) && refused(CL_KIND_RWLOCK, 0, 0, four));
    CHECK(refused(CL_KIND_CONDITION, 0, 1u << 31, four) && refused(CL_KIND_ROBUST_SEMAPHORE, 1, 2, four));
    CHECK(refused(CL_KIND_SEMAPHORE, 1u << 31, 0, four) && refused(CL_KIND_QUEUE, 0, 0, four) &&
          refused(0, 0, 0, four) && refused(CL_KIND_LOCK, 0, 0, sizeof(cl_head)));
    begin();
    cl_spin spin = {0};
    uint32_t entry, index, n = 0;
    int rc;
    for (size_t i = 1; i < 4; i++) { /* every field of the head but the magic is wild now */
        memset((uint8_t *)(i == 1 ? o->rw : i == 2 ? o->condition : o->barrier) + 4, 0xff, sizeof(cl_head) - 4);
    }
    DECIDED(rc, cl_rw_write(&store, RW, deadline, &spin));
    CHECK(rc == CL_OK && cl_rw_release(&store, RW, 1) == CL_OK);
    CHECK(cl_condition_begin(&store, CONDITION, &entry) == CL_OK && cl_condition_notify(&store, CONDITION, 5) == 1);
    DECIDED(rc, cl_barrier_arrive(&store, BARRIER, &entry, &index, deadline));
    CHECK(rc == CL_OK && cl_barrier_waiting(&store, BARRIER, &n) == CL_OK && n == 1);
    /* a word that names an owner that does not exist is that of a dead owner; one that names no slot at all is
     * damage */
    cl_mutex *m = &o->lock;
    atomic_store(&m->word, 0xfffu);
    DECIDED(rc, cl_mutex_lock(&store, &m->word, deadline, &spin));
    CHECK(rc == CL_OWNER_DIED && cl_owner_pid(&store, 0xfffu) == 0);
    atomic_store(&m->word, 0x1000u);
    DECIDED(rc, cl_mutex_lock(&store, &m->word, deadline, &spin));
    CHECK(rc == CL_CORRUPT && cl_owner_pid(&store, 0x1000u) == 0);
    CHECK(cl_owner_pid(&store, cl_self(&store)) != 0);
    /* a recursive lock is released at once, however often its word says that it is held */
    DECIDED(rc, cl_rlock(&store, &o->recursive, 7, deadline, &spin));
    atomic_store(&o->recursive.depth, UINT32_MAX);
    CHECK(rc == CL_OK && cl_rlock_save(&o->recursive) == UINT32_MAX && !cl_rlock_is_mine(&store, &o->recursive, 7));
}

int main(void)
{
    o = mmap(NULL, sizeof *o, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(o != MAP_FAILED);
    open_store(&store, 1);
    begin();
    both(work);
    CHECK(counter == 1200 && reads == 1200 && written == 4 * 38);
    both(take_turns);
    CHECK(turns == 400);
    both(meet);
    CHECK(atomic_load(&rounds) == 200);
    both(wait_for_it);

    begin();
    attach(SEATS, &o->seats, sizeof o->seats, CL_KIND_SEMAPHORE, 2, 0);
    atomic_store(&o->seats.word, 2);
    CHECK(cl_sem_release(SEATS, 1) == CL_FULL);
    for (uint32_t i = 0, entry; i < ROOM + 1; i++) {
        CHECK(cl_condition_begin(&store, CONDITION, &entry) == (i < ROOM ? CL_OK : CL_TABLE_FULL));
    }
    CHECK(cl_rw_release(&store, RW, 0) == CL_MISSING && cl_rw_release(&store, RW, 1) == CL_MISSING);
    CHECK(cl_robust_release(&store, ROBUST, CL_FOREVER) == CL_MISSING);
    damage();
#ifndef __SANITIZE_THREAD__
    for (int which = 0; which < 6; which++) {
        kill_everywhere(which);
    }
    test_slot_given_again();
    test_notices();
    test_waiting_writer();
    test_writer_gives_up();
#endif
    CHECK(cl_store_leave(&store) >= 0);
    remove_directory();
    puts("sync: ok");
    return 0;
}
