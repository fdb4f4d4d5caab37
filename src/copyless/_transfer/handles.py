"""Handles: the location of an object in shared memory, as bytes.

A handle is the address of a block for the native floor (host, boot, registry, segment, block, generation, offset; 84
bytes and padding) and a description of its content. The description of an array has its flags, dtype, shape and
strides; that of a file has its path and identity.
"""

from __future__ import annotations

import math
import os
import struct

from copyless._core import _handles
from copyless._storage.store import ensure_open, look
from copyless._typing import Any
from copyless.errors import ForeignHostError

__all__ = ["Handle", "decode_spec", "encode_spec", "resolve"]

_HEAD = _handles.SPEC_HEAD
WRITEABLE, SHARED_ARRAY = 1, 2  # load_array of the binding uses the same values
MAX_NDIM = 64
_KINDS = {
    _handles.KIND_ARRAY: "array", _handles.KIND_MEMORY: "memory", _handles.KIND_FILE: "file",
    _handles.KIND_OBJECT: "object"
}  # fmt: skip
_LARGEST = 2**63 - 1  # bytes from the beginning of an array to its end: the most that NumPy can count
# Everything that decoding random bytes can raise, from a number that is too large to a text that is nested too deeply.
_DAMAGED = (
    struct.error, ValueError, TypeError, SyntaxError, AttributeError, LookupError, ArithmeticError, MemoryError,
    RecursionError
)  # fmt: skip


class Handle(bytes):
    """The location of an object in shared memory, as bytes. `copyless.handle` makes it, and `copyless.attach` follows
    it.

    The bytes may be stored, or sent to any process of this host. A handle does not keep the object alive: once the last
    process that holds the memory has released it, `attach` raises `StaleHandleError`.

    Examples
    --------
    >>> import copyless
    >>> a = copyless.zeros(4)
    >>> type(copyless.handle(a)).__name__, len(copyless.attach(copyless.handle(a)))
    ('Handle', 4)
    """

    __module__ = "copyless"  # its public module, which pickles name

    def __repr__(self) -> str:
        if len(self) < _handles.WIRE_SIZE:
            return f"<Handle of nothing: {len(self)} bytes>"
        kind, _, nbytes, number, generation = _handles.wire_fields(bytes(self))
        what = _KINDS.get(kind, "nothing")
        if kind == _handles.KIND_ARRAY:
            try:
                dtype, shape, *_ = decode_spec(bytes(self[_handles.WIRE_SIZE :]))
                what = f"array {shape} {dtype}"
            except ValueError:
                what = "array with a damaged description"
        where = "" if kind == _handles.KIND_FILE else f", block {number}, generation {generation}"
        return f"<Handle of {what}: {nbytes:,} bytes{where}>"

    def __str__(self) -> str:
        return self.hex()


def resolve(handle: bytes) -> tuple[int, Any, int, int]:
    """(kind, block, offset in it, bytes) of a handle. A hold of the message becomes a hold of this process.

    The block is None for the handle of a file.

    Raises
    ------
    ValueError
        If the bytes are not a handle.
    ForeignHostError
        If it was made on another host, before this host was last booted, or in another storage directory.
    StaleHandleError
        If its object no longer exists.
    """
    found = _handles.resolve(handle)
    if type(found) is tuple:
        return found
    if found == "closed":
        ensure_open()
        return resolve(handle)
    if found == "form":
        raise ValueError(f"not a handle of this version of copyless: {handle[:16]!r}... ({len(handle)} bytes)")
    if found == "host":
        raise ForeignHostError("the handle was made on another host: send the object itself, by value")
    if found == "boot":
        raise ForeignHostError(
            "the handle was made on another host, or before this one was last booted: send the object itself, by value"
        )
    if look():  # the sender may have noticed earlier than this process that the directory was removed
        return resolve(handle)
    raise ForeignHostError(
        "the handle belongs to another storage directory: give both processes the same COPYLESS_DIR and "
        "COPYLESS_SPACE, or send the object by value. (A new directory also replaces one that its last "
        "process has left, or that systemd or a cleaner removed while it was in use. Only the older "
        "processes and their forked children see what lies in the removed one)"
    )


