"""The wheel that people install: built by `make wheel`, used where there is no compiler."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def wheel():
    """That of this checkout: `make wheel` makes it, and the gate does so before these tests."""
    wheels = sorted((ROOT / "dist").glob("copyless-*.whl"), key=os.path.getmtime)
    if not wheels:
        pytest.skip("no wheel: make wheel")
    return wheels[-1]


@pytest.fixture(scope="module")
def bare(wheel, tmp_path_factory):
    """An environment with the wheel and nothing to compile with; how to run something in it."""
    home = tmp_path_factory.mktemp("bare")
    subprocess.run([sys.executable, "-m", "venv", home / "venv"], check=True)
    path = str(home / "venv" / "bin")
    environment = {"PATH": path, "HOME": str(home), "COPYLESS_DIR": os.environ["COPYLESS_DIR"]}
    environment |= {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "SSL_", "http", "HTTP"))}

    def start(*words, **more):
        return subprocess.run(
            [os.path.join(path, words[0]), *words[1:]], cwd=home, env=environment | more, capture_output=True, text=True,
            timeout=250,
        )  # fmt: skip

    assert all(shutil.which(name, path=path) is None for name in ("cc", "gcc", "clang", "ninja", "meson"))
    done = start("python", "-m", "pip", "--disable-pip-version-check", "-q", "install", "--only-binary", ":all:", str(wheel))
    assert done.returncode == 0, done.stderr
    return start


def test_its_tag_and_its_symbols(wheel):
    assert re.search(r"-manylinux_2_28_(x86_64|aarch64)\.whl$", wheel.name)
    build = Path(sys.executable).parent.parent / "wheel" / "bin" / "python"
    if not build.exists():
        pytest.skip("make wheel makes the environment that reads symbols")
    done = subprocess.run([build, ROOT / "wheels" / "symbols.py", wheel], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_symbol_that_the_promised_glibc_lacks_is_found(wheel, tmp_path):
    """The check itself: a library that asks for what only this system's glibc has."""
    build = Path(sys.executable).parent.parent / "wheel" / "bin" / "python"
    if not build.exists():
        pytest.skip("make wheel makes the environment that reads symbols")
    source = tmp_path / "late.c"
    source.write_text("int no_such_function_in_any_libc(void);\nint ask(void) { return no_such_function_in_any_libc(); }\n")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", tmp_path / "late.so", source], check=True)
    shutil.make_archive(str(tmp_path / "late"), "zip", tmp_path, "late.so")
    done = subprocess.run([build, ROOT / "wheels" / "symbols.py", tmp_path / "late.zip"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "late.so: no_such_function_in_any_libc has no version" in done.stdout


def test_the_first_example_of_the_readme_runs(bare, tmp_path):
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), flags=re.S | re.M)
    program = tmp_path / "first.py"
    program.write_text(blocks[0])
    done = bare("python", str(program))
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[0. 1. 2. 3. 0.]\n"


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
