"""`share`: move every array and buffer inside an object into shared memory; `is_shared`: is it there?"""

from __future__ import annotations

import array as array_module
import contextlib
import copy
import dataclasses
import io
import pickle
import sys
import warnings
from collections.abc import Iterable
from typing import Any, TypeVar

import numpy as np

from copyless import arrays
from copyless._core import _copying, _handles
from copyless._core._memory import Memory
from copyless.errors import UnsendableError
from copyless.storage.store import need

__all__ = ["is_shared", "share"]

T = TypeVar("T")
_ARRAYS = (np.ndarray, arrays.SharedArray, np.recarray)
_ATOMS = (type(None), bool, int, float, complex, str, bytes, type, range, slice)


class _Kept:
    """A part of an object that stays as it is: its type has no form in shared memory."""

    def __init__(self, part: Any):
        self.part = part


class _Pickler(pickle.Pickler):
    """Protocol 5 with arrays taken out whole: their data goes straight into shared memory."""

    def __init__(self, file: Any, parts: list[Any], shared: list[bool], move: bool):
        super().__init__(file, protocol=5, buffer_callback=self._take_buffer)
        self._parts, self._shared, self._move = parts, shared, move
        self._seen: dict[Any, int] = {}
        self.movable = False  # whether anything was met that can be moved, and was not

    def persistent_id(self, obj: Any) -> int | None:
        there: bool
        move: Any
        key: Any = id(obj)
        if type(obj) is _Kept:
            self._shared.extend([False] if len(obj.part) and not self._move else [])
            self._parts.append((obj, obj.part))
            return len(self._parts) - 1
        if type(obj) in _ARRAYS and not obj.dtype.hasobject and obj.size:
            # A plain array stays plain: pandas and others look at the very type.
            there, move = arrays.shared_memory_of(obj), _move_array
        elif "pyarrow" in sys.modules and _frames().is_buffer(obj):
            if not obj.size:
                return None
            there, move = _frames().is_buffer_shared(obj), _frames().move
            key = obj.address, obj.size  # the objects that stand for a buffer come and go
        elif _is_derived(obj) and obj.size and not obj.dtype.hasobject and not arrays.why_not_moved(obj):
            there, move = _is_derived_shared(obj), _move_derived
        else:
            if not self._move and isinstance(obj, np.ndarray) and obj.size:
                self._shared.append(False)  # an array of Python objects
            return None
        self.movable = self.movable or not there
        at = self._seen.get(key)
        if at is None:
            self._shared.append(there)
            at = self._seen[key] = len(self._parts)
            # The original is kept too: its id must not be given again.
            self._parts.append((obj, move(obj) if self._move and not there else obj))
        return at

    def reducer_override(self, obj: Any) -> Any:
        if "torch" in sys.modules:
            before = len(self._shared)
            made = _tensors().share_reduction(obj, self._shared)
            if made is not NotImplemented:
                self.movable = self.movable or not all(self._shared[before:])
                return made
        if "pyarrow" in sys.modules or _is_polars(obj):
            return _frames().reduction(obj, self._move, _Kept)
        return NotImplemented

    def _take_buffer(self, buffer: pickle.PickleBuffer) -> bool:
        raw = buffer.raw()
        there = raw.nbytes == 0 or _handles.find(Memory(raw).address, raw.nbytes) is not None
        self._shared.append(there)
        self.movable = self.movable or not there
        if self._move:
            self._parts.append((buffer, _move_bytes(raw)))
        return not self._move


def _move_array(array: Any) -> Any:
    return arrays.array(array.view(np.ndarray)).view(type(array))


def _is_derived(obj: Any) -> bool:
    """Whether an object is an array of a class that derives from NumPy's."""
    return isinstance(obj, np.ndarray) and type(obj) not in _ARRAYS and type(obj).__name__ != "MaskedConstant"


def _is_derived_shared(array: Any) -> bool:
    """Whether its elements lie in shared memory, and so do the arrays among its attributes (as a mask)."""
    if not arrays.shared_memory_of(array):
        return False
    return not any(map(would_move, _large((arrays.state_of(array) or {}).values())))


def _large(values: Iterable[Any]) -> list[Any]:
    """Without what is one number, as the fill value of a masked array: it goes by value."""
    return [value for value in values if not (isinstance(value, np.ndarray) and value.ndim == 0)]


def _move_derived(array: Any, done: dict[int, Any] | None = None) -> Any:
    """The same array over shared memory, with its class and attributes; itself, with a warning, where that cannot be."""
    if array.dtype.hasobject or _is_derived_shared(array):
        return array
    kind, why = type(array), arrays.why_not_moved(array)
    try:
        if not why:
            done = {} if done is None else done
            plain = np.ndarray.view(array, np.ndarray)
            state = {
                name: _share(value, done) if type(value) is not np.ndarray else _move_plain(value)
                for name, value in (arrays.state_of(array) or {}).items()
            }
            made = arrays.of_class(kind, arrays.asarray(plain).view(np.ndarray), state)
            if type(made) is kind and made.shape == array.shape and made.dtype == array.dtype and _is_derived_shared(made):
                return made
            why = f"a view of other memory as {kind.__qualname__} is not the same array"
    except (TypeError, ValueError, AttributeError, pickle.PicklingError) as error:
        why = f"{type(error).__name__}: {error}"
    warnings.warn(f"share() leaves this {kind.__qualname__} in private memory: {why}", UserWarning, stacklevel=3)
    return array


