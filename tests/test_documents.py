"""All code in the documents runs: the programs of the README and the pages, the examples, and the example in each
public docstring. All links have a target.
"""

import doctest
import importlib
import importlib.util
import multiprocessing
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import copyless
from tests import snippets
from tests.snippets import ROOT

EXAMPLES = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "examples")
MODULES = ["copyless", "copyless.arrays", "copyless.memory", "copyless._transfer._memory", "copyless.shared_memory",
    "copyless._storage.store",
           "copyless.synchronize", "copyless.queues", "copyless.rings", "copyless.sharedctypes", "copyless.pool",
           "copyless.futures",
           "copyless.managers", "copyless.context", "copyless.joblib", "copyless.waiting",
           "copyless.connection", "copyless._stats"]  # fmt: skip


def run(name, *args):
    done = subprocess.run(
        [sys.executable, os.path.join(EXAMPLES, name), *args], capture_output=True, text=True, timeout=250
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    return done.stdout


@pytest.mark.parametrize("module", MODULES)
def test_docstrings(module, monkeypatch):
    if sys.version_info >= (3, 14):  # a class of an example is in no module that a fork server finds
        monkeypatch.setattr(
            multiprocessing.context._default_context, "_actual_context", multiprocessing.get_context("fork")
        )
    loaded = importlib.import_module(module)
    for name in getattr(loaded, "__all__", ()):
        getattr(loaded, name)  # some are imported at first use
    finder = doctest.DocTestFinder(exclude_empty=True)
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    found = 0
    for test in finder.find(loaded, module.rpartition(".")[2]):
        if int(np.__version__.split(".")[0]) < 2:
            for example in test.examples:  # NumPy 1 prints scalars without their type
                example.want = (
                    example.want.replace("np.int64(10)", "10")
                    .replace("np.float64(3.0)", "3.0")
                    .replace("np.int64(30)", "30")
                )
        found += len(test.examples)
        runner.run(test)
        test.globs.clear()
    assert runner.summarize(verbose=False).failed == 0
    assert found > 0


def test_docstrings_of_the_communicator():
    program = """if True:
        import doctest, importlib
        for name in ("", ".local", ".futures", "._interface", "._custom_pickle"):
            module = importlib.import_module(f"copyless.comm{name}")
            failed, found = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE)
            assert found and not failed, module
    """
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_example_is_run_here():
    assert {name for name in os.listdir(EXAMPLES) if name.endswith(".py")} == {
        "memory_object.py", "producer.py", "consumer.py", "raster.py", "dataframe.py", "frame_pipeline.py",
        "latest_frame.py", "robot_state.py", "jobs.py", "task_server.py", "ctypes_frames.py", "executor_dataframe.py",
        # tests/comm/test_comm.py runs these
        "existing_program.py", "ring_of_ranks.py", "stencil.py", "scatter_frames.py",
    }  # fmt: skip


def test_memory_object():
    out = run("memory_object.py")
    assert "45.0" in out
    assert out.count("refused") == 2


def test_raster():
    assert "ten workers" in run("raster.py")


def test_dataframe():
    out = run("dataframe.py", "--workers", "2")
    assert "10,000,000 rows" in out


def test_producer_and_consumer_as_unrelated_programs_and_a_producer_killed():
    def start(name, *args):
        return subprocess.Popen([sys.executable, "-u", os.path.join(EXAMPLES, name), "--name", "t-camera", *args],
                                stdout=subprocess.PIPE, text=True)  # fmt: skip

    consumer = start("consumer.py", "--until", "30", "--patience", "0.3")
    first = start("producer.py", "--frames", "1000", "--pause", "0.01")
    assert consumer.stdout.readline().startswith("attached")
    first.kill()
    first.communicate()
    while not (line := consumer.stdout.readline()).startswith("frame"):
        assert line
    second = start("producer.py", "--frames", "2000", "--pause", "0.01")
    rest = consumer.communicate(timeout=60)[0]
    second.kill()
    second.communicate()
    assert rest.endswith("done\n")


def test_frame_pipeline():
    out = run("frame_pipeline.py", "--frames", "100")
    assert out.count("200 frames whole, 0 torn, 0 missed") >= 2


def test_latest_frame():
    assert "none older" in run("latest_frame.py")


def test_robot_state():
    assert "50 states each" in run("robot_state.py")


def test_jobs():
    out = run("jobs.py")
    assert "killed a worker" in out
    assert "40 jobs done" in out


@pytest.mark.parametrize("address", ["tcp", "here"])
def test_task_server_as_programs_that_share_no_parent(address, tmp_path):
    if address == "tcp":
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            where = "127.0.0.1:{1}".format(*free.getsockname())
    else:
        where = str(tmp_path / "tasks")

    def start(role):
        return subprocess.Popen([sys.executable, os.path.join(EXAMPLES, "task_server.py"), role, "--address", where],
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)  # fmt: skip

    roles = [start(role) for role in ("server", "producer", "client", "client", "master")]
    outs = [role.communicate(timeout=60) for role in roles[1:]]
    roles[0].terminate()
    outs.insert(0, roles[0].communicate(timeout=60))
    assert [role.returncode for role in roles] == [0] * 5, outs
    assert all(err == "" for _, err in outs)
    assert "240 results" in outs[4][0]
    assert sum(int(out.split()[3]) for out, _ in outs[2:4]) == 240


def test_ctypes_frames():
    assert "60 frames" in run("ctypes_frames.py")


def test_executor_dataframe():
    out = run("executor_dataframe.py", "--rows", "1000000", "--workers", "2")
    assert "column 'country'" in out
    assert "1,000,000 rows, 2 workers" in out


def test_an_existing_program_prints_the_same_with_its_import_changed():
    assert run("existing_program.py") == run("existing_program.py", "--stdlib")


# ---- the programs of the README and of the pages


@pytest.fixture
def start(tmp_path):
    """Run a command in a new directory, with shared memory of its own and no more installed than a user has."""
    memory = f"/dev/shm/{os.path.basename(os.environ['COPYLESS_DIR'])}-of-a-snippet"
    os.mkdir(memory, 0o700)
    commands = os.path.dirname(sys.executable)
    environment = {**os.environ, "COPYLESS_DIR": memory, "PATH": f"{commands}:{os.environ['PATH']}"}

    def start(*words):
        return subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)

    yield start
    shutil.rmtree(memory)


