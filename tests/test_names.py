"""Names: which process makes the object of a name, how long the name is valid, and which process gets an error when it
means another object.
"""

from __future__ import annotations

import contextlib
import io
import json
import multiprocessing
import os
import queue
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import copyless
import copyless.arrays as arrays_module
from copyless._objects import base
from copyless._transfer import names, shared_array
from copyless.cli.look import listing
from copyless.errors import StaleNameError

from .conftest import python, start_python, until

FORK = multiprocessing.get_context("fork")


def ramp(array: Any) -> None:
    array[:] = np.arange(1, array.size + 1)


def started(target: Callable[..., None], *args: Any) -> Any:
    process = FORK.Process(target=target, args=args, daemon=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # a fork of a process with threads: intended here
        process.start()
    return process


def ended(process: Any, seconds: float = 60) -> int:
    process.join(seconds)
    if process.is_alive():
        process.kill()
        process.join()
        raise AssertionError("it did not end")
    return int(process.exitcode)


def making() -> list[str]:
    return [block["making"] for block in listing()["blocks"] if block["making"] is not None]


# ---- the same line in every program


@pytest.mark.parametrize(
    "make",
    [
        lambda **n: copyless.empty((2, 3), "f4", **n),
        lambda **n: copyless.zeros((2, 3), "f4", **n),
        lambda **n: copyless.ones((2, 3), "f4", **n),
        lambda **n: copyless.full((2, 3), 2, "f4", **n),
        lambda **n: copyless.array(np.zeros((2, 3), "f4"), **n),
        lambda **n: copyless.empty_like(np.zeros((2, 3), "f4"), **n),
        lambda **n: copyless.zeros_like(np.zeros((2, 3), "f4"), **n),
        lambda **n: copyless.ones_like(np.zeros((2, 3), "f4"), **n),
        lambda **n: copyless.full_like(np.zeros((2, 3), "f4"), 2, **n),
        lambda **n: copyless.SharedArray((2, 3), "f4", **n),
    ],
)
def test_the_same_line_gives_the_same_array(make):
    calls = []
    first = make(name="t-same", exist_ok=True, init=calls.append)
    second = make(name="t-same", exist_ok=True, init=calls.append)
    first[1, 2] = 7
    assert second[1, 2] == 7
    assert len(calls) == 1
    with pytest.raises(FileExistsError, match=r"copyless.open\('t-same'\), pass exist_ok=True"):
        make(name="t-same")
    del calls


@pytest.mark.parametrize(("shape", "dtype"), [(4, "f8"), ((3, 1), "f8"), (3, "f4"), (3, ">f8")])
def test_another_shape_or_dtype_is_refused_and_both_are_shown(shape, dtype):
    kept = copyless.zeros(3, name="t-other", exist_ok=True)
    with pytest.raises(FileExistsError) as told:
        copyless.zeros(shape, dtype, name="t-other", exist_ok=True)
    assert "shape (3,) and dtype float64" in str(told.value)
    assert str(np.dtype(dtype)) in str(told.value)
    del kept


def test_the_name_of_a_thing_of_another_kind_is_refused():
    kept = copyless.Queue(name="t-kind"), copyless.zeros(2, name="t-array")
    with pytest.raises(FileExistsError, match="another kind"):
        copyless.zeros(3, name="t-kind", exist_ok=True)
    with pytest.raises(FileExistsError, match=r"another kind \(array\)"):
        copyless.Queue(name="t-array")
    with pytest.raises(FileExistsError, match=r"another kind \(queue\)"):
        copyless.zeros(3, name="t-kind")
    del kept


@pytest.mark.parametrize(
    "make",
    [
        lambda **n: copyless.SimpleQueue(**n),
        lambda **n: copyless.Queue(5, **n),
        lambda **n: copyless.JoinableQueue(redeliver=True, **n),
        lambda **n: copyless.RingBuffer(((2,), "u1"), slots=4, **n),
        lambda **n: copyless.RingBuffer.like(np.zeros(2, "u1"), slots=4, **n),
        lambda **n: copyless.Lock(**n),
        lambda **n: copyless.RLock(**n),
        lambda **n: copyless.RWLock(**n),
        lambda **n: copyless.Semaphore(3, **n),
        lambda **n: copyless.BoundedSemaphore(3, **n),
        lambda **n: copyless.Event(**n),
        lambda **n: copyless.Condition(**n),
        lambda **n: copyless.Barrier(2, **n),
    ],
)
def test_objects_have_the_same_keywords_and_exist_ok_is_the_default(make):
    calls: list[str] = []
    init = lambda thing: calls.append(repr(thing))  # noqa: E731
    first = make(name="t-object", init=init)
    second = make(name="t-object", init=init, exist_ok=True)
    assert len(calls) == 1
    assert first.block.number == second.block.number
    with pytest.raises(FileExistsError, match="exist_ok=True"):
        make(name="t-object", exist_ok=False)
    assert make(init=init).block.number != first.block.number
    assert len(calls) == 2


def test_a_queue_is_filled_before_anybody_finds_it():
    def fill(q: Any) -> None:
        q.put_many([1, 2, 3])
        assert making() == ["t-jobs"]
        with pytest.raises(FileNotFoundError):
            copyless.open("t-jobs")

    q = copyless.Queue(name="t-jobs", init=fill)
    assert copyless.open("t-jobs").get_many() == [1, 2, 3]
    assert q.empty()
    assert making() == []


def test_a_condition_has_its_lock_in_init():
    def init(condition: Any) -> None:
        with condition:
            condition.notify_all()

    lock = copyless.Lock()
    assert copyless.Condition(lock, name="t-condition", init=init)
    assert copyless.Condition(name="t-own", init=init)


def test_records_are_published_whole():
    table = {"a": [1, 2], "b": [0.5, 1.5]}
    first = copyless.to_recarray(table, name="t-records", exist_ok=True)
    second = copyless.to_recarray({"a": [5, 6], "b": [0.0, 0.0]}, name="t-records", exist_ok=True)
    assert second.a.tolist() == [1, 2]
    assert first.b[1] == 1.5
    with pytest.raises(FileExistsError, match="dtype"):
        copyless.to_recarray({"c": [1, 2]}, name="t-records", exist_ok=True)


def test_what_an_earlier_run_left_is_taken_up():
    line = "copyless.zeros(3, name='t-earlier', exist_ok=True, persist=True, init=lambda a: a.fill(4))"
    python(f"import copyless; {line}[0] = 8")
    calls: list[Any] = []
    assert copyless.zeros(3, name="t-earlier", exist_ok=True, persist=True, init=calls.append).tolist() == [8, 4, 4]
    assert calls == []
    copyless.unlink("t-earlier")


def test_without_persist_it_is_made_again_when_its_last_holder_has_ended():
    python("import copyless; copyless.zeros(3, name='t-again', exist_ok=True)[0] = 8")
    assert copyless.zeros(3, name="t-again", exist_ok=True, init=ramp).tolist() == [1, 2, 3]


def test_who_asks_for_persistence_and_finds_none_is_warned():
    first = copyless.zeros(3, name="t-goes"), copyless.Queue(name="t-goes-too")
    for make in (
        lambda: copyless.zeros(3, name="t-goes", exist_ok=True, persist=True),
        lambda: copyless.Queue(name="t-goes-too", persist=True),
    ):
        with pytest.warns(RuntimeWarning, match="without persist=True") as told:
            make()
        assert told[0].filename == __file__
    kept = copyless.zeros(3, name="t-stays", persist=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        copyless.zeros(3, name="t-goes", exist_ok=True)
        copyless.zeros(3, name="t-stays", exist_ok=True, persist=True)
    copyless.unlink("t-stays")
    del first, kept


def test_bad_arguments():
    with pytest.raises(ValueError, match="needs a name"):
        copyless.zeros(3, exist_ok=True)
    for name in (None, "t-bad"):
        with pytest.raises(TypeError, match="init must be a function"):
            copyless.zeros(3, name=name, init=5)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="init must be a function"):
            copyless.Queue(name=name, init=5)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="another array"):
            copyless.zeros(3, name=name, init=lambda a: a + 1)

        async def init(thing: Any) -> None: ...

        with pytest.raises(TypeError, match="coroutine"):
            copyless.zeros(3, name=name, init=init)
        with pytest.raises(TypeError, match="coroutine"):
            copyless.Event(name=name, init=init)
    assert copyless.zeros(3, name="t-bad", exist_ok=True, init=lambda a: a.__iadd__(1)).tolist() == [1, 1, 1]


