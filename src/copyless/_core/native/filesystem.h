/* What kind of file system a directory lies on: who else can have it, and whether it outlives a boot. */
#ifndef CL_FILESYSTEM_H
#define CL_FILESYSTEM_H

enum cl_filesystem {
    CL_FS_MEMORY, /* in this kernel's memory: nothing in it is older than this boot */
    CL_FS_LOCAL, /* a disk of this machine's own: what another boot wrote is over, if nobody has it locked */
    CL_FS_SHARED, /* a network's, or one that we do not know: another kernel may be using it now */
};

enum cl_filesystem cl_filesystem_of(int directory);

#endif
