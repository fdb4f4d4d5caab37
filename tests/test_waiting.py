"""wait() for many objects, and the descriptors of queues and events: what is ready, nothing missed, deaths, forks,
stops.
"""

import asyncio
import concurrent.futures
import contextlib
import io
import multiprocessing
import multiprocessing.pool
import os
import queue
import select
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
import types
from multiprocessing import connection as stdlib

import numpy as np
import pytest

import copyless
import copyless.connection
from copyless import waiting
from copyless._core import _bells
from tests.conftest import interrupted, python

LONG = 30.0  # seconds within which every event here comes, on any machine
GO_ON = 2000  # wake-ups of a test that would need the 50 ms of a slice for each, if they were missed


def _later(call, *args, seconds=0.05):
    timer = threading.Timer(seconds, call, args)
    timer.start()
    return timer


def _until(true):
    deadline = time.monotonic() + LONG
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.001)


# ---- what is ready


def test_one_function():
    assert copyless.wait is copyless.connection.wait
    assert copyless.wait([], timeout=0) == []


def test_the_ready_in_the_callers_order():
    queues = [copyless.SimpleQueue() for _ in range(5)]
    event, lock, seats = copyless.Event(), copyless.Lock(), copyless.Semaphore(0)
    robust = copyless.Semaphore(1, robust=True)
    own, there = copyless.Pipe()
    everything = [own, *queues, event, lock, seats, robust, own.fileno()]
    with lock, robust:
        assert copyless.wait(everything[:-1], 0) == []
        queues[3].put(1)
        queues[1].put(1)
        there.send("x")
        event.set()
        assert copyless.wait(everything, 0) == [own, queues[1], queues[3], event, own.fileno()]
    seats.release()
    assert copyless.wait([seats, lock, robust, queues[0]]) == [seats, lock, robust]
    own.close()
    there.close()


def test_the_same_object_twice():
    q = copyless.Queue()
    q.put(1)
    assert copyless.wait([q, q]) == [q, q]


def _acquire(lock, pipe):
    lock.acquire()
    pipe.send(1)
    pipe.recv()
    lock.release()
    pipe.recv()


@pytest.mark.parametrize("kind", [copyless.Lock, copyless.RLock, lambda: copyless.Semaphore(1, robust=True)])
def test_a_lock_is_ready_when_it_is_released_and_when_its_holder_dies(kind):
    lock = kind()
    for dies in (False, True):
        own, there = multiprocessing.Pipe()
        child = multiprocessing.get_context("fork").Process(target=_acquire, args=(lock, there))
        child.start()
        own.recv()
        assert copyless.wait([lock], 0) == []
        _later(child.kill) if dies else _later(own.send, 1)
        assert copyless.wait([lock], LONG) == [lock]
        child.kill()
        child.join()
        if dies:
            with pytest.raises(copyless.OwnerDiedError):
                lock.acquire()


def test_an_rlock_of_this_thread_is_ready():
    lock = copyless.RLock()
    with lock:
        assert copyless.wait([lock], 0) == [lock]
        with concurrent.futures.ThreadPoolExecutor(1) as other:
            assert other.submit(copyless.wait, [lock], 0).result() == []


def test_an_event_that_was_set_and_cleared_meanwhile_counts():
    event, never = copyless.Event(), copyless.Queue()

    def pulse():
        event.set()
        event.clear()

    _later(pulse)
    assert copyless.wait([never, event], LONG) == [event]


def test_a_subscription():
    import numpy as np

    ring = copyless.RingBuffer(((4,), "u1"))
    first, second = ring.subscribe(), ring.subscribe()
    assert copyless.wait([first, second], 0) == []
    _later(ring.put, np.zeros(4, "u1"))
    assert copyless.wait([first, second], LONG) == [first, second]
    first.get().release()
    assert copyless.wait([first, second], 0) == [second]
    second.get().release()
    ring.shutdown()
    assert copyless.wait([first, second], LONG) == [first, second]
    first.close()
    assert copyless.wait([first], LONG) == [first]
    second.close()


