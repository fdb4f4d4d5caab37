"""`SharedArray`: an array whose elements lie in shared memory.

This file has its type, how one is made, and how an array of a derived class is sent.
"""

from __future__ import annotations

import functools
import pickle
import types
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, SupportsIndex, overload

import numpy as np
from numpy.typing import DTypeLike, NDArray

from copyless import _loaders
from copyless._core import _copying, _names
from copyless._storage.store import allocate, ensure_open
from copyless._transfer import _array_type, handles, in_flight, names, other_pools
from copyless._transfer._array_type import shared_memory_of
from copyless._transfer.names import check_name, find_lasting, what_lies_in
from copyless._typing import TypeVar
from copyless.errors import CorruptSegmentError

__all__ = [
    "NOT_FILLED",
    "Init",
    "Shape",
    "SharedArray",
    "copy_large",
    "empty",
    "layout",
    "make",
    "of_class",
    "open_found",
    "over",
    "shared_memory_of",
]

Init = Callable[[Any], object]
Shape = SupportsIndex | Sequence[SupportsIndex]
_ndarray_new = np.ndarray.__new__
NOT_FILLED = object()

ShapeT = TypeVar("ShapeT", bound=tuple[Any, ...], default=tuple[Any, ...], covariant=True)
DTypeT = TypeVar("DTypeT", bound=np.dtype[Any], default=np.dtype[Any], covariant=True)
Scalar = TypeVar("Scalar", bound=np.generic)
K = TypeVar("K", bound="NDArray[np.generic]")
Order = Literal["C", "F"]

if TYPE_CHECKING:
    from typing import TypeAlias, TypedDict

    from typing_extensions import Self, Unpack

    class Naming(TypedDict, total=False):
        """The options of every constructor."""

        name: str | None
        persist: bool
        exist_ok: bool
        init: Init | None

    Scalars: TypeAlias = type[Scalar] | np.dtype[Scalar]
    Of: TypeAlias = "SharedArray[tuple[Any, ...], np.dtype[Scalar]]"
    Floats: TypeAlias = "SharedArray[tuple[Any, ...], np.dtype[np.float64]]"


