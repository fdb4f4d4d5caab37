"""The second job of `demo`: one producer, one consumer and then four, frames of 1080x720x3 from real photographs.

All three ways deliver every frame to every consumer. (a) `multiprocessing.Queue`, one for each consumer. (b) The
standard library's idiom for large frames: one block of `SharedMemory` with eight slots, and the numbers of the slots
through queues, one to each consumer and one back. (c) A `copyless.RingBuffer` whose readers block. Each frame has its
number in its first and last pixel, so that consumers can count missed and torn frames.
"""

from __future__ import annotations

import functools
import gc
import multiprocessing as mp
import os
import time
from collections.abc import Callable, Iterator
from multiprocessing import shared_memory
from typing import TYPE_CHECKING

import numpy as np

import copyless
from copyless.cli.measure import Meter

if TYPE_CHECKING:
    from multiprocessing import queues
    from multiprocessing.context import ForkContext, ForkServerContext, SpawnContext
    from typing import Any

    from numpy.typing import NDArray
    from rich.progress import Progress, TaskID

    from copyless.queues import Queue
    from copyless.rings import RingBuffer
    from copyless.synchronize import Semaphore

    Context = ForkContext | SpawnContext | ForkServerContext
    Pictures = NDArray[np.uint8]
    Way = Callable[
        [int, int, Context, Pictures, Semaphore, Queue[tuple[int, int]], Callable[[int], None]], Iterator[list["Work"]]
    ]

SHAPE = (720, 1080, 3)
SLOTS = 8
WAYS = ("Queue", "SharedMemory", "copyless")
_made_by_hand: list[str] = []
Report = tuple[int, int]  # frames seen, frames torn
Work = tuple[Callable[..., None], tuple[object, ...]]  # what a consumer calls, with its arguments
Figures = dict[str, float]


def photographs(n: int = 16) -> Pictures:
    """A camera that moves over photographs which ship with scikit-image: n pictures of 1080x720."""
    import skimage
    from PIL import Image  # here: a consumer does not need it

    data = os.path.join(os.path.dirname(skimage.__file__), "data")
    names = [name for name in ("retina.jpg", "rocket.jpg", "coffee.png") if os.path.exists(os.path.join(data, name))]
    pictures = []
    for i in range(n):
        with Image.open(os.path.join(data, names[i % len(names)])) as picture:
            wide = picture.convert("RGB").resize((1080 + 8 * n, 720 + 4 * n), Image.Resampling.BILINEAR)
        pictures.append(np.asarray(wide)[4 * i : 4 * i + 720, 8 * i : 8 * i + 1080])
    return np.ascontiguousarray(pictures)


def stamp(frame: Pictures, number: int) -> None:
    flat = frame.reshape(-1)
    flat[:4].view("u4")[0] = flat[-4:].view("u4")[0] = number


class Looker:
    """What each consumer does with a frame: read every sixteenth row, and check that it is the next one and whole."""

    def __init__(self) -> None:
        self.seen: int = 0
        self.torn: int = 0
        self.last: int = 0
        self.light: float = 0.0

    def look(self, frame: Pictures) -> None:
        flat = frame.reshape(-1)
        first, last = int(flat[:4].view("u4")[0]), int(flat[-4:].view("u4")[0])
        self.light += float(frame[::16, ::4].mean())
        self.torn += first != last
        self.seen += first != self.last
        self.last = first

    def report(self) -> Report:
        return self.seen, self.torn


# ---- (a)


def _queue_consumer(queue: queues.Queue[Pictures | None], ready: Semaphore, results: Queue[Report]) -> None:
    looker = Looker()
    ready.release()
    while (frame := queue.get()) is not None:
        looker.look(frame)
    results.put(looker.report())


def by_queue(
    frames: int, consumers: int, context: Context, pictures: Pictures, ready: Semaphore, results: Queue[Report],
    tick: Callable[[int], None],
) -> Iterator[list[Work]]:  # fmt: skip
    queues = [context.Queue(maxsize=SLOTS) for _ in range(consumers)]
    yield [(_queue_consumer, (queue, ready, results)) for queue in queues]
    for number in range(1, frames + 1):
        frame = pictures[number % len(pictures)].copy()  # a copy: the feeder thread pickles it later
        stamp(frame, number)
        for queue in queues:
            queue.put(frame)
        tick(number)
    for queue in queues:
        queue.put(None)
    yield []


# ---- (b)


