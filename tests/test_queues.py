"""Queues: what the standard library promises and where it fails, values and shared objects in them, deaths, event
loops.
"""

import asyncio
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import time
from typing import Generic, TypeVar

import numpy as np
import pytest

import copyless
from copyless import queues
from tests.conftest import python, start_python, until

KINDS = {
    "SimpleQueue": copyless.SimpleQueue,
    "Queue": copyless.Queue,
    "JoinableQueue": copyless.JoinableQueue,
    "redeliver": lambda **k: copyless.JoinableQueue(redeliver=True, **k),
}


class Point:
    def __init__(self, x):
        self.x = x

    def __eq__(self, other):
        return type(other) is Point and self.x == other.x

    __hash__ = None


class Unpicklable:
    def __reduce__(self):
        raise AttributeError("cannot be pickled")


# ---- values


VALUES = [
    None, 1, -(2**80), 2.5, "text €", b"bytes", (1, "a"), [1, [2, [3]]], {"a": {"b": (None, True)}}, {1, 2}, 3 + 4j,
    Point(5),
    "x" * 100_000, list(range(50_000)), b"y" * 1_000_000, bytearray(b"z" * 10_000), range(10), [Point(1), b"q" * 9000],
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_values_come_as_they_were_put(kind):
    q = KINDS[kind]()
    for value in VALUES:
        q.put(value)
    assert q.qsize() == len(VALUES)
    for value in VALUES:
        got = q.get()
        assert got == value
        assert type(got) is type(value)
    assert q.empty()


ARRAYS = [
    np.arange(10), np.arange(100_000.0), np.zeros((0, 5)), np.array(7), np.asfortranarray(np.ones((100, 200))),
    np.arange(30_000)[::3], np.ones((300, 300))[:, ::2], np.arange(20_000)[::-1], np.arange(9000).astype(">i4"),
    np.array(["a", "bc"] * 4000), np.zeros(2000, [("a", "i4"), ("b", "f8", (3,))]), np.arange(5000).astype("M8[s]"),
    np.array([{}, 1], dtype=object), np.array([True] * 10_000),
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_arrays_arrive_whole_writable_and_the_receivers_own(kind):
    q = KINDS[kind]()
    for array in ARRAYS:
        q.put({"a": array, "b": [array, 1]})
        got = q.get()
        if kind == "redeliver":
            q.task_done(got)
        for each in (got["a"], got["b"][0]):
            assert type(each) is np.ndarray
            assert each.dtype == array.dtype
            np.testing.assert_array_equal(each, array)
            assert each.flags.writeable
            assert not copyless.is_shared(each)
        if array.size and array.dtype != object:
            before = array.copy()
            got["a"].fill(array.flat[-1])
            np.testing.assert_array_equal(array, before)


def test_what_was_received_is_sent_on_by_value():
    first, second = copyless.Queue(), copyless.Queue()
    first.put(np.ones(10_000))
    mine = first.get()
    second.put(mine)
    mine[:] = 5
    assert (second.get() == 1).all()
    assert (copyless.share(mine) == 5).all()


def test_shared_things_cross_by_handle_and_outlive_their_sender():
    q = copyless.Queue()
    shared = copyless.arange(1000) if hasattr(copyless, "arange") else copyless.array(np.arange(1000))
    lock, inner = copyless.Lock(), copyless.Queue()
    q.put([shared, shared[10:20], lock, inner, np.ones(9000)])
    before = q.stats().bytes
    assert before < 9000 * 8 + 4000
    del shared
    a, b, lock2, inner2, plain = q.get()
    assert copyless.is_shared(a)
    assert copyless.is_shared(b)
    a[10] = 77
    assert b[0] == 77
    inner2.put(3)
    assert inner.get() == 3
    with lock:
        assert lock2.locked()
    assert not copyless.is_shared(plain)
    del a, b, lock2, inner2, plain
    big = copyless.zeros(1 << 20, "u1")
    q.put(big)
    assert q.stats().bytes < 1000


def test_many_shared_arrays_in_one_item():
    q = copyless.Queue()
    q.put([copyless.full(10, i) for i in range(2000)])
    for i, each in enumerate(q.get()):
        assert each[3] == i


def test_what_nobody_takes_goes_with_the_queue():
    q = copyless.Queue()
    for _ in range(50):
        q.put([copyless.zeros(1000), np.ones(10_000)])
    q.put(q)  # a queue that is an item of itself does not keep itself alive
    del q  # the leak fixture checks


def test_files_cross_too(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(5000))
    mapped = copyless.memmap(str(tmp_path / "raw"), dtype="i8", mode="w+", shape=(600,))
    mapped[:] = 4
    q = copyless.Queue()
    q.put(mapped)
    assert (q.get() == 4).all()


def test_frames():
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({"a": np.arange(50_000), "b": np.random.rand(50_000), "c": ["x", "yy"] * 25_000})
    q = copyless.Queue()
    q.put(frame)
    got = q.get()
    pd.testing.assert_frame_equal(got, frame)
    got.loc[3, "a"] = -5
    assert frame.loc[3, "a"] == 3


# ---- faults of the standard library's queues


def _put_and_exit(q, nbytes):
    q.put(b"x" * nbytes)


def test_the_putter_may_exit_before_anyone_takes(context):  # E1, E10, E11
    for q in (copyless.Queue(), copyless.SimpleQueue()):
        process = context.Process(target=_put_and_exit, args=(q, 1 << 20))
        process.start()
        process.join(30)
        assert process.exitcode == 0
        assert len(q.get()) == 1 << 20


def test_os_exit_right_after_put_loses_nothing():  # E10
    q = copyless.Queue(name="t-exit")
    for i in range(5):
        python("import copyless, os, sys; copyless.Queue(name='t-exit').put(int(sys.argv[1])); os._exit(0)", str(i))
        assert q.get(timeout=1) == i


@pytest.mark.parametrize("kind", KINDS)
def test_what_cannot_be_pickled_raises_in_put_and_leaves_nothing(kind):  # E2
    q = KINDS[kind]()
    shared = copyless.zeros(100)
    for bad in (Unpicklable(), [shared, np.ones(5000), Unpicklable()], lambda: 0, threading.Lock()):
        with pytest.raises((AttributeError, TypeError, pickle.PicklingError)):
            q.put(bad)
        with pytest.raises((AttributeError, TypeError, pickle.PicklingError)):
            q.put_many([1, bad])
    assert q.qsize() == 0
    q.put([shared, 1])
    assert q.get()[1] == 1


def test_put_takes_a_snapshot():  # E3
    q = copyless.Queue()
    for value in ([0], np.zeros(3), np.zeros(30_000)):
        q.put(value)
        value[0] = 1
        assert q.get()[0] == 0


def test_what_is_put_is_there_at_once():  # E4
    q = copyless.Queue()
    for i in range(2000):
        assert q.empty()
        q.put(i)
        assert not q.empty()
        assert q.qsize() == 1
        assert q.get_nowait() == i


def _put_for_ever(q):
    while True:
        q.put(b"x" * (16 << 20))


def test_a_producer_killed_in_a_large_put_costs_nothing(context):  # E5
    q = copyless.Queue(maxsize=2)
    process = context.Process(target=_put_for_ever, args=(q,))
    process.start()
    assert len(q.get(timeout=30)) == 16 << 20
    time.sleep(0.013)
    process.kill()
    process.join()
    while not q.empty():
        assert len(q.get(timeout=5)) == 16 << 20
    with pytest.raises(queue.Empty):
        q.get(timeout=0.1)
    q.put(1, timeout=5)
    assert q.get(timeout=5) == 1


def _get(q, told):
    told.release()
    q.get()


def test_a_consumer_killed_in_get_costs_nothing(context):  # E6
    q, told = copyless.Queue(), copyless.Semaphore(0)
    process = context.Process(target=_get, args=(q, told))
    process.start()
    told.acquire()
    time.sleep(0.1)
    process.kill()
    process.join()
    q.put(5)
    assert q.get(timeout=2) == 5


def _put_and_wait(q, nbytes):
    q.put(b"x" * nbytes)
    time.sleep(100)


def test_producers_that_ended_well_may_have_successors(context):
    q = copyless.Queue()
    process = context.Process(target=_put_and_exit, args=(q, 10))
    process.start()
    process.join()
    assert len(q.get()) == 10
    later = threading.Timer(2.5, lambda: q.put("later"))  # by this same process, which no one could have predicted
    later.start()
    assert q.get() == "later"
    other = copyless.Queue()
    process = context.Process(target=_put_and_exit, args=(other, 10))
    process.start()
    process.join()
    assert list(other) == [b"x" * 10]  # iteration ends


def test_a_dead_end_is_noticed(context):  # E8
    q = copyless.Queue()
    process = context.Process(target=_put_and_wait, args=(q, 10))
    process.start()
    assert len(q.get()) == 10
    process.kill()
    process.join()
    start = time.monotonic()
    with pytest.raises(copyless.EndOfQueueError, match="no process is left"):
        q.get()
    assert time.monotonic() - start < 20
    with pytest.raises(queue.Empty):
        q.get(timeout=0.05)
    assert issubclass(copyless.EndOfQueueError, EOFError)
    assert list(q) == []


def test_a_queue_that_somebody_may_still_fill_is_no_dead_end(context):
    q = copyless.Queue()
    process = context.Process(target=_put_and_exit, args=(q, 10))
    process.start()
    process.join()
    other = copyless.Event()
    keeper = context.Process(target=_keep, args=(q, other))
    keeper.start()
    assert len(q.get()) == 10
    assert q.get() == "late"
    other.set()
    keeper.join()


def _keep(q, other):
    time.sleep(1.6)
    q.put("late")
    other.wait(30)


@pytest.mark.parametrize("kind", KINDS)
def test_queues_are_picklable_everywhere(kind):  # E9
    q = KINDS[kind](name="t-everywhere")
    for other in (pickle.loads(pickle.dumps(q)), copyless.open("t-everywhere"), copyless.attach(copyless.handle(q)),
                  KINDS[kind](name="t-everywhere")):  # fmt: skip
        assert type(other) is type(q)
        q.put(1)
        assert other.get() == 1
    with pytest.raises(FileExistsError):
        copyless.Lock(name="t-everywhere")
    wrong = copyless.Queue if kind != "Queue" else copyless.SimpleQueue
    with pytest.raises(FileExistsError):
        wrong(name="t-everywhere")


def test_put_starts_no_thread():
    q = copyless.Queue()
    before = threading.active_count()
    q.put(1)
    assert threading.active_count() == before
    assert q.get() == 1


# ---- limits and waiting


@pytest.mark.parametrize("kind", ["Queue", "JoinableQueue", "redeliver"])
def test_bounded_by_items(kind):
    q = KINDS[kind](maxsize=2)
    q.put(1)
    q.put(2)
    assert q.full()
    with pytest.raises(queue.Full):
        q.put(3, block=False)
    with pytest.raises(queue.Full):
        q.put_nowait(3)
    start = time.monotonic()
    with pytest.raises(queue.Full):
        q.put(3, timeout=0.1)
    assert time.monotonic() - start >= 0.1
    assert q.get() == 1
    q.put(3, timeout=1)
    threading.Timer(0.1, q.get).start()
    q.put(4, timeout=20)
    assert q.qsize() == 2


def test_bounded_by_bytes():
    q = copyless.Queue(maxbytes=100_000)
    q.put(np.ones(10_000))
    with pytest.raises(queue.Full):
        q.put(np.ones(10_000), timeout=0.01)
    got = q.get()  # received: it does not count any more
    q.put(np.ones(10_000), timeout=1)
    q.get()
    q.put(np.ones(50_000))  # larger than the limit, into an empty queue
    assert len(q.get()) == 50_000
    assert len(got) == 10_000


def test_timeouts_are_never_early_and_waiting_is_cheap():
    q = copyless.Queue()
    for timeout in (0, 0.02, 0.15):
        start = time.monotonic()
        with pytest.raises(queue.Empty):
            q.get(timeout=timeout)
        assert timeout <= time.monotonic() - start < timeout + 5
    with pytest.raises(queue.Empty):
        q.get_nowait()
    before = time.process_time()
    with pytest.raises(queue.Empty):
        q.get(timeout=1)
    assert time.process_time() - before < 0.2


def test_timeouts_hold_while_others_are_killed(context):
    q = copyless.Queue()
    told = copyless.Semaphore(0)
    stop = time.monotonic() + 3

    def kill_others():
        while time.monotonic() < stop:
            process = context.Process(target=_get, args=(q, told))
            process.start()
            told.acquire(timeout=10)
            process.kill()
            process.join()

    killer = threading.Thread(target=kill_others)
    killer.start()
    while time.monotonic() < stop:
        start = time.monotonic()
        with pytest.raises(queue.Empty):
            q.get(timeout=0.1)
        assert 0.1 <= time.monotonic() - start < 2
    killer.join()


def test_control_c_leaves_the_queue_sound():
    for wait in (
        "q.get()",
        "q.put(2)",
        "[q.put(b'x' * 5_000_000, False) or q.get() or q.put(1) for _ in iter(int, 1)]",
    ):
        program = start_python(f"""
            import copyless
            q = copyless.Queue(maxsize=1)
            q.put(1)
            if {wait[2:5]!r} != 'put': q.get()
            print('up')
            try:
                {wait}
            except KeyboardInterrupt:
                while not q.empty(): q.get()
                q.put(7, timeout=1)
                print(q.get(timeout=1), q.qsize())
        """)
        program.stdout.readline()
        time.sleep(0.1)
        program.send_signal(signal.SIGINT)
        out, err = program.communicate(timeout=30)
        assert out == "7 0\n", err


@pytest.mark.parametrize("make", [lambda: copyless.Queue(2**31), lambda: copyless.Queue(maxbytes=-1),
                                  lambda: copyless.Queue(name="a/b"), lambda: copyless.Queue(persist=True),
                                  lambda: copyless.Queue().get_many(0),
                                  lambda: copyless.Queue().get(timeout=float("nan"))])  # fmt: skip
def test_bad_input_is_named(make):
    with pytest.raises(ValueError):
        make()


# ---- several items at once


@pytest.mark.parametrize("kind", KINDS)
def test_many_at_once(kind):
    q = KINDS[kind]()
    assert q.put_many(range(1000)) == 1000
    assert q.put_many([]) == 0
    got = []
    while len(got) < 1000:
        got += q.get_many(300)
    assert got == list(range(1000))
    with pytest.raises(queue.Empty):
        q.get_many(block=False)
    q.put_many([1, np.ones(5000), copyless.zeros(3), 2])
    got = []
    while len(got) < 4:
        got += q.get_many()
    assert got[0] == 1
    assert (got[1] == 1).all()
    assert got[3] == 2


def test_put_many_stops_at_the_limit():
    q = copyless.Queue(maxsize=3)
    assert q.put_many(range(5), timeout=0.05) == 3
    with pytest.raises(queue.Full):
        q.put_many([9], block=False)
    threading.Timer(0.1, lambda: [q.get() for _ in range(5)]).start()
    assert q.put_many(range(5), timeout=20) == 5


def _produce(q, me, n):
    for i in range(n):
        q.put((me, i))


def _consume(q, results):
    results.put(list(q))


def test_many_producers_and_consumers_keep_each_producers_order(context):
    q, results = copyless.Queue(maxsize=50), copyless.Queue()
    producers = [context.Process(target=_produce, args=(q, me, 2000)) for me in range(3)]
    consumers = [context.Process(target=_consume, args=(q, results)) for _ in range(2)]
    for process in producers + consumers:
        process.start()
    for process in producers:
        process.join()
    q.shutdown()
    lists = [results.get(timeout=30) for _ in consumers]
    for process in consumers:
        process.join()
    assert sorted(x for each in lists for x in each) == sorted((me, i) for me in range(3) for i in range(2000))
    for each in lists:
        for me in range(3):
            mine = [i for who, i in each if who == me]
            assert mine == sorted(mine)


# ---- joining


def test_join_waits_for_every_acknowledgement():
    q = copyless.JoinableQueue()
    q.join()
    q.put_many([1, 2])
    with pytest.raises(TimeoutError, match="2 items"):
        q.join(timeout=0.02)
    threading.Timer(0.1, lambda: [(q.get(), q.task_done()) for _ in range(2)]).start()
    q.join(timeout=20)
    with pytest.raises(ValueError, match="too many"):
        q.task_done()


def _take_and_die(q, told):
    q.get()
    told.release()
    time.sleep(100)


@pytest.mark.parametrize("redeliver", [False, True])
def test_items_that_died_with_their_consumer(context, redeliver):
    q, told = copyless.JoinableQueue(redeliver=redeliver), copyless.Semaphore(0)
    payload = np.arange(50_000)
    q.put({"job": payload})
    process = context.Process(target=_take_and_die, args=(q, told))
    process.start()
    told.acquire()
    process.kill()
    process.join()
    if not redeliver:
        with pytest.raises(copyless.OwnerDiedError, match="1 items"):
            q.join(timeout=30)
        assert q.stats().lost == 1
        q.join(timeout=1)
        return
    with q.lease(timeout=10) as item:
        np.testing.assert_array_equal(item["job"], payload)
    q.join(timeout=5)
    assert q.stats().leased == 0


def _scribble_and_die(q, told):
    for array in q.get():
        array[:] = -1
    told.release()
    time.sleep(100)


def test_what_is_handed_out_again_is_byte_equal(context):
    q, told = copyless.JoinableQueue(redeliver=True), copyless.Semaphore(0)
    arrays = [np.arange(10), np.arange(5000), np.arange(1_000_000)]
    q.put(arrays)
    for _ in range(3):
        process = context.Process(target=_scribble_and_die, args=(q, told))
        process.start()
        assert told.acquire(timeout=30)
        process.kill()
        process.join()
    for got, array in zip(q.get(timeout=10), arrays, strict=True):
        np.testing.assert_array_equal(got, array)


def test_leases_are_given_up_by_their_object():
    q = copyless.JoinableQueue(redeliver=True)
    q.put_many(["a", [1], [1]])
    first, second = q.get(), q.get()
    with pytest.raises(ValueError, match="very object"):
        q.task_done("other")
    q.task_done(second)
    with pytest.raises(ValueError, match="very object"):
        q.task_done(second)
    assert q.stats().leased == 1
    q.task_done(first)
    third = q.get()
    assert third == [1]
    q.task_done()
    with pytest.raises(ValueError, match="too many"):
        q.task_done()
    with pytest.raises(ZeroDivisionError):
        with q.lease(timeout=1) if q.put(5) is None else None:
            raise ZeroDivisionError
    assert q.stats().leased == 1
    q.task_done(5)
    q.join(timeout=1)


# ---- the end of a queue


@pytest.mark.parametrize("kind", KINDS)
def test_shutdown(kind):  # E12
    q = KINDS[kind]()
    q.put(1)
    q.shutdown()
    with pytest.raises(queues.ShutDown, match="shut down"):
        q.put(2)
    assert q.get() == 1
    with pytest.raises(queues.ShutDown):
        q.get()
    if hasattr(queue, "ShutDown"):
        assert issubclass(queues.ShutDown, queue.ShutDown)
    now = KINDS[kind]()
    now.put_many([1, 2, np.ones(5000), copyless.zeros(4)])
    now.shutdown(immediate=True)
    with pytest.raises(queues.ShutDown):
        now.get()
    assert now.qsize() == 0
    if kind in ("JoinableQueue", "redeliver"):
        now.join(timeout=1)


def test_shutdown_wakes_everybody():
    full, empty, woken = copyless.Queue(maxsize=1), copyless.Queue(), []
    full.put(1)

    def wait(what):
        try:
            what()
        except queues.ShutDown:
            woken.append(1)

    threads = [threading.Thread(target=wait, args=(what,)) for what in (lambda: full.put(2), empty.get) * 2]
    for thread in threads:
        thread.start()
    time.sleep(0.1)
    full.shutdown()
    empty.shutdown()
    for thread in threads:
        thread.join(20)
    assert len(woken) == 4


def test_close_is_this_processs_own(context):
    q = copyless.Queue()
    with pytest.raises(AssertionError, match="not closed"):
        q.join_thread()
    other = pickle.loads(pickle.dumps(q))
    q.close()
    q.close()
    q.join_thread()
    q.cancel_join_thread()
    for use in (lambda: q.put(1), q.get, q.get_nowait, lambda: q.put_many([1]), q.get_many):
        with pytest.raises(ValueError, match="is closed"):
            use()
    assert q.empty()  # closed, and never used
    other.put(1)
    assert other.get() == 1
    other.close()
    with pytest.raises(OSError, match="is closed"):
        other.empty()
    waiting = copyless.Queue()
    threading.Timer(0.1, waiting.close).start()
    with pytest.raises(copyless.ClosedError):
        waiting.get()


def _put_and_close(q, n):
    for i in range(n):
        q.put(i)
    q.close()
    time.sleep(1)


def test_iterating_ends_when_every_producer_has_closed(context):
    q = copyless.Queue()
    processes = [context.Process(target=_put_and_close, args=(q, 10)) for _ in range(2)]
    for process in processes:
        process.start()
    assert sorted(q) == sorted(list(range(10)) * 2)
    for process in processes:
        process.join()


# ---- names, stats, repr


def test_unrelated_programs_and_persistence():
    python("import copyless; copyless.Queue(name='t-q', persist=True).put_many([1, 2])")
    q = copyless.Queue(name="t-q")
    assert q.get_many() == [1, 2]
    del q
    copyless.unlink("t-q")
    python("import copyless; copyless.Queue(name='t-q').put(1)")
    assert copyless.Queue(name="t-q").empty()


def test_stats_and_repr():
    q = copyless.Queue(maxsize=5, name="t-stats")
    q.put(np.ones(1000))
    q.put(2)
    q.get()
    stats = q.stats()
    assert (stats.put, stats.taken, stats.size, stats.spilled) == (2, 1, 1, 0)
    assert 0 < stats.bytes < 100
    assert repr(q).startswith("<Queue 't-stats' 1 of 5 items")
    q.shutdown()
    assert "shut down" in repr(q)


def test_a_queue_of_a_type():
    kind = TypeVar("kind")

    class Own(copyless.Queue[kind], Generic[kind]):
        pass

    for own in (copyless.Queue[int](), copyless.Queue[kind][int](), Own[int]()):
        own.put(1)
        assert own.get() == 1
    assert repr(copyless.Queue[int]) == "copyless.queues.Queue[int]"


# ---- full memory


@pytest.fixture
def small(tmp_path):
    """A storage directory with 4 MiB, if we may mount one."""
    place = tmp_path / "small"
    place.mkdir()
    spill = tmp_path / "spill"
    spill.mkdir()
    done = subprocess.run(
        ["unshare", "-rm", "mount", "-t", "tmpfs", "-o", "size=4m", "none", str(place)], capture_output=True
    )
    if done.returncode:
        pytest.skip("user namespaces are off")
    return place, spill


FULL = """
import sys, os, warnings
import numpy as np, multiprocessing
import copyless
def send(q, n):
    for i in range(n):
        q.put(np.full(1 << 20, i))
if __name__ == "__main__":
    warnings.simplefilter("always")
    q = copyless.Queue()
    process = multiprocessing.get_context("fork").Process(target=send, args=(q, 5))
    process.start(); process.join()
    assert q.qsize() == 5, q
    for i in range(5):
        assert (q.get() == i).all()
    for i in range(100_000):
        q.put(i)
    assert q.put_many(["x" * 200] * 50_000) == 50_000
    for i in range(100_000):
        assert q.get() == i
    n = 0
    while n < 50_000: n += len(q.get_many())
    print(q.stats().spilled > 0, len(os.listdir(os.environ["COPYLESS_SPILL"])))
    del q
    import gc; gc.collect()
    copyless.trim()
    print([[f for f in os.listdir(os.path.join(os.environ["COPYLESS_SPILL"], d)) if f != "home.4"] for d in os.listdir(os.environ["COPYLESS_SPILL"])])
"""  # noqa: E501


def test_on_a_tiny_mount_everything_goes_through(small, tmp_path):
    place, spill = small
    script = tmp_path / "full.py"
    script.write_text(FULL)
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", 'mount -t tmpfs -o size=4m none "$1" && exec "$2" "$3"', "sh", str(place),
         sys.executable, str(script)],
        capture_output=True, text=True, timeout=200,
        env={**os.environ, "COPYLESS_DIR": str(place), "COPYLESS_SPILL": str(spill)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["True 1", "[[]]"]
    assert done.stderr.count("shared memory is full") == 2, done.stderr  # once in each process
    assert os.listdir(spill) == []


def test_without_a_place_to_spill_the_error_says_what_to_do(small):
    place, _ = small
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", 'mount -t tmpfs -o size=4m none "$1" && exec "$2" -c "$3"', "sh", str(place),
         sys.executable, "import copyless, numpy as np\nq = copyless.Queue()\n"
         "try: q.put(np.ones(1 << 20))\n"
         "except copyless.OutOfSharedMemory as e: print(q.qsize(), 'COPYLESS_DIR' in str(e))\n"
         "q.put(1); print(q.get())"],
        capture_output=True, text=True, timeout=100,
        env={**os.environ, "COPYLESS_DIR": str(place), "COPYLESS_SPILL": ""},
    )  # fmt: skip
    assert done.stdout == "0 True\n1\n", done.stderr


