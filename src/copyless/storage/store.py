"""The open store of this process: opened at first use, carried through fork, left at exit."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
import threading
import time
import warnings

from copyless._core import _blocks, _store
from copyless._core.waiting import tell
from copyless._first_use import first_use
from copyless.errors import BootUnknownError, CopylessError, RegistryBusyError
from copyless.storage import directory, registries
from copyless.storage.settings import current as settings

__all__ = ["WEAK_LIVENESS", "apply_settings", "boot", "is_open", "look", "need", "reap", "tell_of_removal", "trim"]

_lock = threading.Lock()
_directory_fd = -1
_directory_is = (0, 0)  # device and inode
_OPEN_SECONDS = 10.0
WEAK_LIVENESS = (
    "this system ignores MADV_DONTFORK (an emulator, such as qemu's user mode): a program that closes all its descriptors "
    "looks as if it had ended, and its arrays are given to others. Keep those that it did not open itself"
)


def _hash(text: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def _host() -> int:
    """One kernel is one host, whatever its containers call themselves: registry and boot tell hosts apart."""
    name = settings().host
    return _hash(name.encode()) if name else 0


def boot() -> int:
    """This boot of this kernel. Never guessed: what another boot left is removed, so a wrong answer would destroy."""
    path = "/proc/sys/kernel/random/boot_id"
    try:
        with open(path, "rb") as f:
            text = f.read(64).strip()
    except OSError as error:
        reason = error.strerror or str(error)
    else:
        if len(text) >= 32:
            return _hash(text)
        reason = f"it holds {text!r}"
    raise BootUnknownError(
        f"{path} cannot be read ({reason}), so shared memory of this boot cannot be told from that of another: in a "
        "systemd unit set ProcSubset=all (not pid), in a container mount /proc with its sys directory"
    )


# What MPI's launchers tell the ranks that they start.
_RANK_VARIABLES = ("PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK")


def _family() -> int:
    """Processes that multiprocessing started from one root share its authentication key, under every start method.

    The ranks of an MPI program on this host are one family too: they have one parent, the launcher.
    """
    from multiprocessing.process import current_process

    inherited = os.environ.get("COPYLESS_FAMILY")
    if inherited is None and any(name in os.environ for name in _RANK_VARIABLES):
        parent = os.getppid()
        inherited = os.environ["COPYLESS_FAMILY"] = f"{parent}:{_store.process_start(parent)}"
    return _hash(bytes(current_process().authkey) if inherited is None else inherited.encode())


def _parent() -> tuple[int, int]:
    from multiprocessing import parent_process

    parent = parent_process()
    if parent is None or parent.pid is None:
        return 0, 0
    return parent.pid, _store.process_start(parent.pid)


def _limits(place: str | int) -> tuple[int, int, int]:
    values = settings()
    warm = values.warm_limit
    if warm < 0:
        st = os.statvfs(place)
        warm = st.f_blocks * st.f_frsize // 8
    return warm, int(values.idle * 1e9), int(values.message_ttl * 1e9)


def _spill(path: str) -> bytes:
    """Where on disk a registry that is made there puts what does not fit; its id comes behind. Others use what it says."""
    base = settings().spill
    if not base:
        return b""
    return os.fsencode(os.path.join(os.path.abspath(base), f"copyless-{os.geteuid()}-{_hash(os.fsencode(path)):016x}-"))


def is_open() -> bool:
    return _store.is_open()


def apply_settings() -> None:
    if _store.is_open():
        _store.configure(*_limits(directory.current()))


def need() -> None:
    """Open the store if this process has not yet, or another one if its directory was removed and that is known.

    Cost: two directory look-ups the first time, then a flag.
    """
    if not _store.serves():
        _open()


def look() -> bool:
    """Whether another store was opened, because the directory of the one in use was found to be removed."""
    _store.look()
    if not _store.is_adrift():
        return False
    need()
    return True


_told_of_removal = False


def tell_of_removal() -> None:
    """Warn, once in a program, that its storage directory was removed; that is a matter of the system's settings."""
    global _told_of_removal
    from multiprocessing import parent_process

    if _told_of_removal or parent_process() is not None:
        return
    _told_of_removal = True
    warnings.warn(
        f"copyless: the files in {os.fsdecode(_store.path())} were removed while this program used them: by systemd at "
        "logout (RemoveIPC=yes), or by a cleaner of that directory. What was made before goes on; what is new lies in a "
        "new directory, where programs that are started from now on find it. Remedy: loginctl enable-linger, or "
        "RemoveIPC=no in logind.conf, or COPYLESS_DIR elsewhere",
        RuntimeWarning,
        stacklevel=4,
    )


