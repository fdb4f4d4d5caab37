"""Reuse of POSIX objects that were unlinked, for a program that makes and unlinks small ones again and again.

Nearly all the time for a new block of 1 MiB is spent in the kernel, which finds 256 pages and frees them again. A block
that was unlinked, and that no other process has open or mapped, is therefore renamed, kept, cleared and given a new
name.

The kernel tells whether another process has it: a write lease is granted only if the inode has a single open file
(fcntl(2)); a mapping counts as one. The lease misses two cases. Children that were forked while the block existed share
the open file: at every fork, all spares are released. A process may be inside open(2) with the old name, not yet
counted: processes that attach through copyless check the name again after opening it.

=========  ==========================================  ==========================================================
state      who moves it on                             what a killed process leaves
=========  ==========================================  ==========================================================
followed   `SharedMemory._create`                      the block under its own name, recorded
renamed    `rename`: record the spare name, rename     one of two recorded names; reclaiming checks both
ready      `settle`: no other process has it open      the object under its spare name, recorded, without holder
linked     `link` beside the spare name, recorded      two recorded names of one object; both are reclaimed
used       `is_used`: the spare name is removed        as followed
=========  ==========================================  ==========================================================
"""

from __future__ import annotations

import collections
import contextlib
import os
import secrets
import weakref
from typing import Any

from copyless._core import _blocks, _posix
from copyless._platform import OBJECTS_PREFIX, is_open_elsewhere

__all__ = ["Spare", "Spares"]

_KEPT = 4


class Spare:
    """One object: its descriptor, its other name, and its memory while it is ready."""

    def __init__(self, fd: int, identity: tuple[int, int], nbytes: int) -> None:
        self.fd, self.identity, self.nbytes = fd, identity, nbytes
        self.name = b"psm_spare-" + secrets.token_hex(8).encode()
        self.memory: Any = None
        self._hold: object = None

    def __del__(self, close: Any = os.close) -> None:
        close(self.fd)

    def rename(self, name: bytes) -> None:
        """Replace its name by the spare name. FileNotFoundError if its name was already removed."""
        if self._hold is None:
            self._hold = _posix.posix_record(self.name, *self.identity)
        os.rename(OBJECTS_PREFIX + name, OBJECTS_PREFIX + self.name)

    def settle(self, heir: _blocks.Mapping) -> bool:
        """Make it ready, if no other process has it open or mapped. Returns whether it is ready."""
        if len(heir) != self.nbytes or not self._is_alone():
            return False
        self.memory = heir
        return True

    def _is_alone(self) -> bool:
        st = os.fstat(self.fd)
        there = _posix.file_identity(OBJECTS_PREFIX + self.name)
        if there is None or there[:2] != self.identity or st.st_nlink != 1:
            return False
        if st.st_size != self.nbytes or st.st_blocks * 512 < self.nbytes:  # a process truncated it or made a hole in it
            return False
        return not is_open_elsewhere(self.fd)

    def link(self, path: bytes) -> None:
        """Give it a new name. FileExistsError if the name is taken."""
        os.link(OBJECTS_PREFIX + self.name, path)

    def is_used(self) -> None:
        os.unlink(OBJECTS_PREFIX + self.name)
        self.memory = None

    def discard(self) -> None:
        """Remove the spare name and the object."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(OBJECTS_PREFIX + self.name)
        self.forget()

    def forget(self) -> None:
        if self._hold is not None:
            _posix.posix_forget(self.name, *self.identity)
            self._hold = None
        self.memory = None


class Spares:
    """The most recent small objects of one program: in use, and ready."""

    def __init__(self) -> None:
        self._used: dict[tuple[int, int], Spare] = {}
        self._ready: collections.deque[Spare] = collections.deque()
        _all.add(self)

    def follow(self, spare: Spare) -> None:
        """Remember an object that was made and may become ready later."""
        self._used[spare.identity] = spare
        while len(self._used) > _KEPT:
            with contextlib.suppress(KeyError, StopIteration, RuntimeError):
                self._used.pop(next(iter(self._used))).forget()

    def of(self, identity: tuple[int, int]) -> Spare | None:
        """The remembered object, which is forgotten."""
        return self._used.pop(identity, None)

    def keep(self, spare: Spare) -> None:
        self._ready.append(spare)
        while len(self._ready) > _KEPT:
            with contextlib.suppress(IndexError):
                self._ready.popleft().discard()

    def take(self, nbytes: int) -> Spare | None:
        """A ready object of so many bytes, filled with zeros."""
        for spare in list(self._ready):
            if spare.nbytes == nbytes:
                try:
                    self._ready.remove(spare)
                except ValueError:  # another thread took it
                    continue
                if spare._is_alone():
                    os.fchmod(spare.fd, 0o600)
                    spare.memory.clear()
                    return spare
                spare.discard()
        return None

    def clear(self) -> None:
        """Release all objects."""
        with contextlib.suppress(KeyError):
            while True:
                self._used.popitem()[1].forget()
        with contextlib.suppress(IndexError):
            while True:
                self._ready.popleft().discard()


_all: weakref.WeakSet[Spares] = weakref.WeakSet()


def _clear_all() -> None:
    for spares in list(_all):
        spares.clear()


def _in_child() -> None:
    for spares in list(_all):  # spares that another thread made during the fork; their names belong to the parent
        spares._used.clear()
        spares._ready.clear()


os.register_at_fork(before=_clear_all, after_in_parent=_clear_all, after_in_child=_in_child)
