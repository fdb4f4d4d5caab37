"""Sockets of managers: addresses, the user of the peer, and reading bytes before a deadline."""

from __future__ import annotations

import os
import socket
import time
from multiprocessing import AuthenticationError
from typing import Any

from copyless import _platform
from copyless._storage import sockets

__all__ = [
    "GRACE", "Address", "Closed", "Dropped", "Silent", "connected", "family", "has_file", "is_same_user", "is_tcp",
    "read",
    "read_into",
]  # fmt: skip

GRACE = 10.0  # seconds for the authentication of a connection

Address = Any  # (host, port) for TCP, or the path of a Unix socket; one that begins with NUL has no file


class Closed(EOFError):
    """The peer has closed the connection or ended."""


class Dropped(Closed):
    """The server closed the connection before it accepted or refused the key."""


class Silent(Closed):
    """The client closed the connection before it sent a byte."""


# ---- bytes


def read_into(sock: socket.socket, view: memoryview, deadline: float | None = None) -> None:
    at = 0
    while at < len(view):
        if deadline is not None:
            sock.settimeout(max(deadline - time.monotonic(), 0.001))
        n = sock.recv_into(view[at:])
        if n == 0:
            raise Closed("the peer has closed the connection")
        at += n


def read(sock: socket.socket, nbytes: int, deadline: float | None = None) -> bytearray:
    data = bytearray(nbytes)
    read_into(sock, memoryview(data), deadline)
    return data


# ---- addresses


def is_tcp(address: Address) -> bool:
    return isinstance(address, tuple)


def family(address: Address) -> int:
    if not is_tcp(address):
        return socket.AF_UNIX
    return socket.AF_INET6 if ":" in address[0] else socket.AF_INET


def has_file(address: Address) -> bool:
    return not is_tcp(address) and not _platform.has_no_file(str(address))


def connected(address: Address) -> socket.socket:
    """A socket that is connected to an address. A Unix socket without a file is accepted only if this user or root
    serves it.
    """
    sock = socket.socket(family(address), socket.SOCK_STREAM)
    try:
        sock.settimeout(GRACE)
        if has_file(address):
            sockets.connect(sock, address)
        else:
            sock.connect(address)
            if not is_tcp(address) and not is_same_user(sock, or_root=True):
                raise AuthenticationError(f"the process that listens at {address!r} belongs to another user")
    except OSError as error:
        sock.close()
        if isinstance(error, ConnectionRefusedError):
            raise ConnectionRefusedError(
                error.errno, f"no manager listens at {address!r}: has its server ended?"
            ) from None
        raise
    except BaseException:
        sock.close()
        raise
    return sock


# ---- the process of the peer


def is_same_user(sock: socket.socket, or_root: bool = False) -> bool:
    uid = _platform.credentials_of_peer(sock)[1]
    return uid == os.geteuid() or (or_root and uid == 0)
