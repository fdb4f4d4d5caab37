"""Waiting under gevent and eventlet, whose tasks share one thread: who sleeps in C stops them all.

Once a program has replaced `select` (``monkey.patch_all()``, as gunicorn and Celery do), the waits of queues, locks, semaphores, events and
rings try without waiting, and then wait by `copyless.wait`: on an eventfd, by the `select` that the program put there. Until then nothing here is called: the
methods are put over those of C when an object is made or arrives and `select` is another's. Threads of ours, which the program has made tasks
too, wait in the same way; one that must sleep in C is started as a thread of the system by `start_thread`.

Where nobody can be rung (`RWLock`, `join` of a queue, a full queue or ring) they ask again and again (`_PAUSES`). `Condition` and `Barrier` sleep in
C: docs/design/waiting.md says so.
"""

from __future__ import annotations

import importlib
import select
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from queue import Empty, Full
from typing import Any, NamedTuple

from copyless.errors import ClosedError, EndOfQueueError, OutOfSharedMemory

__all__ = ["is_patched", "look", "start_thread"]

_PAUSES = 0.001, 0.02  # seconds between two looks at what rings nobody: from, to
_SLICE = 0.2  # seconds after which what may end without a bell is looked at
_DEATH = 0.3  # seconds in which a wait in C notices a death
_DESERTED = 10  # such looks at a queue that nobody can put into, before who waits for an item is told

_installed = False


def is_patched() -> bool:
    """Whether `select` is another's."""
    return not isinstance(select.select, types.BuiltinFunctionType)


def look() -> None:
    """An object is made or arrives: have it wait as the program's tasks do, if they share one thread."""
    if not _installed and is_patched():
        _install()


def original(module: str, name: str) -> Any:
    """What a module had under a name before it was patched."""
    gevent = sys.modules.get("gevent.monkey")
    if gevent is not None and gevent.is_module_patched(module):
        return gevent.get_original(module, name)
    eventlet = sys.modules.get("eventlet.patcher")
    if eventlet is not None:
        return getattr(eventlet.original(module), name)
    return getattr(importlib.import_module(module), name)


def start_thread(run: Callable[[], Any], name: str) -> None:
    """Start a thread of the system that sleeps in C; it may use no lock of `threading`, which may be one for tasks."""
    if is_patched():
        original("_thread", "start_new_thread")(run, ())
    else:
        threading.Thread(target=run, name=name, daemon=True).start()


def native_lock() -> Any:
    """A lock between threads of the system, for so short that nobody else runs meanwhile."""
    return original("_thread", "allocate_lock")()


# ---- the waits


class _Deadline:
    def __init__(self, timeout: float | None) -> None:
        if timeout is not None and timeout != timeout:
            raise ValueError("timeout is not a number")
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
        """Let the others run for a moment."""
        time.sleep(self._pause if self.at is None else max(0.0, min(self._pause, self.at - time.monotonic())))
        self._pause = min(2 * self._pause, _PAUSES[1])


def _put_packed(queue: Any, packed: Any, deadline: _Deadline) -> None:
    while not queue._try_put(packed):
        if deadline.over:
            raise Full
        deadline.pause()


def _queue_methods(base: Any) -> dict[str, Any]:
    from copyless.waiting import wait

    def taken(self: Any, take: Callable[[], Any], timeout: float | None, deserted: int = 2) -> Any:
        """What `take` takes, as soon as it can; `deserted`: how it must be that nobody is left who could put."""
        deadline, slices = _Deadline(timeout), 0
        while True:
            try:
                return take()
            except Empty:
                if deadline.over:
                    raise
            if timeout is not None:
                wait([self], deadline.left())
            elif wait([self], _SLICE) or self._deserted() < deserted:
                slices = 0
            elif (slices := slices + 1) == _DESERTED:
                raise EndOfQueueError(
                    f"nobody is left who could put into {self!r}: every process that did has ended or closed it, and no other has it"
                )

    def get(self: Any, block: bool = True, timeout: float | None = None) -> Any:
        if not block:
            return base.get(self, False)
        return taken(self, lambda: base.get(self, False), timeout)

    def get_many(self: Any, max_items: int | None = None, block: bool = True, timeout: float | None = None) -> list[Any]:
        if not block:
            return list(base.get_many(self, max_items, False))
        return list(taken(self, lambda: base.get_many(self, max_items, False), timeout))

    def put(self: Any, obj: Any, block: bool = True, timeout: float | None = None) -> None:
        if not block:
            base.put(self, obj, False)
            return
        _put_packed(self, self._pack(obj), _Deadline(timeout))

    def put_many(self: Any, objects: Any, block: bool = True, timeout: float | None = None) -> int:
        if not block:
            return int(base.put_many(self, objects, False))
        deadline, done = _Deadline(timeout), 0
        for packed in [self._pack(obj) for obj in objects]:  # all, before the first goes
            try:
                _put_packed(self, packed, deadline)
            except (Full, OutOfSharedMemory, ClosedError):
                if not done:
                    raise
                break
            done += 1
        return done

    def items(self: Any) -> Iterator[Any]:
        while True:
            try:
                item = taken(self, lambda: base.get(self, False), None, 1)
            except ClosedError:
                return
            yield item

    def join(self: Any, timeout: float | None) -> int:
        deadline = _Deadline(timeout)
        while (left := int(base._join(self, 0))) < 0 and not deadline.over:
            deadline.pause()
        return left

    return {"get": get, "get_many": get_many, "put": put, "put_many": put_many, "__iter__": items, "_join": join}


