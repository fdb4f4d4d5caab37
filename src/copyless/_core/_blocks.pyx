# cython: language_level=3, freethreading_compatible=True, auto_pickle=False
"""Blocks of shared memory, what has a life of its own in one, and files mapped as they are."""
cimport cython
from cpython.buffer cimport PyBuffer_FillInfo
from cpython.bytes cimport PyBytes_AS_STRING
from libc.errno cimport errno
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t, uintptr_t
from libc.string cimport memset

from copyless._core._check cimport after_a_slice, check, fail, new_wait, served, Wait
from copyless._core._store cimport the_store
from copyless._core.c_library cimport (
    CL_AGAIN, CL_ALONE, CL_BLOCKS, CL_FILE_NAME, CL_FOR_OBJECT, CL_MAY_SPILL, CL_MAY_WAIT, CL_MISSING, CL_OBJECT_MAGIC, CL_OK, CL_REMOVED, CL_STAY, CL_TIMEOUT, CL_WAIT_MANY,
    cl_alloc, cl_au32, cl_block_ref, cl_directory, cl_head,
    cl_mark_private, cl_monotonic_ns, cl_posix_attach, cl_posix_record, cl_put, cl_release, cl_seen, cl_segment_file, cl_store, cl_wait_many,
    cl_wake, cl_watch,
)

from queue import Full

from copyless.errors import ClosedError, CorruptSegmentError, WrongProcessError

cdef extern from "sys/mman.h" nogil:
    void *mmap(void *address, size_t length, int protection, int flags, int fd, int64_t offset)
    int munmap(void *address, size_t length)
    enum: PROT_READ, PROT_WRITE, MAP_SHARED, MAP_PRIVATE
    void *MAP_FAILED

cdef extern from "fcntl.h" nogil:
    int c_openat "openat"(int directory, const char *path, int flags, ...)
    enum: O_RDWR, O_CLOEXEC

cdef extern from "unistd.h" nogil:
    int c_close "close"(int fd)


cdef class Block:
    """A block of shared memory that this object keeps alive; a writable buffer of bytes.

    Arrays and memoryviews made over it keep it, and with it the process's hold, until the last of them is gone.
    """
    def __cinit__(self):
        self.ref.data = NULL

    def __dealloc__(self):
        cdef int rc
        if self.ref.data != NULL:
            rc = cl_release(self.store, self.ref.segment_id, self.ref.segment, self.ref.index, 0)
            while rc == CL_AGAIN:
                with nogil:
                    rc = cl_release(self.store, self.ref.segment_id, self.ref.segment, self.ref.index, CL_MAY_WAIT)

    def __getbuffer__(self, Py_buffer *view, int flags):
        PyBuffer_FillInfo(view, self, self.ref.data, <Py_ssize_t>self.nbytes, 0, flags)

    def __len__(self):
        return self.nbytes

    @property
    def address(self):
        return <uintptr_t>self.ref.data

    @property
    def recycled(self):
        """Whether the memory was used before, so that it is not zero."""
        return self.ref.recycled != 0

    @property
    def number(self):
        return self.ref.segment * CL_BLOCKS + self.ref.index

    @property
    def identity(self):
        """(segment's id, block number, generation): no other block has it, then or later."""
        return self.ref.segment_id, self.number, self.ref.generation

    def clear(self):
        """Set every byte to zero."""
        cdef uint8_t *data = self.ref.data
        cdef uint64_t n = self.nbytes
        with nogil:
            memset(data, 0, n)

    def __repr__(self):
        return f"<block {self.number} of {self.nbytes} bytes at {self.address:#x}>"


cdef Block stand(cl_store *store, const cl_block_ref *ref, uint64_t nbytes):
    cdef Block block = Block.__new__(Block)
    block.ref = ref[0]
    block.store = store
    block.nbytes = nbytes
    return block


def alloc(uint64_t nbytes, bint spill=False):
    """A block of at least `nbytes` bytes, warm if there is one. Its content is what it last held. `spill`: as `allocate`."""
    return allocate(NULL, nbytes, CL_MAY_SPILL if spill else 0)


