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
the first that it fits. Waiting spins a little, then yields, then sleeps, and answers Ctrl-C.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

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
from copyless.comm import _small, collectives
from copyless.comm.constants import SUM
from copyless.comm.packets import Packet, _by_value, cut, in_memory
from copyless.comm.progress import shown
from copyless.errors import OutOfSharedMemory
from copyless.storage import handles, store

__all__ = ["ANY_SOURCE", "ANY_TAG", "PROC_NULL", "ROOT", "UNDEFINED", "Comm", "Intercomm", "Intracomm", "Message", "Request",
           "Status", "world"]  # fmt: skip

ANY_SOURCE, ANY_TAG, PROC_NULL, ROOT, UNDEFINED = MPI.ANY_SOURCE, MPI.ANY_TAG, MPI.PROC_NULL, MPI.ROOT, MPI.UNDEFINED
Status = MPI.Status

INLINE = 1 << 16  # bytes of buffers up to which they go in the pickle
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
_PATIENCE = 2.0  # seconds that ranks of this node have to enter the table, once


def _is_near(world: int) -> bool:
    """Whether a rank of the world shares this node.

    At the start some may not have come to this module: they are waited for, since what lies in shared memory shall pass by
    reference to all ranks of a node, and not to those who were quick.
    """
    global _all_entered
    if _near is None:
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


def _through_block(
    arrives: Callable[..., Any], data: bytes, parts: list[Any], title: str | None = None
) -> bytes | None:
    """The message of a pickle whose buffers cross in a block; None when there is no room: then as to another node."""
    try:
        with shown(title, sum(part.nbytes for part in parts)) as tell:
            memory = in_memory(parts, tell)
    except OutOfSharedMemory:
        return None
    handle = pickling.memory_handle(memory, 1)  # with a hold of its own, until it is loaded
    assert handle is not None
    return pickle.dumps(_AsPickle(arrives, data, [part.nbytes for part in parts], handle), 5)


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
    if not parts:
        return data
    total = sum(part.nbytes for part in parts)
    if total <= INLINE:
        return pickle.dumps(_AsPickle(_loaders.mpi_inline, data, *map(bytearray, parts)), 5)
    if near:
        message = _through_block(_loaders.mpi_block, data, parts, title)
        if message is not None:
            return message
    if total + len(data) < BIG:
        return pickle.dumps(_AsPickle(_loaders.mpi_inline, data, *map(bytearray, parts)), 5)
    whole = [memoryview(data), *parts]
    sizes = [part.nbytes for part in whole]
    base = (len(pickle.dumps(_Detached(1 << 20, sizes), 5)) + 63) // 64 * 64
    head = pickle.dumps(_Detached(base, sizes), 5)
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
        return bytearray(nbytes)
    block = memory.obj
    if isinstance(block, _blocks.Block):
        _blocks.mark_private(block)
    return memory


def _receive(message: Any, nbytes: int) -> Any:
    """The bytes of a matched message."""
    whole = bytearray(nbytes) if nbytes < BIG else _room(nbytes)
    if nbytes <= _PIECE:
        MPI.Message.Recv(message, (whole, nbytes, MPI.BYTE))
    else:
        datatype = _type_of([(0, nbytes)])
        MPI.Message.Recv(message, (whole, 1, datatype))
        datatype.Free()
    return whole


def _titled(comm: Any, status: Any, progress: bool) -> str | None:
    return f"rank {status.Get_source()} to {_rank(comm)}" if progress else None


def _fetch(message: Any, nbytes: int, title: str | None = None) -> Any:
    """The object of a matched message, or of the bytes of one."""
    if not isinstance(message, MPI.Message):
        return _decode(message)
    if nbytes < BIG:
        return _small.fetch(message, nbytes)
    with shown(title, nbytes, steps=False):
        whole = _receive(message, nbytes)
    return _decode(whole)


def _bytes_of(status: Any) -> int:
    return status.Get_elements(MPI.BYTE)  # type: ignore[no-any-return]


# ---- waiting


def _wait(ended: Callable[[], Any]) -> Any:
    """Ask until the answer is true: at once for ten microseconds, then giving way, then with sleeps up to half a millisecond.

    Meanwhile receives in line get what arrives, whatever this waits for: the other side may wait for them.
    """

    def done() -> Any:
        if _in_line:
            for state, comm in list(_in_line.values()):
                state.progress(comm)
        return ended()

    if answer := done():
        return answer
    began = time.perf_counter()
    while time.perf_counter() - began < 1e-5:
        if answer := done():
            return answer
    while time.perf_counter() - began < 4e-3:
        os.sched_yield()
        if answer := done():
            return answer
    pause = 5e-5
    while not (answer := done()):
        time.sleep(pause)
        pause = min(pause * 1.5, 5e-4)
    return answer


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
                        first.message = message if first.probes else _receive(message, first.nbytes)
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

