"""Making the handle of an array: the place of its elements, and their description.

Works on any `ndarray`. The flags of the handle say as which type it arrives.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from copyless._core import _handles
from copyless._storage import user_files
from copyless._transfer import _array_type, handles
from copyless._transfer.dtypes import remembered_dtype

__all__ = ["encode", "raw"]


def encode(array: Any, hold: int) -> bytes | None:
    """The handle of an array that lies completely in shared memory, or None."""
    dtype = array.dtype
    if dtype.hasobject:
        return None
    flags = handles.WRITEABLE * array.flags.writeable | handles.SHARED_ARRAY * _array_type.is_shared_array(array)
    made = _handles.array_handle(array, remembered_dtype(dtype), flags, hold)
    if made is not None or not user_files.any_mapped() or array.size == 0:
        return made
    begin, nbytes = _handles.extent_of(array)
    mapped = user_files.mapped_at(begin, nbytes)
    if mapped is None:
        return None
    file, at = mapped
    spec = handles.encode_spec(array, array.__array_interface__["data"][0] - begin, flags)
    return handles.encode_file(file.path, file.device, file.inode, file.offset + at, nbytes) + spec


def raw(array: Any) -> object:
    """The elements of an array as plain bytes."""
    return np.ndarray.view(array, f"V{array.dtype.itemsize}")
