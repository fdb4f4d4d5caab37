"""ctypes objects in shared memory: `RawValue, RawArray, Value, Array, copy, synchronized`.

Mirrors `multiprocessing.sharedctypes`: same names, signatures and results. The differences:

* Every object can be pickled. `Process`, pools, queues and pipes send it to any process as a handle.
* Values and arrays are aligned to 64 bytes, so two of them never share a cache line. If there is no room,
  `OutOfSharedMemory` is raised; data never goes to a file on a disk unnoticed.
* The lock survives a kill: if its holder dies, the next process to acquire it gets `OwnerDiedError` once.
* NumPy dtypes are accepted as types (``"int32"``, ``np.dtype(...)``), and ``shape=`` makes arrays of several
  dimensions. `numpy.asarray` and `numpy.frombuffer` give arrays over the same memory.
* `Value.add`, `exchange` and `compare_exchange` change a value atomically; ``v.value += 1`` is a read and a write.
* Types with pointers are refused, since an address is valid in one process only.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Iterable, Iterator, Sequence
from multiprocessing import sharedctypes as _stdlib
from typing import TYPE_CHECKING, Any, Literal, SupportsIndex, overload

from copyless import _loaders
from copyless._core import _blocks, _handles, _value, c_library
from copyless._standard_names import standard_names
from copyless._storage.store import allocate, ensure_open, new_object
from copyless._transfer import in_flight, reductions
from copyless._transfer._memory import Memory
from copyless._typing import Generic, TypeVar
from copyless.synchronize import RLock

if TYPE_CHECKING:
    from _ctypes import _CData, _SimpleCData
    from multiprocessing import synchronize as _stdlib_locks

    import numpy as np
    from numpy.typing import DTypeLike, NDArray
    from typing_extensions import Buffer

    from copyless.synchronize import Lock, SemLock

    _LockLike = SemLock | _stdlib_locks.SemLock
    _DType = np.dtype[Any] | type[np.generic | float]

__all__ = ["Array", "RawArray", "RawValue", "Value", "copy", "synchronized"]

T = TypeVar("T")
CT = TypeVar("CT", bound="_CData")
B = TypeVar("B", bound="SynchronizedBase[_CData]")
FT = TypeVar("FT", bound="ctypes.Structure | ctypes.Union")
_IntCode = Literal["b", "B", "h", "H", "i", "I", "l", "L", "q", "Q"]
_FloatCode = Literal["f", "d", "g"]

typecode_to_type: dict[str, type[_SimpleCData[Any]]] = {
    "c": ctypes.c_char, "u": ctypes.c_wchar,
    "b": ctypes.c_byte, "B": ctypes.c_ubyte,
    "h": ctypes.c_short, "H": ctypes.c_ushort,
    "i": ctypes.c_int, "I": ctypes.c_uint,
    "l": ctypes.c_long, "L": ctypes.c_ulong,
    "q": ctypes.c_longlong, "Q": ctypes.c_ulonglong,
    "f": ctypes.c_float, "d": ctypes.c_double,
    "g": ctypes.c_longdouble, "?": ctypes.c_bool,
}  # fmt: skip

_FEW = 4096  # bytes: up to here it counts as a value, above as data
if not TYPE_CHECKING:
    _SimpleCData = ctypes.c_int.__mro__[1]
_POINTERS = (
    ctypes._Pointer,
    ctypes.CFUNCTYPE(None).__mro__[1],
    ctypes.c_void_p,
    ctypes.c_char_p,
    ctypes.c_wchar_p,
    ctypes.py_object,
)


# ---- types


def _type_of(typecode_or_type: object) -> Any:
    """The ctypes type for a type code, a ctypes type, or anything that NumPy accepts as a dtype."""
    kind = typecode_to_type.get(typecode_or_type) if isinstance(typecode_or_type, str) else typecode_or_type
    if not (isinstance(kind, type) and hasattr(kind, "from_buffer")):
        kind = _from_numpy(typecode_or_type)
    if kind not in _checked:
        _refuse_pointers(kind, kind)
        _checked.add(kind)
    return kind


_checked: weakref.WeakSet[type] = weakref.WeakSet()


def _from_numpy(what: Any) -> Any:
    import numpy as np

    try:
        return np.ctypeslib.as_ctypes_type(np.dtype(what))
    except (TypeError, NotImplementedError):
        codes = "".join(typecode_to_type)
        raise TypeError(
            f"{what!r} is not a type code ({codes}), a ctypes type, or a NumPy dtype with an equivalent in "
            "C: for other dtypes make an array with copyless.zeros(shape, dtype)"
        ) from None


def _refuse_pointers(kind: Any, whole: Any) -> None:
    if issubclass(kind, _POINTERS):
        inside = "" if kind is whole else f" in {whole.__name__}"
        raise TypeError(
            f"{kind.__name__}{inside} is a pointer, and an address is valid in one process only: share the "
            "data that it points to, or an index into an array"
        )
    if issubclass(kind, ctypes.Array):
        _refuse_pointers(kind._type_, whole)
    for _, field, *_ in getattr(kind, "_fields_", ()):
        _refuse_pointers(field, whole)


# ---- memory


class _Wrapper:
    """Keeps the memory of a ctypes object, as the standard library's objects keep theirs."""

    def __init__(self, memory: Buffer) -> None:
        self._memory = memory

    def create_memoryview(self) -> memoryview:
        return memoryview(self._memory)

    def __reduce__(self) -> tuple[object, ...]:
        view = Memory(memoryview(self._memory))
        handle = reductions.memory_handle(view, in_flight.message_kind())
        assert handle is not None
        return _loaders.ctypes_wrapper, (in_flight.note(handle),)


