"""Draw some of the figures of docs/benchmarks.md for the README, as an SVG that is readable on light and dark pages.

    python bench/picture.py [--out docs/pictures/benchmarks.svg]

It measures nothing: it reads the tables of that page. Draw the picture again when they change; a test compares the two.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "benchmarks.md"
OUT = ROOT / "docs" / "pictures" / "benchmarks.svg"


class Bar(NamedTuple):
    """A job, and the rows of the page's tables that have its figures."""

    words: str
    job: str  # the beginning of the row's first cell
    ours: str  # the second cell of our row
    peer: str  # and of the row of the standard library
    figure: str = ""  # the row with their ratio, if the times themselves have too few digits


# Not only the best ones: shared memory cannot help in the last two.
BARS = (
    Bar("Queue, small dict there and back", "round trip of a small dict,", "copyless", "Queue"),
    Bar("Queue, 64 MiB array", "64 MiB array by value, every", "copyless", "Queue"),
    Bar("Pool, 16 MiB argument", "Pool(2)", "16 MiB argument, copyless", "16 MiB argument, stdlib"),
    Bar("DataFrame, 10 million rows", "DataFrame to 4 workers,", "share() and send", "pickled"),
    Bar("Pool, 1,000 tasks, chunksize=1", "Pool(2)", "1000 no-ops, copyless, chunksize=1",
        "1000 no-ops, stdlib, chunksize=1"),
    Bar("Pool, start with spawn", "Pool(2), start and first", "spawn, copyless", "spawn, stdlib"),
    Bar("Lock, nobody else wants it", "lock and unlock", "copyless, uncontended", "stdlib, uncontended",
        "lock alone / stdlib"),
)  # fmt: skip

UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
ROW, TOP, LEFT, WIDTH = 34, 74, 256, 270  # WIDTH: the standard library's time
STYLE = """
    .panel { fill: #ffffff; stroke: #d0d7de }
    .word { fill: #1f2328 }
    .small { fill: #57606a; font-size: 12px }
    .all { fill: #eaeef2 }
    .ours { fill: #1a7f37 }
    .edge { stroke: #57606a; stroke-dasharray: 3 3 }
    @media (prefers-color-scheme: dark) {
      .panel { fill: #0d1117; stroke: #30363d }
      .word { fill: #e6edf3 }
      .small { fill: #9198a1 }
      .all { fill: #21262d }
      .ours { fill: #3fb950 }
      .edge { stroke: #9198a1 }
    }
"""


def rows_of(page: str) -> list[tuple[str, str, float]]:
    """(job, what, seconds) of each row of time in the page's boxed tables. A cell that continues below is joined."""
    rows: list[tuple[str, str, float]] = []
    job = what = ""
    time: float | None = None

    def end() -> None:
        if time is not None:
            rows.append((job, what, time))

    for line in page.splitlines():
        if not line.startswith("│"):
            end()
            job, what, time = "", "", None
            continue
        cells = [cell.strip() for cell in line.strip("│").split("│")]
        if len(cells) != 3:
            continue
        value = re.fullmatch(r"([\d,.]+) (us|ms|s)", cells[2])
        if cells[2]:
            end()
            time = float(value[1].replace(",", "")) * UNITS[value[2]] if value else None
            if cells[0]:
                job = cells[0]
            what = cells[1]
        else:
            what = f"{what} {cells[1]}".strip()
    end()
    return rows


def measured(page: str, bar: Bar) -> tuple[float, str]:
    """Our time as a share of the standard library's, and in words."""
    rows = rows_of(page)

    def one(what: str) -> float:
        found = [seconds for job, name, seconds in rows if job.startswith(bar.job) and name == what]
        if len(found) != 1:
            raise SystemExit(f"{PAGE.name} has {len(found)} rows for {bar.job!r}, {what!r}: expected 1")
        return found[0]

    ours, peer = one(bar.ours), one(bar.peer)
    if not bar.figure:
        return ours / peer, f"{in_words(ours)}, not {in_words(peer)}"
    ratio = re.search(rf"^│ {re.escape(bar.figure)} +│ ([\d.]+) ", page, flags=re.M)
    if ratio is None:
        raise SystemExit(f"{PAGE.name} has no row {bar.figure!r}")
    return float(ratio[1]), f"{float(ratio[1]):.2f} of the time"


def in_words(seconds: float) -> str:
    """A time with two or three digits: '2.1 us', '55 ms'."""
    value, unit = next(((seconds / UNITS[u], u) for u in ("s", "ms") if seconds >= UNITS[u]), (seconds * 1e6, "us"))
    return f"{value:.3g} {unit}" if value >= 100 else f"{value:.2g} {unit}"


def machine(page: str) -> str:
    """The line of the page that says where the tables were measured."""
    found = re.search(r"^Machine of the tables: (.*)\.$", page, flags=re.M)
    if found is None:
        raise SystemExit(f"{PAGE.name} lacks its line 'Machine of the tables: ....'")
    return found[1]


def draw(page: str) -> str:
    height = TOP + ROW * len(BARS) + 40
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 720 {height}" width="720" height="{height}" role="img"',
        '     font-family="system-ui, sans-serif" font-size="14">',
        "  <title>Time of copyless as a share of the standard library's time</title>",
        f"  <style>{STYLE}  </style>",
        f'  <rect class="panel" x="0.5" y="0.5" width="719" height="{height - 1}" rx="10"/>',
        '  <text class="word" x="20" y="30" font-weight="600">Time of copyless (green), beside the standard library\'s'
        " time (grey)</text>",
        f'  <text class="small" x="{LEFT}" y="58">0</text>',
        f'  <text class="small" x="{LEFT + WIDTH}" y="58" text-anchor="middle">standard library</text>',
    ]
    for i, bar in enumerate(BARS):
        share, words = measured(page, bar)
        y = TOP + ROW * i
        out += [
            f'  <text class="word" x="{LEFT - 12}" y="{y + 16}" text-anchor="end">{bar.words}</text>',
            f'  <rect class="all" x="{LEFT}" y="{y}" width="{WIDTH}" height="24" rx="3"/>',
            f'  <rect class="ours" x="{LEFT}" y="{y}" width="{max(1.5, WIDTH * share):.1f}" height="24" rx="2"/>',
            f'  <text class="small" x="708" y="{y + 16}" text-anchor="end">{words}</text>',
        ]
    bottom = TOP + ROW * len(BARS)
    out += [
        f'  <path class="edge" d="M{LEFT + WIDTH} 64 V{bottom - 8}"/>',
        f'  <text class="small" x="20" y="{bottom + 18}">{machine(page)}</text>',
        "</svg>",
    ]
    return "\n".join(out) + "\n"


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Draw the README's picture of the benchmarks.")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args(given)
    options.out.write_text(draw(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
