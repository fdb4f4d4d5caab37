"""Contexts: multiprocessing's contexts with copyless's shared objects. ``import copyless as mp`` runs existing
programs.

Processes, pipes and start methods are multiprocessing's own (before Python 3.14, processes have `interrupt` too); the
objects that processes share are copyless's. A context is also a subclass of multiprocessing's context, so it is
accepted wherever that is.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.context as _stdlib
from collections.abc import Callable, Iterable
from multiprocessing.context import AuthenticationError, BaseContext, BufferTooShort, ProcessError, TimeoutError
from typing import TYPE_CHECKING, Any, ClassVar, Literal, overload

from copyless import _processes, connection, managers, pool, queues, sharedctypes, synchronize
from copyless._processes import ForkProcess, ForkServerProcess, Process, SpawnProcess
from copyless._standard_names import standard_names

if TYPE_CHECKING:
    import ssl

    from typing_extensions import Unpack

    from copyless._objects import base as _options
    from copyless._typing import makers as _makers
    from copyless.managers._manager import Address

__all__ = [
    "AuthenticationError",
    "BaseContext",
    "BufferTooShort",
    "Context",
    "DefaultContext",
    "ForkContext",
    "ForkProcess",
    "ForkServerContext",
    "ForkServerProcess",
    "Manager",
    "Process",
    "ProcessError",
    "SpawnContext",
    "SpawnProcess",
    "TimeoutError",
    "get_context",
]


def Manager(
    address: Address | list[Any] | None = None,
    authkey: bytes | None = None,
    serializer: str = "pickle",
    ctx: BaseContext | Context | None = None,
    *,
    shutdown_timeout: float = 1.0,
    ssl_context: ssl.SSLContext | Callable[[], ssl.SSLContext] | None = None,
) -> managers.SyncManager:
    """A started `copyless.managers.SyncManager`; the arguments are those of its constructor. Mirrors
    `multiprocessing.Manager`.

    Examples
    --------
    >>> import copyless
    >>> with copyless.Manager() as manager:
    ...     numbers = manager.list([3, 1, 2])
    ...     numbers.sort()
    ...     numbers[:]
    [1, 2, 3]
    """
    manager = managers.SyncManager(
        address, authkey, serializer, ctx, shutdown_timeout=shutdown_timeout, ssl_context=ssl_context
    )
    manager.start()
    return manager


class Context:
    """A context whose locks, queues, pools, values and managers are copyless's.

    Mirrors `multiprocessing.context.BaseContext`; `get_context` makes one.
    """

    if TYPE_CHECKING:
        _name: str

    def Manager(self) -> managers.SyncManager:
        """A started manager, whose server process is started with the start method of this context."""
        return Manager(ctx=self)

    def Pipe(self, duplex: bool = True) -> tuple[connection.Connection[Any, Any], connection.Connection[Any, Any]]:
        """Two connected ends; see `copyless.Pipe`."""
        return connection.Pipe(duplex)

    def Lock(self, **more: Unpack[_options.LockOptions]) -> synchronize.Lock:
        """A new `copyless.Lock`; parameters are those of its constructor."""
        return synchronize.Lock(**more)

    def RLock(self, **more: Unpack[_options.LockOptions]) -> synchronize.RLock:
        """A new `copyless.RLock`; parameters are those of its constructor."""
        return synchronize.RLock(**more)

    def Condition(
        self, lock: synchronize.Lock | synchronize.RLock | None = None, **more: Unpack[_options.ConditionOptions]
    ) -> synchronize.Condition:
        """A new `copyless.Condition`; parameters are those of its constructor."""
        return synchronize.Condition(lock, **more)

    def Semaphore(self, value: int = 1, **more: Unpack[_options.SemaphoreOptions]) -> synchronize.Semaphore:
        """A new `copyless.Semaphore`; parameters are those of its constructor."""
        return synchronize.Semaphore(value, **more)

    def BoundedSemaphore(
        self, value: int = 1, **more: Unpack[_options.SemaphoreOptions]
    ) -> synchronize.BoundedSemaphore:
        """A new `copyless.BoundedSemaphore`; parameters are those of its constructor."""
        return synchronize.BoundedSemaphore(value, **more)

    def Event(self, **more: Unpack[_options.Options]) -> synchronize.Event:
        """A new `copyless.Event`; parameters are those of its constructor."""
        return synchronize.Event(**more)

    def Barrier(
        self,
        parties: int,
        action: Callable[[], object] | None = None,
        timeout: float | None = None,
        **more: Unpack[_options.Options],
    ) -> synchronize.Barrier:
        """A new `copyless.Barrier`; parameters are those of its constructor."""
        return synchronize.Barrier(parties, action, timeout, **more)

    def RWLock(self, **more: Unpack[_options.RWLockOptions]) -> synchronize.RWLock:
        """A new `copyless.RWLock`; parameters are those of its constructor."""
        return synchronize.RWLock(**more)

    def Queue(self, maxsize: int = 0, **more: Unpack[_options.QueueOptions]) -> queues.Queue[Any]:
        """A new `copyless.Queue`; parameters are those of its constructor."""
        return queues.Queue(maxsize, **more)

    def JoinableQueue(
        self, maxsize: int = 0, **more: Unpack[_options.JoinableQueueOptions]
    ) -> queues.JoinableQueue[Any]:
        """A new `copyless.JoinableQueue`; parameters are those of its constructor."""
        return queues.JoinableQueue(maxsize, **more)

    def SimpleQueue(self, **more: Unpack[_options.Options]) -> queues.SimpleQueue[Any]:
        """A new `copyless.SimpleQueue`; parameters are those of its constructor."""
        return queues.SimpleQueue(**more)

    def Pool(
        self,
        processes: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[object] = (),
        maxtasksperchild: int | None = None,
        *,
        retries: int = 0,
    ) -> pool.Pool:
        """A new `copyless.Pool` whose workers are started with the start method of this context."""
        return pool.Pool(processes, initializer, initargs, maxtasksperchild, context=self, retries=retries)

    if TYPE_CHECKING:
        RawValue: _makers.MakesRawValue
        RawArray: _makers.MakesRawArray
        Value: _makers.MakesValue
        Array: _makers.MakesArray
    else:

        def RawValue(self, typecode_or_type, *args):
            """A new `copyless.sharedctypes.RawValue`; parameters are the same."""
            return sharedctypes.RawValue(typecode_or_type, *args)

        def RawArray(self, typecode_or_type, size_or_initializer=None, **more):
            """A new `copyless.sharedctypes.RawArray`; parameters are the same."""
            return sharedctypes.RawArray(typecode_or_type, size_or_initializer, **more)

        def Value(self, typecode_or_type, *args, lock=True):
            """A new `copyless.Value`; parameters are those of its constructor."""
            return sharedctypes.Value(typecode_or_type, *args, lock=lock)

        def Array(self, typecode_or_type, size_or_initializer=None, *, lock=True, **more):
            """A new `copyless.Array`; parameters are those of its constructor."""
            return sharedctypes.Array(typecode_or_type, size_or_initializer, lock=lock, **more)

    def get_context(self, method: str | None = None) -> ForkContext | SpawnContext | ForkServerContext:
        """This context, or with a start method the context for it; see `copyless.get_context`."""
        chosen: Any = self if method is None else get_context(method)
        context: ForkContext | SpawnContext | ForkServerContext = chosen
        return context

    def __repr__(self) -> str:
        return f"<copyless context {self._name!r}>"

    def __reduce__(self) -> Any:
        return get_context, (self._name,)


class ForkContext(Context, _stdlib.ForkContext):  # type: ignore[misc]
    """The context of the start method fork: processes are forked."""

    Process: ClassVar[type[_processes.ForkProcess]] = _processes.ForkProcess


class SpawnContext(Context, _stdlib.SpawnContext):  # type: ignore[misc]
    """The context of the start method spawn: each process is a new interpreter."""

    Process: ClassVar[type[_processes.SpawnProcess]] = _processes.SpawnProcess


class ForkServerContext(Context, _stdlib.ForkServerContext):  # type: ignore[misc]
    """The context of the start method forkserver: a server without threads forks the processes."""

    Process: ClassVar[type[_processes.ForkServerProcess]] = _processes.ForkServerProcess


class DefaultContext(Context, _stdlib.DefaultContext):  # type: ignore[misc]
    """The context of the default start method, or of the one that was set with `set_start_method`."""

    Process: ClassVar[type[_processes.Process]] = _processes.Process

    @property
    def _name(self) -> str:  # type: ignore[override]
        return str(self.get_start_method())

    def get_context(  # type: ignore[override]
        self, method: str | None = None
    ) -> ForkContext | SpawnContext | ForkServerContext:
        return _contexts[super(Context, self).get_context(method).get_start_method()]


_contexts: dict[str, ForkContext | SpawnContext | ForkServerContext] = {
    "fork": ForkContext(),
    "spawn": SpawnContext(),
    "forkserver": ForkServerContext(),
}


@overload
def get_context(method: Literal["fork"]) -> ForkContext: ...
@overload
def get_context(method: Literal["spawn"]) -> SpawnContext: ...
@overload
def get_context(method: Literal["forkserver"]) -> ForkServerContext: ...
@overload
def get_context(method: None = None) -> ForkContext | SpawnContext | ForkServerContext: ...
@overload
def get_context(method: str | None) -> ForkContext | SpawnContext | ForkServerContext: ...
def get_context(method: str | None = None) -> Any:
    """A context for a start method: 'fork', 'spawn' or 'forkserver'; None for the default one.

    Mirrors `multiprocessing.get_context`. Its shared objects are copyless's, its processes multiprocessing's.

    Raises
    ------
    ValueError
        For a start method that this system does not have.

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
    from multiprocessing.context import assert_spawning as assert_spawning
    from multiprocessing.context import get_spawning_popen as get_spawning_popen
    from multiprocessing.context import set_spawning_popen as set_spawning_popen
else:
    __getattr__, __dir__ = standard_names(
        __name__, "multiprocessing.context", without=("_concrete_contexts", "_default_context")
    )
