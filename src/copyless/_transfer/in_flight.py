"""The state of the pickle that is being made, and the reductions of multiprocessing's own pickler.

Only that pickler (and copyless's own) sends handles. The plain `pickle` module stores data, so that a file or another
host never receives a handle. A handle that is pickled for another process has its own hold: if the sender releases the
memory, it stays until the message is loaded, its process family has ended, or `COPYLESS_MESSAGE_TTL` is over.

Each thread may make a pickle inside a pickle; the functions here concern the innermost one.
"""

from __future__ import annotations

import functools
import pickle
import threading
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler

from copyless._core import _handles
from copyless._typing import Any, NoReturn
from copyless.errors import UnsendableError

__all__ = [
    "BESIDE", "Hold", "extra_reducers", "is_lasting", "making", "message_kind", "note", "noting", "or_as_pickle",
    "ours", "protocol", "reduction_of", "refuse", "refuse_descriptor", "register", "sends_handles", "storages",
    "Message", "fallbacks",
]  # fmt: skip

BESIDE = 4096  # bytes from which a buffer is sent beside its pickle


class Hold:
    """What keeps the memory of a handle alive. Plain numbers: an enumeration takes 0.1 ms to make."""

    NONE = 0  # nothing: the user of the handle keeps the object alive
    MESSAGE = 1  # a hold of the message, until it is loaded
    QUEUE = 2  # a hold of this process, which a queue takes over


class Message:
    """A pickle that is being made."""

    __slots__ = ("beside", "draft", "handles", "lasting", "storages")

    def __init__(
        self, handles: list[bytes] | None, draft: bool = False, beside: bool = False, lasting: bool = False
    ) -> None:
        self.handles = handles  # the handles in the pickle so far; None: everything is sent by value
        self.draft = draft  # for a queue of copyless, which will hold the memory of the handles
        self.beside = beside  # buffers may be sent beside the pickle
        self.lasting = lasting  # it may be loaded twice, or after this process has ended
        self.storages: Any = None  # storages of tensors, beside the pickle too: see `_libraries/torch.py`


class _Batch(threading.local):
    """The innermost pickle that this thread makes."""

    message: Message | None = None
    fallbacks: list[str] | None = None  # why reductions fell back, if a caller has asked for it


_batch = _Batch()
# Reductions for copyless's own channels, which take precedence over those of multiprocessing's pickler.
ours: dict[type, Callable[[Any], Any]] = {}


class making:
    """Make this message the pickle of the thread inside the block.

    If the block raises, the holds of the handles made for it are released.
    """

    __slots__ = ("_message", "_outer")

    def __init__(self, message: Message) -> None:
        self._message = message

    def __enter__(self) -> Message:
        self._outer = _batch.message
        _batch.message = self._message
        return self._message

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is not None:
                for handle in self._message.handles or ():
                    _handles.unsend(handle)
        finally:
            _batch.message = self._outer


def noting(dump: Callable[[Any, Any], object]) -> Callable[[Any, Any], Any]:
    """Replaces a pickler's `dump`: if it fails halfway, the holds of its messages are released."""

    @functools.wraps(dump)
    def noting_dump(self: Any, obj: object) -> Any:
        outer, made = _batch.message, []  # type: Message | None, list[bytes]
        _batch.message = Message(made)
        try:
            return dump(self, obj)
        except BaseException:
            for handle in made:
                _handles.unsend(handle)
            raise
        finally:
            _batch.message = outer

    return noting_dump


def is_lasting() -> bool:
    """Whether the present pickle may be loaded more than once, or after this process has ended."""
    return _batch.message is not None and _batch.message.lasting


def refuse(what: str, instead: str) -> NoReturn:
    raise UnsendableError(
        f"{what} can be received only once, and only while the process that sent it lives: a queue with "
        f"redeliver=True or a name, or a pool with retries, cannot carry it. {instead}"
    )


def refuse_descriptor(what: str) -> NoReturn:
    refuse(f"a {what}", "Send what the other side can open by itself, such as an address, or use a queue without these")


def protocol() -> int:
    """The pickle protocol for a value's own reduction: 5 if buffers may be sent beside the pickle."""
    message = _batch.message
    return 5 if message is not None and message.beside else 4


def message_kind() -> int:
    """The kind of hold for handles that are made now: one of `Hold`."""
    message = _batch.message
    return Hold.QUEUE if message is not None and message.draft else Hold.MESSAGE


def sends_handles() -> bool:
    """Whether the present pickle stays on this host, so that it may contain handles."""
    message = _batch.message
    return message is not None and message.handles is not None


def storages(kind: Callable[[], object]) -> Any:
    """The object that collects the storages of tensors in the present pickle, made at first use; None if nothing can be
    sent beside it.
    """
    message = _batch.message
    if message is None or not message.beside:
        return None
    if message.storages is None:
        message.storages = kind()
    return message.storages


def note(handle: bytes) -> bytes:
    """Remember a handle of the message, so that a failed `dump` can release its hold."""
    message = _batch.message
    if message is not None and message.handles is not None:
        message.handles.append(handle)
    return handle


def extra_reducers() -> dict[type, Callable[[Any], Any]]:
    """The reductions that are registered with multiprocessing's pickler."""
    registered: dict[type, Callable[[Any], Any]] = ForkingPickler._extra_reducers  # type: ignore[attr-defined]
    return registered


def register(kind: type, reduction: Any) -> None:
    """Register with multiprocessing's pickler how objects of exactly this type are reduced."""
    ForkingPickler.register(kind, reduction)


def or_as_pickle(reduction: Any) -> Any:
    """A reduction that falls back on the type's own pickling if it fails; `explain` reads the reason from `fallbacks`.

    For values whose sharing only saves a copy. Not for an array in shared memory: a copy that arrives instead would no
    longer be the same memory.
    """

    def reduce(obj: Any) -> Any:
        try:
            return reduction(obj)
        except Exception as error:
            if _batch.fallbacks is not None:
                _batch.fallbacks.append(f"{type(error).__name__}: {error}")
        return obj.__reduce_ex__(protocol())

    return reduce


class fallbacks:
    """Collects why reductions of this thread fell back on the type's own pickling inside the block."""

    def __enter__(self) -> list[str]:
        why: list[str] = []
        self._outer, _batch.fallbacks = _batch.fallbacks, why
        return why

    def __exit__(self, *_: object) -> None:
        _batch.fallbacks = self._outer


def reduction_of(kind: type) -> Any:
    """The reduction that is registered with multiprocessing's pickler for a type, or None."""
    return extra_reducers().get(kind)


ForkingPickler.dump = noting(pickle.Pickler.dump)  # type: ignore[method-assign]
