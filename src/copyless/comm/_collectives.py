"""Collective operations for both transports, made of sends and receives of packets on a communicator of their own.

Here are those among ranks that share memory: a packet is a handle of one block, of which each rank gets a copy-on-write
view. `_mpi_nodes` has those among several nodes.

Reductions combine in the order of ranks, because operations need not commute: a binomial tree by rank. Every rank calls
the operations in the same order, which keeps the messages of different operations apart. Each receive names its source
rank.

If a rank cannot combine or pack what a reduction needs of it, a `Fault` takes the place of the value. It goes the way
that the value would have gone, as text, and every rank that waits raises it. So all messages of the operation are sent
and taken, and the next operation finds none of them.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from copyless._progress import shown
from copyless._transfer._memory import Memory
from copyless.comm import _slices
from copyless.comm._constants import NAMES, OPERATIONS, SUM, Operation
from copyless.comm._packets import Packet, copy_of
from copyless.errors import OwnerDiedError, StaleHandleError

__all__ = [
    "LATE", "WAITING", "Fault", "Inter", "Intra", "listed", "mistaken", "named", "operation", "said_by", "tag_of",
]  # fmt: skip

FIXED = frozenset((int, float, complex, bool, str, bytes, type(None)))  # types of objects that no operation changes

_F = TypeVar("_F", bound=Callable[..., Any])
_T = TypeVar("_T")
_Message = tuple[Any, ...]  # the number of its operation, a packet; or the number, None, the text of an error

# The tag of each message names its operation and root, so that calls that do not match are reported and never confused
# with each other.
_KINDS = ("", "bcast", "gather", "scatter", "allgather", "alltoall", "reduce", "allreduce", "scan", "exscan", "barrier",
          "neighbor_alltoall", "Create_group", "mistaken", "waiting")  # fmt: skip
_ROOTS = 2000  # MPI promises tags up to 32767
_MARK = 1 << 16  # above that a board names the operation of a reduction
UNUSABLE = ". A communicator cannot be used after that: make another, as by Dup()"


def tag_of(kind: str, root: int = 0) -> int:
    return _KINDS.index(kind) + 16 * (max(root, 0) % _ROOTS)


WAITING = tag_of("waiting")  # of what a rank tells the one that it has waited for for long
LATE = 0.5  # seconds of that
_REMEMBERED = 64  # operations


def said_by(tag: int) -> str:
    """The operation of a tag."""
    tag %= _MARK
    kind = _KINDS[tag % 16] if tag % 16 < len(_KINDS) else ""
    return (
        f"{kind}(root={tag // 16})"
        if kind in ("bcast", "gather", "scatter", "reduce")
        else kind or f"something with tag {tag}"
    )


def named(root_at: int | None = None) -> Callable[[_F], _F]:
    """Marks an operation that ranks call together. `root_at`: the position of the root among its arguments.

    The name of the operation is part of the tag.
    """

    def name(method: _F) -> _F:
        kind, exclusive = tag_of(method.__name__), tag_of("exscan")

        @functools.wraps(method)
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            if self.tag:
                return method(self, *args, **kwargs)
            if root_at is None:
                self.tag = exclusive if kwargs else kind  # the only keyword argument is `exclusive` of scan
            else:
                self.tag = kind + 16 * (args[root_at] % _ROOTS) if self.has_roots else kind
            try:
                self.begun()
                return method(self, *args, **kwargs)
            except BaseException as error:
                self.failed(error)
                raise
            finally:
                self.tag = 0

        return call  # type: ignore[return-value]

    return name


class Fault:
    """Fault(text, error=None)

    What a rank has in place of a value: the text of an error of some rank, and the error itself if it is this rank's.
    """

    __slots__ = ("error", "text")

    def __init__(self, text: str, error: Exception | None = None) -> None:
        self.text, self.error = text, error


class _Channel:
    """Sends and receives packets on a communicator that only collective operations use."""

    draft = True  # packets are sent through queues of copyless
    has_roots = True  # the root is the same at each rank
    tag = 0  # of the operation that this rank runs

    one_node = True
    board: object = None  # for small objects, without messages: on MPI, among the ranks of one node

    def __init__(self, comm: Any, rank: int, size: int, first: int = 0) -> None:
        self.comm, self.rank, self.size = comm, rank, size
        # Of the operation that this rank is in: each of its messages has it. `first`: above all numbers of former
        # communicators of these ranks, so that a message that was left in one of them is never taken here.
        self.number = self.first = first
        self.touched = False  # whether this operation has sent or awaited a message
        self.all_told = False  # of the error that this operation raises
        self._early: dict[tuple[int, int], tuple[int, _Message]] = {}  # of later operations, by rank and tag
        self._tags = [0] * _REMEMBERED  # of the last operations, each at its number's place
        self._told: tuple[int, int] | None = None  # the operation and the rank that was last told of it
        self._heard: dict[int, tuple[int, int]] = {}  # the operation and its tag that another rank has told last
        comm._late = self.late

    def seal(self, obj: Any) -> Any:
        """The object, or its bytes if the caller has chosen other pickle functions."""
        return self.comm._sealed(obj)

    def pack(self, obj: object) -> Packet:
        return Packet.of(self.seal(obj), not self.one_node, self.draft)

    def put(self, rank: int, packet: object) -> Any:
        self.touched = True
        return self.comm._put((self.number, packet), rank, self.tag)

    def take(self, rank: int) -> Any:
        """What another rank sends in this operation."""
        self.touched = True
        while (got := self.next(rank)) is None:
            pass
        return got[0]

    def next(self, rank: int) -> tuple[object] | None:
        """What the next message of another rank has for this operation; None if it was of an older one.

        A message of an older operation, which this rank has left before it received it, is dropped. One of a later
        operation is kept for that: its sender has left this operation.
        """
        tag, message = self._early.pop((rank, self.tag), None) or self.comm._take(rank, self.tag)
        if message[0] < self.number:
            _drop(message[1])
            return None
        if message[0] > self.number:
            self._early[rank, tag] = tag, message
        if tag != self.tag:
            self.mistake(rank, tag)
        return (self._accepted(rank, message),)

    def _accepted(self, rank: int, message: _Message) -> object:
        if message[0] > self.number:
            raise self.failure(f"rank {rank} has left {said_by(self.tag)} for a later one, and this rank waits for it")
        if len(message) > 2:
            raise self.failure(message[2])
        return message[1]

    def mistake(self, rank: int, tag: int) -> None:
        """Raise what another rank called, and let all know."""
        self.comm._mistaken(rank, tag, self.tag)

    def failure(self, text: str) -> Exception:
        """The error that tells a rank of something at another."""
        made: Exception = self.comm._failure(text)
        return made

    def text_of(self, error: BaseException) -> str:
        """What other ranks are told of an error of this one."""
        if isinstance(error, type(self.failure(""))):
            return str(error)
        return f"rank {self.rank} failed in {said_by(self.tag)}: {type(error).__name__}: {error}"

    def failed(self, error: BaseException) -> None:
        """The operation of this rank has raised. If it has no part in messages yet, it has not begun."""
        if self.touched:
            self.leave(error)
        else:
            self.number -= 1

    def leave(self, error: BaseException) -> None:
        """Tell the ranks that may wait for messages of this one that it has left the operation."""

    # ---- what takes the place of a value: see the top

    def fault(self, error: Exception) -> Fault:
        """What others get in place of a value because of an error of this rank."""
        return Fault(self.text_of(error), error)

    def tried(self, call: Callable[[], object]) -> object:
        """What the call returns, or a Fault."""
        try:
            return call()
        except Exception as error:
            return self.fault(error)

    def valid(self, value: _T | Fault) -> _T:
        """The value. Raises the error that is in its place, which every rank that waits has been told of."""
        if isinstance(value, Fault):
            self.all_told = True
            raise value.error or self.failure(value.text)
        return value

    def hand(self, rank: int, value: object) -> object:
        """Send a value, or the text of the error in its place. Returns the value, or why it could not be sent."""
        packed = self._packed(value)
        self.finish([self.put(rank, packed.text if isinstance(packed, Fault) else packed)])
        return packed if isinstance(packed, Fault) else value

    def _packed(self, value: object) -> object:
        """The packet of a value, or a Fault."""
        return value if isinstance(value, Fault) else self.tried(lambda: self.pack(value))

    def handed(self, rank: int) -> object:
        """What another rank hands to this one."""
        return self.opened(self.take(rank))

    def opened(self, got: object) -> object:
        """The value in a packet, or the Fault of a text in its place."""
        return Fault(got) if type(got) is str else self.tried(lambda: got.open())  # type: ignore[attr-defined]

    def joined(self, first: object, second: object, op: Operation) -> object:
        """Two values combined. An error of the first comes before one of the second."""
        for value in (first, second):
            if isinstance(value, Fault):
                return value
        return self.tried(lambda: op(first, second))

    # ---- who waits for long says what for

    def begun(self) -> None:
        """Count an operation; now and then, take in what others have told."""
        self.touched = False
        self.number = number = self.number + 1
        self._tags[number % _REMEMBERED] = self.tag
        if number % _REMEMBERED == 0:
            self._heard.update(self.comm._hear())

    def late(self, awaited: int) -> None:
        """Of a wait that lasts: tell the rank that is waited for which operation this one is in, once, and look what
        others have told. Ranks that wait for each other in different operations, or with different roots, find out so.
        """
        if not self.tag:
            return
        if self._told != (self.number, awaited):
            self._told = self.number, awaited
            self.comm._put((self.number, self.tag), awaited, WAITING)
        self.hear()

    def hear(self) -> None:
        """Look what others have told of the operations that they wait in."""
        self._heard.update(self.comm._hear())
        for rank, (number, tag) in self._heard.items():
            if 0 <= self.number - number < _REMEMBERED:
                mine = self._tags[number % _REMEMBERED]
                if mine != tag:
                    self._heard.clear()
                    self.comm._mistaken(rank, tag, mine)

    def close(self) -> None:
        """The communicator is freed."""

    def finish(self, requests: list[Any]) -> None:
        for request in requests:
            request.wait()

    def put_all(self, ranks: Sequence[int], obj: object, packet: Packet, title: str | None = None) -> None:
        """Send one packet to several ranks. An object that can be sent only once is packed again for each.

        With a `title`, a large packet shows a progress bar.
        """
        if packet.handles:
            self.finish([self.put(rank, packet if i == 0 else self.pack(obj)) for i, rank in enumerate(ranks)])
            return
        with shown(title, packet.nbytes) as tell:
            if len(ranks) > 1 or tell is not None:
                packet.gather(tell)
            self.finish([self.put(rank, packet) for rank in ranks])

    def neighbor_alltoall(
        self, sends: Sequence[tuple[int, int, object]], receives: Sequence[tuple[int, int]]
    ) -> list[object]:
        """Send objects, each a (rank, edge, object), and receive one by each (rank, edge)."""
        self.tag = first = tag_of("neighbor_alltoall")
        try:
            self.begun()
            self.touched = True
            requests = [
                self.comm._put((self.number, self.seal(obj)), rank, first + 16 * edge) for rank, edge, obj in sends
            ]
            got = [self._of_edge(rank, first + 16 * edge) for rank, edge in receives]
            self.finish(requests)
            return got
        except BaseException as error:
            text = self.text_of(error)
            for rank, edge, _ in sends if self.touched and not isinstance(error, OwnerDiedError) else ():
                with contextlib.suppress(Exception):
                    self.comm._put((self.number, None, text), rank, first + 16 * edge)
            raise
        finally:
            self.tag = 0

    def _of_edge(self, rank: int, tag: int) -> object:
        while True:
            _, message = self._early.pop((rank, tag), None) or (tag, self.comm.recv(None, rank, tag))
            if message[0] >= self.number:
                break
            _drop(message[1])
        if message[0] > self.number:
            self._early[rank, tag] = tag, message
        return self._accepted(rank, message)


def _drop(packet: object) -> None:
    """Release what a message that nobody needs holds."""
    if isinstance(packet, Packet):
        with contextlib.suppress(Exception):
            packet.open()
    elif isinstance(packet, (tuple, dict)):
        for each in packet.values() if isinstance(packet, dict) else packet:
            _drop(each)


def mistaken(rank: int, theirs: int, mine: int) -> str:
    """The error text for another rank that is in another operation."""
    alike = theirs % _MARK == mine % _MARK
    they, this = (
        said_by(tag) + (f" with {_reduction(tag)}" if alike and tag >= _MARK else "") for tag in (theirs, mine)
    )
    return (
        f"rank {rank} called {they} where this rank called {this}: the ranks of a communicator must call its "
        "collective operations in the same order, with the same root and operation"
    )


def _reduction(tag: int) -> str:
    number = tag // _MARK - 2
    return NAMES[number] if 0 <= number < len(NAMES) else "a function of its own"


class Intra(_Channel):
    """Collective operations among the ranks of one group, which share a node."""

    def leave(self, error: BaseException) -> None:
        if self.all_told or isinstance(error, OwnerDiedError):  # each rank finds the latter by itself
            self.all_told = False
            return
        told = self.number, None, self.text_of(error)
        for rank in range(self.size):
            if rank != self.rank:
                with contextlib.suppress(Exception):
                    self.comm._put(told, rank, self.tag)

    @named(1)
    def bcast(self, obj: object, root: int, readonly: bool = False, progress: bool = False) -> Any:
        if self.size == 1:
            return obj
        if self.rank != root:
            return self.take(root).open(readonly)
        title = f"rank {root} to all" if progress else None
        self.put_all([rank for rank in range(self.size) if rank != root], obj, self.pack(obj), title)
        return obj

    @named(1)
    def gather(self, obj: object, root: int) -> list[Any] | None:
        if self.rank != root:
            self.finish([self.put(root, self.pack(obj))])
            return None
        self.touched = True  # the others go on, whatever happens here
        own = copy_of(self.seal(obj))  # while the other ranks pack
        packets = {rank: self.take(rank) for rank in range(self.size) if rank != root}
        return [own if rank == root else packets[rank].open() for rank in range(self.size)]

    @named(1)
    def scatter(self, objs: object, root: int) -> Any:
        if self.rank != root:
            return self.take(root).open()
        objs = listed(objs, self.size)
        self.finish([self.put(rank, self.pack(objs[rank])) for rank in range(self.size) if rank != root])
        return copy_of(self.seal(objs[root]))

    @named()
    def allgather(self, obj: object) -> list[Any]:
        """Each rank's packet is sent to rank 0, and from there to every rank."""
        if self.size == 1:
            return [copy_of(self.seal(obj))]
        packet = self.pack(obj)
        if packet.handles:  # each handle is valid for one receiver
            packet.drop()
            return self.alltoall([obj] * self.size)
        packet.gather()
        if self.rank:
            self.finish([self.put(0, packet)])
            have = self.take(0)
        else:
            have = {0: packet} | {rank: self.take(rank) for rank in range(1, self.size)}
            for other in have.values():
                other.gather()
            self.finish([self.put(rank, have) for rank in range(1, self.size)])
        return [copy_of(self.seal(obj)) if rank == self.rank else have[rank].open() for rank in range(self.size)]

    @named()
    def alltoall(self, objs: object) -> list[Any]:
        objs = listed(objs, self.size)
        others = [(self.rank + i) % self.size for i in range(1, self.size)]
        # not packed: each object is sent to one rank
        requests = [self.put(rank, self.seal(objs[rank])) for rank in others]
        got = {self.rank: copy_of(self.seal(objs[self.rank]))}  # while the other ranks send
        got |= {rank: self.take(rank) for rank in reversed(others)}
        self.finish(requests)
        return [got[rank] for rank in range(self.size)]

    @named(2)
    def reduce(self, obj: object, op: object, root: int) -> Any:
        value = self.along(range(self.size), obj, operation(op), self.size < 3)
        if isinstance(value, _slices.Division):
            return value.result(False) if self.rank == root else None
        if self.rank == 0:
            value = self._own(value, obj)
            if root:
                value = self.hand(root, value)
        elif self.rank == root:
            got = self.handed(0)
            value = value if isinstance(value, Fault) else got
        value = self.valid(value)
        return value if self.rank == root else None

    @named()
    def allreduce(self, obj: object, op: object) -> Any:
        value = self.along(range(self.size), obj, operation(op), self.size < 3)
        if isinstance(value, _slices.Division):
            return value.result(True)
        if self.rank:
            got = self.handed(0)
            return self.valid(value if isinstance(value, Fault) else got)
        value = self._own(value, obj)
        others = range(1, self.size)
        packet = self._packed(value) if others else value
        if isinstance(packet, Fault):
            self.finish([self.put(rank, packet.text) for rank in others])
        elif isinstance(packet, Packet):
            self.put_all(others, value, packet)
        self.valid(packet)
        return value

    def _own(self, value: object, obj: object) -> object:
        """The value, which is no longer the caller's own object."""
        return self.tried(lambda: copy_of(self.seal(obj))) if value is obj else value

    def along(
        self, ranks: Sequence[int], value: object, op: Operation, whole: bool = False, of_caller: bool = True
    ) -> object:
        """The reduction of the values of these ranks in their order, by a binomial tree. What each of them gets:

        a Division   if each of them has written a slice of the result,
        a Fault      if it has met an error, or was told of one,
        else         the result at the first of them, None at the others.

        A large array is offered to the parent in the tree instead of being combined, unless the arrays shall be
        combined `whole`. If the first rank is offered all of them, each rank computes a slice. Otherwise the arrays are
        combined where the tree meets something else.

        `of_caller`: the value is the caller's own, which an operation must not change.
        """
        self.touched, self.all_told = True, False  # the others go on, whatever happens here
        place, size = ranks.index(self.rank), len(ranks)
        offer = memory = None
        if size > 1 and not whole:
            made = self.tried(lambda: self.offer(value, op))
            if isinstance(made, Fault):
                value = made
            elif isinstance(made, tuple):
                offer, memory = made
        waiting = [] if offer is None else [self.rank]  # the ranks that wait for an answer of the first
        mask = 1
        while mask < size and not place & mask:
            if place + mask < size:
                got = self.taken(ranks[place + mask])
                theirs: _slices.Offer | None = None
                if type(got) is tuple:
                    theirs, got, others = got
                    waiting += others
                if offer is not None and theirs is not None and offer[0] == theirs[0]:
                    offer = offer[0], offer[1] + theirs[1]
                else:
                    if offer is not None and len(offer[1]) > 1:
                        value, of_caller = self._evaluated(offer, op), False
                    offer = None
                    if of_caller:
                        value, of_caller = self._changeable(value, op), False
                    value = self.joined(value, self.opened(got) if theirs is None else self._evaluated(theirs, op), op)
            mask <<= 1
        if place:
            parent = ranks[place - mask]
            if offer is None and not waiting:
                value = self.hand(parent, value)
            else:
                packet = None if offer is not None else self._packed(value)
                if isinstance(packet, Fault):
                    value, packet = packet, packet.text
                self.finish([self.put(parent, (offer, packet, waiting))])
            job = None if memory is None else self.take(ranks[0])
        else:
            made_job = None
            if offer is not None and memory is not None and len(offer[1]) == size:
                made_job = _slices.job_of(offer, memory.nbytes)
            job = None if made_job is None else made_job[0]
            if offer is not None and job is None and len(offer[1]) > 1:
                value = self._evaluated(offer, op)
            answer = value.text if isinstance(value, Fault) else job
            self.finish([self.put(rank, answer) for rank in waiting if rank != self.rank])
        if type(job) is tuple:
            return self._divided(job, ranks)
        if isinstance(value, Fault) or not place:
            return value
        return Fault(job) if type(job) is str else None

    def taken(self, rank: int) -> Any:
        """What a rank in the tree sends; if an error is raised here, the others are told by `leave`."""
        return self.take(rank)

    def offer(self, value: object, op: Operation) -> tuple[_slices.Offer, Memory] | None:
        """An array in shared memory, as `_slices.offer_of` makes it."""
        # (the caller's own pickle functions get every object that travels)
        return _slices.offer_of(value, op) if _slices.divides(value, op) and self.seal(value) is value else None

    def _divided(self, job: _slices.Job, ranks: Sequence[int]) -> object:
        """A reduction of which each of these ranks writes a slice: at the end all slices are written, and all arrays
        read.
        """
        place, size = ranks.index(self.rank), len(ranks)
        made = self.slice_of(job, place, size)
        known: object = made.text if isinstance(made, Fault) else made.has_nan
        distance = 1
        while distance < size:  # what one rank knows, all know at the end
            request = self.put(ranks[(place + distance) % size], known)
            theirs = self.take(ranks[(place - distance) % size])
            known = theirs if type(theirs) is str else known or theirs
            request.wait()
            distance <<= 1
        if isinstance(made, Fault):
            return made
        if type(known) is str:
            return Fault(known)
        made.has_nan = bool(known)
        return made

    def slice_of(self, job: _slices.Job, place: int, size: int) -> _slices.Division | Fault:
        """A Division, with the slice of this rank written."""

        def compute() -> _slices.Division:
            division = _slices.Division(job, place, size)
            division.compute()
            return division

        return self._living(compute)

    def _evaluated(self, offer: _slices.Offer, op: Operation) -> object:
        return self._living(lambda: _slices.evaluated(offer, op))

    def _living(self, call: Callable[[], _T]) -> _T | Fault:
        """What the call returns, or a Fault. The call reads memory of other ranks, which they keep as long as they
        live.
        """
        try:
            return call()
        except StaleHandleError as error:
            self.comm._look_for_deaths()
            gone = self.failure(f"the array of a rank that has left {said_by(self.tag)} is gone: {error}")
            gone.__cause__ = error
            return self.fault(gone)
        except Exception as error:
            return self.fault(error)

    def _changeable(self, obj: object, op: Operation) -> object:
        """`_operand` of a value, or a Fault."""
        return obj if isinstance(obj, Fault) else self.tried(lambda: self._operand(obj, op))

    def _operand(self, obj: object, op: Operation) -> object:
        """The object, or a copy of it if the operation may change its operands."""
        if type(obj) in FIXED:
            return obj
        if hasattr(obj, "__array__") and any(op is each for each in OPERATIONS):
            import numpy as np

            if type(obj) is np.ndarray and obj.dtype.kind in "biufc":
                return obj
        return copy_of(self.seal(obj))

    @named()
    def scan(self, obj: object, op: object, exclusive: bool = False) -> Any:
        return self._scan(obj, operation(op), exclusive)

    def _scan(self, obj: object, op: Operation, exclusive: bool) -> object:
        """The reduction over the ranks up to this one, by doubling: each rank sends and receives log2(n) times."""
        self.touched, self.all_told = True, False  # the others go on, whatever happens here
        whole, before = obj, None
        distance = 1
        while distance < self.size:
            requests = []
            if self.rank + distance < self.size:
                packed = self._packed(whole)
                if isinstance(packed, Fault):
                    whole = packed
                requests.append(self.put(self.rank + distance, packed.text if isinstance(packed, Fault) else packed))
            packet = self.take(self.rank - distance) if self.rank >= distance else None
            self.finish(requests)  # of what the operation may change
            if packet is not None:
                lower = self.opened(packet)
                if exclusive:
                    other = self._changeable(lower, op)
                    before = other if distance == 1 else self.joined(other, before, op)
                whole = self.joined(lower, self._changeable(obj, op) if whole is obj else whole, op)
            distance <<= 1
        whole = self.valid(whole)  # also of a rank that has the result of `exscan`, if it had nothing for others
        if exclusive:
            return self.valid(before)
        return copy_of(self.seal(obj)) if whole is obj else whole

    @named()
    def barrier(self) -> None:
        distance = 1
        while distance < self.size:
            request = self.put((self.rank + distance) % self.size, None)
            self.take((self.rank - distance) % self.size)
            request.wait()
            distance <<= 1


