"""How long a program takes to start: beside the same line of multiprocessing, and beside a bare interpreter.

Each round runs every program once, in turn, so that a slow moment of the machine affects all of them. Printed are
medians, and for each ratio the 95 % interval by bootstrap over the rounds. For the library a bare interpreter is
subtracted on both sides; for the command the whole time counts, as a user waits for it. After each figure is the same
in processor time, of the program and all that it waited for: a busy machine changes that less.

    python bench/startup.py [--rounds 41]
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import subprocess
import sys
import time

PYTHON = [sys.executable, "-c"]
COMMAND = [os.path.join(os.path.dirname(sys.executable), "copyless")]
BARE = "python -c pass"
QUEUE_AND_LOCK, POOL = "Queue(), Lock()", "Pool(2)"
RUN_1, RUN_16 = "copyless run -n 1 true", "copyless run -n 16 true"


def line(module: str, what: str) -> list[str]:
    called = {QUEUE_AND_LOCK: "m.Queue(); m.Lock()", POOL: "pool = m.Pool(2)"}[what]
    return [*PYTHON, f"import {module} as m; {called}"]


PROGRAMS = {
    BARE: [*PYTHON, "pass"],
    **{f"{module}: {what}": line(module, what)
       for what in (QUEUE_AND_LOCK, POOL) for module in ("multiprocessing", "copyless")},
    RUN_1: [*COMMAND, "run", "-n", "1", "true"],
    RUN_16: [*COMMAND, "run", "-n", "16", "true"],
}  # fmt: skip
# The comparisons: a name, numerator, denominator, what is subtracted from both, and the promise.
RATIOS = [
    (
        f"copyless / multiprocessing, {QUEUE_AND_LOCK}",
        f"copyless: {QUEUE_AND_LOCK}",
        f"multiprocessing: {QUEUE_AND_LOCK}",
        BARE,
        1.2,
    ),
    (f"copyless / multiprocessing, {POOL}", f"copyless: {POOL}", f"multiprocessing: {POOL}", BARE, 1.2),
    (f"{RUN_1} / {BARE}", RUN_1, BARE, None, 3.0),
    ("copyless run, -n 16 / -n 1", RUN_16, RUN_1, None, 2.0),
]


def once(command: list[str]) -> tuple[float, float]:
    """Seconds of real time, and seconds of processor time."""
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    took = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return took, used.ru_utime + used.ru_stime


def ratio(seconds: dict[str, list[float]], rounds: list[int], above: str, below: str, bare: str | None) -> float:
    def middle(name: str) -> float:
        return statistics.median(seconds[name][i] for i in rounds)

    off = middle(bare) if bare else 0.0
    return (middle(above) - off) / (middle(below) - off)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=41)
    rounds = parser.parse_args().rounds
    for command in PROGRAMS.values():
        once(command)  # files come into the page cache
    seconds: dict[str, list[float]] = {name: [] for name in PROGRAMS}
    of_processor: dict[str, list[float]] = {name: [] for name in PROGRAMS}
    for _ in range(rounds):
        for name, command in PROGRAMS.items():
            took, used = once(command)
            seconds[name].append(took)
            of_processor[name].append(used)
    print(f"{rounds} rounds, Python {sys.version.split()[0]}, {os.cpu_count()} processors")
    for name, values in seconds.items():
        used = statistics.median(of_processor[name])
        print(f"  {name:40} {statistics.median(values) * 1e3:7.1f} ms {used * 1e3:7.1f} ms of a processor")
    chance = random.Random(1)
    for title, above, below, bare, promise in RATIOS:
        again = sorted(ratio(seconds, chance.choices(range(rounds), k=rounds), above, below, bare) for _ in range(1000))
        value = ratio(seconds, list(range(rounds)), above, below, bare)
        used = ratio(of_processor, list(range(rounds)), above, below, bare)
        interval = f"95 %: {again[25]:.2f} to {again[974]:.2f}; promised: {promise} at most"
        print(f"  {title:50} {value:5.2f}  ({interval}); {used:5.2f} by processor time")


if __name__ == "__main__":
    main()
