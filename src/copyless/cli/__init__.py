"""The `copyless` command."""

from __future__ import annotations


def main() -> None:
    """Entry point of the console script."""
    from copyless.cli.app import app

    app()
