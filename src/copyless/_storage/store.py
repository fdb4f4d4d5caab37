"""The open store of this process: opened at first use, inherited through fork, left at exit."""

from __future__ import annotations

import os
import sys
import time
from _thread import allocate_lock

from copyless import _platform
from copyless._core import _blocks, _store, events
from copyless._core.c_library import LAYOUT
from copyless._core.failures import out_of_shared_memory, refused
from copyless._core.waiting import tell
from copyless._first_use import first_use
from copyless._storage import directory, identity
from copyless._storage import settings as _settings
from copyless._storage.settings import Settings
from copyless._storage.settings import current as settings
from copyless._typing import Any
from copyless.errors import CopylessError, RegistryBusyError

__all__ = [
    "allocate",
    "configure",
    "is_open",
    "keep_warm",
    "look",
    "ensure_open",
    "new_object",
    "place",
    "reap",
    "tell_of_removal",
    "tell_of_spilling",
    "trim",
]

_lock = allocate_lock()
_directory_fd = -1
_directory_is = (0, 0)  # device and inode
_OPEN_SECONDS = 10.0
_FORK_SECONDS = 2.0  # as fork.c


_least_warm = 0  # bytes, where the mount is small


def keep_warm(nbytes: int) -> None:
    """Keep at least so many bytes of free blocks warm in this process, of a small mount five eighths; unless
    `warm_limit` says how many.
    """
    global _least_warm
    _least_warm = nbytes
    if _store.is_open():
        _store.configure(*_limits(directory.current()))


