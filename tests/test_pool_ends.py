"""A pool never waits for ever, belongs to the process that made it, and its workers run no signal handlers of the
parent.
"""

import asyncio
import concurrent.futures
import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import warnings

import numpy as np
import pytest

import copyless
from copyless import Pool, ProcessPoolExecutor, WorkerDiedError
from copyless._workers.starting import missing_guard
from copyless.errors import WrongProcessError
from tests.conftest import python, until

FORK = multiprocessing.get_context("fork")


def slow(n):
    time.sleep(0.002)
    return n


def small(n):
    return n


def say(n):
    return n + 0.5


# ---- what belongs to the process that made it


def in_child(how, run):
    """The result of `run` in a forked child, as text."""
    if how == "Process":
        there, here = FORK.Pipe()
        child = FORK.Process(target=lambda: there.send(run()))
        child.start()
        assert here.poll(30)
        told = here.recv()
        child.join(30)
        assert child.exitcode == 0
        return told
    reads, writes = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.write(writes, repr(run()).encode())
            gc.collect()
            code = 0
        finally:
            os._exit(code)
    os.close(writes)
    with os.fdopen(reads) as told:
        text = told.read()
    assert os.waitpid(pid, 0)[1] == 0
    return eval(text)


def outcome_of(call):
    try:
        call()
    except BaseException as error:
        return type(error).__name__
    return "done"


@pytest.mark.parametrize("how", ["Process", "os.fork"])
def test_a_forked_child_cannot_use_its_parents_pool(how):
    with Pool(2, context=FORK) as pool:
        finished = pool.apply_async(small, (7,))
        assert finished.get(30) == 7
        pending = pool.map_async(slow, range(4000), 1)
        results = pool.imap(slow, range(10))

        def run():
            told = {
                name: outcome_of(lambda name=name, args=args: getattr(pool, name)(*args))
                for name, args in {
                    "apply": (small, (1,)), "apply_async": (small, (1,)), "map": (small, [1]), "map_async": (small,
                    [1]),
                    "starmap": (small, [(1,)]), "starmap_async": (small, [(1,)]), "imap": (small, [1]),
                    "imap_unordered": (small, [1]), "terminate": (), "join": (), "__enter__": (),
                }.items()
            }  # fmt: skip
            told["get"] = outcome_of(lambda: pending.get(30))
            told["wait"] = outcome_of(lambda: pending.wait(30))
            told["next"] = outcome_of(lambda: results.next(30))
            told["repr"], told["close"] = outcome_of(lambda: repr(pool)), outcome_of(pool.close)
            told["leave"] = outcome_of(lambda: pool.__exit__(None, None, None))
            told["finished"] = str(finished.get())
            return told

        told = in_child(how, run)
        assert {told.pop(name) for name in ("repr", "close", "leave")} == {"done"}
        assert told.pop("finished") == "7"
        assert set(told.values()) == {"WrongProcessError"}, told
        assert pending.get(60) == list(range(4000))
        assert list(results) == list(range(10))
        assert pool.map(small, range(100)) == list(range(100))


@pytest.mark.parametrize("how", ["Process", "os.fork"])
def test_a_forked_child_cannot_use_its_parents_executor(how):
    with ProcessPoolExecutor(2, FORK) as executor:
        futures = [executor.submit(slow, n) for n in range(100)]

        def run():
            told = [
                outcome_of(lambda: executor.submit(small, 1)),
                outcome_of(lambda: list(executor.map(small, [1]))),
                outcome_of(executor.terminate_workers),
                outcome_of(executor.kill_workers),
            ]
            return [*told, outcome_of(lambda: repr(executor)), outcome_of(executor.shutdown)]

        assert in_child(how, run) == ["WrongProcessError"] * 4 + ["done"] * 2
        assert [future.result(60) for future in futures] == list(range(100))


