"""How arrays, queues, rings and pools show themselves in a notebook: a small table.

Nothing here takes a lock or waits, so a cell that shows an object returns while another process is stopped with the
object in its hands. Nothing raises: an object that is closed says so.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable
from typing import Any

__all__ = ["of_array", "of_pool", "of_queue", "of_ring", "size", "tell"]

_READERS = 20  # of a ring, shown


def size(n: float) -> str:
    """A number of bytes for people."""
    for unit in ("B", "KiB", "MiB"):
        if n < 1024:
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1024
    return f"{n:,.1f} GiB"


def _row(cells: Iterable[object], tag: str = "td") -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(str(cell))}</{tag}>" for cell in cells) + "</tr>"


def table(title: str, rows: Iterable[tuple[object, object]], below: str = "") -> str:
    """A table of two columns: what, and its value. Texts are escaped; `below` is HTML and stands as it is."""
    body = "".join(
        f'<tr><th style="text-align:left">{html.escape(str(what))}</th>'
        f'<td style="text-align:left">{html.escape(str(value))}</td></tr>'
        for what, value in rows
    )
    return f'<table><caption style="text-align:left">{html.escape(title)}</caption>{body}</table>{below}'


def tell(obj: object, make: Callable[[], str]) -> str:
    """The HTML that `make` returns; if it raises, a table that says why."""
    try:
        return make()
    except Exception as error:  # a cell that shows an object must not fail
        return table(type(obj).__name__, [("state", str(error).partition(":")[0] or type(error).__name__)])


def _title(obj: Any, name: str | None) -> str:
    return type(obj).__name__ + (f" {name!r}" if name is not None else "")


def of_array(array: Any) -> str:
    """An array: its layout, its memory, who keeps it, and its values as NumPy shortens them."""
    from copyless._core._blocks import Block

    rows: list[tuple[object, object]] = [
        ("shape", array.shape),
        ("dtype", array.dtype),
        ("bytes", f"{array.nbytes:,} ({size(array.nbytes)})"),
    ]
    base = array
    while base is not None and not isinstance(base, Block):
        base = getattr(base, "base", None)
    if base is None:
        rows.append(("memory", "a mapped file, or of no size"))
    else:
        view = f"; this view shows a part of {size(base.nbytes)}" if base.nbytes != array.nbytes else ""
        rows.append(("memory", f"shared, block {base.number}{view}"))
        held = base.holds
        rows.append(("holders", f"{held:,} (processes, and messages on their way)" if held else "unknown"))
    if not array.flags.writeable:
        rows.append(("writable", "no"))
    return table(type(array).__name__, rows, f"<pre>{html.escape(repr(array))}</pre>")


def of_queue(queue: Any) -> str:
    """A queue: its items, their bytes and its limits."""
    put, taken, nbytes, spilled, lost, leased = queue._numbers()
    most = queue._number
    rows: list[tuple[object, object]] = [
        ("items", f"{put - taken:,}" + (f" of {most:,}" if most else "")),
        ("bytes", f"{nbytes:,} ({size(nbytes)})"),
        ("put, taken", f"{put:,}, {taken:,}"),
    ]
    if leased:
        rows.append(("taken, not acknowledged", f"{leased:,}"))
    if spilled:
        rows.append(("spilled to disk", f"{spilled:,}"))
    if lost:
        rows.append(("lost", f"{lost:,}"))
    if queue._ended:
        rows.append(("state", "shut down"))
    return table(_title(queue, queue.name), rows)


def of_ring(ring: Any) -> str:
    """A ring: its frames, its slots and each reader."""
    published, held, writing, loans, waits, _, _, readers = ring._statistics()
    rows: list[tuple[object, object]] = [
        ("frame", ring._frame_text()),
        ("frames published", f"{published:,}"),
        ("slots", f"{ring._number:,}: {held:,} with a frame, {writing:,} being written, {loans:,} on loan"),
        ("waits of writers", f"{waits:,}"),
    ]
    if ring._ended:
        rows.append(("state", "shut down"))
    below = ""
    if readers:
        head = _row(("reader (process)", "taken", "missed", "behind", "policy"), "th")
        body = "".join(
            _row((pid, f"{taken:,}", f"{dropped:,}", f"{lag:,}", "block" if blocks else "drop"))
            for pid, taken, dropped, lag, blocks in readers[:_READERS]
        )
        more = _row((f"... {len(readers) - _READERS:,} more", "", "", "", "")) if len(readers) > _READERS else ""
        below = f"<table>{head}{body}{more}</table>"
    return table(_title(ring, ring.name), rows, below)


def of_pool(title: str, pool: Any, state: str, most: int) -> str:
    """A pool or an executor: its workers and what they have to do."""
    workers = list(pool.workers)
    pids = ", ".join(str(worker.pid) for worker in workers[:16]) + (", ..." if len(workers) > 16 else "")
    running = sum(bundle.count - bundle.answered for bundle in list(pool._collector.bundles.values()))
    waiting = sum(bundle.count for bundle in pool._waiting.copy())
    rows: list[tuple[object, object]] = [
        ("state", state),
        ("workers", f"{len(workers):,} of {most:,}" + (f": processes {pids}" if pids else "")),
        ("tasks", f"{running:,} sent to workers, {waiting:,} waiting"),
    ]
    if pool.broken is not None and not pool.terminating:
        rows.append(("broken", pool.broken))
    return table(title, rows)
