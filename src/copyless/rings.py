"""Ring buffers of frames in shared memory: cameras, sensors, simulations; several writers, many readers.

A frame is one array or a dict of arrays of fixed shapes. Writers fill a slot in place and publish it; readers look at it
where it lies, on loan. What is on loan never changes: a slot is written again only when nobody has it on loan. A killed
reader's loans come back, a killed writer's half-written frame is never seen.

A reader that is too slow misses the oldest frames and is told how many (``policy="drop"``), or makes the writers wait
(``policy="block"``, unless the ring forbids or limits it).

Cost of a frame, beside its pixels: some microseconds of bookkeeping on each side, no copy in or out when written in place,
and one system call when somebody sleeps.
"""

from __future__ import annotations

import ast
import math
import queue
from collections.abc import AsyncIterator, Iterator, Mapping
from os import getpid
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from copyless import _loaders, aio, waiting
from copyless._core import _blocks, _ring, c_library
from copyless._one_process import check_process
from copyless._ring_values import assign
from copyless.errors import ClosedError, CorruptSegmentError
from copyless.objects import Init, Shared, pickled_by
from copyless.storage.dtypes import dtype_from_bytes, dtype_to_bytes
from copyless.storage.names import missing

__all__ = ["Frame", "RingBuffer", "Subscription"]

_ALIGN = 64
_COPY = "its slot is written again when the parent gives it back. Take frames of the ring there, or copy before the fork"
_WRITE = "its parent publishes it. Write a frame of its own there"
_SUBSCRIBE = "its place among the readers is its parent's. Subscribe anew there"
_new = np.ndarray.__new__
Field = tuple["str | None", "tuple[int, ...]", Any, int]  # name (None: the one array), shape, dtype, offset


def _fields(spec: Any) -> list[Field]:
    """What a frame consists of, each array at a multiple of 64 bytes."""
    if isinstance(spec, Mapping):
        if not spec:
            raise ValueError("a frame has at least one array: give {'name': (shape, dtype)}")
        parts = list(spec.items())
    else:
        parts = [(None, spec)]
    fields: list[Field] = []
    offset = 0
    for name, part in parts:
        if name is not None and not isinstance(name, str):
            raise TypeError(f"the arrays of a frame are named by str, not {name!r}")
        try:
            shape, dtype = part
            shape = (int(shape),) if isinstance(shape, (int, np.integer)) else tuple(int(n) for n in shape)
            kind = np.dtype(dtype)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"an array of a frame is described by (shape, dtype), such as ((480, 640, 3), 'u1'), not {part!r}: {error}"
            ) from None
        if min(shape, default=0) < 0:
            raise ValueError(f"negative dimensions in the shape {shape}")
        if kind.hasobject:
            raise TypeError(f"dtype {kind} holds Python objects, which are addresses of one process")
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
    except (ValueError, SyntaxError, TypeError, LookupError, AttributeError, ArithmeticError, MemoryError, RecursionError):
        raise CorruptSegmentError("the description of a ring's frames is damaged") from None


class _Arrays:
    """The arrays of one slot, by name; of a ring with one array, itself indexable as that array."""

    _fields: list[Field]
    _memory: Any  # what keeps the slot: every array stands on it
    _pid: int  # whose loan or claim it is
    _arrays: dict[str | None, Any]
    _instead = _COPY

    def _check_process(self) -> None:
        if self._pid != getpid():
            check_process(self._pid, self, self._instead)

    def _array(self, name: str | None) -> Any:
        if self._pid != getpid():
            self._check_process()
        if self._memory is None:
            raise ClosedError("this frame was given back: use it inside its with block, or take frame.copy()")
        array = self._arrays.get(name)
        if array is None:
            for each, shape, dtype, offset in self._fields:
                if each == name:
                    array = self._arrays[name] = _new(np.ndarray, shape, dtype, self._memory, offset)
                    break
            else:
                names = ", ".join(repr(each[0]) for each in self._fields)
                raise KeyError(f"no array of the frame is called {name!r}; there are {names}")
        return array

    @property
    def _single(self) -> bool:
        return self._fields[0][0] is None

    @property
    def array(self) -> Any:
        """The array, of a ring whose frames are one array."""
        self._check_process()
        if not self._single:
            raise TypeError(f"this frame has several arrays: take one by its name, such as frame[{self.keys()[0]!r}]")
        return self._array(None)

    def __getitem__(self, key: Any) -> Any:
        return self._array(None)[key] if self._single else self._array(key)

    def keys(self) -> list[str]:
        """Names of the arrays."""
        self._check_process()
        return [each[0] for each in self._fields if each[0] is not None]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._array(None)) if self._single else iter(self.keys())

    def __len__(self) -> int:
        self._check_process()
        return len(self._array(None)) if self._single else len(self._fields)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        array = self.array
        if dtype is not None and np.dtype(dtype) != array.dtype:
            return array.astype(dtype)
        return array.copy() if copy else array

    def copy(self) -> Any:
        """Ordinary arrays of one's own: a dict, or of a ring with one array, the array. Copies every byte."""
        self._check_process()
        if self._single:
            return self._array(None).copy()
        return {name: self._array(name).copy() for name in self.keys()}

    def _text(self) -> str:
        return ", ".join(
            f"{'' if name is None else name + ' '}{'x'.join(map(str, shape)) or 'scalar'} {dtype}"
            for name, shape, dtype, _ in self._fields
        )


