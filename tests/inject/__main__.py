"""Let each system call fail once: `python -m tests.inject [--step N] [--kinds open,mmap] [operation ...]`.

For each operation and kind of call, n counts up until the operation makes fewer than n such calls. After each failure
the operation either worked or raised an error that says what is short. Then it works again, the registry is consistent,
and nothing is left behind. Each error is printed and counted.
"""

from __future__ import annotations

import argparse
import ctypes
import faulthandler
import gc
import itertools
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

KINDS = {
    "malloc": 1,
    "mmap": 2,
    "open": 4,
    "room": 8,
    "fstat": 16,
    "futex": 32,
    "fork": 64,
    "dup": 128,
    "pipe": 256,  # every other call that makes a descriptor
    "thread": 512,
}
HERE = Path(__file__).parent
HANG_SECONDS = 60


def library(place: str) -> str:
    """Compile the library that is to be preloaded."""
    path = os.path.join(place, "inject.so")
    subprocess.run(
        [
            os.environ.get("CC", "cc"),
            "-O1",
            "-Wall",
            "-Wextra",
            "-Werror",
            "-fPIC",
            "-shared",
            HERE / "inject.c",
            "-o",
            path,
            "-ldl",
        ],
        check=True,
    )
    return path


class Injector:
    def __init__(self) -> None:
        self.c = ctypes.CDLL(None)
        self.text = ctypes.create_string_buffer(400)

    def run(self, work: Callable[[], Any], kinds: int, n: int) -> tuple[BaseException | None, str]:
        """(the error that it raised, the call that failed): the latter is empty when there were fewer than n calls."""
        error: BaseException | None = None
        self.c.inject_arm(kinds, ctypes.c_long(n))
        try:
            work()
        except BaseException as raised:
            self.c.inject_disarm(None, 0)
            error = raised
        self.c.inject_disarm(self.text, 400)
        return error, self.text.value.decode()


def is_right(error: BaseException | None) -> bool:
    """An operation may fail because something is short. It must say what: not blame another operation, nor a file."""
    from copyless.errors import CopylessError, CorruptSegmentError, OwnerDiedError, StaleHandleError

    if error is None:
        return True
    if isinstance(error, (CorruptSegmentError, OwnerDiedError, StaleHandleError, queue.Empty)):
        return False
    if isinstance(error, RuntimeError) and "can't start new thread" in str(error):
        return True
    return isinstance(error, (CopylessError, OSError, MemoryError))


class Left:
    """The state before, which must be the state after."""

    def __init__(self) -> None:
        self.queues: set[int] = set()
        self.before, self.queues = self.blocks(), self.channels

    def blocks(self) -> set[int]:
        """The existing blocks, except for chunks of queues that existed before, and, for a server, except for its
        connections. The operation is asked to drop what it only caches.
        """
        import copyless
        from copyless.cli.look import listing

        module = sys.modules.get("copyless.shared_memory")
        if module is not None:
            module._recent.clear()
        gc.collect()
        copyless.reap()
        found = listing()["blocks"]
        self.channels = {queue for block in found for queue in block["queues"]}
        return {
            block["number"]
            for block in found
            if not self.queues.intersection(block["queues"]) and set(block["pids"]) <= {os.getpid()}
        }

    def more(self) -> set[int]:
        until = time.monotonic() + 5
        while (found := self.blocks() - self.before) and time.monotonic() < until:
            time.sleep(0.01)
        return found


def one(name: str, work: Callable[[], Any], kinds: dict[str, int], step: int, first: int, short: bool) -> int:
    """All n of an operation, in this process, with free memory available and (unless `short`) without. Return the
    number of failures.
    """
    import copyless
    from copyless._core import _store
    from copyless._storage.store import ensure_open
    from tests.inject import operations

    injector, bad, total = Injector(), 0, 0
    noise: list[str] = []
    sys.unraisablehook = lambda told: noise.append(
        f"{type(told.exc_value).__name__}: {told.exc_value} in {told.object!r}"
    )
    for _ in range(3):
        work()
    operations.tidy()
    ensure_open()
    left = Left()
    for warm, kind in itertools.product((True,) if short else (True, False), kinds):
        n = first
        while True:
            faulthandler.dump_traceback_later(HANG_SECONDS, exit=True)
            print(f"{name} {kind} {n}", end="\r", file=sys.stderr)
            if not warm:
                copyless.trim()
            error, call = injector.run(work, kinds[kind], n)
            problem = "" if is_right(error) else f"raised {type(error).__name__}: {error}"
            trace = "" if not problem or error is None else "".join(traceback.format_exception(error)[-3:])
            error = None
            gc.collect()
            if noise:
                problem += "; said " + noise[0]
                noise.clear()
            try:
                operations.tidy()
                work()
                operations.tidy()
                _store.audit()
                more = left.more()
                if more:
                    problem += f"; left {len(more)} blocks"
                    left = Left()
            except BaseException as after:
                problem += f"; afterwards {type(after).__name__}: {after}"
            if problem:
                bad += 1
                print(f"{name}, {kind} {n}{'' if warm else ', without free memory'} ({call}): {problem}\n{trace}")
            if not call:
                break
            total += 1
            n += step
    faulthandler.cancel_dump_traceback_later()
    print(f"{name}: {total} failures, {bad} wrong", flush=True)
    return bad


