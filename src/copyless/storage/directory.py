"""The storage directory: one a user and space, 0700, found the same way by all processes of a uid.

Which of the names `copyless-UID`, `copyless-UID.1` ... (in a space `copyless-UID-SPACE`, ...) is ours to use is written in docs/design/storage.md: the one in
use, else the first that exists and is ours, else the first that is free. The choice is made under a lock file.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pwd
import re
import stat
import time
from collections.abc import Callable, Iterator

from copyless.storage.registries import LAYOUT, in_use
from copyless.storage.settings import current as settings

__all__ = ["candidates", "choosing", "current", "ensure", "entered", "is_ours", "lock_file", "ours", "refused", "settled", "spaces", "why_refused"]

_SUFFIXES = 16
_LOCK_SECONDS = 5.0  # a process that was stopped while it chose does not hold up the others for longer

_LONGEST_PAUSE = 0.02  # between two looks at the lock

_entered = ""


def candidates() -> list[str]:
    space = settings().space
    base = os.path.join(settings().dir, f"copyless-{os.geteuid()}" + (f"-{space}" if space else ""))
    return [base] + [f"{base}.{i}" for i in range(1, _SUFFIXES)]


def is_ours(st: os.stat_result) -> bool:
    """A directory that only this user can have written to. (Bits such as set-group-id come from its parent.)"""
    return stat.S_ISDIR(st.st_mode) and st.st_uid == os.geteuid() and not st.st_mode & 0o022


def _user(uid: int) -> str:
    try:
        return f"user {pwd.getpwuid(uid).pw_name} (uid {uid})"
    except KeyError:
        return f"uid {uid}"


def why_refused(path: str) -> str:
    """Why a path is not used, whose it is, and what to do."""
    try:
        st = os.lstat(path)
    except OSError as error:
        return f"{path}: {error.strerror}"
    if st.st_uid != os.geteuid():
        return (
            f"{path} belongs to {_user(st.st_uid)}: ask that user or an administrator to remove it, "
            "or set COPYLESS_DIR to a directory of yours"
        )
    if not stat.S_ISDIR(st.st_mode):
        return f"{path} is yours and is not a directory: remove it"
    return f"{path} is yours, but others may write to it (mode {stat.S_IMODE(st.st_mode):04o}): remove it"


def refused() -> list[str]:
    """Paths that bear our name and are not ours to trust: another's, no directory, or writable by others."""
    found = []
    for path in candidates():
        try:
            if not is_ours(os.lstat(path)):
                found.append(path)
        except OSError:
            continue
    return found


def _look() -> tuple[list[str], list[str]]:
    """(paths that are ours to use, paths that are free), each in order."""
    there, free = [], []
    for path in candidates():
        try:
            if is_ours(os.lstat(path)):
                there.append(path)
        except FileNotFoundError:
            free.append(path)
        except OSError:
            continue
    return there, free


def ours() -> list[str]:
    """The directories of this user that exist, in the order of their names."""
    return _look()[0]


def _choose() -> tuple[str | None, str | None]:
    """(the directory to use, None), or (None, the one to make), or (None, None)."""
    there, free = _look()
    if len(there) > 1:
        for path in there:
            if in_use(path):
                return path, None
    if there:
        return there[0], None
    return None, free[0] if free else None


def spaces() -> list[str]:
    """The spaces of this user that have a directory; the common one is the empty name."""
    found = set()
    with contextlib.suppress(OSError):
        for name in os.listdir(settings().dir):
            matched = re.fullmatch(rf"copyless-{os.geteuid()}(?:-([A-Za-z0-9_-]+))?(?:\.\d+)?", name)
            with contextlib.suppress(OSError):
                if matched and is_ours(os.lstat(os.path.join(settings().dir, name))):
                    found.add(matched.group(1) or "")
    return sorted(found)


def current() -> str:
    """The directory in use by this process, or the one that it would use or make."""
    if _entered:
        return _entered
    there, new = _choose()
    return there or new or candidates()[0]


def entered(path: str) -> None:
    """The store was opened there."""
    global _entered
    _entered = path


# ---- the lock of the choice


class _Settled(Exception):
    """While the lock was waited for, what it is for was decided."""


def _lock(fd: int, until: float, over: Callable[[], bool]) -> bool:
    # No blocking flock(): it has no deadline. Hundreds that wait look ever more seldom, and not all at once.
    pause = 0.001
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if over():
                raise _Settled from None
            left = until - time.monotonic()
            if left < 0:
                return False
            time.sleep(min(left, pause * (0.5 + time.monotonic_ns() % 1000 / 2000)))
            pause = min(pause * 2, _LONGEST_PAUSE)
        except OSError:  # a file system without locks
            return False


