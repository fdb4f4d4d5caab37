"""Run the tests of other packages with only the import changed, and compare the results with the known differences.

`make test-clients` runs each `tests/clients/*/run.py`. It says where the source of its package comes from (the source
archive of the package index, by its checksum, or GitHub's archive of one commit, by the digest of the files that are
used), which tests are run, how many pass, and which cannot pass, each with its reason. A failure that is not listed is
an error; so are a listed test that passes and tests that are no longer run. The results are written to
docs/design/testing.md.

Archives are kept in build/clients/archives. Where no address can be reached, put them there by hand; the message says
which.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile
import urllib.error
import urllib.request
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from datetime import date
from typing import NamedTuple

TOP = pathlib.Path(__file__).resolve().parent.parent.parent
BUILD = TOP / "build" / "clients"
ARCHIVES = BUILD / "archives"
REPORT = TOP / "docs" / "design" / "testing.md"
BEGIN, END = "<!-- clients: written by `make test-clients` -->", "<!-- /clients -->"


class Archive(NamedTuple):
    """The origin of a package's source."""

    file: str  # its name in build/clients/archives
    parts: tuple[str, ...]  # folders and files in it that are used
    # of the file (package index), or of those parts (GitHub, which repacks its archives at times)
    digest: str
    github: str = ""  # owner/name/commit; else the package index


# ---- getting the source


def _read(url: str, accept: str = "*/*") -> bytes:
    request = urllib.request.Request(url, headers={"Accept": accept, "User-Agent": "copyless-test-clients"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return bytes(answer.read())


def _download(archive: Archive) -> bytes:
    if archive.github:
        owner, name, commit = archive.github.split("/")
        return _read(f"https://github.com/{owner}/{name}/archive/{commit}.tar.gz")
    index = os.environ.get("PIP_INDEX_URL", "https://pypi.org/simple").rstrip("/")
    package = re.sub(r"[-_.]+", "-", archive.file.rpartition("-")[0]).lower()
    page = json.loads(_read(f"{index}/{package}/", "application/vnd.pypi.simple.v1+json"))
    return _read(next(each["url"] for each in page["files"] if each["filename"] == archive.file))


def _digest_of_parts(root: pathlib.Path, parts: Sequence[str]) -> str:
    total = hashlib.sha256()
    for part in sorted(parts):
        below = root / part
        for file in sorted(below.rglob("*.py")) if below.is_dir() else [below]:
            total.update(
                file.relative_to(root).as_posix().encode() + b"\0" + hashlib.sha256(file.read_bytes()).digest()
            )
    return total.hexdigest()


def get(archive: Archive) -> pathlib.Path:
    """The unpacked source, checked. SystemExit says what to do if it is not available."""
    ARCHIVES.mkdir(parents=True, exist_ok=True)
    file = ARCHIVES / archive.file
    if not file.exists():
        try:
            data = _download(archive)
        except (OSError, StopIteration, ValueError) as error:
            where = f"https://github.com/{archive.github}" if archive.github else "the package index (PIP_INDEX_URL)"
            raise SystemExit(
                f"{archive.file} cannot be fetched from {where}: {type(error).__name__}: {error}. Put it at {file} by "
                f"hand"
            ) from None
        file.write_bytes(data)
    if not archive.github and hashlib.sha256(file.read_bytes()).hexdigest() != archive.digest:
        raise SystemExit(f"{file} is not the archive that was looked at (sha256 {archive.digest}): remove it")
    root = BUILD / archive.file.removesuffix(".tar.gz")
    shutil.rmtree(root, ignore_errors=True)
    with tarfile.open(file) as tar:
        for member in tar.getmembers():
            _, _, inside = member.name.partition("/")  # below the one folder that contains everything
            if member.isfile() and any(inside == part or inside.startswith(part + "/") for part in archive.parts):
                target = root / inside
                target.parent.mkdir(parents=True, exist_ok=True)
                source = tar.extractfile(member)
                assert source is not None
                target.write_bytes(source.read())
    if archive.github and (found := _digest_of_parts(root, archive.parts)) != archive.digest:
        raise SystemExit(
            f"{file}: its files are not those that were looked at (digest {found}, not {archive.digest}): remove it"
        )
    return root


# ---- changing the import

_IMPORT_AS = re.compile(r"^(\s*)import multiprocessing as (\w+)\s*$", re.M)
_IMPORT_SUBMODULE = re.compile(r"^(\s*)import multiprocessing\.([\w.]+)\s*$", re.M)
_IMPORT = re.compile(r"^(\s*)import multiprocessing\s*$", re.M)
_FROM = re.compile(r"^(\s*)from multiprocessing(\.[\w.]+)? import ", re.M)
_EXECUTOR = re.compile(r"^(\s*)from concurrent\.futures import ProcessPoolExecutor\s*$", re.M)


def changed(source: str) -> str:
    """The text of a program in which each import of multiprocessing, and of its executor, is replaced by ours."""
    source = _IMPORT_AS.sub(r"\1import copyless as \2", source)
    source = _IMPORT_SUBMODULE.sub(r"\1import copyless.\2, copyless as multiprocessing", source)
    source = _IMPORT.sub(r"\1import copyless as multiprocessing", source)
    source = _EXECUTOR.sub(r"\1from copyless.futures import ProcessPoolExecutor", source)
    return _FROM.sub(lambda found: f"{found[1]}from copyless{found[2] or ''} import ", source)


def change(root: pathlib.Path) -> int:
    """Change the imports of all files below a folder. Return how many files changed."""
    files = 0
    for file in root.rglob("*.py"):
        before = file.read_text(encoding="utf-8")
        after = changed(before)
        if after != before:
            file.write_text(after, encoding="utf-8")
            files += 1
    return files


# ---- running and comparing


def outcomes(
    root: pathlib.Path, arguments: Sequence[str], seconds: int = 1800, environment: dict[str, str] | None = None
) -> dict[str, str]:
    """By test: passed, failed or skipped, from a run of pytest in `root`."""
    report = BUILD / f"{root.name}.xml"
    report.unlink(missing_ok=True)
    paths = [str(root), *filter(None, [os.environ.get("PYTHONPATH")])]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(root), "-c", os.devnull,
        "--timeout=180",
               "--timeout-method=signal", f"--junitxml={report}", *arguments]  # fmt: skip
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **(environment or {})}
    try:
        done = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired as error:
        raise SystemExit(f"the tests did not end within {seconds} s:\n{_tail(error.stdout)}") from None
    if not report.exists():
        raise SystemExit(f"the tests were not run:\n{_tail(done.stdout)}\n{_tail(done.stderr)}")
    (BUILD / f"{root.name}.log").write_text(done.stdout + done.stderr)
    found: dict[str, str] = {}
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        test = f"{case.get('classname')}.{case.get('name')}"
        kinds = {child.tag for child in case}
        result = "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
        found[test] = (
            "failed" if "failed" in (result, found.get(test)) else result
        )  # an error at its end is a second case
    return found


