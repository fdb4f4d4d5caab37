"""What a forked child may do with objects of its parent: one table of all of them, under fork and plain os.fork()."""

from __future__ import annotations

import gc
import inspect
import os
import pickle
import traceback
from types import SimpleNamespace

import numpy as np
import pytest

import copyless
from copyless import comm, managers
from copyless.comm import _local_world

# ---- two kinds of children


def by_fork(target, *args):
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            target(*args)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0


def by_process(target, *args):
    process = copyless.get_context("fork").Process(target=target, args=args)
    process.start()
    process.join()
    assert process.exitcode == 0


WAYS = pytest.mark.parametrize("in_child", [by_fork, by_process])


def answers(in_child, function, *args):
    """The result of a function in a forked child."""
    here, there = os.pipe()

    def target():
        os.close(here)
        with os.fdopen(there, "wb") as file:
            pickle.dump(function(*args), file)

    with os.fdopen(here, "rb") as file:
        in_child(target)
        os.close(there)
        return pickle.load(file)


# ---- objects that belong to their maker: a box that holds the object, what a child may call, and how the parent checks
# that all is right


def square(x):
    return x * x


def pool():
    made = copyless.get_context("fork").Pool(1)
    waiting = made.map_async(square, range(5))

    def right(box):
        assert waiting.get(30) == [0, 1, 4, 9, 16]
        assert box[0].map(square, range(100)) == [square(x) for x in range(100)]
        box[0].terminate()
        box[0].join()

    return [made], right


def executor():
    made = copyless.ProcessPoolExecutor(1)
    assert made.submit(square, 3).result(30) == 9

    def right(box):
        assert list(box[0].map(square, range(100))) == [square(x) for x in range(100)]
        box[0].shutdown()

    return [made], right


def manager():
    made = managers.SyncManager(ctx=copyless.get_context("fork"))
    made.start()

    def right(box):
        kept = box[0].list([1])
        assert kept[:] == [1]
        box[0].shutdown()

    return [made], right


@pytest.fixture(autouse=True)
def no_world_left():
    yield
    if _local_world._world is not None:
        _local_world._world._engine.close()
        _local_world._world = None


def communicator():
    made = comm.local.world()
    made.send("before", 0)

    def right(box):
        assert box[0].recv(source=0) == "before"
        box[0].send([1], 0)
        assert box[0].recv() == [1]
        assert box[0].allreduce(2) == 2

    return [made], right


def request():
    world = comm.local.world()
    made = world.irecv(source=0, tag=3)

    def right(box):
        world.send("it", 0, 3)
        assert box[0].wait() == "it"

    return [made], right


def message():
    world = comm.local.world()
    world.send("it", 0, 4)
    made = world.mprobe(tag=4)

    def right(box):
        assert box[0].recv() == "it"

    return [made], right


def ring_with(n, **options):
    ring = copyless.RingBuffer(((4,), "i8"), 4, **options)
    for i in range(n):
        ring.put(np.full(4, i))
    return ring


def subscription():
    ring = ring_with(1)
    made = ring.subscribe("block", since=0)

    def right(box):
        assert box[0].get(5).copy().tolist() == [0] * 4
        assert len(ring.stats().readers) == 1
        ring.put(np.full(4, 9))
        assert box[0].get(5)[0] == 9
        box[0].close()
        assert not ring.stats().readers

    return [made], right


def loan():
    ring = ring_with(2)

    def right(box):
        assert ring.stats().on_loan == 1
        for i in range(10):
            ring.put(np.full(4, 100 + i))  # every other slot is written again
        assert box[0].copy().tolist() == [1] * 4
        box[0].release()
        assert ring.stats().on_loan == 0

    return [ring.latest()], right


def claim():
    ring = ring_with(0)
    writing = ring.write()

    def right(box):
        assert ring.stats().writing == 1
        box[0][...] = 7
        writing.__exit__(None, None, None)
        assert ring.latest(0).copy().tolist() == [7] * 4

    box = [writing.__enter__()]
    writing._draft = box[0]
    box.append(writing)
    return box, right


