"""`ProcessPoolExecutor` over the ranks of a communicator: code for one machine moves to many nodes by changing its import.

    from copyless.comm.futures import ProcessPoolExecutor      # was: from concurrent.futures import ...

Run under mpiexec or ``copyless run``, every rank comes to the line that makes the executor: rank 0 goes on with it, the others become
its workers, and end their program when it is shut down. Without other ranks it is `copyless.ProcessPoolExecutor`. Under MPI the work is
mpi4py.futures's; on one host without MPI, tasks and results go through the ranks' inboxes.
"""

from __future__ import annotations

import itertools
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from typing import Any, TypeVar

from copyless import _loaders
from copyless import comm as _comm
from copyless._one_process import check_process
from copyless.errors import OutOfSharedMemory, OwnerDiedError, WorkerDiedError
from copyless.futures import ProcessPoolExecutor as _OnOneMachine
from copyless.futures import _results

__all__ = ["ProcessPoolExecutor"]

T = TypeVar("T")
_TASK, _ANSWER = 1, 2


class ProcessPoolExecutor(Executor):
    """ProcessPoolExecutor(max_workers=None, mp_context=None, initializer=None, initargs=(), *, comm=None)

    An executor whose workers are the other ranks of a communicator. Mirrors `concurrent.futures.ProcessPoolExecutor`.

    Parameters
    ----------
    max_workers
        At most so many; None: all ranks but rank 0, or without other ranks as many as this process may use processors.
    mp_context
        Taken for compatibility; used when there are no other ranks.
    initializer, initargs
        Called in each worker as it starts. Where it raises, the worker's tasks fail with that error.
    comm
        The communicator; None: `copyless.comm.world`.

    Notes
    -----
    On ranks other than 0 this does not return before the executor is shut down, and then ends the program by `SystemExit`.

    Examples
    --------
    >>> from copyless.comm.futures import ProcessPoolExecutor
    >>> with ProcessPoolExecutor(2) as executor:
    ...     list(executor.map(pow, [2, 3], [5, 2]))
    [32, 9]
    """

    def __init__(
        self,
        max_workers: int | None = None,
        mp_context: Any = None,
        initializer: Callable[..., Any] | None = None,
        initargs: tuple[Any, ...] = (),
        *,
        comm: Any = None,
    ) -> None:
        if max_workers is not None and max_workers <= 0:
            raise ValueError(f"max_workers must be greater than 0, not {max_workers}")
        ranks = _comm.world() if comm is None else comm
        self._behind: Any
        if ranks.size == 1:
            self._behind = _OnOneMachine(max_workers, mp_context, initializer, initargs)
        elif hasattr(ranks, "Get_attr"):  # MPI's
            self._behind = _over_mpi(ranks, max_workers, initializer, initargs)
        elif ranks.rank == 0:
            self._behind = _Master(ranks, max_workers)
        else:
            _work(ranks, initializer, initargs)
            sys.exit()

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """A future of ``fn(*args, **kwargs)``. RuntimeError after `shutdown`."""
        return self._behind.submit(fn, *args, **kwargs)  # type: ignore[no-any-return]

    def map(
        self, fn: Callable[..., T], *iterables: Iterable[Any], timeout: float | None = None, chunksize: int = 1
    ) -> Iterator[T]:
        """Results of ``fn`` over the iterables, in order."""
        return self._behind.map(fn, *iterables, timeout=timeout, chunksize=chunksize)  # type: ignore[no-any-return]

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls; the other ranks end when all are done."""
        self._behind.shutdown(wait=wait, cancel_futures=cancel_futures)


def _over_mpi(ranks: Any, max_workers: int | None, initializer: Any, initargs: Any) -> Any:
    from mpi4py import MPI
    from mpi4py.futures import MPICommExecutor

    entered = MPICommExecutor(MPI.Intracomm(ranks), 0, max_workers=max_workers, initializer=initializer, initargs=initargs)
    executor = entered.__enter__()  # on the other ranks it works until the end, and there is none
    if executor is None:
        sys.exit()
    return executor


def _seal(obj: Any) -> Any:
    from copyless.workers import seal

    return seal(obj)


def _work(ranks: Any, initializer: Any, initargs: Any) -> None:
    """What the other ranks do."""
    from copyless.workers import insist, sealed_error, unseal

    broken: Exception | None = None
    if initializer is not None:
        try:
            initializer(*initargs)
        except Exception as error:
            broken = error  # sealed for each answer: what it names is let go with the first
    while True:
        task = ranks.recv(None, 0, _TASK)
        if task is None:
            return
        number, sealed = task
        answer: Any
        try:
            if broken is not None:
                answer = False, sealed_error(broken)
            else:
                function, args, kwargs = unseal(sealed)
                answer = True, _seal(function(*args, **kwargs))
        except BaseException as error:
            answer = False, sealed_error(error)
        try:
            ranks.send((number, *answer), 0, _ANSWER)
        except OutOfSharedMemory as error:
            insist(lambda told: ranks.send(told, 0, _ANSWER), lambda task, failed: (task, False, sealed_error(failed)), number, error)


class _Master(Executor):
    """Rank 0's side: a thread gives tasks to ranks that have none, and hears of results."""

    def __init__(self, ranks: Any, max_workers: int | None) -> None:
        self._ranks = ranks
        most = ranks.size - 1 if max_workers is None else min(max_workers, ranks.size - 1)
        self._idle = deque(range(1, most + 1))
        self._all = range(1, ranks.size)
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._waiting: deque[tuple[Any, Future[Any]]] = deque()
        self._under_way: dict[int, tuple[int, Future[Any]]] = {}
        self._numbers = itertools.count(1)
        self._closing = False
        self._pid = os.getpid()
        self._hearer = threading.Thread(target=self._hear, name="copyless-ranks", daemon=True)
        self._hearing = False
        threading._register_atexit(self.shutdown)  # type: ignore[attr-defined]

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        check_process(self._pid, self, "its ranks are its parent's. Submit there")
        future: Future[Any] = Future()
        with self._lock:
            if self._closing:
                raise RuntimeError("cannot schedule new futures after shutdown")
            self._waiting.append(((fn, args, kwargs), future))
            self._feed()
            if not self._hearing:
                self._hearing = True
                self._hearer.start()
        return future

    def _feed(self) -> None:
        while self._waiting and self._idle:
            call, future = self._waiting.popleft()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                sealed = _seal(call)
            except Exception as error:
                future.set_exception(error)
                continue
            rank, number = self._idle.popleft(), next(self._numbers)
            self._under_way[number] = rank, future
            self._ranks.send((number, sealed), rank, _TASK)
            self._changed.notify()

    def _hear(self) -> None:
        from copyless.comm.local import Status
        from copyless.pool import _revive
        from copyless.workers import unseal

        status = Status()
        while True:
            with self._changed:
                while not self._under_way and not self._closing:
                    self._changed.wait()
                if not self._under_way:
                    return
            try:
                number, good, value = self._ranks.recv(None, _comm.ANY_SOURCE, _ANSWER, status)
            except OwnerDiedError as error:
                self._fail(WorkerDiedError(str(error)))
                return
            with self._lock:
                rank, future = self._under_way.pop(number)
                self._idle.append(rank)
                self._feed()
            if good:
                try:
                    future.set_result(unseal(value))
                except BaseException as error:
                    future.set_exception(error)
            else:
                future.set_exception(_revive(*value))

    def _fail(self, error: WorkerDiedError) -> None:
        with self._lock:
            self._closing = True
            futures = [future for _, future in (*self._under_way.values(), *self._waiting)]
            self._under_way.clear()
            self._waiting.clear()
        for future in futures:
            if not future.done():
                future.set_exception(error)

    def map(
        self, fn: Any, *iterables: Iterable[Any], timeout: float | None = None, chunksize: int = 1
    ) -> Iterator[Any]:
        if chunksize < 1:
            raise ValueError(f"chunksize must be >= 1, not {chunksize}")
        calls = zip(*iterables)  # noqa: B905
        if chunksize == 1:
            return _results((self.submit(fn, *arguments) for arguments in calls), timeout, None)
        chunks = iter(lambda: list(itertools.islice(calls, chunksize)), [])
        many: Any = (self.submit(_loaders.call_many, fn, chunk) for chunk in chunks)
        return itertools.chain.from_iterable(_results(many, timeout, None))

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        if os.getpid() != self._pid:
            return
        with self._lock:
            first, self._closing = not self._closing, True
            if cancel_futures:
                for _, future in self._waiting:
                    future.cancel()
                    future.set_running_or_notify_cancel()
                self._waiting.clear()
            self._changed.notify()
        if self._hearing and threading.current_thread() is not self._hearer:
            self._hearer.join()
        if first:
            for rank in self._all:
                self._ranks.send(None, rank, _TASK)
