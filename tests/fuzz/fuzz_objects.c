/* Noise over the block of each kind of object, before it is attached and between any calls of two processes that use
 * it. The memory around the block, and around the chunks of a queue, is poisoned: an access outside is seen. */
#include "faults.h"
#include "bells.h"
#include "list.h"
#include "monitor.h"
#include "queue_parts.h"
#include "ring.h"

#include <limits.h>
#include <setjmp.h>

static cl_store stores[2];
static cl_block_ref place;
static uint32_t number;
static int64_t soon; /* one deadline for all: no call waits long */
static fuzz_input *input;
static int acting = -1, nested; /* the process inside a call; whether the other one acts at this moment */
static int same; /* ... or another thread of the same process */
static int (*waited_for)(void); /* whether such a thread would wait for the process inside a call, which cannot go on */
static sigjmp_buf death;

static int sleeps_left;

static int64_t deadline_of(uint8_t arg)
{
    int other = fuzz_meanwhile != NULL || fuzz_refused[REFUSES_SLEEP].left != 0 || sleeps_left != 0; /* that ends it */
    return arg & 0x40 ? cl_monotonic_ns() + (other ? 100 * soon : soon) : 0;
}

/* With or without a deadline, the call may or may not be allowed to wait: the two are independent. */
static unsigned flags_of(uint8_t arg)
{
    return (arg >> 6 ^ arg >> 5) & 1 ? CL_MAY_WAIT : 0;
}

/* A block in its own segment; all of the segment outside the block's capacity is out of bounds. */
static void *make(uint64_t nbytes, uint32_t kind)
{
    MUST(cl_alloc(&stores[0], nbytes, CL_MAY_WAIT | CL_FOR_OBJECT, &place) == CL_OK);
    number = place.segment * CL_BLOCKS + place.index;
    memset(place.data, 0, place.capacity);
    const cl_map *map = stores[0].maps[place.segment];
    uint64_t before = (uint64_t)(place.data - map->base);
    FUZZ_POISON(map->base + CL_PAGE, before - CL_PAGE);
    FUZZ_POISON(place.data + place.capacity, map->size - before - place.capacity);
    cl_head *head = (cl_head *)(void *)place.data;
    head->magic = CL_OBJECT_MAGIC;
    head->kind = kind;
    return head;
}

/* The memory of the second process: it maps the same file a second time. */
static void *as_second(void)
{
    cl_map *map;
    const cl_map *first = stores[0].maps[place.segment];
    fuzz_paused++;
    MUST(cl_enter_tables(&stores[1], CL_MAY_WAIT) == CL_OK);
    MUST(cl_segment_map(&stores[1], first->id, place.segment, &map) == CL_OK);
    cl_leave_tables(&stores[1]);
    fuzz_paused--;
    return map->base + (place.data - first->base);
}

/* The second process is stopped with the registry's lock, until this number of sleeps. */
static int goes_on(void)
{
    if (sleeps_left > 0 && --sleeps_left == 0) {
        fuzz_paused++; /* it does that in one go */
        cl_leave(&stores[1]);
        fuzz_paused--;
    }
    return sleeps_left > 0;
}

static void holds_registry(uint8_t arg)
{
    if (sleeps_left == 0 && stores[1].base != NULL && !(nested && acting == 1)) {
        fuzz_paused++;
        sleeps_left = cl_enter(&stores[1], CL_OP_LIST, CL_MAY_WAIT) == CL_OK ? 1 + (arg >> 1 & 7) : 0;
        fuzz_paused--;
    }
}

static void second_dies(void)
{
    if (stores[1].base != NULL && !(nested && acting == 1)) {
        fuzz_kill(&stores[1]);
        sleeps_left = 0;
    }
}

/* Possible values of lock words and counts. Those of the second process stay when it is dead. */
static void set_words(void)
{
    const uint64_t first = cl_self(&stores[0]), second = cl_self(&stores[1]);
    const uint64_t words[8] = {
        first,    second, CL_LOCK_LEFT, UINT32_MAX, second | CL_LOCK_SLEEP, first | CL_LOCK_SLEEP, CL_MAX_OWNERS - 1,
        INT64_MAX};
    memcpy(fuzz_words, words, sizeof words);
}

static void noise(fuzz_input *in, uint64_t nbytes)
{
    fuzz_noise(in, place.data, nbytes < place.capacity ? nbytes : place.capacity);
}

/* One turn of the fuzzed object: reads an operation and executes it. */
static void (*turn)(fuzz_input *in);
static void (*forget_second)(void); /* what the target itself records about it, when it died inside a call */

static void meanwhile(void)
{
    if (!nested && acting >= 0 && input->left != 0) {
        int who = acting;
        nested = 1;
        turn(input);
        nested = 0;
        acting = who;
    }
}

static int more_turns, dies;

static int registry_is_locked(void)
{
    return (atomic_load(&stores[0].control->lock) & ~CL_LOCK_SLEEP) != 0;
}

/* Between two steps of the running call. Not inside the registry's lock: that is the target `registry`. */
static void in_the_middle(void)
{
    if (acting < 0 || nested) {
        return;
    }
    if (registry_is_locked()) {
        fuzz_stop_at(1, in_the_middle);
        return;
    }
    if (dies && acting == 1) {
        siglongjmp(death, 1);
    } else {
        same = same && (waited_for == NULL || !waited_for());
        for (int n = 1 + more_turns; n > 0 && turn != NULL; n--) {
            meanwhile();
        }
    }
    same = 0;
}

