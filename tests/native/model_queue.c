/* The queue's protocol (queue.h) as a model: two producers, of two items and of one; two consumers; room for two
 * items; and one death of any process at any step. Every interleaving is visited. Shown: no item comes twice or
 * torn; no item is lost once put has returned for it; the items of each producer come in order; no hold is left
 * over; no process waits for ever. While no process has died, no wake is lost even if sleepers never check again by
 * themselves. */
#include "model.h"

enum { PRODUCERS = 2, CONSUMERS = 2, EACH = 2, PROCESSES = PRODUCERS + CONSUMERS, ITEMS = PRODUCERS * EACH, ROOM = 2 };
enum { NO_HOLD, OF_PRODUCER, OF_QUEUE };

typedef struct end {
    uint8_t count, sleeping, side; /* the commit word */
    uint8_t lock; /* process + 1 */
    uint8_t position[2]; /* of each side */
} end;

enum { /* the step that a process is at */
       BEGIN,
       LOCK,
       REPAIR,
       LOOK,
       FULL,
       MARK,
       ENTER_SLEEP,
       SLEEP,
       WRITE,
       GIVE,
       LOAD,
       SIDE,
       COMMIT,
       DROP,
       UNLOCK,
       WAKE,
       PASS_ON,
       DONE
};

typedef struct state {
    end put, get;
    uint8_t record[ITEMS + 1]; /* item + 1 at each position */
    uint8_t hold[ITEMS], sequence[ITEMS]; /* the holder; a hold of the queue says which position */
    uint8_t loaded[ITEMS]; /* a bit for each consumer that has loaded it */
    uint8_t returned[ITEMS]; /* put has returned for it: visible from outside */
    uint8_t taken[ITEMS]; /* how often the commit of a consumer took it */
    uint8_t order[PRODUCERS]; /* for each producer, its last item that was taken */
    uint8_t dead; /* process + 1 */
    struct {
        uint8_t at, item, seen, slept, woken, must_wake, more;
    } p[PROCESSES];
} state;

static void show(const state *s)
{
    fprintf(stderr, "put %u side %u lock %u sleeping %u; get %u side %u lock %u sleeping %u; dead %u\n", s->put.count,
            s->put.side, s->put.lock, s->put.sleeping, s->get.count, s->get.side, s->get.lock, s->get.sleeping,
            s->dead);
    for (int i = 0; i < PROCESSES; i++) {
        fprintf(stderr, " process %d at %u item %u seen %u\n", i, s->p[i].at, s->p[i].item, s->p[i].seen);
    }
    for (int i = 0; i < ITEMS; i++) {
        fprintf(stderr, " item %d: hold %u at %u loaded %u returned %u taken %u\n", i, s->hold[i], s->sequence[i],
                s->loaded[i], s->returned[i], s->taken[i]);
    }
}

static int is_producer(int i)
{
    return i < PRODUCERS;
}

/* The drafts of a dead producer and the loads of a dead consumer are reaped with it. */
static void die(state *s, int i)
{
    s->dead = (uint8_t)(i + 1);
    memset(&s->p[i], 0, sizeof s->p[i]);
    for (int k = 0; k < ITEMS; k++) {
        if (is_producer(i) && k / EACH == i && s->hold[k] == OF_PRODUCER) {
            s->hold[k] = NO_HOLD;
        }
        if (!is_producer(i)) {
            s->loaded[k] &= (uint8_t)~(1u << (i - PRODUCERS));
        }
    }
}

static void clean(state *s, int puts)
{
    for (int k = 0; k < ITEMS; k++) {
        if (s->hold[k] == OF_QUEUE && (puts ? s->sequence[k] >= s->put.count : s->sequence[k] < s->get.count)) {
            s->hold[k] = s->sequence[k] = NO_HOLD;
        }
    }
}

/* The kernel wakes one sleeper of an end's word: any of them. */
static void wake_one(state *s, int producers, int choice)
{
    for (int k = 0; k < PROCESSES; k++) {
        int who = (k + choice) % PROCESSES;
        if (is_producer(who) == producers && s->p[who].at == SLEEP && !s->p[who].woken && who + 1 != s->dead) {
            s->p[who].woken = 1;
            return;
        }
    }
}

