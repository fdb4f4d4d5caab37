"""Objects on their way between ranks: a pickle, and its large buffers beside it.

A packet is made once and may be sent to several ranks. For one rank of this host, its buffers are copied once, and the
received object uses that copy. For several ranks, they are copied into one block, and each rank gets its handle and a
copy-on-write view, so that no rank sees the changes of another.
"""

from __future__ import annotations

import contextlib
import pickle
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from copyless import _loaders
from copyless._core import _blocks, _copying, _handles, _pickles
from copyless._transfer import handles, in_flight, packing, reductions
from copyless._transfer._memory import Memory
from copyless.errors import OutOfSharedMemory

__all__ = ["Packet", "copy_of"]

_ALIGN = 64
_LITTLE = 1 << 20  # bytes up to which malloc reuses memory


def in_memory(parts: Sequence[object], tell: Callable[[int], None] | None = None) -> Memory:
    """The buffers, copied into one block of shared memory; `tell` is called with the bytes copied so far."""
    parts = list(parts)
    memory = Memory.allocate(_copying.room_of(parts, _ALIGN))
    _copying.copy_parts(memory, parts, _ALIGN, tell)
    return memory


_told = False


def tell_of_no_room(error: OutOfSharedMemory) -> None:
    """Warn, once in a process, that a message's buffers are not sent through shared memory."""
    global _told
    if not _told:
        _told = True
        warnings.warn(
            f"copyless: shared memory has no room for a message of {error.asked} bytes, so it is copied "
            f"through the pipe or socket, which is slower: {error}",
            RuntimeWarning,
            stacklevel=3,
        )


def cut(whole: object, sizes: Sequence[int]) -> list[Any]:
    """The separate buffers that lie in one."""
    return _copying.cut(whole, sizes, _ALIGN)


class Packet:
    """A pickled object. Only `open` unpickles it."""

    __slots__ = ("block", "data", "handles", "kept", "memory", "parts", "single", "sizes")

    data: bytes
    handles: list[bytes]  # in the data, if packed for a queue of copyless: each may be sent once
    parts: list[Any]  # the buffers, if they are separate
    memory: Memory | None  # all buffers together; `block` if they arrived so
    block: Any
    sizes: list[int]
    kept: Any

    def __init__(self, data: bytes, parts: list[Any], names: list[bytes] | None = None) -> None:
        self.data, self.parts, self.handles = data, parts, names or []
        self.sizes = [part.nbytes for part in parts]
        self.memory = self.block = self.kept = None
        self.single = False  # `memory` is for a single receiver, to which it will belong

    @classmethod
    def of(cls, obj: object, by_value: bool = False, draft: bool = True) -> Packet:
        """Pack an object. `by_value`: copy shared memory too, for other hosts. `draft`: for a queue of copyless."""
        return cls(*(packing.apart(obj) if by_value else packing.pack(obj, draft=draft)))

    @property
    def nbytes(self) -> int:
        return len(self.data) + sum(self.sizes)

    def drop(self) -> None:
        """Release the handles of a packet that will not be sent."""
        for name in self.handles:
            _handles.unsend(name)

    def gather(self, tell: Callable[[int], None] | None = None) -> Packet:
        """Copy the buffers into one block, so that several ranks can get its handle."""
        if self.parts and self.memory is None and self.block is None:
            try:
                self.memory = in_memory(self.parts, tell)
                self.parts = []
            except OutOfSharedMemory as error:  # then each rank gets its own copy another way
                tell_of_no_room(error)
        return self

    def __reduce_ex__(self, protocol: object) -> Any:
        if self.memory is not None or self.block is not None:
            if not in_flight.sends_handles():
                return _loaders.packet_apart, (
                    self.data,
                    [],
                    *map(pickle.PickleBuffer, cut(self.memory or self.block, self.sizes)),
                )
            memory: Any = self.memory or Memory(self.block)
            handle = reductions.memory_handle(memory, in_flight.message_kind())
            assert handle is not None
            if self.single:
                for name in self.handles:
                    in_flight.note(name)
                return _loaders.packet_in_block, (self.data, self.sizes, in_flight.note(handle), self.handles)
            return _loaders.packet_together, (self.data, self.sizes, in_flight.note(handle))
        for name in self.handles:
            in_flight.note(name)
        return _loaders.packet_apart, (self.data, self.handles, *map(pickle.PickleBuffer, self.parts))

    def open(self, readonly: bool = False) -> Any:
        """The object. Its arrays are writable and belong to the caller, or (`readonly`) are the memory that all
        ranks share.
        """
        block = self.block if self.memory is None else self.memory.obj
        if block is None:
            whole: object = None
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
    packet.kept = [handles.resolve(name) for name in names]  # keep what the data names until it is opened
    return packet


def in_block(data: bytes, sizes: list[int], handle: bytes, names: Sequence[bytes] = ()) -> Packet:
    """The packet of a single receiver, to which the block with its parts belongs."""
    block = handles.resolve(handle)[1]
    _blocks.mark_private(block)
    packet = Packet(data, [])
    packet.parts, packet.sizes = cut(block, sizes), sizes
    packet.kept = [handles.resolve(name) for name in names]  # keep what the data names until it is opened
    return packet


def _together(data: bytes, sizes: list[int], handle: bytes) -> Packet:
    packet = Packet(data, [])
    packet.sizes = sizes
    packet.block = handles.resolve(handle)[1]
    return packet


def copy_of(obj: object) -> Any:
    """The object as it would arrive: private data is copied, shared memory stays the same."""
    data, parts = packing.apart(obj)
    memory = None
    if sum(part.nbytes for part in parts) > _LITTLE:
        with contextlib.suppress(OutOfSharedMemory):
            memory = in_memory(parts)  # reused memory: large private memory would cost page faults
    if memory is None:
        return _pickles.loads(data, buffers=[bytearray(part) for part in parts])
    _blocks.mark_private(memory.obj)
    return _pickles.loads(data, buffers=cut(memory, [part.nbytes for part in parts]))
