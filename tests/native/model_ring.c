/* The ring's protocol (ring.h) as a model: writers, a reader that drops and one that blocks, two slots, and one
 * death of any process at any step. A step is one load, store or exchange of a word that other processes see. Every
 * interleaving is visited. Shown: a reader sees whole frames only, and they do not change while they are lent to it;
 * numbers grow without gaps; a blocking reader misses nothing; no slot and no loan is left over; from each state
 * each process can finish, alone, what it began: no process waits for a stopped one. Sleepers are woken as in the
 * queue, which model_queue.c checks. */
#include "model.h"

enum { PROCESSES = 4, SLOTS = 2, BEFORE = 2 /* frames that are there at the start */, FRAMES_MAX = 4 };
enum { FREE, CLAIMED, WRITING, PUBLISHED };
enum { NOBODY, WRITES, GIVES_UP_ONE, DROPS, BLOCKS }; /* what a process does */
enum {
    GONE, /* not used in this run, dead, or finished */
    IDLE,
    LAST, /* last_of: `last`, the index, the slot's word, its exchange, `last` plus one */
    LAST_INDEX,
    FINISH_WORD,
    FINISH_MOVE,
    FINISH_LAST,
    LOOK_SPARE,
    LOOK_NEEDED,
    LOOK_WINDOW,
    LOOK_ALL,
    LOOK_AGAIN,
    TRY_WORD,
    TRY_FREE,
    TRY_LOANS,
    TRY_CLAIM,
    TRY_LOANS_AGAIN,
    TRY_UNDO,
    TRY_WRITE,
    HINT_WORD,
    HINT_LOANS,
    HINT_AGAIN,
    FILL,
    FILL_MORE,
    GIVE_UP,
    GIVE_UP_HINT,
    NUMBER,
    NUMBER_BEFORE,
    NUMBER_INDEX,
    NUMBERED,
    NUMBERED_HINT,
    RELEASE,
    RELEASE_WORD,
    RELEASE_MOVE,
    RELEASE_HINT,
    RELEASE_LOANS,
    RELEASE_READER,
    RELEASE_MEMBER,
    RELEASE_HINTS,
    SUBSCRIBE,
    SUBSCRIBED,
    SUBSCRIBED_LAST,
    NEXT,
    NEXT_INDEX,
    TAKE_BIT,
    TAKE_WORD,
    TAKE_UNCLAIM,
    TAKE_UNDO,
    TAKEN,
    READ,
    READ_MORE,
    RETURN,
    RETURNED,
    RETURNED_HINT
};

typedef struct state {
    uint16_t word[SLOTS]; /* | state 2 | member 2 | call 2 | number 4 | */
    uint8_t loans[SLOTS]; /* a bit for each process */
    uint8_t first[SLOTS], second[SLOTS]; /* halves of the pixels */
    uint8_t index[SLOTS]; /* | number | slot 1 | */
    uint8_t last, spare;
    uint8_t dead, released, releaser; /* process + 1 */
    uint8_t blocking; /* a bit for each process that blocks and is not yet released */
    uint8_t cursor[PROCESSES];
    struct {
        uint8_t at, then, last, i, k, s, wanted, back, before, n;
        uint16_t w;
    } p[PROCESSES];
} state;

static uint8_t does[PROCESSES], frames_of[PROCESSES];
static int one_member; /* all writers are threads of one member: only the call number tells them apart */
static int mortal;

static void show(const state *s)
{
    fprintf(stderr, "last %u spare %u dead %u released %u releaser %u\n", s->last, s->spare, s->dead, s->released,
            s->releaser);
    for (int i = 0; i < SLOTS; i++) {
        fprintf(stderr, " slot %d: state %d member %d call %d number %d loans %u pixels %u %u; index %u: %u\n", i,
                s->word[i] >> 8, s->word[i] >> 6 & 3, s->word[i] >> 4 & 3, s->word[i] & 15, s->loans[i], s->first[i],
                s->second[i], s->index[i] >> 1, s->index[i] & 1);
    }
    for (int i = 0; i < PROCESSES; i++) {
        fprintf(stderr, " process %d at %u slot %u n %u last %u s %u cursor %u\n", i, s->p[i].at, s->p[i].i, s->p[i].n,
                s->p[i].last, s->p[i].s, s->cursor[i]);
    }
}

