"""What is done while a call fails: every public constructor and its first operations.

Each operation makes what it needs, uses it, lets it go, and raises AssertionError where a result is wrong. It can be
done again, whatever became of it the time before.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import pickle
import queue
import select
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np

import copyless
from copyless.cli import look

OPERATIONS: dict[str, Callable[[], Any]] = {}
FIRST: dict[str, Callable[[], Any]] = {}
FORKING: dict[str, Callable[[], Any]] = {}
LARGE = 40_000  # doubles: a segment of its own


def operation(table: dict[str, Callable[[], Any]]) -> Callable[[Callable[[], Any]], Callable[[], Any]]:
    def note(work: Callable[[], Any]) -> Callable[[], Any]:
        table[work.__name__] = work
        return work

    return note


@contextlib.contextmanager
def unlinked(name: str) -> Any:
    """Whatever happens inside, nothing has that name afterwards."""
    try:
        yield
    finally:
        forget(name)


names: list[str] = []


def forget(name: str) -> None:
    """Names are taken away by who looks after the operation, when no call fails any more."""
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
        for _ in range(2):  # the second finds it
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
        item[:] = 0  # it is the consumer's own: the next one gets it as it was put
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