def _over(kind: Any, memory: Buffer, offset: int = 0) -> Any:
    """A ctypes object over memory; it keeps the memory alive."""
    obj = kind.from_buffer(memory, offset)
    obj._wrapper = _Wrapper(memory)
    in_flight.register(kind, _reduce)
    return obj


def _reduce(obj: Any) -> Any:
    size = ctypes.sizeof(obj)
    handle = (
        _handles.handle_of(ctypes.addressof(obj), size, _handles.KIND_MEMORY, in_flight.message_kind())
        if size
        else None
    )
    if handle is not None:
        return _loaders.ctypes_object, (*_describe(type(obj)), _Message(in_flight.note(handle)))
    if hasattr(obj, "_wrapper") and not isinstance(obj._wrapper, _Wrapper):
        return _stdlib.reduce_ctype(obj)  # type: ignore[attr-defined]
    return obj.__reduce__()


class _Message:
    """Represents memory in a pickle, and loads it by its handle."""

    def __init__(self, handle: bytes) -> None:
        self._handle = handle

    def __reduce__(self) -> tuple[object, ...]:
        return _loaders.load, (self._handle,)


reduce_ctype = _reduce  # the name in the standard library


def rebuild_ctype(type_: Any, wrapper: object, length: int | None) -> Any:
    """An object of ctypes over the memory of a wrapper. Mirrors `multiprocessing.sharedctypes.rebuild_ctype`."""
    kind = type_ if length is None else type_ * length
    if isinstance(wrapper, _Wrapper):
        return _over(kind, wrapper._memory)
    return _stdlib.rebuild_ctype(type_, wrapper, length)  # type: ignore[attr-defined]


def _describe(kind: Any) -> tuple[type[_CData], tuple[int, ...]]:
    """(innermost type, lengths from the inside out) of an array type, which has no name that could be pickled."""
    lengths: list[int] = []
    while issubclass(kind, ctypes.Array) and "_Array_" in kind.__name__:  # not a class of the user's own
        lengths.insert(0, kind._length_)
        kind = kind._type_
    return kind, tuple(lengths)


def _assemble(kind: Any, lengths: tuple[int, ...]) -> Any:
    for length in lengths:
        kind = kind * length
    return kind


