# cython: language_level=3, freethreading_compatible=True, auto_pickle=False
"""Blocks of shared memory, shared objects (locks, queues, rings) in blocks, and mapped files."""
cimport cython
from cpython.buffer cimport PyBuffer_FillInfo
from cpython.bytes cimport PyBytes_AS_STRING
from cpython.object cimport PyObject
from libc.errno cimport errno
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t, uintptr_t
from libc.string cimport memset

from copyless._core._check cimport after_a_slice, check, fail, new_wait, served, Wait
from copyless._core._store cimport tell_news, the_store
from copyless._core.c_library cimport (
    CL_AGAIN, CL_ALONE, CL_BLOCKS, CL_FILE_NAME, CL_FOR_OBJECT, CL_MAY_SPILL, CL_MAY_WAIT, CL_MISSING, CL_OBJECT_MAGIC, CL_OK, CL_REMOVED, CL_STAY, CL_TIMEOUT, CL_WAIT_MANY,
    cl_alloc, cl_au32, cl_block_ref, cl_directory, cl_head,
    cl_mark_private, cl_monotonic_ns, cl_posix_attach, cl_posix_record, cl_put, cl_release, cl_seen, cl_segment_file, cl_stay_awake, cl_store, cl_wait_many,
    cl_wake, cl_watch,
)

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

    Arrays and memoryviews over it keep it, and with it the hold of this process, until the last of them is deleted.
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
        """Whether the memory was used before, so that it may not be zero."""
        return self.ref.recycled != 0

    @property
    def number(self):
        return self.ref.segment * CL_BLOCKS + self.ref.index

    @property
    def identity(self):
        """(id of the segment, number of the block, generation): no other block ever has the same."""
        return self.ref.segment_id, self.number, self.ref.generation

    @property
    def holds(self):
        """How many processes and messages keep the block, read without the registry's lock; 0: unknown."""
        if is_elsewhere(self.store):
            return 0
        return self.store.segments[self.ref.segment].blocks[self.ref.index].holds

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
    """A block of at least `nbytes` bytes, reused if possible, with arbitrary content. `spill`: as in `allocate`.

    None if the directory of the store was removed: open another one and try again.
    """
    return allocate(NULL, nbytes, CL_MAY_SPILL if spill else 0)


class Late(BaseException):
    """The registry's lock was not free in time. `put` of a queue raises `Full` instead, and `get` raises `Empty`.

    Not an `Exception`, so that code of the user that runs inside, such as a `__setstate__`, does not catch it as its own error.
    """


# The deadline of this thread: until then `put` of a queue must make and send what its item needs, and `get` must load it, in
# whatever Python code the pickling runs. `get` may have to load an item again, and keeps the loaded blocks until then.
cdef extern from *:
    """
    #include <stdint.h>
    static _Thread_local int64_t due_ns = INT64_MAX;
    static _Thread_local PyObject *gathered_here = NULL;
    """
    int64_t due_ns
    PyObject *gathered_here


cdef int64_t hurry(int64_t deadline) noexcept:
    """Set the time until which this thread waits for the registry before it raises Late. Returns the previous time."""
    global due_ns
    cdef int64_t before = due_ns
    due_ns = deadline
    return before


cdef int64_t due() noexcept:
    return due_ns


cdef PyObject *gather(PyObject *into) noexcept:
    """Set the list (borrowed, or NULL) that collects the blocks which this thread loads. Returns the previous one."""
    global gathered_here
    cdef PyObject *before = gathered_here
    gathered_here = into
    return before


cdef int was_loaded(Block block) except -1:
    if gathered_here != NULL:
        (<list>gathered_here).append(block)
    return 0


cdef Block allocate(cl_store *store, uint64_t nbytes, unsigned flags):
    """The same, in this store; with CL_MAY_SPILL on disk if shared memory is full. NULL: in the store in use; None if its
    directory was removed. In a given store whose directory was removed: on disk, if CL_STAY is among the flags."""
    cdef cl_store *at = the_store() if store == NULL else store
    cdef cl_block_ref ref
    cdef Wait wait = new_wait()
    cdef Block block
    cdef int rc = cl_alloc(at, nbytes, flags & (CL_FOR_OBJECT | CL_ALONE | CL_STAY), &ref)
    cdef int64_t until = after_a_slice(due_ns) if rc == CL_AGAIN else 0
    while rc == CL_AGAIN:
        with nogil:
            cl_stay_awake(until < 0)
            rc = cl_alloc(at, nbytes, CL_MAY_WAIT | flags, &ref)
            cl_stay_awake(False)
        rc = served(&wait, rc, until)
    if rc == CL_TIMEOUT:
        raise Late
    if rc == CL_REMOVED and store == NULL:
        return None
    check(rc)
    block = stand(at, &ref, nbytes)
    if cl_seen(&at.untold):
        tell_news(at)
    return block


