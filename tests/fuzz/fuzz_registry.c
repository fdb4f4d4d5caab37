/* Noise over the tables of a sound registry, between and during all operations of two owners, one of which may die. */
#include "faults.h"
#include "fields.h"

#define REFS 8
static cl_store stores[2]; /* the second one dies and starts again */
static cl_block_ref refs[2][REFS];
static cl_address sent[REFS];
static cl_token tokens[REFS];
static cl_block_ref channel;
static void *child_life;
static char posix_name[] = "copyless-fuzz-object", posix_path[] = "/dev/shm/copyless-fuzz-object";
static uint64_t posix_id[2];
static uint32_t posix_slot[2];
static int held; /* calls for which the second one still holds the registry's lock */
static int other_live; /* the liveness file of another registry, locked */
static cl_store *busy; /* another thread has its mutex, for this number of calls: */
static int busy_for, sleeps;
static int slow; /* how often it may still do so */
static int costly; /* calls left that read whole tables: a wrong length makes them 200 MB long */
static int looking; /* a live process reads a copy of the tables meanwhile */

static uint32_t number_of(const cl_block_ref *r)
{
    return r->segment * CL_BLOCKS + r->index;
}

/* The registry, as one of the two has it mapped. */
static uint8_t *tables(void)
{
    return stores[0].base != NULL ? stores[0].base : stores[1].base;
}

static void noise(fuzz_input *in)
{
    uint8_t *base = tables();
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
    if (busy == &stores[1]) {
        busy = NULL;
    }
    fuzz_kill(&stores[1]);
    memset(refs[1], 0, sizeof refs[1]);
}

static int keep_nothing(void *context, uint64_t sequence, uint64_t nonce)
{
    return ((sequence ^ nonce) & 1) != 0 && context != NULL;
}

static void release_all(void)
{
    if (held > 0) {
        cl_unlock_own(&stores[1].control->lock, CL_LOCK_WORD(stores[1].slot, stores[1].incarnation));
    }
    held = 0;
}

/* Events from outside. */
static void beside(fuzz_input *in, cl_store *s, int who, uint8_t what)
{
    char path[128];
    if (what & 0x80) {
        fuzz_refuse(in);
        return;
    }
    switch (what & 3) {
    case 0: /* the second one exits normally, or the first one before it */
        if (who == 0 && what & 64 && busy == NULL && child_life == NULL) {
            MUST(cl_store_leave(s) <= 1);
            fuzz_kill(s);
            memset(refs[0], 0, sizeof refs[0]);
            channel.data = NULL;
            stores[0].base = NULL;
        } else if (who == 1 && busy == NULL) {
            MUST(cl_store_leave(s) <= 1);
            s->open = 0;
            forget_second();
        }
        break;
    case 1: /* the directory is cleaned while both use it */
        if (what & 4) {
            snprintf(path, sizeof path, "%s/%s", fuzz_path, CL_REGISTRY_FILE);
            unlink(path);
        }
        break;
    case 2: /* memory is full: what can spill goes to the disk */
        s->full_until_ns = cl_monotonic_ns() + 1000000000;
        break;
    default: /* the second one is stopped while it holds the lock: the first one never waits longer than a slice */
        if (stores[1].base != NULL && slow-- > 0 && cl_lock_registry(&stores[1], CL_OP_LIST, 0) == CL_OK) {
            held = 4;
        }
    }
}

/* At each sleep: the holder needs nothing but time. */
static int others_go_on(void)
{
    if (busy != NULL && sleeps++ > 8) {
        cl_thread_unlock(&busy->mutex);
        busy = NULL;
    }
    return 0;
}

/* Files that a sweep finds in a directory: of a killed process, of a live one, a different object with such a name. */
static void litter(fuzz_input *in, cl_store *s)
{
    static const char *const prefixes[] = {CL_SEGMENT_PREFIX, CL_NEW_PREFIX, CL_LIVE_PREFIX, CL_BOOKS_PREFIX};
    uint8_t what = fuzz_8(in);
    char name[CL_FILE_NAME + 8], path[CL_SPILL_PATH + CL_FILE_NAME + 16];
    cl_file_name(name, prefixes[what & 3], 0x1000 + (what >> 6));
    if (what & 4) {
        strcat(name, "x");
    } else if (what & 8) {
        name[strlen(name) - 1] = 'g';
    }
    snprintf(path, sizeof path, "%s/%s", what & 16 && s->spill.path[0] != 0 ? s->spill.path : fuzz_path, name);
    if (what & 32) {
        mkfifo(path, 0600);
        return;
    }
    fuzz_paused++; /* nothing of it is refused: this is the work of another process */
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd >= 0 && what & 128 && other_live < 0) { /* it belongs to another registry, and is in use */
        MUST(cl_exclude_all(fd));
        other_live = fd;
    } else if (fd >= 0) {
        close(fd);
    }
    fuzz_paused--;
}

