"""Managers: objects of one process that others use as if they were theirs, on this host or on another.

Mirrors `multiprocessing.managers`: *change the import, keep the code*. What is different:

* Between processes of one host a call travels through shared memory; between hosts over TCP, if wanted under TLS
  (``ssl_context=``), with large buffers beside the pickle. Arrays cross by handle on one host, by value between hosts.
* Locks, events, conditions and queues of a `SyncManager` lie in shared memory: on the manager's host a proxy uses them
  directly, at their own speed, and a client that is killed leaves no lock locked. What a client on another host held is
  released when its connection ends.
* A client that is killed keeps no object alive, an owner that is killed takes its server along, and a server that is killed
  is an error (`ServerEndedError`) for whoever waits for its answer, within about a second.
* A wrong key, random bytes, an oversized frame or a silent client cost the server one line of its log, and no memory; so many
  of them at once that they fill it hold up nobody who has the key.
* A network that is cut ends calls and gives back what was held, after COPYLESS_NETWORK_TIMEOUT seconds.
* `SharedMemoryManager` makes blocks without asking a server, and makes arrays, queues, rings and locks as well.

Keys are proven by HMAC-SHA256, which hides nothing: between hosts use TLS or a network that you trust. Whoever holds the key
can run any code in the server, as in the standard library.
"""

from __future__ import annotations

import collections
import contextlib
import inspect
import itertools
import os
import pickle
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable
from multiprocessing import ProcessError, connection, get_context, process, util
from multiprocessing import managers as _stdlib
from multiprocessing.managers import Array, Namespace, RemoteError, Value  # type: ignore[attr-defined]
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from copyless import _loaders, arrays, pool, queues, rings, shared_memory, synchronize, wire, workers
from copyless._core import _posix
from copyless._one_process import check_process, know_child
from copyless._standard_names import standard_names
from copyless.errors import ClosedError, ForeignHostError, OutOfSharedMemory, StaleHandleError
from copyless.objects import Shared
from copyless.proxies import (
    ERROR,
    ONE_WAY,
    PROXY,
    RETURN,
    TRACEBACK,
    UNKNOWN,
    UNSERIALIZABLE,
    AcquirerProxy,
    ArrayProxy,
    AuthenticationString,
    AutoProxy,
    BarrierProxy,
    BaseListProxy,
    BasePoolProxy,
    BaseProxy,
    ConditionProxy,
    DictProxy,
    EventProxy,
    IteratorProxy,
    Link,
    ListProxy,
    MakeProxyType,
    NamespaceProxy,
    PoolProxy,
    RebuildProxy,
    SetProxy,
    Token,
    ValueProxy,
    error_of,
    make_proxy,
)
from copyless.queues import Empty, Full, JoinableQueue
from copyless.storage.settings import current
from copyless.storage.spares import Spares

__all__ = [
    "AcquirerProxy",
    "ArrayProxy",
    "AutoProxy",
    "BarrierProxy",
    "BaseListProxy",
    "BaseManager",
    "BasePoolProxy",
    "BaseProxy",
    "ConditionProxy",
    "DictProxy",
    "EventProxy",
    "IteratorProxy",
    "ListProxy",
    "MakeProxyType",
    "Namespace",
    "NamespaceProxy",
    "PoolProxy",
    "RebuildProxy",
    "RemoteError",
    "Server",
    "SetProxy",
    "SharedMemoryManager",
    "SharedMemoryServer",
    "SyncManager",
    "Token",
    "ValueProxy",
    "dispatch",
]

log = wire.log

_WAITING = frozenset({"acquire", "get", "get_many", "join", "put", "wait"})  # methods that may be done in steps
_STEP = 0.5  # seconds


def public_methods(obj: Any) -> list[str]:
    """The names of an object's methods that do not begin with '_'."""
    return [name for name in dir(obj) if name[0] != "_" and callable(getattr(obj, name, None))]


def dispatch(c: Any, id: str | None, methodname: str, args: Any = (), kwds: Any = {}) -> Any:  # noqa: B006
    """Ask the server at the other side of a connection, and return what it answers. Mirrors `multiprocessing.managers.dispatch`.

    Parameters
    ----------
    c
        A connection that `listener_client` made, or one of `multiprocessing.connection.Client` to a server of the standard library's.
    id
        Of the object whose method it is; None: the server itself.
    methodname, args, kwds
        The call.
    """
    if not isinstance(c, wire.Line):
        return _stdlib.dispatch(c, id, methodname, args, kwds)  # type: ignore[attr-defined]
    number = next(_calls)
    c.send((number, id, methodname, args, kwds))
    while True:
        of, kind, result = c.recv()
        if of in (number, UNKNOWN):
            break
    if kind == RETURN:
        return result
    if kind == PROXY:
        raise TypeError(f"{methodname} gives an object that stays in the server: call it by its proxy")
    raise error_of(kind, result)


def convert_to_error(kind: Any, result: Any) -> BaseException:
    """The exception that an answer says. Mirrors `multiprocessing.managers.convert_to_error`, whose kinds of answers it knows too."""
    if isinstance(kind, int):
        return error_of(kind, result)
    return _stdlib.convert_to_error(kind, result)  # type: ignore[attr-defined,no-any-return]


_calls = itertools.count(1)


def _client(serializer: str) -> Callable[..., wire.Line]:
    def Client(address: Any, family: str | None = None, authkey: bytes | None = None) -> wire.Line:
        """A proven connection to the server of one of our managers."""
        key = process.current_process().authkey if authkey is None else authkey
        return wire.connect(address, bytes(key), session=os.urandom(16), serializer=serializer)

    return Client


# What listens for a manager, and what connects to it, by the form of its messages.
listener_client = {serializer: (wire.Listener, _client(serializer)) for serializer in ("pickle", "xmlrpclib")}


# ---- the server


