"""Reductions of large arrays among the ranks of one node: each rank computes one slice of the result.

All arrays lie in shared memory. Rank r reads its slice of each, combines them, and writes the slice into the block of
the result. The order of the operations is that of other reductions: a binomial tree by rank, ((0 1) (2 3)) ((4 5) ...).
So each element is computed once, by one rank, and its bits are those that a reduction of the whole arrays would give.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from copyless._core import _blocks
from copyless._transfer._memory import Memory
from copyless.comm import _constants
from copyless.comm._packets import Packet, tell_of_no_room
from copyless.errors import OutOfSharedMemory

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

__all__ = ["Job", "Offer", "combined", "evaluated", "job_of", "offer_of", "opened", "reduce_slice"]

LEAST = 1 << 18  # bytes of an array from which its reduction is divided
_CHUNK = 1 << 16  # bytes that are combined at once, so that what lies between stays in a processor's cache
# For arrays of numbers these give the type of the operands.
_UFUNCS: dict[Callable[[Any, Any], Any], str] = {
    _constants.SUM: "add",
    _constants.PROD: "multiply",
    _constants.MAX: "maximum",
    _constants.MIN: "minimum",
    _constants.BAND: "bitwise_and",
    _constants.BOR: "bitwise_or",
    _constants.BXOR: "bitwise_xor",
}
_NUMBERS = "iufc"

Signature = tuple[str, str, tuple[int, ...]]  # the operation, the type and the shape of the arrays
Offer = tuple[Signature, list[Packet]]  # arrays of ranks that follow each other, in shared memory, not combined yet
Job = tuple[Signature, list[Packet], Packet]  # the arrays of all ranks, and the memory of the result


def offer_of(obj: object, op: Callable[[Any, Any], Any]) -> Offer | None:
    """An array, in shared memory. None if its reduction is not divided: for other objects and operations, and if shared
    memory has no room.
    """
    if not hasattr(obj, "__array__"):
        return None
    import numpy as np

    if type(obj) is not np.ndarray or obj.nbytes < LEAST or not obj.flags.c_contiguous:
        return None
    try:
        name = _UFUNCS.get(op)
    except TypeError:  # it cannot be hashed
        return None
    if name is None or obj.dtype.kind not in _NUMBERS or not obj.dtype.isnative:
        return None
    if name.startswith("bitwise") and obj.dtype.kind not in "iu":
        return None
    view: Any = obj
    packet = Packet(b"", [memoryview(view).cast("B")]).gather()
    return None if packet.memory is None else ((name, obj.dtype.str, obj.shape), [packet])


def job_of(offer: Offer) -> Job | None:
    """What all ranks do together; None if shared memory has no room for the result."""
    signature, packets = offer
    try:
        result = Packet(b"", [])
        result.memory = Memory.allocate(packets[0].sizes[0])
        result.sizes = [result.memory.nbytes]
    except OutOfSharedMemory as error:
        tell_of_no_room(error)
        return None
    return signature, packets, result


def _flat(packet: Packet, dtype: str, nbytes: int) -> Array:
    import numpy as np

    memory = packet.block if packet.memory is None else packet.memory.obj
    return np.frombuffer(memory, dtype, nbytes // np.dtype(dtype).itemsize)


def combined(values: list[Any], op: Callable[[Any, Any], Any]) -> Any:
    """Values in the order of ranks, combined in a binomial tree."""
    mask = 1
    while mask < len(values):
        for i in range(0, len(values) - mask, 2 * mask):
            values[i] = op(values[i], values[i + mask])
        mask <<= 1
    return values[0]


def evaluated(offer: Offer, op: Callable[[Any, Any], Any]) -> Any:
    """The reduction of the arrays of an offer, by this rank alone."""
    (_, dtype, shape), packets = offer
    value = combined([_flat(packet, dtype, packet.sizes[0]).reshape(shape) for packet in packets], op)
    return value.copy() if len(packets) == 1 else value


def reduce_slice(job: Job, rank: int, size: int) -> None:
    """Compute this rank's slice of the result."""
    import numpy as np

    (name, dtype, _), packets, result = job
    nbytes = packets[0].sizes[0]
    ufunc = getattr(np, name)
    into, *arrays = (_flat(packet, dtype, nbytes) for packet in (result, *packets))
    begin, end = len(into) * rank // size, len(into) * (rank + 1) // size
    step = max(1, _CHUNK // into.itemsize)
    beside = [np.empty(step, dtype) for _ in range(max(1, (size - 1) // 2))]
    for at in range(begin, end, step):
        to = min(at + step, end)
        _reduce_chunk([array[at:to] for array in arrays], into[at:to], beside, ufunc)


def _reduce_chunk(parts: Sequence[Any], into: Array, beside: Sequence[Array], ufunc: Any) -> None:
    values, mask = list(parts), 1
    while mask < len(values):
        for i in range(0, len(values) - mask, 2 * mask):
            if mask > 1:  # the first of the two is an intermediate value already, or one that has had no partner
                target = values[i]
            else:
                target = into if i == 0 else beside[i // 2 - 1][: len(into)]
            values[i] = ufunc(values[i], values[i + mask], out=target)
        mask <<= 1


def opened(job: Job, shared: bool) -> Array:
    """The result. `shared`: other ranks have it, too, so that this one gets a copy-on-write view."""
    import numpy as np

    (_, dtype, shape), _, result = job
    memory = result.block if result.memory is None else result.memory.obj
    if shared:
        memory = _blocks.private_view(memory)
    else:
        _blocks.mark_private(memory)
    count = int(np.prod(shape))
    return np.frombuffer(memory, dtype, count).reshape(shape)