static void stop_second(void)
{
    if (stores[1].base != NULL && held == 0 && cl_lock_registry(&stores[1], CL_OP_LIST, 0) == CL_OK) {
        held = 3;
    }
}

/* The POSIX object's file, as it is now, if it exists. */
static void posix_of(int at, uint64_t *device, uint64_t *inode)
{
    struct stat st;
    *device = 1;
    *inode = 1 + (uint64_t)at;
    if (at >= 6 && stat(posix_path, &st) == 0) {
        *device = st.st_dev;
        *inode = st.st_ino + (uint64_t)(at & 1);
    }
}

/* What the process of this store does between the calls: it closes descriptors, changes settings, or is another
 * process by now. */
static void change(fuzz_input *in, cl_store *s)
{
    uint8_t what = fuzz_8(in), to = fuzz_8(in);
    switch (what % 18) {
    case 0:
        fuzz_close(s->registry_fd, to & 1);
        break;
    case 1:
        fuzz_close(s->live_fd, to & 1);
        break;
    case 2:
        fuzz_close(s->directory, to & 1);
        break;
    case 3:
        for (uint32_t i = 0; i < s->nmaps; i++) {
            fuzz_close(s->by_address[i]->fd, to & 1);
        }
        break;
    case 4:
        s->settings.message_ttl_ns = to & 1 ? 0 : 1;
        break;
    case 5:
        s->settings.idle_ns = to;
        break;
    case 6:
        s->settings.warm_limit = (uint64_t)to << 16;
        break;
    case 7:
        s->identity.pid_namespace = to;
        break;
    case 8:
        s->identity.family = to;
        break;
    case 9:
        s->identity.parent_pid = to & 1 ? (uint32_t)getpid() : to & 2 ? (uint32_t)getppid() : to;
        s->identity.parent_start = to >> 4;
        break;
    case 10: /* a copy of it, by clone() */
        *(uint32_t *)(uintptr_t)s->here = 0;
        break;
    case 11: /* no process uses this directory any more */
        snprintf(s->path, sizeof s->path, "%s", to & 1 ? "/dev" : "/nowhere");
        break;
    case 12: /* it has nothing mapped, or lost the record of what it held */
        for (uint32_t i = 0; i < s->nmaps; i++) {
            for (uint32_t b = 0; b < s->by_address[i]->nblocks; b++) {
                s->by_address[i]->blocks[b].hold = to & 4 ? 0 : to & 8 ? CL_MAX_HOLDS + 1 : to >> 4;
            }
        }
        break;
    case 13: /* while it sleeps, another process gets the lock and is stopped */
        fuzz_meanwhile = stop_second;
        break;
    case 14:
        MUST(s->registry_fd < 0 || ftruncate(s->registry_fd, CL_REGISTRY_SIZE + CL_PAGE) >= -1);
        break;
    case 15:
        umask(0777);
        break;
    case 16: /* the POSIX object exists */
        fuzz_paused++;
        close(open(posix_path, O_RDWR | O_CREAT | O_CLOEXEC, 0600));
        fuzz_paused--;
        break;
    default: /* another thread works on its tables */
        if (slow-- > 0 && cl_thread_trylock(&s->mutex)) {
            busy = s;
            busy_for = to & 3;
            sleeps = to & 4 ? 9 : 0; /* for a moment, or long */
        }
    }
}

/* A lock word that a killed or a broken process left. */
static void leave_word(fuzz_input *in, cl_store *s)
{
    uint8_t how = fuzz_8(in);
    const cl_store *named = &stores[how & 1];
    uint32_t word = CL_LOCK_WORD(named->slot, named->incarnation);
    switch (how >> 2 & 7) {
    case 0:
        break;
    case 1:
        word = CL_LOCK_WORD(named->slot, named->incarnation + 1);
        break;
    case 2:
        word = CL_LOCK_WORD(CL_MAX_OWNERS - 2, 1);
        break;
    case 3:
        word = CL_LOCK_WORD(CL_CARETAKER, 1);
        break;
    case 4:
        word = CL_LOCK_WORD(100, 1);
        break;
    case 5:
        word = CL_LOCK_WORD(3000, 1);
        break;
    case 6:
        word = 0;
        break;
    default:
        word = 1;
    }
    atomic_store(&s->control->lock, word | (how & 2 ? CL_LOCK_SLEEP : 0));
}

