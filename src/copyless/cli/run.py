"""The command ``run``: its options, and the start of the ranks.

This module reads the options itself, because importing argparse takes longer than starting the ranks. It uses argparse
only for help and for wrong options, so that both look as they do for the other commands.
"""

from __future__ import annotations

import os
import sys

from copyless._typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from copyless.cli.parsing import Parser

__all__ = ["MOST_RANKS", "Options", "add_options", "run"]

MOST_RANKS = 256


class Options:
    """The options of ``copyless run``. The attributes have the names that argparse gives."""

    def __init__(self) -> None:
        self.ranks = 0  # 0: one per processor
        self.prefix = True
        self.mpi = self.oversubscribe = False
        self.bind_to = "none"


def add_options(parser: Parser) -> None:
    """Add the options to a parser, for help and errors."""
    from copyless.cli.parsing import whole

    what = parser.add_argument_group("program")  # only for the help text: `_split` finds the program
    what.add_argument(
        "program", metavar="PROGRAM", nargs="?", help="A Python file (*.py), -m and a module, or any other program."
    )
    what.add_argument("arguments", metavar="[ARGUMENTS]...", nargs="?", help="Arguments of the program.")
    parser.add_argument(
        "-n",
        "-np",
        "--ranks",
        type=whole(1, MOST_RANKS),
        metavar="N",
        help="Number of ranks, 1 to 256 (default: one per processor).",
    )
    parser.add_argument(
        "--prefix",
        action="store_true",
        default=True,
        help="Write [rank] before each line of output (default).",
    )
    parser.add_argument("--no-prefix", action="store_false", dest="prefix", help="Write the output unchanged.")
    parser.add_argument("--mpi", action="store_true", help="Start the ranks with the launcher of the installed MPI.")
    more = "Allow more ranks than processors. Only MPI's launcher needs this (--mpi)."
    parser.add_argument("--oversubscribe", action="store_true", help=more)
    parser.add_argument(
        "--bind-to", default="none", metavar="none|core", help="core: bind each rank to one processor (default: none)."
    )


_FLAGS = frozenset(("--prefix", "--no-prefix", "--mpi", "--oversubscribe", "-h", "--help"))
_VALUED = frozenset(("-n", "-np", "--ranks", "--bind-to"))


def _split(given: list[str]) -> tuple[list[str], list[str]]:
    """Split the arguments of `copyless run`. Returns (its own options, the program and the program's arguments).

    The first word that is not an option ends the options. Unknown options are put before the program: the launcher
    rejects them, or passes them to MPI's launcher.
    """
    ours: list[str] = []
    rest: list[str] = []
    at = 0
    while at < len(given):
        word = given[at]
        at += 1
        name = word.partition("=")[0] if word.startswith("--") else word
        if word == "--":
            break
        if name in _VALUED:
            ours += given[at - 1 : at] if "=" in word else given[at - 1 : at + 1]
            at += "=" not in word
        elif name in _FLAGS or (word.startswith("-n") and word[2:].isdecimal()):
            ours.append(word)
        elif word.startswith("-") and word != "-":
            rest.append(word)
        else:
            at -= 1
            break
    return ours, rest + given[at:]


def _read(given: list[str]) -> Options | None:
    """Read the options. Returns None if argparse must do it: for help, wrong options, or forms that only it knows."""
    found = Options()
    words = iter(given)
    for word in words:
        name, is_joined, value = word.partition("=") if word.startswith("--") else (word, "", "")
        if word.startswith("-n") and word[2:].isdecimal():
            name, is_joined, value = "-n", "=", word[2:]
        if name in _VALUED:
            value = value if is_joined else next(words, "")
            if name == "--bind-to":
                if not value:
                    return None
                found.bind_to = value
            elif not value.isascii() or not value.isdecimal() or not 1 <= int(value) <= MOST_RANKS:
                return None
            else:
                found.ranks = int(value)
        elif is_joined or name in ("-h", "--help"):
            return None
        elif name in ("--prefix", "--no-prefix"):
            found.prefix = name == "--prefix"
        elif name == "--mpi":
            found.mpi = True
        else:
            found.oversubscribe = True
    return found


def run(given: Sequence[str], parser: Callable[[], Parser]) -> int:
    """Run a program as several ranks on this host, without MPI: copyless run -n 4 prog.py [arguments].

    In the program, copyless.comm.world() is the communicator of all ranks. If a rank fails, the others are ended, and
    the command exits with the exit code of that rank (128 + signal number if a signal killed it). With --mpi the
    launcher of the installed MPI starts the ranks, and comm.world() uses MPI, as under mpiexec.
    """
    ours, command = _split(list(given))
    options: Any = _read(ours) or parser().parse_args(ours)
    if not command:
        parser().error("missing argument: PROGRAM")
    n = options.ranks or os.cpu_count() or 1
    import copyless.comm._programs as programs  # `from copyless.comm import` would load a transport to find it

    try:
        if options.mpi:
            theirs = ["--bind-to", options.bind_to] if options.bind_to != "none" else []
            return programs.run_mpi(command, n, theirs, options.oversubscribe)
        if options.bind_to not in ("none", "core"):
            raise programs.Refused(
                f"--bind-to {options.bind_to} is invalid: use none or core, or --mpi to pass it to MPI's launcher",
                2,
            )
        return programs.run(command, n, prefix=options.prefix, bind=options.bind_to == "core")
    except programs.Refused as refused:
        print(f"copyless run: {refused}", file=sys.stderr)
        return refused.code
