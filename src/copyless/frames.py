"""Tables: Arrow buffers in shared memory, and how tables of pandas, polars and pyarrow that stand on them cross.

An Arrow array of any type, nested and dictionary ones too, is a description and some buffers, and pickles as such; so a
*buffer* is what is moved into shared memory and what crosses as its handle, and arrays, tables and the columns that pandas
keeps in Arrow follow from it. Two libraries would join or copy the buffers when they pickle, and are taken apart here: pandas,
whose Arrow columns join their chunks, and polars, which writes a stream.

Imported only when pyarrow is.
"""

from __future__ import annotations

import pickle
import sys
from typing import Any

import pyarrow as pa

from copyless import _loaders, pickling
from copyless._core import _copying, _handles, _store
from copyless._core._memory import Memory

__all__ = ["is_buffer", "is_buffer_shared", "move", "reduction"]


def _every(kind: type) -> list[type]:
    children: list[type] = kind.__subclasses__()
    return [kind, *(below for child in children for below in _every(child))]


# ---- buffers


def is_buffer(obj: Any) -> bool:
    return isinstance(obj, pa.Buffer)


def is_buffer_shared(buffer: Any) -> bool:
    return not buffer.size or _handles.find(buffer.address, buffer.size) is not None


def move(buffer: Any) -> Any:
    """A buffer with the same bytes in shared memory; one copy."""
    memory = Memory.allocate(buffer.size)
    _copying.copy_parts(memory, [buffer], 1)
    return pa.py_buffer(memory.toreadonly())


def _compact(array: Any) -> Any:
    """The array itself, or a copy where it is a small part of what its buffers hold."""
    return pa.concat_arrays([array]) if array.get_total_buffer_size() > 2 * array.nbytes + 4096 else array


def _buffer_of(handle: bytes) -> Any:
    return pa.py_buffer(pickling.load(handle))


def _reduce_buffer(buffer: Any) -> Any:
    if buffer.size and _store.is_open():
        handle = _handles.handle_of(buffer.address, buffer.size, _handles.KIND_MEMORY, pickling.message_kind())
        if handle is not None:
            return _loaders.arrow_buffer, (pickling.note(handle + b"r"),)
    return buffer.__reduce_ex__(pickling.protocol())


for _kind in _every(pa.Buffer):
    pickling.register(_kind, _reduce_buffer)


# ---- pandas: the state of an Arrow column is taken as it is


def _is_pandas_column(obj: Any) -> bool:
    return type(obj).__module__.partition(".")[0] == "pandas" and isinstance(
        getattr(obj, "_pa_array", None), pa.ChunkedArray
    )


def _reduce_column(column: Any) -> Any:
    state = {key: value for key, value in column.__dict__.items() if key != "_cache"}
    return _loaders.pandas_column, (type(column), state)


def _restore_column(kind: Any, state: dict[str, Any]) -> Any:
    column = kind.__new__(kind)
    column.__dict__.update(state)
    _register_pandas()
    return column


def _register_pandas() -> None:
    from pandas.arrays import ArrowExtensionArray

    for kind in _every(ArrowExtensionArray):
        pickling.register(kind, _reduce_column)


# ---- polars: columns whose buffers all lie in shared memory cross as Arrow arrays over them, the others as polars has it


def _is_polars(obj: Any) -> bool:
    pl = sys.modules.get("polars")
    return pl is not None and isinstance(obj, (pl.DataFrame, pl.Series))


def _to_arrow(frame: Any) -> Any:
    """An Arrow table over the very memory of a polars frame (categories apart, which are copied)."""
    import polars as pl

    return frame.to_arrow(compat_level=pl.CompatLevel.newest())


def _polars_by_arrow(obj: Any) -> Any:
    """As a frame of polars goes into shared memory: all its columns as Arrow."""
    import polars as pl

    _register_polars()
    frame = obj if isinstance(obj, pl.DataFrame) else obj.to_frame()
    return _loaders.polars_frame, (isinstance(obj, pl.Series), list(frame.columns), _to_arrow(frame).columns, frame.height)


def _reduce_polars(obj: Any) -> Any:
    """As a frame of polars crosses: columns in shared memory as Arrow, and the others as they are."""
    import polars as pl

    frame = obj if isinstance(obj, pl.DataFrame) else obj.to_frame()
    columns = [
        column if all(is_buffer_shared(buffer) for chunk in column.chunks for buffer in chunk.buffers() if buffer) else None
        for column in _to_arrow(frame).columns
    ]
    if not any(column is not None and column.nbytes for column in columns):
        return obj.__reduce_ex__(4)
    parts = [_Plainly(frame.to_series(i)) if column is None else column for i, column in enumerate(columns)]
    return _loaders.polars_frame, (isinstance(obj, pl.Series), list(frame.columns), parts, frame.height)


class _Plainly:
    """A series that goes as polars pickles it."""

    def __init__(self, series: Any) -> None:
        self._series = series

    def __reduce__(self) -> Any:
        return pickle.loads, (pickle.dumps(self._series, 5),)


def _restore_polars(single: bool, names: list[str], columns: list[Any], height: int) -> Any:
    import polars as pl

    _register_polars()
    made = [
        column.alias(name)
        if isinstance(column, pl.Series)
        else pl.from_arrow(pa.table([column], names=[name]), rechunk=False).to_series()
        for name, column in zip(names, columns, strict=True)
    ]
    return made[0] if single else pl.DataFrame(made) if made else pl.DataFrame(height=height)


def _register_polars() -> None:
    import polars as pl

    for kind in (pl.DataFrame, pl.Series):
        pickling.register(kind, _reduce_polars)


# ---- what `share` asks


def reduction(obj: Any, moves: bool) -> Any:
    """How `share` takes an object apart, so that its buffers come one by one; NotImplemented: as pickle does.

    `moves`: they are about to be moved; else they are only looked at.
    """
    if isinstance(obj, pa.Array):
        return _compact(obj).__reduce__() if moves else NotImplemented
    if _is_pandas_column(obj):
        _register_pandas()
        return _reduce_column(obj)
    if _is_polars(obj):
        return _polars_by_arrow(obj)
    return NotImplemented
