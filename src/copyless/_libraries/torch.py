"""PyTorch's tensors: how they are sent in copyless's channels, and how `share` moves them. Imported only after torch.

A tensor is a description of a *storage*, which several tensors may use. Therefore storages are sent:

    in copyless's memory         as their handle, whatever their size
    in torch's (share_memory_)   as torch.multiprocessing does: the same memory, by a descriptor that the sender hands
                                 over once. Messages that may be delivered twice, or after the sender's end, refuse it
    private, in main memory      one copy, beside the pickle, of the bytes that the message's tensors cover
    on another device            as torch.multiprocessing does

While a message is pickled, each tensor records which bytes of its storage it covers, and its pickle has only the number
of that record. At the end the records of each storage are merged into runs: bytes that some tensor covers. So a row of
a large matrix costs one row, and tensors that overlap still overlap where they arrive. The pickle, the runs, and the
place of each record in them form one message (`_loaders.with_storages`).

Everything else about a tensor (class, attributes, conjugation, quantisation, sparse parts) is left to its own pickling,
which names the storages in the end.

In multiprocessing's own pickler, torch's reductions stay unchanged, except for storages in copyless's shared memory,
which torch would move out of it.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from copyless import _loaders
from copyless._core import _copying, _handles, _store
from copyless._core._pickles import loads
from copyless._libraries.library import Library, LookFirst, Parts, Reduction
from copyless._storage import user_files
from copyless._transfer import in_flight
from copyless._transfer._memory import Memory
from copyless.errors import UnsendableError

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = [
    "LIBRARY",
    "sparse_tensor",
    "storage_at",
    "storage_of",
    "tensor_at",
    "tensor_of_array",
    "typed_storage",
    "with_storages",
]

Place = tuple[object, int]  # (a storage, or an object of another device; byte of the original at which it begins)

_ALIGN = 64  # a run begins at a multiple of it, so that the alignment of every element is kept
_SMALL = 4096  # bytes of a storage up to which it is sent whole, inside the pickle


# ---- storages


def _bytes_of(storage: torch.UntypedStorage) -> NDArray[np.uint8]:
    """The bytes of a storage, as an array."""
    array: NDArray[np.uint8] = torch.empty(0, dtype=torch.uint8, device="cpu").set_(storage).numpy()
    return array


def _is_ours(storage: torch.UntypedStorage) -> bool:
    """Whether a storage is in copyless's shared memory, or in a file that copyless mapped."""
    nbytes = storage.nbytes()
    if not nbytes:
        return False
    at = storage.data_ptr()
    return (_store.is_open() and _handles.find(at, nbytes) is not None) or (
        user_files.any_mapped() and user_files.mapped_at(at, nbytes) is not None
    )


def _is_torchs(storage: torch.UntypedStorage) -> bool:
    """Whether the program put a storage into torch's shared memory, to share it with other processes.

    Not in a worker of a DataLoader, which makes its batches there only to send them; nor for a file that torch mapped.
    """
    if not storage.is_shared() or storage.filename is not None:
        return False
    data = sys.modules.get("torch.utils.data")
    return data is None or data.get_worker_info() is None


class Storages:
    """Which bytes of which storages the tensors of one message cover."""

    def __init__(self) -> None:
        self._notes: list[tuple[int, int, int]] = []  # (storage, first byte, byte after the last)
        self._kept: dict[int, torch.UntypedStorage] = {}

    def place(self, storage: torch.UntypedStorage, first: int, end: int) -> int:
        """The number under which the pickle names these bytes."""
        key = storage._cdata
        self._kept[key] = storage
        self._notes.append((key, first, end))
        return len(self._notes) - 1

    def _merged(self) -> Iterator[tuple[int, int, int, list[int]]]:
        """(storage, first byte, end, numbers of the records) of each run: overlapping ranges are merged."""
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

    def runs(self) -> tuple[list[memoryview], list[tuple[int, int]]]:
        """(runs of bytes; for each record its run, and the byte of the storage at which the run begins)."""
        runs: list[memoryview] = []
        places = [(0, 0)] * len(self._notes)
        whole = {key: _bytes_of(storage).data for key, storage in self._kept.items()}
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
    """The places of the records of the message that this thread loads: (storage, byte of the original at which it
    begins).
    """

    places: Sequence[Place] = ()


