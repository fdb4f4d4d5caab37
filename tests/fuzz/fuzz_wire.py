"""What a stranger may send to a manager: frames, proofs, the first words of a connection.

It is refused by a typed error within the sizes that are allowed; what is a frame, comes out as what was sent.
"""

import io
import pickle
import socket
import time
from multiprocessing import AuthenticationError
from typing import Any

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
    how, data = data[0] % 6, data[1:]
    mine, theirs = fed(framed(data) if how == 1 else data)
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
