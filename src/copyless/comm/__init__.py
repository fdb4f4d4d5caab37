"""Ranks that send objects with large buffers: through shared memory without MPI, and over MPI across machines.

    from copyless import comm

    world = comm.world()          # MPI's world under mpiexec, the group under `copyless run`, otherwise one rank
    part = world.scatter(parts)   # the names and signatures of mpi4py.util.pkl5

`comm.local` and `comm.mpi` are the two transports; `comm.spawn` runs a function as ranks. The names of this module are
those of the transport that `world` uses: under mpiexec, `comm.ANY_SOURCE` is MPI's.
"""

from __future__ import annotations

import sys

__all__ = [
    "ANY_SOURCE",
    "ANY_TAG",
    "BAND",
    "BOR",
    "BXOR",
    "LAND",
    "LOR",
    "MAX",
    "MIN",
    "PROC_NULL",
    "PROD",
    "ROOT",
    "SUM",
    "UNDEFINED",
    "Comm",
    "Intercomm",
    "Intracomm",
    "Message",
    "Request",
    "Status",
    "spawn",
    "world",
]

from copyless._typing import TYPE_CHECKING, Any
from copyless.comm import _transport
from copyless.comm._transport import under_mpi as under_mpi

if TYPE_CHECKING:
    from copyless.comm._constants import (
        ANY_SOURCE,
        ANY_TAG,
        BAND,
        BOR,
        BXOR,
        LAND,
        LOR,
        MAX,
        MIN,
        PROC_NULL,
        PROD,
        ROOT,
        SUM,
        UNDEFINED,
    )
    from copyless.comm.local import Comm, Intercomm, Intracomm, Message, Request, Status, spawn

_REDUCTIONS = frozenset(("SUM", "PROD", "MAX", "MIN", "LAND", "LOR", "BAND", "BOR", "BXOR"))


def world(*, abort_on_error: bool = False) -> Intracomm:
    """The communicator of all ranks: MPI's world under mpiexec, the group under ``copyless run``, otherwise a group of
    one.

    Parameters
    ----------
    abort_on_error : bool
        Under mpiexec: end all ranks if this one ends by an uncaught exception, or by `sys.exit` with a code other than
        0. Otherwise the others might wait for it for ever. ``python -m copyless.comm prog.py`` does the same, and
        ``copyless run`` always does it.

    Returns
    -------
    Intracomm
        Of `copyless.comm.local` or `copyless.comm.mpi`; both have the methods of `mpi4py.util.pkl5.Intracomm`.

    Examples
    --------
    >>> from copyless import comm
    >>> comm.world()
    <copyless.comm.local.Intracomm 'world' rank 0 of 1>
    """
    if abort_on_error:
        from copyless.comm import _aborting

        _aborting.watch()
    found: Intracomm = _transport.current().world()
    return found


def __getattr__(name: str) -> Any:
    if name in ("local", "mpi", "futures"):
        __import__(f"copyless.comm.{name}")
        return sys.modules[f"copyless.comm.{name}"]
    if name == "spawn":
        from copyless.comm.local import spawn

        return spawn
    if name in _REDUCTIONS:
        from copyless.comm import _constants

        return getattr(_constants, name)
    if name in __all__:
        return getattr(_transport.current(), name)
    # Other names that MPI programs use (COMM_WORLD, Cartcomm, Wtime, ...) are in the transport.
    if not name.startswith("_"):
        try:
            return getattr(_transport.current(), name)
        except AttributeError:
            pass
    raise AttributeError(f"module 'copyless.comm' has no attribute {name!r}")
