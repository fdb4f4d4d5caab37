"""Links: the connections of this process to one server, one for each thread that calls it."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import AuthenticationError, util
from typing import TYPE_CHECKING, Any

from copyless.errors import ClosedError, LimitExceededError, ServerEndedError
from copyless.managers._connection import PACKET_LIMIT, Connection, Unsendable
from copyless.managers._endpoints import Address, Closed
from copyless.managers._handshake import connect
from copyless.managers._protocol import ONE_WAY, RETURN, UNKNOWN, Token, error_of

if TYPE_CHECKING:
    import ssl

__all__ = ["Link"]


class _OfThread:
    """The connection of one thread. When the thread ends, another thread may use it."""

    __slots__ = ("__weakref__", "busy", "connection", "idle")

    def __init__(self, idle: list[Connection]) -> None:
        self.connection: Connection | None = None
        self.busy = False
        self.idle = idle

    def __del__(self) -> None:
        if self.connection is not None:
            self.idle.append(self.connection)


def _is_short(error: BaseException) -> bool:
    """Whether an error means that this process is short of something now, and says nothing about the server."""
    return isinstance(error, (MemoryError, LimitExceededError)) or getattr(error, "errno", None) in _SHORT


_SHORT = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.ENOSPC)


def _disown(connection: Connection, number: int) -> None:
    """Tell the server that the answer to a request was not had: what it refers to for us by that, we do not know."""
    with contextlib.suppress(Exception):
        connection.send((0, ONE_WAY, "disown", (number,), {}))


class _CallFailed(Exception):
    """The call failed; the connection is still usable."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


_links: weakref.WeakValueDictionary[tuple[object, str], Link] = (
    weakref.WeakValueDictionary()
)  # by address and serializer
_all_links: weakref.WeakSet[Link] = weakref.WeakSet()


def _before_fork() -> None:
    for link in list(_all_links):
        link._before_fork()


os.register_at_fork(before=_before_fork)


