"""`open`, `unlink`, `handle` and `attach`: every kind of shared object by its name or its handle."""

from __future__ import annotations

import sys
import time

from copyless._core import _blocks, _handles, c_library
from copyless._storage.store import ensure_open
from copyless._transfer import handles, reductions
from copyless._transfer._memory import Memory
from copyless._transfer.handles import Handle
from copyless._transfer.in_flight import Hold
from copyless._typing import TYPE_CHECKING, Any
from copyless.errors import CorruptSegmentError, RegistryBusyError

if TYPE_CHECKING:
    from copyless._transfer import names

__all__ = ["attach", "handle", "open", "stand", "unlink"]

_OBJECT = bytes([_handles.KIND_OBJECT])
_PATIENCE = 1.0  # seconds that `open` waits for the registry's lock if it does not wait for the name


def _is_array(obj: object) -> bool:
    numpy = sys.modules.get("numpy")  # not imported here: a program without arrays does not need it
    return numpy is not None and isinstance(obj, numpy.ndarray)


def _class_of(kind: int) -> Any:
    """The class of the objects in a kind of block; None if this version does not know the kind."""
    if kind == c_library.KIND_QUEUE:
        from copyless.queues import SimpleQueue

        return SimpleQueue
    if kind == c_library.KIND_RING:
        from copyless.rings import RingBuffer

        return RingBuffer
    from copyless import synchronize

    locks: dict[int, Any] = {
        c_library.KIND_LOCK: synchronize.Lock,
        c_library.KIND_RLOCK: synchronize.RLock,
        c_library.KIND_RWLOCK: synchronize.RWLock,
        c_library.KIND_SEMAPHORE: synchronize.Semaphore,
        c_library.KIND_ROBUST_SEMAPHORE: synchronize.Semaphore,
        c_library.KIND_CONDITION: synchronize.Condition,
        c_library.KIND_EVENT: synchronize.Event,
        c_library.KIND_BARRIER: synchronize.Barrier,
    }
    return locks.get(kind)


def stand(block: _blocks.Block) -> Any:
    """The object that lies in a block, made by its class."""
    found = _class_of(_blocks.object_kind(block))
    if found is None:
        raise CorruptSegmentError(
            f"block {block.number} holds no object that this version knows (kind {_blocks.object_kind(block)})"
        )
    return found._from_block(block)


def open(name: str, *, timeout: float | None = 0, readonly: bool = False) -> Any:
    """Open the array, lock, queue or ring that has this name. Shape and dtype of an array are part of the name's entry.

    Parameters
    ----------
    name : str
        The name that was given to `empty`, `Queue`, `Lock` or another constructor, in any program of this user.
    timeout : float or None
        Seconds to wait for the name to appear: 0 does not wait, None waits without limit. Waiting uses no processor
        time.
    readonly : bool
        Make the array that is returned read-only.

    Returns
    -------
    SharedArray, Lock, Queue, RingBuffer, ...
        The object itself, not a copy.

    Raises
    ------
    FileNotFoundError
        If nothing has the name after `timeout` seconds.
    RegistryBusyError
        A `TimeoutError`: another process was stopped while it held the registry's lock, and did not go on within
        `timeout`, or within a second if that is 0. It is unknown whether the name exists.
    CorruptSegmentError
        If the memory is damaged.

    Notes
    -----
    The object exists as long as any process holds it; its creator may end. An object that was made with
    ``persist=True`` exists until `unlink`. Opening an object never removes it later.

    Examples
    --------
    >>> import copyless
    >>> a = copyless.full(3, 1.5, name="open-doc")
    >>> copyless.open("open-doc")
    SharedArray([1.5, 1.5, 1.5])
    """
    from copyless._core import _names
    from copyless._transfer import names

    text = names.check_name(name)
    deadline = None if timeout is None else time.monotonic() + timeout
    try:
        return _names.in_time(
            timeout or (None if timeout is None else _PATIENCE), _found, name, text, deadline, timeout, readonly
        )
    except _blocks.Late:
        raise RegistryBusyError(
            f"{name!r} could not be looked up in time: the process that holds the registry's lock does not "
            "go on ('copyless doctor' names it). Continue it (kill -CONT) or end it"
        ) from None


