/* Table files beside the spilled items: when the mount is full, tables continue on the disk. The process that
 * creates them is killed at each step. After each death a new process joins before any survivor has acted; then the
 * survivor goes on. */
#include "check.h"

#include <sched.h>
#include <sys/mount.h>

static char spill[80];

static void open_spilling(cl_store *store, uint64_t family)
{
    cl_identity who = {.host = 11,
                       .boot = 22,
                       .family = family,
                       .pid = (uint32_t)getpid(),
                       .start = cl_process_start((uint32_t)getpid()),
                       .command = "check"};
    cl_settings settings = {.warm_limit = (uint64_t)256 << 20, .idle_ns = 0, .message_ttl_ns = 600000000000};
    strcpy(settings.spill, spill);
    CHECK(cl_store_open(store, open_directory(), &who, &settings) == CL_OK);
}

static void fill(cl_store *store)
{
    cl_block_ref r;
    for (uint64_t n = 70000; n > 100; n /= 4) {
        while (cl_alloc(store, n, CL_MAY_WAIT, &r) == CL_OK) {
        }
        CHECK(cl_last_error()->code == CL_FULL);
    }
}

static void spill_one(cl_store *store)
{
    cl_block_ref r;
    CHECK(cl_alloc(store, 70000, CL_MAY_WAIT | CL_MAY_SPILL, &r) == CL_OK && r.spilled);
    memset(r.data, 5, 70000);
}

static void send_one(cl_store *store)
{
    static cl_block_ref r;
    cl_address a;
    if (r.data == NULL) {
        CHECK(cl_alloc(store, 70000, CL_MAY_WAIT | CL_MAY_SPILL, &r) == CL_OK);
    }
    CHECK(cl_send(store, r.segment, r.index, CL_MAY_WAIT, &a) == CL_OK);
}

/* Repeat it until the table's file goes to the disk. Return how often it was done before that. */
static int until_beside(cl_store *store, void (*one)(cl_store *), enum cl_table_number table)
{
    for (int done = 0; done < 5000; done++) {
        one(store);
        if (store->control->books & 1u << table) {
            CHECK(store->books & 1u << table);
            CHECK(store->control->beside[table] % CL_PAGE == 0);
            return done;
        }
    }
    abort();
}

static int in_child(void (*what)(int), int argument, int *status)
{
    int out[2], answer = -1;
    CHECK(pipe(out) == 0);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        dup2(out[1], 100);
        what(argument);
        _exit(0);
    }
    close(out[1]);
    if (read(out[0], &answer, sizeof answer) != (ssize_t)sizeof answer) {
        answer = -1;
    }
    close(out[0]);
    CHECK(waitpid(child, status, 0) == child);
    return answer;
}

static void (*operation)(cl_store *);
static enum cl_table_number at_table;
static int before;

static void count(int unused)
{
    (void)unused;
    cl_store own;
    open_spilling(&own, 5);
    fill(&own);
    int n = until_beside(&own, operation, at_table);
    audit(&own);
    CHECK(write(100, &n, sizeof n) == (ssize_t)sizeof n);
}

static void victim(int at)
{
    cl_store own;
    open_spilling(&own, 5);
    fill(&own);
    for (int i = 0; i < before; i++) {
        operation(&own);
    }
    cl_kill_at = cl_kill_passed + at;
    operation(&own);
    operation(&own);
    cl_kill_at = 0;
}

static void newcomer(int unused)
{
    (void)unused;
    cl_store own;
    cl_block_ref r;
    open_spilling(&own, 6);
    audit(&own);
    CHECK(cl_alloc(&own, 70000, CL_MAY_WAIT | CL_MAY_SPILL, &r) == CL_OK);
    memset(r.data, 6, 70000);
}

/* What the dead process left, with the registry. */
static void clean(int unused)
{
    (void)unused;
    cl_store own;
    open_spilling(&own, 1);
    CHECK(cl_reap(&own, CL_MAY_WAIT, NULL) == CL_OK);
    CHECK(cl_store_leave(&own) == 1 && count_files("") == 0);
    CHECK(access(spill, F_OK) != 0 && errno == ENOENT); /* the table files are removed too */
}