def test_like_with_a_value():
    assert copyless.ones_like(np.zeros((2, 2), "i2")).dtype == np.int16
    a = copyless.full_like(np.zeros((2, 3), order="F"), 5, "f4", shape=(3,))
    assert a.tolist() == [5, 5, 5]
    assert a.dtype == np.float32
    assert copyless.is_shared(a)
    assert copyless.ones_like(np.zeros((2, 3), order="F")).flags.f_contiguous
    assert copyless.full_like([1], 2.7).tolist() == [2]  # as numpy.full_like
    assert np.isnan(copyless.full_like([1.0], None)).all()  # likewise
    assert np.isnan(copyless.full(3, None, "f8", name="t-none")).all()


# ---- one of them makes it


def test_of_twenty_that_race_one_makes_it(tmp_path):
    """The process that makes it writes a line; all processes see all of it."""
    log, sums, go, leave = tmp_path / "made", copyless.Queue(), copyless.Event(), copyless.Event()

    def make(array: Any) -> None:
        with open(log, "a") as file:
            file.write("made\n")
        for i in range(array.size):  # not at once
            array[i] = i + 1
        time.sleep(0.05)

    def race() -> None:
        go.wait()
        mine = copyless.zeros(100, name="t-race", exist_ok=True, init=make)
        q = copyless.Queue(name="t-race-q", init=lambda q: q.put("once"))
        sums.put((float(mine.sum()), q.stats().put))
        leave.wait()

    racers = [started(race) for _ in range(20)]
    go.set()
    assert [sums.get(timeout=60) for _ in racers] == [(5050.0, 1)] * 20
    leave.set()
    assert [ended(each) for each in racers] == [0] * 20
    assert log.read_text() == "made\n"


