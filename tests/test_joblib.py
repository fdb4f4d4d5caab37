"""The backend for joblib: workers that stay, clean starts, what is moved, how threads are limited, and how it ends."""

import gc
import os
import signal
import threading
import time
import warnings

import joblib
import numpy as np
import pandas as pd
import pytest
from joblib import Parallel, delayed
from joblib.externals.loky import BrokenProcessPool
from joblib.externals.loky.process_executor import TerminatedWorkerError

import copyless
import copyless.joblib

from .conftest import python, until

MIB = 1 << 20


def parallel(n_jobs=2, **more):
    return Parallel(n_jobs=n_jobs, backend="copyless", **more)


def pid_after(seconds=0.0):
    time.sleep(seconds)
    return os.getpid()


def here(array):
    """(the offset of an array's elements in its block, whether it is writable, whether it is in shared memory)"""
    return array.flags.writeable, copyless.is_shared(array)


# ---- programs


def test_a_search_twice_with_openmp_in_the_parent_between_as_loky_has_it():
    pytest.importorskip("sklearn")
    code = """
        import warnings; warnings.filterwarnings("ignore")
        import joblib, copyless.joblib
        from sklearn.cluster import KMeans
        from sklearn.datasets import load_digits
        from sklearn.ensemble import HistGradientBoostingClassifier
        from sklearn.model_selection import GridSearchCV, cross_val_score
        X, y = load_digits(return_X_y=True)
        X, y = X[:400], y[:400]
        KMeans(3, n_init=1, random_state=0).fit(X)
        found = []
        for backend in ("copyless", "copyless", "sequential"):
            with joblib.parallel_config(backend):
                search = GridSearchCV(
                    HistGradientBoostingClassifier(max_iter=2, random_state=0), {"max_depth": [2, 3]}, n_jobs=2, cv=2
                )
                scores = cross_val_score(KMeans(3, n_init=1, random_state=0), X, n_jobs=2, cv=2)
                found.append((search.fit(X, y).best_score_, search.best_params_["max_depth"], scores.tolist()))
        assert found[0] == found[1], found
        assert found[0][:2] == found[2][:2], found
        print("done")
    """
    assert python(code, timeout=120).stdout == "done\n"


