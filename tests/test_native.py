"""The tests of the C core: each file is compiled with its kill points and run without an interpreter."""

import glob
import importlib.util
import os
import re
import shutil
import subprocess

import pytest

HERE = os.path.dirname(os.path.abspath(__file__))
NATIVE = os.path.join(HERE, "..", "src", "copyless", "_core", "native")
TESTS = sorted(os.path.basename(path)[5:-2] for path in glob.glob(os.path.join(HERE, "native", "test_*.c")))


def test_every_concept_has_one():
    assert {
        "wait",
        "copy",
        "lock",
        "journal",
        "registry",
        "snapshot",
        "heap",
        "reap",
        "fork",
        "books",
        "holds",
        "kill",
    } <= set(TESTS)
    assert {"sync", "queue", "ring", "list", "damage"} <= set(TESTS)


FLAGS = [
    "-std=gnu11",
    "-O1",
    "-g",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-DCL_KILL_POINTS",
    f"-I{NATIVE}",
    f"-I{NATIVE}/structures",
]


def compiler() -> str:
    found = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    assert found, "a C compiler built this package, so there is one"
    return found


@pytest.fixture(scope="module")
def objects(tmp_path_factory):
    """The C core, compiled once."""
    place = tmp_path_factory.mktemp("objects")
    sources = glob.glob(os.path.join(NATIVE, "*.c")) + glob.glob(os.path.join(NATIVE, "structures", "*.c"))
    subprocess.run([compiler(), *FLAGS, "-c", *map(os.path.abspath, sources)], check=True, cwd=place)
    return [str(path) for path in place.glob("*.o")]


@pytest.mark.parametrize("name", TESTS)
def test_native(name, tmp_path, objects):
    program = str(tmp_path / name)
    source = os.path.join(HERE, "native", f"test_{name}.c")
    subprocess.run([compiler(), *FLAGS, source, *objects, "-o", program, "-lpthread"], check=True)
    done = subprocess.run([program], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith(f"{name}: ok\n")


def test_each_mutant_has_its_tests():
    """The C source and the table of `make mutants` have the same names; each mutant that survives has a reason."""
    spec = importlib.util.spec_from_file_location("mutants", os.path.join(HERE, "native", "mutants.py"))
    assert spec is not None
    assert spec.loader is not None
    mutants = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(mutants)
    assert mutants.named_in_source() == set(mutants.TESTS)
    assert set(mutants.EQUIVALENT) < set(mutants.TESTS)
    native = {test.partition("@")[0] for tests in mutants.TESTS.values() for test in tests.split() if "/" not in test}
    assert native <= set(TESTS)


@pytest.mark.parametrize("name", ["queue", "ring", "bells"])
def test_model(name, tmp_path):
    """Every interleaving of two processes on each side, and one death: see the file."""
    program = str(tmp_path / name)
    source = os.path.join(HERE, "native", f"model_{name}.c")
    subprocess.run([compiler(), "-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", source, "-o", program], check=True)
    done = subprocess.run([program], capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith(f"model_{name}: ok\n")
    assert sum(int(n) for n in re.findall(r"(\d+) states", done.stdout)) > 100_000
