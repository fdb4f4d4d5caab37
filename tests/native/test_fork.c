/* Forks: what a child inherits, whichever process dies first.
 *
 * First each case by itself: parent first, child first, grandchildren, many children, a fork that cannot be
 * registered, a clone without the C library, closed descriptors. Then a model: a tree of processes that allocate,
 * release, fork, send, exit and are killed at random. After each step exactly those blocks are in use that some live
 * process holds, and each block still has the bytes that were written to it. */
#include "check.h"

#include <sched.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>

static cl_store survivor; /* of the test itself: it only observes, and is not followed through forks */

static uint32_t blocks_used(void)
{
    uint32_t used = 0;
    for (uint32_t i = 0; i < survivor.control->segments_high; i++) {
        const cl_segment *s = &survivor.segments[i];
        used += s->state == CL_SEGMENT_READY ? s->used : 0;
    }
    return used;
}

static void expect_used(uint32_t n)
{
    CHECK(cl_reap(&survivor, CL_MAY_WAIT, NULL) == CL_OK);
    audit(&survivor);
    if (blocks_used() != n) {
        fprintf(stderr, "%u blocks in use, expected %u\n", blocks_used(), n);
        abort();
    }
}

static void finish(pid_t child)
{
    CHECK(kill(child, SIGKILL) == 0);
    int status;
    CHECK(waitpid(child, &status, 0) == child);
}

/* ---- workers: each takes commands from a pipe of its own */

enum { WORKERS = 14, SLOTS = 40 };
typedef struct command {
    int op; /* A, R, F, U, L, X, C, S, M */
    int slot, other;
    uint32_t id;
    cl_address address;
} command;
typedef struct reply {
    int ok;
    pid_t pid;
    cl_address address;
} reply;
static int ask[WORKERS][2], answer[WORKERS][2];
static cl_store store; /* of the workers */
static cl_block_ref refs[SLOTS];
static uint32_t ids[SLOTS];

static void work(int self);

static void do_fork(command *c, reply *r)
{
    pid_t child;
    if (c->op == 'U') { /* no descriptor and no slot: the child cannot be registered */
        uint32_t high = store.control->owners_high;
        struct rlimit none = {.rlim_cur = 0, .rlim_max = 0}, before;
        CHECK(getrlimit(RLIMIT_NOFILE, &before) == 0);
        none.rlim_max = before.rlim_max;
        if (store.spare_fd >= 0) {
            close(store.spare_fd);
        }
        store.spare_fd = -1;
        CHECK(setrlimit(RLIMIT_NOFILE, &none) == 0 && high != 0);
        child = fork();
        CHECK(setrlimit(RLIMIT_NOFILE, &before) == 0);
    } else {
        child = fork();
    }
    CHECK(child >= 0);
    if (child == 0) {
        work(c->other);
    }
    r->pid = child;
}

static int intact(void)
{
    for (int i = 0; i < SLOTS; i++) {
        for (int k = 0; ids[i] != 0 && k < 64; k++) {
            if (((const uint32_t *)(const void *)refs[i].data)[k] != ids[i]) {
                return 0;
            }
        }
    }
    return 1;
}

static void work(int self)
{
    command c;
    while (read(ask[self][0], &c, sizeof c) == sizeof c) {
        reply r = {.ok = 1, .pid = getpid()};
        cl_block_ref *ref = &refs[c.slot];
        switch (c.op) {
        case 'A':
            CHECK(cl_alloc(&store, 300, CL_MAY_WAIT, ref) == CL_OK);
            ids[c.slot] = c.id;
            for (int k = 0; k < 64; k++) {
                ((uint32_t *)(void *)ref->data)[k] = c.id;
            }
            break;
        case 'R':
            release(&store, ref);
            ids[c.slot] = 0;
            break;
        case 'F':
        case 'U':
            do_fork(&c, &r);
            break;
        case 'S':
            CHECK(cl_send(&store, ref->segment, ref->index, CL_MAY_WAIT, &r.address) == CL_OK);
            break;
        case 'M':
            CHECK(cl_load(&store, &c.address, CL_MAY_WAIT, ref) == CL_OK);
            ids[c.slot] = c.id;
            break;
        case 'C':
            r.ok = intact();
            break;
        case 'O': /* the calls of an orphan fail */
            r.ok = store.orphan && cl_alloc(&store, 300, CL_MAY_WAIT, ref) == CL_CLOSED;
            break;
        case 'L':
            cl_store_leave(&store);
            _exit(0);
        case 'X':
            _exit(0);
        }
        CHECK(write(answer[self][1], &r, sizeof r) == sizeof r);
    }
    _exit(1);
}

