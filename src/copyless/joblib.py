"""A backend for joblib: ``import copyless.joblib``, then ``joblib.Parallel(n_jobs=4, backend="copyless")``.

Tasks run in worker processes that stay after a call and serve the next one, like those of joblib's own ``loky``
backend. Workers are started by spawn, so that no thread of this process (of OpenMP, of OpenBLAS) affects them, and with
the numbers of threads that they may use in their environment. They do not import the program's main module: it needs no
guard, and functions and classes that it defines are sent by value.

Arrays and tables in shared memory are sent as handles. A private array above `max_nbytes`, wherever it is in the
arguments (in a list, a DataFrame, an estimator), is copied into shared memory once for all tasks of a call, and arrives
as `mmap_mode` says. Changes to it before the call ends do not reach the remaining tasks, as with joblib's own backends.
Results are copied once, into memory of the caller's own.
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
from multiprocessing.util import Finalize
from types import FunctionType
from typing import TYPE_CHECKING, Any

import numpy as np

try:
    import joblib
    from joblib import register_parallel_backend
    from joblib._memmapping_reducer import _get_backing_memmap, _reduce_memmap_backed
    from joblib._parallel_backends import AutoBatchingMixin, FallbackToBackend, ParallelBackendBase, SequentialBackend
    from joblib.disk import memstr_to_bytes
    from joblib.externals.loky import process_executor as loky
    from joblib.parallel import BatchedCalls
except ImportError as _error:
    raise ImportError(f"the backend for joblib needs joblib: pip install 'copyless[joblib]' ({_error})") from None

from copyless import _libraries, _loaders, _platform, arrays
from copyless._core import _pickles
from copyless._storage.settings import states_threads, update_environment
from copyless._transfer import _array_type, _plain, in_flight, packing
from copyless._transfer.sealed import seal, unseal
from copyless._workers.named_functions import WITH_NAMES, function_of, name_of
from copyless._workers.protocol import ATOMS, FULL, NAMED, ROWS
from copyless._workers.spawning import Spawn
from copyless.errors import CopylessError, TaskUnreadableError, WorkerDiedError
from copyless.futures import ProcessPoolExecutor

if TYPE_CHECKING:
    import polars as pl
    import pyarrow as pa
    from numpy.typing import NDArray

__all__ = ["Backend", "CopylessBackend", "TerminatedWorkerError", "UnreadableTaskError", "shutdown"]

Reductions = dict[type, Callable[[Any], object]]

_IDLE = 300.0  # seconds; joblib's own default
_ROOM = 16  # workers to which an executor can grow, at least
_UNUSED = 3  # executors that are kept for later calls
# Options that `Parallel` always passes on, whether the user gave them or not.
_DEFAULTS = {"max_nbytes": 1 << 20, "temp_folder": None, "mmap_mode": "r", "verbose": 0}
_KNOWN = {
    *_DEFAULTS, "context", "retries", "initializer", "initargs", "idle_worker_timeout", "prefer", "require", "prewarm",
}  # fmt: skip
_MODES = ("r", "r+", "w+", "c", None)


class TerminatedWorkerError(WorkerDiedError, loky.TerminatedWorkerError):  # type: ignore[misc]
    """A worker process was killed or ended while it ran a task. Also joblib's error of that name."""


class UnreadableTaskError(TaskUnreadableError, loky.BrokenProcessPool, pickle.PicklingError):  # type: ignore[misc]
    """A task, its result or its exception could not be pickled or unpickled. Also the error that joblib's own backend
    raises then.
    """


# ---- workers, which calls share


_lock = threading.RLock()
_executors: list[_Workers] = []  # the most recently used one last