# ---- array descriptions


def encode_spec(array: Any, start: int, flags: int) -> bytes:
    """The description of an array (dtype, shape, strides) whose first element lies `start` bytes into the range."""
    return describe(array.dtype, array.shape, array.strides, start, flags)


def describe(dtype: object, shape: tuple[int, ...], strides: tuple[int, ...], start: int, flags: int) -> bytes:
    """As `encode_spec`, for an array that need not exist."""
    from copyless._transfer.dtypes import remembered_dtype

    text, ndim = remembered_dtype(dtype), len(shape)
    return _HEAD.pack(flags, ndim, len(text), start) + text + struct.pack(f"<{2 * ndim}q", *shape, *strides)


# The last part: for a dtype with fields, whose names can be changed, a private copy; else None. The binding uses
# the same tuple.
Spec = tuple[Any, tuple[int, ...], tuple[int, ...], int, int, int, Any]
specs: dict[bytes, Spec] = {}


def decode_spec(spec: bytes) -> Spec:
    """The checked (dtype, shape, strides, start, flags, end, dtype as described). Remembered, since messages repeat.

    The array reaches from the beginning of the handle's range, or from a later byte, to byte `end` of it.
    """
    known = specs.get(spec)
    if known is not None and (known[6] is None or known[6] == known[0]):
        return known
    from copyless._transfer.dtypes import dtype_from_bytes

    try:
        flags, ndim, length, start = _HEAD.unpack_from(spec)
        numbers = struct.unpack_from(f"<{2 * ndim}q", spec, _HEAD.size + length)
        text = spec[_HEAD.size : _HEAD.size + length]
        dtype = dtype_from_bytes(text)
        was = None if dtype.names is None else dtype_from_bytes(text)
        shape, strides = numbers[:ndim], numbers[ndim:]
        if ndim > MAX_NDIM or min(shape, default=0) < 0 or start < 0 or dtype.hasobject or dtype.subdtype is not None:
            raise ValueError
        before, after = extent(shape, strides, dtype.itemsize)
        # With strides of 0 or elements of 0 bytes, it may have more elements than NumPy can count.
        if start < before or start + after > _LARGEST or math.prod(shape) * max(dtype.itemsize, 1) > _LARGEST:
            raise ValueError
    except _DAMAGED:
        raise ValueError("the handle's description of the array is damaged") from None
    if len(specs) > 4096:
        specs.clear()
    specs[spec] = result = dtype, shape, strides, start, flags, start + after, was
    return result


def extent(shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int) -> tuple[int, int]:
    """Bytes before and after the first element's address that an array reaches: its range is [-before, after)."""
    before, after = 0, itemsize
    for n, stride in zip(shape, strides, strict=True):
        if n == 0:
            return 0, 0
        if stride < 0:
            before -= (n - 1) * stride
        else:
            after += (n - 1) * stride
    return before, after


# ---- files


def encode_file(path: str, device: int, inode: int, offset: int, nbytes: int) -> bytes:
    ensure_open()  # the handle names this host; a process that has only mapped files does not know it yet
    return (
        _handles.file_wire(offset, nbytes)
        + struct.pack("<QQH", device, inode, len(os.fsencode(path)))
        + os.fsencode(path)
    )


def decode_file(handle: bytes) -> tuple[str, int, int, bytes]:
    """(path, device, inode, description of the array)."""
    try:
        device, inode, length = struct.unpack_from("<QQH", handle, _handles.WIRE_SIZE)
    except struct.error:
        raise ValueError("the handle's description of the file is damaged") from None
    at = _handles.WIRE_SIZE + 18
    path = handle[at : at + length]
    if len(path) != length or not path.startswith(b"/") or b"\0" in path:
        raise ValueError("the handle's description of the file is damaged")
    return os.fsdecode(path), device, inode, handle[at + length :]
