/* Shared by the C targets: an input read as a program, a storage directory of their own, stores that are thrown
 * away.
 *
 * An input is a program: each step is a byte that says what to do, and the bytes that it needs; past the end all
 * bytes are 0. So every input means something, and a longer one does more. Checked: no signal, no hang, no report of
 * a sanitizer, only results with the documented codes, and memory that a call returned can be written to its last
 * byte. */
#ifndef FUZZ_H
#define FUZZ_H

#define _GNU_SOURCE
#include "store.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#if defined(__SANITIZE_ADDRESS__)
#define FUZZ_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define FUZZ_ASAN 1
#endif
#endif
#ifdef FUZZ_ASAN
#include <sanitizer/asan_interface.h>
#define FUZZ_POISON(p, n) __asan_poison_memory_region(p, n)
#define FUZZ_UNPOISON(p, n) __asan_unpoison_memory_region(p, n)
#else
#define FUZZ_POISON(p, n) ((void)(p), (void)(n))
#define FUZZ_UNPOISON(p, n) ((void)(p), (void)(n))
#endif

#define MUST(condition)                                                                                                \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "%s:%d: %s [%s]\n", __FILE__, __LINE__, #condition, cl_last_error()->what);                \
            abort();                                                                                                   \
        }                                                                                                              \
    } while (0)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

typedef struct fuzz_input {
    const uint8_t *p;
    size_t left;
} fuzz_input;

static inline uint8_t fuzz_8(fuzz_input *in)
{
    return in->left == 0 ? 0 : (in->left--, *in->p++);
}

static inline uint64_t fuzz_number(fuzz_input *in, int nbytes)
{
    uint64_t v = 0;
    for (int i = 0; i < nbytes; i++) {
        v |= (uint64_t)fuzz_8(in) << (8 * i);
    }
    return v;
}

static uint64_t fuzz_words[8]; /* words that are likely to mean something in the wrong place; 0: the target has none */

/* One word, or a part of one, gets the input's value: near the old one, far from it, or any. */
static inline void fuzz_noise(fuzz_input *in, void *where, size_t nbytes)
{
    uint8_t how = fuzz_8(in);
    size_t size = (size_t)1 << (how & 3), at = (fuzz_number(in, 2) % (nbytes / size)) * size;
    uint64_t word = 0;
    memcpy(&word, (uint8_t *)where + at, size);
    switch (how >> 2 & 7) {
    case 0:
        word += fuzz_8(in);
        break;
    case 1:
        word -= fuzz_8(in);
        break;
    case 2:
        word = ~(uint64_t)0 >> (fuzz_8(in) & 63);
        break;
    case 3:
        word ^= (uint64_t)1 << (fuzz_8(in) & 63);
        break;
    case 4:
        word = fuzz_8(in);
        break;
    case 5:
        word = 0;
        break;
    case 7:
        if (fuzz_words[0] != 0) {
            word = fuzz_words[fuzz_8(in) & 7];
            break;
        }
        /* fall through */
    default:
        word = fuzz_number(in, (int)size);
    }
    memcpy((uint8_t *)where + at, &word, size);
}

/* ---- the directory */

static char fuzz_path[64];

static inline void fuzz_empty_at(int parent, const char *name, int depth)
{
    int fd = openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    DIR *d = fd >= 0 ? fdopendir(fd) : NULL;
    for (struct dirent *e; d != NULL && (e = readdir(d)) != NULL;) {
        if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0 && unlinkat(fd, e->d_name, 0) != 0 &&
            depth > 0) {
            fuzz_empty_at(fd, e->d_name, depth - 1);
            unlinkat(fd, e->d_name, AT_REMOVEDIR);
        }
    }
    if (d != NULL) {
        closedir(d);
    }
}

static inline void fuzz_empty(void)
{
    fuzz_empty_at(AT_FDCWD, fuzz_path, 3); /* including a directory of spilled items */
}

static inline void fuzz_remove(void)
{
    fuzz_empty();
    rmdir(fuzz_path);
}

static int fuzz_paused; /* while the target itself makes calls, nothing is refused: see faults.h */

static inline int fuzz_directory(void)
{
    fuzz_paused++;
    if (fuzz_path[0] == 0) {
        strcpy(fuzz_path, "/dev/shm/copyless-fuzz-XXXXXX");
        MUST(mkdtemp(fuzz_path) != NULL);
        atexit(fuzz_remove);
    }
    int fd = open(fuzz_path, O_PATH | O_DIRECTORY | O_CLOEXEC);
    MUST(fd >= 0);
    fuzz_paused--;
    return fd;
}

