"""The storage directory: one for each user and space, mode 0700, found in the same way by all processes of a user.

Which of the names `copyless-UID`, `copyless-UID.1` ... (in a space `copyless-UID-SPACE`, ...) is used is explained in
docs/design/storage.md: the one in use, otherwise the first that exists and belongs to this user, otherwise the first
free one. The choice is made under a lock file.
"""

from __future__ import annotations

import fcntl
import os
import stat
import time

from copyless._core.c_library import LAYOUT
from copyless._platform import open_place, path_of
from copyless._storage.lock_files import Settled, is_ours, lock, lock_file, never
from copyless._storage.settings import current as settings
from copyless._typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "candidates",
    "choosing",
    "current",
    "ensure",
    "entered",
    "is_ours",
    "lock_file",
    "ours",
    "refused",
    "settled",
    "spaces",
    "why_refused",
]

_SUFFIXES = 16
_LOCK_SECONDS = 5.0  # a process that is stopped while it chooses delays the others no longer than this


_entered = ""


def candidates() -> list[str]:
    space = settings().space
    base = os.path.join(settings().dir, f"copyless-{os.geteuid()}" + (f"-{space}" if space else ""))
    return [base] + [f"{base}.{i}" for i in range(1, _SUFFIXES)]


def _user(uid: int) -> str:
    import pwd

    try:
        return f"user {pwd.getpwuid(uid).pw_name} (uid {uid})"
    except KeyError:
        return f"uid {uid}"


def why_refused(path: str) -> str:
    """Why a path is not used, who owns it, and what to do."""
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
    """Paths with a name of copyless that cannot be trusted: of another user, not a directory, or writable by others."""
    found = []
    for path in candidates():
        try:
            if not is_ours(os.lstat(path)):
                found.append(path)
        except OSError:
            continue
    return found


def _look() -> tuple[list[str], list[str]]:
    """(paths that this user can use, paths that are free), each in order."""
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
        from copyless._storage.registries import in_use

        for path in there:
            if in_use(path):
                return path, None
    if there:
        return there[0], None
    return None, free[0] if free else None


def spaces() -> list[str]:
    """The spaces of this user that have a directory; the common one is the empty name."""
    import re

    found = set()
    try:
        names = os.listdir(settings().dir)
    except OSError:
        return []
    for name in names:
        matched = re.fullmatch(rf"copyless-{os.geteuid()}(?:-([A-Za-z0-9_-]+))?(?:\.\d+)?", name)
        try:
            if matched and is_ours(os.lstat(os.path.join(settings().dir, name))):
                found.add(matched.group(1) or "")
        except OSError:
            continue
    return sorted(found)


def current() -> str:
    """The directory that this process uses, or would use or make."""
    if _entered:
        return _entered
    there, new = _choose()
    return there or new or candidates()[0]


def entered(path: str) -> None:
    """Record that the store was opened in this directory."""
    global _entered
    _entered = path


# ---- the lock of the choice


def settled() -> bool:
    """Whether there is nothing to choose: exactly one directory belongs to this user, and it has a registry.

    Every process then chooses that one, so that a process that only opens it needs no lock. (It may be removed at any
    moment, with its last user: then opening fails, and the choice is made under the lock.)
    """
    there, _ = _look()
    return len(there) == 1 and os.path.lexists(f"{there[0]}/registry.{LAYOUT}")


class choosing:
    """Hold the lock of the choice, as a context manager: of all first starts of this user, one at a time chooses and
    opens.

    `over` is called while waiting. Once it is true, the lock is not needed any more, and False is yielded.

    The lock is a file beside the directories, and is removed at the end. If another user has taken its name, or it
    cannot be made, the first directory of this user is locked instead; without one, mkdir decides, which is atomic. No
    process waits longer than some seconds: without the lock, processes still agree unless another user takes or frees a
    name at that moment.
    """

    def __init__(self, over: Callable[[], bool] = never) -> None:
        self._over = over
        self._path = candidates()[0] + ".lock"
        self._fd: int | None = None
        self._is_named = False

    def __enter__(self) -> bool:
        until = time.monotonic() + _LOCK_SECONDS
        try:
            self._fd = lock_file(self._path, until, self._over)
            self._is_named = self._fd is not None
            if self._fd is None:
                self._lock_directory(until)
        except Settled:
            return False
        except BaseException:
            if self._fd is not None:
                os.close(self._fd)
            raise
        return True

    def _lock_directory(self, until: float) -> None:
        there = ours()
        if not there:
            return
        try:
            self._fd = os.open(there[0], os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            lock(self._fd, until, self._over)
        except OSError:
            pass

    def __exit__(self, *_: object) -> None:
        if self._fd is None:
            return
        try:
            if self._is_named:
                os.unlink(self._path)
        except OSError:
            pass
        try:  # a child forked by another thread just now has this descriptor too: unlocking frees it for both
            fcntl.flock(self._fd, fcntl.LOCK_UN)
        except OSError:
            pass
        os.close(self._fd)


# ---- making it


def _set_mode(path: str) -> None:
    """Set the mode of a directory to 0700, whatever the umask was; through a descriptor, so that no link is
    followed.
    """
    fd = open_place(path, follow=False)
    try:
        st = os.fstat(fd)
        if st.st_uid == os.geteuid() and not st.st_mode & 0o022 and stat.S_IMODE(st.st_mode) & 0o777 != 0o700:
            # fchmod refuses such a descriptor, and a directory of mode 0600 cannot be opened any other way.
            os.chmod(path_of(fd), stat.S_IMODE(st.st_mode) & stat.S_ISGID | 0o700)
    finally:
        os.close(fd)


def ensure() -> tuple[str, int]:
    """Find or make the directory: (path, descriptor). Called under the lock of the choice.

    Raises
    ------
    PermissionError
        If every name is taken by others; the text has the first name and its owner.
    OSError
        If no directory can be made.
    """
    for _ in range(100):
        path, new = _choose()
        if path is None:
            if new is None:
                names = candidates()
                raise PermissionError(
                    f"{why_refused(names[0])}. The next {_SUFFIXES - 1} names, up to {names[-1]}, are taken too: set "
                    "COPYLESS_DIR to a directory of your own"
                )
            path = new
            try:
                os.mkdir(path, 0o700)
            except FileExistsError:
                continue
            except OSError as error:
                raise OSError(
                    error.errno,
                    f"{os.strerror(error.errno or 0)}: the storage directory cannot be made in {settings().dir}: "
                    "mount a tmpfs there, or set COPYLESS_DIR to one",
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
    raise OSError(
        f"the storage directory in {settings().dir} was removed each time it was made: set COPYLESS_DIR "
        "to another place"
    )
