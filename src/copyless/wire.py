"""Connections between processes that hold the same key: what managers talk over.

    connect, [TLS], prove the key to each other, hello  ---->  same host: two queues in shared memory, the socket is closed
                                                         \\-->  otherwise: frames on the socket, buffers beside the pickle

Until the key is proven nothing has a length that the other side chose: each step is a fixed number of bytes, and all of
them together have `GRACE` seconds. Of those that have not proven it, so many may wait at once; when there are more, the one
that came first is dropped, and a client that was dropped tries again. On the socket in the storage directory, which no other
user can reach, a process of this user may say instead that it is one: the kernel tells whose it is. Then every frame says its sizes first, and they are checked before anything is read.
The proof is HMAC-SHA256 over two random numbers, one from each side, and over who speaks: nothing of it can be replayed.

A frame is its head (magic, number of buffers, bytes of the pickle, bytes in all), the sizes of the buffers, the pickle,
the buffers. Between hosts the plain pickle module is used: a shared array goes by value, and what is only an address
raises `ForeignHostError` where it arrives.
"""

from __future__ import annotations

import collections
import contextlib
import errno
import hmac
import logging
import os
import select
import selectors
import socket
import struct
import threading
import time
import weakref
from collections.abc import Callable
from multiprocessing import AuthenticationError
from typing import Any

from copyless import pickling
from copyless._core._pickles import loads
from copyless.arrays import attach, handle
from copyless.errors import CopylessError, CorruptSegmentError, EndOfQueueError, OutOfSharedMemory
from copyless.queues import Queue, ShutDown
from copyless.storage import sockets
from copyless.storage.settings import current

__all__ = ["FRAME_LIMIT", "GRACE", "Entrant", "Hello", "Line", "Listener", "accept", "connect"]

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
_UNPROVEN = 128  # connections of one listening socket that may be proving themselves at once
_TRIES = 6  # of a client that the server dropped before it could prove itself
_LOOK_SECONDS = 0.5
_WANTS_TLS = b"copyless/tls...\n" + bytes(_NONCE)  # in the place of a greeting, to a client without TLS
_SAME_USER = b"a process of the same user"  # proven in the place of the key where the kernel says so

Address = Any  # (host, port) for TCP, or the path of a Unix socket; one that begins with NUL has no file


class _Bounded(logging.Filter):
    """Whoever can connect can make a line of the log: some at once, then one a second, none of them long."""

    BURST, LONGEST = 100, 500

    def __init__(self) -> None:
        super().__init__()
        self._tokens, self._at, self._left_out = float(self.BURST), time.monotonic(), 0
        self._lock = threading.Lock()

    def filter(self, record: logging.LogRecord) -> bool:
        with self._lock:
            now = time.monotonic()
            self._tokens, self._at = min(self.BURST, self._tokens + now - self._at), now
            if self._tokens < 1:
                self._left_out += 1
                return False
            self._tokens -= 1
            left_out, self._left_out = self._left_out, 0
        text = record.getMessage()
        if len(text) > self.LONGEST:
            text = text[: self.LONGEST] + "..."
        if left_out:
            text += f" ({left_out:,} lines before this one were left out)"
        record.msg, record.args = text, ()
        return True


log.addFilter(_Bounded())


class Closed(EOFError):
    """The other side has closed the connection, or ended."""


class _Dropped(Closed):
    """It was closed before anything was proven or refused."""


class Silent(Closed):
    """It was closed before a byte came."""


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


