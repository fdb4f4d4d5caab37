"""Shared arrays in a Ray cluster of one host.

Ray pickles an object once, keeps it in its own store and loads it many times, on any host, for reading only. So shared arrays go by value, unless
`register` has been called.
"""

from __future__ import annotations

from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from copyless import _other_pools, arrays
from copyless.errors import CopylessError, ForeignHostError

__all__ = ["register"]


def _join(probe: bytes) -> str:
    """In a process of a node: see whether it has the shared memory of the one that asks; what is wrong, or an empty text."""
    try:
        arrays.attach(probe)
    except (CopylessError, OSError) as error:
        return f"{type(error).__name__}: {error}"
    _other_pools.allow("ray")
    return ""


def register() -> None:
    """Have Ray's tasks, actors and objects carry shared arrays by name, on a cluster whose nodes are all this host.

    Call it after `ray.init`. An array that is sent needs a name: one object may be loaded many times, and when its sender has ended. It is there as long
    as a process holds it, or with ``persist=True`` until `copyless.unlink`. It arrives writable, as the same memory.

    Raises
    ------
    ForeignHostError
        When a node is on another host, or has another shared memory. Nothing is changed then.
    RuntimeError
        When Ray is not initialised.

    Notes
    -----
    Runs a task on each node. A worker process learns it with the first shared array that it gets; one that sends its own array before calls
    `register` itself.

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
    handle = bytes(arrays.handle(probe))
    ask: Any = ray.remote(_join)
    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
    answers = [
        ask.options(num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(handle)
        for node in nodes
    ]
    for node, wrong in zip(nodes, ray.get(answers), strict=True):
        if wrong:
            raise ForeignHostError(
                f"the node {node} does not share this process's memory, so arrays cannot be sent to it by name: {wrong}"
            )
    _other_pools.allow("ray")
