"""Arrow: its buffers in shared memory, which the tables of pyarrow, pandas and polars use.

An Arrow array of any type, including nested and dictionary types, consists of a description and buffers, and is pickled
so. Therefore a *buffer* is moved into shared memory and sent as a handle; arrays and tables follow from that.

Imported only after pyarrow.
"""

from __future__ import annotations

from collections.abc import Iterable

import pyarrow as pa

from copyless import _loaders
from copyless._core import _copying, _handles, _store
from copyless._libraries.library import Column, Library, Parts, package_of, subclasses
from copyless._transfer import in_flight, reductions
from copyless._transfer._memory import Memory

__all__ = ["LIBRARY", "buffer_kinds", "buffer_of", "is_buffer_shared"]


def buffer_kinds() -> list[type]:
    """Every class of buffers."""
    return subclasses(pa.Buffer)


def is_buffer_shared(buffer: pa.Buffer) -> bool:
    """Whether a buffer is in shared memory, or has no bytes."""
    return not buffer.size or _handles.find(buffer.address, buffer.size) is not None


def buffer_of(handle: bytes) -> pa.Buffer:
    """The buffer over the memory of a handle."""
    return pa.py_buffer(reductions.load(handle))


def _reduce_buffer(buffer: pa.Buffer) -> object:
    if buffer.size and _store.is_open():
        handle = _handles.handle_of(buffer.address, buffer.size, _handles.KIND_MEMORY, in_flight.message_kind())
        if handle is not None:
            return _loaders.arrow_buffer, (in_flight.note(handle + b"r"),)
    return buffer.__reduce_ex__(in_flight.protocol())


_crossing = in_flight.or_as_pickle(_reduce_buffer)


def _compact(array: pa.Array) -> pa.Array:
    """The array itself, or a copy if it is a small part of its buffers."""
    return pa.concat_arrays([array]) if array.get_total_buffer_size() > 2 * array.nbytes + 4096 else array


class _Arrow(Library):
    def owns(self, kind: type) -> bool:
        return package_of(kind) == "pyarrow" or issubclass(
            kind, (pa.Buffer, pa.Array, pa.ChunkedArray, pa.Table, pa.RecordBatch)
        )

    def memory_of(self, obj: object) -> tuple[int, int] | None:
        # The Python objects for a buffer are temporary; its address identifies it.
        return (obj.address, obj.size) if isinstance(obj, pa.Buffer) and obj.size else None

    def move(self, piece: pa.Buffer) -> pa.Buffer:
        memory = Memory.allocate(piece.size)
        _copying.copy_parts(memory, [piece], 1)
        return pa.py_buffer(memory.toreadonly())

    def apart(self, obj: object, moves: bool) -> tuple[object, bool | None]:
        return (_compact(obj).__reduce__() if moves and isinstance(obj, pa.Array) else NotImplemented), None

    def register(self) -> None:
        for kind in buffer_kinds():
            in_flight.register(kind, _crossing)

    def parts(self, obj: object) -> Parts | None:
        if isinstance(obj, (pa.Table, pa.RecordBatch)):
            found = [(f"column {name!r}", column) for name, column in zip(obj.schema.names, obj.columns, strict=True)]
        elif isinstance(obj, (pa.Array, pa.ChunkedArray)):
            found = [("array", obj)]
        else:
            return None
        return f"{type(obj).__name__} of {len(obj):,} rows", found

    def describe(self, part: object) -> str | None:
        return str(part.type) if isinstance(part, (pa.Array, pa.ChunkedArray)) else None

    def columns(self, table: object) -> Iterable[Column] | None:
        if not isinstance(table, (pa.Table, pa.RecordBatch)):
            return None
        return [(label, column, False) for label, column in zip(table.schema.names, table.columns, strict=True)]


LIBRARY = _Arrow()
LIBRARY.register()
