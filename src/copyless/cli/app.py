"""The commands and their options, with the standard library alone; the modules beside this one do the work.

Only the parser of the given command is made, and only its modules are imported: a command starts about as fast as
Python.
"""

from __future__ import annotations

import os
import sys

from copyless._storage import settings
from copyless._typing import TYPE_CHECKING, NoReturn, TypeVar
from copyless.cli import run
from copyless.cli.text import OutputError, Page, UsageError, flush, plain, put

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable, Sequence

    from copyless.cli.parsing import Parser

__all__ = ["app"]

Report = TypeVar("Report")
_USAGE, _FAILED, _INTERRUPTED = 2, 1, 130  # exit codes
_ABOUT = "Python processes share memory without copying, leaking or hanging."
_EXTRA = "copyless {0} needs the extra cli: pip install 'copyless[cli]' ({1})"


class _Failed(Exception):
    """The command cannot continue. The text is one line and says why; `kind` is the type of the error under it."""

    def __init__(self, why: object, kind: str = "") -> None:
        super().__init__(why)
        self.kind = kind or (type(why).__name__ if isinstance(why, BaseException) else "CommandError")


class Command:
    """A command.

    Attributes
    ----------
    run : callable
        Does the work and returns the exit code. Its docstring is the help text.
    options : callable
        Adds the options of the command to a parser.
    usage : str
        The usage line after the name of the command.
    """

    run: Callable[..., int]
    options: Callable[[Parser], None]
    usage: str

    def __init__(self, run: Callable[..., int], options: Callable[[Parser], None], usage: str = "[OPTIONS]") -> None:
        self.run, self.options, self.usage = run, options, usage

    def parser(self, name: str) -> Parser:
        from copyless.cli import parsing

        about = (self.run.__doc__ or "").replace("\n    ", "\n")
        made = parsing.parser(f"copyless {name}", about, f"copyless {name} {self.usage}")
        self.options(made)
        return made


def app(arguments: Sequence[str] | None = None) -> int:
    """Run the command in the arguments. Returns its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    _open_streams()
    try:
        return _finished(given)
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:  # `copyless ls | head`: the reader has ended
        _discard_output()
        return _FAILED
    except OutputError as error:
        _discard_output()
        _tell(f"copyless: cannot write the output: {error}")
        return _FAILED


def _finished(given: list[str]) -> int:
    """Run the command, tell what went wrong, and write all output. Raises BrokenPipeError and OutputError."""
    from copyless.errors import CopylessError

    as_json = (
        "--json" in given and given[0] in COMMANDS and given[0] != "run"
    )  # what follows `run` belongs to the program
    program = f"copyless {given[0]}" if given and given[0] in COMMANDS else "copyless"
    try:
        code = _dispatch(given)
    except SystemExit as ended:  # argparse, after a help text
        code = ended.code if isinstance(ended.code, int) else 0
    except _Failed as failed:
        code = _refuse(str(failed), failed.kind, "copyless", as_json, _FAILED)
    except (CopylessError, MemoryError) as error:
        code = _refuse(str(error) or "not enough memory", type(error).__name__, program, as_json, _FAILED)
    except BrokenPipeError:
        raise
    except OSError as error:
        what = str(error.strerror or error)
        if isinstance(error.filename, (str, bytes)):
            what = f"{os.fsdecode(error.filename)}: {what}"
        code = _refuse(what, type(error).__name__, program, as_json, _FAILED)
    except UsageError as wrong:
        _tell(wrong.usage.rstrip("\n"))
        code = _refuse(str(wrong), "UsageError", f"{wrong.program}: error", as_json, _USAGE)
    flush()
    return code


def _refuse(why: str, kind: str, program: str, as_json: bool, code: int) -> int:
    """Tell why a command ends; in the output too, as JSON, if JSON was asked for."""
    if as_json:
        import json

        put(json.dumps({"error": {"type": kind, "message": why}}))
    _tell(f"{program}: {plain(why)}")
    return code


def _tell(text: str) -> None:
    try:
        print(text, file=sys.stderr, flush=True)
    except UnicodeEncodeError:
        print(text.encode("ascii", "backslashreplace").decode(), file=sys.stderr, flush=True)
    except OSError:  # there is no place left to say it
        return


def _open_streams() -> None:
    """Give a stream that was closed before the start a place where what is written is lost."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115


