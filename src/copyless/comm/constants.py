"""What the local communicator calls things, and the reductions that both transports know."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

__all__ = [
    "ANY_SOURCE",
    "ANY_TAG",
    "BAND",
    "BOR",
    "BXOR",
    "LAND",
    "MAXLOC",
    "MINLOC",
    "NO_OP",
    "REPLACE",
    "LOR",
    "MAX",
    "MIN",
    "PROC_NULL",
    "PROD",
    "ROOT",
    "SUM",
    "UNDEFINED",
]

ANY_SOURCE = -2  # a receive takes a message of any rank
ANY_TAG = -1  # ... and with any tag
PROC_NULL = -1  # nobody: sending there does nothing, receiving from there gives None at once
ROOT = -3  # of an intercommunicator: I am the root
UNDEFINED = -32766  # a colour of Split: I shall be in none
TAG_MOST = 2**31 - 1
SUCCESS, ERR_TAG, ERR_RANK, ERR_ROOT, ERR_OTHER = 0, 4, 6, 7, 15  # classes of errors


def _ufunc(name: str, otherwise: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """A reduction by elements where either side is an array."""

    def op(a: Any, b: Any) -> Any:
        if hasattr(a, "__array__") or hasattr(b, "__array__"):
            import numpy as np

            return getattr(np, name)(a, b)
        return otherwise(a, b)

    op.__name__ = op.__qualname__ = name
    return op


SUM = operator.add
PROD = operator.mul
MAX = _ufunc("maximum", lambda a, b: b if b > a else a)
MIN = _ufunc("minimum", lambda a, b: b if b < a else a)
LAND = _ufunc("logical_and", lambda a, b: bool(a) and bool(b))
LOR = _ufunc("logical_or", lambda a, b: bool(a) or bool(b))
BAND = operator.and_
BOR = operator.or_
BXOR = operator.xor


def MAXLOC(a: Any, b: Any) -> Any:
    """Of two pairs (value, place) the one with the larger value; of equal ones the smaller place."""
    return (a[0], min(a[1], b[1])) if a[0] == b[0] else a if a[0] > b[0] else b


def MINLOC(a: Any, b: Any) -> Any:
    """Of two pairs (value, place) the one with the smaller value; of equal ones the smaller place."""
    return (a[0], min(a[1], b[1])) if a[0] == b[0] else a if a[0] < b[0] else b


def REPLACE(a: Any, b: Any) -> Any:
    """The second of two."""
    return b


def NO_OP(a: Any, b: Any) -> Any:
    """The first of two."""
    return a