def lease(redeliver):
    q = copyless.JoinableQueue(redeliver=redeliver)
    q.put("job")
    made = q.lease()
    made.__enter__()

    def right(box):
        with pytest.raises(TimeoutError):
            q.join(0.01)  # it was not acknowledged
        if redeliver:
            assert q.stats().leased == 1
        box[0].__exit__(None, None, None)
        q.join(5)

    return [made], right


MINE = {
    "Pool": (pool, {"close"}),
    "executor": (executor, {"shutdown", "__enter__"}),  # `shutdown` is its close
    "manager": (manager, {"address", "shutdown"}),  # a child connects to its address
    "communicator": (communicator, {"Free", "Abort"}),
    "request": (request, {"Free", "free"}),
    "message": (message, {"free"}),
    "subscription": (subscription, {"close"}),
    "loan": (loan, {"release"}),
    "claim": (claim, set()),
    "lease": (lambda: lease(False), set()),
    "redelivering lease": (lambda: lease(True), set()),
}
SPECIAL = ("__enter__", "__iter__", "__next__", "__len__", "__getitem__", "__setitem__", "__aiter__", "__array__")


def use(obj, name):
    """Call a public method, or read a property, with a value for each argument that it needs."""
    method = getattr(obj, name)
    if not callable(method):
        return
    try:
        parameters = inspect.signature(method).parameters.values()
        needs = [
            p for p in parameters if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        ]
    except ValueError:  # a function of C: (obj, dest, ...)
        needs = [None, None][: 2 if "send" in name else 0]
    result = method(*[0 for _ in needs])
    if hasattr(result, "asend"):
        result = result.__anext__()
    if inspect.iscoroutine(result) or hasattr(result, "send"):
        result.send(None)


def public(obj):
    kind = type(obj)
    names = [
        name
        for name in dir(kind)
        if not name.startswith("_") and not isinstance(inspect.getattr_static(kind, name), (classmethod, staticmethod))
    ]
    return [
        name
        for name in names
        if not inspect.isclass(getattr(kind, name))
        and (callable(getattr(kind, name)) or isinstance(inspect.getattr_static(kind, name), property))
    ] + [name for name in SPECIAL if hasattr(kind, name)]


def try_all(box, free):
    """The calls that did not raise WrongProcessError, and that repr does not raise."""
    obj, told, tried = box[0], [], 0
    for name in public(obj):
        if name in free:
            continue
        tried += 1
        try:
            use(obj, name)
        except copyless.WrongProcessError as error:
            if str(os.getpid()) not in str(error) and not isinstance(obj, (comm.local.Comm, comm.local.Request)):
                told.append(f"{name}: {error}")
        except BaseException as error:
            told.append(f"{name}: {type(error).__name__}: {error}")
        else:
            told.append(f"{name} did it")
    repr(obj)
    for name in ("close",):
        if name in free:
            getattr(obj, name)()
    return told, tried


def collect(box):
    """Drop the object in the child, which has the last reference there."""
    box.clear()
    gc.collect()


@WAYS
@pytest.mark.parametrize("title", MINE)
def test_what_belongs_to_its_maker(title, in_child):
    make, free = MINE[title]
    box, right = make()
    told, tried = answers(in_child, try_all, box, free)
    assert tried >= (1 if "lease" in title or title == "message" else 3)
    in_child(collect, box)
    right(box)
    assert told == []


# ---- objects shared by many work in the child as in the standard library


def of_queue(kind, **options):
    q = getattr(copyless, kind)(**options)
    q.put("from the parent")

    def act():
        got = q.get(timeout=10) if kind != "SimpleQueue" else q.get()
        q.put("from the child")
        if kind == "JoinableQueue":
            q.task_done(got) if options.get("redeliver") else q.task_done()
        return got

    def right(answer):
        assert answer == "from the parent"
        assert q.get() == "from the child"
        if kind == "JoinableQueue":
            q.task_done()
            q.join(5)

    return act, right


def of_lock():
    lock = copyless.Lock()
    lock.acquire()

    def right(answer):
        assert answer is None  # the child released what the parent had acquired
        assert lock.acquire(False)
        lock.release()

    return lock.release, right


