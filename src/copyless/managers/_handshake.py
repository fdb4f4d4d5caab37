"""How a connection between a client and a manager's server begins: TLS, authentication, hello.

    connect, [TLS], authenticate each other, hello   ---->  same host: two queues in shared memory, the socket is closed
                                                      \\-->  otherwise: packets on the socket

Before authentication, no length comes from the peer: each step is a fixed number of bytes, and all steps together have
`GRACE` seconds. The proof is an HMAC-SHA256 over two random numbers, one from each side, and over the role of the
sender, so that nothing can be replayed. On the socket in the storage directory, which no other user can reach, a
process may prove instead that it belongs to this user: the kernel tells the owner of the process.
"""

from __future__ import annotations

import contextlib
import errno
import hmac
import os
import socket
import time
from collections.abc import Callable
from multiprocessing import AuthenticationError
from typing import TYPE_CHECKING, Any

from copyless._attach import attach, handle
from copyless.errors import CopylessError, CorruptSegmentError, OutOfSharedMemory
from copyless.managers import _endpoints
from copyless.managers._connection import (
    PACKET_LIMIT,
    Broken,
    Connection,
    SharedConnection,
    SocketConnection,
    Unsendable,
    check_serializer,
)
from copyless.managers._endpoints import Address, Closed, Dropped, Silent, connected, is_same_user, is_tcp, read
from copyless.managers._listener import Pending
from copyless.queues import Queue

if TYPE_CHECKING:
    import ssl

__all__ = ["Hello", "accept", "connect"]

_GREETING = b"copyless/wire/1\n"
_NONCE = 32
_REFUSED = bytes(32)
_WANTS_TLS = b"copyless/tls...\n" + bytes(_NONCE)  # instead of a greeting, to a client without TLS
_SAME_USER = b"a process of the same user"  # used instead of the key if the kernel confirms it
_HELLO_LIMIT = 1 << 16
_TRIES = 6  # attempts of a client that the server dropped before authentication


# ---- authentication


def _proof(key: bytes, speaker: bytes, first: bytes, second: bytes) -> bytes:
    return hmac.digest(key, speaker + first + second, "sha256")


def _prove_as_server(sock: socket.socket, keys: tuple[bytes, ...], deadline: float) -> bytes:
    """The key, of several possible ones, that the client has proven to have."""
    mine = os.urandom(_NONCE)
    sock.settimeout(_endpoints.GRACE)
    try:
        sock.sendall(_GREETING + mine)
        first = read(sock, 1, deadline)
    except (Closed, BrokenPipeError, ConnectionResetError) as error:  # the client only checked whether a server listens
        raise Silent(str(error)) from error
    answer = bytes(first + read(sock, len(_GREETING) + _NONCE + 31, deadline))
    if not answer.startswith(_GREETING):
        raise AuthenticationError("the client is not a copyless manager of this version")
    theirs, proof = answer[len(_GREETING) : -32], answer[-32:]
    for key in keys:
        if hmac.compare_digest(proof, _proof(key, b"client", mine, theirs)):
            sock.sendall(_proof(key, b"server", mine, theirs))
            return key
    with contextlib.suppress(OSError):
        sock.sendall(_REFUSED)
    raise AuthenticationError("the client has another authkey")


def _prove_as_client(sock: socket.socket, key: bytes, deadline: float) -> None:
    try:
        sock.sendall(_GREETING)  # at once: a server that expects TLS then recognises a client without it
        greeting = bytes(read(sock, len(_GREETING) + _NONCE, deadline))
        if greeting == _WANTS_TLS:
            raise AuthenticationError("the server uses TLS: give the manager ssl_context=")
        if not greeting.startswith(_GREETING):
            raise AuthenticationError(
                f"the server is not a copyless manager of this version: its first bytes are {greeting[:16]!r}"
            )
        theirs, mine = greeting[len(_GREETING) :], os.urandom(_NONCE)
        sock.sendall(mine + _proof(key, b"client", theirs, mine))
        answer = bytes(read(sock, 32, deadline))
    except (Closed, ConnectionResetError, BrokenPipeError) as error:
        raise Dropped(str(error)) from error
    except TimeoutError:
        raise TimeoutError(
            f"the server sent nothing for {_endpoints.GRACE:g} s: it is not a manager, or it is stopped"
        ) from None
    if answer == _REFUSED:
        raise AuthenticationError("the manager's server refused the authkey: give both sides the same one")
    if not hmac.compare_digest(answer, _proof(key, b"server", theirs, mine)):
        raise AuthenticationError("the server does not have the authkey: give both sides the same one")


# ---- hello: which process calls, and whether both sides see the same shared memory


class Hello:
    """What a client states once about itself: which of the user's processes it is, and which serializer it uses."""

    def __init__(self, session: bytes, serializer: str) -> None:
        self.session, self.serializer, self.pid = session, serializer, os.getpid()

    def __str__(self) -> str:
        return f"process {self.pid}"


def _hello_of(said: Any) -> tuple[Hello, tuple[bytes, bytes] | None]:
    """The checked hello: a client that has the key may still be of another version, or damaged."""
    session, pid, serializer, offered = said
    if type(session) is not bytes or type(pid) is not int or type(serializer) is not str:
        raise Broken("the first packet is not a hello")
    if offered is not None and (type(offered) is not tuple or [type(one) for one in offered] != [bytes, bytes]):
        raise Broken("the first packet is not a hello")
    hello = Hello(session, check_serializer(serializer))
    hello.pid = pid
    return hello, offered


