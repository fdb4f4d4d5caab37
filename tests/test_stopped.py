"""A process is stopped (SIGSTOP, a debugger, a paused container) inside a lock: what the others promise holds meanwhile.

Each test asserts that its call has come back while the holder is still stopped. The holder really is inside: its own lock
word stands in the lock, as if SIGSTOP had met it between two instructions.
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
import threading
import time

import numpy as np
import pytest

import copyless
from copyless._core import _store
from copyless.cli import look
from copyless.storage import directory
from tests.conftest import start_python, until

# Where the lock lies, from the beginning of what it guards (native/layout.h, sync.h, queue_layout.h, ring.h, list.h).
REGISTRY = 4104
PUT, GET = 256, 512
RING, MONITOR, MUTEX = 64, 64, 64
SLOT = 72
WAITING = 84  # of an RWLock: the writer that waits

LATE = 5.0  # seconds: no call of these tests may take so long; those that do wait for ever


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
    assert word.value & 0x7FFFFFFF == ours  # nobody took it from a living process
    word.value = 0
    keep.clear()
    os._exit(0)  # at once: as SIGKILL, but for the word


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
    """(what it returned, or the error that it raised; seconds that it took)."""
    start = time.monotonic()
    try:
        result = call()
    except Exception as error:
        result = error
    return result, time.monotonic() - start


@contextlib.contextmanager
def interrupted(after):
    """In so many seconds Ctrl-C is pressed."""
    timer = threading.Timer(after, lambda: os.kill(os.getpid(), signal.SIGINT))
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()


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
        with pytest.raises(queue.Empty):  # he whom the last call waited for is forgotten
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


# ---- rings


def _ring():
    ring = copyless.RingBuffer(((4,), "f4"), slots=4)
    for i in range(3):
        ring.put(np.full(4, i, "f4"))
    return ring


@pytest.mark.parametrize("timeout", [0, 0.3])
def test_a_ring_waits_for_nobody_who_is_stopped(timeout):
    """Who buries the dead has the ring's lock, and is stopped: all goes on, also for a newcomer."""
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
    """Each has four slots at most, wherever it is, so there is one for us; we see whole frames in order, and so does a newcomer."""
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
    try:
        for _ in range(60 // workers):
            time.sleep(instants.random() * 0.002)
            for process in processes:
                os.kill(process.pid, signal.SIGSTOP)
            for process in processes:
                until(lambda process=process: _state(process.pid) == "T", seconds=60)
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
            assert ring.stats().slots == 24
            assert all(_state(process.pid) == "T" for process in processes)
            for process in processes:
                os.kill(process.pid, signal.SIGCONT)
    finally:
        for process in processes:
            process.kill()
            process.join(60)
    stats = ring.stats()
    assert (stats.on_loan, stats.writing, len(stats.readers)) == (0, 0, 1)


def test_what_is_given_back_meanwhile_comes_back_later():
    """Frames that are forgotten, a frame that is not written to its end, a subscription: none waits for the stopped one."""
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


# ---- what a put has to make and to send


def _large():
    return b"x" * 300_000  # goes in a block of its own


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
    assert ticks > 10  # it blocked the loop for a slice, and then no more
    asyncio.run(q.aput(item, timeout=60))
    assert not q.empty()
    q.get()


def test_a_thousand_arrays_are_freed_in_time():
    """Of those that are freed while the registry's holder is stopped only the first waits, for a slice."""
    arrays = [copyless.ones(1000) for _ in range(1000)]
    total = _store.statistics()["total_bytes"]
    with stopped_in(None) as holder:
        _, took = timed(arrays.clear)
        assert holder.is_stopped()
        assert took < LATE
    again = [copyless.ones(1000) for _ in range(1000)]
    assert _store.statistics()["total_bytes"] == total  # all were taken back
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


# ---- the tools that only look


def _command(*args):
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "copyless", *args], capture_output=True, text=True, timeout=100,
        env={**os.environ, "COLUMNS": "300"},
    )  # fmt: skip
    return done, time.monotonic() - started


IN_TIME = 30.0  # seconds, of which nearly all is the start of an interpreter; what waits for the holder waits for ever


@pytest.mark.parametrize("command", [("ls",), ("doctor",), ("inspect", "t-seen")])
def test_who_looks_waits_for_nobody_and_names_the_holder(command):
    seen = copyless.full((3, 4), 2.5, "f4", name="t-seen")
    before = set(os.listdir(directory.current()))
    with stopped_in(None) as holder:
        done, took = _command(*command, "--json")
        text, _ = _command(*command)
        assert holder.is_stopped()
        assert set(os.listdir(directory.current())) >= before  # and it has not joined: no slot, no file
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
    """`copyless reap` needs the lock: within seconds it says which process has it, and works once that goes on."""
    with stopped_in(None) as holder:
        reaping = subprocess.Popen([sys.executable, "-m", "copyless", "reap"], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
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
    assert "not shown" in report["values"]
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
    """Without mapping the array, which may go meanwhile: only what is shown is read."""
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
    report = look.named("t-values")
    assert report["values"] == expected
    assert report["shape"] == list(shape)
    del a