_loading = _Loading()


@contextlib.contextmanager
def loading(places: Sequence[Place]) -> Iterator[None]:
    outer = _loading.places
    _loading.places = places
    try:
        yield
    finally:
        _loading.places = outer


def with_storages(
    data: Buffer, places: Sequence[tuple[int, int]], runs: Sequence[Buffer], buffers: Sequence[Buffer]
) -> object:
    storages = [storage_of(run) for run in runs]
    with loading([(storages[run], begin) for run, begin in places]):
        return loads(data, buffers)


def storage_of(buffer: Buffer) -> torch.UntypedStorage:
    view = memoryview(buffer).cast("B")
    if not view.nbytes:
        return torch.UntypedStorage(0, device="cpu")
    if view.readonly:  # a tensor is never read-only
        view = memoryview(bytearray(view))
    made = torch.frombuffer(view, dtype=torch.uint8).untyped_storage()
    if _is_ours(made):
        LIBRARY.register()
    return made


def storage_at(place: int) -> object:
    return _loading.places[place][0]


def typed_storage(
    storage: torch.UntypedStorage, kind: torch.dtype | type[torch.storage.TypedStorage]
) -> torch.storage.TypedStorage:
    if isinstance(kind, torch.dtype):
        return torch.storage.TypedStorage(wrap_storage=storage, dtype=kind, _internal=True)
    return kind(wrap_storage=storage, _internal=True)


def tensor_at(
    place: object, dtype: torch.dtype, offset: int, size: tuple[int, ...], stride: tuple[int, ...], requires_grad: bool
) -> torch.Tensor:
    if place is None:
        made = torch.empty_strided(size, stride, dtype=dtype, device="cpu")
    else:
        if isinstance(place, int):
            place, begin = _loading.places[place]
            offset -= begin // dtype.itemsize
        made = torch.empty(0, dtype=dtype, device="cpu").set_(place, offset, size, stride)
    return made.requires_grad_() if requires_grad else made


def tensor_of_array(array: NDArray[np.generic], dtype: torch.dtype) -> torch.Tensor:
    """For messages of earlier versions."""
    made = torch.from_numpy(array.view(np.ndarray))
    LIBRARY.register()
    return made if made.dtype is dtype else made.view(dtype)


# ---- how tensors are sent in copyless's channels


def _refuse_graph(tensor: torch.Tensor) -> None:
    if tensor.requires_grad and not tensor.is_leaf:
        raise UnsendableError(
            "a tensor that requires gradients and is the result of a computation cannot be sent, because "
            "its autograd graph stays in its process: send tensor.detach()"
        )


_has_names = getattr(torch.Tensor, "has_names", None)  # only older versions have it


def _is_plain(tensor: torch.Tensor) -> bool:
    """Whether dtype, size, stride and storage describe the tensor completely."""
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


def _extent(tensor: torch.Tensor, storage: torch.UntypedStorage) -> tuple[int, int]:
    """(first byte, byte after the last) of the storage that a tensor with elements covers."""
    itemsize = tensor.dtype.itemsize
    first = tensor.storage_offset() * itemsize
    reach = sum([(n - 1) * step for n, step in zip(tensor.size(), tensor.stride(), strict=True)])
    end = first + (reach + 1) * itemsize
    if end > storage.nbytes():
        raise UnsendableError(
            f"a tensor of {tuple(tensor.size())} has a storage of only {storage.nbytes()} bytes, since "
            "resize_ freed its memory: there is no data to send"
        )
    return first, end


def _plain_parts(tensor: torch.Tensor, place: object) -> object:
    offset = 0 if place is None else tensor.storage_offset()
    return _loaders.tensor_at, (
        place, tensor.dtype, offset, tuple(tensor.size()), tensor.stride(), tensor.requires_grad
    )  # fmt: skip


