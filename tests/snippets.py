"""The programs in README.md and docs/: each runs as a file in a directory of its own, in its own process."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent


class Snippet(NamedTuple):
    """One program of a page, and the lines that the page says it prints."""

    page: str
    number: int  # from 1
    code: str
    prints: list[str]

    @property
    def command(self) -> list[str]:
        """The command to run in the directory of `program.py`, as the page says."""
        return ["copyless", "run", "-n", "4", "program.py"] if "comm.world()" in self.code else ["python", "program.py"]

    @property
    def shown(self) -> str:
        """The output of that command: lines of ranks begin with the rank's number."""
        mark = "[0] " if self.command[0] == "copyless" else ""
        return "".join(f"{mark}{line}\n" for line in self.prints)

    def write(self, directory: Path) -> None:
        (directory / "program.py").write_text(self.code, encoding="utf-8")


def snippets(page: str) -> list[Snippet]:
    """The programs of a page, in order."""
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, flags=re.S | re.M)
    return [
        Snippet(page, number, code, re.findall(r"^ *print\(.*\)  +# (.*)$", code, flags=re.M))
        for number, code in enumerate(blocks, 1)
    ]


README = snippets("README.md")
ALL = [snippet for page in ("README.md", "docs/guide.md", "docs/consistency.md") for snippet in snippets(page)]


def table(page: str, header: str) -> list[list[str]]:
    """The rows of a page's table that begins with this cell."""
    rows: list[list[str]] | None = None
    for line in (ROOT / page).read_text(encoding="utf-8").splitlines():
        if line.startswith(f"| {header} |"):
            rows = []
        elif rows is not None and line.startswith("|"):
            if not line.startswith("|---"):
                rows.append([cell.strip() for cell in line.strip("|").split("|")])
        elif rows is not None:
            return rows
    raise LookupError(f"{page} has no table that begins with {header!r}")


def codes(cell: str) -> list[str]:
    """The text between backquotes in a cell."""
    return re.findall(r"`([^`]+)`", cell)
