"""POSIX objects that were unlinked and are made into new ones, for one maker who makes and unlinks small ones again and again.

Of a new block of 1 MiB nearly all the time is the kernel's: it finds 256 pages, and takes them back. One whose name was taken
away, and that nobody else has open or mapped, is renamed instead, kept, cleared and given its next name.

That nobody else has it the kernel tells: a write lease is granted only to the one open file of an inode (fcntl(2)), a mapping
counts as one. Two things it does not see. Children forked while the block was there share our open file: at every fork all
is let go. Whoever is inside open(2) by the old name at the very moment, found but not yet counted: our own attachers look
at the name once more when they have it open.

=========  ==========================================  ==========================================================
state      who moves it on                             what a killed process leaves
=========  ==========================================  ==========================================================
followed   `SharedMemory._create`                      the block under its own name, recorded
renamed    `rename`: record the spare name, rename     one of two recorded names; who takes back looks at both
ready      `settle`: memory and lease are ours alone   the object under its spare name, recorded, held by nobody
linked     `link` beside the spare name, recorded      two recorded names of one object; both are taken back
used       `is_used`: the spare name goes              as followed
=========  ==========================================  ==========================================================
"""

from __future__ import annotations

import collections
import contextlib
import fcntl
import os
import secrets
import signal
import weakref
from typing import Any

from copyless._core import _blocks, _posix

__all__ = ["PLACE_PREFIX", "Spare", "Spares"]

PLACE_PREFIX = b"/dev/shm/"
_KEPT = 4


class Spare:
    """One object: its descriptor, its other name, and its memory while it is ready."""

    def __init__(self, fd: int, identity: tuple[int, int], nbytes: int) -> None:
        self.fd, self.identity, self.nbytes = fd, identity, nbytes
        self.name = b"psm_spare-" + secrets.token_hex(8).encode()
        self.memory: Any = None
        self._hold: Any = None

    def __del__(self, close: Any = os.close) -> None:
        close(self.fd)

    def rename(self, name: bytes) -> None:
        """Take its own name away. FileNotFoundError when that is gone."""
        if self._hold is None:
            self._hold = _posix.posix_record(self.name, *self.identity)
        os.rename(PLACE_PREFIX + name, PLACE_PREFIX + self.name)

    def settle(self, heir: _blocks.Mapping) -> bool:
        """Whether it is ours alone: then it is ready."""
        if len(heir) != self.nbytes or not self._is_alone():
            return False
        self.memory = heir
        return True

    def _is_alone(self) -> bool:
        st = os.fstat(self.fd)
        there = _posix.file_identity(PLACE_PREFIX + self.name)
        if there is None or there[:2] != self.identity or st.st_nlink != 1:
            return False
        if st.st_size != self.nbytes or st.st_blocks * 512 < self.nbytes:  # somebody cut it, or made a hole
            return False
        try:
            fcntl.fcntl(self.fd, fcntl.F_SETSIG, signal.SIGURG)  # not SIGIO, which ends a process
            fcntl.fcntl(self.fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        except OSError:  # somebody has it, or there are no leases here
            return False
        fcntl.fcntl(self.fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        return True

    def link(self, path: bytes) -> None:
        """Give it a name of its own. FileExistsError when that is taken."""
        os.link(PLACE_PREFIX + self.name, path)

    def is_used(self) -> None:
        os.unlink(PLACE_PREFIX + self.name)
        self.memory = None

    def discard(self) -> None:
        """Remove it: the spare name, and what is under it."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(PLACE_PREFIX + self.name)
        self.forget()

    def forget(self) -> None:
        if self._hold is not None:
            _posix.posix_forget(self.name, *self.identity)
            self._hold = None
        self.memory = None


class Spares:
    """The last few small objects of one maker: in use, and ready."""

    def __init__(self) -> None:
        self._used: dict[tuple[int, int], Spare] = {}
        self._ready: collections.deque[Spare] = collections.deque()
        _all.add(self)

    def follow(self, spare: Spare) -> None:
        """One that was made, and may be ready one day."""
        self._used[spare.identity] = spare
        while len(self._used) > _KEPT:
            with contextlib.suppress(KeyError, StopIteration, RuntimeError):
                self._used.pop(next(iter(self._used))).forget()

    def of(self, identity: tuple[int, int]) -> Spare | None:
        """The one that was followed, no longer so."""
        return self._used.pop(identity, None)

    def keep(self, spare: Spare) -> None:
        self._ready.append(spare)
        while len(self._ready) > _KEPT:
            with contextlib.suppress(IndexError):
                self._ready.popleft().discard()

    def take(self, nbytes: int) -> Spare | None:
        """A ready one of so many bytes, filled with zeros."""
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
        """Let all go."""
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
    for spares in list(_all):  # what another thread made while the fork began; the names are the parent's
        spares._used.clear()
        spares._ready.clear()


os.register_at_fork(before=_clear_all, after_in_parent=_clear_all, after_in_child=_in_child)
