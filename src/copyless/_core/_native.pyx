# cython: language_level=3, freethreading_compatible=True, auto_pickle=False
"""The binding: the C store as Python objects, and nothing else. Policy, names and documents are in `copyless.storage`.

Fast calls keep the GIL and try the locks once; only when one is taken, or a segment must be made, do they let the GIL
go and wait in slices, serving signals between them.
"""
from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_FillInfo, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.exc cimport PyErr_CheckSignals
from cpython.pycapsule cimport PyCapsule_GetPointer
from cpython.sequence cimport PySequence_GetSlice
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t, uintptr_t
from libc.string cimport memcpy, memset
from libc.stdlib cimport atexit, free, malloc

import gc
import struct
import warnings

from copyless.errors import ClosedError, CorruptSegmentError, native_error

cdef extern from "capacity.h" nogil:
    int cl_capacity_check(int fd, uint64_t size)

cdef extern from "sys/mman.h" nogil:
    void *mmap(void *address, size_t length, int protection, int flags, int fd, int64_t offset)
    int munmap(void *address, size_t length)
    enum: PROT_READ, PROT_WRITE, MAP_SHARED, MAP_PRIVATE
    void *MAP_FAILED

cdef extern from "unistd.h" nogil:
    int getpid()
    int getppid()
    int rmdir(const char *path)
    int getpagesize()

cdef extern from "errno.h" nogil:
    int errno

cdef extern from "fcntl.h" nogil:
    int c_open "open"(const char *path, int flags, ...)
    int c_openat "openat"(int directory, const char *path, int flags, ...)
    enum: O_RDWR, O_CLOEXEC

cdef extern from "unistd.h" nogil:
    int c_close "close"(int fd)

cdef extern from "sys/stat.h" nogil:
    cdef struct c_stat "stat":
        uint64_t st_dev
        uint64_t st_ino
        int64_t st_size
    int fstat(int fd, c_stat *st)
    int c_stat_path "lstat"(const char *path, c_stat *st)

cdef cl_store STORE
SPEC_HEAD = struct.Struct("<BBHq")  # of an array's description: flags, dimensions, length of the dtype, start
cdef char DIRECTORY_PATH[4096]
cdef bint LEAVES_AT_EXIT = False

# What a handle says before its array part; little-endian, 84 bytes. The one place that knows it.
cdef struct Wire:
    uint8_t magic[2]
    uint8_t version
    uint8_t kind
    uint32_t hold
    uint64_t host
    uint64_t boot
    uint64_t registry
    uint64_t segment_id
    uint64_t generation
    uint64_t nonce
    uint32_t segment
    uint32_t index
    uint64_t offset
    uint64_t nbytes

cdef enum:
    SPAN = 1 << 26  # bytes copied before signals are served: some milliseconds
    ARRAY = 1
    MEMORY = 2
    FILE = 3
    OBJECT = 4

WIRE_SIZE = sizeof(Wire)
KIND_ARRAY = ARRAY
KIND_MEMORY = MEMORY
KIND_FILE = FILE
KIND_OBJECT = OBJECT


cdef int fail(int rc) except -1:
    cdef cl_error *e = cl_last_error()
    raise native_error(rc, e.sys, (<bytes>e.what).decode("utf-8", "replace"), e.asked)


cdef int64_t deadline_of(timeout) except -1:
    """The monotonic time at which a wait of `timeout` seconds (None: for ever) ends."""
    cdef double seconds
    if timeout is None:
        return CL_FOREVER
    seconds = timeout
    if seconds != seconds:
        raise ValueError("timeout is not a number")
    if seconds <= 0:
        return 0
    if seconds > 9e9:
        return CL_FOREVER
    return cl_monotonic_ns() + <int64_t>(seconds * 1e9)


# ---- opening, leaving, fork

cdef void leave_at_exit() noexcept nogil:
    # Runs after the interpreter is gone: everything Python held has been released by then.
    if STORE.open and cl_store_leave(&STORE) == 1:
        rmdir(DIRECTORY_PATH)


