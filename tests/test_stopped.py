"""A process is stopped (SIGSTOP, a debugger, a paused container) inside a lock: what still works in the others.

Each test asserts that its call has returned while the holder is still stopped. The holder really is inside: its own
lock word is in the lock, as if SIGSTOP had arrived between two instructions.
"""

import asyncio
import contextlib
import ctypes
import glob
import json
import logging
import mmap
import multiprocessing
import os
import queue
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
import warnings

import numpy as np
import pytest

import copyless
from copyless._core import _blocks, _store
from copyless._storage import directory
from copyless.cli import inspecting, look
from tests.conftest import interrupted, start_python, until

# Offset of the lock in the object that it guards (native/layout.h, sync.h, queue_layout.h, ring.h, list.h).
REGISTRY = 4104
PUT, GET = 256, 512
RING, MONITOR, MUTEX = 64, 64, 64
SLOT = 72
WAITING = 84  # of an RWLock: the writer that waits

LATE = 5.0  # seconds: no call of these tests may take so long; those that do would wait for ever


def _word(address):
    return ctypes.c_uint32.from_address(address)


def _address_in_registry(keep):
    (path,) = glob.glob(directory.current() + "/registry.[0-9]*")
    with open(path, "r+b") as file:
        keep.append(mmap.mmap(file.fileno(), 8192))
    return ctypes.addressof(ctypes.c_char.from_buffer(keep[0])) + REGISTRY


def _hold(what, offset, pipe):
    keep = []
    lock = copyless.Lock()
    with lock:
        ours = _word(lock._address[0] + MUTEX).value & 0x7FFFFFFF
    if what is None:
        word = _word(_address_in_registry(keep))
    elif isinstance(what, copyless.ShareableList):
        word = _word(ctypes.addressof(ctypes.c_char.from_buffer(what.shm.buf)) + offset)
    else:
        word = _word(what._address[0] + offset)
    assert word.value & 0x7FFFFFFF == 0
    word.value = ours
    pipe.send(ours)
    os.kill(os.getpid(), signal.SIGSTOP)
    assert word.value & 0x7FFFFFFF == ours  # no process took it from a live one
    word.value = 0
    keep.clear()
    os._exit(0)  # at once: like SIGKILL, except for the word


def _state(pid):
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0]


class _Stopped:
    def __init__(self, pid):
        self.pid = pid

    def is_stopped(self):
        return _state(self.pid) == "T"


