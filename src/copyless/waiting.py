"""`wait` for the first of many objects; descriptors of queues and events for `select`, `selectors` and event loops.

Mirrors `multiprocessing.connection.wait` and accepts more objects. `native/structures/bells.h` and
docs/design/waiting.md explain how it works.
"""

from __future__ import annotations

import collections
import io
import os
import sys
import time
import weakref
from collections.abc import Callable, Iterable

from copyless._core import _bells
from copyless._core._blocks import Object
from copyless._objects.selectable import Selectable, ring, wakers
from copyless._platform import DescriptorSet
from copyless._threads import Poll, is_patched
from copyless._typing import TYPE_CHECKING, Any, NoReturn, TypeGuard

if TYPE_CHECKING:
    from concurrent.futures import Future

    from typing_extensions import Self

    from copyless._typing import AnyQueue, Waitable

__all__ = ["Part", "Poll", "Reader", "Selectable", "Writer", "await_", "is_patched", "ring", "wait"]

_MPI_SHORTEST, _MPI_LONGEST = 5e-5, 5e-4  # seconds between two calls of MPI
WHOLE = 0xFFFFFFFF  # the object itself, not one of its subscriptions


class Part:
    """How to wait for an object that is not in shared memory; see `_for_wait`.

    Attributes
    ----------
    is_ready : callable, optional
        Called with whether to check for deaths too. None: the object is ready when the first of `sources` is.
    sources : list of (object, reader)
        What rings this process's bell when the object may have become ready.
    polls : bool
        Nothing announces that the object is ready: it is checked again and again.
    """

    __slots__ = ("is_ready", "polls", "sources")

    is_ready: Callable[[bool], bool] | None
    sources: tuple[tuple[Object, int], ...]
    polls: bool

    def __init__(
        self,
        is_ready: Callable[[bool], bool] | None = None,
        sources: tuple[tuple[Object, int], ...] = (),
        polls: bool = False,
    ) -> None:
        self.is_ready, self.sources, self.polls = is_ready, sources, polls


READY = Part(lambda deaths: True)


# ---- objects that this process itself makes ready: futures, results of pools, messages of ranks

_free: collections.deque[_bells.WakeDescriptor] = collections.deque()  # unused ones, kept for the next wait
_told: weakref.WeakSet[Any] = weakref.WeakSet()  # objects that call `ring` when they are done


def _forget_all() -> None:
    """In a forked child: drop the descriptors, which the parent uses too."""
    _free.clear()


os.register_at_fork(after_in_child=_forget_all)


def _of_future(future: Future[object]) -> Part:
    if future not in _told:
        # once: a callback cannot be removed, and a program may wait for the future in a loop
        future.add_done_callback(ring)
        _told.add(future)
    return Part(lambda deaths: future.done())


def _is_future(each: object) -> TypeGuard[Future[object]]:
    futures: Any = sys.modules.get("concurrent.futures")  # loaded if any future exists
    return futures is not None and isinstance(each, futures.Future)


def _of_result(result: Any) -> Part:
    """How to wait for an AsyncResult of the standard library's pools, which have no callback that can be added
    later.
    """
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


class _Parts:
    """The objects of one wait, grouped by how to wait for them."""

    def __init__(self, objects: list[Waitable], ends: bool) -> None:
        self.objects = objects
        self.polls = False
        self._sources: list[tuple[Object, int]] = []
        self._index: list[int] = []  # the object that each source makes ready; -1: none
        self._asked: list[tuple[int, Callable[[bool], bool]]] = []
        self.fds: dict[int, list[int]] = {}
        for i, each in enumerate(objects):
            if isinstance(each, Object):
                self._add(i, Part(None, ((each, WHOLE),)))
            elif (about := getattr(type(each), "_for_wait", None)) is not None:
                self._add(i, about(each))
            elif _is_future(each):
                self._add(i, _of_future(each))
            elif _is_result(each):
                self._add(i, _of_result(each))
            else:
                self.fds.setdefault(_descriptor(each), []).append(i)
        self.memory = _bells.Waiting(self._sources)
        if ends:
            self.memory.forget_who_is_left()
        self.poll = Poll(self.fds)

    def _add(self, i: int, part: Part) -> None:
        if part.is_ready is not None:
            self._asked.append((i, part.is_ready))
        self._sources.extend(part.sources)
        self._index.extend([i if part.is_ready is None else -1] * len(part.sources))
        self.polls |= part.polls

    def look(self, ask: bool = False, deaths: bool = False) -> list[Any]:
        """The objects that are ready now, in order. With `ask`, changes ring the bell from now on."""
        found: set[int] = set()
        if self.fds:  # first: after the end of a process is seen, everything that it did before is seen too
            for fd in self.poll(0):
                found.update(self.fds.get(fd, ()))
        if self._sources:
            found.update(self._index[i] for i in self.memory.look(ask, deaths))
        found.update(i for i, is_ready in self._asked if is_ready(deaths))
        found.discard(-1)
        return [self.objects[i] for i in sorted(found)]

    @property
    def looks_again(self) -> bool:
        """Whether an object may become ready without an announcement: by a death."""
        return bool(self._sources) or bool(self._asked)


