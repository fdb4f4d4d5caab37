"""Producers, consumers, writers, readers and lock holders are killed at random moments, thousands of times.

A file outside the library records what was put and what was taken: a line for each item after `put` returned, and one
after `get` did. Survivors must never hang. An item is not lost after `put` has returned, unless a killed consumer had
taken it. No item comes twice, no frame is torn, and no slot, loan or byte is left.
"""

import collections
import os
import queue
import random
import signal
import time
import zlib

import numpy as np
import pytest

import copyless
from copyless._core import _store
from copyless.cli.look import listing
from tests.conftest import until

QUEUE_KILLS, REDELIVER_KILLS, RING_KILLS, LOCK_KILLS = 1300, 700, 400, 300


class Log:
    """Lines that are whole or absent, whichever process is killed: one write each, to a file opened for appending."""

    def __init__(self, path):
        self.path = str(path)
        self.fd = os.open(self.path, os.O_CREAT | os.O_APPEND | os.O_RDWR, 0o600)

    def write(self, *fields):
        os.write(self.fd, " ".join(map(str, fields)).encode() + b"\n")

    def read(self):
        with open(self.path) as f:
            return [tuple(line.split()) for line in f]


def start(work, *args):
    pid = os.fork()
    if pid == 0:
        try:
            work(*args)
        except copyless.ClosedError:
            os._exit(0)
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return pid


