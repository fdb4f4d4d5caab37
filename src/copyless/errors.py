"""Every error that copyless raises. Each class also derives from a built-in exception that programs already catch."""

from __future__ import annotations

import sys

from copyless._typing import TYPE_CHECKING, Any

if sys.version_info >= (3, 13):
    from queue import ShutDown as _QueueShutDown
else:
    _QueueShutDown = Exception

__all__ = [
    "BootUnknownError",
    "ClosedError",
    "CopylessError",
    "CorruptSegmentError",
    "EndOfQueueError",
    "ForeignHostError",
    "LimitExceededError",
    "NotHeldError",
    "OutOfSharedMemory",
    "OwnerDiedError",
    "RegistryBusyError",
    "ServerEndedError",
    "ShutDown",
    "StaleHandleError",
    "StaleNameError",
    "SystemLimitError",
    "TableFullError",
    "TaskUnreadableError",
    "UnnamedError",
    "UnsendableError",
    "WorkerDiedError",
    "WrongProcessError",
]


class CopylessError(Exception):
    """Base class of all errors of copyless."""


class OutOfSharedMemory(CopylessError, OSError, MemoryError):
    """There is no room for a block of shared memory.

    The text names the mount, its size, the size that was requested, and what to do. Also an `OSError` (usually ENOSPC)
    and a `MemoryError`.

    Attributes
    ----------
    asked : int
        The request in bytes; 0 if it is not known.
    directory : str
        The storage directory.
    """

    asked: int = 0
    directory: str = ""

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), self.args, {"asked": self.asked, "directory": self.directory}


class LimitExceededError(CopylessError):
    """A fixed limit is reached. The text names the limit and what to do.

    Attributes
    ----------
    limit : int
        The limit; 0 if it is not known.
    present : int
        How many are in use; 0 if it is not known.
    remedy : str
        What to do.
    """

    limit: int = 0
    present: int = 0
    remedy: str = ""

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), self.args, dict(self.__dict__)


class TableFullError(LimitExceededError, OutOfSharedMemory):
    """A table of fixed size has no free entry.

    Also an `OutOfSharedMemory`, so that programs that have another way without shared memory take it here too.
    """


class SystemLimitError(LimitExceededError, OutOfSharedMemory):
    """A limit of the process or the system other than memory is reached: open files, threads, address space, file size.

    `errno` is the system's. Also an `OutOfSharedMemory`, so that programs that have another way without shared memory
    take it here too.
    """


class StaleHandleError(CopylessError, ValueError):
    """The memory or object that a handle names no longer exists. A stale handle never gives access to other data."""


class StaleNameError(StaleHandleError):
    """The name of this queue, ring or lock was unlinked and now belongs to another object. Open the name again."""


class CorruptSegmentError(CopylessError, ValueError):
    """A shared file, or a field in one, is damaged: truncated, grown, replaced or overwritten."""


class ForeignHostError(CopylessError, ValueError):
    """The handle was made on another host or in another storage directory. Send the object itself, by value.

    Also raised when the storage directory is in use by another host, when it was made before this host was last booted,
    and when an item of a queue lies in a directory that this process does not see.
    """


class BootUnknownError(CopylessError, OSError):
    """The identity of the current boot cannot be read, so the storage directory can be neither trusted nor removed."""


class RegistryBusyError(CopylessError, TimeoutError):
    """Another process was making or removing the registry of the storage directory, or held its lock, and did not go on
    in time.
    """


class OwnerDiedError(CopylessError, RuntimeError):
    """The process that held the requested lock, permit, item or rank has died."""


class WrongProcessError(CopylessError, RuntimeError):
    """The object belongs to the parent process and cannot be used in this forked child."""


class UnsendableError(CopylessError, TypeError, RuntimeError):
    """The object cannot be sent this way. The text says why, and what to send instead.

    A `TypeError`, as for any object that cannot be pickled, and a `RuntimeError`, as `torch.multiprocessing` raises.
    """


class UnnamedError(CopylessError, ValueError):
    """The array needs a name: its message may be loaded several times, or after this process has ended.

    Not a `TypeError`: Ray would answer one by inspecting each attribute of the object.
    """


class NotHeldError(CopylessError, ValueError, RuntimeError, AssertionError):
    """A lock or semaphore was released too often, or by a thread or process that does not hold it.

    Derives from everything that the standard library raises in this case: `ValueError` and `AssertionError` in
    multiprocessing, `RuntimeError` in threading.
    """


class ServerEndedError(CopylessError, EOFError, ConnectionError):
    """The server process of the manager, or the connection to it, has ended."""


class ClosedError(CopylessError, ValueError):
    """The object is closed."""


class ShutDown(ClosedError, _QueueShutDown):
    """The queue was shut down. Also a `queue.ShutDown`, where Python has it (3.13)."""

    __module__ = "copyless.queues"  # its public place, which pickles name


class EndOfQueueError(ClosedError, EOFError):
    """No more items can arrive: all producers have ended or closed the queue, and no other process has it."""


if TYPE_CHECKING:
    from concurrent.futures.process import BrokenProcessPool as _Broken

    class WorkerDiedError(CopylessError, _Broken):
        """The worker process that ran this task was killed or has ended. Other tasks continue."""

    class TaskUnreadableError(CopylessError, _Broken):
        """A task, or its result, could not be unpickled by its receiver. The text has the error and its traceback."""


_OF_TASKS = {
    "WorkerDiedError": "The worker process that ran this task was killed or has ended. Other tasks continue.",
    "TaskUnreadableError": "A task, or its result, could not be unpickled by its receiver. The text has the error "
    "and its traceback.",
}


def __getattr__(name: str) -> Any:
    if name not in _OF_TASKS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from concurrent.futures.process import BrokenProcessPool  # slow to import

    for each, text in _OF_TASKS.items():
        globals().setdefault(
            each, type(each, (CopylessError, BrokenProcessPool), {"__doc__": text, "__module__": __name__})
        )
    return globals()[name]
