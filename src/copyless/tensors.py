"""PyTorch's tensors: how they cross in our channels, and how `share` moves them. Imported only when torch is.

A tensor is a description over a *storage*, which several tensors may have. So what crosses is storages:

    in our shared memory         by their handle, whatever their size
    in torch's (share_memory_)   as torch.multiprocessing has it: the same memory, by a descriptor that the sender hands over
                                 once. Messages that may be delivered twice, or after the sender's end, refuse it
    private, of this machine     one copy, beside the pickle, of what the message's tensors cover of them
    on another device            as torch.multiprocessing has it

While a message is pickled, each tensor writes down which bytes of its storage it covers, and its pickle says only the number
of that note. At the end the notes of each storage become runs: bytes that some tensor covers, so that a row of a large matrix
costs a row, and two tensors that overlap still do so where they arrive. The pickle, the runs and where in them each
note lies then go as one message (`_loaders.with_storages`).

Everything else about a tensor (class, attributes, conjugation, quantisation, sparse parts) is left to its own pickling, which
names the storages in the end.

In multiprocessing's own pickler torch's reductions stay as torch made them, but for storages in our shared memory, which torch
would move out of it.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from copyless import _loaders, pickling
from copyless._core import _copying, _handles, _store
from copyless._core._memory import Memory
from copyless._core._pickles import loads
from copyless.errors import UnsendableError
from copyless.storage import files

__all__ = ["Partial", "is_torchs", "moving", "planning", "reductions", "share_reduction", "why_copied"]

_ALIGN = 64  # a run begins at a multiple of it, so that every element stays as aligned as it was
_SMALL = 4096  # bytes of a storage that goes whole, in the pickle itself


# ---- storages


def _bytes_of(storage: Any) -> Any:
    """The bytes of a storage as an array."""
    return torch.empty(0, dtype=torch.uint8, device="cpu").set_(storage).numpy()


def _is_ours(storage: Any) -> bool:
    """Whether it lies in shared memory of ours, or in a file that we mapped."""
    nbytes = storage.nbytes()
    if not nbytes:
        return False
    at = storage.data_ptr()
    return (_store.is_open() and _handles.find(at, nbytes) is not None) or (
        files.any_mapped() and files.mapped_at(at, nbytes) is not None
    )


def _is_torchs(storage: Any) -> bool:
    """Whether somebody put it into torch's shared memory, to have it there together with others.

    Not so in a worker of a DataLoader, which makes its batches there so that they travel; nor for a file that torch mapped.
    """
    if not storage.is_shared() or storage.filename is not None:
        return False
    data = sys.modules.get("torch.utils.data")
    return data is None or data.get_worker_info() is None


class Storages:
    """Which bytes of which storages the tensors of one message cover."""

    def __init__(self) -> None:
        self._notes: list[tuple[int, int, int]] = []  # (storage, first byte, byte after the last)
        self._kept: dict[int, Any] = {}

    def place(self, storage: Any, first: int, end: int) -> int:
        """The number by which the pickle names these bytes."""
        key = storage._cdata
        self._kept[key] = storage
        self._notes.append((key, first, end))
        return len(self._notes) - 1

    def _merged(self) -> Iterator[tuple[int, int, int, list[int]]]:
        """(storage, first byte, end, numbers of the notes) of each run: what overlaps is one."""
        notes = sorted((key, first // _ALIGN * _ALIGN, end, i) for i, (key, first, end) in enumerate(self._notes))
        at = 0
        while at < len(notes):
            key, begin, end, _ = notes[at]
            upto = at
            while upto < len(notes) and notes[upto][0] == key and notes[upto][1] < end:
                end = max(end, notes[upto][2])
                upto += 1
            yield key, begin, end, [i for *_, i in notes[at:upto]]
            at = upto

    def runs(self) -> tuple[list[Any], list[tuple[int, int]]]:
        """(runs of bytes, for each note which run it lies in and which byte of the storage that begins at)."""
        runs: list[Any] = []
        places: list[Any] = [None] * len(self._notes)
        whole = {key: memoryview(_bytes_of(storage)) for key, storage in self._kept.items()}
        for key, begin, end, notes in self._merged():
            for i in notes:
                places[i] = len(runs), begin
            runs.append(whole[key][begin:end])
        return runs, places

    def spans(self) -> dict[int, list[tuple[int, int]]]:
        """The runs of each storage."""
        spans: dict[int, list[tuple[int, int]]] = {}
        for key, begin, end, _ in self._merged():
            spans.setdefault(key, []).append((begin, end))
        return spans


class _Loading(threading.local):
    """Where the notes of the message lie that this thread loads now: (storage, which byte of the original it begins at)."""

    places: Any = ()


_loading = _Loading()


@contextlib.contextmanager
def loading(places: Any) -> Iterator[None]:
    outer = _loading.places
    _loading.places = places
    try:
        yield
    finally:
        _loading.places = outer


def _with_storages(data: Any, places: Any, runs: Any, buffers: Any) -> Any:
    storages = [_storage(run) for run in runs]
    with loading([(storages[run], begin) for run, begin in places]):
        return loads(data, buffers)


def _storage(buffer: Any) -> Any:
    view = memoryview(buffer).cast("B")
    if not view.nbytes:
        return torch.UntypedStorage(0, device="cpu")
    if view.readonly:  # which no tensor is
        view = memoryview(bytearray(view))
    made = torch.frombuffer(view, dtype=torch.uint8).untyped_storage()
    if _is_ours(made):
        _register()
    return made


def _storage_at(place: int) -> Any:
    return _loading.places[place][0]


def _typed_storage(storage: Any, kind: Any) -> Any:
    if isinstance(kind, torch.dtype):
        return torch.storage.TypedStorage(wrap_storage=storage, dtype=kind, _internal=True)
    return kind(wrap_storage=storage, _internal=True)


def _tensor_at(place: Any, dtype: Any, offset: int, size: Any, stride: Any, requires_grad: bool) -> Any:
    if place is None:
        made = torch.empty_strided(size, stride, dtype=dtype, device="cpu")
    else:
        if type(place) is int:
            place, begin = _loading.places[place]
            offset -= begin // dtype.itemsize
        made = torch.empty(0, dtype=dtype, device="cpu").set_(place, offset, size, stride)
    return made.requires_grad_() if requires_grad else made


def _tensor(array: Any, dtype: Any) -> Any:
    """For messages of earlier versions."""
    made = torch.from_numpy(array.view(np.ndarray))
    _register()
    return made if made.dtype is dtype else made.view(dtype)


# ---- how tensors cross in our channels


def _refuse_graph(tensor: Any) -> None:
    if tensor.requires_grad and not tensor.is_leaf:
        raise UnsendableError(
            "a tensor that requires gradients and is the result of a computation cannot leave its process, since its graph "
            "would stay behind: send tensor.detach()"
        )


_has_names = getattr(torch.Tensor, "has_names", None)  # of older versions


def _is_plain(tensor: Any) -> bool:
    """Whether dtype, size, stride and storage say all of a tensor."""
    return (
        type(tensor) is torch.Tensor
        and tensor.layout is torch.strided
        and tensor.is_cpu
        and not tensor.__dict__
        and not tensor.is_quantized
        and not tensor.is_conj()
        and not tensor.is_neg()
        and not tensor.is_nested
        and not tensor._backward_hooks
        and not (_has_names is not None and _has_names(tensor))
    )


def _extent(tensor: Any, storage: Any) -> tuple[int, int]:
    """(first byte, byte after the last) of the storage that a tensor with elements covers."""
    itemsize = tensor.dtype.itemsize
    first = tensor.storage_offset() * itemsize
    reach = sum([(n - 1) * step for n, step in zip(tensor.size(), tensor.stride(), strict=True)])
    end = first + (reach + 1) * itemsize
    if end > storage.nbytes():
        raise UnsendableError(
            f"a tensor of {tuple(tensor.size())} over a storage of {storage.nbytes()} bytes: its memory was given back "
            "(resize_), so there is nothing to send"
        )
    return first, end


def _plain_parts(tensor: Any, place: Any) -> Any:
    offset = 0 if place is None else tensor.storage_offset()
    return _loaders.tensor_at, (
        place, tensor.dtype, offset, tuple(tensor.size()), tensor.stride(), tensor.requires_grad
    )  # fmt: skip


def _sparse_parts(tensor: Any) -> Any:
    """A plain sparse tensor by its dense parts, else None. Torch's own pickling would keep what it makes for ever."""
    if type(tensor) is not torch.Tensor or tensor.__dict__ or not tensor.is_cpu or tensor.is_conj() or tensor.is_neg():
        return None
    layout = tensor.layout
    coalesced: bool | None = None
    if layout is torch.sparse_coo:
        indices: tuple[Any, ...] = (tensor._indices(),)
        coalesced = tensor.is_coalesced()
        values = tensor._values()
    elif layout in _BY_ROW:
        indices, values = (tensor.crow_indices(), tensor.col_indices()), tensor.values()
    elif layout in _BY_COLUMN:
        indices, values = (tensor.ccol_indices(), tensor.row_indices()), tensor.values()
    else:
        return None
    size, requires_grad = tuple(tensor.size()), tensor.requires_grad
    return _loaders.tensor_sparse, (layout, indices, values.detach(), size, coalesced, requires_grad)