cdef object RENEW = None


def know_renewal(renew):
    """What opens another store in place of one whose directory was removed."""
    global RENEW
    RENEW = renew


# A queue's `put` has until then to make and send what its item needs, in whatever Python code the pickling runs through.
cdef extern from *:
    """
    #include <stdint.h>
    static _Thread_local int64_t due_ns = INT64_MAX;
    """
    int64_t due_ns


cdef int64_t hurry(int64_t deadline) noexcept:
    """Until when this thread waits for the registry from now on, before it raises Full; until when it did."""
    global due_ns
    cdef int64_t before = due_ns
    due_ns = deadline
    return before


cdef int64_t due() noexcept:
    return due_ns


cdef Block allocate(cl_store *store, uint64_t nbytes, unsigned flags):
    """The same, in this store; with CL_MAY_SPILL on disk when shared memory is full. NULL: in the one in use, and in a new one
    when its directory was removed. In a given store: on disk then, if CL_STAY is among the flags."""
    cdef cl_store *at = the_store() if store == NULL else store
    cdef cl_block_ref ref
    cdef Wait wait = new_wait()
    cdef int rc = cl_alloc(at, nbytes, flags & (CL_FOR_OBJECT | CL_ALONE | CL_STAY), &ref)
    cdef int64_t until = after_a_slice(due_ns) if rc == CL_AGAIN else 0
    while rc == CL_AGAIN:
        with nogil:
            rc = cl_alloc(at, nbytes, CL_MAY_WAIT | flags, &ref)
        rc = served(&wait, rc, until)
    if rc == CL_TIMEOUT:
        raise Full
    if rc == CL_REMOVED and store == NULL and RENEW is not None:
        RENEW()
        return allocate(NULL, nbytes, flags)
    check(rc)
    return stand(at, &ref, nbytes)


def mark_private(Block block):
    """The block is what a message brought by value: its bytes are this process's own, and go on by value."""
    set_private(block)


cdef void set_private(Block block) noexcept:
    # Never waits with the GIL: a thread that forks holds the tables, and wants the GIL.
    cdef int rc = cl_mark_private(block.store, &block.ref, 0)
    while rc == CL_AGAIN:
        with nogil:
            rc = cl_mark_private(block.store, &block.ref, CL_MAY_WAIT)


def private_view(Block block):
    """The bytes of a block as they are, in memory of this process's own: written to, the block stays as it is.

    Copied when small, mapped copy-on-write when large. Keeps the block's memory alive, where it is mapped.
    """
    cdef Mapping mapping
    cdef char file[CL_FILE_NAME]
    cdef int fd
    cdef void *p
    if block.ref.spilled or block.nbytes < 65536:
        return bytearray(block)
    cl_segment_file(file, block.ref.segment_id)
    fd = c_openat(cl_directory(block.store), file, O_RDWR | O_CLOEXEC)
    if fd < 0:
        return bytearray(block)
    p = mmap(NULL, block.nbytes, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, <int64_t>block.ref.offset)
    c_close(fd)
    if p == MAP_FAILED:
        raise OSError(errno, f"mapping {block.nbytes} bytes")
    mapping = Mapping.__new__(Mapping)
    mapping.base = <uint8_t *>p
    mapping.nbytes = block.nbytes
    mapping.behind = block
    return mapping


# ---- what has a life of its own in a block


