#define _GNU_SOURCE
#include "ring.h"
#include "tell.h"

#include <limits.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#define CLEARING 0x80000000u /* in this process's counts of loans: the last loan is being returned */
#define FRAMES_MAX (CL_RING_SEQ_MAX - 2)

static uint64_t aligned(uint64_t n, uint64_t to)
{
    return (n + to - 1) / to * to;
}

static uint64_t slot_bytes(uint32_t members)
{
    return aligned(sizeof(cl_slot) + members / 8, 64);
}

static uint64_t slots_at(uint32_t members)
{
    return sizeof(cl_ring_head) + members * (sizeof(cl_au32) + sizeof(cl_reader));
}

static uint64_t index_at(uint32_t slots, uint32_t members)
{
    return slots_at(members) + slots * slot_bytes(members);
}

static uint64_t spare_at(uint32_t slots, uint32_t members)
{
    return index_at(slots, members) + slots * sizeof(cl_au64);
}

static uint64_t spec_at(uint32_t slots, uint32_t members)
{
    return spare_at(slots, members) + aligned(slots, 64) / 8;
}

static uint64_t data_at(uint32_t slots, uint32_t members, uint64_t spec)
{
    return aligned(spec_at(slots, members) + spec, CL_PAGE);
}

uint32_t cl_ring_members(uint32_t wanted)
{
    return (uint32_t)aligned(wanted, 64);
}

uint64_t cl_ring_bytes(uint32_t slots, uint32_t members, uint64_t stride, uint64_t spec)
{
    return data_at(slots, members, spec) + slots * stride;
}

void cl_ring_begin(cl_ring_head *h, uint32_t slots, uint32_t members, uint64_t stride, uint64_t spec)
{
    cl_au64 *spare = (cl_au64 *)(void *)((uint8_t *)h + spare_at(slots, members));
    h->head.number = slots;
    h->head.room = members;
    h->head.spare[0] = stride;
    h->head.spare[2] = spec;
    for (uint32_t i = 0; i < slots; i += 64) {
        atomic_store(&spare[i / 64], slots - i >= 64 ? UINT64_MAX : ((uint64_t)1 << (slots - i)) - 1);
    }
}

uint8_t *cl_ring_spec(cl_ring_head *h, uint32_t slots, uint32_t members)
{
    return (uint8_t *)h + spec_at(slots, members);
}

int cl_ring_attach(cl_ring *r, cl_store *store, cl_ring_head *h, uint64_t capacity, uint32_t number)
{
    memset(r, 0, sizeof *r);
    if (capacity < sizeof *h) {
        return cl_fail(CL_CORRUPT, 0, "block %u of %llu bytes does not contain a ring", number,
                       (unsigned long long)capacity);
    }
    const cl_head is = cl_head_copy(&h->head);
    uint32_t slots = is.number, room = is.room;
    uint64_t stride = is.spare[0], spec = is.spare[2];
    if (is.magic != CL_OBJECT_MAGIC || is.kind != CL_KIND_RING || slots < 2 || slots > CL_RING_SLOTS_MAX || room == 0 ||
        room > CL_RING_MEMBERS_MAX || room % 64 != 0 || spec > capacity || stride > capacity / slots ||
        cl_ring_bytes(slots, room, stride, spec) > capacity || is.spare[1] > INT64_MAX) {
        return cl_fail(CL_CORRUPT, 0,
                       "block %u does not contain a valid ring (%u slots of %llu bytes, %u members, in %llu bytes)",
                       number, slots, (unsigned long long)stride, room, (unsigned long long)capacity);
    }
    r->loans = calloc(slots, sizeof *r->loans);
    if (r->loans == NULL) {
        return cl_fail(CL_SYSTEM, 12, "allocating a table of %u loans", slots);
    }
    uint8_t *at = (uint8_t *)h;
    r->store = store;
    r->head = h;
    r->members = (cl_au32 *)(void *)(at + sizeof *h);
    r->readers = (cl_reader *)(void *)(at + sizeof *h + room * sizeof(cl_au32));
    r->first = at + slots_at(room);
    r->index = (cl_au64 *)(void *)(at + index_at(slots, room));
    r->spare = (cl_au64 *)(void *)(at + spare_at(slots, room));
    r->data = at + data_at(slots, room, spec);
    r->spec = at + spec_at(slots, room);
    r->slots = slots;
    r->room = room;
    r->slot_bytes = slot_bytes(room);
    r->stride = stride;
    r->spec_bytes = spec;
    r->flags = is.flags;
    r->block_timeout_ns = (int64_t)is.spare[1];
    return CL_OK;
}

static int is_ours(const cl_ring *r)
{
    return atomic_load_explicit(&r->self, memory_order_acquire) == cl_self(r->store);
}

static int move(cl_au64 *word, uint64_t from, uint64_t to)
{
    return atomic_compare_exchange_strong(word, &from, to);
}

/* ---- numbering of frames */

/* The only place where readers are notified of a new frame. */
static void wake_readers(cl_ring *r)
{
    cl_bell_ring(&r->head->published, 1);
    cl_bells_tell(r->store, &r->head->head);
}

/* Frame s is in the index, and no later one: finish its publication, in whichever process. 1: this call advanced
 * `last`. An entry that names a slot that does not exist, or one with other contents, is damage: then the frame counts
 * as missed. */
