"""Programs as ranks on this host: the work of ``copyless run``.

It starts the ranks, copies their output, and ends all of them when one fails. The command loads only this module and
its imports, so that it starts fast: modules that are seldom needed are imported in the functions that use them.
docs/design/communicator.md describes how a rank is started, and what a signal does at each step.
"""

from __future__ import annotations

import _thread
import os
import select
import sys
import time

from copyless import _platform
from copyless._core import _store
from copyless._storage import identity, settings
from copyless._typing import TYPE_CHECKING, Any
from copyless.comm._rank_table import DIED, ENDED, RankTable

if TYPE_CHECKING:
    import signal as _signal
    from collections.abc import Iterable, Sequence
else:
    import _signal  # `signal` wraps it in enumerations, which are slow to import

__all__ = ["Refused", "how_it_ended", "run", "run_mpi"]

_GRACE = 3.0  # seconds between the first signal to the other ranks and SIGKILL
_LOOK = 0.5  # seconds between two checks of the ranks if no signal arrives
_COLOURS = (36, 33, 32, 35, 34, 31)


def how_it_ended(code: int) -> str:
    """A text that says how a process ended."""
    if code >= 0:
        return f"ended with exit code {code}"
    import signal

    return f"was killed by {signal.Signals(-code).name}"


_OPTIONS_OF_MPI = "if it is an option of an MPI launcher, use copyless run --mpi, which passes it on"


class Refused(Exception):
    """The program cannot be run. The text is one line and says why. `code` is the exit code of the command."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.code = code


def _checked(command: Sequence[str]) -> tuple[list[bytes], list[bytes]]:
    """Check that the program exists. Returns (the paths to try, the arguments)."""
    first = command[0]
    if first == "-m":
        if len(command) < 2:
            raise Refused("-m needs the name of a module", 2)
        if not _is_module(command[1]):
            raise Refused(f"module {command[1]!r} was not found", 127)
        return _for_python(command)
    if first.startswith("-"):
        raise Refused(f"unknown option {first}: {_OPTIONS_OF_MPI}", 2)
    if os.path.isdir(first):
        raise Refused(f"{first!r} is a directory, not a program", 126)
    if first.endswith(".py"):
        if not os.path.exists(first):
            raise Refused(f"program {first!r} was not found", 127)
        return _for_python(command)
    places = _places(first)
    if not places:
        if os.path.exists(first):
            raise Refused(f"{first!r} is not a program: it is neither a Python file (*.py) nor executable", 126)
        raise Refused(f"program {first!r} was not found", 127)
    return [os.fsencode(place) for place in places], [os.fsencode(each) for each in command]


def _for_python(command: Sequence[str]) -> tuple[list[bytes], list[bytes]]:
    return [os.fsencode(sys.executable)], [os.fsencode(each) for each in (sys.executable, *command)]


def _is_module(name: str) -> bool:
    import importlib.util

    sys.path.insert(0, os.getcwd())
    try:
        return importlib.util.find_spec(name.partition(".")[0]) is not None
    except (ImportError, ValueError):
        return True  # Python itself reports the error
    finally:
        del sys.path[0]


def _places(name: str) -> list[str]:
    """The paths of a program, in the order in which they are tried. `shutil.which` would be slow to import."""
    within = [""] if os.path.dirname(name) else os.get_exec_path()
    paths = [os.path.join(place, name) for place in within]
    return [path for path in paths if os.path.isfile(path) and os.access(path, os.X_OK)]


def _warn_of_mpi(command: Sequence[str], n: int) -> None:
    """Warn if a plain mpi4py program is started without MPI's launcher: each rank would be alone in its world."""
    if n == 1 or not command[0].endswith(".py"):
        return
    try:
        with open(command[0], errors="replace") as file:
            text = file.read()
    except OSError:
        return
    if "mpi4py" not in text or "copyless" in text:
        return
    import re

    if re.search(r"^\s*(?:from|import)\s+mpi4py\b", text, re.MULTILINE):
        print(
            f"copyless run: {command[0]} uses mpi4py without copyless.comm. It was not started by MPI's launcher, so "
            f"it runs as {n} worlds of one rank each. Start it with: copyless run --mpi -n {n} {command[0]}",
            file=sys.stderr,
            flush=True,
        )


