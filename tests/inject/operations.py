"""The operations that run while a call fails: every public constructor and its first operations.

Each operation makes what it needs, uses it, releases it, and raises AssertionError if a result is wrong. It can be
repeated, whatever the result was before.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import multiprocessing
import os
import pickle
import queue
import select
import subprocess
import tempfile
import time
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np

import copyless
from copyless import comm
from copyless.cli import look

subprocess._USE_VFORK = False  # a failure of vfork cannot be caused from outside

OPERATIONS: dict[str, Callable[[], Any]] = {}
FIRST: dict[str, Callable[[], Any]] = {}
FORKING: dict[str, Callable[[], Any]] = {}
kept: dict[str, Any] = {}  # objects that an operation makes only the first time
LARGE = 40_000  # doubles: a segment of its own


def operation(table: dict[str, Callable[[], Any]]) -> Callable[[Callable[[], Any]], Callable[[], Any]]:
    def note(work: Callable[[], Any]) -> Callable[[], Any]:
        table[work.__name__] = work
        return work

    return note


@contextlib.contextmanager
def unlinked(name: str) -> Any:
    """Whatever happens inside, no object has that name afterwards."""
    try:
        yield
    finally:
        forget(name)


names: list[str] = []


def forget(name: str) -> None:
    """The runner of the operation removes names, when no call fails any more."""
    names.append(name)


def tidy() -> None:
    while names:
        with contextlib.suppress(FileNotFoundError):
            copyless.unlink(names.pop())


@operation(OPERATIONS)
def small_array() -> None:
    a = copyless.zeros(10)
    a += 1
    assert a.sum() == 10


@operation(OPERATIONS)
def large_array() -> None:
    a = copyless.full(LARGE, 2.0)
    assert a.sum() == 2 * LARGE


@operation(OPERATIONS)
def large_array_trimmed() -> None:
    a = copyless.full(LARGE, 2.0)
    assert a[-1] == 2
    del a
    copyless.trim()


@operation(OPERATIONS)
def named_array() -> None:
    with unlinked("t-inject"):
        a = copyless.ones(100, name="t-inject")
        assert copyless.open("t-inject").sum() == 100
        del a
        with contextlib.suppress(FileNotFoundError):
            copyless.unlink("t-inject")


@operation(OPERATIONS)
def made_once() -> None:
    with unlinked("t-inject"):
        for _ in range(2):  # the second call finds it
            a = copyless.zeros(100, name="t-inject", exist_ok=True, init=lambda a: a.fill(2))
            assert a.sum() == 200
        del a
        for _ in range(2):
            q: Any = copyless.Queue(name="t-inject", init=lambda q: q.put(1))
        assert q.get(timeout=1) == 1
        del q


@operation(OPERATIONS)
def shared_copy() -> None:
    assert copyless.share(np.arange(LARGE)).sum() == LARGE * (LARGE - 1) // 2
    assert copyless.share({"a": np.ones(5)})["a"].sum() == 5


@operation(OPERATIONS)
def handle() -> None:
    a = copyless.ones(1000)
    assert copyless.attach(copyless.handle(a)).sum() == 1000


@operation(OPERATIONS)
def message() -> None:
    """As Process, Pipe and Pool send it."""
    for size in (10, LARGE):
        sent = bytes(ForkingPickler.dumps(copyless.ones(size)))
        assert pickle.loads(sent).sum() == size


@operation(OPERATIONS)
def pipe() -> None:
    near, far = multiprocessing.Pipe()
    with near, far:
        near.send(copyless.ones(300))
        assert far.recv().sum() == 300


@operation(OPERATIONS)
def first_of_many() -> None:
    q, event = copyless.Queue(), copyless.Event()
    near, far = multiprocessing.Pipe()
    with near, far:
        assert copyless.wait([q, event, near], 0.001) == []
        q.put(1)
        assert copyless.wait([q, event]) == copyless.wait([near, q]) == [q]
        assert select.select([q, event], [], [], 60)[0] == [q]
        assert q.get() == 1


@operation(OPERATIONS)
def reap() -> None:
    copyless.reap()
    look.listing()


def _check(q: Any, item: Any) -> None:
    q.put(item, timeout=10)
    got = q.get(timeout=10)
    if isinstance(item, np.ndarray):
        assert (got == item).all()
    else:
        assert got == item


@operation(OPERATIONS)
def queue_of_small_items() -> None:
    q: Any = copyless.Queue()
    for i in range(3):
        _check(q, i)
    q.put_many([1, 2, 3])
    assert q.get_many(3) == [1, 2, 3]
    with contextlib.suppress(queue.Empty):
        q.get(timeout=0.001)
        raise AssertionError("an item from nowhere")
    q.close()


@operation(OPERATIONS)
def queue_of_long_items() -> None:
    q: Any = copyless.Queue()
    _check(q, b"x" * 1000)
    _check(q, b"x" * 100_000)
    _check(q, [b"x" * 20_000] * 20)
    q.close()


@operation(OPERATIONS)
def queue_of_arrays() -> None:
    q: Any = copyless.Queue()
    _check(q, np.arange(10))
    _check(q, np.arange(LARGE))
    _check(q, copyless.ones(LARGE))
    q.close()


@operation(OPERATIONS)
def bounded_queue() -> None:
    q: Any = copyless.Queue(1)
    q.put(1)
    with contextlib.suppress(queue.Full):
        q.put(2, timeout=0.01)
        raise AssertionError("put into a full queue")
    assert q.get() == 1
    q.shutdown()


@operation(OPERATIONS)
def leases() -> None:
    with unlinked("t-inject-leases"):
        q: Any = copyless.JoinableQueue(name="t-inject-leases", redeliver=True)
        q.put(np.arange(1000))
        with q.lease(timeout=10) as item:
            assert item.sum() == 499_500
        q.join(timeout=10)
        q.close()


@operation(OPERATIONS)
def dead_letters() -> None:
    q: Any = copyless.JoinableQueue(redeliver=True, max_deliveries=2)
    q.put(np.arange(1000))
    for _ in range(2):
        item = q.get(timeout=10)
        assert item.sum() == 499_500
        item[:] = 0  # it is the consumer's own: the next consumer gets it as it was put
        q.nack(item)
        del item
    q.join(timeout=10)
    (letter,) = q.dead_letters()
    assert letter.deliveries == 2
    assert letter.load().sum() == 499_500
    assert letter.discard()
    q.close()


def _raise() -> None:
    raise ArithmeticError("as it should")


class Unloadable:
    def __reduce__(self) -> Any:
        return _raise, ()


@operation(OPERATIONS)
def bad_items() -> None:
    q: Any = copyless.Queue()
    assert q.put_many([1, Unloadable(), b"x" * 1000, 2], timeout=10) == 4
    assert q.get_many() == [1, b"x" * 1000, 2]
    with contextlib.suppress(ArithmeticError):
        q.get(timeout=10)
        raise AssertionError("the bad item has gone unheard")
    q.close()


@operation(OPERATIONS)
def simple_queue() -> None:
    q: Any = copyless.SimpleQueue()
    q.put([1, "two", np.ones(3)])
    assert q.get()[2].sum() == 3
    q.close()


@operation(OPERATIONS)
def locks() -> None:
    for kind in (copyless.Lock, copyless.RLock, copyless.Semaphore, copyless.BoundedSemaphore):
        made: Any = kind()
        with made:
            pass
        assert made.acquire(timeout=1)
        if kind in (copyless.Lock, copyless.Semaphore):
            assert not made.acquire(timeout=0.002)
        made.release()
        del made


@operation(OPERATIONS)
def condition_and_friends() -> None:
    condition = copyless.Condition()
    with condition:
        assert not condition.wait(0.002)
        condition.notify_all()
    event = copyless.Event()
    assert not event.wait(0.002)
    event.set()
    assert event.wait(1)
    barrier = copyless.Barrier(1)
    assert barrier.wait(1) == 0
    lock = copyless.RWLock()
    with lock.read():
        pass
    with lock.write():
        pass


@operation(OPERATIONS)
def values() -> None:
    value: Any = copyless.Value("i", 3)
    with value.get_lock():
        value.value += 1
    assert value.value == 4
    assert list(copyless.Array("d", [1.0, 2.0])) == [1.0, 2.0]
    assert list(copyless.RawArray(ctypes.c_int, 3)) == [0, 0, 0]


@operation(OPERATIONS)
def shareable_list() -> None:
    made: Any = copyless.ShareableList([1, "two", 3.0, None, b"5"])
    try:
        assert list(made) == [1, "two", 3.0, None, b"5"]
        made[0] = 7
        assert made.count(7) == 1
    finally:
        made.shm.close()
        made.shm.unlink()


@operation(OPERATIONS)
def shared_memory() -> None:
    for size in (100, 300_000):
        made = copyless.SharedMemory(create=True, size=size)
        try:
            other = copyless.SharedMemory(made.name)
            other.buf[5] = 9
            assert made.buf[5] == 9
            other.close()
        finally:
            made.close()
            made.unlink()


@operation(OPERATIONS)
def ring() -> None:
    made: Any = copyless.RingBuffer(((100,), "f8"), 4)
    with made.subscribe() as reader:
        made.put(np.ones(100))
        assert reader.get(timeout=1).array.sum() == 100
        made.put(np.full(100, 2.0))
        assert made.latest().array.sum() == 200
    made.close()


@operation(OPERATIONS)
def memory_object() -> None:
    memory = copyless.Alloc_mem(1000)
    memory[:3] = b"abc"
    assert bytes(memory[:3]) == b"abc"
    copyless.Free_mem(memory)


@operation(OPERATIONS)
def makers_of_arrays() -> None:
    like = np.arange(6.0).reshape(2, 3)
    assert copyless.array(like).sum() == copyless.asarray(like).sum() == 15
    made = copyless.empty((2, 3))
    made[...] = like
    assert copyless.is_shared(made)
    assert copyless.full_like(like, 2).sum() == 2 * copyless.ones_like(like).sum() == 12
    assert copyless.empty_like(made).shape == copyless.zeros_like(like).shape == copyless.SharedArray((2, 3)).shape
    table = copyless.to_recarray({"a": [1, 2, 3], "text": ["x", "yy", "zzz"]})
    assert table.a.sum() == 6
    assert copyless.explain({"a": made, "b": 5}).shared_bytes >= 48


@operation(OPERATIONS)
def files() -> None:
    with tempfile.TemporaryDirectory(prefix="t-inject-") as place:
        path = os.path.join(place, "file")
        made = copyless.memmap(path, "f8", "w+", shape=(100,))
        made[:] = 2
        assert pickle.loads(bytes(ForkingPickler.dumps(made))).sum() == 200
        assert copyless.memmap(path, "f8", "r").sum() == 200
        del made


@operation(OPERATIONS)
def kept_by_name() -> None:
    """An object that persists stays when no process holds it, until it is unlinked."""
    with unlinked("t-inject-kept"), unlinked("t-inject-lock"), unlinked("t-inject-ring"):
        copyless.full(100, 3.0, name="t-inject-kept", persist=True)
        assert copyless.open("t-inject-kept", readonly=True).sum() == 300
        lock = copyless.Lock(name="t-inject-lock", persist=True)
        with lock:
            pass
        del lock
        made: Any = copyless.RingBuffer({"n": ((), "i8")}, 4, name="t-inject-ring")
        made.put({"n": 5})
        assert copyless.open("t-inject-ring").latest()["n"] == 5
        del made
        for name in ("t-inject-kept", "t-inject-lock"):
            with contextlib.suppress(FileNotFoundError):
                copyless.unlink(name)


@operation(OPERATIONS)
def settings() -> None:
    before = copyless.configure()
    for warm in (0, before.warm_limit):
        copyless.configure(warm_limit=warm)
        copyless.full(LARGE, 2.0)
    copyless.trim(1 << 20)


@operation(OPERATIONS)
def rest_of_queues() -> None:
    q: Any = copyless.JoinableQueue(2, maxbytes=1 << 20)
    q.put_nowait(1)
    assert q.put_many([np.ones(3)]) == 1
    assert q.full()
    with contextlib.suppress(queue.Full):
        q.put_nowait(3)
        raise AssertionError("put into a full queue")
    assert q.qsize() == 2
    assert not q.empty()
    assert q.stats().put == 2
    assert q.get_nowait() == 1
    q.task_done()
    assert q.get_many(5)[0].sum() == 3
    q.task_done()
    q.join(1)
    q.shutdown(immediate=True)
    with contextlib.suppress(copyless.ShutDown):
        q.get()
        raise AssertionError("an item from a queue that is shut down")
    q.close()
    q.join_thread()


@operation(OPERATIONS)
def pickled_objects() -> None:
    """As Process sends them; loaded in the process that has them."""
    for made in (
        copyless.Queue(),
        copyless.SimpleQueue(),
        copyless.Lock(),
        copyless.RLock(),
        copyless.RWLock(),
        copyless.Semaphore(2),
        copyless.Condition(),
        copyless.Event(),
        copyless.Barrier(2),
        copyless.RingBuffer(((3,), "f8"), 4),
        copyless.Memory.allocate(10),
    ):
        again = copyless.attach(copyless.handle(made))
        assert type(again) is type(made)
    for value in (copyless.Value("i", 3), copyless.RawValue("i", 3)):
        assert pickle.loads(bytes(ForkingPickler.dumps(value))).value == 3


@operation(OPERATIONS)
def robust_semaphores() -> None:
    for kind in (copyless.Semaphore, copyless.BoundedSemaphore):
        made: Any = kind(2, robust=True, recover="silent")
        assert made.acquire()
        assert made.acquire(timeout=1)
        assert made.get_value() == 0
        assert not made.acquire(timeout=0.002)
        made.release()
        made.release()
        assert made.get_value() == 2


@operation(OPERATIONS)
def rest_of_locks() -> None:
    lock: Any = copyless.RLock()
    assert lock.acquire()
    assert lock.locked()
    assert lock.acquire(timeout=1)
    lock.release()
    lock.release()
    both = copyless.RWLock(readers=4)
    assert both.acquire_read(1)
    both.release_read()
    assert both.acquire_write(1)
    both.release_write()
    condition = copyless.Condition(copyless.Lock(), waiters=4)
    assert condition.acquire(timeout=1)
    condition.notify()
    assert condition.wait_for(lambda: True, 1)
    condition.release()
    event = copyless.Event()
    event.set()
    event.clear()
    assert not event.is_set()
    barrier = copyless.Barrier(2)
    with contextlib.suppress(copyless.synchronize.BrokenBarrierError):
        barrier.wait(0.002)
        raise AssertionError("a barrier of two let one go")
    barrier.reset()
    barrier.abort()
    assert barrier.broken


@operation(OPERATIONS)
def rest_of_values() -> None:
    number: Any = copyless.RawValue("d", 2.0)
    guarded = copyless.sharedctypes.synchronized(number)
    with guarded:
        guarded.value += 1
    assert copyless.sharedctypes.copy(number).value == 3
    text: Any = copyless.Array("c", b"abc")
    assert text.acquire(timeout=1)
    text.release()
    assert text.value == pickle.loads(bytes(ForkingPickler.dumps(copyless.RawArray("c", b"abc")))).value == b"abc"
    assert copyless.Array("d", shape=(2, 3))[:][1][2] == 0


@operation(OPERATIONS)
def rest_of_lists() -> None:
    first: Any = copyless.ShareableList(["a", 2.0])
    try:
        second: Any = copyless.ShareableList(name=first.shm.name)
        second[1] = 3.0
        assert first.index(3.0) == 1
        assert list(pickle.loads(pickle.dumps(second))) == ["a", 3.0]
        second.shm.close()
    finally:
        first.shm.close()
        first.shm.unlink()


@operation(OPERATIONS)
def rest_of_shared_memory() -> None:
    made = copyless.SharedMemory(create=True, size=5000)
    try:
        made.buf[:3] = b"abc"
        made.fileno()
        again = pickle.loads(pickle.dumps(made))
        assert bytes(again.buf[:3]) == b"abc"
        again.close()
        read = copyless.SharedMemory(made.name, readonly=True)
        assert bytes(read.buf[:3]) == b"abc"
        read.close()
    finally:
        made.close()
        made.unlink()


@operation(OPERATIONS)
def frames() -> None:
    made: Any = copyless.RingBuffer.like({"n": 1, "image": np.zeros((10, 10))}, 4, block_timeout=0.01, members=8)
    with made.subscribe("block") as reader, made.subscribe(since=0) as late:
        for n in range(3):
            with made.write(timeout=1) as draft:
                draft["n"][...] = n
                draft["image"][...] = n
        with contextlib.suppress(ArithmeticError):
            with made.write() as draft:
                raise ArithmeticError("as it should")
        with reader.get(1) as frame:
            assert frame["image"].sum() == 0
            kept = frame.copy()
        assert kept["n"] == 0
        assert reader.lag == 2
        assert late.missed == 0
        with made.last(2) as last:
            assert [int(frame["n"]) for frame in last] == [1, 2]
        assert made.stats().readers
        made.shutdown()
        assert [int(frame["n"]) for frame in late] == [0, 1, 2]
    made.close()


@operation(OPERATIONS)
def event_loop() -> None:
    async def work(q: Any) -> None:
        await q.aput(np.ones(3), 1)
        assert (await q.aget(1)).sum() == 3
        with contextlib.suppress(queue.Empty):
            await q.aget(0.002)
            raise AssertionError("an item from nowhere")
        lock, event, both = copyless.Lock(), copyless.Event(), copyless.RWLock()
        assert await lock.aacquire(1)
        assert not await copyless.Semaphore(0).aacquire(0.002)
        lock.release()
        assert not await event.await_(0.002)
        async with both.read():
            pass
        async with both.write():
            pass
        made: Any = copyless.RingBuffer(((), "i8"), 4)
        with made.subscribe() as reader:
            await made.aput(3, 1)
            assert (await reader.aget(1)).array == 3
            assert (await made.alatest(1)).array == 3
        async with made.write(1) as draft:
            draft.array[...] = 4
        q.put(1)
        assert await copyless.await_([q, event], 1) == [q]

    loop = kept["loop"] if "loop" in kept else kept.setdefault("loop", asyncio.new_event_loop())
    loop.run_until_complete(work(copyless.Queue()))


@operation(OPERATIONS)
def rest_of_memory() -> None:
    made = copyless.Memory.allocate(64, True)
    assert copyless.Get_address(made) == made.address
    assert copyless.frombuffer(made, "u1").sum() == 0
    made.cast("i", (4, 4))
    assert made.toreadonly().readonly
    assert made.tobytes() == bytes(64)
    assert copyless.buffer.frombuffer(copyless.ones(2)).nbytes == 16
    assert pickle.loads(bytes(ForkingPickler.dumps(made))).nbytes == 64
    made.release()


@operation(OPERATIONS)
def managed() -> None:
    """Calls to a server that has started."""
    if "managed" not in kept:
        kept["managed"] = copyless.get_context("fork").Manager()
    manager = kept["managed"]
    until = time.monotonic() + 5
    while manager._number_of_objects() and time.monotonic() < until:
        time.sleep(0.001)
    assert manager._number_of_objects() == 0, "the server keeps an object without references"
    numbers, words = manager.list([1, 2]), manager.dict(a=1)
    numbers.append(np.ones(3))
    assert numbers[2].sum() == 3
    words["b"] = numbers
    assert len(words) == 2
    value, lock, place = manager.Value("i", 3), manager.Lock(), manager.Namespace()
    with lock:
        value.value += 1
    place.x = 5
    assert value.value + place.x == 9
    q = manager.Queue()
    q.put(3)
    assert q.get(timeout=1) == 3
    event = manager.Event()
    event.set()
    assert event.wait(1)
    assert manager.set([1]) is not None
    assert list(manager.Array("i", [1])) == [1]
    for made in (manager.RLock(), manager.Semaphore(1), manager.BoundedSemaphore(1), manager.Condition()):
        assert made.acquire()
        made.release()
    assert manager.Barrier(1).wait(1) == 0
    jobs = manager.JoinableQueue()
    jobs.put(1)
    jobs.get()
    jobs.task_done()
    jobs.join()


@operation(OPERATIONS)
def managed_memory() -> None:
    if "memory" not in kept:
        kept["memory"] = copyless.SharedMemoryManager(ctx=copyless.get_context("fork"))
        kept["memory"].start()
    manager = kept["memory"]
    for make in (
        lambda: manager.SharedMemory(100),
        lambda: manager.ShareableList([1, 2]),
        lambda: manager.array(10),
        manager.Queue,
        lambda: manager.RingBuffer(((), "i8"), 4),
        manager.Lock,
    ):
        made = make()
        try:
            manager.list_segments()
        finally:
            manager.release(made)
    assert manager.list_segments() == []


@operation(FIRST)
def first_array() -> None:
    assert copyless.ones(5).sum() == 5


@operation(FIRST)
def first_queue() -> None:
    q: Any = copyless.Queue()
    _check(q, 5)


@operation(FIRST)
def first_shared_memory() -> None:
    shared_memory()


@operation(FORKING)
def forked_process() -> None:
    a = copyless.zeros(LARGE)
    q: Any = copyless.Queue()

    def work() -> None:
        a[0] = 5
        q.put(a[:10])

    process = copyless.get_context("fork").Process(target=work)
    process.start()
    process.join(20)
    if process.exitcode == 1:
        raise OSError("the child was told that it is not registered")
    assert process.exitcode == 0
    assert q.get(timeout=5)[0] == 5


@operation(FORKING)
def pool() -> None:
    with copyless.get_context("fork").Pool(1) as made:
        assert made.apply_async(np.sum, (np.ones(LARGE),)).get(30) == LARGE
        made.close()
        made.join()


@operation(FORKING)
def pool_in_chunks() -> None:
    with copyless.get_context("fork").Pool(1) as made:
        results = made.imap(np.ones, [0, 10, LARGE, 3], 2)
        for expected in (0, 10, LARGE, 3):
            assert results.next(30).sum() == expected
        made.close()
        made.join()


@operation(FORKING)
def another_space() -> None:
    """Set before anything is shared; refused afterwards."""
    try:
        copyless.configure(space="t-inject")
    except RuntimeError as error:
        if "once shared memory is in use" not in str(error):
            raise
    assert copyless.ones(10).sum() == 10


@operation(FORKING)
def rest_of_pools() -> None:
    with copyless.get_context("fork").Pool(1) as made:
        assert made.apply(abs, (-3,)) == 3
        assert made.map(abs, [-1, -2]) == made.map_async(abs, [1, 2]).get(30) == [1, 2]
        assert made.starmap(pow, [(2, 3)]) == made.starmap_async(pow, [(2, 3)]).get(30) == [8]
        assert list(made.imap_unordered(abs, [-1])) == [1]
        made.terminate()
        made.join()


@operation(FORKING)
def executor() -> None:
    with copyless.ProcessPoolExecutor(1, copyless.get_context("fork")) as made:
        assert made.submit(np.sum, np.ones(LARGE)).result(30) == LARGE
        assert list(made.map(abs, [-1, -2], timeout=30)) == [1, 2]


@operation(FORKING)
def executor_that_is_ended() -> None:
    for end in ("terminate_workers", "kill_workers", "shutdown"):
        made = copyless.ProcessPoolExecutor(1, copyless.get_context("fork"))
        made.submit(time.sleep, 0)
        getattr(made, end)()


@operation(FORKING)
def manager() -> None:
    with copyless.SyncManager(ctx=copyless.get_context("fork")) as made:
        numbers = made.list([1])
        other = copyless.SyncManager(made.address)
        other.connect()
        assert other.dict(a=1)["a"] == numbers[0] == 1
        with made.Pool(1) as workers:
            assert workers.apply(abs, (-3,)) == 3
    made.join(20)


@operation(FORKING)
def server() -> None:
    copyless.BaseManager(("127.0.0.1", 0)).get_server().listener.close()


@operation(FORKING)
def started_processes() -> None:
    """Objects that start with a program, and how they end."""
    for way, end in (("spawn", "join"), ("fork", "terminate"), ("fork", "kill"), ("fork", "interrupt")):
        process = copyless.get_context(way).Process(target=time.sleep, args=(0.01 if end == "join" else 100,))
        process.start()
        try:
            assert copyless.active_children() == [process]
            getattr(process, end)()
        finally:
            if process.is_alive():
                process.kill()
            process.join(20)
        process.close()
    copyless.reap()


@operation(FORKING)
def ranks() -> None:
    assert comm.spawn(_sum_of_ranks, 2, context=copyless.get_context("fork")) == [3.0, 3.0]


def _sum_of_ranks(world: Any) -> float:
    if world.rank == 0:
        world.send(copyless.ones(LARGE), 1)
    else:
        assert world.recv(source=0).sum() == LARGE
    return float(world.allreduce(np.full(3, world.rank)).sum())
