/* Noise over the block of each kind of object, before it is attached and between any calls of two processes that use it.
 * What surrounds the block, and the chunks of a queue, is poisoned: a step out of it is seen. */
#include "faults.h"
#include "list.h"
#include "monitor.h"
#include "queue.h"
#include "ring.h"

static cl_store stores[2];
static cl_block_ref place;
static uint32_t number;
static int64_t soon; /* one deadline for all: nothing waits long */
static fuzz_input *input;
static int acting = -1, nested; /* who is in the middle of a call; whether the other one acts just then */

static int64_t deadline_of(uint8_t arg)
{
    return arg & 0x40 ? cl_monotonic_ns() + (fuzz_meanwhile != NULL ? 50 * soon : soon) : 0; /* the other one ends it */
}

/* A block of its own segment; all of the segment that is not the block's capacity is out of bounds. */
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

static void second_dies(void)
{
    if (stores[1].base != NULL && !(nested && acting == 1)) {
        fuzz_kill(&stores[1]);
    }
}

static void noise(fuzz_input *in, uint64_t nbytes)
{
    fuzz_noise(in, place.data, nbytes < place.capacity ? nbytes : place.capacity);
}

/* One turn of what is fuzzed: reads its operation, and does it. */
static void (*turn)(fuzz_input *in);

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

/* Whose turn it is; -1 where it cannot be: the other one is in the middle of a call. */
static int whose(uint8_t arg)
{
    int who = nested ? !acting : arg & 1;
    if (stores[1].base == NULL && who == 1) {
        return nested ? -1 : 0;
    }
    return who;
}

static void turns(fuzz_input *in, void (*one)(fuzz_input *in))
{
    turn = one;
    input = in;
    while (in->left != 0 && turn != NULL) {
        one(in);
        acting = -1;
    }
    fuzz_allow_all();
}

static void also(fuzz_input *in, uint8_t arg)
{
    if (arg & 1) {
        fuzz_meanwhile = meanwhile;
        fuzz_asleep = arg >> 1 & 1;
    } else {
        fuzz_refuse(in);
    }
}

/* ---- what sync.h declares */

