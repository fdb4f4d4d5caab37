"""What a bystander feels while another process forks with very many arrays, or has died with them.

A bystander makes and drops `zeros(10)` and notes what each pair cost. Meanwhile a process that holds 60,000 arrays forks, or is
killed and taken back by a third one. Printed: median, 99th percentile and maximum in milliseconds, beside those of the same time
with nothing going on. Then what fork and _exit cost the forking process itself, with no arrays and with 60,000.
The figures to reach: at most 2 ms for the bystander, and the same cost of a fork however much is held.

    python bench/bystander.py [arrays [rounds]]
"""

from __future__ import annotations

import multiprocessing as mp
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import copyless

ARRAYS = int(sys.argv[1]) if len(sys.argv) > 1 else 60_000
ROUNDS = int(sys.argv[2]) if len(sys.argv) > 2 else 5
SPAWN = mp.get_context("spawn")


def watch(until: Any, pace: float = 0.0002) -> list[float]:
    """Milliseconds of each allocation until the event comes."""
    found = []
    clock = time.perf_counter
    while not until.is_set():
        began = clock()
        copyless.zeros(10)
        found.append((clock() - began) * 1e3)
        time.sleep(pace)
    return found


def holder(n: int, line: Any) -> None:
    """Holds arrays; forks when it is told, and says what that took."""
    arrays = [copyless.zeros(10) for _ in range(n)]
    line.send(len(arrays))
    while True:
        for _ in range(line.recv()):
            began = time.perf_counter()
            child = os.fork()
            if child == 0:
                os._exit(0)
            os.waitpid(child, 0)
            line.send((time.perf_counter() - began) * 1e3)


def start(n: int) -> tuple[Any, Any]:
    ours, theirs = SPAWN.Pipe()
    process = SPAWN.Process(target=holder, args=(n, theirs), daemon=True)
    process.start()
    ours.recv()
    return process, ours


def bystand(line: Any, go: Any, stop: Any) -> None:
    copyless.zeros(10)
    line.send("up")
    while line.recv():
        line.send(watch(stop))


def reaper(line: Any) -> None:
    """Allocates a little, as programs do, and so takes back what the dead held."""
    copyless.zeros(10)
    line.send("up")
    while line.recv():
        line.send(copyless.reap())


class Bystander:
    def __init__(self) -> None:
        self.stop = SPAWN.Event()
        self.line, theirs = SPAWN.Pipe()
        self.process = SPAWN.Process(target=bystand, args=(theirs, None, self.stop), daemon=True)
        self.process.start()
        self.line.recv()

    def during(self, what: Callable[[], object]) -> list[float]:
        self.stop.clear()
        self.line.send(True)
        time.sleep(0.05)
        what()
        self.stop.set()
        found: list[float] = self.line.recv()
        return found[5:]  # the first are cold


def show(title: str, found: list[float]) -> None:
    ordered = sorted(found)
    print(f"{title:<44} {statistics.median(ordered):8.3f} {ordered[int(len(ordered) * 0.99)]:8.3f} {ordered[-1]:8.3f} ms")


def main() -> None:
    print(f"{ARRAYS:,} arrays; a bystander's zeros(10)       median      99%      max")
    bystander = Bystander()
    reap, theirs = SPAWN.Pipe()
    SPAWN.Process(target=reaper, args=(theirs,), daemon=True).start()
    reap.recv()

    def forks(line: Any) -> None:
        line.send(20)
        for _ in range(20):
            line.recv()

    def take_back() -> None:
        reap.send(True)
        reap.recv()

    for number in range(1, ROUNDS + 1):
        process, line = start(ARRAYS)
        began = time.perf_counter()
        busy = bystander.during(lambda line=line: forks(line))  # type: ignore[misc]
        took = time.perf_counter() - began
        show(f"round {number}: nothing", bystander.during(lambda took=took: time.sleep(took)))  # type: ignore[misc]
        show(f"round {number}: another process forks 20 times", busy)
        os.kill(process.pid, 9)
        process.join()
        began = time.perf_counter()
        busy = bystander.during(take_back)
        show(f"round {number}: a dead one's are taken back ({(time.perf_counter() - began) * 1e3:.0f} ms)", busy)

    print("\nfork, _exit and waitpid                         median      99%      max")
    for n in (0, ARRAYS):
        process, line = start(n)
        line.send(50)
        show(f"with {n:,} arrays", [line.recv() for _ in range(50)])
        process.kill()
        process.join()


if __name__ == "__main__":
    main()