class Frame(_Arrays):
    """A published frame on loan: its arrays are read-only and do not change while it, or any of them, is in use.

    ``with ring.latest() as frame:`` gives it back at the end, unless an array taken from it still lives; then with that.

    Attributes
    ----------
    seq : int
        Sequence number, from 1, without gaps in the ring.
    timestamp : float
        When it was published, in seconds of `time.monotonic`.
    timestamp_ns : int
        The same in nanoseconds.
    missed : int
        How many frames this subscription missed just before it.
    """

    def __init__(self, fields: list[Field], lent: _ring.Lent) -> None:
        self._fields, self._pid = fields, getpid()
        self._memory, self.seq, self.timestamp_ns, self.missed = lent
        self._arrays = {}

    @property
    def timestamp(self) -> float:
        self._check_process()
        return self.timestamp_ns / 1e9

    def release(self) -> None:
        """Give the frame back; what was taken from it keeps it as long as that lives."""
        self._arrays = {}
        self._memory = None

    def __enter__(self) -> Frame:
        self._check_process()
        return self

    def __exit__(self, *exc: object) -> None:
        self.release()

    def __reduce__(self) -> Any:
        raise TypeError("a frame is a loan of this process: send frame.copy(), or one of its arrays (by value)")

    def __repr__(self) -> str:
        state = ", given back" if self._memory is None else ""
        return f"<Frame {self.seq}: {self._text()}{state}>"


class Frames(list[Frame]):
    """Several frames on loan, oldest first; as a context manager it gives all of them back."""

    def __enter__(self) -> Frames:
        return self

    def __exit__(self, *exc: object) -> None:
        for frame in self:
            frame.release()


class _Draft(_Arrays):
    """A frame that is being written; see `RingBuffer.write`."""

    seq: int | None = None
    timestamp_ns: int | None = None
    _instead = _WRITE

    def __init__(self, fields: list[Field], claim: _ring.Claim) -> None:
        self._fields, self._pid = fields, getpid()
        self._claim = claim
        self._memory = claim.memory()
        self._arrays = {}

    def __setitem__(self, key: Any, value: Any) -> None:
        if self._single:
            self._array(None)[key] = value
        else:
            assign(self._array(key), value)

    def _fill(self, value: Any) -> None:
        """Copy an array, or a dict of arrays, in; refused unless it fits exactly."""
        if self._single:
            value = {None: value}
        elif not isinstance(value, Mapping) or set(value) != set(self.keys()):
            got = sorted(value) if isinstance(value, Mapping) else type(value).__name__
            raise ValueError(f"a frame of this ring is a dict of {', '.join(self.keys())}, not {got}")
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


class _Write:
    """``with ring.write() as frame:`` or ``async with``."""

    def __init__(self, ring: RingBuffer, timeout: float | None) -> None:
        self._ring, self._timeout = ring, timeout

    def __enter__(self) -> _Draft:
        self._draft = self._ring._draft(self._ring._claim(self._timeout))
        return self._draft

    async def __aenter__(self) -> _Draft:
        self._draft = self._ring._draft(await self._ring._aclaim(self._timeout))
        return self._draft

    def __exit__(self, kind: Any, *exc: object) -> None:
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
            # Somebody kept a writable view: it goes on standing on that slot, and readers get a copy.
            other = self._ring._claim(self._timeout)
            if other is None:
                claim.discard()
                raise _full(self._ring, self._timeout)
            other.fill_from(claim)
            claim.discard()
            draft.seq, draft.timestamp_ns = other.publish()

    async def __aexit__(self, kind: Any, *exc: object) -> None:
        self.__exit__(kind, *exc)


