"""A short program with each kind of object, for a wheel whose own tests cannot run: `make check-wheel-aarch64`.

Processes are forked, never spawned: under qemu the interpreter cannot start itself again.

    python wheels/smoke.py [MACHINE]
"""

from __future__ import annotations

import os
import platform
import sys
import threading
import time

import numpy as np

import copyless

context = copyless.get_context("fork")


def an_array() -> None:
    array = copyless.zeros((3, 4), dtype="i4")
    assert copyless.is_shared(array)
    array[1] = 5
    assert array.sum() == 20


def a_queue_with_an_array() -> None:
    queue = copyless.Queue()
    queue.put({"image": np.arange(100_000), "n": 3})
    queue.put(copyless.ones(10))
    item = queue.get(timeout=60)
    assert item["n"] == 3
    assert item["image"].sum() == 4_999_950_000
    array = queue.get(timeout=60)
    assert copyless.is_shared(array)
    assert array.sum() == 10


def a_ring() -> None:
    ring = copyless.RingBuffer({"v": ((3,), "i4")}, slots=4)
    ring.put({"v": np.arange(3)})
    with ring.latest() as frame:
        assert frame["v"].tolist() == [0, 1, 2]


def a_lock_in_four_threads() -> None:
    lock = copyless.Lock()
    counter = [0]

    def count() -> None:
        for _ in range(500):
            with lock:
                value = counter[0]
                time.sleep(0)  # other threads run here, and must wait for the lock
                counter[0] = value + 1

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counter == [2000]


def a_forked_child_that_writes() -> None:
    array, queue = copyless.zeros(1000), copyless.Queue()

    def write() -> None:
        array[:] = np.arange(1000)
        queue.put(copyless.full(3, 7))

    child = context.Process(target=write)
    child.start()
    assert queue.get(timeout=60).tolist() == [7, 7, 7]
    child.join(60)
    assert child.exitcode == 0
    assert array.sum() == 499_500


def a_pool() -> None:
    array = copyless.zeros(8)
    with context.Pool(2) as pool:
        assert pool.map(abs, range(-5, 0)) == [5, 4, 3, 2, 1]
        assert pool.apply(np.add, (array, 1)).sum() == 8


def main() -> None:
    machine = sys.argv[1] if len(sys.argv) > 1 else platform.machine()
    assert platform.machine() == machine, f"this is {platform.machine()}, not {machine}"
    for step in (an_array, a_queue_with_an_array, a_ring, a_lock_in_four_threads, a_forked_child_that_writes, a_pool):
        step()
        print("passed:", step.__name__.replace("_", " "), flush=True)
    print(f"copyless works on {machine}: {os.path.dirname(copyless.__file__)}")


if __name__ == "__main__":
    main()
