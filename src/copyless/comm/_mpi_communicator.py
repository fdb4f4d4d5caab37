"""The communicators on MPI: `Comm`, `Intracomm`, `Intercomm`, `Topocomm` and others, which are subclasses of mpi4py's
own.

All are public in `copyless.comm.mpi`.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from mpi4py import MPI

from copyless._core import _store
from copyless._progress import shown
from copyless._transfer import handles, in_flight, reductions
from copyless._transfer._memory import Memory
from copyless.comm import _board, _collectives, _constants, _custom_pickle, _mpi_waiting, _slices, _small
from copyless.comm._board import Board
from copyless.comm._constants import Operation
from copyless.comm._interface import CollectiveMethods, NeighborMethods, ScanMethods
from copyless.comm._mpi_engine import Leaders
from copyless.comm._mpi_matching import Posted, Wanted, match, probed, state_of
from copyless.comm._mpi_messages import INLINE, as_buffer, encode, fetch, nbytes_of, rank_of, titled
from copyless.comm._mpi_nodes import Nodes
from copyless.comm._mpi_requests import Message, Request, mprobe
from copyless.comm._mpi_waiting import beside, serves, under_way
from copyless.comm._mpi_waiting import wait as _wait
from copyless.comm._mpi_world import far, near, node
from copyless.comm._packets import Packet, copy_of
from copyless.comm._parts import END_OF_TAGS, FIRST_TAG, Divided, begin_send, is_reserved, sweep
from copyless.comm._parts import send as send_parts
from copyless.errors import OutOfSharedMemory

__all__ = [
    "Cartcomm",
    "Comm",
    "CommError",
    "Distgraphcomm",
    "Graphcomm",
    "Intercomm",
    "Intracomm",
    "Topocomm",
    "choice",
]

ANY_SOURCE, ANY_TAG, PROC_NULL, ROOT = MPI.ANY_SOURCE, MPI.ANY_TAG, MPI.PROC_NULL, MPI.ROOT
_in_line = _small.in_line


def _use_own_pickle(own: bool) -> None:
    _small.use_own_pickle(own)
    _board.use_own_pickle(own)


choice = _custom_pickle.Choice("mpi", _use_own_pickle)
_MISTAKEN = _collectives.tag_of("mistaken")


class CommError(MPI.Exception, ValueError):
    """A rank, root or tag that does not exist, or a collective operation that other ranks did not call.

    An `MPI.Exception`, whose `Get_error_class` is MPI's, and a ValueError.
    """

    def __init__(self, code: int, text: str) -> None:
        super().__init__(code)
        self._text = text

    def __str__(self) -> str:
        return self._text

    if TYPE_CHECKING:

        def __hash__(self) -> int: ...
    else:
        __hash__ = MPI.Exception.__hash__

    def __reduce__(self) -> Any:
        return type(self), (int(self), self._text)


def _operation(op: object) -> object:
    """MPI's predefined reductions as ours, which do the same and accept arrays too."""
    if not isinstance(op, MPI.Op):
        return op
    for name in _constants.NAMES:
        if op == getattr(MPI, name):
            return getattr(_constants, name)
    return op


