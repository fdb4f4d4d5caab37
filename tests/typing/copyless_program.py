# ruff: noqa: B018, E741, F401, I001, RUF100, UP037
"""A program of copyless with mistakes, which tests/test_typing.py passes to type checkers.

Each line that ends in `# wrong` has a mistake that every checker finds. On all other lines none finds anything. A
variable with a type says what a call returns.
"""

import asyncio
import ctypes
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

import copyless
from copyless import zeross  # wrong
from copyless.pool import AsyncResult, MapResult
from copyless.rings import Frame, RingBuffer, Subscription
from copyless.sharedctypes import Synchronized, SynchronizedArray, SynchronizedString

Vector = copyless.SharedArray[tuple[int, ...], np.dtype[np.float64]]


class Point(ctypes.Structure):
    _fields_ = [("x", ctypes.c_double), ("y", ctypes.c_double)]


class Mine(copyless.SharedArray):
    pass


def half(x: int) -> float:
    return x / 2


def takes(x: copyless.SharedArray) -> None:
    print(x)


def arrays() -> None:
    a: copyless.SharedArray[tuple[int, ...], np.dtype[np.float64]] = copyless.zeros((2, 3))
    b: copyless.SharedArray[tuple[int, ...], np.dtype[np.float32]] = copyless.ones(3, np.float32, name="b")
    c: copyless.SharedArray[tuple[int, ...], np.dtype[np.float32]] = copyless.zeros_like(b)
    d: NDArray[np.float64] = copyless.array(np.zeros(3))
    e: NDArray[np.uint8] = copyless.frombuffer(copyless.Alloc_mem(3), np.uint8)
    f: Mine = Mine((3,), "f4")
    takes(a)
    takes(b.T)
    takes(copyless.array([1, 2], "i4"))
    takes(copyless.memmap("data", "u1", "r", shape=(2, 3)))
    takes(np.zeros(3))  # wrong
    g: copyless.SharedArray[tuple[int, ...], np.dtype[np.int64]] = copyless.zeros(3)  # wrong
    i = copyless.empty_like(b)
    h: NDArray[np.int32] = i  # wrong
    copyless.zeros("3")  # wrong
    copyless.zeros(3, order="X")  # wrong
    copyless.zeros(3, nam="a")  # wrong
    copyless.zeros(3, name=3)  # wrong
    copyless.full(3)  # wrong
    copyless.array([1], ndmin="2")  # wrong
    copyless.asarray([1], order="X")  # wrong
    copyless.frombuffer([1, 2])  # wrong
    copyless.memmap(3)  # wrong
    copyless.memmap("data", mode="c")  # wrong
    copyless.zeross(3)  # wrong
    print(a, c, d, e, f, g, h)


def rings() -> None:
    ring: RingBuffer[NDArray[np.float32]] = copyless.RingBuffer(((3,), np.float32), slots=4)
    ring.put([1, 2, 3])
    a: NDArray[np.float32] = ring.latest(timeout=1).copy()
    with ring.write() as draft:
        draft[...] = 0.5
    ring.put({"a": [1, 2]})  # wrong
    b: str = ring.latest().copy()  # wrong
    many = copyless.RingBuffer({"rgb": ((4, 6, 3), "u1"), "t": ((), "f8")})
    with many.write(timeout=1) as draft2:
        draft2["rgb"][...] = 7
        draft2["t"] = 0.5
        draft2[0] = 3  # wrong
    many.put({"rgb": np.zeros((4, 6, 3), "u1"), "t": 0.5})
    many.put([1, 2])  # wrong
    with many.latest() as frame:
        c: NDArray[np.uint8] = frame["rgb"]
        frame[0]  # wrong
        frame.sequence  # wrong
    d: dict[str, NDArray[np.uint8]] = many.latest().copy()
    subscription = many.subscribe("block", since=0)
    for each in subscription:
        e: Frame[dict[str, NDArray[np.uint8]]] = each
        print(e)
    many.subscribe("drp")  # wrong
    many.subscribe(since="0")  # wrong
    f: Subscription[NDArray[np.float32]] = many.subscribe()  # wrong
    copyless.RingBuffer(3)  # wrong
    copyless.RingBuffer(((3,), "u1"), slot=4)  # wrong
    there = copyless.RingBuffer(name="there")
    there.put([1, 2])
    there.put({"a": 1})
    g: RingBuffer[NDArray[np.float64]] = copyless.RingBuffer.like(np.zeros(3))
    print(a, b, c, d, f, g)


