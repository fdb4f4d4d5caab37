/* The directory on disk for transfers that must succeed although shared memory is full.
 *
 * The process that makes the registry decides on the directory once, and records it in the registry with the device and
 * inode of the parent directory (/var/tmp, for example). A process that sees another directory under that path
 * (systemd's PrivateTmp, a container) does not use it: it neither puts files where the others cannot find them, nor
 * takes files of others.
 *
 *   nothing --(first spill: mkdir, then home.N)--> there --(last owner out)--> nothing
 *
 * The path ends with the registry's id, so that no two registries share a directory. home.N says which storage
 * directory, registry and boot the directory belongs to. Every process that uses the directory has home.N read-locked,
 * through a mapping, until it ends.
 *
 * What SIGKILL leaves: the directory and files in it. The next sweep removes files that the registry does not name. A
 * directory whose registry is gone is removed when the next registry is made in the same storage directory, if no
 * process has home.N locked and the registry is proven to be gone: it was in that very storage directory, where the new
 * one is now; or it is of an earlier boot (by its boot id and by the time of home.N), on a disk of this machine. */
#define _GNU_SOURCE
#include "store.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define HOME "home." CL_LAYOUT_TEXT

/* The parent directory of `path`. */
static void parent_of(const char *path, char *out)
{
    snprintf(out, CL_SPILL_PATH, "%s", path);
    char *slash = strrchr(out, '/');
    if (slash == NULL) {
        strcpy(out, ".");
    } else {
        slash[slash == out] = 0; /* of "/x" it is "/" */
    }
}

void cl_spill_decide(cl_spill *spill, const char *prefix, uint64_t registry)
{
    memset(spill, 0, sizeof *spill);
    char parent[CL_SPILL_PATH];
    struct stat st;
    parent_of(prefix, parent);
    if (prefix[0] != 0 && strlen(prefix) + 17 <= sizeof spill->path && stat(parent, &st) == 0 && S_ISDIR(st.st_mode)) {
        snprintf(spill->path, sizeof spill->path, "%s%016llx", prefix, (unsigned long long)registry);
        spill->device = st.st_dev;
        spill->inode = st.st_ino;
    }
    spill->checksum = cl_hash64(spill, offsetof(cl_spill, checksum));
}

int cl_spill_join(cl_store *store)
{
    memcpy(&store->spill, store->base + CL_OFF_SPILL, sizeof store->spill);
    return cl_spill_check(&store->spill);
}

int cl_spill_check(const cl_spill *spill)
{
    if (spill->checksum != cl_hash64(spill, offsetof(cl_spill, checksum)) ||
        memchr(spill->path, 0, sizeof spill->path) == NULL) {
        return cl_fail(CL_CORRUPT, 0, "registry: the path of the spill directory is overwritten");
    }
    return CL_OK;
}

int cl_spill_is_here(const cl_spill *spill)
{
    char parent[CL_SPILL_PATH];
    struct stat st;
    parent_of(spill->path, parent);
    return stat(parent, &st) == 0 && st.st_dev == spill->device && st.st_ino == spill->inode;
}

/* Others see it complete or not at all: it is read only when it can be locked exclusively. */
static int mark(cl_store *store, int directory)
{
    struct stat st;
    if (store->spill_mark != NULL) {
        return 1;
    }
    int fd = openat(directory, HOME, O_RDWR | O_CREAT | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC, 0600);
    if (fd < 0) {
        return 0;
    }
    cl_spill_mark m = {
        .magic = CL_MAGIC, .layout = CL_LAYOUT_VERSION, .registry = store->registry_id, .boot = store->identity.boot};
    int ok = cl_lock_range(fd, F_RDLCK, 0, 0) == 0;
    if (ok) {
        m.device = store->directory_device;
        m.inode = store->directory_inode;
        m.checksum = cl_hash64(&m, offsetof(cl_spill_mark, checksum));
        /* All processes that use this directory write the same. */
        ok = fchmod(fd, 0600) == 0 && pwrite(fd, &m, sizeof m, 0) == (ssize_t)sizeof m && fstat(fd, &st) == 0 &&
             st.st_nlink != 0;
    }
    if (ok) {
        void *p = mmap(NULL, CL_PAGE, PROT_NONE, MAP_SHARED, fd, 0); /* keeps the file open, and so the lock */
        store->spill_mark = p == MAP_FAILED ? NULL : p;
    }
    close(fd);
    return store->spill_mark != NULL;
}