def _prove_as_server(sock: socket.socket, keys: tuple[bytes, ...], deadline: float) -> bytes:
    """Which of the keys the client has proven to hold."""
    mine = os.urandom(_NONCE)
    sock.settimeout(GRACE)
    try:
        sock.sendall(_GREETING + mine)
        first = _read(sock, 1, deadline)
    except (Closed, BrokenPipeError, ConnectionResetError) as error:  # it only wanted to know whether somebody listens
        raise Silent(str(error)) from error
    answer = bytes(first + _read(sock, len(_GREETING) + _NONCE + 31, deadline))
    if not answer.startswith(_GREETING):
        raise AuthenticationError("it does not speak this protocol")
    theirs, proof = answer[len(_GREETING) : -32], answer[-32:]
    for key in keys:
        if hmac.compare_digest(proof, _proof(key, b"client", mine, theirs)):
            sock.sendall(_proof(key, b"server", mine, theirs))
            return key
    with contextlib.suppress(OSError):
        sock.sendall(_REFUSED)
    raise AuthenticationError("it holds another key")


def _prove_as_client(sock: socket.socket, key: bytes, deadline: float) -> None:
    try:
        sock.sendall(_GREETING)  # at once: a server that expects TLS then sees that this is none
        greeting = bytes(_read(sock, len(_GREETING) + _NONCE, deadline))
        if greeting == _WANTS_TLS:
            raise AuthenticationError("the server there speaks TLS: give the manager ssl_context=")
        if not greeting.startswith(_GREETING):
            raise AuthenticationError(
                f"what answers there is no manager of this version of copyless: it began with {greeting[:16]!r}"
            )
        theirs, mine = greeting[len(_GREETING) :], os.urandom(_NONCE)
        sock.sendall(mine + _proof(key, b"client", theirs, mine))
        answer = bytes(_read(sock, 32, deadline))
    except (Closed, ConnectionResetError, BrokenPipeError) as error:
        raise _Dropped(str(error)) from error
    except TimeoutError:
        raise TimeoutError(f"what answers there says nothing in {GRACE:g} s: it is no manager, or is stopped") from None
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

    def is_cut(self) -> bool:
        """Whether it is known by now that the other side is gone; `recv` and `send` tell more."""
        return False


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
            _expect_answers(sock, current().network_timeout)

    def send(self, obj: Any) -> None:
        try:
            data, buffers = self._dumps(obj)
            self._check(data, buffers)
        except Exception as error:
            raise Unsendable from error
        sizes = [buffer.nbytes for buffer in buffers]
        total = len(data) + sum(sizes)
        head = _HEAD.pack(_MAGIC, len(sizes), len(data), total) + struct.pack(f"<{len(sizes)}Q", *sizes)
        try:
            if total < 1 << 16:
                self._sock.sendall(b"".join((head, data, *buffers)))
                return
            self._sock.sendall(head + data)
            for buffer in buffers:
                self._sock.sendall(buffer)
        except OSError as error:
            raise _ended(error) from error

    def _check(self, data: Any, buffers: Any) -> None:
        total = len(data) + sum(buffer.nbytes for buffer in buffers)
        if total > self.limit or len(buffers) > _BUFFERS:
            raise ValueError(
                f"an object of {total:,} bytes in {len(buffers):,} buffers is more than a frame may have ({self.limit:,} "
                "bytes): send it in pieces, or raise the manager's frame_limit on both sides"
            )

    def recv(self) -> Any:
        try:
            data, buffers = self._frame(self.limit)
        except Broken:
            raise
        except OSError as error:
            raise _ended(error) from error
        return self._loads(data, buffers)

    def _frame(self, limit: int, deadline: float | None = None) -> tuple[bytearray, list[bytearray]]:
        magic, n, nbytes, total = _HEAD.unpack(_read(self._sock, _HEAD.size, deadline))
        if magic != _MAGIC:
            raise Broken(f"what came is no frame: it began with {magic!r}")
        if total > limit or n > _BUFFERS or nbytes > total or n * _BESIDE > total:
            raise Broken(f"a frame of {total:,} bytes in {n:,} buffers, where at most {limit:,} bytes are allowed")
        sizes = struct.unpack(f"<{n}Q", _read(self._sock, 8 * n, deadline))
        if nbytes + sum(sizes) != total:
            raise Broken("a frame whose sizes contradict each other")
        try:
            return _read(self._sock, nbytes, deadline), [_read(self._sock, size, deadline) for size in sizes]
        except MemoryError:
            raise Broken(f"there is no memory for a frame of {total:,} bytes") from None

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()

    def is_cut(self) -> bool:
        fd = self._sock.fileno()
        if fd < 0:
            return True
        waiting = select.poll()
        waiting.register(fd, select.POLLRDHUP)
        return bool(waiting.poll(0))


