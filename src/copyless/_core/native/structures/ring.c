#define _GNU_SOURCE
#include "ring.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

#define OWED_SLOT 0x80000000u /* in `owed`: a slot to be given up; the rest counts loans */
#define DETACH_SLICES 20

static uint64_t aligned(uint64_t n, uint64_t to)
{
    return (n + to - 1) / to * to;
}

static uint64_t spec_at(uint32_t slots)
{
    return sizeof(cl_ring_head) + slots * (sizeof(cl_slot) + sizeof(uint32_t));
}

static uint64_t data_at(uint32_t slots, uint64_t spec)
{
    return aligned(spec_at(slots) + spec, CL_PAGE);
}

uint64_t cl_ring_bytes(uint32_t slots, uint64_t stride, uint64_t spec)
{
    return data_at(slots, spec) + slots * stride;
}

void cl_ring_begin(cl_ring_head *h, uint32_t slots, uint64_t stride, uint64_t spec)
{
    h->head.number = slots;
    h->head.spare[0] = stride;
    h->head.spare[2] = spec;
    h->nfree = slots;
}

uint8_t *cl_ring_spec(cl_ring_head *h, uint32_t slots)
{
    return (uint8_t *)h + spec_at(slots);
}

int cl_ring_attach(cl_ring *r, cl_store *store, cl_ring_head *h, uint64_t capacity, uint32_t number)
{
    memset(r, 0, sizeof *r);
    if (capacity < sizeof *h) {
        return cl_fail(CL_CORRUPT, 0, "block %u of %llu bytes holds no ring", number, (unsigned long long)capacity);
    }
    const cl_head is = cl_head_copy(&h->head);
    uint32_t slots = is.number;
    uint64_t stride = is.spare[0], spec = is.spare[2];
    if (is.magic != CL_OBJECT_MAGIC || is.kind != CL_KIND_RING || slots < 2 || slots > CL_RING_SLOTS_MAX ||
        spec > capacity || stride > capacity / slots || cl_ring_bytes(slots, stride, spec) > capacity ||
        is.spare[3] > INT64_MAX) {
        return cl_fail(CL_CORRUPT, 0, "block %u holds no sound ring (%u slots of %llu bytes in %llu)", number, slots,
                       (unsigned long long)stride, (unsigned long long)capacity);
    }
    r->loans = calloc(slots, 2 * sizeof *r->loans);
    if (r->loans == NULL) {
        return cl_fail(CL_SYSTEM, 12, "a table of %u loans", slots);
    }
    r->owed = (cl_au32 *)(void *)(r->loans + slots);
    r->store = store;
    r->head = h;
    r->by_seq = (uint32_t *)(void *)((uint8_t *)h + sizeof *h + slots * sizeof(cl_slot));
    r->data = (uint8_t *)h + data_at(slots, spec);
    r->spec = cl_ring_spec(h, slots);
    r->slots = slots;
    r->stride = stride;
    r->spec_bytes = spec;
    r->flags = is.flags;
    r->block_timeout_ns = (int64_t)is.spare[3];
    return CL_OK;
}

/* ---- what is read of the ring, bounded */

/* The highest sequence number given. */
static int last_of(const cl_ring *r, uint64_t *last)
{
    *last = *(const volatile uint64_t *)&r->head->last;
    return *last < CL_RING_SEQ_MAX
               ? CL_OK
               : cl_fail(CL_CORRUPT, 0, "ring: the last frame has number %llu", (unsigned long long)*last);
}

/* The slot with frame `seq`, or NULL: it is not there any more. */
static cl_slot *slot_of(const cl_ring *r, uint64_t seq, uint32_t *at)
{
    uint32_t i = *(const volatile uint32_t *)&r->by_seq[seq % r->slots];
    if ((i >= r->slots && !CL_MUTANT(ring_index_unbounded)) || r->head->slots[i].state != CL_SLOT_PUBLISHED ||
        r->head->slots[i].seq != seq) {
        return NULL;
    }
    *at = i;
    return &r->head->slots[i];
}