def _move_plain(array: Any) -> Any:
    if not array.size or array.ndim == 0 or array.dtype.hasobject or arrays.shared_memory_of(array):
        return array
    moved = arrays.array(array).view(np.ndarray)
    moved.flags.writeable = array.flags.writeable
    return moved


def _attributes_of(obj: Any) -> dict[str, Any]:
    """Of a dataclass: its fields, and what else it has."""
    found = {field.name: getattr(obj, field.name) for field in dataclasses.fields(obj) if hasattr(obj, field.name)}
    found.update(getattr(obj, "__dict__", {}))
    for kind in type(obj).__mro__:
        found.update({name: getattr(obj, name) for name in arrays.slots_of(kind) if hasattr(obj, name)})
    return found


def _is_polars(obj: Any) -> bool:
    return type(obj).__module__.startswith("polars.") and type(obj).__name__ in ("DataFrame", "Series")


def _frames() -> Any:
    try:
        from copyless import frames
    except ModuleNotFoundError as error:
        if error.name != "pyarrow":
            raise
        raise ImportError(
            "frames of polars go into shared memory as Arrow, which needs pyarrow: pip install 'copyless[arrow]'"
        ) from None
    return frames


def _tensors() -> Any:
    from copyless import tensors

    return tensors


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: Any, parts: list[Any], buffers: list[Any]):
        super().__init__(file, buffers=buffers)
        self._parts = parts

    def persistent_load(self, pid: Any) -> Any:
        return self._parts[pid][1]


def _move_bytes(raw: memoryview) -> Memory:
    if raw.nbytes and _handles.find(Memory(raw).address, raw.nbytes) is not None:
        moved = Memory(raw)
    else:
        moved = Memory.allocate(raw.nbytes)
        _copying.copy_parts(moved, [raw], 1)
    return moved.toreadonly() if raw.readonly else moved


def _share_object(obj: Any) -> Any:
    parts: list[Any] = []
    shared: list[bool] = []
    file = io.BytesIO()
    try:
        _Pickler(file, parts, shared, move=True).dump(obj)
    except UnsendableError:
        raise
    except (pickle.PicklingError, TypeError, AttributeError):
        if not shared:
            return obj  # a lock, a lambda, an open file: nothing in it to share
        raise
    if all(shared):
        return obj
    buffers = [moved for original, moved in parts if isinstance(original, pickle.PickleBuffer)]
    file.seek(0)
    return _Unpickler(file, parts, buffers).load()


def share(obj: T) -> T:
    """Move every array and buffer inside an object into shared memory.

    Parameters
    ----------
    obj : object
        An array (the result is a `SharedArray`), a list, tuple, dict or dataclass (a new one, of the same type, with shared
        contents), or any object that pickles with protocol 5, such as a DataFrame of pandas or polars or a `pyarrow.Table`
        (the same type, standing on shared memory). An array of a class derived from NumPy's (`MaskedArray`, `matrix`, one of yours)
        keeps its class and attributes. ``bytearray``, ``memoryview`` and ``array.array`` become a `Memory`, which is shared bytes.

    Returns
    -------
    object
        Sent to another process it costs a few hundred bytes for each array, whatever their size. What is shared already
        is not copied; an object with nothing to share comes back as it is.

    Raises
    ------
    OutOfSharedMemory
        When there is no room; nothing half made stays behind.

    Warns
    -----
    UserWarning
        When an array of a derived class has to stay in private memory (one over a file, or of a class made in C), and why.

    Notes
    -----
    One copy of each array. Arrays of Python objects (a DataFrame's object columns) cannot be shared and go by value, and so do
    polars's categories; `copyless.explain` tells what does.

    Examples
    --------
    >>> import copyless, numpy as np
    >>> job = copyless.share({"image": np.ones((100, 100)), "label": "cat"})
    >>> copyless.is_shared(job["image"]), job["label"]
    (True, 'cat')
    """
    need()
    moved: T
    if "torch" not in sys.modules:
        moved = _share(obj, {})
        return moved
    tensors = _tensors()
    try:
        with tensors.moving():
            moved = _share(obj, {})
    except tensors.Partial:  # some tensor is a small part of its storage: look first which parts there are
        with tensors.planning() as plan, contextlib.suppress(Exception):
            _Pickler(io.BytesIO(), [], [], move=False).dump(obj)
        with tensors.moving(plan):
            moved = _share(obj, {})
    return moved