class Comm(CollectiveMethods, MPI.Comm):
    """Comm(comm=None)

    A communicator on MPI. Mirrors `mpi4py.util.pkl5.Comm`; upper-case methods are `mpi4py.MPI.Comm`'s own.
    """

    _known: Any = None
    _me: int | None = None  # the rank, once it is needed
    _board: Board | None = None  # where small objects of collective operations go, once it is made
    _heard: Any = ()  # of a shadow: what other ranks have told, not looked at yet
    _broken: str | None = None  # of a shadow: why nobody knows which operations of its ranks belong together

    def __repr__(self) -> str:
        kind = f"{type(self).__module__}.{type(self).__name__}"
        if MPI.Is_finalized() or not self:
            return f"<{kind} of nobody>"
        return f"<{kind} {self.Get_name()!r} rank {rank_of(self)} of {self.Get_size()}>"

    def _state(self) -> Any:
        return state_of(self)

    # ---- sending

    def _begin(self, begin: Any, obj: Any, dest: int, tag: int) -> Request:
        """Begin a send; `begin` is a send function of MPI."""
        if dest == PROC_NULL:
            return Request(begin(self, (None, 0, MPI.BYTE), dest, tag))
        sweep()
        # A buffered send is complete before its object may change, so it is one message, which MPI copies.
        whole = begin is MPI.Comm.Ibsend
        return self._start(begin, encode(obj, state_of(self).near(dest), None, None if whole else self), dest, tag)

    def _start(self, begin: Any, message: Any, dest: int, tag: int) -> Request:
        """Begin the send of a message of `encode`."""
        if tag >= FIRST_TAG:
            self._check_tag(tag)
        if isinstance(message, Divided):
            sent = send_parts(self, begin, message, dest, tag)
            large = True
        else:
            buffer, datatype = as_buffer(message)
            sent = begin_send(self, begin, message, buffer, dest, tag)
            if datatype is not None:
                datatype.Free()  # MPI keeps the datatype until the send is complete
            large = datatype is not None or len(message) >= _mpi_waiting.LARGE
        request = Request(sent.requests)
        request._keep = sent
        if large:
            under_way(sent.requests)
        return request

    def _check_tag(self, tag: int) -> None:
        if is_reserved(tag):
            raise CommError(
                MPI.ERR_TAG,
                f"tag {tag} is one of those that copyless uses itself for large arrays, {FIRST_TAG} to "
                f"{END_OF_TAGS - 1}: choose another",
            )

    def _put(self, packet: object, dest: int, tag: int) -> Request:
        """A send of a collective operation, whose objects are packed."""
        request = self._begin(MPI.Comm.Isend, packet, dest, tag)
        if self._late is not None and tag != _collectives.WAITING and dest != PROC_NULL:
            request._late = functools.partial(self._late, dest)
        return request

    _late: Any = None  # called in a collective operation while it waits for a rank

    def _take(self, source: int, tag: int) -> tuple[int, object]:
        """(the tag of a message from another rank, the message). Another tag means that it called another operation:
        its messages arrive in order.
        """
        status = MPI.Status()
        while True:
            got = self.recv(None, source, ANY_TAG, status)
            theirs = status.Get_tag()
            if theirs == _MISTAKEN:  # another rank has found it
                self._broken = got
                raise CommError(MPI.ERR_OTHER, got)
            if theirs != _collectives.WAITING:
                return theirs, got
            self._heard = [*self._heard, (source, got)]

    def _failure(self, text: str) -> CommError:
        return CommError(MPI.ERR_OTHER, text)

    def _look_for_deaths(self) -> None:
        """Do nothing: if a rank dies, the launcher of MPI ends all."""

    def _hear(self) -> list[tuple[int, tuple[int, int]]]:
        """Which operations other ranks wait in, as they have told."""
        heard, self._heard = [*self._heard], ()
        status = MPI.Status()
        while MPI.Comm.Iprobe(self, ANY_SOURCE, _collectives.WAITING, status):
            source = status.Get_source()
            heard.append((source, self.recv(None, source, _collectives.WAITING)))
        if MPI.Comm.Iprobe(self, ANY_SOURCE, _collectives.tag_of("mistaken"), status):
            self._broken = text = self.recv(None, status.Get_source(), _collectives.tag_of("mistaken"))
            raise CommError(MPI.ERR_OTHER, text)
        return heard

    def _mistaken(self, source: int, theirs: int, mine: int) -> NoReturn:
        """Raise what another rank called, and tell all."""
        self._broken = text = _collectives.mistaken(source, theirs, mine)
        self._tell_all(f"rank {self.Get_rank()} was told: {text}")
        raise CommError(MPI.ERR_OTHER, text)

    def _tell_all(self, text: str) -> None:
        """Report an error to the other ranks, which may wait for this one."""
        inter = self.Is_inter()
        for rank in range(self.Get_remote_size() if inter else self.Get_size()):  # type: ignore[attr-defined]
            if inter or rank != self.Get_rank():
                self._put(text, rank, _collectives.tag_of("mistaken"))

    def _sealed(self, obj: object) -> object:
        return choice.sealed(obj)

    def _operation(self, op: object) -> object:
        return _operation(op)

    if TYPE_CHECKING:

        def send(self, obj: object, dest: int, tag: int = 0, *, progress: bool = False) -> None: ...
    else:
        send = _small.send

    def _send(self, obj: object, dest: int, tag: int, progress: bool) -> None:
        """Send a message that cannot take the fast path."""
        if dest != PROC_NULL:
            title = f"rank {rank_of(self)} to {dest}" if progress else None
            message: Any = encode(choice.sealed(obj), state_of(self).near(dest), title, self)
            if type(message) is bytes and len(message) < INLINE and not _in_line and dest != self._me:
                if tag >= FIRST_TAG:
                    self._check_tag(tag)
                MPI.Comm.Send(self, (message, MPI.BYTE), dest, tag)
                return
            request = self._start(MPI.Comm.Isend, message, dest, tag)
            apart = 0 if type(message) is bytes else nbytes_of(message)
            with shown(title, apart, steps=False):
                request.wait()
            return
        MPI.Comm.Send(self, (None, 0, MPI.BYTE), dest, tag)

    def bsend(self, obj: object, dest: int, tag: int = 0) -> None:
        """`send` in buffered mode: call `MPI.Attach_buffer` first."""
        self._begin(MPI.Comm.Ibsend, choice.sealed(obj), dest, tag).wait()

    def ssend(self, obj: object, dest: int, tag: int = 0) -> None:
        """`send` that returns when the receiver has begun to receive."""
        self._begin(MPI.Comm.Issend, choice.sealed(obj), dest, tag).wait()

    def isend(self, obj: object, dest: int, tag: int = 0) -> Request:  # type: ignore[override]
        """`send` without waiting. Within a node the message is a snapshot; to another node, the arrays must not change
        until the request is complete.
        """
        return self._begin(MPI.Comm.Isend, choice.sealed(obj), dest, tag)

    def ibsend(self, obj: object, dest: int, tag: int = 0) -> Request:  # type: ignore[override]
        """`bsend` without waiting."""
        return self._begin(MPI.Comm.Ibsend, choice.sealed(obj), dest, tag)

    def issend(self, obj: object, dest: int, tag: int = 0) -> Request:  # type: ignore[override]
        """`ssend` without waiting. The request is complete when the receiver has begun to receive."""
        return self._begin(MPI.Comm.Issend, choice.sealed(obj), dest, tag)

    # ---- receiving

    if TYPE_CHECKING:

        def recv(
            self,
            buf: object = None,
            source: int = ...,
            tag: int = ...,
            status: object = None,
            *,
            progress: bool = False,
        ) -> Any: ...
    else:
        recv = _small.recv

    def _recv(self, source: int, tag: int, status: Any, progress: bool) -> object:
        """Receive a message that cannot take the fast path."""
        if source == PROC_NULL:
            MPI.Comm.Recv(self, (None, 0, MPI.BYTE), source, tag, status)
            return None
        message, nbytes = match(self, source, tag, status)
        return self._fetch(message, nbytes, status, progress)

    def _fetch(self, message: Any, nbytes: int, status: Any, progress: bool) -> object:
        return fetch(message, nbytes, titled(self, status, progress))

    def irecv(self, buf: object = None, source: int = ANY_SOURCE, tag: int = ANY_TAG) -> Request:  # type: ignore[override]
        """A request that receives the next matching message, before any receive that begins later."""
        if source == PROC_NULL:
            return Request(MPI.Comm.Irecv(self, (None, 0, MPI.BYTE), source, tag))
        if tag >= FIRST_TAG:
            self._check_tag(tag)
        state = state_of(self)
        posted = Posted(source, tag)
        state.enter(self, posted)
        state.progress(self)
        request = Request()
        request._comm, request._posted = self, posted
        return request

    def sendrecv(
        self,
        sendobj: object,
        dest: int,
        sendtag: int = 0,
        recvbuf: object = None,
        source: int = ANY_SOURCE,
        recvtag: int = ANY_TAG,
        status: object = None,
    ) -> Any:
        """Send one object and receive another."""
        request = self.isend(sendobj, dest, sendtag)
        obj = self.recv(recvbuf, source, recvtag, status)
        request.wait()
        return obj

    def mprobe(self, source: int = ANY_SOURCE, tag: int = ANY_TAG, status: object = None) -> Message:  # type: ignore[override]
        """Wait for a message and match it: only the `Message` that is returned can receive it."""
        return mprobe(self, source, tag, status, True)  # type: ignore[return-value]

    def improbe(self, source: int = ANY_SOURCE, tag: int = ANY_TAG, status: object = None) -> Message | None:  # type: ignore[override]
        """`mprobe` without waiting; None if there is no message."""
        return mprobe(self, source, tag, status, False)

    def probe(self, source: int = ANY_SOURCE, tag: int = ANY_TAG, status: Any = None) -> Literal[True]:
        """Wait until there is a message to receive."""
        if source == PROC_NULL:
            return MPI.Comm.probe(self, source, tag, status)
        _wait(lambda: probed(self, source, tag, status))
        return True

    def iprobe(self, source: int = ANY_SOURCE, tag: int = ANY_TAG, status: Any = None) -> bool:
        """Whether there is a message to receive."""
        _mpi_waiting.serve()
        return probed(self, source, tag, status)

    def Probe(self, source: int = ANY_SOURCE, tag: int = ANY_TAG, status: object = None) -> Literal[True]:
        """Wait until there is a message to receive."""
        return self.probe(source, tag, status)

    Iprobe = iprobe

    def Mprobe(self, source: int = ANY_SOURCE, tag: int = ANY_TAG, status: Any = None) -> MPI.Message:
        """Wait for a message and match it."""
        if not _mpi_waiting.in_line or source == PROC_NULL:
            return MPI.Comm.Mprobe(self, source, tag, status)
        status = MPI.Status() if status is None else status
        return match(self, source, tag, status, True, Wanted.MESSAGE)[0]  # type: ignore[no-any-return]

    def Improbe(self, source: int = ANY_SOURCE, tag: int = ANY_TAG, status: Any = None) -> MPI.Message | None:
        """Match a message, if there is one."""
        if not _mpi_waiting.in_line or source == PROC_NULL:
            return MPI.Comm.Improbe(self, source, tag, status)
        status = MPI.Status() if status is None else status
        return match(self, source, tag, status, False, Wanted.MESSAGE)[0]  # type: ignore[no-any-return]

    # ---- buffers: MPI's own methods, which serve the pending receives

    def Send(self, buf: object, dest: int, tag: int = 0) -> None:
        """Send a buffer."""
        if _mpi_waiting.in_line:
            _wait(MPI.Comm.Isend(self, buf, dest, tag).Test)
        else:
            MPI.Comm.Send(self, buf, dest, tag)

    def Ssend(self, buf: object, dest: int, tag: int = 0) -> None:
        """Send a buffer, and wait until its receive has begun."""
        if _mpi_waiting.in_line:
            _wait(MPI.Comm.Issend(self, buf, dest, tag).Test)
        else:
            MPI.Comm.Ssend(self, buf, dest, tag)

    def Rsend(self, buf: object, dest: int, tag: int = 0) -> None:
        """Send a buffer whose receive has begun."""
        if _mpi_waiting.in_line:
            _wait(MPI.Comm.Irsend(self, buf, dest, tag).Test)
        else:
            MPI.Comm.Rsend(self, buf, dest, tag)

    def Recv(self, buf: Any, source: int = ANY_SOURCE, tag: int = ANY_TAG, status: Any = None) -> None:
        """Receive into a buffer, after the pending receives that come before it."""
        if _mpi_waiting.in_line and source != PROC_NULL:
            request = MPI.Message.Irecv(self.Mprobe(source, tag), buf)
            _wait(lambda: MPI.Request.Test(request, status))
        else:
            MPI.Comm.Recv(self, buf, source, tag, status)

    def Sendrecv(
        self,
        sendbuf: Any,
        dest: int,
        sendtag: int = 0,
        recvbuf: Any = None,
        source: int = ANY_SOURCE,
        recvtag: int = ANY_TAG,
        status: Any = None,
    ) -> None:
        """Send one buffer and receive into another."""
        if _mpi_waiting.in_line:
            request = MPI.Comm.Isend(self, sendbuf, dest, sendtag)
            self.Recv(recvbuf, source, recvtag, status)
            _wait(request.Test)
        else:
            MPI.Comm.Sendrecv(self, sendbuf, dest, sendtag, recvbuf, source, recvtag, status)

    def Sendrecv_replace(self, *args: object, **kwargs: object) -> None:
        """Send a buffer and receive into it."""
        beside(MPI.Comm.Sendrecv_replace, self, *args, **kwargs)

    # ---- together

    def _together(self) -> object:
        state = state_of(self)
        if state.shadow is None:
            state.shadow = self._make_shadow()
        self._board = state.shadow.board
        return state.shadow

    def _meet(self) -> None:
        """Wait until all ranks are here. What follows then does not wait inside MPI for one that has died, or where
        Ctrl-C is not heard.
        """
        state = state_of(self)
        if (
            state.meeting is None
        ):  # else Ctrl-C has ended the wait: the others may be here by now, and are not asked again
            state.meeting = MPI.Comm.Ibarrier(self)
        _wait(state.meeting.Test)
        state.meeting = None

    def _make_shadow(self) -> object:
        return (Intracomm if self.Is_intra() else Intercomm)(self)._make_shadow()

    def _root(self, root: int) -> int:
        size = self.Get_size() if self.Is_intra() else self.Get_remote_size()  # type: ignore[attr-defined]
        if not 0 <= root < size and (self.Is_intra() or root not in (ROOT, PROC_NULL)):
            self.Call_errhandler(MPI.ERR_ROOT)
            across = (
                ""
                if self.Is_intra()
                else "; on an intercommunicator, root is ROOT at the root itself and PROC_NULL at the other ranks of "
                "its group"
            )
            raise CommError(MPI.ERR_ROOT, f"root {root} does not exist: there are ranks 0 to {size - 1} here{across}")
        return root

    def barrier(self) -> None:
        """Wait until all ranks have come here, as this module waits: it gives way, and answers Ctrl-C."""
        board = self._board
        if board is None and self.Is_intra():
            self._together()  # also where this is the first operation: others may have begun another one
            board = self._board
        if board is None:
            _wait(MPI.Comm.Ibarrier(self).Test)
        else:
            board.barrier()

    def Barrier(self) -> None:
        """The same as `barrier`."""
        self.barrier()

    def Free(self) -> None:
        """Give the communicator up, for all its ranks together."""
        state = state_of(self)
        shadow, state.shadow = state.shadow, None
        if shadow is not None:
            shadow.free()
        beside(MPI.Comm.Free, self)
        self._known = self._board = None