def objects() -> None:
    q: copyless.Queue[int] = copyless.Queue(maxsize=3, name="q")
    q.put_many([1, 2])
    a: list[int] = q.get_many(timeout=1)
    for item in q:
        b: int = item
        print(b)
    q.put_many(["a"])  # wrong
    c: list[str] = q.get_many()  # wrong
    copyless.Queue(name=3)  # wrong
    jobs: copyless.JoinableQueue[str] = copyless.JoinableQueue(redeliver=True)
    with jobs.lease() as job:
        d: str = job
        jobs.nack(job)
        print(d)
    with jobs.lease() as job2:
        e: int = job2  # wrong
        print(e)
    f: str = jobs.dead_letters()[0].load()
    jobs.dead_letters()[0].retry()  # wrong
    with copyless.RWLock(recover="silent").read():
        print("reads")
    copyless.Lock(recover="silently")  # wrong
    copyless.RWLock().acquire()  # wrong
    copyless.wait([q, copyless.Event(), copyless.Lock(), 3], timeout=0)
    copyless.wait(["q"])  # wrong
    copyless.wait(q.get)  # wrong
    print(a, c, f)


async def loops(q: copyless.Queue[int], lock: copyless.Lock, ring: RingBuffer[NDArray[np.uint8]]) -> None:
    a: int = await q.aget(timeout=1)
    await q.aput("a")  # wrong
    b: str = await q.aget()  # wrong
    async with lock:
        await lock.aacquire("1")  # wrong
    async for frame in ring.subscribe():
        c: NDArray[np.uint8] = frame.copy()
        print(c)
    async for number in q:
        d: str = number  # wrong
        print(d)
    print(a, b)


def values() -> None:
    a: Synchronized[int] = copyless.Value("i", 3)
    b: int = a.add(2)
    c: bool = a.compare_exchange(1, 2)
    a.add("2")  # wrong
    a.exchange(1.5)  # wrong
    d: Synchronized[float] = copyless.Value(ctypes.c_double, 3)
    e: Synchronized[str] = copyless.Value("i", 3)  # wrong
    f = copyless.Value(Point, 1, 2)
    f.x += 1
    g: Point = f.get_obj()
    f.get_lock().aquire()  # wrong
    h: SynchronizedArray[float] = copyless.Array("d", shape=(2, 3))
    i: SynchronizedString = copyless.Array("c", b"abc")
    copyless.Array(np.dtype("f4"), [1, 2])
    copyless.Array(np.int32, 3)
    copyless.Array(Point, 3)
    copyless.Array("d", 3, shap=3)  # wrong
    print(b, c, d, e, g, h, i)


def pools(call: Callable[[int], str]) -> None:
    with copyless.Pool(2, retries=1) as pool:
        a: AsyncResult[float] = pool.apply_async(half, (1,))
        b: MapResult[str] = pool.map_async(call, [1], progress=True)
        c: list[str] = b.get()
        pool.map(half, [1], progres=True)  # wrong
        d: AsyncResult[str] = pool.apply_async(half, (1,))  # wrong
        for x in pool.imap(half, [1], buffersize=3):
            e: float = x
            print(e)
    copyless.Pool(2, retries="1")  # wrong
    copyless.get_context("spawn").Pool(2, retry=1)  # wrong
    print(a, c, d)


asyncio.run(loops(copyless.Queue(), copyless.Lock(), copyless.RingBuffer(((3,), np.uint8))))
