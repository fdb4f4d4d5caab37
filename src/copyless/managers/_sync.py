"""`SyncManager`: the manager of lists, dicts, queues, locks and other objects that programs share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from multiprocessing.managers import Array, Namespace, Value  # type: ignore[attr-defined]
from typing import TYPE_CHECKING, Any

from copyless import pool, synchronize
from copyless._typing import TypeVar
from copyless.managers._manager import BaseManager
from copyless.managers._protocol import PLACE
from copyless.managers._proxies import (
    PROXY_TYPES,
    AcquirerProxy,
    ArrayProxy,
    NamespaceProxy,
    PoolProxy,
    ValueProxy,
)
from copyless.queues import JoinableQueue

__all__ = ["SyncManager"]

T = TypeVar("T")
Q = TypeVar("Q", default=Any)

if TYPE_CHECKING:
    from copyless._typing import proxy_types as _types


class SyncManager(BaseManager):
    """A manager of lists, dicts, sets, queues, locks, pools and other objects that programs share.

    Mirrors `multiprocessing.managers.SyncManager`, with `set` and the methods of Python 3.14. Parameters and errors are
    those of `BaseManager`. `copyless.Manager()` returns a started one.

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

    __module__ = PLACE

    if TYPE_CHECKING:  # registered below

        def Queue(self, maxsize: int = 0) -> _types.StandardQueueProxy[Q]: ...
        def JoinableQueue(self, maxsize: int = 0) -> _types.StandardQueueProxy[Q]: ...
        def Event(self) -> _types.StandardEventProxy: ...
        def Lock(self) -> _types.StandardLockProxy: ...
        def RLock(self) -> _types.StandardRLockProxy: ...
        def Semaphore(self, value: int = 1) -> _types.StandardSemaphoreProxy: ...
        def BoundedSemaphore(self, value: int = 1) -> _types.StandardSemaphoreProxy: ...
        def Condition(self, lock: AcquirerProxy | None = None) -> _types.StandardConditionProxy: ...
        def Barrier(
            self, parties: int, action: Callable[[], object] | None = None, timeout: float | None = None
        ) -> _types.StandardBarrierProxy: ...
        def Pool(
            self,
            processes: int | None = None,
            initializer: Callable[..., object] | None = None,
            initargs: Iterable[object] = (),
            maxtasksperchild: int | None = None,
        ) -> PoolProxy: ...

        list: _types.MakesList
        dict: _types.MakesDict
        set: _types.MakesSet

        def Value(self, typecode: str, value: T) -> ValueProxy[T]: ...
        def Array(self, typecode: str, sequence: Iterable[T]) -> ArrayProxy[T]: ...
        def Namespace(self, **more: object) -> NamespaceProxy: ...

    @classmethod
    def register(
        cls,
        typeid: str,
        callable: Callable[..., object] | None = None,
        proxytype: Callable[..., object] | None = None,
        exposed: Sequence[str] | None = None,
        method_to_typeid: Mapping[str, str] | None = None,
        create_method: bool = True,
    ) -> None:
        """Add a method `typeid` that makes an object in the server; see `BaseManager.register`."""
        super().register(typeid, callable, proxytype, exposed, method_to_typeid, create_method)
        if cls is SyncManager:  # proxies without a manager use these types too
            PROXY_TYPES[typeid] = cls._registry[typeid][-1]


_CALLABLES: dict[str, Callable[..., object]] = {
    "Queue": JoinableQueue,
    "JoinableQueue": JoinableQueue,
    "Event": synchronize.Event,
    "Lock": synchronize.Lock,
    "RLock": synchronize.RLock,
    "Semaphore": synchronize.Semaphore,
    "BoundedSemaphore": synchronize.BoundedSemaphore,
    "Condition": synchronize.Condition,
    "Barrier": synchronize.Barrier,
    "Pool": pool.Pool,
    "list": list,
    "dict": dict,
    "set": set,
    "Value": Value,
    "Array": Array,
    "Namespace": Namespace,
}
for _typeid, _proxytype in list(PROXY_TYPES.items()):
    SyncManager.register(_typeid, _CALLABLES.get(_typeid), _proxytype, create_method=_typeid in _CALLABLES)
