/* Segments: files of blocks, and this process's mappings of them.
 *
 * Promise: a mapping is returned only after every field of the file's header agrees with the file itself and with the
 * identity that was asked for. The memory of a new segment is really reserved, so writing to it cannot fail. The name
 * of a segment's file contains the segment's random id, which is never reused.
 *
 * Descriptors: each of the first mappings keeps one, so that checking the file costs a fifth of a microsecond. They are
 * at most an eighth of the descriptors that the process may open. When no file can be opened, all of them are closed,
 * and from then on half as many are kept, so that the program gets some: files without a descriptor are checked by
 * their names. */
#define _GNU_SOURCE
#include "store.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#define KEPT_DESCRIPTORS 128u /* at most, and at most an eighth of what the process may open */
#define HEADROOM                                                                                                       \
    ((uint64_t)64 << 10) /* bytes of the mount that are left to the registry, which must record what goes elsewhere */
#define BEYOND CL_PAGE /* mapped past the end of the file: a write there is a SIGBUS, and hits nothing else */
#define CHUNK ((uint64_t)64 << 20) /* reserve and populate in steps, so that a signal can be served between */

void cl_segment_destroy(cl_store *store, uint64_t id)
{
    char file[CL_FILE_NAME];
    cl_segment_file(file, id);
    int directory = cl_directory(store);
    int fd = openat(directory, file, O_RDWR | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0 && errno == ENOENT && cl_home(store, CL_SPILLED, 0) >= 0) {
        directory = cl_home(store, CL_SPILLED, 0);
        fd = openat(directory, file, O_RDWR | O_NOFOLLOW | O_CLOEXEC);
    }
    unlinkat(directory, file, 0);
    if (fd >= 0) {
        /* Other processes may still have it mapped, though none may use it: give the memory back now. Not if this is
         * the last process and is leaving: one of its threads may write to its array until the process ends, which is
         * soon. */
        if (!store->leaving && ftruncate(fd, 0) != 0) {
            /* it ends with the last mapping */
        }
        close(fd);
    }
}

static int reserve(int fd, uint64_t size)
{
    for (uint64_t at = 0; at < size; at += CHUNK) {
        uint64_t n = size - at < CHUNK ? size - at : CHUNK;
        int rc;
        do {
            rc = cl_reserve_room(fd, at, n);
        } while (rc == EINTR);
        CL_KILL_POINT();
        if (rc == ENOSPC || rc == EDQUOT || rc == EFBIG) {
            cl_fail(CL_FULL, rc, "no room for a segment of %llu bytes", (unsigned long long)size);
            cl_last_error()->asked = size;
            return CL_FULL;
        }
        if (rc != 0) {
            return cl_fail(CL_SYSTEM, rc, "reserving %llu bytes", (unsigned long long)size);
        }
    }
    return CL_OK;
}

static void populate(uint8_t *base, uint64_t size)
{
    /* Filling the page tables at once costs a tenth of a fault per page. Old kernels refuse: then pages fault in one by
     * one. */
    for (uint64_t at = 0; at < size; at += CHUNK) {
        if (cl_make_pages(base + at, size - at < CHUNK ? size - at : CHUNK) != 0) {
            return;
        }
    }
}

static int64_t ctime_of(const struct stat *st)
{
    return (int64_t)st->st_ctim.tv_sec * 1000000000 + st->st_ctim.tv_nsec;
}

static void keep_descriptor(cl_map *map, int fd, const struct stat *st)
{
    map->fd = fd;
    map->ctime_ns = ctime_of(st);
}

static void forget_descriptor(cl_map *map)
{
    if (map->base != NULL && cl_is_file(map->fd, map->device, map->inode)) {
        close(map->fd);
    }
    map->fd = -1;
}

static uint32_t may_keep(const cl_store *store)
{
    struct rlimit limit;
    uint32_t most = store->keep_most != 0 ? store->keep_most - 1 : KEPT_DESCRIPTORS;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur / 8 < most) {
        most = (uint32_t)(limit.rlim_cur / 8);
    }
    return most;
}

