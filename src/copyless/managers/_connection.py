"""Connections: how objects travel between a client and a manager's server after authentication.

On one host a connection is two queues in shared memory, otherwise a socket that carries packets. A packet is its head
(magic number, number of buffers, bytes of the pickle, bytes in all), the sizes of the buffers, the pickle and the
buffers. The sizes are checked before anything more is read. Between hosts the plain pickle module is used: a shared
array is sent by value, and an object that is only a handle raises `ForeignHostError` where it arrives.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
from collections.abc import Callable
from typing import Any

from copyless import _platform
from copyless._core._pickles import loads
from copyless._storage.settings import current
from copyless._transfer import packing
from copyless.errors import CopylessError, EndOfQueueError
from copyless.managers._endpoints import Closed, read
from copyless.queues import Queue, ShutDown

__all__ = [
    "PACKET_LIMIT",
    "Broken",
    "Connection",
    "SharedConnection",
    "SocketConnection",
    "Unsendable",
    "check_serializer",
]

PACKET_LIMIT = 1 << 34  # bytes of a whole packet
_HEAD = struct.Struct("<4sIQQ")
_MAGIC = b"CLfr"
_BUFFERS = 1 << 20
_BESIDE = 1 << 14  # bytes from which a buffer is sent beside its pickle
_JOINED = 1 << 16  # bytes up to which a packet is sent by one call


class Broken(CopylessError, ConnectionError):
    """The received bytes are not a packet, or a packet that is larger than allowed."""


class Unsendable(Exception):
    """Nothing was sent, because the object could not be pickled. The cause is the error."""


class Connection:
    """One end of an authenticated connection: `send` an object, `recv` one."""

    shared: bool  # whether it is in shared memory, so that handles can be sent over it

    def send(self, obj: object) -> None:
        """Send an object. If pickling raises, nothing was sent."""
        raise NotImplementedError

    def recv(self) -> Any:
        """The next object.

        Raises Closed (an EOFError) if the peer has ended, and whatever unpickling raises.
        """
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError

    def is_cut(self) -> bool:
        """Whether the peer is known to have ended. `recv` and `send` notice later ends."""
        return False


# ---- on one host


class SharedConnection(Connection):
    """A connection of two queues in shared memory."""

    shared = True

    def __init__(self, incoming: Queue[Any], outgoing: Queue[Any]) -> None:
        self._incoming, self._outgoing = incoming, outgoing
        self.send = outgoing.put  # type: ignore[method-assign]
        self._get = incoming._next  # also ends when all producers have ended

    def recv(self) -> Any:
        try:
            return self._get()
        except (EndOfQueueError, ShutDown) as error:
            raise Closed("the peer has closed the connection or ended") from error

    def close(self) -> None:
        for one in (self._outgoing, self._incoming):
            with contextlib.suppress(CopylessError):
                one.shutdown()
                one.close()


# ---- over a socket


def _pickled(obj: object) -> tuple[bytes, list[memoryview]]:
    return packing.apart(obj, _BESIDE)


def _as_xml(obj: Any) -> tuple[bytes, list[memoryview]]:
    import xmlrpc.client

    return xmlrpc.client.dumps((obj,), allow_none=True).encode(), []


def _from_xml(data: bytearray, buffers: list[bytearray]) -> object:
    import xmlrpc.client

    (obj,), _ = xmlrpc.client.loads(data.decode(), use_builtin_types=True)
    return obj


_SERIALIZERS: dict[
    str, tuple[Callable[[Any], tuple[bytes, list[memoryview]]], Callable[[bytearray, list[bytearray]], object]]
] = {
    "pickle": (_pickled, loads),
    "xmlrpclib": (_as_xml, _from_xml),
}


def check_serializer(serializer: str) -> str:
    if serializer not in _SERIALIZERS:
        raise KeyError(f"there is no serializer {serializer!r}: use {', '.join(map(repr, _SERIALIZERS))}")
    return serializer


class SocketConnection(Connection):
    """A connection of packets on a socket."""

    shared = False

    def __init__(self, sock: socket.socket, limit: int = PACKET_LIMIT, serializer: str = "pickle") -> None:
        self._sock, self.limit = sock, limit
        self._dumps, self._loads = _SERIALIZERS[serializer]
        sock.settimeout(None)
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            _platform.expect_answers(sock, current().network_timeout)

    def send(self, obj: object) -> None:
        try:
            data, buffers = self._dumps(obj)
            self._check(data, buffers)
        except Exception as error:
            raise Unsendable(repr(error)) from error
        sizes = [buffer.nbytes for buffer in buffers]
        total = len(data) + sum(sizes)
        head = _HEAD.pack(_MAGIC, len(sizes), len(data), total) + struct.pack(f"<{len(sizes)}Q", *sizes)
        try:
            if total < _JOINED:
                self._sock.sendall(b"".join((head, data, *buffers)))
                return
            self._sock.sendall(head + data)
            for buffer in buffers:
                self._sock.sendall(buffer)
        except OSError as error:
            raise _ended(error) from error

    def _check(self, data: bytes, buffers: list[memoryview]) -> None:
        total = len(data) + sum(buffer.nbytes for buffer in buffers)
        if total > self.limit or len(buffers) > _BUFFERS:
            raise ValueError(
                f"an object of {total:,} bytes in {len(buffers):,} buffers is too large for one message (at most "
                f"{self.limit:,} bytes): send it in pieces, or raise the manager's frame_limit on both sides"
            )

    def recv(self) -> Any:
        try:
            data, buffers = self._packet(self.limit)
        except Broken:
            raise
        except OSError as error:
            raise _ended(error) from error
        return self._loads(data, buffers)

    def recv_within(self, limit: int, deadline: float) -> Any:
        """The next object, of at most `limit` bytes, before a deadline."""
        return self._loads(*self._packet(limit, deadline))

    def _packet(self, limit: int, deadline: float | None = None) -> tuple[bytearray, list[bytearray]]:
        magic, n, nbytes, total = _HEAD.unpack(read(self._sock, _HEAD.size, deadline))
        if magic != _MAGIC:
            raise Broken(f"the received bytes are not a packet of copyless: they begin with {magic!r}")
        if total > limit or n > _BUFFERS or nbytes > total or n * _BESIDE > total:
            raise Broken(
                f"a packet of {total:,} bytes in {n:,} buffers is too large: at most {limit:,} bytes are allowed "
                "(frame_limit of the manager)"
            )
        sizes = struct.unpack(f"<{n}Q", read(self._sock, 8 * n, deadline))
        if nbytes + sum(sizes) != total:
            raise Broken("the packet is damaged: its sizes contradict each other")
        try:
            return read(self._sock, nbytes, deadline), [read(self._sock, size, deadline) for size in sizes]
        except MemoryError:
            raise Broken(f"there is no memory for a packet of {total:,} bytes") from None

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()

    def is_cut(self) -> bool:
        fd = self._sock.fileno()
        return fd < 0 or _platform.is_hung_up(fd)


def _ended(error: OSError) -> Closed:
    if isinstance(error, (ConnectionResetError, BrokenPipeError)) or error.errno in (None, errno.EBADF):
        return Closed("the peer has closed the connection or ended")
    return Closed(f"the connection was cut: {error.strerror or error}")
