"""`SharedMemory` and `ShareableList`: the standard library's, without its tracker and without their losses.

Departs from `multiprocessing.shared_memory` where that loses, leaks or crashes:

* attaching never destroys, there is no tracker process and nothing is printed at exit;
* a new block is sized, reserved and mapped before its name appears, so an attacher never meets an empty one, and a full
  mount raises `OutOfSharedMemory` instead of killing the first writer;
* `close` never raises; memory stays while any view of it is alive, the descriptor goes at once;
* with ``track=None`` (the default) the block goes when the process family that created it, and all who attached through
  copyless, have ended, however they ended.

It stays a plain POSIX object at the standard library's own place and name: programs on either module share by name.
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
from typing import TYPE_CHECKING, Any

from copyless import _loaders
from copyless._core import _blocks, _list, _posix, _store
from copyless._core.failures import out_of_shared_memory
from copyless._standard_names import standard_names
from copyless.storage.spares import PLACE_PREFIX, Spare, Spares
from copyless.storage.store import need

__all__ = ["ShareableList", "SharedMemory"]

_USE_POSIX = True
_SHM_NAME_PREFIX = "/psm_"
_PLACE = "/dev/shm"
_SAFELY = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK  # a FIFO of that name is empty, and does not wait
_O_CREX = os.O_CREAT | os.O_EXCL


def _make_filename() -> str:
    """A random name that fits the shortest limit of any system."""
    return _SHM_NAME_PREFIX + secrets.token_hex(4)


def _file_name(name: str) -> bytes:
    """The name as a file's, checked before anything is made."""
    text = os.fsencode(name.removeprefix("/"))
    if b"\0" in text:
        raise ValueError(f"embedded null character in the name {name!r}")
    if not text or text in (b".", b"..") or b"/" in text:
        raise ValueError(f"a name of shared memory must not be empty or hold '/': {name!r}")
    if len(text) > 255:
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), name)
    return text


