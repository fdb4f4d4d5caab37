"""The libraries whose objects are moved into shared memory and sent as handles: one table, and one file for each
library.

Each file answers the same five questions about an object (`library.py`): does it belong to the library, is it shared,
how is it moved, how is it reduced, what are its parts. A new library is a new file and a line in `_FILES`. A file is
imported after its library has been imported, and never imports a library that the program does not use.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterable, Iterator

from copyless._libraries.library import Kept, Library, LookFirst, Parts, Reduction
from copyless._typing import Any

__all__ = [
    "Kept",
    "Library",
    "LookFirst",
    "Parts",
    "looking",
    "moving",
    "of",
    "of_kind",
    "overlaps",
    "parts_of",
    "reductions",
]

# The packages, and the file of this folder for each. The first library that owns a class handles it.
_FILES = {"torch": "torch", "pyarrow": "arrow", "pandas": "pandas", "polars": "polars"}
# Packages whose file must be loaded before one of their objects occurs: they register reductions with multiprocessing's
# pickler themselves, and several of their objects may use the same memory.
_EARLY = ("torch",)

_imported: dict[str, Library] = {}
_owners: dict[type, Library | None] = {}
_MOST_OWNERS = 1024  # at most so many classes are kept alive, even if a program makes classes without end
_reductions: dict[type, Reduction] = {}
_due: tuple[str, ...] = _EARLY  # packages whose reductions are not in the table yet


def _is_imported(package: str) -> bool:
    """Whether a package is imported. While it is being imported, no object of it exists yet."""
    spec = getattr(sys.modules.get(package), "__spec__", None)
    return spec is not None and not getattr(spec, "_initializing", False)


def _library(package: str) -> Library | None:
    """The library object for a package; None if the package is not imported."""
    library = _imported.get(package)
    if library is None and package in sys.modules and _is_imported(package):
        library = importlib.import_module(f"copyless._libraries.{_FILES[package]}").LIBRARY
        _imported[package] = library
    return library


def _libraries(packages: Iterable[str] = _FILES) -> list[Library]:
    """The library objects for those of the packages that are imported."""
    return [library for package in packages if (library := _library(package)) is not None]


def of_kind(kind: type) -> Library | None:
    """The library for objects of a class, or None."""
    try:
        return _owners[kind]
    except KeyError:
        pass
    owner = next((library for library in _libraries() if library.owns(kind)), None)
    if len(_owners) >= _MOST_OWNERS:
        _owners.clear()
    _owners[kind] = owner
    return owner


def of(obj: object) -> Library | None:
    """The library for an object, or None."""
    return of_kind(type(obj))


def parts_of(obj: object) -> Parts | None:
    """A title and the parts of a library's object; None if the object is one part or of no library."""
    library = of_kind(type(obj))
    return None if library is None else library.parts(obj)


def overlaps() -> bool:
    """Whether a library is imported whose objects may use the same memory as each other."""
    for package in _EARLY:  # noqa: SIM110 - a generator would cost more than the question
        if package in _imported or (package in sys.modules and _library(package) is not None):
            return True
    return False


def moving(plans: dict[Library, Any] | None = None) -> contextlib.AbstractContextManager[Any]:
    """One call of `share` if `overlaps`: objects that use the same memory still do so afterwards. May raise `LookFirst`
    inside.

    `plans`: the result of `looking`.
    """
    if len(_EARLY) == 1:
        library = _imported[_EARLY[0]]
        return library.moving(None if plans is None else plans[library])
    return _entered([(library, library.moving((plans or {}).get(library))) for library in _libraries(_EARLY)])


def looking() -> contextlib.AbstractContextManager[dict[Library, object]]:
    """Records which memory is used by the objects that are taken apart inside the block: the plans for `moving`."""
    return _entered([(library, library.looking()) for library in _libraries(_EARLY)])


@contextlib.contextmanager
def _entered(contexts: list[tuple[Library, Any]]) -> Iterator[dict[Library, object]]:
    with contextlib.ExitStack() as stack:
        yield {library: stack.enter_context(context) for library, context in contexts}


def reductions() -> dict[type, Reduction]:
    """The reductions for copyless's channels of objects whose library has registered others with multiprocessing's
    pickler.

    Always the same dict, which grows if such a library was imported since the last call: it can be kept in a chain of
    tables, and is complete after each call. Costs a tenth of a microsecond if nothing was imported.
    """
    for package in _due:
        if package in sys.modules:
            _collect()
            break
    return _reductions


def _collect() -> None:
    global _due
    for package in _due:
        library = _library(package)
        if library is not None:
            _reductions.update(library.reductions())
            _due = tuple(each for each in _due if each != package)  # only now, since another thread may ask meanwhile
