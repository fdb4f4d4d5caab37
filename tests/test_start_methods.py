"""Everything is sent by the standard library's own processes, pools, pipes and queues, under each start method."""

import os
import threading
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pandas as pd
import pytest

import copyless


def things():
    a = copyless.array(np.arange(12.0).reshape(3, 4))
    memory = copyless.Memory.allocate(4, clear=True)
    frame = copyless.share(pd.DataFrame({"x": np.arange(10), "s": list("abcdefghij")}))
    return {"array": a, "view": a[::-1, 1:].T, "plain": np.asarray(a), "memory": memory, "frame": frame}


def touch(shared):
    assert shared["view"].shape == (3, 3)
    shared["array"][0, 0] += 100
    shared["memory"][0] += 1
    return (
        float(shared["plain"][0, 0]),
        float(shared["view"][0, 0]),
        int(shared["frame"]["x"].sum()),
        "".join(shared["frame"]["s"]),
    )


def check(shared, answer, start):
    assert answer == (start + 100, 9.0, 45, "abcdefghij")
    assert shared["array"][0, 0] == start + 100
    assert shared["memory"][0] == (start + 100) / 100


def test_process_and_pipe(context):
    shared = things()
    ours, theirs = context.Pipe()
    child = context.Process(target=_serve, args=(theirs, shared))
    child.start()
    theirs.close()
    check(shared, ours.recv(), 0.0)  # as an argument
    ours.send(shared)
    check(shared, ours.recv(), 100.0)  # through the pipe
    made = ours.recv()  # made by the child, which has released it and exited
    child.join()
    assert made.sum() == 3.5 * 1000
    ours.close()


def _serve(pipe, shared):
    pipe.send(touch(shared))
    del shared
    pipe.send(touch(pipe.recv()))
    pipe.send(copyless.full(1000, 3.5))


@pytest.mark.parametrize("kind", ["Queue", "SimpleQueue", "JoinableQueue"])
def test_queue(context, kind):
    shared = things()
    there, back = getattr(context, kind)(), getattr(context, kind)()
    child = context.Process(target=_answer, args=(there, back))
    child.start()
    there.put(shared)
    check(shared, back.get(), 0.0)
    child.join()
    for queue in (there, back):
        queue.close()


def _answer(there, back):
    back.put(touch(there.get()))


def test_pool(context):
    shared = things()
    with context.Pool(2) as pool:
        check(shared, pool.apply(touch, (shared,)), 0.0)
        a = copyless.zeros((8, 100))
        pool.map(_fill, [(a[i], i) for i in range(8)])
        assert np.array_equal(a, np.repeat(np.arange(8.0)[:, None], 100, axis=1))
        results = pool.map(_make, range(5))
        assert [r.sum() for r in results] == [0, 100, 200, 300, 400]
        assert all(type(r) is copyless.SharedArray for r in results)
        pool.close()
        pool.join()


def _fill(job):
    row, value = job
    row[:] = value


def _make(value):
    return copyless.full(100, float(value))


def test_executor(context):
    shared = things()
    with ProcessPoolExecutor(2, mp_context=context) as executor:
        check(shared, executor.submit(touch, shared).result(), 0.0)
        assert [r.sum() for r in executor.map(_make, range(5))] == [0, 100, 200, 300, 400]


def test_a_child_forked_while_other_threads_allocate():
    stop = threading.Event()
    kept = copyless.full(5000, 7.0)

    def churn():
        while not stop.is_set():
            arrays = [copyless.zeros(n) for n in (10, 1000, 100_000)]
            del arrays

    threads = [threading.Thread(target=churn) for _ in range(3)]
    for t in threads:
        t.start()
    try:
        for _ in range(40):
            pid = os.fork()
            if pid == 0:
                code = 1
                try:
                    mine = [copyless.full(n, 3.0) for n in (10, 1000, 100_000)]
                    code = 0 if kept.sum() == 35_000 and all((m == 3.0).all() for m in mine) else 2
                finally:
                    os._exit(code)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    finally:
        stop.set()
        for t in threads:
            t.join()
    assert kept.sum() == 35_000


def test_a_forked_child_keeps_what_its_parent_lets_go():
    a = copyless.full(100_000, 5.0)
    ready, go = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.write(ready[1], b"r")
            os.read(go[0], 1)
            code = 0 if (a == 5.0).all() else 2
        finally:
            os._exit(code)
    os.read(ready[0], 1)
    del a
    others = [copyless.full(100_000, float(i)) for i in range(5)]  # would be placed on recycled memory
    os.write(go[1], b"g")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    for fd in (*ready, *go):
        os.close(fd)
    del others
