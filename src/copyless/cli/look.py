"""The data of `ls` and `reap`, and how it is shown."""

from __future__ import annotations

import collections
import os
import time

from copyless._core._observe import Observer
from copyless._storage import directory, registries, removal
from copyless._storage.observing import look, observing
from copyless._storage.settings import current as settings
from copyless._transfer.names import guarded_by
from copyless._typing import TYPE_CHECKING, Any
from copyless.cli import kinds
from copyless.cli.groups import in_group
from copyless.cli.programs import Programs
from copyless.cli.text import Page, counted, plain
from copyless.errors import CorruptSegmentError, ForeignHostError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import TypedDict

    from copyless._core import _observe
    from copyless.cli.kinds import Block
    from copyless.cli.programs import Holder

    class Owner(_observe.Owner, total=False):
        """A process in the listing: what the table says of it, and what `listing` adds."""

        program: str
        blocks: int
        block_bytes: int

    class Found(TypedDict):
        """A copy of the tables, to which the listing adds."""

        owners: list[Owner]
        segments: list[_observe.Segment]
        blocks: list[Block]
        holds: list[_observe.Hold]
        names: list[_observe.Name]
        totals: _observe.Totals
        state: str
        note: str | None
        holder: _observe.LockHolder | None
        registry: str
        boot: int

    class Totals(TypedDict):
        blocks: int
        of: int
        bytes: int
        processes: int
        by_kind: dict[str, dict[str, int]]

    class Listing(TypedDict):
        directory: str
        directory_exists: bool
        state: str
        holder: _observe.LockHolder | None
        note: str | None
        total_bytes: int
        warm_bytes: int
        totals: Totals
        owners: list[Owner]
        segments: list[_observe.Segment]
        blocks: list[Block]


__all__ = ["age", "blocks_of", "holders_text", "listing", "may_be_removed", "names", "remove_damaged",
           "selection", "show_counts", "show_listing", "size", "tables", "warn"]  # fmt: skip


