"""How shared objects cross to another process: the reductions registered with multiprocessing's own pickler.

Only that pickler (and ours) sends handles; the plain `pickle` module stores data, so that a file or another host never
receives an address. A handle that is pickled for another process carries a hold of its own: the memory stays although
the sender lets it go, until the message is loaded, or its process family has ended, or `COPYLESS_MESSAGE_TTL` is over.
"""

from __future__ import annotations

import collections
import contextlib
import copyreg
import functools
import io
import pickle
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from multiprocessing.reduction import ForkingPickler
from typing import Any, ClassVar, NoReturn

from copyless import _loaders
from copyless._core import _blocks, _handles, _memory, _queue
from copyless._core._memory import Memory
from copyless.errors import UnsendableError
from copyless.storage import handles, objects

__all__ = ["register"]

BESIDE = 4096  # bytes from which a buffer goes beside its pickle


class _Message:
    """A pickle that is being made."""

    __slots__ = ("beside", "draft", "handles", "lasting", "storages")

    def __init__(
        self, handles: list[bytes] | None, draft: bool = False, beside: bool = False, lasting: bool = False
    ) -> None:
        self.handles = handles  # made since the pickle began; None: all goes by value
        self.draft = draft  # for one of our own queues, which will hold what the handles name
        self.beside = beside  # buffers may go beside the pickle
        self.lasting = lasting  # it may be loaded twice, or when this process is gone
        self.storages: Any = None  # of tensors, beside the pickle too: see `tensors`


class _Batch(threading.local):
    """The innermost pickle that this thread makes."""

    message: _Message | None = None
    fallbacks: list[str] | None = None  # why reductions fell back, while somebody asks


_batch = _Batch()
# Reductions of our own channels, which go before those of multiprocessing's pickler.
ours: dict[type, Callable[[Any], Any]] = {}


