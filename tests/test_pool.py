"""Pool and ProcessPoolExecutor: the standard library's interface; a death costs only the dead worker's task."""

import asyncio
import contextlib
import functools
import gc
import math
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures.process import BrokenProcessPool

import numpy as np
import psutil
import pytest

import copyless
from copyless import Pool, ProcessPoolExecutor, TaskUnreadableError, WorkerDiedError
from tests.conftest import python, start_python, until

FORK = multiprocessing.get_context("fork")


def square(x):
    return x * x


def die(x):
    if x == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return x


def fill(array, value):
    array[...] = value
    return array


def total(array):
    return float(array.sum())


# ---- the interface


def test_every_method(context):
    with Pool(2, context=context) as pool:
        assert pool.apply(pow, (2, 5)) == 32
        assert pool.apply_async(square, (7,)).get(10) == 49
        assert pool.map(square, range(100)) == [x * x for x in range(100)]
        assert pool.map(square, range(100), chunksize=7) == [x * x for x in range(100)]
        assert pool.starmap(pow, [(2, n) for n in range(20)]) == [2**n for n in range(20)]
        assert pool.map_async(square, [1, 2]).get(10) == [1, 4]
        assert pool.starmap_async(pow, [(2, 3)]).get(10) == [8]
        assert list(pool.imap(square, range(50), chunksize=3)) == [x * x for x in range(50)]
        assert sorted(pool.imap_unordered(square, range(50))) == [x * x for x in range(50)]
        assert repr(pool) == "<copyless.pool.Pool state=RUN pool_size=2>"
    pool.join()


class Counter:
    def __init__(self):
        self.calls = 0

    def __call__(self, item):
        self.calls += 1
        return self.calls


def test_functions_of_every_kind(context):
    """By name, by value, bound to an object: each function is sent unchanged; one with state comes anew with each
    chunk.
    """
    array = np.arange(6).reshape(2, 3)
    offset = 5
    with Pool(2, context=context) as pool:
        assert pool.map(math.sqrt, [4, 9], chunksize=1) == [2, 3]
        assert pool.map(len, ["ab", ()]) == [2, 0]
        assert pool.map("-".join, [["a", "b"]], chunksize=1) == ["a-b"]
        assert pool.map(array.sum, [0, 1], chunksize=1)[1].tolist() == [3, 12]
        assert pool.map([3, 1].index, [1]) == [1]
        assert pool.map(functools.partial(pow, 2), range(4), chunksize=2) == [1, 2, 4, 8]
        assert pool.map(int, ["7"]) == [7]
        assert pool.map(lambda x: x + offset, range(3), chunksize=1) == [5, 6, 7]
        assert pool.map(Counter(), range(6), chunksize=2) == [1, 2] * 3
        assert pool.starmap(divmod, [(7, 2), [9, 4]], chunksize=1) == [(3, 1), (2, 1)]
        assert pool.apply(max, (3, 4), {"key": abs}) == 4
        with pytest.raises(TypeError):
            pool.map(b"no function", [1])
    pool.join()


@pytest.mark.parametrize("chunksize", [1, 7, None])
def test_an_item_that_cannot_be_pickled_fails_the_map_and_not_the_pool(chunksize):
    items = [*range(200), threading.Lock(), *range(50)]
    pool = Pool(2)
    with pytest.raises(TypeError, match="lock"):
        pool.map(abs, items, chunksize=chunksize)
    with pytest.raises(TypeError, match="lock"):
        pool.map(abs, items[200:], chunksize=chunksize)
    assert pool.map(abs, range(-300, 0), chunksize=chunksize) == list(range(300, 0, -1))
    pool.terminate()
    pool.join()


def test_closures_and_lambdas_go_by_value(context):
    n = 10
    with Pool(1, context=context) as pool:
        assert pool.map(lambda x: x + n, range(3)) == [10, 11, 12]
        shared = copyless.zeros(3)
        pool.apply(lambda: fill(shared, 4))
        assert shared[2] == 4  # an array in a closure is sent by handle
        made = pool.apply(lambda: lambda x: x * n)
        assert made(2) == 20
    with ProcessPoolExecutor(1, mp_context=context) as executor:
        assert executor.submit(lambda: n).result() == 10


