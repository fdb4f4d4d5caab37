"""Queues between processes whose items lie in shared memory.

Mirrors `multiprocessing.queues`: same names, signatures and error types. The differences:

* `put` is synchronous. When it returns, a snapshot of the item is in shared memory and outlives its producer, and the
  next `get_nowait` of any process finds it. An object that cannot be pickled raises its error there. There is no feeder
  thread.
* Large buffers (of arrays, DataFrames) are copied once, into shared memory. The receiver's object uses that memory,
  which belongs to the receiver alone; it is writable unless the buffer was read-only when it was put. Shared arrays,
  locks and queues are sent as handles, whatever their size.
* If a process is killed anywhere, other processes are not affected: no lock stays locked, and no item is lost or
  delivered twice.
* When shared memory is full, items spill to files on disk (`COPYLESS_SPILL`), with one warning; `stats` counts them.
* Added: ``name=`` and ``persist=``, ``maxbytes=``, `put_many` and `get_many`, `aput` and `aget` for event loops,
  `shutdown` as in `queue.Queue` since Python 3.13, iteration, `stats`, and ``redeliver=True`` of `JoinableQueue`.

A small item of plain values costs well under a microsecond on each side and no system call.
"""

from __future__ import annotations

import operator
import os
import threading
import time
from _weakref import ref  # `weakref` takes 0.5 ms to load
from collections.abc import AsyncIterator, Iterable, Iterator
from queue import Empty, Full

from copyless._core import _blocks, _store, c_library
from copyless._core._blocks import Late
from copyless._objects import _queue
from copyless._objects.base import Init, Naming, Shared, pickled_by
from copyless._objects.selectable import Selectable
from copyless._standard_names import standard_names
from copyless._storage.store import new_object
from copyless._typing import TYPE_CHECKING, Any, Generic, TypeVar
from copyless.errors import ClosedError, OwnerDiedError, ShutDown

if TYPE_CHECKING:
    from typing_extensions import Self

    from copyless import waiting
    from copyless._objects.queue_stats import QueueStats

__all__ = ["Empty", "Full", "JoinableQueue", "Queue", "ShutDown", "SimpleQueue"]

T = TypeVar("T")
_SIMPLE, _PLAIN, _JOINABLE = 0, 4, 8  # the class of a queue, in the flags of its head
_LEASES_MOST = 65536
_NOTHING = _queue.NOTHING_HERE


def _say_goodbye(reference: ref[Any], pid: int) -> None:
    q = reference()
    if q is not None and pid == os.getpid():
        q._say_goodbye()


