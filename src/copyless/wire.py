"""Connections between processes that hold the same key: what managers talk over.

    connect, [TLS], prove the key to each other, hello  ---->  same host: two queues in shared memory, the socket is closed
                                                         \\-->  otherwise: frames on the socket, buffers beside the pickle

Until the key is proven nothing has a length that the other side chose: each step is a fixed number of bytes, and all of
them together have `GRACE` seconds. Then every frame says its sizes first, and they are checked before anything is read.
The proof is HMAC-SHA256 over two random numbers, one from each side, and over who speaks: nothing of it can be replayed.

A frame is its head (magic, number of buffers, bytes of the pickle, bytes in all), the sizes of the buffers, the pickle,
the buffers. Between hosts the plain pickle module is used: a shared array goes by value, and what is only an address
raises `ForeignHostError` where it arrives.
"""

from __future__ import annotations

import contextlib
import hmac
import io
import itertools
import logging
import os
import pickle
import selectors
import socket
import struct
import threading
import time
from collections.abc import Callable
from multiprocessing import AuthenticationError
from typing import Any

from copyless.arrays import attach, handle
from copyless.errors import CopylessError, CorruptSegmentError, EndOfQueueError, OutOfSharedMemory
from copyless.queues import Queue, ShutDown

__all__ = ["FRAME_LIMIT", "GRACE", "Hello", "Line", "Listener", "accept", "connect"]

log = logging.getLogger("copyless.managers")

GRACE = 10.0  # seconds in which a connection must be proven
FRAME_LIMIT = 1 << 34  # bytes of a frame, all in all
_GREETING = b"copyless/wire/1\n"
_NONCE = 32
_REFUSED = bytes(32)
_HEAD = struct.Struct("<4sIQQ")
_MAGIC = b"CLfr"
_HELLO_LIMIT = 1 << 16
_BUFFERS = 1 << 20
_BESIDE = 1 << 14  # bytes from which a buffer goes beside its pickle
_HANDSHAKES = 128  # connections that may be proving themselves at once

Address = Any  # (host, port) for TCP, or the path of a Unix socket; one that begins with NUL has no file


class Closed(EOFError):
    """The other side has closed the connection, or ended."""


class Broken(CopylessError, ConnectionError):
    """What came is no frame, or a larger one than is allowed."""


class Unsendable(Exception):
    """Nothing was sent: the object could not be pickled, which its cause says."""


# ---- bytes on a socket


def _read_into(sock: socket.socket, view: memoryview, deadline: float | None = None) -> None:
    at = 0
    while at < len(view):
        if deadline is not None:
            sock.settimeout(max(deadline - time.monotonic(), 0.001))
        n = sock.recv_into(view[at:])
        if n == 0:
            raise Closed("the other side has closed the connection")
        at += n


def _read(sock: socket.socket, nbytes: int, deadline: float | None = None) -> bytearray:
    data = bytearray(nbytes)
    _read_into(sock, memoryview(data), deadline)
    return data


# ---- who holds the key


def _proof(key: bytes, speaker: bytes, first: bytes, second: bytes) -> bytes:
    return hmac.digest(key, speaker + first + second, "sha256")


def _prove_as_server(sock: socket.socket, key: bytes, deadline: float) -> None:
    mine = os.urandom(_NONCE)
    sock.settimeout(GRACE)
    sock.sendall(_GREETING + mine)
    answer = bytes(_read(sock, len(_GREETING) + _NONCE + 32, deadline))
    if not answer.startswith(_GREETING):
        raise AuthenticationError("it does not speak this protocol")
    theirs, proof = answer[len(_GREETING) : -32], answer[-32:]
    if not hmac.compare_digest(proof, _proof(key, b"client", mine, theirs)):
        with contextlib.suppress(OSError):
            sock.sendall(_REFUSED)
        raise AuthenticationError("it holds another key")
    sock.sendall(_proof(key, b"server", mine, theirs))


