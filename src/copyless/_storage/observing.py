"""Observing the storage directory: reading the registry without opening the store, without a lock, and without
waiting.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from copyless._core._observe import Observer
from copyless._platform import state_of_process
from copyless._storage import directory
from copyless._storage.identity import boot
from copyless._storage.lock_files import is_ours
from copyless._typing import TYPE_CHECKING
from copyless.errors import ForeignHostError

if TYPE_CHECKING:
    from copyless._core._observe import LockHolder, Tables

__all__ = ["explain", "look", "observing"]


@contextlib.contextmanager
def observing() -> Iterator[Observer | None]:
    """The registry in use; None if there is none.

    Raises
    ------
    CorruptSegmentError
        If its header is damaged.
    """
    try:
        fd = os.open(directory.current(), os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        yield None
        return
    try:
        observer = Observer(fd) if is_ours(os.fstat(fd)) else None
        yield observer if observer is not None and observer.found else None
    finally:
        os.close(fd)


def look(observer: Observer) -> Tables:
    """A copy of the tables of the registry. `holder` is the process that holds its lock, `note` says what that means
    for the copy.

    Raises
    ------
    CorruptSegmentError
        If the registry is damaged.
    ForeignHostError
        If it is of another boot.
    """
    found = observer.look()
    if found["boot"] != boot():
        raise ForeignHostError(
            f"the registry in {directory.current()} was made before this machine was last booted, or by "
            "another kernel: the next process that uses shared memory removes it, or says why it cannot be "
            "removed"
        )
    holder = found["holder"]
    if holder is not None:
        program, state = state_of_process(holder["pid"]) if holder["lives"] and holder["pid"] else ("", "")
        known = [owner["command"] for owner in found["owners"] if owner["pid"] == holder["pid"]]
        holder["program"] = program or (known[0] if known else "unknown program")
        holder["state"] = state if holder["lives"] else "dead"
    found["note"] = explain(found["state"], holder)
    return found


def explain(state: str, holder: LockHolder | None) -> str | None:
    """Why a copy may be inconsistent; None if it is not."""
    if state == "changing":
        return (
            "other processes kept changing the registry while it was read: each entry is correct, but the "
            "entries may not agree with each other"
        )
    if holder is None:
        return None
    who = f"process {holder['pid']} ({holder['program']})" if holder["pid"] else "a process that cannot be named"
    if not holder["lives"]:
        return (
            f"{who} died inside the registry's lock, and no process has needed the lock since: the data "
            "shown may be half changed. The next allocation of any process repairs it, or 'copyless reap'"
        )
    since = f" for {holder['seconds']:.1f} s" if holder["seconds"] else ""
    return (
        f"{who}, which is {holder['state'] or 'somewhere else'}, has held the registry's lock{since}: "
        "the data shown may be half changed"
    )
