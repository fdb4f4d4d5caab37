"""Locks, semaphores, conditions, events and barriers between processes, that survive a kill.

Mirrors `multiprocessing.synchronize`: same names, signatures, results and error types. What is added:

* ``name=``: programs that share no parent meet at one object; ``persist=True`` keeps it when nobody uses it.
* The death of a process frees what it held. The next acquirer of a lock gets `OwnerDiedError` once, since what the lock
  guards may be half changed; with ``recover="silent"`` it simply gets the lock, and `recovered` says so.
* Every object may be pickled: it goes to any process by its handle, through `Process`, pools, queues and pipes.
* `RWLock`, and ``async`` forms: ``async with lock``, ``await lock.aacquire()``, ``await event.await_()``.

Uncontended operations make no system call. Waiting spins for some microseconds at most, then sleeps in the kernel, always
without the GIL and serving signals (Ctrl-C) at least every 50 ms; who waits for the dead learns of it within 200 ms.
"""

from __future__ import annotations

import asyncio
import operator
import threading
import time
from collections.abc import Callable
from multiprocessing import synchronize as _stdlib
from threading import BrokenBarrierError
from typing import TYPE_CHECKING, Any, TypeVar

from copyless import _loaders, aio, waiting
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
from copyless._standard_names import standard_names
from copyless.objects import SILENT, Init, Shared, pickled_by

__all__ = ["Barrier", "BoundedSemaphore", "Condition", "Event", "Lock", "RLock", "RWLock", "Semaphore"]

SEM_VALUE_MAX = 0x7FFFFFFF
_BOUNDED, _OWN_LOCK = 2, 4  # flags of an object's head, beside SILENT
_WAITERS, _WAITERS_MOST = 512, 65536  # threads and processes that may wait on one condition, or read under one RWLock

T = TypeVar("T")


def _room(what: str, n: int) -> int:
    n = operator.index(n)
    if not 1 <= n <= _WAITERS_MOST:
        raise ValueError(f"{what} is 1 to {_WAITERS_MOST:,}, not {n}")
    return n


def _flag_of(recover: str | None) -> int:
    if recover not in (None, "raise", "silent"):
        raise ValueError(f"recover is 'raise' or 'silent', not {recover!r}")
    return SILENT if recover == "silent" else 0


class SemLock(Shared):
    """What locks and semaphores are, and other objects are not. Mirrors `multiprocessing.synchronize.SemLock`, for `isinstance`."""

    def __init__(self, *args: Any, **kwds: Any) -> None:
        raise TypeError("a SemLock is not made: make a Lock, RLock, Semaphore or BoundedSemaphore")

    @staticmethod
    def _make_name() -> str:
        return str(_stdlib.SemLock._make_name())  # type: ignore[attr-defined]


class _AsyncAcquire(SemLock):
    """`async with` and `aacquire` for what has `_try` and `_watch`."""

    async def aacquire(self, timeout: float | None = None) -> bool:
        """As `acquire`, in an event loop: waiting needs no thread of its own, and may be cancelled.

        Ownership is by process, so several tasks exclude each other as processes do.
        """
        return bool(await aio.until(self._key, lambda: self._try(True), self._watch, timeout, False))  # type: ignore[attr-defined]

    async def __aenter__(self) -> bool:
        return await self.aacquire()

    async def __aexit__(self, *exc: object) -> None:
        self.release()  # type: ignore[attr-defined]


@pickled_by(_loaders.lock)
class Lock(_synchronize._Lock, _AsyncAcquire):
    """Lock(*, name=None, persist=False, exist_ok=True, init=None, recover=None, ctx=None)

    A non-recursive lock. Mirrors `multiprocessing.Lock`; any thread of any process may release it.

    Parameters
    ----------
    name
        Unrelated programs that give the same name share one lock; who comes first makes it.
    persist
        Keep a named lock when nobody uses it, until `copyless.unlink`. Without it the lock goes with its last user.
    exist_ok
        False: FileExistsError when the name is taken.
    init
        A function that is called with the new lock before anybody can find it, by the one process that makes it; see `copyless.zeros`.
    recover
        What its next acquirer gets when the process that holds it dies: ``"raise"`` (the default) `OwnerDiedError`, once,
        and the lock is free; ``"silent"`` the lock, and `recovered` is true until the next acquire.
    ctx
        Accepted as the standard library does, and not needed.

    Uncontended, `acquire` and `release` make no system call (some 60 ns together).

    Examples
    --------
    >>> import copyless
    >>> lock = copyless.Lock()
    >>> with lock:
    ...     print(lock.locked(), lock.acquire(timeout=0.01))
    True False
    """

    def __init__(
        self,
        *,
        name: str | None = None,
        persist: bool = False,
        exist_ok: bool = True,
        init: Init | None = None,
        recover: str | None = None,
        ctx: object = None,
    ) -> None:
        flags = _flag_of(recover)
        self._obtain(
            (name, persist, exist_ok, init),
            lambda: _blocks.new_object(_synchronize.MUTEX_BYTES, KIND_LOCK, 0, 0, flags),
            (KIND_LOCK,),
            recover,
        )

    def _state(self) -> str:
        pid = self._owner_pid
        return f"held by process {pid}" if pid else "held" if self.locked() else "free"


