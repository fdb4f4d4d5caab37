"""A process is stopped (SIGSTOP, a debugger, a paused container) inside a lock: what the others promise holds meanwhile.

Each test asserts that its call has come back while the holder is still stopped. The holder really is inside: its own lock
word stands in the lock, as if SIGSTOP had met it between two instructions.
"""

import contextlib
import ctypes
import glob
import logging
import mmap
import multiprocessing
import os
import queue
import signal
import threading
import time

import pytest

import copyless
from copyless.storage import directory

# Where the lock lies, from the beginning of what it guards (native/layout.h, sync.h, queue_layout.h, ring.h, list.h).
REGISTRY = 4104
PUT, GET = 256, 512
RING, MONITOR, MUTEX = 64, 64, 64
SLOT = 72

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
    from copyless._core import _store

    _store.scan(True)


def _drop():
    from copyless._core import _store

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