def mark_private(Block block):
    """Mark a block that arrived by value: its bytes belong to this process, and are sent on by value."""
    set_private(block)


cdef void set_private(Block block) noexcept:
    # Never waits with the GIL: a thread that forks holds the tables and needs the GIL.
    cdef int rc = cl_mark_private(block.store, &block.ref, 0)
    while rc == CL_AGAIN:
        with nogil:
            rc = cl_mark_private(block.store, &block.ref, CL_MAY_WAIT)


cdef int fail_of_system(int code, uint64_t nbytes) except -1:
    """Raise the error of a mapping of these bytes that failed."""
    from copyless._core import c_library
    from copyless._core.failures import native_error
    raise native_error(c_library.SYSTEM, code, f"mapping {nbytes} bytes", nbytes)


def private_view(Block block):
    """The bytes of a block in private memory: writing to them does not change the block.

    Copied if small, mapped copy-on-write if large. A mapping keeps the memory of the block alive.
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
        fail_of_system(errno, block.nbytes)
    mapping = Mapping.__new__(Mapping)
    mapping.base = <uint8_t *>p
    mapping.nbytes = block.nbytes
    mapping.behind = block
    return mapping


# ---- shared objects in blocks


@cython.no_gc_clear  # the garbage collector would release the block before __dealloc__ has left the object in it
cdef class Object:
    """A shared object in a block: a lock, a queue, a ring. Base class of the bindings' classes."""

    KIND = 0

    def __cinit__(self, *args, **kwargs):
        self.head = NULL

    def _stand(self, Block block):
        """Use a block, which must contain an object of this kind."""
        cdef cl_head *head = <cl_head *>block.ref.data
        if block.ref.capacity < sizeof(cl_head) or head.magic != CL_OBJECT_MAGIC or head.kind != self.KIND:
            raise CorruptSegmentError(f"block {block.number} holds no {type(self).__name__} (kind {head.kind}, expected {self.KIND})")
        self.take(block, head)

    cdef void take(self, Block block, cl_head *head) noexcept:
        self.block, self.head, self.store = block, head, block.store

    cdef int watch(self, cl_watch *out, uint32_t reader) except -1:
        """Fill in what `_bells` needs to wait for the object. `reader`: for a ring, the subscription."""
        raise TypeError(
            f"wait() cannot wait for {self!r}: it takes queues, events, locks, semaphores and subscriptions of "
            "rings. Wait for other objects in a thread that sets an event"
        )

    @property
    def _address(self):
        """(address for the handle, bytes) of the block of the object."""
        if self.block is None:
            raise ClosedError(f"this {type(self).__name__} is closed")
        return <uintptr_t>self.block.ref.data, self.block.ref.capacity

    @property
    def _flags(self):
        return self._open_head().flags

    @property
    def _number(self):
        return self._open_head().number

    cdef cl_head *_open_head(self) except NULL:
        if self.head == NULL:
            raise ClosedError(f"this {type(self).__name__} is closed")
        if is_elsewhere(self.store):
            raise WrongProcessError(f"this {type(self).__name__} belongs to the parent process, because this child "
                                    "was not made by fork() or could not be registered: send it to a newly started "
                                    "process")
        return self.head


    cdef int look_up_name(self) except -1:
        cdef uint32_t seen = cl_seen(&the_store().control.names_seq)  # read before the look-up: a later publication causes another look-up
        if self.name_seen and self.names_seen == seen:
            return 0
        self.name_seen = False
        look = getattr(self, "_look_at_name", None)  # only objects that may have a name have it; raises StaleNameError
        if look is not None:
            look()
        self.name_seen, self.names_seen = True, seen
        return 0


def mark_renamed(Block block):
    """Record in the object of a block that its name is about to be removed, so that its users look the name up."""
    cl_put(&(<cl_head *>block.ref.data).renamed, 1)


