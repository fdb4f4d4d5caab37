/* The functions that only Linux has, behind one header: no other code in native/ names a system.
 * docs/design/platform.md says, for each function, what another system would have to provide.
 *
 * Functions of more than a line are in linux_process.c, linux_capacity.c, linux_filesystem.c and linux_waiting.c. The
 * ones here are inline, so that a call costs no more than the system call, and a test that wraps the system's functions
 * still sees it. */
#ifndef CL_PLATFORM_H
#define CL_PLATFORM_H

#include "base.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

/* ---- words to sleep on, in memory that several processes have mapped (linux_waiting.c) */

/* Sleep while the word has this value, at most until a time of the monotonic clock; a signal does not extend the time.
 * 0: woken. -1: errno is ETIMEDOUT, EINTR or EAGAIN (the word has another value). */
int cl_sleep_on_word(const cl_au32 *word, uint32_t expected, int64_t until_ns);
/* The same for up to CL_WORDS_AT_ONCE words. Returns the index of the one that was woken, or -1 with errno: ENOSYS or
 * EPERM if the system cannot do it. */
#define CL_WORDS_AT_ONCE 128
long cl_sleep_on_words(cl_au32 *const *words, const uint32_t *expected, int n, int64_t until_ns);
void cl_wake_word(const cl_au32 *word, int n); /* wakes at most n sleepers */
int cl_has_one_processor(void); /* this thread may use only one processor: then spinning delays the other thread */
void cl_leave_processor(void); /* move to another processor that this thread may use */

/* ---- locks on ranges of a file that belong to the open file, not to the process: they end with its last descriptor or
 * mapping, are inherited by fork, and are released by the kernel however a process ends */

static inline int cl_lock_range(int fd, short type, off_t begin,
                                off_t length) /* length 0: to the end; 0 or -1 with errno */
{
    struct flock fl = {.l_type = type, .l_whence = SEEK_SET, .l_start = begin, .l_len = length};
    return fcntl(fd, F_OFD_SETLK, &fl);
}

/* Whether another open file has a lock there: 1, 0, or -1 with errno. */
static inline int cl_range_is_locked(int fd, off_t begin, off_t length)
{
    struct flock fl = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = begin, .l_len = length};
    return fcntl(fd, F_OFD_GETLK, &fl) != 0 ? -1 : fl.l_type != F_UNLCK;
}

/* ---- files */

#define CL_DESCRIPTOR_PATH 40 /* bytes of a path by descriptor */
static inline const char *cl_path_of_descriptor(int fd,
                                                char path[CL_DESCRIPTOR_PATH]) /* opens the same file, named or not */
{
    snprintf(path, CL_DESCRIPTOR_PATH, "/proc/self/fd/%d", fd);
    return path;
}

