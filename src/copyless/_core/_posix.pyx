# cython: language_level=3, freethreading_compatible=True, auto_pickle=False
"""POSIX objects of shared memory: opening, holding and releasing them, and their records in the registry."""
from cpython.bytes cimport PyBytes_AS_STRING
from libc.errno cimport errno
from libc.stdint cimport int64_t, uint32_t, uint64_t

from copyless._core._blocks cimport Mapping
from copyless._core._check cimport check, new_wait, served, Wait
from copyless._core._store cimport scan, the_store
from copyless._core.c_library cimport CL_AGAIN, CL_FOREVER, CL_MAY_WAIT, cl_capacity_check, cl_posix_forget, cl_store

cdef extern from "fcntl.h" nogil:
    int c_open "open"(const char *path, int flags, ...)

cdef extern from "unistd.h" nogil:
    int c_close "close"(int fd)

cdef extern from "sys/stat.h" nogil:
    cdef struct c_stat "stat":
        uint64_t st_dev
        uint64_t st_ino
        int64_t st_size
    int fstat(int fd, c_stat *st)
    int c_stat_path "lstat"(const char *path, c_stat *st)


def posix_open(bytes path, bytes name, int flags, int mode, bint readonly, bint tracked):
    """(mapping, device, inode) of a POSIX object; the mapping is None if the object has no size yet.

    Raises OSError as open(2) does. Objects of dead processes are reclaimed first, so that the name of a dead creator is free.
    """
    cdef Mapping mapping = None
    cdef c_stat st, named
    cdef int fd, code
    if tracked:
        scan(True)
    while True:
        fd = c_open(PyBytes_AS_STRING(path), flags, mode)
        if fd < 0:
            raise OSError(errno, "")
        try:
            if fstat(fd, &st) != 0:
                raise OSError(errno, "")
            if st.st_size != 0:
                mapping = Mapping.__new__(Mapping)
                mapping.map(fd, st.st_size, readonly, 0)
        finally:
            c_close(fd)
        # If it was unlinked while it was opened, it may be another block by now (_storage/spare_blocks.py). The open file is
        # noticed before it becomes another block, so if it still has its name now, it is the right one.
        if c_stat_path(PyBytes_AS_STRING(path), &named) == 0 and named.st_ino == st.st_ino and named.st_dev == st.st_dev:
            break
        mapping = None
    if tracked and mapping is not None:
        mapping.attach(name, st.st_dev, st.st_ino)
    return mapping, st.st_dev, st.st_ino


def posix_record(bytes name, uint64_t device, uint64_t inode):
    """A hold of this process on an object that it does not map and may publish under this name."""
    cdef Mapping hold = Mapping.__new__(Mapping)
    hold.record(name, device, inode, False)
    return hold


def posix_hold(bytes name, uint64_t device, uint64_t inode):
    """A hold of this process on a recorded object that it does not map. The hold lasts as long as the returned object."""
    cdef Mapping hold = Mapping.__new__(Mapping)
    hold.attach(name, device, inode)
    return hold


def file_identity(bytes path):
    """(device, inode, bytes) of a file, or None: one system call."""
    cdef c_stat st
    if c_stat_path(PyBytes_AS_STRING(path), &st) != 0:
        return None
    return st.st_dev, st.st_ino, st.st_size


def posix_forget(bytes name, uint64_t device, uint64_t inode):
    cdef cl_store *store = the_store()
    cdef const char *text = PyBytes_AS_STRING(name)
    cdef uint32_t n = len(name)
    cdef Wait wait = new_wait()
    cdef int rc
    while store != NULL and store.open:  # including the stores of removed directories
        rc = CL_AGAIN
        while rc == CL_AGAIN:
            with nogil:
                rc = cl_posix_forget(store, text, n, device, inode, CL_MAY_WAIT)
            rc = served(&wait, rc, CL_FOREVER)
        check(rc)
        store = store.older


def check_capacity(int fd, uint64_t nbytes):
    """Raise OutOfSharedMemory if the mount, the machine or the control group has no room for `nbytes` more."""
    cdef int rc
    with nogil:
        rc = cl_capacity_check(fd, nbytes)
    check(rc)