def _found(name: str, text: bytes, deadline: float | None, timeout: float | None, readonly: bool) -> Any:
    """The object of a name, once the name exists. `Late` if the registry's lock is not free in time."""
    from copyless._core import _names
    from copyless._transfer import names

    while True:
        ensure_open()  # in each turn: if the directory was removed meanwhile, this opens another store
        seen = _names.names_seq()
        found = names.find(text)
        if found is not None:
            opened = _open(found, name)
            if readonly and _is_array(opened):
                opened.flags.writeable = False
            return opened
        left = 0.2 if deadline is None else deadline - time.monotonic()
        if left <= 0:
            waited = f" after waiting {timeout:g} s" if timeout else ""
            raise names.missing(name, waited)
        # A name also becomes free when its holder dies, and then no process wakes the waiters: look again regularly.
        _names.wait_for_name(seen, min(left, 0.2))


def _open(found: names.Found, name: str) -> Any:
    if found.described or not _blocks.object_kind(found.block):
        from copyless._transfer.shared_array import open_found

        return open_found(found)
    thing = stand(found.block)
    thing.name = name
    return thing


def unlink(name: str) -> None:
    """Remove the name of an array, queue, ring or lock. Its memory is freed when the last process releases it.

    Processes that hold the object go on using it. Once a new object has the name, a process that knows the old queue,
    ring or lock by this name gets `StaleNameError`: from a put, and where it would wait.

    Parameters
    ----------
    name : str
        The name.

    Raises
    ------
    FileNotFoundError
        If nothing has the name.

    Examples
    --------
    >>> import copyless
    >>> a = copyless.zeros(3, name="unlink-doc", persist=True)
    >>> copyless.unlink("unlink-doc")
    """
    from copyless._core import _names
    from copyless._transfer import names

    text = names.check_name(name)
    ensure_open()
    while True:
        try:
            found = names.find(text)
        except CorruptSegmentError:  # remove the name nevertheless
            if _names.unpublish(text):
                return
            continue
        if found is None:
            raise names.missing(name)
        if not found.described and _blocks.object_kind(found.block):
            _blocks.mark_renamed(found.block)  # first: after a kill before the next line, the mark alone is harmless
        if _names.unpublish_of(text, found.block):
            return


def handle(obj: object) -> Handle:
    """The handle of an array, a `Memory`, a lock, queue or ring: its location as bytes.

    The bytes can be sent to any process of this host through any channel. A handle does not keep the object alive: keep
    the object until the receiver has called `attach`. Objects that are sent through multiprocessing need no handle;
    they are sent as one automatically, and the message keeps them alive.

    Raises
    ------
    ValueError
        If the object is not in shared memory.
    TypeError
        If the object is of another type.

    Examples
    --------
    >>> import copyless
    >>> a = copyless.zeros(4)
    >>> h = copyless.handle(a)
    >>> b = copyless.attach(h)
    >>> b[0] = 3
    >>> a[0]
    np.float64(3.0)
    """
    ensure_open()
    if isinstance(obj, Memory):
        made = reductions.memory_handle(obj, Hold.NONE)
    elif isinstance(obj, _blocks.Object):
        made = reductions.object_handle(obj, Hold.NONE)
    elif _is_array(obj):
        from copyless._transfer.array_handles import encode

        made = encode(obj, Hold.NONE)
    else:
        raise TypeError(
            f"handle() takes an array, a Memory, or a copyless lock, queue or ring, not {type(obj).__name__!r}"
        )
    if made is None:
        raise ValueError(f"this {type(obj).__name__} is not in shared memory: move it there with copyless.share()")
    return Handle(made)


def attach(handle: bytes) -> Any:
    """The object that a handle names: the same memory, in this process.

    Parameters
    ----------
    handle : bytes
        The result of `handle`, in this process or another one of this host.

    Raises
    ------
    StaleHandleError
        If the object no longer exists.
    ForeignHostError
        If the handle was made on another host or in another storage directory.
    CorruptSegmentError
        If the memory is damaged.
    ValueError
        If the bytes are not a handle.

    Notes
    -----
    Costs one to four microseconds if this process has the segment mapped already, otherwise opening and mapping one
    file.

    Examples
    --------
    >>> import copyless
    >>> a = copyless.full(3, 2.0)
    >>> copyless.attach(copyless.handle(a[1:]))
    SharedArray([2., 2.])
    """
    if type(handle) is not bytes:
        if not isinstance(handle, (bytes, bytearray, memoryview)):
            raise TypeError(f"a handle must be bytes, not {type(handle).__name__!r}")
        handle = bytes(handle)
    if handle[3:4] != _OBJECT:
        return reductions.load(handle)
    kind, block, _, _ = handles.resolve(handle)
    return stand(block) if kind == _handles.KIND_OBJECT else reductions.load(handle)


for _public in (open, unlink, handle, attach):
    _public.__module__ = "copyless"  # their public module