/* The process whose turn it is; -1 if it cannot run: the other one is inside a call. */
static int whose(uint8_t arg)
{
    int who = nested ? (same ? acting : !acting) : arg & 1;
    if ((stores[1].base == NULL || sleeps_left > 0) && who == 1) {
        return nested ? -1 : 0;
    }
    return who;
}

static void one_turn(void)
{
    if (sigsetjmp(death, 0) == 0) {
        turn(input);
        return;
    }
    acting = -1;
    nested = 0;
    fuzz_meanwhile = NULL;
    if (forget_second != NULL) {
        forget_second();
    }
    second_dies();
}

static void turns(fuzz_input *in, void (*one)(fuzz_input *in))
{
    turn = one;
    input = in;
    while (in->left != 0 && turn != NULL) {
        one_turn();
        acting = -1;
    }
    fuzz_allow_all();
}

static void also(fuzz_input *in, uint8_t arg)
{
    if (arg & 1) {
        fuzz_meanwhile = meanwhile;
        fuzz_asleep = arg >> 1 & 1;
        fuzz_slow = arg >> 2 & 1;
    } else {
        fuzz_refuse(in);
    }
}

/* The step of the next call; whether the second process dies there, or which process acts there, and how often. */
static void stop(fuzz_input *in, int threads)
{
    uint8_t at = fuzz_8(in), how = fuzz_8(in);
    dies = how & 1;
    same = threads && (how >> 1 & 1);
    more_turns = how >> 2 & 3;
    fuzz_stop_at(1 + (at & 63), in_the_middle);
}

/* ---- waiting for many: bells.h */

static void watch_step(fuzz_input *in, int who, const cl_watch *what, uint8_t arg)
{
    static cl_watch kept[2][2];
    static uint32_t slices[2];
    static cl_spin spin;
    static int closed;
    uint8_t how = fuzz_8(in), ready[2] = {0};
    uint32_t *high = &stores[who].control->owners_high, was = *high;
    cl_watch *w = kept[who];
    for (int i = 0; i < 2; i++) {
        uint32_t sets = how & 0x80 ? 0 : w[i].sets, deserted = how & 0x80 ? 0 : w[i].deserted;
        w[i] = *what;
        w[i].sets = sets;
        w[i].deserted = deserted;
        w[i].closed = how & 1 ? &closed : NULL;
    }
    closed = arg >> 1 & 1;
    slices[who] = how & 0x80 ? 0 : slices[who];
    if (arg & 0x10) {
        *high = UINT32_MAX; /* damage that the target `registry` does not bring here */
    }
    switch (how >> 1 & 7) {
    case 0:
        cl_watch_ask(w);
        break;
    case 1:
        cl_bells_ring(what->store, what->head);
        break;
    case 2: { /* as the thread of the other process, which has written its descriptors, does */
        cl_owner *o = &what->store->owners[how >> 4 & 1];
        atomic_store(&o->heard, arg & 2 ? atomic_load(&o->bell) | 1u : arg & 4);
        break;
    }
    case 3: {
        fuzz_result(cl_bells_heard(&stores[who], deadline_of(arg)));
        break;
    }
    case 4:
    case 5:
        for (int n = how & 0x40 ? 9 : 1; n > 0; n--) {
            (void)cl_watch_is_ready(w, how >> 4 & 1);
        }
        break;
    default:
        fuzz_result(cl_watch_any(w, (uint32_t)(how >> 4) % 3, ready, &slices[who], deadline_of(arg), &spin));
    }
    *high = arg & 0x10 ? was : *high;
}

/* ---- what sync.h declares */

static cl_spin spin; /* its learnt budget, from zero in each input */

