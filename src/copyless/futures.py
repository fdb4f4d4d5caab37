"""`ProcessPoolExecutor`: the executor of the standard library, on shared memory. A killed worker does not break it.

Mirrors `concurrent.futures.ProcessPoolExecutor` of Python 3.14. The differences:

* Arguments and results are copied once, into shared memory; shared arrays are sent as handles. Arguments are pickled in
  `submit`.
* Lambdas and closures are sent by value.
* If a worker is killed, the task that it ran fails with `WorkerDiedError`, which is a `BrokenProcessPool`. All other
  tasks continue.
"""

from __future__ import annotations

import functools
import itertools
import multiprocessing
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from concurrent.futures._base import CANCELLED, CANCELLED_AND_NOTIFIED, FINISHED
from concurrent.futures.process import BrokenProcessPool, _RemoteTraceback
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, overload

from copyless import _loaders
from copyless._core import events
from copyless._one_process import check_process
from copyless._platform import processors
from copyless._workers.bundle import Bundle
from copyless._workers.outcome import outcome
from copyless._workers.protocol import FULL, RAISED, UNSENDABLE
from copyless._workers.worker_pool import WorkerPool
from copyless.errors import WorkerDiedError

__all__ = ["BrokenProcessPool", "ProcessPoolExecutor"]

if TYPE_CHECKING:
    from multiprocessing.context import BaseContext

    from typing_extensions import TypeVarTuple, Unpack

    from copyless._typing import Context

    Ts = TypeVarTuple("Ts")

P = ParamSpec("P")
T = TypeVar("T")
_INSTEAD = "its workers and its futures belong to the parent. Make an executor of its own in the child"
_DONE_STATES = (CANCELLED, CANCELLED_AND_NOTIFIED, FINISHED)
_open: weakref.WeakSet[ProcessPoolExecutor] = weakref.WeakSet()


def _at_exit() -> None:
    """Finish the submitted tasks before the interpreter ends, as the standard library does."""
    for executor in list(_open):
        executor.shutdown(wait=True)


threading._register_atexit(_at_exit)  # type: ignore[attr-defined]
os.register_at_fork(after_in_child=_open.clear)  # a forked child does not end its parent's executors


class _Future(Future[T]):
    """A future that raises an error if a forked child waits for it, because the answer never arrives there.

    A future that is done returns its result there too.
    """

    _waiting: list[Any]

    def __init__(self) -> None:
        super().__init__()
        self._pid = os.getpid()

    def _check_process(self) -> None:
        if self._pid != os.getpid() and not self._is_done():
            check_process(self._pid, self, _INSTEAD)

    def _is_done(self) -> bool:  # without the lock, which another thread of the parent may have held at the fork
        return self._state in _DONE_STATES

    @property
    def _waiters(self) -> list[Any]:
        """The attribute that `concurrent.futures.wait` and `as_completed` use."""
        self._check_process()
        return self._waiting

    @_waiters.setter
    def _waiters(self, waiters: list[Any]) -> None:
        self._waiting = waiters

    def result(self, timeout: float | None = None) -> T:
        self._check_process()
        return super().result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        self._check_process()
        return super().exception(timeout)

    def add_done_callback(self, fn: Callable[[Future[T]], object]) -> None:
        self._check_process()
        super().add_done_callback(fn)

    def cancel(self) -> bool:
        return False if self._pid != os.getpid() else super().cancel()


_Future.__name__ = _Future.__qualname__ = "Future"  # for its repr


def _deliver(future: Future[Any], i: int, kind: int, value: Any) -> None:
    """Complete a future with the answer to its task."""
    if kind == UNSENDABLE and value[0][0] is not None:
        kind, value = RAISED, value[0]
    success, value = outcome(kind, value)
    if success:
        future.set_result(value)
        return
    if kind == RAISED and value.__cause__ is not None:
        value.__cause__ = _RemoteTraceback(value.__cause__.tb)
    future.set_exception(value)


class _Task(Bundle):
    """The bundle of the one task of a future."""

    __slots__ = ("future",)

    def __init__(self, sealed: object, future: Future[Any]) -> None:
        super().__init__(sealed, 1, functools.partial(_deliver, future), 0, future.set_running_or_notify_cancel)
        self.future = future


