"""Which process makes the object of a name, and how users of an object learn that its name belongs to another one.

Promise: of any number of processes that want the object of a name, one makes it, and no process finds it before it is
finished. If the process that makes it is killed, the next one takes over. docs/design/names.md has the states.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import types
import warnings
from collections.abc import Callable

from copyless._core import _blocks, _names, _synchronize, c_library
from copyless._core.waiting import tell
from copyless._first_use import first_use
from copyless._storage.store import new_object
from copyless._transfer import handles
from copyless._typing import Any, TypeVar
from copyless.errors import StaleHandleError, StaleNameError, WrongProcessError

__all__ = ["GUARD", "WORDS", "Found", "begin_with", "check_init", "check_name", "find", "find_lasting", "guarded_by",
           "look_at_name", "missing", "once", "tell_if_it_goes", "warn", "what_lies_in"]  # fmt: skip

T = TypeVar("T")
GUARD = "\1"  # the name of a guard begins with it; a user's name must not
_CUT = "\2"  # the same, for a name that is too long to be part of a name
_TELL_AFTER, _TELL_AGAIN, _LOOK = 1.0, 60.0, 0.25  # seconds


# The kinds of objects in named blocks, besides arrays.
WORDS = {
    c_library.KIND_LOCK: "Lock",
    c_library.KIND_RLOCK: "RLock",
    c_library.KIND_RWLOCK: "RWLock",
    c_library.KIND_SEMAPHORE: "Semaphore",
    c_library.KIND_ROBUST_SEMAPHORE: "Semaphore",
    c_library.KIND_CONDITION: "Condition",
    c_library.KIND_EVENT: "Event",
    c_library.KIND_BARRIER: "Barrier",
    c_library.KIND_QUEUE: "queue",
    c_library.KIND_RING: "RingBuffer",
}


class Found:
    """The entry of a name. This process holds its block from now on.

    Attributes
    ----------
    block : Block
    at, described : int
        The offset and the length of the description of an array; a length of 0 means another object.
    persists : bool
    """

    __slots__ = ("at", "block", "described", "persists")

    def __init__(self, block: _blocks.Block, at: int, described: int, persists: bool) -> None:
        self.block, self.at, self.described, self.persists = block, at, described, persists


def check_name(name: str) -> bytes:
    """A checked name as bytes."""
    if not isinstance(name, str):
        raise TypeError(f"a name must be a str, not {type(name).__name__!r}")
    text = os.fsencode(name)
    if not text:
        raise ValueError("a name must not be empty")
    if len(text) > 255:
        raise ValueError(f"a name must have at most 255 bytes of UTF-8, and this one has {len(text)}: {name[:40]!r}...")
    if "/" in name or not name.isprintable():
        raise ValueError(f"a name must not contain '/', NUL, newlines or other control characters: {name!r}")
    return text


def find(text: bytes) -> Found | None:
    """The entry of a name, or None."""
    while True:
        found = _names.lookup(text)
        if found is None:
            return None
        try:
            return Found(handles.resolve(found[0])[1], *found[1:])
        except StaleHandleError:
            continue  # it was removed between the two calls


def what_lies_in(block: _blocks.Block, described: int) -> str:
    """The kind of object in a named block, as a word. `described`: bytes of its description, which only arrays have."""
    kind = _blocks.object_kind(block)
    return "array" if described else WORDS.get(kind, "array")


def find_lasting(name: str, text: bytes, take: bool) -> Found | None:
    """The entry of a name, unless its object was shut down: its name is free then, and `take` removes it from the
    object.
    """
    while True:
        found = find(text)
        if found is None:
            return None
        ended, left = (False, 0) if found.described else _names.ended(found.block)
        if not ended:
            return found
        if not take:
            return None
        if _names.unpublish_of(text, found.block):
            if left:
                warn(
                    f"the {what_lies_in(found.block, 0)} {name!r} was shut down with {left} items in it, and a new "
                    "object now gets its name. Processes that hold the old one can still take the items; otherwise "
                    "they are lost. To take them first, copyless.open the name before making the new one"
                )
            return None


def missing(name: str, waited: str = "") -> FileNotFoundError:
    """The error for a name that does not exist."""
    return FileNotFoundError(
        2,
        f"nothing has this name{waited}: it is not made yet, was unlinked, or was freed with its last "
        "holder (persist=True keeps it). 'copyless ls' lists the names",
        name,
    )


def warn(text: str) -> None:
    """Warn at the line of the program that called this package."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "copyless":
        frame, level = frame.f_back, level + 1
    warnings.warn(f"copyless: {text}", RuntimeWarning, stacklevel=level)


