"""How the communicator on MPI waits: never inside MPI alone while copyless needs this process too.

There are two reasons. A pending receive (`irecv`, whose size is not known before its message arrives) gets its message
only when this process checks for it, and the sender may wait until then. And MPI moves the bytes of a large message
only while it is called, so this process must not sleep while such a message is under way.

A wait calls MPI repeatedly and serves the pending receives each time (`wait`). A blocking call of MPI without a test
form (a collective operation, the making of a communicator) runs in another thread while receives are pending, and this
thread serves them. It is the same call of MPI: the other ranks need no special treatment and need not use copyless.
"""

from __future__ import annotations

import functools
import os
import threading
import time
import types
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from mpi4py import MPI

from copyless.comm import _small
from copyless.comm._collectives import LATE
from copyless.comm._mpi_world import look_for_deaths
from copyless.errors import OwnerDiedError

__all__ = ["LARGE", "Pending", "beside", "serve", "serves", "under_way", "wait"]

_LAST = 100  # calls in which MPI takes in all that a rank gave before it died
LARGE = 1 << 16  # bytes from which a message is moved in steps, each in a call of MPI

in_line = _small.in_line  # the states with pending receives, and a communicator of each
R = TypeVar("R")

_moving: dict[int, tuple[int, Sequence[MPI.Request]]] = {}  # large messages under way: the thread, and MPI's requests
_PRUNE_AT = 64
_prune_at = _PRUNE_AT  # so many at which those that have ended are forgotten
_threads = MPI.Query_thread() == MPI.THREAD_MULTIPLE
_has_ended = MPI.Request.Get_status


def under_way(requests: Sequence[MPI.Request]) -> None:
    """Record that a large message has begun. Until it is complete, this thread does not sleep while it waits."""
    global _prune_at
    if len(_moving) >= _prune_at:
        for key, (_, known) in list(_moving.items()):
            if not any(known):  # somebody has waited for it
                _moving.pop(key, None)
        _prune_at = max(_PRUNE_AT, 2 * len(_moving))
    _moving[id(requests)] = threading.get_ident(), requests


def _moves() -> bool:
    """Whether large messages of this thread are under way, or were until now: then the wait has something to check."""
    me = threading.get_ident()
    found = False
    for key, (thread, requests) in list(_moving.items()):
        if thread == me:
            found = True
            if all(map(_has_ended, requests)):
                _moving.pop(key, None)
    return found


def wait(ended: Callable[[], R], late: Callable[[], object] | None = None) -> R:
    """Ask until the answer is true: at once for ten microseconds, then giving way, then with sleeps up to half a
    millisecond.

    Meanwhile receives in line get what arrives, whatever this waits for: the other side may wait for them. `late` is
    called each time that another half second has gone by, and OwnerDiedError raised if a rank of this node has died.
    """

    def done() -> R:
        if in_line:
            serve()
        return ended()

    if answer := done():
        return answer
    began = time.perf_counter()
    while time.perf_counter() - began < 1e-5:
        if answer := done():
            return answer
    while time.perf_counter() - began < 4e-3:
        os.sched_yield()
        if answer := done():
            return answer
    pause = 5e-5
    due = began + LATE
    while not (answer := done()):
        if time.perf_counter() >= due:
            due += LATE
            if late is not None:
                late()
            try:
                look_for_deaths()
            except OwnerDiedError:
                for _ in range(_LAST):
                    if answer := done():  # the rank gave it just before it died
                        return answer
                raise
        if _moving and _moves():
            os.sched_yield()
            continue
        time.sleep(pause)
        pause = min(pause * 1.5, 5e-4)
    return answer


def beside(call: Callable[..., object], *args: object, **kwargs: object) -> Any:
    """The result of a blocking call of MPI. While receives are pending, it runs in a thread of its own and this one
    serves them.

    If MPI does not allow calls from two threads (`MPI.Query_thread`), it simply blocks.
    """
    if not in_line or not _threads:
        return call(*args, **kwargs)
    result: list[Any] = []
    raised: list[BaseException] = []

    def run() -> None:
        try:
            result.append(call(*args, **kwargs))
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run, name="copyless-mpi", daemon=True)
    thread.start()
    wait(lambda: result or raised)
    thread.join()
    if raised:
        raise raised[0]
    return result[0]