class _Caller:
    """A client's line, with what came by it and must end with it."""

    def __init__(self, line: wire.Line, session: _Session) -> None:
        self.line, self.session = line, session
        self.held: collections.Counter[str] = collections.Counter()  # locks, when the line is no shared one


class _Session:
    """A client process: its lines, and the references it holds."""

    def __init__(self) -> None:
        self.lines: set[_Caller] = set()
        self.refs: collections.Counter[str] = collections.Counter()


class Server:
    """Serves a registry's objects. Made by `BaseManager.get_server`; mirrors `multiprocessing.managers.Server`.

    One thread for each line of a client.
    """

    public: tuple[str, ...] = (
        "shutdown", "create", "get_methods", "debug_info", "number_of_objects", "dummy", "incref", "decref", "lend", "breed", "adopt",
        "where",
    )  # fmt: skip

    def __init__(
        self,
        registry: dict[str, Any],
        address: Any,
        authkey: bytes,
        serializer: str = "pickle",
        *,
        ssl_context: Any = None,
        frame_limit: int = wire.FRAME_LIMIT,
    ) -> None:
        if not isinstance(authkey, bytes):
            raise TypeError(f"Authkey {authkey!r} is type {type(authkey)!s}, not bytes")
        self.registry = registry
        self.authkey = AuthenticationString(authkey)
        self.ssl_context = ssl_context() if callable(ssl_context) else ssl_context
        self.frame_limit = frame_limit
        self.serializer = wire.check_serializer(serializer)
        self.listener = wire.Listener(address)
        self.address = self.listener.address
        self.uuid = os.urandom(6).hex()
        self.id_to_obj: dict[str, tuple[Any, frozenset[str], dict[str, str] | None]] = {}
        self.id_to_refcount: collections.Counter[str] = collections.Counter()
        self.stop_event = threading.Event()
        self.mutex = threading.RLock()
        self._idents = itertools.count(1)
        self._sessions: dict[bytes, _Session] = {}
        self._own = _Session()  # proxies that live in the server itself
        self._loans: dict[bytes, tuple[dict[str, int], float]] = {}  # references of messages and of children to be
        self.credit: set[str] = set()  # as a Link has, for those proxies
        self.loans: dict[str, bytes] = {}
        self.live = 0

    def __repr__(self) -> str:
        return (
            f"<{type(self).__name__} at {self.address!r}: {len(self.id_to_obj)} objects, {len(self._sessions)} clients>"
        )

    # ---- its life

    def serve_forever(self) -> None:
        """Serve until a client calls shutdown, or Ctrl-C; ends with SystemExit, as the standard library's."""
        process.current_process()._manager_server = self  # type: ignore[attr-defined]
        threading.Thread(
            target=self.listener.serve, args=(self._welcome, self.stop_event), name="copyless-listener", daemon=True
        ).start()
        try:
            while not self.stop_event.wait(1):
                self._forget_loans()
                self._give_back()
        except (KeyboardInterrupt, SystemExit):
            pass
        finally:
            self.stop_event.set()
            self._end()
            sys.exit(0)

    def _end(self) -> None:
        self.listener.close()
        with self.mutex:
            callers = [caller for session in self._sessions.values() for caller in session.lines]
        for caller in callers:
            caller.line.close()

    def _welcome(self, entrant: wire.Entrant) -> Callable[[], None] | None:
        try:
            line, hello = wire.accept(entrant, self.authkey, self.ssl_context, self.frame_limit)
        except Exception as error:
            if not isinstance(error, wire.Silent) or entrant.why:
                log.warning("connection of %s refused: %s", entrant, entrant.why or str(error) or type(error).__name__)
            entrant.sock.close()
            return None
        with self.mutex:
            session = self._sessions.setdefault(hello.session, _Session())
            caller = _Caller(line, session)
            session.lines.add(caller)
        threading.current_thread().name = f"client {hello}"
        return lambda: self._serve(caller, hello.session, str(entrant))

    def _serve(self, caller: _Caller, key: bytes, peer: str) -> None:
        line = caller.line
        try:
            while not self.stop_event.is_set():
                try:
                    number, ident, method, args, kwds = _request(line.recv())
                except (wire.Closed, ConnectionError, ClosedError) as error:
                    if isinstance(error, wire.Broken):
                        log.warning("connection of %s closed: %s", peer, error)
                    break
                except OSError as error:
                    log.warning("connection of %s closed: %s", peer, error)
                    break
                except Exception as error:  # what came could not be unpickled, or is no request: say so to who waits
                    answer = workers.sealed_error(error)
                    del error  # its traceback holds what was unpickled so far
                    self._answer(line, -1, ERROR, answer)
                    continue
                if ident == ONE_WAY:
                    self._run(caller, None, method, args, kwds)
                    continue
                kind, result = self._run(caller, ident, method, args, kwds)
                self._answer(line, number, kind, result)
                del args, kwds, result
        except (wire.Closed, ConnectionError, ClosedError, OSError):
            pass  # it did not wait for its answer
        finally:
            self._leave(caller, key)
            line.close()

    def _answer(self, line: wire.Line, number: int, kind: int, result: Any) -> None:
        if kind == ERROR and not line.shared:
            sealed, text = result
            result = _plainly(sealed), text
        try:
            line.send((number, kind, result))
        except (ConnectionError, ClosedError, wire.Closed):
            raise
        except Exception as error:
            cause = error.__cause__ if isinstance(error, wire.Unsendable) else error
            if isinstance(error, OSError) and not line.shared:
                raise
            if isinstance(error, OutOfSharedMemory):  # neither memory nor the disk has room: this call fails, in few bytes
                workers.insist(line.send, lambda failed: (number, ERROR, (workers.seal(failed), str(failed))), error)
            else:
                line.send((number, UNSERIALIZABLE, f"{_short(result)}: {cause!r}"))

    # ---- calls

    def _run(self, caller: _Caller, ident: str | None, method: str, args: Any, kwds: Any) -> tuple[int, Any]:
        if ident is None:
            try:
                if method not in self.public:
                    raise AttributeError(f"{method!r} is not a method of the server")
                return RETURN, getattr(self, method)(caller, *args, **kwds)
            except Exception as error:
                kind = ERROR if isinstance(error, _KNOWN) else TRACEBACK
                sealed = workers.sealed_error(error)
                return kind, sealed if kind == ERROR else sealed[1]
        try:
            obj, exposed, method_to_typeid = self.id_to_obj[ident]
        except KeyError:
            text = f"object {ident!r} is gone from the manager's server: every proxy of it was deleted"
            return ERROR, workers.sealed_error(KeyError(text))
        if method not in exposed:
            return self._fallback(obj, exposed, method, args, kwds)
        try:
            if caller.line.shared or method not in _WAITING or not isinstance(obj, Shared) or isinstance(obj, synchronize.Barrier):
                result = getattr(obj, method)(*args, **kwds)
            else:
                result = self._wait_with(caller.line, getattr(obj, method), args, kwds)
        except wire.Closed:
            raise
        except BaseException as error:
            try:
                return ERROR, workers.sealed_error(error)
            finally:
                del error
        if not caller.line.shared and isinstance(obj, Shared):
            self._note_held(caller, ident, method, result)
        typeid = method_to_typeid and method_to_typeid.get(method)
        if not typeid:
            return RETURN, result
        try:
            return PROXY, self._proxied(caller, typeid, result)
        except Exception as error:  # a name that is not registered, say
            return TRACEBACK, workers.sealed_error(error)[1]

    def _fallback(self, obj: Any, exposed: frozenset[str], method: str, args: Any, kwds: Any) -> tuple[int, Any]:
        try:
            if method == "#GETVALUE":
                return RETURN, obj
            if method == "__str__":
                return RETURN, str(obj)
            if method == "__repr__":
                return RETURN, repr(obj)
            raise AttributeError(
                f"method {method!r} of {type(obj)} object is not in exposed={sorted(exposed)}: name it in exposed= at register()"
            )
        except Exception as error:
            return TRACEBACK, workers.sealed_error(error)[1]

    @staticmethod
    def _wait_with(line: wire.Line, method: Any, args: Any, kwds: Any) -> Any:
        """Wait for a client on another host in steps, to see whether it is still there: it may hold what others wait for."""
        try:
            call = inspect.signature(method).bind(*args, **kwds)
        except (TypeError, ValueError):
            return method(*args, **kwds)  # which says what is wrong, or cannot be asked
        names = call.signature.parameters
        block = call.arguments.get("block", call.arguments.get("blocking", True))
        timeout = call.arguments.get("timeout")
        if "timeout" not in names or not block or not (timeout is None or isinstance(timeout, (int, float))):
            return method(*args, **kwds)
        end = None if timeout is None else time.monotonic() + timeout
        while True:
            left = _STEP if end is None else end - time.monotonic()
            call.arguments["timeout"] = max(min(left, _STEP), 0)
            try:
                result = method(*call.args, **call.kwargs)
                if result is not False or method.__name__ not in ("acquire", "wait") or left < _STEP:
                    return result
            except (Empty, Full, TimeoutError):
                if left < _STEP:
                    raise
            if line.is_cut():
                raise wire.Closed("the client is gone")

    def _note_held(self, caller: _Caller, ident: str, method: str, result: Any) -> None:
        """What a client on another host holds: it is this thread's, which gives it back when the line ends."""
        if method == "acquire" and result:
            with self.mutex:
                caller.held[ident] += 1
        elif method == "release":
            with self.mutex:  # any thread may release a lock
                for other in (caller, *caller.session.lines):
                    if other.held[ident] > 0:
                        other.held[ident] -= 1
                        break

    def _release_held(self, caller: _Caller) -> None:
        """Release what a caller that is gone held; what only its own thread may release stays for that."""
        with self.mutex:
            held, caller.held = caller.held, collections.Counter()
        for ident, n in held.items():
            entry = self.id_to_obj.get(ident)
            while n > 0 and entry is not None:
                try:
                    entry[0].release()
                except Exception:
                    break
                n -= 1
            if n > 0 and entry is not None:
                with self.mutex:
                    caller.held[ident] += n

    def _give_back(self) -> None:
        """Release what clients held that are gone while their threads here are still busy with their last calls."""
        with self.mutex:
            holding = [
                caller for session in self._sessions.values() for caller in session.lines if caller.held and not caller.line.shared
            ]
        for caller in holding:
            if caller.line.is_cut():
                self._release_held(caller)

    # `Link`'s own names, for proxies that live in the server

    def owns(self, ident: str) -> bool:
        return ident.startswith(self.uuid)

    def call(self, ident: str, method: str, args: Any = (), kwds: Any = {}) -> tuple[int, Any]:  # noqa: B006
        return self._run(self._caller(), ident, method, args, kwds)

    def ask(self, method: str, *args: Any) -> Any:
        return getattr(self, method)(self._caller(), *args)

    def drop(self, ident: str) -> None:
        self.decref(self._caller(), ident)

    def _caller(self) -> _Caller:
        return _Caller(_HERE, self._own)

    # ---- what clients ask of the server itself

    def create(self, caller: _Caller, typeid: str, /, *args: Any, **kwds: Any) -> tuple[Any, ...]:
        """Make an object: (ident, exposed, the object itself where the client may use it directly)."""
        make, exposed, method_to_typeid, _ = self.registry[typeid]
        if make is None:
            if kwds or len(args) != 1:
                raise ValueError("Without callable, must have one non-keyword argument")
            obj = args[0]
        else:
            obj = make(*args, **kwds)
        return self._keep(caller, obj, exposed, method_to_typeid)

    def _keep(self, caller: _Caller, obj: Any, exposed: Any, method_to_typeid: Any) -> tuple[Any, ...]:
        names = public_methods(obj) if exposed is None else list(exposed)
        if method_to_typeid:
            names += [name for name in method_to_typeid if name not in names]
        ident = f"{self.uuid}-{next(self._idents):x}"
        with self.mutex:
            self.id_to_obj[ident] = obj, frozenset(names), method_to_typeid
            self._refer(caller.session, ident)
        return ident, names, self._direct(caller, obj)

    def _proxied(self, caller: _Caller, typeid: str, obj: Any) -> tuple[Any, ...]:
        _, exposed, method_to_typeid, _ = self.registry[typeid]
        ident, names, direct = self._keep(caller, obj, exposed, method_to_typeid)
        return names, typeid, ident, direct

    @staticmethod
    def _direct(caller: _Caller, obj: Any) -> Any:
        return obj if caller.line.shared and isinstance(obj, Shared) else None

    def _refer(self, session: _Session, ident: str, by: int = 1) -> Any:
        """Count; the object, if that was its last reference, to be let go without the mutex."""
        session.refs[ident] += by
        self.id_to_refcount[ident] += by
        if session.refs[ident] <= 0:
            del session.refs[ident]
        if self.id_to_refcount[ident] <= 0:
            del self.id_to_refcount[ident]
            return self.id_to_obj.pop(ident, None)
        return None

    def incref(self, caller: _Caller, ident: str, loan: bytes | None = None) -> Any:
        """Count one more reference of the client; `loan` is a message's, which it takes over."""
        with self.mutex:
            if ident not in self.id_to_obj:
                raise StaleHandleError(
                    f"object {ident!r} is gone from the manager's server: every proxy of it was deleted, or the server began anew"
                )
            self._refer(caller.session, ident)
            if loan is not None and self._loans.pop(loan, None) is not None:
                self._refer(self._own, ident, -1)
            return self._direct(caller, self.id_to_obj[ident][0])

    def decref(self, caller: _Caller, ident: str) -> None:
        gone = None
        with self.mutex:
            if caller.session.refs[ident] > 0:
                gone = self._refer(caller.session, ident, -1)
        del gone

    def lend(self, caller: _Caller, ident: str) -> bytes:
        """Count a reference of a message: until it is loaded, or COPYLESS_MESSAGE_TTL is over."""
        loan = os.urandom(8)
        with self.mutex:
            if ident not in self.id_to_obj:
                raise StaleHandleError(f"object {ident!r} is gone from the manager's server")
            self._lend(loan, {ident: 1})
        return loan

    def _lend(self, loan: bytes, refs: dict[str, int]) -> None:
        if type(loan) is not bytes or len(loan) > 16:
            raise ValueError("references are lent under a name of at most 16 bytes")
        if loan in self._loans:
            raise ValueError(f"references were lent under the name {loan.hex()} already, and nobody has taken them yet")
        self._loans[loan] = refs, time.monotonic() + current().message_ttl
        for ident, n in refs.items():
            self._refer(self._own, ident, n)

    def breed(self, caller: _Caller, brood: bytes) -> None:
        """A client is about to fork: what it refers to, a child may too."""
        with self.mutex:
            self._lend(brood, dict(caller.session.refs))

    def adopt(self, caller: _Caller, brood: bytes) -> None:
        """This client is that child."""
        with self.mutex:
            lent = self._loans.pop(brood, None)
            if lent is None:
                raise StaleHandleError(
                    "what was kept for this forked process is gone: another process has taken it, or COPYLESS_MESSAGE_TTL "
                    "was over before its first call"
                )
            refs, _ = lent
            for ident, n in refs.items():
                self._refer(caller.session, ident, n)
                self._refer(self._own, ident, -n)

    def _forget_loans(self) -> None:
        now, gone = time.monotonic(), []
        with self.mutex:
            for loan, (refs, end) in list(self._loans.items()):
                if end > now:
                    break  # they were made in this order
                del self._loans[loan]
                gone += [self._refer(self._own, ident, -n) for ident, n in refs.items()]
        del gone

    def _leave(self, caller: _Caller, key: bytes) -> None:
        self._release_held(caller)
        dropped = []
        with self.mutex:
            session = caller.session
            session.lines.discard(caller)
            if not session.lines and self._sessions.get(key) is session:
                del self._sessions[key]
                for ident, n in list(session.refs.items()):
                    dropped.append(self._refer(session, ident, -n))
        del dropped

    def get_methods(self, caller: _Caller, ident: Any) -> list[str]:
        return sorted(self.id_to_obj[getattr(ident, "id", ident)][1])

    def debug_info(self, caller: _Caller) -> str:
        """What lives here, a line each."""
        with self.mutex:
            return "\n".join(
                f"  {ident}:       refcount={self.id_to_refcount[ident]}\n    {str(self.id_to_obj[ident][0])[:75]}"
                for ident in self.id_to_obj
            )

    def number_of_objects(self, caller: _Caller) -> int:
        return len(self.id_to_obj)

    def dummy(self, caller: _Caller) -> None:
        """Nothing: that the server answers says that it lives."""

    def where(self, caller: _Caller) -> str:
        """The socket's path for clients of this host and user; empty: there is none."""
        return self.listener.local or ""

    def shutdown(self, caller: _Caller) -> None:
        """End; the answer comes first."""
        threading.Timer(0.01, self.stop_event.set).start()


