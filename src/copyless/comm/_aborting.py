"""Aborting a whole MPI job when one of its ranks fails, as `python -m mpi4py` does.

Otherwise the other ranks might wait for the failed one for ever. There are two ways to ask for it: `on_error` around a
program (``python -m copyless.comm prog.py``), and `watch` inside one (`comm.world(abort_on_error=True)`).
"""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from types import TracebackType
from typing import Any, NoReturn

__all__ = ["on_error", "watch"]

_HERE = os.path.dirname(__file__)
_watching = False
_status = 0  # the exit code of the interpreter, as given to `sys.exit`


def _code_of(code: object) -> int:
    """The exit code for an argument of `sys.exit`."""
    if code is None:
        return 0
    return code if isinstance(code, int) else 1


def _abort(code: int) -> None:
    """Abort all ranks, if MPI runs and there are others. (Under copyless run, the command ends them.)"""
    MPI = sys.modules.get("mpi4py.MPI")
    if MPI is not None and MPI.Is_initialized() and not MPI.Is_finalized() and MPI.COMM_WORLD.Get_size() > 1:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        print(
            f"copyless: rank {MPI.COMM_WORLD.Get_rank()} failed, so all ranks are aborted", file=sys.stderr, flush=True
        )
        time.sleep(
            0.2
        )  # the launcher carries what was printed, and drops what has not reached it when the job is aborted
        MPI.COMM_WORLD.Abort(code & 255 or 1)


@contextlib.contextmanager
def on_error() -> Iterator[None]:
    """Abort all ranks if the block raises, or exits with a code other than 0."""
    try:
        yield
    except SystemExit as ending:
        if ending.code is not None and not isinstance(ending.code, int):
            print(ending.code, file=sys.stderr, flush=True)
            ending.code = 1
        if _code_of(ending.code):
            _abort(_code_of(ending.code))
        raise
    except BaseException as error:
        _show(error)
        code = 130 if isinstance(error, KeyboardInterrupt) else 1
        _abort(code)
        sys.exit(code)


def _show(error: BaseException) -> None:
    """Print the traceback, without the frames before the program."""
    trace = error.__traceback__
    while trace is not None and (
        "runpy" in (name := trace.tb_frame.f_code.co_filename) or os.path.dirname(name) == _HERE
    ):
        trace = trace.tb_next
    traceback.print_exception(type(error), error, trace)


class _Ending(SystemExit):
    """The exception of the replaced `sys.exit`.

    If nothing catches it, the interpreter itself reads its code, and not a frame of Python.
    """

    _given: Any = None

    @property
    def code(self) -> Any:
        global _status
        try:
            sys._getframe(1)
        except ValueError:
            if threading.current_thread() is threading.main_thread():
                _status = _code_of(self._given)
        return self._given

    @code.setter
    def code(self, given: object) -> None:
        self._given = given


def _exit(status: object = None, /) -> NoReturn:
    """Exit the interpreter by raising SystemExit(status)."""
    ending = _Ending(status)
    ending.code = status
    raise ending


def watch() -> None:
    """Abort all ranks if this program ends by an uncaught exception, or by `sys.exit` with a code other than 0."""
    global _watching
    if _watching:
        return
    _watching = True
    shown = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        shown(kind, error, trace)
        _abort(130 if issubclass(kind, KeyboardInterrupt) else 1)

    def end() -> None:
        if _status:
            _abort(_status)

    sys.excepthook = hook
    sys.exit = _exit
    atexit.register(end)
