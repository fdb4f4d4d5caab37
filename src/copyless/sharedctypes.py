"""ctypes objects in shared memory: `RawValue, RawArray, Value, Array, copy, synchronized`.

Mirrors `multiprocessing.sharedctypes`: same names, signatures and results. What is different:

* Every object may be pickled: it goes to any process by its handle, through `Process`, pools, queues and pipes.
* Values and arrays lie at multiples of 64 bytes, so two of them never share a cache line. When there is no room,
  `OutOfSharedMemory` says so; nothing goes to a file on a disk unseen.
* The lock survives a kill: the next acquirer gets `OwnerDiedError`, once.
* Types may also be given as NumPy's (``"int32"``, ``np.dtype(...)``), arrays with ``shape=``; `numpy.asarray` and
  `numpy.frombuffer` stand on the same memory.
* `Value.add`, `exchange` and `compare_exchange` change a value in one step, where ``v.value += 1`` is two.
* Types that hold pointers are refused: an address means nothing in another process.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence
from multiprocessing import sharedctypes as _stdlib
from typing import TYPE_CHECKING, Any

from copyless import _loaders, pickling
from copyless._core import _blocks, _handles, _value, c_library
from copyless._core._memory import Memory
from copyless._standard_names import standard_names
from copyless.storage.blocks import allocate
from copyless.storage.store import need
from copyless.synchronize import RLock

__all__ = ["Array", "RawArray", "RawValue", "Value", "copy", "synchronized"]

typecode_to_type: dict[str, Any] = {
    "c": ctypes.c_char, "u": ctypes.c_wchar,
    "b": ctypes.c_byte, "B": ctypes.c_ubyte,
    "h": ctypes.c_short, "H": ctypes.c_ushort,
    "i": ctypes.c_int, "I": ctypes.c_uint,
    "l": ctypes.c_long, "L": ctypes.c_ulong,
    "q": ctypes.c_longlong, "Q": ctypes.c_ulonglong,
    "f": ctypes.c_float, "d": ctypes.c_double,
    "g": ctypes.c_longdouble, "?": ctypes.c_bool,
}  # fmt: skip

_FEW = 4096  # bytes: a value, rather than data
_SimpleCData: type = ctypes.c_int.__mro__[1]
_POINTERS = (
    ctypes._Pointer,
    ctypes.CFUNCTYPE(None).__mro__[1],
    ctypes.c_void_p,
    ctypes.c_char_p,
    ctypes.c_wchar_p,
    ctypes.py_object,
)


# ---- types


def _type_of(typecode_or_type: Any) -> Any:
    """The ctypes type of a type code, a ctypes type, or what NumPy takes for a dtype."""
    kind = typecode_to_type.get(typecode_or_type) if isinstance(typecode_or_type, str) else typecode_or_type
    if not (isinstance(kind, type) and hasattr(kind, "from_buffer")):
        kind = _from_numpy(typecode_or_type)
    if kind not in _checked:
        _refuse_pointers(kind, kind)
        _checked.add(kind)
    return kind


_checked: weakref.WeakSet[Any] = weakref.WeakSet()


def _from_numpy(what: Any) -> Any:
    import numpy as np

    try:
        return np.ctypeslib.as_ctypes_type(np.dtype(what))
    except (TypeError, NotImplementedError):
        codes = "".join(typecode_to_type)
        raise TypeError(
            f"{what!r} is no type code ({codes}), no ctypes type and no NumPy dtype that has one in C; "
            "for other dtypes make an array: copyless.zeros(shape, dtype)"
        ) from None


def _refuse_pointers(kind: Any, whole: Any) -> None:
    if issubclass(kind, _POINTERS):
        inside = "" if kind is whole else f" in {whole.__name__}"
        raise TypeError(
            f"{kind.__name__}{inside} is a pointer: an address of one process means nothing in another. Share what it "
            "points to, or its index in an array"
        )
    if issubclass(kind, ctypes.Array):
        _refuse_pointers(kind._type_, whole)
    for _, field, *_ in getattr(kind, "_fields_", ()):
        _refuse_pointers(field, whole)


# ---- memory


class _Wrapper:
    """Keeps the memory of a ctypes object, as the standard library's objects keep theirs."""

    def __init__(self, memory: Any) -> None:
        self._memory = memory

    def create_memoryview(self) -> memoryview:
        return memoryview(self._memory)

    def __reduce__(self) -> Any:
        view = Memory(memoryview(self._memory))
        handle = pickling.memory_handle(view, pickling.message_kind())
        assert handle is not None
        return _loaders.ctypes_wrapper, (pickling.note(handle),)


