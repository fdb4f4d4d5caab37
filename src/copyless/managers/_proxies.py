"""Proxies: objects that represent objects in a manager's server.

Mirrors the proxies of `multiprocessing.managers`: same classes, same private methods that users override or call
(`_callmethod`, `_getvalue`), same pickling. The differences:

* A call between processes of one host goes through shared memory and makes no system call while both sides are awake.
* On the manager's host, a proxy of a shared object (a lock, an event, a queue) uses the object directly: the methods of
  the proxy are those of the object. The server takes no part and may even have ended.
* A proxy keeps its object alive while it is under way in a message (`COPYLESS_MESSAGE_TTL`). A killed process keeps no
  object alive.
* A call that is interrupted leaves no answer behind that a later call could mistake for its own.
"""

from __future__ import annotations

import collections.abc
import contextlib
import time
import types
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from multiprocessing import context as _context
from multiprocessing import process
from typing import TYPE_CHECKING, Any, TypeVar

from copyless import _loaders
from copyless.managers._link import Link
from copyless.managers._protocol import PLACE, PROXY, RETURN, AuthenticationString, Token, error_of

__all__ = [
    "PROXY_TYPES", "AcquirerProxy", "ArrayProxy", "AutoProxy", "BarrierProxy", "BaseListProxy", "BasePoolProxy",
    "BaseProxy",
    "ConditionProxy", "DictProxy", "EventProxy", "IteratorProxy", "ListProxy", "MakeProxyType", "NamespaceProxy",
    "PoolProxy",
    "RebuildProxy", "SetProxy", "ValueProxy", "make_proxy",
]  # fmt: skip

if TYPE_CHECKING:
    from typing_extensions import Self

    from copyless._typing import BaseManager, Server

T = TypeVar("T")


def _server_here() -> Server | None:
    """The server that this process runs, which proxies use instead of a Link; None in a client."""
    return getattr(process.current_process(), "_manager_server", None)


