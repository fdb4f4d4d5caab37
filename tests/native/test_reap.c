/* Reclaiming what dead processes held: cases that a reviewer of the code proved to be wrong once. Each runs in a
 * process of its own. */
#include "check.h"

static void in_child(const char *what, void (*test)(void))
{
    pid_t child = fork();
    if (child == 0) {
        test();
        _exit(0);
    }
    CHECK(ended(child));
    printf("%s: ok\n", what);
}

static cl_store store;

/* A family ends while a process of another family still uses the object. To unlink it must then drop no hold that
 * belongs to another process by now. */
static void test_name_whose_family_has_ended(void)
{
    int go[2], done[2];
    char c;
    uint64_t id;
    uint32_t slot;
    CHECK(pipe(go) == 0 && pipe(done) == 0);
    open_store(&store, 2);
    pid_t maker = fork();
    if (maker == 0) {
        static cl_store own;
        open_store(&own, 1);
        CHECK(cl_posix_record(&own, "obj", 3, 77, 88, 4096, 1, CL_MAY_WAIT, &id, &slot) == CL_OK);
        cl_address address; /* it is sent by its name, and has no memory that a handle could name */
        CHECK(cl_send(&own, slot, 0, CL_MAY_WAIT, &address) == CL_STALE);
        CHECK(write(done[1], "x", 1) == 1 && read(go[0], &c, 1) == 1);
        _exit(0);
    }
    CHECK(read(done[0], &c, 1) == 1);
    CHECK(cl_posix_attach(&store, "obj", 3, 77, 88, CL_MAY_WAIT, &id, &slot) == CL_OK);
    CHECK(write(go[1], "x", 1) == 1 && ended(maker));
    CHECK(cl_reap(&store, CL_MAY_WAIT, NULL) == CL_OK);
    audit(&store);
    cl_block_ref r[4], fresh;
    for (int i = 0; i < 4; i++) {
        CHECK(cl_alloc(&store, 300, CL_MAY_WAIT, &r[i]) == CL_OK);
    }
    CHECK(cl_posix_forget(&store, "obj", 3, 77, 88, CL_MAY_WAIT) == CL_OK);
    CHECK(cl_alloc(&store, 300, CL_MAY_WAIT, &fresh) == CL_OK);
    for (int i = 0; i < 4; i++) {
        CHECK(fresh.data != r[i].data);
    }
    audit(&store);
}

/* The parents of two senders had the same process number, one after the other: each is judged by its own start time. */
static void test_parents_of_one_number(void)
{
    cl_block_ref r, q;
    cl_address a, b;
    uint32_t me = (uint32_t)getpid();
    open_store(&store, 1);
    CHECK(cl_alloc(&store, 300, CL_MAY_WAIT, &r) == CL_OK && cl_alloc(&store, 300, CL_MAY_WAIT, &q) == CL_OK);
    store.identity.pid_namespace = 0;
    store.identity.parent_pid = me;
    store.identity.family = 100;
    store.identity.parent_start = cl_process_start(me) - 1;
    CHECK(cl_send(&store, r.segment, r.index, CL_MAY_WAIT, &a) == CL_OK);
    store.identity.family = 101;
    store.identity.parent_start = cl_process_start(me);
    CHECK(cl_send(&store, q.segment, q.index, CL_MAY_WAIT, &b) == CL_OK);
    release(&store, &r);
    release(&store, &q);
    CHECK(cl_reap(&store, CL_MAY_WAIT, NULL) == CL_OK);
    CHECK(cl_load(&store, &a, CL_MAY_WAIT, &r) == CL_STALE && cl_load(&store, &b, CL_MAY_WAIT, &q) == CL_OK);
}

