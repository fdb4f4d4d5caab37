"""Arrays in shared memory: NumPy's constructors, and how arrays cross to another process.

A `SharedArray` and any view of it, and a plain `ndarray` over the same memory, cross as a handle of some 200 bytes and
arrive as the same memory, through the standard library's own `Process`, `Pool`, `ProcessPoolExecutor`, `Pipe` and `Queue`.
"""

from __future__ import annotations

import errno
import functools
import os
import pickle
import time
import types
from collections.abc import Callable, Sequence
from typing import Any, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from copyless import _loaders, _other_pools, pickling
from copyless._core import _array_type, _blocks, _copying, _handles, _names, _queue, _store
from copyless._core._memory import Memory
from copyless._core.failures import out_of_shared_memory
from copyless.errors import CorruptSegmentError
from copyless.storage import files, handles, names
from copyless.storage.blocks import allocate
from copyless.storage.dtypes import NotDescribed, remembered_dtype
from copyless.storage.handles import Handle
from copyless.storage.objects import check_name, find_lasting, what_lies_in
from copyless.storage.store import need

__all__ = [
    "SharedArray",
    "array",
    "asarray",
    "attach",
    "empty",
    "empty_like",
    "frombuffer",
    "full",
    "full_like",
    "handle",
    "memmap",
    "ones",
    "ones_like",
    "open",
    "unlink",
    "zeros",
    "zeros_like",
]

Shape = SupportsIndex | Sequence[SupportsIndex]
Init = Callable[[Any], Any]
_ndarray_new = np.ndarray.__new__
_WIRE_SIZE = _handles.WIRE_SIZE
_NOT_FILLED = object()


@_array_type.lying_as_its_base
class SharedArray(np.ndarray[Any, Any]):
    """SharedArray(shape, dtype=float, order='C', *, name=None, persist=False, exist_ok=False, init=None)

    An `ndarray` whose elements lie in shared memory.

    Sent to another process through multiprocessing it arrives as the same memory; so does any view that NumPy makes of
    it by slicing, striding, transposing or reshaping. The plain `pickle` module and `copy.deepcopy` store its data.
    What has this type lies in shared memory: results of arithmetic, fancy indexing, `copy`, `numpy.zeros_like` and of whatever
    else needs memory of its own are ordinary arrays, and so is ``private.view(SharedArray)``.

    Made by `empty`, `zeros`, `array` and their kin; calling the class is the same as `empty`.

    A class derived from it arrives as that class, with what its objects have in ``__dict__`` and ``__slots__``. It too is only the
    type of what lies in shared memory: a copy of its objects is an ordinary array.

    Examples
    --------
    >>> import copyless
    >>> a = copyless.zeros((2, 3))
    >>> a[1] = 7
    >>> a
    SharedArray([[0., 0., 0.],
                 [7., 7., 7.]])
    >>> type(a + 1).__name__, type(a.T[::2]).__name__
    ('ndarray', 'SharedArray')
    """

    def __new__(
        cls,
        shape: Shape,
        dtype: DTypeLike = float,
        order: str = "C",
        *,
        name: str | None = None,
        persist: bool = False,
        exist_ok: bool = False,
        init: Init | None = None,
    ) -> SharedArray:
        made = empty(shape, dtype, order, name=name, persist=persist, exist_ok=exist_ok, init=init)
        return made if cls is SharedArray else made.view(cls)

    __slots__ = ()
    _settles_later = False  # a derived class has an __array_finalize__ of its own, after which its arrays are looked at
    __array_finalize__ = _array_type.array_finalize
    __array_wrap__ = _array_type.array_wrap

    def __init_subclass__(cls, **options: Any) -> None:
        super(SharedArray, cls).__init_subclass__(**options)  # noqa: UP008 - see lying_as_its_base
        own = cls.__dict__.get("__array_finalize__")
        if callable(own):

            @functools.wraps(own)
            def finalize(self: Any, obj: Any) -> None:
                own(self, obj)
                if type(self).__array_finalize__ is finalize:  # the outermost: no other comes after it
                    _array_type.settle(self)

            cls._settles_later = True
            cls.__array_finalize__ = finalize
        pickling.register(cls, reduce_of_class)

    @classmethod
    def _private_twin(cls) -> type | None:
        """The type of an array that NumPy made of this derived class over private memory; it has the attributes' places."""
        twin: type | None = cls.__dict__.get("_twin", cls)
        if twin is cls:
            twin = np.ndarray if _array_type.lie_alike(cls, np.ndarray) else _twin_of(cls)
            cls._twin = twin if _array_type.lie_alike(cls, twin) else None  # type: ignore[attr-defined]
            twin = cls._twin  # type: ignore[attr-defined]
        return twin

    def __setstate__(self, state: Any) -> None:
        raise TypeError("a shared array cannot be given other memory: copy the values in, array[...] = values")

    def __reduce__(self) -> Any:
        return self.view(np.ndarray).__reduce__()

    def __reduce_ex__(self, protocol: Any) -> Any:
        other = _other_pools.reduce(self, protocol)
        return self.view(np.ndarray).__reduce_ex__(protocol) if other is None else other