def _request(said: Any) -> tuple[int, str | None, str, Any, dict[str, Any]]:
    """What a client asks for, checked."""
    try:
        number, ident, method, args, kwds = said
    except (TypeError, ValueError):
        raise TypeError(f"a request is (number, ident, method, args, kwds), not {_short(said)}") from None
    if (
        type(number) is not int
        or not (ident is None or type(ident) is str)
        or type(method) is not str
        or not isinstance(args, (tuple, list))
        or type(kwds) is not dict
    ):
        raise TypeError(
            "a request is (number, ident, method, args, kwds): an int, a str or None, a str, a tuple and a dict, not "
            + _short(said)
        )
    return said  # type: ignore[no-any-return]


class _Here(wire.Line):
    shared = True


_HERE = _Here()
_KNOWN = (StaleHandleError, ForeignHostError)


def _plainly(sealed: Any) -> Any:
    """A sealed exception for another host: without addresses."""
    if sealed is None or type(sealed) is bytes:
        return sealed
    try:
        return pickle.dumps(sealed.open())
    except Exception:
        return None


def _short(value: Any) -> str:
    try:
        text = repr(value)
    except Exception:
        text = f"<{type(value).__name__}>"
    return text if len(text) < 300 else text[:300] + "..."


# ---- managers


class State:
    """What a manager shares with its finalizer."""

    INITIAL, STARTED, SHUTDOWN = range(3)

    def __init__(self) -> None:
        self.value = State.INITIAL


