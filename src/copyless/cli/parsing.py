"""The argparse parser of the commands."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from copyless._storage import settings
from copyless.cli.text import UsageError, put

__all__ = ["SUPPRESS", "Parser", "columns", "parser", "seconds", "whole"]

SUPPRESS = argparse.SUPPRESS


class Parser(argparse.ArgumentParser):
    """Raises UsageError for wrong arguments, and OutputError if its help cannot be written."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, self.prog, self.format_usage())

    def print_help(self, file: Any = None) -> None:
        put(self.format_help().rstrip("\n"), sys.stdout if file is None else file)


class _Help(argparse.HelpFormatter):
    """Keeps the paragraphs and the lists of a description; reads the terminal's width without importing shutil.

    argparse makes one formatter for each option.
    """

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=max(columns() - 2, 20))

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        """Wrap each paragraph; a line that begins with blanks is an entry of a list and stays one."""
        import textwrap

        shown = []
        for paragraph in text.strip("\n").split("\n\n"):
            entries = [""]
            for line in paragraph.split("\n"):
                if line.startswith("  ") or not entries[-1]:
                    entries.append(line)
                else:
                    entries[-1] += " " + line.strip()
            for entry in filter(None, entries):
                name = entry[: len(entry) - len(entry.lstrip())] + entry.split()[0] if entry.startswith("  ") else ""
                behind = " " * (len(entry) - len(entry[len(name) :].lstrip())) if name else ""
                shown.append(textwrap.fill(entry, width, initial_indent=indent, subsequent_indent=indent + behind))
            shown.append("")
        return "\n".join(shown).rstrip("\n") + "\n"


def columns() -> int:
    """The width of the terminal."""
    if (stated := settings.stated_columns()) > 0:
        return stated
    with contextlib.suppress(OSError):
        return os.get_terminal_size().columns or 80
    return 80


def parser(program: str, about: str, usage: str) -> Parser:
    """A parser for the options of a command."""
    made = Parser(
        prog=program, description=about, usage=usage, add_help=False, allow_abbrev=False, formatter_class=_Help
    )
    made.add_argument("-h", "--help", action="help", help="Show this message and exit.")
    return made


def whole(least: int, most: int | None = None) -> Callable[[str], int]:
    """A function for `type=` that reads an integer of a range."""

    def number(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"it must be a whole number, not {text!r}") from None
        if value < least or (most is not None and value > most):
            raise argparse.ArgumentTypeError(
                f"it must be {least} {'or more' if most is None else f'to {most}'}, not {value}"
            )
        return value

    return number


def seconds(least: float, most: float) -> Callable[[str], float]:
    """A function for `type=` that reads a number of seconds."""

    def number(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"it must be {least:g} to {most:g} seconds, not {text!r}")
        return value

    return number
