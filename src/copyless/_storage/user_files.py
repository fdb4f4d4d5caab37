"""Mapped user files: kept alive by their views, and found again by address and by identity."""

from __future__ import annotations

import errno
import os
import stat
import threading
import weakref

from copyless._core import _blocks
from copyless.errors import CorruptSegmentError, StaleHandleError

__all__ = ["FileMapping", "any_mapped", "map_again", "map_file", "mapped_at", "open_regular"]


class FileMapping(_blocks.Mapping):
    path: str
    device: int
    inode: int
    offset: int


_files: weakref.WeakSet[FileMapping] = weakref.WeakSet()
_files_lock = threading.Lock()


def _in_child() -> None:
    global _files_lock
    _files_lock = threading.Lock()  # the thread that held it exists only in the parent


os.register_at_fork(after_in_child=_in_child)


def open_regular(path: str, flags: int, mode: int = 0o666) -> int:
    """Open a file, which must be a regular one: a FIFO would wait for its other end, and opening a device may have
    effects.

    Raises
    ------
    ValueError
        If it is of another kind.
    """
    try:
        kind = os.stat(
            path
        ).st_mode  # first, so that no other kind is opened unless it replaces the file between the two calls
    except FileNotFoundError:
        kind = stat.S_IFREG
    if stat.S_ISREG(kind):
        fd = os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY, mode)
        if stat.S_ISREG(os.fstat(fd).st_mode):
            return fd
        os.close(fd)
    if stat.S_ISDIR(kind):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    raise ValueError(f"{path} is not a regular file and cannot be mapped")


def map_file(path: str, fd: int, offset: int, nbytes: int, readonly: bool) -> FileMapping:
    st = os.fstat(fd)
    page = offset % os.sysconf("SC_PAGE_SIZE")
    mapping = FileMapping(fd, nbytes + page, readonly, offset - page)
    mapping.path, mapping.device, mapping.inode, mapping.offset = path, st.st_dev, st.st_ino, offset - page
    with _files_lock:
        _files.add(mapping)
    return mapping


def mapped_at(address: int, nbytes: int) -> tuple[FileMapping, int] | None:
    if not _files:
        return None
    with _files_lock:
        for mapping in _files:
            if mapping.address <= address and address + nbytes <= mapping.address + mapping.nbytes:
                return mapping, address - mapping.address
    return None


def map_again(path: str, device: int, inode: int, offset: int, nbytes: int, writeable: bool) -> FileMapping:
    with _files_lock:
        for mapping in _files:
            same = (mapping.device, mapping.inode) == (device, inode) and not (mapping.readonly and writeable)
            if same and mapping.offset <= offset and offset + nbytes <= mapping.offset + mapping.nbytes:
                return mapping
    if nbytes == 0:
        raise ValueError("the handle is damaged: it names no bytes of its file")
    try:
        fd = open_regular(path, (os.O_RDWR if writeable else os.O_RDONLY) | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        raise StaleHandleError(f"the array's file no longer exists: {path}") from None
    try:
        st = os.fstat(fd)
        if (st.st_dev, st.st_ino) != (device, inode):
            raise StaleHandleError(f"the array's file was replaced by another: {path}")
        if st.st_size < offset + nbytes:
            raise CorruptSegmentError(
                f"the array's file was truncated to {st.st_size:,} bytes, but the array needs "
                f"{offset + nbytes:,}: {path}"
            )
        return map_file(path, fd, offset, nbytes, not writeable)
    finally:
        os.close(fd)


def any_mapped() -> bool:
    return bool(_files)
