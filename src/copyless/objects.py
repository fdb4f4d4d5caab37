"""What locks, queues and rings have in common: they lie in a block of their own and are known by name or handle."""

from __future__ import annotations

import copyreg
from collections.abc import Callable
from typing import Any, ClassVar

from copyless import _cooperative, pickling
from copyless._core import _blocks
from copyless.errors import ClosedError
from copyless.storage.names import begin_with, check_init
from copyless.storage.objects import obtain

__all__ = ["Shared", "load", "pickled_by"]

Init = Callable[[Any], Any]
Naming = tuple[str | None, bool, bool, Init | None]  # name, persist, exist_ok, init

SILENT = 1  # flag of a lock's head: recover="silent"


class Shared:
    """What all have in common: how they are made, found by name, pickled and shown.

    A pickle of one of our own classes is its loader and a handle. What is more than that (a user's subclass, attributes) is
    pickled as objects of Python are: `__getstate__` gives the handle with the attributes, `__setstate__` takes them, and a
    subclass overrides and calls them as it does with the standard library's.
    """

    name: str | None = None
    _loader: ClassVar[Any] = None  # of `_loaders`: what the pickles of this class, and of its subclasses, name
    _remade: ClassVar[frozenset[str]] = frozenset()  # attributes that standing on the block gives, so they do not travel

    @classmethod
    def _from_block(cls, block: _blocks.Block) -> Any:
        _cooperative.look()
        obj = cls.__new__(cls)
        obj._stand(block)  # type: ignore[attr-defined]
        obj._stood()
        return obj

    def _stood(self) -> None:
        """The object stands on its block: take over what its head says."""
        if hasattr(self, "silent"):
            self.silent = bool(self._flags & SILENT)  # type: ignore[attr-defined]

    def _obtain(
        self,
        naming: Naming,
        make: Callable[[], _blocks.Block],
        kinds: tuple[int, ...],
        recover: str | None = None,
    ) -> bool:
        """Stand on a new block, or on the one that has the name; whether it is new. `make`: as for `storage.objects.obtain`."""
        _cooperative.look()
        name, persist, exist_ok, init = naming
        check_init(init)

        def stand(block: _blocks.Block) -> None:
            self._stand(block)  # type: ignore[attr-defined]
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

    @property
    def _key(self) -> tuple[int, int, int]:
        """Which object it is, among all that there were: a block is used again, and there may be several stores."""
        return self.block.identity  # type: ignore[attr-defined,no-any-return]

    def __reduce__(self) -> Any:
        kind: Any = type(self)
        loader = kind._loader
        if kind in _ours and not self._has_more():
            return loader, (pickling.noted_handle(self),)  # type: ignore[arg-type]
        if hasattr(self, "__getnewargs_ex__"):
            return loader, (kind, *self.__getnewargs_ex__()), self.__getstate__()
        if hasattr(self, "__getnewargs__"):
            return loader, (kind, self.__getnewargs__()), self.__getstate__()
        return loader, (kind,), self.__getstate__()

    def _has_more(self) -> bool:
        """Whether there are attributes that a handle does not tell."""
        return len(self.__dict__) > len(self._remade)

    def _attributes(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in self._remade}

    def __getstate__(self) -> Any:
        """What `__setstate__` takes: where the object lies, and its attributes, those of `__slots__` too."""
        names = copyreg._slotnames(type(self))  # type: ignore[attr-defined]
        slots = {name: getattr(self, name) for name in names if hasattr(self, name)}
        return pickling.noted_handle(self), self._attributes(), slots  # type: ignore[arg-type]

    def __setstate__(self, state: Any) -> None:
        _cooperative.look()
        handle, attributes, slots = state
        self._stand(pickling.block_of(handle))  # type: ignore[attr-defined]
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


_ours: set[type] = set()


def pickled_by(loader: Callable[..., Any]) -> Callable[[type], Any]:
    """Says for a class of ours which loader its pickles name."""

    def say(kind: Any) -> Any:
        kind._loader = staticmethod(loader)
        _ours.add(kind)
        return kind

    return say


def load(kind: Any, source: Any, arguments: Any = (), keywords: Any = None) -> Any:
    """What a loader makes of a handle: a `kind` of ours; of a subclass: an object of it, which its `__setstate__` completes."""
    if type(source) is bytes:
        return kind._from_block(pickling.block_of(source))
    return source.__new__(source, *arguments, **(keywords or {}))
