/* Waiting for many objects by one bell: no ring is missed, no process waits for one that died or stopped at any
 * step, and slots share bits. */
#include "check.h"

#include "bell_thread.h"
#include "bells.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>

#define QUEUES 8
static cl_store store;
static cl_queue queues[QUEUES];

static void make(cl_queue *q)
{
    cl_block_ref ref;
    int rc;
    while ((rc = cl_alloc(&store, sizeof(cl_queue_head), CL_MAY_WAIT | CL_FOR_OBJECT, &ref)) == CL_AGAIN) {
    }
    CHECK(rc == CL_OK);
    cl_queue_head *h = (cl_queue_head *)(void *)ref.data;
    memset(h, 0, sizeof *h);
    h->head.magic = CL_OBJECT_MAGIC;
    h->head.kind = CL_KIND_QUEUE;
    CHECK(cl_queue_attach(q, &store, h, ref.capacity, ref.segment * CL_BLOCKS + ref.index) == CL_OK);
}

static void put(cl_queue *q, uint64_t value)
{
    cl_item item = {.body = &value, .nbytes = sizeof value};
    uint32_t done = 0;
    int64_t deadline = cl_monotonic_ns() + 20000000000;
    int rc;
    while ((rc = cl_queue_put(q, &item, 1, &done, CL_FOREVER, CL_MAY_WAIT)) == CL_AGAIN) {
        CHECK(cl_monotonic_ns() < deadline);
    }
    CHECK(rc == CL_OK && done == 1);
}

static int take(cl_queue *q, uint64_t *value)
{
    cl_got got;
    int rc = cl_queue_begin(q, 0, CL_MAY_WAIT);
    if (rc != CL_OK) {
        return rc;
    }
    CHECK(cl_queue_next(q, &got, CL_MAY_WAIT) == CL_OK && got.nbytes == sizeof *value);
    memcpy(value, got.body, sizeof *value);
    return cl_queue_commit(q);
}

static void watch(cl_watch *w, uint32_t n)
{
    memset(w, 0, n * sizeof *w);
    for (uint32_t i = 0; i < n; i++) {
        w[i].store = &store;
        w[i].head = &queues[i].head->head;
        w[i].is.kind = CL_KIND_QUEUE;
    }
}

static int wait_any(cl_watch *w, uint32_t n, uint8_t *ready, int64_t deadline)
{
    uint32_t slices = 0;
    int rc;
    while ((rc = cl_watch_any(w, n, ready, &slices, deadline, NULL)) == CL_AGAIN) {
    }
    return rc;
}

static int64_t after(int64_t ms)
{
    return cl_monotonic_ns() + ms * 1000000;
}

static pid_t fork_store(void)
{
    for (int i = 0; i < QUEUES; i++) {
        atomic_store(&queues[i].head->head.bells, 0); /* no process waits: the child is the first to ask */
    }
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        cl_signals_forget();
    }
    return child;
}

/* ---- what is ready, timeouts */

static void looks(void)
{
    cl_watch w[QUEUES];
    uint8_t ready[QUEUES];
    uint64_t value;
    watch(w, QUEUES);
    CHECK(wait_any(w, QUEUES, ready, 0) == CL_TIMEOUT);
    int64_t deadline = after(70);
    CHECK(wait_any(w, QUEUES, ready, deadline) == CL_TIMEOUT && cl_monotonic_ns() >= deadline);
    put(&queues[2], 1);
    put(&queues[5], 2);
    CHECK(wait_any(w, QUEUES, ready, CL_FOREVER) == CL_OK);
    for (int i = 0; i < QUEUES; i++) {
        CHECK(ready[i] == (i == 2 || i == 5));
    }
    CHECK(take(&queues[2], &value) == CL_OK && value == 1 && take(&queues[5], &value) == CL_OK && value == 2);
    CHECK(wait_any(w, QUEUES, ready, 0) == CL_TIMEOUT);
}

/* A ring reaches all slots of a bit, and clears the bit. */
static void slots_share_bits(void)
{
    uint32_t before = atomic_load(cl_bell_of(&store)), bit = store.slot % CL_BELL_BITS;
    cl_head *head = &queues[0].head->head;
    CHECK(atomic_load(&head->bells) == 0 || atomic_load(&head->bells) == (uint64_t)1 << bit);
    atomic_store(&head->bells, UINT64_MAX); /* as if processes had asked that do not exist */
    cl_bells_tell(&store, head);
    CHECK(atomic_load(&head->bells) == 0 && atomic_load(cl_bell_of(&store)) != before);
}

