"""`explain`: which parts of an object are sent to another process by handle, and which are copied.

The result is measured: each part is pickled as for a queue, and the message is examined for handles and copied bytes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from copyless import _libraries, _share
from copyless._core import _handles
from copyless._storage.store import ensure_open
from copyless._transfer import handles, in_flight, packing, shared_array

__all__ = ["Explanation", "Part", "explain"]

_SHOWN = 60  # rows of a table that is printed; all are in `parts`


class Part(NamedTuple):
    """One part of an object, as `explain` found it.

    Attributes
    ----------
    path : str
        The place in the object: ``['image']``, ``column 'price'``.
    kind : str
        Dtype and shape, or the type.
    shared : int
        Bytes in shared memory, for which only a handle is sent.
    copied : int
        Bytes that are copied into each message.
    why : str
        Why they are copied, and what to do about it; empty if little or nothing is copied.
    """

    path: str
    kind: str
    shared: int
    copied: int
    why: str


class Explanation:
    """The result of `explain`. It prints as a table, as text and in a notebook, and iterates over its parts.

    Attributes
    ----------
    title : str
        What the object is.
    parts : list of Part
        One for each part of the object.
    shared_bytes, copied_bytes : int
        Sums over the parts, in bytes.
    """

    title: str
    parts: list[Part]

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
                [
                    row[0].ljust(widths[0]),
                    row[1].ljust(widths[1]),
                    row[2].rjust(widths[2]),
                    row[3].rjust(widths[3]),
                    row[4],
                ]
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


def explain(obj: object) -> Explanation:
    """Which parts of an object are sent to another process by handle, and which are copied into each message.

    Parameters
    ----------
    obj : object
        A DataFrame of pandas or polars or a `pyarrow.Table` (explained by column), an array, a list, tuple, dict or
        dataclass (by item), a module of PyTorch (by parameter and buffer), or any other object that can be pickled.

    Returns
    -------
    Explanation
        Prints as a table. Programs use `parts`, `shared_bytes` and `copied_bytes`.

    Raises
    ------
    TypeError, pickle.PicklingError
        For an object that cannot be pickled, as sending it would.

    Notes
    -----
    Pickles each part once: the copied parts take as long as they would take to send.

    Examples
    --------
    >>> import copyless, numpy as np
    >>> report = copyless.explain({"image": copyless.zeros((480, 640)), "private": np.ones(1000)})
    >>> image, private = report
    >>> image.kind, image.shared, image.copied
    ('float64 (480, 640)', 2457600, 0)
    >>> private.shared, private.why
    (0, 'is in private memory: copyless.share() moves it')
    """
    ensure_open()
    title, parts = _parts_of(obj)
    return Explanation(title, [_weigh(path, part) for path, part in parts])


def _size(nbytes: int) -> str:
    return f"{nbytes:,} B"


def _weigh(path: str, obj: object) -> Part:
    kind = _kind_of(obj)
    library = _libraries.of(obj)
    why = "" if library is None else library.why_not_packed(obj)
    if why:
        return Part(path, kind, 0, 0, why)
    with in_flight.fallbacks() as failed:
        data, buffers, made = packing.pack(obj)
    try:
        shared = sum(_named_by(handle) for handle in made)
    finally:
        for handle in made:
            _handles.unsend(handle)
    # A handle and the pickle around it take some hundred bytes: they do not count as copied data.
    copied = sum(buffer.nbytes for buffer in buffers) + (0 if made and len(data) < 512 * len(made) else len(data))
    return Part(path, kind, shared, copied, _why(obj, copied, failed) if copied > 1024 else "")


def _named_by(handle: bytes) -> int:
    """Bytes that a handle names. For an array: the bytes of its elements, without the gaps between them."""
    kind, _, nbytes, *_ = _handles.wire_fields(handle)
    if kind != _handles.KIND_ARRAY:
        return nbytes
    dtype, shape, *_ = handles.decode_spec(handle[_handles.WIRE_SIZE :])
    return int(dtype.itemsize * np.prod(shape, dtype="i8"))


def _kind_of(obj: object) -> str:
    library = _libraries.of(obj)
    described = None if library is None else library.describe(obj)
    if described is not None:
        return described
    dtype = getattr(obj, "dtype", None)
    if isinstance(obj, np.ndarray):
        return f"{obj.dtype} {obj.shape}" if obj.dtype.fields is None else f"{type(obj).__name__} {obj.shape}"
    return str(dtype) if dtype is not None and not callable(dtype) else type(obj).__name__


def _why(obj: object, copied: int, failed: list[str]) -> str:
    kind = _kind_of(obj)
    if failed:
        return f"is pickled by its own type, because sending it by handle failed: {failed[0]}"
    if (isinstance(obj, np.ndarray) and obj.dtype.hasobject) or kind == "object":
        return "Python objects cannot be shared; for text use .astype('string[pyarrow]') or 'category', then share()"
    library = _libraries.of(obj)
    if library is not None and (why := library.why_copied(obj)):
        return why
    if isinstance(obj, np.ndarray) and (why := shared_array.why_not_moved(obj)):
        return why
    if _share.would_move(obj):
        return "is in private memory: copyless.share() moves it"
    if isinstance(obj, (bytes, str)):
        return f"{type(obj).__name__} is copied by value: a bytearray or an array of it can be shared"
    return "is copied by value: nothing more of it can be shared" if copied >= in_flight.BESIDE else ""


# ---- parts


def _parts_of(obj: object) -> tuple[str, list[tuple[str, object]]]:
    """A title, and the parts of an object with their paths."""
    found = _libraries.parts_of(obj)
    if found is not None:
        return found
    name = type(obj).__name__
    if isinstance(obj, np.ndarray):
        return name, [("array", obj)]
    if isinstance(obj, dict):
        return f"{name} of {len(obj)}", [(f"[{key!r}]", value) for key, value in obj.items()]
    if isinstance(obj, (list, tuple)):
        fields = getattr(obj, "_fields", None)
        return f"{name} of {len(obj)}", [
            (f".{fields[i]}" if fields else f"[{i}]", value) for i, value in enumerate(obj)
        ]
    if dataclasses.is_dataclass(obj) and not isinstance(obj, type):
        return name, [(f".{attribute}", value) for attribute, value in _share.attributes_of(obj).items()]
    return name, [("object", obj)]


for _public in (explain, Explanation):
    _public.__module__ = "copyless"  # the public module, for users and pickles
