"""Results of the tasks of a chunk: many in one message, none lost or doubled by a death, none late behind another."""

import gc
import multiprocessing
import os
import pickle
import signal
import threading
import time
import weakref

import numpy as np
import pytest

import copyless
from copyless import Pool, ProcessPoolExecutor, WorkerDiedError
from copyless._transfer.retry import send_when_room
from copyless._transfer.sealed import sealed_error, unseal
from copyless._workers import worker as worker_module
from copyless._workers._answers import HEAD_BYTES, Log
from copyless._workers.protocol import READY
from copyless._workers.worker import Worker
from copyless._workers.worker_pool import WorkerPool
from copyless.errors import (
    ClosedError,
    LimitExceededError,
    OutOfSharedMemory,
    RegistryBusyError,
    WrongProcessError,
)
from copyless.memory import Memory
from copyless.pool import IMapIterator
from tests.conftest import until

FORK = multiprocessing.get_context("fork")
HOWS = ["imap", "imap_unordered", "map_async"]


def results_of(pool, how, function, items, chunksize):
    """The result of each task, or its exception."""
    if how == "map_async":
        return pool.map_async(function, items, chunksize).get(60)
    results, got = getattr(pool, how)(function, items, chunksize), []
    while True:
        try:
            got.append(results.next(60))
        except StopIteration:
            return got
        except Exception as error:
            got.append(error)


def slow_tenth(n):
    if n % 10 == 0:
        time.sleep(0.0005)
    return n


def many_kinds(n):
    match n % 8:
        case 0:
            return n
        case 1:
            return "x" * (n * 50)
        case 2:
            return (n, [n], {"n": n})
        case 3:
            return np.full(n, n)
        case 4:
            return b"y" * n
        case 5:
            return "\ud800" if n % 16 == 5 else 2**70 + n
        case 6:
            return None if n % 16 == 6 else "z" * 20000
        case _:
            return n / 2


@pytest.mark.parametrize("how", HOWS)
def test_answers_of_every_kind_keep_their_places(how, context):
    with Pool(1, context=context) as pool:
        got = results_of(pool, how, many_kinds, range(400), 400 if how == "imap_unordered" else 100)
        assert len(got) == 400
        for n, value in enumerate(got):
            expected = many_kinds(n)
            assert type(value) is type(expected)
            assert np.array_equal(value, expected) if isinstance(value, np.ndarray) else value == expected


@pytest.mark.parametrize("how", ["imap", "imap_unordered"])
def test_errors_in_the_middle_of_a_chunk_keep_their_places(how):
    def some_raise(n):
        if n % 10 == 3:
            raise ValueError(n)
        return (lambda: 0).__code__ if n % 10 == 5 else n

    with Pool(1, context=FORK) as pool:
        got = results_of(pool, how, some_raise, range(100), 40)
        for n, value in enumerate(got):
            if n % 10 == 3:
                assert repr(value) == f"ValueError({n})"
            elif n % 10 == 5:
                assert isinstance(value, (multiprocessing.pool.MaybeEncodingError, TypeError)) or hasattr(
                    value, "co_code"
                )
            else:
                assert value == n
        assert len(got) == 100
        with pytest.raises(ValueError, match="^3$"):
            pool.map(some_raise, range(100), 40)


@pytest.mark.parametrize("how", ["imap", "imap_unordered"])
@pytest.mark.parametrize("retries", [0, 1])
def test_a_worker_killed_in_a_chunk_takes_no_answer_with_it(how, retries):
    runs = copyless.zeros(300, "i4")

    def some_die(n):
        runs[n] += 1
        if n % 20 == 7 and runs[n] == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return n if n % 3 else (n,)

    with Pool(2, context=FORK, retries=retries) as pool:
        got = results_of(pool, how, some_die, range(300), 100)
    died = [value for value in got if isinstance(value, WorkerDiedError)]
    assert len(died) == (0 if retries else 15)
    expected = [n if n % 3 else (n,) for n in range(300) if retries or n % 20 != 7]
    values = [value for value in got if not isinstance(value, WorkerDiedError)]
    assert sorted(values, key=str) == sorted(expected, key=str)
    if how == "imap":
        assert values == expected
    # A task that was answered before its worker died did not run again, except, with retries, the last one that had
    # ended.
    assert set(runs.tolist()) <= ({1, 2} if retries else {1})
    assert (np.asarray(runs)[7::20] == (2 if retries else 1)).all()


