# cython: language_level=3, freethreading_compatible=True, auto_pickle=False
"""Observing the registry of a storage directory, without joining it and without its lock (native/observe.c)."""
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport uint32_t, uint64_t, uint8_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from copyless._core._check cimport check
from copyless._core._store cimport listing
from copyless._core.c_library cimport (
    CL_BLOCKS, CL_CORRUPT, CL_MAY_WAIT, CL_MISSING, CL_OBJECT_MAGIC, CL_OK, CL_SNAPSHOT_HELD, CL_SNAPSHOT_WHOLE, cl_advice_is_ignored, cl_audit,
    cl_head, cl_last_error, cl_observe, cl_observe_block, cl_observe_end, cl_observe_segment, cl_observe_still, cl_snapshot, cl_snapshot_free,
    cl_snapshot_take, cl_spill_is_here, cl_store,
)

cdef extern from "unistd.h" nogil:
    int close(int fd)

cdef extern from "sys/mman.h" nogil:
    enum: PROT_NONE, MAP_PRIVATE, MAP_ANONYMOUS
    void *MAP_FAILED
    void *mmap(void *address, size_t length, int protection, int flags, int fd, long offset)
    int munmap(void *address, size_t length)


def liveness_is_weak():
    """Whether this system ignores the advice that keeps a mapping out of a forked child (liveness.c)."""
    cdef void *page = mmap(NULL, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
    cdef bint ignored = False
    if page != MAP_FAILED:
        ignored = cl_advice_is_ignored(page) != 0
        munmap(page, 4096)
    return ignored


cdef class Observer:
    """A copy of the tables of a registry, and access to the blocks that it names.

    `directory` is a descriptor of the storage directory and must stay open. `found`: whether there is a registry.
    """
    cdef cl_store *store
    cdef cl_snapshot all
    cdef readonly bint found

    def __cinit__(self, int directory):
        cdef int rc
        self.store = <cl_store *>calloc(1, sizeof(cl_store))
        if self.store == NULL:
            raise MemoryError
        memset(&self.all, 0, sizeof(self.all))
        with nogil:
            rc = cl_observe(self.store, directory)
        if rc != CL_OK:
            free(self.store)
            self.store = NULL
        if rc != CL_MISSING:
            check(rc)
        self.found = rc == CL_OK

    def __dealloc__(self):
        cl_snapshot_free(&self.all)
        if self.store != NULL:
            cl_observe_end(self.store)
            free(self.store)

    def look(self):
        """Copy the tables: owners, segments, blocks, holds, names, totals, and the consistency of the copy.

        `state` is ``'whole'``, ``'changing'`` (other processes kept changing the registry) or ``'held'``: then `holder` names the
        process that holds its lock. Takes at most a tenth of a second more than the copy itself.
        """
        cdef int rc
        if self.store == NULL:
            raise ValueError("there is no registry")
        cl_snapshot_free(&self.all)
        with nogil:
            rc = cl_snapshot_take(self.store, &self.all, CL_MAY_WAIT)
        check(rc)
        found = listing(&self.all)
        c = &self.all.control
        found["totals"] = {"total_bytes": c.total_bytes, "warm_bytes": c.warm_bytes, "messages": c.messages, "persistent": c.persistent,
                           "deaths": c.deaths}
        found["registry"] = f"{self.store.registry_id:016x}"
        found["boot"] = self.store.identity.boot
        found["spill"] = (<bytes>self.store.spill.path), cl_spill_is_here(&self.store.spill) != 0
        found["state"] = "whole" if self.all.state == CL_SNAPSHOT_WHOLE else "held" if self.all.state == CL_SNAPSHOT_HELD else "changing"
        found["holder"] = None
        if self.all.state == CL_SNAPSHOT_HELD:
            found["holder"] = {"pid": self.all.pid, "lives": self.all.lives != 0, "seconds": self.all.held_ns * 1e-9}
        return found

    def audit(self):
        """The error in the copy; an empty text if there is none; None if the copy is not whole and cannot be checked."""
        cdef int rc
        if self.all.view == NULL or self.all.state != CL_SNAPSHOT_WHOLE:
            return None
        with nogil:
            rc = cl_audit(self.all.view)
        if rc == CL_CORRUPT:
            return (<bytes>cl_last_error().what).decode("utf-8", "replace")
        check(rc)
        return ""

    def read(self, uint32_t number, parts):
        """The bytes of a block at each (offset, length). StaleHandleError if the block was freed meanwhile."""
        cdef uint32_t slot = number // CL_BLOCKS, index = number % CL_BLOCKS
        cdef uint64_t offset, length
        cdef int rc = CL_OK, fd
        cdef bytes part
        cdef char *data
        with nogil:
            fd = cl_observe_segment(&self.all, slot)
        check(fd if fd < 0 else CL_OK)
        read = []
        try:
            for offset, length in parts:
                part = PyBytes_FromStringAndSize(NULL, length)
                data = PyBytes_AS_STRING(part)
                with nogil:
                    rc = cl_observe_block(&self.all, fd, slot, index, offset, data, length)
                check(rc)
                read.append(part)
            check(cl_observe_still(&self.all, slot, index))
        finally:
            close(fd)
        return read

    def kind(self, uint32_t number):
        """The kind of object in a block; 0: none."""
        cdef cl_head *head
        cdef bytes data = self.read(number, [(0, sizeof(cl_head))])[0]
        head = <cl_head *>PyBytes_AS_STRING(data)
        return head.kind if head.magic == CL_OBJECT_MAGIC else 0
