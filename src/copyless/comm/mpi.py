"""The communicator on MPI: mpi4py's, with objects whose big buffers move at the speed of memory within a node.

Mirrors `mpi4py.util.pkl5`: ``from copyless.comm import mpi as pkl5``. The classes are `MPI.Comm`'s own subclasses, so every upper-case
method works. Every object is one MPI message:

    small                               its pickle, buffers in it
    big buffers, same node              its pickle, and the handle of one block that the buffers were copied into
    big buffers, another node           its pickle, then the buffers, sent from where they lie by a derived datatype

The receiver's arrays stand on the block, or on the memory that MPI received into: writable and its own. Messages travel on the user's
own communicator, so probes see them, and making a wrapper is local: it needs no other rank. Which ranks share a node each finds
out from a table in the node's shared memory that they enter as they import this module; a rank that is not in it is sent to by value.

`irecv` works: receives that wait stand in one line for each communicator, whatever wrapper posted them, and what arrives goes to
the first that it fits. Waiting spins a little, then yields, then sleeps, and answers Ctrl-C. Every blocking method here, upper-case ones
too, gives what arrives to the receives in line meanwhile; what is called on a raw communicator, or on `MPI.Request`'s class, does not:
wait for a pending `irecv` before that (docs/design/communicator.md).

A name that is not here is MPI's: ``from copyless.comm import mpi as MPI`` does for programs of objects, with COMM_WORLD and COMM_SELF
of our classes.
"""

from __future__ import annotations

import contextlib
import os
import pickle as _pickle
import sys
import threading
import time
import types
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

try:
    from mpi4py import MPI
except ImportError as _error:
    raise ImportError(
        f"comm.mpi needs mpi4py and an MPI library: pip install 'copyless[mpi]' brings both ({_error}). Without MPI: "
        "copyless run -n 4 prog.py, and copyless.comm.local"
    ) from None

from copyless import _loaders, pickling, waiting
from copyless._core import _blocks, _pickles, _queue, _store
from copyless._core._memory import Memory
from copyless.comm import _small, collectives, mpi_waiting, pickles
from copyless.comm.constants import SUM
from copyless.comm.mpi_waiting import beside, serves, under_way
from copyless.comm.mpi_waiting import wait as _wait
from copyless.comm.packets import Packet, _by_value, cut, in_memory, tell_of_no_room
from copyless.comm.progress import shown
from copyless.errors import OutOfSharedMemory
from copyless.storage import handles, store

__all__ = ["ANY_SOURCE", "ANY_TAG", "PROC_NULL", "ROOT", "UNDEFINED", "Cartcomm", "Comm", "CommError", "Distgraphcomm", "Graphcomm",
           "Intercomm", "Intracomm", "Message", "Pickle", "Request", "Status", "Topocomm", "pickle", "world"]  # fmt: skip

ANY_SOURCE, ANY_TAG, PROC_NULL, ROOT, UNDEFINED = MPI.ANY_SOURCE, MPI.ANY_TAG, MPI.PROC_NULL, MPI.ROOT, MPI.UNDEFINED
Status = MPI.Status

INLINE = 1 << 16  # bytes of buffers up to which they go in the pickle
# Bytes of a message within a node that MPI carries: of so few it keeps a copy, and their sender never waits for the receiver.
HEADER = 8000 if MPI.get_vendor()[0] == "MPICH" else 3000
BIG = 1 << 20  # bytes of a message from which it may be a pickle and buffers behind it
_PIECE = 1 << 30  # bytes: counts of MPI before version 4 end at 2 GiB
_ZEROS = bytes(64)

_plain = _queue.plain_dumps
_rank = MPI.Comm.Get_rank
# Not `improbe`, which makes room for the message at once: before MPI 4 it cannot for 2 GiB and more.
_improbe: Callable[[Any, int, int, Any], Any] = MPI.Comm.Improbe
_in_line = _small.in_line


# ---- who shares this node


