"""Unix sockets that have a file: made, taken over and removed so that nobody else's file is ever touched.

A name appears when its socket listens already (it is bound under another name and linked), so one that refuses connections
belongs to a process that has ended. Who makes, replaces or removes a name holds a lock file beside it meanwhile. Why so is
written in docs/design/managers.md.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import socket
import stat
import time
from collections.abc import Iterator

from copyless.storage import directory
from copyless.storage.store import need

__all__ = ["ListeningFile", "connect", "is_of_ours", "private_name", "remove_dead"]

_LONGEST = 107  # bytes of a path that the kernel takes (sun_path, less its NUL)
_LOCK_SECONDS = 5.0
_UNFINISHED_SECONDS = 60.0
_OURS = re.compile(r"sock\.[0-9a-f]{16}")
_UNFINISHED = re.compile(r"\.sock\.[0-9a-f]{16}")


@contextlib.contextmanager
def _short(path: str) -> Iterator[str]:
    """The same file by a path that the kernel takes: its directory may be deeper than sun_path is long."""
    path = os.fspath(path)
    if len(os.fsencode(path)) <= _LONGEST:
        yield path
        return
    parent, name = os.path.split(path)
    fd = os.open(parent or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        short = f"/proc/self/fd/{fd}/{name}"
        if len(os.fsencode(short)) > _LONGEST:
            raise OSError(errno.ENAMETOOLONG, "the last part of a Unix socket's path may have some 80 bytes", path)
        yield short
    finally:
        os.close(fd)


def connect(sock: socket.socket, path: str) -> None:
    """`sock.connect(path)`, however long the path is, and within its time limit also while the server's backlog is full."""
    limit = sock.gettimeout() or 0.0
    until = time.monotonic() + limit
    with _short(path) as short:
        while True:
            try:
                return sock.connect(short)
            except BlockingIOError:
                if time.monotonic() >= until:
                    if not limit:
                        raise
                    raise TimeoutError(errno.ETIMEDOUT, f"the server at {path!r} accepts no connection") from None
            time.sleep(0.002)


def _lock_of(path: str) -> str:
    """A name that nobody chooses by chance: what lies under it is removed."""
    parent, name = os.path.split(path)
    return os.path.join(parent, f".sock.{hashlib.blake2b(os.fsencode(name), digest_size=8).hexdigest()}.lock")


@contextlib.contextmanager
def _locked(path: str) -> Iterator[bool]:
    """Hold the lock file of a path; False where it cannot be had: another user has its name, or the directory is not writable."""
    lock = _lock_of(path)
    fd = directory.lock_file(lock, time.monotonic() + _LOCK_SECONDS)
    try:
        yield fd is not None
    finally:
        if fd is not None:
            with contextlib.suppress(OSError):
                if not os.fstat(fd).st_size:  # ours are empty
                    os.unlink(lock)
            # A child forked by another thread just now has this descriptor too: unlocking frees it for both.
            with contextlib.suppress(OSError):
                fcntl.flock(fd, fcntl.LOCK_UN)
            os.close(fd)


def _identity(path: str) -> tuple[int, int] | None:
    try:
        st = os.lstat(path)
    except OSError:
        return None
    return st.st_dev, st.st_ino


def _why_kept(path: str) -> str:
    """Why what lies at a path must stay; empty: it is a socket of this user whose process has ended."""
    try:
        st = os.lstat(path)
    except FileNotFoundError:
        return ""
    if not stat.S_ISSOCK(st.st_mode):
        return "what lies there is no socket, and is left alone: choose another address"
    if st.st_uid != os.geteuid():
        return f"the socket there belongs to uid {st.st_uid}: choose another address"
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        with socket.socket(socket.AF_UNIX, kind) as probe:
            probe.setblocking(False)  # a full backlog is a server that lives
            try:
                connect(probe, path)
            except ConnectionRefusedError:
                return "a process that does not listen has it open" if _is_bound(path) else ""
            except OSError as error:
                if error.errno == errno.EPROTOTYPE:
                    continue
        break
    return "a server listens there"


