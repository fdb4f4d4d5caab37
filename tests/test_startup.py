"""A program loads nothing slow before it needs it. `bench/startup.py` measures how long the start takes."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import copyless

# Imported at first use: an event loop, TLS, an array, a function sent by value, a progress bar, a file without a name.
LATE = {"asyncio", "ssl", "numpy", "cloudpickle", "rich", "typer", "psutil", "tempfile"}
# As slow, and used by nothing at the start.
SLOW = {
    "concurrent.futures",
    "dataclasses",
    "inspect",
    "ast",
    "dis",
    "hashlib",
    "json",
    "argparse",
    "importlib.metadata",
    "logging",
    "multiprocessing.connection",
    "traceback",
    "typing",
}
WATCHED = LATE | SLOW


def loaded(code, *args, watched=WATCHED):
    """The watched modules that a program has loaded when it exits."""
    end = f"\nimport sys; print('loaded', *sorted({watched!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code + end, *args], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split()[1:])


# What the standard library loads itself, more in later versions: to start a process, and to show how a command is used.
FORK = "import multiprocessing as m; m.set_start_method('fork'); "  # a fork server starts otherwise, and loads more
STARTS = loaded(f"{FORK}p = m.Process(target=abs, args=(1,)); p.start(); p.join()")
SHOWS_USE = loaded("import argparse; argparse.ArgumentParser().format_usage()")


@pytest.mark.parametrize(
    ("code", "needed"),
    [
        ("import copyless", set()),
        ("import copyless; copyless.Queue(); copyless.Lock()", set()),
        ("import copyless; q = copyless.Queue(); q.put([1, 'two', {3: 4.0}]); q.get(); copyless.JoinableQueue(); "
         "copyless.SimpleQueue()", set()),
        ("import copyless; copyless.RLock(); copyless.Event(); copyless.Condition(); copyless.Semaphore(); "
         "copyless.Barrier(2)", set()),
        ("import copyless; copyless.wait([copyless.Event()], 0)", set()),
        (f"{FORK}import copyless; p = copyless.Pool(2)", set()),
        (f"{FORK}import copyless; p = copyless.Pool(2); p.map(abs, range(3))", set()),
        ("import copyless; a = copyless.zeros(3)", {"numpy"}),
        ("import asyncio, copyless; asyncio.run(copyless.Queue().aput(1))", {"asyncio", "ssl"}),
    ],
)  # fmt: skip
def test_a_program_loads_what_it_uses(code, needed):
    found = loaded(code)
    assert found & LATE == needed
    if not needed & {"numpy", "asyncio"}:
        assert found & SLOW <= (STARTS if "Pool" in code else set())


# Parts of the package that few programs need as they begin, and modules of the standard library that only they need.
SELDOM_USED = {
    "contextlib",
    "weakref",
    "copyless._loaders",
    "copyless._objects.cooperative",
    "copyless._one_process",
    "copyless._storage.registries",
    "copyless._transfer.dtypes",
    "copyless._transfer.packing",
    "copyless._workers.feeder",
    "copyless.waiting",
}
STANDARD = loaded("import multiprocessing, queue", watched=SELDOM_USED)  # more in later versions of Python


@pytest.mark.parametrize(
    ("code", "needed"),
    [
        ("copyless.Queue(); copyless.Lock()", set()),
        ("copyless.JoinableQueue(); copyless.SimpleQueue(); copyless.RLock(); copyless.Event(); copyless.Condition(); "
         "copyless.Semaphore(); copyless.Barrier(2); copyless.RWLock()", set()),
        ("copyless.wait([copyless.Event()], 0)", {"copyless.waiting", "weakref"}),
        ("copyless.Event().fileno()", set()),
        ("p = copyless.Pool(2)", {"contextlib", "weakref", "copyless._loaders", "copyless._one_process",
                                  "copyless._transfer.packing"}),
    ],
)  # fmt: skip
def test_a_program_loads_the_parts_that_it_uses(code, needed):
    assert loaded(f"import copyless; {code}", watched=SELDOM_USED) - STANDARD == needed - STANDARD


COMMAND = """
import sys
from copyless.cli.app import app
sys.argv = ["copyless", *sys.argv[1:]]
code = app()
"""


@pytest.mark.parametrize("command", ["--version", "ls", "inspect t-startup", "reap", "doctor"])
def test_a_command_loads_what_it_uses(command):
    kept = copyless.zeros(3, name="t-startup") if "inspect" in command else None
    found = loaded(COMMAND, *command.split())
    assert found & LATE == ({"numpy"} if "inspect" in command else set())  # an array is shown
    assert "numpy" in found or found & SLOW <= {"argparse", "typing"} | SHOWS_USE
    del kept


# What `run` needs only to print help, to use MPI, or when a rank is killed.
SELDOM = {"argparse", "subprocess", "signal", "selectors", "threading", "queue", "ctypes", "pickle", "multiprocessing"}


@pytest.mark.parametrize("options", ["-n 1", "-n 2 --no-prefix", "--ranks=2 --bind-to core --oversubscribe"])
def test_run_loads_almost_nothing(options):
    before = "import copyless\nalready = set(sys.modules)\n"
    asked = f"{before}{COMMAND}\nprint('more', *sorted(set(sys.modules) - already), file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", "import sys\n" + asked, "run", *options.split(), "true"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    more = set(done.stderr.splitlines()[-1].split()[1:])
    assert "copyless.comm._programs" in more
    if sys.version_info >= (3, 13):  # `ShutDown` of `queue` is one of our base classes
        code = "import sys; already = set(sys.modules); import queue; print(*set(sys.modules) - already)"
        more -= set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.split())
    assert more & (SELDOM | WATCHED) == set()
    others = {name for name in more if not name.startswith(("copyless", "_cython", "cython_runtime"))}
    others.discard("_py_warnings")  # the greater part of warnings, from Python 3.14 on
    # `os.get_exec_path` imports warnings
    assert others <= {"_blake2", "_signal", "_struct", "errno", "fcntl", "resource", "select", "struct", "warnings"}


def test_no_module_makes_a_free_threaded_interpreter_enable_its_gil():
    """It does so, for the whole process, when it loads an extension module that does not declare this."""
    sources = sorted((Path(__file__).parent.parent / "src").rglob("*.pyx"))
    assert sources
    for path in sources:
        first = path.read_text().partition("\n")[0]
        assert "freethreading_compatible=True" in first, path


@pytest.mark.parametrize("content", [None, b"no library"], ids=["missing", "damaged"])
def test_a_library_that_cannot_be_loaded_is_named(content, tmp_path):
    home, without = Path(copyless.__file__).parent, tmp_path / "copyless"
    shutil.copytree(home, without, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    if content is not None:
        library = next(home.glob("_native.*.so"))
        (without / library.name).write_bytes(content)
    code = "import sys; sys.path.insert(0, sys.argv[1]); import copyless; copyless.Lock()"
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert f"the library of copyless for this Python ({sys.implementation.cache_tag})" in done.stderr, done.stderr
    assert f"cannot be loaded from {without}" in done.stderr
    assert content is None or "file too short" in done.stderr