def _twin_of(kind: type) -> type:
    """A class that derives from `ndarray` and has the places that `kind` has, made in the same layers."""
    twin: type = np.ndarray
    for each in reversed(kind.__mro__):
        if issubclass(each, SharedArray) and each is not SharedArray:
            places = [f"_{i}" for i in range(len(slots_of(each)))]
            if each.__dictoffset__ and not twin.__dictoffset__:
                places.append("__dict__")
            twin = type("PrivateArray", (twin,), {"__slots__": places})
    names = {
        "__doc__": "An ordinary array, which NumPy made of a class derived from SharedArray over private memory.",
        "__module__": __name__,
        "__slots__": (),
        "__array_wrap__": _array_type.array_wrap,
        "__reduce__": lambda self: self.view(np.ndarray).__reduce__(),
        "__reduce_ex__": lambda self, protocol: self.view(np.ndarray).__reduce_ex__(protocol),
    }
    return type("PrivateArray", (twin,), names)


def slots_of(kind: type) -> list[str]:
    """The attributes that a class keeps in slots of its own, as they are called from outside."""
    slots = kind.__dict__.get("__slots__", ())
    names = [slots] if isinstance(slots, str) else list(slots)
    bare = kind.__name__.lstrip("_")
    return [
        f"_{bare}{name}" if name.startswith("__") and not name.endswith("__") and bare else name
        for name in names
        if name not in ("__dict__", "__weakref__")
    ]


def state_of(array: Any) -> dict[str, Any] | None:
    """What an array of a derived class has besides its elements: what lies in its dict and its slots."""
    state = dict(getattr(array, "__dict__", None) or {})
    for kind in type(array).__mro__:
        if kind in (np.ndarray, SharedArray):
            break
        state.update({name: getattr(array, name) for name in slots_of(kind) if hasattr(array, name)})
    return state or None


def of_class(kind: type, plain: Any, state: dict[str, Any] | None) -> Any:
    """An array as one of a derived class, with its state: nothing is copied."""
    made: Any = np.ndarray.view(plain, kind)
    know_class(kind)
    for name, value in (state or {}).items():
        if hasattr(made, "__dict__") and not isinstance(getattr(type(made), name, None), types.MemberDescriptorType):
            made.__dict__[name] = value
        else:
            setattr(made, name, value)
    return made


def reduce_of_class(array: Any) -> Any:
    """How an array of a class derived from SharedArray crosses."""
    return _loaders.array_of_class, (type(array), array.view(SharedArray), state_of(array))


# ---- arrays of classes that derive from ndarray


def why_not_moved(array: Any) -> str:
    """Why an array of a class that derives from `ndarray` stays where it is when it is shared; empty where it does not."""
    kind = type(array)
    if isinstance(array, np.memmap) and getattr(array, "_mmap", None) is not None:
        return f"a {kind.__name__} stands on its file: copyless.memmap(filename) crosses by its handle"
    for each in kind.__mro__:
        if each is np.ndarray:
            return ""
        if not each.__flags__ & 1 << 9 and each is not SharedArray:  # made in C, not by a class statement
            return f"its class {each.__qualname__} is made in C, and what it holds there cannot be moved"
    return ""


def know_class(kind: type) -> None:
    """Teach multiprocessing's pickler to send arrays of a derived class by handle, unless it was taught otherwise."""
    if pickling.reduction_of(kind) is None:
        pickling.register(kind, _crossing_of_class)


def _reduce_class(array: Any) -> Any:
    plain = np.ndarray.view(array, np.ndarray)
    if not plain.size or plain.dtype.hasobject or not shared_memory_of(plain):
        return array.__reduce_ex__(pickling.protocol())
    state = state_of(array)
    for value in (state or {}).values():
        if not isinstance(value, (np.ndarray, str, int, float, bytes, type, type(None))):
            pickle.dumps(value)  # what cannot be sent is known now, while there is another way
    return _loaders.array_of_class, (type(array), plain, state)


_crossing_of_class = pickling.or_as_pickle(_reduce_class)


def _over(
    block: Any, shape: tuple[int, ...], dtype: Any, offset: int, strides: tuple[int, ...] | None, order: Any = "C"
) -> Any:
    return _ndarray_new(SharedArray, shape, dtype, block, offset, strides, order)


# ---- making


