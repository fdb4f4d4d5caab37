"""Proxies: objects that stand for others, which live in a manager's server.

Mirrors the proxies of `multiprocessing.managers`: same classes, same private methods that users override or call
(`_callmethod`, `_getvalue`), same pickling. What is different:

* A call between processes of one host goes through shared memory, and wakes nobody who is awake.
* What the server holds as a shared object of ours (locks, events, queues) a proxy on the same host uses directly: the
  methods of the proxy are those of the object, the server has no part in it and may even die.
* A proxy keeps its object alive while it is on its way in a message (`COPYLESS_MESSAGE_TTL`), and a process that is killed
  keeps nothing alive.
* A call that is interrupted leaves nothing behind that a later call could take for its answer.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
import threading
import time
import types
import weakref
from collections import deque
from collections.abc import Callable
from multiprocessing import AuthenticationError, process, util
from multiprocessing import context as _context
from multiprocessing.managers import RemoteError
from typing import Any

from copyless import _loaders, wire, workers
from copyless.errors import ClosedError, ServerEndedError

__all__ = [
    "AcquirerProxy",
    "ArrayProxy",
    "AutoProxy",
    "BarrierProxy",
    "BaseProxy",
    "ConditionProxy",
    "DictProxy",
    "EventProxy",
    "IteratorProxy",
    "ListProxy",
    "MakeProxyType",
    "NamespaceProxy",
    "PoolProxy",
    "RebuildProxy",
    "SetProxy",
    "Token",
    "ValueProxy",
]

AuthenticationString: Any = process.AuthenticationString  # type: ignore[attr-defined]

RETURN, ERROR, PROXY, TRACEBACK, UNSERIALIZABLE = range(5)  # kinds of answers
UNKNOWN = -1  # the number of an answer to a request that could not be read
PLACE = "copyless.managers"  # where users and pickles find what is public here
ONE_WAY = ""  # in the place of an object's ident: the server does not answer


class Token:
    """Which object of which server."""

    __slots__ = ("address", "id", "local", "typeid")

    def __init__(self, typeid: str, address: Any, id: str, local: str | None = None) -> None:
        self.typeid, self.address, self.id, self.local = typeid, address, id, local

    def __reduce__(self) -> Any:
        return _loaders.token, (self.typeid, self.address, self.id, self.local)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(typeid={self.typeid!r}, address={self.address!r}, id={self.id!r})"


# ---- answers


def error_of(kind: int, result: Any) -> BaseException:
    """The exception that an answer says."""
    if kind == ERROR:
        sealed, text = result
        if sealed is not None:
            try:
                error: BaseException = workers.unseal(sealed)
            except Exception:
                return RemoteError(text)
            error.__cause__ = RemoteError(f"\n{text}")
            return error
        return RemoteError(text)
    if kind == UNSERIALIZABLE:
        return RemoteError(f"Unserializable message: {result}\n")
    return RemoteError(result)


# ---- this process's connections to a server


class _Mine:
    """A thread's own line. When the thread ends, another may have it."""

    __slots__ = ("__weakref__", "busy", "idle", "line")

    def __init__(self, idle: list[Any]) -> None:
        self.line: wire.Line | None = None
        self.busy = False
        self.idle = idle

    def __del__(self) -> None:
        if self.line is not None:
            self.idle.append(self.line)


