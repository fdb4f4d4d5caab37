"""Find CPython's own tests for this interpreter. If it lacks some, get the distribution's package that has them.

`make test` calls this with the directory for them. If the interpreter has all of them, it does nothing. The
interpreter's own tests take precedence over those of the package, which may be of another micro version.
"""

import glob
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile


def has_suite(path: str | None = None) -> bool:
    code = "import test._test_multiprocessing, test.support.script_helper, test.test_concurrent_futures"
    env = dict(os.environ, PYTHONPATH=path) if path else None
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True).returncode == 0


def link_missing(source: str, target: str) -> None:
    """In one directory, make links to files that only the other one has."""
    os.makedirs(target, exist_ok=True)
    for entry in os.listdir(source):
        if entry != "__pycache__" and not os.path.lexists(os.path.join(target, entry)):
            os.symlink(os.path.join(source, entry), os.path.join(target, entry))


def fetch(package: str, target: str) -> None:
    """Unpack the distribution's package of tests into a directory."""
    with tempfile.TemporaryDirectory() as scratch:
        for command in (
            ["apt-get", "download", package],
            ["apt-get", "update", "-q"],
            ["apt-get", "download", package],
        ):
            done = subprocess.run(command, cwd=scratch, capture_output=True)
            if command[1] == "download" and done.returncode == 0:
                break
        for deb in glob.glob(os.path.join(scratch, "*.deb")):
            subprocess.run(["dpkg", "-x", deb, target], check=True)


def main(target: str) -> None:
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    if has_suite():
        shutil.rmtree(target, ignore_errors=True)  # left by an earlier attempt; it would come first
        return
    if has_suite(target):
        return
    tests = os.path.join(target, "test")
    own = importlib.util.find_spec("test")
    places = list(own.submodule_search_locations or []) if own else []
    # Another interpreter of the same version on this machine may have the missing ones.
    places += glob.glob(os.path.expanduser(f"~/.pyenv/versions/{version}.*/lib/python{version}/test"))
    for place in places:
        link_missing(place, tests)
    package = f"libpython{version}-testsuite"
    if not has_suite(target):
        unpacked = os.path.join(target, "package")
        fetch(package, unpacked)
        for place in glob.glob(os.path.join(unpacked, "usr/lib/python3*/test")):
            link_missing(place, tests)
    if not has_suite(target):
        sys.exit(f"this Python has no complete test package, and none was found: install {package}")


if __name__ == "__main__":
    main(os.path.abspath(sys.argv[1]))
