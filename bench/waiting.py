"""Waiting for the first of many: `copyless.wait` on queues beside `multiprocessing.connection.wait` on as many pipes.

Two processes ping-pong. One waits for 1, 10 or 1,000 queues (or pipes), takes what came, and answers on the one queue
(or pipe) that the other waits for; the other then puts into the next of them. Rounds of both kinds alternate. Printed
are microseconds a round trip, medians, and the median of the ratios of each pair of rounds. Then the cost of a wait
when something is ready already, and with a pipe among the queues, so that a descriptor must be waited for as well. The
targets: 1 queue at most 0.5 of a pipe, 10 at most 0.5, 1,000 at most 0.2.

    python bench/waiting.py [rounds]
"""

from __future__ import annotations

import multiprocessing as mp
import statistics
import sys
import time
from multiprocessing import connection
from typing import Any

import copyless

ROUNDS = int(sys.argv[1]) if len(sys.argv) > 1 else 9
FORK = mp.get_context("fork")
AT_MOST = {1: 0.5, 10: 0.5, 1000: 0.2}


def answer_queues(queues: list[Any], answers: Any, mixed: list[Any]) -> None:
    things = [*queues, *mixed]
    while True:
        for q in copyless.wait(things):
            item = q.get()
            if item is None:
                return
            answers.put(item)


def answer_pipes(pipes: list[Any], answers: Any) -> None:
    while True:
        for pipe in connection.wait(pipes):
            item = pipe.recv()
            if item is None:
                return
            answers.send(item)


class Queues:
    def __init__(self, n: int, mixed: bool = False) -> None:
        self.queues, self.answers = [copyless.SimpleQueue() for _ in range(n)], copyless.SimpleQueue()
        self.pipe = mp.Pipe()
        others = [self.pipe[0]] if mixed else []
        self.process = FORK.Process(target=answer_queues, args=(self.queues, self.answers, others))
        self.process.start()

    def round(self, i: int) -> None:
        self.queues[i % len(self.queues)].put(i)
        self.answers.get()

    def end(self) -> None:
        self.queues[0].put(None)
        self.process.join()


class Pipes:
    def __init__(self, n: int) -> None:
        self.pipes, self.answers = [mp.Pipe(False) for _ in range(n)], mp.Pipe(False)
        self.process = FORK.Process(target=answer_pipes, args=([r for r, _ in self.pipes], self.answers[1]))
        self.process.start()

    def round(self, i: int) -> None:
        self.pipes[i % len(self.pipes)][1].send(i)
        self.answers[0].recv()

    def end(self) -> None:
        self.pipes[0][1].send(None)
        self.process.join()
        for ends in (*self.pipes, self.answers):
            for end in ends:
                end.close()


def microseconds(pair: Any, n: int) -> float:
    begun = time.perf_counter()
    for i in range(n):
        pair.round(i * 7)
    return (time.perf_counter() - begun) / n * 1e6


def compare(title: str, ours: Any, theirs: Any, n: int, at_most: float | None) -> None:
    times: list[tuple[float, float]] = []
    microseconds(ours, n // 4), microseconds(theirs, n // 4)
    for _ in range(ROUNDS):
        times.append((microseconds(ours, n), microseconds(theirs, n)))
    ours.end(), theirs.end()
    ratio = statistics.median(a / b for a, b in times)
    a, b = (statistics.median(column) for column in zip(*times, strict=True))
    limit = "" if at_most is None else f"   at most {at_most}"
    print(f"{title:28} {a:10.1f} us {b:10.1f} us   ratio {ratio:.3f}{limit}", flush=True)


def look(n: int) -> None:
    """Of n, the last one is ready."""
    queues = [copyless.SimpleQueue() for _ in range(n)]
    pipes = [mp.Pipe(False) for _ in range(n)]
    readers = [reader for reader, _ in pipes]
    queues[-1].put(1)
    pipes[-1][1].send(1)
    times = []
    for _ in range(ROUNDS):
        each = []
        for wait, things in ((copyless.wait, queues), (connection.wait, readers)):
            begun = time.perf_counter()
            for _ in range(20):
                assert wait(things) == things[-1:]
            each.append((time.perf_counter() - begun) / 20 * 1e6)
        times.append(each)
    ratio = statistics.median(a / b for a, b in times)
    a, b = (statistics.median(column) for column in zip(*times, strict=True))
    print(f"{f'look at {n:,}, one is ready':28} {a:10.1f} us {b:10.1f} us   ratio {ratio:.3f}", flush=True)
    for ends in pipes:
        for end in ends:
            end.close()


def main() -> None:
    print(f"{'':28} {'copyless':>13} {'multiprocessing':>13}")
    for n in (1, 10, 1000):
        look(n)
    for n in (1, 10, 1000):
        compare(f"round trip, {n:,}", Queues(n), Pipes(n), 2000 if n < 1000 else 200, AT_MOST[n])
    compare("round trip, 10 and a pipe", Queues(10, mixed=True), Pipes(11), 1000, None)


if __name__ == "__main__":
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(8192, hard), hard))
    main()
