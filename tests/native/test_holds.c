/* Holds: messages pass between processes, stale handles are refused, messages of families end and expire, names are
 * made and removed. */
#include "check.h"

static cl_store store, other;

/* A queue that is an item of itself: it is freed with its last user, at once. */
static void test_in_itself(void)
{
    cl_block_ref q;
    cl_address a;
    cl_token t, none;
    CHECK(cl_alloc(&store, 3000, CL_MAY_WAIT, &q) == CL_OK);
    uint32_t number = q.segment * CL_BLOCKS + q.index;
    for (int i = 0; i < 3; i++) { /* and one more time than one */
        CHECK(cl_draft(&store, q.segment, q.index, CL_MAY_WAIT, &a) == CL_OK);
        t = (cl_token){.nonce = a.nonce, .hold = a.hold};
        CHECK(cl_give(&store, number, (uint64_t)i, &t, 1, NULL, CL_MAY_WAIT, &none) == CL_OK);
    }
    audit(&store);
    a.nonce = 0;
    release(&store, &q);
    CHECK(store.segments[number / CL_BLOCKS].blocks[number % CL_BLOCKS].state == CL_BLOCK_FREE);
    CHECK(cl_load(&other, &a, CL_MAY_WAIT, &q) == CL_STALE);
    audit(&store);
}

