"""Waiting for the first of many things, and what queues and events have for `select` and its kin.

Mirrors `multiprocessing.connection.wait`, and takes more. `native/structures/bells.h` and docs/design/waiting.md say how.
"""

from __future__ import annotations

import asyncio
import collections
import io
import os
import select
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Any, NamedTuple

from copyless._cooperative import is_patched
from copyless._core import _bells
from copyless._core._blocks import Object

__all__ = ["Part", "Reader", "Selectable", "Writer", "await_", "is_patched", "ring", "wait"]

_MPI_SHORTEST, _MPI_LONGEST = 5e-5, 5e-4  # seconds between two looks at MPI
WHOLE = 0xFFFFFFFF  # the object itself, no subscription of it
_POLLED = 1 | 2  # POLLIN, POLLPRI


class Part(NamedTuple):
    """What an object that is none of shared memory's is waited for by; see `_for_wait`.

    Attributes
    ----------
    is_ready : callable, optional
        Called with whether to look for deaths, too. None: it is ready when the first of `sources` is.
    sources : list of (object, reader)
        What rings this process's bell when it may have become ready.
    polls : bool
        Nobody tells: it is asked again and again.
    """

    is_ready: Callable[[bool], bool] | None = None
    sources: tuple[tuple[Object, int], ...] = ()
    polls: bool = False


READY = Part(lambda deaths: True)


# ---- what is ready by the doing of this process: futures, results of pools, messages of ranks

_wakers: set[_bells.Eventfd] = set()  # of the waits that are under way here
_free: collections.deque[_bells.Eventfd] = collections.deque()  # those of none, kept for the next
_told: weakref.WeakSet[Any] = weakref.WeakSet()  # what calls `ring` when it is done


def _forget_all() -> None:
    """In a forked child: the eventfds are the parent's too."""
    _wakers.clear()
    _free.clear()


os.register_at_fork(after_in_child=_forget_all)


def ring(_: object = None) -> None:
    """Have all waits of this process look again. From any thread."""
    for each in tuple(_wakers):
        each.write()


def _of_future(future: Future[Any]) -> Part:
    if future not in _told:
        future.add_done_callback(ring)  # once: it cannot be taken back, and a program may wait for it in a loop
        _told.add(future)
    return Part(lambda deaths: future.done())


def _of_result(result: Any) -> Part:
    """An AsyncResult of the standard library's pools, which call nobody back that comes later."""
    event = result._event
    if event not in _told:
        tell = event.set

        def told() -> None:
            tell()
            ring()

        event.set = told
        _told.add(event)
    return Part(lambda deaths: bool(result.ready()))


def _is_result(each: object) -> bool:
    pool = sys.modules.get("multiprocessing.pool")
    return pool is not None and isinstance(each, pool.AsyncResult)


# ---- one wait


class _Poll:
    """`select.poll`, or where that was taken away (eventlet) `select.select`."""

    def __init__(self, fds: Iterable[int]) -> None:
        self._fds = list(fds)
        self._poll = select.poll() if hasattr(select, "poll") else None
        if self._poll is not None:
            for fd in self._fds:
                self._poll.register(fd, _POLLED)

    def add(self, fd: int) -> None:
        self._fds.append(fd)
        if self._poll is not None:
            self._poll.register(fd, _POLLED)

    def __call__(self, seconds: float | None) -> list[int]:
        """Those that can be read, or have ended."""
        if self._poll is not None:
            return [fd for fd, _ in self._poll.poll(None if seconds is None else seconds * 1000)]
        return select.select(self._fds, [], [], seconds)[0]


