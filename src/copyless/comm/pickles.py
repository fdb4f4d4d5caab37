"""How objects become bytes where the caller says how: `Pickle`, as that of mpi4py, on both transports.

`comm.mpi.pickle` and `comm.local.pickle` say how what is sent there is pickled. As long as it is by the standard library, messages
go as this package packs them. With other functions (dill's, one's own) each object is first made bytes by them, and those travel; the
receiver's functions make the object again.
"""

from __future__ import annotations

import inspect
import pickle as _pickle
from collections.abc import Callable, Iterable
from typing import Any

from copyless import _loaders

__all__ = ["Pickle", "Sealed"]

_THRESHOLD = 1 << 18  # bytes


def _takes(function: Callable[..., Any], name: str) -> bool:
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # one in C that does not tell
        return True
    return name in parameters or any(each.kind is each.VAR_KEYWORD for each in parameters.values())


class Pickle:
    """Pickle(dumps=None, loads=None, protocol=None, threshold=None)

    How objects become bytes and bytes objects. Mirrors `mpi4py.MPI.Pickle`.

    Parameters
    ----------
    dumps
        Makes bytes of an object, ``dumps(obj, protocol)``; if it takes ``buffer_callback``, large buffers travel beside them.
    loads
        Makes an object of bytes; with buffers beside them, ``loads(data, buffers=...)``.
    protocol
        What `dumps` is given; None: the highest of the standard library, and nothing for another `dumps`.
    threshold
        Bytes from which a buffer travels beside; None: 256 KiB.

    Examples
    --------
    >>> from copyless.comm import local
    >>> local.Pickle().loads(local.Pickle().dumps([1, 2]))
    [1, 2]
    """

    _buffer: Callable[[Any], Any] = memoryview

    def __init__(
        self,
        dumps: Callable[..., bytes] | None = None,
        loads: Callable[..., Any] | None = None,
        protocol: int | None = None,
        threshold: int | None = None,
    ) -> None:
        self._dumps = _pickle.dumps if dumps is None else dumps
        self._loads = _pickle.loads if loads is None else loads
        self.is_own = self._dumps is not _pickle.dumps or self._loads is not _pickle.loads
        self._apart = _takes(self._dumps, "buffer_callback") and _takes(self._loads, "buffers")
        self.PROTOCOL = protocol
        self.THRESHOLD = threshold

    @property
    def PROTOCOL(self) -> int | None:
        """What `dumps` is given."""
        return self._protocol

    @PROTOCOL.setter
    def PROTOCOL(self, protocol: int | None) -> None:
        if protocol is None and self._dumps is _pickle.dumps:
            protocol = _pickle.HIGHEST_PROTOCOL
        self._protocol = protocol

    @property
    def THRESHOLD(self) -> int:
        """Bytes from which a buffer travels beside the pickle."""
        return self._threshold

    @THRESHOLD.setter
    def THRESHOLD(self, threshold: int | None) -> None:
        self._threshold = _THRESHOLD if threshold is None else threshold

    def dumps(self, obj: Any) -> bytes:
        """The bytes of an object."""
        return self._dumps(obj) if self._protocol is None else self._dumps(obj, self._protocol)

    def loads(self, data: Any) -> Any:
        """The object of bytes."""
        return self._loads(data)

    def dumps_oob(self, obj: Any) -> tuple[bytes, list[Any]]:
        """(the bytes of an object, its large buffers)."""
        if not self._apart:
            return self.dumps(obj), []
        buffers: list[Any] = []

        def keep(buffer: Any) -> bool:
            if memoryview(buffer).nbytes < self._threshold:
                return True
            buffers.append(type(self)._buffer(buffer))
            return False

        protocol = _pickle.HIGHEST_PROTOCOL if self._protocol is None else self._protocol
        return self._dumps(obj, max(protocol, 5), buffer_callback=keep), buffers

    def loads_oob(self, data: Any, buffers: Iterable[Any]) -> Any:
        """The object of bytes and buffers beside them."""
        return self._loads(data, buffers=buffers) if self._apart else self._loads(data)


class Sealed:
    """An object that a caller's own functions have made bytes: what unpickles it is the object."""

    def __init__(self, transport: str, data: bytes, buffers: list[Any]) -> None:
        self.transport, self.data, self.buffers = transport, data, buffers

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _loaders.comm_sealed, (self.transport, self.data, *map(_pickle.PickleBuffer, self.buffers))
