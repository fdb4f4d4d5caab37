"""The communicator against its peers: every figure in one run, on 2 and on 4 ranks of this host.

    python bench/comm.py [--rounds N] [--json FILE]

Peers: mpi4py's plain objects, `mpi4py.util.pkl5`, raw `Send`/`Recv`; copyless on MPI and on shared memory. The script
starts itself as ranks, under mpiexec and `copyless run`. Times are those of rank 0, medians of interleaved rounds.
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

import numpy as np

MIB = 1 << 20
SMALL = {"step": 1, "name": "left", "time": 1.5}


# ---- in a rank


def measure(rounds: int) -> dict[str, float]:
    from copyless import comm

    ours = comm.world()
    rank, size = ours.rank, ours.size
    peers: dict[str, Any] = {}
    if type(ours).__module__.endswith("mpi"):
        from mpi4py import MPI
        from mpi4py.util import pkl5

        peers["plain"] = MPI.COMM_WORLD
        peers["pkl5"] = pkl5.Intracomm(MPI.COMM_WORLD)
        peers["copyless"] = ours
    else:
        peers["copyless"] = ours
    figures: dict[str, float] = {}

    def timed(name: str, works: dict[str, Callable[[], Any]], times: int) -> None:
        taken: dict[str, list[float]] = {key: [] for key in works}
        for work in works.values():
            work()
        for _ in range(rounds):
            for key, work in works.items():
                ours.barrier()
                began = time.perf_counter()
                for _ in range(times):
                    work()
                taken[key].append((time.perf_counter() - began) / times)
        for key, seconds in taken.items():
            figures[f"{name}|{key}"] = statistics.median(seconds)

    def there_and_back(c: Any, obj: Any, answer: Any = None) -> Callable[[], None]:
        def run() -> None:
            if rank == 0:
                c.send(obj, 1, 1)
                c.recv(None, 1, 1)
            elif rank == 1:
                c.recv(None, 0, 1)
                c.send(obj if answer is None else answer, 0, 1)

        return run

    timed("small dict, round trip", {key: there_and_back(c, SMALL) for key, c in peers.items()}, 300)
    for mib in (1, 16, 128):
        array = np.ones(mib * MIB, "u1")
        works = {key: there_and_back(c, array, 0) for key, c in peers.items()}
        if "plain" in peers:
            raw, into = peers["plain"], np.empty_like(array)

            def send_raw(raw: Any = raw, array: Any = array, into: Any = into) -> None:
                if rank == 0:
                    raw.Send(array, 1, 1)
                    raw.recv(None, 1, 1)
                elif rank == 1:
                    raw.Recv(into, 0, 1)
                    raw.send(0, 0, 1)

            works["raw Send/Recv"] = send_raw
        if rank == 0:
            target = np.empty_like(array)
            sources = [array] + [
                np.ones_like(array) for _ in range(max(0, 256 // mib - 1))
            ]  # more than the cache holds
            turn = iter(range(10**9))
            works["memcpy"] = lambda target=target, s=sources, turn=turn: np.copyto(target, s[next(turn) % len(s)])
        else:
            works["memcpy"] = lambda: None
        timed(f"array of {mib} MiB, and a number back", works, max(1, 32 // mib))
    many = {str(i): np.ones(65536, "u1") for i in range(100)}
    timed("dict of 100 arrays of 64 KiB", {key: there_and_back(c, many, 0) for key, c in peers.items()}, 4)
    big = np.ones(64 * MIB, "u1")

    def bcast(c: Any, **more: Any) -> Callable[[], None]:
        def run() -> None:
            got = c.bcast(big if rank == 0 else None, 0, **more)
            got[::4096].sum()
            del got
            c.gather(0)

        return run

    works = {key: bcast(c) for key, c in peers.items()}
    works["copyless, readonly=True"] = bcast(ours, readonly=True)
    if rank == 0:
        into = np.empty_like(big)
        works["memcpy"] = lambda: np.copyto(into, big)
    else:
        works["memcpy"] = lambda: None
    timed("bcast of 64 MiB, one byte a page read", works, 2)
    part = np.ones(MIB, "u1")
    timed("gather of 1 MiB each", {key: lambda c=c: (c.gather(part), c.barrier()) for key, c in peers.items()}, 8)
    timed("alltoall of 1 MiB each", {key: lambda c=c: c.alltoall([part] * size) for key, c in peers.items()}, 8)
    return figures if rank == 0 else {}


# ---- in the process that starts them


def start(n: int, mpi: bool, rounds: int) -> dict[str, float]:
    here = os.path.dirname(sys.executable)
    launch = (
        [os.path.join(here, "mpiexec"), "-n", str(n), sys.executable]
        if mpi
        else [os.path.join(here, "copyless"), "run", "--no-prefix", "-n", str(n)]
    )
    done = subprocess.run(
        [*launch, os.path.abspath(__file__), "--rank", "--rounds", str(rounds)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))  # type: ignore[no-any-return]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--rank", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--json")
    args = parser.parse_args()
    if args.rank:
        figures = measure(args.rounds)
        if figures:
            print(json.dumps(figures), flush=True)
        return
    from rich.console import Console
    from rich.table import Table

    results: dict[int, dict[str, float]] = {}
    for n in (2, 4):
        print(f"measuring {n} ranks", file=sys.stderr)
        results[n] = start(n, True, args.rounds)
        results[n] |= {
            f"{key}, local": value for key, value in start(n, False, args.rounds).items() if "memcpy" not in key
        }
    console = Console(width=120)
    r = results[2]
    small, plain, pkl5 = (r[f"small dict, round trip|{key}"] / 2 for key in ("copyless", "plain", "pkl5"))
    local = r["small dict, round trip|copyless, local"] / 2
    judged = [
        ("small dict on MPI / plain", small / plain, 1.5),
        ("small dict on MPI / pkl5", small / pkl5, 1 / 4),
        ("small dict local / plain", local / plain, 1 / 2),
    ]
    for where, latency in (("copyless", small), ("copyless, local", local)):
        name = "local" if "local" in where else "MPI"
        for mib in (1, 16, 128):
            job = f"array of {mib} MiB, and a number back"
            judged.append(
                (
                    f"{mib} MiB, {name} / (memcpy + latency)",
                    r[f"{job}|{where}"] / (r[f"{job}|memcpy"] + 2 * latency),
                    1.2,
                )
            )
        job = "dict of 100 arrays of 64 KiB"
        judged.append((f"100 arrays, {name} / pkl5", r[f"{job}|{where}"] / r[f"{job}|pkl5"], 1 / 3))
        f = results[4]
        job = "bcast of 64 MiB, one byte a page read"
        judged.append((f"bcast to 4, {name} / memcpy", f[f"{job}|{where}"] / f[f"{job}|memcpy"], 2.5))
        readonly = "copyless, readonly=True" + (", local" if name == "local" else "")
        judged.append((f"bcast to 4, {name}, readonly / memcpy", f[f"{job}|{readonly}"] / f[f"{job}|memcpy"], 1.5))
        for what in ("gather", "alltoall"):
            for n in (2, 4):
                f = results[n]
                judged.append(
                    (
                        f"{what} on {n}, {name} / pkl5",
                        f[f"{what} of 1 MiB each|{where}"] / f[f"{what} of 1 MiB each|pkl5"],
                        1 / 2,
                    )
                )
    table = Table(
        "figure", "measured", "at most", title=f"{os.cpu_count()} processors, Python {sys.version.split()[0]}"
    )
    for title, value, limit in judged:
        table.add_row(title, f"{value:.3f}", f"{limit:.3g}", style="" if value <= limit else "red")
    console.print(table)
    details = Table("ranks", "job", "what", "median")
    for n, figures in results.items():
        for key in sorted(figures):
            job, what = key.split("|")
            details.add_row(str(n), job, what, f"{figures[key] * 1e6:,.1f} us")
    console.print(details)
    if args.json:
        with open(args.json, "w") as file:
            json.dump({"results": results, "judged": judged}, file, indent=2)


if __name__ == "__main__":
    main()
