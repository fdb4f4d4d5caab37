"""Errors of tasks in worker processes; also `concurrent.futures.process.BrokenProcessPool`, which is slow to import."""

from __future__ import annotations

from concurrent.futures.process import BrokenProcessPool

from copyless.errors import CopylessError

__all__ = ["TaskUnreadableError", "WorkerDiedError"]


class WorkerDiedError(CopylessError, BrokenProcessPool):
    """The worker process that ran this task was killed or ended. Other tasks go on."""

    __module__ = "copyless.errors"  # its public place, which pickles name


class TaskUnreadableError(CopylessError, BrokenProcessPool):
    """A task, or its result, could not be unpickled where it arrived. Says the error and its traceback as text."""

    __module__ = "copyless.errors"
