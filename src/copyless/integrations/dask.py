"""Shared arrays in a Dask cluster on one host.

Dask pickles a task once, sends it through the scheduler, and may load it several times, on any host. Shared arrays are
therefore copied by value, unless `register` was called.
"""

from __future__ import annotations

from typing import Any

import distributed

from copyless import _attach, arrays
from copyless._transfer import other_pools as _other_pools
from copyless.errors import CopylessError, ForeignHostError, StaleHandleError

__all__ = ["register"]


def _join(probe: bytes) -> str:
    """In a process of the cluster: check whether it shares the memory of the process that asks. The error, or an
    empty text.
    """
    try:
        _attach.attach(probe)
    except StaleHandleError:
        pass  # the memory is shared; the probe was freed before this process started
    except (CopylessError, OSError) as error:
        return f"{type(error).__name__}: {error}"
    _other_pools.allow("dask")
    return ""


class _Joins(distributed.WorkerPlugin):  # type: ignore[misc]
    """Lets workers that start later join too."""

    name = "copyless"
    idempotent = True

    def __init__(self, probe: bytes) -> None:
        self.probe = probe

    def setup(self, worker: object) -> None:
        wrong = _join(self.probe)
        if wrong:
            raise ForeignHostError(
                "this worker does not share memory with the client, although register() was called for a "
                f"cluster on one host: {wrong}"
            )


def register(client: Any = None) -> None:
    """Make Dask send shared arrays in tasks and results by name, on a cluster whose processes are all on this host.

    An array needs a name to be sent, since one message may be loaded several times, also after its sender has ended.
    The array exists as long as a process holds it, or with ``persist=True`` until `copyless.unlink`. Any view of it may
    be sent.

    Parameters
    ----------
    client : distributed.Client, optional
        The client of the cluster; default: the current one.

    Raises
    ------
    ForeignHostError
        If the scheduler or a worker is on another host, or has other shared memory (in a container, of another user).
        Nothing is changed then.

    Notes
    -----
    Asks the scheduler and each worker once. A worker that starts later is asked when it starts; it refuses to start on
    another host.

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
    handle = bytes(_attach.handle(probe))
    said = {f"the worker {address}": wrong for address, wrong in client.run(_join, handle).items()}
    said["the scheduler"] = client.run_on_scheduler(_join, handle)
    for who, wrong in said.items():
        if wrong:
            raise ForeignHostError(
                f"{who} does not share memory with this process, so arrays cannot be sent to it by name: {wrong}"
            )
    client.register_plugin(_Joins(handle))
    _other_pools.allow("dask")