def _over(kind: Any, memory: Any, offset: int = 0) -> Any:
    """A ctypes object over memory, which lives as long as it."""
    obj = kind.from_buffer(memory, offset)
    obj._wrapper = _Wrapper(memory)
    pickling.register(kind, _reduce)
    return obj


def _reduce(obj: Any) -> Any:
    size = ctypes.sizeof(obj)
    handle = (
        _handles.handle_of(ctypes.addressof(obj), size, _handles.KIND_MEMORY, pickling.message_kind()) if size else None
    )
    if handle is not None:
        return _loaders.ctypes_object, (*_describe(type(obj)), _Message(pickling.note(handle)))
    if hasattr(obj, "_wrapper") and not isinstance(obj._wrapper, _Wrapper):
        return _stdlib.reduce_ctype(obj)  # type: ignore[attr-defined]
    return obj.__reduce__()


class _Message:
    """Stands for memory in a pickle, which loads it by its handle."""

    def __init__(self, handle: bytes) -> None:
        self._handle = handle

    def __reduce__(self) -> Any:
        return _loaders.load, (self._handle,)


reduce_ctype = _reduce  # as the standard library calls it


def rebuild_ctype(type_: Any, wrapper: Any, length: int | None) -> Any:
    """An object of ctypes over the memory of a wrapper. Mirrors `multiprocessing.sharedctypes.rebuild_ctype`."""
    kind = type_ if length is None else type_ * length
    if isinstance(wrapper, _Wrapper):
        return _over(kind, wrapper._memory)
    return _stdlib.rebuild_ctype(type_, wrapper, length)  # type: ignore[attr-defined]


def _describe(kind: Any) -> tuple[Any, tuple[int, ...]]:
    """An array type has no name that could be pickled: (its innermost type, lengths from within)."""
    lengths: list[int] = []
    while issubclass(kind, ctypes.Array) and "_Array_" in kind.__name__:  # not a class of the user's own
        lengths.insert(0, kind._length_)
        kind = kind._type_
    return kind, tuple(lengths)


def _assemble(kind: Any, lengths: tuple[int, ...]) -> Any:
    for length in lengths:
        kind = kind * length
    return kind


def _rebuild(kind: Any, lengths: tuple[int, ...], memory: Any) -> Any:
    return _over(_assemble(kind, lengths), memory)


def _zeros(size: int) -> Any:
    need()
    block = allocate(max(size, 1))
    if block.recycled:
        block.clear()
    return block


# ---- the standard library's functions


