"""The data of `inspect`, for every kind of object, and how it is shown.

It is read from copies, as the tables are: without a lock, and without attaching to the object, so that it answers while
a holder is stopped.
"""

from __future__ import annotations

import itertools
import math
import os
import time

from copyless._core import _handles, _states
from copyless._core._observe import Observer
from copyless._storage.observing import observing
from copyless._transfer import handles
from copyless._transfer.names import check_name
from copyless._typing import TYPE_CHECKING, Any
from copyless.cli import kinds
from copyless.cli.look import age, blocks_of, holders_text, size, tables, warn
from copyless.cli.programs import Programs
from copyless.cli.text import Page, counted, plain
from copyless.errors import CorruptSegmentError, ForeignHostError, StaleHandleError

if TYPE_CHECKING:
    from copyless._core._observe import Name
    from copyless.cli.kinds import Block
    from copyless.cli.look import Found
    from copyless.cli.programs import Holder

__all__ = ["inspect", "show"]

_SHOWN, _ENDS = 20, 2  # elements of a small array; of each end of an axis of a larger one
_MOST_READ = 4096
_LIST_HEAD = 64  # bytes


def inspect(asked: str) -> dict[str, Any]:
    """One object, by its name, by the number of its block, or by its handle in hexadecimal digits.

    Raises
    ------
    FileNotFoundError
        If nothing has the name, the number or the handle, or its object was removed meanwhile.
    ForeignHostError
        If the handle was made in another storage directory.
    ValueError
        If it can be none of the three.
    """
    with observing() as observer:
        found = tables(observer)
        programs = Programs(found["owners"])
        entry, number, generation = _resolve(asked, found)
        block = next((b for b in blocks_of(found, None, programs) if b["number"] == number), None)
        if observer is None or block is None or generation not in (None, block["generation"]):
            raise _nothing(asked, found)
        if entry is None:
            entry = next((each for each in found["names"] if each["block"] == number), None)
        kinds.describe(observer, block, entry)
        report: dict[str, Any] = {
            "name": block["name"], "kind": block["kind"], "shape": block["shape"], "dtype": block["dtype"],
            "bytes": block["bytes"], "block": block["number"], "segment": block["segment"],
            "generation": block["generation"],
            "age_seconds": round(max(0.0, time.time() - block["created_ns"] / 1e9), 1),
            "created_ns": block["created_ns"], "creator": block["creator_pid"], "persistent": block["persistent"],
            "state_of_block": block["state"], "held_by": block["pids"], "holders": block["holders"],
            "queues": block["queues"], "messages": block["messages"],
            "state": found["state"], "holder": found["holder"], "note": found["note"],
        }  # fmt: skip
        try:
            report |= _content(observer, block, entry, _Owners(found, programs))
        except StaleHandleError:
            raise FileNotFoundError(2, "the object was removed while it was being read: try again", asked) from None
    return report


# ---- what was asked for


def _nothing(asked: str, found: Found) -> FileNotFoundError:
    note = f" ({found['note']})" if found["note"] else ""
    what = "this name"
    if asked.isascii() and asked.isdecimal():
        what = "this name, and no block has this number"
    elif len(asked) >= 2 * _handles.WIRE_SIZE:
        what = "this name or handle"
    return FileNotFoundError(2, f"nothing has {what}: 'copyless ls' lists the names{note}", asked)


def _resolve(asked: str, found: Found) -> tuple[Name | None, int, int | None]:
    """(the name's entry, the number of the block, its generation); None: not asked for by name; not known."""
    for entry in found["names"]:
        if entry["name"] == asked:
            return entry, entry["block"], None if entry["posix"] else entry["generation"]
    if asked.isascii() and asked.isdecimal() and len(asked) < 10:
        return None, int(asked), None
    try:
        handle = bytes.fromhex(asked) if len(asked) >= 2 * _handles.WIRE_SIZE else b""
    except ValueError:
        handle = b""
    if handle:
        kind, _, _, number, generation = _handles.wire_fields(handle)
        if kind == _handles.KIND_FILE:
            raise ValueError("this is the handle of an array in a file of yours, not in shared memory")
        if kind not in (_handles.KIND_ARRAY, _handles.KIND_MEMORY, _handles.KIND_OBJECT):
            raise ValueError("these digits are not a handle: give handle.hex(), as copyless.handle(object) made it")
        if _handles.wire_registry(handle) != (found["boot"], found["registry"]):
            raise ForeignHostError("the handle was made on another host, or in another storage directory or space")
        return None, number, generation
    try:
        check_name(asked)
    except UnicodeEncodeError:  # a name that no program can make under this locale
        pass
    raise _nothing(asked, found)


