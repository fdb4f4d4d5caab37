"""Objects with big buffers between ranks: on shared memory without MPI, and on MPI across machines.

    from copyless import comm

    world = comm.world()          # MPI's under mpiexec, the group's under `copyless run`, else a group of one
    part = world.scatter(parts)   # the names and signatures of mpi4py.util.pkl5

`comm.local` and `comm.mpi` are the two transports; `comm.spawn` runs a function as ranks. What this module names is that of the
transport that `world` takes: under mpiexec `comm.ANY_SOURCE` is MPI's.
"""

from __future__ import annotations

import contextlib
import importlib
import os
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from copyless.comm.constants import (
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

# What the launchers of MPICH, Open MPI and others tell each rank.
_LAUNCHED = ("PMI_RANK", "PMI_SIZE", "PMIX_RANK", "OMPI_COMM_WORLD_SIZE", "MPI_LOCALNRANKS")
_REDUCTIONS = frozenset(("SUM", "PROD", "MAX", "MIN", "LAND", "LOR", "BAND", "BOR", "BXOR"))


def under_mpi() -> bool:
    """Whether this process was started by an MPI launcher (and not by ``copyless run`` within one)."""
    return "COPYLESS_GROUP" not in os.environ and any(name in os.environ for name in _LAUNCHED)


def _transport() -> Any:
    from copyless.comm import local

    if local._world is None and under_mpi():
        return importlib.import_module("copyless.comm.mpi")
    return local


def world(*, abort_on_error: bool = False) -> Intracomm:
    """The communicator of all ranks: MPI's world under mpiexec, the group's under ``copyless run``, else a group of one.

    Parameters
    ----------
    abort_on_error
        Under mpiexec, end all ranks when this one ends by an uncaught exception, or by `sys.exit` with anything but success; they
        might wait for it for ever. ``python -m copyless.comm prog.py`` does so too. Under ``copyless run`` that is always so.

    Examples
    --------
    >>> from copyless import comm
    >>> comm.world()
    <copyless.comm.local.Intracomm 'world' rank 0 of 1>
    """
    if abort_on_error:
        from copyless.comm import aborting

        aborting.watch()
    return _transport().world()  # type: ignore[no-any-return]


def __getattr__(name: str) -> Any:
    if name in ("local", "mpi", "futures"):
        return importlib.import_module(f"copyless.comm.{name}")
    if name == "spawn":
        from copyless.comm.local import spawn

        return spawn
    if name in _REDUCTIONS:
        from copyless.comm import constants

        return getattr(constants, name)
    if name in __all__:
        return getattr(_transport(), name)
    # What programs for MPI name beside that (COMM_WORLD, Cartcomm, Wtime, ...), the transport has.
    if not name.startswith("_"):
        with contextlib.suppress(AttributeError):
            return getattr(_transport(), name)
    raise AttributeError(f"module 'copyless.comm' has no attribute {name!r}")
