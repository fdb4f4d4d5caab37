"""polars: columns whose buffers are all in shared memory are sent as Arrow arrays over them; polars itself pickles the
others.

polars pickles a stream, which copies every buffer. `to_arrow` and `from_arrow` copy nothing. They need pyarrow, which
is imported when a DataFrame is first taken apart. Imported only after polars.
"""

from __future__ import annotations

import pickle
import types
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import polars as pl

from copyless import _loaders
from copyless._libraries.library import Column, Kept, Library, Parts, package_of
from copyless._transfer import in_flight

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["LIBRARY", "crossing", "table_of"]


def _arrow() -> types.ModuleType:
    try:
        from copyless._libraries import arrow
    except ModuleNotFoundError as error:
        if error.name != "pyarrow":
            raise
        raise ImportError(
            "a polars DataFrame is shared as an Arrow table, which needs pyarrow: pip install 'copyless[arrow]'"
        ) from None
    return arrow


# ---- which dtypes have a form in Arrow


_by_arrow: dict[pl.DataType, str] = {}


def _why_not_by_arrow(dtype: pl.DataType) -> str:
    """Why columns of a dtype of polars cannot use Arrow buffers in shared memory; empty if they can.

    polars itself is asked, so that a new dtype, or one without a form in Arrow, is pickled by polars.
    """
    try:
        why = _by_arrow.get(dtype)
    except TypeError:  # a dtype that cannot be hashed
        return _try_arrow(dtype)
    if why is None:
        if len(_by_arrow) > 1024:
            _by_arrow.clear()
        why = _by_arrow[dtype] = _try_arrow(dtype)
    return why


def _try_arrow(dtype: object) -> str:
    if _has_categories(dtype):
        return "polars copies the codes of categories when it imports them: share .to_physical() instead"
    try:
        empty = pl.Series("", [], dtype=dtype).to_frame()
        kept = pl.from_arrow(_to_arrow(empty), rechunk=False).to_series().dtype == dtype
    except Exception as error:
        return (
            f"polars cannot convert {dtype} to pyarrow, so polars pickles the column ({type(error).__name__}: {error})"
        )
    return "" if kept else f"{dtype} would come back from Arrow as another type, so polars pickles the column"


def _has_categories(dtype: object) -> bool:
    if dtype in (pl.Categorical, pl.Enum):
        return True
    inside = [getattr(dtype, name, None) for name in ("inner", "key", "value")]
    inside += [field.dtype for field in getattr(dtype, "fields", None) or ()]
    return any(each is not None and _has_categories(each) for each in inside)


# ---- how they are sent


def _to_arrow(frame: pl.DataFrame) -> pa.Table:
    """An Arrow table over the memory of a polars DataFrame."""
    return frame.to_arrow(compat_level=pl.CompatLevel.newest())


def _parted(
    obj: pl.DataFrame | pl.Series,
    otherwise: Callable[[pl.Series], object],
    wanted: Callable[[pa.ChunkedArray], bool],
) -> tuple[Callable[..., object], tuple[bool, list[object], int]]:
    """(loader, arguments) of a DataFrame or series: columns that `wanted` accepts as Arrow, the others as
    `otherwise` returns them.
    """
    single = isinstance(obj, pl.Series)
    parts: list[object] = []
    for series in [obj] if single else obj.get_columns():
        part: object = None
        if not _why_not_by_arrow(series.dtype):
            table = _to_arrow(series.to_frame())
            if wanted(table.column(0)):
                order = series.flags.get("SORTED_ASC", False) - series.flags.get("SORTED_DESC", False)
                part = series.name, table.schema, table.column(0), order
        parts.append(otherwise(series) if part is None else part)
    return _loaders.polars_table, (single, parts, len(obj))


def _crosses(column: pa.ChunkedArray) -> bool:
    is_shared = _arrow().is_buffer_shared
    return bool(column.nbytes) and all(
        is_shared(buffer) for chunk in column.chunks for buffer in chunk.buffers() if buffer
    )


def _reduce(obj: pl.DataFrame | pl.Series) -> object:
    """The reduction of a polars DataFrame: columns in shared memory as Arrow, the others unchanged."""
    made = _parted(obj, _Plainly, _crosses)
    return made if any(type(part) is tuple for part in made[1][1]) else obj.__reduce_ex__(in_flight.protocol())


class _Plainly:
    """A series that polars pickles."""

    def __init__(self, series: object) -> None:
        self._series = series

    def __reduce__(self) -> tuple[object, ...]:
        return _loaders.mpi_inline, (pickle.dumps(self._series, 5),)  # this pickle has no buffers beside it


def table_of(
    single: bool, parts: list[pl.Series | tuple[str, pa.Schema, pa.ChunkedArray, int]], height: int
) -> pl.DataFrame | pl.Series:
    """A DataFrame, or (`single`) a series, of its columns."""
    LIBRARY.register()
    made = [_column_of(*part) if type(part) is tuple else part for part in parts]
    return made[0] if single else pl.DataFrame(made) if made else pl.DataFrame(height=height)


def _column_of(name: str, schema: pa.Schema, column: pa.ChunkedArray, order: int) -> pl.Series:
    import pyarrow as pa

    # The fields of the schema have information that the Arrow type alone lacks.
    series = pl.from_arrow(pa.table([column], schema=schema), rechunk=False).to_series().alias(name)
    return series.set_sorted(descending=order < 0) if order else series


crossing = in_flight.or_as_pickle(_reduce)


# ---- the answers


class _Polars(Library):
    def owns(self, kind: type) -> bool:
        return package_of(kind) == "polars" or issubclass(kind, (pl.DataFrame, pl.Series))

    def apart(self, obj: object, moves: bool) -> tuple[object, bool | None]:
        if type(obj) not in (pl.DataFrame, pl.Series):
            return NotImplemented, None
        _arrow()
        self.register()
        return _parted(obj, Kept, lambda column: True), None

    def register(self) -> None:
        for kind in (pl.DataFrame, pl.Series):
            in_flight.register(kind, crossing)

    def parts(self, obj: object) -> Parts | None:
        if not _is_polars(obj):
            return None
        if isinstance(obj, pl.DataFrame):
            found = [(f"column {column.name!r}", column) for column in obj.get_columns()]
        elif isinstance(obj, pl.Series):
            found = [(f"series {obj.name!r}", obj)]
        else:
            return None
        return f"{type(obj).__name__} of {len(obj):,} rows", found

    def columns(self, table: object) -> Iterable[Column] | None:
        if not isinstance(table, pl.DataFrame):
            return None
        return [(column.name, column, False) for column in table.get_columns()]

    def why_copied(self, part: object) -> str:
        if not _is_polars(part) or not hasattr(part, "dtype"):
            return ""
        try:
            _arrow()
        except ImportError:
            return "a polars DataFrame is shared as an Arrow table, which needs pyarrow: pip install 'copyless[arrow]'"
        return _why_not_by_arrow(part.dtype)


def _is_polars(obj: object) -> bool:
    return package_of(type(obj)) == "polars"


LIBRARY = _Polars()
