"""The log line about a process that makes others wait."""

from __future__ import annotations

import time

from copyless._core import events
from copyless._platform import state_of_process

__all__ = ["tell"]

_AGAIN = 60.0  # seconds before the same process is logged again
_told: dict[int, float] = {}


def tell(pid: int, seconds: float, users: bool = False, what: str = "") -> bool:
    """Log which process has made this one wait for so long. Returns whether no more needs to be said.

    Of a user's own lock (`users`), only a stopped holder is logged. `what`: the thing that is held, if it is not a
    lock.
    """
    program, state = state_of_process(pid)
    if users and not state.startswith("stopped"):
        return False
    now = time.monotonic()
    if now - _told.get(pid, -_AGAIN) >= _AGAIN:
        if len(_told) >= 1024:
            _told.clear()
        _told[pid] = now  # first: a log handler may wait for the same process
        what = what or ("a lock" if users else "a lock inside copyless")
        events.waited(pid, program, state, what, seconds)
    return True