def test_a_ring_itself_is_refused_and_so_are_others():
    for each in (
        copyless.Condition(),
        copyless.Barrier(2),
        copyless.RWLock(),
        copyless.RingBuffer(((4,), "u1")),
        object(),
    ):
        with pytest.raises((TypeError, ValueError), match=r"wait\(\)"):
            copyless.wait([each], 0)
    with pytest.raises(ValueError):
        copyless.wait([-1], 0)
    with pytest.raises(ValueError):
        copyless.wait([copyless.Queue()], float("nan"))


def test_what_is_shut_down_or_closed_is_ready_so_that_get_raises():
    q, other = copyless.Queue(), copyless.Queue()
    _later(q.shutdown)
    assert copyless.wait([other, q], LONG) == [q]
    with pytest.raises(copyless.ShutDown):
        q.get()
    _later(other.close)
    assert copyless.wait([other], LONG) == [other]
    with pytest.raises(copyless.ClosedError):
        other.get()


def test_items_that_are_handed_out_again():
    q = copyless.JoinableQueue(redeliver=True)
    q.put("job")
    taken = q.get()
    assert copyless.wait([q], 0) == []
    _later(q.nack, taken)
    assert copyless.wait([q], LONG) == [q]
    child = multiprocessing.get_context("fork").Process(target=lambda: (q.get(), os.kill(os.getpid(), signal.SIGKILL)))
    child.start()
    child.join()
    assert copyless.wait([q], LONG) == [q]
    q.task_done(q.get())


def test_item_of_producers_that_all_died():
    q = copyless.Queue()
    child = multiprocessing.get_context("fork").Process(target=lambda: (q.put(1), os.kill(os.getpid(), signal.SIGKILL)))
    child.start()
    child.join()
    assert q.get() == 1
    assert copyless.wait([q], 0.2) == []  # with a timeout no call asks which processes are left, as in get
    assert copyless.wait([q]) == [q]
    with pytest.raises(copyless.EndOfQueueError):
        q.get()


# ---- others: futures, results, descriptors


def test_futures_and_results_among_queues():
    q, end = copyless.Queue(), threading.Event()
    with concurrent.futures.ThreadPoolExecutor(1) as threads, multiprocessing.pool.ThreadPool(1) as pool:
        future, result = threads.submit(end.wait, LONG), pool.apply_async(end.wait, (LONG,))
        assert copyless.wait([future, q, result], 0.01) == []
        assert copyless.wait([future, result], 0.01) == []
        end.set()
        assert copyless.wait([q, future], LONG) == [future]
        assert copyless.wait([result, q], LONG) == [result]


def test_a_future_that_is_waited_for_in_a_loop_keeps_one_callback():
    future = concurrent.futures.Future()
    for _ in range(100):
        copyless.wait([future], 0)
    assert len(future._done_callbacks) == 1


def test_our_futures_and_results():
    q = copyless.Queue()
    with copyless.ProcessPoolExecutor(1) as executor:
        future = executor.submit(pow, 2, 3)
        assert copyless.wait([q, future], LONG) == [future]
        assert future.result() == 8
    with copyless.Pool(1) as pool:
        result = pool.map_async(abs, [-1, -2])
        assert copyless.wait([q, result], LONG) == [result]
        assert result.get() == [1, 2]


def _put_later(q, end=None):
    time.sleep(0.05)
    q.put("x")
    if end is not None:
        end.wait(LONG)


@pytest.mark.parametrize("method", ["spawn", "fork", "forkserver"])
def test_a_queue_and_the_sentinel_of_its_producer(method):
    q, end = copyless.Queue(), copyless.Event()
    producer = multiprocessing.get_context(method).Process(target=_put_later, args=(q, end))
    producer.start()
    assert copyless.wait([q, producer.sentinel], LONG) == [q]
    end.set()
    assert q.get() == "x"
    assert copyless.wait([q, producer.sentinel], LONG) == [producer.sentinel]
    producer.join()


def test_sockets_and_queues():
    one, other = socket.socketpair()
    with one, other:
        q = copyless.Queue()
        _later(other.send, b"x")
        assert copyless.wait([q, one], LONG) == [one]
        one.recv(1)
        _later(q.put, 1)
        assert copyless.wait([q, one], LONG) == [q]


