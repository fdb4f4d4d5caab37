# ruff: noqa: B018, E741, F401, I001, RUF100, UP037
"""A program of multiprocessing with mistakes, which tests/test_typing.py passes to type checkers: unchanged, and with
copyless imported instead.

A line that ends in `# wrong` has a mistake that checkers find in both. A line that ends in `# wrong for copyless` has a
mistake that the types of the standard library hide. On all other lines no checker finds anything.
"""

import ctypes
import queue
import threading
from concurrent.futures import ProcessPoolExecutor

import multiprocessing as mp
from multiprocessing import shared_memory, sharedctypes
from multiprocessing.connection import Connection, wait
from multiprocessing.managers import BaseManager, SharedMemoryManager
from multiprocessing.pool import AsyncResult
from multiprocessing.queues import Queue


class Point(ctypes.Structure):
    _fields_ = [("x", ctypes.c_double), ("y", ctypes.c_double)]


def half(x: int) -> float:
    return x / 2


def told(x: float) -> None:
    print(x)


def add(x: int, y: int = 0) -> int:
    return x + y


def pools() -> None:
    with mp.Pool(2, initializer=told, initargs=(1,), maxtasksperchild=3) as pool:
        a: list[float] = pool.map(half, [1, 2], chunksize=1)
        b: float = pool.apply(half, (1,), {})
        c: "AsyncResult[float]" = pool.apply_async(half, (1,), callback=told)
        d: list[int] = pool.starmap(add, [(1, 2), (3, 4)])
        for x in pool.imap_unordered(half, range(3)):
            told(x)
        pool.map(half, ["a"])  # wrong
        pool.map(half, 3)  # wrong
        pool.map(half)  # wrong
        pool.map(half, [1], chunksize="2")  # wrong
        pool.map(3, [1])  # wrong
        pool.imap(half, ["a"])  # wrong
        pool.imap_unordered(half, ["a"])  # wrong
        pool.map_async(half, ["a"])  # wrong
        pool.map_async(half, [1], callback=told)  # wrong
        pool.map_async(half, [1], error_callback=3)  # wrong
        pool.apply(half, 3)  # wrong
        pool.apply(half, (1,), [2])  # wrong
        pool.apply(3, (1,))  # wrong
        pool.apply_async(half, (1,), callback=3)  # wrong
        pool.starmap(add, [1, 2])  # wrong
        pool.starmap(add, 3)  # wrong
        e: int = pool.apply(half, (1,))  # wrong
        f: str = c.get()  # wrong
        g: str = c.get(timeout="1")  # wrong
        h: list[str] = pool.map_async(half, [1]).get()  # wrong
        i: str = pool.imap(half, [1]).next()  # wrong
        c.result()  # wrong
        pool.mapp(half, [1])  # wrong
        pool.join(3)  # wrong
    mp.Pool("2")  # wrong
    mp.Pool(2, initializer=3)  # wrong
    mp.Pool(2, initargs=3)  # wrong
    mp.Pool(2, worker=3)  # wrong
    print(a, b, d, e, f, g, h, i)


def executors() -> None:
    with ProcessPoolExecutor(2) as executor:
        a: float = executor.submit(half, 1).result()
        b: list[float] = list(executor.map(half, [1]))
        executor.submit(half, "x")  # wrong
        executor.submit(half)  # wrong
        executor.submit(half, 1, 2)  # wrong
        c: str = executor.submit(half, 1).result()  # wrong
        executor.map(half, 3)  # wrong
        executor.shutdown(wait="no")  # wrong
    ProcessPoolExecutor(max_workers="2")  # wrong
    ProcessPoolExecutor(2, initializer=told, initargs=(1.5,))
    ProcessPoolExecutor(2, mp.get_context("spawn"), told, (1.5,))
    ProcessPoolExecutor(2, initializer=told, initargs=("x",))  # wrong
    ProcessPoolExecutor(2, initializer=told)  # wrong
    ProcessPoolExecutor(2, initializer=3)  # wrong
    ProcessPoolExecutor(2, mp_context="spawn")  # wrong
    print(a, b, c)