# ---- the client's side


def connect(
    address: Address,
    key: bytes | None,
    *,
    session: bytes = b"",
    serializer: str = "pickle",
    ssl_context: ssl.SSLContext | None = None,
    limit: int = PACKET_LIMIT,
    learn: Callable[[bytes], None] | None = None,
) -> Connection:
    """An authenticated connection to the server at an address.

    Without a key, for an address in a storage directory: as a process of the same user; `learn` is called with the key.

    Raises
    ------
    AuthenticationError
        If the server has another key, or is not a server of copyless.
    ConnectionRefusedError, FileNotFoundError, TimeoutError
        If no server answers there.
    """
    deadline = time.monotonic() + _endpoints.GRACE
    for left in reversed(range(_TRIES)):
        sock = connected(address)
        try:
            if ssl_context is not None and is_tcp(address):
                sock = _as_tls_client(sock, ssl_context, address)
            if key is None and not is_same_user(sock):
                raise AuthenticationError(f"the process that listens at {address!r} belongs to another user")
            _prove_as_client(sock, _SAME_USER if key is None else key, deadline)
            return _introduced(sock, key, Hello(session, serializer), limit, deadline, learn)
        except Dropped as error:
            sock.close()
            if not left or time.monotonic() > deadline:
                raise ConnectionResetError(
                    errno.ECONNRESET,
                    f"the process that listens at {address!r} closed the connection {_TRIES - left} times before "
                    "authentication: it is not a manager, or too many connections without a key keep it busy",
                ) from error
        except BaseException:
            sock.close()
            raise
        time.sleep(0.01 * 2 ** (_TRIES - left) * (0.5 + os.urandom(1)[0] / 256))
    raise AssertionError


def _as_tls_client(sock: socket.socket, context: ssl.SSLContext, address: Address) -> socket.socket:
    import ssl

    try:
        return context.wrap_socket(sock, server_hostname=address[0])
    except ssl.SSLCertVerificationError:
        raise
    except ssl.SSLEOFError as error:  # dropped, as in `_prove_as_client`
        raise Dropped(str(error)) from error
    except ssl.SSLError as error:
        if error.reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG"):
            raise ssl.SSLError(
                error.errno,
                f"the server at {address!r} does not use TLS: leave out ssl_context=, or give it to both sides",
            ) from error
        raise
    except ConnectionResetError as error:
        raise Dropped(str(error)) from error


def _introduced(
    sock: socket.socket,
    key: bytes | None,
    hello: Hello,
    limit: int,
    deadline: float,
    learn: Callable[[bytes], None] | None,
) -> Connection:
    queues = _offer() if hello.serializer == "pickle" else None
    offered = None if queues is None else tuple(bytes(handle(one)) for one in queues)
    connection = SocketConnection(sock, limit)
    try:
        connection.send((hello.session, hello.pid, hello.serializer, offered))
    except Unsendable as error:  # no descriptor or memory was left to pickle the queues
        raise error.__cause__ or error from None
    taken = connection.recv_within(_HELLO_LIMIT, deadline)
    if key is None:
        taken, learned = taken
        if learn is not None:
            learn(learned)
    if not taken or queues is None:
        return SocketConnection(sock, limit, hello.serializer)
    sock.close()
    shared = SharedConnection(queues[1], queues[0])
    shared.send("hello")  # a queue reports the death only of producers that have put an item
    queues[1].get(timeout=_endpoints.GRACE)
    return shared


def _offer() -> tuple[Queue[Any], Queue[Any]] | None:
    try:
        return Queue(), Queue()
    except (OutOfSharedMemory, CorruptSegmentError):
        return None


# ---- the server's side


def accept(
    pending: Pending, key: bytes, ssl_context: ssl.SSLContext | None = None, limit: int = PACKET_LIMIT
) -> tuple[Connection, Hello]:
    """The server side of `connect`: the connection, and the hello of the client."""
    deadline = time.monotonic() + _endpoints.GRACE
    sock = pending.sock
    sock.settimeout(_endpoints.GRACE)
    if ssl_context is not None and pending.tcp:
        sock = _as_tls_server(pending, ssl_context)
    own = pending.private and is_same_user(sock)
    proven = _prove_as_server(sock, (key, _SAME_USER) if own else (key,), deadline)
    pending.done()
    connection = SocketConnection(sock, limit)
    hello, offered = _hello_of(connection.recv_within(_HELLO_LIMIT, deadline))
    if offered is not None:
        try:
            incoming, outgoing = (attach(one) for one in offered)
        except (CopylessError, OSError):  # another host, user or directory
            offered = None
    connection.send((offered is not None, bytes(key)) if own and proven is _SAME_USER else offered is not None)
    if offered is None:
        return SocketConnection(sock, limit, hello.serializer), hello
    sock.close()
    shared = SharedConnection(incoming, outgoing)
    incoming.get(timeout=_endpoints.GRACE)
    shared.send("hello")
    return shared, hello


def _as_tls_server(pending: Pending, context: ssl.SSLContext) -> socket.socket:
    import ssl

    sock = context.wrap_socket(pending.sock, server_side=True, do_handshake_on_connect=False)
    pending.sock = sock
    try:
        sock.do_handshake()
    except ssl.SSLError as error:
        if error.reason not in ("HTTP_REQUEST", "WRONG_VERSION_NUMBER"):
            raise
        pending.say(_WANTS_TLS)
        raise AuthenticationError("the client does not use TLS") from error
    return sock
