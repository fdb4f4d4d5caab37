"""An object as a pickle, with large buffers beside it and handles in it; or everything by value."""

from __future__ import annotations

import collections
import contextlib
import copyreg
import functools
import io
import pickle
import socket
from collections.abc import Callable

from copyless import _loaders
from copyless._core import _handles
from copyless._transfer import _plain
from copyless._transfer import reductions as _reductions  # noqa: F401  # memory crosses by its handle from here on
from copyless._transfer.in_flight import (
    BESIDE,
    Message,
    extra_reducers,
    is_lasting,
    making,
    ours,
    protocol,
    reduction_of,
    refuse_descriptor,
)
from copyless._typing import Any, ClassVar

__all__ = ["CACHED", "apart", "apart_by_value", "by_value", "cloud_pickler", "joined", "pack", "pickled"]


def _beside(buffers: list[Any], least: int = BESIDE) -> Callable[[pickle.PickleBuffer], bool]:
    """The callback that takes buffers of so many bytes out of a pickle."""

    def beside(buffer: pickle.PickleBuffer) -> bool:
        raw = buffer.raw()
        if raw.nbytes < least:
            return True
        buffers.append(raw)
        return False

    return beside


def pack(
    obj: object, make: Callable[[io.BytesIO, Any], object] | None = None, *, draft: bool = True, lasting: bool = False
) -> tuple[bytes, list[Any], list[bytes]]:
    """(pickle, large buffers beside it, handles in it) of an object for a queue of copyless.

    The holds of the handles belong to this process until the queue takes them over; if pickling fails, they are
    released. `make` makes another pickler: of (stream, buffer_callback). Without `draft`: for another channel, so the
    holds are those of messages. `lasting`: the pickle may be loaded more than once, or after this process has ended, so
    objects that only this process can hand over are refused.
    """
    both = _plain.dumps(obj) if make is None else None  # plain values and arrays of numbers need no pickler
    if both is not None:
        return (*both, [])
    return pickled(obj, make, draft=draft, lasting=lasting)


def pickled(
    obj: object, make: Callable[[io.BytesIO, Any], Any] | None = None, *, draft: bool = True, lasting: bool = False
) -> tuple[bytes, list[object], list[bytes]]:
    """As `pack`, for an object that is more than plain values and arrays of numbers."""
    _expect_libraries()
    if lasting:
        _expect_descriptors()
    made: list[bytes] = []
    buffers: list[Any] = []
    stream = io.BytesIO()
    beside = _beside(buffers)
    if make is None:
        pickler = pickle.Pickler(stream, 5, buffer_callback=beside)
        pickler.dispatch_table = {**copyreg.dispatch_table, **extra_reducers(), **ours}
    else:
        pickler = make(stream, beside)
    with making(Message(made, draft, True, lasting)) as message:
        pickler.dump(obj)
        if message.storages is not None:
            return (*_with_storages(message.storages, stream.getvalue(), buffers), made)
    return stream.getvalue(), buffers, made


CACHED = type(functools.lru_cache(len))  # functions with a cache


class _Cache:
    """`functools.lru_cache` with the parameters of a cached function; the cache is empty where it arrives."""

    def __init__(self, function: Any) -> None:
        self._parameters = tuple(function.cache_parameters().values())

    def __reduce__(self) -> Any:
        return functools.lru_cache, self._parameters

    def __call__(self, function: object) -> Any:
        return functools.lru_cache(*self._parameters)(function)


def apart(obj: object, least: int = BESIDE) -> tuple[bytes, list[Any]]:
    """(pickle, buffers of `least` bytes or more beside it) of an object, everything by value: for another host, or a
    socket.
    """
    both = _plain.dumps(obj, True) if least == BESIDE else None  # plain values and arrays of numbers need no pickler
    if both is not None:
        return both
    _expect_libraries()
    buffers: list[Any] = []
    stream = io.BytesIO()
    pickler = pickle.Pickler(stream, 5, buffer_callback=_beside(buffers, least))
    if not _of_libraries:
        pickler.dump(obj)
        return stream.getvalue(), buffers
    pickler.dispatch_table = {**copyreg.dispatch_table, **_of_libraries}
    with making(Message(None, beside=True)) as message:
        pickler.dump(obj)
    if message.storages is not None:
        return _with_storages(message.storages, stream.getvalue(), buffers, least)
    return stream.getvalue(), buffers