@pytest.mark.parametrize("how", ["Process", "os.fork"])
def test_futures_of_the_parent_are_not_waited_for_in_a_forked_child(how):
    may_end = copyless.Event()
    with ProcessPoolExecutor(1, FORK) as executor:
        done, failed = executor.submit(small, 7), executor.submit(_raise, ValueError("mine"))
        assert done.result(60) == 7
        assert type(failed.exception(60)) is ValueError
        running, waiting = executor.submit(may_end.wait, 60), [executor.submit(small, n) for n in range(20)]
        results = executor.map(small, range(50))

        def run():
            told = [
                outcome_of(call)
                for pending in (running, waiting[-1])
                for call in (
                    lambda pending=pending: pending.result(30),
                    lambda pending=pending: pending.result(),
                    lambda pending=pending: pending.exception(30),
                    lambda pending=pending: pending.add_done_callback(print),
                    lambda pending=pending: concurrent.futures.wait([done, pending]),
                    lambda pending=pending: list(concurrent.futures.as_completed([pending])),
                    lambda pending=pending: asyncio.run(_awaited(pending)),
                )
            ]
            told.append(outcome_of(lambda: next(results)))
            return [*told, repr(running)[:1], running.cancel(), running.done(), done.result(),
                outcome_of(failed.result), done.done(),
                    len(concurrent.futures.wait([done, failed]).done)]  # fmt: skip

        assert in_child(how, run) == ["WrongProcessError"] * 15 + ["<", False, False, 7, "ValueError", True, 2]
        may_end.set()
        assert running.result(60) is True
        assert [future.result(60) for future in waiting] == list(range(20))
        assert list(results) == list(range(50))


async def _awaited(future):
    return await asyncio.wrap_future(future)


def test_a_child_that_drops_its_parents_pool_ends_nothing():
    pool = Pool(2, context=FORK)
    held = [pool]

    def run():
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            held.clear()
            nonlocal pool
            del pool
            gc.collect()
        return [str(warning.message) for warning in said if "pool" in str(warning.message)]

    pid = os.fork()
    if pid == 0:
        os._exit(len(run()))
    assert os.waitpid(pid, 0)[1] == 0
    assert pool.map(say, range(50)) == [n + 0.5 for n in range(50)]
    pool.terminate()
    pool.join()


# ---- the end of a pool


@pytest.fixture
def tracebacks_of_threads(monkeypatch):
    told = []
    monkeypatch.setattr(threading, "excepthook", lambda args: told.append(repr(args.exc_value)))
    yield told
    assert told == []


@pytest.mark.parametrize("chunksize", [None, 10])
def test_what_was_not_fed_when_the_pool_was_terminated_fails(chunksize, tracebacks_of_threads):
    pool = Pool(2, context=FORK)
    result = pool.map_async(slow, range(20000), chunksize)
    until(lambda: result._done > 0)
    pool.terminate()
    with pytest.raises(WorkerDiedError):
        result.get(30)
    pool.join()


@pytest.mark.parametrize("chunksize", [None, 1])
def test_what_was_not_fed_when_the_workers_broke_fails(chunksize, tmp_path, tracebacks_of_threads):
    gone = tmp_path / "gone"

    def begin():
        if gone.exists():
            raise RuntimeError("the licence server is gone")

    def work(n):
        if n == 500:
            gone.write_text("")
            os._exit(1)
        time.sleep(0.0002)
        return n

    with Pool(2, begin, context=FORK) as pool:
        result = pool.map_async(work, range(20000), chunksize)
        with pytest.raises(WorkerDiedError):
            result.get(60)
        with pytest.raises(WorkerDiedError, match="licence server"):
            pool.map(work, range(10))


@pytest.mark.parametrize("how", ["map_async", "imap", "imap_unordered"])
def test_ending_in_the_middle_of_feeding_kills_no_thread(how, tracebacks_of_threads):
    for round in range(8):
        with Pool(2, context=FORK) as pool:
            result = getattr(pool, how)(slow, range(50000), 10)
            if round % 2:
                until(
                    lambda result=result: result._done > 0 if how == "map_async" else result._arrived or result._items
                )
        with pytest.raises(WorkerDiedError):
            if how == "map_async":
                result.get(30)
            else:
                while True:
                    result.next(30)
        pool.join()


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("how", ["imap", "imap_unordered"])
def test_results_come_before_the_error_of_the_input_behind_them(how, error):
    def items():
        yield from range(30)
        raise error("midway")

    with Pool(2, context=FORK) as pool:
        results, got = getattr(pool, how)(small, items()), []
        with pytest.raises(error, match="midway"):
            for value in results:
                got.append(value)
        assert sorted(got) == list(range(30))
        with pytest.raises(StopIteration):
            results.next(30)


@pytest.mark.parametrize("error", [KeyboardInterrupt("mine"), SystemExit(3), RecursionError("deep"), GeneratorExit()])
def test_whatever_a_task_raises_arrives_as_itself_and_the_worker_goes_on(error, context):
    with Pool(1, context=context) as pool:
        worker = pool.apply(os.getpid)
        with pytest.raises(type(error)) as caught:
            pool.apply_async(_raise, (error,)).get(60)
        assert caught.value.args == error.args
        assert pool.apply(os.getpid) == worker
    with ProcessPoolExecutor(1, context) as executor:
        with pytest.raises(type(error)):
            executor.submit(_raise, error).result(60)
        assert executor.submit(small, 1).result(60) == 1


