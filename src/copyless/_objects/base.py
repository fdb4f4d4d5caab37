"""The common parts of locks, queues and rings: each lies in its own block and is found by name or handle."""

from __future__ import annotations

import copyreg
from collections.abc import Callable

from copyless._core import _blocks
from copyless._storage.store import ensure_open
from copyless._threads import is_patched
from copyless._transfer import reductions
from copyless._typing import TYPE_CHECKING, Any, ClassVar, NoReturn, TypeVar
from copyless.errors import ClosedError

__all__ = ["Shared", "load", "pickled_by"]

K = TypeVar("K", bound="type[Shared]")
S = TypeVar("S", bound="Shared")
Init = Callable[[Any], object]
State = tuple[bytes, dict[str, object], dict[str, object]]  # handle, attributes, slots
Naming = tuple[str | None, bool, bool, Init | None]  # name, persist, exist_ok, init

if TYPE_CHECKING:
    from typing import Literal, TypedDict

    class Options(TypedDict, total=False):
        """The options of every object."""

        name: str | None
        persist: bool
        exist_ok: bool
        init: Init | None

    class LockOptions(Options, total=False):
        recover: Literal["raise", "silent"] | None

    class SemaphoreOptions(LockOptions, total=False):
        robust: bool

    class RWLockOptions(LockOptions, total=False):
        readers: int

    class ConditionOptions(Options, total=False):
        waiters: int

    class QueueOptions(Options, total=False):
        maxbytes: int

    class RingOptions(Options, total=False):
        allow_block: bool
        block_timeout: float | None
        members: int

    class JoinableQueueOptions(QueueOptions, total=False):
        redeliver: bool
        max_deliveries: int | None
        leases: int | None


SILENT = 1  # flag in the head of a lock: recover="silent"


class Shared:
    """How shared objects are made, found by name, pickled and shown.

    The pickle of a class of copyless is its loader and a handle. Anything more (a subclass of the user, attributes) is
    pickled like other Python objects: `__getstate__` returns the handle and the attributes, `__setstate__` restores
    them, and a subclass overrides and calls them as with the standard library's classes.
    """

    name: str | None = None
    _loader: ClassVar[str] = ""  # the function of `_loaders` that pickles of this class and its subclasses name
    _in_tasks: ClassVar[str | None] = (
        None  # which methods of `cooperative` this class waits with under gevent and eventlet
    )
    _remade: ClassVar[frozenset[str]] = frozenset()  # attributes that are read from the block, so they are not pickled

    if TYPE_CHECKING:  # what the Cython class beside this one has
        block: _blocks.Block

        def _stand(self, block: _blocks.Block) -> None: ...
        @property
        def _address(self) -> tuple[int, int]: ...
        @property
        def _flags(self) -> int: ...

    def __init_subclass__(cls, **options: object) -> None:
        super().__init_subclass__(**options)
        if _cooperative:
            from copyless._objects import cooperative

            cooperative.cover(cls)

    @classmethod
    def _from_block(cls: type[S], block: _blocks.Block) -> S:
        _look_for_tasks()
        obj = cls.__new__(cls)
        obj._stand(block)
        obj._stood()
        return obj

    def _stood(self) -> None:
        """Called when the object has its block: read the head."""
        if hasattr(self, "silent"):
            self.silent: bool = bool(self._flags & SILENT)

    def _obtain(
        self,
        naming: Naming,
        make: Callable[[], _blocks.Block],
        kinds: tuple[int, ...],
        recover: str | None = None,
    ) -> bool:
        """Use a new block, or the block of the name. Returns whether it is new. `make`: as for `obtain`."""
        _look_for_tasks()
        name, persist, exist_ok, init = naming
        if init is not None:
            from copyless._transfer.names import begin_with, check_init

            check_init(init)

        def stand(block: _blocks.Block) -> None:
            self._stand(block)
            if name is not None or self.name is not None:
                self.name = name
            self._stood()

        def begin(block: _blocks.Block) -> None:
            stand(block)
            begin_with(init, self, name)

        block, new = obtain(name, persist, exist_ok, make, None if init is None else begin, kinds)
        if not new or init is None:
            stand(block)
        if recover is not None and not new:
            self.silent = recover == "silent"
        return new

    def _look_at_name(self) -> None:
        from copyless._transfer.names import look_at_name

        look_at_name(self)

    @property
    def _key(self) -> tuple[int, int, int]:
        """Identifies the object among all that ever existed: blocks are reused, and there may be several stores."""
        return self.block.identity

    def __reduce__(self) -> tuple[object, ...]:
        from copyless import _loaders

        kind = type(self)
        loader = getattr(_loaders, kind._loader)
        if kind in _ours and not self._has_more():
            return loader, (reductions.noted_handle(self),)
        if hasattr(self, "__getnewargs_ex__"):
            return loader, (kind, *self.__getnewargs_ex__()), self.__getstate__()
        if hasattr(self, "__getnewargs__"):
            return loader, (kind, self.__getnewargs__()), self.__getstate__()
        return loader, (kind,), self.__getstate__()

    def _has_more(self) -> bool:
        """Whether the object has attributes that its handle does not restore."""
        return len(self.__dict__) > len(self._remade)

    def _attributes(self) -> dict[str, object]:
        return {name: value for name, value in self.__dict__.items() if name not in self._remade}

    def __getstate__(self) -> State:
        """The argument of `__setstate__`: the handle and the attributes, including those in `__slots__`."""
        names = copyreg._slotnames(type(self))  # type: ignore[attr-defined]
        slots = {name: getattr(self, name) for name in names if hasattr(self, name)}
        return reductions.noted_handle(self), self._attributes(), slots

    def __setstate__(self, state: State) -> None:
        _look_for_tasks()
        handle, attributes, slots = state
        self._stand(reductions.block_of(handle))
        self._stood()
        self.__dict__.update(attributes)
        for name, value in slots.items():
            setattr(self, name, value)

    def __repr__(self) -> str:
        name = "" if self.name is None else f" {self.name!r}"
        try:
            state = self._state()
        except ClosedError:
            state = "closed"
        return f"<{type(self).__name__}{name} {state}>"

    def _state(self) -> str:
        raise NotImplementedError


