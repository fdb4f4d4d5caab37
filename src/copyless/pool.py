"""`Pool`: the pool of the standard library, on shared memory. If a worker is killed, the pool does not hang.

Mirrors `multiprocessing.Pool`: same methods, signatures, results and error types. The differences:

* Arguments and results are copied once, into shared memory, whatever their size. Shared arrays are sent as handles.
* Functions may be lambdas and closures; they are sent by value, with cloudpickle.
* In a notebook or `python -i`, a task runs functions and classes as they are when the task is submitted, including
  those that were redefined since the workers started.
* If a worker is killed, exactly the task that it ran fails, with `WorkerDiedError`. With ``retries=`` the task runs
  again, with the arguments as they were first sent. The worker is replaced, and all other tasks continue.
* Without `chunksize`, tasks are sent in bundles that take some milliseconds each.
* An exception that does not survive pickling arrives as text. It does not end the pool.
* ``progress=True`` shows a progress bar for `map`, `imap` and their variants.
"""

from __future__ import annotations

import multiprocessing
import threading
import warnings
from collections.abc import Callable, Iterable, Mapping
from multiprocessing.util import Finalize

from copyless._one_process import check_process
from copyless._platform import processors
from copyless._standard_names import standard_names
from copyless._typing import TYPE_CHECKING, Any, NoReturn, TypeVar
from copyless._workers import results
from copyless._workers.bundle import Bundle
from copyless._workers.protocol import FULL, SINGLE, STARRED
from copyless._workers.worker_pool import WorkerPool

__all__ = ["AsyncResult", "Pool", "ThreadPool"]

if TYPE_CHECKING:
    from multiprocessing.context import BaseContext
    from multiprocessing.pool import ThreadPool as ThreadPool

    from typing_extensions import Self

    from copyless._progress import TaskBar
    from copyless._typing import Context

S = TypeVar("S")
T = TypeVar("T")

# as in multiprocessing.pool, which is imported only when such an error is raised
RUN: str = "RUN"
CLOSE: str = "CLOSE"
TERMINATE: str = "TERMINATE"
AsyncResult = results.AsyncResult
ApplyResult = results.AsyncResult
MapResult = results.MapResult
IMapIterator = results.IMapIterator
IMapUnorderedIterator = results.IMapIterator


def _bar(progress: bool, total: int | None, function: object) -> TaskBar | None:
    if not progress:
        return None
    from copyless._progress import task_bar

    return task_bar(progress, total, function)