@pickled_by(_loaders.rlock)
class RLock(_synchronize._RLock, SemLock):
    """RLock(*, name=None, persist=False, exist_ok=True, init=None, recover=None, ctx=None)

    A recursive lock: the thread that holds it may acquire it again, and only that thread may release it (NotHeldError, an AssertionError
    otherwise). Mirrors `multiprocessing.RLock`; the parameters are those of `Lock`. It has no asyncio form, since tasks
    of one thread would not exclude each other: use `Lock`.

    Examples
    --------
    >>> import copyless
    >>> lock = copyless.RLock()
    >>> with lock, lock:
    ...     print(lock.acquire())
    True
    >>> lock.release()
    """

    def __init__(
        self,
        *,
        name: str | None = None,
        persist: bool = False,
        exist_ok: bool = True,
        init: Init | None = None,
        recover: str | None = None,
        ctx: object = None,
    ) -> None:
        flags = _flag_of(recover)
        self._obtain(
            (name, persist, exist_ok, init),
            lambda: _blocks.new_object(_synchronize.MUTEX_BYTES, KIND_RLOCK, 0, 0, flags),
            (KIND_RLOCK,),
            recover,
        )

    _state = Lock._state


@pickled_by(_loaders.semaphore)
class Semaphore(_synchronize._Semaphore, _AsyncAcquire):
    """Semaphore(value=1, *, robust=False, name=None, persist=False, exist_ok=True, init=None, recover=None, ctx=None)

    A counter of permits. Mirrors `multiprocessing.Semaphore`.

    Parameters
    ----------
    value
        Permits at the beginning, 0 to 2**31 - 1.
    robust
        Attribute each permit to the process that took it: the death of a process gives its permits back (the next
        acquirer of one gets `OwnerDiedError` once, or with ``recover="silent"`` simply the permit), and a process can
        release only what it acquired. At most 65,536 permits. Without it a permit belongs to nobody, as in POSIX:
        anyone may release, and what a killed process had taken is gone.
    name, persist, exist_ok, init, recover, ctx
        As for `Lock`.

    Examples
    --------
    >>> import copyless
    >>> seats = copyless.Semaphore(2)
    >>> seats.acquire(), seats.acquire(), seats.acquire(block=False), seats.get_value()
    (True, True, False, 0)
    """

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
        recover: str | None = None,
        ctx: object = None,
    ) -> None:
        if not 0 <= value <= (65536 if robust else SEM_VALUE_MAX):
            raise ValueError(f"a semaphore's value is 0 to {65536 if robust else SEM_VALUE_MAX:,}, not {value}")
        flags = _flag_of(recover) | (_BOUNDED if self._bounded else 0)

        def make() -> _blocks.Block:
            if robust:
                nbytes = _synchronize.ROBUST_BYTES + value * _synchronize.ENTRY_BYTES
                return _blocks.new_object(nbytes, KIND_ROBUST_SEMAPHORE, value, value, flags)
            most = value if self._bounded else 0
            block = _blocks.new_object(_synchronize.SEMAPHORE_BYTES, KIND_SEMAPHORE, most, 0, flags)
            begin = _synchronize._Semaphore()
            begin._stand(block)
            begin._begin(value)
            return block

        self._obtain((name, persist, exist_ok, init), make, (KIND_SEMAPHORE, KIND_ROBUST_SEMAPHORE), recover)

    @classmethod
    def _from_block(cls, block: _blocks.Block) -> Any:
        obj = super()._from_block(block)
        return BoundedSemaphore._from_block(block) if obj._flags & _BOUNDED and cls is Semaphore else obj

    def _state(self) -> str:
        return f"value {self.get_value()}"


