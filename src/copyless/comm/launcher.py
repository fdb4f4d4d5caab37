"""Ranks on this host: ``copyless run`` starts programs, `spawn` functions. Both watch them, and end all when one dies."""

from __future__ import annotations

import contextlib
import ctypes
import os
import queue
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

__all__ = ["run", "spawn"]

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


def run(command: Sequence[str], n: int, *, prefix: bool = True) -> int:
    """Run a program as `n` ranks and wait for them: the exit code, of the first rank that ended badly, else 0.

    Parameters
    ----------
    command
        A Python program (``*.py``, or ``-m module``) and its arguments, or any other program.
    n
        Ranks. Rank 0 reads standard input, unless that is a terminal.
    prefix
        Write ``[rank]`` before each line of their output.
    """
    group = Group(n)
    arguments = list(command)
    if arguments[0].endswith(".py") or arguments[0] == "-m":
        arguments = [sys.executable, *arguments]
    environment = {**os.environ, CARD: group.card.hex()}
    if prefix:
        environment.setdefault("PYTHONUNBUFFERED", "1")  # lines appear as they are written
    pipe = subprocess.PIPE if prefix else None
    here = os.getpid()
    ranks: list[subprocess.Popen[bytes]] = []
    ended: queue.SimpleQueue[tuple[int, int]] = queue.SimpleQueue()
    previous = signal.signal(signal.SIGTERM, _interrupt)
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
                    preexec_fn=lambda: _die_with(here),
                )
            )
        readers = _copy_output(ranks) if prefix else []
        for rank, process in enumerate(ranks):
            threading.Thread(target=lambda r=rank, p=process: ended.put((r, p.wait())), daemon=True).start()
        code = _watch(group, ranks, ended)
        for reader in readers:
            reader.join(_GRACE)
        return code
    except FileNotFoundError as error:
        print(f"copyless run: there is no program {error.filename!r}", file=sys.stderr)
        return 127
    finally:
        signal.signal(signal.SIGTERM, previous)
        for process in ranks:
            if process.poll() is None:
                process.kill()


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def _copy_output(ranks: list[subprocess.Popen[bytes]]) -> list[threading.Thread]:
    lock = threading.Lock()
    readers = []
    for rank, process in enumerate(ranks):
        for source, target in ((process.stdout, sys.stdout), (process.stderr, sys.stderr)):
            mark = f"[{rank}] "
            if target.isatty():
                mark = f"\x1b[{_COLOURS[rank % len(_COLOURS)]}m{mark}\x1b[0m"

            def copy(source: Any = source, target: Any = target, mark: bytes = mark.encode()) -> None:
                for line in source:
                    with lock, contextlib.suppress(BrokenPipeError):
                        target.buffer.write(mark + line if line.endswith(b"\n") else mark + line + b"\n")
                        target.buffer.flush()

            readers.append(threading.Thread(target=copy, daemon=True))
            readers[-1].start()
    return readers


def _watch(group: Group, ranks: list[subprocess.Popen[bytes]], ended: Any) -> int:
    """Wait for all; when one ends badly, or on Ctrl-C, end the others."""
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
