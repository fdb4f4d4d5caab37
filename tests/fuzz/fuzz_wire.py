"""What a stranger may send to a manager: frames, proofs, the first words of a connection.

It is refused by a typed error within the sizes that are allowed; what is a frame, comes out as what was sent.
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

from copyless import wire
from copyless._core._pickles import check_pickle
from copyless.errors import CopylessError

LIMIT = 1 << 18
REFUSED = (EOFError, CopylessError, AuthenticationError, TimeoutError, ConnectionError)


class Harmless(pickle.Unpickler):
    """Calls nothing: the input is anybody's."""

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
    except Exception:  # whatever the unpickler says of it
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
    """Both sides say the same number, so that an input can have proven the key, and go on."""
    real = os.urandom
    with mock.patch("os.urandom", lambda n: NONCE if n == len(NONCE) else real(n)), mock.patch.object(wire, "_unpickled", load):
        yield


def proven(speaker: bytes) -> bytes:
    """All that the other side says until it has proven the key."""
    return wire._GREETING + NONCE + wire._proof(KEY, speaker, NONCE, NONCE)


def hello(data: bytes) -> bytes:
    """A frame with a hello, each part of which the input may make another."""
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
    return wire._HEAD.pack(wire._MAGIC, 0, len(small), len(small)) + small


def framed(data: bytes) -> bytes:
    """A frame with right sizes, if the input says so, of what the input says."""
    if not data:
        return data
    n, small = data[0] % 3, data[1:]
    sizes = [wire._BESIDE] * n
    head = wire._HEAD.pack(wire._MAGIC, n, len(small), len(small) + sum(sizes))
    return head + b"".join(size.to_bytes(8, "little") for size in sizes) + small + b"x" * sum(sizes)


def test_one_input(data: bytes) -> None:
    if not data:
        return
    how, data = data[0] % 11, data[1:]
    sent = {1: framed, 6: lambda d: proven(b"client") + hello(d), 7: lambda d: proven(b"client") + d, 8: lambda d: proven(b"server") + d,
            10: lambda d: hello(d)}.get(how, bytes)(data)  # fmt: skip
    mine, theirs = fed(sent)
    try:
        if how in (0, 1):
            line = wire.SocketLine(mine, LIMIT)
            line._loads = load
            for _ in range(3):
                line.recv()
        elif how == 2:
            wire._prove_as_server(mine, (b"key",), time.monotonic() + 1)
            raise SystemError("it has proven a key that it does not have")
        elif how == 3:
            wire._prove_as_client(mine, b"key", time.monotonic() + 1)
            raise SystemError("it has proven a key that it does not have")
        elif how == 4:
            line = wire.SocketLine(mine, LIMIT, "xmlrpclib")
            try:
                line.recv()
            except REFUSED:
                raise
            except Exception:  # what the standard library's parser says of it
                pass
        elif how in (6, 7):
            with one_nonce():
                others = wire._Entrants()
                entrant = wire.Entrant(mine, False, others)
                others.add(entrant)
                try:
                    line, said = wire.accept(entrant, KEY, limit=LIMIT)
                    assert type(said.session) is bytes
                    assert type(said.pid) is int
                    line._loads = load  # type: ignore[attr-defined]
                    line.recv()
                except (TypeError, ValueError, KeyError):  # no tuple of four, or of a version that has other serializers
                    pass
                finally:
                    others.forget(entrant)
                    entrant._raw.close()
        elif how == 8:
            with one_nonce():
                wire._prove_as_client(mine, KEY, time.monotonic() + 1)
                line = wire.SocketLine(mine, LIMIT)
                line._loads = load
                line.recv()
        elif how == 9:  # nobody says more, and does not end
            slow, quiet = socket.socketpair()
            quiet.send(data[:20])
            try:
                if data[:1] > b"\x80":
                    wire._prove_as_client(slow, KEY, time.monotonic() + 0.01)
                else:
                    wire._prove_as_server(slow, (KEY,), time.monotonic() + 0.01)
            finally:
                slow.close()
                quiet.close()
        elif how == 10:
            line = wire.SocketLine(mine, LIMIT)
            line._loads = load
            try:
                wire._hello_of(line.recv())
            except (TypeError, ValueError, KeyError):
                pass
        else:  # there and back
            a, b = socket.socketpair()
            sender, receiver = wire.SocketLine(a, LIMIT), wire.SocketLine(b, LIMIT)
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


FILES = ["copyless/wire.py"]
# What reads what another has sent: these are counted. The rest connects, listens and waits, which the tests do.
FUNCTIONS = [
    "_read_into", "_read", "_prove_as_server", "_prove_as_client", "SocketLine.recv", "SocketLine._frame", "_from_xml", "check_serializer", "_hello_of",
]  # fmt: skip
