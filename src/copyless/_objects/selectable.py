"""What objects have for those who wait for them: a descriptor, for select, selectors, event loops and the standard
library's own wait; and `ring`, for what this process itself makes ready.

Every program that makes a queue or a pool loads this file. So `waiting`, which most of them never need, is another one.
"""

from __future__ import annotations

import os
import threading

from copyless._core import _bells  # here, because a program may ask for a descriptor when it can load nothing more
from copyless._typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from copyless._core import _bells

__all__ = ["Selectable", "ring", "wakers"]

wakers: set[_bells.WakeDescriptor] = set()  # the descriptors that wake the waits that are running in this process


def ring(_: object = None) -> None:
    """Make all waits of this process check their objects again. Any thread may call it."""
    for each in tuple(wakers):
        each.write()


_making = threading.RLock()  # re-entrant: a signal handler may ask for a descriptor while its thread makes one


def _make_anew() -> None:
    global _making
    _making = threading.RLock()
    wakers.clear()  # the parent uses them too


os.register_at_fork(after_in_child=_make_anew)


class Selectable:
    """Base class of objects that have a descriptor that is readable while they are ready."""

    _signal: _bells.Signal | None

    def fileno(self) -> int:
        """A descriptor of this process for `select`, `selectors` and event loops. It is readable while there is an item
        to take.

        It is never unreadable while there is an item. It may stay readable for a moment after another process took the
        item. It is created at the first call, created again in a forked child, and closed with this object. Do not read
        from it.

        For `Event`: readable while the event is set.
        """
        signal = self._signal
        if signal is None:
            with _making:
                signal = self._signal
                if signal is None:
                    source: Any = self
                    made = _bells.Signal(source)
                    if self._signal is None:  # otherwise a signal handler was faster, and its descriptor is in use
                        self._signal = made
                    signal = self._signal
                    if getattr(self, "closed", False):
                        signal.shut()
                    elif getattr(self, "_keeps", False):
                        signal.keep(True)
        number: int = signal.fileno()
        return number
