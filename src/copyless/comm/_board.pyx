# cython: language_level=3, freethreading_compatible=True, auto_pickle=False
"""Collective operations of small objects among the ranks of one node on MPI: through shared memory, without messages.

A communicator has one board, a block of shared memory. Each rank has a row of slots in it, which only that rank writes. In its n-th
operation a rank writes its slot number n (modulo the number of slots): which operation that is, and what the rank gives to others. The slot's number
is written last. A rank that needs something of another waits until the other's slot has the number of the operation.

    kind       NOTHING   this rank gives nothing
               ONE       one pickle, for whoever wants it
               EACH      one pickle for each rank, behind a table of where each ends
               MESSAGE   what this rank gives is too large: it follows as messages
               FAILED    the text of an error: this rank could not make what it had to give

*Reuse.* A row has a power of 2 of slots. A rank begins an operation when it is done with the one before. So before each
half of its row, a rank checks that all others have begun the operation half a row before: none of them reads the older slots any more.

*Mistakes.* Each slot has the tag of its operation, which names operation and root, and a number made of the tags of all operations
before. So ranks that did not call the same operations find out when one reads another's slot. The rank that finds it writes into the
board's head who called what, and every rank that waits or begins raises that, from then on.

*After SIGKILL* of a rank, the launcher of MPI ends the others. Nothing in a board needs a repair: it belongs to its ranks, and its block
is reclaimed with them. What is read of a slot is checked, as other data from other processes is.
"""
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from copyless._transfer._plain cimport NOTHING as NO_VALUE, PLAIN_MOST, dump_plain, load_plain

from copyless._core._pickles import loads
from copyless._platform import processors
from copyless.comm import _constants, _small
from copyless.comm._collectives import FIXED, UNUSABLE, listed, mistaken, operation, tag_of
from copyless.comm._interface import CollectiveMethods
from copyless.errors import CorruptSegmentError

cdef extern from *:
    """
    #include <sched.h>
    #include <stdatomic.h>
    #include <stdint.h>
    static inline uint64_t board_number(const uint64_t *at)
    {
        return atomic_load_explicit((const _Atomic uint64_t *)at, memory_order_acquire);
    }
    static inline void board_publish(uint64_t *at, uint64_t number)
    {
        atomic_store_explicit((_Atomic uint64_t *)at, number, memory_order_release);
    }
    static inline int board_claim(uint64_t *at)
    {
        uint64_t none = 0;
        return atomic_compare_exchange_strong((_Atomic uint64_t *)at, &none, 1);
    }
    /* Whether the number comes to be there, after so many looks at once and so many with the processor given away between. */
    static int board_soon(const uint64_t *at, uint64_t number, int looks, int yields)
    {
        while (looks-- > 0) {
            if (board_number(at) == number)
                return 1;
    #if defined(__x86_64__)
            __builtin_ia32_pause();
    #elif defined(__aarch64__)
            __asm__ __volatile__("yield");
    #endif
        }
        while (yields-- > 0) {
            sched_yield();
            if (board_number(at) == number)
                return 1;
        }
        return 0;
    }
    """
    uint64_t board_number(const uint64_t *at) nogil
    void board_publish(uint64_t *at, uint64_t number) nogil
    bint board_claim(uint64_t *at) nogil
    bint board_soon(const uint64_t *at, uint64_t number, int looks, int yields) nogil

cdef enum:
    DEEPEST = 32  # slots of a rank: so many operations may a rank be ahead of another
    LINE = 64  # bytes of the board's head
    NOTHING = 0
    ONE = 1
    EACH = 2
    MESSAGE = 3
    FAILED = 4
    ROOTS = 2000  # as in a tag of `_collectives`
    OWN = 1 << 16  # mark of an operation of the caller's own
    ROUND = 384  # bytes of what a rank offers in a round
    LOOKS = 300  # some ten microseconds
    YIELDS = 100

cdef struct Head:
    uint64_t state  # 0: no mistake is known, 1: one is being written, 2: it is written
    int32_t found_by, other
    uint32_t theirs, mine

