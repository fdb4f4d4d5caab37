"""`to_recarray`: a table as one array of records in shared memory, written column by column."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from copyless.arrays import empty

__all__ = ["to_recarray"]


def to_recarray(
    table: Any,
    index: bool = True,
    column_dtypes: Any = None,
    index_dtypes: Any = None,
    *,
    name: str | None = None,
    persist: bool = False,
    exist_ok: bool = False,
) -> Any:
    """A table as a `numpy.recarray` in shared memory: a record a row. Mirrors `pandas.DataFrame.to_records`.

    Parameters
    ----------
    table
        A DataFrame of pandas or polars, a `pyarrow.Table`, or a mapping of names to sequences of one length.
    index : bool
        Put pandas's index in front, under its name (``index``, or ``level_0`` and so on, where it has none).
    column_dtypes, index_dtypes : dtype, str or dict, optional
        What to store columns as: one dtype for all, or by name (or position).
    name : str, optional
        Lets unrelated programs `copyless.open` it (as a structured array; ``.view(numpy.recarray)`` gives fields as attributes).
    persist, exist_ok : bool
        As for `empty`.

    Returns
    -------
    numpy.recarray
        Crosses to another process as a handle. Text is stored in the width of its longest value (``U``); times with a
        zone as UTC.

    Raises
    ------
    TypeError
        For a column of other Python objects, or text with missing values; it names the column. Nothing stays behind.
    FileExistsError
        When the name is taken; with `exist_ok`, when what has it has another length or other columns.

    Notes
    -----
    One copy of each column, straight into shared memory. Rows lie together: take a recarray for access by row, and a shared
    DataFrame for work by column.

    Examples
    --------
    >>> import copyless, pandas as pd
    >>> records = copyless.to_recarray(pd.DataFrame({"city": ["Rom", "Wien"], "x": [1.5, 2.5]}), index=False)
    >>> records.city[1], records[0].x, copyless.is_shared(records)
    (np.str_('Wien'), np.float64(1.5), True)
    """
    columns = [
        (label, _as_stored(label, values, _wanted(dtypes, label, i)))
        for i, (label, values, dtypes) in enumerate(_columns(table, index, column_dtypes, index_dtypes))
    ]
    lengths = {len(values) for _, values in columns}
    if len(lengths) > 1:
        raise ValueError(f"the columns have different lengths: {sorted(lengths)}")
    labels = [label for label, _ in columns]
    twice = {label for label in labels if labels.count(label) > 1}
    if twice:
        raise ValueError(f"two columns are named {sorted(twice)[0]!r}: fields of a record need names of their own")
    dtype = np.dtype([(label, values.dtype) for label, values in columns])

    def fill(made: Any) -> None:
        for label, values in columns:
            made[label] = values

    rows = lengths.pop() if lengths else 0
    return empty(rows, dtype, name=name, persist=persist, exist_ok=exist_ok, init=fill).view(np.recarray)


def _columns(table: Any, index: bool, column_dtypes: Any, index_dtypes: Any) -> Any:
    """(name, values, dtypes wanted) of each column."""
    pd, pl, pa = (sys.modules.get(module) for module in ("pandas", "polars", "pyarrow"))
    if pd is not None and isinstance(table, pd.DataFrame):
        if index:
            levels = [table.index.get_level_values(i) for i in range(table.index.nlevels)]
            default = ["index"] if len(levels) == 1 else [f"level_{i}" for i in range(len(levels))]
            for level, otherwise in zip(levels, default, strict=True):
                yield str(otherwise if level.name is None else level.name), level, index_dtypes
        for i, label in enumerate(table.columns):
            yield str(label), table.iloc[:, i], column_dtypes
    elif pl is not None and isinstance(table, pl.DataFrame):
        for column in table.get_columns():
            yield column.name, column, column_dtypes
    elif pa is not None and isinstance(table, (pa.Table, pa.RecordBatch)):
        for label, column in zip(table.schema.names, table.columns, strict=True):
            yield label, column, column_dtypes
    elif isinstance(table, Mapping):
        for label, column in table.items():
            yield str(label), column, column_dtypes
    else:
        raise TypeError(
            f"to_recarray() takes a DataFrame of pandas or polars, a pyarrow.Table or a mapping of columns, not "
            f"{type(table).__name__!r}"
        )


def _wanted(dtypes: Any, label: str, position: int) -> Any:
    if isinstance(dtypes, Mapping):
        return dtypes.get(label, dtypes.get(position))
    return dtypes


def _as_stored(label: str, values: Any, dtype: Any) -> Any:
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
        f"column {label!r} holds {type(bad).__name__} {bad!r}: records in shared memory hold numbers, times and text without "
        f"missing values; convert the column, or say column_dtypes={{{label!r}: ...}}"
    )
