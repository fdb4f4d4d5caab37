"""What stands at the beginning of a message of MPI from which unpickling alone makes no object, since buffers follow.

A head is a pickle that calls a function of `copyless._loaders` with its payload. A receive that knows nothing of heads
calls that function; ours read the payload.
"""

from __future__ import annotations

import pickle
from struct import Struct
from typing import TYPE_CHECKING, Any

from copyless._core._pickles import loads
from copyless.comm._packets import cut

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["IN_PARTS", "WHOLE", "decode"]

_LENGTH = Struct("<I")


class Head:
    """Head(loader)

    The heads that call this function of `copyless._loaders`.
    """

    def __init__(self, loader: str) -> None:
        name = loader.encode()
        self._begin = b"\x80\x05\x8c\x11copyless._loaders\x8c" + bytes([len(name)]) + name + b"\x93B"

    def pack(self, payload: object) -> bytes:
        data = pickle.dumps(payload, 5)
        return b"".join((self._begin, _LENGTH.pack(len(data)), data, b"\x85R."))

    def begins(self, message: Buffer) -> bool:
        """Whether a message begins with such a head."""
        return memoryview(message)[: len(self._begin)] == self._begin

    def payload(self, message: Buffer) -> Any:
        begin = len(self._begin) + _LENGTH.size
        (nbytes,) = _LENGTH.unpack_from(message, len(self._begin))
        return loads(memoryview(message)[begin : begin + nbytes])


IN_PARTS = Head("mpi_parts")  # (the first tag, the sender, a pickle, its buffers or their sizes): see `_parts`
WHOLE = Head("mpi_detached")  # (where a pickle and its buffers begin in the same message, their sizes)


def decode(message: Buffer) -> Any:
    """The object of a message that came as one: of a pickle, or of a pickle followed by buffers."""
    view = memoryview(message)
    if not WHOLE.begins(view):
        return loads(view)
    begin, sizes = WHOLE.payload(view)
    data, *buffers = cut(view[begin:], sizes)
    return loads(data, buffers=buffers)
