"""What `ls`, `inspect` and `reap` find, and how they show it."""

from __future__ import annotations

import collections
import itertools
import math
import os
import threading
import time
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from copyless._core._observe import Observer
from copyless.errors import CorruptSegmentError, ForeignHostError, StaleHandleError
from copyless.storage import directory, handles, objects, registries
from copyless.storage.names import guarded_by
from copyless.storage.objects import check_name
from copyless.storage.observing import look, observing

_SHOWN, _ENDS = 20, 2  # elements of a small array; of each end of an axis of a larger one
_MOST_READ = 4096
_ATTACH_SECONDS = 2.0


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
    """Segments, blocks, owners and holds, each block with its names, its holders and whether it is alive.

    Reads without a lock and without joining: `state` and `note` say how good the copy is, `holder` who is inside the lock.
    """
    with observing() as observer:
        found = _NOTHING if observer is None else look(observer)
        return _listing(found)


_NOTHING: dict[str, Any] = {
    "owners": [], "segments": [], "blocks": [], "holds": [], "names": [], "totals": {"total_bytes": 0, "warm_bytes": 0},
    "state": "whole", "note": None, "holder": None,
}  # fmt: skip


def _listing(found: dict[str, Any]) -> dict[str, Any]:
    owners = {owner["slot"]: owner for owner in found["owners"]}
    names: dict[int, str] = {entry["block"]: entry["name"] for entry in found["names"]}
    holds_of: dict[int, list[dict[str, Any]]] = collections.defaultdict(list)
    for hold in found["holds"]:
        holds_of[hold["block"]].append(hold)
    heirs = {owner["heir_of"] for owner in found["owners"] if owner["alive"]}
    for block in found["blocks"]:
        holds = holds_of[block["number"]]
        held = [(h["owner"], owners.get(h["owner"])) for h in holds if h["kind"] == "owner"]
        block["name"] = names.get(block["number"])
        block["making"] = guarded_by(block["name"] or "")
        if block["making"] is not None:  # the lock of whoever makes what that name shall lead to: no user's
            block["name"] = None
        block["pids"] = sorted({0 if owner is None else owner["pid"] for _, owner in held})
        block["messages"] = sum(h["kind"] in ("message", "family") for h in holds)
        block["persistent"] = any(h["kind"] == "persist" for h in holds)
        block["queues"] = sorted({h["channel"] for h in holds if h["kind"] == "channel"})
        block["state"] = (
            "alive"
            if any(slot in heirs or (owner is not None and owner["alive"]) for slot, owner in held)
            else "in a queue"
            if block["queues"]
            else "persistent"
            if block["persistent"]
            else "left by the dead"
            if held and not block["messages"]
            else "orphaned"
        )
        deadlines = [h["deadline_ns"] for h in holds if h["kind"] == "message"]
        left = min(deadlines, default=0) - time.monotonic_ns()
        block["message_seconds_left"] = round(left / 1e9, 1) if deadlines and min(deadlines) < 1 << 62 else None
    return {
        "directory": directory.current(),
        "state": found["state"],
        "holder": found["holder"],
        "note": found["note"],
        "total_bytes": found["totals"]["total_bytes"],
        "warm_bytes": found["totals"]["warm_bytes"],
        **{key: found[key] for key in ("owners", "segments", "blocks")},
    }


def show_listing(report: dict[str, Any], console: Console) -> None:
    blocks = Table(title="blocks", title_justify="left")
    for column, justify in (
        ("block", "right"), ("name", "left"), ("bytes", "right"), ("age", "right"), ("state", "left"), ("persist", "left"), ("held by", "left"),
    ):  # fmt: skip
        blocks.add_column(column, justify=justify)  # type: ignore[arg-type]
    for block in report["blocks"]:
        holders = [str(pid) for pid in block["pids"]]
        holders += [f"queue in block {number}" for number in block["queues"]]
        if block["messages"]:
            left = block["message_seconds_left"]
            holders.append(f"{block['messages']} message(s)" + (f", {left:.0f} s left" if left is not None else ""))
        kind = " (POSIX)" if block["external"] else f"{block['making']} (being made)" if block["making"] else ""
        persists = "yes" if block["persistent"] else "no" if block["name"] and not block["external"] else ""
        blocks.add_row(
            str(block["number"]), (block["name"] or "") + kind, size(block["bytes"]), age(block["created_ns"]),
            block["state"], persists, ", ".join(holders),
        )  # fmt: skip
    owners = Table(title="processes", title_justify="left")
    for column in ("pid", "command", "since", "blocks"):
        owners.add_column(column, justify="left" if column == "command" else "right")
    held = collections.Counter(pid for block in report["blocks"] for pid in block["pids"])
    for owner in report["owners"]:
        owners.add_row(
            str(owner["pid"]),
            owner["command"] + ("" if owner["alive"] else " (has ended)"),
            age(owner["since_ns"]),
            str(held[owner["pid"]]),
        )
    segments = [s for s in report["segments"] if not s["external"]]
    _warn(report["note"], console)
    console.print(f"[bold]{report['directory']}[/]: {len(segments)} segments, {size(report['total_bytes'])}, of which "
                  f"{size(report['warm_bytes'])} free and warm")  # fmt: skip
    console.print(blocks if report["blocks"] else "no blocks in use")
    console.print(owners)