/* The slot of the newest frame, + 1; 0: there is none. */
static int newest_of(const cl_ring *r, uint32_t *newest)
{
    uint64_t last;
    int rc = last_of(r, &last);
    *newest = *(const volatile uint32_t *)&r->head->newest;
    if (rc != CL_OK || *newest == 0) {
        return rc;
    }
    if (*newest > r->slots) {
        return cl_fail(CL_CORRUPT, 0, "ring: the newest frame is in slot %u of %u", *newest - 1, r->slots);
    }
    const cl_slot *s = &r->head->slots[*newest - 1];
    if (s->state != CL_SLOT_PUBLISHED || s->seq == 0 || s->seq > last) {
        return cl_fail(CL_CORRUPT, 0, "ring: the newest frame, in slot %u, has state %u and number %llu of %llu",
                       *newest - 1, s->state, (unsigned long long)s->seq, (unsigned long long)last);
    }
    return CL_OK;
}

/* ---- the lock, and what is left to do when it comes from the dead */

static int on_loan(const cl_slot *s)
{
    uint64_t any = 0;
    for (uint32_t i = 0; i < CL_RING_MEMBERS / 64; i++) {
        any |= s->loans[i];
    }
    return any != 0;
}

/* Computed from the slots alone. What no sound ring holds is taken out of use: a state or a number that there is not, a writer
 * or a reader that is no member. */
static void rebuild(cl_ring *r)
{
    cl_ring_head *h = r->head;
    uint32_t n = r->slots, nfree = 0, newest = 0;
    uint32_t ours = r->member != 0 && r->self == cl_self(r->store) ? r->member - 1 : UINT32_MAX;
    uint64_t last = h->last < CL_RING_SEQ_MAX ? h->last : 0, members[CL_RING_MEMBERS / 64] = {0};
    for (uint32_t m = 0; m < CL_RING_MEMBERS; m++) {
        members[m / 64] |= (uint64_t)(h->members[m] != 0) << (m % 64);
    }
    for (uint32_t i = 0; i < n; i++) {
        cl_slot *s = &h->slots[i];
        for (uint32_t k = 0; k < CL_RING_MEMBERS / 64; k++) {
            s->loans[k] &= members[k];
        }
        if (ours != UINT32_MAX) { /* our own loans we know better */
            uint64_t bit = (uint64_t)1 << (ours % 64);
            s->loans[ours / 64] = r->loans[i] != 0 ? s->loans[ours / 64] | bit : s->loans[ours / 64] & ~bit;
        }
        uint32_t writer = s->writer;
        if ((s->state == CL_SLOT_WRITING && (writer == 0 || writer > CL_RING_MEMBERS || h->members[writer - 1] == 0)) ||
            (s->state == CL_SLOT_PUBLISHED && (s->seq == 0 || s->seq >= CL_RING_SEQ_MAX)) ||
            s->state > CL_SLOT_PUBLISHED) {
            s->state = CL_SLOT_FREE;
        }
        if (s->state == CL_SLOT_PUBLISHED && s->seq > last) {
            last = s->seq;
        }
    }
    for (uint32_t i = 0; i < n; i++) {
        cl_slot *s = &h->slots[i];
        if (s->state == CL_SLOT_PUBLISHED && s->seq + n <= last && !on_loan(s)) {
            s->state = CL_SLOT_FREE;
        }
        if (s->state == CL_SLOT_PUBLISHED) {
            if (s->seq + n > last) {
                r->by_seq[s->seq % n] = i;
            }
            newest = newest == 0 || s->seq > h->slots[newest - 1].seq ? i + 1 : newest;
        }
        nfree += s->state == CL_SLOT_FREE;
    }
    h->last = last;
    h->nfree = nfree;
    h->newest = newest;
}

/* What dead members were writing, had on loan or subscribed to. 1: something changed. */
static int bury(cl_ring *r)
{
    cl_ring_head *h = r->head;
    int changed = 0;
    for (uint32_t m = 0; m < CL_RING_MEMBERS; m++) {
        if (h->members[m] == 0 || !cl_is_dead(r->store, h->members[m])) {
            continue;
        }
        for (uint32_t i = 0; i < r->slots; i++) {
            cl_slot *s = &h->slots[i];
            if (s->state == CL_SLOT_WRITING && s->writer == m + 1) {
                s->state = CL_SLOT_FREE;
                CL_KILL_POINT();
            }
            s->loans[m / 64] &= ~((uint64_t)1 << (m % 64));
        }
        CL_KILL_POINT();
        h->members[m] = 0; /* last: killed before, it is buried again */
        CL_KILL_POINT();
        changed = 1;
    }
    for (uint32_t i = 0; i < CL_RING_READERS; i++) {
        if (h->readers[i].owner != 0 && !CL_MUTANT(ring_dead_readers_kept) &&
            cl_is_dead(r->store, h->readers[i].owner)) {
            h->readers[i].owner = 0;
            changed = 1;
        }
    }
    if (changed) {
        rebuild(r);
    }
    return changed;
}

