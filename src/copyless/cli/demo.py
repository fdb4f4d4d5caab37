"""The main jobs in three ways: by pickling, by the standard library's SharedMemory idiom, by copyless.

A pool looks at many windows of one large photograph (windows.py), then a producer sends frames to one consumer and to
four (pipeline.py). The results must be bit-identical. Other programs can only make a way slower, so the first job is
measured in several rounds, and the best one of each way counts.
"""

from __future__ import annotations

import functools
import gc
import multiprocessing as mp
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

import copyless
from copyless._platform import OBJECTS_DIRECTORY
from copyless.cli import pipeline, windows
from copyless.cli.look import size
from copyless.cli.measure import Meter

if TYPE_CHECKING:
    from multiprocessing.context import BaseContext
    from typing import TypedDict

    class Report(TypedDict, total=False):
        """What `demo` prints as JSON. `pipeline` and what follows are known when both jobs are done."""

        photograph: list[int]
        windows: int
        workers: int
        start: str
        equal: bool
        ways: dict[str, dict[str, float]]
        frames: int
        pipeline: dict[str, dict[str, dict[str, float]]]
        picture: str
        left_behind: list[str]


ROUNDS = {"pickle": 1, "SharedMemory": 3, "copyless": 3}  # the first takes long and differs by factors


def photograph(scale: int) -> windows.Image:
    """A photograph that ships with scikit-image, enlarged."""
    import skimage

    path = os.path.join(os.path.dirname(skimage.__file__), "data", "retina.jpg")
    with Image.open(path) as picture:
        wide, high = picture.width * scale, picture.height * scale
        return np.asarray(picture.convert("RGB").resize((wide, high), Image.Resampling.BILINEAR))


def check_output(output: Path) -> None:
    """Raise the OSError or ValueError of a picture that cannot be written there, before the work is done."""
    if output.suffix.lower() not in Image.registered_extensions():
        raise ValueError(f"{output}: no picture has the ending {output.suffix!r}: use .png or .jpg")
    existed = output.exists()
    with open(output, "ab"):
        pass
    if not existed:
        output.unlink()


def _look_at_windows(
    image: windows.Image, context: BaseContext, workers: int, progress: Progress
) -> tuple[dict[str, dict[str, float]], bool, set[int], windows.Colours]:
    """(figures of each way, whether all results are equal, the processes, a result)."""
    measured: dict[str, dict[str, float]] = {}
    results = []
    total = len(windows.windows(image.shape))
    with context.Pool(workers) as pool:
        pids = {os.getpid(), *pool.map(windows.ready, range(2 * workers), chunksize=1)}
        for way, work in windows.WAYS.items():
            task = progress.add_task(f"windows, {way}", total=total * ROUNDS[way])
            for _ in range(ROUNDS[way]):
                meter = Meter()
                made = work(image, pool, functools.partial(progress.advance, task))
                meter.stop()
                results.append(np.array(made))
                del made
                copyless.trim()  # each round asks the system for its memory anew
                found = meter.measured
                if way not in measured or found["seconds"] < measured[way]["seconds"]:
                    measured[way] = found
            measured[way]["windows_per_second"] = total / measured[way]["seconds"]
        pool.close()
        pool.join()
    equal = all(np.array_equal(results[0], other) for other in results)
    return measured, equal, pids, results[0]