# ---- content, by kind


class _Owners:
    """The owners that lock words name."""

    def __init__(self, found: Found, programs: Programs) -> None:
        self._slots = {(owner["slot"], owner["incarnation"] & 0x7FFFF): owner["slot"] for owner in found["owners"]}
        self._programs = programs

    def of(self, word: int) -> Holder | None:
        if not word:
            return None
        slot = self._slots.get(_states.owner_of(word))
        if slot is None:  # it was reaped, and perhaps another process has its place
            return {"pid": 0, "program": "a process that has ended", "alive": False}
        return self._programs.holder(slot)


_WORDS = ("owner", "writer", "put_lock", "get_lock")  # one lock word, where there may be none
_LISTS = ("holders_of_permits", "readers", "waiters")  # lists of them


def _content(observer: Observer, block: Block, entry: Name | None, owners: _Owners) -> dict[str, Any]:
    kind, number = block["kind"], block["number"]
    if kind == "array" and entry is not None and entry["spec_length"]:
        return _array(observer, entry)
    if kind == "SharedMemory":
        return _posix(block["name"])
    if not kinds.has_state(kind):
        return {}
    (head,) = observer.read(number, [(0, min(_states.HEAD_BYTES, block["capacity"]))])
    (copied,) = observer.read(number, [(0, _states.bytes_of_state(head, block["capacity"]))])
    state = _states.state(copied, block["capacity"], number)
    if "holders" in state:
        state["holders_of_permits"] = state.pop("holders")
    if "spec" in state:
        fields = kinds.fields_of_ring(state.pop("spec"))
        state["frame"] = [{"name": name, "shape": shape, "dtype": dtype} for name, shape, dtype in fields]
        newest = state.pop("newest_ns")
        state.pop("oldest_ns")
        state["newest_frame_seconds"] = round((time.monotonic_ns() - newest) / 1e9, 3) if newest else None
    for key in _WORDS:
        if key in state:
            state[key] = owners.of(state[key])
    for key in _LISTS:
        if key in state and not (state[key] and isinstance(state[key][0], dict)):
            state[key] = [owners.of(word) for word in state[key]]
    for key in ("users", "leases", "readers"):
        for each in state.get(key, ()):
            if "owner" in each:
                each["owner"] = owners.of(each["owner"])
    state["summary"] = _summary(kind, state)
    return state


def _who(holder: Holder | None) -> str:
    if holder is None:
        return "nobody"
    ended = "" if holder["alive"] else ", which has ended"
    return f"process {holder['pid']} ({holder['program']}){ended}" if holder["pid"] else holder["program"]


def _summary(kind: str, state: dict[str, Any]) -> str:
    if "owner" in state:
        waits = (
            f"; {len(state['waiters'])} wait" if "waiters" in state else "; others wait" if state["has_waiters"] else ""
        )
        return ("free" if state["owner"] is None else f"held by {_who(state['owner'])}") + waits
    if "writer" in state:
        if state["writer"] is not None:
            return f"held for writing by {_who(state['writer'])}"
        return f"held for reading by {holders_text(state['readers'])}" if state["readers"] else "free"
    if "value" in state:
        most = f" of {state['most']}" if state["most"] else ""
        return f"{state['value']}{most} permits are free" + ("; others wait" if state["has_waiters"] else "")
    if "set" in state:
        return "set" if state["set"] else "not set"
    if "parties" in state:
        return "broken" if state["broken"] else f"{state['waiting']} of {state['parties']} parties wait"
    if "published" in state:
        lag = max((reader["lag"] for reader in state["readers"]), default=0)
        return (
            f"{counted(state['published'], 'frame')} published, {state['held']} held; "
            f"{counted(len(state['readers']), 'reader')}, at most {lag} behind"
        )
    if "size" in state:
        most = f" of {state['most']}" if state["most"] else ""
        ended = ", shut down" if state["shut_down"] else ""
        return f"{state['size']}{most} items, {size(state['bytes_of_items'])}{ended}"
    return f"{len(state['waiters'])} wait" if "waiters" in state else kind


