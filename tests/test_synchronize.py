"""Locks and similar objects: what the standard library promises, what the death of each process means, names, event
loops.
"""

import asyncio
import multiprocessing
import os
import pickle
import signal
import threading
import time

import pytest

import copyless
from copyless import synchronize
from tests.conftest import python, start_python, until

MAKERS = {
    "Lock": lambda **k: copyless.Lock(**k),
    "RLock": lambda **k: copyless.RLock(**k),
    "Semaphore": lambda **k: copyless.Semaphore(2, **k),
    "BoundedSemaphore": lambda **k: copyless.BoundedSemaphore(2, **k),
    "robust": lambda **k: copyless.Semaphore(2, robust=True, **k),
    "Event": lambda **k: copyless.Event(**k),
    "Condition": lambda **k: copyless.Condition(**k),
    "Barrier": lambda **k: copyless.Barrier(2, **k),
    "RWLock": lambda **k: copyless.RWLock(**k),
}


def killed_holding(context, what, *args):
    """A process that calls what(*args), reports it, and is killed."""
    ready = copyless.Event()
    process = context.Process(target=_hold, args=(ready, what, *args))
    process.start()
    assert ready.wait(30)
    process.kill()
    process.join()


def _hold(ready, what, *args):
    what(*args)
    ready.set()
    time.sleep(100)


# ---- everywhere


@pytest.mark.parametrize("kind", MAKERS)
def test_every_object_crosses_by_plain_pickle_name_and_handle(kind):
    made = MAKERS[kind](name="t-sync")
    for other in (
        pickle.loads(pickle.dumps(made)),  # F6, E9: no "only through inheritance"
        MAKERS[kind](name="t-sync"),
        copyless.open("t-sync"),
        copyless.attach(copyless.handle(made)),
    ):
        assert type(other) is type(made)
        assert other._address == made._address or other.block.number == made.block.number
    assert repr(made)
    array = copyless.zeros(3, name="t-array")
    with pytest.raises(FileExistsError, match="another kind"):
        MAKERS[kind](name="t-array")
    del array


@pytest.mark.parametrize("kind", MAKERS)
def test_objects_meet_under_every_start_method(kind, context):
    shared, done = MAKERS[kind](), copyless.Event()
    process = context.Process(target=_touch, args=(kind, shared, done))
    process.start()
    if kind == "Barrier":
        assert shared.wait(30) in (0, 1)
    process.join(30)
    assert process.exitcode == 0
    assert done.is_set()


def _touch(kind, shared, done):
    if kind == "Event":
        shared.set()
    elif kind == "Barrier":
        shared.wait(30)
    elif kind == "RWLock":
        with shared.read():
            pass
    else:
        with shared:
            pass
    done.set()


def test_unrelated_programs_meet_by_name():
    gate = copyless.Event(name="t-gate")
    other = start_python("import copyless; copyless.Event(name='t-gate').wait(); print('through')")
    gate.set()
    assert other.communicate(timeout=30)[0] == "through\n"


def test_a_named_object_goes_with_its_last_user_unless_it_persists():
    python("import copyless; copyless.Semaphore(7, name='t-last').acquire()")
    assert copyless.Semaphore(3, name="t-last").get_value() == 3
    python("import copyless; copyless.Semaphore(7, name='t-kept', persist=True).acquire()")
    assert copyless.Semaphore(3, name="t-kept").get_value() == 6
    copyless.unlink("t-kept")
    assert copyless.Semaphore(3, name="t-kept").get_value() == 3
    with pytest.raises(ValueError, match="name="):
        copyless.Lock(persist=True)


@pytest.mark.parametrize("make", [lambda: copyless.Semaphore(-1), lambda: copyless.Semaphore(2**31),
                                  lambda: copyless.Barrier(0), lambda: copyless.Lock(recover="maybe"),
                                  lambda: copyless.Lock(name="a/b"), lambda: copyless.Lock(name="")])  # fmt: skip
def test_bad_input_is_named(make):
    with pytest.raises(ValueError):
        make()


def test_nothing_is_left_when_all_are_killed():  # F7: no sem.mp-* files, no tracker
    before = set(os.listdir("/dev/shm"))
    program = start_python(
        "import copyless; keep = [copyless.Lock(), copyless.Event(), copyless.Condition(name='t-f7')]; print('up'); "
        "input()"
    )
    program.stdout.readline()
    program.kill()
    assert program.communicate()[1] == ""
    copyless.reap()
    assert set(os.listdir("/dev/shm")) <= before
    copyless.Condition(name="t-f7")