class Pending(MPI.Request):
    """Pending(request)

    A request of an upper-case method of copyless's communicators: waiting for it serves the pending receives.
    """

    def Wait(self, status: Any = None) -> Any:
        """Wait until the request is complete."""
        return wait(lambda: MPI.Request.Test(self, status)) if in_line else MPI.Request.Wait(self, status)

    def Test(self, status: Any = None) -> bool:
        """Whether the request is complete."""
        serve()
        return MPI.Request.Test(self, status)

    def wait(self, status: Any = None) -> Any:
        """Wait until the request is complete."""
        if in_line:
            wait(lambda: _has_ended(self))
        return MPI.Request.wait(self, status)

    def test(self, status: Any = None) -> tuple[bool, Any]:
        """(whether the request is complete, None)."""
        serve()
        return MPI.Request.test(self, status)


def serve() -> None:
    """Give messages that have arrived to the pending receives."""
    for state, comm in list(in_line.values()):
        state.progress(comm)


# Blocking methods of MPI's classes, as mpi4py spells them. (Send, Recv, Probe and similar ones have a test form:
# see `mpi`.)
_BLOCKING = (
    "Barrier", "Bcast", "Gather", "Gatherv", "Scatter", "Scatterv", "Allgather", "Allgatherv", "Alltoall", "Alltoallv",
    "Alltoallw",
    "Reduce", "Allreduce", "Reduce_scatter", "Reduce_scatter_block", "Scan", "Exscan", "Neighbor_allgather",
    "Neighbor_allgatherv",
    "Neighbor_alltoall", "Neighbor_alltoallv", "Neighbor_alltoallw", "Agree", "Disconnect", "Free", "Bsend",
    "Flush_buffer",
    "Detach_buffer",
)  # fmt: skip
_MAKING = (
    "Dup", "Clone", "Dup_with_info", "Split", "Split_type", "Create", "Create_group", "Create_intercomm", "Merge",
    "Create_cart",
    "Create_graph", "Create_dist_graph", "Create_dist_graph_adjacent", "Sub", "Accept", "Connect", "Spawn",
    "Spawn_multiple", "Shrink",
)  # fmt: skip
_STARTING = (
    "Isend", "Ibsend", "Issend", "Irsend", "Irecv", "Isendrecv", "Isendrecv_replace", "Ibarrier", "Ibcast", "Igather",
    "Igatherv",
    "Iscatter", "Iscatterv", "Iallgather", "Iallgatherv", "Ialltoall", "Ialltoallv", "Ialltoallw", "Ireduce",
    "Iallreduce",
    "Ireduce_scatter", "Ireduce_scatter_block", "Iscan", "Iexscan", "Ineighbor_allgather", "Ineighbor_allgatherv",
    "Ineighbor_alltoall", "Ineighbor_alltoallv", "Ineighbor_alltoallw", "Iagree", "Iflush_buffer",
)  # fmt: skip
_TWO = ("Idup", "Idup_with_info", "Ishrink")  # they return a communicator and its request


def serves(ours: Callable[[Any], object]) -> Callable[[type], type]:
    """Give a class its own versions of the blocking methods of MPI, which serve the pending receives. `ours(comm)`
    converts a communicator to a class of copyless.
    """

    def blocking(theirs: Callable[..., object]) -> Callable[..., Any]:
        @functools.wraps(theirs)
        def method(self: object, *args: object, **kwargs: object) -> object:
            return beside(theirs, self, *args, **kwargs) if in_line else theirs(self, *args, **kwargs)

        return method

    def making(theirs: Callable[..., object]) -> Callable[..., Any]:
        @functools.wraps(theirs)
        def method(self: object, *args: object, **kwargs: object) -> object:
            return ours(beside(theirs, self, *args, **kwargs))

        return method

    def starting(theirs: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(theirs)
        def method(self: object, *args: object, **kwargs: object) -> object:
            return Pending(theirs(self, *args, **kwargs))

        return method

    def two(theirs: Any) -> Any:
        @functools.wraps(theirs)
        def method(self: object, *args: object, **kwargs: object) -> object:
            comm, request = theirs(self, *args, **kwargs)
            return ours(comm), Pending(request)

        return method

    def give(cls: type) -> type:
        for names, wrap in ((_BLOCKING, blocking), (_MAKING, making), (_STARTING, starting), (_TWO, two)):
            for name in names:
                theirs = getattr(cls, name, None)
                # Keep methods that a base class of copyless has already replaced or defines itself.
                if theirs is not None and not isinstance(theirs, types.FunctionType):
                    setattr(cls, name, wrap(theirs))
        return cls

    return give
