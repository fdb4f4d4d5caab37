# cython: language_level=3, freethreading_compatible=True
"""The library of all modules that are written in Cython, and where they are in it.

Several modules may share a library (PEP 489), but Python looks for each in a file of its own name, which only this one has. So the
package finds the others (`copyless/__init__.py`). A library takes 0.1 ms to load, and a process that starts a pool needs a dozen of them.
"""
from _frozen_importlib import ModuleSpec  # as in `importlib.machinery`, which takes longer to load
from _frozen_importlib_external import ExtensionFileLoader

cdef extern from *:
    const char *CL_MODULES  # from meson.build

MODULES = frozenset(CL_MODULES.decode().split())


def spec_of(name):
    """Where a module of this library is; None if it is none of them."""
    if name not in MODULES:
        return None
    spec = ModuleSpec(name, ExtensionFileLoader(name, __file__), origin=__file__)
    spec.has_location = True
    return spec
