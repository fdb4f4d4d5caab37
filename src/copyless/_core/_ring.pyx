# cython: language_level=3, freethreading_compatible=True, auto_pickle=False
"""The binding of ring.h: claiming, publishing and lending slots; first without waiting and with the GIL, then in slices without.

The public classes and their documentation are in `copyless.rings`.
"""
cimport cython
from cpython.buffer cimport PyBuffer_FillInfo
from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset
from posix.unistd cimport getpid

from copyless._core._blocks cimport Block, Object, is_elsewhere, look_at_name, set_private
from copyless._core._check cimport check, deadline_of, fail, new_wait, served, Wait
from copyless._core.c_library cimport (
    CL_AGAIN, CL_BELL_SLEEP, CL_CLOSED, CL_FOREVER, CL_KIND_RING, CL_MAY_WAIT, CL_OK, CL_READER_BLOCKS, CL_READER_DEMOTED, CL_READER_DROPS,
    CL_READER_POLICY, CL_RING_MAY_BLOCK, CL_RING_MEMBERS, CL_RING_MEMBERS_MAX, CL_RING_OPEN, CL_STALE, CL_TIMEOUT, cl_add_bits, cl_au32, cl_copy,
    cl_frame, cl_owner_pid, cl_reader, cl_ring, cl_ring_attach, cl_ring_begin, cl_ring_release_dead, cl_ring_bytes, cl_ring_claim, cl_ring_count,
    cl_ring_counts, cl_ring_detach, cl_ring_give_up, cl_ring_head, cl_ring_last, cl_ring_latest, cl_ring_members, cl_ring_next, cl_ring_publish,
    cl_ring_return, cl_ring_shut, cl_ring_spec, cl_ring_subscribe, cl_ring_unsubscribe, cl_seen, cl_seen64, cl_self, cl_watch,
)

from copyless.errors import ClosedError, WrongProcessError

MAY_BLOCK, MEMBERS, MEMBERS_MAX = CL_RING_MAY_BLOCK, CL_RING_MEMBERS, CL_RING_MEMBERS_MAX


def ring_bytes(uint32_t slots, uint32_t members, uint64_t stride, uint64_t spec):
    return cl_ring_bytes(slots, cl_ring_members(members), stride, spec)


def begin(Block block, uint32_t slots, uint32_t members, uint64_t stride, bytes spec, int64_t block_timeout_ns):
    """Fill in the head of a new ring."""
    cdef cl_ring_head *head = <cl_ring_head *>block.ref.data
    cdef uint32_t room = cl_ring_members(members)
    cl_ring_begin(head, slots, room, stride, len(spec))
    head.head.spare[1] = block_timeout_ns
    memcpy(cl_ring_spec(head, slots, room), <const char *>spec, len(spec))


@cython.no_gc_clear  # the garbage collector would remove the ring before the slot is returned
cdef class Loan:
    """The memory of one slot. Arrays over it keep it; when the last one is deleted, the slot is returned."""
    cdef _Ring ring
    cdef readonly uint32_t slot
    cdef readonly bint writable
    cdef uint32_t self
    cdef Claim claim
    cdef object __weakref__

    def __getbuffer__(self, Py_buffer *view, int flags):
        PyBuffer_FillInfo(view, self, self.ring.r.data + self.slot * self.ring.r.stride, <Py_ssize_t>self.ring.r.stride,
                          not self.writable, flags)

    def __dealloc__(self):
        if self.claim is not None:
            self.claim.lost_its_memory()
        elif self.ring is not None and self.self == cl_self(self.ring.store):
            with nogil:
                cl_ring_return(&self.ring.r, self.slot)