def test_some_of_those_that_race_are_killed_at_it(tmp_path):
    """The first five processes that make it die while they do; the others still get it, from one that did not die."""
    log, sums, go, leave = tmp_path / "made", copyless.Queue(), copyless.Event(), copyless.Event()

    def make(array: Any) -> None:
        with open(log, "a") as file:
            file.write("made\n")
            file.flush()
            if file.tell() <= 5 * 5:
                os.kill(os.getpid(), signal.SIGKILL)
        ramp(array)

    def race() -> None:
        go.wait()
        mine = copyless.zeros(100, name="t-race", exist_ok=True, init=make)
        sums.put(float(mine.sum()))
        leave.wait()

    racers = [started(race) for _ in range(12)]
    go.set()
    assert [sums.get(timeout=60) for _ in range(7)] == [5050.0] * 7
    leave.set()
    assert sorted(ended(each) for each in racers) == [-signal.SIGKILL] * 5 + [0] * 7
    assert log.read_text() == "made\n" * 6


def test_threads_of_one_process_take_turns():
    calls, found = [], []

    def make(array: Any) -> None:
        calls.append(1)
        time.sleep(0.05)
        ramp(array)

    def run() -> None:
        found.append(copyless.zeros(3, name="t-threads", exist_ok=True, init=make))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1
    assert [each.tolist() for each in found] == [[1, 2, 3]] * 4


