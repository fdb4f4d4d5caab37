"""The library of all modules that are written in Cython, and what finds them in it."""

from importlib.machinery import ModuleSpec

MODULES: frozenset[str]

class Finder:
    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> ModuleSpec | None: ...