/* n loans of ours come back. 1: the last of them: writers are to look. */
static int take_back(cl_ring *r, uint32_t slot, uint32_t n)
{
    cl_ring_head *h = r->head;
    uint32_t had = r->loans[slot];
    r->loans[slot] -= n < had ? n : had;
    if (had == 0 || r->loans[slot] != 0) {
        return 0;
    }
    cl_slot *s = &h->slots[slot];
    uint32_t m = r->member - 1;
    s->loans[m / 64] &= ~((uint64_t)1 << (m % 64));
    CL_KILL_POINT();
    if (s->state == CL_SLOT_PUBLISHED && s->seq + r->slots <= h->last && !on_loan(s)) {
        s->state = CL_SLOT_FREE; /* as old as that, nobody looks for it any more */
        CL_KILL_POINT();
        h->nfree++;
        if (h->newest == slot + 1) { /* those that were newer are being written over */
            rebuild(r);
        }
    }
    return 1;
}

/* 1: it was being written by us. */
static int give_up(cl_ring *r, uint32_t slot)
{
    cl_slot *s = &r->head->slots[slot];
    if (s->state != CL_SLOT_WRITING || s->writer != r->member || r->self != cl_self(r->store)) {
        return 0;
    }
    s->state = CL_SLOT_FREE;
    CL_KILL_POINT();
    r->head->nfree++;
    return 1;
}

/* What this process put off while it could not enter. */
static void do_what_was_put_off(cl_ring *r)
{
    int changed = 0;
    if (r->member == 0 || r->self != cl_self(r->store)) {
        return; /* a forked child's parent's */
    }
    for (uint32_t i = 0; i < r->slots; i++) {
        uint32_t owed = atomic_exchange(&r->owed[i], 0);
        if (owed & OWED_SLOT) {
            changed |= give_up(r, i);
        }
        if (owed & ~OWED_SLOT) {
            changed |= take_back(r, i, owed & ~OWED_SLOT);
        }
    }
    for (uint32_t i = 0; i < CL_RING_READERS; i++) {
        uint64_t bit = (uint64_t)1 << (i % 64);
        if ((atomic_fetch_and(&r->unsubscribed[i / 64], ~bit) & bit) && r->head->readers[i].owner == r->self) {
            r->head->readers[i].owner = 0;
            changed = 1;
        }
    }
    if (changed) {
        cl_bell_ring(&r->head->changed, 1);
    }
}

/* With CL_MAY_WAIT for a slice, and not beyond the deadline: then CL_TIMEOUT. With a deadline of 0 it does not sleep. */
static int enter(cl_ring *r, int64_t deadline_ns, unsigned flags)
{
    int rc;
    if (!(flags & CL_MAY_WAIT)) {
        rc = cl_mutex_lock(r->store, &r->head->lock, 0, &r->spin_lock);
    } else if (deadline_ns == 0) {
        rc = cl_mutex_try(r->store, &r->head->lock, &r->spin_lock);
        rc = rc == CL_AGAIN ? CL_TIMEOUT : rc;
    } else {
        int64_t until = cl_monotonic_ns() + CL_SLICE_NS;
        int last = deadline_ns <= until;
        rc = cl_mutex_lock(r->store, &r->head->lock, last ? deadline_ns : until, &r->spin_lock);
        rc = rc == CL_TIMEOUT && !last ? CL_AGAIN : rc;
    }
    if (rc == CL_OWNER_DIED) {
        CL_KILL_POINT();
        if (!CL_MUTANT(ring_death_not_buried)) {
            bury(r);
        }
        if (!CL_MUTANT(ring_death_not_rebuilt)) {
            rebuild(r);
        }
        rc = CL_OK;
    }
    if (rc == CL_OK && atomic_load_explicit(&r->owing, memory_order_relaxed)) { /* a hint: what it misses stays owed */
        atomic_store(&r->owing, 0);
        do_what_was_put_off(r);
    }
    return rc;
}