def _layout(shape: Shape, dtype: DTypeLike, order: str) -> tuple[tuple[int, ...], Any, int]:
    """Checked (shape, dtype, bytes)."""
    if order not in ("C", "F"):
        raise ValueError(f"order must be 'C' or 'F', not {order!r}")
    kind = np.dtype(dtype)
    if kind.hasobject:
        raise TypeError(f"dtype {kind} holds Python objects, which are addresses of one process: they cannot be shared")
    try:
        sizes = tuple(n.__index__() for n in (shape if isinstance(shape, (Sequence, np.ndarray)) else (shape,)))
    except AttributeError:
        raise TypeError(f"a shape is an integer or a sequence of integers, not {shape!r}") from None
    nbytes = kind.itemsize
    for n in sizes:
        if n < 0:
            raise ValueError(f"negative dimensions are not allowed: shape {sizes}")
        nbytes *= n
    if len(sizes) > 32:
        raise ValueError(f"an array of {len(sizes)} dimensions; NumPy 1 allows 32")
    return sizes, kind, nbytes


def _make(
    shape: Shape,
    dtype: DTypeLike,
    order: str,
    naming: tuple[str | None, bool, bool, Init | None],
    clear: bool,
    fill: Any = _NOT_FILLED,
) -> Any:
    """A new array, cleared or filled; or of a name that may exist, the array that has it. `naming`: name, persist, exist_ok, init."""
    sizes, kind, nbytes = _layout(shape, dtype, order)
    _other_pools.look()
    name, persist, exist_ok, init = naming
    if name is not None:
        return _make_named(sizes, kind, nbytes, order, name, persist, exist_ok, init, clear, fill)
    if persist or exist_ok:
        what = "persist" if persist else "exist_ok"
        raise ValueError(f"{what}=True needs a name: nothing else could find the array again")
    if init is not None:
        names.check_init(init)
    block = allocate(nbytes)
    if clear and block.recycled:
        block.clear()
    array = _over(block, sizes, kind, 0, None, order)
    if fill is not _NOT_FILLED:
        _fill(array, fill)
    if init is not None:
        _begin(init, array, None)
    return array


def _make_named(
    sizes: tuple[int, ...],
    kind: Any,
    nbytes: int,
    order: str,
    name: str,
    persist: bool,
    exist_ok: bool,
    init: Init | None,
    clear: bool,
    fill: Any,
) -> Any:
    text = check_name(name)
    names.check_init(init)
    need()
    spec = handles.describe(
        kind, sizes, _strides(sizes, kind.itemsize, order), 0, handles.WRITEABLE | handles.SHARED_ARRAY
    )

    def make() -> Any:
        at = (nbytes + 63) // 64 * 64
        block = allocate(at + len(spec))
        if clear and block.recycled:
            block.clear()
        memoryview(block)[at : at + len(spec)] = spec
        array = _over(block, sizes, kind, 0, None, order)
        if fill is not _NOT_FILLED:
            _fill(array, fill)
        if init is not None:
            _begin(init, array, name)
        return array if _names.publish(block, text, at, len(spec), persist) else None

    def look(turn: bool) -> Any:
        found = find_lasting(name, text, turn)
        if found is None:
            return None
        if not exist_ok:
            raise FileExistsError(
                17,
                f"an array of this name exists: open it with copyless.open({name!r}), or exist_ok=True, or unlink it"
                if found.described
                else f"the name belongs to another thing ({what_lies_in(found.block, 0)}): choose another, or copyless.unlink it",
                name,
            )
        there = _checked(_open_found(found, name), sizes, kind, name)
        names.tell_if_it_goes(name, found, persist)
        return there

    array = None if exist_ok or init is not None else make()
    # None as well: the name is taken, or belongs to what was shut down.
    return names.once(name, text, look, make) if array is None else array


def _checked(there: Any, shape: tuple[int, ...], dtype: Any, name: str) -> Any:
    """What has the name already, if it is the array that the caller would have made."""
    if not isinstance(there, np.ndarray):
        raise FileExistsError(
            17,
            f"the name belongs to another thing ({type(there).__name__}): choose another, or copyless.unlink it",
            name,
        )
    if there.shape != shape or there.dtype != dtype:
        raise FileExistsError(
            17,
            f"the array of this name has shape {there.shape} and dtype {there.dtype}, not shape {shape} and dtype {dtype}: say the "
            "same in every program, or choose another name, or copyless.unlink it",
            name,
        )
    return there


def _begin(init: Init, array: Any, name: str | None) -> None:
    result = names.begin_with(init, array, name)
    if isinstance(result, np.ndarray) and not np.may_share_memory(result, array):
        raise TypeError(
            "init returned another array than its argument, which nobody would see: write into it, a[...] = values"
        )


def _strides(shape: tuple[int, ...], itemsize: int, order: str) -> tuple[int, ...]:
    strides, step = [], itemsize
    for n in shape if order == "F" else reversed(shape):
        strides.append(step)
        step *= max(n, 1)
    return tuple(strides if order == "F" else reversed(strides))