def test_requests_of_ranks():
    from copyless import comm

    assert sorted(comm.spawn(_rank, 2)) == [0, 1]


def _rank(world):
    rank, q = world.Get_rank(), copyless.Queue()
    if rank == 0:
        requests = [world.irecv(source=1, tag=tag) for tag in (1, 2)]
        assert copyless.wait([q, *requests], 0) == []
        world.send("go", 1)
        assert copyless.wait([q, *requests], LONG) == [requests[1]]
        assert requests[1].wait() == "two"
        world.send("go", 1)
        assert copyless.wait([requests[0], q], LONG) == [requests[0]]
        assert requests[0].wait() == "one"
        message = world.mprobe(1, 3)
        assert copyless.wait([q, message]) == [message]
        assert message.recv() == "three"
    else:
        for tag, text in ((2, "two"), (1, "one")):
            world.recv(source=0)
            world.send(text, 0, tag)
        world.send("three", 0, 3)
    return rank


# ---- time


def test_timeouts_are_never_early_and_not_late():
    q, pipe = copyless.Queue(), multiprocessing.Pipe()
    late = []
    for objects in ([q], [q, pipe[0]]):
        for timeout in (0.001, 0.03, 0.12):
            begun = time.monotonic()
            assert copyless.wait(objects, timeout) == []
            took = time.monotonic() - begun
            assert took >= timeout
            late.append(took - timeout)
    assert sorted(late)[len(late) // 2] < 0.5  # the median: a lost deadline would take minutes, not seconds
    begun = time.monotonic()
    assert copyless.wait([q], 0) == copyless.wait([q, pipe[0]], -1) == []
    assert time.monotonic() - begun < LONG


def test_a_stopped_reader_does_not_keep_a_producer_from_ending():
    q = copyless.Queue()
    own, there = multiprocessing.Pipe()

    def read():
        q.fileno()
        there.send(1)
        own.close()
        there.recv()

    fork = multiprocessing.get_context("fork")
    reader = fork.Process(target=read)
    reader.start()
    own.recv()
    os.kill(reader.pid, signal.SIGSTOP)
    producer = fork.Process(target=q.put, args=(1,))
    producer.start()
    producer.join(LONG)
    assert producer.exitcode == 0
    reader.kill()
    reader.join()


@pytest.mark.parametrize("mixed", [False, True])
def test_ctrl_c(mixed):
    pipe = multiprocessing.Pipe()
    objects = [copyless.Queue(), *([pipe[0]] if mixed else [])]
    with pytest.raises(KeyboardInterrupt), interrupted(0.05):
        copyless.wait(objects, LONG)


def test_the_gil_is_free_meanwhile():
    q, ran = copyless.Queue(), []

    def run():
        for i in range(1000):
            ran.append(i)
        q.put(1)

    _later(run)
    assert copyless.wait([q], LONG) == [q]
    assert len(ran) == 1000


# ---- many, often, and deaths


def _put_at_random(queues, n, seed):
    import random

    rng = random.Random(seed)
    for _ in range(n):
        rng.choice(queues).put(seed)
        if rng.random() < 0.02:
            time.sleep(rng.random() * 0.0003)


def test_a_thousand_queues():
    queues = [copyless.SimpleQueue() for _ in range(1000)]
    producer = multiprocessing.get_context("fork").Process(target=_put_at_random, args=(queues, 2000, 1))
    producer.start()
    got = 0
    while got < 2000:
        ready = copyless.wait(queues, LONG)
        assert ready
        for q in ready:
            q.get()
            got += 1
    assert copyless.wait(queues, 0) == []
    producer.join()


def _take(queues, total, end, taken):
    while not end.is_set():
        for q in copyless.wait([*queues, end], LONG):
            if q is not end:
                try:
                    q.get_nowait()
                except copyless.queues.Empty:
                    continue  # another was faster
                with taken.get_lock():
                    taken.value += 1
                    if taken.value == total:
                        end.set()


def test_a_storm_of_puts_with_several_waiters_misses_none():
    fork = multiprocessing.get_context("fork")
    queues, end, taken = [copyless.Queue() for _ in range(10)], copyless.Event(), copyless.Value("i", 0)
    total = 20000
    waiters = [fork.Process(target=_take, args=(queues, total, end, taken)) for _ in range(3)]
    producers = [fork.Process(target=_put_at_random, args=(queues, total // 2, seed)) for seed in (1, 2)]
    for process in waiters + producers:
        process.start()
    for process in waiters + producers:
        process.join(4 * LONG)
        assert process.exitcode == 0
    assert taken.value == total


def _answer(jobs, answers):
    for _ in range(GO_ON):
        copyless.wait([jobs], LONG)
        answers.put(jobs.get())


def test_no_wake_up_waits_for_a_slice():
    jobs, answers = copyless.Queue(), copyless.Queue()
    other = multiprocessing.get_context("fork").Process(target=_answer, args=(jobs, answers))
    other.start()
    begun = time.monotonic()
    for i in range(GO_ON):
        jobs.put(i)
        assert copyless.wait([answers], LONG) == [answers]
        assert answers.get() == i
    assert time.monotonic() - begun < GO_ON * 0.02  # found only after a slice, each would take 0.1 s
    other.join()


def _wait_for_ever(queues, pipe):
    pipe.send(1)
    while True:
        copyless.wait(queues)
        time.sleep(0.001)


def test_waiters_that_are_killed_or_stopped_hold_nobody_up():
    fork = multiprocessing.get_context("fork")
    queues = [copyless.Queue() for _ in range(20)]
    own, there = multiprocessing.Pipe()
    killed, stopped = [fork.Process(target=_wait_for_ever, args=(queues, there)) for _ in range(2)]
    for process in (killed, stopped):
        process.start()
        own.recv()
    time.sleep(0.01)
    os.kill(stopped.pid, signal.SIGSTOP)
    killed.kill()
    killed.join()
    newcomer = fork.Process(target=_put_later, args=(queues[7],))
    newcomer.start()
    assert copyless.wait(queues, LONG) == [queues[7]]
    for q in queues:
        q.put(1)
    assert copyless.wait(queues, LONG) == queues
    stopped.kill()
    for process in (stopped, newcomer):
        process.join()


def test_a_fork_beside_a_waiter_and_with_one():
    q, other, pipe = copyless.Queue(), copyless.Queue(), multiprocessing.Pipe()
    other.fileno()
    found = []
    thread = threading.Thread(target=lambda: found.append(copyless.wait([q, other], LONG)))
    thread.start()
    mixed = threading.Thread(target=lambda: found.append(copyless.wait([q, pipe[0]], LONG)))
    mixed.start()
    time.sleep(0.02)

    def child():
        _later(other.put, "mine")
        assert copyless.wait([q, other], LONG) == [other]
        assert select.select([other], [], [], LONG)[0] == [other]
        assert other.get() == "mine"
        _later(other.put, "mine")
        assert copyless.wait([pipe[0], other], LONG) == [other]
        assert other.get() == "mine"
        q.put("parent's")

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join()
    assert process.exitcode == 0
    thread.join()
    mixed.join()
    assert len(found) == 2
    assert all((ready and ready[0] is q) or other in ready for ready in found)


# ---- descriptors


def test_select_and_selectors():
    q, event = copyless.Queue(), copyless.Event()
    assert select.select([q, event, q._reader], [], [], 0)[0] == []
    q.put(0)
    assert select.select([q], [], [], 0)[0] == [q]  # at once, whenever the thread runs
    q.get()
    _later(q.put, 1)
    assert select.select([q, event, q._reader], [], [], LONG)[0] == [q, q._reader]
    assert q.get() == 1
    assert select.select([q], [], [], 0)[0] == []
    with selectors.DefaultSelector() as selector:
        selector.register(event, selectors.EVENT_READ, "event")
        selector.register(q, selectors.EVENT_READ, "queue")
        assert selector.select(0) == []
        _later(event.set)
        assert [key.data for key, _ in selector.select(LONG)] == ["event"]
        assert [key.data for key, _ in selector.select(LONG)] == ["event"]  # a level
        event.clear()
        assert selector.select(0) == []


def test_who_sees_the_end_of_a_process_sees_what_it_put():
    for _ in range(20):
        q = copyless.SimpleQueue()
        producer = multiprocessing.get_context("fork").Process(target=q.put, args=(1,))
        fd = q.fileno()
        producer.start()
        stdlib.wait([producer.sentinel], LONG)
        assert select.select([fd], [], [], 0)[0] == [fd]  # the number: the queue itself is not read
        producer.join()


@pytest.mark.parametrize("kind", [copyless.Queue, copyless.SimpleQueue, copyless.JoinableQueue])
def test_the_standard_librarys_own_wait_on_reader(kind):
    q, end = kind(), copyless.Event()
    producer = multiprocessing.get_context("fork").Process(target=_put_later, args=(q, end))
    producer.start()
    assert stdlib.wait([q._reader, producer.sentinel], LONG) == [q._reader]
    assert q._reader.poll()
    assert q._poll()
    assert q.get() == "x"
    assert not q._reader.poll(0.001)
    assert not q._poll()
    end.set()
    producer.join()
    assert copyless.wait([q._reader, producer.sentinel], LONG) == [producer.sentinel]


def test_a_reader_says_what_it_is():
    q = copyless.Queue()
    reader, writer = q._reader, q._writer
    assert reader == q._reader
    assert hash(reader) == hash(q._reader)
    assert reader != writer
    for call in (reader.recv, reader.recv_bytes, writer.send):
        with pytest.raises(io.UnsupportedOperation, match="of the queue"):
            call()
    assert not reader.closed
    assert not writer.closed
    writer.close()
    assert q._writer.closed
    assert not q._reader.closed
    reader.close()
    with pytest.raises(OSError, match="closed"):
        q._reader.fileno()
    q.put(1)
    assert q.get() == 1
    other = copyless.SimpleQueue()
    reader = other._reader
    other.close()
    assert reader.closed
    assert other._writer.closed


def test_every_level_that_rises_is_seen():
    q = copyless.Queue()
    producer = multiprocessing.get_context("fork").Process(target=_put_at_random, args=([q], 5000, 3))
    producer.start()
    got = 0
    while got < 5000:
        assert select.select([q], [], [], LONG)[0] == [q]
        try:
            while True:
                q.get_nowait()
                got += 1
        except copyless.queues.Empty:
            pass
    producer.join()


def test_what_another_process_took_is_readable_no_more():
    q = copyless.Queue()
    q.put(1)
    assert select.select([q], [], [], LONG)[0] == [q]
    taker = multiprocessing.get_context("fork").Process(target=q.get)
    taker.start()
    taker.join()
    _until(lambda: select.select([q], [], [], 0)[0] == [])
    q.put(2)
    assert select.select([q], [], [], LONG)[0] == [q]
    assert q.get_many() == [2]
    assert select.select([q], [], [], 0)[0] == []


def test_a_closed_queue_is_readable():
    q = copyless.Queue()
    fd = q.fileno()
    q.close()
    assert select.select([fd], [], [], LONG)[0] == [fd]
    other = copyless.Queue()
    other.close()
    assert select.select([other], [], [], LONG)[0] == [other]


def test_a_descriptor_is_made_anew_after_a_fork():
    q = copyless.Queue()
    fd = q.fileno()

    def child():
        assert q.fileno() == fd  # the same number, another file
        q.put(1)
        assert select.select([q], [], [], LONG)[0] == [q]
        assert q.get() == 1
        assert select.select([q], [], [], 0)[0] == []
        q.put("parent's")

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join()
    assert process.exitcode == 0
    assert select.select([fd], [], [], LONG)[0] == [fd]
    assert q.get() == "parent's"


def test_a_descriptor_is_closed_with_its_queue():
    def fd_of_one():
        return copyless.Queue().fileno()

    fd = fd_of_one()
    with pytest.raises(OSError):
        os.fstat(fd)


def test_a_handler_may_ask_for_a_descriptor_while_one_is_made(monkeypatch):
    q, other = copyless.Queue(), copyless.Queue()
    make, inner, found = _bells.Signal, [], []

    def interrupted(source):  # as by a signal, between two instructions of fileno()
        if not inner:
            inner.append(None)
            inner[:] = [q.fileno(), other.fileno()]
        return make(source)

    monkeypatch.setattr(_bells, "Signal", interrupted)
    thread = threading.Thread(target=lambda: found.append(q.fileno()), daemon=True)
    thread.start()
    thread.join(LONG)
    assert not thread.is_alive()
    assert found == inner[:1] == [q.fileno()]
    assert other.fileno() == inner[1]


def test_a_wait_that_cannot_begin_keeps_no_descriptor():
    class Memory:
        def listeners(self, fd):
            raise OSError("no thread could be started")

    before, unused = set(waiting.wakers), len(waiting._free)
    for _ in range(3):
        with pytest.raises(OSError, match="no thread"):
            waiting._Waker(types.SimpleNamespace(memory=Memory()))
    assert waiting.wakers == before
    assert len(waiting._free) <= max(unused, 1)


@pytest.mark.parametrize("where", ["here", "in a forked child"])
def test_a_program_that_closes_all_descriptors_keeps_its_own_files(where):
    """As daemons do when they start: our descriptor numbers are then files of the program.

    They are neither written nor read nor closed.
    """
    code = """
import copyless, os, select, sys, tempfile
q, other, (end, _) = copyless.Queue(), copyless.Queue(), os.pipe()
q.fileno()
other.fileno()
copyless.wait([q, end], 0.01)  # has an eventfd of its own
child = os.fork() if sys.argv[1] != "here" else 0
if child == 0:
    os.closerange(3, 1024)
    files = [tempfile.TemporaryFile(buffering=0) for _ in range(40)]
    for file in files:
        file.write(b"0123456789")
        file.seek(0)
    are = [os.fstat(file.fileno()).st_ino for file in files]
    for i in range(3):
        q.put(i)
        assert copyless.wait([q, other], 30) == [q] == copyless.wait([q, other, os.pipe()[0]], 30)
        assert select.select([q, other], [], [], 30)[0] == [q]
        assert q.get() == i
        assert select.select([q, other], [], [], 0)[0] == []
    other.close()
    del q, other
    assert [os.fstat(file.fileno()).st_ino for file in files] == are
    assert [file.read() for file in files] == [b"0123456789"] * 40
    os._exit(0)
sys.exit(os.waitpid(child, 0)[1])
"""
    done = python(code, where)
    assert done.stderr == ""


def test_no_thread_can_be_started():
    code = """
import copyless, os, resource, select
from copyless.errors import SystemLimitError
q, (end, _) = copyless.Queue(), os.pipe()
copyless.wait([q], 0)  # loads what a wait needs, which takes memory too
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
limit = resource.getrlimit(resource.RLIMIT_AS)
resource.setrlimit(resource.RLIMIT_AS, (size + 150_000, limit[1]))  # less than the stack of one
for call in (q.fileno, lambda: copyless.wait([q, end], 0.01)):
    try:
        call()
        print("started")
    except SystemLimitError as error:
        print("thread" in str(error))
resource.setrlimit(resource.RLIMIT_AS, limit)
q.put(1)
print(copyless.wait([q, end], 30) == [q], select.select([q], [], [], 30)[0] == [q])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\nTrue\nTrue True\n", "")


def test_a_wait_whose_descriptor_is_closed_says_so():
    code = """
import copyless, os, threading
q, (end, _) = copyless.Queue(), os.pipe()
threading.Timer(0.2, os.closerange, (end + 2, 1024)).start()
try:
    copyless.wait([q, end], 30)
except OSError as error:
    print(error.errno, "closed" in str(error))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "9 True\n", "")


def test_a_thread_that_starts_and_ends_with_the_process():
    code = """
import copyless, select
q = copyless.Queue(); q.fileno(); q.put(1)
assert select.select([q], [], [], 30)[0]
e = copyless.Event(); e.fileno()
print("end")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "end\n", "")


# ---- event loops


def test_add_reader():
    q = copyless.Queue()

    async def main():
        loop, came = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(q._reader, came.set)
        _later(q.put, 7)
        await asyncio.wait_for(came.wait(), LONG)
        loop.remove_reader(q._reader)
        return q.get_nowait()

    assert asyncio.run(main()) == 7


def test_await():
    q, event = copyless.Queue(), copyless.Event()
    one, other = socket.socketpair()

    async def main():
        assert await copyless.await_([q, event, one], 0.01) == []
        _later(q.put, 1)
        assert await copyless.await_([q, event, one], LONG) == [q]
        q.get()
        _later(other.send, b"x")
        assert await copyless.await_([q, event, one]) == [one]
        task = asyncio.ensure_future(copyless.await_([q, event]))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        waits = [asyncio.ensure_future(copyless.await_([event])) for _ in range(20)]
        _later(event.set)
        assert await asyncio.gather(*waits) == [[event]] * 20
        with open(__file__, "rb") as file:
            assert await copyless.await_([q, file], LONG) == [file]

    with one, other:
        asyncio.run(main())


# ---- a `select` of another package


@pytest.mark.parametrize("has_poll", [True, False])
def test_a_patched_select_is_what_waits(monkeypatch, has_poll):
    q, calls, real, real_poll = copyless.Queue(), [], select.select, select.poll

    def patched(*args):
        calls.append("select")
        return real(*args)

    def patched_poll():
        calls.append("poll")
        return real_poll()

    monkeypatch.setattr(select, "select", patched)
    if has_poll:
        monkeypatch.setattr(select, "poll", patched_poll)
    else:
        monkeypatch.delattr(select, "poll")
    _later(q.put, 1)
    assert copyless.wait([q], LONG) == [q]
    assert calls[-1] == ("poll" if has_poll else "select")


@pytest.mark.parametrize("name", ["test_wait", "test_wait_socket"])
def test_cpythons_own_tests_of_wait(name):
    """In a process of its own: these packages replace only the function."""
    pytest.importorskip("test._test_multiprocessing")
    code = f"""
import multiprocessing.connection, unittest, copyless
multiprocessing.connection.wait = copyless.wait
import test._test_multiprocessing as suite
if __name__ == "__main__":
    done = unittest.TextTestRunner().run(suite.TestWait("{name}"))
    raise SystemExit(not (done.wasSuccessful() and done.testsRun == 1))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr


# ---- tasks of gevent and eventlet


_GEVENT = """
from gevent import monkey
monkey.patch_all()
import gevent, queue, copyless

ring = copyless.RingBuffer({"t": ((), "f8")}, slots=2)
reader = ring.subscribe()

def write():
    for i in range(5):
        gevent.sleep(0.01)
        ring.put({"t": i})

def taken():
    with next(reader) as frame:
        return float(frame["t"])

gevent.spawn(write)
assert [taken() for _ in range(5)] == [0, 1, 2, 3, 4]
gevent.spawn_later(0.05, ring.put, {"t": 5})
assert float(ring.latest(after=5)["t"]) == 5
with reader.get() as frame:
    pass
try:
    reader.get(0.05)
except queue.Empty:
    pass
else:
    raise AssertionError
one, other = ring.last(2)
try:
    ring.put({"t": 6}, timeout=0.05)
except queue.Full:
    pass
else:
    raise AssertionError
gevent.spawn_later(0.05, one.release)
ring.put({"t": 6})

lock, done = copyless.RWLock(), []

def use(side, i):
    with side():
        done.append(i)
        gevent.sleep(0.01)
        done.append(i)

gevent.joinall([gevent.spawn(use, lock.write, i) for i in range(3)], raise_error=True)
assert done == [0, 0, 1, 1, 2, 2]
with lock.read():
    assert not gevent.spawn(lock.acquire_write, 0.05).get()
    assert gevent.spawn(lambda: lock.acquire_read(60) and lock.release_read() is None).get()
"""

_EVENTLET = """
import eventlet
eventlet.monkey_patch()
import copyless

def twice(x):
    return 2 * x

for _ in range(4):
    with copyless.ProcessPoolExecutor(2) as executor:
        assert list(executor.map(twice, range(4))) == [0, 2, 4, 6]
    with copyless.Pool(2) as pool:
        assert pool.map(twice, range(4)) == [0, 2, 4, 6]
"""


@pytest.mark.parametrize(("package", "code"), [("gevent", _GEVENT), ("eventlet", _EVENTLET)])
def test_tasks_of_one_thread_wait_for_each_other(package, code):
    pytest.importorskip(package)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


# ---- other processes that change the awaited object all the time, but never so that the wait ends


def _publish(ring, stop):
    frame = np.zeros(4)
    while not stop.is_set():
        ring.put(frame)


def _read(ring, stop):
    while not stop.is_set():
        with ring.latest():
            pass


def _answer_until(asked, answered, stop):
    while not stop.is_set():
        answered.put(asked.get(timeout=60))


def _ask(asked, answered, stop):
    while not stop.is_set():
        asked.put(1)
        while not (ready := copyless.wait([answered], 0.1)) and not stop.is_set():
            pass
        if ready:
            answered.get()


@contextlib.contextmanager
def _wait_for_a_frame(context, stop):
    """Frames come all the time, and none is new enough."""
    ring = copyless.RingBuffer.like(np.zeros(4), slots=8)
    process = context.Process(target=_publish, args=(ring, stop))
    process.start()
    ring.latest(60).release()
    yield lambda timeout: ring.latest(timeout, after=1 << 40)
    stop.set()
    process.join(60)


@contextlib.contextmanager
def _wait_for_room(context, stop):
    """One reader has had nothing yet, so there is no room; another takes and returns the newest frame all the time."""
    ring = copyless.RingBuffer.like(np.zeros(4), slots=8)
    _slow = ring.subscribe(policy="block")
    for _ in range(8):
        ring.put(np.zeros(4), timeout=60)
    process = context.Process(target=_read, args=(ring, stop))
    process.start()
    yield lambda timeout: ring.put(np.zeros(4), timeout=timeout)
    stop.set()
    process.join(60)


@contextlib.contextmanager
def _wait_for_one_of_several(context, stop):
    """Another thread of this process waits for another object, which is ready all the time."""
    asked, answered, empty = copyless.Queue(), copyless.Queue(), copyless.Queue()
    process = context.Process(target=_answer_until, args=(asked, answered, stop))
    thread = threading.Thread(target=_ask, args=(asked, answered, stop), daemon=True)
    process.start()
    asked.put(1)
    answered.get(timeout=60)  # it runs: otherwise it might begin when `stop` is set, and answer nothing
    thread.start()

    def wait(timeout):
        assert copyless.wait([empty], timeout) == []
        raise queue.Empty

    yield wait
    stop.set()
    thread.join(60)
    asked.put(1)
    process.join(60)


def _write_until(lock, stop, up):
    with lock.write():
        up.set()
        stop.wait()


def _give_up(lock, stop):
    while not stop.is_set():
        if lock.acquire_write(timeout=0.00002):
            lock.release_write()


@contextlib.contextmanager
def _wait_for_a_lock(context, stop, write=False):
    """One process writes, another gives up waiting for that again and again."""
    lock, up = copyless.RWLock(), copyless.Event()
    writer = context.Process(target=_write_until, args=(lock, stop, up))
    writer.start()
    assert up.wait(60)
    hasty = context.Process(target=_give_up, args=(lock, stop))
    hasty.start()

    def wait(timeout):
        assert not (lock.acquire_write if write else lock.acquire_read)(timeout=timeout)
        raise queue.Empty

    yield wait
    stop.set()
    hasty.join(60)
    writer.join(60)


def _wait_to_write(context, stop):
    return _wait_for_a_lock(context, stop, True)


@pytest.mark.parametrize(
    "begin", [_wait_for_a_frame, _wait_for_room, _wait_for_one_of_several, _wait_for_a_lock, _wait_to_write]
)
def test_who_is_woken_for_nothing_all_the_time_is_late_for_nobody(begin):
    with begin(multiprocessing.get_context("spawn"), copyless.Event()) as wait:
        for _ in range(15):  # by luck one or the other succeeded before
            with pytest.raises(KeyboardInterrupt), interrupted(0.05):
                wait(20)
            with pytest.raises((queue.Empty, queue.Full)):
                wait(0.02)
