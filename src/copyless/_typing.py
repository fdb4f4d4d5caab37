"""The names of `typing` that annotations and class statements need, without `typing`.

`typing` takes 2 ms to load and 1 ms more at the exit of the interpreter: a fifth of the time that this package adds to
a program that needs a queue and a lock. The modules that such a program loads (`tests/test_startup.py` lists them)
import these names from here. Type checkers read `_typing.pyi`, which has those of `typing`.
"""

from __future__ import annotations

__all__ = ["TYPE_CHECKING", "Any", "ClassVar", "Generic", "NoReturn", "TypeGuard", "TypeVar"]

TYPE_CHECKING = False
_GenericAlias = type(list[int])  # `types.GenericAlias`, without importing `types`


class Any:
    """Used only in annotations, which are never evaluated."""


class Generic:
    """A base class that can be subscripted: ``Queue[int]`` is a `types.GenericAlias`, as ``list[int]`` is."""

    __slots__ = ()

    def __class_getitem__(cls, item: object) -> object:
        # `Generic[T]` in a list of bases is `Generic` itself.
        return cls if cls is Generic else _GenericAlias(cls, item)


class _Named:
    """A type variable, or a special form in annotations."""

    def __init__(self, name: str, *bounds: object, **more: object) -> None:
        self.__name__ = name

    def __repr__(self) -> str:
        return f"~{self.__name__}"

    def __getitem__(self, item: object) -> object:
        return self


TypeVar = _Named
ClassVar, NoReturn, TypeGuard = _Named("ClassVar"), _Named("NoReturn"), _Named("TypeGuard")