@_array_type.lying_as_its_base
class SharedArray(np.ndarray[ShapeT, DTypeT]):
    """SharedArray(shape, dtype=float, order='C', *, name=None, persist=False, exist_ok=False, init=None)

    An `ndarray` whose elements lie in shared memory.

    A process that receives it through multiprocessing gets the same memory. The same holds for any view that NumPy
    makes of it by slicing, striding, transposing or reshaping. The plain `pickle` module and `copy.deepcopy` store its
    data.

    Every array of this type is in shared memory. Arithmetic, fancy indexing, `copy` and other operations that allocate
    new memory return ordinary arrays, and so do `numpy.zeros_like` and ``private.view(SharedArray)``.

    Use `empty`, `zeros`, `array` and the other constructors; calling the class is the same as calling `empty`.

    An array of a derived class arrives with that class and with the contents of its ``__dict__`` and ``__slots__``. The
    derived class, too, is only the type of arrays in shared memory: a copy is an ordinary array.

    Raises
    ------
    TypeError, ValueError, FileExistsError, OutOfSharedMemory
        When it is made, as `empty`.

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

    if TYPE_CHECKING:
        _private: ClassVar[type | None]

    def __new__(
        cls,
        shape: Shape,
        dtype: DTypeLike = float,
        order: Order = "C",
        *,
        name: str | None = None,
        persist: bool = False,
        exist_ok: bool = False,
        init: Init | None = None,
    ) -> Self:
        made: Any = empty(shape, dtype, order, name=name, persist=persist, exist_ok=exist_ok, init=init)
        own: Self = made if cls is SharedArray else made.view(cls)
        return own

    __slots__ = ()
    __module__ = "copyless.arrays"  # its public module, which pickles name
    _settles_later = False  # a derived class has its own __array_finalize__: check its arrays after that
    if not TYPE_CHECKING:
        __array_finalize__ = _array_type.array_finalize
        __array_wrap__ = _array_type.array_wrap

    def __init_subclass__(cls, **options: object) -> None:
        super(SharedArray, cls).__init_subclass__(**options)  # noqa: UP008 - see lying_as_its_base
        own = cls.__dict__.get("__array_finalize__")
        if callable(own):

            @functools.wraps(own)
            def finalize(self: Any, obj: object) -> None:
                own(self, obj)
                if type(self).__array_finalize__ is finalize:  # the outermost one: no other runs after it
                    _array_type.settle(self)

            kind: Any = cls
            kind._settles_later = True
            kind.__array_finalize__ = finalize
        in_flight.register(cls, reduce_of_class)

    @classmethod
    def _private_class(cls) -> type | None:
        """The type of an array that NumPy made of this derived class over private memory; it has the attributes'
        places.
        """
        private: type | None = cls.__dict__.get("_private", cls)
        if private is cls:
            private = np.ndarray if _array_type.lie_alike(cls, np.ndarray) else _private_class_of(cls)
            private = cls._private = private if _array_type.lie_alike(cls, private) else None
        return private

    def _repr_html_(self) -> str:
        """The HTML that a notebook shows: a table of the layout and the memory, and the values."""
        from copyless import _html

        return _html.tell(self, lambda: _html.of_array(self))

    def __setstate__(self, state: object) -> None:
        raise TypeError("the memory of a shared array cannot be replaced: copy the values in, array[...] = values")

    def __reduce__(self) -> str | tuple[object, ...]:
        return self.view(np.ndarray).__reduce__()

    def __reduce_ex__(self, protocol: Any) -> Any:
        other = other_pools.reduce(self, SharedArray, protocol, reduce_of_class)
        return self.view(np.ndarray).__reduce_ex__(protocol) if other is None else other


def _private_class_of(kind: type) -> type:
    """A class that derives from `ndarray` and has the places that `kind` has, made in the same layers."""
    private: type = np.ndarray
    for each in reversed(kind.__mro__):
        if issubclass(each, SharedArray) and each is not SharedArray:
            places = [f"_{i}" for i in range(len(slots_of(each)))]
            if each.__dictoffset__ and not private.__dictoffset__:
                places.append("__dict__")
            private = type("PrivateArray", (private,), {"__slots__": places})
    members = {
        "__doc__": "An ordinary array, which NumPy made of a class derived from SharedArray over private memory.",
        "__module__": "copyless.arrays",
        "__slots__": (),
        "__array_wrap__": _array_type.array_wrap,
        "__reduce__": lambda self: self.view(np.ndarray).__reduce__(),
        "__reduce_ex__": lambda self, protocol: self.view(np.ndarray).__reduce_ex__(protocol),
    }
    return type("PrivateArray", (private,), members)


def slots_of(kind: type) -> list[str]:
    """The attributes that a class keeps in its own slots, under the names that code outside the class uses."""
    slots = kind.__dict__.get("__slots__", ())
    names = [slots] if isinstance(slots, str) else list(slots)
    bare = kind.__name__.lstrip("_")
    return [
        f"_{bare}{name}" if name.startswith("__") and not name.endswith("__") and bare else name
        for name in names
        if name not in ("__dict__", "__weakref__")
    ]


def state_of(array: object) -> dict[str, object] | None:
    """The attributes of an array of a derived class, from its dict and its slots."""
    state = dict(getattr(array, "__dict__", None) or {})
    for kind in type(array).__mro__:
        if kind in (np.ndarray, SharedArray):
            break
        state.update({name: getattr(array, name) for name in slots_of(kind) if hasattr(array, name)})
    return state or None


def of_class(kind: type[K], plain: np.ndarray[ShapeT, DTypeT], state: dict[str, object] | None) -> K:
    """An array as one of a derived class, with its attributes. Nothing is copied."""
    made: K = np.ndarray.view(plain, kind)
    register_class(kind)
    for name, value in (state or {}).items():
        if hasattr(made, "__dict__") and not isinstance(getattr(type(made), name, None), types.MemberDescriptorType):
            made.__dict__[name] = value
        else:
            setattr(made, name, value)
    return made


def reduce_of_class(array: SharedArray) -> tuple[object, ...]:
    """The reduction of an array whose class derives from SharedArray."""
    return _loaders.array_of_class, (type(array), array.view(SharedArray), state_of(array))


# ---- arrays of classes that derive from ndarray


def why_not_moved(array: object) -> str:
    """Why `share` cannot move an array of a class that derives from `ndarray`; empty if it can."""
    kind = type(array)
    if isinstance(array, np.memmap) and getattr(array, "_mmap", None) is not None:
        return f"a {kind.__name__} is mapped from a file: use copyless.memmap(filename), which is sent by handle"
    for each in kind.__mro__:
        if each is np.ndarray:
            return ""
        if not each.__flags__ & 1 << 9 and each is not SharedArray:  # made in C, not by a class statement
            return f"its class {each.__qualname__} is made in C, and its C attributes cannot be moved"
    return ""


def register_class(kind: type) -> None:
    """Teach multiprocessing's pickler to send arrays of a derived class by handle, unless it was taught otherwise."""
    if in_flight.reduction_of(kind) is None:
        in_flight.register(kind, _crossing_of_class)


def _reduce_class(array: NDArray[Any]) -> object:
    plain = np.ndarray.view(array, np.ndarray)
    if not plain.size or plain.dtype.hasobject or not shared_memory_of(plain):
        return array.__reduce_ex__(in_flight.protocol())
    state = state_of(array)
    for value in (state or {}).values():
        if not isinstance(value, (np.ndarray, str, int, float, bytes, type, type(None))):
            pickle.dumps(value)  # fails here if it cannot be sent, while there is another way
    return _loaders.array_of_class, (type(array), plain, state)


