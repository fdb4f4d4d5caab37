"""Ranks on this host: ``copyless run`` starts programs, `spawn` functions. Both watch them, and end all when one dies."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from copyless import _loaders
from copyless.comm.group import DIED, ENDED, Group
from copyless.comm.local import CARD, RANK, join
from copyless.errors import OwnerDiedError, StaleHandleError

__all__ = ["Refused", "run", "run_mpi", "spawn"]

_GRACE = 3.0  # seconds between asking the others to end and ending them
_COLOURS = (36, 33, 32, 35, 34, 31)
_PR_SET_PDEATHSIG = 1


def _die_with(parent: int) -> None:
    """In a child: end when the launcher does, however it does."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        os._exit(1)


def how_it_ended(code: int) -> str:
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


# ---- programs

_OPTIONS_OF_MPI = "that is an option of MPI's launchers, and there is nothing like it here; copyless run --mpi gives it to them"
_IMPORTS_MPI = re.compile(r"^\s*(?:from|import)\s+mpi4py\b", re.MULTILINE)


class Refused(Exception):
    """What is to be run cannot be; one line says why. `code` is the command's exit code."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.code = code


def _checked(command: Sequence[str]) -> list[str]:
    """The command of a program that there is."""
    first = command[0]
    if first == "-m":
        if len(command) < 2:
            raise Refused("-m wants the name of a module", 2)
        with contextlib.suppress(ImportError, ValueError):
            sys.path.insert(0, os.getcwd())
            try:
                found = importlib.util.find_spec(command[1].partition(".")[0])
            finally:
                del sys.path[0]
            if found is None:
                raise Refused(f"there is no module {command[1]!r}", 127)
        return [sys.executable, *command]
    if first.startswith("-"):
        raise Refused(f"there is no option {first}: {_OPTIONS_OF_MPI}", 2)
    if os.path.isdir(first):
        raise Refused(f"{first!r} is a directory, not a program", 126)
    if first.endswith(".py"):
        if not os.path.exists(first):
            raise Refused(f"there is no program {first!r}", 127)
        return [sys.executable, *command]
    if shutil.which(first) is None:
        if os.path.exists(first):
            raise Refused(f"{first!r} is not a program: it is neither Python (*.py) nor executable", 126)
        raise Refused(f"there is no program {first!r}", 127)
    return list(command)


def _warn_of_mpi(command: Sequence[str], n: int) -> None:
    """Say so when a program of plain mpi4py is started as ranks of ours: it would find itself alone in each."""
    if n == 1 or not command[0].endswith(".py"):
        return
    with contextlib.suppress(OSError), open(command[0], errors="replace") as file:
        text = file.read()
        if _IMPORTS_MPI.search(text) and "copyless" not in text:
            print(
                f"copyless run: {command[0]} uses mpi4py without copyless.comm: MPI was not started by MPI's launcher, so it becomes "
                f"{n} worlds of one rank. Start it by: copyless run --mpi -n {n} {command[0]}",
                file=sys.stderr,
                flush=True,
            )


def run_mpi(command: Sequence[str], n: int, options: Sequence[str] = (), oversubscribe: bool = False) -> int:
    """Run a program as `n` ranks by the launcher of the installed MPI: its exit code. Options of its own go before the program."""
    here = os.path.join(os.path.dirname(sys.executable), "mpiexec")
    launcher = here if os.path.exists(here) else shutil.which("mpiexec")
    if launcher is None:
        raise Refused("no mpiexec was found beside this Python, nor in PATH: pip install 'copyless[mpi]' brings one", 127)
    command = list(command)
    theirs = list(options)
    if oversubscribe:  # only Open MPI's has to be told
        version = subprocess.run([launcher, "--version"], capture_output=True, text=True, check=False).stdout
        theirs += ["--oversubscribe"] if "Open MPI" in version or "PRTE" in version else []
    while command and command[0].startswith("-") and command[0] != "-m":  # its own options, each with its value
        theirs.append(command.pop(0))
        while command and not command[0].startswith("-") and not command[0].endswith(".py") and shutil.which(command[0]) is None:
            theirs.append(command.pop(0))
    if not command:
        raise Refused("no program was named", 2)
    arguments = _checked(command)
    if arguments[0] == sys.executable:
        arguments[1:1] = ["-m", "copyless.comm"]  # when one rank fails, the others end
    return subprocess.call([launcher, "-n", str(n), *theirs, *arguments])


def run(command: Sequence[str], n: int, *, prefix: bool = True, bind: bool = False) -> int:
    """Run a program as `n` ranks and wait for them: the exit code, of the first rank that ended badly, else 0.

    Parameters
    ----------
    command
        A Python program (``*.py``, or ``-m module``) and its arguments, or any other program.
    n
        Ranks. Rank 0 reads standard input, unless that is a terminal.
    prefix
        Write ``[rank]`` before each line of their output.
    bind
        Keep each rank on a processor of its own; with more ranks than processors, by turns.

    Raises
    ------
    Refused
        When there is no such program.
    """
    arguments = _checked(command)
    _warn_of_mpi(command, n)
    group = Group(n)
    environment = {**os.environ, CARD: group.card.hex()}
    if prefix:
        environment.setdefault("PYTHONUNBUFFERED", "1")  # lines appear as they are written
    pipe = subprocess.PIPE if prefix else None
    here = os.getpid()
    cores = sorted(os.sched_getaffinity(0))
    ranks: list[subprocess.Popen[bytes]] = []
    ended: queue.SimpleQueue[tuple[int, int]] = queue.SimpleQueue()
    previous = signal.signal(signal.SIGTERM, _terminate)

    def begin(rank: int) -> None:
        _die_with(here)
        if bind:
            os.sched_setaffinity(0, {cores[rank % len(cores)]})

    try:
        for rank in range(n):
            first = rank == 0 and not sys.stdin.isatty() if sys.stdin is not None else False
            ranks.append(
                subprocess.Popen(
                    arguments,
                    env={**environment, RANK: str(rank)},
                    stdin=None if first else subprocess.DEVNULL,
                    stdout=pipe,
                    stderr=pipe,
                    preexec_fn=lambda rank=rank: begin(rank),
                )
            )
        readers = _copy_output(ranks) if prefix else []
        for rank, process in enumerate(ranks):
            threading.Thread(target=lambda r=rank, p=process: ended.put((r, p.wait())), daemon=True).start()
        code = _watch(group, ranks, ended)
        for reader in readers:
            reader.join(_GRACE)
        return code
    except OSError as error:
        if ranks:
            raise
        raise Refused(f"{arguments[0]!r} cannot be run: {error.strerror}", 126) from None
    except _Terminated:
        return 128 + signal.SIGTERM
    finally:
        signal.signal(signal.SIGTERM, previous)
        for process in ranks:
            if process.poll() is None:
                process.kill()


class _Terminated(KeyboardInterrupt):
    """SIGTERM has come."""


def _terminate(*_: Any) -> None:
    raise _Terminated


class _Output:
    """Where what ranks write goes, each line with its rank before it.

    To a terminal each piece goes as it comes, so that prompts and bars that move are seen; a rank that writes into another's
    unfinished line begins one of its own. Anything else gets whole lines.
    """

    def __init__(self, target: Any) -> None:
        self.target, self.terminal = target, target.isatty()
        self.lock = threading.Lock()
        self.open: int | None = None  # the rank whose line is unfinished

    def mark(self, rank: int) -> bytes:
        text = f"[{rank}] "
        return (f"\x1b[{_COLOURS[rank % len(_COLOURS)]}m{text}\x1b[0m" if self.terminal else text).encode()

    def copy(self, source: Any, rank: int) -> None:
        mark, rest = self.mark(rank), b""
        while piece := os.read(source.fileno(), 1 << 16):
            if self.terminal:
                self.show(rank, mark, piece)
                continue
            *lines, rest = (rest + piece).split(b"\n")
            if lines:
                self.write(b"".join(mark + line + b"\n" for line in lines))
        if rest:
            self.write(mark + rest + b"\n")
        with self.lock:
            if self.open == rank:
                self._write(b"\n")
                self.open = None

    def show(self, rank: int, mark: bytes, piece: bytes) -> None:
        with self.lock:
            out = b"" if self.open in (None, rank) else b"\n"
            within = self.open == rank
            for part in re.findall(rb"[^\r\n]+|\r\n|\r|\n", piece):
                if part in (b"\n", b"\r\n"):
                    out += part if within else mark + part
                    within = False
                elif part == b"\r":  # the line is written anew
                    out += part + mark
                    within = True
                else:
                    out += part if within else mark + part
                    within = True
            self.open = rank if within else None
            self._write(out)

    def write(self, data: bytes) -> None:
        with self.lock:
            self._write(data)

    def _write(self, data: bytes) -> None:
        with contextlib.suppress(BrokenPipeError):
            self.target.buffer.write(data)
            self.target.buffer.flush()


def _copy_output(ranks: list[subprocess.Popen[bytes]]) -> list[threading.Thread]:
    out, err = _Output(sys.stdout), _Output(sys.stderr)
    if out.terminal and err.terminal:
        err = out  # one screen
    readers = []
    for rank, process in enumerate(ranks):
        for source, output in ((process.stdout, out), (process.stderr, err)):
            readers.append(threading.Thread(target=output.copy, args=(source, rank), daemon=True))
            readers[-1].start()
    return readers


def _watch(group: Group, ranks: list[subprocess.Popen[bytes]], ended: Any) -> int:
    """Wait for all; when one ends badly, on Ctrl-C or on SIGTERM, end the others."""
    code, left, deadline = 0, len(ranks), None
    asked = signal.SIGTERM
    while left:
        try:
            rank, result = ended.get(timeout=0.1)
        except queue.Empty:
            if deadline is not None and time.monotonic() > deadline:
                for process in ranks:
                    if process.poll() is None:
                        process.send_signal(signal.SIGKILL if asked is None else asked)
                deadline, asked = time.monotonic() + _GRACE, None  # type: ignore[assignment]
            continue
        except _Terminated:
            if deadline is None:
                deadline, asked = time.monotonic(), signal.SIGTERM
                code = code or 128 + signal.SIGTERM
            continue
        except KeyboardInterrupt:
            if deadline is None:  # a terminal has told the ranks too: tell those that go on in half a second
                deadline, asked = time.monotonic() + 0.5, signal.SIGINT
                code = code or 128 + signal.SIGINT
            continue
        left -= 1
        group.end(rank, DIED if result else ENDED)
        if result and deadline is None:
            code = 128 - result if result < 0 else result
            print(
                f"copyless run: rank {rank} (process {ranks[rank].pid}) {how_it_ended(result)}"
                + ("; ending the others" if left else ""),
                file=sys.stderr,
                flush=True,
            )
            # They learn of it by themselves within a second, and may clean up.
            deadline = time.monotonic() + 1.0
    return code


# ---- functions


def _follow() -> None:
    """End when who asked for this process ends."""
    from multiprocessing import parent_process

    starter = parent_process()
    if starter is not None:
        starter.join()
        os.kill(os.getpid(), signal.SIGTERM)


def _begin(card: bytes, rank: int, names: list[bytes], parent: int) -> None:
    from copyless.arrays import attach
    from copyless.workers import insist, seal, sealed_error, unseal

    if os.getppid() == parent:
        _die_with(parent)
    else:  # started by a fork server, which outlives the one who asked
        threading.Thread(target=_follow, name="copyless-parent", daemon=True).start()
    try:
        jobs, results = (attach(name) for name in names)
        comm = join(Group.of_card(card), rank)
    except StaleHandleError:
        return  # the starter is gone already
    try:
        function, args = unseal(jobs.get())
        value = function(comm, *args)
        results.put((rank, True, seal(value)))
    except BaseException as error:
        comm._engine.group.end(rank, DIED)
        insist(results.put, lambda failed: (rank, False, sealed_error(failed)), error)
        return
    comm._engine.close()


def spawn(fn: Callable[..., Any], n: int, args: tuple[Any, ...], context: Any) -> list[Any]:
    """What `copyless.comm.spawn` does."""
    import multiprocessing

    from copyless.arrays import handle
    from copyless.pool import _revive
    from copyless.queues import Empty, Queue
    from copyless.workers import _main_must_travel, seal, unseal

    group = Group(n)
    context = context or multiprocessing.get_context()
    jobs: Any = Queue()
    answers: Any = Queue()
    by_value = _main_must_travel(context)
    card, names = group.card, [bytes(handle(jobs)), bytes(handle(answers))]
    for _ in range(n):
        jobs.put(seal((fn, args), by_value))
    ranks = [
        context.Process(target=_loaders.begin_rank, args=(card, rank, names, os.getpid()), name=f"rank {rank}") for rank in range(n)
    ]
    values: dict[int, Any] = {}
    try:
        for process in ranks:
            process.start()
        while len(values) < n:
            try:
                rank, good, value = answers.get(timeout=0.1)
            except Empty:
                _look(group, ranks, values, answers)
                continue
            if not good:
                error = _revive(*value)
                if isinstance(error, OwnerDiedError):  # told by the death of another: that one is the news
                    _look(group, ranks, values, answers, seconds=1.0)
                raise error
            group.end(rank)
            values[rank] = unseal(value)
        for process in ranks:
            process.join()
        return [values[rank] for rank in range(n)]
    finally:
        for process in ranks:
            if process.pid is not None and process.exitcode is None:
                process.terminate()
        for process in ranks:
            if process.pid is not None:
                process.join(_GRACE)
                if process.exitcode is None:
                    process.kill()
                    process.join()


def _look(group: Group, ranks: list[Any], values: dict[int, Any], answers: Any, seconds: float = 0.0) -> None:
    """Raise when a rank's process has ended without an answer."""
    deadline = time.monotonic() + seconds
    while True:
        for rank, process in enumerate(ranks):
            if process.exitcode is not None and rank not in values and answers.empty():
                if process.exitcode == 0 and seconds:
                    continue  # it said what it raised
                group.end(rank, DIED)
                raise OwnerDiedError(f"rank {rank} (process {process.pid}) {how_it_ended(process.exitcode)}")
        if time.monotonic() >= deadline:
            return
        time.sleep(0.01)