# ---- locks


@pytest.mark.parametrize("kind", ["Lock", "RLock"])
def test_a_dead_holder_is_told_once(kind, context):  # F1
    lock = MAKERS[kind]()
    killed_holding(context, lock.acquire)
    start = time.monotonic()
    with pytest.raises(copyless.OwnerDiedError, match="half"):
        lock.acquire(timeout=10)
    assert time.monotonic() - start < 2
    assert lock.acquire(timeout=1)
    assert not lock.recovered
    lock.release()


@pytest.mark.parametrize("kind", ["Lock", "RLock", "Semaphore"])
def test_who_only_tries_learns_of_the_death_too(kind, context):
    shared = copyless.Semaphore(2, robust=True) if kind == "Semaphore" else MAKERS[kind]()
    killed_holding(context, shared.acquire)
    if kind == "Semaphore":
        assert shared.acquire(block=False)
    with pytest.raises(copyless.OwnerDiedError, match="half"):
        shared.acquire(block=False)
    assert shared.acquire(block=False)
    if kind != "RLock":
        assert not shared.acquire(block=False)  # this process has it, and lives
        assert not shared.acquire(timeout=0)


@pytest.mark.parametrize("kind", ["Lock", "Semaphore"])
@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_a_task_that_waits_learns_of_the_death_too(kind, when, context):
    async def main():
        shared = copyless.Semaphore(1, robust=True) if kind == "Semaphore" else copyless.Lock()
        ready = copyless.Event()
        process = context.Process(target=_hold, args=(ready, shared.acquire))
        process.start()
        assert ready.wait(30)
        if when == "before":
            process.kill()
            process.join()
        else:
            threading.Timer(0.3, process.kill).start()
        with pytest.raises(copyless.OwnerDiedError):
            await asyncio.wait_for(shared.aacquire(), 30)
        async with shared:
            assert not await shared.aacquire(0.05)
        process.join()

    asyncio.run(main())


def test_a_waiter_learns_of_the_death(context):
    lock, ready = copyless.Lock(), copyless.Event()
    process = context.Process(target=_hold, args=(ready, lock.acquire))
    process.start()
    assert ready.wait(30)
    threading.Timer(0.2, process.kill).start()
    with pytest.raises(copyless.OwnerDiedError):
        lock.acquire(timeout=30)
    process.join()
    assert lock.acquire(block=False)


def test_silent_recovery(context):
    lock = copyless.Lock(recover="silent")
    killed_holding(context, lock.acquire)
    assert lock.acquire(timeout=10)
    assert lock.recovered
    lock.release()
    assert lock.acquire()
    assert not lock.recovered


def test_anyone_may_release_a_lock_but_only_its_thread_an_rlock():
    lock, recursive = copyless.Lock(), copyless.RLock()
    lock.acquire()
    recursive.acquire()
    failures = []

    def other():
        lock.release()
        assert not recursive.acquire(block=False)
        try:
            recursive.release()
        except AssertionError as error:
            failures.append(str(error))

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert not lock.locked()
    assert failures
    with pytest.raises(ValueError):
        lock.release()


def test_a_lock_held_at_a_fork_is_not_the_childs():
    lock = copyless.RLock()
    with lock:
        child = os.fork()
        if child == 0:
            try:
                lock.release()
            except AssertionError:
                os._exit(0 if not lock.acquire(block=False) else 2)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert not lock.locked()


def test_timeouts_are_neither_early_nor_counted_in_attempts():
    lock = copyless.Lock()
    lock.acquire()
    for timeout in (0.0, 0.03, 0.2):
        start = time.monotonic()
        assert not lock.acquire(timeout=timeout)
        assert timeout <= time.monotonic() - start < timeout + 5


def test_waiting_costs_no_processor_time():
    lock = copyless.Lock()
    lock.acquire()
    before = time.process_time()
    assert not lock.acquire(timeout=1)
    assert time.process_time() - before < 0.2


def test_control_c_ends_a_wait():
    for wait in ("copyless.Event().wait()", "(lambda l: (l.acquire(), l.acquire()))(copyless.Lock())",
                 "copyless.Barrier(2).wait()", "copyless.Semaphore(0).acquire()"):  # fmt: skip
        program = start_python(f"import copyless; copyless.Lock(); print('up'); {wait}")
        program.stdout.readline()
        time.sleep(0.05)
        program.send_signal(signal.SIGINT)
        assert "KeyboardInterrupt" in program.communicate(timeout=30)[1]


