"""Settings and the environment: one table of every variable that copyless reads. No other module uses `os.environ`.

A setting is a `COPYLESS_*` variable and a keyword of `copyless.configure`. The other variables pass information to
child processes, come from MPI's launchers, or are for tests.
"""

from __future__ import annotations

import os

from copyless._platform import default_directory
from copyless._typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "VARIABLES",
    "Settings",
    "Variable",
    "change",
    "current",
    "describe",
    "environment_of_child",
    "environment_of_ranks",
    "family",
    "has_dumb_terminal",
    "is_mpi_rank",
    "number_of_rank",
    "others_set",
    "ranks_of_node",
    "set_family",
    "stated_node",
    "stated_nodes",
    "states_threads",
    "take_rank",
    "under_mpi_launcher",
    "update_environment",
    "stated_columns",
    "wants_colour",
]

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


# ---- settings


def _bytes(value: str | int) -> int:
    """A number of bytes; -1 for the default."""
    try:
        if isinstance(value, str):
            number = value.strip().upper().removesuffix("B").removesuffix("I")
            unit = number[-1:] if number[-1:] in _UNITS else ""
            nbytes = int(float(number.removesuffix(unit)) * _UNITS[unit])
        else:
            nbytes = value.__index__()
    except (ValueError, AttributeError, OverflowError):
        nbytes = -2
    if not -1 <= nbytes < 1 << 63:
        raise ValueError(f"it must be a number of bytes, such as 1000000 or '512M', or -1, not {value!r}")
    return nbytes


def _seconds(value: str | float) -> float:
    """A number of seconds that the C library can count in nanoseconds."""
    try:
        seconds = float(value)
    except (ValueError, TypeError, OverflowError):
        seconds = -1.0
    if not 0 <= seconds <= 9e9:
        raise ValueError(f"it must be 0 or more seconds, at most 9,000,000,000, not {value!r}")
    return seconds


def _is_word(name: str) -> bool:
    """At most 32 letters, digits, and, not at the beginning, ``-`` and ``_``."""
    letters = name.replace("-", "").replace("_", "")
    return not name or (name[0] in letters and len(name) <= 32 and letters.isascii() and letters.isalnum())


def _space(name: str) -> str:
    if not isinstance(name, str) or not _is_word(name):
        raise ValueError(f"space must be at most 32 letters, digits, '-' and '_', not {name!r}: it names a directory")
    return name


class _Setting:
    """What there is to say of one setting.

    Attributes
    ----------
    shown : str
        The default in words.
    is_place : bool
        It decides which memory a process uses: the same in the processes that this one starts.
    """

    __slots__ = ("default", "is_place", "meaning", "parse", "shown")

    def __init__(self, default: object, shown: str, meaning: str, parse: Any = str, is_place: bool = False) -> None:
        self.default, self.shown, self.meaning, self.parse, self.is_place = default, shown, meaning, parse, is_place


_SETTINGS = {
    "dir": _Setting(
        default_directory(),
        f"`{default_directory()}`",
        "where the storage directory is made: a tmpfs; fixed once shared memory is in use",
        is_place=True,
    ),
    "space": _Setting(
        "",
        "empty: the default space",
        "programs of one user share names, limits and the registry's lock only if they have the same "
        "space; give independent services different spaces. Names of `SharedMemory` belong to the "
        "system and are not divided. Fixed once shared memory is in use",
        _space,
        is_place=True,
    ),
    "warm_limit": _Setting(
        -1,
        "-1: an eighth of the mount; for ranks on MPI at least 40 MiB, or five eighths",
        "bytes of free blocks that are kept for the next allocation; units such as `512M` are accepted",
        _bytes,
    ),
    "idle": _Setting(
        30.0,
        "30",
        "seconds after which a free segment is returned to the system, at the next call of any process; 0: never",
        _seconds,
    ),
    "message_ttl": _Setting(
        600.0,
        "600",
        "seconds that a pickled handle keeps its block until a process loads it; 0: until the process family ends",
        _seconds,
    ),
    "host": _Setting(
        "",
        "empty: the kernel decides",
        "overrides the identity of this host, so that several can be tested on one machine; fixed once shared "
        "memory is in use",
        is_place=True,
    ),
    "spill": _Setting(
        "/var/tmp",
        "`/var/tmp`",
        "directory on disk for items of queues when shared memory is full; empty: none, `put` raises "
        "`OutOfSharedMemory`. Fixed once shared memory is in use",
        is_place=True,
    ),
    "network_timeout": _Setting(
        30.0,
        "30",
        "seconds after which a manager's TCP connection is closed if its peer no longer answers the "
        "kernel (the network was cut, the host is down); 0: when the system closes it, after hours. "
        "Applies to new connections",
        _seconds,
    ),
}


