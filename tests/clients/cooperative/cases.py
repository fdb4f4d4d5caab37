"""Under gevent and eventlet, with everything patched: our waits let the other tasks run, and our calls end wherever
those of the standard library end.
"""

import subprocess
import sys
import textwrap

import pytest

HEAD = {
    "gevent": """
        from gevent import monkey; monkey.patch_all()
        import gevent
        spawn, sleep = gevent.spawn, gevent.sleep
        def result(task): return task.get()
    """,
    "eventlet": """
        import eventlet; eventlet.monkey_patch()
        spawn, sleep = eventlet.spawn, eventlet.sleep
        def result(task): return task.wait()
    """,
}
BODY = """
    import sys, time
    import copyless

    def slow(x):
        time.sleep(0.5)
        return x + 1

    def put_later(q):
        time.sleep(0.5)
        q.put(5)

    def set_later(event):
        time.sleep(0.5)
        event.set()

    def take_slowly(q):
        time.sleep(0.5)
        for _ in range(3):
            q.get()
            q.task_done()

    beats = 0

    def beat():
        global beats
        while True:
            beats += 1
            sleep(0.01)

    if __name__ == "__main__":
        context = copyless.get_context(METHOD)
        spawn(beat)
        sleep(0)
"""


def run(scheduler, body, method="fork", least=10):
    """Run a program: it must print the expected text, and the other tasks must have run meanwhile."""
    pytest.importorskip(scheduler)
    head = textwrap.dedent(HEAD[scheduler]) + textwrap.dedent(BODY).replace("METHOD", repr(method))
    program = (
        head
        + textwrap.indent(textwrap.dedent(body), "    ")
        + f"\n    assert beats >= {least}, beats\n    print('ended')\n"
    )
    import tempfile

    with tempfile.NamedTemporaryFile("w", suffix=".py") as file:
        file.write(program)
        file.flush()
        done = subprocess.run([sys.executable, "-W", "ignore", file.name], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["ended"], done.stdout + done.stderr


both = pytest.mark.parametrize("scheduler", ["gevent", "eventlet"])


@both
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_an_executor(scheduler, method):
    run(
        scheduler,
        """
        with copyless.ProcessPoolExecutor(2, mp_context=context) as executor:
            assert list(executor.map(slow, range(3))) == [1, 2, 3]
            assert executor.submit(slow, 5).result(30) == 6
            try:
                executor.submit(slow, "x").result(30)
            except TypeError:
                pass
            else:
                raise AssertionError
        """,
        method,
    )


@both
def test_a_pool(scheduler):
    run(
        scheduler,
        """
        with context.Pool(2) as pool:
            assert pool.map(slow, range(2)) == [1, 2]
            assert pool.apply_async(slow, (3,)).get(30) == 4
            assert list(pool.imap_unordered(slow, [7])) == [8]
        """,
    )


@both
def test_a_queue(scheduler):
    run(
        scheduler,
        """
        q = context.Queue()
        child = context.Process(target=put_later, args=(q,))
        child.start()
        assert q.get(timeout=30) == 5
        child.join()
        child = context.Process(target=put_later, args=(q,))
        child.start()
        assert q.get_many() == [5]
        child.join()
        simple = context.SimpleQueue()
        task = spawn(simple.get)
        sleep(0.05)
        simple.put(7)
        assert result(task) == 7
        try:
            q.get(timeout=0.1)
        except copyless.queues.Empty:
            pass
        else:
            raise AssertionError
        q.put("one")
        q.shutdown()
        assert list(q) == ["one"]
        """,
    )


@both
def test_a_full_queue_and_join(scheduler):
    run(
        scheduler,
        """
        q = context.JoinableQueue(1)
        child = context.Process(target=take_slowly, args=(q,))
        child.start()
        for i in range(3):
            q.put(i)
        q.join()
        child.join()
        q.put(1)
        try:
            q.put(2, timeout=0.1)
        except copyless.queues.Full:
            pass
        else:
            raise AssertionError
        """,
    )


@both
def test_locks_and_events(scheduler):
    run(
        scheduler,
        """
        lock = context.Lock()

        def hold():
            with lock:
                sleep(0.3)

        spawn(hold)
        sleep(0.05)
        assert not lock.acquire(timeout=0.05)
        assert lock.acquire(timeout=30)
        lock.release()
        with lock:
            pass
        seats = context.Semaphore(0)
        task = spawn(seats.acquire)
        sleep(0.05)
        seats.release()
        assert result(task) is True
        event = context.Event()
        assert event.wait(0.05) is False
        child = context.Process(target=set_later, args=(event,))
        child.start()
        assert event.wait(30) is True
        child.join()
        """,
    )


@both
def test_waiting_for_the_first_of_many(scheduler):
    run(
        scheduler,
        """
        q, event = context.Queue(), context.Event()
        child = context.Process(target=put_later, args=(q,))
        child.start()
        assert copyless.wait([q, event], timeout=30) == [q]
        assert copyless.wait([child.sentinel], timeout=30) == [child.sentinel]
        child.join()
        """,
    )


@both
def test_a_manager(scheduler):
    run(
        scheduler,
        """
        with copyless.Manager() as manager:
            numbers = manager.dict()
            numbers[1] = 2
            assert dict(numbers) == {1: 2}
        """,
        least=1,
    )


@both
def test_it_is_patched_after_it_was_imported(scheduler):
    pytest.importorskip(scheduler)
    patch = (
        "from gevent import monkey; monkey.patch_all(); from gevent import spawn, sleep"
        if scheduler == "gevent"
        else ("import eventlet; eventlet.monkey_patch(); from eventlet import spawn, sleep")
    )
    program = f"""if True:
        import copyless.queues
        {patch}
        q = copyless.Queue()
        spawn(lambda: (sleep(0.1), q.put(5)))
        print(q.get(timeout=30))
    """
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["5"], done.stdout + done.stderr