static reply tell(int worker, command c)
{
    reply r = {0};
    CHECK(write(ask[worker][1], &c, sizeof c) == sizeof c);
    if (c.op != 'L' && c.op != 'X') {
        CHECK(read(answer[worker][0], &r, sizeof r) == sizeof r && r.ok);
    }
    return r;
}

static pid_t root(int worker)
{
    pid_t child = fork();
    if (child == 0) {
        open_store(&store, 5);
        CHECK(cl_fork_follow(&store) == CL_OK);
        memset(ids, 0, sizeof ids);
        work(worker);
    }
    return child;
}

/* Not all workers are our children: their end is seen by their liveness byte. */
static void kill_worker(pid_t pid)
{
    int fd = (int)syscall(SYS_pidfd_open, pid, 0);
    CHECK(fd >= 0 && kill(pid, SIGKILL) == 0);
    char c;
    (void)c;
    for (int64_t until = cl_monotonic_ns() + 5000000000;;) {
        int status;
        waitpid(pid, &status, WNOHANG);
        if (!cl_process_lives((uint32_t)pid, cl_process_start((uint32_t)pid))) {
            break;
        }
        CHECK(cl_monotonic_ns() < until);
        usleep(100);
    }
    close(fd);
}

static void wait_end(pid_t pid)
{
    for (int64_t until = cl_monotonic_ns() + 5000000000;;) {
        int status;
        waitpid(pid, &status, WNOHANG);
        if (!cl_process_lives((uint32_t)pid, cl_process_start((uint32_t)pid))) {
            return;
        }
        CHECK(cl_monotonic_ns() < until);
        usleep(100);
    }
}

/* ---- case by case */

static void test_orders(void)
{
    /* the parent releases first, then the child; the child first, then the parent */
    pid_t p = root(0);
    tell(0, (command){.op = 'A', .slot = 0, .id = 10});
    tell(0, (command){.op = 'A', .slot = 1, .id = 11});
    pid_t c = tell(0, (command){.op = 'F', .other = 1}).pid;
    expect_used(2);
    tell(0, (command){.op = 'R', .slot = 0});
    CHECK(blocks_used() == 2);
    tell(1, (command){.op = 'C'});
    tell(1, (command){.op = 'R', .slot = 0});
    CHECK(blocks_used() == 1); /* at once, without a scan */
    tell(1, (command){.op = 'R', .slot = 1});
    CHECK(blocks_used() == 1);
    tell(0, (command){.op = 'C'});
    tell(0, (command){.op = 'R', .slot = 1});
    CHECK(blocks_used() == 0);
    /* what is allocated after the fork belongs to one process only */
    tell(0, (command){.op = 'A', .slot = 2, .id = 12});
    tell(0, (command){.op = 'R', .slot = 2});
    CHECK(blocks_used() == 0);
    /* the parent dies first and leaves its estate; then the child dies */
    tell(0, (command){.op = 'A', .slot = 3, .id = 13});
    pid_t d = tell(0, (command){.op = 'F', .other = 2}).pid;
    kill_worker(p);
    expect_used(1);
    tell(2, (command){.op = 'C'});
    pid_t e = tell(2, (command){.op = 'F', .other = 3}).pid; /* a grandchild of the dead process */
    kill_worker(d);
    expect_used(1);
    tell(3, (command){.op = 'C'});
    tell(3, (command){.op = 'R', .slot = 3});
    CHECK(blocks_used() == 0);
    kill_worker(c);
    kill_worker(e);
    expect_used(0);
    puts("orders: ok");
}