def object_kind(Block block):
    """The kind of object in a block; 0: none."""
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

    `where`: AMONG_OBJECTS; AMONG_ARRAYS or ALONE if it also contains user data. If memory is full, the block is in a file on disk,
    because locks and queues are needed then too; without `spill` it is not, for objects that contain user data.
    """
    cdef Block block = allocate(NULL, nbytes, where | (CL_MAY_SPILL if spill else 0))
    cdef cl_head *head
    if block is None:
        return None
    head = <cl_head *>block.ref.data
    memset(head, 0, clear if clear else nbytes)
    head.kind, head.number, head.room, head.flags = kind, number, room, flags
    head.magic = CL_OBJECT_MAGIC
    return block


# ---- waiting for words


def wait_many(list words, double seconds):
    """Wait until one of [(address, expected)...] differs, at most `seconds`: its index, or -1. Releases the GIL."""
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
    """A private word of this process, to wake a thread that waits for it among other words."""
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


# ---- mapped files: POSIX objects and user files


@cython.no_gc_clear  # the garbage collector must not remove the heir either
cdef class Mapping:
    """A mapped file, unmapped when the last view of it is deleted. Keeps no descriptor.

    For a POSIX object that the registry knows, it also keeps this process's hold on it.
    """
    def __init__(self, int fd, uint64_t nbytes, bint readonly=False, uint64_t offset=0):
        if self.base != NULL:
            raise TypeError("a mapping is made once")
        self.map(fd, nbytes, readonly, offset)

    cdef int map(self, int fd, uint64_t nbytes, bint readonly, uint64_t offset) except -1:
        cdef int protection = PROT_READ if readonly else PROT_READ | PROT_WRITE
        cdef void *p = mmap(NULL, nbytes, protection, MAP_SHARED, fd, <int64_t>offset)
        if p == MAP_FAILED:
            fail_of_system(errno, nbytes)
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
        """A mapping that is empty until the last view of this one is deleted, and then takes over its memory."""
        self.heir = Mapping.__new__(Mapping)
        return self.heir

    def clear(self):
        """Fill the memory with zeros."""
        with nogil:
            memset(self.base, 0, self.nbytes)

    def record(self, bytes name, uint64_t device, uint64_t inode, bint family):
        """Record that this process is about to publish this object, so that the object is freed if the process dies."""
        cdef const char *text = PyBytes_AS_STRING(name)
        cdef uint32_t n = len(name)
        cdef int rc = CL_AGAIN
        cdef Wait wait = new_wait()
        cdef int64_t until = after_a_slice(due_ns)
        self.store = the_store()
        while rc == CL_AGAIN:
            with nogil:
                cl_stay_awake(until < 0)
                rc = cl_posix_record(self.store, text, n, device, inode, self.nbytes, family, CL_MAY_WAIT, &self.hold_id,
                                     &self.hold_slot)
                cl_stay_awake(False)
            rc = served(&wait, rc, until)
        if rc != CL_OK:
            self.hold_id = 0
            if rc == CL_TIMEOUT:
                raise Late
            fail(rc)

    def forget(self):
        """Delete the record: the object was not published."""
        self.release()

    def attach(self, bytes name, uint64_t device, uint64_t inode):
        """Hold a recorded object; does nothing for one that the registry does not know."""
        cdef const char *text = PyBytes_AS_STRING(name)
        cdef uint32_t n = len(name)
        cdef int rc
        cdef Wait wait = new_wait()
        cdef int64_t until = after_a_slice(due_ns)
        self.store = the_store()
        while True:
            rc = cl_posix_attach(self.store, text, n, device, inode, 0, &self.hold_id, &self.hold_slot)
            while rc == CL_AGAIN:
                with nogil:
                    cl_stay_awake(until < 0)
                    rc = cl_posix_attach(self.store, text, n, device, inode, CL_MAY_WAIT, &self.hold_id, &self.hold_slot)
                    cl_stay_awake(False)
                rc = served(&wait, rc, until)
            if rc != CL_MISSING or self.store.older == NULL or not self.store.older.open:
                break
            self.store = self.store.older  # the object may have been made before the directory was removed
        if rc != CL_OK:
            self.hold_id = 0
            if rc == CL_TIMEOUT:
                raise Late
            if rc != CL_MISSING:
                fail(rc)
