"""What type checkers find in programs with mistakes, and how much of the public interface has types.

The programs are in tests/typing/; each marks its mistakes by line.
"""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAMS = Path(__file__).parent / "typing"
SOURCE = Path(__file__).parent.parent / "src/copyless"
# pyright reads the environment of this interpreter.
ENVIRONMENT = {
    **os.environ,
    "PATH": os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", "")]),
    "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1",
}


def changed(text):
    """A program of multiprocessing after the change of import."""
    text = text.replace("from concurrent.futures import", "from copyless import")
    return re.sub(r"^(import|from) multiprocessing", r"\1 copyless", text, flags=re.M)


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """A directory with the programs: one of multiprocessing, the same one changed, and one of copyless."""
    there = tmp_path_factory.mktemp("typing")
    text = (PROGRAMS / "multiprocessing_program.py").read_text()
    (there / "theirs.py").write_text(text)
    (there / "changed.py").write_text(changed(text))
    (there / "ours.py").write_text((PROGRAMS / "copyless_program.py").read_text())
    return there


def found_by_mypy(programs):
    api = pytest.importorskip("mypy.api")
    files = sorted(map(str, programs.glob("*.py")))
    out, err, _ = api.run(["--strict", "--config-file", "", "--cache-dir", str(programs / "cache"), *files])
    assert not err, err
    return {
        (Path(name).name, int(line)): text
        for name, line, text in re.findall(r"^(.*\.py):(\d+): error: (.*)", out, re.M)
    }


def pyright(*args, cwd):
    """The output of pyright, as JSON. Skips if it is not installed, or has no Node.js to run with."""
    if importlib.util.find_spec("pyright") is None:
        pytest.skip("pyright is not installed: pip install 'copyless[check]'")
    command = [sys.executable, "-m", "pyright"]
    options = {"capture_output": True, "text": True, "cwd": cwd, "env": ENVIRONMENT}
    try:
        able = subprocess.run([*command, "--version"], timeout=60, **options)
    except subprocess.TimeoutExpired:
        pytest.skip("pyright did not start within 60 seconds: it looks for Node.js on the network")
    if able.returncode:
        pytest.skip(f"pyright cannot run here: {(able.stderr or able.stdout)[-300:]}")
    done = subprocess.run([*command, "--outputjson", *args], timeout=200, **options)
    return json.loads(done.stdout)


def found_by_pyright(programs):
    said = pyright("--pythonpath", sys.executable, *sorted(p.name for p in programs.glob("*.py")), cwd=programs)
    return {
        (Path(each["file"]).name, each["range"]["start"]["line"] + 1): each["message"]
        for each in said["generalDiagnostics"]
        if each["severity"] == "error"
    }


def planted(name, text):
    """The lines of a program that have a mistake, by its marks."""
    marks = {"theirs.py": "wrong for multiprocessing", "changed.py": "wrong for copyless"}
    for number, line in enumerate(text.splitlines(), 1):
        if "  # " in line and line.rpartition("  # ")[2] in ("wrong", marks.get(name)):
            yield name, number


@pytest.mark.parametrize("finder", [found_by_mypy, found_by_pyright])
def test_a_checker_finds_each_planted_mistake_and_no_other(programs, finder):
    expected = {mark for path in programs.glob("*.py") for mark in planted(path.name, path.read_text())}
    assert len(expected) > 350
    found = finder(programs)
    lines = {path.name: path.read_text().splitlines() for path in programs.glob("*.py")}
    assert not {mark: lines[mark[0]][mark[1] - 1].strip() for mark in expected - found.keys()}, "not found"
    assert not {mark: text for mark, text in found.items() if mark not in expected}, "found where nothing is wrong"


def test_our_types_find_what_those_of_the_standard_library_find():
    text = (PROGRAMS / "multiprocessing_program.py").read_text()
    theirs, ours = ({n for _, n in planted(name, text)} for name in ("theirs.py", "changed.py"))
    allowed = {n for n, line in enumerate(text.splitlines(), 1) if "wrong for multiprocessing" in line}
    assert {text.splitlines()[n - 1].strip() for n in allowed} == {
        "s.qsize()  # wrong for multiprocessing"  # ours has it
    }
    assert theirs - ours == allowed
    assert len(ours) > len(theirs)


# Classes that derive from a class of joblib, which has no types.
UNTYPED = {"TerminatedWorkerError", "UnreadableTaskError", "CopylessBackend", "Backend"}


def test_every_public_name_has_a_type(tmp_path):
    said = pyright("--verifytypes", "copyless", "--ignoreexternal", cwd=tmp_path)["typeCompleteness"]
    bad = [each["name"] for each in said["symbols"] if each["isExported"] and not each["isTypeKnown"]]
    assert not [name for name in bad if name.rpartition(".")[2] not in UNTYPED], bad
    assert said["exportedSymbolCounts"]["withKnownType"] > 700
    assert said["completenessScore"] > 0.98


def test_the_methods_of_contexts_have_the_types_of_the_functions():
    """The stub repeats the signatures of `sharedctypes`, because checkers cannot learn them in another way."""
    functions = (SOURCE / "sharedctypes.py").read_text()
    stub = (SOURCE / "_ctypes_of_contexts.pyi").read_text()

    def signatures(text, name):
        for parameters, result in re.findall(rf"@overload\s+def {name}\((.*?)\) -> ([^\n]*): \.\.\.\n", text, re.S):
            words = re.sub(r"\s+", " ", parameters.replace("ctx: object = None", "")).strip(" ,")
            yield re.sub(r"(, )+", ", ", words.removeprefix("self").strip(" ,")), result.rpartition("sharedctypes.")[2]

    for name in ("Value", "Array", "RawValue", "RawArray"):
        of_stub = stub.partition(f"class Makes{name}:")[2].partition("\nclass ")[0]
        assert list(signatures(functions, name)) == list(signatures(of_stub, "__call__")), name
        assert list(signatures(functions, name))
