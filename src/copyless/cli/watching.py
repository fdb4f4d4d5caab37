"""`ls --watch`: the same report again and again, until Ctrl-C."""

from __future__ import annotations

import json
import os
import sys
import time

from copyless._storage.settings import has_dumb_terminal, stated_columns
from copyless._typing import TYPE_CHECKING, Any, TypeVar
from copyless.cli.text import Page, flush, put

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TextIO

__all__ = ["watch"]

Report = TypeVar("Report")

_HOME, _END_OF_LINE, _BELOW = (
    "\x1b[H",
    "\x1b[K",
    "\x1b[J",
)  # the cursor to the top; clear the rest of the line; all below
_CLEAR = "\x1b[2J"


class _Screen:
    """What a page writes, for one screen: lines as wide and as many as fit."""

    encoding: str | None

    def __init__(self, out: TextIO) -> None:
        self.encoding = out.encoding
        self._out, self._text = out, ""

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        text.encode(self.encoding or "ascii")  # raises here what the stream would raise
        self._text += text
        return len(text)

    def flush(self) -> None:
        width, height = os.get_terminal_size(self._out.fileno())
        lines = self._text.rstrip("\n").split("\n")
        if height and len(lines) > height - 2:
            more = len(lines) - (height - 3)
            lines = [*lines[: max(height - 3, 0)], f"... {more} more lines: choose blocks, or use a larger terminal"]
        shown = (_END_OF_LINE + "\n").join(_cut(line, stated_columns() or width) for line in lines)
        put(_HOME + shown + _END_OF_LINE + "\n" + _BELOW, self._out)
        flush(self._out)
        self._text = ""


def _cut(line: str, width: int) -> str:
    """A line that fits; the styles in it take no room."""
    if not width or len(line) <= width:
        return line
    room, inside, kept = width, False, ""
    for c in line:
        inside = inside or c == "\x1b"
        if not inside:
            room -= 1
        if room >= 0 or inside:
            kept += c
        inside = inside and c != "m"
    return kept


def watch(report: Callable[[], Report], show: Callable[[Report, Page], None], seconds: float, as_json: bool) -> None:
    """Show a report each `seconds`. On a terminal each takes the place of the last; else one follows the other.

    With `as_json` each is one line. Returns at Ctrl-C.
    """
    out = sys.stdout
    screen: Any = _Screen(out) if out.isatty() and not as_json and not has_dumb_terminal() else None
    try:
        if screen is not None:
            put(_CLEAR)
        while True:
            begun = time.monotonic()
            found = report()
            if as_json:
                put(json.dumps(found, default=str))
                flush()
            else:
                page = Page(screen if screen is not None else out)
                page.line(time.strftime("%Y-%m-%d %H:%M:%S") + f", every {seconds:g} s, Ctrl-C ends")
                show(found, page)
                if screen is None:
                    page.line()
                flush(screen)
            time.sleep(max(0.0, begun + seconds - time.monotonic()))
    except KeyboardInterrupt:
        return
