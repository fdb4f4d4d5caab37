"""Waiting in an event loop: any number of tasks wait for shared words with one thread of this process.

A task never sleeps on a word itself. It tries; if it must wait, it queues behind the tasks of this process that wait
for the same thing, and only the word of the first one is watched. A watcher thread sleeps on all watched words in one
system call and wakes the first waiter of each word that changed. That waiter tries again and, if it got what it wanted,
wakes the next. Nothing can be handed to a waiter that was cancelled: a future carries no item, it only means *try
again*, so a cancelled task loses nothing.
"""

from __future__ import annotations

import collections
import os
import threading
import time
from collections.abc import Callable, Hashable

from copyless._core import _blocks
from copyless._core._blocks import Late
from copyless._threads import native_lock, start_thread
from copyless._typing import Any

__all__ = ["until"]

SOON, LATER = 0.0005, 0.02  # seconds until a task tries again while another process is inside: at first, at most
_BUSY = object()
_WORDS = 120  # one system call takes at most 127
_LOOK_AGAIN = 0.1  # seconds after which a waiter tries by itself: the process that should have woken it may be dead
_IDLE = 3600.0  # seconds between two checks while no task waits

Watch = tuple[int, int] | None


class _Waiter:
    __slots__ = ("future", "loop")

    def __init__(self) -> None:
        from asyncio import get_running_loop  # a program that awaits has imported it

        self.loop = get_running_loop()
        self.future = self.loop.create_future()

    def wake(self) -> None:
        """Wake a waiter, from any thread."""
        try:
            self.loop.call_soon_threadsafe(self._done)
        except RuntimeError:
            pass  # its loop was closed meanwhile

    def _done(self) -> None:
        if not self.future.done():
            self.future.set_result(None)


class _Watcher:
    """One thread and the words that it sleeps on."""

    def __init__(self) -> None:
        self.bell = _blocks.Bell()
        self.watched: dict[_Waiter, tuple[int, int]] = {}
        self.lock = native_lock()
        start_thread(self._run, "copyless-watcher")

    def add(self, waiter: _Waiter, word: tuple[int, int]) -> bool:
        with self.lock:
            if len(self.watched) >= _WORDS:
                return False
            self.watched[waiter] = word
            self.bell.ring()
        return True

    def discard(self, waiter: _Waiter) -> None:
        with self.lock:
            if self.watched.pop(waiter, None) is not None:
                self.bell.ring()  # the memory of the word may be freed: no thread may sleep on it any more

    def _run(self) -> None:
        looked = time.monotonic()
        while True:
            with self.lock:
                waiters = list(self.watched)
                words = [(self.bell.address, self.bell.value), *self.watched.values()]
            index = _blocks.wait_many(words, _LOOK_AGAIN if waiters else _IDLE)
            due = waiters[index - 1 : index] if index > 0 else []
            if not waiters:
                looked = time.monotonic()
            if time.monotonic() - looked >= _LOOK_AGAIN:
                due, looked = waiters, time.monotonic()
            with self.lock:
                due = [waiter for waiter in due if self.watched.pop(waiter, None) is not None]
            for waiter in due:
                waiter.wake()


_lock = threading.Lock()
_watchers: list[_Watcher] = []
_lines: dict[Hashable, collections.deque[_Waiter]] = {}  # the tasks of this process that wait for one thing, in order


def _forget_all() -> None:
    """In a forked child: drop the watchers, whose threads exist only in the parent."""
    global _lock
    _lock = threading.Lock()
    _watchers.clear()
    _lines.clear()


os.register_at_fork(after_in_child=_forget_all)


def _watch(waiter: _Waiter, word: tuple[int, int]) -> _Watcher:
    with _lock:
        for watcher in _watchers:
            if watcher.add(waiter, word):
                return watcher
        watcher = _Watcher()
        _watchers.append(watcher)
        watcher.add(waiter, word)
        return watcher


def _wake_first(line: collections.deque[_Waiter]) -> None:
    with _lock:
        first = line[0] if line else None
    if first is not None:
        first.wake()


async def until(
    key: Hashable,
    attempt: Callable[[], object],
    watch: Callable[[], Watch],
    timeout: float | None,
    failed: object = None,
) -> Any:
    """The first result of `attempt` that is not `failed`; or `failed` after `timeout` seconds.

    `watch` returns the (address, value) of the word whose change makes another attempt useful, or None if it is useful
    at once. Waiters of one process with equal `key` queue in order.

    `attempt` never sleeps. It raises `Late` if another process is inside, perhaps stopped there. The end of that is
    announced only to waiters that set a mark, which would slow down the others, so the first waiter tries again at
    growing intervals.
    """

    def tried() -> Any:
        try:
            return attempt()
        except Late:
            return _BUSY

    result = tried()
    if result is not _BUSY and (result is not failed or (timeout is not None and timeout <= 0)):
        return result
    import asyncio

    if timeout is not None and timeout <= 0:
        return failed
    pause = SOON
    deadline = None if timeout is None else time.monotonic() + timeout
    waiter = _Waiter()
    with _lock:
        line = _lines.setdefault(key, collections.deque())
        line.append(waiter)
    try:
        while True:
            waiter.future = waiter.loop.create_future()
            with _lock:
                first = line[0] is waiter
            watcher = None
            if first:
                word = watch()
                result = tried()  # changes from before the watch began are not reported
                if result is _BUSY:
                    nap = pause if deadline is None else min(pause, deadline - time.monotonic())
                    if nap <= 0:
                        return failed
                    await asyncio.sleep(nap)
                    pause = min(2 * pause, LATER)
                    continue
                pause = SOON
                if result is not failed:
                    return result
                if word is None:
                    await asyncio.sleep(0)
                    continue
                watcher = _watch(waiter, word)
            try:
                left = None if deadline is None else deadline - time.monotonic()
                if left is None:
                    await waiter.future
                elif left > 0:
                    await asyncio.wait([waiter.future], timeout=left)
            finally:
                if watcher is not None:
                    watcher.discard(waiter)
            result = tried()
            result = failed if result is _BUSY else result
            if result is not failed or (deadline is not None and time.monotonic() >= deadline):
                return result
    finally:
        with _lock:
            line.remove(waiter)
            if not line and _lines.get(key) is line:
                del _lines[key]
        _wake_first(line)