def _open() -> None:
    with first_use, _lock:
        if _store.serves():
            return
        removed = _store.is_adrift()
        if removed:
            with contextlib.suppress(OSError):  # the directory around it may have gone too; what is there is checked as ever
                os.makedirs(settings().dir, 0o700, exist_ok=True)
        booted = boot()
        since = time.monotonic()
        until, told = since + _OPEN_SECONDS, False
        while True:
            path = _enter(booted, until) if directory.settled() else ""
            if not path:
                with directory.choosing(directory.settled) as needed:
                    path = _enter(booted, until) if needed else ""
            if path:
                break
            if not told and time.monotonic() - since > 1:
                told = _tell_who_is_inside()
        directory.entered(path)
    if removed:
        tell_of_removal()
    _tell_of_older(path)
    if _store.statistics()["weak_liveness"]:
        warnings.warn(f"copyless: {WEAK_LIVENESS}", RuntimeWarning, stacklevel=3)


def _tell_who_is_inside() -> bool:
    """Log which process has the registry's lock, which we wait for; whether one could be named."""
    from copyless.storage import observing

    with contextlib.suppress(CopylessError, OSError), observing.observing() as observer:
        holder = observing.look(observer)["holder"] if observer is not None else None
        if holder is not None and holder["pid"]:
            return tell(holder["pid"], holder["seconds"])
    return False


def _enter(booted: int, until: float) -> str:
    """One try to open the store: its directory; empty: try again."""
    global _directory_fd, _directory_is
    path, fd = directory.ensure()
    replaces = _store.is_adrift()
    try:
        _store.open_store(
            fd,
            os.fsencode(path),
            _host(),
            booted,
            _family(),
            os.stat("/proc/self/ns/pid").st_ino,
            *_parent(),
            os.path.basename(
                sys.argv[0] if sys.argv and sys.argv[0] not in ("", "-c", "-m") else sys.executable
            ).encode(),
            *_limits(fd),
            _spill(path),
        )
    except BaseException as error:
        os.close(fd)
        # The last owner may remove the directory between our look and our use of it.
        again = isinstance(error, RegistryBusyError) or (isinstance(error, CopylessError) and not os.path.isdir(path))
        if again and time.monotonic() < until:
            return ""
        raise
    if not replaces:  # a store whose directory was removed still uses it
        _close_former()
    _directory_fd, st = fd, os.fstat(fd)
    _directory_is = st.st_dev, st.st_ino
    return path


def _close_former() -> None:
    """Close the directory that was used before, unless the program closed it and its number is another file's by now."""
    try:
        st = os.fstat(_directory_fd)
    except (OSError, OverflowError):
        return
    if (st.st_dev, st.st_ino) == _directory_is:
        os.close(_directory_fd)


def _tell_of_older(path: str) -> None:
    from multiprocessing import parent_process

    if parent_process() is None:  # once a program, not once a worker
        for layout, names in registries.older_with_names(path):
            warnings.warn(
                f"copyless: {path} also holds {names} persistent name{'s' if names > 1 else ''} of an older version "
                f"(layout {layout}, this one is {registries.LAYOUT}): they are not seen here and their memory stays "
                f"taken. Unlink them with that version, or end its programs and remove {path}/registry.{layout}",
                RuntimeWarning,
                stacklevel=4,
            )


_blocks.know_renewal(need)


def _after_in_child() -> None:
    global _lock
    _lock = threading.Lock()
    if _store.is_orphan():
        warnings.warn(
            "copyless: this forked child could not be registered (no free descriptor, or too many processes): the shared "
            "memory that it inherited stays its parent's. It may read its arrays; calls on them raise WrongProcessError",
            RuntimeWarning,
            stacklevel=2,
        )


os.register_at_fork(after_in_child=_after_in_child)


def reap() -> dict[str, int]:
    """Take back now what dead processes of this user held.

    Returns
    -------
    dict
        Counts: ``owners`` found dead, ``blocks`` they held, unfinished ``segments``, ``messages`` that nobody will load.

    Notes
    -----
    Every process does this by itself as it allocates; call it after a crash when nothing else runs. Cost: a system call
    for each process that uses shared memory.

    Examples
    --------
    >>> import copyless
    >>> sorted(copyless.reap())
    ['blocks', 'messages', 'owners', 'segments']
    """
    need()
    return _store.reap()


def trim(keep_bytes: int = 0) -> int:
    """Give free memory that is kept warm back to the system.

    Parameters
    ----------
    keep_bytes : int
        How many bytes may stay warm.

    Returns
    -------
    int
        Bytes given back.

    Examples
    --------
    >>> import copyless
    >>> a = copyless.zeros(1 << 20, dtype="u1")
    >>> del a
    >>> copyless.trim() >= 1 << 20
    True
    """
    need()
    return _store.trim(keep_bytes)
