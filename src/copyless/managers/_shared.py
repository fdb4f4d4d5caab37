"""`SharedMemoryManager`: makes blocks, lists, arrays, queues, rings and locks that exist until it is shut down."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterable
from multiprocessing import util
from queue import Empty
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
from numpy.typing import DTypeLike

from copyless import arrays, queues, rings, shared_memory, synchronize
from copyless._core import _posix
from copyless._storage.spare_blocks import Spares
from copyless._transfer import shared_array
from copyless.errors import ClosedError, ForeignHostError
from copyless.managers._link import Link
from copyless.managers._log import log
from copyless.managers._manager import BaseManager
from copyless.managers._protocol import PLACE
from copyless.managers._references import Client
from copyless.managers._server import Server

__all__ = ["SharedMemoryManager", "SharedMemoryServer"]

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from copyless._objects import base as _options

M = TypeVar("M")
T = TypeVar("T", bound="float | str | bytes | None")


class _Blocks:
    """Blocks to free at the end. Blocks that a program has unlinked are dropped from time to time."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[tuple[int, int], object]] = {}
        self._prune_at = 256

    def add(self, name: str, identity: tuple[int, int], hold: object = None) -> None:
        self._known[name] = identity, hold
        if len(self._known) >= self._prune_at:
            self._known = {name: known for name, known in self._known.items() if shared_memory.exists(name, known[0])}
            self._prune_at = max(256, 2 * len(self._known))

    def forget(self, name: str) -> None:
        self._known.pop(name, None)

    def names(self) -> list[str]:
        return [name for name, (identity, _) in self._known.items() if shared_memory.exists(name, identity)]

    def free(self) -> None:
        while self._known:
            name, (identity, _) = self._known.popitem()
            with contextlib.suppress(OSError):
                shared_memory.discard(name, identity)


class SharedMemoryServer(Server):
    """The server of a `SharedMemoryManager`. It reads from its ledger, a queue in shared memory, which objects it
    keeps.
    """

    __module__ = PLACE

    public: tuple[str, ...] = (*Server.public, "ledger", "settle", "list_segments")

    def __init__(self, *args: Any, **kwds: Any) -> None:
        super().__init__(*args, **kwds)
        self._ledger: queues.Queue[Any] = queues.Queue()
        self._blocks = _Blocks()
        self._kept: dict[object, object] = {}
        self._reading = threading.Lock()

    def serve_forever(self) -> None:
        threading.Thread(target=self._follow, name="copyless-ledger", daemon=True).start()
        super().serve_forever()

    def _follow(self) -> None:
        # entries are not urgent, and a process that writes one need not wake the server
        while not self.stop_event.wait(0.1):
            self._read()

    def _read(self) -> None:
        with self._reading:
            while True:
                try:
                    entry = self._ledger.get_nowait()
                except (Empty, ClosedError):
                    return
                except Exception as error:  # concerns this entry only, which has left the queue
                    log.warning("an entry about a shared memory block could not be read: %s", error)
                    continue
                verb, key, *more = entry
                if verb == "block":
                    self._blocks.add(key, tuple(more[0]), _posix.posix_hold(os.fsencode(key), *more[0]))
                elif verb == "gone":
                    self._blocks.forget(key)
                elif verb == "keep":
                    self._kept[key] = more[0]
                elif verb == "drop":
                    self._kept.pop(key, None)

    def _end(self) -> None:
        self._read()
        self._blocks.free()
        self._kept.clear()
        super()._end()

    def ledger(self, client: Client) -> queues.Queue[Any]:
        if not client.connection.shared:
            raise ForeignHostError(
                "a SharedMemoryManager serves only processes of its own host, because other hosts do not share "
                "its memory"
            )
        return self._ledger

    def settle(self, client: Client) -> None:
        """Read all entries that were written until now."""
        self._read()

    def list_segments(self, client: Client) -> list[str]:
        self._read()
        return self._blocks.names()