static uint16_t word(int is, int member, int call, int seq)
{
    return (uint16_t)(is << 8 | member << 6 | call << 4 | seq);
}

static int member_of(int i)
{
    return one_member ? 0 : i;
}

static int state_of(uint16_t w)
{
    return w >> 8;
}

static uint8_t seq_of(uint16_t w)
{
    return w & 15;
}

static int exchange(uint16_t *at, uint16_t from, uint16_t to)
{
    int same = *at == from;
    *at = same ? to : *at;
    return same;
}

static int passed_over(const state *s, uint16_t w)
{
    return (state_of(w) == PUBLISHED || state_of(w) == CLAIMED) && seq_of(w) + SLOTS <= s->last;
}

static uint8_t needed_after(const state *s)
{
    uint8_t cursor = 255;
    for (int i = 0; i < PROCESSES; i++) {
        cursor = (s->blocking >> i & 1) && s->cursor[i] < cursor ? s->cursor[i] : cursor;
    }
    return cursor;
}

static int has_it(const state *s, int i) /* between `taken` and `return`: it may read the pixels */
{
    return s->p[i].at == TAKEN || s->p[i].at == READ || s->p[i].at == READ_MORE || s->p[i].at == RETURN;
}

static void idle(state *s, int i)
{
    uint8_t n = s->p[i].n;
    memset(&s->p[i], 0, sizeof s->p[i]);
    s->p[i].n = n;
    s->p[i].at = IDLE;
    if (does[i] == WRITES || does[i] == GIVES_UP_ONE) {
        s->p[i].at = n == frames_of[i] ? GONE : IDLE;
    }
}

static uint8_t pixels_of(const state *s, int i)
{
    return (uint8_t)(1 + i * FRAMES_MAX + s->p[i].n);
}