class Pool:
    """Pool(processes=None, initializer=None, initargs=(), maxtasksperchild=None, context=None, *, retries=0)

    Worker processes that run functions. Mirrors `multiprocessing.Pool`.

    Parameters
    ----------
    processes
        Number of workers; None: the number of processors that this process may use.
    initializer, initargs
        A function that each worker calls when it starts, and its arguments. If it raises, the pool is broken: every
        task fails with that traceback.
    maxtasksperchild
        Tasks after which a worker is replaced; None: no limit.
    context
        A context of `multiprocessing.get_context` or `copyless.get_context`, which determines the start method.
    retries
        How often a task runs again if its worker died; 0: it fails with `WorkerDiedError`.

    Raises
    ------
    ValueError
        For an invalid number; and from every method after the pool is closed.
    TypeError
        If `initializer` cannot be called.
    WrongProcessError
        From every method but `close`, in a forked child of the process that made the pool.

    Examples
    --------
    >>> import copyless
    >>> with copyless.Pool(2) as pool:
    ...     pool.map(lambda x: x * x, range(5))
    [0, 1, 4, 9, 16]
    """

    def __init__(
        self,
        processes: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        maxtasksperchild: int | None = None,
        context: BaseContext | Context | None = None,
        *,
        retries: int = 0,
    ) -> None:
        self._state = TERMINATE  # until it runs
        processes = processors() if processes is None else processes
        if processes < 1:
            raise ValueError(f"Number of processes must be at least 1, not {processes}")
        if maxtasksperchild is not None and (not isinstance(maxtasksperchild, int) or maxtasksperchild <= 0):
            raise ValueError(f"maxtasksperchild must be a positive int or None, not {maxtasksperchild!r}")
        if retries < 0:
            raise ValueError(f"retries must be 0 or more, not {retries}")
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        self._ctx = context or multiprocessing.get_context()
        self._processes = processes
        self._worker_pool = WorkerPool(
            processes,
            context=self._ctx,
            initializer=initializer,
            initargs=tuple(initargs),
            max_tasks=maxtasksperchild,
            retries=retries,
            make_process=None if type(self).Process is Pool.Process else self.Process,
        )
        self._terminate = Finalize(self, self._worker_pool.terminate, exitpriority=15)
        self._state = RUN

    def __del__(self, _warn: Callable[..., object] = warnings.warn, RUN: str = RUN) -> None:
        if self._state == RUN and self._worker_pool.is_mine():
            _warn(f"unclosed running multiprocessing pool {self!r}", ResourceWarning, source=self)

    def __repr__(self) -> str:
        cls = self.__class__
        pool = getattr(self, "_worker_pool", None)
        return f"<{cls.__module__}.{cls.__qualname__} state={self._state} pool_size={len(pool.workers) if pool else 0}>"

    def _repr_html_(self) -> str:
        from copyless import _html

        title = type(self).__name__
        return _html.tell(self, lambda: _html.of_pool(title, self._worker_pool, self._state, self._processes))

    @staticmethod
    def Process(ctx: Any, *args: Any, **kwds: Any) -> Any:
        """A process for a worker, not started. A derived class may make others; multiprocessing's has it too."""
        return ctx.Process(*args, **kwds)

    def __reduce__(self) -> NoReturn:
        raise NotImplementedError("pool objects cannot be passed between processes or pickled")

    @property
    def _pool(self) -> list[Any]:
        return self._worker_pool.workers

    def _repopulate_pool(self) -> None:
        self._worker_pool.populate()

    def _check_process(self) -> None:
        check_process(self._worker_pool.pid, self, results.INSTEAD)

    def _check_running(self) -> None:
        self._check_process()
        if self._state != RUN:
            raise ValueError("Pool not running")

    # ---- one task

    def apply(self, func: Callable[..., T], args: Iterable[object] = (), kwds: Mapping[str, object] | None = None) -> T:
        """Run ``func(*args, **kwds)`` in a worker and return its result.

        Raises
        ------
        Exception
            What the function raised, with the worker's traceback as its cause.
        WorkerDiedError
            If the worker was killed or ended.
        TaskUnreadableError
            If the task or its result could not be unpickled.

        Examples
        --------
        >>> import copyless
        >>> with copyless.Pool(1) as pool:
        ...     pool.apply(divmod, (7, 3))
        (2, 1)
        """
        return self.apply_async(func, args, kwds).get()

    def apply_async(
        self,
        func: Callable[..., T],
        args: Iterable[object] = (),
        kwds: Mapping[str, object] | None = None,
        callback: Callable[[T], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> AsyncResult[T]:
        """`apply` without waiting. Returns an `AsyncResult`, whose `get` raises what `apply` would.

        A thread of the pool calls `callback(result)` or `error_callback(exception)`.

        Examples
        --------
        >>> import copyless
        >>> with copyless.Pool(1) as pool:
        ...     pool.apply_async(divmod, (7, 3)).get()
        (2, 1)
        """
        self._check_running()
        result: AsyncResult[T] = AsyncResult(callback, error_callback)
        result._pool = self
        try:
            sealed = self._worker_pool.seal(func, FULL, [(tuple(args), dict(kwds or {}))])
        except Exception as error:
            result._set(False, error)
            return result
        self._worker_pool.submit([Bundle(sealed, 1, result._deliver)])
        return result

    # ---- many

    def map(
        self,
        func: Callable[[S], T],
        iterable: Iterable[S],
        chunksize: int | None = None,
        *,
        progress: bool = False,
    ) -> list[T]:
        """The list of ``func(item)`` for all items, computed by the workers.

        If tasks raise, the first exception is raised after all tasks have ended.

        Parameters
        ----------
        func, iterable
            The function and its arguments. The iterable is read at once.
        chunksize
            Tasks that are sent together; None: as many as take some milliseconds.
        progress
            Show a progress bar (needs the extra ``cli``).

        Raises
        ------
        Exception, WorkerDiedError, TaskUnreadableError
            As `apply`.

        Examples
        --------
        >>> import copyless
        >>> with copyless.Pool(2) as pool:
        ...     pool.map(abs, [-1, -2, 3])
        [1, 2, 3]
        """
        return self._map(func, iterable, SINGLE, chunksize, None, None, progress).get()

    def starmap(
        self,
        func: Callable[..., T],
        iterable: Iterable[Iterable[object]],
        chunksize: int | None = None,
        *,
        progress: bool = False,
    ) -> list[T]:
        """`map` with several arguments: the list of ``func(*item)``.

        Examples
        --------
        >>> import copyless
        >>> with copyless.Pool(2) as pool:
        ...     pool.starmap(pow, [(2, 3), (3, 2)])
        [8, 9]
        """
        return self._map(func, iterable, STARRED, chunksize, None, None, progress).get()

    def map_async(
        self,
        func: Callable[[S], T],
        iterable: Iterable[S],
        chunksize: int | None = None,
        callback: Callable[[list[T]], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
        *,
        progress: bool = False,
    ) -> MapResult[T]:
        """`map` without waiting. Returns a result whose `get` returns the list; `callback` is called with the list."""
        return self._map(func, iterable, SINGLE, chunksize, callback, error_callback, progress)

    def starmap_async(
        self,
        func: Callable[..., T],
        iterable: Iterable[Iterable[object]],
        chunksize: int | None = None,
        callback: Callable[[list[T]], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
        *,
        progress: bool = False,
    ) -> MapResult[T]:
        """`starmap` without waiting. Returns a result whose `get` returns the list; `callback` is called with the
        list.
        """
        return self._map(func, iterable, STARRED, chunksize, callback, error_callback, progress)

    def _map(
        self,
        func: Callable[..., T],
        iterable: Any,
        style: int,
        chunksize: int | None,
        callback: Any,
        error_callback: Any,
        progress: bool,
    ) -> MapResult[T]:
        self._check_running()
        if chunksize is not None and chunksize < 1:
            raise ValueError(f"Chunksize must be 1+, not {chunksize}")
        from copyless._workers.feeder import MapFeeder  # before a bar is shown, which an error would leave running

        items = iterable if isinstance(iterable, (list, range)) else list(iterable)
        result: MapResult[T] = MapResult(len(items), callback, error_callback, _bar(progress, len(items), func))
        if not items:
            return result
        result._pool = self
        feeder = MapFeeder(self._worker_pool, func, items, style, result)
        try:
            if chunksize is None:
                feeder.begin()
            else:
                feeder.feed_all(chunksize)
        except Exception as error:
            if result._bar is not None:
                result._bar.stop()
            result._set(False, error)
        return result

    def imap(
        self,
        func: Callable[[S], T],
        iterable: Iterable[S],
        chunksize: int = 1,
        *,
        buffersize: int | None = None,
        progress: bool = False,
    ) -> IMapIterator[T]:
        """An iterator over the results, in order. A thread of the pool reads the iterable.

        Parameters
        ----------
        func, iterable
            The function and its arguments.
        chunksize
            Tasks that are sent together.
        buffersize
            How many tasks the pool reads ahead of the results that were taken; None: no limit.
        progress
            Show a progress bar (needs the extra ``cli``).

        Examples
        --------
        >>> import copyless
        >>> with copyless.Pool(2) as pool:
        ...     list(pool.imap(abs, [-1, -2, 3]))
        [1, 2, 3]
        """
        return self._imap(func, iterable, chunksize, True, buffersize, progress)

    def imap_unordered(
        self,
        func: Callable[[S], T],
        iterable: Iterable[S],
        chunksize: int = 1,
        *,
        buffersize: int | None = None,
        progress: bool = False,
    ) -> IMapIterator[T]:
        """`imap` that returns each result as soon as it is available. Parameters are those of `imap`."""
        return self._imap(func, iterable, chunksize, False, buffersize, progress)

    def _imap(
        self,
        func: Callable[..., T],
        iterable: object,
        chunksize: int,
        ordered: bool,
        buffersize: int | None,
        progress: bool,
    ) -> IMapIterator[T]:
        self._check_running()
        if chunksize < 1:
            raise ValueError(f"Chunksize must be 1+, not {chunksize:n}")
        if buffersize is not None and buffersize < chunksize:
            raise ValueError(f"buffersize must be at least chunksize ({chunksize}), not {buffersize}")
        from copyless._workers.feeder import feed_iterable

        total = len(iterable) if hasattr(iterable, "__len__") else None
        result: IMapIterator[T] = IMapIterator(self, ordered, _bar(progress, total, func), buffersize is not None)
        self._worker_pool.promise(1)
        reader = threading.Thread(
            target=feed_iterable,
            args=(self._worker_pool, func, iterable, chunksize, result, buffersize),
            name="copyless-imap",
            daemon=True,
        )
        reader.start()
        return result

    # ---- the end

    def close(self) -> None:
        """Accept no more tasks. The workers end when all tasks are done."""
        if self._state == RUN:
            self._state = CLOSE
            self._worker_pool.close()

    def terminate(self) -> None:
        """End the workers at once. Unfinished tasks fail with `WorkerDiedError`."""
        self._check_process()
        self._state = TERMINATE
        self._terminate()

    def join(self) -> None:
        """Wait until the workers have ended. Raises ValueError before `close` or `terminate`."""
        self._check_process()
        if self._state == RUN:
            raise ValueError("Pool is still running")
        self._worker_pool.join()

    def __enter__(self) -> Self:
        self._check_running()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._worker_pool.is_mine():  # a forked child that leaves the block does not end the pool
            self.terminate()


if TYPE_CHECKING:
    from multiprocessing.pool import INIT as INIT
else:
    __getattr__, __dir__ = standard_names(__name__, "multiprocessing.pool")
