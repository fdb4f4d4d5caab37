"""Receives the answers of the workers and gives each to its bundle.

Answers arrive in messages, in the order of the tasks of a bundle. The collector reads a worker's log itself if no
message has arrived for some milliseconds, because the worker may run a long task after short ones, and if the worker
has died. If memory had no room for a message, a mark on the board says so.
"""

from __future__ import annotations

import contextlib
from collections import deque

from copyless._core import _pickles
from copyless._core.failures import out_of_shared_memory
from copyless._storage import directory
from copyless._transfer.sealed import seal, text_of, unseal
from copyless._typing import Any
from copyless._workers.board import Board
from copyless._workers.bundle import Bundle
from copyless._workers.outcome import died, unreadable
from copyless._workers.protocol import (
    DEAD,
    DIED,
    DONE,
    IN_LOG,
    MANY,
    MIXED,
    NO_ROOM,
    PID,
    RAISED,
    SEALED,
    UNREADABLE,
    WIDTH,
)
from copyless.errors import OutOfSharedMemory
from copyless.queues import Empty

__all__ = ["Collector"]

_PAUSE = 0.2  # the most seconds between checks for answers without room or in a log
_SOON = 0.006  # seconds from the last message to the first check


class Collector:
    """The running bundles and their answers. One thread calls all methods but `post`, `wait_less`, `keep_log` and
    `take_all`.

    Parameters
    ----------
    board
        The board of the pool.
    results
        The queue of answers.
    lock
        The pool's lock, which is reentrant; it protects `bundles` and the free rows.
    """

    def __init__(self, board: Board, results: Any, lock: Any) -> None:
        self._board, self._results, self._lock = board, results, lock
        self.bundles: dict[int, Bundle] = {}  # by number
        self.exit_codes: dict[int, int | None] = {}  # exit codes of workers that have ended, by pid
        self.left_behind: list[tuple[int, int, int, bool, bytes]] = []  # answers in the logs of workers that have ended
        self._runs: dict[int, list[Any]] = {}  # by number: a bundle, and its results from its first unanswered task on
        self._posted: deque[Any] = deque()  # messages of other threads of the pool for which the queue had no room
        self._pause = _PAUSE

    # ---- receiving

    def post(self, message: Any) -> None:
        """Send a message of this process to the collecting thread."""
        try:
            self._results.put(message)
        except OutOfSharedMemory:
            self._posted.append(message)

    def look_around(self) -> None:
        """Make the collecting thread run its loop once, after its present pause. Never waits."""
        self._posted.append((0, 0, DONE, None))  # no bundle has this number

    def wait_less(self) -> bool:
        """Check the logs soon, because a bundle of several tasks was sent.

        Returns whether the thread must be woken for that.
        """
        if self._pause <= _SOON:
            return False
        self._pause = _SOON
        return True

    def receive(self) -> list[Any]:
        """The next messages. After a while without any, also answers from the logs, and those that found no room."""
        while True:
            try:
                messages: list[Any] = self._results.get_many(timeout=self._pause)
                return messages
            except Empty:
                pass
            marks, found = self._marks(), []
            # if one answer finds no room, more will follow
            self._pause = 0.001 if marks else min(2 * self._pause, _PAUSE)
            logs = self._read_logs()
            with contextlib.suppress(Empty):  # earlier messages of these workers come first
                while True:
                    found += self._results.get_many(block=False)
            found += logs
            found += self._read_marks(marks)
            while self._posted:
                found.append(self._posted.popleft())
            if found:
                return found

    def _marks(self) -> list[tuple[int, int, int]]:
        """(number of the bundle, offset of its row, mark) of answers that found no room."""
        rows = self._board.rows
        with self._lock:
            places = [(number, bundle.row * WIDTH) for number, bundle in self.bundles.items()]
        return [(number, at, mark) for number, at in places if (mark := rows[at + NO_ROOM])]

    def _read_marks(self, marks: list[tuple[int, int, int]]) -> list[object]:
        """The answers of these marks, as messages. The workers that wrote the marks then continue."""
        rows = self._board.rows
        found: list[Any] = []
        for number, at, mark in marks:
            i = (mark & ~DEAD) - 1
            if mark & DEAD and not mark & IN_LOG:
                found.append((number, i, DIED, rows[at + PID]))
            elif not mark & IN_LOG:
                error = out_of_shared_memory(0, "no room for a task's result", 0, directory.current())
                found.append((number, i, RAISED, (seal(error), str(error))))
            if rows[at + NO_ROOM] == mark:
                rows[at + NO_ROOM] = 0
        return found

    # ---- logs

    def _read_logs(self) -> list[tuple[int, int, int, bytes]]:
        """The undelivered answers in the logs of the workers, as messages.

        Earlier messages of the workers are already in the queue.
        """
        with self._lock:
            found = [got for log in self._board.logs if (got := log.read()) is not None] + self.left_behind
            self.left_behind = [left for left in self.left_behind if left[0] in self.bundles]
        messages = []
        for number, first, count, mixed, data in found:
            bundle = self.bundles.get(number)
            if bundle is not None and first + count > bundle.answered:
                messages.append((number, first, MIXED if mixed else MANY, data))
        messages.sort(key=lambda message: message[:2])
        return messages

    def read_logs(self) -> None:
        """Deliver the answers in the logs of workers that died before they sent them."""
        for number, first, kind, data in self._read_logs():
            bundle = self.bundles.get(number)
            if bundle is not None and first <= bundle.answered:
                self._take_many(number, first, _pickles.loads(data), kind == MIXED)

    def keep_log(self, log: int) -> None:
        """Read the answers in the log of a worker that has ended, and free the log. The caller holds the lock."""
        left = self._board.logs[log].read()
        if left is not None:
            self.left_behind.append(left)
            self._board.logs[log].begin(0, 0)
        self._board.free_logs.append(log)

    # ---- most answers: results that need no individual check

    def gather(self, number: int, i: int, kind: int, value: Any) -> None:
        """Collect results of a bundle; `flush` delivers them together."""
        values = [value] if kind == DONE else _pickles.loads(value)
        run = self._runs.get(number)
        if run is None:
            bundle = self.bundles.get(number)
            run = self._runs[number] = [] if bundle is None else [bundle]
        if run:
            known = run[0].answered + len(run) - 1 - i
            if known < 0:
                self.flush()
                self._take_many(number, i, values)
            elif known == 0:
                run += values
            else:
                run += values[known:]

    def flush(self) -> None:
        """Deliver the collected results."""
        while self._runs:
            number, run = self._runs.popitem()
            if len(run) < 2:
                continue
            bundle, values = run[0], run[1:]
            del run
            self._deliver_results(number, bundle, values)

    def rest(self) -> None:
        """Called when all available messages have been taken."""
        self._pause = _SOON
        self.flush()

    # ---- other answers

    def take(self, number: int, i: int, kind: int, value: Any) -> None:
        """Deliver the answer to one task, or mixed answers."""
        if kind == MIXED:
            self._take_many(number, i, _pickles.loads(value), True)
            return
        bundle = self._awaiting(number, i)
        if kind == DIED and bundle is not None and i == bundle.answered:
            self.read_logs()  # the worker had answered the task in its log, and died before it marked the next one
        if bundle is None or i < bundle.answered:
            return
        if kind == SEALED:
            try:
                kind, value = DONE, unseal(value)
            except BaseException as error:  # including SystemExit from a __setstate__
                kind, value = UNREADABLE, text_of(error)
        if kind == UNREADABLE:
            value = unreadable(value)
        elif kind == DIED:
            value = died(value, self.exit_codes.get(value))
        self._count(number, bundle, 1)
        bundle.deliver(bundle.first + i, kind, value)

    def _take_many(self, number: int, first: int, values: list[Any], mixed: bool = False) -> None:
        """Deliver answers of one bundle, from its task `first` on. Missing earlier answers are in a log."""
        bundle = self._awaiting(number, first)
        if bundle is None:
            return
        values = values[bundle.answered - first :]
        if not mixed:
            self._deliver_results(number, bundle, values)
            return
        values.reverse()
        while values:
            value = values.pop()
            kind, value = (SEALED, value[0]) if type(value) is tuple else (DONE, value)
            try:
                self.take(number, bundle.answered, kind, value)
            except BaseException:
                import traceback

                traceback.print_exc()

    def _awaiting(self, number: int, i: int) -> Bundle | None:
        """The bundle, if it waits for answers; those before task `i` have been delivered."""
        bundle = self.bundles.get(number)
        if bundle is None or bundle.answered >= i:
            return bundle
        self.read_logs()
        while bundle.answered < i:  # lost, which cannot happen; but no caller must wait for ever
            self.take(number, bundle.answered, DIED, self._board.rows[bundle.row * WIDTH + PID])
        return self.bundles.get(number)

    def _deliver_results(self, number: int, bundle: Bundle, values: list[Any]) -> None:
        """Deliver the results of the next tasks of a bundle."""
        if not values:
            return
        at = bundle.first + bundle.answered
        self._count(number, bundle, len(values))
        try:
            if bundle.deliver_many is not None:
                bundle.deliver_many(at, values)
            else:
                values.reverse()
                while values:
                    at += 1
                    bundle.deliver(at - 1, DONE, values.pop())
        except BaseException:  # a callback of the user raised: other callers still wait for their answers
            import traceback

            traceback.print_exc()

    def _count(self, number: int, bundle: Bundle, tasks: int) -> None:
        """Count so many more answered tasks of a bundle."""
        bundle.answered += tasks
        if bundle.answered == bundle.count:
            with self._lock:
                del self.bundles[number]
                self._board.free_rows.append(bundle.row)

    def take_all(self) -> list[Bundle]:
        """Remove and return all running bundles. The caller holds the lock, and fails them."""
        bundles = list(self.bundles.values())
        self.bundles.clear()
        return bundles