_crossing_of_class = in_flight.or_as_pickle(_reduce_class)


# ---- making


def over(
    block: Any,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    offset: int,
    strides: tuple[int, ...] | None,
    order: Any = "C",
) -> SharedArray:
    made: SharedArray = _ndarray_new(SharedArray, shape, dtype, block, offset, strides, order)
    return made


def layout(shape: Shape, dtype: DTypeLike, order: str) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """The checked (shape, dtype, bytes) of an array."""
    if order not in ("C", "F"):
        raise ValueError(f"order must be 'C' or 'F', not {order!r}")
    kind = np.dtype(dtype)
    if kind.hasobject:
        raise TypeError(
            f"dtype {kind} holds Python objects, whose addresses mean nothing in another process: choose a "
            "dtype without objects"
        )
    try:
        sizes = tuple(n.__index__() for n in (shape if isinstance(shape, (Sequence, np.ndarray)) else (shape,)))
    except AttributeError:
        raise TypeError(f"a shape must be an integer or a sequence of integers, not {shape!r}") from None
    nbytes = kind.itemsize
    for n in sizes:
        if n < 0:
            raise ValueError(f"negative dimensions are not allowed: shape {sizes}")
        nbytes *= n
    if len(sizes) > 32:
        raise ValueError(f"too many dimensions: {len(sizes)}, where at most 32 are possible (the limit of NumPy 1)")
    return sizes, kind, nbytes


def make(
    shape: Shape,
    dtype: DTypeLike,
    order: str,
    naming: tuple[str | None, bool, bool, Init | None],
    clear: bool,
    fill: object = NOT_FILLED,
) -> SharedArray:
    """A new array, cleared or filled; or the existing array of the name.

    `naming` is (name, persist, exist_ok, init).
    """
    sizes, kind, nbytes = layout(shape, dtype, order)
    other_pools.look(SharedArray)
    name, persist, exist_ok, init = naming
    if name is not None:
        return _make_named(sizes, kind, nbytes, order, name, persist, exist_ok, init, clear, fill)
    if persist or exist_ok:
        what = "persist" if persist else "exist_ok"
        raise ValueError(f"{what}=True needs a name: give name=")
    if init is not None:
        names.check_init(init)
    block = allocate(nbytes)
    if clear and block.recycled:
        block.clear()
    array = over(block, sizes, kind, 0, None, order)
    if fill is not NOT_FILLED:
        _fill(array, fill)
    if init is not None:
        _begin(init, array, None)
    return array


def _make_named(
    sizes: tuple[int, ...],
    kind: np.dtype[Any],
    nbytes: int,
    order: str,
    name: str,
    persist: bool,
    exist_ok: bool,
    init: Init | None,
    clear: bool,
    fill: object,
) -> SharedArray:
    text = check_name(name)
    names.check_init(init)
    ensure_open()
    spec = handles.describe(
        kind, sizes, _strides(sizes, kind.itemsize, order), 0, handles.WRITEABLE | handles.SHARED_ARRAY
    )

    def make_it() -> SharedArray | None:
        at = (nbytes + 63) // 64 * 64
        block = allocate(at + len(spec))
        if clear and block.recycled:
            block.clear()
        memoryview(block)[at : at + len(spec)] = spec
        array = over(block, sizes, kind, 0, None, order)
        if fill is not NOT_FILLED:
            _fill(array, fill)
        if init is not None:
            _begin(init, array, name)
        return array if _names.publish(block, text, at, len(spec), persist) else None

    def look(turn: bool) -> SharedArray | None:
        found = find_lasting(name, text, turn)
        if found is None:
            return None
        if not exist_ok:
            raise FileExistsError(
                17,
                f"an array of this name exists: open it with copyless.open({name!r}), pass exist_ok=True, or "
                f"remove the name with copyless.unlink({name!r})"
                if found.described
                else f"the name is taken by an object of another kind ({what_lies_in(found.block, 0)}): choose "
                f"another name, or remove this one with copyless.unlink({name!r})",
                name,
            )
        if not found.described:
            raise FileExistsError(
                17,
                f"the name is taken by an object of another kind ({what_lies_in(found.block, 0)}): choose "
                f"another name, or remove this one with copyless.unlink({name!r})",
                name,
            )
        there = _checked(open_found(found), sizes, kind, name)
        names.tell_if_it_goes(name, found, persist)
        return there

    array = None if exist_ok or init is not None else make_it()
    # None also if the name is taken, or belongs to an object that was shut down.
    return names.once(name, text, look, make_it) if array is None else array