static inline int cl_open_nameless(int directory) /* a new file without a name; -1: this file system cannot */
{
    return openat(directory, ".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
}

static inline int cl_give_name(int fd, int directory, const char *name) /* never replaces another file; 0 or -1 */
{
    char path[CL_DESCRIPTOR_PATH];
    return linkat(AT_FDCWD, cl_path_of_descriptor(fd, path), directory, name, AT_SYMLINK_FOLLOW);
}

#define CL_OPEN_PLACE                                                                                                  \
    (O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC) /* a directory as a place: it cannot be read or listed */

static inline int cl_open_posix_directory(void) /* the place of POSIX shared memory: each name is a file there */
{
    return open("/dev/shm", O_PATH | O_DIRECTORY | O_CLOEXEC);
}

/* Reserve memory, so that no later write there fails; 0 or an error number. */
static inline int cl_reserve_room(int fd, uint64_t offset, uint64_t length)
{
    return posix_fallocate(fd, (off_t)offset, (off_t)length);
}

/* ---- descriptors that `poll` reports as readable while this process has raised them; they do not block */

static inline int cl_wake_descriptor(void) /* a new one, not raised; -1 with errno */
{
    return eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
}

static inline void cl_raise_descriptor(int fd)
{
    const uint64_t one = 1;
    while (write(fd, &one, sizeof one) < 0 && errno == EINTR) {
    }
}

static inline int cl_lower_descriptor(int fd) /* 0, or -1 with errno; EAGAIN: it was not raised */
{
    uint64_t count;
    ssize_t n;
    while ((n = read(fd, &count, sizeof count)) < 0 && errno == EINTR) {
    }
    return n < 0 ? -1 : 0;
}

static inline int cl_place_descriptor(int fd, int number) /* replaces the descriptor of this number; number or -1 */
{
    return dup3(fd, number, O_CLOEXEC);
}

/* ---- this boot of this kernel */

#define CL_BOOT_ID_PLACE "/proc/sys/kernel/random/boot_id" /* for error texts: where the boot id is read */

static inline int64_t cl_uptime_s(void) /* seconds since this kernel started, including suspended time */
{
    struct timespec t;
    clock_gettime(CLOCK_BOOTTIME, &t);
    return t.tv_sec;
}

static inline int cl_random_bytes(void *to, size_t n) /* up to 256 unpredictable bytes; 1: all of them were written */
{
    return getrandom(to, n, 0) == (ssize_t)n;
}

/* ---- memory of this process, which uses room only where it is written */

#define CL_MAP_LAZILY (MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE)

/* ---- advice on mapped memory; 0 or -1 */

#ifndef MADV_WIPEONFORK
#define MADV_WIPEONFORK 18
#endif
#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#endif
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif
#define CL_NO_SUCH_ADVICE 0x7ffe /* the system rejects it; an emulator that ignores advice does not */

static inline int cl_keep_out_of_children(void *memory, uint64_t length) /* a forked child does not get it */
{
    return madvise(memory, length, MADV_DONTFORK);
}

static inline int cl_wipe_in_children(void *memory, uint64_t length) /* a forked child finds zeros there */
{
    return madvise(memory, length, MADV_WIPEONFORK);
}

static inline int cl_advice_is_looked_at(void *memory, uint64_t length) /* an emulator may ignore it */
{
    return madvise(memory, length, CL_NO_SUCH_ADVICE) != 0;
}

static inline void cl_keep_out_of_dumps(void *memory, uint64_t length)
{
    madvise(memory, length, MADV_DONTDUMP);
}

static inline int cl_make_pages(void *memory, uint64_t length) /* fills the page tables at once; old kernels refuse */
{
    return madvise(memory, length, MADV_POPULATE_WRITE);
}

static inline int cl_read_pages(void *memory,
                                uint64_t length) /* -1 with EFAULT beyond the file's end, where an access would kill */
{
    return madvise(memory, length, MADV_POPULATE_READ);
}

/* ---- processes (linux_process.c) */

uint64_t cl_process_start(uint32_t pid); /* clock ticks after boot, also for a zombie; 0: no such process */
int cl_process_lives(uint32_t pid, uint64_t start); /* whether the process with this number and start time still runs */

typedef struct cl_program {
    char *const *paths; /* paths to try, in this order; ends with NULL, as the next two do */
    char *const *arguments;
    char *const *environment;
    const sigset_t *blocked; /* the signals that are blocked when it starts */
    int descriptors[3]; /* its descriptors 0, 1 and 2; -1: those of this process */
    int processor; /* the only processor that it may use; -1: as this process */
} cl_program;

/* Start a program as a child. It has no other descriptors. Signals have their default handling (signals that are
 * ignored here stay ignored, except SIGPIPE and SIGXFSZ). It gets SIGTERM when the thread that called this ends, in
 * whatever way. Returns its process number, or -1 with errno: then there is no child. This process's memory is not
 * copied. */
int cl_start_program(const cl_program *program);

/* ---- whether memory of a given size is available, asked before it is reserved (linux_capacity.c) */

#define CL_CAPACITY_LARGE ((uint64_t)64 << 20) /* smaller requests are compared with the mount only */

/* The size and the room of the mount of a file. 0: the mount has no limit of its own (a tmpfs of size=0, a ramfs), or
 * cannot tell. */
struct statvfs;
int cl_mount_room(int fd, struct statvfs *fs);

/* fd: any file of the mount. CL_OK or CL_FULL; the error text says which of the three limits leaves no room. */
int cl_capacity_check(int fd, uint64_t size);

/* ---- the kind of file system of a directory: who else can use it, and whether it outlives a boot
 * (linux_filesystem.c) */

enum cl_filesystem {
    CL_FS_MEMORY, /* in this kernel's memory: nothing in it is older than this boot */
    CL_FS_LOCAL, /* a disk of this machine: files of an earlier boot are obsolete if no process has them locked */
    CL_FS_SHARED, /* a network file system, or an unknown one: another kernel may be using it now */
};

enum cl_filesystem cl_filesystem_of(int directory);

#endif