static int finish(cl_ring *r, uint64_t s, uint64_t entry)
{
    uint32_t i = CL_INDEX_SLOT(entry);
    CL_KILL_POINT();
    if (i < r->slots && !CL_MUTANT(ring_frame_not_finished)) {
        cl_au64 *word = &cl_ring_slot(r, i)->word;
        uint64_t w = atomic_load(word);
        /* a number of s or more: the publication was finished long ago, and the slot is written again */
        if (CL_SLOT_STATE(w) == CL_SLOT_WRITING && (CL_SLOT_SEQ(w) < s || CL_MUTANT(ring_finished_twice))) {
            CL_KILL_POINT();
            move(word, w, CL_SLOT_WORD(CL_SLOT_PUBLISHED, 0, 0, s));
        }
    }
    CL_KILL_POINT();
    int moved = move(&r->head->last, s - 1, s);
    CL_KILL_POINT();
    return moved;
}

/* The highest sequence number in use; its publication is finished first if needed. */
static int last_of(cl_ring *r, uint64_t *last)
{
    for (;;) {
        uint64_t n = atomic_load(&r->head->last);
        if (n > FRAMES_MAX) {
            return cl_fail(CL_CORRUPT, 0, "ring: the last frame has the invalid number %llu", (unsigned long long)n);
        }
        uint64_t entry = atomic_load(&r->index[(n + 1) % r->slots]);
        if (CL_INDEX_SEQ(entry) != n + 1 || CL_MUTANT(ring_nobody_helps)) {
            *last = n;
            return CL_OK;
        }
        if (finish(r, n + 1, entry)) {
            wake_readers(r);
        }
    }
}

/* ---- loans */

static int on_loan(const cl_ring *r, const cl_slot *s)
{
    uint64_t any = 0;
    for (uint32_t i = 0; i < r->room / 64; i++) {
        any |= atomic_load(&s->loans[i]);
    }
    return any != 0;
}

static uint64_t bit_of(uint32_t i)
{
    return (uint64_t)1 << (i % 64);
}

static void may_be_free(cl_ring *r, uint32_t i)
{
    atomic_fetch_or(&r->spare[i / 64], bit_of(i));
}

/* Its frame is so old that no reader finds it any more: it was on loan when its turn came. */
static int passed_over(const cl_ring *r, uint64_t word)
{
    unsigned state = CL_SLOT_STATE(word);
    return (state == CL_SLOT_PUBLISHED || state == CL_SLOT_CLAIMED) &&
           CL_SLOT_SEQ(word) + r->slots <= atomic_load(&r->head->last);
}

/* This process took the hint, or was in the way of another that did, and did not get the slot: if no process has the
 * slot, no other will set the hint again. */
static void hint_again(cl_ring *r, uint32_t i)
{
    cl_slot *s = cl_ring_slot(r, i);
    if (passed_over(r, atomic_load(&s->word)) && !on_loan(r, s)) {
        may_be_free(r, i);
    }
}

/* Count one more loan of this process. */
static void hold(cl_ring *r, uint32_t i)
{
    cl_au32 *count = &r->loans[i];
    uint32_t had = atomic_load_explicit(count, memory_order_relaxed);
    for (;;) {
        if (had == CLEARING) { /* another thread of this process, within three instructions */
            sched_yield();
            had = atomic_load_explicit(count, memory_order_relaxed);
        } else if (atomic_compare_exchange_weak(count, &had, had + 1)) {
            break;
        }
    }
    CL_KILL_POINT();
    /* also if it is not the first loan: the thread that counted the first may not have reached this line yet */
    atomic_fetch_or(&cl_ring_slot(r, i)->loans[r->member / 64], bit_of(r->member));
    CL_KILL_POINT();
}

/* Count one loan less. 1: it was the last one, and writers should check. */
static int release_loan(cl_ring *r, uint32_t i)
{
    cl_slot *s = cl_ring_slot(r, i);
    cl_au32 *count = &r->loans[i];
    uint32_t had = atomic_load_explicit(count, memory_order_relaxed);
    do {
        if (had == 0 || had == CLEARING) {
            return 0;
        }
    } while (!atomic_compare_exchange_weak(count, &had, had == 1 ? CLEARING : had - 1));
    if (had != 1) {
        return 0;
    }
    CL_KILL_POINT();
    atomic_fetch_and(&s->loans[r->member / 64], ~bit_of(r->member));
    CL_KILL_POINT();
    atomic_store(count, 0);
    if (passed_over(r, atomic_load(&s->word))) {
        may_be_free(r, i);
    }
    return 1;
}

/* Take a loan of frame s, if it is still in slot i. 0: it is not. */
static int take(cl_ring *r, uint32_t i, uint64_t s, cl_frame *out)
{
    cl_slot *slot = cl_ring_slot(r, i);
    const uint64_t published = CL_SLOT_WORD(CL_SLOT_PUBLISHED, 0, 0, s);
    hold(r, i);
    for (;;) {
        uint64_t w = atomic_load(&slot->word);
        if (w == published || CL_MUTANT(ring_reader_looks_once)) {
            *out =
                (cl_frame){.slot = i, .seq = s, .time_ns = atomic_load_explicit(&slot->time_ns, memory_order_relaxed)};
            return 1;
        }
        if (CL_SLOT_STATE(w) != CL_SLOT_CLAIMED || CL_SLOT_SEQ(w) != s || CL_MUTANT(ring_claim_not_undone)) {
            break;
        }
        move(&slot->word, w, published); /* a writer that claimed it sees this loan */
        CL_KILL_POINT();
    }
    if (release_loan(r, i)) {
        cl_bell_ring(&r->head->changed, 1);
    }
    return 0;
}