@contextlib.contextmanager
def stopped_in(what, offset=0):
    """A process is stopped in that lock of that object (None: of the registry)."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_hold, args=(what, offset, there))
    process.start()
    try:
        assert here.poll(60)
        here.recv()
        until = time.monotonic() + 60
        while _state(process.pid) != "T":
            assert time.monotonic() < until
            time.sleep(0.001)
        yield _Stopped(process.pid)
    finally:
        os.kill(process.pid, signal.SIGCONT)
        process.join(60)
    assert process.exitcode == 0


def timed(call):
    """(its result or the error that it raised; seconds that it took)."""
    start = time.monotonic()
    try:
        result = call()
    except Exception as error:
        result = error
    return result, time.monotonic() - start


def _ticks(call):
    """How often another thread ran while a call waited."""
    n, go = 0, True

    def tick():
        nonlocal n
        while go:
            n += 1
            time.sleep(0.005)

    thread = threading.Thread(target=tick)
    thread.start()
    try:
        result = timed(call)
    finally:
        go = False
        thread.join()
    return n, result


def _lines(caplog, pid):
    return [record.getMessage() for record in caplog.records if f"process {pid} " in record.getMessage()]


# ---- the log line, and signals


@pytest.mark.parametrize("what", ["registry", "put", "get"])
def test_after_a_second_one_line_names_who_is_stopped(what, caplog):
    q = copyless.Queue()
    q.put(0)
    calls = {
        "registry": (None, 0, lambda: copyless.zeros(10)),
        "put": (q, PUT, lambda: q.put(1)),
        "get": (q, GET, q.get),
    }
    held, offset, call = calls[what]
    with caplog.at_level(logging.WARNING, "copyless"), stopped_in(held, offset) as holder:
        started = time.monotonic()
        with pytest.raises(KeyboardInterrupt), interrupted(1.6):
            call()
        assert holder.is_stopped()
        assert time.monotonic() - started < 1.6 + LATE
        (line,) = _lines(caplog, holder.pid)
    assert f"process {holder.pid} (" in line
    assert "python" in line
    assert "which is stopped and" in line


def test_a_lock_that_is_busy_is_not_told_and_one_whose_holder_is_stopped_is(caplog):
    lock = copyless.Lock()
    with caplog.at_level(logging.WARNING, "copyless"):
        with lock:
            thread = threading.Thread(target=lambda: lock.acquire(timeout=1.5))
            thread.start()
            thread.join()
        assert not [record for record in caplog.records if record.name == "copyless"]
        with stopped_in(lock, MUTEX) as holder:
            assert not lock.acquire(timeout=1.5)
            assert holder.is_stopped()
            assert len(_lines(caplog, holder.pid)) == 1


def test_who_waits_for_an_item_or_for_room_waits_for_nobody(caplog):
    q = copyless.Queue(maxsize=1)
    with caplog.at_level(logging.WARNING, "copyless"):
        q.put(0)
        with stopped_in(q, GET), pytest.raises(queue.Empty):
            q.get(timeout=0.2)
        assert q.get() == 0
        with pytest.raises(queue.Empty):  # the process that the last call waited for is forgotten
            q.get(timeout=1.5)
        q.put(1)
        with pytest.raises(queue.Full):
            q.put(1, timeout=1.5)
    assert not [record for record in caplog.records if record.name == "copyless"]
    assert q.get() == 1


LOOKS = {
    "zeros": lambda: copyless.zeros(1000),
    "open": lambda: copyless.open("t-no-such-name"),
    "unlink": lambda: copyless.unlink("t-no-such-name"),
    "reap": lambda: copyless.reap(),
    "trim": lambda: copyless.trim(),
    "scan": lambda: _scan(),
    "drop": lambda: _drop(),
}


def _scan():
    _store.scan(True)


def _drop():
    _store.drop_message(0)


@pytest.mark.parametrize("call", LOOKS)
def test_ctrl_c_ends_each_wait_for_the_registry(call):
    copyless.zeros(10)
    with stopped_in(None) as holder:
        start = time.monotonic()
        with pytest.raises(KeyboardInterrupt), interrupted(0.3):
            LOOKS[call]()
        assert holder.is_stopped()
        assert time.monotonic() - start < LATE


def test_ctrl_c_ends_the_wait_for_the_slot_of_a_list():
    shared = copyless.ShareableList([1, 2])
    try:
        with stopped_in(shared, SLOT) as holder:
            assert shared[0] == 1
            with pytest.raises(KeyboardInterrupt), interrupted(0.3):
                shared[0] = 5
            assert holder.is_stopped()
        shared[0] = 6
        assert list(shared) == [6, 2]
    finally:
        shared.shm.close()
        shared.shm.unlink()


# ---- monitors: the robust semaphore, the readers-writer lock, the barrier


def _robust():
    return copyless.Semaphore(2, robust=True)


TRIES = {
    "semaphore": (_robust, lambda s, **how: s.acquire(**how), lambda s: s.release()),
    "reading": (copyless.RWLock, lambda lock, **how: lock.acquire_read(**how), lambda lock: lock.release_read()),
    "writing": (copyless.RWLock, lambda lock, **how: lock.acquire_write(**how), lambda lock: lock.release_write()),
}


@pytest.mark.parametrize("kind", TRIES)
def test_a_try_returns_at_once_and_a_timeout_in_time(kind):
    make, acquire, release = TRIES[kind]
    shared = make()
    with stopped_in(shared, MONITOR) as holder:
        best = min(timed(lambda: acquire(shared, timeout=0))[1] for _ in range(20))
        assert best < 0.02  # a slice is 0.05 s
        got, took = timed(lambda: acquire(shared, timeout=0.3))
        assert got is False
        assert 0.3 <= took < LATE
        ticks, (got, took) = _ticks(lambda: acquire(shared, timeout=0.5))
        assert got is False
        assert ticks > 5
        assert holder.is_stopped()
    assert acquire(shared, timeout=10)
    release(shared)


def test_a_barrier_breaks_in_time():
    barrier = copyless.Barrier(2)
    with stopped_in(barrier, MONITOR) as holder:
        for timeout in (0, 0.3):
            error, took = timed(lambda timeout=timeout: barrier.wait(timeout))
            assert isinstance(error, threading.BrokenBarrierError)
            assert timeout <= took < LATE
        assert holder.is_stopped()


def _wait_for_all(barrier, got, timeout=60):
    got.append(timed(lambda: barrier.wait(timeout)))


def _threads(n, run, *args):
    threads = [threading.Thread(target=run, args=args, daemon=True) for _ in range(n)]
    for thread in threads:
        thread.start()
    return threads


def test_a_party_that_leaves_while_one_is_stopped_in_the_barrier_keeps_no_place_in_it():
    """A waiter without a timeout gets an error when the barrier breaks; after a reset all have room again."""
    barrier, gone, left = copyless.Barrier(3), [], []
    waits = _threads(1, _wait_for_all, barrier, left, 600)
    until(lambda: barrier.n_waiting == 1)
    waits += _threads(1, _wait_for_all, barrier, gone, 1.0)
    until(lambda: barrier.n_waiting == 2)
    with stopped_in(barrier, MONITOR) as holder:
        waits[1].join(60)
        ((error, took),) = gone
        assert isinstance(error, threading.BrokenBarrierError)
        assert took < LATE
        assert holder.is_stopped()
    waits[0].join(60)
    ((error, _),) = left
    assert isinstance(error, threading.BrokenBarrierError)
    for _ in range(2):
        barrier.reset()
        passed = []
        for thread in _threads(3, _wait_for_all, barrier, passed):
            thread.join(60)
        assert sorted(index for index, _ in passed) == [0, 1, 2]


class _StopsIn(contextlib.ExitStack):
    """An action of a barrier: a process is stopped in it, until the block ends. The barrier keeps nothing of it."""

    def __init__(self, barrier, fails=False):
        super().__init__()
        self.barrier, self.fails = barrier, fails
        barrier._action = self

    def __call__(self):
        self.enter_context(stopped_in(self.barrier, MONITOR))
        if self.fails:
            raise ZeroDivisionError

    def __reduce__(self):
        return int, ()

    def __exit__(self, *error):
        super().__exit__(*error)
        self.barrier._action = None
        self.barrier.reset()
        assert self.barrier.wait(60) == 0


def test_the_last_to_arrive_goes_in_time_when_nobody_can_be_let_go():
    barrier = copyless.Barrier(1)
    with _StopsIn(barrier):
        error, _ = timed(lambda: barrier.wait(0.3))
        assert isinstance(error, threading.BrokenBarrierError)


def test_an_action_that_fails_and_ctrl_c_wait_for_nobody_in_a_barrier():
    barrier = copyless.Barrier(1)
    with _StopsIn(barrier, fails=True):
        error, _ = timed(barrier.wait)
        assert isinstance(error, ZeroDivisionError)
    with _StopsIn(barrier), interrupted(3), pytest.raises(KeyboardInterrupt):
        barrier.wait()


# ---- rings


def _ring():
    ring = copyless.RingBuffer(((4,), "f4"), slots=4)
    for i in range(3):
        ring.put(np.full(4, i, "f4"))
    return ring


@pytest.mark.parametrize("timeout", [0, 0.3])
def test_a_ring_waits_for_nobody_who_is_stopped(timeout):
    """A process is stopped while it releases a dead member and holds the ring's lock: others go on, new ones too."""
    ring = copyless.RingBuffer(((4,), "f4"), slots=16, name=f"t-stopped-{os.getpid()}")
    frame = np.zeros(4, "f4")
    for _ in range(12):
        ring.put(frame)
    frames = ring.subscribe(since=0)
    lent, claim = ring.last(3), ring._claim(0)

    def newcomer():
        with copyless.RingBuffer(name=f"t-stopped-{os.getpid()}") as other:
            other.put(frame, timeout=timeout)

    calls = {
        "put": lambda: ring.put(frame, timeout=timeout),
        "latest": lambda: ring.latest(timeout=timeout).release(),
        "get": lambda: frames.get(timeout=timeout).release(),
        "last": lambda: ring.last(2),
        "subscribe": lambda: ring.subscribe("block").close(),
        "stats": ring.stats,
        "a newcomer": newcomer,
    }
    with stopped_in(ring, RING) as holder:
        for call in calls.values():
            result, took = timed(call)
            assert not isinstance(result, Exception)
            assert took < LATE
            assert min(timed(call)[1] for _ in range(3)) < 0.02  # a slice is 0.05 s
        published = claim.publish()[0]
        assert holder.is_stopped()
    assert published == ring.stats().published
    assert len(lent) == 3


