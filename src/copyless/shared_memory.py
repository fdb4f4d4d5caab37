"""`SharedMemory` and `ShareableList`, as in the standard library, without a tracker process and without lost data.

The differences to `multiprocessing.shared_memory`:

* Attaching to a block never removes it. There is no tracker process, and nothing is printed at exit.
* A new block is sized, reserved and mapped before its name appears, so that a process that attaches never finds an
  empty one. A full mount raises `OutOfSharedMemory`; it does not kill the first process that writes.
* `close` never raises. It closes the descriptor at once; the memory stays as long as any view of it exists.
* With ``track=None`` (the default) the block is removed when the process family that created it and all processes that
  attached it through copyless have ended, however they ended.

A block is a plain POSIX object at the same place and under the same name as in the standard library, so that programs
that use either module share blocks by name.
"""

from __future__ import annotations

import collections
import contextlib
import errno
import importlib
import os
import secrets
import time
import types
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar, overload

from copyless import _loaders
from copyless._core import _blocks, _list, _posix, _store
from copyless._core.failures import no_room, out_of_shared_memory, refused, system_limit
from copyless._platform import OBJECTS_DIRECTORY, OBJECTS_PREFIX, give_name, nameless_file, reserve_room
from copyless._standard_names import standard_names
from copyless._storage.spare_blocks import Spare, Spares
from copyless._storage.store import ensure_open
from copyless._typing import Generic
from copyless.errors import SystemLimitError

__all__ = ["ShareableList", "SharedMemory"]

if TYPE_CHECKING:
    from typing_extensions import Self

T = TypeVar("T", bound="float | str | bytes | None")

_USE_POSIX = True
_SHM_NAME_PREFIX = "/psm_"
_SAFELY = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK  # opening a FIFO of that name does not wait
_O_CREX = os.O_CREAT | os.O_EXCL


def _make_filename() -> str:
    """A random name within the shortest limit of any system."""
    return _SHM_NAME_PREFIX + secrets.token_hex(4)


def _file_name(name: str) -> bytes:
    """The file name for a name, checked before anything is created."""
    text = os.fsencode(name.removeprefix("/"))
    if b"\0" in text:
        raise ValueError(f"embedded null character in the name {name!r}")
    if not text or text in (b".", b"..") or b"/" in text:
        raise ValueError(f"a name of shared memory must not be empty or contain '/': {name!r}")
    if len(text) > 255:
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), name)
    return text


