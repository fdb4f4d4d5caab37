/* Images of the registry's and of a segment's file: header, spill record, lengths, tables. A new process opens and
 * maps them, and uses them. In most of them the checksum is corrected, so that the code after the check is reached. */
#include "faults.h"
#include "fields.h"

static cl_store maker, comer;
static cl_store *busy; /* another thread has its mutex */
static int sleeps;
static int moved; /* another directory has the name */

static int file_of(const char *prefix, char *name)
{
    DIR *d = opendir(fuzz_path);
    int found = -1;
    for (struct dirent *e; d != NULL && (e = readdir(d)) != NULL;) {
        if (strncmp(e->d_name, prefix, strlen(prefix)) == 0) {
            snprintf(name, 32, "%.31s", e->d_name);
            found = openat(dirfd(d), e->d_name, O_RDWR | O_CLOEXEC);
            break;
        }
    }
    if (d != NULL) {
        closedir(d);
    }
    return found;
}

static void at_path(char *out, const char *name)
{
    snprintf(out, 128, "%s/%s", fuzz_path, name);
}

/* Random bytes on its first page. */
static void damage_header(fuzz_input *in, int fd, int is_registry)
{
    uint8_t page[CL_PAGE];
    cl_header *h = (cl_header *)(void *)page;
    MUST(pread(fd, page, sizeof page, 0) == (ssize_t)sizeof page);
    uint8_t many = fuzz_8(in);
    for (int n = many & 7; n > 0; n--) {
        fuzz_noise(in, page, sizeof *h);
    }
    for (int n = many >> 3 & 7; n > 0; n--) {
        fuzz_damage(in, page, FUZZ_HEADER_FIELDS);
    }
    uint8_t how = fuzz_8(in);
    if (how & 1) {
        h->checksum = cl_hash64(h, offsetof(cl_header, checksum));
    }
    if (is_registry && how & 2) { /* where items spill: beside this directory, and nowhere else */
        cl_spill *s = (cl_spill *)(void *)(page + CL_OFF_SPILL);
        memset(s, 0, sizeof *s);
        int n = snprintf(s->path, sizeof s->path, "%s/x", fuzz_path);
        for (int i = fuzz_8(in) & 15; i > 0 && n < (int)sizeof s->path; i--) {
            s->path[n++] = (char)('0' + fuzz_8(in) % 75); /* no slash among them */
        }
        if (how & 4) {
            memset(s->path + n, 'y', sizeof s->path - (size_t)n);
        }
        struct stat st;
        MUST(stat(fuzz_path, &st) == 0);
        s->device = st.st_dev + (how >> 3 & 1);
        s->inode = st.st_ino + (how >> 4 & 1);
        s->checksum = cl_hash64(s, offsetof(cl_spill, checksum)) + (how >> 5 & 1);
    }
    MUST(pwrite(fd, page, sizeof page, 0) == (ssize_t)sizeof page);
}

static void damage_length(fuzz_input *in, int fd, off_t size)
{
    switch (fuzz_8(in) % 12) {
    case 0:
        size = fuzz_8(in);
        break;
    case 1:
        size += fuzz_8(in) + 1;
        break;
    case 2:
        size -= CL_PAGE;
        break;
    case 3:
        size = CL_PAGE;
        break;
    default:
        return;
    }
    MUST(ftruncate(fd, size) == 0);
}

/* Another file replaces it. */
static void damage_name(fuzz_input *in, const char *name)
{
    char path[128], other[128];
    if (name[0] == 0) {
        return;
    }
    at_path(path, name);
    at_path(other, "other");
    switch (fuzz_8(in) % 14) {
    case 0:
        unlink(path);
        break;
    case 1:
        unlink(path);
        MUST(mkfifo(path, 0600) == 0);
        break;
    case 2:
        unlink(path);
        MUST(symlink("/dev/zero", path) == 0);
        break;
    case 3:
        unlink(path);
        MUST(mkdir(path, 0700) == 0);
        break;
    case 4: { /* a copy of it */
        uint8_t page[CL_PAGE];
        int from = open(path, O_RDONLY), to = open(other, O_RDWR | O_CREAT, 0600);
        struct stat st;
        MUST(from >= 0 && to >= 0 && fstat(from, &st) == 0 && ftruncate(to, st.st_size) == 0);
        ssize_t n = pread(from, page, sizeof page, 0);
        MUST(n < 0 || pwrite(to, page, (size_t)n, 0) == n);
        close(from);
        close(to);
        MUST(rename(other, path) == 0);
        break;
    }
    case 5: { /* an empty one */
        unlink(path);
        int to = open(path, O_RDWR | O_CREAT, 0600);
        MUST(to >= 0);
        close(to);
        break;
    }
    default:
        break;
    }
}

