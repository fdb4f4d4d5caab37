"""The communicators on shared memory: `Comm`, `Intracomm`, `Intercomm`, `Cartcomm`, and `RankGroup`.

All but `RankGroup` mirror classes of `mpi4py.util.pkl5` and `mpi4py.MPI`. They are public in `copyless.comm.local`. A
communicator consists of a number (its context) and the ranks of the world that belong to it. Its messages go through
this rank's engine, in `_group`.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from copyless._one_process import check_in_children, check_process
from copyless.comm import _collectives, _custom_pickle, _inbox
from copyless.comm._constants import (
    ANY_SOURCE,
    ANY_TAG,
    ERR_OTHER,
    ERR_RANK,
    ERR_ROOT,
    ERR_TAG,
    PROC_NULL,
    ROOT,
    TAG_MOST,
    UNDEFINED,
)
from copyless.comm._group import Engine, Receive
from copyless.comm._inbox import Port
from copyless.comm._interface import CollectiveMethods, NeighborMethods, RequestMethods, ScanMethods
from copyless.comm._local_requests import CommError, Message, Request, Status
from copyless.errors import ClosedError, OwnerDiedError

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["COMM_NULL", "Cartcomm", "Comm", "Intercomm", "Intracomm", "RankGroup", "choice"]

choice = _custom_pickle.Choice("local", _inbox.use_own_pickle)


class Comm(CollectiveMethods):
    """Comm(comm=None)

    A communicator on shared memory; base class of `Intracomm` and `Intercomm`. Mirrors `mpi4py.util.pkl5.Comm`.

    ``Comm(other)`` makes another object for the same communicator, without other ranks. A receive that one object
    posted is matched before later receives of the other.

    Errors of its methods: `CommError` for a rank, root or tag that does not exist, `OwnerDiedError` if a rank that is
    waited for has died, `ClosedError` after `Free`.
    """

    _engine: Engine
    _context: int
    _group: list[int]  # ranks of this group, numbered as in the world
    _remote: list[int]  # ranks of the group that messages are sent to
    _port: Any  # the fast path for small messages; None after Free
    _shadow: Any  # the collective operations, with a context of their own

    def __new__(cls, comm: Comm | None = None) -> Any:
        made = super().__new__(cls)
        if comm is not None:
            made.__dict__.update(comm.__dict__)
        return made

    def __init__(self, comm: Comm | None = None) -> None:
        if comm is None and not hasattr(self, "_engine"):
            raise ValueError("a communicator cannot be made directly: use comm.world(), Split or Dup")

    @classmethod
    def _of(cls, engine: Engine, context: int, group: list[int], remote: list[int], me: int) -> Self:
        made = object.__new__(cls)
        made._engine, made._context, made._group, made._remote, made._me = engine, context, group, remote, me
        made._port = Port(engine.inbox, context, remote, me)
        made._shadow = None
        made.name = ""
        return made

    # ---- ranks

    def Get_rank(self) -> int:
        """The rank of this process."""
        return self._me

    def Get_size(self) -> int:
        """The number of ranks in this group."""
        return len(self._group)

    def Is_inter(self) -> bool:
        return isinstance(self, Intercomm)

    def Is_intra(self) -> bool:
        return not self.Is_inter()

    @property
    def rank(self) -> int:
        """The rank of this process."""
        return self._me

    @property
    def size(self) -> int:
        """The number of ranks in this group."""
        return len(self._group)

    @property
    def is_inter(self) -> bool:
        return self.Is_inter()

    def Dup(self, info: object = None) -> Any:
        """A new communicator of the same ranks with separate messages. Needs no communication."""
        if self._port is None:
            raise ClosedError("this communicator was freed")
        made = type(self)(self)
        made._context = self._engine.derived(self._context)
        made._port = Port(self._engine.inbox, made._context, self._remote, self._me)
        made._shadow = None
        return made

    Clone = Dup

    def Dup_with_info(self, info: object) -> Any:
        """`Dup`; the info is not used."""
        return self.Dup()

    def Idup(self, info: object = None) -> tuple[Any, Request]:
        """(the result of `Dup`, a request that is complete)."""
        return self.Dup(), Request._of(self, "send")

    def Get_group(self) -> RankGroup:
        """The ranks of this group, as a `RankGroup`."""
        return RankGroup(list(self._group), self._me)

    @property
    def group(self) -> RankGroup:
        """The ranks of this group, as a `RankGroup`."""
        return self.Get_group()

    def Get_name(self) -> str:
        return self.name

    def Set_name(self, name: str) -> None:
        self.name = name

    name: str
    _me: int

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Comm):
            return NotImplemented
        return self._context == other._context and self._engine is other._engine

    if TYPE_CHECKING:

        def __hash__(self) -> int: ...
    else:
        __hash__ = object.__hash__

    def __bool__(self) -> bool:
        return self._port is not None

    def __repr__(self) -> str:
        name = f" {self.name!r}" if self.name else ""
        return f"<{type(self).__module__}.{type(self).__name__}{name} rank {self._me} of {len(self._group)}>"

    def __reduce__(self) -> Any:
        raise TypeError(
            "a communicator belongs to its process and cannot be pickled: call copyless.comm.world() in the "
            "other process"
        )

    def _everyone(self) -> list[int]:
        return self._remote

    def _peer(self, rank: int, tag: int, least: int = 0) -> int:
        """A checked rank, as its number in the world."""
        if self._port is None:
            raise ClosedError("this communicator was freed")
        if not least <= tag <= TAG_MOST:
            raise CommError(ERR_TAG, f"a tag must be 0 to {TAG_MOST}, not {tag}")
        if not 0 <= rank < len(self._remote):
            raise CommError(ERR_RANK, f"rank {rank} does not exist: there are ranks 0 to {len(self._remote) - 1} here")
        return self._remote[rank]

    # ---- sending

    if TYPE_CHECKING:

        def send(self, obj: object, dest: int, tag: int = 0, *, progress: bool = False) -> None: ...
        def bsend(self, obj: object, dest: int, tag: int = 0, *, progress: bool = False) -> None: ...
    else:
        send = _inbox.send
        bsend = _inbox.send

    def _send(self, obj: object, dest: int, tag: int, progress: bool) -> None:
        """Send a message that cannot take the fast path."""
        if dest != PROC_NULL:
            title = f"rank {self._me} to {dest}" if progress else None
            self._engine.send(choice.sealed(obj), self._peer(dest, tag), self._context, self._me, tag, False, title)

    def ssend(self, obj: object, dest: int, tag: int = 0) -> None:
        """`send` that returns when the receiver has begun to receive."""
        self.issend(obj, dest, tag).wait()

    def isend(self, obj: object, dest: int, tag: int = 0) -> Request:
        """`send` that returns a request, which is already complete."""
        self.send(obj, dest, tag)
        return Request._of(self, "send")

    ibsend = isend

    def issend(self, obj: object, dest: int, tag: int = 0) -> Request:
        """`ssend` that returns a request. It is complete when the receiver has begun to receive."""
        if dest == PROC_NULL:
            return Request._of(self, "send")
        to = self._peer(dest, tag)
        number = self._engine.send(choice.sealed(obj), to, self._context, self._me, tag, synchronous=True)
        request = Request._of(self, "send", None, number)
        request._dest = to
        return request

    # ---- receiving

    def _receive(self, source: int, tag: int) -> Receive | None:
        if source == PROC_NULL:
            return None
        if source == ANY_SOURCE:
            if self._port is None:
                raise ClosedError("this communicator was freed")
            if tag < 0 and tag != ANY_TAG:
                raise CommError(ERR_TAG, f"a tag must be 0 to {TAG_MOST}, or ANY_TAG, not {tag}")
            return Receive(self._context, -1, tag, self._everyone())
        return Receive(self._context, source, tag, [self._peer(source, tag, ANY_TAG)])

    if TYPE_CHECKING:

        def recv(
            self,
            buf: object = None,
            source: int = ANY_SOURCE,
            tag: int = ANY_TAG,
            status: Status | None = None,
            *,
            progress: bool = False,
        ) -> Any: ...
    else:
        recv = _inbox.recv

    def _recv(self, source: int, tag: int, status: Status | None) -> Any:
        """Receive a message that cannot take the fast path."""
        receive = self._receive(source, tag)
        if receive is None:
            if status is not None:
                status._tell(None, None)
            return None
        engine = self._engine
        engine.post(receive)
        if receive.message is None:
            try:
                engine.wait(lambda: receive.message is not None, receive.sources)
            except BaseException:
                engine.cancel(receive)
                raise
        message: Any = receive.message
        if status is not None:
            status._tell(self, message)
        return message.open()

    def irecv(self, buf: object = None, source: int = ANY_SOURCE, tag: int = ANY_TAG) -> Request:
        """A request that receives the next matching message, before any receive that begins later."""
        receive = self._receive(source, tag)
        if receive is None:
            return Request._of(self, "receive")
        self._engine.progress()
        return Request._of(self, "receive", self._engine.post(receive))

    def sendrecv(
        self,
        sendobj: object,
        dest: int,
        sendtag: int = 0,
        recvbuf: object = None,
        source: int = ANY_SOURCE,
        recvtag: int = ANY_TAG,
        status: Status | None = None,
    ) -> Any:
        """Send one object and receive another."""
        self.send(sendobj, dest, sendtag)
        return self.recv(recvbuf, source, recvtag, status)

    def _probe(self, source: int, tag: int, status: Status | None, wait: bool, keep: bool) -> Any:
        receive = self._receive(source, tag)
        if receive is None:
            if status is not None:
                status._tell(None, None)
            return Message._of(self, None)
        engine = self._engine

        def there() -> bool:
            assert receive is not None
            engine.post(receive, keep=True)
            return receive.message is not None

        while True:
            engine.progress()
            if not there():
                if not wait:
                    return None
                engine.wait(there, receive.sources)
            if keep:
                break
            receive.message = None
            engine.post(receive)
            if receive.message is not None:
                break
            engine.cancel(receive)  # another thread received it first
            if receive.message is not None:
                break
        if status is not None:
            status._tell(self, receive.message)
        return Message._of(self, receive.message)

    def mprobe(self, source: int = ANY_SOURCE, tag: int = ANY_TAG, status: Status | None = None) -> Message:
        """Wait for a message and match it: only the `Message` that is returned can receive it."""
        return self._probe(source, tag, status, wait=True, keep=False)  # type: ignore[no-any-return]

    def improbe(self, source: int = ANY_SOURCE, tag: int = ANY_TAG, status: Status | None = None) -> Message | None:
        """`mprobe` without waiting; None if there is no message."""
        return self._probe(source, tag, status, wait=False, keep=False)  # type: ignore[no-any-return]

    def probe(self, source: int = ANY_SOURCE, tag: int = ANY_TAG, status: Status | None = None) -> bool:
        """Wait until there is a message to receive."""
        return self._probe(source, tag, status, wait=True, keep=True) is not None

    def iprobe(self, source: int = ANY_SOURCE, tag: int = ANY_TAG, status: Status | None = None) -> bool:
        """Whether there is a message to receive."""
        return self._probe(source, tag, status, wait=False, keep=True) is not None

    def Probe(self, source: int = ANY_SOURCE, tag: int = ANY_TAG, status: Status | None = None) -> bool:
        """The same as `probe`."""
        return self.probe(source, tag, status)

    def Iprobe(self, source: int = ANY_SOURCE, tag: int = ANY_TAG, status: Status | None = None) -> bool:
        """The same as `iprobe`."""
        return self.iprobe(source, tag, status)

    # ---- together

    def _together(self) -> Any:
        if self._port is None:
            raise ClosedError("this communicator was freed")
        if self._shadow is None:
            self._shadow = self._make_shadow()
        return self._shadow

    def _make_shadow(self) -> Any:
        raise NotImplementedError

    # How collective operations send and receive: on their own communicator, with packed objects.

    def _sealed(self, obj: object) -> Any:
        return choice.sealed(obj)

    def _put(self, packet: object, dest: int, tag: int) -> Request:
        if choice.is_own:
            self._engine.send(packet, self._peer(dest, tag), self._context, self._me, tag)
        else:
            self.send(packet, dest, tag)
        return Request._of(self, "send")

    def _take(self, source: int, tag: int) -> tuple[int, Any]:
        """(the tag of a message from another rank, the message). Another tag means that it called another operation:
        its messages arrive in order.
        """
        found = _inbox.at_once(self, source, tag)
        if found is not _inbox.NONE_YET:
            return tag, found
        engine, receive = self._engine, self._receive(source, tag)
        assert receive is not None
        engine.post(receive)

        def done() -> Any:
            return receive.message is not None or engine.waits(self._context, source, _collectives.WAITING)

        if receive.message is None:
            try:
                while not engine.wait(done, receive.sources, time.monotonic() + _collectives.LATE):
                    if self._late is not None:
                        self._late(source)
            except BaseException:
                engine.cancel(receive)
                raise
        if receive.message is None:
            engine.cancel(receive)
            other = engine.waits(self._context, source, _collectives.WAITING)
            if receive.message is None and other is not None:
                if other.tag == _collectives.tag_of("mistaken"):  # another rank has found it
                    raise self._told_of_mistake(other.open())
                return other.tag, self.recv(None, source, other.tag)
        message: Any = receive.message
        return tag, message.open()

    _late: Any = None  # called in a collective operation while it waits for a rank

    def _look_for_deaths(self) -> None:
        """Raise OwnerDiedError if a rank of the communicator has died."""
        self._engine._look(self._remote, lambda: False)

    def _hear(self) -> list[tuple[int, tuple[int, int]]]:
        """Which operations other ranks wait in, as they have told."""
        heard = []
        for tag in (_collectives.tag_of("mistaken"), _collectives.WAITING):
            while True:
                receive = Receive(self._context, -1, tag, ())
                self._engine.progress()
                self._engine.post(receive)
                if receive.message is None:
                    self._engine.cancel(receive)
                if receive.message is None:
                    break
                if tag != _collectives.WAITING:
                    raise self._told_of_mistake(receive.message.open())
                heard.append((receive.message.source, receive.message.open()))
        return heard

    def _failure(self, text: str) -> CommError:
        return CommError(ERR_OTHER, text)

    _mistake: str | None = None  # what another rank has told: every later operation raises it, too

    def _told_of_mistake(self, text: str | None) -> CommError:
        """The error for what another rank has found. None: the message was opened already."""
        self._mistake = self._mistake if text is None else text
        return CommError(ERR_OTHER, self._mistake or "another rank has called another operation")

    def _mistaken(self, source: int, theirs: int, mine: int) -> NoReturn:
        """Raise what another rank called, and tell all: they may wait for this one."""
        text = _collectives.mistaken(source, theirs, mine)
        for rank in range(len(self._remote)):
            if rank != self._me or isinstance(self, Intercomm):
                with contextlib.suppress(OwnerDiedError):
                    self._put(f"rank {self._me} was told: {text}", rank, _collectives.tag_of("mistaken"))
        raise CommError(ERR_OTHER, text)

    def _root(self, root: int) -> int:
        size, inter = len(self._remote), isinstance(self, Intercomm)
        if not 0 <= root < size and not (inter and root in (ROOT, PROC_NULL)):
            across = (
                (
                    "; on an intercommunicator, root is ROOT at the root itself and PROC_NULL at the other ranks of "
                    "its group"
                )
                if inter
                else ""
            )
            raise CommError(ERR_ROOT, f"root {root} does not exist: there are ranks 0 to {size - 1} here{across}")
        return root

    def barrier(self) -> None:
        """Wait until all ranks have called `barrier`."""
        self._together().barrier()

    Barrier = barrier

    def Free(self) -> None:
        """Free the communicator. Messages that were not received are dropped when the process ends."""
        self._port = None

    def Abort(self, errorcode: int = 0) -> None:
        """End this rank at once with an error code. The others are told, and ``copyless run`` ends them."""
        self._engine.group.end(self._engine.rank, 3)
        os._exit(errorcode or 1)


class Intracomm(ScanMethods, Comm):
    """Intracomm(comm=None)

    A communicator of one group. Mirrors `mpi4py.util.pkl5.Intracomm`; methods and errors as `Comm`.

    Examples
    --------
    >>> from copyless import comm
    >>> world = comm.world()
    >>> world.rank, world.size, world.allreduce([1])
    (0, 1, [1])
    """

    def _make_shadow(self) -> Any:
        private = Intracomm._of(self._engine, self._context + 1, self._group, self._remote, self._me)
        return _collectives.Intra(private, self._me, len(self._group))

    def Split(self, color: int = 0, key: int = 0) -> Intracomm | None:
        """A communicator of the ranks that give the same color, ordered by key. None for a rank that gives UNDEFINED.

        Examples
        --------
        >>> from copyless import comm
        >>> comm.world().Split(0, 0).size
        1
        """
        shadow = self._together()
        asked = shadow.gather((color, key), 0)
        answers = None
        if asked is not None:
            groups: dict[int, list[int]] = {}
            for rank in sorted(range(self.size), key=lambda r: (asked[r][1], r)):
                if asked[rank][0] != UNDEFINED:
                    groups.setdefault(asked[rank][0], []).append(rank)
            first = self._engine.group.next_contexts(max(len(groups), 1))
            numbers = {color: first + 2 * i for i, color in enumerate(groups)}
            answers = [(numbers.get(c), groups.get(c)) for c, _ in asked]
        context, ranks = shadow.scatter(answers, 0)
        if context is None:
            return None
        group = [self._group[rank] for rank in ranks]
        return type(self)._of(self._engine, context, group, group, ranks.index(self._me))

    def Split_type(self, split_type: int, key: int = 0, info: object = None) -> Intracomm | None:
        """A communicator of the ranks that share memory, here all. None for a rank that gives UNDEFINED."""
        return self.Split(UNDEFINED if split_type == UNDEFINED else 0, key)

    def Create(self, group: RankGroup) -> Intracomm | None:
        """A communicator of the ranks of a group, in its order; None for the others. All ranks must call it."""
        place = group.ranks.index(self._group[self._me]) if self._group[self._me] in group.ranks else UNDEFINED
        return self.Split(UNDEFINED if place == UNDEFINED else 0, place)

    def Create_group(self, group: RankGroup, tag: int = 0) -> Intracomm | None:
        """`Create` that only the ranks of the group call."""
        if self._group[self._me] not in group.ranks:
            return None
        shadow, mark = self._together().comm, _collectives.tag_of("Create_group", tag)
        ranks = [self._group.index(rank) for rank in group.ranks]
        if ranks[0] == self._me:
            context = self._engine.group.next_contexts(1)
            for rank in ranks[1:]:
                shadow._put(context, rank, mark)
        else:
            theirs, context = shadow._take(ranks[0], mark)
            if theirs != mark:
                shadow._mistaken(ranks[0], theirs, mark)
        return Intracomm._of(self._engine, context, group.ranks, group.ranks, ranks.index(self._me))

    def Create_cart(
        self, dims: Sequence[int], periods: Sequence[bool] | None = None, reorder: bool = False
    ) -> Cartcomm | None:
        """A communicator whose ranks form a grid; None for ranks beyond the size of the grid."""
        return Cartcomm._on(self, dims, periods)

    def Create_intercomm(self, local_leader: int, peer_comm: Intracomm, remote_leader: int, tag: int = 0) -> Intercomm:
        """A communicator between this group and another, whose leaders are both ranks of `peer_comm`."""
        shadow = self._together()
        answer = None
        if self.rank == local_leader:
            request = peer_comm.isend((self._group, self._engine.rank), remote_leader, tag)
            group, leader = peer_comm.recv(None, remote_leader, tag)
            request.wait()
            if self._engine.rank < leader:  # one of the two leaders chooses the context number
                context = self._engine.group.next_contexts(1)
                peer_comm.send(context, remote_leader, tag)
            else:
                context = peer_comm.recv(None, remote_leader, tag)
            answer = context, group
        context, group = shadow.bcast(answer, local_leader)
        local = self.Dup()
        made: Intercomm = Intercomm._of(self._engine, context, self._group, group, self._me)
        made._local = local
        return made


class RankGroup:
    """RankGroup(ranks, me)

    An ordered set of ranks, without a communicator: the argument of `Create`. Mirrors `mpi4py.MPI.Group`.
    """

    def __init__(self, ranks: list[int], me: int = UNDEFINED) -> None:
        self.ranks: list[int] = ranks
        self._me: int = ranks[me] if 0 <= me < len(ranks) else me

    def Get_size(self) -> int:
        return len(self.ranks)

    def Get_rank(self) -> int:
        """This process's position in the group; UNDEFINED if it is not in it."""
        return self.ranks.index(self._me) if self._me in self.ranks else UNDEFINED

    if TYPE_CHECKING:

        @property
        def size(self) -> int: ...
        @property
        def rank(self) -> int: ...
    else:
        size = property(Get_size)
        rank = property(Get_rank)

    def _other(self, ranks: Iterable[int]) -> RankGroup:
        made = RankGroup(list(ranks))
        made._me = self._me
        return made

    def Incl(self, ranks: Sequence[int]) -> RankGroup:
        """The ranks at these positions, in this order."""
        return self._other(self.ranks[rank] for rank in ranks)

    def Excl(self, ranks: Sequence[int]) -> RankGroup:
        """All ranks except those at these positions."""
        return self._other(rank for place, rank in enumerate(self.ranks) if place not in ranks)

    @classmethod
    def Union(cls, one: RankGroup, other: RankGroup) -> RankGroup:
        """The ranks of this group, then those of the other that are not in this one."""
        return one._other([*one.ranks, *(rank for rank in other.ranks if rank not in one.ranks)])

    @classmethod
    def Translate_ranks(cls, one: RankGroup, ranks: Sequence[int], other: RankGroup) -> list[int]:
        """The positions in another group of the ranks at these positions."""
        return [other.ranks.index(r) if (r := one.ranks[place]) in other.ranks else UNDEFINED for place in ranks]

    def Free(self) -> None:
        """Do nothing: a group holds no resources."""


