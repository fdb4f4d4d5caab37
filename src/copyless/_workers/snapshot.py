"""What `__main__` had when a worker started: in a notebook, or at a prompt, it changes afterwards (`main_changes`)."""

from __future__ import annotations

import sys
import weakref
from types import FunctionType

from copyless._typing import Any

__all__ = ["Snapshot", "is_interactive", "main_names"]


def is_interactive() -> bool:
    """Whether `__main__` may get new names while it runs: in a notebook, or at a prompt."""
    file = getattr(sys.modules.get("__main__"), "__file__", None)
    return file is None or file[:1] == "<" or hasattr(sys, "ps1") or bool(sys.flags.interactive)


def main_names() -> dict[str, Any]:
    module = sys.modules.get("__main__")
    return {} if module is None else vars(module)


class Snapshot:
    """The objects of the names of `__main__` now. Objects that support weak references are not kept alive by it."""

    def __init__(self, forked: bool) -> None:
        self._names: dict[str, Any] = {}
        file = getattr(sys.modules.get("__main__"), "__file__", None)
        for name, value in list(main_names().items()):
            if not forked and isinstance(value, FunctionType) and value.__code__.co_filename != file:
                continue  # typed interactively, and not in the file that the worker imports
            try:
                self._names[name] = weakref.ref(value)
            except TypeError:
                self._names[name] = (value,)

    def has(self, name: str, value: Any) -> bool:
        known = self._names.get(name)
        return known is not None and (known[0] if type(known) is tuple else known()) is value
