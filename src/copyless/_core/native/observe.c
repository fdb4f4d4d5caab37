/* Observing: a process reads the registry of a storage directory without joining it.
 *
 * Promise: it writes nothing, locks nothing, makes nothing, and waits for no process. `copyless ls` works while a
 * process is stopped inside the registry's lock, when no owner's slot is free, and when the mount is full. The result
 * is a store of which only a snapshot may be taken (snapshot.c).
 *
 * An observer has no holds. A block may be freed and its file truncated while the observer reads it. So files are read
 * with pread(), and what was read of a block is valid only if the registry still says the same of the block
 * afterwards. */
#define _GNU_SOURCE
#include "store.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static int open_live(cl_store *store, const cl_header *header)
{
    char live[CL_FILE_NAME];
    struct stat st;
    cl_live_file(live, header->id);
    store->live_fd = openat(cl_directory(store), live, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (store->live_fd < 0) {
        int why = errno;
        if (why == ENOENT && !cl_is_named(cl_directory(store), CL_REGISTRY_FILE, store->registry_fd)) {
            return CL_MISSING; /* it was removed with its registry just now */
        }
        return why == ENOENT ? cl_fail(CL_CORRUPT, 0, "registry: %s does not exist", live)
                             : cl_fail(CL_SYSTEM, why, "opening %s", live);
    }
    if (fstat(store->live_fd, &st) != 0) {
        return cl_fail(CL_SYSTEM, errno, "reading the status of %s", live);
    }
    if (!S_ISREG(st.st_mode) || st.st_ino != header->live_inode || st.st_dev != header->live_device) {
        return cl_fail(CL_CORRUPT, 0, "registry: %s is not the file that was created with it", live);
    }
    store->live_device = st.st_dev;
    store->live_inode = st.st_ino;
    return CL_OK;
}

/* Open the spill directory, if this process sees it: only for reading. */
static int look_at_spill(cl_store *store)
{
    struct stat st;
    ssize_t n = pread(store->registry_fd, &store->spill, sizeof store->spill, CL_OFF_SPILL);
    int rc = n == (ssize_t)sizeof store->spill
                 ? cl_spill_check(&store->spill)
                 : cl_fail(CL_CORRUPT, 0, "registry: the path of the spill directory cannot be read");
    if (rc != CL_OK || store->spill.path[0] == 0 || !cl_spill_is_here(&store->spill)) {
        return rc;
    }
    int fd = open(store->spill.path, CL_OPEN_PLACE);
    if (fd >= 0 && fstat(fd, &st) == 0 && st.st_uid == geteuid() && (st.st_mode & 022) == 0) {
        store->spill_fd = fd;
        store->spill_device = st.st_dev;
        store->spill_inode = st.st_ino;
    } else if (fd >= 0) {
        close(fd);
    }
    return CL_OK;
}

int cl_observe(cl_store *store, int directory)
{
    cl_header header;
    struct stat st;
    uint32_t removed;
    memset(store, 0, sizeof *store);
    store->observer = 1;
    store->slot = CL_MAX_OWNERS; /* no owner */
    store->live_fd = store->life_fd = store->spare_fd = -1;
    cl_directory_keep(store, directory);
    store->registry_fd = openat(directory, CL_REGISTRY_FILE, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (store->registry_fd < 0) {
        return errno == ENOENT ? CL_MISSING : cl_fail(CL_SYSTEM, errno, "opening the registry");
    }
    int rc = cl_read_header(store->registry_fd, &header, &st);
    if (rc == CL_OK) {
        store->registry_id = header.id;
        store->registry_device = st.st_dev;
        store->registry_inode = st.st_ino;
        store->identity.boot = header.boot;
        if (pread(store->registry_fd, &removed, sizeof removed, CL_OFF_CONTROL + offsetof(cl_control, removed)) !=
            (ssize_t)sizeof removed) {
            rc = cl_fail(CL_CORRUPT, 0, "registry: the control area cannot be read");
        } else if (removed == 1) {
            rc = CL_MISSING;
        }
    }
    if (rc == CL_OK) {
        rc = open_live(store, &header);
    }
    if (rc == CL_OK) {
        rc = look_at_spill(store);
    }
    if (rc != CL_OK) {
        cl_error kept = *cl_last_error();
        cl_observe_end(store);
        *cl_last_error() = kept;
    }
    return rc;
}

void cl_observe_end(cl_store *store)
{
    if (store->registry_fd >= 0) {
        close(store->registry_fd);
    }
    if (store->live_fd >= 0) {
        close(store->live_fd);
    }
    if (store->spill_fd > 0) {
        close(store->spill_fd);
    }
    store->registry_fd = -1;
    store->live_fd = -1;
    store->spill_fd = 0;
}

int cl_observe_segment(const cl_snapshot *snapshot, uint32_t slot)
{
    if (slot >= snapshot->control.segments_high) {
        return cl_fail(CL_STALE, 0, "segment %u does not exist", slot);
    }
    const cl_segment *s = &snapshot->segments[slot];
    char file[CL_FILE_NAME];
    struct stat st;
    cl_header header;
    cl_segment_file(file, s->id);
    int directory = cl_home(snapshot->view, s->class_index, 0);
    int fd = directory < 0 ? -1 : openat(directory, file, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0) {
        return errno == ENOENT ? cl_fail(CL_STALE, 0, "its segment file %s no longer exists", file)
                               : cl_fail(CL_SYSTEM, errno, "opening %s", file);
    }
    int rc = CL_OK;
    if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode) || st.st_uid != geteuid()) {
        rc = cl_fail(CL_CORRUPT, 0, "%s: it is not a regular file of this user", file);
    } else if (pread(fd, &header, sizeof header, 0) != (ssize_t)sizeof header) {
        rc = cl_fail(st.st_size == 0 ? CL_STALE : CL_CORRUPT, 0, "%s: it has only %lld bytes", file,
                     (long long)st.st_size);
    } else {
        rc = cl_segment_header_check(&header, s->id, (uint64_t)st.st_size, file);
    }
    if (rc == CL_OK &&
        (header.nblocks != s->nblocks || header.block_size != s->block_size || header.file_size != s->file_size)) {
        rc = cl_fail(CL_CORRUPT, 0, "%s: the file's header and the registry disagree", file);
    }
    if (rc != CL_OK) {
        close(fd);
        return rc;
    }
    return fd;
}

