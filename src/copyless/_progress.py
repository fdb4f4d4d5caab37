"""Progress bars, for callers that ask for one: of the bytes of a transfer, and of the tasks of a pool.

In a notebook a bar is drawn by the notebook itself: an HTML element that is updated in place, without other packages.
Elsewhere rich draws it on standard error.
"""

from __future__ import annotations

import contextlib
import html
import sys
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing import process
from typing import Any

from copyless._html import size

__all__ = ["LARGE", "TaskBar", "shown", "task_bar"]

LARGE = 1 << 24  # bytes from which a bar is shown
_PAUSE = 0.1  # seconds between two updates of a notebook's bar


@contextlib.contextmanager
def _needs_rich() -> Iterator[None]:
    try:
        yield
    except ImportError:
        raise ModuleNotFoundError("progress=True needs rich: pip install 'copyless[cli]'", name="rich") from None


def _in_notebook() -> bool:
    """Whether this process is the kernel of a notebook, and not a program, a terminal's IPython, or a child of a
    kernel.
    """
    ask = getattr(sys.modules.get("IPython"), "get_ipython", None)
    kernel = getattr(ask(), "kernel", None) if ask is not None else None
    return kernel is not None and process.parent_process() is None


class _NotebookBar:
    """A bar in the output of a notebook's cell. Another thread than the cell's may call the methods, one at a time."""

    def __init__(self, title: str, total: int | None, text: Callable[[int], str]) -> None:
        from IPython.display import display

        self._title, self._total, self._text = title, total, text
        self._count, self._begun, self._drawn = 0, time.monotonic(), 0.0
        self._ended = False
        self._handle: Any = display(self._bundle(), raw=True, display_id=True)

    def _bundle(self) -> dict[str, str]:
        done = self._text(self._count)
        state = done if self._total is None else f"{done} of {self._text(self._total)}"
        state += f", {time.monotonic() - self._begun:.1f} s"
        value = ""
        if self._total is not None:
            value = f' value="{min(self._count, self._total)}" max="{max(self._total, 1)}"'
        elif self._ended:
            value = ' value="1" max="1"'
        bar = f'<progress style="width:20em"{value}></progress>'
        return {
            "text/html": f"<div>{html.escape(self._title)} {bar} {html.escape(state)}</div>",
            "text/plain": f"{self._title}: {state}",
        }

    def _draw(self) -> None:
        self._drawn = time.monotonic()
        self._handle.update(self._bundle(), raw=True)

    def advance(self, more: int) -> None:
        self._count += more
        if self._count != self._total and time.monotonic() - self._drawn < _PAUSE:
            return
        self._ended = self._count == self._total
        self._draw()

    def ends_at(self, total: int) -> None:
        self._total = total
        self._ended = self._count == total
        self._draw()

    def stop(self) -> None:
        if not self._ended:
            self._ended = True
            self._draw()


@contextlib.contextmanager
def shown(title: str | None, nbytes: int, steps: bool = True) -> Iterator[Callable[[int], None] | None]:
    """Show a bar of so many bytes inside the block, in a notebook's output or on standard error. Yields a function to
    call with the number of new bytes.

    Parameters
    ----------
    title
        None: no bar, and None is yielded, as for less than 16 MiB.
    steps
        False: the progress is unknown, so the bar only moves.
    """
    if title is None or nbytes < LARGE:
        yield None
        return
    if _in_notebook():
        with _notebook_bytes(title, nbytes, steps) as advance:
            yield advance
        return
    with _needs_rich():
        from rich.console import Console
        from rich.filesize import decimal
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TransferSpeedColumn,
        )

    known = [DownloadColumn(), TransferSpeedColumn()] if steps else [TextColumn(decimal(nbytes))]
    columns = [TextColumn("{task.description}"), BarColumn(), *known, TimeElapsedColumn()]
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(title, total=nbytes if steps else None)
        yield lambda more: progress.advance(task, more)
        progress.update(task, total=nbytes, completed=nbytes)


@contextlib.contextmanager
def _notebook_bytes(title: str, nbytes: int, steps: bool) -> Iterator[Callable[[int], None]]:
    text: Callable[[int], str] = size if steps else lambda _: size(nbytes)
    bar = _NotebookBar(title, nbytes if steps else None, text)
    try:
        yield bar.advance
        if bar._count < nbytes:
            bar.advance(nbytes - bar._count)
    finally:
        bar.stop()


class TaskBar:
    """A progress bar of the tasks of a pool; silent without a terminal or a notebook."""

    def __init__(self, total: int | None, title: str) -> None:
        self._total, self._count = total, 0
        self._lock = threading.Lock()  # one thread counts the tasks, another finds out how many there are
        self._bar = _NotebookBar(title, total, "{:,}".format) if _in_notebook() else None
        if self._bar is not None:
            return
        with _needs_rich():
            from rich.progress import Progress

        self._progress = Progress(transient=False)
        self._task = self._progress.add_task(title, total=total)
        self._progress.start()

    def advance(self, tasks: int = 1) -> None:
        """Count so many more finished tasks."""
        with self._lock:
            if self._bar is not None:
                self._bar.advance(tasks)
                return
            self._count += tasks
            self._progress.advance(self._task, tasks)
            if self._count == self._total:
                self._progress.stop()

    def ends_at(self, total: int) -> None:
        """There are so many tasks, which was not known before."""
        with self._lock:
            if self._bar is not None:
                self._bar.ends_at(total)
                return
            self._total = total
            self._progress.update(self._task, total=total)
            if self._count == total:
                self._progress.stop()

    def stop(self) -> None:
        """Stop before all tasks have ended."""
        with self._lock:
            (self._progress if self._bar is None else self._bar).stop()


def task_bar(progress: bool, total: int | None, function: object) -> TaskBar | None:
    """A bar with the name of the function, if `progress` asks for one. `total`: the number of tasks, if known."""
    return TaskBar(total, getattr(function, "__name__", "map")) if progress and total != 0 else None