class _Base(_queue._Queue, Selectable, Shared, Generic[T]):
    _flags_of_class = _SIMPLE
    _in_tasks = "queue_methods"

    if TYPE_CHECKING:  # methods that the Cython class has, with the type of the items

        def put(self, obj: T, block: bool = True, timeout: float | None = None) -> None: ...
        def get(self, block: bool = True, timeout: float | None = None) -> T: ...

    def _make(
        self, maxsize: int, maxbytes: int, naming: Naming, flags: int = 0, leases: int = 0, deliveries: int = 0
    ) -> None:
        if maxsize > 0x7FFFFFFF:
            raise ValueError(f"maxsize must be at most {0x7FFFFFFF:,}, not {maxsize:,}")
        if maxbytes < 0:
            raise ValueError(f"maxbytes must be 0 (unlimited) or more bytes, not {maxbytes}")
        name = naming[0]
        flags |= self._flags_of_class | (_queue.NAMED if name is not None else 0)

        def make() -> _blocks.Block:
            nbytes = _queue.HEAD_BYTES + leases * _queue.LEASE_BYTES
            block = new_object(nbytes, c_library.KIND_QUEUE, max(maxsize, 0), leases, flags)
            begin = _queue._Queue()
            begin._stand(block)
            begin._begin_with(maxbytes)
            begin._deliver_at_most(deliveries)
            return block

        self._obtain(naming, make, (c_library.KIND_QUEUE,))
        if self._flags != flags:
            there = _class_of(self._flags).__name__ + "(redeliver=True)" * bool(self._flags & _queue.REDELIVER)
            raise FileExistsError(
                17,
                f"the queue of that name is a {there}: use the same class and options in every program, or "
                "choose another name",
                name,
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
        """For programs that wait for the pipe of a standard queue: see `copyless.waiting.Reader`."""
        from copyless import waiting

        return waiting.Reader(self)

    @property
    def _writer(self) -> waiting.Writer:
        from copyless import waiting

        return waiting.Writer(self)

    def _poll(self, timeout: float | None = 0.0) -> bool:
        """Whether there is an item, after waiting at most `timeout` seconds for one. The standard library's queues
        have it.
        """
        from copyless import waiting

        return bool(waiting.wait([self], timeout))

    def _puts(self) -> None:
        """Called at the first put of this process. When the process ends normally, it records that it puts no more."""
        from multiprocessing import util  # loads `subprocess`

        util.Finalize(self, _say_goodbye, (ref(self), os.getpid()), exitpriority=10)

    def put_many(self, objects: Iterable[T], block: bool = True, timeout: float | None = None) -> int:
        """Put several objects at once. Returns how many were put; with a timeout, this may be fewer than were given.

        Objects for which there is room together become visible together. Costs one lock and at most one wake-up for
        each such group.

        Parameters
        ----------
        objects : iterable
            The objects.
        block : bool
            If false, do not wait for room.
        timeout : float or None
            Seconds to wait for room; None: without limit.

        Raises
        ------
        queue.Full
            If no object found room.
        OutOfSharedMemory
            If memory and disk are full and no object was put.
        ClosedError, ShutDown
            As `put`.

        Examples
        --------
        >>> import copyless
        >>> q = copyless.Queue()
        >>> q.put_many([1, 2, 3]), q.get_many()
        (3, [1, 2, 3])
        """
        return super().put_many(objects, block, timeout)

    def get_many(self, max_items: int | None = None, block: bool = True, timeout: float | None = None) -> list[T]:
        """Wait for one object, then take all that are there: a list of at least one and at most `max_items` objects.

        An object with large buffers or shared arrays ends the list. If an item cannot be unpickled, the others are
        returned, and the next `get` or `get_many` of this object raises its error once. Ctrl-C interrupts the call at
        once; the next `get` or `get_many` of this object returns what was already taken.

        Parameters
        ----------
        max_items : int or None
            The most objects to take; None: all.
        block : bool
            If false, do not wait.
        timeout : float or None
            Seconds to wait for the first object; None: without limit.

        Raises
        ------
        queue.Empty
            If there is no object within the time.
        ClosedError, ShutDown, EndOfQueueError
            As `get`.

        Examples
        --------
        >>> import copyless
        >>> q = copyless.Queue()
        >>> q.put("a"); q.put("b"); q.put("c")
        >>> q.get_many(2), q.get_many()
        (['a', 'b'], ['c'])
        """
        return super().get_many(max_items, block, timeout)

    async def aput(self, obj: T, timeout: float | None = None) -> None:
        """`put` for an event loop: the loop runs on while there is no room. A task that is cancelled has put nothing.

        Raises
        ------
        queue.Full
            If there is no room within `timeout` seconds (None: no limit).
        ClosedError, ShutDown
            As `put`.

        Examples
        --------
        >>> import asyncio, copyless
        >>> q = copyless.Queue()
        >>> async def main():
        ...     await q.aput("item")
        ...     return await q.aget()
        >>> asyncio.run(main())
        'item'
        """
        from copyless._objects import event_loops

        deadline, pause = None if timeout is None else time.monotonic() + timeout, event_loops.SOON
        while True:
            try:
                packed = self._try_pack(obj)
                break
            except Late:
                # the registry's lock is held, perhaps by a stopped process: let the loop go on meanwhile
                import asyncio

                held = _store.lock_word()
            while True:
                nap = pause if deadline is None else min(pause, deadline - time.monotonic())
                if nap <= 0:
                    raise Full
                await asyncio.sleep(nap)
                pause = min(2 * pause, event_loops.LATER)
                if not held or _store.lock_word() != held:
                    break
        key, left = (self._key, "room"), None if deadline is None else max(deadline - time.monotonic(), 0)
        if not await event_loops.until(key, lambda: self._try_put(packed), self._watch_room, left, False):
            raise Full

    async def aget(self, timeout: float | None = None) -> T:
        """`get` for an event loop: any number of tasks wait with one thread. A task that is cancelled loses no item.

        Raises
        ------
        queue.Empty
            If there is no item within `timeout` seconds (None: no limit).
        ClosedError, ShutDown, EndOfQueueError
            As `get`.

        Examples
        --------
        >>> import asyncio, copyless
        >>> q = copyless.Queue()
        >>> q.put("item")
        >>> asyncio.run(q.aget())
        'item'
        """
        from copyless._objects import event_loops

        item: T = await event_loops.until((self._key, "items"), self._try_get, self._watch_items, timeout, _NOTHING)
        if item is _NOTHING:
            raise Empty
        return item

    def __iter__(self) -> Iterator[T]:
        """Take items until the queue is shut down, or until all producers have ended or closed it and no other
        process has it.
        """
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
        """End the queue for all processes. Mirrors `queue.Queue.shutdown` of Python 3.13.

        From now on `put` raises `ShutDown`, and so does `get` once the queue is empty. With `immediate`, `get` raises
        it at once; the items are dropped and count as acknowledged.

        Examples
        --------
        >>> import copyless
        >>> q = copyless.Queue()
        >>> q.put(1); q.shutdown()
        >>> list(q)
        [1]
        """
        self._shut(immediate)

    def close(self) -> None:
        """Close the queue in this process: using this object then raises `ClosedError` (a ValueError).

        Other processes go on, and the items stay. Iteration in another process ends when all producers have closed the
        queue or ended and no other process has it. To end the queue for all processes, use `shutdown`.
        """
        if not self.closed:
            self._close_role()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def stats(self) -> QueueStats:
        """How many items were put and taken, and how many are in the queue; see `QueueStats`.

        Examples
        --------
        >>> import copyless
        >>> q = copyless.Queue()
        >>> q.put(1); q.put(2); q.get()
        1
        >>> q.stats().put, q.stats().taken, q.stats().size
        (2, 1, 1)
        """
        from copyless._objects.queue_stats import QueueStats

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

    def _repr_html_(self) -> str:
        from copyless import _html

        return _html.tell(self, lambda: _html.of_queue(self))


@pickled_by("simple_queue")
class SimpleQueue(_Base[T]):
    """SimpleQueue(*, name=None, persist=False, exist_ok=True, init=None, ctx=None)

    A queue without limits: `put` never waits. Mirrors `multiprocessing.SimpleQueue`, whose `put` waits while its pipe
    is full.

    Parameters
    ----------
    name
        Programs that give the same name share one queue; the first one makes it.
    persist
        Keep the named queue when no process uses it, until `copyless.unlink`. Without it, the queue is freed with its
        last user.
    exist_ok
        If false, FileExistsError is raised when the name is taken.
    init
        A function that is called with the new queue before other processes can find it, by the process that makes it.
    ctx
        Accepted as in the standard library, and not used.

    Raises
    ------
    OutOfSharedMemory
        If there is no room.
    FileExistsError
        If the name is taken by an object of another kind, or taken at all with ``exist_ok=False``.

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
        """Put an object into the queue. When this returns, a snapshot of the object is in shared memory.

        Raises
        ------
        ShutDown, ClosedError
            If the queue was shut down, or this object is closed.
        OutOfSharedMemory
            If memory and disk are full.
        """
        super().put(obj)

    def get(self) -> T:  # type: ignore[override]
        """Take the first object; wait until there is one.

        Raises
        ------
        ShutDown
            If the queue is empty and was shut down.
        EndOfQueueError
            If no process is left that could put an item.
        ClosedError
            If this object is closed.
        """
        return super().get()


@pickled_by("queue")
class Queue(_Base[T]):
    """Queue(maxsize=0, *, maxbytes=0, name=None, persist=False, exist_ok=True, init=None, ctx=None)

    A first-in, first-out queue with any number of producers and consumers. Mirrors `multiprocessing.Queue`.

    A received array has its own memory. It is read-only if it was read-only when it was put, as with pickle protocol 5.
    (Up to Python 3.13 the queues of the standard library use an older protocol, which makes it writable.)

    Parameters
    ----------
    maxsize
        The most items in the queue; 0: no limit.
    maxbytes
        The most bytes of contents in the queue; 0: no limit. A larger item is put when the queue is empty. Received
        items do not count.
    name
        Programs that give the same name share one queue; the first one makes it.
    persist
        Keep the named queue when no process uses it, until `copyless.unlink`. Without it, the queue is freed with its
        last user.
    exist_ok
        If false, FileExistsError is raised when the name is taken.
    init
        A function that is called with the new queue before other processes can find it, by the process that makes it.
    ctx
        Accepted as in the standard library, and not used.

    Raises
    ------
    ValueError
        For limits that are out of range.
    OutOfSharedMemory
        If there is no room.
    FileExistsError
        If the name is taken by an object of another kind, or taken at all with ``exist_ok=False``.

    Notes
    -----
    If the name exists, the limits of the existing queue hold. The name of a queue that was shut down is free for a new
    one.

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
        """`put` without waiting. Raises `queue.Full` if there is no room."""
        self.put(obj, False)

    def get_nowait(self) -> T:
        """`get` without waiting. Raises `queue.Empty` if there is no item."""
        return self.get(False)

    def join_thread(self) -> None:
        """Return at once: there is no feeder thread. As in the standard library, allowed only after `close`."""
        assert self.closed, f"Queue {self!r} not closed"

    def cancel_join_thread(self) -> None:
        """Do nothing: there is no feeder thread, and every item is already in shared memory."""


@pickled_by("joinable_queue")
class JoinableQueue(Queue[T]):
    """JoinableQueue(maxsize=0, *, maxbytes=0, redeliver=False, max_deliveries=None, leases=1024, name=None,
    persist=False, exist_ok=True, init=None, ctx=None)

    A queue that counts the items that were put and not yet acknowledged. Mirrors `multiprocessing.JoinableQueue`.

    Parameters
    ----------
    maxsize, maxbytes, name, persist, exist_ok, init, ctx
        As for `Queue`.
    redeliver
        Deliver each item at least once instead of at most once. If a consumer dies with items that it has not
        acknowledged, the queue delivers them again, byte for byte as they were put. Acknowledge an item with ``with
        q.lease() as item:`` or ``q.task_done(item)``. Each received item has its own memory (copy-on-write if it is
        large).
    max_deliveries
        With `redeliver`: how often an item is delivered at most; None: no limit. An item whose consumers died, gave it
        back (`nack`) or could not unpickle it that many times becomes a dead letter: `join` does not wait for it, and
        `dead_letters` lists it. It counts as unacknowledged until it is discarded.
    leases
        With `redeliver`: how many items may be unacknowledged at a time, in all processes together: 1 to 65,536. Each
        takes 64 bytes of the queue. Beyond that `get` raises `LimitExceededError`, and the item stays in the queue. The
        process that makes the queue sets it. A get and its acknowledgement search through the leases in use.

    Raises
    ------
    ValueError, TypeError
        For limits that are out of range, or `max_deliveries` or `leases` without `redeliver`.
    OutOfSharedMemory, FileExistsError
        As `Queue`.

    Notes
    -----
    `get` raises the error of an item that cannot be unpickled; with `redeliver` the item stays in the queue. Without
    `redeliver`, an item is lost if its consumer dies; `join` then raises `OwnerDiedError` with the count instead of
    waiting for ever.

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
        leases: int | None = None,
        name: str | None = None,
        persist: bool = False,
        exist_ok: bool = True,
        init: Init | None = None,
        ctx: object = None,
    ) -> None:
        flags = _queue.JOINABLE | (_queue.REDELIVER if redeliver else 0)
        if max_deliveries is not None:
            if not redeliver:
                raise ValueError("max_deliveries= needs redeliver=True")
            if not hasattr(max_deliveries, "__index__"):
                raise TypeError(f"max_deliveries must be an integer of 1 or more, not {max_deliveries!r}")
            if not 1 <= max_deliveries <= 0x7FFFFFFF:
                raise ValueError(f"max_deliveries must be 1 or more, at most 2,147,483,647, not {max_deliveries}")
        if leases is not None:
            if not redeliver:
                raise ValueError("leases= needs redeliver=True")
            leases = operator.index(leases)
            if not 1 <= leases <= _LEASES_MOST:
                raise ValueError(f"leases must be 1 to {_LEASES_MOST:,}, not {leases}")
        self._make(
            maxsize,
            maxbytes,
            (name, persist, exist_ok, init),
            flags,
            (leases or _queue.LEASES) if redeliver else 0,
            max_deliveries or 0,
        )

    def _stood(self) -> None:
        self._taken: dict[
            int, list[tuple[Any, int]]
        ] = {}  # by id: objects that this process took, with their sequence numbers
        self._taken_by = os.getpid()
        self._taking = threading.Lock()

    def _be_of_this_process(self) -> None:
        if self._taken_by != os.getpid():  # a forked child has taken nothing, and no thread of it holds the lock
            self._stood()

    def _leased(self, sequence: int, obj: object) -> Any:
        self._be_of_this_process()
        with self._taking:
            self._taken.setdefault(id(obj), []).append((obj, sequence))
        return obj

    def task_done(self, item: object = _NOTHING) -> None:
        """Acknowledge an item: with `redeliver` the given one (the object that `get` returned), otherwise any one.

        Raises
        ------
        ValueError
            If it is called more often than there were items, or for an object that this process did not take.

        Examples
        --------
        >>> import copyless
        >>> q = copyless.JoinableQueue()
        >>> q.put("job"); q.get(); q.task_done(); q.join()
        'job'
        """
        if not self.redelivers:
            if not self._done(0):
                raise ValueError("task_done() called too many times")
            return
        self._done(self._sequence_of(item, "task_done"))

    def _sequence_of(self, item: object, what: str) -> int:
        """The sequence number of an item that this process took. The item is forgotten."""
        self._be_of_this_process()
        with self._taking:
            if item is _NOTHING and self._taken:
                item = next(iter(self._taken.values()))[0][0]  # the one that was taken first
            entries = self._taken.get(id(item), [])
            if not entries:
                raise ValueError(
                    "task_done() called too many times"
                    if item is _NOTHING
                    else f"{what}(item) takes the very object that get() returned in this process, and each one "
                    "only once"
                )
            _, sequence = entries.pop(0)
            if not entries:
                del self._taken[id(item)]
        return sequence

    def nack(self, item: object) -> None:
        """Give an item back to a queue with `redeliver`. It is delivered again, or becomes a dead letter after
        `max_deliveries`.

        Raises
        ------
        ValueError
            For an object that this process did not take or has acknowledged, or if the queue does not redeliver.

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
            raise ValueError("nack() needs a queue made with redeliver=True")
        self._nack(self._sequence_of(item, "nack"))

    def dead_letters(self) -> list[DeadLetter[T]]:
        """The items that were delivered `max_deliveries` times and never acknowledged, oldest first; see `DeadLetter`.

        Copies the bytes of each. The items stay in the queue until they are discarded.
        """
        return sorted(DeadLetter(self, *letter) for letter in self._dead_letters())

    def lease(self, block: bool = True, timeout: float | None = None) -> Lease[T]:
        """``with q.lease() as item:`` takes an item and acknowledges it at the end of the block.

        If the block raises, the item is not acknowledged. With `redeliver`, it is delivered again when this process has
        ended, or at once after `nack(item)`; `task_done(item)` gives it up.

        A process that is forked inside the block does not acknowledge its parent's item: leaving the block there raises
        `WrongProcessError`.

        Parameters
        ----------
        block : bool
            If false, do not wait for an item.
        timeout : float or None
            Seconds to wait for an item; None: without limit.

        Raises
        ------
        queue.Empty, ShutDown, ClosedError
            As `get`.

        Examples
        --------
        >>> import copyless
        >>> q = copyless.JoinableQueue(redeliver=True)
        >>> q.put("job")
        >>> with q.lease() as job:
        ...     job
        'job'
        """
        return Lease(self, block, timeout)

    def join(self, timeout: float | None = None) -> None:
        """Wait until every item has been acknowledged.

        Parameters
        ----------
        timeout : float or None
            Seconds to wait; None: without limit.

        Raises
        ------
        OwnerDiedError
            If all unacknowledged items were taken by processes that have died. The text has their number; they then
            count as done.
        TimeoutError
            After `timeout` seconds.

        Examples
        --------
        >>> import copyless
        >>> copyless.JoinableQueue().join()
        """
        left = self._join(timeout)
        if left > 0:
            raise OwnerDiedError(
                f"{left} items were taken by processes that died before they called task_done(). They are lost "
                "and now count as done (with redeliver=True the queue delivers such items again)"
            )
        if left < 0:
            raise TimeoutError(f"{self._unfinished()} items are not acknowledged after {timeout} seconds")


class DeadLetter(Generic[T]):
    """An item that was delivered too often; see `JoinableQueue.dead_letters`.

    Attributes
    ----------
    sequence : int
        The item's number in the queue, from 0.
    deliveries : int
        How often it was delivered.
    data : bytes
        Its bytes, as they lie in the queue.

    Examples
    --------
    >>> import copyless
    >>> q = copyless.JoinableQueue(redeliver=True, max_deliveries=1)
    >>> q.put("job")
    >>> q.nack(q.get())
    >>> letter, = q.dead_letters()
    >>> letter.load(), letter.discard(), q.dead_letters()
    ('job', True, [])
    """

    sequence: int
    deliveries: int
    data: bytes

    def __init__(self, q: JoinableQueue[T], sequence: int, deliveries: int, data: bytes, ntokens: int) -> None:
        self._queue, self.sequence, self.deliveries, self.data, self._ntokens = q, sequence, deliveries, data, ntokens

    def load(self) -> T:
        """Unpickle the object. Raises what unpickling raises."""
        item: T = self._queue._load_letter(self.data, self._ntokens)
        return item

    def discard(self) -> bool:
        """Remove the item from the queue for good. Returns whether it was still there."""
        return self._queue._discard(self.sequence)

    def __lt__(self, other: DeadLetter[T]) -> bool:
        return self.sequence < other.sequence

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.sequence}: {self.deliveries} deliveries, {len(self.data)} bytes>"


class Lease(Generic[T]):
    """The context manager ``with q.lease() as item:``; see `JoinableQueue.lease`."""

    def __init__(self, q: JoinableQueue[T], block: bool, timeout: float | None) -> None:
        self._queue, self._block, self._timeout = q, block, timeout
        self._pid = os.getpid()

    def _check_process(self) -> None:
        from copyless._one_process import check_process

        check_process(self._pid, self, "the parent acknowledges its item. Take another item in the child")

    def __enter__(self) -> T:
        self._check_process()
        self._item = self._queue.get(self._block, self._timeout)
        return self._item

    def __exit__(self, kind: object, *exc: object) -> None:
        if kind is None:
            self._check_process()
            self._queue.task_done(self._item) if self._queue.redelivers else self._queue.task_done()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._queue!r}, process {self._pid}>"


def _class_of(flags: int) -> type[Any]:
    return JoinableQueue if flags & _JOINABLE else Queue if flags & _PLAIN else SimpleQueue


if not TYPE_CHECKING:  # so that a type checker reports a misspelt name
    __getattr__, __dir__ = standard_names(__name__, "multiprocessing.queues")
