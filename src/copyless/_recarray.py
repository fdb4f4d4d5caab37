"""`to_recarray`: a table as one array of records in shared memory, written column by column."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from copyless import _libraries
from copyless.arrays import empty

__all__ = ["to_recarray"]


def to_recarray(
    table: object,
    index: bool = True,
    column_dtypes: object = None,
    index_dtypes: object = None,
    *,
    name: str | None = None,
    persist: bool = False,
    exist_ok: bool = False,
) -> Any:
    """Convert a table to a `numpy.recarray` in shared memory, one record for each row.

    Mirrors `pandas.DataFrame.to_records`.

    Parameters
    ----------
    table
        A DataFrame of pandas or polars, a `pyarrow.Table`, or a mapping of names to sequences of equal length.
    index : bool
        Put pandas's index first, under its name (``index`` or ``level_0``, ``level_1``, ... if it has none).
    column_dtypes, index_dtypes : dtype, str or dict, optional
        The dtypes to store: one for all columns, or a dict by name (or position).
    name : str, optional
        Other programs `copyless.open` the array by this name. They get a structured array; ``.view(numpy.recarray)``
        gives its fields as attributes.
    persist, exist_ok : bool
        As for `copyless.empty`.

    Returns
    -------
    numpy.recarray
        One dimension; sent to another process as a handle. Text is stored in the width of its longest value (``U``),
        times with a zone as UTC.

    Raises
    ------
    TypeError
        For a column of other Python objects, or text with missing values; the text names the column. Nothing is left
        behind.
    FileExistsError
        If the name is taken; with `exist_ok`, if the existing array has another length or other columns.
    OutOfSharedMemory
        If there is no room.

    Notes
    -----
    Copies each column once, directly into shared memory. The fields of a row lie together: a recarray suits access by
    row, a shared DataFrame suits work by column.

    Examples
    --------
    >>> import copyless, pandas as pd
    >>> records = copyless.to_recarray(pd.DataFrame({"city": ["Rom", "Wien"], "x": [1.5, 2.5]}), index=False)
    >>> records.city[1], records[0].x, copyless.is_shared(records)
    (np.str_('Wien'), np.float64(1.5), True)
    """
    chosen = [column for column in _columns(table) if index or not column[2]]
    columns = [
        (label, _as_stored(label, values, _wanted(index_dtypes if of_index else column_dtypes, label, i)))
        for i, (label, values, of_index) in enumerate(chosen)
    ]
    lengths = {len(values) for _, values in columns}
    if len(lengths) > 1:
        raise ValueError(f"all columns must have the same length, and these have {sorted(lengths)}")
    labels = [label for label, _ in columns]
    twice = {label for label in labels if labels.count(label) > 1}
    if twice:
        raise ValueError(
            f"two columns are named {sorted(twice)[0]!r}: rename one, since each field of a record needs its own name"
        )
    dtype = np.dtype([(label, values.dtype) for label, values in columns])

    def fill(made: Any) -> None:
        for label, values in columns:
            made[label] = values

    rows = lengths.pop() if lengths else 0
    return empty(rows, dtype, name=name, persist=persist, exist_ok=exist_ok, init=fill).view(np.recarray)


def _columns(table: object) -> Iterable[tuple[str, Any, bool]]:
    """(label, values, whether it belongs to the index) of each column."""
    library = _libraries.of(table)
    found = None if library is None else library.columns(table)
    if found is not None:
        return found
    if isinstance(table, Mapping):
        return [(str(label), column, False) for label, column in table.items()]
    raise TypeError(
        f"to_recarray() takes a DataFrame of pandas or polars, a pyarrow.Table or a mapping of columns, not "
        f"{type(table).__name__!r}"
    )


def _wanted(dtypes: object, label: str, position: int) -> Any:
    if isinstance(dtypes, Mapping):
        return dtypes.get(label, dtypes.get(position))
    return dtypes


def _as_stored(label: str, values: Any, dtype: object) -> Any:
    """A column as an array without Python objects."""
    if getattr(getattr(values, "dtype", None), "tz", None) is not None:  # pandas keeps times with a zone in UTC
        values = (values.dt if hasattr(values, "dt") else values).tz_convert("UTC")
        values = (values.dt if hasattr(values, "dt") else values).tz_localize(None)
    array: Any = values.to_numpy() if hasattr(values, "to_numpy") else np.asarray(values)
    if dtype is not None:
        return array.astype(dtype)
    if not array.dtype.hasobject and array.dtype.kind != "T":
        return array
    items = array.tolist()
    if items and all(type(item) is str for item in items):
        return array.astype(f"U{max(map(len, items)) or 1}")
    bad = next((item for item in items if type(item) is not str), None)
    raise TypeError(
        f"column {label!r} holds {type(bad).__name__} {bad!r}: records in shared memory hold numbers, "
        "times and text without missing values; convert the column, or give "
        f"column_dtypes={{{label!r}: ...}}"
    )


to_recarray.__module__ = "copyless"  # the public module, for users and pickles