def test_an_error_is_its_callers_and_the_next_makes_it():
    def fail(array: Any) -> None:
        array[:] = 9
        raise LookupError("no weights here")

    for _ in range(2):
        with pytest.raises(LookupError):
            copyless.empty(3, name="t-fails", exist_ok=True, init=fail)
        with pytest.raises(LookupError):
            copyless.Queue(name="t-fails-q", init=fail2)
    with pytest.raises(FileNotFoundError):
        copyless.open("t-fails")
    assert copyless.zeros(3, name="t-fails", exist_ok=True, init=ramp).tolist() == [1, 2, 3]
    assert copyless.Queue(name="t-fails-q").empty()


def fail2(q: Any) -> None:
    q.put(1)
    raise LookupError("no jobs here")


def test_a_name_inside_its_own_init_is_an_error():
    def make(array: Any) -> None:
        copyless.zeros(2, name="t-inner", exist_ok=True, init=ramp)  # another name may
        copyless.zeros(3, name="t-itself", exist_ok=True, init=make)

    with pytest.raises(RuntimeError, match="init= of 't-itself' opens 't-itself'"):
        copyless.zeros(3, name="t-itself", exist_ok=True, init=make)
    assert copyless.zeros(3, name="t-itself", exist_ok=True, init=ramp).tolist() == [1, 2, 3]


def test_a_name_of_the_full_length_has_a_guard_too():
    long = "t" * 255
    seen: list[str] = []

    def make(array: Any) -> None:
        seen.extend(making())

    copyless.zeros(3, name=long, exist_ok=True, init=make)
    assert len(seen) == 1
    assert seen[0].startswith("tttt")


@contextlib.contextmanager
def initialiser(name: str) -> Iterator[tuple[Any, Any]]:
    """A process that is in the init of an array of this name until `go` is set: (process, go)."""
    inside, go, leave = copyless.Event(), copyless.Event(), copyless.Event()

    def make(array: Any) -> None:
        array[0] = 99
        inside.set()
        go.wait()
        ramp(array)

    def run() -> None:
        mine = copyless.zeros(3, name=name, exist_ok=True, init=make)
        leave.wait()  # others use it too
        del mine

    process = started(run)
    assert inside.wait(30)
    try:
        yield process, go
    finally:
        go.set()
        leave.set()
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGCONT)
        ended(process)


