"""The main job, three ways: by pickling, by the standard library's SharedMemory idiom, by copyless.

Each way filters a large photograph tile by tile in a pool, then does the raster job: three series of 365x16x16, ten
workers, each writing its 4x4 columns of the third from the first two. The results must be equal to the last bit.
"""

from __future__ import annotations

import gc
import itertools
import multiprocessing as mp
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from multiprocessing import shared_memory
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from scipy import ndimage

import copyless
from copyless.cli.look import size

TILE, HALO, SIGMA = 512, 8, 2.0
RASTER = (365, 16, 16)
RASTER_WORKERS = 10
WAYS = ("pickle", "SharedMemory", "copyless")
_made_by_hand: list[str] = []  # names of the standard library's blocks, which somebody must unlink


def photograph(scale: int) -> Any:
    """A photograph that ships with scikit-image, enlarged."""
    import skimage

    path = os.path.join(os.path.dirname(skimage.__file__), "data", "retina.jpg")
    with Image.open(path) as picture:
        bigger = picture.convert("RGB").resize(
            (picture.width * scale, picture.height * scale), Image.Resampling.BICUBIC
        )
    return np.asarray(bigger)


# ---- the work itself, the same for every way


def sharpen(padded: Any, top: int, left: int, height: int, width: int) -> Any:
    """The sharpened inner part of a tile that came with its surroundings."""
    source = padded.astype("f4")
    soft = ndimage.gaussian_filter(source, (SIGMA, SIGMA, 0), truncate=HALO / SIGMA, mode="nearest")
    sharp = np.clip(2 * source - soft, 0, 255).astype("u1")
    return sharp[top : top + height, left : left + width]


def tiles(shape: tuple[int, ...]) -> Iterator[tuple[slice, slice, slice, slice]]:
    """Rows and columns of each tile, and the same with the surroundings the filter needs."""
    for y, x in itertools.product(range(0, shape[0], TILE), range(0, shape[1], TILE)):
        bottom, right = min(y + TILE, shape[0]), min(x + TILE, shape[1])
        outer = (
            slice(max(y - HALO, 0), min(bottom + HALO, shape[0])),
            slice(max(x - HALO, 0), min(right + HALO, shape[1])),
        )
        yield slice(y, bottom), slice(x, right), *outer


def filter_tile(image: Any, rows: slice, columns: slice, outer_rows: slice, outer_columns: slice) -> Any:
    return sharpen(
        image[outer_rows, outer_columns], rows.start - outer_rows.start, columns.start - outer_columns.start,
        rows.stop - rows.start, columns.stop - columns.start,
    )  # fmt: skip


def combine(rain: Any, heat: Any) -> Any:
    """One column of the raster job."""
    return np.cumsum(rain, axis=0) * np.exp(-heat / 40)


def columns() -> list[tuple[slice, slice]]:
    return [(slice(y, y + 4), slice(x, x + 4)) for y in range(0, 16, 4) for x in range(0, 16, 4)]


# ---- (a) by pickling: tiles go out and come back as bytes


def _pickle_tile(job: Any) -> Any:
    padded, top, left, height, width = job
    return sharpen(padded, top, left, height, width)


def _pickle_column(job: Any) -> Any:
    return combine(*job)


def by_pickle(path: str, series: Any, pool: Any, raster_pool: Any, tick: Any, done: Any) -> tuple[Any, Any]:
    image = np.array(np.load(path, mmap_mode="r"))
    output = np.empty_like(image)
    places = list(tiles(image.shape))
    jobs = (
        (image[oy, ox], y.start - oy.start, x.start - ox.start, y.stop - y.start, x.stop - x.start)
        for y, x, oy, ox in places
    )
    for (y, x, _, _), tile in zip(places, pool.imap(_pickle_tile, jobs), strict=True):
        output[y, x] = tile
        tick()
    third = np.empty(RASTER)
    where = columns()
    parts = raster_pool.imap(_pickle_column, ((series[0][:, y, x], series[1][:, y, x]) for y, x in where))
    for (y, x), part in zip(where, parts, strict=True):
        third[:, y, x] = part
    done()
    return output, third


# ---- (b) by the standard library: names, shapes and dtypes by hand


def _stdlib_open(name: str, shape: Any, dtype: str) -> tuple[Any, Any]:
    block = shared_memory.SharedMemory(name)
    return block, np.ndarray(shape, dtype, buffer=block.buf)


def _stdlib_tile(job: Any) -> None:
    source, target, shape, place = job
    block_in, image = _stdlib_open(source, shape, "u1")
    block_out, output = _stdlib_open(target, shape, "u1")
    output[place[0], place[1]] = filter_tile(image, *place)
    del image, output  # or close() would leave arrays that crash
    block_in.close()
    block_out.close()