def open_store(int directory, bytes path, uint64_t host, uint64_t boot, uint64_t family, uint64_t pid_namespace,
               uint32_t parent_pid, uint64_t parent_start, bytes command, uint64_t warm_limit, int64_t idle_ns,
               int64_t message_ttl_ns, bytes spill):
    """Open the registry in an open directory, joining as an owner. One store a process."""
    global LEAVES_AT_EXIT
    cdef cl_identity who
    cdef cl_settings settings
    cdef int rc
    memset(&who, 0, sizeof(who))
    memset(&settings, 0, sizeof(settings))
    if len(spill) >= sizeof(settings.spill):
        raise ValueError(f"the path of the directory for spilled items is too long: {spill!r}")
    memcpy(settings.spill, PyBytes_AS_STRING(spill), len(spill))
    who.host, who.boot, who.family, who.pid_namespace = host, boot, family, pid_namespace
    who.pid = <uint32_t>getpid()
    who.start = cl_process_start(who.pid)
    who.parent_pid, who.parent_start = parent_pid, parent_start
    command = command[:31]
    memcpy(who.command, PyBytes_AS_STRING(command), len(command))
    settings.warm_limit, settings.idle_ns, settings.message_ttl_ns = warm_limit, idle_ns, message_ttl_ns
    if len(path) >= sizeof(DIRECTORY_PATH):
        raise ValueError(f"the path of the storage directory is too long: {path!r}")
    memcpy(DIRECTORY_PATH, PyBytes_AS_STRING(path), len(path) + 1)
    with nogil:
        rc = cl_store_open(&STORE, directory, &who, &settings)
    if rc != CL_OK:
        fail(rc)
    if not LEAVES_AT_EXIT:
        LEAVES_AT_EXIT = True
        atexit(leave_at_exit)


def is_open():
    return STORE.open != 0


def configure(uint64_t warm_limit, int64_t idle_ns, int64_t message_ttl_ns):
    STORE.settings.warm_limit = warm_limit
    STORE.settings.idle_ns = idle_ns
    STORE.settings.message_ttl_ns = message_ttl_ns


def process_start(uint32_t pid):
    """Start of a process in clock ticks after boot; 0 when there is none (or only its zombie)."""
    return cl_process_start(pid)


def fork_prepare():
    cdef int rc
    if not STORE.open:
        return
    rc = cl_fork_prepare(&STORE, 0)
    while rc == CL_AGAIN:
        with nogil:
            rc = cl_fork_prepare(&STORE, CL_MAY_WAIT)


def fork_parent():
    if STORE.open and STORE.forking:
        cl_fork_parent(&STORE)


def fork_child():
    cdef uint32_t parent
    if not STORE.open:
        return
    if not STORE.forking:
        STORE.open = 0  # the registry was damaged before the fork: the child opens anew, and is told then
        return
    parent = <uint32_t>getppid()
    if cl_fork_child(&STORE, <uint32_t>getpid(), cl_process_start(<uint32_t>getpid()), parent,
                     cl_process_start(parent)) != CL_OK:
        warnings.warn("copyless: this forked child could not be registered (too many open files or processes): shared "
                      "arrays it inherited may be freed when its parent lets them go", RuntimeWarning, stacklevel=2)


# ---- blocks

cdef class Block:
    """A block of shared memory that this object keeps alive; a writable buffer of bytes.

    Arrays and memoryviews made over it keep it, and with it the process's hold, until the last of them is gone.
    """
    def __cinit__(self):
        self.ref.data = NULL

    def __dealloc__(self):
        cdef int rc
        if self.ref.data != NULL:
            rc = cl_release(&STORE, self.ref.segment_id, self.ref.segment, self.ref.index, 0)
            while rc == CL_AGAIN:
                with nogil:
                    rc = cl_release(&STORE, self.ref.segment_id, self.ref.segment, self.ref.index, CL_MAY_WAIT)

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

    def clear(self):
        """Set every byte to zero."""
        cdef uint8_t *data = self.ref.data
        cdef uint64_t n = self.nbytes
        with nogil:
            memset(data, 0, n)

    def __repr__(self):
        return f"<block {self.number} of {self.nbytes} bytes at {self.address:#x}>"


cdef cl_store *the_store() noexcept nogil:
    return &STORE


cdef Block stand(const cl_block_ref *ref, uint64_t nbytes):
    cdef Block block = Block.__new__(Block)
    block.ref = ref[0]
    block.nbytes = nbytes
    return block


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
        self.block = block
        self.head = head

    def _close(self):
        self.head = NULL
        self.block = None

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
        return self.head


def object_kind(Block block):
    """Which kind of object a block holds; 0: none."""
    cdef cl_head *head = <cl_head *>block.ref.data
    if block.ref.capacity < sizeof(cl_head) or head.magic != CL_OBJECT_MAGIC:
        return 0
    return head.kind


def new_object(uint64_t nbytes, uint32_t kind, uint32_t number, uint32_t room, uint64_t flags, uint64_t clear=0):
    """A block of zeros with the head of an object; with `clear`, only so many bytes are set to zero."""
    cdef Block block = alloc(nbytes)
    cdef cl_head *head = <cl_head *>block.ref.data
    memset(head, 0, clear if clear else nbytes)
    head.kind, head.number, head.room, head.flags = kind, number, room, flags
    head.magic = CL_OBJECT_MAGIC
    return block


