"""How a worker process starts: the main module and its guard, and signals around a fork."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterable, Iterator
from multiprocessing import current_process

from copyless._typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import signal as _signal
else:
    import _signal  # plain numbers: `signal` makes a member of an enumeration of each, 0.6 ms for a set

__all__ = [
    "NO_GUARD", "STARTING", "asking_the_fork_server", "block_signals", "blocked_signals", "forget_handlers",
    "main_must_travel", "missing_guard", "no_guard", "refuse_to_begin_again", "set_blocked_signals", "signals_blocked",
    "start_method",
]  # fmt: skip

STARTING = " (worker, starting)"  # suffix of a worker's name while it imports the program's main module
NO_GUARD = 113  # exit code of a worker whose main module starts workers
_FAULTS = {_signal.SIGSEGV, _signal.SIGBUS, _signal.SIGFPE, _signal.SIGILL, _signal.SIGABRT}
_GUARD = "put the code that starts the program under if __name__ == '__main__':"


def start_method(context: object) -> str:
    """The start method of a context; "fork" if the context does not state one."""
    method: str = getattr(context, "get_start_method", lambda: "fork")()
    return method


def main_must_travel(context: object) -> bool:
    """Whether a worker lacks the definitions of `__main__`: `__main__` has no file, and the worker is not forked."""
    main = sys.modules.get("__main__")
    if getattr(main, "__file__", None) is not None or getattr(main, "__spec__", None) is not None:
        return False
    return start_method(context) != "fork"


# ---- programs without a main guard


def refuse_to_begin_again() -> None:
    """End a worker that would start workers while it imports the main module of a program without a main guard.

    The worker prints nothing. The parent recognises its exit code and raises one error for all workers. In a process
    that the user started, this raises RuntimeError. The fork server of Python 3.14 imports the main module, too: it
    prints that error's text and ends.
    """
    me = current_process()
    if not getattr(me, "_inheriting", False):
        return
    text = f"worker processes cannot be started while a new process imports the program's main module: {_GUARD}"
    serves_forks = me.name == "MainProcess"  # it has no other name, and a process that is started has one by now
    if not serves_forks and not me.name.endswith(STARTING):
        raise RuntimeError(text)
    with contextlib.suppress(Exception):
        if serves_forks:
            print(text, file=sys.stderr)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(NO_GUARD)


@contextlib.contextmanager
def asking_the_fork_server(context: Any) -> Iterator[None]:
    """Within it, a process is started. Where the fork server ended by `refuse_to_begin_again`, the error is the one of
    workers that did.
    """
    try:
        yield
    except (ConnectionError, EOFError):
        server = getattr(sys.modules.get("multiprocessing.forkserver"), "_forkserver", None)
        pid = getattr(server, "_forkserver_pid", None)
        if start_method(context) != "forkserver" or pid is None or not _refused(pid):
            raise
        from copyless.errors import WorkerDiedError  # it loads the executors of the standard library

        raise WorkerDiedError(no_guard(context)) from None


def _refused(pid: int) -> bool:
    """Whether a child has ended with `NO_GUARD`. It has closed its connections, so it ends now, if not before. Whoever
    started it still finds its exit code.
    """
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)
        except ChildProcessError:
            return False
        if ended is not None:
            return ended.si_code == os.CLD_EXITED and ended.si_status == NO_GUARD
        time.sleep(0.001)
    return False


def no_guard(context: Any) -> str:
    """The error of a pool whose workers ended with `NO_GUARD`."""
    return (
        f"the program has no main guard. With the start method {context.get_start_method()}, each worker "
        f"imports the program's main module again and would start its own workers there: {_GUARD}"
    )


def missing_guard(context: object, code: int) -> str:
    """A hint at the main guard if workers end before they are ready and a missing guard may be the reason; otherwise
    "".
    """
    method = start_method(context)
    if not getattr(context, "imports_main", True):
        return ""
    if code != 1 or method == "fork" or getattr(sys.modules.get("__main__"), "__file__", None) is None:
        return ""
    return (
        f". Under {method} each worker imports the program's main module again: {_GUARD} (the output "
        "above shows whether that is the reason)"
    )


# ---- signals


def block_signals() -> set[int]:
    """Block all signals for this thread but those of its own faults. Returns the numbers of those that were blocked."""
    return set(_signal.pthread_sigmask(_signal.SIG_BLOCK, _signal.valid_signals() - _FAULTS))


def blocked_signals() -> set[int]:
    """The numbers of the signals that this thread blocks."""
    return set(_signal.pthread_sigmask(_signal.SIG_BLOCK, ()))


def set_blocked_signals(numbers: Iterable[int]) -> None:
    """Block these signals for this thread, and no others."""
    _signal.pthread_sigmask(_signal.SIG_SETMASK, numbers)


@contextlib.contextmanager
def signals_blocked(context: object) -> Iterator[None]:
    """Block signals while a worker is forked, until it has removed its parent's handlers, which would wake the parent's
    event loop.

    Other start methods get no mask: a fork server would keep it and never learn that a child has ended.
    """
    if start_method(context) != "fork":
        yield
        return
    before = block_signals()
    try:
        yield
    finally:
        set_blocked_signals(before)


def forget_handlers() -> None:
    """Reset signals that the parent's program handles to their default. A worker ignores what its parent ignores."""
    _signal.set_wakeup_fd(-1)  # the inherited descriptor would wake the parent's event loop
    for number in _signal.valid_signals():
        handler = _signal.getsignal(number)
        if callable(handler) and handler is not _signal.default_int_handler:
            with contextlib.suppress(OSError, ValueError):
                _signal.signal(number, _signal.SIG_DFL)