def test_arrays_by_one_copy_and_shared_ones_by_handle(context):
    plain, shared = np.ones((500, 500)), copyless.zeros((500, 500))
    with Pool(2, context=context) as pool:
        assert pool.apply(total, (plain,)) == 250_000.0
        got = pool.apply(fill, (plain, 7))
        assert got.flags.writeable
        assert (got == 7).all()
        assert (plain == 1).all()
        back = pool.apply(fill, (shared, 3))
        assert (shared == 3).all()
        back[0, 0] = 9
        assert shared[0, 0] == 9  # the same memory
        assert [a.sum() for a in pool.map(copyless.array, [np.full(9, n) for n in range(5)])] == [0, 9, 18, 27, 36]
    del got, back
    gc.collect()


def test_arguments_are_those_of_the_call(context):
    data = [0]
    with Pool(1, context=context) as pool:
        results = []
        for n in range(20):
            data[0] = n
            results.append(pool.apply_async(list, (data,)))
        assert [r.get()[0] for r in results] == list(range(20))


def test_an_infinite_iterable_with_a_bound():
    def count():
        for n in range(10**9):
            seen.append(n)
            yield n

    seen: list[int] = []
    with Pool(2, context=FORK) as pool:
        results = pool.imap(square, count(), buffersize=10)
        assert [next(results) for _ in range(30)] == [n * n for n in range(30)]
        assert len(seen) < 60


def test_what_was_promised_is_done_although_closed():
    pool = Pool(2, context=FORK)
    ordered, mapped = pool.imap(square, range(2000)), pool.map_async(square, range(3000))
    pool.close()
    with pytest.raises(ValueError, match="not running"):
        pool.apply(square, (1,))
    assert list(ordered) == [n * n for n in range(2000)]
    assert mapped.get(20)[-1] == 2999**2
    pool.join()


def test_bad_parameters():
    for bad in ({"processes": 0}, {"maxtasksperchild": 0}, {"retries": -1}):
        with pytest.raises(ValueError):
            Pool(**{"processes": 1, "context": FORK, **bad})
    with pytest.raises(TypeError):
        Pool(1, initializer=5)
    with Pool(1, context=FORK) as pool, pytest.raises(ValueError, match="Chunksize"):
        pool.map(square, [1], chunksize=0)
    for bad in ({"max_workers": 0}, {"max_tasks_per_child": 0}, {"retries": -1}):
        with pytest.raises(ValueError):
            ProcessPoolExecutor(**bad)


def test_progress_draws_a_bar(capfd):
    with Pool(2, context=FORK) as pool:
        assert pool.map(square, range(10), progress=True)[-1] == 81
    assert "square" in capfd.readouterr().out


def test_an_unclosed_pool_warns_and_ends_its_workers():
    pool = Pool(1, context=FORK)
    worker = pool._pool[0]
    pool.apply(square, (1,))
    pools = [pool]
    del pool
    with pytest.warns(ResourceWarning, match="unclosed running"):
        pools.clear()
    until(lambda: not worker.is_alive())


def test_workers_are_replaced_after_so_many_tasks():
    with Pool(2, context=FORK, maxtasksperchild=3) as pool:
        pids = pool.map(_pid, range(30), chunksize=1)
    assert len(set(pids)) >= 10


def _pid(_):
    return os.getpid()


# ---- exceptions


class Awkward(Exception):
    """Can be pickled, but not unpickled."""

    def __init__(self, a, b):
        super().__init__(a)


class Nasty:
    def __init__(self, when):
        self.when = when

    def __reduce__(self):
        if self.when == "pickle":
            raise ValueError("not to be pickled")
        return _explode, ()


def _explode():
    raise ValueError("not to be unpickled")


def _raise(kind, *args):
    raise kind(*args)


def _nested():
    try:
        _raise(KeyError, "inner")
    except KeyError as error:
        raise ValueError("outer") from error


def test_exceptions_keep_their_type_and_remote_traceback(context):
    with Pool(1, context=context) as pool:
        with pytest.raises(ValueError, match="outer") as caught:
            pool.apply(_nested)
        assert "KeyError: 'inner'" in str(caught.value.__cause__)
        assert "in _nested" in str(caught.value.__cause__)
        with pytest.raises(SystemExit):
            pool.apply(sys.exit, (3,))
        assert pool.apply(square, (2,)) == 4


def test_what_cannot_be_pickled_or_unpickled_costs_only_its_task(context):
    with Pool(1, context=context) as pool:
        with pytest.raises(TaskUnreadableError, match=r"cannot be pickled[\s\S]*Awkward"):
            pool.apply(_raise, (Awkward, 1, 2))
        with pytest.raises(ValueError, match="not to be pickled"):
            pool.apply(square, (Nasty("pickle"),))
        with pytest.raises(TaskUnreadableError, match="not to be unpickled"):
            pool.apply(square, (Nasty("load"),))
        with pytest.raises(TaskUnreadableError, match="not to be unpickled"):
            pool.apply(Nasty, ("load",))
        with pytest.raises(multiprocessing.pool.MaybeEncodingError):
            pool.apply(Nasty, ("pickle",))
        assert pool.map(square, range(5)) == [0, 1, 4, 9, 16]


