"""The library of all modules that are written in Cython, and where they are in it."""

from importlib.machinery import ModuleSpec

MODULES: frozenset[str]

def spec_of(name: str) -> ModuleSpec | None: ...
