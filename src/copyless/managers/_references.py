"""Which client process has references to which object of a server, and what keeps an object alive."""

from __future__ import annotations

import collections
import itertools
import os
import threading
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from copyless._storage.settings import current
from copyless.errors import StaleHandleError
from copyless.managers._connection import Connection

__all__ = ["Client", "Referent", "References", "Session"]


class Client:
    """A client's connection, and the locks that it holds through it."""

    def __init__(self, connection: Connection, session: Session) -> None:
        self.connection: Connection = connection
        self.session: Session = session
        self.held: collections.Counter[str] = collections.Counter()  # locks of a client on another host, by ident
        self.number = 0  # of the request that was answered last
        self.given = ""  # the object to which that answer gave a reference; empty: to none


class Session:
    """A client process: its connections and its references."""

    def __init__(self) -> None:
        self.clients: set[Client] = set()
        self.refs: collections.Counter[str] = collections.Counter()


class Referent(NamedTuple):
    """An object in the server."""

    obj: Any
    exposed: frozenset[str]
    method_to_typeid: Mapping[str, str] | None


class References:
    """The objects of a server, and how many references each has.

    A method that drops references returns the objects that have none left. The caller deletes them without the mutex,
    since their finalizers may run any code.
    """

    def __init__(self) -> None:
        self.mutex = threading.RLock()
        self.objects: dict[str, Referent] = {}
        self.counts: collections.Counter[str] = collections.Counter()
        self.uuid = os.urandom(6).hex()
        self.sessions: dict[bytes, Session] = {}
        # references of the server itself: of proxies in it, of messages, and for children about to be forked
        self.own = Session()
        self._idents = itertools.count(1)
        self._loans: dict[
            bytes, tuple[dict[str, int], float]
        ] = {}  # references of messages and for children, with the time when they expire

    # ---- clients

    def join(self, key: bytes, connection: Connection) -> Client:
        with self.mutex:
            session = self.sessions.setdefault(key, Session())
            client = Client(connection, session)
            session.clients.add(client)
        return client

    def leave(self, key: bytes, client: Client) -> list[Referent | None]:
        """Remove a connection. With the last connection of a process, its references end."""
        with self.mutex:
            session = client.session
            session.clients.discard(client)
            if session.clients or self.sessions.get(key) is not session:
                return []
            del self.sessions[key]
            return [self._refer(session, ident, -n) for ident, n in list(session.refs.items())]

    def clients(self) -> list[Client]:
        with self.mutex:
            return [client for session in self.sessions.values() for client in session.clients]

    # ---- counting

    def add(self, session: Session, referent: Referent) -> str:
        """The ident of a new object, with one reference of the session."""
        ident = f"{self.uuid}-{next(self._idents):x}"
        with self.mutex:
            self.objects[ident] = referent
            self._refer(session, ident)
        return ident

    def _refer(self, session: Session, ident: str, by: int = 1) -> Referent | None:
        session.refs[ident] += by
        self.counts[ident] += by
        if session.refs[ident] <= 0:
            del session.refs[ident]
        if self.counts[ident] <= 0:
            del self.counts[ident]
            return self.objects.pop(ident, None)
        return None

    def incref(self, session: Session, ident: str, loan: bytes | None) -> object:
        """Count one more reference. `loan`: the name of a message whose reference is taken over. Returns the object."""
        with self.mutex:
            if ident not in self.objects:
                raise StaleHandleError(
                    f"object {ident!r} no longer exists in the manager's server: all its proxies were deleted, or "
                    "the server was restarted"
                )
            self._refer(session, ident)
            if loan is not None and self._loans.pop(loan, None) is not None:
                self._refer(self.own, ident, -1)
            return self.objects[ident].obj

    def decref(self, session: Session, ident: str) -> Referent | None:
        with self.mutex:
            return self._refer(session, ident, -1) if session.refs[ident] > 0 else None

    # ---- references of messages and of children about to be forked

    def lend(self, ident: str) -> bytes:
        """Count a reference for a message, until it is loaded or COPYLESS_MESSAGE_TTL is over."""
        loan = os.urandom(8)
        with self.mutex:
            if ident not in self.objects:
                raise StaleHandleError(f"object {ident!r} no longer exists in the manager's server")
            self._lend(loan, {ident: 1})
        return loan

    def lend_all(self, session: Session, loan: bytes) -> None:
        """Count all references of a session once more, for a child that its process is about to fork."""
        with self.mutex:
            self._lend(loan, dict(session.refs))

    def _lend(self, loan: bytes, refs: dict[str, int]) -> None:
        if type(loan) is not bytes or len(loan) > 16:
            raise ValueError("references are lent under a name of at most 16 bytes")
        if loan in self._loans:
            raise ValueError(
                f"references are already lent under the name {loan.hex()}, and no process has taken them yet"
            )
        self._loans[loan] = refs, time.monotonic() + current().message_ttl
        for ident, n in refs.items():
            self._refer(self.own, ident, n)

    def take(self, session: Session, loan: bytes) -> None:
        """Move the references that were lent under a name to a session."""
        with self.mutex:
            lent = self._loans.pop(loan, None)
            if lent is None:
                raise StaleHandleError(
                    "the references kept for this forked process are gone: another process has taken them, or this "
                    "process made its first call later than COPYLESS_MESSAGE_TTL seconds after the fork"
                )
            refs, _ = lent
            for ident, n in refs.items():
                self._refer(session, ident, n)
                self._refer(self.own, ident, -n)

    def expire(self) -> list[Referent | None]:
        """Drop the references that were lent for longer than COPYLESS_MESSAGE_TTL."""
        now = time.monotonic()
        gone: list[Referent | None] = []
        with self.mutex:
            for loan, (refs, end) in list(self._loans.items()):
                if end > now:
                    break  # they are in the order of their making
                del self._loans[loan]
                gone += [self._refer(self.own, ident, -n) for ident, n in refs.items()]
        return gone
