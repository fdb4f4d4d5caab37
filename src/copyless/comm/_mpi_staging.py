"""Private memory in which the pieces of a message by value lie together while MPI sends them.

MPI moves one stretch of memory in one copy, from process to process or by the network's own engine. Pieces that lie
apart, sent by a derived datatype, it first packs piecemeal: MPICH takes three to ten times as long for them. New memory
costs more than the copy, since the kernel clears each page; so some is kept from one message to the next.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from mpi4py import MPI

from copyless._platform import huge_memory

if TYPE_CHECKING:
    import mmap

__all__ = ["KEPT", "Staged"]

KEPT = 65 << 20  # bytes: messages up to this size are copied together, and as much is kept from one to the next
_SMALL = 1 << 19  # bytes that malloc has warm
_HUGE = 2 << 20  # bytes of a huge page

_lock = threading.Lock()
_free: list[mmap.mmap] = []


def _obtain(nbytes: int) -> mmap.mmap:
    """Memory of at least so many bytes from its first huge page on, warm if there is some."""
    with _lock:
        for i, memory in enumerate(_free):
            if len(memory) >= nbytes + _HUGE:
                return _free.pop(i)
        _free.clear()  # all of it is too small now
    return huge_memory(-(-nbytes // _HUGE) * _HUGE + _HUGE)  # who copies out of this process looks up each page


class Staged:
    """Staged(nbytes)

    Memory of one message: `view`. It is kept for others once nothing holds this object.
    """

    __slots__ = ("_memory", "nbytes", "view")

    def __init__(self, nbytes: int) -> None:
        self._memory: Any = None
        self.nbytes = nbytes
        if nbytes < _SMALL:
            whole: Any = MPI.buffer.allocate(nbytes)
            self.view = memoryview(whole)
        else:
            self._memory = _obtain(nbytes)
            begin = -MPI.Get_address(self._memory) % _HUGE
            self.view = memoryview(self._memory)[begin : begin + nbytes]

    def __len__(self) -> int:
        return self.nbytes

    def __del__(self) -> None:
        memory, self._memory = self._memory, None
        if memory is None:
            return
        try:
            self.view.release()
        except BufferError:  # a request of MPI that nobody waited for reads it still, and holds it
            return
        with _lock:
            if sum(map(len, _free)) + len(memory) <= KEPT + 2 * _HUGE:
                _free.append(memory)
