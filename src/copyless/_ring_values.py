"""What may be put into a ring's frame: what arrives is what was given, or it is refused.

An array is judged by its dtype, as NumPy's ``casting="same_kind"``, and integers that become smaller by their values. One number
is judged by its value, whatever its type: it has to come out as it went in, and a float may be rounded to the precision of
the ring's. Kinds go up only: bool, integers, floats, complex numbers; text and times into their own.
"""

from __future__ import annotations

import datetime
import decimal
import math
import numbers
from typing import Any

import numpy as np

from copyless.arrays import copy_large

__all__ = ["assign"]

_RANK = {bool: 0, int: 1, float: 2, complex: 3}
_RANKS = {"b": 0, "i": 1, "u": 1, "f": 2, "c": 3}


class _DoesNotFit(OverflowError, TypeError):
    """A number too large; what NumPy raises is the one for integers and the other for arrays."""


def _refused(value: Any, kind: Any, why: str = "would lose its kind") -> str:
    what = (
        f"an array of {value.dtype}"
        if isinstance(value, np.ndarray) and value.ndim
        else f"{type(value).__name__} {value!r}"
    )
    return f"Cannot cast {what} to {kind}, in which it {why}: convert it first, or give the ring another dtype"


def assign(target: Any, value: Any) -> None:
    """Copy a value into an array of a frame.

    Raises
    ------
    TypeError
        Where it would lose its kind: a float into integers, a number into bool or text, milliseconds into seconds.
    OverflowError
        Where it does not fit: 300 into ``u1``.
    """
    if type(value) in _RANK:
        char = target.dtype.char
        if (type(value) is float and char == "d") or (type(value) is int and char == "l" and -(1 << 63) <= value < 1 << 63):
            target[...] = value  # the usual ones, at once
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
    """A number of Python's own, which has a kind and no size."""
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
    """An array; `by_value`: a list, whose integers have no size that anybody chose."""
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


def _assign_one(target: Any, value: Any, given: Any) -> None:
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
            target[...] = given  # a long double, which no number of Python's can hold
        else:
            _assign_number(target, given.item())
        return
    if (kind.kind in "SU") != (given.dtype.kind in "SU") or not np.can_cast(given.dtype, kind, "same_kind"):
        raise TypeError(_refused(value, kind))
    stored = given.astype(kind)
    if kind.kind != "V" and not (
        bool(stored == given) or (kind.kind in "mM" and bool(np.isnat(stored) & np.isnat(given)))
    ):
        raise TypeError(_refused(value, kind, "would be another value"))
    target[...] = stored


def _python_number(value: Any, kind: Any) -> Any:
    """A number of a class that NumPy does not know, such as a Fraction, as one of Python's own."""
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, (numbers.Real, decimal.Decimal)):
        return float(value)  # which integers refuse, though it may be a whole one
    if isinstance(value, numbers.Complex):
        return complex(value)
    raise TypeError(_refused(value, kind))