def in_thread(call: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    got: list[Any] = []
    thread = threading.Thread(target=lambda: got.append(call()))
    thread.start()
    return thread, got


def test_others_wait_until_it_is_made_and_ls_shows_that():
    with initialiser("t-waits") as (process, go):
        (block,) = [block for block in listing()["blocks"] if block["making"] == "t-waits"]
        assert block["name"] is None
        assert block["pids"] == [process.pid]
        with pytest.raises(FileNotFoundError):
            copyless.open("t-waits")
        thread, got = in_thread(lambda: copyless.zeros(3, name="t-waits", exist_ok=True, init=pytest.fail))
        opening, opened = in_thread(lambda: copyless.open("t-waits", timeout=60))
        until(lambda: os.getpid() in pids_making("t-waits"))
        assert not got
        assert not opened
        go.set()
        thread.join(60)
        opening.join(60)
        assert [each.tolist() for each in got + opened] == [[1, 2, 3]] * 2
    del got, opened


def pids_making(name: str) -> list[int]:
    return [pid for block in listing()["blocks"] if block["making"] == name for pid in block["pids"]]


def test_the_initialiser_is_killed_while_others_wait():
    with initialiser("t-killed") as (process, _):
        thread, got = in_thread(lambda: copyless.zeros(3, name="t-killed", exist_ok=True, init=ramp))
        until(lambda: os.getpid() in pids_making("t-killed"))
        os.kill(process.pid, signal.SIGKILL)
        thread.join(60)
        assert got[0].tolist() == [1, 2, 3]
    del got


@pytest.mark.parametrize("stopped", [True, False])
def test_the_log_says_for_whom_others_wait(stopped, caplog):
    with initialiser("t-slow") as (process, go):
        if stopped:
            os.kill(process.pid, signal.SIGSTOP)
        begun = time.monotonic()
        thread, got = in_thread(lambda: copyless.zeros(3, name="t-slow", exist_ok=True, init=pytest.fail))
        until(lambda: caplog.records, "nothing was logged", 60)
        assert time.monotonic() - begun >= 1
        (record,) = caplog.records
        text = record.getMessage()
        assert f"waiting for process {process.pid} " in text
        assert "the making of 't-slow'" in text
        assert ("which is stopped" in text) == stopped
        os.kill(process.pid, signal.SIGCONT)
        go.set()
        thread.join(60)
        assert got[0].tolist() == [1, 2, 3]
    del got


def test_waiting_is_broken_off_by_ctrl_c():
    with initialiser("t-ctrl-c"):
        child = start_python(
            """
            import copyless
            try:
                copyless.zeros(3, name="t-ctrl-c", exist_ok=True)
            except KeyboardInterrupt:
                print("interrupted")
            """
        )
        until(lambda: child.pid in pids_making("t-ctrl-c"), seconds=60)
        child.send_signal(signal.SIGINT)
        assert child.communicate(timeout=60)[0] == "interrupted\n"


def test_ctrl_c_when_the_turn_has_just_been_taken(monkeypatch):
    lock = names._Turn._lock

    class Interrupted:
        def __init__(self, guard):
            self._guard = guard

        def take(self, timeout):
            assert self._guard.take(timeout)
            raise KeyboardInterrupt

        def __getattr__(self, name):
            return getattr(self._guard, name)

    with monkeypatch.context() as patch:
        patch.setattr(names._Turn, "_lock", lambda turn: Interrupted(lock(turn)))
        with pytest.raises(KeyboardInterrupt):
            copyless.zeros(3, name="interrupted", exist_ok=True, init=ramp)
    assert copyless.zeros(3, name="interrupted", exist_ok=True, init=ramp).tolist() == [1, 2, 3]


def test_signals_that_raise_at_any_instant_leave_no_turn_taken():
    done = python("""
        import copyless, random, signal
        class Broken(Exception): pass
        def break_it(*_): raise Broken
        signal.signal(signal.SIGALRM, break_it)
        random.seed(1)
        def make(): return copyless.Queue(name="broken", init=lambda q: q.put(1))
        broken = 0
        for _ in range(1500):
            try:
                try:
                    signal.setitimer(signal.ITIMER_REAL, 1e-6 + random.random() * 3e-4)
                    make()
                finally:
                    signal.setitimer(signal.ITIMER_REAL, 0)
            except Broken:
                broken += 1
            assert make().qsize() == 1
        print(broken > 0)
    """)
    assert done.stdout == "True\n"  # on stderr Python reports those that came inside a destructor


def test_a_child_forked_inside_init_publishes_nothing():
    told = copyless.SimpleQueue()

    def make(array: Any) -> None:
        nonlocal pid
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        array[:] = 5 if pid == 0 else 6

    pid = -1
    try:
        array = copyless.zeros(3, name="t-forked", exist_ok=True, init=make)
    except copyless.WrongProcessError as error:
        told.put(str(error))
        os._exit(0)
    finally:
        if pid == 0:
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0
    assert "forked inside init= of 't-forked'" in told.get()
    assert copyless.open("t-forked").tolist() == array.tolist()
    assert not making()


# ---- a kill at every line


FILES = {module.__file__ for module in (names, base, arrays_module, shared_array)}


def killed_at(line: int, action: Callable[[], Any]) -> bool:
    """Do something in a child, which is killed at the n-th line that it runs of the files that deal with names. Return
    whether it was killed.
    """

    def run() -> None:
        left = line

        def trace(frame: Any, event: str, arg: Any) -> Any:
            nonlocal left
            if frame.f_code.co_filename not in FILES:
                return None
            if event == "line":
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                left -= 1
            return trace

        kept = None
        sys.settrace(trace)
        kept = action()
        sys.settrace(None)
        del kept
        os._exit(7)  # it was not killed, and exits without cleaning up

    code = ended(started(run))
    assert code in (-signal.SIGKILL, 7)
    return code != 7


def make_array() -> Any:
    return copyless.zeros(3, name="t-kill", exist_ok=True, init=ramp)


def make_lasting() -> Any:
    return copyless.zeros(3, name="t-kill", exist_ok=True, init=ramp, persist=True)


def make_queue() -> Any:
    return copyless.Queue(name="t-kill", init=lambda q: q.put_many([1, 2, 3]))


def shut_down() -> None:
    q = copyless.Queue(name="t-kill", persist=True)
    q.shutdown()


def unlink() -> None:
    with contextlib.suppress(FileNotFoundError):
        copyless.unlink("t-kill")


def what_it_holds() -> list[int]:
    """A new process runs the line."""
    return [int(each) for each in make_array()]


def queue_holds() -> list[int]:
    q = make_queue()
    found: list[int] = q.get_many()
    return found


@pytest.mark.parametrize(
    ("before", "action", "after"),
    [
        (None, make_array, what_it_holds),
        (None, make_lasting, what_it_holds),
        (None, make_queue, queue_holds),
        (shut_down, make_queue, queue_holds),
        (shut_down, make_array, what_it_holds),
        (make_lasting, unlink, what_it_holds),
        (lambda: copyless.Queue(name="t-kill", persist=True).put_many([1, 2, 3]), unlink, queue_holds),
    ],
)
def test_a_newcomer_works_after_a_kill_at_every_line(before, action, after):
    line = 0
    while True:
        if before is not None:
            before()
        killed = killed_at(line, action)
        assert after() == [1, 2, 3], f"killed at line {line}"
        unlink()
        assert not making()
        if not killed:
            break
        line += 1
    assert line > 10


# ---- after shutdown


@pytest.fixture(params=[True, False], ids=["persist", "held"])
def persist(request: pytest.FixtureRequest) -> Iterator[bool]:
    yield request.param
    for name in ("t-service", "t-q"):
        with contextlib.suppress(FileNotFoundError):
            copyless.unlink(name)


def test_a_ring_that_was_shut_down_gives_its_name_away(persist):
    old = copyless.RingBuffer(((2,), "u1"), slots=4, name="t-service", persist=persist)
    viewer = copyless.open("t-service").subscribe(since=0)
    old.put([1, 2])
    old.shutdown()
    new = copyless.RingBuffer(((5,), "f4"), slots=4, name="t-service", persist=persist)  # other frames, too
    assert new.put(np.zeros(5, "f4")) == 1
    assert viewer.get().array.tolist() == [1, 2]  # a process with the old one gets all of it, and StaleNameError
    with pytest.raises(copyless.ClosedError):
        viewer.get()
    with pytest.raises(copyless.ClosedError):
        old.put([1, 2])
    assert copyless.open("t-service").spec == ((5,), np.dtype("f4"))


def test_a_queue_that_was_shut_down_gives_its_name_away(persist):
    old = copyless.Queue(name="t-q", persist=persist)
    old.put_many([1, 2])
    old.shutdown()
    late = copyless.open("t-q")  # creates nothing, so it may drain the old one
    with pytest.warns(RuntimeWarning, match="2 items") as told:
        new = copyless.JoinableQueue(name="t-q", persist=persist)
    assert told[0].filename == __file__
    new.put(3)
    assert [late.get(), old.get()] == [1, 2]
    by_handle = copyless.attach(copyless.handle(old))
    for each in (late, old, by_handle):
        with pytest.raises(copyless.ShutDown):
            each.get()
        with pytest.raises(copyless.ShutDown):
            each.put(4)
    assert copyless.open("t-q").get() == 3


def test_what_was_shut_down_gives_its_name_to_any_kind(persist):
    old = copyless.SimpleQueue(name="t-q", persist=persist)
    old.shutdown()
    array = copyless.zeros(3, name="t-q")
    assert copyless.open("t-q").shape == array.shape
    del array
    again = copyless.Queue(name="t-q", exist_ok=False)
    again.shutdown()
    assert copyless.Lock(name="t-q").acquire()


def test_of_many_that_find_it_shut_down_one_makes_the_next(persist):
    old = copyless.Queue(name="t-q", persist=persist)
    old.shutdown()
    go, leave, places = copyless.Event(), copyless.Event(), copyless.Queue()

    def race() -> None:
        go.wait()
        q = copyless.Queue(name="t-q", persist=persist)
        q.put(1)
        places.put(q.block.number)
        leave.wait()

    racers = [started(race) for _ in range(8)]
    go.set()
    found = {places.get(timeout=60) for _ in racers}
    assert len(found) == 1
    assert old.block.number not in found
    assert copyless.open("t-q").qsize() == 8
    leave.set()
    assert [ended(each) for each in racers] == [0] * 8


# ---- a name that was unlinked and made again


def test_after_an_unlink_all_go_on():
    q, ring = copyless.Queue(name="t-on"), copyless.RingBuffer(((1,), "u1"), name="t-ring")
    reader = ring.subscribe()
    copyless.unlink("t-on")
    copyless.unlink("t-ring")
    other = copyless.zeros(1, name="t-else")  # the table of names has changed, not this name
    q.put(1)
    ring.put([5])
    assert q.get() == 1
    assert reader.get().seq == 1
    with pytest.raises(queue.Empty):
        q.get(timeout=0.01)
    with pytest.raises(queue.Empty):
        reader.get(timeout=0.01)
    del other


def test_a_queue_whose_name_means_another_is_drained_and_then_told():
    old = copyless.Queue(name="t-q")
    child_side = copyless.open("t-q")
    old.put_many([1, 2])
    copyless.unlink("t-q")
    new = copyless.Queue(name="t-q")
    with pytest.raises(StaleNameError, match="'t-q' was unlinked"):
        old.put(3)
    with pytest.raises(StaleNameError):
        old.put_many([3])
    assert [child_side.get(), child_side.get(timeout=1)] == [1, 2]
    for call in (
        child_side.get,
        child_side.get_many,
        lambda: child_side.get(timeout=0.001),
        child_side.get_nowait,
        lambda: list(old),
    ):
        with pytest.raises(StaleNameError):
            call()
    assert new.empty()
    assert old.stats().taken == 2
    old.name = None  # the way to keep the old one
    old.put(4)
    assert old.get() == 4


def test_who_waits_at_a_queue_is_told():
    old = copyless.Queue(name="t-q")
    errors: list[Any] = []

    def wait() -> None:
        try:
            old.get()
        except StaleNameError as error:
            errors.append(str(error))

    thread = threading.Thread(target=wait)
    thread.start()
    copyless.unlink("t-q")
    new = copyless.Queue(name="t-q")
    thread.join(60)
    assert len(errors) == 1
    del new


def test_a_ring_whose_name_means_another_is_read_to_its_end_and_then_told():
    old = copyless.RingBuffer(((1,), "u1"), slots=4, name="t-ring")
    reader = old.subscribe(since=0)
    old.put([1])
    copyless.unlink("t-ring")
    old.put([2])
    new = copyless.RingBuffer(((1,), "u1"), slots=4, name="t-ring")
    assert [reader.get().seq, reader.get().seq] == [1, 2]
    for call in (
        reader.get,
        lambda: reader.get(timeout=0.001),
        lambda: list(reader),
        old.latest,
        lambda: old.latest(after=2),
        lambda: old.put([3]),
        lambda: old.write().__enter__(),
    ):
        with pytest.raises(StaleNameError, match="'t-ring' was unlinked"):
            call()
    with old.last(2) as frames:
        assert [frame.seq for frame in frames] == [1, 2]
    assert new.put([1]) == 1


def test_event_loops_are_told():
    import asyncio

    async def wait() -> None:
        q, ring, event = (
            copyless.Queue(name="t-q"),
            copyless.RingBuffer(((1,), "u1"), name="t-ring"),
            copyless.Event(name="t-e"),
        )
        waiting = [
            asyncio.ensure_future(each) for each in (q.aget(), ring.alatest(), ring.subscribe().aget(), event.await_())
        ]
        await asyncio.sleep(0)
        for name in ("t-q", "t-ring", "t-e"):
            copyless.unlink(name)
        new = copyless.Queue(name="t-q"), copyless.RingBuffer(((1,), "u1"), name="t-ring"), copyless.Event(name="t-e")
        results = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 60)
        assert [type(each) for each in results] == [StaleNameError] * 4
        with pytest.raises(StaleNameError):
            await q.aput(1)
        del new

    asyncio.run(wait())


