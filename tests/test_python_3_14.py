"""What Python 3.14 added to multiprocessing and concurrent.futures is there on every version."""

import multiprocessing
import os
import time

import pytest

import copyless
from tests.conftest import METHODS


@pytest.mark.parametrize("kind", [copyless.Semaphore, copyless.BoundedSemaphore])
def test_a_semaphore_is_locked_when_no_permit_is_free(kind):
    seats = kind(2)
    assert seats.locked() is False
    with seats:
        assert seats.locked() is False
        with seats:
            assert seats.locked() is True
            assert seats.acquire(block=False) is False
    assert seats.locked() is False


def test_a_semaphore_that_notices_deaths_is_locked_alike():
    seats = copyless.Semaphore(1, robust=True)
    with seats:
        assert seats.locked() is True
    assert seats.locked() is False


@pytest.mark.parametrize(
    "make", [copyless.Lock, copyless.RLock, copyless.Condition, lambda: copyless.Condition(copyless.Lock())]
)
def test_a_lock_is_locked_while_it_is_held_also_seen_from_a_child(make):
    lock = make()
    assert lock.locked() is False
    with lock:
        assert lock.locked() is True
        with copyless.Pool(1, context=multiprocessing.get_context("spawn")) as pool:
            assert pool.apply(_is_locked, (lock,)) is True
    assert lock.locked() is False


def _is_locked(lock):
    return lock.locked()


def test_proxies_of_locks_say_it_too():
    with copyless.Manager() as manager:
        condition = manager.Condition()
        for lock in (manager.Lock(), manager.RLock(), manager.Semaphore(1), manager.BoundedSemaphore(1), condition):
            assert lock.locked() is False
            lock.acquire()
            assert lock.locked() is True
            lock.release()


def test_managers_have_sets():
    with copyless.Manager() as manager:
        numbers = manager.set([1, 2])
        numbers.add(3)
        numbers |= {4}
        assert sorted(numbers) == [1, 2, 3, 4]
        assert 2 in numbers
        assert len(numbers) == 4


def _until_interrupted(ready):
    try:
        ready.set()
        time.sleep(60)
    except KeyboardInterrupt:
        os._exit(7)


class _Mine(copyless.Process):
    pass


@pytest.mark.parametrize("of", [*METHODS, "package", "subclass"])
def test_a_process_is_interrupted_as_by_ctrl_c(of):
    ready = copyless.Event()
    made = {"package": copyless.Process, "subclass": _Mine}.get(of) or copyless.get_context(of).Process
    process = made(target=_until_interrupted, args=(ready,))
    process.start()
    assert isinstance(process, multiprocessing.process.BaseProcess)
    assert ready.wait(60)
    process.interrupt()
    process.join(30)
    assert process.exitcode == 7
    process.interrupt()  # it has ended: nothing happens
    process.close()
    with pytest.raises(ValueError, match="closed"):
        process.interrupt()


def test_a_process_of_a_pool_can_be_interrupted():
    with copyless.Pool(1, context=copyless.get_context("fork")) as pool:
        (worker,) = pool._pool
        assert worker.interrupt.__self__ is worker


class _Counted(copyless.Pool):
    made = 0

    @staticmethod
    def Process(ctx, *args, **kwds):
        _Counted.made += 1
        return ctx.Process(*args, **kwds)


def test_a_derived_pool_makes_its_processes():
    with _Counted(2, context=multiprocessing.get_context("fork")) as pool:
        assert pool.map(abs, [-1, -2]) == [1, 2]
    assert _Counted.made == 2


def test_executors_have_what_it_brought():
    executor = copyless.ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork"))
    assert list(executor.map(abs, [-1, -2, -3], buffersize=1)) == [1, 2, 3]
    with pytest.raises(ValueError, match="buffersize"):
        executor.map(abs, [1], buffersize=0)
    with pytest.raises(TypeError, match="buffersize must be an integer or None"):
        executor.map(abs, [1], buffersize=2.0)
    running = executor.submit(time.sleep, 60)
    executor.kill_workers()
    with pytest.raises(copyless.WorkerDiedError):
        running.result(30)
