"""Locks, semaphores, conditions, events and barriers between processes. They survive the kill of a process.

Mirrors `multiprocessing.synchronize`: same names, signatures, results and error types. Added:

* ``name=``: programs without a common parent share one object; ``persist=True`` keeps it when no process uses it.
* If a process dies holding a lock, the lock is released. The data that it guards may be half changed, so the next
  process to acquire it gets `OwnerDiedError` once; with ``recover="silent"`` it gets the lock, and `recovered` is true.
* Every object can be pickled. `Process`, pools, queues and pipes send it to any process as a handle.
* `RWLock`, and methods for event loops: ``async with lock``, ``await lock.aacquire()``, ``await event.await_()``.

Operations without contention make no system call. A waiter spins for at most some microseconds, then sleeps in the
kernel. It waits without the GIL and handles signals (Ctrl-C) at least every 50 ms. A waiter learns of the death of the
holder within 200 ms.
"""

from __future__ import annotations

import operator
import threading
import time
from collections.abc import Callable
from threading import BrokenBarrierError

from copyless._core import _blocks, _synchronize
from copyless._core.c_library import (
    KIND_BARRIER,
    KIND_CONDITION,
    KIND_EVENT,
    KIND_LOCK,
    KIND_RLOCK,
    KIND_ROBUST_SEMAPHORE,
    KIND_RWLOCK,
    KIND_SEMAPHORE,
)
from copyless._objects.base import SILENT, Init, Shared, pickled_by
from copyless._objects.selectable import Selectable
from copyless._standard_names import standard_names
from copyless._storage.store import new_object
from copyless._typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from typing import Literal

__all__ = ["Barrier", "BoundedSemaphore", "Condition", "Event", "Lock", "RLock", "RWLock", "Semaphore"]

SEM_VALUE_MAX = 0x7FFFFFFF
_BOUNDED, _OWN_LOCK = 2, 4  # flags of an object's head, beside SILENT
# threads and processes that may wait on one condition; processes that may read under one RWLock
_WAITERS, _WAITERS_MOST = 512, 65536

T = TypeVar("T")


def _room(what: str, n: int) -> int:
    n = operator.index(n)
    if not 1 <= n <= _WAITERS_MOST:
        raise ValueError(f"{what} must be 1 to {_WAITERS_MOST:,}, not {n}")
    return n


def _left(deadline: float | None) -> float | None:
    """Seconds until a time of the monotonic clock."""
    return None if deadline is None else max(0.0, deadline - time.monotonic())


def _flag_of(recover: str | None) -> int:
    if recover not in (None, "raise", "silent"):
        raise ValueError(f"recover must be 'raise' or 'silent', not {recover!r}")
    return SILENT if recover == "silent" else 0


class SemLock(Shared):
    """Base class of locks and semaphores, for `isinstance`. Mirrors `multiprocessing.synchronize.SemLock`."""

    def __init__(self, *args: object, **kwds: object) -> None:
        raise TypeError("SemLock cannot be instantiated: use Lock, RLock, Semaphore or BoundedSemaphore")

    @staticmethod
    def _make_name() -> str:
        from multiprocessing.synchronize import SemLock as Theirs  # imports tempfile

        return str(Theirs._make_name())  # type: ignore[attr-defined]


class _AsyncAcquire(SemLock):
    """`async with` and `aacquire` for classes that have `_try` and `_watch`."""

    if TYPE_CHECKING:  # what the Cython classes have

        def _try(self, slept: bool) -> bool: ...
        def _watch(self) -> _synchronize.Watch: ...
        def release(self) -> None: ...

    async def aacquire(self, timeout: float | None = None) -> bool:
        """`acquire` for an event loop. Waiting needs no thread of its own and can be cancelled.

        The holder is the process, so several tasks exclude each other as processes do. Returns False after `timeout`
        seconds (None: no limit).

        Raises
        ------
        OwnerDiedError
            If the holder has died, as `acquire`.

        Examples
        --------
        >>> import asyncio, copyless
        >>> lock = copyless.Lock()
        >>> async def main():
        ...     async with lock:
        ...         return await lock.aacquire(timeout=0.01)
        >>> asyncio.run(main())
        False
        """
        from copyless._objects import event_loops

        return bool(await event_loops.until(self._key, lambda: self._try(True), self._watch, timeout, False))

    async def __aenter__(self) -> bool:
        return await self.aacquire()

    async def __aexit__(self, *exc: object) -> None:
        self.release()


