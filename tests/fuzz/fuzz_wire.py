"""Bytes that an unknown client may send to a manager: packets, proofs, the hello of a connection.

The server refuses them with a typed error, within the permitted sizes. A good packet is received as it was sent.
"""

import io
import os
import pickle
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import AuthenticationError
from typing import Any
from unittest import mock

from copyless._core._pickles import check_pickle
from copyless.errors import CopylessError
from copyless.managers import _connection, _handshake, _listener

LIMIT = 1 << 18
REFUSED = (EOFError, CopylessError, AuthenticationError, TimeoutError, ConnectionError)


class Harmless(pickle.Unpickler):
    """Calls nothing: the input is not trusted."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError


def load(data: bytearray, buffers: list[bytearray]) -> Any:
    assert len(data) + sum(map(len, buffers)) <= LIMIT
    try:
        check_pickle(data)
    except pickle.UnpicklingError:
        return None
    try:
        return Harmless(io.BytesIO(data), buffers=buffers).load()
    except Exception:  # any error of the unpickler
        return None


def fed(data: bytes) -> tuple[socket.socket, socket.socket]:
    mine, theirs = socket.socketpair()
    theirs.setblocking(False)
    try:
        theirs.send(data)
        theirs.shutdown(socket.SHUT_WR)
    except OSError:
        pass
    return mine, theirs


KEY, NONCE = b"key", bytes(range(32))


@contextmanager
def one_nonce() -> Iterator[None]:
    """Both sides use the same number, so that an input can contain a valid proof of the key and go on."""
    real = os.urandom
    with (
        mock.patch("os.urandom", lambda n: NONCE if n == len(NONCE) else real(n)),
        mock.patch.dict(_connection._SERIALIZERS, {"pickle": (_connection._pickled, load)}),
    ):
        yield


def proven(speaker: bytes) -> bytes:
    """All that the other side sends until it has proven the key."""
    return _handshake._GREETING + NONCE + _handshake._proof(KEY, speaker, NONCE, NONCE)


def hello(data: bytes) -> bytes:
    """A packet with a hello; the input may replace each part of it."""
    at = iter(data)
    wrong: list[Any] = [None, 1, "pickle", b"x", (b"x", b"y"), (b"x",), ("x", b"y"), "xmlrpclib", "no such"]
    parts: list[Any] = [b"session", 7, "pickle", None]
    for i in range(4):
        which = next(at, 0)
        if which % 16 < len(wrong):
            parts[i] = wrong[which % 16]
    count = next(at, 0) % 8
    said: Any = tuple(parts) if count < 6 else tuple(parts[: count % 4])
    small = pickle.dumps(said)
    return _connection._HEAD.pack(_connection._MAGIC, 0, len(small), len(small)) + small


def packet(data: bytes) -> bytes:
    """A packet with correct sizes, if the input says so, and with the input's content."""
    if not data:
        return data
    n, small = data[0] % 3, data[1:]
    sizes = [_connection._BESIDE] * n
    head = _connection._HEAD.pack(_connection._MAGIC, n, len(small), len(small) + sum(sizes))
    return head + b"".join(size.to_bytes(8, "little") for size in sizes) + small + b"x" * sum(sizes)


def test_one_input(data: bytes) -> None:
    if not data:
        return
    how, data = data[0] % 11, data[1:]
    sent = {1: packet, 6: lambda d: proven(b"client") + hello(d), 7: lambda d: proven(b"client") + d,
        8: lambda d: proven(b"server") + d,
            10: lambda d: hello(d)}.get(how, bytes)(data)  # fmt: skip
    mine, theirs = fed(sent)
    try:
        if how in (0, 1):
            connection = _connection.SocketConnection(mine, LIMIT)
            connection._loads = load
            for _ in range(3):
                connection.recv()
        elif how == 2:
            _handshake._prove_as_server(mine, (b"key",), time.monotonic() + 1)
            raise SystemError("it has proven a key that it does not have")
        elif how == 3:
            _handshake._prove_as_client(mine, b"key", time.monotonic() + 1)
            raise SystemError("it has proven a key that it does not have")
        elif how == 4:
            connection = _connection.SocketConnection(mine, LIMIT, "xmlrpclib")
            try:
                connection.recv()
            except REFUSED:
                raise
            except Exception:  # any error of the standard library's parser
                pass
        elif how in (6, 7):
            with one_nonce():
                others = _listener.Waiting()
                pending = _listener.Pending(mine, False, others)
                others.add(pending)
                try:
                    connection, said = _handshake.accept(pending, KEY, limit=LIMIT)
                    assert type(said.session) is bytes
                    assert type(said.pid) is int
                    connection._loads = load  # type: ignore[attr-defined]
                    connection.recv()
                except (
                    TypeError,
                    ValueError,
                    KeyError,
                ):  # not a tuple of four, or from a version with other serializers
                    pass
                finally:
                    others.forget(pending)
                    pending._raw.close()
        elif how == 8:
            with one_nonce():
                _handshake._prove_as_client(mine, KEY, time.monotonic() + 1)
                connection = _connection.SocketConnection(mine, LIMIT)
                connection._loads = load
                connection.recv()
        elif how == 9:  # the other side sends nothing more, and does not close
            slow, quiet = socket.socketpair()
            quiet.send(data[:20])
            try:
                if data[:1] > b"\x80":
                    _handshake._prove_as_client(slow, KEY, time.monotonic() + 0.01)
                else:
                    _handshake._prove_as_server(slow, (KEY,), time.monotonic() + 0.01)
            finally:
                slow.close()
                quiet.close()
        elif how == 10:
            connection = _connection.SocketConnection(mine, LIMIT)
            connection._loads = load
            try:
                _handshake._hello_of(connection.recv())
            except (TypeError, ValueError, KeyError):
                pass
        else:  # there and back
            a, b = socket.socketpair()
            sender, receiver = _connection.SocketConnection(a, LIMIT), _connection.SocketConnection(b, LIMIT)
            sender.send([data, len(data)])
            assert receiver.recv() == [data, len(data)]
            sender.close()
            assert receiver.is_cut()
            receiver.close()
    except REFUSED:
        pass
    finally:
        mine.close()
        theirs.close()


# The code that reads what another process has sent: only this is counted. The rest connects, listens and waits; the
# tests cover it.
FUNCTIONS = {
    "copyless/managers/_endpoints.py": ["read_into", "read"],
    "copyless/managers/_handshake.py": ["_prove_as_server", "_prove_as_client", "_hello_of"],
    "copyless/managers/_connection.py": [
        "SocketConnection.recv", "SocketConnection.recv_within", "SocketConnection._packet", "_from_xml",
        "check_serializer",
    ],
}  # fmt: skip
FILES = list(FUNCTIONS)
