"""Queues between processes whose items lie in shared memory.

Mirrors `multiprocessing.queues`: same names, signatures and error types. What is different:

* `put` is synchronous. When it returns, the item is in shared memory and outlives its producer; it is a snapshot, what
  cannot be pickled raises there, and the next `get_nowait`, by whomever, finds it. There is no feeder thread.
* Large buffers (arrays, frames) are copied once, into shared memory; the receiver's object stands on that memory,
  its own, and writable unless it was read-only when it was put. Shared arrays, locks and queues cross by handle, whatever their size.
* A process killed anywhere costs the others nothing: no lock stays locked, no item is lost or comes twice.
* When shared memory is full, items go by a file on disk (`COPYLESS_SPILL`), with one warning; `stats` counts them.
* Added: ``name=`` and ``persist=``, ``maxbytes=``, `put_many` and `get_many`, `aput` and `aget` for event loops, `shutdown`
  as `queue.Queue` has it since Python 3.13, iteration, `stats`, and for `JoinableQueue` ``redeliver=True``.

Small items of plain values cost well under a microsecond on each side and no system call.
"""

from __future__ import annotations

import asyncio
import os
import queue
import threading
import time
import warnings
import weakref
from collections.abc import AsyncIterator, Iterable, Iterator
from multiprocessing import util
from queue import Empty, Full
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from copyless import _loaders, aio, pickling, waiting
from copyless._core import _blocks, _queue, _store, c_library
from copyless._one_process import check_process
from copyless._standard_names import standard_names
from copyless.errors import ClosedError, OwnerDiedError
from copyless.objects import Init, Naming, Shared, pickled_by
from copyless.storage.store import tell_of_removal

__all__ = ["Empty", "Full", "JoinableQueue", "Queue", "ShutDown", "SimpleQueue"]

T = TypeVar("T")
_LOOK_AGAIN = 0.02  # seconds
_SIMPLE, _PLAIN, _JOINABLE = 0, 4, 8  # which class, in the flags of the head
_NOTHING = _queue.NOTHING_HERE
_base: type[Exception] = getattr(queue, "ShutDown", Exception)


class ShutDown(ClosedError, _base):  # type: ignore[misc,valid-type]
    """The queue was shut down. Also a `queue.ShutDown`, where Python has it (3.13)."""


def _say_goodbye(reference: weakref.ref[Any], pid: int) -> None:
    q = reference()
    if q is not None and pid == os.getpid():
        q._say_goodbye()


def _tell_of_spilling() -> None:
    warnings.warn(
        "shared memory is full: items of queues go by files on disk, more slowly (stats() counts them). Give /dev/shm more "
        "room (Docker: --shm-size), or set COPYLESS_DIR; COPYLESS_SPILL='' turns this off",
        RuntimeWarning,
        stacklevel=3,
    )


_queue.know(pickling.pack, pickling.direct, pickling.load, ShutDown, _tell_of_spilling, tell_of_removal)


class QueueStats(NamedTuple):
    """Counts since the queue was made.

    Attributes
    ----------
    put, taken : int
        Items.
    size, bytes : int
        Items that lie in it now, and the bytes of their contents.
    spilled : int
        Items that went by a file on disk, because shared memory was full.
    leased : int
        Items taken and not yet acknowledged (only with ``redeliver=True``); dead letters do not count.
    lost : int
        Items that died with their consumers or were shut away (only joinable queues).
    """

    put: int
    taken: int
    size: int
    bytes: int
    spilled: int
    leased: int
    lost: int