@pytest.mark.parametrize(
    ("make", "wait"),
    [
        (copyless.Lock, lambda lock: lock.acquire() and lock.acquire()),
        (copyless.Semaphore, lambda lock: lock.acquire() and lock.acquire()),
        (lambda **n: copyless.Semaphore(1, robust=True, **n), lambda lock: lock.acquire() and lock.acquire()),
        (copyless.Event, lambda event: event.wait()),
        (lambda **n: copyless.Barrier(2, **n), lambda barrier: barrier.wait()),
    ],
)
def test_who_waits_for_a_lock_is_told(make, wait):
    old = make(name="t-lock")
    copyless.unlink("t-lock")
    new = make(name="t-lock")
    with pytest.raises(StaleNameError):
        wait(old)
    del new


def test_a_condition_is_told_and_holds_its_lock_again():
    old = copyless.Condition(name="t-lock")
    copyless.unlink("t-lock")
    new = copyless.Condition(name="t-lock")
    with old:
        with pytest.raises(StaleNameError):
            old.wait()
        assert old._lock._is_mine()
    del new


def receive(q: Any, out: Any) -> None:
    try:
        out.put((q.name, q.get(timeout=30)))
    except StaleNameError:
        out.put((q.name, "told"))


def test_the_name_goes_along_to_other_processes():
    q, out = copyless.Queue(name="t-q"), copyless.Queue()
    copyless.unlink("t-q")
    new = copyless.Queue(name="t-q")
    process = multiprocessing.get_context("spawn").Process(target=receive, args=(q, out))
    process.start()
    assert out.get(timeout=60) == ("t-q", "told")
    assert ended(process) == 0
    nameless = copyless.attach(copyless.handle(q))  # a handle is not a name
    nameless.put(1)
    assert nameless.get() == 1
    del new


