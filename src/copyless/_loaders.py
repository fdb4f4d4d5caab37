"""Every function that our pickles may name. This module is never moved or renamed, nor is a function in it.

What lies in a queue or in a named block may be read by another version of this package than wrote it: a running system is
upgraded one process at a time. A pickle finds its functions by module and name, so both stay as they are here, while what
they call may move freely. A function whose arguments change gets a new name; the old one stays for as long as
docs/design/formats.md says.

Nothing is imported before it is needed: whoever loads an array needs no manager.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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

# ---- what lies in shared memory, by its handle

# These two are called for every message: what they stand for is kept.
_load: Any = None
_array_over: Any = None


def load(handle: bytes) -> Any:
    """What a handle names: an array or memory. (Locks, queues and rings have loaders of their own.)"""
    global _load
    if _load is None:
        from copyless.pickling import load as _load
    return _load(handle)


def array_over(buffer: Any, code: str, shape: tuple[int, ...]) -> Any:
    """A plain array over a buffer. Named in plain.h."""
    global _array_over
    if _array_over is None:
        from copyless._core._handles import array_over as _array_over
    return _array_over(buffer, code, shape)


def empty_array(shape: tuple[int, ...], dtype: Any) -> Any:
    """A shared array without elements, which has no place in memory."""
    from copyless.arrays import empty

    return empty(shape, dtype)


def array_of_dtype(handle: bytes, dtype: Any) -> Any:
    """An array whose handle does not say its dtype."""
    return load(handle).view(dtype)


def array_as(raw: Any, dtype: Any) -> Any:
    """An array of a dtype over one of bytes without a meaning."""
    return raw.view(dtype)


def array_of_cluster(package: str, handle: bytes, name: str, dtype: Any) -> Any:
    """An array with a name, in a message of Dask or Ray on a cluster of one host."""
    from copyless import _other_pools

    return _other_pools.arrive(package, handle, name, dtype)


def array_of_class(kind: type, array: Any, state: dict[str, Any] | None) -> Any:
    """An array of a class derived from NumPy's or ours, with its attributes."""
    from copyless.arrays import of_class

    return of_class(kind, array, state)


def recarray(plain: Any) -> Any:
    """A `numpy.recarray` over a structured array."""
    import numpy as np

    return plain.view(np.recarray)


def bytes_in_memory(data: bytes, readonly: bool) -> Any:
    """A `Memory` that was pickled by value."""
    from copyless._core._memory import _from_bytes

    return _from_bytes(data, readonly)


# ---- locks, queues and rings: of a handle, or of a class that is derived from one of ours (with what its __new__ is given)


def lock(source: bytes | type[Any], arguments: Any = (), keywords: Any = None) -> Any:
    """A `Lock`, or an object of a subclass whose state comes next."""
    from copyless import objects, synchronize

    return objects.load(synchronize.Lock, source, arguments, keywords)


def rlock(source: bytes | type[Any], arguments: Any = (), keywords: Any = None) -> Any:
    """A `RLock`, or an object of a subclass whose state comes next."""
    from copyless import objects, synchronize

    return objects.load(synchronize.RLock, source, arguments, keywords)


def rwlock(source: bytes | type[Any], arguments: Any = (), keywords: Any = None) -> Any:
    """A `RWLock`, or an object of a subclass whose state comes next."""
    from copyless import objects, synchronize

    return objects.load(synchronize.RWLock, source, arguments, keywords)


def semaphore(source: bytes | type[Any], arguments: Any = (), keywords: Any = None) -> Any:
    """A `Semaphore`, or an object of a subclass whose state comes next."""
    from copyless import objects, synchronize

    return objects.load(synchronize.Semaphore, source, arguments, keywords)


def bounded_semaphore(source: bytes | type[Any], arguments: Any = (), keywords: Any = None) -> Any:
    """A `BoundedSemaphore`, or an object of a subclass whose state comes next."""
    from copyless import objects, synchronize

    return objects.load(synchronize.BoundedSemaphore, source, arguments, keywords)


def event(source: bytes | type[Any], arguments: Any = (), keywords: Any = None) -> Any:
    """An `Event`, or an object of a subclass whose state comes next."""
    from copyless import objects, synchronize

    return objects.load(synchronize.Event, source, arguments, keywords)


def condition(source: bytes | type[Any], arguments: Any = (), keywords: Any = None) -> Any:
    """A `Condition`, or an object of a subclass whose state comes next."""
    from copyless import objects, synchronize

    return objects.load(synchronize.Condition, source, arguments, keywords)


def barrier(source: bytes | type[Any], arguments: Any = (), keywords: Any = None) -> Any:
    """A `Barrier`, or an object of a subclass whose state comes next."""
    from copyless import objects, synchronize

    return objects.load(synchronize.Barrier, source, arguments, keywords)