_BY_ROW = (torch.sparse_csr, torch.sparse_bsr)
_BY_COLUMN = (torch.sparse_csc, torch.sparse_bsc)


def _sparse_tensor(
    layout: Any, indices: Any, values: Any, size: Any, coalesced: bool | None, requires_grad: bool
) -> Any:
    if coalesced is None:
        made = torch.sparse_compressed_tensor(*indices, values, size, layout=layout, check_invariants=False)
    else:
        made = torch.sparse_coo_tensor(*indices, values, size, is_coalesced=coalesced, check_invariants=False)
    return made.requires_grad_() if requires_grad else made


def _reduce_tensor(tensor: Any) -> Any:
    if not tensor.is_cpu and pickling.sends_handles():
        return _as_torch_has_it(tensor)
    if pickling.sends_handles():
        _refuse_graph(tensor)
    if not _is_plain(tensor):
        return _sparse_parts(tensor) or tensor.__reduce_ex__(pickling.protocol())
    if not tensor.numel():
        return _plain_parts(tensor, None)
    storage = tensor.untyped_storage()
    first, end = _extent(tensor, storage)
    if storage.nbytes() < _SMALL or (pickling.sends_handles() and (_is_ours(storage) or _is_torchs(storage))):
        return _plain_parts(tensor, storage)
    kept = pickling.storages(Storages)
    return _plain_parts(tensor, storage if kept is None else kept.place(storage, first, end))


