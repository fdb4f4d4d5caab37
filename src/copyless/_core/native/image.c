/* Reads the registry's tables through its file, without its lock.
 *
 * Promise: if the registry is truncated during the read, the result is an error, not a SIGBUS. Only what the next step
 * needs is checked: the guards and the lengths of the control area. */
#define _GNU_SOURCE
#include "store.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

static int read_all(int fd, uint64_t offset, void *to, uint64_t length)
{
    for (uint64_t done = 0; done < length;) {
        ssize_t n = pread(fd, (uint8_t *)to + done, length - done, (off_t)(offset + done));
        if (n > 0) {
            done += (uint64_t)n;
        } else if (n == 0) {
            return cl_fail(CL_CORRUPT, 0, "registry: the file ends at byte %llu", (unsigned long long)(offset + done));
        } else if (errno != EINTR) {
            return cl_fail(CL_SYSTEM, errno, "reading the registry");
        }
    }
    return CL_OK;
}

int cl_image_part(const cl_image *from, uint64_t offset, void *to, uint64_t length)
{
    if (from->fd < 0) {
        memcpy(to, from->store->base + offset, length);
        return CL_OK;
    }
    return read_all(from->fd, offset, to, length);
}

/* Read a table, part of which may be in the file of books. */
int cl_image_table(const cl_image *from, const cl_control *c, enum cl_table_number table, uint64_t offset, void *to,
                   uint64_t length)
{
    uint64_t here = length;
    if ((atomic_load_explicit(&c->books, memory_order_relaxed) >> table & 1u) != 0 && from->fd >= 0) {
        uint64_t beside = c->beside[table];
        here = beside <= offset ? 0 : beside - offset < length ? beside - offset : length;
    }
    int rc = cl_image_part(from, offset, to, here);
    if (rc == CL_OK && here < length) {
        rc = from->books < 0
                 ? cl_fail(CL_FOREIGN, 0, "part of the registry's tables is in %.160s, which cannot be opened here",
                           from->store->spill.path)
                 : read_all(from->books, offset + here, (uint8_t *)to + here, length - here);
    }
    return rc;
}

/* Lengths beyond the tables' ends are damage: a loop up to them would leave the mapping, or ask for endless memory. */
int cl_check_lengths(const cl_control *c)
{
    if (c->owners_high > CL_MAX_OWNERS || c->segments_high > CL_MAX_SEGMENTS || c->holds_high > CL_MAX_HOLDS ||
        c->names_high > CL_MAX_NAMES || c->marks_high > CL_MAX_MARKS) {
        return cl_fail(CL_CORRUPT, 0,
                       "registry: invalid table sizes: %u owners, %u segments, %u holds, %u names, %u pages of marks",
                       c->owners_high, c->segments_high, c->holds_high, c->names_high, c->marks_high);
    }
    return CL_OK;
}

int cl_image_control(const cl_image *from, cl_control *c)
{
    atomic_thread_fence(memory_order_seq_cst);
    int rc = cl_image_part(from, CL_OFF_CONTROL, c, sizeof *c);
    atomic_thread_fence(memory_order_seq_cst);
    if (rc == CL_OK && (c->guard != CL_GUARD || c->guard_end != CL_GUARD)) {
        rc = cl_fail(CL_CORRUPT, 0, "registry: the header or the control area is overwritten");
    }
    return rc == CL_OK ? cl_check_lengths(c) : rc;
}

int cl_image_books(const cl_store *store)
{
    char file[CL_FILE_NAME];
    cl_file_name(file, CL_BOOKS_PREFIX, store->registry_id);
    return store->spill_fd > 0 ? openat(store->spill_fd, file, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC) : -1;
}

int cl_snapshot_segment_now(const cl_snapshot *snapshot, uint32_t slot, cl_segment *now)
{
    cl_image from = {.store = snapshot->of, .fd = snapshot->of->registry_fd, .books = cl_image_books(snapshot->of)};
    cl_control c;
    if (!cl_is_file(from.fd, snapshot->of->registry_device, snapshot->of->registry_inode)) {
        from.fd = -1;
    }
    int rc = from.fd < 0 && snapshot->of->base == NULL ? CL_SYSTEM : cl_image_control(&from, &c);
    if (rc == CL_OK) {
        rc = cl_image_table(&from, &c, CL_TABLE_SEGMENTS, CL_OFF_SEGMENTS + (uint64_t)slot * sizeof *now, now,
                            sizeof *now);
    }
    if (from.books >= 0) {
        close(from.books);
    }
    return rc;
}