def wait_many(list words, double seconds):
    """Wait until one of [(address, expected)...] differs, at most `seconds`: its index, or -1. Lets the GIL go."""
    cdef cl_au32 *addresses[127]
    cdef uint32_t expected[127]
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
    cdef uint32_t word

    @property
    def address(self):
        return <uintptr_t>&self.word

    @property
    def value(self):
        return self.word

    def ring(self):
        self.word += 1
        cl_wake(<cl_au32 *>&self.word, 1)


def alloc(uint64_t nbytes):
    """A block of at least `nbytes` bytes, warm if there is one. Its content is what it last held."""
    return allocate(nbytes, 0)


cdef Block allocate(uint64_t nbytes, unsigned flags):
    """The same; with CL_MAY_SPILL on disk when shared memory is full."""
    cdef cl_block_ref ref
    cdef int rc = cl_alloc(&STORE, nbytes, 0, &ref)
    while rc == CL_AGAIN:
        with nogil:
            rc = cl_alloc(&STORE, nbytes, CL_MAY_WAIT | flags, &ref)
        if rc == CL_AGAIN:
            PyErr_CheckSignals()
    if rc != CL_OK:
        fail(rc)
    return stand(&ref, nbytes)


cdef bytes wire(uint8_t kind, const cl_address *address, uint64_t offset, uint64_t nbytes):
    cdef Wire w
    memset(&w, 0, sizeof(w))
    w.magic[0], w.magic[1], w.version, w.kind = 67, 76, 1, kind
    w.host, w.boot, w.registry = STORE.identity.host, STORE.identity.boot, STORE.registry_id
    w.segment_id, w.generation, w.nonce = address.segment_id, address.generation, address.nonce
    w.segment, w.index, w.hold = address.segment, address.index, address.hold
    w.offset, w.nbytes = offset, nbytes
    return PyBytes_FromStringAndSize(<char *>&w, sizeof(w))


cdef struct ArrayInterface:  # NumPy's __array_struct__
    int two
    int nd
    char typekind
    int itemsize
    int flags
    Py_ssize_t *shape
    Py_ssize_t *strides
    void *data


def array_handle(array, bytes dtype, uint8_t flags, int message):
    """The whole handle of an array whose elements lie in a block held here, or None.

    Costs one find, and for a message one hold; `dtype` and `flags` stand in it as they are given.
    """
    cdef ArrayInterface *a
    cdef int64_t before = 0, after, numbers[2 * 64]
    cdef int i, nd
    if not STORE.open:
        return None
    capsule = array.__array_struct__
    a = <ArrayInterface *>PyCapsule_GetPointer(capsule, NULL)
    nd, after = a.nd, a.itemsize
    if nd > 64:
        return None
    for i in range(nd):
        if a.shape[i] == 0:
            return None
        if a.strides[i] < 0:
            before -= (a.shape[i] - 1) * a.strides[i]
        else:
            after += (a.shape[i] - 1) * a.strides[i]
        numbers[i], numbers[nd + i] = a.shape[i], a.strides[i]
    head = handle_of(<uintptr_t>a.data - before, before + after, ARRAY, message)
    if head is None:
        return None
    return head + SPEC_HEAD.pack(flags, nd, len(dtype), before) + dtype + PyBytes_FromStringAndSize(<char *>numbers, 16 * nd)


def find(uintptr_t address, uint64_t nbytes):
    """(block number, offset in it) of memory that lies wholly in one block held here, or None."""
    cdef cl_block_ref ref
    cdef int rc
    if not STORE.open:
        return None
    rc = cl_find(&STORE, <void *>address, nbytes, 0, &ref)
    while rc == CL_AGAIN:
        with nogil:
            rc = cl_find(&STORE, <void *>address, nbytes, CL_MAY_WAIT, &ref)
    if rc != 1:
        return None
    return ref.segment * CL_BLOCKS + ref.index, address - <uintptr_t>ref.data


cdef int post(uint32_t segment, uint32_t index, bint draft, unsigned flags, cl_address *out) noexcept nogil:
    if draft:
        return cl_draft(&STORE, segment, index, flags, out)
    return cl_send(&STORE, segment, index, flags, out)