# ---- fork, threads, event loops


def test_a_queue_used_before_a_fork_is_used_on_both_sides():
    q, back = copyless.Queue(), copyless.Queue()
    q.put(1)
    assert q.get() == 1
    child = os.fork()
    if child == 0:
        for item in iter(q.get, None):
            back.put((item, np.ones(3000)))
        os._exit(0)
    for i in range(3000):
        q.put(i)
    q.put(None)
    for i in range(3000):
        assert back.get(timeout=10)[0] == i
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_forks_while_threads_are_in_the_queue():
    q = copyless.Queue()
    stop = threading.Event()

    def use():
        while not stop.is_set():
            q.put(b"x" * 3000)
            q.get()

    threads = [threading.Thread(target=use) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(40):
        child = os.fork()
        if child == 0:
            q.put("mine")
            q.get(timeout=20)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    stop.set()
    for thread in threads:
        thread.join()
    assert q.empty()


def test_a_thousand_tasks_get_with_no_thread_each():
    async def main():
        q = copyless.Queue()
        tasks = [asyncio.ensure_future(q.aget()) for _ in range(1000)]
        await asyncio.sleep(0.2)
        assert threading.active_count() < 10
        for task in tasks[::2]:
            task.cancel()
        await asyncio.sleep(0)
        for i in range(500):
            await q.aput(i)
        done = await asyncio.wait_for(asyncio.gather(*tasks[1::2]), 60)
        assert sorted(done) == list(range(500))
        assert q.empty()
        with pytest.raises(queue.Empty):
            await q.aget(timeout=0.05)

    asyncio.run(main())


def test_a_cancelled_get_loses_no_item(context):
    async def main(q):
        got = []
        while len(got) < 400:
            task = asyncio.ensure_future(q.aget())
            await asyncio.sleep(0.0003)
            if task.done() or not task.cancel():
                got.append(await task)
            else:
                try:
                    got.append(await task)
                except asyncio.CancelledError:
                    pass
        return got

    q = copyless.Queue()
    process = context.Process(target=_produce_slowly, args=(q, 400))
    process.start()
    assert asyncio.run(asyncio.wait_for(main(q), 100)) == list(range(400))
    process.join()


def _produce_slowly(q, n):
    for i in range(n):
        q.put(i)
        time.sleep(0.0005)


def test_async_put_waits_for_room_and_iteration_ends():
    async def main():
        q = copyless.Queue(maxsize=2)

        async def produce():
            for i in range(100):
                await q.aput(i)
            q.shutdown()

        producer = asyncio.ensure_future(produce())
        assert [item async for item in q] == list(range(100))
        await producer
        full = copyless.Queue(maxsize=1)
        await full.aput(1)
        with pytest.raises(queue.Full):
            await full.aput(2, timeout=0.05)
        with pytest.raises(queues.ShutDown):
            await q.aput(1)

    asyncio.run(main())


def test_the_queue_of_a_killed_family_is_taken_back():
    program = start_python("""
        import copyless, numpy as np
        q = copyless.Queue()
        for i in range(100): q.put([np.ones(5000), copyless.zeros(100)])
        print('up'); input()
    """)
    program.stdout.readline()
    program.kill()
    program.communicate()
    until(lambda: copyless.reap() is not None)


def test_a_thread_that_takes_arrays_while_another_forks_does_not_stop_both():
    """A fork holds the store's tables and needs the GIL: a thread with the GIL must not wait for the tables."""
    done = python(
        """
        import os, threading
        import numpy as np
        import copyless
        queue, array, stop = copyless.Queue(), np.ones(8192, "u1"), threading.Event()

        def pass_arrays():
            while not stop.is_set():
                queue.put(array)
                assert queue.get()[-1] == 1

        threads = [threading.Thread(target=pass_arrays) for _ in range(2)]
        for thread in threads:
            thread.start()
        for _ in range(400):
            child = os.fork()
            if child == 0:
                os._exit(0)
            os.waitpid(child, 0)
        stop.set()
        for thread in threads:
            thread.join()
        print("both went on")
        """,
        timeout=60,
    )
    assert "both went on" in done.stdout


@pytest.mark.parametrize("redeliver", [False, True])
def test_a_shutdown_whose_caller_was_killed_in_it_still_ends(redeliver):
    """The state after a kill between the mark and the drop (each step: tests/native/test_queue.c)."""
    import ctypes

    def words(q):
        return (ctypes.c_uint32 * 256).from_address(q._address[0])

    example = copyless.JoinableQueue()
    before = list(words(example))
    example.shutdown()
    (mark,) = [at for at, (a, b) in enumerate(zip(before, words(example), strict=True)) if a != b]
    for look in ("join", "get"):
        q = copyless.JoinableQueue(redeliver=redeliver)
        q.put_many([1, "two", bytes(20000)])
        words(q)[mark] = 2
        if look == "get":
            with pytest.raises(copyless.queues.ShutDown):
                q.get(timeout=5)
        q.join(5)
        assert q.qsize() == 0
        with pytest.raises(copyless.queues.ShutDown):
            q.get()


class Bad:
    """Cannot be unpickled."""

    def __init__(self, number):
        self.number = number

    def __reduce__(self):
        return cannot, (self.number,)


def cannot(number):
    raise ZeroDivisionError(f"bad {number}")


def test_get_many_loses_no_good_item_to_a_bad_one():
    q = copyless.Queue()
    for item in (1, Bad(1), 2, Bad(2), 3):
        q.put(item)
    assert q.get_many() == [1, 2, 3]
    with pytest.raises(ZeroDivisionError, match="bad 1"):
        q.get(timeout=5)
    with pytest.raises(ZeroDivisionError, match="bad 2"):
        q.get_many(timeout=5)
    q.put(Bad(3))
    with pytest.raises(ZeroDivisionError, match="bad 3"):
        q.get_many()
    with pytest.raises(copyless.queues.Empty):
        q.get_many(block=False)


def test_get_many_takes_nothing_that_it_has_no_memory_for():
    """Each allocation in the call fails once: every item is returned, stays in the queue, or is named by an error."""
    memory = pytest.importorskip("_testcapi")
    for n in range(40):
        q = copyless.Queue()
        for number in range(5):
            q.put("x" * 300 + str(number))
        got, told, failed = [], 0, False
        try:
            memory.set_nomemory(n, n + 1)
            try:
                got = q.get_many(block=False)
            finally:
                memory.remove_mem_hooks()
        except MemoryError:
            failed = True
        lie = q.qsize()
        while len(got) + told < 5:
            try:
                got += q.get_many(block=False)
            except MemoryError:
                told += 1
            except queue.Empty:
                break
        assert got == sorted(got)
        assert lie in (0, 5)
        if not failed:
            assert len(got) + told == 5
        elif lie:
            assert len(got) == 5


def interrupted_once(n):
    if interrupted_once.at == n:
        interrupted_once.at = None
        raise KeyboardInterrupt
    return n


class Interrupted:
    def __init__(self, n):
        self.n = n

    def __reduce__(self):
        return interrupted_once, (self.n,)


@pytest.mark.parametrize("how", ["get", "get_many", "two"])
def test_ctrl_c_breaks_get_many_off_at_once_and_loses_nothing(how):
    q = copyless.Queue()
    q.put_many([0, Interrupted(1), Bad(1), Interrupted(2), 3])
    interrupted_once.at = 2
    with pytest.raises(KeyboardInterrupt):
        q.get_many()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            q.get_nowait()
        except copyless.queues.Empty:
            code = 2
        except ZeroDivisionError:
            code = 3
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 2
    if how == "get":
        assert [q.get(timeout=5) for _ in range(4)] == [0, 1, 2, 3]
    elif how == "get_many":
        assert q.get_many() == [0, 1, 2, 3]
    else:
        assert (q.get_many(3), q.get_many(3)) == ([0, 1, 2], [3])
    with pytest.raises(ZeroDivisionError):
        q.get(timeout=5)
    with pytest.raises(copyless.queues.Empty):
        q.get_nowait()


@pytest.mark.parametrize("make", [copyless.SimpleQueue, copyless.Queue, copyless.JoinableQueue])
def test_a_forked_child_hears_of_no_bad_item_that_its_parent_took(make):
    q = make()
    q.put_many([1, Bad(1)])
    assert q.get_many() == [1]
    q.put(2)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = 0 if q.get() == 2 else 2
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0
    with pytest.raises(ZeroDivisionError, match="bad 1"):
        q.get()


def test_an_item_that_cannot_be_unpickled_is_set_aside():
    q = copyless.JoinableQueue(redeliver=True, max_deliveries=3)
    q.put(Bad(7))
    q.put("good")
    got, errors = [], 0
    while len(got) < 1 or errors < 3:
        try:
            got.append(q.get(timeout=10))
        except ZeroDivisionError:
            errors += 1
        else:
            q.task_done(got[-1])
    assert (got, errors) == (["good"], 3)
    q.join(10)
    (letter,) = q.dead_letters()
    assert (letter.sequence, letter.deliveries) == (0, 3)
    with pytest.raises(ZeroDivisionError):
        letter.load()
    assert letter.discard()
    assert not letter.discard()
    assert q.dead_letters() == []
    assert q.stats().leased == 0


def test_a_queue_full_of_dead_letters_says_so_and_goes_on_when_one_is_discarded():
    q = copyless.JoinableQueue(redeliver=True, max_deliveries=1)
    for i in range(1024):
        q.put(i)
        q.nack(q.get(timeout=10))
    q.put("next")
    with pytest.raises(copyless.LimitExceededError, match="discard dead letters"):
        q.get(timeout=10)
    assert (q.stats().leased, q.stats().size) == (0, 1)
    letters = q.dead_letters()
    assert [letter.sequence for letter in letters] == list(range(1024))
    assert letters[3].discard()
    assert q.get(timeout=10) == "next"


def test_without_a_limit_a_bad_item_is_delivered_again_and_again():
    q = copyless.JoinableQueue(redeliver=True)
    q.put(Bad(1))
    for _ in range(20):
        with pytest.raises(ZeroDivisionError):
            q.get(timeout=10)
    assert q.dead_letters() == []
    with pytest.raises(TimeoutError):
        q.join(0.01)


def test_deaths_and_nacks_count_as_deliveries():
    shared = copyless.ones(300)
    q = copyless.JoinableQueue(redeliver=True, max_deliveries=3)
    q.put({"killer": shared, "plain": b"x" * 5000})
    for _ in range(2):
        pid = os.fork()
        if pid == 0:
            q.get(timeout=10)
            os.kill(os.getpid(), signal.SIGKILL)
        os.waitpid(pid, 0)
    q.nack(q.get(timeout=10))
    q.join(10)  # no process gets any more
    for _ in range(2):
        (letter,) = q.dead_letters()
        assert letter.load()["plain"] == b"x" * 5000
        assert letter.load()["killer"].sum() == 300
    assert letter.discard()
    item = ["job"]
    q.put(item)
    with pytest.raises(ValueError, match="nack"):
        q.nack(item)
    got = q.get(timeout=10)
    q.nack(got)
    with pytest.raises(ValueError, match="nack"):
        q.nack(got)
    got = q.get(timeout=10)
    q.task_done(got)
    q.join(10)
    assert q.dead_letters() == []


def test_join_sets_aside_what_the_last_consumer_died_with():
    q = copyless.JoinableQueue(redeliver=True, max_deliveries=1)
    q.put("job")
    pid = os.fork()
    if pid == 0:
        q.get(timeout=10)
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    q.join(10)
    assert [letter.load() for letter in q.dead_letters()] == ["job"]


def test_a_shutdown_at_once_keeps_the_dead_letter_that_nobody_has_seen_yet():
    q = copyless.JoinableQueue(redeliver=True, max_deliveries=1)
    q.put("poison")
    pid = os.fork()
    if pid == 0:
        q.get(timeout=10)
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    q.put("never taken")
    q.shutdown(immediate=True)
    q.join(10)
    assert [letter.load() for letter in q.dead_letters()] == ["poison"]


def test_who_waits_is_woken_by_what_is_given_back():
    q = copyless.JoinableQueue(redeliver=True)
    given, seconds = 0.0, []

    def wait_for_it():
        q.task_done(q.get(timeout=60))
        seconds.append(time.monotonic() - given)

    for n in range(20):
        q.put(("item", n))
        item = q.get(timeout=10)
        waiter = threading.Thread(target=wait_for_it)
        waiter.start()
        time.sleep(0.01)  # asleep by now, most times
        given = time.monotonic()
        q.nack(item)
        waiter.join()
    assert len(seconds) == 20
    assert min(seconds[1:]) < 0.04  # a sleeper that is not woken checks again only after 50 ms


def test_max_deliveries_is_refused_where_it_means_nothing():
    with pytest.raises(ValueError, match="redeliver"):
        copyless.JoinableQueue(max_deliveries=3)
    with pytest.raises(ValueError, match="1 or more"):
        copyless.JoinableQueue(redeliver=True, max_deliveries=0)
    with pytest.raises(TypeError, match="must be an integer"):
        copyless.JoinableQueue(redeliver=True, max_deliveries="3")
    with pytest.raises(ValueError, match="redeliver"):
        copyless.JoinableQueue().nack(1)


def test_a_name_of_a_queue_of_another_class_tells_which_it_is():
    q = copyless.JoinableQueue(name="t-kinds", redeliver=True)
    with pytest.raises(FileExistsError, match=r"is a JoinableQueue\(redeliver=True\): use the same class"):
        copyless.JoinableQueue(name="t-kinds")
    with pytest.raises(FileExistsError, match="is a JoinableQueue"):
        copyless.Queue(name="t-kinds")
    q.put(1)
    assert q.get() == 1
    plain = copyless.Queue(name="t-plain")
    with pytest.raises(FileExistsError, match=r"is a Queue: use the same class"):
        copyless.JoinableQueue(name=plain.name)
