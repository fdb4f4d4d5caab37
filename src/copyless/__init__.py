"""Python processes share memory (arrays, frames, queues, locks) without copying, leaking or hanging.

Public names are imported at first use: importing the package loads neither NumPy nor the libraries of the command. The
names are listed in `__init__.pyi` only.
"""

from __future__ import annotations

import os
import sys

from copyless._first_use import first_use
from copyless._typing import Any

__version__ = "0.1.0"


def _homes() -> tuple[dict[str, str], list[str]]:
    """(the module of each public name, the modules of copyless that are names themselves), as the stub lists them."""
    homes: dict[str, str] = {}
    modules: list[str] = []
    with open(os.path.join(os.path.dirname(__file__), "__init__.pyi"), encoding="utf-8") as stub:
        for line in stub:
            if not line.startswith("from "):
                continue
            _, home, _, name, _, _ = line.split()
            if home == "copyless":  # modules that programs use as attributes after ``import copyless`` alone
                modules.append(name)
            else:
                homes[name] = home
    return homes, modules


_HOME_OF, _MODULES = _homes()
__all__ = sorted(
    _HOME_OF.keys() - {"SUBDEBUG", "SUBWARNING"}
)  # these two can be used, as in multiprocessing, but are not exported


class _Finder:
    """Finds the modules that are written in Cython, which have no files of their own: an entry of `sys.meta_path`."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> Any:
        if not name.startswith("copyless.") or name == "copyless._native":
            return None
        try:
            from copyless import _native
        except ImportError as error:
            raise ImportError(
                f"the library of copyless for this Python ({sys.implementation.cache_tag}) cannot be loaded from "
                f"{os.path.dirname(__file__)}, for {name}: install copyless anew, with this Python"
            ) from error
        return _native.spec_of(name)


sys.meta_path.append(_Finder)  # type: ignore[arg-type]  # the last, so that it costs other imports nothing


def __getattr__(name: str) -> Any:
    home = _HOME_OF.get(name)
    if name in _MODULES:
        home = f"copyless.{name}"
    elif home is None:
        raise AttributeError(f"module 'copyless' has no attribute {name!r}")
    with first_use:
        __import__(home)
        module = sys.modules[home]
    if name not in _HOME_OF:
        return module
    value = getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
