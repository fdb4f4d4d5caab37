"""Sealed values: pickled separately from the message that carries them, and unpickled only when they are opened.

If unpickling fails, only the sealed value is lost. The message around it, and the process that received it, are not
affected.
"""

from __future__ import annotations

import pickle

from copyless import _loaders
from copyless._core import _pickles
from copyless._transfer import _plain, handles, in_flight, packing
from copyless._typing import Any

__all__ = ["Sealed", "load", "seal", "sealed_error", "text_of", "unseal"]

_UNPICKLABLE = (pickle.PicklingError, AttributeError, TypeError)


class Sealed:
    """An object that is pickled when it is sealed. Only `open` unpickles it.

    Functions and classes that cannot be found by name (lambdas, closures) are sent by value, with cloudpickle.
    """

    __slots__ = ("_buffers", "_data", "_handles", "_kept")

    _kept: list[Any]

    def __init__(self, obj: Any, by_value: bool = False, make: Any = None, lasting: bool = False) -> None:
        make = packing.by_value if by_value else make
        try:
            self._data, self._buffers, self._handles = packing.pack(obj, make, lasting=lasting)
        except _UNPICKLABLE as error:
            try:
                self._data, self._buffers, self._handles = packing.pack(obj, packing.by_value, lasting=lasting)
            except Exception:
                raise error from None

    def __reduce_ex__(self, protocol: object) -> Any:
        for name in self._handles:
            in_flight.note(name)
        data = pickle.PickleBuffer(self._data) if len(self._data) >= in_flight.BESIDE else self._data
        return _loaders.sealed, (data, self._handles, *(pickle.PickleBuffer(buffer) for buffer in self._buffers))

    def open(self) -> Any:
        return _pickles.loads(self._data, buffers=self._buffers)


def load(data: Any, names: list[bytes], *buffers: Any) -> Sealed:
    """A sealed value in a received message. `copyless._loaders.sealed` calls it."""
    sealed = Sealed.__new__(Sealed)
    sealed._data, sealed._buffers, sealed._handles = data, list(buffers), []
    # The message holds its shared memory until it is unpickled, which is now. The sealed value needs it until it is
    # opened.
    sealed._kept = [handles.resolve(name) for name in names]
    return sealed


def seal(obj: object, by_value: bool = False, make: object = None, lasting: bool = False) -> Any:
    """A sealed object, or only its pickle if that is enough.

    Parameters
    ----------
    by_value
        Pickle functions and classes by value.
    make
        A function that makes another pickler.
    lasting
        Whether it may be opened more than once.
    """
    sealed = Sealed(obj, by_value, make, lasting)
    return sealed if sealed._buffers or sealed._handles else sealed._data


def unseal(sealed: Any) -> Any:
    """The object, unpickled."""
    if type(sealed) is not bytes:
        return sealed.open()
    plain = _plain.plain_loads(sealed)
    return _pickles.loads(sealed) if plain is None else plain[0]


def text_of(error: BaseException) -> str:
    """The traceback of an exception as text, even if the exception's own methods fail."""
    try:
        import traceback  # loads `tokenize`

        return "".join(traceback.format_exception(type(error), error, error.__traceback__))
    except BaseException:
        return f"{type(error).__name__}, whose traceback could not be formatted"


def sealed_error(error: BaseException) -> tuple[Any, str]:
    """(the exception sealed, or None if it does not survive pickling; its traceback as text)."""
    text = text_of(error)
    try:
        sealed = seal(error)
        if type(sealed) is bytes:
            unseal(sealed)
    except BaseException:
        return None, text
    return sealed, text
