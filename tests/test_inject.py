"""A short form of `make inject`: every third system call fails, in every operation."""

from __future__ import annotations

import ast
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    "LD_PRELOAD" in os.environ or not sys.platform.startswith("linux"),
    reason="needs a library of its own before all others",
)


def test_whatever_call_fails_the_next_one_works_and_nothing_is_left():
    done = subprocess.run(
        [sys.executable, "-m", "tests.inject", "--short", "--step", "3"], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    failures = [int(number) for number in re.findall(r": (\d+) failures, 0 wrong", done.stdout)]
    assert len(failures) > 25, done.stdout
    assert sum(failures) > 200, done.stdout


def test_a_fault_is_found():
    """An error in an operation is reported: here an operation that loses an array when a call fails."""
    code = """
import sys
import copyless
from tests.inject import operations
kept = []
def bad():
    try:
        copyless.ones(400_000)
        copyless.trim()
    except MemoryError:
        kept.append(copyless.ones(10))
operations.OPERATIONS = {"bad": bad}
operations.FIRST = operations.FORKING = {}
from tests.inject.__main__ import main
sys.exit(main())
"""
    from tests.inject.__main__ import library

    place = f"/dev/shm/t-inject-{os.getpid()}"
    os.mkdir(place, 0o700)
    try:
        env = {**os.environ, "INJECT": "1", "LD_PRELOAD": library(place), "COPYLESS_DIR": place}
        done = subprocess.run(
            [sys.executable, "-c", code, "--kinds", "malloc,mmap,room"], capture_output=True, text=True, env=env
        )
    finally:
        subprocess.run(["rm", "-r", place], check=True)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "left 1 blocks" in done.stdout


# Functions that make, take and release nothing in shared memory.
PASSIVE = {
    "AuthenticationError", "Explanation", "Handle", "ProcessError", "allow_connection_pickling", "cpu_count",
    "current_process", "freeze_support", "get_all_start_methods", "get_logger", "get_start_method", "log_to_stderr",
    "parent_process", "reducer", "set_executable", "set_forkserver_preload", "set_start_method",
}  # fmt: skip
PASSIVE_METHODS = {
    "cancel_join_thread",
    "copied_bytes",  # of explain
    "fromaddress",  # over existing memory
    "get_lock",
    "get_obj",
    "is_alive",
    "register",  # of a manager's class
    "run",
}


def test_every_public_constructor_and_operation_is_among_what_fails():
    """By their names: an operation contains each function that `copyless` has."""
    import copyless

    tree = ast.parse(Path(__file__).with_name("inject").joinpath("operations.py").read_text())
    named = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    named |= {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    missing = []
    for name in copyless.__all__:
        public = getattr(copyless, name)
        if (isinstance(public, type) and issubclass(public, Exception)) or name in PASSIVE:
            continue
        if name not in named:
            missing.append(name)
        if not isinstance(public, type) or name == "SharedArray":  # its methods are those of numpy
            continue
        missing += [
            f"{name}.{method}"
            for method, what in inspect.getmembers(public, callable)
            if method[0] != "_" and method not in named and method not in PASSIVE_METHODS
        ]
    assert missing == []