def copy_large(target: Any, value: Any) -> bool:
    """Copy a large array into another at the memory's own speed (native/copy.h); False: it is for NumPy to do."""
    if (
        not isinstance(value, np.ndarray)
        or value.nbytes < _copying.COPY_LARGE
        or value.shape != target.shape
        or value.dtype != target.dtype
        or value.dtype.hasobject
        or not (value.flags.c_contiguous and target.flags.c_contiguous)
        or np.may_share_memory(target, value)
    ):
        return False
    _copying.copy_parts(target.reshape(-1).view("u1"), [value.reshape(-1).view(np.ndarray).view("u1")], 1)
    return True


def _fill(target: Any, value: Any) -> None:
    if not copy_large(target, value):
        target[...] = value


def empty(
    shape: Shape,
    dtype: DTypeLike = float,
    order: str = "C",
    *,
    name: str | None = None,
    persist: bool = False,
    exist_ok: bool = False,
    init: Init | None = None,
) -> SharedArray:
    """New shared array, not initialised. Mirrors `numpy.empty`.

    Parameters
    ----------
    shape : int or sequence of int
        Any number of dimensions to 32; 0-d and zero-length too.
    dtype : dtype-like
        Any dtype without Python objects.
    order : {'C', 'F'}
        Layout.
    name : str, optional
        Lets unrelated programs of this user `open` it; to 255 bytes of UTF-8, no ``/``.
    persist : bool
        A named array lives on when nobody holds it, until `unlink` (or the next boot). Without it, it goes with its last holder.
    exist_ok : bool
        If the name is taken, return that array, which must have this shape and dtype: the same line in every program.
    init : function, optional
        ``init(array)`` fills the new array before anybody can find it. Of programs that ask for one name at once, one runs it; the
        others wait and get what it made. If it raises or its process is killed, the next runs it anew. Its result is ignored.

    Returns
    -------
    SharedArray
        Its elements are aligned to 64 bytes at least.

    Raises
    ------
    FileExistsError
        When the name is taken; with `exist_ok`, when what has it is no array, or has another shape or dtype. It shows both.
    OutOfSharedMemory
        When there is no room.
    TypeError, ValueError
        For a dtype with Python objects, a bad shape or a bad name.
    WrongProcessError
        In a process that was forked inside `init` and comes out of it: its parent makes the array.
    RuntimeError
        When `init` asks for the name that it is making.

    Notes
    -----
    Recycled memory costs no system call, and its pages are warm. New memory is reserved for real: writing cannot fail.

    Examples
    --------
    >>> import copyless
    >>> a = copyless.empty((1080, 720, 3), dtype="u1", name="camera-doc")
    >>> copyless.open("camera-doc").shape
    (1080, 720, 3)
    """
    array: SharedArray = _make(shape, dtype, order, (name, persist, exist_ok, init), clear=False)
    return array


def zeros(
    shape: Shape,
    dtype: DTypeLike = float,
    order: str = "C",
    *,
    name: str | None = None,
    persist: bool = False,
    exist_ok: bool = False,
    init: Init | None = None,
) -> SharedArray:
    """New shared array of zeros. As `empty`; recycled memory is cleared, new memory is zero already.

    Examples
    --------
    >>> import copyless
    >>> copyless.zeros(3, dtype="i4")
    SharedArray([0, 0, 0], dtype=int32)

    The same line in every program; the first that runs it fills the array, and nobody sees it empty:

    >>> def load(weights):
    ...     weights[:] = [0.1, 0.2, 0.3]
    >>> weights = copyless.zeros(3, name="weights-doc", exist_ok=True, init=load)
    >>> copyless.zeros(3, name="weights-doc", exist_ok=True, init=load)
    SharedArray([0.1, 0.2, 0.3])
    """
    array: SharedArray = _make(shape, dtype, order, (name, persist, exist_ok, init), clear=True)
    return array


def ones(
    shape: Shape,
    dtype: DTypeLike = float,
    order: str = "C",
    *,
    name: str | None = None,
    persist: bool = False,
    exist_ok: bool = False,
    init: Init | None = None,
) -> SharedArray:
    """New shared array of ones. As `empty`.

    Examples
    --------
    >>> import copyless
    >>> copyless.ones(2)
    SharedArray([1., 1.])
    """
    array: SharedArray = _make(shape, dtype, order, (name, persist, exist_ok, init), False, 1)
    return array


def full(
    shape: Shape,
    fill_value: Any,
    dtype: DTypeLike | None = None,
    order: str = "C",
    *,
    name: str | None = None,
    persist: bool = False,
    exist_ok: bool = False,
    init: Init | None = None,
) -> SharedArray:
    """New shared array filled with a value; its dtype is the value's unless given. As `empty`.

    Examples
    --------
    >>> import copyless
    >>> copyless.full((2, 2), 5)
    SharedArray([[5, 5],
                 [5, 5]])
    """
    kind = np.asarray(fill_value).dtype if dtype is None else dtype
    array: SharedArray = _make(shape, kind, order, (name, persist, exist_ok, init), False, fill_value)
    return array


