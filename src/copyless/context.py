"""Contexts: multiprocessing's, with our shared objects. They make ``import copyless as mp`` run an existing program.

Processes, pipes and start methods are multiprocessing's own; what processes share is ours. A context is one of
multiprocessing's too (a subclass), so whatever takes those takes it.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable
from multiprocessing import context as _stdlib
from multiprocessing.context import AuthenticationError, BaseContext, BufferTooShort, ProcessError, TimeoutError
from typing import TYPE_CHECKING, Any, Literal, overload

from copyless import connection, managers, pool, queues, sharedctypes, synchronize
from copyless._standard_names import standard_names

__all__ = [
    "AuthenticationError",
    "BaseContext",
    "BufferTooShort",
    "Context",
    "DefaultContext",
    "ForkContext",
    "ForkServerContext",
    "Manager",
    "ProcessError",
    "SpawnContext",
    "TimeoutError",
    "get_context",
]


def Manager(*args: Any, **kwds: Any) -> managers.SyncManager:
    """A started `copyless.managers.SyncManager`; arguments as its own. Mirrors `multiprocessing.Manager`.

    Examples
    --------
    >>> import copyless
    >>> with copyless.Manager() as manager:
    ...     numbers = manager.list([3, 1, 2])
    ...     numbers.sort()
    ...     numbers[:]
    [1, 2, 3]
    """
    manager = managers.SyncManager(*args, **kwds)
    manager.start()
    return manager


class Context:
    """What a context makes that is ours. Mirrors `multiprocessing.context.BaseContext`."""

    def Manager(self) -> managers.SyncManager:
        """A started manager, whose server is started by this context's method."""
        return Manager(ctx=self)

    def Pipe(self, duplex: bool = True) -> tuple[connection.Connection, connection.Connection]:
        return connection.Pipe(duplex)

    def Lock(self, **more: Any) -> synchronize.Lock:
        return synchronize.Lock(**more)

    def RLock(self, **more: Any) -> synchronize.RLock:
        return synchronize.RLock(**more)

    def Condition(self, lock: Any = None, **more: Any) -> synchronize.Condition:
        return synchronize.Condition(lock, **more)

    def Semaphore(self, value: int = 1, **more: Any) -> synchronize.Semaphore:
        return synchronize.Semaphore(value, **more)

    def BoundedSemaphore(self, value: int = 1, **more: Any) -> synchronize.BoundedSemaphore:
        return synchronize.BoundedSemaphore(value, **more)

    def Event(self, **more: Any) -> synchronize.Event:
        return synchronize.Event(**more)

    def Barrier(
        self, parties: int, action: Any = None, timeout: float | None = None, **more: Any
    ) -> synchronize.Barrier:
        return synchronize.Barrier(parties, action, timeout, **more)

    def RWLock(self, **more: Any) -> synchronize.RWLock:
        return synchronize.RWLock(**more)

    def Queue(self, maxsize: int = 0, **more: Any) -> queues.Queue[Any]:
        return queues.Queue(maxsize, **more)

    def JoinableQueue(self, maxsize: int = 0, **more: Any) -> queues.JoinableQueue[Any]:
        return queues.JoinableQueue(maxsize, **more)

    def SimpleQueue(self, **more: Any) -> queues.SimpleQueue[Any]:
        return queues.SimpleQueue(**more)

    def Pool(
        self,
        processes: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        maxtasksperchild: int | None = None,
        **more: Any,
    ) -> pool.Pool:
        return pool.Pool(processes, initializer, initargs, maxtasksperchild, context=self, **more)

    def RawValue(self, typecode_or_type: Any, *args: Any) -> Any:
        return sharedctypes.RawValue(typecode_or_type, *args)

    def RawArray(self, typecode_or_type: Any, size_or_initializer: Any = None, **more: Any) -> Any:
        return sharedctypes.RawArray(typecode_or_type, size_or_initializer, **more)

    def Value(self, typecode_or_type: Any, *args: Any, lock: Any = True) -> Any:
        return sharedctypes.Value(typecode_or_type, *args, lock=lock)

    def Array(self, typecode_or_type: Any, size_or_initializer: Any = None, *, lock: Any = True, **more: Any) -> Any:
        return sharedctypes.Array(typecode_or_type, size_or_initializer, lock=lock, **more)

    def get_context(self, method: str | None = None) -> Any:
        return self if method is None else get_context(method)

    def __repr__(self) -> str:
        return f"<copyless context {self._name!r}>"  # type: ignore[attr-defined]

    def __reduce__(self) -> Any:
        return get_context, (self._name,)  # type: ignore[attr-defined]


class ForkContext(Context, _stdlib.ForkContext):  # type: ignore[misc]
    """Processes are forked."""


class SpawnContext(Context, _stdlib.SpawnContext):  # type: ignore[misc]
    """Each process is a new interpreter."""


class ForkServerContext(Context, _stdlib.ForkServerContext):  # type: ignore[misc]
    """Processes are forked from a server that has no threads."""


class DefaultContext(Context, _stdlib.DefaultContext):  # type: ignore[misc]
    """Of two methods, the one given at first and the one set later."""

    @property
    def _name(self) -> str:
        return str(self.get_start_method())

    def get_context(self, method: str | None = None) -> Any:
        return _contexts[super(Context, self).get_context(method).get_start_method()]


_contexts: dict[str, Any] = {"fork": ForkContext(), "spawn": SpawnContext(), "forkserver": ForkServerContext()}


@overload
def get_context(method: Literal["fork"]) -> ForkContext: ...
@overload
def get_context(method: Literal["spawn"]) -> SpawnContext: ...
@overload
def get_context(method: Literal["forkserver"]) -> ForkServerContext: ...
@overload
def get_context(method: None = None) -> ForkContext | SpawnContext | ForkServerContext: ...
@overload
def get_context(method: str | None) -> Any: ...
def get_context(method: str | None = None) -> Any:
    """A context whose processes are started by 'fork', 'spawn' or 'forkserver' (None: the default); the rest is ours.

    Mirrors `multiprocessing.get_context`; ValueError for a method that this system has not.

    Examples
    --------
    >>> import copyless
    >>> context = copyless.get_context("spawn")
    >>> context.Process.__name__, type(context.Queue()).__module__
    ('SpawnProcess', 'copyless.queues')
    """
    base = multiprocessing.get_context(method)
    return _contexts[base.get_start_method()]


if TYPE_CHECKING:
    from multiprocessing.context import ForkProcess as ForkProcess
    from multiprocessing.context import ForkServerProcess as ForkServerProcess
    from multiprocessing.context import Process as Process
    from multiprocessing.context import SpawnProcess as SpawnProcess
    from multiprocessing.context import assert_spawning as assert_spawning
    from multiprocessing.context import get_spawning_popen as get_spawning_popen
    from multiprocessing.context import set_spawning_popen as set_spawning_popen
else:
    __getattr__, __dir__ = standard_names(__name__, "multiprocessing.context", without=("_concrete_contexts", "_default_context"))
