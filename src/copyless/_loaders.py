"""Every function that pickles of copyless may name. This module and its functions are never moved or renamed.

A message in a queue, or a named block, may be read by another version of this package than the one that wrote it: a
running system is upgraded one process at a time. A pickle finds its functions by module and name, so both stay as they
are here, while the functions that they call may move freely. A function whose arguments change gets a new name; the old
one stays for as long as docs/design/formats.md says.

Nothing is imported before it is needed: a process that loads an array does not import managers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from copyless._typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from _ctypes import _CData
    from multiprocessing import connection as _connections
    from multiprocessing.resource_sharer import DupFd

    import numpy as np
    import polars as pl
    import pyarrow as pa
    import torch
    from numpy.typing import DTypeLike, NDArray
    from typing_extensions import Buffer

    from copyless import queues, rings, sharedctypes, synchronize
    from copyless import shared_memory as _shared_memory
    from copyless._transfer._memory import Memory
    from copyless._transfer.sealed import Sealed
    from copyless.comm._packets import Packet
    from copyless.managers import BaseManager
    from copyless.managers._protocol import Token

__all__ = [
    "array_as",
    "array_of_class",
    "array_of_cluster",
    "array_of_dtype",
    "array_over",
    "arrow_buffer",
    "barrier",
    "begin_rank",
    "bounded_semaphore",
    "bytes_in_memory",
    "call_many",
    "comm_bundle",
    "comm_sealed",
    "condition",
    "connection",
    "ctypes_object",
    "ctypes_wrapper",
    "empty_array",
    "event",
    "joblib_array",
    "joblib_begin",
    "joblib_begins",
    "joblib_call",
    "joblib_worker",
    "joinable_queue",
    "load",
    "lock",
    "mpi_block",
    "mpi_detached",
    "mpi_inline",
    "mpi_parts",
    "mpi_whole_block",
    "packet_apart",
    "packet_in_block",
    "packet_together",
    "pandas_column",
    "polars_table",
    "proxy",
    "queue",
    "recarray",
    "ring_buffer",
    "rlock",
    "rwlock",
    "sealed",
    "semaphore",
    "serve_manager",
    "shareable_list",
    "shared_memory",
    "simple_queue",
    "synchronized",
    "synchronized_as",
    "tensor",
    "tensor_at",
    "tensor_sparse",
    "tensor_storage",
    "tensor_storage_at",
    "tensor_typed_storage",
    "token",
    "with_storages",
    "work",
]

R = TypeVar("R")
S = TypeVar("S")
B = TypeVar("B", bound="sharedctypes.SynchronizedBase[_CData]")
A = TypeVar("A", bound="NDArray[np.generic]")

# ---- arrays and memory, by their handles

# These two functions are called for every message: their targets are cached.
_load: Callable[[bytes], Any] | None = None
_array_over: Callable[[Buffer, str, tuple[int, ...]], object] | None = None


def load(handle: bytes) -> Any:
    """The array or memory of a handle. (Locks, queues and rings have their own loaders.)"""
    global _load
    if _load is None:
        from copyless._transfer.reductions import load

        _load = load
    return _load(handle)


def array_over(buffer: Buffer, code: str, shape: tuple[int, ...]) -> object:
    """A plain array over a buffer. Named in plain.h."""
    global _array_over
    if _array_over is None:
        from copyless._transfer._array_loading import array_over

        _array_over = array_over
    return _array_over(buffer, code, shape)


def empty_array(shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[np.generic]:
    """A shared array without elements, which has no memory."""
    from copyless.arrays import empty

    return empty(shape, dtype)


def array_of_dtype(handle: bytes, dtype: DTypeLike) -> NDArray[np.generic]:
    """An array whose handle does not describe its dtype."""
    return array_as(load(handle), dtype)


def array_as(raw: NDArray[np.generic], dtype: DTypeLike) -> NDArray[np.generic]:
    """An array of a dtype over an array of plain bytes."""
    return raw.view(dtype)


def array_of_cluster(package: str, handle: bytes, name: str, dtype: DTypeLike) -> NDArray[np.generic]:
    """An array with a name, in a message of Dask or Ray on a cluster on one host."""
    from copyless._transfer.reductions import load_in_cluster

    return load_in_cluster(package, handle, name, dtype)


def array_of_class(kind: type[A], array: NDArray[np.generic], state: dict[str, object] | None) -> A:
    """An array of a class derived from NumPy's or copyless's, with its attributes."""
    from copyless._transfer.shared_array import of_class

    return of_class(kind, array, state)


def recarray(plain: NDArray[np.generic]) -> NDArray[np.generic]:
    """A `numpy.recarray` over a structured array."""
    import numpy as np

    return plain.view(np.recarray)


def bytes_in_memory(data: bytes, readonly: bool) -> Memory:
    """A `Memory` that was pickled by value."""
    from copyless._transfer._memory import _from_bytes

    return _from_bytes(data, readonly)


# ---- locks, queues and rings: from a handle; or from a subclass of a class of copyless, with the arguments of its
# __new__


def lock(
    source: bytes | type[synchronize.Lock],
    arguments: tuple[object, ...] = (),
    keywords: dict[str, object] | None = None,
) -> synchronize.Lock:
    """A `Lock`, or an object of a subclass whose state follows."""
    from copyless import synchronize
    from copyless._objects import base

    return base.load(synchronize.Lock, source, arguments, keywords)


def rlock(
    source: bytes | type[synchronize.RLock],
    arguments: tuple[object, ...] = (),
    keywords: dict[str, object] | None = None,
) -> synchronize.RLock:
    """A `RLock`, or an object of a subclass whose state follows."""
    from copyless import synchronize
    from copyless._objects import base

    return base.load(synchronize.RLock, source, arguments, keywords)


def rwlock(
    source: bytes | type[synchronize.RWLock],
    arguments: tuple[object, ...] = (),
    keywords: dict[str, object] | None = None,
) -> synchronize.RWLock:
    """A `RWLock`, or an object of a subclass whose state follows."""
    from copyless import synchronize
    from copyless._objects import base

    return base.load(synchronize.RWLock, source, arguments, keywords)


def semaphore(
    source: bytes | type[synchronize.Semaphore],
    arguments: tuple[object, ...] = (),
    keywords: dict[str, object] | None = None,
) -> synchronize.Semaphore:
    """A `Semaphore`, or an object of a subclass whose state follows."""
    from copyless import synchronize
    from copyless._objects import base

    return base.load(synchronize.Semaphore, source, arguments, keywords)


def bounded_semaphore(
    source: bytes | type[synchronize.BoundedSemaphore],
    arguments: tuple[object, ...] = (),
    keywords: dict[str, object] | None = None,
) -> synchronize.BoundedSemaphore:
    """A `BoundedSemaphore`, or an object of a subclass whose state follows."""
    from copyless import synchronize
    from copyless._objects import base

    return base.load(synchronize.BoundedSemaphore, source, arguments, keywords)


def event(
    source: bytes | type[synchronize.Event],
    arguments: tuple[object, ...] = (),
    keywords: dict[str, object] | None = None,
) -> synchronize.Event:
    """An `Event`, or an object of a subclass whose state follows."""
    from copyless import synchronize
    from copyless._objects import base

    return base.load(synchronize.Event, source, arguments, keywords)


def condition(
    source: bytes | type[synchronize.Condition],
    arguments: tuple[object, ...] = (),
    keywords: dict[str, object] | None = None,
) -> synchronize.Condition:
    """A `Condition`, or an object of a subclass whose state follows."""
    from copyless import synchronize
    from copyless._objects import base

    return base.load(synchronize.Condition, source, arguments, keywords)


def barrier(
    source: bytes | type[synchronize.Barrier],
    arguments: tuple[object, ...] = (),
    keywords: dict[str, object] | None = None,
) -> synchronize.Barrier:
    """A `Barrier`, or an object of a subclass whose state follows."""
    from copyless import synchronize
    from copyless._objects import base

    return base.load(synchronize.Barrier, source, arguments, keywords)


def queue(
    source: bytes | type[queues.Queue[R]], arguments: tuple[object, ...] = (), keywords: dict[str, object] | None = None
) -> queues.Queue[R]:
    """A `Queue`, or an object of a subclass whose state follows."""
    from copyless import queues
    from copyless._objects import base

    return base.load(queues.Queue, source, arguments, keywords)


def joinable_queue(
    source: bytes | type[queues.JoinableQueue[R]],
    arguments: tuple[object, ...] = (),
    keywords: dict[str, object] | None = None,
) -> queues.JoinableQueue[R]:
    """A `JoinableQueue`, or an object of a subclass whose state follows."""
    from copyless import queues
    from copyless._objects import base

    return base.load(queues.JoinableQueue, source, arguments, keywords)


def simple_queue(
    source: bytes | type[queues.SimpleQueue[R]],
    arguments: tuple[object, ...] = (),
    keywords: dict[str, object] | None = None,
) -> queues.SimpleQueue[R]:
    """A `SimpleQueue`, or an object of a subclass whose state follows."""
    from copyless import queues
    from copyless._objects import base

    return base.load(queues.SimpleQueue, source, arguments, keywords)


def ring_buffer(
    source: bytes | type[rings.RingBuffer[R]],
    arguments: tuple[object, ...] = (),
    keywords: dict[str, object] | None = None,
) -> rings.RingBuffer[R]:
    """A `RingBuffer`, or an object of a subclass whose state follows."""
    from copyless import rings
    from copyless._objects import base

    return base.load(rings.RingBuffer, source, arguments, keywords)


# ---- shared_memory, connections, and ctypes objects


def shared_memory(
    kind: type[_shared_memory.SharedMemory], name: str, track: bool | None, readonly: bool
) -> _shared_memory.SharedMemory:
    """A `SharedMemory`, by its name."""
    return kind(name, track=track, readonly=readonly) if track is not None or readonly else kind(name)


def shareable_list(kind: Callable[..., S], name: str) -> S:
    """A `ShareableList`, by its name."""
    return kind(name=name)


def connection(descriptor: DupFd, readable: bool, writable: bool) -> _connections.Connection:
    """One end of a pipe."""
    from copyless.connection import Connection

    return Connection(descriptor.detach(), readable, writable)


def ctypes_wrapper(handle: bytes) -> sharedctypes._Wrapper:
    """The object that keeps the memory of a ctypes object."""
    from copyless.sharedctypes import _Wrapper

    return _Wrapper(load(handle))


def ctypes_object(kind: type[_CData], lengths: tuple[int, ...], memory: Buffer) -> _CData:
    """A ctypes object over shared memory."""
    from copyless.sharedctypes import _rebuild

    return _rebuild(kind, lengths, memory)


def synchronized(
    description: tuple[type[_CData], tuple[int, ...]] | None, lock: sharedctypes._LockLike, obj: _CData | None
) -> object:
    """A ctypes object with its lock."""
    from copyless.sharedctypes import _restore

    return _restore(description, lock, obj)


def synchronized_as(kind: type[B], lock: sharedctypes._LockLike, obj: _CData) -> B:
    """A ctypes object with its lock, in a wrapper of a class derived from one of copyless."""
    from copyless.sharedctypes import _restore_as

    return _restore_as(kind, lock, obj)


# ---- objects of libraries in shared memory


def tensor(array: NDArray[np.generic], dtype: torch.dtype) -> torch.Tensor:
    """A tensor of PyTorch over a shared array."""
    from copyless._libraries.torch import tensor_of_array

    return tensor_of_array(array, dtype)


def tensor_at(
    place: int | torch.UntypedStorage | None,
    dtype: torch.dtype,
    offset: int,
    size: tuple[int, ...],
    stride: tuple[int, ...],
    requires_grad: bool,
) -> torch.Tensor:
    """A tensor of PyTorch over a storage, or over one beside its message (`place`: its number)."""
    from copyless._libraries.torch import tensor_at

    return tensor_at(place, dtype, offset, size, stride, requires_grad)


def tensor_sparse(
    layout: torch.layout,
    indices: tuple[torch.Tensor, ...],
    values: torch.Tensor,
    size: tuple[int, ...],
    coalesced: bool | None,
    requires_grad: bool,
) -> torch.Tensor:
    """A sparse tensor of PyTorch, from its dense parts."""
    from copyless._libraries.torch import sparse_tensor

    return sparse_tensor(layout, indices, values, size, coalesced, requires_grad)


def tensor_storage(buffer: Buffer) -> torch.UntypedStorage:
    """A storage of PyTorch over a buffer."""
    from copyless._libraries.torch import storage_of

    return storage_of(buffer)


def tensor_storage_at(place: int) -> torch.UntypedStorage:
    """A storage of PyTorch beside its message."""
    from copyless._libraries.torch import storage_at

    return storage_at(place)


def tensor_typed_storage(
    storage: torch.UntypedStorage, kind: torch.dtype | type[torch.storage.TypedStorage]
) -> torch.storage.TypedStorage:
    """A storage with its dtype, or of an old class for one dtype."""
    from copyless._libraries.torch import typed_storage

    return typed_storage(storage, kind)


def with_storages(data: Buffer, places: Sequence[tuple[int, int]], runs: Sequence[Buffer], *buffers: Buffer) -> object:
    """An object whose pickle names storages of PyTorch beside it."""
    from copyless._libraries.torch import with_storages

    return with_storages(data, places, runs, buffers)


def arrow_buffer(handle: bytes) -> pa.Buffer:
    """A buffer of Arrow over shared memory."""
    from copyless._libraries.arrow import buffer_of

    return buffer_of(handle)


def pandas_column(kind: type[S], state: dict[str, object]) -> S:
    """An Arrow column of pandas."""
    from copyless._libraries.pandas import column_of

    return column_of(kind, state)


def polars_table(
    single: bool, parts: list[pl.Series | tuple[str, pa.Schema, pa.ChunkedArray, int]], height: int
) -> pl.DataFrame | pl.Series:
    """A polars DataFrame, or (`single`) a series: each column as itself, or as (name, Arrow schema, Arrow array,
    order).
    """
    from copyless._libraries.polars import table_of

    return table_of(single, parts, height)


# ---- pools, managers and ranks


def sealed(data: Buffer, names: list[bytes], *buffers: Buffer) -> Sealed:
    """A sealed task or result, not opened yet."""
    from copyless._transfer.sealed import load as load_sealed

    return load_sealed(data, names, *buffers)


def work(
    names: list[bytes],
    mask: list[int],
    initializer: Callable[..., object] | None,
    initargs: tuple[object, ...],
    most: int | None,
    retries: int,
    log: int | None = None,
    idle: float | None = None,
) -> None:
    """The code of a worker process of a pool."""
    from copyless._workers.worker import work as run

    run(names, mask, initializer, initargs, most, retries, log, idle)


def call_many(function: Callable[..., R], argument_lists: Sequence[tuple[object, ...]]) -> list[R]:
    """The task for a chunk of an executor's `map`."""
    return [function(*arguments) for arguments in argument_lists]


