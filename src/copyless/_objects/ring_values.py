"""Assigning values to a frame of a ring: the value arrives exactly as it was given, or an error is raised.

An array is checked by its dtype, as with NumPy's ``casting="same_kind"``; integers that become smaller are checked by
their values. A single number is checked by its value, whatever its type: it must be read back as it was written, and a
float may be rounded to the precision of the ring. Kinds may only be widened: bool, integers, floats, complex numbers;
text and times keep their kinds.
"""

from __future__ import annotations

import datetime
import decimal
import math
import numbers
from typing import Any

import numpy as np

from copyless._transfer.shared_array import copy_large

__all__ = ["assign"]

_RANK = {bool: 0, int: 1, float: 2, complex: 3}
_RANKS = {"b": 0, "i": 1, "u": 1, "f": 2, "c": 3}


class _DoesNotFit(OverflowError, TypeError):
    """A number that is too large. NumPy raises OverflowError for integers and TypeError for arrays."""


def _refused(value: object, kind: object, why: str = "would become a value of another kind") -> str:
    what = (
        f"an array of {value.dtype}"
        if isinstance(value, np.ndarray) and value.ndim
        else f"{type(value).__name__} {value!r}"
    )
    return f"Cannot cast {what} to {kind}, where it {why}: convert it first, or make the ring with another dtype"


def assign(target: Any, value: Any) -> None:
    """Copy a value into an array of a frame.

    Raises
    ------
    TypeError
        If it would become a value of another kind: a float in integers, a number in bool or text, milliseconds in
        seconds.
    OverflowError
        If it does not fit: 300 in ``u1``.
    """
    if type(value) in _RANK:
        char = target.dtype.char
        if (type(value) is float and char == "d") or (
            type(value) is int and char == "l" and -(1 << 63) <= value < 1 << 63
        ):
            target[...] = value  # the usual cases, without further checks
            return
        _assign_number(target, value)
    elif isinstance(value, np.ndarray) and value.ndim:
        if not copy_large(target, value):
            _assign_array(target, value, False)
    else:
        given = np.asarray(value)
        if given.ndim:
            _assign_array(target, given, not hasattr(value, "__array__"))
        else:
            _assign_one(target, value, given)


def _assign_number(target: Any, value: Any) -> None:
    """A Python number, which has a kind and no size."""
    kind = target.dtype
    rank, own = _RANKS.get(kind.kind, -1), _RANK[type(value)]
    if rank < own:
        raise TypeError(_refused(value, kind))
    if rank == 1 and own == 1:
        bits = 8 * kind.itemsize
        if not (0 <= value < 1 << bits if kind.kind == "u" else -1 << bits - 1 <= value < 1 << bits - 1):
            raise _DoesNotFit(_refused(value, kind, "does not fit"))
    elif rank > 1 and own == 1:
        try:
            value = float(value)
        except OverflowError:
            raise _DoesNotFit(_refused(value, kind, "does not fit")) from None
    if rank > 1 and own and kind.itemsize < (8 if rank == 2 else 16):
        most = float(np.finfo(kind).max)
        parts = (value.real, value.imag)
        if any(math.isfinite(part) and abs(part) > most for part in parts):
            raise _DoesNotFit(_refused(value, kind, "does not fit"))
    target[...] = value


def _assign_array(target: Any, source: Any, by_value: bool) -> None:
    """An array. `by_value`: it was a list, whose integers have no chosen size."""
    kind, given = target.dtype, source.dtype
    if kind == given:
        np.copyto(target, source)
        return
    whole = kind.kind in "iu" and given.kind in "iu"
    if not source.size:
        np.copyto(target, source, casting="unsafe" if by_value else "same_kind")
        return
    if (kind.kind in "SU") != (given.kind in "SU") or (kind.kind in "mMSU" and not np.can_cast(given, kind, "safe")):
        raise TypeError(_refused(source, kind))
    try:
        with np.errstate(over="raise"):
            np.copyto(target, source, casting="unsafe" if whole and by_value else "same_kind")
    except FloatingPointError:
        raise _DoesNotFit(_refused(source, kind, "does not fit")) from None
    if (
        whole
        and not np.can_cast(given, kind, "safe")
        and not np.array_equal(target, np.broadcast_to(source, target.shape))
    ):
        raise _DoesNotFit(_refused(source, kind, "does not fit"))


def _assign_one(target: Any, value: object, given: Any) -> None:
    """One number, time or text of any other type."""
    kind = target.dtype
    if given.dtype.hasobject:
        if kind.kind in "mM" and isinstance(value, (datetime.date, datetime.timedelta)):
            given = np.asarray(value, f"{kind.kind}8")
        else:
            _assign_number(target, _python_number(value, kind))
            return
    if given.dtype.kind in "biufc" and kind.kind in "biufc":
        if given.dtype.kind in "fc" and given.dtype.itemsize > (8 if given.dtype.kind == "f" else 16):
            if not np.can_cast(given.dtype, kind, "same_kind"):
                raise TypeError(_refused(value, kind))
            target[...] = given  # a long double, which no Python number can hold
        else:
            _assign_number(target, given.item())
        return
    if (kind.kind in "SU") != (given.dtype.kind in "SU") or not np.can_cast(given.dtype, kind, "same_kind"):
        raise TypeError(_refused(value, kind))
    stored = given.astype(kind)
    if kind.kind != "V" and not (
        bool(stored == given) or (kind.kind in "mM" and bool(np.isnat(stored) & np.isnat(given)))
    ):
        raise TypeError(_refused(value, kind, "would be a different value"))
    target[...] = stored


def _python_number(value: object, kind: object) -> object:
    """A number of a class that NumPy does not know, such as a Fraction, as a Python number."""
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, (numbers.Real, decimal.Decimal)):
        return float(value)  # arrays of integers refuse it, even if it is integral
    if isinstance(value, numbers.Complex):
        return complex(value)
    raise TypeError(_refused(value, kind))
