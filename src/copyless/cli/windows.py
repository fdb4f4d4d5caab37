"""The first job of `demo`: many windows of one large photograph, in three ways. What the workers import is here.

Each task looks at one window, at every eighth row and column, and writes its mean colour into the picture of all
results: little work on many bytes. The windows overlap, so that each byte belongs to many tasks.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable
from multiprocessing import shared_memory
from typing import TYPE_CHECKING

import numpy as np

import copyless

if TYPE_CHECKING:
    from multiprocessing.pool import Pool

    from numpy.typing import NDArray

    Image = NDArray[np.uint8]
    Colours = NDArray[np.float64]

__all__ = ["SIDE", "STEP", "WAYS", "made_by_hand", "ready", "windows"]

SIDE, STEP, GRID = 512, 128, 8
made_by_hand: list[str] = []  # names of the standard library's blocks, which must be unlinked
Place = tuple[int, int]


def windows(shape: tuple[int, ...]) -> list[Place]:
    """The row and the column of each window."""
    rows, columns = (range(0, n - SIDE + 1, STEP) for n in shape[:2])
    return list(itertools.product(rows, columns))


def results_of(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """The shape of the picture of all results."""
    rows, columns = (len(range(0, n - SIDE + 1, STEP)) for n in shape[:2])
    return rows, columns, 3


def look(window: Image) -> Colours:
    """The mean colour of a window."""
    colour: Colours = window[::GRID, ::GRID].mean((0, 1))
    return colour


def ready(_: int) -> int:
    time.sleep(0.05)  # so that every worker gets a task, and has imported everything
    return os.getpid()


# ---- (a) by pickling: windows go out as bytes, and the colours come back


def by_pickle(image: Image, pool: Pool, tick: Callable[[], None]) -> Colours:
    colours = np.empty(results_of(image.shape))
    places = windows(image.shape)
    jobs = (image[y : y + SIDE, x : x + SIDE] for y, x in places)
    for (y, x), colour in zip(places, pool.imap(look, jobs), strict=True):
        colours[y // STEP, x // STEP] = colour
        tick()
    return colours


# ---- (b) by the standard library: names, shapes and dtypes by hand


def _stdlib_task(job: tuple[str, str, tuple[int, ...], int, int]) -> None:
    source, target, shape, y, x = job
    block_in, block_out = shared_memory.SharedMemory(source), shared_memory.SharedMemory(target)
    image: Image = np.ndarray(shape, "u1", buffer=block_in.buf)
    colours: Colours = np.ndarray(results_of(shape), "f8", buffer=block_out.buf)
    colours[y // STEP, x // STEP] = look(image[y : y + SIDE, x : x + SIDE])
    del image, colours  # or close() would leave arrays that crash
    block_in.close()
    block_out.close()


def by_shared_memory(image: Image, pool: Pool, tick: Callable[[], None]) -> Colours:
    shape = results_of(image.shape)
    blocks = [shared_memory.SharedMemory(create=True, size=n) for n in (image.nbytes, int(np.prod(shape)) * 8)]
    made_by_hand.extend(block.name for block in blocks)
    try:
        np.ndarray(image.shape, "u1", buffer=blocks[0].buf)[:] = image
        jobs = ((blocks[0].name, blocks[1].name, image.shape, y, x) for y, x in windows(image.shape))
        for _ in pool.imap_unordered(_stdlib_task, jobs):
            tick()
        colours: Colours = np.ndarray(shape, "f8", buffer=blocks[1].buf).copy()
        return colours
    finally:
        for block in blocks:
            block.close()
            block.unlink()


# ---- (c) by copyless: arrays are arguments


def _copyless_task(job: tuple[Image, Colours]) -> None:
    window, colour = job
    colour[:] = look(window)


def by_copyless(image: Image, pool: Pool, tick: Callable[[], None]) -> Colours:
    source = copyless.array(image)
    colours = copyless.empty(results_of(image.shape))
    jobs = ((source[y : y + SIDE, x : x + SIDE], colours[y // STEP, x // STEP]) for y, x in windows(image.shape))
    for _ in pool.imap_unordered(_copyless_task, jobs):
        tick()
    return colours


WAYS = {"pickle": by_pickle, "SharedMemory": by_shared_memory, "copyless": by_copyless}