static void leave(cl_ring *r)
{
    CL_KILL_POINT();
    cl_unlock_own(&r->head->lock, cl_self(r->store));
}

/* For what must be done, a writer's slot given back, a loan returned: a slice at most, of which only the first of many calls
 * makes use. Who holds the lock for longer is stopped: what is to be done is noted, and done when we next enter. */
static int enter_briefly(cl_ring *r)
{
    int rc = enter(r, 0, 0);
    if (rc == CL_AGAIN) {
        rc = enter(r, atomic_load(&r->owing) ? 0 : CL_FOREVER, CL_MAY_WAIT);
    }
    return rc == CL_TIMEOUT ? CL_AGAIN : rc;
}

/* Wakes one sleeper, who wakes two more, and so on: what a writer pays does not grow with its readers. A chain that a
 * death breaks goes on when the others look again by themselves, after a slice. */
static int wait_for(cl_au32 *bell, uint32_t seen, int64_t deadline_ns, cl_spin *spin)
{
    int rc = cl_bell_wait(bell, seen, deadline_ns, spin);
    if (rc == CL_OK) {
        CL_KILL_POINT();
        cl_wake(bell, 2);
    }
    return rc;
}

/* Become a member, unless one is already. Under the lock. */
static int join(cl_ring *r)
{
    cl_ring_head *h = r->head;
    uint32_t self = cl_self(r->store);
    if (r->member != 0 && r->self == self) {
        return CL_OK;
    }
    for (int look = 0; look < 2; look++) {
        for (uint32_t m = 0; m < CL_RING_MEMBERS; m++) {
            if (h->members[m] == 0) {
                h->members[m] = self;
                r->self = self;
                r->member = m + 1;
                memset(r->loans, 0, r->slots * sizeof *r->loans);
                memset((void *)r->owed, 0, r->slots * sizeof *r->owed);
                memset((void *)r->unsubscribed, 0, sizeof r->unsubscribed);
                CL_KILL_POINT();
                return CL_OK;
            }
        }
        bury(r);
    }
    return cl_fail(CL_TABLE_FULL, 0, "%u processes use this ring already", CL_RING_MEMBERS);
}

void cl_ring_detach(cl_ring *r)
{
    if (r->head != NULL) {
        if (r->member != 0 && r->self == cl_self(r->store)) {
            int rc = CL_AGAIN;
            for (int slices = 0; rc == CL_AGAIN && slices < DETACH_SLICES; slices++) {
                rc = enter(r, CL_FOREVER, CL_MAY_WAIT);
            }
            if (rc == CL_OK) { /* else we are a member as long as we live: there is nobody left to do it later */
                r->head->members[r->member - 1] = 0; /* without loans by now: each keeps the ring */
                leave(r);
            }
        }
        r->head = NULL;
        free(r->loans);
        r->loans = NULL;
    }
}

/* ---- writing */

/* The last frame that all who block have had; UINT64_MAX: nobody blocks. */
static uint64_t needed_after(const cl_ring_head *h)
{
    uint64_t cursor = UINT64_MAX;
    for (uint32_t i = 0; i < CL_RING_READERS; i++) {
        const cl_reader *reader = &h->readers[i];
        if (reader->owner != 0 && reader->policy == CL_READER_BLOCKS && reader->cursor < cursor) {
            cursor = reader->cursor;
        }
    }
    return cursor;
}

/* A slot to write into: a free one, else the oldest frame that nobody needs. UINT32_MAX: none. */
static int find_slot(cl_ring *r, uint32_t *found)
{
    cl_ring_head *h = r->head;
    uint32_t n = r->slots, i = 0;
    uint64_t last;
    int rc = last_of(r, &last);
    *found = UINT32_MAX;
    if (rc != CL_OK) {
        return rc;
    }
    for (i = 0; h->nfree != 0 && i < n; i++) {
        if (h->slots[i].state == CL_SLOT_FREE) {
            h->nfree--;
            *found = i;
            return CL_OK;
        }
    }
    uint64_t needed = needed_after(h);
    for (uint64_t s = last >= n ? last - n + 1 : 1; s <= last && s <= needed; s++) {
        const cl_slot *slot = slot_of(r, s, &i);
        if (slot != NULL && !on_loan(slot)) {
            *found = i;
            return CL_OK;
        }
    }
    return CL_OK;
}