class Settings:
    """The present values of the settings, one attribute for each. `VARIABLES` has their meanings."""

    dir: str = default_directory()
    space: str = ""
    warm_limit: int = -1
    idle: float = 30.0
    message_ttl: float = 600.0
    host: str = ""
    spill: str = "/var/tmp"
    network_timeout: float = 30.0

    def __init__(
        self, **values: object
    ) -> None:  # not a dataclass: dataclasses load `inspect`, which takes as long as everything else here
        for name, value in values.items():
            _check_name(name)
            setattr(self, name, value)

    def __repr__(self) -> str:
        return f"Settings({', '.join(f'{name}={getattr(self, name)!r}' for name in _SETTINGS)})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Settings):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in _SETTINGS)


def _check_name(name: str) -> None:
    if name not in _SETTINGS:
        raise TypeError(f"there is no setting {name!r}: the settings are {', '.join(_SETTINGS)}")


def _variable(setting: str) -> str:
    return f"COPYLESS_{setting.upper()}"


def _of_environment() -> Settings:
    settings = Settings()
    for name, each in _SETTINGS.items():
        text = os.environ.get(_variable(name))
        if text or (text is not None and name == "spill"):
            try:
                setattr(settings, name, each.parse(text))
            except ValueError as error:
                raise ValueError(f"{_variable(name)}={text!r} is invalid: {error}") from None
    return settings


_current: Settings | None = None


def current() -> Settings:
    """The settings of this process: those of the environment until they are changed."""
    global _current
    if _current is None:
        _current = _of_environment()
    return _current


def change(name: str, value: Any, *, in_use: bool) -> None:
    """Change one setting in this process, and in the environment if programs that start from now on must agree.

    Parameters
    ----------
    in_use
        Whether this process uses shared memory already: then settings that determine its place cannot change.

    Raises
    ------
    TypeError
        For an unknown setting.
    RuntimeError
        For a setting that cannot change any more.
    ValueError
        For an invalid value.
    """
    settings = current()
    _check_name(name)
    about = _SETTINGS[name]
    if name == "space":
        _space(value)
    if about.is_place and in_use and value != getattr(settings, name):
        raise RuntimeError(
            f"{name} cannot be changed after this process has used shared memory: call configure() first, or "
            f"set {_variable(name)} before the program starts"
        )
    if about.parse in (_bytes, _seconds):
        try:
            value = about.parse(value)
        except ValueError as error:
            raise ValueError(f"{name}={value!r} is invalid: {error}") from None
    setattr(settings, name, value)
    if about.is_place:
        os.environ[_variable(name)] = os.fspath(value)


def describe() -> dict[str, object]:
    """The present value of every setting, by variable."""
    settings = current()
    return {_variable(name): getattr(settings, name) for name in _SETTINGS}


# ---- the table


class Variable:
    """A variable of the environment that copyless reads; its default is said in words."""

    __slots__ = ("default", "meaning", "name")

    def __init__(self, name: str, default: str, meaning: str) -> None:
        self.name, self.default, self.meaning = name, default, meaning


_FAMILY, _GROUP, _RANK, _NODE, _NODES = (
    "COPYLESS_FAMILY", "COPYLESS_GROUP", "COPYLESS_RANK", "COPYLESS_NODE", "COPYLESS_NODES",
)  # fmt: skip

SETTINGS = tuple(Variable(_variable(name), each.shown, each.meaning) for name, each in _SETTINGS.items())
OTHERS = (
    Variable(
        _FAMILY,
        "the processes that multiprocessing started from one root",
        "names the process family. The first rank on a host that an MPI launcher started sets it for what it starts",
    ),
    Variable(_GROUP, "", "`copyless run` sets it for each rank: the handle of the group"),
    Variable(_RANK, "", "`copyless run` sets it for each rank: its number"),
    Variable(_NODE, "found out", "for tests of `comm.mpi`: the name of this rank's node"),
    Variable(_NODES, "1", "for tests of `comm.mpi`: how many nodes the ranks of this machine make"),
    Variable("PMI_RANK", "", "an MPI launcher (of MPICH and similar) started this process as a rank"),
    Variable("PMI_SIZE", "", "the same; `copyless.comm` takes MPI"),
    Variable("PMIX_RANK", "", "an MPI launcher (PMIx) started this process as a rank"),
    Variable("OMPI_COMM_WORLD_RANK", "", "Open MPI started this process as a rank"),
    Variable("OMPI_COMM_WORLD_SIZE", "", "the same; `copyless.comm` takes MPI"),
    Variable("OMPI_COMM_WORLD_LOCAL_SIZE", "", "ranks of this node, as Open MPI says"),
    Variable("MPI_LOCALNRANKS", "", "ranks of this node, as MPICH says; `copyless.comm` takes MPI"),
    Variable("SLURM_STEP_TASKS_PER_NODE", "", "ranks of each node, as Slurm's srun says"),
    Variable("SLURM_NODEID", "", "which of them this node is, as Slurm's srun says"),
    Variable("NO_COLOR", "", "the command writes no colours"),
    Variable("TERM", "", "`dumb`: the same"),
    Variable("COLUMNS", "the terminal's", "how wide the command's help is"),
    Variable(
        "OMP_NUM_THREADS", "joblib's share of the processors", "threads that a worker of joblib's backend may use"
    ),
)
VARIABLES = SETTINGS + OTHERS