def test_a_program_needs_no_main_guard_and_its_functions_and_classes_go_by_value(tmp_path):
    program = tmp_path / "program.py"
    program.write_text("""
import os, sys
import joblib, copyless.joblib

class Point:
    def __init__(self, x): self.x = x

def move(point): return Point(point.x + 1)

def begin(): os.environ["BEGUN"] = "yes"

print("once")
moved = joblib.Parallel(2, backend="copyless", initializer=begin)(joblib.delayed(move)(Point(i)) for i in range(3))
print([type(point) is Point and point.x for point in moved])
print(joblib.Parallel(2, backend="copyless", initializer=begin)([joblib.delayed(os.getenv)("BEGUN")]))
""")
    import subprocess
    import sys

    done = subprocess.run([sys.executable, program], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("once\n[1, 2, 3]\n['yes']\n", "")


@pytest.mark.parametrize(("before", "outer", "inner"), [
    ("loky", "copyless", "loky"), ("copyless", "loky", "copyless"), ("copyless", "copyless", "copyless"),
    ("none", "copyless", "multiprocessing"),
])  # fmt: skip
def test_backends_inside_of_each_other_end(before, outer, inner):
    code = """
        import sys, warnings
        import joblib, copyless.joblib

        def nested(backend):
            import copyless.joblib
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                found = joblib.Parallel(2, backend=backend)(joblib.delayed(pow)(i, 2) for i in range(3))
            return found, [str(warning.message) for warning in caught if "cannot be nested" in str(warning.message)]

        if __name__ == "__main__":
            before, outer, inner = sys.argv[1:]
            if before != "none":
                nested(before)
            for found, warned in joblib.Parallel(2, backend=outer)(joblib.delayed(nested)(inner) for _ in range(2)):
                assert found == [0, 1, 4]
                assert bool(warned) == (inner == "multiprocessing"), warned
            print("done")
    """
    assert python(code, before, outer, inner, timeout=60).stdout == "done\n"


def test_below_threads_and_daemons_one_job_and_joblibs_warning():
    def nested():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            pids = parallel()(delayed(os.getpid)() for _ in range(2))
        return pids, [str(warning.message) for warning in caught]

    found = Parallel(2, backend="threading")(delayed(nested)() for _ in range(2))
    assert {tuple(pids) for pids, _ in found} == {(os.getpid(), os.getpid())}
    assert any("cannot be nested below threads, setting n_jobs=1" in text for _, texts in found for text in texts)
    with copyless.Pool(1) as pool:
        pids, texts = pool.apply(nested)
        assert set(pids) != {os.getpid()}
        assert len(set(pids)) == 1
        assert "cannot be called in a multiprocessing, setting n_jobs=1" in "".join(texts)


# ---- workers


def test_workers_stay_for_the_next_call_and_there_may_be_more_or_fewer():
    def pids(n_jobs):
        return set(parallel(n_jobs)(delayed(pid_after)(0.02) for _ in range(4 * n_jobs)))

    def running():
        return {worker.pid for executor in copyless.joblib._executors for worker in executor._worker_pool.workers}

    first = pids(2)
    until(lambda: first <= running() and len(running()) == 2)
    two = running()
    assert pids(2) <= two
    assert running() == two
    assert pids(3)
    assert two < until(lambda: len(running()) == 3 and running())
    pids(2)
    until(lambda: len(running()) == 2)
    assert len(copyless.joblib._executors) == 1


def test_a_worker_without_tasks_ends_and_the_next_call_has_new_ones():
    more = {"idle_worker_timeout": 0.2}
    with parallel(**more) as held:
        first = set(held(delayed(os.getpid)() for _ in range(4)))
        executor = held._backend._workers
        until(lambda: not executor._worker_pool.workers, seconds=30)
        again = set(held(delayed(os.getpid)() for _ in range(4)))
        assert held._backend._workers is executor
        assert not first & again
    until(lambda: not executor._worker_pool.workers, seconds=30)


def test_two_threads_share_workers_and_one_that_fails_harms_not_the_other():
    started, errors = threading.Event(), []

    def other():
        try:
            started.set()
            with parallel() as held:
                for _ in range(20):
                    assert held(delayed(pow)(i, 2) for i in range(20)) == [i * i for i in range(20)]
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=other)
    thread.start()
    started.wait()
    for _ in range(5):
        with pytest.raises(ZeroDivisionError):
            parallel()(delayed(divmod)(1, i) for i in range(10))
    thread.join()
    assert errors == []


def test_a_generator_half_read_keeps_its_workers_from_other_calls():
    half = parallel(return_as="generator")(delayed(pow)(i, 2) for i in range(200))
    assert next(half) == 0
    assert parallel()(delayed(pow)(i, 3) for i in range(3)) == [0, 1, 8]
    with pytest.raises(ZeroDivisionError):
        parallel()([delayed(divmod)(1, 0)])
    assert list(half) == [i * i for i in range(1, 200)]


def test_a_call_inside_of_a_with_has_the_same_workers_and_may_end_them():
    with parallel() as held:
        executor = held._backend._workers
        assert held([delayed(abs)(-1)]) == [1]
        with parallel(3) as other:
            assert other._backend._workers is executor
            assert held([delayed(abs)(-1)]) == other([delayed(abs)(-1)]) == [1]
        with pytest.raises(ZeroDivisionError):
            parallel()([delayed(divmod)(1, 0)])
        assert held([delayed(abs)(-1)]) == [1]
        half = parallel(return_as="generator")(delayed(pow)(i, 2) for i in range(50))
        assert held([delayed(abs)(-1)]) == [1]
        with pytest.raises(ZeroDivisionError):
            held([delayed(divmod)(1, 0)])
        assert list(half) == [i * i for i in range(50)]
        assert held([delayed(abs)(-1)]) == [1]