class _Run(NamedTuple):
    """What the server's process is told."""

    server: type[Server]
    registry: dict[str, Any]
    address: Any
    authkey: bytes
    serializer: str
    ssl_context: Any
    frame_limit: int


class BaseManager:
    """BaseManager(address=None, authkey=None, serializer='pickle', ctx=None, *, shutdown_timeout=1.0, ssl_context=None)

    Makes objects in a server process, `start`\\ ed or `connect`\\ ed to, and gives proxies of them. Mirrors
    `multiprocessing.managers.BaseManager`.

    Parameters
    ----------
    address
        ``(host, port)`` for TCP (port 0: any free one), a path for a Unix socket, None for one in the storage directory,
        which only this user and root can reach. A path that is there already is used when it is this user's socket and its
        server has ended; else it is left alone, and the address is in use.
    authkey : bytes
        What both sides must hold; by default that of the process.
    serializer
        'pickle', or 'xmlrpclib' for plain data only.
    ctx
        A context of multiprocessing: how the server's process is started.
    shutdown_timeout : float
        Seconds that `shutdown` gives the server to end by itself.
    ssl_context : ssl.SSLContext or function that makes one
        For TCP: the server's, on the side that serves; the client's on the side that connects. Under spawn and forkserver it
        must be a function. Processes of the server's own host need none.

    Raises
    ------
    multiprocessing.AuthenticationError
        When the server holds another key.
    ServerEndedError
        From a call whose server has ended (an EOFError and a ConnectionError).

    Notes
    -----
    A call on one host costs some 5 us and no system call while both sides are awake; over TCP two messages.

    Examples
    --------
    >>> from copyless.managers import BaseManager
    >>> class Counters(BaseManager): pass
    >>> Counters.register("Counter", __import__("collections").Counter, exposed=("update", "most_common"))
    >>> with Counters() as manager:
    ...     counter = manager.Counter()
    ...     counter.update("abracadabra")
    ...     counter.most_common(1)
    [('a', 5)]
    """

    _registry: dict[str, Any] = {}  # noqa: RUF012
    _Server: type[Server] = Server
    frame_limit = wire.FRAME_LIMIT  # bytes of one message over TCP
    _process: Any

    def __init__(
        self,
        address: Any = None,
        authkey: bytes | None = None,
        serializer: str = "pickle",
        ctx: Any = None,
        *,
        shutdown_timeout: float = 1.0,
        ssl_context: Any = None,
    ) -> None:
        if authkey is None:
            authkey = process.current_process().authkey
        if not isinstance(authkey, bytes):
            raise TypeError(f"authkey must be bytes, not {type(authkey).__name__}")
        self._address = tuple(address) if isinstance(address, list) else address
        self._authkey = AuthenticationString(authkey)
        self._state = State()
        self._serializer = wire.check_serializer(serializer)
        self._ctx = ctx or get_context()
        self._shutdown_timeout = shutdown_timeout
        self._ssl_context = ssl_context
        self._process = None
        self._link: Any = None
        self._begun_by = 0  # the process that started it or connected it

    def __repr__(self) -> str:
        state = ("not started", "started", "shut down")[self._state.value]
        return f"<{type(self).__name__} {state}, address {self._address!r}>"

    # ---- beginning and ending

    def _check_process(self) -> None:
        if self._begun_by:
            check_process(
                self._begun_by, self, "make proxies before the fork and use them here, or connect() a manager of your own to its address"
            )

    def _must_be_new(self) -> None:
        self._check_process()
        if self._state.value == State.STARTED:
            raise ProcessError("Already started server")
        if self._state.value == State.SHUTDOWN:
            raise ProcessError("Manager has shut down")

    def _needs_start(self) -> Link:
        self._check_process()
        if self._state.value != State.STARTED:
            what = (
                "has shut down" if self._state.value == State.SHUTDOWN else "is not started: call start() or connect()"
            )
            raise ValueError(f"this {type(self).__name__} {what}")
        link: Link = self._link
        return link

    def get_server(self) -> Server:
        """The server itself, with `serve_forever()` and `address`, to run in this process."""
        self._must_be_new()
        return self._Server(
            self._registry, self._address, self._authkey, self._serializer,
            ssl_context=self._ssl_context, frame_limit=self.frame_limit,
        )  # fmt: skip

    def connect(self) -> None:
        """Connect to the server that runs at the address."""
        self._check_process()
        if self._address is None:
            raise ValueError("connect() needs an address: give BaseManager(address=...) the server's")
        context = self._ssl_context() if callable(self._ssl_context) else self._ssl_context
        # Not one that is known: the server there may be another by now.
        link = Link(self._address, self._authkey, self._serializer, None, context, self.frame_limit)
        there = link.ask("where")
        link.local = there if there.startswith("/") else None
        link.enlist()
        self._link = link
        self._begun_by = os.getpid()
        self._state.value = State.STARTED

    def start(self, initializer: Callable[..., object] | None = None, initargs: Iterable[Any] = ()) -> None:
        """Start a server process. It ends with `shutdown`, with this manager, and when this process ends, however."""
        self._must_be_new()
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        reader, writer = connection.Pipe(duplex=False)
        run = _Run(
            self._Server,
            self._registry,
            self._address,
            self._authkey,
            self._serializer,
            self._ssl_context,
            self.frame_limit,
        )
        self._process = self._ctx.Process(target=_loaders.serve_manager, args=(type(self), tuple(run), writer, initializer, initargs))
        ident = ":".join(str(i) for i in self._process._identity)
        self._process.name = f"{type(self).__name__}-{ident}"
        know_child(self._process)
        try:
            self._process.start()
        finally:
            writer.close()
        told: Any = "nothing"
        with contextlib.suppress(EOFError):
            connection.wait([reader, self._process.sentinel])
            if reader.poll():
                told = reader.recv()
        reader.close()
        if not isinstance(told, tuple):
            self._process.join()
            raise EOFError(f"the manager's server did not start (exit code {self._process.exitcode}); it said: {told}")
        self._address, local = told
        self._link = Link(self._address, self._authkey, self._serializer, local, None, self.frame_limit)
        self._link.enlist()
        self._begun_by = os.getpid()
        self._state.value = State.STARTED
        self.shutdown = util.Finalize(  # type: ignore[method-assign]
            self,
            type(self)._finalize_manager,
            args=(self._process, self._link, self._state, self._shutdown_timeout, self._last_words()),
            exitpriority=0,
        )

    @classmethod
    def _run_server(cls, run: _Run, writer: Any, initializer: Any, initargs: Any) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the owner
        server: Any = None
        try:
            owner = _pidfd_of_parent()
            if initializer is not None:
                initializer(*initargs)
            server = run.server(
                run.registry,
                run.address,
                run.authkey,
                run.serializer,
                ssl_context=run.ssl_context,
                frame_limit=run.frame_limit,
            )
            threading.Thread(target=_end_with, args=(owner, server), name="copyless-owner", daemon=True).start()
            writer.send((server.address, server.listener.local))
        except BaseException as error:
            with contextlib.suppress(Exception):
                writer.send(f"{type(error).__name__}: {error}")
            raise
        finally:
            writer.close()
        server.serve_forever()

    def _last_words(self) -> Callable[[], None] | None:
        """What to do when the server has ended."""
        return None

    @staticmethod
    def _finalize_manager(
        running: Any, link: Link, state: State, timeout: float, last: Callable[[], None] | None = None
    ) -> None:
        if running.is_alive():
            with contextlib.suppress(Exception):
                link.ask("shutdown")
            link.close()
            running.join(timeout)
            for end in (running.terminate, running.kill):
                if running.is_alive():
                    end()
                    running.join(timeout)
            running.join()
        if last is not None:
            last()
        state.value = State.SHUTDOWN

    def shutdown(self) -> None:
        """End the server that `start` started."""
        raise ValueError(f"this {type(self).__name__} started no server, so it cannot end one")

    def join(self, timeout: float | None = None) -> None:
        """Wait until the server process has ended."""
        self._check_process()
        if self._process is not None:
            self._process.join(timeout)
            if not self._process.is_alive():
                self._process = None

    def __enter__(self) -> Any:
        self._check_process()
        if self._state.value == State.INITIAL:
            self.start()
        if self._state.value != State.STARTED:
            raise ProcessError("Manager has shut down")
        return self

    def __exit__(self, *exc: object) -> None:
        if self._process is not None:
            self.shutdown()

    # ---- objects

    def _create(self, typeid: str, /, *args: Any, **kwds: Any) -> tuple[Token, Any, Any]:
        link = self._needs_start()
        ident, exposed, direct = link.ask("create", typeid, *args, **kwds)
        return Token(typeid, self._address, ident, link.local), exposed, direct

    def _debug_info(self) -> str:
        return str(self._needs_start().ask("debug_info"))

    def _number_of_objects(self) -> int:
        return int(self._needs_start().ask("number_of_objects"))

    @property
    def address(self) -> Any:
        """Where the server listens."""
        return self._address

    @classmethod
    def register(
        cls,
        typeid: str,
        callable: Callable[..., Any] | None = None,
        proxytype: Any = None,
        exposed: Any = None,
        method_to_typeid: dict[str, str] | None = None,
        create_method: bool = True,
    ) -> None:
        """Give the manager a method `typeid` that makes an object in the server and returns a proxy of it."""
        if "_registry" not in cls.__dict__:
            cls._registry = cls._registry.copy()
        proxytype = proxytype or AutoProxy
        if isinstance(proxytype, type) and not issubclass(proxytype, BaseProxy):
            raise TypeError(
                f"proxytype {proxytype.__module__}.{proxytype.__qualname__} must derive from copyless.managers.BaseProxy: import "
                "the proxies from copyless.managers, where all have the same names"
            )
        exposed = exposed or getattr(proxytype, "_exposed_", None)
        method_to_typeid = method_to_typeid or getattr(proxytype, "_method_to_typeid_", None)
        for pair in (method_to_typeid or {}).items():
            for name in pair:
                if not isinstance(name, str):
                    raise TypeError(f"method_to_typeid maps str to str; {name!r} is no str")
        cls._registry[typeid] = callable, exposed, method_to_typeid, proxytype
        if not create_method:
            return

        def create(self: Any, /, *args: Any, **kwds: Any) -> Any:
            token, exposed, direct = self._create(typeid, *args, **kwds)
            return make_proxy(self._link, proxytype, token, self._serializer, self, self._authkey, exposed, direct)

        create.__name__ = create.__qualname__ = typeid
        setattr(cls, typeid, create)