def _raise(error):
    raise error


def test_busy_workers_that_ignore_signals_end_within_a_second():
    def stubborn(ready):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        ready[0] += 1
        time.sleep(600)

    ready = copyless.zeros(1, "i4")
    pool = Pool(1, context=FORK)
    result = pool.apply_async(stubborn, (ready,))
    deadline = time.monotonic() + 60
    while not ready[0] and time.monotonic() < deadline:
        time.sleep(0.01)
    workers = list(pool._pool)
    pool.terminate()
    assert all(worker.exitcode == -signal.SIGKILL for worker in workers)
    with pytest.raises(WorkerDiedError):
        result.get(30)


def test_only_a_missing_guard_is_told_of_a_missing_guard(tmp_path):
    with Pool(1, context=FORK) as pool:
        assert missing_guard(pool._worker_pool.context, 1) == ""
    program = tmp_path / "program.py"
    program.write_text(
        "import multiprocessing, copyless\n"
        "with copyless.Pool(1, context=multiprocessing.get_context('spawn')) as pool:\n"
        "    print(pool.map_async(abs, [-1]).get(120))\n"
    )
    done = python(
        "import runpy, sys; sys.argv[0] = sys.argv[1]; runpy.run_path(sys.argv[1], run_name='__main__')",
        str(program),
        check=False,
    )
    assert done.returncode != 0
    assert "__main__" in done.stderr


# ---- signals


def test_workers_hear_no_handler_of_their_parent_and_ignore_what_it_ignores(tmp_path):
    def handlers():
        return [
            signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
        ], signal.set_wakeup_fd(-1)

    heard = tmp_path / "heard"
    before = signal.signal(signal.SIGTERM, lambda *args: heard.write_text("heard"))
    ignored = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        for _ in range(3):
            with Pool(2, context=FORK) as pool:
                assert pool.map(small, range(10)) == list(range(10))
                assert pool.apply(handlers) == ([signal.SIG_DFL, signal.SIG_IGN, signal.SIG_DFL], -1)
    finally:
        signal.signal(signal.SIGTERM, before)
        signal.signal(signal.SIGUSR1, ignored)
    assert not heard.exists()


def test_a_pool_in_a_program_with_an_event_loop_does_not_wake_it():
    async def main():
        heard = []
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, lambda: heard.append(1))
        for _ in range(3):
            with Pool(2, context=FORK) as pool:
                pool.map(small, range(3))
                pool.apply_async(time.sleep, (600,))  # one is busy: a signal ends it
            await asyncio.sleep(0.05)
        return heard

    assert asyncio.run(main()) == []


def test_a_result_that_cannot_be_sent_fails_its_task_and_not_its_worker(context):
    with Pool(1, context=context) as pool:
        worker = pool.apply(os.getpid)
        with pytest.raises(multiprocessing.pool.MaybeEncodingError):
            pool.apply(threading.Lock)
        assert pool.apply(os.getpid) == worker
        assert (pool.apply(np.arange, (5,)) == np.arange(5)).all()


def test_the_error_says_what_to_do():
    pool = Pool(1, context=FORK)
    pid = os.fork()
    if pid == 0:
        try:
            pool.map(small, [1])
        except WrongProcessError as error:
            os._exit(0 if "Make a Pool of its own" in str(error) and str(os.getpid()) in str(error) else 2)
        os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0
    pool.terminate()
    pool.join()


# ---- programs without a guard, and the interpreter's exit


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
@pytest.mark.parametrize(
    "made", ["pool = copyless.Pool(3, context=context)", "pool = copyless.ProcessPoolExecutor(3, context)"]
)
def test_a_program_without_a_guard_gets_one_message(made, method, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "import multiprocessing, copyless\n"
        f"context = multiprocessing.get_context('{method}')\n"
        "print('begins')\n"
        f"{made}\n"
        "list(pool.map(abs, range(100)))\n"
    )
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.count("Traceback") == 1
    assert done.stderr.count("the program has no main guard") == 1
    assert "if __name__ == '__main__':" in done.stderr.splitlines()[-1]


def test_a_process_of_the_users_own_that_makes_workers_as_it_is_imported_is_told(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "import multiprocessing, copyless\n"
        "context = multiprocessing.get_context('spawn')\n"
        "if multiprocessing.current_process().name != 'MainProcess':\n"
        "    copyless.Pool(1, context=context)\n"
        "else:\n"
        "    process = context.Process(target=print)\n"
        "    process.start(); process.join(); print(process.exitcode)\n"
    )
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, timeout=60)
    assert done.stdout == "1\n"
    assert "RuntimeError: worker processes cannot be started while" in done.stderr