def _use_for_ever(ring, pipe):
    ring.put(np.full(4, 1, "f4"))
    kept = ring.subscribe()
    pipe.send(None)
    while True:
        with ring.write() as frame:
            frame[...] = float(np.random.default_rng().integers(1, 1000))
        with ring.latest() as frame, ring.last(2):
            assert len(set(frame.copy())) == 1
        with kept.get():
            pass
        with contextlib.suppress(ZeroDivisionError), ring.write() as frame:
            frame[0] = 1 / 0
        ring.subscribe("block").close()


@pytest.mark.parametrize("workers", [1, 3])
def test_a_ring_waits_for_nobody_wherever_he_was_stopped(workers):
    """Each has four slots at most, wherever it is stopped, so one is left for us. We see whole frames in order, and so
    does a new process.

    If one was stopped between subscribing with "block" and closing that, the others may have filled the ring before
    they were stopped: then a `put` reports at once that the ring is full.
    """
    name = f"t-anywhere-{os.getpid()}-{workers}"
    ring = copyless.RingBuffer(((4,), "f4"), slots=24, name=name)
    here, there = multiprocessing.Pipe()
    spawn = multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=_use_for_ever, args=(ring, there), daemon=True) for _ in range(workers)]
    for process in processes:
        process.start()
    for _ in processes:
        assert here.poll(60)
        here.recv()
    frames = ring.subscribe()
    instants = random.Random(workers)
    looked = 0

    def looks_sound():
        with copyless.RingBuffer(name=name) as newcomer, newcomer.subscribe() as fresh:
            for user, reader in (ring, frames), (newcomer, fresh):
                for k in range(3):
                    seq = user.put(np.full(4, k, "f4"), timeout=0)
                    with user.latest(timeout=0) as frame:
                        assert frame.seq == seq
                        assert frame.copy().tolist() == [k] * 4
                with user.last(3) as last:
                    assert [frame.seq for frame in last] == [seq - 2, seq - 1, seq]
                before = 0
                while before < seq:
                    with reader.get(timeout=0) as frame:
                        assert frame.seq > before
                        assert len(set(frame.copy())) == 1
                        before = frame.seq

    try:
        for _ in range(60 // workers):
            time.sleep(instants.random() * 0.002)
            for process in processes:
                os.kill(process.pid, signal.SIGSTOP)
            for process in processes:
                until(lambda process=process: _state(process.pid) == "T", seconds=60)
            try:
                looks_sound()
                looked += 1
            except queue.Full:
                assert any(reader.blocks for reader in ring.stats().readers)
            assert ring.stats().slots == 24
            assert all(_state(process.pid) == "T" for process in processes)
            for process in processes:
                os.kill(process.pid, signal.SIGCONT)
    finally:
        for process in processes:
            process.kill()
            process.join(60)
    assert looked > 0
    stats = ring.stats()
    assert (stats.on_loan, stats.writing, len(stats.readers)) == (0, 0, 1)


def test_what_is_given_back_meanwhile_comes_back_later():
    """Frames that are dropped, a frame that is not written to its end, a subscription: none waits for the stopped
    process.
    """
    ring = _ring()
    lent = ring.last(3)
    frames = ring.subscribe("block")
    claim = ring._claim(0)
    with stopped_in(ring, RING) as holder:
        start = time.monotonic()
        lent = None
        claim.discard()
        frames.close()
        assert time.monotonic() - start < LATE
        assert holder.is_stopped()
    for i in range(20):
        ring.put(np.full(4, i, "f4"), timeout=0)  # all slots are there, and no reader blocks
    stats = ring.stats()
    assert stats.on_loan == 0
    assert stats.writing == 0
    assert stats.readers == []
    assert lent is None


# ---- what a put has to allocate and to send


def _large():
    return b"x" * 300_000  # gets a block of its own


PUTS = {
    "a large object": lambda q, shared, **how: q.put(_large(), **how),
    "a shared array": lambda q, shared, **how: q.put(shared, **how),
    "a shared array in a list": lambda q, shared, **how: q.put([shared] * 3, **how),
    "many": lambda q, shared, **how: q.put_many([_large(), shared], **how),
}


@pytest.mark.parametrize("what", PUTS)
def test_put_is_full_in_time_while_the_registry_is_held(what):
    q, shared = copyless.Queue(), copyless.ones(1000)
    put = PUTS[what]
    with stopped_in(None) as holder:
        for how, least in ({"block": False}, 0), ({"timeout": 0.3}, 0.3):
            error, took = timed(lambda how=how: put(q, shared, **how))
            assert type(error) is queue.Full
            assert least <= took < LATE
        assert holder.is_stopped()
        error = None
    assert q.empty()
    put(q, shared, timeout=60)
    assert not q.empty()
    while not q.empty():
        q.get()


@pytest.mark.parametrize("what", [_large, lambda: copyless.ones(1000)])
def test_an_event_loop_goes_on_while_aput_waits_for_the_registry(what):
    q, item = copyless.Queue(), what()

    async def beside():
        ticks = 0
        putting = asyncio.ensure_future(q.aput(item, timeout=0.6))
        while not putting.done():
            await asyncio.sleep(0.001)
            ticks += 1
        return ticks, putting.exception()

    with stopped_in(None) as holder:
        started = time.monotonic()
        ticks, error = asyncio.run(beside())
        took = time.monotonic() - started
        assert holder.is_stopped()
    assert type(error) is queue.Full
    assert 0.6 <= took < LATE
    assert ticks > 10
    asyncio.run(q.aput(item, timeout=60))
    assert not q.empty()
    q.get()


ON_A_LOOP = {
    "what is packed": (None, 0, _large),
    "an array that is packed": (None, 0, lambda: copyless.ones(1000)),
    "a put": (True, PUT, None),
    "a get": (True, GET, None),
    "a get of an array": (None, 0, None),
}


@pytest.mark.parametrize("what", ON_A_LOOP)
def test_what_an_event_loop_tries_never_sleeps(what):
    """Not even for a slice: it tries, and reports at once that a process is inside."""
    q = copyless.Queue()
    of_queue, offset, make = ON_A_LOOP[what]
    item = make() if make else None
    q.put(copyless.ones(10) if of_queue is None else 1)
    packed = q._pack(2)
    attempt = q._try_get if "get" in what else (lambda: q._try_put(packed)) if of_queue else (lambda: q._try_pack(item))

    def late():
        with pytest.raises(_blocks.Late):
            attempt()

    with stopped_in(q if of_queue else None, offset) as holder:
        for _ in range(20):
            late()
        assert min(timed(late)[1] for _ in range(20)) < 0.02  # a slice is 0.05 s
        assert holder.is_stopped()
    assert q.qsize() == 1
    q.get(timeout=60)
    packed = None


def test_an_event_loop_goes_on_while_aget_waits_for_the_registry():
    q = copyless.Queue()
    q.put(copyless.full(10, 3.0))

    async def beside():
        ticks = 0
        getting = asyncio.ensure_future(q.aget())
        others = [asyncio.ensure_future(q.aget(timeout=0.3)) for _ in range(2)]
        while not all(other.done() for other in others):
            await asyncio.sleep(0.001)
            ticks += 1
        assert [type(other.exception()) for other in others] == [queue.Empty] * 2
        assert not getting.done()
        assert ticks > 10
        getting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await getting

    with stopped_in(None) as holder:
        _, took = timed(lambda: asyncio.run(beside()))
        assert holder.is_stopped()
    assert 0.3 <= took < LATE
    assert asyncio.run(q.aget(timeout=60)).sum() == 30


def test_other_threads_go_on_while_a_fork_waits_for_the_registry():
    """A fork waits for 2 s. Its child, which then cannot be registered, gets the name of the process in the way."""
    copyless.zeros(10)
    told, child_tells = os.pipe()
    steps, forked = [0], threading.Event()

    def count():
        while not forked.is_set():
            steps[0] += 1
            time.sleep(0.001)

    thread = threading.Thread(target=count)
    with stopped_in(None) as holder:
        thread.start()
        until(lambda: steps[0])
        before = steps[0]
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            start = time.monotonic()
            pid = os.fork()
            if pid == 0:
                os.write(child_tells, str([str(warning.message) for warning in caught]).encode())
                os._exit(0)
        seconds = time.monotonic() - start
        during = steps[0] - before
        text = os.read(told, 4096).decode()
        assert holder.is_stopped()
        forked.set()
        thread.join()
    os.waitpid(pid, 0)
    os.close(told)
    os.close(child_tells)
    assert f"could not be registered (process {holder.pid} (" in text
    assert "which is stopped, has held a lock" in text
    assert 1.9 < seconds < LATE
    assert during > 20  # 2,000 on an idle machine; none while the GIL is held


def test_a_thousand_arrays_are_freed_in_time():
    """Of the arrays that are freed while the registry's holder is stopped, only the first waits, for a slice."""
    arrays = [copyless.ones(1000) for _ in range(1000)]
    total = _store.statistics()["total_bytes"]
    with stopped_in(None) as holder:
        _, took = timed(arrays.clear)
        assert holder.is_stopped()
        assert took < LATE
    again = [copyless.ones(1000) for _ in range(1000)]
    assert _store.statistics()["total_bytes"] <= total  # all were released: no more memory is needed than before
    assert sum(a.sum() for a in again) == 1e6


def test_a_writer_that_gives_up_lets_readers_in():
    lock = copyless.RWLock()
    waiting, done = threading.Event(), []

    def write():
        waiting.set()
        done.append(lock.acquire_write(timeout=2))

    assert lock.acquire_read()
    thread = threading.Thread(target=write)
    thread.start()
    waiting.wait(60)
    until = time.monotonic() + 60
    while _word(lock._address[0] + WAITING).value == 0 and not done:
        assert time.monotonic() < until
        time.sleep(0.001)
    with stopped_in(lock, MONITOR) as holder:
        thread.join(60)
        assert holder.is_stopped()
        assert done == [False]
        assert _word(lock._address[0] + WAITING).value == 0
    assert lock.acquire_read(timeout=10)
    lock.release_read()
    lock.release_read()


def test_put_many_looks_at_its_deadline_between_two_objects():
    q = copyless.Queue()

    def slowly():
        for i in range(100):
            time.sleep(0.05)
            yield i

    put = q.put_many(slowly(), timeout=0.3)
    assert 1 <= put < 100
    assert q.get_many(100) == list(range(put))


# ---- the tools that only read


def _command(*args):
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "copyless", *args], capture_output=True, text=True, timeout=100,
        env={**os.environ, "COLUMNS": "300"},
    )  # fmt: skip
    return done, time.monotonic() - started