def _pidfd_of_parent() -> int | None:
    parent = process.parent_process()
    if parent is None or parent.pid is None:
        return None
    try:
        return os.pidfd_open(parent.pid)
    except ProcessLookupError:
        raise EOFError("the process that started this manager has ended") from None


def _end_with(owner: int | None, server: Server) -> None:
    """Stop serving when the process that started us has ended, however."""
    if owner is None:
        return
    waiting = select.poll()
    waiting.register(owner, select.POLLIN)
    while not waiting.poll(60_000):
        pass
    server.stop_event.set()


class SyncManager(BaseManager):
    """A manager of lists, dicts, queues, locks and all else that programs share.

    Mirrors `multiprocessing.managers.SyncManager`, with `set` and the methods of Python 3.14. `copyless.Manager()` gives a
    started one.

    Examples
    --------
    >>> from copyless.managers import SyncManager
    >>> with SyncManager() as manager:
    ...     shared, lock = manager.dict(a=1), manager.Lock()
    ...     with lock:
    ...         shared["b"] = shared["a"] + 1
    ...     dict(shared)
    {'a': 1, 'b': 2}
    """

    if TYPE_CHECKING:  # registered below

        def Queue(self, maxsize: int = 0) -> Any: ...
        def JoinableQueue(self, maxsize: int = 0) -> Any: ...
        def Event(self) -> EventProxy: ...
        def Lock(self) -> AcquirerProxy: ...
        def RLock(self) -> AcquirerProxy: ...
        def Semaphore(self, value: int = 1) -> AcquirerProxy: ...
        def BoundedSemaphore(self, value: int = 1) -> AcquirerProxy: ...
        def Condition(self, lock: Any = None) -> ConditionProxy: ...
        def Barrier(self, parties: int, action: Any = None, timeout: float | None = None) -> BarrierProxy: ...
        def Pool(self, processes: int | None = None, initializer: Any = None, initargs: Any = ()) -> PoolProxy: ...
        def list(self, sequence: Iterable[Any] = ..., /) -> ListProxy: ...
        def dict(self, *args: Any, **kwds: Any) -> DictProxy: ...
        def set(self, sequence: Iterable[Any] = ..., /) -> SetProxy: ...
        def Value(self, typecode: Any, value: Any) -> ValueProxy: ...
        def Array(self, typecode: Any, sequence: Iterable[Any]) -> ArrayProxy: ...
        def Namespace(self, **kwds: Any) -> NamespaceProxy: ...


