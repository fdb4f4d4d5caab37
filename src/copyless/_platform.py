"""The functions that only this operating system, Linux, has. No other Python module names it: see
docs/design/platform.md.

Each function says what it is for, so that another system may implement it in its own way.
"""

from __future__ import annotations

import fcntl
import os
import select
import struct

from copyless._typing import TYPE_CHECKING
from copyless.errors import BootUnknownError

if TYPE_CHECKING:
    import mmap
    import socket
    from collections.abc import Callable, Iterator

__all__ = [
    "LONGEST_SOCKET_PATH", "OBJECTS_DIRECTORY", "OBJECTS_PREFIX", "WEAK_LIVENESS", "DescriptorSet",
    "address_space_in_use", "boot_id",
    "bytes_transferred", "children_of", "command_line", "credentials_of_peer", "default_directory", "die_with_parent",
    "expect_answers", "huge_memory",
    "give_name", "has_no_file", "is_bound", "is_hung_up", "is_open_elsewhere", "lock_in", "lock_whole",
    "machine_memory", "mappings",
    "memory_limit", "memory_of", "most_mappings", "most_open_files", "mount_room", "mounts", "nameless_file",
    "open_place",
    "parent_of", "path_of", "pid_namespace",
    "processors", "reserve_room", "state_of_process", "usable_processors", "watch_process",
]  # fmt: skip


def _content(path: str) -> bytes | None:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return None


def _number_in(path: str, word: str = "") -> int:
    """The number in a file of the kernel, behind a word; 0 where it cannot be read."""
    _, _, rest = (_content(path) or b"").partition(word.encode()) if word else (b"", b"", _content(path) or b"")
    digits = rest.lstrip(bytes(set(range(256)) - set(b"0123456789")))
    end = next((at for at, byte in enumerate(digits) if not 48 <= byte <= 57), len(digits))
    return int(digits[:end] or b"0")


# ---- where shared memory lies

OBJECTS_DIRECTORY = "/dev/shm"  # where `shm_open` of the C library keeps its objects, as files of their names
OBJECTS_PREFIX = b"/dev/shm/"  # the prefix of the path of an object's file


def default_directory() -> str:
    """Where the storage directory is made unless a setting says otherwise: a file system in memory that every user
    may write to.
    """
    return "/dev/shm"


# The consequence if the system copies mappings into forks that must not be copied.
WEAK_LIVENESS = (
    "this system ignores MADV_DONTFORK (an emulator, such as qemu's user mode): if a program closes "
    "all its descriptors, copyless takes it for dead and gives its arrays to other processes. Close "
    "only descriptors that the program opened itself"
)


# ---- the host


def boot_id() -> bytes:
    """A text that identifies this boot of this kernel. Never guessed.

    Raises
    ------
    BootUnknownError
        If the system does not provide it.
    """
    path = "/proc/sys/kernel/random/boot_id"
    try:
        with open(path, "rb") as f:
            text = f.read(64).strip()
    except OSError as error:
        reason = error.strerror or str(error)
    else:
        if len(text) >= 32:
            return text
        reason = f"it holds {text!r}"
    raise BootUnknownError(
        f"{path} cannot be read ({reason}), so shared memory of this boot cannot be distinguished from "
        "that of an earlier one: in a systemd unit set ProcSubset=all (not pid); in a container mount "
        "/proc with its sys directory"
    )


def pid_namespace() -> int:
    """A number that two processes share if a process id means the same to both."""
    return os.stat("/proc/self/ns/pid").st_ino