def test_names_of_workers_are_those_of_the_standard_library(context):
    with Pool(1, context=context) as pool:
        name = pool.apply(_my_name)
        assert name == pool._pool[0].name
        assert "PoolWorker-" in name
        assert "(" not in name


def _my_name():
    return multiprocessing.current_process().name


LEFT_OPEN = {
    "unused": "pool()",
    "used": "p = pool(); p.map(abs, range(10))",
    "busy": "p = pool(); r = p.map_async(time.sleep, [600] * 10); time.sleep(0.05)",
    "mid": "p = pool(); r = p.map_async(slow, range(100000)); p.apply(abs, (1,))",
    "imap": "p = pool(); r = p.imap(slow, range(100000), 10); next(r)",
    "endless": "p = pool(); r = p.imap_unordered(abs, itertools.count()); next(r)",
    "closed": "p = pool(); r = p.map_async(slow, range(10)); p.close()",
    "cycle": "p = pool(); x = [p]; x.append(x); p.map(abs, range(10)); del p, x",
    "executor": "e = executor(); list(e.map(abs, range(10)))",
    "executor, unused": "e = executor()",
    "executor, mid": "e = executor(); f = [e.submit(slow, n) for n in range(20)]",
    "executor, dropped": "e = executor(); f = [e.submit(slow, n) for n in range(20)]; del e",
    "executor, shut": "e = executor(); f = [e.submit(slow, n) for n in range(20)]; e.shutdown(wait=False)",
    "raises": "p = pool(); p.map(abs, range(10)); raise SystemExit(3)",
}


@pytest.mark.parametrize(
    ("what", "method"),
    [(what, "fork") for what in LEFT_OPEN]
    + [
        (what, method)
        for method in ("spawn", "forkserver")
        for what in ("unused", "busy", "mid", "executor, mid", "raises")
    ],
)
def test_the_interpreters_exit_with_open_workers_is_quiet(what, method, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "import copyless, itertools, multiprocessing, time\n"
        "def slow(n):\n    time.sleep(0.01)\n"
        "def pool():\n    return copyless.Pool(2, context=context)\n"
        "def executor():\n    return copyless.ProcessPoolExecutor(2, context)\n"
        "if __name__ == '__main__':\n"
        f"    context = multiprocessing.get_context({method!r})\n"
        f"    {LEFT_OPEN[what]}\n"
    )
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 3 if what == "raises" else 0)


@pytest.mark.parametrize(
    "make", ["Pool(2, context=FORK)", "ProcessPoolExecutor(2, mp_context=FORK)", "managers.SyncManager()"]
)
def test_a_forked_child_that_ends_as_programs_do_leaves_its_parents_processes_alone(tmp_path, make):
    script = tmp_path / "program.py"
    script.write_text(
        f"""
import multiprocessing, os, sys, time
from copyless import Pool, ProcessPoolExecutor, managers

FORK = multiprocessing.get_context("fork")

def task(begun, go):
    open(begun, "x").close()
    while not os.path.exists(go):
        time.sleep(0.005)
    return 7

if __name__ == "__main__":
    with {make} as made:
        if hasattr(made, "list"):
            made = made.list([7])
            get = lambda: made[0]
        else:
            submit = made.submit if hasattr(made, "submit") else lambda f, *args: made.apply_async(f, args)
            result = submit(task, "begun", "go")
            get = getattr(result, "result", None) or result.get
            while not os.path.exists("begun"):
                time.sleep(0.005)
        pid = os.fork()
        if pid == 0:
            sys.exit()
        assert os.waitpid(pid, 0)[1] == 0
        open("go", "x").close()
        print(get())
"""
    )
    quiet = "-Wignore::DeprecationWarning"  # of a fork beside threads
    done = subprocess.run(
        [sys.executable, quiet, str(script)], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert (done.stdout, done.stderr) == ("7\n", "")


def test_a_wake_pipe_that_outlives_its_module_ends_without_a_word():
    """At the end of the interpreter the names of a module are set to None while its objects still exist."""
    code = """
        from copyless._workers import wake_pipe
        pipe = wake_pipe.WakePipe()
        ends = pipe.reader, pipe._writer
        import os
        for name in list(vars(wake_pipe)):
            if not name.startswith("__"):
                setattr(wake_pipe, name, None)
        del pipe
        for end in ends:
            try:
                os.fstat(end)
            except OSError:
                print("closed")
    """
    done = python(code)
    assert (done.stdout, done.stderr) == ("closed\n" * 2, "")