static void sync_step(fuzz_input *in, int who, const cl_object *o, uint8_t op, uint8_t arg)
{
    static uint32_t seen, entry, index;
    cl_store *s = &stores[who];
    uint32_t n = fuzz_8(in);
    n = n == 255 ? UINT32_MAX : n == 254 ? INT_MAX : n;
    if (arg & 0x80) {
        spin.budget_ns = CL_SPIN_MAX_NS; /* the learnt budget */
    }
    switch (o->is.kind) {
    case CL_KIND_LOCK:
    case CL_KIND_RLOCK: {
        cl_mutex *m = (cl_mutex *)(void *)o->head;
        switch (op % 7) {
        case 6:
            fuzz_result(cl_mutex_try(s, &m->word, &spin));
            break;
        case 0:
            fuzz_result(cl_mutex_lock(s, &m->word, deadline_of(arg), &spin));
            break;
        case 1:
            cl_unlock(&m->word);
            break;
        case 2:
            fuzz_result(cl_rlock(s, m, 1 + (n & 1), deadline_of(arg), &spin));
            break;
        case 3:
            if (cl_rlock_is_mine(s, m, 1 + (n & 1))) {
                cl_runlock(m);
            }
            break;
        case 4:
            if (cl_rlock_is_mine(s, m, 1)) {
                n = cl_rlock_save(m);
                fuzz_result(cl_rlock_restore(s, m, 1, n, deadline_of(arg), &spin));
            }
            break;
        default:
            fuzz_result(cl_unlock_own(&m->word, cl_self(s)));
        }
        break;
    }
    case CL_KIND_SEMAPHORE:
        fuzz_result(op & 1 ? cl_sem_release(o, n)
                           : cl_sem_acquire((cl_semaphore *)(void *)o->head, deadline_of(arg), &spin));
        break;
    case CL_KIND_ROBUST_SEMAPHORE:
        if (op % 3 == 0) {
            fuzz_result(cl_robust_acquire(s, o, deadline_of(arg), &spin));
        } else if (op % 3 == 1) {
            fuzz_result(cl_robust_release(s, o, deadline_of(arg)));
        } else {
            MUST(cl_robust_value(s, o) <= o->is.room);
        }
        break;
    case CL_KIND_RWLOCK:
        switch (op % 5) {
        case 0:
            fuzz_result(cl_rw_read(s, o, deadline_of(arg), &spin));
            break;
        case 1:
            fuzz_result(cl_rw_write(s, o, deadline_of(arg), &spin));
            break;
        case 2:
            fuzz_result(cl_rw_forget(s, o));
            break;
        case 3:
            fuzz_result(cl_rw_write(s, o, -1, &spin));
            break;
        default:
            fuzz_result(cl_rw_release(s, o, n & 1));
        }
        break;
    case CL_KIND_EVENT: {
        cl_event *e = (cl_event *)(void *)o->head;
        if (op % 3 == 0) {
            cl_event_set(e);
        } else if (op % 3 == 1) {
            cl_event_clear(e);
        } else {
            seen = n & 1 ? 0 : seen;
            fuzz_result(cl_event_wait(e, &seen, deadline_of(arg), &spin));
        }
        break;
    }
    case CL_KIND_CONDITION:
        switch (op % 5) {
        case 0:
            if (fuzz_result(cl_condition_begin(s, o, &entry)) == CL_OK) {
                MUST(entry < o->is.room);
            }
            break;
        case 1:
            if (entry < o->is.room) {
                fuzz_result(cl_condition_wait(s, o, entry, deadline_of(arg), &spin));
            }
            break;
        case 2:
            if (entry < o->is.room) {
                fuzz_result(cl_condition_end(o, entry));
            }
            break;
        case 3:
            MUST(cl_condition_notify(s, o, n) <=
                 o->is.room); /* and one more for each that died with its notification */
            break;
        default: {
            cl_object lock;
            if (fuzz_result(cl_condition_lock(o, place.capacity, &lock)) == CL_OK) {
                fuzz_result(cl_mutex_lock(s, &((cl_mutex *)(void *)lock.head)->word, deadline_of(arg), &spin));
            }
        }
        }
        break;
    case CL_KIND_BARRIER:
        switch (op % 5) {
        case 0:
            if (fuzz_result(cl_barrier_arrive(s, o, &entry, &index, deadline_of(arg))) == CL_OK) {
                MUST(entry < o->is.room && index < o->is.number);
            }
            break;
        case 1:
            if (entry < o->is.room) {
                fuzz_result(cl_barrier_wait(s, o, entry, deadline_of(arg)));
            }
            break;
        case 2:
            if (entry < o->is.room) {
                fuzz_result(cl_barrier_release(s, o, entry, deadline_of(arg)));
            }
            break;
        case 3:
            fuzz_result(cl_barrier_break(s, o, (int)(n & 1)));
            break;
        default:
            if (fuzz_result(cl_barrier_waiting(s, o, &n)) == CL_OK) {
                MUST(n <= o->is.room);
            }
        }
        break;
    default:
        break;
    }
}

static cl_object objects[2];
static int attached[2];

static void sync_turn(fuzz_input *in)
{
    uint8_t op = fuzz_8(in), arg = fuzz_8(in);
    int who = whose(arg);
    if (op >= 128) {
        noise(in, 64 + 96);
    } else if (op == 127) {
        second_dies();
    } else if (op == 125) {
        also(in, arg);
    } else if (op == 124) {
        stop(in, 1);
    } else if (op == 123 && who >= 0 && attached[who]) {
        const cl_object *o = &objects[who];
        switch (o->is.kind) {
        case CL_KIND_LOCK:
        case CL_KIND_RLOCK:
        case CL_KIND_SEMAPHORE:
        case CL_KIND_ROBUST_SEMAPHORE:
        case CL_KIND_EVENT:
            acting = nested ? acting : who;
            watch_step(in, who, &(cl_watch){.store = &stores[who], .head = o->head, .is = o->is, .thread = 1}, arg);
            break;
        default:
            break;
        }
    } else if (who >= 0 && (!attached[who] || op == 126)) {
        cl_head *head = who ? as_second() : (cl_head *)(void *)place.data;
        uint64_t capacity = op == 126 && arg & 2 ? arg & 0xf8 : place.capacity; /* too small a block */
        attached[who] = fuzz_result(cl_object_attach(&objects[who], head, capacity, number)) == CL_OK;
    } else if (who >= 0) {
        acting = nested ? acting : who;
        sync_step(in, who, &objects[who], op, arg);
    }
}

static void fuzz_sync(fuzz_input *in, uint32_t kind)
{
    static const uint32_t rooms[] = {0, 0, 0, 6, 0, 5, 6, 0, 3};
    cl_head *head = make(64 + 64 + 8 * 8, kind);
    head->room = kind < sizeof rooms / sizeof *rooms ? rooms[kind] : 0;
    head->number = kind == CL_KIND_BARRIER ? 3 : kind == CL_KIND_ROBUST_SEMAPHORE ? head->room : 5;
    head->flags = fuzz_8(in);
    if (kind == CL_KIND_SEMAPHORE && head->flags & 0x80) {
        head->number = 0; /* no highest value */
    }
    forget_second = NULL;
    waited_for = NULL;
    spin = (cl_spin){0};
    attached[1] = 0;
    attached[0] = cl_object_attach(&objects[0], head, place.capacity, number) == CL_OK;
    turns(in, sync_turn);
}

/* ---- queue */

static uint8_t body[CL_INLINE_MAX + 8];

