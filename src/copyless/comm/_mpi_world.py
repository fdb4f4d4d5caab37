"""Which ranks share this rank's node, on MPI, and which of them have died.

Each rank enters a table in the node's shared memory when it imports this module. A rank that is not in the table gets
messages by value. A rank that ends as programs end says so in the table; one that did not, and lives no more, has died.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import time
from typing import Any

from mpi4py import MPI

from copyless._core import _store
from copyless._storage import settings, store
from copyless.errors import OwnerDiedError

__all__ = ["far", "is_near", "look_for_deaths", "near", "node", "world_group"]

_RUNS, _ENDED = 1, 2  # 0: it has not entered
_STATE, _SLOT, _INCARNATION, _PID, _WIDTH = range(5)  # words of a row


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
                table = zeros(size * _WIDTH, "i8", name=name)
                break
            except FileExistsError:
                with contextlib.suppress(FileNotFoundError):
                    table = open_array(name)
                    break
    except OSError:
        return None
    if len(table) != size * _WIDTH:
        return None  # two programs under the same launcher
    row = table.data[rank * _WIDTH : (rank + 1) * _WIDTH]
    if row[_STATE] == _RUNS and _store.owner_lives(row[_SLOT], row[_INCARNATION]):
        return None  # the same, with as many ranks
    row[_SLOT], row[_INCARNATION] = _store.owner()
    row[_PID] = os.getpid()
    row[_STATE] = _RUNS
    atexit.register(_leave_table, row, os.getpid())
    return table


def _leave_table(row: memoryview, pid: int) -> None:
    if pid == os.getpid():  # and not in a forked child of the rank
        row[_STATE] = _ENDED


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
_entered_in = _store.identity()
near: Any = memoryview(_table)[_STATE::_WIDTH] if _table is not None else None  # the state of each rank of the world
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
    if near[rank] or _all_entered:
        return bool(near[rank])
    here, deadline = _ranks_here(), time.monotonic() + _PATIENCE
    while not near[rank] and sum(map(bool, near)) < (here or len(near)) and time.monotonic() < deadline:
        time.sleep(0.0005)
    _all_entered = not near[rank]  # no other rank will enter, or it is too late
    return bool(near[rank])


def look_for_deaths() -> None:
    """Raise OwnerDiedError if a rank of this node has died. Most launchers of MPI then end the others; some let them
    live, and MPI waits for the dead one for ever.
    """
    if _table is None or _store.identity() != _entered_in:  # of another store the slots mean nothing
        return
    table = memoryview(_table)
    for rank, state in enumerate(near):
        row = table[rank * _WIDTH : (rank + 1) * _WIDTH]
        if state == _RUNS and not _store.owner_lives(row[_SLOT], row[_INCARNATION]) and row[_STATE] == _RUNS:
            raise OwnerDiedError(
                f"rank {rank} of the job (process {row[_PID]}) has died, so what it would have sent or received never "
                "comes, and no collective operation ends: save what is to be kept, and end the job"
            )