class SharedMemory:
    """SharedMemory(name=None, create=False, size=0, *, track=None, readonly=False, mode=0o600)

    A block of raw bytes, created or attached by name. Mirrors `multiprocessing.shared_memory.SharedMemory`.

    Parameters
    ----------
    name : str, optional
        The name, without ``/``. Default for a new block: a random one.
    create : bool
        Create a new block; otherwise attach an existing one.
    size : int
        Bytes of a new block, above 0; ignored when attaching.
    track : bool, optional
        None: the block is removed when its creator's process family and all processes that attached it have ended.
        False: it exists until `unlink`. True: the standard library's resource tracker removes it, as since Python 3.13.
    readonly : bool
        Map the block for reading only.
    mode : int
        Permission bits of a new block.

    Raises
    ------
    FileExistsError, FileNotFoundError, PermissionError
        As in the standard library.
    OutOfSharedMemory
        If there is no room. Nothing is left behind.
    ValueError
        For an invalid size or name.

    Notes
    -----
    Pickles as its name: after `unlink`, loading the pickle raises `FileNotFoundError`. To send memory between
    processes, use `copyless.Memory` or an array instead.

    Examples
    --------
    >>> from copyless.shared_memory import SharedMemory
    >>> with SharedMemory(create=True, size=16) as shm:
    ...     shm.buf[:5] = b"hello"
    ...     bytes(SharedMemory(shm.name).buf[:5])
    ...     shm.unlink()
    b'hello'
    """

    # Class attributes as in the standard library: subclasses override _flags and _mode.
    _name: str | None = None
    _mapping: _blocks.Mapping | None = None
    _buf: memoryview | None = None
    _flags = os.O_RDWR
    _mode = 0o600
    _prepend_leading_slash = True
    _identity: tuple[int, int] | None = None
    _size = 0
    _stands: weakref.ref[ShareableList[Any]] | None = None  # the list to inform when this is closed
    _family = True  # it exists as long as its creator's process family; if false, as long as any process holds it
    # of its manager: small blocks are taken from here, and returned when they are unlinked
    _spares: Spares | None = None
    # writes the content that a block must have before it gets a name
    _fill: Callable[[_blocks.Mapping], None] | None = None

    def __init__(
        self,
        name: str | None = None,
        create: bool = False,
        size: int = 0,
        *,
        track: bool | None = None,
        readonly: bool = False,
        mode: int | None = None,
    ) -> None:
        if not size >= 0:
            raise ValueError("'size' must be a positive integer")
        if create:
            self._flags = _O_CREX | os.O_RDWR
            if size == 0:
                raise ValueError("'size' must be a positive number different from zero")
        if name is None and not self._flags & os.O_EXCL:
            raise ValueError("'name' can only be None if create=True")
        self._track = track
        self._readonly = readonly
        if mode is not None:
            self._mode = mode
        ensure_open()
        if create:
            self._create(name, size)
        else:
            self._attach("/" + _str(name).removeprefix("/"), size)
        mapping = self._mapping
        assert mapping is not None
        self._size = mapping.nbytes
        self._buf = memoryview(mapping)
        if track:
            self._tell_tracker("register")

    # ---- making and attaching

    def _create(self, name: str | None, size: int) -> None:
        wanted = None if name is None else "/" + _str(name).removeprefix("/")
        if wanted is not None:
            _file_name(wanted)
            _store.scan()  # frees the names of dead creators
        spare = None if self._spares is None else self._spares.take(size)
        if spare is None:
            mapping, identity = self._make(wanted, size)
        else:
            mapping, identity = spare.memory, spare.identity
            try:
                self._publish(wanted, mapping, identity, spare.link)
                spare.is_used()
            except BaseException:
                spare.discard()
                raise
            assert self._spares is not None
            self._spares.follow(spare)
        self._mapping, self._identity = mapping, identity
        self._remember()

    def _make(self, wanted: str | None, size: int) -> tuple[_blocks.Mapping, tuple[int, int]]:
        fd = self._reserve(size)
        try:
            st = os.fstat(fd)
            identity = st.st_dev, st.st_ino
            mapping = _blocks.Mapping(fd, size, self._readonly)
            if self._fill is not None:
                self._fill(mapping)
            self._publish(wanted, mapping, identity, lambda path: give_name(fd, path))
            if self._spares is not None and size <= _RECENT_BYTES:
                self._spares.follow(Spare(os.dup(fd), identity, size))
        finally:
            os.close(fd)
        return mapping, identity

    def _publish(
        self, wanted: str | None, mapping: _blocks.Mapping, identity: tuple[int, int], link: Callable[[bytes], None]
    ) -> None:
        while True:
            self._name = wanted or _make_filename()
            text = _file_name(self._name)
            if self._track is None:
                mapping.record(text, *identity, self._family)
            try:
                link(OBJECTS_PREFIX + text)
                return
            except FileExistsError:
                if self._track is None:
                    _posix.posix_forget(text, *identity)
                    mapping.forget()
                if wanted is not None:
                    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), self._name) from None

    def _reserve(self, size: int) -> int:
        """A file of `size` bytes without a name, whose space is allocated."""
        try:
            fd = nameless_file(OBJECTS_DIRECTORY, self._mode)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise no_room(error, "the mount has no free inode", size, OBJECTS_DIRECTORY) from None
            limit = system_limit(error.errno or 0, "making a block", size, OBJECTS_DIRECTORY)
            raise limit or OSError(
                error.errno, f"{error.strerror}: shared memory needs a tmpfs at {OBJECTS_DIRECTORY}", OBJECTS_DIRECTORY
            ) from None
        try:
            os.fchmod(fd, self._mode)
            if size >= 1 << 62:
                raise OverflowError(f"a block of {size:,} bytes is too large")
            _posix.check_capacity(fd, size)
            reserve_room(fd, size)
        except BaseException as error:
            os.close(fd)
            if isinstance(error, MemoryError):
                what = str(error.args[1]).split(";")[0].removeprefix("out of shared memory: ")
                raise out_of_shared_memory(errno.ENOSPC, what, size, OBJECTS_DIRECTORY) from None  # already counted
            if isinstance(error, OverflowError):
                raise refused(
                    out_of_shared_memory(errno.ENOSPC, "the mount has no room", size, OBJECTS_DIRECTORY)
                ) from None
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EFBIG):
                raise no_room(error, "the mount has no room", size, OBJECTS_DIRECTORY) from None
            raise
        return fd

    def _attach(self, name: str, size: int) -> None:
        text = _file_name(name)
        path = OBJECTS_PREFIX + text
        there = _posix.file_identity(path)
        mapping = None if there is None else _mappings.get(self._key(there[:2]))
        # Check again, now that this process holds the block and the name cannot move to another one unnoticed.
        if (
            there is not None
            and mapping is not None
            and there == _posix.file_identity(path)
            and mapping.nbytes == there[2]
        ):
            self._name, self._mapping, self._identity = name, mapping, (there[0], there[1])
            return
        flags = self._flags & ~os.O_RDWR | (os.O_RDONLY if self._readonly else os.O_RDWR) | _SAFELY
        deadline = None
        while True:
            try:
                mapping, *identity = _posix.posix_open(
                    path, text, flags, self._mode, self._readonly, self._track is None
                )
            except SystemLimitError:  # of address space
                raise
            except OSError as error:
                limit = system_limit(error.errno or 0, f"opening {name}", 0)
                raise limit or OSError(error.errno, os.strerror(error.errno or 0), name) from None
            if mapping is not None:
                break
            # The standard library creates a block in two steps; an empty one will most likely get its size soon.
            deadline = deadline or time.monotonic() + 1.0
            if flags & os.O_CREAT and size:
                os.truncate(path, size)
            elif time.monotonic() > deadline:
                raise ValueError(
                    f"cannot map an empty file: {name!r} exists and has no size; its creator may have died"
                )
            else:
                time.sleep(0.0005)
        self._name, self._mapping = name, mapping
        self._identity = identity[0], identity[1]
        self._remember()

    def _remember(self) -> None:
        """Let other instances in this process share the mapping."""
        mapping, identity = self._mapping, self._identity
        if mapping is not None and identity is not None:
            _mappings[self._key(identity)] = mapping

    def _key(self, identity: tuple[int, int]) -> _Key:
        return (*identity, self._readonly, self._track is None)

    def _tell_tracker(self, verb: str) -> None:
        from multiprocessing import resource_tracker

        getattr(resource_tracker, verb)(self._name, "shared_memory")

    # ---- the standard library's interface

    def __reduce__(self) -> Any:
        return _loaders.shared_memory, (type(self), self.name, self._track, self._readonly)

    def __repr__(self) -> str:
        state = ", closed" if self._mapping is None else ", readonly=True" if self._readonly else ""
        return f"{type(self).__name__}({self.name!r}, size={self.size}{state})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def buf(self) -> memoryview:
        """The bytes, as a memoryview. Views of it, and arrays over it, stay valid after `close` and `unlink`.

        Raises
        ------
        ClosedError
            After `close`; a `ValueError`.
        """
        if self._buf is None:
            from copyless.errors import ClosedError

            raise ClosedError(f"this {type(self).__name__} is closed")
        return self._buf

    @property
    def name(self) -> str:
        """The unique name, by which other processes attach the block."""
        return (self._name or "").removeprefix("/")

    @property
    def size(self) -> int:
        """Size in bytes."""
        return self._size

    def fileno(self) -> int:
        """A new descriptor of the block at each call. The caller must close it.

        Raises
        ------
        FileNotFoundError
            After `unlink`.
        """
        path = os.path.join(os.fsencode(OBJECTS_DIRECTORY), _file_name(_str(self._name)))
        fd = os.open(path, (os.O_RDONLY if self._readonly else os.O_RDWR) | _SAFELY)
        st = os.fstat(fd)
        if (st.st_dev, st.st_ino) != self._identity:
            os.close(fd)
            raise FileNotFoundError(errno.ENOENT, "the name now belongs to another block", self.name)
        return fd

    def close(self) -> None:
        """Close this instance's access to the block. Never raises, and may be called again.

        The memory is unmapped when the last view of it is deleted, or at once if there is none.
        """
        mapping, identity = self._mapping, self._identity
        self._buf = self._mapping = None
        stands = None if self._stands is None else self._stands()
        if stands is not None:
            stands._close()
        if mapping is None or identity is None or mapping.nbytes > _RECENT_BYTES:
            return
        if _mappings.get(self._key(identity)) is mapping:
            _recent.append((identity, mapping))

    def unlink(self) -> None:
        """Remove the name. The memory is freed when the last process has closed the block.

        Raises
        ------
        FileNotFoundError
            If the name was already removed.
        """
        if not self._name:
            return
        text, identity = _file_name(self._name), self._identity
        cached = None if identity is None else _forget(identity)
        spare = None
        if cached is not None and identity is not None and self._spares is not None and exists(self._name, identity):
            spare = self._spares.of(identity)
        try:
            if spare is None:
                os.unlink(OBJECTS_PREFIX + text)
            else:
                spare.rename(text)
        except FileNotFoundError:
            if spare is not None:
                spare.discard()
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self._name) from None
        if self._track is None and identity is not None:
            ensure_open()
            _posix.posix_forget(text, *identity)
        if self._track:
            self._tell_tracker("unregister")
        if spare is not None and cached is not None and self._spares is not None:
            heir = cached.make_heir()
            del cached
            if spare.settle(heir):
                self._spares.keep(spare)
            else:
                spare.discard()


