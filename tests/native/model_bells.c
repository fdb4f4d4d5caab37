/* The protocol of the bells (bells.h) as a model: two waiters on one queue, or one waiter on two; two producers of
 * one or two items; and one death of any process at any step. Every interleaving is visited, once with a bit for
 * each waiter and once with a bit that both share. Shown: while no producer has died, no item is in a queue over
 * which a waiter sleeps for ever, even if no waiter ever checks again by itself. When a producer died between its
 * item and its last ring, everything goes on once the sleepers have checked again. */
#include "model.h"

enum { WAITERS = 2, PRODUCERS = 2, EACH = 2, PROCESSES = WAITERS + PRODUCERS, QUEUES = 2 };

enum { /* the step that a process is at */
       READ_BELL,
       SET_BIT,
       MARK,
       LOOK,
       TAKE,
       MARK_BELL,
       ENTER_SLEEP,
       ASLEEP,
       PUT,
       LOAD_BITS,
       CLEAR_BIT,
       RING,
       WAKE,
       DONE
};

typedef struct state {
    struct {
        uint8_t in, marked, bits; /* items that are in it */
    } q[QUEUES];
    struct {
        uint8_t at, queue, found, rung, bell_marked, woken; /* a waiter; rung: since it read its bell */
        uint8_t item, bit, to_ring, must_wake, left; /* a producer */
    } p[PROCESSES];
    uint8_t dead; /* process + 1 */
} state;

static int shared; /* both waiters have one bit */
static int waiters, queues, first_puts; /* of this run; the second producer puts one item */

static void show(const state *s)
{
    for (int i = 0; i < QUEUES; i++) {
        fprintf(stderr, "queue %d: %u in, marked %u bits %u\n", i, s->q[i].in, s->q[i].marked, s->q[i].bits);
    }
    for (int i = 0; i < PROCESSES; i++) {
        fprintf(stderr, "process %d at %u queue %u rung %u marked %u; dead %u\n", i, s->p[i].at, s->p[i].queue,
                s->p[i].rung, s->p[i].bell_marked, s->dead);
    }
}

static int bit_of(int waiter)
{
    return shared ? 0 : waiter;
}

static void next_item(state *s, int i)
{
    s->p[i].item++;
    s->p[i].bit = s->p[i].to_ring = s->p[i].left = s->p[i].must_wake = 0;
    s->p[i].at = s->p[i].item == (i == WAITERS ? first_puts : 1) ? DONE : PUT;
}

/* One step of a waiter. 0: it cannot go on by itself. */
static int wait_step(state *s, int i)
{
    uint8_t *at = &s->p[i].at, k = s->p[i].queue;
    switch (*at) {
    case READ_BELL:
        s->p[i].rung = s->p[i].queue = s->p[i].found = s->p[i].woken = 0;
        *at = SET_BIT;
        return 1;
    case SET_BIT:
        s->q[k].bits |= (uint8_t)(1u << bit_of(i));
        *at = MARK;
        return 1;
    case MARK:
        s->q[k].marked = 1;
        *at = LOOK;
        return 1;
    case LOOK:
        s->p[i].found |= s->q[k].in != 0;
        s->p[i].queue++;
        *at = s->p[i].queue < queues ? SET_BIT : s->p[i].found ? TAKE : MARK_BELL;
        return 1;
    case TAKE:
        for (int q = 0; q < QUEUES; q++) {
            s->q[q].in -= s->q[q].in != 0; /* another waiter may have been faster */
        }
        *at = READ_BELL;
        return 1;
    case MARK_BELL:
        s->p[i].bell_marked |= !s->p[i].rung;
        *at = s->p[i].rung ? READ_BELL : ENTER_SLEEP;
        return 1;
    case ENTER_SLEEP:
        *at = s->p[i].rung ? READ_BELL : ASLEEP;
        return 1;
    case ASLEEP:
        if (!s->p[i].woken) {
            return 0;
        }
        *at = READ_BELL;
        return 1;
    default:
        return 0;
    }
}

/* The next waiter after the bit that is rung. */
static void to_next_bell(state *s, int i)
{
    while (s->p[i].to_ring < WAITERS && bit_of(s->p[i].to_ring) != s->p[i].bit) {
        s->p[i].to_ring++;
    }
    if (s->p[i].to_ring < WAITERS) {
        s->p[i].at = RING;
        return;
    }
    s->p[i].bit++;
    s->p[i].to_ring = 0;
    s->p[i].at = CLEAR_BIT;
}