# ---- semaphores


def test_robust_permits_come_back(context):
    seats = copyless.Semaphore(2, robust=True)
    killed_holding(context, seats.acquire)
    assert seats.get_value() == 2
    assert seats.acquire()
    with pytest.raises(copyless.OwnerDiedError):
        seats.acquire(timeout=10)
    assert seats.acquire(timeout=1)
    assert not seats.acquire(block=False)
    seats.release()
    seats.release()
    with pytest.raises(ValueError, match="this process"):
        seats.release()


def test_plain_permits_belong_to_nobody(context):
    seats = copyless.Semaphore(1)
    killed_holding(context, seats.acquire)
    assert not seats.acquire(timeout=0.3)
    seats.release()
    assert seats.acquire(block=False)


# ---- conditions


def _wait_on(condition, ready):
    with condition:
        ready.release()
        condition.wait()


def test_a_killed_waiter_absorbs_no_notice(context):  # F2
    condition, ready, woken = copyless.Condition(), copyless.Semaphore(0), []
    process = context.Process(target=_wait_on, args=(condition, ready))
    process.start()
    ready.acquire()
    with condition:
        pass  # it waits now: it has released the lock

    def wait():
        with condition:
            ready.release()
            woken.append(condition.wait(30))

    thread = threading.Thread(target=wait)
    thread.start()
    ready.acquire()
    with condition:
        process.kill()
        process.join()
        start = time.monotonic()
        condition.notify()
        assert time.monotonic() - start < 2
    thread.join(30)
    assert woken == [True]


def test_a_notice_given_to_one_who_dies_passes_on(context):
    condition, ready = copyless.Condition(), copyless.Semaphore(0)
    process = context.Process(target=_wait_on, args=(condition, ready))
    process.start()
    ready.acquire()
    with condition:
        pass
    os.kill(process.pid, signal.SIGSTOP)
    with condition:
        condition.notify()  # to the stopped one, which has waited longest
    woken = []

    def wait():
        with condition:
            ready.release()
            woken.append(condition.wait(30))

    thread = threading.Thread(target=wait)
    thread.start()
    ready.acquire()
    with condition:
        pass
    process.kill()
    process.join()
    thread.join(30)
    assert woken == [True]


def test_a_condition_over_a_given_lock(context):
    lock = copyless.Lock()
    condition = copyless.Condition(lock)
    other = pickle.loads(pickle.dumps(condition))
    with lock:
        with pytest.raises(AssertionError), copyless.Condition():
            copyless.Condition().wait(0)
        assert not other.wait(0.01)
    assert not lock.locked()
    with pytest.raises(AssertionError, match="must acquire"):
        condition.notify()
    with pytest.raises(TypeError, match="Lock or RLock"):
        copyless.Condition(threading.Lock())
    assert condition.acquire(timeout=1)
    assert condition.wait_for(lambda: False, timeout=0.02) is False
    assert condition.wait_for(lambda: 5) == 5
    condition.release()
    with pytest.raises(TypeError, match="has no lock"):
        copyless.attach(copyless.handle(condition)).wait()


# ---- barriers


def _arrive(barrier, ready):
    ready.set()
    barrier.wait()


def test_a_killed_party_breaks_the_barrier(context):  # F3
    barrier, ready = copyless.Barrier(3), copyless.Event()
    process = context.Process(target=_arrive, args=(barrier, ready))
    process.start()
    assert ready.wait(30)
    until(lambda: barrier.n_waiting == 1)
    threading.Timer(0.2, process.kill).start()
    start = time.monotonic()
    with pytest.raises(threading.BrokenBarrierError):
        barrier.wait(60)
    assert time.monotonic() - start < 30
    process.join()
    assert barrier.broken
    barrier.reset()
    assert not barrier.broken


def test_a_missing_party_breaks_it_by_timeout_and_an_action_that_fails_too():
    barrier = copyless.Barrier(2)
    with pytest.raises(threading.BrokenBarrierError):
        barrier.wait(0.05)
    with pytest.raises(ZeroDivisionError):
        copyless.Barrier(1, action=lambda: 1 / 0).wait()
    copyless.Barrier(2, name="t-two")
    held = copyless.Barrier(2, name="t-two")
    with pytest.raises(ValueError, match="has 2 parties"):
        copyless.Barrier(3, name="t-two")
    assert "0 of 2" in repr(held)


# ---- events