/* Other processes use the same directory: one makes or removes a registry, one joins, one was killed while it made
 * one. */
static void others(fuzz_input *in, const char *live, int *locked, int comes)
{
    uint8_t what = fuzz_8(in);
    char path[128], name[CL_FILE_NAME];
    int fd;
    if (what & 3 && live[0] != 0) {
        at_path(path, live);
        fd = open(path, O_RDWR | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
        if (fd >= 0 && what & 1 && cl_exclude_all(fd)) {
            *locked = fd;
        } else if (fd >= 0 && what & 2 && cl_byte_lock(fd, fuzz_8(in) & 1 ? CL_CARETAKER : fuzz_8(in)) == CL_OK) {
            *locked = fd;
        } else if (fd >= 0) {
            close(fd);
        }
    }
    for (int n = what >> 2 & 7; n > 0; n--) { /* what a sweep finds */
        static const char *const prefixes[] = {CL_SEGMENT_PREFIX, CL_NEW_PREFIX, CL_LIVE_PREFIX};
        uint8_t which = fuzz_8(in);
        cl_file_name(name, prefixes[which % 3], 0x1000 + n);
        if (which & 64) {
            name[strlen(name) - 1] = which & 32 ? 'x' : 0;
        }
        at_path(path, name);
        if (which & 128) {
            mkfifo(path, 0600);
            continue;
        }
        fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
        MUST(fd >= 0);
        if (which & 16 && *locked < 0 && cl_exclude_all(fd)) {
            *locked = fd;
        } else {
            close(fd);
        }
    }
    if (what & 64 && !(what & 32)) { /* a cleaner removes the registry's file */
        at_path(path, CL_REGISTRY_FILE);
        unlink(path);
    }
    if (what & 32) { /* the directory itself is removed, another one replaces it */
        snprintf(path, sizeof path, "%s-gone", fuzz_path);
        MUST(rename(fuzz_path, path) == 0);
        if (what & 64 || comes) {
            MUST(mkdir(fuzz_path, 0700) == 0);
        }
        moved = 1;
    }
}

static void come_back(void)
{
    char path[128];
    if (moved) {
        snprintf(path, sizeof path, "%s-gone", fuzz_path);
        fuzz_empty();
        rmdir(fuzz_path);
        MUST(rename(path, fuzz_path) == 0);
        moved = 0;
    }
}

/* The process closes descriptors that are not its own, and their numbers are used again. */
static void close_some(cl_store *s, uint8_t which)
{
    int reuse = which & 128;
    if (which & 1) {
        fuzz_close(s->registry_fd, reuse);
    }
    if (which & 2) {
        fuzz_close(s->live_fd, reuse);
    }
    if (which & 4) {
        fuzz_close(s->directory, reuse);
    }
    for (uint32_t i = 0; which & 8 && i < s->nmaps; i++) {
        fuzz_close(s->by_address[i]->fd, reuse);
    }
    if (which & 16) {
        *(uint32_t *)(uintptr_t)s->here = 0;
    }
    if (which & 32 && cl_thread_trylock(&s->mutex)) { /* another thread of it works on its tables */
        busy = s;
    }
    s->settings.idle_ns = which & 64 ? 1 : 0;
}

static void use(cl_store *s, const cl_address *sent, unsigned flags)
{
    cl_block_ref r, mine;
    cl_named named;
    uint64_t freed;
    if (fuzz_result(cl_load(s, sent, flags, &r)) == CL_OK) {
        fuzz_touch(&r, 0);
        fuzz_result(cl_release(s, r.segment_id, r.segment, r.index, flags));
    }
    if (fuzz_result(cl_alloc(s, 300, flags, &mine)) == CL_OK) {
        fuzz_touch(&mine, 1);
        fuzz_result(cl_release(s, mine.segment_id, mine.segment, mine.index, flags));
    }
    if (fuzz_result(cl_alloc(s, 100000, flags | CL_MAY_SPILL, &mine)) == CL_OK) {
        fuzz_touch(&mine, 1);
        fuzz_result(cl_release(s, mine.segment_id, mine.segment, mine.index, flags));
    }
    fuzz_result(cl_lookup(s, "a", 1, flags, &named));
    fuzz_result(cl_reap(s, flags, NULL));
    fuzz_result(cl_trim(s, 0, flags, &freed));
}

/* At each sleep: another thread, or process, has run. */
static int others_go_on(void)
{
    if (busy != NULL && ++sleeps % 8 == 0) {
        cl_thread_unlock(&busy->mutex);
        busy = NULL;
    }
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    fuzz_input in = {data, size};
    int locked = -1;
    busy = NULL;
    sleeps = 0;
    fuzz_alone = 1;
    fuzz_each_sleep = others_go_on;
    fuzz_allow_all();
    cl_block_ref small, large, *sending;
    cl_address sent;
    char segment[32] = "", live[32] = "";
    uint8_t how = fuzz_8(&in);
    unsigned flags = how & 0x80 ? CL_MAY_WAIT : 0;
    fuzz_open_sound(&maker, 1);
    MUST(cl_alloc(&maker, 300, CL_MAY_WAIT, &small) == CL_OK && cl_alloc(&maker, 100000, CL_MAY_WAIT, &large) == CL_OK);
    MUST(cl_publish(&maker, "a", 1, small.segment, small.index, 0, 10, 1, CL_MAY_WAIT) == CL_OK);
    sending = how & 1 ? &small : &large;
    MUST(cl_send(&maker, sending->segment, sending->index, CL_MAY_WAIT, &sent) == CL_OK);
    uint64_t id = sending->segment_id;
    int maker_lives = how & 2, comes_before = how & 4;
    if (comes_before) {
        fuzz_open_sound(&comer, 2);
        if (how & 8) { /* and has it mapped */
            cl_block_ref r;
            cl_address other;
            MUST(cl_send(&maker, sending->segment, sending->index, CL_MAY_WAIT, &other) == CL_OK);
            MUST(cl_load(&comer, &other, CL_MAY_WAIT, &r) == CL_OK);
        }
    }
    int fd = maker.registry_fd, of_registry = how & 16;
    char prefix[40];
    cl_segment_file(prefix, id);
    int segment_fd = file_of(prefix, segment);
    close(file_of(CL_LIVE_PREFIX, live));
    MUST(segment_fd >= 0);
    if (of_registry) {
        damage_header(&in, fd, 1);
        for (int n = fuzz_8(&in) & 7; n > 0; n--) {
            uint8_t which = fuzz_8(&in);
            if (which & 128) {
                fuzz_damage(&in, maker.base, FUZZ_FIELDS);
                continue;
            }
            fuzz_noise(&in, maker.base + (which & 1 ? CL_OFF_CONTROL : CL_OFF_OWNERS),
                       which & 1 ? (which & 2 ? sizeof(cl_control) : 128) : 3 * sizeof(cl_owner));
        }
    } else {
        damage_header(&in, segment_fd, 0);
        damage_length(&in, segment_fd, (off_t)lseek(segment_fd, 0, SEEK_END));
        damage_name(&in, segment);
    }
    if (!maker_lives ||
        of_registry) { /* a wrong length of the registry would end a live process by SIGBUS: it is not used any more */
        fd = dup(fd);
        fuzz_kill(&maker);
        if (of_registry && !comes_before) {
            damage_length(&in, fd, (off_t)CL_REGISTRY_SIZE);
            damage_name(&in, fuzz_8(&in) & 1 ? live : CL_REGISTRY_FILE);
        } else if (of_registry && fuzz_8(&in) & 1) {
            damage_name(&in, fuzz_8(&in) & 1 ? live : CL_REGISTRY_FILE);
        }
        close(fd);
    }
    uint8_t refused = how & 0x20 ? fuzz_8(&in) : 0;
    if (refused & 128) { /* before anything is refused: the target itself makes the same calls */
        others(&in, live, &locked, !comes_before);
    }
    for (int n = how & 0x20 ? 1 + (refused & 3) : 0; n > 0; n--) {
        fuzz_refuse(&in);
    }
    int stopped = refused & 32 && maker.base != NULL && cl_lock_registry(&maker, CL_OP_LIST, 0) == CL_OK;
    if (refused & 64 && comes_before) {
        close_some(&comer, fuzz_8(&in));
    }
    if (!comes_before && fuzz_result(fuzz_open(&comer, 2)) != CL_OK) {
        comer.open = 0;
    }
    for (int n = 1 + (fuzz_8(&in) & 1); n > 0 && comer.open; n--) {
        use(&comer, &sent, flags);
        if (how & 0x40) {
            fuzz_refuse(&in);
        }
    }
    others_go_on();
    if (stopped && refused & 16) {
        cl_unlock_own(&maker.control->lock, CL_LOCK_WORD(maker.slot, maker.incarnation));
    }
    if (comer.open && fuzz_8(&in) & 1) {
        MUST(cl_store_leave(&comer) <= 1);
        comer.open = 0;
    }
    fuzz_allow_all();
    if (locked >= 0) {
        close(locked);
    }
    if (maker.base != NULL) {
        fuzz_kill(&maker);
    }
    fuzz_kill(&comer);
    close(segment_fd);
    fuzz_close_own();
    come_back();
    fuzz_empty();
    return 0;
}