static int demote(cl_ring *r)
{
    cl_ring_head *h = r->head;
    uint64_t cursor = needed_after(h);
    int any = 0;
    for (uint32_t i = 0; i < CL_RING_READERS; i++) {
        cl_reader *reader = &h->readers[i];
        if (reader->owner != 0 && reader->policy == CL_READER_BLOCKS && reader->cursor == cursor) {
            reader->demoted = 1;
            reader->policy = CL_READER_DROPS;
            any = 1;
        }
    }
    return any;
}

int cl_ring_claim(cl_ring *r, int64_t deadline_ns, unsigned flags, int64_t *since_ns, uint32_t *slot)
{
    cl_ring_head *h = r->head;
    for (;;) {
        if (atomic_load_explicit(&h->state, memory_order_relaxed) != CL_RING_OPEN) {
            return CL_CLOSED;
        }
        int rc = enter(r, deadline_ns, flags);
        if (rc == CL_OK && (rc = join(r)) != CL_OK) {
            leave(r);
        }
        if (rc != CL_OK) {
            return rc;
        }
        uint32_t i;
        rc = find_slot(r, &i);
        if (rc != CL_OK) {
            leave(r);
            return rc;
        }
        if (i == UINT32_MAX && (flags & CL_MAY_WAIT)) {
            int64_t now = cl_monotonic_ns(), most = r->block_timeout_ns;
            if (*since_ns == 0) {
                *since_ns = now;
                h->waits++;
            }
            int changed = CL_MUTANT(ring_writer_buries_nobody) ? 0 : bury(r);
            if (!changed) {
                rebuild(r); /* a slot that a wild word has taken out of use */
            }
            if (changed || h->nfree != 0 || (most != 0 && now - *since_ns >= most && demote(r))) {
                find_slot(r, &i);
            }
        }
        if (i != UINT32_MAX) {
            cl_slot *s = &h->slots[i];
            int was_newest = h->newest == i + 1;
            s->writer = CL_MUTANT(ring_writer_after_the_state) ? s->writer : r->member;
            CL_KILL_POINT();
            s->state = CL_SLOT_WRITING;
            CL_KILL_POINT();
            if (CL_MUTANT(ring_writer_after_the_state)) {
                s->writer = r->member;
            }
            if (was_newest) {
                rebuild(r);
            }
            *slot = i;
            leave(r);
            return CL_OK;
        }
        uint32_t seen = atomic_load(&h->changed);
        leave(r);
        if (deadline_ns == 0 || !(flags & CL_MAY_WAIT)) {
            return flags & CL_MAY_WAIT ? CL_TIMEOUT : CL_AGAIN;
        }
        rc = wait_for(&h->changed, seen, deadline_ns, &r->spin_write);
        if (rc != CL_OK) {
            return rc;
        }
    }
}

int cl_ring_publish(cl_ring *r, uint32_t slot, unsigned flags, cl_frame *out)
{
    cl_ring_head *h = r->head;
    int rc = enter(r, CL_FOREVER, flags);
    if (rc != CL_OK) {
        return rc;
    }
    cl_slot *s = &h->slots[slot];
    if (s->state != CL_SLOT_WRITING || s->writer != r->member || r->self != cl_self(r->store)) {
        leave(r);
        return cl_fail(CL_STALE, 0, "this process is not writing slot %u", slot);
    }
    uint64_t last;
    uint32_t newest;
    rc = last_of(r, &last);
    if (rc != CL_OK || (rc = newest_of(r, &newest)) != CL_OK) {
        leave(r);
        return rc;
    }
    s->seq = last + 1;
    s->time_ns = cl_monotonic_ns();
    CL_KILL_POINT();
    uint32_t before = r->by_seq[s->seq % r->slots];
    r->by_seq[s->seq % r->slots] = slot;
    CL_KILL_POINT();
    if (!CL_MUTANT(ring_publishes_unfenced)) {
        atomic_thread_fence(memory_order_release);
    }
    s->state = CL_SLOT_PUBLISHED;
    CL_KILL_POINT();
    h->last = s->seq;
    h->newest = slot + 1;
    CL_KILL_POINT();
    if (before < r->slots && h->slots[before].state == CL_SLOT_PUBLISHED && !on_loan(&h->slots[before]) &&
        h->slots[before].seq + r->slots <= h->last) {
        h->slots[before].state = CL_SLOT_FREE; /* it was passed over while it was on loan */
        CL_KILL_POINT();
        h->nfree++;
    }
    *out = (cl_frame){.slot = slot, .seq = s->seq, .time_ns = s->time_ns};
    leave(r);
    cl_bell_ring(&h->published, 1);
    return CL_OK;
}