class SharedMemory:
    """SharedMemory(name=None, create=False, size=0, *, track=None, readonly=False, mode=0o600)

    A block of raw bytes, created or attached by name. Mirrors `multiprocessing.shared_memory.SharedMemory`.

    Parameters
    ----------
    name : str, optional
        Without ``/``; a new block gets a random one when it is not given.
    create : bool
        Make a new block; else attach one that exists.
    size : int
        Bytes of a new block, above 0; ignored when attaching.
    track : bool, optional
        None: the block goes when its creator's process family and all attachers have ended. False: it stays until
        `unlink`. True: as the standard library since 3.13, by its resource tracker.
    readonly : bool
        Map it for reading only.
    mode : int
        Permission bits of a new block.

    Raises
    ------
    FileExistsError, FileNotFoundError, PermissionError
        As the standard library.
    OutOfSharedMemory
        When there is no room; nothing half made remains.
    ValueError
        For a size or a name that cannot be.

    Notes
    -----
    Pickles as its name: after the last `unlink`, loading raises `FileNotFoundError`. For memory that passes from hand to
    hand use `copyless.Memory` or an array.

    Examples
    --------
    >>> from copyless.shared_memory import SharedMemory
    >>> with SharedMemory(create=True, size=16) as shm:
    ...     shm.buf[:5] = b"hello"
    ...     bytes(SharedMemory(shm.name).buf[:5])
    ...     shm.unlink()
    b'hello'
    """

    # Class attributes as the standard library has them: subclasses override _flags and _mode.
    _name: str | None = None
    _mapping: _blocks.Mapping | None = None
    _buf: memoryview | None = None
    _flags = os.O_RDWR
    _mode = 0o600
    _prepend_leading_slash = True
    _identity: tuple[int, int] | None = None
    _size = 0
    _stands: weakref.ref[ShareableList] | None = None  # whom to tell that this was closed
    _family = True  # it lives as long as its creator's process family; else as long as any process holds it
    _spares: Spares | None = None  # of its manager: where a small one goes when it is unlinked, and comes from
    _fill: Callable[[_blocks.Mapping], None] | None = None  # writes what must lie in a block before it has a name

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
        need()
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
            _store.scan()  # a dead creator's name is free again
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
            source = f"/proc/self/fd/{fd}"
            self._publish(wanted, mapping, identity, lambda path: os.link(source, path, src_dir_fd=fd))
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
                link(PLACE_PREFIX + text)
                return
            except FileExistsError:
                if self._track is None:
                    _posix.posix_forget(text, *identity)
                    mapping.forget()
                if wanted is not None:
                    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), self._name) from None

    def _reserve(self, size: int) -> int:
        """A nameless file of `size` bytes that are really there."""
        try:
            fd = os.open(_PLACE, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, self._mode)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise out_of_shared_memory(errno.ENOSPC, "the mount has no free inode", size, _PLACE) from None
            raise OSError(error.errno, f"{error.strerror}: shared memory needs a tmpfs at {_PLACE}", _PLACE) from None
        try:
            os.fchmod(fd, self._mode)
            if size >= 1 << 62:
                raise OverflowError(f"a block of {size:,} bytes")
            _posix.check_capacity(fd, size)
            os.posix_fallocate(fd, 0, size)
        except BaseException as error:
            os.close(fd)
            if isinstance(error, MemoryError):
                raise out_of_shared_memory(
                    errno.ENOSPC, str(error.args[1]).split(";")[0].removeprefix("out of shared memory: "), size, _PLACE
                ) from None
            if isinstance(error, OverflowError) or (
                isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EFBIG)
            ):
                raise out_of_shared_memory(errno.ENOSPC, "the mount has no room", size, _PLACE) from None
            raise
        return fd

    def _attach(self, name: str, size: int) -> None:
        text = _file_name(name)
        path = PLACE_PREFIX + text
        there = _posix.file_identity(path)
        mapping = None if there is None else _mappings.get(self._key(there[:2]))
        # Asked again, now that it cannot become another block: we have it.
        if there is not None and mapping is not None and there == _posix.file_identity(path) and mapping.nbytes == there[2]:
            self._name, self._mapping, self._identity = name, mapping, (there[0], there[1])
            return
        flags = self._flags & ~os.O_RDWR | (os.O_RDONLY if self._readonly else os.O_RDWR) | _SAFELY
        deadline = None
        while True:
            try:
                mapping, *identity = _posix.posix_open(
                    path, text, flags, self._mode, self._readonly, self._track is None
                )
            except OSError as error:
                raise OSError(error.errno, os.strerror(error.errno or 0), name) from None
            if mapping is not None:
                break
            # The standard library makes a block in two steps; an empty one is most likely about to be sized.
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
        """Let further instances of this process share the mapping."""
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

    def __enter__(self) -> SharedMemory:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def buf(self) -> memoryview:
        """The bytes. Views of it, and arrays over it, stay valid after `close` and `unlink`.

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
        """Unique name, by which others attach."""
        return (self._name or "").removeprefix("/")

    @property
    def size(self) -> int:
        """Size in bytes."""
        return self._size

    def fileno(self) -> int:
        """A descriptor of the block, opened anew at each call; it is the caller's to close.

        Raises
        ------
        FileNotFoundError
            After `unlink`.
        """
        path = os.path.join(os.fsencode(_PLACE), _file_name(_str(self._name)))
        fd = os.open(path, (os.O_RDONLY if self._readonly else os.O_RDWR) | _SAFELY)
        st = os.fstat(fd)
        if (st.st_dev, st.st_ino) != self._identity:
            os.close(fd)
            raise FileNotFoundError(errno.ENOENT, "the name has been given to another block", self.name)
        return fd

    def close(self) -> None:
        """Let this instance's access go. Never raises; may be called again.

        The memory is unmapped when the last view made from it is gone, at once if there is none.
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
        """Take the name away; the memory goes when the last process has closed it.

        Raises
        ------
        FileNotFoundError
            When the name is gone already.
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
                os.unlink(PLACE_PREFIX + text)
            else:
                spare.rename(text)
        except FileNotFoundError:
            if spare is not None:
                spare.discard()
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self._name) from None
        if self._track is None and identity is not None:
            need()
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


# Mappings of this process by device, inode, read-only, tracked: a second instance of a block costs one system call.
# The last few small ones closed stay mapped, because workers attach and close the same block for every task; a block
# unlinked meanwhile by another process stays in memory until they are pushed out: 4 MiB at most.
_Key = tuple[int, int, bool, bool]
_mappings: weakref.WeakValueDictionary[_Key, _blocks.Mapping] = weakref.WeakValueDictionary()
_recent: collections.deque[tuple[tuple[int, int], _blocks.Mapping]] = collections.deque(maxlen=4)
_RECENT_BYTES = 1 << 20


def _forget(identity: tuple[int, int]) -> _blocks.Mapping | None:
    """A block is to be unlinked: keep nothing of it that no instance uses. What was kept, if it may be written and is held."""
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
    """What programs call of the standard library's module of C. A block of ours that is unlinked by it leaves our books, too."""

    @staticmethod
    def shm_open(path: str, flags: int, mode: int = 511) -> int:
        return int(_posix_module().shm_open(path, flags, mode))

    @staticmethod
    def shm_unlink(path: str) -> None:
        there = _posix.file_identity(PLACE_PREFIX + _file_name(path))
        _posix_module().shm_unlink(path)
        if there is not None:
            _forget(there[:2])
            need()
            _posix.posix_forget(_file_name(path), *there[:2])


