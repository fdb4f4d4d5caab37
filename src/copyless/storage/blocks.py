"""Blocks of shared memory for the floors above: allocation with checked sizes."""

from __future__ import annotations

from copyless._core import _blocks
from copyless.storage.store import need

__all__ = ["allocate"]


def allocate(nbytes: int, spill: bool = False) -> _blocks.Block:
    """A block of `nbytes` bytes (0 or more), warm if there is one; `block.recycled` tells that it is not zero.

    `spill`: a file on disk where memory is full. For what the package itself needs then, never for a user's arrays.

    Raises
    ------
    OutOfSharedMemory
        When the mount, the machine or the control group has no room.
    """
    need()
    if nbytes >= 1 << 62:
        from copyless._core.failures import out_of_shared_memory
        from copyless.storage import directory

        raise out_of_shared_memory(0, "more than any machine has", nbytes, directory.current())
    return _blocks.alloc(nbytes, spill)
