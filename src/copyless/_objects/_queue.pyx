# cython: language_level=3, freethreading_compatible=True, auto_pickle=False
"""The binding of queue.h: bytes in and out of a queue, first without waiting and with the GIL, then in slices without it.

The public classes and their documentation are in `copyless.queues`. `copyless._transfer._codec` turns an object into bytes and
buffers.
"""
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset
from posix.unistd cimport getpid

from copyless._core._blocks cimport Block, Object, allocate, is_elsewhere, look_at_name, set_private, stand
from copyless._core._check cimport AT_ONCE, check, deadline_of, fail, new_wait, served, Wait
from copyless._core._store cimport tell_news, the_store
from copyless._core.c_library cimport (
    CL_AGAIN, cl_bells_heard, cl_bells_tell, CL_CLOSED, CL_CORRUPT, CL_FOREVER, CL_FULL, CL_INLINE_MAX, CL_KIND_QUEUE, CL_LEASES, CL_MAY_SPILL, CL_MAY_WAIT, CL_MISSING, CL_OK,
    CL_OWNER_DIED, CL_QUEUE_JOINABLE, CL_QUEUE_REDELIVER, CL_ROLE_CLOSED, CL_ROLE_GETS, CL_ROLE_PUTS, CL_STALE, CL_STAY, CL_TIMEOUT, cl_add_bits64,
    cl_block_ref, cl_copy, cl_end, cl_find_any, cl_got, cl_item, cl_lease, cl_queue_abort, cl_queue_attach, cl_queue_begin, cl_queue_bytes,
    cl_queue_commit, cl_queue_dead_letter, cl_queue_deserted, cl_queue_detach, cl_queue_discard, cl_queue_done, cl_queue_nack, cl_queue_head, cl_queue_is_late, cl_queue_join, cl_queue_needs_registry, cl_queue_next,
    cl_monotonic_ns,
    cl_queue_put, cl_queue_role, cl_queue_settle, cl_queue_shut, cl_queue_size, cl_queue_unfinished, cl_queue_use, cl_seen, cl_seen64, cl_stay_awake, cl_store, cl_token,
    cl_unsend, cl_watch,
)

from copyless._transfer._codec cimport Packed, Taken, pack, pack_walked, taken, unpack
from copyless._transfer._plain cimport NOTHING, PLAIN_MOST, Walk, load_plain, walk

import queue as _stdlib

from copyless._core._blocks import Late, private_view
from copyless._storage.store import tell_of_removal, tell_of_spilling
from copyless.errors import ClosedError, CorruptSegmentError, EndOfQueueError, ShutDown

HEAD_BYTES = sizeof(cl_queue_head)
LEASE_BYTES = sizeof(cl_lease)
LEASES = CL_LEASES
JOINABLE = CL_QUEUE_JOINABLE
REDELIVER = CL_QUEUE_REDELIVER
NAMED = NAMED_QUEUE

cdef enum:
    PLAIN_QUEUE = 4  # the class, in the flags of the head: see copyless.queues
    JOINABLE_QUEUE = 8
    NAMED_QUEUE = 16  # it was made with a name: a consumer may come after the producer has ended
    COPIED = 65536  # bytes
    SLEEPS = 2  # bit of a `commit`: a process sleeps on it
    HEARD_NS = 100000000  # the longest wait; after it, the other process is stopped or has no processor
    DESERTED_SLICES = 20  # slices of one second in all, in which another producer may start

cdef object Full = _stdlib.Full, Empty = _stdlib.Empty
cdef bint told_of_removal = False