def test_an_event_may_be_set_by_a_signal_handler_that_interrupts_its_wait():  # F4
    event = copyless.Event()
    before = signal.signal(signal.SIGALRM, lambda *_: event.set())
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        assert event.wait(30)
    finally:
        signal.signal(signal.SIGALRM, before)


def test_a_set_that_is_cleared_at_once_still_wakes():
    event, woken = copyless.Event(), []
    threads = [threading.Thread(target=lambda: woken.append(event.wait(20))) for _ in range(3)]
    for thread in threads:
        thread.start()
    time.sleep(0.2)
    event.set()
    event.clear()
    for thread in threads:
        thread.join()
    assert woken == [True] * 3


# ---- readers and a writer


def test_readers_share_and_a_writer_is_alone():
    lock = copyless.RWLock()
    log = []

    def other():
        log.append(lock.acquire_write(0.05))
        log.append(lock.acquire_read(0))
        if log[-1]:
            lock.release_read()

    for mode in (lock.read, lock.write):
        with mode():
            thread = threading.Thread(target=other)
            thread.start()
            thread.join()
    assert log == [False, True, False, False]
    with pytest.raises(ValueError, match="does not hold"):
        lock.release_read()
    assert repr(lock) == "<RWLock free>"


def test_upgrades_are_refused_and_nested_reads_never_wait():
    lock = copyless.RWLock()
    with lock.read():
        with pytest.raises(RuntimeError, match="cannot become the writer"):
            lock.acquire_write(1)
        writer = threading.Thread(target=lambda: lock.write().__enter__() or lock.release_write())
        writer.start()
        time.sleep(0.1)  # the writer waits: new readers are kept out, but not this thread
        thread_read = []
        threading.Thread(target=lambda: thread_read.append(lock.acquire_read(0.05))).start()
        with lock.read(timeout=1):
            until(lambda: thread_read == [False])
    writer.join()
    with lock.write():
        for again in (lock.read, lock.write):
            with pytest.raises(RuntimeError, match="wait for itself"):
                again().__enter__()
    held = threading.Thread(target=lock.acquire_read)
    held.start()
    held.join()
    with pytest.raises(TimeoutError, match="for writing in 0.02"):
        lock.write(0.02).__enter__()


def test_dead_readers_do_not_count_and_a_dead_writer_is_told_once(context):
    lock = copyless.RWLock()
    killed_holding(context, lock.acquire_read)
    assert lock.acquire_write(10)
    lock.release_write()
    killed_holding(context, lock.acquire_write)
    with pytest.raises(copyless.OwnerDiedError):
        lock.acquire_read(10)
    with lock.read(1):
        pass
    silent = copyless.RWLock(recover="silent")
    killed_holding(context, silent.acquire_write)
    with silent.write(10):
        assert silent.recovered


# ---- event loops


def test_tasks_threads_and_processes_mix(context):
    lock, total = copyless.Lock(), copyless.zeros(1, "i8")
    process = context.Process(target=_add, args=(lock, total, 300))
    thread = threading.Thread(target=_add, args=(lock, total, 300))
    process.start()
    thread.start()

    async def task():
        for _ in range(30):
            async with lock:
                seen = int(total[0])
                await asyncio.sleep(0)
                total[0] = seen + 1

    async def main():
        await asyncio.gather(*(task() for _ in range(10)))

    asyncio.run(main())
    thread.join()
    process.join()
    assert total[0] == 900


def _add(lock, total, n):
    for _ in range(n):
        with lock:
            seen = int(total[0])
            time.sleep(0)
            total[0] = seen + 1


def test_a_thousand_tasks_wait_with_one_thread_and_may_be_cancelled():
    async def main():
        event, seats = copyless.Event(), copyless.Semaphore(0)
        waits = [asyncio.ensure_future(event.await_(30)) for _ in range(1000)]
        takers = [asyncio.ensure_future(seats.aacquire()) for _ in range(10)]
        await asyncio.sleep(0.1)
        assert threading.active_count() < 10
        for task in takers[:5]:
            task.cancel()
        await asyncio.sleep(0)
        event.set()
        seats.release(5)
        assert all(await asyncio.gather(*waits))
        assert all(await asyncio.wait_for(asyncio.gather(*takers[5:]), 30))
        assert seats.get_value() == 0
        assert not await seats.aacquire(0.05)
        lock = copyless.RWLock()
        async with lock.read(), lock.read():
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1) if hasattr(asyncio, "timeout") else lock.write(0.1):
                    raise TimeoutError
        async with lock.write(1):
            assert "written" in repr(lock)

    asyncio.run(main())