def _stdlib_column(job: Any) -> None:
    names, y, x = job
    blocks, arrays = zip(*(_stdlib_open(name, RASTER, "f8") for name in names), strict=True)
    arrays[2][:, y, x] = combine(arrays[0][:, y, x], arrays[1][:, y, x])
    del arrays
    for block in blocks:
        block.close()


def by_shared_memory(path: str, series: Any, pool: Any, raster_pool: Any, tick: Any, done: Any) -> tuple[Any, Any]:
    image = np.load(path, mmap_mode="r")
    blocks = [shared_memory.SharedMemory(create=True, size=a.nbytes) for a in (image, image, *series, series[0])]
    _made_by_hand.extend(block.name for block in blocks)
    try:
        np.ndarray(image.shape, "u1", buffer=blocks[0].buf)[:] = image
        for block, values in zip(blocks[2:4], series, strict=True):
            np.ndarray(RASTER, "f8", buffer=block.buf)[:] = values
        jobs = ((blocks[0].name, blocks[1].name, image.shape, place) for place in tiles(image.shape))
        for _ in pool.imap_unordered(_stdlib_tile, jobs):
            tick()
        names = [block.name for block in blocks[2:]]
        for _ in raster_pool.imap_unordered(_stdlib_column, ((names, y, x) for y, x in columns())):
            pass
        done()
        output = np.ndarray(image.shape, "u1", buffer=blocks[1].buf).copy()
        return output, np.ndarray(RASTER, "f8", buffer=blocks[4].buf).copy()
    finally:
        for block in blocks:
            block.close()
            block.unlink()


# ---- (c) by copyless: arrays are arguments


def _copyless_tile(job: Any) -> None:
    image, output, place = job
    output[place[0], place[1]] = filter_tile(image, *place)


def _copyless_column(job: Any) -> None:
    rain, heat, third = job
    third[:] = combine(rain, heat)


def by_copyless(path: str, series: Any, pool: Any, raster_pool: Any, tick: Any, done: Any) -> tuple[Any, Any]:
    source = copyless.array(np.load(path, mmap_mode="r"))
    output = copyless.empty_like(source)
    rain, heat, third = *(copyless.array(values) for values in series), copyless.empty(RASTER)
    for _ in pool.imap_unordered(_copyless_tile, ((source, output, place) for place in tiles(source.shape))):
        tick()
    jobs = ((rain[:, y, x], heat[:, y, x], third[:, y, x]) for y, x in columns())
    for _ in raster_pool.imap_unordered(_copyless_column, jobs):
        pass
    done()
    return output, third


# ---- measuring


def _family() -> list[int]:
    me = os.getpid()
    pids = [me]
    for task in os.listdir(f"/proc/{me}/task"):
        try:
            with open(f"/proc/{me}/task/{task}/children") as f:
                pids += [int(pid) for pid in f.read().split()]
        except OSError:
            continue
    return pids


def memory_in_use() -> int:
    """Bytes of memory of this process and its children as PSS, every shared page counted once.

    Pages in /dev/shm are taken from the mount itself: PSS alone misses those that nobody has mapped at the moment.
    """
    st = os.statvfs("/dev/shm")
    total = (st.f_blocks - st.f_bfree) * st.f_frsize
    for pid in _family():
        try:
            with open(f"/proc/{pid}/smaps_rollup") as f:
                lines = dict(line.split(":", 1) for line in f if line.startswith("Pss"))
            total += sum(int(lines[key].split()[0]) * 1024 for key in ("Pss_Anon", "Pss_File"))
        except (OSError, KeyError):
            continue
    return total


def bytes_through_pipes() -> int:
    """Bytes that this process has written and read by system calls, so through the pools' pipes both ways."""
    with open("/proc/self/io") as f:
        counts = dict(line.split(": ") for line in f.read().splitlines())
    return int(counts["rchar"]) + int(counts["wchar"])


