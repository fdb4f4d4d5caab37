"""`Pickle`, as mpi4py's: the functions that turn objects into bytes, on both transports.

`comm.mpi.pickle` and `comm.local.pickle` hold the functions that are used for sending there. With those of the standard
library, messages are packed as usual. With other functions (of dill, or the caller's own), each object is first turned
into bytes by them; the bytes are sent, and the receiver's functions make the object again.
"""

from __future__ import annotations

import inspect
import pickle as _pickle
import types
from collections.abc import Callable, Iterable
from typing import Any

from copyless import _loaders

__all__ = ["Choice", "ModuleWithPickle", "Pickle", "Sealed"]

_THRESHOLD = 1 << 18  # bytes


def _takes(function: Callable[..., object], name: str) -> bool:
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # a C function without a signature
        return True
    return name in parameters or any(each.kind is each.VAR_KEYWORD for each in parameters.values())


class Pickle:
    """Pickle(dumps=None, loads=None, protocol=None, threshold=None)

    The functions that turn objects into bytes and bytes into objects. Mirrors `mpi4py.MPI.Pickle`.

    Parameters
    ----------
    dumps
        ``dumps(obj, protocol)`` returns bytes. If it accepts ``buffer_callback``, large buffers are sent beside the
        bytes.
    loads
        ``loads(data)`` returns the object; with buffers beside the bytes, ``loads(data, buffers=...)``.
    protocol
        The argument of `dumps`; None: the highest protocol for the standard library's, no argument for other functions.
    threshold
        Bytes from which a buffer is sent beside; None: 256 KiB.

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
        loads: Callable[..., object] | None = None,
        protocol: int | None = None,
        threshold: int | None = None,
    ) -> None:
        self._dumps = _pickle.dumps if dumps is None else dumps
        self._loads = _pickle.loads if loads is None else loads
        self.is_own: bool = self._dumps is not _pickle.dumps or self._loads is not _pickle.loads
        self._apart = _takes(self._dumps, "buffer_callback") and _takes(self._loads, "buffers")
        self.PROTOCOL = protocol
        self.THRESHOLD = threshold

    @property
    def PROTOCOL(self) -> int | None:
        """The protocol argument of `dumps`."""
        return self._protocol

    @PROTOCOL.setter
    def PROTOCOL(self, protocol: int | None) -> None:
        if protocol is None and self._dumps is _pickle.dumps:
            protocol = _pickle.HIGHEST_PROTOCOL
        self._protocol = protocol

    @property
    def THRESHOLD(self) -> int:
        """Bytes from which a buffer is sent beside the pickle."""
        return self._threshold

    @THRESHOLD.setter
    def THRESHOLD(self, threshold: int | None) -> None:
        self._threshold = _THRESHOLD if threshold is None else threshold

    def dumps(self, obj: object) -> bytes:
        """The bytes of an object."""
        return self._dumps(obj) if self._protocol is None else self._dumps(obj, self._protocol)

    def loads(self, data: Any) -> Any:
        """The object of bytes."""
        return self._loads(data)

    def dumps_oob(self, obj: object) -> tuple[bytes, list[Any]]:
        """(bytes of an object, its large buffers)."""
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
        """The object of bytes and the buffers beside them."""
        return self._loads(data, buffers=buffers) if self._apart else self._loads(data)


class Sealed:
    """An object that the caller's own functions have turned into bytes. It unpickles as the object."""

    def __init__(self, transport: str, data: bytes, buffers: list[Any]) -> None:
        self.transport, self.data, self.buffers = transport, data, buffers

    def __reduce_ex__(self, protocol: object) -> Any:
        return _loaders.comm_sealed, (self.transport, self.data, *map(_pickle.PickleBuffer, self.buffers))


class Choice:
    """The `Pickle` that a transport uses: the attribute `pickle` of `comm.local` or `comm.mpi`."""

    is_own = False  # whether its functions are not the standard library's

    def __init__(self, transport: str, tell: Callable[[bool], None]) -> None:
        self.transport = transport
        self._tell = tell  # informs the fast path of sending
        self._pickle: Any = None

    @property
    def pickle(self) -> Any:
        """The `Pickle` in use."""
        return self._pickle

    @pickle.setter
    def pickle(self, pickle: object) -> None:
        self._pickle = pickle
        self.look()

    def look(self) -> None:
        """Record whether its functions are the caller's own."""
        self.is_own = self._pickle is not None and getattr(self._pickle, "is_own", True)
        self._tell(self.is_own)

    def sealed(self, obj: object) -> Any:
        """The object, or its bytes if the functions are the caller's own."""
        return Sealed(self.transport, *self._pickle.dumps_oob(obj)) if self.is_own else obj


class ModuleWithPickle(types.ModuleType):
    """The module of a transport, whose attribute `pickle` is the transport's choice and can be set."""

    _choice: Choice

    @property
    def pickle(self) -> Any:
        return self._choice.pickle

    @pickle.setter
    def pickle(self, pickle: object) -> None:
        self._choice.pickle = pickle