class _Intra(_collectives.Intra):
    """Operations among ranks of one node: of small objects on a board, of large ones by messages.

    In an operation by messages, `tag` is set. Then the board knows already that it has begun.
    """

    draft = False
    board: Board | None = None

    def begun(self) -> None:
        if self.board is None:
            super().begun()
        else:
            self.touched = False
            self.board.enter(self.tag)  # which says so here if it has begun

    def failed(self, error: BaseException) -> None:
        if self.board is None or self.touched:
            super().failed(error)

    def freed(self) -> Exception:
        return MPI.Exception(MPI.ERR_COMM)

    def mistake(self, rank: int, tag: int) -> None:
        if self.board is not None:
            self.board.mistake(rank, tag)
        super().mistake(rank, tag)

    def await_board(self, rank: int, number: int) -> None:
        """Wait until a rank has begun an operation."""
        board, probe, comm = self.board, MPI.Comm.Iprobe, self.comm
        assert board is not None
        has_begun = functools.partial(board.has_begun, rank, number)

        def there() -> bool:
            # The probe lets MPI move what other ranks may wait for.
            return has_begun() or (probe(comm, rank, _MISTAKEN) and has_begun())

        _wait(there, board.look)

    def late(self, awaited: int) -> None:
        if self.board is None:
            super().late(awaited)
        else:
            self.board.look()

    def spread(self, ranks: list[int], obj: object, packet: Packet) -> list[Request]:
        """Requests that send a packet to ranks. An object that can be sent only once is packed again for each."""
        if packet.handles:
            return [self.put(rank, packet if i == 0 else self.pack(obj)) for i, rank in enumerate(ranks)]
        if len(ranks) > 1:
            packet.gather()
        return [self.put(rank, packet) for rank in ranks]

    def own_copy(self, obj: object) -> object:
        return copy_of(self.seal(obj))

    def free_board(self) -> Board | None:
        """The board, if no operation by messages has begun."""
        return None if self.tag else self.board

    def bcast(self, obj: object, root: int, readonly: bool = False, progress: bool = False) -> object:
        board = self.free_board()
        way = super().bcast if board is None else board.bcast
        return way(obj, root, readonly, progress)

    def gather(self, obj: object, root: int) -> list[object] | None:
        board = self.free_board()
        return super().gather(obj, root) if board is None else board.gather(obj, root)

    def scatter(self, objs: object, root: int) -> object:
        board = self.free_board()
        return super().scatter(objs, root) if board is None else board.scatter(objs, root)

    def allgather(self, obj: object) -> list[object]:
        board = self.free_board()
        return super().allgather(obj) if board is None else board.allgather(obj)

    def alltoall(self, objs: object) -> list[object]:
        board = self.free_board()
        return super().alltoall(objs) if board is None else board.alltoall(objs)

    def reduce(self, obj: object, op: object, root: int) -> object:
        board = self.free_board()
        return super().reduce(obj, op, root) if board is None else board.reduce(obj, op, root)

    def allreduce(self, obj: object, op: object) -> object:
        board = self.free_board()
        return super().allreduce(obj, op) if board is None else board.allreduce(obj, op)

    def along(
        self, ranks: Sequence[int], value: object, op: Operation, whole: bool = False, of_caller: bool = True
    ) -> object:
        board = self.board
        if board is None or whole:
            return super().along(ranks, value, op, whole, of_caller)
        made = self.tried(lambda: self.offer(value, op))
        named, job = None, None
        if isinstance(made, tuple):
            ((signature, arrays), memory), job = made, None
            if self.rank == 0:
                job = _slices.job_of(made[0], memory.nbytes)
            named = signature, arrays[0], b"" if job is None else job[0][2]

        def divide(all_named: list[tuple[_slices.Signature, bytes, bytes] | None]) -> _slices.Division | None:
            each = [name for name in all_named if name is not None and all_named[0] is not None]
            if len(each) < self.size or not each[0][2] or any(name[0] != each[0][0] for name in each):
                return None
            part = self.slice_of((each[0][0], [name[1] for name in each], each[0][2]), self.rank, self.size)
            if isinstance(part, _collectives.Fault):
                self._look_for_leaves()  # if an array is gone, they say why
                raise part.error or self.failure(part.text)
            return part

        division = board.rounds(named, divide)
        if division is not None:
            return division
        return super().along(ranks, made if isinstance(made, _collectives.Fault) else value, op, True, of_caller)

    def await_round(self, rank: int, which: int) -> None:
        """Wait until a rank has come to a round of the board. Raises what it tells if it has left the operation."""
        board, probe, comm = self.board, MPI.Comm.Iprobe, self.comm
        assert board is not None
        has_come = functools.partial(board.has_come, rank, which)

        def there() -> bool:
            if has_come():
                return True
            if probe(comm, rank, ANY_TAG) and not has_come():
                self.next(rank)
            return False

        _wait(there, board.look)

    def _look_for_leaves(self) -> None:
        """Raise what a rank tells that has left this operation."""
        for rank in range(self.size):
            while rank != self.rank and MPI.Comm.Iprobe(self.comm, rank, self.tag):
                self.next(rank)

    def close(self) -> None:
        if self.board is not None:
            self.board.close()

    def free(self) -> None:
        self.close()
        self.board = None
        MPI.Comm.Free(self.comm)