def _sparse_parts(tensor: torch.Tensor) -> tuple[object, ...] | None:
    """The dense parts of a plain sparse tensor, else None. Torch's own pickling would keep what it makes for ever."""
    if type(tensor) is not torch.Tensor or tensor.__dict__ or not tensor.is_cpu or tensor.is_conj() or tensor.is_neg():
        return None
    layout = tensor.layout
    coalesced: bool | None = None
    if layout is torch.sparse_coo:
        indices: tuple[torch.Tensor, ...] = (tensor._indices(),)
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


def sparse_tensor(
    layout: torch.layout,
    indices: tuple[torch.Tensor, ...],
    values: torch.Tensor,
    size: tuple[int, ...],
    coalesced: bool | None,
    requires_grad: bool,
) -> torch.Tensor:
    if coalesced is None:
        made = torch.sparse_compressed_tensor(*indices, values, size, layout=layout, check_invariants=False)
    else:
        made = torch.sparse_coo_tensor(*indices, values, size, is_coalesced=coalesced, check_invariants=False)
    return made.requires_grad_() if requires_grad else made


def _reduce_tensor(tensor: torch.Tensor) -> object:
    if not tensor.is_cpu and in_flight.sends_handles():
        return _as_torch_has_it(tensor)
    if in_flight.sends_handles():
        _refuse_graph(tensor)
    if not _is_plain(tensor):
        return _sparse_parts(tensor) or tensor.__reduce_ex__(in_flight.protocol())
    if not tensor.numel():
        return _plain_parts(tensor, None)
    storage = tensor.untyped_storage()
    first, end = _extent(tensor, storage)
    if storage.nbytes() < _SMALL or (in_flight.sends_handles() and (_is_ours(storage) or _is_torchs(storage))):
        return _plain_parts(tensor, storage)
    kept = in_flight.storages(Storages)
    return _plain_parts(tensor, storage if kept is None else kept.place(storage, first, end))


def _as_torch_has_it(tensor: torch.Tensor) -> object:
    if in_flight.is_lasting() and tensor.device.type != "meta":
        in_flight.refuse(f"a tensor on the device {str(tensor.device)!r}", "Send tensor.cpu()")
    reduction = in_flight.reduction_of(torch.Tensor)
    return tensor.__reduce_ex__(in_flight.protocol()) if reduction is None else reduction(tensor)


def _reduce_subclass(tensor: torch.Tensor) -> object:
    """A parameter: its own pickling names the tensor that it wraps."""
    if not tensor.is_cpu and in_flight.sends_handles():
        return _as_torch_has_it(tensor)
    if in_flight.sends_handles():
        _refuse_graph(tensor)
    return tensor.__reduce_ex__(in_flight.protocol())


def _reduce_storage(storage: torch.UntypedStorage) -> object:
    if storage.device.type != "cpu":
        return _other(storage) if in_flight.sends_handles() else storage.__reduce_ex__(in_flight.protocol())
    if in_flight.sends_handles():
        if _is_ours(storage):
            return _loaders.tensor_storage, (_bytes_of(storage),)
        if _is_torchs(storage):
            if in_flight.is_lasting():
                in_flight.refuse(
                    "a tensor in torch's shared memory (share_memory_())",
                    "Send copyless.share(tensor), which is shared too and has no such limits, or tensor.clone()",
                )
            return _other(storage)
    nbytes = storage.nbytes()
    kept = in_flight.storages(Storages) if nbytes >= _SMALL else None
    if kept is None:
        return _loaders.tensor_storage, (bytearray(_bytes_of(storage)) if nbytes else b"",)
    return _loaders.tensor_storage_at, (kept.place(storage, 0, nbytes),)


def _reduce_typed_storage(storage: torch.storage.TypedStorage) -> object:
    kind = type(storage)
    return _loaders.tensor_typed_storage, (
        storage._untyped_storage,
        storage.dtype if kind is torch.storage.TypedStorage else kind,
    )


