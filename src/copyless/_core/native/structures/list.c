#define _GNU_SOURCE
#include "list.h"

#include <string.h>

#define RELAXED memory_order_relaxed
#define ALIGN(n) (((n) + 7) / 8 * 8)
#define LENGTH_SHIFT 8
#define LONGEST ((uint64_t)1 << 55)

uint64_t cl_list_bytes(uint64_t nslots, const uint64_t *rooms)
{
    if (nslots > LONGEST / sizeof(cl_list_slot)) {
        return 0;
    }
    uint64_t total = sizeof(cl_list) + nslots * sizeof(cl_list_slot);
    for (uint64_t i = 0; i < nslots; i++) {
        if (rooms[i] > LONGEST || (total += 2 * ALIGN(rooms[i])) > LONGEST) {
            return 0;
        }
    }
    return total;
}

void cl_list_begin(cl_list *l, uint64_t nslots, const uint64_t *rooms, uint64_t registry)
{
    uint64_t at = sizeof(cl_list) + nslots * sizeof(cl_list_slot);
    for (uint64_t i = 0; i < nslots; i++) {
        l->slots[i].room = rooms[i];
        l->slots[i].offset = at;
        at += 2 * ALIGN(rooms[i]);
    }
    l->nslots = nslots;
    l->registry = registry;
    l->nbytes = at;
    l->magic = CL_LIST_MAGIC;
}

int cl_list_check(const cl_list *l, uint64_t capacity, uint64_t registry, uint64_t *nslots)
{
    if (capacity < sizeof *l || l->magic != CL_LIST_MAGIC) {
        return cl_fail(CL_CORRUPT, 0, "it does not begin with a list's magic number");
    }
    uint64_t n = *(const volatile uint64_t *)&l->nslots, nbytes = *(const volatile uint64_t *)&l->nbytes;
    if (nbytes > capacity || n > (capacity - sizeof *l) / sizeof(cl_list_slot)) {
        return cl_fail(CL_CORRUPT, 0, "its header records %llu bytes and %llu items, but it has %llu bytes",
                       (unsigned long long)nbytes, (unsigned long long)n, (unsigned long long)capacity);
    }
    *nslots = n;
    return l->registry == registry ? CL_OK : cl_fail(CL_STALE, 0, "it belongs to another storage directory");
}

/* Room and offset of a slot's sides. Each is read once and then checked: the sides are behind the slots and within the
 * list. */
static int place(const cl_list *l, uint64_t capacity, uint64_t nslots, uint64_t at, uint64_t *room, uint64_t *offset)
{
    if (at >= nslots) {
        return cl_fail(CL_CORRUPT, 0, "item %llu does not exist in a list of %llu items", (unsigned long long)at,
                       (unsigned long long)nslots);
    }
    *room = *(const volatile uint64_t *)&l->slots[at].room;
    *offset = *(const volatile uint64_t *)&l->slots[at].offset;
    int outside = *room > LONGEST || *offset > capacity || *offset < sizeof *l + nslots * sizeof(cl_list_slot) ||
                  2 * ALIGN(*room) > capacity - *offset || *offset % 8 != 0;
    if (outside && !CL_MUTANT(list_place_unchecked)) {
        return cl_fail(CL_CORRUPT, 0, "item %llu of the list records %llu bytes at offset %llu of %llu",
                       (unsigned long long)at, (unsigned long long)*room, (unsigned long long)*offset,
                       (unsigned long long)capacity);
    }
    return CL_OK;
}

/* Copy bytes that another process may be changing, word by word, so that it is no data race; a torn copy is
 * discarded. */
static void copy_out(void *to, const uint8_t *from, uint64_t n)
{
    uint8_t *out = to;
    for (; n >= 8; n -= 8, from += 8, out += 8) {
        uint64_t word = atomic_load_explicit((const cl_au64 *)(const void *)from, RELAXED);
        memcpy(out, &word, 8);
    }
    if (n != 0) {
        uint64_t word = atomic_load_explicit((const cl_au64 *)(const void *)from, RELAXED);
        memcpy(out, &word, n);
    }
}