def _discard_output() -> None:
    """Lose what is left to write: the interpreter would try it again as it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _dispatch(given: list[str]) -> int:
    name = given[0] if given else ""
    if name not in COMMANDS:
        return _without_command(given)
    command = COMMANDS[name]
    if command.run is run.run:
        _check_settings()
        return run.run(given[1:], lambda: command.parser(name))
    parser = command.parser(name)
    found = parser.parse_args(given[1:])
    found.refuse = parser.error
    _check_settings()
    return command.run(found)


def _about(command: Command) -> str:
    """What a command does, in one sentence: the first paragraph of its help text."""
    return " ".join((command.run.__doc__ or "").partition("\n\n")[0].split())


def _without_command(given: list[str]) -> int:
    width = max(map(len, COMMANDS))
    shown = "\n".join(f"  {name:{width}}  {_about(command)}" for name, command in COMMANDS.items())
    from copyless.cli import parsing

    parser = parsing.parser("copyless", f"{_ABOUT}\n\ncommands:\n{shown}", "copyless [OPTIONS] COMMAND [ARGS]...")
    what = "Print the versions of the package, of the shared-memory layout and of the item format, and exit."
    parser.add_argument("--version", action="store_true", help=what)
    if not given:
        parser.print_help()
        return _USAGE
    if given[0] == "help":  # as many commands of this kind have it
        return _dispatch([*given[1:2], "--help"])
    known, others = parser.parse_known_args(given)
    if known.version:
        return _version()
    wrong = others[0]
    parser.error(
        f"no such option: {wrong}"
        if wrong.startswith("-")
        else f"no such command {wrong!r}: there are {', '.join(COMMANDS)}"
    )
    raise AssertionError  # not reached: `error` raises


def _version() -> int:
    import copyless
    from copyless._core import c_library

    put(f"copyless {copyless.__version__} (layout {c_library.LAYOUT}, format {c_library.FORMAT})")
    return 0


def _check_settings() -> None:
    try:
        settings.current()
    except ValueError as error:
        _stop(error)


def _stop(why: object, kind: str = "") -> NoReturn:
    raise _Failed(why, kind) from None


# ---- shared by the commands


def _json(parser: Parser) -> None:
    parser.add_argument("--json", action="store_true", help="Print JSON instead of tables.")


def _looking(parser: Parser) -> None:
    _json(parser)
    parser.add_argument("--space", metavar="SPACE", help="Use this space instead of the one in COPYLESS_SPACE.")


def _enter(found: Namespace) -> None:
    """Look at the space that `--space` names, as a process that sends nothing."""
    from copyless._storage import identity

    identity.sends_nothing()
    if found.space is None:
        return
    from copyless._storage import directory, store

    try:
        store.configure(space=found.space)
    except ValueError as error:
        found.refuse(f"argument --space: {error}")
    used = directory.spaces()
    if found.space not in used:
        named = ", ".join(each for each in used if each) or "none"
        print(
            f"copyless: none of your processes uses the space {found.space!r} now; named spaces in use: {named}",
            file=sys.stderr,
        )


def _say(report: Report, as_json: bool, show: Callable[[Report, Page], None]) -> None:
    if as_json:
        import json

        put(json.dumps(report, indent=2, default=str))
        return

    show(report, Page())


# ---- the commands


def _ls_options(parser: Parser) -> None:
    from copyless.cli.groups import GROUPS
    from copyless.cli.parsing import seconds, whole

    parser.add_argument(
        "pattern", nargs="?", metavar="PATTERN", help="Only blocks with this name; *, ? and [...] match."
    )
    parser.add_argument(
        "--kind", choices=list(GROUPS), metavar="KIND", help=f"Only blocks of this kind: {', '.join(GROUPS)}."
    )
    parser.add_argument("--pid", type=whole(1), metavar="N", help="Only blocks that this process holds.")
    parser.add_argument(
        "--program", metavar="NAME", help="Only blocks that a process of this program holds; *, ? and [...] match."
    )
    parser.add_argument("--persistent", action="store_true", help="Only blocks that exist until they are unlinked.")
    parser.add_argument(
        "--watch", nargs="?", type=seconds(0.1, 86400), const=2.0, metavar="SECONDS",
        help="Show the list again every 2 seconds, or as often as this says, until Ctrl-C.",
    )  # fmt: skip
    _looking(parser)


def _ls(found: Namespace) -> int:
    """List blocks with kind, shape, dtype and the processes that hold them.

    This only reads: it reclaims nothing and takes no lock. It names a process that is stopped inside a lock. Blocks
    marked 'left by the dead' are freed by the next allocation or by 'copyless reap'; 'orphaned' blocks are kept by an
    undelivered message. The shape of an array without a name is known only to the processes that hold it: its block is
    listed as memory. With --watch and --json each report is one line.
    """
    from copyless.cli import look

    _enter(found)
    is_asked = look.selection(found.pattern, found.kind, found.pid, found.program, found.persistent)
    if found.watch is None:
        _say(look.listing(is_asked), found.json, look.show_listing)
    else:
        from copyless.cli.watching import watch

        watch(lambda: look.listing(is_asked), look.show_listing, found.watch, found.json)
    return 0


def _inspect_options(parser: Parser) -> None:
    parser.add_argument(
        "name", metavar="NAME", help="A name or the number of a block, as 'copyless ls' shows them, or handle.hex()."
    )
    _looking(parser)


def _inspect(found: Namespace) -> int:
    """Show one array, lock, queue, ring or block: its state, which processes hold it or wait, a summary of the values.

    This only reads, as ls does, so it answers while a process is stopped inside the object.
    """
    from copyless.cli import inspecting

    _enter(found)
    name = os.fsencode(found.name).decode("utf-8", "surrogateescape")  # names are UTF-8, whatever the locale says
    try:
        _say(inspecting.inspect(name), found.json, inspecting.show)
    except FileNotFoundError as error:
        if error.filename != name:
            raise
        _stop(f"{name}: {error.strerror}", "FileNotFoundError")
    except ValueError as error:
        _stop(f"{name}: {error}", type(error).__name__)
    return 0


def _reap_options(parser: Parser) -> None:
    parser.add_argument("--force", action="store_true", help="Remove a damaged storage directory that no process uses.")
    _looking(parser)
    from copyless.cli.parsing import SUPPRESS

    parser.add_argument("--remove-now", action="store_true", help=SUPPRESS)


def _reap(found: Namespace) -> int:
    """Reclaim the memory of dead processes, and return free memory to the system."""
    from copyless._storage import store
    from copyless.cli import look
    from copyless.errors import CopylessError

    _enter(found)
    try:
        if found.remove_now:
            report = look.remove_damaged()
        else:
            report = dict(store.reap())
            report["bytes_given_back"] = store.trim()
    except PermissionError as refusal:
        _stop(refusal)
    except CopylessError as error:
        if not found.force or not look.may_be_removed(error):
            _stop(error)
        # In a new process: this one may have opened the damaged registry, and so be a process that uses it.
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:], "--remove-now"])
    if report.get("in_use"):
        _stop(f"processes {report['in_use']} still use {report['directory']}: end them first")
    _say(report, found.json, look.show_counts)
    return 0


def _doctor(found: Namespace) -> int:
    """Look at this machine: size and type of /dev/shm, limits, leftovers, settings, and what to change."""
    from copyless.cli import doctor

    _enter(found)
    report = doctor.examine()
    _say(report, found.json, doctor.show)
    return 1 if report["problems"] else 0


def _demo_options(parser: Parser) -> None:
    from copyless.cli.parsing import whole

    workers, starts = min(4, os.cpu_count() or 1), ("spawn", "fork", "forkserver")
    parser.add_argument(
        "--workers", type=whole(1), default=workers, metavar="N", help=f"Worker processes (default: {workers})."
    )
    parser.add_argument(
        "--scale", type=whole(1, 8), default=2, metavar="N",
        help="How many times the photograph is enlarged, 1 to 8 (default: 2).",
    )  # fmt: skip
    parser.add_argument(
        "--output", default="copyless-demo.png", metavar="FILE",
        help="Output file of the picture (default: copyless-demo.png).",
    )  # fmt: skip
    parser.add_argument(
        "--frames", type=whole(1), default=240, metavar="N", help="Frames of the pipeline (default: 240)."
    )
    parser.add_argument(
        "--start", choices=starts, default="spawn", metavar="METHOD",
        help=f"Start method: {', '.join(starts)} (default: spawn).",
    )  # fmt: skip
    _json(parser)


def _demo(found: Namespace) -> int:
    """Do two jobs in three ways: by pickling, by the standard library's SharedMemory, and by copyless.

    In the first a pool looks at many windows of one large photograph. In the second a producer sends frames to one
    consumer, then to four. It needs the extra cli.
    """
    from pathlib import Path

    try:
        from rich.console import Console

        from copyless.cli import demo as job
    except ImportError as error:
        _stop(_EXTRA.format("demo", error), "ModuleNotFoundError")
    try:
        job.check_output(Path(found.output))
    except ValueError as error:
        _stop(error)
    console = Console()
    report = job.run(
        workers=found.workers, scale=found.scale, output=Path(found.output), start=found.start,
        quiet=found.json or not sys.stderr.isatty(), frames=found.frames,
        tell=None if found.json else lambda report: job.show_windows(report, console),
    )  # fmt: skip
    _say(report, found.json, lambda report, _: job.show(report, console))
    return 0 if report["equal"] and not report["left_behind"] else 1


def _completion_options(parser: Parser) -> None:
    from copyless.cli.completion import SHELLS
    from copyless.cli.parsing import SUPPRESS

    parser.add_argument("shell", nargs="?", choices=SHELLS, metavar="SHELL", help=f"{', '.join(SHELLS)}.")
    parser.add_argument("--names", action="store_true", help=SUPPRESS)


def _completion(found: Namespace) -> int:
    """Print a script that completes commands, options and names in bash, zsh or fish.

    bash: eval "$(copyless completion bash)" in ~/.bashrc. zsh: the same with zsh in ~/.zshrc, after compinit. fish:
    copyless completion fish | source in ~/.config/fish/config.fish.
    """
    if found.names:
        from copyless.cli.look import names

        for name in names():
            put(name)
        return 0
    if found.shell is None:
        found.refuse("missing argument: SHELL")
    from copyless.cli.completion import script

    parsers = {name: command.parser(name) for name, command in COMMANDS.items()}
    put(script(found.shell, parsers, {name: _about(command) for name, command in COMMANDS.items()}).rstrip("\n"))
    return 0


COMMANDS = {
    "run": Command(run.run, run.add_options, "[OPTIONS] PROGRAM [ARGUMENTS]..."),
    "ls": Command(_ls, _ls_options, "[OPTIONS] [PATTERN]"),
    "inspect": Command(_inspect, _inspect_options, "[OPTIONS] NAME|BLOCK|HANDLE"),
    "reap": Command(_reap, _reap_options),
    "doctor": Command(_doctor, _looking),
    "demo": Command(_demo, _demo_options),
    "completion": Command(_completion, _completion_options, "[OPTIONS] SHELL"),
}
