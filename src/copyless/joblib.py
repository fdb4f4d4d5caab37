"""A backend for joblib: ``import copyless.joblib``, then ``joblib.Parallel(n_jobs=4, backend="copyless")``.

Tasks run in worker processes that stay when a call ends and serve the next, as those of joblib's own ``loky`` backend do. They
are started by spawn, so that nothing of this process's threads (of OpenMP, of OpenBLAS) is in them, with the numbers of threads
they may use in their environment, and without the program's main module: it needs no guard, and what it defines goes by value.

Arrays and tables in shared memory go by handle. A private array above `max_nbytes`, wherever it lies in the arguments (a list, a
DataFrame, an estimator), is copied once for all tasks of a call, into shared memory, and arrives as `mmap_mode` says. What is
changed in it before the call ends does not reach the tasks that follow, as with joblib's own backends. Results are the
caller's own memory, and come by one copy.
"""

from __future__ import annotations

import contextlib
import copyreg
import functools
import inspect
import io
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from multiprocessing.reduction import ForkingPickler
from multiprocessing.util import Finalize
from types import FunctionType
from typing import Any

import numpy as np

try:
    import joblib
    from joblib import register_parallel_backend
    from joblib._memmapping_reducer import _get_backing_memmap, _reduce_memmap_backed
    from joblib._parallel_backends import AutoBatchingMixin, FallbackToBackend, ParallelBackendBase, SequentialBackend
    from joblib.disk import memstr_to_bytes
    from joblib.externals.loky import process_executor as loky
    from joblib.parallel import BatchedCalls
except ImportError as error:
    raise ImportError(f"the backend for joblib needs joblib: pip install 'copyless[joblib]' ({error})") from None

from copyless import _loaders, arrays, pickling, workers
from copyless._core import _pickles, _queue
from copyless._spawning import Spawn
from copyless.errors import CopylessError, TaskUnreadableError, WorkerDiedError
from copyless.futures import ProcessPoolExecutor

__all__ = ["Backend", "CopylessBackend", "TerminatedWorkerError", "UnreadableTaskError", "shutdown"]

_IDLE = 300.0  # seconds: joblib's own
_ROOM = 16  # workers that an executor can be widened to, at least
_UNUSED = 3  # executors that are kept for later calls
# What `Parallel` passes on whether its user said it or not.
_DEFAULTS = {"max_nbytes": 1 << 20, "temp_folder": None, "mmap_mode": "r", "verbose": 0}
_KNOWN = {
    *_DEFAULTS, "context", "retries", "initializer", "initargs", "idle_worker_timeout", "prefer", "require", "prewarm",
}  # fmt: skip
_MODES = ("r", "r+", "w+", "c", None)


class TerminatedWorkerError(WorkerDiedError, loky.TerminatedWorkerError):  # type: ignore[misc]
    """A worker process was killed or ended while it ran a task; also the error of that name of joblib's own backend."""


class UnreadableTaskError(TaskUnreadableError, loky.BrokenProcessPool, pickle.PicklingError):  # type: ignore[misc]
    """A task, its result or its exception could not be unpickled, or pickled; also what joblib's own backend raises then."""


# ---- the workers, which calls share


_lock = threading.RLock()
_executors: list[_Workers] = []  # the last used last