/* The slot that should contain frame s; UINT32_MAX: it was overwritten. */
static uint32_t slot_of(const cl_ring *r, uint64_t s)
{
    uint64_t entry = atomic_load(&r->index[s % r->slots]);
    uint32_t i = CL_INDEX_SLOT(entry);
    return CL_INDEX_SEQ(entry) == s && (i < r->slots || CL_MUTANT(ring_index_unbounded)) ? i : UINT32_MAX;
}

/* ---- dead members, and damage: under the lock */

static void leave(cl_ring *r)
{
    CL_KILL_POINT();
    cl_unlock_own(&r->head->lock, cl_self(r->store));
}

/* With CL_MAY_WAIT it waits for a slice, but not beyond the deadline: then CL_TIMEOUT. Without it, or with a deadline
 * of 0, it does not sleep. A holder that died leaves nothing to repair: every step under the lock may be done twice. */
static int enter(cl_ring *r, int64_t deadline_ns, unsigned flags)
{
    int rc;
    if (!(flags & CL_MAY_WAIT) || deadline_ns == 0) {
        rc = cl_mutex_try(r->store, &r->head->lock, &r->spin_lock);
        rc = rc == CL_AGAIN && (flags & CL_MAY_WAIT) ? CL_TIMEOUT : rc;
    } else {
        int64_t until = cl_monotonic_ns() + CL_SLICE_NS;
        int last = deadline_ns <= until;
        rc = cl_mutex_lock(r->store, &r->head->lock, last ? deadline_ns : until, &r->spin_lock);
        rc = rc == CL_TIMEOUT && !last ? CL_AGAIN : rc;
    }
    if (rc == CL_OWNER_DIED) {
        CL_KILL_POINT();
        rc = CL_OK;
    }
    return rc;
}

/* Release what member m was writing, had claimed or had on loan. The member is dead, or this process has its place now
 * and has just joined. */
static void sweep(cl_ring *r, uint32_t m)
{
    uint64_t last;
    last_of(r, &last); /* a frame that has its number is a valid frame */
    for (uint32_t i = 0; i < r->slots; i++) {
        cl_slot *s = cl_ring_slot(r, i);
        uint64_t w = atomic_load(&s->word), seq = CL_SLOT_SEQ(w);
        if (CL_SLOT_STATE(w) == CL_SLOT_WRITING && CL_SLOT_MEMBER(w) == m &&
            move(&s->word, w, CL_SLOT_WORD(CL_SLOT_FREE, 0, 0, seq))) {
            CL_KILL_POINT();
            may_be_free(r, i);
        } else if (CL_SLOT_STATE(w) == CL_SLOT_CLAIMED && CL_SLOT_MEMBER(w) == m) {
            move(&s->word, w, CL_SLOT_WORD(CL_SLOT_PUBLISHED, 0, 0, seq));
            CL_KILL_POINT();
        }
        if (atomic_load(&s->loans[m / 64]) & bit_of(m)) {
            atomic_fetch_and(&s->loans[m / 64], CL_MUTANT(ring_releases_all_of_a_word) ? 0 : ~bit_of(m));
            CL_KILL_POINT();
        }
    }
}

/* Set the hints of free slots that have none, because a process was killed before it set them. */
static void hint(cl_ring *r)
{
    for (uint32_t i = 0; i < r->slots; i++) {
        uint64_t w = atomic_load(&cl_ring_slot(r, i)->word);
        if (CL_SLOT_STATE(w) == CL_SLOT_FREE || passed_over(r, w)) {
            may_be_free(r, i);
        }
    }
}

static void end_subscription(cl_reader *q, uint32_t owner)
{
    uint32_t policy = atomic_load(&q->policy);
    atomic_store(&q->policy, (policy & ~3u) + 4); /* only its owner, or the process that releases it after a death */
    CL_KILL_POINT();
    atomic_compare_exchange_strong(&q->owner, &owner, 0);
}

/* Release what dead members were writing, had on loan or had subscribed to. 1: something changed. */
static int release_dead(cl_ring *r)
{
    int changed = 0;
    for (uint32_t m = 0; m < r->room; m++) {
        uint32_t who = atomic_load(&r->members[m]);
        if (who != 0 && cl_is_dead(r->store, who)) {
            sweep(r, m);
            CL_KILL_POINT();
            atomic_compare_exchange_strong(&r->members[m], &who,
                                           0); /* last: if killed before, its member is released again */
            CL_KILL_POINT();
            changed = 1;
        }
    }
    for (uint32_t i = 0; i < r->room; i++) {
        uint32_t who = atomic_load(&r->readers[i].owner);
        if (who != 0 && !CL_MUTANT(ring_dead_readers_kept) && cl_is_dead(r->store, who)) {
            end_subscription(&r->readers[i], who);
            CL_KILL_POINT();
            changed = 1;
        }
    }
    if (changed && !CL_MUTANT(ring_hints_not_renewed)) {
        hint(r);
    }
    return changed;
}

/* Whether a slot's word is valid, given that the member that it names is valid. */
static int is_sound(cl_ring *r, uint32_t i, uint64_t w)
{
    uint32_t m = CL_SLOT_MEMBER(w);
    uint64_t s = CL_SLOT_SEQ(w), entry = atomic_load(&r->index[s % r->slots]), last;
    unsigned state = CL_SLOT_STATE(w);
    if (state == CL_SLOT_FREE) {
        return 1;
    }
    if (state == CL_SLOT_PUBLISHED ? w != CL_SLOT_WORD(CL_SLOT_PUBLISHED, 0, 0, s) : m >= r->room) {
        return 0;
    }
    if (state == CL_SLOT_WRITING) {
        return 1;
    }
    if (s == 0 || last_of(r, &last) != CL_OK || s > last) {
        return 0;
    }
    if (CL_INDEX_SEQ(entry) == s) {
        return CL_INDEX_SLOT(entry) == i;
    }
    return CL_INDEX_SEQ(entry) > s && CL_INDEX_SEQ(entry) <= last && (CL_INDEX_SEQ(entry) - s) % r->slots == 0;
}