@pickled_by("lock")
class Lock(_synchronize._Lock, _AsyncAcquire):
    """Lock(*, name=None, persist=False, exist_ok=True, init=None, recover=None, ctx=None)

    A lock that is not recursive. Mirrors `multiprocessing.Lock`: any thread of any process may release it.

    Parameters
    ----------
    name
        Programs that give the same name share one lock; the first one makes it.
    persist
        Keep the named lock when no process uses it, until `copyless.unlink`. Without it, the lock is freed with its
        last user.
    exist_ok
        If false, FileExistsError is raised when the name is taken.
    init
        A function that is called with the new lock before other processes can find it, by the process that makes it.
    recover
        What the next process to acquire the lock gets if its holder dies. ``"raise"`` (default): `OwnerDiedError`,
        once; the lock is then free. ``"silent"``: the lock; `recovered` is true until the next acquire.
    ctx
        Accepted as in the standard library, and not used.

    Raises
    ------
    OutOfSharedMemory
        If there is no room.
    FileExistsError
        If the name is taken by an object of another kind, or taken at all with ``exist_ok=False``.

    Notes
    -----
    Without contention, `acquire` and `release` make no system call (about 60 ns together).

    Examples
    --------
    >>> import copyless
    >>> lock = copyless.Lock()
    >>> with lock:
    ...     print(lock.locked(), lock.acquire(timeout=0.01))
    True False
    """

    _in_tasks = "lock_methods"

    def __init__(
        self,
        *,
        name: str | None = None,
        persist: bool = False,
        exist_ok: bool = True,
        init: Init | None = None,
        recover: Literal["raise", "silent"] | None = None,
        ctx: object = None,
    ) -> None:
        flags = _flag_of(recover)
        self._obtain(
            (name, persist, exist_ok, init),
            lambda: new_object(_synchronize.MUTEX_BYTES, KIND_LOCK, 0, 0, flags),
            (KIND_LOCK,),
            recover,
        )

    def _state(self) -> str:
        pid = self._owner_pid
        return f"held by process {pid}" if pid else "held" if self.locked() else "free"


@pickled_by("rlock")
class RLock(_synchronize._RLock, SemLock):
    """RLock(*, name=None, persist=False, exist_ok=True, init=None, recover=None, ctx=None)

    A recursive lock: the thread that holds it may acquire it again. Mirrors `multiprocessing.RLock`.

    Only the thread that holds it may release it; others get `NotHeldError` (an AssertionError). It has no methods for
    event loops, since tasks of one thread would not exclude each other: use `Lock` there.

    Parameters
    ----------
    name
        Programs that give the same name share one lock; the first one makes it.
    persist
        Keep the named lock when no process uses it, until `copyless.unlink`. Without it, the lock is freed with its
        last user.
    exist_ok
        If false, FileExistsError is raised when the name is taken.
    init
        A function that is called with the new lock before other processes can find it, by the process that makes it.
    recover
        What the next process to acquire the lock gets if its holder dies. ``"raise"`` (default): `OwnerDiedError`,
        once; the lock is then free. ``"silent"``: the lock; `recovered` is true until the next acquire.
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
    >>> lock = copyless.RLock()
    >>> with lock, lock:
    ...     print(lock.acquire())
    True
    >>> lock.release()
    """

    _in_tasks = "lock_methods"

    def __init__(
        self,
        *,
        name: str | None = None,
        persist: bool = False,
        exist_ok: bool = True,
        init: Init | None = None,
        recover: Literal["raise", "silent"] | None = None,
        ctx: object = None,
    ) -> None:
        flags = _flag_of(recover)
        self._obtain(
            (name, persist, exist_ok, init),
            lambda: new_object(_synchronize.MUTEX_BYTES, KIND_RLOCK, 0, 0, flags),
            (KIND_RLOCK,),
            recover,
        )

    _state = Lock._state