class _Parts:
    """The objects of one wait, each by what it is waited for."""

    def __init__(self, objects: list[Any], ends: bool) -> None:
        self.objects = objects
        self.polls = False
        self._sources: list[tuple[Object, int]] = []
        self._index: list[int] = []  # of whom each source is the answer; -1: of nobody
        self._asked: list[tuple[int, Callable[[bool], bool]]] = []
        self.fds: dict[int, list[int]] = {}
        for i, each in enumerate(objects):
            if isinstance(each, Object):
                self._add(i, Part(None, ((each, WHOLE),)))
            elif (about := getattr(type(each), "_for_wait", None)) is not None:
                self._add(i, about(each))
            elif isinstance(each, Future):
                self._add(i, _of_future(each))
            elif _is_result(each):
                self._add(i, _of_result(each))
            else:
                self.fds.setdefault(_descriptor(each), []).append(i)
        self.memory = _bells.Waiting(self._sources)
        if ends:
            self.memory.forget_who_is_left()
        self.poll = _Poll(self.fds)

    def _add(self, i: int, part: Part) -> None:
        if part.is_ready is not None:
            self._asked.append((i, part.is_ready))
        self._sources.extend(part.sources)
        self._index.extend([i if part.is_ready is None else -1] * len(part.sources))
        self.polls |= part.polls

    def look(self, ask: bool = False, deaths: bool = False) -> list[Any]:
        """Those that are ready now, in order. `ask`: be rung from now on."""
        found: set[int] = set()
        if self.fds:  # first: who sees that a process has ended sees what it did before
            for fd in self.poll(0):
                found.update(self.fds.get(fd, ()))
        if self._sources:
            found.update(self._index[i] for i in self.memory.look(ask, deaths))
        found.update(i for i, is_ready in self._asked if is_ready(deaths))
        found.discard(-1)
        return [self.objects[i] for i in sorted(found)]

    @property
    def looks_again(self) -> bool:
        """Whether something may become ready that nobody tells: by a death."""
        return bool(self._sources) or bool(self._asked)


def _descriptor(each: Any) -> int:
    fileno = getattr(each, "fileno", None)
    fd = each if isinstance(each, int) else fileno() if fileno is not None else None
    if not isinstance(fd, int):
        raise ValueError(
            f"wait() cannot wait for {each!r}: it takes what has a fileno(), descriptors, and of copyless queues, events, locks, "
            "semaphores, subscriptions of rings, requests and messages of comm, futures and results of pools"
        )
    if fd < 0:
        raise ValueError(f"a descriptor is 0 or more, not {fd}")
    return fd


class _Waker:
    """An eventfd that is written when the objects of a wait may be ready."""

    def __init__(self, parts: _Parts) -> None:
        self._eventfd = self._taken()
        self.fd = self._eventfd.fd
        self.empty = self._eventfd.empty
        self._pid = os.getpid()
        try:
            self._listeners = parts.memory.listeners(self._eventfd)
        except BaseException:  # no thread could be started
            _free.append(self._eventfd)
            raise
        _wakers.add(self._eventfd)

    @staticmethod
    def _taken() -> _bells.Eventfd:
        while True:
            try:
                found = _free.pop()
            except IndexError:
                return _bells.Eventfd()
            if found.is_there():
                return found

    def close(self) -> None:
        self._listeners = []
        if self._pid == os.getpid():
            _wakers.discard(self._eventfd)
            _free.append(self._eventfd)


class _Clock:
    """How long to sleep before one looks again by oneself."""

    def __init__(self, parts: _Parts, timeout: float | None) -> None:
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._slice = _bells.SLICE if parts.looks_again else None
        self._pause = _MPI_SHORTEST if parts.polls else None
        self._slices = 0

    @property
    def over(self) -> bool:
        return self._deadline is not None and time.monotonic() >= self._deadline

    def deaths(self) -> bool:
        """Whether it is time to look for them."""
        self._slices += 1
        return self._pause is None and self._slices % _bells.LOOK_SLICES == 0

    def pause(self) -> float | None:
        """Seconds; None: until something happens."""
        limits = [] if self._deadline is None else [max(0.0, self._deadline - time.monotonic())]
        if self._slice is not None:
            limits.append(self._slice)
        if self._pause is not None:
            limits.append(self._pause)
            self._pause = min(self._pause * 1.5, _MPI_LONGEST)
        return min(limits) if limits else None


