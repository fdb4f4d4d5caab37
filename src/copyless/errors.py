"""Every error the package raises. Each is also a built-in that code already catches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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
    """Base of all errors that are copyless's own."""


class OutOfSharedMemory(CopylessError, OSError, MemoryError):
    """There is no room for a block. Says where, how large that is, what was asked for, and how to widen it.

    `asked` is the request in bytes (0 when it is not known), `directory` the storage directory.
    """

    asked: int = 0
    directory: str = ""

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), self.args, {"asked": self.asked, "directory": self.directory}


class LimitExceededError(CopylessError):
    """There are as many of something as there can be. Says of what, and what helps.

    `limit` is how many there can be, `present` how many there are (0 each when it is not known), `remedy` what helps.
    """

    limit: int = 0
    present: int = 0
    remedy: str = ""

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), self.args, dict(self.__dict__)


class TableFullError(LimitExceededError, OutOfSharedMemory):
    """A table of fixed size has no free entry. Also an `OutOfSharedMemory`, for who goes another way then."""


class SystemLimitError(LimitExceededError, OutOfSharedMemory):
    """The process or the system may not have more of something that is not memory's room: descriptors, address space, ...

    `errno` is the system's. Also an `OutOfSharedMemory`, for who goes another way then.
    """


class StaleHandleError(CopylessError, ValueError):
    """What the handle names is gone. It never shows another's bytes."""


class StaleNameError(StaleHandleError):
    """The name by which a queue, a ring or a lock is known here was unlinked, and another has it by now: open it anew."""


class CorruptSegmentError(CopylessError, ValueError):
    """A shared file, or a field in one, is not what it must be: truncated, grown, replaced or overwritten."""


class ForeignHostError(CopylessError, ValueError):
    """The handle was made on another host, or in another storage directory: send the object itself, by value.

    Also raised when the storage directory itself is in use by another host (or by this one before it was last booted),
    and for a queue's item that lies in a directory which this process does not see.
    """


class BootUnknownError(CopylessError, OSError):
    """This boot's identity cannot be read, so nothing in the storage directory can be trusted or removed."""


class RegistryBusyError(CopylessError, TimeoutError):
    """Another process was making or removing the storage directory's registry, and did not go on in time."""


class OwnerDiedError(CopylessError, RuntimeError):
    """The process that held what was asked for has died."""


class WrongProcessError(CopylessError, RuntimeError):
    """What is used here belongs to the process that this one was forked from."""


class UnsendableError(CopylessError, TypeError, RuntimeError):
    """The object cannot go this way. Says why, and what to send instead.

    A TypeError as what cannot be pickled raises, and a RuntimeError as `torch.multiprocessing` raises.
    """


class UnnamedError(CopylessError, ValueError):
    """What is sent this way may be loaded many times and later than this process lives, so it needs a name that keeps it.

    No TypeError, which Ray takes for a reason to look into each attribute of the object.
    """


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
