"""A pipe that wakes the one thread that waits for it beside other descriptors."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable

from copyless._threads import original

__all__ = ["WakePipe"]


class WakePipe:
    """Both ends of a pipe. It is read and written with the original functions of the system: tasks of gevent and
    eventlet must not wait for each other here.
    """

    def __init__(self) -> None:
        self.reader, self._writer = os.pipe()
        for end in (self.reader, self._writer):
            os.set_blocking(end, False)

    def wake(self) -> None:
        with contextlib.suppress(OSError):  # the pipe is full, so the thread will wake
            original("os", "write")(self._writer, b"x")

    def empty(self) -> None:
        with contextlib.suppress(OSError):
            original("os", "read")(self.reader, 4096)

    def __del__(self, close: Callable[[int], None] = os.close) -> None:  # the module's names may be None by then
        for end in (getattr(self, "reader", -1), getattr(self, "_writer", -1)):
            try:
                close(end)
            except OSError:
                pass