IN_TIME = 30.0  # seconds, mostly the start of an interpreter; a call that waits for the holder never ends


@pytest.mark.parametrize("command", [("ls",), ("doctor",), ("inspect", "t-seen")])
def test_who_looks_waits_for_nobody_and_names_the_holder(command):
    seen = copyless.full((3, 4), 2.5, "f4", name="t-seen")
    with stopped_in(None) as holder:
        before = set(os.listdir(directory.current()))  # the holder, as it joined, may have removed what is long unused
        done, took = _command(*command, "--json")
        text, _ = _command(*command)
        assert holder.is_stopped()
        assert set(os.listdir(directory.current())) == before  # and it has not joined: no slot, no file
    assert took < IN_TIME
    report = json.loads(done.stdout)
    if command[0] == "doctor":
        assert done.returncode == 1
        told = report["facts"]["holder of the registry's lock"]
        assert report["facts"]["registry"].startswith("not checked")
    else:
        assert done.returncode == 0, done.stderr
        assert report["state"] == "held"
        told = report["holder"]
    assert told["pid"] == holder.pid
    assert told["state"] == "stopped"
    assert told["lives"] is True
    assert told["seconds"] >= 0
    assert "python" in told["program"]
    assert f"process {holder.pid} (" in text.stdout
    assert "may be half changed" in text.stdout.replace("\n", " ")
    if command[0] == "ls":
        (block,) = [block for block in report["blocks"] if block["name"] == "t-seen"]
        assert block["pids"] == [os.getpid()]
        assert {os.getpid(), holder.pid} <= {owner["pid"] for owner in report["owners"]}
    if command[0] == "inspect":
        assert (report["shape"], report["dtype"], report["held_by"]) == ([3, 4], "float32", [os.getpid()])
        assert report["values"].count("2.5") == 12
    assert seen.sum() == 30


