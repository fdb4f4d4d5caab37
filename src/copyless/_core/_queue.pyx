# cython: language_level=3, freethreading_compatible=True, auto_pickle=False
"""The binding of queue.h: bytes in and out of a queue, first without waiting and with the GIL, then in slices without it.

What the classes mean to their users, names and documents, is in `copyless.queues`; how an object becomes bytes and
buffers, in `copyless.pickling`.

An item's bytes are its tokens (16 each, of the holds on what it names), then a pickle; or 72 and the handle of a shared
array; or, when large buffers go beside the pickle, 67 as 32 bits, their number, the length of the pickle, their lengths, the pickle, and the buffers at multiples of 64.
"""
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.object cimport PyObject, PyTypeObject
from cpython.ref cimport Py_DECREF
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset
from posix.unistd cimport getpid

from copyless._core._blocks cimport Block, Object, allocate, hurry, is_elsewhere, look_at_name, set_private, stand
from copyless._core._check cimport check, deadline_of, fail, new_wait, served, Wait
from copyless._core._copying cimport copy_into, room_of
from copyless._core._handles cimport token_of
from copyless._core._pickles cimport loads_at
from copyless._core._store cimport the_store
from copyless._core.c_library cimport (
    CL_AGAIN, cl_bells_heard, cl_bells_tell, CL_CLOSED, CL_CORRUPT, CL_FOREVER, CL_FULL, CL_INLINE_MAX, CL_KIND_QUEUE, CL_LEASES, CL_MAY_SPILL, CL_MAY_WAIT, CL_MISSING, CL_OK,
    CL_OWNER_DIED, CL_QUEUE_JOINABLE, CL_QUEUE_REDELIVER, CL_ROLE_CLOSED, CL_ROLE_GETS, CL_ROLE_PUTS, CL_STALE, CL_STAY, CL_TIMEOUT, cl_add_bits64,
    cl_block_ref, cl_copy, cl_end, cl_find_any, cl_got, cl_item, cl_lease, cl_queue_abort, cl_queue_attach, cl_queue_begin, cl_queue_bytes,
    cl_queue_commit, cl_queue_dead_letter, cl_queue_deserted, cl_queue_detach, cl_queue_discard, cl_queue_done, cl_queue_nack, cl_queue_head, cl_queue_is_late, cl_queue_join, cl_queue_needs_registry, cl_queue_next,
    cl_monotonic_ns,
    cl_queue_put, cl_queue_role, cl_queue_settle, cl_queue_shut, cl_queue_size, cl_queue_unfinished, cl_queue_use, cl_seen, cl_seen64, cl_store, cl_token,
    cl_unsend, cl_watch,
)

import queue as _stdlib
import sys

from copyless._core._blocks import private_view
from copyless.errors import ClosedError, CorruptSegmentError, EndOfQueueError

cdef extern from "plain.h":
    enum: PLAIN_ARRAYS
    ctypedef struct plain_arrays:
        PyTypeObject *type
        Py_ssize_t beside
        int (*is_shared)(const void *data, uint64_t nbytes) noexcept
        PyObject *seen[PLAIN_ARRAYS]
        int n
        uint8_t is_beside[PLAIN_ARRAYS]
    size_t plain_dump(object o, uint8_t *out, size_t room)
    size_t plain_dump_with(object o, uint8_t *out, size_t room, plain_arrays *arrays)
    PyObject *plain_load(const uint8_t *p, size_t nbytes) except? NULL

HEAD_BYTES = sizeof(cl_queue_head)
LEASE_BYTES = sizeof(cl_lease)
LEASES = CL_LEASES
JOINABLE = CL_QUEUE_JOINABLE
REDELIVER = CL_QUEUE_REDELIVER
NAMED = NAMED_QUEUE

cdef enum:
    PLAIN_QUEUE = 4  # which class, in the flags of the head: see copyless.queues
    JOINABLE_QUEUE = 8
    NAMED_QUEUE = 16  # it was made with a name: who takes its items may come when who put them is gone
    COMPOSITE = 67
    HANDLE = 72
    COPIED = 65536  # bytes
    ARRAYS_LARGEST = 16384  # bytes of a pickle with arrays
    SLEEPS = 2  # bit of a `commit`: somebody sleeps on it
    HEARD_NS = 100000000  # at most; the other is stopped then, or has no processor
    DESERTED_SLICES = 20  # a second in which somebody may start another producer

cdef object Full = _stdlib.Full, Empty = _stdlib.Empty
cdef dict DIRECT = {}
cdef object PACK = None, LOAD = None, SHUT_DOWN = None, TELL = None, TELL_REMOVED = None
NOTHING = object()


def ended(Block block):
    """(whether the queue that lies in a block was shut down, how many items lie in it)."""
    cdef cl_queue_head *head = <cl_queue_head *>block.ref.data
    if block.ref.capacity < sizeof(cl_queue_head) or cl_seen(&head.state) == 0:
        return False, 0
    return True, cl_queue_size(head)