_cooperative = False  # whether tasks share one thread


def _look_for_tasks() -> None:
    """Called when an object is made or received: make all classes wait cooperatively, if tasks share one thread."""
    global _cooperative
    if not _cooperative and is_patched():
        from copyless._objects import cooperative

        _cooperative = True
        cooperative.cover_all(Shared)


_ours: set[type] = set()


def pickled_by(loader: str) -> Callable[[K], K]:
    """Sets the loader that the pickles of a class name: a function of `_loaders`."""

    def say(kind: K) -> K:
        kind._loader = loader
        _ours.add(kind)
        return kind

    return say


def obtain(
    name: str | None,
    persist: bool,
    exist_ok: bool,
    make: Callable[[], _blocks.Block],
    begin: Callable[[_blocks.Block], None] | None,
    kinds: tuple[int, ...],
) -> tuple[_blocks.Block, bool]:
    """A new block with an object, or the existing block of the name: (block, whether it is new).

    `make` fills the block completely, and `begin` does what the user wants done first. Once the block is published, any
    process may use it.
    """
    ensure_open()
    if name is None:
        if persist:
            raise ValueError("persist=True needs a name: give name=")
        block = make()
        if begin is not None:
            begin(block)
        return block, True
    from copyless._core import _names
    from copyless._transfer import names
    from copyless._transfer.names import check_name, find_lasting, what_lies_in

    text = check_name(name)

    def look(turn: bool) -> tuple[_blocks.Block, bool] | None:
        found = find_lasting(name, text, turn)
        if found is None:
            return None
        block, described = found.block, found.described
        if not exist_ok:
            raise FileExistsError(
                17,
                f"the name is taken ({what_lies_in(block, described)}): open it with copyless.open({name!r}), "
                f"pass exist_ok=True, or remove the name with copyless.unlink({name!r})",
                name,
            )
        if described or _blocks.object_kind(block) not in kinds:
            _refuse(name, what_lies_in(block, described))
        names.tell_if_it_goes(name, found, persist)
        return block, False

    def make_it() -> tuple[_blocks.Block, bool] | None:
        block = make()
        if begin is not None:
            begin(block)
        return (block, True) if _names.publish(block, text, 0, 0, persist) else None

    return names.once(name, text, look, make_it)


def _refuse(name: str, what: str) -> NoReturn:
    raise FileExistsError(
        17,
        f"the name is taken by an object of another kind ({what}): choose another name, or remove this "
        f"one with copyless.unlink({name!r})",
        name,
    )


def load(
    kind: type[S],
    source: bytes | type[S],
    arguments: tuple[object, ...] = (),
    keywords: dict[str, object] | None = None,
) -> S:
    """The object for a handle, in a loader: of the class `kind`; or an empty object of a subclass, which its
    `__setstate__` completes.
    """
    if isinstance(source, bytes):
        return kind._from_block(reductions.block_of(source))
    return source.__new__(source, *arguments, **(keywords or {}))