class Meter(threading.Thread):
    """Seconds, bytes through pipes and the highest memory, from its making until `stop`."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.measured: dict[str, float] = {}
        self._before = self._peak = memory_in_use()
        self._pipes = bytes_through_pipes()
        self._done = threading.Event()
        self._began = time.perf_counter()
        self.start()

    def run(self) -> None:
        while not self._done.wait(0.03):
            self._peak = max(self._peak, memory_in_use())

    def stop(self) -> None:
        seconds = time.perf_counter() - self._began
        self._done.set()
        self.join()
        peak = max(self._peak, memory_in_use()) - self._before
        self.measured |= {
            "seconds": seconds,
            "pipe_bytes": bytes_through_pipes() - self._pipes,
            "peak_bytes": max(0, peak),
        }


def _ready(_: int) -> int:
    time.sleep(0.05)  # so that every worker of the pool gets one, and has imported all that it needs
    return os.getpid()


def run(workers: int, scale: int, output: Path, start: str, quiet: bool, frames: int = 1000) -> dict[str, Any]:
    """Do both jobs three ways and report: seconds, bytes through pipes and peak memory of each; frames a second."""
    from copyless.cli import pipeline

    context = mp.get_context(start)
    rng = np.random.default_rng(365)
    series = rng.gamma(0.7, 6.0, RASTER), rng.normal(12, 9, RASTER)
    ways = dict(zip(WAYS, (by_pickle, by_shared_memory, by_copyless), strict=True))
    results: dict[str, tuple[Any, Any]] = {}
    measured: dict[str, dict[str, float]] = {}
    progress = Progress(
        TextColumn("{task.description:>32}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        console=Console(stderr=True), disable=quiet,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        path = os.path.join(scratch, "photograph.npy")
        np.save(path, photograph(scale))
        image = np.load(path, mmap_mode="r")
        total = sum(1 for _ in tiles(image.shape))
        with context.Pool(workers) as pool, context.Pool(RASTER_WORKERS) as raster_pool, progress:
            pids = {os.getpid(), *pool.map(_ready, range(2 * workers), chunksize=1)}
            pids.update(raster_pool.map(_ready, range(2 * RASTER_WORKERS), chunksize=1))
            for way, work in ways.items():
                task = progress.add_task(way, total=total)
                meter = Meter()
                made = work(path, series, pool, raster_pool, lambda task=task: progress.advance(task), meter.stop)
                measured[way] = meter.measured
                results[way] = made[0].copy(), made[1].copy()
                del made
            pool.close()
            raster_pool.close()
            pool.join()
            raster_pool.join()
            del pool, raster_pool
            gc.collect()  # the pools' own semaphores are files in /dev/shm until they are collected
            copyless.trim()
            piped = pipeline.run(frames, start, progress)
        shape = image.shape
        draw(np.array(image), results[WAYS[0]][0], measured, piped, output)
        del image
    first = results[WAYS[0]]
    equal = all(np.array_equal(first[i], results[way][i]) for way in WAYS for i in (0, 1))
    copyless.reap()
    copyless.trim()
    # Other programs may run beside us: what counts is what this one made.
    by_hand = _made_by_hand + pipeline._made_by_hand
    left = [name for name in by_hand if os.path.exists(f"/dev/shm/{name}")]
    return {
        "photograph": list(shape), "tiles": total, "workers": workers, "start": start, "equal": equal,
        "ways": measured, "frames": frames, "pipeline": piped, "picture": str(output), "left_behind": left + _blocks_of(pids),
    }  # fmt: skip


def _blocks_of(pids: set[int]) -> list[str]:
    from copyless.cli.look import listing

    return [f"block {block['number']}" for block in listing()["blocks"] if block["creator_pid"] in pids]


# ---- showing


def show(report: dict[str, Any], console: Console) -> None:
    pixels = report["photograph"]
    picture_bytes = pixels[0] * pixels[1] * pixels[2]
    table = Table(
        title=f"{pixels[1]}x{pixels[0]} photograph in {report['tiles']} tiles, {report['workers']} workers ({report['start']}); "
        f"raster 365x16x16, {RASTER_WORKERS} workers",
        title_justify="left",
    )
    for column in ("way", "time", "through pipes", "copies of the picture", "peak memory (PSS)"):
        table.add_column(column, justify="left" if column == "way" else "right")
    for way, m in report["ways"].items():
        table.add_row(
            way, f"{m['seconds']:.2f} s", size(m["pipe_bytes"]), f"{m['pipe_bytes'] / picture_bytes:.2f}",
            "+" + size(m["peak_bytes"]),
        )  # fmt: skip
    console.print(table)
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
    verdict = "[green]all three results are equal[/]" if report["equal"] else "[red]the results differ[/]"
    left = report["left_behind"]
    console.print(
        f"{verdict}; picture in {report['picture']}; left in /dev/shm: {', '.join(left) if left else 'nothing'}"
    )


def draw(image: Any, result: Any, measured: dict[str, dict[str, float]], piped: dict[str, Any], path: Path) -> None:
    """One picture: input, output, a detail of both, and the bars."""
    side, gap, colours = 420, 24, ("#c0504d", "#e0a030", "#3a8f5c")
    canvas = Image.new("RGB", (3 * side + 4 * gap, side + 510), "white")
    pen = ImageDraw.Draw(canvas)
    font, small = ImageFont.load_default(size=18), ImageFont.load_default(size=14)
    h, w = image.shape[:2]
    detail = slice(h * 2 // 5, h * 2 // 5 + h // 10), slice(w // 10, w // 10 + w // 20)
    pair = np.concatenate([image[detail], result[detail]], axis=1)
    pictures = (("input", image), ("output", result), ("detail: input left, output right", pair))
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