_let_go: list[tuple[Any, Any]] = []  # sends under way whose requests nobody has, and what they send


def _sweep() -> None:
    _let_go[:] = [(requests, kept) for requests, kept in _let_go if not MPI.Request.Testall(list(requests))]


class Request(tuple):  # type: ignore[type-arg]
    """Request(request=None)

    A send or receive under way. Mirrors `mpi4py.util.pkl5.Request`: the MPI requests that it consists of.
    """

    _comm: Any = None
    _posted: _Posted | None = None
    _keep: Any = None  # what MPI still reads
    _got: tuple[Any, int] | None = None  # a matched message
    _fetched: Any = None

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
        return self._posted is not None or self._got is not None or any(request for request in self)

    def _end(self) -> None:
        self.__dict__.clear()

    def __del__(self) -> None:
        # Let go while MPI still reads: what is sent stays until it has been.
        if self._keep is not None and not MPI.Is_finalized() and not all(map(MPI.Request.Get_status, self)):
            _let_go.append((tuple(self), self._keep))

    def Free(self) -> None:
        """Forget it; a receive that has no message yet is taken back."""
        self._withdraw()
        for request in self:
            request.Free()
        self._end()

    def free(self) -> None:
        """As `Free`; nothing for a null request."""
        self._withdraw()
        for request in self:
            request.free()
        self._end()

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

    def _look(self) -> bool:
        posted = self._posted
        if posted is not None:
            if posted.message is None and not posted.cancelled:
                self._comm._state().progress(self._comm)
            return posted.message is not None or posted.cancelled
        return self._got is not None or all(MPI.Request.Get_status(request) for request in self)

    def _for_wait(self) -> waiting.Part:
        return waiting.Part(lambda deaths: self._look(), (), True)

    def get_status(self, status: Any = None) -> bool:
        """Whether it has ended; it stays as it is."""
        if not self._look():
            return False
        if self._posted is not None:
            _copy_status(status, self._posted.status)
        elif status is not None and self._got is None:
            MPI.Request.Get_status(self[0], status)
        return True

    def _take(self, status: Any) -> Any:
        posted, got = self._posted, self._got
        if posted is not None:
            if posted.cancelled:
                if status is not None:
                    status.Set_cancelled(True)
                self._end()
                return None
            _copy_status(status, posted.status)
            got = posted.message, posted.nbytes
        elif got is None:
            MPI.Request.Waitall(self, None if status is None else [status] * len(self))
        self._end()
        return None if got is None else _fetch(*got)

    def test(self, status: Any = None) -> tuple[bool, Any]:
        """(whether it has ended, what it brought)."""
        return (True, self._take(status)) if self._look() else (False, None)

    def wait(self, status: Any = None) -> Any:
        """What it brought, once it has ended."""
        if self._posted is None and self._got is None and status is None and MPI.Request.Testall(self):
            self._end()  # most sends have ended by now
            return None
        _wait(self._look)
        return self._take(status)

    @classmethod
    def get_status_all(cls, requests: Sequence[Request], statuses: list[Any] | None = None) -> bool:
        """Whether all have ended; they stay as they are."""
        return all(request.get_status(status) for request, status in _with(requests, statuses))

    @classmethod
    def testall(cls, requests: Sequence[Request], statuses: list[Any] | None = None) -> tuple[bool, Any]:
        """(whether all have ended, the list of what they brought)."""
        pairs = _with(requests, statuses)
        if not all(request._look() for request in requests):
            return False, None
        return True, [request._take(status) for request, status in pairs]

    @classmethod
    def waitall(cls, requests: Sequence[Request], statuses: list[Any] | None = None) -> list[Any]:
        """The list of what they brought, once all have ended."""
        return [request.wait(status) for request, status in _with(requests, statuses)]


def _with(requests: Sequence[Request], statuses: list[Any] | None) -> list[tuple[Request, Any]]:
    if statuses is None:
        return [(request, None) for request in requests]
    statuses.extend(MPI.Status() for _ in range(len(requests) - len(statuses)))
    return list(zip(requests, statuses, strict=False))


def _request_of(comm: Any, *, posted: Any = None, got: Any = None) -> Request:
    request = Request()
    request._comm, request._posted, request._got = comm, posted, got
    return request


