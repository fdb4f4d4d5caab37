"""Lock files, and directories that only this user can have written to."""

from __future__ import annotations

import fcntl
import os
import stat
import time

from copyless._typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Settled", "is_ours", "lock", "lock_file", "never"]

_LONGEST_PAUSE = 0.02  # seconds between two attempts to lock


def is_ours(st: os.stat_result) -> bool:
    """Whether only this user can have written to a directory. (Bits such as set-group-id come from its parent.)"""
    return stat.S_ISDIR(st.st_mode) and st.st_uid == os.geteuid() and not st.st_mode & 0o022


class Settled(Exception):
    """The decision that the lock was needed for was made while this process waited for it."""


def lock(fd: int, until: float, over: Callable[[], bool]) -> bool:
    # No blocking flock(), which has no deadline. Waiters try at growing, random intervals, in case there are hundreds.
    pause = 0.001
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if over():
                raise Settled from None
            left = until - time.monotonic()
            if left < 0:
                return False
            time.sleep(min(left, pause * (0.5 + time.monotonic_ns() % 1000 / 2000)))
            pause = min(pause * 2, _LONGEST_PAUSE)
        except OSError:  # a file system without locks
            return False


def never() -> bool:
    return False


def lock_file(path: str, until: float, over: Callable[[], bool] = never) -> int | None:
    """A descriptor of the lock file, locked and still under its name; None if that is impossible, as with a name of
    another user.
    """
    while True:
        try:
            # O_EXCL in a separate call: opening another user's file with O_CREAT in a sticky directory is an error.
            fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            try:
                fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
                os.fchmod(fd, 0o600)  # whatever the umask is
            except FileExistsError:
                continue
            except OSError:
                return None
        except OSError:
            return None
        st = os.fstat(fd)
        try:
            locked = stat.S_ISREG(st.st_mode) and st.st_uid == os.geteuid() and lock(fd, until, over)
        except BaseException:
            os.close(fd)
            raise
        if not locked:
            os.close(fd)
            return None
        try:
            named = os.lstat(path)
        except OSError:
            named = None
        if named is not None and (named.st_dev, named.st_ino) == (st.st_dev, st.st_ino):
            return fd
        os.close(fd)  # its last user removed it while this process waited
