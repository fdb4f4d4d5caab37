"""Constants of the local communicator, and the reductions of both transports."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, TypeVar

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

ANY_SOURCE = -2  # receive a message from any rank
ANY_TAG = -1  # receive a message with any tag
PROC_NULL = -1  # no rank: sending to it does nothing, receiving from it returns None at once
ROOT = -3  # on an intercommunicator: this rank is the root
UNDEFINED = -32766  # colour for Split: this rank gets no communicator
TAG_MOST = 2**31 - 1
SUCCESS, ERR_TAG, ERR_RANK, ERR_ROOT, ERR_OTHER = 0, 4, 6, 7, 15  # error classes

_T = TypeVar("_T")

Operation = Callable[[Any, Any], Any]  # of a reduction: two values become one


def _ufunc(name: str, otherwise: Callable[[Any, Any], object]) -> Operation:
    """A reduction by elements if either operand is an array."""

    def op(a: object, b: object) -> object:
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
    """The pair (value, place) with the larger value; with equal values, the one with the smaller place."""
    (x, i), (y, j) = a, b
    return (x, i) if x > y else (y, j) if y > x or j < i else (x, i)


def MINLOC(a: Any, b: Any) -> Any:
    """The pair (value, place) with the smaller value; with equal values, the one with the smaller place."""
    (x, i), (y, j) = a, b
    return (x, i) if x < y else (y, j) if y < x or j < i else (x, i)


def REPLACE(a: _T, b: _T) -> _T:
    """The second operand."""
    return b


def NO_OP(a: _T, b: _T) -> _T:
    """The first operand."""
    return a


OPERATIONS = (SUM, PROD, MAX, MIN, LAND, LOR, BAND, BOR, BXOR, MAXLOC, MINLOC, REPLACE, NO_OP)
NAMES = ("SUM", "PROD", "MAX", "MIN", "LAND", "LOR", "BAND", "BOR", "BXOR", "MAXLOC", "MINLOC", "REPLACE", "NO_OP")