/* An invalid name, and other errors in the parts of a name. */
static void bad_names(fuzz_input *in, cl_store *s, const cl_block_ref *r, unsigned flags)
{
    static char name[CL_NAME_MAX + 2];
    uint8_t how = fuzz_8(in);
    memset(name, 'n', sizeof name);
    name[0] = (char)('a' + (how >> 5));
    uint32_t length = how & 1 ? 1 : how & 2 ? 0 : how & 4 ? CL_NAME_MAX + 1 : CL_NAME_MAX;
    name[1] = name[2] = how & 8 ? '/' : how & 16 ? 0 : 'n';
    cl_named named;
    fuzz_result(cl_publish(s, name, length, r->data != NULL ? r->segment : how, r->data != NULL ? r->index : how,
                           fuzz_8(in) & 1 ? UINT64_MAX : 0, fuzz_8(in) & 1 ? UINT64_MAX : 10, how & 16, flags));
    fuzz_result(cl_lookup(s, name, length, flags, &named));
    fuzz_result(cl_unpublish_of(s, name, length, r->segment, r->index + (how & 1), flags));
    if (how & 2) {
        fuzz_result(cl_unpublish(s, name, length, flags));
    }
}

/* Addresses of blocks that do not exist, or are not ours. */
static void bad_addresses(fuzz_input *in, cl_store *s, int at, unsigned flags)
{
    static const uint32_t outside[] = {0, 1, 7, 8, CL_BLOCKS, CL_MAX_SEGMENTS, UINT32_MAX, 2};
    uint8_t how = fuzz_8(in);
    cl_address a = sent[at], made;
    cl_block_ref r;
    a.nonce = how & 1 ? 0 : a.nonce;
    if (how & 2) {
        a.segment = outside[how >> 3 & 7];
    }
    if (how & 4) {
        a.index = outside[how >> 3 & 7];
    }
    if (fuzz_result(cl_load(s, &a, flags, &r)) == CL_OK) {
        fuzz_touch(&r, 0);
        fuzz_result(cl_load(s, &a, flags, &r));
        fuzz_result(cl_release(s, r.segment_id, r.segment, r.index, flags));
    }
    if (fuzz_result(cl_send(s, a.segment, a.index, flags, &made)) == CL_OK) {
        fuzz_result(cl_unsend(s, made.hold, made.nonce + (how & 1), flags));
    }
    cl_token t = {.hold = how & 64 ? CL_MAX_HOLDS + 1 : a.hold, .nonce = a.nonce};
    fuzz_result(cl_take(s, how & 128 ? outside[how >> 3 & 7] : number_of(&channel), &t, 1, &t, flags));
    fuzz_result(cl_mail(s, t.hold, t.nonce, flags));
}

/* All that a queue does with one item; it may also hold itself, or a block twice. */
static void pass_item(fuzz_input *in, cl_store *s, const cl_block_ref *r, unsigned flags)
{
    uint8_t how = fuzz_8(in);
    const cl_block_ref *item = how & 1 && s == &stores[0] ? &channel : r;
    cl_address a;
    if (item->data == NULL ||
        fuzz_result((how & 2 ? cl_send : cl_draft)(s, item->segment, item->index, flags, &a)) != CL_OK) {
        return;
    }
    cl_token t = {.hold = a.hold, .nonce = a.nonce};
    fuzz_result(cl_give(s, number_of(&channel), fuzz_8(in), &t, 1, NULL, flags, NULL));
    tokens[how >> 4 & (REFS - 1)] = t;
    if (how & 4) {
        fuzz_result(cl_take(&stores[0], number_of(&channel), &t, 1, how & 8 ? &t : NULL, flags));
    }
}