@pickled_by("semaphore")
class Semaphore(_synchronize._Semaphore, _AsyncAcquire):
    """Semaphore(value=1, *, robust=False, name=None, persist=False, exist_ok=True, init=None, recover=None, ctx=None)

    A counter of permits. Mirrors `multiprocessing.Semaphore`.

    Parameters
    ----------
    value
        The initial number of permits, 0 to 2**31 - 1 (robust: to 65,536).
    robust
        Record which process has each permit. If a process dies, its permits are returned: the next process to acquire
        one gets `OwnerDiedError` once, or the permit with ``recover="silent"``. A process can release only permits that
        it acquired. Without `robust`, permits have no holder, as in POSIX: any process may release one, and the permits
        of a killed process are lost.
    name
        Programs that give the same name share one semaphore; the first one makes it.
    persist
        Keep the named semaphore when no process uses it, until `copyless.unlink`. Without it, the semaphore is freed
        with its last user.
    exist_ok
        If false, FileExistsError is raised when the name is taken.
    init
        A function that is called with the new semaphore before other processes can find it, by the process that makes
        it.
    recover
        What the next acquirer gets after the death of a holder, if `robust`: ``"raise"`` (default) or ``"silent"``.
    ctx
        Accepted as in the standard library, and not used.

    Raises
    ------
    ValueError
        For a value that is out of range.
    OutOfSharedMemory
        If there is no room.
    FileExistsError
        If the name is taken by an object of another kind, or taken at all with ``exist_ok=False``.

    Examples
    --------
    >>> import copyless
    >>> seats = copyless.Semaphore(2)
    >>> seats.acquire(), seats.acquire(), seats.acquire(block=False), seats.get_value()
    (True, True, False, 0)
    """

    _in_tasks = "lock_methods"

    _bounded = False

    def __init__(
        self,
        value: int = 1,
        *,
        robust: bool = False,
        name: str | None = None,
        persist: bool = False,
        exist_ok: bool = True,
        init: Init | None = None,
        recover: Literal["raise", "silent"] | None = None,
        ctx: object = None,
    ) -> None:
        if not 0 <= value <= (65536 if robust else SEM_VALUE_MAX):
            raise ValueError(f"a semaphore's value must be 0 to {65536 if robust else SEM_VALUE_MAX:,}, not {value}")
        flags = _flag_of(recover) | (_BOUNDED if self._bounded else 0)

        def make() -> _blocks.Block:
            if robust:
                nbytes = _synchronize.ROBUST_BYTES + value * _synchronize.ENTRY_BYTES
                return new_object(nbytes, KIND_ROBUST_SEMAPHORE, value, value, flags)
            most = value if self._bounded else 0
            block = new_object(_synchronize.SEMAPHORE_BYTES, KIND_SEMAPHORE, most, 0, flags)
            begin = _synchronize._Semaphore()
            begin._stand(block)
            begin._begin(value)
            return block

        self._obtain((name, persist, exist_ok, init), make, (KIND_SEMAPHORE, KIND_ROBUST_SEMAPHORE), recover)

    @classmethod
    def _from_block(cls, block: _blocks.Block) -> Any:
        obj = super()._from_block(block)
        return BoundedSemaphore._from_block(block) if obj._flags & _BOUNDED and cls is Semaphore else obj

    def locked(self) -> bool:
        """Whether no permit is free, so that `acquire` would wait. As in Python 3.14.

        Examples
        --------
        >>> import copyless
        >>> seat = copyless.Semaphore(1)
        >>> with seat:
        ...     seat.locked()
        True
        """
        return self.get_value() == 0

    def _state(self) -> str:
        return f"value {self.get_value()}"