def test_a_forked_child_watches_with_its_own_thread():
    async def wait(event):
        return await event.await_(20)

    async def first():
        assert not await copyless.Event().await_(0.05)

    asyncio.run(first())
    event = copyless.Event()
    child = os.fork()
    if child == 0:
        os._exit(0 if asyncio.run(wait(event)) else 1)
    time.sleep(0.1)
    event.set()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_locks_of_several_contexts_are_one(context):  # F5
    lock = multiprocessing.get_context("fork").Lock()
    del lock  # the standard library refuses a fork lock under spawn; ours has no context
    ours = synchronize.Lock(ctx=multiprocessing.get_context("fork"))
    process = context.Process(target=_touch, args=("Lock", ours, copyless.Event()))
    process.start()
    process.join()
    assert process.exitcode == 0


def test_an_rwlock_that_is_dropped_while_held_leaves_nothing_to_the_next_one():
    """The next one is in the same memory, and is another lock."""
    lock = copyless.RWLock()
    lock.acquire_write()
    number = lock.block.number
    del lock
    again = [copyless.RWLock()]
    while again[-1].block.number != number and len(again) < 100:
        again.append(copyless.RWLock())
    assert again[-1].block.number == number
    assert again[-1].acquire_read(timeout=10)
    again[-1].release_read()
    with pytest.raises(ValueError, match="does not hold"):
        again[-1].release_write()


@pytest.mark.parametrize("make", [copyless.Lock, copyless.RLock])
def test_a_lock_says_who_holds_it(make):
    lock, held, end = make(), copyless.Event(), copyless.Event()
    name = make.__name__
    assert repr(lock) == f"<{name} free>"
    with lock:
        assert repr(lock) == f"<{name} held by process {os.getpid()}>"
    child = os.fork()
    if child == 0:
        with lock:
            held.set()
            end.wait(60)
        os._exit(0)
    assert held.wait(60)
    assert repr(lock) == f"<{name} held by process {child}>"
    end.set()
    assert os.waitpid(child, 0)[1] == 0
    assert repr(lock) == f"<{name} free>"


@pytest.mark.parametrize(("make", "use", "give", "take"), [
    ("Lock()", "thing", "release", "acquire"), ("RLock()", "thing", "release", "acquire"),
    ("Semaphore()", "thing", "release", "acquire"), ("Semaphore(robust=True)", "thing", "release", "acquire"),
    ("Condition()", "thing", "release", "acquire"), ("RWLock()", "thing.read()", "release_read", "acquire_write"),
    ("RWLock()", "thing.write()", "release_write", "acquire_write"),
])  # fmt: skip
def test_signals_that_raise_at_any_instant_leave_nothing_held(make, use, give, take):
    """Since Python 3.14 there is one instant of `with` that no lock can keep: `__enter__` has returned, and the block
    has not begun. Nothing of ours runs then. What is held is released here, once, and only if the signal came there.
    """
    done = python(f"""
        import copyless, dis, itertools, os, random, signal
        class Broken(Exception): pass
        def break_it(*_): raise Broken
        def work():
            for _ in range(10):
                with {use}: pass
        enters = {{call.offset for before, call in itertools.pairwise(dis.get_instructions(work))
                  if before.opname == "LOAD_SPECIAL" and call.opname == "CALL"}}
        def came_before_the_block(error):
            here, handler = error.__traceback__.tb_next, None
            if here is not None and here.tb_frame.f_code is work.__code__ and here.tb_lasti in enters:
                handler = here.tb_next  # there is something between them if the signal came inside `__enter__`
            return handler is not None and handler.tb_frame.f_code is break_it.__code__
        signal.signal(signal.SIGALRM, break_it)
        random.seed(1)
        thing, broken = copyless.{make}, 0
        for _ in range(4000):
            try:
                try:
                    signal.setitimer(signal.ITIMER_REAL, 1e-6 + random.random() * 2e-5)
                    work()
                finally:
                    signal.setitimer(signal.ITIMER_REAL, 0)
            except Broken as error:
                broken += 1
                if came_before_the_block(error):
                    thing.{give}()
        assert thing.{take}(timeout=5)
        thing.{take.replace("acquire", "release")}()
        child = os.fork()
        if child == 0:
            os._exit(0 if thing.{take}(timeout=5) else 1)
        print(broken > 0, os.waitpid(child, 0)[1])
    """)
    assert done.stdout == "True 0\n"