cdef int tell(bint adrift) except -1:
    """Warn that items spill to files on disk, once for each reason."""
    global told_of_removal
    if not adrift:
        tell_of_spilling()
    elif not told_of_removal:
        told_of_removal = True
        tell_of_removal()
    return 0


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
        if self.q.head != NULL:  # it has its block already: a second `__setstate__`
            with nogil:
                cl_queue_detach(&self.q)
        Object._stand(self, block)
        rc = cl_queue_attach(&self.q, self.store, <cl_queue_head *>self.head, block.ref.capacity, block.number)
        check(rc)
        self.redelivers = (self.q.flags & CL_QUEUE_REDELIVER) != 0
        self.lasts = (self.q.flags & (CL_QUEUE_REDELIVER | NAMED_QUEUE)) != 0

    cdef int watch(self, cl_watch *out, uint32_t reader) except -1:
        out.store, out.head, out.closed = self.store, self._open_head(), &self.ready_here
        out.is_.kind, out.is_.room, out.is_.spare[1] = CL_KIND_QUEUE, self.q.leases, self.q.deliveries
        out.queue = &self.q
        return 0

    @property
    def _flags(self):
        self._open_head()
        return self.q.flags

    @property
    def _number(self):
        self._open_head()
        return self.q.most

    cdef int use(self, uint32_t role) except -1:
        if self.closed or self.head == NULL:
            raise ClosedError(f"{type(self).__name__} {self!r} is closed")
        if is_elsewhere(self.store):
            self._open_head()
        cl_queue_use(&self.q, role)
        if role == CL_ROLE_PUTS and self.puts_of != cl_seen(&self.q.self):
            self.puts_of = cl_seen(&self.q.self)
            self._puts()
        return 0

    def _will_put(self):
        """Record that this process puts items, before it puts the first one."""
        self.use(CL_ROLE_PUTS)

    def _close_role(self):
        """This process no longer puts or gets with this object."""
        self.closed = self.ready_here = True
        if self._signal is not None:
            self._signal.shut()
        if self.head != NULL and not is_elsewhere(self.store):
            cl_bells_tell(self.store, self.head)  # another thread of this process may wait for it
        self._say_goodbye()

    def _say_goodbye(self):
        """Record that this process puts no more. A wait on descriptors sees its items before it sees the end of the process."""
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
        """CL_OK or CL_TIMEOUT; with AT_ONCE, CL_AGAIN if another process is inside."""
        cdef Wait wait = new_wait()
        cdef bint at_once = deadline < 0
        cdef int rc
        self.use(CL_ROLE_PUTS)
        look_at_name(self)
        rc = cl_queue_put(&self.q, items, n, done, 0, 0)
        while rc == CL_AGAIN:
            with nogil:
                cl_stay_awake(at_once)
                rc = cl_queue_put(&self.q, items, n, done, 0 if at_once else deadline, CL_MAY_WAIT)
                cl_stay_awake(False)
            rc = served(&wait, rc, CL_FOREVER)
            if at_once and rc == CL_AGAIN:
                break
            if rc == CL_AGAIN:
                self.use(CL_ROLE_PUTS)
                look_at_name(self)
        if cl_seen64(&self.q.head.spilled) != 0:
            tell(self.store.adrift != 0)
        if cl_seen(&self.store.untold) != 0:
            tell_news(self.store)
        return rc

    cdef int refuse(self, int rc) except -1:
        if rc == CL_CLOSED:
            raise ShutDown(f"{type(self).__name__} {self!r} is shut down")
        fail(rc)

    def put(self, obj, block=True, timeout=None):
        """put(obj, block=True, timeout=None)

        Put an object into the queue. When this returns, a snapshot of the object is in shared memory and outlives this process.

        Parameters
        ----------
        obj
            Any object that can be pickled.
        block : bool
            If false, do not wait for room (`maxsize`, `maxbytes`).
        timeout : float or None
            Seconds to wait for room; None: without limit.

        Raises
        ------
        queue.Full
            If there is no room within the time.
        ShutDown
            If the queue was shut down.
        ClosedError
            If this object is closed.
        OutOfSharedMemory
            If memory and disk are full.
        UnsendableError
            For an object that can be received only once and only while this process lives (a connection, a socket, a tensor in
            torch's shared memory), if the queue has a name or redelivers.

        Notes
        -----
        An error of pickling is raised here, and the queue is unchanged. Costs for small plain values: one pickling and one copy,
        and no system call unless a consumer sleeps. Each buffer of 4 KiB or more is copied once; shared arrays are not copied.
        """
        cdef Packed packed
        cdef cl_item item
        cdef uint32_t done = 0
        cdef int rc
        if self.closed or self.head == NULL or is_elsewhere(self.store):
            self.use(CL_ROLE_PUTS)
        cdef int64_t deadline = self.deadline(block, timeout)
        cdef Walk walked
        cdef size_t n = walk(obj, &walked)
        if 0 < n <= PLAIN_MOST and walked.arrays.n == 0 and not self.redelivers:
            item.body, item.nbytes, item.tokens, item.ntokens, item.payload = walked.pickle, n, NULL, 0, NULL
            rc = self.insert(&item, 1, &done, deadline)
            if rc == CL_TIMEOUT:
                raise Full
            if rc != CL_OK:
                self.refuse(rc)
            return
        packed = pack_walked(self.store, obj, &walked, n, self.redelivers, self.lasts, NULL, 0, None, deadline)
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
        """The number of objects that were put; Full only if it is 0."""
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
        if rc != CL_OK and rc != CL_TIMEOUT and (rc != CL_FULL or done == 0):  # an error would hide that some were put
            self.refuse(rc)
        return done

    def _pack(self, obj, timeout=None):
        """An object as an item; `Full` if the registry was not free in time, or in a slice."""
        self.use(CL_ROLE_PUTS)
        return pack(self.store, obj, self.redelivers, self.lasts, NULL, 0, None, deadline_of(timeout))

    def _try_pack(self, obj):
        """The same, for an event loop: `Late` if the registry is not free now. Does not sleep."""
        self.use(CL_ROLE_PUTS)
        return pack(self.store, obj, self.redelivers, self.lasts, NULL, 0, None, AT_ONCE)

    def _try_put(self, Packed packed):
        """Whether there was room. For an event loop: `Late` if a lock is not free now. Does not sleep."""
        cdef cl_item item
        cdef uint32_t done = 0
        cdef int rc
        packed.describe(&item)
        rc = self.insert(&item, 1, &done, AT_ONCE)
        if done:
            packed.was_given()
        if rc == CL_TIMEOUT:
            return False
        if rc == CL_AGAIN:
            raise Late
        if rc != CL_OK:
            self.refuse(rc)
        return True

    # ---- get

    cdef int begin(self, int64_t deadline, cl_got *got, bint ends=False) except -100:
        """CL_OK: `got` is taken, under the lock unless it is `settled`; call `finish` next. CL_TIMEOUT: there is no item, or another
        thread has kept one meanwhile. With AT_ONCE, CL_AGAIN if another process is inside."""
        cdef Wait wait = new_wait()
        cdef int rc, slices = 0, deserted = 0
        cdef bint late, at_once = deadline < 0
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
        if at_once:
            deadline = 0
        while True:
            with nogil:
                late, begun = False, cl_monotonic_ns()
                cl_stay_awake(at_once)
                rc = cl_queue_begin(&self.q, deadline, CL_MAY_WAIT)
                if rc == CL_OK:
                    rc = cl_queue_next(&self.q, got, CL_MAY_WAIT)
                    if rc == CL_MISSING:  # a lease that was not needed any more
                        cl_queue_abort(&self.q)
                        rc = CL_AGAIN
                    elif rc == CL_STALE or rc == CL_CORRUPT:
                        if cl_queue_commit(&self.q) != CL_OK:  # no process can ever take this item: skip it
                            cl_queue_abort(&self.q)
                    elif rc != CL_OK:
                        cl_queue_abort(&self.q)
                        late = rc == CL_AGAIN
                    elif cl_queue_needs_registry(&self.q):
                        rc = cl_queue_settle(&self.q, got)
                        late = rc == CL_AGAIN
                cl_stay_awake(False)
            if rc == CL_OK:
                return rc
            if rc == CL_TIMEOUT:
                look_at_name(self)
                return rc
            if rc != CL_AGAIN:
                self.refuse(rc)
            if late and cl_queue_is_late(begun, deadline):  # the item is still there; the registry's lock was not free
                return CL_TIMEOUT
            served(&wait, CL_AGAIN, CL_FOREVER)
            self.use(CL_ROLE_GETS)
            if at_once:
                return CL_AGAIN
            if self.kept is not None and self.has_kept():
                return CL_TIMEOUT
            if not late:
                look_at_name(self)
            slices += 1
            if (ends or deadline == CL_FOREVER) and slices % 4 == 0:
                with nogil:
                    rc = cl_queue_deserted(&self.q)
                deserted = deserted + 4 if rc >= (1 if ends else 2) else 0
                if deserted >= DESERTED_SLICES:
                    raise EndOfQueueError(f"no process is left that can put into {self!r}: all its producers have "
                                          "ended or closed it, and no other process has it")

    cdef int tell_unread(self) except -1:
        """Raise the error of the next item that `get_many` took and could not load."""
        if self.unread_of != getpid():  # they belong to the parent, which gets the errors
            self.unread = None
            return 0
        error = self.unread.pop(0)
        if not self.unread:
            self.unread = None
        raise error

    cdef bint has_kept(self) except -1:
        """Whether this process has items that it took and could not load: after Ctrl-C, or a timeout."""
        self._open_head()
        if self.kept_of != getpid():
            self.keep_only(None)
        return self.kept is not None

    cdef object next_kept(self, int64_t deadline):
        """The next of these items: (object,), or an item to load."""
        entry = self.kept[0]
        self.keep_only(self.kept[1:] or None)
        if type(entry) is tuple:
            return entry[0]
        return self.loaded(taken(self.store, entry, 0, 0, -1) if type(entry) is bytes else entry, deadline)

    cdef int keep(self, list entries) except -1:
        self.keep_only(entries + (self.kept or []))
        self.kept_of = getpid()
        return 0

    cdef int keep_only(self, list entries) except -1:
        """Wake waits for the queue, as if the item were still in it."""
        self.kept = entries
        self.ready_here = self.closed or entries is not None
        if self._signal is not None:
            self._signal.keep(entries is not None)
        if entries is not None and self.head != NULL and not is_elsewhere(self.store):
            cl_bells_tell(self.store, self.head)  # another thread may wait for it
        return 0

    @property
    def _keeps(self):
        return self.kept is not None and self.has_kept()

    cdef object loaded(self, Taken entry, int64_t deadline):
        """The object of an item that was taken. If it cannot be loaded in time, or after Ctrl-C, it is kept for the next `get`."""
        try:
            obj = entry.load(deadline)
        except Late:
            self.keep([entry])
            if deadline == AT_ONCE:
                raise
            raise Empty from None
        except BaseException as error:
            if entry.sequence >= 0:
                self._nack(entry.sequence)  # no consumer has it: it is delivered again, or becomes a dead letter
            elif isinstance(error, KeyboardInterrupt):
                self.keep([entry])
            raise
        return obj if entry.sequence < 0 else self._leased(entry.sequence, obj)

    cdef object end(self, cl_got *got, int64_t deadline):
        """Commit the item that was taken, and load its object."""
        cdef uint8_t plain[PLAIN_MOST]
        if got.body != NULL and got.ntokens == 0 and got.nbytes <= PLAIN_MOST:
            memcpy(plain, got.body, got.nbytes)
            self.finish(got)
            value = load_plain(plain, got.nbytes)
            if value is not NOTHING:
                return value
            body = PyBytes_FromStringAndSize(<char *>plain, <Py_ssize_t>got.nbytes)
            return self.loaded(taken(self.store, body, 0, 0, -1), deadline)
        if not self.redelivers:
            return self.loaded(taken(self.store, self.body(got), got.ntokens, 0, -1), deadline)
        try:
            body = self.body(got)
        except BaseException:
            self._nack(got.sequence)
            raise
        return self.loaded(taken(self.store, body, got.ntokens, 0, <int64_t>got.sequence), deadline)

    cdef object body(self, cl_got *got):
        """Commit the item that was taken. Returns its bytes, which belong to this process."""
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
            # Private memory of the consumer: a copy if that is cheaper than mapping the block again.
            return bytearray(block) if got.nbytes <= COPIED else private_view(block)
        set_private(block)
        return block

    cdef void finish(self, cl_got *got) noexcept:
        """The item was copied: release the lock."""
        if not got.settled:
            cl_queue_commit(&self.q)
        elif got.body != NULL:
            free(<void *>got.body)

    cdef void forget(self, cl_got *got) noexcept:
        """There is no room for a copy: leave the item in the queue, if possible."""
        if not got.settled:
            cl_queue_abort(&self.q)
        else:
            self.finish(got)

    def get(self, block=True, timeout=None):
        """get(block=True, timeout=None)

        Take the first object from the queue.

        Parameters
        ----------
        block : bool
            If false, do not wait for an object.
        timeout : float or None
            Seconds to wait for an object; None: without limit.

        Raises
        ------
        queue.Empty
            If there is no object within the time; never earlier.
        ShutDown
            If the queue is empty and was shut down.
        EndOfQueueError
            Without a timeout: if a producer has died, all other producers have ended or closed the queue, and no other process
            that could put has it.
        ClosedError
            If this object is closed.

        Notes
        -----
        Large buffers are not copied: the object uses the memory that they lie in, which now belongs to this process alone.
        """
        cdef cl_got got
        cdef int64_t deadline = self.deadline(block, timeout)
        if self.kept is not None and self.has_kept():
            return self.next_kept(deadline)
        if self.begin(deadline, &got) == CL_TIMEOUT:
            if self.kept is not None and self.has_kept():
                return self.next_kept(deadline)
            if self._signal is not None:
                self._signal.settle()
            raise Empty
        if self._signal is not None:
            return self.settled(self.end(&got, deadline))
        return self.end(&got, deadline)

    cdef object settled(self, obj):
        """An item was taken: if it was the last, the descriptor is no longer readable."""
        self._signal.settle()
        return obj

    def _next(self, timeout=None):
        """`get` for iteration, which also ends if all producers have ended normally."""
        cdef cl_got got
        cdef int64_t deadline = self.deadline(True, timeout)
        if self.kept is not None and self.has_kept():
            return self.next_kept(deadline)
        if self.begin(deadline, &got, True) == CL_TIMEOUT:
            if self.kept is not None and self.has_kept():
                return self.next_kept(deadline)
            raise Empty
        return self.end(&got, deadline) if self._signal is None else self.settled(self.end(&got, deadline))

    def _leased(self, sequence, obj):
        return obj

    def _puts(self):
        """Called when this process puts for the first time."""

    def _try_get(self):
        """The next item, or `NOTHING`. For an event loop: `Late` if a lock is not free now. Does not sleep."""
        cdef cl_got got
        cdef int rc
        if self.kept is not None and self.has_kept():
            return self.next_kept(AT_ONCE)
        rc = self.begin(AT_ONCE, &got)
        if rc == CL_AGAIN:
            raise Late
        if rc == CL_TIMEOUT:
            return NOTHING if self._signal is None else self.settled(NOTHING)
        return self.end(&got, AT_ONCE) if self._signal is None else self.settled(self.end(&got, AT_ONCE))

    def get_many(self, max_items=None, block=True, timeout=None):
        """A list of the available objects: at least one, at most `max_items`."""
        cdef cl_got got
        cdef uint64_t most = 0xffffffff if max_items is None else max_items
        cdef list bodies
        cdef int64_t deadline
        if max_items is not None and max_items < 1:
            raise ValueError(f"max_items must be 1 or more, not {max_items}")
        deadline = self.deadline(block, timeout)
        if not (self.kept is not None and self.has_kept()):
            if self.begin(deadline, &got) == CL_TIMEOUT:
                if not (self.kept is not None and self.has_kept()):
                    raise Empty
            else:
                return self.many(&got, most, deadline)
        bodies = self.kept[:most]
        self.keep_only(self.kept[most:] or None)
        return self.load_all(bodies, deadline)

    cdef list many(self, cl_got *got, uint64_t most, int64_t deadline):
        """The rest of `get_many`, after the first item."""
        cdef int rc
        cdef list bodies = []
        if got.settled or got.body == NULL or got.ntokens:
            return [self.end(got, deadline) if self._signal is None else self.settled(self.end(got, deadline))]
        try:
            rc = CL_OK
            while rc == CL_OK:
                bodies.append(PyBytes_FromStringAndSize(<const char *>got.body, <Py_ssize_t>got.nbytes))
                if <uint64_t>len(bodies) >= most:
                    break
                rc = cl_queue_next(&self.q, got, 0)
        except BaseException:  # there is no room for the copies: all items stay in the queue
            self.forget(got)
            raise
        cl_queue_commit(&self.q)
        return self.load_all(bodies, deadline) if self._signal is None else self.settled(self.load_all(bodies, deadline))

    cdef list load_all(self, list bodies, int64_t deadline):
        cdef list items = []
        cdef Taken entry
        cdef Py_ssize_t bad = 0
        for body in bodies:
            try:
                if type(body) is tuple:
                    items.append(body[0])
                    continue
                value = load_plain(<const uint8_t *>PyBytes_AS_STRING(body), len(body)) if type(body) is bytes else NOTHING
                if value is not NOTHING:
                    items.append(value)
                    continue
                entry = taken(self.store, body, 0, 0, -1) if type(body) is bytes else body
                value = entry.load(deadline)
                items.append(value if entry.sequence < 0 else self._leased(entry.sequence, value))
            except KeyboardInterrupt:  # not an error of the item: the next call gets all of them
                self.keep([(item,) for item in items] + bodies[len(items) + bad :])
                raise
            except Late:
                self.keep(bodies[len(items) + bad :])
                if not items:
                    raise Empty from None
                return items
            except BaseException as error:
                bad += 1
                if type(body) is Taken and (<Taken>body).sequence >= 0:
                    self._nack((<Taken>body).sequence)
                if self.unread is None:
                    self.unread, self.unread_of = [], getpid()
                self.unread.append(error)
        if not items:
            self.tell_unread()
        return items

    # ---- state

    def qsize(self):
        """qsize()

        The number of items in the queue; with other processes at work it may change at once.
        """
        return cl_queue_size(<cl_queue_head *>self._open_head()) + (len(self.kept) if self.kept is not None and self.has_kept() else 0)

    def empty(self):
        """empty()

        Whether the queue has no items. Raises OSError if it is closed.
        """
        # As in the standard library: OSError after close, except for a Queue that was closed unused.
        if self.closed and (self.puts_of != 0 or not self._flags & (PLAIN_QUEUE | JOINABLE_QUEUE)):
            raise OSError(f"{self!r} is closed")
        if self._signal is not None:
            self._signal.settle()
        return cl_queue_size(<cl_queue_head *>self._open_head()) == 0 and not (self.kept is not None and self.has_kept())

    def full(self):
        """full()

        Whether the queue has `maxsize` items.
        """
        self._open_head()
        return self.q.most != 0 and cl_queue_size(<cl_queue_head *>self.head) >= self.q.most

    def _numbers(self):
        """(put, taken, bytes in the queue, spilled, dropped, leases)."""
        cdef cl_queue_head *h = <cl_queue_head *>self._open_head()
        cdef uint64_t unfinished = cl_queue_unfinished(&self.q) if self.redelivers else 0, lie = cl_queue_size(h)
        cdef uint64_t taken = cl_seen64(&h.get.commit) >> 2  # read before `put`, which then is never less
        return (cl_seen64(&h.put.commit) >> 2, taken, cl_queue_bytes(h), cl_seen64(&h.spilled), cl_seen64(&h.dropped),
                unfinished - lie if unfinished > lie else 0)  # more may have been put between the two reads

    def _deserted(self):
        """Whether no producer is left: 1: all have recorded that they put no more, 2: one has died. See `cl_queue_deserted`."""
        cdef int rc
        self._open_head()
        with nogil:
            rc = cl_queue_deserted(&self.q)
        return rc

    @property
    def _ended(self):
        return cl_seen(&(<cl_queue_head *>self._open_head()).state)

    def _begin_with(self, uint64_t maxbytes):
        self._open_head().spare[0] = self.q.most_bytes = maxbytes

    def _deliver_at_most(self, uint64_t deliveries):
        self._open_head().spare[1] = self.q.deliveries = deliveries

    @property
    def _most_deliveries(self):
        self._open_head()
        return self.q.deliveries

    # ---- acknowledging, ending

    def _nack(self, uint64_t sequence):
        """Give an item back. Returns whether this process had it."""
        cdef Wait wait = new_wait()
        cdef int rc = CL_AGAIN
        self._open_head()
        while rc == CL_AGAIN:
            with nogil:
                rc = cl_queue_nack(&self.q, sequence)
            rc = served(&wait, rc, CL_FOREVER)
        if rc == CL_MISSING:
            return False
        check(rc)
        return True

    def _discard(self, uint64_t sequence):
        """Discard a dead letter. Returns whether it existed."""
        cdef Wait wait = new_wait()
        cdef int rc = CL_AGAIN
        self._open_head()
        while rc == CL_AGAIN:
            with nogil:
                rc = cl_queue_discard(&self.q, sequence)
            rc = served(&wait, rc, CL_FOREVER)
        if rc == CL_MISSING:
            return False
        check(rc)
        return True

    def _dead_letters(self):
        """[(sequence, deliveries, bytes, number of tokens at their beginning)]."""
        cdef uint32_t at = 0, deliveries = 0
        cdef cl_got got
        cdef Wait wait = new_wait()
        cdef int rc
        found = []
        self._open_head()
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
        """The object of a dead letter, in private memory."""
        return unpack(self.store, bytearray(data), ntokens, 0)

    def _done(self, uint64_t sequence):
        cdef Wait wait = new_wait()
        cdef int rc = CL_AGAIN
        self._open_head()
        while rc == CL_AGAIN:
            with nogil:
                rc = cl_queue_done(&self.q, sequence)
            rc = served(&wait, rc, CL_FOREVER)
        if rc == CL_MISSING:
            return False
        check(rc)
        return True

    def _unfinished(self):
        self._open_head()
        return cl_queue_unfinished(&self.q)

    def _join(self, timeout):
        """0: all items are acknowledged; n: so many were lost with their consumers; -1: timeout."""
        cdef int64_t deadline = deadline_of(timeout)
        cdef uint64_t lost = 0
        cdef Wait wait = new_wait()
        cdef int rc = CL_AGAIN
        self._open_head()
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
        self._open_head()
        while rc == CL_AGAIN:
            with nogil:
                rc = cl_queue_shut(&self.q, now)
            rc = served(&wait, rc, CL_FOREVER)
        check(rc)

    # ---- words for event loops to sleep on

    def _watch_items(self):
        return watch(&(<cl_queue_head *>self._open_head()).put)

    def _watch_room(self):
        return watch(&(<cl_queue_head *>self._open_head()).get)


cdef tuple watch(cl_end *end):
    cdef uint64_t seen = cl_add_bits64(&end.commit, SLEEPS)
    return <uintptr_t>&end.commit, <uint32_t>seen


NOTHING_HERE = NOTHING
