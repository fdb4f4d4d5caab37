/* Snapshots: a process is stopped, or killed, at each point of its operations. A snapshot still comes in time, shows
 * all that existed before or after each step, and says which process is inside the lock. */
#include "check.h"

#define LATE_NS ((int64_t)20000000000)

static cl_store survivor, onlooker;
static cl_block_ref kept;

static void operations(cl_store *s)
{
    cl_block_ref r;
    uint64_t freed;
    CHECK(cl_alloc(s, 300, CL_MAY_WAIT, &r) == CL_OK);
    CHECK(cl_publish(s, "victim", 6, r.segment, r.index, 0, 10, 0, CL_MAY_WAIT) == CL_OK);
    release(s, &r);
    CHECK(cl_alloc(s, 200000, CL_MAY_WAIT, &r) == CL_OK);
    release(s, &r);
    CHECK(cl_trim(s, 0, CL_MAY_WAIT, &freed) == CL_OK);
}

static int is_in(const cl_snapshot *shot, const cl_block_ref *r)
{
    const cl_segment *s = &shot->segments[r->segment];
    return r->segment < shot->control.segments_high && s->id == r->segment_id && s->state == CL_SEGMENT_READY &&
           s->blocks[r->index].state == CL_BLOCK_USED && s->blocks[r->index].generation == r->generation;
}

/* Take a snapshot in time. It contains what was kept, and it is sound, except for files that are just being made or
 * removed. */
static enum cl_snapshot_state look(cl_store *store, pid_t victim, int dead)
{
    cl_snapshot shot;
    int64_t start = cl_monotonic_ns();
    CHECK(cl_snapshot_take(store, &shot, CL_MAY_WAIT) == CL_OK);
    CHECK(cl_monotonic_ns() - start < LATE_NS);
    CHECK(is_in(&shot, &kept));
    enum cl_snapshot_state state = shot.state;
    CHECK(state == CL_SNAPSHOT_WHOLE || state == CL_SNAPSHOT_HELD);
    if (state == CL_SNAPSHOT_HELD) {
        CHECK(shot.lives == !dead);
        /* A process that joins has the lock before its slot says who owns it. */
        CHECK(shot.pid == (uint32_t)victim || shot.owners[CL_LOCK_SLOT(shot.holder) - 1].state == CL_OWNER_FREE);
    } else {
        CHECK(cl_audit(shot.view) == CL_OK);
    }
    uint8_t first;
    int fd = cl_observe_segment(&shot, kept.segment);
    CHECK(fd >= 0 && cl_observe_block(&shot, fd, kept.segment, kept.index, 0, &first, 1) == CL_OK && first == 77);
    CHECK(cl_observe_still(&shot, kept.segment, kept.index) == CL_OK);
    close(fd);
    cl_snapshot_free(&shot);
    return state;
}

static void test_each_point(int by)
{
    int held = 0, whole = 0, by_member = 0, over = 0;
    for (long at = 1; !over; at += 1 + at / 16) {
        pid_t child = fork();
        if (child == 0) {
            static cl_store s;
            atomic_store(&cl_kill_passed, 0);
            cl_kill_signal = by;
            atomic_store(&cl_kill_at, at);
            open_store(&s, 1);
            operations(&s);
            _exit(0);
        }
        int status;
        CHECK(waitpid(child, &status, WUNTRACED) == child);
        over = WIFEXITED(status);
        CHECK(!over || WEXITSTATUS(status) == 0);
        int dead = !WIFSTOPPED(status);
        if (look(&onlooker, child, dead) == CL_SNAPSHOT_HELD) {
            held++;
            if (by_member++ % 8 == 0) { /* a member takes over from the dead process */
                CHECK(look(&survivor, child, dead) == (dead ? CL_SNAPSHOT_WHOLE : CL_SNAPSHOT_HELD));
            }
        } else {
            whole++;
        }
        if (!dead) {
            kill(child, SIGKILL);
            CHECK(waitpid(child, &status, 0) == child);
        }
        cl_reaped reaped;
        while (cl_reap(&survivor, CL_MAY_WAIT, &reaped) == CL_AGAIN) {
        }
        audit(&survivor);
    }
    CHECK(held > 5 && whole > 5);
    printf("%s at each point: ok\n", by == SIGSTOP ? "stopped" : "killed");
}