int cl_ring_give_up(cl_ring *r, uint32_t slot)
{
    int rc = enter_briefly(r);
    if (rc == CL_OK) {
        give_up(r, slot);
        leave(r);
        cl_bell_ring(&r->head->changed, 1);
    } else if (rc == CL_AGAIN) {
        atomic_fetch_or(&r->owed[slot], OWED_SLOT);
        atomic_store(&r->owing, 1);
        rc = CL_OK;
    }
    return rc;
}

/* ---- reading */

static void lend(cl_ring *r, uint32_t slot, cl_frame *out)
{
    cl_slot *s = &r->head->slots[slot];
    uint32_t m = r->member - 1;
    s->loans[m / 64] |= (uint64_t)1 << (m % 64);
    CL_KILL_POINT();
    r->loans[slot]++;
    *out = (cl_frame){.slot = slot, .seq = s->seq, .time_ns = s->time_ns};
}

int cl_ring_latest(cl_ring *r, uint64_t after, int64_t deadline_ns, unsigned flags, cl_frame *out)
{
    cl_ring_head *h = r->head;
    for (;;) {
        uint32_t seen = atomic_load(&h->published);
        int shut = atomic_load_explicit(&h->state, memory_order_relaxed) != CL_RING_OPEN;
        int rc = enter(r, deadline_ns, flags);
        if (rc == CL_OK && (rc = join(r)) != CL_OK) {
            leave(r);
        }
        if (rc != CL_OK) {
            return rc;
        }
        uint32_t newest;
        rc = newest_of(r, &newest);
        if (rc == CL_OK && newest != 0 && h->slots[newest - 1].seq > after) {
            lend(r, newest - 1, out);
            leave(r);
            return CL_OK;
        }
        leave(r);
        if (rc != CL_OK) {
            return rc;
        }
        if (shut) {
            return CL_CLOSED;
        }
        if (deadline_ns == 0 || !(flags & CL_MAY_WAIT)) {
            return flags & CL_MAY_WAIT ? CL_TIMEOUT : CL_AGAIN;
        }
        rc = wait_for(&h->published, seen, deadline_ns, &r->spin_read);
        if (rc != CL_OK) {
            return rc;
        }
    }
}

int cl_ring_last(cl_ring *r, uint32_t most, unsigned flags, cl_frame *out, uint32_t *n)
{
    int rc = enter(r, CL_FOREVER, flags);
    if (rc == CL_OK && (rc = join(r)) != CL_OK) {
        leave(r);
    }
    *n = 0;
    if (rc != CL_OK) {
        return rc;
    }
    uint64_t last;
    rc = last_of(r, &last);
    if (rc != CL_OK) {
        leave(r);
        return rc;
    }
    uint64_t first = last >= r->slots ? last - r->slots + 1 : 1;
    for (uint64_t s = last; s >= first && s != 0 && *n < most; s--) { /* newest first */
        uint32_t i;
        if (slot_of(r, s, &i) != NULL) {
            lend(r, i, &out[(*n)++]);
        }
    }
    leave(r);
    for (uint32_t i = 0; i < *n / 2; i++) {
        cl_frame swap = out[i];
        out[i] = out[*n - 1 - i];
        out[*n - 1 - i] = swap;
    }
    return CL_OK;
}

int cl_ring_return(cl_ring *r, uint32_t slot)
{
    if (r->self != cl_self(r->store)) {
        return CL_OK; /* in a forked child: the parent's loan */
    }
    int rc = enter_briefly(r);
    if (rc == CL_AGAIN) {
        atomic_fetch_add(&r->owed[slot], 1);
        atomic_store(&r->owing, 1);
        return CL_OK;
    }
    if (rc != CL_OK) {
        return rc;
    }
    int last = take_back(r, slot, 1);
    leave(r);
    if (last) {
        cl_bell_ring(&r->head->changed, 1);
    }
    return CL_OK;
}