static void test_marks_are_inherited(void)
{
    /* The children of a child do not inherit what it has released. When an entry is used again, it means the new
     * hold. */
    pid_t p = root(0);
    for (int i = 0; i < 8; i++) {
        tell(0, (command){.op = 'A', .slot = i, .id = 20 + (uint32_t)i});
    }
    pid_t c = tell(0, (command){.op = 'F', .other = 1}).pid;
    for (int i = 0; i < 4; i++) {
        tell(1, (command){.op = 'R', .slot = i});
    }
    pid_t d = tell(1, (command){.op = 'F', .other = 2}).pid;
    for (int i = 0; i < 8; i++) {
        tell(0, (command){.op = 'R', .slot = i});
    }
    CHECK(blocks_used() == 4);
    tell(1, (command){.op = 'A', .slot = 0, .id = 40}); /* may get an entry that it has marked */
    tell(1, (command){.op = 'A', .slot = 1, .id = 41});
    pid_t e = tell(1, (command){.op = 'F', .other = 3}).pid;
    tell(1, (command){.op = 'R', .slot = 0});
    tell(1, (command){.op = 'R', .slot = 1});
    expect_used(6);
    tell(3, (command){.op = 'C'});
    tell(2, (command){.op = 'C'});
    kill_worker(c);
    expect_used(6);
    kill_worker(d);
    expect_used(6);
    kill_worker(e);
    expect_used(0);
    kill_worker(p);
    expect_used(0);
    puts("marks: ok");
}

static void test_unregistered(void)
{
    pid_t p = root(0);
    tell(0, (command){.op = 'A', .slot = 0, .id = 50});
    pid_t c = tell(0, (command){.op = 'U', .other = 1}).pid;
    tell(1, (command){.op = 'O'});
    tell(0, (command){.op = 'R', .slot = 0});
    tell(0, (command){.op = 'A', .slot = 1, .id = 51}); /* must not be the same block */
    tell(1, (command){.op = 'C'});
    expect_used(2);
    kill_worker(p);
    expect_used(1); /* while the copy lives its memory is safe */
    tell(1, (command){.op = 'C'});
    kill_worker(c);
    expect_used(0);
    puts("unregistered: ok");
}

/* A copy of a child's memory uses what the child inherited, even after all registered processes have released it. */
static void test_copy_of_an_heir(void)
{
    pid_t g = root(0);
    tell(0, (command){.op = 'A', .slot = 0, .id = 55});
    pid_t p = tell(0, (command){.op = 'F', .other = 1}).pid;
    pid_t u = tell(1, (command){.op = 'U', .other = 2}).pid;
    tell(1, (command){.op = 'R', .slot = 0});
    tell(0, (command){.op = 'R', .slot = 0});
    expect_used(1);
    tell(0, (command){.op = 'A', .slot = 1, .id = 56}); /* must not be the same block */
    kill_worker(p);
    expect_used(2);
    tell(2, (command){.op = 'C'});
    kill_worker(u);
    expect_used(1);
    kill_worker(g);
    expect_used(0);
    puts("copy of an heir: ok");
}

/* A fork between the allocation of an item's memory and the put of the item: the child keeps its own hold on that
 * memory. */
static void test_payload_meanwhile(void)
{
    pid_t owner = fork();
    if (owner == 0) {
        cl_block_ref channel, payload, r, q;
        cl_token token;
        int go[2];
        char c;
        CHECK(pipe(go) == 0);
        open_store(&store, 5);
        CHECK(cl_fork_follow(&store) == CL_OK && cl_alloc(&store, 300, CL_MAY_WAIT, &channel) == CL_OK);
        CHECK(cl_alloc(&store, 300, CL_MAY_WAIT, &payload) == CL_OK);
        pid_t child = fork();
        if (child == 0) {
            CHECK(read(go[0], &c, 1) == 1);
            CHECK(cl_alloc(&store, 300, CL_MAY_WAIT, &r) == CL_OK && r.data != payload.data);
            release(&store, &payload);
            CHECK(cl_alloc(&store, 300, CL_MAY_WAIT, &q) == CL_OK && q.data != r.data);
            _exit(0);
        }
        uint32_t number = channel.segment * CL_BLOCKS + channel.index;
        CHECK(cl_give(&store, number, 1, NULL, 0, &payload, CL_MAY_WAIT, &token) == CL_OK);
        CHECK(cl_take(&store, number, NULL, 0, &token, CL_MAY_WAIT) == CL_OK); /* received, and dropped */
        CHECK(write(go[1], "x", 1) == 1 && ended(child));
        _exit(0);
    }
    CHECK(ended(owner));
    expect_used(0);
    puts("payload: ok");
}