@pickled_by(_loaders.bounded_semaphore)
class BoundedSemaphore(Semaphore):
    """BoundedSemaphore(value=1, *, robust=False, name=None, persist=False, exist_ok=True, init=None, recover=None, ctx=None)

    A semaphore that refuses (NotHeldError, a ValueError) to be released beyond its first value. Mirrors
    `multiprocessing.BoundedSemaphore`; the parameters are those of `Semaphore`.

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


@pickled_by(_loaders.event)
class Event(_synchronize._Event, waiting.Selectable, Shared):
    """Event(*, name=None, persist=False, exist_ok=True, init=None, ctx=None)

    A flag that processes wait for. Mirrors `multiprocessing.Event`. It is one word and has no lock and no owner, so it may
    be set from a signal handler, also one that interrupts a `wait` on it.

    Examples
    --------
    >>> import copyless
    >>> ready = copyless.Event()
    >>> ready.wait(timeout=0.01), ready.set(), ready.wait()
    (False, None, True)
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
        self._obtain(
            (name, persist, exist_ok, init),
            lambda: _blocks.new_object(_synchronize.EVENT_BYTES, KIND_EVENT, 0, 0, 0),
            (KIND_EVENT,),
        )

    async def await_(self, timeout: float | None = None) -> bool:
        """As `wait`, in an event loop."""
        before = self._sets()
        return bool(
            await aio.until(self._key, lambda: self.is_set() or self._sets() != before, self._watch, timeout, False)
        )

    def __repr__(self) -> str:
        return f"<{type(self).__qualname__} at {id(self):#x} {'set' if self.is_set() else 'unset'}>"


@pickled_by(_loaders.condition)
class Condition(_synchronize._Condition, Shared):
    """Condition(lock=None, *, name=None, persist=False, exist_ok=True, init=None, waiters=512, ctx=None)

    A condition variable. Mirrors `multiprocessing.Condition`.

    Parameters
    ----------
    lock
        A `Lock` or `RLock` of this package; without one it has an `RLock` of its own.
    name, persist, exist_ok, init, ctx
        As for `Lock`. Programs that share a named condition over a lock of theirs each give that lock.
    waiters
        How many threads and processes may wait at once, 1 to 65,536: 8 bytes each. One more gets `LimitExceededError`. Who finds
        the name taken gets that condition, however many may wait on it.

    A waiter that was killed never absorbs a notice, and `notify` waits for nobody: it stores each notice in shared memory
    and wakes who sleeps. There is no asyncio form.

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
        lock: Any = None,
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
                f"the lock of a Condition is a Lock or RLock of copyless, which processes share, not {lock!r}"
            )

        def make() -> _blocks.Block:
            entries = _synchronize.CONDITION_BYTES + room * _synchronize.ENTRY_BYTES
            return _blocks.new_object(
                entries + (_synchronize.MUTEX_BYTES if own else 0), KIND_CONDITION, 0, room, _OWN_LOCK if own else 0
            )

        if not own:
            self._lock = lock  # init may want it
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
                "this condition came without its lock: pickle the condition, or give the lock with its name"
            )
        assert lock._is_mine(), f"must acquire() condition before using {what}"
        return lock

    def acquire(self, block: bool = True, timeout: float | None = None) -> bool:
        """Acquire the condition's lock."""
        return bool(self._lock.acquire(block, timeout))

    def release(self) -> None:
        """Release the condition's lock."""
        self._lock.release()

    def wait(self, timeout: float | None = None) -> bool:
        """Let the lock go, wait for a notice, take the lock again; False when `timeout` seconds pass without one."""
        return self._wait(self._held("wait()"), timeout)

    def wait_for(self, predicate: Callable[[], T], timeout: float | None = None) -> T:
        """Wait until `predicate()` is true; its last value."""
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
        """Wake the `n` waiters that have waited longest."""
        self._held("notify()")
        self._notify(n)

    def notify_all(self) -> None:
        """Wake all waiters."""
        self._held("notify()")
        self._notify(0xFFFFFFFF)

    def _state(self) -> str:
        return f"over {self._lock!r}"


class _Inside(_synchronize._RLock, Shared):
    """The lock that lies in a condition's own block."""

    _state = Lock._state

    def __reduce__(self) -> Any:
        raise TypeError("this lock is a part of its condition: send the condition")


