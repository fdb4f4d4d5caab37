"""Listening for clients of a manager: its sockets, and the connections that are not authenticated yet.

The number of such connections is limited. If there are more, the oldest is dropped, and its client tries again.
"""

from __future__ import annotations

import collections
import contextlib
import os
import selectors
import socket
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

from copyless._platform import credentials_of_peer
from copyless._storage import sockets, store
from copyless.errors import CopylessError
from copyless.managers import _endpoints
from copyless.managers._endpoints import Address, family, has_file, is_tcp
from copyless.managers._log import log

__all__ = ["Listener", "Pending", "Waiting"]

UNPROVEN = 128  # unauthenticated connections of one listening socket at a time
_LOOK_SECONDS = 0.5


class Pending:
    """A connection that is not authenticated yet."""

    def __init__(self, sock: socket.socket, private: bool, others: Waiting) -> None:
        self.sock, self.private, self._others = sock, private, others
        self.tcp = sock.family != socket.AF_UNIX
        self.since = time.monotonic()
        self.why = ""  # why it was dropped
        self._raw = sock.dup()  # the socket itself cannot be used once TLS wraps it
        try:
            self._peer: Any = sock.getpeername() if self.tcp else credentials_of_peer(sock)[0]
        except OSError:
            self._peer = None

    def __str__(self) -> str:
        if self._peer is None:
            return "a client that has ended"
        return "{}:{}".format(*self._peer) if self.tcp else f"pid {self._peer}"

    def say(self, what: bytes) -> None:
        """Send a last answer in plain bytes, bypassing TLS."""
        with contextlib.suppress(OSError):
            self._raw.sendall(what)
            self._raw.shutdown(socket.SHUT_WR)
            self._raw.settimeout(0.1)
            # closing with unread bytes would reset the connection, and the answer would be lost
            while self._raw.recv(4096):
                pass

    def drop(self, why: str) -> None:
        """End the connection. The thread that reads from it notices."""
        self.why = why
        with contextlib.suppress(OSError):
            self._raw.shutdown(socket.SHUT_RDWR)

    def done(self) -> None:
        """The connection is authenticated or has ended: stop counting it."""
        self._others.forget(self)
        self._raw.close()


class Waiting:
    """The pending connections of one listening socket, oldest first: at most `UNPROVEN`, each for at most `GRACE`
    seconds.
    """

    def __init__(self) -> None:
        self._all: collections.OrderedDict[Pending, None] = collections.OrderedDict()
        self._lock = threading.Lock()

    def add(self, pending: Pending) -> None:
        with self._lock:
            self._all[pending] = None
            if len(self._all) > UNPROVEN:
                self._all.popitem(last=False)[0].drop(f"{UNPROVEN} later connections are waiting for authentication")

    def forget(self, pending: Pending) -> None:
        with self._lock:
            self._all.pop(pending, None)

    def drop_late(self) -> None:
        before = time.monotonic() - _endpoints.GRACE
        with self._lock:
            while self._all and (oldest := next(iter(self._all))).since < before:
                del self._all[oldest]
                oldest.drop(f"it did not authenticate within {_endpoints.GRACE:g} s")

    def drop_oldest(self) -> None:
        with self._lock:
            if self._all:
                self._all.popitem(last=False)[0].drop("no descriptors are left")


class _ListeningSocket:
    """One listening socket, with its file and its pending connections."""

    def __init__(self, sock: socket.socket, file: sockets.ListeningFile | None = None, private: bool = False) -> None:
        self.sock, self.file, self.private = sock, file, private
        self.waiting = Waiting()
        sock.setblocking(False)

    def close(self) -> None:
        if self.file is not None:
            self.file.close()
        self.sock.close()


_listeners: weakref.WeakSet[Listener] = weakref.WeakSet()


