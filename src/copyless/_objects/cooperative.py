"""Waiting under gevent and eventlet, whose tasks share one thread: a wait in C would stop all of them.

Once a program has replaced `select` (``monkey.patch_all()``, as gunicorn and Celery do), the waits of queues, locks,
semaphores, events and rings first try without waiting, and then wait with `copyless.wait`: on an eventfd, with the
program's own `select`. Before that nothing here is called: these methods replace those of C when an object is made or
received and `select` was replaced. Threads of copyless, which the program has turned into tasks too, wait in the same
way. A thread that must sleep in C is started as a thread of the system by `start_thread`.

Where no bell rings (`RWLock`, `join` of a queue, a full queue or ring), they poll (`_PAUSES`). `Condition` and
`Barrier` sleep in C; see docs/design/waiting.md.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from queue import Empty, Full

from copyless import waiting
from copyless._core._blocks import Late
from copyless._objects._queue import NOTHING_HERE
from copyless._typing import TYPE_CHECKING, Any, TypeVar
from copyless.errors import ClosedError, EndOfQueueError, OutOfSharedMemory

if TYPE_CHECKING:
    from typing import TypeAlias

    from copyless._transfer._codec import Packed
    from copyless._typing import AnyQueue, Event, Lock, RingBuffer, RLock, RWLock, Semaphore
    from copyless.waiting import Part

    AnyLock: TypeAlias = Lock | RLock | Semaphore

__all__ = ["cover", "cover_all"]

R = TypeVar("R")

_PAUSES = 0.001, 0.02  # the shortest and longest seconds between two polls of an object without a bell
_SLICE = 0.2  # seconds between two checks for ends that ring no bell
_DEATH = 0.3  # seconds in which a wait in C notices a death
_DESERTED = 10  # such checks of a queue without producers, before a waiter gets EndOfQueueError

Methods = Callable[
    [type], dict[str, Callable[..., object]]
]  # for a class: its methods that wait cooperatively, by name


def _in_c(kind: type) -> Any:
    """The Cython class from which a class gets its methods."""
    return next(
        each for each in kind.__mro__ if not each.__flags__ & 1 << 9 and each is not object
    )  # it was not made by a class statement


# ---- the waits


class _Deadline:
    def __init__(self, timeout: float | None) -> None:
        if timeout is not None and timeout != timeout:
            raise ValueError("timeout must be a number of seconds, not NaN")
        self.at = None if timeout is None else time.monotonic() + timeout
        self._pause = _PAUSES[0]

    def left(self, most: float | None = None) -> float | None:
        if self.at is None:
            return most
        left = max(0.0, self.at - time.monotonic())
        return left if most is None else min(left, most)

    @property
    def over(self) -> bool:
        return self.at is not None and time.monotonic() >= self.at

    def pause(self) -> None:
        """Let the other tasks run for a moment."""
        time.sleep(self._pause if self.at is None else max(0.0, min(self._pause, self.at - time.monotonic())))
        self._pause = min(2 * self._pause, _PAUSES[1])


def _in_time(attempt: Callable[[], object], deadline: _Deadline, over: type[Exception]) -> Any:
    """The result of an attempt that is not False. Repeated while it is False or another process is inside; `over`:
    stop.
    """
    while True:
        with contextlib.suppress(Late):
            result = attempt()
            if result is not False:
                return result
        if deadline.over:
            raise over
        deadline.pause()


def _pack(queue: AnyQueue, obj: object, deadline: _Deadline) -> Packed:
    packed: Packed = _in_time(lambda: queue._try_pack(obj), deadline, Full)
    return packed


def _put(queue: AnyQueue, packed: Packed, deadline: _Deadline) -> None:
    _in_time(lambda: queue._try_put(packed), deadline, Full)


def queue_methods(kind: type) -> dict[str, Callable[..., object]]:
    base = _in_c(kind)

    def first(self: AnyQueue) -> Any:
        item = base._try_get(self)
        if item is NOTHING_HERE:
            raise Empty
        return item

    def taken(self: AnyQueue, take: Callable[[], R], timeout: float | None, deserted: int = 2) -> R:
        """The result of `take`, as soon as it succeeds. `deserted`: the state in which no producer is left."""
        deadline, slices = _Deadline(timeout), 0
        while True:
            try:
                return take()
            except Empty:
                if deadline.over:
                    raise
            except Late:
                if deadline.over:
                    raise Empty from None
                deadline.pause()
                continue
            if timeout is not None:
                waiting.wait([self], deadline.left())
            elif waiting.wait([self], _SLICE) or self._deserted() < deserted:
                slices = 0
            elif (slices := slices + 1) == _DESERTED:
                raise EndOfQueueError(
                    f"no process is left that can put into {self!r}: all its producers have ended or closed it, and "
                    "no other process has it"
                )

    def get(self: AnyQueue, block: bool = True, timeout: float | None = None) -> Any:
        if not block:
            return base.get(self, False)
        return taken(self, lambda: first(self), timeout)

    def get_many(
        self: AnyQueue, max_items: int | None = None, block: bool = True, timeout: float | None = None
    ) -> list[Any]:
        if not block:
            return list(base.get_many(self, max_items, False))
        return list(taken(self, lambda: base.get_many(self, max_items, False), timeout))

    def put(self: AnyQueue, obj: Any, block: bool = True, timeout: float | None = None) -> None:
        if not block:
            base.put(self, obj, False)
            return
        deadline = _Deadline(timeout)
        _put(self, _pack(self, obj, deadline), deadline)

    def put_many(self: AnyQueue, objects: Iterable[object], block: bool = True, timeout: float | None = None) -> int:
        if not block:
            return int(base.put_many(self, objects, False))
        deadline, done = _Deadline(timeout), 0
        for packed in [_pack(self, obj, deadline) for obj in objects]:  # pack all before the first is put
            try:
                _put(self, packed, deadline)
            except (Full, OutOfSharedMemory, ClosedError):
                if not done:
                    raise
                break
            done += 1
        return done

    def items(self: AnyQueue) -> Iterator[Any]:
        while True:
            try:
                item = taken(self, lambda: first(self), None, 1)
            except ClosedError:
                return
            yield item

    def join(self: AnyQueue, timeout: float | None) -> int:
        deadline = _Deadline(timeout)
        while (left := int(base._join(self, 0))) < 0 and not deadline.over:
            deadline.pause()
        return left

    return {"get": get, "get_many": get_many, "put": put, "put_many": put_many, "__iter__": items, "_join": join}


def _lock_methods(kind: type, rings: bool) -> dict[str, Callable[..., object]]:
    """`rings`: whether waiters can be woken by a bell; otherwise they poll."""
    base = _in_c(kind)

    def acquire(self: AnyLock, block: bool = True, timeout: float | None = None) -> bool:
        if not block:
            return bool(base.acquire(self, False))
        deadline, looks = _Deadline(timeout), 0
        while not base.acquire(self, False):
            if deadline.over:
                return False
            looks += 1
            if looks % 50 if not rings else not waiting.wait([self], deadline.left()):
                deadline.pause()
            elif base.acquire(self, False) or base.acquire(self, True, deadline.left(_DEATH)):
                return True  # a death is only reported to a waiter in C, so wait there for a moment
        return True

    def enter(self: AnyLock) -> bool:
        return acquire(self)

    return {"acquire": acquire, "__enter__": enter}


def lock_methods(kind: type) -> dict[str, Callable[..., object]]:
    return _lock_methods(kind, True)


def unrung_lock_methods(kind: type) -> dict[str, Callable[..., object]]:
    return _lock_methods(kind, False)


def event_methods(kind: type) -> dict[str, Callable[..., object]]:
    def wait(self: Event, timeout: float | None = None) -> bool:
        before, deadline = self._sets(), _Deadline(timeout)
        while not self.is_set() and self._sets() == before:  # an event that was set and cleared meanwhile counts as set
            if deadline.over:
                return False
            waiting.wait([self], deadline.left(_SLICE))
        return True

    return {"wait": wait}


class _Frames:
    """A subscription of a ring, for `wait`."""

    def __init__(self, ring: RingBuffer, reader: int) -> None:
        self.ring, self.reader = ring, reader

    def _for_wait(self) -> Part:
        return waiting.Part(None, ((self.ring, self.reader),))


def ring_methods(kind: type) -> dict[str, Callable[..., object]]:
    base = _in_c(kind)

    def _next(self: RingBuffer, reader: int, timeout: float | None) -> object:
        deadline = _Deadline(timeout)
        while (lent := base._next(self, reader, 0)) is None and not deadline.over:
            waiting.wait([_Frames(self, reader)], deadline.left(_SLICE))
        return lent

    def _latest(self: RingBuffer, after: int, timeout: float | None) -> object:
        deadline = _Deadline(timeout)
        while (lent := base._latest(self, after, 0)) is None and not deadline.over:
            deadline.pause()
        return lent

    def _claim(self: RingBuffer, timeout: float | None) -> object:
        deadline = _Deadline(timeout)
        while (claim := base._claim(self, 0)) is None and not deadline.over:
            deadline.pause()
        return claim

    return {"_next": _next, "_latest": _latest, "_claim": _claim}


def rwlock_methods(kind: type) -> dict[str, Callable[..., object]]:
    base = _in_c(kind)

    def _get(self: RWLock, write: bool, timeout: float | None) -> bool:
        if timeout is not None and timeout <= 0:
            return bool(base._get(self, write, timeout))
        deadline, got = _Deadline(timeout), False
        try:
            while not (got := bool(base._get(self, write, -1))) and not deadline.over:
                deadline.pause()
        finally:
            if write and not got:
                self._forget_writing()
        return got

    return {"_get": _get}


_METHODS: dict[str, Methods] = {
    "event_methods": event_methods,
    "lock_methods": lock_methods,
    "queue_methods": queue_methods,
    "ring_methods": ring_methods,
    "rwlock_methods": rwlock_methods,
    "unrung_lock_methods": unrung_lock_methods,
}


# ---- replacing the methods


def cover(kind: type) -> None:
    """Put the methods that a class names in `_in_tasks` above those of C and below those of subclasses of users."""
    make = kind.__dict__.get("_in_tasks")
    if make is None:
        return
    for name, method in _METHODS[make](kind).items():
        there = getattr(kind, name)
        method.__name__, method.__qualname__, method.__doc__ = name, f"{kind.__name__}.{name}", there.__doc__
        setattr(kind, name, method)


def cover_all(kind: type) -> None:
    """`cover` all classes below this one."""
    children: list[type] = kind.__subclasses__()
    for each in children:
        cover(each)
        cover_all(each)