cdef struct Slot:
    uint64_t number  # of the operation, from 1; written last
    uint64_t history  # made of the tags of the operations before
    uint32_t tag
    uint32_t kind
    uint32_t nbytes
    uint32_t unused

cdef dict lines = _small.in_line  # while receives are pending, a wait serves them from the beginning
cdef bint own_pickle = False
cdef dict OPERATIONS = {
    name: tag_of(name) for name in ("bcast", "gather", "scatter", "allgather", "alltoall", "reduce", "allreduce", "barrier")
}
cdef uint32_t BCAST = OPERATIONS["bcast"], GATHER = OPERATIONS["gather"], SCATTER = OPERATIONS["scatter"]
cdef uint32_t ALLGATHER = OPERATIONS["allgather"], ALLTOALL = OPERATIONS["alltoall"], REDUCE = OPERATIONS["reduce"]
cdef uint32_t ALLREDUCE = OPERATIONS["allreduce"], BARRIER = OPERATIONS["barrier"]
cdef tuple KNOWN = _constants.OPERATIONS  # of which each rank may compute the result by itself
cdef frozenset LASTING = FIXED


cdef uint32_t mark_of(op):
    """What the tag of a reduction has above the tag of its messages: the number of the operation, 1 for one of the caller's own.

    Known ones go another way than the caller's own. So ranks that do not give the same must find out.
    """
    cdef Py_ssize_t i
    for i in range(len(KNOWN)):
        if KNOWN[i] is op:
            return <uint32_t>(i + 2) << 16
    return OWN


def use_own_pickle(bint own):
    """Set whether objects are pickled by the caller's own functions."""
    global own_pickle
    own_pickle = own


def bytes_for(int size):
    """The bytes of the board of so many ranks."""
    return LINE + <Py_ssize_t>size * (depth_of(size) * slot_bytes(size) + 2 * ROUND)


cdef Py_ssize_t depth_of(int size) noexcept:
    """Slots of each rank, a power of 2."""
    cdef Py_ssize_t depth = DEEPEST
    while depth > 8 and size * depth > 4 * DEEPEST:
        depth //= 2
    return depth


