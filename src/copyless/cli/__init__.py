"""The `copyless` command."""

from __future__ import annotations


def main() -> None:
    """Entry point of the console script."""
    import _signal  # type: ignore[import-not-found]  # without the enumerations of `signal`
    import gc
    import sys

    # Until `run` watches its ranks Ctrl-C ends it at once: where Python raises KeyboardInterrupt, that may be lost in
    # what an import calls back.
    if sys.argv[1:2] == ["run"] and _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
        _signal.signal(_signal.SIGINT, _signal.SIG_DFL)

    from copyless.cli.app import app

    code = app()
    gc.freeze()  # what is left goes with the process: the interpreter would look through it for cycles, several times
    sys.exit(code)