def _as_torch_has_it(tensor: Any) -> Any:
    if pickling.is_lasting() and tensor.device.type != "meta":
        pickling.refuse(f"a tensor on the device {str(tensor.device)!r}", "Send tensor.cpu()")
    reduction = pickling.reduction_of(torch.Tensor)
    return tensor.__reduce_ex__(pickling.protocol()) if reduction is None else reduction(tensor)


def _reduce_subclass(tensor: Any) -> Any:
    """A parameter: its own pickling names the tensor that it stands for."""
    if not tensor.is_cpu and pickling.sends_handles():
        return _as_torch_has_it(tensor)
    if pickling.sends_handles():
        _refuse_graph(tensor)
    return tensor.__reduce_ex__(pickling.protocol())


def _reduce_storage(storage: Any) -> Any:
    if storage.device.type != "cpu":
        return _other(storage) if pickling.sends_handles() else storage.__reduce_ex__(pickling.protocol())
    if pickling.sends_handles():
        if _is_ours(storage):
            return _loaders.tensor_storage, (_bytes_of(storage),)
        if _is_torchs(storage):
            if pickling.is_lasting():
                pickling.refuse(
                    "a tensor in torch's shared memory (share_memory_())",
                    "Send copyless.share(tensor), which is shared too and has no such limits, or tensor.clone()",
                )
            return _other(storage)
    nbytes = storage.nbytes()
    kept = pickling.storages(Storages) if nbytes >= _SMALL else None
    if kept is None:
        return _loaders.tensor_storage, (bytearray(_bytes_of(storage)) if nbytes else b"",)
    return _loaders.tensor_storage_at, (kept.place(storage, 0, nbytes),)


