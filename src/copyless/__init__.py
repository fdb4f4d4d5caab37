"""Python processes share memory (arrays, frames, queues, locks) without copying, leaking or hanging.

Public names are loaded when they are first used: importing the package pulls in neither NumPy nor the command's libraries.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "copyless.arrays": (
        "SharedArray", "array", "asarray", "attach", "empty", "empty_like", "frombuffer", "full", "handle", "memmap",
        "ones", "open", "unlink", "zeros", "zeros_like",
    ),
    "copyless.sharing": ("is_shared", "share"),
    "copyless.memory": ("Alloc_mem", "Free_mem", "Get_address", "Memory", "buffer"),
    "copyless.shared_memory": ("ShareableList", "SharedMemory"),
    "copyless.sharedctypes": ("Array", "RawArray", "RawValue", "Value"),
    "copyless.queues": ("JoinableQueue", "Queue", "ShutDown", "SimpleQueue"),
    "copyless.rings": ("RingBuffer",),
    "copyless.synchronize": (
        "Barrier", "BoundedSemaphore", "Condition", "Event", "Lock", "RLock", "RWLock", "Semaphore",
    ),
    "copyless.pool": ("Pool",),
    "copyless.futures": ("ProcessPoolExecutor",),
    "copyless.storage.handles": ("Handle",),
    "copyless.storage.settings": ("configure",),
    "copyless.storage.store": ("reap", "trim"),
    "copyless.errors": (
        "ClosedError", "CopylessError", "CorruptSegmentError", "EndOfQueueError", "ForeignHostError", "OutOfSharedMemory", "OwnerDiedError",
        "StaleHandleError", "TaskUnreadableError", "WorkerDiedError",
    ),
}  # fmt: skip
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Alloc_mem",
    "Array",
    "Barrier",
    "BoundedSemaphore",
    "ClosedError",
    "Condition",
    "CopylessError",
    "CorruptSegmentError",
    "EndOfQueueError",
    "Event",
    "ForeignHostError",
    "Free_mem",
    "Get_address",
    "Handle",
    "JoinableQueue",
    "Lock",
    "Memory",
    "OutOfSharedMemory",
    "OwnerDiedError",
    "Pool",
    "ProcessPoolExecutor",
    "Queue",
    "RLock",
    "RWLock",
    "RawArray",
    "RawValue",
    "RingBuffer",
    "Semaphore",
    "ShareableList",
    "SharedArray",
    "SharedMemory",
    "ShutDown",
    "SimpleQueue",
    "StaleHandleError",
    "TaskUnreadableError",
    "Value",
    "WorkerDiedError",
    "array",
    "asarray",
    "attach",
    "buffer",
    "configure",
    "empty",
    "empty_like",
    "frombuffer",
    "full",
    "handle",
    "is_shared",
    "memmap",
    "ones",
    "open",
    "reap",
    "share",
    "trim",
    "unlink",
    "zeros",
    "zeros_like",
]

if TYPE_CHECKING:
    from copyless.arrays import (
        SharedArray,
        array,
        asarray,
        attach,
        empty,
        empty_like,
        frombuffer,
        full,
        handle,
        memmap,
        ones,
        open,
        unlink,
        zeros,
        zeros_like,
    )
    from copyless.errors import (
        ClosedError,
        CopylessError,
        CorruptSegmentError,
        EndOfQueueError,
        ForeignHostError,
        OutOfSharedMemory,
        OwnerDiedError,
        StaleHandleError,
        TaskUnreadableError,
        WorkerDiedError,
    )
    from copyless.futures import ProcessPoolExecutor
    from copyless.memory import Alloc_mem, Free_mem, Get_address, Memory, buffer
    from copyless.pool import Pool
    from copyless.queues import JoinableQueue, Queue, ShutDown, SimpleQueue
    from copyless.rings import RingBuffer
    from copyless.shared_memory import ShareableList, SharedMemory
    from copyless.sharedctypes import Array, RawArray, RawValue, Value
    from copyless.sharing import is_shared, share
    from copyless.storage.handles import Handle
    from copyless.storage.settings import configure
    from copyless.storage.store import reap, trim
    from copyless.synchronize import Barrier, BoundedSemaphore, Condition, Event, Lock, RLock, RWLock, Semaphore


def __getattr__(name: str) -> Any:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module 'copyless' has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
