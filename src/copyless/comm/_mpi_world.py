"""Which ranks share this rank's node, on MPI.

Each rank enters a table in the node's shared memory when it imports this module. A rank that is not in the table gets
messages by value.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import Any

from mpi4py import MPI

from copyless._storage import settings, store

__all__ = ["far", "is_near", "near", "node", "world_group"]


def node() -> str:
    """The name of this rank's node: COPYLESS_NODE sets it; for tests, COPYLESS_NODES=n divides one node into n."""
    name = settings.stated_node()
    if name is not None:
        return name
    parts = settings.stated_nodes()
    return str(MPI.COMM_WORLD.Get_rank() * parts // MPI.COMM_WORLD.Get_size()) if parts > 1 else ""


def _enter_table() -> Any:
    """The table of the ranks of this node, with this one in it; None if there is no shared memory."""
    from copyless._attach import open as open_array
    from copyless.arrays import zeros

    size, rank = MPI.COMM_WORLD.Get_size(), MPI.COMM_WORLD.Get_rank()
    family = settings.family() or f"{os.getpid()}"
    name = f"mpi-{family}-{node()}"
    try:
        while True:
            try:
                table = zeros(size, "u1", name=name)
                break
            except FileExistsError:
                with contextlib.suppress(FileNotFoundError):
                    table = open_array(name)
                    break
    except OSError:
        return None
    if len(table) != size:
        return None  # two programs under the same launcher
    table[rank] = 1
    return table


def _ranks_here() -> int:
    """The number of ranks of this node, as the launcher states it; 0 if it does not."""
    parts = settings.stated_nodes()
    size = MPI.COMM_WORLD.Get_size()
    if settings.stated_node() is None and parts > 1:
        return sum(str(rank * parts // size) == node() for rank in range(size))
    stated = settings.ranks_of_node()
    return stated if stated is not None else 1 if size == 1 else 0


_WARM = 40 << 20  # bytes: of 64 MB, a container's /dev/shm, an eighth would be less than one message of 16 MiB

store.ensure_open()
store.keep_warm(_WARM)
_table = _enter_table()
near: Any = memoryview(_table) if _table is not None else None
world_group = MPI.COMM_WORLD.Get_group()
_all_entered = near is None
far: set[int] = set()  # ranks of the world that do not share memory with this one, as collective operations found
_PATIENCE = 2.0  # seconds to wait, once, for the ranks of this node to enter the table


def is_near(rank: int) -> bool:
    """Whether a rank of the world shares this node.

    At the start, some ranks may not have imported this module yet. They are waited for, so that shared memory is passed
    by reference to all ranks of a node, and not only to the fast ones.
    """
    global _all_entered
    if near is None or rank in far:
        return False
    if near[rank] == 1 or _all_entered:
        return bool(near[rank])
    here, deadline = _ranks_here(), time.monotonic() + _PATIENCE
    while near[rank] != 1 and sum(near) < (here or len(near)) and time.monotonic() < deadline:
        time.sleep(0.0005)
    _all_entered = near[rank] != 1  # no other rank will enter, or it is too late
    return bool(near[rank])
