"""Objects (locks, queues, rings) in blocks of their own: made, named, found again by name or handle."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from typing import Any, NoReturn

from copyless._core import _blocks, _names, c_library
from copyless.errors import CorruptSegmentError
from copyless.storage import names
from copyless.storage.store import need

__all__ = ["check_name", "find_lasting", "obtain", "stand", "what_lies_in"]

# Which class stands on which kind of block.
KINDS = {
    c_library.KIND_LOCK: ("copyless.synchronize", "Lock"),
    c_library.KIND_RLOCK: ("copyless.synchronize", "RLock"),
    c_library.KIND_RWLOCK: ("copyless.synchronize", "RWLock"),
    c_library.KIND_SEMAPHORE: ("copyless.synchronize", "Semaphore"),
    c_library.KIND_ROBUST_SEMAPHORE: ("copyless.synchronize", "Semaphore"),
    c_library.KIND_CONDITION: ("copyless.synchronize", "Condition"),
    c_library.KIND_EVENT: ("copyless.synchronize", "Event"),
    c_library.KIND_BARRIER: ("copyless.synchronize", "Barrier"),
    c_library.KIND_QUEUE: ("copyless.queues", "SimpleQueue"),
    c_library.KIND_RING: ("copyless.rings", "RingBuffer"),
}


def check_name(name: str) -> bytes:
    """A checked name as bytes."""
    if not isinstance(name, str):
        raise TypeError(f"a name is a str, not {type(name).__name__!r}")
    text = os.fsencode(name)
    if not text:
        raise ValueError("a name must not be empty")
    if len(text) > 255:
        raise ValueError(f"a name has at most 255 bytes of UTF-8, this one {len(text)}: {name[:40]!r}...")
    if "/" in name or not name.isprintable():
        raise ValueError(f"a name must not hold '/', NUL, newlines or other control characters: {name!r}")
    return text


def stand(block: _blocks.Block) -> Any:
    """The object that lies in a block, as its class says."""
    kind = _blocks.object_kind(block)
    if kind not in KINDS:
        raise CorruptSegmentError(f"block {block.number} holds no object of this version (kind {kind})")
    module, name = KINDS[kind]
    return getattr(importlib.import_module(module), name)._from_block(block)


def what_lies_in(block: _blocks.Block, described: int) -> str:
    """What a named block holds, in a word; `described`: bytes of its description, which only arrays have."""
    kind = _blocks.object_kind(block)
    return "array" if described else "queue" if kind == c_library.KIND_QUEUE else KINDS.get(kind, ("", "array"))[1]


def find_lasting(name: str, text: bytes, take: bool) -> names.Found | None:
    """What `names.find` finds, unless that was shut down: then its name is free, and `take` takes it away from it."""
    while True:
        found = names.find(text)
        if found is None:
            return None
        ended, left = (False, 0) if found.described else _ended(found.block)
        if not ended:
            return found
        if not take:
            return None
        if _names.unpublish_of(text, found.block):
            if left:
                names.warn(
                    f"the {what_lies_in(found.block, 0)} {name!r} was shut down with {left} items in it, and its name is given to "
                    "a new one: whoever holds the old one may take them, else they are lost. To take them first, copyless.open the name"
                )
            return None


def _ended(block: _blocks.Block) -> tuple[bool, int]:
    """Whether an object was shut down for good, and how many items lie in it."""
    kind = _blocks.object_kind(block)
    if kind == c_library.KIND_QUEUE:
        from copyless._core import _queue

        return _queue.ended(block)
    if kind == c_library.KIND_RING:
        from copyless._core import _ring

        return _ring.ended(block), 0
    return False, 0


def obtain(
    name: str | None,
    persist: bool,
    exist_ok: bool,
    make: Callable[[], _blocks.Block],
    begin: Callable[[_blocks.Block], None] | None,
    kinds: tuple[int, ...],
) -> tuple[_blocks.Block, bool]:
    """A new block with an object, or the one that has the name already: (block, whether it is new).

    `make` fills the block completely, and `begin` does with it what the user wants done first: once published, anybody may use it.
    """
    need()
    if name is None:
        if persist:
            raise ValueError("only what has a name can persist: give name=")
        block = make()
        if begin is not None:
            begin(block)
        return block, True
    text = check_name(name)

    def look(turn: bool) -> tuple[_blocks.Block, bool] | None:
        found = find_lasting(name, text, turn)
        if found is None:
            return None
        block, described = found.block, found.described
        if not exist_ok:
            raise FileExistsError(
                17,
                f"a thing of this name exists ({what_lies_in(block, described)}): open it with copyless.open({name!r}), or "
                "exist_ok=True, or unlink it",
                name,
            )
        if described or _blocks.object_kind(block) not in kinds:
            _refuse(name, what_lies_in(block, described))
        names.tell_if_it_goes(name, found, persist)
        return block, False

    def make_it() -> tuple[_blocks.Block, bool] | None:
        block = make()
        if begin is not None:
            begin(block)
        return (block, True) if _names.publish(block, text, 0, 0, persist) else None

    return names.once(name, text, look, make_it)


def _refuse(name: str, what: str) -> NoReturn:
    raise FileExistsError(
        17, f"the name belongs to another thing ({what}): choose another, or copyless.unlink it", name
    )