def test_who_has_to_wait_to_join_says_for_whom():
    """`copyless reap` needs the lock: within seconds it says which process has it, and works once that continues."""
    with stopped_in(None) as holder:
        reaping = subprocess.Popen(
            [sys.executable, "-m", "copyless", "reap"], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
        )
        said = reaping.stderr.readline()
        assert f"waiting for process {holder.pid} (" in said
        assert "which is stopped" in said
        assert holder.is_stopped()
        reaping.kill()
        reaping.communicate()


def test_a_member_looks_without_the_lock_too():
    """`doctor` in a program, a snapshot, the totals: none waits, also in a process that has joined."""
    kept = copyless.ones(1000)
    with stopped_in(None) as holder:
        for call in (_store.snapshot, _store.statistics, _store.look, look.listing):
            result, took = timed(call)
            assert not isinstance(result, Exception), result
            assert took < LATE
        assert look.listing()["holder"]["pid"] == holder.pid
        assert holder.is_stopped()
    assert look.listing()["holder"] is None
    assert look.listing()["state"] == "whole"
    assert kept.sum() == 1000


def test_the_state_of_an_object_is_not_waited_for():
    q = copyless.Queue(name="t-seen-queue")
    with stopped_in(None) as holder:
        done, took = _command("inspect", "t-seen-queue", "--json")
        assert holder.is_stopped()
    report = json.loads(done.stdout)
    assert took < IN_TIME
    assert report["put"] == 0
    assert report["holder"]["pid"] == holder.pid
    assert json.loads(_command("inspect", "t-seen-queue", "--json")[0].stdout)["put"] == 0
    del q


