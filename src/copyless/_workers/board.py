"""The board of a worker pool: shared memory in which workers write which task they have begun, and their answers.

    rows   one for each bundle that is queued or running: number, task begun, tries, pid of the worker, answer without
    room logs   one for each worker: answers that it has not sent yet

`protocol.py` numbers the words of a row.
"""

from __future__ import annotations

from collections import deque

from copyless._storage.store import allocate
from copyless._transfer._memory import Memory
from copyless._workers._answers import Log
from copyless._workers.protocol import BEGUN, LOG_BYTES, NO_ROOM, NUMBER, PATIENCE, PID, ROWS, TRIES, WIDTH

__all__ = ["Board"]


class Board:
    """The board, in the pool's process.

    The caller holds the pool's lock when it takes or frees rows or logs.
    """

    def __init__(self, logs: int) -> None:
        block = allocate(8 * ROWS * WIDTH + logs * LOG_BYTES, spill=True)
        block.clear()
        self.memory: object = Memory(block)
        self.rows = memoryview(self.memory).cast("Q")
        self.rows[NUMBER] = 2**64 - 1  # the first message in the queue has number 0 and is not a bundle
        self.logs = [Log(self.memory, self.log_offset(n), LOG_BYTES, PATIENCE) for n in range(logs)]
        self.free_logs = list(range(logs))
        # the row that was freed first is used first, so that rows are reused as late as possible
        self.free_rows = deque(range(ROWS))

    @staticmethod
    def log_offset(log: int) -> int:
        """The offset of a log in the block, in bytes."""
        return 8 * ROWS * WIDTH + log * LOG_BYTES

    def take_row(self, number: int) -> int:
        """A free row for the bundle of this number. None of its tasks has begun."""
        row = self.free_rows.popleft()
        at = row * WIDTH
        self.rows[at + BEGUN] = self.rows[at + TRIES] = self.rows[at + PID] = self.rows[at + NO_ROOM] = 0
        self.rows[at + NUMBER] = number
        return row

    def withdraw_row(self, row: int) -> None:
        """Free the row of a bundle that could not be put into the queue."""
        self.rows[row * WIDTH + NUMBER] = 0
        self.free_rows.append(row)