def processes() -> None:
    p = mp.Process(target=half, args=(1,), kwargs={}, daemon=True)
    p.start()
    p.join(timeout=1.5)
    mp.Process(target=half, arg=(1,))  # wrong
    mp.Process(target=3)  # wrong
    mp.Process(target=half, args=1)  # wrong
    mp.Process(target=half, kwargs=[1])  # wrong
    p.join("1")  # wrong
    p.exit_code  # wrong
    a: int = p.exitcode  # wrong
    p.is_alive  # a mistake that no type shows
    print(a)


def queues() -> None:
    q: "mp.Queue[int]" = mp.Queue(maxsize=3)
    q.put(1, timeout=1)
    a: int = q.get(block=False)
    q.put("s")  # wrong
    q.put(1, timeout="1")  # wrong
    q.put_nowait("s")  # wrong
    b: str = q.get()  # wrong
    c: str = q.get_nowait()  # wrong
    q.get(timeout="1")  # wrong
    q.put_no_wait(1)  # wrong
    q.task_done()  # wrong
    mp.Queue("3")  # wrong
    mp.Queue(maxsiz=3)  # wrong
    j: "mp.JoinableQueue[str]" = mp.JoinableQueue()
    j.put("a")
    j.task_done()
    j.join()
    j.put(1)  # wrong
    s: "mp.SimpleQueue[bytes]" = mp.SimpleQueue()
    s.put(b"a")
    s.put("a")  # wrong
    d: str = s.get()  # wrong
    s.qsize()  # wrong for multiprocessing
    s.put(b"a", timeout=1)  # wrong
    print(a, b, c, d)


def locks() -> None:
    lock = mp.Lock()
    with lock as held:
        a: bool = held
        held.release()  # wrong
    lock.acquire(timeout="1")  # wrong
    lock.aquire()  # wrong
    mp.Lock(3)  # wrong
    mp.Semaphore("1")  # wrong
    mp.Semaphore(2).get_value().bit_length()
    changed = mp.Condition(mp.Lock())
    with changed:
        changed.wait_for(lambda: True, timeout=1)
        changed.wait("1")  # wrong
        changed.notify_all(3)  # wrong
    mp.Condition(3)  # wrong
    mp.Condition(threading.Lock())  # wrong
    event = mp.Event()
    event.set(True)  # wrong
    b: str = event.wait(1)  # wrong
    event.isSet()  # wrong
    mp.Barrier()  # wrong
    mp.Barrier("2")  # wrong
    c: str = mp.Barrier(1, timeout=1).wait()  # wrong
    mp.Barrier(1, action=3)  # wrong
    print(a, b, c)


def values() -> None:
    v = mp.Value("i", 0)
    with v.get_lock():
        v.value += 1
    a: int = v.value
    v.value = "x"  # wrong for copyless
    b: str = v.value  # wrong for copyless
    w = mp.Value(ctypes.c_double, 1.5)
    c: float = w.value
    w.value = "x"  # wrong
    w.val  # wrong
    mp.Value(3, 1)  # wrong
    mp.Value(dict, 1)  # wrong
    mp.Value("i", 0, lock=3)  # wrong
    p: Point = sharedctypes.RawValue(Point, 1.0, 2.0)
    r = mp.Array("d", 10)
    r[0] = 0.5
    d: list[float] = r[1:3]
    r[0] = "x"  # wrong for copyless
    e: str = r[0]  # wrong for copyless
    t = mp.Array(ctypes.c_int, [1, 2, 3])
    t[0] = 5
    t[0] = "x"  # wrong
    len(t).bit_length()
    t.append(4)  # wrong
    mp.Array("d")  # wrong
    mp.Array("d", 1.5)  # wrong
    text = mp.Array(ctypes.c_char, 10)
    text.value = b"abc"
    text.value = "abc"  # wrong
    mp.RawArray("d")  # wrong
    mp.RawArray(3, 3)  # wrong
    mp.RawValue(3)  # wrong
    print(a, b, c, d, e, p)


def pipes() -> None:
    one, other = mp.Pipe()
    one.send([1])
    one.snd(1)  # wrong
    other.recv_bytes("1")  # wrong
    other.poll("1")  # wrong
    one.send_bytes("text")  # wrong
    one.send()  # wrong
    mp.Pipe("duplex")  # wrong
    a, b, c = mp.Pipe()  # wrong
    typed: "Connection[int, str]" = one
    typed.send(1)
    typed.send("a")  # wrong
    d: int = typed.recv()  # wrong
    wait([one, 3])
    wait(["a"])  # wrong
    wait(one)  # wrong
    wait([one], timeout="1")  # wrong
    print(a, b, c, d)