def run_mpi(command: Sequence[str], n: int, options: Sequence[str] = (), oversubscribe: bool = False) -> int:
    """Run a program as `n` ranks with the launcher of the installed MPI. Returns the exit code of the launcher.

    The launcher's own options stand before the program.
    """
    import subprocess

    here = os.path.join(os.path.dirname(sys.executable), "mpiexec")
    launcher = here if os.path.exists(here) else next(iter(_places("mpiexec")), None)
    if launcher is None:
        raise Refused(
            "no mpiexec was found beside this Python or in PATH: install one with pip install 'copyless[mpi]'", 127
        )
    command = list(command)
    theirs = list(options)
    if oversubscribe:  # only the launcher of Open MPI needs the option
        version = subprocess.run([launcher, "--version"], capture_output=True, text=True, check=False).stdout
        theirs += ["--oversubscribe"] if "Open MPI" in version or "PRTE" in version else []
    while (
        command and command[0].startswith("-") and command[0] != "-m"
    ):  # the launcher's own options, each with its values
        theirs.append(command.pop(0))
        while command and not command[0].startswith("-") and not command[0].endswith(".py") and not _places(command[0]):
            theirs.append(command.pop(0))
    if not command:
        raise Refused("no program was given", 2)
    _checked(command)
    if command[0] == "-m" or command[0].endswith(".py"):
        command[:0] = [sys.executable, "-m", "copyless.comm"]  # it ends the other ranks when one fails
    if (
        _signal.getsignal(_signal.SIGINT) == _signal.SIG_DFL
    ):  # on Ctrl-C the launcher ends its ranks, and this process waits for it
        _signal.signal(_signal.SIGINT, _signal.default_int_handler)
    return subprocess.call([launcher, "-n", str(n), *theirs, *command])


def run(command: Sequence[str], n: int, *, prefix: bool = True, bind: bool = False) -> int:
    """Run a program as `n` ranks and wait for them. Returns the exit code of the first rank that failed, or 0.

    Parameters
    ----------
    command
        A Python program (``*.py``, or ``-m module``) and its arguments, or any other program.
    n
        The number of ranks. Rank 0 reads standard input, unless that is a terminal.
    prefix
        Write ``[rank]`` before each line of output.
    bind
        Bind each rank to one processor, in turn: with more ranks than processors, ranks share them.

    Raises
    ------
    Refused
        If the program does not exist or cannot be run.
    """
    paths, arguments = _checked(command)
    _warn_of_mpi(command, n)
    identity.sends_nothing()
    group = RankTable(n)
    with _Held() as held:
        ranks = _Ranks(group)
        try:
            outputs = _start(ranks, paths, arguments, n, held.before, prefix, bind)
            code = _watch(group, ranks, held)
            until = time.monotonic() + _GRACE
            for output in outputs:
                output.finished.acquire(timeout=max(0.0, until - time.monotonic()))
                code = code or output.failed
            came = held.next(0)
            return 128 + came if came in (_signal.SIGTERM, _signal.SIGINT) else code
        except OSError as error:
            if ranks.started:
                raise
            raise Refused(f"{os.fsdecode(arguments[0])!r} cannot be run: {error.strerror}", 126) from None
        finally:
            ranks.send(_signal.SIGKILL)


# ---- signals


class _Held:
    """A context manager that blocks SIGCHLD, SIGTERM and SIGINT (Ctrl-C), so that none interrupts the code inside it.

    `next` takes a signal that is pending. After the context, the signals that are still pending act as usual.
    """

    def __enter__(self) -> _Held:
        wanted = {_signal.SIGCHLD, _signal.SIGTERM}
        if _signal.getsignal(_signal.SIGINT) != _signal.SIG_IGN:  # a shell ignores it for background jobs
            wanted.add(_signal.SIGINT)
        if (
            _signal.getsignal(_signal.SIGCHLD) == _signal.SIG_IGN
        ):  # if SIGCHLD is ignored, waitpid() cannot return exit codes
            _signal.signal(_signal.SIGCHLD, _signal.SIG_DFL)
        self.before: set[int] = _signal.pthread_sigmask(_signal.SIG_BLOCK, wanted)
        self._wanted = wanted
        return self

    def __exit__(self, *_: object) -> None:
        _signal.pthread_sigmask(_signal.SIG_SETMASK, self.before)

    def next(self, seconds: float) -> int:
        """The next signal that is pending or arrives within the seconds given; 0 if there is none."""
        came = _signal.sigtimedwait(self._wanted, max(seconds, 0.0))
        return came.si_signo if came is not None else 0