/* Open a directory of this user without following a link, whatever mode a umask gave it; -1. */
static int open_ours(const char *path)
{
    struct stat st;
    char self[CL_DESCRIPTOR_PATH];
    int fd, found = open(path, CL_OPEN_PLACE);
    if (found < 0) {
        return -1;
    }
    if (fstat(found, &st) != 0 || st.st_uid != geteuid() || (st.st_mode & 022) != 0) {
        close(found);
        errno = EPERM;
        return -1;
    }
    if ((st.st_mode & 0777) != 0700 && chmod(cl_path_of_descriptor(found, self), 0700) != 0) {
        close(found);
        return -1;
    }
    fd = openat(found, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    close(found);
    return fd;
}

/* Segments are made without the store's mutex, so two threads may open the directory at once. */
static pthread_mutex_t looking = PTHREAD_MUTEX_INITIALIZER;

void cl_spill_fork_child(void)
{
    pthread_mutex_init(&looking, NULL); /* another thread of the parent may have held it */
}

static int home(cl_store *store, int make)
{
    if (store->spill_fd > 0 && cl_is_file(store->spill_fd, store->spill_device, store->spill_inode)) {
        return store->spill_fd;
    }
    store->spill_fd = 0; /* the program closed it: the number may belong to a file of the program */
    const char *path = store->spill.path;
    if (path[0] == 0) {
        cl_fail(CL_FOREIGN, 0, "no spill directory was set or found when this registry was created");
        return -1;
    }
    if (!cl_spill_is_here(&store->spill)) {
        cl_fail(CL_FOREIGN, 0,
                "spilled items are in %s, and this process sees another directory at that path (PrivateTmp? a "
                "container?): give all processes the same directory, or set COPYLESS_SPILL to one that all of them see",
                path);
        return -1;
    }
    if (make) {
        if (mkdir(path, 0700) == 0) {
            chmod(path, 0700); /* whatever the umask is; the path's last part is ours and cannot be guessed */
        }
    }
    int fd = open_ours(path);
    if (fd < 0 || (make && !mark(store, fd))) {
        cl_fail(CL_SYSTEM, errno, "opening %s", path);
        if (fd >= 0) {
            close(fd);
        }
        return -1;
    }
    if (!make) {
        mark(store, fd);
    }
    struct stat st;
    if (fstat(fd, &st) == 0) {
        store->spill_device = st.st_dev;
        store->spill_inode = st.st_ino;
    }
    return store->spill_fd = fd;
}

int cl_home(cl_store *store, uint32_t class_index, int make)
{
    if (class_index != CL_SPILLED) {
        return cl_directory(store);
    }
    pthread_mutex_lock(&looking);
    int fd = home(store, make);
    pthread_mutex_unlock(&looking);
    return fd;
}

void cl_spill_forget(cl_store *store)
{
    pthread_mutex_lock(&looking);
    if (store->spill_fd > 0 && cl_is_file(store->spill_fd, store->spill_device, store->spill_inode)) {
        close(store->spill_fd);
    }
    if (store->spill_mark != NULL) {
        munmap(store->spill_mark, CL_PAGE);
    }
    store->spill_fd = 0;
    store->spill_mark = NULL;
    pthread_mutex_unlock(&looking);
}

/* ---- removing */

/* Remove the directory of a registry that no longer exists: the files of copyless in it, and the directory if it is
 * empty then. `over` is asked with home.N locked exclusively, so no process uses it; NULL: it is known. */
static void remove_home(cl_store *store, const char *path, int (*over)(cl_store *, int spill, int home))
{
    int directory = open_ours(path);
    int home = directory < 0 ? -1 : openat(directory, HOME, O_RDWR | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (home >= 0 && cl_exclude_all(home) && (over == NULL || over(store, directory, home))) {
        int again = openat(directory, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        DIR *d = again < 0 ? NULL : fdopendir(again);
        for (struct dirent *e; d != NULL && (e = readdir(d)) != NULL;) {
            if (cl_file_id(e->d_name, CL_SEGMENT_PREFIX) != 0 || cl_file_id(e->d_name, CL_BOOKS_PREFIX) != 0) {
                unlinkat(directory, e->d_name, 0);
            }
        }
        if (d == NULL && again >= 0) {
            close(again);
        }
        if (d != NULL) {
            closedir(d);
            unlinkat(directory, HOME, 0); /* last: while it exists, a later try knows whose the other files are */
            rmdir(path);
        }
    }
    if (home >= 0) {
        close(home);
    }
    if (directory >= 0) {
        close(directory);
    }
}

void cl_spill_remove(cl_store *store)
{
    cl_spill_forget(store);
    if (store->spill.path[0] != 0 && cl_spill_is_here(&store->spill)) {
        remove_home(store, store->spill.path, NULL);
    }
}

/* Whether the registry that a directory's mark names is proven to be gone. This process's registry is new, and has the
 * name in its directory. */
static int is_over(cl_store *store, int spill, int home)
{
    cl_spill_mark m;
    struct stat st, marked;
    struct timespec now;
    if (pread(home, &m, sizeof m, 0) != (ssize_t)sizeof m || m.magic != CL_MAGIC || m.layout != CL_LAYOUT_VERSION ||
        m.registry == store->registry_id || m.checksum != cl_hash64(&m, offsetof(cl_spill_mark, checksum)) ||
        fstat(cl_directory(store), &st) != 0 || fstat(home, &marked) != 0) {
        return 0;
    }
    if (m.boot == store->identity.boot) {
        return m.device == st.st_dev && m.inode == st.st_ino;
    }
    /* Its boot id may be a false one, which a container sees. Then it was written after this kernel started. */
    clock_gettime(CLOCK_REALTIME, &now);
    return cl_filesystem_of(spill) == CL_FS_LOCAL && cl_filesystem_of(cl_directory(store)) != CL_FS_SHARED &&
           marked.st_mtim.tv_sec + 60 < now.tv_sec - cl_uptime_s();
}

void cl_spill_sweep(cl_store *store)
{
    char parent[CL_SPILL_PATH], path[CL_SPILL_PATH + 256];
    const char *prefix = strrchr(store->spill.path, '/');
    if (prefix == NULL || !cl_spill_is_here(&store->spill)) {
        return;
    }
    prefix++;
    size_t length = strlen(prefix) - 16; /* all but the registry's id */
    parent_of(store->spill.path, parent);
    DIR *d = opendir(parent);
    for (struct dirent *e; d != NULL && (e = readdir(d)) != NULL;) {
        if (strncmp(e->d_name, prefix, length) == 0 && strlen(e->d_name) == length + 16) {
            snprintf(path, sizeof path, "%s/%s", parent, e->d_name);
            remove_home(store, path, is_over);
        }
    }
    if (d != NULL) {
        closedir(d);
    }
}
