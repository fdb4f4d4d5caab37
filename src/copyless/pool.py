"""`Pool`: the standard library's, on shared memory, that a killed worker does not hang.

Mirrors `multiprocessing.Pool`: same methods, signatures, results and error types. What is different:

* Arguments and results travel by one copy into shared memory (shared arrays by handle), whatever their size.
* Lambdas and closures may be given; they go by value, with cloudpickle.
* In a notebook or `python -i`, functions and classes run as they are when the task is submitted, also where they were defined anew since.
* A killed worker fails exactly the task it held, with `WorkerDiedError`, or has it run again (``retries=``) with the arguments as
  they were put at first; it is replaced, and everything else goes on.
* Without `chunksize`, tasks go in bundles whose size follows the time they take: some milliseconds each.
* An exception that does not survive pickling arrives as text instead of ending the pool.
* ``progress=True`` shows a bar for `map` and its kin.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import threading
import time
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from multiprocessing import TimeoutError
from multiprocessing.pool import CLOSE, RUN, TERMINATE, MaybeEncodingError, RemoteTraceback, ThreadPool  # type: ignore[attr-defined]
from multiprocessing.util import Finalize
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from copyless import waiting, workers
from copyless._core import _answers
from copyless._one_process import check_process
from copyless._standard_names import standard_names
from copyless.errors import TaskUnreadableError, WorkerDiedError
from copyless.storage.settings import processors
from copyless.workers import SINGLE, STARRED, Bundle, Crew

__all__ = ["AsyncResult", "Pool", "ThreadPool"]

S = TypeVar("S")
T = TypeVar("T")

os.register_at_fork(after_in_child=_answers._forked)

_BUNDLE_SECONDS = 0.005  # what a bundle of unknown tasks should take
_MOST = 8192  # tasks in one
_SHARE = 10  # the last bundles take at least such a part of that time
_AT_A_TIME = 32  # bundles, where their size is given
_FEW = 64  # tasks of a range that go as a list
_INSTEAD = "its workers and its results are its parent's. Make a Pool of its own there"


def outcome(kind: int, value: Any) -> tuple[bool, Any]:
    """(whether it succeeded, result or exception) of what a worker reports."""
    if kind == workers._DONE:
        return True, value
    if kind == workers._RAISED:
        return False, _revive(*value)
    if kind == workers._UNSENDABLE:
        return False, MaybeEncodingError(value[1], value[2])
    return False, value


def _revive(sealed: Any, text: str) -> BaseException:
    """An exception of a worker, with its traceback there as its cause."""
    error: BaseException
    if sealed is None:
        error = TaskUnreadableError(f"the task raised an exception that cannot be pickled:\n{text}")
    else:
        try:
            error = workers.unseal(sealed)
        except BaseException:
            error = TaskUnreadableError(f"the task raised an exception that cannot be unpickled:\n{text}")
    error.__cause__ = RemoteTraceback(f'\n"""\n{text}"""')
    return error


class AsyncResult(Generic[T]):
    """What `apply_async` returns."""

    def __init__(self, callback: Any, error_callback: Any) -> None:
        self._event = threading.Event()
        self._callback, self._error_callback = callback, error_callback
        self._success = False
        self._value: Any = None
        self._pool: Any = None  # the pool lives while its results are awaited
        self._pid = os.getpid()

    def ready(self) -> bool:
        """Whether it has ended."""
        return self._event.is_set()

    def _for_wait(self) -> waiting.Part:
        if not self._event.is_set():
            check_process(self._pid, self, _INSTEAD)
        return waiting.Part(lambda deaths: self._event.is_set())

    def successful(self) -> bool:
        """Whether it has ended without an exception. ValueError when it has not ended."""
        if not self.ready():
            raise ValueError(f"{self!r} not ready")
        return self._success

    def wait(self, timeout: float | None = None) -> None:
        """Wait at most `timeout` seconds for its end."""
        self._wait(timeout)

    def _wait(self, timeout: float | None) -> bool:
        if not self._event.is_set():
            check_process(self._pid, self, _INSTEAD)  # where nobody would ever tell it
        return self._event.wait(timeout)

    def get(self, timeout: float | None = None) -> T:
        """The result; raises what the task raised, or `multiprocessing.TimeoutError` after `timeout` seconds."""
        if not self._wait(timeout):
            raise TimeoutError
        if self._success:
            return self._value  # type: ignore[no-any-return]
        raise self._value

    def _tell(self, i: int, kind: int, value: Any) -> None:
        self._set(*outcome(kind, value))

    def _set(self, success: bool, value: Any) -> None:
        self._success, self._value = success, value
        call = self._callback if success else self._error_callback
        try:
            if call is not None:
                call(value)
        finally:
            self._event.set()
            self._callback = self._error_callback = self._pool = None
            waiting.ring()


ApplyResult = AsyncResult


class MapResult(AsyncResult[list[T]]):
    """What `map_async` and `starmap_async` return: the list of results, or the first exception, once all have ended."""

    def __init__(self, length: int, callback: Any, error_callback: Any, bar: Any = None) -> None:
        super().__init__(callback, error_callback)
        self._results: list[Any] = [None] * length
        self._lock = threading.Lock()  # of what follows
        self._left = length
        self._error: tuple[int, Any] | None = None
        self._more: Callable[[], None] | None = None  # called when at most `_more_at` are left, until it changes that
        self._more_at = length
        self._bar = bar
        if not length:
            self._set(True, [])

    def _tell(self, i: int, kind: int, value: Any) -> None:
        success = kind == workers._DONE
        if not success:
            success, value = outcome(kind, value)
        if success:
            self._results[i] = value
        else:
            with self._lock:
                if self._error is None or i < self._error[0]:
                    self._error = i, value
        if self._bar is not None:
            self._bar.advance()
        self._count(1)

    def _tell_done(self, i: int, values: list[Any]) -> None:
        self._results[i : i + len(values)] = values
        if self._bar is not None:
            self._bar.advance(len(values))
        self._count(len(values))

    def _fail(self, at: int, tasks: int, error: BaseException) -> None:
        """So many tasks will never run. By whoever feeds, beside the collector."""
        with self._lock:
            if self._error is None or at < self._error[0]:
                self._error = at, error
        self._count(tasks)

    def _count(self, ended: int) -> None:
        with self._lock:
            self._left = left = self._left - ended
        if self._more is not None and 0 < left <= self._more_at:
            self._more()
        if not left:
            self._more = None
            results, self._results = self._results, []
            if self._bar is not None:
                self._bar.stop()
            self._set(*((True, results) if self._error is None else (False, self._error[1])))

    @property
    def _done(self) -> int:
        return len(self._results) - self._left


class IMapIterator(_answers.Ready, Generic[T]):
    """What `imap` returns: results in order, as soon as each is there."""

    if TYPE_CHECKING:

        def __iter__(self) -> Iterator[T]: ...
        def __next__(self) -> T: ...
        def next(self, timeout: float | None = None) -> T: ...

    def __init__(self, pool: Any, ordered: bool, bar: Any = None, limited: bool = False) -> None:
        self._pool = pool
        self._ordered = ordered
        self._items: dict[int, tuple[bool, list[Any]]] = {}  # by the task that they begin with
        self._arrived: deque[tuple[bool, list[Any]]] = deque()
        self._at = 0
        self._length: int | None = None
        self._error: BaseException | None = None  # of the input: told after all that came before it
        self._pid = os.getpid()
        lock = threading.RLock()
        self._change = threading.Condition(lock)
        self._bar = bar
        self._taken = 0  # by the caller
        self._makes_room = threading.Condition(lock) if limited else None

    def _tell(self, i: int, kind: int, value: Any) -> None:
        success, value = outcome(kind, value)
        self._put(i, success, [value])

    def _tell_done(self, i: int, values: list[Any]) -> None:
        self._put(i, True, values)

    def _put(self, i: int, success: bool, values: list[Any]) -> None:
        tasks = len(values)
        with self._change:
            if self._ordered:
                self._items[i] = success, values
            else:
                self._arrived.append((success, values))
            self._change.notify()
        if self._bar is not None:
            self._bar.advance(tasks)

    def _ends(self, length: int, error: BaseException | None = None) -> None:
        with self._change:
            self._length, self._error = length, error
            self._change.notify_all()
        if error is not None and self._bar is not None:
            self._bar.stop()

    def _count_taken(self, tasks: int) -> None:
        self._taken = tasks
        if self._makes_room is not None:
            self._makes_room.notify()

    def _await_taken(self, tasks: int, seconds: float) -> bool:
        """Whether so many results have been taken."""
        assert self._makes_room is not None
        with self._change:
            return self._makes_room.wait_for(lambda: self._taken >= tasks, seconds)

    def _is_there(self) -> bool:
        if self._at == self._length or self._left():
            return True
        return self._at in self._items if self._ordered else bool(self._arrived)

    def _wait(self, timeout: float | None) -> Any:
        """The next result, when none is at hand."""
        check_process(self._pid, self, _INSTEAD)
        with self._change:
            self._count_taken(self._at - self._left())
            if not self._change.wait_for(self._is_there, timeout):
                raise TimeoutError from None
            if self._left():  # another thread has taken a chunk meanwhile: its rest is for whoever comes next
                self._change.notify()
                return self.next(timeout)
            if self._at == self._length:
                self._change.notify()
                self._pool = None
                error, self._error = self._error, None
                if error is not None:
                    raise error
                raise StopIteration from None
            success, values = self._items.pop(self._at) if self._ordered else self._arrived.popleft()
            self._at += len(values)
            several = success and len(values) > 1
            if several:
                self._give(values)  # taken when the next is asked for
            if self._is_there():
                self._change.notify()  # another thread that waits: nobody else tells it
            if several:
                return self.next(timeout)
            self._count_taken(self._at)
        if success:
            return values.pop()
        raise values.pop()


IMapUnorderedIterator = IMapIterator


class _Bar:
    """A progress bar of rich; silent where there is no terminal to draw it on."""

    def __init__(self, total: int | None, title: str) -> None:
        from rich.progress import Progress

        self._progress = Progress(transient=False)
        self._task = self._progress.add_task(title, total=total)
        self._total, self._count = total, 0
        self._progress.start()

    def advance(self, tasks: int = 1) -> None:
        self._count += tasks
        self._progress.advance(self._task, tasks)
        if self._count == self._total:
            self._progress.stop()

    def stop(self) -> None:
        self._progress.stop()


def _bar(progress: bool, total: int | None, function: Any) -> Any:
    return _Bar(total, getattr(function, "__name__", "map")) if progress and total != 0 else None


def _batch(items: Any, style: int) -> Any:
    return items if style == SINGLE else [tuple(args) for args in items]


class Pool:
    """Pool(processes=None, initializer=None, initargs=(), maxtasksperchild=None, context=None, *, retries=0)

    Worker processes that run functions. Mirrors `multiprocessing.Pool`.

    Parameters
    ----------
    processes
        How many; None: as many as this process may use processors.
    initializer, initargs
        Called in each worker as it starts. When it raises, the pool is broken: every task fails with that traceback.
    maxtasksperchild
        Tasks after which a worker is replaced; None: never.
    context
        A context of `multiprocessing.get_context`, which says how processes start.
    retries
        How often a task whose worker died runs again; 0: it fails with `WorkerDiedError`.

    Raises
    ------
    ValueError
        For fewer than one process; and by every method once the pool is closed.
    WrongProcessError
        By every method but `close` in a forked child of the process that made it.

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
        initializer: Any = None,
        initargs: Iterable[Any] = (),
        maxtasksperchild: int | None = None,
        context: Any = None,
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
        self._crew = Crew(
            processes,
            context=self._ctx,
            initializer=initializer,
            initargs=tuple(initargs),
            max_tasks=maxtasksperchild,
            retries=retries,
        )
        self._terminate = Finalize(self, self._crew.terminate, exitpriority=15)
        self._state = RUN

    def __del__(self, _warn: Any = warnings.warn, RUN: str = RUN) -> None:
        if self._state == RUN and self._crew.is_mine():
            _warn(f"unclosed running multiprocessing pool {self!r}", ResourceWarning, source=self)

    def __repr__(self) -> str:
        cls = self.__class__
        crew = getattr(self, "_crew", None)
        return f"<{cls.__module__}.{cls.__qualname__} state={self._state} pool_size={len(crew.workers) if crew else 0}>"

    def __reduce__(self) -> Any:
        raise NotImplementedError("pool objects cannot be passed between processes or pickled")

    @property
    def _pool(self) -> list[Any]:
        return self._crew.workers

    def _repopulate_pool(self) -> None:
        self._crew.populate()

    def _check_process(self) -> None:
        check_process(self._crew.pid, self, _INSTEAD)

    def _check_running(self) -> None:
        self._check_process()
        if self._state != RUN:
            raise ValueError("Pool not running")

    # ---- one task

    def apply(self, func: Callable[..., T], args: Iterable[Any] = (), kwds: Any = None) -> T:
        """The result of ``func(*args, **kwds)``, run by a worker."""
        return self.apply_async(func, args, kwds).get()

    def apply_async(
        self,
        func: Callable[..., T],
        args: Iterable[Any] = (),
        kwds: Any = None,
        callback: Callable[[T], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> AsyncResult[T]:
        """As `apply`, without waiting. `callback(result)` or `error_callback(exception)` is called by a thread of the pool."""
        self._check_running()
        result: AsyncResult[T] = AsyncResult(callback, error_callback)
        result._pool = self
        try:
            sealed = self._crew.seal(func, workers.FULL, [(tuple(args), dict(kwds or {}))])
        except Exception as error:
            result._set(False, error)
            return result
        self._crew.submit([Bundle(sealed, 1, result._tell)])
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
        """The list of ``func(item)``, run by the workers; the first exception, once all have ended.

        Parameters
        ----------
        func, iterable
            The iterable is read at once.
        chunksize
            Tasks that travel together; None: it follows the time they take.
        progress
            Show a bar.
        """
        return self._map(func, iterable, SINGLE, chunksize, None, None, progress).get()

    def starmap(
        self,
        func: Callable[..., T],
        iterable: Iterable[Iterable[Any]],
        chunksize: int | None = None,
        *,
        progress: bool = False,
    ) -> list[T]:
        """As `map`, of ``func(*item)``."""
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
        """As `map`, without waiting."""
        return self._map(func, iterable, SINGLE, chunksize, callback, error_callback, progress)

    def starmap_async(
        self,
        func: Callable[..., T],
        iterable: Iterable[Iterable[Any]],
        chunksize: int | None = None,
        callback: Callable[[list[T]], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
        *,
        progress: bool = False,
    ) -> MapResult[T]:
        """As `starmap`, without waiting."""
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
        items = iterable if isinstance(iterable, (list, range)) else list(iterable)
        result: MapResult[T] = MapResult(len(items), callback, error_callback, _bar(progress, len(items), func))
        if not items:
            return result
        crew, result._pool = self._crew, self
        feeder = _Feeder(crew, func, items, style, result)
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
        """Results one by one, in order; the iterable is read by a thread of the pool.

        Parameters
        ----------
        func, iterable
            As for `map`.
        chunksize
            Tasks that travel together.
        buffersize
            Read the iterable at most so many tasks ahead of the results taken; None: without limit.
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
        """As `imap`, each result as soon as it is there."""
        return self._imap(func, iterable, chunksize, False, buffersize, progress)

    def _imap(
        self, func: Callable[..., T], iterable: Any, chunksize: int, ordered: bool, buffersize: int | None, progress: bool
    ) -> IMapIterator[T]:
        self._check_running()
        if chunksize < 1:
            raise ValueError(f"Chunksize must be 1+, not {chunksize:n}")
        if buffersize is not None and buffersize < chunksize:
            raise ValueError(f"buffersize must be at least chunksize ({chunksize}), not {buffersize}")
        total = len(iterable) if hasattr(iterable, "__len__") else None
        result: IMapIterator[T] = IMapIterator(self, ordered, _bar(progress, total, func), buffersize is not None)
        self._crew.promise(1)
        reader = threading.Thread(
            target=_read,
            args=(self._crew, func, iterable, chunksize, result, buffersize),
            name="copyless-imap",
            daemon=True,
        )
        reader.start()
        return result

    # ---- the end

    def close(self) -> None:
        """Take no more tasks; the workers end when all are done."""
        if self._state == RUN:
            self._state = CLOSE
            self._crew.close()

    def terminate(self) -> None:
        """End the workers at once; what was not done fails with `WorkerDiedError`."""
        self._check_process()
        self._state = TERMINATE
        self._terminate()

    def join(self) -> None:
        """Wait for the workers to end, after `close` or `terminate`. ValueError when the pool still runs."""
        self._check_process()
        if self._state == RUN:
            raise ValueError("Pool is still running")
        self._crew.join()

    def __enter__(self) -> Pool:
        self._check_running()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._crew.is_mine():  # a forked child may leave the block: the pool goes on
            self.terminate()


class _Feeder:
    """Gives the tasks of a `map` to the workers in bundles that take some milliseconds each, a few ahead."""

    def __init__(self, crew: Crew, func: Any, items: Any, style: int, result: MapResult[Any]) -> None:
        self._crew, self._func, self._items, self._style, self._result = crew, func, items, style, result
        self._at = 0
        self._began = time.perf_counter()
        self._lock = threading.RLock()
        self._size = 1
        self._made: int | None = None  # tasks in bundles that are about to be given; None: they are being made

    def begin(self) -> None:
        self._crew.promise(1)
        try:
            self._result._more = self._more  # called by the collector, which hears of no task before the first is fed
            pace = self._crew.pace
            with self._lock:
                # A function that was mapped just now begins as it ended, with half of the tasks.
                learned = pace is not None and pace[0]() == self._func
                most = len(self._items) // (4 * self._crew.processes)
                self._feed(min(int(_BUNDLE_SECONDS / pace[1]), most) if learned else 1)  # type: ignore[index]
        except BaseException:
            self._crew.promise(-1)
            raise

    def _more(self) -> None:
        with self._lock:
            self._look()

    def _look(self) -> None:
        if self._at < len(self._items) and self._result._left <= self._result._more_at:
            spent = (time.perf_counter() - self._began) * self._crew.processes
            seconds = max(spent / max(self._result._done, 1), 1e-9)
            with contextlib.suppress(TypeError):  # what has no weak references is not remembered
                self._crew.pace = weakref.ref(self._func), seconds
            at = self._at
            try:
                self._feed(int(_BUNDLE_SECONDS / seconds))
            except BaseException as error:  # the workers broke, or were terminated: nobody else counts what was not fed
                unfed = len(self._items) - at if self._made is None else len(self._items) - self._at + self._made
                self._result._more, self._at = None, len(self._items)
                self._crew.promise(-1)
                self._result._fail(at, unfed, error)

    def _feed(self, size: int) -> None:
        left = len(self._items) - self._at
        fair = max(left // (2 * self._crew.processes), size // _SHARE)  # the last are smaller, but not by much less than a bundle's price
        self._size = size = max(1, min(size, _MOST, fair))
        self._made = None
        bundles = self._bundles(2 * self._crew.processes, size)
        self._made = sum(bundle.count for bundle in bundles)
        self._result._more_at = len(self._items) - self._at + self._crew.processes * self._size // 2 + 1
        if bundles:
            self._crew.submit(bundles, promised=True)
        if self._at == len(self._items):
            self._result._more = None
            self._crew.promise(-1)

    def feed_all(self, size: int) -> None:
        """All tasks in bundles of one size, some at a time: the first are done while the last are made."""
        self._crew.promise(1)
        try:
            while bundles := self._bundles(_AT_A_TIME, size):
                self._crew.submit(bundles, promised=True)
        finally:
            self._crew.promise(-1)

    def _bundles(self, most: int, size: int) -> list[Bundle]:
        """The next bundles. Where one cannot be pickled, it and all behind it fail; an exception when that is the first."""
        bundles: list[Bundle] = []
        result = self._result
        while len(bundles) < most and (batch := self._items[self._at : self._at + size]):
            if type(batch) is range and len(batch) <= _FEW:
                batch = list(batch)  # which needs no pickler
            try:
                sealed = self._crew.seal(self._func, self._style, _batch(batch, self._style))
            except Exception as error:
                if self._at == 0:
                    raise
                at, self._at = self._at, len(self._items)
                result._fail(at, len(self._items) - at, error)
                break
            bundles.append(Bundle(sealed, len(batch), result._tell, self._at, None, result._tell_done))
            self._at += len(batch)
        return bundles


def _read(crew: Crew, func: Any, iterable: Any, chunksize: int, result: IMapIterator[Any], buffersize: int | None) -> None:
    """Read the iterable of an `imap`, in a thread."""
    at = given = 0  # tasks read, and given to the workers
    failed: BaseException | None = None
    bundles: list[Bundle] = []
    try:
        items = iter(iterable)
        # What is at hand goes some bundles at a time, at first fewer; an iterable may make us wait for the next.
        most, largest = 1, _AT_A_TIME if buffersize is None and type(iterable) in (list, tuple, range) else 1
        while True:
            while buffersize is not None and not result._await_taken(at + chunksize - buffersize, 0.5):
                if crew.broken is not None or crew.terminating:
                    raise WorkerDiedError(crew.broken or "the pool was terminated")
            batch = list(itertools.islice(items, chunksize))
            if not batch:
                break
            bundles.append(Bundle(crew.seal(func, SINGLE, batch), len(batch), result._tell, at, None, result._tell_done))
            at += len(batch)
            if len(bundles) >= most:
                most, ready, bundles = min(2 * most, largest), bundles, []
                crew.submit(ready, promised=True)
                given = at
    except BaseException as error:  # whatever it is, the one who waits hears of it, after the chunks before it
        failed = error
    try:
        if bundles:
            crew.submit(bundles, promised=True)
            given = at
    except BaseException as error:
        failed = error
    finally:
        crew.promise(-1)
    result._ends(given, failed)


if TYPE_CHECKING:
    from multiprocessing.pool import INIT as INIT
else:
    __getattr__, __dir__ = standard_names(__name__, "multiprocessing.pool")