# ---- ranks


class _Ranks:
    """The processes of the ranks: all that were started, and those that still run."""

    def __init__(self, group: RankTable) -> None:
        self.group = group
        self.started: list[int] = []  # process numbers, by rank
        self.running: dict[int, int] = {}  # rank: process number

    def add(self, pid: int) -> None:
        self.running[len(self.started)] = pid
        self.started.append(pid)

    def ended(self) -> list[tuple[int, int]]:
        """(rank, exit code or negative signal number) of each rank that has ended since the last call."""
        found = []
        for rank, pid in list(self.running.items()):
            try:
                pid, status = os.waitpid(pid, os.WNOHANG)
                code = os.waitstatus_to_exitcode(status) if pid else 0
            except ChildProcessError:  # other code has waited for this process
                code = 0
            if pid:
                del self.running[rank]
                found.append((rank, code))
        return found

    def send(self, number: int) -> None:
        """Send a signal to the ranks that still run."""
        for pid in self.running.values():  # they were not waited for, so the kernel has not reused their numbers
            os.kill(pid, number)


def _start(
    ranks: _Ranks, paths: list[bytes], arguments: list[bytes], n: int, blocked: Iterable[int], prefix: bool, bind: bool
) -> list[_Output]:
    """Start the ranks, and the threads that copy their output."""
    cores = _platform.usable_processors() if bind else []
    reads_input = sys.stdin is not None and not sys.stdin.isatty()
    environment = settings.environment_of_ranks(ranks.group.handle, unbuffered=prefix)
    outputs = _outputs() if prefix else []
    nothing = os.open(os.devnull, os.O_RDWR)
    try:
        for rank in range(n):
            ends = [os.pipe() for _ in range(2)] if prefix else []
            try:
                ranks.add(
                    _store.start_program(
                        paths,
                        arguments,
                        [*environment, settings.number_of_rank(rank)],
                        stdin=-1 if rank == 0 and reads_input else nothing,
                        stdout=ends[0][1] if prefix else -1,
                        stderr=ends[1][1] if prefix else -1,
                        processor=cores[rank % len(cores)] if bind else -1,
                        blocked=blocked,
                    )
                )
            finally:
                for _, end in ends:
                    os.close(end)
            for end, _ in ends:
                outputs[0 if end == ends[0][0] else -1].sources[end] = rank
    finally:
        os.close(nothing)
    for output in outputs:
        _thread.start_new_thread(output.copy, ())
    return outputs


# ---- output


