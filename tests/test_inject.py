"""A short form of `make inject`: every third call of the system fails, in every operation."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(
    "LD_PRELOAD" in os.environ or not sys.platform.startswith("linux"),
    reason="needs a library of its own before all others",
)


def test_whatever_call_fails_the_next_one_works_and_nothing_is_left():
    done = subprocess.run(
        [sys.executable, "-m", "tests.inject", "--step", "3"], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    failures = [int(number) for number in re.findall(r": (\d+) failures, 0 wrong", done.stdout)]
    assert len(failures) > 25, done.stdout
    assert sum(failures) > 200, done.stdout


def test_a_fault_is_found():
    """What is wrong in an operation is told: here one that loses the array of whoever it failed for."""
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