/* 1: the slot's word was invalid, and the slot is free now. A member that leaves changes its words before it leaves. If
 * the word names a place without a member, the place is reserved until the word is changed: otherwise the word could be
 * that of the next member there. */
static int repair_word(cl_ring *r, uint32_t i, uint64_t last)
{
    cl_au64 *word = &cl_ring_slot(r, i)->word;
    uint64_t w = atomic_load(word);
    uint32_t none = 0;
    unsigned state = CL_SLOT_STATE(w);
    cl_au32 *place = NULL;
    CL_KILL_POINT();
    if (is_sound(r, i, w)) {
        place = state == CL_SLOT_CLAIMED || state == CL_SLOT_WRITING ? &r->members[CL_SLOT_MEMBER(w)] : NULL;
        if (place == NULL || atomic_load(place) != 0) {
            return 0;
        }
        CL_KILL_POINT();
        if (!CL_MUTANT(ring_place_not_reserved) && !atomic_compare_exchange_strong(place, &none, cl_self(r->store))) {
            return 0;
        }
    }
    CL_KILL_POINT();
    int freed = move(word, w, CL_SLOT_WORD(CL_SLOT_FREE, 0, 0, last));
    CL_KILL_POINT();
    if (place != NULL) {
        atomic_store(place, 0);
    }
    if (freed) {
        may_be_free(r, i);
    }
    return freed;
}

/* Take invalid words out of use: those of slots, and bits of members that do not exist. This process knows its own
 * loans. */
static int repair(cl_ring *r)
{
    int changed = 0;
    uint64_t last;
    if (last_of(r, &last) != CL_OK) {
        return 0;
    }
    for (uint32_t i = 0; i < r->slots; i++) {
        cl_slot *s = cl_ring_slot(r, i);
        changed |= repair_word(r, i, last);
        for (uint32_t k = 0; k < r->room / 64; k++) {
            for (uint64_t left = atomic_load(&s->loans[k]); left != 0; left &= left - 1) {
                uint32_t m = k * 64 + (uint32_t)__builtin_ctzll(left), none = 0, self = cl_self(r->store);
                uint32_t unlent = 0;
                if (atomic_load(&r->members[m]) == 0 &&
                    atomic_compare_exchange_strong(&r->members[m], &none, self)) { /* nobody joins there meanwhile */
                    atomic_fetch_and(&s->loans[k], ~bit_of(m));
                    atomic_store(&r->members[m], 0);
                    changed = 1;
                } else if (is_ours(r) && m == r->member &&
                           atomic_compare_exchange_strong(&r->loans[i], &unlent, CLEARING)) {
                    atomic_fetch_and(&s->loans[k], ~bit_of(m));
                    atomic_store(&r->loans[i], 0);
                    changed = 1;
                }
            }
        }
        if (is_ours(r) && (atomic_load(&r->loans[i]) & ~CLEARING) != 0) {
            hold(r, i); /* the bit of this process is certainly set */
            release_loan(r, i);
        }
    }
    if (changed) {
        hint(r);
    }
    return changed;
}

/* ---- members */

/* Become a member, unless this process is one already. CL_AGAIN, CL_TIMEOUT: all places are taken, and another process is releasing the dead. */
static int join(cl_ring *r, int64_t deadline_ns, unsigned flags)
{
    uint32_t self = cl_self(r->store), other = 0;
    int rc = CL_OK;
    if (is_ours(r)) {
        return CL_OK;
    }
    while (!atomic_compare_exchange_strong(&r->joining, &other, self)) {
        if (other == self) { /* another thread of this process; or one of the parent, at the fork of this child */
            sched_yield();
            other = 0;
        }
    }
    if (is_ours(r)) {
        atomic_store(&r->joining, 0);
        return CL_OK;
    }
    for (int look = 0; rc == CL_OK && look < 2; look++) {
        for (uint32_t m = 0; m < r->room; m++) {
            uint32_t none = 0;
            if (atomic_load_explicit(&r->members[m], memory_order_relaxed) == 0 &&
                atomic_compare_exchange_strong(&r->members[m], &none, self)) {
                CL_KILL_POINT();
                for (uint32_t i = 0; i < r->slots; i++) {
                    atomic_store_explicit(&r->loans[i], 0, memory_order_relaxed);
                }
                atomic_store(&r->calls, 0);
                r->member = m;
                sweep(r, m); /* what damage, or a process that closed the ring while in use, left at this place */
                atomic_store_explicit(&r->self, self, memory_order_release);
                atomic_store(&r->joining, 0);
                CL_KILL_POINT();
                return CL_OK;
            }
        }
        if (look == 0 && (rc = enter(r, deadline_ns, flags)) == CL_OK) {
            release_dead(r);
            leave(r);
        }
    }
    atomic_store(&r->joining, 0);
    return rc != CL_OK ? rc : cl_fail(CL_TABLE_FULL, 0, "%u processes already use this ring", r->room);
}