def queue(source: bytes | type[Any], arguments: Any = (), keywords: Any = None) -> Any:
    """A `Queue`, or an object of a subclass whose state comes next."""
    from copyless import objects, queues

    return objects.load(queues.Queue, source, arguments, keywords)


def joinable_queue(source: bytes | type[Any], arguments: Any = (), keywords: Any = None) -> Any:
    """A `JoinableQueue`, or an object of a subclass whose state comes next."""
    from copyless import objects, queues

    return objects.load(queues.JoinableQueue, source, arguments, keywords)


def simple_queue(source: bytes | type[Any], arguments: Any = (), keywords: Any = None) -> Any:
    """A `SimpleQueue`, or an object of a subclass whose state comes next."""
    from copyless import objects, queues

    return objects.load(queues.SimpleQueue, source, arguments, keywords)


def ring_buffer(source: bytes | type[Any], arguments: Any = (), keywords: Any = None) -> Any:
    """A `RingBuffer`, or an object of a subclass whose state comes next."""
    from copyless import objects, rings

    return objects.load(rings.RingBuffer, source, arguments, keywords)


# ---- the drop-in, and objects of C


def shared_memory(kind: type[Any], name: str, track: bool | None, readonly: bool) -> Any:
    """A `SharedMemory`, by its name."""
    return kind(name, track=track, readonly=readonly) if track is not None or readonly else kind(name)


def shareable_list(kind: type[Any], name: str) -> Any:
    """A `ShareableList`, by its name."""
    return kind(name=name)


def connection(descriptor: Any, readable: bool, writable: bool) -> Any:
    """One end of a pipe."""
    from copyless.connection import Connection

    return Connection(descriptor.detach(), readable, writable)


def ctypes_wrapper(handle: bytes) -> Any:
    """What keeps the memory of an object of ctypes."""
    from copyless.sharedctypes import _Wrapper

    return _Wrapper(load(handle))


def ctypes_object(kind: Any, lengths: tuple[int, ...], memory: Any) -> Any:
    """An object of ctypes over shared memory."""
    from copyless.sharedctypes import _rebuild

    return _rebuild(kind, lengths, memory)


def synchronized(description: Any, lock: Any, obj: Any) -> Any:
    """An object of ctypes with its lock."""
    from copyless.sharedctypes import _restore

    return _restore(description, lock, obj)


def synchronized_as(kind: Any, lock: Any, obj: Any) -> Any:
    """An object of ctypes with its lock, in a wrapper of a class derived from one of ours."""
    from copyless.sharedctypes import _restore_as

    return _restore_as(kind, lock, obj)


# ---- objects of libraries that stand in shared memory


def tensor(array: Any, dtype: Any) -> Any:
    """A tensor of PyTorch over a shared array."""
    from copyless.tensors import _tensor

    return _tensor(array, dtype)


def tensor_at(place: Any, dtype: Any, offset: int, size: Any, stride: Any, requires_grad: bool) -> Any:
    """A tensor of PyTorch over a storage, or over one that lies beside its message (`place`: which, by its number)."""
    from copyless.tensors import _tensor_at

    return _tensor_at(place, dtype, offset, size, stride, requires_grad)


def tensor_sparse(layout: Any, indices: Any, values: Any, size: Any, coalesced: bool | None, requires_grad: bool) -> Any:
    """A sparse tensor of PyTorch, from its dense parts."""
    from copyless.tensors import _sparse_tensor

    return _sparse_tensor(layout, indices, values, size, coalesced, requires_grad)


def tensor_storage(buffer: Any) -> Any:
    """A storage of PyTorch over a buffer."""
    from copyless.tensors import _storage

    return _storage(buffer)


def tensor_storage_at(place: int) -> Any:
    """A storage of PyTorch that lies beside its message."""
    from copyless.tensors import _storage_at

    return _storage_at(place)


def tensor_typed_storage(storage: Any, kind: Any) -> Any:
    """A storage with its dtype, or of an old class that is for one dtype."""
    from copyless.tensors import _typed_storage

    return _typed_storage(storage, kind)


def with_storages(data: Any, places: Any, runs: Any, *buffers: Any) -> Any:
    """An object whose pickle names storages of PyTorch that lie beside it."""
    from copyless.tensors import _with_storages

    return _with_storages(data, places, runs, buffers)


def arrow_buffer(handle: bytes) -> Any:
    """A buffer of Arrow over shared memory."""
    from copyless.frames import _buffer_of

    return _buffer_of(handle)


def pandas_column(kind: Any, state: dict[str, Any]) -> Any:
    """A column that pandas keeps in Arrow."""
    from copyless.frames import _restore_column

    return _restore_column(kind, state)


def polars_table(single: bool, parts: list[Any], height: int) -> Any:
    """A frame of polars, or (`single`) a series: each column as itself, or as (name, schema of Arrow, Arrow array, order)."""
    from copyless.frames import _restore_table

    return _restore_table(single, parts, height)