def _checked(there: SharedArray, shape: tuple[int, ...], dtype: np.dtype[Any], name: str) -> SharedArray:
    """The array that already has the name, if its shape and dtype are those that the caller wants."""
    if there.shape != shape or there.dtype != dtype:
        raise FileExistsError(
            17,
            f"the array of this name has shape {there.shape} and dtype {there.dtype}, not shape {shape} and "
            f"dtype {dtype}: use the same in every program, choose another name, or remove this one with "
            f"copyless.unlink({name!r})",
            name,
        )
    return there


def _begin(init: Init, array: SharedArray, name: str | None) -> None:
    result = names.begin_with(init, array, name)
    if isinstance(result, np.ndarray) and not np.may_share_memory(result, array):
        raise TypeError(
            "init returned another array than its argument, and that array would be lost: write into the "
            "argument, a[...] = values"
        )


def _strides(shape: tuple[int, ...], itemsize: int, order: str) -> tuple[int, ...]:
    strides, step = [], itemsize
    for n in shape if order == "F" else reversed(shape):
        strides.append(step)
        step *= max(n, 1)
    return tuple(strides if order == "F" else reversed(strides))


def copy_large(target: NDArray[Any], value: object) -> bool:
    """Copy a large array into another at full memory bandwidth (native/copy.h). False if NumPy has to do it."""
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


def _fill(target: NDArray[Any], value: object) -> None:
    if not copy_large(target, value):
        target[...] = value


@overload
def empty(shape: Shape, *, order: Order = "C", **options: Unpack[Naming]) -> Floats: ...
@overload
def empty(shape: Shape, dtype: Scalars[Scalar], order: Order = "C", **options: Unpack[Naming]) -> Of[Scalar]: ...
@overload
def empty(shape: Shape, dtype: DTypeLike, order: Order = "C", **options: Unpack[Naming]) -> SharedArray: ...
def empty(
    shape: Shape,
    dtype: DTypeLike = float,
    order: Order = "C",
    *,
    name: str | None = None,
    persist: bool = False,
    exist_ok: bool = False,
    init: Init | None = None,
) -> SharedArray:
    """New shared array, not initialised.

    Mirrors `numpy.empty`.

    Parameters
    ----------
    shape : int or sequence of int
        At most 32 dimensions; 0-d and zero-length arrays too.
    dtype : dtype-like
        Any dtype without Python objects.
    order : {'C', 'F'}
        Row-major or column-major.
    name : str, optional
        Other programs of this user `open` the array by this name: at most 255 bytes of UTF-8, without ``/``.
    persist : bool
        A named array exists until `unlink` (or the next boot), even if no process holds it. Without `persist` it is
        freed with its last holder.
    exist_ok : bool
        If the name is taken, return the existing array, which must have the same shape and dtype. Every program can
        then run the same line.
    init : function, optional
        ``init(array)`` fills the new array before other processes can find it; its result is ignored. If several
        programs ask for the name at once, one of them runs `init`; the others wait and get the same array. If `init`
        raises or its process is killed, the next program runs it again.

    Returns
    -------
    SharedArray
        Its elements are aligned to at least 64 bytes, and are arbitrary until they are written.

    Raises
    ------
    FileExistsError
        If the name is taken and `exist_ok` is false; with `exist_ok`, if the existing object is not an array or has
        another shape or dtype. The text shows both.
    OutOfSharedMemory
        If there is no room.
    TypeError, ValueError
        For a dtype with Python objects, an invalid shape or an invalid name.
    WrongProcessError
        In a process that was forked inside `init` and leaves it: its parent makes the array.
    RuntimeError
        If `init` asks for the name that it is filling.

    Notes
    -----
    Reused memory costs no system call and no page faults. New memory is reserved at once, so that writing to it cannot
    fail.

    Examples
    --------
    >>> import copyless
    >>> a = copyless.empty((1080, 720, 3), dtype="u1", name="camera-doc")
    >>> copyless.open("camera-doc").shape
    (1080, 720, 3)
    """
    array: SharedArray = make(shape, dtype, order, (name, persist, exist_ok, init), clear=False)
    return array


def open_found(found: names.Found) -> SharedArray:
    """The array that a name names."""
    block, at, length = found.block, found.at, found.described
    view = memoryview(block)
    if at + length > len(view):
        raise CorruptSegmentError(f"the description of a named array ends at {at + length} of {len(view)} bytes")
    try:
        dtype, shape, strides, start, _, end, _ = handles.decode_spec(bytes(view[at : at + length]))
    except ValueError as error:
        raise CorruptSegmentError(f"the description of a named array is damaged: {error}") from None
    if end > len(view):
        raise CorruptSegmentError(f"a named array of shape {shape} does not fit its block of {len(view)} bytes")
    array: SharedArray = over(block, shape, dtype, start, strides)
    return array


empty.__module__ = "copyless.arrays"  # its public place
