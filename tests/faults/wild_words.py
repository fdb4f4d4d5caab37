"""Wild words: one word of an object's own memory is overwritten. Then the processes that have the object use it as
usual, and so do new ones.

    python wild_words.py KIND

Prints each case on a line of its own before it starts (so that a death by a signal names it), and ends with "done".
Right are a plausible result and the errors that damage may raise. A signal, a hang or another error is wrong.
"""

import ctypes
import pickle
import queue
import random
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import copyless
from copyless import CopylessError

# Errors that damage may raise; the last two if the length of an item was changed. OverflowError, MemoryError,
# IndexError, SystemError and others are not among them.
ALLOWED = (
    CopylessError, ValueError, queue.Empty, queue.Full, threading.BrokenBarrierError, FileNotFoundError,
    pickle.UnpicklingError, EOFError,
)  # fmt: skip
SOON = 0.005  # seconds: the timeout of every call that may wait
GUARD = 5.0
RANDOM = random.Random(13)
Case = tuple[Any, Callable[[Any], Any]]


class Hang(Exception):
    pass


def hang(*_: Any) -> None:
    raise Hang


# ---- how each kind is made, and used


def use_lock(lock: Any) -> None:
    repr(lock)
    if lock.acquire(timeout=SOON):
        lock.release()
    with lock:
        pass


def use_recursive(lock: Any) -> None:
    repr(lock)
    for _ in range(2):
        lock.acquire(timeout=SOON)
    for _ in range(2):
        lock.release()


def use_semaphore(semaphore: Any) -> None:
    repr(semaphore)
    semaphore.get_value()
    for _ in range(3):
        semaphore.acquire(timeout=SOON)
    semaphore.release()


def use_rwlock(lock: Any) -> None:
    repr(lock)
    for how in (lock.read, lock.write, lock.read):
        with how(timeout=SOON):
            pass


def use_event(event: Any) -> None:
    repr(event)
    event.wait(SOON)
    event.set()
    event.clear()


def use_condition(condition: Any) -> None:
    repr(condition)
    if condition._lock is None:  # its flags now say that another object is its lock
        return
    if condition.acquire(timeout=SOON):
        condition.wait(SOON)
        condition.notify_all()
        condition.notify(3)
        condition.release()


def use_barrier(barrier: Any) -> None:
    repr(barrier)
    _ = barrier.n_waiting, barrier.broken
    attempt(lambda: barrier.wait(SOON))
    barrier.reset()


def make_queue(kind: str) -> Any:
    made = {
        "queue": lambda: copyless.Queue(maxsize=100, maxbytes=10_000_000),
        "simple queue": copyless.SimpleQueue,
        "joinable queue": lambda: copyless.JoinableQueue(20),
        "leases": lambda: copyless.JoinableQueue(redeliver=True),
    }[kind]()
    for item in (1, "two", b"3" * 20_000, *[b"4" * 8000] * 10):
        made.put(item)
    if kind in ("leases", "joinable queue"):
        made.get()
    return made


def use_queue(q: Any) -> None:
    repr(q)
    q.qsize()
    for item in ("six", b"7" * 20_000):
        q.put(item, timeout=SOON)
    for _ in range(14):
        item = q.get(timeout=SOON)
        if hasattr(q, "task_done"):
            q.task_done(item) if q.redelivers else q.task_done()
    q.put("last", timeout=SOON)
    q.get_many(5, timeout=SOON)
    q.stats()


def use_simple_queue(q: Any) -> None:
    repr(q)
    copyless.Queue.put(q, "six", timeout=SOON)
    for _ in range(4):
        copyless.Queue.get(q, timeout=SOON)
    q.empty()


def make_ring() -> Any:
    ring = copyless.RingBuffer({"a": ((10,), "u1"), "t": ((), "f8")}, slots=4)
    for i in range(6):
        with ring.write() as f:
            f["a"][:] = i
    ring.reader = ring.subscribe()
    ring.blocks = ring.subscribe(policy="block")
    return ring


def use_ring(ring: Any) -> None:
    repr(ring)
    for reader in (getattr(ring, "reader", None), getattr(ring, "blocks", None)):
        attempt(lambda: ring.write(timeout=SOON).__enter__()["a"].sum())
        if reader is not None:
            attempt(lambda r=reader: r.get(timeout=SOON)["a"].sum())
    for _ in range(20):
        with ring.latest(timeout=SOON) as frame:
            frame["a"].sum()
    for frame in ring.last(4):
        with frame:
            frame["t"].sum()
    with ring.subscribe() as late:
        with ring.write(timeout=SOON) as f:
            f["a"][:] = 9
        late.get(timeout=SOON)


def attempt(call: Callable[[], Any]) -> None:
    try:
        call()
    except ALLOWED:
        pass


def make_list() -> Any:
    return copyless.shared_memory.ShareableList([1, 2.5, "three", b"four", None, True])


def use_list(made: Any) -> None:
    for i in range(min(6, len(made))):
        attempt(lambda at=i: made[at])
        attempt(lambda at=i: made.__setitem__(at, made[at]))
        attempt(lambda: made.format)
    list(made)
    made.index(2.5)


def use_value(value: Any) -> None:
    with value.get_lock():
        value.value += 1
    value.add(2)
    repr(value)