/* A field of a block that is in use, or is free and next to be allocated, or of a hold. */
static void damage_what_is_used(fuzz_input *in, cl_store *s, const cl_block_ref *r, int at)
{
    uint8_t which = fuzz_8(in);
    cl_control *c = s->control;
    const uint32_t numbers[] = {number_of(r),
                                number_of(&channel),
                                c->first[cl_class_of(300)] - 1,
                                c->first[cl_class_of(300) + CL_OBJECTS] - 1,
                                c->first[CL_LARGE] - 1,
                                c->last[CL_LARGE] - 1,
                                c->first[CL_SPILLED] - 1,
                                posix_slot[s == &stores[1]] * CL_BLOCKS};
    uint32_t hold = which & 8 ? tokens[at].hold : sent[at].hold;
    const cl_map *map = s->maps != NULL && r->data != NULL ? s->maps[r->segment] : NULL;
    if (which & 16 && map != NULL) {
        hold = map->blocks[r->index].hold - 1;
    }
    fuzz_damage_block(in, s->base, numbers[which & 7], hold);
}

/* Queues inside queues, to this depth. */
static void nest(cl_store *s, int depth, unsigned flags)
{
    cl_block_ref inner, outer;
    cl_address a;
    if (fuzz_result(cl_alloc(s, 100, flags | CL_FOR_OBJECT, &inner)) != CL_OK) {
        return;
    }
    while (depth-- > 0 && fuzz_result(cl_alloc(s, 100, flags | CL_FOR_OBJECT, &outer)) == CL_OK) {
        if (fuzz_result(cl_draft(s, inner.segment, inner.index, flags, &a)) == CL_OK) {
            cl_token t = {.hold = a.hold, .nonce = a.nonce};
            fuzz_result(cl_give(s, number_of(&outer), 1, &t, 1, NULL, flags, NULL));
        }
        fuzz_result(cl_release(s, inner.segment_id, inner.segment, inner.index, flags));
        inner = outer;
    }
    fuzz_result(cl_release(s, inner.segment_id, inner.segment, inner.index, flags));
}

/* Many of a kind: messages, drafts, segments, owners, names; or a large one. */
static void many(fuzz_input *in, cl_store *s, const cl_block_ref *r, unsigned flags)
{
    uint8_t what = fuzz_8(in), n = fuzz_8(in);
    static cl_block_ref made[80];
    cl_address a;
    switch (what & 7) {
    case 0:
    case 1:
        for (int i = n << (what >> 4 & 3); i > 0 && r->data != NULL; i--) {
            if (fuzz_result((what & 1 ? cl_draft : cl_send)(s, r->segment, r->index, flags, &a)) != CL_OK) {
                break;
            }
        }
        break;
    case 2:
        nest(s, n % 80, flags);
        break;
    case 3: {
        int i = 0;
        while (i < n % 80 && fuzz_result(cl_alloc(s, what & 16 ? 70000 : 100, flags | CL_ALONE, &made[i])) == CL_OK) {
            i++;
        }
        while (i-- > 0) {
            fuzz_result(cl_release(s, made[i].segment_id, made[i].segment, made[i].index, flags));
        }
        break;
    }
    case 4: /* of killed processes */
        for (uint32_t i = 10; i < 10u + n % 80 && i < s->control->owners_high; i++) {
            s->owners[i].state = what & 16 ? CL_OWNER_GONE : CL_OWNER_LIVE;
        }
        break;
    case 5:
        for (int i = 0; i < n % 80; i++) {
            char name[] = {(char)('A' + i), 0};
            if (fuzz_result(cl_alloc(s, 100, flags, &made[0])) == CL_OK) {
                fuzz_result(cl_publish(s, name, 1, made[0].segment, made[0].index, 0, 10, what >> 4 & 1, flags));
            }
        }
        break;
    default:
        if (fuzz_result(cl_alloc(s, ((uint64_t)65 << 20) + n, flags, &made[0])) == CL_OK) {
            fuzz_result(cl_release(s, made[0].segment_id, made[0].segment, made[0].index, flags));
        }
    }
}

