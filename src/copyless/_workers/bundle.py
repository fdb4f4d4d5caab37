"""A bundle: some tasks of one call, which are sent to a worker together."""

from __future__ import annotations

from collections.abc import Callable

from copyless._typing import Any

__all__ = ["Bundle"]


class Bundle:
    """Tasks that are sent together and answered in order.

    Parameters
    ----------
    sealed
        Function, style and arguments, as packed by `TaskSealer.seal`.
    count
        The number of tasks.
    deliver
        Called with (first + i, kind, value) for the answer to task i.
    first
        The position of the first task in its call.
    start
        Called before the bundle is sent. False means that it was cancelled.
    deliver_many
        If given, called with (first + i, results) for consecutive tasks that succeeded.
    """

    __slots__ = ("answered", "count", "deliver", "deliver_many", "first", "row", "sealed", "start")

    def __init__(
        self,
        sealed: object,
        count: int,
        deliver: Callable[[int, int, Any], None],
        first: int = 0,
        start: Callable[[], bool] | None = None,
        deliver_many: Callable[[int, list[Any]], None] | None = None,
    ) -> None:
        self.sealed, self.count, self.deliver, self.first, self.start = sealed, count, deliver, first, start
        self.deliver_many = deliver_many
        self.answered = 0  # the number of answered tasks, from the first one on
        self.row = -1  # its row of the board, once it is in the queue