def array(
    object: ArrayLike,
    dtype: DTypeLike | None = None,
    *,
    order: str = "K",
    ndmin: int = 0,
    name: str | None = None,
    persist: bool = False,
    exist_ok: bool = False,
    init: Init | None = None,
) -> SharedArray:
    """A shared copy of array-like data: one copy, straight into shared memory. As `numpy.array`, and `empty`.

    Examples
    --------
    >>> import copyless
    >>> copyless.array([[1, 2], [3, 4]]).sum()
    np.int64(10)
    """
    source = np.array(object, dtype, ndmin=ndmin) if not isinstance(object, np.ndarray) else object
    kind = source.dtype if dtype is None else np.dtype(dtype)
    if source.ndim < ndmin:
        source = source.reshape((1,) * (ndmin - source.ndim) + source.shape)
    if order not in ("K", "A", "C", "F"):
        raise ValueError(f"order must be one of 'K', 'A', 'C', 'F', not {order!r}")
    if order in ("K", "A"):
        order = "F" if source.flags.f_contiguous and not source.flags.c_contiguous else "C"
    made: SharedArray = _make(source.shape, kind, order, (name, persist, exist_ok, init), False, source)
    return made


def asarray(object: ArrayLike, dtype: DTypeLike | None = None, order: str = "K") -> SharedArray:
    """The object itself when it is a shared array already (of that dtype), else a shared copy.

    Examples
    --------
    >>> import copyless
    >>> a = copyless.zeros(3)
    >>> copyless.asarray(a) is a
    True
    """
    if (
        isinstance(object, np.ndarray)
        and (dtype is None or object.dtype == np.dtype(dtype))
        and shared_memory_of(object)
    ):
        fits = order in ("K", "A") or (object.flags.c_contiguous if order == "C" else object.flags.f_contiguous)
        if fits:
            return object if isinstance(object, SharedArray) else object.view(SharedArray)
    return array(object, dtype, order=order)


def empty_like(
    prototype: ArrayLike,
    dtype: DTypeLike | None = None,
    order: str = "K",
    shape: Shape | None = None,
    *,
    name: str | None = None,
    persist: bool = False,
    exist_ok: bool = False,
    init: Init | None = None,
) -> SharedArray:
    """New shared array of the shape and dtype of another, not initialised. As `numpy.empty_like`, and `empty`.

    Examples
    --------
    >>> import copyless, numpy as np
    >>> copyless.empty_like(np.ones((2, 3), "f4")).dtype
    dtype('float32')
    """
    made: SharedArray = _like(prototype, dtype, order, shape, (name, persist, exist_ok, init))
    return made


def zeros_like(
    prototype: ArrayLike,
    dtype: DTypeLike | None = None,
    order: str = "K",
    shape: Shape | None = None,
    *,
    name: str | None = None,
    persist: bool = False,
    exist_ok: bool = False,
    init: Init | None = None,
) -> SharedArray:
    """New shared array of zeros of the shape and dtype of another. As `numpy.zeros_like`, and `empty`.

    Examples
    --------
    >>> import copyless
    >>> copyless.zeros_like([[1, 2, 3]])
    SharedArray([[0, 0, 0]])
    """
    made: SharedArray = _like(prototype, dtype, order, shape, (name, persist, exist_ok, init), clear=True)
    return made


def ones_like(
    prototype: ArrayLike,
    dtype: DTypeLike | None = None,
    order: str = "K",
    shape: Shape | None = None,
    *,
    name: str | None = None,
    persist: bool = False,
    exist_ok: bool = False,
    init: Init | None = None,
) -> SharedArray:
    """New shared array of ones of the shape and dtype of another. As `numpy.ones_like`, and `empty`.

    Examples
    --------
    >>> import copyless
    >>> copyless.ones_like([[1.5, 2]])
    SharedArray([[1., 1.]])
    """
    made: SharedArray = _like(prototype, dtype, order, shape, (name, persist, exist_ok, init), fill=1)
    return made


def full_like(
    prototype: ArrayLike,
    fill_value: Any,
    dtype: DTypeLike | None = None,
    order: str = "K",
    shape: Shape | None = None,
    *,
    name: str | None = None,
    persist: bool = False,
    exist_ok: bool = False,
    init: Init | None = None,
) -> SharedArray:
    """New shared array of the shape and dtype of another, filled with a value. As `numpy.full_like`, and `empty`.

    Examples
    --------
    >>> import copyless
    >>> copyless.full_like([1, 2, 3], 7)
    SharedArray([7, 7, 7])
    """
    made: SharedArray = _like(prototype, dtype, order, shape, (name, persist, exist_ok, init), fill=fill_value)
    return made


def _like(
    prototype: Any, dtype: Any, order: str, shape: Any, naming: Any, clear: bool = False, fill: Any = _NOT_FILLED
) -> Any:
    like = np.asanyarray(prototype)
    if order in ("K", "A"):
        order = "F" if like.flags.f_contiguous and not like.flags.c_contiguous else "C"
    return _make(
        like.shape if shape is None else shape, like.dtype if dtype is None else dtype, order, naming, clear, fill
    )


