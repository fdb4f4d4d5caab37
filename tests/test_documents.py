"""Everything the documents show runs: the examples, and the example in each public docstring."""

import doctest
import importlib
import os
import subprocess
import sys

import pytest

EXAMPLES = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "examples")
MODULES = ["copyless.arrays", "copyless.memory", "copyless.core._memory", "copyless.shared_memory", "copyless.sharing",
           "copyless.storage.settings", "copyless.storage.store", "copyless.synchronize", "copyless.queues", "copyless.rings",
           "copyless.sharedctypes", "copyless.pool", "copyless.futures",
           "copyless.managers", "copyless.context", "copyless.explaining", "copyless.records"]  # fmt: skip


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
        "latest_frame.py", "robot_state.py", "jobs.py",
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