def _lock_methods(base: Any, rings: bool) -> dict[str, Any]:
    """`rings`: whether who waits for it can be rung; else it is asked again and again."""
    from copyless.waiting import wait

    def acquire(self: Any, block: bool = True, timeout: float | None = None) -> bool:
        if not block:
            return bool(base.acquire(self, False))
        deadline, looks = _Deadline(timeout), 0
        while not base.acquire(self, False):
            if deadline.over:
                return False
            looks += 1
            if looks % 50 if not rings else not wait([self], deadline.left()):
                deadline.pause()
            elif base.acquire(self, False) or base.acquire(self, True, deadline.left(_DEATH)):
                return True  # of one who has died it is told only to who waits in C, a moment long
        return True

    def enter(self: Any) -> bool:
        return acquire(self)

    return {"acquire": acquire, "__enter__": enter}


def _event_methods(base: Any) -> dict[str, Any]:
    from copyless.waiting import wait as wait_for

    def wait(self: Any, timeout: float | None = None) -> bool:
        before, deadline = self._sets(), _Deadline(timeout)
        while not self.is_set() and self._sets() == before:  # set, and cleared since, was set
            if deadline.over:
                return False
            wait_for([self], deadline.left(_SLICE))
        return True

    return {"wait": wait}


class _Frames(NamedTuple):
    """A subscription of a ring, for `wait`."""

    ring: Any
    reader: int

    def _for_wait(self) -> Any:
        from copyless.waiting import Part

        return Part(None, ((self.ring, self.reader),))


def _ring_methods(base: Any) -> dict[str, Any]:
    from copyless.waiting import wait

    def _next(self: Any, reader: int, timeout: float | None) -> Any:
        deadline = _Deadline(timeout)
        while (lent := base._next(self, reader, 0)) is None and not deadline.over:
            wait([_Frames(self, reader)], deadline.left(_SLICE))
        return lent

    def _latest(self: Any, after: int, timeout: float | None) -> Any:
        deadline = _Deadline(timeout)
        while (lent := base._latest(self, after, 0)) is None and not deadline.over:
            deadline.pause()
        return lent

    def _claim(self: Any, timeout: float | None) -> Any:
        deadline = _Deadline(timeout)
        while (claim := base._claim(self, 0)) is None and not deadline.over:
            deadline.pause()
        return claim

    return {"_next": _next, "_latest": _latest, "_claim": _claim}


def _rwlock_methods(base: Any) -> dict[str, Any]:
    def _get(self: Any, write: bool, timeout: float | None) -> bool:
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


def _install() -> None:
    global _installed
    _installed = True
    from copyless import queues, rings, synchronize
    from copyless._core import _queue, _ring, _synchronize

    # Over the methods of C, and below what our classes and those of programs define.
    for kind, methods in (
        (queues._Base, _queue_methods(_queue._Queue)),
        (synchronize.Lock, _lock_methods(_synchronize._Lock, True)),
        (synchronize.RLock, _lock_methods(_synchronize._RLock, True)),
        (synchronize._Inside, _lock_methods(_synchronize._RLock, False)),
        (synchronize.Semaphore, _lock_methods(_synchronize._Semaphore, True)),
        (synchronize.Event, _event_methods(_synchronize._Event)),
        (synchronize.RWLock, _rwlock_methods(_synchronize._RWLock)),
        (rings.RingBuffer, _ring_methods(_ring._Ring)),
    ):
        _cover(kind, methods)


def _cover(kind: Any, methods: dict[str, Any]) -> None:
    for name, method in methods.items():
        there = getattr(kind, name)
        method.__name__, method.__qualname__, method.__doc__ = name, f"{kind.__name__}.{name}", there.__doc__
        setattr(kind, name, method)
