"""Objects of several ranks in one stretch of memory: what crosses between nodes, and what the ranks of a node share.

A bundle is a sequence of stretches, each made by one rank. A stretch says where everything in it lies, so bundles can
be joined, and cut between stretches, without any table beside them:

    | bytes  entries  buffers | key  at  bytes  first buffer | ... | at  bytes | ... | pickles | buffers, each aligned |
      the head of a stretch     one entry for each object            one a buffer

Every number has 64 bits. Every place is counted from the beginning of the stretch. Stretches are multiples of 64 bytes
long. A bundle of a few KiB is `bytes` or a `bytearray`. A larger one lies in a block of the node, as `Bundle`: the
ranks of the node receive its handle, and each unpickles from a copy-on-write view of its own.
"""

from __future__ import annotations

import pickle
from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from copyless import _loaders
from copyless._core import _blocks, _copying, _pickles
from copyless._transfer import handles, in_flight, reductions
from copyless._transfer._memory import Memory
from copyless.comm._packets import tell_of_no_room
from copyless.errors import OutOfSharedMemory

__all__ = [
    "ALIGN", "ELSEWHERE", "SMALL", "Bundle", "Stretch", "gathered", "memory_for", "nbytes_of", "objects", "only_buffer",
    "pieces_of", "squeezed", "stretches", "unwired", "view_of", "wired",
]  # fmt: skip

ALIGN = 64
SMALL = 4096  # bytes up to which a bundle is sent inside a message of MPI
_HEAD, _ENTRY, _PART = 3, 4, 2  # numbers
ELSEWHERE = object()  # in place of an object that is sent another way
_NO_PICKLE = -1  # its bytes