class Intercomm(Comm):
    """Intercomm(comm=None)

    A communicator between two groups: the ranks in its methods are those of the other group.

    Mirrors `mpi4py.util.pkl5.Intercomm`. In collective operations the root gives ROOT, the other ranks of its group
    give PROC_NULL, and the ranks of the other group give the root's rank.
    """

    _local: Intracomm

    def Get_remote_size(self) -> int:
        """The number of ranks in the other group."""
        return len(self._remote)

    @property
    def remote_size(self) -> int:
        """The number of ranks in the other group."""
        return len(self._remote)

    def _make_shadow(self) -> Any:
        private = Intercomm._of(self._engine, self._context + 1, self._group, self._remote, self._me)
        return _collectives.Inter(private, self._me, len(self._remote), self._local._together(), (ROOT, PROC_NULL))

    def Dup(self, info: object = None) -> Any:
        """A new communicator between the same groups. Needs no communication."""
        made = super().Dup()
        made._local = self._local.Dup()
        return made

    Clone = Dup

    def Get_remote_group(self) -> RankGroup:
        """The ranks of the other group, as a `RankGroup`."""
        return RankGroup(list(self._remote))

    def Merge(self, high: bool = False) -> Intracomm:
        """One communicator of both groups; the ranks of the group that gives ``high=True`` come last."""
        shadow = self._together()
        flags = self._local.allgather(bool(high))
        theirs = shadow.alltoall([flags[0]] * self.remote_size)[0]
        mine_first = (flags[0], self._group[0]) < (theirs, self._remote[0])
        group = self._group + self._remote if mine_first else self._remote + self._group
        context = None
        if self.rank == 0:
            if mine_first:
                context = self._engine.group.next_contexts(1)
                shadow.finish([shadow.put(0, context)])
            else:
                context = shadow.take(0)
        context = self._local.bcast(context)
        return Intracomm._of(self._engine, context, group, group, group.index(self._engine.rank))


