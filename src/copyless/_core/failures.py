"""Which exception a result of the C library is, and what it says."""

from __future__ import annotations

import errno
import os
import re

from copyless._core import c_library
from copyless.errors import (
    ClosedError,
    CopylessError,
    CorruptSegmentError,
    ForeignHostError,
    OutOfSharedMemory,
    RegistryBusyError,
    StaleHandleError,
    TableFullError,
    WrongProcessError,
)

__all__ = ["native_error", "out_of_shared_memory", "table_full"]

# What helps when a table is full, by the words in which the C library says which one.
_REMEDIES = (
    ("items are taken and not acknowledged", "acknowledge some"),
    ("segments are taken", "free some large arrays, or call copyless.trim()"),
    ("holds are taken", "free some arrays, or receive what was sent and not yet received"),
    ("names are taken", "remove some names with copyless.unlink"),
    ("owner slots are taken", "end some of the processes that use copyless"),
    ("processes use this ring already", "close the ring in some of them"),
    ("readers are subscribed already", "close some subscriptions"),
    ("processes read already", "let some of them release the lock first"),
    ("wait already", "let fewer wait at once"),
)


_REMOVAL = "Remedy: loginctl enable-linger, or RemoveIPC=no in logind.conf, or COPYLESS_DIR elsewhere"


def out_of_shared_memory(code: int, what: str, asked: int, directory: str) -> OutOfSharedMemory:
    """Name the mount, its size, the request and the remedy."""
    try:
        st = os.statvfs(directory)
        mount = f"{directory}: {st.f_blocks * st.f_frsize:,} bytes in all, {st.f_bavail * st.f_frsize:,} free"
    except OSError:
        mount = directory or "no storage directory is open"
    remedy = (
        "free arrays, call copyless.trim(), or give it more room (mount -o remount,size=...; Docker --shm-size=...)"
    )
    if "memory.max" in what or "available" in what:
        remedy = "free memory, or raise the limit"
    text = f"out of shared memory: {what}" if what else "out of shared memory"
    if asked:
        text += f"; asked for {asked:,} bytes"
    error = OutOfSharedMemory(
        code or errno.ENOSPC, f"{text} ({mount}). Remedy: {remedy}, or set COPYLESS_DIR", directory
    )
    error.asked = asked
    error.directory = directory
    return error


def table_full(what: str) -> TableFullError:
    """A table of fixed size has no free entry: more memory would not help."""
    remedy = next((remedy for words, remedy in _REMEDIES if words in what), "let go what is not needed any more")
    number = re.search(r"\d+", what)
    limit = int(number.group()) if number else 0
    text = re.sub(r"\d+", f"{limit:,}", what, count=1) or "a table of copyless is full"
    error = TableFullError(f"{text}: {remedy}")
    error.limit = error.present = limit
    error.remedy = remedy
    error.directory = _directory()
    return error


def native_error(code: int, sys: int, what: str, asked: int) -> Exception:
    """The exception for a result of the C library."""
    if code == c_library.TABLE_FULL:
        return table_full(what)
    if code == c_library.FULL or (code == c_library.SYSTEM and sys == errno.ENOMEM):
        return out_of_shared_memory(sys, what, asked, _directory())
    if code == c_library.REMOVED:
        return CorruptSegmentError(f"{what or 'the storage directory was removed while in use'}. {_REMOVAL}")
    if code == c_library.STALE and "removed while in use" in what:
        return StaleHandleError(f"{what}. {_REMOVAL}")
    if code == c_library.STALE:
        what = what or "what the handle names is gone"
        return StaleHandleError(f"{what}. Whoever held it has let it go: keep the array until it is loaded")
    if code == c_library.CORRUPT:
        what = what or "a shared file is damaged"
        return CorruptSegmentError(
            f"{what} (in {_directory()}). End the programs that use it and run 'copyless reap --force'"
        )
    if code == c_library.FORKED:
        return WrongProcessError(what)
    if code == c_library.FOREIGN:
        return ForeignHostError(what or "it belongs to another kernel, or lies where this process does not see it")
    if code == c_library.OTHER_FORMAT:
        return CopylessError(f"{what} (in {_directory()})")
    if code == c_library.RETRY:
        return RegistryBusyError(f"{what or 'the registry is being made or removed'} (in {_directory()})")
    if code == c_library.CLOSED:
        return ClosedError(what or "it is closed")
    if code == c_library.SYSTEM and sys:
        return OSError(sys, f"{os.strerror(sys)}: {what}")
    return CopylessError(f"{what} (result {code})" if what else f"the C library gave result {code}")


def _directory() -> str:
    """Where the open store lies, or where one was to be opened."""
    from copyless._core import _store  # which makes its errors here

    return os.fsdecode(_store.path())
