"""The names of the standard library's modules that ours do not define: found where a program looks for them.

Of `multiprocessing` a program may name anything: a class in an annotation, a helper, a constant. A module of ours that mirrors
one of its modules has the same names. What is not ours is the very same object, looked up when it is first asked for.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Collection
from typing import Any

__all__ = ["standard_names"]


def standard_names(
    ours: str, mirrored: str, without: Collection[str] = ()
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of the module `ours`, which mirrors `mirrored`.

    `without`: names of the standard library's that would be another thing than they say beside our classes.
    """

    def __getattr__(name: str) -> Any:
        if not (name.startswith("__") and name.endswith("__")) and name not in without:
            try:
                return getattr(importlib.import_module(mirrored), name)
            except AttributeError:
                pass
        raise AttributeError(f"module {ours!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        theirs = {name for name in dir(importlib.import_module(mirrored)) if not name.startswith("_")}
        return sorted({*vars(sys.modules[ours]), *theirs} - set(without))

    return __getattr__, __dir__
