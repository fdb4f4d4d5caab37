/* Noise over the tables of a sound registry, between and under all operations of two owners, one of which may die. */
#include "faults.h"

#define REFS 8
static cl_store stores[2]; /* the second one dies and comes again */
static cl_block_ref refs[2][REFS];
static cl_address sent[REFS];
static cl_token tokens[REFS];
static cl_block_ref channel;
static void *heir_life;
static char posix_name[] = "copyless-fuzz-object";
static uint64_t posix_id[2];
static uint32_t posix_slot[2];
static int held; /* calls for which the second one still holds the registry's lock */
static int slow; /* times that it may still do so */
static int costly; /* calls left that read whole tables: a wild length makes them 200 MB long */

static uint32_t number_of(const cl_block_ref *r)
{
    return r->segment * CL_BLOCKS + r->index;
}

static void noise(fuzz_input *in)
{
    uint8_t *base = stores[0].base;
    static const struct {
        uint64_t offset, nbytes;
    } tables[] = {
        {CL_OFF_CONTROL, sizeof(cl_control)},
        {CL_OFF_CONTROL, 128},
        {CL_OFF_OWNERS, 4 * sizeof(cl_owner)},
        {CL_OFF_BUCKETS, CL_BUCKETS * 4},
        {CL_OFF_NAMES, 4 * sizeof(cl_name)},
        {CL_OFF_HOLDS, 24 * sizeof(cl_hold)},
        {CL_OFF_SEGMENTS, 8 * sizeof(cl_segment)},
        {CL_OFF_SEGMENTS, 64 + 4 * sizeof(cl_block)},
        {CL_OFF_SEGMENTS + sizeof(cl_segment), 64 + 4 * sizeof(cl_block)},
        {CL_OFF_MARKS, 64},
        {CL_OFF_MARK_BITS, 64},
        {CL_OFF_CONTROL + offsetof(cl_control, journal), 8 + 4 * sizeof(cl_write)},
    };
    uint8_t which = fuzz_8(in) % (sizeof tables / sizeof *tables);
    fuzz_noise(in, base + tables[which].offset, tables[which].nbytes);
}

static void forget_second(void)
{
    fuzz_kill(&stores[1]);
    memset(refs[1], 0, sizeof refs[1]);
}

static int keep_nothing(void *context, uint64_t sequence, uint64_t nonce)
{
    return ((sequence ^ nonce) & 1) != 0 && context != NULL;
}

static void let_go(void)
{
    if (held > 0) {
        cl_unlock_own(&stores[1].control->lock, CL_LOCK_WORD(stores[1].slot, stores[1].incarnation));
    }
    held = 0;
}

/* What comes from outside. */
static void beside(fuzz_input *in, cl_store *s, int who, uint8_t what)
{
    char path[128];
    if (what & 0x80) {
        fuzz_refuse(in);
        return;
    }
    switch (what & 3) {
    case 0: /* the second one ends well */
        if (who == 1) {
            MUST(cl_store_leave(s) <= 1);
            s->open = 0;
            forget_second();
        }
        break;
    case 1: /* the directory is cleaned up under them */
        if (what & 4) {
            snprintf(path, sizeof path, "%s/%s", fuzz_path, CL_REGISTRY_FILE);
            unlink(path);
        }
        break;
    case 2: /* memory is full: what may, goes to the disk */
        s->full_until_ns = cl_monotonic_ns() + 1000000000;
        break;
    default: /* the second one is stopped while it holds the lock: the first one never waits longer than a slice */
        if (stores[1].base != NULL && slow-- > 0 && cl_lock_registry(&stores[1], CL_OP_LIST, 0) == CL_OK) {
            held = 4;
        }
    }
}