class _Workers(ProcessPoolExecutor):
    """Worker processes with the same options (`key`), and the backends that use them."""

    def __init__(self, key: object, count: int, context: Any, retries: int, idle: float | None, begin: Any) -> None:
        self._room, self._idle = max(2 * count, joblib.cpu_count(), _ROOM), idle
        super().__init__(count, context, _loaders.joblib_begin, begin, retries=retries)
        self.key = key
        self.users: list[tuple[int, weakref.ref[CopylessBackend]]] = []  # (thread, backend)
        self._call = name_of(_loaders.joblib_call)

    def is_usable(self) -> bool:
        return not self._shut_down and self._worker_pool.broken is None and self._worker_pool.is_mine()

    def is_held(self) -> bool:
        """Whether a backend has it, in a call or (``with Parallel(...)``) between two calls."""
        self.users = [(who, user) for who, user in self.users if user() is not None]
        return bool(self.users) or self._worker_pool.unfinished() > 0

    def is_busy(self, thread: int | None = None, but: CopylessBackend | None = None) -> bool:
        """Whether a call of this thread runs in it; with None, a call of any thread."""
        found = [(who, user()) for who, user in self.users]
        if any(thread in (None, who) and user is not but and user is not None and user._running for who, user in found):
            return True
        return thread is None and self._worker_pool.unfinished() > 0

    def resize(self, count: int) -> bool:
        if count < self._max_workers and self.is_busy():
            return True  # other calls have tasks in it
        if count != self._max_workers and not self._worker_pool.resize(count):
            return False
        self._max_workers = count
        self._worker_pool.window = min(count + 1, ROWS)
        return True

    def submit_batch(self, batch: BatchedCalls, moved: _Moved) -> Future[Any]:
        """A future of the results of a batch of joblib's tasks, sealed."""
        lasting = bool(self._worker_pool.retries)

        def pack(pool: object) -> object:
            try:
                calls = [(moved.name_of(function), args, kwargs) for function, args, kwargs in batch.items]
                task: object = self._call, FULL | NAMED, [((moved.nested(batch), calls), {})]
                plain = _plain.plain_dumps(task)
                return seal(task, make=moved.pickler, lasting=lasting) if plain is None else plain
            except CopylessError:
                raise
            except Exception as error:  # the text of joblib's own backend
                why = f"Could not pickle the task to send it to the workers: {type(error).__name__}: {error}"
                raise pickle.PicklingError(why) from error

        return self._submit(pack)


def _lease(key: object, count: int, make: Callable[[], _Workers], user: CopylessBackend) -> _Workers:
    """Workers with these options: existing ones, unless a call of this thread already uses them (a generator that is
    half read).
    """
    with _lock:
        thread, found = threading.get_ident(), None
        for executor in reversed(list(_executors)):
            if not executor.is_usable():
                _executors.remove(executor)
            elif found is None and executor.key == key and not executor.is_busy(thread):
                if executor.resize(count):
                    found = executor
                elif not executor.is_held():  # too few workers
                    _drop(executor)
        if found is None:
            found = make()
        else:
            _executors.remove(found)
        _executors.append(found)
        found.users.append((thread, weakref.ref(user)))
        _drop_unused()
        return found


