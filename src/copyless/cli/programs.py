"""Which program a process is, in one word that its user knows: `camera.py`, or the module after ``python -m``."""

from __future__ import annotations

import os

from copyless import _platform
from copyless._typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import TypedDict

    from copyless._core._observe import Owner

    class Holder(TypedDict):
        """An owner in a report."""

        pid: int
        program: str
        alive: bool


__all__ = ["Programs"]

_UNKNOWN = ("", "__main__.py")  # what a process recorded of itself that names no program
_WITH_VALUE = ("-W", "-X", "--check-hash-based-pycs")
_STARTED_BY = ("multiprocessing", "copyless")  # `python -c "from multiprocessing.spawn import ..."`
_GENERATIONS = 5


def named_in(words: list[str]) -> tuple[str, str]:
    """(program, code) in the arguments of a process: the code of ``python -c``, else empty.

    >>> named_in(["/usr/bin/python3", "-X", "dev", "-m", "http.server", "8000"])
    ('http.server', '')
    >>> named_in(["python", "/srv/robot/__main__.py"])
    ('robot', '')
    """
    if not words:
        return "", ""
    program = os.path.basename(words[0])
    if not program.startswith(("python", "pypy")):
        return program, ""
    rest = iter(words[1:])
    for word in rest:
        if word in _WITH_VALUE:
            next(rest, "")
        elif word.startswith("-") and not word.startswith(("--", "-W", "-X")) and len(word) > 1:
            for letter in "mc":
                flags, found, value = word.partition(letter)
                if found and flags[1:].isalpha() | (flags == "-"):
                    value = value or next(rest, "")
                    return (value, "") if letter == "m" else (f"{program} -c", value)
        elif not word.startswith("--"):
            name = os.path.basename(word.rstrip("/"))
            inside = os.path.basename(os.path.dirname(os.path.abspath(word)))
            return (inside if name == "__main__.py" else name) or program, ""
    return program, ""


def _words_of(pid: int) -> list[str]:
    line = _platform.command_line(pid) or b""
    return [word.decode("utf-8", "replace") for word in line[:65536].split(b"\0")[:-1]]


def _program_of(pid: int) -> str:
    """The program of a living process; of one that multiprocessing started, that of its parent."""
    first = ""
    for _ in range(_GENERATIONS):
        program, code = named_in(_words_of(pid))
        first = first or program
        code = code.lstrip().removeprefix("import sys; ")  # the server of Python 3.14
        if not code.startswith(tuple(f"from {name}" for name in _STARTED_BY)):
            return program or first
        pid = _platform.parent_of(pid)
        if pid <= 1:
            break
    return first


class Programs:
    """The programs of the owners in a copy of the registry's tables. Each process is looked at once."""

    def __init__(self, owners: Iterable[Owner]) -> None:
        self._owners = {owner["slot"]: owner for owner in owners}
        self._known: dict[int, str] = {}
        self._namespace = _platform.pid_namespace()

    def of(self, slot: int) -> str:
        """The program of an owner; "unknown program" if nothing names it."""
        if slot not in self._known:
            self._known[slot] = self._find(self._owners.get(slot))
        return self._known[slot]

    def _find(self, owner: Owner | None) -> str:
        if owner is None:
            return "unknown program"
        recorded = owner["command"]
        # A process of another container has a number of its own there, and here another process may have that number.
        if owner["alive"] and owner["pid"] and owner["pid_namespace"] == self._namespace:
            program = _program_of(owner["pid"])
            module = program.rpartition(".")[2] + ".py"
            if program and (
                recorded in (*_UNKNOWN, module) or recorded.startswith("python") or recorded == program[:31]
            ):
                return program
        return recorded or "unknown program"

    def holder(self, slot: int) -> Holder:
        """An owner for a report: its process, its program and whether it lives."""
        owner = self._owners.get(slot)
        return {
            "pid": 0 if owner is None else owner["pid"],
            "program": self.of(slot),
            "alive": owner is not None and owner["alive"],
        }