static void take(cl_queue *q, uint8_t arg, int n, int commit)
{
    unsigned flags = flags_of(arg);
    int rc = fuzz_result(cl_queue_begin(q, deadline_of(arg), flags));
    if (rc != CL_OK) {
        return;
    }
    for (int i = 0; i < n; i++) {
        cl_got got = {0};
        rc = fuzz_result(cl_queue_next(q, &got, flags));
        if (rc != CL_OK) {
            break;
        }
        const uint8_t *from = got.body != NULL ? got.body : got.payload.data;
        MUST(from != NULL && (got.body != NULL || got.nbytes <= got.payload.capacity));
        MUST((uint64_t)got.ntokens * sizeof(cl_token) <= got.nbytes);
        for (uint64_t k = 0; k < got.nbytes; k++) { /* as the receiver copies it */
            (void)*(const volatile uint8_t *)(from + k);
        }
        int settles = cl_queue_needs_registry(q) && commit;
        if (settles) {
            rc = fuzz_result(cl_queue_settle(q, &got));
            if (rc == CL_OK && got.body != NULL) {
                free((void *)(uintptr_t)got.body);
            }
        }
        if (got.body == NULL && got.payload.data != NULL && rc != CL_AGAIN) {
            fuzz_result(cl_release(q->store, got.payload.segment_id, got.payload.segment, got.payload.index, flags));
        }
        if (settles) {
            return; /* it has ended in any case */
        }
    }
    if (commit && rc != CL_CORRUPT && fuzz_result(cl_queue_commit(q)) == CL_OK) {
        return;
    }
    cl_queue_abort(q);
}

/* The items that were handed out and not acknowledged. */
static void late_step(fuzz_input *in, cl_queue *q, uint8_t op, uint8_t arg)
{
    uint32_t at = 0, deliveries;
    cl_got got = {0};
    if (op < 146) {
        fuzz_result(cl_queue_nack(q, fuzz_8(in)));
    } else if (op < 149) {
        fuzz_result(cl_queue_discard(q, fuzz_8(in)));
    } else if (op < 151) {
        if (fuzz_result(cl_queue_dead_letter(q, &at, &got, &deliveries)) == CL_OK) {
            MUST(got.nbytes <= got.payload.capacity && (uint64_t)got.ntokens * sizeof(cl_token) <= got.nbytes);
            for (uint64_t k = 0; k < got.nbytes; k++) {
                (void)*(const volatile uint8_t *)(got.payload.data + k);
            }
            if (arg & 2) {
                fuzz_result(cl_queue_discard(q, got.sequence));
            }
            fuzz_result(cl_release(q->store, got.payload.segment_id, got.payload.segment, got.payload.index, 0));
        }
        MUST(at <= q->leases);
    } else { /* one that looks for items in any case */
        cl_queue_abort(q);
    }
}

static void draft_one(cl_store *store, unsigned flags, cl_token *token)
{
    cl_block_ref other;
    cl_address draft;
    if (cl_alloc(store, 100, flags, &other) == CL_OK) {
        if (cl_draft(store, other.segment, other.index, flags, &draft) == CL_OK) {
            *token = (cl_token){.hold = draft.hold, .nonce = draft.nonce};
        }
        cl_release(store, other.segment_id, other.segment, other.index, flags);
    }
}

static void queue_step(fuzz_input *in, cl_queue *q, uint8_t op, uint8_t arg)
{
    unsigned flags = flags_of(arg);
    uint32_t done = 0;
    uint64_t lost;
    if (arg & 0x80) {
        q->spin_get.budget_ns = q->spin_put.budget_ns = CL_SPIN_MAX_NS; /* the learnt budget */
    }
    if (op >= 140) {
        late_step(in, q, op, arg);
        return;
    }
    switch (op % 14) {
    case 0:
    case 1: {
        cl_item items[3];
        cl_token token = {0};
        for (int i = 0; i < 3; i++) {
            items[i] = (cl_item){.body = body, .nbytes = fuzz_number(in, 2) % (CL_INLINE_MAX + 8)};
        }
        if (op % 14 == 1 && arg & 0x10) { /* in the chunk, with a token: of no hold, if the lock is not available */
            items[0].tokens = &token;
            items[0].ntokens = items[0].nbytes >= sizeof token;
            draft_one(q->store, flags, &token);
            items[0].ntokens = items[0].ntokens && token.nonce != 0;
        }
        fuzz_result(cl_queue_put(q, items, 1 + (arg >> 1) % 3, &done, deadline_of(arg), flags));
        break;
    }
    case 2: { /* in a block, with a hold */
        cl_block_ref payload;
        uint64_t n = 16 + fuzz_number(in, 2);
        if (cl_alloc(q->store, n, flags, &payload) != CL_OK) {
            break;
        }
        cl_token token = {0};
        draft_one(q->store, flags, &token);
        memcpy(payload.data, &token, sizeof token);
        cl_item item = {.nbytes = n, .tokens = &token, .ntokens = token.nonce != 0, .payload = &payload};
        fuzz_result(cl_queue_put(q, &item, 1, &done, deadline_of(arg), flags));
        if (!done) {
            cl_release(q->store, payload.segment_id, payload.segment, payload.index, flags);
        }
        break;
    }
    case 3:
    case 4:
    case 5:
        take(q, arg, 1 + op % 3, 1);
        break;
    case 6:
        take(q, arg, 1, 0);
        break;
    case 7:
        (void)(cl_queue_size(q->head) + cl_queue_bytes(q->head) + cl_queue_unfinished(q));
        cl_queue_poll(q, arg & 0x80 ? CL_SPIN_MAX_NS : 100);
        break;
    case 8:
        fuzz_result(cl_queue_done(q, fuzz_8(in)));
        break;
    case 9:
        fuzz_result(cl_queue_join(q, deadline_of(arg), &lost));
        break;
    case 10:
        fuzz_result(cl_queue_shut(q, arg >> 1 & 1));
        break;
    case 11:
        cl_queue_use(q, arg & 2 ? CL_ROLE_PUTS : CL_ROLE_GETS);
        cl_queue_role(q, arg >> 1 & 7, arg >> 4 & 1);
        break;
    case 12:
        fuzz_result(cl_queue_deserted(q));
        break;
    default: { /* the chunk that it is at: the header of an item */
        cl_cached *c = arg & 2 ? &q->get_chunk : &q->put_chunk;
        if (c->held && c->ref.data != NULL) {
            fuzz_noise(in, c->ref.data, c->ref.capacity < 1024 ? c->ref.capacity : 1024);
        }
    }
    }
}

