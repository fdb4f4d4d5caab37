# cython: language_level=3, freethreading_compatible=True, auto_pickle=False
"""An object as the bytes and buffers of a message in shared memory, and back.

The bytes of a message begin with its tokens (16 bytes for each hold on memory that it names). Then comes a pickle; or byte 72
and the handle of a shared array; or, if large buffers are beside the pickle, the number 67 in 32 bits, the number of buffers,
the length of the pickle, the lengths of the buffers, the pickle, and the buffers, aligned to 64 bytes.
"""
cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy
from posix.unistd cimport getpid

from copyless._core._blocks cimport allocate, gather, hurry
from copyless._core._check cimport AT_ONCE
from copyless._core._copying cimport copy_into, room_of
from copyless._core._handles cimport token_of
from copyless._core._pickles cimport loads_at
from copyless._core.c_library cimport CL_AGAIN, CL_INLINE_MAX, CL_MAY_SPILL, CL_MAY_WAIT, CL_STAY, cl_copy, cl_item, cl_store, cl_token, cl_unsend
from copyless._transfer._plain cimport NOTHING, arrays_come, load_plain, take_arrays, walk

from queue import Full

from copyless._core import _handles
from copyless._core._blocks import Late
from copyless._transfer import reductions
from copyless.errors import CorruptSegmentError

cdef enum:
    COMPOSITE = 67
    HANDLE = 72

cdef object FOR_QUEUE = None
cdef tuple ARRAYS = ()


cdef object handle_of_array(obj):
    """The handle of an array in shared memory, with a hold that a queue may take over; None for anything else."""
    global FOR_QUEUE, ARRAYS
    if not ARRAYS:
        if not arrays_come():
            return None
        from copyless._transfer import array_reductions
        FOR_QUEUE, ARRAYS = array_reductions.for_queue, array_reductions.ARRAYS
    return FOR_QUEUE(obj) if type(obj) in ARRAYS else None


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
            self.block.ref.data = NULL  # its hold belongs to the queue now


cdef void unsend(cl_store *store, const cl_token *tokens, uint32_t n) noexcept:
    # Deferred after one slice without the registry's lock. If there is no memory for that, the hold ends with this process.
    cdef uint32_t i
    cdef int rc, failed = 0
    for i in range(n):
        rc = cl_unsend(store, tokens[i].hold, tokens[i].nonce, 0)
        while rc == CL_AGAIN and failed < 20:
            with nogil:
                rc = cl_unsend(store, tokens[i].hold, tokens[i].nonce, CL_MAY_WAIT)
            failed += rc == CL_AGAIN


cdef object take_back(list handles):
    """Holds that no item will carry."""
    for handle in handles:
        _handles.unsend(handle)


cdef Packed pack(cl_store *store, obj, bint in_block, bint lasting, const uint8_t *label, uint32_t nlabel, watch, int64_t deadline):
    """An object as a message, behind a label for its receiver.

    `lasting`: it may be taken twice, or after this process has ended. `watch(bytes)`, if given, is the context of copying large
    buffers. Raises Full if the registry's lock is not free by the deadline; with AT_ONCE, Late if it is not free now.
    """
    cdef Walk walked
    cdef size_t n = walk(obj, &walked)
    return pack_walked(store, obj, &walked, n, in_block, lasting, label, nlabel, watch, deadline)


cdef Packed pack_walked(cl_store *store, obj, Walk *walked, size_t nbytes, bint in_block, bint lasting,
                        const uint8_t *label, uint32_t nlabel, watch, int64_t deadline):
    """As `pack`, for an object that `walk` has pickled into so many bytes."""
    cdef list beside = take_arrays(walked, &nbytes) if walked.arrays.n else []
    cdef int64_t before = hurry(deadline)
    try:
        return pack_in_time(store, obj, walked, nbytes, beside, in_block, lasting, label, nlabel, watch)
    except Late:
        if deadline == AT_ONCE:
            raise
        raise Full from None
    finally:
        hurry(before)