class ProcessPoolExecutor(Executor):
    """ProcessPoolExecutor(max_workers=None, mp_context=None, initializer=None, initargs=(), *,
    max_tasks_per_child=None, retries=0)

    Worker processes that run submitted calls. Mirrors `concurrent.futures.ProcessPoolExecutor`.

    Parameters
    ----------
    max_workers
        Number of workers; None: the number of processors that this process may use.
    mp_context
        A context of `multiprocessing.get_context` or `copyless.get_context`, which determines the start method.
    initializer, initargs
        A function that each worker calls when it starts, and its arguments. If it raises, every future fails with
        `WorkerDiedError`.
    max_tasks_per_child
        Tasks after which a worker is replaced; None: no limit. Not with the start method fork.
    retries
        How often a task runs again if its worker died; 0: it fails with `WorkerDiedError`.

    Raises
    ------
    ValueError, TypeError
        For an invalid argument.
    WrongProcessError
        From `submit` and `map`, in a forked child of the process that made the executor.

    Examples
    --------
    >>> from copyless.futures import ProcessPoolExecutor
    >>> with ProcessPoolExecutor(2) as executor:
    ...     executor.submit(pow, 2, 10).result(), list(executor.map(abs, [-1, -2]))
    (1024, [1, 2])
    """

    _room = 0  # this and the next line: parameters of `WorkerPool`, for subclasses
    _idle: float | None = None

    @overload
    def __init__(
        self,
        max_workers: int | None = None,
        mp_context: BaseContext | Context | None = None,
        initializer: Callable[[], object] | None = None,
        initargs: tuple[()] = (),
        *,
        max_tasks_per_child: int | None = None,
        retries: int = 0,
    ) -> None: ...
    @overload
    def __init__(
        self,
        max_workers: int | None = None,
        mp_context: BaseContext | Context | None = None,
        *,
        initializer: Callable[[Unpack[Ts]], object],
        initargs: tuple[Unpack[Ts]],
        max_tasks_per_child: int | None = None,
        retries: int = 0,
    ) -> None: ...
    @overload
    def __init__(
        self,
        max_workers: int | None,
        mp_context: BaseContext | Context | None,
        initializer: Callable[[Unpack[Ts]], object],
        initargs: tuple[Unpack[Ts]],
        *,
        max_tasks_per_child: int | None = None,
        retries: int = 0,
    ) -> None: ...
    def __init__(
        self,
        max_workers: int | None = None,
        mp_context: Any = None,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        *,
        max_tasks_per_child: int | None = None,
        retries: int = 0,
    ) -> None:
        if max_workers is not None and max_workers <= 0:
            raise ValueError(f"max_workers must be greater than 0, not {max_workers}")
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        if max_tasks_per_child is not None:
            if not isinstance(max_tasks_per_child, int):
                raise TypeError(f"max_tasks_per_child must be an integer, not {max_tasks_per_child!r}")
            if max_tasks_per_child <= 0:
                raise ValueError(f"max_tasks_per_child must be >= 1, not {max_tasks_per_child}")
        if retries < 0:
            raise ValueError(f"retries must be 0 or more, not {retries}")
        if mp_context is None:
            mp_context = multiprocessing.get_context("spawn" if max_tasks_per_child is not None else None)
        elif max_tasks_per_child is not None and mp_context.get_start_method(allow_none=False) == "fork":
            raise ValueError(
                "max_tasks_per_child is incompatible with the 'fork' start method: give mp_context= with "
                "another method, or leave max_tasks_per_child out"
            )
        self._max_workers = max_workers or processors()
        self._mp_context = mp_context
        self._worker_pool: Any = WorkerPool(
            self._max_workers,
            context=mp_context,
            initializer=initializer,
            initargs=initargs,
            max_tasks=max_tasks_per_child,
            retries=retries,
            window=self._max_workers + 1,
            daemon=False,
            eager=False,
            title="Process",
            room=self._room,
            idle=self._idle,
        )
        self._on_demand = getattr(mp_context, "get_start_method", lambda **_: "fork")(allow_none=False) != "fork"
        self._shut_down = False
        self._shutdown_lock = threading.Lock()
        self._finalize = weakref.finalize(self, self._worker_pool.close)
        self._finalize.atexit = False
        _open.add(self)

    @property
    def _processes(self) -> dict[int, Any]:
        return {worker.pid: worker for worker in self._worker_pool.workers}

    @property
    def _broken(self) -> Any:
        return self._worker_pool.broken or False

    def __repr__(self) -> str:
        state = "shut down" if self._shut_down else f"{len(self._worker_pool.workers)} of {self._max_workers} workers"
        return f"<{type(self).__name__} {state}>"

    def _repr_html_(self) -> str:
        from copyless import _html

        title, state = type(self).__name__, "shut down" if self._shut_down else "open"
        return _html.tell(self, lambda: _html.of_pool(title, self._worker_pool, state, self._max_workers))

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Schedule ``fn(*args, **kwargs)``. Returns its future.

        If the call cannot be pickled, the future fails with that error.

        Raises
        ------
        RuntimeError
            After `shutdown`.
        """
        return self._submit(lambda pool: pool.seal(fn, FULL, [(args, kwargs)]))

    def _submit(self, seal: Callable[[Any], object]) -> Future[Any]:
        check_process(self._worker_pool.pid, self, _INSTEAD)
        events.hush(1)  # a handler of the log may need this lock
        try:
            with self._shutdown_lock:
                return self._submit_alone(seal)
        finally:
            events.hush(-1)

    def _submit_alone(self, seal: Callable[[Any], Any]) -> Future[Any]:
        pool = self._worker_pool
        if pool.broken is not None and not self._shut_down:
            raise WorkerDiedError(pool.broken)
        if self._shut_down:
            raise RuntimeError("cannot schedule new futures after shutdown")
        future: Future[Any] = _Future()
        try:
            pool.watch()
        except RuntimeError as error:
            raise WorkerDiedError(pool.broken or str(error)) from error
        pool.populate(pool.unfinished() + 1 if self._on_demand else None)
        try:
            sealed = seal(pool)
        except BaseException as error:
            if not isinstance(error, Exception):
                raise
            future.set_running_or_notify_cancel()
            future.set_exception(error)
            return future
        pool.submit([_Task(sealed, future)])
        if pool.ends_idle:
            pool.populate(pool.unfinished())  # an idle last worker may have ended in the meantime
        return future

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[object],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[T]:
        """An iterator over the results of ``fn``, applied to the items of the iterables, in order.

        Parameters
        ----------
        timeout
            Seconds from now after which taking a result raises `TimeoutError`; None: no limit.
        chunksize
            Calls that are sent together.
        buffersize
            How many calls are submitted ahead of the results that were taken; None: all at once.

        Raises
        ------
        TypeError
            If `buffersize` is no integer.
        ValueError
            For an invalid `chunksize` or `buffersize`.
        RuntimeError
            After `shutdown`.
        """
        check_process(self._worker_pool.pid, self, _INSTEAD)
        if chunksize < 1:
            raise ValueError(f"chunksize must be >= 1, not {chunksize}")
        if buffersize is not None and not isinstance(buffersize, int):
            raise TypeError(f"buffersize must be an integer or None, not {buffersize!r}")
        if buffersize is not None and buffersize < 1:
            raise ValueError(f"buffersize must be None or > 0, not {buffersize}")
        calls = zip(*iterables)  # noqa: B905
        if chunksize == 1:
            futures = (self.submit(fn, *arguments) for arguments in calls)
            return _results(futures, timeout, buffersize)
        chunks = iter(lambda: list(itertools.islice(calls, chunksize)), [])
        many: Any = (self.submit(_loaders.call_many, fn, chunk) for chunk in chunks)
        ahead = None if buffersize is None else max(1, buffersize // chunksize)
        return itertools.chain.from_iterable(_results(many, timeout, ahead))

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Accept no more calls.

        Parameters
        ----------
        wait
            Wait for the submitted calls.
        cancel_futures
            Cancel the calls that have not begun.
        """
        if not self._worker_pool.is_mine():
            return  # in a forked child: the executor belongs to the parent and continues
        with self._shutdown_lock:
            self._shut_down = True
        if cancel_futures:
            for bundle in self._worker_pool.drop_waiting():
                bundle.future.cancel()
                bundle.future.set_running_or_notify_cancel()
        self._worker_pool.close()
        if wait:
            self._worker_pool.join()
            _open.discard(self)

    def terminate_workers(self) -> None:
        """End the workers at once by SIGTERM. Unfinished futures fail with `WorkerDiedError`. As in Python 3.14."""
        self._end("terminate")

    def kill_workers(self) -> None:
        """End the workers at once by SIGKILL. Unfinished futures fail with `WorkerDiedError`. As in Python 3.14."""
        self._end("kill")

    def _end(self, by: str) -> None:
        check_process(self._worker_pool.pid, self, _INSTEAD)
        with self._shutdown_lock:
            self._shut_down = True
        self._worker_pool.terminate(by)
        _open.discard(self)


def _result_of(future: Future[T], timeout: float | None) -> T:
    try:
        return future.result(timeout)
    finally:
        future.cancel()
        del future  # breaks the cycle with the traceback of the exception


def _results(futures: Iterator[Future[T]], timeout: float | None, ahead: int | None) -> Iterator[T]:
    import time

    deadline = None if timeout is None else time.monotonic() + timeout
    waiting: deque[Future[T]] = deque(futures if ahead is None else itertools.islice(futures, ahead))

    def results() -> Iterator[T]:
        try:
            while waiting:
                left = None if deadline is None else deadline - time.monotonic()
                future = waiting.popleft()
                value = [_result_of(future, left)]
                del future  # nothing here may keep a result alive
                yield value.pop()
                if ahead is not None:
                    waiting.extend(itertools.islice(futures, 1))
        finally:
            for future in waiting:
                future.cancel()

    return results()