def _rebuild(kind: type[_CData], lengths: tuple[int, ...], memory: Buffer) -> _CData:
    made: _CData = _over(_assemble(kind, lengths), memory)
    return made


def _zeros(size: int) -> _blocks.Block:
    ensure_open()
    block = allocate(max(size, 1))
    if block.recycled:
        block.clear()
    return block


# ---- the standard library's functions


@overload
def RawValue(typecode_or_type: type[CT], *args: object) -> CT: ...
@overload
def RawValue(typecode_or_type: str | _DType, *args: object) -> Any: ...
def RawValue(typecode_or_type: object, *args: object) -> Any:
    """A ctypes object in shared memory, without a lock. Mirrors `multiprocessing.sharedctypes.RawValue`.

    Parameters
    ----------
    typecode_or_type
        A type code of the `array` module (or ``c``, ``?``, ``g``), a ctypes type (structures too), or a NumPy dtype.
    *args
        Initial values, passed to the type; default: zeros.

    Returns
    -------
    ctypes object
        Aligned to 64 bytes. `Process`, pools, queues and pipes send it as a handle.

    Raises
    ------
    TypeError
        For an unknown type, or one with pointers.
    OutOfSharedMemory
        If there is no room.

    Examples
    --------
    >>> from copyless.sharedctypes import RawValue
    >>> RawValue("i", 7)
    c_int(7)
    """
    kind = _type_of(typecode_or_type)
    obj = _over(kind, _zeros(ctypes.sizeof(kind)))
    obj.__init__(*args)
    return obj


def _array_type(typecode_or_type: object, size_or_initializer: Any, shape: Any) -> tuple[Any, Any]:
    """(array type, initial values or None)."""
    kind = _type_of(typecode_or_type)
    if shape is not None:
        lengths = (shape,) if isinstance(shape, int) else tuple(shape)
        begin = size_or_initializer
    elif isinstance(size_or_initializer, int) or hasattr(size_or_initializer, "__index__"):
        lengths, begin = (size_or_initializer.__index__(),), None
    elif size_or_initializer is None:
        raise TypeError("an array needs a size, a sequence of items, or shape=")
    else:
        begin = size_or_initializer if hasattr(size_or_initializer, "__len__") else list(size_or_initializer)
        lengths = (len(begin),)
    if any(length < 0 for length in lengths):
        raise ValueError(f"an array's length must be 0 or more, not {lengths}")
    return _assemble(kind, tuple(reversed(lengths))), begin


def _begin(obj: Any, begin: Any) -> None:
    if begin is None:
        return
    if hasattr(begin, "__array_interface__") or isinstance(obj[0] if len(obj) else None, ctypes.Array):
        import numpy as np

        np.frombuffer(obj, np.ctypeslib.as_array(obj).dtype).reshape(np.ctypeslib.as_array(obj).shape)[...] = begin
    else:
        obj.__init__(*begin)


@overload
def RawArray(
    typecode_or_type: type[CT], size_or_initializer: SupportsIndex | Iterable[object], *, shape: None = None
) -> ctypes.Array[CT]: ...
@overload
def RawArray(
    typecode_or_type: str | _DType, size_or_initializer: SupportsIndex | Iterable[object], *, shape: None = None
) -> Any: ...
@overload
def RawArray(
    typecode_or_type: str | _DType | type[_CData],
    size_or_initializer: Iterable[object] | None = None,
    *,
    shape: SupportsIndex | Sequence[int],
) -> Any: ...
def RawArray(
    typecode_or_type: str | _DType | type[_CData],
    size_or_initializer: SupportsIndex | Iterable[object] | None = None,
    *,
    shape: SupportsIndex | Sequence[int] | None = None,
) -> Any:
    """A ctypes array in shared memory, without a lock. Mirrors `multiprocessing.sharedctypes.RawArray`.

    Parameters
    ----------
    typecode_or_type
        As for `RawValue`: a type code, a ctypes type, or a NumPy dtype.
    size_or_initializer
        The number of elements, which are zero, or a sequence of initial values.
    shape
        Make an array of arrays with this shape; `size_or_initializer`, if given, is its initial value.

    Returns
    -------
    ctypes array
        Aligned to 64 bytes; `numpy.asarray` gives an array over the same memory.

    Raises
    ------
    TypeError
        For an unknown type, one with pointers, or if neither size, items nor shape are given.
    ValueError
        For a negative length.
    OutOfSharedMemory
        If there is no room.

    Examples
    --------
    >>> from copyless.sharedctypes import RawArray
    >>> import numpy as np
    >>> a = RawArray("d", shape=(2, 3))
    >>> np.asarray(a)[1] = 5
    >>> list(a[1])
    [5.0, 5.0, 5.0]
    """
    return _raw_array(*_array_type(typecode_or_type, size_or_initializer, shape))


