"""Looking on: what lies in the storage directory, read without joining it, without a lock, and without waiting for anybody."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

from copyless._core._observe import Observer
from copyless._core.waiting import state_of
from copyless.errors import ForeignHostError
from copyless.storage import directory
from copyless.storage.store import boot

__all__ = ["explain", "look", "observing"]


@contextlib.contextmanager
def observing() -> Iterator[Observer | None]:
    """The registry in use; None where there is none.

    Raises
    ------
    CorruptSegmentError
        When its header is damaged.
    """
    try:
        fd = os.open(directory.current(), os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        yield None
        return
    try:
        observer = Observer(fd) if directory.is_ours(os.fstat(fd)) else None
        yield observer if observer is not None and observer.found else None
    finally:
        os.close(fd)


def look(observer: Observer) -> dict[str, Any]:
    """A copy of the registry's tables. `holder` says who is inside its lock, `note` what that means for the copy.

    Raises
    ------
    CorruptSegmentError
        When it is damaged.
    ForeignHostError
        When it is of another boot.
    """
    found = observer.look()
    if found["boot"] != boot():
        raise ForeignHostError(
            f"the registry in {directory.current()} is of another boot of this machine, or of another kernel: the next process "
            "that uses shared memory removes it, or says why it cannot be removed"
        )
    holder = found["holder"]
    if holder is not None:
        program, state = state_of(holder["pid"]) if holder["lives"] and holder["pid"] else ("", "")
        known = [owner["command"] for owner in found["owners"] if owner["pid"] == holder["pid"]]
        holder["program"] = program or (known[0] if known else "unknown program")
        holder["state"] = state if holder["lives"] else "dead"
    found["note"] = explain(found["state"], holder)
    return found


def explain(state: str, holder: dict[str, Any] | None) -> str | None:
    """Why a copy may not be what it seems; None: it is."""
    if state == "changing":
        return (
            "other processes changed the registry all the time while it was read: what is shown is right entry by entry, but "
            "the entries need not agree with each other"
        )
    if holder is None:
        return None
    who = f"process {holder['pid']} ({holder['program']})" if holder["pid"] else "a process that cannot be named"
    if not holder["lives"]:
        return (
            f"{who} died inside the registry's lock, and no other process has needed it since: what is shown may be half "
            "changed. The next process that allocates repairs it, or 'copyless reap'"
        )
    since = f" for {holder['seconds']:.1f} s" if holder["seconds"] else ""
    return f"{who}, which is {holder['state'] or 'somewhere else'}, has held the registry's lock{since}: what is shown may be half changed"
