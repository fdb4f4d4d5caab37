"""`ProcessPoolExecutor`: the standard library's, on shared memory, that a killed worker does not break.

Mirrors `concurrent.futures.ProcessPoolExecutor` to Python 3.14. What is different is what `copyless.pool` says of `Pool`: one copy or
a handle for arguments and results, functions by value where they have no name, and a killed worker fails the task it held
(`WorkerDiedError`, which is a `BrokenProcessPool`) while everything else goes on. Arguments are taken as they are at `submit`.
"""

from __future__ import annotations

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
from typing import Any, ParamSpec, TypeVar

from copyless import _loaders, workers
from copyless._one_process import check_process
from copyless.errors import WorkerDiedError
from copyless.pool import outcome
from copyless.storage.settings import processors
from copyless.workers import Bundle, Crew

__all__ = ["BrokenProcessPool", "ProcessPoolExecutor"]

P = ParamSpec("P")
T = TypeVar("T")
_INSTEAD = "its workers and its futures are its parent's. Make an executor of its own there"
_DONE_STATES = (CANCELLED, CANCELLED_AND_NOTIFIED, FINISHED)
_open: weakref.WeakSet[ProcessPoolExecutor] = weakref.WeakSet()


def _at_exit() -> None:
    """The interpreter ends: what was submitted is done first, as the standard library has it."""
    for executor in list(_open):
        executor.shutdown(wait=True)


threading._register_atexit(_at_exit)  # type: ignore[attr-defined]
os.register_at_fork(after_in_child=_open.clear)  # a child's executors are its own


class _Future(Future[T]):
    """A future that in a fork of its process is not waited for: nobody would ever tell it there. What is done answers."""

    _waiting: list[Any]

    def __init__(self) -> None:
        super().__init__()
        self._pid = os.getpid()

    def _check_process(self) -> None:
        if self._pid != os.getpid() and not self._is_done():
            check_process(self._pid, self, _INSTEAD)

    def _is_done(self) -> bool:  # without the lock, which a thread of the parent may have held at the fork
        return self._state in _DONE_STATES

    @property
    def _waiters(self) -> list[Any]:
        """Asked for by `concurrent.futures.wait` and `as_completed`."""
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


_Future.__name__ = _Future.__qualname__ = "Future"  # as its repr has it


def _set(future: Future[Any], kind: int, value: Any) -> None:
    if kind == workers._UNSENDABLE and value[0][0] is not None:
        kind, value = workers._RAISED, value[0]
    success, value = outcome(kind, value)
    if success:
        future.set_result(value)
        return
    if kind == workers._RAISED and value.__cause__ is not None:
        value.__cause__ = _RemoteTraceback(value.__cause__.tb)
    future.set_exception(value)