class _Workers(ProcessPoolExecutor):
    """Worker processes of one kind (`key`), and who uses them."""

    def __init__(self, key: Any, count: int, context: Any, retries: int, idle: float | None, begin: tuple[Any, ...]) -> None:
        self._room, self._idle = max(2 * count, joblib.cpu_count(), _ROOM), idle
        super().__init__(count, context, _loaders.joblib_begin, begin, retries=retries)
        self.key = key
        self.users: list[tuple[int, weakref.ref[Any]]] = []  # (thread, backend)
        self._call = workers._name_of(_loaders.joblib_call)

    def is_usable(self) -> bool:
        return not self._shut_down and self._crew.broken is None and self._crew.is_mine()

    def is_held(self) -> bool:
        """Whether a backend has it, in a call or (``with Parallel(...)``) between two."""
        self.users = [(who, user) for who, user in self.users if user() is not None]
        return bool(self.users) or self._crew.unfinished() > 0

    def is_busy(self, thread: int | None = None, but: Any = None) -> bool:
        """Whether a call of this thread runs in it; None: of any."""
        found = [(who, user()) for who, user in self.users]
        if any(thread in (None, who) and user is not but and user is not None and user._running for who, user in found):
            return True
        return thread is None and self._crew.unfinished() > 0

    def resize(self, count: int) -> bool:
        if count < self._max_workers and self.is_busy():
            return True  # others have their tasks in it
        if count != self._max_workers and not self._crew.resize(count):
            return False
        self._max_workers = count
        self._crew.window = min(count + 1, workers.ROWS)
        return True

    def submit_batch(self, batch: Any, moved: _Moved) -> Any:
        """A future of the results of some of joblib's tasks, sealed."""
        lasting = bool(self._crew._how[3])

        def seal(crew: Any) -> Any:
            try:
                calls = [(moved.name_of(function), args, kwargs) for function, args, kwargs in batch.items]
                task: Any = self._call, workers.FULL | workers._NAMED, [((moved.nested(batch), calls), {})]
                plain = _queue.plain_dumps(task)
                return workers.seal(task, make=moved.pickler, lasting=lasting) if plain is None else plain
            except CopylessError:
                raise
            except Exception as error:  # as joblib's own backend says it
                why = f"Could not pickle the task to send it to the workers: {type(error).__name__}: {error}"
                raise pickle.PicklingError(why) from error

        return self._submit(seal)


def _lease(key: Any, count: int, make: Callable[[], _Workers], user: Any) -> _Workers:
    """Workers of this kind: those that there are, unless a call of this very thread is at work with them (a generator half read)."""
    with _lock:
        thread, found = threading.get_ident(), None
        for executor in reversed(list(_executors)):
            if not executor.is_usable():
                _executors.remove(executor)
            elif found is None and executor.key == key and not executor.is_busy(thread):
                if executor.resize(count):
                    found = executor
                elif not executor.is_held():  # too small
                    _drop(executor)
        if found is None:
            found = make()
        else:
            _executors.remove(found)
        _executors.append(found)
        found.users.append((thread, weakref.ref(user)))
        _drop_unused()
        return found


def _give_back(executor: _Workers, user: Any) -> None:
    with _lock:
        executor.users = [(thread, who) for thread, who in executor.users if who() not in (None, user)]
        if executor not in _executors and not executor.users:
            executor.shutdown(wait=False)
        _drop_unused()


def _drop(executor: _Workers) -> None:
    with contextlib.suppress(ValueError):
        _executors.remove(executor)
    executor.shutdown(wait=False)


def _drop_unused() -> None:
    for executor in [executor for executor in _executors if not executor.is_held()][:-_UNUSED]:
        _drop(executor)


def shutdown(wait: bool = True) -> None:
    """End the workers that are kept for later calls; those of calls that run, when the calls end. Later calls start new ones.

    Nobody needs it: workers end by themselves, `idle_worker_timeout` after their last task, and with the program.

    Parameters
    ----------
    wait
        Whether to wait until they have ended.

    Examples
    --------
    >>> import copyless.joblib
    >>> copyless.joblib.shutdown()
    """
    with _lock:
        unused = [executor for executor in _executors if not executor.is_held()]
        _executors.clear()
    _end(unused, wait)


def _end(executors: list[_Workers], wait: bool = True) -> None:
    for executor in executors:  # all at once
        executor.shutdown(wait=False)
    for executor in executors if wait else ():
        executor.shutdown(wait=True)


def _end_workers() -> None:
    """This process ends: multiprocessing would wait for its workers, and they for tasks."""
    _end(list(_executors))
    if "joblib.externals.loky.process_executor" in sys.modules and multiprocessing.parent_process() is not None:
        loky._python_exit()


