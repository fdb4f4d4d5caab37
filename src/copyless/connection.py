"""Connections: multiprocessing's, with pipes over which tensors of PyTorch go by value.

Mirrors `multiprocessing.connection`. What is different in `Pipe`: multiprocessing's own connection sends each tensor as a descriptor
that the sender hands over once, while it lives; this one sends the elements, as it does those of an array, or the handle where
they lie in shared memory. An end is a `multiprocessing.connection.Connection`, so whatever takes those takes it.
"""

from __future__ import annotations

import sys
from multiprocessing import connection as _stdlib
from multiprocessing import reduction
from multiprocessing.connection import Client, Listener
from typing import TYPE_CHECKING, Any

from copyless import _loaders, pickling
from copyless._standard_names import standard_names
from copyless.waiting import await_, wait

__all__ = ["Client", "Connection", "Listener", "Pipe", "await_", "wait"]


class Connection(_stdlib.Connection):
    """One end of a pipe."""

    def send(self, obj: Any) -> None:
        """Send an object. Mirrors `multiprocessing.connection.Connection.send`."""
        if "torch" not in sys.modules:
            super().send(obj)
            return
        self._check_closed()  # type: ignore[attr-defined]
        self._check_writable()  # type: ignore[attr-defined]
        self._send_bytes(pickling.joined(obj))  # type: ignore[attr-defined]


def _reduce(end: Connection) -> Any:
    if pickling.is_lasting():
        pickling.refuse_descriptor("Connection")
    return _loaders.connection, (reduction.DupFd(end.fileno()), end.readable, end.writable)


pickling.register(Connection, _reduce)


def Pipe(duplex: bool = True) -> tuple[Connection, Connection]:
    """Two connected ends, both for sending and receiving; unless `duplex` the first receives and the second sends.

    Mirrors `multiprocessing.Pipe`.

    Examples
    --------
    >>> import copyless
    >>> one, other = copyless.Pipe()
    >>> one.send([1, 2])
    >>> other.recv()
    [1, 2]
    """
    ends = []
    for end in _stdlib.Pipe(duplex):
        ends.append(Connection(end.fileno(), end.readable, end.writable))
        end._handle = None  # type: ignore[attr-defined]
    return ends[0], ends[1]


if TYPE_CHECKING:
    from multiprocessing.connection import answer_challenge as answer_challenge
    from multiprocessing.connection import deliver_challenge as deliver_challenge
else:
    __getattr__, __dir__ = standard_names(__name__, "multiprocessing.connection")