def test_the_readme_has_six_programs():
    assert len(snippets.README) == 6


@pytest.mark.parametrize("snippet", snippets.ALL, ids=lambda snippet: f"{snippet.page}-{snippet.number}")
def test_a_program_of_the_pages_prints_what_it_says(snippet, start, tmp_path):
    assert snippet.prints
    snippet.write(tmp_path)
    done = start(*snippet.command)
    assert (done.stdout, done.stderr, done.returncode) == (snippet.shown, "", 0)


def test_what_the_readme_keeps_by_name_is_there_in_the_next_run_until_it_is_removed(start, tmp_path):
    (visits,) = (snippet for snippet in snippets.README if "persist=True" in snippet.code)
    visits.write(tmp_path)
    (remove,) = re.findall(r"`(python -c [^`]*unlink[^`]*)`", (ROOT / "README.md").read_text())
    for number in (1, 2, 3):
        assert start(*visits.command).stdout == f"run number {number}\n"
    assert {"visits", "visits-lock"} <= set(start("copyless", "ls").stdout.split())
    done = start(*shlex.split(remove))
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)
    assert start(*visits.command).stdout == "run number 1\n"


def test_the_ranks_of_the_readme_run_under_mpi_too(start, tmp_path):
    if not shutil.which("mpiexec", path=f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"):
        pytest.skip("mpiexec is not installed")
    (ranks,) = (snippet for snippet in snippets.README if snippet.command[0] == "copyless")
    ranks.write(tmp_path)
    done = start("mpiexec", "-n", "4", "python", "program.py")
    assert (done.stdout.splitlines(), done.returncode) == (ranks.prints, 0), done.stderr


def test_the_two_commands_of_the_readme_are_targets_of_the_makefile():
    (commands,) = re.findall(r"^```\n((?:make .*\n)+)```", (ROOT / "README.md").read_text(), flags=re.M)
    targets = re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), flags=re.M)
    assert [line.split()[1] for line in commands.splitlines()] == ["demo", "test"]
    assert {"demo", "test", "wheel"} <= set(targets)


def bound(line):
    """The names that an import line binds, and what they are bound to."""
    names = {}
    exec(line, names)
    del names["__builtins__"]
    return names


@pytest.mark.parametrize("row", snippets.table("README.md", "a line of a program"), ids=lambda row: row[0])
def test_an_import_line_can_be_replaced(row):
    theirs, ours = (line for cell in row for line in snippets.codes(cell))
    if "mpi4py" in theirs:
        pytest.importorskip("mpi4py")
        code = f"{theirs}\n{ours}\nprint(pkl5.__name__, [n for n in ('Intracomm', 'Request') if not hasattr(pkl5, n)])"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
        assert done.stdout == "copyless.comm.mpi []\n", done.stderr
        return
    assert bound(theirs).keys() == bound(ours).keys()
    for name, value in bound(ours).items():
        home = value.__name__ if name == "mp" else value.__module__
        assert home.startswith(("copyless", "multiprocessing")), (name, home)


