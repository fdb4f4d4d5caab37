# cython: language_level=3, freethreading_compatible=True
"""The library of all modules that are written in Cython, and what finds them in it.

Several modules may share a library (PEP 489), but Python looks for each in a file of its own name. Only this module has one. A library
takes 0.1 ms to load, and a process that starts a pool needs a dozen of these modules.
"""
import sys
from _frozen_importlib import ModuleSpec  # as in `importlib.machinery`, which takes longer to load
from _frozen_importlib_external import ExtensionFileLoader

cdef extern from *:
    const char *CL_MODULES  # from meson.build

MODULES = frozenset(CL_MODULES.decode().split())


class Finder:
    """Finds the modules of this library for Python's import: an entry of `sys.meta_path`."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name not in MODULES:
            return None
        spec = ModuleSpec(name, ExtensionFileLoader(name, __file__), origin=__file__)
        spec.has_location = True
        return spec


sys.meta_path.append(Finder)  # the last, so that it costs other imports nothing