static cl_queue queues[2];

/* A reference of the queue names a block that exists and is the wrong one. */
static void aim(fuzz_input *in)
{
    uint8_t what = fuzz_8(in), how = fuzz_8(in);
    cl_queue_head *h = (cl_queue_head *)(void *)place.data;
    cl_block_ref to = place;
    fuzz_paused++;
    if (how & 3 && cl_alloc(&stores[0], how & 1 ? 100 : 4000, CL_MAY_WAIT, &to) != CL_OK) {
        to = place;
    }
    fuzz_paused--;
    uint64_t block = (uint64_t)to.segment * CL_BLOCKS + to.index;
    cl_side *sides[] = {cl_active_side(&h->put), cl_active_side(&h->get), &h->first};
    if (what % 5 < 3) {
        cl_side *side = sides[what % 5];
        cl_position p = cl_read_side(side);
        p.segment_id = to.segment_id;
        p.generation = to.generation;
        p.block = block;
        p.serial = how & 4 ? 0 : p.serial;
        cl_write_side(side, &p);
    } else if (what % 5 == 3 && queues[0].leases != 0) {
        cl_lease *l = &h->leases[(what / 5) % (queues[0].leases < 8 ? queues[0].leases : 8)];
        cl_store64(&l->segment_id, to.segment_id);
        cl_store64(&l->generation, to.generation);
        cl_store64(&l->block, block);
        atomic_store(&l->owner, how & 8 ? (how & 16 ? CL_SET_ASIDE : CL_LOCK_LEFT) : (uint32_t)fuzz_words[1]);
        cl_store64(&l->sequence, how & 32 ? 5 : 0);
        cl_store64(&l->nbytes, how & 64 ? 5000 : 50);
        atomic_store(&l->ntokens, how & 128 ? 9 : 0);
    } else if (queues[0].put_chunk.held) { /* the first item of the chunk, or a jump */
        uint8_t *at = queues[0].put_chunk.ref.data + sizeof(cl_chunk);
        cl_record r = {.length = how & 8 ? 0 : sizeof r + sizeof(cl_elsewhere),
                       .ntokens = CL_ELSEWHERE | (how & 16 ? 1 : 0),
                       .nbytes = how & 32 ? 5000 : 64};
        cl_elsewhere e = {.segment_id = to.segment_id, .generation = to.generation + (how >> 6 & 1), .block = block};
        memcpy(at, &r, sizeof r);
        memcpy(at + sizeof r, &e, sizeof e);
    }
}

/* All places of a table are in use. */
static void fill_queue(fuzz_input *in)
{
    uint8_t which = fuzz_8(in);
    cl_queue_head *h = (cl_queue_head *)(void *)place.data;
    uint32_t word = (uint32_t)fuzz_words[which >> 4 & 7];
    for (uint32_t i = 0; !(which & 1) && i < CL_USERS; i++) {
        atomic_store(&h->users[i].owner, word);
        atomic_store(&h->users[i].role, which >> 1 & 3);
        cl_store64(&h->users[i].taken, which & 8);
    }
    for (uint32_t i = 0; which & 1 && i < queues[0].leases && i < 8; i++) {
        atomic_store(&h->leases[i].owner, word);
        cl_store64(&h->leases[i].sequence, which & 2 ? i : cl_passed(&h->get) + i);
        atomic_store(&h->leases[i].again, which & 4 ? 1 : 0);
    }
}

static void forget_second_queue(void)
{
    memset(&queues[1], 0, sizeof queues[1]);
    attached[1] = 0;
}

static void queue_turn(fuzz_input *in)
{
    uint8_t op = fuzz_8(in), arg = fuzz_8(in);
    int who = whose(arg);
    if (op >= 160) {
        uint64_t most = offsetof(cl_queue_head, users) + 2 * sizeof(cl_user);
        uint32_t leases = queues[0].leases < 8 ? queues[0].leases : 8;
        if (op >= 224 && leases) {
            fuzz_noise(in, place.data + sizeof(cl_queue_head), leases * sizeof(cl_lease));
        } else {
            noise(in, most);
        }
    } else if (op == 159 && attached[1]) {
        second_dies();
        attached[1] = stores[1].base != NULL;
    } else if (op == 157) {
        also(in, arg);
    } else if (op == 156) {
        stop(in, 0);
    } else if (op == 151) {
        holds_registry(arg);
    } else if (op == 155) {
        aim(in);
    } else if (op == 154) {
        fill_queue(in);
    } else if (who < 0) {
        return;
    } else if (!attached[who]) {
        void *at = who ? as_second() : place.data;
        uint64_t capacity = op == 153 ? arg & 0xf8 : place.capacity; /* the block is smaller than it needs */
        attached[who] = fuzz_result(cl_queue_attach(&queues[who], &stores[who], at, capacity, number)) == CL_OK;
        turn = attached[who] ? turn : NULL;
    } else if (op == 158) {
        cl_queue_detach(&queues[who]);
        attached[who] = 0;
    } else {
        acting = nested ? acting : who;
        if (op == 153) {
            const cl_queue *q = &queues[who];
            cl_head is = {.kind = CL_KIND_QUEUE, .room = q->leases, .spare = {0, q->deliveries}};
            watch_step(in, who,
                       &(cl_watch){
                           .store = q->store, .head = &q->head->head, .is = is, .queue = arg & 8 ? &queues[who] : NULL},
                       arg);
        } else {
            queue_step(in, &queues[who], op, arg);
        }
    }
}

