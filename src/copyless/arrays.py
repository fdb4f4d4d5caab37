"""Arrays in shared memory: NumPy's constructors.

A `SharedArray`, a view of one, and a plain `ndarray` over the same memory are sent to other processes as a handle of
about 200 bytes. The receiver gets the same memory. This works through the standard library's own `Process`, `Pool`,
`ProcessPoolExecutor`, `Pipe` and `Queue`.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from copyless._core.failures import no_room
from copyless._platform import reserve_room
from copyless._storage import user_files
from copyless._storage.store import ensure_open

# From this import on, multiprocessing's pickler sends arrays by handle. It also loads what receiving an array needs, so
# that receiving one imports nothing and needs no descriptor for that.
from copyless._transfer import _array_loading, array_reductions  # noqa: F401
from copyless._transfer._array_type import shared_memory_of
from copyless._transfer.shared_array import (
    NOT_FILLED,
    Init,
    Order,
    Scalar,
    Shape,
    SharedArray,
    empty,
    layout,
    make,
    over,
)

__all__ = [
    "SharedArray",
    "array",
    "asarray",
    "empty",
    "empty_like",
    "frombuffer",
    "full",
    "full_like",
    "memmap",
    "ones",
    "ones_like",
    "zeros",
    "zeros_like",
]

if TYPE_CHECKING:
    from typing_extensions import Buffer, Unpack

    from copyless._transfer.shared_array import Floats, Naming, Of, Scalars

KeptOrder = Literal["K", "A", "C", "F"]

# ---- constructors


@overload
def zeros(shape: Shape, *, order: Order = "C", **options: Unpack[Naming]) -> Floats: ...
@overload
def zeros(shape: Shape, dtype: Scalars[Scalar], order: Order = "C", **options: Unpack[Naming]) -> Of[Scalar]: ...
@overload
def zeros(shape: Shape, dtype: DTypeLike, order: Order = "C", **options: Unpack[Naming]) -> SharedArray: ...
def zeros(
    shape: Shape,
    dtype: DTypeLike = float,
    order: Order = "C",
    *,
    name: str | None = None,
    persist: bool = False,
    exist_ok: bool = False,
    init: Init | None = None,
) -> SharedArray:
    """New shared array of zeros.

    Mirrors `numpy.zeros`.

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
        If the name is taken, return the existing array, which must have the same shape and dtype.
    init : function, optional
        ``init(array)`` fills the new array before other processes can find it. If several programs ask for the name
        at once, one of them runs `init` and the others wait.

    Returns
    -------
    SharedArray
        New memory is zero already; recycled memory is cleared, which writes every byte once.

    Raises
    ------
    ValueError, TypeError
        For an invalid shape, order or name, or a dtype with Python objects.
    FileExistsError
        If the name is taken and `exist_ok` is false, or the existing array has another shape or dtype.
    OutOfSharedMemory
        If there is no room.

    Examples
    --------
    >>> import copyless
    >>> copyless.zeros(3, dtype="i4")
    SharedArray([0, 0, 0], dtype=int32)

    Every program runs the same line. The first one fills the array, and no program sees it empty:

    >>> def load(weights):
    ...     weights[:] = [0.1, 0.2, 0.3]
    >>> weights = copyless.zeros(3, name="weights-doc", exist_ok=True, init=load)
    >>> copyless.zeros(3, name="weights-doc", exist_ok=True, init=load)
    SharedArray([0.1, 0.2, 0.3])
    """
    array: SharedArray = make(shape, dtype, order, (name, persist, exist_ok, init), clear=True)
    return array


@overload
def ones(shape: Shape, *, order: Order = "C", **options: Unpack[Naming]) -> Floats: ...
@overload
def ones(shape: Shape, dtype: Scalars[Scalar], order: Order = "C", **options: Unpack[Naming]) -> Of[Scalar]: ...
@overload
def ones(shape: Shape, dtype: DTypeLike, order: Order = "C", **options: Unpack[Naming]) -> SharedArray: ...
def ones(
    shape: Shape,
    dtype: DTypeLike = float,
    order: Order = "C",
    *,
    name: str | None = None,
    persist: bool = False,
    exist_ok: bool = False,
    init: Init | None = None,
) -> SharedArray:
    """New shared array of ones.

    Mirrors `numpy.ones`.

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
        If the name is taken, return the existing array, which must have the same shape and dtype.
    init : function, optional
        ``init(array)`` fills the new array before other processes can find it. If several programs ask for the name
        at once, one of them runs `init` and the others wait.

    Returns
    -------
    SharedArray
        Every byte is written once.

    Raises
    ------
    ValueError, TypeError
        For an invalid shape, order or name, or a dtype with Python objects.
    FileExistsError
        If the name is taken and `exist_ok` is false, or the existing array has another shape or dtype.
    OutOfSharedMemory
        If there is no room.

    Examples
    --------
    >>> import copyless
    >>> copyless.ones(2)
    SharedArray([1., 1.])
    """
    array: SharedArray = make(shape, dtype, order, (name, persist, exist_ok, init), False, 1)
    return array


@overload
def full(
    shape: Shape, fill_value: Scalar, dtype: None = None, order: Order = "C", **options: Unpack[Naming]
) -> Of[Scalar]: ...
@overload
def full(
    shape: Shape, fill_value: object, dtype: Scalars[Scalar], order: Order = "C", **options: Unpack[Naming]
) -> Of[Scalar]: ...
@overload
def full(
    shape: Shape, fill_value: object, dtype: DTypeLike | None = None, order: Order = "C", **options: Unpack[Naming]
) -> SharedArray: ...
def full(
    shape: Shape,
    fill_value: object,
    dtype: DTypeLike | None = None,
    order: Order = "C",
    *,
    name: str | None = None,
    persist: bool = False,
    exist_ok: bool = False,
    init: Init | None = None,
) -> SharedArray:
    """New shared array filled with one value.

    Mirrors `numpy.full`.

    Parameters
    ----------
    shape : int or sequence of int
        At most 32 dimensions; 0-d and zero-length arrays too.
    fill_value : scalar or array-like
        The value; it is broadcast to `shape`.
    dtype : dtype-like, optional
        Default: the dtype of `fill_value`.
    order : {'C', 'F'}
        Row-major or column-major.
    name : str, optional
        Other programs of this user `open` the array by this name: at most 255 bytes of UTF-8, without ``/``.
    persist : bool
        A named array exists until `unlink` (or the next boot), even if no process holds it. Without `persist` it is
        freed with its last holder.
    exist_ok : bool
        If the name is taken, return the existing array, which must have the same shape and dtype.
    init : function, optional
        ``init(array)`` fills the new array before other processes can find it. If several programs ask for the name
        at once, one of them runs `init` and the others wait.

    Returns
    -------
    SharedArray
        Every byte is written once.

    Raises
    ------
    ValueError, TypeError
        For an invalid shape, order or name, or a dtype with Python objects.
    FileExistsError
        If the name is taken and `exist_ok` is false, or the existing array has another shape or dtype.
    OutOfSharedMemory
        If there is no room.

    Examples
    --------
    >>> import copyless
    >>> copyless.full((2, 2), 5)
    SharedArray([[5, 5],
                 [5, 5]])
    """
    kind = np.asarray(fill_value).dtype if dtype is None else dtype
    array: SharedArray = make(shape, kind, order, (name, persist, exist_ok, init), False, fill_value)
    return array


@overload
def array(
    object: NDArray[Scalar],
    dtype: None = None,
    *,
    order: KeptOrder = "K",
    ndmin: int = 0,
    **options: Unpack[Naming],
) -> Of[Scalar]: ...
@overload
def array(
    object: ArrayLike, dtype: Scalars[Scalar], *, order: KeptOrder = "K", ndmin: int = 0, **options: Unpack[Naming]
) -> Of[Scalar]: ...
@overload
def array(
    object: ArrayLike,
    dtype: DTypeLike | None = None,
    *,
    order: KeptOrder = "K",
    ndmin: int = 0,
    **options: Unpack[Naming],
) -> SharedArray: ...
def array(
    object: ArrayLike,
    dtype: DTypeLike | None = None,
    *,
    order: KeptOrder = "K",
    ndmin: int = 0,
    name: str | None = None,
    persist: bool = False,
    exist_ok: bool = False,
    init: Init | None = None,
) -> SharedArray:
    """A shared copy of array-like data.

    Mirrors `numpy.array`.

    Parameters
    ----------
    object : array-like
        The data.
    dtype : dtype-like, optional
        Default: the dtype of the data.
    order : {'K', 'A', 'C', 'F'}
        Memory layout; ``'K'`` and ``'A'`` keep a column-major layout and use row-major for everything else.
    ndmin : int
        Least number of dimensions.
    name : str, optional
        Other programs of this user `open` the array by this name: at most 255 bytes of UTF-8, without ``/``.
    persist : bool
        A named array exists until `unlink` (or the next boot), even if no process holds it. Without `persist` it is
        freed with its last holder.
    exist_ok : bool
        If the name is taken, return the existing array, which must have the same shape and dtype.
    init : function, optional
        ``init(array)`` fills the new array before other processes can find it. If several programs ask for the name
        at once, one of them runs `init` and the others wait.

    Returns
    -------
    SharedArray
        An array is copied once, directly into shared memory; a list is first converted to an array.

    Raises
    ------
    ValueError, TypeError
        For an invalid shape, order or name, or a dtype with Python objects.
    FileExistsError
        If the name is taken and `exist_ok` is false, or the existing array has another shape or dtype.
    OutOfSharedMemory
        If there is no room.

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
    made: SharedArray = make(source.shape, kind, order, (name, persist, exist_ok, init), False, source)
    return made