class _Sound(Exception):
    """The call failed, the line did not."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


_links: weakref.WeakValueDictionary[tuple[Any, str], Link] = weakref.WeakValueDictionary()


_all_links: weakref.WeakSet[Link] = weakref.WeakSet()


def _before_fork() -> None:
    for link in list(_all_links):
        link._before_fork()


os.register_at_fork(before=_before_fork)


class Link:
    """This process's connections to one server: one for each thread that calls it."""

    def __init__(
        self,
        address: Any,
        key: bytes | None,
        serializer: str = "pickle",
        local: str | None = None,
        ssl_context: Any = None,
        limit: int = wire.FRAME_LIMIT,
    ) -> None:
        self.address, self.serializer, self.local = address, serializer, local
        self.key = None if key is None else bytes(key)  # None: the first connection learns it, as a process of the same user
        self.ssl_context, self.limit = ssl_context, limit
        self.live = 0  # proxies
        self.credit: set[str] = set()  # references that the server counts already for proxies about to be made
        self.loans: dict[str, bytes] = {}  # or that it counts for a message that is being loaded
        self._numbers = itertools.count(1)
        self._begin()
        _all_links.add(self)
        util.register_after_fork(self, Link._forked)

    @staticmethod
    def to(address: Any, key: bytes, serializer: str, local: str | None = None, **more: Any) -> Link:
        """The process's link to an address, made when there is none."""
        link = _links.get((address, serializer))
        if link is None or (link.key is not None and link.key != bytes(key)):
            link = Link(address, key, serializer, local, **more)
            link.enlist()
        elif link.local is None:
            link.local = local
        return link

    def enlist(self) -> None:
        """Be the one that proxies with this address find."""
        _links[self.address, self.serializer] = self

    @staticmethod
    def key_of(address: Any, serializer: str) -> bytes | None:
        link = _links.get((address, serializer))
        return None if link is None else link.key

    def _begin(self) -> None:
        self._pid = os.getpid()
        self.session = os.urandom(16)
        self._mine = threading.local()
        self._idle: list[wire.Line] = []
        self._brood = b""
        self._dropped: deque[str] = deque()

    @staticmethod
    def of_message(token: Token, serializer: str) -> Link | None:
        """The link for a proxy that came without its server's key: the key is learnt over the server's private socket.

        A key never travels in a message. None where that socket cannot be reached: from another host, user or container.
        """
        if token.local is None or not token.local.startswith("/"):
            return None
        link = Link(token.address, None, serializer, token.local)
        try:
            link._idle.append(link.connect())
        except (AuthenticationError, OSError, EOFError):
            return None
        link.enlist()
        return link

    def _before_fork(self) -> None:
        """Have the server keep all that this process refers to for a child, whatever the parent does meanwhile."""
        if self.live and self._pid != os.getpid():  # a fork forks before its first call: what was kept for it is for one
            self._forked()
        if self.live:
            self._brood = os.urandom(8)
            with contextlib.suppress(Exception):  # the server may have ended
                self.tell("breed", self._brood) or self.ask("breed", self._brood)

    def _forked(self) -> None:
        """In a child: lines are its parent's; the proxies it was born with are its own references."""
        if self._pid == os.getpid():
            return
        brood = self._brood
        self._begin()
        if self.live:
            with contextlib.suppress(Exception):
                self.ask("adopt", brood)

    # ---- calling

    def connect(self) -> wire.Line:
        more: dict[str, Any] = {"session": self.session, "serializer": self.serializer, "limit": self.limit}
        if self.key is None:
            return wire.connect(self.local, None, learn=self._learn, **more)
        if self.local is not None and self.local != self.address:
            try:
                return wire.connect(self.local, self.key, **more)
            except (AuthenticationError, OSError, wire.Closed):
                self.local = None  # of another host, user or container
        return wire.connect(self.address, self.key, ssl_context=self.ssl_context, **more)

    def _learn(self, key: bytes) -> None:
        self.key = key

    def call(self, ident: str | None, method: str, args: Any = (), kwds: Any = {}) -> tuple[int, Any]:  # noqa: B006
        """(kind, result) of a call; made on a line of this thread's own.

        An interrupted call (Ctrl-C, an exception from a signal handler) gives its line up; where it was sent and its answer
        comes after all, its number says that it is nobody's.
        """
        if self._pid != os.getpid():
            self._forked()
        try:
            mine: _Mine = self._mine.own
        except AttributeError:
            mine = self._mine.own = _Mine(self._idle)
        if mine.busy:  # a call within a call: by a signal handler, by pickling, by a finalizer
            mine = _Mine(self._idle)
        mine.busy = True
        number = next(self._numbers)
        try:
            line = mine.line
            if line is None:
                line = mine.line = self._free_line()
            while self._dropped:
                line.send((0, ONE_WAY, "decref", (self._dropped.popleft(),), {}))
            try:
                line.send((number, ident, method, args, kwds))
            except wire.Unsendable as error:
                raise _Sound(error.__cause__ or error) from None
            except ClosedError:
                raise wire.Closed from None
            except Exception as error:
                if not line.shared:
                    raise
                raise _Sound(error) from None
            while True:
                try:
                    of, kind, result = line.recv()
                except (wire.Closed, OSError):
                    raise
                except Exception as error:  # what came cannot be unpickled here
                    raise _Sound(error) from None
                if of in (number, UNKNOWN):
                    return kind, result
                del result
        except _Sound as sound:
            raise sound.error from None
        except (wire.Closed, BrokenPipeError, ConnectionResetError) as error:
            self._drop(mine)
            raise ServerEndedError(
                f"the manager's server at {self.address!r} has ended, or closed the connection ({error})"
            ) from error
        except BaseException:
            self._drop(mine)
            raise
        finally:
            mine.busy = False

    def ask(self, method: str, *args: Any, **kwds: Any) -> Any:
        """What the server itself answers."""
        kind, result = self.call(None, method, args, kwds)
        if kind == RETURN:
            return result
        raise error_of(kind, result)

    def tell(self, method: str, what: Any) -> bool:
        """Say something that needs no answer, unless that would disturb a call or need a new line: whether it was said."""
        mine = getattr(self._mine, "own", None)
        if self._pid != os.getpid() or mine is None or mine.busy or mine.line is None:
            return False
        mine.busy = True
        try:
            mine.line.send((0, ONE_WAY, method, (what,), {}))
        finally:
            mine.busy = False
        return True

    def drop(self, ident: str) -> None:
        """A reference is no longer needed: say so now, or with the next call."""
        try:
            if not self.tell("decref", ident):
                self._dropped.append(ident)
        except Exception:  # the server has ended
            self._dropped.clear()

    def _free_line(self) -> wire.Line:
        try:
            return self._idle.pop()
        except IndexError:
            return self.connect()

    def _drop(self, mine: _Mine) -> None:
        """Give a line up; a new one first, since with its last line a process's references end."""
        line, mine.line = mine.line, None
        if line is None:
            return
        if self.live and not self._idle:
            with contextlib.suppress(Exception):
                self._idle.append(self.connect())
        line.close()

    def close(self) -> None:
        """Close this thread's line and those that no thread uses; for servers that have ended."""
        mine = getattr(self._mine, "own", None)
        if mine is not None and mine.line is not None:
            self._idle.append(mine.line)
            mine.line = None
        while self._idle:
            self._idle.pop().close()

    def __del__(
        self, finalizing: Callable[[], bool] = sys.is_finalizing, getpid: Callable[[], int] = os.getpid
    ) -> None:
        if not finalizing() and self._pid == getpid():  # else the other side sees it by itself
            self.close()