def outcomes_here(runner: str, seconds: int = 1800, environment: dict[str, str] | None = None) -> dict[str, str]:
    """The same, for the cases beside a runner."""
    BUILD.mkdir(parents=True, exist_ok=True)
    return outcomes(pathlib.Path(runner).parent, ["cases.py", "--noconftest"], seconds, environment)


def _tail(text: str | bytes | None) -> str:
    if isinstance(text, bytes):
        text = text.decode(errors="replace")
    return (text or "")[-4000:]


def judge(name: str, version: str, found: dict[str, str], passes: int, known: dict[str, str]) -> int:
    """Compare with what is known, say what differs and write the report: 0 when nothing is unexpected, else 1.

    Parameters
    ----------
    found
        What `outcomes` gave.
    passes
        How many tests pass; fewer is a failure, even where none failed.
    known
        By test: why it cannot pass. The name without its parameters stands for all of them.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--no-report", action="store_true", help="do not write docs/design/testing.md")
    arguments = parser.parse_args()

    def is_known(test: str) -> bool:
        return test in known or test.partition("[")[0] in known

    failed = {test for test, result in found.items() if result == "failed"}
    passed = {test for test, result in found.items() if result == "passed"}
    wrong = [f"failed, and should pass: {test}" for test in sorted(failed) if not is_known(test)]
    wrong += [f"passes, and is listed as one that cannot: {test}" for test in sorted(passed) if test in known]
    wrong += [
        f"is listed, and no test: {test}"
        for test in known
        if not any(test in (each, each.partition("[")[0]) for each in found)
    ]
    if len(passed) < passes:
        wrong.append(f"{len(passed)} passed; it were {passes}")
    print(
        f"{name} {version}: {len(passed)} of {len(passed) + len(failed)} passed, {len(failed)} as known"
        if not wrong
        else "\n".join(wrong)
    )
    if not arguments.no_report and not wrong:
        write(name, version, len(passed), len(failed))
    return 1 if wrong else 0


def write(name: str, version: str, passed: int, failed: int) -> None:
    commit = (
        subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=TOP, capture_output=True, text=True).stdout.strip()
        or "-"
    )
    text = REPORT.read_text()
    head, _, rest = text.partition(BEGIN)
    body, _, tail = rest.partition(END)
    rows = {
        line.split("|")[1].strip(): line
        for line in body.splitlines()
        if line.startswith("| ") and "| package |" not in line
    }
    differ = "none" if not failed else f"{failed}, each with its reason in `tests/clients/{name}/run.py`"
    rows[name] = (
        f"| {name} | {version} | {passed} of {passed + failed} | {differ} | {commit} | {date.today().isoformat()} |"
    )
    table = [
        "| package | version | passed | differences | commit | date |",
        "|---|---|---|---|---|---|",
        *(rows[each] for each in sorted(rows)),
    ]
    REPORT.write_text(head + BEGIN + "\n" + "\n".join(table) + "\n\n" + END + tail)