/* ---- deaths: a waiter and a ringer, at every step */

static long killed_at;

static void a_waiter_dies(void)
{
    for (long at = 1;; at++) {
        pid_t child = fork_store();
        if (child == 0) {
            cl_watch w[QUEUES];
            uint8_t ready[QUEUES];
            watch(w, QUEUES);
            atomic_store(&cl_kill_passed, 0);
            atomic_store(&cl_kill_at, at);
            wait_any(w, QUEUES, ready, after(20));
            _exit(0);
        }
        int status;
        CHECK(waitpid(child, &status, 0) == child);
        for (int i = 0; i < QUEUES; i++) { /* the survivors: all puts return, a new process is woken */
            put(&queues[i], (uint64_t)i);
        }
        cl_watch w[QUEUES];
        uint8_t ready[QUEUES];
        uint64_t value;
        watch(w, QUEUES);
        CHECK(wait_any(w, QUEUES, ready, after(20000)) == CL_OK);
        for (int i = 0; i < QUEUES; i++) {
            CHECK(ready[i] && take(&queues[i], &value) == CL_OK && value == (uint64_t)i);
        }
        if (WIFEXITED(status)) {
            killed_at += at;
            break;
        }
    }
}

static void a_ringer_dies(void)
{
    for (long at = 1;; at++) {
        pid_t waiter = fork_store();
        if (waiter == 0) {
            cl_watch w[QUEUES];
            uint8_t ready[QUEUES];
            uint64_t value;
            watch(w, QUEUES);
            CHECK(wait_any(w, QUEUES, ready, after(20000)) == CL_OK && ready[3]);
            CHECK(take(&queues[3], &value) == CL_OK);
            _exit(0);
        }
        while (!(atomic_load(&queues[QUEUES - 1].head->head.bells)) && waitpid(waiter, NULL, WNOHANG) == 0) {
            usleep(50); /* until it has asked */
        }
        pid_t ringer = fork();
        if (ringer == 0) {
            atomic_store(&cl_kill_passed, 0);
            atomic_store(&cl_kill_at, at);
            put(&queues[3], 7);
            _exit(0);
        }
        int status, last;
        CHECK(waitpid(ringer, &status, 0) == ringer);
        last = WIFEXITED(status);
        if (cl_queue_size(queues[3].head) == 0 && kill(waiter, 0) == 0 && !last) {
            put(&queues[3], 8); /* it died before its item was put, or the waiter has the item already */
        }
        CHECK(waitpid(waiter, &status, 0) == waiter && WIFEXITED(status) && WEXITSTATUS(status) == 0);
        uint64_t value;
        while (take(&queues[3], &value) == CL_OK) {
        }
        if (last) {
            break;
        }
    }
}

/* A stopped waiter delays no process. When it continues, the items that came meanwhile wake it. */
static void a_waiter_is_stopped(void)
{
    pid_t waiter = fork_store();
    if (waiter == 0) {
        cl_watch w[QUEUES];
        uint8_t ready[QUEUES];
        watch(w, QUEUES);
        CHECK(wait_any(w, QUEUES, ready, after(20000)) == CL_OK && ready[1]);
        _exit(0);
    }
    while (!atomic_load(&queues[QUEUES - 1].head->head.bells)) {
        usleep(50);
    }
    kill(waiter, SIGSTOP);
    int status;
    CHECK(waitpid(waiter, &status, WUNTRACED) == waiter && WIFSTOPPED(status));
    int64_t begun = cl_monotonic_ns();
    for (int i = 0; i < 1000; i++) {
        put(&queues[1], (uint64_t)i);
    }
    CHECK(cl_monotonic_ns() - begun < 5000000000);
    kill(waiter, SIGCONT);
    CHECK(waitpid(waiter, &status, 0) == waiter && WIFEXITED(status) && WEXITSTATUS(status) == 0);
    uint64_t value;
    while (take(&queues[1], &value) == CL_OK) {
    }
}

/* ---- random load: two processes put at random, one waits; each wake must come long before the end of a slice */

#define STORM 20000
static void a_storm(void)
{
    pid_t producers[2];
    for (int p = 0; p < 2; p++) {
        producers[p] = fork();
        if (producers[p] == 0) {
            uint32_t random = (uint32_t)p + 1;
            for (int i = 0; i < STORM / 2; i++) {
                random = random * 1103515245 + 12345;
                put(&queues[(random >> 16) % QUEUES], (uint64_t)i);
                if ((random >> 8) % 64 == 0) {
                    usleep((random >> 16) % 300);
                }
            }
            _exit(0);
        }
    }
    cl_watch w[QUEUES];
    uint8_t ready[QUEUES];
    uint64_t value;
    watch(w, QUEUES);
    for (int got = 0; got < STORM;) {
        CHECK(wait_any(w, QUEUES, ready, after(20000)) == CL_OK);
        for (int i = 0; i < QUEUES; i++) {
            if (ready[i]) {
                CHECK(take(&queues[i], &value) == CL_OK);
                got++;
            }
        }
    }
    CHECK(wait_any(w, QUEUES, ready, 0) == CL_TIMEOUT && ended(producers[0]) && ended(producers[1]));
}

