"""What `ls --kind` takes. The help lists it, and the documentation prints the help, so nothing compiled is imported."""

from __future__ import annotations

__all__ = ["GROUPS", "in_group"]

# Each group, and the kinds that it shows.
GROUPS: dict[str, tuple[str, ...]] = {
    "array": ("array",), "memory": ("memory",), "item": ("item",), "part": ("part of a queue",), "value": ("Value",),
    "posix": ("SharedMemory",), "ring": ("RingBuffer",), "queue": ("JoinableQueue", "Queue", "SimpleQueue"),
    "lock": ("Lock", "RLock", "RWLock"), "semaphore": ("Semaphore", "BoundedSemaphore"), "condition": ("Condition",),
    "event": ("Event",), "barrier": ("Barrier",),
}  # fmt: skip


def in_group(kind: str, asked: str) -> bool:
    """Whether `ls --kind ASKED` shows blocks of this kind."""
    return kind in GROUPS.get(asked, ()) or kind.lower() == asked
