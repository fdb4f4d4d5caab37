"""Connections: multiprocessing's, with pipes that send tensors of PyTorch by value or as a handle.

Mirrors `multiprocessing.connection`. The difference is in `Pipe`: multiprocessing's own connection sends each tensor as
a descriptor, which the sender hands over once and only while it lives. This one sends the elements, as for an array, or
the handle if they are in shared memory. Each end is a `multiprocessing.connection.Connection` and is accepted wherever
that is.
"""

from __future__ import annotations

import sys
from multiprocessing import connection as _stdlib
from multiprocessing import reduction
from multiprocessing.connection import Client, Listener
from typing import TYPE_CHECKING, Any

from copyless import _loaders
from copyless._standard_names import standard_names
from copyless._transfer import in_flight, packing
from copyless._typing import Generic, TypeVar
from copyless.waiting import await_, wait

__all__ = ["Client", "Connection", "Listener", "Pipe", "await_", "wait"]


S = TypeVar("S", contravariant=True, default=Any)
R = TypeVar("R", covariant=True, default=Any)

if TYPE_CHECKING:
    from multiprocessing.connection import Connection as _Connection
else:

    class _Connection:
        """The standard library's class, which can be subscripted for checkers only."""

        def __class_getitem__(cls, item):
            return _stdlib.Connection


class Connection(_Connection[S, R], Generic[S, R]):
    """One end of a pipe. A `multiprocessing.connection.Connection` whose `send` treats tensors as arrays."""

    if TYPE_CHECKING:  # what the standard library's class has

        def _check_closed(self) -> None: ...
        def _check_writable(self) -> None: ...
        def _send_bytes(self, buf: bytes) -> None: ...

    def send(self, obj: S) -> None:
        """Pickle an object and send it. Mirrors `multiprocessing.connection.Connection.send`.

        Shared arrays, locks and queues are sent as handles, everything else by value.
        """
        if "torch" not in sys.modules:
            super().send(obj)
            return
        self._check_closed()
        self._check_writable()
        self._send_bytes(packing.joined(obj))


def _reduce(end: Connection[Any, Any]) -> tuple[object, ...]:
    if in_flight.is_lasting():
        in_flight.refuse_descriptor("Connection")
    return _loaders.connection, (reduction.DupFd(end.fileno()), end.readable, end.writable)


in_flight.register(Connection, _reduce)


def Pipe(duplex: bool = True) -> tuple[Connection[Any, Any], Connection[Any, Any]]:
    """Two connected ends. Mirrors `multiprocessing.Pipe`.

    Parameters
    ----------
    duplex : bool
        True: both ends send and receive. False: the first end receives and the second one sends.

    Returns
    -------
    (Connection, Connection)

    Examples
    --------
    >>> import copyless
    >>> one, other = copyless.Pipe()
    >>> one.send([1, 2])
    >>> other.recv()
    [1, 2]
    """
    ends: list[Connection[Any, Any]] = []
    for end in _stdlib.Pipe(duplex):
        ends.append(Connection(end.fileno(), end.readable, end.writable))
        end._handle = None  # type: ignore[attr-defined]
    return ends[0], ends[1]


if TYPE_CHECKING:
    from multiprocessing.connection import answer_challenge as answer_challenge
    from multiprocessing.connection import deliver_challenge as deliver_challenge
else:
    __getattr__, __dir__ = standard_names(__name__, "multiprocessing.connection")