/* What the parent sent and took back gives it no right to what its child sends, even if that has the same entry now. */
static void test_nonces(void)
{
    pid_t owner = fork();
    if (owner == 0) {
        cl_block_ref r, q;
        cl_address mine, its;
        int back[2], go[2];
        char c;
        CHECK(pipe(back) == 0 && pipe(go) == 0);
        open_store(&store, 5);
        CHECK(cl_fork_follow(&store) == CL_OK && cl_alloc(&store, 300, CL_MAY_WAIT, &r) == CL_OK);
        pid_t child = fork();
        if (child == 0) {
            CHECK(read(go[0], &c, 1) == 1);
            CHECK(cl_send(&store, r.segment, r.index, CL_MAY_WAIT, &its) == CL_OK);
            CHECK(write(back[1], &its, sizeof its) == sizeof its && read(go[0], &c, 1) == 1);
            _exit(0);
        }
        CHECK(cl_send(&store, r.segment, r.index, CL_MAY_WAIT, &mine) == CL_OK);
        CHECK(cl_unsend(&store, mine.hold, mine.nonce, CL_MAY_WAIT) == CL_OK && write(go[1], "x", 1) == 1);
        CHECK(read(back[0], &its, sizeof its) == sizeof its && its.hold == mine.hold);
        CHECK(cl_unsend(&store, mine.hold, mine.nonce, CL_MAY_WAIT) == CL_OK && store.control->messages == 1);
        CHECK(cl_load(&store, &its, CL_MAY_WAIT, &q) == CL_OK && store.control->messages == 0);
        CHECK(write(go[1], "x", 1) == 1 && ended(child));
        _exit(0);
    }
    CHECK(ended(owner));
    expect_used(0);
    puts("nonces: ok");
}

static void test_clone_behind_us(void)
{
    pid_t child = fork();
    if (child == 0) {
        cl_block_ref r;
        open_store(&store, 5);
        CHECK(cl_fork_follow(&store) == CL_OK && cl_alloc(&store, 300, CL_MAY_WAIT, &r) == CL_OK);
        pid_t raw = (pid_t)syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
        if (raw == 0) {
            cl_block_ref q;
            int refused = cl_alloc(&store, 300, CL_MAY_WAIT, &q) == CL_FORKED &&
                          cl_release(&store, r.segment_id, r.segment, r.index, CL_MAY_WAIT) == CL_FORKED;
            pid_t again = fork(); /* and its own children have no part in it */
            if (again == 0) {
                _exit(cl_alloc(&store, 300, CL_MAY_WAIT, &q) == CL_CLOSED ? 0 : 1);
            }
            int status;
            CHECK(waitpid(again, &status, 0) == again && status == 0);
            _exit(refused ? 0 : 1);
        }
        int status;
        CHECK(waitpid(raw, &status, 0) == raw && status == 0);
        /* this one stays: it must not keep our byte after our death */
        raw = (pid_t)syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
        if (raw == 0) {
            pause();
        }
        CHECK(write(answer[0][1], &raw, sizeof raw) == sizeof raw);
        kill(getpid(), SIGKILL);
    }
    int status;
    pid_t raw;
    CHECK(read(answer[0][0], &raw, sizeof raw) == sizeof raw && waitpid(child, &status, 0) == child);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    CHECK(cl_reap(&survivor, CL_MAY_WAIT, NULL) == CL_OK);
    uint32_t owners = 0;
    for (uint32_t i = 0; i < survivor.control->owners_high; i++) {
        owners += survivor.owners[i].state == CL_OWNER_LIVE;
    }
    CHECK(owners == 1); /* the dead one is found dead */
    kill(raw, SIGKILL);
    expect_used(0);
    puts("clone: ok");
}