def know(pack, dict direct, load_handle, shut_down, tell, tell_removed):
    """What `put` needs of the floors above: pickling for objects that are not plain, the types that a handle says all of,
    how a handle is loaded, the error of a queue shut down, and what to say, once, when an item goes by a file on disk because
    memory is full, or because the storage directory was removed."""
    global PACK, DIRECT, LOAD, SHUT_DOWN, TELL, TELL_REMOVED
    PACK, DIRECT, LOAD, SHUT_DOWN, TELL, TELL_REMOVED = pack, direct, load_handle, shut_down, tell, tell_removed


def plain_dumps(obj):
    """The pickle of a small plain value, or None."""
    cdef uint8_t out[PLAIN_MOST]
    cdef size_t n = plain_dump(obj, out, PLAIN_MOST)
    return PyBytes_FromStringAndSize(<char *>out, n) if n else None


cdef object ARRAY_TYPE = None, ARRAYS_ARE_PLAIN = None
cdef Py_ssize_t BESIDE = 4096


def know_arrays(type array_type, are_plain, Py_ssize_t beside):
    """The type of arrays that may be pickled here, whether they may now, and the bytes from which buffers go beside a pickle."""
    global ARRAY_TYPE, ARRAYS_ARE_PLAIN, BESIDE
    ARRAY_TYPE, ARRAYS_ARE_PLAIN, BESIDE = array_type, are_plain, beside


cdef int is_shared(const void *data, uint64_t nbytes) noexcept:
    cdef cl_store *store
    cdef cl_block_ref ref
    cdef int rc
    if not the_store().open and the_store().older == NULL and not the_store().orphan:
        return False
    rc = cl_find_any(the_store(), data, nbytes, 0, &ref, &store)
    return rc != CL_OK and rc != 2  # 2: memory that came by value; 3 and what is busy: the long way says what is wrong


cdef int is_never_shared(const void *data, uint64_t nbytes) noexcept:
    return False


def arrays_dumps(obj, bint by_value=False):
    """(pickle, large buffers beside it) of plain values and arrays of numbers, or None: it is for the pickle module.

    An array in shared memory is for that too, unless all goes `by_value`.
    """
    cdef uint8_t out[ARRAYS_LARGEST]
    cdef plain_arrays arrays
    cdef size_t n
    cdef list parts = []
    if ARRAY_TYPE is None:
        if "numpy" not in sys.modules:
            return None
        import copyless.arrays  # which calls know_arrays
    if ARRAY_TYPE is None or not ARRAYS_ARE_PLAIN():
        return None
    arrays.type, arrays.beside, arrays.n = <PyTypeObject *>ARRAY_TYPE, BESIDE, 0
    arrays.is_shared = is_never_shared if by_value else is_shared
    n = plain_dump_with(obj, out, ARRAYS_LARGEST, &arrays)
    for i in range(arrays.n):
        array = take_reference(arrays.seen[i])
        if n != 0 and arrays.is_beside[i]:
            parts.append(memoryview(array).cast("B"))
    return (PyBytes_FromStringAndSize(<char *>out, n), parts) if n else None


def plain_loads(bytes data):
    """(the value,), or None when it is for the pickle module: for tests."""
    cdef PyObject *value = plain_load(<const uint8_t *>PyBytes_AS_STRING(data), len(data))
    return None if value == NULL else (take_reference(value),)


cdef int tell(bint adrift) except -1:
    global TELL, TELL_REMOVED
    if adrift:  # it goes by the disk for another reason
        if TELL_REMOVED is not None:
            once, TELL_REMOVED = TELL_REMOVED, None
            once()
    elif TELL is not None:
        once, TELL = TELL, None
        once()
    return 0


cdef class Packed:
    def __dealloc__(self):
        cdef uint32_t i
        if self.tokens != NULL:
            if not self.given:
                unsend(self.store, self.tokens, self.ntokens)
            free(self.tokens)
        if self.abroad != NULL:
            if not self.given:
                for i in range(self.nabroad):
                    unsend(self.abroad[i].store, &self.abroad[i].token, 1)
            free(self.abroad)

    cdef void describe(self, cl_item *item) noexcept:
        item.body = NULL if self.body is None else PyBytes_AS_STRING(self.body)
        item.nbytes = self.nbytes
        item.tokens = self.tokens
        item.ntokens = self.ntokens
        item.payload = NULL if self.block is None else &self.block.ref

    cdef void was_given(self) noexcept:
        self.given = True
        if self.block is not None:
            self.block.ref.data = NULL  # its hold is the queue's now


cdef void unsend(cl_store *store, const cl_token *tokens, uint32_t n) noexcept:
    # Put off after one slice in which the registry's lock is not to be had, unless no memory is left for that: then the hold
    # goes with this process.
    cdef uint32_t i
    cdef int rc, failed = 0
    for i in range(n):
        rc = cl_unsend(store, tokens[i].hold, tokens[i].nonce, 0)
        while rc == CL_AGAIN and failed < 20:
            with nogil:
                rc = cl_unsend(store, tokens[i].hold, tokens[i].nonce, CL_MAY_WAIT)
            failed += rc == CL_AGAIN


cdef size_t dump_plain(obj, uint8_t *out, size_t room):
    """The bytes of the pickle of a small plain value; 0: it is for `pack`."""
    return plain_dump(obj, out, room)


