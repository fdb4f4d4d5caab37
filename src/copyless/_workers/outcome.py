"""The result of a task, or its exception with the traceback of the worker, from an answer."""

from __future__ import annotations

import signal

from copyless import errors
from copyless._first_use import first_use
from copyless._transfer.sealed import unseal
from copyless._typing import Any
from copyless._workers.protocol import DONE, RAISED, UNSENDABLE

__all__ = ["died", "how_it_ended", "outcome", "revive", "unreadable"]


def outcome(kind: int, value: Any) -> tuple[bool, object]:
    """(whether the task succeeded, its result or exception)."""
    if kind == DONE:
        return True, value
    if kind == RAISED:
        return False, revive(*value)
    if kind == UNSENDABLE:
        with first_use:
            from multiprocessing.pool import MaybeEncodingError  # type: ignore[attr-defined]

        return False, MaybeEncodingError(value[1], value[2])
    return False, value


def revive(sealed: object, text: str) -> BaseException:
    """An exception of a worker, with the worker's traceback as its cause."""
    error: BaseException
    if sealed is None:
        error = errors.TaskUnreadableError(f"the task raised an exception that cannot be pickled:\n{text}")
    else:
        try:
            error = unseal(sealed)
        except BaseException:
            error = errors.TaskUnreadableError(f"the task raised an exception that cannot be unpickled:\n{text}")
    with first_use:
        from multiprocessing.pool import RemoteTraceback  # type: ignore[attr-defined]

    error.__cause__ = RemoteTraceback(f'\n"""\n{text}"""')
    return error


def unreadable(text: str) -> errors.TaskUnreadableError:
    """The exception of a task whose arguments or result could not be unpickled."""
    return errors.TaskUnreadableError(f"the task, or its result, could not be unpickled by its receiver:\n{text}")


def how_it_ended(code: int | None) -> str:
    """How a worker with this exit code ended, for texts."""
    if code is None:
        return "ended"
    try:
        return f"ended with exit code {code}" if code >= 0 else f"was killed by {signal.Signals(-code).name}"
    except ValueError:  # a signal without a name
        return f"was killed by signal {-code}"


def died(pid: int, code: int | None) -> errors.WorkerDiedError:
    """The exception of a task in which worker `pid` ended, with this exit code if it is known."""
    how = how_it_ended(code)
    return errors.WorkerDiedError(
        f"the worker process {pid} {how} while it ran this task. The other tasks go on; with retries=n "
        "the pool would run it again"
    )