def _descriptor(each: object) -> int:
    fileno = getattr(each, "fileno", None)
    fd = each if isinstance(each, int) else fileno() if fileno is not None else None
    if not isinstance(fd, int):
        raise ValueError(
            f"wait() cannot wait for {each!r}: it takes file descriptors, objects with fileno(), and these "
            "objects of copyless: queues, events, locks, semaphores, subscriptions of rings, requests and "
            "messages of comm, futures and results of pools"
        )
    if fd < 0:
        raise ValueError(f"a descriptor must be 0 or more, not {fd}")
    return fd


class _Waker:
    """A descriptor that is written to when the objects of a wait may be ready."""

    def __init__(self, parts: _Parts) -> None:
        self._descriptor = self._taken()
        self.fd = self._descriptor.fd
        self.empty = self._descriptor.empty
        self._pid = os.getpid()
        try:
            self._listeners = parts.memory.listeners(self._descriptor)
        except BaseException:  # no thread could be started
            _free.append(self._descriptor)
            raise
        wakers.add(self._descriptor)

    @staticmethod
    def _taken() -> _bells.WakeDescriptor:
        while True:
            try:
                found = _free.pop()
            except IndexError:
                return _bells.WakeDescriptor()
            if found.is_there():
                return found

    def close(self) -> None:
        self._listeners = []
        if self._pid == os.getpid():
            wakers.discard(self._descriptor)
            _free.append(self._descriptor)


class _Clock:
    """How long to sleep before the next check."""

    def __init__(self, parts: _Parts, timeout: float | None) -> None:
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._slice = _bells.SLICE if parts.looks_again else None
        self._pause = _MPI_SHORTEST if parts.polls else None
        self._slices = 0

    @property
    def over(self) -> bool:
        return self._deadline is not None and time.monotonic() >= self._deadline

    def deaths(self) -> bool:
        """Whether it is time to check for deaths."""
        self._slices += 1
        return self._pause is None and self._slices % _bells.LOOK_SLICES == 0

    def pause(self) -> float | None:
        """Seconds to sleep; None: until something happens."""
        limits = [] if self._deadline is None else [max(0.0, self._deadline - time.monotonic())]
        if self._slice is not None:
            limits.append(self._slice)
        if self._pause is not None:
            limits.append(self._pause)
            self._pause = min(self._pause * 1.5, _MPI_LONGEST)
        return min(limits) if limits else None


def _check(timeout: float | None) -> None:
    if timeout is not None and timeout != timeout:
        raise ValueError("timeout must be a number of seconds, not NaN")


