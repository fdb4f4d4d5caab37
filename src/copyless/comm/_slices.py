"""Reductions of large arrays among the ranks of one node: each rank computes one slice of the result.

All arrays lie in shared memory. Rank r reads its slice of each, combines them, and writes the slice into the block of
the result. The order of the operations is that of other reductions: a binomial tree by rank, ((0 1) (2 3)) ((4 5) ...).
So each element is computed once, by one rank, and its bits are those that a reduction of the whole arrays would give.

Ranks name their arrays by handles without a hold. The rank that made a block keeps it until all have read it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from copyless._core import _blocks
from copyless._transfer import handles, in_flight, reductions
from copyless._transfer._memory import Memory
from copyless.comm import _constants
from copyless.comm._packets import copy_of, in_memory, tell_of_no_room
from copyless.errors import OutOfSharedMemory

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from typing_extensions import Buffer

    Array = NDArray[np.generic]

__all__ = ["Division", "Job", "Offer", "Signature", "combined", "divides", "evaluated", "job_of", "offer_of"]

LEAST = 1 << 18  # bytes of an array from which its reduction is divided
_CHUNK = 1 << 16  # bytes that are combined at once, so that what lies between stays in a processor's cache
# For arrays of numbers these give the type of the operands.
_UFUNCS: dict[Callable[..., object], str] = {
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
Offer = tuple[Signature, list[bytes]]  # arrays of ranks that follow each other, in shared memory, not combined yet
Job = tuple[Signature, list[bytes], bytes]  # the arrays of all ranks, and the memory of the result


def divides(obj: object, op: Callable[..., object]) -> bool:
    """Whether the reduction of such an object may be divided. It is not for other objects and operations."""
    if not hasattr(obj, "__array__"):
        return False
    import numpy as np

    if type(obj) is not np.ndarray or obj.nbytes < LEAST or not obj.flags.c_contiguous:
        return False
    try:
        name = _UFUNCS.get(op)
    except TypeError:  # it cannot be hashed
        return False
    if name is None or obj.dtype.kind not in _NUMBERS or not obj.dtype.isnative:
        return False
    return not name.startswith("bitwise") or obj.dtype.kind in "iu"


def offer_of(obj: Array, op: Callable[..., object]) -> tuple[Offer, Memory] | None:
    """An array that `divides`, in shared memory, and what keeps it there. None if shared memory has no room."""
    try:
        memory = in_memory([obj.data.cast("B")])
    except OutOfSharedMemory as error:
        tell_of_no_room(error)
        return None
    return ((_UFUNCS[op], obj.dtype.str, obj.shape), [_handle(memory)]), memory


def job_of(offer: Offer, nbytes: int) -> tuple[Job, Memory] | None:
    """What all ranks do together, and the memory of the result; None if shared memory has no room for that."""
    signature, arrays = offer
    try:
        memory = Memory.allocate(nbytes)
    except OutOfSharedMemory as error:
        tell_of_no_room(error)
        return None
    return (signature, arrays, _handle(memory)), memory


def _handle(memory: Memory) -> bytes:
    handle = reductions.memory_handle(memory, in_flight.Hold.NONE)
    assert handle is not None
    return handle


def _block(handle: bytes) -> _blocks.Block:
    block: _blocks.Block = handles.resolve(handle)[1]
    return block


def _flat(block: Buffer, signature: Signature) -> Array:
    import numpy as np

    _, dtype, shape = signature
    return np.frombuffer(memoryview(block), dtype, math.prod(shape))


def combined(values: list[object], op: Callable[..., object]) -> object:
    """Values in the order of ranks, combined in a binomial tree."""
    mask = 1
    while mask < len(values):
        for i in range(0, len(values) - mask, 2 * mask):
            values[i] = op(values[i], values[i + mask])
        mask <<= 1
    return values[0]


def evaluated(offer: Offer, op: Callable[..., object]) -> object:
    """The reduction of the arrays of an offer, by this rank alone."""
    signature, arrays = offer
    each: list[object] = [_flat(_block(array), signature).reshape(signature[2]) for array in arrays]
    return combined(each, op) if len(each) > 1 else copy_of(each[0])


class Division:
    """Division(job, place, size)

    The part of one of several ranks in a reduction. `compute` writes its slice of the result; the rest is for when all
    have done so. `has_nan`: whether this rank found NaN where MPI does not say what becomes of it.
    """

    has_nan = False

    def __init__(self, job: Job, place: int, size: int) -> None:
        self._signature, arrays, result = job
        self._place, self._size = place, size
        self._block = _block(result)
        self._arrays = [_flat(_block(array), self._signature) for array in arrays]

    def compute(self) -> None:
        import numpy as np

        ufunc, into = getattr(np, self._signature[0]), self.array
        begin, end = (len(into) * place // self._size for place in (self._place, self._place + 1))
        step = max(1, _CHUNK // into.itemsize)
        beside = [np.empty(step, into.dtype) for _ in range(max(1, (self._size - 1) // 2))]
        looks = into.dtype.kind == "f" and self._signature[0] in ("maximum", "minimum")
        for at in range(begin, end, step):
            to = min(at + step, end)
            _reduce_chunk([array[at:to] for array in self._arrays], into[at:to], beside, ufunc)
            self.has_nan = self.has_nan or (looks and bool(np.isnan(into[at:to].max())))
        self._arrays = []

    @property
    def array(self) -> Array:
        """The memory of the result itself, flat."""
        return _flat(self._block, self._signature)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the result."""
        return self._signature[2]

    def result(self, shared: bool) -> Array:
        """The result. `shared`: other ranks have it, too, so that this one gets a copy-on-write view."""
        if not shared:
            _blocks.mark_private(self._block)
        block = _blocks.private_view(self._block) if shared else self._block
        return _flat(block, self._signature).reshape(self.shape)


def _reduce_chunk(parts: Sequence[Array], into: Array, beside: Sequence[Array], ufunc: np.ufunc) -> None:
    values, mask = list(parts), 1
    while mask < len(values):
        for i in range(0, len(values) - mask, 2 * mask):
            if mask > 1:  # the first of the two is an intermediate value already, or one that has had no partner
                target = values[i]
            else:
                target = into if i == 0 else beside[i // 2 - 1][: len(into)]
            values[i] = ufunc(values[i], values[i + mask], out=target)
        mask <<= 1