def _posix_module() -> Any:
    return importlib.import_module("_posixshmem")


def exists(name: str, identity: tuple[int, int]) -> bool:
    """Whether a name is still that of the block with this device and inode."""
    there = _posix.file_identity(PLACE_PREFIX + _file_name("/" + name.removeprefix("/")))
    return there is not None and there[:2] == identity


def discard(name: str, identity: tuple[int, int]) -> None:
    """Unlink a block by its name, unless the name is another's by now."""
    if exists(name, identity):
        text = _file_name("/" + name.removeprefix("/"))
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(os.fsencode(_PLACE), text))
        _forget(identity)
        _posix.posix_forget(text, *identity)


def _str(name: object) -> str:
    if not isinstance(name, str):
        raise TypeError(f"a name is a str, not {type(name).__name__!r}")
    return name


class ShareableList(_list._Slots):
    """ShareableList(sequence=None, *, name=None)

    A list of fixed length in shared memory, of int (64 bits), float, bool, str, bytes and None, whose items any process
    reads and replaces. Mirrors `multiprocessing.shared_memory.ShareableList`, and keeps what that loses: bytes and text come
    back exactly, trailing zeros too, and a reader never sees half of a value that another process is writing.

    Parameters
    ----------
    sequence
        The items. A text or bytes item keeps room for as many bytes as it has (at least 8, in eights) times two.
    name
        Of the new list; without a sequence, of the one to attach.

    Raises
    ------
    TypeError, OverflowError
        For an item of another type, or an integer beyond 64 bits; nothing is made, nothing is changed.
    ValueError
        For a text or bytes item longer than the room of its slot ("exceeds available storage"); nothing is changed.
    CorruptSegmentError
        When the name is of something else, such as a list that the standard library made.

    Notes
    -----
    Pickles as its name. Reading takes no lock and no system call; writing one uncontended lock of its slot. It lives in
    `shm`, a `SharedMemory`, whose `close` and `unlink` are its own.

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

    def __init__(self, sequence: Iterable[Any] | None = None, *, name: str | None = None) -> None:
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

    __hash__ = None  # type: ignore[assignment]

    def __iter__(self) -> Iterator[Any]:
        return (self[at] for at in range(len(self)))

    def __contains__(self, value: object) -> bool:
        return any(item is value or item == value for item in self)

    def count(self, value: Any) -> int:
        """How often a value is in it."""
        return sum(item == value for item in self)

    def index(self, value: Any) -> int:
        """The first position of a value; ValueError when there is none."""
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
        """What each slot holds now, in the codes of `struct` as the standard library gives them."""
        return "".join(self._get_packing_format(at) for at in range(len(self)))

    __class_getitem__: Any = classmethod(types.GenericAlias)


if not TYPE_CHECKING:  # a checker shall see a misspelt name
    __getattr__, __dir__ = standard_names(__name__, "multiprocessing.shared_memory")