def test_what_a_dead_process_held_is_listed_as_that_until_it_is_taken_back():
    child = start_python("import copyless; a = copyless.zeros(54321, 'u1'); print('up'); input()")
    child.stdout.readline()
    child.kill()
    child.communicate()
    (block,) = [block for block in look.listing()["blocks"] if block["bytes"] == 54321]
    assert block["state"] == "left by the dead"
    copyless.reap()
    assert not [block for block in look.listing()["blocks"] if block["bytes"] == 54321]


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((), "f8"), ((0, 3), "i4"), ((20,), "i8"), ((21,), "i8"), ((2, 2, 5), "i2"), ((5, 4), "i4"), ((4, 6), "i4"),
     ((5, 5, 5), "u1"), ((1000, 3), "f4"), ((1, 1, 40), "i4"), ((7, 2, 7), [("a", "i4"), ("b", "f8")])],
)  # fmt: skip
def test_inspect_shows_the_values_that_numpy_shows(shape, dtype):
    """Without mapping the array, which may be freed meanwhile: only what is shown is read."""
    a = copyless.empty(shape, dtype, name="t-values")
    plain = np.zeros(shape, dtype)
    if plain.dtype.names:
        plain["a"] = np.arange(plain.size).reshape(shape)
        plain["b"] = plain["a"] / 2
    elif plain.dtype.itemsize:
        plain[...] = np.arange(plain.size).reshape(shape) % 100
    a[...] = plain
    with np.printoptions(threshold=20, edgeitems=2):
        expected = str(plain)
    report = inspecting.inspect("t-values")
    assert report["values"] == expected
    assert report["shape"] == list(shape)
    del a


# ---- the end of a program


def test_a_program_says_which_stopped_worker_holds_up_its_end():
    program = start_python("""if 1:
        import os, signal
        from copyless.futures import ProcessPoolExecutor
        if __name__ == "__main__":
            executor = ProcessPoolExecutor(1)
            worker = executor.submit(os.getpid).result()
            os.kill(worker, signal.SIGSTOP)
            print(worker)
    """)
    worker = int(program.stdout.readline())
    try:
        said = program.stderr.readline()
        assert f"waiting for process {worker} (" in said
        assert "which is stopped and has held up the end of its pool" in said
        assert _state(worker) == "T"
        assert program.poll() is None
    finally:
        os.kill(worker, signal.SIGCONT)
        program.communicate(timeout=60)
    assert program.returncode == 0


# ---- when the kernel cannot wait for several words


def test_event_loops_work_where_futex_waitv_is_filtered_and_sleep_when_idle():
    program = start_python("""if 1:
        import asyncio, ctypes, resource, struct, time
        import copyless
        code = [(0x20, 0, 0, 0), (0x15, 0, 1, 449), (0x06, 0, 0, 0x00050001), (0x06, 0, 0, 0x7FFF0000)]  # EPERM
        filter = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in code))
        program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(code), ctypes.addressof(filter)))
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.prctl(38, 1, 0, 0, 0) == 0
        assert libc.prctl(22, 2, program, 0, 0) == 0, ctypes.get_errno()
        assert libc.syscall(449, 0, 0, 0, 0, 0) == -1 and ctypes.get_errno() == 1

        async def main(q):
            getting = asyncio.ensure_future(q.aget())
            await asyncio.sleep(0.05)
            q.put(1)
            return await getting

        print(asyncio.run(main(copyless.Queue())))
        time.sleep(0.3)  # the last look of who watched
        before = resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw
        time.sleep(1)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw - before)
    """)
    out, err = program.communicate(timeout=60)
    assert program.returncode == 0, err
    got, naps = map(int, out.split())
    assert got == 1
    assert naps < 100  # naps of 2 ms made it 500


# ---- what a get has to load


class _Stops:
    """Its load first stops a process in the registry's lock: between the take of an item and its load."""

    with_holder = None

    def __reduce__(self):
        return _stop_now, ()


def _stop_now():
    enter = _Stops.with_holder
    if enter is not None:
        _Stops.with_holder = None
        enter()


def _be_stopped(pipe):
    lock = copyless.Lock()
    with lock:
        pipe.send(_word(lock._address[0] + MUTEX).value & 0x7FFFFFFF)
    os.kill(os.getpid(), signal.SIGSTOP)
    os._exit(0)


@contextlib.contextmanager
def stopping_while_loading():
    """The first `_Stops` that is loaded here stops a process in the registry's lock: it is stopped before, and gets the
    lock then.
    """
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_be_stopped, args=(there,))
    process.start()
    keep = []
    word = _word(_address_in_registry(keep))
    try:
        assert here.poll(60)
        theirs = here.recv()
        until(lambda: _state(process.pid) == "T", seconds=60)

        def enter():
            until(lambda: word.value == 0, seconds=60)
            word.value = theirs

        _Stops.with_holder = enter
        yield _Stopped(process.pid)
        assert word.value & 0x7FFFFFFF == theirs  # no process took it from a live one
    finally:
        _Stops.with_holder = None
        word.value = 0
        keep.clear()
        os.kill(process.pid, signal.SIGCONT)
        process.join(60)


def _plain():
    return copyless.Queue()