/* Rare calls. */
static void special(fuzz_input *in, cl_store *s, uint8_t op, int at, unsigned flags)
{
    static const unsigned scans[] = {0, CL_SCAN_FORCE, CL_SCAN_FORCE | CL_SCAN_KEEP_LOCK,
                                     CL_SCAN_FORCE | CL_SCAN_FOR_NAME};
    cl_block_ref *r = &refs[s == &stores[1]][at];
    switch (op) {
    case 0:
        fuzz_damage(in, s->base, FUZZ_FIELDS);
        break;
    case 1:
        damage_what_is_used(in, s, r, at);
        break;
    case 2:
        bad_names(in, s, r, flags);
        break;
    case 3:
        change(in, s);
        break;
    case 4:
        leave_word(in, s);
        break;
    case 5:
        litter(in, s);
        break;
    case 6:
        bad_addresses(in, s, at, flags);
        break;
    case 7:
        pass_item(in, s, r, flags);
        break;
    case 8:
        if (costly-- > 0 && cl_enter(s, CL_OP_REAP, flags) == CL_OK) {
            fuzz_result(cl_scan(s, scans[fuzz_8(in) & 3], NULL));
            cl_leave(s);
        }
        break;
    case 9: /* the queue itself is removed, with all its items */
        if (channel.data != NULL && stores[0].base != NULL) {
            fuzz_result(cl_release(&stores[0], channel.segment_id, channel.segment, channel.index, flags));
            channel.data = NULL;
        }
        break;
    case 10:
        many(in, s, r, flags);
        break;
    default:
        if (s->base != NULL && s->control != NULL) {
            uint64_t freed;
            cl_store *other;
            cl_block_ref found;
            fuzz_result(cl_find_any(s, r->data != NULL ? r->data : (const uint8_t *)s->base, fuzz_8(in), flags, &found,
                                    &other));
            fuzz_result(cl_trim(s, 0, flags, &freed));
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
    uint64_t freed, device, inode;
    uint32_t posix_length = at == 5 ? 0 : sizeof posix_name - 1; /* or the name is invalid */
    posix_of(at, &device, &inode);
    if (held > 0 && --held == 0) {
        held = 1;
        release_all();
    }
    if (held > 0) {
        who = 0;
        s = &stores[0];
        r = &refs[0][at];
    }
    if (tables() == NULL && (op >= 84 || op % 28 != 18)) { /* both have exited */
        return;
    }
    if (op >= 96) { /* in any word; in one field: special() */
        noise(in);
        return;
    }
    if ((s->base == NULL && op % 28 != 18) || (looking && op < 84 && (op % 28 == 17 || op % 28 == 27))) {
        return;
    }
    if (op >= 84) {
        special(in, s, op - 84, at, flags);
        return;
    }
    if (busy != NULL && busy_for-- == 0) {
        cl_thread_unlock(&busy->mutex);
        busy = NULL;
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
            for (int n = arg & 64 ? 1 + (arg >> 4 & 3) : 0; n > 0; n--) { /* damage without a lock */
                fuzz_damage(in, s->base, FUZZ_FIELDS);
            }
            fuzz_result(cl_audit(s));
            cl_leave(s);
        }
        break;
    case 15: {
        cl_snapshot shot;
        if (fuzz_result(cl_snapshot_take(s, &shot, flags)) == CL_OK) {
            MUST(shot.control.owners_high <= CL_MAX_OWNERS && shot.control.holds_high <= CL_MAX_HOLDS);
            for (int n = arg & 64 && !looking ? 1 + (arg >> 4 & 3) : 0; n > 0; n--) { /* other processes go on */
                looking = 1;
                step(in);
                looking = 0;
            }
            fuzz_result(cl_audit(shot.view));
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
    case 17: /* the second one dies, in any state */
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
        fuzz_result(cl_posix_record(s, posix_name, posix_length, device, inode, 10, fuzz_8(in) & 1, flags,
                                    &posix_id[who], &posix_slot[who]));
        break;
    case 23:
        fuzz_result(
            cl_posix_attach(s, posix_name, posix_length, device, inode, flags, &posix_id[who], &posix_slot[who]));
        break;
    case 24:
        fuzz_result(cl_posix_forget(s, posix_name, posix_length, device, inode, flags));
        fuzz_result(cl_release(s, posix_id[who], posix_slot[who], 0, flags));
        break;
    case 25: { /* the first one forks; the child does nothing but live, and dies at the next call */
        uint32_t slot;
        if (child_life != NULL) {
            munmap(child_life, CL_PAGE);
            child_life = NULL;
        } else if (cl_enter(&stores[0], CL_OP_FORK, flags) == CL_OK) {
            if (fuzz_result(cl_join_child(&stores[0], &child_life, &slot)) == CL_OK) {
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
    fuzz_alone = 1;
    fuzz_each_sleep = others_go_on;
    costly = 5;
    looking = 0;
    slow = 2;
    held = 0;
    busy = NULL;
    other_live = -1;
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
    if (other_live >= 0) {
        close(other_live);
    }
    forget_second();
    fuzz_kill(&stores[0]);
    fuzz_close_own();
    umask(022);
    unlink(posix_path);
    if (child_life != NULL) {
        munmap(child_life, CL_PAGE);
        child_life = NULL;
    }
    fuzz_empty();
    return 0;
}