def others_set() -> dict[str, str]:
    """The variables of the table that are not settings and are set in this process."""
    return {each.name: os.environ[each.name] for each in OTHERS if each.name in os.environ}


# ---- the process family


def family() -> str | None:
    """The name of the process family, if the environment has it."""
    return os.environ.get(_FAMILY)


def set_family(name: str) -> None:
    """Name the process family, for this process and programs that start from now on."""
    os.environ[_FAMILY] = name


# ---- ranks


def _has_any(*names: str) -> bool:
    return any(name in os.environ for name in names)


def is_mpi_rank() -> bool:
    """Whether an MPI launcher started this process, or an ancestor of it, as a rank."""
    return _has_any("PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK")


def under_mpi_launcher() -> bool:
    """Whether an MPI launcher started this process (and not ``copyless run`` inside one)."""
    return _GROUP not in os.environ and _has_any(
        "PMI_RANK", "PMI_SIZE", "PMIX_RANK", "OMPI_COMM_WORLD_SIZE", "MPI_LOCALNRANKS"
    )


def take_rank() -> tuple[bytes, int] | None:
    """The handle of the group and the number of this rank, from ``copyless run``.

    Returned only once: child processes of a rank are not ranks.
    """
    group = os.environ.get(_GROUP)
    if group is None:
        return None
    rank = int(os.environ.pop(_RANK))
    del os.environ[_GROUP]
    return bytes.fromhex(group), rank


def environment_of_ranks(group: bytes, *, unbuffered: bool = False) -> list[bytes]:
    """The environment of programs that become ranks, each variable with its value; `number_of_rank` belongs to it.

    `unbuffered`: the output of Python appears line by line.
    """
    environment = {**os.environb, _GROUP.encode(): group.hex().encode()}
    environment.pop(_RANK.encode(), None)
    if unbuffered:
        environment.setdefault(b"PYTHONUNBUFFERED", b"1")
    return [b"%b=%b" % each for each in environment.items()]


def number_of_rank(rank: int) -> bytes:
    """The variable that tells a program which rank it is, with its value."""
    return f"{_RANK}={rank}".encode()


def stated_node() -> str | None:
    """The name of this rank's node, if a test sets it."""
    return os.environ.get(_NODE)


def stated_nodes() -> int:
    """The number of nodes that the ranks of this machine form, as a test sets it."""
    return int(os.environ.get(_NODES, "1"))


def ranks_of_node() -> int | None:
    """The number of ranks of this node, as the MPI launcher states it; None if it does not."""
    named = ("MPI_LOCALNRANKS", "OMPI_COMM_WORLD_LOCAL_SIZE")
    stated = next((int(os.environ[name]) for name in named if name in os.environ), None)
    return _ranks_of_step() if stated is None else stated


def _ranks_of_step() -> int | None:
    """How many ranks of a step of Slurm's (srun) are on this node; None where there is no step.

    Slurm writes them as ``4(x2),3``: of each node, in the order of nodes.
    """
    text, number = os.environ.get("SLURM_STEP_TASKS_PER_NODE"), os.environ.get("SLURM_NODEID", "")
    if text is None or not number.isdigit():
        return None
    node = int(number)
    for part in text.split(","):
        ranks, _, times = part.partition("(x")
        count = times.rstrip(")") or "1"
        if not (ranks.isdigit() and count.isdigit()):
            return None
        if node < int(count):
            return int(ranks)
        node -= int(count)
    return None


# ---- programs and workers that are started here


def environment_of_child(more: Mapping[str, str]) -> dict[str, str]:
    """The whole environment of this process with `more` added, for a program that is started."""
    return {**os.environ, **more}


def update_environment(more: Mapping[str, str]) -> None:
    """Set variables in this process; a worker does this before its first task."""
    os.environ.update(more)


def has_dumb_terminal() -> bool:
    """Whether the terminal cannot move its cursor, as the environment says."""
    return os.environ.get("TERM") == "dumb"


def states_threads() -> bool:
    """Whether the environment limits the threads of numerical libraries."""
    return "OMP_NUM_THREADS" in os.environ


# ---- the command


def wants_colour() -> bool:
    """Whether the user of a terminal wants colours (https://no-color.org)."""
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def stated_columns() -> int:
    """The width of the terminal from the environment; otherwise 0."""
    text = os.environ.get("COLUMNS", "")
    return int(text) if text.isdecimal() else 0
