"""Collective operations on small objects: copyless on MPI against mpi4py's own lower-case methods, in turns in one run.

    python bench/collectives.py [-n RANKS] [--rounds N] [--json FILE]

Each operation is measured in two ways. *Loop*: the time of one call in a block of 200 calls, with a barrier around the
block only; ranks that need no answer (those that are not the root of a gather) run ahead. *Apart*: one call between two
barriers, from the first rank that begins to the last that ends. Blocks of ours and of mpi4py's take turns; the figures
are medians, and the ratio is the median of the ratios of neighbouring blocks. Both use the same barrier around: MPI's.

Last, the reduction of large arrays: ours on both transports, with four ranks also as two nodes, and MPI's `Allreduce`
and `Reduce`, in turns of whole programs. *Read*: each rank then reads all of its result.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

CALLS = 200
SMALL = {"step": 1, "name": "left", "time": 1.5}


def first(a: Any, b: Any) -> Any:
    """A reduction of dicts: an operation of the caller's own."""
    return a


def operations(c: Any) -> dict[str, Callable[[], Any]]:
    from mpi4py import MPI

    rank, size = c.Get_rank(), c.Get_size()
    many = [SMALL] * size
    return {
        "bcast": lambda: c.bcast(SMALL if rank == 0 else None),
        "gather": lambda: c.gather(SMALL),
        "scatter": lambda: c.scatter(many if rank == 0 else None),
        "allgather": lambda: c.allgather(SMALL),
        "alltoall": lambda: c.alltoall(many),
        "reduce": lambda: c.reduce(SMALL, first),
        "reduce of a number": lambda: c.reduce(rank, MPI.SUM),
        "allreduce": lambda: c.allreduce(SMALL, first),
        "allreduce of a number": lambda: c.allreduce(rank, MPI.SUM),
        "barrier": lambda: c.barrier(),
    }


def measure(rounds: int) -> dict[str, Any]:
    from mpi4py import MPI

    from copyless.comm import mpi

    world = MPI.COMM_WORLD
    ours, theirs = operations(mpi.Intracomm(world)), operations(world)
    clock, barrier = time.perf_counter, world.Barrier
    figures: dict[str, Any] = {}

    def loop(work: Callable[[], Any]) -> float:
        barrier()
        began = clock()
        for _ in range(CALLS):
            work()
        barrier()
        return (clock() - began) / CALLS

    def apart(work: Callable[[], Any]) -> float:
        began, ended = [], []
        for _ in range(CALLS // 4):
            barrier()
            began.append(clock())
            work()
            ended.append(clock())
        every = world.allgather((began, ended))
        starts = zip(*(begun for begun, _ in every), strict=True)
        ends = zip(*(done for _, done in every), strict=True)
        return statistics.median(max(e) - min(b) for b, e in zip(starts, ends, strict=True))

    for name in ours:
        for how, of in (("loop", loop), ("apart", apart)):
            pair = ours[name], theirs[name]
            for work in pair:
                of(work)
            taken = [[of(work) for work in (pair if i % 2 == 0 else pair[::-1])][:: 1 if i % 2 == 0 else -1]
                     for i in range(rounds)]  # fmt: skip
            figures[f"{name}|{how}"] = (
                statistics.median(mine for mine, _ in taken),
                statistics.median(other for _, other in taken),
                statistics.median(mine / other for mine, other in taken),
            )
    return figures if world.Get_rank() == 0 else {}


def measure_large() -> dict[str, float]:
    import numpy as np

    from copyless import comm

    world = comm.world()
    figures = {}
    for mib in (0.25, 1, 4, 16):
        array = np.ones(int(mib * (1 << 17)))
        into = np.empty_like(array)
        works: dict[str, Callable[[], Any]] = {
            "allreduce": lambda array=array: world.allreduce(array),
            "allreduce, read": lambda array=array: world.allreduce(array).sum(),
            "reduce": lambda array=array: world.reduce(array),
        }
        name = "copyless, local"
        if type(world).__module__.endswith("mpi"):
            from mpi4py import MPI

            name = "copyless, 2 nodes" if os.environ.get("COPYLESS_NODES") == "2" else "copyless, MPI"
            works |= {
                "allreduce|Allreduce": lambda a=array, b=into: MPI.COMM_WORLD.Allreduce(a, b),
                "allreduce, read|Allreduce": lambda a=array, b=into: (MPI.COMM_WORLD.Allreduce(a, b), b.sum()),
                "reduce|Reduce": lambda a=array, b=into: MPI.COMM_WORLD.Reduce(a, b),
            }
        taken: dict[str, list[float]] = {key: [] for key in works}
        for _ in range(10):
            for key, work in works.items():
                world.barrier()
                began = time.perf_counter()
                for _ in range(3):
                    work()
                world.barrier()
                taken[key].append((time.perf_counter() - began) / 3)
        for key, times in taken.items():
            what, _, peer = key.partition("|")
            figures[f"{what} of {mib} MiB|{peer or name}"] = statistics.median(times[2:])
    return figures if world.Get_rank() == 0 else {}


def ranks(n: int, where: str, *args: str) -> Any:
    """What rank 0 of so many prints. `where`: "local", "MPI" or "2 nodes" of MPI."""
    here = os.path.dirname(sys.executable)
    local = where == "local"
    launch = [os.path.join(here, "copyless"), "run", "--no-prefix"] if local else [os.path.join(here, "mpiexec")]
    python = [] if local else [sys.executable]
    done = subprocess.run(
        [*launch, "-n", str(n), *python, os.path.abspath(__file__), *args],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={**os.environ, "COPYLESS_NODES": "2" if where == "2 nodes" else "1"},
    )
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", type=int, action="append", help="ranks; by default 2 and 4")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--rank", choices=["small", "large"], help=argparse.SUPPRESS)
    parser.add_argument("--json")
    args = parser.parse_args()
    if args.rank:
        figures = measure(args.rounds) if args.rank == "small" else measure_large()
        if figures:
            print(json.dumps(figures), flush=True)
        return
    results: dict[str, Any] = {}
    for n in args.n or [2, 4]:
        results[f"{n} ranks"] = figures = ranks(n, "MPI", "--rank", "small", "--rounds", str(args.rounds))
        print(f"{n} ranks on {os.cpu_count()} processors: us of ours, of mpi4py's, ratio")
        for key, (mine, theirs, ratio) in figures.items():
            print(f"  {key.replace('|', ', '):28} {mine * 1e6:8.1f} {theirs * 1e6:8.1f} {ratio:6.2f}")
        places = ["local", "MPI", "2 nodes"] if n >= 4 else ["local", "MPI"]
        turns = [ranks(n, where, "--rank", "large") for _ in range(3) for where in places]
        large = {
            key: statistics.median(turn[key] for turn in turns if key in turn)
            for turn in turns[: len(places)]
            for key in turn
        }
        results[f"{n} ranks, large"] = large
        print(f"{n} ranks: ms")
        for key in sorted(large):
            what, who = key.split("|")
            print(f"  {what:28} {who:16} {large[key] * 1e3:8.2f}")
    if args.json:
        with open(args.json, "w") as file:
            json.dump(results, file, indent=2)


if __name__ == "__main__":
    main()