# ---- in multiprocessing's own pickler

_before: Callable[[torch.UntypedStorage], object] | None = None


def _other(storage: torch.UntypedStorage) -> object:
    """How torch sends a storage that is not in copyless's memory."""
    known = in_flight.reduction_of(torch.UntypedStorage)
    if known is _reduce_shared_storage:
        known = _before
    return storage.__reduce_ex__(in_flight.protocol()) if known is None else known(storage)


def _reduce_shared_storage(storage: torch.UntypedStorage) -> object:
    if storage.device.type == "cpu" and _is_ours(storage):
        return _loaders.tensor_storage, (_bytes_of(storage),)
    return _other(storage)


# ---- how `share` moves them


class Moved:
    """The storages that one `share` has moved, and where the bytes that each tensor covered are now."""

    def __init__(self, plan: Storages | None) -> None:
        self.places: list[Place] = []
        self._plan = None if plan is None else plan.spans()
        self._runs: dict[
            int, list[tuple[int, int, torch.UntypedStorage]]
        ] = {}  # for each storage: (first byte, end, its copy)
        self._kept: list[torch.UntypedStorage] = []

    def keep(self, obj: object) -> int:
        """The place of an object that is not moved."""
        self.places.append((obj, 0))
        return len(self.places) - 1

    def place(self, storage: torch.UntypedStorage, first: int, end: int) -> int:
        """The place of these bytes of a storage now. They are moved unless they were before."""
        first = first // _ALIGN * _ALIGN
        runs = self._runs.setdefault(storage._cdata, [])
        found = next((run for run in runs if run[0] <= first and end <= run[1]), None)
        if found is None:
            begin, upto = self._span(storage, first, end)
            memory = Memory.allocate(upto - begin)
            _copying.copy_parts(memory, [_bytes_of(storage).data[begin:upto]], 1)
            found = begin, upto, storage_of(memory)
            runs.append(found)
            self._kept.append(storage)  # its address must not be reused meanwhile
        self.places.append((found[2], found[0]))
        return len(self.places) - 1

    def _span(self, storage: torch.UntypedStorage, first: int, end: int) -> tuple[int, int]:
        """The bytes to move, so that all tensors that overlap with this one still do."""
        nbytes = storage.nbytes()
        if 2 * (end - first) >= nbytes or nbytes < _SMALL:
            return 0, nbytes
        if self._plan is None:
            raise LookFirst  # the tensor is a small part of its storage
        spans = self._plan.get(storage._cdata, ())
        return next((span for span in spans if span[0] <= first and end <= span[1]), (first, end))


class _Moving(threading.local):
    """What this thread's call of `share` has moved, or the plan that it makes."""

    moved: Moved | None = None
    plan: Storages | None = None


_moving = _Moving()


def _taken_apart(obj: object, moved: Moved | None) -> tuple[object, bool | None]:
    """How a tensor or storage is taken apart. Without `moved` it is only examined."""
    if isinstance(obj, torch.Tensor):
        if moved is not None:
            _refuse_graph(obj)
        if not obj.is_cpu:
            return _elsewhere(obj, moved)
        if not _is_plain(obj):
            return _sparse_parts(obj) or NotImplemented, None
        if not obj.numel():
            return _plain_parts(obj, None), None
        storage = obj.untyped_storage()
        place, there = _placed(storage, *_extent(obj, storage), moved)
        return (_NOTHING if place is None else _plain_parts(obj, place)), there
    if isinstance(obj, torch.UntypedStorage):
        if obj.device.type != "cpu":
            return _elsewhere(obj, moved)
        if not obj.nbytes():
            return (_loaders.tensor_storage, (b"",)), None
        place, there = _placed(obj, 0, obj.nbytes(), moved)
        return (_NOTHING if place is None else (_loaders.tensor_storage_at, (place,))), there
    if isinstance(obj, torch.storage.TypedStorage):
        return _reduce_typed_storage(obj), None
    return NotImplemented, None