def kill(pid):
    os.kill(pid, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code == -9, code


def storm(kills, jobs, rng, pause=0.012):
    """Keep each of the jobs running, and kill one at random, again and again. Return the kills of each kind."""
    running = [(kind, start(*work)) for kind, work in jobs]
    killed: collections.Counter = collections.Counter()
    try:
        for _ in range(kills):
            time.sleep(rng.random() * pause)
            at = rng.randrange(len(running))
            kind, pid = running.pop(at)
            kill(pid)
            killed[kind] += 1
            running.append((kind, start(*dict_of(jobs, kind))))
    finally:
        for _, pid in running:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    return killed, collections.Counter(kind for kind, _ in running)


def dict_of(jobs, kind):
    return next(work for name, work in jobs if name == kind)


def check_nothing_left():
    copyless.reap()
    _store.audit()


# ---- queues


def produce(q, log, seed):
    rng = random.Random((seed, os.getpid(), time.monotonic_ns()).__hash__())
    me = f"{os.getpid()}.{time.monotonic_ns()}"
    for n in range(1_000_000):
        size = rng.choice([0, 0, 0, 500, 6000, 70_000])
        data = np.frombuffer(rng.randbytes(size), "u1")
        extra = copyless.full(50, n % 100, "u1") if n % 5 == 0 else None
        q.put((me, n, data, zlib.crc32(data), extra))
        log.write("put", me, n)


def consume(q, log, acknowledge):
    while True:
        item = q.get()
        me, n, data, crc, extra = item
        assert zlib.crc32(data) == crc
        assert extra is None or (extra == n % 100).all()
        log.write("got", me, n)
        if acknowledge:
            q.task_done(item)
            log.write("done", me, n)


def drain(q, acknowledge):
    left = []
    try:
        while True:
            item = q.get(timeout=1.0)
            assert zlib.crc32(item[2]) == item[3]
            left.append((item[0], str(item[1])))
            if acknowledge:
                q.task_done(item)
    except queue.Empty:
        return left


@pytest.mark.parametrize("redeliver", [False, True])
def test_queue(tmp_path, redeliver):
    kills = REDELIVER_KILLS if redeliver else QUEUE_KILLS
    q = copyless.JoinableQueue(maxsize=30, redeliver=True) if redeliver else copyless.Queue(maxsize=30)
    log = Log(tmp_path / "log")
    jobs = [("producer", (produce, q, log, i)) for i in range(2)] + [("consumer", (consume, q, log, redeliver))] * 2
    killed, last = storm(kills, jobs, random.Random(3))
    consumers_killed = killed["consumer"] + last["consumer"]
    producers_killed = killed["producer"] + last["producer"]
    rest = drain(q, redeliver)
    lines = log.read()
    put = {fields[1:] for fields in lines if fields[0] == "put"}
    got = [fields[1:] for fields in lines if fields[0] == "got"]
    done = {fields[1:] for fields in lines if fields[0] == "done"}
    times = collections.Counter(got + rest)
    assert len(put) > kills
    if redeliver:
        assert put <= set(times)  # nothing is lost
        again = sum(n - 1 for n in times.values())
        assert again <= consumers_killed
        at = {fields: number for number, fields in enumerate(lines)}
        assert all(at[("done", *item)] > at[("got", *item)] for item in done)  # an acknowledged item never comes again
        assert not done & set(rest)
        q.join(timeout=10)
        assert q.stats().leased == 0
    else:
        assert max(times.values()) == 1  # nothing comes twice
        assert len(put - set(times)) <= consumers_killed  # each had taken one at most
    assert len(set(times) - put) <= producers_killed  # put, but killed before it could write the line
    fifo: dict = {}
    if not redeliver:
        for me, n in rest:
            assert fifo.get(me, -1) < int(n)
            fifo[me] = int(n)
    assert q.qsize() == 0
    copyless.reap()
    channel = [hold for hold in _store.snapshot()["holds"] if hold["kind"] == "channel"]
    assert len(channel) == 1  # the chunk that the queue is at
    print(f"{len(put)} put, {len(got)} taken, {len(rest)} left, {killed}")
    del q
    check_nothing_left()


# ---- rings


def write(ring):
    rng = np.random.default_rng(os.getpid())
    n = 0
    while True:
        n += 1
        pixels = rng.integers(0, 255, 20_000, "u1")
        if n % 3:
            with ring.write() as frame:
                frame["pixels"][...] = pixels
                frame["crc"] = zlib.crc32(pixels)
        else:
            ring.put({"pixels": pixels, "crc": zlib.crc32(pixels)})


def read(ring, policy):
    last = 0
    with ring.subscribe(policy) as frames:
        for i, frame in enumerate(frames):
            with frame:
                crc = zlib.crc32(frame["pixels"])
                assert crc == int(frame["crc"]), "a torn frame"
                assert frame.seq == last + 1 + frame.missed or last == 0
                assert policy == "drop" or last == 0 or frame.missed == 0
                last = frame.seq
                if i % 10 == 0:
                    with ring.last(3) as several:
                        assert all(zlib.crc32(f["pixels"]) == int(f["crc"]) for f in several)
                assert zlib.crc32(frame["pixels"]) == crc, "it changed under its reader"


def test_ring():
    ring = copyless.RingBuffer({"pixels": ((20_000,), "u1"), "crc": ((), "u4")}, slots=16)
    jobs = [("writer", (write, ring))] * 2 + [("drops", (read, ring, "drop")), ("blocks", (read, ring, "block"))]
    killed, _ = storm(RING_KILLS, jobs, random.Random(4))
    before = ring.stats().published
    assert before > RING_KILLS
    for i in range(40):  # every slot can be written again, and is whole
        ring.put({"pixels": np.full(20_000, i, "u1"), "crc": 0}, timeout=20)
    stats = ring.stats()
    assert (stats.published, stats.on_loan, stats.writing, stats.readers) == (before + 40, 0, 0, [])
    with ring.last(16) as frames:
        assert [int(f["pixels"][0]) for f in frames] == list(range(24, 40))
    print(f"{before} frames, {killed}")
    del frames, ring
    check_nothing_left()


# ---- locks


def use(lock, condition, semaphore, rw, guarded):
    while True:
        try:
            with lock:
                guarded[0] += 1
                guarded[1] += 1
        except copyless.OwnerDiedError:
            guarded[2] += 1  # OwnerDiedError once; the lock is free, and the next process gets it
        with semaphore:
            pass
        try:
            with rw.write():
                guarded[4] += 1
                guarded[5] += 1
            with rw.read():
                assert 0 <= guarded[4] - guarded[5] <= LOCK_KILLS + 4
        except copyless.OwnerDiedError:
            pass
        with condition:
            condition.notify()
            condition.wait(0.001)


def test_locks():
    lock, rw = copyless.Lock(), copyless.RWLock()
    condition, semaphore = copyless.Condition(), copyless.Semaphore(2, robust=True, recover="silent")
    condition._lock.silent = True
    guarded = copyless.zeros(8, "i8")
    jobs = [("user", (_quietly, lock, condition, semaphore, rw, guarded))] * 4
    killed, _ = storm(LOCK_KILLS, jobs, random.Random(5), pause=0.008)
    assert guarded[0] > LOCK_KILLS
    assert 0 <= guarded[0] - guarded[1] <= LOCK_KILLS + 4
    for attempt in range(2):  # OwnerDiedError at most once each, then they are free
        for acquire in (lambda: lock.acquire(timeout=5), lambda: rw.acquire_write(5)):
            try:
                assert acquire()
            except copyless.OwnerDiedError:
                assert attempt == 0
        if lock.locked():
            lock.release()
        if rw._users[0]:
            rw.release_write()
    assert semaphore.get_value() == 2
    with condition:
        condition.notify_all()
        assert not condition.wait(0.01)
    assert killed["user"] == LOCK_KILLS


def _quietly(lock, condition, semaphore, rw, guarded):
    while True:
        try:
            use(lock, condition, semaphore, rw, guarded)
        except copyless.OwnerDiedError:
            continue


def test_nothing_at_all_is_left():
    check_nothing_left()
    until(lambda: (copyless.reap(), listing()["blocks"] == [])[1])