def _redelivers():
    return copyless.JoinableQueue(redeliver=True, max_deliveries=1)


GETS = {
    "get": lambda q, timeout: q.get(timeout=timeout),
    "get_nowait": lambda q, timeout: q.get_nowait(),
    "get_many": lambda q, timeout: q.get_many(timeout=timeout)[0],
    "aget": lambda q, timeout: asyncio.run(q.aget(timeout=timeout)),
}


@pytest.mark.parametrize("how", GETS)
@pytest.mark.parametrize("make", [_plain, _redelivers])
def test_get_is_empty_in_time_and_the_item_comes_with_the_next(how, make):
    q, before, shared = make(), copyless.ones(10), copyless.full(1000, 7.0)
    q.put(
        [before, _Stops(), shared, copyless.Lock()]
    )  # the first one is loaded when the registry is no longer available
    q.put("next")
    q.empty()
    descriptor = q.fileno()
    with stopping_while_loading() as holder:
        for _ in range(3):  # and again, without a loss
            error, took = timed(lambda: GETS[how](q, 0.2))
            assert type(error) is queue.Empty, error
            assert (0 if how == "get_nowait" else 0.2) <= took < LATE
        assert not q.empty()
        assert q.qsize() == 2
        assert copyless.wait([q], 0) == [q]
        assert copyless.connection.wait([descriptor], 10) == [descriptor]
        assert holder.is_stopped()
        error = None
    first, _, other, lock = q.get(timeout=60)
    assert first.sum() == 10
    shared[0] = 5
    assert other[0] == 5
    with lock:
        pass
    assert q.get(timeout=60) == "next"
    assert q.empty()


def _get_first(q, how, pipe):
    """A process that has the queue, and has mapped none of its items."""
    pipe.send(q.qsize())
    pipe.recv()
    error, took = timed(lambda: GETS[how](q, 0.2))
    pipe.send((type(error), took))
    pipe.recv()
    pipe.send(GETS[how](q, 60))


@pytest.mark.parametrize("how", GETS)
@pytest.mark.parametrize("make", [_plain, _redelivers])
def test_the_first_get_of_a_process_is_empty_in_time(how, make):
    """It must map the memory of the items, for which it needs the registry."""
    q = make()
    q.put("item")
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_get_first, args=(q, how, there), daemon=True)
    process.start()
    assert here.poll(60)
    assert here.recv() == 1
    with stopped_in(None) as holder:
        here.send(None)
        assert here.poll(LATE)
        error, took = here.recv()
        assert error is queue.Empty
        assert (0 if how == "get_nowait" else 0.2) <= took < LATE
        assert holder.is_stopped()
    here.send(None)
    assert here.poll(60)
    assert here.recv() == "item"
    process.join(60)


def _die_in(what, offset):
    lock = copyless.Lock()
    with lock:
        _word(what._address[0] + offset).value = _word(lock._address[0] + MUTEX).value & 0x7FFFFFFF
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("end", ["put", "get"])
def test_a_queue_is_late_for_nobody_while_what_a_dead_process_left_cannot_be_repaired(end):
    q = copyless.Queue()
    q.put(1)
    process = multiprocessing.get_context("spawn").Process(target=_die_in, args=(q, PUT if end == "put" else GET))
    process.start()
    process.join(60)
    with stopped_in(None) as holder:
        for call in (lambda **how: q.put(2, **how), lambda **how: q.put_many([2], **how)) if end == "put" else (q.get,):
            error, took = timed(lambda call=call: call(timeout=0.2))
            assert type(error) is (queue.Full if end == "put" else queue.Empty)
            assert 0.2 <= took < LATE
            error, took = timed(lambda call=call: call(block=False))
            assert type(error) is (queue.Full if end == "put" else queue.Empty)
            assert took < LATE
        assert holder.is_stopped()
    q.put(3)
    assert [q.get(timeout=60), q.get(timeout=60)] == [1, 3]


def _one(x):
    return x


@pytest.mark.parametrize("kind", ["apply_async", "map_async", "chunks", "submit", "map"])
def test_ctrl_c_while_a_task_is_given_to_a_pool_leaves_the_pool_whole(kind):
    futures = kind in ("submit", "map")
    pool = copyless.ProcessPoolExecutor(1) if futures else copyless.Pool(1)
    try:
        assert list(pool.map(_one, range(3))) == [0, 1, 2]
        give = {
            "apply_async": lambda: pool.apply_async(_one, (copyless.ones(3),)),
            "map_async": lambda: pool.map_async(_one, range(100)),
            "chunks": lambda: pool.map_async(_one, range(100), 1),
            "submit": lambda: pool.submit(_one, 3),
            "map": lambda: pool.map(_one, range(100)),
        }[kind]
        with stopped_in(None) as holder:
            for _ in range(3):  # more than a worker's share of tasks
                with interrupted(0.3), pytest.raises(KeyboardInterrupt):
                    give()
            assert holder.is_stopped()
        if futures:
            assert pool.submit(_one, 4).result(60) == 4
        else:
            assert pool.apply_async(_one, (4,)).get(60) == 4
    finally:
        ended = threading.Thread(target=pool.shutdown if futures else lambda: (pool.close(), pool.join()), daemon=True)
        ended.start()
        ended.join(60)
        assert not ended.is_alive()


