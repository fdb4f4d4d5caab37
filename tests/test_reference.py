"""The reference has every public name. `make docs` builds it from the sources; here the installed package is asked."""

import importlib
import importlib.util
import inspect
import os
import pkgutil
import re
import subprocess
import sys

import copyless
from tests.snippets import ROOT

sys.path.insert(0, str(ROOT / "docs" / "site"))
try:
    import reference
finally:
    sys.path.pop(0)

NEEDS = {"copyless.integrations.dask": "distributed", "copyless.integrations.ray": "ray"}


def installed_modules():
    """The public modules of the installed package, without those of the command."""
    found = {"copyless"}
    for each in pkgutil.walk_packages(copyless.__path__, "copyless.", onerror=lambda name: None):
        path = each.name.split(".")
        if not any(part.startswith("_") for part in path) and path[1] != "cli":
            found.add(each.name)
    return found


def test_every_public_module_is_known():
    # what multiprocessing.dummy stands for has no path of its own below which to look
    assert set(reference.public_modules()) >= installed_modules()
    pages = (
        {module for page in reference.PAGES for module in page.modules} | {reference.ERRORS} | reference.MIRRORED.keys()
    )
    assert set(reference.public_modules()) - pages == {"copyless.integrations"}, (
        "each needs a page in docs/site/reference.py"
    )


def loaded():
    """Each public module that can be imported here. MPI would start with comm.mpi; `make docs` reads its sources."""
    for module in sorted(set(reference.public_modules()) - {"copyless.comm.mpi"}):
        needed = NEEDS.get(module)
        if needed is None or importlib.util.find_spec(needed):
            yield module, importlib.import_module(module)


def test_the_names_found_in_the_sources_are_those_of_the_package():
    found = {name: sorted(getattr(module, "__all__", ())) for name, module in loaded()}
    assert len(found) > 20
    assert found == {name: reference.public_names(name) for name in found}


def test_every_public_name_has_a_text():
    without = []
    for module, value in loaded():
        if module in reference.MIRRORED:
            continue
        names = [(f"{module}.{name}", getattr(value, name)) for name in getattr(value, "__all__", ())]
        for dotted, each in [(module, value), *names]:
            ours = (getattr(each, "__module__", None) or getattr(each, "__name__", "")).startswith("copyless")
            described = any(text.endswith("." + dotted.rpartition(".")[2]) for text in reference.TEXTS)
            if ours and not described and not inspect.getdoc(each):
                without.append(dotted)
    assert without == []


def test_no_text_is_left_of_a_name_that_went():
    known = {f"{module}.{name}" for module in reference.public_modules() for name in reference.public_names(module)}
    assert reference.TEXTS.keys() <= known
    for page in reference.PAGES:
        assert set(page.names) <= set(reference.public_names(page.modules[0]))


def help_from_sources(*words):
    """What `copyless ... --help` prints where nothing is compiled and no package is installed."""
    program = "import sys; from copyless.cli import main; sys.argv[0] = 'copyless'; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-S", "-B", "-c", program, *words, "--help"],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_help_of_each_command_needs_nothing_compiled():
    """`make docs` prints it from the sources."""
    commands = re.findall(r"^  (\w+) ", help_from_sources().partition("commands:")[2].partition("options:")[0], re.M)
    assert {"ls", "inspect", "run"} <= set(commands)
    for command in commands:
        assert f"copyless {command}" in help_from_sources(command)