@pytest.mark.parametrize("how", ["imap", "imap_unordered"])
def test_answers_do_not_wait_for_a_long_task_behind_them(how):
    may_end = copyless.Event()

    def one_waits(n):
        if n == 5:
            assert may_end.wait(60)
        return n

    with Pool(1, context=FORK) as pool:
        pool.map(one_waits, range(100, 500), 200)  # the worker is in the middle of the chunk
        results = getattr(pool, how)(one_waits, range(10), 10)
        assert [results.next(30) for _ in range(5)] == list(range(5))
        may_end.set()
        assert list(results) == list(range(5, 10))


def test_answers_of_a_worker_that_is_killed_in_a_long_task_are_heard_when_it_breaks_the_pool(tmp_path):
    gone = tmp_path / "gone"

    def begin():
        if gone.exists():
            raise RuntimeError("no licence")

    def last_dies(n):
        if n == 9:
            gone.write_text("")
            os.kill(os.getpid(), signal.SIGKILL)
        return n

    with Pool(1, begin, context=FORK) as pool:
        results = pool.imap(last_dies, range(10), 10)
        assert [results.next(60) for _ in range(9)] == list(range(9))
        with pytest.raises(WorkerDiedError):
            results.next(60)


def test_an_answer_that_was_written_down_is_heard_before_the_death_behind_it(tmp_path, monkeypatch):
    """Killed after the result and before the next task was marked. The parent is too busy to read the log first."""
    killed, went_on, me = tmp_path / "killed", copyless.Event(), os.getpid()
    send, populate = Worker._send, WorkerPool.populate

    def send_or_die(*args):
        if os.getpid() != me and not killed.exists():
            killed.write_text("")
            os.kill(os.getpid(), signal.SIGKILL)
        send(*args)

    def start_slowly(pool, wanted=None):
        if killed.exists():
            assert went_on.wait(60)
        populate(pool, wanted)

    def task(n):
        if n == 0:
            time.sleep(0.3)  # until the parent checks less often, and the result must be sent at once
        else:
            went_on.set()
        return n * n

    monkeypatch.setattr(Worker, "_send", send_or_die)
    monkeypatch.setattr(WorkerPool, "populate", start_slowly)
    with Pool(2, context=FORK) as pool:
        assert pool.map(task, range(4), 4) == [0, 1, 4, 9]
    assert killed.exists()


def test_the_chunks_before_an_error_of_the_input_come_before_it():
    def items():
        yield from range(25)
        raise ValueError("midway")

    with Pool(2, context=FORK) as pool:
        for how in ("imap", "imap_unordered"):
            results, got = getattr(pool, how)(abs, items(), 10), []
            with pytest.raises(ValueError, match="midway"):
                for value in results:
                    got.append(value)
            assert sorted(got) == list(range(20))  # as in the standard library: the chunk of the error is not run