class SharedMemoryManager(BaseManager):
    """SharedMemoryManager(address=None, authkey=None, serializer='pickle', ctx=None, *, shutdown_timeout=1.0)

    Makes blocks, lists, arrays, queues, rings and locks that exist until the manager is shut down.

    Mirrors `multiprocessing.managers.SharedMemoryManager`. They are also freed when the manager's owner has ended, even
    by SIGKILL. Other processes of the host may `connect` to its server and make objects too, which exist as long as
    that server.

    Parameters are those of `BaseManager`.

    Raises
    ------
    ForeignHostError
        From the methods that make objects, if the server runs on another host.
    OutOfSharedMemory
        From the methods that make objects, if there is no room.

    Notes
    -----
    Making an object needs no call to the server: the process makes it and writes an entry into the manager's ledger, a
    queue in shared memory that the server reads. Memory that views and arrays still use stays valid after `shutdown`.

    Examples
    --------
    >>> from copyless.managers import SharedMemoryManager
    >>> with SharedMemoryManager() as manager:
    ...     block = manager.SharedMemory(size=1 << 20)
    ...     image = manager.array((480, 640, 3), "u1")
    ...     names = manager.ShareableList(["a", "b"])
    ...     len(manager.list_segments())
    2
    """

    __module__ = PLACE

    _Server = SharedMemoryServer

    def __init__(self, *args: Any, **kwds: Any) -> None:
        super().__init__(*args, **kwds)
        self._ledger: list[queues.Queue[object]] = []  # holds the ledger once the server was asked for it
        self._made = _Blocks()
        self._spares = Spares()
        self._kept: dict[object, object] = {}

    def _after_shutdown(self) -> Callable[[], None]:
        made, kept, spares, ledger = self._made, self._kept, self._spares, self._ledger

        def free() -> None:
            made.free()
            spares.clear()
            ledger.clear()
            kept.clear()

        return free

    def _write(self, *entry: object) -> None:
        link = self._started_link()
        if not self._ledger:
            self._ledger.append(link.ask("ledger"))
            if self._process is None:  # the server must know what a client made before the client ends
                util.Finalize(self, _settle, args=(link,), exitpriority=20)
        self._ledger[0].put(entry)

    # ---- making objects

    def SharedMemory(self, size: int, *, name: str | None = None) -> shared_memory.SharedMemory:
        """A new `copyless.SharedMemory` block of `size` bytes."""
        self._started_link()
        block = _without_family(shared_memory.SharedMemory)
        block._spares = self._spares
        block.__init__(name, create=True, size=size)
        return self._own(block)

    def ShareableList(self, sequence: Iterable[T] | None, *, name: str | None = None) -> shared_memory.ShareableList[T]:
        """A new `copyless.ShareableList` with these items."""
        self._started_link()
        made: shared_memory.ShareableList[T] = _without_family(shared_memory.ShareableList)
        shared_memory.ShareableList.__init__(made, sequence, name=name)
        self._own(made.shm)
        return made

    def _own(self, block: shared_memory.SharedMemory) -> shared_memory.SharedMemory:
        identity = block._identity
        assert identity is not None
        try:
            self._write("block", block.name, identity)
        except BaseException:
            block.unlink()
            raise
        # This process holds it too: the server may read the entry later, or be killed.
        self._made.add(block.name, identity, _posix.posix_hold(os.fsencode(block.name), *identity))
        return block

    def array(
        self,
        shape: shared_array.Shape | np.ndarray[Any, Any],
        dtype: DTypeLike = float,
        order: Literal["C", "F"] = "C",
        *,
        zeroed: bool = True,
    ) -> shared_array.SharedArray:
        """A new shared array; if an `ndarray` is given instead of a shape, a shared copy of it.

        Parameters
        ----------
        shape : int, tuple of int, or ndarray
            The shape, or the array to copy.
        dtype, order
            As for `copyless.zeros`.
        zeroed : bool
            If false, the elements are arbitrary and no page is written: about 2 us for any size if memory is reused.
        """
        self._started_link()
        if isinstance(shape, np.ndarray):
            made = arrays.array(shape)
        elif zeroed:
            made = arrays.zeros(shape, dtype, order)
        else:
            made = arrays.empty(shape, dtype, order)
        return self._keep(made)

    def Queue(self, maxsize: int = 0, **more: Unpack[_options.QueueOptions]) -> queues.Queue[Any]:
        """A new `copyless.Queue`; parameters are those of its constructor."""
        self._started_link()
        return self._keep(queues.Queue(maxsize, **more))

    def RingBuffer(self, fields: Any, slots: int, **more: Unpack[_options.RingOptions]) -> rings.RingBuffer[Any]:
        """A new `copyless.RingBuffer`; parameters are those of its constructor."""
        self._started_link()
        return self._keep(rings.RingBuffer(fields, slots, **more))

    def Lock(self, **more: Unpack[_options.LockOptions]) -> synchronize.Lock:
        """A new `copyless.Lock`; parameters are those of its constructor."""
        self._started_link()
        return self._keep(synchronize.Lock(**more))

    def _keep(self, made: M) -> M:
        if self._process is not None:
            self._kept[id(made)] = made
        else:
            self._write("keep", (self._started_link().session, id(made)), made)
        return made

    # ---- listing and releasing them

    def release(self, obj: object) -> None:
        """Release one object early: a block or list is unlinked, an array, queue, ring or lock is no longer kept alive.

        Raises
        ------
        ValueError
            If the manager does not have it.
        """
        self._check_process()
        block = obj.shm if isinstance(obj, shared_memory.ShareableList) else obj
        if isinstance(block, shared_memory.SharedMemory):
            with contextlib.suppress(FileNotFoundError):
                block.unlink()
            self._made.forget(block.name)
            self._write("gone", block.name)
        elif self._process is not None:
            if self._kept.pop(id(obj), None) is None:
                raise ValueError(
                    f"this manager does not have this {type(obj).__name__}: it was already released, or another "
                    "manager made it"
                )
        else:
            self._write("drop", (self._started_link().session, id(obj)))

    def list_segments(self) -> list[str]:
        """The names of the blocks and lists that the manager has now."""
        names: list[str] = self._started_link().ask("list_segments")
        return names


def _without_family(kind: Any) -> Any:
    """An object whose `__init__` was not run. It exists as long as its manager's owner or server, or a process that
    attached it.
    """
    made = kind.__new__(kind)
    made._family = False
    return made


def _settle(link: Link) -> None:
    with contextlib.suppress(Exception):
        link.ask("settle")
