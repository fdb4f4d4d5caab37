# cython: language_level=3, freethreading_compatible=True, auto_pickle=False
"""The bytes of a handle: where something lies in shared memory, made and read. What follows the first part is said in `copyless.storage.handles`."""
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.pycapsule cimport PyCapsule_GetPointer
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t, uintptr_t
from libc.string cimport memcpy, memset

import struct

from copyless._core._blocks cimport Block, due, stand
from copyless._core._check cimport after_a_slice, check, new_wait, served, Wait
from copyless._core._store cimport the_store
from copyless._core.c_library cimport (
    CL_AGAIN, CL_BLOCKS, CL_FOREVER, CL_MAY_WAIT, CL_TIMEOUT, cl_address, cl_block_ref, cl_draft, cl_find_any, cl_load, cl_mail, cl_send, cl_store,
    cl_token, cl_unsend,
)

from queue import Full

from copyless.errors import WrongProcessError

SPEC_HEAD = struct.Struct("<BBHq")  # of an array's description: flags, dimensions, length of the dtype, start

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
    VERSION = 1
    ARRAY = 1
    MEMORY = 2
    FILE = 3
    OBJECT = 4

WIRE_SIZE = sizeof(Wire)
KIND_ARRAY = ARRAY
KIND_MEMORY = MEMORY
KIND_FILE = FILE
KIND_OBJECT = OBJECT


cdef bytes wire(const cl_store *store, uint8_t kind, const cl_address *address, uint64_t offset, uint64_t nbytes):
    cdef Wire w
    memset(&w, 0, sizeof(w))
    w.magic[0], w.magic[1], w.version, w.kind = c"C", c"L", VERSION, kind
    w.host, w.boot, w.registry = store.identity.host, store.identity.boot, store.registry_id
    w.segment_id, w.generation, w.nonce = address.segment_id, address.generation, address.nonce
    w.segment, w.index, w.hold = address.segment, address.index, address.hold
    w.offset, w.nbytes = offset, nbytes
    return PyBytes_FromStringAndSize(<char *>&w, sizeof(w))


cdef bytes wire_of_memory(const cl_store *store, const cl_address *address, uint64_t nbytes):
    """The first part of the handle of a block from its beginning."""
    return wire(store, MEMORY, address, 0, nbytes)


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


cdef int post(cl_store *store, uint32_t segment, uint32_t index, bint draft, unsigned flags, cl_address *out) noexcept nogil:
    if draft:
        return cl_draft(store, segment, index, flags, out)
    return cl_send(store, segment, index, flags, out)


cdef int find_block(const void *address, uint64_t nbytes, cl_block_ref *ref, cl_store **store) except -1:
    """As cl_find_any, waiting without the GIL; raises for memory that an unregistered fork inherited."""
    cdef cl_store *newest = the_store()
    cdef Wait wait = new_wait()
    cdef int rc
    if not newest.open and newest.older == NULL and not newest.orphan:
        return 0
    rc = cl_find_any(newest, address, nbytes, 0, ref, store)
    while rc == CL_AGAIN:
        with nogil:
            rc = cl_find_any(newest, address, nbytes, CL_MAY_WAIT, ref, store)
        rc = served(&wait, rc, CL_FOREVER)
    if rc == 3:
        raise WrongProcessError(
            "this memory is the parent's: this forked child could not be registered. Copy it, or fork with more "
            "descriptors and processes allowed")
    if rc < 0:
        check(rc)
    return rc


cdef cl_store *store_of(uint64_t registry) noexcept nogil:
    """The open store of that registry, or NULL: the one in use, or one that was in use before."""
    cdef cl_store *store = the_store()
    while store != NULL and (store.registry_id != registry or not store.open):
        store = store.older
    return store


def handle_of(uintptr_t address, uint64_t nbytes, uint8_t kind, int message):
    """The first part of the handle of memory that lies in a block held here, or None.

    With `message` 1 the handle carries a hold of its own, which ends when it is loaded; with 2 one that is still this
    process's, to be given to a queue.
    """
    cdef cl_store *store
    cdef cl_block_ref ref
    cdef cl_address out
    cdef Wait wait = new_wait()
    cdef int64_t until = CL_FOREVER
    cdef int rc = find_block(<void *>address, nbytes, &ref, &store)
    if rc != 1 and not (rc == 2 and kind == OBJECT):
        return None
    if message:
        rc = post(store, ref.segment, ref.index, message == 2, 0, &out)
        if rc == CL_AGAIN:
            until = after_a_slice(due())
        while rc == CL_AGAIN:
            with nogil:
                rc = post(store, ref.segment, ref.index, message == 2, CL_MAY_WAIT, &out)
            rc = served(&wait, rc, until)
        if rc == CL_TIMEOUT:
            raise Full
        check(rc)
    else:
        memset(&out, 0, sizeof(out))
        out.segment_id, out.generation, out.segment, out.index = ref.segment_id, ref.generation, ref.segment, ref.index
    return wire(store, kind, &out, address - <uintptr_t>ref.data, nbytes)