def of_rlock():
    lock = copyless.RLock()
    lock.acquire()

    def act():
        with pytest.raises(copyless.NotHeldError):
            lock.release()
        return lock.acquire(False), lock.acquire(timeout=0.05)

    def right(answer):
        assert answer == (False, False)
        assert lock.acquire(False)  # it still belongs to this thread
        lock.release()
        lock.release()
        with pytest.raises(copyless.NotHeldError):
            lock.release()

    return act, right


def of_semaphore(**options):
    seats = copyless.Semaphore(2, **options)
    assert seats.acquire()

    def act():
        first, second = seats.acquire(False), seats.acquire(False)
        seats.release()
        return first, second

    def right(answer):
        assert answer == (True, False)
        assert seats.get_value() == 1
        seats.release()
        assert seats.get_value() == 2

    return act, right


def of_event():
    event = copyless.Event()

    def right(answer):
        assert event.wait(5)

    return event.set, right


def of_condition():
    condition = copyless.Condition()
    found = SimpleNamespace(held=None)
    condition.acquire()

    def act():
        with pytest.raises(AssertionError):
            condition.notify()
        return condition.acquire(timeout=0.05)

    def right(answer):
        assert answer is False
        condition.notify()
        condition.release()
        with pytest.raises(copyless.NotHeldError):
            condition.release()
        assert found.held is None

    return act, right


def of_barrier():
    barrier = copyless.Barrier(1)

    def right(answer):
        assert answer == 0
        assert barrier.wait(5) == 0

    return (lambda: barrier.wait(5)), right


def of_rwlock():
    lock = copyless.RWLock()
    lock.acquire_write()

    def act():
        with pytest.raises(ValueError, match="does not hold"):
            lock.release_write()
        return lock.acquire_read(0.05)

    def right(answer):
        assert answer is False
        lock.release_write()

    return act, right


def of_ring():
    ring = ring_with(1)

    def act():
        assert ring.latest(5).copy().tolist() == [0] * 4
        with ring.subscribe(since=0) as following:
            assert following.get(5).seq == 1
        return ring.put(np.full(4, 5))

    def right(answer):
        assert answer == 2
        assert ring.latest(5).copy().tolist() == [5] * 4

    return act, right


def of_proxies():
    made = managers.SyncManager(ctx=copyless.get_context("fork"))
    made.start()
    proxy = made.list([1])

    def act():
        proxy.append(2)
        return proxy[:]

    def right(answer):
        assert answer == [1, 2] == proxy[:]
        made.shutdown()

    return act, right


def of_parents_item():
    q = copyless.JoinableQueue(redeliver=True)
    q.put(["job"])
    item = q.get()

    def act():
        for arguments in ((item,), ()):
            with pytest.raises(ValueError, match="task_done"):
                q.task_done(*arguments)
        return q.stats().leased

    def right(answer):
        assert answer == 1 == q.stats().leased
        q.task_done(item)
        q.join(5)

    return act, right


OURS = {
    **{kind: (lambda kind=kind: of_queue(kind)) for kind in ("Queue", "JoinableQueue", "SimpleQueue")},
    "redelivering queue": lambda: of_queue("JoinableQueue", redeliver=True),
    "item of the parent": of_parents_item,
    "Lock": of_lock,
    "RLock": of_rlock,
    "Semaphore": of_semaphore,
    "robust Semaphore": lambda: of_semaphore(robust=True),
    "Event": of_event,
    "Condition": of_condition,
    "Barrier": of_barrier,
    "RWLock": of_rwlock,
    "ring": of_ring,
    "proxies": of_proxies,
}


@WAYS
@pytest.mark.parametrize("title", OURS)
def test_what_many_share(title, in_child):
    act, right = OURS[title]()
    right(answers(in_child, act))


@WAYS
def test_a_block_that_a_child_leaves(in_child):
    """Forked inside `with`, a child that goes on acknowledges and publishes nothing."""
    q, ring = copyless.JoinableQueue(), ring_with(0)
    q.put("job")
    with q.lease() as item, ring.write() as frame:
        frame[...] = 1

        def act(lease=None):
            with pytest.raises(copyless.WrongProcessError):
                frame[...] = 2

        in_child(act)
        assert item == "job"
    q.join(5)
    assert ring.latest(0).copy().tolist() == [1] * 4
