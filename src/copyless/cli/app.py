"""Commands and their options; the work is in the modules beside this one."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console

import copyless
from copyless.cli import look
from copyless.errors import CopylessError
from copyless.storage import directory, settings

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
console = Console()
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]


def _enter(space: str | None) -> str | None:
    if space is not None:
        try:
            copyless.configure(space=space)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None
        used = directory.spaces()
        if space not in used:
            named = ", ".join(each for each in used if each) or "none"
            typer.echo(f"copyless: nothing of yours uses the space {space!r} now; named spaces in use: {named}", err=True)
    return space


Space = Annotated[
    str | None,
    typer.Option("--space", callback=_enter, help="Look at that space, not at the one of COPYLESS_SPACE.", show_default=False),
]


def _say(report: dict[str, Any], as_json: bool, show: Any) -> None:
    if as_json:
        typer.echo(json.dumps(report, indent=2, default=str))
    else:
        show(report, console)


def _stop(message: str) -> NoReturn:
    typer.echo(f"copyless: {message}", err=True)
    raise typer.Exit(1)


@app.callback(invoke_without_command=True)
def _common(version: Annotated[bool, typer.Option("--version", help="Print the versions of the package, of the layout of shared memory and of stored items, and leave.")] = False) -> None:
    """Python processes share memory without copying, leaking or hanging."""
    if version:
        from copyless._core import c_library

        typer.echo(f"copyless {copyless.__version__} (layout {c_library.LAYOUT}, format {c_library.FORMAT})")
        raise typer.Exit
    try:
        settings.current()
    except ValueError as error:
        _stop(str(error))


@app.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
def run(
    program: Annotated[str, typer.Argument(metavar="PROGRAM", help="A file *.py, -m and a module, or any other program.")],
    arguments: Annotated[list[str] | None, typer.Argument(metavar="ARGUMENTS", help="What it is given.", show_default=False)] = None,
    ranks: Annotated[
        int | None, typer.Option("-n", "-np", "--ranks", min=1, max=256, help="How many ranks: one a processor, unless said.")
    ] = None,
    prefix: Annotated[bool, typer.Option(help=r"Write \[rank] before each line of their output.")] = True,
    mpi: Annotated[bool, typer.Option("--mpi", help="Start them by the launcher of the installed MPI.")] = False,
    oversubscribe: Annotated[
        bool, typer.Option("--oversubscribe", help="More ranks than processors: always allowed here, so this changes nothing.")
    ] = False,
    bind_to: Annotated[str, typer.Option("--bind-to", metavar="none|core", help="Keep each rank on one processor.")] = "none",
) -> None:
    r"""Run a program as ranks of one group on this host, as mpiexec does, without MPI: copyless run -n 4 prog.py \[arguments].

    In it, copyless.comm.world() is their communicator. When a rank ends badly, the others are ended, and its exit code (128 + signal)
    is this command's. With --mpi the installed MPI starts them: comm.world() is MPI's then, as under mpiexec.
    """
    from copyless.comm import launcher

    command, n = [program, *(arguments or [])], ranks or os.cpu_count() or 1
    try:
        if mpi:
            options = ["--bind-to", bind_to] if bind_to != "none" else []
            raise typer.Exit(launcher.run_mpi(command, n, options, oversubscribe))
        if bind_to not in ("none", "core"):
            raise launcher.Refused(f"--bind-to {bind_to}: it is none or core here; --mpi gives others to MPI's launcher", 2)
        raise typer.Exit(launcher.run(command, n, prefix=prefix, bind=bind_to == "core"))
    except launcher.Refused as refused:
        typer.echo(f"copyless run: {refused}", err=True)
        raise typer.Exit(refused.code) from None


@app.command()
def ls(as_json: Json = False, space: Space = None) -> None:
    """List segments, blocks, names and the processes that hold them.

    Only looks: nothing is taken back, no lock is taken, and a process that is stopped inside one is named. What is listed as left by
    the dead goes with the next allocation, or with 'copyless reap'; what is orphaned is kept by an undelivered message.
    """
    try:
        _say(look.listing(), as_json, look.show_listing)
    except (CopylessError, OSError) as error:
        _stop(str(error))


@app.command()
def inspect(
    name: Annotated[str, typer.Argument(help="A name, as 'copyless ls' shows it.")],
    as_json: Json = False,
    space: Space = None,
) -> None:
    """Show one named array: shape, dtype, who holds it, and its values in short."""
    try:
        _say(look.named(name), as_json, look.show_named)
    except (FileNotFoundError, CopylessError, ValueError) as error:
        _stop(f"{name}: {error.strerror if isinstance(error, OSError) else error}")


@app.command()
def reap(
    force: Annotated[
        bool, typer.Option("--force", help="Remove a damaged storage directory that nobody uses.")
    ] = False,
    as_json: Json = False,
    space: Space = None,
    remove_now: Annotated[bool, typer.Option("--remove-now", hidden=True)] = False,
) -> None:
    """Take back what dead processes held, and give free memory back to the system."""
    try:
        if remove_now:
            report = look.remove_damaged()
        else:
            report = dict(copyless.reap())
            report["bytes_given_back"] = copyless.trim()
    except PermissionError as refusal:
        _stop(str(refusal))
    except CopylessError as error:
        if not force or not look.may_be_removed(error):
            _stop(f"{error}")
        # In a new program: this one may have joined the damaged registry, and so be a process that uses it.
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:], "--remove-now"])
    if report.get("in_use"):
        _stop(f"processes {report['in_use']} still use {report['directory']}: end them first")
    _say(report, as_json, look.show_counts)


@app.command()
def doctor(as_json: Json = False, space: Space = None) -> None:
    """Look at this machine: size and type of /dev/shm, limits, leftovers, settings, and what to change."""
    from copyless.cli import doctor as examination

    report = examination.examine()
    _say(report, as_json, examination.show)
    if report["problems"]:
        raise typer.Exit(1)


@app.command()
def demo(
    workers: Annotated[int, typer.Option(help="Worker processes.", min=1)] = min(4, os.cpu_count() or 1),
    scale: Annotated[int, typer.Option(help="How many times the photograph is enlarged.", min=1, max=8)] = 3,
    output: Annotated[Path, typer.Option(help="Where the picture goes.")] = Path("copyless-demo.png"),
    frames: Annotated[int, typer.Option(help="Frames of the pipeline.", min=1)] = 1000,
    start: Annotated[str, typer.Option(help="Start method: spawn, fork or forkserver.")] = "spawn",
    as_json: Json = False,
) -> None:
    """Do the main jobs three ways each: a photograph filtered by a pool, and a stream of frames to one and four readers."""
    try:
        from copyless.cli import demo as job
    except ImportError as error:
        _stop(f"the demo needs photographs and a filter: pip install 'copyless[demo]' ({error})")
    if start not in ("spawn", "fork", "forkserver"):
        _stop(f"no start method is called {start!r}: spawn, fork, forkserver")
    quiet = as_json or not sys.stderr.isatty()
    report = job.run(workers=workers, scale=scale, output=output, start=start, quiet=quiet, frames=frames)
    _say(report, as_json, job.show)
    if not report["equal"] or report["left_behind"]:
        raise typer.Exit(1)
