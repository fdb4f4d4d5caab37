"""How the communicator on MPI waits: never in MPI alone while something of ours needs this process meanwhile.

Two things need it. A receive that waits in line (`irecv`: its size is not known before its message comes) gets its message only when
somebody looks; the other side may be in a send that ends no sooner. And MPI moves the bytes of a large message only while
it is called: so nobody sleeps while some are under way.

What waits asks MPI in turns, and serves the lines at each (`wait`). A blocking call of MPI that has no form to ask for (a collective
operation, the making of a communicator) runs in a thread beside while receives are in line, and this one serves them. It is
the very same call of MPI: the other ranks need do nothing, and need not be ours.
"""

from __future__ import annotations

import functools
import os
import threading
import time
import types
from collections.abc import Callable
from typing import Any

from mpi4py import MPI

from copyless.comm import _small

__all__ = ["LARGE", "Pending", "beside", "serve", "serves", "under_way", "wait"]

LARGE = 1 << 16  # bytes from which a message moves in steps, each in a call of MPI

in_line = _small.in_line  # states with receives in line, and a communicator of each
_moving: dict[int, tuple[int, Any]] = {}  # large messages that have begun: the thread, MPI's requests
_threads = MPI.Query_thread() == MPI.THREAD_MULTIPLE
_has_ended = MPI.Request.Get_status


def under_way(requests: Any) -> None:
    """A large message has begun: until it has ended, this thread does not sleep where it waits."""
    _moving[id(requests)] = threading.get_ident(), requests


def _moves() -> bool:
    """Whether bytes of ours are under way in this thread, or were until now: then who waits has something to look at."""
    me = threading.get_ident()
    found = False
    for key, (thread, requests) in list(_moving.items()):
        if thread == me:
            found = True
            if all(map(_has_ended, requests)):
                _moving.pop(key, None)
    return found


def wait(ended: Callable[[], Any]) -> Any:
    """Ask until the answer is true: at once for ten microseconds, then giving way, then with sleeps up to half a millisecond.

    Meanwhile receives in line get what arrives, whatever this waits for: the other side may wait for them.
    """

    def done() -> Any:
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
    while not (answer := done()):
        if _moving and _moves():
            os.sched_yield()
            continue
        time.sleep(pause)
        pause = min(pause * 1.5, 5e-4)
    return answer


def beside(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """The result of a blocking call of MPI. While receives are in line it runs in a thread of its own, and they are served here.

    Where MPI does not let two threads in (`MPI.Query_thread`), it just blocks.
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

    A request of an upper-case method of our communicators: waiting for it serves our receives in line.
    """

    def Wait(self, status: Any = None) -> Any:
        """Wait until it has ended."""
        return wait(lambda: MPI.Request.Test(self, status)) if in_line else MPI.Request.Wait(self, status)

    def Test(self, status: Any = None) -> bool:
        """Whether it has ended."""
        serve()
        return MPI.Request.Test(self, status)

    def wait(self, status: Any = None) -> Any:
        """Wait until it has ended."""
        if in_line:
            wait(lambda: _has_ended(self))
        return MPI.Request.wait(self, status)

    def test(self, status: Any = None) -> tuple[bool, Any]:
        """Whether it has ended, and None."""
        serve()
        return MPI.Request.test(self, status)


def serve() -> None:
    """Give what has arrived to the receives in line."""
    for state, comm in list(in_line.values()):
        state.progress(comm)


# Blocking methods of MPI's classes, in the spelling of mpi4py. (Send, Recv, Probe and their kin have a form to ask for: see `mpi`.)
_BLOCKING = (
    "Barrier", "Bcast", "Gather", "Gatherv", "Scatter", "Scatterv", "Allgather", "Allgatherv", "Alltoall", "Alltoallv", "Alltoallw",
    "Reduce", "Allreduce", "Reduce_scatter", "Reduce_scatter_block", "Scan", "Exscan", "Neighbor_allgather", "Neighbor_allgatherv",
    "Neighbor_alltoall", "Neighbor_alltoallv", "Neighbor_alltoallw", "Agree", "Disconnect", "Free", "Bsend", "Flush_buffer",
    "Detach_buffer",
)  # fmt: skip
_MAKING = (
    "Dup", "Clone", "Dup_with_info", "Split", "Split_type", "Create", "Create_group", "Create_intercomm", "Merge", "Create_cart",
    "Create_graph", "Create_dist_graph", "Create_dist_graph_adjacent", "Sub", "Accept", "Connect", "Spawn", "Spawn_multiple", "Shrink",
)  # fmt: skip
_STARTING = (
    "Isend", "Ibsend", "Issend", "Irsend", "Irecv", "Isendrecv", "Isendrecv_replace", "Ibarrier", "Ibcast", "Igather", "Igatherv",
    "Iscatter", "Iscatterv", "Iallgather", "Iallgatherv", "Ialltoall", "Ialltoallv", "Ialltoallw", "Ireduce", "Iallreduce",
    "Ireduce_scatter", "Ireduce_scatter_block", "Iscan", "Iexscan", "Ineighbor_allgather", "Ineighbor_allgatherv",
    "Ineighbor_alltoall", "Ineighbor_alltoallv", "Ineighbor_alltoallw", "Iagree", "Iflush_buffer",
)  # fmt: skip
_TWO = ("Idup", "Idup_with_info", "Ishrink")  # a communicator, and the request of it


def serves(ours: Callable[[Any], Any]) -> Callable[[type], type]:
    """Give a class its own blocking methods of MPI, which serve the lines; `ours(comm)` is a communicator as one of our classes."""

    def blocking(theirs: Any) -> Any:
        @functools.wraps(theirs)
        def method(self: Any, *args: Any, **kwargs: Any) -> Any:
            return beside(theirs, self, *args, **kwargs) if in_line else theirs(self, *args, **kwargs)

        return method

    def making(theirs: Any) -> Any:
        @functools.wraps(theirs)
        def method(self: Any, *args: Any, **kwargs: Any) -> Any:
            return ours(beside(theirs, self, *args, **kwargs))

        return method

    def starting(theirs: Any) -> Any:
        @functools.wraps(theirs)
        def method(self: Any, *args: Any, **kwargs: Any) -> Any:
            return Pending(theirs(self, *args, **kwargs))

        return method

    def two(theirs: Any) -> Any:
        @functools.wraps(theirs)
        def method(self: Any, *args: Any, **kwargs: Any) -> Any:
            comm, request = theirs(self, *args, **kwargs)
            return ours(comm), Pending(request)

        return method

    def give(cls: type) -> type:
        for names, wrap in ((_BLOCKING, blocking), (_MAKING, making), (_STARTING, starting), (_TWO, two)):
            for name in names:
                theirs = getattr(cls, name, None)
                # What a base class of ours has given already, or has a way of its own for, stays.
                if theirs is not None and not isinstance(theirs, types.FunctionType):
                    setattr(cls, name, wrap(theirs))
        return cls

    return give