/* A process changes the registry all the time: a copy that says it is consistent is consistent. */
static void test_busy(void)
{
    pid_t child = fork();
    if (child == 0) {
        static cl_store s;
        open_store(&s, 1);
        for (;;) {
            cl_block_ref r;
            if (cl_alloc(&s, 300, CL_MAY_WAIT, &r) == CL_OK) {
                release(&s, &r);
            }
        }
    }
    for (int i = 0; i < 4000; i++) { /* so that a copy takes long enough to be disturbed */
        cl_block_ref r;
        int rc;
        do { /* the other process may keep the lock for longer than a slice of waiting */
            rc = cl_alloc(&survivor, 100, CL_MAY_WAIT, &r);
        } while (rc == CL_AGAIN);
        CHECK(rc == CL_OK);
    }
    int whole = 0;
    for (int i = 0; i < 20; i++) {
        cl_snapshot shot;
        CHECK(cl_snapshot_take(&onlooker, &shot, CL_MAY_WAIT) == CL_OK);
        CHECK(is_in(&shot, &kept));
        if (shot.state == CL_SNAPSHOT_WHOLE) {
            CHECK(cl_audit(shot.view) == CL_OK);
            whole++;
        }
        cl_snapshot_free(&shot);
    }
    kill(child, SIGKILL);
    CHECK(waitpid(child, NULL, 0) == child);
    printf("busy: ok (%d of 20 whole)\n", whole);
}

/* Noise over the tables: each snapshot gives an error or a copy, and never reads out of bounds. */
static void test_noise(void)
{
    cl_snapshot shot;
    uint32_t *const lengths[] = {&survivor.control->owners_high, &survivor.control->segments_high,
                                 &survivor.control->holds_high, &survivor.control->names_high,
                                 &survivor.control->marks_high};
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        uint32_t was = *lengths[i];
        *lengths[i] = UINT32_MAX;
        CHECK(cl_snapshot_take(&onlooker, &shot, CL_MAY_WAIT) == CL_CORRUPT);
        *lengths[i] = was;
    }
    cl_journal *j = &survivor.control->journal;
    atomic_store(&survivor.control->lock, CL_LOCK_WORD(3000u, 5u)); /* no owner, with a change half done */
    atomic_store(&j->committed, 1);
    j->writes[0] = (cl_write){.offset = UINT64_MAX - 7, .value = 1};
    CHECK(cl_snapshot_take(&onlooker, &shot, CL_MAY_WAIT) == CL_CORRUPT);
    atomic_store(&j->committed, 0);
    CHECK(cl_snapshot_take(&onlooker, &shot, CL_MAY_WAIT) == CL_OK && shot.state == CL_SNAPSHOT_HELD && shot.pid == 0 &&
          !shot.lives);
    cl_snapshot_free(&shot);
    atomic_store(&survivor.control->lock, 0);
    CHECK(look(&onlooker, 0, 0) == CL_SNAPSHOT_WHOLE);
    puts("noise: ok");
}

int main(void)
{
    cl_store nobody;
    CHECK(cl_observe(&nobody, open_directory()) == CL_MISSING);
    open_store(&survivor, 1);
    CHECK(cl_alloc(&survivor, 1000, CL_MAY_WAIT, &kept) == CL_OK);
    kept.data[0] = 77;
    CHECK(cl_observe(&onlooker, open_directory()) == CL_OK);
    test_each_point(SIGSTOP);
    test_each_point(SIGKILL);
    test_busy();
    test_noise();
    uint32_t used = survivor.owners[survivor.slot].state;
    CHECK(used == CL_OWNER_LIVE && onlooker.slot == CL_MAX_OWNERS);
    cl_observe_end(&onlooker);
    CHECK(cl_store_leave(&survivor) == 1);
    remove_directory();
    puts("snapshot: ok");
    return 0;
}