cdef object load_plain(const uint8_t *data, uint64_t nbytes):
    """The plain value in a pickle; NOTHING: it is for the pickle module."""
    cdef PyObject *value = plain_load(data, nbytes)
    return NOTHING if value == NULL else take_reference(value)


cdef object take_back(list handles):
    """What no item carries after all."""
    import copyless._core._handles as handles_module

    for handle in handles:
        handles_module.unsend(handle)


cdef Packed pack(cl_store *store, obj, bint in_block, bint lasting, const uint8_t *label, uint32_t nlabel, watch, int64_t deadline):
    """An object, behind a label that is for who takes it; `lasting`: it may be taken twice, or when this process is gone; `watch(bytes)`, if given, is the context of copying large buffers.

    Raises Full when the registry's lock is not to be had until the deadline.
    """
    cdef int64_t before = hurry(deadline)
    try:
        return pack_in_time(store, obj, in_block, lasting, label, nlabel, watch)
    finally:
        hurry(before)


cdef Packed pack_in_time(cl_store *store, obj, bint in_block, bint lasting, const uint8_t *label, uint32_t nlabel, watch):
    cdef Packed packed = Packed.__new__(Packed)
    cdef bytes data
    cdef list buffers = [], handles
    cdef uint64_t at, total, n, start
    cdef uint64_t *lengths
    cdef uint8_t *out
    cdef const void *source
    cdef cl_store *of
    cdef uint8_t plain[PLAIN_MOST]
    n = plain_dump(obj, plain, PLAIN_MOST)
    if n != 0:
        data, handles = PyBytes_FromStringAndSize(<char *>plain, n), []
    elif (encode := DIRECT.get(type(obj))) is not None and (handle := encode(obj)) is not None:
        data, handles = b"H" + handle, [handle]
    elif lasting:
        data, buffers, handles = PACK(obj, None, lasting=True)
    else:
        data, buffers, handles = PACK(obj)
    packed.store = store
    if handles:
        i = 0
        try:
            packed.tokens = <cl_token *>malloc(len(handles) * sizeof(cl_token))
            if packed.tokens == NULL:
                raise MemoryError
            for handle in handles:
                of = token_of(handle, store, &packed.tokens[packed.ntokens])  # a file's handle has none
                if of == store:
                    packed.ntokens += 1
                elif of != NULL:
                    if packed.abroad == NULL:
                        packed.abroad = <Abroad *>malloc(len(handles) * sizeof(Abroad))
                        if packed.abroad == NULL:
                            raise MemoryError
                    packed.abroad[packed.nabroad].store = of
                    packed.abroad[packed.nabroad].token = packed.tokens[packed.ntokens]
                    packed.nabroad += 1
                i += 1
        except BaseException:
            take_back(handles[i:])  # the others go with `packed`
            raise
    n = packed.ntokens * sizeof(cl_token)
    start = n + nlabel
    total = start + len(data)
    if buffers:
        total += 16 + 8 * len(buffers)
        total = (total + 63) // 64 * 64 + room_of(buffers, 64)
    packed.nbytes = total
    if not buffers and total <= CL_INLINE_MAX and not in_block:
        if start == 0:
            packed.body = data
        else:
            packed.body = PyBytes_FromStringAndSize(<char *>packed.tokens, n) + PyBytes_FromStringAndSize(<char *>label, nlabel) + data
        return packed
    packed.block = allocate(store, total, CL_MAY_SPILL | CL_STAY)
    out = packed.block.ref.data
    if n != 0:
        memcpy(out, packed.tokens, n)
    if nlabel != 0:
        memcpy(out + n, label, nlabel)
    at = start
    if buffers:
        (<uint32_t *>(out + at))[0] = COMPOSITE
        (<uint32_t *>(out + at))[1] = len(buffers)
        (<uint64_t *>(out + at))[1] = len(data)
        lengths = <uint64_t *>(out + at + 16)
        for i, buffer in enumerate(buffers):
            lengths[i] = buffer.nbytes
        at += 16 + 8 * len(buffers)
    n = len(data)
    source = PyBytes_AS_STRING(data)
    with nogil:
        cl_copy(out + at, source, n, n)
    if buffers:
        at = (at + n + 63) // 64 * 64
        if watch is None:
            copy_into(out + at, total - at, buffers, 64, None)
        else:
            with watch(sum([buffer.nbytes for buffer in buffers])) as hears:
                copy_into(out + at, total - at, buffers, 64, hears)
    return packed


cdef object load(bytes body):
    cdef PyObject *value = plain_load(<const uint8_t *>PyBytes_AS_STRING(body), len(body))
    if value != NULL:
        return take_reference(value)
    if len(body) > 0 and PyBytes_AS_STRING(body)[0] == HANDLE:
        return LOAD(body[1:])
    return loads_at(<const uint8_t *>PyBytes_AS_STRING(body), len(body), body, None)


cdef object take_reference(PyObject *value):
    made = <object>value
    Py_DECREF(made)
    return made