void cl_ring_detach(cl_ring *r)
{
    if (r->head != NULL) {
        uint32_t self = cl_self(r->store);
        if (is_ours(r)) { /* it has no loans now: each loan keeps the ring */
            atomic_compare_exchange_strong(&r->members[r->member], &self, 0);
        }
        r->head = NULL;
        free((void *)r->loans);
        r->loans = NULL;
    }
}

/* Wake one sleeper, which wakes two more, and so on: the cost for a writer does not grow with its readers. If a death
 * breaks the chain, the others check again by themselves after a slice. */
static int wait_for(cl_au32 *bell, uint32_t seen, int64_t *begun_ns, int64_t deadline_ns, cl_spin *spin)
{
    int rc = cl_wait_again(begun_ns, deadline_ns);
    if (rc != CL_OK) {
        return rc;
    }
    rc = cl_bell_wait(bell, seen, deadline_ns, spin);
    if (rc == CL_OK) {
        CL_KILL_POINT();
        cl_wake(bell, 2);
    }
    return rc;
}

/* ---- writing */

/* The last frame that all blocking readers have had; UINT64_MAX: no reader blocks. It only grows, except when readers
 * subscribe: the frames that a new subscription needs are newer than any `last` that a writer has read before this
 * call, or are given up (`since`) if they no longer exist. */
static uint64_t needed_after(const cl_ring *r)
{
    uint64_t cursor = UINT64_MAX;
    uint32_t high = atomic_load(&r->head->readers_high);
    for (uint32_t i = 0; i < high && i < r->room; i++) {
        const cl_reader *reader = &r->readers[i];
        if (CL_READER_POLICY(atomic_load(&reader->policy)) == CL_READER_BLOCKS) {
            uint64_t had = atomic_load(&reader->cursor);
            cursor = had < cursor ? had : cursor;
        }
    }
    return cursor;
}

/* Take slot i, if it is free, or contains frame `wanted` (0: one that was passed over) that no reader needs. 1: this
 * process is writing it. */
static int try_slot(cl_ring *r, uint32_t i, uint64_t wanted, uint64_t last, uint32_t call)
{
    cl_slot *s = cl_ring_slot(r, i);
    uint64_t w = atomic_load(&s->word), seq = CL_SLOT_SEQ(w);
    unsigned state = CL_SLOT_STATE(w);
    if (state == CL_SLOT_FREE) {
        /* a number above `last`, which is read after the word, is damage; the `last` of the caller may be old */
        uint64_t now = CL_MUTANT(ring_number_smaller) ? last : atomic_load(&r->head->last);
        return move(&s->word, w, CL_SLOT_WORD(CL_SLOT_WRITING, r->member, 0, seq <= now ? seq : now));
    }
    if (state == CL_SLOT_WRITING || seq == 0 || seq > last || (wanted != 0 ? seq != wanted : seq + r->slots > last) ||
        on_loan(r, s)) {
        return 0;
    }
    uint64_t claimed = CL_SLOT_WORD(CL_SLOT_CLAIMED, r->member, call, seq);
    CL_KILL_POINT();
    if (!move(&s->word, w, claimed)) {
        return 0;
    }
    CL_KILL_POINT();
    if (on_loan(r, s) && !CL_MUTANT(ring_loans_looked_at_once)) {
        move(&s->word, claimed, CL_SLOT_WORD(CL_SLOT_PUBLISHED, 0, 0, seq)); /* or another process has done so before */
        CL_KILL_POINT();
        hint_again(r, i);
        return 0;
    }
    CL_KILL_POINT();
    return move(&s->word, claimed, CL_SLOT_WORD(CL_SLOT_WRITING, r->member, 0, seq));
}

static uint32_t look_for_slot(cl_ring *r, uint64_t last, uint32_t call)
{
    uint32_t n = r->slots;
    for (uint32_t k = 0; k < n; k += 64) { /* those with a hint that they are free */
        for (uint64_t left = atomic_load(&r->spare[k / 64]); left != 0; left &= left - 1) {
            uint32_t i = k + (uint32_t)__builtin_ctzll(left);
            if (!(atomic_fetch_and(&r->spare[k / 64], ~bit_of(i)) & bit_of(i)) || i >= n) {
                continue;
            }
            CL_KILL_POINT();
            if (try_slot(r, i, 0, last, call)) {
                return i;
            }
            hint_again(r, i);
        }
    }
    uint64_t needed = needed_after(r);
    for (uint64_t s = last >= n ? last - n + 1 : 1; s <= last && s <= needed; s++) { /* oldest that none needs */
        uint32_t i = slot_of(r, s);
        if (i != UINT32_MAX && try_slot(r, i, s, last, call)) {
            return i;
        }
    }
    for (uint32_t i = 0; i < n && !CL_MUTANT(ring_hints_believed); i++) { /* any: the hint may be missing */
        if (try_slot(r, i, 0, last, call)) {
            return i;
        }
    }
    return UINT32_MAX;
}

/* Find a slot to write into. UINT32_MAX: there is none, at a moment in which no frame was published. */
static int find_slot(cl_ring *r, uint32_t *found)
{
    uint64_t calls = atomic_load(&r->calls), last;
    for (;;) { /* the number of this call */
        if (calls == UINT64_MAX) {
            sched_yield(); /* 64 threads of this process are here at once: they continue */
            calls = atomic_load(&r->calls);
        } else if (atomic_compare_exchange_weak(&r->calls, &calls, calls | (calls + 1))) {
            break;
        }
    }
    uint32_t call = CL_MUTANT(ring_calls_not_told_apart) ? 0 : (uint32_t)__builtin_ctzll(~calls);
    int rc;
    do {
        *found = UINT32_MAX;
        rc = last_of(r, &last);
        if (rc == CL_OK) {
            *found = look_for_slot(r, last, call);
        }
    } while (rc == CL_OK && *found == UINT32_MAX && atomic_load(&r->head->last) != last);
    atomic_fetch_and(&r->calls, ~(~calls & (calls + 1)));
    return rc;
}