class ProcessPoolExecutor(Executor):
    """ProcessPoolExecutor(max_workers=None, mp_context=None, initializer=None, initargs=(), *, max_tasks_per_child=None, retries=0)

    Worker processes behind futures. Mirrors `concurrent.futures.ProcessPoolExecutor`.

    Parameters
    ----------
    max_workers
        How many processes; None: as many as this process may use processors.
    mp_context
        A context of `multiprocessing.get_context`, which says how processes start.
    initializer, initargs
        Called in each worker as it starts. When it raises, every future fails with `WorkerDiedError`.
    max_tasks_per_child
        Tasks after which a worker is replaced; None: never.
    retries
        How often a task whose worker died runs again.

    Examples
    --------
    >>> from copyless.futures import ProcessPoolExecutor
    >>> with ProcessPoolExecutor(2) as executor:
    ...     executor.submit(pow, 2, 10).result(), list(executor.map(abs, [-1, -2]))
    (1024, [1, 2])
    """

    _room = 0  # what a subclass asks of its workers, as `Crew` has it
    _idle: float | None = None

    def __init__(
        self,
        max_workers: int | None = None,
        mp_context: Any = None,
        initializer: Callable[..., Any] | None = None,
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
                "max_tasks_per_child is incompatible with the 'fork' start method: give a context of another, or leave it"
            )
        self._max_workers = max_workers or processors()
        self._mp_context = mp_context
        self._crew: Any = Crew(
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
        self._finalize = weakref.finalize(self, self._crew.close)
        self._finalize.atexit = False
        _open.add(self)

    @property
    def _processes(self) -> dict[int, Any]:
        return {worker.pid: worker for worker in self._crew.workers}

    @property
    def _broken(self) -> Any:
        return self._crew.broken or False

    def __repr__(self) -> str:
        state = "shut down" if self._shut_down else f"{len(self._crew.workers)} of {self._max_workers} workers"
        return f"<{type(self).__name__} {state}>"

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """A future of ``fn(*args, **kwargs)``. RuntimeError after `shutdown`; what cannot be pickled fails the future."""
        return self._submit(lambda crew: crew.seal(fn, workers.FULL, [(args, kwargs)]))

    def _submit(self, seal: Callable[[Any], Any]) -> Future[Any]:
        check_process(self._crew.pid, self, _INSTEAD)
        with self._shutdown_lock:
            crew = self._crew
            if crew.broken is not None and not self._shut_down:
                raise WorkerDiedError(crew.broken)
            if self._shut_down:
                raise RuntimeError("cannot schedule new futures after shutdown")
            future: Future[Any] = _Future()
            try:
                crew.watch()
            except RuntimeError as error:
                raise WorkerDiedError(crew.broken or str(error)) from error
            crew.populate(crew.unfinished() + 1 if self._on_demand else None)
            try:
                sealed = seal(crew)
            except BaseException as error:
                if not isinstance(error, Exception):
                    raise
                future.set_running_or_notify_cancel()
                future.set_exception(error)
                return future
            bundle = Bundle(
                sealed, 1, lambda i, kind, value: _set(future, kind, value), 0, future.set_running_or_notify_cancel
            )
            crew.submit([bundle])
            if crew.ends_idle:
                crew.populate(crew.unfinished())  # the last may have ended just before, for want of a task
            return future

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[T]:
        """Results of ``fn`` over the iterables, in order.

        Parameters
        ----------
        timeout
            Seconds from now after which taking a result raises `TimeoutError`; None: never.
        chunksize
            Calls that travel together.
        buffersize
            Submit at most so many calls ahead of the results taken; None: all at once.
        """
        check_process(self._crew.pid, self, _INSTEAD)
        if chunksize < 1:
            raise ValueError(f"chunksize must be >= 1, not {chunksize}")
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
        """Take no more calls. `wait` for those submitted; `cancel_futures`: drop those that have not begun."""
        if not self._crew.is_mine():
            return  # in a forked child: the executor goes on, and is its parent's to end
        with self._shutdown_lock:
            self._shut_down = True
        if cancel_futures:
            for bundle in self._crew.drop_waiting():
                future = bundle.tell.__closure__[0].cell_contents
                future.cancel()
                future.set_running_or_notify_cancel()
        self._crew.close()
        if wait:
            self._crew.join()
            _open.discard(self)

    def terminate_workers(self) -> None:
        """End the workers at once (SIGTERM); futures not done fail with `WorkerDiedError`. As in Python 3.14."""
        self._end("terminate")

    def kill_workers(self) -> None:
        """The same, by SIGKILL."""
        self._end("kill")

    def _end(self, by: str) -> None:
        check_process(self._crew.pid, self, _INSTEAD)
        with self._shutdown_lock:
            self._shut_down = True
        self._crew.terminate(by)
        _open.discard(self)


def _result_of(future: Future[T], timeout: float | None) -> T:
    try:
        return future.result(timeout)
    finally:
        future.cancel()
        del future  # breaks the cycle with the traceback of what it raised


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
                del future  # nothing here may keep the result alive while the caller has it
                yield value.pop()
                if ahead is not None:
                    waiting.extend(itertools.islice(futures, 1))
        finally:
            for future in waiting:
                future.cancel()

    return results()
