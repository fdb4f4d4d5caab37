"""Blocks against their peers: every figure in one run, medians of interleaved rounds, ratios first.

    python bench/blocks.py [--rounds N] [--json FILE]

Peers: the standard library's SharedMemory, a private NumPy array, a Pipe round trip of a small dict.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing as mp
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing import shared_memory
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

import copyless
from copyless._transfer.shared_array import copy_large

MIB = 1 << 20


def medians(rounds: int, **calls: Callable[[], float]) -> dict[str, float]:
    """Median seconds of each call. The calls are interleaved, so that a noisy moment affects all of them."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(rounds):
        for name, call in calls.items():
            taken[name].append(call())
    return {name: statistics.median(times) for name, times in taken.items()}


def timed(work: Callable[[], Any], times: int = 1) -> Callable[[], float]:
    def run() -> float:
        began = time.perf_counter()
        for _ in range(times):
            work()
        return (time.perf_counter() - began) / times

    return run


def stdlib_fill(nbytes: int) -> None:
    block = shared_memory.SharedMemory(create=True, size=nbytes)
    array = np.ndarray(nbytes, "u1", buffer=block.buf)
    array.fill(1)
    del array
    block.close()
    block.unlink()


def ours_fill(nbytes: int) -> None:
    copyless.empty(nbytes, "u1").fill(1)


def ours_fill_cold(nbytes: int) -> None:
    array = copyless.empty(nbytes, "u1")
    array.fill(1)
    del array
    copyless.trim()


def steady(nbytes: int, rounds: int) -> dict[str, float]:
    private = np.ones(nbytes, "u1")
    return medians(
        rounds,
        copyless=timed(lambda: ours_fill(nbytes)),
        stdlib=timed(lambda: stdlib_fill(nbytes)),
        private=timed(lambda: private.fill(1)),
    )


def cold(nbytes: int, rounds: int) -> dict[str, float]:
    copyless.trim()
    return medians(rounds, copyless=timed(lambda: ours_fill_cold(nbytes)), stdlib=timed(lambda: stdlib_fill(nbytes)))


