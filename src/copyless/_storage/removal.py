"""Removing a registry by force: `copyless reap --force`."""

from __future__ import annotations

import os

from copyless._core import _store
from copyless._platform import lock_whole
from copyless._storage import sockets
from copyless._storage.registries import LAYOUT, Found, holders_of, is_file_of, open_file

__all__ = ["remove"]


def remove(path: str) -> Found:
    """Remove the registry of this layout and its files, damaged or not. If a process uses them, nothing is removed.

    Every byte of every liveness file is locked meanwhile, so that no process can join. A file of another layout stays,
    and with it the directory.

    Returns
    -------
    Found
        What was there. If it has `holders`, nothing was removed.
    """
    found = Found(LAYOUT)
    locked: list[int] = []
    try:
        directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return found
    try:
        if _store.filesystem(directory) == "shared":
            raise PermissionError(
                f"{path} lies on a file system that other machines may use, and their processes cannot be seen "
                "from this one: end them, then remove the directory by hand"
            )
        names = [name for name in sorted(os.listdir(directory)) if is_file_of(LAYOUT, name)]
        for name in names:
            if name.startswith("live."):
                fd = open_file(name, directory, os.O_RDWR)
                if fd is None:
                    continue
                locked.append(fd)
                try:
                    lock_whole(fd)
                except BlockingIOError:
                    found.holders += holders_of(name, directory)
        if not found.holders:
            # The registry first, as always: if this process dies, the next one sweeps the remaining files.
            for name in sorted(names, key=lambda name: not name.startswith("registry")):
                found.files += 1
                found.nbytes += os.stat(name, dir_fd=directory, follow_symlinks=False).st_blocks * 512
                os.unlink(name, dir_fd=directory)
    finally:
        for fd in locked:
            os.close(fd)
        os.close(directory)
    if not found.holders:
        sockets.remove_dead(path)
        if not os.listdir(path):
            os.rmdir(path)
    return found