def _is_bound(path: str) -> bool:
    """Whether a process has a socket of this name open, though it does not listen. Sees its own network namespace only."""
    names = {os.fsencode(path), os.fsencode(os.path.abspath(path))}
    try:
        with open("/proc/net/unix", "rb") as f:
            return any(parts[7] in names for line in f if len(parts := line.rstrip(b"\n").split(None, 7)) == 8)
    except OSError:
        return False


class ListeningFile:
    """A socket that listens under a path.

    Raises
    ------
    OSError
        EADDRINUSE when something is there that is not a socket of this user's whose process has ended; it stays untouched.
    """

    def __init__(self, path: str, backlog: int) -> None:
        self.path = os.path.abspath(path)
        self._maker = os.getpid()
        parent, name = os.path.split(self.path)
        self._alone = _OURS.fullmatch(name) is not None  # nobody else takes a random name
        unfinished = f".{name}" if self._alone else f".sock.{os.urandom(8).hex()}"
        hidden = os.path.join(parent, unfinished)
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with _short(self.path), _short(hidden) as short:  # who connects needs a short way to it too
                self.sock.bind(short)
            try:
                self.identity = _identity(hidden)
                self.sock.listen(backlog)
                with self._lock() as alone:
                    self._take(hidden, alone)
            finally:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(hidden)
        except OSError as error:
            self.sock.close()
            raise OSError(error.errno, f"{error.strerror}: {path!r}") from None
        except BaseException:
            self.sock.close()
            raise

    def _lock(self) -> contextlib.AbstractContextManager[bool]:
        return contextlib.nullcontext(True) if self._alone else _locked(self.path)

    def _take(self, hidden: str, alone: bool) -> None:
        try:
            os.link(hidden, self.path, follow_symlinks=False)
            return
        except FileExistsError:
            pass
        why = _why_kept(self.path)
        if not why and not alone:
            why = f"its server has ended, and {_lock_of(self.path)} cannot be locked: remove both"
        if why:
            raise OSError(errno.EADDRINUSE, f"Address already in use: {why}")
        os.rename(hidden, self.path)

    def is_there(self) -> bool:
        return _identity(self.path) == self.identity

    def close(self) -> None:
        """Close, and remove the file, unless another socket or nothing is there by now; in a fork, close alone."""
        if self.sock.fileno() >= 0 and self._maker == os.getpid():
            with contextlib.suppress(OSError), self._lock():
                if self.is_there():  # while it listens nobody takes its name
                    os.unlink(self.path)
        self.sock.close()

    def adopt(self) -> None:
        """The calling process, a fork of who made it, is who serves and removes it."""
        self._maker = os.getpid()


def private_name() -> str:
    """A new name in the storage directory, which only this user and root can enter. Cleans up after servers that were killed."""
    need()
    path = os.path.abspath(directory.current())
    remove_dead(path)
    return os.path.join(path, f"sock.{os.urandom(8).hex()}")


def is_of_ours(path: str) -> bool:
    """Whether a path is that of a socket in a storage directory that only this user can have written to."""
    parent, name = os.path.split(path)
    if not _OURS.fullmatch(name):
        return False
    try:
        return directory.is_ours(os.lstat(parent))
    except OSError:
        return False


def remove_dead(path: str) -> None:
    """Remove the sockets that servers left in a storage directory when they were killed."""
    try:
        names = os.listdir(path)
    except OSError:
        return
    for name in names:
        whole = os.path.join(path, name)
        with contextlib.suppress(OSError):
            if _OURS.fullmatch(name):
                if not _why_kept(whole):
                    os.unlink(whole)
            elif _UNFINISHED.fullmatch(name) and time.time() - os.lstat(whole).st_mtime > _UNFINISHED_SECONDS:
                os.unlink(whole)