def handle_of(uintptr_t address, uint64_t nbytes, uint8_t kind, int message):
    """The first part of the handle of memory that lies in a block held here, or None.

    With `message` 1 the handle carries a hold of its own, which ends when it is loaded; with 2 one that is still this
    process's, to be given to a queue.
    """
    cdef cl_block_ref ref
    cdef cl_address out
    cdef int rc
    if not STORE.open:
        return None
    rc = cl_find(&STORE, <void *>address, nbytes, 0, &ref)
    while rc == CL_AGAIN:
        with nogil:
            rc = cl_find(&STORE, <void *>address, nbytes, CL_MAY_WAIT, &ref)
    if rc != 1 and not (rc == 2 and kind == OBJECT):
        return None
    if message:
        rc = post(ref.segment, ref.index, message == 2, 0, &out)
        while rc == CL_AGAIN:
            with nogil:
                rc = post(ref.segment, ref.index, message == 2, CL_MAY_WAIT, &out)
            if rc == CL_AGAIN:
                PyErr_CheckSignals()
        if rc != CL_OK:
            fail(rc)
    else:
        memset(&out, 0, sizeof(out))
        out.segment_id, out.generation, out.segment, out.index = ref.segment_id, ref.generation, ref.segment, ref.index
    return wire(kind, &out, address - <uintptr_t>ref.data, nbytes)


cdef bint token_of(bytes handle, cl_token *token):
    """The hold that travels with a handle; False: none does."""
    cdef Wire w
    memcpy(&w, PyBytes_AS_STRING(handle), sizeof(Wire))
    memset(token, 0, sizeof(cl_token))
    token.hold, token.nonce = w.hold, w.nonce
    return w.nonce != 0


def wire_fields(bytes handle):
    """(kind, offset, nbytes, block number, generation) of a handle that has the right form."""
    cdef Wire w
    memcpy(&w, PyBytes_AS_STRING(handle), sizeof(Wire))
    return w.kind, w.offset, w.nbytes, w.segment * CL_BLOCKS + w.index, w.generation


cdef object load_block(bytes handle, Wire *w):
    """Fill in what a handle says; the block it names, None for a file, or what is wrong in one word."""
    cdef cl_address a
    cdef cl_block_ref ref
    cdef int rc
    if not STORE.open:
        return "closed"
    if len(handle) < <Py_ssize_t>sizeof(Wire):
        return "form"
    memcpy(w, PyBytes_AS_STRING(handle), sizeof(Wire))
    if w.magic[0] != 67 or w.magic[1] != 76 or w.version != 1 or not 1 <= w.kind <= 4:
        return "form"
    if w.host != STORE.identity.host:
        return "host"
    if w.boot != STORE.identity.boot:
        return "boot"
    if w.kind == FILE:
        return None
    if w.registry != STORE.registry_id:
        return "registry"
    a.segment_id, a.generation, a.nonce = w.segment_id, w.generation, w.nonce
    a.segment, a.index, a.hold = w.segment, w.index, w.hold
    rc = cl_load(&STORE, &a, 0, &ref)
    while rc == CL_AGAIN:
        with nogil:
            rc = cl_load(&STORE, &a, CL_MAY_WAIT, &ref)
        if rc == CL_AGAIN:
            PyErr_CheckSignals()
    if rc != CL_OK:
        fail(rc)
    block = stand(&ref, ref.capacity)
    if w.nbytes > ref.capacity or w.offset > ref.capacity - w.nbytes:
        raise ValueError(f"the handle names {w.nbytes} bytes at {w.offset} in a block of {ref.capacity}: it is damaged")
    return block


def resolve(bytes handle):
    """(kind, block, offset, bytes) of a handle; a message's hold becomes this process's. For a file the block is None.

    What is wrong with a handle that is not for us is told by one word: 'closed', 'form', 'host', 'boot' or 'registry'.
    """
    cdef Wire w
    block = load_block(handle, &w)
    if type(block) is str:
        return block
    return w.kind, block, w.offset, w.nbytes


cdef dict SPECS = None
cdef object MAKE_ARRAY = None, SHARED_TYPE = None, PLAIN_TYPE = None


def know_arrays(dict specs, make, shared, plain):
    """What `load_array` needs: descriptions met before, `ndarray.__new__`, and the two types. Called once, with NumPy there."""
    global SPECS, MAKE_ARRAY, SHARED_TYPE, PLAIN_TYPE
    SPECS, MAKE_ARRAY, SHARED_TYPE, PLAIN_TYPE = specs, make, shared, plain