@cython.no_gc_clear  # the collector of cycles would release the block before __dealloc__ has left what lies in it
cdef class Object:
    """Something with a life of its own in a block: a lock, a queue, a ring. Base of the bindings' classes."""

    KIND = 0

    def __cinit__(self, *args, **kwargs):
        self.head = NULL

    def _stand(self, Block block):
        """Stand on a block, which must hold an object of this kind."""
        cdef cl_head *head = <cl_head *>block.ref.data
        if block.ref.capacity < sizeof(cl_head) or head.magic != CL_OBJECT_MAGIC or head.kind != self.KIND:
            raise CorruptSegmentError(f"block {block.number} holds no {type(self).__name__} (kind {head.kind}, expected {self.KIND})")
        self.take(block, head)

    cdef void take(self, Block block, cl_head *head) noexcept:
        self.block, self.head, self.store = block, head, block.store

    cdef int watch(self, cl_watch *out, uint32_t reader) except -1:
        """Fill in what `_bells` needs to wait for it. `reader`: of a ring, the subscription."""
        raise TypeError(
            f"wait() cannot wait for {self!r}: it takes queues, events, locks, semaphores and subscriptions of rings. Wait for others in a "
            "thread of their own, which sets an event"
        )

    @property
    def _address(self):
        """(handle's address, bytes) of the object's block."""
        if self.block is None:
            raise ClosedError(f"this {type(self).__name__} is closed")
        return <uintptr_t>self.block.ref.data, self.block.ref.capacity

    @property
    def _flags(self):
        return self._need().flags

    @property
    def _number(self):
        return self._need().number

    cdef cl_head *_need(self) except NULL:
        if self.head == NULL:
            raise ClosedError(f"this {type(self).__name__} is closed")
        if is_elsewhere(self.store):
            raise WrongProcessError(f"this {type(self).__name__} is the parent's: this child was not forked by fork(), or could not be registered")
        return self.head


    cdef int look_up_name(self) except -1:
        cdef uint32_t seen = cl_seen(&the_store().control.names_seq)  # before the look: what is published later is looked at again
        if self.name_seen and self.names_seen == seen:
            return 0
        self.name_seen = False
        if LOOK is not None:
            LOOK(self)
        self.name_seen, self.names_seen = True, seen
        return 0


cdef object LOOK = None


def know_look(look):
    """What raises StaleNameError for an object whose name means another by now."""
    global LOOK
    LOOK = look


def mark_renamed(Block block):
    """Write down in the object that lies in a block that its name is about to be taken away, so that its users look."""
    cl_put(&(<cl_head *>block.ref.data).renamed, 1)


def object_kind(Block block):
    """Which kind of object a block holds; 0: none."""
    cdef cl_head *head = <cl_head *>block.ref.data
    if block.ref.capacity < sizeof(cl_head) or head.magic != CL_OBJECT_MAGIC:
        return 0
    return head.kind


AMONG_OBJECTS = CL_FOR_OBJECT
AMONG_ARRAYS = 0
ALONE = CL_ALONE


def new_object(uint64_t nbytes, uint32_t kind, uint32_t number, uint32_t room, uint32_t flags, uint64_t clear=0,
               unsigned where=CL_FOR_OBJECT, bint spill=True):
    """A block of zeros with the head of an object; with `clear`, only so many bytes are set to zero.

    `where`: AMONG_OBJECTS; AMONG_ARRAYS or ALONE when users' bytes lie in it too. Where memory is full it lies in a file on disk,
    since locks and queues are needed then, too; not without `spill`, for those that carry a user's data.
    """
    cdef Block block = allocate(NULL, nbytes, where | (CL_MAY_SPILL if spill else 0))
    cdef cl_head *head = <cl_head *>block.ref.data
    memset(head, 0, clear if clear else nbytes)
    head.kind, head.number, head.room, head.flags = kind, number, room, flags
    head.magic = CL_OBJECT_MAGIC
    return block


# ---- words to wait for


def wait_many(list words, double seconds):
    """Wait until one of [(address, expected)...] differs, at most `seconds`: its index, or -1. Lets the GIL go."""
    cdef cl_au32 *addresses[CL_WAIT_MANY]
    cdef uint32_t expected[CL_WAIT_MANY]
    cdef int rc, n = len(words)
    cdef int64_t deadline = cl_monotonic_ns() + <int64_t>(seconds * 1e9)
    for i in range(n):
        addresses[i] = <cl_au32 *><uintptr_t>words[i][0]
        expected[i] = words[i][1]
    with nogil:
        rc = cl_wait_many(addresses, expected, n, deadline)
    return rc if rc >= 0 else -1