# ---- pools, managers and ranks


def sealed(data: Any, names: list[bytes], *buffers: Any) -> Any:
    """A task or result on its way, not opened yet."""
    from copyless.workers import _sealed

    return _sealed(data, names, *buffers)


def work(
    names: list[bytes],
    mask: list[int],
    initializer: Any,
    initargs: Any,
    most: int | None,
    retries: int,
    log: int | None = None,
    idle: float | None = None,
) -> None:
    """What the worker process of a pool does."""
    from copyless.workers import work as run

    run(names, mask, initializer, initargs, most, retries, log, idle)


def call_many(function: Any, argument_lists: list[tuple[Any, ...]]) -> list[Any]:
    """The task that stands for a chunk of an executor's `map`."""
    return [function(*arguments) for arguments in argument_lists]


def joblib_begin(environment: dict[str, str], initializer: Any, threads: int | None, depth: int) -> None:
    """What a worker of the backend for joblib does first."""
    from copyless.joblib import _begin

    _begin(environment, initializer, threads, depth)


def joblib_begins(data: bytes) -> Any:
    from copyless._core import _pickles

    return _pickles.loads(data)


def joblib_call(nested: bytes, calls: list[Any]) -> Any:
    """The task that stands for some of joblib's."""
    from copyless.joblib import _call

    return _call(nested, calls)


_joblib_array: Any = None


def joblib_array(array: Any, copies: bool) -> Any:
    """An array that the backend for joblib moved into shared memory; a copy of it where each task has its own."""
    global _joblib_array
    if _joblib_array is None:
        from copyless.joblib import _arrived as _joblib_array
    return _joblib_array(array, copies)


def joblib_worker(environment: dict[str, str], initializer: Any, initargs: Any) -> None:
    """What `joblib_begin` was in earlier versions."""
    from copyless.joblib import _begin

    _begin(environment, None if initializer is None else (initializer, initargs), None, 0)


def serve_manager(kind: Any, run: tuple[Any, ...], writer: Any, initializer: Any, initargs: Any) -> None:
    """What the server process of a manager does."""
    from copyless.managers import _Run

    kind._run_server(_Run(*run), writer, initializer, initargs)


def proxy(kind: Any, token: Any, serializer: str, options: dict[str, Any]) -> Any:
    """A manager's proxy; `kind` is its class, or the name of one of ours."""
    from copyless import proxies

    return proxies.RebuildProxy(getattr(proxies, kind) if type(kind) is str else kind, token, serializer, options)


def token(typeid: str, address: Any, ident: str, local: str | None) -> Any:
    """Which object of which manager."""
    from copyless.proxies import Token

    return Token(typeid, address, ident, local)


def begin_rank(card: bytes, rank: int, names: list[bytes], parent: int) -> None:
    """What a process started by `comm.spawn` does."""
    from copyless.comm.launcher import _begin

    _begin(card, rank, names, parent)


# ---- messages between ranks


def packet_apart(data: bytes, names: list[bytes], *parts: Any) -> Any:
    """An object's pickle with its buffers."""
    from copyless.comm.packets import _apart

    return _apart(data, names, *parts)


def packet_in_block(data: bytes, sizes: list[int], handle: bytes, names: Sequence[bytes] = ()) -> Any:
    """An object's pickle with its buffers in a block of one receiver's own."""
    from copyless.comm.packets import in_block

    return in_block(data, sizes, handle, names)


def packet_together(data: bytes, sizes: list[int], handle: bytes) -> Any:
    """An object's pickle with its buffers in a block that several receive."""
    from copyless.comm.packets import _together

    return _together(data, sizes, handle)


def mpi_inline(data: bytes, *parts: bytearray) -> Any:
    """An object whose buffers lie in its message."""
    from copyless._core._pickles import loads

    return loads(data, parts)


def mpi_block(data: bytes, sizes: list[int], handle: bytes) -> Any:
    """An object whose buffers lie in a block of this node."""
    from copyless.comm.mpi import _block

    return _block(data, sizes, handle)


def mpi_whole_block(sizes: list[int], handle: bytes) -> Any:
    """An object whose pickle and buffers lie in a block of this node."""
    from copyless.comm.mpi import _whole_block

    return _whole_block(sizes, handle)


def comm_sealed(transport: str, data: bytes, *parts: Any) -> Any:
    """An object that was made bytes by the functions of a transport's `pickle`, and is made again by them."""
    if transport == "mpi":
        from copyless.comm import mpi

        return mpi.pickle.loads_oob(data, parts)
    from copyless.comm import local

    return local.pickle.loads_oob(data, parts)


def mpi_detached(base: int, sizes: list[int]) -> Any:
    """The head of a message whose buffers lie behind it."""
    from copyless.comm.mpi import _Detached

    return _Detached(base, sizes)