int main(void)
{
    open_store(&store, 1);
    cl_block_ref a, b;
    cl_address sent, old;
    uint64_t freed;
    CHECK(cl_alloc(&store, 5000, CL_MAY_WAIT, &a) == CL_OK);
    CHECK(cl_send(&store, a.segment, a.index, CL_MAY_WAIT, &sent) == CL_OK);
    strcpy((char *)a.data, "sent");
    release(&store, &a); /* now only the message holds it */
    audit(&store);
    open_store(&other, 1);
    CHECK(cl_load(&other, &sent, CL_MAY_WAIT, &b) == CL_OK && strcmp((char *)b.data, "sent") == 0);
    CHECK(store.control->messages == 0);
    cl_block_ref again;
    CHECK(cl_load(&other, &sent, CL_MAY_WAIT, &again) == CL_OK && again.data == b.data); /* a hold remains */
    release(&other, &again);
    audit(&store);
    release(&other, &b);
    CHECK(cl_load(&other, &sent, CL_MAY_WAIT, &b) == CL_STALE);
    CHECK(cl_alloc(&store, 5000, CL_MAY_WAIT, &a) == CL_OK && a.segment == sent.segment && a.index == sent.index);
    CHECK(cl_load(&other, &sent, CL_MAY_WAIT, &b) == CL_STALE); /* bytes of another block are there now */
    old = sent;
    old.segment_id++;
    CHECK(cl_load(&other, &old, CL_MAY_WAIT, &b) == CL_STALE);

    CHECK(cl_send(&store, a.segment, a.index, CL_MAY_WAIT, &sent) == CL_OK);
    CHECK(cl_unsend(&store, sent.hold, sent.nonce + 1, CL_MAY_WAIT) == CL_OK && store.control->messages == 1);
    CHECK(cl_unsend(&store, sent.hold, sent.nonce, CL_MAY_WAIT) == CL_OK && store.control->messages == 0);
    CHECK(cl_draft(&store, a.segment, a.index, CL_MAY_WAIT, &sent) == CL_OK && store.control->messages == 0);
    CHECK(cl_mail(&store, sent.hold, sent.nonce + 1, CL_MAY_WAIT) == CL_CORRUPT);
    CHECK(cl_mail(&store, sent.hold, sent.nonce, CL_MAY_WAIT) == CL_OK && store.control->messages == 1);
    CHECK(cl_mail(&store, sent.hold, sent.nonce, CL_MAY_WAIT) == CL_CORRUPT); /* it is a message already */
    audit(&store);
    CHECK(cl_load(&other, &sent, CL_MAY_WAIT, &b) == CL_OK && b.segment == a.segment && store.control->messages == 0);
    release(&other, &b);
    store.settings.message_ttl_ns = 1;
    CHECK(cl_send(&store, a.segment, a.index, CL_MAY_WAIT, &sent) == CL_OK && store.control->messages == 1);
    CHECK(cl_reap(&store, CL_MAY_WAIT, NULL) == CL_OK && store.control->messages == 0); /* it has expired */
    store.settings.message_ttl_ns = 0;

    pid_t child = fork(); /* a family of its own sends and ends */
    if (child == 0) {
        cl_store own;
        cl_block_ref r;
        open_store(&own, 2);
        CHECK(cl_alloc(&own, 100000, CL_MAY_WAIT, &r) == CL_OK);
        CHECK(cl_send(&own, r.segment, r.index, CL_MAY_WAIT, &sent) == CL_OK);
        _exit(0);
    }
    CHECK(ended(child));
    CHECK(cl_reap(&store, CL_MAY_WAIT, NULL) == CL_OK && store.control->messages == 0);
    audit(&store);

    test_in_itself();

    cl_named named;
    CHECK(cl_publish(&store, "camera", 6, a.segment, a.index, 4000, 20, 0, CL_MAY_WAIT) == CL_OK);
    CHECK(cl_publish(&other, "camera", 6, a.segment, a.index, 0, 0, 0, CL_MAY_WAIT) == CL_EXISTS);
    CHECK(cl_lookup(&other, "camera", 6, CL_MAY_WAIT, &named) == CL_OK && named.spec_offset == 4000);
    CHECK(cl_lookup(&other, "camer", 5, CL_MAY_WAIT, &named) == CL_MISSING);
    CHECK(cl_load(&other, &named.address, CL_MAY_WAIT, &b) == CL_OK);
    release(&store, &a);
    CHECK(cl_lookup(&other, "camera", 6, CL_MAY_WAIT, &named) == CL_OK); /* the process that attached it holds it */
    audit(&store);
    release(&other, &b);
    CHECK(cl_lookup(&other, "camera", 6, CL_MAY_WAIT, &named) == CL_MISSING); /* gone with its block */
    CHECK(cl_alloc(&store, 5000, CL_MAY_WAIT, &a) == CL_OK);
    CHECK(cl_publish(&store, "kept", 4, a.segment, a.index, 0, 0, 1, CL_MAY_WAIT) == CL_OK);
    release(&store, &a);
    CHECK(cl_lookup(&other, "kept", 4, CL_MAY_WAIT, &named) == CL_OK);
    CHECK(cl_unpublish_of(&other, "kept", 4, a.segment, a.index + 1, CL_MAY_WAIT) == CL_MISSING); /* another block */
    CHECK(cl_lookup(&other, "kept", 4, CL_MAY_WAIT, &named) == CL_OK);
    CHECK(cl_unpublish_of(&other, "kept", 4, a.segment, a.index, CL_MAY_WAIT) == CL_OK);
    CHECK(cl_unpublish_of(&other, "kept", 4, a.segment, a.index, CL_MAY_WAIT) == CL_MISSING &&
          store.control->persistent == 0);
    CHECK(cl_alloc(&store, 5000, CL_MAY_WAIT, &a) == CL_OK);
    CHECK(cl_publish(&store, "kept", 4, a.segment, a.index, 0, 0, 1, CL_MAY_WAIT) == CL_OK);
    release(&store, &a);
    CHECK(cl_unpublish(&other, "kept", 4, CL_MAY_WAIT) == CL_OK && store.control->persistent == 0);
    CHECK(cl_unpublish(&other, "kept", 4, CL_MAY_WAIT) == CL_MISSING);
    for (int i = 0; i < 100; i++) { /* more names than the first table holds */
        char name[16];
        cl_block_ref r;
        CHECK(cl_alloc(&store, 10, CL_MAY_WAIT, &r) == CL_OK);
        CHECK(cl_publish(&store, name, (uint32_t)snprintf(name, sizeof name, "n%d", i), r.segment, r.index, 0, 0, 0,
                         CL_MAY_WAIT) == CL_OK);
    }
    audit(&store);
    CHECK(cl_trim(&store, 0, CL_MAY_WAIT, &freed) == CL_OK);
    CHECK(cl_store_leave(&other) == 0);
    CHECK(cl_store_leave(&store) == 1 && count_files("") == 0);
    remove_directory();
    puts("holds: ok");
    return 0;
}