@cython.no_gc_clear  # as above
cdef class Claim:
    """A slot that is being written. It is published only when nothing can write to it any more."""
    cdef _Ring ring
    cdef readonly uint32_t slot
    cdef uint32_t self
    cdef readonly bint writable_elsewhere  # its memory still has views
    cdef bint undecided

    cdef void lost_its_memory(self) noexcept:
        self.writable_elsewhere = False
        if not self.undecided:
            self.give_up()

    cdef void give_up(self) noexcept:
        if self.self == cl_self(self.ring.store):
            with nogil:
                cl_ring_give_up(&self.ring.r, self.slot)

    def memory(self):
        """The writable memory of the slot."""
        cdef Loan loan = Loan.__new__(Loan)
        loan.ring, loan.slot, loan.writable, loan.claim, loan.self = self.ring, self.slot, True, self, self.self
        self.writable_elsewhere = True
        return loan

    def publish(self):
        """Publish the slot as a frame. Returns (sequence number, nanoseconds)."""
        cdef cl_frame frame
        cdef int rc
        if self.self != cl_self(self.ring.store):
            raise WrongProcessError("this frame is being written by the parent process: acquire another in this one")
        if not self.undecided:  # the slot may belong to another claim of this process by now
            raise ClosedError("this frame was already published or discarded")
        rc = cl_ring_publish(&self.ring.r, self.slot, &frame)
        if rc == CL_OK:
            self.undecided = False  # otherwise the slot is returned when the claim is deleted
        check(rc)
        return frame.seq, frame.time_ns

    def discard(self):
        """Return the slot, now or when the last view of its memory is deleted."""
        if self.undecided:
            self.undecided = False
            if not self.writable_elsewhere:
                self.give_up()

    def fill_from(self, Claim other):
        """Copy the bytes of another slot into this one."""
        cdef uint8_t *to = self.ring.r.data + self.slot * self.ring.r.stride
        cdef const uint8_t *source = other.ring.r.data + other.slot * other.ring.r.stride
        cdef uint64_t n = self.ring.r.stride
        with nogil:
            cl_copy(to, source, n, n)

    def __dealloc__(self):
        if self.ring is not None and self.undecided:
            self.undecided = False
            self.give_up()


cdef class Seat:
    """A place among the readers, until it is left or deleted. It is recorded before C returns, so that no signal comes in between."""
    cdef _Ring ring
    cdef readonly uint32_t reader
    cdef int pid

    def leave(self):
        self.go()

    cdef void go(self) noexcept:
        """Leave the place; not in a forked child, because it belongs to the parent."""
        cdef _Ring ring = self.ring
        self.ring = None
        if ring is not None and self.pid == getpid() and ring.r.head != NULL:
            with nogil:
                cl_ring_unsubscribe(&ring.r, self.reader)

    def __dealloc__(self):
        self.go()