def _after_fork() -> None:
    global _lock
    _lock = threading.RLock()
    _executors.clear()


os.register_at_fork(after_in_child=_after_fork)
Finalize(None, _end_workers, exitpriority=100)


# ---- what a call sends


@functools.cache
def _pickler_class() -> Any:
    cloud: Any = pickling.cloud_pickler()
    of_cloudpickle = dict(cloud.dispatch_table.maps[2])

    class Pickler(cloud):  # type: ignore[misc]
        def __init__(self, stream: Any, beside: Any, own: dict[Any, Any]) -> None:
            known = ForkingPickler._extra_reducers  # type: ignore[attr-defined]
            self.dispatch_table = {**of_cloudpickle, **copyreg.dispatch_table, **known, **pickling.ours, **own}
            super().__init__(stream, 5, buffer_callback=beside)

    return Pickler


def _has_name(function: Any) -> bool:
    """Whether a worker finds a function by its name, and nobody wants it by value."""
    from cloudpickle.cloudpickle import _should_pickle_by_reference

    if function.__module__ == "__main__":
        return False
    return not isinstance(function, FunctionType) or bool(_should_pickle_by_reference(function))


def _plainly(array: Any) -> Any:
    """As an array crosses without us."""
    reduction = pickling.reduction_of(np.ndarray)
    return array.__reduce_ex__(5) if reduction is None else reduction(array)


def _over_file(array: Any) -> Any:
    """How an array over a `numpy.memmap` crosses: it is mapped again. None for others."""
    found = None if array.base is None else _get_backing_memmap(array)
    if isinstance(found, np.memmap) and found.filename is not None:
        return _reduce_memmap_backed(array, found)
    return None


class _Moved:
    """What was moved into shared memory for a call, by the identity of what it is a copy of."""

    def __init__(self, least: int | None, mode: str | None) -> None:
        self._least, self._mode = least, mode
        self._arrays: dict[int, tuple[weakref.ref[Any], Any]] = {}
        self._others: dict[Any, tuple[Any, Any]] = {}
        self._own: dict[Any, Any] = {np.ndarray: self._array, np.memmap: self._array}
        self._knows: set[str] = set()
        self._names: dict[int, tuple[Any, Any]] = {}
        self._nested: bytes | None = None

    def name_of(self, function: Any) -> Any:
        """A function as the pickle of its name; itself where it goes by value, since it may be another for the next batch."""
        if type(function) not in workers._WITH_NAMES:
            return function
        known = self._names.get(id(function))
        if known is None:
            name = workers._name_of(function) if _has_name(function) else None
            known = self._names[id(function)] = function, function if name is None else name
        return known[1]

    def nested(self, batch: Any) -> bytes:
        """The backend that calls inside of tasks have, and how many jobs: as joblib says it, the same for all batches."""
        if self._nested is None:
            self._nested = pickle.dumps((batch._backend, batch._n_jobs), 5)
        return self._nested

    def pickler(self, stream: Any, beside: Any) -> Any:
        if self._least is not None:
            for library in ("pyarrow", "polars"):
                if library in sys.modules and library not in self._knows:
                    self._know(library)
        return _pickler_class()(stream, beside, self._own)

    def _know(self, library: str) -> None:
        """Tables of a library that was imported meanwhile: what lies in them cannot be written to, so all modes are one."""
        with contextlib.suppress(ImportError, AttributeError):  # it is being imported
            from copyless import frames

            if library == "pyarrow":
                import pyarrow as pa

                self._own.update(dict.fromkeys(frames._every(pa.Buffer), self._buffer))
                if "pandas" in sys.modules:
                    frames._register_pandas()
            else:
                import polars as pl

                self._own.update(dict.fromkeys((pl.DataFrame, pl.Series), self._polars))
            self._knows.add(library)

    def _array(self, array: Any) -> Any:
        mapped = _over_file(array)
        if mapped is not None:
            return mapped
        if self._least is None or array.nbytes <= self._least or array.dtype.hasobject or arrays.shared_memory_of(array):
            return _plainly(array)
        key = id(array)
        known = self._arrays.get(key)
        if known is None or known[0]() is not array:
            shared = arrays.array(array.view(np.ndarray)).view(np.ndarray)
            shared.flags.writeable = self._mode in ("r+", "w+")

            def forget(reference: Any) -> None:
                if self._arrays.get(key, (None,))[0] is reference:
                    del self._arrays[key]

            known = self._arrays[key] = weakref.ref(array, forget), shared
        return _loaders.joblib_array, (known[1], self._mode in ("c", None))

    def _buffer(self, buffer: Any) -> Any:
        from copyless import frames

        if buffer.size > self._least and buffer.is_cpu and not frames.is_buffer_shared(buffer):
            key = buffer.address, buffer.size  # the objects that stand for a buffer come and go
            if key not in self._others:
                self._others[key] = buffer, frames.move(buffer)
            buffer = self._others[key][1]
        reduction = pickling.reduction_of(type(buffer))
        return buffer.__reduce_ex__(5) if reduction is None else reduction(buffer)

    def _polars(self, table: Any) -> Any:
        from copyless import frames, sharing

        if table.estimated_size() <= self._least:
            return table.__reduce_ex__(5)
        if id(table) not in self._others:
            self._others[id(table)] = table, sharing.share(table)
        return frames._polars_crossing(self._others[id(table)][1])