def _board_of(channel: _Intra) -> Board | None:
    """The board of a communicator, which rank 0 makes; None if one of the ranks cannot use it."""
    comm, memory = channel.comm, None
    names: list[bytes | None] = [None] * channel.size
    if channel.rank == 0:
        try:
            memory = Memory.allocate(_board.bytes_for(channel.size), clear=True)
            names = [reductions.memory_handle(memory, in_flight.Hold.MESSAGE) for _ in names]
        except OutOfSharedMemory:
            memory = None
    mine = beside(MPI.Comm.scatter, comm, names, 0)
    if mine is not None:
        try:
            memory = Memory(handles.resolve(mine)[1])
        except OSError:
            memory = None
    if not all(beside(MPI.Comm.allgather, comm, memory is not None)) or memory is None:
        return None
    return Board(memory, channel.rank, channel.size, channel)


_kept: list[object] = []


class _Nodes(Nodes):
    def free(self) -> None:
        if self.comm._broken is not None:
            # MPI would give the number of a freed communicator to a new one, with the messages that nobody received.
            _kept.append(self)
            return
        if self.leaders is not None:
            self.leaders.free()
        MPI.Comm.Free(self.comm)


class _Inter(_collectives.Inter):
    def free(self) -> None:
        MPI.Comm.Free(self.comm)
        self.local.free()  # type: ignore[attr-defined]


