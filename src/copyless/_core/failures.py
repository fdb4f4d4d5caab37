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
    SystemLimitError,
    TableFullError,
    WrongProcessError,
)

try:
    import resource
except ImportError:  # this process has become a user who may not read the interpreter's library
    resource = None  # type: ignore[assignment]

__all__ = ["native_error", "out_of_shared_memory", "table_full"]

# What helps when a table is full, by the words in which the C library says which one.
_REMEDIES = (
    ("items are taken and not acknowledged", "acknowledge some, or discard dead letters"),
    ("segments are taken", "free some large arrays, or call copyless.trim()"),
    ("holds are taken", "free some arrays, or receive what was sent and not yet received"),
    ("names are taken", "remove some names with copyless.unlink"),
    ("owner slots are taken", "end some of the processes that use copyless"),
    ("processes use this ring already", "close the ring in some of them, or make it with more members="),
    ("readers are subscribed already", "close some subscriptions, or make the ring with more members="),
    ("frames were published in this ring", "make a new ring: its frames are numbered with 44 bits"),
    ("processes read already", "let some of them release the lock first, or make it with more readers="),
    ("wait already", "let fewer wait at once, or make the condition with more waiters="),
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


def _soft(name: str) -> int:
    """A limit of this process, by name; 0 where it has none, or nobody can tell."""
    if resource is None:
        return 0
    kind: int = getattr(resource, name)
    soft, _hard = resource.getrlimit(kind)
    return 0 if soft == resource.RLIM_INFINITY else soft


def _number_in(path: str, word: str = "") -> int:
    """The number in a file of /proc, behind a word; 0 where it cannot be read."""
    try:
        with open(path) as file:
            found = re.search(rf"{word}\D*(\d+)", file.read())
    except OSError:
        return 0
    return int(found.group(1)) if found else 0


def _lines_in(path: str) -> int:
    try:
        with open(path, "rb") as file:
            return sum(1 for _ in file)
    except OSError:
        return 0


def _address_space() -> tuple[str, int, int, str] | None:
    """Why the system refused a mapping, where a limit was the reason."""
    space = _soft("RLIMIT_AS")
    most, mappings = _number_in("/proc/sys/vm/max_map_count"), _lines_in("/proc/self/maps")
    if most and mappings >= most - 8:
        remedy = "raise it (sysctl vm.max_map_count), or free some large arrays"
        return "mappings of a process", most, mappings, remedy
    if space:
        used = 1024 * _number_in("/proc/self/status", "VmSize:")
        return "bytes of address space (RLIMIT_AS)", space, used, "raise it (ulimit -v), or free some arrays"
    return None


def _system_limit(sys: int, asked: int) -> tuple[str, int, int, str] | None:
    """(of what, how many there may be, how many there are, remedy) where a limit that is not the mount's room was met."""
    if sys == errno.EMFILE:
        limit = _soft("RLIMIT_NOFILE")
        return "open files of this process (RLIMIT_NOFILE)", limit, limit, "raise it (ulimit -n), or close some"
    if sys == errno.ENFILE:
        limit = _number_in("/proc/sys/fs/file-max")
        return "open files of the whole system", limit, limit, "raise it (sysctl fs.file-max), or close some"
    if sys == errno.EFBIG:
        limit = _soft("RLIMIT_FSIZE")
        return "bytes of one file (RLIMIT_FSIZE)", limit, asked, "raise it (ulimit -f): shared memory is files"
    if sys == errno.ENOMEM:
        return _address_space()
    if sys == errno.ENOSPC:
        try:
            st = os.statvfs(_directory())
        except OSError:
            return None
        if st.f_files and not st.f_favail:
            remedy = "free some arrays, or give the mount more (mount -o remount,nr_inodes=...), or set COPYLESS_DIR"
            return "files on the mount (its inodes)", st.f_files, st.f_files - st.f_favail, remedy
    return None


def system_limit(sys: int, what: str, asked: int) -> SystemLimitError | None:
    """The error for a limit of the process or the system, where one was met."""
    met = _system_limit(sys, asked)
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


def native_error(code: int, sys: int, what: str, asked: int) -> Exception:
    """The exception for a result of the C library."""
    if code in (c_library.FULL, c_library.SYSTEM) and sys:
        limit = system_limit(sys, what, asked)
        if limit is not None:
            return limit
    if code == c_library.TABLE_FULL:
        return table_full(what)
    if code == c_library.SYSTEM and sys == errno.ENOMEM:
        remedy = "free some memory, or raise its control group's limit (memory.max)"
        return _limit_error(sys, f"the system gives this process no memory: {what}. Remedy: {remedy}", 0, 0, remedy, asked)
    if code == c_library.SYSTEM and sys == errno.EAGAIN and "thread" in what:  # not BlockingIOError, which says "try again"
        threads, remedy = _soft("RLIMIT_NPROC"), "end some, or raise it (ulimit -u or -v, pids.max of the control group)"
        most = "the limit of threads (RLIMIT_NPROC, pids.max), or of room for one more (RLIMIT_AS), is reached"
        return _limit_error(sys, f"{most}: {what}. Remedy: {remedy}", threads, 0, remedy, asked)
    if code == c_library.FULL:
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