def _full(ring: RingBuffer, timeout: float | None) -> queue.Full:
    return queue.Full(
        f"no slot of {ring!r} came free"
        + ("" if timeout is None else f" in {timeout:g} seconds")
        + ": readers have frames on loan, or block"
    )


class Subscription:
    """One reader's way through the frames, each once and in order; made by `RingBuffer.subscribe`.

    Iterate over it (``for frame in subscription:``, or ``async for``) until the ring is shut down, or take frames one by
    one with `get`. A frame stays on loan until it is released or forgotten: ``with frame:`` in the loop's body is quickest.

    Attributes
    ----------
    policy : str
        ``"drop"`` or ``"block"``; a reader that blocked for longer than the ring's `block_timeout` becomes ``"drop"``.
    missed : int
        Frames this subscription has missed so far.
    lag : int
        Frames published since the one it had last.
    """

    def __init__(self, ring: RingBuffer, policy: str, since: int | None) -> None:
        if policy not in ("drop", "block"):
            raise ValueError(f"policy is 'drop' or 'block', not {policy!r}")
        if since is not None and since < 0:
            raise ValueError(f"since is the sequence number of a frame, 0 or more, not {since}")
        if policy == "block" and not ring._flags & _ring.MAY_BLOCK:
            raise ValueError(
                "the creator of this ring forbids readers that block (allow_block=False): use policy='drop'"
            )
        self._pid = getpid()
        self._seat = ring._subscribe(policy == "block", since)
        self._reader = self._seat.reader
        self._ring: RingBuffer | None = ring

    def _check_process(self) -> None:
        if self._pid != getpid():
            check_process(self._pid, self, _SUBSCRIBE)

    def _need(self) -> RingBuffer:
        self._check_process()
        if self._ring is None:
            raise ClosedError("this subscription is closed")
        return self._ring

    def _for_wait(self) -> waiting.Part:
        self._check_process()
        return waiting.READY if self._ring is None else waiting.Part(None, ((self._ring, self._reader),))

    @property
    def policy(self) -> str:
        return "block" if self._need()._reader(self._reader)[3] else "drop"

    @property
    def missed(self) -> int:
        return self._need()._reader(self._reader)[1]

    @property
    def lag(self) -> int:
        return self._need()._reader(self._reader)[2]

    def get(self, timeout: float | None = None) -> Frame:
        """The next frame.

        Raises
        ------
        queue.Empty
            When none comes within `timeout` seconds.
        ClosedError
            When the ring was shut down and there are no more, or this subscription or the ring object is closed.
        """
        ring = self._need()
        lent = ring._next(self._reader, timeout)
        if lent is None:
            raise queue.Empty
        return Frame(ring._fields, lent)

    async def aget(self, timeout: float | None = None) -> Frame:
        """As `get`, in an event loop."""
        ring = self._need()
        key = (ring._key, "frames", self._reader)
        lent = await aio.until(key, lambda: ring._next(self._reader, 0), ring._watch_frames, timeout)
        if lent is None:
            raise queue.Empty
        return Frame(ring._fields, lent)

    def __iter__(self) -> Iterator[Frame]:
        self._check_process()
        return self

    def __next__(self) -> Frame:
        try:
            return self.get()
        except ClosedError:
            raise StopIteration from None

    async def __aiter__(self) -> AsyncIterator[Frame]:
        while True:
            try:
                frame = await self.aget()
            except ClosedError:
                return
            yield frame

    def close(self) -> None:
        """Stop reading; a writer that waited for this reader goes on."""
        self._ring = None
        self._seat.leave()

    def __enter__(self) -> Subscription:
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
    """One subscription: its process, frames taken and missed, how many it is behind, whether writers wait for it."""

    pid: int
    taken: int
    missed: int
    lag: int
    blocks: bool


