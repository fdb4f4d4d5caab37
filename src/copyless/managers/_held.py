"""Locks and queues of a server that clients on other hosts use: a thread of the server waits for them and holds locks.

Such a client may vanish. The thread waits in steps and checks between them whether the client still exists, so that it
takes nothing for a client that has ended. Locks that a client held are released when its connection ends.
"""

from __future__ import annotations

import collections
import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from queue import Empty, Full

from copyless import synchronize
from copyless._objects.base import Shared
from copyless.managers._connection import Connection
from copyless.managers._endpoints import Closed
from copyless.managers._references import Client, References

__all__ = ["call_for", "release_cut", "release_held"]

_WAITING = frozenset({"acquire", "get", "get_many", "join", "put", "wait"})  # methods that can wait in steps
_STEP = 0.5  # seconds


def call_for(
    references: References,
    client: Client,
    ident: str,
    obj: Shared,
    method: str,
    args: Sequence[object],
    kwds: Mapping[str, object],
) -> object:
    """Call a method of a shared object for a client on another host, and record which locks the client then holds."""
    # the wait of a barrier cannot be divided into steps
    if method in _WAITING and not isinstance(obj, synchronize.Barrier):
        result = _wait_in_steps(client.connection, getattr(obj, method), args, kwds)
    else:
        result = getattr(obj, method)(*args, **kwds)
    if method == "acquire" and result:
        with references.mutex:
            client.held[ident] += 1
    elif method == "release":
        with references.mutex:  # any thread may release a lock
            for other in (client, *client.session.clients):
                if other.held[ident] > 0:
                    other.held[ident] -= 1
                    break
    return result


def _wait_in_steps(
    connection: Connection, method: Callable[..., object], args: Sequence[object], kwds: Mapping[str, object]
) -> object:
    try:
        call = inspect.signature(method).bind(*args, **kwds)
    except (TypeError, ValueError):
        return method(*args, **kwds)  # the method raises the error, or it has no signature
    names = call.signature.parameters
    block = call.arguments.get("block", call.arguments.get("blocking", True))
    timeout = call.arguments.get("timeout")
    if "timeout" not in names or not block or not (timeout is None or isinstance(timeout, (int, float))):
        return method(*args, **kwds)
    end = None if timeout is None else time.monotonic() + timeout
    while True:
        left = _STEP if end is None else end - time.monotonic()
        call.arguments["timeout"] = max(min(left, _STEP), 0)
        try:
            result = method(*call.args, **call.kwargs)
            if result is not False or method.__name__ not in ("acquire", "wait") or left < _STEP:
                return result
        except (Empty, Full, TimeoutError):
            if left < _STEP:
                raise
        if connection.is_cut():
            raise Closed("the client has ended or closed the connection")


def release_held(references: References, client: Client) -> None:
    """Release the locks of a client that has ended.

    Locks that only the client's own thread here may release stay recorded for it.
    """
    with references.mutex:
        held, client.held = client.held, collections.Counter()
    for ident, n in held.items():
        referent = references.objects.get(ident)
        while n > 0 and referent is not None:
            try:
                referent.obj.release()
            except Exception:
                break
            n -= 1
        if n > 0 and referent is not None:
            with references.mutex:
                client.held[ident] += n


def release_cut(references: References) -> None:
    """Release the locks of clients that have ended while their threads here still run their last calls."""
    for client in references.clients():
        if client.held and not client.connection.shared and client.connection.is_cut():
            release_held(references, client)