static int demote(cl_ring *r)
{
    uint64_t cursor = needed_after(r);
    int any = 0;
    for (uint32_t i = 0; i < r->room; i++) {
        cl_reader *reader = &r->readers[i];
        uint32_t policy = atomic_load(&reader->policy);
        if (CL_READER_POLICY(policy) == CL_READER_BLOCKS && atomic_load(&reader->cursor) == cursor) {
            any |= atomic_compare_exchange_strong(&reader->policy, &policy, (policy & ~3u) | CL_READER_DEMOTED);
        }
    }
    return any;
}

/* There is no slot. The cause may be dead members, readers that block for too long, or damage. */
static int find_more(cl_ring *r, int64_t *since_ns, uint32_t *found)
{
    int64_t now = cl_monotonic_ns(), most = r->block_timeout_ns;
    if (*since_ns == 0) {
        *since_ns = now;
        atomic_fetch_add(&r->head->waits, 1);
    }
    int changed = 0, rc = enter(r, 0, CL_MAY_WAIT); /* do not wait for a process that is stopped in it */
    if (rc == CL_OK) {
        changed = CL_MUTANT(ring_writer_releases_no_dead) ? 0 : release_dead(r);
        changed |= repair(r);
        leave(r);
    } else if (rc != CL_TIMEOUT) {
        return rc;
    }
    if (changed || (most != 0 && now - *since_ns >= most && demote(r))) {
        return find_slot(r, found);
    }
    return CL_OK;
}

int cl_ring_claim(cl_ring *r, int64_t deadline_ns, unsigned flags, int64_t *since_ns, uint32_t *slot)
{
    cl_ring_head *h = r->head;
    int64_t begun = 0;
    for (;;) {
        if (atomic_load_explicit(&h->state, memory_order_relaxed) != CL_RING_OPEN) {
            return CL_CLOSED;
        }
        int rc = join(r, deadline_ns, flags);
        uint32_t seen = atomic_load(&h->changed), i = UINT32_MAX;
        if (rc == CL_OK) {
            rc = find_slot(r, &i);
        }
        if (rc == CL_OK && i == UINT32_MAX && (flags & CL_MAY_WAIT)) {
            rc = find_more(r, since_ns, &i);
        }
        if (rc != CL_OK) {
            return rc;
        }
        if (i != UINT32_MAX) {
            CL_KILL_POINT();
            *slot = i;
            return CL_OK;
        }
        if (deadline_ns == 0 || !(flags & CL_MAY_WAIT)) {
            return flags & CL_MAY_WAIT ? CL_TIMEOUT : CL_AGAIN;
        }
        rc = wait_for(&h->changed, seen, &begun, deadline_ns, &r->spin_write);
        if (rc != CL_OK) {
            return rc;
        }
    }
}

/* The word of a slot that this process is writing; else CL_STALE. */
static int word_of_ours(const cl_ring *r, uint32_t slot, uint64_t *word)
{
    *word = atomic_load(&cl_ring_slot(r, slot)->word);
    return is_ours(r) && CL_SLOT_STATE(*word) == CL_SLOT_WRITING && CL_SLOT_MEMBER(*word) == r->member
               ? CL_OK
               : cl_fail(CL_STALE, 0, "this process is not writing slot %u", slot);
}

int cl_ring_publish(cl_ring *r, uint32_t slot, cl_frame *out)
{
    cl_ring_head *h = r->head;
    cl_slot *s = cl_ring_slot(r, slot);
    uint64_t last, word;
    int rc = word_of_ours(r, slot, &word);
    while (rc == CL_OK) {
        rc = last_of(r, &last);
        if (rc == CL_OK && CL_SLOT_SEQ(word) > last) {
            rc = cl_fail(CL_CORRUPT, 0, "ring: slot %u records frame %llu, the last frame is %llu", slot,
                         (unsigned long long)CL_SLOT_SEQ(word), (unsigned long long)last);
        }
        if (rc == CL_OK && last == FRAMES_MAX) {
            rc = cl_fail(CL_TABLE_FULL, 0, "%llu frames were published in this ring", (unsigned long long)last);
        }
        if (rc != CL_OK) {
            break;
        }
        cl_au64 *at = &r->index[(last + 1) % r->slots];
        CL_KILL_POINT();
        uint64_t before = atomic_load(at), entry = CL_INDEX_ENTRY(last + 1, slot);
        if ((CL_INDEX_SEQ(before) == last + 1 && !CL_MUTANT(ring_number_taken_again)) ||
            (CL_INDEX_SEQ(before) > last && atomic_load(&h->last) != last)) {
            continue; /* another frame has that number; if it is higher while `last` stays, that is damage */
        }
        int64_t now = cl_monotonic_ns();
        atomic_store_explicit(&s->time_ns, now, memory_order_relaxed);
        CL_KILL_POINT();
        if (!move(at, before, entry)) {
            continue;
        }
        CL_KILL_POINT();
        finish(r, last + 1, entry);
        wake_readers(r); /* also if another process finished it: that one may be stopped before it does this */
        CL_KILL_POINT();
        uint32_t older = CL_INDEX_SLOT(before);
        if (CL_INDEX_SEQ(before) != 0 && older < r->slots &&
            passed_over(r, atomic_load(&cl_ring_slot(r, older)->word))) {
            may_be_free(r, older);
        }
        if (atomic_load(&h->changed) & CL_BELL_SLEEP) { /* a writer can reuse this slot now */
            cl_bell_ring(&h->changed, 1);
        }
        *out = (cl_frame){.slot = slot, .seq = last + 1, .time_ns = now};
        return CL_OK;
    }
    return rc;
}