class Listener:
    """Listens at an address, and on a socket in the storage directory too, which processes of this host and user
    prefer.

    `local` is the path of that socket; None if there is no storage directory and an address was given.
    """

    def __init__(self, address: Address = None, backlog: int = 1024) -> None:
        self._sockets: list[_ListeningSocket] = []
        self._backlog = backlog
        self._serves = False
        self.local: str | None = None
        self.address: Address
        try:
            if address is not None:
                self.address = self._listen(address)
            try:
                self.local = sockets.private_name(store.place())
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
        self._at_exit = weakref.finalize(self, _close_all, self._sockets)
        _listeners.add(self)

    def _listen(self, address: Address, private: bool = False) -> Address:
        if has_file(address):
            file = sockets.ListeningFile(address, self._backlog)
            self._sockets.append(_ListeningSocket(file.sock, file, private))
            return address
        sock = socket.socket(family(address), socket.SOCK_STREAM)
        self._sockets.append(_ListeningSocket(sock))
        if is_tcp(address):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(address)
        except OSError as error:
            raise OSError(error.errno, f"{error.strerror}: {address!r}") from None
        sock.listen(self._backlog)
        return sock.getsockname() if is_tcp(address) else address

    def serve(self, welcome: Callable[[Pending], Callable[[], None] | None], stop: threading.Event) -> None:
        """Give each connection to `welcome`, in a thread of its own, until `stop` is set; then call what `welcome`
        returned.
        """
        self._serves = True

        def run(pending: Pending) -> None:
            try:
                then = welcome(pending)
            finally:
                pending.done()
            if then is not None:
                then()

        with selectors.DefaultSelector() as selector:
            try:
                for listening in self._sockets:
                    selector.register(listening.sock, selectors.EVENT_READ, listening)
                    if listening.file is not None:
                        listening.file.take_over()
            except (OSError, ValueError):
                return  # closed before serving began
            look = time.monotonic() + _LOOK_SECONDS
            while not stop.is_set():
                for key, _ in selector.select(_LOOK_SECONDS):
                    if not self._accept(key.data, run, stop):
                        return
                if time.monotonic() >= look:
                    look = time.monotonic() + _LOOK_SECONDS
                    for listening in self._sockets:
                        listening.waiting.drop_late()
                    self._listen_again(selector)

    def _accept(self, listening: _ListeningSocket, run: Callable[[Pending], None], stop: threading.Event) -> bool:
        """Accept one connection and start its thread. False: the listener was closed."""
        try:
            sock, _ = listening.sock.accept()
            pending = Pending(sock, listening.private, listening.waiting)
        except (BlockingIOError, ConnectionAbortedError):
            return True
        except OSError as error:
            if listening.sock.fileno() < 0:
                return False
            log.warning("a connection could not be accepted: %s", error)
            for other in self._sockets:
                other.waiting.drop_oldest()
            stop.wait(0.1)
            return True
        listening.waiting.add(pending)
        try:
            threading.Thread(target=run, args=(pending,), daemon=True).start()
        except RuntimeError as error:  # no more threads can be started
            pending.done()
            sock.close()
            log.warning("a connection was closed: %s", error)
        return True

    def _listen_again(self, selector: selectors.BaseSelector) -> None:
        """Listen again under the same name if the storage directory was removed, as systemd does at logout."""
        for listening in list(self._sockets):
            if not listening.private or listening.file is None or listening.file.is_there():
                continue
            with contextlib.suppress(OSError, KeyError, ValueError):
                with contextlib.suppress(FileExistsError):
                    os.mkdir(os.path.dirname(listening.file.path), 0o700)
                if not sockets.is_of_ours(listening.file.path):
                    continue
                file = sockets.ListeningFile(listening.file.path, self._backlog)
                again = _ListeningSocket(file.sock, file, True)
                selector.register(again.sock, selectors.EVENT_READ, again)
                self._sockets.append(again)
                selector.unregister(listening.sock)
                self._sockets.remove(listening)
                listening.close()

    def close(self) -> None:
        _close_all(self._sockets)

    def _in_fork(self) -> None:
        """In a worker that the server forked: close the addresses, so that they are free when the server has ended."""
        if self._serves:
            for listening in self._sockets:
                listening.sock.close()


def _close_all(listening: list[_ListeningSocket]) -> None:
    for one in listening:
        one.close()


def _close_in_fork() -> None:
    for listener in list(_listeners):
        listener._in_fork()


os.register_at_fork(after_in_child=_close_in_fork)
