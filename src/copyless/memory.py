"""Memory objects, as `mpi4py.MPI` has them, with no MPI needed.

`Memory` (also `memory` and `buffer`) mirrors ``MPI.buffer`` of mpi4py 4.1; `Alloc_mem`, `Free_mem` and `Get_address`
mirror the functions of the same names. The differences: allocated memory is shared memory and recycled warm; views stay
valid after `Memory.release`; `Free_mem` refuses what `Alloc_mem` did not give instead of aborting the process.
"""

from __future__ import annotations

from typing import Any

from copyless._core._memory import Memory

__all__ = ["Alloc_mem", "Free_mem", "Get_address", "Memory", "buffer", "memory"]

memory = buffer = Memory


def Alloc_mem(size: int, info: Any = None) -> Memory:
    """Allocate shared memory for message passing.

    Parameters
    ----------
    size : int
        Bytes; 0 or more.
    info : optional
        Taken for likeness with MPI, and not used.

    Returns
    -------
    Memory
        Writable, `size` bytes, aligned to 64 bytes at least. Free it with `Free_mem`, or let it be collected.

    Raises
    ------
    ValueError
        For a negative size.
    OutOfSharedMemory
        When there is no room.

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
    """Free what `Alloc_mem` gave. Arrays that still stand on it keep the bytes until they are gone.

    Raises
    ------
    TypeError
        When `mem` is no `Memory`.
    ValueError
        When `Alloc_mem` did not give it, or it is freed already.

    Examples
    --------
    >>> from copyless.memory import Alloc_mem, Free_mem
    >>> Free_mem(Alloc_mem(8))
    """
    if not isinstance(mem, Memory):
        raise TypeError(f"Free_mem takes what Alloc_mem gave, not {type(mem).__name__!r}")
    if not mem._from_alloc_mem:
        raise ValueError(f"{mem!r} did not come from Alloc_mem, or is freed already")
    mem.release()


def Get_address(location: Any) -> int:
    """Address of the first byte of a buffer-like object in this process; 0 for None (MPI's BOTTOM).

    Examples
    --------
    >>> from copyless.memory import Get_address, Memory
    >>> data = bytearray(b"abc")
    >>> Get_address(data) == Memory(data).address
    True
    """
    return 0 if location is None else Memory(location).address
