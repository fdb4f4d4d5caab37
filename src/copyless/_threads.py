"""Threads and `poll` of the system, even if gevent or eventlet has turned those of `threading` into tasks."""

from __future__ import annotations

import select
import sys
import threading
import types
from collections.abc import Callable, Iterable

from copyless._typing import Any

__all__ = ["Poll", "is_patched", "native_lock", "original", "start_thread"]


def is_patched() -> bool:
    """Whether `select` was replaced."""
    return not isinstance(select.select, types.BuiltinFunctionType)


def original(module: str, name: str) -> Any:
    """The attribute of a module before it was patched."""
    gevent = sys.modules.get("gevent.monkey")
    if gevent is not None and gevent.is_module_patched(module):
        return gevent.get_original(module, name)
    eventlet = sys.modules.get("eventlet.patcher")
    if eventlet is not None:
        return getattr(eventlet.original(module), name)
    __import__(module)
    return getattr(sys.modules[module], name)


def start_thread(run: Callable[[], object], name: str) -> None:
    """Start a thread of the system that sleeps in C. It must not use locks of `threading`, which may be locks for
    tasks.
    """
    if is_patched():
        original("_thread", "start_new_thread")(run, ())
    else:
        threading.Thread(target=run, name=name, daemon=True).start()


def native_lock() -> Any:
    """A lock between threads of the system, held so briefly that no other task runs meanwhile."""
    return original("_thread", "allocate_lock")()


_POLLED = 1 | 2  # POLLIN, POLLPRI


class Poll:
    """`select.poll`, or `select.select` if `poll` was removed (eventlet)."""

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
        """The descriptors that are readable or have ended."""
        if self._poll is not None:
            return [fd for fd, _ in self._poll.poll(None if seconds is None else seconds * 1000)]
        return select.select(self._fds, [], [], seconds)[0]
