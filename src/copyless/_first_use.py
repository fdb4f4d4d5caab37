"""A fork waits until other threads have finished importing parts of this package, and have opened the store.

A fork copies only the thread that forks. If another thread is inside an import at that moment, the lock of that module
stays locked in the child for ever, and the child hangs as soon as it needs the module. This package imports its parts
when they are first used, so its users cannot know when an import happens. So each such import is marked here, and so is
the opening of the store.

Before a fork (`_before`), the forking thread waits until no other thread has a mark. A thread that wants to set a mark
then waits until the fork is over. Both waits are limited: the forking thread may hold a lock (of the user's own at-fork
hooks) that the other thread needs, or the other way round. No lock is kept, so the child has nothing to release: it
forgets the marks of the threads that it does not have.

An `import` statement that names a part of this package, or NumPy, sets no mark. The import system's own locks show
that it is running.

`logging` acquires its module's lock before each fork, and a module that is being imported may need that lock. If
`logging` was imported after this module, its hook runs first. So `_before` releases the lock while it waits, and
acquires it again. If `logging` is imported while `_before` waits, the hook of `logging` before the fork does not run,
but its hook after the fork does: this module acquires the lock for that hook to release.
"""

from __future__ import annotations

import os
import sys
from _thread import get_ident
from time import monotonic, sleep

from copyless._typing import Any

__all__ = ["first_use"]

_FORK_WAITS = 10.0  # seconds; importing NumPy from a cold disk takes several
_OTHERS_WAIT = 1.0  # shorter, so that this thread continues first if it and the forking thread wait for each other
_PACKAGES = ("copyless", "numpy")

_busy: dict[int, int] = {}  # thread: the depth of its nested first uses
_forking: dict[int, int] = {}  # threads between `before` and the end of their fork


class _FirstUse:
    """Marks the calling thread. Can be nested. Costs less than a microsecond unless a fork is in progress."""

    __slots__ = ()

    def __enter__(self) -> None:
        me = get_ident()
        if me in _busy:
            _busy[me] += 1
            return
        until = 0.0
        while True:
            # Set before _forking is read. `_before` does it in the other order, so one of the two sees the other.
            _busy[me] = 1
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
    """The threads that hold the import lock of a module of this package or of NumPy: {thread: module}."""
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
    if not _others(me):
        return
    lock = _lock_of_logging()
    try:
        until = monotonic() + _FORK_WAITS
        while _others(me) and monotonic() < until:
            sleep(0.001)
    finally:
        if lock is not None:
            lock.acquire()


def _lock_of_logging() -> Any:
    """Release the lock of `logging`, which is reentrant, if this thread holds it. Returns the lock, else None."""
    lock = getattr(sys.modules.get("logging"), "_lock", None)
    if lock is None or not lock._is_owned():
        return None
    lock.release()
    return lock


def _others(me: int) -> bool:
    if not _busy and not _importing():
        return False
    threads = sys._current_frames()  # without threads that have ended and left a mark
    return any(thread != me and thread in threads for thread in (*list(_busy), *_importing()))


def _in_parent() -> None:
    _forking.pop(get_ident(), None)
    if not _logging_is_older and _has_logging():
        lock = sys.modules["logging"]._lock
        if not lock._is_owned():
            lock.acquire()


def _has_logging() -> bool:
    """Whether `logging` is fully imported, so that its hooks are registered."""
    spec = getattr(sys.modules.get("logging"), "__spec__", None)
    return spec is not None and not getattr(spec, "_initializing", False)


def _in_child() -> None:
    me = get_ident()
    depth = _busy.get(me, 0)
    _busy.clear()
    _forking.clear()
    if depth:
        _busy[me] = depth


_logging_is_older = _has_logging()
os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)