def _share(obj: Any, done: dict[int, Any]) -> Any:
    kind = type(obj)
    if kind in _ATOMS or isinstance(obj, type):
        return obj
    if id(obj) in done:
        return done[id(obj)][1]
    made: Any
    if kind in (np.ndarray, arrays.SharedArray):
        made = obj if obj.dtype.hasobject else arrays.asarray(obj)
    elif kind is np.recarray:
        made = obj if obj.dtype.hasobject or arrays.shared_memory_of(obj) else _move_array(obj)
    elif isinstance(obj, np.ndarray):
        made = _move_derived(obj, done) if _is_derived(obj) else obj  # numpy.ma.masked is one object
    elif isinstance(obj, Memory):
        made = _move_bytes(memoryview(obj)) if obj.nbytes else obj
        made = obj if made.address == obj.address else made
    elif kind in (bytearray, memoryview, array_module.array):
        made = _move_bytes(pickle.PickleBuffer(obj).raw())
    elif kind is list:
        done[id(obj)] = obj, (made := [])
        made.extend(_share(item, done) for item in obj)
    elif isinstance(obj, tuple) and (kind is tuple or hasattr(obj, "_fields")):
        items = [_share(item, done) for item in obj]
        made = tuple(items) if kind is tuple else kind(*items)
    elif isinstance(obj, dict) and kind.__module__ in ("builtins", "collections"):
        made = copy.copy(obj)
        done[id(obj)] = obj, made
        for key, value in obj.items():
            made[key] = _share(value, done)
    elif dataclasses.is_dataclass(obj):
        made = copy.copy(obj)
        done[id(obj)] = obj, made
        for name, value in _attributes_of(obj).items():
            moved = _share(value, done)
            if moved is value:
                continue
            if name in getattr(made, "__dict__", {}):
                made.__dict__[name] = moved
            else:
                object.__setattr__(made, name, moved)
    else:
        made = _share_object(obj)
    done[id(obj)] = obj, made
    return made


def is_shared(obj: Any) -> bool:
    """Whether an object's memory lies in shared memory, so that it crosses to another process without a copy.

    For a container or a DataFrame: whether every array and buffer inside does, and there is one.

    Examples
    --------
    >>> import copyless, numpy as np
    >>> copyless.is_shared(copyless.zeros(3)), copyless.is_shared(np.zeros(3))
    (True, False)
    """
    if isinstance(obj, np.ndarray):
        return _is_derived_shared(obj) if _is_derived(obj) else arrays.shared_memory_of(obj)
    if isinstance(obj, Memory):
        return _handles.find(obj.address, obj.nbytes) is not None
    if isinstance(obj, (list, tuple, dict)) or dataclasses.is_dataclass(obj):
        inside = (
            list(obj.values())
            if isinstance(obj, dict)
            else list(obj)
            if isinstance(obj, (list, tuple))
            else list(_attributes_of(obj).values())
        )
        found = [is_shared(item) for item in inside if _has_memory(item)]
        return bool(found) and all(found)
    if type(obj).__module__.partition(".")[0] == "pandas":
        # Column by column, as `explain`: what pandas keeps beside them, as where its blocks belong, is not its data.
        from copyless.explaining import parts_of

        parts = [part for _, part in parts_of(obj)[1]]
        if len(parts) != 1 or parts[0] is not obj:
            found = [is_shared(part) for part in parts if _has_memory(part)]
            return bool(found) and all(found)
    return all(shared := _buffers_of(obj)) and bool(shared)


def would_move(obj: Any) -> bool:
    """Whether `share` would move anything inside an object."""
    if type(obj) in _ATOMS:
        return False
    if isinstance(obj, np.ndarray):
        return not obj.dtype.hasobject and not (_is_derived(obj) and arrays.why_not_moved(obj)) and not is_shared(obj)
    if isinstance(obj, (bytearray, memoryview, array_module.array, Memory)):
        return not is_shared(obj)
    if isinstance(obj, (list, tuple)) or (isinstance(obj, dict) and type(obj).__module__ in ("builtins", "collections")):
        return any(map(would_move, obj.values() if isinstance(obj, dict) else obj))
    if dataclasses.is_dataclass(obj) and not isinstance(obj, type):
        return any(map(would_move, _attributes_of(obj).values()))
    pickler = _Pickler(io.BytesIO(), [], [], move=False)
    with contextlib.suppress(Exception):
        pickler.dump(obj)
    return pickler.movable


def _buffers_of(obj: Any) -> list[bool]:
    if type(obj) in _ATOMS:
        return []
    shared: list[bool] = []
    try:
        _Pickler(io.BytesIO(), [], shared, move=False).dump(obj)
    except Exception:
        return [False]
    return shared


def _has_memory(obj: Any) -> bool:
    if isinstance(obj, (np.ndarray, Memory)):
        return True
    if dataclasses.is_dataclass(obj) and not isinstance(obj, type):
        return any(map(_has_memory, _attributes_of(obj).values()))
    if isinstance(obj, (list, tuple, dict)):
        return any(_has_memory(item) for item in (obj.values() if isinstance(obj, dict) else obj))
    return bool(_buffers_of(obj))