@pickled_by("bounded_semaphore")
class BoundedSemaphore(Semaphore):
    """BoundedSemaphore(value=1, *, robust=False, name=None, persist=False, exist_ok=True, init=None, recover=None,
    ctx=None)

    A semaphore that cannot be released beyond its initial value. Mirrors `multiprocessing.BoundedSemaphore`.

    A release too many raises `NotHeldError` (a ValueError). Parameters and other errors are those of `Semaphore`.

    Examples
    --------
    >>> import copyless
    >>> seats = copyless.BoundedSemaphore(1)
    >>> seats.release()
    Traceback (most recent call last):
        ...
    copyless.errors.NotHeldError: semaphore or lock released too many times
    """

    _bounded = True


@pickled_by("event")
class Event(_synchronize._Event, Selectable, Shared):
    """Event(*, name=None, persist=False, exist_ok=True, init=None, ctx=None)

    A flag that processes can wait for. Mirrors `multiprocessing.Event`.

    It is one word of memory without a lock or an owner, so a signal handler may set it, even one that interrupts a
    `wait` for the same event.

    Parameters
    ----------
    name
        Programs that give the same name share one event; the first one makes it.
    persist
        Keep the named event when no process uses it, until `copyless.unlink`. Without it, the event is freed with its
        last user.
    exist_ok
        If false, FileExistsError is raised when the name is taken.
    init
        A function that is called with the new event before other processes can find it, by the process that makes it.
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
    >>> ready = copyless.Event()
    >>> ready.wait(timeout=0.01), ready.set(), ready.wait()
    (False, None, True)
    """

    _in_tasks = "event_methods"

    def __init__(
        self,
        *,
        name: str | None = None,
        persist: bool = False,
        exist_ok: bool = True,
        init: Init | None = None,
        ctx: object = None,
    ) -> None:
        self._obtain(
            (name, persist, exist_ok, init),
            lambda: new_object(_synchronize.EVENT_BYTES, KIND_EVENT, 0, 0, 0),
            (KIND_EVENT,),
        )

    async def await_(self, timeout: float | None = None) -> bool:
        """`wait` for an event loop: the loop runs on while the event is not set. False after `timeout` seconds (None:
        no limit).

        Examples
        --------
        >>> import asyncio, copyless
        >>> ready = copyless.Event()
        >>> ready.set()
        >>> asyncio.run(ready.await_())
        True
        """
        from copyless._objects import event_loops

        before = self._sets()
        return bool(
            await event_loops.until(
                self._key, lambda: self.is_set() or self._sets() != before, self._watch, timeout, False
            )
        )

    def __repr__(self) -> str:
        return f"<{type(self).__qualname__} at {id(self):#x} {'set' if self.is_set() else 'unset'}>"