/* One step of a process. 0: it cannot go on by itself. */
static int step(state *s, int i, int choice)
{
    int producer = is_producer(i);
    end *mine = producer ? &s->put : &s->get, *other = producer ? &s->get : &s->put;
    uint8_t *at = &s->p[i].at;
    int item = producer ? i * EACH + s->p[i].item : s->p[i].item;
    switch (*at) {
    case BEGIN:
        s->p[i].seen = s->p[i].woken = 0; /* no longer used: clearing them merges states that differ in nothing else */
        if (producer && s->p[i].item == (i == 0 ? 2 : 1)) {
            *at = DONE;
            return 1;
        }
        if (producer) {
            if (s->hold[item] == NO_HOLD) {
                s->hold[item] = OF_PRODUCER;
            }
            *at = LOCK;
        } else if (s->put.count <= s->get.count) { /* read once: the words only grow */
            s->p[i].seen = s->put.count;
            *at = MARK;
        } else {
            *at = LOCK;
        }
        return 1;
    case LOCK:
        if (mine->lock != 0 && mine->lock != s->dead) {
            return 0;
        }
        *at = mine->lock != 0 ? REPAIR : LOOK;
        mine->lock = (uint8_t)(i + 1);
        return 1;
    case REPAIR:
        clean(s, producer);
        *at = LOOK;
        return 1;
    case LOOK:
        if (producer) {
            s->p[i].seen = s->get.count;
            *at = s->put.count - s->get.count >= ROOM ? FULL : WRITE;
        } else {
            *at = s->put.count > s->get.count ? LOAD : FULL;
        }
        return 1;
    case FULL: /* or empty: release the lock and wait */
        mine->lock = 0;
        *at = producer ? MARK : BEGIN;
        return 1;
    case MARK: /* compare and swap: succeeds only if the word has not changed */
        if (other->count == s->p[i].seen) {
            other->sleeping = 1;
            *at = ENTER_SLEEP;
        } else {
            *at = BEGIN;
        }
        return 1;
    case ENTER_SLEEP: /* the kernel compares the whole word and queues the sleeper, in one step */
        s->p[i].woken = 0;
        *at = other->count != s->p[i].seen || !other->sleeping ? BEGIN : SLEEP;
        return 1;
    case SLEEP:
        if (!s->p[i].woken) { /* after a death, a sleeper that is not woken checks again by itself after a slice */
            int can = producer ? s->put.count - s->get.count < ROOM : s->put.count > s->get.count;
            if (s->dead == 0 || !can) {
                return 0;
            }
        }
        s->p[i].slept = 1;
        other->sleeping = 1; /* others may sleep too */
        *at = BEGIN;
        return 1;
    case WRITE:
        s->record[s->put.position[s->put.side]] = (uint8_t)(item + 1);
        *at = GIVE;
        return 1;
    case GIVE:
        MUST(s->hold[item] == OF_PRODUCER);
        s->hold[item] = OF_QUEUE;
        s->sequence[item] = s->put.count;
        *at = SIDE;
        return 1;
    case LOAD:
        s->p[i].item = (uint8_t)(s->record[s->get.position[s->get.side]] - 1);
        item = s->p[i].item;
        MUST(item < ITEMS && s->hold[item] == OF_QUEUE && s->sequence[item] == s->get.count);
        s->loaded[item] |= (uint8_t)(1u << (i - PRODUCERS));
        *at = SIDE;
        return 1;
    case SIDE:
        mine->position[mine->side ^ 1] = (uint8_t)(mine->position[mine->side] + 1);
        *at = COMMIT;
        return 1;
    case COMMIT:
        mine->side ^= 1;
        mine->count++;
        s->p[i].must_wake = mine->sleeping;
        mine->sleeping = 0;
        if (!producer) {
            s->record[s->get.position[mine->side ^ 1]] = 0; /* never read again */
            s->taken[item]++;
            MUST(s->taken[item] == 1 && s->order[item / EACH] <= item % EACH);
            s->order[item / EACH] = (uint8_t)(item % EACH + 1);
        }
        *at = producer ? UNLOCK : DROP;
        return 1;
    case DROP:
        MUST(s->hold[item] == OF_QUEUE);
        s->hold[item] = s->sequence[item] = NO_HOLD;
        *at = UNLOCK;
        return 1;
    case UNLOCK: /* a process that had slept passes the wake on if there is more */
        s->p[i].more = s->p[i].slept && (producer ? s->put.count - s->get.count < ROOM : s->put.count > s->get.count);
        mine->lock = 0;
        *at = WAKE;
        return 1;
    case WAKE:
        if (s->p[i].must_wake) {
            wake_one(s, !producer, choice);
        }
        *at = PASS_ON;
        return 1;
    case PASS_ON:
        if (s->p[i].more) {
            wake_one(s, producer, choice);
        }
        s->p[i].slept = s->p[i].must_wake = s->p[i].more = 0;
        if (producer) {
            s->returned[item] = 1;
            s->p[i].item++;
        } else {
            s->loaded[item] &= (uint8_t)~(1u << (i - PRODUCERS));
            s->p[i].item = 0;
        }
        *at = BEGIN;
        return 1;
    default:
        return 0;
    }
}