def _give_back(executor: _Workers, user: CopylessBackend) -> None:
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
    """End the workers that are kept for later calls. Workers of a running call end with the call. Later calls start new
    ones.

    Calling it is never necessary: workers end by themselves, `idle_worker_timeout` after their last task, and with the
    program.

    Parameters
    ----------
    wait : bool
        Wait until the workers have ended.

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
    for executor in executors:  # all at the same time
        executor.shutdown(wait=False)
    for executor in executors if wait else ():
        executor.shutdown(wait=True)


def _end_workers() -> None:
    """At exit of this process: end the workers. Otherwise multiprocessing would wait for them, and they for tasks."""
    _end(list(_executors))
    if "joblib.externals.loky.process_executor" in sys.modules and multiprocessing.parent_process() is not None:
        loky._python_exit()


def _after_fork() -> None:
    global _lock
    _lock = threading.RLock()
    _executors.clear()


os.register_at_fork(after_in_child=_after_fork)
Finalize(None, _end_workers, exitpriority=100)


# ---- what a call sends to its workers


@functools.cache
def _pickler_class() -> Callable[..., pickle.Pickler]:
    cloud: Any = packing.cloud_pickler()
    of_cloudpickle = dict(cloud.dispatch_table.maps[2])

    class Pickler(cloud):  # type: ignore[misc]
        def __init__(self, stream: io.BytesIO, beside: Callable[[pickle.PickleBuffer], bool], own: Reductions) -> None:
            known = in_flight.extra_reducers()
            self.dispatch_table = {
                **of_cloudpickle,
                **copyreg.dispatch_table,
                **known,
                **in_flight.ours,
                **_libraries.reductions(),
                **own,
            }
            super().__init__(stream, 5, buffer_callback=beside)

    return Pickler


def _has_name(function: Callable[..., object]) -> bool:
    """Whether a worker can find a function by its name, and it need not be sent by value."""
    from cloudpickle.cloudpickle import _should_pickle_by_reference

    if function.__module__ == "__main__":
        return False
    return not isinstance(function, FunctionType) or bool(_should_pickle_by_reference(function))


def _plainly(array: NDArray[Any]) -> object:
    """The reduction of an array without copyless."""
    reduction = in_flight.reduction_of(np.ndarray)
    return array.__reduce_ex__(5) if reduction is None else reduction(array)


def _over_file(array: NDArray[Any]) -> object:
    """The reduction of an array over a `numpy.memmap`, which maps the file again; None for other arrays."""
    found = None if array.base is None else _get_backing_memmap(array)
    if isinstance(found, np.memmap) and found.filename is not None:
        return _reduce_memmap_backed(array, found)
    return None


class _Moved:
    """The objects that were copied into shared memory for a call, by the identity of the original."""

    def __init__(self, least: int | None, mode: str | None) -> None:
        self._least, self._mode = least, mode
        self._arrays: dict[int, tuple[weakref.ref[NDArray[Any]], NDArray[Any]]] = {}
        self._others: dict[object, tuple[object, Any]] = {}
        self._own: Reductions = {np.ndarray: self._array, np.memmap: self._array}
        self._registered: set[str] = set()  # libraries
        self._names: dict[int, tuple[object, object]] = {}
        self._nested: bytes | None = None

    def name_of(self, function: Callable[..., object]) -> object:
        """The pickle of a function's name; the function itself if it is sent by value, since it may change before
        the next batch.
        """
        if type(function) not in WITH_NAMES:
            return function
        known = self._names.get(id(function))
        if known is None:
            name = name_of(function) if _has_name(function) else None
            known = self._names[id(function)] = function, function if name is None else name
        return known[1]

    def nested(self, batch: BatchedCalls) -> bytes:
        """The backend and number of jobs for nested calls, as joblib determines them: the same for all batches."""
        if self._nested is None:
            self._nested = pickle.dumps((batch._backend, batch._n_jobs), 5)
        return self._nested

    def pickler(self, stream: io.BytesIO, beside: Callable[[pickle.PickleBuffer], bool]) -> pickle.Pickler:
        if self._least is not None:
            for library in ("pyarrow", "polars"):
                if library in sys.modules and library not in self._registered:
                    self._register(library)
        return _pickler_class()(stream, beside, self._own)

    def _register(self, library: str) -> None:
        """Register the tables of a library that was imported meanwhile. They are read-only, so all modes are the
        same.
        """
        with contextlib.suppress(ImportError, AttributeError):  # the library is still being imported
            if library == "pyarrow":
                from copyless._libraries import arrow

                self._own.update(dict.fromkeys(arrow.buffer_kinds(), self._buffer))
                if "pandas" in sys.modules:
                    from copyless._libraries import pandas

                    pandas.LIBRARY.register()
            else:
                import polars as pl

                self._own.update(dict.fromkeys((pl.DataFrame, pl.Series), self._polars))
            self._registered.add(library)

    def _array(self, array: NDArray[Any]) -> object:
        mapped = _over_file(array)
        if mapped is not None:
            return mapped
        if (
            self._least is None
            or array.nbytes <= self._least
            or array.dtype.hasobject
            or _array_type.shared_memory_of(array)
        ):
            return _plainly(array)
        key = id(array)
        known = self._arrays.get(key)
        if known is None or known[0]() is not array:
            shared = arrays.array(array.view(np.ndarray)).view(np.ndarray)
            shared.flags.writeable = self._mode in ("r+", "w+")

            def forget(reference: object) -> None:
                if self._arrays.get(key, (None,))[0] is reference:
                    del self._arrays[key]

            known = self._arrays[key] = weakref.ref(array, forget), shared
        return _loaders.joblib_array, (known[1], self._mode in ("c", None))

    def _buffer(self, buffer: pa.Buffer) -> object:
        from copyless._libraries import arrow

        if buffer.size > self._least and buffer.is_cpu and not arrow.is_buffer_shared(buffer):
            key = buffer.address, buffer.size  # the Python objects for one buffer are temporary
            if key not in self._others:
                self._others[key] = buffer, arrow.LIBRARY.move(buffer)
            buffer = self._others[key][1]
        reduction = in_flight.reduction_of(type(buffer))
        return buffer.__reduce_ex__(5) if reduction is None else reduction(buffer)

    def _polars(self, table: pl.DataFrame | pl.Series) -> object:
        from copyless import _share
        from copyless._libraries import polars

        if table.estimated_size() <= self._least:
            return table.__reduce_ex__(5)
        if id(table) not in self._others:
            self._others[id(table)] = table, _share.share(table)
        return polars.crossing(self._others[id(table)][1])


# ---- in a worker


_arrays_here: dict[int, weakref.ref[NDArray[Any]]] = {}  # the arrays of calls that have arrived in this worker
_limits: object = None


def _begin(
    environment: dict[str, str],
    initializer: tuple[Callable[..., object], tuple[object, ...]] | None,
    threads: int | None,
    depth: int,
) -> None:
    """Start a worker. `threads`: how many threads libraries may use that were loaded before their variables were
    set.
    """
    global _limits
    update_environment(environment)
    loky._CURRENT_DEPTH = depth  # nested calls fall back, and end, as in joblib's own workers
    if threads is not None:
        with contextlib.suppress(ImportError):
            from threadpoolctl import threadpool_limits

            _limits = threadpool_limits(threads)
    if initializer is not None:
        function, arguments = initializer
        function(*arguments)


def _arrived(array: NDArray[Any], copies: bool) -> NDArray[Any]:
    if copies:
        copied: NDArray[Any] = array.copy(order="K")
        return copied
    key = id(array)
    _arrays_here[key] = weakref.ref(
        array, lambda reference: _arrays_here.get(key) is reference and _arrays_here.pop(key)
    )
    return array


def _result_array(array: NDArray[Any]) -> object:
    """The reduction of an array in a result. An array that was copied for the call is sent by value, so that no two
    results share memory.
    """
    mapped = _over_file(array)
    if mapped is not None:
        return mapped
    root = array
    while isinstance(root.base, np.ndarray):
        root = root.base
    known = _arrays_here.get(id(root))
    return _plainly(array if known is None or known() is not root else array.copy(order="K"))


def _result_pickler(stream: io.BytesIO, beside: Callable[[pickle.PickleBuffer], bool]) -> pickle.Pickler:
    return _pickler_class()(stream, beside, {np.ndarray: _result_array, np.memmap: _result_array})


@functools.lru_cache(8)
def _nested(data: bytes) -> object:
    return _pickles.loads(data)


def _call(nested: bytes, calls: list[Any]) -> object:
    """The results of a batch: a list of plain values, or the list sealed."""
    items = [(function_of(f) if type(f) is bytes else f, args, kwargs) for f, args, kwargs in calls]
    del calls
    results = BatchedCalls(items, _nested(nested))()
    del items
    if all(type(value) in ATOMS for value in results):
        return results
    return seal(results, make=_result_pickler)


# ---- the backend


def _context_given() -> object:
    """The ``context=`` of the `Parallel` that makes a backend now: `Parallel` keeps it and passes on another one."""
    frame, constructor = inspect.currentframe(), joblib.Parallel.__init__.__code__
    frame = None if frame is None else frame.f_back
    while frame is not None and frame.f_code is not constructor and frame.f_code.co_name == "__init__":
        frame = frame.f_back
    if frame is None or frame.f_code is not constructor:
        return None
    return frame.f_locals.get("backend_kwargs", {}).get("context")


class CopylessBackend(AutoBatchingMixin, ParallelBackendBase):  # type: ignore[misc]
    """CopylessBackend(nesting_level=None, inner_max_num_threads=None, *, max_nbytes="1M", mmap_mode="r", context=None,
    retries=0, idle_worker_timeout=300, initializer=None, initargs=())

    The backend for ``backend="copyless"``. Its parameters can be given to `joblib.parallel_config` and to
    `joblib.Parallel`; those of `joblib.Parallel` take precedence.

    Parameters
    ----------
    inner_max_num_threads
        Threads that OpenMP, OpenBLAS, MKL and similar libraries may use in each worker; None: the processors divided by
        the number of workers.
    max_nbytes
        Bytes above which an array is copied into shared memory once for all tasks of a call; None: never.
    mmap_mode
        How such an array arrives: "r": read-only. "r+" or "w+": writable; other tasks see the changes, the caller does
        not. "c" or None: each task has its own copy.
    context
        A context of `multiprocessing.get_context`, which determines the start method; default: spawn without the main
        module. With a context of spawn or forkserver, the program needs a main guard. `Parallel` does not pass it on if
        the backend was made before: give it to `parallel_config` then.
    retries
        How often a task runs again if its worker died.
    idle_worker_timeout
        Seconds after which an idle worker ends.
    initializer, initargs
        A function that each worker calls when it starts, and its arguments.

    Raises
    ------
    TypeError
        For an unknown parameter.
    ValueError
        For an unknown `mmap_mode`, and if `inner_max_num_threads` cannot be enforced: in forked workers without
        threadpoolctl.

    Examples
    --------
    >>> import joblib, copyless.joblib
    >>> joblib.Parallel(n_jobs=2, backend="copyless")(joblib.delayed(pow)(2, n) for n in range(5))
    [1, 2, 4, 8, 16]
    """

    supports_retrieve_callback = True
    supports_inner_max_num_threads = True

    _workers: _Workers | None = None
    _done: threading.Event
    _running = False  # whether a call runs

    def __init__(
        self, nesting_level: int | None = None, inner_max_num_threads: int | None = None, **asked: Any
    ) -> None:
        super().__init__(nesting_level=nesting_level, inner_max_num_threads=inner_max_num_threads)
        self.backend_kwargs = asked
        _check_known(asked)
        self._context_of_parallel = _context_given()
        self._moved = _Moved(None, None)

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """The number of workers: `n_jobs`, or for -1, -2, ... all processors, all but one, ...

        It is 1, with a warning, where joblib's own backend falls back: in a daemonic process, and nested below threads.
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

    def configure(self, n_jobs: int = 1, parallel: object = None, **passed: object) -> int:
        count = self.effective_n_jobs(n_jobs)
        if count == 1:
            raise FallbackToBackend(SequentialBackend(nesting_level=self.nesting_level))
        _check_known(passed)
        passed.pop("context", None)  # joblib always passes it on
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
        """Workers with the options of this backend."""
        options = self._options
        environment = self._prepare_worker_env(self._count)
        context, threads = options.get("context"), self.inner_max_num_threads
        if context is None:
            starts: object = Spawn(multiprocessing.get_context("spawn"), environment, imports_main=False)
        elif context.get_start_method() == "spawn":
            starts = Spawn(context, environment, imports_main=True)
        else:  # libraries may be loaded before their variables can be set
            starts = context
            if threads is not None and not _has_threadpoolctl():
                raise ValueError(
                    f"inner_max_num_threads cannot be enforced in workers started by {context.get_start_method()}: "
                    "pip install threadpoolctl, or leave out context="
                )
            if threads is None and not states_threads():
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
                f"processes cannot be nested deeper than {loky.MAX_DEPTH}: set the variable LOKY_MAX_DEPTH to "
                "allow more"
            )
        key = (
            tuple(sorted(environment.items())),
            threads,
            options["retries"],
            idle,
            _Same(context, initializer, *initargs),
        )
        begin = environment, begins, threads, depth
        return _lease(
            key, self._count, lambda: _Workers(key, self._count, starts, options["retries"], idle, begin), self
        )

    def _release(self) -> None:
        executor, self._workers = self._workers, None
        if executor is not None:
            _give_back(executor, self)

    def start_call(self) -> None:
        with _lock:
            mine, thread = self._workers, threading.get_ident()
            # Between two calls of one `with`, other calls use the workers: they may have ended, or be busy with a
            # generator that is half read.
            if mine is None or not mine.is_usable() or mine.is_busy(thread, but=self) or not mine.resize(self._count):
                self._release()
                self._workers = self._lease()
            self._running = True
        self._moved = _Moved(self._max_nbytes, self._mode)
        self._done = threading.Event()
        self._futures: weakref.WeakSet[Future[Any]] = weakref.WeakSet()

    def submit(self, func: BatchedCalls, callback: Callable[[Any], object] | None = None) -> Future[Any]:
        if self._workers is None:  # meanwhile another call of this object has ended
            self._workers = self._lease()
        future: Future[Any]
        try:
            future = self._workers.submit_batch(func, self._moved)
        except Exception as error:  # in this thread no caller would see it
            future = Future()
            future.set_exception(error)
        self._futures.add(future)
        if callback is not None:
            future.add_done_callback(functools.partial(self._tell, self._done, callback))
        return future

    apply_async = submit  # joblib before 1.5

    @staticmethod
    def _tell(done: threading.Event, callback: Callable[[Future[Any]], object], future: Future[Any]) -> None:
        try:
            callback(future)
        finally:
            parallel = getattr(callback, "parallel", None)
            if parallel is None or _is_over(parallel):
                done.set()

    @contextlib.contextmanager
    def retrieval_context(self) -> Iterator[None]:
        """Called before results are taken: wait until all are there, if no result can be taken before.

        joblib checks every 10 ms.
        """
        parallel: Any = self.parallel
        done = self._done
        if not parallel.return_generator and parallel.timeout is None:
            while not _is_over(parallel):
                done.wait(1)
                done.clear()
        yield

    def retrieve_result_callback(self, future: Future[Any]) -> Any:
        try:
            results = future.result()
        except WorkerDiedError as error:
            raise TerminatedWorkerError(*error.args) from error.__cause__
        except TaskUnreadableError as error:
            raise UnreadableTaskError(*error.args) from error.__cause__
        return results if type(results) is list else unseal(results)

    def stop_call(self) -> None:
        self._running = False
        self._moved = _Moved(self._max_nbytes, self._mode)

    def terminate(self) -> None:
        """End the call. The workers stay for the next one."""
        self._running = False
        self._release()
        self.reset_batch_stats()

    def abort_everything(self, ensure_ready: bool = True) -> None:
        """End the workers with their tasks. If another thread has tasks in them, only drop the tasks that have not
        begun.
        """
        executor = self._workers
        if executor is not None:
            with _lock:
                self._workers = None
                executor.users = [(thread, who) for thread, who in executor.users if who() not in (None, self)]
                alone = not any(user is not None and user._running for user in (user() for _, user in executor.users))
                if alone and executor in _executors:
                    _executors.remove(executor)
            if alone:
                nested = [pid for worker in executor._worker_pool.workers for pid in _descendants(worker.pid)]
                executor.kill_workers()
                for pid in nested:  # processes that tasks started would notice the end of their parent only much later
                    with contextlib.suppress(ProcessLookupError, PermissionError):
                        os.kill(pid, signal.SIGKILL)
                executor.shutdown(wait=True)  # no callback of this call may run during the next one
            else:
                for waiting in list(self._futures):
                    waiting.cancel()
        if ensure_ready:
            self._workers = self._lease()