static void step(fuzz_input *in)
{
    uint8_t op = fuzz_8(in), arg = fuzz_8(in);
    int who = arg & 1, at = arg >> 1 & (REFS - 1);
    unsigned flags = arg & 0x80 ? CL_MAY_WAIT : 0;
    cl_store *s = &stores[who];
    cl_block_ref *r = &refs[who][at], found;
    uint64_t freed;
    if (held > 0 && --held == 0) {
        held = 1;
        let_go();
    }
    if (held > 0) {
        who = 0;
        s = &stores[0];
        r = &refs[0][at];
    }
    if (op >= 96) {
        noise(in);
        return;
    }
    if (s->base == NULL && op % 28 != 18) {
        return;
    }
    if ((op % 28 >= 12 && op % 28 <= 15) && costly-- <= 0) {
        return;
    }
    switch (op % 28) {
    case 0:
    case 1: {
        uint64_t size = (fuzz_number(in, 2) + 1) << (fuzz_8(in) & 7);
        if (r->data != NULL) {
            break;
        }
        flags |= fuzz_8(in) & (CL_MAY_SPILL | CL_FOR_OBJECT | CL_ALONE | CL_STAY);
        if (fuzz_result(cl_alloc(s, size, flags, r)) == CL_OK) {
            MUST(r->data != NULL && r->capacity >= size);
            fuzz_touch(r, 1);
        } else {
            r->data = NULL;
        }
        break;
    }
    case 2:
    case 3:
        if (r->data != NULL) {
            fuzz_result(cl_release(s, r->segment_id, r->segment, r->index, flags));
            r->data = NULL;
        }
        break;
    case 4:
        if (r->data != NULL) {
            fuzz_result(cl_send(s, r->segment, r->index, flags, &sent[at]));
        }
        break;
    case 5: {
        cl_address a = sent[at];
        if (fuzz_8(in) & 1) {
            fuzz_noise(in, &a, sizeof a);
        }
        cl_block_ref *to = &refs[who][fuzz_8(in) & (REFS - 1)];
        if (to->data == NULL && fuzz_result(cl_load(s, &a, flags, to)) == CL_OK) {
            fuzz_touch(to, 0);
        } else if (to->data == NULL) {
            to->data = NULL;
        }
        break;
    }
    case 6:
        fuzz_result(cl_unsend(s, sent[at].hold, sent[at].nonce, flags));
        break;
    case 7: {
        cl_address a;
        if (r->data != NULL && fuzz_result(cl_draft(s, r->segment, r->index, flags, &a)) == CL_OK) {
            tokens[at] = (cl_token){.hold = a.hold, .nonce = a.nonce};
        }
        break;
    }
    case 8:
        fuzz_result(cl_mail(s, tokens[at].hold, tokens[at].nonce, flags));
        break;
    case 9:
        if (r->data != NULL) {
            char name[] = {(char)('a' + at), 0};
            fuzz_result(cl_publish(s, name, 1, r->segment, r->index, 0, 10, fuzz_8(in) & 1, flags));
        }
        break;
    case 10: {
        char name[] = {(char)('a' + at), 0};
        cl_named named;
        if (fuzz_result(cl_lookup(s, name, 1, flags, &named)) == CL_OK) {
            sent[at] = named.address;
        }
        break;
    }
    case 11: {
        char name[] = {(char)('a' + at), 0};
        fuzz_result(cl_unpublish(s, name, (uint32_t)fuzz_8(in) & 1 ? 0 : 1, flags));
        break;
    }
    case 12: {
        cl_reaped reaped;
        fuzz_result(cl_reap(s, flags, &reaped));
        break;
    }
    case 13:
        fuzz_result(cl_trim(s, fuzz_8(in), flags, &freed));
        break;
    case 14:
        if (cl_enter(s, CL_OP_LIST, flags) == CL_OK) {
            fuzz_result(cl_audit(s));
            cl_leave(s);
        }
        break;
    case 15: {
        cl_snapshot shot;
        if (fuzz_result(cl_snapshot_take(s, &shot, flags)) == CL_OK) {
            MUST(shot.control.owners_high <= CL_MAX_OWNERS && shot.control.holds_high <= CL_MAX_HOLDS);
            cl_snapshot_free(&shot);
        }
        break;
    }
    case 16:
        if (r->data != NULL) {
            fuzz_result(cl_find(s, r->data + fuzz_8(in), fuzz_8(in), flags, &found));
            if (fuzz_8(in) & 1) {
                fuzz_result(cl_mark_private(s, r, flags));
            }
        }
        break;
    case 17: /* the second one dies, in the middle of whatever it was at */
        held = 0;
        forget_second();
        break;
    case 18:
        if (stores[1].base == NULL && fuzz_result(fuzz_open(&stores[1], 1 + (arg >> 6))) != CL_OK) {
            forget_second();
        }
        break;
    case 19:
        if (channel.data != NULL) {
            cl_token payload;
            int with = fuzz_8(in) & 1 && r->data != NULL;
            fuzz_result(cl_give(s, number_of(&channel), fuzz_8(in), &tokens[at], 1 + (at < REFS - 1), with ? r : NULL,
                                flags, &payload));
        }
        break;
    case 20:
        if (channel.data != NULL) {
            fuzz_result(cl_take(s, number_of(&channel), &tokens[at], 1, fuzz_8(in) & 1 ? &tokens[0] : NULL, flags));
        }
        break;
    case 21:
        if (channel.data != NULL) {
            fuzz_result(cl_clean(s, number_of(&channel), keep_nothing, fuzz_8(in) & 1 ? &freed : NULL, flags));
        }
        break;
    case 22:
        fuzz_result(cl_posix_record(s, posix_name, sizeof posix_name - 1, 1, 1 + at, 10, fuzz_8(in) & 1, flags,
                                    &posix_id[who], &posix_slot[who]));
        break;
    case 23:
        fuzz_result(
            cl_posix_attach(s, posix_name, sizeof posix_name - 1, 1, 1 + at, flags, &posix_id[who], &posix_slot[who]));
        break;
    case 24:
        fuzz_result(cl_posix_forget(s, posix_name, sizeof posix_name - 1, 1, 1 + at, flags));
        fuzz_result(cl_release(s, posix_id[who], posix_slot[who], 0, flags));
        break;
    case 25: { /* the first one forks; the child does nothing but live, and dies at the next call */
        uint32_t slot;
        if (heir_life != NULL) {
            munmap(heir_life, CL_PAGE);
            heir_life = NULL;
        } else if (cl_enter(&stores[0], CL_OP_FORK, flags) == CL_OK) {
            if (fuzz_result(cl_join_child(&stores[0], &heir_life, &slot)) == CL_OK) {
                stores[0].owners[stores[0].slot].epoch++;
            }
            cl_leave(&stores[0]);
        }
        break;
    }
    case 26: {
        cl_control totals;
        fuzz_result(cl_peek(s, &totals, flags));
        break;
    }
    default:
        beside(in, s, who, fuzz_8(in));
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    fuzz_input in = {data, size};
    costly = 5;
    slow = 2;
    held = 0;
    fuzz_allow_all();
    memset(refs, 0, sizeof refs);
    memset(sent, 0, sizeof sent);
    memset(tokens, 0, sizeof tokens);
    fuzz_open_sound(&stores[0], 1);
    fuzz_open_sound(&stores[1], 1);
    MUST(cl_alloc(&stores[0], 300, CL_MAY_WAIT | CL_FOR_OBJECT, &channel) == CL_OK);
    for (int who = 0; who < 2; who++) {
        MUST(cl_alloc(&stores[who], 300, CL_MAY_WAIT, &refs[who][0]) == CL_OK);
        MUST(cl_alloc(&stores[who], 100000, CL_MAY_WAIT, &refs[who][1]) == CL_OK);
        MUST(cl_send(&stores[who], refs[who][0].segment, refs[who][0].index, CL_MAY_WAIT, &sent[who]) == CL_OK);
    }
    MUST(cl_publish(&stores[1], "a", 1, refs[1][1].segment, refs[1][1].index, 0, 10, 0, CL_MAY_WAIT) == CL_OK);
    while (in.left != 0) {
        step(&in);
    }
    fuzz_allow_all();
    forget_second();
    fuzz_kill(&stores[0]);
    if (heir_life != NULL) {
        munmap(heir_life, CL_PAGE);
        heir_life = NULL;
    }
    fuzz_empty();
    return 0;
}