def processors() -> int:
    """The number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def usable_processors() -> list[int]:
    """The numbers of the processors that this process may use, in order."""
    return sorted(os.sched_getaffinity(0))


# ---- other processes

_STATES = {
    "R": "running",
    "S": "sleeping",
    "D": "waiting for the system",
    "T": "stopped",
    "t": "stopped by a debugger",
    "Z": "ended, not yet waited for",
    "X": "ended",
}


def state_of_process(pid: int) -> tuple[str, str]:
    """(program, state) of a process, in words, as far as the system shows them.

    A process that SIGSTOP stopped is "stopped".
    """
    name, _, rest = (_content(f"/proc/{pid}/stat") or b"").rpartition(b")")  # the name may contain any character
    words = [word.decode("utf-8", "replace") for word in (command_line(pid) or b"")[:4096].split(b"\0")]
    program = (
        " ".join(" ".join(words).split())[:80]
        or name.partition(b"(")[2].decode("utf-8", "replace")
        or "unknown program"
    )
    letter = rest.split()[0].decode() if rest.split() else ""
    return program, _STATES.get(letter, "in an unknown state")


def command_line(pid: int) -> bytes | None:
    """The arguments of a process, each followed by a NUL; None if there is no such process."""
    return _content(f"/proc/{pid}/cmdline")


def parent_of(pid: int) -> int:
    """The number of the process that started a process, or adopted it; 0 if that is not known."""
    _, _, rest = (_content(f"/proc/{pid}/stat") or b"").rpartition(b")")
    words = rest.split()
    return int(words[1]) if len(words) > 1 else 0


def children_of(pid: int) -> list[int]:
    """The processes that a process started and has not waited for; none if it has ended."""
    found: list[int] = []
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return found
    for thread in threads:  # a thread that has ended left its children to another
        found += map(int, (_content(f"/proc/{pid}/task/{thread}/children") or b"").split())
    return found


def watch_process(pid: int) -> int:
    """A descriptor that is readable when a process has ended.

    Raises
    ------
    ProcessLookupError
        If it has ended and its parent has waited for it.
    """
    return os.pidfd_open(pid)


def die_with_parent(parent: int) -> Callable[[], None]:
    """A function for a child of `parent` to call: SIGTERM ends the child when the parent ends in any way.

    Everything that it needs is loaded before, because between a fork and its program (`preexec_fn`) nothing should be
    imported.
    """
    import ctypes
    import signal

    control = ctypes.CDLL(None).prctl

    def in_child() -> None:
        control(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os._exit(1)

    return in_child


# ---- files


def path_of(fd: int) -> str:
    """A short path to the file that a descriptor of this process has open, whatever its present name is."""
    return f"/proc/self/fd/{fd}"


def open_place(path: str, follow: bool = True) -> int:
    """A descriptor of a directory, for `path_of` and `os.fstat`. It does not need the permission to read the directory.

    `follow`: whether the path may be a symbolic link.
    """
    return os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW))


def nameless_file(directory: str, mode: int) -> int:
    """A descriptor of a new file without a name. The file exists until its last descriptor and mapping is closed,
    unless `give_name` names it.
    """
    return os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, mode)


def give_name(fd: int, path: bytes) -> None:
    """Give a complete file without a name its name. FileExistsError if the name is taken."""
    os.link(path_of(fd), path, src_dir_fd=fd)


def reserve_room(fd: int, nbytes: int) -> None:
    """Make a file so long, unless it is longer, with room for all: no later write there fails, or kills by SIGBUS."""
    os.posix_fallocate(fd, 0, nbytes)


def huge_memory(nbytes: int) -> mmap.mmap:
    """Private memory, all zeros, in huge pages if the system has some."""
    import mmap

    memory = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    try:
        memory.madvise(mmap.MADV_HUGEPAGE)
    except OSError:  # a kernel without them
        pass
    return memory


def is_open_elsewhere(fd: int) -> bool:
    """Whether another process may have a file open or mapped. False only if the system is sure."""
    import signal

    try:
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)  # not SIGIO, which ends a process
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    except OSError:  # another process has it open, or there are no leases on this file system
        return True
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return False


# These locks belong to the open file and not to the process: they exist as long as any descriptor or mapping of a
# forked child keeps the file open.
_GETLK, _SETLK = getattr(fcntl, "F_OFD_GETLK", 36), getattr(fcntl, "F_OFD_SETLK", 37)
_FLOCK = "hhqqi4x"


def lock_in(fd: int, begin: int, length: int) -> tuple[int, int] | None:
    """(begin, length) of a lock that another open file has in a range of bytes; None if there is none.

    A length of 0 means up to the end, in the argument and in the result. It is any lock in the range, not the first.
    """
    asked = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, begin, length, 0)
    kind, _, start, nbytes, _ = struct.unpack(_FLOCK, fcntl.fcntl(fd, _GETLK, asked))
    return None if kind == fcntl.F_UNLCK else (start, nbytes)


def lock_whole(fd: int) -> None:
    """Lock all bytes of a file for this descriptor. BlockingIOError at once if another open file has a lock there."""
    fcntl.fcntl(fd, _SETLK, struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))


# ---- sockets

LONGEST_SOCKET_PATH = 107  # the most bytes of the path of a Unix socket, without the NUL after it


def has_no_file(address: str) -> bool:
    """Whether the address of a Unix socket is a name without a file, which any user may take."""
    return address.startswith("\0")


def is_bound(names: set[bytes]) -> bool:
    """Whether a process has a Unix socket of one of these paths open, even if it does not listen.

    Sees only its own network namespace.
    """
    try:
        with open("/proc/net/unix", "rb") as f:
            return any(parts[7] in names for line in f if len(parts := line.rstrip(b"\n").split(None, 7)) == 8)
    except OSError:
        return False


def credentials_of_peer(sock: socket.socket) -> tuple[int, int]:
    """(pid, uid) of the peer process of a Unix socket, as recorded by the kernel at its connect or listen."""
    import socket

    pid, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return pid, uid


def is_hung_up(fd: int) -> bool:
    """Whether the peer of a socket has closed it or ended, even if bytes that it sent can still be read."""
    waiting = select.poll()
    waiting.register(fd, select.POLLRDHUP)
    return bool(waiting.poll(0))


def expect_answers(sock: socket.socket, seconds: float) -> None:
    """End a TCP connection if the kernel of the peer has sent nothing for so long, whether or not data is under way.

    0 seconds: the system decides, after hours.
    """
    import socket

    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if not seconds:
        return
    # The first probe is sent after a third of the time. The next ones follow closely, so that some may be lost.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, min(max(int(seconds / 3), 1), 32767))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, min(max(int(seconds / 6), 1), 32767))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, min(max(int(seconds * 1000), 1), (1 << 31) - 1))


class DescriptorSet:
    """One descriptor that is readable when one of several is. Used as a context manager, which closes it."""

    def __init__(self) -> None:
        self._epoll = select.epoll()

    def __enter__(self) -> DescriptorSet:
        return self

    def __exit__(self, *_: object) -> None:
        self._epoll.close()

    def fileno(self) -> int:
        return self._epoll.fileno()

    def add(self, fd: int) -> None:
        """PermissionError for a file on disk, which is always readable."""
        self._epoll.register(fd, select.EPOLLIN | select.EPOLLPRI)


# ---- limits and counts


def most_mappings() -> int:
    """The most mappings that a process may have; 0 if unknown."""
    return _number_in("/proc/sys/vm/max_map_count")


def mappings() -> int:
    """The number of mappings of this process; 0 if unknown."""
    try:
        with open("/proc/self/maps", "rb") as file:
            return sum(1 for _ in file)
    except OSError:
        return 0


def address_space_in_use() -> int:
    """Bytes of address space that this process uses; 0 if unknown."""
    return 1024 * _number_in("/proc/self/status", "VmSize:")


def most_open_files() -> int:
    """The most open files of the whole system; 0 if unknown."""
    return _number_in("/proc/sys/fs/file-max")


def mounts() -> Iterator[tuple[str, str]]:
    """(mount point, type of file system) of each mount that this process sees.

    OSError if the system does not show them.
    """
    import re

    with open("/proc/self/mountinfo", errors="surrogateescape") as f:
        lines = [line.split() for line in f]
    for fields in lines:
        # The kernel writes spaces and similar characters as octal numbers.
        point = re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), fields[4])
        yield point, fields[fields.index("-", 6) + 1]


def mount_room(place: str | int) -> tuple[int, int] | None:
    """(bytes in all, bytes free) of the mount of a path or a descriptor. None if it has no limit of its own (a tmpfs of
    size=0, a ramfs). OSError as from statvfs.
    """
    st = os.statvfs(place)
    return (st.f_blocks * st.f_frsize, st.f_bavail * st.f_frsize) if st.f_blocks else None


def machine_memory() -> tuple[int, int] | None:
    """(bytes in all, bytes available) of the memory of this machine; None if unknown."""
    path = "/proc/meminfo"
    total, available = _number_in(path, "MemTotal:"), _number_in(path, "MemAvailable:")
    return (total * 1024, available * 1024) if total and available else None


def memory_limit() -> int | None:
    """Bytes of memory that the control group of this process may have; None if there is no limit."""
    try:
        with open("/proc/self/cgroup") as f:
            unified = [line.strip().split(":", 2)[2] for line in f if line.startswith("0::")]
    except OSError:
        return None
    for place in [*(f"/sys/fs/cgroup{path}/memory.max" for path in unified), "/sys/fs/cgroup/memory.max",
                  "/sys/fs/cgroup/memory/memory.limit_in_bytes"]:  # fmt: skip
        try:
            with open(place) as f:
                limit = int(f.read())
                return limit if limit < 1 << 60 else None
        except (OSError, ValueError):
            continue
    return None


def memory_of(pid: int) -> int | None:
    """Bytes of memory of a process, without files in memory; shared pages count proportionally. None if it has
    ended.
    """
    try:
        with open(f"/proc/{pid}/smaps_rollup") as f:
            lines = dict(line.split(":", 1) for line in f if line.startswith("Pss"))
        return sum(int(lines[key].split()[0]) * 1024 for key in ("Pss_Anon", "Pss_File"))
    except (OSError, KeyError):
        return None


def bytes_transferred() -> int:
    """Bytes that this process has read and written by system calls so far."""
    with open("/proc/self/io") as f:
        counts = dict(line.split(": ") for line in f.read().splitlines())
    return int(counts["rchar"]) + int(counts["wchar"])