cdef object unpack(cl_store *store, body, uint32_t ntokens, uint32_t nlabel):
    """The object in the bytes of an item, over these very bytes; buffers in it are writable if they are."""
    cdef Py_buffer view
    cdef const uint8_t *p
    cdef uint64_t of_tokens = ntokens * sizeof(cl_token), at = of_tokens + nlabel, length, total, n, i, size
    cdef cl_token *tokens = NULL
    cdef cl_token token
    if at == 0 and type(body) is bytes:
        return load(<bytes>body)
    whole = memoryview(body)
    total = len(whole)
    PyObject_GetBuffer(body, &view, PyBUF_SIMPLE)
    p = <const uint8_t *>view.buf
    buffers = []
    try:
        if at > total:
            raise CorruptSegmentError("an item of the queue is damaged")
        if ntokens != 0:
            tokens = <cl_token *>malloc(of_tokens)
            if tokens == NULL:
                for i in range(ntokens):
                    memcpy(&token, p + i * sizeof(cl_token), sizeof(cl_token))
                    unsend(store, &token, 1)
                raise MemoryError
            memcpy(tokens, p, of_tokens)
        if total > at and p[at] == HANDLE:
            value = LOAD(PyBytes_FromStringAndSize(<const char *>p + at + 1, <Py_ssize_t>(total - at - 1)))
            ntokens = 0  # which took the hold
            return value
        if total - at >= 16 and (<uint32_t *>(p + at))[0] == COMPOSITE:
            n = (<uint32_t *>(p + at))[1]
            length = (<uint64_t *>(p + at))[1]
            if n > (total - at - 16) // 8 or length > total - at - 16 - 8 * n:
                raise CorruptSegmentError("an item of the queue is damaged")
            start = at + 16 + 8 * n
            at2 = start + length
            for i in range(n):
                size = (<uint64_t *>(p + at + 16))[i]
                at2 = (at2 + 63) // 64 * 64
                if at2 > total or size > total - at2:
                    raise CorruptSegmentError("an item of the queue is damaged")
                buffers.append(whole[at2:at2 + size])
                at2 += size
            return loads_at(p + <uint64_t>start, length, whole[start:start + length], buffers)
        return loads_at(p + at, total - at, whole[at:], None)
    finally:
        PyBuffer_Release(&view)
        if tokens != NULL:
            unsend(store, tokens, ntokens)  # what loading did not take
            free(tokens)