def _never() -> bool:
    return False


def lock_file(path: str, until: float, over: Callable[[], bool] = _never) -> int | None:
    """A descriptor of the lock file, locked and still under its name; None when it cannot be had: a squat, say."""
    while True:
        try:
            # O_EXCL apart: to open another user's file with O_CREAT in a sticky directory is an error by itself.
            fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            try:
                fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
                os.fchmod(fd, 0o600)  # whatever the umask
            except FileExistsError:
                continue
            except OSError:
                return None
        except OSError:
            return None
        st = os.fstat(fd)
        try:
            locked = stat.S_ISREG(st.st_mode) and st.st_uid == os.geteuid() and _lock(fd, until, over)
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
        os.close(fd)  # its last user removed it while we waited


def settled() -> bool:
    """Whether there is nothing to choose: one directory is ours, and a registry is in it.

    Whoever chooses takes that one, so who only joins needs no lock. (It may go at any moment, with its last user: then joining
    fails, and the choice is made under the lock.)
    """
    there, _ = _look()
    return len(there) == 1 and os.path.lexists(f"{there[0]}/registry.{LAYOUT}")


@contextlib.contextmanager
def choosing(over: Callable[[], bool] = _never) -> Iterator[bool]:
    """Hold the lock of the choice: of all first starts of this user, one at a time chooses and opens.

    `over` is asked while it is waited for: once it is true the lock is not needed any more, and what is given is False.

    The lock is a file beside the directories, removed again at the end. Where another user has taken its name, or it
    cannot be made, the first directory of ours is locked instead; with none there, making one decides (mkdir is one
    step). Nobody waits longer than some seconds: the rules alone agree unless a squat comes or goes just then.
    """
    until = time.monotonic() + _LOCK_SECONDS
    path = candidates()[0] + ".lock"
    fd: int | None = None
    named = needed = False
    try:
        fd = lock_file(path, until, over)
        named = fd is not None
        needed = True
        if fd is None:
            there = ours()
            if there:
                with contextlib.suppress(OSError):
                    fd = os.open(there[0], os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
                    _lock(fd, until, over)
    except _Settled:
        needed = False
    except BaseException:
        if fd is not None:
            os.close(fd)
        raise
    try:
        yield needed
    finally:
        if fd is not None:
            if named:
                with contextlib.suppress(OSError):
                    os.unlink(path)
            # A child forked by another thread just now has this descriptor too: unlocking frees it for both.
            with contextlib.suppress(OSError):
                fcntl.flock(fd, fcntl.LOCK_UN)
            os.close(fd)


# ---- making it


def _set_mode(path: str) -> None:
    """Make a directory of ours 0700, whatever the umask was; through a descriptor, so that a link is never followed."""
    fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        st = os.fstat(fd)
        if st.st_uid == os.geteuid() and not st.st_mode & 0o022 and stat.S_IMODE(st.st_mode) & 0o777 != 0o700:
            # fchmod refuses an O_PATH descriptor, and a directory of mode 0600 cannot be opened in another way.
            os.chmod(f"/proc/self/fd/{fd}", stat.S_IMODE(st.st_mode) & stat.S_ISGID | 0o700)
    finally:
        os.close(fd)


def ensure() -> tuple[str, int]:
    """Find or make the directory: (path, descriptor). Under the lock of the choice.

    Raises
    ------
    PermissionError
        When every name is taken by others; it names the first and its owner.
    OSError
        When none can be made.
    """
    for _ in range(100):
        path, new = _choose()
        if path is None:
            if new is None:
                names = candidates()
                raise PermissionError(
                    f"{why_refused(names[0])}. The next {_SUFFIXES - 1} names are taken too, to {names[-1]}"
                )
            path = new
            try:
                os.mkdir(path, 0o700)
            except FileExistsError:
                continue
            except OSError as error:
                raise OSError(
                    error.errno,
                    f"{os.strerror(error.errno or 0)}: no storage directory can be made in {settings().dir}; "
                    "mount a tmpfs there or set COPYLESS_DIR to one",
                    path,
                ) from None
        try:
            _set_mode(path)
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            continue  # its last user has just removed it
        if is_ours(os.fstat(fd)):
            return path, fd
        os.close(fd)
    raise OSError(f"the storage directory in {settings().dir} is made and removed all the time; set COPYLESS_DIR")
