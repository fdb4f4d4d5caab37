"""PyTorch's tensors in shared memory: moved there by `share`, and crossing as their handle. Imported only when torch is.

A tensor over a shared array (`torch.from_numpy`, `torch.from_dlpack`, `torch.asarray`) crosses too. Any other goes as before: as
`torch.multiprocessing` has it where that was imported, else by value.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from copyless import _loaders, arrays, pickling

__all__ = ["is_tensor", "is_tensor_shared", "move"]

# What NumPy has no dtype for, by one of the same size that it has.
_AS = {torch.bfloat16: torch.int16}


def is_tensor(obj: Any) -> bool:
    """Whether an object is a plain dense tensor in this machine's memory."""
    return (
        type(obj) is torch.Tensor
        and obj.device.type == "cpu"
        and obj.layout is torch.strided
        and not obj.requires_grad
        and not obj.is_conj()
        and not obj.is_neg()
    )


def _as_array(tensor: Any) -> Any:
    """The array over a tensor's memory."""
    return (tensor.view(_AS[tensor.dtype]) if tensor.dtype in _AS else tensor).numpy()


def _tensor(array: Any, dtype: Any) -> Any:
    _register()
    made = torch.from_numpy(array.view(np.ndarray))
    return made if made.dtype is dtype else made.view(dtype)


def is_tensor_shared(tensor: Any) -> bool:
    return arrays.shared_memory_of(_as_array(tensor))


def move(tensor: Any) -> Any:
    """The same tensor over a copy of its elements in shared memory."""
    return _tensor(arrays.array(_as_array(tensor)), tensor.dtype)


def _reduce(tensor: Any) -> Any:
    if is_tensor(tensor) and tensor.numel() and is_tensor_shared(tensor):
        return _loaders.tensor, (_as_array(tensor), tensor.dtype)
    return _before(tensor) if _before is not None else tensor.__reduce_ex__(pickling.protocol())


_before: Any = None


def _register() -> None:
    """Teach multiprocessing's pickler; called wherever a shared tensor may be, since torch may have done so meanwhile."""
    global _before
    known = pickling.reduction_of(torch.Tensor)
    if known is not _reduce:
        _before = known
        pickling.register(torch.Tensor, _reduce)


_register()
