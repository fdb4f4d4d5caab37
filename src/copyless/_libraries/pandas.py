"""pandas: its Arrow columns are sent by their buffers, without joining their chunks as pandas's own pickling does.

All other columns are NumPy arrays and need nothing special. Imported only after pandas.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

import pandas as pd

from copyless import _loaders
from copyless._libraries.library import Column, Library, Parts, package_of, subclasses
from copyless._transfer import in_flight

__all__ = ["LIBRARY", "column_of"]

K = TypeVar("K")

_COLUMN: Any = getattr(pd.arrays, "ArrowExtensionArray", None)  # older versions have none


def _reduce_column(column: object) -> object:
    state = dict(column.__dict__)
    if "_cache" in state:  # what it has can be computed again; pandas 3.1 clears it at each write, so it must exist
        state["_cache"] = {}
    return _loaders.pandas_column, (type(column), state)


_crossing = in_flight.or_as_pickle(_reduce_column)


def column_of(kind: type[K], state: dict[str, object]) -> K:
    """An Arrow column, from its state."""
    column = kind.__new__(kind)
    column.__dict__.update(state)
    LIBRARY.register()
    return column


def _values_of(column: pd.Series) -> object:
    array = column.array
    return array.to_numpy(copy=False) if type(array).__name__ in ("NumpyExtensionArray", "PandasArray") else array


class _Pandas(Library):
    def owns(self, kind: type) -> bool:
        return _is_pandas(kind) or issubclass(kind, (pd.DataFrame, pd.Series))

    def data_of(self, obj: object) -> list[object] | None:
        # Its columns. Other attributes, such as the placement of its blocks, are not data.
        found = self.parts(obj)
        return None if found is None else [part for _, part in found[1]]

    def apart(self, obj: object, moves: bool) -> tuple[object, bool | None]:
        if (
            _COLUMN is None
            or not isinstance(obj, _COLUMN)
            or not hasattr(obj, "_pa_array")
            or not _is_pandas(type(obj))
        ):
            return NotImplemented, None
        self.register()
        return _reduce_column(obj), None

    def register(self) -> None:
        from copyless._libraries import arrow  # noqa: F401 - it teaches the pickler of the buffers

        for kind in subclasses(_COLUMN) if _COLUMN is not None else ():
            in_flight.register(kind, _crossing)

    def parts(self, obj: object) -> Parts | None:
        if not _is_pandas(type(obj)):  # the other attributes of a class derived from pandas's are unknown
            return None
        if isinstance(obj, pd.DataFrame):
            columns = [(f"column {name!r}", _values_of(obj.iloc[:, i])) for i, name in enumerate(obj.columns)]
        elif isinstance(obj, pd.Series):
            columns = [(f"series {obj.name!r}", _values_of(obj))]
        else:
            return None
        if not isinstance(obj.index, pd.RangeIndex):
            columns.insert(0, ("index", obj.index))
        return f"{type(obj).__name__} of {len(obj):,} rows", columns

    def columns(self, table: object) -> Iterable[Column] | None:
        return _columns_of(table) if isinstance(table, pd.DataFrame) else None

    def describe(self, part: object) -> str | None:
        return f"MultiIndex of {part.nlevels} levels" if isinstance(part, pd.MultiIndex) else None


def _is_pandas(kind: type) -> bool:
    return package_of(kind) == "pandas"


def _columns_of(table: pd.DataFrame) -> Iterable[Column]:
    levels = [table.index.get_level_values(i) for i in range(table.index.nlevels)]
    default = ["index"] if len(levels) == 1 else [f"level_{i}" for i in range(len(levels))]
    for level, otherwise in zip(levels, default, strict=True):
        yield str(otherwise if level.name is None else level.name), level, True
    for i, label in enumerate(table.columns):
        yield str(label), table.iloc[:, i], False


LIBRARY = _Pandas()
