"""How many items a task has: sends the items of `map` and `imap` to a worker pool in bundles.

Without `chunksize`, a bundle of `map` takes some milliseconds, as measured on earlier bundles. With `chunksize`, all
bundles have that size.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
import weakref

from copyless import errors
from copyless._typing import Any
from copyless._workers.bundle import Bundle
from copyless._workers.protocol import SINGLE
from copyless._workers.results import IMapIterator, MapResult
from copyless._workers.worker_pool import WorkerPool

__all__ = ["MapFeeder", "feed_iterable"]

_BUNDLE_SECONDS = 0.005  # the time that a bundle of unknown tasks should take
_MOST = 8192  # the most tasks in a bundle
_SHARE = 10  # the last bundles take at least this fraction of that time
_AT_A_TIME = 32  # bundles at a time, if their size is given
_FEW = 64  # tasks of a range up to which it is sent as a list


def _batch(items: Any, style: int) -> Any:
    return items if style == SINGLE else [tuple(args) for args in items]


class MapFeeder:
    """Sends the items of a `map` to the workers: `begin` in bundles that take some milliseconds each, `feed_all` in
    bundles of equal size.
    """

    def __init__(self, workers: WorkerPool, func: object, items: Any, style: int, result: MapResult[Any]) -> None:
        self._workers, self._func, self._items, self._style, self._result = workers, func, items, style, result
        self._at = 0
        self._began = time.perf_counter()
        self._lock = threading.RLock()
        self._size = 1
        self._packed: int | None = None  # tasks in the bundles that are being sent; None: the bundles are being packed

    def begin(self) -> None:
        """Send the first bundles. The collector asks for more as answers arrive."""
        self._workers.promise(1)
        with self._lock:
            try:
                self._result._more = self._more  # the collector calls it, and not before a task was fed
                pace = self._workers.pace
                # For the function mapped last, the time of a task is known. At most half of the tasks go at once.
                learned = pace is not None and pace[0]() == self._func
                most = len(self._items) // (4 * self._workers.processes)
                self._feed(min(int(_BUNDLE_SECONDS / pace[1]), most) if learned else 1)
            except BaseException:  # no caller waits for this map: send no more of it
                self._result._more, self._at = None, len(self._items)
                self._workers.promise(-1)
                raise

    def _more(self) -> None:
        """Send the next bundles if few tasks are left with the workers. The collector calls this."""
        with self._lock:
            if self._at == len(self._items) or self._result._left > self._result._more_at:
                return
            spent = (time.perf_counter() - self._began) * self._workers.processes
            seconds = max(spent / max(self._result._done, 1), 1e-9)
            with contextlib.suppress(TypeError):  # some callables have no weak references
                self._workers.pace = weakref.ref(self._func), seconds
            at = self._at
            try:
                self._feed(int(_BUNDLE_SECONDS / seconds))
            except (
                BaseException
            ) as error:  # the pool is broken or terminated; it does not know the items that were not sent
                unfed = len(self._items) - at if self._packed is None else len(self._items) - self._at + self._packed
                self._result._more, self._at = None, len(self._items)
                self._workers.promise(-1)
                self._result._fail(at, unfed, error)

    def _feed(self, size: int) -> None:
        """Send two bundles for each worker, of about so many tasks each."""
        left = len(self._items) - self._at
        # The last bundles are smaller, so that the workers end together. Each bundle has a cost, so they are not much
        # smaller.
        fair = max(left // (2 * self._workers.processes), size // _SHARE)
        self._size = size = max(1, min(size, _MOST, fair))
        self._packed = None
        bundles = self._bundles(2 * self._workers.processes, size)
        self._packed = sum(bundle.count for bundle in bundles)
        self._result._more_at = len(self._items) - self._at + self._workers.processes * self._size // 2 + 1
        if bundles:
            self._workers.submit(bundles, promised=True)
        if self._at == len(self._items):
            self._result._more = None
            self._workers.promise(-1)

    def feed_all(self, size: int) -> None:
        """Send all tasks in bundles of equal size, some at a time: the first run while the last are packed."""
        self._workers.promise(1)
        try:
            while bundles := self._bundles(_AT_A_TIME, size):
                self._workers.submit(bundles, promised=True)
        finally:
            self._workers.promise(-1)

    def _bundles(self, most: int, size: int) -> list[Bundle]:
        """Pack the next bundles.

        If one cannot be pickled, it and all later ones fail. Raises if that is the first bundle.
        """
        bundles: list[Bundle] = []
        result = self._result
        while len(bundles) < most and (batch := self._items[self._at : self._at + size]):
            if type(batch) is range and len(batch) <= _FEW:
                batch = list(batch)  # a list needs no pickler
            try:
                sealed = self._workers.seal(self._func, self._style, _batch(batch, self._style))
            except Exception as error:
                if self._at == 0:
                    raise
                at, self._at = self._at, len(self._items)
                result._fail(at, len(self._items) - at, error)
                break
            bundles.append(Bundle(sealed, len(batch), result._deliver, self._at, None, result._deliver_many))
            self._at += len(batch)
        return bundles


def feed_iterable(
    workers: WorkerPool,
    func: object,
    iterable: Any,
    chunksize: int,
    result: IMapIterator[object],
    buffersize: int | None,
) -> None:
    """Read the iterable of an `imap` and send its items to the workers. Runs in its own thread."""
    at = given = 0  # items read, and items sent to the workers
    failed: BaseException | None = None
    bundles: list[Bundle] = []
    try:
        items = iter(iterable)
        # Items of a list are sent in several bundles at a time, at first fewer. Another iterable may take long for its
        # next item.
        most, largest = 1, _AT_A_TIME if buffersize is None and type(iterable) in (list, tuple, range) else 1
        while True:
            while buffersize is not None and not result._await_taken(at + chunksize - buffersize, 0.5):
                if workers.broken is not None or workers.terminating:
                    raise errors.WorkerDiedError(workers.broken or "the pool was terminated")
            batch = list(itertools.islice(items, chunksize))
            if not batch:
                break
            bundles.append(
                Bundle(workers.seal(func, SINGLE, batch), len(batch), result._deliver, at, None, result._deliver_many)
            )
            at += len(batch)
            if len(bundles) >= most:
                most, ready, bundles = min(2 * most, largest), bundles, []
                workers.submit(ready, promised=True)
                given = at
    except BaseException as error:  # whatever it is, the caller gets it after the earlier results
        failed = error
    try:
        if bundles:
            workers.submit(bundles, promised=True)
            given = at
    except BaseException as error:
        failed = error
    finally:
        workers.promise(-1)
    result._ends(given, failed)