def RawValue(typecode_or_type: Any, *args: Any) -> Any:
    """A ctypes object in shared memory, without a lock. Mirrors `multiprocessing.sharedctypes.RawValue`.

    Parameters
    ----------
    typecode_or_type
        A type code of the `array` module (or ``c``, ``?``, ``g``), a ctypes type (structures too), or a NumPy dtype.
    *args
        Given to the type; none: zeros.

    Raises
    ------
    TypeError
        For an unknown type, or one that holds pointers.
    OutOfSharedMemory
        When there is no room.

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


def _array_type(typecode_or_type: Any, size_or_initializer: Any, shape: Any) -> tuple[Any, Any]:
    """(array type, what it begins with or None)."""
    kind = _type_of(typecode_or_type)
    if shape is not None:
        lengths = (shape,) if isinstance(shape, int) else tuple(shape)
        begin = size_or_initializer
    elif isinstance(size_or_initializer, int) or hasattr(size_or_initializer, "__index__"):
        lengths, begin = (size_or_initializer.__index__(),), None
    elif size_or_initializer is None:
        raise TypeError("an array needs a size, or items, or shape=")
    else:
        begin = size_or_initializer if hasattr(size_or_initializer, "__len__") else list(size_or_initializer)
        lengths = (len(begin),)
    if any(length < 0 for length in lengths):
        raise ValueError(f"an array's length is 0 or more, not {lengths}")
    return _assemble(kind, tuple(reversed(lengths))), begin


def _begin(obj: Any, begin: Any) -> None:
    if begin is None:
        return
    if hasattr(begin, "__array_interface__") or isinstance(obj[0] if len(obj) else None, ctypes.Array):
        import numpy as np

        np.frombuffer(obj, np.ctypeslib.as_array(obj).dtype).reshape(np.ctypeslib.as_array(obj).shape)[...] = begin
    else:
        obj.__init__(*begin)


def RawArray(
    typecode_or_type: Any, size_or_initializer: Any = None, *, shape: int | Sequence[int] | None = None
) -> Any:
    """A ctypes array in shared memory, without a lock. Mirrors `multiprocessing.sharedctypes.RawArray`.

    Parameters
    ----------
    typecode_or_type
        As for `RawValue`.
    size_or_initializer
        How many elements (zeros), or the elements.
    shape
        An array of arrays of this shape; `size_or_initializer` is then what it is filled with, if given.

    Examples
    --------
    >>> from copyless.sharedctypes import RawArray
    >>> import numpy as np
    >>> a = RawArray("d", shape=(2, 3))
    >>> np.asarray(a)[1] = 5
    >>> list(a[1])
    [5.0, 5.0, 5.0]
    """
    kind, begin = _array_type(typecode_or_type, size_or_initializer, shape)
    obj = _over(kind, _zeros(ctypes.sizeof(kind)))
    _begin(obj, begin)
    return obj


def _with_lock(kind: Any, lock: Any) -> tuple[Any, Any, Any]:
    """(ctypes object of zeros, its lock, the block when both lie in one)."""
    if lock not in (True, None):
        if not hasattr(lock, "acquire"):
            raise AttributeError(f"{lock!r} has no method 'acquire'")
        return _over(kind, _zeros(ctypes.sizeof(kind))), lock, None
    need()
    size = max(ctypes.sizeof(kind), 1)
    block = _blocks.new_object(
        _value.DATA_OFFSET + size,
        c_library.KIND_RLOCK,
        0,
        0,
        0,
        where=_blocks.AMONG_ARRAYS,  # what lies behind the lock is the user's
        spill=size <= _FEW,
    )
    return _over(kind, block, _value.DATA_OFFSET), RLock._from_block(block), block


def Value(typecode_or_type: Any, *args: Any, lock: Any = True, ctx: object = None) -> Any:
    """A ctypes object in shared memory with a lock. Mirrors `multiprocessing.Value`.

    Parameters
    ----------
    typecode_or_type, *args
        As for `RawValue`.
    lock
        True: a new `RLock`; False: none, as `RawValue`; or a lock of yours.
    ctx
        Accepted as the standard library does, and not needed.

    Returns
    -------
    Synchronized
        With `value` (or a structure's fields), `get_lock`, `get_obj`, `acquire`, `release`, ``with``; and for numbers `add`,
        `exchange` and `compare_exchange`, each in one step.

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


def Array(
    typecode_or_type: Any,
    size_or_initializer: Any = None,
    *,
    lock: Any = True,
    ctx: object = None,
    shape: int | Sequence[int] | None = None,
) -> Any:
    """A ctypes array in shared memory with a lock. Mirrors `multiprocessing.Array`; parameters as for `RawArray` and `Value`.

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
        return RawArray(typecode_or_type, size_or_initializer, shape=shape)
    obj, guard, block = _with_lock(kind, lock)
    _begin(obj, begin)
    return _synchronized(obj, guard, block)


def copy(obj: Any) -> Any:
    """A new shared object, without a lock, with the content of a ctypes object.

    Examples
    --------
    >>> from copyless.sharedctypes import RawValue, copy
    >>> v = RawValue("i", 3); w = copy(v); w.value += 1
    >>> v.value, w.value
    (3, 4)
    """
    kind = type(obj)
    _refuse_pointers(kind, kind)
    made = _over(kind, _zeros(ctypes.sizeof(kind)))
    ctypes.memmove(ctypes.addressof(made), ctypes.addressof(obj), ctypes.sizeof(kind))
    return made


def synchronized(obj: Any, lock: Any = None, ctx: object = None) -> Any:
    """A wrapper that accesses a ctypes object under a lock: a new `RLock` unless one is given.

    Examples
    --------
    >>> from copyless.sharedctypes import RawValue, synchronized
    >>> synchronized(RawValue("d", 1.5)).value
    1.5
    """
    assert not isinstance(obj, SynchronizedBase), "object already synchronized"
    return _synchronized(obj, RLock() if lock is None else lock, None)


# ---- what guards them


def _synchronized(obj: Any, lock: Any, block: Any) -> Any:
    cls = _class_over(obj)
    made = cls.__new__(cls)
    code = type(obj)._type_ if isinstance(obj, _SimpleCData) else ""  # type: ignore[attr-defined]
    made._stand(obj, lock, block, code, ctypes.sizeof(obj))
    made._together = block is not None
    return made


def _class_over(obj: Any) -> Any:
    """Which class wraps a ctypes object."""
    if isinstance(obj, _SimpleCData):
        return Synchronized
    if isinstance(obj, ctypes.Array):
        return SynchronizedString if obj._type_ is ctypes.c_char else SynchronizedArray
    return _class_for(type(obj))


def _restore_as(kind: Any, lock: Any, obj: Any) -> Any:
    made = kind.__new__(kind)
    SynchronizedBase.__init__(made, obj, lock)
    return made


_classes: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()


def _class_for(kind: Any) -> Any:
    """A class with a property for each field of a structure, as the standard library makes it."""
    made = _classes.get(kind)
    if made is None:
        names = [field[0] for base in reversed(kind.__mro__) for field in base.__dict__.get("_fields_", ())]
        body = {name: _guarded(name) for name in names}
        made = _classes[kind] = type("Synchronized" + kind.__name__, (SynchronizedBase,), body)
    return made


def _guarded(name: str) -> Any:
    def get(self: Any) -> Any:
        with self._lock:
            return getattr(self._obj, name)

    def put(self: Any, value: Any) -> None:
        with self._lock:
            setattr(self._obj, name, value)

    return property(get, put)


def _restore(description: Any, lock: Any, obj: Any) -> Any:
    if obj is not None:
        return _synchronized(obj, lock, None)
    kind = _assemble(*description)
    return _synchronized(_over(kind, lock.block, _value.DATA_OFFSET), lock, lock.block)


class SynchronizedBase(_value._Value):
    """A ctypes object whose every access takes a lock; ``with`` holds it over several."""

    _together = False  # the lock and the object lie in one block

    def __init__(self, obj: Any, lock: Any = None, ctx: object = None) -> None:  # for subclasses: ours are made by _synchronized
        code = type(obj)._type_ if isinstance(obj, _SimpleCData) else ""  # type: ignore[attr-defined]
        self._stand(obj, RLock() if lock is None else lock, None, code, ctypes.sizeof(obj))

    def __reduce__(self) -> Any:
        if type(self) is not _class_over(self._obj):
            return _loaders.synchronized_as, (type(self), self._lock, _Raw(self._obj)), dict(self.__dict__) or None
        if self._together:
            return _loaders.synchronized, (_describe(type(self._obj)), self._lock, None)
        return _loaders.synchronized, (None, self._lock, _Raw(self._obj))

    def __enter__(self) -> Any:
        return self._lock.__enter__()

    def __exit__(self, *exc: Any) -> Any:
        return self._lock.__exit__(*exc)

    def acquire(self, block: bool = True, timeout: float | None = None) -> bool:
        """Acquire the lock; see `copyless.RLock`."""
        return self._lock.acquire(block, timeout)  # type: ignore[no-any-return]

    def release(self) -> None:
        """Release the lock."""
        self._lock.release()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        import numpy as np

        array = np.asarray(self._obj)
        if dtype is not None and array.dtype != dtype:
            return array.astype(dtype)
        return array.copy() if copy else array

    def __repr__(self) -> str:
        return f"<{type(self).__name__} wrapper for {self._obj}>"


class _Raw:
    """Stands for a ctypes object in a pickle: by its handle, whatever the pickler."""

    def __init__(self, obj: Any) -> None:
        self._obj = obj

    def __reduce__(self) -> Any:
        return _reduce(self._obj)


class Synchronized(SynchronizedBase):
    """A number, or a character."""


class SynchronizedArray(SynchronizedBase):
    """An array; slices are lists."""

    value = property()  # only strings have one

    def __len__(self) -> int:
        return len(self._obj)

    def __getitem__(self, i: Any) -> Any:
        with self._lock:
            return self._obj[i]

    def __setitem__(self, i: Any, value: Any) -> None:
        with self._lock:
            self._obj[i] = value

    def __getslice__(self, start: int, stop: int) -> Any:
        with self._lock:
            return self._obj[start:stop]

    def __setslice__(self, start: int, stop: int, values: Any) -> None:
        with self._lock:
            self._obj[start:stop] = values


class SynchronizedString(SynchronizedArray):
    """An array of characters: `value` is its text up to the first zero, `raw` all of it."""

    value = _guarded("value")
    raw = _guarded("raw")


if not TYPE_CHECKING:  # a checker shall see a misspelt name
    __getattr__, __dir__ = standard_names(__name__, "multiprocessing.sharedctypes")
