"""A fork waits until other threads have finished importing parts of this package, and have opened the store.

A fork copies only the thread that forks. If another thread is inside an import at that moment, the lock of that module stays
taken in the child for ever, and the child hangs as soon as it needs the module. Since this package imports its parts when they
are first used, its users cannot see such imports coming. So each of them is marked here, and so is the opening of the store.

`before` a fork: wait until no other thread has a mark; a thread that wants to set one meanwhile waits until the fork is over.
Neither waits for ever: the forking thread may hold a lock (of the user's own at-fork hooks) that the other thread needs, or the
other way round. No lock is kept, so nothing has to be released in the child: it forgets the marks of threads that it lacks.

An `import` statement that names a part of this package, or NumPy, sets no mark; the import system's own locks tell of it.
"""

from __future__ import annotations

import logging  # noqa: F401  # first: its own at-fork hook takes a lock that imports need, and runs before those of earlier ones
import os
import sys
from _thread import get_ident
from time import monotonic, sleep
from typing import Any

__all__ = ["first_use"]

_FORK_WAITS = 10.0  # seconds; NumPy on a cold disk takes some
_OTHERS_WAIT = 1.0  # shorter, so that of two that wait for each other this one goes on
_PACKAGES = ("copyless", "numpy")

_busy: dict[int, int] = {}  # by thread: how deep it is inside a first use
_forking: dict[int, int] = {}  # threads between `before` and the end of their fork


class _FirstUse:
    """Marks the calling thread. May be nested. Costs less than a microsecond unless a fork is under way."""

    __slots__ = ()

    def __enter__(self) -> None:
        me = get_ident()
        if me in _busy:
            _busy[me] += 1
            return
        until = 0.0
        while True:
            _busy[me] = 1  # before the look at _forking; `before` sets and looks the other way round, so one sees the other
            if not _forking or me in _forking or (until and monotonic() > until):
                return
            del _busy[me]
            until = until or monotonic() + _OTHERS_WAIT
            sleep(0.001)

    def __exit__(self, *_: object) -> None:
        me = get_ident()
        depth = _busy.get(me, 0) - 1
        if depth > 0:
            _busy[me] = depth
        else:
            _busy.pop(me, None)


first_use = _FirstUse()


def _importing() -> dict[int, str]:
    """The threads that hold the lock of a module of ours or of NumPy, by the import system's own table."""
    locks: dict[str, Any] = getattr(sys.modules.get("_frozen_importlib"), "_module_locks", {})
    found = {}
    for name, reference in list(locks.items()):
        owner = getattr(reference(), "owner", None) if name.partition(".")[0] in _PACKAGES else None
        if owner is not None:
            found[owner] = name
    return found


def _before() -> None:
    me = get_ident()
    _forking[me] = 1
    if me in _busy or me in _importing():
        return  # another thread may wait for the module that this one is importing
    until = 0.0
    while _others(me):
        if until and monotonic() > until:
            return
        until = until or monotonic() + _FORK_WAITS
        sleep(0.001)


def _others(me: int) -> bool:
    if not _busy and not _importing():
        return False
    threads = sys._current_frames()  # a thread that was ended in the middle left its mark
    return any(thread != me and thread in threads for thread in (*list(_busy), *_importing()))


def _in_parent() -> None:
    _forking.pop(get_ident(), None)


def _in_child() -> None:
    me = get_ident()
    depth = _busy.get(me, 0)
    _busy.clear()
    _forking.clear()
    if depth:
        _busy[me] = depth


os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)