cdef class Bell:
    """A word of this process's own, to wake whoever waits for it among other words."""
    cdef cl_au32 word

    @property
    def address(self):
        return <uintptr_t>&self.word

    @property
    def value(self):
        return cl_seen(&self.word)

    def ring(self):
        cl_put(&self.word, cl_seen(&self.word) + 1)
        cl_wake(&self.word, 1)


# ---- files mapped as they are: POSIX objects and user files


@cython.no_gc_clear  # nor may it take the heir away
cdef class Mapping:
    """A mapped file of bytes, unmapped when the last view of it is gone. Keeps no descriptor.

    Made over a POSIX object that the registry knows, it also keeps this process's hold on it.
    """
    def __init__(self, int fd, uint64_t nbytes, bint readonly=False, uint64_t offset=0):
        if self.base != NULL:
            raise TypeError("a mapping is made once")
        self.map(fd, nbytes, readonly, offset)

    cdef int map(self, int fd, uint64_t nbytes, bint readonly, uint64_t offset) except -1:
        cdef int protection = PROT_READ if readonly else PROT_READ | PROT_WRITE
        cdef void *p = mmap(NULL, nbytes, protection, MAP_SHARED, fd, <int64_t>offset)
        if p == MAP_FAILED:
            raise OSError(errno, f"mapping {nbytes} bytes")
        self.base = <uint8_t *>p
        self.nbytes = nbytes
        self.readonly = readonly
        return 0

    def __dealloc__(self):
        if self.base != NULL:
            if self.heir is not None:
                self.heir.base, self.heir.nbytes = self.base, self.nbytes
            else:
                munmap(self.base, self.nbytes)
        self.release()

    cdef void release(self) noexcept:
        cdef int rc
        if self.hold_id == 0:
            return
        rc = cl_release(self.store, self.hold_id, self.hold_slot, 0, 0)
        while rc == CL_AGAIN:
            with nogil:
                rc = cl_release(self.store, self.hold_id, self.hold_slot, 0, CL_MAY_WAIT)
        self.hold_id = 0

    def __getbuffer__(self, Py_buffer *view, int flags):
        PyBuffer_FillInfo(view, self, self.base, <Py_ssize_t>self.nbytes, self.readonly, flags)

    def __len__(self):
        return self.nbytes

    @property
    def address(self):
        return <uintptr_t>self.base

    def make_heir(self):
        """A mapping that is empty until the last view of this one is gone: then the memory is its."""
        self.heir = Mapping.__new__(Mapping)
        return self.heir

    def clear(self):
        """Fill it with zeros."""
        with nogil:
            memset(self.base, 0, self.nbytes)

    def record(self, bytes name, uint64_t device, uint64_t inode, bint family):
        """Write down that this process is about to publish this object, so that its death frees it."""
        cdef const char *text = PyBytes_AS_STRING(name)
        cdef uint32_t n = len(name)
        cdef int rc = CL_AGAIN
        self.store = the_store()
        while rc == CL_AGAIN:
            with nogil:
                rc = cl_posix_record(self.store, text, n, device, inode, self.nbytes, family, CL_MAY_WAIT, &self.hold_id,
                                     &self.hold_slot)
        if rc != CL_OK:
            self.hold_id = 0
            fail(rc)

    def forget(self):
        """It was not published after all."""
        self.release()

    def attach(self, bytes name, uint64_t device, uint64_t inode):
        """Hold a recorded object; nothing happens for one that the registry does not know."""
        cdef const char *text = PyBytes_AS_STRING(name)
        cdef uint32_t n = len(name)
        cdef int rc
        self.store = the_store()
        while True:
            rc = cl_posix_attach(self.store, text, n, device, inode, 0, &self.hold_id, &self.hold_slot)
            while rc == CL_AGAIN:
                with nogil:
                    rc = cl_posix_attach(self.store, text, n, device, inode, CL_MAY_WAIT, &self.hold_id, &self.hold_slot)
            if rc != CL_MISSING or self.store.older == NULL or not self.store.older.open:
                break
            self.store = self.store.older  # it may have been made before the directory was removed
        if rc != CL_OK:
            self.hold_id = 0
            if rc != CL_MISSING:
                fail(rc)
