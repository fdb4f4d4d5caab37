"""The code of a worker process: lease a bundle, run its tasks, send the answers.

A worker marks each task on the board before it begins the task, and writes each answer into its log before it marks the
next task. So wherever a worker is killed, no task is both answered and reported as died. `worker_pool.py` describes the
whole.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from multiprocessing import current_process, parent_process, util

from copyless._attach import attach
from copyless._transfer.sealed import seal, sealed_error, text_of, unseal
from copyless._typing import TYPE_CHECKING, Any
from copyless._workers import _answers
from copyless._workers.named_functions import function_of
from copyless._workers.protocol import (
    ATOMS,
    BEGUN,
    DEAD,
    DIED,
    DONE,
    FULL,
    IN_LOG,
    LOG_BYTES,
    MANY,
    MIXED,
    NAMED,
    NO_ROOM,
    NO_START,
    NUMBER,
    PATIENCE,
    PID,
    RAISED,
    READY,
    SEALED,
    SINGLE,
    TRIES,
    UNREADABLE,
    UNSENDABLE,
    WIDTH,
)
from copyless._workers.starting import STARTING, forget_handlers, set_blocked_signals
from copyless.errors import ClosedError, OutOfSharedMemory, StaleHandleError
from copyless.queues import Empty

if TYPE_CHECKING:
    from copyless.queues import JoinableQueue, SimpleQueue

__all__ = ["work"]

_RANGE_MOST = 1 << 14  # tasks of a range up to which it is converted to a list


def work(
    names: list[bytes],
    mask: list[int],
    initializer: Callable[..., object] | None,
    initargs: tuple[object, ...],
    most: int | None,
    retries: int,
    log: int | None = None,
    idle: float | None = None,
) -> None:
    """Run a worker process until the queue is shut down, its parent has ended, or it was idle for `idle` seconds.

    Parameters
    ----------
    names
        Handles of the queue of tasks, the queue of answers and the board.
    mask
        Numbers of the signals that the parent's caller blocks.
    most
        Tasks after which it ends; None: no limit.
    log
        The offset of its log in the block of the board, in bytes; None: it has none.
    """
    current_process().name = current_process().name.removesuffix(STARTING)
    forget_handlers()
    set_blocked_signals(mask)  # all signals are blocked while a worker is forked
    try:
        tasks, results, board = (attach(name) for name in names)
    except StaleHandleError:
        return  # the parent ended before this process started
    try:
        answers = None if log is None else _answers.Log(board, log, LOG_BYTES, PATIENCE)
        if _initialize(initializer, initargs, results):
            _serve(tasks, Worker(memoryview(board).cast("Q"), results.put, answers, retries), most, idle)
    except KeyboardInterrupt:
        pass  # Ctrl-C reaches the parent too, which reports it


def _initialize(
    initializer: Callable[..., object] | None, initargs: tuple[object, ...], results: SimpleQueue[Any]
) -> bool:
    """Run the initializer. If it raises, report the error and return False."""
    me = os.getpid()
    if initializer is not None:
        try:
            initializer(*initargs)
        except BaseException as error:
            import traceback
            from concurrent.futures._base import LOGGER

            LOGGER.critical(
                "Exception in initializer:", exc_info=True
            )  # the message of the standard library's executor
            # Reported last: log records, perhaps sent through a queue of the standard library, have left by then.
            report = me, 0, NO_START, "".join(traceback.format_exception(error))
            util.Finalize(None, results.put, args=(report,), exitpriority=-50)
            return False
    with contextlib.suppress(OutOfSharedMemory):  # the parent needs it only if a worker ends early
        results.put((me, 0, READY, None))
    return True


def _serve(tasks: JoinableQueue[Any], worker: Worker, most: int | None, idle: float | None) -> None:
    """Lease bundles and run them."""
    done = 0
    while most is None or done < most:
        try:
            item = tasks._next(
                idle
            )  # also ends if the parent ended normally without shutting down the queue: Ctrl-C at its exit
        except (ClosedError, EOFError, Empty):
            return
        number, row, count, sealed = item
        if count < 0:  # the pool needs one worker less
            tasks.task_done(item)
            return
        done += worker.run_bundle(number, row, count, sealed)
        tasks.task_done(item)
        del item, sealed


class Worker:
    """Runs bundles, with one worker's row of the board, its log, and the queue of answers.

    Parameters
    ----------
    rows
        The rows of the board, as 64-bit words.
    put
        Sends a message to the pool.
    log
        The log of the worker; None: each answer is a separate message.
    retries
        How often a task runs again if its worker died.
    """

    __slots__ = ("_at", "_log", "_number", "_pid", "_put", "_retries", "_rows")

    def __init__(self, rows: memoryview, put: Callable[[Any], None], log: Any, retries: int) -> None:
        self._rows, self._put, self._log, self._retries = rows, put, log, retries
        self._pid = os.getpid()
        self._number = self._at = 0  # the number of the bundle, and the offset of its row

    def run_bundle(self, number: int, row: int, count: int, sealed: Any) -> int:
        """Run the tasks of a bundle that have no answer yet. Returns how many were run."""
        rows, at = self._rows, row * WIDTH
        if rows[at + NUMBER] != number:
            return 0  # all its tasks were answered, and its row belongs to another bundle
        self._number, self._at = number, at
        first: int = rows[at + BEGUN]
        if first:
            first = self._after_death(first - 1)
            if first >= count:
                return 0
        rows[at + PID] = self._pid
        rows[at + BEGUN] = first + 1
        try:
            function, style, batch = unseal(sealed)
            if style & NAMED:
                function, style = function_of(function), style & ~NAMED
        except BaseException as error:  # whatever unpickling an argument raises
            for i in range(first, count):
                self._answer(i, UNREADABLE, text_of(error))
            return count - first
        if self._log is None or count == 1:
            self._run_apart(function, style, batch, first, count)
        else:
            if type(batch) is range and count <= _RANGE_MOST:
                batch = list(batch)  # its items are read faster
            self._run_logged(function, style, batch, first, count)
        return count - first

    def _after_death(self, begun: int) -> int:
        """The task to continue with, after another worker died while it ran the task `begun`."""
        rows, at = self._rows, self._at
        if rows[at + TRIES] < self._retries:
            rows[at + TRIES] += 1
            return begun
        try:
            self._put((self._number, begun, DIED, rows[at + PID]))
        except ClosedError:
            raise
        except Exception:
            self._write_on_board(begun + 1 | DEAD)
        rows[at + TRIES] = 0
        return begun + 1

    def _run_apart(self, function: Callable[..., object], style: int, batch: Any, first: int, count: int) -> None:
        """Run tasks; each answer is a separate message."""
        for i in range(first, count):
            if i != first:
                self._mark(i)
            args = batch[i]
            try:
                if style == SINGLE:
                    value = function(args)
                elif style == FULL:
                    value = function(*args[0], **args[1])
                else:
                    value = function(*args)
            except BaseException as error:
                self._answer(i, RAISED, sealed_error(error))
                error = None  # type: ignore[assignment]
            else:
                if type(value) in ATOMS:
                    self._answer(i, DONE, value)
                else:
                    self._answer_with(i, value)
                del value
            del args

    def _run_logged(self, function: Callable[..., object], style: int, batch: Any, i: int, count: int) -> None:
        """Run tasks and send many answers in one message."""
        log, first = self._log, i
        begun, tries = self._at + BEGUN, self._at + TRIES if self._retries else 0
        log.begin(self._number, first)
        while i < count:
            if i != first:
                self._mark(i)
            i, why, what = log.run(function, style, batch, i, count, begun, tries)
            if why == _answers.OTHER:
                kind, value = (DONE, what) if type(what) in ATOMS else _packed(what)
                del what
                self._log_answer(i, kind, value)
                del value
                i += 1
                if i < count and not log.is_due():
                    continue
            elif why == _answers.RAISED:
                self._send()
                self._answer(i, RAISED, sealed_error(what))
                del what
                i += 1
                log.begin(self._number, i)
                continue
            self._send()
            log.begin(self._number, i)

    def _log_answer(self, i: int, kind: int, value: Any) -> None:
        """Write an answer into the log.

        If the log is full, it is sent first. An answer that is too large for an empty log is a separate message.
        """
        log = self._log
        add = log.add if kind == DONE else log.add_sealed if kind == SEALED and type(value) is bytes else None
        if add is None or not add(value):
            self._send()
            log.begin(self._number, i)
            if add is None or not add(value):
                self._answer(i, kind, value)
                log.begin(self._number, i + 1)

    def _mark(self, i: int) -> None:
        """Mark on the board that a task begins which is not the first of its bundle."""
        if self._retries:
            self._rows[self._at + TRIES] = 0
        self._rows[self._at + BEGUN] = i + 1

    def _send(self) -> None:
        """Send the answers in the log.

        If there is no room for the message, wait until the parent has read the log itself.
        """
        log = self._log
        if log.count:
            try:
                self._put((self._number, log.first, MIXED if log.mixed else MANY, log.take()))
            except ClosedError:
                raise
            except Exception:
                self._write_on_board(IN_LOG)

    def _answer_with(self, i: int, value: object) -> None:
        kind, value = _packed(value)
        self._answer(i, kind, value)

    def _answer(self, i: int, kind: int, value: object) -> None:
        """Answer one task.

        If neither memory nor disk has room for the answer, the task fails with a short message or a mark.
        """
        try:
            self._put((self._number, i, kind, value))
            return
        except ClosedError:
            raise
        except Exception as error:
            del value
            short = sealed_error(error)[0], str(error)
        try:
            self._put((self._number, i, RAISED, short))
        except ClosedError:
            raise
        except Exception:
            self._write_on_board(i + 1)

    def _write_on_board(self, mark: int) -> None:
        """Record on the board that an answer found no room, and wait until the parent has read it."""
        word = self._at + NO_ROOM
        self._rows[word] = mark
        seconds, parent = 0.0005, parent_process()
        while self._rows[word] == mark:
            if parent is not None and not parent.is_alive():
                raise ClosedError("the parent process has ended, and there is no memory for a message to it")
            time.sleep(seconds)
            seconds = min(2 * seconds, 0.01)


def _packed(value: object) -> tuple[int, object]:
    """(kind, value) of an answer with a result."""
    try:
        return SEALED, seal(value)
    except BaseException as error:  # whatever it is, the task failed and the worker continues
        return UNSENDABLE, (sealed_error(error), _repr(error), _repr(value))


def _repr(value: object) -> str:
    try:
        return repr(value)
    except BaseException:
        return f"<{type(value).__name__}, whose repr() failed>"