@pickled_by("condition")
class Condition(_synchronize._Condition, Shared):
    """Condition(lock=None, *, name=None, persist=False, exist_ok=True, init=None, waiters=512, ctx=None)

    A condition variable. Mirrors `multiprocessing.Condition`.

    Parameters
    ----------
    lock
        A copyless `Lock` or `RLock`; default: an `RLock` of its own. Programs that share a named condition over a lock
        must each give the same lock.
    name
        Programs that give the same name share one condition; the first one makes it.
    persist
        Keep the named condition when no process uses it, until `copyless.unlink`. Without it, the condition is freed
        with its last user.
    exist_ok
        If false, FileExistsError is raised when the name is taken.
    init
        A function that is called with the new condition before other processes can find it, by the process that makes
        it.
    waiters
        How many threads and processes may wait at a time, 1 to 65,536; each takes 8 bytes. If the name exists, the
        number of the existing condition holds.
    ctx
        Accepted as in the standard library, and not used.

    Raises
    ------
    TypeError
        For a lock that is not from copyless.
    ValueError
        For `waiters` out of range.
    LimitExceededError
        From `wait`, if `waiters` threads and processes already wait.
    OutOfSharedMemory, FileExistsError
        As `Lock`.

    Notes
    -----
    A killed waiter never consumes a notification. `notify` never waits for a waiter: it stores each notification in
    shared memory and wakes the waiters that sleep. There are no methods for event loops.

    Examples
    --------
    >>> import copyless
    >>> changed = copyless.Condition()
    >>> with changed:
    ...     changed.wait(timeout=0.01)
    False
    """

    _lock: Any = None

    def __init__(
        self,
        lock: Lock | RLock | None = None,
        *,
        name: str | None = None,
        persist: bool = False,
        exist_ok: bool = True,
        init: Init | None = None,
        waiters: int = _WAITERS,
        ctx: object = None,
    ) -> None:
        own, room = lock is None, _room("waiters", waiters)
        if not own and not isinstance(lock, (Lock, RLock)):
            raise TypeError(
                f"the lock of a Condition must be a copyless Lock or RLock, which processes can share, not {lock!r}"
            )

        def make() -> _blocks.Block:
            entries = _synchronize.CONDITION_BYTES + room * _synchronize.ENTRY_BYTES
            return new_object(
                entries + (_synchronize.MUTEX_BYTES if own else 0), KIND_CONDITION, 0, room, _OWN_LOCK if own else 0
            )

        if not own:
            self._lock = lock  # init= may use it
        self._obtain((name, persist, exist_ok, init), make, (KIND_CONDITION,))
        if not own:
            self._lock = lock

    def _stood(self) -> None:
        if self._flags & _OWN_LOCK:
            self._lock = _Inside.__new__(_Inside)
            self._lock._stand_in(self)

    def _has_more(self) -> bool:
        return not self._flags & _OWN_LOCK or len(self.__dict__) > 1

    def _attributes(self) -> dict[str, Any]:
        attributes = super()._attributes()
        if self._flags & _OWN_LOCK:
            attributes.pop("_lock", None)  # which lies in its own block
        return attributes

    def _held(self, what: str) -> Any:
        lock = self._lock
        if lock is None:
            raise TypeError(
                "this Condition was opened by its name or handle and has no lock: send the condition itself, or "
                "make it with Condition(lock, name=...)"
            )
        assert lock._is_mine(), f"must acquire() condition before using {what}"
        return lock

    def acquire(self, block: bool = True, timeout: float | None = None) -> bool:
        """Acquire the lock of the condition."""
        return bool(self._lock.acquire(block, timeout))

    def release(self) -> None:
        """Release the lock of the condition."""
        self._lock.release()

    def locked(self) -> bool:
        """Whether any thread of any process holds the lock of the condition."""
        return bool(self._lock.locked())

    def wait(self, timeout: float | None = None) -> bool:
        """Release the lock, wait for a notification, and acquire the lock again. False after `timeout` seconds (None:
        no limit).

        Raises
        ------
        AssertionError
            If the calling thread does not hold the lock.
        LimitExceededError
            If the condition has its maximum of waiters already.
        """
        return self._wait(self._held("wait()"), timeout)

    def wait_for(self, predicate: Callable[[], T], timeout: float | None = None) -> T:
        """Wait until `predicate()` is true. Returns the last value of the predicate; after `timeout` seconds it may
        be false.
        """
        result = predicate()
        deadline = None if timeout is None else time.monotonic() + timeout
        while not result:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                break
            self.wait(left)
            result = predicate()
        return result

    def notify(self, n: int = 1) -> None:
        """Wake the `n` waiters that have waited longest. The calling thread must hold the lock."""
        self._held("notify()")
        self._notify(n)

    def notify_all(self) -> None:
        """Wake all waiters. The calling thread must hold the lock."""
        self._held("notify()")
        self._notify(0xFFFFFFFF)

    def _state(self) -> str:
        return f"over {self._lock!r}"


class _Inside(_synchronize._RLock, Shared):
    """The lock in the block of a condition."""

    _in_tasks = "unrung_lock_methods"

    _state = Lock._state

    def __reduce__(self) -> Any:
        raise TypeError("this lock is part of a Condition: send the condition")