def run(
    workers: int, scale: int, output: Path, start: str, quiet: bool, frames: int = 240,
    tell: Callable[[Report], None] | None = None,
) -> Report:  # fmt: skip
    """Do both jobs in three ways. Returns seconds, bytes through pipes and peak memory of each, and frames per
    second. `tell` gets the report as far as it is known when the first job is done.
    """
    context = mp.get_context(start)
    progress = Progress(
        TextColumn("{task.description:>32}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        console=Console(stderr=True), disable=quiet,
    )  # fmt: skip
    image = photograph(scale)
    with progress:
        measured, equal, pids, result = _look_at_windows(image, context, workers, progress)
        gc.collect()  # the semaphores of the pool are files until they are garbage-collected
        copyless.trim()
        report: Report = {
            "photograph": list(image.shape), "windows": len(windows.windows(image.shape)), "workers": workers,
            "start": start, "equal": equal, "ways": measured, "frames": frames,
        }  # fmt: skip
        if tell is not None:
            tell(report)
        report["pipeline"] = pipeline.run(frames, start, progress)
    draw(image, result, measured, report["pipeline"], output)
    copyless.reap()
    copyless.trim()
    # Other programs may run at the same time: count only the files of this one.
    by_hand = windows.made_by_hand + pipeline._made_by_hand
    left = [name for name in by_hand if os.path.exists(os.path.join(OBJECTS_DIRECTORY, name))]
    return report | {"picture": str(output), "left_behind": left + _blocks_of(pids)}


def _blocks_of(pids: set[int]) -> list[str]:
    from copyless.cli.look import listing

    return [f"block {block['number']}" for block in listing()["blocks"] if block["creator_pid"] in pids]


# ---- showing


def show_windows(report: Report, console: Console) -> None:
    """The table of the first job."""
    pixels = report["photograph"]
    table = Table(
        title=f"{report['windows']} windows of a {pixels[1]}x{pixels[0]} photograph, {report['workers']} workers "
        f"({report['start']})",
        title_justify="left",
    )
    for column in ("way", "time", "windows a second", "through pipes", "peak memory (PSS)"):
        table.add_column(column, justify="left" if column == "way" else "right")
    for way, m in report["ways"].items():
        table.add_row(
            way,
            f"{m['seconds']:.2f} s",
            f"{m['windows_per_second']:,.0f}",
            size(m["pipe_bytes"]),
            "+" + size(m["peak_bytes"]),
        )
    console.print(table)


def show(report: Report, console: Console) -> None:
    """The table of the second job, and the verdict."""
    frames = Table(
        title=f"{report['frames']} frames of 1080x720x3 from photographs, one producer",
        title_justify="left",
    )
    for column in ("consumers", "way", "frames a second", "missed", "torn", "peak memory (PSS)"):
        frames.add_column(column, justify="left" if column == "way" else "right")
    for consumers, ways in report["pipeline"].items():
        for way, m in ways.items():
            frames.add_row(
                consumers, way, f"{m['frames_per_second']:,.0f}", f"{m['missed']:,.0f}", f"{m['torn']:,.0f}",
                "+" + size(m["peak_bytes"]),
            )  # fmt: skip
    console.print(frames)
    verdict = "[green]all results are equal[/]" if report["equal"] else "[red]the results differ[/]"
    left = report["left_behind"]
    console.print(
        f"{verdict}; picture in {report['picture']}; left in {OBJECTS_DIRECTORY}: "
        f"{', '.join(left) if left else 'nothing'}"
    )


def draw(
    image: windows.Image,
    result: windows.Colours,
    measured: dict[str, dict[str, float]],
    piped: dict[str, dict[str, dict[str, float]]],
    path: Path,
) -> None:
    """One picture: the photograph, the colours of its windows, a detail, and the bars."""
    side, gap, colours = 420, 24, ("#c0504d", "#e0a030", "#3a8f5c")
    canvas = Image.new("RGB", (3 * side + 4 * gap, side + 510), "white")
    pen = ImageDraw.Draw(canvas)
    font, small = ImageFont.load_default(size=18), ImageFont.load_default(size=14)
    h, w = image.shape[:2]
    detail = image[h * 2 // 5 : h // 2, w // 10 : w // 5]
    colours_found = np.clip(result, 0, 255).astype("u1")
    pictures = (("photograph", image), ("mean colour of each window", colours_found), ("a detail", detail))
    for i, (title, pixels) in enumerate(pictures):
        x = gap + i * (side + gap)
        picture = Image.fromarray(np.ascontiguousarray(pixels))
        picture = picture.resize((side, side), Image.Resampling.LANCZOS)
        pen.text((x, 10), title, "black", font)
        canvas.paste(picture, (x, 40))
    bars = (("seconds", "seconds", 1.0, "s"), ("pipe_bytes", "through pipes", 2.0**20, "MiB"),
            ("peak_bytes", "peak memory (PSS)", 2.0**20, "MiB"))  # fmt: skip
    for i, (key, title, unit, suffix) in enumerate(bars):
        x, y = gap + i * (side + gap), side + 70
        top = max(m[key] for m in measured.values()) or 1
        pen.text((x, y), title, "black", font)
        for j, (way, m) in enumerate(measured.items()):
            line = y + 36 + j * 50
            pen.text((x, line), f"{way}: {m[key] / unit:.2f} {suffix}", "black", small)
            pen.rectangle((x, line + 20, x + max(2, int((side - 10) * m[key] / top)), line + 38), colours[j])
    for i, (consumers, ways) in enumerate(piped.items()):
        x, y = gap + i * (side + gap), side + 290
        top = max(m["frames_per_second"] for m in ways.values()) or 1
        pen.text((x, y), f"frames of 1080x720 a second, {consumers} consumer{'s' * (consumers != '1')}", "black", font)
        for j, (way, m) in enumerate(ways.items()):
            line = y + 36 + j * 50
            text = f"{way}: {m['frames_per_second']:,.0f}, {m['missed']:,.0f} missed"
            pen.text((x, line), text + (f", {m['torn']:,.0f} torn" if m["torn"] else ""), "black", small)
            length = max(2, int((side - 10) * m["frames_per_second"] / top))
            pen.rectangle((x, line + 20, x + length, line + 38), colours[j])
    canvas.save(path)