def _expect_answers(sock: socket.socket, seconds: float) -> None:
    """End the connection when the other side's kernel has said nothing for so long, whether or not something is on its way."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if not seconds:
        return
    # A probe after a third of the time, and then so often that some may be lost.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, min(max(int(seconds / 3), 1), 32767))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, min(max(int(seconds / 6), 1), 32767))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, min(max(int(seconds * 1000), 1), (1 << 31) - 1))


def _ended(error: OSError) -> Closed:
    if isinstance(error, (ConnectionResetError, BrokenPipeError)) or error.errno in (None, errno.EBADF):
        return Closed("the other side has closed the connection, or ended")
    return Closed(f"the connection was cut: {error.strerror or error}")


def _pickled(obj: Any) -> tuple[bytes, list[memoryview]]:
    return pickling.apart(obj, _BESIDE)


def _unpickled(data: bytearray, buffers: list[bytearray]) -> Any:
    return loads(data, buffers)


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
    key: bytes | None,
    *,
    session: bytes = b"",
    serializer: str = "pickle",
    ssl_context: Any = None,
    limit: int = FRAME_LIMIT,
    learn: Callable[[bytes], None] | None = None,
) -> Line:
    """A proven line to the server at an address.

    Without a key, for an address in a storage directory: as a process of the same user, and `learn` is given the key.

    Raises
    ------
    AuthenticationError
        When it holds another key, or is no server of ours.
    ConnectionRefusedError, FileNotFoundError, TimeoutError
        When nobody answers there.
    """
    deadline = time.monotonic() + GRACE
    for left in reversed(range(_TRIES)):
        sock = _connected(address)
        try:
            if ssl_context is not None and _is_tcp(address):
                sock = _as_tls_client(sock, ssl_context, address)
            if key is None and not _is_same_user(sock):
                raise AuthenticationError(f"the process that serves at {address!r} is another user's")
            _prove_as_client(sock, _SAME_USER if key is None else key, deadline)
            return _introduced(sock, key, Hello(session, serializer), limit, deadline, learn)
        except _Dropped as error:
            sock.close()
            if not left or time.monotonic() > deadline:
                raise ConnectionResetError(
                    errno.ECONNRESET,
                    f"what answers at {address!r} closed the connection {_TRIES - left} times before a key could be proven: "
                    "it is no manager, or others hold it up with connections that prove nothing",
                ) from error
        except BaseException:
            sock.close()
            raise
        time.sleep(0.01 * 2 ** (_TRIES - left) * (0.5 + os.urandom(1)[0] / 256))
    raise AssertionError


def _as_tls_client(sock: socket.socket, context: Any, address: Address) -> socket.socket:
    import ssl

    try:
        secured: socket.socket = context.wrap_socket(sock, server_hostname=address[0])
        return secured
    except ssl.SSLCertVerificationError:
        raise
    except ssl.SSLEOFError as error:  # dropped, as `_prove_as_client` may be
        raise _Dropped(str(error)) from error
    except ssl.SSLError as error:
        if error.reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG"):
            raise ssl.SSLError(
                error.errno, f"the server at {address!r} does not speak TLS: leave out ssl_context=, or give it to both sides"
            ) from error
        raise
    except ConnectionResetError as error:
        raise _Dropped(str(error)) from error


def _introduced(
    sock: socket.socket, key: bytes | None, hello: Hello, limit: int, deadline: float, learn: Callable[[bytes], None] | None
) -> Line:
    queues = _offer() if hello.serializer == "pickle" else None
    offered = None if queues is None else tuple(bytes(handle(one)) for one in queues)
    line = SocketLine(sock, limit)
    line.send((hello.session, hello.pid, hello.serializer, offered))
    taken = _unpickled(*line._frame(_HELLO_LIMIT, deadline))
    if key is None:
        taken, learned = taken
        if learn is not None:
            learn(learned)
    if not taken or queues is None:
        return SocketLine(sock, limit, hello.serializer)
    sock.close()
    shared = SharedLine(queues[1], queues[0])
    shared.send("hello")  # who has put is missed when he dies
    queues[1].get(timeout=GRACE)
    return shared


def _offer() -> tuple[Any, Any] | None:
    try:
        return Queue(), Queue()
    except (OutOfSharedMemory, CorruptSegmentError):
        return None


def accept(entrant: Entrant, key: bytes, ssl_context: Any = None, limit: int = FRAME_LIMIT) -> tuple[Line, Hello]:
    """The server's side of `connect`: the line, and who calls."""
    deadline = time.monotonic() + GRACE
    sock = entrant.sock
    sock.settimeout(GRACE)
    if ssl_context is not None and entrant.tcp:
        sock = _as_tls_server(entrant, ssl_context)
    own = entrant.private and _is_same_user(sock)
    proven = _prove_as_server(sock, (key, _SAME_USER) if own else (key,), deadline)
    entrant.proved()
    line = SocketLine(sock, limit)
    hello, offered = _hello_of(_unpickled(*line._frame(_HELLO_LIMIT, deadline)))
    if offered is not None:
        try:
            incoming, outgoing = (attach(one) for one in offered)
        except (CopylessError, OSError):  # another host, another user, another directory
            offered = None
    line.send((offered is not None, bytes(key)) if own and proven is _SAME_USER else offered is not None)
    if offered is None:
        return SocketLine(sock, limit, hello.serializer), hello
    sock.close()
    shared = SharedLine(incoming, outgoing)
    incoming.get(timeout=GRACE)
    shared.send("hello")
    return shared, hello