def test_the_first_exception_of_a_map_when_all_have_ended():
    done = copyless.Value("i", 0)

    def work(n):
        if n % 5 == 3:
            raise ValueError(n)
        done.add(1)

    with Pool(2, context=FORK) as pool, pytest.raises(ValueError, match="^3$"):
        pool.map(work, range(20))
    assert done.value == 16


def test_an_initializer_that_raises_breaks_the_pool_and_says_so(context):
    with (
        Pool(1, _raise, (KeyError, "no database"), context=context) as pool,
        pytest.raises(WorkerDiedError, match="no database"),
    ):
        pool.apply_async(square, (1,)).get(20)
    with ProcessPoolExecutor(1, initializer=_raise, initargs=(KeyError, "no database"), mp_context=context) as executor:
        with pytest.raises(BrokenProcessPool, match="no database"):
            executor.submit(square, 1).result(20)


def test_a_program_without_main_guard_is_told(tmp_path):
    program = tmp_path / "unguarded.py"
    program.write_text(
        "import copyless, multiprocessing\n"
        "pool = copyless.Pool(1, context=multiprocessing.get_context('spawn'))\n"
        "try:\n    pool.apply_async(abs, (1,)).get(30)\n"
        "except copyless.WorkerDiedError as error:\n    print(error)\n"
        "pool.terminate()\n"
    )
    import subprocess

    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, timeout=60)
    assert "if __name__ == '__main__':" in done.stdout


# ---- death


@pytest.mark.parametrize("how", [lambda: os._exit(1), lambda: os.kill(os.getpid(), signal.SIGKILL)])
def test_a_task_whose_worker_ends_fails_and_the_others_go_on(how):
    with Pool(2, context=FORK) as pool:
        results = [pool.apply_async(how if n % 4 == 3 else square, () if n % 4 == 3 else (n,)) for n in range(20)]
        for n, result in enumerate(results):
            if n % 4 == 3:
                with pytest.raises(WorkerDiedError, match=r"worker process \d+"):
                    result.get(20)
            else:
                assert result.get(20) == n * n
        deadline = time.monotonic() + 30
        while len(pool._pool) != 2 and time.monotonic() < deadline:  # the last one that exits is replaced in a moment
            time.sleep(0.01)
        assert len(pool._pool) == 2


def test_a_killed_worker_fails_exactly_the_task_it_held(context):
    with Pool(2, context=context) as pool:
        for chunk in (1, 5, 100):
            got = pool.map_async(die, range(10), chunksize=chunk)
            with pytest.raises(WorkerDiedError):
                got.get(30)
        singles = [pool.apply_async(die, (n,)) for n in range(10)]
        assert [_result(r) for r in singles] == [0, 1, 2, "died", 4, 5, 6, 7, 8, 9]
        it = pool.imap(die, range(10), chunksize=5)
        seen = []
        while len(seen) < 10:
            try:
                seen.append(it.next(30))
            except WorkerDiedError:
                seen.append("died")
        assert seen == [0, 1, 2, "died", 4, 5, 6, 7, 8, 9]


def _result(r):
    try:
        return r.get(30)
    except WorkerDiedError:
        return "died"


def test_idle_workers_may_be_killed():
    with Pool(2, context=FORK) as pool:
        for _ in range(5):
            assert pool.map(square, range(4)) == [0, 1, 4, 9]
            time.sleep(0.02)
            for worker in list(pool._pool):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(worker.pid, signal.SIGKILL)
            assert pool.apply_async(square, (5,)).get(20) == 25


def test_retried_tasks_have_the_arguments_of_the_first_time():
    tries = copyless.Value("i", 0)

    def spoil(array, times):
        before = array.copy()
        array[...] = -1
        if tries.add(1) <= times:
            os.kill(os.getpid(), signal.SIGKILL)
        return before

    for size in (10, 1_000_000):
        tries.value = 0
        data = np.arange(size)
        with Pool(1, context=FORK, retries=2) as pool:
            result = pool.apply_async(spoil, (data, 2))
            data[...] = 5
            assert (result.get(30) == np.arange(size)).all()
            assert tries.value == 3
            tries.value = -10
            with pytest.raises(WorkerDiedError):
                pool.apply_async(spoil, (data, 2)).get(30)
            assert tries.value == -7