class Stretch:
    """Stretch(entries)

    The pieces of a stretch, not copied together yet: of entries (key, pickle, buffers). An entry without a pickle says
    that the object is sent another way.
    """

    __slots__ = ("nbytes", "pieces")

    def __init__(self, entries: Sequence[tuple[int, bytes | None, Sequence[Any]]]) -> None:
        numbers = [0, len(entries), 0]
        heads: list[bytes] = []
        apart: list[Any] = []
        for key, data, parts in entries:
            if data is None:
                numbers += (key, 0, _NO_PICKLE, len(apart))
                continue
            numbers += (key, 0, len(data), len(apart))
            heads.append(data)
            apart += parts
        at = 8 * (len(numbers) + _PART * len(apart))
        for i in range(_HEAD + 1, len(numbers), _ENTRY):
            numbers[i] = at
            at += max(numbers[i + 1], 0)
        for part in apart:
            at = -(-at // ALIGN) * ALIGN
            nbytes = part.nbytes
            numbers += (at, nbytes)
            at += nbytes
        self.nbytes = numbers[0] = -(-at // ALIGN) * ALIGN
        numbers[2] = len(apart)
        self.pieces = [memoryview(b"".join([array("q", numbers).tobytes(), *heads])), *apart]


class Bundle:
    """Bundle(whole)

    A bundle in a block of shared memory, or in private memory where a block found no room.
    """

    __slots__ = ("nbytes", "whole")

    def __init__(self, whole: Any, nbytes: int | None = None) -> None:
        self.whole = whole
        self.nbytes = len(whole) if nbytes is None else nbytes  # a block may be longer

    def __reduce_ex__(self, protocol: Any) -> Any:
        if isinstance(self.whole, Memory) and in_flight.sends_handles():
            handle = reductions.memory_handle(self.whole, in_flight.message_kind())
            if handle is not None:
                return _loaders.comm_bundle, (self.nbytes, None, in_flight.note(handle))
        return _loaders.comm_bundle, (self.nbytes, pickle.PickleBuffer(self.whole), None)


def received(nbytes: int, whole: object, handle: bytes | None) -> Bundle:
    """A bundle that arrives, by its bytes or by the handle of its block."""
    return Bundle(whole if handle is None else Memory(handles.resolve(handle)[1]), nbytes)


_WIRE = "copyless bundle"  # begins what stands for a bundle in a message


def wired(message: object) -> Any:
    """A message to a rank of this node, with plain values in place of its bundles: they need no pickler, which takes
    seven times as long as the handle. Each result is for one receiver.
    """
    if type(message) is Bundle and isinstance(message.whole, Memory):
        handle = reductions.memory_handle(message.whole, in_flight.Hold.MESSAGE)
        return message if handle is None else (_WIRE, message.nbytes, handle)
    if type(message) is tuple or type(message) is list:
        return type(message)([wired(each) if type(each) is Bundle else each for each in message])
    return message


def unwired(message: object) -> Any:
    """The message that `wired` made plain."""
    if type(message) is tuple and message and type(message[0]) is str and message[0] == _WIRE:
        return received(message[1], None, message[2])
    if type(message) is tuple or type(message) is list:
        return type(message)([unwired(each) if type(each) is tuple else each for each in message])
    return message


def memory_for(nbytes: int) -> Any:
    """Memory for a bundle: a block of the node, or private memory if that has no room."""
    try:
        return Memory.allocate(nbytes)
    except OutOfSharedMemory as error:
        tell_of_no_room(error)
        return bytearray(nbytes)


def view_of(bundle: Any) -> memoryview:
    return memoryview(bundle.whole)[: bundle.nbytes] if type(bundle) is Bundle else memoryview(bundle)


def pieces_of(bundle: object) -> list[Any]:
    """The pieces of a stretch or a bundle, to be copied one after the other, each aligned."""
    return bundle.pieces if type(bundle) is Stretch else [view_of(bundle)]


def nbytes_of(bundle: Any) -> int:
    return bundle.nbytes if type(bundle) is not bytes and type(bundle) is not bytearray else len(bundle)


def stretches(bundle: object) -> list[memoryview]:
    """The stretches of a bundle, one by one."""
    view, at, found = view_of(bundle), 0, []
    while at < len(view):
        nbytes = int.from_bytes(view[at : at + 8], "little")
        found.append(view[at : at + nbytes])
        at += nbytes
    return found


def only_buffer(bundle: object) -> memoryview | None:
    """The buffer of a bundle of one object that has one buffer."""
    view = view_of(bundle)
    _, count, buffers = view[: 8 * _HEAD].cast("q")
    if count != 1 or buffers != 1:
        return None
    begin = 8 * (_HEAD + _ENTRY)
    at, nbytes = view[begin : begin + 8 * _PART].cast("q")
    return view[at : at + nbytes]


def squeezed(rows: bytearray, row: int) -> bytes:
    """A bundle from rows of this size, each of which has stretches at its beginning and zeros behind."""
    view = memoryview(rows)
    found = []
    for begin in range(0, len(rows), row):
        at, end = begin, begin + row
        while at < end and (nbytes := int.from_bytes(view[at : at + 8], "little")):
            at += nbytes
        found.append(view[begin:at])
    return b"".join(found)


def gathered(parts: Sequence[object], tell: Callable[[int], None] | None = None) -> Any:
    """Stretches and bundles, copied into one: `bytes` if it is small, else a `Bundle` in a block."""
    total = sum(map(nbytes_of, parts))
    if total <= SMALL:
        joined = bytearray(total)
        _copying.copy_parts(joined, [piece for part in parts for piece in pieces_of(part)], ALIGN)
        return bytes(joined)
    whole = memory_for(total)
    _copying.copy_parts(whole, [piece for part in parts for piece in pieces_of(part)], ALIGN, tell)
    return Bundle(whole)


def objects(
    bundle: Any,
    readonly: bool = False,
    own: bool = False,
    only: int | None = None,
    begin: int = 0,
    end: int | None = None,
) -> Iterator[tuple[int, Any]]:
    """The (key, object) pairs of a bundle; ELSEWHERE for an object that is sent another way.

    Parameters
    ----------
    readonly
        The arrays are the memory that the ranks of the node share.
    own
        No other rank has the bundle, so the arrays are its memory. Otherwise they are a copy-on-write view.
    only
        The place in each stretch of the one entry that is wanted.
    begin, end
        The bytes of the stretches that are wanted.
    """
    whole = bundle.whole if type(bundle) is Bundle else bundle
    block = whole.obj if isinstance(whole, Memory) else None
    if isinstance(block, _blocks.Block) and not readonly:
        if own:
            _blocks.mark_private(block)
        else:
            whole = _blocks.private_view(block)
    elif type(whole) is bytes:
        whole = bytearray(whole)
    view = memoryview(whole)
    if readonly:
        view = view.toreadonly()
    if end is None:
        end = bundle.nbytes if type(bundle) is Bundle else len(view)
    view = view[:end]
    all_numbers, loads = view.cast("q"), _pickles.loads
    while begin < end:
        at = begin // 8
        nbytes, count, buffers = all_numbers[at : at + _HEAD].tolist()
        if nbytes == 0:  # only zeros follow
            return
        at += _HEAD
        first_part = at + _ENTRY * count
        if only is None:
            numbers = all_numbers[at:first_part].tolist()
        else:
            numbers = all_numbers[at + _ENTRY * only : at + _ENTRY * (only + 1)].tolist()
        for i in range(0, len(numbers), _ENTRY):
            key, place, length, first = numbers[i : i + _ENTRY]
            if length == _NO_PICKLE:
                yield key, ELSEWHERE
                continue
            place += begin
            data = view[place : place + length]
            if buffers == 0:
                yield key, loads(data)
                continue
            after = at + i + _ENTRY * ((only or 0) + 1)  # the next entry
            last = all_numbers[after + 3] if after < first_part else buffers
            places = all_numbers[first_part + _PART * first : first_part + _PART * last].tolist()
            parts = [view[begin + places[k] : begin + places[k] + places[k + 1]] for k in range(0, len(places), _PART)]
            yield key, loads(data, buffers=parts)
        begin += nbytes
