"""The symbols that the extension modules of a wheel need from the C library.

If the compiler's own stub lacks a symbol that the promised glibc does not have, it is linked all the same: undefined,
and without a version. auditwheel reads only versions, so it assigns the tag, and the import fails on the user's
machine.

    python wheels/symbols.py WHEEL... [--glibc 2.28]
"""

from __future__ import annotations

import argparse
import io
import zipfile
from pathlib import Path

from elftools.elf.elffile import ELFFile

# Python's own symbols, which the interpreter exports without versions.
OF_PYTHON = ("Py", "_Py")


def undefined(stream: io.BufferedIOBase) -> list[tuple[str, str]]:
    """The dynamic symbols that other libraries must provide, strong ones: name, and version or ''."""
    elf = ELFFile(stream)
    names: dict[int, str] = {}
    needs = elf.get_section_by_name(".gnu.version_r")
    if needs is not None:
        for _, versions in needs.iter_versions():
            names.update((version["vna_other"], version.name) for version in versions)
    index = elf.get_section_by_name(".gnu.version")
    found = []
    for i, symbol in enumerate(elf.get_section_by_name(".dynsym").iter_symbols()):
        if symbol.name and symbol["st_shndx"] == "SHN_UNDEF" and symbol["st_info"]["bind"] == "STB_GLOBAL":
            version = index.get_symbol(i)["ndx"] if index is not None else 1
            found.append((symbol.name, names.get(version, "") if isinstance(version, int) else ""))
    return found


def numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.removeprefix("GLIBC_").split(".")))


def wrong(stream: io.BufferedIOBase, glibc: str) -> list[str]:
    complaints = []
    for name, version in undefined(stream):
        if name.startswith(OF_PYTHON):
            continue
        if not version:
            complaints.append(f"{name} has no version")
        elif version.startswith("GLIBC_") and numbers(version) > numbers(glibc):
            complaints.append(f"{name} is of {version}")
    return complaints


def wrong_in_wheel(wheel: Path, glibc: str) -> list[str]:
    """A line for each symbol that `glibc` (as "2.28") does not have, or that has no version."""
    with zipfile.ZipFile(wheel) as files:
        libraries = [name for name in files.namelist() if name.endswith(".so") or ".so." in name]
        if not libraries:
            return [f"{wheel.name} has no extension module"]
        return [f"{name}: {line}" for name in libraries for line in wrong(io.BytesIO(files.read(name)), glibc)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheels", nargs="+", type=Path)
    parser.add_argument("--glibc", default="2.28")
    arguments = parser.parse_args()
    lines = [line for wheel in arguments.wheels for line in wrong_in_wheel(wheel, arguments.glibc)]
    print("\n".join(lines) or "each symbol is one of the promised C library")
    raise SystemExit(bool(lines))


if __name__ == "__main__":
    main()