def _slots_consumer(
    name: str, todo: queues.Queue[int | None], done: queues.Queue[int], ready: Semaphore, results: Queue[Report]
) -> None:
    block = shared_memory.SharedMemory(name)
    slots: Pictures = np.ndarray((SLOTS, *SHAPE), "u1", buffer=block.buf)
    looker = Looker()
    ready.release()
    while (slot := todo.get()) is not None:
        looker.look(slots[slot])
        done.put(slot)
    results.put(looker.report())
    del slots
    block.close()


def by_slots(
    frames: int, consumers: int, context: Context, pictures: Pictures, ready: Semaphore, results: Queue[Report],
    tick: Callable[[int], None],
) -> Iterator[list[Work]]:  # fmt: skip
    block = shared_memory.SharedMemory(create=True, size=SLOTS * int(np.prod(SHAPE)))
    _made_by_hand.append(block.name)
    slots: Pictures = np.ndarray((SLOTS, *SHAPE), "u1", buffer=block.buf)
    queues, done = [context.Queue() for _ in range(consumers)], context.Queue()
    yield [(_slots_consumer, (block.name, queue, done, ready, results)) for queue in queues]
    readers = [0] * SLOTS  # consumers that have not yet given the slot back
    for number in range(1, frames + 1):
        slot = number % SLOTS
        while readers[slot]:
            readers[done.get()] -= 1
        slots[slot] = pictures[number % len(pictures)]
        stamp(slots[slot], number)
        readers[slot] = consumers
        for queue in queues:
            queue.put(slot)
        tick(number)
    while any(readers):
        readers[done.get()] -= 1
    for queue in queues:
        queue.put(None)
    yield []
    del slots
    block.close()
    block.unlink()


# ---- (c)


def _ring_consumer(ring: RingBuffer[Pictures], ready: Semaphore, results: Queue[Report]) -> None:
    looker = Looker()
    with ring.subscribe("block") as frames:
        ready.release()
        for frame in frames:
            with frame:
                looker.look(frame.array)
    results.put(looker.report())


def by_ring(
    frames: int, consumers: int, context: Context, pictures: Pictures, ready: Semaphore, results: Queue[Report],
    tick: Callable[[int], None],
) -> Iterator[list[Work]]:  # fmt: skip
    ring = copyless.RingBuffer((SHAPE, "u1"), slots=SLOTS)
    yield [(_ring_consumer, (ring, ready, results)) for _ in range(consumers)]
    for number in range(1, frames + 1):
        with ring.write() as frame:
            frame[...] = pictures[number % len(pictures)]
            stamp(frame.array, number)
        tick(number)
    ring.shutdown()
    yield []


def _run(
    way: Way, frames: int, consumers: int, context: Context, pictures: Pictures, tick: Callable[[int], None]
) -> Figures:
    """Frames a second, missed and torn frames of each consumer, and peak memory."""
    ready = copyless.Semaphore(0)
    results: Queue[Report] = copyless.Queue()
    meter = Meter()
    job = way(frames, consumers, context, pictures, ready, results, tick)
    processes = [context.Process(target=work, args=args, daemon=True) for work, args in next(job)]
    for process in processes:
        process.start()
    for _ in processes:
        if not ready.acquire(timeout=60):
            raise RuntimeError("a consumer of the frame pipeline did not start")
    began = time.perf_counter()
    next(job)
    reports = [results.get(timeout=120) for _ in processes]
    seconds = time.perf_counter() - began
    for process in processes:
        process.join()
    next(job, None)
    meter.stop()
    seen = sum(seen for seen, _ in reports) / consumers
    return {
        "frames_per_second": seen / seconds, "missed": frames - seen,
        "torn": sum(torn for _, torn in reports) / consumers, "peak_bytes": meter.measured["peak_bytes"],
        "seconds": seconds,
    }  # fmt: skip


def _tick(progress: Progress, task: TaskID, done: int) -> None:
    progress.update(task, completed=done)


def run(frames: int, start: str, progress: Progress) -> dict[str, dict[str, Figures]]:
    """{consumers: {way: figures}} for one consumer and for four."""
    context: Any = mp.get_context(start)  # typeshed gives a context of any start no Process
    pictures = photographs()
    measured: dict[str, dict[str, Figures]] = {}
    for consumers in (1, 4):
        measured[str(consumers)] = {}
        for name, way in zip(WAYS, (by_queue, by_slots, by_ring), strict=True):
            task = progress.add_task(f"frames to {consumers}, {name}", total=frames)
            tick = functools.partial(_tick, progress, task)
            measured[str(consumers)][name] = _run(way, frames, consumers, context, pictures, tick)
            gc.collect()
            copyless.trim()
    return measured