class BaseProxy:
    """A proxy of an object in a manager's server. Mirrors `multiprocessing.managers.BaseProxy`.

    Derive a class from it, list the methods in `_exposed_`, and call them with `_callmethod`.
    """

    _direct: Any = None  # the shared object itself, if this process can use it

    _token: Token
    _id: str
    _isauto: bool
    if TYPE_CHECKING:
        _exposed_: tuple[str, ...]

    def __init__(
        self,
        token: Token,
        serializer: str,
        manager: BaseManager | None = None,
        authkey: bytes | None = None,
        exposed: Sequence[str] | None = None,
        incref: bool = True,
        manager_owned: bool = False,
    ) -> None:
        self._token, self._id = token, token.id
        self._manager, self._serializer = manager, serializer
        if authkey is None:
            authkey = manager._authkey if manager is not None else Link.key_of(token.address, serializer)
        self._authkey = AuthenticationString(authkey or process.current_process().authkey)
        self._link: Any = (
            _server_here()
            if manager_owned
            else getattr(manager, "_link", None) or Link.to(token.address, self._authkey, serializer, token.local)
        )
        if incref:
            self._incref()

    def _callmethod(self, methodname: str, args: Sequence[object] = (), kwds: Mapping[str, object] = {}) -> Any:
        """Call a method of the object in the server. Returns a copy of its result, and raises what the method
        raises.
        """
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

    def _proxy_of(self, exposed: Sequence[str], typeid: str, ident: str, direct: object) -> object:
        if self._manager is not None:
            make = self._manager._registry[typeid][-1]
        else:  # a proxy that arrived in a message
            make = PROXY_TYPES.get(typeid, AutoProxy)
        token = Token(typeid, self._token.address, ident, self._token.local)
        return make_proxy(self._link, make, token, self._serializer, self._manager, self._authkey, exposed, direct)

    def _getvalue(self) -> object:
        """A copy of the object in the server."""
        return self._callmethod("#GETVALUE")

    def _incref(self) -> None:
        link = self._link
        if self._id in link.credit:
            link.credit.discard(self._id)
        else:
            self._stand_on(link.ask("incref", self._id, link.loans.pop(self._id, None)))
        link.live += 1
        weakref.finalize(self, _decref, weakref.ref(link), self._id).atexit = False

    def _stand_on(self, direct: object) -> None:
        """Use the shared object itself for the methods that it has."""
        if direct is None:
            return
        self.__dict__["_direct"] = direct
        if type(self).__module__ == PLACE:  # a class of copyless: its methods do the same as the object's own
            for name in type(self)._exposed_:
                if not name.startswith("_") and hasattr(direct, name):
                    self.__dict__[name] = getattr(direct, name)

    def __reduce__(self) -> Any:
        kwds: dict[str, object] = {}
        if _context.get_spawning_popen() is not None:
            kwds["authkey"] = self._authkey
        with contextlib.suppress(Exception):  # the server may have ended
            kwds["loan"] = self._link.ask("lend", self._id)
        kind: str | type[BaseProxy] = type(self)
        if getattr(self, "_isauto", False):
            kwds["exposed"] = self._exposed_
            kind = "AutoProxy"
        elif globals().get(type(self).__name__) is kind:  # named by its name alone, so that this module may move
            kind = type(self).__name__
        return _loaders.proxy, (kind, self._token, self._serializer, kwds)

    def __deepcopy__(self, memo: object) -> Any:
        return self._getvalue()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} object, typeid {self._token.typeid!r} at {id(self):#x}>"

    def __str__(self) -> str:
        """The repr() of the object in the server."""
        try:
            return str(self._callmethod("__repr__"))
        except Exception:
            return repr(self)[:-1] + "; '__str__()' failed>"


def _decref(link: weakref.ref[Link | Server], ident: str) -> None:
    there = link()
    if there is not None:
        there.live -= 1
        there.drop(ident)


def make_proxy(
    link: Link | Server,
    make: Callable[..., object],
    token: Token,
    serializer: str,
    manager: BaseManager | None,
    authkey: bytes,
    exposed: Sequence[str] | None,
    direct: object,
) -> object:
    """The proxy of an object for which the server has counted one reference."""
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


def RebuildProxy(func: Callable[..., object], token: Token, serializer: str, kwds: dict[str, Any]) -> object:
    """Unpickles a proxy. In the server itself, the proxy uses the object without a connection."""
    loan = kwds.pop("loan", None)
    incref = kwds.pop("incref", True)
    server = _server_here()
    link: Link | Server
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


def MakeProxyType(
    name: str,
    exposed: Iterable[str],
    _cache: dict[tuple[str, tuple[str, ...]], type[BaseProxy]] = {},  # noqa: B006
) -> type[BaseProxy]:
    """A proxy class with the methods in `exposed`."""
    exposed = tuple(exposed)
    known = _cache.get((name, exposed))
    if known is not None:
        return known
    methods = {method: _method(method) for method in exposed}
    made = type(name, (BaseProxy,), {**methods, "_exposed_": exposed, "__module__": PLACE})
    _cache[name, exposed] = made
    return made


def _method(name: str) -> Callable[..., object]:
    def method(self: BaseProxy, /, *args: object, **kwds: object) -> object:
        return self._callmethod(name, args, kwds)

    method.__name__ = method.__qualname__ = name
    return method


def AutoProxy(
    token: Token,
    serializer: str,
    manager: BaseManager | None = None,
    authkey: bytes | None = None,
    exposed: Sequence[str] | None = None,
    incref: bool = True,
    manager_owned: bool = False,
) -> Any:
    """A proxy with all public methods of the object in the server."""
    if exposed is None:
        server = _server_here()
        known = manager._authkey if manager is not None else Link.key_of(token.address, serializer)
        key = authkey or known or process.current_process().authkey
        link: Any = server if manager_owned else Link.to(token.address, key, serializer, token.local)
        exposed = link.ask("get_methods", token.id)
    kind = MakeProxyType(f"AutoProxy[{token.typeid}]", exposed)
    proxy = kind(token, serializer, manager=manager, authkey=authkey, incref=incref, manager_owned=manager_owned)
    proxy._isauto = True
    return proxy


class IteratorProxy(BaseProxy):
    """The proxy of an iterator or generator in the server."""

    _exposed_ = ("__next__", "send", "throw", "close")

    def __iter__(self) -> Self:
        return self

    def __next__(self, *args: object) -> Any:
        return self._callmethod("__next__", args)

    def send(self, *args: object) -> Any:
        return self._callmethod("send", args)

    def throw(self, *args: object) -> Any:
        return self._callmethod("throw", args)

    def close(self, *args: object) -> Any:
        return self._callmethod("close", args)


class AcquirerProxy(BaseProxy):
    """The proxy of a lock or semaphore in the server."""

    _exposed_: tuple[str, ...] = ("acquire", "release", "locked")

    def acquire(self, blocking: bool = True, timeout: float | None = None) -> bool:
        got: bool = self._callmethod("acquire", (blocking,) if timeout is None else (blocking, timeout))
        return got

    def release(self) -> None:
        answer: None = self._callmethod("release")
        return answer

    def locked(self) -> bool:
        answer: bool = self._callmethod("locked")
        return answer

    def __enter__(self) -> bool:
        got: bool = self._callmethod("acquire")
        return got

    def __exit__(self, *exc: object) -> None:
        self._callmethod("release")


class ConditionProxy(AcquirerProxy):
    """The proxy of a condition in the server."""

    _exposed_ = ("acquire", "release", "locked", "wait", "notify", "notify_all")

    def wait(self, timeout: float | None = None) -> bool:
        answer: bool = self._callmethod("wait", (timeout,))
        return answer

    def notify(self, n: int = 1) -> None:
        answer: None = self._callmethod("notify", (n,))
        return answer

    def notify_all(self) -> None:
        answer: None = self._callmethod("notify_all")
        return answer

    def wait_for(self, predicate: Callable[[], T], timeout: float | None = None) -> T:
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
    """The proxy of an event in the server."""

    _exposed_ = ("is_set", "set", "clear", "wait")

    def is_set(self) -> bool:
        answer: bool = self._callmethod("is_set")
        return answer

    def set(self) -> None:
        answer: None = self._callmethod("set")
        return answer

    def clear(self) -> None:
        answer: None = self._callmethod("clear")
        return answer

    def wait(self, timeout: float | None = None) -> bool:
        answer: bool = self._callmethod("wait", (timeout,))
        return answer


class BarrierProxy(BaseProxy):
    """The proxy of a barrier in the server."""

    _exposed_ = ("__getattribute__", "wait", "abort", "reset")

    def wait(self, timeout: float | None = None) -> int:
        answer: int = self._callmethod("wait", (timeout,))
        return answer

    def abort(self) -> None:
        answer: None = self._callmethod("abort")
        return answer

    def reset(self) -> None:
        answer: None = self._callmethod("reset")
        return answer

    @property
    def parties(self) -> int:
        answer: int = self._callmethod("__getattribute__", ("parties",))
        return answer

    @property
    def n_waiting(self) -> int:
        answer: int = self._callmethod("__getattribute__", ("n_waiting",))
        return answer

    @property
    def broken(self) -> bool:
        answer: bool = self._callmethod("__getattribute__", ("broken",))
        return answer


class NamespaceProxy(BaseProxy):
    """The proxy of an object with public attributes in the server."""

    _exposed_ = ("__getattribute__", "__setattr__", "__delattr__")

    def __getattr__(self, key: str) -> Any:
        if key[0] == "_":
            return object.__getattribute__(self, key)
        return object.__getattribute__(self, "_callmethod")("__getattribute__", (key,))

    def __setattr__(self, key: str, value: object) -> None:
        if key[0] == "_":
            object.__setattr__(self, key, value)
        else:
            object.__getattribute__(self, "_callmethod")("__setattr__", (key, value))

    def __delattr__(self, key: str) -> None:
        if key[0] == "_":
            object.__delattr__(self, key)
        else:
            object.__getattribute__(self, "_callmethod")("__delattr__", (key,))


def _plain(value: object) -> object:
    """An operand; a copy of its object if it is a proxy."""
    return value._getvalue() if isinstance(value, BaseProxy) else value


def _in_place(name: str) -> Callable[..., object]:
    def method(self: BaseProxy, value: object) -> BaseProxy:
        self._callmethod(name, (_plain(value),))
        return self

    return method


def _operator(name: str) -> Callable[..., object]:
    def method(self: BaseProxy, value: object) -> object:
        return self._callmethod(name, (_plain(value),))

    return method


if TYPE_CHECKING:
    from copyless._typing import (
        ArrayProxy,
        BaseListProxy,
        BasePoolProxy,
        DictProxy,
        ListProxy,
        PoolProxy,
        SetProxy,
        ValueProxy,
    )
else:

    class ValueProxy(BaseProxy):
        """The proxy of a value in the server."""

        _exposed_ = ("get", "set")

        def get(self) -> Any:
            return self._callmethod("get")

        def set(self, value: object) -> Any:
            return self._callmethod("set", (value,))

        value = property(get, set)

        __class_getitem__ = classmethod(types.GenericAlias)

    BaseListProxy = MakeProxyType(
        "BaseListProxy",
        (
            "__add__", "__contains__", "__delitem__", "__getitem__", "__imul__", "__len__", "__mul__", "__reversed__",
            "__rmul__", "__setitem__", "append", "clear", "copy", "count", "extend", "index", "insert", "pop", "remove",
            "reverse", "sort",
        ),
    )  # fmt: skip
    BaseListProxy.__doc__ = "Base class of `ListProxy`, with the methods of a list."
    collections.abc.MutableSequence.register(BaseListProxy)

    class ListProxy(BaseListProxy):
        """The proxy of a list in the server, with the methods of Python 3.14."""

        __iadd__ = _in_place("extend")
        __imul__ = _in_place("__imul__")
        __class_getitem__ = classmethod(types.GenericAlias)

    _BaseDictProxy = MakeProxyType(
        "_BaseDictProxy",
        (
            "__contains__", "__delitem__", "__getitem__", "__ior__", "__iter__", "__len__", "__or__", "__reversed__",
            "__ror__",
            "__setitem__", "clear", "copy", "fromkeys", "get", "items", "keys", "pop", "popitem", "setdefault",
            "update", "values",
        ),
    )  # fmt: skip
    _BaseDictProxy._method_to_typeid_ = {"__iter__": "Iterator"}  # `reversed` gives an iterator of a copy
    collections.abc.MutableMapping.register(_BaseDictProxy)

    class DictProxy(_BaseDictProxy):
        """The proxy of a dict in the server, with the methods of Python 3.14."""

        __or__, __ror__, __ior__ = _operator("__or__"), _operator("__ror__"), _in_place("__ior__")
        __class_getitem__ = classmethod(types.GenericAlias)

    _SET_OPERATORS = ("__and__", "__or__", "__sub__", "__xor__", "__rand__", "__ror__", "__rsub__", "__rxor__",
                      "__eq__", "__ne__", "__ge__", "__gt__", "__le__", "__lt__")  # fmt: skip
    _SET_IN_PLACE = ("__iand__", "__ior__", "__isub__", "__ixor__")
    _BaseSetProxy = MakeProxyType(
        "_BaseSetProxy",
        (
            *_SET_OPERATORS, *_SET_IN_PLACE, "__contains__", "__iter__", "__len__", "add", "clear", "copy",
            "difference", "difference_update", "discard", "intersection", "intersection_update", "isdisjoint",
            "issubset", "issuperset", "pop", "remove", "symmetric_difference", "symmetric_difference_update", "union",
            "update",
        ),
    )  # fmt: skip
    _BaseSetProxy._method_to_typeid_ = {"__iter__": "Iterator"}
    collections.abc.MutableSet.register(_BaseSetProxy)  # the standard library says MutableMapping, by mistake
    SetProxy = type(
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

    ArrayProxy = MakeProxyType("ArrayProxy", ("__len__", "__getitem__", "__setitem__"))
    ArrayProxy.__doc__ = "The proxy of an `array.array` in the server."

    BasePoolProxy = MakeProxyType(
        "BasePoolProxy",
        (
            "apply", "apply_async", "close", "imap", "imap_unordered", "join", "map", "map_async", "starmap",
            "starmap_async",
            "terminate",
        ),
    )  # fmt: skip
    BasePoolProxy.__doc__ = "Base class of `PoolProxy`, with the methods of a pool."
    BasePoolProxy._method_to_typeid_ = {
        "apply_async": "AsyncResult",
        "map_async": "AsyncResult",
        "starmap_async": "AsyncResult",
        "imap": "Iterator",
        "imap_unordered": "Iterator",
    }

    class PoolProxy(BasePoolProxy):
        """The proxy of a pool whose workers are children of the server."""

        def __enter__(self) -> PoolProxy:
            return self

        def __exit__(self, *exc: object) -> None:
            self.terminate()


# The proxy class of each type that a SyncManager makes. Its registry is built from these, and a proxy without a manager
# looks here.
PROXY_TYPES: dict[str, Callable[..., object]] = {
    "Queue": AutoProxy,
    "JoinableQueue": AutoProxy,
    "Event": EventProxy,
    "Lock": AcquirerProxy,
    "RLock": AcquirerProxy,
    "Semaphore": AcquirerProxy,
    "BoundedSemaphore": AcquirerProxy,
    "Condition": ConditionProxy,
    "Barrier": BarrierProxy,
    "Pool": PoolProxy,
    "list": ListProxy,
    "dict": DictProxy,
    "set": SetProxy,
    "Value": ValueProxy,
    "Array": ArrayProxy,
    "Namespace": NamespaceProxy,
    "Iterator": IteratorProxy,  # returned by methods of other types
    "AsyncResult": AutoProxy,
}

for _public in __all__:
    if _public not in ("PROXY_TYPES", "make_proxy"):
        globals()[_public].__module__ = PLACE