/* Under the store's mutex. Returns whether there were any. */
static int give_descriptors_back(cl_store *store)
{
    uint32_t had = store->kept;
    for (uint32_t i = 0; i < store->nmaps && store->kept != 0; i++) {
        cl_map *map = store->by_address[i];
        if (map->kept) {
            forget_descriptor(map);
            map->kept = 0;
            store->kept--;
        }
    }
    if (had != 0) {
        store->keep_most = had / 2 + 1;
    }
    return had != 0;
}

static int is_short_of_descriptors(int fd)
{
    return fd < 0 && (errno == EMFILE || errno == ENFILE);
}

int cl_segment_create(cl_store *store, cl_map *map, uint64_t id, uint32_t class_index, uint64_t block_size,
                      uint32_t nblocks)
{
    uint64_t size = (CL_PAGE + block_size * nblocks + CL_PAGE - 1) / CL_PAGE * CL_PAGE;
    cl_header header = {.magic = CL_MAGIC,
                        .layout = CL_LAYOUT_VERSION,
                        .kind = CL_KIND_DATA,
                        .id = id,
                        .file_size = size,
                        .host = store->identity.host,
                        .boot = store->identity.boot,
                        .created_ns = cl_realtime_ns(),
                        .creator_start = store->identity.start,
                        .creator_pid = store->identity.pid,
                        .class_index = class_index,
                        .block_size = block_size,
                        .nblocks = nblocks};
    header.checksum = cl_hash64(&header, offsetof(cl_header, checksum));
    memset(map, 0, sizeof *map);
    map->fd = -1;
    cl_segment_file(map->file, id);
    int fd = -1;
    for (int again = 0; again < 3 && fd < 0; again++) {
        int directory = cl_home(store, class_index, 1);
        if (directory < 0) {
            return cl_last_error()->code;
        }
        int room = class_index == CL_SPILLED ? CL_OK : cl_capacity_check(directory, size + HEADROOM);
        if (room != CL_OK) {
            return room;
        }
        fd = openat(directory, map->file, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
        if (is_short_of_descriptors(fd)) {
            int why = errno;
            if (cl_descriptors_give_back(store)) {
                continue;
            }
            errno = why;
        }
        if (fd < 0 && (errno != ENOENT || class_index != CL_SPILLED)) {
            break;
        }
        if (fd < 0) {
            cl_spill_forget(store); /* a cleanup program removed it: make it again */
            errno = ENOENT;
        }
    }
    if (fd < 0) {
        return cl_fail(errno == ENOSPC ? CL_FULL : CL_SYSTEM, errno, "creating %s", map->file);
    }
    CL_KILL_POINT();
    int rc = reserve(fd, size);
    struct stat st;
    if (rc == CL_OK && (pwrite(fd, &header, sizeof header, 0) != (ssize_t)sizeof header || fstat(fd, &st) != 0 ||
                        ((st.st_mode & 0777) != 0600 && fchmod(fd, 0600) != 0))) { /* whatever the umask */
        rc = cl_fail(CL_SYSTEM, errno, "writing %s", map->file);
    }
    if (rc == CL_OK) {
        uint8_t *base = mmap(NULL, size + BEYOND, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        if (base == MAP_FAILED) {
            rc = cl_fail(CL_SYSTEM, errno, "mapping %llu bytes", (unsigned long long)size);
        } else {
            populate(base, size);
            map->header = header;
            map->id = id;
            map->inode = st.st_ino;
            map->device = st.st_dev;
            map->base = base;
            map->size = size;
            map->block_size = block_size;
            map->nblocks = nblocks;
        }
    }
    CL_KILL_POINT();
    if (rc == CL_OK && fstat(fd, &st) == 0) {
        keep_descriptor(map, fd, &st);
    } else {
        close(fd);
    }
    return rc;
}

int cl_descriptors_give_back(cl_store *store)
{
    int rc;
    while ((rc = cl_enter_tables(store, CL_MAY_WAIT)) == CL_AGAIN) { /* wait for another thread, which is fast */
    }
    if (rc != CL_OK) {
        return 0;
    }
    int any = give_descriptors_back(store);
    cl_leave_tables(store);
    return any;
}

int cl_segment_header_check(const cl_header *h, uint64_t id, uint64_t file_size, const char *file)
{
    if (h->magic != CL_MAGIC || h->kind != CL_KIND_DATA || h->layout != CL_LAYOUT_VERSION) {
        return cl_fail(CL_CORRUPT, 0,
                       "%s: it is not a segment of this layout (magic number %016llx, kind %u, layout %u)", file,
                       (unsigned long long)h->magic, h->kind, h->layout);
    }
    if (h->checksum != cl_hash64(h, offsetof(cl_header, checksum)) && !CL_MUTANT(segment_checksum_unchecked)) {
        return cl_fail(CL_CORRUPT, 0, "%s: the header's checksum does not match", file);
    }
    if (h->id != id) {
        return cl_fail(CL_CORRUPT, 0, "%s: it contains segment %016llx: the file was replaced by another", file,
                       (unsigned long long)h->id);
    }
    if (h->file_size != file_size) {
        return cl_fail(CL_CORRUPT, 0, "%s: the file has %llu bytes, its header records %llu", file,
                       (unsigned long long)file_size, (unsigned long long)h->file_size);
    }
    if (h->nblocks == 0 || h->nblocks > CL_BLOCKS || h->block_size == 0 ||
        h->block_size > (h->file_size - CL_PAGE) / h->nblocks) {
        return cl_fail(CL_CORRUPT, 0, "%s: %u blocks of %llu bytes do not fit", file, h->nblocks,
                       (unsigned long long)h->block_size);
    }
    return CL_OK;
}

/* Whether a file may be missing because the storage directory's files were removed while in use. */
static int is_adrift_file(const cl_store *store, const cl_map *map)
{
    return atomic_load_explicit(&store->adrift, memory_order_relaxed) && map->header.class_index != CL_SPILLED;
}

/* Whether its end can still be read, if neither a descriptor nor a name gives its length. (Before Linux 5.14 this
 * cannot be found out.) */
static int is_whole(const cl_map *map)
{
    return cl_read_pages(map->base + map->size - CL_PAGE, CL_PAGE) == 0 || errno != EFAULT;
}

static int check_name(cl_store *store, const cl_map *map)
{
    struct stat st;
    if (fstatat(cl_home(store, map->header.class_index, 0), map->file, &st, AT_SYMLINK_NOFOLLOW) != 0) {
        if (is_adrift_file(store, map)) {
            return is_whole(map)
                       ? CL_OK /* it was removed with the others; the mapping keeps it */
                       : cl_fail(CL_CORRUPT, 0, "%s: the file was truncated before it was removed", map->file);
        }
        return errno == ENOENT ? cl_fail(CL_CORRUPT, 0, "%s: the file was removed", map->file)
                               : cl_fail(CL_SYSTEM, errno, "reading %s", map->file);
    }
    if ((st.st_ino != map->inode && !CL_MUTANT(segment_inode_unchecked)) || (uint64_t)st.st_size != map->size) {
        return cl_fail(CL_CORRUPT, 0,
                       "%s: now %lld bytes, inode %llu; when mapped %llu bytes, inode %llu: the file was truncated, "
                       "extended or replaced",
                       map->file, (long long)st.st_size, (unsigned long long)st.st_ino, (unsigned long long)map->size,
                       (unsigned long long)map->inode);
    }
    return CL_OK;
}

int cl_segment_check(cl_store *store, cl_map *map)
{
    struct stat st;
    int rc = CL_OK;
    if (map->fd >= 0 && (fstat(map->fd, &st) != 0 || st.st_ino != map->inode || st.st_dev != map->device)) {
        map->fd = -1; /* the program closed it; the number may belong to a file of the program now */
        store->kept -= map->kept;
        map->kept = 0;
    }
    if (map->fd < 0) {
        rc = check_name(store, map);
    } else if (st.st_nlink == 0 && is_adrift_file(store, map)) {
        rc = (uint64_t)st.st_size == map->size
                 ? CL_OK
                 : cl_fail(CL_CORRUPT, 0,
                           "%s: now %lld bytes; when mapped %llu bytes: the file was truncated or extended", map->file,
                           (long long)st.st_size, (unsigned long long)map->size);
    } else if ((uint64_t)st.st_size != map->size || ctime_of(&st) != map->ctime_ns) {
        rc = check_name(store, map);
        map->ctime_ns = rc == CL_OK ? ctime_of(&st) : map->ctime_ns;
    }
    if (rc != CL_OK) {
        return rc;
    }
    if (memcmp(map->base, &map->header, sizeof map->header) != 0) {
        cl_header header =
            *(const cl_header *)(const void *)map->base; /* copied once, then checked; the error says what is wrong */
        rc = cl_segment_header_check(&header, map->id, map->size, map->file);
        return rc != CL_OK ? rc : cl_fail(CL_CORRUPT, 0, "%s: its header has changed", map->file);
    }
    return CL_OK;
}

int cl_segment_map(cl_store *store, uint64_t id, uint32_t slot, cl_map **out)
{
    cl_map *map = slot < CL_MAX_SEGMENTS && store->maps != NULL ? store->maps[slot] : NULL;
    if (map != NULL && map->id == id) {
        *out = map;
        return map->base == NULL ? CL_OK : cl_segment_check(store, map);
    }
    char file[CL_FILE_NAME];
    cl_segment_file(file, id);
    int directory = cl_home(store, store->segments[slot].class_index, 0);
    if (directory < 0) {
        return cl_last_error()->code;
    }
    int fd = openat(directory, file, O_RDWR | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (is_short_of_descriptors(fd)) {
        int why = errno;
        if (give_descriptors_back(store)) {
            fd = openat(directory, file, O_RDWR | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
        } else {
            errno = why;
        }
    }
    if (fd < 0) {
        return errno == ENOENT ? cl_fail(CL_STALE, 0, "its segment file %s no longer exists", file)
                               : cl_fail(CL_SYSTEM, errno, "opening %s", file);
    }
    struct stat st;
    cl_header header;
    int rc = CL_OK;
    if (fstat(fd, &st) != 0) {
        rc = cl_fail(CL_SYSTEM, errno, "reading %s", file);
    } else if (!S_ISREG(st.st_mode) || st.st_uid != geteuid() ||
               pread(fd, &header, sizeof header, 0) != (ssize_t)sizeof header) {
        rc = cl_fail(CL_CORRUPT, 0, "%s: it is not a regular file of this user, or it is too short (%lld bytes)", file,
                     (long long)st.st_size);
    } else {
        rc = cl_segment_header_check(&header, id, (uint64_t)st.st_size, file);
    }
    void *base = MAP_FAILED;
    if (rc == CL_OK) {
        base = mmap(NULL, header.file_size + BEYOND, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        if (base == MAP_FAILED) {
            rc = cl_fail(CL_SYSTEM, errno, "mapping %llu bytes", (unsigned long long)header.file_size);
        }
    }
    if (rc != CL_OK) {
        close(fd);
        return rc;
    }
    map = calloc(1, sizeof *map);
    if (map == NULL) {
        close(fd);
        munmap(base, header.file_size + BEYOND);
        return cl_fail(CL_SYSTEM, ENOMEM, "allocating the table of a mapping");
    }
    memcpy(map->file, file, sizeof file);
    map->header = header;
    map->id = id;
    map->slot = slot;
    map->inode = st.st_ino;
    map->device = st.st_dev;
    map->base = base;
    map->size = header.file_size;
    map->block_size = header.block_size;
    map->nblocks = header.nblocks;
    keep_descriptor(map, fd, &st);
    rc = cl_map_add(store, map);
    if (rc != CL_OK) {
        cl_map_discard(map);
        return rc;
    }
    *out = map;
    return CL_OK;
}

int cl_segment_agrees(cl_store *store, const cl_map *map)
{
    const cl_segment *s = &store->segments[map->slot];
    if (s->id != map->id || s->nblocks != map->nblocks || s->block_size != map->block_size ||
        s->file_size != map->size || (s->inode != map->inode && !CL_MUTANT(segment_recorded_inode_unchecked))) {
        return cl_fail(CL_CORRUPT, 0, "%s: the file's header and the registry disagree", map->file);
    }
    return CL_OK;
}

/* ---- the process's table of mappings, by slot and by address */

int cl_map_add(cl_store *store, cl_map *map)
{
    if (store->maps == NULL) {
        store->maps = calloc(CL_MAX_SEGMENTS, sizeof *store->maps); /* pages are mapped when they are touched */
    }
    if (store->nmaps == store->maps_room) {
        uint32_t room = store->maps_room ? store->maps_room * 2 : 16;
        cl_map **wider = realloc(store->by_address, room * sizeof *wider);
        if (wider != NULL) {
            store->by_address = wider;
            store->maps_room = room;
        }
    }
    if (store->maps == NULL || store->nmaps == store->maps_room) {
        return cl_fail(CL_SYSTEM, ENOMEM, "allocating the table of mappings");
    }
    if (store->maps[map->slot] != NULL) {
        cl_map_drop(store, store->maps[map->slot]); /* of an earlier segment in this slot, which no longer exists */
    }
    uint32_t at = store->nmaps;
    while (at > 0 && store->by_address[at - 1]->base > map->base) {
        store->by_address[at] = store->by_address[at - 1];
        at--;
    }
    store->by_address[at] = map;
    store->nmaps++;
    if (map->base != NULL && map->fd >= 0) {
        map->kept = store->kept < may_keep(store);
        store->kept += map->kept;
        if (!map->kept) {
            forget_descriptor(map); /* there are many already: this file is checked by its name */
        }
    }
    store->maps[map->slot] = map;
    return CL_OK;
}

void cl_map_drop(cl_store *store, cl_map *map)
{
    for (uint32_t i = 0; i < store->nmaps; i++) {
        if (store->by_address[i] == map) {
            memmove(&store->by_address[i], &store->by_address[i + 1], (store->nmaps - i - 1) * sizeof map);
            store->nmaps--;
            break;
        }
    }
    if (store->maps[map->slot] == map) {
        store->maps[map->slot] = NULL;
    }
    store->kept -= map->kept;
    forget_descriptor(map);
    if (map->base != NULL && map->in_use == 0) { /* 64 MiB take 10 ms, and the registry's lock may be held here */
        map->next = store->dropped;
        store->dropped = map;
    } else {
        free(map);
    }
}

cl_map *cl_maps_dropped(cl_store *store)
{
    cl_map *dropped = store->dropped;
    store->dropped = NULL;
    return dropped;
}

void cl_maps_discard(cl_map *dropped)
{
    while (dropped != NULL) {
        cl_map *next = dropped->next;
        munmap(dropped->base, dropped->size + BEYOND);
        free(dropped);
        dropped = next;
    }
}

void cl_map_discard(cl_map *map)
{
    munmap(map->base, map->size + BEYOND);
    forget_descriptor(map);
    free(map);
}

void cl_map_prune(cl_store *store)
{
    for (uint32_t i = store->nmaps; i-- > 0;) {
        cl_map *map = store->by_address[i];
        const cl_segment *segment = &store->segments[map->slot];
        if (map->in_use == 0 && (map->slot >= store->control->segments_high || segment->id != map->id ||
                                 segment->state == CL_SEGMENT_FREE || segment->state == CL_SEGMENT_GOING)) {
            cl_map_drop(store, map);
        }
    }
}