# ---- in a worker


_arrays_here: dict[int, weakref.ref[Any]] = {}  # those moved for a call that are here
_limits: Any = None


def _begin(environment: dict[str, str], initializer: Any, threads: int | None, depth: int) -> None:
    """A worker starts. `threads`: what libraries that were loaded before their variables were set may use."""
    global _limits
    os.environ.update(environment)
    loky._CURRENT_DEPTH = depth  # what is nested here falls back, and ends, as in joblib's own workers
    if threads is not None:
        with contextlib.suppress(ImportError):
            from threadpoolctl import threadpool_limits

            _limits = threadpool_limits(threads)
    if initializer is not None:
        function, arguments = initializer
        function(*arguments)


def _arrived(array: Any, copies: bool) -> Any:
    if copies:
        return array.copy(order="K")
    key = id(array)
    _arrays_here[key] = weakref.ref(array, lambda reference: _arrays_here.get(key) is reference and _arrays_here.pop(key))
    return array


def _result_array(array: Any) -> Any:
    """An array in a result: what was moved for the call goes by value, so that no two results are the same memory."""
    mapped = _over_file(array)
    if mapped is not None:
        return mapped
    root = array
    while isinstance(root.base, np.ndarray):
        root = root.base
    known = _arrays_here.get(id(root))
    return _plainly(array if known is None or known() is not root else array.copy(order="K"))


def _result_pickler(stream: Any, beside: Any) -> Any:
    return _pickler_class()(stream, beside, {np.ndarray: _result_array, np.memmap: _result_array})


@functools.lru_cache(8)
def _nested(data: bytes) -> Any:
    return _pickles.loads(data)


def _call(nested: bytes, calls: list[Any]) -> Any:
    """The results of a batch: a list of plain ones, or the list sealed."""
    items = [(workers._function_of(f) if type(f) is bytes else f, args, kwargs) for f, args, kwargs in calls]
    del calls
    results = BatchedCalls(items, _nested(nested))()
    del items
    if all(type(value) in workers._ATOMS for value in results):
        return results
    return workers.seal(results, make=_result_pickler)


# ---- the backend


def _context_given() -> Any:
    """The ``context=`` of the `Parallel` that makes a backend now: it keeps its own, and passes another."""
    frame, constructor = inspect.currentframe(), joblib.Parallel.__init__.__code__
    frame = None if frame is None else frame.f_back
    while frame is not None and frame.f_code is not constructor and frame.f_code.co_name == "__init__":
        frame = frame.f_back
    if frame is None or frame.f_code is not constructor:
        return None
    return frame.f_locals.get("backend_kwargs", {}).get("context")