int cl_observe_block(const cl_snapshot *snapshot, int fd, uint32_t slot, uint32_t index, uint64_t offset, void *to,
                     uint64_t nbytes)
{
    const cl_segment *s = &snapshot->segments[slot];
    if (index >= s->nblocks || index >= CL_BLOCKS || nbytes > s->block_size || offset > s->block_size - nbytes) {
        return cl_fail(CL_CORRUPT, 0, "%llu bytes at offset %llu are outside block %u", (unsigned long long)nbytes,
                       (unsigned long long)offset, slot * CL_BLOCKS + index);
    }
    uint64_t at = CL_PAGE + index * s->block_size + offset;
    for (uint64_t done = 0; done < nbytes;) {
        ssize_t n = pread(fd, (uint8_t *)to + done, nbytes - done, (off_t)(at + done));
        if (n == 0) {
            return cl_fail(CL_STALE, 0, "the block was released while it was read");
        }
        if (n < 0 && errno != EINTR) {
            return cl_fail(CL_SYSTEM, errno, "reading a block");
        }
        done += n > 0 ? (uint64_t)n : 0;
    }
    return CL_OK;
}

int cl_observe_still(const cl_snapshot *snapshot, uint32_t slot, uint32_t index)
{
    cl_segment now;
    const cl_block *was = &snapshot->segments[slot].blocks[index % CL_BLOCKS];
    int rc = cl_snapshot_segment_now(snapshot, slot, &now);
    if (rc != CL_OK) {
        return rc;
    }
    const cl_block *is = &now.blocks[index % CL_BLOCKS];
    return now.id == snapshot->segments[slot].id && is->generation == was->generation && is->state == CL_BLOCK_USED
               ? CL_OK
               : cl_fail(CL_STALE, 0, "the block no longer exists (generation %llu)",
                         (unsigned long long)was->generation);
}