def load_array(bytes handle):
    """The array of a handle whose description was met before, or None: then go the long way.

    The same as `resolve` and `copyless.arrays.decode` together, in one call: it is what every message costs.
    """
    cdef Wire w
    cdef tuple spec
    if SPECS is None or len(handle) <= <Py_ssize_t>sizeof(Wire) or PyBytes_AS_STRING(handle)[3] != ARRAY:
        return None
    spec = SPECS.get(PyBytes_FromStringAndSize(PyBytes_AS_STRING(handle) + sizeof(Wire), len(handle) - sizeof(Wire)))
    if spec is None:
        return None
    block = load_block(handle, &w)
    if type(block) is not Block:
        return None
    if <uint64_t>spec[5] > w.nbytes:
        raise ValueError(f"the handle describes an array of shape {spec[1]} in {w.nbytes} bytes: it is damaged")
    flags = <int>spec[4]
    array = MAKE_ARRAY(SHARED_TYPE if flags & 2 else PLAIN_TYPE, spec[1], spec[0], block, w.offset + <uint64_t>spec[3],
                       spec[2])
    if not flags & 1:
        array.flags.writeable = False
    return array


def array_over(buffer, code, shape):
    """A plain array over a buffer. Named in pickles, in plain.h: keep its name and place."""
    if MAKE_ARRAY is None:
        import copyless.arrays
    return MAKE_ARRAY(PLAIN_TYPE, shape, code, buffer)


def unsend(bytes handle):
    """Drop the hold of a message that will not be sent."""
    cdef Wire w
    cdef int rc
    memcpy(&w, PyBytes_AS_STRING(handle), sizeof(Wire))
    rc = cl_unsend(&STORE, w.hold, w.nonce, 0)
    while rc == CL_AGAIN:
        with nogil:
            rc = cl_unsend(&STORE, w.hold, w.nonce, CL_MAY_WAIT)


def drop_message(uint32_t index):
    """End a message's hold, as the end of its family or of its time does; other holds are left alone."""
    cdef int rc
    enter_listing()
    rc = CL_STALE
    if index < STORE.control.holds_high and STORE.holds[index].kind == CL_HOLD_MESSAGE:
        rc = cl_hold_drop(&STORE, index)
    cl_leave(&STORE)
    return rc == CL_OK


# ---- names

def publish(Block block, bytes name, uint64_t spec_offset, uint64_t spec_length, bint persist):
    cdef const char *text = PyBytes_AS_STRING(name)
    cdef uint32_t n = len(name)
    cdef int rc = CL_AGAIN
    while rc == CL_AGAIN:
        with nogil:
            rc = cl_publish(&STORE, text, n, block.ref.segment, block.ref.index, spec_offset, spec_length, persist,
                            CL_MAY_WAIT)
        if rc == CL_AGAIN:
            PyErr_CheckSignals()
    if rc == CL_EXISTS:
        return False
    if rc != CL_OK:
        fail(rc)
    return True


def lookup(bytes name):
    """(handle, offset and length of the description) or None."""
    cdef const char *text = PyBytes_AS_STRING(name)
    cdef uint32_t n = len(name)
    cdef cl_named found
    cdef int rc = CL_AGAIN
    while rc == CL_AGAIN:
        with nogil:
            rc = cl_lookup(&STORE, text, n, CL_MAY_WAIT, &found)
        if rc == CL_AGAIN:
            PyErr_CheckSignals()
    if rc == CL_MISSING:
        return None
    if rc != CL_OK:
        fail(rc)
    return wire(MEMORY, &found.address, 0, found.nbytes), found.spec_offset, found.spec_length


def unpublish(bytes name):
    cdef const char *text = PyBytes_AS_STRING(name)
    cdef uint32_t n = len(name)
    cdef int rc = CL_AGAIN
    while rc == CL_AGAIN:
        with nogil:
            rc = cl_unpublish(&STORE, text, n, CL_MAY_WAIT)
        if rc == CL_AGAIN:
            PyErr_CheckSignals()
    if rc == CL_MISSING:
        return False
    if rc != CL_OK:
        fail(rc)
    return True


def names_seq():
    cdef uint32_t seq
    enter_listing()
    seq = (<uint32_t *>&STORE.control.names_seq)[0]
    cl_leave(&STORE)
    return seq


def wait_for_name(uint32_t seen, double seconds):
    """Wait until a name is published after `names_seq()` was `seen`, at most `seconds`; serves signals."""
    cdef cl_spin spin
    cdef int rc = CL_AGAIN
    cdef int64_t deadline = cl_monotonic_ns() + <int64_t>(seconds * 1e9)
    memset(&spin, 0, sizeof(spin))
    while rc == CL_AGAIN:
        with nogil:
            rc = cl_wait(&STORE.control.names_seq, seen, deadline, &spin)
        PyErr_CheckSignals()
    return rc == CL_OK


