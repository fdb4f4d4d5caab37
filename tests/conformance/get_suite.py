"""Find CPython's own tests for this interpreter; where it lacks them, get the distribution's package that has them.

Called by `make test` with the directory to put them in. Does nothing where `import test._test_multiprocessing` works.
"""

import glob
import importlib.util
import os
import subprocess
import sys
import tempfile


def has_suite(path: str | None = None) -> bool:
    code = "import test._test_multiprocessing, test.support.script_helper"
    env = dict(os.environ, PYTHONPATH=path) if path else None
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True).returncode == 0


def main(target: str) -> None:
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    if has_suite() or has_suite(target):
        return
    os.makedirs(target, exist_ok=True)
    # Another interpreter of the same version on this machine may have them.
    for found in glob.glob(os.path.expanduser(f"~/.pyenv/versions/{version}.*/lib/python{version}/test")):
        os.symlink(found, os.path.join(target, "test"))
        if has_suite(target):
            return
        os.unlink(os.path.join(target, "test"))
    package = f"libpython{version}-testsuite"
    with tempfile.TemporaryDirectory() as scratch:
        for command in (
            ["apt-get", "download", package],
            ["apt-get", "update", "-q"],
            ["apt-get", "download", package],
        ):
            done = subprocess.run(command, cwd=scratch, capture_output=True)
            if command[1] == "download" and done.returncode == 0:
                break
        debs = glob.glob(os.path.join(scratch, "*.deb"))
        if debs:
            subprocess.run(["dpkg", "-x", debs[0], scratch], check=True)
            unpacked = glob.glob(os.path.join(scratch, "usr/lib/python3*/test"))
            if unpacked:
                subprocess.run(["cp", "-r", unpacked[0], target], check=True)
    # The distribution splits the package: what the interpreter itself keeps (test.support) must be seen together with it.
    own = importlib.util.find_spec("test")
    for place in (own.submodule_search_locations or []) if own else []:
        for entry in os.listdir(place):
            if not os.path.lexists(os.path.join(target, "test", entry)):
                os.symlink(os.path.join(place, entry), os.path.join(target, "test", entry))
    if not has_suite(target):
        sys.exit(f"this Python has no test package, and none was found: install {package}")


if __name__ == "__main__":
    main(os.path.abspath(sys.argv[1]))