def _prove_as_client(sock: socket.socket, key: bytes, deadline: float) -> None:
    greeting = bytes(_read(sock, len(_GREETING) + _NONCE, deadline))
    if not greeting.startswith(_GREETING):
        raise AuthenticationError(
            f"what answers there is no manager of this version of copyless: it began with {greeting[:16]!r}"
        )
    theirs, mine = greeting[len(_GREETING) :], os.urandom(_NONCE)
    sock.sendall(_GREETING + mine + _proof(key, b"client", theirs, mine))
    try:
        answer = bytes(_read(sock, 32, deadline))
    except Closed:
        answer = _REFUSED
    if answer == _REFUSED:
        raise AuthenticationError("the manager's server refused the authkey: give both sides the same one")
    if not hmac.compare_digest(answer, _proof(key, b"server", theirs, mine)):
        raise AuthenticationError("what answers there does not hold the authkey")


# ---- lines: what messages travel on


class Line:
    """One side of a proven connection: `send` an object, `recv` one."""

    shared: bool  # whether it lies in shared memory: handles cross it

    def send(self, obj: Any) -> None:
        """What pickling raises, it raises, and nothing was sent."""
        raise NotImplementedError

    def recv(self) -> Any:
        """The next object. Closed (EOFError) when there is no other side any more; what unpickling raises, it raises."""
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError


class SharedLine(Line):
    """Two queues in shared memory."""

    shared = True

    def __init__(self, incoming: Any, outgoing: Any) -> None:
        self._incoming, self._outgoing = incoming, outgoing
        self.send = outgoing.put  # type: ignore[method-assign]
        self._get = incoming._next  # which ends, too, when all who put have ended well

    def recv(self) -> Any:
        try:
            return self._get()
        except (EndOfQueueError, ShutDown) as error:
            raise Closed("the other side has closed the connection, or ended") from error

    def close(self) -> None:
        for one in (self._outgoing, self._incoming):
            with contextlib.suppress(CopylessError):
                one.shutdown()
                one.close()


class SocketLine(Line):
    """Frames on a socket."""

    shared = False

    def __init__(self, sock: socket.socket, limit: int = FRAME_LIMIT, serializer: str = "pickle") -> None:
        self._sock, self.limit = sock, limit
        self._dumps, self._loads = _SERIALIZERS[serializer]
        sock.settimeout(None)
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # a host that is gone is noticed in the end

    def send(self, obj: Any) -> None:
        try:
            data, buffers = self._dumps(obj)
            self._check(data, buffers)
        except Exception as error:
            raise Unsendable from error
        sizes = [buffer.nbytes for buffer in buffers]
        total = len(data) + sum(sizes)
        head = _HEAD.pack(_MAGIC, len(sizes), len(data), total) + struct.pack(f"<{len(sizes)}Q", *sizes)
        if total < 1 << 16:
            self._sock.sendall(b"".join((head, data, *buffers)))
            return
        self._sock.sendall(head + data)
        for buffer in buffers:
            self._sock.sendall(buffer)

    def _check(self, data: Any, buffers: Any) -> None:
        total = len(data) + sum(buffer.nbytes for buffer in buffers)
        if total > self.limit or len(buffers) > _BUFFERS:
            raise ValueError(
                f"an object of {total:,} bytes in {len(buffers):,} buffers is more than a frame may have ({self.limit:,} "
                "bytes): send it in pieces, or raise the manager's frame_limit on both sides"
            )

    def recv(self) -> Any:
        return self._loads(*self._frame(self.limit))

    def _frame(self, limit: int, deadline: float | None = None) -> tuple[bytearray, list[bytearray]]:
        magic, n, nbytes, total = _HEAD.unpack(_read(self._sock, _HEAD.size, deadline))
        if magic != _MAGIC:
            raise Broken(f"what came is no frame: it began with {magic!r}")
        if total > limit or n > _BUFFERS or nbytes > total:
            raise Broken(f"a frame of {total:,} bytes in {n:,} buffers, where at most {limit:,} bytes are allowed")
        sizes = struct.unpack(f"<{n}Q", _read(self._sock, 8 * n, deadline))
        if nbytes + sum(sizes) != total:
            raise Broken("a frame whose sizes contradict each other")
        return _read(self._sock, nbytes, deadline), [_read(self._sock, size, deadline) for size in sizes]

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()


def _pickled(obj: Any) -> tuple[bytes, list[memoryview]]:
    buffers: list[memoryview] = []
    stream = io.BytesIO()

    def beside(buffer: pickle.PickleBuffer) -> bool:
        raw = buffer.raw()
        if raw.nbytes < _BESIDE:
            return True
        buffers.append(raw)
        return False

    pickle.Pickler(stream, 5, buffer_callback=beside).dump(obj)
    return stream.getvalue(), buffers


