/* The registry's lock: a word without an owner is repaired if nothing else is damaged, and only then; no process
 * releases a lock of another; a new process works after one was killed while it joined with the same slot. */
#include "check.h"

static cl_store store;

static int enter(void)
{
    int rc;
    while ((rc = cl_enter(&store, CL_OP_LIST, CL_MAY_WAIT)) == CL_AGAIN) {
    }
    return rc;
}

static void test_heals(void)
{
    const uint32_t nobodys[] = {CL_LOCK_WORD(3000u, 5u), CL_LOCK_WORD(200u, 7u),
                                CL_LOCK_WORD(0u, store.incarnation + 9), 0x00001000u,
                                CL_LOCK_SLEEP | CL_LOCK_WORD(17u, 3u)};
    for (size_t i = 0; i < sizeof nobodys / sizeof *nobodys; i++) {
        uint64_t before = store.control->heals;
        atomic_store(&store.control->lock, nobodys[i]);
        CHECK(enter() == CL_OK && store.control->heals == before + 1);
        cl_leave(&store);
        CHECK(atomic_load(&store.control->lock) == 0);
    }
    puts("heals: ok");
}

static void test_damage_stays(void)
{
    uint32_t word = CL_LOCK_WORD(3000u, 5u);
    atomic_store(&store.control->lock, word);
    atomic_store(&store.control->journal.committed, 1); /* a change is half done, but no owner is known */
    CHECK(enter() == CL_CORRUPT && (atomic_load(&store.control->lock) & ~CL_LOCK_SLEEP) == word);
    atomic_store(&store.control->journal.committed, 0);
    uint32_t kept = store.control->holds_free;
    store.control->holds_free = 77777; /* a list whose first index is invalid */
    CHECK(enter() == CL_CORRUPT && (atomic_load(&store.control->lock) & ~CL_LOCK_SLEEP) == word);
    store.control->holds_free = kept;
    CHECK(enter() == CL_OK);
    cl_leave(&store);
    uint32_t *const lengths[] = {&store.control->owners_high, &store.control->segments_high, &store.control->holds_high,
                                 &store.control->names_high, &store.control->marks_high};
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths;
         i++) { /* longer than any table: once it was copied for ever */
        cl_snapshot snapshot;
        cl_store other;
        cl_identity who = {.host = 11, .boot = 22, .pid = (uint32_t)getpid()};
        cl_settings settings = {0};
        kept = *lengths[i];
        *lengths[i] = UINT32_MAX;
        alarm(30);
        CHECK(cl_snapshot_take(&store, &snapshot, CL_MAY_WAIT) == CL_CORRUPT && enter() == CL_CORRUPT);
        CHECK(cl_store_open(&other, open_directory(), &who, &settings) == CL_CORRUPT);
        alarm(0);
        *lengths[i] = kept;
        CHECK(cl_snapshot_take(&store, &snapshot, CL_MAY_WAIT) == CL_OK);
        cl_snapshot_free(&snapshot);
    }
    puts("damage: ok");
}

static void test_anothers(void)
{
    CHECK(enter() == CL_OK);
    uint32_t other = CL_LOCK_WORD(9u, 1u);
    atomic_store(&store.control->lock, other); /* another process took it over, for whatever reason */
    cl_leave(&store);
    CHECK(atomic_load(&store.control->lock) == other);
    atomic_store(&store.control->lock, 0);
    puts("another's: ok");
}

/* Dies with the lock while it joins. The next process gets the same slot, and the word names that slot. */
static void test_same_slot(void)
{
    for (int i = 0; i < 3; i++) {
        pid_t child = fork();
        if (child == 0) {
            cl_store own;
            cl_kill_at = cl_kill_passed + 2; /* it has the byte; the lock is taken */
            open_store(&own, 5);
            _exit(1);
        }
        CHECK(!ended(child));
        uint32_t word = atomic_load(&store.control->lock);
        CHECK(word != 0 && store.owners[CL_LOCK_SLOT(word) - 1].state == CL_OWNER_FREE);
        child = fork();
        if (child == 0) {
            cl_store own;
            cl_kill_at = 0;
            open_store(&own, 5);
            _exit(own.slot == CL_LOCK_SLOT(word) - 1 ? 0 : 1);
        }
        CHECK(ended(child));
        CHECK(cl_reap(&store, CL_MAY_WAIT, NULL) == CL_OK);
    }
    puts("same slot: ok");
}

/* The last process was killed after it marked the registry as removed and before the removal. A process that has
 * just got a byte goes back and opens a new registry. */
