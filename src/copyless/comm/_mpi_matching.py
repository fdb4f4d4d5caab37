"""Which receive gets which message, on MPI: pending receives (`irecv`) are served in the order of posting, whichever
wrapper posted them.
"""

from __future__ import annotations

import enum
import functools
import threading
from collections.abc import Callable
from typing import Any, Protocol

from mpi4py import MPI

from copyless.comm import _small
from copyless.comm._mpi_messages import bytes_of
from copyless.comm._mpi_waiting import LARGE, under_way
from copyless.comm._mpi_waiting import wait as _wait
from copyless.comm._mpi_world import is_near, world_group
from copyless.comm._parts import Arriving, begin_to_open, check, drop_lost, is_reserved, matched

__all__ = ["Posted", "Wanted", "copy_status", "match", "probed", "state_of"]

ANY_SOURCE, ANY_TAG, UNDEFINED = MPI.ANY_SOURCE, MPI.ANY_TAG, MPI.UNDEFINED
_in_line = _small.in_line


class Wanted(enum.Enum):
    """What a receive in line asks for."""

    OBJECT = enum.auto()  # so MPI begins to receive
    MATCHED = enum.auto()  # to be received later
    MESSAGE = enum.auto()  # as MPI has it: the caller knows no parts


class Posted:
    """A pending receive."""

    __slots__ = ("cancelled", "message", "nbytes", "source", "status", "tag", "wanted")

    def __init__(self, source: int, tag: int, wanted: Wanted = Wanted.OBJECT) -> None:
        self.wanted = wanted
        self.source, self.tag = source, tag
        self.status = MPI.Status()
        self.message: Any = None
        self.nbytes = 0
        self.cancelled = False

    def fits(self, source: int, tag: int) -> bool:
        return self.source in (ANY_SOURCE, source) and self.tag in (ANY_TAG, tag)


def _finds(wanted: Wanted) -> Callable[[Any, int, int, Any], Any]:
    """The function of MPI's `Improbe` for a receive."""
    # Not `improbe`, which allocates memory for the message at once: before MPI 4 that fails for 2 GiB and more.
    return MPI.Comm.Improbe if wanted is Wanted.MESSAGE else matched


def _nbytes_of(message: object, status: MPI.Status) -> int:
    return message.nbytes if isinstance(message, Arriving) else bytes_of(status)


def probed(comm: Any, source: int, tag: int, status: Any) -> bool:
    """MPI's `Iprobe`, which does not see the buffers of a message in parts."""
    check(tag)
    status = MPI.Status() if status is None else status
    while MPI.Comm.Iprobe(comm, source, tag, status):
        theirs = status.Get_tag()
        if not is_reserved(theirs):
            return True
        if not drop_lost(comm, status.Get_source(), theirs):
            break  # another thread is about to receive it
    return False


class _Shadow(Protocol):
    def close(self) -> None: ...


class State:
    """The state that all wrappers of one communicator share."""

    def __init__(self, comm: Any) -> None:
        self.lock = threading.RLock()
        self.posted: list[Posted] = []
        self.shadow: _Shadow | None = None
        self.meeting: MPI.Request | None = None  # of ranks that are about to make it
        self.freed = False
        group = comm.Get_remote_group() if comm.Is_inter() else comm.Get_group()
        found = MPI.Group.Translate_ranks(group, list(range(group.Get_size())), world_group)
        group.Free()
        self.world = [-1 if rank == UNDEFINED else rank for rank in found]  # for each rank, its rank in the world

    def close(self) -> None:
        """The communicator is freed: no object of it may go on with what its ranks shared."""
        self.freed = True
        if self.shadow is not None:
            self.shadow.close()

    def near(self, rank: int) -> bool:
        """Whether a rank shares this node and is in the table."""
        if not 0 <= rank < len(self.world):
            return False
        world = self.world[rank]
        return world >= 0 and is_near(world)

    def enter(self, comm: object, posted: Posted) -> None:
        with self.lock:
            self.posted.append(posted)
            _in_line[id(self)] = self, comm

    def leave(self, posted: Posted) -> bool:
        """Withdraw a receive. Whether it was still pending."""
        with self.lock:
            if posted not in self.posted:
                return False
            self.posted.remove(posted)
            if not self.posted:
                _in_line.pop(id(self), None)
            return True

    def progress(self, comm: Any) -> None:
        """Give messages that have arrived to the pending receives."""
        with self.lock:
            again = True
            while again and self.posted:
                again = False
                for posted in self.posted:
                    status = MPI.Status()
                    if not MPI.Comm.Iprobe(comm, posted.source, posted.tag, status):
                        continue
                    source, tag = status.Get_source(), status.Get_tag()
                    # The message is still there. The first pending receive that fits gets it, or an earlier message of
                    # the same rank that fits.
                    first = next(other for other in self.posted if other.fits(source, tag))
                    message = _finds(first.wanted)(comm, source, first.tag, first.status)
                    if message is not None:
                        first.nbytes = _nbytes_of(message, first.status)
                        if first.wanted is Wanted.OBJECT and not isinstance(message, Arriving):
                            message = begin_to_open(message, first.nbytes)
                        first.message = message
                        if isinstance(message, Arriving) and message.nbytes >= LARGE:
                            under_way(message.requests)
                        self.leave(first)
                        again = True
                        break


_KEY = MPI.Comm.Create_keyval(delete_fn=lambda comm, key, state: state.close())
_making = threading.Lock()


def copy_status(status: Any, other: Any) -> None:
    if status is not None:
        status.Set_source(other.Get_source())
        status.Set_tag(other.Get_tag())
        status.Set_error(other.Get_error())
        status.Set_elements(MPI.BYTE, bytes_of(other))


def state_of(comm: Any) -> Any:
    """The state that all wrappers of a communicator share. It is freed with the communicator."""
    known = getattr(comm, "_known", None)
    if known is not None:
        if known.freed:  # by another object of the same communicator
            raise MPI.Exception(MPI.ERR_COMM)
        return known
    with _making:
        state = MPI.Comm.Get_attr(comm, _KEY)
        if state is None:
            state = State(comm)
            MPI.Comm.Set_attr(comm, _KEY, state)
    if hasattr(type(comm), "_known"):  # not a plain class of mpi4py
        comm._known = state
    return state


def _late(comm: object, source: int) -> Callable[[], Any] | None:
    """What to call while a wait for a message of a rank lasts: something in collective operations only."""
    late = getattr(comm, "_late", None)
    return None if late is None else functools.partial(late, source)


def match(
    comm: object, source: int, tag: int, status: MPI.Status, wait: bool = True, wanted: Wanted = Wanted.OBJECT
) -> tuple[Any, int]:
    """(a message that was matched, which `fetch` receives; its bytes), after the pending receives that come before
    it.
    """
    state = state_of(comm)
    if not state.posted:
        improbe = _finds(wanted)
        message: object = improbe(comm, source, tag, status)
        if message is None and wait:
            message = _wait(
                lambda: improbe(comm, source, tag, status) if not state.posted else True, _late(comm, source)
            )
        if message is not True:
            return message, 0 if message is None else _nbytes_of(message, status)
    check(tag)
    posted = Posted(source, tag, wanted)
    state.enter(comm, posted)

    def there() -> bool:
        if posted.message is None:
            state.progress(comm)
        return posted.message is not None

    try:
        if wait:
            _wait(there, _late(comm, source))
        else:
            there()
    finally:
        state.leave(posted)
    if posted.message is not None:
        copy_status(status, posted.status)
    return posted.message, posted.nbytes
