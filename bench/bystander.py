"""The delays in another process while one process forks with very many arrays, or has died with them.

A bystander makes and drops `zeros(10)` and records the time of each pair. Meanwhile a process that holds 60,000 arrays
forks, or is killed and reaped by a third process; another lists them (`copyless ls`); one that has 512 MiB of free
memory exits. Printed are median, 99th percentile and maximum in milliseconds, beside those of an equal time without any
load. Then the cost of fork and _exit in the forking process itself, with no arrays and with 60,000. Then operations
that must not depend on the past: `ls` of many holders, and get and task_done of an array after very many arrays
existed. Then two processes that use one thing: allocation, and one lock, beside the standard library's. The targets: at
most 5 ms for the bystander, the same cost of a fork however much is held, `ls` under 2 s, get and task_done within 1.2;
two processes that allocate do 1.6 times the work of one, and on one lock 1.5 times that of the standard library.

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


def asked(line: Any) -> bool:
    """Wait for the next word of the main process. False when it has exited."""
    try:
        return bool(line.recv())
    except EOFError:
        return False


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
    """Holds arrays. Forks when it is told, and reports how long that took."""
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
    while asked(line):
        line.send(watch(stop))


def reaper(line: Any) -> None:
    """Allocates a little, as programs do, and so reclaims what dead processes held."""
    copyless.zeros(10)
    line.send("up")
    while asked(line):
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
        return found[5:]  # the first ones are cold


def show(title: str, found: list[float]) -> None:
    ordered = sorted(found)
    print(
        f"{title:<44} {statistics.median(ordered):8.3f} {ordered[int(len(ordered) * 0.99)]:8.3f} {ordered[-1]:8.3f} ms"
    )


# ---- beside `ls`, beside an exit


def lister(line: Any) -> None:
    from copyless.cli.look import listing

    copyless.zeros(10)
    line.send("up")
    while asked(line):
        began = time.perf_counter()
        listing()
        line.send((time.perf_counter() - began) * 1e3)


def warm(line: Any) -> None:
    """Has 512 MiB of free memory, and exits when it is told."""
    copyless.configure(warm_limit=1 << 30)
    arrays = [copyless.zeros(8 << 20, "u1") for _ in range(64)]
    del arrays
    line.send("up")
    line.recv()


def with_line(target: Callable[..., None], *args: Any) -> tuple[Any, Any]:
    ours, theirs = SPAWN.Pipe()
    process = SPAWN.Process(target=target, args=(*args, theirs), daemon=True)
    process.start()
    theirs.close()
    ours.recv()
    return process, ours


def many(n: int, line: Any) -> None:
    arrays = [copyless.zeros(10) for _ in range(n)]
    line.send(len(arrays))
    line.recv()


def beside(bystander: Bystander) -> None:
    holding, _line = start(ARRAYS)
    lists, line = with_line(lister)

    def look() -> None:
        line.send(True)
        line.recv()

    for number in range(1, ROUNDS + 1):
        show(f"round {number}: beside ls of {ARRAYS:,} blocks", bystander.during(look))
    holding.kill()
    lists.kill()
    for number in range(1, ROUNDS + 1):
        process, line = with_line(warm)

        def leave(process: Any = process, line: Any = line) -> None:
            line.send(True)
            process.join()

        show(f"round {number}: beside an exit with 512 MiB", bystander.during(leave))


def list_many(n: int = 10_000, processes: int = 60) -> None:
    """`ls` of blocks that many processes hold."""
    started = [with_line(many, n // processes) for _ in range(processes)]
    lists, line = with_line(lister)
    found = []
    for _ in range(3):
        line.send(True)
        found.append(line.recv())
    print(f"ls of {n:,} blocks of {processes} processes {'':18} {statistics.median(found) / 1e3:8.3f} s")
    for process, _ in [*started, (lists, None)]:
        process.kill()


def after_many() -> None:
    """get and task_done of an array, before and after very many arrays lived."""
    queue: Any = copyless.JoinableQueue(redeliver=True)
    array = copyless.zeros(10)

    def each(n: int = 2000) -> float:
        for _ in range(n):
            queue.put(array)
        began = time.perf_counter()
        for _ in range(n):
            queue.get()
            queue.task_done()
        return (time.perf_counter() - began) / n * 1e6

    each()
    before = statistics.median(each() for _ in range(5))
    arrays = [copyless.zeros(10) for _ in range(ARRAYS)]
    del arrays
    after = statistics.median(each() for _ in range(5))
    print(
        f"get and task_done of an array: {before:.1f} us; after {ARRAYS:,} arrays lived: {after:.1f} us, "
        f"{after / before:.2f} of it"
    )


# ---- two processes that use one thing


def allocate(seconds: float, line: Any) -> None:
    copyless.zeros(10)
    line.send("up")
    while asked(line):
        count, until = 0, time.perf_counter() + seconds
        while time.perf_counter() < until:
            for _ in range(100):
                copyless.zeros(10)
            count += 100
        line.send(count / seconds)


def lock_often(lock: Any, seconds: float, line: Any) -> None:
    line.send("up")
    while asked(line):
        count, until = 0, time.perf_counter() + seconds
        while time.perf_counter() < until:
            for _ in range(100):
                with lock:
                    pass
            count += 100
        line.send(count / seconds)


def together(lines: list[Any]) -> float:
    for line in lines:
        line.send(True)
    return sum(line.recv() for line in lines)


def two(seconds: float = 0.5) -> None:
    workers = [with_line(allocate, seconds)[1] for _ in range(2)]
    ratios, ones = [], []
    for _ in range(2 * ROUNDS):
        one = together(workers[:1])
        ones.append(one)
        ratios.append(together(workers) / one)
    print(
        f"two processes in zeros(10): {statistics.median(ratios):.2f} times the work of one "
        f"({statistics.median(ones) / 1e3:,.0f} thousand a second)"
    )
    kinds = {"copyless": copyless.Lock(), "multiprocessing": SPAWN.Lock()}
    lines = {name: [with_line(lock_often, lock, seconds)[1] for _ in range(2)] for name, lock in kinds.items()}
    alone, both = [], []
    for _ in range(2 * ROUNDS):
        ours, theirs = (together(lines[name][:1]) for name in kinds)
        alone.append(theirs / ours)
        ours, theirs = (together(lines[name]) for name in kinds)
        both.append(ours / theirs)
    print(f"a lock that nobody else wants takes {statistics.median(alone):.2f} of the standard library's time")
    print(f"two processes on one lock: {statistics.median(both):.2f} times the standard library's work")


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

    beside(bystander)
    list_many()
    after_many()
    two()
    print("\nfork, _exit and waitpid                         median      99%      max")
    for n in (0, ARRAYS):
        process, line = start(n)
        line.send(50)
        show(f"with {n:,} arrays", [line.recv() for _ in range(50)])
        process.kill()
        process.join()


if __name__ == "__main__":
    main()
