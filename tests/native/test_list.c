/* The list: readers and writers of one slot (also under TSan), and the death of a writer at every step. */
#include "check.h"
#include "list.h"

#include <pthread.h>
#include <sys/mman.h>

static cl_store store;
static cl_list *list;
static uint64_t nslots;
static const uint64_t rooms[3] = {0, 13, 4096};
static uint64_t capacity;

static int set(uint64_t at, uint8_t fill, uint64_t length)
{
    uint8_t bytes[4096];
    memset(bytes, fill, sizeof bytes);
    cl_value v = {.kind = fill, .word = fill, .length = length};
    int rc;
    while ((rc = cl_list_set(&store, list, capacity, nslots, at, &v, bytes, CL_FOREVER)) == CL_AGAIN) {
    }
    return rc;
}

/* All bytes of the slot must be this one. */
static int get(uint64_t at, uint64_t *length)
{
    uint8_t bytes[4096];
    cl_value v;
    int rc;
    while ((rc = cl_list_get(&store, list, capacity, nslots, at, &v, bytes, sizeof bytes, CL_FOREVER)) == CL_AGAIN) {
    }
    CHECK(rc == CL_OK && v.word == v.kind);
    for (uint64_t i = 0; i < v.length; i++) {
        CHECK(bytes[i] == v.kind);
    }
    if (length != NULL) {
        *length = v.length;
    }
    return (int)v.kind;
}

static void *writes(void *arg)
{
    uint8_t me = (uint8_t)(uintptr_t)arg;
    for (int i = 0; i < 3000; i++) {
        CHECK(set(2, me, me * 100u + (unsigned)i % 700) == CL_OK);
        CHECK(set(1, me, me) == CL_OK && set(0, me, 0) == CL_OK);
    }
    return NULL;
}

static void *reads(void *arg)
{
    (void)arg;
    uint64_t length;
    for (int i = 0; i < 3000; i++) {
        int kind = get(2, &length);
        CHECK(kind == 0 || (length >= (uint64_t)kind * 100 && length < (uint64_t)kind * 100 + 700));
        get(1, NULL);
        get(0, NULL);
    }
    return NULL;
}

static void begin(void)
{
    memset(list, 0, capacity);
    cl_list_begin(list, 3, rooms, store.registry_id);
    CHECK(cl_list_check(list, capacity, store.registry_id, &nslots) == CL_OK);
}

static void threads(void)
{
    pthread_t t[4];
    begin();
    for (uintptr_t i = 0; i < 4; i++) {
        CHECK(pthread_create(&t[i], NULL, i < 2 ? writes : reads, (void *)(i + 5)) == 0);
    }
    for (int i = 0; i < 4; i++) {
        pthread_join(t[i], NULL);
    }
}

#ifndef __SANITIZE_THREAD__
/* Two commits during a read: the bytes are copied to a page that cannot be written yet. The fault handler replaces
 * the value twice, so that the side that is being read has another value. */
static uint8_t *page;
static int faults;

static void replace_twice(int number)
{
    (void)number;
    faults++;
    CHECK(set(2, 8, 4096) == CL_OK && set(2, 9, 4096) == CL_OK);
    CHECK(mprotect(page + 4096, 4096, PROT_READ | PROT_WRITE) == 0);
}

static void overtaken(void)
{
    struct sigaction act = {.sa_handler = replace_twice}, before;
    cl_value v;
    begin();
    CHECK(set(2, 7, 4096) == CL_OK);
    page = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(page != MAP_FAILED && mprotect(page + 4096, 4096, PROT_NONE) == 0 && sigaction(SIGSEGV, &act, &before) == 0);
    CHECK(cl_list_get(&store, list, capacity, nslots, 2, &v, page + 2048, 4096, CL_FOREVER) == CL_OK);
    CHECK(sigaction(SIGSEGV, &before, NULL) == 0 && faults == 1 && v.kind == 9 && v.length == 4096);
    for (int i = 0; i < 4096; i++) {
        CHECK(page[2048 + i] == 9);
    }
    munmap(page, 8192);
}
#endif

static void kills(void)
{
    int at = 0;
    for (int whole = 0; !whole;) {
        begin();
        CHECK(set(2, 1, 100) == CL_OK);
        at++;
        pid_t child = fork();
        if (child == 0) {
            store.open = 0;
            open_store(&store, 2);
            atomic_store(&cl_kill_passed, 0);
            atomic_store(&cl_kill_at, at);
            CHECK(set(2, 2, 4096) == CL_OK);
            _exit(0);
        }
        whole = ended(child);
        uint64_t length;
        int kind = get(2, &length);
        CHECK((kind == 1 && length == 100) || (kind == 2 && length == 4096));
        CHECK(set(2, 3, 7) == CL_OK && get(2, &length) == 3 && length == 7);
    }
    CHECK(at > 4);
}

static void damage(void)
{
    uint8_t bytes[8];
    cl_value v = {.kind = 1, .length = 14};
    begin();
    CHECK(cl_list_set(&store, list, capacity, nslots, 1, &v, "fourteen bytes", CL_FOREVER) == CL_FULL);
    CHECK(set(1, 7, 13) == CL_OK);
    CHECK(cl_list_get(&store, list, capacity, nslots, 1, &v, bytes, 8, CL_FOREVER) == CL_FULL && v.length == 13);
    CHECK(cl_list_check(list, capacity - 1, store.registry_id, &nslots) == CL_CORRUPT);
    CHECK(cl_list_check(list, 8, store.registry_id, &nslots) == CL_CORRUPT);
    CHECK(cl_list_check(list, capacity, 5, &nslots) == CL_STALE);
    list->slots[1].offset = capacity - 8;
    CHECK(cl_list_get(&store, list, capacity, nslots, 1, &v, bytes, 8, CL_FOREVER) == CL_CORRUPT);
    CHECK(set(1, 7, 13) == CL_CORRUPT);
    begin();
    list->slots[1].kind[0] = ~(uint64_t)0;
    CHECK(cl_list_get(&store, list, capacity, nslots, 1, &v, bytes, 8, CL_FOREVER) == CL_CORRUPT);
    list->magic ^= 1;
    CHECK(cl_list_check(list, capacity, store.registry_id, &nslots) == CL_CORRUPT);
    CHECK(cl_list_bytes((uint64_t)1 << 60, NULL) == 0);
}

int main(void)
{
    open_store(&store, 1);
    capacity = cl_list_bytes(3, rooms);
    list = mmap(NULL, capacity, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(list != MAP_FAILED);
    threads();
#ifndef __SANITIZE_THREAD__
    overtaken();
#endif
    kills();
    damage();
    CHECK(cl_store_leave(&store) >= 0);
    remove_directory();
    puts("list: ok");
    return 0;
}