# ---- files mapped as they are: POSIX objects and user files

cdef class Mapping:
    """A mapped file of bytes, unmapped when the last view of it is gone. Keeps no descriptor.

    Made over a POSIX object that the registry knows, it also keeps this process's hold on it.
    """
    cdef uint8_t *base
    cdef readonly uint64_t nbytes
    cdef readonly bint readonly
    cdef uint64_t hold_id
    cdef uint32_t hold_slot
    cdef object behind
    cdef Mapping heir  # gets the memory, instead of its being unmapped
    cdef object __weakref__

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
        rc = cl_release(&STORE, self.hold_id, self.hold_slot, 0, 0)
        while rc == CL_AGAIN:
            with nogil:
                rc = cl_release(&STORE, self.hold_id, self.hold_slot, 0, CL_MAY_WAIT)
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
        while rc == CL_AGAIN:
            with nogil:
                rc = cl_posix_record(&STORE, text, n, device, inode, self.nbytes, family, CL_MAY_WAIT, &self.hold_id,
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
        cdef int rc = cl_posix_attach(&STORE, text, n, device, inode, 0, &self.hold_id, &self.hold_slot)
        while rc == CL_AGAIN:
            with nogil:
                rc = cl_posix_attach(&STORE, text, n, device, inode, CL_MAY_WAIT, &self.hold_id, &self.hold_slot)
        if rc != CL_OK:
            self.hold_id = 0
            if rc != CL_MISSING:
                fail(rc)


def mark_private(Block block):
    """The block is what a message brought by value: its bytes are this process's own, and go on by value."""
    set_private(&block.ref)


cdef void set_private(const cl_block_ref *ref) noexcept:
    # Never waits with the GIL: a thread that forks holds the tables, and wants the GIL.
    cdef int rc = cl_mark_private(the_store(), ref, 0)
    while rc == CL_AGAIN:
        with nogil:
            rc = cl_mark_private(the_store(), ref, CL_MAY_WAIT)


def copy_parts(target, list parts, uint64_t align, tell=None):
    """Copy buffers into one, each to the next multiple of `align`; `tell`, if given, hears after each span how many bytes it had."""
    cdef Py_buffer whole
    PyObject_GetBuffer(target, &whole, PyBUF_WRITABLE)
    try:
        copy_into(<uint8_t *>whole.buf, whole.len, parts, align, tell)
    finally:
        PyBuffer_Release(&whole)


COPY_LARGE = CL_COPY_LARGE


cpdef uint64_t room_of(list parts, uint64_t align) except? 0:
    """The bytes that buffers take behind each other, each at a multiple of `align`."""
    cdef uint64_t at = 0
    for part in parts:
        at = (at + align - 1) // align * align + <uint64_t>part.nbytes
    return at


def cut(whole, sizes, uint64_t align):
    """Views of these sizes in a buffer, each at a multiple of `align`: where `copy_parts` has put them."""
    cdef uint64_t at = 0, size
    cdef list views = []
    view = memoryview(whole)
    for size in sizes:
        at = (at + align - 1) // align * align
        views.append(PySequence_GetSlice(view, at, at + size))
        at += size
    return views


cdef int copy_into(uint8_t *out, uint64_t room, list parts, uint64_t align, tell) except -1:
    """As `copy_parts`."""
    cdef Py_buffer *views
    cdef Py_ssize_t i = 0, n = len(parts), taken = 0
    cdef uint64_t whole, at = 0, done = 0, span, some, most = SPAN if tell is None else SPAN // 16
    views = <Py_buffer *>malloc((n or 1) * sizeof(Py_buffer))
    if views == NULL:
        raise MemoryError
    try:
        for part in parts:
            PyObject_GetBuffer(part, &views[taken], PyBUF_SIMPLE)
            taken += 1
            at = (at + align - 1) // align * align + <uint64_t>views[taken - 1].len
        if at > room:
            raise ValueError(f"{at} bytes do not go into {room}")
        whole, at = at, 0
        while i < n:
            span = 0
            with nogil:
                while i < n and span < most:
                    some = <uint64_t>views[i].len - done
                    if some > most - span:
                        some = most - span
                    cl_copy(out + at + done, <uint8_t *>views[i].buf + done, some, whole)
                    done += some
                    span += some
                    if done == <uint64_t>views[i].len:
                        at = (at + done + align - 1) // align * align
                        done = 0
                        i += 1
            PyErr_CheckSignals()
            if tell is not None:
                tell(span)
    finally:
        for i in range(taken):
            PyBuffer_Release(&views[i])
        free(views)
    return 0


def private_view(Block block):
    """The bytes of a block as they are, in memory of this process's own: written to, the block stays as it is.

    Copied when small, mapped copy-on-write when large. Keeps the block's memory alive, where it is mapped.
    """
    cdef Mapping mapping
    cdef char file[24]
    cdef int fd
    cdef void *p
    if block.ref.spilled or block.nbytes < 65536:
        return bytearray(block)
    cl_segment_file(file, block.ref.segment_id)
    fd = c_openat(STORE.directory, file, O_RDWR | O_CLOEXEC)
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


def posix_open(bytes path, bytes name, int flags, int mode, bint readonly, bint tracked):
    """(mapping, device, inode) of a POSIX object; the mapping is None when the object has no size yet.

    Raises OSError as open(2) does. What dead processes left is taken back first, so a dead creator's name is gone.
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
        # Unlinked while we opened it? Then it may be another block by now (storage/spares.py): that we have it open is seen
        # before it is made one, so what still has its name after that is the right one.
        if c_stat_path(PyBytes_AS_STRING(path), &named) == 0 and named.st_ino == st.st_ino and named.st_dev == st.st_dev:
            break
        mapping = None
    if tracked and mapping is not None:
        mapping.attach(name, st.st_dev, st.st_ino)
    return mapping, st.st_dev, st.st_ino


def posix_record(bytes name, uint64_t device, uint64_t inode):
    """A hold of this process on an object that it does not map and may come to publish under this name."""
    cdef Mapping hold = Mapping.__new__(Mapping)
    hold.record(name, device, inode, False)
    return hold


def posix_hold(bytes name, uint64_t device, uint64_t inode):
    """A hold of this process on a recorded object that it does not map: it lives as long as what is returned."""
    cdef Mapping hold = Mapping.__new__(Mapping)
    hold.attach(name, device, inode)
    return hold


def file_identity(bytes path):
    """(device, inode, bytes) of a file, or None: one system call."""
    cdef c_stat st
    if c_stat_path(PyBytes_AS_STRING(path), &st) != 0:
        return None
    return st.st_dev, st.st_ino, st.st_size


def scan(bint force=False):
    """Take back what the dead held; unless forced, only if nobody did a moment ago."""
    cdef int rc = CL_AGAIN
    while rc == CL_AGAIN:
        with nogil:
            rc = cl_enter(&STORE, CL_OP_REAP, CL_MAY_WAIT)
            if rc == CL_OK:
                cl_scan(&STORE, CL_SCAN_FORCE if force else 0, NULL)
                cl_leave(&STORE)
    if rc != CL_OK:
        fail(rc)


def posix_forget(bytes name, uint64_t device, uint64_t inode):
    cdef const char *text = PyBytes_AS_STRING(name)
    cdef uint32_t n = len(name)
    cdef int rc = CL_AGAIN
    while rc == CL_AGAIN:
        with nogil:
            rc = cl_posix_forget(&STORE, text, n, device, inode, CL_MAY_WAIT)
    if rc != CL_OK:
        fail(rc)


def check_capacity(int fd, uint64_t nbytes):
    """Raise OutOfSharedMemory when the mount, the machine or the control group has no room for `nbytes` more."""
    cdef int rc
    with nogil:
        rc = cl_capacity_check(fd, nbytes)
    if rc != CL_OK:
        fail(rc)


# ---- looking and cleaning

def reap():
    """Take back what dead processes held: {'owners', 'blocks', 'segments', 'messages'} as counts."""
    cdef cl_reaped reaped
    cdef int rc = CL_AGAIN
    with nogil:
        rc = cl_reap(&STORE, CL_MAY_WAIT, &reaped)
    if rc != CL_OK:
        fail(rc)
    return {"owners": reaped.owners, "blocks": reaped.blocks, "segments": reaped.segments, "messages": reaped.messages}


def trim(uint64_t keep_bytes):
    """Give whole free segments back to the system until at most `keep_bytes` stay warm; bytes given back."""
    cdef uint64_t freed
    cdef int rc = CL_AGAIN
    while rc == CL_AGAIN:
        with nogil:
            rc = cl_trim(&STORE, keep_bytes, CL_MAY_WAIT, &freed)
        if rc == CL_AGAIN:
            PyErr_CheckSignals()
    if rc != CL_OK:
        fail(rc)
    return freed


cdef int enter_listing() except -1:
    cdef int rc = CL_AGAIN
    while rc == CL_AGAIN:
        with nogil:
            rc = cl_enter(&STORE, CL_OP_LIST, CL_MAY_WAIT)
        if rc == CL_AGAIN:
            PyErr_CheckSignals()
    if rc != CL_OK:
        fail(rc)
    return 0


def audit():
    """Raise CorruptSegmentError unless every count and list of the registry agrees with what it counts."""
    cdef int rc
    enter_listing()
    with nogil:
        rc = cl_audit(&STORE)
        cl_leave(&STORE)
    if rc != CL_OK:
        fail(rc)


def statistics():
    """Totals of the registry, without walking it."""
    cdef uint64_t total, warm, deaths, in_op, recoveries
    cdef uint32_t messages, persistent
    enter_listing()
    total, warm, deaths = STORE.control.total_bytes, STORE.control.warm_bytes, STORE.control.deaths
    in_op, recoveries = STORE.control.deaths_in_op, STORE.control.recoveries
    messages, persistent = STORE.control.messages, STORE.control.persistent
    cl_leave(&STORE)
    return {"total_bytes": total, "warm_bytes": warm, "messages": messages, "persistent": persistent,
            "deaths": deaths, "deaths_in_operation": in_op, "recoveries": recoveries,
            "registry": f"{STORE.registry_id:016x}", "slot": STORE.slot}


cdef dict take_snapshot():
    cdef uint32_t i, b
    cdef cl_segment *s
    cdef cl_block *block
    cdef cl_owner *o
    cdef cl_hold *h
    cdef cl_name *n
    owners, segments, blocks, holds, names = [], [], [], [], []
    for i in range(STORE.control.owners_high):
        o = &STORE.owners[i]
        if o.state != CL_OWNER_FREE:
            owners.append({"slot": i, "pid": o.pid, "start": o.start, "alive": cl_owner_life(&STORE, i, o.incarnation) == CL_ALIVE,
                           "family": o.family, "pid_namespace": o.pid_namespace, "since_ns": o.since_ns,
                           "leaving": o.leaving != 0, "command": (<bytes>o.command).decode("utf-8", "replace"),
                           "self": i == STORE.slot})
    for i in range(STORE.control.segments_high):
        s = &STORE.segments[i]
        if s.state == CL_SEGMENT_FREE:
            continue
        segments.append({"slot": i, "id": f"{s.id:016x}", "state": s.state, "external": s.state == CL_SEGMENT_EXTERNAL,
                         "bytes": s.file_size, "block_bytes": s.block_size, "blocks": s.nblocks, "used": s.used})
        if s.state != CL_SEGMENT_READY and s.state != CL_SEGMENT_EXTERNAL:
            continue
        for b in range(min(s.nblocks, 64)):
            block = &s.blocks[b]
            if block.state == CL_BLOCK_USED:
                blocks.append({"number": i * 64 + b, "segment": f"{s.id:016x}", "bytes": block.nbytes,
                               "capacity": s.block_size, "holds": block.holds, "generation": block.generation,
                               "creator_pid": block.creator_pid, "created_ns": block.created_ns,
                               "external": s.state == CL_SEGMENT_EXTERNAL})
    for i in range(STORE.control.holds_high):
        h = &STORE.holds[i]
        if h.kind != CL_HOLD_FREE:
            holds.append({"kind": ("", "owner", "message", "family", "persist", "channel")[h.kind if h.kind < 6 else 0],
                          "index": i, "channel": <int64_t>h.channel - 1 if h.kind == 5 else -1, "owner": <int64_t>h.owner - 1, "block": <int64_t>h.block - 1, "deadline_ns": h.deadline_ns})
    for i in range(STORE.control.names_high):
        n = &STORE.names[i]
        if n.kind != CL_NAME_FREE:
            names.append({"name": PyBytes_FromStringAndSize(n.name, min(n.length, 255)).decode("utf-8", "surrogateescape"),
                          "posix": n.kind != CL_NAME_ARRAY, "block": <int64_t>n.block - 1})
    return {"owners": owners, "segments": segments, "blocks": blocks, "holds": holds, "names": names}


def snapshot():
    """Owners, segments, blocks, holds and names as they are, as lists of dicts."""
    # A collection under the lock could run a finaliser that wants the lock.
    collecting = gc.isenabled()
    gc.disable()
    try:
        enter_listing()
        try:
            return take_snapshot()
        finally:
            cl_leave(&STORE)
    finally:
        if collecting:
            gc.enable()


def file_wire(uint64_t offset, uint64_t nbytes):
    """The first part of the handle of a range of a file."""
    cdef cl_address nothing
    memset(&nothing, 0, sizeof(nothing))
    return wire(FILE, &nothing, offset, nbytes)