def _posix(name: str | None) -> dict[str, object]:
    """A ShareableList says how many items it has; other memory of the standard library's classes says nothing."""
    from copyless._platform import OBJECTS_DIRECTORY

    try:
        with open(os.path.join(OBJECTS_DIRECTORY, (name or "").lstrip("/")), "rb") as file:
            items = _states.items_of_list(file.read(_LIST_HEAD))
    except OSError:
        return {}
    return {} if items is None else {"kind": "ShareableList", "items": items}


def _array(observer: Observer, entry: Name) -> dict[str, object]:
    """Shape, dtype and a summary of the values of a named array. Only the shown values are read."""
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
    # Of a long axis the two ends are read. One place between them represents the rest; its value is not shown.
    axes = [[*range(min(n, _ENDS)), *range(n - _ENDS, n)] if short and n > 2 * _ENDS else list(range(n)) for n in shape]
    if math.prod(map(len, axes)) > _MOST_READ:
        return about | {"values": f"an array of {len(shape)} dimensions, too many to show"}
    places = [[i if n <= 2 * _ENDS or not short else i - (n - 2 * _ENDS - 1) * (i >= n - _ENDS) for i in axis]
              for axis, n in zip(axes, shape, strict=True)]  # fmt: skip
    shown = np.zeros([min(n, 2 * _ENDS + 1) if short else n for n in shape], dtype)
    offsets = [
        start + sum(i * stride for i, stride in zip(at, strides, strict=True)) for at in itertools.product(*axes)
    ]
    values = observer.read(entry["block"], [(offset, dtype.itemsize) for offset in offsets])
    if dtype.itemsize:
        for at, value in zip(itertools.product(*places), values, strict=True):
            shown[at] = np.frombuffer(value, dtype)[0]
    with np.printoptions(threshold=0 if short else _SHOWN, edgeitems=_ENDS):
        return about | {"values": str(shown)}


# ---- showing

_NOT_SHOWN = ("values", "summary", "state", "holder", "note", "held_by", "created_ns", "users", "leases", "frame")
_RARE = ("queues", "messages", "shape", "dtype")  # shown where there are some
_SIZES = ("bytes", "bytes_of_items", "most_bytes", "frame_bytes")


def _cell(key: str, value: Any) -> str:
    if value is None:
        return "-"
    if key in _SIZES:
        return f"{size(value)} ({value:,})"
    if key == "holders" or (key in _LISTS and not (value and "lag" in value[0])):
        return holders_text(value) or "nobody"
    if key in _WORDS:
        return _who(value)
    if key == "queues":
        return ", ".join(f"queue in block {number}" for number in value) or "-"
    if key == "shape":
        return "x".join(map(str, value)) or "()"
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def show(report: dict[str, Any], page: Page) -> None:
    warn(report["note"], page)
    rows: list[tuple[object, ...]] = []
    for key, value in report.items():
        if key in _NOT_SHOWN or (key == "readers" and "published" in report) or (key in _RARE and not value):
            continue
        word = key.replace("_", " ") if key != "age_seconds" else "age"
        rows.append((word, age(report["created_ns"]) if key == "age_seconds" else _cell(key, value)))
    page.table(rows)
    if report.get("frame"):
        page.table(
            [(each["name"] or "-", _cell("shape", each["shape"]), each["dtype"]) for each in report["frame"]],
            ("array", "shape", "dtype"), title="a frame",
        )  # fmt: skip
    if "published" in report and report["readers"]:
        rows = [(_who(r["owner"]), r["policy"], r["taken"], r["dropped"], r["lag"]) for r in report["readers"]]
        page.table(
            rows,
            ("reader", "when late", "taken", "dropped", "behind"),
            title="readers",
            right=("taken", "dropped", "behind"),
        )
    if report.get("users"):
        does = [
            ", ".join(word for word, key in (("puts", "puts"), ("takes", "gets"), ("closed", "closed")) if u[key])
            or "-"
            for u in report["users"]
        ]
        page.table(
            zip(map(_who, (u["owner"] for u in report["users"])), does, strict=True), ("user", "does"), title="users"
        )
    if report.get("leases"):
        rows = [
            (_who(lease["owner"]), lease["item"], size(lease["bytes"]), lease["delivered"])
            for lease in report["leases"]
        ]
        page.table(
            rows, ("lent to", "item", "bytes", "delivered"), title="leases", right=("item", "bytes", "delivered")
        )
    if "summary" in report:
        page.line()
        page.line(plain(report["summary"]))
    if "values" in report:
        page.line("\n".join(map(plain, report["values"].split("\n"))))