def recycled_zeros(nbytes: int, rounds: int) -> dict[str, float]:
    copyless.full(nbytes, 1, "u1")  # leaves a warm block that is not zero

    def zeros() -> None:
        assert copyless.zeros(nbytes, "u1")[:: MIB // 4].max() == 0

    return medians(rounds, zeros=timed(zeros), numpy=timed(lambda: np.zeros(nbytes, "u1").fill(0)))


ATTACH = """
import sys, time, statistics, importlib
module = importlib.import_module(sys.argv[1])
S, recent = module.SharedMemory, getattr(module, "_recent", None)
name = sys.argv[2]
def run(n=200):
    began = time.perf_counter()
    for _ in range(n):
        S(name).close()
        if len(sys.argv) > 4: recent.clear()
    return (time.perf_counter() - began) / n
run(); times = [run() for _ in range(int(sys.argv[3]))]
print(statistics.median(times))
"""


def attach(rounds: int) -> dict[str, float]:
    """Attach and close by name, in a process that did not create the block; and load a handle."""
    figures: dict[str, list[float]] = {"copyless": [], "copyless, mapped anew": [], "stdlib": []}
    modules = {"copyless": "copyless.shared_memory", "stdlib": "multiprocessing.shared_memory"}
    for i in range(3):
        for key, module in modules.items():
            # A new object each time: at exit the standard library's tracker unlinks objects that were only attached.
            if key == "copyless":
                ours = copyless.SharedMemory(f"psm_bench_{os.getpid()}_{i}", create=True, size=MIB)
                path = f"/dev/shm/{ours.name}"
            else:
                path = f"/dev/shm/psm_bench_{os.getpid()}_{i}_stdlib"
                with open(path, "wb") as f:
                    f.write(bytes(MIB))
            command = [sys.executable, "-c", ATTACH, module, os.path.basename(path), str(rounds)]
            done = subprocess.run(command, capture_output=True, text=True)
            figures[key].append(float(done.stdout))
            if key == "copyless":
                done = subprocess.run([*command, "mapped anew"], capture_output=True, text=True)
                figures["copyless, mapped anew"].append(float(done.stdout))
                ours.close()
                ours.unlink()
            elif os.path.exists(path):
                os.unlink(path)
    return {key: statistics.median(values) for key, values in figures.items()}


def load(rounds: int) -> dict[str, float]:
    array = copyless.zeros(1000)
    handle = bytes(copyless.handle(array))
    message = bytes(ForkingPickler.dumps(array))
    loads = ForkingPickler.loads
    loads(message)
    figures = medians(
        rounds,
        attach_handle=timed(lambda: copyless.attach(handle), 500),
        load_message=timed(lambda: loads(message), 500),
        dump_and_load=timed(lambda: loads(ForkingPickler.dumps(array)), 200),
    )
    first = []
    for _ in range(5):
        code = "import sys, time, copyless, numpy; copyless.zeros(1); h = bytes.fromhex(sys.argv[1]); t = time.perf_counter(); copyless.attach(h); print(time.perf_counter() - t)"  # noqa: E501
        done = subprocess.run(
            [sys.executable, "-c", code, copyless.handle(array).hex()], capture_output=True, text=True
        )
        first.append(float(done.stdout))
    return {**figures, "first_use_in_a_process": statistics.median(first)}


def copies(rounds: int) -> dict[str, float]:
    """Copy into warm shared memory from more sources than caches hold: memcpy (by NumPy) and copyless."""
    calls: dict[str, Callable[[], float]] = {}
    for mib in (1, 16, 64, 128):
        sources = [np.ones(mib * MIB, "u1") for _ in range(max(2, 128 // mib))]
        target = copyless.zeros(mib * MIB, "u1")
        plain, turn = target.view(np.ndarray), iter(range(10**9))

        def theirs(t: Any = plain, s: Any = sources, turn: Any = turn) -> None:
            np.copyto(t, s[next(turn) % len(s)])

        def ours(t: Any = target, s: Any = sources, turn: Any = turn) -> None:
            copy_large(t, s[next(turn) % len(s)])

        calls |= {f"{mib} MiB, memcpy": timed(theirs, 128 // mib), f"{mib} MiB, copyless": timed(ours, 128 // mib)}
    return medians(rounds, **calls)


def echo(pipe: Any) -> None:
    while (item := pipe.recv()) is not None:
        pipe.send_bytes(b"x") if isinstance(item, np.ndarray) else pipe.send(item)


def send_1_gib(rounds: int) -> dict[str, float]:
    array = copyless.empty(1 << 30, "u1")
    small = {"frame": 1, "camera": "left", "time": 1.5}
    ours, theirs = mp.get_context("fork").Pipe()
    child = mp.get_context("fork").Process(target=echo, args=(theirs,))
    child.start()

    def dictionary() -> None:
        ours.send(small)
        ours.recv()

    def gibibyte() -> None:
        ours.send(array)
        ours.recv_bytes()

    figures = medians(rounds, array_1_gib=timed(gibibyte, 20), small_dict=timed(dictionary, 20))
    ours.send(None)
    child.join()
    return figures


def pss(pids: list[int]) -> int:
    total = 0
    for pid in pids:
        with open(f"/proc/{pid}/smaps_rollup") as f:
            total += next(int(line.split()[1]) * 1024 for line in f if line.startswith("Pss:"))
    return total


def read_all(pipe: Any) -> None:
    while (item := pipe.recv()) is not None:
        pipe.send(int(item[::4096].sum()) if isinstance(item, np.ndarray) else 0)


def eight_workers() -> dict[str, float]:
    """Sum of the PSS of eight workers that read one 1 GiB array, minus that of the same workers idle, in GiB."""
    context = mp.get_context("spawn")
    pairs = [context.Pipe() for _ in range(8)]
    workers = [context.Process(target=read_all, args=(theirs,)) for _, theirs in pairs]
    for worker in workers:
        worker.start()
    small = copyless.ones(10_000, "u1")
    for ours, _ in pairs:  # everything is imported and has been used once
        ours.send(small)
        ours.recv()
    array = copyless.ones(1 << 30, "u1")
    pids = [worker.pid for worker in workers if worker.pid]
    idle = pss(pids)
    for ours, _ in pairs:
        ours.send(array)
    for ours, _ in pairs:
        assert ours.recv() == (1 << 30) // 4096
    # The creator's mapping takes a ninth of every page: count it with the workers.
    busy = pss(pids) + (1 << 30) // 9
    for ours, _ in pairs:
        ours.send(None)
    for worker in workers:
        worker.join()
    return {"gib_above_idle": (busy - idle) / (1 << 30)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json")
    args = parser.parse_args()
    n, few = args.rounds, max(3, args.rounds // 4)
    jobs: dict[str, Callable[[], dict[str, float]]] = {
        "create + fill + free, 1 MiB, steady": lambda: steady(MIB, n * 4),
        "create + fill + free, 64 MiB, steady": lambda: steady(64 * MIB, n),
        "create + fill + free, 64 MiB, cold": lambda: cold(64 * MIB, n),
        "create + fill + free, 1 GiB, cold": lambda: cold(1 << 30, few),
        "zeros from recycled memory, 64 MiB": lambda: recycled_zeros(64 * MIB, n),
        "attach + close by name": lambda: attach(n),
        "load a handle": lambda: load(n),
        "1 GiB array through a Pipe, one byte back": lambda: send_1_gib(n),
        "eight workers on one 1 GiB array": eight_workers,
        "copying into warm shared memory": lambda: copies(n),
    }
    results: dict[str, dict[str, float]] = {}
    for title, job in track(list(jobs.items()), "measuring", console=Console(stderr=True)):
        results[title] = job()
        gc.collect()
        copyless.trim()
    r = list(results.values())
    stdlib_attach = r[5]["stdlib"]
    judged = [
        ("1 MiB steady / stdlib", r[0]["copyless"] / r[0]["stdlib"], 0.2),
        ("64 MiB steady / warm private array", r[1]["copyless"] / r[1]["private"], 1.5),
        ("64 MiB cold / stdlib", r[2]["copyless"] / r[2]["stdlib"], 1.0),
        ("1 GiB cold / stdlib", r[3]["copyless"] / r[3]["stdlib"], 1.0),
        ("attach + close / stdlib", r[5]["copyless"] / stdlib_attach, 0.4),
        ("load a handle / stdlib attach", r[6]["attach_handle"] / stdlib_attach, 0.1),
        ("1 GiB through a Pipe / small dict", r[7]["array_1_gib"] / r[7]["small_dict"], 1.5),
        ("PSS of eight workers above idle, GiB", r[8]["gib_above_idle"], 1.01),
        ("16 MiB copied in / memcpy", r[9]["16 MiB, copyless"] / r[9]["16 MiB, memcpy"], 1.0),
    ]
    console = Console()
    table = Table(
        "figure", "measured", "at most", title=f"{os.cpu_count()} processors, Python {sys.version.split()[0]}"
    )
    for title, value, limit in judged:
        table.add_row(title, f"{value:.3f}", f"{limit:g}", style="" if value <= limit else "red")
    console.print(table)
    details = Table("job", "what", "median")
    for title, figures in results.items():
        for what, value in figures.items():
            details.add_row(title, what, f"{value:.3f} GiB" if what.startswith("gib") else f"{value * 1e6:,.1f} us")
            title = ""
    console.print(details)
    if args.json:
        with open(args.json, "w") as f:
            json.dump({"results": results, "judged": judged}, f, indent=2)


if __name__ == "__main__":
    main()
