"""COPYLESS_SPACE: unrelated programs share nothing, not even a lock or a limit."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys

import pytest

from copyless import configure
from copyless._storage.settings import Settings
from tests.conftest import METHODS, python, start_python

HOLD = """
import sys, copyless
a = copyless.full(3, float(sys.argv[1]), name="t-space")
print(copyless.configure().space, copyless.open("t-space").sum(), flush=True)
input()
"""


@contextlib.contextmanager
def holder(space: str, value: int):
    process = start_python(HOLD, str(value), COPYLESS_SPACE=space)
    try:
        told = process.stdout.readline()
        assert told == f"{space} {3.0 * value}\n", told or process.stderr.read()
        yield process
        process.communicate("\n", timeout=60)
    finally:
        process.kill()
        process.wait()


def test_the_same_name_in_two_spaces_is_two_arrays():
    ask = "import copyless; print(copyless.open('t-space').sum())"
    with holder("one", 1), holder("two", 2):
        assert python(ask, COPYLESS_SPACE="one").stdout == "3.0\n"
        assert python(ask, COPYLESS_SPACE="two").stdout == "6.0\n"
        for other in ("", "three"):
            assert "FileNotFoundError" in python(ask, COPYLESS_SPACE=other, check=False).stderr


def test_each_space_has_a_lock_of_its_own():
    """A process that is stopped with the registry's lock in one space delays no process in another."""
    place = os.environ.get("COPYLESS_DIR", "/dev/shm")
    with holder("one", 1), holder("two", 2):
        found = [os.stat(f"{place}/copyless-{os.geteuid()}-{space}/registry.4").st_ino for space in ("one", "two")]
    assert found[0] != found[1]


def test_a_space_goes_with_its_last_process():
    place = os.environ.get("COPYLESS_DIR", "/dev/shm")
    with holder("gone", 1):
        assert os.path.isdir(f"{place}/copyless-{os.geteuid()}-gone")
    python("import copyless; copyless.reap()", COPYLESS_SPACE="gone")
    left = [name for name in os.listdir(place) if "-gone" in name]
    assert left == [] or os.listdir(f"{place}/{left[0]}") == []


def test_a_handle_of_another_space_says_so():
    make = "import copyless, sys; a = copyless.zeros(3); print(copyless.handle(a).hex(), flush=True); input()"
    maker = start_python(make, COPYLESS_SPACE="one")
    try:
        handle = maker.stdout.readline().strip()
        done = python(
            "import copyless, sys; copyless.attach(bytes.fromhex(sys.argv[1]))",
            handle,
            COPYLESS_SPACE="two",
            check=False,
        )
        assert "ForeignHostError" in done.stderr, done.stderr
        assert "COPYLESS_SPACE" in done.stderr
    finally:
        maker.communicate("\n", timeout=60)


@pytest.mark.parametrize("method", METHODS)
def test_children_are_in_the_space_of_their_parent(method, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "import sys, copyless\n"
        "def total(a):\n"
        "    return a.sum(), copyless.configure().space\n"
        "if __name__ == '__main__':\n"
        "    copyless.configure(space='family')\n"
        "    with copyless.get_context(sys.argv[1]).Pool(1) as pool:\n"
        "        print(pool.apply(total, (copyless.ones(5),)))\n"
    )
    done = subprocess.run([sys.executable, program, method], capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr) == ("(np.float64(5.0), 'family')\n", "")


@pytest.mark.parametrize("bad", ["a/b", "..", ".1", "a.1", "-a", "ä", "x" * 33, "a b", "a\n", 5])
def test_what_is_no_name_of_a_space_is_refused(bad):
    before = configure()
    with pytest.raises(ValueError, match="space"):
        configure(space=bad)
    assert before.space == configure().space
    if isinstance(bad, str):
        done = python("import copyless; copyless.zeros(1)", COPYLESS_SPACE=bad, check=False)
        said = done.stderr.splitlines()[-1]
        assert "COPYLESS_SPACE=" in said
        assert "at most 32 letters" in said  # the last line has all of it


def test_a_space_is_fixed_once_memory_is_in_use():
    python("""
        import copyless
        copyless.zeros(1)
        copyless.configure(space="")
        try:
            copyless.configure(space="late")
        except RuntimeError as error:
            assert "COPYLESS_SPACE" in str(error)
        else:
            raise SystemExit("moved")
        assert copyless.configure().space == ""
    """, COPYLESS_SPACE="")  # fmt: skip


def command(*args: str) -> str:
    return subprocess.run([sys.executable, "-m", "copyless", *args], capture_output=True, text=True, timeout=60).stdout


def test_the_commands_tell_a_mistyped_space_and_a_bad_setting_in_a_line():
    ls = [sys.executable, "-m", "copyless", "ls", "--json"]
    with holder("typed", 4):
        done = subprocess.run([*ls, "--space", "typd"], capture_output=True, text=True, timeout=60)
        assert json.loads(done.stdout)["blocks"] == []
        assert "none of your processes uses the space 'typd' now" in done.stderr
        assert "typed" in done.stderr
    wrong = {**os.environ, "COPYLESS_IDLE": "soon"}
    done = subprocess.run(ls, capture_output=True, text=True, timeout=60, env=wrong)
    assert done.returncode == 1
    assert done.stderr.startswith("copyless: COPYLESS_IDLE='soon' is invalid: ")
    assert len(done.stderr.splitlines()) == 1


def test_the_commands_look_into_a_space():
    with holder("seen", 4):
        names = [block["name"] for block in json.loads(command("ls", "--json", "--space", "seen"))["blocks"]]
        assert names == ["t-space"]
        assert "t-space" not in command("ls", "--json")
        assert "4." in command("inspect", "t-space", "--space", "seen")
        facts = json.loads(command("doctor", "--json", "--space", "seen"))["facts"]
        assert facts["storage directory"].endswith("-seen")
        assert "seen" in json.loads(command("doctor", "--json"))["facts"]["spaces in use"]
        assert json.loads(command("reap", "--json", "--space", "seen"))["bytes_given_back"] >= 0
    assert command("ls", "--space", "a/b") == ""


def test_the_default_is_the_common_space():
    assert Settings().space == ""