@pytest.mark.parametrize("page", ["README.md", "docs/guide.md"])
def test_each_name_of_the_tables_exists(page):
    header = "you have" if page == "README.md" else "you want"
    for row in snippets.table(page, header):
        for code in snippets.codes(row[1]):
            for dotted in re.findall(r"\bcopyless((?:\.\w+)+)", code):
                value = copyless
                if (
                    dotted.startswith(".integrations.")
                    and importlib.util.find_spec({"dask": "distributed", "ray": "ray"}[dotted.split(".")[2]]) is None
                ):
                    continue  # a module of a package that is not installed
                for i, name in enumerate(dotted.split(".")[1:]):
                    if not hasattr(value, name):
                        value = importlib.import_module(f"copyless{'.'.join(dotted.split('.')[: i + 2])}")
                    else:
                        value = getattr(value, name)


# ---- what a write to a shared DataFrame does


def frame():
    n = np.arange(10.0)
    n[2] = np.nan
    text = pd.array([f"t{i}" for i in range(10)], dtype="string[pyarrow]")
    return copyless.share(
        pd.DataFrame({"a": np.arange(10.0), "b": np.arange(10.0), "n": n, "i": np.arange(10), "text": text})
    )


def write(statement, df):
    """Run a statement of the table. Return the names of the error and the warnings."""
    values, other = np.full(10, 6.0), pd.DataFrame({"a": [50.0] * 10})
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            exec(statement, {"df": df, "values": values, "other": other})
        except (ValueError, TypeError) as error:
            return {type(error).__name__}
    return {warning.category.__name__ for warning in warned}


PANDAS = int(pd.__version__.split(".")[0])


@pytest.mark.skipif(PANDAS not in (2, 3), reason="the table has no column for this pandas")
@pytest.mark.parametrize("page", ["README.md", "docs/consistency.md"])
def test_a_worker_s_write_to_a_shared_dataframe_reaches_the_others_as_the_table_says(page):
    rows = snippets.table(page, "the worker does")
    assert len(rows) >= 6
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        for done, *by_version in rows:
            reaches = by_version[3 - PANDAS]
            statements = snippets.codes(done)
            assert statements
            for statement in statements:
                df = frame()
                before = df.copy(deep=True)
                told = pool.apply(write, (statement, df))
                assert (not df.equals(before)) == reaches.startswith("yes"), f"{statement}: the table says {reaches!r}"
                errors = set(re.findall(r"`(\w+Error)`", reaches.partition(" If all ")[0]))
                assert told >= errors, f"{statement}: {told} instead of {errors}"


# ---- links and pictures

PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    *(str(p.relative_to(ROOT)) for p in (ROOT / "docs").rglob("*.md")),
]
LINK = re.compile(r"\]\(([^)\s]+)\)")


def anchors(page):
    """The anchors of a page's headings, in the form that forges use."""
    heads = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    address = re.search(r'^Source = "(https://[^"]+/)"$', (ROOT / "pyproject.toml").read_text(), flags=re.M)[1]
    text = re.sub(r"^```.*?^```", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.S | re.M)
    pictures = set(re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text))
    for link in LINK.findall(text):
        if link.startswith(address):  # one of our own pages, as read by people who have only the README
            place = ROOT / link.removeprefix(address)
        elif link.startswith(("https://", "http://", "mailto:")):
            continue
        else:
            assert page != "README.md" or link in pictures, f"{link}: the README is read outside the checkout, too"
            place = (ROOT / page).parent / link if not link.startswith("#") else Path(f"{ROOT / page}{link}")
        file, _, anchor = str(place).partition("#")
        assert os.path.exists(file), f"{link} leads nowhere"
        assert not anchor or anchor in anchors(Path(file)), f"{link}: no such heading"


def test_the_picture_of_the_benchmarks_is_that_of_their_page(tmp_path):
    drawn = tmp_path / "drawn.svg"
    subprocess.run([sys.executable, str(ROOT / "bench" / "picture.py"), "--out", str(drawn)], check=True, timeout=60)
    kept = ROOT / "docs" / "pictures" / "benchmarks.svg"
    assert drawn.read_text() == kept.read_text(), "run python bench/picture.py"