cdef Packed pack_in_time(cl_store *store, obj, Walk *walked, size_t nbytes, list beside, bint in_block, bint lasting,
                         const uint8_t *label, uint32_t nlabel, watch):
    if nbytes != 0:
        data = PyBytes_FromStringAndSize(<char *>walked.pickle, nbytes)
        return lay_out(store, data, beside, [], in_block, label, nlabel, watch)
    handle = handle_of_array(obj)
    if handle is not None:
        return lay_out(store, b"H" + <bytes>handle, [], [handle], in_block, label, nlabel, watch)
    from copyless._transfer import packing
    data, beside, handles = packing.pickled(obj, lasting=lasting)
    return lay_out(store, data, beside, handles, in_block, label, nlabel, watch)


cdef Packed lay_out(cl_store *store, bytes data, list buffers, list handles, bint in_block, const uint8_t *label, uint32_t nlabel, watch):
    """A message of a pickle, the buffers beside it, and the holds of its handles, which the message takes over."""
    cdef Packed packed = Packed.__new__(Packed)
    cdef uint64_t at, total, n, start
    cdef uint64_t *lengths
    cdef uint8_t *out
    cdef const void *source
    cdef cl_store *of
    packed.store = store
    if handles:
        i = 0
        try:
            packed.tokens = <cl_token *>malloc(len(handles) * sizeof(cl_token))
            if packed.tokens == NULL:
                raise MemoryError
            for handle in handles:
                of = token_of(handle, store, &packed.tokens[packed.ntokens])  # the handle of a file has no hold
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
            take_back(handles[i:])  # `packed` releases the others
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
    value = load_plain(<const uint8_t *>PyBytes_AS_STRING(body), len(body))
    if value is not NOTHING:
        return value
    if len(body) > 0 and PyBytes_AS_STRING(body)[0] == HANDLE:
        return reductions.load(body[1:])
    return loads_at(<const uint8_t *>PyBytes_AS_STRING(body), len(body), body, None)


cdef object unpack(cl_store *store, body, uint32_t ntokens, uint32_t nlabel):
    """The object in the bytes of an item; its buffers are these bytes, and writable if they are.

    Raises Late if the registry's lock is not free in time, KeyboardInterrupt after Ctrl-C: the tokens are unchanged then, and can
    be loaded again or released.
    """
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
            value = reductions.load(PyBytes_FromStringAndSize(<const char *>p + at + 1, <Py_ssize_t>(total - at - 1)))
            ntokens = 0  # it took over the hold
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
    except (Late, KeyboardInterrupt):
        ntokens = 0
        raise
    finally:
        PyBuffer_Release(&view)
        if tokens != NULL:
            unsend(store, tokens, ntokens)  # the holds that loading did not take over
            free(tokens)


@cython.no_gc_clear  # its tokens are in its bytes
cdef class Taken:
    """An item that this process took from a queue and could not load in time. It holds the memory that the item names."""

    cdef object load(self, int64_t deadline):
        """The object. After Late or KeyboardInterrupt nothing is lost, and this may be called again."""
        cdef int64_t before = hurry(deadline)
        cdef PyObject *outer
        cdef uint32_t ntokens = self.ntokens
        if self.blocks is None:
            self.blocks = []
        outer = gather(<PyObject *>self.blocks)
        self.ntokens = 0
        try:
            return unpack(self.store, self.body, ntokens, self.nlabel)
        except (Late, KeyboardInterrupt):
            self.ntokens = ntokens
            raise
        finally:
            gather(outer)
            hurry(before)

    def __dealloc__(self):
        cdef Py_buffer view
        if self.ntokens == 0 or self.sequence >= 0 or self.pid != getpid():
            return
        PyObject_GetBuffer(self.body, &view, PyBUF_SIMPLE)
        unsend(self.store, <const cl_token *>view.buf, self.ntokens)
        PyBuffer_Release(&view)


cdef Taken taken(cl_store *store, body, uint32_t ntokens, uint32_t nlabel, int64_t sequence):
    cdef Taken made = Taken.__new__(Taken)
    made.store, made.body, made.ntokens, made.nlabel, made.sequence, made.pid = store, body, ntokens, nlabel, sequence, getpid()
    return made
