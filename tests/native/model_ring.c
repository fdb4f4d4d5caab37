/* The ring's protocol (ring.h) as a model: two writers of two frames each, a reader that drops and one that blocks, two
 * slots, and one death of anybody at any store. Every interleaving is visited. Shown: a reader sees whole frames only, which
 * do not change while it has them on loan; numbers grow without gaps; who blocks misses nothing; no slot and no loan is
 * left over; and nobody waits for ever. How sleepers are woken is the queue's way, which model_queue.c checks. */
#include "model.h"

enum {
    WRITERS = 2,
    READERS = 2,
    PROCESSES = WRITERS + READERS,
    EACH = 2,
    SLOTS = 2,
    BLOCKS = 3 /* the process that blocks */
};
enum { FREE, WRITING, PUBLISHED };
enum { CLAIM, FILL, FILL_MORE, PUBLISH, NEXT, READ, READ_MORE, RETURN, DONE };

typedef struct slot {
    uint8_t state, writer, seq, loans; /* a bit for each process */
    uint8_t first, second; /* halves of the pixels */
} slot;

typedef struct state {
    slot slots[SLOTS];
    uint8_t by_seq[SLOTS], last, nfree;
    uint8_t lock; /* left by a dead process: itself + 1 */
    uint8_t dead, buried; /* process + 1; whether somebody has taken back what it had */
    uint8_t cursor[PROCESSES];
    struct {
        uint8_t at, slot, n, value;
    } p[PROCESSES];
} state;

static void show(const state *s)
{
    fprintf(stderr, "last %u nfree %u lock %u dead %u\n", s->last, s->nfree, s->lock, s->dead);
    for (int i = 0; i < SLOTS; i++) {
        fprintf(stderr, " slot %d: state %u writer %u seq %u loans %u pixels %u %u\n", i, s->slots[i].state,
                s->slots[i].writer, s->slots[i].seq, s->slots[i].loans, s->slots[i].first, s->slots[i].second);
    }
    for (int i = 0; i < PROCESSES; i++) {
        fprintf(stderr, " process %d at %u slot %u n %u cursor %u\n", i, s->p[i].at, s->p[i].slot, s->p[i].n,
                s->cursor[i]);
    }
}

static model_set found = {.size = sizeof(state)};
static size_t deaths;

/* A death here leaves the state as it is; in_lock: and the lock. */
static void may_die(const state *s, int i, int in_lock)
{
    if (s->dead == 0) {
        state next = *s;
        next.dead = (uint8_t)(i + 1);
        next.lock = in_lock ? next.dead : 0;
        memset(&next.p[i], 0, sizeof next.p[i]);
        deaths += (size_t)model_add(&found, &next);
    }
}

static void rebuild(state *s)
{
    for (int i = 0; i < SLOTS; i++) {
        if (s->slots[i].state == PUBLISHED && s->slots[i].seq > s->last) {
            s->last = s->slots[i].seq;
        }
    }
    s->nfree = 0;
    for (uint8_t i = 0; i < SLOTS; i++) {
        slot *t = &s->slots[i];
        if (t->state == PUBLISHED && t->seq + SLOTS <= s->last && t->loans == 0) {
            t->state = FREE;
        }
        if (t->state == PUBLISHED && t->seq + SLOTS > s->last) {
            s->by_seq[t->seq % SLOTS] = i;
        }
        s->nfree += t->state == FREE;
    }
}

static int bury(state *s)
{
    if (s->dead == 0 || s->buried) {
        return 0;
    }
    for (int i = 0; i < SLOTS; i++) {
        if (s->slots[i].state == WRITING && s->slots[i].writer == s->dead) {
            s->slots[i].state = FREE;
        }
        s->slots[i].loans &= (uint8_t)~(1u << (s->dead - 1));
    }
    s->buried = 1;
    rebuild(s);
    return 1;
}

static void enter(state *s)
{
    if (s->lock != 0) { /* from the dead */
        bury(s);
        rebuild(s);
        s->lock = 0;
    }
}

static int find_slot(const state *s)
{
    for (int i = 0; s->nfree != 0 && i < SLOTS; i++) {
        if (s->slots[i].state == FREE) {
            return i;
        }
    }
    int blocked = s->dead == BLOCKS + 1 && s->buried ? 255 : s->cursor[BLOCKS];
    for (int q = s->last >= SLOTS ? s->last - SLOTS + 1 : 1; q <= s->last && q <= blocked; q++) {
        const slot *t = &s->slots[s->by_seq[q % SLOTS]];
        if (t->state == PUBLISHED && t->seq == q && t->loans == 0) {
            return s->by_seq[q % SLOTS];
        }
    }
    return -1;
}

