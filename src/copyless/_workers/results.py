"""The results that the methods of a pool return before the answers arrive: `AsyncResult`, `MapResult`, `IMapIterator`.

They are public in `copyless.pool`.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from multiprocessing import TimeoutError

from copyless._objects.selectable import ring
from copyless._one_process import check_process
from copyless._typing import TYPE_CHECKING, Any, Generic, TypeVar
from copyless._workers import _answers
from copyless._workers.outcome import outcome
from copyless._workers.protocol import DONE

if TYPE_CHECKING:
    from copyless import waiting
    from copyless._progress import TaskBar

__all__ = ["AsyncResult", "IMapIterator", "MapResult"]

T = TypeVar("T")
INSTEAD = "its workers and its results belong to the parent. Make a Pool of its own in the child"

os.register_at_fork(after_in_child=_answers._forked)


class AsyncResult(Generic[T]):
    """The result of a task that may still run; `apply_async` returns it. Mirrors `multiprocessing.pool.AsyncResult`."""

    __module__ = "copyless.pool"  # its public module

    def __init__(
        self, callback: Callable[[T], object] | None, error_callback: Callable[[BaseException], object] | None
    ) -> None:
        self._event = threading.Event()
        self._callback: Callable[[T], object] | None = callback
        self._error_callback: Callable[[BaseException], object] | None = error_callback
        self._success = False
        self._value: Any = None
        self._pool: Any = None  # keeps the pool alive while its results are awaited
        self._pid = os.getpid()

    def ready(self) -> bool:
        """Whether the task has ended."""
        return self._event.is_set()

    def _for_wait(self) -> waiting.Part:
        if not self._event.is_set():
            check_process(self._pid, self, INSTEAD)
        from copyless import waiting

        return waiting.Part(lambda deaths: self._event.is_set())

    def successful(self) -> bool:
        """Whether the task has ended without an exception. ValueError if it has not ended."""
        if not self.ready():
            raise ValueError(f"{self!r} not ready")
        return self._success

    def wait(self, timeout: float | None = None) -> None:
        """Wait until the task has ended, for at most `timeout` seconds."""
        self._wait(timeout)

    def _wait(self, timeout: float | None) -> bool:
        if not self._event.is_set():
            check_process(self._pid, self, INSTEAD)  # the answer never arrives in a forked child
        return self._event.wait(timeout)

    def get(self, timeout: float | None = None) -> T:
        """Return the result, or raise what the task raised. `multiprocessing.TimeoutError` after `timeout` seconds."""
        if not self._wait(timeout):
            raise TimeoutError
        if self._success:
            value: T = self._value
            return value
        raise self._value

    def _deliver(self, i: int, kind: int, value: object) -> None:
        self._set(*outcome(kind, value))

    def _set(self, success: bool, value: object) -> None:
        """Complete the task: run its callback and wake the threads that wait."""
        self._success, self._value = success, value
        call: Callable[[Any], object] | None = self._callback if success else self._error_callback
        try:
            if call is not None:
                call(value)
        finally:
            self._event.set()
            self._callback = self._error_callback = self._pool = None
            ring()


class MapResult(AsyncResult[list[T]]):
    """The result of `map_async` and `starmap_async`: the list of results, or the first exception, once all tasks
    have ended.
    """

    __module__ = "copyless.pool"  # its public module

    def __init__(
        self,
        length: int,
        callback: Callable[[list[T]], object] | None,
        error_callback: Callable[[BaseException], object] | None,
        bar: TaskBar | None = None,
    ) -> None:
        super().__init__(callback, error_callback)
        self._results: list[Any] = [None] * length
        self._lock = threading.Lock()  # guards the fields below
        self._left = length
        self._error: tuple[int, Any] | None = None
        # set by the feeder: called while at most `_more_at` tasks are left
        self._more: Callable[[], None] | None = None
        self._more_at = length
        self._bar = bar
        if not length:
            self._set(True, [])

    def _deliver(self, i: int, kind: int, value: object) -> None:
        success = kind == DONE
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

    def _deliver_many(self, i: int, values: list[Any]) -> None:
        self._results[i : i + len(values)] = values
        if self._bar is not None:
            self._bar.advance(len(values))
        self._count(len(values))

    def _fail(self, at: int, tasks: int, error: BaseException) -> None:
        """Fail so many tasks, from `at` on, that will never run. The feeder calls this, in any thread."""
        with self._lock:
            if self._error is None or at < self._error[0]:
                self._error = at, error
        self._count(tasks)

    def _count(self, ended: int) -> None:
        """Count so many more tasks that have ended."""
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
    """The iterator that `imap` returns: results in order, each as soon as it is available."""

    __module__ = "copyless.pool"  # its public module

    if TYPE_CHECKING:

        def __iter__(self) -> Iterator[T]: ...
        def __next__(self) -> T: ...
        def next(self, timeout: float | None = None) -> T: ...

    def __init__(self, pool: object, ordered: bool, bar: TaskBar | None = None, limited: bool = False) -> None:
        self._pool = pool
        self._ordered = ordered
        self._items: dict[int, tuple[bool, list[Any]]] = {}  # by their first task
        self._arrived: deque[tuple[bool, list[Any]]] = deque()
        self._at = 0
        self._length: int | None = None
        self._error: BaseException | None = None  # an error of the iterable: raised after all earlier results
        self._pid = os.getpid()
        lock = threading.RLock()
        self._change = threading.Condition(lock)
        self._bar = bar
        self._taken = 0  # results that the caller has taken
        self._makes_room = threading.Condition(lock) if limited else None

    def _deliver(self, i: int, kind: int, value: object) -> None:
        success, value = outcome(kind, value)
        self._put(i, success, [value])

    def _deliver_many(self, i: int, values: list[Any]) -> None:
        self._put(i, True, values)

    def _put(self, i: int, success: bool, values: list[Any]) -> None:
        if self._bar is not None:  # first: the caller may end as soon as it has the last result
            self._bar.advance(len(values))
        with self._change:
            if self._ordered:
                self._items[i] = success, values
            else:
                self._arrived.append((success, values))
            self._change.notify()

    def _ends(self, length: int, error: BaseException | None = None) -> None:
        """Record that the iterable had so many items, and then perhaps raised an error."""
        if self._bar is not None:
            if error is None:
                self._bar.ends_at(length)
            else:
                self._bar.stop()
        with self._change:
            self._length, self._error = length, error
            self._change.notify_all()

    def _set_taken(self, tasks: int) -> None:
        """Record that the caller has taken so many results. Called with the lock held."""
        self._taken = tasks
        if self._makes_room is not None:
            self._makes_room.notify()

    def _await_taken(self, tasks: int, seconds: float) -> bool:
        """Wait until the caller has taken so many results, for at most `seconds`. Returns whether it has."""
        assert self._makes_room is not None
        with self._change:
            return self._makes_room.wait_for(lambda: self._taken >= tasks, seconds)

    def _is_there(self) -> bool:
        if self._at == self._length or self._left():
            return True
        return self._at in self._items if self._ordered else bool(self._arrived)

    def _wait(self, timeout: float | None) -> Any:
        """Wait for the next result; called if none is available."""
        check_process(self._pid, self, INSTEAD)
        with self._change:
            self._set_taken(self._at - self._left())
            if not self._change.wait_for(self._is_there, timeout):
                raise TimeoutError from None
            if self._left():  # another thread has taken a chunk meanwhile: its rest is for the next caller
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
                self._give(values)  # counted as taken when the next one is requested
            if self._is_there():
                self._change.notify()  # wake another thread that waits
            if several:
                return self.next(timeout)
            self._set_taken(self._at)
        if success:
            return values.pop()
        raise values.pop()