# ---- proxies


class BaseProxy:
    """A proxy of an object in a manager's server. Mirrors `multiprocessing.managers.BaseProxy`.

    Derive from it, name the methods in `_exposed_`, and call them by `_callmethod`.
    """

    _direct: Any = None  # the shared object itself, where this process can use it

    def __init__(
        self,
        token: Token,
        serializer: str,
        manager: Any = None,
        authkey: bytes | None = None,
        exposed: Any = None,
        incref: bool = True,
        manager_owned: bool = False,
    ) -> None:
        self._token, self._id = token, token.id
        self._manager, self._serializer = manager, serializer
        self._owned_by_manager = manager_owned
        if authkey is None:
            authkey = manager._authkey if manager is not None else Link.key_of(token.address, serializer)
        self._authkey = AuthenticationString(authkey or process.current_process().authkey)
        self._link: Any = (
            process.current_process()._manager_server  # type: ignore[attr-defined]
            if manager_owned
            else getattr(manager, "_link", None) or Link.to(token.address, self._authkey, serializer, token.local)
        )
        if incref:
            self._incref()

    def _callmethod(self, methodname: str, args: Any = (), kwds: Any = {}) -> Any:  # noqa: B006
        """Call a method of the referent: a copy of the result."""
        if self._direct is not None:
            method = getattr(self._direct, methodname, None)
            if method is not None:
                return method(*args, **kwds)
        kind, result = self._link.call(self._id, methodname, args, kwds)
        if kind == RETURN:
            return result
        if kind == PROXY:
            return self._proxy_of(*result)
        try:
            raise error_of(kind, result)
        finally:
            del result

    def _proxy_of(self, exposed: Any, typeid: str, ident: str, direct: Any) -> Any:
        if self._manager is not None:
            make = self._manager._registry[typeid][-1]
        else:
            from copyless.managers import SyncManager

            make = SyncManager._registry.get(typeid, (AutoProxy,))[-1]
        token = Token(typeid, self._token.address, ident, self._token.local)
        return make_proxy(self._link, make, token, self._serializer, self._manager, self._authkey, exposed, direct)

    def _getvalue(self) -> Any:
        """A copy of the value of the referent."""
        return self._callmethod("#GETVALUE")

    def _incref(self) -> None:
        link = self._link
        if self._id in link.credit:
            link.credit.discard(self._id)
        else:
            self._stand_on(link.ask("incref", self._id, link.loans.pop(self._id, None)))
        link.live += 1
        weakref.finalize(self, _decref, weakref.ref(link), self._id).atexit = False

    def _stand_on(self, direct: Any) -> None:
        """Use the shared object itself for the methods that it has."""
        if direct is None:
            return
        self.__dict__["_direct"] = direct
        if type(self).__module__ == PLACE:  # whose methods say no more than the object's own
            for name in type(self)._exposed_:  # type: ignore[attr-defined]
                if not name.startswith("_") and hasattr(direct, name):
                    self.__dict__[name] = getattr(direct, name)

    def __reduce__(self) -> Any:
        kwds: dict[str, Any] = {}
        if _context.get_spawning_popen() is not None:
            kwds["authkey"] = self._authkey
        with contextlib.suppress(Exception):  # the server may have ended
            kwds["loan"] = self._link.ask("lend", self._id)
        kind: Any = type(self)
        if getattr(self, "_isauto", False):
            kwds["exposed"] = self._exposed_  # type: ignore[attr-defined]
            kind = "AutoProxy"
        elif globals().get(type(self).__name__) is kind:  # by its name alone, so that this module may move
            kind = type(self).__name__
        return _loaders.proxy, (kind, self._token, self._serializer, kwds)

    def __deepcopy__(self, memo: Any) -> Any:
        return self._getvalue()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} object, typeid {self._token.typeid!r} at {id(self):#x}>"

    def __str__(self) -> str:
        """What the referent's repr() is."""
        try:
            return str(self._callmethod("__repr__"))
        except Exception:
            return repr(self)[:-1] + "; '__str__()' failed>"


def _decref(link: Any, ident: str) -> None:
    there = link()
    if there is not None:
        there.live -= 1
        there.drop(ident)


def make_proxy(
    link: Any, make: Any, token: Token, serializer: str, manager: Any, authkey: Any, exposed: Any, direct: Any
) -> Any:
    """The proxy of an object that the server counts one reference for."""
    link.credit.add(token.id)
    try:
        proxy = make(token, serializer, manager=manager, authkey=authkey, exposed=exposed)
    finally:
        if token.id in link.credit:
            link.credit.discard(token.id)
            link.drop(token.id)
    if isinstance(proxy, BaseProxy):
        proxy._stand_on(direct)
    return proxy


def RebuildProxy(func: Any, token: Token, serializer: str, kwds: dict[str, Any]) -> Any:
    """How a proxy is unpickled. In the server itself it stands for the object without a connection."""
    loan = kwds.pop("loan", None)
    incref = kwds.pop("incref", True)
    server = getattr(process.current_process(), "_manager_server", None)
    if server is not None and server.owns(token.id):
        kwds["manager_owned"] = True
        link = server
    else:
        known = kwds.get("authkey") or Link.key_of(token.address, serializer)
        found = Link.of_message(token, serializer) if known is None else None
        link = found or Link.to(token.address, known or process.current_process().authkey, serializer, token.local)
    if loan is not None:
        link.loans[token.id] = loan
    try:
        return func(token, serializer, incref=incref, **kwds)
    finally:
        link.loans.pop(token.id, None)


# ---- proxy types


def MakeProxyType(name: str, exposed: Any, _cache: dict[Any, Any] = {}) -> Any:  # noqa: B006
    """A proxy type whose methods are given by `exposed`."""
    exposed = tuple(exposed)
    known = _cache.get((name, exposed))
    if known is not None:
        return known
    methods: dict[str, Any] = {method: _method(method) for method in exposed}
    made = type(name, (BaseProxy,), {**methods, "_exposed_": exposed, "__module__": PLACE})
    _cache[name, exposed] = made
    return made


def _method(name: str) -> Callable[..., Any]:
    def method(self: Any, /, *args: Any, **kwds: Any) -> Any:
        return self._callmethod(name, args, kwds)

    method.__name__ = method.__qualname__ = name
    return method


def AutoProxy(
    token: Token,
    serializer: str,
    manager: Any = None,
    authkey: bytes | None = None,
    exposed: Any = None,
    incref: bool = True,
    manager_owned: bool = False,
) -> Any:
    """A proxy with the public methods of what it stands for."""
    if exposed is None:
        server = getattr(process.current_process(), "_manager_server", None)
        known = manager._authkey if manager is not None else Link.key_of(token.address, serializer)
        key = authkey or known or process.current_process().authkey
        link = server if manager_owned else Link.to(token.address, key, serializer, token.local)
        exposed = link.ask("get_methods", token.id)  # type: ignore[union-attr]
    kind = MakeProxyType(f"AutoProxy[{token.typeid}]", exposed)
    proxy = kind(token, serializer, manager=manager, authkey=authkey, incref=incref, manager_owned=manager_owned)
    proxy._isauto = True
    return proxy


class IteratorProxy(BaseProxy):
    """Of an iterator or generator."""

    _exposed_ = ("__next__", "send", "throw", "close")

    def __iter__(self) -> IteratorProxy:
        return self

    def __next__(self, *args: Any) -> Any:
        return self._callmethod("__next__", args)

    def send(self, *args: Any) -> Any:
        return self._callmethod("send", args)

    def throw(self, *args: Any) -> Any:
        return self._callmethod("throw", args)

    def close(self, *args: Any) -> Any:
        return self._callmethod("close", args)


class AcquirerProxy(BaseProxy):
    """Of a lock or semaphore."""

    _exposed_: tuple[str, ...] = ("acquire", "release")

    def acquire(self, blocking: bool = True, timeout: float | None = None) -> Any:
        return self._callmethod("acquire", (blocking,) if timeout is None else (blocking, timeout))

    def release(self) -> Any:
        return self._callmethod("release")

    def __enter__(self) -> Any:
        return self._callmethod("acquire")

    def __exit__(self, *exc: object) -> None:
        self._callmethod("release")


class ConditionProxy(AcquirerProxy):
    """Of a condition."""

    _exposed_ = ("acquire", "release", "wait", "notify", "notify_all")

    def wait(self, timeout: float | None = None) -> Any:
        return self._callmethod("wait", (timeout,))

    def notify(self, n: int = 1) -> Any:
        return self._callmethod("notify", (n,))

    def notify_all(self) -> Any:
        return self._callmethod("notify_all")

    def wait_for(self, predicate: Callable[[], Any], timeout: float | None = None) -> Any:
        result = predicate()
        end = None if timeout is None else time.monotonic() + timeout
        while not result:
            left = None if end is None else end - time.monotonic()
            if left is not None and left <= 0:
                break
            self.wait(left)
            result = predicate()
        return result


class EventProxy(BaseProxy):
    """Of an event."""

    _exposed_ = ("is_set", "set", "clear", "wait")

    def is_set(self) -> Any:
        return self._callmethod("is_set")

    def set(self) -> Any:
        return self._callmethod("set")

    def clear(self) -> Any:
        return self._callmethod("clear")

    def wait(self, timeout: float | None = None) -> Any:
        return self._callmethod("wait", (timeout,))


class BarrierProxy(BaseProxy):
    """Of a barrier."""

    _exposed_ = ("__getattribute__", "wait", "abort", "reset")

    def wait(self, timeout: float | None = None) -> Any:
        return self._callmethod("wait", (timeout,))

    def abort(self) -> Any:
        return self._callmethod("abort")

    def reset(self) -> Any:
        return self._callmethod("reset")

    @property
    def parties(self) -> Any:
        return self._callmethod("__getattribute__", ("parties",))

    @property
    def n_waiting(self) -> Any:
        return self._callmethod("__getattribute__", ("n_waiting",))

    @property
    def broken(self) -> Any:
        return self._callmethod("__getattribute__", ("broken",))


class NamespaceProxy(BaseProxy):
    """Of an object with public attributes."""

    _exposed_ = ("__getattribute__", "__setattr__", "__delattr__")

    def __getattr__(self, key: str) -> Any:
        if key[0] == "_":
            return object.__getattribute__(self, key)
        return object.__getattribute__(self, "_callmethod")("__getattribute__", (key,))

    def __setattr__(self, key: str, value: Any) -> None:
        if key[0] == "_":
            object.__setattr__(self, key, value)
        else:
            object.__getattribute__(self, "_callmethod")("__setattr__", (key, value))

    def __delattr__(self, key: str) -> None:
        if key[0] == "_":
            object.__delattr__(self, key)
        else:
            object.__getattribute__(self, "_callmethod")("__delattr__", (key,))


class ValueProxy(BaseProxy):
    """Of a value."""

    _exposed_ = ("get", "set")

    def get(self) -> Any:
        return self._callmethod("get")

    def set(self, value: Any) -> Any:
        return self._callmethod("set", (value,))

    value = property(get, set)

    __class_getitem__: Any = classmethod(types.GenericAlias)


def _plain(value: Any) -> Any:
    """An operand that is a proxy, as what it stands for."""
    return value._getvalue() if isinstance(value, BaseProxy) else value


def _in_place(name: str) -> Callable[..., Any]:
    def method(self: Any, value: Any) -> Any:
        self._callmethod(name, (_plain(value),))
        return self

    return method


def _operator(name: str) -> Callable[..., Any]:
    def method(self: Any, value: Any) -> Any:
        return self._callmethod(name, (_plain(value),))

    return method


BaseListProxy: Any = MakeProxyType(
    "BaseListProxy",
    (
        "__add__", "__contains__", "__delitem__", "__getitem__", "__imul__", "__len__", "__mul__", "__reversed__",
        "__rmul__", "__setitem__", "append", "clear", "copy", "count", "extend", "index", "insert", "pop", "remove",
        "reverse", "sort",
    ),
)  # fmt: skip


class ListProxy(BaseListProxy):  # type: ignore[misc]
    """Of a list; with the methods of Python 3.14."""

    __iadd__ = _in_place("extend")
    __imul__ = _in_place("__imul__")
    __class_getitem__: Any = classmethod(types.GenericAlias)


_BaseDictProxy: Any = MakeProxyType(
    "_BaseDictProxy",
    (
        "__contains__", "__delitem__", "__getitem__", "__ior__", "__iter__", "__len__", "__or__", "__reversed__", "__ror__",
        "__setitem__", "clear", "copy", "fromkeys", "get", "items", "keys", "pop", "popitem", "setdefault", "update", "values",
    ),
)  # fmt: skip
_BaseDictProxy._method_to_typeid_ = {"__iter__": "Iterator", "__reversed__": "Iterator"}


class DictProxy(_BaseDictProxy):  # type: ignore[misc]
    """Of a dict; with the methods of Python 3.14."""

    __or__, __ror__, __ior__ = _operator("__or__"), _operator("__ror__"), _in_place("__ior__")
    __class_getitem__: Any = classmethod(types.GenericAlias)


_SET_OPERATORS = ("__and__", "__or__", "__sub__", "__xor__", "__rand__", "__ror__", "__rsub__", "__rxor__",
                  "__eq__", "__ne__", "__ge__", "__gt__", "__le__", "__lt__")  # fmt: skip
_SET_IN_PLACE = ("__iand__", "__ior__", "__isub__", "__ixor__")
_BaseSetProxy: Any = MakeProxyType(
    "_BaseSetProxy",
    (
        *_SET_OPERATORS, *_SET_IN_PLACE, "__contains__", "__iter__", "__len__", "add", "clear", "copy", "difference",
        "difference_update", "discard", "intersection", "intersection_update", "isdisjoint", "issubset", "issuperset", "pop",
        "remove", "symmetric_difference", "symmetric_difference_update", "union", "update",
    ),
)  # fmt: skip
_BaseSetProxy._method_to_typeid_ = {"__iter__": "Iterator"}
SetProxy: Any = type(
    "SetProxy",
    (_BaseSetProxy,),
    {
        "__doc__": "Of a set, as Python 3.14 has it.",
        "__module__": PLACE,
        **{name: _operator(name) for name in _SET_OPERATORS},
        **{name: _in_place(name) for name in _SET_IN_PLACE},
        "__hash__": None,
        "__class_getitem__": classmethod(types.GenericAlias),
    },
)

ArrayProxy: Any = MakeProxyType("ArrayProxy", ("__len__", "__getitem__", "__setitem__"))

BasePoolProxy: Any = MakeProxyType(
    "BasePoolProxy",
    (
        "apply", "apply_async", "close", "imap", "imap_unordered", "join", "map", "map_async", "starmap", "starmap_async",
        "terminate",
    ),
)  # fmt: skip
BasePoolProxy._method_to_typeid_ = {
    "apply_async": "AsyncResult",
    "map_async": "AsyncResult",
    "starmap_async": "AsyncResult",
    "imap": "Iterator",
    "imap_unordered": "Iterator",
}


class PoolProxy(BasePoolProxy):  # type: ignore[misc]
    """Of a pool whose workers are the server's children."""

    def __enter__(self) -> PoolProxy:
        return self

    def __exit__(self, *exc: object) -> None:
        self.terminate()


for _public in __all__:
    globals()[_public].__module__ = PLACE