def size(n: float) -> str:
    """A number of bytes for people."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if n < 1024 or unit == "GiB":
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1024
    raise AssertionError


def age(ns: int) -> str:
    """How long ago a time of the wall clock is, for people."""
    seconds = max(0, time.time() - ns / 1e9)
    for limit, unit, per in ((120, "s", 1), (7200, "min", 60), (172800, "h", 3600)):
        if seconds < limit:
            return f"{seconds / per:.0f} {unit}"
    return f"{seconds / 86400:.0f} d"


_NOTHING: dict[str, Any] = {
    "owners": [], "segments": [], "blocks": [], "holds": [], "names": [], "totals": {"total_bytes": 0, "warm_bytes": 0},
    "state": "whole", "note": None, "holder": None, "registry": "", "boot": 0,
}  # fmt: skip


def tables(observer: Observer | None) -> Found:
    """A copy of the tables of the registry, of which the caller may change the rows; empty tables if there is none."""
    found: Any = _NOTHING if observer is None else look(observer)
    copied: Found = found
    return copied


def names() -> list[str]:
    """The names of the objects of this space, for a shell that completes one."""
    with observing() as observer:
        entries = [] if observer is None else look(observer)["names"]
    return sorted(e["name"] for e in entries if not e["posix"] and e["name"].isprintable())


# ---- choosing rows


def selection(
    pattern: str | None = None, kind: str | None = None, pid: int | None = None, program: str | None = None,
    persistent: bool = False,
) -> Callable[[Block], bool] | None:  # fmt: skip
    """A function that says whether a block is asked for; None if all are."""
    import fnmatch

    if pattern is None and kind is None and pid is None and program is None and not persistent:
        return None

    def is_asked(block: Block) -> bool:
        return (
            (pattern is None or fnmatch.fnmatchcase(block["name"] or block["making"] or "", pattern))
            and (kind is None or in_group(block["kind"], kind))
            and (pid is None or pid in block["pids"])
            and (program is None or any(fnmatch.fnmatchcase(each["program"], program) for each in block["holders"]))
            and (not persistent or block["persistent"])
        )

    return is_asked


# ---- the listing


def listing(is_asked: Callable[[Block], bool] | None = None) -> Listing:
    """Segments, blocks, owners and totals; each block with its kind, its names, its holders and whether it is alive.

    Reads without a lock and without opening the store. `state` and `note` say how consistent the copy is, `holder`
    which process holds the lock. `is_asked`: which blocks to list; the owners are then those that hold them.
    """
    with observing() as observer:
        found = tables(observer)
        programs = Programs(found["owners"])
        all_blocks = blocks_of(found, observer, programs)
    blocks = all_blocks if is_asked is None else [block for block in all_blocks if is_asked(block)]
    numbers, nbytes = _held(blocks)
    owners = [owner for owner in found["owners"] if is_asked is None or numbers[owner["slot"]]]
    for owner in owners:
        slot = owner["slot"]
        owner |= {"program": programs.of(slot), "blocks": numbers[slot], "block_bytes": nbytes[slot]}
    by_kind: dict[str, dict[str, int]] = {}
    for block in blocks:
        total = by_kind.setdefault(block["kind"], {"blocks": 0, "bytes": 0})
        total["blocks"] += 1
        total["bytes"] += block["bytes"]
    return {
        "directory": directory.current(),
        "directory_exists": os.path.isdir(settings().dir),
        "state": found["state"],
        "holder": found["holder"],
        "note": found["note"],
        "total_bytes": found["totals"]["total_bytes"],
        "warm_bytes": found["totals"]["warm_bytes"],
        "totals": {
            "blocks": len(blocks), "of": len(all_blocks), "bytes": sum(block["bytes"] for block in blocks),
            "processes": sum(owner["alive"] for owner in owners), "by_kind": by_kind,
        },
        "owners": owners, "segments": found["segments"], "blocks": blocks,
    }  # fmt: skip


def _held(blocks: list[Block]) -> tuple[collections.Counter[int], collections.Counter[int]]:
    """(number of blocks, their bytes) of each owner that holds any."""
    numbers: collections.Counter[int] = collections.Counter()
    nbytes: collections.Counter[int] = collections.Counter()
    for block in blocks:
        for slot in block["slots"]:
            numbers[slot] += 1
            nbytes[slot] += block["bytes"]
    return numbers, nbytes


def blocks_of(found: Found, observer: Observer | None, programs: Programs) -> list[Block]:
    """The blocks of a copy of the tables, with what the other tables say of each, and its kind."""
    owners = {owner["slot"]: owner for owner in found["owners"]}
    entries = {entry["block"]: entry for entry in found["names"]}
    holds_of: dict[int, list[_observe.Hold]] = collections.defaultdict(list)
    for hold in found["holds"]:
        holds_of[hold["block"]].append(hold)
    heirs = {owner["heir_of"] for owner in found["owners"] if owner["alive"]}
    for block in found["blocks"]:
        entry = entries.get(block["number"])
        if entry is not None and entry["generation"] != block["generation"] and not block["external"]:
            entry = None  # it changed while it was copied
        holds = holds_of[block["number"]]
        slots = sorted({hold["owner"] for hold in holds if hold["kind"] == "owner"})
        block["name"] = entry["name"] if entry is not None else None
        block["making"] = guarded_by(block["name"] or "")
        if block["making"] is not None:  # an internal lock: a process is making the object of that name
            block["name"] = None
        block["slots"] = slots
        block["pids"] = sorted({owners[slot]["pid"] if slot in owners else 0 for slot in slots})
        block["holders"] = [programs.holder(slot) for slot in slots]
        block["messages"] = sum(hold["kind"] in ("message", "family") for hold in holds)
        block["persistent"] = any(hold["kind"] == "persist" for hold in holds)
        block["queues"] = sorted({hold["channel"] for hold in holds if hold["kind"] == "channel"})
        lives = any(slot in heirs or (slot in owners and owners[slot]["alive"]) for slot in slots)
        block["state"] = _state_of(block, lives)
        deadlines = [hold["deadline_ns"] for hold in holds if hold["kind"] == "message"]
        left = min(deadlines, default=0) - time.monotonic_ns()
        block["message_seconds_left"] = round(left / 1e9, 1) if deadlines and min(deadlines) < 1 << 62 else None
        if observer is not None:
            kinds.describe(observer, block, entry)
    return found["blocks"]


def _state_of(block: Block, lives: bool) -> str:
    if lives:
        return "alive"
    if block["queues"]:
        return "in a queue"
    if block["persistent"]:
        return "persistent"
    return "left by the dead" if block["slots"] and not block["messages"] else "orphaned"


# ---- showing


def show_listing(report: Listing, page: Page) -> None:
    segments = [s for s in report["segments"] if not s["external"]]
    warn(report["note"], page)
    if not report["directory_exists"]:
        warn(f"{os.path.dirname(report['directory'])} does not exist: COPYLESS_DIR must name a directory", page)
    page.line(f"{page.styled('bold', plain(report['directory']))}: {counted(len(segments), 'segment')}, {size(report['total_bytes'])}, of which "  # noqa: E501
              f"{size(report['warm_bytes'])} free and warm")  # fmt: skip
    totals = report["totals"]
    if report["blocks"]:
        page.table(
            map(_row_of_block, report["blocks"]),
            ("block", "kind", "name", "shape", "dtype", "persist", "bytes", "age", "state", "held by"),
            title="blocks", right=("block", "bytes", "age"),
        )  # fmt: skip
    else:
        page.line("no blocks in use" if not totals["of"] else f"none of {counted(totals['of'], 'block')} is as asked")
    if report["owners"]:
        rows = [
            (owner["pid"] or "-", owner["program"] + ("" if owner["alive"] else " (has ended)"), age(owner["since_ns"]),
             owner["blocks"], size(owner["block_bytes"]))
            for owner in report["owners"]
        ]  # fmt: skip
        page.table(
            rows,
            ("pid", "program", "since", "blocks", "bytes"),
            title="processes",
            right=("pid", "since", "blocks", "bytes"),
        )
    if report["blocks"]:
        of = f" of {totals['of']}" if totals["of"] != totals["blocks"] else ""
        by_kind = ", ".join(
            f"{total['blocks']} {kind} {size(total['bytes'])}" for kind, total in sorted(totals["by_kind"].items())
        )
        page.line()
        page.line(
            f"total: {counted(totals['blocks'], 'block')}{of}, {size(totals['bytes'])}, "
            f"{counted(totals['processes'], 'process', 'es')} ({by_kind})"
        )


def holders_text(holders: Iterable[Holder]) -> str:
    """Processes by program: ``camera.py (12, 15), viewer.py (20)``."""
    by_program: dict[str, list[str]] = {}
    for each in holders:
        number = str(each["pid"]) if each["pid"] else "a forked child"
        by_program.setdefault(each["program"], []).append(number if each["alive"] else f"{number} ended")
    return ", ".join(f"{program} ({', '.join(pids)})" for program, pids in by_program.items())


def _row_of_block(block: Block) -> tuple[str, ...]:
    held = [holders_text(block["holders"])] if block["holders"] else []
    held += [f"queue in block {number}" for number in block["queues"]]
    if block["messages"]:
        left = block["message_seconds_left"]
        held.append(f"{block['messages']} message(s)" + (f", {left:.0f} s left" if left is not None else ""))
    shape = "-" if block["shape"] is None else "x".join(map(str, block["shape"])) or "()"
    name = block["name"] or (f"{block['making']} (being made)" if block["making"] else "-")
    persists = "yes" if block["persistent"] else "no" if block["name"] and not block["external"] else "-"
    return (
        str(block["number"]), block["kind"], name, shape, block["dtype"] or "-", persists, size(block["bytes"]),
        age(block["created_ns"]), block["state"], ", ".join(held),
    )  # fmt: skip


def warn(note: str | None, page: Page) -> None:
    if note is not None:
        page.line(f"{page.styled('yellow', 'note:')} {plain(note)}")


# ---- reap


def show_counts(report: dict[str, Any], page: Page) -> None:
    page.table(
        (key.replace("_", " "), size(value) if key.startswith("bytes") else value) for key, value in report.items()
    )


def may_be_removed(error: Exception) -> bool:
    """Whether `reap --force` helps: after damage, or for files that an earlier boot left on a disk of this machine."""
    if isinstance(error, ForeignHostError):
        return registries.filesystem(directory.current()) == "local"
    return isinstance(error, CorruptSegmentError)


def remove_damaged() -> dict[str, object]:
    """Remove the files of this layout from the storage directory, unless a live process uses them."""
    path = directory.current()
    with directory.choosing():
        found = removal.remove(path)
    return {"directory": path, "in_use": found.holders, "files": found.files, "bytes_given_back": found.nbytes}