def _unpickled(data: bytearray, buffers: list[bytearray]) -> Any:
    return pickle.loads(data, buffers=buffers)


def _as_xml(obj: Any) -> tuple[bytes, list[memoryview]]:
    import xmlrpc.client

    return xmlrpc.client.dumps((obj,), allow_none=True).encode(), []


def _from_xml(data: bytearray, buffers: list[bytearray]) -> Any:
    import xmlrpc.client

    (obj,), _ = xmlrpc.client.loads(data.decode(), use_builtin_types=True)
    return obj


_SERIALIZERS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "pickle": (_pickled, _unpickled),
    "xmlrpclib": (_as_xml, _from_xml),
}


def check_serializer(serializer: str) -> str:
    if serializer not in _SERIALIZERS:
        raise KeyError(f"serializer {serializer!r}: there are {', '.join(map(repr, _SERIALIZERS))}")
    return serializer


# ---- hello: who calls, and whether both sides see the same shared memory


class Hello:
    """What a client says of itself, once: which of the user's processes it is, and what its line carries."""

    def __init__(self, session: bytes, serializer: str) -> None:
        self.session, self.serializer, self.pid = session, serializer, os.getpid()

    def __str__(self) -> str:
        return f"process {self.pid}"


def connect(
    address: Address,
    key: bytes,
    *,
    session: bytes = b"",
    serializer: str = "pickle",
    ssl_context: Any = None,
    limit: int = FRAME_LIMIT,
) -> Line:
    """A proven line to the server at an address.

    Raises
    ------
    AuthenticationError
        When it holds another key, or is no server of ours.
    ConnectionRefusedError, FileNotFoundError, TimeoutError
        When nobody answers there.
    """
    deadline = time.monotonic() + GRACE
    sock = _connected(address)
    try:
        if ssl_context is not None and _is_tcp(address):
            sock = ssl_context.wrap_socket(sock, server_hostname=address[0])
        _prove_as_client(sock, key, deadline)
        queues = _offer() if serializer == "pickle" else None
        offered = None if queues is None else tuple(bytes(handle(one)) for one in queues)
        hello = Hello(session, serializer)
        line = SocketLine(sock, limit)
        line.send((hello.session, hello.pid, hello.serializer, offered))
        taken = _unpickled(*line._frame(_HELLO_LIMIT, deadline))
        if not taken or queues is None:
            return SocketLine(sock, limit, serializer)
        sock.close()
        shared = SharedLine(queues[1], queues[0])
        shared.send("hello")  # who has put is missed when he dies
        queues[1].get(timeout=GRACE)
        return shared
    except BaseException:
        sock.close()
        raise


def _offer() -> tuple[Any, Any] | None:
    try:
        return Queue(), Queue()
    except (OutOfSharedMemory, CorruptSegmentError):
        return None


def accept(sock: socket.socket, key: bytes, ssl_context: Any = None, limit: int = FRAME_LIMIT) -> tuple[Line, Hello]:
    """The server's side of `connect`: the line, and who calls."""
    deadline = time.monotonic() + GRACE
    sock.settimeout(GRACE)
    if ssl_context is not None:
        sock = ssl_context.wrap_socket(sock, server_side=True)
    _prove_as_server(sock, key, deadline)
    line = SocketLine(sock, limit)
    session, pid, serializer, offered = _unpickled(*line._frame(_HELLO_LIMIT, deadline))
    hello = Hello(session, check_serializer(serializer))
    hello.pid = pid
    if offered is not None:
        try:
            incoming, outgoing = (attach(one) for one in offered)
        except (CopylessError, OSError):  # another host, another user, another directory
            offered = None
    line.send(offered is not None)
    if offered is None:
        return SocketLine(sock, limit, serializer), hello
    sock.close()
    shared = SharedLine(incoming, outgoing)
    incoming.get(timeout=GRACE)
    shared.send("hello")
    return shared, hello


# ---- addresses


_counter = itertools.count(1)


def _is_tcp(address: Address) -> bool:
    return isinstance(address, tuple)


def _family(address: Address) -> int:
    if not _is_tcp(address):
        return socket.AF_UNIX
    return socket.AF_INET6 if ":" in address[0] else socket.AF_INET


