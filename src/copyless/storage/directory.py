"""The storage directory: one a user, 0700, found the same way by all processes of a uid."""

from __future__ import annotations

import os
import stat

from copyless.storage.settings import current as settings

__all__ = ["candidates", "current", "ensure", "refused"]

_SUFFIXES = 16


def candidates() -> list[str]:
    base = os.path.join(settings().dir, f"copyless-{os.geteuid()}")
    return [base] + [f"{base}.{i}" for i in range(1, _SUFFIXES)]


def _is_ours(path: str) -> bool:
    st = os.lstat(path)
    return stat.S_ISDIR(st.st_mode) and st.st_uid == os.geteuid() and stat.S_IMODE(st.st_mode) == 0o700


def refused() -> list[str]:
    """Paths that bear our name and are not ours to trust: another's, a link, or open to others."""
    found = []
    for path in candidates():
        try:
            if not _is_ours(path):
                found.append(path)
        except FileNotFoundError:
            continue
    return found


def current() -> str:
    """The directory in use, or the one that would be made."""
    for path in candidates():
        try:
            if _is_ours(path):
                return path
        except OSError:
            return path
    return candidates()[0]


def ensure() -> tuple[str, int]:
    """Find or make the directory: (path, descriptor).

    A path that another user has taken is left alone and the next suffix is used.
    """
    for path in candidates():
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            pass
        except OSError as error:
            raise OSError(
                error.errno,
                f"{os.strerror(error.errno or 0)}: no storage directory can be made in {settings().dir}; "
                "mount a tmpfs there or set COPYLESS_DIR to one",
                path,
            ) from None
        try:
            if not _is_ours(path):
                continue
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            continue
        if os.fstat(fd).st_uid == os.geteuid():
            return path, fd
        os.close(fd)
    raise PermissionError(f"{candidates()[0]} and the next {_SUFFIXES - 1} names are taken by others; set COPYLESS_DIR")