def _as_tls_server(entrant: Entrant, context: Any) -> socket.socket:
    import ssl

    sock: socket.socket = context.wrap_socket(entrant.sock, server_side=True, do_handshake_on_connect=False)
    entrant.sock = sock
    try:
        sock.do_handshake()  # type: ignore[attr-defined]
    except ssl.SSLError as error:
        if error.reason not in ("HTTP_REQUEST", "WRONG_VERSION_NUMBER"):
            raise
        entrant.say(_WANTS_TLS)
        raise AuthenticationError("it speaks no TLS") from error
    return sock


def _hello_of(said: Any) -> tuple[Hello, Any]:
    """Checked: whoever holds the key may still be of another version, or broken."""
    session, pid, serializer, offered = said
    if type(session) is not bytes or type(pid) is not int or type(serializer) is not str:
        raise Broken("what came is no hello")
    if offered is not None and (type(offered) is not tuple or [type(one) for one in offered] != [bytes, bytes]):
        raise Broken("what came is no hello")
    hello = Hello(session, check_serializer(serializer))
    hello.pid = pid
    return hello, offered


# ---- addresses


def _is_tcp(address: Address) -> bool:
    return isinstance(address, tuple)


def _family(address: Address) -> int:
    if not _is_tcp(address):
        return socket.AF_UNIX
    return socket.AF_INET6 if ":" in address[0] else socket.AF_INET


def _has_file(address: Address) -> bool:
    return not _is_tcp(address) and not str(address).startswith("\0")


def _connected(address: Address) -> socket.socket:
    sock = socket.socket(_family(address), socket.SOCK_STREAM)
    try:
        sock.settimeout(GRACE)
        if _has_file(address):
            sockets.connect(sock, address)
        else:
            sock.connect(address)
            if not _is_tcp(address) and not _is_same_user(sock, or_root=True):
                raise AuthenticationError(f"the process that serves at {address!r} is another user's")
    except OSError as error:
        sock.close()
        if isinstance(error, ConnectionRefusedError):
            raise ConnectionRefusedError(error.errno, f"nobody serves at {address!r}: has its manager ended?") from None
        raise
    except BaseException:
        sock.close()
        raise
    return sock