def tell_if_it_goes(name: str, found: Found, persist: bool) -> None:
    """Warn if a caller asks for a persistent name and finds one that is not."""
    if persist and not found.persists:
        warn(
            f"{name!r} was made without persist=True by a program that still runs, and is freed with its "
            "last holder: use the same persist= in every program, and restart the programs that hold it"
        )


# ---- making the object of a name


def _guard_of(text: bytes) -> bytes:
    if len(text) < 255:
        return GUARD.encode() + text
    with first_use:
        import hashlib  # imported here: it loads OpenSSL

    return _CUT.encode() + text[:200] + hashlib.blake2b(text, digest_size=16).hexdigest().encode()


def guarded_by(name: str) -> str | None:
    """The name whose object is being made under the lock of this name; None for a name of a user."""
    return name[1:] if name[:1] == GUARD else name[1:-32] + "..." if name[:1] == _CUT else None


_mine = threading.local()  # .guards: the guards of the objects that this thread makes, by name


class _Turn:
    """Only this process makes the object of a name, from `take` until the guard is left."""

    guard: _synchronize._Guard | None = None

    def __init__(self, name: str, text: bytes) -> None:
        self._name, self._text = name, text

    def _lock(self) -> _synchronize._Guard:
        text = _guard_of(self._text)
        lock = _synchronize._Guard()
        while True:
            found = find(text)
            if found is None:
                block = new_object(_synchronize.MUTEX_BYTES, c_library.KIND_LOCK, 0, 0, 0)
                if not _names.publish(block, text, 0, 0, False):
                    continue  # another process published one
            else:
                block = found.block
            lock._stand(block)
            lock.silent = True  # a process that died while making it has published nothing
            return lock

    def take(self) -> None:
        guards: dict[bytes, _synchronize._Guard] = getattr(_mine, "guards", {})
        guards = _mine.guards = {text: guard for text, guard in guards.items() if guard.held}
        if self._text in guards:
            raise RuntimeError(
                f"init= of {self._name!r} opens {self._name!r}, which it is still filling: use the argument of "
                "init instead"
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
        self.guard = None  # the traceback of an error may keep this object alive


def once(name: str, text: bytes, look: Callable[[bool], T | None], make: Callable[[], T | None]) -> T:
    """The object of a name, made by this process if necessary.

    `look` returns it, or None; it is called with True while this process has its turn. `make` makes and publishes it,
    or returns None if the name was taken nevertheless, by a process that takes no turn.
    """
    while True:
        found = look(False)
        if found is None:
            turn = _Turn(name, text)
            try:  # not `with`: Ctrl-C may arrive after the guard is taken and before `__enter__` returns
                turn.take()
                found = look(True)
                if found is None:
                    found = make()
            finally:
                if turn.guard is not None:
                    turn.guard.leave()  # first, and in C: Ctrl-C arrives before or after it
                turn.forget()
        if found is not None:
            return found


def check_init(init: Callable[[object], object] | None) -> None:
    if init is not None and not callable(init):
        raise TypeError(f"init must be a function of one argument, the new object, not {init!r}")


def begin_with(init: Callable[[object], object] | None, thing: object, name: str | None) -> object:
    """Call the user's `init` with an object that no other process can find yet. Returns its result."""
    if init is None:
        return None
    pid = os.getpid()
    result = init(thing)
    if isinstance(result, types.CoroutineType):
        result.close()
        raise TypeError("init must be an ordinary function: a coroutine function would not be awaited")
    if name is not None and os.getpid() != pid:
        raise WrongProcessError(
            f"this process was forked inside init= of {name!r}, which its parent is still filling: open it "
            "by its name after init has returned in the parent"
        )
    return result


# ---- objects whose name belongs to another one


def look_at_name(thing: Any) -> None:
    """For an object whose name was removed: raise if the name now belongs to another object."""
    name = getattr(thing, "name", None)
    if isinstance(name, str) and _names.leads_elsewhere(os.fsencode(name), thing.block):
        raise StaleNameError(
            f"the name {name!r} was unlinked and now belongs to another object, not to this "
            f"{type(thing).__name__}: open the name again (or set this object's name to None to keep using "
            "it)"
        )