def test_terminate_fails_what_was_not_done():
    pool = Pool(2, context=FORK)
    results = [pool.apply_async(time.sleep, (100,)) for _ in range(5)]
    workers = list(pool._pool)
    pool.terminate()
    pool.join()
    for result in results:
        with pytest.raises(WorkerDiedError, match="terminated"):
            result.get(5)
    assert not any(worker.is_alive() for worker in workers)


def test_ctrl_c_ends_all_workers():
    program = start_python(
        """
        import copyless, multiprocessing, time
        with copyless.Pool(2, context=multiprocessing.get_context("fork")) as pool:
            pool.map(abs, range(4))
            print(*[worker.pid for worker in pool._pool], flush=True)
            try:
                pool.map(time.sleep, [100] * 4)
            except KeyboardInterrupt:
                print("stopped", flush=True)
        """
    )
    pids = [int(pid) for pid in program.stdout.readline().split()]
    time.sleep(0.2)
    for pid in (*pids, program.pid):  # as a terminal does
        os.kill(pid, signal.SIGINT)
    out, err = program.communicate(timeout=20)
    assert out == "stopped\n"
    assert err == ""
    until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in pids))


def test_workers_end_when_their_parent_is_killed():
    program = start_python(
        """
        import copyless, multiprocessing, time
        pool = copyless.Pool(2, context=multiprocessing.get_context("fork"))
        print(*[worker.pid for worker in pool._pool], flush=True)
        time.sleep(100)
        """
    )
    pids = [int(pid) for pid in program.stdout.readline().split()]
    program.kill()
    program.wait()
    until(lambda: all(_gone(pid) for pid in pids), "workers outlive their parent", 20)
    program.stdout.close(), program.stdin.close(), program.stderr.close()


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_workers_end_when_their_parent_is_interrupted_at_its_exit(method, tmp_path):
    path = tmp_path / "program.py"
    path.write_text(
        "import multiprocessing, sys, time\n"
        "from copyless.futures import ProcessPoolExecutor\n"
        "if __name__ == '__main__':\n"
        "    executor = ProcessPoolExecutor(2, mp_context=multiprocessing.get_context(sys.argv[1]))\n"
        "    list(executor.map(abs, range(4)))\n"
        "    for _ in range(2): executor.submit(time.sleep, 2)\n"
        "    print(*executor._processes, flush=True)\n"
    )
    program = subprocess.Popen(
        [sys.executable, str(path), method], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    pids = [int(pid) for pid in program.stdout.readline().split()]
    assert len(pids) == 2
    while program.poll() is None:  # it waits for the executor, then for its processes
        program.send_signal(signal.SIGINT)
        time.sleep(0.1)
    until(lambda: all(_gone(pid) for pid in pids), "workers outlive their parent", 20)
    program.stdout.close(), program.stderr.close()


def _gone(pid):
    try:
        with open(f"/proc/{pid}/stat") as f:
            return f.read().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):  # the latter if it is reaped between open and read
        return True


@pytest.mark.slow
def test_a_storm_of_kills_loses_and_doubles_nothing():
    """Every task is answered once: by its result, or by WorkerDiedError when its worker was killed during it."""
    ran = copyless.zeros(4000, "i4")

    def work(n):
        ran[n] += 1
        time.sleep(0.002)
        return n, np.full(n % 3000, n)

    chance = random.Random(5)
    with Pool(3, context=FORK) as pool:
        results = [pool.apply_async(work, (n,)) for n in range(2000)]
        mapped = pool.imap(work, range(2000, 4000), chunksize=20)
        kills = 0
        while kills < 250 and not all(r.ready() for r in results):
            workers = list(pool._pool)
            if workers:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(chance.choice(workers).pid, signal.SIGKILL)
                    kills += 1
            time.sleep(chance.random() * 0.01)
        died = 0
        for n in range(4000):
            try:
                got, array = results[n].get(60) if n < 2000 else mapped.next(60)
                assert got == n
                assert (array == n).all()
                assert len(array) == n % 3000
            except WorkerDiedError:
                died += 1
        assert kills > 100
        assert died <= kills
        assert ran.max() == 1  # none ran twice
        assert (ran == 0).sum() <= died
        assert len(pool._pool) <= 3