cdef class _Queue(Object):
    KIND = CL_KIND_QUEUE

    def __cinit__(self, *args, **kwargs):
        memset(&self.q, 0, sizeof(self.q))

    def __dealloc__(self):
        if self.q.head != NULL:
            if self.puts_of != 0 and self.puts_of == cl_seen(&self.q.self) and self.block is not None and not is_elsewhere(self.store):
                cl_queue_role(&self.q, CL_ROLE_CLOSED, True)
            with nogil:
                cl_queue_detach(&self.q)

    def _stand(self, Block block):
        cdef int rc
        if self.q.head != NULL:  # it stood already: `__setstate__` once more
            with nogil:
                cl_queue_detach(&self.q)
        Object._stand(self, block)
        rc = cl_queue_attach(&self.q, self.store, <cl_queue_head *>self.head, block.ref.capacity, block.number)
        check(rc)
        self.redelivers = (self.q.flags & CL_QUEUE_REDELIVER) != 0
        self.lasts = (self.q.flags & (CL_QUEUE_REDELIVER | NAMED_QUEUE)) != 0

    cdef int watch(self, cl_watch *out, uint32_t reader) except -1:
        out.store, out.head, out.closed = self.store, self._need(), <const int *>&self.closed
        out.is_.kind, out.is_.room, out.is_.spare[1] = CL_KIND_QUEUE, self.q.leases, self.q.deliveries
        out.queue = &self.q
        return 0

    @property
    def _flags(self):
        self._need()
        return self.q.flags

    @property
    def _number(self):
        self._need()
        return self.q.most

    cdef int use(self, uint32_t role) except -1:
        if self.closed or self.head == NULL:
            raise ClosedError(f"{type(self).__name__} {self!r} is closed")
        if is_elsewhere(self.store):
            self._need()
        cl_queue_use(&self.q, role)
        if role == CL_ROLE_PUTS and self.puts_of != cl_seen(&self.q.self):
            self.puts_of = cl_seen(&self.q.self)
            self._puts()
        return 0

    def _close_role(self):
        """This process neither puts nor gets any more by this object."""
        self.closed = True
        if self._signal is not None:
            self._signal.shut()
        if self.head != NULL and not is_elsewhere(self.store):
            cl_bells_tell(self.store, self.head)  # another thread of this process may wait for it
        self._say_goodbye()

    def _say_goodbye(self):
        """Write down that this process puts no more. Who waits by descriptors sees what was put before it sees the end of the process."""
        cdef int64_t deadline = cl_monotonic_ns() + HEARD_NS
        cdef int rc
        if self.head != NULL and not is_elsewhere(self.store):
            cl_queue_role(&self.q, CL_ROLE_CLOSED, True)
            with nogil:
                rc = CL_AGAIN
                while rc == CL_AGAIN and cl_monotonic_ns() < deadline:
                    rc = cl_bells_heard(self.store, deadline)

    # ---- put

    cdef int insert(self, cl_item *items, uint32_t n, uint32_t *done, int64_t deadline) except -100:
        """CL_OK or CL_TIMEOUT."""
        cdef Wait wait = new_wait()
        cdef int rc
        self.use(CL_ROLE_PUTS)
        look_at_name(self)
        rc = cl_queue_put(&self.q, items, n, done, 0, 0)
        while rc == CL_AGAIN:
            with nogil:
                rc = cl_queue_put(&self.q, items, n, done, deadline, CL_MAY_WAIT)
            rc = served(&wait, rc, CL_FOREVER)
            if rc == CL_AGAIN:
                self.use(CL_ROLE_PUTS)
                look_at_name(self)
        if cl_seen64(&self.q.head.spilled) != 0:
            tell(self.store.adrift != 0)
        return rc

    cdef int refuse(self, int rc) except -1:
        if rc == CL_CLOSED:
            raise SHUT_DOWN(f"{type(self).__name__} {self!r} is shut down")
        fail(rc)

    def put(self, obj, block=True, timeout=None):
        """put(obj, block=True, timeout=None)

        Put an object in. When this returns, the object is in shared memory: a snapshot that outlives this process.

        Waits for room (`maxsize`, `maxbytes`), at most `timeout` seconds; not at all unless `block`.

        Raises
        ------
        queue.Full
            When there is no room in that time.
        ShutDown
            When the queue was shut down.
        ClosedError
            When this object is closed.
        UnsendableError
            For what can be had once and only from this process (a connection, a socket, a tensor in torch's shared memory), where the
            item may be delivered again or when this process has gone: the queue redelivers, or has a name.

        What its pickling raises, it raises; the queue is then as it was. Cost: plain small values one pickling and one copy,
        no system call unless somebody sleeps; each buffer of 4 KiB or more one copy; shared arrays none.
        """
        cdef Packed packed
        cdef cl_item item
        cdef uint32_t done = 0
        cdef int rc
        if self.closed or self.head == NULL or is_elsewhere(self.store):
            self.use(CL_ROLE_PUTS)
        cdef int64_t deadline = self.deadline(block, timeout)
        cdef uint8_t plain[PLAIN_MOST]
        if not self.redelivers:
            item.nbytes = plain_dump(obj, plain, PLAIN_MOST)
            if item.nbytes != 0:
                item.body, item.tokens, item.ntokens, item.payload = plain, NULL, 0, NULL
                rc = self.insert(&item, 1, &done, deadline)
                if rc == CL_TIMEOUT:
                    raise Full
                if rc != CL_OK:
                    self.refuse(rc)
                return
        packed = pack(self.store, obj, self.redelivers, self.lasts, NULL, 0, None, deadline)
        packed.describe(&item)
        rc = self.insert(&item, 1, &done, deadline)
        if done:
            packed.was_given()
        if rc == CL_TIMEOUT:
            raise Full
        if rc != CL_OK:
            self.refuse(rc)

    cdef int64_t deadline(self, block, timeout) except -1:
        if not block:
            return 0
        if timeout is None:
            return CL_FOREVER
        return deadline_of(timeout)

    def put_many(self, objects, block=True, timeout=None):
        """How many were put; Full only when none was."""
        cdef list all_packed = []
        cdef Packed packed
        cdef cl_item *items
        cdef uint32_t done = 0, i = 0
        cdef int rc = CL_OK
        cdef int64_t deadline = self.deadline(block, timeout)
        self.use(CL_ROLE_PUTS)
        for obj in objects:
            try:
                all_packed.append(pack(self.store, obj, self.redelivers, self.lasts, NULL, 0, None, deadline))
            except Full:
                if not all_packed or cl_monotonic_ns() < deadline:
                    raise
                break
            if 0 < deadline <= cl_monotonic_ns():
                break
        if not all_packed:
            return 0
        items = <cl_item *>malloc(len(all_packed) * sizeof(cl_item))
        if items == NULL:
            raise MemoryError
        try:
            for packed in all_packed:
                packed.describe(&items[i])
                i += 1
            rc = self.insert(items, i, &done, deadline)
        finally:
            free(items)
            for i in range(done):
                (<Packed>all_packed[i]).was_given()
        if rc == CL_TIMEOUT and done == 0:
            raise Full
        if rc != CL_OK and rc != CL_TIMEOUT and (rc != CL_FULL or done == 0):  # an error would hide what was put
            self.refuse(rc)
        return done

    def _pack(self, obj, timeout=None):
        """An item of an object; `Full` when what it needs of the registry was not to be had in time, or in a slice."""
        self.use(CL_ROLE_PUTS)
        return pack(self.store, obj, self.redelivers, self.lasts, NULL, 0, None, deadline_of(timeout))

    def _try_put(self, Packed packed):
        """Whether there was room; for an event loop."""
        cdef cl_item item
        cdef uint32_t done = 0
        cdef int rc
        packed.describe(&item)
        rc = self.insert(&item, 1, &done, 0)
        if done:
            packed.was_given()
        if rc == CL_TIMEOUT:
            return False
        if rc != CL_OK:
            self.refuse(rc)
        return True

    # ---- get

    cdef int begin(self, int64_t deadline, cl_got *got, bint ends=False) except -100:
        """CL_OK: `got` is what is taken, under the lock unless it is `settled`; `finish` comes next. CL_TIMEOUT: there is nothing."""
        cdef Wait wait = new_wait()
        cdef int rc, slices = 0, deserted = 0
        cdef bint late
        cdef int64_t begun
        self.use(CL_ROLE_GETS)
        if self.unread is not None:
            self.tell_unread()
        got.settled = 0
        rc = cl_queue_begin(&self.q, 0, 0)
        if rc == CL_OK:
            rc = cl_queue_next(&self.q, got, 0)
            if rc == CL_OK and not cl_queue_needs_registry(&self.q):
                return rc
            cl_queue_abort(&self.q)
        elif rc == CL_CLOSED:
            self.refuse(rc)
        while True:
            with nogil:
                late, begun = False, cl_monotonic_ns()
                rc = cl_queue_begin(&self.q, deadline, CL_MAY_WAIT)
                if rc == CL_OK:
                    rc = cl_queue_next(&self.q, got, CL_MAY_WAIT)
                    if rc == CL_MISSING:  # a lease that needed no one any more
                        cl_queue_abort(&self.q)
                        rc = CL_AGAIN
                    elif rc == CL_STALE or rc == CL_CORRUPT:
                        if cl_queue_commit(&self.q) != CL_OK:  # nobody can ever have this one: the queue goes on
                            cl_queue_abort(&self.q)
                    elif rc != CL_OK:
                        cl_queue_abort(&self.q)
                        late = rc == CL_AGAIN
                    elif cl_queue_needs_registry(&self.q):
                        rc = cl_queue_settle(&self.q, got)
                        late = rc == CL_AGAIN
            if rc == CL_OK:
                return rc
            if rc == CL_TIMEOUT:
                look_at_name(self)
                return rc
            if rc != CL_AGAIN:
                self.refuse(rc)
            if late and cl_queue_is_late(begun, deadline):  # the item is still there; the registry's lock was not to be had
                return CL_TIMEOUT
            served(&wait, CL_AGAIN, CL_FOREVER)
            self.use(CL_ROLE_GETS)
            if not late:
                look_at_name(self)
            slices += 1
            if (ends or deadline == CL_FOREVER) and slices % 4 == 0:
                with nogil:
                    rc = cl_queue_deserted(&self.q)
                deserted = deserted + 4 if rc >= (1 if ends else 2) else 0
                if deserted >= DESERTED_SLICES:
                    raise EndOfQueueError(f"nobody is left who could put into {self!r}: every process that did has ended or "
                                          "closed it, and no other has it")

    cdef int tell_unread(self) except -1:
        """Raise what the next of the items raised that `get_many` took and could not load."""
        if self.unread_of != getpid():  # they are the parent's, who hears of them
            self.unread = None
            return 0
        error = self.unread.pop(0)
        if not self.unread:
            self.unread = None
        raise error

    cdef bint has_kept(self) except -1:
        """Whether Ctrl-C broke off a `get_many` of this process that had taken more than it could load."""
        self._need()
        if self.kept_of != getpid():
            self.kept = None
        return self.kept is not None

    cdef object next_kept(self):
        """The next of those: (object,), or bytes to load."""
        entry = self.kept.pop(0)
        try:
            return entry[0] if type(entry) is tuple else load(entry)
        except KeyboardInterrupt:
            self.keep([entry])
            raise
        finally:
            if not self.kept:
                self.kept = None

    cdef int keep(self, list entries) except -1:
        self.kept = entries + (self.kept or [])
        self.kept_of = getpid()
        return 0

    cdef object end(self, cl_got *got):
        """Commit what was taken, and make an object of it."""
        cdef uint8_t plain[PLAIN_MOST]
        cdef PyObject *value
        if got.body != NULL and got.ntokens == 0 and got.nbytes <= PLAIN_MOST:
            memcpy(plain, got.body, got.nbytes)
            self.finish(got)
            value = plain_load(plain, got.nbytes)
            if value != NULL:
                return take_reference(value)
            return load(PyBytes_FromStringAndSize(<char *>plain, <Py_ssize_t>got.nbytes))
        if self.redelivers:
            try:
                obj = unpack(self.store, self.body(got), got.ntokens, 0)
            except BaseException:
                self._nack(got.sequence)  # nobody has it: it is delivered again, or set aside
                raise
            return self._leased(got.sequence, obj)
        body = self.body(got)
        return unpack(self.store, body, got.ntokens, 0)

    cdef object body(self, cl_got *got):
        """Commit what was taken: its bytes, which are this process's own."""
        cdef bytes body = None
        cdef Block block
        if got.body != NULL:
            try:
                body = PyBytes_FromStringAndSize(<const char *>got.body, <Py_ssize_t>got.nbytes)
            except BaseException:
                self.forget(got)
                raise
            self.finish(got)
            return body
        self.finish(got)
        block = stand(self.store, &got.payload, got.nbytes)
        if self.redelivers:
            # Memory of the consumer's own: a copy when that is cheaper than to map the block anew.
            return bytearray(block) if got.nbytes <= COPIED else private_view(block)
        set_private(block)
        return block

    cdef void finish(self, cl_got *got) noexcept:
        """What was taken was copied: let the lock go."""
        if not got.settled:
            cl_queue_commit(&self.q)
        elif got.body != NULL:
            free(<void *>got.body)

    cdef void forget(self, cl_got *got) noexcept:
        """There is no room for a copy: leave the item where it is, if that can be."""
        if not got.settled:
            cl_queue_abort(&self.q)
        else:
            self.finish(got)

    def get(self, block=True, timeout=None):
        """get(block=True, timeout=None)

        Take the first object, waiting for one at most `timeout` seconds; not at all unless `block`.

        Raises
        ------
        queue.Empty
            When there is nothing in that time; never early.
        ShutDown
            When the queue is empty and was shut down.
        EndOfQueueError
            Without a timeout: when a process that put has died, all others that did have ended or closed the queue, and no
            process that might put has it.
        ClosedError
            When this object is closed.

        Large buffers are not copied: the object stands on the memory that they lie in, which is this process's own.
        """
        cdef cl_got got
        cdef int64_t deadline = self.deadline(block, timeout)
        if self.kept is not None and self.has_kept():
            return self.next_kept()
        if self.begin(deadline, &got) == CL_TIMEOUT:
            if self._signal is not None:
                self._signal.settle()
            raise Empty
        if self._signal is not None:
            return self.settled(self.end(&got))
        return self.end(&got)

    cdef object settled(self, obj):
        """Something was taken: if it was the last, the descriptor is readable no more."""
        self._signal.settle()
        return obj

    def _next(self, timeout=None):
        """As `get`, for iteration: it ends also when every process that put has ended well."""
        cdef cl_got got
        cdef int64_t deadline = self.deadline(True, timeout)
        if self.kept is not None and self.has_kept():
            return self.next_kept()
        if self.begin(deadline, &got, True) == CL_TIMEOUT:
            raise Empty
        return self.end(&got) if self._signal is None else self.settled(self.end(&got))

    def _leased(self, sequence, obj):
        return obj

    def _puts(self):
        """This process puts for the first time."""

    def _try_get(self):
        """The next item, or `NOTHING`; for an event loop."""
        cdef cl_got got
        if self.kept is not None and self.has_kept():
            return self.next_kept()
        if self.begin(0, &got) == CL_TIMEOUT:
            return NOTHING if self._signal is None else self.settled(NOTHING)
        return self.end(&got) if self._signal is None else self.settled(self.end(&got))

    def get_many(self, max_items=None, block=True, timeout=None):
        """A list of what is there: at least one, at most `max_items`."""
        cdef cl_got got
        cdef uint64_t most = 0xffffffff if max_items is None else max_items
        cdef int rc
        cdef list bodies = []
        if max_items is not None and max_items < 1:
            raise ValueError(f"max_items must be 1 or more, not {max_items}")
        if self.kept is not None and self.has_kept():
            bodies, self.kept = self.kept[:most], self.kept[most:] or None
            return self.load_all(bodies)
        if self.begin(self.deadline(block, timeout), &got) == CL_TIMEOUT:
            raise Empty
        if got.settled or got.body == NULL or got.ntokens:
            return [self.end(&got) if self._signal is None else self.settled(self.end(&got))]
        try:
            rc = CL_OK
            while rc == CL_OK:
                bodies.append(PyBytes_FromStringAndSize(<const char *>got.body, <Py_ssize_t>got.nbytes))
                if <uint64_t>len(bodies) >= most:
                    break
                rc = cl_queue_next(&self.q, &got, 0)
        except BaseException:  # there is no room for the copies: all stay where they are
            self.forget(&got)
            raise
        cl_queue_commit(&self.q)
        return self.load_all(bodies) if self._signal is None else self.settled(self.load_all(bodies))

    cdef list load_all(self, list bodies):
        cdef list items = []
        cdef Py_ssize_t bad = 0
        for body in bodies:
            try:
                items.append(body[0] if type(body) is tuple else load(body))
            except KeyboardInterrupt:  # no fault of the item: whoever takes next gets them all
                self.keep([(item,) for item in items] + bodies[len(items) + bad :])
                raise
            except BaseException as error:
                bad += 1
                if self.unread is None:
                    self.unread, self.unread_of = [], getpid()
                self.unread.append(error)
        if not items:
            self.tell_unread()
        return items

    # ---- looking

    def qsize(self):
        return cl_queue_size(<cl_queue_head *>self._need())

    def empty(self):
        # As the standard library's: OSError once closed, but for a Queue that was closed unused.
        if self.closed and (self.puts_of != 0 or not self._flags & (PLAIN_QUEUE | JOINABLE_QUEUE)):
            raise OSError(f"{self!r} is closed")
        if self._signal is not None:
            self._signal.settle()
        return cl_queue_size(<cl_queue_head *>self._need()) == 0

    def full(self):
        self._need()
        return self.q.most != 0 and cl_queue_size(<cl_queue_head *>self.head) >= self.q.most

    def _numbers(self):
        """(put, taken, bytes that lie in it, spilled, dropped, leases) so far."""
        cdef cl_queue_head *h = <cl_queue_head *>self._need()
        cdef uint64_t unfinished = cl_queue_unfinished(&self.q) if self.redelivers else 0, lie = cl_queue_size(h)
        cdef uint64_t taken = cl_seen64(&h.get.commit) >> 2  # before `put`, which is never less then
        return (cl_seen64(&h.put.commit) >> 2, taken, cl_queue_bytes(h), cl_seen64(&h.spilled), cl_seen64(&h.dropped),
                unfinished - lie if unfinished > lie else 0)  # more may have been put between the two looks

    def _deserted(self):
        """Whether nobody is left who could put: 1: all who did have said that they put no more, 2: one has died. See `cl_queue_deserted`."""
        cdef int rc
        self._need()
        with nogil:
            rc = cl_queue_deserted(&self.q)
        return rc

    @property
    def _ended(self):
        return cl_seen(&(<cl_queue_head *>self._need()).state)

    def _begin_with(self, uint64_t maxbytes):
        self._need().spare[0] = self.q.most_bytes = maxbytes

    def _deliver_at_most(self, uint64_t deliveries):
        self._need().spare[1] = self.q.deliveries = deliveries

    @property
    def _most_deliveries(self):
        self._need()
        return self.q.deliveries

    # ---- acknowledging, the end

    def _nack(self, uint64_t sequence):
        """Whether it was this process's, and is given back now."""
        cdef Wait wait = new_wait()
        cdef int rc = CL_AGAIN
        self._need()
        while rc == CL_AGAIN:
            with nogil:
                rc = cl_queue_nack(&self.q, sequence)
            rc = served(&wait, rc, CL_FOREVER)
        if rc == CL_MISSING:
            return False
        check(rc)
        return True

    def _discard(self, uint64_t sequence):
        """Whether there was such a dead letter."""
        cdef Wait wait = new_wait()
        cdef int rc = CL_AGAIN
        self._need()
        while rc == CL_AGAIN:
            with nogil:
                rc = cl_queue_discard(&self.q, sequence)
            rc = served(&wait, rc, CL_FOREVER)
        if rc == CL_MISSING:
            return False
        check(rc)
        return True

    def _dead_letters(self):
        """[(sequence, deliveries, its bytes, how many tokens they begin with)]."""
        cdef uint32_t at = 0, deliveries = 0
        cdef cl_got got
        cdef Wait wait = new_wait()
        cdef int rc
        found = []
        self._need()
        while True:
            with nogil:
                rc = cl_queue_dead_letter(&self.q, &at, &got, &deliveries)
            rc = served(&wait, rc, CL_FOREVER)
            if rc == CL_AGAIN:
                continue
            if rc == CL_MISSING:
                return found
            check(rc)
            block = stand(self.store, &got.payload, got.nbytes)
            found.append((got.sequence, deliveries, bytes(block), got.ntokens))

    def _load_letter(self, bytes data, uint32_t ntokens):
        """The object in a dead letter, in memory of its own."""
        return unpack(self.store, bytearray(data), ntokens, 0)

    def _done(self, uint64_t sequence):
        cdef Wait wait = new_wait()
        cdef int rc = CL_AGAIN
        self._need()
        while rc == CL_AGAIN:
            with nogil:
                rc = cl_queue_done(&self.q, sequence)
            rc = served(&wait, rc, CL_FOREVER)
        if rc == CL_MISSING:
            return False
        check(rc)
        return True

    def _unfinished(self):
        self._need()
        return cl_queue_unfinished(&self.q)

    def _join(self, timeout):
        """0: all is acknowledged; n: that many died with their consumers; -1: the time is over."""
        cdef int64_t deadline = deadline_of(timeout)
        cdef uint64_t lost = 0
        cdef Wait wait = new_wait()
        cdef int rc = CL_AGAIN
        self._need()
        while rc == CL_AGAIN:
            with nogil:
                rc = cl_queue_join(&self.q, deadline, &lost)
            rc = served(&wait, rc, CL_FOREVER)
        if rc == CL_OK:
            return 0
        if rc == CL_OWNER_DIED:
            return lost
        if rc == CL_TIMEOUT:
            return -1
        fail(rc)

    def _shut(self, bint now):
        cdef Wait wait = new_wait()
        cdef int rc = CL_AGAIN
        self._need()
        while rc == CL_AGAIN:
            with nogil:
                rc = cl_queue_shut(&self.q, now)
            rc = served(&wait, rc, CL_FOREVER)
        check(rc)

    # ---- what an event loop sleeps on

    def _watch_items(self):
        return watch(&(<cl_queue_head *>self._need()).put)

    def _watch_room(self):
        return watch(&(<cl_queue_head *>self._need()).get)


cdef tuple watch(cl_end *end):
    cdef uint64_t seen = cl_add_bits64(&end.commit, SLEEPS)
    return <uintptr_t>&end.commit, <uint32_t>seen


NOTHING_HERE = NOTHING
