"""The transport of this process: `comm.mpi` if an MPI launcher started it, otherwise `comm.local`."""

from __future__ import annotations

from copyless._storage.settings import under_mpi_launcher
from copyless._typing import Any

__all__ = ["current", "under_mpi"]


def under_mpi() -> bool:
    """Whether an MPI launcher started this process (and not ``copyless run`` inside one)."""
    return under_mpi_launcher()


def current() -> Any:
    """The module of the transport."""
    from copyless.comm import _local_world

    if not _local_world.has_world() and under_mpi():
        from copyless.comm import mpi

        return mpi
    from copyless.comm import local

    return local