static int put_step(state *s, int i)
{
    uint8_t *at = &s->p[i].at;
    int k = (i + s->p[i].item) % queues;
    switch (*at) {
    case PUT: /* one exchange */
        s->q[k].in++;
        if (s->q[k].marked) {
            s->q[k].marked = 0;
            *at = LOAD_BITS;
        } else {
            next_item(s, i);
        }
        return 1;
    case LOAD_BITS:
        s->p[i].left = s->q[k].bits;
        *at = CLEAR_BIT;
        return 1;
    case CLEAR_BIT:
        while (s->p[i].bit < WAITERS && !(s->p[i].left >> s->p[i].bit & 1)) {
            s->p[i].bit++;
        }
        if (s->p[i].bit == WAITERS) {
            next_item(s, i);
        } else if (s->q[k].bits >> s->p[i].bit & 1) {
            s->q[k].bits &= (uint8_t)~(1u << s->p[i].bit);
            to_next_bell(s, i);
        } else {
            s->p[i].bit++; /* another producer rings them */
        }
        return 1;
    case RING: {
        int w = s->p[i].to_ring;
        s->p[i].must_wake = s->p[w].bell_marked;
        s->p[w].rung = 1;
        s->p[w].bell_marked = 0;
        *at = WAKE;
        return 1;
    }
    case WAKE: {
        int w = s->p[i].to_ring;
        s->p[w].woken |= s->p[i].must_wake && s->p[w].at == ASLEEP;
        s->p[i].to_ring++;
        to_next_bell(s, i);
        return 1;
    }
    default:
        return 0;
    }
}

static int step(state *s, int i)
{
    return i + 1 == s->dead ? 0 : i < WAITERS ? wait_step(s, i) : put_step(s, i);
}

/* No process can go on: each waiter that is left has taken all there is. */
static void look_at_the_end(const state *s)
{
    for (int i = 0; i < WAITERS; i++) {
        for (int q = 0; q < queues && s->p[i].at != DONE; q++) {
            MUST(s->q[q].in == 0);
        }
    }
}

static size_t visit(void)
{
    model_set found = {.size = sizeof(state)};
    state start;
    memset(&start, 0, sizeof start);
    for (int i = WAITERS; i < PROCESSES; i++) {
        start.p[i].at = PUT;
    }
    for (int i = waiters; i < WAITERS; i++) {
        start.p[i].at = DONE;
    }
    model_add(&found, &start);
    for (size_t n = 0; n < found.n; n++) {
        state now, next;
        int any = 0;
        memcpy(&now, found.states + n * sizeof now, sizeof now);
        const state *s = &now;
        for (int i = 0; i < PROCESSES; i++) {
            next = now;
            if (step(&next, i)) {
                any = 1;
                model_add(&found, &next);
            }
            if (now.dead == 0 && now.p[i].at != DONE) {
                next = now;
                next.dead = (uint8_t)(i + 1);
                memset(&next.p[i], 0, sizeof next.p[i]);
                next.p[i].at = DONE;
                model_add(&found, &next);
            }
        }
        if (!any && now.dead <= WAITERS) {
            look_at_the_end(s);
        } else if (!any) { /* a producer died, perhaps before its last rings: sleepers check again after a slice */
            int slept = 0;
            next = now;
            for (int i = 0; i < WAITERS; i++) {
                if (next.p[i].at == ASLEEP) {
                    for (int q = 0; q < QUEUES; q++) {
                        slept |= now.q[q].in != 0;
                    }
                    next.p[i].at = READ_BELL;
                }
            }
            if (slept) {
                model_add(&found, &next);
            }
        }
    }
    size_t n = found.n;
    free(found.states);
    free(found.table);
    return n;
}

static size_t run(int with_waiters, int with_queues, int first, int with_shared)
{
    waiters = with_waiters;
    queues = with_queues;
    first_puts = first;
    shared = with_shared;
    return visit();
}

int main(void)
{
    size_t n = run(2, 1, 2, 0) + run(2, 1, 2, 1) + run(1, 2, 2, 0);
    printf("%zu states\nmodel_bells: ok\n", n);
    return 0;
}
