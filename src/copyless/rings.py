"""Ring buffers of frames in shared memory, for cameras, sensors and simulations: several writers, many readers.

A frame is one array or a dict of arrays with fixed shapes. A writer fills a slot in place and publishes it as a frame;
readers use the frame in place, on loan. A frame on loan never changes: its slot is written again only when no reader
has it on loan. If a reader is killed, its loans are returned; a frame that a killed writer had not finished is never
seen.

A reader that is too slow misses the oldest frames and is told how many (``policy="drop"``), or makes the writers wait
(``policy="block"``, unless the ring forbids or limits it).

A frame costs a few microseconds of bookkeeping on each side, no copy if it is written in place, and one system call if
a reader sleeps.
"""

from __future__ import annotations

import ast
import math
import queue
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from os import getpid
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, NoReturn, SupportsIndex, overload

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from copyless import waiting
from copyless._core import _blocks, _ring, c_library
from copyless._objects import event_loops
from copyless._objects.base import Init, Shared, pickled_by
from copyless._objects.ring_values import assign
from copyless._one_process import check_process
from copyless._storage.store import new_object
from copyless._transfer.dtypes import dtype_from_bytes, dtype_to_bytes
from copyless._transfer.names import missing
from copyless._typing import Generic, TypeVar
from copyless.errors import ClosedError, CorruptSegmentError

__all__ = ["Frame", "RingBuffer", "Subscription"]

if TYPE_CHECKING:
    from typing import TypeAlias

    from typing_extensions import Self, Unpack

    from copyless._objects.base import RingOptions

    Sizes: TypeAlias = SupportsIndex | Sequence[SupportsIndex]
    Named: TypeAlias = dict[str, NDArray[Any]]

# What `Frame.copy` returns: an array, or a dict of arrays.
F = TypeVar("F", default=Any)
F_co = TypeVar("F_co", covariant=True, default=Any)
Scalar = TypeVar("Scalar", bound=np.generic)

_ALIGN = 64
_COPY = (
    "its slot is overwritten after the parent returns it. Take frames from the ring in the child, "
    "or copy the frame before the fork"
)
_WRITE = "the parent publishes it. Write another frame in the child"
_SUBSCRIBE = "its place among the readers belongs to the parent. Call subscribe() in the child"
_new = np.ndarray.__new__
Field = tuple["str | None", "tuple[int, ...]", Any, int]  # name (None: the only array), shape, dtype, offset


