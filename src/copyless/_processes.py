"""`Process.interrupt` of Python 3.14, for earlier versions.

The classes are the standard library's with this one method more; from Python 3.14 on they are the standard library's
own. A spawned process gets its process object as the standard library's.
"""

from __future__ import annotations

import multiprocessing.context as _stdlib
import signal
import sys

TYPE_CHECKING = False  # as `typing` has it, which is not loaded for this
if TYPE_CHECKING:
    from typing import Any, SupportsIndex

__all__ = ["ForkProcess", "ForkServerProcess", "Process", "SpawnProcess"]

if sys.version_info >= (3, 14):
    from multiprocessing.context import ForkProcess, ForkServerProcess, Process, SpawnProcess
else:

    class _Interruptible:
        def interrupt(self) -> None:
            """Send SIGINT to the process, as Ctrl-C does: Python raises KeyboardInterrupt in its main thread.

            Mirrors `multiprocessing.Process.interrupt` of Python 3.14. The exit handlers and ``finally`` clauses of the
            process run, which those of `terminate` need not. A process that has ended gets no signal.

            Raises
            ------
            ValueError
                If the process object is closed.
            AttributeError
                If the process was not started, as from `terminate`.

            Examples
            --------
            >>> import copyless, time
            >>> process = copyless.get_context("fork").Process(target=time.sleep, args=(60,))
            >>> hasattr(process, "interrupt")
            True
            """
            self._check_closed()  # type: ignore[attr-defined]
            self._popen._send_signal(signal.SIGINT)  # type: ignore[attr-defined]

        def __reduce_ex__(self, protocol: SupportsIndex) -> Any:
            """Pickled for its new process, which needs nothing of this package for it: there it is the standard
            library's.
            """
            made: Any = super().__reduce_ex__(1)  # by copyreg: a later protocol would insist on the class
            cls = type(self)
            if cls.__module__ != __name__:
                return made
            standard = getattr(_stdlib, cls.__name__)
            return (made[0], tuple(standard if each is cls else each for each in made[1]), *made[2:])

    class Process(_Interruptible, _stdlib.Process):
        """`multiprocessing.Process`, with `interrupt`."""

    class ForkProcess(_Interruptible, _stdlib.ForkProcess):
        """`multiprocessing.context.ForkProcess`, with `interrupt`."""

    class SpawnProcess(_Interruptible, _stdlib.SpawnProcess):
        """`multiprocessing.context.SpawnProcess`, with `interrupt`."""

    class ForkServerProcess(_Interruptible, _stdlib.ForkServerProcess):
        """`multiprocessing.context.ForkServerProcess`, with `interrupt`."""
