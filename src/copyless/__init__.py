"""Python processes share memory (arrays, frames, queues, locks) without copying, leaking or hanging.

Public names are loaded when they are first used: importing the package pulls in neither NumPy nor the command's libraries.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from copyless._first_use import first_use

__version__ = "0.1.0"

_HOMES = {
    "copyless.arrays": (
        "SharedArray", "array", "asarray", "attach", "empty", "empty_like", "frombuffer", "full", "full_like",
        "handle", "memmap", "ones", "ones_like", "open", "unlink", "zeros", "zeros_like",
    ),
    "copyless.sharing": ("is_shared", "share"),
    "copyless.explaining": ("Explanation", "explain"),
    "copyless.records": ("to_recarray",),
    "copyless.memory": ("Alloc_mem", "Free_mem", "Get_address", "Memory", "buffer"),
    "copyless.shared_memory": ("ShareableList", "SharedMemory"),
    "copyless.sharedctypes": ("Array", "RawArray", "RawValue", "Value"),
    "copyless.queues": ("JoinableQueue", "Queue", "ShutDown", "SimpleQueue"),
    "copyless.rings": ("RingBuffer",),
    "copyless.synchronize": (
        "Barrier", "BoundedSemaphore", "Condition", "Event", "Lock", "RLock", "RWLock", "Semaphore",
    ),
    "copyless.connection": ("Pipe",),
    "copyless.waiting": ("await_", "wait"),
    "copyless.pool": ("Pool",),
    "copyless.futures": ("ProcessPoolExecutor",),
    "copyless.managers": ("BaseManager", "SharedMemoryManager", "SyncManager"),
    "copyless.context": (
        "AuthenticationError", "BufferTooShort", "Manager", "ProcessError", "TimeoutError", "get_context",
    ),
    "multiprocessing": (  # processes and start methods are the standard library's own
        "SUBDEBUG", "SUBWARNING", "Process", "active_children", "allow_connection_pickling", "cpu_count", "current_process", "freeze_support",
        "get_all_start_methods", "get_logger", "get_start_method", "log_to_stderr", "parent_process", "reducer",
        "set_executable", "set_forkserver_preload", "set_start_method",
    ),
    "copyless.storage.handles": ("Handle",),
    "copyless.storage.settings": ("configure",),
    "copyless.storage.store": ("reap", "trim"),
    "copyless.errors": (
        "BootUnknownError", "ClosedError", "CopylessError", "CorruptSegmentError", "EndOfQueueError", "ForeignHostError",
        "LimitExceededError", "NotHeldError", "OutOfSharedMemory", "OwnerDiedError", "RegistryBusyError", "ServerEndedError",
        "StaleHandleError", "StaleNameError", "TaskUnreadableError", "UnnamedError", "UnsendableError",
        "WorkerDiedError", "WrongProcessError",
    ),
}  # fmt: skip
# What programs name as attributes after ``import copyless`` alone.
_MODULES = frozenset((
    "comm", "connection", "context", "dummy", "errors", "forkserver", "futures", "heap", "managers", "memory", "pool", "popen_fork",
    "popen_forkserver", "popen_spawn_posix", "process", "queues", "reduction", "resource_sharer", "resource_tracker", "rings",
    "shared_memory", "sharedctypes", "spawn", "synchronize", "util",
))  # fmt: skip
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Alloc_mem",
    "Array",
    "AuthenticationError",
    "Barrier",
    "BaseManager",
    "BootUnknownError",
    "BoundedSemaphore",
    "BufferTooShort",
    "ClosedError",
    "Condition",
    "CopylessError",
    "CorruptSegmentError",
    "EndOfQueueError",
    "Event",
    "Explanation",
    "ForeignHostError",
    "Free_mem",
    "Get_address",
    "Handle",
    "JoinableQueue",
    "LimitExceededError",
    "Lock",
    "Manager",
    "Memory",
    "NotHeldError",
    "OutOfSharedMemory",
    "OwnerDiedError",
    "Pipe",
    "Pool",
    "Process",
    "ProcessError",
    "ProcessPoolExecutor",
    "Queue",
    "RLock",
    "RWLock",
    "RawArray",
    "RawValue",
    "RegistryBusyError",
    "RingBuffer",
    "Semaphore",
    "ServerEndedError",
    "ShareableList",
    "SharedArray",
    "SharedMemory",
    "SharedMemoryManager",
    "ShutDown",
    "SimpleQueue",
    "StaleHandleError",
    "StaleNameError",
    "SyncManager",
    "TaskUnreadableError",
    "TimeoutError",
    "UnnamedError",
    "UnsendableError",
    "Value",
    "WorkerDiedError",
    "WrongProcessError",
    "active_children",
    "allow_connection_pickling",
    "array",
    "asarray",
    "attach",
    "await_",
    "buffer",
    "configure",
    "cpu_count",
    "current_process",
    "empty",
    "empty_like",
    "explain",
    "freeze_support",
    "frombuffer",
    "full",
    "full_like",
    "get_all_start_methods",
    "get_context",
    "get_logger",
    "get_start_method",
    "handle",
    "is_shared",
    "log_to_stderr",
    "memmap",
    "ones",
    "ones_like",
    "open",
    "parent_process",
    "reap",
    "reducer",
    "set_executable",
    "set_forkserver_preload",
    "set_start_method",
    "share",
    "to_recarray",
    "trim",
    "unlink",
    "wait",
    "zeros",
    "zeros_like",
]

if TYPE_CHECKING:
    from multiprocessing import (
        Process,
        active_children,
        allow_connection_pickling,
        cpu_count,
        current_process,
        freeze_support,
        get_all_start_methods,
        get_logger,
        get_start_method,
        log_to_stderr,
        parent_process,
        reducer,
        set_executable,
        set_forkserver_preload,
        set_start_method,
    )
    from multiprocessing.util import SUBDEBUG as SUBDEBUG
    from multiprocessing.util import SUBWARNING as SUBWARNING

    from copyless import comm as comm
    from copyless import connection as connection
    from copyless import context as context
    from copyless import dummy as dummy
    from copyless import errors as errors
    from copyless import forkserver as forkserver
    from copyless import futures as futures
    from copyless import heap as heap
    from copyless import managers as managers
    from copyless import memory as memory
    from copyless import pool as pool
    from copyless import popen_fork as popen_fork
    from copyless import popen_forkserver as popen_forkserver
    from copyless import popen_spawn_posix as popen_spawn_posix
    from copyless import process as process
    from copyless import queues as queues
    from copyless import reduction as reduction
    from copyless import resource_sharer as resource_sharer
    from copyless import resource_tracker as resource_tracker
    from copyless import rings as rings
    from copyless import shared_memory as shared_memory
    from copyless import sharedctypes as sharedctypes
    from copyless import spawn as spawn
    from copyless import synchronize as synchronize
    from copyless import util as util
    from copyless.arrays import (
        SharedArray,
        array,
        asarray,
        attach,
        empty,
        empty_like,
        frombuffer,
        full,
        full_like,
        handle,
        memmap,
        ones,
        ones_like,
        open,
        unlink,
        zeros,
        zeros_like,
    )
    from copyless.connection import Pipe
    from copyless.context import (
        AuthenticationError,
        BufferTooShort,
        Manager,
        ProcessError,
        TimeoutError,
        get_context,
    )
    from copyless.errors import (
        BootUnknownError,
        ClosedError,
        CopylessError,
        CorruptSegmentError,
        EndOfQueueError,
        ForeignHostError,
        LimitExceededError,
        NotHeldError,
        OutOfSharedMemory,
        OwnerDiedError,
        RegistryBusyError,
        ServerEndedError,
        StaleHandleError,
        StaleNameError,
        TaskUnreadableError,
        UnnamedError,
        UnsendableError,
        WorkerDiedError,
        WrongProcessError,
    )
    from copyless.explaining import Explanation, explain
    from copyless.futures import ProcessPoolExecutor
    from copyless.managers import BaseManager, SharedMemoryManager, SyncManager
    from copyless.memory import Alloc_mem, Free_mem, Get_address, Memory, buffer
    from copyless.pool import Pool
    from copyless.queues import JoinableQueue, Queue, ShutDown, SimpleQueue
    from copyless.records import to_recarray
    from copyless.rings import RingBuffer
    from copyless.shared_memory import ShareableList, SharedMemory
    from copyless.sharedctypes import Array, RawArray, RawValue, Value
    from copyless.sharing import is_shared, share
    from copyless.storage.handles import Handle
    from copyless.storage.settings import configure
    from copyless.storage.store import reap, trim
    from copyless.synchronize import Barrier, BoundedSemaphore, Condition, Event, Lock, RLock, RWLock, Semaphore
    from copyless.waiting import await_, wait


if not TYPE_CHECKING:  # a checker shall see a misspelt name

    def __getattr__(name: str) -> Any:
        home = _HOME_OF.get(name)
        if name in _MODULES:
            home = f"copyless.{name}"
        elif home is None:
            raise AttributeError(f"module 'copyless' has no attribute {name!r}")
        with first_use:
            module = importlib.import_module(home)
        if name not in _HOME_OF:
            return module
        value = getattr(module, name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