class _Output:
    """Copies the output of all ranks to one stream, with ``[rank]`` before each line.

    If the stream is a terminal, output is written at once, so that prompts and progress bars are visible. If another
    rank's line is unfinished then, a new line is begun. To anything else, only whole lines are written. Each stream has
    its own thread, so a stream whose reader stops does not delay the other stream.
    """

    def __init__(self, stream: Any) -> None:
        self.target = stream.fileno() if stream is not None else -1  # -1: closed before this program started
        self.terminal = stream is not None and stream.isatty()
        self.left = False  # the reader of the stream has closed it
        self.failed = 0  # exit code if writing failed
        self.sources: dict[int, int] = {}  # file descriptor of a pipe: the rank that writes to it
        self.rests: dict[int, bytes] = {}  # rank: the start of its unfinished line
        self.open: int | None = None  # the rank whose line is unfinished
        self.finished = _thread.allocate_lock()
        self.finished.acquire()

    def mark(self, rank: int) -> bytes:
        text = f"[{rank}] "
        return (f"\x1b[{_COLOURS[rank % len(_COLOURS)]}m{text}\x1b[0m" if self.terminal else text).encode()

    def copy(self) -> None:
        """Copy until all ranks have closed their ends of the pipes."""
        try:
            waiting = select.poll()
            for source in self.sources:
                waiting.register(source, select.POLLIN)
            while self.sources:
                for source, _ in waiting.poll():
                    piece = os.read(source, 1 << 16)
                    if piece:
                        (self.show if self.terminal else self.take)(self.sources[source], piece)
                        continue
                    waiting.unregister(source)
                    os.close(source)
                    self.end(source)
        finally:
            self.finished.release()

    def take(self, rank: int, piece: bytes) -> None:
        """Write the whole lines, and keep the rest for the next call."""
        mark = self.mark(rank)
        *lines, rest = (self.rests.get(rank, b"") + piece).split(b"\n")
        self.rests[rank] = rest
        if lines:
            self._write(b"".join(mark + line + b"\n" for line in lines))

    def end(self, source: int) -> None:
        """A rank has closed its end: write its unfinished line."""
        rank = self.sources.pop(source)
        if rest := self.rests.pop(rank, b""):
            self._write(self.mark(rank) + rest + b"\n")
        if self.open == rank:
            self._write(b"\n")
            self.open = None

    def show(self, rank: int, piece: bytes) -> None:
        """Write to a terminal at once."""
        mark = self.mark(rank)
        out = b"" if self.open in (None, rank) else b"\n"
        within = self.open == rank
        for line in piece.splitlines(keepends=True):
            text = line.rstrip(b"\r\n")
            end = line[len(text) :]
            if text or end != b"\r":
                out += text if within else mark + text
            out += end
            if end == b"\r":  # the rank writes the line again
                out += mark
            within = end in (b"", b"\r")
        self.open = rank if within else None
        self._write(out)

    def _write(self, data: bytes) -> None:
        """Write all of it. After an error the output is read and discarded, so that no rank blocks on a full pipe."""
        while data and not self.failed and not self.left:
            try:
                data = data[os.write(self.target, data) :]
            except BlockingIOError:  # the stream was set to non-blocking by the caller of the command
                room = select.poll()
                room.register(self.target, select.POLLOUT)
                room.poll()
            except BrokenPipeError:  # the reader has ended
                self.left = True
            except OSError as error:
                self.failed = 1
                print(f"copyless run: output of the ranks is lost: {error.strerror}", file=sys.stderr, flush=True)


def _outputs() -> list[_Output]:
    """The copier of standard output and that of standard error; one for both if both are terminals."""
    # The command puts /dev/null in the place of a stream that was closed; `__stdout__` stays None.
    out, err = _Output(sys.__stdout__), _Output(sys.__stderr__)
    return [out] if out.terminal and err.terminal else [out, err]


def _watch(group: RankTable, ranks: _Ranks, held: _Held) -> int:
    """Wait for all ranks. If one fails, or on Ctrl-C or SIGTERM, end the others. Returns the exit code."""
    code, deadline = 0, None  # at the deadline the other ranks get the signal `asked`
    asked: int = _signal.SIGTERM
    while ranks.running:
        left = _LOOK if deadline is None else min(_LOOK, deadline - time.monotonic())
        came = held.next(left)
        if came in (_signal.SIGTERM, _signal.SIGINT) and deadline is None:
            # A terminal sends Ctrl-C to the ranks, too: those that still run after half a second get another signal.
            deadline, asked = time.monotonic() + (0.5 if came == _signal.SIGINT else 0.0), came
            code = code or 128 + came
        for rank, result in ranks.ended():
            group.end(rank, DIED if result else ENDED)
            if result and deadline is None:
                code = 128 - result if result < 0 else result
                _tell(rank, ranks.started[rank], result, bool(ranks.running))
                # The other ranks notice within a second and can clean up before they get a signal.
                deadline = time.monotonic() + 1.0
        if deadline is not None and time.monotonic() >= deadline:
            ranks.send(asked)
            deadline, asked = time.monotonic() + _GRACE, _signal.SIGKILL
    return code


def _tell(rank: int, pid: int, result: int, others: bool) -> None:
    print(
        f"copyless run: rank {rank} (process {pid}) {how_it_ended(result)}" + ("; ending the others" if others else ""),
        file=sys.stderr,
        flush=True,
    )
