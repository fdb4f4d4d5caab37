"""How a task is pickled for the workers: its function by name, by value, or with the redefinitions of a session."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Sequence

from copyless._first_use import first_use
from copyless._transfer import _plain
from copyless._transfer.sealed import seal
from copyless._typing import TYPE_CHECKING, Any
from copyless._workers.named_functions import WITH_NAMES, name_of
from copyless._workers.protocol import NAMED
from copyless._workers.snapshot import Snapshot, is_interactive
from copyless._workers.starting import main_must_travel, start_method

if TYPE_CHECKING:
    from copyless._workers.main_changes import Changes

__all__ = ["TaskSealer"]


class TaskSealer:
    """Packs tasks for the workers of one pool.

    Parameters
    ----------
    context
        The context that starts the workers.
    initializer
        The function that each worker calls first.
    lasting
        Whether a task may be unpickled more than once, because it may run again.
    """

    def __init__(self, context: object, initializer: object, lasting: bool) -> None:
        self._by_value = main_must_travel(context)
        self._forks = start_method(context) == "fork"
        self._initializer, self._lasting = initializer, lasting
        self._lock = threading.Lock()
        self._snapshots: dict[object, Snapshot] = {}  # in a session: the names of `__main__` when a worker started
        self._own: frozenset[str] | None = None  # names of `__main__` that the initializer sets
        self._changes: Changes | None = None
        self._last: tuple[Callable[[], object], bytes | None] = lambda: None, None  # a function, and its name

    def snapshot(self) -> Snapshot | None:
        """The names of `__main__` in a session; taken before workers are started. None in a program that has a file."""
        return Snapshot(self._forks) if is_interactive() else None

    def add_worker(self, worker: object, snapshot: Snapshot | None) -> None:
        """Record a worker that has started and has `__main__` as it was then."""
        if snapshot is not None:
            with self._lock:
                if self._own is None:
                    self._own = self._names_set()
                self._snapshots[worker] = snapshot

    def _names_set(self) -> frozenset[str]:
        """The names of `__main__` that the initializer sets."""
        if self._initializer is None:
            return frozenset()
        with first_use:
            from copyless._workers.main_changes import names_set_by
        return names_set_by(self._initializer)

    def remove_worker(self, worker: object) -> None:
        """Forget a worker that has ended."""
        with self._lock:
            self._snapshots.pop(worker, None)

    def seal(self, function: object, style: int, batch: Sequence[object]) -> Any:
        """Pack tasks that call one function."""
        if self._snapshots and not self._by_value and is_interactive():
            with self._lock:
                snapshots = list(self._snapshots.values())
            with first_use:
                from copyless._workers.main_changes import changes_since
            changes = self._changes = changes_since(snapshots, self._own or frozenset(), self._changes)
            if changes is not None:
                return self._seal_changed(changes, function, style, batch)
        name = None
        if type(function) in WITH_NAMES and not self._by_value:
            last, name = self._last
            if last() is not function:
                self._last = weakref.ref(function), (name := name_of(function))
        if name is None:
            return seal((function, style, batch), self._by_value, lasting=self._lasting)
        return seal((name, style | NAMED, batch), lasting=self._lasting)

    def _seal_changed(self, changes: Changes, function: object, style: int, batch: Sequence[object]) -> object:
        """Pack tasks while some workers do not have the present `__main__`."""
        if type(function) in WITH_NAMES and not changes.concern(function) and (name := name_of(function)) is not None:
            plain = _plain.plain_dumps((name, style | NAMED, batch))
            if plain is not None:
                return plain
        return seal((function, style, batch), make=changes.pickler, lasting=self._lasting)
