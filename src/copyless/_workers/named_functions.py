"""Functions that are sent to a worker by name and loaded there once."""

from __future__ import annotations

import pickle
from types import BuiltinFunctionType, FunctionType, ModuleType, NoneType

from copyless._core import _pickles
from copyless._typing import Any

__all__ = ["WITH_NAMES", "function_of", "name_of"]

WITH_NAMES = (FunctionType, BuiltinFunctionType)
_MOST = 64  # functions that a worker keeps


def name_of(function: object) -> bytes | None:
    """The pickle of a function that can be found by its name, so that the loading process uses its own function;
    otherwise None.
    """
    if not isinstance(getattr(function, "__self__", None), (NoneType, ModuleType)):
        return None  # a bound method of an object made in C
    try:
        return pickle.dumps(function, 5)
    except Exception:
        return None


_loaded: dict[bytes, Any] = {}


def function_of(name: bytes) -> Any:
    """The function that such a pickle names."""
    function = _loaded.get(name)
    if function is None:
        if len(_loaded) >= _MOST:
            _loaded.clear()
        function = _loaded[name] = _pickles.loads(name)
    return function
