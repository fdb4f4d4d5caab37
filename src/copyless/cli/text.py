"""Tables and coloured words for a terminal, with the standard library alone."""

from __future__ import annotations

import os
import sys

from copyless._storage.settings import stated_columns, wants_colour
from copyless._typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import TextIO

__all__ = ["OutputError", "Page", "UsageError", "counted", "flush", "plain", "put"]

_NARROW = 20  # columns; a cell that has fewer is not continued below
_STYLES = {"bold": "1", "red": "31", "green": "32", "yellow": "33"}


def plain(value: object) -> str:
    """A value in one line without control characters, because text of another process must not control the terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(value))


def counted(n: int, what: str, more: str = "s") -> str:
    """A number of things: ``1 process``, ``2 processes``."""
    return f"{n} {what}{more if n != 1 else ''}"


class OutputError(Exception):
    """The output cannot be written: a full disk, a terminal that is gone."""


class UsageError(Exception):
    """The arguments are wrong. The text is one line and says why.

    Attributes
    ----------
    usage : str
        The usage line of the command.
    program : str
        The command.
    """

    def __init__(self, why: str, program: str, usage: str) -> None:
        super().__init__(why)
        self.program: str = program
        self.usage: str = usage


def put(text: str, out: TextIO | None = None) -> None:
    """Write a text and end the line. Characters that the stream cannot encode are written as escapes.

    Raises
    ------
    BrokenPipeError
        If its reader has ended.
    OutputError
        If it cannot be written.
    """
    out = sys.stdout if out is None else out
    try:
        try:
            out.write(text + "\n")
        except UnicodeEncodeError:
            encoding = out.encoding or "ascii"
            out.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(error.strerror or str(error)) from None


def flush(out: TextIO | None = None) -> None:
    """Write what is still in the buffer. Raises as `put`."""
    try:
        (sys.stdout if out is None else out).flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(error.strerror or str(error)) from None


def _columns() -> int:
    if (stated := stated_columns()) > 0:
        return stated
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns or 80
    except (OSError, ValueError):
        return 80


class Page:
    """The output of a command."""

    def __init__(self, out: TextIO | None = None) -> None:
        self._out = sys.stdout if out is None else out
        is_terminal = self._out.isatty()
        self._coloured = is_terminal and wants_colour()
        self._width = _columns() if is_terminal else 0

    def styled(self, style: str, text: str) -> str:
        """A text in bold or in a colour, if the terminal supports it."""
        return f"\x1b[{_STYLES[style]}m{text}\x1b[0m" if self._coloured else text

    def line(self, text: str = "") -> None:
        """Write a text and end the line, as `put`."""
        put(text, self._out)

    def table(
        self, rows: Iterable[Sequence[object]], head: Sequence[str] = (), title: str = "", right: Iterable[str] = ()
    ) -> None:
        """Write rows; each column is as wide as its widest cell.

        Parameters
        ----------
        rows
            The cells.
        head
            The heading of each column.
        title
            The heading of the table.
        right
            The columns, as named in `head`, that are aligned to the right.
        """
        cells = [[plain(cell) for cell in row] for row in rows]
        if title:
            self.line()
            self.line(self.styled("bold", title))
        if not cells and not head:
            return
        lines = [list(head), *cells] if head else cells
        widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
        named = set(right)
        ends = [column in named for column in head] if head else [False] * len(widths)
        for number, line in enumerate(lines):
            padded = [
                cell.rjust(width) if end else cell.ljust(width)
                for cell, width, end in zip(line, widths, ends, strict=True)
            ]
            text = "  ".join(padded).rstrip()
            for piece in self._wrapped(text, sum(widths[:-1]) + 2 * len(widths[:-1])):
                self.line(self.styled("bold", piece) if head and number == 0 else piece)

    def _wrapped(self, text: str, at: int) -> list[str]:
        """A row whose last cell, which begins at a column, is continued below where the terminal is too narrow."""
        if len(text) <= self._width or self._width - at < _NARROW:
            return [text]
        lines, rest = [text[:at]], text[at:]
        for word in rest.split(" "):
            if len(lines[-1]) > at and len(lines[-1]) + 1 + len(word) > self._width:
                lines.append(" " * at)
            lines[-1] += (" " if len(lines[-1]) > at else "") + word
        return lines
