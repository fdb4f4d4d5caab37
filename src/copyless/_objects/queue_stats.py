"""`QueueStats`: the counts of a queue."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["QueueStats"]


class QueueStats(NamedTuple):
    """Counts since the queue was made.

    Attributes
    ----------
    put, taken : int
        Items.
    size, bytes : int
        Items in the queue now, and the bytes of their contents.
    spilled : int
        Items that went to a file on disk because shared memory was full.
    leased : int
        Items taken and not yet acknowledged (only with ``redeliver=True``); dead letters do not count.
    lost : int
        Items that were lost with their consumers, or dropped by `shutdown` (only joinable queues).
    """

    put: int
    taken: int
    size: int
    bytes: int
    spilled: int
    leased: int
    lost: int