@pickled_by("barrier")
class Barrier(_synchronize._Barrier, Shared):
    """Barrier(parties, action=None, timeout=None, *, name=None, persist=False, exist_ok=True, init=None, ctx=None)

    A barrier: `parties` threads or processes wait until all of them have arrived. Mirrors `multiprocessing.Barrier`.

    Parameters
    ----------
    parties
        How many must arrive, 1 to 65,536.
    action
        A function that the last one to arrive calls before the others go on.
    timeout
        Seconds after which a `wait` without its own timeout breaks the barrier; None: no limit.
    name
        Programs that give the same name share one barrier; the first one makes it.
    persist
        Keep the named barrier when no process uses it, until `copyless.unlink`. Without it, the barrier is freed with
        its last user.
    exist_ok
        If false, FileExistsError is raised when the name is taken.
    init
        A function that is called with the new barrier before other processes can find it, by the process that makes it.
    ctx
        Accepted as in the standard library, and not used.

    Raises
    ------
    ValueError
        For `parties` out of range, or other than those of the existing barrier of this name.
    OutOfSharedMemory, FileExistsError
        As `Lock`.

    Notes
    -----
    If a party is killed after it has arrived, the barrier breaks: all others get `threading.BrokenBarrierError`. A
    party that never arrives is noticed only by a timeout.

    Examples
    --------
    >>> import copyless
    >>> alone = copyless.Barrier(1, action=lambda: print("all are here"))
    >>> alone.wait()
    all are here
    0
    """

    _action: Callable[[], object] | None = None
    _timeout: float | None = None

    def __init__(
        self,
        parties: int,
        action: Callable[[], object] | None = None,
        timeout: float | None = None,
        *,
        name: str | None = None,
        persist: bool = False,
        exist_ok: bool = True,
        init: Init | None = None,
        ctx: object = None,
    ) -> None:
        if not 1 <= parties <= 65536:
            raise ValueError(f"parties must be 1 to 65,536, not {parties}")
        nbytes = _synchronize.BARRIER_BYTES + parties * _synchronize.ENTRY_BYTES
        self._obtain(
            (name, persist, exist_ok, init),
            lambda: new_object(nbytes, KIND_BARRIER, parties, parties, 0),
            (KIND_BARRIER,),
        )
        if self.parties != parties:
            raise ValueError(f"the barrier {name!r} has {self.parties} parties, not {parties}")
        if action is not None:
            self._action = action
        if timeout is not None:
            self._timeout = timeout

    def wait(self, timeout: float | None = None) -> int:
        """Arrive, and wait until all parties have arrived. Returns the order of arrival, 0 to parties - 1.

        Raises
        ------
        threading.BrokenBarrierError
            If the barrier is broken or breaks: by the timeout of any wait, by `abort` or `reset`, by an exception in
            the action, or by the death of a party that had arrived.
        """
        timeout = self._timeout if timeout is None else timeout
        deadline = None if timeout is None else time.monotonic() + timeout
        arrived = self._arrive(timeout)
        if arrived is False:
            self._break_off()
        if not isinstance(arrived, tuple):
            raise BrokenBarrierError
        entry, index = arrived
        if index == self.parties - 1:
            try:
                if self._action is not None:
                    self._action()
            except BaseException:
                self._give_up(entry)
                raise
            if not self._release(entry, _left(deadline)):
                self._give_up(entry)
                raise BrokenBarrierError
        if not self._wait(entry, _left(deadline)):
            raise BrokenBarrierError
        return index

    def reset(self) -> None:
        """Make the barrier empty and usable again. Threads and processes that wait get BrokenBarrierError."""
        self._break(True)

    def abort(self) -> None:
        """Break the barrier: everyone that waits for it, now or later, gets BrokenBarrierError."""
        self._break(False)

    def _state(self) -> str:
        return "broken" if self.broken else f"{self.n_waiting} of {self.parties} waiting"


