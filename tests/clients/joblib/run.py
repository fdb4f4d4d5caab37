"""joblib's own ``test_parallel.py`` with our backend in place of loky.

    python tests/clients/joblib/run.py [--into DIRECTORY] [pytest's arguments]

The file comes from joblib's source distribution, by its checksum. In it "loky" is replaced by "copyless" and
LokyBackend by our backend, and each import of joblib is preceded by an import of `copyless.joblib`. `cannot_pass.txt`
lists the tests that cannot pass, with the reason. Each of these must fail, and all others must pass.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import tarfile
import tempfile
from importlib import metadata
from pathlib import Path
from xml.etree import ElementTree

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import clients

HERE = Path(__file__).parent
VERSION = "1.6.0"
SHA256 = "2ccc96785b12046c08fd6d55839c12857831b54a3c1673ffadd2f04bfc4eda03"
ARCHIVE = f"joblib-{VERSION}.tar.gz"
MEMBERS = ("conftest.py", "joblib/test/test_parallel.py", "joblib/test/common.py")
SECONDS = 240  # for one test

FIRST = """\
import copyless.joblib
import joblib.parallel
joblib._parallel_backends.CopylessBackend = copyless.joblib.CopylessBackend
joblib.parallel.BACKENDS.pop("loky", None)
joblib.parallel.DEFAULT_BACKEND = joblib.parallel.DEFAULT_PROCESS_BACKEND = "copyless"
"""

CONFTEST = '''

def pytest_itemcollected(item):
    """What cannot pass has to fail."""
    reason = CANNOT_PASS.pop(item.name, None)
    if reason is not None:
        item.add_marker(pytest.mark.xfail(strict=True, reason=reason))


def pytest_collection_finish(session):
    if CANNOT_PASS and not session.config.option.keyword:
        raise pytest.UsageError(f"cannot_pass.txt names tests that there are not: {sorted(CANNOT_PASS)}")
'''


def archive(directory: Path) -> Path:
    """The source distribution; downloaded if it is not there."""
    found = directory / ARCHIVE
    if not found.exists():
        directory.mkdir(parents=True, exist_ok=True)
        pip = [
            sys.executable,
            "-m",
            "pip",
            "--disable-pip-version-check",
            "download",
            "--quiet",
            "--no-deps",
            "--no-binary",
            "joblib",
        ]
        subprocess.run([*pip, f"joblib=={VERSION}", "--dest", str(directory)], check=True)
    if (sha256 := hashlib.sha256(found.read_bytes()).hexdigest()) != SHA256:
        raise SystemExit(f"{found}: its checksum is {sha256}, not {SHA256}")
    return found


def cannot_pass() -> dict[str, str]:
    """The reason, by the name of each test that cannot pass. A reason is above the names, which are indented."""
    found, reason = {}, ""
    for line in (HERE / "cannot_pass.txt").read_text().splitlines():
        if line.startswith(" "):
            found[line.strip()] = reason
        elif line.strip() and not line.startswith("#"):
            reason = line.strip()
    return found


def substitute(text: str) -> str:
    text = text.replace('"loky"', '"copyless"').replace("LokyBackend", "CopylessBackend")
    return text.replace("from joblib import", "import copyless.joblib; from joblib import")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--into", type=Path, default=HERE.parents[2] / "build" / "clients", help="where the archive is kept"
    )
    parser.add_argument("--no-report", action="store_true", help="do not write docs/design/testing.md")
    args, more = parser.parse_known_args()
    if (there := metadata.version("joblib")) != VERSION:
        raise SystemExit(f"these are the tests of joblib {VERSION}, and joblib {there} is installed")
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        with tarfile.open(archive(args.into)) as tar:
            texts = {}
            for member in MEMBERS:
                stream = tar.extractfile(f"joblib-{VERSION}/{member}")
                if stream is None:
                    raise SystemExit(f"{ARCHIVE} does not contain {member}")
                texts[member] = stream.read().decode()
        listed = f"CANNOT_PASS = {cannot_pass()!r}\n"
        (place / "conftest.py").write_text(texts["conftest.py"] + "\n\n" + listed + CONFTEST)
        (place / "test_parallel.py").write_text(FIRST + substitute(texts["joblib/test/test_parallel.py"]))
        (place / "pytest.ini").write_text("[pytest]\nmarkers =\n    thread_unsafe\n    no_cover\n")
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-rfExX",
            "--show-capture=no",
            "-p",
            "no:cacheprovider",
            f"--timeout={SECONDS}",
            *more,
        ]
        command += ["--junitxml", "results.xml", "test_parallel.py"]
        code = subprocess.run(command, cwd=place, env={**os.environ, "PYTHONPATH": directory}).returncode
        if code == 0 and not more and not args.no_report:
            suite = ElementTree.parse(place / "results.xml").getroot()[0].attrib
            clients.write("joblib", VERSION, int(suite["tests"]) - int(suite["skipped"]), len(cannot_pass()))
        return code


if __name__ == "__main__":
    sys.exit(main())
