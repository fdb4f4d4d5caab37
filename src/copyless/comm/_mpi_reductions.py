"""Reductions that MPI itself can make: of arrays of numbers, by an operation that gives the same there as in NumPy."""

from __future__ import annotations

import hashlib
import sys
from typing import Any

from mpi4py import MPI

from copyless.comm import _constants
from copyless.comm._constants import Operation

__all__ = ["datatype_of", "operation_of", "signature"]

_INTEGERS = {
    f"{kind}{size}": getattr(MPI, f"{'U' if kind == 'u' else ''}INT{8 * size}_T")
    for kind in "iu"
    for size in (1, 2, 4, 8)
}
_REALS = {"f4": MPI.FLOAT, "f8": MPI.DOUBLE}
_COMPLEX = {"c8": MPI.C_FLOAT_COMPLEX, "c16": MPI.C_DOUBLE_COMPLEX}
_NUMBERS = _INTEGERS | _REALS | _COMPLEX
# Logical operations are not among them: NumPy gives booleans, MPI the type of the operands.
_KNOWN: dict[Operation, tuple[Any, dict[str, Any]]] = {
    _constants.SUM: (MPI.SUM, _NUMBERS),
    _constants.PROD: (MPI.PROD, _NUMBERS),
    _constants.MAX: (MPI.MAX, _INTEGERS | _REALS),
    _constants.MIN: (MPI.MIN, _INTEGERS | _REALS),
    _constants.BAND: (MPI.BAND, _INTEGERS),
    _constants.BOR: (MPI.BOR, _INTEGERS),
    _constants.BXOR: (MPI.BXOR, _INTEGERS),
}


def _key(array: Any) -> str:
    return f"{array.dtype.kind}{array.dtype.itemsize}"


def datatype_of(array: object) -> Any:
    return _NUMBERS[_key(array)]


def operation_of(op: Operation) -> Any:
    return _KNOWN[op][0]


def signature(value: Any, op: Operation, shape: tuple[int, ...] | None = None, has_nan: bool | None = None) -> int:
    """A number that two ranks share if MPI can reduce their values by `op`, and only then; 0 if it cannot.

    The `shape` may differ from the array's, and `has_nan` says what is known, so that nobody has to look.
    """
    numpy = sys.modules.get("numpy")
    if numpy is None or type(value) is not numpy.ndarray:
        return 0
    shape = value.shape if shape is None else shape
    try:
        known = _KNOWN.get(op)
    except TypeError:  # it cannot be hashed
        return 0
    if (
        known is None
        or not shape
        or value.size == 0
        or value.nbytes >= 1 << 31
        or not value.flags.c_contiguous
        or not value.dtype.isnative
        or _key(value) not in known[1]
    ):
        return 0
    if value.dtype.kind == "f" and known[0] in (MPI.MAX, MPI.MIN):
        has_nan = numpy.isnan(value.max()) if has_nan is None else has_nan
        if has_nan:
            return 0  # NumPy passes NaN on, and MPI does not say what it does
    named = f"{list(_KNOWN).index(op)} {_key(value)} {shape}".encode()
    return int.from_bytes(hashlib.blake2b(named, digest_size=7).digest(), "little") + 1
