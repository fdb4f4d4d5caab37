/* Death at every step: each operation is killed at its first kill point, at its second, and so on to its end. After
 * each death a survivor must find a registry that passes the audit and, once it has reaped, nothing held by the dead
 * process. */
#include "check.h"

static cl_store survivor;
static cl_block_ref kept; /* the survivor's own block: it must never change */
static cl_address to_load; /* a message for the victim */

static void alloc_small(cl_store *s)
{
    cl_block_ref r;
    CHECK(cl_alloc(s, 300, CL_MAY_WAIT, &r) == CL_OK);
}

static void alloc_large_and_free(cl_store *s)
{
    cl_block_ref r;
    CHECK(cl_alloc(s, 200000, CL_MAY_WAIT, &r) == CL_OK);
    release(s, &r);
    CHECK(cl_alloc(s, 200000, CL_MAY_WAIT, &r) == CL_OK && r.recycled);
}

static void trim_all(cl_store *s)
{
    cl_block_ref r, q;
    uint64_t freed;
    CHECK(cl_alloc(s, 200000, CL_MAY_WAIT, &r) == CL_OK && cl_alloc(s, 70000, CL_MAY_WAIT, &q) == CL_OK);
    release(s, &r);
    CHECK(cl_trim(s, 0, CL_MAY_WAIT, &freed) == CL_OK);
}

static void send_and_load(cl_store *s)
{
    cl_block_ref r;
    cl_address a;
    CHECK(cl_load(s, &to_load, CL_MAY_WAIT, &r) == CL_OK && r.data[1] == 77);
    CHECK(cl_send(s, r.segment, r.index, CL_MAY_WAIT, &a) == CL_OK);
    release(s, &r);
    CHECK(cl_load(s, &a, CL_MAY_WAIT, &r) == CL_OK && r.data[1] == 77);
    CHECK(cl_send(s, r.segment, r.index, CL_MAY_WAIT, &a) == CL_OK);
    CHECK(cl_unsend(s, a.hold, a.nonce, CL_MAY_WAIT) == CL_OK);
    CHECK(cl_draft(s, r.segment, r.index, CL_MAY_WAIT, &a) == CL_OK);
    CHECK(cl_mail(s, a.hold, a.nonce, CL_MAY_WAIT) == CL_OK);
}

static void name_things(cl_store *s)
{
    cl_block_ref r;
    CHECK(cl_alloc(s, 300, CL_MAY_WAIT, &r) == CL_OK);
    CHECK(cl_publish(s, "victim", 6, r.segment, r.index, 0, 10, 1, CL_MAY_WAIT) == CL_OK);
    CHECK(cl_unpublish(s, "victim", 6, CL_MAY_WAIT) == CL_OK);
    CHECK(cl_publish(s, "victim", 6, r.segment, r.index, 0, 10, 0, CL_MAY_WAIT) == CL_OK);
    release(s, &r);
}

static void posix_things(cl_store *s)
{
    uint64_t id;
    uint32_t slot;
    CHECK(cl_posix_record(s, "no-such-object", 14, 1, 1, 10, 1, CL_MAY_WAIT, &id, &slot) == CL_OK);
    CHECK(cl_posix_attach(s, "no-such-object", 14, 1, 1, CL_MAY_WAIT, &id, &slot) == CL_OK);
    CHECK(cl_release(s, id, slot, 0, CL_MAY_WAIT) == CL_OK && cl_release(s, id, slot, 0, CL_MAY_WAIT) == CL_OK);
    CHECK(cl_posix_forget(s, "no-such-object", 14, 1, 1, CL_MAY_WAIT) == CL_OK);
}

static void leave(cl_store *s)
{
    alloc_small(s);
    CHECK(cl_store_leave(s) == 0);
}

static void leave_empty_handed(cl_store *s)
{
    cl_block_ref r;
    CHECK(cl_alloc(s, 300, CL_MAY_WAIT, &r) == CL_OK);
    release(s, &r);
    CHECK(cl_store_leave(s) == 0);
}

static void nothing(cl_store *s)
{
    (void)s; /* to join is all */
}

