"""Run the kept inputs of `make fuzz` again, without its tools: no fault that was found comes back.

(`make check-native` also runs those of the C targets.)
"""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

HERE = Path(__file__).parent
FUZZ = HERE / "fuzz"


@pytest.mark.parametrize("name", ["arrays", "inbox", "wire"])
def test_kept_inputs_of_python_targets(name):
    done = subprocess.run([sys.executable, "-m", "tests.fuzz.python", name, "--replay", FUZZ / "corpus" / name],
        cwd=HERE.parent,
                          capture_output=True, text=True, timeout=120)  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout.split()[0]) > 10


def test_kept_inputs_of_the_plain_codec(tmp_path):
    library, name = sysconfig.get_config_var("LIBDIR"), f"python{sysconfig.get_config_var('LDVERSION')}"
    compiler = shutil.which("cc")
    if compiler is None or not Path(f"{library}/lib{name}.so").exists():
        pytest.skip("this interpreter has no shared library to link to, or there is no C compiler")
    native = HERE.parent / "src/copyless/_core"
    program = tmp_path / "plain"
    built = subprocess.run(
        [compiler, "-std=gnu11", "-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all",
         f"-I{sysconfig.get_path('include')}", f"-I{native}", f"-I{native}/native", f"-I{FUZZ}", FUZZ / "fuzz_plain.c",
         FUZZ / "replay.c",
         native / "native/base.c", "-o", program, f"-L{library}", f"-l{name}", f"-Wl,-rpath,{library}"],
        capture_output=True, text=True,
    )  # fmt: skip
    if built.returncode != 0 and "cannot find" in built.stderr:
        pytest.skip("this compiler has no sanitizers")
    assert built.returncode == 0, built.stderr
    done = subprocess.run([program, FUZZ / "corpus/plain"], capture_output=True, text=True, timeout=120,
                          env={**os.environ, "ASAN_OPTIONS": "detect_leaks=0"})  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout.split()[0]) > 10
