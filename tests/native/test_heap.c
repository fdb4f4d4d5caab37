/* Blocks: classes, reuse, reserved memory, trimming, addresses; threads of one process together. */
#include "check.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>

static cl_store store;

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || !defined(__GLIBC__)
#define REFUSES 0 /* the sanitizer has its own allocator */
static int refuses;
#else
#define REFUSES 1
void *__libc_realloc(void *memory, size_t size);
static _Atomic int refuses; /* set: a table cannot be made larger */

void *realloc(void *memory, size_t size)
{
    return refuses ? NULL : __libc_realloc(memory, size);
}
#endif

static int segment_files(void)
{
    int n = 0, fd = openat(cl_directory(&store), ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *d = fdopendir(fd);
    CHECK(d != NULL);
    for (struct dirent *e; (e = readdir(d)) != NULL;) {
        n += cl_file_id(e->d_name, CL_SEGMENT_PREFIX) != 0;
    }
    closedir(d);
    return n;
}

/* If this process has no memory to record a segment, the segment is removed, with its file. */
static void no_memory_for_the_table(void)
{
    cl_block_ref a;
    int before = segment_files();
    if (!REFUSES) {
        return;
    }
    refuses = 1;
    CHECK(cl_alloc(&store, 1 << 20, CL_MAY_WAIT, &a) == CL_SYSTEM && cl_last_error()->sys == ENOMEM);
    refuses = 0;
    CHECK(segment_files() == before);
    audit(&store);
}

static void *churn(void *arg)
{
    unsigned seed = (unsigned)(uintptr_t)arg;
    cl_block_ref held[16] = {{0}};
    for (int i = 0; i < 2000; i++) {
        unsigned at = (unsigned)rand_r(&seed) % 16;
        if (held[at].data != NULL) {
            CHECK(held[at].data[0] == (uint8_t)at && held[at].data[held[at].capacity - 1] == (uint8_t)(uintptr_t)arg);
            release(&store, &held[at]);
            held[at].data = NULL;
        } else {
            int rc;
            uint64_t size = (uint64_t)1 << (unsigned)rand_r(&seed) % 18;
            while ((rc = cl_alloc(&store, size, CL_MAY_WAIT, &held[at])) == CL_AGAIN) {
            }
            CHECK(rc == CL_OK && held[at].capacity >= size);
            held[at].data[held[at].capacity - 1] = (uint8_t)(uintptr_t)arg;
            held[at].data[0] = (uint8_t)at;
        }
    }
    for (int i = 0; i < 16; i++) {
        if (held[i].data != NULL) {
            release(&store, &held[i]);
        }
    }
    return NULL;
}

int main(void)
{
    open_store(&store, 1);
    cl_block_ref a, b, c, found;
    no_memory_for_the_table();
    CHECK(cl_alloc(&store, 1 << 20, CL_MAY_WAIT, &a) == CL_OK && !a.recycled && a.capacity == 1 << 20);
    CHECK(((uintptr_t)a.data & 4095) == 0);
    memset(a.data, 1, 1 << 20);
    uint8_t *where = a.data;
    release(&store, &a);
    CHECK(cl_alloc(&store, 1 << 20, CL_MAY_WAIT, &a) == CL_OK && a.recycled && a.data == where); /* the warm one */
    CHECK(cl_alloc(&store, 100, CL_MAY_WAIT, &b) == CL_OK && b.capacity == 128);
    CHECK(cl_alloc(&store, 100, CL_MAY_WAIT, &c) == CL_OK && c.segment == b.segment && c.index != b.index);
    CHECK(cl_find(&store, b.data + 5, 10, CL_MAY_WAIT, &found) == 1 && found.index == b.index);
    CHECK(cl_find(&store, b.data + 5, 128, CL_MAY_WAIT, &found) == 0); /* reaches beyond the block */
    CHECK(cl_find(&store, &found, 1, CL_MAY_WAIT, &found) == 0);
    audit(&store);
    release(&store, &b);
    release(&store, &c);
    CHECK(cl_find(&store, b.data + 5, 10, CL_MAY_WAIT, &found) == 0); /* this address is no longer in a block of ours */
    release(&store, &a);
    audit(&store);
    /* removed, but its file still exists, as after a kill at this step: the registry is consistent */
    CHECK(cl_alloc(&store, 200000, CL_MAY_WAIT, &a) == CL_OK);
    release(&store, &a);
    CHECK(cl_enter(&store, CL_OP_LIST, CL_MAY_WAIT) == CL_OK && cl_segment_retire(&store, a.segment) == CL_OK);
    CHECK(store.segments[a.segment].state == CL_SEGMENT_GOING && cl_audit(&store) == CL_OK);
    store.going[store.ngoing++] = a.segment;
    cl_leave(&store);
    CHECK(store.segments[a.segment].state == CL_SEGMENT_FREE);
    audit(&store);
    /* objects are in segments of their own, even when a block of that size is free; a caller may ask for this too */
    CHECK(cl_alloc(&store, 100, CL_MAY_WAIT | CL_FOR_OBJECT, &a) == CL_OK && a.capacity == 128 && !a.recycled);
    CHECK(cl_alloc(&store, 100, CL_MAY_WAIT, &b) == CL_OK && b.recycled && b.segment != a.segment);
    CHECK(cl_alloc(&store, 128, CL_MAY_WAIT | CL_FOR_OBJECT, &c) == CL_OK && c.segment == a.segment);
    release(&store, &a);
    release(&store, &c);
    CHECK(cl_alloc(&store, 100, CL_MAY_WAIT | CL_ALONE, &a) == CL_OK && a.segment != c.segment &&
          a.segment != b.segment && a.capacity > CL_SMALL_MAX);
    audit(&store);
    release(&store, &a);
    release(&store, &b);
    uint64_t freed;
    CHECK(cl_trim(&store, 0, CL_MAY_WAIT, &freed) == CL_OK && freed >= 1 << 20 && count_files("seg.") == 0);
    audit(&store);
    CHECK(cl_alloc(&store, (uint64_t)1 << 50, CL_MAY_WAIT, &a) == CL_FULL && count_files("seg.") == 0);
    audit(&store);

    /* a write past the end of the last block of a segment stops there, and reaches no memory of others */
    CHECK(cl_alloc(&store, 102400, CL_MAY_WAIT, &a) == CL_OK && a.capacity == 102400);
    pid_t child = fork();
    if (child == 0) {
        signal(SIGBUS, SIG_DFL); /* the sanitizer would report it instead */
        memset(a.data + a.capacity, 1, 16);
        _exit(0);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child && WIFSIGNALED(status) && WTERMSIG(status) == SIGBUS);
    release(&store, &a);
    audit(&store);

    store.settings.warm_limit = 1 << 20; /* a free above the limit removes the segment at once */
    CHECK(cl_alloc(&store, 3 << 20, CL_MAY_WAIT, &a) == CL_OK);
    release(&store, &a);
    CHECK(store.control->warm_bytes <= 1 << 20 && count_files("seg.") == 0);
    store.settings.warm_limit = (uint64_t)256 << 20;

    pthread_t threads[4];
    for (uintptr_t i = 0; i < 4; i++) {
        CHECK(pthread_create(&threads[i], NULL, churn, (void *)(i + 1)) == 0);
    }
    for (int i = 0; i < 4; i++) {
        pthread_join(threads[i], NULL);
    }
    audit(&store);
    CHECK(store.control->total_bytes == store.control->warm_bytes);
    cl_block_ref
        many[150]; /* more segments than are removed at a time: the last process that leaves removes all of them */
    for (int i = 0; i < 150; i++) {
        CHECK(cl_alloc(&store, 100000, CL_MAY_WAIT, &many[i]) == CL_OK);
    }
    for (int i = 0; i < 150; i++) {
        release(&store, &many[i]);
    }
    CHECK(count_files("seg.") >= 150);
    CHECK(cl_store_leave(&store) == 1 && count_files("") == 0);
    remove_directory();
    puts("heap: ok");
    return 0;
}