def find(uintptr_t address, uint64_t nbytes):
    """(block number, offset in it) of memory that lies wholly in one block held here, or None."""
    cdef cl_store *store
    cdef cl_block_ref ref
    if find_block(<void *>address, nbytes, &ref, &store) != 1:
        return None
    return ref.segment * CL_BLOCKS + ref.index, address - <uintptr_t>ref.data


cdef cl_store *token_of(bytes handle, cl_store *queues, cl_token *token) except? NULL:
    """The hold that travels with a handle, and the store that it lies in; NULL: none travels.

    A queue keeps only holds of its own store. Where the directory was removed under this process it has several stores;
    a hold of another one than the queue's becomes a message's, which lasts by itself until its handle is loaded.
    """
    cdef Wire w
    cdef cl_store *store = queues
    cdef Wait wait = new_wait()
    cdef int64_t until = CL_FOREVER
    cdef int rc
    memcpy(&w, PyBytes_AS_STRING(handle), sizeof(Wire))
    memset(token, 0, sizeof(cl_token))
    token.hold, token.nonce = w.hold, w.nonce
    if w.nonce == 0:
        return NULL
    if w.registry != queues.registry_id:
        store = store_of(w.registry)
        if store == NULL:
            return NULL
        rc = cl_mail(store, w.hold, w.nonce, 0)
        if rc == CL_AGAIN:
            until = after_a_slice(due())
        while rc == CL_AGAIN:
            with nogil:
                rc = cl_mail(store, w.hold, w.nonce, CL_MAY_WAIT)
            rc = served(&wait, rc, until)
        if rc == CL_TIMEOUT:
            raise Full
        check(rc)
    return store


def wire_fields(bytes handle):
    """(kind, offset, nbytes, block number, generation) of a handle that has the right form."""
    cdef Wire w
    memcpy(&w, PyBytes_AS_STRING(handle), sizeof(Wire))
    return w.kind, w.offset, w.nbytes, w.segment * CL_BLOCKS + w.index, w.generation


cdef object load_block(bytes handle, Wire *w):
    """Fill in what a handle says; the block it names, None for a file, or what is wrong in one word."""
    cdef cl_store *store = the_store()
    cdef cl_address a
    cdef cl_block_ref ref
    cdef Wait wait = new_wait()
    cdef int rc
    if not store.open:
        return "closed"
    if len(handle) < <Py_ssize_t>sizeof(Wire):
        return "form"
    memcpy(w, PyBytes_AS_STRING(handle), sizeof(Wire))
    if w.magic[0] != c"C" or w.magic[1] != c"L" or w.version != VERSION or not ARRAY <= w.kind <= OBJECT:
        return "form"
    if w.host != store.identity.host:
        return "host"
    if w.boot != store.identity.boot:
        return "boot"
    if w.kind == FILE:
        return None
    if w.registry != store.registry_id:
        store = store_of(w.registry)
        if store == NULL:
            return "registry"
    a.segment_id, a.generation, a.nonce = w.segment_id, w.generation, w.nonce
    a.segment, a.index, a.hold = w.segment, w.index, w.hold
    rc = cl_load(store, &a, 0, &ref)
    while rc == CL_AGAIN:
        with nogil:
            rc = cl_load(store, &a, CL_MAY_WAIT, &ref)
        rc = served(&wait, rc, CL_FOREVER)
    check(rc)
    block = stand(store, &ref, ref.capacity)
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
    if spec is None or (spec[6] is not None and spec[6] != spec[0]):  # somebody renamed the fields of what arrived
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
    """A plain array over a buffer."""
    if MAKE_ARRAY is None:
        import copyless.arrays
    return MAKE_ARRAY(PLAIN_TYPE, shape, code, buffer)


def unsend(bytes handle):
    """Drop the hold of a message that will not be sent."""
    cdef cl_store *store
    cdef Wire w
    cdef int rc, slices = 0
    memcpy(&w, PyBytes_AS_STRING(handle), sizeof(Wire))
    store = store_of(w.registry)
    if store == NULL:
        return
    rc = cl_unsend(store, w.hold, w.nonce, 0)
    while rc == CL_AGAIN and slices < 20:  # put off after one slice, unless no memory is left for that
        slices += 1
        with nogil:
            rc = cl_unsend(store, w.hold, w.nonce, CL_MAY_WAIT)


def file_wire(uint64_t offset, uint64_t nbytes):
    """The first part of the handle of a range of a file."""
    cdef cl_address nothing
    memset(&nothing, 0, sizeof(nothing))
    return wire(the_store(), FILE, &nothing, offset, nbytes)
