/* See platform.h. This is a list of file systems that are known to be local, not of those known to be shared. An
 * unknown type counts as shared, because the answer CL_FS_LOCAL allows a registry to be removed. */
#define _GNU_SOURCE
#include "platform.h"

#include <stddef.h>
#include <sys/vfs.h>

static const unsigned MEMORY[] = {
    0x01021994, /* tmpfs */
    0x858458f6, /* ramfs */
    0x958458f6, /* hugetlbfs */
};

static const unsigned LOCAL[] = {
    0xef53, /* ext2, ext3, ext4 */
    0x58465342, /* xfs */
    0x9123683e, /* btrfs */
    0x2fc12fc1, /* zfs */
    0xf2f52010, /* f2fs */
    0xca451a4e, /* bcachefs */
    0x3153464a, /* jfs */
    0x52654973, /* reiserfs */
    0x3434, /* nilfs */
    0x794c7630, /* overlayfs: a container's own disk */
    0xf15f, /* ecryptfs */
    0x4d44, /* fat */
    0x2011bab0, /* exfat */
};

static int is_among(unsigned type, const unsigned *types, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (types[i] == type) {
            return 1;
        }
    }
    return 0;
}

enum cl_filesystem cl_filesystem_of(int directory)
{
    struct statfs st;
    if (fstatfs(directory, &st) != 0) {
        return CL_FS_SHARED;
    }
    unsigned type = (unsigned)st.f_type;
    if (is_among(type, MEMORY, sizeof MEMORY / sizeof *MEMORY)) {
        return CL_FS_MEMORY;
    }
    return is_among(type, LOCAL, sizeof LOCAL / sizeof *LOCAL) ? CL_FS_LOCAL : CL_FS_SHARED;
}
