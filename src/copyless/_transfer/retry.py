"""Repeats sending a short message for some seconds while shared memory has no room for it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from copyless.errors import OutOfSharedMemory

__all__ = ["send_when_room"]


def send_when_room(put: Any, make: Callable[..., Any], *args: Any, seconds: float = 10.0) -> None:
    """Put a short message that should not be lost. If there is no room, try again for so many seconds.

    The message is made from `args` for each attempt, because a failed put releases the shared memory that the message
    names.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            put(make(*args))
            return
        except OutOfSharedMemory:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.01)