def _connected(address: Address) -> socket.socket:
    sock = socket.socket(_family(address), socket.SOCK_STREAM)
    try:
        sock.settimeout(GRACE)
        sock.connect(address)
        if not _is_tcp(address):
            _check_uid(sock, address)
    except OSError as error:
        sock.close()
        if isinstance(error, ConnectionRefusedError):
            raise ConnectionRefusedError(error.errno, f"nobody serves at {address!r}: has its manager ended?") from None
        raise
    except BaseException:
        sock.close()
        raise
    return sock


def _check_uid(sock: socket.socket, address: Address) -> None:
    """A name without a file belongs to whoever is first: make sure it is one of this user's processes, or root's."""
    if isinstance(address, str) and not address.startswith("\0"):
        return  # a file: its directory's permissions say who may
    _, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    if uid not in (0, os.geteuid()):
        raise AuthenticationError(f"the process that serves at {address!r} belongs to uid {uid}")


def peer_of(sock: socket.socket) -> int:
    """The process at the other end of a Unix socket."""
    pid: int = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
    return pid


def arbitrary_address() -> str:
    """A Unix socket without a file: nothing is left of it when its process is killed."""
    return f"\0copyless-{os.getpid()}-{next(_counter)}-{os.urandom(6).hex()}"


class Listener:
    """Listens at an address, and always at a nameless Unix socket too, which processes of this host prefer."""

    def __init__(self, address: Address = None, backlog: int = 128) -> None:
        self._sockets: list[socket.socket] = []
        self._path: str | None = None
        self.local = arbitrary_address()
        self.address = self.local
        try:
            self._listen(self.local, backlog)
            if address is not None:
                self.address = self._listen(address, backlog)
        except BaseException:
            self.close()
            raise

    def _listen(self, address: Address, backlog: int) -> Address:
        sock = socket.socket(_family(address), socket.SOCK_STREAM)
        self._sockets.append(sock)
        if _is_tcp(address):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(address)
        except OSError as error:
            if _is_tcp(address) or not _is_deserted(address):
                raise OSError(error.errno, f"{error.strerror}: {address!r}") from None
            os.unlink(address)  # its server was killed
            sock.bind(address)
        if not _is_tcp(address) and not str(address).startswith("\0"):
            self._path = address
        sock.listen(backlog)
        sock.setblocking(False)
        return sock.getsockname() if _is_tcp(address) else address

    def serve(self, welcome: Callable[[socket.socket, bool], Callable[[], None] | None], stop: threading.Event) -> None:
        """Give each connection to `welcome(socket, over TCP)` in a thread of its own, until `stop`; then what it returns."""
        turnstile = threading.BoundedSemaphore(_HANDSHAKES)

        def enter(sock: socket.socket, tcp: bool) -> None:
            try:
                then = welcome(sock, tcp)
            finally:
                turnstile.release()
            if then is not None:
                then()

        with selectors.DefaultSelector() as selector:
            try:
                for sock in self._sockets:
                    selector.register(sock, selectors.EVENT_READ)
            except (OSError, ValueError):
                return  # closed before it began
            while not stop.is_set():
                for key, _ in selector.select(0.5):
                    listener: Any = key.fileobj
                    try:
                        sock, peer = listener.accept()
                    except BlockingIOError:
                        continue
                    except OSError as error:
                        if listener.fileno() < 0:
                            return
                        log.warning("a connection could not be accepted: %s", error)
                        stop.wait(0.1)
                        continue
                    tcp = sock.family != socket.AF_UNIX
                    if not turnstile.acquire(timeout=0.2):
                        sock.close()
                        log.warning(
                            "a connection from %s was closed: %d others are proving themselves", peer, _HANDSHAKES
                        )
                        continue
                    try:
                        threading.Thread(target=enter, args=(sock, tcp), daemon=True).start()
                    except RuntimeError as error:  # no more threads
                        turnstile.release()
                        sock.close()
                        log.warning("a connection was closed: %s", error)

    def close(self) -> None:
        for sock in self._sockets:
            sock.close()
        if self._path is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path)
            self._path = None


def _is_deserted(address: str) -> bool:
    """Whether a socket's file is there and nobody serves it."""
    try:
        _connected(address).close()
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    return False