static void test_closed_descriptors(void)
{
    pid_t p = root(0);
    tell(0, (command){.op = 'A', .slot = 0, .id = 60});
    finish(p);
    expect_used(0);
    pid_t child = fork();
    if (child == 0) {
        cl_block_ref r, q, big;
        open_store(&store, 5);
        CHECK(cl_fork_follow(&store) == CL_OK && cl_alloc(&store, 300, CL_MAY_WAIT, &r) == CL_OK);
        CHECK(cl_alloc(&store, 300000, CL_MAY_WAIT, &big) == CL_OK);
        r.data[0] = 7;
        int pipe_in = ask[0][0], pipe_out = answer[0][1];
        for (int fd = 3; fd < 256; fd++) { /* and each number is now a file of the user */
            if (fd != pipe_in && fd != pipe_out && fd != store.directory) {
                int file = open("/dev/null", O_RDWR);
                if (file != fd) {
                    CHECK(dup2(file, fd) == fd && (file == pipe_in || file == pipe_out || close(file) == 0));
                }
            }
        }
        CHECK(write(pipe_out, "x", 1) == 1);
        char c;
        CHECK(read(pipe_in, &c, 1) == 1); /* the survivor has reaped and allocated meanwhile */
        CHECK(r.data[0] == 7 && cl_alloc(&store, 300, CL_MAY_WAIT, &q) == CL_OK && q.data != r.data);
        release(&store, &q);
        release(&store, &r);
        release(&store, &big);
        pid_t forked = fork();
        if (forked == 0) {
            _exit(cl_alloc(&store, 300, CL_MAY_WAIT, &q) == CL_OK ? 0 : 1);
        }
        CHECK(ended(forked));
        cl_store_leave(&store);
        for (int fd = 3; fd < 256; fd++) { /* no file of the user was closed or written to */
            CHECK(fcntl(fd, F_GETFD) >= 0);
        }
        _exit(0);
    }
    char c;
    cl_block_ref r;
    CHECK(read(answer[0][0], &c, 1) == 1);
    expect_used(2);
    CHECK(cl_alloc(&survivor, 300, CL_MAY_WAIT, &r) == CL_OK);
    memset(r.data, 9, 300);
    CHECK(write(ask[0][1], "x", 1) == 1);
    CHECK(ended(child));
    release(&survivor, &r);
    expect_used(0);
    puts("closed descriptors: ok");
}

/* 100 children of a process that held very much: one record each. */
static void test_many_heirs(void)
{
    pid_t p = fork();
    if (p == 0) {
        enum { N = 20000 };
        static cl_block_ref held[N];
        open_store(&store, 5);
        CHECK(cl_fork_follow(&store) == CL_OK);
        for (int i = 0; i < N; i++) {
            CHECK(cl_alloc(&store, 100, CL_MAY_WAIT, &held[i]) == CL_OK);
        }
        uint32_t before = store.control->holds_high;
        pid_t heirs[100];
        for (int i = 0; i < 100; i++) {
            heirs[i] = fork();
            if (heirs[i] == 0) {
                for (int k = 0; k < N && i == 7; k++) { /* one of them releases all */
                    release(&store, &held[k]);
                }
                CHECK(write(answer[0][1], "x", 1) == 1);
                pause();
            }
        }
        for (int i = 0; i < 100; i++) {
            char c;
            CHECK(read(answer[0][0], &c, 1) == 1);
        }
        CHECK(store.control->holds_high == before);
        for (int k = 0; k < N; k++) {
            release(&store, &held[k]);
        }
        CHECK(blocks_used() == N);
        for (int i = 0; i < 100; i++) {
            if (i != 50) {
                finish(heirs[i]);
            }
        }
        CHECK(cl_reap(&store, CL_MAY_WAIT, NULL) == CL_OK && blocks_used() == N);
        finish(heirs[50]);
        CHECK(cl_reap(&store, CL_MAY_WAIT, NULL) == CL_OK && blocks_used() == 0);
        _exit(0);
    }
    CHECK(ended(p));
    expect_used(0);
    puts("many heirs: ok");
}

/* ---- the model */

static uint64_t seed;
static uint32_t dice(uint32_t n)
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(seed >> 33) % n;
}

