"""The exception for a result of the C library, and its text."""

from __future__ import annotations

import errno
import os

from copyless import _platform
from copyless._core import c_library, events
from copyless._typing import TypeVar
from copyless.errors import (
    ClosedError,
    CopylessError,
    CorruptSegmentError,
    ForeignHostError,
    OutOfSharedMemory,
    RegistryBusyError,
    StaleHandleError,
    SystemLimitError,
    TableFullError,
    WrongProcessError,
)

__all__ = ["native_error", "no_room", "out_of_shared_memory", "refused", "system_limit", "table_full"]

E = TypeVar("E", bound=Exception)

# What to do when a table is full, by the words with which the C library names the table.
_REMEDIES = (
    (
        "items are taken and not acknowledged",
        "acknowledge some, or discard dead letters, or make the queue with more leases=",
    ),
    ("segments are taken", "free some large arrays, or call copyless.trim()"),
    ("holds are taken", "free some arrays, or receive what was sent and not yet received"),
    ("names are taken", "remove some names with copyless.unlink"),
    (
        "processes use this user's shared memory",
        "end some of the processes that use copyless, or give some of them another space (COPYLESS_SPACE)",
    ),
    (
        "stores are open in this process",
        "restart the program: its storage directory was removed that often while in use",
    ),
    ("processes already use this ring", "close the ring in some of them, or make the ring with more members="),
    ("readers are already subscribed", "close some subscriptions, or make the ring with more members="),
    ("frames were published in this ring", "make a new ring: its frames are numbered with 44 bits"),
    (
        "processes already hold the lock for reading",
        "let some of them release the lock first, or make the lock with more readers=",
    ),
    ("waiters are already waiting", "let fewer processes wait at once, or make the condition with more waiters="),
)


_REMOVAL = "Remedy: run loginctl enable-linger, set RemoveIPC=no in logind.conf, or set COPYLESS_DIR to another place"


def out_of_shared_memory(code: int, what: str, asked: int, directory: str) -> OutOfSharedMemory:
    """The error with the mount, its size, the request and what to do."""
    try:
        room = _platform.mount_room(directory)
        has = f"{room[0]:,} bytes in all, {room[1]:,} free" if room else "no limit of its own"
        mount = f"{directory}: {has}"
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
    """The error for a table of fixed size without a free entry: more memory would not help."""
    remedy = next((remedy for words, remedy in _REMEDIES if words in what), "release what is no longer needed")
    words = what.split(" ")
    at = next((at for at, word in enumerate(words) if word.isdecimal()), -1)
    limit = int(words[at]) if at >= 0 else 0
    if at >= 0:
        words[at] = f"{limit:,}"
    text = " ".join(words) or "a table of copyless is full"
    error = TableFullError(f"{text}: {remedy}")
    error.limit = error.present = limit
    error.remedy = remedy
    error.directory = _directory()
    return error


def _address_space() -> tuple[str, int, int, str] | None:
    """(name of the limit, limit, present number, remedy) if a limit made the system refuse a mapping, else None."""
    space = c_library.soft_limit(c_library.RLIMIT_AS)
    most, mappings = _platform.most_mappings(), _platform.mappings()
    if most and mappings >= most - 8:
        remedy = "raise it (sysctl vm.max_map_count), or free some large arrays"
        return "mappings of a process", most, mappings, remedy
    if space:
        used = _platform.address_space_in_use()
        return "bytes of address space (RLIMIT_AS)", space, used, "raise it (ulimit -v), or free some arrays"
    return None


def _system_limit(sys: int, asked: int, directory: str) -> tuple[str, int, int, str] | None:
    """(name of the limit, limit, present number, remedy) if a limit other than the room of the mount was reached,
    else None.
    """
    if sys == errno.EMFILE:
        limit = c_library.soft_limit(c_library.RLIMIT_NOFILE)
        return "open files of this process (RLIMIT_NOFILE)", limit, limit, "raise it (ulimit -n), or close some"
    if sys == errno.ENFILE:
        limit = _platform.most_open_files()
        return "open files of the whole system", limit, limit, "raise it (sysctl fs.file-max), or close some"
    if sys == errno.EFBIG:
        limit = c_library.soft_limit(c_library.RLIMIT_FSIZE)
        if not limit:
            return None  # the file system has no larger files
        return (
            "bytes of one file (RLIMIT_FSIZE)",
            limit,
            asked,
            "raise it (ulimit -f), since shared memory is made of files",
        )
    if sys == errno.ENOMEM:
        return _address_space()
    if sys == errno.ENOSPC:
        try:
            st = os.statvfs(directory)
        except OSError:
            return None
        if st.f_files and not st.f_favail:
            remedy = "free some arrays, or give the mount more (mount -o remount,nr_inodes=...), or set COPYLESS_DIR"
            return "files on the mount (its inodes)", st.f_files, st.f_files - st.f_favail, remedy
    return None


