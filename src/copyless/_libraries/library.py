"""The questions about each library whose objects `share` moves, with the answers of a library that needs nothing
special.

Each file of this package is for one library: it derives a class from `Library` and has one object of it, `LIBRARY`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager

from copyless._typing import Any

__all__ = ["Column", "Kept", "Library", "LookFirst", "Parts", "Reduction", "package_of", "subclasses"]

Reduction = Callable[[Any], object]
Parts = tuple[str, list[tuple[str, object]]]  # (title, [(path, part)])
Column = tuple[str, Any, bool]  # (label, values, whether it belongs to the index)


class Kept:
    """A part of an object that is not changed: its type has no form in shared memory."""

    def __init__(self, part: object) -> None:
        self.part = part


class LookFirst(Exception):
    """An object can be moved only after it is known which other objects use the same memory."""


class Library:
    """The five questions, and some that only some libraries need to answer."""

    # ---- does it belong to the library?

    def owns(self, kind: type) -> bool:
        """Whether objects of a class belong to this library. The answer is remembered."""
        raise NotImplementedError

    # ---- is it shared?

    def memory_of(self, obj: object) -> tuple[int, int] | None:
        """(address, bytes) of an object that is exactly one piece of memory; None for all others."""
        return None

    def data_of(self, obj: object) -> list[object] | None:
        """The parts with the data of an object: it is shared if they are. None: everything in its pickle."""
        return None

    # ---- how is it moved?

    def move(self, piece: object) -> object:
        """A copy of a piece of memory in shared memory. Called only if `memory_of` is not None."""
        raise NotImplementedError

    def moving(self, plan: Any = None) -> AbstractContextManager[object]:
        """One call of `share`, for a package in `_EARLY`.

        May raise `LookFirst` inside; the next attempt has the plan of `looking`.
        """
        return contextlib.nullcontext()

    def looking(self) -> AbstractContextManager[object]:
        """Makes the plan for a call of `share`: all objects are taken apart inside, and nothing is moved."""
        return contextlib.nullcontext()

    # ---- how is it reduced?

    def apart(self, obj: object, moves: bool) -> tuple[object, bool | None]:
        """How `share` takes an object apart: (reduction, whether the memory that this object itself names is shared).

        NotImplemented as the reduction means the object's own. The second item is None if parts of the object determine
        it. `moves`: memory is moved now; otherwise it is only examined.
        """
        return NotImplemented, None

    def register(self) -> None:
        """Register the classes of the library with multiprocessing's pickler.

        Called when an object gets memory in shared memory.
        """

    def reductions(self) -> dict[type, Reduction]:
        """The reductions for copyless's channels of classes that the library itself registers with multiprocessing's
        pickler.
        """
        return {}

    # ---- what are its parts?

    def parts(self, obj: object) -> Parts | None:
        """A title and the parts that `explain` shows, with their paths; None: the object is one part."""
        return None

    def columns(self, table: object) -> Iterable[Column] | None:
        """The columns of a table for `to_recarray`, those of its index first; None if it is not a table."""
        return None

    def describe(self, part: object) -> str | None:
        """The description of a part in `explain`; None: its dtype or class."""
        return None

    def why_copied(self, part: object) -> str:
        """Why the bytes of a part are copied into each message; empty if there is no special reason."""
        return ""

    def why_not_packed(self, part: object) -> str:
        """Why `explain` must not pickle a part to measure it; empty if it may."""
        return ""


def package_of(kind: type) -> str:
    """The outermost package of the module of a class."""
    return str(kind.__module__).partition(".")[0]


def subclasses(kind: type) -> list[type]:
    """A class and all its subclasses."""
    children: list[type] = kind.__subclasses__()
    return [kind, *(below for child in children for below in subclasses(child))]