static void fuzz_queue(fuzz_input *in)
{
    uint8_t how = fuzz_8(in);
    uint32_t leases = how & 2 ? 8 : 0;
    cl_queue_head *head = make(sizeof(cl_queue_head) + leases * sizeof(cl_lease), CL_KIND_QUEUE);
    head->head.number = how & 4 ? 5 : 0;
    head->head.room = leases;
    head->head.flags = (how & 1 || leases ? CL_QUEUE_JOINABLE : 0) | (leases ? CL_QUEUE_REDELIVER : 0);
    head->head.spare[0] = how & 8 ? 10000 : 0;
    head->head.spare[1] = how & 16 ? 2 : 0; /* how often an item is handed out */
    attached[0] = attached[1] = 0;
    memset(queues, 0, sizeof queues);
    forget_second = forget_second_queue;
    waited_for = NULL;
    turns(in, queue_turn);
}

/* ---- ring */

static void frame_is_sound(const cl_ring *r, const cl_frame *f, int write)
{
    MUST(f->slot < r->slots);
    for (uint64_t k = 0; k < r->stride; k++) {
        volatile uint8_t *p = r->data + f->slot * r->stride + k;
        if (write) {
            *p = 3;
        } else {
            (void)*p;
        }
    }
}

static void ring_step(fuzz_input *in, cl_ring *r, uint32_t *reader, uint32_t *slot, uint8_t op, uint8_t arg)
{
    unsigned flags = flags_of(arg);
    int64_t since = 0;
    cl_frame frames[8], *f = frames;
    cl_ring_counts counts;
    uint32_t n = 0;
    if (arg & 0x80) {
        r->spin_read.budget_ns = r->spin_write.budget_ns = CL_SPIN_MAX_NS;
    }
    switch (op % 12) {
    case 0:
    case 1:
        if (*slot == UINT32_MAX && fuzz_result(cl_ring_claim(r, deadline_of(arg), flags, &since, slot)) == CL_OK) {
            frame_is_sound(r, &(cl_frame){.slot = *slot}, 1);
        } else if (*slot != UINT32_MAX) {
            fuzz_result(cl_ring_publish(r, *slot, f));
            *slot = UINT32_MAX;
        }
        break;
    case 2:
        if (*slot != UINT32_MAX) {
            fuzz_result(cl_ring_give_up(r, *slot));
            *slot = UINT32_MAX;
        }
        break;
    case 3:
        if (fuzz_result(cl_ring_latest(r, fuzz_8(in), deadline_of(arg), flags, f)) == CL_OK) {
            frame_is_sound(r, f, 0);
            if (arg & 2) {
                fuzz_result(cl_ring_return(r, f->slot));
            }
        }
        break;
    case 4:
        if (fuzz_result(cl_ring_last(r, fuzz_8(in) % 9, arg & 0x20 ? 0 : CL_MAY_WAIT, frames, &n)) == CL_OK) {
            MUST(n <= 8);
            for (uint32_t i = 0; i < n; i++) {
                frame_is_sound(r, &frames[i], 0);
                fuzz_result(cl_ring_return(r, frames[i].slot));
            }
        }
        break;
    case 5:
        if (*reader == UINT32_MAX && fuzz_result(cl_ring_subscribe(r, arg >> 1 & 1, arg & 4 ? UINT64_MAX : fuzz_8(in),
                                                                   CL_MAY_WAIT, reader)) == CL_OK) {
            MUST(*reader < r->room);
        }
        break;
    case 6:
        if (*reader != UINT32_MAX) {
            fuzz_result(cl_ring_unsubscribe(r, *reader));
            *reader = UINT32_MAX;
        }
        break;
    case 7:
    case 8:
        if (*reader != UINT32_MAX && fuzz_result(cl_ring_next(r, *reader, deadline_of(arg), flags, f)) == CL_OK) {
            frame_is_sound(r, f, 0);
            if (arg & 2) {
                fuzz_result(cl_ring_return(r, f->slot));
            }
        }
        break;
    case 9:
        fuzz_result(cl_ring_return(r, fuzz_8(in) % r->slots));
        break;
    case 10:
        fuzz_result(cl_ring_release_dead(r, arg & 0x20 ? 0 : CL_MAY_WAIT));
        cl_ring_count(r, &counts);
        MUST(counts.held + counts.writing <= r->slots && counts.on_loan <= r->slots);
        break;
    default:
        if (arg & 2) {
            cl_ring_shut(r);
        }
        for (uint64_t k = 0; k < r->spec_bytes; k++) {
            (void)*(volatile uint8_t *)(r->spec + k);
        }
    }
}

