"""Private memory of messages by value: their pieces lie together in it while MPI sends them, or it receives them.

MPI moves one stretch of memory in one copy, from process to process or by the network's own engine. Pieces that lie
apart, sent by a derived datatype, it first packs piecemeal: MPICH takes three to ten times as long for them. New memory
costs more than the copy, since the kernel clears each page; so some is kept from one message to the next. Memory that
was received into belongs to the arrays in it until the last of them is deleted.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from mpi4py import MPI

from copyless._platform import huge_memory
from copyless.comm._lent import Lent

if TYPE_CHECKING:
    import mmap

__all__ = ["KEPT", "Staged", "as_message", "memory_for", "type_of"]

# Bytes: messages up to this size are copied together. As much is kept from one to the next, of either kind of memory.
KEPT = 65 << 20
_SMALL = 1 << 19  # bytes that malloc has warm
_HUGE = 2 << 20  # bytes of a huge page
_WHOLE = 8 << 20  # bytes from which received arrays lie on huge pages of their own, a quarter of which may be unused

_PIECE = 1 << 30  # bytes: counts of MPI before version 4 end at 2 GiB

_free: list[mmap.mmap] = []
_received: list[mmap.mmap] = []


def _obtain(free: list[mmap.mmap], nbytes: int, most: int) -> mmap.mmap:
    """Memory of at least so many bytes from its first huge page on, of `most` bytes in all, warm if there is some."""
    # Without a lock: a signal handler or a `__del__` may send and receive in the midst of this.
    for memory in list(free):
        if nbytes + _HUGE <= len(memory) <= most:
            try:
                free.remove(memory)
            except ValueError:  # another has taken it
                continue
            return memory
    free.clear()  # all of it is too small now, or too large
    return huge_memory(-(-nbytes // _HUGE) * _HUGE + _HUGE)  # who copies out of this process looks up each page


def memory_for(nbytes: int) -> object:
    """Private memory to receive so many bytes into, not cleared. It is kept for others once nothing uses it.

    Not shared memory: its pages are small, so that both sides at once took up to 1.3 of the time of private memory.
    """
    if nbytes < _WHOLE:  # malloc has it warm
        return MPI.buffer.allocate(nbytes)
    try:
        # Not much more than it needs: arrays may keep it for long.
        memory = _obtain(_received, nbytes, nbytes + nbytes // 4 + 2 * _HUGE)
    except OSError:
        raise MemoryError(f"no memory for a message of {nbytes:,} bytes") from None
    return Lent(memory, -MPI.Get_address(memory) % _HUGE, nbytes, _received, KEPT + 2 * _HUGE)


def type_of(places: Iterable[tuple[int, int]]) -> MPI.Datatype:
    """The datatype of (address, bytes) pairs, in pieces that every version of MPI can count."""
    lengths, displacements = [], []
    for address, nbytes in places:
        for at in range(0, nbytes, _PIECE):
            displacements.append(address + at)
            lengths.append(min(_PIECE, nbytes - at))
    return MPI.BYTE.Create_hindexed(lengths, displacements).Commit()


def as_message(memory: object, nbytes: int) -> tuple[Any, Any]:
    """(memory of so many bytes as MPI takes it, the datatype to free once it has begun)."""
    if nbytes <= _PIECE:
        return (memory, nbytes, MPI.BYTE), None
    datatype = type_of([(0, nbytes)])
    return (memory, 1, datatype), datatype


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
            self._memory = _obtain(_free, nbytes, KEPT + 2 * _HUGE)
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
        if sum(map(len, list(_free))) + len(memory) <= KEPT + 2 * _HUGE:
            _free.append(memory)
