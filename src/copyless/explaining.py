"""`explain`: which parts of an object cross to another process by handle, and which are copied.

Nothing is guessed: each part is pickled as for one of our queues, and what its message names in shared memory is told
from what it carries.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from copyless import arrays, pickling, sharing
from copyless._core import _handles
from copyless.storage import handles
from copyless.storage.store import need

__all__ = ["Explanation", "Part", "explain"]

_SHOWN = 60  # rows of a table that is printed; all are in `parts`


class Part(NamedTuple):
    """One part of an object, as `explain` found it.

    Attributes
    ----------
    path : str
        Where in the object: ``['image']``, ``column 'price'``.
    kind : str
        What it is: dtype and shape, or the type.
    shared : int
        Bytes that lie in shared memory, of which only the handle crosses.
    copied : int
        Bytes that are copied into each message.
    why : str
        Why they are copied, and what to do about it; empty where little or nothing is.
    """

    path: str
    kind: str
    shared: int
    copied: int
    why: str


class Explanation:
    """What `explain` found: a table as text and in a notebook.

    Attributes
    ----------
    parts : list of Part
    shared_bytes, copied_bytes : int
        Sums over the parts.
    """

    def __init__(self, title: str, parts: list[Part]) -> None:
        self.title, self.parts = title, parts

    @property
    def shared_bytes(self) -> int:
        return sum(part.shared for part in self.parts)

    @property
    def copied_bytes(self) -> int:
        return sum(part.copied for part in self.parts)

    def __iter__(self) -> Iterator[Part]:
        return iter(self.parts)

    def __len__(self) -> int:
        return len(self.parts)

    def _rows(self) -> list[tuple[str, ...]]:
        rows = [(p.path, p.kind, _size(p.shared), _size(p.copied), p.why) for p in self.parts[:_SHOWN]]
        if len(self.parts) > _SHOWN:
            rows.append((f"... {len(self.parts) - _SHOWN:,} more", "", "", "", ""))
        return [*rows, ("all", "", _size(self.shared_bytes), _size(self.copied_bytes), "")]

    def __repr__(self) -> str:
        rows = [("part", "what", "by handle", "copied", "why"), *self._rows()]
        widths = [max(len(row[i]) for row in rows) for i in range(4)]
        lines = [
            "  ".join(
                [row[0].ljust(widths[0]), row[1].ljust(widths[1]), row[2].rjust(widths[2]), row[3].rjust(widths[3]), row[4]]
            ).rstrip()
            for row in rows
        ]
        return "\n".join([self.title, *lines])

    def _repr_html_(self) -> str:
        import html

        def row(cells: tuple[str, ...], tag: str) -> str:
            return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

        head = row(("part", "what", "by handle", "copied", "why"), "th")
        body = "".join(row(cells, "td") for cells in self._rows())
        return f"<table><caption>{html.escape(self.title)}</caption>{head}{body}</table>"


def explain(obj: Any) -> Explanation:
    """Which parts of an object cross to another process by handle, and which are copied into each message.

    Parameters
    ----------
    obj : object
        A DataFrame of pandas or polars, a `pyarrow.Table` (each by column), an array, a list, tuple, dict or dataclass
        (each by item), a module of PyTorch (by parameter and buffer), or anything else that can be pickled.

    Returns
    -------
    Explanation
        Prints as a table; `parts`, `shared_bytes`, `copied_bytes` are for programs.

    Raises
    ------
    TypeError, pickle.PicklingError
        For what cannot be pickled, as sending it would.

    Notes
    -----
    Pickles each part once, so what is copied costs its time here as it would when sent.

    Examples
    --------
    >>> import copyless, numpy as np
    >>> report = copyless.explain({"image": copyless.zeros((480, 640)), "private": np.ones(1000)})
    >>> image, private = report
    >>> image.kind, image.shared, image.copied
    ('float64 (480, 640)', 2457600, 0)
    >>> private.shared, private.why
    (0, 'lies in private memory: copyless.share() moves it')
    """
    need()
    title, parts = parts_of(obj)
    return Explanation(title, [_weigh(path, part) for path, part in parts])


def _size(nbytes: int) -> str:
    return f"{nbytes:,} B"


def _weigh(path: str, obj: Any) -> Part:
    kind = _kind_of(obj)
    if _is_tensor(obj):
        from copyless import tensors

        if tensors.is_torchs(obj):  # packing it would make a descriptor
            return Part(path, kind, 0, 0, tensors.why_copied(obj))
    with pickling.fallbacks() as failed:
        data, buffers, made = pickling.pack(obj)
    try:
        shared = sum(_named_by(handle) for handle in made)
    finally:
        for handle in made:
            _handles.unsend(handle)
    # A handle and its surroundings are a few hundred bytes: the message, not the thing.
    copied = sum(buffer.nbytes for buffer in buffers) + (0 if made and len(data) < 512 * len(made) else len(data))
    return Part(path, kind, shared, copied, _why(obj, copied, failed) if copied > 1024 else "")


def _named_by(handle: bytes) -> int:
    """Bytes that a handle names; of an array those of its elements, not what lies between."""
    kind, _, nbytes, *_ = _handles.wire_fields(handle)
    if kind != _handles.KIND_ARRAY:
        return nbytes
    dtype, shape, *_ = handles.decode_spec(handle[_handles.WIRE_SIZE :])
    return int(dtype.itemsize * np.prod(shape, dtype="i8"))


def _kind_of(obj: Any) -> str:
    if type(obj).__name__ == "MultiIndex":
        return f"MultiIndex of {obj.nlevels} levels"
    dtype = getattr(obj, "dtype", None)
    if _is_tensor(obj):
        return f"{dtype} {tuple(obj.shape)}"
    if isinstance(obj, np.ndarray):
        return f"{obj.dtype} {obj.shape}" if obj.dtype.fields is None else f"{type(obj).__name__} {obj.shape}"
    if dtype is None:
        dtype = getattr(obj, "type", None)  # of Arrow
    return str(dtype) if dtype is not None and not callable(dtype) else type(obj).__name__


def _is_tensor(obj: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(obj, torch.Tensor)


def _why(obj: Any, copied: int, failed: list[str]) -> str:
    kind = _kind_of(obj)
    if failed:
        return f"goes as its own type pickles it, because its way by handle failed: {failed[0]}"
    if (isinstance(obj, np.ndarray) and obj.dtype.hasobject) or kind == "object":
        return "Python objects are addresses of one process; text: .astype('string[pyarrow]') or 'category', then share()"
    if type(obj).__module__.startswith("polars") and (why := _why_of_polars(obj)):
        return why
    if _is_tensor(obj):
        from copyless import tensors

        return tensors.why_copied(obj)
    if isinstance(obj, np.ndarray) and (why := arrays.why_not_moved(obj)):
        return why
    if sharing.would_move(obj):
        return "lies in private memory: copyless.share() moves it"
    if isinstance(obj, (bytes, str)):
        return f"{type(obj).__name__} goes by value: a bytearray or an array of it can be shared"
    return "goes by value: nothing more of it can be shared" if copied >= pickling.BESIDE else ""


def _why_of_polars(series: Any) -> str:
    try:
        from copyless import frames
    except ModuleNotFoundError:
        return "polars goes into shared memory as Arrow, which needs pyarrow: pip install 'copyless[arrow]'"
    return frames.why_not_by_arrow(series.dtype) if hasattr(series, "dtype") else ""


# ---- parts


def parts_of(obj: Any) -> tuple[str, list[tuple[str, Any]]]:
    name = type(obj).__name__
    for module, apart in (("pandas", _of_pandas), ("polars", _of_polars), ("pyarrow", _of_arrow)):
        if module in sys.modules and type(obj).__module__.partition(".")[0] == module:
            parts = apart(sys.modules[module], obj)
            if parts is not None:
                return f"{name} of {len(obj):,} rows", parts
    if isinstance(obj, np.ndarray):
        return name, [("array", obj)]
    if "torch" in sys.modules:
        parts = _of_torch(sys.modules["torch"], obj)
        if parts is not None:
            return name, parts
    if isinstance(obj, dict):
        return f"{name} of {len(obj)}", [(f"[{key!r}]", value) for key, value in obj.items()]
    if isinstance(obj, (list, tuple)):
        fields = getattr(obj, "_fields", None)
        return f"{name} of {len(obj)}", [
            (f".{fields[i]}" if fields else f"[{i}]", value) for i, value in enumerate(obj)
        ]
    if dataclasses.is_dataclass(obj) and not isinstance(obj, type):
        return name, [(f".{attribute}", value) for attribute, value in sharing._attributes_of(obj).items()]
    return name, [("object", obj)]


def _of_pandas(pd: Any, obj: Any) -> list[tuple[str, Any]] | None:
    def values(column: Any) -> Any:
        array = column.array
        return array.to_numpy(copy=False) if type(array).__name__ in ("NumpyExtensionArray", "PandasArray") else array

    if isinstance(obj, pd.DataFrame):
        columns = [(f"column {name!r}", values(obj.iloc[:, i])) for i, name in enumerate(obj.columns)]
    elif isinstance(obj, pd.Series):
        columns = [(f"series {obj.name!r}", values(obj))]
    else:
        return None
    if isinstance(obj.index, pd.RangeIndex):
        return columns
    return [("index", obj.index), *columns]


def _of_polars(pl: Any, obj: Any) -> list[tuple[str, Any]] | None:
    if isinstance(obj, pl.DataFrame):
        return [(f"column {column.name!r}", column) for column in obj.get_columns()]
    return [(f"series {obj.name!r}", obj)] if isinstance(obj, pl.Series) else None


def _of_arrow(pa: Any, obj: Any) -> list[tuple[str, Any]] | None:
    if isinstance(obj, (pa.Table, pa.RecordBatch)):
        return [(f"column {name!r}", column) for name, column in zip(obj.schema.names, obj.columns, strict=True)]
    return [("array", obj)] if isinstance(obj, (pa.Array, pa.ChunkedArray)) else None


def _of_torch(torch: Any, obj: Any) -> list[tuple[str, Any]] | None:
    if isinstance(obj, torch.Tensor):
        return [("tensor", obj)]
    if isinstance(obj, torch.nn.Module):
        return [*obj.named_parameters(), *obj.named_buffers()]
    return None
