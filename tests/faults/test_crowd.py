"""Many processes at once: two hundred that are killed, some that are stopped, and noise over their shared memory."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import queue
import random
import signal
import threading
import time
from typing import Any

import copyless
from copyless._core import _store
from copyless.cli.look import listing
from tests.conftest import until
from tests.faults.wild_words import ALLOWED

FORK = multiprocessing.get_context("fork")
CROWD = 200
ROUNDS, JOBS = 15, 400  # rounds, and jobs in each


def start(work: Any, *args: Any) -> Any:
    process = FORK.Process(target=work, args=args, daemon=True)
    process.start()
    return process


# ---- two hundred


def do_jobs(jobs: Any, done: Any, lock: Any, counts: Any) -> None:
    """Take jobs until there are none: each is marked as done, and counted under a lock, before it is acknowledged."""
    rng = random.Random(os.getpid())
    while True:
        try:
            with jobs.lease(timeout=60) as job:
                mine = copyless.full(rng.choice([10, 2000, 30_000]), job, "i4")
                time.sleep(rng.random() * 0.02)
                try:
                    with lock:
                        done[job] = 1
                        counts[0] += 1
                        counts[1] += 1
                except copyless.OwnerDiedError:  # raised once: the data under the lock is checked, and may be half done
                    counts[1] = counts[0]
                    done[job] = 1
                assert (mine == job).all()
        except copyless.ShutDown:
            return


def test_two_hundred_processes_are_killed_and_every_job_is_done():
    jobs: Any = copyless.JoinableQueue(redeliver=True)
    done = copyless.zeros(ROUNDS * JOBS, "u1")
    counts = copyless.zeros(2, "i8")
    lock = copyless.Lock()
    before = _store.statistics()
    rng = random.Random(7)
    crowd = [start(do_jobs, jobs, done, lock, counts) for _ in range(CROWD)]
    kills = 0
    for round_ in range(ROUNDS):
        jobs.put_many(range(round_ * JOBS, (round_ + 1) * JOBS))
        for process in rng.sample(crowd, 20):  # twenty at once: others take over their entries while more die
            kills += process.exitcode is None
            process.kill()
        left = []
        for process in crowd:
            if process.exitcode is None:
                left.append(process)
            else:
                process.join()
                process.close()
        crowd = left + [start(do_jobs, jobs, done, lock, counts) for _ in range(CROWD - len(left))]
        time.sleep(rng.random() * 0.05)
    assert kills >= 200
    jobs.join(timeout=120)
    assert done.all()
    jobs.shutdown()
    for process in crowd:
        process.join(60)
        assert process.exitcode in (0, -signal.SIGKILL)
        process.close()
    with lock:
        assert counts[0] >= counts[1] > ROUNDS * JOBS - kills
    copyless.reap()
    _store.audit()
    after = _store.statistics()
    assert after["deaths"] - before["deaths"] >= 0.9 * kills
    del lock, jobs
    until(lambda: (copyless.reap(), len(listing()["blocks"]) == 2)[1], lambda: str(listing()["blocks"]))


# ---- stopped


def pass_on(first: Any, second: Any, lock: Any, event: Any, ring: Any) -> None:
    """Every call that a stopped process could block, as fast as possible."""
    with ring.subscribe() as reader:
        for n in range(1 << 60):
            try:
                second.put(first.get(timeout=0.05), timeout=0.05)
            except (queue.Empty, queue.Full):
                pass
            if lock.acquire(timeout=0.01):
                lock.release()
            event.set() if n % 2 else event.clear()
            try:
                with ring.write(timeout=0.01) as frame:
                    frame["n"][...] = n
                reader.get(timeout=0.01).release()
            except (TimeoutError, queue.Empty, queue.Full):
                pass


def test_calls_end_in_their_time_while_others_are_stopped():
    """The stopped processes go on only after the calls have returned: a call that waits for them never returns."""
    first, second = copyless.Queue(50), copyless.Queue(50)
    lock, event = copyless.Lock(), copyless.Event()
    ring = copyless.RingBuffer({"n": ((), "i8")}, 8)
    workers = [start(pass_on, first, second, lock, event, ring) for _ in range(8)]
    rng = random.Random(3)
    came_back = threading.Event()
    late: list[str] = []

    def give_up(pids: list[int], call: str) -> None:
        if not came_back.wait(30):
            late.append(call)
            for pid in pids:
                os.kill(pid, signal.SIGCONT)

    def write() -> None:
        with ring.write(timeout=0) as frame:
            frame["n"][...] = 0

    calls: dict[str, Any] = {
        "put": lambda: first.put(1, timeout=0.02),
        "get": lambda: second.get(timeout=0.02),
        "get_many": lambda: second.get_many(3, timeout=0.02),
        "acquire": lambda: lock.acquire(timeout=0.02) and lock.release(),
        "wait": lambda: event.wait(0.02),
        "write": write,
    }
    met = 0
    for round_ in range(60):
        time.sleep(rng.random() * 0.01)
        pids = [process.pid for process in rng.sample(workers, 6)]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        for name, call in calls.items():
            came_back.clear()
            watch = threading.Thread(target=give_up, args=(pids, f"{name} in round {round_}"))
            watch.start()
            try:
                call()
                met += 1
            except (queue.Full, queue.Empty, TimeoutError):
                pass
            came_back.set()
            watch.join()
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
        if late:
            break
    for process in workers:
        process.kill()
        process.join()
    assert late == []
    assert met > 60
    _store.audit()


# ---- noise


def use(objects: dict[str, Any], told: Any) -> None:
    """Use objects that may be damaged at any moment: an error of the right family, or a plausible result."""
    while not told.is_set():
        for name, call in {
            "put": lambda: objects["queue"].put("short", timeout=0.01),
            "put long": lambda: objects["queue"].put(b"x" * 20_000, timeout=0.01),
            "get": lambda: objects["queue"].get(timeout=0.01),
            "lock": lambda: objects["lock"].acquire(timeout=0.01) and objects["lock"].release(),
            "semaphore": lambda: objects["semaphore"].acquire(timeout=0.01) and objects["semaphore"].release(),
            "event": lambda: objects["event"].wait(0.001),
            "condition": lambda: objects["condition"].acquire(timeout=0.01) and objects["condition"].release(),
            "ring": lambda: objects["ring"].latest(timeout=0.001).release(),
            "array": lambda: copyless.full(100, 3.0).sum(),
        }.items():
            try:
                call()
            except ALLOWED:
                pass
            except BaseException as error:
                os.write(2, f"{name}: {type(error).__name__}: {error}\n".encode())
                os._exit(3)
    os._exit(0)


def test_noise_over_objects_while_processes_work_kills_and_stops_nobody():
    rng = random.Random(11)
    for _ in range(6):
        told = FORK.Event()
        objects: dict[str, Any] = {
            "queue": copyless.Queue(100),
            "lock": copyless.Lock(),
            "semaphore": copyless.Semaphore(2),
            "event": copyless.Event(),
            "condition": copyless.Condition(),
            "ring": copyless.RingBuffer({"n": ((), "i8")}, 8),
        }
        with objects["ring"].write() as frame:
            frame["n"][...] = 1
        workers = [start(use, objects, told) for _ in range(4)]
        for _ in range(200):
            address, nbytes = rng.choice(list(objects.values()))._address
            at = rng.randrange(min(nbytes, 4096) // 4) * 4
            ctypes.c_uint32.from_address(address + at).value = rng.choice(
                [0, 1, 1 << 31, (1 << 32) - 1, rng.getrandbits(32)]
            )
            time.sleep(0.001)
        told.set()
        for worker in workers:
            worker.join(60)
            code = worker.exitcode
            worker.kill()
            worker.join()
            assert code == 0, f"exit code {code}"
        _store.audit()  # an object's memory contains no part of the registry, which must be sound
        assert copyless.ones(10).sum() == 10
        fresh: Any = copyless.Queue()
        fresh.put(1)
        assert fresh.get() == 1
        objects.clear()