def joblib_begin(
    environment: dict[str, str],
    initializer: tuple[Callable[..., object], tuple[object, ...]] | None,
    threads: int | None,
    depth: int,
) -> None:
    """The first task of a worker of the backend for joblib."""
    from copyless.joblib import _begin

    _begin(environment, initializer, threads, depth)


def joblib_begins(data: bytes) -> object:
    from copyless._core import _pickles

    return _pickles.loads(data)


def joblib_call(nested: bytes, calls: list[object]) -> object:
    """The task for a batch of joblib's tasks."""
    from copyless.joblib import _call

    return _call(nested, calls)


_joblib_array: Callable[[NDArray[np.generic], bool], object] | None = None


def joblib_array(array: NDArray[np.generic], copies: bool) -> object:
    """An array that the backend for joblib moved into shared memory; a copy if each task has its own."""
    global _joblib_array
    if _joblib_array is None:
        from copyless.joblib import _arrived

        _joblib_array = _arrived
    return _joblib_array(array, copies)


def joblib_worker(
    environment: dict[str, str], initializer: Callable[..., object] | None, initargs: tuple[object, ...]
) -> None:
    """The name of `joblib_begin` in earlier versions."""
    from copyless.joblib import _begin

    _begin(environment, None if initializer is None else (initializer, initargs), None, 0)


