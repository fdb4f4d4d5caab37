/* Wrong words and wrong files: the call that would rely on one reports it as damage, and no other call does. */
#include "check.h"
#include "queue.h"

static cl_store store, other;

static int enter(void)
{
    int rc;
    while ((rc = cl_enter(&store, CL_OP_LIST, CL_MAY_WAIT)) == CL_AGAIN) {
    }
    return rc;
}

/* Noise over our own slot: another process could be given it while we use it. */
static void test_own_slot(void)
{
    cl_owner *me = &store.owners[store.slot];
    uint32_t kept = me->incarnation;
    me->incarnation ^= 4;
    CHECK(enter() == CL_CORRUPT);
    me->incarnation = kept;
    kept = me->state;
    me->state = CL_OWNER_FREE;
    CHECK(enter() == CL_CORRUPT);
    me->state = kept;
    CHECK(enter() == CL_OK);
    cl_leave(&store);
    puts("own slot: ok");
}

/* Lengths of tables far beyond their size: a copy of all tables neither reads past the end nor counts in a buffer
 * that is too small. */
static void test_lengths(void)
{
    cl_control *c = store.control;
    uint32_t *const lengths[] = {&c->owners_high, &c->segments_high, &c->holds_high, &c->names_high, &c->marks_high};
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        uint32_t kept = *lengths[i];
        for (uint32_t wild = UINT32_MAX; wild > CL_MAX_HOLDS; wild /= 2) {
            CHECK(enter() == CL_OK);
            *lengths[i] = wild;
            CHECK(cl_audit(&store) == CL_CORRUPT);
            *lengths[i] = kept;
            cl_leave(&store);
        }
    }
    CHECK(enter() == CL_OK);
    CHECK(cl_audit(&store) == CL_OK);
    cl_leave(&store);
    puts("lengths of tables: ok");
}

static int file_of(const char *name)
{
    int fd = openat(open_directory(), name, O_RDWR);
    CHECK(fd >= 0);
    return fd;
}

static void flip(const char *name, off_t at)
{
    uint8_t byte;
    int fd = file_of(name);
    CHECK(pread(fd, &byte, 1, at) == 1);
    byte ^= 0x10;
    CHECK(pwrite(fd, &byte, 1, at) == 1);
    close(fd);
}

/* One bit of the description of a file, which nothing else contradicts. */
static void test_headers(void)
{
    cl_block_ref r, q;
    cl_address a;
    char file[CL_FILE_NAME];
    CHECK(cl_alloc(&store, 100000, CL_MAY_WAIT, &r) == CL_OK);
    CHECK(cl_send(&store, r.segment, r.index, CL_MAY_WAIT, &a) == CL_OK);
    cl_segment_file(file, r.segment_id);
    flip(file, offsetof(cl_header, created_ns));
    CHECK(cl_load(&other, &a, CL_MAY_WAIT, &q) == CL_CORRUPT);
    flip(file, offsetof(cl_header, created_ns));
    CHECK(cl_load(&other, &a, CL_MAY_WAIT, &q) == CL_OK);
    release(&other, &q);
    release(&store, &r);

    cl_store third;
    cl_identity who = {.host = 11, .boot = 22, .family = 3, .pid = (uint32_t)getpid()};
    cl_settings settings = {.warm_limit = 0};
    flip(CL_REGISTRY_FILE, offsetof(cl_header, created_ns));
    memset(&third, 0, sizeof third);
    CHECK(cl_store_open(&third, open_directory(), &who, &settings) == CL_CORRUPT);
    flip(CL_REGISTRY_FILE, offsetof(cl_header, created_ns));
    puts("headers: ok");
}

/* Another file under the name, equal to the last byte. */
static void swap(const char *name)
{
    static uint8_t bytes[1 << 20];
    int fd = file_of(name), directory = open_directory();
    ssize_t n = read(fd, bytes, sizeof bytes);
    close(fd);
    fd = openat(directory, "copy", O_RDWR | O_CREAT | O_EXCL, 0600);
    CHECK(n > 0 && fd >= 0 && write(fd, bytes, (size_t)n) == n && close(fd) == 0);
    CHECK(renameat(directory, "copy", directory, name) == 0);
    close(directory);
}

static void test_swapped(void)
{
    cl_block_ref r, q;
    cl_address a, b;
    char file[CL_FILE_NAME];
    CHECK(cl_alloc(&store, 300000, CL_MAY_WAIT, &r) == CL_OK);
    CHECK(cl_send(&store, r.segment, r.index, CL_MAY_WAIT, &a) == CL_OK);
    cl_segment_file(file, r.segment_id);
    swap(file);
    CHECK(cl_load(&other, &a, CL_MAY_WAIT, &q) == CL_CORRUPT); /* not mapped: compares the recorded inode */
    CHECK(cl_send(&store, r.segment, r.index, CL_MAY_WAIT, &b) == CL_CORRUPT); /* mapped: that inode */
    puts("swapped: ok");
}

/* ---- queues */

static cl_queue_head *make(cl_queue *q, cl_block_ref *place)
{
    CHECK(cl_alloc(&store, sizeof(cl_queue_head), CL_MAY_WAIT, place) == CL_OK);
    cl_queue_head *h = (cl_queue_head *)(void *)place->data;
    memset(h, 0, sizeof *h);
    h->head.magic = CL_OBJECT_MAGIC;
    h->head.kind = CL_KIND_QUEUE;
    CHECK(cl_queue_attach(q, &store, h, place->capacity, place->segment * CL_BLOCKS + place->index) == CL_OK);
    return h;
}