def _raw_array(kind: Any, begin: Any) -> Any:
    obj = _over(kind, _zeros(ctypes.sizeof(kind)))
    _begin(obj, begin)
    return obj


def _with_lock(kind: Any, lock: Any) -> tuple[Any, _LockLike, _blocks.Block | None]:
    """(ctypes object of zeros, its lock, the block if both lie in one)."""
    if lock not in (True, None):
        if not hasattr(lock, "acquire"):
            raise AttributeError(f"{lock!r} has no method 'acquire'")
        return _over(kind, _zeros(ctypes.sizeof(kind))), lock, None
    ensure_open()
    size = max(ctypes.sizeof(kind), 1)
    block = new_object(
        _value.DATA_OFFSET + size,
        c_library.KIND_RLOCK,
        0,
        0,
        0,
        where=_blocks.AMONG_ARRAYS,  # the bytes behind the lock are user data
        spill=size <= _FEW,
    )
    return _over(kind, block, _value.DATA_OFFSET), RLock._from_block(block), block


@overload
def Value(
    typecode_or_type: type[_SimpleCData[T]],
    *args: object,
    lock: Literal[True] | _LockLike | None = True,
    ctx: object = None,
) -> Synchronized[T]: ...
@overload
def Value(typecode_or_type: type[CT], *args: object, lock: Literal[False], ctx: object = None) -> CT: ...
@overload
def Value(
    typecode_or_type: type[FT], *args: object, lock: Literal[True] | _LockLike | None = True, ctx: object = None
) -> _SynchronizedFields[FT]: ...
@overload
def Value(
    typecode_or_type: type[ctypes.Array[Any]],
    *args: object,
    lock: Literal[True] | _LockLike | None = True,
    ctx: object = None,
) -> SynchronizedArray[Any]: ...
@overload
def Value(
    typecode_or_type: _IntCode, *args: object, lock: Literal[True] | _LockLike | None = True, ctx: object = None
) -> Synchronized[int]: ...
@overload
def Value(
    typecode_or_type: _FloatCode, *args: object, lock: Literal[True] | _LockLike | None = True, ctx: object = None
) -> Synchronized[float]: ...
@overload
def Value(
    typecode_or_type: Literal["?"], *args: object, lock: Literal[True] | _LockLike | None = True, ctx: object = None
) -> Synchronized[bool]: ...
@overload
def Value(
    typecode_or_type: Literal["c"], *args: object, lock: Literal[True] | _LockLike | None = True, ctx: object = None
) -> Synchronized[bytes]: ...
@overload
def Value(
    typecode_or_type: Literal["u"], *args: object, lock: Literal[True] | _LockLike | None = True, ctx: object = None
) -> Synchronized[str]: ...
@overload
def Value(
    typecode_or_type: str | _DType, *args: object, lock: Literal[True] | _LockLike | None = True, ctx: object = None
) -> Synchronized[Any]: ...
@overload
def Value(
    typecode_or_type: str | _DType | type[_CData],
    *args: object,
    lock: bool | _LockLike | None = True,
    ctx: object = None,
) -> Any: ...
def Value(typecode_or_type: Any, *args: object, lock: bool | _LockLike | None = True, ctx: object = None) -> Any:
    """A ctypes object in shared memory with a lock. Mirrors `multiprocessing.Value`.

    Parameters
    ----------
    typecode_or_type, *args
        As for `RawValue`: a type code, a ctypes type or a NumPy dtype, and the initial value.
    lock
        True: a new `RLock`. False: no lock; the result is a `RawValue`. Or an existing lock.
    ctx
        Accepted as in the standard library, and not used.

    Returns
    -------
    Synchronized
        Has `value` (or the fields of a structure), `get_lock`, `get_obj`, `acquire`, `release` and ``with``. Numbers
        also have `add`, `exchange` and `compare_exchange`, which are atomic.

    Raises
    ------
    TypeError
        For an unknown type, or one with pointers.
    OutOfSharedMemory
        If there is no room.

    Examples
    --------
    >>> import copyless
    >>> v = copyless.Value("i", 40)
    >>> v.add(2), v.value
    (42, 42)
    >>> with v.get_lock():
    ...     v.value += 1
    >>> v
    <Synchronized wrapper for c_int(43)>
    """
    if lock is False:
        return RawValue(typecode_or_type, *args)
    obj, guard, block = _with_lock(_type_of(typecode_or_type), lock)
    obj.__init__(*args)
    return _synchronized(obj, guard, block)