def managers() -> None:
    manager = mp.Manager()
    a = manager.dict({"a": 1})
    a["b"] = 2
    a.update(c=3)
    b: list[str] = a.keys()
    c: int | None = a.get("a")
    a["b"] = "x"  # wrong
    a[1] = 1  # wrong
    d: str = a["a"]  # wrong
    a.has_key("a")  # wrong
    a.get()  # wrong
    e = manager.list([1, 2])
    e.append(3)
    e.sort(key=lambda x: -x)
    f: list[int] = e[0:2]
    e.append("x")  # wrong
    e[0] = "x"  # wrong
    g: str = e[0]  # wrong
    e.push(3)  # wrong
    h: "queue.Queue[int]" = manager.Queue(3)
    h.put(1)
    h.put("x")  # wrong
    manager.Queue("3")  # wrong
    manager.Queue().putt(1)  # wrong
    i: threading.Event = manager.Event()
    i.wait(1)
    i.set(1)  # wrong
    i.wait("1")  # wrong
    j: threading.Lock = manager.Lock()
    with j:
        pass
    manager.Lock().aquire()  # wrong
    k = manager.Value("i", 3)
    k.value += 1
    k.value = "x"  # wrong
    l: str = k.get()  # wrong
    k.set("x")  # wrong
    m: str = manager.Array("i", [1])[0]  # wrong
    manager.Namespace().x = 3
    n: list[float] = manager.Pool(2).map(half, [1])
    manager.Pool(2).map(half, ["x"])  # wrong
    manager.Pool("2")  # wrong
    manager.Semaphore("1")  # wrong
    manager.Barrier("1")  # wrong
    manager.Condition().notify_al()  # wrong
    manager.dicts()  # wrong
    manager.start(3)  # wrong
    manager.shutdown()
    with SharedMemoryManager() as memory:
        memory.SharedMemory(size=10).buf
        memory.SharedMemory(size="10")  # wrong
        o: str = memory.ShareableList([1, 2])[0]  # wrong
        memory.Blocks()  # wrong
    BaseManager(address=3)  # wrong
    BaseManager(authkey="key")  # wrong
    BaseManager.register(3)  # wrong
    BaseManager.register("x", callable=3)  # wrong
    print(b, c, d, f, g, l, m, n, o)


def memory() -> None:
    block = shared_memory.SharedMemory(create=True, size=10)
    block.size.bit_length()
    block.unlink()
    shared_memory.SharedMemory(create=True, size="10")  # wrong
    shared_memory.SharedMemory(crate=True)  # wrong
    shared_memory.SharedMemory(name=3)  # wrong
    block.nbytes  # wrong
    block.size = 3  # wrong
    items = shared_memory.ShareableList([1, 2, 3])
    items[0] = 5
    items[0] = "x"  # wrong
    a: str = items[0]  # wrong
    items.append(4)  # wrong
    items.index("x")  # wrong
    items.shm.unlink(3)  # wrong
    shared_memory.ShareableList(3)  # wrong
    print(a)


def contexts() -> None:
    context = mp.get_context("spawn")
    context.Process(target=half, args=(1,)).start()
    q: "Queue[int]" = context.Queue(3)
    q.put("x")  # wrong
    context.Queue(maxsiz=3)  # wrong
    context.Lock(3)  # wrong
    context.Process(target=3)  # wrong
    a: str = context.Value(ctypes.c_int, 1).value  # wrong
    context.Value(3)  # wrong
    context.Array("d")  # wrong
    context.Pool("2")  # wrong
    context.Pool(2, initializer=3)  # wrong
    context.Semaphore("1")  # wrong
    context.Barrier("1")  # wrong
    context.Condition(3)  # wrong
    context.Manager().dict({"a": 1})["b"] = "x"  # wrong
    context.Maneger()  # wrong
    with context.Pool(2) as pool:
        pool.map(half, ["x"])  # wrong
    mp.get_context(3)  # wrong
    mp.set_start_method(3)  # wrong
    mp.cpu_count("all")  # wrong
    mp.cpucount()  # wrong
    mp.current_process().nam  # wrong
    mp.active_children()[0].pid
    print(a)