/* No process can go on: the end state must be right. */
static void at_rest(const state *s)
{
    int consumers = 0;
    for (int i = 0; i < PROCESSES; i++) {
        if (i + 1 == s->dead) {
            continue;
        }
        consumers += !is_producer(i);
        if (is_producer(i)) {
            MUST(s->p[i].at == DONE);
        } else {
            MUST(s->p[i].at == SLEEP && s->put.count == s->get.count); /* it waits for more, as it should */
        }
    }
    MUST(consumers != 0);
    state after = *s;
    if (s->dead != 0) { /* the next process repairs */
        clean(&after, s->put.lock == s->dead);
        if (s->get.lock == s->dead) {
            clean(&after, 0);
        }
    }
    for (int k = 0; k < ITEMS; k++) {
        MUST(!s->returned[k] || s->taken[k] == 1);
        MUST(after.hold[k] != OF_QUEUE && s->loaded[k] == 0);
    }
}

/* Under its lock a process works on data that no other process reads before the commit. The other processes need not
 * run between these steps, since it makes no difference to them, but death may come there. */
static int is_private(int at)
{
    return at == REPAIR || at == LOOK || at == WRITE || at == GIVE || at == LOAD || at == SIDE || at == DROP ||
           at == FULL;
}

static model_set found = {.size = sizeof(state)};
static size_t deaths;

static void add_death(const state *s, int i)
{
    if (s->dead == 0 && s->p[i].at != DONE) {
        state next = *s;
        die(&next, i);
        deaths += (size_t)model_add(&found, &next);
    }
}

/* Every state that one process can cause. 0: none. */
static int go_on(const state *now, int i)
{
    int choices = now->p[i].at == WAKE || now->p[i].at == PASS_ON ? PROCESSES : 1, moved = 0;
    add_death(now, i);
    for (int choice = 0; choice < choices; choice++) {
        state next = *now;
        if (step(&next, i, choice)) {
            while (is_private(next.p[i].at)) {
                add_death(&next, i);
                step(&next, i, choice);
            }
            model_add(&found, &next);
            moved = 1;
        }
    }
    return moved;
}

int main(void)
{
    state start;
    size_t rests = 0;
    memset(&start, 0, sizeof start);
    model_add(&found, &start);
    for (size_t at = 0; at < found.n; at++) {
        state now;
        int moved = 0;
        memcpy(&now, found.states + at * sizeof now, sizeof now);
        for (int i = 0; i < PROCESSES; i++) {
            moved |= i + 1 != now.dead && go_on(&now, i);
        }
        if (!moved) {
            at_rest(&now);
            rests++;
        }
    }
    printf("%zu states, %zu deaths, %zu ways to end\nmodel_queue: ok\n", found.n, deaths, rests);
    return 0;
}