@pickled_by(_loaders.barrier)
class Barrier(_synchronize._Barrier, Shared):
    """Barrier(parties, action=None, timeout=None, *, name=None, persist=False, exist_ok=True, init=None, ctx=None)

    A meeting point of `parties` threads or processes. Mirrors `multiprocessing.Barrier`.

    Parameters
    ----------
    parties
        How many must arrive before all go on, 1 to 65,536.
    action
        Called by the last to arrive, before anybody goes on.
    timeout
        Seconds after which a wait breaks the barrier, unless `wait` is told otherwise.
    name, persist, exist_ok, init, ctx
        As for `Lock`.

    A party that is killed after it arrived breaks the barrier (`threading.BrokenBarrierError` for all others); one that
    never arrives is missed only by timeout.

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
            raise ValueError(f"a barrier has 1 to 65,536 parties, not {parties}")
        nbytes = _synchronize.BARRIER_BYTES + parties * _synchronize.ENTRY_BYTES
        self._obtain(
            (name, persist, exist_ok, init),
            lambda: _blocks.new_object(nbytes, KIND_BARRIER, parties, parties, 0),
            (KIND_BARRIER,),
        )
        if self.parties != parties:
            raise ValueError(f"the barrier {name!r} has {self.parties} parties, not {parties}")
        if action is not None:
            self._action = action
        if timeout is not None:
            self._timeout = timeout

    def wait(self, timeout: float | None = None) -> int:
        """Arrive, and wait until all have: which of the arrivals one was, 0 to parties - 1.

        Raises
        ------
        threading.BrokenBarrierError
            When the barrier is or becomes broken: by a timeout (of anybody's wait), `abort`, `reset`, an exception in the
            action, or the death of a party that had arrived.
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
                self._break(False)
                self._wait(entry, 0)
                raise
            self._release(entry)
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        if not self._wait(entry, left):
            raise BrokenBarrierError
        return index

    def reset(self) -> None:
        """Make it whole and empty again; who waits gets BrokenBarrierError."""
        self._break(True)

    def abort(self) -> None:
        """Break it: all who wait, and all who come, get BrokenBarrierError."""
        self._break(False)

    def _state(self) -> str:
        return "broken" if self.broken else f"{self.n_waiting} of {self.parties} waiting"


@pickled_by(_loaders.rwlock)
class RWLock(_synchronize._RWLock, Shared):
    """RWLock(*, name=None, persist=False, exist_ok=True, init=None, recover=None, readers=512, ctx=None)

    Many readers or one writer. A waiting writer keeps new readers out, so readers cannot starve it. A reader that dies no
    longer counts; when a writer dies, the next acquirer gets `OwnerDiedError` once (see `Lock` for `recover`).

    At most `readers` processes, 1 to 65,536, read at once: 8 bytes each. One more gets `LimitExceededError`.

    A thread that reads may read again, but not write: that would wait for itself, so RuntimeError says so at once.

    Examples
    --------
    >>> import copyless
    >>> lock = copyless.RWLock()
    >>> with lock.read(), lock.read():
    ...     with lock.write():
    ...         pass
    Traceback (most recent call last):
        ...
    RuntimeError: this thread reads under this RWLock: a reader cannot become the writer. Leave read() first, then look again at what was read
    """

    def __init__(
        self,
        *,
        name: str | None = None,
        persist: bool = False,
        exist_ok: bool = True,
        init: Init | None = None,
        recover: str | None = None,
        readers: int = _WAITERS,
        ctx: object = None,
    ) -> None:
        room = _room("readers", readers)
        nbytes = _synchronize.RWLOCK_BYTES + room * _synchronize.ENTRY_BYTES
        flags = _flag_of(recover)
        self._obtain(
            (name, persist, exist_ok, init),
            lambda: _blocks.new_object(nbytes, KIND_RWLOCK, 0, room, flags),
            (KIND_RWLOCK,),
            recover,
        )

    def acquire_read(self, timeout: float | None = None) -> bool:
        """Begin to read; False when `timeout` seconds pass. `read()` does this as a context manager."""
        return self._acquire(False, timeout)

    def acquire_write(self, timeout: float | None = None) -> bool:
        """Begin to write; False when `timeout` seconds pass. `write()` does this as a context manager."""
        return self._acquire(True, timeout)

    def release_read(self) -> None:
        """End reading; ValueError when this thread does not read."""
        self._let(threading.get_ident(), False)

    def release_write(self) -> None:
        """End writing; ValueError when this thread does not write."""
        self._let(threading.get_ident(), True)

    def read(self, timeout: float | None = None) -> _Side:
        """``with lock.read():`` or ``async with``; TimeoutError when `timeout` seconds pass first."""
        return _Side(self, False, timeout)

    def write(self, timeout: float | None = None) -> _Side:
        """``with lock.write():`` or ``async with``; TimeoutError when `timeout` seconds pass first."""
        return _Side(self, True, timeout)

    def _state(self) -> str:
        pid, readers = self._users
        return f"written by process {pid}" if pid else f"read by {readers} processes" if readers else "free"


class _Side(_synchronize._Side):
    """One use of an RWLock, for reading or for writing."""

    async def __aenter__(self) -> None:
        lock = self._lock
        key, mine = lock._begin(asyncio.current_task(), self._writes)
        try:
            got = mine[0] or await aio.until(
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
        self._lock._let(asyncio.current_task(), self._writes)


if not TYPE_CHECKING:  # a checker shall see a misspelt name
    __getattr__, __dir__ = standard_names(__name__, "multiprocessing.synchronize")
