"""A bar for transfers that are large enough to be looked at, where the caller asks for one."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

__all__ = ["LARGE", "shown"]

LARGE = 1 << 24  # bytes from which there is a bar


@contextlib.contextmanager
def shown(title: str | None, nbytes: int, steps: bool = True) -> Iterator[Callable[[int], None] | None]:
    """Show a bar of so many bytes on standard error meanwhile; what is given hears how many more went.

    Parameters
    ----------
    title
        None: no bar, and None is given; as for less than 16 MiB.
    steps
        False: nobody knows how far it is, so the bar only moves.
    """
    if title is None or nbytes < LARGE:
        yield None
        return
    from rich.console import Console
    from rich.filesize import decimal
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn, TransferSpeedColumn

    known = [DownloadColumn(), TransferSpeedColumn()] if steps else [TextColumn(decimal(nbytes))]
    columns = [TextColumn("{task.description}"), BarColumn(), *known, TimeElapsedColumn()]
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(title, total=nbytes if steps else None)
        yield lambda more: progress.advance(task, more)
        progress.update(task, total=nbytes, completed=nbytes)