@pytest.mark.parametrize("timeout", [0, 0.2])
def test_open_comes_back_in_time_and_names_no_missing_file(timeout):
    there = copyless.full(3, 2.0, name="open-in-time")
    with stopped_in(None) as holder:
        for name in ("open-in-time", "nothing-has-it"):
            error, took = timed(lambda name=name: copyless.open(name, timeout=timeout))
            assert type(error) is copyless.errors.RegistryBusyError, error
            assert isinstance(error, TimeoutError)
            assert "copyless doctor" in str(error)
            assert timeout <= took < LATE
        assert holder.is_stopped()
    assert copyless.open("open-in-time").sum() == 6
    with pytest.raises(FileNotFoundError):
        copyless.open("nothing-has-it", timeout=timeout)
    del there


def test_a_forked_child_is_told_that_the_registry_was_held():
    out, err = start_python("""
        import os, sys
        sys.path.insert(0, ".")
        import copyless
        from tests.test_stopped import stopped_in
        if __name__ == "__main__":
            a = copyless.ones(3)
            with stopped_in(None):
                child = os.fork()
                if child == 0:
                    os._exit(int(a.sum()))
                print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """).communicate(timeout=120)
    assert out == "3\n", err
    assert "could not be registered (process " in err


@pytest.mark.parametrize("make", [_plain, _redelivers])
@pytest.mark.parametrize("taken", [0, 1])
def test_a_get_that_comes_to_a_new_chunk_is_empty_in_time(make, taken):
    q, other = make(), make()
    for i in range(600):  # more than a chunk of them
        q.put(bytes(400) + bytes([i % 256]))
    other.put(copyless.full(10, 3.0))
    got = [q.get(timeout=60) for _ in range(taken)]  # the object is at its first chunk, or at none yet
    with stopped_in(None) as holder:
        for how in GETS:
            result, took = timed(lambda how=how: GETS[how](other, 0.2))
            assert type(result) is queue.Empty, result
            assert took < LATE
        result = None
        while type(result) is not queue.Empty:
            result, took = timed(lambda: q.get(timeout=0.2))
            assert took < LATE
            if type(result) is not queue.Empty:
                got.append(result)
        assert holder.is_stopped()
    while len(got) < 600:
        got.append(q.get(timeout=60))
    assert [item[400] for item in got] == [i % 256 for i in range(600)]
    assert other.get(timeout=60).sum() == 30


def test_ctrl_c_while_an_item_is_loaded_loses_nothing():
    q, shared = copyless.Queue(), copyless.ones(1000)
    q.put([copyless.ones(10), _Stops(), shared])
    with stopping_while_loading() as holder:
        with interrupted(0.3), pytest.raises(KeyboardInterrupt):
            q.get()
        assert holder.is_stopped()
    again = q.get(timeout=60)
    assert again[2].sum() == 1000


def test_another_thread_gets_what_was_not_loaded_in_time():
    """It sleeps until something is put, and nothing is put: the item that the first could not load is there for it."""
    q, got = copyless.Queue(), []
    thread = threading.Thread(target=lambda: got.append(q.get()), daemon=True)
    with stopping_while_loading() as holder:
        q.put([copyless.ones(10), _Stops(), copyless.ones(20)])
        with pytest.raises(queue.Empty):
            q.get(timeout=0.2)
        thread.start()
        assert holder.is_stopped()
    thread.join(60)
    assert len(got[0]) == 3


def test_what_was_not_loaded_goes_with_its_process():
    """Its holds belong to that process, like those of what it had loaded."""
    code = """if 1:
        import copyless, os, sys, queue
        q = copyless.Queue(name="t-not-loaded")
        print("up", flush=True)
        import tests.test_stopped as t
        sys.stdin.readline()
        with t.stopping_while_loading():
            try:
                q.get(timeout=0.2)
            except queue.Empty:
                print("empty", flush=True)
        sys.stdin.readline()
    """
    q = copyless.Queue(name="t-not-loaded")
    child = start_python(code)
    assert child.stdout.readline() == "up\n"
    shared = copyless.full(54321, 1, "u1")
    q.put([copyless.ones(10), _Stops(), shared])
    child.stdin.write("go\n")
    child.stdin.flush()
    assert child.stdout.readline() == "empty\n"
    del shared
    assert [block for block in look.listing()["blocks"] if block["bytes"] == 54321]
    child.kill()
    child.communicate()
    copyless.reap()
    assert not [block for block in look.listing()["blocks"] if block["bytes"] == 54321]


def test_ctrl_c_while_a_message_of_a_rank_is_opened_leaves_no_hold():
    done = subprocess.run(
        [sys.executable, "-m", "copyless", "run", "-n", "1", sys.executable, "-c", textwrap.dedent("""
            import signal, threading, os
            import copyless, tests.test_stopped as t
            from copyless import comm
            from copyless.cli import inspecting, look
            world = comm.world()
            blocks = lambda: sorted(b["bytes"] for b in look.listing()["blocks"] if b["bytes"] in (54321, 65432))
            world.send([copyless.ones(54321, "u1"), t._Stops(), copyless.ones(65432, "u1")], 0)
            assert blocks() == [54321, 65432], blocks()
            with t.stopping_while_loading() as holder, t.interrupted(0.3):
                try:
                    world.recv(source=0)
                    print("received")
                except KeyboardInterrupt:
                    print("interrupted", holder.is_stopped())
            copyless.zeros(10)
            print(blocks())
        """)], capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.stdout.split("\n")[:2] == ["[0] interrupted True", "[0] []"], done.stdout + done.stderr
