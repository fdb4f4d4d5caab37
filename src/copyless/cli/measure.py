"""Measures a piece of work: seconds, bytes through pipes, and memory of this process and its children."""

from __future__ import annotations

import os
import threading
import time

from copyless import _platform

__all__ = ["Meter"]


def memory_in_use() -> int:
    """Bytes of memory of this process and its children as PSS: every shared page counts once.

    Pages of shared memory are measured at its mount, because PSS misses pages that no process maps at the moment.
    """
    st = os.statvfs(_platform.OBJECTS_DIRECTORY)
    total = (st.f_blocks - st.f_bfree) * st.f_frsize
    me = os.getpid()
    return total + sum(_platform.memory_of(pid) or 0 for pid in (me, *_platform.children_of(me)))


class Meter(threading.Thread):
    """Seconds, bytes through pipes and peak memory, from its making until `stop`."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.measured: dict[str, float] = {}
        self._before = self._peak = memory_in_use()
        self._pipes = _platform.bytes_transferred()
        self._done = threading.Event()
        self._began = time.perf_counter()
        self.start()

    def run(self) -> None:
        while not self._done.wait(0.03):
            self._peak = max(self._peak, memory_in_use())

    def stop(self) -> None:
        seconds = time.perf_counter() - self._began
        self._done.set()
        self.join()
        peak = max(self._peak, memory_in_use()) - self._before
        self.measured |= {
            "seconds": seconds,
            "pipe_bytes": _platform.bytes_transferred() - self._pipes,
            "peak_bytes": max(0, peak),
        }