/* No wake comes from the end of a slice: an item that is put after the waiter sleeps wakes it by its bell. */
static void no_slice_is_needed(void)
{
    int slow = 0;
    for (int round = 0; round < 40; round++) {
        pid_t producer = fork();
        if (producer == 0) {
            usleep(3000 + 97 * (useconds_t)round);
            put(&queues[(unsigned)round % QUEUES], 1);
            _exit(0);
        }
        cl_watch w[QUEUES];
        uint8_t ready[QUEUES];
        uint64_t value;
        uint32_t slices = 0;
        watch(w, QUEUES);
        int rc;
        while ((rc = cl_watch_any(w, QUEUES, ready, &slices, CL_FOREVER, NULL)) == CL_AGAIN) {
            slow += cl_queue_size(queues[(unsigned)round % QUEUES].head) != 0; /* it slept although there was an item */
        }
        CHECK(rc == CL_OK && take(&queues[(unsigned)round % QUEUES], &value) == CL_OK && ended(producer));
    }
    CHECK(slow < 10);
}

/* ---- descriptors */

static int is_readable(int fd, int ms)
{
    struct pollfd p = {.fd = fd, .events = POLLIN};
    return poll(&p, 1, ms) == 1;
}

static void descriptors(void)
{
    cl_signal s = {.store = &store, .fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)};
    cl_signal l = {.store = &store, .fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC), .listens = 1};
    uint64_t value;
    watch(&s.watch, 1);
    CHECK(cl_signal_add(&s) == CL_OK && cl_signal_add(&l) == CL_OK);
    CHECK(!is_readable(s.fd, 0));
    pid_t producer = fork();
    if (producer == 0) {
        put(&queues[0], 5);
        _exit(0);
    }
    CHECK(is_readable(s.fd, 20000) && is_readable(l.fd, 20000) && ended(producer));
    CHECK(take(&queues[0], &value) == CL_OK && cl_signal_settle(&s) == 0);
    producer = fork();
    if (producer == 0) {
        put(&queues[0], 5);
        int rc;
        while ((rc = cl_bells_heard(&store, after(20000))) == CL_AGAIN) {
        }
        _exit(rc == CL_OK ? 0 : 1);
    }
    CHECK(ended(producer) && is_readable(s.fd, 0)); /* a process that saw the end sees what came before it */
    CHECK(cl_signal_settle(&s) == 1 && is_readable(s.fd, 0)); /* the level stays */
    CHECK(take(&queues[0], &value) == CL_OK && cl_signal_settle(&s) == 0 && !is_readable(s.fd, 0));
    put(&queues[0], 6);
    CHECK(is_readable(s.fd, 20000));
    CHECK(take(&queues[0], &value) == CL_OK); /* no process reports it: the thread finds it */
    for (int64_t until = after(20000); is_readable(s.fd, 0);) {
        CHECK(cl_monotonic_ns() < until);
        usleep(1000);
    }
    put(&queues[0], 7);
    CHECK(is_readable(s.fd, 20000) && take(&queues[0], &value) == CL_OK);
    cl_signal_shut(&s);
    CHECK(cl_signal_settle(&s) == 1 && is_readable(s.fd, 0));
    cl_signal_remove(&s);
    cl_signal_remove(&l);
    cl_signals_stop();
    close(s.fd);
    close(l.fd);
}

int main(void)
{
    open_store(&store, 1);
    CHECK(cl_fork_follow(&store) == CL_OK);
    for (int i = 0; i < QUEUES; i++) {
        make(&queues[i]);
    }
    looks();
    slots_share_bits();
    no_slice_is_needed();
    a_waiter_dies();
    a_ringer_dies();
    a_waiter_is_stopped();
    a_storm();
    CHECK(killed_at > 10);
    descriptors();
    for (int i = 0; i < QUEUES; i++) {
        cl_queue_detach(&queues[i]);
    }
    CHECK(cl_store_leave(&store) >= 0);
    remove_directory();
    puts("bells: ok");
    return 0;
}