def _check(timeout: float | None) -> None:
    if timeout is not None and timeout != timeout:
        raise ValueError("timeout is not a number")


def wait(object_list: Iterable[Any], timeout: float | None = None) -> list[Any]:
    """Wait until one of many things is ready: the list of all that are, in the order given; empty after `timeout` seconds.

    Mirrors `multiprocessing.connection.wait`, and is `copyless.connection.wait`.

    Parameters
    ----------
    object_list
        Up to some thousand of

        * what the standard library's takes: connections, sockets, sentinels of processes, descriptors, whatever has a `fileno()`;
        * `Queue`, `SimpleQueue`, `JoinableQueue`: ready when there is an item to take;
        * `Event`: when it is set; `Lock`, `RLock`, `Semaphore`: when it could be acquired;
        * a subscription of a `RingBuffer`: when there is a frame to take;
        * futures, ours and those of `concurrent.futures`, and results of pools: when they are done;
        * requests and messages of `copyless.comm`: when they have ended.
    timeout
        Seconds; 0: only look. None: for ever.

    Ready means that the call that takes would not wait now; it takes nothing itself, so another may be faster. Also ready is what would
    raise: a queue that was shut down or closed, a lock whose holder has died (within 200 ms), a request whose rank has died.

    Raises
    ------
    TypeError, ValueError
        For what cannot be waited for: a `Condition`, a `Barrier`, an `RWLock`.

    Costs, if nothing but shared memory is waited for, no descriptor and no thread: this process sleeps on one word. With
    descriptors or futures among them an eventfd, and a wake by another thread. Requests on MPI are asked again every half
    millisecond, for MPI moves only when it is called.

    Examples
    --------
    >>> import copyless
    >>> jobs, stop = copyless.Queue(), copyless.Event()
    >>> copyless.wait([jobs, stop], timeout=0)
    []
    >>> jobs.put("work")
    >>> copyless.wait([jobs, stop]) == [jobs]
    True
    """
    objects = list(object_list)
    _check(timeout)
    sources = [(each, WHOLE) for each in objects if isinstance(each, Object)]
    if objects and len(sources) == len(objects) and not is_patched():
        memory = _bells.Waiting(sources)
        if memory.is_of_one_store:
            return [objects[i] for i in memory.wait(timeout)]
    parts = _Parts(objects, timeout is not None)
    found = parts.look(deaths=timeout is not None and timeout <= 0)
    if found or (timeout is not None and timeout <= 0):
        return found
    clock, waker = _Clock(parts, timeout), _Waker(parts)
    try:
        parts.poll.add(waker.fd)
        while True:
            waker.empty()
            found = parts.look(True, clock.deaths())
            if found or clock.over:
                return found
            parts.poll(clock.pause())
    finally:
        waker.close()


async def await_(object_list: Iterable[Any], timeout: float | None = None) -> list[Any]:
    """As `wait`, in an event loop: no thread waits, and cancelled it has taken nothing. Named as `Event.await_`.

    Examples
    --------
    >>> import asyncio, copyless
    >>> jobs = copyless.Queue()
    >>> async def main():
    ...     asyncio.get_running_loop().call_soon(jobs.put, "work")
    ...     return await copyless.await_([jobs]) == [jobs]
    >>> asyncio.run(main())
    True
    """
    objects = list(object_list)
    _check(timeout)
    parts = _Parts(objects, timeout is not None)
    found = parts.look(deaths=timeout is not None and timeout <= 0)
    if found or (timeout is not None and timeout <= 0):
        return found
    clock, waker = _Clock(parts, timeout), _Waker(parts)
    loop, rung = asyncio.get_running_loop(), asyncio.Event()
    # The loop gets one descriptor that nobody else has: a program may have readers of its own for those that it waits for.
    with select.epoll() as epoll:
        try:
            epoll.register(waker.fd, select.EPOLLIN)
            for fd in parts.fds:
                try:
                    epoll.register(fd, select.EPOLLIN | select.EPOLLPRI)
                except PermissionError:  # a file on disk, which is ready always
                    return [objects[i] for i in parts.fds[fd]]
            loop.add_reader(epoll.fileno(), rung.set)
            while True:
                waker.empty()
                rung.clear()
                found = parts.look(True, clock.deaths())
                if found or clock.over:
                    return found
                try:
                    await asyncio.wait_for(rung.wait(), clock.pause())
                except (TimeoutError, asyncio.TimeoutError):
                    pass
        finally:
            loop.remove_reader(epoll.fileno())
            waker.close()


