"""Everything the documents show runs: the examples, and the example in each public docstring."""

import doctest
import importlib
import os
import socket
import subprocess
import sys

import pytest

EXAMPLES = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "examples")
MODULES = ["copyless.arrays", "copyless.memory", "copyless._core._memory", "copyless.shared_memory", "copyless.sharing",
           "copyless.storage.settings", "copyless.storage.store", "copyless.synchronize", "copyless.queues", "copyless.rings",
           "copyless.sharedctypes", "copyless.pool", "copyless.futures",
           "copyless.managers", "copyless.context", "copyless.explaining", "copyless.records",
           "copyless.joblib"]  # fmt: skip


def run(name, *args):
    done = subprocess.run(
        [sys.executable, os.path.join(EXAMPLES, name), *args], capture_output=True, text=True, timeout=250
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    return done.stdout


@pytest.mark.parametrize("module", MODULES)
def test_docstrings(module):
    import numpy as np

    loaded = importlib.import_module(module)
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


def test_every_example_is_run_here():
    assert {name for name in os.listdir(EXAMPLES) if name.endswith(".py")} == {
        "memory_object.py", "producer.py", "consumer.py", "raster.py", "dataframe.py", "frame_pipeline.py",
        "latest_frame.py", "robot_state.py", "jobs.py", "task_server.py", "ctypes_frames.py", "executor_dataframe.py",
        "existing_program.py", "ring_of_ranks.py", "stencil.py", "scatter_frames.py",  # tests/comm/test_comm.py runs these
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