# Mappings of this process by (device, inode, read-only, tracked), so that a second instance of a block costs one system
# call. The last few small blocks that were closed stay mapped, because workers attach and close the same block for
# every task. If another process unlinks such a block, its memory stays until the mapping is evicted: 4 MiB at most.
_Key = tuple[int, int, bool, bool]
_mappings: weakref.WeakValueDictionary[_Key, _blocks.Mapping] = weakref.WeakValueDictionary()
_recent: collections.deque[tuple[tuple[int, int], _blocks.Mapping]] = collections.deque(maxlen=4)
_RECENT_BYTES = 1 << 20


def _forget(identity: tuple[int, int]) -> _blocks.Mapping | None:
    """Drop the kept mappings of a block that is about to be unlinked, unless an instance uses them.

    Returns the mapping that was kept, if it is writable and holds the block.
    """
    for readonly in (False, True):
        for tracked in (False, True):
            _mappings.pop((*identity, readonly, tracked), None)
    kept, found = [], None
    for entry in list(_recent):
        if entry[0] != identity:
            kept.append(entry)
        elif not entry[1].readonly:
            found = entry[1]
    _recent.clear()
    _recent.extend(kept)
    return found


class _posixshmem:
    """The functions of the standard library's C module that programs call.

    If such a function unlinks a block of copyless, its entry in the registry is removed too.
    """

    @staticmethod
    def shm_open(path: str, flags: int, mode: int = 511) -> int:
        return int(_posix_module().shm_open(path, flags, mode))

    @staticmethod
    def shm_unlink(path: str) -> None:
        there = _posix.file_identity(OBJECTS_PREFIX + _file_name(path))
        _posix_module().shm_unlink(path)
        if there is not None:
            _forget(there[:2])
            ensure_open()
            _posix.posix_forget(_file_name(path), *there[:2])