# ---- names


def open(name: str, *, timeout: float | None = 0, readonly: bool = False) -> Any:
    """The array (or lock, queue, ring) of a name, made by any program of this user; shape and dtype come with it.

    Parameters
    ----------
    name : str
        As given to `empty` and its kin.
    timeout : float or None
        Seconds to wait for the name to appear; 0 not at all, None for ever. Waiting costs no processor time.
    readonly : bool
        Refuse writing through this array.

    Raises
    ------
    FileNotFoundError
        When nothing has the name (after `timeout`).

    Notes
    -----
    The array lives while any process holds it: the creator may end. What was made with ``persist=True`` lives until `unlink`. Attaching
    never destroys.

    Examples
    --------
    >>> import copyless
    >>> a = copyless.full(3, 1.5, name="open-doc")
    >>> copyless.open("open-doc")
    SharedArray([1.5, 1.5, 1.5])
    """
    text = check_name(name)
    deadline = None if timeout is None else time.monotonic() + timeout
    while True:
        need()  # and again: another store is waited in, once it is known that the directory was removed
        seen = _names.names_seq()
        found = names.find(text)
        if found is not None:
            opened = _open_found(found, name)
            if readonly and isinstance(opened, np.ndarray):
                opened.flags.writeable = False
            return opened
        left = 0.2 if deadline is None else deadline - time.monotonic()
        if left <= 0:
            waited = f" after waiting {timeout:g} s" if timeout else ""
            raise names.missing(name, waited)
        # Names also come free when their holders die, which rings no bell: look again now and then.
        _names.wait_for_name(seen, min(left, 0.2))


def _open_found(found: names.Found, name: str) -> Any:
    block, at, length, _ = found
    if length == 0 and _blocks.object_kind(block):
        from copyless.storage import objects

        thing = objects.stand(block)
        thing.name = name
        return thing
    view = memoryview(block)
    if at + length > len(view):
        raise CorruptSegmentError(f"the description of a named array ends at {at + length} of {len(view)} bytes")
    try:
        dtype, shape, strides, start, _, end, _ = handles.decode_spec(bytes(view[at : at + length]))
    except ValueError as error:
        raise CorruptSegmentError(f"the description of a named array is damaged: {error}") from None
    if end > len(view):
        raise CorruptSegmentError(f"a named array of shape {shape} does not fit its block of {len(view)} bytes")
    array: SharedArray = _over(block, shape, dtype, start, strides)
    return array


def unlink(name: str) -> None:
    """Take a name away, from an array, queue, ring or lock. The memory stays while anybody holds it, and goes with the last.

    Those who hold it go on with it. Once something new has the name, whoever knows the old queue, ring or lock by its name gets
    `StaleNameError`: at a put, and where it would wait.

    Raises
    ------
    FileNotFoundError
        When nothing has the name.

    Examples
    --------
    >>> import copyless
    >>> a = copyless.zeros(3, name="unlink-doc", persist=True)
    >>> copyless.unlink("unlink-doc")
    """
    text = check_name(name)
    need()
    while True:
        try:
            found = names.find(text)
        except CorruptSegmentError:  # the name goes all the same
            if _names.unpublish(text):
                return
            continue
        if found is None:
            raise names.missing(name)
        if not found.described and _blocks.object_kind(found.block):
            _blocks.mark_renamed(found.block)  # first: a kill before the next line leaves a mark, which does no harm
        if _names.unpublish_of(text, found.block):
            return


# ---- handles


def _encode(array: Any, message: int) -> bytes | None:
    """The handle of an array that lies wholly in shared memory, or None."""
    dtype = array.dtype
    if dtype.hasobject:
        return None
    flags = handles.WRITEABLE * array.flags.writeable | handles.SHARED_ARRAY * isinstance(array, SharedArray)
    made = _handles.array_handle(array, remembered_dtype(dtype), flags, message)
    if made is not None or not files.any_mapped() or array.size == 0:
        return made
    first = array.__array_interface__["data"][0]
    before, after = handles.extent(array.shape, array.strides, dtype.itemsize)
    mapped = files.mapped_at(first - before, before + after)
    if mapped is None:
        return None
    file, at = mapped
    spec = handles.encode_spec(array, before, flags)
    return handles.encode_file(file.path, file.device, file.inode, file.offset + at, before + after) + spec


def decode(handle: bytes, block: Any, offset: int, nbytes: int) -> Any:
    """The array that a resolved handle describes; `block` is None for a file."""
    if block is None:
        path, device, inode, spec = handles.decode_file(handle)
    else:
        spec = handle[_WIRE_SIZE:]
    dtype, shape, strides, start, flags, end, _ = handles.decode_spec(spec)
    if end > nbytes:
        raise ValueError(f"the handle describes an array of shape {shape} in {nbytes} bytes: it is damaged")
    if block is None:
        block = files.map_again(path, device, inode, offset, nbytes, bool(flags & handles.WRITEABLE))
        offset -= block.offset
    made = _ndarray_new(SharedArray if flags & 2 else np.ndarray, shape, dtype, block, offset + start, strides)
    if not flags & 1:
        made.flags.writeable = False
    return made


