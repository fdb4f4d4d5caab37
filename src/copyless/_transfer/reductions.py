"""The reductions of objects that are sent as a handle: memory, locks, queues and rings. For arrays see
`array_reductions`.

They are registered with multiprocessing's own pickler (`in_flight.register`), whose messages hold the memory that they
name.
"""

from __future__ import annotations

from collections.abc import Callable

from copyless._core import _blocks, _handles
from copyless._transfer import _memory, handles, in_flight
from copyless._transfer._memory import Memory
from copyless._typing import TYPE_CHECKING, Any
from copyless.errors import StaleHandleError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import DTypeLike, NDArray

    from copyless._typing import HasAddress

__all__ = ["block_of", "load", "load_in_cluster", "memory_handle", "noted_handle", "object_handle"]

_ARRAY = bytes([_handles.KIND_ARRAY])


_load_array: Callable[[bytes], NDArray[np.generic] | None] | None = (
    None  # from `_array_loading`, once an array has arrived: it imports NumPy
)


def load(handle: bytes) -> Any:
    """The array or memory of a handle. A hold of the message becomes a hold of this process."""
    global _load_array
    if handle[3:4] == _ARRAY:
        if _load_array is None:
            from copyless._transfer._array_loading import load_array

            _load_array = load_array
        found = _load_array(handle)
        if found is not None:
            return found
    kind, block, offset, nbytes = handles.resolve(handle)
    if kind == _handles.KIND_MEMORY:
        return _memory._from_block(block, offset, nbytes, handle[_handles.WIRE_SIZE :] == b"r")
    if kind == _handles.KIND_OBJECT:
        raise ValueError(f"the handle names a lock, queue or ring, not memory: {handles.Handle(handle)!r}")
    from copyless._transfer.array_reductions import decode

    return decode(handle, block, offset, nbytes)


def load_in_cluster(package: str, handle: bytes, name: str, dtype: DTypeLike) -> NDArray[np.generic]:
    """An array in a message of a cluster on one host. This process belongs to that cluster, so it sends arrays the
    same way.
    """
    from copyless._transfer import other_pools

    try:
        array: NDArray[np.generic] = load(handle)
    except StaleHandleError as error:
        raise StaleHandleError(
            f"the shared array {name!r} no longer exists: its last holder has ended, or its name was "
            "unlinked. Keep the array in the process that made it, or make it with persist=True"
        ) from error
    other_pools.allow(package)
    return array if dtype is None else array.view(dtype)


def memory_handle(memory: Memory, hold: int) -> bytes | None:
    wire = _handles.handle_of(memory.address, memory.nbytes, _handles.KIND_MEMORY, hold)
    return None if wire is None else wire + (b"r" if memory.readonly else b"")


def _reduce_memory(memory: Memory) -> str | tuple[object, ...]:
    from copyless import _loaders  # before a hold is made, which an error of the import would leave

    handle = memory_handle(memory, in_flight.message_kind()) if memory.nbytes else None
    return memory.__reduce__() if handle is None else (_loaders.load, (in_flight.note(handle),))


def object_handle(obj: HasAddress, hold: int) -> bytes:
    """The handle of a lock, queue or ring."""
    address, nbytes = obj._address
    handle = _handles.handle_of(address, nbytes, _handles.KIND_OBJECT, hold)
    assert handle is not None
    return handle


def noted_handle(obj: HasAddress) -> bytes:
    """The part of a pickle of any pickler that names a lock, queue or ring."""
    return in_flight.note(object_handle(obj, in_flight.message_kind()))


def block_of(handle: bytes) -> _blocks.Block:
    """The block of the object that a message's handle names."""
    block: _blocks.Block
    kind, block, _, _ = handles.resolve(handle)
    if kind != _handles.KIND_OBJECT:
        raise ValueError(f"the handle does not name a lock, queue or ring: {handles.Handle(handle)!r}")
    return block


in_flight.register(Memory, _reduce_memory)
