"""Objects on their way between ranks: a pickle, and its large buffers beside it.

A packet is made once and may be sent to many. To one rank of this host its buffers go by one copy, and the object that is
made there stands on it. To several, they are first copied together into one block, of which each gets the handle: who opens such a
packet gets a copy-on-write view, so that what it changes nobody else sees.
"""

from __future__ import annotations

import contextlib
import pickle
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from copyless import _loaders, pickling
from copyless._core import _blocks, _copying, _handles, _pickles, _queue
from copyless._core._memory import Memory
from copyless.errors import OutOfSharedMemory
from copyless.storage import handles

__all__ = ["Packet", "copy_of"]

_ALIGN = 64
_LITTLE = 1 << 20  # bytes that malloc has warm


def in_memory(parts: Sequence[Any], tell: Callable[[int], None] | None = None) -> Memory:
    """Buffers copied into one block of shared memory; `tell` hears of the bytes as they go."""
    parts = list(parts)
    memory = Memory.allocate(_copying.room_of(parts, _ALIGN))
    _copying.copy_parts(memory, parts, _ALIGN, tell)
    return memory


_told = False


def tell_of_no_room(error: OutOfSharedMemory) -> None:
    """Warn, once in a process, that a message's buffers do not go through shared memory."""
    global _told
    if not _told:
        _told = True
        warnings.warn(
            f"copyless: shared memory has no room for a message of {error.asked} bytes, so it goes by value, more slowly: {error}",
            RuntimeWarning,
            stacklevel=3,
        )


def cut(whole: Any, sizes: Sequence[int]) -> list[Any]:
    """The buffers that lie in one."""
    return _copying.cut(whole, sizes, _ALIGN)


class Packet:
    """An object as it travels: pickled when it is packed, and made again only by `open`."""

    __slots__ = ("block", "data", "handles", "kept", "memory", "parts", "single", "sizes")

    data: bytes
    handles: list[bytes]  # in the data, when packed for one of our queues: each may be sent once
    parts: list[Any]  # the buffers, where they lie apart
    memory: Memory | None  # all of them together, here; `block` where they came so
    block: Any
    sizes: list[int]
    kept: Any

    def __init__(self, data: bytes, parts: list[Any], names: list[bytes] | None = None) -> None:
        self.data, self.parts, self.handles = data, parts, names or []
        self.sizes = [part.nbytes for part in parts]
        self.memory = self.block = self.kept = None
        self.single = False  # `memory` is for one receiver, whose own it will be

    @classmethod
    def of(cls, obj: Any, by_value: bool = False, draft: bool = True) -> Packet:
        """Pack an object; `by_value`: what lies in shared memory too, for other hosts; `draft`: for one of our queues."""
        return cls(*(_by_value(obj) if by_value else pickling.pack(obj, draft=draft)))

    @property
    def nbytes(self) -> int:
        return len(self.data) + sum(self.sizes)

    def drop(self) -> None:
        """It will not be sent: let go what it names."""
        for name in self.handles:
            _handles.unsend(name)

    def gather(self, tell: Callable[[int], None] | None = None) -> Packet:
        """Put the buffers together into one block, so that many can have it by its handle."""
        if self.parts and self.memory is None and self.block is None:
            try:
                self.memory = in_memory(self.parts, tell)
                self.parts = []
            except OutOfSharedMemory as error:  # then each gets its own copy, by whatever way there is
                tell_of_no_room(error)
        return self

    def __reduce_ex__(self, protocol: Any) -> Any:
        if self.memory is not None or self.block is not None:
            if not pickling.sends_handles():
                return _loaders.packet_apart, (self.data, [], *map(pickle.PickleBuffer, cut(self.memory or self.block, self.sizes)))
            memory: Any = self.memory or Memory(self.block)
            handle = pickling.memory_handle(memory, pickling.message_kind())
            assert handle is not None
            if self.single:
                for name in self.handles:
                    pickling.note(name)
                return _loaders.packet_in_block, (self.data, self.sizes, pickling.note(handle), self.handles)
            return _loaders.packet_together, (self.data, self.sizes, pickling.note(handle))
        for name in self.handles:
            pickling.note(name)
        return _loaders.packet_apart, (self.data, self.handles, *map(pickle.PickleBuffer, self.parts))

    def open(self, readonly: bool = False) -> Any:
        """The object. Its arrays are writable and the caller's own, or (`readonly`) stand on what all share."""
        block = self.block if self.memory is None else self.memory.obj
        if block is None:
            whole: Any = None
        elif readonly:
            whole = block
        else:
            whole = _blocks.private_view(block)
        buffers = self.parts if whole is None else cut(whole, self.sizes)
        if readonly:
            buffers = [memoryview(buffer).toreadonly() for buffer in buffers]
        return _pickles.loads(self.data, buffers=buffers)


def _apart(data: bytes, names: list[bytes], *parts: Any) -> Packet:
    packet = Packet(data, [memoryview(part) for part in parts])
    packet.kept = [handles.resolve(name) for name in names]  # what the data names lives until it is opened
    return packet


def in_block(data: bytes, sizes: list[int], handle: bytes, names: Sequence[bytes] = ()) -> Packet:
    """Of one receiver, who owns the block that its parts lie in."""
    block = handles.resolve(handle)[1]
    _blocks.mark_private(block)
    packet = Packet(data, [])
    packet.parts, packet.sizes = cut(block, sizes), sizes
    packet.kept = [handles.resolve(name) for name in names]  # what the data names lives until it is opened
    return packet


def _together(data: bytes, sizes: list[int], handle: bytes) -> Packet:
    packet = Packet(data, [])
    packet.sizes = sizes
    packet.block = handles.resolve(handle)[1]
    return packet


def _by_value(obj: Any) -> tuple[bytes, list[Any]]:
    both = _queue.arrays_dumps(obj, True)
    if both is not None:
        return both
    return pickling.apart(obj)


def copy_of(obj: Any) -> Any:
    """The object as it would arrive: what is its own is copied, what is shared is the same."""
    data, parts = _by_value(obj)
    memory = None
    if sum(part.nbytes for part in parts) > _LITTLE:
        with contextlib.suppress(OutOfSharedMemory):
            memory = in_memory(parts)  # warm, as much private memory mostly is not
    if memory is None:
        return _pickles.loads(data, buffers=[bytearray(part) for part in parts])
    _blocks.mark_private(memory.obj)
    return _pickles.loads(data, buffers=cut(memory, [part.nbytes for part in parts]))
