"""The shared memory of `copyless run` and the ranks that it starts, made with the bindings alone.

The command is not a rank: it needs neither NumPy nor the public classes `Queue` and `Lock`, and starts several times as
fast without them. `Group` uses the same parts.
"""

from __future__ import annotations

from copyless._core import _blocks, _handles, c_library
from copyless._storage.store import allocate, ensure_open, new_object
from copyless.errors import CorruptSegmentError

__all__ = ["DIED", "ENDED", "RUNS", "STATE", "WIDTH", "RankTable", "joined", "parts_of"]

AWAITED, RUNS, ENDED, DIED = range(4)
PID, START, SLOT, INCARNATION, STATE, WIDTH = range(6)  # words of a row
_PLAIN_QUEUE, _SILENT = 4, 1  # flags of the heads of a `Queue`, and of a `Lock(recover="silent")`


class RankTable:
    """The inboxes, the table and the lock of a group of ranks, for the process that starts them."""

    def __init__(self, size: int) -> None:
        ensure_open()
        self._inboxes = [_new(c_library.QUEUE_BYTES, c_library.KIND_QUEUE, _PLAIN_QUEUE) for _ in range(size)]
        self._lock = _new(c_library.MUTEX_BYTES, c_library.KIND_LOCK, _SILENT)
        self._block = allocate(8 * (size + 1) * WIDTH, spill=True)
        self._block.clear()
        self._table = memoryview(self._block).cast("B").cast("q")
        self._table[size * WIDTH] = 2  # the last row: the number of the next communicator

    @property
    def handle(self) -> bytes:
        """The argument of `Group.from_handle`."""
        objects = (self._lock, *self._inboxes)
        return joined(
            [_handle(self._block, _handles.KIND_MEMORY), *(_handle(each, _handles.KIND_OBJECT) for each in objects)]
        )

    def end(self, rank: int, state: int = ENDED) -> None:
        """Record that a rank has ended."""
        at = rank * WIDTH + STATE
        if self._table[at] < ENDED:
            self._table[at] = state


def joined(handles: list[bytes]) -> bytes:
    """The handle of a group: those of its parts, each behind its length."""
    return b"".join(len(each).to_bytes(4, "little") + each for each in handles)


def parts_of(group_handle: bytes) -> list[bytes]:
    """The handles that were joined: of the table, the lock, and an inbox for each rank."""
    found, at = [], 0
    while at < len(group_handle):
        begin = at + 4
        at = begin + int.from_bytes(group_handle[at:begin], "little")
        found.append(group_handle[begin:at])
    if at > len(group_handle) or len(found) < 3:
        raise CorruptSegmentError(
            f"the handle of a group is damaged: {group_handle[:16]!r}... ({len(group_handle)} bytes)"
        )
    return found


def _new(nbytes: int, kind: int, flags: int) -> _blocks.Block:
    return new_object(nbytes, kind, 0, 0, flags)


def _handle(block: _blocks.Block, kind: int) -> bytes:
    made = _handles.handle_of(block.address, len(block), kind, 0)
    assert made is not None  # the block is held here
    return made