_made = 0  # the last communicator that this rank has made for collective operations
_NUMBERS = 1 << 40  # operations of each


def _collectives_of(private: Any) -> _Intra | _Nodes:
    """Collective operations on a communicator that is theirs alone; finds out who shares which node."""
    global _made
    rank, size = private.Get_rank(), private.Get_size()
    alone = None if near is not None else (MPI.COMM_WORLD.Get_rank(), os.getpid(), _store.process_start(os.getpid()))
    told = beside(MPI.Comm.allgather, private, (_made, (_store.identity(), node(), alone)))
    nodes = [its for _, its in told]
    made_now = max(before for before, _ in told) + 1
    first, _made = made_now * _NUMBERS, max(_made, made_now)  # another thread may have made one meanwhile
    world = state_of(private).world
    far.update(world[other] for other, its in enumerate(nodes) if its != nodes[rank])
    if nodes.count(nodes[0]) == size:
        made = _Intra(Intracomm(private), rank, size, first)
        if size > 1:
            made.board = _board_of(made)
        return made

    def leaders(number: int, count: int, leads: bool) -> Leaders | None:
        made = beside(MPI.Comm.Split, private, 0 if leads else MPI.UNDEFINED, rank)
        return Leaders(made, number, count) if leads else None

    return _Nodes(Intracomm(private), rank, size, nodes, leaders, first)


