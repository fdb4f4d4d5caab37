"""Shared arrays in a Dask cluster of one host.

Dask pickles a task once, sends it on from the scheduler and may load it many times, on any host. So shared arrays go by value, unless `register`
has been called.
"""

from __future__ import annotations

from typing import Any

import distributed

from copyless import _other_pools, arrays
from copyless.errors import CopylessError, ForeignHostError, StaleHandleError

__all__ = ["register"]


def _join(probe: bytes) -> str:
    """In a process of the cluster: see whether it has the shared memory of the one that asks; what is wrong, or an empty text."""
    try:
        arrays.attach(probe)
    except StaleHandleError:
        pass  # the same shared memory, in which the probe is gone: this process began later
    except (CopylessError, OSError) as error:
        return f"{type(error).__name__}: {error}"
    _other_pools.allow("dask")
    return ""


class _Joins(distributed.WorkerPlugin):  # type: ignore[misc]
    """Lets workers that begin later join, too."""

    name = "copyless"
    idempotent = True

    def __init__(self, probe: bytes) -> None:
        self.probe = probe

    def setup(self, worker: Any) -> None:
        wrong = _join(self.probe)
        if wrong:
            raise ForeignHostError(f"this worker does not share the memory of the cluster, which register() says is one host: {wrong}")


def register(client: Any = None) -> None:
    """Have Dask's tasks and results carry shared arrays by name, on a cluster whose processes are all on this host.

    An array that is sent needs a name: one message may be loaded many times, and when its sender has ended. It is there as long as a process holds
    it, or with ``persist=True`` until `copyless.unlink`. Any view of it may be sent.

    Parameters
    ----------
    client : distributed.Client, optional
        Of the cluster; the present one unless given.

    Raises
    ------
    ForeignHostError
        When the scheduler or a worker is on another host, or has another shared memory (a container's, another user's). Nothing is changed then.

    Notes
    -----
    Asks the scheduler and each worker once. A worker that begins later is asked as it begins, and does not start on another host.

    Examples
    --------
    >>> import copyless.integrations.dask, distributed                # doctest: +SKIP
    >>> client = distributed.Client(n_workers=2)                      # doctest: +SKIP
    >>> copyless.integrations.dask.register(client)                   # doctest: +SKIP
    >>> image = copyless.zeros((1080, 1920), name="image")            # doctest: +SKIP
    >>> client.submit(fill, image).result()                           # doctest: +SKIP
    """
    client = distributed.get_client() if client is None else client
    probe = arrays.zeros(1)
    handle = bytes(arrays.handle(probe))
    said = {f"the worker {address}": wrong for address, wrong in client.run(_join, handle).items()}
    said["the scheduler"] = client.run_on_scheduler(_join, handle)
    for who, wrong in said.items():
        if wrong:
            raise ForeignHostError(f"{who} does not share this process's memory, so arrays cannot be sent to it by name: {wrong}")
    client.register_plugin(_Joins(handle))
    _other_pools.allow("dask")