def _warn(note: str | None, console: Console) -> None:
    if note is not None:
        console.print(f"[yellow]note:[/] {escape(note)}")


def named(name: str) -> dict[str, Any]:
    """One named array, lock, queue or ring.

    Raises
    ------
    FileNotFoundError
        When nothing has the name, or what had it went meanwhile.
    """
    text = os.fsdecode(check_name(name))
    with observing() as observer:
        found = _NOTHING if observer is None else look(observer)
        entry = next((e for e in found["names"] if e["name"] == text and not e["posix"]), None)
        block = next((b for b in _listing(found)["blocks"] if entry and b["number"] == entry["block"]), None)
        if observer is None or entry is None or block is None or block["generation"] != entry["generation"]:
            note = f" ({found['note']})" if found["note"] else ""
            raise FileNotFoundError(2, f"nothing of this name: 'copyless ls' lists what there is{note}", name)
        report = {
            "name": name, "bytes": block["bytes"], "segment": block["segment"], "block": block["number"],
            "generation": block["generation"], "age": age(block["created_ns"]), "creator": block["creator_pid"],
            "persistent": block["persistent"], "held_by": block["pids"], "state": found["state"], "holder": found["holder"],
            "note": found["note"],
        }  # fmt: skip
        try:
            kind = 0 if entry["spec_length"] else observer.kind(block["number"])
            report |= _object(name, kind, found) if kind else _array(observer, entry)
        except StaleHandleError:
            raise FileNotFoundError(2, "what had this name went while it was looked at", name) from None
    return report


def _array(observer: Observer, entry: dict[str, Any]) -> dict[str, Any]:
    """Shape, dtype and values in short of a named array, of which only what is shown is read."""
    import numpy as np

    (spec,) = observer.read(entry["block"], [(entry["spec_offset"], entry["spec_length"])])
    try:
        dtype, shape, strides, start, _, _, _ = handles.decode_spec(spec)
    except ValueError as error:
        raise CorruptSegmentError(f"the description of a named array is damaged: {error}") from None
    about = {
        "shape": list(shape), "dtype": str(dtype), "strides": list(strides),
        "bytes": math.prod(shape) * dtype.itemsize,
    }  # fmt: skip
    short = math.prod(shape) > _SHOWN
    # Of a long axis the two ends are read; the place between them stands for the rest, and is not shown.
    axes = [[*range(min(n, _ENDS)), *range(n - _ENDS, n)] if short and n > 2 * _ENDS else list(range(n)) for n in shape]
    if math.prod(map(len, axes)) > _MOST_READ:
        return about | {"values": f"an array of {len(shape)} dimensions, too many to show"}
    places = [[i if n <= 2 * _ENDS or not short else i - (n - 2 * _ENDS - 1) * (i >= n - _ENDS) for i in axis]
              for axis, n in zip(axes, shape, strict=True)]  # fmt: skip
    shown = np.zeros([min(n, 2 * _ENDS + 1) if short else n for n in shape], dtype)
    offsets = [start + sum(i * stride for i, stride in zip(at, strides, strict=True)) for at in itertools.product(*axes)]
    values = observer.read(entry["block"], [(offset, dtype.itemsize) for offset in offsets])
    if dtype.itemsize:
        for at, value in zip(itertools.product(*places), values, strict=True):
            shown[at] = np.frombuffer(value, dtype)[0]
    with np.printoptions(threshold=0 if short else _SHOWN, edgeitems=_ENDS):
        return about | {"values": str(shown)}


def _object(name: str, kind: int, found: dict[str, Any]) -> dict[str, Any]:
    """What a lock, queue or ring says of itself. It is attached for that, which may wait for a stopped process: not for long."""
    module, cls = objects.KINDS.get(kind, ("", f"object of kind {kind}, of no class that this version knows"))
    about: dict[str, Any] = {"kind": cls}
    if found["state"] == "held" or not module:
        return about | {"values": f"<{cls}: its state is not shown, since attaching it waits for the registry's lock>"}

    def attach() -> None:
        from copyless import arrays

        it = arrays.open(name)
        about.update(kind=type(it).__name__, **(it.stats()._asdict() if hasattr(it, "stats") else {}), values=repr(it))

    if not within(_ATTACH_SECONDS, attach):
        about["values"] = f"<{cls}: its state is not shown, since attaching it did not end in {_ATTACH_SECONDS:g} s>"
    return dict(about)


def within(seconds: float, call: Callable[[], None]) -> bool:
    """Whether a call came back in time; its error is raised. One that did not is left to itself, with a thread of its own."""
    failed: list[BaseException] = []

    def run() -> None:
        try:
            call()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if failed:
        raise failed[0]
    return not thread.is_alive()


def show_named(report: dict[str, Any], console: Console) -> None:
    _warn(report["note"], console)
    table = Table(show_header=False)
    for key, value in report.items():
        if key not in ("values", "state", "holder", "note"):
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