def _posix_module() -> Any:
    return importlib.import_module("_posixshmem")


def exists(name: str, identity: tuple[int, int]) -> bool:
    """Whether a name still belongs to the block with this device and inode."""
    there = _posix.file_identity(OBJECTS_PREFIX + _file_name("/" + name.removeprefix("/")))
    return there is not None and there[:2] == identity


def discard(name: str, identity: tuple[int, int]) -> None:
    """Unlink a block by its name, unless the name now belongs to another block."""
    if exists(name, identity):
        text = _file_name("/" + name.removeprefix("/"))
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(os.fsencode(OBJECTS_DIRECTORY), text))
        _forget(identity)
        _posix.posix_forget(text, *identity)


def _str(name: object) -> str:
    if not isinstance(name, str):
        raise TypeError(f"a name must be a str, not {type(name).__name__!r}")
    return name


class ShareableList(_list._Slots, Generic[T]):
    """ShareableList(sequence=None, *, name=None)

    A list of fixed length in shared memory. Its items are int (64 bits), float, bool, str, bytes or None.

    Mirrors `multiprocessing.shared_memory.ShareableList`. Any process can read and replace items. Unlike there, bytes
    and text are returned exactly, including trailing zeros, and a reader never sees half of a value that another
    process writes.

    Parameters
    ----------
    sequence
        The items. A text or bytes item has room for twice its bytes (in units of 8, at least 8).
    name
        The name of the new list; without `sequence`, of the list to attach.

    Raises
    ------
    TypeError, OverflowError
        For an item of another type, or an integer of more than 64 bits. Nothing is created or changed.
    ValueError
        For a text or bytes item that is longer than the room of its slot ("exceeds available storage"). Nothing is
        changed.
    CorruptSegmentError
        If the name belongs to something else, such as a list of the standard library.
    OutOfSharedMemory
        If there is no room.

    Notes
    -----
    Pickles as its name. Reading an item takes no lock and no system call; writing one takes the lock of its slot. The
    attribute `shm` is the `SharedMemory` of the list, with `close` and `unlink`.

    Examples
    --------
    >>> from copyless.shared_memory import ShareableList
    >>> items = ShareableList(["howdy", b"zeros\\0\\0", 2.5, 42, True, None])
    >>> items[0] = "hello"; items[3] += 1
    >>> list(items)
    ['hello', b'zeros\\x00\\x00', 2.5, 43, True, None]
    >>> items.shm.unlink()
    """

    _family = True

    if TYPE_CHECKING:  # methods that the Cython class has, with the type of the items

        @property
        def shm(self) -> SharedMemory: ...
        def __getitem__(self, position: int) -> T: ...
        def __setitem__(self, position: int, value: T) -> None: ...

    @overload
    def __init__(self, sequence: None = None, *, name: str | None = None) -> None: ...
    @overload
    def __init__(self, sequence: Iterable[T], *, name: str | None = None) -> None: ...
    @overload
    def __init__(
        self: ShareableList[float | str | bytes | None],
        sequence: Iterable[float | str | bytes | None],
        *,
        name: str | None = None,
    ) -> None: ...
    def __init__(self, sequence: Iterable[object] | None = None, *, name: str | None = None) -> None:
        if sequence is None and name is not None:
            self._stand(SharedMemory(name))
            self.shm._stands = weakref.ref(self)
            return
        items = list(() if sequence is None else sequence)
        for item in items:
            _list.check_value(item)
        rooms = [_list.room_for(item) for item in items]
        size = _list.bytes_for(rooms)
        if size == 0:
            raise OverflowError(f"a list of {len(items):,} items is too large")
        shm = SharedMemory.__new__(SharedMemory)
        shm._family = self._family
        shm._fill = lambda mapping: self._begin(mapping, rooms, items)
        shm.__init__(name, create=True, size=size)  # type: ignore[misc]
        del shm._fill
        shm._stands = weakref.ref(self)
        self._own(shm)

    def __reduce__(self) -> Any:
        return _loaders.shareable_list, (type(self), self.shm.name)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({list(self)}, name={self.shm.name!r})"

    def __eq__(self, other: object) -> Any:
        if not isinstance(other, (ShareableList, list, tuple)):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    def __iter__(self) -> Iterator[T]:
        return (self[at] for at in range(len(self)))

    def __contains__(self, value: object) -> bool:
        return any(item is value or item == value for item in self)

    def count(self, value: T) -> int:
        """How often a value occurs in the list."""
        return sum(item == value for item in self)

    def index(self, value: T) -> int:
        """The first position of a value. ValueError if the list does not have it."""
        for at, item in enumerate(self):
            if item == value:
                return at
        raise ValueError(f"{value!r:.80} not in this container")

    def _get_packing_format(self, position: int) -> str:
        kind, room = self._kind_and_room(position)
        formats = {"none": "xxxxxx?x", "bool": "xxxxxxx?", "int": "q", "float": "d"}
        return formats.get(kind) or f"{room}s"

    @property
    def format(self) -> str:
        """The present content of each slot in the codes of `struct`, as in the standard library."""
        return "".join(self._get_packing_format(at) for at in range(len(self)))

    if not TYPE_CHECKING:
        __class_getitem__ = classmethod(types.GenericAlias)


if not TYPE_CHECKING:  # so that a type checker reports a misspelt name
    __getattr__, __dir__ = standard_names(__name__, "multiprocessing.shared_memory")
