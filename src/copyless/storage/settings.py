"""Settings: each a `COPYLESS_*` variable and a keyword of `copyless.configure`."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, fields
from typing import Any

__all__ = ["Settings", "configure", "current", "describe", "processors"]

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def processors() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _bytes(text: str) -> int:
    number = text.strip().upper().removesuffix("B").removesuffix("I")
    unit = number[-1:] if number[-1:] in _UNITS else ""
    return int(float(number.removesuffix(unit)) * _UNITS[unit])


def _space(name: str) -> str:
    if not isinstance(name, str) or not re.fullmatch(r"([A-Za-z0-9][A-Za-z0-9_-]{0,31})?", name):
        raise ValueError(f"space must be at most 32 letters, digits, '-' and '_', not {name!r}: it names a directory")
    return name


@dataclass
class Settings:
    """Present values.

    Attributes
    ----------
    dir : str
        Where the storage directory is made; a tmpfs. Fixed once storage is in use. ``COPYLESS_DIR``.
    space : str
        Programs of one user share names, limits and one registry's lock with each other if their space is the same, and
        nothing if it is not: one word for each service that has nothing to do with the others. Empty: the common one.
        Names of `SharedMemory` are the system's, and are not divided. Fixed once storage is in use. ``COPYLESS_SPACE``.
    warm_limit : int
        Bytes of free blocks that stay warm for the next allocation; -1: an eighth of the mount. ``COPYLESS_WARM_LIMIT``
        (units such as 512M are understood).
    idle : float
        Seconds after which a free segment goes back to the system, at somebody's next call; 0: never. ``COPYLESS_IDLE``.
    message_ttl : float
        Seconds that a handle pickled for another process keeps its block while nobody loads it; 0: until the process
        family ends. ``COPYLESS_MESSAGE_TTL``.
    host : str
        Overrides the identity of this host, so that several can be tested on one machine. ``COPYLESS_HOST``.
    spill : str
        Where on disk the items of a queue go when shared memory is full; empty: nowhere, `put` raises
        `OutOfSharedMemory`. ``COPYLESS_SPILL``.
    network_timeout : float
        Seconds after which a manager's connection over TCP whose other side no longer answers the kernel has ended: a
        network that was cut, a host that is gone; 0: when the system says so, after hours. For connections that are
        made from now on. ``COPYLESS_NETWORK_TIMEOUT``.
    """

    dir: str = "/dev/shm"
    space: str = ""
    warm_limit: int = -1
    idle: float = 30.0
    message_ttl: float = 600.0
    host: str = ""
    spill: str = "/var/tmp"
    network_timeout: float = 30.0


_PARSERS: dict[str, Any] = {
    "warm_limit": _bytes,
    "idle": float,
    "message_ttl": float,
    "dir": str,
    "space": _space,
    "host": str,
    "spill": str,
    "network_timeout": float,
}


def _from_environment() -> Settings:
    settings = Settings()
    for field in fields(Settings):
        variable = f"COPYLESS_{field.name.upper()}"
        text = os.environ.get(variable)
        if text or (text is not None and field.name == "spill"):
            try:
                setattr(settings, field.name, _PARSERS[field.name](text))
            except ValueError as error:
                raise ValueError(f"{variable}={text!r} is not understood: {error}") from None
    return settings


_PLACE = ("dir", "space", "host", "spill")  # what decides which memory a process uses: the same in its children
_current: Settings | None = None


def current() -> Settings:
    global _current
    if _current is None:
        _current = _from_environment()
    return _current


def configure(**changes: Any) -> Settings:
    """Change settings of this process; return all present values.

    Parameters
    ----------
    warm_limit, idle, message_ttl, network_timeout, dir, space, host, spill
        See `Settings`. `dir`, `space`, `host` and `spill` cannot change once storage is in use; they are put into the
        environment too, so that programs and workers which are started from now on find the same memory.

    Raises
    ------
    TypeError
        For a name that is no setting.
    RuntimeError
        For `dir`, `space`, `host` or `spill` when this process uses shared memory already.
    ValueError
        For a value that the setting cannot have.

    Examples
    --------
    >>> import copyless
    >>> copyless.configure(message_ttl=60).message_ttl
    60
    >>> copyless.configure(message_ttl=600.0).message_ttl
    600.0
    """
    from copyless.storage import store

    settings = current()
    for name, value in changes.items():
        if name not in _PARSERS:
            raise TypeError(f"no setting is called {name!r}; there are {', '.join(_PARSERS)}")
        if name == "space":
            _space(value)
        if name in _PLACE and value != getattr(settings, name) and store.is_open():
            raise RuntimeError(f"{name} is fixed once shared memory is in use: set COPYLESS_{name.upper()} before")
        if name in ("idle", "message_ttl", "network_timeout") and not value >= 0:
            raise ValueError(f"{name} must be 0 or more seconds, not {value!r}")
        setattr(settings, name, _bytes(value) if name == "warm_limit" and isinstance(value, str) else value)
        if name in _PLACE:
            os.environ[f"COPYLESS_{name.upper()}"] = os.fspath(value)
    store.apply_settings()
    return settings


def describe() -> dict[str, Any]:
    """Every setting and its present value, by variable."""
    settings = current()
    return {f"COPYLESS_{field.name.upper()}": getattr(settings, field.name) for field in fields(Settings)}
