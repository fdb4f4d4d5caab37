"""Settings and the environment are read in one place, and the documents list them from there."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import copyless
from copyless._storage import settings

ROOT = Path(__file__).parent.parent


def test_nothing_else_looks_at_the_environment():
    for path in (ROOT / "src/copyless").rglob("*.py"):
        if path.name == "settings.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
            assert name not in ("environ", "environb", "getenv", "putenv"), f"{path.relative_to(ROOT)}:{node.lineno}"


def test_the_page_is_the_table():
    page = (ROOT / "docs/settings.md").read_text()
    for each in settings.VARIABLES:
        assert f"| `{each.name}` | {each.default} | {each.meaning} |" in page, each.name
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    assert len(rows) == len(settings.VARIABLES)


def test_doctor_lists_every_setting_and_what_else_is_set():
    environment = settings.environment_of_child({"COPYLESS_IDLE": "7", "NO_COLOR": "1"})
    done = subprocess.run(
        [sys.executable, "-m", "copyless", "doctor", "--json"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    report = json.loads(done.stdout)
    assert set(report["settings"]) == {each.name for each in settings.SETTINGS}
    assert report["settings"]["COPYLESS_IDLE"] == 7
    assert report["environment"]["NO_COLOR"] == "1"


def test_each_setting_is_a_keyword_of_configure():
    present = copyless.configure()
    for each in settings.SETTINGS:
        name = each.name.removeprefix("COPYLESS_").lower()
        assert copyless.configure(**{name: getattr(present, name)}) == present


@pytest.mark.parametrize("name", ["idle", "message_ttl", "network_timeout", "warm_limit"])
@pytest.mark.parametrize("wrong", ["soon", "nan", "inf", "1e30", "-7", "5Q"])
def test_a_number_that_is_none_is_refused_alike_in_the_environment_and_by_configure(name, wrong, monkeypatch):
    before = getattr(copyless.configure(), name)
    with pytest.raises(ValueError, match=rf"^{name}='{wrong}' is invalid: it must be ") as told:
        copyless.configure(**{name: wrong})
    reason = str(told.value).partition(": ")[2]
    assert getattr(copyless.configure(), name) == before
    variable = f"COPYLESS_{name.upper()}"
    monkeypatch.setenv(variable, wrong)
    with pytest.raises(ValueError, match="is invalid") as told:
        settings._of_environment()
    assert str(told.value) == f"{variable}='{wrong}' is invalid: {reason}"
    for object_ in (None, [], -7, float("nan"), float("inf"), 1e30):
        with pytest.raises(ValueError, match="it must be"):
            copyless.configure(**{name: object_})


def test_numbers_may_be_written_as_text():
    present = copyless.configure()
    try:
        assert copyless.configure(idle="7", warm_limit="512M") is present
        assert (present.idle, present.warm_limit) == (7.0, 512 << 20)
    finally:
        copyless.configure(idle=30.0, warm_limit=-1)


@pytest.mark.parametrize(
    ("text", "node", "ranks"),
    [("4", "0", 4), ("4(x2),3", "1", 4), ("4(x2),3", "2", 3), ("4(x2),3", "3", None), ("2,5(x10)", "7", 5),
     ("words", "0", None), ("4", "", None), ("4(x", "0", 4)],
)  # fmt: skip
def test_ranks_of_a_node_as_slurm_says(monkeypatch, text, node, ranks):
    for name in ("MPI_LOCALNRANKS", "OMPI_COMM_WORLD_LOCAL_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_STEP_TASKS_PER_NODE", text)
    monkeypatch.setenv("SLURM_NODEID", node)
    assert settings.ranks_of_node() == ranks
    monkeypatch.setenv("MPI_LOCALNRANKS", "9")
    assert settings.ranks_of_node() == 9