@pickled_by("rwlock")
class RWLock(_synchronize._RWLock, Shared):
    """RWLock(*, name=None, persist=False, exist_ok=True, init=None, recover=None, readers=512, ctx=None)

    A lock for many readers or one writer. A waiting writer keeps new readers out, so that readers cannot starve it.

    Parameters
    ----------
    name
        Programs that give the same name share one lock; the first one makes it.
    persist
        Keep the named lock when no process uses it, until `copyless.unlink`. Without it, the lock is freed with its
        last user.
    exist_ok
        If false, FileExistsError is raised when the name is taken.
    init
        A function that is called with the new lock before other processes can find it, by the process that makes it.
    recover
        What the next process to acquire the lock gets if its holder dies. ``"raise"`` (default): `OwnerDiedError`,
        once; the lock is then free. ``"silent"``: the lock; `recovered` is true until the next acquire.
    readers
        How many processes may read at a time, 1 to 65,536; each takes 8 bytes.
    ctx
        Accepted as in the standard library, and not used.

    Raises
    ------
    RuntimeError
        When a thread that holds the lock asks for it in a way that would wait for itself: for writing while it reads,
        or twice for writing. A thread that reads may read again.
    OwnerDiedError
        When the lock is acquired after a writer has died, once; see `recover`. A reader that has died no longer counts.
    LimitExceededError
        When one process more than `readers` reads.
    OutOfSharedMemory, FileExistsError
        As `Lock`.

    Examples
    --------
    >>> import copyless
    >>> lock = copyless.RWLock()
    >>> with lock.read(), lock.read():
    ...     with lock.write():
    ...         pass
    Traceback (most recent call last):
        ...
    RuntimeError: this thread holds this RWLock for reading, and a reader cannot become the writer: leave read() first,
    then read the data again under write()
    """

    _in_tasks = "rwlock_methods"

    def __init__(
        self,
        *,
        name: str | None = None,
        persist: bool = False,
        exist_ok: bool = True,
        init: Init | None = None,
        recover: Literal["raise", "silent"] | None = None,
        readers: int = _WAITERS,
        ctx: object = None,
    ) -> None:
        room = _room("readers", readers)
        nbytes = _synchronize.RWLOCK_BYTES + room * _synchronize.ENTRY_BYTES
        flags = _flag_of(recover)
        self._obtain(
            (name, persist, exist_ok, init),
            lambda: new_object(nbytes, KIND_RWLOCK, 0, room, flags),
            (KIND_RWLOCK,),
            recover,
        )

    def acquire_read(self, timeout: float | None = None) -> bool:
        """Acquire the lock for reading. False after `timeout` seconds (None: no limit). `read()` is its context
        manager.
        """
        return self._acquire(False, timeout)

    def acquire_write(self, timeout: float | None = None) -> bool:
        """Acquire the lock for writing. False after `timeout` seconds (None: no limit). `write()` is its context
        manager.
        """
        return self._acquire(True, timeout)

    def release_read(self) -> None:
        """Release the lock for reading. ValueError if this thread does not hold it for reading."""
        self._let(threading.get_ident(), False)

    def release_write(self) -> None:
        """Release the lock for writing. ValueError if this thread does not hold it for writing."""
        self._let(threading.get_ident(), True)

    def read(self, timeout: float | None = None) -> _Side:
        """Hold the lock for reading: ``with lock.read():`` or ``async with``. TimeoutError after `timeout` seconds."""
        return _Side(self, False, timeout)

    def write(self, timeout: float | None = None) -> _Side:
        """Hold the lock for writing: ``with lock.write():`` or ``async with``. TimeoutError after `timeout` seconds."""
        return _Side(self, True, timeout)

    def _state(self) -> str:
        pid, readers = self._users
        return f"written by process {pid}" if pid else f"read by {readers} processes" if readers else "free"


class _Side(_synchronize._Side):
    """One use of an RWLock, for reading or for writing."""

    async def __aenter__(self) -> None:
        from asyncio import current_task

        from copyless._objects import event_loops

        lock = self._lock
        key, mine = lock._begin(current_task(), self._writes)
        try:
            got = mine[0] or await event_loops.until(
                lock._key, lambda: lock._get(self._writes, -1), lock._watch, self._timeout, False
            )
            if not got:
                raise self._failed()
            mine[self._writes] += 1
        finally:
            lock._end(key, mine)
            if self._writes and not mine[1]:
                lock._forget_writing()

    async def __aexit__(self, *exc: object) -> None:
        from asyncio import current_task

        self._lock._let(current_task(), self._writes)


if not TYPE_CHECKING:  # so that a type checker reports a misspelt name
    __getattr__, __dir__ = standard_names(__name__, "multiprocessing.synchronize")