static int put(cl_queue *q, const cl_item *item)
{
    uint32_t done = 0;
    int rc;
    while ((rc = cl_queue_put(q, item, 1, &done, CL_FOREVER, CL_MAY_WAIT)) == CL_AGAIN) {
    }
    return rc;
}

/* What a take of one item returns. */
static int look(cl_queue *q)
{
    cl_got got;
    int rc;
    while ((rc = cl_queue_begin(q, 0, CL_MAY_WAIT)) == CL_AGAIN) {
    }
    if (rc == CL_OK) {
        rc = cl_queue_next(q, &got, CL_MAY_WAIT);
        if (rc == CL_OK && got.body == NULL) {
            release(&store, &got.payload);
        }
        cl_queue_abort(q);
    }
    return rc;
}

static void test_items(void)
{
    cl_queue q;
    cl_block_ref place, payload;
    cl_queue_head *h = make(&q, &place);
    uint8_t body[64] = {1};
    cl_item item = {.body = body, .nbytes = sizeof body};
    CHECK(put(&q, &item) == CL_OK && look(&q) == CL_OK);
    cl_record *r = (cl_record *)(void *)(q.put_chunk.ref.data + sizeof(cl_chunk)), kept = *r;
    const cl_record lies[] = {
        {.length = kept.length + 8, .nbytes = kept.nbytes},  {.length = kept.length - 8, .nbytes = kept.nbytes},
        {.length = UINT32_MAX, .nbytes = kept.nbytes},       {.length = kept.length, .nbytes = kept.nbytes + 8},
        {.length = kept.length, .nbytes = UINT64_MAX},       {.length = kept.length, .nbytes = UINT64_MAX - 7},
        {.length = kept.length, .nbytes = 15, .ntokens = 1}, {.length = kept.length, .nbytes = 64, .ntokens = 5},
    };
    for (size_t i = 0; i < sizeof lies / sizeof *lies; i++) {
        *r = lies[i];
        CHECK(look(&q) == CL_CORRUPT);
    }
    *r = kept;
    CHECK(look(&q) == CL_OK);
    /* the positions of the two ends */
    cl_au64 *head = &h->get.side[0].offset, *end = &h->put.side[atomic_load(&h->put.commit) & 1].offset;
    CHECK(cl_queue_begin(&q, 0, CL_MAY_WAIT) == CL_OK);
    cl_got got;
    CHECK(cl_queue_next(&q, &got, CL_MAY_WAIT) == CL_OK && cl_queue_commit(&q) == CL_OK && put(&q, &item) == CL_OK);
    head = &h->get.side[atomic_load(&h->get.commit) & 1].offset;
    end = &h->put.side[atomic_load(&h->put.commit) & 1].offset;
    const uint64_t wild[] = {
        0, 8, sizeof(cl_chunk) + 4, q.put_chunk.ref.capacity - 8, (uint64_t)1 << 62, UINT64_MAX - 7};
    uint64_t was_head = atomic_load(head), was_end = atomic_load(end);
    for (size_t i = 0; i < sizeof wild / sizeof *wild; i++) {
        atomic_store(head, wild[i]);
        CHECK(look(&q) == CL_CORRUPT);
        atomic_store(head, was_head);
        atomic_store(end, wild[i]);
        CHECK(put(&q, &item) == CL_CORRUPT);
        atomic_store(end, was_end);
    }
    CHECK(look(&q) == CL_OK && put(&q, &item) == CL_OK);
    /* a body in a block, longer than the block */
    CHECK(cl_alloc(&store, 5000, CL_MAY_WAIT, &payload) == CL_OK);
    item = (cl_item){.nbytes = 5000, .payload = &payload};
    uint8_t *at = q.put_chunk.ref.data + atomic_load(&h->put.side[atomic_load(&h->put.commit) & 1].offset);
    CHECK(put(&q, &item) == CL_OK);
    for (int i = 0; i < 2; i++) {
        CHECK(cl_queue_begin(&q, 0, CL_MAY_WAIT) == CL_OK && cl_queue_next(&q, &got, CL_MAY_WAIT) == CL_OK &&
              cl_queue_commit(&q) == CL_OK);
    }
    CHECK(look(&q) == CL_OK);
    r = (cl_record *)(void *)at;
    r->nbytes = payload.capacity + 1;
    CHECK(look(&q) == CL_CORRUPT);
    r->nbytes = (uint64_t)1 << 40;
    CHECK(look(&q) == CL_CORRUPT);
    r->nbytes = 5000;
    CHECK(look(&q) == CL_OK);
    CHECK(cl_queue_shut(&q, 1) == CL_OK);
    cl_queue_detach(&q);
    release(&store, &place);
    audit(&store);
    puts("items: ok");
}

int main(void)
{
    open_store(&store, 1);
    open_store(&other, 1);
    test_own_slot();
    test_lengths();
    test_headers();
    test_items();
    test_swapped();
    CHECK(cl_store_leave(&other) >= 0 && cl_store_leave(&store) >= 0);
    remove_directory();
    puts("damage: ok");
    return 0;
}