@overload
def asarray(object: NDArray[Scalar], dtype: None = None, order: KeptOrder = "K") -> Of[Scalar]: ...
@overload
def asarray(object: ArrayLike, dtype: Scalars[Scalar], order: KeptOrder = "K") -> Of[Scalar]: ...
@overload
def asarray(object: ArrayLike, dtype: DTypeLike | None = None, order: KeptOrder = "K") -> SharedArray: ...
def asarray(object: Any, dtype: DTypeLike | None = None, order: KeptOrder = "K") -> Any:
    """Return the object itself if it is a shared array with this dtype and order, else a shared copy.

    Mirrors `numpy.asarray`.

    Parameters
    ----------
    object : array-like
        The data.
    dtype : dtype-like, optional
        Default: the dtype of the data.
    order : {'K', 'A', 'C', 'F'}
        Memory layout that the result must have; ``'K'`` and ``'A'`` accept any.

    Returns
    -------
    SharedArray
        No copy if the object lies in shared memory and fits, else one copy.

    Raises
    ------
    TypeError
        For a dtype with Python objects.
    OutOfSharedMemory
        If there is no room for a copy.

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


@overload
def empty_like(
    prototype: NDArray[Scalar],
    dtype: None = None,
    order: KeptOrder = "K",
    shape: Shape | None = None,
    **options: Unpack[Naming],
) -> Of[Scalar]: ...
@overload
def empty_like(
    prototype: ArrayLike,
    dtype: Scalars[Scalar],
    order: KeptOrder = "K",
    shape: Shape | None = None,
    **options: Unpack[Naming],
) -> Of[Scalar]: ...
@overload
def empty_like(
    prototype: ArrayLike,
    dtype: DTypeLike | None = None,
    order: KeptOrder = "K",
    shape: Shape | None = None,
    **options: Unpack[Naming],
) -> SharedArray: ...
def empty_like(
    prototype: ArrayLike,
    dtype: DTypeLike | None = None,
    order: KeptOrder = "K",
    shape: Shape | None = None,
    *,
    name: str | None = None,
    persist: bool = False,
    exist_ok: bool = False,
    init: Init | None = None,
) -> SharedArray:
    """New uninitialised shared array with the shape and dtype of another array.

    Mirrors `numpy.empty_like`.

    Parameters
    ----------
    prototype : array-like
        Shape, dtype and order are taken from it, unless given.
    dtype : dtype-like, optional
        Any dtype without Python objects.
    order : {'K', 'A', 'C', 'F'}
        Memory layout; ``'K'`` and ``'A'`` keep a column-major layout and use row-major for everything else.
    shape : int or sequence of int, optional
        Another shape.
    name : str, optional
        Other programs of this user `open` the array by this name: at most 255 bytes of UTF-8, without ``/``.
    persist : bool
        A named array exists until `unlink` (or the next boot), even if no process holds it. Without `persist` it is
        freed with its last holder.
    exist_ok : bool
        If the name is taken, return the existing array, which must have the same shape and dtype.
    init : function, optional
        ``init(array)`` fills the new array before other processes can find it. If several programs ask for the name
        at once, one of them runs `init` and the others wait.

    Returns
    -------
    SharedArray
        The elements are arbitrary until they are written.

    Raises
    ------
    ValueError, TypeError
        For an invalid shape, order or name, or a dtype with Python objects.
    FileExistsError
        If the name is taken and `exist_ok` is false, or the existing array has another shape or dtype.
    OutOfSharedMemory
        If there is no room.

    Examples
    --------
    >>> import copyless, numpy as np
    >>> copyless.empty_like(np.ones((2, 3), "f4")).dtype
    dtype('float32')
    """
    made: SharedArray = _like(prototype, dtype, order, shape, (name, persist, exist_ok, init))
    return made


@overload
def zeros_like(
    prototype: NDArray[Scalar],
    dtype: None = None,
    order: KeptOrder = "K",
    shape: Shape | None = None,
    **options: Unpack[Naming],
) -> Of[Scalar]: ...
@overload
def zeros_like(
    prototype: ArrayLike,
    dtype: Scalars[Scalar],
    order: KeptOrder = "K",
    shape: Shape | None = None,
    **options: Unpack[Naming],
) -> Of[Scalar]: ...
@overload
def zeros_like(
    prototype: ArrayLike,
    dtype: DTypeLike | None = None,
    order: KeptOrder = "K",
    shape: Shape | None = None,
    **options: Unpack[Naming],
) -> SharedArray: ...
def zeros_like(
    prototype: ArrayLike,
    dtype: DTypeLike | None = None,
    order: KeptOrder = "K",
    shape: Shape | None = None,
    *,
    name: str | None = None,
    persist: bool = False,
    exist_ok: bool = False,
    init: Init | None = None,
) -> SharedArray:
    """New shared array of zeros with the shape and dtype of another array.

    Mirrors `numpy.zeros_like`.

    Parameters
    ----------
    prototype : array-like
        Shape, dtype and order are taken from it, unless given.
    dtype : dtype-like, optional
        Any dtype without Python objects.
    order : {'K', 'A', 'C', 'F'}
        Memory layout; ``'K'`` and ``'A'`` keep a column-major layout and use row-major for everything else.
    shape : int or sequence of int, optional
        Another shape.
    name : str, optional
        Other programs of this user `open` the array by this name: at most 255 bytes of UTF-8, without ``/``.
    persist : bool
        A named array exists until `unlink` (or the next boot), even if no process holds it. Without `persist` it is
        freed with its last holder.
    exist_ok : bool
        If the name is taken, return the existing array, which must have the same shape and dtype.
    init : function, optional
        ``init(array)`` fills the new array before other processes can find it. If several programs ask for the name
        at once, one of them runs `init` and the others wait.

    Returns
    -------
    SharedArray
        New memory is zero already; recycled memory is cleared, which writes every byte once.

    Raises
    ------
    ValueError, TypeError
        For an invalid shape, order or name, or a dtype with Python objects.
    FileExistsError
        If the name is taken and `exist_ok` is false, or the existing array has another shape or dtype.
    OutOfSharedMemory
        If there is no room.

    Examples
    --------
    >>> import copyless
    >>> copyless.zeros_like([[1, 2, 3]])
    SharedArray([[0, 0, 0]])
    """
    made: SharedArray = _like(prototype, dtype, order, shape, (name, persist, exist_ok, init), clear=True)
    return made


@overload
def ones_like(
    prototype: NDArray[Scalar],
    dtype: None = None,
    order: KeptOrder = "K",
    shape: Shape | None = None,
    **options: Unpack[Naming],
) -> Of[Scalar]: ...
@overload
def ones_like(
    prototype: ArrayLike,
    dtype: Scalars[Scalar],
    order: KeptOrder = "K",
    shape: Shape | None = None,
    **options: Unpack[Naming],
) -> Of[Scalar]: ...
@overload
def ones_like(
    prototype: ArrayLike,
    dtype: DTypeLike | None = None,
    order: KeptOrder = "K",
    shape: Shape | None = None,
    **options: Unpack[Naming],
) -> SharedArray: ...
def ones_like(
    prototype: ArrayLike,
    dtype: DTypeLike | None = None,
    order: KeptOrder = "K",
    shape: Shape | None = None,
    *,
    name: str | None = None,
    persist: bool = False,
    exist_ok: bool = False,
    init: Init | None = None,
) -> SharedArray:
    """New shared array of ones with the shape and dtype of another array.

    Mirrors `numpy.ones_like`.

    Parameters
    ----------
    prototype : array-like
        Shape, dtype and order are taken from it, unless given.
    dtype : dtype-like, optional
        Any dtype without Python objects.
    order : {'K', 'A', 'C', 'F'}
        Memory layout; ``'K'`` and ``'A'`` keep a column-major layout and use row-major for everything else.
    shape : int or sequence of int, optional
        Another shape.
    name : str, optional
        Other programs of this user `open` the array by this name: at most 255 bytes of UTF-8, without ``/``.
    persist : bool
        A named array exists until `unlink` (or the next boot), even if no process holds it. Without `persist` it is
        freed with its last holder.
    exist_ok : bool
        If the name is taken, return the existing array, which must have the same shape and dtype.
    init : function, optional
        ``init(array)`` fills the new array before other processes can find it. If several programs ask for the name
        at once, one of them runs `init` and the others wait.

    Returns
    -------
    SharedArray
        Every byte is written once.

    Raises
    ------
    ValueError, TypeError
        For an invalid shape, order or name, or a dtype with Python objects.
    FileExistsError
        If the name is taken and `exist_ok` is false, or the existing array has another shape or dtype.
    OutOfSharedMemory
        If there is no room.

    Examples
    --------
    >>> import copyless
    >>> copyless.ones_like([[1.5, 2]])
    SharedArray([[1., 1.]])
    """
    made: SharedArray = _like(prototype, dtype, order, shape, (name, persist, exist_ok, init), fill=1)
    return made


@overload
def full_like(
    prototype: NDArray[Scalar],
    fill_value: object,
    dtype: None = None,
    order: KeptOrder = "K",
    shape: Shape | None = None,
    **options: Unpack[Naming],
) -> Of[Scalar]: ...
@overload
def full_like(
    prototype: ArrayLike,
    fill_value: object,
    dtype: Scalars[Scalar],
    order: KeptOrder = "K",
    shape: Shape | None = None,
    **options: Unpack[Naming],
) -> Of[Scalar]: ...
@overload
def full_like(
    prototype: ArrayLike,
    fill_value: object,
    dtype: DTypeLike | None = None,
    order: KeptOrder = "K",
    shape: Shape | None = None,
    **options: Unpack[Naming],
) -> SharedArray: ...
def full_like(
    prototype: ArrayLike,
    fill_value: object,
    dtype: DTypeLike | None = None,
    order: KeptOrder = "K",
    shape: Shape | None = None,
    *,
    name: str | None = None,
    persist: bool = False,
    exist_ok: bool = False,
    init: Init | None = None,
) -> SharedArray:
    """New shared array with the shape and dtype of another array, filled with one value.

    Mirrors `numpy.full_like`.

    Parameters
    ----------
    prototype : array-like
        Shape, dtype and order are taken from it, unless given.
    fill_value : scalar or array-like
        The value; it is broadcast to the shape.
    dtype : dtype-like, optional
        Any dtype without Python objects.
    order : {'K', 'A', 'C', 'F'}
        Memory layout; ``'K'`` and ``'A'`` keep a column-major layout and use row-major for everything else.
    shape : int or sequence of int, optional
        Another shape.
    name : str, optional
        Other programs of this user `open` the array by this name: at most 255 bytes of UTF-8, without ``/``.
    persist : bool
        A named array exists until `unlink` (or the next boot), even if no process holds it. Without `persist` it is
        freed with its last holder.
    exist_ok : bool
        If the name is taken, return the existing array, which must have the same shape and dtype.
    init : function, optional
        ``init(array)`` fills the new array before other processes can find it. If several programs ask for the name
        at once, one of them runs `init` and the others wait.

    Returns
    -------
    SharedArray
        Every byte is written once.

    Raises
    ------
    ValueError, TypeError
        For an invalid shape, order or name, or a dtype with Python objects.
    FileExistsError
        If the name is taken and `exist_ok` is false, or the existing array has another shape or dtype.
    OutOfSharedMemory
        If there is no room.

    Examples
    --------
    >>> import copyless
    >>> copyless.full_like([1, 2, 3], 7)
    SharedArray([7, 7, 7])
    """
    made: SharedArray = _like(prototype, dtype, order, shape, (name, persist, exist_ok, init), fill=fill_value)
    return made


def _like(
    prototype: object, dtype: Any, order: str, shape: Any, naming: Any, clear: bool = False, fill: Any = NOT_FILLED
) -> Any:
    like = np.asanyarray(prototype)
    if order in ("K", "A"):
        order = "F" if like.flags.f_contiguous and not like.flags.c_contiguous else "C"
    return make(
        like.shape if shape is None else shape, like.dtype if dtype is None else dtype, order, naming, clear, fill
    )


# ---- handles


@overload
def frombuffer(buffer: Buffer, *, count: int = -1, offset: int = 0) -> Floats: ...
@overload
def frombuffer(buffer: Buffer, dtype: Scalars[Scalar], count: int = -1, offset: int = 0) -> Of[Scalar]: ...
@overload
def frombuffer(buffer: Buffer, dtype: DTypeLike, count: int = -1, offset: int = 0) -> SharedArray: ...
def frombuffer(buffer: Any, dtype: DTypeLike = float, count: int = -1, offset: int = 0) -> Any:
    """A one-dimensional array over a buffer in shared memory, such as a `Memory`. Nothing is copied.

    Mirrors `numpy.frombuffer`.

    Parameters
    ----------
    buffer : buffer-like
        A `Memory`, a shared array, or a view of one.
    dtype : dtype-like
        Any dtype without Python objects.
    count : int
        Number of elements; -1 for all.
    offset : int
        Bytes before the first element.

    Raises
    ------
    ValueError
        If the buffer is in private memory (`array` copies it into shared memory), or its size does not fit.

    Examples
    --------
    >>> import copyless
    >>> copyless.frombuffer(copyless.Alloc_mem(16), dtype="u1").shape
    (16,)
    """
    plain = np.frombuffer(buffer, dtype, count, offset)
    ensure_open()
    if plain.size and not shared_memory_of(plain):
        raise ValueError("the buffer is not in shared memory: copy it there with copyless.array(numpy.frombuffer(...))")
    return plain.view(SharedArray) if plain.size else empty(0, plain.dtype)


# ---- files


@overload
def memmap(
    filename: str | os.PathLike[str],
    *,
    mode: Literal["r", "r+", "w+"] = "r+",
    offset: int = 0,
    shape: Shape | None = None,
    order: Order = "C",
) -> Of[np.uint8]: ...
@overload
def memmap(
    filename: str | os.PathLike[str],
    dtype: Scalars[Scalar],
    mode: Literal["r", "r+", "w+"] = "r+",
    offset: int = 0,
    shape: Shape | None = None,
    order: Order = "C",
) -> Of[Scalar]: ...
@overload
def memmap(
    filename: str | os.PathLike[str],
    dtype: DTypeLike,
    mode: Literal["r", "r+", "w+"] = "r+",
    offset: int = 0,
    shape: Shape | None = None,
    order: Order = "C",
) -> SharedArray: ...
def memmap(
    filename: Any,
    dtype: DTypeLike = np.uint8,
    mode: str = "r+",
    offset: int = 0,
    shape: Shape | None = None,
    order: Order = "C",
) -> SharedArray:
    """Map a file as a shared array. Pages are read when they are first used, once for all processes of the machine.

    Mirrors `numpy.memmap`. Another process that receives the array maps the same file.

    Parameters
    ----------
    filename : path
        The file.
    dtype : dtype-like
        Any dtype without Python objects.
    mode : {'r', 'r+', 'w+'}
        ``'r'``: read only. ``'r+'``: read and write; the file grows if it is too short. ``'w+'``: create the file or
        empty it, then read and write.
    offset : int
        Bytes before the first element.
    shape : int or sequence of int, optional
        Default: one dimension, up to the end of the file.
    order : {'C', 'F'}
        Row-major or column-major.

    Returns
    -------
    SharedArray
        An array over the mapping; nothing is copied.

    Raises
    ------
    FileNotFoundError, PermissionError
        As for opening the file.
    ValueError
        For mode ``'c'`` (a private copy cannot be shared), or a shape that does not fit the file.
    OutOfSharedMemory
        If the disk has no room. The space is reserved when the file grows. A file that this call created is removed.

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
        raise ValueError("mode 'c' makes private copies, which cannot be shared: use mode 'r', or numpy.memmap")
    if mode not in ("r", "r+", "w+"):
        raise ValueError(f"mode must be 'r', 'r+' or 'w+', not {mode!r}")
    path = os.path.abspath(os.fspath(filename))
    if offset < 0:
        raise ValueError(f"offset must be 0 or more bytes, not {offset}")
    flags = {"r": os.O_RDONLY, "r+": os.O_RDWR, "w+": os.O_RDWR | os.O_CREAT | os.O_TRUNC}[mode]
    made_here = mode == "w+" and not os.path.lexists(path)
    fd = user_files.open_regular(path, flags | os.O_CLOEXEC)
    try:
        size = os.fstat(fd).st_size
        kind = np.dtype(dtype)
        if shape is None:
            if (size - offset) % kind.itemsize or size <= offset:
                raise ValueError(
                    f"the {size - offset} bytes after the offset are not a whole number of elements of "
                    f"{kind.itemsize} bytes: give shape="
                )
            shape = ((size - offset) // kind.itemsize,)
        sizes, kind, nbytes = layout(shape, kind, order)
        if nbytes == 0:
            raise ValueError("an empty file or shape cannot be mapped: give a shape with at least one element")
        if offset + nbytes > size:
            if mode == "r":
                raise ValueError(f"shape {sizes} of {kind} needs {offset + nbytes:,} bytes, the file has {size:,}")
            try:
                reserve_room(fd, offset + nbytes)
            except OSError as error:
                os.ftruncate(fd, size)
                if made_here:
                    os.unlink(path)
                if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                    directory = os.path.dirname(path)
                    raise no_room(error, "no room for the file", nbytes, directory) from None
                raise
        mapping = user_files.map_file(path, fd, offset, nbytes, mode == "r")
    finally:
        os.close(fd)
    made: SharedArray = over(mapping, sizes, kind, offset - mapping.offset, None, order)
    return made
