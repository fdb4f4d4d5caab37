"""Objects (locks, queues, rings) in blocks of their own: made, named, found again by name or handle."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from typing import Any, NoReturn

from copyless._core import _blocks, _names, c_library
from copyless.errors import CorruptSegmentError, StaleHandleError
from copyless.storage import handles
from copyless.storage.store import need

__all__ = ["check_name", "obtain", "stand"]

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


def obtain(
    name: str | None, persist: bool, make: Callable[[], _blocks.Block], kinds: tuple[int, ...]
) -> tuple[_blocks.Block, bool]:
    """A new block with an object, or the one that has the name already: (block, whether it is new).

    `make` fills the block completely: once published, anybody may use it.
    """
    need()
    if name is None:
        if persist:
            raise ValueError("only what has a name can persist: give name=")
        return make(), True
    text = check_name(name)
    while True:
        found = _names.lookup(text)
        if found is not None:
            try:
                block = handles.resolve(found[0])[1]
            except StaleHandleError:
                continue  # it went between our two calls
            if _blocks.object_kind(block) not in kinds:
                _refuse(name, block)
            return block, False
        block = make()
        if _names.publish(block, text, 0, 0, persist):
            return block, True


def _refuse(name: str, block: _blocks.Block) -> NoReturn:
    what = KINDS.get(_blocks.object_kind(block), ("", "array"))[1]
    raise FileExistsError(
        17, f"the name belongs to another thing ({what}): choose another, or copyless.unlink it", name
    )