cdef class _Ring(Object):
    KIND = CL_KIND_RING
    cdef cl_ring r
    cdef public bint closed

    def __cinit__(self, *args, **kwargs):
        memset(&self.r, 0, sizeof(self.r))

    def __dealloc__(self):
        if self.r.head != NULL:
            with nogil:
                cl_ring_detach(&self.r)

    def _stand(self, Block block):
        cdef int rc
        if self.r.head != NULL:  # it has its block already: a second `__setstate__`
            with nogil:
                cl_ring_detach(&self.r)
        Object._stand(self, block)
        rc = cl_ring_attach(&self.r, self.store, <cl_ring_head *>self.head, block.ref.capacity, block.number)
        check(rc)
        set_private(block)  # arrays of a frame are sent on by value, because its slot is reused

    cdef int watch(self, cl_watch *out, uint32_t reader) except -1:
        if reader >= self.r.room:
            raise TypeError(f"wait() cannot wait for {self!r}: wait for a subscription, sub = ring.subscribe()")
        self.be_open()
        out.store, out.head, out.closed = self.store, self._open_head(), <const int *>&self.closed
        out.is_.kind, out.is_.number, out.is_.room = CL_KIND_RING, self.r.slots, self.r.room
        out.reader, out.self = reader, cl_seen(&self.r.self)
        return 0

    @property
    def _spec(self):
        self._open_head()
        return PyBytes_FromStringAndSize(<char *>self.r.spec, <Py_ssize_t>self.r.spec_bytes)

    @property
    def _stride(self):
        self._open_head()
        return self.r.stride

    @property
    def _flags(self):
        self._open_head()
        return self.r.flags

    @property
    def _number(self):
        self._open_head()
        return self.r.slots

    @property
    def _room(self):
        self._open_head()
        return self.r.room

    cdef int be_open(self) except -1:
        if self.closed or self.head == NULL:
            raise ClosedError(f"this {type(self).__name__} is closed")
        if is_elsewhere(self.store):
            self._open_head()
        return 0

    cdef int refuse(self, int rc) except -1:
        if rc == CL_CLOSED:
            raise ClosedError(f"{self!r} is shut down")
        fail(rc)

    cdef Loan lend(self, cl_frame *frame):
        """What C has lent; where there is no memory for that, it is given back."""
        cdef Loan loan
        try:
            loan = Loan.__new__(Loan)
        except BaseException:
            cl_ring_return(&self.r, frame.slot)
            raise
        loan.ring, loan.slot, loan.self = self, frame.slot, cl_seen(&self.r.self)
        return loan

    def _claim(self, timeout):
        """A Claim, or None if no slot became free in the time."""
        cdef int64_t deadline = deadline_of(timeout), since = 0
        cdef uint32_t slot = 0
        cdef Claim claim
        cdef Wait wait = new_wait()
        cdef int rc
        self.be_open()
        look_at_name(self)
        rc = cl_ring_claim(&self.r, 0, 0, &since, &slot)
        while rc == CL_AGAIN:
            with nogil:
                rc = cl_ring_claim(&self.r, deadline, CL_MAY_WAIT, &since, &slot)
            rc = served(&wait, rc, CL_FOREVER)
            if rc == CL_AGAIN:
                self.be_open()
                look_at_name(self)
        if rc == CL_TIMEOUT:
            return None
        if rc != CL_OK:
            self.refuse(rc)
        try:
            claim = Claim.__new__(Claim)
        except BaseException:
            cl_ring_give_up(&self.r, slot)
            raise
        claim.ring, claim.slot, claim.self, claim.undecided = self, slot, cl_seen(&self.r.self), True
        return claim

    def _latest(self, uint64_t after, timeout):
        """(loan, sequence number, nanoseconds, 0), or None."""
        cdef int64_t deadline = deadline_of(timeout)
        cdef cl_frame frame
        cdef Wait wait = new_wait()
        cdef int rc
        self.be_open()
        if after == 0:  # the newest frame: in the ring that has the name now
            look_at_name(self)
        rc = cl_ring_latest(&self.r, after, 0, 0, &frame)
        while rc == CL_AGAIN:
            with nogil:
                rc = cl_ring_latest(&self.r, after, deadline, CL_MAY_WAIT, &frame)
            rc = served(&wait, rc, CL_FOREVER)
            if rc == CL_AGAIN:
                self.be_open()
                look_at_name(self)
        if rc == CL_TIMEOUT:
            look_at_name(self)
            return None
        if rc != CL_OK:
            self.refuse(rc)
        return self.lend(&frame), frame.seq, frame.time_ns, 0

    def _last(self, uint32_t most):
        cdef cl_frame *frames
        cdef uint32_t i, n = 0, lent = 0
        cdef Loan loan
        cdef list found = []
        cdef Wait wait = new_wait()
        cdef int rc
        self.be_open()
        most = min(most, self.r.slots)
        frames = <cl_frame *>malloc(most * sizeof(cl_frame))
        if frames == NULL:
            raise MemoryError
        try:
            rc = cl_ring_last(&self.r, most, 0, frames, &n)
            while rc == CL_AGAIN:
                with nogil:
                    rc = cl_ring_last(&self.r, most, CL_MAY_WAIT, frames, &n)
                rc = served(&wait, rc, CL_FOREVER)
            check(rc)
            while lent < n:
                lent += 1  # one that fails gives its own back
                loan = self.lend(&frames[lent - 1])
                found.append((loan, frames[lent - 1].seq, frames[lent - 1].time_ns, 0))
            return found
        finally:
            for i in range(lent, n):
                cl_ring_return(&self.r, frames[i].slot)
            free(frames)

    def _subscribe(self, bint blocks, since):
        cdef Seat seat
        cdef uint32_t reader = 0, policy = CL_READER_BLOCKS if blocks else CL_READER_DROPS
        cdef uint64_t after = 0xffffffffffffffff if since is None else since
        cdef Wait wait = new_wait()
        cdef int rc
        self.be_open()
        rc = cl_ring_subscribe(&self.r, policy, after, 0, &reader)
        while rc == CL_AGAIN:
            with nogil:
                rc = cl_ring_subscribe(&self.r, policy, after, CL_MAY_WAIT, &reader)
            rc = served(&wait, rc, CL_FOREVER)
        check(rc)
        try:
            seat = Seat.__new__(Seat)
        except BaseException:
            cl_ring_unsubscribe(&self.r, reader)
            raise
        seat.ring, seat.reader, seat.pid = self, reader, getpid()
        return seat

    def _next(self, uint32_t reader, timeout):
        cdef int64_t deadline = deadline_of(timeout)
        cdef cl_frame frame
        cdef Wait wait = new_wait()
        cdef int rc
        self.be_open()
        rc = cl_ring_next(&self.r, reader, 0, 0, &frame)
        while rc == CL_AGAIN:
            with nogil:
                rc = cl_ring_next(&self.r, reader, deadline, CL_MAY_WAIT, &frame)
            rc = served(&wait, rc, CL_FOREVER)
            if rc == CL_AGAIN:
                self.be_open()
                look_at_name(self)
        if rc == CL_TIMEOUT:
            look_at_name(self)
            return None
        if rc == CL_STALE:
            raise WrongProcessError("this subscription belongs to the parent process: call subscribe() again in a "
                                    "forked child")
        if rc != CL_OK:
            self.refuse(rc)
        return self.lend(&frame), frame.seq, frame.time_ns, frame.missed

    def _reader(self, uint32_t reader):
        """(taken, dropped, lag, whether it blocks, whether it was demoted)."""
        cdef cl_reader *q
        cdef uint32_t policy
        self._open_head()
        q = &self.r.readers[reader]
        policy = CL_READER_POLICY(cl_seen(&q.policy))
        return cl_seen64(&q.taken), cl_seen64(&q.dropped), self.lag(q), policy == CL_READER_BLOCKS, policy == CL_READER_DEMOTED

    cdef uint64_t lag(self, cl_reader *q):
        cdef uint64_t cursor = cl_seen64(&q.cursor)  # read before the last frame, so that it is never beyond it
        return cl_seen64(&self.r.head.last) - cursor

    def _shut(self):
        self._open_head()
        with nogil:
            cl_ring_shut(&self.r)

    @property
    def _ended(self):
        self._open_head()
        return cl_seen(&self.r.head.state) != CL_RING_OPEN

    @property
    def _last_seq(self):
        self._open_head()
        return cl_seen64(&self.r.head.last)

    def _statistics(self):
        """(last, held, writing, on loan, times that writers waited, first and last time, readers)."""
        cdef cl_ring_counts n
        cdef cl_reader *q
        cdef uint32_t i, owner
        cdef int rc
        self._open_head()
        with nogil:
            rc = cl_ring_release_dead(&self.r, 0)  # does not wait for a process that is already releasing the dead, or is stopped while doing so
            cl_ring_count(&self.r, &n)
        if rc != CL_AGAIN:
            check(rc)
        readers = []
        for i in range(self.r.room):
            q = &self.r.readers[i]
            owner = cl_seen(&q.owner)
            if owner != 0:
                readers.append((cl_owner_pid(self.store, owner), cl_seen64(&q.taken), cl_seen64(&q.dropped), self.lag(q),
                                CL_READER_POLICY(cl_seen(&q.policy)) == CL_READER_BLOCKS))
        return n.last, n.held, n.writing, n.on_loan, cl_seen64(&self.r.head.waits), n.oldest_ns, n.newest_ns, readers

    def _watch_frames(self):
        return watch(&self.r.head.published)

    def _watch_slots(self):
        return watch(&self.r.head.changed)


cdef tuple watch(cl_au32 *bell):
    return <uintptr_t>bell, cl_add_bits(bell, CL_BELL_SLEEP)
