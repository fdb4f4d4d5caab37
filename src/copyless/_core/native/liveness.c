/* Liveness: which owners live.
 *
 * Promise: an owner is alive exactly as long as byte `slot` of the liveness file is locked. Nothing else decides: not a
 * descriptor (a program may close it), not a process number (a zombie keeps it, exec does not change it).
 *
 * How a byte is held: each owner opens the liveness file for itself, locks its byte through that open file (an OFD
 * lock), maps one page of it (PROT_NONE, MADV_DONTFORK), and closes the descriptor. Only the mapping keeps the file
 * open, so:
 *
 *   the program closes all descriptors        the byte stays locked
 *   fork, or a raw clone without memory       the child does not get the mapping: it is never taken for its parent
 *   vfork, posix_spawn, CLONE_VM              the child shares the memory: the byte stays locked until it execs or ends
 *   exec, exit, SIGKILL, zombie               the memory is gone: the byte is free
 *   the main thread ends, others continue     the memory stays: the byte stays locked
 *
 * A system that accepts MADV_DONTFORK and ignores it (qemu's user mode) is detected at joining. There the descriptor is
 * kept instead of the mapping, and `cl_store.weak_liveness` is set.
 *
 * A second byte, CL_MAX_OWNERS + slot, is held by a mapping that a forked child does inherit (the lineage). It stays
 * locked while any copy of this address space lives; fork.c says why it is needed.
 *
 * What SIGKILL leaves: no locked byte. */
#define _GNU_SOURCE
#include "store.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* A file without a name is opened through a descriptor of it. */
static int open_nameless(cl_store *store)
{
    const int known[] = {atomic_load_explicit(&store->live_fd, memory_order_relaxed), store->spare_fd, store->life_fd};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        if (cl_is_file(known[i], store->live_device, store->live_inode)) {
            char path[CL_DESCRIPTOR_PATH];
            int fd = open(cl_path_of_descriptor(known[i], path), O_RDWR | O_CLOEXEC);
            if (cl_is_file(fd, store->live_device, store->live_inode)) {
                return fd;
            }
            if (fd >= 0) {
                close(fd);
            }
        }
    }
    errno = ENOENT;
    return -1;
}

int cl_live_open(cl_store *store)
{
    if (atomic_load_explicit(&store->adrift, memory_order_relaxed)) {
        return open_nameless(store);
    }
    char file[CL_FILE_NAME];
    cl_live_file(file, store->registry_id);
    int fd = openat(cl_directory(store), file, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
    if (fd >= 0 && !cl_is_file(fd, store->live_device, store->live_inode)) {
        close(fd);
        errno = ENOENT;
        fd = -1;
    }
    return fd;
}

/* Ask through a descriptor that locks nothing. The program may have closed it and reused its number for a file of its
 * own, so an answer counts only if the descriptor is still the same after it. In doubt the owner lives. */
static int byte_locked(cl_store *store, uint32_t byte)
{
    for (int tries = 0; tries < 4; tries++) {
        int fd = atomic_load_explicit(&store->live_fd, memory_order_relaxed);
        int locked = fd < 0 ? -1 : cl_range_is_locked(fd, byte, 1);
        if (locked >= 0 && cl_is_file(fd, store->live_device, store->live_inode)) {
            return locked;
        }
        int fresh = cl_live_open(store);
        if (fresh < 0) {
            return 1;
        }
        if (!atomic_compare_exchange_strong(&store->live_fd, &fd, fresh)) {
            close(fresh); /* another thread was faster */
        }
    }
    return 1;
}

cl_life cl_owner_life(cl_store *store, uint32_t slot, uint32_t incarnation)
{
    if (slot == CL_CARETAKER) {
        return store->slot != slot && byte_locked(store, slot) ? CL_ALIVE : CL_DEAD;
    }
    if (slot >= CL_CARETAKER || slot >= store->control->owners_high) {
        return CL_NOBODY;
    }
    /* Only the incarnation decides: a process that joins has the registry's lock before its slot is marked. */
    const cl_owner *o = &store->owners[slot];
    if (*(const volatile uint32_t *)&o->state > CL_OWNER_GONE ||
        ((*(const volatile uint32_t *)&o->incarnation ^ incarnation) & CL_INCARNATION) != 0) {
        return CL_NOBODY;
    }
    if (slot == store->slot) {
        return store->joining ? CL_DEAD : CL_ALIVE; /* joining: the word was written by an earlier owner of this slot */
    }
    return byte_locked(store, slot) ? CL_ALIVE : CL_DEAD;
}

int cl_lineage_lives(cl_store *store, uint32_t slot)
{
    return slot < CL_CARETAKER && byte_locked(store, CL_MAX_OWNERS + slot);
}

/* ---- holding a byte */

int cl_byte_lock(int fd, uint32_t byte)
{
    return cl_lock_range(fd, F_WRLCK, byte, 1) == 0 ? CL_OK
           : errno == EAGAIN || errno == EACCES     ? CL_AGAIN
                                                    : cl_fail(CL_SYSTEM, errno, "locking the liveness file");
}

void cl_byte_unlock(int fd, uint32_t byte)
{
    cl_lock_range(fd, F_UNLCK, byte, 1);
}

/* Map a page of the file, only to keep the file open. */
int cl_life_map(int fd, void **page)
{
    *page = mmap(NULL, CL_PAGE, PROT_NONE, MAP_SHARED, fd, 0);
    if (*page == MAP_FAILED) {
        *page = NULL;
        return cl_fail(CL_SYSTEM, errno, "mapping the liveness file");
    }
    return CL_OK;
}

int cl_life_keep(cl_store *store)
{
    if (store->life != NULL && !CL_MUTANT(fork_child_keeps_its_parents_life) &&
        cl_keep_out_of_children(store->life, CL_PAGE) != 0) {
        return cl_fail(CL_SYSTEM, errno, "keeping the liveness mapping out of forked children");
    }
    return CL_OK;
}

/* A kernel refuses advice that does not exist; an emulator that ignores advice accepts it. */
int cl_advice_is_ignored(void *page)
{
    return !cl_advice_is_looked_at(page, CL_PAGE);
}

int cl_lineage_begin(cl_store *store)
{
    if (store->lineage != NULL) {
        return CL_OK;
    }
    int fd = cl_live_open(store);
    if (fd < 0) {
        return cl_fail(CL_SYSTEM, errno, "opening the liveness file");
    }
    int rc = cl_byte_lock(fd, CL_MAX_OWNERS + store->slot);
    if (rc == CL_AGAIN) { /* copies of an earlier owner of this slot, which will end some time */
        rc = cl_fail(CL_SYSTEM, EAGAIN, "locking the lineage of slot %u", store->slot);
    }
    if (rc == CL_OK) {
        rc = cl_life_map(fd, &store->lineage);
    }
    close(fd);
    return rc;
}

void cl_spare_opening(cl_store *store)
{
    if (store->spare_fd >= 0 && cl_is_file(store->spare_fd, store->live_device, store->live_inode)) {
        return;
    }
    store->spare_fd = cl_live_open(store);
}

void cl_life_end(cl_store *store)
{
    if (store->life != NULL) {
        munmap(store->life, CL_PAGE);
        store->life = NULL;
    }
    if (store->lineage != NULL) {
        munmap(store->lineage, CL_PAGE);
        store->lineage = NULL;
    }
    int *const kept[] = {&store->life_fd, &store->spare_fd};
    for (int i = 0; i < 2; i++) {
        if (*kept[i] >= 0 && cl_is_file(*kept[i], store->live_device, store->live_inode)) {
            close(*kept[i]);
        }
        *kept[i] = -1;
    }
}