cdef Py_ssize_t slot_bytes(int size) noexcept:
    return min(1024 + (size + 1) // 2 * 64, PLAIN_MOST + sizeof(Slot))


cdef class Board:
    """Board(memory, rank, size, channel)

    One rank's side of the board of a communicator.

    Parameters
    ----------
    memory
        The shared memory, which was zero when the first rank began: a `Memory` of `bytes_for(size)` bytes.
    rank, size
        The number of this rank, and of all.
    channel
        The operations of the communicator by messages, for large objects (`_collectives.Intra`). A board also uses its
        `failure` (makes an error), `await_board` (waits for a function to return true) and `spread` (sends to several).
    """
    cdef object memory, channel
    cdef Head *head
    cdef uint8_t *slots
    cdef Py_ssize_t step, room
    cdef int rank, size, looks
    cdef uint64_t depth
    cdef uint64_t number, history  # of the next operation
    cdef uint64_t now, before  # number and history of this one
    cdef uint32_t tag
    cdef bint closed, told  # told: this rank has raised a mistake
    cdef uint32_t given  # the bytes in this rank's slot: in shared memory the number could be damaged
    cdef Slot seen  # the head of the slot that was read last

    def __init__(self, memory, int rank, int size, channel):
        cdef uint64_t address = memory.address
        if memory.nbytes < bytes_for(size) or not 0 <= rank < size:
            raise ValueError(f"a board of {size} ranks needs {bytes_for(size)} bytes, not {memory.nbytes}")
        self.memory, self.channel = memory, channel
        self.head = <Head *>address
        self.slots = <uint8_t *>address + LINE
        self.step = slot_bytes(size)
        self.depth = depth_of(size)
        self.room = self.step - sizeof(Slot)
        self.rank, self.size = rank, size
        self.looks = 10 if size > processors() else LOOKS
        self.number = 1

    cdef inline Slot *slot(self, int rank, uint64_t number) noexcept:
        return <Slot *>(self.slots + (rank * self.depth + (number & self.depth - 1)) * self.step)

    cdef inline uint8_t *place(self) noexcept:
        """Where what this rank gives in this operation lies."""
        return <uint8_t *>self.slot(self.rank, self.now) + sizeof(Slot)

    # ---- beginning and waiting

    cdef int begin(self, uint32_t tag) except -1:
        cdef int rank
        cdef uint64_t number = self.number, half = self.depth // 2
        self.now, self.before, self.tag = number, self.history, tag
        if self.closed:
            raise self.channel.freed()
        if board_number(&self.head.state) != 0:
            self.refuse()
        if number & half - 1 == 0 and number > half:
            for rank in range(self.size):
                self.arrive(rank, number - half)
        return 0

    cdef int publish(self, uint32_t kind, Py_ssize_t nbytes) except -1:
        cdef Slot *slot = self.slot(self.rank, self.now)
        self.given = <uint32_t>nbytes
        slot.history, slot.tag, slot.kind, slot.nbytes = self.before, self.tag, kind, self.given
        board_publish(&slot.number, self.now)
        self.number = self.now + 1
        self.history = (self.before ^ self.tag) * <uint64_t>1099511628211 + 1
        return 0

    cdef int arrive(self, int rank, uint64_t number) except -1:
        """Wait until a rank has begun an operation."""
        cdef uint64_t *at = &self.slot(rank, number).number
        cdef bint soon
        cdef int looks = self.looks
        if board_number(at) >= number:
            return 0
        if len(lines) == 0:
            with nogil:
                soon = board_soon(at, number, looks, YIELDS)
            if soon:
                return 0
        self.channel.await_board(rank, number)
        return 0

    def has_begun(self, int rank, uint64_t number):
        """Whether a rank has begun an operation. Raises if a mistake was found."""
        if board_number(&self.slot(rank, number).number) >= number:
            return True
        if board_number(&self.head.state) != 0:
            self.look()
        return False

    cdef const uint8_t *of(self, int rank) except NULL:
        """What another rank's slot of this operation contains; its head is in `seen` then."""
        cdef Slot *slot = self.slot(rank, self.now)
        if board_number(&slot.number) != self.now:
            self.arrive(rank, self.now)
        memcpy(&self.seen, slot, sizeof(Slot))  # once, so that no other process can change what is checked
        if self.seen.tag != self.tag or self.seen.history != self.before:
            self.differ(rank)
        if self.seen.nbytes > self.room:
            raise CorruptSegmentError(f"rank {rank} names {self.seen.nbytes} bytes in a slot of {self.room}")
        return <uint8_t *>slot + sizeof(Slot)

    # ---- mistakes

    cdef int differ(self, int rank) except -1:
        """Raise what another rank called where this one called something else, and let all know."""
        cdef uint32_t theirs = self.slot(rank, self.now).tag, mine = self.tag
        cdef uint64_t number, first = self.now - self.depth + 1 if self.now >= self.depth else 1
        cdef Slot *other
        cdef Slot *own
        for number in range(first, self.now):
            other, own = self.slot(rank, number), self.slot(self.rank, number)
            if board_number(&other.number) == number and own.number == number and other.tag != own.tag:
                theirs, mine = other.tag, own.tag
                break
        self.tell(rank, theirs, mine)
        raise self.channel.failure(mistaken(rank, theirs, mine) + UNUSABLE)

    def mistake(self, int rank, uint32_t theirs):
        """Raise what another rank called, by the tag of its message, and let all know."""
        self.look()
        self.tell(rank, theirs, self.tag)
        raise self.channel.failure(mistaken(rank, theirs, self.tag) + UNUSABLE)

    cdef int tell(self, int rank, uint32_t theirs, uint32_t mine) except -1:
        """Let all ranks know of a mistake, unless they know one."""
        if board_claim(&self.head.state):
            self.head.found_by, self.head.other, self.head.theirs, self.head.mine = self.rank, rank, theirs, mine
            board_publish(&self.head.state, 2)
        self.told = True
        return 0

    cdef int refuse(self) except -1:
        """Raise the mistake that was found. From then on nobody knows which operations of the ranks belong together."""
        cdef int rank
        cdef Slot *slot
        for rank in range(self.size):
            slot = self.slot(rank, self.now)
            if not self.told and board_number(&slot.number) == self.now and slot.history == self.before and slot.tag != self.tag:
                self.differ(rank)  # it is this operation
        if board_number(&self.head.state) == 2:
            self.raise_found()
        self.look()
        return 0

    cdef int raise_found(self) except -1:
        self.told = True
        text = mistaken(self.head.other, self.head.theirs, self.head.mine)
        raise self.channel.failure(f"rank {self.head.found_by} was told: {text}{UNUSABLE}")

    def close(self):
        """The communicator is freed: its other objects must not use this board any more."""
        self.closed = True

    cpdef look(self):
        """Raise what another rank has begun instead of this operation; or the mistake that another rank has found."""
        cdef int rank
        cdef Slot *slot
        for rank in range(self.size):
            slot = self.slot(rank, self.now)
            if board_number(&slot.number) == self.now and (slot.tag != self.tag or slot.history != self.before):
                self.differ(rank)
        if board_number(&self.head.state) == 2:
            self.raise_found()

    # ---- objects in slots

    cdef object give(self, obj):
        """Publish an object in this rank's slot. If it does not fit, it is returned packed: it must be sent by messages."""
        cdef size_t n = 0 if own_pickle else dump_plain(obj, self.place(), self.room)
        if n != 0:
            self.publish(ONE, n)
            return None
        packet = self.channel.pack(obj)
        if not packet.parts and not packet.handles and PyBytes_GET_SIZE(packet.data) <= self.room:
            n = PyBytes_GET_SIZE(packet.data)
            memcpy(self.place(), PyBytes_AS_STRING(packet.data), n)
            self.publish(ONE, n)
            return None
        self.publish(MESSAGE, 0)
        return packet

    cdef bint give_each(self, list objs) except -1:
        """Publish one object for each rank. False if they do not fit: then nothing is published yet."""
        cdef uint8_t *at = self.place()
        cdef uint32_t *ends = <uint32_t *>at
        cdef size_t used = self.size * sizeof(uint32_t), n
        cdef int rank
        for rank in range(self.size):
            n = 0
            if not own_pickle and used < <size_t>self.room:
                n = dump_plain(objs[rank], at + used, self.room - used)
            if n == 0:
                return False
            used += n
            ends[rank] = <uint32_t>used
        self.publish(EACH, used)
        return True

    # An operation that goes by messages, or a part of it. A message has the number of its operation, so that one which was left
    # to nobody by an error or Ctrl-C is not taken for one of a later operation. A rank that has promised messages and does not
    # send them all tells the others: no code of Python, which a signal may end, runs between the promise (`publish`) and `try`.

    cdef object by_messages(self):
        channel = self.channel
        channel.tag, channel.number = self.tag & OWN - 1, channel.first + self.now
        return channel

    cdef int leave(self, error) except -1:
        """Tell all others, which may wait for messages of this rank, that it has left the operation."""
        channel = self.by_messages()
        try:
            channel.leave(error)
        finally:
            channel.tag = 0
        return 0

    cdef object message(self, int rank):
        """The packet that another rank sends in this operation."""
        channel = self.by_messages()
        try:
            return channel.take(rank)
        finally:
            channel.tag = 0

    cdef list collected(self, obj, packet, bint sent):
        """What each rank gives in this operation; this rank's is `obj`.

        All messages are taken before anything is unpickled. A message that is left would be taken by a later operation.
        """
        cdef int rank
        cdef dict packets = {}
        for rank in range(self.size):
            if rank != self.rank:
                self.of(rank)
                if self.seen.kind == MESSAGE:
                    packets[rank] = self.message(rank)
        return [
            self.own(obj, packet, sent) if rank == self.rank else packets[rank].open() if rank in packets else self.taken(rank)
            for rank in range(self.size)
        ]

    cdef int leave_none(self, int mask) except -1:
        """Take what the ranks below this one in the tree, from a mask on, send in an operation that has failed."""
        while mask < self.size and not self.rank & mask and board_number(&self.head.state) == 0:
            if self.rank + mask < self.size:
                self.of(self.rank + mask)
                if self.seen.kind == MESSAGE:
                    try:
                        self.message(self.rank + mask).open()  # so that its memory is released
                    except Exception:
                        pass
            mask <<= 1
        return 0

    cdef object taken(self, int rank, bint readonly=False):
        """What another rank gives to this one in this operation."""
        cdef const uint8_t *data = self.of(rank)
        if self.seen.kind == ONE:
            return load(data, self.seen.nbytes)
        if self.seen.kind == EACH:
            return self.part(data, self.seen.nbytes)
        if self.seen.kind == MESSAGE:
            return self.message(rank).open(readonly)
        if self.seen.kind == FAILED:
            text = PyBytes_FromStringAndSize(<char *>data, self.seen.nbytes).decode(errors="replace")
            raise self.channel.failure(text)
        raise CorruptSegmentError(f"rank {rank} gives nothing (kind {self.seen.kind}) where it should")

    cdef object part(self, const uint8_t *data, uint32_t nbytes):
        """The object for this rank in a slot that has one for each."""
        cdef uint32_t ends[2]
        ends[0] = self.size * sizeof(uint32_t)
        if self.rank:
            memcpy(ends, data + (self.rank - 1) * sizeof(uint32_t), 2 * sizeof(uint32_t))
        else:
            memcpy(ends + 1, data, sizeof(uint32_t))
        if not self.size * sizeof(uint32_t) <= ends[0] <= ends[1] <= nbytes:
            raise CorruptSegmentError(f"an object at {ends[0]} to {ends[1]} in a slot of {nbytes} bytes")
        return load(data + ends[0], ends[1] - ends[0])

    cdef list sent(self, list ranks, obj, packet):
        """Requests that send a packed object."""
        channel = self.by_messages()
        try:
            return channel.spread(ranks, obj, packet)
        except BaseException as error:
            channel.leave(error)
            raise
        finally:
            channel.tag = 0

    cdef list others(self):
        return [(self.rank + i) % self.size for i in range(1, self.size)]

    # ---- operations

    def enter(self, uint32_t tag):
        """Begin an operation that goes by messages."""
        self.begin(tag)
        self.publish(MESSAGE, 0)
        channel = self.channel
        channel.touched, channel.number = True, channel.first + self.now

    cpdef bcast(self, obj, int root, bint readonly=False, bint progress=False):
        self.begin(BCAST + 16 * (root % ROOTS))
        if self.rank == root:
            packet = self.give(obj)
            if packet is not None:
                channel = self.by_messages()
                try:
                    channel.put_all(self.others(), obj, packet, f"rank {root} to all" if progress else None)
                except BaseException as error:
                    channel.leave(error)
                    raise
                finally:
                    channel.tag = 0
            return obj
        self.publish(NOTHING, 0)
        return self.taken(root, readonly)

    cpdef gather(self, obj, int root):
        self.begin(GATHER + 16 * (root % ROOTS))
        packet = self.give(obj)
        if self.rank != root:
            if packet is not None:
                self.channel.finish(self.sent([root], obj, packet))
            return None
        return self.collected(obj, packet, False)

    cdef object own(self, obj, packet, bint sent):
        """A copy of this rank's object. `sent`: whether its packet, if it has one, was sent to others."""
        if packet is None:
            return load(self.place(), self.given)
        if not sent:
            packet.drop()
        return self.channel.own_copy(obj)

    cpdef scatter(self, objs, int root):
        cdef list each
        if self.rank != root:
            self.begin(SCATTER + 16 * (root % ROOTS))
            self.publish(NOTHING, 0)
            return self.taken(root)
        each = listed(objs, self.size)
        self.begin(SCATTER + 16 * (root % ROOTS))
        if self.give_each(each):
            return self.part(self.place(), self.given)
        packets = {rank: self.channel.pack(each[rank]) for rank in self.others()}
        self.publish(MESSAGE, 0)
        requests = [request for rank, packet in packets.items() for request in self.sent([rank], each[rank], packet)]
        self.channel.finish(requests)
        return self.channel.own_copy(each[root])

    cpdef allgather(self, obj):
        cdef list requests = None
        self.begin(ALLGATHER)
        packet = self.give(obj)
        if packet is not None:
            requests = self.sent(self.others(), obj, packet)
        got = self.collected(obj, packet, True)
        if requests is not None:
            self.channel.finish(requests)
        return got

    cpdef alltoall(self, objs):
        cdef int rank
        cdef list each = listed(objs, self.size), requests = None
        self.begin(ALLTOALL)
        if self.give_each(each):
            own = self.part(self.place(), self.given)
        else:
            packets = {rank: self.channel.pack(each[rank]) for rank in self.others()}  # before others are told to wait for them
            self.publish(MESSAGE, 0)
            requests = [request for rank, packet in packets.items() for request in self.sent([rank], each[rank], packet)]
            own = self.channel.own_copy(each[self.rank])
        taken = {}
        for rank in self.others():
            self.of(rank)
            if self.seen.kind == MESSAGE:
                taken[rank] = self.message(rank)
        got = [
            own if rank == self.rank else taken[rank].open() if rank in taken else self.taken(rank) for rank in range(self.size)
        ]
        if requests is not None:
            self.channel.finish(requests)
        return got

    cdef object give_or_fail(self, obj, name):
        """`give`; the others are told if the object cannot be given."""
        try:
            return self.give(obj)
        except BaseException as error:
            if self.number == self.now:  # nothing is published
                self.fail(name, error)
            raise

    cpdef reduce(self, obj, op, int root):
        cdef int rank
        cdef bint all_large
        op = operation(op)
        cdef uint32_t mark = mark_of(op)
        self.begin(REDUCE + 16 * (root % ROOTS) + mark)
        if mark != OWN:
            packet = self.give_or_fail(obj, "reduce")
            if packet is not None:  # if all are as large, they go another way together
                all_large = True
                try:
                    for rank in range(self.size):
                        self.of(rank)
                        all_large = all_large and self.seen.kind == MESSAGE
                    if all_large:
                        packet.drop()
                        channel = self.by_messages()
                        try:
                            return channel.reduce(obj, op, root)
                        finally:
                            channel.tag = 0
                except BaseException as error:
                    self.leave(error)
                    raise
                if self.rank != root:
                    self.channel.finish(self.sent([root], obj, packet))
            if self.rank != root:
                return None
            return self.tree(self.collected(obj, packet, False), op)
        result = self.combined(obj, op, "reduce", root)
        if self.rank == root:
            return result if root == 0 else self.taken(0)
        return None

    cdef object combined(self, obj, op, name, int root):
        """The reduction in the order of ranks, in a binomial tree: at rank 0, which also gives it to the root if it is another."""
        cdef int mask = 1, left = 1  # left: the mask of the first rank whose message is not taken yet
        result = obj
        try:
            while mask < self.size and not self.rank & mask:
                if self.rank + mask < self.size:
                    if mask == 1:
                        result = self.copied(obj)  # the operation may change its operands
                    left = mask << 1
                    result = op(result, self.taken(self.rank + mask))
                mask <<= 1
                left = mask
            if self.rank or root:
                packet = self.give(result)
            else:
                self.publish(NOTHING, 0)
                return self.copied(obj) if result is obj else result
        except BaseException as error:
            if self.number == self.now:  # others wait for what this rank does not give
                self.fail(name, error)
            if isinstance(error, Exception):
                self.leave_none(left)
            raise
        if packet is not None:
            self.channel.finish(self.sent([self.rank - mask if self.rank else root], result, packet))
        return None

    cdef object copied(self, obj):
        """A copy of an object that can be changed."""
        cdef uint8_t plain[PLAIN_MOST]
        if type(obj) in LASTING:
            return obj
        cdef size_t n = 0 if own_pickle else dump_plain(obj, plain, PLAIN_MOST)
        return self.channel.own_copy(obj) if n == 0 else load(plain, n)

    cdef int fail(self, name, error) except -1:
        text = str(error) if isinstance(error, type(self.channel.failure(""))) else (
            f"rank {self.rank} failed in {name}: {type(error).__name__}: {error}"
        )
        cdef bytes data = text.encode(errors="replace")[:self.room]
        memcpy(self.place(), PyBytes_AS_STRING(data), len(data))
        self.publish(FAILED, len(data))
        return 0

    cpdef allreduce(self, obj, op):
        cdef int rank, failed = -1
        cdef bint together = True
        op = operation(op)
        cdef uint32_t mark = mark_of(op)
        if mark == OWN:
            # of the caller's own: only rank 0 has the result, and gives it to all
            self.begin(ALLREDUCE + OWN)
            try:
                result = self.combined(obj, op, "allreduce", 0)
            except BaseException as error:
                if board_number(&self.head.state) == 0:  # the others go on to the second half
                    self.begin(ALLREDUCE + OWN)
                    if self.rank == 0:
                        self.fail("allreduce", error)
                    else:
                        self.publish(NOTHING, 0)
                raise
            self.begin(ALLREDUCE + OWN)
            if self.rank:
                self.publish(NOTHING, 0)
                return self.taken(0)
            packet = self.give(result)
            if packet is not None:
                self.channel.finish(self.sent(self.others(), result, packet))
            return result
        self.begin(ALLREDUCE + mark)
        packet = self.give_or_fail(obj, "allreduce")
        try:
            for rank in range(self.size):
                self.of(rank)
                if self.seen.kind == FAILED:
                    failed = rank
                if self.seen.kind != ONE:
                    together = False
            if not together and failed < 0:
                if packet is not None:
                    packet.drop()
                channel = self.by_messages()
                try:
                    return channel.allreduce(obj, op)
                finally:
                    channel.tag = 0
        except BaseException as error:
            self.leave(error)
            raise
        if failed >= 0:
            if packet is not None:
                packet.drop()
            self.taken(failed)  # raises
        return self.tree(self.collected(obj, None, False), op)

    # Two rounds of an operation that goes by messages otherwise. Each rank has a place for each of them, beside its slots. It writes
    # a place again when all have come to the round after it, so all have read it. A rank that leaves the operation tells the others
    # by a message, as elsewhere: who waits for it in a round looks for that.

    cdef inline uint8_t *round_of(self, int rank, int which) noexcept:
        return self.slots + self.size * self.depth * self.step + (2 * rank + which) * ROUND

    def has_come(self, int rank, int which):
        """Whether a rank has come to a round of this operation."""
        return board_number(<uint64_t *>self.round_of(rank, which)) == self.now

    cdef int meet(self, int which) except -1:
        """Wait until all ranks have come to a round."""
        cdef int rank, looks = self.looks
        cdef uint64_t *at
        cdef uint64_t number = self.now
        cdef bint soon
        for rank in range(self.size):
            at = <uint64_t *>self.round_of(rank, which)
            if board_number(at) == number:
                continue
            with nogil:
                soon = board_soon(at, number, looks, YIELDS)
            if not soon:
                self.channel.await_round(rank, which)
        return 0

    def rounds(self, offer, divide):
        """What `divide` returns of the list of what all ranks offer, each a plain value, when all ranks have called it."""
        cdef int rank
        cdef uint8_t *at = self.round_of(self.rank, 0)
        cdef uint64_t n = dump_plain(offer, at + 16, ROUND - 16)
        if n == 0:  # it is too long
            n = dump_plain(None, at + 16, ROUND - 16)
        memcpy(at + 8, &n, 8)
        board_publish(<uint64_t *>at, self.now)
        self.meet(0)
        offers = []
        for rank in range(self.size):
            at = self.round_of(rank, 0)
            memcpy(&n, at + 8, 8)
            if n > ROUND - 16:
                raise CorruptSegmentError(f"rank {rank} offers {n} bytes in a place of {ROUND - 16}")
            offers.append(load(at + 16, n))
        made = divide(offers)
        board_publish(<uint64_t *>self.round_of(self.rank, 1), self.now)
        self.meet(1)
        return made

    cdef object tree(self, list values, op):
        """The values of all ranks, combined in the order of `combined`, so that the result is the same."""
        cdef int mask = 1, rank
        while mask < self.size:
            for rank in range(0, self.size - mask, 2 * mask):
                values[rank] = op(values[rank], values[rank + mask])
            mask <<= 1
        return values[0]

    cpdef barrier(self):
        cdef int rank
        self.begin(BARRIER)
        self.publish(NOTHING, 0)
        for rank in range(self.size):
            if rank != self.rank:
                self.of(rank)


cdef object load(const uint8_t *data, Py_ssize_t nbytes):
    """The object in a slot. The bytes are copied first, so that no other process can change what is being read."""
    cdef uint8_t own[PLAIN_MOST]
    memcpy(own, data, nbytes)
    value = load_plain(own, nbytes)
    return loads(PyBytes_FromStringAndSize(<char *>own, nbytes)) if value is NO_VALUE else value


# ---- methods of a communicator, `copyless.comm.mpi.Intracomm`

cdef object slow_bcast = CollectiveMethods.bcast, slow_gather = CollectiveMethods.gather, slow_scatter = CollectiveMethods.scatter
cdef object slow_allgather = CollectiveMethods.allgather, slow_alltoall = CollectiveMethods.alltoall
cdef object slow_reduce = CollectiveMethods.reduce, slow_allreduce = CollectiveMethods.allreduce


cdef inline int root_of(self, Board board, root) except -1:
    cdef int number
    try:
        number = root
    except OverflowError:
        number = -1
    if not 0 <= number < board.size:
        self._root(root)  # raises
    return number


def bcast(self, obj=None, root=0, *, readonly=False, progress=False):
    cdef Board board = self._board
    if board is None:
        return slow_bcast(self, obj, root, readonly=readonly, progress=progress)
    return board.bcast(obj, root_of(self, board, root), readonly, progress)


def gather(self, sendobj, root=0):
    """The list of the objects of all ranks, at the root; None at the other ranks."""
    cdef Board board = self._board
    if board is None:
        return slow_gather(self, sendobj, root)
    return board.gather(sendobj, root_of(self, board, root))


def scatter(self, sendobj=None, root=0):
    """Send to each rank its item of the root's list, which must have one item for each rank."""
    cdef Board board = self._board
    if board is None:
        return slow_scatter(self, sendobj, root)
    return board.scatter(sendobj, root_of(self, board, root))


def allgather(self, sendobj):
    """The list of the objects of all ranks, at every rank."""
    cdef Board board = self._board
    return slow_allgather(self, sendobj) if board is None else board.allgather(sendobj)


def alltoall(self, sendobj):
    """Send item i of this rank's list to rank i. Returns the list of the objects that the ranks sent to this one."""
    cdef Board board = self._board
    return slow_alltoall(self, sendobj) if board is None else board.alltoall(sendobj)


def reduce(self, sendobj, op=_constants.SUM, root=0):
    cdef Board board = self._board
    if board is None:
        return slow_reduce(self, sendobj, op, root)
    return board.reduce(sendobj, self._operation(op), root_of(self, board, root))


def allreduce(self, sendobj, op=_constants.SUM):
    """`reduce` with the result at every rank."""
    cdef Board board = self._board
    return slow_allreduce(self, sendobj, op) if board is None else board.allreduce(sendobj, self._operation(op))


bcast.__doc__, reduce.__doc__ = CollectiveMethods.bcast.__doc__, CollectiveMethods.reduce.__doc__