def serve_manager(
    kind: type[BaseManager],
    run: tuple[Any, ...],
    writer: _connections.Connection,
    initializer: Callable[..., object] | None,
    initargs: tuple[object, ...],
) -> None:
    """The code of the server process of a manager."""
    from copyless.managers._manager import Run

    kind._run_server(Run(*run), writer, initializer, initargs)


def proxy(kind: str | Callable[..., object], token: Token, serializer: str, options: dict[str, Any]) -> object:
    """A proxy of a manager; `kind` is its class, or the name of a class of copyless."""
    from copyless.managers import _proxies

    return _proxies.RebuildProxy(getattr(_proxies, kind) if isinstance(kind, str) else kind, token, serializer, options)


def token(typeid: str, address: object, ident: str, local: str | None) -> Token:
    """The identity of an object of a manager."""
    from copyless.managers._protocol import Token

    return Token(typeid, address, ident, local)


def begin_rank(group_handle: bytes, rank: int, names: list[bytes], parent: int) -> None:
    """The code of a process that `comm.spawn` started."""
    from copyless.comm._launcher import _begin

    _begin(group_handle, rank, names, parent)


# ---- messages between ranks


def packet_apart(data: bytes, names: list[bytes], *parts: Buffer) -> Packet:
    """An object from its pickle and separate buffers."""
    from copyless.comm._packets import _apart

    return _apart(data, names, *parts)