# ---- what queues and events have for select, selectors, event loops, and the standard library's own wait

_making = threading.RLock()  # a signal's handler may ask for one while its thread makes one


def _make_anew() -> None:
    global _making
    _making = threading.RLock()


os.register_at_fork(after_in_child=_make_anew)


class Selectable:
    """What has a descriptor that is readable while it is ready."""

    _signal: Any

    def fileno(self) -> int:
        """A descriptor of this process for `select`, `selectors` and event loops: readable while there is something to take.

        Never unreadable while there is; readable for a moment too long when another process was faster. Made when it is first
        asked for, anew in a forked child, closed with this object. Do not read from it.

        For `Event`: readable while it is set.
        """
        signal = self._signal
        if signal is None:
            with _making:
                signal = self._signal
                if signal is None:
                    source: Any = self
                    made = _bells.Signal(source)
                    if self._signal is None:  # else a handler was faster: its number has been given out
                        self._signal = made
                    signal = self._signal
                    if getattr(self, "closed", False):
                        signal.shut()
        return signal.fileno()  # type: ignore[no-any-return]


_closed_readers: weakref.WeakSet[Any] = weakref.WeakSet()
_closed_writers: weakref.WeakSet[Any] = weakref.WeakSet()


class _End:
    _closed: weakref.WeakSet[Any]
    readable = writable = False

    def __init__(self, source: Any) -> None:
        self._source = source

    @property
    def closed(self) -> bool:
        return self._source in self._closed or bool(self._source.closed)

    def close(self) -> None:
        """Nothing is freed: the queue goes on, and its descriptor goes with it."""
        self._closed.add(self._source)

    def fileno(self) -> int:
        if self.closed:
            raise OSError("handle is closed")
        return self._source.fileno()  # type: ignore[no-any-return]

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self._source is other._source

    def __hash__(self) -> int:
        return hash((type(self), id(self._source)))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._source!r}>"

    def __reduce__(self) -> Any:
        raise TypeError(f"this {type(self).__name__} is a part of its queue: send the queue")


class Reader(_End):
    """`q._reader`, which the standard library's queues have and programs wait for: `fileno`, `poll`, `closed`."""

    _closed = _closed_readers
    readable = True

    def poll(self, timeout: float | None = 0.0) -> bool:
        """Whether there is an item, waiting at most `timeout` seconds for one."""
        if self.closed:
            raise OSError("handle is closed")
        return bool(wait([self._source], timeout))

    def _for_wait(self) -> Part:
        if self.closed:
            raise OSError("handle is closed")
        return Part(None, ((self._source, WHOLE),))

    def recv(self, *args: object) -> Any:
        """Raises: the items of a queue lie in shared memory, not in a pipe."""
        raise io.UnsupportedOperation(
            "nothing can be received here: items lie in shared memory. Take them by get() of the queue"
        )

    recv_bytes = recv_bytes_into = recv


class Writer(_End):
    """`q._writer`, which programs close."""

    _closed = _closed_writers
    writable = True

    def send(self, *args: object) -> Any:
        """Raises: the items of a queue lie in shared memory, not in a pipe."""
        raise io.UnsupportedOperation(
            "nothing can be sent here: items lie in shared memory. Put them in by put() of the queue"
        )

    send_bytes = send