def test_a_call_whose_tasks_come_from_another_call_ends():
    squares = parallel(return_as="generator")(delayed(pow)(i, 2) for i in range(50))
    assert parallel()(delayed(pow)(square, 1) for square in squares) == [i * i for i in range(50)]


def die_on(n):
    if n == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return n


def test_a_killed_worker_gives_joblibs_error_and_the_next_call_works():
    for _ in range(2):
        with pytest.raises(TerminatedWorkerError, match="SIGKILL") as caught:
            parallel()(delayed(die_on)(i) for i in range(8))
        assert isinstance(caught.value, BrokenProcessPool)
        assert isinstance(caught.value, copyless.WorkerDiedError)
        assert parallel()(delayed(abs)(-i) for i in range(5)) == [0, 1, 2, 3, 4]
    assert parallel()([delayed(os.getpid)()] * 2) != [os.getpid()] * 2


@pytest.mark.parametrize("inner", ["loky", "copyless"])
def test_a_call_that_fails_leaves_no_process_of_what_was_nested(inner, tmp_path):
    def nested(i):

        def sleep(number):
            (tmp_path / f"{i}-{number}").write_text(str(os.getpid()))
            time.sleep(300)

        if i < 2:
            return Parallel(2, backend=inner)(delayed(sleep)(number) for number in range(2))
        until_there = time.monotonic() + 30
        while len(list(tmp_path.iterdir())) < 2 and time.monotonic() < until_there:
            time.sleep(0.01)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        parallel(batch_size=1)(delayed(nested)(i) for i in (0, 2))
    pids = [int(path.read_text()) for path in tmp_path.iterdir()]
    assert len(pids) == 2
    until(lambda: not any(os.path.exists(f"/proc/{pid}/fd/0") for pid in pids), seconds=30)


def test_a_failing_initializer_is_an_error_and_no_hang():
    with pytest.raises(BrokenProcessPool, match="ZeroDivisionError"):
        parallel(initializer=divmod, initargs=(1, 0))(delayed(abs)(-i) for i in range(50))
    assert parallel()([delayed(abs)(-1)]) == [1]


def test_what_cannot_be_pickled_is_an_error_and_no_hang():
    import pickle

    with pytest.raises(pickle.PicklingError, match="Could not pickle the task to send"):
        parallel()(delayed(id)(threading.Lock()) for _ in range(9))
    with pytest.raises((TypeError, pickle.PicklingError)):
        parallel()(delayed(lambda: threading.Lock())() for _ in range(9))


# ---- the user's arguments


def kind():
    import multiprocessing

    return type(multiprocessing.current_process()).__name__


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_context_wins(method):
    import multiprocessing

    context = multiprocessing.get_context(method)
    wanted = [context.Process.__name__]
    with joblib.parallel_config("copyless", context=context):
        assert Parallel(2)([delayed(kind)()]) == wanted
    assert parallel(context=context)([delayed(kind)()]) == wanted
    assert Parallel(2, backend=copyless.joblib.Backend(context=context))([delayed(kind)()]) == wanted
    assert parallel()([delayed(kind)()]) == ["SpawnProcess"]


@pytest.mark.parametrize("how", ["parallel_config", "Backend", "Parallel"])
def test_max_nbytes_and_mmap_mode_win(how):
    array = np.ones(1000)
    more = {"max_nbytes": "1K", "mmap_mode": "r+"}
    if how == "parallel_config":
        with joblib.parallel_config("copyless", **more):
            found = Parallel(2)([delayed(here)(array)])
    elif how == "Backend":
        found = Parallel(2, backend=copyless.joblib.Backend(**more))([delayed(here)(array)])
    else:
        backend = copyless.joblib.Backend(max_nbytes=1 << 30, mmap_mode="c")
        found = Parallel(2, backend=backend, **more)([delayed(here)(array)])
    assert found == [(True, True)]
    assert Parallel(2, backend="copyless")([delayed(here)(array)]) == [(True, False)]
    assert Parallel(2, backend="copyless", max_nbytes=None)([delayed(here)(np.ones(MIB))])[0][0]