static void reap_another(cl_store *s)
{
    pid_t child = fork(); /* dies holding objects of every kind; its family is the victim's */
    if (child == 0) {
        cl_kill_at = 0;
        cl_store own;
        cl_block_ref r;
        cl_address a;
        open_store(&own, 5);
        for (int i = 0; i < 3; i++) {
            CHECK(cl_alloc(&own, 100u << (4 * i), CL_MAY_WAIT, &r) == CL_OK);
        }
        CHECK(cl_send(&own, r.segment, r.index, CL_MAY_WAIT, &a) == CL_OK);
        cl_kill_at = cl_kill_passed + 9; /* while it creates a segment */
        CHECK(cl_alloc(&own, 3000000, CL_MAY_WAIT, &r) == CL_OK);
        _exit(0);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(cl_reap(s, CL_MAY_WAIT, NULL) == CL_OK);
}

/* fork: `who` says whether the parent or the child dies. The child's kill points begin inside fork(), in the handler
 * of the store. The handler here was registered before that one, so it runs first. */
static long child_dies_at;

static void aim_in_child(void)
{
    cl_kill_at = child_dies_at != 0 ? cl_kill_passed + child_dies_at : 0;
}

static void fork_and_use(cl_store *s, long n, int who)
{
    cl_block_ref r, q;
    CHECK(pthread_atfork(NULL, NULL, aim_in_child) == 0 && cl_fork_follow(s) == CL_OK);
    CHECK(cl_alloc(s, 300, CL_MAY_WAIT, &r) == CL_OK && cl_alloc(s, 200000, CL_MAY_WAIT, &q) == CL_OK);
    r.data[0] = 5;
    if (who == 0) {
        cl_kill_at = cl_kill_passed + n;
    }
    child_dies_at = who == 1 ? n : 0;
    pid_t child = fork();
    if (child == 0) {
        cl_reap(s, CL_MAY_WAIT, NULL); /* with the parent dead or alive: what we inherited stays */
        CHECK(r.data[0] == 5);
        cl_block_ref fresh;
        CHECK(cl_alloc(s, 300, CL_MAY_WAIT, &fresh) == CL_OK && fresh.data != r.data);
        release(s, &fresh);
        release(s, &r);
        _exit(0);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(cl_reap(s, CL_MAY_WAIT, NULL) == CL_OK && r.data[0] == 5);
    release(s, &r);
    if (who == 1) {
        _exit(WIFSIGNALED(status) ? 99 : 0);
    }
}

/* A process that starts after the death, before any survivor has acted. */
static void newcomer(void)
{
    pid_t child = fork();
    if (child == 0) {
        cl_store own;
        cl_block_ref r;
        cl_kill_at = 0;
        open_store(&own, 9);
        CHECK(cl_alloc(&own, 300, CL_MAY_WAIT, &r) == CL_OK && r.data != kept.data);
        audit(&own);
        _exit(0);
    }
    CHECK(ended(child));
}

static void settle(const char *what, long n)
{
    /* Orphans of a killed parent exit by themselves; only then does the survivor own everything again. */
    for (int64_t deadline = cl_monotonic_ns() + 20000000000;;) {
        CHECK(cl_reap(&survivor, CL_MAY_WAIT, NULL) == CL_OK);
        audit(&survivor);
        uint32_t live = 0;
        for (uint32_t i = 0; i < survivor.control->owners_high; i++) {
            live += survivor.owners[i].state != CL_OWNER_FREE;
        }
        if (live == 1) {
            break;
        }
        if (cl_monotonic_ns() > deadline) {
            fprintf(stderr, "%s %ld: %u owners still live\n", what, n, live);
            abort();
        }
        usleep(200);
    }
    uint32_t used = 0;
    for (uint32_t i = 0; i < survivor.control->segments_high; i++) {
        const cl_segment *seg = &survivor.segments[i];
        CHECK(seg->state == CL_SEGMENT_FREE || seg->state == CL_SEGMENT_READY);
        used += seg->state == CL_SEGMENT_READY ? seg->used : 0;
    }
    if (used != 1 || survivor.control->messages != 0 || survivor.control->persistent != 0) {
        fprintf(stderr, "%s, point %ld: %u blocks used, %u messages, %u persistent\n", what, n, used,
                survivor.control->messages, survivor.control->persistent);
    }
    CHECK(used == 1 && survivor.control->messages == 0 && survivor.control->persistent == 0);
    CHECK(kept.data[0] == 42 && kept.data[299] == 43);
    uint64_t freed;
    CHECK(cl_trim(&survivor, 0, CL_MAY_WAIT, &freed) == CL_OK && count_files("seg.") == 1);
    CHECK(count_files("live.") == 1 && count_files("registry") == 1);
}

static void kill_everywhere(const char *what, void (*operation)(cl_store *), int fork_who)
{
    long n = 1;
    for (;; n++) {
        cl_block_ref r;
        CHECK(cl_alloc(&survivor, 300, CL_MAY_WAIT, &r) == CL_OK);
        r.data[1] = 77;
        CHECK(cl_send(&survivor, r.segment, r.index, CL_MAY_WAIT, &to_load) == CL_OK);
        release(&survivor, &r);
        pid_t child = fork();
        if (child == 0) {
            cl_store own;
            if (fork_who < 0) {
                cl_kill_at = cl_kill_passed + n;
                open_store(&own, 5);
                operation(&own);
            } else {
                open_store(&own, 5);
                fork_and_use(&own, n, fork_who);
            }
            _exit(0);
        }
        int status;
        CHECK(waitpid(child, &status, 0) == child);
        int killed = WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;
        int grandchild_killed = WIFEXITED(status) && WEXITSTATUS(status) == 99;
        CHECK(killed || grandchild_killed || (WIFEXITED(status) && WEXITSTATUS(status) == 0));
        newcomer();
        cl_block_ref mine;
        if (cl_load(&survivor, &to_load, CL_MAY_WAIT, &mine) == CL_OK) { /* unless the victim took it */
            CHECK(mine.data[1] == 77);
            release(&survivor, &mine);
        }
        int gone = cl_unpublish(&survivor, "victim", 6, CL_MAY_WAIT); /* asked to persist, so it outlived its maker */
        CHECK(gone == CL_OK || gone == CL_MISSING);
        settle(what, n);
        if (!killed && !grandchild_killed) {
            break;
        }
    }
    CHECK(n > 3);
    printf("%s: killed at each of %ld points\n", what, n - 1);
}

int main(void)
{
    open_store(&survivor, 1);
    CHECK(cl_alloc(&survivor, 300, CL_MAY_WAIT, &kept) == CL_OK);
    kept.data[0] = 42;
    kept.data[299] = 43;
    kill_everywhere("join", nothing, -1);
    kill_everywhere("alloc", alloc_small, -1);
    kill_everywhere("alloc and free", alloc_large_and_free, -1);
    kill_everywhere("trim", trim_all, -1);
    kill_everywhere("send and load", send_and_load, -1);
    kill_everywhere("names", name_things, -1);
    kill_everywhere("posix objects", posix_things, -1);
    kill_everywhere("leave", leave, -1);
    kill_everywhere("leave empty-handed", leave_empty_handed, -1);
    kill_everywhere("reap", reap_another, -1);
    kill_everywhere("fork, parent dies", NULL, 0);
    kill_everywhere("fork, child dies", NULL, 1);
    CHECK(survivor.control->deaths > 100);
    printf("%llu deaths, %llu inside an operation, %llu taken-over locks\n",
           (unsigned long long)survivor.control->deaths, (unsigned long long)survivor.control->deaths_in_op,
           (unsigned long long)survivor.control->recoveries);
    CHECK(cl_store_leave(&survivor) == 1 && count_files("") == 0);

    /* Creating the registry: the first process dies at every step; the second finds no registry or a sound one. */
    for (long n = 1;; n++) {
        pid_t child = fork();
        if (child == 0) {
            cl_store own;
            cl_kill_at = cl_kill_passed + n;
            open_store(&own, 5);
            cl_block_ref r;
            CHECK(cl_alloc(&own, 300, CL_MAY_WAIT, &r) == CL_OK);
            release(&own, &r);
            CHECK(cl_store_leave(&own) == 1);
            _exit(0);
        }
        int whole = ended(child);
        open_store(&survivor, 1);
        audit(&survivor);
        CHECK(cl_store_leave(&survivor) == 1);
        CHECK(count_files("registry") == 0 && count_files("seg.") == 0);
        if (whole) {
            printf("registry: killed at each of %ld points of its life\n", n - 1);
            break;
        }
    }
    remove_directory();
    puts("kill: ok");
    return 0;
}