def test_an_array_that_looks_like_an_object_is_left_alone():
    """The content of an array belongs to the user: nothing is written into it."""
    lock = copyless.Lock()
    array = copyless.zeros(256, "u1", name="t-looks")
    array[:64] = copyless.frombuffer(memoryview(lock.block), "u1")[:64]
    before = array.tolist()
    copyless.unlink("t-looks")
    assert array.tolist() == before


# ---- texts


@pytest.mark.parametrize(
    "call",
    [lambda: copyless.open("t-none"), lambda: copyless.unlink("t-none"), lambda: copyless.RingBuffer(name="t-none")],
)
def test_the_error_for_a_missing_name_says_what_may_have_happened(call):
    with pytest.raises(FileNotFoundError, match=r"freed with its last holder \(persist=True keeps it\)"):
        call()


def test_ls_shows_what_persists():
    from copyless.cli.look import show_listing
    from copyless.cli.text import Page

    kept = copyless.zeros(3, name="t-goes"), copyless.zeros(3, name="t-stays", persist=True)
    report = listing()
    assert {b["name"]: b["persistent"] for b in report["blocks"] if b["name"]} == {"t-goes": False, "t-stays": True}
    page = io.StringIO()
    show_listing(report, Page(page))
    lines = page.getvalue().splitlines()
    assert "persist" in next(line for line in lines if "held by" in line)
    assert " yes " in next(line for line in lines if "t-stays" in line)
    assert " no " in next(line for line in lines if "t-goes" in line)
    assert json.dumps(report)
    copyless.unlink("t-stays")
    del kept
