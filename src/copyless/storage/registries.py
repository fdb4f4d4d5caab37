"""What lies in a storage directory, read without joining it: registries of every layout, who uses them, what they keep.

What is read of another layout is only what every layout has in the same place: the file names, the locks on the liveness
file, and how many names persist (`cl_control` keeps that field where it is). Only `remove` changes a file, of this layout.
"""

from __future__ import annotations

import fcntl
import os
import re
import stat
import struct
from dataclasses import dataclass

from copyless._core import _store, c_library

__all__ = ["LAYOUT", "Found", "filesystem", "in_use", "look", "older_with_names", "remove"]

LAYOUT: int = c_library.LAYOUT

_REGISTRY = re.compile(r"registry\.([1-9][0-9]{0,3})")
# Layouts 1 and 2 did not write the layout's number into the names of their other files.
_OTHER = re.compile(r"(?:seg|live|new)\.(?:([1-9][0-9]{0,3})\.)?[0-9a-f]{16}")
_MAGIC, _GUARD, _PERSISTENT_AT = 0x7373656C79706F63, 0xC0BB1E5500D5EEDF, 52
_OWNERS = 4096  # bytes of a liveness file before those of the lineages
_GETLK, _SETLK = getattr(fcntl, "F_OFD_GETLK", 36), getattr(fcntl, "F_OFD_SETLK", 37)


@dataclass
class Found:
    """A registry, or files without one, of one layout."""

    layout: int
    registry: bool
    persistent: int
    """Names that persist; -1: it cannot be told."""
    holders: list[int]
    """Locked bytes of its liveness files: slots of owners that live."""
    files: int
    nbytes: int


def _open(name: str, directory: int, flags: int = os.O_RDONLY) -> int | None:
    """A descriptor of a regular file of ours; None when it is none. A FIFO in its place does not make it wait."""
    try:
        fd = os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    except OSError:
        return None
    st = os.fstat(fd)
    if stat.S_ISREG(st.st_mode) and st.st_uid == os.geteuid():
        return fd
    os.close(fd)
    return None


def _persistent(name: str, directory: int) -> int:
    fd = _open(name, directory)
    if fd is None:
        return -1
    try:
        header, control = os.pread(fd, 16, 0), os.pread(fd, _PERSISTENT_AT + 4, 4096)
    except OSError:
        return -1
    finally:
        os.close(fd)
    if len(header) < 16 or len(control) < _PERSISTENT_AT + 4:
        return -1
    magic, layout = struct.unpack_from("<QI", header)
    (guard,) = struct.unpack_from("<Q", control)
    if magic != _MAGIC or guard != _GUARD or layout < 2:
        return -1
    removed, count = struct.unpack_from("<I", control, 16)[0], struct.unpack_from("<I", control, _PERSISTENT_AT)[0]
    return 0 if removed else int(count)


def _holders(name: str, directory: int) -> list[int]:
    """Which bytes of a liveness file are locked."""
    fd = _open(name, directory)
    if fd is None:
        return []
    # The kernel names some lock in the range that is asked about, not the first: look on both sides of it.
    slots: set[int] = set()
    ranges = [(0, 0)]  # (begin, end); 0: to the end
    try:
        while ranges:
            begin, end = ranges.pop()
            asked = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, begin, end - begin if end else 0, 0)
            kind, _, start, length, _ = struct.unpack("hhqqi4x", fcntl.fcntl(fd, _GETLK, asked))
            if kind == fcntl.F_UNLCK:
                continue
            slots.add(max(start, begin) % _OWNERS)  # its life, or the lineage of the same slot
            if start > begin:
                ranges.append((begin, start))
            if length and (not end or start + length < end):
                ranges.append((start + length, end))
        return sorted(slots)
    finally:
        os.close(fd)


def look(path: str) -> list[Found]:
    """What each layout has in a directory, oldest layout first. Files of layouts 1 and 2 without a number count as 2's."""
    found: dict[int, Found] = {}
    try:
        directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return []
    try:
        for name in os.listdir(directory):
            registry, other = _REGISTRY.fullmatch(name), _OTHER.fullmatch(name)
            if registry is None and other is None:
                continue
            number = (registry or other)[1]  # type: ignore[index]
            entry = found.setdefault(int(number or 2), Found(int(number or 2), False, 0, [], 0, 0))
            entry.files += 1
            try:
                entry.nbytes += os.stat(name, dir_fd=directory, follow_symlinks=False).st_blocks * 512
            except OSError:
                continue
            if registry:
                entry.registry = True
                entry.persistent = _persistent(name, directory)
            elif name.startswith("live."):
                entry.holders += _holders(name, directory)
    finally:
        os.close(directory)
    return [found[layout] for layout in sorted(found)]


def filesystem(path: str) -> str:
    """'memory', 'local' or 'shared': see `filesystem.h`."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return _store.filesystem(fd)
    finally:
        os.close(fd)


def in_use(path: str) -> bool:
    """Whether somebody uses a registry there, of any layout, or left names in it that persist."""
    return any(entry.registry and (entry.holders or entry.persistent > 0) for entry in look(path))


def older_with_names(path: str) -> list[tuple[int, int]]:
    """(layout, how many) of older layouts that hold names that persist. Costs a look-up a layout, however full it is."""
    try:
        directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return []
    try:
        counts = [(layout, _persistent(f"registry.{layout}", directory)) for layout in range(2, LAYOUT)]
    finally:
        os.close(directory)
    return [(layout, count) for layout, count in counts if count > 0]


def remove(path: str) -> Found:
    """Remove this layout's registry and its files, damaged or not, unless a process uses them: then nothing is removed.

    Every byte of every liveness file is locked meanwhile, so nobody can join. A file of another layout stays, and with
    it the directory.

    Returns
    -------
    Found
        What was there; with `holders`, nothing was removed.
    """
    found = Found(LAYOUT, False, 0, [], 0, 0)
    locked: list[int] = []
    try:
        directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return found
    try:
        if _store.filesystem(directory) == "shared":
            raise PermissionError(
                f"{path} lies on a file system that other machines may share: their programs cannot be seen from here. "
                "End them, then remove it yourself"
            )
        names = [
            name
            for name in sorted(os.listdir(directory))
            if name == f"registry.{LAYOUT}" or ((of := _OTHER.fullmatch(name)) and of[1] == str(LAYOUT))
        ]
        for name in names:
            if name.startswith("live."):
                fd = _open(name, directory, os.O_RDWR)
                if fd is None:
                    continue
                locked.append(fd)
                try:
                    fcntl.fcntl(fd, _SETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
                except BlockingIOError:
                    found.holders += _holders(name, directory)
        if not found.holders:
            # The registry first, as it is always removed: what is left after a death is swept by the next.
            for name in sorted(names, key=lambda name: not name.startswith("registry")):
                found.files += 1
                found.nbytes += os.stat(name, dir_fd=directory, follow_symlinks=False).st_blocks * 512
                os.unlink(name, dir_fd=directory)
    finally:
        for fd in locked:
            os.close(fd)
        os.close(directory)
    if not found.holders:
        from copyless.storage import sockets

        sockets.remove_dead(path)
        if not os.listdir(path):
            os.rmdir(path)
    return found