def _reduce_typed_storage(storage: Any) -> Any:
    kind = type(storage)
    return _loaders.tensor_typed_storage, (
        storage._untyped_storage,
        storage.dtype if kind is torch.storage.TypedStorage else kind,
    )


def reductions() -> dict[type, Callable[[Any], Any]]:
    """What our channels do with the classes for which torch has taught multiprocessing's pickler."""
    made: dict[type, Callable[[Any], Any]] = {
        torch.Tensor: _reduce_tensor,
        torch.nn.Parameter: _reduce_subclass,
        torch.UntypedStorage: _reduce_storage,
        torch.storage.TypedStorage: _reduce_typed_storage,
    }
    for kind in torch._storage_classes:
        made.setdefault(kind, _reduce_typed_storage)
    return made


# ---- in multiprocessing's own pickler

_before: Any = None


def _other(storage: Any) -> Any:
    """How torch sends a storage that is not in our memory."""
    known = pickling.reduction_of(torch.UntypedStorage)
    if known is _reduce_shared_storage:
        known = _before
    return storage.__reduce_ex__(pickling.protocol()) if known is None else known(storage)


def _reduce_shared_storage(storage: Any) -> Any:
    if storage.device.type == "cpu" and _is_ours(storage):
        return _loaders.tensor_storage, (_bytes_of(storage),)
    return _other(storage)


def _register() -> None:
    """Teach multiprocessing's pickler of storages in our memory, which torch would move out of it.

    Called wherever such a storage comes to be, since torch may have taught it meanwhile.
    """
    global _before
    known = pickling.reduction_of(torch.UntypedStorage)
    if known is not _reduce_shared_storage:
        _before = known
        pickling.register(torch.UntypedStorage, _reduce_shared_storage)


# ---- what `share`, `is_shared` and `explain` ask


class Partial(Exception):
    """A tensor is a small part of its storage, and nobody has looked yet which other parts there are."""


class Moved:
    """What one `share` has moved: the storages, and where what each tensor covered lies now."""

    def __init__(self, plan: Storages | None) -> None:
        self.places: list[tuple[Any, int]] = []
        self._plan = None if plan is None else plan.spans()
        self._runs: dict[int, list[tuple[int, int, Any]]] = {}  # of a storage: (first byte, end, its copy)
        self._kept: list[Any] = []

    def keep(self, obj: Any) -> int:
        """Where an object lies that stays as it is."""
        self.places.append((obj, 0))
        return len(self.places) - 1

    def place(self, storage: Any, first: int, end: int) -> int:
        """Where these bytes of a storage lie now: they are moved, unless they have been."""
        first = first // _ALIGN * _ALIGN
        runs = self._runs.setdefault(storage._cdata, [])
        found = next((run for run in runs if run[0] <= first and end <= run[1]), None)
        if found is None:
            begin, upto = self._span(storage, first, end)
            memory = Memory.allocate(upto - begin)
            _copying.copy_parts(memory, [memoryview(_bytes_of(storage))[begin:upto]], 1)
            found = begin, upto, _storage(memory)
            runs.append(found)
            self._kept.append(storage)  # its address must not be another's meanwhile
        self.places.append((found[2], found[0]))
        return len(self.places) - 1

    def _span(self, storage: Any, first: int, end: int) -> tuple[int, int]:
        """What is moved, so that all tensors that overlap with this one still do."""
        nbytes = storage.nbytes()
        if 2 * (end - first) >= nbytes or nbytes < _SMALL:
            return 0, nbytes
        if self._plan is None:
            raise Partial
        spans = self._plan.get(storage._cdata, ())
        return next((span for span in spans if span[0] <= first and end <= span[1]), (first, end))


