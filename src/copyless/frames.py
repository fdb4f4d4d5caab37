"""Columns of data frames: Arrow arrays whose buffers stand on shared memory, and how they cross to another process.

pandas keeps text in Arrow arrays, and pyarrow copies an array's buffers whenever it pickles it. So flat Arrow arrays
(numbers, text, bytes, dates; no nested or dictionary types) are taken apart here and built again over the same buffers.
Imported only when pyarrow is.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from copyless import pickling
from copyless.core import _native
from copyless.core._memory import Memory

__all__ = ["buffers_of", "is_flat", "move"]


def is_flat(obj: Any) -> bool:
    """Whether an object is an Arrow array that its buffers alone describe."""
    return (
        isinstance(obj, pa.Array)
        and not isinstance(obj, pa.ExtensionArray)
        and obj.type.num_fields == 0
        and not pa.types.is_dictionary(obj.type)
    )


def buffers_of(array: Any) -> list[Any]:
    """The buffers with bytes in them."""
    return [buffer for buffer in array.buffers() if buffer is not None and buffer.size]


def is_shared(array: Any) -> bool:
    return all(_native.find(buffer.address, buffer.size) is not None for buffer in buffers_of(array))


def _rebuild(kind: Any, length: int, buffers: list[Any], nulls: int, offset: int) -> Any:
    over = [buffer if buffer is None else pa.py_buffer(buffer) for buffer in buffers]
    return pa.Array.from_buffers(kind, length, over, nulls, offset)


def move(array: Any) -> Any:
    """The same array over copies of its buffers in shared memory."""
    moved: list[Memory | None] = []
    for buffer in array.buffers():
        if buffer is None:
            moved.append(None)
            continue
        memory = Memory.allocate(buffer.size)
        memory[:] = buffer
        moved.append(memory.toreadonly())
    return _rebuild(array.type, len(array), moved, array.null_count, array.offset)


def _reduce(array: Any) -> Any:
    if not _native.is_open() or not is_flat(array) or not buffers_of(array) or not is_shared(array):
        return array.__reduce_ex__(pickling.protocol())
    parts: list[Any] = []
    for buffer in array.buffers():
        if buffer is None or not buffer.size:
            parts.append(None if buffer is None else b"")
            continue
        handle = _native.handle_of(buffer.address, buffer.size, _native.KIND_MEMORY, pickling.message_kind())
        if handle is None:
            raise ValueError("the array was let go while it was pickled")
        parts.append(_Message(pickling.note(handle + b"r")))
    return _rebuild, (array.type, len(array), parts, array.null_count, array.offset)


class _Message:
    """Stands for a buffer in a pickle, which loads it by its handle."""

    def __init__(self, handle: bytes) -> None:
        self._handle = handle

    def __reduce__(self) -> Any:
        return pickling.load, (self._handle,)


def _every(kind: type) -> list[type]:
    children: list[type] = kind.__subclasses__()
    return [kind, *(below for child in children for below in _every(child))]


# ---- pandas: its Arrow columns join all chunks into a copy when they are pickled, so their state is taken as it is


def is_column(obj: Any) -> bool:
    return type(obj).__module__.partition(".")[0] == "pandas" and isinstance(
        getattr(obj, "_pa_array", None), pa.ChunkedArray
    )


def reduce_column(column: Any) -> Any:
    state = {key: value for key, value in column.__dict__.items() if key != "_cache"}
    return _restore_column, (type(column), state)


def _restore_column(kind: Any, state: dict[str, Any]) -> Any:
    column = kind.__new__(kind)
    column.__dict__.update(state)
    register_columns()
    return column


def register_columns() -> None:
    """Teach multiprocessing's pickler pandas's Arrow columns; called wherever one may be."""
    from pandas.arrays import ArrowExtensionArray, ArrowStringArray

    for kind in (ArrowExtensionArray, ArrowStringArray):
        pickling.register(kind, reduce_column)


for _kind in _every(pa.Array):
    pickling.register(_kind, _reduce)
