"""Every error the package raises. Each is also a built-in that code already catches."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any

__all__ = [
    "ClosedError",
    "CopylessError",
    "CorruptSegmentError",
    "EndOfQueueError",
    "ForeignHostError",
    "NotHeldError",
    "OutOfSharedMemory",
    "OwnerDiedError",
    "ServerEndedError",
    "StaleHandleError",
    "TaskUnreadableError",
    "WorkerDiedError",
]


class CopylessError(Exception):
    """Base of all errors that are copyless's own."""


class OutOfSharedMemory(CopylessError, OSError, MemoryError):
    """There is no room for a block. Says where, how large that is, what was asked for, and how to widen it.

    `asked` is the request in bytes (0 when it is not known), `directory` the storage directory.
    """

    asked: int = 0
    directory: str = ""

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), self.args, {"asked": self.asked, "directory": self.directory}


class StaleHandleError(CopylessError, ValueError):
    """What the handle names is gone. It never shows another's bytes."""


class CorruptSegmentError(CopylessError, ValueError):
    """A shared file, or a field in one, is not what it must be: truncated, grown, replaced or overwritten."""


class ForeignHostError(CopylessError, ValueError):
    """The handle was made on another host, or in another storage directory: send the object itself, by value."""


class OwnerDiedError(CopylessError, RuntimeError):
    """The process that held what was asked for has died."""


class NotHeldError(CopylessError, ValueError, RuntimeError, AssertionError):
    """A lock or semaphore was released more often than acquired, or by one who does not hold it.

    All that the standard library raises there: ValueError and AssertionError in multiprocessing, RuntimeError in threading.
    """


class ServerEndedError(CopylessError, EOFError, ConnectionError):
    """The manager's server process has ended, or the connection to it."""


class ClosedError(CopylessError, ValueError):
    """The object was closed."""


class EndOfQueueError(ClosedError, EOFError):
    """Nothing more will come: every process that put into the queue has ended or closed it, and no other has it."""


if TYPE_CHECKING:
    from copyless.crew_errors import TaskUnreadableError, WorkerDiedError


def __getattr__(name: str) -> Any:
    if name in ("TaskUnreadableError", "WorkerDiedError"):  # their base lies in a module that is slow to import
        from copyless import crew_errors

        return getattr(crew_errors, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


_AGAIN, _CORRUPT, _STALE, _FULL, _TABLE_FULL, _SYSTEM, _CLOSED = -1, -4, -5, -6, -7, -10, -12


def out_of_shared_memory(code: int, what: str, asked: int, directory: str) -> OutOfSharedMemory:
    """Name the mount, its size, the request and the remedy."""
    try:
        st = os.statvfs(directory)
        mount = f"{directory}: {st.f_blocks * st.f_frsize:,} bytes in all, {st.f_bavail * st.f_frsize:,} free"
    except OSError:
        mount = directory
    remedy = (
        "free arrays, call copyless.trim(), or give it more room (mount -o remount,size=...; Docker --shm-size=...)"
    )
    if "memory.max" in what or "available" in what:
        remedy = "free memory, or raise the limit"
    text = f"out of shared memory: {what}"
    if asked:
        text += f"; asked for {asked:,} bytes"
    error = OutOfSharedMemory(
        code or errno.ENOSPC, f"{text} ({mount}). Remedy: {remedy}, or set COPYLESS_DIR", directory
    )
    error.asked = asked
    error.directory = directory
    return error


def native_error(code: int, sys: int, what: str, asked: int) -> Exception:
    """The exception for a result of the native floor."""
    from copyless.storage import directory

    if code in (_FULL, _TABLE_FULL):
        return out_of_shared_memory(sys, what, asked, directory.current())
    if code == _STALE:
        return StaleHandleError(f"{what}. Whoever held it has let it go: keep the array until it is loaded")
    if code == _CORRUPT:
        return CorruptSegmentError(
            f"{what} (in {directory.current()}). End the programs that use it and run 'copyless reap --force'"
        )
    if code == _CLOSED:
        return ClosedError(what)
    if code == _SYSTEM and sys == errno.ENOMEM:
        return out_of_shared_memory(sys, what, asked, directory.current())
    if code == _SYSTEM:
        return OSError(sys, f"{os.strerror(sys)}: {what}")
    return CopylessError(f"{what} (result {code})")
