"""The C floor's own tests: each file compiled with its kill points and run without an interpreter."""

import glob
import os
import shutil
import subprocess

import pytest

HERE = os.path.dirname(os.path.abspath(__file__))
NATIVE = os.path.join(HERE, "..", "src", "copyless", "_core", "native")
TESTS = sorted(os.path.basename(path)[5:-2] for path in glob.glob(os.path.join(HERE, "native", "test_*.c")))


def test_every_concept_has_one():
    assert {"wait", "copy", "lock", "journal", "registry", "heap", "reap", "fork", "books", "holds", "kill", "sync", "queue", "ring", "list"} <= set(TESTS)


@pytest.mark.parametrize("name", TESTS)
def test_native(name, tmp_path):
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    assert compiler, "a C compiler built this package, so there is one"
    program = str(tmp_path / name)
    subprocess.run(
        [compiler, "-std=gnu11", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-DCL_KILL_POINTS", f"-I{NATIVE}",
         os.path.join(HERE, "native", f"test_{name}.c"), *glob.glob(os.path.join(NATIVE, "*.c")), "-o", program, "-lpthread"],
        check=True,
    )  # fmt: skip
    done = subprocess.run([program], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith(f"{name}: ok\n")


@pytest.mark.parametrize("name", ["queue", "ring"])
def test_model(name, tmp_path):
    """Every interleaving of two on each side, and one death: see the file."""
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    program = str(tmp_path / name)
    source = os.path.join(HERE, "native", f"model_{name}.c")
    subprocess.run([compiler, "-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", source, "-o", program], check=True)
    done = subprocess.run([program], capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith(f"model_{name}: ok\n")
    assert int(done.stdout.split()[0]) > 100_000  # states