int cl_ring_give_up(cl_ring *r, uint32_t slot)
{
    uint64_t word;
    if (word_of_ours(r, slot, &word) == CL_OK &&
        move(&cl_ring_slot(r, slot)->word, word, CL_SLOT_WORD(CL_SLOT_FREE, 0, 0, CL_SLOT_SEQ(word)))) {
        CL_KILL_POINT();
        may_be_free(r, slot);
        CL_KILL_POINT();
        cl_bell_ring(&r->head->changed, 1);
    }
    return CL_OK;
}

/* ---- reading */

int cl_ring_latest(cl_ring *r, uint64_t after, int64_t deadline_ns, unsigned flags, cl_frame *out)
{
    cl_ring_head *h = r->head;
    int64_t begun = 0;
    for (;;) {
        uint32_t seen = atomic_load(&h->published), n = r->slots;
        int shut = atomic_load(&h->state) != CL_RING_OPEN;
        int rc = join(r, deadline_ns, flags);
        uint64_t last;
        do { /* again only if a frame was published: the earlier ones may have been overwritten meanwhile */
            if (rc != CL_OK || (rc = last_of(r, &last)) != CL_OK) {
                return rc;
            }
            for (uint64_t s = last; s > after && s + n > last && s != 0; s--) {
                uint32_t i = slot_of(r, s);
                if (i != UINT32_MAX && take(r, i, s, out)) {
                    return CL_OK;
                }
            }
        } while (atomic_load(&h->last) != last);
        if (shut) {
            return CL_CLOSED;
        }
        if (deadline_ns == 0 || !(flags & CL_MAY_WAIT)) {
            return flags & CL_MAY_WAIT ? CL_TIMEOUT : CL_AGAIN;
        }
        rc = wait_for(&h->published, seen, &begun, deadline_ns, &r->spin_read);
        if (rc != CL_OK) {
            return rc;
        }
    }
}

int cl_ring_last(cl_ring *r, uint32_t most, unsigned flags, cl_frame *out, uint32_t *n)
{
    uint64_t last;
    *n = 0;
    int rc = join(r, CL_FOREVER, flags);
    do {
        if (rc != CL_OK || (rc = last_of(r, &last)) != CL_OK) {
            return rc;
        }
        for (uint64_t s = last; s + r->slots > last && s != 0 && *n < most; s--) { /* newest first */
            uint32_t i = slot_of(r, s);
            if (i != UINT32_MAX && take(r, i, s, &out[*n])) {
                ++*n;
            }
        }
    } while (*n == 0 && most != 0 && atomic_load(&r->head->last) != last);
    for (uint32_t i = 0; i < *n / 2; i++) {
        cl_frame swap = out[i];
        out[i] = out[*n - 1 - i];
        out[*n - 1 - i] = swap;
    }
    return CL_OK;
}

int cl_ring_return(cl_ring *r, uint32_t slot)
{
    if (is_ours(r) && release_loan(r, slot)) { /* in a forked child: the parent's loan */
        CL_KILL_POINT();
        cl_bell_ring(&r->head->changed, 1);
    }
    return CL_OK;
}

int cl_ring_subscribe(cl_ring *r, uint32_t policy, uint64_t since, unsigned flags, uint32_t *reader)
{
    cl_ring_head *h = r->head;
    int rc = join(r, CL_FOREVER, flags);
    for (int look = 0; rc == CL_OK && look < 2; look++) {
        for (uint32_t i = 0; i < r->room; i++) {
            cl_reader *q = &r->readers[i];
            uint32_t none = 0, high = atomic_load(&h->readers_high), self = cl_self(r->store);
            uint64_t last;
            if (atomic_load_explicit(&q->owner, memory_order_relaxed) != 0 ||
                !atomic_compare_exchange_strong(&q->owner, &none, self)) {
                continue;
            }
            CL_KILL_POINT();
            while (high <= i && !atomic_compare_exchange_weak(&h->readers_high, &high, i + 1)) {
            }
            rc = last_of(r, &last);
            if (rc != CL_OK) {
                end_subscription(q, self);
                return rc;
            }
            atomic_store(&q->cursor, since < last ? since : last);
            atomic_store(&q->taken, 0);
            atomic_store(&q->dropped, 0);
            CL_KILL_POINT();
            atomic_store(&q->policy, (atomic_load(&q->policy) & ~3u) | (policy & 1u));
            CL_KILL_POINT();
            /* From now on: frames that were published before writers could see this subscription may be overwritten
             * already. */
            if (since > last && !CL_MUTANT(ring_subscriber_looks_once) && last_of(r, &last) == CL_OK) {
                atomic_store(&q->cursor, since < last ? since : last);
            }
            *reader = i;
            return CL_OK;
        }
        if (look == 0 && (rc = enter(r, CL_FOREVER, flags)) == CL_OK) {
            release_dead(r);
            leave(r);
        }
    }
    return rc != CL_OK ? rc : cl_fail(CL_TABLE_FULL, 0, "%u readers are already subscribed", r->room);
}