class _Moving(threading.local):
    moved: Moved | None = None
    plan: Storages | None = None


_moving = _Moving()


@contextlib.contextmanager
def moving(plan: Storages | None = None) -> Iterator[None]:
    """What is shared inside, at once or piece by piece, goes on sharing its storages."""
    _moving.moved = Moved(plan)
    try:
        with loading(_moving.moved.places):
            yield
    finally:
        _moving.moved = None


@contextlib.contextmanager
def planning() -> Iterator[Storages]:
    """What tensors inside cover is written down."""
    _moving.plan = Storages()
    try:
        yield _moving.plan
    finally:
        _moving.plan = None


def share_reduction(obj: Any, shared: list[bool]) -> Any:
    """How `share` takes tensors and storages apart; NotImplemented: as pickle does. `shared` is told of each storage.

    Outside of `moving` they are only looked at.
    """
    moved = _moving.moved
    if isinstance(obj, torch.Tensor):
        if moved is not None:
            _refuse_graph(obj)
        if not obj.is_cpu:
            return _share_elsewhere(obj, shared, moved)
        if not _is_plain(obj):
            return _sparse_parts(obj) or NotImplemented
        if not obj.numel():
            return _plain_parts(obj, None)
        storage = obj.untyped_storage()
        place = _share_place(storage, *_extent(obj, storage), shared, moved)
        return (dict, ()) if place is None else _plain_parts(obj, place)
    if isinstance(obj, torch.UntypedStorage):
        if obj.device.type != "cpu":
            return _share_elsewhere(obj, shared, moved)
        if not obj.nbytes():
            return _loaders.tensor_storage, (b"",)
        place = _share_place(obj, 0, obj.nbytes(), shared, moved)
        return (dict, ()) if place is None else (_loaders.tensor_storage_at, (place,))
    if isinstance(obj, torch.storage.TypedStorage):
        return _reduce_typed_storage(obj)
    return NotImplemented


def _share_place(storage: Any, first: int, end: int, shared: list[bool], moved: Moved | None) -> int | None:
    there = _is_ours(storage)
    shared.append(there)
    if moved is None:
        if _moving.plan is not None:
            _moving.plan.place(storage, first, end)
        return None
    return moved.keep(storage) if there else moved.place(storage, first, end)


def _share_elsewhere(obj: Any, shared: list[bool], moved: Moved | None) -> Any:
    """What lies on another device stays the very object that it is."""
    if moved is None:
        shared.append(False)
        return dict, ()
    return _loaders.tensor_storage_at, (moved.keep(obj),)


def is_torchs(tensor: Any) -> bool:
    """Whether a tensor lies in torch's shared memory, and stays there when it is sent."""
    return tensor.is_cpu and tensor.layout is torch.strided and _is_torchs(tensor.untyped_storage())


def why_copied(tensor: Any) -> str:
    """Why a tensor's elements are copied into each message, or cross in another way than ours."""
    if not tensor.is_cpu:
        return "lies on another device: crosses as torch.multiprocessing has it"
    if is_torchs(tensor):
        return "lies in torch's shared memory: crosses by torch's descriptor; copyless.share() moves it"
    return "lies in private memory: copyless.share() moves it"
