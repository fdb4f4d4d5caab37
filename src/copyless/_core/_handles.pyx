# cython: language_level=3, freethreading_compatible=True, auto_pickle=False
"""Making and reading the first part of a handle, which names a place in shared memory. `copyless._transfer.handles` has the rest."""
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.pycapsule cimport PyCapsule_GetPointer
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t, uintptr_t
from libc.string cimport memcpy, memset

import struct

from copyless._core._blocks cimport Block, due, stand, was_loaded
from copyless._core._check cimport after_a_slice, check, new_wait, served, Wait
from copyless._core._store cimport tell_news, the_store
from copyless._core.c_library cimport (
    CL_AGAIN, CL_BLOCKS, CL_FOREVER, CL_MAY_WAIT, CL_TIMEOUT, cl_address, cl_block_ref, cl_draft, cl_find_any, cl_load, cl_mail, cl_seen, cl_send, cl_stay_awake, cl_store,
    cl_token, cl_unsend,
)

from copyless._core._blocks import Late
from copyless.errors import WrongProcessError

SPEC_HEAD = struct.Struct("<BBHq")  # the head of an array's description: flags, dimensions, length of the dtype, start

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
    """The first part of the handle of a whole block."""
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


cdef object spread(ArrayInterface *a, int64_t *before, int64_t *after):
    """Bytes that an array reaches before and after its first element; False: it has no elements."""
    cdef int i
    before[0], after[0] = 0, a.itemsize
    for i in range(a.nd):
        if a.shape[i] == 0:
            return False
        if a.strides[i] < 0:
            before[0] -= (a.shape[i] - 1) * a.strides[i]
        else:
            after[0] += (a.shape[i] - 1) * a.strides[i]
    return True


def extent_of(array):
    """(address, bytes) of the memory that the elements of an array reach over. The array has elements."""
    cdef int64_t before, after
    cdef ArrayInterface *a
    capsule = array.__array_struct__
    a = <ArrayInterface *>PyCapsule_GetPointer(capsule, NULL)
    spread(a, &before, &after)
    return <uintptr_t>a.data - before, before + after


def array_handle(array, bytes dtype, uint8_t flags, int message):
    """The complete handle of an array whose elements are in a block that this process holds, or None.

    Costs one look-up, and for a message one hold; `dtype` and `flags` are copied into it.
    """
    cdef ArrayInterface *a
    cdef int64_t before, after, numbers[2 * 64]
    cdef int i, nd
    capsule = array.__array_struct__
    a = <ArrayInterface *>PyCapsule_GetPointer(capsule, NULL)
    nd = a.nd
    if nd > 64 or not spread(a, &before, &after):
        return None
    for i in range(nd):
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
    """As cl_find_any, waiting without the GIL. Raises for memory that an unregistered forked child inherited."""
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
            "this memory belongs to the parent process, because this forked child could not be registered: copy "
            "it, or allow more descriptors and processes before the fork")
    if rc < 0:
        check(rc)
    return rc


cdef cl_store *store_of(uint64_t registry) noexcept nogil:
    """The open store of this registry, in use now or before; or NULL."""
    cdef cl_store *store = the_store()
    while store != NULL and (store.registry_id != registry or not store.open):
        store = store.older
    return store


def handle_of(uintptr_t address, uint64_t nbytes, uint8_t kind, int message):
    """The first part of the handle of memory in a block that this process holds, or None.

    With `message` 1 the handle has its own hold, which ends when it is loaded; with 2 it has a hold of this process, which a
    queue will take over.
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
                cl_stay_awake(until < 0)
                rc = post(store, ref.segment, ref.index, message == 2, CL_MAY_WAIT, &out)
                cl_stay_awake(False)
            rc = served(&wait, rc, until)
        if rc == CL_TIMEOUT:
            raise Late
        check(rc)
    else:
        memset(&out, 0, sizeof(out))
        out.segment_id, out.generation, out.segment, out.index = ref.segment_id, ref.generation, ref.segment, ref.index
    return wire(store, kind, &out, address - <uintptr_t>ref.data, nbytes)


def find(uintptr_t address, uint64_t nbytes):
    """(number of the block, offset in it) of memory that lies completely in one block that this process holds, or None."""
    cdef cl_store *store
    cdef cl_block_ref ref
    if find_block(<void *>address, nbytes, &ref, &store) != 1:
        return None
    return ref.segment * CL_BLOCKS + ref.index, address - <uintptr_t>ref.data


cdef cl_store *token_of(bytes handle, cl_store *queues, cl_token *token) except? NULL:
    """The hold of a handle and the store of the hold; NULL: the handle has none.

    A queue keeps only holds of its own store. If the directory was removed while in use, this process has several stores. A hold
    of another store than the queue's becomes the hold of a message, which lasts until its handle is loaded.
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
                cl_stay_awake(until < 0)
                rc = cl_mail(store, w.hold, w.nonce, CL_MAY_WAIT)
                cl_stay_awake(False)
            rc = served(&wait, rc, until)
        if rc == CL_TIMEOUT:
            raise Late
        check(rc)
    return store


def wire_fields(bytes handle):
    """(kind, offset, nbytes, number of the block, generation) of a handle with a valid form."""
    cdef Wire w
    memcpy(&w, PyBytes_AS_STRING(handle), sizeof(Wire))
    return w.kind, w.offset, w.nbytes, w.segment * CL_BLOCKS + w.index, w.generation


def wire_registry(bytes handle):
    """(boot, registry) of a handle with a valid form, as the registry's header has them."""
    cdef Wire w
    memcpy(&w, PyBytes_AS_STRING(handle), sizeof(Wire))
    return w.boot, f"{w.registry:016x}"


cdef object load_block(bytes handle, Wire *w):
    """Fill in the fields of a handle. Returns its block, None for a file, or one word for an error."""
    cdef cl_store *store = the_store()
    cdef cl_address a
    cdef cl_block_ref ref
    cdef Wait wait = new_wait()
    cdef int64_t until = CL_FOREVER
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
    if rc == CL_AGAIN:
        until = after_a_slice(due())
    while rc == CL_AGAIN:
        with nogil:
            cl_stay_awake(until < 0)
            rc = cl_load(store, &a, CL_MAY_WAIT, &ref)
            cl_stay_awake(False)
        rc = served(&wait, rc, until)
    if rc == CL_TIMEOUT:
        raise Late
    check(rc)
    block = stand(store, &ref, ref.capacity)
    was_loaded(block)
    if cl_seen(&store.untold):
        tell_news(store)
    if w.nbytes > ref.capacity or w.offset > ref.capacity - w.nbytes:
        raise ValueError(f"the handle is damaged: it names {w.nbytes} bytes at {w.offset} in a block of "
                         f"{ref.capacity}")
    return block


def resolve(bytes handle):
    """(kind, block, offset, bytes) of a handle. A hold of the message becomes a hold of this process. For a file, block is None.

    For a handle that this process cannot follow, one word: 'closed', 'form', 'host', 'boot' or 'registry'.
    """
    cdef Wire w
    block = load_block(handle, &w)
    if type(block) is str:
        return block
    return w.kind, block, w.offset, w.nbytes


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
    while rc == CL_AGAIN and slices < 20:  # deferred after one slice, unless no memory is left for that
        slices += 1
        with nogil:
            rc = cl_unsend(store, w.hold, w.nonce, CL_MAY_WAIT)


def file_wire(uint64_t offset, uint64_t nbytes):
    """The first part of the handle of a range of a file."""
    cdef cl_address nothing
    memset(&nothing, 0, sizeof(nothing))
    return wire(the_store(), FILE, &nothing, offset, nbytes)