def each(name: str, work: Callable[[], Any], kinds: dict[str, int], step: int, first: int, short: bool) -> int:
    """All n of operations that can only be done once: a new process and directory for each."""
    step *= 3 if short else 1
    bad = total = 0
    for kind, bits in kinds.items():
        n = first
        while True:
            place = tempfile.mkdtemp(dir=os.environ["COPYLESS_DIR"])
            inside, outside = os.pipe()
            pid = os.fork()
            if pid == 0:
                os.environ["COPYLESS_DIR"] = place
                os.close(inside)
                os._exit(_first(work, kind, bits, n, outside))
            os.close(outside)
            with os.fdopen(inside) as told:
                said = told.read()
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            said += _newcomer(place)
            shutil.rmtree(place)
            if status != 0 or "; then" in said or not said:
                bad += 1
                print(f"{name}, {kind} {n}: exit code {status}; {said}")
            if said.startswith("none") or not said:
                break
            total += 1
            n += step
    print(f"{name}: {total} failures, {bad} wrong", flush=True)
    return bad


def _first(work: Callable[[], Any], kind: str, bits: int, n: int, outside: int) -> int:
    from copyless._core import _store
    from copyless._storage import settings

    settings._current = None
    faulthandler.dump_traceback_later(HANG_SECONDS, exit=True)
    error, call = Injector().run(work, bits, n)
    told = f"{call or 'none'}; {type(error).__name__}: {error}"
    good = is_right(error)
    error = None
    try:
        work()
        _store.audit()
    except BaseException as after:
        told += f"; afterwards {type(after).__name__}: {after}"
        good = False
    os.write(outside, told.encode())
    return 0 if good else 1


def _newcomer(place: str) -> str:
    """Errors that the next process sees: all that the process before had must be gone."""
    inside, outside = os.pipe()
    pid = os.fork()
    if pid == 0:
        from copyless._core import _store
        from copyless._storage import settings

        os.environ["COPYLESS_DIR"] = place
        settings._current = None
        told = b""
        try:
            left = Left().before
            _store.audit()
            if left:
                told = b"; then %d blocks are left" % len(left)
        except BaseException as error:
            told = f"; then {type(error).__name__}: {error}".encode()
        os.write(outside, told)
        os._exit(0)
    os.close(outside)
    with os.fdopen(inside) as said:
        found = said.read()
    return found if os.waitpid(pid, 0)[1] == 0 else "; then the next process died"


def main() -> int:
    ask = argparse.ArgumentParser(prog="python -m tests.inject", description=__doc__)
    ask.add_argument("operations", nargs="*")
    ask.add_argument("--step", type=int, default=1, help="try every such n only")
    ask.add_argument("--short", action="store_true", help="less of what takes long")
    ask.add_argument("--first", type=int, default=1, help="begin with that n")
    ask.add_argument("--kinds", default=",".join(KINDS), help="of " + ", ".join(KINDS))
    ask.add_argument("--together", action="store_true", help="count the calls of all kinds in one")
    asked = ask.parse_args()
    if "INJECT" not in os.environ:
        with tempfile.TemporaryDirectory(dir="/dev/shm") as place:
            env = {**os.environ, "INJECT": "1", "LD_PRELOAD": library(place), "COPYLESS_DIR": place}
            return subprocess.run([sys.executable, "-m", "tests.inject", *sys.argv[1:]], env=env).returncode
    from tests.inject.operations import FIRST, FORKING, OPERATIONS

    kinds = {name: KINDS[name] for name in asked.kinds.split(",")}
    if asked.together:
        kinds = {"+".join(kinds): sum(kinds.values())}
    bad = 0
    for table, run in ((FIRST, each), (OPERATIONS, one), (FORKING, each)):
        for name, work in table.items():
            if asked.operations and name not in asked.operations:
                continue
            pid = os.fork()
            if pid == 0:
                os._exit(min(run(name, work, kinds, asked.step, asked.first, asked.short), 100))
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            if status < 0 or status > 100:
                print(f"{name}: ended with {status}")
            bad += abs(status)
    print(f"inject: {bad} wrong")
    return min(bad, 1)


if __name__ == "__main__":
    raise SystemExit(main())
