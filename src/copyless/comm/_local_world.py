"""This process as a rank: the local world, its group, and the communicator of this rank alone.

``copyless run`` and `comm.spawn` give each rank the handle of its group and its number. Without them the world is a
group of one.
"""

from __future__ import annotations

import atexit

from copyless._storage import settings
from copyless.comm._communicator import Intracomm
from copyless.comm._group import Engine, Group

__all__ = ["has_world", "join", "own", "world"]

_CONTEXT_OF_SELF = -4
_world: Intracomm | None = None
_own: Intracomm | None = None


def join(group: Group, rank: int) -> Intracomm:
    """Make this process a rank of a group; its world is the communicator of the group."""
    global _world
    engine = Engine(group, rank)
    ranks = list(range(group.size))
    _world = Intracomm._of(engine, 0, ranks, ranks, rank)
    _world.name = "world"
    return _world


@atexit.register
def _end() -> None:
    if _world is not None:
        _world._engine.close()


def world() -> Intracomm:
    """The communicator of all ranks that were started together; a group of one in any other process."""
    if _world is not None and not _world._engine.inbox.inherited:
        return _world
    if _world is None and (started := settings.take_rank()) is not None:
        handle, rank = started
        return join(Group.from_handle(handle), rank)
    return join(Group(1), 0)


def has_world() -> bool:
    """Whether this process is already a rank."""
    return _world is not None


def own() -> Intracomm:
    """The communicator of this rank alone."""
    global _own
    engine = world()._engine
    if _own is None or _own._engine is not engine:
        _own = Intracomm._of(engine, _CONTEXT_OF_SELF, [engine.rank], [engine.rank], 0)
        _own.name = "self"
    return _own