@overload
def Array(
    typecode_or_type: type[ctypes.c_char] | Literal["c"],
    size_or_initializer: SupportsIndex | Iterable[object],
    *,
    lock: Literal[True] | _LockLike | None = True,
    ctx: object = None,
    shape: None = None,
) -> SynchronizedString: ...
@overload
def Array(
    typecode_or_type: type[_SimpleCData[T]],
    size_or_initializer: SupportsIndex | Iterable[object],
    *,
    lock: Literal[True] | _LockLike | None = True,
    ctx: object = None,
    shape: None = None,
) -> SynchronizedArray[T]: ...
@overload
def Array(
    typecode_or_type: _IntCode,
    size_or_initializer: SupportsIndex | Iterable[object],
    *,
    lock: Literal[True] | _LockLike | None = True,
    ctx: object = None,
    shape: None = None,
) -> SynchronizedArray[int]: ...
@overload
def Array(
    typecode_or_type: _FloatCode,
    size_or_initializer: SupportsIndex | Iterable[object],
    *,
    lock: Literal[True] | _LockLike | None = True,
    ctx: object = None,
    shape: None = None,
) -> SynchronizedArray[float]: ...
@overload
def Array(
    typecode_or_type: Literal["?"],
    size_or_initializer: SupportsIndex | Iterable[object],
    *,
    lock: Literal[True] | _LockLike | None = True,
    ctx: object = None,
    shape: None = None,
) -> SynchronizedArray[bool]: ...
@overload
def Array(
    typecode_or_type: Literal["u"],
    size_or_initializer: SupportsIndex | Iterable[object],
    *,
    lock: Literal[True] | _LockLike | None = True,
    ctx: object = None,
    shape: None = None,
) -> SynchronizedArray[str]: ...
@overload
def Array(
    typecode_or_type: type[CT],
    size_or_initializer: SupportsIndex | Iterable[object],
    *,
    lock: Literal[False],
    ctx: object = None,
    shape: None = None,
) -> ctypes.Array[CT]: ...
@overload
def Array(
    typecode_or_type: type[FT],
    size_or_initializer: SupportsIndex | Iterable[object],
    *,
    lock: Literal[True] | _LockLike | None = True,
    ctx: object = None,
    shape: None = None,
) -> SynchronizedArray[FT]: ...
@overload
def Array(
    typecode_or_type: str | _DType | type[_CData],
    size_or_initializer: SupportsIndex | Iterable[object],
    *,
    lock: Literal[True] | _LockLike | None = True,
    ctx: object = None,
    shape: None = None,
) -> SynchronizedArray[Any]: ...
@overload
def Array(
    typecode_or_type: str | _DType | type[_CData],
    size_or_initializer: SupportsIndex | Iterable[object],
    *,
    lock: bool | _LockLike | None = True,
    ctx: object = None,
    shape: None = None,
) -> Any: ...
@overload
def Array(
    typecode_or_type: str | _DType | type[_CData],
    size_or_initializer: Iterable[object] | None = None,
    *,
    lock: Literal[True] | _LockLike | None = True,
    ctx: object = None,
    shape: SupportsIndex | Sequence[int],
) -> SynchronizedArray[Any]: ...
@overload
def Array(
    typecode_or_type: str | _DType | type[_CData],
    size_or_initializer: Iterable[object] | None = None,
    *,
    lock: bool | _LockLike | None = True,
    ctx: object = None,
    shape: SupportsIndex | Sequence[int],
) -> Any: ...
def Array(
    typecode_or_type: str | _DType | type[_CData],
    size_or_initializer: SupportsIndex | Iterable[object] | None = None,
    *,
    lock: object = True,
    ctx: object = None,
    shape: SupportsIndex | Sequence[int] | None = None,
) -> Any:
    """A ctypes array in shared memory with a lock. Mirrors `multiprocessing.Array`.

    Parameters
    ----------
    typecode_or_type
        A type code, a ctypes type, or a NumPy dtype.
    size_or_initializer
        The number of elements, which are zero, or a sequence of initial values.
    lock
        True: a new `RLock`. False: no lock; the result is a `RawArray`. Or an existing lock.
    shape
        Make an array of arrays with this shape; `size_or_initializer`, if given, is its initial value.
    ctx
        Accepted as in the standard library, and not used.

    Returns
    -------
    SynchronizedArray
        Each access takes the lock. `numpy.asarray` gives an array over the same memory, without the lock.

    Raises
    ------
    TypeError, ValueError, OutOfSharedMemory
        As `RawArray`.

    Examples
    --------
    >>> import copyless, numpy as np
    >>> a = copyless.Array("i", [1, 2, 3])
    >>> a[0] = 9
    >>> a[:], np.asarray(a).sum()
    ([9, 2, 3], np.int64(14))
    """
    kind, begin = _array_type(typecode_or_type, size_or_initializer, shape)
    if lock is False:
        return _raw_array(kind, begin)
    obj, guard, block = _with_lock(kind, lock)
    _begin(obj, begin)
    return _synchronized(obj, guard, block)