def shared_memory_of(array: Any) -> bool:
    """Whether all elements of an array lie in shared memory."""
    if array.size == 0:
        return isinstance(array, SharedArray)
    first = array.__array_interface__["data"][0]
    before, after = handles.extent(array.shape, array.strides, array.dtype.itemsize)
    return (
        _handles.find(first - before, before + after) is not None
        or files.mapped_at(first - before, before + after) is not None
    )


def handle(obj: Any) -> Handle:
    """The handle of an array, a `Memory`, a lock, queue or ring: where it lies, as bytes that any channel can carry on this host.

    Takes no hold: keep the object until the other side has attached. (Objects sent through multiprocessing need no
    handle: they cross as one by themselves, with a hold.)

    Raises
    ------
    ValueError
        When the object does not lie in shared memory.

    Examples
    --------
    >>> import copyless
    >>> a = copyless.zeros(4)
    >>> h = copyless.handle(a)
    >>> b = copyless.attach(h)
    >>> b[0] = 3
    >>> a[0]
    np.float64(3.0)
    """
    need()
    if isinstance(obj, Memory):
        made = pickling.memory_handle(obj, 0)
    elif isinstance(obj, np.ndarray):
        made = _encode(obj, 0)
    elif isinstance(obj, _blocks.Object):
        made = pickling.object_handle(obj, 0)
    else:
        raise TypeError(f"handle() takes an array, a Memory, a lock, queue or ring, not {type(obj).__name__!r}")
    if made is None:
        raise ValueError(f"this {type(obj).__name__} does not lie in shared memory: copyless.share() moves it there")
    return Handle(made)


def attach(handle: bytes) -> Any:
    """The object that a handle names: the same memory, in this process.

    Raises
    ------
    StaleHandleError
        When it is gone.
    ForeignHostError
        When the handle was made on another host or in another storage directory.
    CorruptSegmentError
        When its memory was damaged.
    ValueError
        When the bytes are no handle.

    Notes
    -----
    Costs one to four microseconds when this process has the segment mapped, else an open and a mapping.

    Examples
    --------
    >>> import copyless
    >>> a = copyless.full(3, 2.0)
    >>> copyless.attach(copyless.handle(a[1:]))
    SharedArray([2., 2.])
    """
    if type(handle) is not bytes:
        if not isinstance(handle, (bytes, bytearray, memoryview)):
            raise TypeError(f"a handle is bytes, not {type(handle).__name__!r}")
        handle = bytes(handle)
    found = _handles.load_array(handle)
    return pickling.load(handle) if found is None else found


def frombuffer(buffer: Any, dtype: DTypeLike = float, count: int = -1, offset: int = 0) -> SharedArray:
    """An array over a buffer that lies in shared memory (a `Memory`, a shared array): nothing is copied.

    Mirrors `numpy.frombuffer`; one dimension.

    Raises
    ------
    ValueError
        When the buffer is private memory: `array` copies it into shared memory.

    Examples
    --------
    >>> import copyless
    >>> copyless.frombuffer(copyless.Alloc_mem(16), dtype="u1").shape
    (16,)
    """
    plain = np.frombuffer(buffer, dtype, count, offset)
    need()
    if plain.size and not shared_memory_of(plain):
        raise ValueError(
            "the buffer does not lie in shared memory; copyless.array(numpy.frombuffer(...)) copies it there"
        )
    return plain.view(SharedArray) if plain.size else empty(0, plain.dtype)


# ---- files