static cl_ring rings[2], *crowded;
static uint32_t ring_slots, ring_readers, readers[2], claimed[2];

static void forget_second_ring(void)
{
    free((void *)rings[1].loans);
    memset(&rings[1], 0, sizeof rings[1]);
    attached[1] = 0;
    readers[1] = claimed[1] = UINT32_MAX;
}

static int ring_is_waited_for(void)
{
    const cl_ring *r = &rings[acting];
    int any = !attached[acting] || atomic_load(&r->joining) != 0;
    for (uint32_t i = 0; !any && i < r->slots; i++) {
        any = r->loans[i] == 0x80000000u;
    }
    return any;
}

/* The calls that a thread of ours was in have ended now. */
static void thread_goes_on(void)
{
    atomic_store(&crowded->calls, 0);
    for (uint32_t i = 0; i < crowded->slots; i++) {
        if (crowded->loans[i] == 0x80000000u) {
            atomic_store(&crowded->loans[i], 0);
        }
    }
    if (atomic_load(&crowded->joining) != 0) {
        if (nested) { /* it has joined */
            atomic_store(&crowded->members[5], cl_self(crowded->store));
            crowded->member = 5;
            atomic_store(&crowded->self, cl_self(crowded->store));
        }
        atomic_store(&crowded->joining, 0);
    }
}

/* Other threads of the process are inside calls, and go on when this one yields. */
static void crowd(cl_ring *r, uint8_t arg)
{
    int64_t since = 0;
    uint32_t slot = UINT32_MAX;
    cl_frame f;
    crowded = r;
    fuzz_meanwhile = thread_goes_on;
    fuzz_asleep = fuzz_slow = 0;
    int before = nested;
    switch (arg >> 1 & 3) {
    case 0:
        atomic_store(&r->calls, UINT64_MAX);
        if (fuzz_result(cl_ring_claim(r, 0, CL_MAY_WAIT, &since, &slot)) == CL_OK) {
            fuzz_result(cl_ring_publish(r, slot, &f));
        }
        break;
    case 1:
    case 2:
        for (uint32_t i = 0; i < r->slots; i++) {
            atomic_store(&r->loans[i], atomic_load(&r->loans[i]) == 0 ? 0x80000000u : atomic_load(&r->loans[i]));
        }
        if (arg & 2) {
            if (fuzz_result(cl_ring_latest(r, 0, 0, CL_MAY_WAIT, &f)) == CL_OK) {
                fuzz_result(cl_ring_return(r, f.slot));
            }
        } else {
            fuzz_result(cl_ring_return(r, 0));
        }
        break;
    default: /* it joins: it has joined in the end, or could not */
        if (atomic_load(&r->self) != cl_self(r->store)) {
            atomic_store(&r->joining, cl_self(r->store));
            nested = arg >> 3 & 1;
            fuzz_result(cl_ring_latest(r, 0, 0, CL_MAY_WAIT, &f));
            nested = before;
        }
    }
    nested = 0;
    thread_goes_on();
    nested = before;
    fuzz_meanwhile = NULL;
}

/* All places of a table are in use. */
static void fill_ring(cl_ring *r, uint8_t arg, uint8_t which)
{
    uint32_t word = (uint32_t)fuzz_words[which & 7];
    for (uint32_t i = 0; i < r->room; i++) {
        if (arg & 2) {
            atomic_store(&r->members[i], word);
        }
        if (arg & 4) {
            atomic_store(&r->readers[i].owner, word);
        }
    }
    for (uint32_t i = 0; arg & 8 && i < r->slots; i++) {
        atomic_store(&cl_ring_slot(r, i)->loans[0], which & 8 ? UINT64_MAX : 2);
    }
    for (uint32_t i = 0; arg & 16 && i < r->slots; i++) { /* a state that no process is in */
        atomic_store(&cl_ring_slot(r, i)->word, CL_SLOT_WORD(which >> 4 & 3, which >> 6, 0, arg >> 5));
    }
}

/* The second process becomes a forked child of the first: it has all that the first had, and is another process. */
static void fork_ring(void)
{
    if (attached[1]) {
        cl_ring_detach(&rings[1]);
    }
    free((void *)rings[1].loans);
    rings[1] = rings[0];
    rings[1].store = &stores[1];
    fuzz_paused++;
    rings[1].loans = malloc(rings[0].slots * sizeof *rings[0].loans);
    MUST(rings[1].loans != NULL);
    fuzz_paused--;
    memcpy((void *)rings[1].loans, (void *)rings[0].loans, rings[0].slots * sizeof *rings[0].loans);
    readers[1] = readers[0];
    claimed[1] = claimed[0];
    attached[1] = 1;
}

