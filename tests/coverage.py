"""Which lines of Python, Cython and C the tests reach, in one table: `make coverage`.

coverage counts Python in all processes that the tests start. The compiler's own counters count Cython and C; a process
writes them when it exits. So the C code that only a killed process ran is not counted, nor that of a process that left
by `os._exit` from C.

    python tests/coverage.py --build BUILD [-- arguments of pytest]
"""

from __future__ import annotations

import argparse
import collections
import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONFIGURATION = """
[run]
branch = true
parallel = true
data_file = {place}/data
source_pkgs = copyless
concurrency = multiprocessing,thread
patch = subprocess,_exit
disable_warnings = couldnt-parse,no-data-collected,module-not-measured
sigterm = true
"""

Lines = dict[str, dict[int, int]]  # by file, below src/copyless: how often each line was run


def of_python(place: str) -> Lines:
    """The counts of coverage."""
    subprocess.run([sys.executable, "-m", "coverage", "combine", "-q", f"--rcfile={place}/rc"], check=True)
    subprocess.run(
        [sys.executable, "-m", "coverage", "json", "-q", "-i", f"--rcfile={place}/rc", "-o", f"{place}/json"],
        check=True,
    )
    with open(f"{place}/json") as file:
        found = json.load(file)["files"]
    return {
        name.rpartition("/copyless/")[2] if "/copyless/" in name else name: {
            **dict.fromkeys(about["executed_lines"], 1), **dict.fromkeys(about["missing_lines"], 0)
        }
        for name, about in found.items()
    }  # fmt: skip


@functools.cache
def text_of(path: str) -> list[str]:
    return Path(path).read_text().splitlines()


def has_code(path: str, number: int) -> bool:
    """Whether a line of Cython is code. In C it becomes several lines, and the compiler's numbers go on over them."""
    if not path.endswith((".pyx", ".pxd")):
        return True
    lines = text_of(path)
    return number <= len(lines) and lines[number - 1].strip()[:1] not in ("", "#")


def of_c(build: Path) -> Lines:
    """The compiler's counts of C and, by its line directives, of Cython."""
    lines: Lines = collections.defaultdict(lambda: collections.defaultdict(int))
    for notes in build.rglob("*.gcno"):
        done = subprocess.run(
            ["gcov", "--json-format", "--stdout", str(notes)], cwd=build, capture_output=True, text=True, check=False
        )
        for report in filter(None, done.stdout.splitlines()):
            for file in json.loads(report)["files"]:
                # Cython names its sources from the directory above the package.
                start = ROOT / "src" if file["file"].startswith("copyless/") else build
                name = os.path.normpath(start / file["file"])
                below = str(ROOT / "src" / "copyless") + "/"
                if name.startswith(below) and name.endswith((".c", ".h", ".pyx", ".pxd")):
                    for line in file["lines"]:
                        if has_code(name, line["line_number"]):
                            lines[name.removeprefix(below)][line["line_number"]] += line["count"]
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=Path, required=True, help="Where meson has built with -Db_coverage=true.")
    parser.add_argument("tests", nargs="*", help="What pytest is given.")
    arguments = parser.parse_args()
    if shutil.which("gcov") is None:
        parser.error("gcov is missing: it comes with gcc")
    build = arguments.build.resolve()
    for counts in build.rglob("*.gcda"):
        counts.unlink()
    with tempfile.TemporaryDirectory() as place:
        Path(place, "rc").write_text(CONFIGURATION.format(place=place))
        command = [sys.executable, "-m", "coverage", "run", f"--rcfile={place}/rc", "-m", "pytest", *arguments.tests]
        code = subprocess.run(command, cwd=ROOT, check=False).returncode
        lines = {**of_python(place), **of_c(build)}
    groups: dict[str, list[int]] = collections.defaultdict(lambda: [0, 0])
    for name, counts in sorted(lines.items()):
        if not counts:
            continue
        reached = sum(count > 0 for count in counts.values())
        print(f"{name:55} {len(counts):6} lines {reached / len(counts):6.1%}")
        kind = {".py": "Python", ".pyx": "Cython", ".pxd": "Cython"}.get(os.path.splitext(name)[1], "C")
        for group in (kind, "all"):
            groups[group][0] += len(counts)
            groups[group][1] += reached
    for group in ("Python", "Cython", "C", "all"):
        total, reached = groups[group]
        print(f"{group:55} {total:6} lines {reached / max(total, 1):6.1%}")
    return code


if __name__ == "__main__":
    raise SystemExit(main())