/* A dead owner with an unfinished segment, first met by a caretaker, is finished by the next scan. */
static void test_after_a_caretaker(void)
{
    int up[2];
    char c;
    CHECK(pipe(up) == 0);
    open_store(&store, 1);
    pid_t dead = fork();
    if (dead == 0) {
        static cl_store own;
        cl_block_ref r;
        uint32_t slot;
        open_store(&own, 2);
        CHECK(cl_alloc(&own, 300, CL_MAY_WAIT, &r) == CL_OK && cl_enter(&own, CL_OP_ALLOC, CL_MAY_WAIT) == CL_OK);
        CHECK(cl_segment_slot(&own, CL_SEGMENT_MAKING, 77, 1, &slot) == CL_OK);
        cl_leave(&own);
        CHECK(write(up[1], "x", 1) == 1);
        pause();
    }
    CHECK(read(up[0], &c, 1) == 1 && kill(dead, SIGKILL) == 0 && !ended(dead));
    pid_t caretaker = fork();
    if (caretaker == 0) {
        static cl_store own;
        int fd = cl_live_open(&store);
        struct flock rest = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 2, .l_len = CL_CARETAKER - 2};
        CHECK(fd >= 0 && fcntl(fd, F_OFD_SETLK, &rest) == 0); /* as if all other slots were taken for ever */
        open_store(&own, 3);
        _exit(0);
    }
    /* As the caretaker it checks the dead owner again and again, and never finds a slot. */
    for (int64_t until = cl_monotonic_ns() + 10000000000; store.owners[1].state != CL_OWNER_GONE;) {
        CHECK(cl_monotonic_ns() < until);
        usleep(1000);
    }
    CHECK(kill(caretaker, SIGKILL) == 0 && !ended(caretaker));
    CHECK(cl_reap(&store, CL_MAY_WAIT, NULL) == CL_OK && cl_reap(&store, CL_MAY_WAIT, NULL) == CL_OK);
    audit(&store);
    for (uint32_t i = 0; i < store.control->owners_high; i++) {
        CHECK(i == store.slot || store.owners[i].state == CL_OWNER_FREE);
    }
    for (uint32_t i = 0; i < store.control->segments_high; i++) {
        CHECK(store.segments[i].state == CL_SEGMENT_FREE || store.segments[i].state == CL_SEGMENT_READY);
    }
}

/* Killed while it removes a segment: until that is finished, no block of the segment is allocated. */
static void test_given_back_half_way(void)
{
    open_store(&store, 1);
    for (long n = 1;; n++) {
        pid_t owner = fork();
        if (owner == 0) {
            static cl_store own;
            cl_block_ref r;
            uint64_t freed;
            open_store(&own, 2);
            CHECK(cl_alloc(&own, 200000, CL_MAY_WAIT, &r) == CL_OK);
            release(&own, &r);
            cl_kill_at = cl_kill_passed + n;
            CHECK(cl_trim(&own, 0, CL_MAY_WAIT, &freed) == CL_OK);
            _exit(0);
        }
        int well = ended(owner);
        cl_block_ref r;
        store.control->scanned_ns = (uint64_t)cl_monotonic_ns(); /* no process scans for dead ones at this moment */
        store.control->scan_cost_ns = 10000000;
        CHECK(cl_alloc(&store, 200000, CL_MAY_WAIT, &r) == CL_OK);
        CHECK(store.segments[r.segment].state == CL_SEGMENT_READY);
        r.data[0] = 1;
        CHECK(cl_reap(&store, CL_MAY_WAIT, NULL) == CL_OK);
        audit(&store);
        CHECK(r.data[0] == 1);
        release(&store, &r);
        uint64_t freed;
        CHECK(cl_trim(&store, 0, CL_MAY_WAIT, &freed) == CL_OK && count_files("seg.") == 0);
        if (well) {
            CHECK(n > 8);
            break;
        }
    }
}

/* A process that only forks children, which exit, never runs out of slots. */
static void test_many_forks(void)
{
    open_store(&store, 1);
    CHECK(cl_fork_follow(&store) == CL_OK);
    for (int i = 0; i < 4300; i++) {
        pid_t child = fork();
        if (child == 0) {
            _exit(store.orphan);
        }
        CHECK(ended(child));
    }
}

/* Queues inside queues, nested so deep that a recursive function would overflow the stack. */
static void test_nested(void)
{
    open_store(&store, 1);
    pid_t owner = fork();
    if (owner == 0) {
        static cl_store own;
        cl_block_ref inner, outer;
        cl_address a;
        cl_token none;
        open_store(&own, 2);
        CHECK(cl_alloc(&own, 100, CL_MAY_WAIT, &inner) == CL_OK);
        for (int i = 0; i < 50000; i++) {
            CHECK(cl_alloc(&own, 100, CL_MAY_WAIT, &outer) == CL_OK);
            CHECK(cl_draft(&own, inner.segment, inner.index, CL_MAY_WAIT, &a) == CL_OK);
            cl_token t = {.nonce = a.nonce, .hold = a.hold};
            CHECK(cl_give(&own, outer.segment * CL_BLOCKS + outer.index, 1, &t, 1, NULL, CL_MAY_WAIT, &none) == CL_OK);
            release(&own, &inner);
            inner = outer;
        }
        _exit(0);
    }
    CHECK(ended(owner));
    CHECK(cl_reap(&store, CL_MAY_WAIT, NULL) == CL_OK);
    audit(&store);
}

int main(void)
{
    open_directory();
    in_child("name whose family has ended", test_name_whose_family_has_ended);
    in_child("parents of one number", test_parents_of_one_number);
    in_child("after a caretaker", test_after_a_caretaker);
    in_child("given back half way", test_given_back_half_way);
    in_child("many forks", test_many_forks);
    in_child("nested queues", test_nested);
    remove_directory();
    puts("reap: ok");
    return 0;
}
