"""Names of the standard library's modules that copyless's modules do not define: found where a program looks for them.

A program may use any name of `multiprocessing`: a class in an annotation, a helper, a constant. A module of copyless
that mirrors one of its modules has the same names. A name that copyless does not define is the standard library's own
object, looked up at first use.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection

from copyless._typing import Any

__all__ = ["standard_names"]


def standard_names(
    ours: str, mirrored: str, without: Collection[str] = ()
) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` for the module `ours`, which mirrors `mirrored`.

    `without`: names of the standard library that would be misleading beside the classes of copyless.
    """

    def __getattr__(name: str) -> Any:
        if not (name.startswith("__") and name.endswith("__")) and name not in without:
            try:
                __import__(mirrored)
                return getattr(sys.modules[mirrored], name)
            except AttributeError:
                pass
        raise AttributeError(f"module {ours!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        __import__(mirrored)
        theirs = {name for name in dir(sys.modules[mirrored]) if not name.startswith("_")}
        return sorted({*vars(sys.modules[ours]), *theirs} - set(without))

    return __getattr__, __dir__