/* The next step of one process. If it has nothing to do it returns to IDLE with nothing changed. */
#define P s->p[i]
static void step(state *s, int i)
{
    uint8_t bit = (uint8_t)(1u << i), failed = P.back == LOOK_SPARE ? HINT_WORD : P.back;
    switch (P.at) {
    case IDLE:
        P.at = LAST;
        P.then = does[i] == DROPS ? NEXT : does[i] != BLOCKS ? LOOK_SPARE : s->blocking & bit ? NEXT : SUBSCRIBE;
        break;
    case LAST:
        P.last = s->last;
        P.at = LAST_INDEX;
        break;
    case LAST_INDEX:
        if (s->index[(P.last + 1) % SLOTS] >> 1 != P.last + 1) {
            P.at = P.then;
            P.k = 0;
        } else {
            P.k = s->index[(P.last + 1) % SLOTS] & 1;
            P.at = FINISH_WORD;
        }
        break;
    case FINISH_WORD:
        P.w = s->word[P.k];
        P.at = state_of(P.w) == WRITING && seq_of(P.w) < P.last + 1 ? FINISH_MOVE : FINISH_LAST;
        break;
    case FINISH_MOVE:
        exchange(&s->word[P.k], P.w, word(PUBLISHED, 0, 0, P.last + 1));
        P.at = FINISH_LAST;
        break;
    case FINISH_LAST:
        if (s->last == P.last) {
            uint8_t at = s->index[(P.last + 1) % SLOTS];
            MUST(at >> 1 == P.last + 1 && s->word[at & 1] == word(PUBLISHED, 0, 0, P.last + 1));
            s->last++;
        }
        P.w = 0;
        P.at = P.then == NUMBERED ? NUMBERED : LAST;
        break;

    case LOOK_SPARE:
        if (P.k == SLOTS) {
            P.at = LOOK_NEEDED;
            break;
        }
        P.i = P.k++;
        if (s->spare >> P.i & 1) {
            s->spare &= (uint8_t)~(1u << P.i);
            P.wanted = 0;
            P.back = LOOK_SPARE;
            P.at = TRY_WORD;
        }
        break;
    case LOOK_NEEDED:
        P.before = needed_after(s);
        P.s = P.last >= SLOTS ? P.last - SLOTS + 1 : 1;
        P.at = LOOK_WINDOW;
        break;
    case LOOK_WINDOW: {
        if (P.s > P.last || P.s > P.before) {
            P.at = LOOK_ALL;
            P.k = P.s = P.before = 0;
            break;
        }
        uint8_t at = s->index[P.s % SLOTS];
        P.wanted = P.s++;
        if (at >> 1 == P.wanted) {
            P.i = at & 1;
            P.back = LOOK_WINDOW;
            P.at = TRY_WORD;
        }
        break;
    }
    case LOOK_ALL:
        if (P.k == SLOTS) {
            P.at = LOOK_AGAIN;
            break;
        }
        P.i = P.k++;
        P.wanted = 0;
        P.back = LOOK_ALL;
        P.at = TRY_WORD;
        break;
    case LOOK_AGAIN:
        if (s->last != P.last) {
            P.at = LAST;
        } else if (s->dead != 0 && !s->released && (s->releaser == 0 || s->releaser == s->dead)) {
            s->releaser = (uint8_t)(i + 1);
            P.at = LAST;
            P.then = RELEASE;
        } else {
            idle(s, i);
        }
        break;

    case TRY_WORD:
        P.w = s->word[P.i];
        if (state_of(P.w) == FREE) {
            P.at = TRY_FREE;
        } else if (state_of(P.w) == WRITING || seq_of(P.w) == 0 || seq_of(P.w) > P.last ||
                   (P.wanted != 0 ? seq_of(P.w) != P.wanted : seq_of(P.w) + SLOTS > P.last)) {
            P.at = failed;
        } else {
            P.at = TRY_LOANS;
        }
        break;
    case TRY_FREE:
        P.at = exchange(&s->word[P.i], P.w, word(WRITING, member_of(i), 0, seq_of(P.w))) ? FILL : failed;
        break;
    case TRY_LOANS:
        P.at = s->loans[P.i] == 0 ? TRY_CLAIM : failed;
        break;
    case TRY_CLAIM:
        P.at = exchange(&s->word[P.i], P.w, word(CLAIMED, member_of(i), i, seq_of(P.w))) ? TRY_LOANS_AGAIN : failed;
        break;
    case TRY_LOANS_AGAIN:
        P.at = s->loans[P.i] == 0 ? TRY_WRITE : TRY_UNDO;
        break;
    case TRY_UNDO:
        exchange(&s->word[P.i], word(CLAIMED, member_of(i), i, seq_of(P.w)), word(PUBLISHED, 0, 0, seq_of(P.w)));
        P.at = HINT_WORD;
        break;
    case TRY_WRITE:
        P.at = exchange(&s->word[P.i], word(CLAIMED, member_of(i), i, seq_of(P.w)),
                        word(WRITING, member_of(i), 0, seq_of(P.w)))
                   ? FILL
                   : failed;
        break;

    case HINT_WORD:
        P.at = passed_over(s, s->word[P.i]) ? HINT_LOANS : P.back;
        break;
    case HINT_LOANS:
        P.at = s->loans[P.i] == 0 ? HINT_AGAIN : P.back;
        break;
    case HINT_AGAIN:
        s->spare |= (uint8_t)(1u << P.i);
        P.at = P.back;
        break;

    case FILL:
    case FILL_MORE:
        MUST(state_of(s->word[P.i]) == WRITING && (s->word[P.i] >> 6 & 3) == member_of(i));
        for (int other = 0; other < PROCESSES; other++) {
            MUST(other == i || ((!has_it(s, other) || s->p[other].i != P.i) &&
                                ((s->p[other].at != FILL && s->p[other].at != FILL_MORE) || s->p[other].i != P.i)));
        }
        if (P.at == FILL) {
            s->first[P.i] = pixels_of(s, i);
            P.at = FILL_MORE;
        } else {
            s->second[P.i] = pixels_of(s, i);
            P.at = does[i] == GIVES_UP_ONE && P.n == 0 ? GIVE_UP : NUMBER;
        }
        break;
    case GIVE_UP:
        MUST(exchange(&s->word[P.i], word(WRITING, member_of(i), 0, seq_of(s->word[P.i])),
                      word(FREE, 0, 0, seq_of(s->word[P.i]))));
        P.at = GIVE_UP_HINT;
        break;
    case GIVE_UP_HINT:
        s->spare |= (uint8_t)(1u << P.i);
        P.n++;
        idle(s, i);
        break;

    case NUMBER:
        P.s = P.before = P.wanted = P.back = 0;
        P.w = 0;
        P.at = LAST;
        P.then = NUMBER_BEFORE;
        break;
    case NUMBER_BEFORE:
        P.before = s->index[(P.last + 1) % SLOTS];
        P.at = P.before >> 1 > P.last ? NUMBER : NUMBER_INDEX;
        break;
    case NUMBER_INDEX:
        if (s->index[(P.last + 1) % SLOTS] != P.before) {
            P.at = NUMBER;
            break;
        }
        s->index[(P.last + 1) % SLOTS] = (uint8_t)((P.last + 1) << 1 | P.i);
        P.k = P.i;
        P.then = NUMBERED;
        P.at = FINISH_WORD;
        break;
    case NUMBERED:
        P.i = P.before & 1;
        P.at = NUMBERED_HINT;
        if (P.before >> 1 == 0 || !passed_over(s, s->word[P.i])) {
            P.n++;
            idle(s, i);
        }
        break;
    case NUMBERED_HINT:
        s->spare |= (uint8_t)(1u << P.i);
        P.n++;
        idle(s, i);
        break;

    case RELEASE: /* from here on P.i is the slot that is checked */
        P.i = 0;
        P.at = RELEASE_WORD;
        break;
    case RELEASE_WORD:
        if (P.i == SLOTS) {
            P.at = RELEASE_READER;
            break;
        }
        P.w = s->word[P.i];
        P.at = (state_of(P.w) == WRITING || state_of(P.w) == CLAIMED) && (P.w >> 6 & 3) == s->dead - 1 ? RELEASE_MOVE
                                                                                                       : RELEASE_LOANS;
        break;
    case RELEASE_MOVE: {
        int wrote = state_of(P.w) == WRITING;
        P.at = exchange(&s->word[P.i], P.w, word(wrote ? FREE : PUBLISHED, 0, 0, seq_of(P.w))) && wrote ? RELEASE_HINT
                                                                                                        : RELEASE_LOANS;
        break;
    }
    case RELEASE_HINT:
        s->spare |= (uint8_t)(1u << P.i);
        P.at = RELEASE_LOANS;
        break;
    case RELEASE_LOANS:
        s->loans[P.i] &= (uint8_t)~(1u << (s->dead - 1));
        P.i++;
        P.at = RELEASE_WORD;
        break;
    case RELEASE_READER:
        s->blocking &= (uint8_t)~(1u << (s->dead - 1));
        P.at = RELEASE_MEMBER;
        break;
    case RELEASE_MEMBER:
        s->released = 1;
        P.at = RELEASE_HINTS;
        break;
    case RELEASE_HINTS:
        for (int k = 0; k < SLOTS; k++) {
            if (state_of(s->word[k]) == FREE || passed_over(s, s->word[k])) {
                s->spare |= (uint8_t)(1u << k);
            }
        }
        s->releaser = 0;
        idle(s, i);
        break;

    case SUBSCRIBE:
        s->cursor[i] = P.last;
        P.at = SUBSCRIBED;
        break;
    case SUBSCRIBED:
        s->blocking |= bit;
        P.at = LAST;
        P.then = SUBSCRIBED_LAST;
        break;
    case SUBSCRIBED_LAST:
        s->cursor[i] = P.last;
        idle(s, i);
        break;
    case NEXT:
        P.s = s->cursor[i] + 1;
        P.s = P.last >= SLOTS && P.s < P.last - SLOTS + 1 ? P.last - SLOTS + 1 : P.s;
        P.at = NEXT_INDEX;
        break;
    case NEXT_INDEX: {
        if (P.s > P.last) {
            P.at = LAST;
            if (s->last == P.last) {
                idle(s, i);
            }
            break;
        }
        uint8_t at = s->index[P.s % SLOTS];
        P.i = at & 1;
        if (at >> 1 == P.s) {
            P.at = TAKE_BIT;
        } else {
            MUST(does[i] != BLOCKS);
            P.s++;
        }
        break;
    }
    case TAKE_BIT:
        s->loans[P.i] |= bit;
        P.at = TAKE_WORD;
        break;
    case TAKE_WORD:
        P.w = s->word[P.i];
        P.at = P.w == word(PUBLISHED, 0, 0, P.s)                ? TAKEN
               : state_of(P.w) == CLAIMED && seq_of(P.w) == P.s ? TAKE_UNCLAIM
                                                                : TAKE_UNDO;
        break;
    case TAKE_UNCLAIM:
        exchange(&s->word[P.i], P.w, word(PUBLISHED, 0, 0, P.s));
        P.at = TAKE_WORD;
        break;
    case TAKE_UNDO:
        MUST(does[i] != BLOCKS); /* it exists: no writer overwrites a frame that this reader has not had */
        MUST(seq_of(s->word[P.i]) != P.s || state_of(s->word[P.i]) == FREE ||
             state_of(s->word[P.i]) == WRITING); /* overwritten */
        s->loans[P.i] &= (uint8_t)~bit;
        P.s++;
        P.back = NEXT_INDEX;
        P.at = RETURNED;
        break;
    case TAKEN:
        MUST(does[i] != BLOCKS || P.s == s->cursor[i] + 1);
        s->cursor[i] = P.s;
        P.at = READ;
        break;
    case READ:
        MUST(s->word[P.i] == word(PUBLISHED, 0, 0, P.s) || state_of(s->word[P.i]) == CLAIMED);
        MUST(s->first[P.i] != 0 && s->first[P.i] == s->second[P.i]);
        P.w = s->first[P.i];
        P.at = READ_MORE;
        break;
    case READ_MORE:
        MUST(s->first[P.i] == P.w && s->second[P.i] == P.w);
        P.at = RETURN;
        break;
    case RETURN:
        s->loans[P.i] &= (uint8_t)~bit;
        P.back = IDLE;
        P.at = RETURNED;
        break;
    case RETURNED:
        if (passed_over(s, s->word[P.i])) {
            P.at = RETURNED_HINT;
        } else if (P.back == IDLE) {
            idle(s, i);
        } else {
            P.at = P.back;
        }
        break;
    case RETURNED_HINT:
        s->spare |= (uint8_t)(1u << P.i);
        if (P.back == IDLE) {
            idle(s, i);
        } else {
            P.at = P.back;
        }
        break;
    default:
        MUST(0);
    }
#undef P
}