class Intracomm(ScanMethods, Comm, MPI.Intracomm):
    """Intracomm(comm=None)

    A communicator of one group, and an `MPI.Intracomm`. Mirrors `mpi4py.util.pkl5.Intracomm`. Making one needs no other
    rank.
    """

    def _make_shadow(self) -> object:
        self._meet()
        return _collectives_of(beside(MPI.Intracomm.Dup, self))

    if not TYPE_CHECKING:  # the same methods, with a short way for small objects
        bcast, gather, scatter = _board.bcast, _board.gather, _board.scatter
        allgather, alltoall = _board.allgather, _board.alltoall
        reduce, allreduce = _board.reduce, _board.allreduce


class Intercomm(Comm, MPI.Intercomm):
    """Intercomm(comm=None)

    A communicator between two groups, and an `MPI.Intercomm`. Mirrors `mpi4py.util.pkl5.Intercomm`.
    """

    def _make_shadow(self) -> object:
        self._meet()
        private = beside(MPI.Intercomm.Dup, self)
        merged = beside(MPI.Intercomm.Merge, private)
        mine, whole = private.Get_group(), merged.Get_group()
        first = MPI.Group.Translate_ranks(mine, [0], whole)[0]
        local = beside(MPI.Comm.Split, merged, first, private.Get_rank())
        mine.Free()
        whole.Free()
        ours = _collectives_of(local)
        first = max(beside(MPI.Comm.allgather, merged, ours.first))
        merged.Free()
        return _Inter(Intercomm(private), private.Get_rank(), private.Get_remote_size(), ours, (ROOT, PROC_NULL), first)


