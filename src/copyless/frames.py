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
    pickling.register(_kind, pickling.or_as_pickle(_reduce_buffer))


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
        pickling.register(kind, _column_crossing)


_column_crossing = pickling.or_as_pickle(_reduce_column)


# ---- polars: columns whose buffers all lie in shared memory cross as Arrow arrays over them, the others as polars has it


def _is_polars(obj: Any) -> bool:
    pl = sys.modules.get("polars")
    return pl is not None and type(obj) in (pl.DataFrame, pl.Series)


_by_arrow: dict[Any, str] = {}


def why_not_by_arrow(dtype: Any) -> str:
    """Why columns of a dtype of polars cannot stand on Arrow buffers in shared memory; empty where they can.

    Asked of polars itself, so that a dtype which is new, or has no form in Arrow, goes as polars pickles it.
    """
    try:
        why = _by_arrow.get(dtype)
    except TypeError:  # one that cannot be hashed
        return _try_arrow(dtype)
    if why is None:
        if len(_by_arrow) > 1024:
            _by_arrow.clear()
        why = _by_arrow[dtype] = _try_arrow(dtype)
    return why


def _try_arrow(dtype: Any) -> str:
    import polars as pl

    if _has_categories(dtype):
        return "polars copies the codes of categories when it takes them in: .to_physical() can be shared"
    try:
        empty = pl.Series("", [], dtype=dtype).to_frame()
        kept = pl.from_arrow(_to_arrow(empty), rechunk=False).to_series().dtype == dtype
    except Exception as error:
        return f"polars cannot give {dtype} to pyarrow, so it goes as polars pickles it ({type(error).__name__}: {error})"
    return "" if kept else f"{dtype} would come back from Arrow as another type, so it goes as polars pickles it"


def _has_categories(dtype: Any) -> bool:
    import polars as pl

    if dtype in (pl.Categorical, pl.Enum):
        return True
    inside = [getattr(dtype, name, None) for name in ("inner", "key", "value")]
    inside += [field.dtype for field in getattr(dtype, "fields", None) or ()]
    return any(each is not None and _has_categories(each) for each in inside)


def _to_arrow(frame: Any) -> Any:
    """An Arrow table over the very memory of a polars frame."""
    import polars as pl

    return frame.to_arrow(compat_level=pl.CompatLevel.newest())


def _of_polars(obj: Any, otherwise: Any, wanted: Any) -> tuple[Any, tuple[bool, list[Any], int]]:
    """(loader, arguments) of a frame or series: columns that `wanted` accepts as Arrow, and the others as `otherwise` has it."""
    import polars as pl

    single = isinstance(obj, pl.Series)
    parts: list[Any] = []
    for series in [obj] if single else obj.get_columns():
        part = None
        if not why_not_by_arrow(series.dtype):
            table = _to_arrow(series.to_frame())
            if wanted(table.column(0)):
                order = series.flags.get("SORTED_ASC", False) - series.flags.get("SORTED_DESC", False)
                part = series.name, table.schema, table.column(0), order
        parts.append(otherwise(series) if part is None else part)
    return _loaders.polars_table, (single, parts, len(obj))


def _crosses(column: Any) -> bool:
    return bool(column.nbytes) and all(
        is_buffer_shared(buffer) for chunk in column.chunks for buffer in chunk.buffers() if buffer
    )


def _reduce_polars(obj: Any) -> Any:
    """As a frame of polars crosses: columns in shared memory as Arrow, and the others as they are."""
    made = _of_polars(obj, _Plainly, _crosses)
    return made if any(type(part) is tuple for part in made[1][1]) else obj.__reduce_ex__(pickling.protocol())


class _Plainly:
    """A series that goes as polars pickles it."""

    def __init__(self, series: Any) -> None:
        self._series = series

    def __reduce__(self) -> Any:
        return _loaders.mpi_inline, (pickle.dumps(self._series, 5),)  # which has no buffers, here


def _restore_table(single: bool, parts: list[Any], height: int) -> Any:
    import polars as pl

    _register_polars()
    made = [_restore_column_of_polars(*part) if type(part) is tuple else part for part in parts]
    return made[0] if single else pl.DataFrame(made) if made else pl.DataFrame(height=height)


def _restore_column_of_polars(name: str, schema: Any, column: Any, order: int) -> Any:
    import polars as pl

    # The schema's fields say what the Arrow type alone does not.
    series = pl.from_arrow(pa.table([column], schema=schema), rechunk=False).to_series().alias(name)
    return series.set_sorted(descending=order < 0) if order else series


def _register_polars() -> None:
    import polars as pl

    for kind in (pl.DataFrame, pl.Series):
        pickling.register(kind, _polars_crossing)


_polars_crossing = pickling.or_as_pickle(_reduce_polars)


# ---- what `share` asks


def reduction(obj: Any, moves: bool, kept: Any) -> Any:
    """How `share` takes an object apart, so that its buffers come one by one; NotImplemented: as pickle does.

    `moves`: they are about to be moved; else they are only looked at. `kept` wraps a part that stays as it is.
    """
    if isinstance(obj, pa.Array):
        return _compact(obj).__reduce__() if moves else NotImplemented
    if _is_pandas_column(obj):
        _register_pandas()
        return _reduce_column(obj)
    if _is_polars(obj):
        _register_polars()
        return _of_polars(obj, kept, lambda column: True)
    return NotImplemented