class CopylessBackend(AutoBatchingMixin, ParallelBackendBase):  # type: ignore[misc]
    """CopylessBackend(nesting_level=None, inner_max_num_threads=None, *, max_nbytes="1M", mmap_mode="r", context=None, retries=0,
    idle_worker_timeout=300, initializer=None, initargs=())

    What ``backend="copyless"`` stands for; its parameters may be given to `joblib.parallel_config` and to `joblib.Parallel`, whose
    own win where both say something.

    Parameters
    ----------
    inner_max_num_threads
        Threads that OpenMP, OpenBLAS, MKL and their kin may use in each worker; None: as many as there are processors for it.
    max_nbytes
        Bytes above which an array is copied into shared memory once for all tasks of a call; None: never.
    mmap_mode
        How such an array arrives: "r" read-only; "r+" or "w+": what a task writes the others see, the caller does not;
        "c" or None: each task has a copy of its own.
    context
        A context of `multiprocessing.get_context`, which says how workers start, in the place of our own spawn. Under
        spawn and forkserver the program then needs a main guard. `Parallel` loses it where the backend is made before:
        give it to `parallel_config` there.
    retries
        How often a task whose worker died runs again.
    idle_worker_timeout
        Seconds after which a worker that had nothing to do ends.
    initializer, initargs
        Called in each worker as it starts.

    Raises
    ------
    TypeError
        For a parameter that it does not know.
    ValueError
        For an `mmap_mode` that there is not, and where `inner_max_num_threads` cannot be held: in workers that are forked, without
        threadpoolctl.

    Examples
    --------
    >>> import joblib, copyless.joblib
    >>> joblib.Parallel(n_jobs=2, backend="copyless")(joblib.delayed(pow)(2, n) for n in range(5))
    [1, 2, 4, 8, 16]
    """

    supports_retrieve_callback = True
    supports_inner_max_num_threads = True

    _workers: Any = None
    _done: Any = None
    _running = False  # a call

    def __init__(self, nesting_level: int | None = None, inner_max_num_threads: int | None = None, **asked: Any) -> None:
        super().__init__(nesting_level=nesting_level, inner_max_num_threads=inner_max_num_threads)
        self.backend_kwargs = asked
        _check_known(asked)
        self._context_of_parallel = _context_given()
        self._moved = _Moved(None, None)

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """How many workers: `n_jobs`, or for -1, -2, ... all processors, all but one, ...

        1, with a warning, where joblib's own backend falls back: in a daemonic process, and nested below threads.
        """
        if n_jobs == 0:
            raise ValueError("n_jobs == 0 in Parallel has no meaning")
        if n_jobs is None:
            return 1
        why = None
        if multiprocessing.current_process().daemon:
            why = "called in a multiprocessing"
        elif not (self.in_main_thread() or self.nesting_level == 0):
            why = "nested below threads"
        if why is not None:
            if n_jobs != 1:
                warnings.warn(f"copyless-backed parallel loops cannot be {why}, setting n_jobs=1", stacklevel=3)
            return 1
        return n_jobs if n_jobs > 0 else max(joblib.cpu_count() + 1 + n_jobs, 1)

    def configure(self, n_jobs: int = 1, parallel: Any = None, **passed: Any) -> int:
        count = self.effective_n_jobs(n_jobs)
        if count == 1:
            raise FallbackToBackend(SequentialBackend(nesting_level=self.nesting_level))
        _check_known(passed)
        passed.pop("context", None)  # what joblib says whatever its user did
        for name, value in _DEFAULTS.items():
            if passed.get(name, value) == value:
                passed.pop(name, None)
        options = {**_DEFAULTS, "retries": 0, **self.backend_kwargs, **passed}
        if self._context_of_parallel is not None:
            options["context"] = self._context_of_parallel
        if options["mmap_mode"] not in _MODES:
            raise ValueError(f"mmap_mode must be one of {_MODES}, not {options['mmap_mode']!r}")
        if options["temp_folder"] is not None:
            warnings.warn("the copyless backend writes no files: temp_folder is ignored", stacklevel=4)
        most = options["max_nbytes"]
        self._max_nbytes = memstr_to_bytes(most) if isinstance(most, str) else most
        self._mode = options["mmap_mode"]
        self._options = options
        self._count = count
        self.parallel = parallel
        self._release()
        self._workers = self._lease()
        return count

    def _lease(self) -> _Workers:
        """Workers as the options have them."""
        options = self._options
        environment = self._prepare_worker_env(self._count)
        context, threads = options.get("context"), self.inner_max_num_threads
        if context is None:
            starts: Any = Spawn(multiprocessing.get_context("spawn"), environment, imports_main=False)
        elif context.get_start_method() == "spawn":
            starts = Spawn(context, environment, imports_main=True)
        else:  # libraries may be loaded before a variable can be set
            starts = context
            if threads is not None and not _has_threadpoolctl():
                raise ValueError(
                    f"inner_max_num_threads cannot be held in workers started by {context.get_start_method()}: "
                    "pip install threadpoolctl, or leave context= away"
                )
            if threads is None and "OMP_NUM_THREADS" not in os.environ:
                threads = int(environment["OMP_NUM_THREADS"])
        idle = options.get("idle_worker_timeout")
        idle = _IDLE if idle is None else idle
        initializer, initargs = options.get("initializer"), tuple(options.get("initargs", ()))
        if initializer is not None and not callable(initializer):
            raise TypeError(f"initializer must be a callable, not {initializer!r}")
        begins = None if initializer is None else _Begins((initializer, initargs))
        depth = loky._CURRENT_DEPTH + 1
        if 0 < loky.MAX_DEPTH < depth:
            raise loky.LokyRecursionError(
                f"processes cannot be nested deeper than {loky.MAX_DEPTH}: the variable LOKY_MAX_DEPTH changes that"
            )
        key = tuple(sorted(environment.items())), threads, options["retries"], idle, _Same(context, initializer, *initargs)
        begin = environment, begins, threads, depth
        return _lease(key, self._count, lambda: _Workers(key, self._count, starts, options["retries"], idle, begin), self)

    def _release(self) -> None:
        executor, self._workers = self._workers, None
        if executor is not None:
            _give_back(executor, self)

    def start_call(self) -> None:
        with _lock:
            mine, thread = self._workers, threading.get_ident()
            # Between two calls of one `with` others use the workers: they may have ended, or be at work with a half read generator.
            if mine is None or not mine.is_usable() or mine.is_busy(thread, but=self) or not mine.resize(self._count):
                self._release()
                self._workers = self._lease()
            self._running = True
        self._moved = _Moved(self._max_nbytes, self._mode)
        self._done = threading.Event()
        self._futures: weakref.WeakSet[Any] = weakref.WeakSet()

    def submit(self, func: Any, callback: Any = None) -> Any:
        if self._workers is None:  # another call with this object ended meanwhile
            self._workers = self._lease()
        future: Any
        try:
            future = self._workers.submit_batch(func, self._moved)
        except Exception as error:  # in a thread of ours nobody would hear of it
            future = Future()
            future.set_exception(error)
        self._futures.add(future)
        if callback is not None:
            future.add_done_callback(functools.partial(self._tell, self._done, callback))
        return future

    apply_async = submit  # joblib before 1.5

    @staticmethod
    def _tell(done: Any, callback: Any, future: Any) -> None:
        try:
            callback(future)
        finally:
            parallel = getattr(callback, "parallel", None)
            if parallel is None or _is_over(parallel):
                done.set()

    @contextlib.contextmanager
    def retrieval_context(self) -> Iterator[None]:
        """Before the results are taken: wait until all are there, where nobody can take one before. joblib looks every 10 ms."""
        parallel, done = self.parallel, self._done
        if not parallel.return_generator and parallel.timeout is None:
            while not _is_over(parallel):
                done.wait(1)
                done.clear()
        yield

    def retrieve_result_callback(self, future: Any) -> Any:
        try:
            results = future.result()
        except WorkerDiedError as error:
            raise TerminatedWorkerError(*error.args) from error.__cause__
        except TaskUnreadableError as error:
            raise UnreadableTaskError(*error.args) from error.__cause__
        return results if type(results) is list else workers.unseal(results)

    def stop_call(self) -> None:
        self._running = False
        self._moved = _Moved(self._max_nbytes, self._mode)

    def terminate(self) -> None:
        """The call ends; the workers stay for the next."""
        self._running = False
        self._release()
        self.reset_batch_stats()

    def abort_everything(self, ensure_ready: bool = True) -> None:
        """End the workers with what they are at; where another thread's tasks are in them, only drop what has not begun."""
        executor = self._workers
        if executor is not None:
            with _lock:
                self._workers = None
                executor.users = [(thread, who) for thread, who in executor.users if who() not in (None, self)]
                alone = not any(user is not None and user._running for user in (user() for _, user in executor.users))
                if alone and executor in _executors:
                    _executors.remove(executor)
            if alone:
                nested = [pid for worker in executor._crew.workers for pid in _descendants(worker.pid)]
                executor.kill_workers()
                for pid in nested:  # what the tasks started would look for its parent long after
                    with contextlib.suppress(ProcessLookupError, PermissionError):
                        os.kill(pid, signal.SIGKILL)
                executor.shutdown(wait=True)  # no callback of this call may run in the next
            else:
                for waiting in list(self._futures):
                    waiting.cancel()
        if ensure_ready:
            self._workers = self._lease()


