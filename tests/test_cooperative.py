"""Waits when a program has replaced `select`, as gevent and eventlet do.

Tests with gevent and eventlet themselves are in tests/clients/cooperative.
"""

import subprocess
import sys
import textwrap

HEAD = """
    import select, threading, time
    native, called = select.select, []

    def mine(*arguments):
        called.append(1)
        return native(*arguments)

    select.select = mine  # with the poll of the standard library, as nobody has; so it is taken away, as eventlet does
    del select.poll
    import copyless
    from copyless.queues import Empty, Full

    def later(run, *arguments):
        threading.Timer(0.1, run, arguments).start()

    def raises(error, run, *arguments, **more):
        try:
            run(*arguments, **more)
        except error:
            return True
"""


def run(program):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(HEAD) + textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.split()


def test_queues_wait_by_select_and_say_what_they_say_otherwise():
    assert run(
        """
        for kind in (copyless.Queue, copyless.JoinableQueue):
            q = kind(1)
            later(q.put, 1)
            assert q.get(timeout=30) == 1
            later(q.put, 2)
            assert q.get_many(5) == [2]
            assert raises(Empty, q.get, timeout=0.05) and raises(Empty, q.get, True, 0) and raises(Empty, q.get_nowait)
            assert raises(ValueError, q.get, timeout=float("nan"))
            q.put(3)
            assert raises(Full, q.put, 4, timeout=0.05) and raises(Full, q.put_nowait, 4)
            assert raises(Full, q.put_many, [4, 5], timeout=0.05)
            later(q.get)
            q.put(5)
            assert q.get() == 5 and q.put_many([6, 7], timeout=0.05) == 1
            q.shutdown()
            assert list(q) == [6] and raises(copyless.ShutDown, q.get) and raises(copyless.ShutDown, q.put, 1)
        q = copyless.SimpleQueue()
        later(q.put, 8)
        assert q.get() == 8
        assert raises(Exception, q.put_many, [1, lambda: 0, threading.Lock()]) and q.empty()  # all or nothing, where one cannot be pickled
        print(bool(called))
        """  # noqa: E501
    ) == ["True"]


def test_join_waits_for_what_is_not_acknowledged():
    assert run(
        """
        q = copyless.JoinableQueue()
        q.put(1), q.get()
        assert raises(TimeoutError, q.join, 0.05)
        later(q.task_done)
        q.join()
        print("joined")
        """
    ) == ["joined"]


def test_locks_semaphores_and_events_wait_by_select():
    assert run(
        """
        for lock in (copyless.Lock(), copyless.Semaphore(1), copyless.BoundedSemaphore(1)):
            lock.acquire()
            assert not lock.acquire(False) and not lock.acquire(timeout=0.05)
            later(lock.release)
            with lock:
                pass
        lock = copyless.RLock()
        with lock, lock:
            assert lock.acquire()
            lock.release()
        changed = copyless.Condition()
        with changed:
            assert changed.wait(0.05) is False
        event = copyless.Event()
        assert event.wait(0.05) is False
        later(event.set)
        assert event.wait() is True and event.wait(0) is True
        event.clear()
        later(lambda: (event.set(), event.clear()))
        assert event.wait(30) is True
        print(bool(called))
        """
    ) == ["True"]


def test_nothing_is_put_over_the_methods_where_select_is_the_systems():
    program = "import copyless, sys; q = copyless.Queue(); print('copyless._objects.cooperative' in sys.modules, 'get' in vars(type(q).__mro__[1]))"  # noqa: E501
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=100)
    assert done.stdout.split() == ["False", "False"]