int cl_ring_subscribe(cl_ring *r, uint32_t policy, uint64_t since, unsigned flags, uint32_t *reader)
{
    cl_ring_head *h = r->head;
    int rc = enter(r, CL_FOREVER, flags);
    if (rc == CL_OK && (rc = join(r)) != CL_OK) {
        leave(r);
    }
    if (rc != CL_OK) {
        return rc;
    }
    for (int look = 0; look < 2; look++) {
        for (uint32_t i = 0; i < CL_RING_READERS; i++) {
            cl_reader *q = &h->readers[i];
            if (q->owner == 0) {
                *q = (cl_reader){.owner = 0, .policy = policy, .cursor = since < h->last ? since : h->last};
                CL_KILL_POINT();
                q->owner = r->self;
                *reader = i;
                leave(r);
                return CL_OK;
            }
        }
        bury(r);
    }
    leave(r);
    return cl_fail(CL_TABLE_FULL, 0, "%u readers are subscribed already", CL_RING_READERS);
}

int cl_ring_unsubscribe(cl_ring *r, uint32_t reader)
{
    int rc = r->self == cl_self(r->store) ? enter_briefly(r) : CL_STALE;
    if (rc == CL_OK) {
        r->head->readers[reader].owner = 0;
        leave(r);
        cl_bell_ring(&r->head->changed, 1);
    } else if (rc == CL_AGAIN) {
        atomic_fetch_or(&r->unsubscribed[reader / 64], (uint64_t)1 << (reader % 64));
        atomic_store(&r->owing, 1);
        rc = CL_OK;
    }
    return rc;
}

int cl_ring_next(cl_ring *r, uint32_t reader, int64_t deadline_ns, unsigned flags, cl_frame *out)
{
    cl_ring_head *h = r->head;
    uint32_t n = r->slots;
    if (r->self != cl_self(r->store)) {
        return cl_fail(CL_STALE, 0, "this subscription is the parent process's: subscribe anew");
    }
    for (;;) {
        uint32_t seen = atomic_load(&h->published);
        int shut = atomic_load_explicit(&h->state, memory_order_relaxed) != CL_RING_OPEN;
        int rc = enter(r, deadline_ns, flags);
        if (rc != CL_OK) {
            return rc;
        }
        cl_reader *q = &h->readers[reader];
        uint64_t cursor = *(const volatile uint64_t *)&q->cursor, last, s = cursor + 1;
        rc = last_of(r, &last);
        if (rc == CL_OK && (cursor > last || q->owner != r->self)) {
            rc = cl_fail(CL_CORRUPT, 0, "ring: reader %u has had frame %llu of %llu", reader,
                         (unsigned long long)cursor, (unsigned long long)last);
        }
        if (rc != CL_OK) {
            leave(r);
            return rc;
        }
        if (last >= n && s < last - n + 1) {
            s = last - n + 1;
        }
        for (; s <= last; s++) {
            uint32_t i;
            if (slot_of(r, s, &i) != NULL) {
                lend(r, i, out);
                out->missed = s - cursor - 1;
                q->dropped += out->missed;
                q->taken++;
                CL_KILL_POINT();
                q->cursor = s; /* last: killed before, the reader is dead and this of no interest */
                int blocks = q->policy == CL_READER_BLOCKS;
                leave(r);
                if (blocks) {
                    cl_bell_ring(&h->changed, 1);
                }
                return CL_OK;
            }
        }
        leave(r);
        if (shut) {
            return CL_CLOSED;
        }
        if (deadline_ns == 0 || !(flags & CL_MAY_WAIT)) {
            return flags & CL_MAY_WAIT ? CL_TIMEOUT : CL_AGAIN;
        }
        rc = wait_for(&h->published, seen, deadline_ns, &r->spin_read);
        if (rc != CL_OK) {
            return rc;
        }
    }
}

void cl_ring_shut(cl_ring *r)
{
    atomic_store(&r->head->state, CL_RING_SHUT);
    CL_KILL_POINT();
    cl_bell_ring(&r->head->published, INT_MAX);
    cl_bell_ring(&r->head->changed, INT_MAX);
}

int cl_ring_bury(cl_ring *r, unsigned flags)
{
    int rc = enter(r, CL_FOREVER, flags);
    if (rc == CL_OK) {
        bury(r);
        leave(r);
    }
    return rc;
}