static void test_model(uint64_t first, int steps)
{
    static uint32_t has[WORKERS][SLOTS];
    static pid_t pids[WORKERS];
    uint32_t next_id = 100;
    seed = first;
    memset(has, 0, sizeof has);
    memset(pids, 0, sizeof pids);
    pids[0] = root(0);
    for (int step = 0; step < steps; step++) {
        int living[WORKERS], n = 0, room = -1;
        for (int w = 0; w < WORKERS; w++) {
            if (pids[w] != 0) {
                living[n++] = w;
            } else {
                room = w;
            }
        }
        int w = living[dice((uint32_t)n)], slot = (int)dice(SLOTS), what = (int)dice(100), scan = 0;
        if (what < 35 && has[w][slot] == 0) {
            tell(w, (command){.op = 'A', .slot = slot, .id = next_id});
            has[w][slot] = next_id++;
        } else if (what < 65 && has[w][slot] != 0) {
            tell(w, (command){.op = 'R', .slot = slot});
            has[w][slot] = 0;
        } else if (what < 75 && room >= 0) {
            pids[room] = tell(w, (command){.op = 'F', .other = room}).pid;
            memcpy(has[room], has[w], sizeof has[w]);
        } else if (what < 85 && has[w][slot] != 0) {
            int to = living[dice((uint32_t)n)], there = (int)dice(SLOTS);
            if (has[to][there] == 0) {
                cl_address a = tell(w, (command){.op = 'S', .slot = slot}).address;
                tell(to, (command){.op = 'M', .slot = there, .id = has[w][slot], .address = a});
                has[to][there] = has[w][slot];
            }
        } else if (what < 92 && n > 1) {
            if (dice(2) == 0) {
                kill_worker(pids[w]);
            } else {
                tell(w, (command){.op = dice(2) ? 'L' : 'X'});
                wait_end(pids[w]);
            }
            memset(has[w], 0, sizeof has[w]);
            pids[w] = 0;
            scan = 1;
        } else if (what < 95 && pids[w] != 0) {
            tell(w, (command){.op = 'C'});
        }
        uint32_t distinct = 0;
        for (uint32_t id = 100; id < next_id; id++) {
            int found = 0;
            for (int v = 0; v < WORKERS && !found; v++) {
                for (int k = 0; k < SLOTS && !found; k++) {
                    found = has[v][k] == id;
                }
            }
            distinct += (uint32_t)found;
        }
        if (scan) {
            CHECK(cl_reap(&survivor, CL_MAY_WAIT, NULL) == CL_OK);
        }
        if (step % 16 == 0 || scan) {
            audit(&survivor);
        }
        if (blocks_used() != distinct) {
            fprintf(stderr, "seed %llu, step %d: %u blocks in use, %u are held\n", (unsigned long long)first, step,
                    blocks_used(), distinct);
            abort();
        }
    }
    for (int w = 0; w < WORKERS; w++) {
        if (pids[w] != 0) {
            tell(w, (command){.op = 'C'});
            kill_worker(pids[w]);
        }
    }
    expect_used(0);
    for (uint32_t i = 0; i < survivor.control->owners_high; i++) {
        CHECK(i == survivor.slot || survivor.owners[i].state == CL_OWNER_FREE);
    }
}

int main(int argc, char **argv)
{
    for (int i = 0; i < WORKERS; i++) {
        CHECK(pipe(ask[i]) == 0 && pipe(answer[i]) == 0);
    }
    open_store(&survivor, 1);
    test_orders();
    test_marks_are_inherited();
    test_unregistered();
    test_copy_of_an_heir();
    test_payload_meanwhile();
    test_nonces();
    if (survivor
            .weak_liveness) { /* an emulator that ignores advice on memory: only a descriptor can show that it is alive */
        puts("clone behind us, closed descriptors: not looked at, since no mapping stays out of a child here");
    } else {
        test_clone_behind_us();
        test_closed_descriptors();
    }
    test_many_heirs();
    for (int k = 0; k < (argc > 1 ? atoi(argv[1]) : 6); k++) {
        test_model(1000 + (uint64_t)k, 500);
    }
    puts("model: ok");
    CHECK(cl_store_leave(&survivor) == 1 && count_files("") == 0);
    remove_directory();
    puts("fork: ok");
    return 0;
}
