"""An object as a message of MPI, and back: its bytes, a block of the node, or a pickle followed by its buffers."""

from __future__ import annotations

import pickle as _pickle
from array import array
from collections.abc import Callable
from typing import Any

from mpi4py import MPI

from copyless import _loaders
from copyless._core import _blocks, _copying, _pickles
from copyless._progress import shown
from copyless._transfer import _plain, handles, in_flight, packing, reductions
from copyless.comm import _parts, _small
from copyless.comm._heads import WHOLE
from copyless.comm._mpi_staging import KEPT, Staged, type_of
from copyless.comm._mpi_waiting import under_way, wait
from copyless.comm._packets import Packet, cut, in_memory, tell_of_no_room
from copyless.errors import OutOfSharedMemory

__all__ = [
    "INLINE",
    "as_buffer",
    "bytes_of",
    "encode",
    "fetch",
    "nbytes_of",
    "rank_of",
    "titled",
]

INLINE = 1 << 16  # bytes up to which the buffers of a packet are sent inside its pickle
# Bytes of a message within a node up to which MPI carries it: MPI copies such a message, so that its sender never waits
# for the receiver.
HEADER = 8000 if MPI.get_vendor()[0] == "MPICH" else 3000
_SHORT, _FEW = 1000, 100  # bytes of a pickle, and parts, up to which a message names them itself
BIG = 1 << 16  # bytes of a message from which it may be a pickle and buffers behind it
_ZEROS = bytes(64)

_dump_plain = _plain.plain_dumps
rank_of = MPI.Comm.Get_rank


class _AsPickle:
    """Pickles as a call that returns the object itself."""

    def __init__(self, function: Callable[..., object], *args: object) -> None:
        self._call = function, args

    def __reduce__(self) -> tuple[object, ...]:
        return self._call


def in_block(data: bytes, sizes: list[int], handle: bytes) -> object:
    block = handles.resolve(handle)[1]
    _blocks.mark_private(block)  # it was sent by value, so it belongs to this rank alone
    return _pickles.loads(data, buffers=cut(block, sizes))


def wholly_in_block(sizes: list[int], handle: bytes) -> object:
    block = handles.resolve(handle)[1]
    _blocks.mark_private(block)
    if sizes[0] < 0:  # the sizes are in the block, too
        sizes = [-sizes[0], *array("q", bytes(memoryview(block)[: -sizes[0]]))]
        _, data, *parts = cut(block, sizes)
    else:
        data, *parts = cut(block, sizes)
    return _pickles.loads(data, buffers=parts)


def _through_block(
    arrives: Callable[..., object],
    data: bytes | None,
    parts: list[Any],
    title: str | None = None,
    number: object = None,
) -> bytes | None:
    """The message of a pickle whose buffers are sent in a block. None if there is no room: then they are sent as to
    another node.

    Without `data` the pickle is the first of the parts. The message stays short: the sizes of many parts go in the
    block, too. With a `number`, it arrives as the pair of that and the object.
    """
    table = None
    if data is None and len(parts) > _FEW:
        table = memoryview(array("q", [part.nbytes for part in parts])).cast("B")
        parts = [table, *parts]
    try:
        with shown(title, sum(part.nbytes for part in parts)) as tell:
            memory = in_memory(parts, tell)
    except OutOfSharedMemory as error:
        tell_of_no_room(error)
        return None
    handle = reductions.memory_handle(memory, in_flight.Hold.MESSAGE)  # the message has its own hold until it is loaded
    assert handle is not None
    first = () if data is None else (data,)
    named = [part.nbytes for part in parts] if table is None else [-table.nbytes]
    made = _AsPickle(arrives, *first, named, handle)
    return _pickle.dumps(made if number is None else (number, made), 5)


def encode(
    obj: object, near: bool, title: str | None = None, comm: MPI.Comm | None = None
) -> bytes | Staged | _parts.Divided | list[Any]:
    """The message of an object: bytes, a head whose buffers follow, pieces copied together, or (very large ones)
    pieces that lie apart.

    With a `title`, a large message shows a progress bar while it is copied. Without the communicator that will send it,
    it is one message.
    """
    plain = _dump_plain(obj)
    if plain is not None:
        return plain
    number, packet = obj if type(obj) is tuple and len(obj) == 2 else (None, obj)
    if (
        near
        and type(packet) is Packet
        and not packet.handles
        and 0 < len(packet.parts) <= _FEW
        and len(packet.data) <= _SHORT
        and sum(packet.sizes) > INLINE
    ):
        message = _through_block(_loaders.packet_in_block, packet.data, packet.parts, number=number)
        if message is not None:
            return message
    if near:
        data, parts, _ = packing.pack(obj, draft=False)
    else:
        data, parts = packing.apart(obj)
    total = sum(part.nbytes for part in parts)
    if near and total + len(data) > HEADER:
        # Whatever MPI does with its own messages: who sends within a node does not wait for who receives.
        if len(data) <= _SHORT and len(parts) <= _FEW:
            message = _through_block(_loaders.mpi_block, data, parts, title)
        else:
            message = _through_block(_loaders.mpi_whole_block, None, [memoryview(data), *parts], title)
        if message is not None:
            return message
    if not parts:
        return data
    if total + len(data) < BIG:
        return _pickle.dumps(_AsPickle(_loaders.mpi_inline, data, *map(bytearray, parts)), 5)
    divided = None if comm is None else _parts.divided(comm, data, parts)
    if divided is not None:
        return divided
    whole = [memoryview(data), *parts]
    sizes = [part.nbytes for part in whole]
    base = (len(WHOLE.pack((1 << 20, sizes))) + 63) // 64 * 64
    head = WHOLE.pack((base, sizes)).ljust(base, b"\0")
    if base + total + len(data) < KEPT:
        together = [memoryview(head), *whole]
        staged = Staged(_copying.room_of(together, 64))
        _copying.copy_parts(staged.view, together, 64)
        return staged
    pieces: list[Any] = [head]
    for part in whole:
        pieces.append(part)
        if part.nbytes % 64:
            pieces.append(_ZEROS[: -part.nbytes % 64])
    return pieces


def nbytes_of(message: Any) -> int:
    """The bytes of a message of `encode`."""
    return sum(memoryview(piece).nbytes for piece in message) if type(message) is list else len(message)


def as_buffer(message: Any) -> tuple[object, Any]:
    """(what MPI sends, the datatype to free after the send has begun)."""
    if type(message) is bytes:
        return (message, len(message), MPI.BYTE), None
    if type(message) is Staged:
        return (message.view, message.nbytes, MPI.BYTE), None
    datatype = type_of((MPI.Get_address(piece), memoryview(piece).nbytes) for piece in message)
    return (MPI.BOTTOM, 1, datatype), datatype


def titled(comm: MPI.Comm, status: MPI.Status, progress: bool) -> str | None:
    return f"rank {status.Get_source()} to {rank_of(comm)}" if progress else None


def fetch(message: MPI.Message | _parts.Arriving, nbytes: int, title: str | None = None) -> Any:
    """The object of a matched message, or of one that MPI is already receiving."""
    if not isinstance(message, _parts.Arriving):
        return _small.fetch(message, nbytes) if nbytes else MPI.Message.recv(message)
    if not message.ended():
        under_way(message.requests)
        with shown(title, message.nbytes, steps=False):
            wait(message.ended)
    return message.open()


def bytes_of(status: MPI.Status) -> int:
    nbytes: int = status.Get_elements(MPI.BYTE)
    return nbytes
