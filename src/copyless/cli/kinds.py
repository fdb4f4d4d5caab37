"""What lies in each block: its kind, and shape and dtype where the store records them, without NumPy.

A name's entry describes a named array, and the head of a lock, queue or ring describes that. The shape of an array
without a name is known only to the processes that hold it: such a block is "memory".
"""

from __future__ import annotations

import re
import struct

from copyless._core import _states, c_library
from copyless._core._handles import SPEC_HEAD
from copyless._core._observe import Observer
from copyless._typing import TYPE_CHECKING
from copyless.errors import CopylessError

if TYPE_CHECKING:
    from copyless._core import _observe
    from copyless._core._observe import Name
    from copyless.cli.programs import Holder

    class Block(_observe.Block, total=False):
        """A block in the listing: what the table says of it, and what `describe` and `look.blocks_of` add."""

        name: str | None
        making: str | None
        slots: list[int]
        pids: list[int]
        holders: list[Holder]
        messages: int
        persistent: bool
        queues: list[int]
        state: str
        message_seconds_left: float | None
        kind: str
        shape: list[int] | None
        dtype: str | None


__all__ = ["class_of", "describe", "dtype_text", "fields_of_ring", "has_state"]

_BOUNDED = 2  # a flag of a semaphore's head
_QUEUES = {8: "JoinableQueue", 4: "Queue", 0: "SimpleQueue"}  # the class, in the flags of a queue's head
_CLASSES = {
    c_library.KIND_LOCK: "Lock",
    c_library.KIND_RLOCK: "RLock",
    c_library.KIND_RWLOCK: "RWLock",
    c_library.KIND_SEMAPHORE: "Semaphore",
    c_library.KIND_ROBUST_SEMAPHORE: "Semaphore",
    c_library.KIND_CONDITION: "Condition",
    c_library.KIND_EVENT: "Event",
    c_library.KIND_BARRIER: "Barrier",
    c_library.KIND_RING: "RingBuffer",
}
_NUMBERS = {"b": "bool", "i": "int", "u": "uint", "f": "float", "c": "complex"}
_TIMES = {"M": "datetime64", "m": "timedelta64"}
_FIELD = re.compile(r"""\((None|'[^']*'|"[^"]*"), \(([\d, ]*)\), b(?:'([^']*)'|"([^"]*)")\)""")


def has_state(kind: str) -> bool:
    """Whether blocks of this kind begin with the head of an object."""
    return kind == "Value" or kind in _CLASSES.values() or kind in _QUEUES.values() or kind == "BoundedSemaphore"


def class_of(kind: int, flags: int) -> str:
    """The name of the class of an object in a block."""
    if kind == c_library.KIND_QUEUE:
        return next(name for bit, name in _QUEUES.items() if flags & bit == bit)
    if kind == c_library.KIND_SEMAPHORE and flags & _BOUNDED:
        return "BoundedSemaphore"
    return _CLASSES.get(kind, f"object of kind {kind}")


def dtype_text(described: bytes) -> str:
    """A dtype as NumPy writes it, from its description.

    >>> [dtype_text(text) for text in (b"<f8", b"|u1", b">i4", b"<M8[ns]", b"|S3")]
    ['float64', 'uint8', '>i4', 'datetime64[ns]', 'S3']
    """
    text = described.decode("utf-8", "replace")
    if text.startswith("+"):  # more than a plain type
        plain = re.match(r"\+\{'type': '([^']*)'", text)
        names = re.findall(r"[\[ ]\('([^']*)', ", text)
        if plain is None:
            return f"fields {', '.join(names)}" if names else "structured"
        text = plain.group(1)
    if text.startswith("ml:"):
        return text[3:]
    order, letter, rest = text[:1], text[1:2], text[2:]
    if letter in _TIMES and order != ">":
        return _TIMES[letter] + rest[1:]
    if letter in _NUMBERS and rest.isdecimal() and order != ">":
        return _NUMBERS[letter] + (str(8 * int(rest)) if letter != "b" else "")
    return text[1:] if order == "|" else text


def fields_of_ring(spec: bytes) -> list[tuple[str | None, list[int], str]]:
    """(name, shape, dtype) of each array of a frame; none if the description is not of the usual form."""
    found = []
    for name, shape, text, other in _FIELD.findall(spec.decode("utf-8", "replace")):
        sizes = [int(n) for n in shape.replace(" ", "").split(",") if n]
        found.append((None if name == "None" else name[1:-1], sizes, dtype_text((text or other).encode())))
    return found


def _of_array(spec: bytes) -> tuple[list[int], str]:
    _, ndim, length, _ = SPEC_HEAD.unpack_from(spec)
    sizes = struct.unpack_from(f"<{ndim}q", spec, SPEC_HEAD.size + length)
    return list(sizes), dtype_text(spec[SPEC_HEAD.size : SPEC_HEAD.size + length])


def _of_ring(observer: Observer, block: Block, head: bytes) -> tuple[list[int] | None, str | None]:
    (copied,) = observer.read(block["number"], [(0, _states.bytes_of_state(head, block["capacity"]))])
    fields = fields_of_ring(_states.state(copied, block["capacity"], block["number"])["spec"])
    if len(fields) == 1 and fields[0][0] is None:
        return fields[0][1], fields[0][2]
    shown = [f"{name}: {dtype} {tuple(shape)}" for name, shape, dtype in fields]
    return None, ", ".join(shown) or None


def _look(observer: Observer, block: Block, entry: Name | None) -> tuple[str, list[int] | None, str | None]:
    if block["external"]:
        return "SharedMemory", None, None
    if entry is not None and entry["spec_length"]:
        (spec,) = observer.read(block["number"], [(entry["spec_offset"], entry["spec_length"])])
        return "array", *_of_array(spec)
    if block["among_objects"] or block["bytes"] >= _states.HEAD_BYTES:
        # Objects are in segments of their own. Among arrays there are only rings and values, and bytes of users, which
        # may look like anything.
        (head,) = observer.read(block["number"], [(0, min(_states.HEAD_BYTES, block["capacity"]))])
        kind, flags = _states.described(head)
        if kind and block["among_objects"]:
            return class_of(kind, flags), None, None
        if kind == c_library.KIND_RING and block["alone"]:
            return "RingBuffer", *_of_ring(observer, block, head)
        if (
            kind and block["alone"] and entry is not None
        ):  # an object too large for their segments: a queue with many leases
            return class_of(kind, flags), None, None
        if kind == c_library.KIND_RLOCK:
            return "Value", None, None
    if block["queues"]:
        return "part of a queue" if block["among_objects"] else "item", None, None
    return "array" if entry is not None else "memory", None, None


def describe(observer: Observer, block: Block, entry: Name | None) -> None:
    """Add `kind`, `shape` and `dtype` to a block of a listing. `entry`: its name's entry."""
    try:
        block["kind"], block["shape"], block["dtype"] = _look(observer, block, entry)
    except (CopylessError, OSError, ValueError, struct.error):  # freed, or damaged: the other rows still count
        block["kind"], block["shape"], block["dtype"] = "unreadable", None, None
