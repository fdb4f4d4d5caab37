"""What locks, queues and rings have in common: they lie in a block of their own and are known by name or handle."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from copyless import pickling
from copyless._core import _blocks
from copyless.errors import ClosedError
from copyless.storage.objects import obtain

__all__ = ["Shared"]

SILENT = 1  # flag of a lock's head: recover="silent"


class Shared:
    """What all have in common: how they are made, found by name, pickled and shown."""

    name: str | None = None

    @classmethod
    def _from_block(cls, block: _blocks.Block) -> Any:
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
        name: str | None,
        persist: bool,
        make: Callable[[], _blocks.Block],
        kinds: tuple[int, ...],
        recover: str | None,
    ) -> bool:
        block, new = obtain(name, persist, make, kinds)
        self._stand(block)  # type: ignore[attr-defined]
        self.name = name
        self._stood()
        if recover is not None and not new:
            self.silent = recover == "silent"
        return new

    @property
    def _key(self) -> int:
        return self.block.number  # type: ignore[attr-defined,no-any-return]

    def __reduce__(self) -> Any:
        return pickling.reduce_object(self)  # type: ignore[arg-type]

    def __repr__(self) -> str:
        name = "" if self.name is None else f" {self.name!r}"
        try:
            state = self._state()
        except ClosedError:
            state = "closed"
        return f"<{type(self).__name__}{name} {state}>"

    def _state(self) -> str:
        raise NotImplementedError