static void ring_turn(fuzz_input *in)
{
    uint8_t op = fuzz_8(in), arg = fuzz_8(in);
    int who = whose(arg);
    if (op >= 160) {
        uint64_t of_readers = sizeof(cl_ring_head) + ring_readers * sizeof(cl_au32);
        uint64_t of_slots = of_readers + ring_readers * sizeof(cl_reader);
        if (op < 192) {
            noise(in, sizeof(cl_ring_head) + 8);
        } else if (op < 224) {
            fuzz_noise(in, place.data + of_readers, 2 * sizeof(cl_reader));
        } else { /* the slots, the index, and the hints */
            fuzz_noise(in, place.data + of_slots, ring_slots * (64 + sizeof(cl_au64)) + 8);
        }
    } else if (op == 159 && attached[1] && !(nested && acting == 1)) {
        second_dies();
        forget_second_ring();
    } else if (op == 157) {
        also(in, arg);
    } else if (op == 156) {
        stop(in, 1);
    } else if (who < 0) {
        return;
    } else if (op == 155 && attached[0]) {
        fill_ring(&rings[0], arg, fuzz_8(in));
    } else if (op == 154 && attached[0] && stores[1].base != NULL && !nested) {
        fork_ring();
    } else if (!attached[who]) {
        void *at = who ? as_second() : place.data;
        uint64_t capacity = op == 152 ? arg & 0xf8 : place.capacity; /* the block is smaller than it needs */
        attached[who] = fuzz_result(cl_ring_attach(&rings[who], &stores[who], at, capacity, number)) == CL_OK;
        if (!attached[who]) {
            memset(&rings[who], 0, sizeof rings[who]);
            turn = NULL;
        }
    } else if (op == 158) {
        if (nested && same) {
            return; /* a thread of it is in there */
        }
        cl_ring_detach(&rings[who]);
        attached[who] = 0;
        readers[who] = claimed[who] = UINT32_MAX;
    } else {
        acting = nested ? acting : who;
        if (op == 153 && readers[who] < rings[who].room) {
            const cl_ring *r = &rings[who];
            cl_head is = {.kind = CL_KIND_RING, .number = r->slots, .room = r->room};
            watch_step(in, who,
                       &(cl_watch){.store = r->store,
                                   .head = &r->head->head,
                                   .is = is,
                                   .reader = readers[who],
                                   .self = cl_self(&stores[arg & 8 ? 1 : who])},
                       arg);
        } else if (op == 152 && !nested) {
            crowd(&rings[who], arg);
        } else {
            ring_step(in, &rings[who], &readers[who], &claimed[who], op, arg);
        }
    }
}

static void fuzz_ring(fuzz_input *in)
{
    uint8_t how = fuzz_8(in);
    uint32_t slots = 2 + (how & 3), room = 64 * (1 + (how >> 4 & 1));
    cl_ring_head *head = make(cl_ring_bytes(slots, room, 64, 5), CL_KIND_RING);
    head->head.flags = how & 4 ? CL_RING_MAY_BLOCK : 0;
    cl_ring_begin(head, slots, room, 64, 5);
    head->head.spare[1] = how & 8 ? 1000 : 0;
    ring_slots = slots;
    ring_readers = room;
    attached[0] = attached[1] = 0;
    memset(rings, 0, sizeof rings);
    forget_second = forget_second_ring;
    waited_for = ring_is_waited_for;
    readers[0] = readers[1] = claimed[0] = claimed[1] = UINT32_MAX;
    turns(in, ring_turn);
    free((void *)rings[0].loans);
    free((void *)rings[1].loans);
}

/* ---- list */

static void fuzz_list(fuzz_input *in)
{
    const uint64_t rooms[4] = {0, 13, 100, 0};
    uint64_t nslots = 0, registry = stores[0].registry_id;
    cl_list *list = make(cl_list_bytes(4, rooms), 0);
    memset(place.data, 0, sizeof(cl_head));
    cl_list_begin(list, 4, rooms, registry);
    int is_attached = 0;
    while (in->left != 0) {
        uint8_t op = fuzz_8(in), arg = fuzz_8(in), bytes[256];
        cl_store *s = &stores[arg & 1 && stores[1].base != NULL];
        if (op >= 128) {
            noise(in, sizeof(cl_list) + 4 * sizeof(cl_list_slot));
        } else if (op == 127) {
            second_dies();
        } else if (op == 125) {
            fuzz_refuse(in);
        } else if (op == 124) {
            uint64_t wild[2] = {(uint64_t)fuzz_8(in) << (arg & 63), (uint64_t)fuzz_8(in) << (arg & 63)};
            (void)cl_list_bytes(arg & 0x80 ? UINT64_MAX >> (arg & 7) : 2, wild);
        } else if (!is_attached || op == 126) {
            uint64_t capacity = arg & 4 ? arg & 0xf8 : place.capacity; /* the block is smaller than it needs */
            is_attached = fuzz_result(cl_list_check(list, capacity, arg & 2 ? registry : 5, &nslots)) == CL_OK;
        } else if (op & 1) {
            cl_value v = {0};
            uint64_t room = fuzz_8(in);
            memset(bytes, 0, sizeof bytes);
            if (fuzz_result(cl_list_get(s, list, place.capacity, nslots, fuzz_8(in), &v, bytes, room,
                                        deadline_of(arg))) == CL_OK) {
                MUST(v.length <= room);
            }
        } else {
            cl_value v = {.kind = fuzz_8(in), .word = 7, .length = fuzz_8(in)};
            memset(bytes, 1, sizeof bytes);
            fuzz_result(cl_list_set(s, list, place.capacity, nslots, fuzz_8(in), &v, bytes, deadline_of(arg)));
        }
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    fuzz_input in = {data, size};
    soon = 20000;
    uint8_t kind = fuzz_8(&in) % 12;
    fuzz_allow_all();
    acting = -1;
    nested = same = sleeps_left = 0;
    fuzz_open_sound(&stores[0], 1);
    fuzz_open_sound(&stores[1], 1);
    set_words();
    fuzz_each_sleep = goes_on;
    if (kind < CL_KIND_QUEUE && kind != 0) {
        fuzz_sync(&in, kind);
    } else if (kind == CL_KIND_QUEUE) {
        fuzz_queue(&in);
    } else if (kind == CL_KIND_RING) {
        fuzz_ring(&in);
    } else {
        fuzz_list(&in);
    }
    second_dies();
    fuzz_kill(&stores[0]);
    fuzz_empty();
    return 0;
}