class _Base(_queue._Queue, waiting.Selectable, Shared, Generic[T]):
    _flags_of_class = _SIMPLE

    if TYPE_CHECKING:  # what C has, of what the queue holds

        def put(self, obj: T, block: bool = True, timeout: float | None = None) -> None: ...
        def get(self, block: bool = True, timeout: float | None = None) -> T: ...

    def _make(
        self, maxsize: int, maxbytes: int, naming: Naming, flags: int = 0, leases: int = 0, deliveries: int = 0
    ) -> None:
        if maxsize > 0x7FFFFFFF:
            raise ValueError(f"maxsize is at most {0x7FFFFFFF:,}, not {maxsize:,}")
        if maxbytes < 0:
            raise ValueError(f"maxbytes must be 0 (unlimited) or more bytes, not {maxbytes}")
        name = naming[0]
        flags |= self._flags_of_class | (_queue.NAMED if name is not None else 0)

        def make() -> _blocks.Block:
            nbytes = _queue.HEAD_BYTES + leases * _queue.LEASE_BYTES
            block = _blocks.new_object(nbytes, c_library.KIND_QUEUE, max(maxsize, 0), leases, flags)
            begin = _queue._Queue()
            begin._stand(block)
            begin._begin_with(maxbytes)
            begin._deliver_at_most(deliveries)
            return block

        self._obtain(naming, make, (c_library.KIND_QUEUE,))
        if self._flags != flags:
            there = _class_of(self._flags).__name__ + "(redeliver=True)" * bool(self._flags & _queue.REDELIVER)
            raise FileExistsError(
                17, f"the queue of that name is a {there}: open it as that, in every program, or take another name", name
            )

    @classmethod
    def _from_block(cls, block: _blocks.Block) -> Any:
        obj: Any = _Base.__new__(SimpleQueue)
        obj._stand(block)
        kind: Any = _class_of(obj._flags)
        if kind is SimpleQueue:
            return obj
        obj = kind.__new__(kind)
        obj._stand(block)
        obj._stood()
        return obj

    @property
    def _reader(self) -> waiting.Reader:
        """For programs that wait for the standard library's pipe: see `copyless.waiting.Reader`."""
        return waiting.Reader(self)

    @property
    def _writer(self) -> waiting.Writer:
        return waiting.Writer(self)

    def _poll(self, timeout: float | None = 0.0) -> bool:
        """Whether there is an item, waiting at most `timeout` seconds for one; as the standard library's queues have it."""
        return bool(waiting.wait([self], timeout))

    def _puts(self) -> None:
        """Called at this process's first put: at its end it says that it puts no more, unless it is killed."""
        util.Finalize(self, _say_goodbye, (weakref.ref(self), os.getpid()), exitpriority=10)

    def put_many(self, objects: Iterable[T], block: bool = True, timeout: float | None = None) -> int:
        """Put several objects at once: how many were put, which with a limit of time may be fewer.

        They become visible together as far as there is room for them together. Raises Full when none found room. Where memory and
        the disk are full, fewer are put as well; OutOfSharedMemory when it is none.
        """
        return super().put_many(objects, block, timeout)

    def get_many(self, max_items: int | None = None, block: bool = True, timeout: float | None = None) -> list[T]:
        """Take what is there, waiting for the first: a list of at least one and at most `max_items` objects.

        An object with large buffers or shared arrays ends the list. Raises Empty as `get` does. An item that cannot be unpickled costs
        the others nothing: they are returned, and the next `get` or `get_many` of this object raises its error, once. Ctrl-C breaks it
        off at once; what it had taken, the next `get` or `get_many` of this object returns.
        """
        return super().get_many(max_items, block, timeout)

    async def aput(self, obj: T, timeout: float | None = None) -> None:
        """As `put`, in an event loop. Raises Full after `timeout` seconds. Cancelled, it has put nothing."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            try:
                packed = self._pack(obj, 0)
                break
            except Full:  # the registry's lock was not to be had: its holder is stopped, perhaps. The loop goes on meanwhile
                held = _store.lock_word()
                while held and _store.lock_word() == held and (deadline is None or time.monotonic() < deadline):
                    await asyncio.sleep(_LOOK_AGAIN if deadline is None else min(_LOOK_AGAIN, max(deadline - time.monotonic(), 0)))
                if deadline is not None and time.monotonic() >= deadline:
                    raise
                await asyncio.sleep(0)
        key, left = (self._key, "room"), None if deadline is None else max(deadline - time.monotonic(), 0)
        if not await aio.until(key, lambda: self._try_put(packed), self._watch_room, left, False):
            raise Full

    async def aget(self, timeout: float | None = None) -> T:
        """As `get`, in an event loop: any number of tasks wait with one thread. Cancelled, it loses nothing."""
        item = await aio.until((self._key, "items"), self._try_get, self._watch_items, timeout, _NOTHING)
        if item is _NOTHING:
            raise Empty
        return item  # type: ignore[no-any-return]

    def __iter__(self) -> Iterator[T]:
        """Take items until the queue is shut down, or every process that put has ended or closed it and no other has it."""
        while True:
            try:
                item = self._next()
            except ClosedError:
                return
            yield item

    async def __aiter__(self) -> AsyncIterator[T]:
        while True:
            try:
                item = await self.aget()
            except ClosedError:
                return
            yield item

    def shutdown(self, immediate: bool = False) -> None:
        """End the queue for everyone. Mirrors `queue.Queue.shutdown` of Python 3.13.

        From now on `put` raises `ShutDown`, and so does `get` once the queue is empty; with `immediate` at once, and what
        lies in it is dropped and counts as acknowledged.
        """
        self._shut(immediate)

    def close(self) -> None:
        """This process is done with the queue: using this object raises `ClosedError`, a ValueError.

        Others go on; what was put stays. When every process that ever put has closed the queue or ended, and no other has it,
        iterating over it ends. To end the queue for everyone, `shutdown` it.
        """
        if not self.closed:
            self._close_role()

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def stats(self) -> QueueStats:
        """What went through, and what lies in it."""
        put, taken, nbytes, spilled, lost, leased = self._numbers()
        return QueueStats(put, taken, put - taken, nbytes, spilled, leased, lost)

    def _state_text(self) -> str:
        put, taken, nbytes, *_ = self._numbers()
        most = f" of {self._number}" if self._number else ""
        ended = ", shut down" if self._ended else ""
        return f"{put - taken}{most} items, {nbytes:,} bytes{ended}"

    def __repr__(self) -> str:
        name = "" if self.name is None else f" {self.name!r}"
        return f"<{type(self).__name__}{name} {self._state_text()}>"


@pickled_by(_loaders.simple_queue)
class SimpleQueue(_Base[T]):
    """SimpleQueue(*, name=None, persist=False, exist_ok=True, init=None, ctx=None)

    A queue without limit: `put`, `get`, `empty`, `close`, and what all queues here have. Mirrors
    `multiprocessing.SimpleQueue`, whose `put` waits for ever when a pipe is full; this one never waits.

    Examples
    --------
    >>> import copyless
    >>> with copyless.SimpleQueue() as q:
    ...     q.put({"a": 1})
    ...     q.get()
    {'a': 1}
    """

    def __init__(
        self,
        *,
        name: str | None = None,
        persist: bool = False,
        exist_ok: bool = True,
        init: Init | None = None,
        ctx: object = None,
    ) -> None:
        self._make(0, 0, (name, persist, exist_ok, init))

    def put(self, obj: T) -> None:  # type: ignore[override]
        """Put an object in; see the module."""
        super().put(obj)

    def get(self) -> T:  # type: ignore[override]
        """Take the first object, waiting for one."""
        return super().get()


@pickled_by(_loaders.queue)
class Queue(_Base[T]):
    """Queue(maxsize=0, *, maxbytes=0, name=None, persist=False, exist_ok=True, init=None, ctx=None)

    A queue of many producers and many consumers, first in first out. Mirrors `multiprocessing.Queue`.

    Arrays arrive in memory of the receiver's own; one that is read-only when it is put arrives read-only, as with pickle's protocol 5
    (the standard library's queues pickle with an older one up to Python 3.13, which makes it writable).

    Parameters
    ----------
    maxsize
        Most items; 0: no limit.
    maxbytes
        Most bytes of items' contents that lie in it; 0: no limit. An item larger than that goes when the queue is empty.
        What was received does not count any more.
    name, persist, exist_ok, init, ctx
        As for `copyless.Lock`. Who comes first decides the limits. A queue that was shut down gives its name to the next that is made.

    Examples
    --------
    >>> import copyless
    >>> q = copyless.Queue(maxsize=2)
    >>> q.put("one"); q.put([2]); q.full(), q.qsize()
    (True, 2)
    >>> q.get(), q.get_nowait(), q.empty()
    ('one', [2], True)
    """

    _flags_of_class = _PLAIN

    def __init__(
        self,
        maxsize: int = 0,
        *,
        maxbytes: int = 0,
        name: str | None = None,
        persist: bool = False,
        exist_ok: bool = True,
        init: Init | None = None,
        ctx: object = None,
    ) -> None:
        self._make(maxsize, maxbytes, (name, persist, exist_ok, init))

    def put_nowait(self, obj: T) -> None:
        """`put` without waiting: Full when there is no room."""
        self.put(obj, False)

    def get_nowait(self) -> T:
        """`get` without waiting: Empty when there is nothing."""
        return self.get(False)

    def join_thread(self) -> None:
        """Nothing to wait for: there is no thread. As in the standard library, only after `close`."""
        assert self.closed, f"Queue {self!r} not closed"

    def cancel_join_thread(self) -> None:
        """Nothing to cancel: what was put is in shared memory already."""


@pickled_by(_loaders.joinable_queue)
class JoinableQueue(Queue[T]):
    """JoinableQueue(maxsize=0, *, maxbytes=0, redeliver=False, max_deliveries=None, name=None, persist=False, exist_ok=True, init=None, ctx=None)

    A queue that knows what was taken and not yet acknowledged. Mirrors `multiprocessing.JoinableQueue`.

    Parameters
    ----------
    maxsize, maxbytes, name, persist, exist_ok, init, ctx
        As for `Queue`.
    redeliver
        At least once instead of at most once: what a consumer that died had taken and not acknowledged is handed out
        again, byte for byte as it was put. Acknowledge with ``with q.lease() as item:`` or ``q.task_done(item)``. Items
        arrive in memory of the consumer's own (copy-on-write when large). At most 1,024 items may be taken and not
        acknowledged at a time.
    max_deliveries
        With `redeliver`: how often an item is handed out at most. One whose consumers died, gave it back (`nack`) or could not
        unpickle it so many times is set aside: `join` does not wait for it, and `dead_letters` shows it. Each counts as one
        taken and not acknowledged until it is discarded. None: without limit.

    `get` raises the error of an item that cannot be unpickled; with `redeliver` the item stays in the queue.

    Without `redeliver`, an item dies with the consumer that took it; `join` then raises `OwnerDiedError` with the count
    instead of waiting for ever.

    Examples
    --------
    >>> import copyless
    >>> q = copyless.JoinableQueue(redeliver=True)
    >>> q.put("job")
    >>> with q.lease() as job:
    ...     print(job, q.stats().leased)
    job 1
    >>> q.join()
    """

    _flags_of_class = _JOINABLE
    _remade = frozenset(("_taken", "_taken_by", "_taking"))

    def __init__(
        self,
        maxsize: int = 0,
        *,
        maxbytes: int = 0,
        redeliver: bool = False,
        max_deliveries: int | None = None,
        name: str | None = None,
        persist: bool = False,
        exist_ok: bool = True,
        init: Init | None = None,
        ctx: object = None,
    ) -> None:
        flags = _queue.JOINABLE | (_queue.REDELIVER if redeliver else 0)
        if max_deliveries is not None:
            if not redeliver:
                raise ValueError("max_deliveries= is for a queue that delivers again: redeliver=True")
            if not hasattr(max_deliveries, "__index__"):
                raise TypeError(f"max_deliveries is a whole number, 1 or more, not {max_deliveries!r}")
            if not 1 <= max_deliveries <= 0x7FFFFFFF:
                raise ValueError(f"max_deliveries is 1 or more, not {max_deliveries}")
        self._make(
            maxsize,
            maxbytes,
            (name, persist, exist_ok, init),
            flags,
            _queue.LEASES if redeliver else 0,
            max_deliveries or 0,
        )

    def _stood(self) -> None:
        self._taken: dict[int, list[tuple[Any, int]]] = {}  # by id: objects taken here, with their numbers
        self._taken_by = os.getpid()
        self._taking = threading.Lock()

    def _be_of_this_process(self) -> None:
        if self._taken_by != os.getpid():  # a forked child has taken nothing yet, and a thread that is not there holds no lock
            self._stood()

    def _leased(self, sequence: int, obj: Any) -> Any:
        self._be_of_this_process()
        with self._taking:
            self._taken.setdefault(id(obj), []).append((obj, sequence))
        return obj

    def task_done(self, item: Any = _NOTHING) -> None:
        """Acknowledge an item: with `redeliver` the one given (the object that `get` returned), else any one.

        Raises
        ------
        ValueError
            When called more often than there were items, or for an object that this process did not take.
        """
        if not self.redelivers:
            if not self._done(0):
                raise ValueError("task_done() called too many times")
            return
        self._done(self._sequence_of(item, "task_done"))

    def _sequence_of(self, item: Any, what: str) -> int:
        """The number of an item that was taken here; it is forgotten."""
        self._be_of_this_process()
        with self._taking:
            if item is _NOTHING and self._taken:
                item = next(iter(self._taken.values()))[0][0]  # the one taken first
            entries = self._taken.get(id(item), [])
            if not entries:
                raise ValueError(
                    "task_done() called too many times"
                    if item is _NOTHING
                    else f"{what}(item) is for the very object that get() returned in this process, once"
                )
            _, sequence = entries.pop(0)
            if not entries:
                del self._taken[id(item)]
        return sequence

    def nack(self, item: Any) -> None:
        """Give an item back, of a queue with `redeliver`: it is handed out again, or after `max_deliveries` set aside.

        Raises
        ------
        ValueError
            For an object that this process did not take, or acknowledged already.

        Examples
        --------
        >>> import copyless
        >>> q = copyless.JoinableQueue(redeliver=True, max_deliveries=2)
        >>> q.put("job")
        >>> q.nack(q.get()); q.nack(q.get())
        >>> q.join(), q.dead_letters()
        (None, [<DeadLetter 0: 2 deliveries, 8 bytes>])
        """
        if not self.redelivers:
            raise ValueError("nack() is for a queue that delivers again: redeliver=True")
        self._nack(self._sequence_of(item, "nack"))

    def dead_letters(self) -> list[DeadLetter]:
        """What was handed out `max_deliveries` times and never acknowledged, oldest first; each a copy of its bytes."""
        return sorted(DeadLetter(self, *letter) for letter in self._dead_letters())

    def lease(self, block: bool = True, timeout: float | None = None) -> Lease[T]:
        """``with q.lease() as item:`` takes an item and acknowledges it at the end.

        When the block raises, the item is not acknowledged: with `redeliver` it is handed out again once this process
        has ended, or at once by `nack(item)`; `task_done(item)` gives it up.

        A process forked inside the block does not acknowledge its parent's item: leaving the block there is a
        `WrongProcessError`.
        """
        return Lease(self, block, timeout)

    def join(self, timeout: float | None = None) -> None:
        """Wait until every item put has been acknowledged.

        Raises
        ------
        OwnerDiedError
            When all that is missing was taken by processes that have died; it says how many. They then count as done.
        TimeoutError
            After `timeout` seconds.
        """
        left = self._join(timeout)
        if left > 0:
            raise OwnerDiedError(
                f"{left} items were taken by processes that died before they called task_done(). They are lost, and now "
                "count as done (redeliver=True hands such items out again)"
            )
        if left < 0:
            raise TimeoutError(f"{self._unfinished()} items are not acknowledged after {timeout} seconds")


class DeadLetter:
    """An item that was set aside; see `JoinableQueue.dead_letters`.

    Attributes
    ----------
    sequence : int
        Which item of the queue it was, from 0.
    deliveries : int
        How often it was handed out.
    data : bytes
        As it lies in the queue.
    """

    def __init__(self, q: JoinableQueue[Any], sequence: int, deliveries: int, data: bytes, ntokens: int) -> None:
        self._queue, self.sequence, self.deliveries, self.data, self._ntokens = q, sequence, deliveries, data, ntokens

    def load(self) -> Any:
        """The object; raises what its unpickling raises."""
        return self._queue._load_letter(self.data, self._ntokens)

    def discard(self) -> bool:
        """Take it out of the queue for good; whether it was there still."""
        return self._queue._discard(self.sequence)

    def __lt__(self, other: DeadLetter) -> bool:
        return self.sequence < other.sequence

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.sequence}: {self.deliveries} deliveries, {len(self.data)} bytes>"


class Lease(Generic[T]):
    """``with q.lease() as item:``; see `JoinableQueue.lease`."""

    def __init__(self, q: JoinableQueue[T], block: bool, timeout: float | None) -> None:
        self._queue, self._block, self._timeout = q, block, timeout
        self._pid = os.getpid()

    def _check_process(self) -> None:
        check_process(self._pid, self, "its item is acknowledged by its parent. Take an item there")

    def __enter__(self) -> T:
        self._check_process()
        self._item = self._queue.get(self._block, self._timeout)
        return self._item

    def __exit__(self, kind: Any, *exc: object) -> None:
        if kind is None:
            self._check_process()
            self._queue.task_done(self._item) if self._queue.redelivers else self._queue.task_done()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._queue!r}, process {self._pid}>"


def _class_of(flags: int) -> type[Any]:
    return JoinableQueue if flags & _JOINABLE else Queue if flags & _PLAIN else SimpleQueue


if not TYPE_CHECKING:  # a checker shall see a misspelt name
    __getattr__, __dir__ = standard_names(__name__, "multiprocessing.queues")