KINDS: dict[str, tuple[Callable[[], Any], Callable[[Any], None]]] = {
    "lock": (copyless.Lock, use_lock),
    "rlock": (copyless.RLock, use_recursive),
    "semaphore": (lambda: copyless.Semaphore(2), use_semaphore),
    "bounded": (lambda: copyless.BoundedSemaphore(2), use_semaphore),
    "robust": (lambda: copyless.Semaphore(2, robust=True), use_semaphore),
    "rwlock": (copyless.RWLock, use_rwlock),
    "event": (copyless.Event, use_event),
    "condition": (copyless.Condition, use_condition),
    "barrier": (lambda: copyless.Barrier(2), use_barrier),
    "queue": (lambda: make_queue("queue"), use_queue),
    "simple queue": (lambda: make_queue("simple queue"), use_simple_queue),
    "joinable queue": (lambda: make_queue("joinable queue"), use_queue),
    "leases": (lambda: make_queue("leases"), use_queue),
    "chunk": (lambda: make_queue("queue"), use_queue),
    "ring": (make_ring, use_ring),
    "list": (make_list, use_list),
    "value": (lambda: copyless.Value("i", 3), use_value),
}


# ---- the position of its words


def mapped(name: str) -> int:
    with open("/proc/self/maps") as maps:
        return next(int(line.partition("-")[0], 16) for line in maps if re.search(rf"/{name}\b", line))


def chunk_of(q: Any) -> int:
    """The address of a queue's first chunk: its segment and block are stored after the head."""
    segment, _, block = np.ctypeslib.as_array((ctypes.c_uint64 * 3).from_address(q._address[0] + 64)).tolist()
    return mapped(rf"seg\.\d+\.{segment:016x}") + 4096 + block % 64 * 65536


def places(kind: str, obj: Any) -> list[tuple[int, int]]:
    """(address, bytes) of the parts of an object whose words are tried one by one."""
    if kind == "chunk":
        return [(chunk_of(obj), 64 + 2 * 24 + 56 + 16)]
    if kind == "list":
        address = np.frombuffer(obj.shm.buf, "u1").ctypes.data
        return [(address, 64 + 6 * 64)]
    if kind == "value":
        return [(obj.get_lock()._address[0], 136)]
    address, nbytes = obj._address
    if kind == "ring":
        readers = address + 128 + 4 * 256
        slots = readers + 32 * 256
        return [(address, 128 + 8), (readers, 64), (slots, 2 * 64), (slots + 4 * 64, 4 * 8 + 8)]
    if "queue" in kind or kind == "leases":
        fixed = 64 + 64 + 64 + 2 * 256
        if kind in ("simple queue", "joinable queue"):  # what differs from the other kinds
            return [(address, 64), (address + 128, 32), (address + fixed, 48)]
        return [(address, fixed), (address + fixed + 24 * 256, 64 if kind == "leases" else 0)]
    return [(address, min(nbytes, 64 + 16 + 16 + 2 * 8))]


VALUES = {4: (0, 1, 1 << 31, (1 << 32) - 1), 8: (1 << 63, (1 << 64) - 1)}


def cases(kind: str, obj: Any) -> Iterator[tuple[int, int, int, int]]:
    """(part, offset in it, bytes, value)."""
    for part, (_, nbytes) in enumerate(places(kind, obj)):
        for size in (4, 8):
            for at in range(0, nbytes - size + 1, size):
                for value in (*VALUES[size], RANDOM.getrandbits(8 * size)):
                    yield part, at, size, value


# ---- a case


def damage(kind: str, words: list[tuple[int, int, int, int]]) -> None:
    make, use = KINDS[kind]
    obj = make()
    address = places(kind, obj)
    handle = None if kind in ("list", "value") else copyless.handle(obj)
    for part, at, size, value in words:
        word = {4: ctypes.c_uint32, 8: ctypes.c_uint64}[size]
        word.from_address(address[part][0] + at).value = value
    signal.setitimer(signal.ITIMER_REAL, GUARD)
    try:
        attempt(lambda: use(obj))
        if handle is not None:
            attempt(lambda: use_if_same(use, copyless.attach(handle), obj))
        elif kind == "list":
            attempt(lambda: use(copyless.shared_memory.ShareableList(name=obj.shm.name)))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def use_if_same(use: Callable[[Any], None], found: Any, obj: Any) -> None:
    """In a process that opens it after the damage: a damaged kind may say that it is a lock of another kind, and then
    it is one.
    """
    if type(found) is type(obj):
        use(found)


def main(kind: str) -> None:
    signal.signal(signal.SIGALRM, hang)
    known = KINDS[kind][0]()
    KINDS[kind][1](known)  # undamaged, it works
    every = list(cases(kind, KINDS[kind][0]()))
    for case in every:
        print(kind, case, flush=True)
        damage(kind, [case])
    parts = places(kind, KINDS[kind][0]())
    for seed in range(30):
        noise = []
        for _ in range(50):
            part = RANDOM.randrange(len(parts))
            at = RANDOM.randrange(max(parts[part][1], 4) // 4) * 4
            noise.append((part, at, 4, RANDOM.getrandbits(32)))
        print(kind, "noise", seed, noise, flush=True)
        damage(kind, noise)
    print("done", len(every), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