def _credentials(sock: socket.socket) -> tuple[int, int]:
    """(pid, uid) of who connected or, seen from there, who listens."""
    pid, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return pid, uid


def _is_same_user(sock: socket.socket, or_root: bool = False) -> bool:
    uid = _credentials(sock)[1]
    return uid == os.geteuid() or (or_root and uid == 0)


class Entrant:
    """A connection that has not proven the key yet."""

    def __init__(self, sock: socket.socket, private: bool, others: _Entrants) -> None:
        self.sock, self.private, self._others = sock, private, others
        self.tcp = sock.family != socket.AF_UNIX
        self.since = time.monotonic()
        self.why = ""  # it was dropped
        self._raw = sock.dup()  # what TLS is wrapped around goes out of reach
        try:
            self._peer: Any = sock.getpeername() if self.tcp else _credentials(sock)[0]
        except OSError:
            self._peer = None

    def __str__(self) -> str:
        if self._peer is None:
            return "a client that is gone"
        return "{}:{}".format(*self._peer) if self.tcp else f"pid {self._peer}"

    def say(self, what: bytes) -> None:
        """Something that goes around TLS, before the end."""
        with contextlib.suppress(OSError):
            self._raw.sendall(what)
            self._raw.shutdown(socket.SHUT_WR)
            self._raw.settimeout(0.1)
            while self._raw.recv(4096):  # bytes that nobody read would take it back
                pass

    def drop(self, why: str) -> None:
        """Whoever reads from it finds its end."""
        self.why = why
        with contextlib.suppress(OSError):
            self._raw.shutdown(socket.SHUT_RDWR)

    def proved(self) -> None:
        """It has, or has ended."""
        self._others.forget(self)
        self._raw.close()


class _Entrants:
    """Those of one listening socket, in the order in which they came: at most `_UNPROVEN`, for at most `GRACE` seconds."""

    def __init__(self) -> None:
        self._all: collections.OrderedDict[Entrant, None] = collections.OrderedDict()
        self._lock = threading.Lock()

    def add(self, entrant: Entrant) -> None:
        with self._lock:
            self._all[entrant] = None
            if len(self._all) > _UNPROVEN:
                self._all.popitem(last=False)[0].drop(f"{_UNPROVEN} others that came later prove themselves")

    def forget(self, entrant: Entrant) -> None:
        with self._lock:
            self._all.pop(entrant, None)

    def drop_late(self, before: float) -> None:
        with self._lock:
            while self._all and (oldest := next(iter(self._all))).since < before:
                del self._all[oldest]
                oldest.drop(f"it proved nothing in {GRACE:g} s")

    def drop_oldest(self) -> None:
        with self._lock:
            if self._all:
                self._all.popitem(last=False)[0].drop("there are no descriptors left")


class _Door:
    """A socket that listens."""

    def __init__(self, sock: socket.socket, file: sockets.ListeningFile | None = None, private: bool = False) -> None:
        self.sock, self.file, self.private = sock, file, private
        self.entrants = _Entrants()
        sock.setblocking(False)

    def close(self) -> None:
        if self.file is not None:
            self.file.close()
        self.sock.close()


_listeners: weakref.WeakSet[Listener] = weakref.WeakSet()


