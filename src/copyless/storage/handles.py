"""Handles: where an object lies in shared memory, as bytes.

A handle is the native floor's address (host, boot, registry, segment, block, generation, offset; 84 bytes and padding)
followed by what stands there: for an array its flags, dtype, shape and strides, for a file its path and identity.
"""

from __future__ import annotations

import math
import os
import struct
from typing import Any

from copyless._core import _handles
from copyless.errors import ForeignHostError
from copyless.storage.dtypes import dtype_from_bytes, remembered_dtype
from copyless.storage.store import look, need

__all__ = ["Handle", "decode_spec", "encode_spec", "resolve"]

_HEAD = _handles.SPEC_HEAD
WRITEABLE, SHARED_ARRAY = 1, 2  # the binding's load_array knows them too
MAX_NDIM = 64
_KINDS = {
    _handles.KIND_ARRAY: "array", _handles.KIND_MEMORY: "memory", _handles.KIND_FILE: "file", _handles.KIND_OBJECT: "object"
}  # fmt: skip
_LARGEST = 2**63 - 1  # bytes from the beginning of an array to its end: what NumPy counts
# What reading a description of random bytes may raise, from a number too large to a text nested too deeply.
_DAMAGED = (
    struct.error, ValueError, TypeError, SyntaxError, AttributeError, LookupError, ArithmeticError, MemoryError, RecursionError
)  # fmt: skip


class Handle(bytes):
    """Where an object lies in shared memory; follow it with `copyless.attach`.

    Plain bytes that may be stored or sent anywhere on this host. Keeps nothing alive by itself: when the last process
    that holds the memory lets it go, attaching raises `StaleHandleError`.
    """

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
    """(kind, block, offset in it, bytes) of a handle; its message's hold becomes this process's. No block for a file.

    Raises
    ------
    ValueError
        When it is no handle.
    ForeignHostError
        When it was made on another host, before this host's last boot, or in another storage directory.
    StaleHandleError
        When what it names is gone.
    """
    found = _handles.resolve(handle)
    if type(found) is tuple:
        return found
    if found == "closed":
        need()
        return resolve(handle)
    if found == "form":
        raise ValueError(f"no handle of this version of copyless: {handle[:16]!r}... ({len(handle)} bytes)")
    if found == "host":
        raise ForeignHostError("the handle was made on another host: send the object itself, by value")
    if found == "boot":
        raise ForeignHostError(
            "the handle was made on another host, or before this one was last booted: send the object itself, by value"
        )
    if look():  # the sender may have found out before us that the directory was removed
        return resolve(handle)
    raise ForeignHostError(
        "the handle belongs to another storage directory: give both processes the same COPYLESS_DIR and "
        "COPYLESS_SPACE, or send the "
        "object by value. (A directory is also made anew after its last process has left it, or after it was removed "
        "under its programs, by systemd at logout or by a cleaner: what older programs made then is seen by them and "
        "their forked children only)"
    )


# ---- array descriptions


def encode_spec(array: Any, start: int, flags: int) -> bytes:
    """dtype, shape, strides of an array whose first element lies `start` bytes into the handle's range."""
    return describe(array.dtype, array.shape, array.strides, start, flags)


def describe(dtype: Any, shape: tuple[int, ...], strides: tuple[int, ...], start: int, flags: int) -> bytes:
    """As `encode_spec`, of an array that need not exist."""
    text, ndim = remembered_dtype(dtype), len(shape)
    return _HEAD.pack(flags, ndim, len(text), start) + text + struct.pack(f"<{2 * ndim}q", *shape, *strides)


# The last part: of a dtype with fields, whose names can be set, another that nobody has; else None. The binding knows it too.
Spec = tuple[Any, tuple[int, ...], tuple[int, ...], int, int, int, Any]
specs: dict[bytes, Spec] = {}


def decode_spec(spec: bytes) -> Spec:
    """(dtype, shape, strides, start, flags, end, how the dtype was), checked; remembered, since messages repeat.

    The array reaches from the beginning of the handle's range, or later, to byte `end` of it.
    """
    known = specs.get(spec)
    if known is not None and (known[6] is None or known[6] == known[0]):
        return known
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
        # Of strides 0, or of elements of no bytes, it may have more elements than NumPy can count.
        if start < before or start + after > _LARGEST or math.prod(shape) * max(dtype.itemsize, 1) > _LARGEST:
            raise ValueError
    except _DAMAGED:
        raise ValueError("the handle's description of the array is damaged") from None
    if len(specs) > 4096:
        specs.clear()
    specs[spec] = result = dtype, shape, strides, start, flags, start + after, was
    return result


def extent(shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int) -> tuple[int, int]:
    """Bytes before and after the first element's address that an array reaches: it lies in [-before, after)."""
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
    need()  # the handle names this host, which a process that has only mapped files does not know yet
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