class Topocomm(NeighborMethods, Intracomm, MPI.Topocomm):
    """Topocomm(comm=None)

    A communicator whose ranks have neighbours, and an `MPI.Topocomm`.
    """

    _PROC_NULL = PROC_NULL

    def _is_grid(self) -> bool:
        return MPI.Comm.Get_topology(self) == MPI.CART


class Cartcomm(Topocomm, MPI.Cartcomm):
    """Cartcomm(comm=None)

    A communicator whose ranks form a grid, and an `MPI.Cartcomm`.
    """


class Graphcomm(Topocomm, MPI.Graphcomm):
    """Graphcomm(comm=None)

    A communicator whose ranks form a graph, and an `MPI.Graphcomm`.
    """


class Distgraphcomm(Topocomm, MPI.Distgraphcomm):
    """Distgraphcomm(comm=None)

    A communicator whose ranks each know their neighbours in a graph, and an `MPI.Distgraphcomm`.
    """


_CLASSES = (
    (MPI.Cartcomm, Cartcomm),
    (MPI.Graphcomm, Graphcomm),
    (MPI.Distgraphcomm, Distgraphcomm),
    (MPI.Intracomm, Intracomm),
    (MPI.Intercomm, Intercomm),
    (MPI.Comm, Comm),
)


def _as_ours(comm: object) -> object:
    """A communicator that MPI made, as one of these classes."""
    if isinstance(comm, Comm) or not isinstance(comm, MPI.Comm):
        return comm
    return next(ours for theirs, ours in _CLASSES if isinstance(comm, theirs))(comm)


for _class in (Comm, Intracomm, Intercomm, Topocomm, Cartcomm, Graphcomm, Distgraphcomm):
    serves(_as_ours)(_class)

for _kind in (CommError, Comm, Intracomm, Intercomm, Topocomm, Cartcomm, Graphcomm, Distgraphcomm):
    _kind.__module__ = "copyless.comm.mpi"  # where users find it
