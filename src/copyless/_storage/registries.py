"""The contents of a storage directory, read without opening the store: registries of every layout, their users and
names.

Of another layout, only what every layout has in the same place is read: the file names, the locks on the liveness file,
and the number of persistent names (`cl_control` keeps that field in its place). Only `removal` changes a file, of this
layout.
"""

from __future__ import annotations

import os
import stat
import struct

from copyless._core import _store, c_library
from copyless._platform import lock_in

__all__ = [
    "LAYOUT",
    "Found",
    "filesystem",
    "holders_of",
    "in_use",
    "is_file_of",
    "look",
    "older_with_names",
    "open_file",
]

LAYOUT: int = c_library.LAYOUT

_MAGIC, _GUARD, _PERSISTENT_AT = 0x7373656C79706F63, 0xC0BB1E5500D5EEDF, 52
_OWNERS = 4096  # bytes of a liveness file before the bytes for lineages


def _layout_in(text: str) -> int | None:
    """The layout that a part of a file's name says."""
    is_number = len(text) <= 4 and text.isascii() and text.isdecimal() and text[0] != "0"
    return int(text) if is_number else None


def _layout_of(name: str) -> int | None:
    """Which layout a file is of, by its name; None where it is none of ours. Those without a number are 2's."""
    kind, _, rest = name.partition(".")
    if kind == "registry":
        return _layout_in(rest)
    if kind not in ("seg", "live", "new"):
        return None
    layout, dot, number = rest.rpartition(".")
    if len(number) != 16 or not set(number) <= set("0123456789abcdef"):
        return None
    # Layouts 1 and 2 did not write the layout's number into the names of their other files.
    return _layout_in(layout) if dot else 2


class Found:
    """A registry, or files without one, of one layout.

    Not a dataclass: dataclasses load `inspect`, which takes as long as everything else here.
    """

    __slots__ = ("files", "holders", "layout", "nbytes", "persistent", "registry")

    def __init__(self, layout: int) -> None:
        self.layout = layout
        self.registry = False
        self.persistent = 0  # persistent names; -1: unknown
        self.holders: list[int] = []  # locked bytes of its liveness files: the slots of live owners
        self.files = self.nbytes = 0


def open_file(name: str, directory: int, flags: int = os.O_RDONLY) -> int | None:
    """A descriptor of a regular file of this user; None for anything else. Opening a FIFO in its place does not
    wait.
    """
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
    fd = open_file(name, directory)
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


def holders_of(name: str, directory: int) -> list[int]:
    """Which bytes of a liveness file are locked."""
    fd = open_file(name, directory)
    if fd is None:
        return []
    # The answer may be any lock in the range, not only the first: search on both sides of it.
    slots: set[int] = set()
    ranges = [(0, 0)]  # (begin, end); 0: to the end
    try:
        while ranges:
            begin, end = ranges.pop()
            found = lock_in(fd, begin, end - begin if end else 0)
            if found is None:
                continue
            start, length = found
            slots.add(max(start, begin) % _OWNERS)  # the liveness byte of a slot, or the lineage byte of the same slot
            if start > begin:
                ranges.append((begin, start))
            if length and (not end or start + length < end):
                ranges.append((start + length, end))
        return sorted(slots)
    finally:
        os.close(fd)


def is_file_of(layout: int, name: str) -> bool:
    kind, _, rest = name.partition(".")
    return _layout_of(name) == layout and (kind == "registry" or "." in rest)


def look(path: str) -> list[Found]:
    """What each layout has in a directory, oldest layout first.

    Files of layouts 1 and 2 without a number count as layout 2.
    """
    found: dict[int, Found] = {}
    try:
        directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return []
    try:
        for name in os.listdir(directory):
            layout = _layout_of(name)
            if layout is None:
                continue
            entry = found.setdefault(layout, Found(layout))
            entry.files += 1
            try:
                entry.nbytes += os.stat(name, dir_fd=directory, follow_symlinks=False).st_blocks * 512
            except OSError:
                continue
            if name.startswith("registry."):
                entry.registry = True
                entry.persistent = _persistent(name, directory)
            elif name.startswith("live."):
                entry.holders += holders_of(name, directory)
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
    """Whether a process uses a registry of any layout there, or has left persistent names in it."""
    return any(entry.registry and (entry.holders or entry.persistent > 0) for entry in look(path))


def older_with_names(path: str) -> list[tuple[int, int]]:
    """(layout, number of names) of older layouts that have persistent names.

    Costs one look-up for each layout, however full the directory is.
    """
    try:
        directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return []
    try:
        counts = [(layout, _persistent(f"registry.{layout}", directory)) for layout in range(2, LAYOUT)]
    finally:
        os.close(directory)
    return [(layout, count) for layout, count in counts if count > 0]