class Inter(_Channel):
    """Collective operations between two groups; `local` has those of this group. The root is ROOT at the root itself,
    PROC_NULL at the other ranks of its group, and the root's rank in the other group.
    """

    def __init__(
        self, comm: object, rank: int, size: int, local: Intra, roots: tuple[int, int], first: int = 0
    ) -> None:
        super().__init__(comm, rank, size, first)
        self.local = local
        self._root, self._null = roots

    has_roots = False

    def pack(self, obj: object) -> Packet:
        return Packet.of(self.seal(obj), by_value=True)  # the other group may be on other nodes

    def _role(self, root: int) -> str:
        if root == self._root:
            return "root"
        if root == self._null:
            return "aside"
        if 0 <= root < self.size:
            return "across"
        raise ValueError(
            f"root {root} is invalid: on an intercommunicator, root is ROOT at the root itself, PROC_NULL at "
            f"the other ranks of its group, and in the other group the root's rank, 0 to {self.size - 1}"
        )

    @named(1)
    def bcast(self, obj: object, root: int, readonly: bool = False, progress: bool = False) -> Any:
        role = self._role(root)
        if role == "root":
            self.finish([self.put(0, self.pack(obj))])
        if role != "across":
            return None
        got = self.take(root).open() if self.rank == 0 else None
        return self.local.bcast(got, 0, readonly)

    @named(1)
    def gather(self, obj: object, root: int) -> list[Any] | None:
        role = self._role(root)
        if role == "across":
            self.finish([self.put(root, self.pack(obj))])
        return [self.take(rank).open() for rank in range(self.size)] if role == "root" else None

    @named(1)
    def scatter(self, objs: object, root: int) -> Any:
        role = self._role(root)
        if role == "root":
            objs = listed(objs, self.size)
            self.finish([self.put(rank, self.pack(obj)) for rank, obj in enumerate(objs)])
        return self.take(root).open() if role == "across" else None

    @named()
    def allgather(self, obj: object) -> list[Any]:
        return self.alltoall([obj] * self.size)

    @named()
    def alltoall(self, objs: object) -> list[Any]:
        requests = [self.put(rank, self.pack(obj)) for rank, obj in enumerate(listed(objs, self.size))]
        got = [self.take(rank).open() for rank in range(self.size)]
        self.finish(requests)
        return got

    @named(2)
    def reduce(self, obj: object, op: object, root: int) -> Any:
        role = self._role(root)
        if role == "root":
            return self.valid(self.handed(0))
        if role == "across":
            self.touched = True
            result = self.tried(lambda: self.local.reduce(obj, op, 0))
            self.valid(self.hand(root, result) if self.rank == 0 else result)
        return None

    @named()
    def allreduce(self, obj: object, op: object) -> Any:
        """Each group gets the reduction of the other group; if one of the two fails, all ranks are told."""
        self.touched = True
        result = self.tried(lambda: self.local.reduce(obj, op, 0))
        told, got = None, None
        if self.rank == 0:
            packed = self._packed(result)
            request = self.put(0, packed.text if isinstance(packed, Fault) else packed)
            got = self.handed(0)
            request.wait()
            result = next((each for each in (packed, got) if isinstance(each, Fault)), result)
            if isinstance(result, Fault):
                told, got = result.text, None
        told, got = self.local.bcast((told, got), 0)
        if told is not None and not isinstance(result, Fault):
            result = Fault(told)
        self.valid(result)
        return got

    @named()
    def scan(self, obj: object, op: object, exclusive: bool = False) -> Any:
        raise ValueError("scan and exscan are not defined on an intercommunicator: call Merge() first")

    @named()
    def barrier(self) -> None:
        self.allreduce(0, SUM)


def listed(objs: Any, size: int) -> list[Any]:
    objs = [None] * size if objs is None else objs if isinstance(objs, list) else list(objs)
    if len(objs) != size:
        raise ValueError(f"expecting {size} items, got {len(objs)}")
    return objs  # type: ignore[no-any-return]


def operation(op: Any) -> Operation:
    if not callable(op):
        raise TypeError(f"op must be a function of two arguments, such as copyless.comm.SUM, not {op!r}")
    return op  # type: ignore[no-any-return]
