"""`Value`, `Array`, `RawValue` and `RawArray` as methods of contexts, for checkers: as the functions in `sharedctypes`.

tests/test_types.py compares them.
"""

import ctypes
from _ctypes import _CData
from collections.abc import Iterable, Sequence
from ctypes import _SimpleCData
from typing import Any, Literal, SupportsIndex, TypeVar, overload

from copyless import sharedctypes
from copyless.sharedctypes import (
    Synchronized,
    SynchronizedArray,
    SynchronizedString,
    _DType,
    _FloatCode,
    _IntCode,
    _LockLike,
)

T = TypeVar("T")
CT = TypeVar("CT", bound=_CData)
FT = TypeVar("FT", bound=ctypes.Structure | ctypes.Union)

class MakesRawValue:
    """The method `RawValue` of a context."""

    @overload
    def __call__(self, typecode_or_type: type[CT], *args: object) -> CT: ...
    @overload
    def __call__(self, typecode_or_type: str | _DType, *args: object) -> Any: ...

class MakesRawArray:
    """The method `RawArray` of a context."""

    @overload
    def __call__(
        self, typecode_or_type: type[CT], size_or_initializer: SupportsIndex | Iterable[object], *, shape: None = None
    ) -> ctypes.Array[CT]: ...
    @overload
    def __call__(
        self,
        typecode_or_type: str | _DType,
        size_or_initializer: SupportsIndex | Iterable[object],
        *,
        shape: None = None,
    ) -> Any: ...
    @overload
    def __call__(
        self,
        typecode_or_type: str | _DType | type[_CData],
        size_or_initializer: Iterable[object] | None = None,
        *,
        shape: SupportsIndex | Sequence[int],
    ) -> Any: ...

class MakesValue:
    """The method `Value` of a context."""

    @overload
    def __call__(
        self,
        typecode_or_type: type[_SimpleCData[T]],
        *args: object,
        lock: Literal[True] | _LockLike | None = True,
    ) -> Synchronized[T]: ...
    @overload
    def __call__(self, typecode_or_type: type[CT], *args: object, lock: Literal[False]) -> CT: ...
    @overload
    def __call__(
        self, typecode_or_type: type[FT], *args: object, lock: Literal[True] | _LockLike | None = True
    ) -> sharedctypes._SynchronizedFields[FT]: ...
    @overload
    def __call__(
        self,
        typecode_or_type: type[ctypes.Array[Any]],
        *args: object,
        lock: Literal[True] | _LockLike | None = True,
    ) -> SynchronizedArray[Any]: ...
    @overload
    def __call__(
        self, typecode_or_type: _IntCode, *args: object, lock: Literal[True] | _LockLike | None = True
    ) -> Synchronized[int]: ...
    @overload
    def __call__(
        self, typecode_or_type: _FloatCode, *args: object, lock: Literal[True] | _LockLike | None = True
    ) -> Synchronized[float]: ...
    @overload
    def __call__(
        self, typecode_or_type: Literal["?"], *args: object, lock: Literal[True] | _LockLike | None = True
    ) -> Synchronized[bool]: ...
    @overload
    def __call__(
        self, typecode_or_type: Literal["c"], *args: object, lock: Literal[True] | _LockLike | None = True
    ) -> Synchronized[bytes]: ...
    @overload
    def __call__(
        self, typecode_or_type: Literal["u"], *args: object, lock: Literal[True] | _LockLike | None = True
    ) -> Synchronized[str]: ...
    @overload
    def __call__(
        self, typecode_or_type: str | _DType, *args: object, lock: Literal[True] | _LockLike | None = True
    ) -> Synchronized[Any]: ...
    @overload
    def __call__(
        self,
        typecode_or_type: str | _DType | type[_CData],
        *args: object,
        lock: bool | _LockLike | None = True,
    ) -> Any: ...

class MakesArray:
    """The method `Array` of a context."""

    @overload
    def __call__(
        self,
        typecode_or_type: type[ctypes.c_char] | Literal["c"],
        size_or_initializer: SupportsIndex | Iterable[object],
        *,
        lock: Literal[True] | _LockLike | None = True,
        shape: None = None,
    ) -> SynchronizedString: ...
    @overload
    def __call__(
        self,
        typecode_or_type: type[_SimpleCData[T]],
        size_or_initializer: SupportsIndex | Iterable[object],
        *,
        lock: Literal[True] | _LockLike | None = True,
        shape: None = None,
    ) -> SynchronizedArray[T]: ...
    @overload
    def __call__(
        self,
        typecode_or_type: _IntCode,
        size_or_initializer: SupportsIndex | Iterable[object],
        *,
        lock: Literal[True] | _LockLike | None = True,
        shape: None = None,
    ) -> SynchronizedArray[int]: ...
    @overload
    def __call__(
        self,
        typecode_or_type: _FloatCode,
        size_or_initializer: SupportsIndex | Iterable[object],
        *,
        lock: Literal[True] | _LockLike | None = True,
        shape: None = None,
    ) -> SynchronizedArray[float]: ...
    @overload
    def __call__(
        self,
        typecode_or_type: Literal["?"],
        size_or_initializer: SupportsIndex | Iterable[object],
        *,
        lock: Literal[True] | _LockLike | None = True,
        shape: None = None,
    ) -> SynchronizedArray[bool]: ...
    @overload
    def __call__(
        self,
        typecode_or_type: Literal["u"],
        size_or_initializer: SupportsIndex | Iterable[object],
        *,
        lock: Literal[True] | _LockLike | None = True,
        shape: None = None,
    ) -> SynchronizedArray[str]: ...
    @overload
    def __call__(
        self,
        typecode_or_type: type[CT],
        size_or_initializer: SupportsIndex | Iterable[object],
        *,
        lock: Literal[False],
        shape: None = None,
    ) -> ctypes.Array[CT]: ...
    @overload
    def __call__(
        self,
        typecode_or_type: type[FT],
        size_or_initializer: SupportsIndex | Iterable[object],
        *,
        lock: Literal[True] | _LockLike | None = True,
        shape: None = None,
    ) -> SynchronizedArray[FT]: ...
    @overload
    def __call__(
        self,
        typecode_or_type: str | _DType | type[_CData],
        size_or_initializer: SupportsIndex | Iterable[object],
        *,
        lock: Literal[True] | _LockLike | None = True,
        shape: None = None,
    ) -> SynchronizedArray[Any]: ...
    @overload
    def __call__(
        self,
        typecode_or_type: str | _DType | type[_CData],
        size_or_initializer: SupportsIndex | Iterable[object],
        *,
        lock: bool | _LockLike | None = True,
        shape: None = None,
    ) -> Any: ...
    @overload
    def __call__(
        self,
        typecode_or_type: str | _DType | type[_CData],
        size_or_initializer: Iterable[object] | None = None,
        *,
        lock: Literal[True] | _LockLike | None = True,
        shape: SupportsIndex | Sequence[int],
    ) -> SynchronizedArray[Any]: ...
    @overload
    def __call__(
        self,
        typecode_or_type: str | _DType | type[_CData],
        size_or_initializer: Iterable[object] | None = None,
        *,
        lock: bool | _LockLike | None = True,
        shape: SupportsIndex | Sequence[int],
    ) -> Any: ...