static void sync_step(fuzz_input *in, int who, const cl_object *o, uint8_t op, uint8_t arg)
{
    static cl_spin spin;
    static uint32_t seen, entry, index;
    cl_store *s = &stores[who];
    uint32_t n = fuzz_8(in);
    switch (o->is.kind) {
    case CL_KIND_LOCK:
    case CL_KIND_RLOCK: {
        cl_mutex *m = (cl_mutex *)(void *)o->head;
        switch (op % 6) {
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
                fuzz_result(cl_barrier_release(s, o, entry));
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
    } else if (who >= 0 && (!attached[who] || op == 126)) {
        cl_head *head = who ? as_second() : (cl_head *)(void *)place.data;
        attached[who] = fuzz_result(cl_object_attach(&objects[who], head, place.capacity, number)) == CL_OK;
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
    attached[1] = 0;
    attached[0] = cl_object_attach(&objects[0], head, place.capacity, number) == CL_OK;
    turns(in, sync_turn);
}

/* ---- queue */

static uint8_t body[CL_INLINE_MAX + 8];

static void take(cl_queue *q, uint8_t arg, int n, int commit)
{
    unsigned flags = arg & 0x40 ? CL_MAY_WAIT : 0;
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
            return; /* it is over in any case */
        }
    }
    if (commit && rc != CL_CORRUPT && fuzz_result(cl_queue_commit(q)) == CL_OK) {
        return;
    }
    cl_queue_abort(q);
}

/* What comes of items that were handed out and not done. */
static void late_step(fuzz_input *in, cl_queue *q, uint8_t op, uint8_t arg)
{
    uint32_t at = 0, deliveries;
    cl_got got = {0};
    if (op < 146) {
        fuzz_result(cl_queue_nack(q, fuzz_8(in)));
    } else if (op < 149) {
        fuzz_result(cl_queue_discard(q, fuzz_8(in)));
    } else if (op < 154) {
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
    } else { /* one that looks for what there is in any case */
        cl_queue_abort(q);
    }
}

static void queue_step(fuzz_input *in, cl_queue *q, uint8_t op, uint8_t arg)
{
    unsigned flags = arg & 0x40 ? CL_MAY_WAIT : 0;
    uint32_t done = 0;
    uint64_t lost;
    if (op >= 140) {
        late_step(in, q, op, arg);
        return;
    }
    switch (op % 14) {
    case 0:
    case 1: {
        cl_item items[3];
        for (int i = 0; i < 3; i++) {
            items[i] = (cl_item){.body = body, .nbytes = fuzz_number(in, 2) % (CL_INLINE_MAX + 8)};
        }
        fuzz_result(cl_queue_put(q, items, 1 + (arg >> 1) % 3, &done, deadline_of(arg), flags));
        break;
    }
    case 2: { /* in a block, with a hold */
        cl_block_ref payload, other;
        cl_address draft;
        uint64_t n = 16 + fuzz_number(in, 2);
        if (cl_alloc(q->store, n, flags, &payload) != CL_OK) {
            break;
        }
        cl_token token = {0};
        if (cl_alloc(q->store, 100, flags, &other) == CL_OK) {
            if (cl_draft(q->store, other.segment, other.index, flags, &draft) == CL_OK) {
                token = (cl_token){.hold = draft.hold, .nonce = draft.nonce};
            }
            cl_release(q->store, other.segment_id, other.segment, other.index, flags);
        }
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
        cl_queue_poll(q, 100);
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
    default: { /* over a chunk that it stands on: what an item says of itself */
        cl_cached *c = arg & 2 ? &q->get_chunk : &q->put_chunk;
        if (c->held && c->ref.data != NULL) {
            fuzz_noise(in, c->ref.data, c->ref.capacity < 1024 ? c->ref.capacity : 1024);
        }
    }
    }
}

static cl_queue queues[2];

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
    } else if (who < 0) {
        return;
    } else if (!attached[who]) {
        void *at = who ? as_second() : place.data;
        attached[who] = fuzz_result(cl_queue_attach(&queues[who], &stores[who], at, place.capacity, number)) == CL_OK;
        turn = attached[who] ? turn : NULL;
    } else if (op == 158) {
        cl_queue_detach(&queues[who]);
        attached[who] = 0;
    } else {
        acting = nested ? acting : who;
        queue_step(in, &queues[who], op, arg);
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
    unsigned flags = arg & 0x40 ? CL_MAY_WAIT : 0;
    int64_t since = 0;
    cl_frame frames[8], *f = frames;
    uint32_t n = 0;
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
        if (fuzz_result(cl_ring_last(r, fuzz_8(in) % 9, CL_MAY_WAIT, frames, &n)) == CL_OK) {
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
        fuzz_result(cl_ring_bury(r, CL_MAY_WAIT));
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

static cl_ring rings[2];
static uint32_t ring_slots, ring_readers, readers[2], claimed[2];

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
        free((void *)rings[1].loans);
        memset(&rings[1], 0, sizeof rings[1]);
        second_dies();
        attached[1] = 0;
        readers[1] = claimed[1] = UINT32_MAX;
    } else if (op == 157) {
        also(in, arg);
    } else if (who < 0) {
        return;
    } else if (!attached[who]) {
        void *at = who ? as_second() : place.data;
        attached[who] = fuzz_result(cl_ring_attach(&rings[who], &stores[who], at, place.capacity, number)) == CL_OK;
        if (!attached[who]) {
            memset(&rings[who], 0, sizeof rings[who]);
            turn = NULL;
        }
    } else if (op == 158) {
        cl_ring_detach(&rings[who]);
        attached[who] = 0;
        readers[who] = claimed[who] = UINT32_MAX;
    } else {
        acting = nested ? acting : who;
        ring_step(in, &rings[who], &readers[who], &claimed[who], op, arg);
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
        } else if (!is_attached || op == 126) {
            is_attached = fuzz_result(cl_list_check(list, place.capacity, arg & 2 ? registry : 5, &nslots)) == CL_OK;
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
    nested = 0;
    fuzz_open_sound(&stores[0], 1);
    fuzz_open_sound(&stores[1], 1);
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
