"""The wheel that people install: built by `make wheel`, used where there is no compiler."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests import snippets
from tests.snippets import ROOT

EM_AARCH64 = 183  # in an ELF header: which processor the code is for


@pytest.fixture(scope="module")
def wheel():
    """The wheel of this checkout: `make wheel` builds it, and CI does so before these tests."""
    wheels = sorted((ROOT / "dist").glob("copyless-*.whl"), key=os.path.getmtime)
    if not wheels:
        pytest.skip("no wheel: make wheel")
    return wheels[-1]


@pytest.fixture(scope="module")
def bare(wheel, tmp_path_factory):
    """An environment with the wheel and without a compiler; how to run a command in it."""
    home = tmp_path_factory.mktemp("bare")
    subprocess.run([sys.executable, "-m", "venv", home / "venv"], check=True)
    path = str(home / "venv" / "bin")
    environment = {"PATH": path, "HOME": str(home), "COPYLESS_DIR": os.environ["COPYLESS_DIR"]}
    environment |= {
        name: value for name, value in os.environ.items() if name.startswith(("PIP_", "SSL_", "http", "HTTP"))
    }

    def start(*words, cwd=home, **more):
        return subprocess.run(
            [os.path.join(path, words[0]), *words[1:]], cwd=cwd, env=environment | more, capture_output=True, text=True,
            timeout=250,
        )  # fmt: skip

    assert all(shutil.which(name, path=path) is None for name in ("cc", "gcc", "clang", "ninja", "meson"))
    done = start(
        "python", "-m", "pip", "--disable-pip-version-check", "-q", "install", "--only-binary", ":all:", str(wheel)
    )
    assert done.returncode == 0, done.stderr
    return start


def test_its_tag_and_its_symbols(wheel):
    assert re.search(r"-manylinux_2_28_(x86_64|aarch64)\.whl$", wheel.name)
    build = Path(sys.executable).parent.parent / "wheel" / "bin" / "python"
    if not build.exists():
        pytest.skip("make wheel makes the environment that reads symbols")
    done = subprocess.run([build, ROOT / "wheels" / "symbols.py", wheel], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_wheel_for_aarch64_has_its_tag_its_symbols_and_its_code():
    wheels = sorted((ROOT / "dist" / "aarch64").glob("copyless-*.whl"), key=os.path.getmtime)
    if not wheels:
        pytest.skip("no wheel for aarch64: make wheel-aarch64")
    wheel = wheels[-1]
    assert wheel.name.endswith("-manylinux_2_28_aarch64.whl")
    with zipfile.ZipFile(wheel) as files:
        headers = {name: files.read(name)[:20] for name in files.namelist() if name.endswith(".so")}
    assert headers
    for name, header in headers.items():
        assert name.endswith("-aarch64-linux-gnu.so")
        assert header[:4] == b"\x7fELF"
        assert int.from_bytes(header[18:20], "little") == EM_AARCH64, name
    build = Path(sys.executable).parent.parent / "wheel" / "bin" / "python"
    if not build.exists():
        pytest.skip("make wheel-aarch64 makes the environment that reads symbols")
    done = subprocess.run([build, ROOT / "wheels" / "symbols.py", wheel], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_symbol_that_the_promised_glibc_lacks_is_found(wheel, tmp_path):
    """The check itself, on a library that needs a symbol that only this system's glibc has."""
    build = Path(sys.executable).parent.parent / "wheel" / "bin" / "python"
    if not build.exists():
        pytest.skip("make wheel makes the environment that reads symbols")
    source = tmp_path / "late.c"
    source.write_text(
        "int no_such_function_in_any_libc(void);\nint ask(void) { return no_such_function_in_any_libc(); }\n"
    )
    subprocess.run(["cc", "-shared", "-fPIC", "-o", tmp_path / "late.so", source], check=True)
    shutil.make_archive(str(tmp_path / "late"), "zip", tmp_path, "late.so")
    done = subprocess.run(
        [build, ROOT / "wheels" / "symbols.py", tmp_path / "late.zip"], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "late.so: no_such_function_in_any_libc has no version" in done.stdout


@pytest.fixture(scope="module")
def pandas(bare, tmp_path_factory):
    """A directory with pandas, beside the bare environment: only the README's DataFrames need it."""
    place = str(tmp_path_factory.mktemp("pandas"))
    options = ("--disable-pip-version-check", "-q", "--only-binary", ":all:", "--target", place)
    done = bare("python", "-m", "pip", "install", *options, "pandas")
    assert done.returncode == 0, done.stderr
    return place


@pytest.mark.parametrize("snippet", snippets.README, ids=lambda snippet: f"{snippet.number}")
def test_a_program_of_the_readme_prints_what_it_says(snippet, bare, tmp_path, request):
    memory = f"{os.environ['COPYLESS_DIR']}-of-a-wheel"
    more = {"PYTHONPATH": request.getfixturevalue("pandas")} if "import pandas" in snippet.code else {}
    snippet.write(tmp_path)
    os.mkdir(memory, 0o700)
    try:
        done = bare(*snippet.command, cwd=tmp_path, COPYLESS_DIR=memory, **more)
    finally:
        shutil.rmtree(memory)
    assert (done.stdout, done.stderr, done.returncode) == (snippet.shown, "", 0)


def test_the_command_works(bare, tmp_path):
    assert bare("copyless", "--version").stdout.startswith("copyless ")
    assert bare("copyless", "doctor").returncode == 0
    program = tmp_path / "ranks.py"
    program.write_text("from copyless import comm\nprint(sum(comm.world().allgather(comm.world().rank + 1)))\n")
    done = bare("copyless", "run", "-n", "2", str(program))
    assert (done.returncode, sorted(done.stdout.split())) == (0, ["3", "3", "[0]", "[1]"]), done.stdout + done.stderr


def test_each_kind_of_object_works(bare, tmp_path):
    program = tmp_path / "kinds.py"
    program.write_text(
        """
import copyless, numpy as np, threading

def child(a, q, lock, event, ring):
    with lock:
        a += 1
    with ring.latest() as frame:
        q.put((frame["v"].copy(), a.sum()))
    event.set()

if __name__ == "__main__":
    for method in ("spawn", "fork"):
        context = copyless.get_context(method)
        a, q, lock, event = copyless.zeros(1 << 20), copyless.Queue(), copyless.Lock(), copyless.Event()
        ring = copyless.RingBuffer({"v": ((3,), "i4")}, slots=4)
        ring.put({"v": np.arange(3)})
        held = [threading.Thread(target=lambda: [copyless.zeros(10) for _ in range(1000)]) for _ in range(4)]
        [t.start() for t in held]
        p = context.Process(target=child, args=(a, q, lock, event, ring))
        p.start()
        value, total = q.get(timeout=60)
        assert event.wait(60) and value.tolist() == [0, 1, 2] and total == 1 << 20 and a[0] == 1
        p.join()
        [t.join() for t in held]
        with copyless.Pool(2) as pool:
            assert pool.map(abs, range(-5, 0)) == [5, 4, 3, 2, 1]
    print("right")
"""
    )
    done = bare("python", str(program))
    assert (done.stdout, done.returncode) == ("right\n", 0), done.stderr