for _name, _make, _proxytype in (
    ("Queue", JoinableQueue, None),
    ("JoinableQueue", JoinableQueue, None),
    ("Event", synchronize.Event, EventProxy),
    ("Lock", synchronize.Lock, AcquirerProxy),
    ("RLock", synchronize.RLock, AcquirerProxy),
    ("Semaphore", synchronize.Semaphore, AcquirerProxy),
    ("BoundedSemaphore", synchronize.BoundedSemaphore, AcquirerProxy),
    ("Condition", synchronize.Condition, ConditionProxy),
    ("Barrier", synchronize.Barrier, BarrierProxy),
    ("Pool", pool.Pool, PoolProxy),
    ("list", list, ListProxy),
    ("dict", dict, DictProxy),
    ("set", set, SetProxy),
    ("Value", Value, ValueProxy),
    ("Array", Array, ArrayProxy),
    ("Namespace", Namespace, NamespaceProxy),
):
    SyncManager.register(_name, _make, _proxytype)
SyncManager.register("Iterator", proxytype=IteratorProxy, create_method=False)  # what methods of others return
SyncManager.register("AsyncResult", create_method=False)


# ---- shared memory that ends with its manager


class _Blocks:
    """Drop-in blocks to be freed at the end. Those that were unlinked by hand are forgotten now and then."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[tuple[int, int], Any]] = {}
        self._prune_at = 256

    def add(self, name: str, identity: tuple[int, int], hold: Any = None) -> None:
        self._known[name] = identity, hold
        if len(self._known) >= self._prune_at:
            self._known = {name: known for name, known in self._known.items() if shared_memory.exists(name, known[0])}
            self._prune_at = max(256, 2 * len(self._known))

    def forget(self, name: str) -> None:
        self._known.pop(name, None)

    def names(self) -> list[str]:
        return [name for name, (identity, _) in self._known.items() if shared_memory.exists(name, identity)]

    def free(self) -> None:
        while self._known:
            name, (identity, _) = self._known.popitem()
            with contextlib.suppress(OSError):
                shared_memory.discard(name, identity)


class SharedMemoryServer(Server):
    """The server of a `SharedMemoryManager`: reads in its ledger, a queue in shared memory, what belongs to it."""

    public = (*Server.public, "ledger", "settle", "list_segments")

    def __init__(self, *args: Any, **kwds: Any) -> None:
        super().__init__(*args, **kwds)
        self._ledger: Any = queues.Queue()
        self._blocks = _Blocks()
        self._kept: dict[Any, Any] = {}
        self._reading = threading.Lock()

    def serve_forever(self) -> None:
        threading.Thread(target=self._follow, name="copyless-ledger", daemon=True).start()
        super().serve_forever()

    def _follow(self) -> None:
        while not self.stop_event.wait(0.1):  # it is in no hurry, and nobody who writes need wake it
            self._read()

    def _read(self) -> None:
        with self._reading:
            while True:
                try:
                    entry = self._ledger.get_nowait()
                except (Empty, ClosedError):
                    return
                except Exception as error:  # of this one entry: it has been taken
                    log.warning("an entry of the ledger could not be read: %s", error)
                    continue
                verb, key, *more = entry
                if verb == "block":
                    self._blocks.add(key, tuple(more[0]), _posix.posix_hold(os.fsencode(key), *more[0]))
                elif verb == "gone":
                    self._blocks.forget(key)
                elif verb == "keep":
                    self._kept[key] = more[0]
                elif verb == "drop":
                    self._kept.pop(key, None)

    def _end(self) -> None:
        self._read()
        self._blocks.free()
        self._kept.clear()
        super()._end()

    def ledger(self, caller: _Caller) -> Any:
        if not caller.line.shared:
            raise ForeignHostError(
                "a SharedMemoryManager serves processes of its own host: those of another share no memory with it"
            )
        return self._ledger

    def settle(self, caller: _Caller) -> None:
        """What was written until now has been read."""
        self._read()

    def list_segments(self, caller: _Caller) -> list[str]:
        self._read()
        return self._blocks.names()


class SharedMemoryManager(BaseManager):
    """SharedMemoryManager(address=None, authkey=None, serializer='pickle', ctx=None, *, shutdown_timeout=1.0)

    Makes blocks, lists, arrays, queues, rings and locks that live until it is shut down, or its owner has ended, however.
    Mirrors `multiprocessing.managers.SharedMemoryManager`; others of the same host may `connect` to its server and make
    their own, which outlive them.

    Notes
    -----
    Making something asks no server: it is made here, and a line is written in the manager's ledger, a queue in shared
    memory that its server reads. What views and arrays still use stays valid after `shutdown`.

    Examples
    --------
    >>> from copyless.managers import SharedMemoryManager
    >>> with SharedMemoryManager() as manager:
    ...     block = manager.SharedMemory(size=1 << 20)
    ...     image = manager.array((480, 640, 3), "u1")
    ...     names = manager.ShareableList(["a", "b"])
    ...     len(manager.list_segments())
    2
    """

    _Server = SharedMemoryServer

    def __init__(self, *args: Any, **kwds: Any) -> None:
        super().__init__(*args, **kwds)
        self._ledger: list[Any] = []  # one, once it has been asked for
        self._made = _Blocks()
        self._spares = Spares()
        self._kept: dict[Any, Any] = {}

    def _last_words(self) -> Callable[[], None]:
        made, kept, spares, ledger = self._made, self._kept, self._spares, self._ledger

        def free() -> None:
            made.free()
            spares.clear()
            ledger.clear()
            kept.clear()

        return free

    def _write(self, *entry: Any) -> None:
        link = self._needs_start()
        if not self._ledger:
            self._ledger.append(link.ask("ledger"))
            if self._process is None:  # what a client made must be the server's before the client ends
                util.Finalize(self, _settle, args=(link,), exitpriority=20)
        self._ledger[0].put(entry)

    # ---- what it makes

    def SharedMemory(self, size: int, *, name: str | None = None) -> shared_memory.SharedMemory:
        """A new block of `size` bytes."""
        self._needs_start()
        block = _without_family(shared_memory.SharedMemory)
        block._spares = self._spares
        block.__init__(name, create=True, size=size)
        return self._own(block)

    def ShareableList(self, sequence: Iterable[Any] | None, *, name: str | None = None) -> shared_memory.ShareableList:
        """A new list."""
        self._needs_start()
        made = _without_family(shared_memory.ShareableList)
        made.__init__(sequence, name=name)
        self._own(made.shm)
        return made  # type: ignore[no-any-return]

    def _own(self, block: shared_memory.SharedMemory) -> shared_memory.SharedMemory:
        identity = block._identity
        assert identity is not None
        try:
            self._write("block", block.name, identity)
        except BaseException:
            block.unlink()
            raise
        # Held here too: the server may read later, or be killed.
        self._made.add(block.name, identity, _posix.posix_hold(os.fsencode(block.name), *identity))
        return block

    def array(self, shape: Any, dtype: Any = float, order: str = "C", *, zeroed: bool = True) -> arrays.SharedArray:
        """A new array; with an `ndarray` in the place of a shape, a copy of it.

        Parameters
        ----------
        shape : int, tuple of int, or ndarray
        dtype, order
            As for `numpy.zeros`.
        zeroed : bool
            False leaves in it what was there, which spares writing each page: some 2 us, whatever its size, once memory is warm.
        """
        self._needs_start()
        if isinstance(shape, np.ndarray):
            made: Any = arrays.array(shape)
        elif zeroed:
            made = arrays.zeros(shape, dtype, order)
        else:
            made = arrays.empty(shape, dtype, order)
        return self._keep(made)  # type: ignore[no-any-return]

    def Queue(self, maxsize: int = 0, **more: Any) -> queues.Queue[Any]:
        """A new `copyless.Queue`."""
        self._needs_start()
        return self._keep(queues.Queue(maxsize, **more))  # type: ignore[no-any-return]

    def RingBuffer(self, fields: Any, slots: int, **more: Any) -> rings.RingBuffer:
        """A new `copyless.RingBuffer`."""
        self._needs_start()
        return self._keep(rings.RingBuffer(fields, slots, **more))  # type: ignore[no-any-return]

    def Lock(self, **more: Any) -> synchronize.Lock:
        """A new `copyless.Lock`."""
        self._needs_start()
        return self._keep(synchronize.Lock(**more))  # type: ignore[no-any-return]

    def _keep(self, made: Any) -> Any:
        if self._process is not None:
            self._kept[id(made)] = made
        else:
            self._write("keep", (self._link.session, id(made)), made)
        return made

    # ---- what it has

    def release(self, obj: Any) -> None:
        """Let one of them go before the end: unlink a block or list, keep an array, queue, ring or lock no longer."""
        self._check_process()
        block = obj.shm if isinstance(obj, shared_memory.ShareableList) else obj
        if isinstance(block, shared_memory.SharedMemory):
            with contextlib.suppress(FileNotFoundError):
                block.unlink()
            self._made.forget(block.name)
            self._write("gone", block.name)
        elif self._process is not None:
            if self._kept.pop(id(obj), None) is None:
                raise ValueError(
                    f"this manager keeps no such {type(obj).__name__}: it was released, or another made it"
                )
        else:
            self._write("drop", (self._link.session, id(obj)))

    def list_segments(self) -> list[str]:
        """The names of the blocks and lists that it has now."""
        names: list[str] = self._needs_start().ask("list_segments")
        return names


def _without_family(kind: Any) -> Any:
    """One to be, which will live as long as somebody holds it: its manager's owner or server, or who attached it."""
    made = kind.__new__(kind)
    made._family = False
    return made


def _settle(link: Link) -> None:
    with contextlib.suppress(Exception):
        link.ask("settle")


if not TYPE_CHECKING:  # a checker shall see a misspelt name
    __getattr__, __dir__ = standard_names(__name__, "multiprocessing.managers", without=("_SharedMemoryTracker",))