class Message(tuple):  # type: ignore[type-arg]
    """Message(message=None)

    A message that a probe has matched: nobody else can receive it. Mirrors `mpi4py.util.pkl5.Message`.
    """

    _nbytes = 0
    _comm: Any = None

    def __new__(cls, message: Any = None) -> Message:
        if message is None:
            message = (MPI.MESSAGE_NULL,)
        elif isinstance(message, MPI.Message):
            message = (message,)
        made = super().__new__(cls, message)
        if isinstance(message, Message):
            made._nbytes = message._nbytes
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
        if message == MPI.MESSAGE_NULL or self._nbytes == 0:  # not of our probes
            return MPI.Message.recv(message, status)
        obj = _fetch(message, self._nbytes)
        if status is not None:
            status.Set_elements(MPI.BYTE, self._nbytes)
        return obj

    def irecv(self) -> Request:
        """A request of the object."""
        message = self[0]
        if message == MPI.MESSAGE_NO_PROC:
            MPI.Message.Recv(message, (None, 0, MPI.BYTE))
            return Request()
        if message == MPI.MESSAGE_NULL:
            return Request(MPI.Message.irecv(message))
        # The MPI message is the request's from now on: this one is null.
        mine = MPI.Message(message)
        request = _request_of(None, got=(message, self._nbytes))
        del mine
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
        return request

    send = _small.send

    def _send(self, obj: Any, dest: int, tag: int, progress: bool) -> None:
        """What does not go the short way."""
        if dest != PROC_NULL:
            title = f"rank {_rank(self)} to {dest}" if progress else None
            message: Any = _encode(obj, _state_of(self).near(dest), title)
            if type(message) is bytes and len(message) < INLINE and not _in_line and dest != self._me:
                MPI.Comm.Send(self, (message, MPI.BYTE), dest, tag)
                return
            buffer, datatype = _as_buffer(message)
            request = Request(MPI.Comm.Isend(self, buffer, dest, tag))
            if datatype is not None:
                datatype.Free()
            apart = 0 if type(message) is bytes else sum(memoryview(piece).nbytes for piece in message)
            with shown(title, apart, steps=False):
                request.wait()
            return
        MPI.Comm.Send(self, (None, 0, MPI.BYTE), dest, tag)

    def bsend(self, obj: Any, dest: int, tag: int = 0) -> None:
        """As `send`, in buffered mode: `MPI.Attach_buffer` first."""
        self._begin(MPI.Comm.Ibsend, obj, dest, tag).wait()

    def ssend(self, obj: Any, dest: int, tag: int = 0) -> None:
        """As `send`, and wait until its receive has begun."""
        self._begin(MPI.Comm.Issend, obj, dest, tag).wait()

    def isend(self, obj: Any, dest: int, tag: int = 0) -> Request:  # type: ignore[override]
        """As `send`, without waiting: a snapshot within a node; on its way elsewhere the arrays must stay as they are."""
        return self._begin(MPI.Comm.Isend, obj, dest, tag)

    def ibsend(self, obj: Any, dest: int, tag: int = 0) -> Request:  # type: ignore[override]
        """As `bsend`, without waiting."""
        return self._begin(MPI.Comm.Ibsend, obj, dest, tag)

    def issend(self, obj: Any, dest: int, tag: int = 0) -> Request:  # type: ignore[override]
        """As `ssend`, without waiting: the request ends when its receive has begun."""
        return self._begin(MPI.Comm.Issend, obj, dest, tag)

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
        return _request_of(self, posted=posted)

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

    # ---- together

    def _together(self) -> Any:
        state = _state_of(self)
        if state.twin is None:
            state.twin = self._make_twin()
        return state.twin

    def _make_twin(self) -> Any:
        raise NotImplementedError

    def _checked(self, root: int) -> int:
        if self.Is_intra() and not 0 <= root < self.Get_size():
            self.Call_errhandler(MPI.ERR_ROOT)
            raise MPI.Exception(MPI.ERR_ROOT)
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

    def Free(self) -> None:
        """Give the communicator up, for all its ranks together."""
        known, self._known = self._known, None
        if known is not None and known.twin is not None:
            known.twin.free()
        MPI.Comm.Free(self)


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
    where = (_store.process_start(1), os.uname().nodename, _node(), _near is None and private.Get_rank())
    nodes = MPI.Comm.allgather(private, where)
    return _Intra(Intracomm(private), private.Get_rank(), size, nodes)


class Intracomm(Comm, MPI.Intracomm):
    """Intracomm(comm=None)

    A communicator of one group, and an `MPI.Intracomm`. Mirrors `mpi4py.util.pkl5.Intracomm`. Making one needs no other rank.
    """

    def _make_twin(self) -> Any:
        return _lines_of(MPI.Intracomm.Dup(self))

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
        private = MPI.Intercomm.Dup(self)
        merged = MPI.Intercomm.Merge(private)
        mine, whole = private.Get_group(), merged.Get_group()
        first = MPI.Group.Translate_ranks(mine, [0], whole)[0]
        local = merged.Split(first, private.Get_rank())
        mine.Free()
        whole.Free()
        merged.Free()
        return _Inter(
            Intercomm(private), private.Get_rank(), private.Get_remote_size(), _lines_of(local), (ROOT, PROC_NULL)
        )


_the_world: Any = None


def world() -> Intracomm:
    """MPI's world, as an `Intracomm` of ours."""
    global _the_world
    if _the_world is None:
        _the_world = Intracomm(MPI.COMM_WORLD)
    return _the_world  # type: ignore[no-any-return]


_ = Packet  # what travels in collective operations is unpickled here too