def noting(dump: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """A pickler's `dump`, which takes the holds of its messages back when it fails half way."""

    @functools.wraps(dump)
    def noting_dump(self: Any, obj: Any) -> Any:
        outer, made = _batch.message, []  # type: _Message | None, list[bytes]
        _batch.message = _Message(made)
        try:
            return dump(self, obj)
        except BaseException:
            for handle in made:
                _handles.unsend(handle)
            raise
        finally:
            _batch.message = outer

    return noting_dump


def _beside(buffers: list[Any], least: int = BESIDE) -> Callable[[pickle.PickleBuffer], bool]:
    """What takes buffers of so many bytes out of a pickle."""

    def beside(buffer: pickle.PickleBuffer) -> bool:
        raw = buffer.raw()
        if raw.nbytes < least:
            return True
        buffers.append(raw)
        return False

    return beside


def pack(
    obj: Any, make: Callable[[io.BytesIO, Any], Any] | None = None, *, draft: bool = True, lasting: bool = False
) -> tuple[bytes, list[Any], list[bytes]]:
    """(pickle, large buffers beside it, handles in it) of an object on its way into one of our queues.

    The handles' holds are this process's own until the queue takes them; when pickling fails they are taken back.
    `make` makes another pickler than the plain one: of (stream, buffer_callback). Without `draft`: for a channel that is not
    ours, so the handles' holds are those of messages. `lasting`: the pickle may be loaded more than once, or when this process
    is gone, so what can be had from this process only is refused.
    """
    both = _queue.arrays_dumps(obj) if make is None else None  # plain values and arrays of numbers need no pickler
    if both is not None:
        return (*both, [])
    if not _torch_is_known and "torch" in sys.modules:
        _know_torch()
    if lasting:
        _know_descriptors()
    outer, made = _batch.message, []  # type: _Message | None, list[bytes]
    buffers: list[Any] = []
    stream = io.BytesIO()
    beside = _beside(buffers)
    if make is None:
        pickler = pickle.Pickler(stream, 5, buffer_callback=beside)
        pickler.dispatch_table = {**copyreg.dispatch_table, **ForkingPickler._extra_reducers, **ours}  # type: ignore[attr-defined]
    else:
        pickler = make(stream, beside)
    _batch.message = message = _Message(made, draft, True, lasting)
    try:
        pickler.dump(obj)
        if message.storages is not None:
            return (*_with_storages(message.storages, stream.getvalue(), buffers), made)
    except BaseException:
        for handle in made:
            _handles.unsend(handle)
        raise
    finally:
        _batch.message = outer
    return stream.getvalue(), buffers, made


CACHED = type(functools.lru_cache(len))  # functions with a cache


class _Cache:
    """`functools.lru_cache` with the parameters of a function that has one; the cache is empty where it arrives."""

    def __init__(self, function: Any) -> None:
        self._parameters = tuple(function.cache_parameters().values())

    def __reduce__(self) -> Any:
        return functools.lru_cache, self._parameters

    def __call__(self, function: Any) -> Any:
        return functools.lru_cache(*self._parameters)(function)


def apart(obj: Any, least: int = BESIDE) -> tuple[bytes, list[Any]]:
    """(pickle, buffers of `least` bytes or more beside it) of an object, all by value: for another host, or a socket."""
    if not _torch_is_known and "torch" in sys.modules:
        _know_torch()
    buffers: list[Any] = []
    stream = io.BytesIO()
    pickler = pickle.Pickler(stream, 5, buffer_callback=_beside(buffers, least))
    if not _torch_is_known:
        pickler.dump(obj)
        return stream.getvalue(), buffers
    pickler.dispatch_table = {**copyreg.dispatch_table, **_torchs}
    outer = _batch.message
    _batch.message = message = _Message(None, beside=True)
    try:
        pickler.dump(obj)
    finally:
        _batch.message = outer
    if message.storages is not None:
        return _with_storages(message.storages, stream.getvalue(), buffers, least)
    return stream.getvalue(), buffers


def joined(obj: Any) -> bytes:
    """An object as one string of bytes for a channel of this host that is not ours."""
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
    """What is loaded as the result of a call."""

    def __init__(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        self._call = function, arguments

    def __reduce__(self) -> Any:
        return self._call


def _with_storages(storages: Any, data: bytes, buffers: list[Any], least: int = BESIDE) -> tuple[bytes, list[Any]]:
    """A pickle that names tensors' storages, with these around it."""
    runs, places = storages.runs()
    out: list[Any] = []
    stream = io.BytesIO()
    parts = tuple(map(pickle.PickleBuffer, runs))
    inner = pickle.PickleBuffer(data) if len(data) >= least else data
    arguments = (inner, places, parts, *map(pickle.PickleBuffer, buffers))
    pickle.Pickler(stream, 5, buffer_callback=_beside(out, least)).dump(_Call(_loaders.with_storages, arguments))
    return stream.getvalue(), out


# ---- reductions that are known late


_torch_is_known = False
_torchs: dict[type, Callable[[Any], Any]] = {}  # those of `ours` that are for tensors


def _know_torch() -> None:
    """Once PyTorch is there: how our channels carry tensors."""
    global _torch_is_known
    spec = getattr(sys.modules.get("torch"), "__spec__", None)
    if spec is None or getattr(spec, "_initializing", False):
        return  # another thread imports it: nobody has a tensor yet
    from copyless import tensors

    _torchs.update(tensors.reductions())
    ours.update(_torchs)
    _torch_is_known = True


def is_lasting() -> bool:
    """Whether what is pickled now may be loaded more than once, or when this process is gone."""
    return _batch.message is not None and _batch.message.lasting


def refuse(what: str, instead: str) -> NoReturn:
    raise UnsendableError(
        f"{what} can be had once, and only from the process that sent it while that lives: a queue that delivers again "
        f"(redeliver=True) or has a name, and a pool with retries, cannot carry it. {instead}"
    )


def refuse_descriptor(what: str) -> NoReturn:
    refuse(f"a {what}", "Send what the other side can open by itself, such as an address, or use a queue without these")


def _know_descriptors() -> None:
    """How connections, sockets and other descriptors go in messages that last: not at all."""
    from multiprocessing import connection, resource_sharer

    if resource_sharer.DupFd in ours:
        return

    def refusing(kind: type) -> Callable[[Any], Any]:
        def reduce(obj: Any) -> Any:
            if is_lasting():
                refuse_descriptor(kind.__name__)
            reduction = reduction_of(kind)
            return reduction(obj) if reduction is not None else obj.__reduce_ex__(protocol())

        return reduce

    def reduce_descriptor(descriptor: Any) -> Any:
        if is_lasting():
            _withdraw(descriptor)
            refuse_descriptor("descriptor")
        return descriptor.__reduce_ex__(protocol())

    for kind in (connection.Connection, socket.socket):
        ours[kind] = refusing(kind)
    ours[resource_sharer.DupFd] = reduce_descriptor


def _withdraw(descriptor: Any) -> None:
    """Close what multiprocessing keeps for whoever would have asked for the descriptor."""
    from multiprocessing import resource_sharer

    with contextlib.suppress(AttributeError, KeyError, TypeError, ValueError):
        _, close = resource_sharer._resource_sharer._cache.pop(descriptor._id[1])  # type: ignore[attr-defined]
        close()


_cloud: Any = None  # the class, once it is needed


def by_value(stream: io.BytesIO, beside: Any) -> Any:
    """A pickler, for `pack`, that sends functions and classes without a name by value."""
    return cloud_pickler()(stream, 5, buffer_callback=beside)


def cloud_pickler() -> Any:
    """Cloudpickle's pickler, which knows our reductions."""
    global _cloud
    if _cloud is None:
        import cloudpickle

        class CloudPickler(cloudpickle.Pickler):  # type: ignore[misc]
            def reducer_override(self, obj: Any) -> Any:
                # Its own reduction is its name, which a function without a name, or of a `__main__` unknown elsewhere, does not have.
                if type(obj) is CACHED and (obj.__module__ == "__main__" or "<locals>" in obj.__qualname__):
                    return _Cache(obj), (obj.__wrapped__,)
                return super().reducer_override(obj)

            # A class's table shadows an instance's; live, so that what is registered later counts.
            dispatch_table: ClassVar[Any] = collections.ChainMap(
                ours,
                ForkingPickler._extra_reducers,  # type: ignore[attr-defined]
                cloudpickle.Pickler.dispatch_table,
            )

        _cloud = CloudPickler
    return _cloud


# Types whose objects a handle says all of, and how one is made that a queue may take over (None: the object is not shared).
direct: dict[type, Callable[[Any], bytes | None]] = {}


def protocol() -> int:
    """Which pickle protocol a value's own reduction is for: 5 where buffers may go beside the pickle."""
    message = _batch.message
    return 5 if message is not None and message.beside else 4


def message_kind() -> int:
    """What hold the handles made now carry: 1 a message's of its own, 2 one to be given to a queue."""
    message = _batch.message
    return 2 if message is not None and message.draft else 1


def sends_handles() -> bool:
    """Whether what is pickled now stays on this host, so that it may name shared memory."""
    message = _batch.message
    return message is not None and message.handles is not None


def storages(kind: Callable[[], Any]) -> Any:
    """What keeps the storages of the tensors in what is pickled now, made at the first; None: nothing can go beside it."""
    message = _batch.message
    if message is None or not message.beside:
        return None
    if message.storages is None:
        message.storages = kind()
    return message.storages


def note(handle: bytes) -> bytes:
    """Remember a message's handle, so that a failed `dump` can take its hold back."""
    message = _batch.message
    if message is not None and message.handles is not None:
        message.handles.append(handle)
    return handle


_decode: Any = None  # copyless.arrays.decode, which imports NumPy, once an array comes


def load(handle: bytes) -> Any:
    """What a message's handle names."""
    global _decode
    found = _handles.load_array(handle)  # the short way, for descriptions met before
    if found is not None:
        return found
    kind, block, offset, nbytes = handles.resolve(handle)
    if kind == _handles.KIND_MEMORY:
        return _memory._from_block(block, offset, nbytes, handle[_handles.WIRE_SIZE :] == b"r")
    if kind == _handles.KIND_OBJECT:
        return objects.stand(block)
    if _decode is None:
        from copyless.arrays import decode as _decode
    return _decode(handle, block, offset, nbytes)


def memory_handle(memory: Memory, message: int) -> bytes | None:
    wire = _handles.handle_of(memory.address, memory.nbytes, _handles.KIND_MEMORY, message)
    return None if wire is None else wire + (b"r" if memory.readonly else b"")


def _reduce_memory(memory: Memory) -> Any:
    handle = memory_handle(memory, message_kind()) if memory.nbytes else None
    return memory.__reduce__() if handle is None else (_loaders.load, (note(handle),))


def object_handle(obj: _blocks.Object, message: int) -> bytes:
    """The handle of a lock, queue or ring."""
    address, nbytes = obj._address
    handle = _handles.handle_of(address, nbytes, _handles.KIND_OBJECT, message)
    assert handle is not None
    return handle


def noted_handle(obj: _blocks.Object) -> bytes:
    """What says in a pickle where a lock, queue or ring lies, whatever the pickler."""
    return note(object_handle(obj, message_kind()))


def block_of(handle: bytes) -> Any:
    """The block of the object that a message's handle names."""
    kind, block, _, _ = handles.resolve(handle)
    if kind != _handles.KIND_OBJECT:
        raise ValueError(f"the handle names no lock, queue or ring: {handles.Handle(handle)!r}")
    return block


def register(kind: type, reduction: Any) -> None:
    """Teach multiprocessing's pickler how objects of exactly this type cross to another process."""
    ForkingPickler.register(kind, reduction)


def or_as_pickle(reduction: Any) -> Any:
    """A reduction that falls back on the type's own pickling when it fails; `explain` reads why from `fallbacks`.

    For values whose sharing spares a copy and nothing more. An array in shared memory is not of these: a copy that arrives
    in its place would no longer be the same memory.
    """

    def reduce(obj: Any) -> Any:
        try:
            return reduction(obj)
        except Exception as error:
            if _batch.fallbacks is not None:
                _batch.fallbacks.append(f"{type(error).__name__}: {error}")
        return obj.__reduce_ex__(protocol())

    return reduce


@contextlib.contextmanager
def fallbacks() -> Iterator[list[str]]:
    """Why reductions of this thread fell back on the type's own pickling meanwhile."""
    outer, why = _batch.fallbacks, []  # type: list[str] | None, list[str]
    _batch.fallbacks = why
    try:
        yield why
    finally:
        _batch.fallbacks = outer


def reduction_of(kind: type) -> Any:
    """What multiprocessing's pickler was taught for a type, or None."""
    return ForkingPickler._extra_reducers.get(kind)  # type: ignore[attr-defined]


ForkingPickler.dump = noting(pickle.Pickler.dump)  # type: ignore[method-assign]
register(Memory, _reduce_memory)