def _node() -> str:
    """This rank's node: COPYLESS_NODE names it, COPYLESS_NODES=n makes n of this one, for tests."""
    name = os.environ.get("COPYLESS_NODE")
    if name is not None:
        return name
    parts = int(os.environ.get("COPYLESS_NODES", "1"))
    return str(MPI.COMM_WORLD.Get_rank() * parts // MPI.COMM_WORLD.Get_size()) if parts > 1 else ""


def _enter_table() -> Any:
    """The table of the node's ranks, with this one in it; None where there is no shared memory."""
    from copyless.arrays import open as open_array
    from copyless.arrays import zeros

    size, rank = MPI.COMM_WORLD.Get_size(), MPI.COMM_WORLD.Get_rank()
    family = os.environ.get("COPYLESS_FAMILY", f"{os.getpid()}")
    name = f"mpi-{family}-{_node()}"
    try:
        while True:
            try:
                table = zeros(size, "u1", name=name)
                break
            except FileExistsError:
                with contextlib.suppress(FileNotFoundError):
                    table = open_array(name)
                    break
    except OSError:
        return None
    if len(table) != size:
        return None  # two programs under one launcher
    table[rank] = 1
    return table


def _ranks_here() -> int:
    """How many ranks this node has, as the launcher says; 0 where it does not."""
    parts = int(os.environ.get("COPYLESS_NODES", "1"))
    size = MPI.COMM_WORLD.Get_size()
    if "COPYLESS_NODE" not in os.environ and parts > 1:
        return sum(str(rank * parts // size) == _node() for rank in range(size))
    named = ("MPI_LOCALNRANKS", "OMPI_COMM_WORLD_LOCAL_SIZE")
    return next((int(os.environ[name]) for name in named if name in os.environ), 1 if size == 1 else 0)


store.need()
_table = _enter_table()
_near: Any = memoryview(_table) if _table is not None else None
_world_group = MPI.COMM_WORLD.Get_group()
_all_entered = _near is None
_far: set[int] = set()  # ranks of the world that share no memory with this one, as collective operations have found out
_PATIENCE = 2.0  # seconds that ranks of this node have to enter the table, once


def _is_near(world: int) -> bool:
    """Whether a rank of the world shares this node.

    At the start some may not have come to this module: they are waited for, since what lies in shared memory shall pass by
    reference to all ranks of a node, and not to those who were quick.
    """
    global _all_entered
    if _near is None or world in _far:
        return False
    if _near[world] == 1 or _all_entered:
        return bool(_near[world])
    here, deadline = _ranks_here(), time.monotonic() + _PATIENCE
    while _near[world] != 1 and sum(_near) < (here or len(_near)) and time.monotonic() < deadline:
        time.sleep(0.0005)
    _all_entered = _near[world] != 1  # nobody else will come, or whoever does is too late
    return bool(_near[world])


# ---- objects and messages


class _Detached:
    """The pickle at the beginning of a message whose buffers lie behind it."""

    def __init__(self, base: int, sizes: list[int]) -> None:
        self.base, self.sizes = base, sizes

    def __reduce__(self) -> Any:
        return _loaders.mpi_detached, (self.base, self.sizes)


class _AsPickle:
    """Pickles as a call: what unpickles it is the object itself."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self._call = function, args

    def __reduce__(self) -> Any:
        return self._call


def _block(data: bytes, sizes: list[int], handle: bytes) -> Any:
    block = handles.resolve(handle)[1]
    _blocks.mark_private(block)  # it came by value: it is this rank's own
    return _pickles.loads(data, buffers=cut(block, sizes))


def _whole_block(sizes: list[int], handle: bytes) -> Any:
    block = handles.resolve(handle)[1]
    _blocks.mark_private(block)
    data, *parts = cut(block, sizes)
    return _pickles.loads(data, buffers=parts)


def _through_block(
    arrives: Callable[..., Any], data: bytes | None, parts: list[Any], title: str | None = None
) -> bytes | None:
    """The message of a pickle whose buffers cross in a block; None when there is no room: then as to another node.

    Without `data` the pickle is the first of the parts.
    """
    try:
        with shown(title, sum(part.nbytes for part in parts)) as tell:
            memory = in_memory(parts, tell)
    except OutOfSharedMemory as error:
        tell_of_no_room(error)
        return None
    handle = pickling.memory_handle(memory, 1)  # with a hold of its own, until it is loaded
    assert handle is not None
    first = () if data is None else (data,)
    return _pickle.dumps(_AsPickle(arrives, *first, [part.nbytes for part in parts], handle), 5)


def _encode(obj: Any, near: bool, title: str | None = None) -> bytes | list[Any]:
    """The message of an object: bytes, or pieces that lie apart. With a `title`, a large one shows a bar while it is copied."""
    plain = _plain(obj)
    if plain is not None:
        return plain
    if near and type(obj) is Packet and not obj.handles and len(obj.parts) and sum(obj.sizes) > INLINE:
        message = _through_block(_loaders.packet_in_block, obj.data, obj.parts)
        if message is not None:
            return message
    if near:
        data, parts, _ = pickling.pack(obj, draft=False)
    else:
        data, parts = _by_value(obj)
    total = sum(part.nbytes for part in parts)
    if near and total + len(data) > HEADER:
        # Whatever MPI does with its own messages: who sends within a node does not wait for who receives.
        if len(data) <= 1000:
            message = _through_block(_loaders.mpi_block, data, parts, title)
        else:
            message = _through_block(_loaders.mpi_whole_block, None, [memoryview(data), *parts], title)
        if message is not None:
            return message
    if not parts:
        return data
    if total <= INLINE:
        return _pickle.dumps(_AsPickle(_loaders.mpi_inline, data, *map(bytearray, parts)), 5)
    if total + len(data) < BIG:
        return _pickle.dumps(_AsPickle(_loaders.mpi_inline, data, *map(bytearray, parts)), 5)
    whole = [memoryview(data), *parts]
    sizes = [part.nbytes for part in whole]
    base = (len(_pickle.dumps(_Detached(1 << 20, sizes), 5)) + 63) // 64 * 64
    head = _pickle.dumps(_Detached(base, sizes), 5)
    pieces: list[Any] = [head.ljust(base, b"\0")]
    for part in whole:
        pieces.append(part)
        if part.nbytes % 64:
            pieces.append(_ZEROS[: -part.nbytes % 64])
    return pieces


def _decode(whole: Any) -> Any:
    """The object of a big message: of a pickle, or of one and the buffers behind it."""
    view = memoryview(whole)
    obj = _pickles.loads(view)
    if type(obj) is not _Detached:
        return obj
    data, *parts = cut(view[obj.base :], obj.sizes)
    return _pickles.loads(data, buffers=parts)


def _type_of(places: Iterable[tuple[int, int]]) -> Any:
    """The datatype of (address, bytes) pairs, in pieces that any MPI can count."""
    lengths, displacements = [], []
    for address, nbytes in places:
        for at in range(0, nbytes, _PIECE):
            displacements.append(address + at)
            lengths.append(min(_PIECE, nbytes - at))
    return MPI.BYTE.Create_hindexed(lengths, displacements).Commit()


def _as_buffer(message: Any) -> tuple[Any, Any]:
    """(what MPI sends, the datatype to free after it began)."""
    if type(message) is bytes:
        return (message, len(message), MPI.BYTE), None
    datatype = _type_of((MPI.Get_address(piece), memoryview(piece).nbytes) for piece in message)
    return (MPI.BOTTOM, 1, datatype), datatype


def _room(nbytes: int) -> Any:
    """Memory to receive into: warm shared memory, so that what came can go on within the node by its handle; else private."""
    try:
        memory = Memory.allocate(nbytes)
    except OutOfSharedMemory:
        return MPI.buffer.allocate(nbytes)  # not cleared, as a bytearray is
    block = memory.obj
    if isinstance(block, _blocks.Block):
        _blocks.mark_private(block)
    return memory


def _buffer_for(nbytes: int) -> tuple[Any, Any, Any]:
    """(memory to receive into, what MPI receives it by, the datatype to free after it began)."""
    whole = bytearray(nbytes) if nbytes < BIG else _room(nbytes)
    if nbytes <= _PIECE:
        return whole, (whole, nbytes, MPI.BYTE), None
    datatype = _type_of([(0, nbytes)])
    return whole, (whole, 1, datatype), datatype


def _receive(message: Any, nbytes: int) -> Any:
    """The bytes of a matched message."""
    whole, buffer, datatype = _buffer_for(nbytes)
    MPI.Message.Recv(message, buffer)
    if datatype is not None:
        datatype.Free()
    return whole


class _Coming:
    """A matched message whose bytes MPI receives."""

    __slots__ = ("nbytes", "request", "whole")

    def __init__(self, message: Any, nbytes: int) -> None:
        self.nbytes = nbytes
        self.whole, buffer, datatype = _buffer_for(nbytes)
        self.request = MPI.Message.Irecv(message, buffer)
        if datatype is not None:
            datatype.Free()
        if nbytes >= mpi_waiting.LARGE:
            under_way((self.request,))

    def ended(self) -> bool:
        return MPI.Request.Get_status(self.request)

    def open(self) -> Any:
        MPI.Request.Wait(self.request)
        return _decode(self.whole) if self.nbytes else None


def _titled(comm: Any, status: Any, progress: bool) -> str | None:
    return f"rank {status.Get_source()} to {_rank(comm)}" if progress else None


def _fetch(message: Any, nbytes: int, title: str | None = None) -> Any:
    """The object of a matched message, or of one that comes already."""
    if isinstance(message, _Coming):
        if not message.ended():
            _wait(message.ended)
        return message.open()
    if nbytes < BIG:
        return _small.fetch(message, nbytes) if nbytes else MPI.Message.recv(message)
    with shown(title, nbytes, steps=False):
        whole = _receive(message, nbytes)
    return _decode(whole)


def _bytes_of(status: Any) -> int:
    return status.Get_elements(MPI.BYTE)  # type: ignore[no-any-return]


# ---- receives that wait in line


class _Posted:
    """A receive in line."""

    __slots__ = ("cancelled", "message", "nbytes", "probes", "source", "status", "tag")

    def __init__(self, source: int, tag: int, probes: bool = False) -> None:
        self.probes = probes  # it wants the matched message, not its bytes
        self.source, self.tag = source, tag
        self.status = MPI.Status()
        self.message: Any = None
        self.nbytes = 0
        self.cancelled = False

    def fits(self, source: int, tag: int) -> bool:
        return self.source in (ANY_SOURCE, source) and self.tag in (ANY_TAG, tag)


class CommError(MPI.Exception, ValueError):
    """A rank, a root or a tag that there is not, or a collective operation that other ranks did not call.

    An `MPI.Exception`, whose `Get_error_class` is MPI's, and a ValueError.
    """

    def __init__(self, code: int, text: str) -> None:
        super().__init__(code)
        self._text = text

    def __str__(self) -> str:
        return self._text

    __hash__ = MPI.Exception.__hash__

    def __reduce__(self) -> Any:
        return type(self), (int(self), self._text)


# ---- how objects are pickled


class Pickle(pickles.Pickle):
    __doc__ = pickles.Pickle.__doc__
    _buffer = MPI.buffer.frombuffer

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _tell_of_pickle()


_own_pickle = False


def _tell_of_pickle() -> None:
    """Note whether `pickle` is the caller's own: the short way of sending must know."""
    global _own_pickle
    current = globals().get("pickle")
    _own_pickle = current is not None and getattr(current, "is_own", True)
    _small.use_own_pickle(_own_pickle)


pickle = Pickle()


def _sealed(obj: Any) -> Any:
    """The object, or what it is made by a caller's own functions."""
    return pickles.Sealed("mpi", *pickle.dumps_oob(obj)) if _own_pickle else obj


class _State:
    """What all wrappers of one communicator share."""

    def __init__(self, comm: Any) -> None:
        self.lock = threading.RLock()
        self.line: list[_Posted] = []
        self.twin: Any = None
        group = comm.Get_remote_group() if comm.Is_inter() else comm.Get_group()
        found = MPI.Group.Translate_ranks(group, list(range(group.Get_size())), _world_group)
        group.Free()
        self.world = [-1 if rank == UNDEFINED else rank for rank in found]  # of each rank, its rank in the world

    def near(self, rank: int) -> bool:
        """Whether a rank shares this node, and has entered the table."""
        if not 0 <= rank < len(self.world):
            return False
        world = self.world[rank]
        return world >= 0 and _is_near(world)

    def enter(self, comm: Any, posted: _Posted) -> None:
        with self.lock:
            self.line.append(posted)
            _in_line[id(self)] = self, comm

    def leave(self, posted: _Posted) -> bool:
        """Whether it was in line still."""
        with self.lock:
            if posted not in self.line:
                return False
            self.line.remove(posted)
            if not self.line:
                _in_line.pop(id(self), None)
            return True

    def progress(self, comm: Any) -> None:
        """Give what has arrived to the receives in line."""
        with self.lock:
            again = True
            while again and self.line:
                again = False
                for posted in self.line:
                    status = MPI.Status()
                    if not MPI.Comm.Iprobe(comm, posted.source, posted.tag, status):
                        continue
                    source, tag = status.Get_source(), status.Get_tag()
                    # It lies there still. Whoever stands before in the line and could have it, or one that came before it
                    # from the same rank, gets the first that fits.
                    first = next(other for other in self.line if other.fits(source, tag))
                    message = _improbe(comm, source, first.tag, first.status)
                    if message is not None:
                        first.nbytes = _bytes_of(first.status)
                        # Received at once: a send that waits for it may be this rank's own.
                        first.message = message if first.probes else _Coming(message, first.nbytes)
                        self.leave(first)
                        again = True
                        break


_KEY = MPI.Comm.Create_keyval()
_making = threading.Lock()


def _copy_status(status: Any, other: Any) -> None:
    if status is not None:
        status.Set_source(other.Get_source())
        status.Set_tag(other.Get_tag())
        status.Set_error(other.Get_error())
        status.Set_elements(MPI.BYTE, _bytes_of(other))


def _nobody(status: Any) -> None:
    if status is not None:
        status.Set_source(PROC_NULL)
        status.Set_tag(ANY_TAG)
        status.Set_error(MPI.SUCCESS)
        status.Set_elements(MPI.BYTE, 0)


# ---- Request, Message

_freed: list[Any] = []  # what sends read whose requests were freed before they ended: kept for good
_let_go: list[tuple[Any, Any]] = []  # sends under way whose requests nobody has, and what they send


def _sweep() -> None:
    _let_go[:] = [(requests, kept) for requests, kept in _let_go if not MPI.Request.Testall(list(requests))]


class Request(tuple):  # type: ignore[type-arg]
    """Request(request=None)

    A send or receive under way. Mirrors `mpi4py.util.pkl5.Request`: the MPI requests that it consists of. Of an `irecv` whose
    message has not come there is none yet: wait for it by this class's methods, which serve it, not by `MPI.Request`'s.
    """

    _comm: Any = None
    _posted: _Posted | None = None
    _keep: Any = None  # what MPI still reads
    _coming: _Coming | None = None  # a matched message, which MPI receives

    def __new__(cls, request: Any = None) -> Request:
        if request is None:
            request = (MPI.REQUEST_NULL,)
        elif isinstance(request, MPI.Request):
            request = (request,)
        made = super().__new__(cls, request)
        if isinstance(request, Request):
            made.__dict__.update(request.__dict__)
        return made

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Request):
            return tuple(self) == tuple(other) and self._posted is other._posted
        if isinstance(other, MPI.Request):
            return self._posted is None and all(request == other for request in self)
        return NotImplemented

    def __ne__(self, other: object) -> bool:
        same = self.__eq__(other)
        return same if same is NotImplemented else not same

    __hash__ = None  # type: ignore[assignment]

    def __bool__(self) -> bool:
        return self._posted is not None or any(request for request in self)

    def _end(self) -> None:
        self.__dict__.clear()

    def __del__(self) -> None:
        # Let go while MPI still reads: what is sent stays until it has been.
        if self._keep is not None and not MPI.Is_finalized() and not all(map(MPI.Request.Get_status, self)):
            _let_go.append((tuple(self), self._keep))

    def Free(self) -> None:
        """Forget it; a receive that has no message yet is taken back."""
        self._withdraw()
        if self._coming is not None:
            _wait(self._coming.ended)  # MPI writes into its memory
        if self._keep is not None and not all(map(MPI.Request.Get_status, self)):
            _freed.append(self._keep)  # MPI reads it still, and does not tell when it has done
        for request in self:
            if request or self._posted is None:
                request.Free()
        self._end()

    def free(self) -> None:
        """As `Free`; nothing for a null request."""
        if self:
            self.Free()

    def _withdraw(self) -> bool:
        if self._posted is not None:
            self._posted.cancelled = self._comm._state().leave(self._posted)
            return self._posted.cancelled
        return False

    def cancel(self) -> None:
        """Take a receive back, if it has no message yet; cancel a send."""
        if self._posted is not None:
            self._withdraw()
            return
        for request in self:
            request.Cancel()

    Cancel = cancel

    def _look(self) -> bool:
        posted = self._posted
        if posted is not None:
            if posted.message is None and not posted.cancelled:
                self._comm._state().progress(self._comm)
            return posted.cancelled or (posted.message is not None and posted.message.ended())
        return all(map(MPI.Request.Get_status, self))

    def _for_wait(self) -> waiting.Part:
        return waiting.Part(lambda deaths: self._look(), (), True)

    def get_status(self, status: Any = None) -> bool:
        """Whether it has ended; it stays as it is."""
        mpi_waiting.serve()
        if not self._look():
            return False
        if self._posted is not None:
            self._tell(status)
        elif status is not None:
            MPI.Request.Get_status(self[0], status)
        return True

    def _tell(self, status: Any) -> None:
        """The status of a receive that stood in line."""
        posted = self._posted
        if status is None or posted is None:
            return
        if posted.cancelled:
            status.Set_cancelled(True)
        else:
            _copy_status(status, posted.status)

    def _finish(self, status: Any) -> _Coming | None:
        """Null it, as it has ended: what it brought, unopened."""
        posted, coming = self._posted, self._coming
        if posted is not None:
            self._tell(status)
            coming = None if posted.cancelled else posted.message
        else:
            MPI.Request.Waitall(self, None if status is None else [status] * len(self))
        self._end()
        return coming

    def _take(self, status: Any) -> Any:
        coming = self._finish(status)
        return None if coming is None else coming.open()

    def test(self, status: Any = None) -> tuple[bool, Any]:
        """(whether it has ended, what it brought)."""
        mpi_waiting.serve()
        return (True, self._take(status)) if self._look() else (False, None)

    def wait(self, status: Any = None) -> Any:
        """What it brought, once it has ended."""
        if self._posted is None and self._coming is None and status is None and MPI.Request.Testall(self):
            self._end()  # most sends have ended by now
            return None
        _wait(self._look)
        return self._take(status)

    def Test(self, status: Any = None) -> bool:
        """Whether it has ended; what it brought is dropped."""
        mpi_waiting.serve()
        if not self._look():
            return False
        self._finish(status)
        return True

    def Wait(self, status: Any = None) -> bool:
        """Wait until it has ended; what it brought is dropped."""
        _wait(self._look)
        self._finish(status)
        return True

    # ---- of several

    @classmethod
    def get_status_all(cls, requests: Sequence[Request], statuses: Any = None) -> bool:
        """Whether all have ended; they stay as they are."""
        return all(request.get_status(status) for request, status in _with(list(map(_ours, requests)), statuses))

    @classmethod
    def testall(cls, requests: Sequence[Request], statuses: Any = None) -> tuple[bool, Any]:
        """(whether all have ended, the list of what they brought)."""
        mpi_waiting.serve()
        pairs = _with(requests, statuses)
        if not _all_ended(requests):
            return False, None
        return True, [_ours(request)._take(status) for request, status in pairs]

    @classmethod
    def waitall(cls, requests: Sequence[Request], statuses: Any = None) -> list[Any]:
        """The list of what they brought, once all have ended."""
        pairs = _with(requests, statuses)
        _wait(lambda: _all_ended(requests))
        return [_ours(request)._take(status) for request, status in pairs]

    @classmethod
    def testany(cls, requests: Sequence[Request], status: Any = None) -> tuple[int, bool, Any]:
        """(which has ended, whether one has, what it brought); (UNDEFINED, True, None) when all are null."""
        mpi_waiting.serve()
        found = _any_ended(requests)
        if found is None:
            return UNDEFINED, False, None
        return found, True, None if found == UNDEFINED else _ours(requests[found])._take(status)

    @classmethod
    def waitany(cls, requests: Sequence[Request], status: Any = None) -> tuple[int, Any]:
        """(which has ended, what it brought); (UNDEFINED, None) when all are null."""
        found = _wait_any(requests)
        return found, None if found == UNDEFINED else _ours(requests[found])._take(status)

    @classmethod
    def testsome(cls, requests: Sequence[Request], statuses: Any = None) -> tuple[list[int] | None, list[Any] | None]:
        """(which have ended, what they brought); (None, None) when all are null."""
        mpi_waiting.serve()
        found = _some_ended(requests)
        if found is None:
            return None, None
        pairs = _with(found, statuses)
        return found, [_ours(requests[i])._take(status) for i, status in pairs]

    @classmethod
    def waitsome(cls, requests: Sequence[Request], statuses: Any = None) -> tuple[list[int] | None, list[Any] | None]:
        """As `testsome`, once one has ended."""
        _wait_any(requests)
        return cls.testsome(requests, statuses)

    @classmethod
    def Testall(cls, requests: Sequence[Request], statuses: Any = None) -> bool:
        """As `testall`; what they brought is dropped."""
        mpi_waiting.serve()
        if not _all_ended(requests):
            return False
        for request, status in _with(requests, statuses):
            _ours(request)._finish(status)
        return True

    @classmethod
    def Waitall(cls, requests: Sequence[Request], statuses: Any = None) -> bool:
        """As `waitall`; what they brought is dropped."""
        _wait(lambda: _all_ended(requests))
        return cls.Testall(requests, statuses)

    @classmethod
    def Testany(cls, requests: Sequence[Request], status: Any = None) -> tuple[int, bool]:
        """As `testany`; what it brought is dropped."""
        mpi_waiting.serve()
        found = _any_ended(requests)
        if found is None:
            return UNDEFINED, False
        if found != UNDEFINED:
            _ours(requests[found])._finish(status)
        return found, True

    @classmethod
    def Waitany(cls, requests: Sequence[Request], status: Any = None) -> int:
        """As `waitany`; what it brought is dropped."""
        found = _wait_any(requests)
        if found != UNDEFINED:
            _ours(requests[found])._finish(status)
        return found

    @classmethod
    def Testsome(cls, requests: Sequence[Request], statuses: Any = None) -> list[int] | None:
        """As `testsome`; what they brought is dropped."""
        mpi_waiting.serve()
        found = _some_ended(requests)
        if found is not None:
            for i, status in _with(found, statuses):
                _ours(requests[i])._finish(status)
        return found

    @classmethod
    def Waitsome(cls, requests: Sequence[Request], statuses: Any = None) -> list[int] | None:
        """As `waitsome`; what they brought is dropped."""
        _wait_any(requests)
        return cls.Testsome(requests, statuses)


def _ours(request: Any) -> Request:
    """A request of MPI's own among ours: its handle is nulled as theirs are."""
    return request if isinstance(request, Request) else Request(request)


def _all_ended(requests: Sequence[Request]) -> bool:
    return all(_ours(request)._look() for request in requests)


def _any_ended(requests: Sequence[Request]) -> int | None:
    """The first that has ended; UNDEFINED when all are null."""
    active = False
    for i, request in enumerate(requests):
        if request:
            active = True
            if _ours(request)._look():
                return i
    return None if active else UNDEFINED


def _wait_any(requests: Sequence[Request]) -> int:
    found: list[int] = []

    def ended() -> bool:
        first = _any_ended(requests)
        if first is not None:
            found.append(first)
        return first is not None

    _wait(ended)
    return found[0]


def _some_ended(requests: Sequence[Request]) -> list[int] | None:
    """Those that have ended; None when all are null."""
    if not any(requests):
        return None
    return [i for i, request in enumerate(requests) if request and _ours(request)._look()]


def _with(requests: Sequence[Any], statuses: Any) -> list[tuple[Any, Any]]:
    """Each with its status. A list grows by what it lacks; what a tuple lacks is not told."""
    if statuses is None:
        return [(request, None) for request in requests]
    if isinstance(statuses, list):
        statuses.extend(MPI.Status() for _ in range(len(requests) - len(statuses)))
    return list(zip(requests, [*statuses, *[None] * len(requests)], strict=False))


class Message(tuple):  # type: ignore[type-arg]
    """Message(message=None)

    A message that a probe has matched: nobody else can receive it. Mirrors `mpi4py.util.pkl5.Message`.
    """

    _nbytes = 0
    _status: Any = None  # of the probe that matched it

    def __new__(cls, message: Any = None) -> Message:
        if message is None:
            message = (MPI.MESSAGE_NULL,)
        elif isinstance(message, MPI.Message):
            # The constant is copied: what is received from it is null then.
            message = (MPI.Message(message) if message == MPI.MESSAGE_NO_PROC else message,)
        made = super().__new__(cls, message)
        if isinstance(message, Message):
            made._nbytes, made._status = message._nbytes, message._status
        return made

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Message):
            return tuple(self) == tuple(other)
        if isinstance(other, MPI.Message):
            return all(message == other for message in self)
        return NotImplemented

    def __ne__(self, other: object) -> bool:
        same = self.__eq__(other)
        return same if same is NotImplemented else not same

    __hash__ = None  # type: ignore[assignment]

    def __bool__(self) -> bool:
        return any(message for message in self)

    def _for_wait(self) -> waiting.Part:
        return waiting.READY

    def free(self) -> None:
        """Do nothing, as there."""
        for message in self:
            message.free()

    def recv(self, status: Any = None) -> Any:
        """The object."""
        message = self[0]
        if message == MPI.MESSAGE_NO_PROC:
            MPI.Message.Recv(message, (None, 0, MPI.BYTE), status)
            return None
        if message == MPI.MESSAGE_NULL or self._status is None:  # not of our probes
            return MPI.Message.recv(message, status)
        obj = _fetch(message, self._nbytes)
        _copy_status(status, self._status)
        return obj

    def irecv(self) -> Request:
        """A request of the object, which MPI receives from now on."""
        message = self[0]
        if message == MPI.MESSAGE_NO_PROC:
            return Request(MPI.Message.Irecv(message, (None, 0, MPI.BYTE)))
        if message == MPI.MESSAGE_NULL or self._status is None:
            return Request(MPI.Message.irecv(message))
        coming = _Coming(message, self._nbytes)  # the MPI message is null now
        request = Request(coming.request)
        request._coming = coming
        return request

    @classmethod
    def probe(cls, comm: Any, source: int = ANY_SOURCE, tag: int = ANY_TAG, status: Any = None) -> Message:
        """Wait for a message and match it."""
        return _mprobe(comm, source, tag, status, True)  # type: ignore[return-value]

    @classmethod
    def iprobe(cls, comm: Any, source: int = ANY_SOURCE, tag: int = ANY_TAG, status: Any = None) -> Message | None:
        """Match a message, if there is one."""
        return _mprobe(comm, source, tag, status, False)


def _mprobe(comm: Any, source: int, tag: int, status: Any, wait: bool) -> Message | None:
    if source == PROC_NULL:
        return Message(MPI.Comm.Mprobe(comm, source, tag, status))
    status = MPI.Status() if status is None else status
    message, nbytes = _match(comm, source, tag, status, wait, True)
    if message is None:
        return None
    made = Message(message)
    made._nbytes = nbytes
    made._status = MPI.Status()
    _copy_status(made._status, status)
    return made


def _match(comm: Any, source: int, tag: int, status: Any, wait: bool = True, probes: bool = False) -> tuple[Any, int]:
    """(an MPI message, or unless it `probes` its contents; its bytes), after the receives in line that stand before it."""
    state = _state_of(comm)
    if not state.line:
        improbe = _improbe
        message: Any = improbe(comm, source, tag, status)
        if message is None and wait:
            message = _wait(lambda: improbe(comm, source, tag, status) if not state.line else True)
        if message is not True:
            return message, 0 if message is None else _bytes_of(status)
    posted = _Posted(source, tag, probes)
    state.enter(comm, posted)

    def there() -> bool:
        if posted.message is None:
            state.progress(comm)
        return posted.message is not None

    try:
        if wait:
            _wait(there)
        else:
            there()
    finally:
        state.leave(posted)
    if posted.message is not None:
        _copy_status(status, posted.status)
    return posted.message, posted.nbytes


def _state_of(comm: Any) -> Any:
    """What all wrappers of a communicator share: it goes with the communicator."""
    known = getattr(comm, "_known", None)
    if known is not None:
        return known
    with _making:
        state = MPI.Comm.Get_attr(comm, _KEY)
        if state is None:
            state = _State(comm)
            MPI.Comm.Set_attr(comm, _KEY, state)
    if isinstance(comm, Comm):
        comm._known = state
    return state


# ---- communicators


class Comm(MPI.Comm):
    """Comm(comm=None)

    A communicator. Mirrors `mpi4py.util.pkl5.Comm`; upper-case methods are `mpi4py.MPI.Comm`'s own.
    """

    _known: Any = None
    _me: int | None = None  # the rank, once it is needed

    def __repr__(self) -> str:
        kind = f"{type(self).__module__}.{type(self).__name__}"
        if MPI.Is_finalized() or not self:
            return f"<{kind} of nobody>"
        return f"<{kind} {self.Get_name()!r} rank {_rank(self)} of {self.Get_size()}>"

    def _state(self) -> Any:
        return _state_of(self)

    # ---- sending

    def _begin(self, begin: Any, obj: Any, dest: int, tag: int) -> Request:
        """A send that has begun; `begin` is one of MPI's."""
        if dest == PROC_NULL:
            return Request(begin(self, (None, 0, MPI.BYTE), dest, tag))
        message = _encode(obj, _state_of(self).near(dest))
        buffer, datatype = _as_buffer(message)
        if _let_go:
            _sweep()
        request = Request(begin(self, buffer, dest, tag))
        request._keep = message
        if datatype is not None:
            datatype.Free()  # MPI keeps it until the send has ended
        if datatype is not None or len(message) >= mpi_waiting.LARGE:
            under_way(tuple(request))
        return request

    def _put(self, packet: Any, dest: int, tag: int) -> Request:
        """A send of a collective operation, whose objects are packed."""
        return self._begin(MPI.Comm.Isend, packet, dest, tag)

    def _take(self, source: int, tag: int) -> Any:
        """What another rank has put. Messages of one come in order, so one with another tag is of a mistaken call."""
        status = MPI.Status()
        got = self.recv(None, source, ANY_TAG, status)
        theirs = status.Get_tag()
        if theirs != tag:
            known = theirs == collectives.tag_of("mistaken")  # another rank has found it
            text = got if known else collectives.mistaken(source, theirs, tag)
            if not known:
                self._tell_all(text)
            raise CommError(MPI.ERR_OTHER, text)
        return got

    def _tell_all(self, text: str) -> None:
        """Tell the other ranks, which may wait for this one."""
        inter = self.Is_inter()
        for rank in range(self.Get_remote_size() if inter else self.Get_size()):  # type: ignore[attr-defined]
            if inter or rank != self.Get_rank():
                self._put(f"rank {self.Get_rank()} was told: {text}", rank, collectives.tag_of("mistaken"))

    def _sealed(self, obj: Any) -> Any:
        return _sealed(obj)

    send = _small.send

    def _send(self, obj: Any, dest: int, tag: int, progress: bool) -> None:
        """What does not go the short way."""
        if dest != PROC_NULL:
            title = f"rank {_rank(self)} to {dest}" if progress else None
            message: Any = _encode(_sealed(obj), _state_of(self).near(dest), title)
            if type(message) is bytes and len(message) < INLINE and not _in_line and dest != self._me:
                MPI.Comm.Send(self, (message, MPI.BYTE), dest, tag)
                return
            buffer, datatype = _as_buffer(message)
            request = Request(MPI.Comm.Isend(self, buffer, dest, tag))
            if datatype is not None:
                datatype.Free()
            if datatype is not None or len(message) >= mpi_waiting.LARGE:
                under_way(tuple(request))
            apart = 0 if type(message) is bytes else sum(memoryview(piece).nbytes for piece in message)
            with shown(title, apart, steps=False):
                request.wait()
            return
        MPI.Comm.Send(self, (None, 0, MPI.BYTE), dest, tag)

    def bsend(self, obj: Any, dest: int, tag: int = 0) -> None:
        """As `send`, in buffered mode: `MPI.Attach_buffer` first."""
        self._begin(MPI.Comm.Ibsend, _sealed(obj), dest, tag).wait()

    def ssend(self, obj: Any, dest: int, tag: int = 0) -> None:
        """As `send`, and wait until its receive has begun."""
        self._begin(MPI.Comm.Issend, _sealed(obj), dest, tag).wait()

    def isend(self, obj: Any, dest: int, tag: int = 0) -> Request:  # type: ignore[override]
        """As `send`, without waiting: a snapshot within a node; on its way elsewhere the arrays must stay as they are."""
        return self._begin(MPI.Comm.Isend, _sealed(obj), dest, tag)

    def ibsend(self, obj: Any, dest: int, tag: int = 0) -> Request:  # type: ignore[override]
        """As `bsend`, without waiting."""
        return self._begin(MPI.Comm.Ibsend, _sealed(obj), dest, tag)

    def issend(self, obj: Any, dest: int, tag: int = 0) -> Request:  # type: ignore[override]
        """As `ssend`, without waiting: the request ends when its receive has begun."""
        return self._begin(MPI.Comm.Issend, _sealed(obj), dest, tag)

    # ---- receiving

    recv = _small.recv

    def _recv(self, source: int, tag: int, status: Any, progress: bool) -> Any:
        """What does not come the short way."""
        if source == PROC_NULL:
            MPI.Comm.Recv(self, (None, 0, MPI.BYTE), source, tag, status)
            return None
        message, nbytes = _match(self, source, tag, status)
        return self._fetch(message, nbytes, status, progress)

    def _fetch(self, message: Any, nbytes: int, status: Any, progress: bool) -> Any:
        return _fetch(message, nbytes, _titled(self, status, progress))

    def irecv(self, buf: Any = None, source: int = ANY_SOURCE, tag: int = ANY_TAG) -> Request:  # type: ignore[override]
        """A request that gets the next message that fits: before any receive that begins later."""
        if source == PROC_NULL:
            return Request(MPI.Comm.Irecv(self, (None, 0, MPI.BYTE), source, tag))
        state = _state_of(self)
        posted = _Posted(source, tag)
        state.enter(self, posted)
        state.progress(self)
        request = Request()
        request._comm, request._posted = self, posted
        return request

    def sendrecv(
        self,
        sendobj: Any,
        dest: int,
        sendtag: int = 0,
        recvbuf: Any = None,
        source: int = ANY_SOURCE,
        recvtag: int = ANY_TAG,
        status: Any = None,
    ) -> Any:
        """Send one object and receive another."""
        request = self.isend(sendobj, dest, sendtag)
        obj = self.recv(recvbuf, source, recvtag, status)
        request.wait()
        return obj

    def mprobe(self, source: int = ANY_SOURCE, tag: int = ANY_TAG, status: Any = None) -> Message:  # type: ignore[override]
        """Wait for a message and match it: only its `Message` can receive it then."""
        return _mprobe(self, source, tag, status, True)  # type: ignore[return-value]

    def improbe(self, source: int = ANY_SOURCE, tag: int = ANY_TAG, status: Any = None) -> Message | None:  # type: ignore[override]
        """As `mprobe`, without waiting: None when there is nothing."""
        return _mprobe(self, source, tag, status, False)

    def probe(self, source: int = ANY_SOURCE, tag: int = ANY_TAG, status: Any = None) -> Literal[True]:
        """Wait until there is a message to receive."""
        if source == PROC_NULL:
            return MPI.Comm.probe(self, source, tag, status)
        _wait(lambda: MPI.Comm.Iprobe(self, source, tag, status))
        return True

    def iprobe(self, source: int = ANY_SOURCE, tag: int = ANY_TAG, status: Any = None) -> bool:
        """Whether there is a message to receive."""
        mpi_waiting.serve()
        return MPI.Comm.Iprobe(self, source, tag, status)

    def Probe(self, source: int = ANY_SOURCE, tag: int = ANY_TAG, status: Any = None) -> Literal[True]:
        """Wait until there is a message to receive."""
        return self.probe(source, tag, status)

    Iprobe = iprobe

    def Mprobe(self, source: int = ANY_SOURCE, tag: int = ANY_TAG, status: Any = None) -> MPI.Message:
        """Wait for a message and match it."""
        if not mpi_waiting.in_line or source == PROC_NULL:
            return MPI.Comm.Mprobe(self, source, tag, status)
        return _match(self, source, tag, MPI.Status() if status is None else status, True, True)[0]  # type: ignore[no-any-return]

    def Improbe(self, source: int = ANY_SOURCE, tag: int = ANY_TAG, status: Any = None) -> MPI.Message | None:
        """Match a message, if there is one."""
        if not mpi_waiting.in_line or source == PROC_NULL:
            return MPI.Comm.Improbe(self, source, tag, status)
        return _match(self, source, tag, MPI.Status() if status is None else status, False, True)[0]  # type: ignore[no-any-return]

    # ---- of buffers: MPI's own, and while receives are in line they are served

    def Send(self, buf: Any, dest: int, tag: int = 0) -> None:
        """Send a buffer."""
        if mpi_waiting.in_line:
            _wait(MPI.Comm.Isend(self, buf, dest, tag).Test)
        else:
            MPI.Comm.Send(self, buf, dest, tag)

    def Ssend(self, buf: Any, dest: int, tag: int = 0) -> None:
        """Send a buffer, and wait until its receive has begun."""
        if mpi_waiting.in_line:
            _wait(MPI.Comm.Issend(self, buf, dest, tag).Test)
        else:
            MPI.Comm.Ssend(self, buf, dest, tag)

    def Rsend(self, buf: Any, dest: int, tag: int = 0) -> None:
        """Send a buffer whose receive has begun."""
        if mpi_waiting.in_line:
            _wait(MPI.Comm.Irsend(self, buf, dest, tag).Test)
        else:
            MPI.Comm.Rsend(self, buf, dest, tag)

    def Recv(self, buf: Any, source: int = ANY_SOURCE, tag: int = ANY_TAG, status: Any = None) -> None:
        """Receive into a buffer: after the receives in line that stand before it."""
        if mpi_waiting.in_line and source != PROC_NULL:
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
        if mpi_waiting.in_line:
            request = MPI.Comm.Isend(self, sendbuf, dest, sendtag)
            self.Recv(recvbuf, source, recvtag, status)
            _wait(request.Test)
        else:
            MPI.Comm.Sendrecv(self, sendbuf, dest, sendtag, recvbuf, source, recvtag, status)

    def Sendrecv_replace(self, *args: Any, **kwargs: Any) -> None:
        """Send a buffer and receive into it."""
        beside(MPI.Comm.Sendrecv_replace, self, *args, **kwargs)

    # ---- together

    def _together(self) -> Any:
        state = _state_of(self)
        if state.twin is None:
            state.twin = self._make_twin()
        return state.twin

    def _make_twin(self) -> Any:
        raise NotImplementedError

    def _checked(self, root: int) -> int:
        size = self.Get_size() if self.Is_intra() else self.Get_remote_size()  # type: ignore[attr-defined]
        if not 0 <= root < size and (self.Is_intra() or root not in (ROOT, PROC_NULL)):
            self.Call_errhandler(MPI.ERR_ROOT)
            across = "" if self.Is_intra() else "; on an intercommunicator it is ROOT at the root and PROC_NULL beside it"
            raise CommError(MPI.ERR_ROOT, f"root {root}: there are ranks 0 to {size - 1} here{across}")
        return root

    def bcast(self, obj: Any = None, root: int = 0, *, readonly: bool = False, progress: bool = False) -> Any:
        """The root's object, at every rank.

        To each node it crosses once. There its buffers lie in one block, and each rank's arrays are copy-on-write views of it:
        writable, its own. With `readonly` they are the block itself, which spares mapping it again. `progress` shows a bar at
        the root for 16 MiB or more.
        """
        return self._together().bcast(obj, self._checked(root), readonly, progress)

    def gather(self, sendobj: Any, root: int = 0) -> list[Any] | None:
        """The list of all ranks' objects, at the root; None elsewhere."""
        return self._together().gather(sendobj, self._checked(root))  # type: ignore[no-any-return]

    def scatter(self, sendobj: Any = None, root: int = 0) -> Any:
        """To each rank its item of the root's list, which has as many as there are ranks."""
        return self._together().scatter(sendobj, self._checked(root))

    def allgather(self, sendobj: Any) -> list[Any]:
        """The list of all ranks' objects, at every rank."""
        return self._together().allgather(sendobj)  # type: ignore[no-any-return]

    def alltoall(self, sendobj: Any) -> list[Any]:
        """To rank i its item of this rank's list; the list of what came from each."""
        return self._together().alltoall(sendobj)  # type: ignore[no-any-return]

    def reduce(self, sendobj: Any, op: Any = SUM, root: int = 0) -> Any:
        """All ranks' objects taken together by `op` in the order of ranks, at the root; None elsewhere."""
        return self._together().reduce(sendobj, _operation(op), self._checked(root))

    def allreduce(self, sendobj: Any, op: Any = SUM) -> Any:
        """As `reduce`, at every rank."""
        return self._together().allreduce(sendobj, _operation(op))

    def barrier(self) -> None:
        """Wait until all ranks have come here, as this module waits: it gives way, and answers Ctrl-C."""
        _wait(MPI.Comm.Ibarrier(self).Test)

    Barrier = barrier

    def Free(self) -> None:
        """Give the communicator up, for all its ranks together."""
        known, self._known = self._known, None
        if known is not None and known.twin is not None:
            known.twin.free()
        beside(MPI.Comm.Free, self)


def _operation(op: Any) -> Any:
    """MPI's predefined reductions as ours, which take arrays too."""
    from copyless.comm import constants

    if not isinstance(op, MPI.Op):
        return op
    for name in ("SUM", "PROD", "MAX", "MIN", "LAND", "LOR", "BAND", "BOR", "BXOR"):
        if op == getattr(MPI, name):
            return getattr(constants, name)
    return op


class _Intra(collectives.Intra):
    draft = False

    def free(self) -> None:
        MPI.Comm.Free(self.comm)


class _Inter(collectives.Inter):
    def free(self) -> None:
        MPI.Comm.Free(self.comm)
        MPI.Comm.Free(self.local.comm)


def _lines_of(private: Any) -> _Intra:
    """Collective operations on a communicator that is theirs alone; finds out who shares which node."""
    size = private.Get_size()
    alone = None if _near is not None else (MPI.COMM_WORLD.Get_rank(), os.getpid(), _store.process_start(os.getpid()))
    nodes = beside(MPI.Comm.allgather, private, (_store.identity(), _node(), alone))
    world = _state_of(private).world
    _far.update(world[rank] for rank, node in enumerate(nodes) if node != nodes[private.Get_rank()])
    return _Intra(Intracomm(private), private.Get_rank(), size, nodes)


class Intracomm(Comm, MPI.Intracomm):
    """Intracomm(comm=None)

    A communicator of one group, and an `MPI.Intracomm`. Mirrors `mpi4py.util.pkl5.Intracomm`. Making one needs no other rank.
    """

    def _make_twin(self) -> Any:
        return _lines_of(beside(MPI.Intracomm.Dup, self))

    def scan(self, sendobj: Any, op: Any = SUM) -> Any:
        """The objects of the ranks up to this one taken together, in their order."""
        return self._together().scan(sendobj, _operation(op))

    def exscan(self, sendobj: Any, op: Any = SUM) -> Any:
        """The objects of the ranks before this one taken together; None at rank 0."""
        return self._together().scan(sendobj, _operation(op), exclusive=True)


class Intercomm(Comm, MPI.Intercomm):
    """Intercomm(comm=None)

    A communicator between two groups, and an `MPI.Intercomm`. Mirrors `mpi4py.util.pkl5.Intercomm`.
    """

    def _make_twin(self) -> Any:
        private = beside(MPI.Intercomm.Dup, self)
        merged = beside(MPI.Intercomm.Merge, private)
        mine, whole = private.Get_group(), merged.Get_group()
        first = MPI.Group.Translate_ranks(mine, [0], whole)[0]
        local = beside(MPI.Comm.Split, merged, first, private.Get_rank())
        mine.Free()
        whole.Free()
        merged.Free()
        return _Inter(
            Intercomm(private), private.Get_rank(), private.Get_remote_size(), _lines_of(local), (ROOT, PROC_NULL)
        )


class Topocomm(Intracomm, MPI.Topocomm):
    """Topocomm(comm=None)

    A communicator whose ranks have neighbours, and an `MPI.Topocomm`.
    """

    def neighbor_allgather(self, sendobj: Any) -> list[Any]:
        """The objects of the neighbours that send to this rank, in the order of `inedges`; None for nobody."""
        return self.neighbor_alltoall([sendobj] * len(self.outedges))

    def neighbor_alltoall(self, sendobj: Sequence[Any] | None) -> list[Any]:
        """To each neighbour in `outedges` its item; the list of what came from those in `inedges`."""
        sources, dests = self.inedges, self.outedges
        objs = [None] * len(dests) if sendobj is None else list(sendobj)
        if len(objs) != len(dests):
            raise ValueError(f"expecting {len(dests)} items, got {len(objs)}")
        # On a grid what goes up arrives from below, also where both are the same rank.
        across = MPI.Comm.Get_topology(self) == MPI.CART
        twin = self._together().comm
        first = collectives.tag_of("neighbor_alltoall")
        requests = [
            twin._put(_sealed(obj), dest, first + 16 * (i if across else 0))
            for i, (obj, dest) in enumerate(zip(objs, dests, strict=True))
        ]
        got = [twin.recv(None, source, first + 16 * (i ^ 1 if across else 0)) for i, source in enumerate(sources)]
        Request.waitall(requests)
        return got


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


def _as_ours(comm: Any) -> Any:
    """A communicator that MPI made, as one of these classes."""
    if isinstance(comm, Comm) or not isinstance(comm, MPI.Comm):
        return comm
    return next(ours for theirs, ours in _CLASSES if isinstance(comm, theirs))(comm)


for _class in (Comm, Intracomm, Intercomm, Topocomm, Cartcomm, Graphcomm, Distgraphcomm):
    serves(_as_ours)(_class)


_the_world: Any = None


def world() -> Intracomm:
    """MPI's world, as an `Intracomm` of ours."""
    global _the_world
    if _the_world is None:
        _the_world = Intracomm(MPI.COMM_WORLD)
    return _the_world  # type: ignore[no-any-return]


_the_self: Any = None


def __getattr__(name: str) -> Any:
    """What this module does not name is MPI's; COMM_WORLD and COMM_SELF are of our classes."""
    global _the_self
    if name == "COMM_WORLD":
        return world()
    if name == "COMM_SELF":
        if _the_self is None:
            _the_self = Intracomm(MPI.COMM_SELF)
        return _the_self
    if name.startswith("_"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(MPI, name)


class _Module(types.ModuleType):
    """This module: who gives it another `pickle` tells the short way of sending."""

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "pickle":
            _tell_of_pickle()


sys.modules[__name__].__class__ = _Module
_ = Packet  # what travels in collective operations is unpickled here too
