"""`share`: moves every array and buffer inside an object into shared memory; `is_shared`: whether they are there."""

from __future__ import annotations

import array as array_module
import contextlib
import copy
import dataclasses
import io
import pickle
import warnings
from collections.abc import Callable
from typing import IO, TYPE_CHECKING, Any, TypeVar

import numpy as np

from copyless import _libraries, arrays
from copyless._core import _copying, _handles
from copyless._storage.store import ensure_open
from copyless._transfer import _array_type, shared_array
from copyless._transfer._memory import Memory
from copyless.errors import UnsendableError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["attributes_of", "is_shared", "share", "would_move"]

T = TypeVar("T")
Part = tuple[object, object]  # (a piece of memory, the same in shared memory)
Done = dict[int, tuple[object, object]]  # by the id of an object: (the object, what was made of it)
_ARRAYS = (np.ndarray, shared_array.SharedArray, np.recarray)
_ATOMS = (type(None), bool, int, float, complex, str, bytes, type, range, slice)


class _Pickler(pickle.Pickler):
    """A protocol 5 pickler that takes out whole arrays: their data is copied directly into shared memory."""

    def __init__(self, file: IO[bytes], parts: list[Part], shared: list[bool], move: bool):
        super().__init__(file, protocol=5, buffer_callback=self._take_buffer)
        self._parts, self._shared, self._move = parts, shared, move
        self._seen: dict[object, int] = {}
        self.movable = False  # whether it found memory that can be moved and was not

    def persistent_id(self, obj: Any) -> int | None:
        kind = type(obj)
        if kind is _libraries.Kept:
            self._shared.extend([False] if len(obj.part) and not self._move else [])
            self._parts.append((obj, obj.part))
            return len(self._parts) - 1
        if isinstance(obj, np.ndarray):
            if not obj.size:
                return None
            if not obj.dtype.hasobject and (
                kind in _ARRAYS or (_is_derived(obj) and not shared_array.why_not_moved(obj))
            ):
                return self._piece(obj, id(obj), _moved_array)
            if not self._move:
                self._shared.append(False)  # an array of Python objects, or one that cannot be moved
            return None
        library = _libraries.of_kind(kind)
        memory = None if library is None else library.memory_of(obj)
        if library is None or memory is None:
            return None
        move = library.move

        def moved(piece: object, moves: bool) -> tuple[object, bool]:
            there = _handles.find(*memory) is not None
            return (move(piece) if moves and not there else piece), there

        return self._piece(obj, memory, moved)

    def _piece(self, obj: T, key: object, moved: Callable[[T, bool], tuple[object, bool]]) -> int:
        """The number of a piece of memory, which is moved when it is first found."""
        at = self._seen.get(key)
        if at is None:
            piece, there = moved(obj, self._move)
            self._found(there)
            at = self._seen[key] = len(self._parts)
            # Keep the original too, so that its id is not reused.
            self._parts.append((obj, piece))
        return at

    def _found(self, there: bool) -> None:
        """Record that memory was found, and whether it is shared."""
        self._shared.append(there)
        self.movable = self.movable or not there

    def reducer_override(self, obj: object) -> Any:
        library = _libraries.of(obj)
        if library is None:
            return NotImplemented
        made, there = library.apart(obj, self._move)
        if there is not None:
            self._found(there)
        return made

    def _take_buffer(self, buffer: pickle.PickleBuffer) -> bool:
        raw = buffer.raw()
        there = raw.nbytes == 0 or _handles.find(Memory(raw).address, raw.nbytes) is not None
        self._found(there)
        if self._move:
            self._parts.append((buffer, _move_bytes(raw)))
        return not self._move


def _moved_array(array: NDArray[np.generic], moves: bool = True) -> tuple[NDArray[np.generic], bool]:
    """(the array over shared memory, whether it was there before). The same object if it was there, or without
    `moves`.
    """
    if _is_derived(array):
        return _moved_derived(array) if moves else (array, _is_derived_shared(array))
    there = _array_type.shared_memory_of(array)
    # A plain array stays plain: pandas and others check for the exact type.
    return (_copy_of(array).view(type(array)) if moves and not there else array), there


def _copy_of(array: NDArray[np.generic]) -> NDArray[np.generic]:
    """A plain array in shared memory with a copy of the elements."""
    return arrays.array(array.view(np.ndarray)).view(np.ndarray)


def _is_derived(obj: object) -> bool:
    """Whether an object is an array of a class that derives from NumPy's."""
    return isinstance(obj, np.ndarray) and type(obj) not in _ARRAYS and type(obj).__name__ != "MaskedConstant"


def _is_derived_shared(array: object) -> bool:
    """Whether its elements, and the arrays among its attributes (such as a mask), are in shared memory."""
    return _array_type.shared_memory_of(array) and not _has_private_state(array)


