"""`multiprocessing.connection`, with our `Pipe` and our `wait`."""

from __future__ import annotations

from multiprocessing import connection as _stdlib
from multiprocessing.connection import *  # noqa: F403
from typing import Any

from copyless.connections import Connection
from copyless.waiting import await_

__all__ = [*_stdlib.__all__, "Connection", "await_"]


def __getattr__(name: str) -> Any:
    return getattr(_stdlib, name)