def copy(obj: CT) -> CT:
    """A new shared object, without a lock, with the content of a ctypes object. Mirrors
    `multiprocessing.sharedctypes.copy`.

    Examples
    --------
    >>> from copyless.sharedctypes import RawValue, copy
    >>> v = RawValue("i", 3); w = copy(v); w.value += 1
    >>> v.value, w.value
    (3, 4)
    """
    kind = type(obj)
    _refuse_pointers(kind, kind)
    made: CT = _over(kind, _zeros(ctypes.sizeof(kind)))
    ctypes.memmove(ctypes.addressof(made), ctypes.addressof(obj), ctypes.sizeof(kind))
    return made


@overload
def synchronized(obj: _SimpleCData[T], lock: _LockLike | None = None, ctx: object = None) -> Synchronized[T]: ...
@overload
def synchronized(
    obj: ctypes.Array[ctypes.c_char], lock: _LockLike | None = None, ctx: object = None
) -> SynchronizedString: ...
@overload
def synchronized(
    obj: ctypes.Array[_SimpleCData[T]], lock: _LockLike | None = None, ctx: object = None
) -> SynchronizedArray[T]: ...
@overload
def synchronized(
    obj: ctypes.Array[Any], lock: _LockLike | None = None, ctx: object = None
) -> SynchronizedArray[Any]: ...
@overload
def synchronized(obj: FT, lock: _LockLike | None = None, ctx: object = None) -> _SynchronizedFields[FT]: ...
def synchronized(obj: _CData, lock: _LockLike | None = None, ctx: object = None) -> Any:
    """A wrapper whose every access to a ctypes object takes a lock. Mirrors
    `multiprocessing.sharedctypes.synchronized`.

    Parameters
    ----------
    obj
        A ctypes object.
    lock
        The lock; default: a new `RLock`.

    Examples
    --------
    >>> from copyless.sharedctypes import RawValue, synchronized
    >>> synchronized(RawValue("d", 1.5)).value
    1.5
    """
    assert not isinstance(obj, SynchronizedBase), "object already synchronized"
    return _synchronized(obj, RLock() if lock is None else lock, None)