int cl_ring_unsubscribe(cl_ring *r, uint32_t reader)
{
    uint32_t self = cl_self(r->store);
    if (!is_ours(r)) {
        return CL_STALE;
    }
    if (atomic_load(&r->readers[reader].owner) == self) {
        end_subscription(&r->readers[reader], self);
        CL_KILL_POINT();
        cl_bell_ring(&r->head->changed, 1);
    }
    return CL_OK;
}

int cl_ring_next(cl_ring *r, uint32_t reader, int64_t deadline_ns, unsigned flags, cl_frame *out)
{
    cl_ring_head *h = r->head;
    cl_reader *q = &r->readers[reader];
    int64_t begun = 0;
    uint32_t n = r->slots;
    if (!is_ours(r)) {
        return cl_fail(CL_STALE, 0, "this subscription belongs to the parent process: subscribe again");
    }
    for (;;) {
        uint32_t seen = atomic_load(&h->published);
        int shut = atomic_load(&h->state) != CL_RING_OPEN, again;
        do {
            uint64_t cursor = atomic_load(&q->cursor), last, s = cursor + 1;
            int rc = last_of(r, &last);
            again = 0;
            if (rc == CL_OK && (cursor > last || atomic_load(&q->owner) != cl_self(r->store))) {
                rc = cl_fail(CL_CORRUPT, 0, "ring: reader %u records frame %llu, the last frame is %llu", reader,
                             (unsigned long long)cursor, (unsigned long long)last);
            }
            if (rc != CL_OK) {
                return rc;
            }
            if (last >= n && s < last - n + 1) {
                s = last - n + 1;
            }
            for (; !again && s <= last; s++) {
                uint32_t i = slot_of(r, s);
                if (i == UINT32_MAX || !take(r, i, s, out)) {
                    continue;
                }
                CL_KILL_POINT();
                if (!move(&q->cursor, cursor, s)) { /* another thread of this process has it */
                    cl_ring_return(r, i);
                    again = 1;
                    continue;
                }
                CL_KILL_POINT();
                out->missed = s - cursor - 1;
                atomic_fetch_add_explicit(&q->dropped, out->missed, memory_order_relaxed);
                atomic_fetch_add_explicit(&q->taken, 1, memory_order_relaxed);
                if (CL_READER_POLICY(atomic_load(&q->policy)) == CL_READER_BLOCKS) {
                    cl_bell_ring(&h->changed, 1);
                }
                return CL_OK;
            }
            again |= atomic_load(&h->last) != last;
        } while (again);
        if (shut) {
            return CL_CLOSED;
        }
        if (deadline_ns == 0 || !(flags & CL_MAY_WAIT)) {
            return flags & CL_MAY_WAIT ? CL_TIMEOUT : CL_AGAIN;
        }
        int rc = wait_for(&h->published, seen, &begun, deadline_ns, &r->spin_read);
        if (rc != CL_OK) {
            return rc;
        }
    }
}

int cl_ring_has_next(const cl_ring_head *h, const cl_head *is, uint32_t reader, uint32_t owner)
{
    uint8_t *at = (uint8_t *)(uintptr_t)h;
    cl_reader *q = (cl_reader *)(void *)(at + sizeof *h + is->room * sizeof(cl_au32)) + reader;
    cl_au64 *index = (cl_au64 *)(void *)(at + index_at(is->number, is->room));
    (void)atomic_load(&h->published); /* frames published before the ring of the bell are seen */
    uint64_t last = atomic_load(&h->last);
    return atomic_load(&h->state) != CL_RING_OPEN || atomic_load(&q->owner) != owner ||
           last != atomic_load(&q->cursor) || CL_INDEX_SEQ(atomic_load(&index[(last + 1) % is->number])) == last + 1;
}

void cl_ring_shut(cl_ring *r)
{
    atomic_store(&r->head->state, CL_RING_SHUT);
    CL_KILL_POINT();
    cl_bell_ring(&r->head->published, INT_MAX);
    cl_bells_tell(r->store, &r->head->head);
    cl_bell_ring(&r->head->changed, INT_MAX);
}

int cl_ring_release_dead(cl_ring *r, unsigned flags)
{
    int rc = enter(r, flags & CL_MAY_WAIT ? CL_FOREVER : 0, flags);
    if (rc == CL_OK) {
        release_dead(r);
        leave(r);
    }
    return rc;
}

void cl_ring_count(const cl_ring *r, cl_ring_counts *out)
{
    *out = (cl_ring_counts){.last = atomic_load(&r->head->last)};
    uint64_t oldest = 0;
    for (uint32_t i = 0; i < r->slots; i++) {
        const cl_slot *s = cl_ring_slot(r, i);
        uint64_t w = atomic_load(&s->word), seq = CL_SLOT_SEQ(w);
        int lent = on_loan(r, s);
        out->on_loan += lent;
        out->writing += CL_SLOT_STATE(w) == CL_SLOT_WRITING;
        if (CL_SLOT_STATE(w) == CL_SLOT_FREE || CL_SLOT_STATE(w) == CL_SLOT_WRITING ||
            (seq + r->slots <= out->last && !lent)) {
            continue;
        }
        int64_t time = atomic_load_explicit(&s->time_ns, memory_order_relaxed);
        out->held++;
        out->newest_ns = time > out->newest_ns ? time : out->newest_ns;
        if (oldest == 0 || seq < oldest) {
            oldest = seq;
            out->oldest_ns = time;
        }
    }
}
