"""Shared arrays in a Ray cluster on one host.

Ray pickles an object once, keeps it in its own store and may load it several times, on any host, read-only. Shared
arrays are therefore copied by value, unless `register` was called.
"""

from __future__ import annotations

from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from copyless import _attach, arrays
from copyless._transfer import other_pools as _other_pools
from copyless.errors import CopylessError, ForeignHostError

__all__ = ["register"]


def _join(probe: bytes) -> str:
    """In a process of a node: check whether it shares the memory of the process that asks. The error, or an empty
    text.
    """
    try:
        _attach.attach(probe)
    except (CopylessError, OSError) as error:
        return f"{type(error).__name__}: {error}"
    _other_pools.allow("ray")
    return ""


def register() -> None:
    """Make Ray send shared arrays in tasks, actors and objects by name, on a cluster whose nodes are all on this host.

    Call it after `ray.init`. An array needs a name to be sent, since one object may be loaded several times, also after
    its sender has ended. The array exists as long as a process holds it, or with ``persist=True`` until
    `copyless.unlink`. It arrives writable, as the same memory.

    Raises
    ------
    ForeignHostError
        If a node is on another host, or has other shared memory. Nothing is changed then.
    RuntimeError
        If Ray is not initialised.

    Notes
    -----
    Runs one task on each node. A worker process learns of it with the first shared array that it receives; a worker
    that sends its own array before that calls `register` itself.

    Examples
    --------
    >>> import copyless.integrations.ray, ray                         # doctest: +SKIP
    >>> ray.init()                                                    # doctest: +SKIP
    >>> copyless.integrations.ray.register()                          # doctest: +SKIP
    >>> image = copyless.zeros((1080, 1920), name="image")            # doctest: +SKIP
    >>> ray.get(fill.remote(image))                                   # doctest: +SKIP
    """
    if not ray.is_initialized():
        raise RuntimeError("Ray is not initialised: call ray.init() before copyless.integrations.ray.register()")
    probe = arrays.zeros(1)
    handle = bytes(_attach.handle(probe))
    ask: Any = ray.remote(_join)
    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
    answers = [
        ask.options(num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(handle)
        for node in nodes
    ]
    for node, wrong in zip(nodes, ray.get(answers), strict=True):
        if wrong:
            raise ForeignHostError(
                f"the node {node} does not share memory with this process, so arrays cannot be sent to it by "
                f"name: {wrong}"
            )
    _other_pools.allow("ray")
