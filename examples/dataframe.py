"""A DataFrame of ten million rows. All workers sum it, and their memory does not grow."""

import argparse
import multiprocessing as mp
import os

import numpy as np
import pandas as pd
import psutil

import copyless


def total(job):
    frame, start, stop = job
    before = psutil.Process().memory_full_info().uss
    part = frame.iloc[start:stop]
    result = float((part["price"] * part["count"]).sum()), float(part["weight"].sum())
    return os.getpid(), result, psutil.Process().memory_full_info().uss - before


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    args = parser.parse_args()
    rng = np.random.default_rng(1)
    private = pd.DataFrame(
        {"price": rng.random(args.rows), "count": rng.integers(0, 9, args.rows), "weight": rng.random(args.rows)}
    )
    frame = copyless.share(private)  # one copy; the type is still pandas.DataFrame
    step = -(-args.rows // (args.workers * 8))
    jobs = [(frame, start, min(start + step, args.rows)) for start in range(0, args.rows, step)]
    with mp.get_context("spawn").Pool(args.workers) as pool:
        answers = pool.map(total, jobs, chunksize=1)
    price = sum(result[0] for _, result, _ in answers)
    assert np.isclose(price, float((private["price"] * private["count"]).sum()))
    size = int(private.memory_usage().sum())
    grown = max(growth for _, _, growth in answers)
    print(f"{args.rows:,} rows, {size / 2**20:.0f} MiB, in {len(jobs)} jobs: sum {price:.1f}")
    print(f"a worker's own memory grew by at most {grown / 2**20:.1f} MiB over a job")
    assert grown < size / 4, "the frame was copied"


if __name__ == "__main__":
    main()
