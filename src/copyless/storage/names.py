"""Who makes what a name shall lead to, and who is told that a name means something else by now.

Promise: of any number of processes that want what a name leads to, one makes it, and nobody finds it before it is finished. A
process that is killed at it leaves the turn to the next. docs/design/names.md has the states.
"""

from __future__ import annotations

import hashlib
import inspect
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from copyless._core import _blocks, _names, _synchronize
from copyless._core.c_library import KIND_LOCK
from copyless._core.waiting import tell
from copyless.errors import StaleHandleError, StaleNameError, WrongProcessError
from copyless.storage import handles

__all__ = ["GUARD", "Found", "begin_with", "check_init", "find", "guarded_by", "missing", "once", "tell_if_it_goes", "warn"]

T = TypeVar("T")
GUARD = "\1"  # a guard's name begins with it, as no user's name may
_CUT = "\2"  # the same, of a name that is too long to be the end of one
_TELL_AFTER, _TELL_AGAIN, _LOOK = 1.0, 60.0, 0.25  # seconds


class Found(NamedTuple):
    """What a name leads to, held by this process from now on."""

    block: _blocks.Block
    at: int
    """Where its description begins,"""
    described: int
    """and how many bytes that has: an array. 0: an object."""
    persists: bool


def find(text: bytes) -> Found | None:
    """What a name leads to."""
    while True:
        found = _names.lookup(text)
        if found is None:
            return None
        try:
            return Found(handles.resolve(found[0])[1], *found[1:])
        except StaleHandleError:
            continue  # it went between our two calls


def missing(name: str, waited: str = "") -> FileNotFoundError:
    """The error for a name that leads to nothing."""
    return FileNotFoundError(
        2,
        f"nothing of this name{waited}: it is not made yet, was unlinked, or went with its last holder (persist=True keeps it); "
        "'copyless ls' lists what there is",
        name,
    )


def warn(text: str) -> None:
    """Warn, at the line of the program that called this package."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "copyless":
        frame, level = frame.f_back, level + 1
    warnings.warn(f"copyless: {text}", RuntimeWarning, stacklevel=level)


def tell_if_it_goes(name: str, found: Found, persist: bool) -> None:
    """Warn who asks for a name to persist, and finds one that does not."""
    if persist and not found.persists:
        warn(
            f"{name!r} was made without persist=True, by a program that still runs, and goes with its last holder: say the same in every "
            "program, and end those that hold it once"
        )


# ---- the one that makes it


def _guard_of(text: bytes) -> bytes:
    if len(text) < 255:
        return GUARD.encode() + text
    return _CUT.encode() + text[:200] + hashlib.blake2b(text, digest_size=16).hexdigest().encode()


def guarded_by(name: str) -> str | None:
    """What is being made by whoever holds the lock of this name; None for a user's own name."""
    return name[1:] if name[:1] == GUARD else name[1:-32] + "..." if name[:1] == _CUT else None


_mine = threading.local()  # .guards: of what this thread is making, by its name


class _Turn:
    """This process alone makes what a name shall lead to, from `take` on until the guard is left."""

    guard: _synchronize._Guard | None = None

    def __init__(self, name: str, text: bytes) -> None:
        self._name, self._text = name, text

    def _lock(self) -> _synchronize._Guard:
        text = _guard_of(self._text)
        lock = _synchronize._Guard()
        while True:
            found = find(text)
            if found is None:
                block = _blocks.new_object(_synchronize.MUTEX_BYTES, KIND_LOCK, 0, 0, 0)
                if not _names.publish(block, text, 0, 0, False):
                    continue  # somebody else published one
            else:
                block = found.block
            lock._stand(block)
            lock.silent = True  # who died at it has published nothing
            return lock

    def take(self) -> None:
        guards: dict[bytes, _synchronize._Guard] = getattr(_mine, "guards", {})
        guards = _mine.guards = {text: guard for text, guard in guards.items() if guard.held}
        if self._text in guards:
            raise RuntimeError(
                f"the init of {self._name!r} asks for {self._name!r}, which it is making: use its argument"
            )
        guard = self.guard = self._lock()
        begun = time.monotonic()
        tell_at = begun + _TELL_AFTER
        while not guard.take(_LOOK):
            now = time.monotonic()
            if now >= tell_at:
                pid = guard._owner_pid
                if pid:
                    tell(pid, now - begun, what=f"the making of {self._name!r}")
                    tell_at = now + _TELL_AGAIN
        guards[self._text] = guard

    def forget(self) -> None:
        if self.guard is not None and _mine.guards.get(self._text) is self.guard:
            del _mine.guards[self._text]
        self.guard = None  # an error's traceback may keep this object


def once(name: str, text: bytes, look: Callable[[bool], T | None], make: Callable[[], T | None]) -> T:
    """What the name leads to, made by this process if need be.

    `look` finds it, or None; called with True while this process has its turn. `make` makes it and publishes it; None: the name was
    taken all the same, by one who asks for no turn.
    """
    while True:
        found = look(False)
        if found is None:
            turn = _Turn(name, text)
            try:  # not `with`: Ctrl-C may come when the guard is taken and `__enter__` has not returned
                turn.take()
                found = look(True)
                if found is None:
                    found = make()
            finally:
                if turn.guard is not None:
                    turn.guard.leave()  # first, and C's: Ctrl-C comes before or after it
                turn.forget()
        if found is not None:
            return found


def check_init(init: Callable[[Any], Any] | None) -> None:
    if init is not None and not callable(init):
        raise TypeError(f"init is a function of one argument, what is made, not {init!r}")


def begin_with(init: Callable[[Any], Any] | None, thing: Any, name: str | None) -> Any:
    """Run the user's `init` on what nobody can find yet: its result."""
    if init is None:
        return None
    pid = os.getpid()
    result = init(thing)
    if inspect.iscoroutine(result):
        result.close()
        raise TypeError("init is a coroutine function, which nobody would wait for: give an ordinary function")
    if name is not None and os.getpid() != pid:
        raise WrongProcessError(
            f"this process was forked inside the init of {name!r}, which its parent makes: open it by its name once init has ended there"
        )
    return result


# ---- those who know a thing by a name that means another


def _look(thing: Any) -> None:
    """Called for a thing whose name was taken away: raise if that name leads to another thing by now."""
    name = getattr(thing, "name", None)
    if isinstance(name, str) and _names.leads_elsewhere(os.fsencode(name), thing.block):
        raise StaleNameError(
            f"the name {name!r} was unlinked, and means another thing by now than this {type(thing).__name__}: open it anew "
            "(or set its name to None, and keep this one)"
        )


_blocks.know_look(_look)