class RingStats(NamedTuple):
    """What a ring has done, and how it stands.

    Attributes
    ----------
    published : int
        Frames, ever.
    rate : float
        Frames a second, of those that lie in the ring.
    slots, held, writing, on_loan : int
        Slots; with a frame; being written; with a frame on loan.
    waits : int
        Times that a writer found no slot and had to wait.
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


@pickled_by(_loaders.ring_buffer)
class RingBuffer(_ring._Ring, Shared):
    """RingBuffer(spec, slots=8, *, name=None, persist=False, exist_ok=True, init=None, allow_block=True, block_timeout=None, members=256, ctx=None)

    A ring of frames in shared memory, reserved for real when it is made: slots x bytes a frame.

    Parameters
    ----------
    spec
        What a frame is: ``(shape, dtype)`` for one array, or a dict of name to ``(shape, dtype)``. Or use `like`.
    slots
        How many frames it has room for, 2 to 65,536: at least two more than are on loan at a time, so that writers find
        one. Each frame on loan takes one.
    name, persist, exist_ok, init, ctx
        As for `copyless.Lock`. Who finds the name taken gets that ring, whose frames must be the same; unless `spec` is
        None, which takes any. A ring that was shut down gives its name to the next that is made.
    allow_block
        Whether readers may make writers wait.
    block_timeout
        Seconds that a writer waits at most for a reader that blocks, which then becomes one that drops.
    members
        How many processes may use the ring at a time, and how many subscriptions there may be: 1 to 4,096, rounded up to
        a multiple of 64. Each takes 36 bytes, and a bit of each slot.

    No write, no reading and no giving back of a frame ever waits for another process, wherever it was stopped or killed:
    with a timeout of 0 each comes back at once.

    Raises
    ------
    ValueError
        For a number that is out of bounds.
    OutOfSharedMemory
        When there is no room for all slots.
    LimitExceededError
        From the first use in a process, when `members` processes use the ring already.

    It goes through `Process`, pools, queues and pipes by its handle.

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

    _fields: list[Field]
    _remade = frozenset(("_fields",))

    def __init__(
        self,
        spec: Any = None,
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
            raise ValueError(f"a ring has 2 to 65,536 slots, not {slots}")
        if not 1 <= members <= _ring.MEMBERS_MAX:
            raise ValueError(f"a ring has 1 to {_ring.MEMBERS_MAX:,} members, not {members}")
        if block_timeout is not None and not block_timeout > 0:
            raise ValueError(f"block_timeout is a number of seconds above 0, not {block_timeout!r}")
        if spec is None and name is None:
            raise TypeError(
                "say what a frame is: (shape, dtype), or {'name': (shape, dtype)}; or the name of a ring there is"
            )
        fields = None if spec is None else _fields(spec)

        def make() -> _blocks.Block:
            if fields is None:
                raise missing(str(name), ", and no spec to make a ring by")
            text, stride = _encode(fields), _stride(fields)
            flags = _ring.MAY_BLOCK if allow_block else 0
            block = _blocks.new_object(
                _ring.ring_bytes(slots, members, stride, len(text)),
                c_library.KIND_RING,
                slots,
                0,
                flags,
                _ring.ring_bytes(slots, members, 0, len(text)),
                _blocks.ALONE,  # its frames are users' bytes, and its head is not
                spill=False,
            )
            _ring.begin(block, slots, members, stride, text, int((block_timeout or 0) * 1e9))
            return block

        new = self._obtain((name, persist, exist_ok, init), make, (c_library.KIND_RING,))
        if not new and fields is not None and _encode(fields) != _encode(self._fields):
            raise FileExistsError(17, f"the ring of that name has other frames: {self.spec}, not {spec}. Open it without a spec, or choose another name", name)

    def _stood(self) -> None:
        self._fields = _decode(self._spec)
        if _stride(self._fields) != self._stride:
            raise CorruptSegmentError("the description of a ring's frames does not fit its slots")

    @classmethod
    def like(cls, example: ArrayLike | Mapping[str, ArrayLike], slots: int = 8, **options: Any) -> RingBuffer:
        """A ring for frames like this array, or this dict of arrays; `options` as for the class. Copies nothing.

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

    def _draft(self, claim: _ring.Claim | None) -> _Draft:
        if claim is None:
            raise _full(self, None)
        return _Draft(self._fields, claim)

    def write(self, timeout: float | None = None) -> _Write:
        """``with ring.write() as frame:`` (or ``async with``): fill a slot in place; published when the block ends.

        When the block raises, nothing is published. `frame` is a dict of writable arrays (``frame["rgb"][...] = image``),
        or for one array is used as that (``frame[...] = image``). What it last held shows until it is written over. If a
        writable view of it outlives the block, readers get a copy of the frame; views kept inside the block are free.

        Raises
        ------
        queue.Full
            When no slot comes free within `timeout` seconds.
        ClosedError
            When the ring was shut down, or this object is closed.
        """
        return _Write(self, timeout)

    def put(self, frame: Any, timeout: float | None = None) -> int:
        """Copy an array, or a dict of arrays, into the ring: its sequence number. One copy, without the GIL.

        Raises
        ------
        ValueError
            When names or shapes are not those of the ring's frames.
        TypeError
            When a value would lose its kind: a float into integers, whatever its type (1.9, ``numpy.float32(2)``,
            ``Fraction(1, 2)``), a number into bool or text, milliseconds into seconds. Nothing is published.
        OverflowError
            When it does not fit: 300 into ``u1``, 1e300 into ``f4``.
        queue.Full, ClosedError
            As `write`.
        """
        claim = self._claim(timeout)
        if claim is None:
            raise _full(self, timeout)
        return self._put_into(claim, frame)

    async def aput(self, frame: Any, timeout: float | None = None) -> int:
        """As `put`, in an event loop."""
        claim = await self._aclaim(timeout)
        if claim is None:
            raise _full(self, timeout)
        return self._put_into(claim, frame)

    def _put_into(self, claim: _ring.Claim, frame: Any) -> int:
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
        claim: _ring.Claim | None = await aio.until(
            (self._key, "slots"), lambda: self._claim(0), self._watch_slots, timeout
        )
        return claim

    # ---- reading

    def latest(self, timeout: float | None = None, *, after: int = 0) -> Frame:
        """The newest frame, on loan; waits for the first one, or for one with a sequence number above `after`.

        Raises
        ------
        queue.Empty
            When there is none within `timeout` seconds.
        ClosedError
            When the ring was shut down and there is none, or this object is closed.
        """
        lent = self._latest(after, timeout)
        if lent is None:
            raise queue.Empty
        return Frame(self._fields, lent)

    async def alatest(self, timeout: float | None = None, *, after: int = 0) -> Frame:
        """As `latest`, in an event loop."""
        lent = await aio.until((self._key, "latest"), lambda: self._latest(after, 0), self._watch_frames, timeout)
        if lent is None:
            raise queue.Empty
        return Frame(self._fields, lent)

    def last(self, k: int) -> Frames:
        """The newest `k` frames, oldest first, on loan; fewer when there are fewer. ``with ring.last(5) as frames:``

        Raises
        ------
        ValueError
            When `k` is less than 1, or more than the ring has slots.
        """
        if not 1 <= k <= self._number:
            raise ValueError(f"k is 1 to {self._number}, the slots of this ring, not {k}")
        return Frames(Frame(self._fields, lent) for lent in self._last(k))

    def subscribe(self, policy: str = "drop", *, since: int | None = None) -> Subscription:
        """Follow the frames from now on, or from the one after sequence number `since` (0: all that are still there).

        Parameters
        ----------
        policy
            ``"drop"``: writers never wait for this reader; when it is slow, it misses the oldest frames and each frame says
            how many were missed before it. ``"block"``: writers wait rather than overwrite what this reader has not had,
            until it closes.
        since
            A sequence number.

        Raises
        ------
        ValueError
            For ``"block"`` when the ring does not allow it.
        """
        return Subscription(self, policy, since)

    # ---- the end, numbers

    def shutdown(self) -> None:
        """End the ring for everyone: writers get `ClosedError`, readers too once they have had the last frame."""
        self._shut()

    def close(self) -> None:
        """This object is done with the ring; others go on. Frames on loan stay. To end it for all, `shutdown`."""
        self.closed = True

    def __enter__(self) -> RingBuffer:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def slots(self) -> int:
        """How many frames it has room for."""
        return self._number

    @property
    def members(self) -> int:
        """How many processes may use it at a time, and how many subscriptions there may be."""
        return self._room

    @property
    def spec(self) -> Any:
        """What a frame is: ``(shape, dtype)``, or a dict of name to that."""
        if self._fields[0][0] is None:
            return self._fields[0][1], self._fields[0][2]
        return {name: (shape, dtype) for name, shape, dtype, _ in self._fields}

    @property
    def nbytes(self) -> int:
        """Bytes of shared memory that it takes."""
        return self._address[1]

    def stats(self) -> RingStats:
        """What went through, who reads, and what they missed."""
        published, held, writing, loans, waits, oldest, newest, readers = self._statistics()
        rate = (held - 1) / ((newest - oldest) / 1e9) if held > 1 and newest > oldest else 0.0
        return RingStats(
            published, rate, self._number, held, writing, loans, waits, [ReaderStats(*each) for each in readers]
        )

    def _state(self) -> str:
        ended = ", shut down" if self._ended else ""
        of = Frame(self._fields, (None, 0, 0, 0))._text()  # type: ignore[arg-type]
        return f"{self._last_seq} frames in {self._number} slots of {of}{ended}"