/* What one process does next, with a death at every store; 0: it cannot go on. */
static int step(state *s, int i)
{
    slot *t = &s->slots[s->p[i].slot];
    uint8_t *at = &s->p[i].at;
    may_die(s, i, 0);
    switch (*at) {
    case CLAIM: {
        if (s->p[i].n == EACH) {
            *at = DONE;
            return 1;
        }
        enter(s);
        int k = find_slot(s);
        if (k < 0 && bury(s)) {
            k = find_slot(s);
        }
        if (k < 0) {
            return 0;
        }
        t = &s->slots[k];
        int was_free = t->state == FREE;
        if (was_free) {
            s->nfree--;
            may_die(s, i, 1);
        }
        t->writer = (uint8_t)(i + 1);
        may_die(s, i, 1);
        t->state = WRITING;
        may_die(s, i, 1);
        s->p[i].slot = (uint8_t)k;
        s->p[i].value = (uint8_t)(1 + i * EACH + s->p[i].n);
        *at = FILL;
        return 1;
    }
    case FILL:
        MUST(t->state == WRITING && t->writer == i + 1 && t->loans == 0);
        t->first = s->p[i].value;
        *at = FILL_MORE;
        return 1;
    case FILL_MORE:
        t->second = s->p[i].value;
        *at = PUBLISH;
        return 1;
    case PUBLISH: {
        enter(s);
        MUST(t->state == WRITING && t->writer == i + 1);
        t->seq = (uint8_t)(s->last + 1);
        may_die(s, i, 1);
        int before = s->by_seq[t->seq % SLOTS];
        s->by_seq[t->seq % SLOTS] = s->p[i].slot;
        may_die(s, i, 1);
        t->state = PUBLISHED;
        may_die(s, i, 1);
        s->last = t->seq;
        may_die(s, i, 1);
        slot *b = &s->slots[before];
        if (b->state == PUBLISHED && b->loans == 0 && b->seq + SLOTS <= s->last) {
            b->state = FREE;
            may_die(s, i, 1);
            s->nfree++;
        }
        may_die(s, i, 1);
        s->p[i].n++;
        *at = CLAIM;
        return 1;
    }
    case NEXT: {
        enter(s);
        int q = s->cursor[i] + 1;
        if (s->last >= SLOTS && q < s->last - SLOTS + 1) {
            q = s->last - SLOTS + 1;
        }
        for (; q <= s->last; q++) {
            uint8_t k = s->by_seq[q % SLOTS];
            if (s->slots[k].state == PUBLISHED && s->slots[k].seq == q) {
                MUST(i != BLOCKS || q == s->cursor[i] + 1);
                s->slots[k].loans |= (uint8_t)(1u << i);
                may_die(s, i, 1);
                s->cursor[i] = (uint8_t)q;
                may_die(s, i, 1);
                s->p[i].slot = k;
                *at = READ;
                return 1;
            }
        }
        return 0;
    }
    case READ:
        MUST(t->state == PUBLISHED && t->first != 0 && t->first == t->second && t->seq == s->cursor[i]);
        s->p[i].value = t->first;
        *at = READ_MORE;
        return 1;
    case READ_MORE:
        MUST(t->state == PUBLISHED && t->first == s->p[i].value && t->second == s->p[i].value);
        *at = RETURN;
        return 1;
    case RETURN:
        enter(s);
        t->loans &= (uint8_t)~(1u << i);
        may_die(s, i, 1);
        if (t->state == PUBLISHED && t->seq + SLOTS <= s->last && t->loans == 0) {
            t->state = FREE;
            may_die(s, i, 1);
            s->nfree++;
            may_die(s, i, 1);
        }
        *at = NEXT;
        return 1;
    default:
        return 0;
    }
}

static void at_rest(const state *s)
{
    state after = *s;
    enter(&after);
    bury(&after);
    uint8_t nfree = 0;
    for (int i = 0; i < PROCESSES; i++) {
        if (i + 1 != s->dead) {
            MUST(s->p[i].at == (i < WRITERS ? DONE : NEXT));
            MUST(i != BLOCKS || s->cursor[i] == after.last); /* who drops may have missed the last, too */
        }
    }
    for (int i = 0; i < SLOTS; i++) {
        MUST(after.slots[i].state != WRITING && after.slots[i].loans == 0);
        MUST(after.slots[i].state != PUBLISHED || after.slots[i].seq + SLOTS > after.last);
        nfree += after.slots[i].state == FREE;
    }
    MUST(nfree == after.nfree && after.last >= EACH * (WRITERS - (s->dead != 0 && s->dead <= WRITERS)));
}

int main(void)
{
    state start;
    size_t rests = 0;
    memset(&start, 0, sizeof start);
    start.nfree = SLOTS;
    for (int i = WRITERS; i < PROCESSES; i++) {
        start.p[i].at = NEXT;
    }
    model_add(&found, &start);
    for (size_t at = 0; at < found.n; at++) {
        state now;
        int moved = 0;
        memcpy(&now, found.states + at * sizeof now, sizeof now);
        for (int i = 0; i < PROCESSES; i++) {
            if (i + 1 != now.dead) {
                state next = now;
                if (step(&next, i)) {
                    moved = 1;
                    model_add(&found, &next);
                }
            }
        }
        if (!moved) {
            at_rest(&now);
            rests++;
        }
    }
    printf("%zu states, %zu deaths, %zu ways to end\nmodel_ring: ok\n", found.n, deaths, rests);
    return 0;
}
