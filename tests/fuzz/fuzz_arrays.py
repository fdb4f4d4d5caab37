"""Handles and the descriptions of arrays in them (dtype, shape, strides, start), also of files.

Damage gives an error of the right family, or an array that lies wholly in the block that the handle names.
"""

import os
import warnings

import numpy as np

import copyless
from copyless._core import _handles
from copyless._transfer import handles

warnings.simplefilter("ignore")
ALLOWED = (ValueError, copyless.CopylessError, IsADirectoryError, PermissionError, FileNotFoundError)
_array = copyless.full(64, 7, dtype="u1")
_filled = copyless.full(64, 7, dtype="u1")
_good = bytes(copyless.handle(_array))
_wire = _good[: _handles.WIRE_SIZE]


def inside(array: np.ndarray) -> None:
    if array.size and type(array.base) is not None:
        first = array.__array_interface__["data"][0]
        before, after = handles.extent(array.shape, array.strides, array.dtype.itemsize)
        assert _handles.find(first - before, before + after) is not None, (array.shape, array.strides, array.dtype)
        if max(array.nbytes, array.size) < 1 << 16:
            array.copy()


def attach(handle: bytes) -> None:
    try:
        found = copyless.attach(handle)
    except ALLOWED:
        return
    if isinstance(found, np.ndarray):
        inside(found)


def test_one_input(data: bytes) -> None:
    if not data:
        return
    how, data = data[0] % 6, data[1:]
    if how == 0:
        try:
            dtype, shape, strides, start, _, end = handles.decode_spec(data)
        except ValueError:
            return
        before, after = handles.extent(shape, strides, dtype.itemsize)
        assert before <= start
        assert start + after == end
        assert not dtype.hasobject
        assert handles.decode_spec(data)[1] == shape  # cached
    elif how == 1:
        attach(_wire + data)
    elif how == 2:  # a few bytes of a good one are changed
        made = bytearray(_good)
        for at, value in zip(data[::2], data[1::2], strict=False):
            made[at % len(made)] = value
        attach(bytes(made))
    elif how == 3:  # cut, or longer
        attach(_good[: data[0]] + data[1:] if data else b"")
    elif how == 4:  # of a file
        try:
            handle = handles.encode_file(
                "/dev/zero" if data[:1] == b"z" else __file__, 1, os.stat(__file__).st_ino, 0, 64
            )
        except ALLOWED:
            return
        attach(handle[: -len(data)] + data if data else handle)
        repr(handles.Handle(handle[: _handles.WIRE_SIZE] + data))
    else:
        repr(handles.Handle(_wire + data))
        str(handles.Handle(data))
        repr(handles.Handle(data))
    assert set(_filled.tolist()) == {7}


FILES = ["copyless/_transfer/handles.py"]