def _has_private_state(array: object) -> bool:
    """Whether `share` would move any of the attributes."""
    values = (shared_array.state_of(array) or {}).values()
    return any(would_move(value) for value in values if not (isinstance(value, np.ndarray) and _goes_by_value(value)))


def _goes_by_value(attribute: NDArray[np.generic]) -> bool:
    """Whether an array among the attributes is too small to share: one number (the fill value of a masked array), or
    empty.
    """
    return attribute.ndim == 0 or not attribute.size


def _moved_derived(array: NDArray[np.generic], done: Done | None = None) -> tuple[NDArray[np.generic], bool]:
    """(the same array over shared memory, with its class and attributes, whether it was there before).

    The same object if it was there, or, with a warning, if it cannot be moved.
    """
    there = _array_type.shared_memory_of(array)
    if there and not _has_private_state(array):
        return array, True
    kind, why = type(array), shared_array.why_not_moved(array)
    try:
        if not why:
            plain = np.ndarray.view(array, np.ndarray)
            made = _of_class(array, plain if there else _copy_of(plain), {} if done is None else done)
            if made is not None:
                return made, False
            why = f"a view of other memory as {kind.__qualname__} is not the same array"
    except (TypeError, ValueError, AttributeError, pickle.PicklingError) as error:
        why = f"{type(error).__name__}: {error}"
    warnings.warn(f"share() leaves this {kind.__qualname__} in private memory: {why}", UserWarning, stacklevel=3)
    return array, False


def _of_class(array: NDArray[np.generic], plain: NDArray[np.generic], done: Done) -> NDArray[np.generic] | None:
    """A shared array with the class of another and its attributes, shared. None if the class copies the memory."""
    state = {
        name: _share(value, done) if type(value) is not np.ndarray else _move_plain(value)
        for name, value in (shared_array.state_of(array) or {}).items()
    }
    made = shared_array.of_class(type(array), plain, state)
    if type(made) is not type(array) or made.shape != array.shape or made.dtype != array.dtype:
        return None
    return made if _address_of(made) == _address_of(plain) and not _has_private_state(made) else None


def _address_of(array: NDArray[np.generic]) -> int:
    address: int = np.ndarray.view(array, np.ndarray).__array_interface__["data"][0]
    return address


def _move_plain(array: NDArray[np.generic]) -> NDArray[np.generic]:
    """An attribute of an array: a plain array that is writable if the original is."""
    if _goes_by_value(array) or array.dtype.hasobject:
        return array
    moved, there = _moved_array(array)
    if not there:
        moved.flags.writeable = array.flags.writeable
    return moved


def attributes_of(obj: Any) -> dict[str, object]:
    """The fields of a dataclass, and its other attributes."""
    found = {field.name: getattr(obj, field.name) for field in dataclasses.fields(obj) if hasattr(obj, field.name)}
    found.update(getattr(obj, "__dict__", {}))
    for kind in type(obj).__mro__:
        found.update({name: getattr(obj, name) for name in shared_array.slots_of(kind) if hasattr(obj, name)})
    return found


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: IO[bytes], parts: list[Part], buffers: list[object]):
        super().__init__(file, buffers=buffers)
        self._parts = parts

    def persistent_load(self, pid: int) -> object:
        return self._parts[pid][1]


def _move_bytes(raw: memoryview) -> Memory:
    if raw.nbytes and _handles.find(Memory(raw).address, raw.nbytes) is not None:
        moved = Memory(raw)
    else:
        moved = Memory.allocate(raw.nbytes)
        _copying.copy_parts(moved, [raw], 1)
    return moved.toreadonly() if raw.readonly else moved