def _limits(place: str | int) -> tuple[int, int, int]:
    values = settings()
    warm = values.warm_limit
    if warm < 0:
        room = _platform.mount_room(place) or _platform.machine_memory() or (0, 0)
        warm = max(room[0] // 8, min(room[0] * 5 // 8, _least_warm))
    return warm, int(values.idle * 1e9), int(values.message_ttl * 1e9)


def _spill(path: str) -> bytes:
    """The directory on disk where a new registry puts items that do not fit, with the directory's id behind it.

    Processes that open an existing registry use the directory that it names.
    """
    base = settings().spill
    if not base:
        return b""
    return os.fsencode(
        os.path.join(os.path.abspath(base), f"copyless-{os.geteuid()}-{identity.hashed(os.fsencode(path)):016x}-")
    )


def is_open() -> bool:
    return _store.is_open()


def configure(**changes: object) -> Settings:
    """Change settings of this process, and return all present values.

    Parameters
    ----------
    warm_limit, idle, message_ttl, network_timeout, dir, space, host, spill
        See ``docs/settings.md`` or ``copyless doctor`` for the meaning of each. `dir`, `space`, `host` and `spill`
        cannot be changed after this process has used shared memory. They are also put into the environment, so that
        programs and workers that start from now on use the same memory.

    Returns
    -------
    Settings
        One attribute for each setting.

    Raises
    ------
    TypeError
        For an unknown setting.
    RuntimeError
        For `dir`, `space`, `host` or `spill` after this process has used shared memory.
    ValueError
        For an invalid value.

    Examples
    --------
    >>> import copyless
    >>> copyless.configure(message_ttl=60).message_ttl
    60.0
    >>> copyless.configure(message_ttl=600.0).message_ttl
    600.0
    """
    for name, value in changes.items():
        _settings.change(name, value, in_use=_store.is_open())
    if _store.is_open():
        _store.configure(*_limits(directory.current()))
    return settings()


def ensure_open() -> None:
    """Open the store if this process has not opened it yet, or a new one if its directory is known to be removed.

    Costs two directory look-ups the first time, then the check of a flag.
    """
    if not _store.serves():
        _open()


def place() -> str:
    """The directory of the open store."""
    ensure_open()
    return directory.current()


def allocate(nbytes: int, spill: bool = False) -> _blocks.Block:
    """A block of `nbytes` bytes (0 or more), reused if possible; `block.recycled` says that it may not be zero.

    `spill` allows a file on disk if memory is full. Only the package's own needs use it, never a user's arrays.

    Raises
    ------
    OutOfSharedMemory
        If the mount, the machine or the control group has no room.
    """
    ensure_open()
    if nbytes >= 1 << 62:
        raise refused(out_of_shared_memory(0, "no machine has that much memory", nbytes, directory.current()))
    while (block := _blocks.alloc(nbytes, spill)) is None:  # the directory was removed: use another
        ensure_open()
    return block


def new_object(*layout: Any, **where: Any) -> _blocks.Block:
    """A block of zeros with the head of a lock, queue or ring; its parameters are those of `_blocks.new_object`."""
    while (block := _blocks.new_object(*layout, **where)) is None:  # the directory was removed: use another
        ensure_open()
    return block


def look() -> bool:
    """Whether another store was opened because the directory of the current one was found to be removed."""
    _store.look()
    if not _store.is_adrift():
        return False
    ensure_open()
    return True


_told_of_spilling = False


def tell_of_spilling() -> None:
    """Warn, once, that items of queues spill to files on disk."""
    global _told_of_spilling
    if _told_of_spilling:
        return
    _told_of_spilling = True
    import warnings

    warnings.warn(
        "shared memory is full: queues keep working, but items spill to files on disk and are slower "
        f"(stats() counts them). Give {_platform.default_directory()} more room (Docker: --shm-size), or "
        "set COPYLESS_DIR. COPYLESS_SPILL='' turns spilling off",
        RuntimeWarning,
        stacklevel=3,
    )


_told_of_removal = False


def tell_of_removal() -> None:
    """Warn, once in a program and not in its workers, that its storage directory was removed."""
    global _told_of_removal
    if _told_of_removal or identity.parent_process() is not None:
        return
    _told_of_removal = True
    import warnings

    warnings.warn(
        f"copyless: the files in {os.fsdecode(_store.path())} were removed while this program used them: "
        "by systemd at logout (RemoveIPC=yes), or by a cleaner of that directory. Existing arrays, "
        "queues and locks keep working. New ones are made in a new directory, where programs that start "
        "from now on find them. Remedy: run loginctl enable-linger, set RemoveIPC=no in logind.conf, or "
        "set COPYLESS_DIR to another place",
        RuntimeWarning,
        stacklevel=4,
    )


def _open() -> None:
    with first_use, _lock:
        if _store.serves():
            return
        removed = _store.is_adrift()
        if removed:
            try:  # the directory around it may have gone too; what is there is checked as ever
                os.makedirs(settings().dir, 0o700, exist_ok=True)
            except OSError:
                pass
        booted = identity.boot()
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
    _store.news()
    if _store.statistics()["weak_liveness"]:
        import warnings

        warnings.warn(f"copyless: {_platform.WEAK_LIVENESS}", RuntimeWarning, stacklevel=3)


def _tell_who_is_inside() -> bool:
    """Log which process holds the registry's lock that this one waits for; whether one could be named."""
    from copyless._storage import observing

    try:
        with observing.observing() as observer:
            holder = observing.look(observer)["holder"] if observer is not None else None
            if holder is not None and holder["pid"]:
                return tell(holder["pid"], holder["seconds"])
    except (CopylessError, OSError):
        pass
    return False


def _enter(booted: int, until: float) -> str:
    """Try once to open the store. Returns its directory, or an empty text to try again."""
    global _directory_fd, _directory_is
    path, fd = directory.ensure()
    replaces = _store.is_adrift()
    try:
        _store.open_store(
            fd,
            os.fsencode(path),
            identity.host(),
            booted,
            identity.family(),
            _platform.pid_namespace(),
            *identity.parent(),
            os.path.basename(
                sys.argv[0] if sys.argv and sys.argv[0] not in ("", "-c", "-m") else sys.executable
            ).encode(),
            *_limits(fd),
            _spill(path),
        )
    except BaseException as error:
        os.close(fd)
        # The last owner may remove the directory after we found it and before we use it.
        again = isinstance(error, RegistryBusyError) or (isinstance(error, CopylessError) and not os.path.isdir(path))
        if again and time.monotonic() < until:
            return ""
        raise
    if not replaces and _directory_fd != fd:  # a store whose directory was removed still uses it
        _close_former()
    _directory_fd, st = fd, os.fstat(fd)
    _directory_is = st.st_dev, st.st_ino
    return path


def _close_former() -> None:
    """Close the directory that was used before, unless the program has closed it and another file now has its
    descriptor. (If that is the directory itself, opened again, it is the one to keep.)
    """
    try:
        st = os.fstat(_directory_fd)
    except (OSError, OverflowError):
        return
    if (st.st_dev, st.st_ino) == _directory_is:
        os.close(_directory_fd)


def _tell_of_older(path: str) -> None:
    if identity.parent_process() is not None:  # once a program, not once a worker
        return
    if any(os.path.lexists(f"{path}/registry.{layout}") for layout in range(2, LAYOUT)):
        from copyless._storage import registries

        for layout, names in registries.older_with_names(path):
            import warnings

            warnings.warn(
                f"copyless: {path} also holds {names} persistent name{'s' if names > 1 else ''} of an older "
                f"version (layout {layout}, this one is {LAYOUT}): this version does not see them, "
                "and their memory stays in use. Unlink them with that version, or end its programs and remove "
                f"{path}/registry.{layout}",
                RuntimeWarning,
                stacklevel=4,
            )


_in_the_way = 0  # the process that held the registry's lock when a fork stopped waiting for it


def _before_fork() -> None:
    global _in_the_way
    _in_the_way = _store.before_fork()
    if _in_the_way:
        tell(_in_the_way, _FORK_SECONDS)


def _why_orphan() -> str:
    why = _store.why_orphan()
    if why:
        return why
    if not _in_the_way:
        return f"the registry's lock was not free for {_FORK_SECONDS:.0f} s"
    program, state = _platform.state_of_process(_in_the_way)
    return f"process {_in_the_way} ({program}), which is {state}, has held a lock of copyless for {_FORK_SECONDS:.0f} s"


def _after_in_child() -> None:
    global _lock
    _lock = allocate_lock()
    if _store.is_orphan():
        events.quiet_for_good()
        import warnings

        warnings.warn(
            f"copyless: this forked child could not be registered ({_why_orphan()}): the shared memory that "
            "it inherited belongs to its parent. The child may read the arrays; calls on them raise "
            "WrongProcessError",
            RuntimeWarning,
            stacklevel=2,
        )


os.register_at_fork(before=_before_fork, after_in_child=_after_in_child)


def reap() -> dict[str, int]:
    """Reclaim the memory and locks of dead processes of this user now.

    Returns
    -------
    dict
        Counts: ``owners`` found dead, ``blocks`` that they held, unfinished ``segments``, and ``messages`` that no
        process can load any more. The first call of a process also counts what was reclaimed when it opened the store.

    Notes
    -----
    Every process does this automatically when it allocates. Call it after a crash if no other process runs. Costs one
    system call for each process that uses shared memory.

    Examples
    --------
    >>> import copyless
    >>> sorted(copyless.reap())
    ['blocks', 'messages', 'owners', 'segments']
    """
    ensure_open()
    return _store.reap()


def trim(keep_bytes: int = 0) -> int:
    """Return free memory that is kept for reuse to the system.

    Parameters
    ----------
    keep_bytes : int
        Bytes to keep for reuse.

    Returns
    -------
    int
        Bytes returned.

    Examples
    --------
    >>> import copyless
    >>> a = copyless.zeros(1 << 20, dtype="u1")
    >>> del a
    >>> copyless.trim() >= 1 << 20
    True
    """
    ensure_open()
    return _store.trim(keep_bytes)