# ---- wrappers with a lock


def _synchronized(obj: _CData, lock: _LockLike, block: _blocks.Block | None) -> Any:
    cls = _class_over(obj)
    made = cls.__new__(cls)
    made._stand(obj, lock, block, _code_of(obj), ctypes.sizeof(obj))
    made._together = block is not None
    return made


def _code_of(obj: object) -> str:
    """The type code of a simple ctypes object."""
    kind: Any = type(obj)
    return kind._type_ if isinstance(obj, _SimpleCData) else ""


def _class_over(obj: object) -> Any:
    """The class that wraps a ctypes object."""
    if isinstance(obj, _SimpleCData):
        return Synchronized
    if isinstance(obj, ctypes.Array):
        return SynchronizedString if obj._type_ is ctypes.c_char else SynchronizedArray
    return _class_for(type(obj))


def _restore_as(kind: type[B], lock: _LockLike, obj: _CData) -> B:
    made = kind.__new__(kind)
    SynchronizedBase.__init__(made, obj, lock)
    return made


_classes: weakref.WeakKeyDictionary[type, type[SynchronizedBase[Any]]] = weakref.WeakKeyDictionary()


def _class_for(kind: Any) -> type[SynchronizedBase[Any]]:
    """A class with a property for each field of a structure, as in the standard library."""
    made = _classes.get(kind)
    if made is None:
        names = [field[0] for base in reversed(kind.__mro__) for field in base.__dict__.get("_fields_", ())]
        body = {name: _guarded(name) for name in names}
        made = _classes[kind] = type("Synchronized" + kind.__name__, (SynchronizedBase,), body)
    return made


def _guarded(name: str) -> Any:
    def get(self: SynchronizedBase[Any]) -> object:
        with self._lock:
            return getattr(self._obj, name)

    def put(self: SynchronizedBase[Any], value: object) -> None:
        with self._lock:
            setattr(self._obj, name, value)

    return property(get, put)


def _restore(description: tuple[type[_CData], tuple[int, ...]] | None, lock: Any, obj: _CData | None) -> object:
    if obj is not None:
        return _synchronized(obj, lock, None)
    assert description is not None
    kind = _assemble(*description)
    return _synchronized(_over(kind, lock.block, _value.DATA_OFFSET), lock, lock.block)