class Cartcomm(NeighborMethods, Intracomm):
    """Cartcomm(comm=None)

    A communicator whose ranks form a grid. `Intracomm.Create_cart` makes it. Mirrors `mpi4py.MPI.Cartcomm`.

    Examples
    --------
    >>> from copyless import comm
    >>> grid = comm.local.world().Create_cart([1], periods=[True])
    >>> grid.dims, grid.coords, grid.Shift(0, 1)
    ([1], [0], (0, 0))
    """

    _PROC_NULL = PROC_NULL
    dims: list[int]
    periods: list[bool]

    @classmethod
    def _on(cls, comm: Intracomm, dims: Sequence[int], periods: Any) -> Cartcomm | None:
        dims = [int(dim) for dim in dims]
        periods = [False] * len(dims) if periods is None else periods
        periods = (
            [bool(periods)] * len(dims) if isinstance(periods, (bool, int)) else [bool(period) for period in periods]
        )
        places = math.prod(dims)
        if places > comm.size or min(dims, default=1) < 1 or len(periods) != len(dims):
            raise ValueError(
                f"a grid of {dims} with periods {periods} has {places} places, and there are {comm.size} ranks: "
                "give dims of 1 or more that need no more ranks, and one period for each"
            )
        part = comm.Split(0 if comm.rank < places else UNDEFINED, comm.rank)
        if part is None:
            return None
        made: Cartcomm = cls(part)
        made.dims, made.periods = dims, periods
        return made

    def Get_dim(self) -> int:
        """The number of dimensions of the grid."""
        return len(self.dims)

    if TYPE_CHECKING:

        @property
        def ndim(self) -> int: ...
        @property
        def dim(self) -> int: ...
        @property
        def topo(self) -> tuple[list[int], list[bool], list[int]]: ...
    else:
        ndim = dim = property(Get_dim)

    def Get_topo(self) -> tuple[list[int], list[bool], list[int]]:
        """(ranks along each dimension, whether each is periodic, the coordinates of this rank)."""
        return self.dims, self.periods, self.coords

    if not TYPE_CHECKING:
        topo = property(Get_topo)

    @property
    def coords(self) -> list[int]:
        """The coordinates of this rank."""
        return self.Get_coords(self.rank)

    def Get_coords(self, rank: int) -> list[int]:
        """The coordinates of a rank; the last dimension varies fastest."""
        place = []
        for dim in reversed(self.dims):
            rank, at = divmod(rank, dim)
            place.append(at)
        return place[::-1]

    def Get_cart_rank(self, coords: Sequence[int]) -> int:
        """The rank at these coordinates. Along a periodic dimension they wrap around."""
        rank = 0
        for at, dim, ring in zip(coords, self.dims, self.periods, strict=True):
            if not ring and not 0 <= at < dim:
                raise ValueError(f"place {list(coords)} lies outside a grid of {self.dims}")
            rank = rank * dim + at % dim
        return rank

    def Shift(self, direction: int, disp: int) -> tuple[int, int]:
        """(the rank `disp` steps before this one along a dimension, the rank `disp` steps after it); PROC_NULL
        beyond the end.
        """
        return self._beside(direction, -disp), self._beside(direction, disp)

    def _beside(self, direction: int, by: int) -> int:
        coords = self.coords
        coords[direction] += by
        if not self.periods[direction] and not 0 <= coords[direction] < self.dims[direction]:
            return PROC_NULL
        return self.Get_cart_rank(coords)

    def Sub(self, remain_dims: Sequence[bool]) -> Cartcomm:
        """The grid of the ranks that differ from this one only along the remaining dimensions."""
        here = self.coords
        colour, key = 0, 0
        for at, dim, remains in zip(here, self.dims, remain_dims, strict=True):
            if remains:
                key = key * dim + at
            else:
                colour = colour * dim + at
        part = self.Split(colour, key)
        made: Cartcomm = Cartcomm(Intracomm(part))
        made.dims = [dim for dim, remains in zip(self.dims, remain_dims, strict=True) if remains]
        made.periods = [ring for ring, remains in zip(self.periods, remain_dims, strict=True) if remains]
        return made

    @property
    def inedges(self) -> list[int]:  # type: ignore[override]
        """The neighbours: the previous and the next rank along each dimension."""
        return [rank for direction in range(len(self.dims)) for rank in self.Shift(direction, 1)]

    outedges = inedges


def _check_process(thing: object) -> None:
    if not isinstance(thing, (Comm, Request, Message)):
        return  # a communicator of MPI, which has the same methods
    comm = thing if isinstance(thing, Comm) else thing._comm
    if comm is not None:
        check_process(
            comm._engine.pid,
            thing,
            "a forked child of a rank is not a rank. Use the communicator in the rank itself, or start "
            "ranks with comm.spawn",
        )


check_in_children(
    _check_process, Comm, Intracomm, Intercomm, Cartcomm, Request, Message, CollectiveMethods, ScanMethods,
    NeighborMethods, RequestMethods,
    free=("Free", "free"),
)  # fmt: skip


for _class in (Comm, Intracomm, RankGroup, Intercomm, Cartcomm):
    _class.__module__ = "copyless.comm.local"  # the public module


def _null() -> Intracomm:
    made = object.__new__(Intracomm)
    made._context, made._group, made._remote, made._me, made._port, made._shadow, made.name = (
        -9,
        [],
        [],
        PROC_NULL,
        None,
        None,
        "",
    )
    made._engine = None  # type: ignore[assignment]
    return made


COMM_NULL = _null()