def wait(object_list: Iterable[Waitable], timeout: float | None = None) -> list[Any]:
    """Wait until at least one of several objects is ready. Returns all that are ready, in the order given.

    Mirrors `multiprocessing.connection.wait`; also available as `copyless.connection.wait`.

    Parameters
    ----------
    object_list
        Up to some thousand objects:

        * everything that the standard library accepts: connections, sockets, sentinels of processes, descriptors,
          objects with `fileno()`;
        * `Queue`, `SimpleQueue`, `JoinableQueue`: ready when there is an item;
        * `Event`: ready when it is set; `Lock`, `RLock`, `Semaphore`: ready when it could be acquired;
        * a subscription of a `RingBuffer`: ready when there is a new frame;
        * futures of copyless and of `concurrent.futures`, and results of pools: ready when they are done;
        * requests and messages of `copyless.comm`: ready when they are complete.
    timeout
        Seconds to wait; 0: only check. None: without limit.

    Returns
    -------
    list
        The objects that are ready; empty after `timeout`.

    Raises
    ------
    TypeError, ValueError
        For an object that cannot be waited for: a `Condition`, a `Barrier`, an `RWLock`.

    Notes
    -----
    An object is ready if the call that takes from it would not wait now. `wait` itself takes nothing, so another
    process may take it first. An object is also ready if that call would raise: a queue that was shut down or closed, a
    lock whose holder has died (within 200 ms), a request whose rank has died.

    If all objects are in shared memory, waiting costs no descriptor and no thread: the process sleeps on one word. With
    descriptors or futures it costs an eventfd and a wake-up by another thread. Requests on MPI are checked every half
    millisecond, because MPI makes progress only when it is called.

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
    objects: list[Any] = list(object_list)
    _check(timeout)
    sources: list[tuple[Object, int]] = [(each, WHOLE) for each in objects if isinstance(each, Object)]
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


async def await_(object_list: Iterable[Waitable], timeout: float | None = None) -> list[Any]:
    """`wait` for an event loop. No thread waits, and a task that is cancelled has taken nothing.

    Parameters, result and errors are those of `wait`. The name follows `Event.await_`.

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
    import asyncio

    objects = list(object_list)
    _check(timeout)
    parts = _Parts(objects, timeout is not None)
    found = parts.look(deaths=timeout is not None and timeout <= 0)
    if found or (timeout is not None and timeout <= 0):
        return found
    clock, waker = _Clock(parts, timeout), _Waker(parts)
    loop, rung = asyncio.get_running_loop(), asyncio.Event()
    # The loop gets one descriptor of its own: the program may have registered readers for the descriptors that it waits
    # for.
    with DescriptorSet() as together:
        try:
            together.add(waker.fd)
            for fd in parts.fds:
                try:
                    together.add(fd)
                except PermissionError:  # a file on disk, which is always ready
                    return [objects[i] for i in parts.fds[fd]]
            loop.add_reader(together.fileno(), rung.set)
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
            loop.remove_reader(together.fileno())
            waker.close()


# ---- the ends of a queue's pipe, which programs of the standard library know

_closed_readers: weakref.WeakSet[AnyQueue] = weakref.WeakSet()
_closed_writers: weakref.WeakSet[AnyQueue] = weakref.WeakSet()


class _End:
    _closed: weakref.WeakSet[AnyQueue]
    readable = writable = False

    def __init__(self, source: AnyQueue) -> None:
        self._source = source

    @property
    def closed(self) -> bool:
        return self._source in self._closed or bool(self._source.closed)

    def close(self) -> None:
        """Mark as closed. The queue stays usable, and its descriptor is closed with the queue."""
        self._closed.add(self._source)

    def fileno(self) -> int:
        if self.closed:
            raise OSError("handle is closed")
        number: int = self._source.fileno()
        return number

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self._source is other._source

    def __hash__(self) -> int:
        return hash((type(self), id(self._source)))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._source!r}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"this {type(self).__name__} is part of a queue: send the queue")


class Reader(_End):
    """The attribute `_reader` of standard queues, which programs wait for: `fileno`, `poll`, `closed`."""

    _closed = _closed_readers
    readable = True

    def poll(self, timeout: float | None = 0.0) -> bool:
        """Whether there is an item, after waiting at most `timeout` seconds for one."""
        if self.closed:
            raise OSError("handle is closed")
        return bool(wait([self._source], timeout))

    def _for_wait(self) -> Part:
        if self.closed:
            raise OSError("handle is closed")
        return Part(None, ((self._source, WHOLE),))

    def recv(self, *args: object) -> Any:
        """Raise UnsupportedOperation: the items of a queue are in shared memory, not in a pipe."""
        raise io.UnsupportedOperation(
            "this object carries no bytes, because the items are in shared memory: use get() of the queue"
        )

    recv_bytes = recv
    recv_bytes_into = recv


class Writer(_End):
    """The attribute `_writer` of standard queues, which programs close."""

    _closed = _closed_writers
    writable = True

    def send(self, *args: object) -> Any:
        """Raise UnsupportedOperation: the items of a queue are in shared memory, not in a pipe."""
        raise io.UnsupportedOperation(
            "this object carries no bytes, because the items are in shared memory: use put() of the queue"
        )

    send_bytes = send
