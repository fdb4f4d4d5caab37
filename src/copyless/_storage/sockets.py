"""Unix sockets that have a file: made, taken over and removed without ever touching a file of another process.

A name appears when its socket already listens (the socket is bound under another name and linked), so a socket that
refuses connections belongs to a process that has ended. A process that makes, replaces or removes a name holds a lock
file beside it meanwhile. docs/design/managers.md explains why.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import socket
import stat
import time
from collections.abc import Iterator

from copyless import _platform
from copyless._storage import lock_files
from copyless._storage.identity import blake2b

__all__ = ["ListeningFile", "connect", "is_of_ours", "private_name", "remove_dead"]

_LOCK_SECONDS = 5.0
_UNFINISHED_SECONDS = 60.0
_OURS = re.compile(r"sock\.[0-9a-f]{16}")
_UNFINISHED = re.compile(r"\.sock\.[0-9a-f]{16}")


@contextlib.contextmanager
def _short(path: str) -> Iterator[str]:
    """A path to the same file that the kernel accepts: its directory may have a longer path."""
    path = os.fspath(path)
    if len(os.fsencode(path)) <= _platform.LONGEST_SOCKET_PATH:
        yield path
        return
    parent, name = os.path.split(path)
    fd = _platform.open_place(parent or ".")
    try:
        short = f"{_platform.path_of(fd)}/{name}"
        if len(os.fsencode(short)) > _platform.LONGEST_SOCKET_PATH:
            raise OSError(
                errno.ENAMETOOLONG, "the last part of a Unix socket's path must not be longer than about 80 bytes", path
            )
        yield short
    finally:
        os.close(fd)


def connect(sock: socket.socket, path: str) -> None:
    """`sock.connect(path)` for a path of any length. Respects the timeout of the socket also while the server's
    backlog is full.
    """
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
                    raise TimeoutError(
                        errno.ETIMEDOUT, f"the server at {path!r} did not accept the connection in time"
                    ) from None
            time.sleep(0.002)


def _lock_of(path: str) -> str:
    """The name of the lock file: no user chooses it by chance. A file of this name is removed."""
    parent, name = os.path.split(path)
    return os.path.join(parent, f".sock.{blake2b(os.fsencode(name), digest_size=8).hexdigest()}.lock")


@contextlib.contextmanager
def _locked(path: str) -> Iterator[bool]:
    """Hold the lock file of a path. False if that is impossible: another user has its name, or the directory is not
    writable.
    """
    lock = _lock_of(path)
    fd = lock_files.lock_file(lock, time.monotonic() + _LOCK_SECONDS)
    try:
        yield fd is not None
    finally:
        if fd is not None:
            with contextlib.suppress(OSError):
                if not os.fstat(fd).st_size:  # lock files of copyless are empty
                    os.unlink(lock)
            # A child that another thread has just forked has this descriptor too: unlocking frees the lock for both.
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
    """Why the file at a path must not be removed; empty if it is a socket of this user whose process has ended."""
    try:
        st = os.lstat(path)
    except FileNotFoundError:
        return ""
    if not stat.S_ISSOCK(st.st_mode):
        return "the file there is not a socket: choose another address"
    if st.st_uid != os.geteuid():
        return f"the socket there belongs to uid {st.st_uid}: choose another address"
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        with socket.socket(socket.AF_UNIX, kind) as probe:
            probe.setblocking(False)  # a full backlog means that the server lives
            try:
                connect(probe, path)
            except ConnectionRefusedError:
                names = {os.fsencode(path), os.fsencode(os.path.abspath(path))}
                bound = "a process has the socket there open without listening: choose another address"
                return bound if _platform.is_bound(names) else ""
            except OSError as error:
                if error.errno == errno.EPROTOTYPE:
                    continue
        break
    return "a server listens there: choose another address"


class ListeningFile:
    """A socket that listens under a path.

    Raises
    ------
    OSError
        EADDRINUSE if the path exists and is not a socket of this user whose process has ended. The file is not touched.
    """

    def __init__(self, path: str, backlog: int) -> None:
        self.path = os.path.abspath(path)
        self._maker = os.getpid()
        parent, name = os.path.split(self.path)
        self._alone = _OURS.fullmatch(name) is not None  # no other process takes a random name
        unfinished = f".{name}" if self._alone else f".sock.{os.urandom(8).hex()}"
        hidden = os.path.join(parent, unfinished)
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with _short(self.path), _short(hidden) as short:  # processes that connect need a short path to it too
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
        """Close, and remove the file unless it is gone or belongs to another socket. In a forked child, only close."""
        if self.sock.fileno() >= 0 and self._maker == os.getpid():
            with contextlib.suppress(OSError), self._lock():
                if self.is_there():  # while it listens, no other process takes its name
                    os.unlink(self.path)
        self.sock.close()

    def take_over(self) -> None:
        """The calling process, a forked child of the maker, now serves the socket and removes its file."""
        self._maker = os.getpid()


def private_name(directory: str) -> str:
    """A new name in the storage directory, which only this user and root can enter.

    Removes the sockets of servers that were killed.
    """
    path = os.path.abspath(directory)
    remove_dead(path)
    return os.path.join(path, f"sock.{os.urandom(8).hex()}")


def is_of_ours(path: str) -> bool:
    """Whether a path is a socket in a storage directory that only this user can have written to."""
    parent, name = os.path.split(path)
    if not _OURS.fullmatch(name):
        return False
    try:
        return lock_files.is_ours(os.lstat(parent))
    except OSError:
        return False


def remove_dead(path: str) -> None:
    """Remove the sockets that killed servers left in a storage directory."""
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