def packet_in_block(data: bytes, sizes: list[int], handle: bytes, names: Sequence[bytes] = ()) -> Packet:
    """An object from its pickle and its buffers in a block that belongs to one receiver."""
    from copyless.comm._packets import in_block

    return in_block(data, sizes, handle, names)


def packet_together(data: bytes, sizes: list[int], handle: bytes) -> Packet:
    """An object from its pickle and its buffers in a block that several ranks receive."""
    from copyless.comm._packets import _together

    return _together(data, sizes, handle)


def comm_bundle(nbytes: int, whole: Any, handle: bytes | None) -> object:
    """Objects of several ranks, in a block or as bytes."""
    from copyless.comm._bundles import received

    return received(nbytes, whole, handle)


def mpi_inline(data: bytes, *parts: bytearray) -> object:
    """An object whose buffers are inside its message."""
    from copyless._core._pickles import loads

    return loads(data, parts)


def mpi_parts(payload: bytes) -> object:
    """An object whose buffers follow in messages of their own, received by mpi4py itself."""
    from copyless.comm._parts import receive

    return receive(payload)


def mpi_block(data: bytes, sizes: list[int], handle: bytes) -> object:
    """An object whose buffers are in a block of this node."""
    from copyless.comm._mpi_messages import in_block

    return in_block(data, sizes, handle)


def mpi_whole_block(sizes: list[int], handle: bytes) -> object:
    """An object whose pickle and buffers are in a block of this node."""
    from copyless.comm._mpi_messages import wholly_in_block

    return wholly_in_block(sizes, handle)


def comm_sealed(transport: str, data: bytes, *parts: Buffer) -> object:
    """An object that the functions of a transport's `pickle` turned into bytes; they make it again."""
    if transport == "mpi":
        from copyless.comm import mpi

        return mpi.pickle.loads_oob(data, parts)
    from copyless.comm import local

    return local.pickle.loads_oob(data, parts)


def mpi_detached(payload: bytes) -> object:
    """An object whose pickle and buffers follow in the same message, received by mpi4py itself."""
    raise RuntimeError(
        "copyless.comm has sent this object with its buffers behind it, which only its own communicators can receive: "
        "use copyless.comm.mpi.Intracomm(comm).recv()"
    )