def test_unknown_arguments_are_refused_and_a_folder_is_said_to_be_ignored():
    with pytest.raises(TypeError, match="has no parameter max_bytes"):
        copyless.joblib.Backend(max_bytes=3)
    with pytest.raises(TypeError, match="has no parameter timeout_seconds"):
        parallel(timeout_seconds=3)([delayed(abs)(1)])
    with pytest.raises(ValueError, match="mmap_mode must be one of"):
        parallel(mmap_mode="rw")([delayed(abs)(1)])
    with pytest.warns(UserWarning, match="temp_folder is ignored"):
        parallel(temp_folder="/tmp")([delayed(abs)(1)])


# ---- threads of libraries


def threads():
    from threadpoolctl import threadpool_info

    np.ones((50, 50)) @ np.ones((50, 50))
    return sorted({found["num_threads"] for found in threadpool_info()}), os.environ.get("OMP_NUM_THREADS")


@pytest.mark.parametrize("method", [None, "fork", "spawn", "forkserver"])
def test_threads_inside_of_workers_are_limited(method):
    import multiprocessing

    pytest.importorskip("threadpoolctl")
    threads()  # they are loaded here, with one thread for each processor
    context = None if method is None else multiprocessing.get_context(method)
    for inner in (1, 2, 3):
        with joblib.parallel_config("copyless", inner_max_num_threads=inner, context=context):
            assert Parallel(2)(delayed(threads)() for _ in range(2)) == [([inner], str(inner))] * 2
    share = max(joblib.cpu_count() // 2, 1)
    with joblib.parallel_config("copyless", context=context):
        assert Parallel(2)(delayed(threads)() for _ in range(2)) == [([share], str(share))] * 2


def test_a_limit_that_cannot_be_held_is_refused(monkeypatch):
    import multiprocessing
    import sys

    monkeypatch.setitem(sys.modules, "threadpoolctl", None)
    with joblib.parallel_config("copyless", inner_max_num_threads=1, context=multiprocessing.get_context("fork")):
        with pytest.raises(ValueError, match="inner_max_num_threads cannot be enforced"):
            Parallel(2)([delayed(abs)(1)])
    with joblib.parallel_config("copyless", inner_max_num_threads=1):
        assert Parallel(2)([delayed(os.getenv)("OPENBLAS_NUM_THREADS")]) == ["1"]


def test_a_variable_of_the_program_wins_over_the_default(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert parallel()([delayed(os.getenv)("OMP_NUM_THREADS")]) == ["3"]


# ---- arrays


def test_how_a_moved_array_arrives():
    array = np.arange(float(MIB)).reshape(1024, -1)

    def write(array, i):
        try:
            array[0, i] = -1
        except ValueError:
            return "read-only"
        return (array[0, :4] == -1).sum()

    for mode, wanted in {"r": {"read-only"}, "r+": {1, 2, 3}, "w+": {1, 2, 3}, "c": {1}, None: {1}}.items():
        got = Parallel(2, backend="copyless", mmap_mode=mode, batch_size=1)(delayed(write)(array, i) for i in range(3))
        assert set(got) == wanted or (mode in ("r+", "w+") and set(got) <= wanted and max(got) > 1), (mode, got)
        assert array[0, 0] == 0
        assert array[0, 1] == 1


@pytest.fixture
def moves(monkeypatch):
    """How many arrays this process copied into shared memory."""
    from copyless import arrays

    moved, move = [], arrays.array
    monkeypatch.setattr(
        arrays, "array", lambda array, *more, **named: moved.append(array.shape) or move(array, *more, **named)
    )
    return moved


class Estimator:
    def __init__(self, weights):
        self.weights = weights


def test_arrays_inside_of_things_are_moved_once_for_all_tasks(moves):
    array = np.arange(float(MIB))
    other = np.asfortranarray(np.ones((700, 700)))
    frame = pd.DataFrame({"a": array, "b": array + 1})

    def look(things, frame, estimator):
        listed, named = things
        parts = [listed[1], named["x"], estimator.weights]
        return (
            [here(part) for part in parts],
            float(frame["a"].sum()),
            named["x"].flags.f_contiguous,
            here(frame["b"].to_numpy()),
        )

    for _ in range(2):
        moves.clear()
        got = Parallel(2, backend="copyless", batch_size=1)(
            delayed(look)([[1, array], {"x": other, "y": [1]}], frame, Estimator(array)) for _ in range(6)
        )
        assert got == [([(False, True)] * 3, float(array.sum()), True, (False, True))] * 6
        assert sorted(moves, key=len)[:1] == [array.shape]
        assert len(moves) == 3


def test_a_moved_array_goes_when_nobody_has_the_original_any_more():
    def arrays():
        for i in range(20):
            yield delayed(np.max)(np.full(MIB, i))

    most = []

    def watched():
        for call in arrays():
            gc.collect()
            most.append(len(held._backend._moved._arrays))
            yield call

    with Parallel(2, backend="copyless", batch_size=1, pre_dispatch=2) as held:
        assert held(watched()) == list(range(20))
    assert max(most) < 10


def test_arrow_columns_and_polars_frames_are_moved_once():
    pytest.importorskip("pyarrow")
    pl = pytest.importorskip("polars")
    texts = pd.DataFrame({"text": pd.array(["some text"] * 300_000, dtype="string[pyarrow]")})
    table = pl.DataFrame({"n": np.arange(300_000)})

    def look(frame, table):
        return copyless.is_shared(frame), copyless.is_shared(table), len(frame), int(table["n"].sum())

    with Parallel(2, backend="copyless", batch_size=1) as held:
        found = held(delayed(look)([texts][0], table) for _ in range(4))
    assert found == [(True, True, 300_000, sum(range(300_000)))] * 4


def test_an_array_over_a_file_is_the_file(tmp_path):
    output = np.memmap(tmp_path / "output", "i8", "w+", shape=10)

    def put(array, i):
        array[i] = i * i

    parallel()(delayed(put)(output, i) for i in range(10))
    assert output.tolist() == [i * i for i in range(10)]
    parallel()(delayed(put)(output[5:], i) for i in range(5))
    assert output.tolist() == [i * i for i in range(5)] * 2


def test_results_are_the_callers_own_memory():
    array = np.arange(float(MIB))
    ours = copyless.zeros(5)

    def give(array, ours):
        return array, [array[::2]], ours

    results = parallel()(delayed(give)(array, ours) for _ in range(3))
    for whole, _, _ in results:
        assert (whole == array).all()
        assert whole.flags.writeable
        whole[0] += 1
    assert [whole[0] for whole, *_ in results] == [1.0] * 3
    assert array[0] == 0
    assert not any(np.shares_memory(one[0], other[0]) for one in results for other in results if one is not other)
    results[0][2][0] = 7
    assert ours[0] == 7


def test_an_array_that_changes_between_calls_arrives_as_it_is_then():
    array = np.zeros(MIB)
    with parallel() as held:
        for i in range(3):
            array[:] = i
            assert held([delayed(np.max)(array)] * 2) == [i, i]


def test_retries_run_the_task_of_a_killed_worker_again(tmp_path):
    def once(path):
        if not path.exists():
            path.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return "done"

    assert parallel(retries=1)([delayed(once)(tmp_path / "mark")]) == ["done"]
