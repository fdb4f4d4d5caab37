"""Memory objects with the interface of `mpi4py.MPI`; MPI is not needed.

`Memory` (also `memory` and `buffer`) mirrors ``MPI.buffer`` of mpi4py 4.1. `Alloc_mem`, `Free_mem` and `Get_address`
mirror the functions of the same names. The differences: allocated memory is shared memory, and freed memory is reused
without new page faults; views stay valid after `Memory.release`; `Free_mem` raises an error for memory that `Alloc_mem`
did not return, where MPI aborts the process.
"""

from __future__ import annotations

from copyless._transfer._memory import Memory
from copyless._typing import TYPE_CHECKING

if TYPE_CHECKING:
    from copyless._typing import BufferLike

__all__ = ["Alloc_mem", "Free_mem", "Get_address", "Memory", "buffer", "memory"]

memory = buffer = Memory


def Alloc_mem(size: int, info: object = None) -> Memory:
    """Allocate shared memory for message passing. Mirrors `mpi4py.MPI.Alloc_mem`.

    Parameters
    ----------
    size : int
        Bytes; 0 or more.
    info : optional
        Accepted for compatibility with MPI, and not used.

    Returns
    -------
    Memory
        Writable, `size` bytes, aligned to at least 64 bytes. Release it with `Free_mem`, or let it be
        garbage-collected.

    Raises
    ------
    ValueError
        For a negative size.
    OutOfSharedMemory
        If there is no room.

    Examples
    --------
    >>> import numpy as np
    >>> from copyless.memory import Alloc_mem, Free_mem
    >>> mem = Alloc_mem(80)
    >>> a = np.frombuffer(mem, dtype="f8")
    >>> a[:] = 1.5
    >>> Free_mem(mem)
    >>> float(a.sum())
    15.0
    """
    allocated: Memory = Memory.allocate(size)._mark_alloc_mem()
    return allocated


def Free_mem(mem: Memory) -> None:
    """Release memory that `Alloc_mem` returned. Mirrors `mpi4py.MPI.Free_mem`.

    Arrays over the memory keep it valid until they are deleted.

    Raises
    ------
    TypeError
        If `mem` is not a `Memory`.
    ValueError
        If `Alloc_mem` did not return it, or it was already freed.

    Examples
    --------
    >>> from copyless.memory import Alloc_mem, Free_mem
    >>> Free_mem(Alloc_mem(8))
    """
    if not isinstance(mem, Memory):
        raise TypeError(f"Free_mem takes a Memory that Alloc_mem returned, not {type(mem).__name__!r}")
    if not mem._from_alloc_mem:
        raise ValueError(f"{mem!r} was not returned by Alloc_mem, or was freed already")
    mem.release()


def Get_address(location: BufferLike | None) -> int:
    """The address of the first byte of a buffer-like object in this process; 0 for None (MPI's BOTTOM).

    Mirrors `mpi4py.MPI.Get_address`.

    Examples
    --------
    >>> from copyless.memory import Get_address, Memory
    >>> data = bytearray(b"abc")
    >>> Get_address(data) == Memory(data).address
    True
    """
    return 0 if location is None else Memory(location).address
