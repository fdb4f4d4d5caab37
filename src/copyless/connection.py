"""`multiprocessing.connection`, with our `Pipe` and our `wait`."""

from __future__ import annotations

from multiprocessing import connection as _stdlib
from multiprocessing.connection import *  # noqa: F403
from typing import Any

from copyless.connections import Connection as Connection
from copyless.connections import Pipe as Pipe
from copyless.waiting import await_ as await_
from copyless.waiting import wait as wait

__all__ = [*_stdlib.__all__, "Connection", "await_"]


def __getattr__(name: str) -> Any:
    return getattr(_stdlib, name)
