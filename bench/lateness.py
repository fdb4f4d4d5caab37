"""How late timeouts are, while a process is stopped inside a lock and while none is.

Each call waits for an event that does not come: room in a full queue, an item of an empty one, a lock that another
process holds, an event that no process sets, a slot of a ring whose reader blocks, the turn of a writer. It returns
some time after its timeout. Median, 99th percentile and maximum of that delay are printed, in milliseconds. Then the
same while a process is stopped (SIGSTOP) that holds an internal lock which the call needs: the queue's own lock, the
registry's, the monitor of the readers-writer lock; or the stopped process is the owner of the lock, or the reader of
the ring. The targets: never early; late by at most 20 ms at the median.

    python bench/lateness.py [rounds [timeout in seconds]]
"""

from __future__ import annotations

import contextlib
import ctypes
import glob
import mmap
import multiprocessing as mp
import os
import queue
import signal
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import copyless
from copyless._storage import directory

ROUNDS = int(sys.argv[1]) if len(sys.argv) > 1 else 100
TIMEOUT = float(sys.argv[2]) if len(sys.argv) > 2 else 0.1
SPAWN = mp.get_context("spawn")
# Offsets of the locks in the objects that they guard (native/layout.h, queue_layout.h, sync.h).
REGISTRY, PUT, GET, MONITOR = 4104, 256, 512, 64


def late(call: Callable[[float], Any], expected: Any) -> list[float]:
    """Milliseconds after its timeout at which each of the calls returned."""
    found = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        try:
            result = call(TIMEOUT)
        except (queue.Full, queue.Empty) as error:
            result = type(error)
        took = time.perf_counter() - began
        if result is not expected:
            raise AssertionError(f"{result!r}, not {expected!r}")
        found.append((took - TIMEOUT) * 1e3)
    return found


def show(what: str, found: list[float]) -> None:
    ordered = sorted(found)
    p99 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
    print(f"{what:58} {statistics.median(ordered):9.2f} {p99:9.2f} {ordered[-1]:9.2f}", flush=True)


def holds(what: Any, offset: int, line: Any) -> None:
    """Puts its own word into an internal lock, as if it had been stopped there, and stops."""
    lock = copyless.Lock()
    with lock:
        ours = ctypes.c_uint32.from_address(lock._address[0] + 64).value & 0x7FFFFFFF
    if what is None:
        (path,) = glob.glob(directory.current() + "/registry.[0-9]*")
        with open(path, "r+b") as file:
            mapped = mmap.mmap(file.fileno(), 8192)
        word = ctypes.c_uint32.from_buffer(mapped, offset)
    else:
        word = ctypes.c_uint32.from_address(what._address[0] + offset)
    word.value = ours
    line.send("held")
    os.kill(os.getpid(), signal.SIGSTOP)
    word.value = 0
    os._exit(0)


def owns(lock: Any, line: Any) -> None:
    with lock:
        line.send("held")
        line.recv()
    os._exit(0)


def reads(ring: Any, line: Any) -> None:
    frames = ring.subscribe("block")
    line.send("held")
    line.recv()
    frames.close()
    os._exit(0)


class Beside:
    """Another process, stopped once it holds the given lock, or only asleep with it."""

    def __init__(self, target: Callable[..., None], *args: Any, stops: bool) -> None:
        self.line, there = SPAWN.Pipe()
        self.process = SPAWN.Process(target=target, args=(*args, there), daemon=True)
        self.stops = stops
        self.process.start()
        there.close()  # if it failed, the next line says so
        self.line.recv()
        if stops:
            os.kill(self.process.pid or 0, signal.SIGSTOP)
            while open(f"/proc/{self.process.pid}/stat").read().rpartition(")")[2].split()[0] != "T":  # noqa: SIM115
                time.sleep(0.001)

    def __enter__(self) -> Beside:
        return self

    def __exit__(self, *exc: object) -> None:
        if self.stops:
            os.kill(self.process.pid or 0, signal.SIGCONT)
        if self.process.is_alive():
            with contextlib.suppress(BrokenPipeError):  # it has nothing to wait for
                self.line.send(None)
        self.process.join()


def main() -> None:
    full, empty = copyless.Queue(maxsize=1), copyless.Queue()
    full.put(0)
    event, lock, rw = copyless.Event(), copyless.Lock(), copyless.RWLock()
    ring = copyless.RingBuffer(((4,), "f4"), slots=2)
    frame, large = np.zeros(4, "f4"), b"x" * 300_000
    print(f"{ROUNDS} calls each, timeout {TIMEOUT:g} s; late by (ms){'':17} {'median':>9} {'99 %':>9} {'worst':>9}")
    show("put, the queue is full", late(lambda t: full.put(1, timeout=t), queue.Full))
    show("get, the queue is empty", late(lambda t: empty.get(timeout=t), queue.Empty))
    show("event, nobody sets it", late(lambda t: event.wait(t), False))
    for stops in (False, True):
        state = "stopped" if stops else "asleep"
        with Beside(owns, lock, stops=stops):
            show(f"lock, its owner is {state}", late(lambda t: lock.acquire(timeout=t), False))
        with Beside(reads, ring, stops=stops):
            while True:  # until the reader blocks it
                try:
                    ring.put(frame, timeout=0)
                except queue.Full:
                    break
            show(f"ring.put, its blocking reader is {state}", late(lambda t: ring.put(frame, timeout=t), queue.Full))
    rw.acquire_read()
    with SPAWN.Pool(1) as pool:
        show("write, another process reads", pool.apply(late, (Writes(rw), False)))
        rw.release_read()
    with Beside(holds, rw, MONITOR, stops=True):
        show("write, one is stopped inside the lock", late(lambda t: rw.acquire_write(timeout=t), False))
    with Beside(holds, empty, PUT, stops=True):
        show("put, one is stopped inside the queue", late(lambda t: empty.put(1, timeout=t), queue.Full))
    with Beside(holds, empty, GET, stops=True):
        show("get, one is stopped inside the queue", late(lambda t: empty.get(timeout=t), queue.Empty))
    with Beside(holds, None, REGISTRY, stops=True):
        show(
            "put of 300 kB, one is stopped inside the registry", late(lambda t: empty.put(large, timeout=t), queue.Full)
        )


class Writes:
    def __init__(self, lock: Any) -> None:
        self.lock = lock

    def __call__(self, timeout: float) -> Any:
        return self.lock.acquire_write(timeout=timeout)


if __name__ == "__main__":
    main()
