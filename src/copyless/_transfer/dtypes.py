"""dtypes as text that is read back without pickle: exactly, with metadata, alignment, offsets, titles and record types.

Two dtypes that NumPy considers equal may differ in all of these, so nothing here is looked up by equality alone.
"""

from __future__ import annotations

from copyless._first_use import first_use
from copyless._typing import Any

__all__ = ["NotDescribed", "dtype_from_bytes", "dtype_to_bytes", "remembered_dtype"]

_LITERALS = (str, bytes, int, float, complex, bool, type(None))


class NotDescribed(TypeError):
    """A dtype that text cannot describe completely; a pickle can."""


def dtype_to_bytes(dtype: Any) -> bytes:
    """A dtype as text. TypeError for a dtype with Python objects, or one that text cannot describe completely."""
    if dtype.hasobject:
        raise TypeError(
            f"dtype {dtype} holds Python objects, whose addresses mean nothing in another process: choose a "
            "dtype without objects"
        )
    described = _describe(dtype)
    return described.encode() if type(described) is str else b"+" + repr(described).encode()


def dtype_from_bytes(text: bytes) -> Any:
    with first_use:  # forks wait for the end of this block
        import ast

    return _build(ast.literal_eval(text[1:].decode()) if text.startswith(b"+") else text.decode())


def _describe(dtype: Any) -> object:
    """The text for a plain dtype, otherwise a dict of literals."""
    described: dict[str, object]
    if dtype.names is not None:
        described = {"fields": [_field(name, *dtype.fields[name]) for name in dtype.names], "size": dtype.itemsize}
        if dtype.isalignedstruct:
            described["aligned"] = True
    elif dtype.subdtype is not None:
        described = {"of": _describe(dtype.subdtype[0]), "shape": dtype.subdtype[1]}
    else:
        described = {"type": _leaf(dtype)}
    kind = dtype.type
    if dtype.kind == "V" and kind.__module__ != "ml_dtypes" and dtype.subdtype is None and kind.__name__ != "void":
        if (kind.__module__, kind.__name__) not in (("numpy", "record"), ("numpy.rec", "record")):
            raise NotDescribed(f"dtype {dtype!r} is an instance of {kind.__qualname__}, which a handle cannot describe")
        described["record"] = True
    if dtype.metadata is not None:
        described["metadata"] = _literal(dtype, dict(dtype.metadata))
    return described["type"] if list(described) == ["type"] else described


def _field(name: str, dtype: object, offset: int, title: object = None) -> tuple[object, ...]:
    return (
        (name, _describe(dtype), offset) if title is None else (name, _describe(dtype), offset, _literal(dtype, title))
    )


def _leaf(dtype: Any) -> str:
    import numpy as np

    if dtype.type.__module__ == "ml_dtypes":
        return f"ml:{dtype.name}"
    text: str = dtype.str
    try:
        same = np.dtype(text)
    except TypeError:
        same = None
    # NumPy's own pickles, too, treat a long and a long long of the same size as one type.
    if same is None or same != dtype or (same.type is not dtype.type and dtype.kind not in "iuV"):
        raise NotDescribed(f"dtype {dtype!r} is not one of NumPy's own, and a handle cannot describe it")
    return text


def _literal(dtype: object, value: object) -> object:
    if not _is_literal(value):
        raise NotDescribed(
            f"the metadata or a title of dtype {dtype!r} contains more than text, numbers, tuples, lists and "
            f"dicts ({value!r}), which a name or a handle cannot describe: send the array itself through a "
            "queue or a pool"
        )
    return value


def _is_literal(value: Any) -> bool:
    if type(value) is dict:
        return all(_is_literal(key) and _is_literal(each) for key, each in value.items())
    if type(value) in (tuple, list):
        return all(map(_is_literal, value))
    if type(value) in (float, complex):
        return bool(abs(value) < float("inf"))  # the text of inf and nan is not a literal
    return type(value) in _LITERALS


def _build(described: Any) -> object:
    import numpy as np

    if type(described) is str:
        if not described.startswith("ml:"):
            return np.dtype(described)
        try:
            import ml_dtypes
        except ImportError:
            raise ImportError(
                f"an array of {described[3:]} needs the package ml_dtypes in the receiving process: pip install "
                "ml_dtypes"
            ) from None
        return np.dtype(getattr(ml_dtypes, described[3:]))
    metadata = {} if (known := described.get("metadata")) is None else {"metadata": known}
    spec: Any
    if "fields" in described:
        fields = described["fields"]
        spec = {
            "names": [field[0] for field in fields],
            "formats": [_build(field[1]) for field in fields],
            "offsets": [field[2] for field in fields],
            "itemsize": described["size"],
        }
        if any(len(field) > 3 for field in fields):
            spec["titles"] = [field[3] if len(field) > 3 else None for field in fields]
        made = np.dtype(spec, align=bool(described.get("aligned")))
    elif "of" in described:
        made = np.dtype((_build(described["of"]), described["shape"]))
    else:
        made = _build(described["type"])
    if described.get("record"):
        made = np.dtype((np.record, made))
    return np.dtype(made, **metadata)


_plain: dict[Any, bytes] = {}
_others: dict[int, tuple[Any, Any, bytes]] = {}  # by id: the dtype, its tuple at that time, its text


def remembered_dtype(dtype: Any) -> bytes:
    """`dtype_to_bytes`, remembered, because messages repeat."""
    if dtype.metadata is None and dtype.kind != "V":
        text = _plain.get(dtype)
        if text is None:
            if len(_plain) > 1024:
                _plain.clear()
            text = _plain[dtype] = dtype_to_bytes(dtype)
        return text
    known = _others.get(id(dtype))
    if known is not None and known[0] is dtype and known[1] == dtype:  # the names of fields can be changed
        return known[2]
    text = dtype_to_bytes(dtype)
    if b"'metadata'" not in text:  # the metadata may change
        if len(_others) > 1024:
            _others.clear()
        _others[id(dtype)] = dtype, dtype_from_bytes(text), text
    return text