class Listener:
    """Listens at an address, and at a socket in the storage directory too, which processes of this host and user prefer.

    `local` is that socket's path; None when there is no storage directory and an address was given.
    """

    def __init__(self, address: Address = None, backlog: int = 1024) -> None:
        self._doors: list[_Door] = []
        self._backlog = backlog
        self._serves = False
        self.local: str | None = None
        try:
            if address is not None:
                self.address = self._listen(address)
            try:
                self.local = sockets.private_name()
                self._listen(self.local, private=True)
            except (CopylessError, OSError):
                self.local = None
                if address is None:
                    raise
        except BaseException:
            self.close()
            raise
        if address is None:
            self.address = self.local
        self._at_exit = weakref.finalize(self, _close_doors, self._doors)
        _listeners.add(self)

    def _listen(self, address: Address, private: bool = False) -> Address:
        if _has_file(address):
            file = sockets.ListeningFile(address, self._backlog)
            self._doors.append(_Door(file.sock, file, private))
            return address
        sock = socket.socket(_family(address), socket.SOCK_STREAM)
        self._doors.append(_Door(sock))
        if _is_tcp(address):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(address)
        except OSError as error:
            raise OSError(error.errno, f"{error.strerror}: {address!r}") from None
        sock.listen(self._backlog)
        return sock.getsockname() if _is_tcp(address) else address

    def serve(self, welcome: Callable[[Entrant], Callable[[], None] | None], stop: threading.Event) -> None:
        """Give each connection to `welcome` in a thread of its own, until `stop`; then what it returns."""
        self._serves = True

        def enter(entrant: Entrant) -> None:
            try:
                then = welcome(entrant)
            finally:
                entrant.proved()
            if then is not None:
                then()

        with selectors.DefaultSelector() as selector:
            try:
                for door in self._doors:
                    selector.register(door.sock, selectors.EVENT_READ, door)
                    if door.file is not None:
                        door.file.adopt()
            except (OSError, ValueError):
                return  # closed before it began
            look = time.monotonic() + _LOOK_SECONDS
            while not stop.is_set():
                for key, _ in selector.select(_LOOK_SECONDS):
                    door = key.data
                    try:
                        sock, _ = door.sock.accept()
                        entrant = Entrant(sock, door.private, door.entrants)
                    except (BlockingIOError, ConnectionAbortedError):
                        continue
                    except OSError as error:
                        if door.sock.fileno() < 0:
                            return
                        log.warning("a connection could not be accepted: %s", error)
                        for other in self._doors:
                            other.entrants.drop_oldest()
                        stop.wait(0.1)
                        continue
                    door.entrants.add(entrant)
                    try:
                        threading.Thread(target=enter, args=(entrant,), daemon=True).start()
                    except RuntimeError as error:  # no more threads
                        entrant.proved()
                        sock.close()
                        log.warning("a connection was closed: %s", error)
                now = time.monotonic()
                if now >= look:
                    look = now + _LOOK_SECONDS
                    for door in self._doors:
                        door.entrants.drop_late(now - GRACE)
                    self._mend(selector)

    def _mend(self, selector: selectors.BaseSelector) -> None:
        """Listen anew under the same name when the storage directory was removed, as systemd does at logout."""
        for door in list(self._doors):
            if not door.private or door.file is None or door.file.is_there():
                continue
            with contextlib.suppress(OSError, KeyError, ValueError):
                with contextlib.suppress(FileExistsError):
                    os.mkdir(os.path.dirname(door.file.path), 0o700)
                if not sockets.is_of_ours(door.file.path):
                    continue
                file = sockets.ListeningFile(door.file.path, self._backlog)
                again = _Door(file.sock, file, True)
                selector.register(again.sock, selectors.EVENT_READ, again)
                self._doors.append(again)
                selector.unregister(door.sock)
                self._doors.remove(door)
                door.close()

    def close(self) -> None:
        _close_doors(self._doors)

    def _in_fork(self) -> None:
        """A worker that the server forked must not keep its addresses busy when the server is gone."""
        if self._serves:
            for door in self._doors:
                door.sock.close()


def _close_doors(doors: list[_Door]) -> None:
    for door in doors:
        door.close()


def _close_in_fork() -> None:
    for listener in list(_listeners):
        listener._in_fork()


os.register_at_fork(after_in_child=_close_in_fork)
