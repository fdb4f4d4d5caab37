"""What every test is held to: no process and no memory of its own is left when it ends."""

from __future__ import annotations

import atexit
import gc
import multiprocessing
import os
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

METHODS = ("spawn", "fork", "forkserver")

# A storage directory of this run's own, so that other programs of this user do not count as leaks.
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
    if request.session.testsfailed:
        return  # a failed test's traceback holds what the test held
    _forget_recent()
    gc.collect()
    copyless.reap()
    copyless.trim()
    from copyless.cli.look import listing

    # This process keeps the registry itself until it ends; everything else must be gone.
    assert listing()["blocks"] == []
    assert listing()["total_bytes"] == 0
    assert {name for name in ours_in_shm() - before if not name.startswith("copyless-")} == set()


@pytest.fixture(autouse=True)
def nothing_left(request: pytest.FixtureRequest) -> Iterator[None]:
    from copyless.cli.look import listing

    yield
    if "copyless.joblib" in sys.modules:
        sys.modules["copyless.joblib"].shutdown()  # workers that wait for a later call
    for child in multiprocessing.active_children():
        child.join(10)
        assert not child.is_alive(), f"{child} still runs"
    if request.session.testsfailed:
        return  # a failed test's traceback holds what the test held
    gc.collect()
    until(lambda: not _blocks(listing), lambda: f"left behind: {_blocks(listing)}")


def _blocks(listing: Any) -> list[Any]:
    import copyless

    _forget_recent()
    gc.collect()
    copyless.reap()
    return [block for block in listing()["blocks"] if block["number"] not in _kept]


_kept: set[int] = set()


def _forget_recent() -> None:
    """SharedMemory keeps the last few small blocks it closed mapped: that is no leak, but in the way here."""
    module = sys.modules.get("copyless.shared_memory")
    if module is not None:
        module._recent.clear()


def until(condition: Callable[[], Any], message: Callable[[], str] | str = "", seconds: float = 10) -> Any:
    """Wait for a condition with a deadline; the value that made it true."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError((message() if callable(message) else message) or "did not happen in time")
        time.sleep(0.005)
    return value


@pytest.fixture(params=METHODS)
def context(request: pytest.FixtureRequest) -> Any:
    return multiprocessing.get_context(request.param)


def python(
    code: str, *args: str, check: bool = True, timeout: float = 60, **env: str
) -> subprocess.CompletedProcess[str]:
    """Run a program in a process that shares nothing with this one."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *args],
        capture_output=True, text=True, timeout=timeout, env={**os.environ, **env},
    )  # fmt: skip
    assert not check or done.returncode == 0, done.stderr
    return done


def start_python(code: str, *args: str, **env: str) -> subprocess.Popen[str]:
    """Start a program that talks over its standard input and output."""
    return subprocess.Popen(
        [sys.executable, "-u", "-c", textwrap.dedent(code), *args],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **env},
    )  # fmt: skip
