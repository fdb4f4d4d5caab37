"""The requests of clients and the answers of servers: their parts, kinds of answers, and the name of an object in a
server.

A request is (number, ident, method, args, kwds). The answer is (number, kind, result). The ident None means the server
itself. The server does not answer a request whose ident is `ONE_WAY`.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import managers as _stdlib
from multiprocessing import process
from multiprocessing.managers import RemoteError
from typing import Any

from copyless import _loaders
from copyless._transfer.sealed import unseal
from copyless.managers._connection import Connection
from copyless.managers._handshake import connect
from copyless.managers._listener import Listener

__all__ = [
    "ERROR", "ONE_WAY", "PLACE", "PROXY", "RETURN", "TRACEBACK", "UNKNOWN", "UNSERIALIZABLE", "AuthenticationString",
    "Registry", "Token",
    "convert_to_error", "dispatch", "error_of", "listener_client", "request_of", "short",
]  # fmt: skip

AuthenticationString: Any = process.AuthenticationString  # type: ignore[attr-defined]

# by typeid: (what makes the object, exposed methods, methods that return a proxy, what makes the proxy)
Registry = dict[
    str, tuple[Callable[..., Any] | None, Sequence[str] | None, Mapping[str, str] | None, Callable[..., object]]
]

RETURN, ERROR, PROXY, TRACEBACK, UNSERIALIZABLE = range(5)  # kinds of answers
UNKNOWN = -1  # the number of an answer to a request that could not be read
ONE_WAY = ""  # instead of the ident of an object
PLACE = "copyless.managers"  # the module of the public names, for users and pickles


class Token:
    """Names an object of a server."""

    __module__ = PLACE
    __slots__ = ("address", "id", "local", "typeid")

    typeid: str
    address: Any
    id: str
    local: str | None

    def __init__(self, typeid: str, address: object, id: str, local: str | None = None) -> None:
        self.typeid, self.address, self.id, self.local = typeid, address, id, local

    def __reduce__(self) -> tuple[object, ...]:
        return _loaders.token, (self.typeid, self.address, self.id, self.local)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(typeid={self.typeid!r}, address={self.address!r}, id={self.id!r})"


# ---- requests


def request_of(said: Any) -> tuple[int, str | None, str, Sequence[object], dict[str, object]]:
    """The request of a client, checked."""
    try:
        number, ident, method, args, kwds = said
    except (TypeError, ValueError):
        raise TypeError(f"a request must be (number, ident, method, args, kwds), not {short(said)}") from None
    if (
        type(number) is not int
        or not (ident is None or type(ident) is str)
        or type(method) is not str
        or not isinstance(args, (tuple, list))
        or type(kwds) is not dict
    ):
        raise TypeError(
            "a request must be (number, ident, method, args, kwds): an int, a str or None, a str, a tuple "
            "and a dict, not " + short(said)
        )
    return number, ident, method, args, kwds


def short(value: object) -> str:
    """The beginning of the repr of a value."""
    try:
        text = repr(value)
    except Exception:
        text = f"<{type(value).__name__}>"
    return text if len(text) < 300 else text[:300] + "..."


# ---- answers


def error_of(kind: int, result: Any) -> BaseException:
    """The exception in an answer."""
    if kind == ERROR:
        sealed, text = result
        if sealed is not None:
            try:
                error: BaseException = unseal(sealed)
            except Exception:
                return RemoteError(text)
            error.__cause__ = RemoteError(f"\n{text}")
            return error
        return RemoteError(text)
    if kind == UNSERIALIZABLE:
        return RemoteError(f"Unserializable message: {result}\n")
    return RemoteError(result)


def convert_to_error(kind: object, result: object) -> BaseException:
    """The exception in an answer. Mirrors `multiprocessing.managers.convert_to_error`, and accepts its kinds of
    answers too.
    """
    if isinstance(kind, int):
        return error_of(kind, result)
    return _stdlib.convert_to_error(kind, result)  # type: ignore[attr-defined,no-any-return]


# ---- calls on a connection that the user made


_calls = itertools.count(1)


def dispatch(
    c: object, id: str | None, methodname: str, args: Sequence[object] = (), kwds: Mapping[str, object] = {}
) -> Any:
    """Call a method of the server at the other end of a connection. Mirrors `multiprocessing.managers.dispatch`.

    Parameters
    ----------
    c
        A connection that `listener_client` made, or one of `multiprocessing.connection.Client` to a server of the
        standard library.
    id
        The object whose method is called; None: the server itself.
    methodname, args, kwds
        The call.
    """
    if not isinstance(c, Connection):
        return _stdlib.dispatch(c, id, methodname, args, kwds)  # type: ignore[attr-defined]
    number = next(_calls)
    c.send((number, id, methodname, args, kwds))
    while True:
        of, kind, result = c.recv()
        if of in (number, UNKNOWN):
            break
    if kind == RETURN:
        return result
    if kind == PROXY:
        raise TypeError(f"{methodname} returns an object that stays in the server: call it through its proxy")
    raise error_of(kind, result)


dispatch.__module__ = convert_to_error.__module__ = PLACE


def _client(serializer: str) -> Callable[..., Connection]:
    def Client(address: object, family: str | None = None, authkey: bytes | None = None) -> Connection:
        """An authenticated connection to the server of a copyless manager."""
        key = process.current_process().authkey if authkey is None else authkey
        return connect(address, bytes(key), session=os.urandom(16), serializer=serializer)

    return Client


# By serializer: the class that listens for a manager, and the function that connects to it.
listener_client: dict[str, tuple[type[Listener], Callable[..., Connection]]] = {
    serializer: (Listener, _client(serializer)) for serializer in ("pickle", "xmlrpclib")
}
