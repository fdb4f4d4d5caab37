"""A backend for joblib: ``import copyless.joblib``, then ``joblib.Parallel(n_jobs=4, backend="copyless")``.

Tasks run in a `copyless.ProcessPoolExecutor`: arrays and tables in shared memory go by handle, results come back by one copy,
functions without a name by value, and a killed worker fails its task with `WorkerDiedError` while the workers go on. As with
joblib's own backends, a large private array that is an argument of many tasks is copied once, into shared memory, and arrives
read-only.
"""

from __future__ import annotations

import multiprocessing
from typing import Any

import numpy as np

try:
    from joblib import parallel, register_parallel_backend
    from joblib._parallel_backends import AutoBatchingMixin, FallbackToBackend, ParallelBackendBase, SequentialBackend
except ImportError as error:
    raise ImportError(f"the backend for joblib needs joblib: pip install 'copyless[joblib]' ({error})") from None

from copyless import _loaders, arrays
from copyless.futures import ProcessPoolExecutor
from copyless.storage.settings import processors

__all__ = ["Backend"]


class Backend(AutoBatchingMixin, ParallelBackendBase):  # type: ignore[misc]
    """Backend(nesting_level=None, inner_max_num_threads=None, *, max_nbytes=1048576, context=None, retries=0, initializer=None, initargs=())

    What ``backend="copyless"`` stands for; its parameters may be given to `joblib.parallel_config`.

    Parameters
    ----------
    max_nbytes
        Bytes from which an array that is an argument is copied into shared memory once for all tasks; None: never.
    context
        A context of `multiprocessing.get_context`, which says how workers start.
    retries
        How often a task whose worker died runs again.
    initializer, initargs
        Called in each worker as it starts.

    Examples
    --------
    >>> import joblib, copyless.joblib
    >>> joblib.Parallel(n_jobs=2, backend="copyless")(joblib.delayed(pow)(2, n) for n in range(5))
    [1, 2, 4, 8, 16]
    """

    supports_retrieve_callback = True
    supports_inner_max_num_threads = True

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """How many workers: `n_jobs`, or for -1, -2, ... all processors, all but one, ...; 1 inside a daemonic worker."""
        if n_jobs == 0:
            raise ValueError("n_jobs == 0 in Parallel has no meaning")
        if n_jobs is None or multiprocessing.current_process().daemon:
            return 1
        return n_jobs if n_jobs > 0 else max(processors() + 1 + n_jobs, 1)

    def configure(self, n_jobs: int = 1, parallel: Any = None, **options: Any) -> int:
        options = {**self.backend_kwargs, **options}
        count = self.effective_n_jobs(n_jobs)
        if count == 1:
            raise FallbackToBackend(SequentialBackend(nesting_level=self.nesting_level))
        self._max_nbytes = options.get("max_nbytes", 1 << 20)  # joblib has made a number of "1M"
        self._options = {
            "mp_context": options.get("context"),
            "retries": options.get("retries", 0),
            "initializer": _loaders.joblib_worker,
            "initargs": (self._prepare_worker_env(count), options.get("initializer"), options.get("initargs", ())),
        }
        self._count = count
        self._moved: dict[int, tuple[Any, Any]] = {}
        self._executor: Any = ProcessPoolExecutor(count, **self._options)
        self.parallel = parallel
        return count

    def submit(self, func: Any, callback: Any = None) -> Any:
        for i, (function, args, kwargs) in enumerate(func.items):
            func.items[i] = function, tuple(map(self._move, args)), {k: self._move(v) for k, v in kwargs.items()}
        future = self._executor.submit(func)
        if callback is not None:
            future.add_done_callback(callback)
        return future

    def _move(self, argument: Any) -> Any:
        if type(argument) is not np.ndarray or self._max_nbytes is None or argument.nbytes < self._max_nbytes:
            return argument
        if argument.dtype.hasobject or arrays.shared_memory_of(argument):
            return argument
        if id(argument) not in self._moved:
            shared = arrays.array(argument).view(np.ndarray)
            shared.flags.writeable = False
            self._moved[id(argument)] = argument, shared  # the original too: its id must not be given again
        return self._moved[id(argument)][1]

    def retrieve_result_callback(self, future: Any) -> Any:
        return future.result()

    def stop_call(self) -> None:
        self._moved.clear()

    def terminate(self) -> None:
        self._moved.clear()
        if self._executor is not None:
            self._executor.shutdown(wait=True)
            self._executor = None
        self.reset_batch_stats()

    def abort_everything(self, ensure_ready: bool = True) -> None:
        """End the workers with what they are at."""
        self._executor.kill_workers()
        self._executor.shutdown(wait=True)  # no callback of this call may run in the next
        self._executor = ProcessPoolExecutor(self._count, **self._options) if ensure_ready else None


def _begin(environment: dict[str, str], initializer: Any, initargs: Any) -> None:
    """A worker starts: as many threads as are its share."""
    import os

    os.environ.update(environment)
    parallel.JOBLIB_SPAWNED_PROCESS = "1"
    if initializer is not None:
        initializer(*initargs)


def register() -> None:
    """Make ``backend="copyless"`` known to joblib; importing this module does."""
    register_parallel_backend("copyless", Backend)


register()