@pytest.mark.parametrize("bad", [0, 1, 700, 999])
def test_a_task_that_cannot_be_pickled_comes_after_the_chunks_before_it(bad):
    def refuse():
        raise ValueError("no pickle")

    class Bad:
        def __reduce__(self):
            refuse()

    with Pool(2, context=FORK) as pool:
        for how in ("imap", "imap_unordered"):
            items = [*range(bad), Bad(), *range(bad + 1, 1000)]
            results, got = getattr(pool, how)(abs, items, 7), []
            with pytest.raises(ValueError, match="no pickle"):
                for value in results:
                    got.append(value)
            assert sorted(got) == list(range(bad // 7 * 7))
            with pytest.raises(StopIteration):
                results.next(60)


def test_a_forked_child_gets_none_of_the_results_at_hand():
    with Pool(1, context=FORK) as pool:
        results = pool.imap(abs, range(100), 50)
        assert results.next(60) == 0
        pid = os.fork()
        if pid == 0:
            try:
                next(results)
            except WrongProcessError:
                os._exit(0)
            os._exit(1)
        assert os.waitpid(pid, 0)[1] == 0
        assert list(results) == list(range(1, 100))


@pytest.mark.parametrize("ordered", [True, False])
def test_threads_that_wait_for_one_chunk_share_it_and_all_hear_of_the_end(ordered):
    results, got = IMapIterator(None, ordered), []

    def take():
        got.append(next(results, "end"))

    def begin():
        threads = [threading.Thread(target=take, daemon=True) for _ in range(3)]
        for thread in threads:
            thread.start()
        until(lambda: len(results._change._waiters) == 3)
        return threads

    threads = begin()
    if ordered:
        results._deliver_many(4, [4, 5, 6])
    results._deliver_many(0, [0, 1, 2, 3])
    for thread in threads:
        thread.join(60)
    assert sorted(got) == [0, 1, 2]
    assert [results.next(0) for _ in range(1 if not ordered else 4)] == [3, 4, 5, 6][: 1 if not ordered else 4]
    threads = begin()
    results._ends(7 if ordered else 4)
    for thread in threads:
        thread.join(60)
    assert got[3:] == ["end"] * 3


@pytest.mark.parametrize("ordered", [True, False])
def test_threads_that_wait_for_the_last_results_all_hear_of_the_end(ordered):
    results, got = IMapIterator(None, ordered), []

    def take():
        got.extend(results)

    threads = [threading.Thread(target=take, daemon=True) for _ in range(4)]
    results._ends(3)  # the input was read long before its results exist
    for thread in threads:
        thread.start()
    until(lambda: len(results._change._waiters) == 4)
    results._deliver_many(0, [0, 1, 2])
    for thread in threads:
        thread.join(10)
    assert sorted(got) == [0, 1, 2]
    assert not any(thread.is_alive() for thread in threads)


@pytest.mark.parametrize("how", ["imap", "imap_unordered"])
def test_threads_that_iterate_together_lose_nothing(how):
    with Pool(2, context=FORK) as pool:
        results, got = getattr(pool, how)(slow_tenth, range(500), 10), []

        def take():
            for value in results:
                got.append(value)
                time.sleep(0.0001)

        threads = [threading.Thread(target=take, daemon=True) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert sorted(got) == list(range(500))
        assert not any(thread.is_alive() for thread in threads)


def test_a_result_that_was_taken_is_kept_by_nobody():
    class Kept:
        pass

    with Pool(1, context=FORK) as pool:
        results = pool.imap(lambda n: Kept(), range(20), 10)
        first = weakref.ref(results.next(60))
        results.next(60)
        gc.collect()
        assert first() is None


@pytest.mark.parametrize("chunksize", [1, 5])
def test_the_input_is_read_no_further_ahead_than_the_bound(chunksize):
    read, taken, ahead = [0], [0], []

    def items():
        for n in range(200):
            read[0] += 1
            ahead.append(read[0] - taken[0])
            yield n

    with Pool(2, context=FORK) as pool:
        for value in pool.imap(abs, items(), chunksize, buffersize=20):
            assert value == taken[0]
            taken[0] += 1
        assert taken[0] == 200
        # One result may be in transit to the caller while the next task is read.
        assert max(ahead) <= 21


def test_a_bar_counts_every_task_of_a_chunk(capfd):
    with Pool(2, context=FORK) as pool:
        for how in ("map", "imap", "imap_unordered"):
            results = getattr(pool, how)(abs, range(1000), 100, progress=True)
            bar = results._bar if how != "map" else None
            assert sorted(results) == list(range(1000))
            assert bar is None or bar._count == 1000


def test_a_reader_of_a_log_sees_what_was_written_or_nothing():
    memory = copyless.zeros(8192 + 64, "u1")
    block = Memory.frombuffer(memory)
    pid = os.fork()
    if pid == 0:
        log, number = Log(block, 64, 8192, 3600), 0
        while True:
            number += 1
            log.begin(number, number * 7)
            log.run(lambda n, number=number: number * 1000000 + n, 1, range(300), 0, number % 300, 1, 0)
    try:
        log, seen = Log(block, 64, 8192, 3600), set()
        deadline = time.monotonic() + 60
        while len(seen) < 50 and time.monotonic() < deadline:
            found = log.read()
            if found is None:
                continue
            number, first, count, mixed, data = found
            values = pickle.loads(data)
            assert (mixed, first) == (False, number * 7)
            assert len(values) >= count
            assert values == [number * 1000000 + n for n in range(len(values))]
            seen.add(number)
        assert len(seen) >= 50
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_a_log_takes_what_has_room_and_refuses_the_rest():
    block = Memory.frombuffer(copyless.zeros(64 + HEAD_BYTES + 256, "u1"))
    log = Log(block, 64, HEAD_BYTES + 256, 3600)
    log.begin(1, 0)
    taken = 0
    while log.add_sealed(b"0123456789"):
        taken += 1
    assert 5 < taken < 26
    assert (log.count, log.mixed) == (taken, True)
    assert not log.add_sealed(b"x" * 300)
    number, first, count, mixed, data = log.read()
    assert (number, first, count, mixed) == (1, 0, taken, True)
    assert pickle.loads(data) == [(b"0123456789",)] * taken
    with pytest.raises(ValueError):
        Log(block, 64, 8192, 1)
    with pytest.raises(IndexError):
        log.run(abs, 1, [1], 0, 1, 8, 0)


# ---- results that cannot be sent, or not unpickled in the parent


def boom(error):
    raise error


class Unsendable:
    """Has neither a pickle nor a repr."""

    def __init__(self, error):
        self.error = error

    def __reduce__(self):
        raise self.error

    def __repr__(self):
        raise self.error


class Unloadable:
    """Can be unpickled only in the process that pickled it."""

    def __init__(self, error):
        self.error = error

    def __reduce__(self):
        return load, (self.error, os.getpid())


def load(error, maker):
    if os.getpid() != maker:
        raise error
    return Unloadable(error)


class UnsendableError(Unsendable, Exception):
    pass


class UnloadableError(Unloadable, Exception):
    pass


def raises(kind, error):
    raise kind(error)


def takes(_):
    return "taken"


@pytest.mark.parametrize(
    "error_type",
    [ValueError, MemoryError, SystemExit, KeyboardInterrupt, GeneratorExit, StopIteration, ClosedError, OutOfSharedMemory, RegistryBusyError,  # noqa: E501
     EOFError, pickle.PicklingError, RecursionError],
)  # fmt: skip
@pytest.mark.parametrize("kind", [Pool, ProcessPoolExecutor])
def test_what_cannot_travel_fails_its_task_and_neither_worker_nor_collector(kind, error_type):
    error = error_type(28, "mine") if error_type is OutOfSharedMemory else error_type("mine")
    made = kind(1, context=FORK) if kind is Pool else kind(1, FORK)

    def run(function, *args):
        if kind is Pool:
            return made.apply_async(function, args).get(60)
        return made.submit(function, *args).result(60)

    try:
        worker = run(os.getpid)
        for call in (
            lambda: run(Unsendable, error),
            lambda: run(Unloadable, error),
            lambda: run(raises, UnsendableError, error),
            lambda: run(raises, UnloadableError, error),
            lambda: run(takes, Unloadable(error)),
        ):
            with pytest.raises(BaseException) as caught:
                call()
            assert not isinstance(caught.value, WorkerDiedError | multiprocessing.TimeoutError)
            assert run(os.getpid) == worker
        with pytest.raises(error_type):
            run(takes, Unsendable(error))  # here, in the process that submits
        if kind is Pool:
            for made_by in (Unsendable, Unloadable):
                kinds = results_of_any(made.imap(lambda n, by=made_by: by(error) if n == 5 else n, range(10), 10))
                assert kinds == [*range(5), "error", *range(6, 10)]
        assert run(os.getpid) == worker
    finally:
        if kind is Pool:
            made.terminate()
            made.join()
        else:
            made.shutdown()


def results_of_any(results):
    got = []
    while len(got) < 10:
        try:
            got.append(results.next(60))
        except (WorkerDiedError, multiprocessing.TimeoutError):
            raise
        except BaseException:
            got.append("error")
    with pytest.raises(StopIteration):
        results.next(60)
    return got


@pytest.mark.parametrize(
    "error",
    [MemoryError("no room"), OutOfSharedMemory(28, "no room"), RegistryBusyError("busy"), OSError(24, "no descriptor"), LimitExceededError("full")],  # noqa: E501
    ids=lambda error: type(error).__name__,
)  # fmt: skip
@pytest.mark.parametrize("often", [1, 1000000])
def test_a_result_that_finds_no_room_fails_its_task_and_not_its_worker(error, often, monkeypatch):
    attach = worker_module.attach

    class Narrow:
        """The queue of results, which refuses some."""

        def __init__(self, queue):
            self.queue, self.refused = queue, 0

        def put(self, item):
            if type(item) is tuple and item[0] and item[2] != READY and must_refuse[0] and self.refused < often:
                self.refused += 1
                raise error
            self.queue.put(item)

    must_refuse = copyless.zeros(1, "i4")
    monkeypatch.setattr(
        worker_module,
        "attach",
        lambda name: Narrow(found) if type(found := attach(name)) is copyless.SimpleQueue else found,
    )

    def refused(n):
        must_refuse[0] = 1
        return np.zeros(10000)

    def accepted(n):
        must_refuse[0] = 0
        return os.getpid()

    with Pool(1, context=FORK) as pool:
        worker = pool.apply(accepted, (0,))
        with pytest.raises(type(error) if often == 1 else OutOfSharedMemory):
            pool.apply_async(refused, (0,)).get(60)
        assert pool.apply_async(accepted, (0,)).get(60) == worker
        # A log that cannot be sent is read in place: nothing is lost.
        must_refuse[0] = 1
        assert pool.map_async(abs, range(-9000, 0), 9000).get(60) == list(range(9000, 0, -1))
        assert pool.apply_async(accepted, (0,)).get(60) == worker


@pytest.mark.parametrize(
    "error",
    [MemoryError("no room"), OutOfSharedMemory(28, "no room"), RegistryBusyError("busy"), LimitExceededError("full")],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("tasks", [1, 4])
def test_tasks_that_find_no_room_fail_with_that_and_the_pool_goes_on(tasks, shared, error, monkeypatch):
    """Also for results that name shared memory, whose holds a failed put has released."""
    array, refused = copyless.ones(10), []

    def narrow(name):
        real = getattr(copyless.JoinableQueue, name)

        def put(self, put):
            for item in put if name == "put_many" else [put]:
                if item[0]:
                    self._pack(item)
                    if len(refused) < 1 + 2 * tasks:
                        refused.append(name)
                        raise type(error)(*error.args)
            return real(self, put)

        patch.setattr(copyless.JoinableQueue, name, put, raising=False)

    with Pool(1, context=FORK) as pool:
        with monkeypatch.context() as patch:
            narrow("put")
            narrow("put_many")
            items = [array if shared else 1] * tasks
            with pytest.raises(type(error), match=str(error.args[-1])):
                pool.map(np.sum, items, 1)
            assert refused
        assert pool.map(np.sum, items, 1) == [10 if shared else 1] * tasks
        pool.close()
        pool.join()  # no task is pending any more


def test_an_error_that_names_shared_memory_is_insisted_on():
    q, tried = copyless.SimpleQueue(), []

    def put(item):
        if len(tried) < 3:
            tried.append(q._pack(item))
            tried[-1] = None  # a put that failed
            raise OutOfSharedMemory(28, "no room")
        q.put(item)

    error = ValueError(copyless.ones(1000))
    send_when_room(put, sealed_error, error)
    sealed, _ = q.get()
    assert unseal(sealed).args[0].sum() == 1000
    assert len(tried) == 3
