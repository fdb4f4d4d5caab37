"""Shared objects against multiprocessing and joblib: every figure in one run, medians of interleaved rounds.

    python bench/parity.py [--rounds N] [--only WORD] [--rows N] [--json FILE]

Lists, values, managers, pools, joblib with scikit-learn, and a DataFrame of ten million rows.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import multiprocessing as mp
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing import managers as std_managers
from multiprocessing import shared_memory as std_shared_memory
from typing import Any

import joblib
import numpy as np
import pandas as pd
from blocks import medians, pss, timed
from rich.console import Console
from rich.table import Table

import copyless
import copyless.joblib  # registers the backend

MIB = 1 << 20
CONTEXT = mp.get_context("fork")


# ---- lists and values


def lists(rounds: int) -> dict[str, float]:
    ours = copyless.ShareableList([1, 2.5, "text", None])
    theirs = std_shared_memory.ShareableList([1, 2.5, "text", None])

    def get(items: Any) -> Callable[[], float]:
        def run() -> None:
            items[0], items[1], items[2], items[3]

        return timed(run, 500)

    def put(items: Any) -> Callable[[], float]:
        def run() -> None:
            items[0], items[1], items[2], items[3] = 7, 1.5, "word", None

        return timed(run, 500)

    figures = medians(
        rounds,
        **{
            "get, copyless": get(ours),
            "get, stdlib": get(theirs),
            "set, copyless": put(ours),
            "set, stdlib": put(theirs),
        },
    )
    ours.shm.close()
    theirs.shm.close()
    theirs.shm.unlink()
    return {name: seconds / 4 for name, seconds in figures.items()}


def values(rounds: int) -> dict[str, float]:
    def add(value: Any) -> Callable[[], float]:
        def run() -> None:
            with value.get_lock():
                value.value += 1

        return timed(run, 2000)

    ours = copyless.Value("i", 0)

    def thread_lock() -> Callable[[], float]:
        lock, box = threading.RLock(), [0]

        def run() -> None:
            with lock:
                box[0] += 1

        return timed(run, 2000)

    return medians(
        rounds,
        **{
            "with get_lock(), copyless": add(ours),
            "with get_lock(), stdlib": add(mp.Value("i", 0)),
            "value.add(1), copyless": timed(lambda: ours.add(1), 2000),
            "a list under threading.RLock": thread_lock(),
        },
    )


# ---- managers


def managed_blocks(rounds: int) -> dict[str, float]:
    with copyless.SharedMemoryManager(ctx=CONTEXT) as ours, std_managers.SharedMemoryManager(ctx=CONTEXT) as theirs:

        def block(manager: Any) -> Callable[[], float]:
            def run() -> None:
                shm = manager.SharedMemory(MIB)
                shm.close()
                shm.unlink()

            return timed(run, 20)

        def array() -> None:
            a = ours.array(MIB, "u1", zeroed=False)
            ours.release(a)

        return medians(
            rounds,
            **{
                "SharedMemory, copyless": block(ours),
                "SharedMemory, stdlib": block(theirs),
                "array, copyless": timed(array, 50),
            },
        )


class OursManager(copyless.BaseManager):
    pass


class TheirsManager(std_managers.BaseManager):
    pass


class Service:
    def add(self, a: int, b: int) -> int:
        return a + b


OursManager.register("Service", Service)
TheirsManager.register("Service", Service)


def manager_calls(rounds: int) -> dict[str, float]:
    with OursManager(ctx=CONTEXT) as ours, TheirsManager(ctx=CONTEXT) as theirs:
        here, there = ours.Service(), theirs.Service()  # type: ignore[attr-defined]
        return medians(rounds, copyless=timed(lambda: here.add(1, 2), 300), stdlib=timed(lambda: there.add(1, 2), 300))


def _call_for(service: Any, seconds: float, pause: float, told: Any) -> None:
    times, end = [], time.perf_counter() + seconds
    service.add(1, 2)
    while (begun := time.perf_counter()) < end:
        service.add(1, 2)
        times.append(time.perf_counter() - begun)
        if pause:
            time.sleep(pause)
    told.put(times)


def manager_load(rounds: int) -> dict[str, float]:
    """The 99th percentile of a call while this many processes call: one call after the other, or 1,000 a second each.

    Without a pause copyless answers about ten times as many calls; with one both have the same load.
    """

    def slow(service: Any, clients: int, pause: float) -> float:
        told = CONTEXT.SimpleQueue()
        crowd = [CONTEXT.Process(target=_call_for, args=(service, 0.3, pause, told)) for _ in range(clients)]
        for one in crowd:
            one.start()
        times = sorted(seconds for _ in crowd for seconds in told.get())
        for one in crowd:
            one.join()
        return times[int(len(times) * 0.99)]

    figures: dict[str, list[float]] = {}
    with OursManager(ctx=CONTEXT) as ours, TheirsManager(ctx=CONTEXT) as theirs:
        pair = {"copyless": ours.Service(), "stdlib": theirs.Service()}  # type: ignore[attr-defined]
        for _ in range(rounds):
            for clients in (2, 4, 8):
                for pause, how in (0.0, ""), (0.001, " that pause"):
                    for name, service in pair.items():
                        title = f"p99, {clients} clients{how}, {name}"
                        figures.setdefault(title, []).append(slow(service, clients, pause))
    return {name: statistics.median(times) for name, times in figures.items()}


# ---- pools


def nothing(_: Any) -> None:
    pass


def length(array: Any) -> int:
    return len(array)


def pools(rounds: int) -> dict[str, float]:
    array = np.ones(16 * MIB, "u1")
    with copyless.Pool(2, context=CONTEXT) as ours, CONTEXT.Pool(2) as theirs:
        return medians(
            rounds,
            **{
                "1000 no-ops, copyless": timed(lambda: ours.map(nothing, range(1000))),
                "1000 no-ops, copyless, chunksize=1": timed(lambda: ours.map(nothing, range(1000), chunksize=1)),
                "1000 no-ops, stdlib, chunksize=1": timed(lambda: theirs.map(nothing, range(1000), chunksize=1)),
                "16 MiB argument, copyless": timed(lambda: ours.apply(length, (array,)), 3),
                "16 MiB argument, stdlib": timed(lambda: theirs.apply(length, (array,)), 3),
            },
        )


def by_joblib(rounds: int) -> dict[str, float]:
    """The same by joblib. The time of its own dispatch, by threads, is the lower bound."""
    array = np.ones(16 * MIB, "u1")
    backends = {"loky": "loky", "copyless": "copyless", "threads": "threading"}
    with contextlib.ExitStack() as stack:
        parallels = {
            (name, batch): stack.enter_context(joblib.Parallel(2, backend=backend, batch_size=batch))
            for name, backend in backends.items()
            for batch in (1, "auto")
        }
        calls = [joblib.delayed(nothing)(i) for i in range(1000)]
        big = [joblib.delayed(length)(array)]

        def run(parallel: Any, what: Any) -> Callable[[], float]:
            parallel(what)
            return timed(lambda: parallel(what))

        return medians(
            rounds,
            **{f"1000 no-ops, one by one, {name}": run(parallels[name, 1], calls) for name in backends},
            **{f"1000 no-ops, {name}": run(parallels[name, "auto"], calls) for name in backends},
            **{f"16 MiB argument, {name}": run(parallels[name, "auto"], big) for name in backends},
        )


# ---- scikit-learn


def learning_jobs() -> dict[str, Callable[[], Any]]:
    """Jobs of scikit-learn; each returns what two runs must have in common."""
    from sklearn.cluster import KMeans
    from sklearn.datasets import make_classification
    from sklearn.ensemble import BaggingClassifier, RandomForestClassifier, StackingClassifier
    from sklearn.experimental import enable_halving_search_cv  # noqa: F401
    from sklearn.inspection import permutation_importance
    from sklearn.linear_model import LogisticRegression, SGDClassifier
    from sklearn.metrics import pairwise_distances
    from sklearn.model_selection import GridSearchCV, HalvingGridSearchCV, cross_val_score, learning_curve
    from sklearn.multiclass import OneVsRestClassifier
    from sklearn.tree import DecisionTreeClassifier

    wide = make_classification(60_000, 60, n_informative=20, n_classes=4, random_state=0)
    X, y = (part[:12_000] for part in wide)
    tree = DecisionTreeClassifier(max_depth=8, random_state=0)
    forest = RandomForestClassifier(30, max_depth=10, n_jobs=2, random_state=0)
    fitted = RandomForestClassifier(10, max_depth=6, random_state=0).fit(X, y)
    plain = LogisticRegression(tol=0.01)
    line = SGDClassifier(random_state=0)
    return {
        "cross_val_score, 60,000 x 60": lambda: cross_val_score(LogisticRegression(tol=0.03), *wide, cv=4, n_jobs=2),
        "GridSearchCV": lambda: GridSearchCV(tree, {"max_depth": [4, 6, 8, 10]}, cv=3, n_jobs=2).fit(X, y).cv_results_["mean_test_score"],  # noqa: E501
        "RandomForest": lambda: [one.tree_.threshold.sum() for one in forest.fit(X, y).estimators_],
        "BaggingClassifier": lambda: BaggingClassifier(tree, 16, n_jobs=2, random_state=0).fit(X, y).predict_proba(X[:100]),  # noqa: E501
        "permutation_importance": lambda: permutation_importance(
            fitted, X, y, n_repeats=2, n_jobs=2, random_state=0
        ).importances_mean,
        "learning_curve": lambda: learning_curve(tree, X, y, train_sizes=[0.3, 0.6, 1.0], cv=4, n_jobs=2)[2],
        "KMeans in cross validation": lambda: cross_val_score(KMeans(8, n_init=2, random_state=0), X, cv=4, n_jobs=2),
        "pairwise_distances": lambda: pairwise_distances(X[:5000], metric="manhattan", n_jobs=2).sum(axis=1),
        "OneVsRest": lambda: OneVsRestClassifier(plain, n_jobs=2).fit(X, y).decision_function(X[:100]),
        "StackingClassifier": lambda: StackingClassifier(
            [("tree", tree), ("line", line), ("forest", RandomForestClassifier(8, max_depth=6, random_state=0))], plain, cv=3, n_jobs=2  # noqa: E501
        ).fit(X, y).predict_proba(X[:100]),
        "HalvingGridSearchCV": lambda: HalvingGridSearchCV(
            tree, {"max_depth": [3, 5, 7, 9], "min_samples_leaf": [1, 5]}, cv=3, n_jobs=2, random_state=0
        ).fit(X, y).cv_results_["mean_test_score"],
    }  # fmt: skip


def learning(rounds: int) -> dict[str, float]:
    """Each with workers that start anew, inside the measured time; the results have to be the same."""
    from joblib.externals.loky import get_reusable_executor

    figures: dict[str, list[float]] = {}
    for job, run in learning_jobs().items():
        with joblib.parallel_config("threading"):
            run()  # whatever this process does only once
        found: list[Any] = []
        for i in range(rounds):
            for backend in ("loky", "copyless")[:: 1 if i % 2 else -1]:
                get_reusable_executor().shutdown(wait=True)
                copyless.joblib.shutdown()
                with joblib.parallel_config(backend):
                    began = time.perf_counter()
                    found.append(run())
                    figures.setdefault(f"{job}, {backend}", []).append(time.perf_counter() - began)
        if not all(np.array_equal(found[0], one) for one in found):
            raise AssertionError(f"{job} does not find the same by both")
    get_reusable_executor().shutdown(wait=True)
    copyless.joblib.shutdown()
    return {name: statistics.median(times) for name, times in figures.items()}


def tiny_tasks(rounds: int) -> dict[str, float]:
    """200,000 empty tasks, by each method that takes many at a time."""
    tasks = range(200_000)
    with copyless.Pool(2, context=CONTEXT) as ours, CONTEXT.Pool(2) as theirs:
        return medians(
            rounds,
            **{
                f"{how}, {whose}": timed(run(pool))
                for how, run in {
                    "map": lambda pool: lambda: pool.map(nothing, tasks),
                    "imap, chunksize=100": lambda pool: lambda: list(pool.imap(nothing, tasks, 100)),
                    "imap_unordered, chunksize=100": lambda pool: (
                        lambda: list(pool.imap_unordered(nothing, tasks, 100))
                    ),
                }.items()
                for whose, pool in {"copyless": ours, "stdlib": theirs}.items()
            },
        )


def pool_start(rounds: int) -> dict[str, float]:
    def start(make: Any) -> Callable[[], float]:
        def run() -> float:
            began = time.perf_counter()
            pool = make(2)
            pool.apply(nothing, (0,))
            seconds = time.perf_counter() - began
            pool.close()
            pool.join()
            return seconds

        return run

    spawn = mp.get_context("spawn")
    figures = medians(
        rounds,
        **{
            "fork, copyless": start(lambda n: copyless.Pool(n, context=CONTEXT)),
            "fork, stdlib": start(CONTEXT.Pool),
        },
    )
    return figures | medians(
        max(3, rounds // 3),
        **{"spawn, copyless": start(lambda n: copyless.Pool(n, context=spawn)), "spawn, stdlib": start(spawn.Pool)},
    )


# ---- a DataFrame


def look(frame: Any) -> float:
    """Read every page of it."""
    return float(sum(frame[name].to_numpy()[::512].sum() for name in frame.columns))


def serve(pipe: Any) -> None:
    pipe.send(None)
    while (frame := pipe.recv()) is not None:
        pipe.send(look(frame))


def frames(rounds: int, rows: int) -> dict[str, float]:
    rng = np.random.default_rng(1)
    private = pd.DataFrame({"price": rng.random(rows), "count": rng.integers(0, 9, rows), "weight": rng.random(rows)})
    size = int(private.memory_usage(index=False).sum())
    pairs = [CONTEXT.Pipe() for _ in range(4)]
    workers = [mp.get_context("spawn").Process(target=serve, args=(there,)) for _, there in pairs]
    for worker in workers:
        worker.start()
    for here, _ in pairs:
        here.recv()

    def to_all(frame: Any) -> float:
        began = time.perf_counter()
        for here, _ in pairs:
            here.send(frame)
        answers = {here.recv() for here, _ in pairs}
        assert len(answers) == 1
        return time.perf_counter() - began

    def first_time() -> float:
        began = time.perf_counter()
        frame = copyless.share(private)
        return time.perf_counter() - began + to_all(frame)

    to_all(copyless.share(private.head(1000)))  # everything is imported
    pids = [worker.pid for worker in workers if worker.pid]
    idle = pss(pids)
    shared = copyless.share(private)
    figures = {"shared, from then on": statistics.median(to_all(shared) for _ in range(rounds))}
    gc.collect()
    # Our own mapping takes a fifth of every page: count it with the workers.
    figures["PSS of 4 workers above idle / frame"] = (pss(pids) - idle) / size * 5 / 4
    figures["share() and send"] = statistics.median(first_time() for _ in range(3))
    figures["pickled"] = statistics.median(to_all(private) for _ in range(2))
    for here, _ in pairs:
        here.send(None)
    for worker in workers:
        worker.join()
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--only", default="")
    parser.add_argument("--json")
    args = parser.parse_args()
    jobs: dict[str, Callable[[int], dict[str, float]]] = {
        "ShareableList, an element": lists,
        "Value, locked += 1": values,
        "SharedMemoryManager, 1 MiB": managed_blocks,
        "a manager's call and its answer": manager_calls,
        "Pool(2)": pools,
        "Pool(2), start and first result": pool_start,
        "DataFrame to 4 workers, every page read": lambda rounds: frames(rounds, args.rows),
        "a manager's call under load": manager_load,
        "Pool(2), 200,000 no-ops": tiny_tasks,
        "joblib, two jobs": by_joblib,
        "scikit-learn, two jobs, start included": learning,
    }
    results: dict[str, dict[str, float]] = {}
    for title, job in jobs.items():
        if args.only in title:
            print(f"measuring {title}", file=sys.stderr)
            results[title] = job(args.rounds)
            gc.collect()
            copyless.trim()
    flat = {f"{title}: {what}": value for title, figures in results.items() for what, value in figures.items()}
    names = list(jobs)

    def ratio(job: int, above: str, below: str) -> float:
        return flat.get(f"{names[job]}: {above}", float("nan")) / flat.get(f"{names[job]}: {below}", float("nan"))

    def above_floor(what: str) -> float:
        """The ratio of copyless to loky, each minus the time of joblib's own dispatch."""
        floor, ours, theirs = (
            flat.get(f"{names[9]}: {what}, {who}", float("nan")) for who in ("threads", "copyless", "loky")
        )
        return max(ours - floor, 0.0) / max(theirs - floor, 1e-9)

    jobs_learned = {name.rpartition(", ")[0] for name in results.get(names[10], {})}
    learned = sorted((ratio(10, f"{job}, copyless", f"{job}, loky") for job in jobs_learned), reverse=True)
    judged = [
        ("ShareableList get / stdlib", ratio(0, "get, copyless", "get, stdlib"), 1 / 10),
        ("ShareableList set / stdlib", ratio(0, "set, copyless", "set, stdlib"), 1 / 10),
        ("Value locked += 1, add(1) / stdlib", ratio(1, "value.add(1), copyless", "with get_lock(), stdlib"), 1 / 4),
        ("Value locked += 1, same code / stdlib", ratio(1, "with get_lock(), copyless", "with get_lock(), stdlib"), 1 / 4),  # noqa: E501
        ("managed SharedMemory / stdlib", ratio(2, "SharedMemory, copyless", "SharedMemory, stdlib"), 1 / 5),
        ("manager.array / stdlib's SharedMemory", ratio(2, "array, copyless", "SharedMemory, stdlib"), 1 / 50),
        ("manager call / stdlib", ratio(3, "copyless", "stdlib"), 1 / 10),
        ("Pool, 1000 no-ops / stdlib, chunksize 1", ratio(4, "1000 no-ops, copyless", "1000 no-ops, stdlib, chunksize=1"), 1 / 10),  # noqa: E501
        ("Pool, 16 MiB argument / stdlib", ratio(4, "16 MiB argument, copyless", "16 MiB argument, stdlib"), 1 / 10),
        *(
            (f"Pool, 200,000 no-ops, {how} / stdlib", ratio(8, f"{how}, copyless", f"{how}, stdlib"), 1.0)
            for how in ("map", "imap, chunksize=100", "imap_unordered, chunksize=100")
        ),
        ("Pool start, fork / stdlib", ratio(5, "fork, copyless", "fork, stdlib"), 1.0),
        ("Pool start, spawn / stdlib", ratio(5, "spawn, copyless", "spawn, stdlib"), 1.0),
        ("DataFrame, share() and send / pickling", ratio(6, "share() and send", "pickled"), 1 / 5),
        *(
            (
                f"manager call under load, p99, {n} clients{how} / stdlib",
                ratio(7, f"p99, {n} clients{how}, copyless", f"p99, {n} clients{how}, stdlib"),
                1.0,
            )
            for n in (2, 4, 8)
            for how in ("", " that pause")
        ),
        ("joblib, 16 MiB argument / loky", ratio(9, "16 MiB argument, copyless", "16 MiB argument, loky"), 1 / 3),
        ("joblib, 1000 no-ops one by one, above the floor / loky", above_floor("1000 no-ops, one by one"), 1 / 2),
        ("joblib, 1000 no-ops / loky", ratio(9, "1000 no-ops, copyless", "1000 no-ops, loky"), 1.0),
        *((f"scikit-learn, the slowest job but {i} / loky", value, limit) for i, (value, limit) in enumerate(zip(learned, (1.25, 1.1)))),  # noqa: B905, E501
        ("DataFrame, PSS of 4 workers / frame", flat.get(f"{names[6]}: PSS of 4 workers above idle / frame", float("nan")), 1.05),  # noqa: E501
    ]  # fmt: skip
    console = Console()
    table = Table(
        "figure", "measured", "at most", title=f"{os.cpu_count()} processors, Python {sys.version.split()[0]}"
    )
    for title, value, limit in judged:
        if value == value:
            table.add_row(title, f"{value:.3f}", f"{limit:g}", style="" if value <= limit else "red")
    console.print(table)
    details = Table("job", "what", "median")
    for title, figures in results.items():
        for what, value in figures.items():
            details.add_row(title, what, f"{value:.3f}" if "PSS" in what else f"{value * 1e6:,.2f} us")
            title = ""
    console.print(details)
    if args.json:
        with open(args.json, "w") as f:
            json.dump({"results": results, "judged": judged}, f, indent=2)


if __name__ == "__main__":
    main()