def _fields(spec: object) -> list[Field]:
    """The arrays of a frame, each aligned to 64 bytes."""
    if isinstance(spec, Mapping):
        if not spec:
            raise ValueError("a frame needs at least one array: give {'name': (shape, dtype)}")
        parts = list(spec.items())
    else:
        parts = [(None, spec)]
    fields: list[Field] = []
    offset = 0
    for name, part in parts:
        if name is not None and not isinstance(name, str):
            raise TypeError(f"the names of a frame's arrays must be str, not {name!r}")
        try:
            shape, dtype = part
            shape = (int(shape),) if isinstance(shape, (int, np.integer)) else tuple(int(n) for n in shape)
            kind = np.dtype(dtype)
        except (TypeError, ValueError) as error:
            raise ValueError(
                "an array of a frame must be given as (shape, dtype), such as ((480, 640, 3), 'u1'), not "
                f"{part!r}: {error}"
            ) from None
        if min(shape, default=0) < 0:
            raise ValueError(f"negative dimensions in the shape {shape}")
        if kind.hasobject:
            raise TypeError(
                f"dtype {kind} holds Python objects, whose addresses mean nothing in another process: choose a "
                "dtype without objects"
            )
        fields.append((name, shape, kind, offset))
        offset = -(-(offset + math.prod(shape) * kind.itemsize) // _ALIGN) * _ALIGN
    return fields


def _stride(fields: list[Field]) -> int:
    _, shape, dtype, offset = fields[-1]
    nbytes: int = offset + math.prod(shape) * dtype.itemsize
    return max(_ALIGN, -(-nbytes // _ALIGN) * _ALIGN)


def _encode(fields: list[Field]) -> bytes:
    return repr([(name, shape, dtype_to_bytes(dtype)) for name, shape, dtype, _ in fields]).encode()


def _decode(text: bytes) -> list[Field]:
    try:
        parts = [(name, (shape, dtype_from_bytes(dtype))) for name, shape, dtype in ast.literal_eval(text.decode())]
        return _fields(parts[0][1] if parts[0][0] is None else dict(parts))
    except (
        ValueError,
        SyntaxError,
        TypeError,
        LookupError,
        AttributeError,
        ArithmeticError,
        MemoryError,
        RecursionError,
    ):
        raise CorruptSegmentError("the description of a ring's frames is damaged") from None


class _Arrays(Generic[F_co]):
    """The arrays of one slot, by name. If the frame is one array, it can be indexed as that array."""

    _fields: list[Field]
    _memory: Any  # keeps the slot: every array is a view of it
    _pid: int  # the process that has the loan or the claim
    _arrays: dict[str | None, Any]
    _instead = _COPY

    def _check_process(self) -> None:
        if self._pid != getpid():
            check_process(self._pid, self, self._instead)

    def _array(self, name: str | None) -> Any:
        if self._pid != getpid():
            self._check_process()
        if self._memory is None:
            raise ClosedError("this frame was released: use it inside its with block, or keep frame.copy()")
        array = self._arrays.get(name)
        if array is None:
            for each, shape, dtype, offset in self._fields:
                if each == name:
                    array = self._arrays[name] = _new(np.ndarray, shape, dtype, self._memory, offset)
                    break
            else:
                names = ", ".join(repr(each[0]) for each in self._fields)
                raise KeyError(f"the frame has no array {name!r}: its arrays are {names}")
        return array

    @property
    def _single(self) -> bool:
        return self._fields[0][0] is None

    @property
    def array(self) -> F_co:
        """The array of a frame that is one array."""
        self._check_process()
        if not self._single:
            raise TypeError(f"this frame has several arrays: choose one by name, such as frame[{self.keys()[0]!r}]")
        array: F_co = self._array(None)
        return array

    @overload
    def __getitem__(self: _Arrays[Named], key: str) -> NDArray[Any]: ...
    @overload
    def __getitem__(self: _Arrays[NDArray[Any]], key: object) -> Any: ...
    def __getitem__(self, key: Any) -> Any:
        return self._array(None)[key] if self._single else self._array(key)

    def keys(self) -> list[str]:
        """The names of the arrays."""
        self._check_process()
        return [each[0] for each in self._fields if each[0] is not None]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._array(None)) if self._single else iter(self.keys())

    def __len__(self) -> int:
        self._check_process()
        return len(self._array(None)) if self._single else len(self._fields)

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> Any:
        array: Any = self.array
        if dtype is not None and np.dtype(dtype) != array.dtype:
            return array.astype(dtype)
        return array.copy() if copy else array

    def copy(self) -> F_co:
        """Copy the frame: a dict of ordinary arrays, or one array if the frame is one array. Copies every byte."""
        self._check_process()
        made: F_co
        if self._single:
            made = self._array(None).copy()
        else:
            whole: Any = {name: self._array(name).copy() for name in self.keys()}
            made = whole
        return made

    def _text(self) -> str:
        return ", ".join(
            f"{'' if name is None else name + ' '}{'x'.join(map(str, shape)) or 'scalar'} {dtype}"
            for name, shape, dtype, _ in self._fields
        )


class Frame(_Arrays[F_co], Generic[F_co]):
    """A published frame on loan. Its arrays are read-only and do not change as long as the frame or one of them is
    used.

    ``with ring.latest() as frame:`` returns the loan at the end of the block. If an array of the frame still exists
    then, the loan is returned when that array is deleted.

    Attributes
    ----------
    seq : int
        Sequence number, from 1, without gaps in the ring.
    timestamp : float
        When it was published, in seconds of `time.monotonic`.
    timestamp_ns : int
        The same in nanoseconds.
    missed : int
        Frames that this subscription missed immediately before this one.

    Examples
    --------
    >>> import copyless
    >>> ring = copyless.RingBuffer(((3,), "i4"))
    >>> ring.put([1, 2, 3])
    1
    >>> with ring.latest() as frame:
    ...     frame.seq, frame.copy()
    (1, array([1, 2, 3], dtype=int32))
    """

    seq: int
    timestamp_ns: int
    missed: int

    def __init__(self, fields: list[Field], lent: _ring.Lent) -> None:
        self._fields, self._pid = fields, getpid()
        self._memory, self.seq, self.timestamp_ns, self.missed = lent
        self._arrays = {}

    @property
    def timestamp(self) -> float:
        self._check_process()
        return self.timestamp_ns / 1e9

    def release(self) -> None:
        """Return the loan. Arrays that were taken from the frame keep it until they are deleted."""
        self._arrays = {}
        self._memory = None

    def __enter__(self) -> Self:
        self._check_process()
        return self

    def __exit__(self, *exc: object) -> None:
        self.release()

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a frame is valid only in the process that received it: send frame.copy(), or one of its arrays (by value)"
        )

    def __repr__(self) -> str:
        state = ", given back" if self._memory is None else ""
        return f"<Frame {self.seq}: {self._text()}{state}>"


class Frames(list["Frame[F_co]"], Generic[F_co]):
    """Several frames on loan, oldest first. As a context manager it returns all loans at the end of the block."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        for frame in self:
            frame.release()


class _Draft(_Arrays[F_co], Generic[F_co]):
    """A frame that is being written; see `RingBuffer.write`."""

    seq: int | None = None
    timestamp_ns: int | None = None
    _instead = _WRITE

    def __init__(self, fields: list[Field], claim: _ring.Claim) -> None:
        self._fields, self._pid = fields, getpid()
        self._claim = claim
        self._memory = claim.memory()
        self._arrays = {}

    @overload
    def __setitem__(self: _Draft[Named], key: str, value: ArrayLike) -> None: ...
    @overload
    def __setitem__(self: _Draft[NDArray[Any]], key: object, value: ArrayLike) -> None: ...
    def __setitem__(self, key: Any, value: object) -> None:
        if self._single:
            self._array(None)[key] = value
        else:
            assign(self._array(key), value)

    def _fill(self, value: object) -> None:
        """Copy an array, or a dict of arrays, into the frame. Raises an error unless it fits exactly."""
        if self._single:
            value = {None: value}
        elif not isinstance(value, Mapping) or set(value) != set(self.keys()):
            got = sorted(value) if isinstance(value, Mapping) else type(value).__name__
            raise ValueError(f"a frame of this ring must be a dict with the keys {', '.join(self.keys())}, not {got}")
        for name, each in value.items():
            target, source = self._array(name), np.asarray(each)
            if source.shape != target.shape:
                what = "the frame" if name is None else repr(name)
                raise ValueError(f"{what} has shape {source.shape}; the ring's frames have {target.shape}")
            assign(target, each if source.ndim == 0 or not isinstance(each, np.ndarray) else source)

    def _forget(self) -> None:
        self._arrays = {}
        self._memory = None

    def __repr__(self) -> str:
        return f"<frame being written: {self._text()}>" if self.seq is None else f"<frame {self.seq}, published>"


class _Write(Generic[F_co]):
    """The context manager ``with ring.write() as frame:`` or ``async with``."""

    def __init__(self, ring: RingBuffer[F_co], timeout: float | None) -> None:
        self._ring, self._timeout = ring, timeout

    def __enter__(self) -> _Draft[F_co]:
        self._draft = self._ring._draft(self._ring._claim(self._timeout))
        return self._draft

    async def __aenter__(self) -> _Draft[F_co]:
        self._draft = self._ring._draft(await self._ring._aclaim(self._timeout))
        return self._draft

    def __exit__(self, kind: object, *exc: object) -> None:
        draft = self._draft
        if kind is None:
            draft._check_process()
        draft._forget()
        claim = draft._claim
        if kind is not None:
            claim.discard()
        elif not claim.writable_elsewhere:
            draft.seq, draft.timestamp_ns = claim.publish()
        else:
            # A writable view outlives the block: it stays on that slot, and readers get a copy.
            other = self._ring._claim(self._timeout)
            if other is None:
                claim.discard()
                raise _full(self._ring, self._timeout)
            other.fill_from(claim)
            claim.discard()
            draft.seq, draft.timestamp_ns = other.publish()

    async def __aexit__(self, kind: object, *exc: object) -> None:
        self.__exit__(kind, *exc)


def _full(ring: RingBuffer[Any], timeout: float | None) -> queue.Full:
    return queue.Full(
        f"no slot of {ring!r} came free"
        + ("" if timeout is None else f" in {timeout:g} seconds")
        + ": readers have frames on loan, or block"
    )


class Subscription(Generic[F_co]):
    """The position of one reader in a ring; it gets each frame once and in order. `RingBuffer.subscribe` makes it.

    Iterate over it (``for frame in subscription:``, or ``async for``) until the ring is shut down, or take single
    frames with `get`. A frame stays on loan until it is released or deleted; ``with frame:`` in the body of the loop
    returns it earliest.

    Attributes
    ----------
    policy : str
        ``"drop"`` or ``"block"``. A reader that blocked the writers for longer than the ring's `block_timeout` becomes
        ``"drop"``.
    missed : int
        Frames that this subscription has missed so far.
    lag : int
        Frames published since the last one that it took.

    Examples
    --------
    >>> import copyless
    >>> ring = copyless.RingBuffer(((2,), "i4"))
    >>> subscription = ring.subscribe()
    >>> ring.put([1, 2]), ring.put([3, 4])
    (1, 2)
    >>> ring.shutdown()
    >>> [frame.copy().tolist() for frame in subscription]
    [[1, 2], [3, 4]]
    """

    def __init__(self, ring: RingBuffer[F_co], policy: Literal["drop", "block"], since: int | None) -> None:
        if policy not in ("drop", "block"):
            raise ValueError(f"policy must be 'drop' or 'block', not {policy!r}")
        if since is not None and since < 0:
            raise ValueError(f"since must be the sequence number of a frame, 0 or more, not {since}")
        if policy == "block" and not ring._flags & _ring.MAY_BLOCK:
            raise ValueError(
                "the creator of this ring does not allow readers that block (allow_block=False): use policy='drop'"
            )
        self._pid = getpid()
        self._seat = ring._subscribe(policy == "block", since)
        self._reader = self._seat.reader
        self._ring: RingBuffer[F_co] | None = ring

    def _check_process(self) -> None:
        if self._pid != getpid():
            check_process(self._pid, self, _SUBSCRIBE)

    def _open_head(self) -> RingBuffer[F_co]:
        self._check_process()
        if self._ring is None:
            raise ClosedError("this subscription is closed")
        return self._ring

    def _for_wait(self) -> waiting.Part:
        self._check_process()
        return waiting.READY if self._ring is None else waiting.Part(None, ((self._ring, self._reader),))

    @property
    def policy(self) -> Literal["drop", "block"]:
        return "block" if self._open_head()._reader(self._reader)[3] else "drop"

    @property
    def missed(self) -> int:
        return self._open_head()._reader(self._reader)[1]

    @property
    def lag(self) -> int:
        return self._open_head()._reader(self._reader)[2]

    def get(self, timeout: float | None = None) -> Frame[F_co]:
        """The next frame, on loan.

        Parameters
        ----------
        timeout : float or None
            Seconds to wait for it; None: without limit.

        Raises
        ------
        queue.Empty
            If there is no new frame within the time.
        ClosedError
            If the ring was shut down and has no more frames, or this subscription or the ring object is closed.
        """
        ring = self._open_head()
        lent = ring._next(self._reader, timeout)
        if lent is None:
            raise queue.Empty
        return Frame(ring._fields, lent)

    async def aget(self, timeout: float | None = None) -> Frame[F_co]:
        """`get` for an event loop: the loop runs on while there is no frame."""
        ring = self._open_head()
        key = (ring._key, "frames", self._reader)
        lent = await event_loops.until(key, lambda: ring._next(self._reader, 0), ring._watch_frames, timeout)
        if lent is None:
            raise queue.Empty
        return Frame(ring._fields, lent)

    def __iter__(self) -> Iterator[Frame[F_co]]:
        self._check_process()
        return self

    def __next__(self) -> Frame[F_co]:
        try:
            return self.get()
        except ClosedError:
            raise StopIteration from None

    async def __aiter__(self) -> AsyncIterator[Frame[F_co]]:
        while True:
            try:
                frame = await self.aget()
            except ClosedError:
                return
            yield frame

    def close(self) -> None:
        """End the subscription. Writers no longer wait for this reader."""
        self._ring = None
        self._seat.leave()

    def __enter__(self) -> Self:
        self._check_process()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_ring", None) is not None:
            self.close()

    def __repr__(self) -> str:
        if self._ring is None:
            return "<Subscription closed>"
        taken, dropped, lag, blocks, demoted = self._ring._reader(self._reader)
        policy = "block" if blocks else "drop, having blocked for too long" if demoted else "drop"
        return f"<Subscription {policy}: {taken} taken, {dropped} missed, {lag} behind>"


class ReaderStats(NamedTuple):
    """One subscription.

    Attributes
    ----------
    pid : int
        Its process.
    taken, missed : int
        Frames that it took and missed.
    lag : int
        Frames that it is behind.
    blocks : bool
        Whether writers wait for it.
    """

    pid: int
    taken: int
    missed: int
    lag: int
    blocks: bool


class RingStats(NamedTuple):
    """Counts of a ring, and its present state.

    Attributes
    ----------
    published : int
        Frames since the ring was made.
    rate : float
        Frames per second, over the frames in the ring.
    slots, held, writing, on_loan : int
        Slots in all, with a frame, being written, and with a frame on loan.
    waits : int
        How often a writer found no free slot and had to wait.
    readers : list of ReaderStats
        One for each subscription.
    """

    published: int
    rate: float
    slots: int
    held: int
    writing: int
    on_loan: int
    waits: int
    readers: list[ReaderStats]


@pickled_by("ring_buffer")
class RingBuffer(_ring._Ring, Shared, Generic[F_co]):
    """RingBuffer(spec, slots=8, *, name=None, persist=False, exist_ok=True, init=None, allow_block=True,
    block_timeout=None, members=256, ctx=None)

    A ring buffer of frames in shared memory. The memory (slots x bytes of a frame) is reserved when the ring is made.

    Parameters
    ----------
    spec
        What a frame is: ``(shape, dtype)`` for one array, or a dict of name to ``(shape, dtype)``. `RingBuffer.like`
        takes it from an example. None: open the existing ring `name`, whatever its frames are.
    slots
        How many frames it holds, 2 to 65,536. Each frame on loan occupies one slot; choose at least two more than the
        frames that are on loan at a time, so that writers find a free one.
    name
        Programs that give the same name share one ring; the first one makes it.
    persist
        Keep the named ring when no process uses it, until `copyless.unlink`. Without it, the ring is freed with its
        last user.
    exist_ok
        If false, FileExistsError is raised when the name is taken.
    init
        A function that is called with the new ring before other processes can find it, by the process that makes it.
    allow_block
        Whether readers may make writers wait (``policy="block"``).
    block_timeout
        The most seconds that a writer waits for a blocking reader, which then becomes one that drops; None: no limit.
    members
        How many processes may use the ring at a time, and how many subscriptions it may have: 1 to 4,096, rounded up to
        a multiple of 64. Each takes 36 bytes, and one bit of each slot.
    ctx
        Accepted for likeness with multiprocessing, and not used.

    Raises
    ------
    ValueError, TypeError
        For a number that is out of range, or an invalid `spec`.
    FileExistsError
        If the ring of that name has other frames, or the name is taken by an object of another kind.
    FileNotFoundError
        If `spec` is None and nothing has the name.
    OutOfSharedMemory
        If there is no room for all slots.
    LimitExceededError
        At the first use in a process, if `members` processes use the ring already.

    Notes
    -----
    If the name exists, the ring of that name is opened; its frames must be the same unless `spec` is None. The name of
    a ring that was shut down is free for a new one.

    Writing a frame, reading one and returning a loan never wait for another process, even if it was stopped or killed
    in the middle of an operation: with a timeout of 0 each returns at once. `Process`, pools, queues and pipes send a
    ring as a handle.

    Examples
    --------
    >>> import copyless, numpy as np
    >>> ring = copyless.RingBuffer({"rgb": ((4, 6, 3), "u1"), "t": ((), "f8")}, slots=4)
    >>> with ring.write() as frame:
    ...     frame["rgb"][...] = 7
    ...     frame["t"] = 0.5
    >>> with ring.latest() as frame:
    ...     frame.seq, int(frame["rgb"].sum()), float(frame["t"])
    (1, 504, 0.5)
    """

    _in_tasks = "ring_methods"

    _fields: list[Field]
    _remade = frozenset(("_fields",))

    @overload
    def __init__(
        self: RingBuffer[Named],
        spec: Mapping[str, tuple[Sizes, DTypeLike]],
        slots: int = 8,
        *,
        ctx: object = None,
        **options: Unpack[RingOptions],
    ) -> None: ...
    @overload
    def __init__(
        self: RingBuffer[NDArray[Scalar]],
        spec: tuple[Sizes, type[Scalar] | np.dtype[Scalar]],
        slots: int = 8,
        *,
        ctx: object = None,
        **options: Unpack[RingOptions],
    ) -> None: ...
    @overload
    def __init__(
        self: RingBuffer[NDArray[Any]],
        spec: tuple[Sizes, DTypeLike],
        slots: int = 8,
        *,
        ctx: object = None,
        **options: Unpack[RingOptions],
    ) -> None: ...
    @overload
    def __init__(
        self: RingBuffer[Any],
        spec: None = None,
        slots: int = 8,
        *,
        ctx: object = None,
        **options: Unpack[RingOptions],
    ) -> None: ...
    def __init__(
        self,
        spec: object = None,
        slots: int = 8,
        *,
        name: str | None = None,
        persist: bool = False,
        exist_ok: bool = True,
        init: Init | None = None,
        allow_block: bool = True,
        block_timeout: float | None = None,
        members: int = _ring.MEMBERS,
        ctx: object = None,
    ) -> None:
        if not 2 <= slots <= 65536:
            raise ValueError(f"slots must be 2 to 65,536, not {slots}")
        if not 1 <= members <= _ring.MEMBERS_MAX:
            raise ValueError(f"members must be 1 to {_ring.MEMBERS_MAX:,}, not {members}")
        if block_timeout is not None and not block_timeout > 0:
            raise ValueError(f"block_timeout must be a number of seconds above 0, not {block_timeout!r}")
        if spec is None and name is None:
            raise TypeError(
                "give spec=(shape, dtype) or spec={'name': (shape, dtype)}, or the name of a ring that exists"
            )
        fields = None if spec is None else _fields(spec)

        def make() -> _blocks.Block:
            if fields is None:
                raise missing(str(name), ", and no spec= was given to make one")
            text, stride = _encode(fields), _stride(fields)
            flags = _ring.MAY_BLOCK if allow_block else 0
            block = new_object(
                _ring.ring_bytes(slots, members, stride, len(text)),
                c_library.KIND_RING,
                slots,
                0,
                flags,
                _ring.ring_bytes(slots, members, 0, len(text)),
                _blocks.ALONE,  # its frames are user data, and its head is not
                spill=False,
            )
            _ring.begin(block, slots, members, stride, text, int((block_timeout or 0) * 1e9))
            return block

        new = self._obtain((name, persist, exist_ok, init), make, (c_library.KIND_RING,))
        if not new and fields is not None and _encode(fields) != _encode(self._fields):
            raise FileExistsError(
                17,
                f"the ring of that name has other frames: {self.spec}, not {spec}. Open it without a spec, or choose "
                f"another name",
                name,
            )

    def _stood(self) -> None:
        self._fields = _decode(self._spec)
        if _stride(self._fields) != self._stride:
            raise CorruptSegmentError("the description of a ring's frames does not fit its slots")

    @overload
    @classmethod
    def like(
        cls, example: Mapping[str, ArrayLike], slots: int = 8, **options: Unpack[RingOptions]
    ) -> RingBuffer[Named]: ...
    @overload
    @classmethod
    def like(
        cls, example: NDArray[Scalar], slots: int = 8, **options: Unpack[RingOptions]
    ) -> RingBuffer[NDArray[Scalar]]: ...
    @overload
    @classmethod
    def like(cls, example: ArrayLike, slots: int = 8, **options: Unpack[RingOptions]) -> RingBuffer[NDArray[Any]]: ...
    @classmethod
    def like(
        cls, example: ArrayLike | Mapping[str, ArrayLike], slots: int = 8, **options: Unpack[RingOptions]
    ) -> RingBuffer[Any]:
        """A ring for frames with the shape and dtype of this array, or of the arrays in this dict. Copies nothing.

        `options` are those of `RingBuffer`, which also says which errors it raises.

        Examples
        --------
        >>> import copyless, numpy as np
        >>> copyless.RingBuffer.like(np.zeros((2, 3), "f4"), slots=3)
        <RingBuffer 0 frames in 3 slots of 2x3 float32>
        """
        if isinstance(example, Mapping):
            arrays = {name: np.asarray(each) for name, each in example.items()}
            return cls({name: (each.shape, each.dtype) for name, each in arrays.items()}, slots, **options)
        array = np.asarray(example)
        return cls((array.shape, array.dtype), slots, **options)

    # ---- writing

    def _draft(self, claim: _ring.Claim | None) -> _Draft[F_co]:
        if claim is None:
            raise _full(self, None)
        return _Draft(self._fields, claim)

    def write(self, timeout: float | None = None) -> _Write[F_co]:
        """``with ring.write() as frame:`` (or ``async with``): fill a slot in place. The frame is published when the
        block ends.

        If the block raises, nothing is published. `frame` is a dict of writable arrays (``frame["rgb"][...] = image``);
        if the frame is one array, use it as that array (``frame[...] = image``). The slot still has the contents of an
        older frame until it is overwritten. If a writable view of the frame outlives the block, readers get a copy of
        the frame.

        Parameters
        ----------
        timeout : float or None
            Seconds to wait for a free slot; None: without limit.

        Raises
        ------
        queue.Full
            If no slot becomes free within the time.
        ClosedError
            If the ring was shut down, or this object is closed.

        Examples
        --------
        >>> import copyless
        >>> ring = copyless.RingBuffer(((2,), "f8"))
        >>> with ring.write() as frame:
        ...     frame[...] = 0.5
        >>> ring.stats().published
        1
        """
        return _Write(self, timeout)

    @overload
    def put(self: RingBuffer[Named], frame: Mapping[str, ArrayLike], timeout: float | None = None) -> int: ...
    @overload
    def put(self: RingBuffer[NDArray[Any]], frame: ArrayLike, timeout: float | None = None) -> int: ...
    def put(self, frame: object, timeout: float | None = None) -> int:
        """Copy an array, or a dict of arrays, into the ring. Returns the sequence number. One copy, without the GIL.

        Raises
        ------
        ValueError
            If names or shapes differ from those of the ring's frames.
        TypeError
            If a value would become one of another kind: a float in an array of integers, whatever its type (1.9,
            ``numpy.float32(2)``, ``Fraction(1, 2)``), a number in an array of bool or text, milliseconds in an array of
            seconds. Nothing is published.
        OverflowError
            If a value does not fit: 300 into ``u1``, 1e300 into ``f4``. Nothing is published.
        queue.Full, ClosedError
            As `write`.

        Examples
        --------
        >>> import copyless
        >>> ring = copyless.RingBuffer(((2,), "f8"))
        >>> ring.put([1, 2])
        1
        """
        claim = self._claim(timeout)
        if claim is None:
            raise _full(self, timeout)
        return self._put_into(claim, frame)

    @overload
    async def aput(self: RingBuffer[Named], frame: Mapping[str, ArrayLike], timeout: float | None = None) -> int: ...
    @overload
    async def aput(self: RingBuffer[NDArray[Any]], frame: ArrayLike, timeout: float | None = None) -> int: ...
    async def aput(self, frame: object, timeout: float | None = None) -> int:
        """`put` for an event loop: the loop runs on while there is no free slot."""
        claim = await self._aclaim(timeout)
        if claim is None:
            raise _full(self, timeout)
        return self._put_into(claim, frame)

    def _put_into(self, claim: _ring.Claim, frame: object) -> int:
        draft = _Draft(self._fields, claim)
        try:
            draft._fill(frame)
        except BaseException:
            draft._forget()
            claim.discard()
            raise
        draft._forget()
        return claim.publish()[0]

    async def _aclaim(self, timeout: float | None) -> _ring.Claim | None:
        claim: _ring.Claim | None = await event_loops.until(
            (self._key, "slots"), lambda: self._claim(0), self._watch_slots, timeout
        )
        return claim

    # ---- reading

    def latest(self, timeout: float | None = None, *, after: int = 0) -> Frame[F_co]:
        """The newest frame, on loan.

        Parameters
        ----------
        timeout : float or None
            Seconds to wait if there is no frame yet; None: without limit.
        after : int
            Wait for a frame with a sequence number above this one.

        Raises
        ------
        queue.Empty
            If there is no such frame within the time.
        ClosedError
            If the ring was shut down and has no such frame, or this object is closed.

        Examples
        --------
        >>> import copyless
        >>> ring = copyless.RingBuffer(((2,), "f8"))
        >>> ring.put([1, 2])
        1
        >>> with ring.latest(timeout=0) as frame:
        ...     float(frame[1])
        2.0
        """
        lent = self._latest(after, timeout)
        if lent is None:
            raise queue.Empty
        return Frame(self._fields, lent)

    async def alatest(self, timeout: float | None = None, *, after: int = 0) -> Frame[F_co]:
        """`latest` for an event loop: the loop runs on while there is no frame."""
        lent = await event_loops.until(
            (self._key, "latest"), lambda: self._latest(after, 0), self._watch_frames, timeout
        )
        if lent is None:
            raise queue.Empty
        return Frame(self._fields, lent)

    def last(self, k: int) -> Frames[F_co]:
        """The newest `k` frames, on loan, oldest first; fewer if there are fewer. ``with ring.last(5) as frames:``

        Raises
        ------
        ValueError
            If `k` is less than 1 or more than the number of slots.

        Examples
        --------
        >>> import copyless
        >>> ring = copyless.RingBuffer(((), "i4"), slots=4)
        >>> [ring.put(n) for n in range(3)]
        [1, 2, 3]
        >>> with ring.last(2) as frames:
        ...     [frame.seq for frame in frames]
        [2, 3]
        """
        if not 1 <= k <= self._number:
            raise ValueError(f"k must be 1 to {self._number}, the number of slots of this ring, not {k}")
        return Frames(Frame(self._fields, lent) for lent in self._last(k))

    def subscribe(self, policy: Literal["drop", "block"] = "drop", *, since: int | None = None) -> Subscription[F_co]:
        """Follow the frames: from now on, or from the one after sequence number `since`. Returns a `Subscription`.

        Parameters
        ----------
        policy
            ``"drop"``: writers never wait for this reader. If it is slow, it misses the oldest frames, and each frame
            says how many were missed before it. ``"block"``: writers wait rather than overwrite a frame that this
            reader has not taken, until it closes the subscription.
        since
            A sequence number; 0 begins with the oldest frame in the ring. Default: only new frames.

        Raises
        ------
        ValueError
            For ``"block"`` if the ring does not allow it, or an invalid argument.
        LimitExceededError
            If the ring has `members` subscriptions already.

        Examples
        --------
        >>> import copyless
        >>> ring = copyless.RingBuffer(((), "i4"))
        >>> ring.put(7)
        1
        >>> with ring.subscribe(since=0).get() as frame:
        ...     frame.seq, frame.missed
        (1, 0)
        """
        return Subscription(self, policy, since)

    # ---- ending, statistics

    def shutdown(self) -> None:
        """End the ring for all processes: writers get `ClosedError`, and readers get it after the last frame."""
        self._shut()

    def close(self) -> None:
        """Close the ring in this process. Frames on loan stay valid, and other processes go on. To end the ring for all
        processes, use `shutdown`.
        """
        self.closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def slots(self) -> int:
        """How many frames the ring holds."""
        return self._number

    @property
    def members(self) -> int:
        """How many processes may use the ring at a time, and how many subscriptions it may have."""
        return self._room

    @property
    def spec(self) -> Any:
        """What a frame is: ``(shape, dtype)``, or a dict of name to ``(shape, dtype)``."""
        if self._fields[0][0] is None:
            return self._fields[0][1], self._fields[0][2]
        return {name: (shape, dtype) for name, shape, dtype, _ in self._fields}

    @property
    def nbytes(self) -> int:
        """The bytes of shared memory that the ring takes."""
        return self._address[1]

    def stats(self) -> RingStats:
        """How many frames were published, and the state of each reader; see `RingStats`."""
        published, held, writing, loans, waits, oldest, newest, readers = self._statistics()
        rate = (held - 1) / ((newest - oldest) / 1e9) if held > 1 and newest > oldest else 0.0
        return RingStats(
            published, rate, self._number, held, writing, loans, waits, [ReaderStats(*each) for each in readers]
        )

    def _frame_text(self) -> str:
        return Frame(self._fields, (None, 0, 0, 0))._text()  # type: ignore[arg-type]

    def _state(self) -> str:
        ended = ", shut down" if self._ended else ""
        return f"{self._last_seq} frames in {self._number} slots of {self._frame_text()}{ended}"

    def _repr_html_(self) -> str:
        from copyless import _html

        return _html.tell(self, lambda: _html.of_ring(self))