_NOTHING: object = (dict, ())  # the reduction of an object that is only examined


def _placed(storage: torch.UntypedStorage, first: int, end: int, moved: Moved | None) -> tuple[int | None, bool]:
    """(the place of these bytes of a storage now, whether they were in shared memory before)."""
    there = _is_ours(storage)
    if moved is not None:
        return (moved.keep(storage) if there else moved.place(storage, first, end)), there
    if _moving.plan is not None:
        _moving.plan.place(storage, first, end)
    return None, there


def _elsewhere(obj: object, moved: Moved | None) -> tuple[object, bool | None]:
    """An object on another device is not changed."""
    if moved is None:
        return _NOTHING, False
    return (_loaders.tensor_storage_at, (moved.keep(obj),)), None


# ---- the answers


class _Torch(Library):
    def owns(self, kind: type) -> bool:
        return issubclass(kind, (torch.Tensor, torch.UntypedStorage, torch.storage.TypedStorage, torch.nn.Module))

    @contextlib.contextmanager
    def moving(self, plan: Storages | None = None) -> Iterator[None]:
        """What is shared inside, at once or piece by piece, goes on sharing its storages."""
        outer = _moving.moved  # an object may call `share` while it is pickled
        _moving.moved = Moved(plan)
        try:
            with loading(_moving.moved.places):
                yield
        finally:
            _moving.moved = outer

    @contextlib.contextmanager
    def looking(self) -> Iterator[Storages]:
        """What tensors inside cover is written down."""
        outer = _moving.plan
        _moving.plan = plan = Storages()
        try:
            yield plan
        finally:
            _moving.plan = outer

    def apart(self, obj: object, moves: bool) -> tuple[object, bool | None]:
        if not moves:
            return _taken_apart(obj, None)
        # A call of `share` that began before torch was imported cannot contain a tensor.
        return (NotImplemented, None) if _moving.moved is None else _taken_apart(obj, _moving.moved)

    def register(self) -> None:
        """Teach multiprocessing's pickler of storages in our memory, which torch would move out of it.

        Called wherever such a storage comes to be, since torch may have taught it meanwhile.
        """
        global _before
        known = in_flight.reduction_of(torch.UntypedStorage)
        if known is not _reduce_shared_storage:
            _before = known
            in_flight.register(torch.UntypedStorage, _reduce_shared_storage)

    def reductions(self) -> dict[type, Reduction]:
        made: dict[type, Reduction] = {
            torch.Tensor: _reduce_tensor,
            torch.nn.Parameter: _reduce_subclass,
            torch.UntypedStorage: _reduce_storage,
            torch.storage.TypedStorage: _reduce_typed_storage,
        }
        for kind in torch._storage_classes:
            made.setdefault(kind, _reduce_typed_storage)
        return made

    def parts(self, obj: object) -> Parts | None:
        if isinstance(obj, torch.Tensor):
            return type(obj).__name__, [("tensor", obj)]
        if isinstance(obj, torch.nn.Module):
            return type(obj).__name__, [*obj.named_parameters(), *obj.named_buffers()]
        return None

    def describe(self, part: object) -> str | None:
        return f"{part.dtype} {tuple(part.shape)}" if isinstance(part, torch.Tensor) else None

    def why_copied(self, part: object) -> str:
        if not isinstance(part, torch.Tensor):
            return ""
        if not part.is_cpu:
            return "is on another device: torch.multiprocessing sends it"
        return self.why_not_packed(part) or "is in private memory: copyless.share() moves it"

    def why_not_packed(self, part: object) -> str:
        if (
            isinstance(part, torch.Tensor)
            and part.is_cpu
            and part.layout is torch.strided
            and _is_torchs(part.untyped_storage())
        ):  # packing it would create a descriptor
            return "is in torch's shared memory and is sent by torch's descriptor; copyless.share() moves it"
        return ""


LIBRARY = _Torch()