def apart_by_value(obj: object) -> tuple[bytes, list[object]]:
    """As `apart`; functions and classes without a name go by value, too."""
    import cloudpickle

    buffers: list[Any] = []
    stream = io.BytesIO()
    with making(Message(None, beside=True)) as message:
        cloudpickle.Pickler(stream, 5, buffer_callback=_beside(buffers)).dump(obj)
    if message.storages is not None:
        return _with_storages(message.storages, stream.getvalue(), buffers)
    return stream.getvalue(), buffers


def joined(obj: object) -> bytes:
    """An object as one string of bytes for another channel of this host."""
    data, buffers, made = pack(obj, draft=False)
    if not buffers:
        return data
    try:
        return pickle.dumps(_Call(_loaders.mpi_inline, (data, *map(pickle.PickleBuffer, buffers))), 5)
    except BaseException:
        for handle in made:
            _handles.unsend(handle)
        raise


class _Call:
    """An object that unpickles as the result of a call."""

    def __init__(self, function: Callable[..., object], arguments: tuple[object, ...]) -> None:
        self._call = function, arguments

    def __reduce__(self) -> Any:
        return self._call


def _with_storages(storages: Any, data: bytes, buffers: list[Any], least: int = BESIDE) -> tuple[bytes, list[object]]:
    """A pickle that names storages of tensors, together with them."""
    runs, places = storages.runs()
    out: list[object] = []
    stream = io.BytesIO()
    parts = tuple(map(pickle.PickleBuffer, runs))
    inner = pickle.PickleBuffer(data) if len(data) >= least else data
    arguments = (inner, places, parts, *map(pickle.PickleBuffer, buffers))
    pickle.Pickler(stream, 5, buffer_callback=_beside(out, least)).dump(_Call(_loaders.with_storages, arguments))
    return stream.getvalue(), out


# ---- reductions that are registered late


_of_libraries: dict[type, Callable[[Any], Any]] = {}  # the entries of `ours` for values of other libraries


def _expect_libraries() -> None:
    """Register the reductions of libraries that were loaded meanwhile."""
    from copyless import _libraries

    _plain.expect_arrays()
    if len(_libraries.reductions()) != len(_of_libraries):
        _of_libraries.update(_libraries.reductions())
        ours.update(_of_libraries)


def _expect_descriptors() -> None:
    """Register that connections, sockets and other descriptors are refused in messages that last."""
    from multiprocessing import connection, resource_sharer

    if resource_sharer.DupFd in ours:
        return

    def refusing(kind: type) -> Callable[[Any], Any]:
        def reduce(obj: object) -> Any:
            if is_lasting():
                refuse_descriptor(kind.__name__)
            reduction = reduction_of(kind)
            return reduction(obj) if reduction is not None else obj.__reduce_ex__(protocol())

        return reduce

    def reduce_descriptor(descriptor: object) -> object:
        if is_lasting():
            _withdraw(descriptor)
            refuse_descriptor("descriptor")
        return descriptor.__reduce_ex__(protocol())

    for kind in (connection.Connection, socket.socket):
        ours[kind] = refusing(kind)
    ours[resource_sharer.DupFd] = reduce_descriptor


def _withdraw(descriptor: object) -> None:
    """Close the descriptor that multiprocessing keeps for a receiver that will not ask for it."""
    from multiprocessing import resource_sharer

    with contextlib.suppress(AttributeError, KeyError, TypeError, ValueError):
        _, close = resource_sharer._resource_sharer._cache.pop(descriptor._id[1])  # type: ignore[attr-defined]
        close()


_cloud: Any = None  # the class, made at first use


def by_value(stream: io.BytesIO, beside: object) -> object:
    """A pickler, for `pack`, that sends functions and classes without an importable name by value."""
    return cloud_pickler()(stream, 5, buffer_callback=beside)


def cloud_pickler() -> Any:
    """Cloudpickle's pickler with the reductions of copyless."""
    global _cloud
    if _cloud is None:
        import cloudpickle

        class CloudPickler(cloudpickle.Pickler):  # type: ignore[misc]
            def reducer_override(self, obj: object) -> object:
                # The function's own reduction is its name. A lambda or closure, or a function of a `__main__` that the
                # receiver does not have, cannot be found by name.
                if type(obj) is CACHED and (obj.__module__ == "__main__" or "<locals>" in obj.__qualname__):
                    return _Cache(obj), (obj.__wrapped__,)
                return super().reducer_override(obj)

            # The table of the class takes precedence over an instance's. It is live, so that later registrations count.
            dispatch_table: ClassVar[Any] = collections.ChainMap(
                ours,
                extra_reducers(),
                cloudpickle.Pickler.dispatch_table,
            )

        _cloud = CloudPickler
    return _cloud