static void test_removed_meanwhile(void)
{
    pid_t child = fork();
    if (child == 0) {
        static cl_store own, late;
        open_store(&own, 5);
        late = own; /* the state after the registry was opened, before it gets a slot */
        late.life = late.lineage = NULL;
        late.life_fd = late.spare_fd = -1;
        own.control->removed = 1;
        CHECK(cl_join(&late) == CL_RETRY);
        own.control->removed = 0;
        CHECK(cl_join(&late) == CL_OK && late.slot != own.slot);
        _exit(0);
    }
    CHECK(ended(child));
    CHECK(cl_reap(&store, CL_MAY_WAIT, NULL) == CL_OK);
    audit(&store);
    puts("removed meanwhile: ok");
}

/* More processes at once than slots with pages: none is refused. */
static void test_burst(void)
{
    enum { N = 300 };
    int go[2], come[2];
    pid_t children[N];
    CHECK(pipe(go) == 0 && pipe(come) == 0);
    for (int i = 0; i < N; i++) {
        children[i] = fork();
        if (children[i] == 0) {
            char c;
            cl_store own;
            close(go[1]);
            CHECK(read(go[0], &c, 1) == 0); /* all at the same moment */
            open_store(&own, 5);
            CHECK(write(come[1], "x", 1) == 1);
            pause();
        }
    }
    close(go[1]);
    close(go[0]);
    close(come[1]);
    for (int i = 0; i < N; i++) {
        char c;
        CHECK(read(come[0], &c, 1) == 1);
    }
    for (int i = 0; i < N; i++) {
        kill(children[i], SIGKILL);
        CHECK(!ended(children[i]));
    }
    CHECK(cl_reap(&store, CL_MAY_WAIT, NULL) == CL_OK);
    audit(&store);
    puts("burst: ok");
}

/* The files are removed while the registry is in use: what exists continues, in forked children too; a later
 * registry is not changed. */
static void test_adrift(void)
{
    cl_block_ref kept, r;
    cl_address sent;
    cl_reaped reaped;
    cl_store later;
    open_store(&store, 1);
    CHECK(cl_fork_follow(&store) == CL_OK && cl_alloc(&store, 5000, CL_MAY_WAIT, &kept) == CL_OK);
    DIR *d = opendir(check_path);
    for (struct dirent *e; d != NULL && (e = readdir(d)) != NULL;) {
        unlinkat(dirfd(d), e->d_name, 0);
    }
    closedir(d);
    CHECK(enter() == CL_OK && store.adrift && cl_audit(&store) == CL_OK);
    cl_leave(&store);
    CHECK(cl_alloc(&store, 100, CL_MAY_WAIT, &r) == CL_REMOVED);
    CHECK(cl_alloc(&store, 100, CL_MAY_WAIT | CL_STAY, &r) == CL_REMOVED); /* there is no spill directory */
    CHECK(cl_send(&store, kept.segment, kept.index, CL_MAY_WAIT, &sent) == CL_OK);
    CHECK(cl_load(&store, &sent, CL_MAY_WAIT, &r) == CL_OK && r.data == kept.data);
    release(&store, &r);
    pid_t child = fork();
    if (child == 0) {
        CHECK(store.open && cl_send(&store, kept.segment, kept.index, CL_MAY_WAIT, &sent) == CL_OK);
        CHECK(cl_load(&store, &sent, CL_MAY_WAIT, &r) == CL_OK && r.data == kept.data);
        CHECK(enter() == CL_OK);
        kill(getpid(), SIGKILL); /* while it holds the lock */
    }
    CHECK(!ended(child));
    CHECK(cl_reap(&store, CL_MAY_WAIT, &reaped) == CL_OK && reaped.owners == 1);
    open_store(&later, 1);
    CHECK(count_files("registry") == 1 && cl_alloc(&later, 100, CL_MAY_WAIT, &r) == CL_OK);
    CHECK(cl_load(&later, &sent, CL_MAY_WAIT, &r) == CL_STALE); /* of another registry */
    release(&store, &kept);
    CHECK(cl_store_leave(&store) == 0 && count_files("registry") == 1 && count_files("live.") == 1);
    audit(&later);
    release(&later, &r);
    CHECK(cl_store_leave(&later) == 1);
    puts("adrift: ok");
}

int main(void)
{
    open_store(&store, 1);
    test_heals();
    test_damage_stays();
    test_anothers();
    test_same_slot();
    test_removed_meanwhile();
    test_burst();
    CHECK(cl_store_leave(&store) == 1);
    test_adrift();
    remove_directory();
    puts("registry: ok");
    return 0;
}