def memmap(
    filename: Any,
    dtype: DTypeLike = np.uint8,
    mode: str = "r+",
    offset: int = 0,
    shape: Shape | None = None,
    order: str = "C",
) -> SharedArray:
    """A file as a shared array: nothing is read before it is touched, and nothing twice on this machine.

    Mirrors `numpy.memmap`; sent to another process it arrives as the same file, mapped.

    Parameters
    ----------
    filename : path
        The file.
    mode : {'r', 'r+', 'w+'}
        Read only; read and write (grown if it is too short); made or emptied first.
    offset : int
        Bytes before the first element.
    shape : int or sequence of int, optional
        Default: one dimension, to the end of the file.

    Raises
    ------
    FileNotFoundError, PermissionError
        As for opening the file.
    ValueError
        For mode ``'c'`` (a private copy cannot be shared), or a shape that does not fit.
    OutOfSharedMemory
        When its disk has no room: space is reserved when the file grows, and a file that was made for this is removed.

    Examples
    --------
    >>> import copyless, tempfile
    >>> with tempfile.NamedTemporaryFile() as f:
    ...     a = copyless.memmap(f.name, "i4", "w+", shape=(2, 3))
    ...     a[:] = 5
    ...     copyless.memmap(f.name, "i4", "r").sum()
    np.int64(30)
    """
    if mode == "c":
        raise ValueError("mode 'c' makes private copies, which cannot be shared: use 'r', or numpy.memmap")
    if mode not in ("r", "r+", "w+"):
        raise ValueError(f"mode must be 'r', 'r+' or 'w+', not {mode!r}")
    path = os.path.abspath(os.fspath(filename))
    if offset < 0:
        raise ValueError(f"offset must be 0 or more bytes, not {offset}")
    flags = {"r": os.O_RDONLY, "r+": os.O_RDWR, "w+": os.O_RDWR | os.O_CREAT | os.O_TRUNC}[mode]
    made_here = mode == "w+" and not os.path.lexists(path)
    fd = files.open_regular(path, flags | os.O_CLOEXEC)
    try:
        size = os.fstat(fd).st_size
        kind = np.dtype(dtype)
        if shape is None:
            if (size - offset) % kind.itemsize or size <= offset:
                raise ValueError(
                    f"{size - offset} bytes after the offset are no whole number of elements of {kind.itemsize}"
                )
            shape = ((size - offset) // kind.itemsize,)
        sizes, kind, nbytes = _layout(shape, kind, order)
        if nbytes == 0:
            raise ValueError("an empty file, or an empty shape, cannot be mapped")
        if offset + nbytes > size:
            if mode == "r":
                raise ValueError(f"shape {sizes} of {kind} needs {offset + nbytes:,} bytes, the file has {size:,}")
            try:
                os.posix_fallocate(fd, 0, offset + nbytes)
            except OSError as error:
                os.ftruncate(fd, size)
                if made_here:
                    os.unlink(path)
                if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                    directory = os.path.dirname(path)
                    raise out_of_shared_memory(error.errno, "no room for the file", nbytes, directory) from None
                raise
        mapping = files.map_file(path, fd, offset, nbytes, mode == "r")
    finally:
        os.close(fd)
    made: SharedArray = _over(mapping, sizes, kind, offset - mapping.offset, None, order)
    return made


# ---- how arrays cross


_frombuffer = np.zeros(1).__reduce_ex__(5)[0]


def _reduce(array: Any) -> Any:
    if _store.is_open() or files.any_mapped():
        try:
            message = _encode(array, pickling.message_kind())
        except NotDescribed:  # the pickle says the dtype
            message = _encode(_raw(array), pickling.message_kind())
            if message is not None:
                return _loaders.array_of_dtype, (pickling.note(message), array.dtype)
        if message is not None:
            return _loaders.load, (pickling.note(message),)
    if isinstance(array, SharedArray) and array.size == 0:
        return _loaders.empty_array, (array.shape, array.dtype)
    plain = array.view(np.ndarray)
    if not array.dtype.isnative and not array.dtype.hasobject:  # NumPy's own pickles swap the bytes, in part
        return _loaders.array_as, (_raw(plain), array.dtype)
    if pickling.protocol() == 5 and array.nbytes >= pickling.BESIDE and not array.dtype.hasobject:
        flags, dtype = array.flags, array.dtype
        if flags.c_contiguous and dtype.kind in "biufc" and dtype.isnative:  # as NumPy reduces it, in a third of the time
            return _frombuffer, (pickle.PickleBuffer(plain), dtype, array.shape, "C")
        if not flags.c_contiguous and not flags.f_contiguous:
            plain = np.ascontiguousarray(plain)  # else it would be copied into the pickle first
    return plain.__reduce_ex__(pickling.protocol())


def _raw(array: Any) -> Any:
    """The same elements as bytes without a meaning."""
    return np.ndarray.view(array, f"V{array.dtype.itemsize}")


def _reduce_records(array: Any) -> Any:
    if array.dtype.hasobject or array.dtype.fields is None:
        return array.__reduce_ex__(pickling.protocol())
    return _loaders.recarray, (array.view(np.dtype((np.void, array.dtype)), np.ndarray),)


def _for_queue(array: Any) -> bytes | None:
    try:
        return _encode(array, 2) if _store.is_open() or files.any_mapped() else None
    except NotDescribed:
        return None


def _are_plain() -> bool:
    """Whether the pickler would do nothing of its own with an array of numbers that lies in no shared memory."""
    return not files.any_mapped() and pickling.reduction_of(np.ndarray) is _reduce


_array_type.know_types(SharedArray, np.ndarray, shared_memory_of)
pickling.direct[np.ndarray] = pickling.direct[SharedArray] = _for_queue
_handles.know_arrays(handles.specs, _ndarray_new, SharedArray, np.ndarray)
_queue.know_arrays(np.ndarray, _are_plain, pickling.BESIDE)
_other_pools.know(SharedArray, _reduce)
pickling.register(np.ndarray, _reduce)
pickling.register(SharedArray, _reduce)
pickling.register(np.recarray, _reduce_records)
