"""`ProcessPoolExecutor` over the ranks of a communicator: a program for one machine runs on many nodes with another
import.

    from copyless.comm.futures import ProcessPoolExecutor      # was: from concurrent.futures import ...

Run under mpiexec or ``copyless run``, every rank comes to the line that makes the executor: rank 0 goes on with it, the
others become its workers, and end their program when it is shut down. Without other ranks it is
`copyless.ProcessPoolExecutor`. Tasks and results are messages of the communicator. Functions and classes that have no
name to be found by (lambdas, closures) go by value, on both transports.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import pickle
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future, as_completed
from typing import Any, TypeVar

from copyless import _loaders
from copyless._one_process import check_process
from copyless.comm import _transport
from copyless.comm._packets import Packet
from copyless.errors import OutOfSharedMemory, OwnerDiedError, WorkerDiedError
from copyless.futures import ProcessPoolExecutor as _OnOneMachine
from copyless.futures import _results

__all__ = ["BrokenExecutor", "ProcessPoolExecutor"]

T = TypeVar("T")
_TASK, _ANSWER = 1, 2
_DONE, _RAISED, _BROKEN = range(3)  # what an answer says


class ProcessPoolExecutor(Executor):
    """ProcessPoolExecutor(max_workers=None, mp_context=None, initializer=None, initargs=(), *, comm=None)

    An executor whose workers are the other ranks of a communicator. Mirrors `concurrent.futures.ProcessPoolExecutor`.

    Parameters
    ----------
    max_workers
        The most workers; None: all ranks but rank 0. Without other ranks: the number of processors that this process
        may use.
    mp_context
        Used only if there are no other ranks.
    initializer, initargs
        Called in each worker as it starts. Where it raises, the executor is broken: what was submitted, and `submit`,
        raise `WorkerDiedError`, which is a `BrokenExecutor`.
    comm
        The communicator; None: `copyless.comm.world`. All its ranks make the executor.

    Notes
    -----
    On ranks other than 0 this does not return before the executor is shut down, and then ends the program by
    `SystemExit`. The ranks serve one executor at a time. On MPI it needs MPI_THREAD_MULTIPLE, which mpi4py asks for.

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
        if initializer is not None and not callable(initializer):
            raise TypeError(f"initializer must be callable, not {initializer!r}")
        ranks = _transport.current().world() if comm is None else comm
        self._closed = False
        if ranks.size == 1:
            self._behind = _OnOneMachine(max_workers, mp_context, initializer, initargs)
            return
        channel = _OnMPI(ranks) if hasattr(ranks, "Get_attr") else _OnSharedMemory(ranks)
        if ranks.rank == 0:
            self._behind = _Master(channel, max_workers)
        else:
            _work(channel, initializer, initargs)
            sys.exit()

    _behind: Any = None

    def __del__(self) -> None:
        # What was submitted is done, and then the other ranks end.
        if isinstance(self._behind, _Master):
            self._behind.shutdown(wait=False)

    @property
    def num_workers(self) -> int:
        """How many workers there are; 0 once it is shut down or broken."""
        pool = getattr(self._behind, "_worker_pool", None)  # of the executor on one machine
        broken = pool is not None and pool.broken is not None
        return 0 if self._closed or broken else int(self._behind._max_workers)

    def bootup(self, wait: bool = True) -> ProcessPoolExecutor:
        """The executor. Its workers run already: this is for programs written for `mpi4py.futures`. RuntimeError after
        `shutdown`.
        """
        if self._closed:
            raise RuntimeError("cannot start the workers after shutdown")
        return self

    def submit(self, fn: Callable[..., T], /, *args: object, **kwargs: object) -> Future[T]:
        """A future of ``fn(*args, **kwargs)``.

        RuntimeError after `shutdown`; `WorkerDiedError` when a worker has died, or its initializer has failed.
        """
        future: Future[T] = self._behind.submit(fn, *args, **kwargs)
        return future

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[object],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
        unordered: bool = False,
    ) -> Iterator[T]:
        """Results of ``fn`` over the iterables, in order.

        Parameters
        ----------
        timeout
            Seconds from now after which taking a result raises `TimeoutError`; None: never.
        chunksize
            Calls that travel together.
        buffersize
            Submit at most so many calls ahead of the results taken; None: all at once.
        unordered
            Give each result as it comes. Not together with `buffersize`.
        """
        calls = zip(*iterables)  # noqa: B905
        return self.starmap(
            fn,
            calls,
            timeout=timeout,
            chunksize=chunksize,
            buffersize=buffersize,
            unordered=unordered,
        )

    def starmap(
        self,
        fn: Callable[..., T],
        iterable: Iterable[Iterable[object]],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
        unordered: bool = False,
    ) -> Iterator[T]:
        """As `map`, over tuples of arguments."""
        if chunksize < 1:
            raise ValueError(f"chunksize must be >= 1, not {chunksize}")
        if buffersize is not None and not isinstance(buffersize, int):
            raise TypeError(f"buffersize must be an integer or None, not {buffersize!r}")
        if buffersize is not None and buffersize < 1:
            raise ValueError(f"buffersize must be None or > 0, not {buffersize}")
        if buffersize is not None and unordered:
            raise ValueError("buffersize and unordered cannot be used together")
        calls = iter(iterable)
        if chunksize == 1:
            return self._results_of(
                (self.submit(fn, *arguments) for arguments in calls), timeout, buffersize, unordered
            )
        chunks = iter(lambda: [tuple(call) for call in itertools.islice(calls, chunksize)], [])
        many: Any = (self.submit(_loaders.call_many, fn, chunk) for chunk in chunks)
        ahead = None if buffersize is None else max(1, buffersize // chunksize)
        return itertools.chain.from_iterable(self._results_of(many, timeout, ahead, unordered))

    @staticmethod
    def _results_of(
        futures: Iterator[Future[Any]], timeout: float | None, ahead: int | None, any_order: bool
    ) -> Iterator[Any]:
        # As `map` of the standard library, this submits before the first result is asked for.
        return _as_they_come(list(futures), timeout) if any_order else _results(futures, timeout, ahead)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls; the other ranks end when all are done.

        Parameters
        ----------
        wait
            Wait for that.
        cancel_futures
            Cancel the calls that have not begun.
        """
        self._closed = True
        self._behind.shutdown(wait=wait, cancel_futures=cancel_futures)


def _as_they_come(futures: list[Future[T]], timeout: float | None) -> Iterator[T]:
    """Results in the order in which they come; the time runs from now."""
    deadline = None if timeout is None else time.monotonic() + timeout

    def results() -> Iterator[T]:
        try:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            for future in as_completed(futures, left):
                yield future.result()
        finally:
            for future in futures:
                future.cancel()

    return results()


class _OnSharedMemory:
    """How tasks and answers travel on shared memory: sealed, so what fails to unpickle is one task's error."""

    def __init__(self, ranks: Any) -> None:
        from copyless.comm import local

        self.ranks, self.any_source = ranks.Dup(), local.ANY_SOURCE

    def seal(self, obj: object, rank: int) -> Any:
        """An object on its way to a rank."""
        from copyless._transfer.sealed import seal

        return seal(obj)


class _OnMPI:
    """How tasks and answers travel on MPI: as packets. To ranks of other nodes all goes by value."""

    def __init__(self, ranks: Any) -> None:
        from mpi4py import MPI

        from copyless.comm import mpi

        if MPI.Query_thread() != MPI.THREAD_MULTIPLE:
            raise RuntimeError(
                "an executor over the ranks of MPI needs MPI_THREAD_MULTIPLE: leave mpi4py.rc.threads as it is"
            )
        self.ranks = (ranks if isinstance(ranks, mpi.Comm) else mpi.Intracomm(ranks)).Dup()
        self.any_source = MPI.ANY_SOURCE

    def seal(self, obj: object, rank: int) -> Any:
        """An object on its way to a rank."""
        from copyless._transfer import packing

        near = self.ranks._state().near(rank)
        try:
            return Packet.of(obj, not near, False)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            try:
                return Packet(
                    *(packing.pack(obj, packing.by_value, draft=False) if near else packing.apart_by_value(obj))
                )
            except Exception:
                raise error from None


def _sealed_error(channel: Any, error: BaseException, rank: int) -> tuple[Any, str]:
    """(the exception sealed, or None when it does not survive pickling; its traceback as text)."""
    from copyless._transfer.sealed import text_of, unseal

    text = text_of(error)
    try:
        sealed = channel.seal(error, rank)
        if type(sealed) is bytes or (type(sealed) is Packet and not sealed.handles):
            unseal(sealed)
    except BaseException:
        return None, text
    return sealed, text


def _work(channel: Any, initializer: Any, initargs: Any) -> None:
    """What the other ranks do."""
    from copyless._transfer.retry import send_when_room
    from copyless._transfer.sealed import unseal

    ranks = channel.ranks
    broken: Exception | None = None
    if initializer is not None:
        try:
            initializer(*initargs)
        except Exception as error:
            broken = error  # sealed again for each answer: the first answer releases its handles
    while True:
        task = ranks.recv(None, 0, _TASK)
        if task is None:
            return
        number, sealed = task
        answer: Any
        try:
            if broken is not None:
                answer = _BROKEN, _sealed_error(channel, broken, 0)
            else:
                function, args, kwargs = unseal(sealed)
                answer = _DONE, channel.seal(function(*args, **kwargs), 0)
        except BaseException as error:
            answer = _RAISED, _sealed_error(channel, error, 0)
        try:
            ranks.send((number, ranks.rank, *answer), 0, _ANSWER)
        except OutOfSharedMemory as error:
            send_when_room(
                lambda told: ranks.send(told, 0, _ANSWER),
                lambda task, failed: (task, ranks.rank, _RAISED, _sealed_error(channel, failed, 0)),
                number,
                error,
            )


class _Master:
    """Rank 0's side: a thread gives tasks to ranks that have none, and hears of results."""

    def __init__(self, channel: Any, max_workers: int | None) -> None:
        self._channel, self._ranks = channel, channel.ranks
        size = self._ranks.size
        self._max_workers = size - 1 if max_workers is None else min(max_workers, size - 1)
        self._idle = deque(range(1, self._max_workers + 1))
        self._all = range(1, size)
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._waiting: deque[tuple[object, Future[object]]] = deque()
        self._under_way: dict[int, tuple[int, Future[object]]] = {}
        self._numbers = itertools.count(1)
        self._closing = False
        self._broken: WorkerDiedError | None = None
        self._pid = os.getpid()
        self._hearer = threading.Thread(target=self._serve, name="copyless-ranks", daemon=True)
        self._hearing = False
        threading._register_atexit(self.shutdown)  # type: ignore[attr-defined]

    def submit(self, fn: Callable[..., object], /, *args: object, **kwargs: object) -> Future[Any]:
        check_process(self._pid, self, "its ranks are its parent's. Submit there")
        future: Future[Any] = Future()
        with self._lock:
            if self._broken is not None:
                raise WorkerDiedError(str(self._broken)) from self._broken.__cause__
            if self._closing:
                raise RuntimeError("cannot schedule new futures after shutdown")
            self._waiting.append(((fn, args, kwargs), future))
            self._feed()
            if not self._hearing:
                self._hearing = True
                self._hearer.start()
        return future

    def _feed(self) -> None:
        """Give tasks to ranks that have none."""
        while self._waiting and self._idle:
            call, future = self._waiting.popleft()
            if not future.set_running_or_notify_cancel():
                continue
            rank, number = self._idle.popleft(), next(self._numbers)
            self._under_way[number] = rank, future
            try:
                self._ranks.send((number, self._channel.seal(call, rank)), rank, _TASK)
            except Exception as error:  # the object, or the room that it needs, is at fault: the others go on
                del self._under_way[number]
                self._idle.appendleft(rank)
                future.set_exception(error)
            self._changed.notify()

    def _serve(self) -> None:
        """Hear of results until there will be no more; then let the other ranks end."""
        try:
            self._hear()
        finally:
            self._release()

    def _hear(self) -> None:
        from copyless._transfer.sealed import unseal
        from copyless._workers.outcome import revive

        while True:
            with self._changed:
                while not self._under_way and not self._closing:
                    self._changed.wait()
                if not self._under_way and not self._waiting:
                    return
            try:
                number, rank, kind, value = self._ranks.recv(None, self._channel.any_source, _ANSWER)
            except OwnerDiedError as error:
                self._fail(WorkerDiedError(str(error)))
                self._under_way.clear()
                return
            if kind == _BROKEN:
                cause = revive(*value)
                failed = WorkerDiedError(f"the initializer of rank {rank} failed: {type(cause).__name__}: {cause}")
                failed.__cause__ = cause
                self._fail(failed)
            with self._lock:
                _, future = self._under_way.pop(number)
                self._idle.append(rank)
                self._feed()
            if future.done():
                continue  # the executor broke meanwhile
            if kind == _RAISED:
                future.set_exception(revive(*value))
                continue
            try:
                result = unseal(value)
            except BaseException as error:
                future.set_exception(revive(*_sealed_error(self._channel, error, 0)))
            else:
                future.set_result(result)
                del result, value, future  # nothing here may keep a result alive

    def _fail(self, error: WorkerDiedError) -> None:
        """Nothing more is begun: all that was submitted fails. (Answers still come: who sends one may wait until it is
        taken.)
        """
        with self._lock:
            self._broken, self._max_workers, self._closing = error, 0, True
            waiting = [future for _, future in self._waiting if future.set_running_or_notify_cancel()]
            futures = [future for _, future in self._under_way.values() if not future.done()] + waiting
            self._waiting.clear()
        for future in futures:
            failed = WorkerDiedError(str(error))
            failed.__cause__ = error.__cause__
            future.set_exception(failed)

    def _release(self) -> None:
        """Let the other ranks end."""
        for rank in self._all:
            with contextlib.suppress(OwnerDiedError):
                self._ranks.send(None, rank, _TASK)

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
        if not self._hearing:
            if first:
                self._release()
        elif wait and threading.current_thread() is not self._hearer:
            self._hearer.join()