def test_a_storm_of_kills_of_those_whose_pools_they_are():
    """Killed at any moment from the first worker's start on: the workers exit, and nothing is left."""
    chance = random.Random(6)

    def own(connection, how):
        pool = Pool(2, context=FORK, maxtasksperchild=how or None)
        connection.send([worker.pid for worker in pool._pool])
        while True:
            pool.map(lambda n: np.full(n, n), range(500))

    for _ in range(5):
        owners = []
        for how in range(8):
            ours, theirs = FORK.Pipe(duplex=False)
            owner = FORK.Process(target=own, args=(theirs, how * 5))
            owner.start()
            theirs.close()
            owners.append((owner, ours))
        pids = []
        for owner, ours in owners:
            if chance.random() < 0.7:
                pids += ours.recv()
            time.sleep(chance.random() * 0.02)
            pids += [child.pid for child in psutil.Process(owner.pid).children()]
            owner.kill()
        for owner, ours in owners:
            owner.join()
            owner.close()
            ours.close()
        until(lambda: all(_gone(pid) for pid in pids), "workers outlive their parents", 30)  # noqa: B023


# ---- the executor


def test_the_executor(context):
    with ProcessPoolExecutor(2, mp_context=context) as executor:
        assert executor.submit(pow, 2, 3).result(20) == 8
        assert list(executor.map(pow, [2, 3], [3, 2])) == [8, 9]
        assert list(executor.map(square, range(10), chunksize=3)) == [n * n for n in range(10)]
        assert list(executor.map(square, range(10), buffersize=2)) == [n * n for n in range(10)]
        future = executor.submit(die, 3)
        with pytest.raises(WorkerDiedError):
            future.result(20)
        assert executor.submit(square, 3).result(20) == 9
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(square, 1)


def test_workers_start_as_they_are_needed(context):
    permits = copyless.Semaphore(0)
    with copyless.ProcessPoolExecutor(4, context) as executor:
        waiting = [executor.submit(permits.acquire) for _ in range(2)]
        assert len(executor._processes) == (4 if context.get_start_method() == "fork" else 2)
        waiting += [executor.submit(permits.acquire) for _ in range(20)]
        assert len(executor._processes) == 4
        for _ in waiting:
            permits.release()
        assert all(future.result(20) for future in waiting)


def test_cancelling():
    executor = ProcessPoolExecutor(1, mp_context=FORK)
    futures = [executor.submit(time.sleep, 0.2) for _ in range(20)]
    assert futures[-1].cancel()
    executor.shutdown(cancel_futures=True)
    assert sum(future.cancelled() for future in futures) >= 15
    assert all(future.done() for future in futures)


def test_terminating_workers():
    for end in (ProcessPoolExecutor.terminate_workers, ProcessPoolExecutor.kill_workers):
        executor = ProcessPoolExecutor(2, mp_context=FORK)
        future = executor.submit(time.sleep, 100)
        until(future.running)
        end(executor)
        with pytest.raises(WorkerDiedError):
            future.result(5)


def test_in_an_event_loop():
    async def main():
        loop = asyncio.get_running_loop()
        with ProcessPoolExecutor(2, mp_context=FORK) as executor:
            return await asyncio.gather(*(loop.run_in_executor(executor, square, n) for n in range(20)))

    assert asyncio.run(main()) == [n * n for n in range(20)]


def test_what_was_submitted_is_done_before_the_program_ends():
    done = python(
        """
        import copyless, multiprocessing, time
        def late(word):
            time.sleep(0.3)
            print(word, flush=True)
        executor = copyless.ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork"))
        executor.submit(late, "apple")
        """
    )
    assert done.stdout == "apple\n"
    assert done.stderr == ""


@pytest.mark.parametrize("allowed", [0, 1])
def test_threads_that_cannot_start_leave_nothing(allowed, monkeypatch):
    real, started = threading.Thread.start, []

    def start(thread):  # as at the interpreter's end
        if len(started) == allowed:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        real(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    with ProcessPoolExecutor(1) as executor:
        with pytest.raises(BrokenProcessPool, match="can't start new thread"):
            executor.submit(pow, 2, 3)
        with pytest.raises(BrokenProcessPool, match="can't start new thread"):
            executor.submit(pow, 2, 3)
    del started[:]
    with pytest.raises(RuntimeError, match="can't start new thread"):
        Pool(1)
    for thread in started:
        thread.join(20)
        assert not thread.is_alive()
    assert not multiprocessing.active_children()


def test_an_executor_that_has_nothing_to_do_starts_nothing():
    before = threading.active_count()
    with ProcessPoolExecutor(2) as executor:
        assert threading.active_count() == before
        assert not executor._processes
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(pow, 2, 3)


@pytest.mark.parametrize(
    "name", ["ApplyResult", "AsyncResult", "IMapIterator", "IMapUnorderedIterator", "MapResult", "Pool"]
)
def test_the_classes_of_a_pool_say_their_public_module(name):
    assert getattr(copyless.pool, name).__module__ == "copyless.pool"