Backend = CopylessBackend


def _descendants(pid: int) -> list[int]:
    """The processes that a worker and its children started, except the resource trackers, which clean up after them
    and end.
    """
    found: list[int] = []
    for child in _platform.children_of(pid):
        command = _platform.command_line(child)
        if command is not None and b"resource_tracker" not in command:
            found += [child, *_descendants(child)]
    return found


def _is_over(parallel: Any) -> bool:
    """Whether a call waits for nothing any more."""
    waits = getattr(parallel, "_wait_retrieval", None)
    return waits is None or parallel._aborting or not waits()


class _Same:
    """Equal to one that holds the same objects; numbers and texts compare by value."""

    def __init__(self, *objects: object) -> None:
        self._objects = objects

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Same) or len(self._objects) != len(other._objects):
            return False
        pairs = zip(self._objects, other._objects)  # noqa: B905
        return all(a is b or (type(a) is type(b) and type(a) in ATOMS and a == b) for a, b in pairs)


class _Begins(tuple[object, ...]):
    """(function, arguments) that each worker calls first. Pickled by value, and while the process starts, as locks of
    multiprocessing require.
    """

    __slots__ = ()

    def __reduce__(self) -> Any:
        stream = io.BytesIO()
        packing.cloud_pickler()(stream, 5).dump(tuple(self))
        return _loaders.joblib_begins, (stream.getvalue(),)


def _has_threadpoolctl() -> bool:
    try:
        import threadpoolctl  # noqa: F401
    except ImportError:
        return False
    return True


def _check_known(options: dict[str, object]) -> None:
    unknown = sorted(set(options) - _KNOWN)
    if unknown:
        raise TypeError(
            f"the copyless backend has no parameter {', '.join(unknown)}: its parameters are "
            f"{', '.join(sorted(_KNOWN))}"
        )


def register() -> None:
    """Register ``backend="copyless"`` with joblib. Importing this module does it."""
    register_parallel_backend("copyless", CopylessBackend)


register()
