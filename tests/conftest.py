"""What every test must fulfil: when it ends, no process and no memory of its own is left."""

from __future__ import annotations

import atexit
import contextlib
import dis
import gc
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest

METHODS = ("spawn", "fork", "forkserver")

# A shell's background jobs ignore Ctrl-C, and so would the programs that the tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A storage directory for this run, so that other programs of this user do not count as leaks.
if "COPYLESS_DIR" not in os.environ:
    os.environ["COPYLESS_DIR"] = f"/dev/shm/copyless-tests-{os.getpid()}"
    os.mkdir(os.environ["COPYLESS_DIR"], 0o700)
    _made_by = os.getpid()

    @atexit.register
    def _remove_directory() -> None:
        if os.getpid() == _made_by:
            shutil.rmtree(os.environ["COPYLESS_DIR"])


def ours_in_shm() -> set[str]:
    """Entries of /dev/shm that this project makes; MPI launchers and others leave their own."""
    return {name for name in os.listdir("/dev/shm") if name.startswith(("copyless-", "psm_", "test", "t-"))}


@pytest.fixture(scope="session", autouse=True)
def nothing_left_in_shm(request: pytest.FixtureRequest) -> Iterator[None]:
    import copyless

    before = ours_in_shm()
    yield
    from copyless.cli.look import listing

    # This process keeps the registry itself until it exits; everything else must be gone.
    assert _blocks(listing) == []
    copyless.trim()
    assert _left_by_failed or listing()["total_bytes"] == 0
    assert {name for name in ours_in_shm() - before if not name.startswith("copyless-")} == set()


@pytest.fixture(autouse=True)
def nothing_left(request: pytest.FixtureRequest) -> Iterator[None]:
    from copyless.cli.look import listing

    yield
    try:
        if "copyless.joblib" in sys.modules:
            sys.modules["copyless.joblib"].shutdown()  # workers that wait for a later call
        for child in multiprocessing.active_children():
            if child.pid in _left_by_failed:
                continue
            child.join(10)
            # A thread of a pool may be reaping the same child. Until it has recorded the exit code, multiprocessing
            # believes in this thread that the child lives: `poll` learns that there is no such child, and takes that
            # for "not yet".
            until(lambda child=child: not child.is_alive(), lambda child=child: f"{child} still runs")
        if not request.node.stash.get(_FAILED, False):
            until(lambda: not _blocks(listing), lambda: f"left behind: {_blocks(listing)}")
    finally:  # what a failed test left is reported once: its traceback holds the test's objects
        _left_by_failed.update(map(_made, _blocks(listing)))
        _left_by_failed.update(child.pid for child in multiprocessing.active_children())


def _blocks(listing: Any) -> list[Any]:
    import copyless

    _forget_recent()
    copyless.reap()
    if not _of_tests(listing):
        return []
    gc.collect()  # a second in a process that has loaded everything, so only where something is left
    copyless.reap()
    return _of_tests(listing)


def _of_tests(listing: Any) -> list[Any]:
    return [block for block in listing()["blocks"] if _made(block) not in _left_by_failed]


def _made(block: Any) -> tuple[int, int]:
    return block["number"], block["created_ns"]  # numbers are used again


_FAILED = pytest.StashKey[bool]()
_left_by_failed: set[Any] = set()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[Any]:
    report = yield
    if report.failed:
        item.stash[_FAILED] = True
        # At once, so that a run that is cut off has said what failed.
        reporter = item.config.pluginmanager.get_plugin("terminalreporter")
        if reporter is not None:
            reporter.write_line(f"\n{report.nodeid} ({report.when}, {report.duration:.0f} s)\n{report.longreprtext}")
    return report


def _forget_recent() -> None:
    """SharedMemory keeps the last few small blocks that it closed mapped. That is no leak, but disturbs this check."""
    module = sys.modules.get("copyless.shared_memory")
    if module is not None:
        module._recent.clear()


def until(condition: Callable[[], Any], message: Callable[[], str] | str = "", seconds: float = 10) -> Any:
    """Wait for a condition with a deadline. Return the value that made it true."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError((message() if callable(message) else message) or "did not happen in time")
        time.sleep(0.005)
    return value


@contextlib.contextmanager
def interrupted(after: float, error: type[BaseException] = KeyboardInterrupt) -> Iterator[None]:
    """A signal handler raises an error in the main thread, once, after this number of seconds: as Ctrl-C does.

    It raises only where a test or the package is. In `threading` or `logging` it could leave one of their locks held,
    and a later test of this process would wait for it for ever.
    """
    raised, put_off, over = False, False, threading.Event()

    def handle(_: int, frame: FrameType | None) -> None:
        nonlocal raised, put_off
        if not raised and frame is not None:
            raised = _may_raise_in(frame)
            put_off = not raised
            if raised:
                raise error

    def interrupt() -> None:
        nonlocal put_off
        if not over.wait(after):
            os.kill(os.getpid(), signal.SIGINT)
        while not over.wait(0.005):
            if put_off:
                put_off = False
                os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, handle)
    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        signal.signal(signal.SIGINT, before)


def _may_raise_in(frame: FrameType) -> bool:
    name, at = frame.f_code.co_filename, frame.f_lasti
    folders = os.path.dirname(sys.modules["copyless"].__file__), os.path.dirname(__file__)
    if name == __file__ or not (name == "<string>" or name.startswith(folders)):
        return False
    # From Python 3.14 on, a handler may run when `__enter__` has returned and its `with` has not begun.
    return at < 2 or frame.f_code.co_code[at - 2] != dis.opmap.get("LOAD_SPECIAL")


@pytest.fixture(params=METHODS)
def context(request: pytest.FixtureRequest) -> Any:
    return multiprocessing.get_context(request.param)


NO_WORD_OF_FORKS = "ignore:This process:DeprecationWarning"  # since Python 3.12: it is multi-threaded


def python(
    code: str, *args: str, check: bool = True, timeout: float = 60, **env: str
) -> subprocess.CompletedProcess[str]:
    """Run a program in a process that shares nothing with this one."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *args],
        capture_output=True, text=True, timeout=timeout, env={"PYTHONWARNINGS": NO_WORD_OF_FORKS, **os.environ, **env},
    )  # fmt: skip
    assert not check or done.returncode == 0, done.stderr
    return done


def start_python(code: str, *args: str, **env: str) -> subprocess.Popen[str]:
    """Start a program and talk to it over its standard input and output."""
    return subprocess.Popen(
        [sys.executable, "-u", "-c", textwrap.dedent(code), *args],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **env},
    )  # fmt: skip