/* ---- stores */

static inline int fuzz_open(cl_store *store, uint64_t family)
{
    cl_identity who = {
        .host = 11, .boot = 22, .family = family, .pid = (uint32_t)getpid(), .start = 33, .command = "fuzz"};
    cl_settings settings = {.warm_limit = (uint64_t)1 << 20, .idle_ns = 0, .message_ttl_ns = 600000000000};
    int directory = fuzz_directory();
    snprintf(settings.spill, sizeof settings.spill, "%s/spilled", fuzz_path);
    return cl_store_open(store, directory, &who, &settings);
}

/* A store without damage can be opened, after some attempts. */
static inline void fuzz_open_sound(cl_store *store, uint64_t family)
{
    int rc, tries = 0;
    while ((rc = fuzz_open(store, family)) == CL_RETRY && tries++ < 50) {
        close(store->directory);
    }
    MUST(rc == CL_OK);
}

/* Its byte is released and its mappings end, as after SIGKILL: nothing else is released. */
static inline void fuzz_kill(cl_store *store)
{
    for (uint32_t i = store->nmaps; i-- > 0;) {
        cl_map *map = store->by_address[i];
        if (map->base != NULL) {
            FUZZ_UNPOISON(map->base, map->size);
        }
        map->in_use = 0;
        cl_map_drop(store, map);
    }
    cl_maps_discard(cl_maps_dropped(store));
    free(store->maps);
    free(store->by_address);
    free(store->later);
    cl_life_end(store);
    if (store->base != NULL) {
        munmap(store->base, CL_REGISTRY_SIZE);
    }
    if (store->here != NULL) {
        munmap((void *)(uintptr_t)store->here, CL_PAGE);
    }
    if (store->spill_mark != NULL) {
        munmap(store->spill_mark, CL_PAGE);
    }
    int *const fds[] = {&store->registry_fd};
    for (size_t i = 0; i < sizeof fds / sizeof *fds; i++) {
        if (*fds[i] >= 0) {
            close(*fds[i]);
        }
    }
    if (store->live_fd >= 0) {
        close(store->live_fd);
    }
    if (store->directory >= 0) {
        close(store->directory);
    }
    if (store->spill_fd > 0) {
        close(store->spill_fd);
    }
    memset(store, 0, sizeof *store);
    store->registry_fd = store->life_fd = store->spare_fd = -1;
    store->live_fd = -1;
    store->directory = -1;
}

/* A program closes a descriptor of the library; its number may then be that of a file of the program. */
static int fuzz_own[64], fuzz_nown;

static inline void fuzz_close(int fd, int reuse)
{
    if (fd < 0 || (reuse && fuzz_nown == (int)(sizeof fuzz_own / sizeof *fuzz_own))) {
        return;
    }
    close(fd);
    if (reuse) {
        fuzz_paused++;
        int own = open("/dev/null", O_RDWR | O_CLOEXEC);
        fuzz_paused--;
        MUST(own >= 0);
        if (own != fd) {
            MUST(dup2(own, fd) == fd);
            close(own);
        }
        fuzz_own[fuzz_nown++] = fd;
    }
}

/* Those that exist after all stores are thrown away: the library must not have closed them. */
static inline void fuzz_close_own(void)
{
    struct stat null, st;
    MUST(stat("/dev/null", &null) == 0);
    while (fuzz_nown > 0) {
        int fd = fuzz_own[--fuzz_nown];
        if (fstat(fd, &st) == 0 && S_ISCHR(st.st_mode) && st.st_rdev == null.st_rdev) {
            close(fd);
        }
    }
}

/* A documented result. */
static inline int fuzz_result(int rc)
{
    MUST(rc >= CL_REMOVED && rc <= 3);
    if (rc == CL_CORRUPT) {
        MUST(cl_last_error()->what[0] != 0); /* a call that reports damage says what is damaged */
    }
    return rc;
}

/* All of a block that was returned can be used. */
static inline void fuzz_touch(const cl_block_ref *r, int write)
{
    uint64_t step = r->capacity < 16384 ? 1 : 4096;
    for (uint64_t i = 0; i < r->capacity; i += step) {
        volatile uint8_t *p = r->data + i;
        if (write) {
            *p = 1;
        } else {
            (void)*p;
        }
    }
    (void)*(volatile uint8_t *)(r->data + r->capacity - 1);
}

#endif