static void must(void (*what)(int))
{
    int status;
    in_child(what, 0, &status);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

/* In a process of its own, since the pages of a registry stay until a process that mapped it exits. Result 1: the
 * victim was killed, 2: the tables are on the disk. */
static void survive(int n)
{
    cl_store survivor;
    cl_block_ref kept, more[300];
    int status, told;
    open_spilling(&survivor, 1);
    CHECK(cl_alloc(&survivor, 300, CL_MAY_WAIT, &kept) == CL_OK);
    memset(kept.data, 42, 300);
    in_child(victim, n, &status);
    told = WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;
    CHECK(told || (WIFEXITED(status) && WEXITSTATUS(status) == 0));
    must(newcomer);
    told |= survivor.control->books != 0 ? 2 : 0;
    CHECK(cl_reap(&survivor, CL_MAY_WAIT, NULL) == CL_OK);
    audit(&survivor);
    for (int i = 0; i < 300; i++) {
        CHECK(cl_alloc(&survivor, 9000, CL_MAY_WAIT | CL_MAY_SPILL, &more[i]) == CL_OK);
        memset(more[i].data, i, 9000);
    }
    audit(&survivor);
    for (int i = 0; i < 300; i++) {
        CHECK(more[i].data[0] == (uint8_t)i && more[i].data[8999] == (uint8_t)i);
        release(&survivor, &more[i]);
    }
    CHECK(kept.data[0] == 42 && kept.data[299] == 42);
    release(&survivor, &kept);
    CHECK(cl_reap(&survivor, CL_MAY_WAIT, NULL) == CL_OK);
    CHECK(cl_store_leave(&survivor) == 1 && count_files("") == 0);
    CHECK(access(spill, F_OK) != 0 && errno == ENOENT);
    CHECK(write(100, &told, sizeof told) == (ssize_t)sizeof told);
}

static void kill_everywhere(const char *what, void (*one)(cl_store *), enum cl_table_number table)
{
    int status, beside = 0;
    operation = one;
    at_table = table;
    before = in_child(count, 0, &status);
    CHECK(before >= 0 && WIFEXITED(status) && WEXITSTATUS(status) == 0);
    must(clean);
    for (int n = 1;; n++) {
        int told = in_child(survive, n, &status);
        if (told < 0 || status != 0) {
            fprintf(stderr, "%s, point %d: the survivor ended with status %x\n", what, n, (unsigned)status);
            abort();
        }
        beside += (told & 2) != 0;
        if ((told & 1) == 0) {
            CHECK(n > 20 && beside > 0);
            printf("%s: killed at each of %d points, the books on the disk after %d\n", what, n - 1, beside);
            break;
        }
    }
}

static void leave_room(int unused)
{
    (void)unused;
    /* A segment in the mount does not take the last entries; spilled segments do. */
    cl_store own;
    open_spilling(&own, 1);
    fill(&own);
    const cl_control *c = own.control;
    CHECK(c->books == 0 && c->paged[CL_TABLE_SEGMENTS] > c->segments_high);
    uint32_t high = c->segments_high;
    until_beside(&own, spill_one, CL_TABLE_SEGMENTS);
    CHECK(c->segments_high > high);
    audit(&own);
}

int main(void)
{
    if (unshare(geteuid() == 0 ? CLONE_NEWNS : CLONE_NEWUSER | CLONE_NEWNS) != 0 ||
        mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0 ||
        mount("tmpfs", "/dev/shm", "tmpfs", 0, "size=1m") != 0) {
        printf("skipped: no mount of its own can be made here (%s)\nbooks: ok\n", strerror(errno));
        return 0;
    }
    char parent[] = "/tmp/copyless-books-XXXXXX";
    CHECK(mkdtemp(parent) != NULL);
    CHECK(mount("tmpfs", parent, "tmpfs", 0, "size=256m") == 0); /* a fast disk */
    snprintf(spill, sizeof spill, "%s/spill", parent);
    close(open_directory()); /* the same one for all children */
    must(leave_room);
    must(clean);
    kill_everywhere("segments", spill_one, CL_TABLE_SEGMENTS);
    kill_everywhere("holds", send_one, CL_TABLE_HOLDS);
    remove_directory();
    CHECK(umount(parent) == 0 && rmdir(parent) == 0);
    puts("books: ok");
    return 0;
}