static void copy_in(uint8_t *to, const void *from, uint64_t n)
{
    const uint8_t *in = from;
    for (; n >= 8; n -= 8, to += 8, in += 8) {
        uint64_t word;
        memcpy(&word, in, 8);
        atomic_store_explicit((cl_au64 *)(void *)to, word, RELAXED);
    }
    if (n != 0) {
        uint64_t word = 0;
        memcpy(&word, in, n);
        atomic_store_explicit((cl_au64 *)(void *)to, word, RELAXED);
    }
}

static int lock(cl_store *store, cl_list_slot *s, int64_t deadline_ns)
{
    cl_spin spin = {0};
    int rc = cl_mutex_lock(store, &s->lock, deadline_ns, &spin);
    return rc == CL_OWNER_DIED ? CL_OK : rc;
}

int cl_list_get(cl_store *store, cl_list *l, uint64_t capacity, uint64_t nslots, uint64_t at, cl_value *value,
                void *bytes, uint64_t room, int64_t deadline_ns)
{
    cl_list_slot *s = &l->slots[at];
    uint64_t has, offset;
    int rc = place(l, capacity, nslots, at, &has, &offset), locked = 0;
    if (rc != CL_OK) {
        return rc;
    }
    for (int tries = 0;; tries++) {
        if (tries == CL_LIST_TRIES) { /* writers are faster than this reader: keep them out */
            rc = lock(store, s, deadline_ns);
            if (rc != CL_OK) {
                return rc;
            }
            locked = 1;
        }
        uint64_t commit = atomic_load_explicit(&s->commit, memory_order_acquire); /* pairs with "replaced" */
        unsigned side = (unsigned)(commit & 1);
        uint64_t kind = atomic_load_explicit(&s->kind[side], RELAXED);
        value->kind = kind & 0xff;
        value->length = kind >> LENGTH_SHIFT;
        value->word = atomic_load_explicit(&s->word[side], RELAXED);
        int fits = value->length <= has;
        if (fits && value->length <= room) {
            copy_out(bytes, (uint8_t *)l + offset + side * ALIGN(has), value->length);
        }
        atomic_thread_fence(memory_order_acquire); /* the copy is complete before the second check */
        if (atomic_load_explicit(&s->commit, RELAXED) != commit && !CL_MUTANT(list_reader_looks_once)) {
            continue;
        }
        if (locked) {
            cl_unlock_own(&s->lock, cl_self(store));
        }
        if (!fits) {
            return cl_fail(CL_CORRUPT, 0, "item %llu of the list records %llu bytes and has room for %llu",
                           (unsigned long long)at, (unsigned long long)value->length, (unsigned long long)has);
        }
        return value->length <= room ? CL_OK : CL_FULL;
    }
}

int cl_list_set(cl_store *store, cl_list *l, uint64_t capacity, uint64_t nslots, uint64_t at, const cl_value *value,
                const void *bytes, int64_t deadline_ns)
{
    cl_list_slot *s = &l->slots[at];
    uint64_t has, offset;
    int rc = place(l, capacity, nslots, at, &has, &offset);
    if (rc != CL_OK) {
        return rc;
    }
    if (value->length > has) {
        return cl_fail(CL_FULL, 0, "%llu bytes do not fit into %llu bytes", (unsigned long long)value->length,
                       (unsigned long long)has);
    }
    rc = lock(store, s, deadline_ns);
    if (rc != CL_OK) {
        return rc;
    }
    uint64_t commit = atomic_load_explicit(&s->commit, RELAXED);
    unsigned side = (unsigned)((commit & 1) ^ 1);
    if (!CL_MUTANT(list_writer_unfenced)) {
        atomic_thread_fence(memory_order_release); /* readers of the next writes also see the last commit */
    }
    atomic_store_explicit(&s->kind[side], value->kind | value->length << LENGTH_SHIFT, RELAXED);
    CL_KILL_POINT();
    atomic_store_explicit(&s->word[side], value->word, RELAXED);
    copy_in((uint8_t *)l + offset + side * ALIGN(has), bytes, value->length);
    CL_KILL_POINT();
    atomic_store_explicit(&s->commit, commit + 1, memory_order_release); /* "replaced" */
    CL_KILL_POINT();
    cl_unlock_own(&s->lock, cl_self(store));
    return CL_OK;
}