Backend = CopylessBackend


def _descendants(pid: int) -> list[int]:
    """The processes that a worker and its children started, but for the trackers, which clean up behind them and end."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/children") as stream:
                children = [int(child) for child in stream.read().split()]
            for child in children:
                with open(f"/proc/{child}/cmdline", "rb") as stream:
                    if b"resource_tracker" in stream.read():
                        continue
                found += [child, *_descendants(child)]
    return found


def _is_over(parallel: Any) -> bool:
    """Whether a call awaits nothing any more."""
    waits = getattr(parallel, "_wait_retrieval", None)
    return waits is None or parallel._aborting or not waits()


class _Same:
    """Equal to one of the same objects, which it keeps; numbers and texts may be other objects of the same value."""

    def __init__(self, *objects: Any) -> None:
        self._objects = objects

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Same) or len(self._objects) != len(other._objects):
            return False
        pairs = zip(self._objects, other._objects)  # noqa: B905
        return all(a is b or (type(a) is type(b) and type(a) in workers._ATOMS and a == b) for a, b in pairs)

    __hash__ = None  # type: ignore[assignment]


class _Begins(tuple[Any, ...]):
    """(function, arguments) that each worker calls first: pickled by value, and as the process starts, as locks of multiprocessing want it."""

    __slots__ = ()

    def __reduce__(self) -> Any:
        stream = io.BytesIO()
        pickling.cloud_pickler()(stream, 5).dump(tuple(self))
        return _loaders.joblib_begins, (stream.getvalue(),)


def _has_threadpoolctl() -> bool:
    try:
        import threadpoolctl  # noqa: F401
    except ImportError:
        return False
    return True


def _check_known(options: dict[str, Any]) -> None:
    unknown = sorted(set(options) - _KNOWN)
    if unknown:
        raise TypeError(f"the copyless backend knows no parameter {', '.join(unknown)}: it knows {', '.join(sorted(_KNOWN))}")


def register() -> None:
    """Make ``backend="copyless"`` known to joblib; importing this module does."""
    register_parallel_backend("copyless", CopylessBackend)


register()