def system_limit(sys: int, what: str, asked: int, directory: str = "") -> SystemLimitError | None:
    """The error for a limit of the process or the system, if one was reached. `directory`: default: the store's."""
    met = _system_limit(sys, asked, directory or _directory())
    if met is None:
        return None
    of_what, limit, present, remedy = met
    size = f"; asked for {asked:,} bytes" if asked else ""
    number = f"the limit of {limit:,} {of_what}" if limit else f"the limit of {of_what}"
    text = f"{number} is reached: {what or os.strerror(sys)}{size}. Remedy: {remedy}"
    return _limit_error(sys, text, limit, present, remedy, asked)


def _limit_error(sys: int, text: str, limit: int, present: int, remedy: str, asked: int) -> SystemLimitError:
    error = SystemLimitError(sys, text)
    error.limit, error.present, error.remedy = limit, present, remedy
    error.asked, error.directory = asked, _directory()
    return error


def no_room(error: OSError, what: str, asked: int, directory: str) -> OutOfSharedMemory:
    """The error for a file that the system cannot make large enough: a limit was reached, or the mount has no room."""
    limit = system_limit(error.errno or 0, what, asked, directory)
    return refused(limit or out_of_shared_memory(error.errno or 0, what, asked, directory))


def refused(error: E) -> E:
    """The same error. If it says that something could not be had, that is counted and logged."""
    if isinstance(error, OutOfSharedMemory):
        events.refused(error, error.asked)
    return error


def native_error(code: int, sys: int, what: str, asked: int) -> Exception:
    """The exception for a result of the C library."""
    return refused(_native_error(code, sys, what, asked))


def _native_error(code: int, sys: int, what: str, asked: int) -> Exception:
    if code in (c_library.FULL, c_library.SYSTEM) and sys:
        limit = system_limit(sys, what, asked)
        if limit is not None:
            return limit
    if code == c_library.TABLE_FULL:
        return table_full(what)
    if code == c_library.SYSTEM and sys == errno.ENOMEM:
        remedy = "free some memory, or raise its control group's limit (memory.max)"
        return _limit_error(
            sys, f"the system has no memory for this process: {what}. Remedy: {remedy}", 0, 0, remedy, asked
        )
    if (
        code == c_library.SYSTEM and sys == errno.EAGAIN and "thread" in what
    ):  # not BlockingIOError, which means "try again"
        threads, remedy = (
            c_library.soft_limit(c_library.RLIMIT_NPROC),
            "end some, or raise it (ulimit -u or -v, pids.max of the control group)",
        )
        most = "the limit of threads (RLIMIT_NPROC, pids.max) or of address space (RLIMIT_AS) is reached"
        return _limit_error(sys, f"{most}: {what}. Remedy: {remedy}", threads, 0, remedy, asked)
    if code == c_library.FULL:
        return out_of_shared_memory(sys, what, asked, _directory())
    if code == c_library.REMOVED:
        return CorruptSegmentError(f"{what or 'the storage directory was removed while in use'}. {_REMOVAL}")
    if code == c_library.STALE and "removed while in use" in what:
        return StaleHandleError(f"{what}. {_REMOVAL}")
    if code == c_library.STALE:
        what = what or "the memory that the handle names no longer exists"
        return StaleHandleError(
            f"{what}. Its last holder has released it: keep the array until the receiver has loaded it"
        )
    if code == c_library.CORRUPT:
        what = what or "a shared file is damaged"
        return CorruptSegmentError(
            f"{what} (in {_directory()}). End the programs that use it and run 'copyless reap --force'"
        )
    if code == c_library.FORKED:
        return WrongProcessError(what)
    if code == c_library.FOREIGN:
        return ForeignHostError(
            what or "it belongs to another kernel, or to a directory that this process does not see"
        )
    if code == c_library.OTHER_FORMAT:
        return CopylessError(f"{what} (in {_directory()})")
    if code == c_library.RETRY:
        return RegistryBusyError(f"{what or 'the registry is being made or removed'} (in {_directory()})")
    if code == c_library.CLOSED:
        return ClosedError(what or "it is closed")
    if code == c_library.SYSTEM and sys:
        return OSError(sys, f"{os.strerror(sys)}: {what}")
    return CopylessError(f"{what} (result {code})" if what else f"the C library returned {code}")


def _directory() -> str:
    """The directory of the open store, or of the one that was to be opened."""
    from copyless._core import _store  # imported here, because it uses this module for its errors

    return os.fsdecode(_store.path())