class SynchronizedBase(_value._Value, Generic[CT]):
    """A ctypes object whose every access takes a lock. A ``with`` block holds the lock over several accesses."""

    _together = False  # the lock and the object lie in one block

    if TYPE_CHECKING:  # methods that the Cython class has

        def get_obj(self) -> CT: ...
        def get_lock(self) -> Lock | RLock: ...

    def __init__(
        self, obj: CT, lock: _LockLike | None = None, ctx: object = None
    ) -> None:  # for subclasses of users: copyless makes its own in _synchronized
        self._stand(obj, RLock() if lock is None else lock, None, _code_of(obj), ctypes.sizeof(obj))

    def __reduce__(self) -> tuple[object, ...]:
        if type(self) is not _class_over(self._obj):
            return _loaders.synchronized_as, (type(self), self._lock, _Raw(self._obj)), dict(self.__dict__) or None
        if self._together:
            return _loaders.synchronized, (_describe(type(self._obj)), self._lock, None)
        return _loaders.synchronized, (None, self._lock, _Raw(self._obj))

    def __enter__(self) -> bool:
        got: bool = self._lock.__enter__()
        return got

    def __exit__(self, *exc: object) -> None:
        self._lock.__exit__(*exc)

    def acquire(self, block: bool = True, timeout: float | None = None) -> bool:
        """Acquire the lock; parameters and result are those of `copyless.RLock.acquire`."""
        got: bool = self._lock.acquire(block, timeout)
        return got

    def release(self) -> None:
        """Release the lock."""
        self._lock.release()

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        import numpy as np

        array = np.asarray(self._obj)
        if dtype is not None and array.dtype != dtype:
            return array.astype(dtype)
        return array.copy() if copy else array

    def __repr__(self) -> str:
        return f"<{type(self).__name__} wrapper for {self._obj}>"


class _Raw:
    """Represents a ctypes object in a pickle of any pickler: by its handle."""

    def __init__(self, obj: object) -> None:
        self._obj = obj

    def __reduce__(self) -> Any:
        return _reduce(self._obj)


class Synchronized(SynchronizedBase["_SimpleCData[T]"], Generic[T]):
    """A number or a character in shared memory, with a lock; see `copyless.Value`."""

    if TYPE_CHECKING:  # what the Cython class has
        value: T

        def add(self, amount: T) -> T: ...
        def exchange(self, value: T) -> T: ...
        def compare_exchange(self, expected: T, value: T) -> bool: ...


if TYPE_CHECKING:

    class _SynchronizedFields(SynchronizedBase[CT]):
        """What `_class_for` makes: the fields of a structure are attributes."""

        def __getattr__(self, name: str) -> Any: ...
        def __setattr__(self, name: str, value: object) -> None: ...


class SynchronizedArray(SynchronizedBase["ctypes.Array[_SimpleCData[T]]"], Generic[T]):
    """An array in shared memory, with a lock; see `copyless.Array`. Slices of it are lists."""

    if not TYPE_CHECKING:
        value = property()  # only strings have `value`

    def __len__(self) -> int:
        return len(self._obj)

    if TYPE_CHECKING:  # by __len__ and __getitem__

        def __iter__(self) -> Iterator[T]: ...

    @overload
    def __getitem__(self, i: SupportsIndex) -> T: ...
    @overload
    def __getitem__(self, i: slice) -> list[T]: ...
    def __getitem__(self, i: SupportsIndex | slice) -> Any:
        with self._lock:
            return self._obj[i]

    @overload
    def __setitem__(self, i: SupportsIndex, value: T) -> None: ...
    @overload
    def __setitem__(self, i: slice, value: Iterable[T]) -> None: ...
    def __setitem__(self, i: SupportsIndex | slice, value: object) -> None:
        with self._lock:
            self._obj[i] = value

    def __getslice__(self, start: int, stop: int) -> list[T]:
        with self._lock:
            items: list[T] = self._obj[start:stop]
        return items

    def __setslice__(self, start: int, stop: int, values: Iterable[T]) -> None:
        with self._lock:
            self._obj[start:stop] = values


class SynchronizedString(SynchronizedArray[bytes]):
    """An array of characters in shared memory, with a lock.

    `value` is the text before the first zero byte, `raw` has all bytes.
    """

    value: bytes = _guarded("value")
    raw: bytes = _guarded("raw")

    if TYPE_CHECKING:  # slices are bytes

        def __getitem__(self, i: SupportsIndex | slice) -> bytes: ...  # type: ignore[override]
        def __setitem__(self, i: SupportsIndex | slice, value: bytes) -> None: ...  # type: ignore[override]


if not TYPE_CHECKING:  # so that a type checker reports a misspelt name
    __getattr__, __dir__ = standard_names(__name__, "multiprocessing.sharedctypes")