static model_set found;
static size_t deaths, rests;

/* Alone, it finishes what it began. */
static void alone(const state *s, int i)
{
    state now = *s;
    for (int steps = 0; now.p[i].at != IDLE && now.p[i].at != GONE; steps++) {
        MUST(steps < 100);
        step(&now, i);
    }
}

/* All live processes are idle. 1: none of them can do anything. */
static int rests_here(const state *s)
{
    for (int i = 0; i < PROCESSES; i++) {
        if (s->p[i].at == GONE) {
            continue;
        }
        if (s->p[i].at != IDLE) {
            return 0;
        }
        state after = *s;
        step(&after, i);
        while (after.p[i].at != IDLE && after.p[i].at != GONE) {
            step(&after, i);
        }
        if (memcmp(&after, s, sizeof after) != 0) {
            return 0;
        }
    }
    return 1;
}

static void at_rest(const state *s)
{
    int frames = BEFORE, writers_dead = 0;
    for (int i = 0; i < PROCESSES; i++) {
        int writes = does[i] == WRITES || does[i] == GIVES_UP_ONE;
        if (i + 1 == s->dead) {
            writers_dead = writes;
            frames -= writes ? frames_of[i] : 0;
        } else {
            MUST(does[i] == NOBODY || s->p[i].at == (writes ? GONE : IDLE));
            MUST(does[i] != BLOCKS || s->cursor[i] == s->last); /* one that drops may have missed the last */
        }
        frames += writes ? frames_of[i] - (does[i] == GIVES_UP_ONE && i + 1 != s->dead) : 0;
    }
    MUST(writers_dead ? s->last >= frames : s->last == frames);
    for (int k = 0; k < SLOTS; k++) {
        uint16_t w = s->word[k];
        int of_dead = s->dead != 0 && !s->released; /* what it left, before it is released */
        MUST(state_of(w) == FREE || state_of(w) == PUBLISHED || (of_dead && (w >> 6 & 3) == s->dead - 1));
        MUST((s->loans[k] & ~(of_dead ? 1u << (s->dead - 1) : 0)) == 0);
        MUST(of_dead || (state_of(w) != FREE && !passed_over(s, w)) || s->spare >> k & 1 || s->dead);
    }
}

