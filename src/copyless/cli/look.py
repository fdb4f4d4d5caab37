"""What `ls`, `inspect` and `reap` find, and how they show it."""

from __future__ import annotations

import collections
import os
import time
from typing import Any

from rich.console import Console
from rich.table import Table

from copyless._core import _store
from copyless.errors import CorruptSegmentError, ForeignHostError
from copyless.storage import directory, registries
from copyless.storage.store import need


def size(n: float) -> str:
    """Bytes for people."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if n < 1024 or unit == "GiB":
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1024
    raise AssertionError


def age(ns: int) -> str:
    seconds = max(0, time.time() - ns / 1e9)
    for limit, unit, per in ((120, "s", 1), (7200, "min", 60), (172800, "h", 3600)):
        if seconds < limit:
            return f"{seconds / per:.0f} {unit}"
    return f"{seconds / 86400:.0f} d"


def listing() -> dict[str, Any]:
    """Segments, blocks, owners and holds, each block with its names, its holders and whether it is alive."""
    need()
    found = _store.snapshot()
    pids = {owner["slot"]: owner["pid"] for owner in found["owners"]}
    names: dict[int, str] = {entry["block"]: entry["name"] for entry in found["names"]}
    holds_of: dict[int, list[dict[str, Any]]] = collections.defaultdict(list)
    for hold in found["holds"]:
        holds_of[hold["block"]].append(hold)
    for block in found["blocks"]:
        holds = holds_of[block["number"]]
        block["name"] = names.get(block["number"])
        block["pids"] = sorted({pids.get(h["owner"], 0) for h in holds if h["kind"] == "owner"})
        block["messages"] = sum(h["kind"] in ("message", "family") for h in holds)
        block["persistent"] = any(h["kind"] == "persist" for h in holds)
        block["queues"] = sorted({h["channel"] for h in holds if h["kind"] == "channel"})
        block["state"] = (
            "alive"
            if block["pids"]
            else "in a queue"
            if block["queues"]
            else "persistent"
            if block["persistent"]
            else "orphaned"
        )
        deadlines = [h["deadline_ns"] for h in holds if h["kind"] == "message"]
        left = min(deadlines, default=0) - time.monotonic_ns()
        block["message_seconds_left"] = round(left / 1e9, 1) if deadlines and min(deadlines) < 1 << 62 else None
    statistics = _store.statistics()
    return {
        "directory": directory.current(),
        "total_bytes": statistics["total_bytes"],
        "warm_bytes": statistics["warm_bytes"],
        **{key: found[key] for key in ("owners", "segments", "blocks")},
    }


def show_listing(report: dict[str, Any], console: Console) -> None:
    blocks = Table(title="blocks", title_justify="left")
    for column, justify in (
        ("block", "right"), ("name", "left"), ("bytes", "right"), ("age", "right"), ("state", "left"), ("held by", "left"),
    ):  # fmt: skip
        blocks.add_column(column, justify=justify)  # type: ignore[arg-type]
    for block in report["blocks"]:
        holders = [str(pid) for pid in block["pids"]] + ["persist"] * block["persistent"]
        holders += [f"queue in block {number}" for number in block["queues"]]
        if block["messages"]:
            left = block["message_seconds_left"]
            holders.append(f"{block['messages']} message(s)" + (f", {left:.0f} s left" if left is not None else ""))
        kind = " (POSIX)" if block["external"] else ""
        blocks.add_row(
            str(block["number"]), (block["name"] or "") + kind, size(block["bytes"]), age(block["created_ns"]),
            block["state"], ", ".join(holders),
        )  # fmt: skip
    owners = Table(title="processes", title_justify="left")
    for column in ("pid", "command", "since", "blocks"):
        owners.add_column(column, justify="left" if column == "command" else "right")
    held = collections.Counter(pid for block in report["blocks"] for pid in block["pids"])
    for owner in report["owners"]:
        owners.add_row(
            str(owner["pid"]),
            owner["command"] + (" (this command)" if owner["self"] else ""),
            age(owner["since_ns"]),
            str(held[owner["pid"]]),
        )
    segments = [s for s in report["segments"] if not s["external"]]
    console.print(f"[bold]{report['directory']}[/]: {len(segments)} segments, {size(report['total_bytes'])}, of which "
                  f"{size(report['warm_bytes'])} free and warm")  # fmt: skip
    console.print(blocks if report["blocks"] else "no blocks in use")
    console.print(owners)


def named(name: str) -> dict[str, Any]:
    """One named array, lock, queue or ring."""
    import numpy as np

    from copyless import arrays

    array = arrays.open(name, readonly=True)
    block = next(b for b in listing()["blocks"] if b["name"] == name and not b["external"])
    if not isinstance(array, np.ndarray):
        statistics = array.stats()._asdict() if hasattr(array, "stats") else {}
        return {
            "name": name, "kind": type(array).__name__, "bytes": block["bytes"], **statistics, "age": age(block["created_ns"]),
            "creator": block["creator_pid"], "persistent": block["persistent"],
            "held_by": [pid for pid in block["pids"] if pid != os.getpid()], "values": repr(array),
        }  # fmt: skip
    with np.printoptions(threshold=20, edgeitems=2):
        values = str(array.view(np.ndarray))
    return {
        "name": name, "shape": list(array.shape), "dtype": str(array.dtype), "strides": list(array.strides),
        "bytes": array.nbytes, "segment": block["segment"], "block": block["number"], "generation": block["generation"],
        "age": age(block["created_ns"]), "creator": block["creator_pid"], "persistent": block["persistent"],
        "held_by": [pid for pid in block["pids"] if pid != os.getpid()], "values": values,
    }  # fmt: skip


def show_named(report: dict[str, Any], console: Console) -> None:
    table = Table(show_header=False)
    for key, value in report.items():
        if key != "values":
            table.add_row(key.replace("_", " "), size(value) if key == "bytes" else str(value))
    console.print(table)
    console.print(report["values"], highlight=False)


def show_counts(report: dict[str, Any], console: Console) -> None:
    table = Table(show_header=False)
    for key, value in report.items():
        table.add_row(key.replace("_", " "), size(value) if key.startswith("bytes") else str(value))
    console.print(table)


def may_be_removed(error: Exception) -> bool:
    """Whether `reap --force` is the remedy: damage, or what an earlier boot left on a disk of this machine."""
    if isinstance(error, ForeignHostError):
        return registries.filesystem(directory.current()) == "local"
    return isinstance(error, CorruptSegmentError)


def remove_damaged() -> dict[str, Any]:
    """Remove this layout's files from the storage directory, unless a live process uses them."""
    path = directory.current()
    with directory.choosing():
        found = registries.remove(path)
    return {"directory": path, "in_use": found.holders, "files": found.files, "bytes_given_back": found.nbytes}