class Link:
    """The connections of this process to one server."""

    def __init__(
        self,
        address: object,
        key: bytes | None,
        serializer: str = "pickle",
        local: str | None = None,
        ssl_context: ssl.SSLContext | None = None,
        limit: int = PACKET_LIMIT,
    ) -> None:
        self.address, self.serializer, self.local = address, serializer, local
        self.key = (
            None if key is None else bytes(key)
        )  # None: the first connection learns it, as a process of the same user
        self.ssl_context, self.limit = ssl_context, limit
        self.live = 0  # proxies that exist
        self.credit: set[str] = set()  # references that the server has counted for proxies that are about to be made
        self.loans: dict[str, bytes] = {}  # references that it has counted for a message that is being loaded
        self._numbers = itertools.count(1)
        self._begin()
        _all_links.add(self)
        util.register_after_fork(self, Link._forked)

    # ---- one for each server

    @staticmethod
    def to(address: Address, key: bytes, serializer: str, local: str | None = None, **more: Any) -> Link:
        """The link of this process to an address; made if there is none."""
        link = _links.get((address, serializer))
        if link is None or (link.key is not None and link.key != bytes(key)):
            link = Link(address, key, serializer, local, **more)
            link.enlist()
        elif link.local is None:
            link.local = local
        return link

    def enlist(self) -> None:
        """Become the link that proxies with this address use."""
        _links[self.address, self.serializer] = self

    @staticmethod
    def key_of(address: object, serializer: str) -> bytes | None:
        link = _links.get((address, serializer))
        return None if link is None else link.key

    @staticmethod
    def of_message(token: Token, serializer: str) -> Link | None:
        """The link for a proxy that arrived without its server's key: the key is learned over the server's private
        socket.

        A key is never part of a message. None if that socket cannot be reached: from another host, user or container.
        """
        if token.local is None or not token.local.startswith("/"):
            return None
        link = Link(token.address, None, serializer, token.local)
        try:
            link._idle.append(link.connect())
        except (AuthenticationError, OSError, EOFError) as error:
            if _is_short(error):
                raise
            return None
        link.enlist()
        return link

    # ---- forks

    def _begin(self) -> None:
        self._pid = os.getpid()
        self.session = os.urandom(16)
        self._mine = threading.local()
        self._idle: list[Connection] = []
        self._fork_reference = b""  # the name under which the server keeps references for a child
        self._dropped: deque[str] = deque()

    def _before_fork(self) -> None:
        """Ask the server to keep all references of this process for a child, whatever the parent does meanwhile."""
        if (
            self.live and self._pid != os.getpid()
        ):  # a forked child forks before its first call: the references kept for it are for one process only
            self._forked()
        if self.live:
            self._fork_reference = os.urandom(8)
            with contextlib.suppress(Exception):  # the server may have ended
                self.tell("keep_for_fork", self._fork_reference) or self.ask("keep_for_fork", self._fork_reference)

    def _forked(self) -> None:
        """In a forked child: the connections belong to the parent, and the inherited proxies get references of their
        own.
        """
        if self._pid == os.getpid():
            return
        reference = self._fork_reference
        self._begin()
        if self.live:
            with contextlib.suppress(Exception):
                self.ask("take_for_fork", reference)

    # ---- calling

    def call(
        self, ident: str | None, method: str, args: Sequence[object] = (), kwds: Mapping[str, object] = {}
    ) -> tuple[int, Any]:
        """(kind, result) of a call, made on the connection of this thread.

        A call that is interrupted (by Ctrl-C, or an exception from a signal handler) abandons its connection. A late
        answer is recognised by its number, so that no other call takes it for its own.
        """
        if self._pid != os.getpid():
            self._forked()
        try:
            mine: _OfThread = self._mine.own
        except AttributeError:
            mine = self._mine.own = _OfThread(self._idle)
        if mine.busy:  # a call inside a call: from a signal handler, from pickling, from a finalizer
            mine = _OfThread(self._idle)
        mine.busy = True
        number = next(self._numbers)
        try:
            connection = mine.connection
            if connection is None:
                connection = mine.connection = self._free_connection()
            while self._dropped:
                dropped = self._dropped.popleft()
                try:
                    connection.send((0, ONE_WAY, "decref", (dropped,), {}))
                except Exception as error:
                    if _is_short(error):  # not sent now: it is sent with the next call
                        self._dropped.append(dropped)
                    raise
            return self._exchange(connection, (number, ident, method, args, kwds))
        except _CallFailed as failed:
            raise failed.error from None
        except (Closed, BrokenPipeError, ConnectionResetError) as error:
            self._give_up(mine)
            raise ServerEndedError(
                f"the manager's server at {self.address!r} has ended, or closed the connection ({error})"
            ) from error
        except BaseException:
            if mine.connection is not None and mine.connection.shared:
                _disown(mine.connection, number)
            self._give_up(mine)
            raise
        finally:
            mine.busy = False

    @staticmethod
    def _exchange(
        connection: Connection, request: tuple[int, str | None, str, Sequence[object], Mapping[str, object]]
    ) -> tuple[int, Any]:
        """Send a request and wait for its answer. On `_CallFailed`, the connection is still usable."""
        try:
            connection.send(request)
        except Unsendable as error:
            raise _CallFailed(error.__cause__ or error) from None
        except ClosedError:
            raise Closed from None
        except Exception as error:
            if not connection.shared:
                raise
            raise _CallFailed(error) from None
        number = request[0]
        while True:
            try:
                of, kind, result = connection.recv()
            except (Closed, OSError):
                raise
            except Exception as error:  # the answer cannot be unpickled here
                _disown(connection, number)
                raise _CallFailed(error) from None
            if of in (number, UNKNOWN):
                return kind, result
            del result

    def ask(self, method: str, *args: object, **kwds: object) -> Any:
        """Call a method of the server itself."""
        kind, result = self.call(None, method, args, kwds)
        if kind == RETURN:
            return result
        raise error_of(kind, result)

    def tell(self, method: str, what: object) -> bool:
        """Send a request that needs no answer. False: not sent, because that would disturb a call or need a new
        connection.
        """
        mine = getattr(self._mine, "own", None)
        if self._pid != os.getpid() or mine is None or mine.busy or mine.connection is None:
            return False
        mine.busy = True
        try:
            mine.connection.send((0, ONE_WAY, method, (what,), {}))
        finally:
            mine.busy = False
        return True

    def drop(self, ident: str) -> None:
        """Drop a reference: tell the server now, or with the next call."""
        try:
            if not self.tell("decref", ident):
                self._dropped.append(ident)
        except Exception as error:
            if _is_short(error):
                self._dropped.append(ident)
            else:  # the server has ended
                self._dropped.clear()

    # ---- connections

    def connect(self) -> Connection:
        more: dict[str, Any] = {"session": self.session, "serializer": self.serializer, "limit": self.limit}
        if self.key is None:
            return connect(self.local, None, learn=self._learn, **more)
        if self.local is not None and self.local != self.address:
            try:
                return connect(self.local, self.key, **more)
            except (AuthenticationError, OSError, Closed) as error:
                if _is_short(error):
                    raise
                self.local = None  # the server is on another host, or of another user or container
        return connect(self.address, self.key, ssl_context=self.ssl_context, **more)

    def _learn(self, key: bytes) -> None:
        self.key = key

    def _free_connection(self) -> Connection:
        try:
            return self._idle.pop()
        except IndexError:
            return self.connect()

    def _give_up(self, mine: _OfThread) -> None:
        """Close a connection.

        A new one is made first, since the server drops a process's references with its last connection: one that it has
        answered on, or it might see the end of the old one before.
        """
        connection, mine.connection = mine.connection, None
        if connection is None:
            return
        if self.live and not self._idle:
            with contextlib.suppress(Exception):
                fresh = self.connect()
                self._exchange(fresh, (next(self._numbers), None, "dummy", (), {}))
                self._idle.append(fresh)
        connection.close()

    def close(self) -> None:
        """Close this thread's connection and those that no thread uses, after the server has ended."""
        mine = getattr(self._mine, "own", None)
        if mine is not None and mine.connection is not None:
            self._idle.append(mine.connection)
            mine.connection = None
        while self._idle:
            self._idle.pop().close()

    def __del__(
        self, finalizing: Callable[[], bool] = sys.is_finalizing, getpid: Callable[[], int] = os.getpid
    ) -> None:
        if not finalizing() and self._pid == getpid():  # otherwise the server notices the end of this process
            self.close()