def _share_object(obj: object) -> object:
    parts: list[Part] = []
    shared: list[bool] = []
    file = io.BytesIO()
    try:
        _Pickler(file, parts, shared, move=True).dump(obj)
    except UnsendableError:
        raise
    except (pickle.PicklingError, TypeError, AttributeError):
        if not shared:
            return obj  # such as a lock, a lambda or an open file: nothing to share
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
        * an array: the result is a `SharedArray`. An array of a class that derives from NumPy's (`MaskedArray`,
          `matrix`, your own) keeps its class and attributes;
        * a list, tuple, dict or dataclass: the result is a new one of the same type with shared contents;
        * ``bytearray``, ``memoryview`` or ``array.array``: the result is a `Memory`, which is shared bytes;
        * any object that pickles with protocol 5, such as a DataFrame of pandas or polars or a `pyarrow.Table`: the
          result has the same type and its data in shared memory.

    Returns
    -------
    object
        Sending it to another process costs some hundred bytes for each array, whatever the array's size. Data that is
        shared already is not copied. An object with nothing to share is returned unchanged.

    Raises
    ------
    OutOfSharedMemory
        If there is no room. Nothing is left behind.

    Warns
    -----
    UserWarning
        If an array of a derived class cannot be moved (an array over a file, or a class made in C); the warning says
        why.

    Notes
    -----
    Copies each array once. Arrays of Python objects (a DataFrame's object columns) and polars categories cannot be
    shared and are sent by value; `copyless.explain` shows which parts are.

    Examples
    --------
    >>> import copyless, numpy as np
    >>> job = copyless.share({"image": np.ones((100, 100)), "label": "cat"})
    >>> copyless.is_shared(job["image"]), job["label"]
    (True, 'cat')
    """
    ensure_open()
    moved: T
    if not _libraries.overlaps():
        moved = _share(obj, {})
        return moved
    try:
        with _libraries.moving():
            moved = _share(obj, {})
    except _libraries.LookFirst:
        with _libraries.looking() as plans, contextlib.suppress(Exception):
            _Pickler(io.BytesIO(), [], [], move=False).dump(obj)
        with _libraries.moving(plans):
            moved = _share(obj, {})
    return moved


def _share(obj: Any, done: Done) -> Any:
    kind = type(obj)
    if kind in _ATOMS or isinstance(obj, type):
        return obj
    if id(obj) in done:
        return done[id(obj)][1]
    made: Any
    if kind in (np.ndarray, shared_array.SharedArray):
        made = obj if obj.dtype.hasobject else arrays.asarray(obj)
    elif kind is np.recarray:
        made = obj if obj.dtype.hasobject else _moved_array(obj)[0]
    elif isinstance(obj, np.ndarray):
        # numpy.ma.masked is a singleton.
        made = _moved_derived(obj, done)[0] if _is_derived(obj) and not obj.dtype.hasobject else obj
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
        for name, value in attributes_of(obj).items():
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


def is_shared(obj: object) -> bool:
    """Whether an object's data is in shared memory, so that it is sent to another process without a copy.

    For a container or a DataFrame: whether it has arrays or buffers and all of them are in shared memory.

    Examples
    --------
    >>> import copyless, numpy as np
    >>> copyless.is_shared(copyless.zeros(3)), copyless.is_shared(np.zeros(3))
    (True, False)
    """
    if isinstance(obj, np.ndarray):
        return _is_derived_shared(obj) if _is_derived(obj) else _array_type.shared_memory_of(obj)
    if isinstance(obj, Memory):
        return _handles.find(obj.address, obj.nbytes) is not None
    if isinstance(obj, (list, tuple, dict)) or dataclasses.is_dataclass(obj):
        inside = (
            list(obj.values())
            if isinstance(obj, dict)
            else list(obj)
            if isinstance(obj, (list, tuple))
            else list(attributes_of(obj).values())
        )
        found = [is_shared(item) for item in inside if _has_memory(item)]
        return bool(found) and all(found)
    library = _libraries.of(obj)
    if library is not None:
        memory, data = library.memory_of(obj), library.data_of(obj)
        if memory is not None:
            return _handles.find(*memory) is not None
        if data is not None:
            found = [is_shared(part) for part in data if _has_memory(part)]
            return bool(found) and all(found)
    return all(shared := _buffers_of(obj)) and bool(shared)


def would_move(obj: object) -> bool:
    """Whether `share` would move anything inside an object."""
    if type(obj) in _ATOMS:
        return False
    if isinstance(obj, np.ndarray):
        return (
            not obj.dtype.hasobject
            and not (_is_derived(obj) and shared_array.why_not_moved(obj))
            and not is_shared(obj)
        )
    if isinstance(obj, (bytearray, memoryview, array_module.array, Memory)):
        return not is_shared(obj)
    if isinstance(obj, (list, tuple)) or (
        isinstance(obj, dict) and type(obj).__module__ in ("builtins", "collections")
    ):
        return any(map(would_move, obj.values() if isinstance(obj, dict) else obj))
    if dataclasses.is_dataclass(obj) and not isinstance(obj, type):
        return any(map(would_move, attributes_of(obj).values()))
    pickler = _Pickler(io.BytesIO(), [], [], move=False)
    with contextlib.suppress(Exception):
        pickler.dump(obj)
    return pickler.movable


def _buffers_of(obj: object) -> list[bool]:
    if type(obj) in _ATOMS:
        return []
    shared: list[bool] = []
    try:
        _Pickler(io.BytesIO(), [], shared, move=False).dump(obj)
    except Exception:
        return [False]
    return shared


def _has_memory(obj: object) -> bool:
    if isinstance(obj, (np.ndarray, Memory)):
        return True
    if dataclasses.is_dataclass(obj) and not isinstance(obj, type):
        return any(map(_has_memory, attributes_of(obj).values()))
    if isinstance(obj, (list, tuple, dict)):
        return any(_has_memory(item) for item in (obj.values() if isinstance(obj, dict) else obj))
    return bool(_buffers_of(obj))


for _public in (share, is_shared):
    _public.__module__ = "copyless"  # the public module, for users and pickles