static void explore(const char *name, const uint8_t *each, const uint8_t *frames, int shared, int may_die)
{
    state start;
    memset(&start, 0, sizeof start);
    memset(&found, 0, sizeof found);
    found.size = sizeof(state);
    one_member = shared;
    mortal = may_die;
    deaths = rests = 0;
    for (int i = 0; i < PROCESSES; i++) {
        does[i] = each[i];
        frames_of[i] = frames[i];
        start.p[i].at = each[i] == NOBODY ? GONE : IDLE;
    }
    start.spare = 0;
    start.last = BEFORE;
    for (int seq = 1; seq <= BEFORE; seq++) {
        int k = seq - 1;
        start.word[k] = word(PUBLISHED, 0, 0, seq);
        start.index[seq % SLOTS] = (uint8_t)(seq << 1 | k);
        start.first[k] = start.second[k] = (uint8_t)(200 + k);
    }
    model_add(&found, &start);
    for (size_t at = 0; at < found.n; at++) {
        state now;
        memcpy(&now, found.states + at * sizeof now, sizeof now);
        for (int i = 0; i < PROCESSES; i++) {
            if (now.p[i].at == GONE) {
                continue;
            }
            state next = now;
            step(&next, i);
            model_add(&found, &next);
            alone(&now, i);
            if (mortal && now.dead == 0) {
                next = now;
                next.dead = (uint8_t)(i + 1);
                memset(&next.p[i], 0, sizeof next.p[i]);
                deaths += (size_t)model_add(&found, &next);
            }
        }
        if (rests_here(&now)) {
            at_rest(&now);
            rests++;
        }
    }
    printf("%s: %zu states, %zu deaths, %zu ways to end\n", name, found.n, deaths, rests);
    free(found.states);
    free(found.table);
}

int main(void)
{
    explore("two writers of one member", (uint8_t[]){WRITES, WRITES, DROPS, NOBODY}, (uint8_t[]){1, 1, 0, 0}, 1, 0);
    explore("two writers, one that blocks", (uint8_t[]){WRITES, WRITES, BLOCKS, NOBODY}, (uint8_t[]){1, 1, 0, 0}, 0, 1);
    explore("two writers, one that drops", (uint8_t[]){WRITES, GIVES_UP_ONE, DROPS, NOBODY}, (uint8_t[]){1, 2, 0, 0}, 0,
            1);
    explore("a writer, two readers", (uint8_t[]){WRITES, DROPS, BLOCKS, NOBODY}, (uint8_t[]){2, 0, 0, 0}, 0, 1);
    puts("model_ring: ok");
    return 0;
}
