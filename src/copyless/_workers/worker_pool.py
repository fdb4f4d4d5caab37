"""A worker pool: processes that take tasks from one queue. `Pool` and `ProcessPoolExecutor` are built on it.

    callers --- bundles ---> tasks (JoinableQueue, redeliver=True) ---> workers --- some answers ---> results --->
    collector
                                                 board: which task of its bundle each worker is at
                                                 logs: answers that a worker has not sent yet

A bundle is some tasks of one call. A worker leases a bundle. For each task it writes on the board that it begins the
task, runs it, and writes the answer into its log. Every few milliseconds, and at the end of the bundle, it sends the
log as one message. Then it acknowledges the bundle. So the state of every task is known when a process is killed:

* A worker is killed before a task or between two tasks: the queue delivers the bundle again, and the board says with
  which task to continue.
* A worker is killed in a task: the worker that gets the bundle next sees that this task was begun and not ended. It
  reports that the task died with its worker. With ``retries`` it runs the task again, from the bytes that were put at
  first.
* A worker is killed after the last answer and before the acknowledgement: every task has already been answered.

A bundle may be delivered again after its row of the board was given to another bundle. Its number shows this, and the
bundle is dropped.

The parent has two threads. The collector waits for answers and sends waiting bundles. The keeper waits for workers that
end, and replaces them. A worker whose parent died ends when it next asks for a bundle.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence

from copyless import _loaders, errors
from copyless._attach import handle
from copyless._core import events
from copyless._core.waiting import tell
from copyless._one_process import register_child
from copyless._threads import Poll, is_patched
from copyless._transfer.sealed import seal
from copyless._typing import TYPE_CHECKING, Any
from copyless._workers.board import Board
from copyless._workers.bundle import Bundle
from copyless._workers.collector import Collector
from copyless._workers.outcome import how_it_ended
from copyless._workers.protocol import DIED, DONE, ENDED, MANY, NO_START, RAISED, READY, ROWS
from copyless._workers.starting import (
    NO_GUARD,
    STARTING,
    asking_the_fork_server,
    block_signals,
    blocked_signals,
    missing_guard,
    no_guard,
    refuse_to_begin_again,
    signals_blocked,
    start_method,
)
from copyless._workers.task_sealer import TaskSealer
from copyless._workers.wake_pipe import WakePipe
from copyless.errors import ClosedError, OutOfSharedMemory
from copyless.queues import JoinableQueue, SimpleQueue

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

    from copyless._workers.snapshot import Snapshot

__all__ = ["WorkerPool"]

_FAILED_STARTS = 5  # consecutive workers that may end before they are ready, in addition to one for each process
_IDLE_SECONDS = 0.1  # seconds for idle workers to end by themselves
_BUSY_SECONDS = 0.8  # seconds for busy workers to end after SIGTERM
_TELL_SECONDS = 1.0  # seconds before a worker that does not end is logged


class WorkerPool:
    """Processes, their queues, and the two threads that manage them.

    Parameters
    ----------
    processes
        The number of processes.
    context
        A context of multiprocessing, which determines the start method.
    initializer, initargs
        A function that each worker calls when it starts, and its arguments.
    max_tasks
        Tasks after which a worker is replaced; None: no limit.
    retries
        How often a task runs again if its worker died.
    window
        The most bundles that are queued or running.
    daemon
        Whether the processes are daemons.
    eager
        Whether workers and threads start at once; otherwise `populate` and `watch` start them.
    title
        The name of the processes.
    room
        The most processes that `resize` may set.
    idle
        Seconds after which an idle worker ends; None: never.
    make_process
        A function that makes a process from the context and the arguments of `Process`; None: the context's.
    """

    def __init__(
        self,
        processes: int,
        *,
        context: Any,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[object] = (),
        max_tasks: int | None = None,
        retries: int = 0,
        window: int = ROWS,
        daemon: bool = True,
        eager: bool = True,
        title: str = "PoolWorker",
        room: int = 0,
        idle: float | None = None,
        make_process: Any = None,
    ) -> None:
        refuse_to_begin_again()
        self.pid = os.getpid()
        self.processes, self.context, self.retries = processes, context, retries
        self.window = min(window, ROWS)
        self.workers: list[BaseProcess] = []
        self.pace: Any = None  # (weak reference to the most recently mapped function, seconds that a task of it takes)
        self.broken: str | None = None
        self.closing = self.terminating = False
        self.ends_idle = idle is not None
        self._how = initializer, initargs, max_tasks, retries
        self._idle, self._daemon, self._title = idle, daemon, title
        self._make_process = make_process
        self._forks = start_method(context) == "fork"
        self._mask = list(blocked_signals())
        # a task that runs again is unpickled again
        self._sealer = TaskSealer(context, initializer, lasting=retries > 0)
        self._lock = threading.RLock()
        self._waiting: deque[Bundle] = deque()
        self._unsent: list[tuple[Bundle, BaseException]] = []
        self._promised = 0  # callers that will submit more, also after `close`
        self._number = 0  # of the last bundle
        self._ready: set[int] = set()
        self._failed_starts = 0.0
        self._log_of: dict[BaseProcess, int] = {}  # the log of each worker
        self._threads: list[threading.Thread] = []
        self._make_shared(max(room, processes))
        if eager:
            self._start()

    def _make_shared(self, logs: int) -> None:
        """Make the queues, the board and the pipe that wakes the keeper."""
        self.tasks: JoinableQueue[Any] = JoinableQueue(redeliver=True)
        self.results: SimpleQueue[Any] = SimpleQueue()
        self._board = Board(logs)
        self._collector = Collector(self._board, self.results, self._lock)
        # Workers attach by handle. The objects live as long as the pool, so a worker that is killed before it starts
        # leaves no message behind. A forked worker attaches again too, because another thread may be using the
        # inherited objects at the time of the fork.
        self._names = [bytes(handle(shared)) for shared in (self.tasks, self.results, self._board.memory)]
        self._pipe = WakePipe()  # wakes the keeper
        self.tasks._will_put()  # so that workers notice when this process has died
        self.results._will_put()  # so that the collector never sees a queue without producers

    def _start(self) -> None:
        """Start workers and threads. If that fails, end those that were started."""
        try:
            self.populate()
            self.watch()
        except BaseException:
            for worker in self.workers:
                if worker.exitcode is None:
                    worker.terminate()
            for worker in self.workers:
                worker.join()
            raise

    # ---- processes

    def is_mine(self) -> bool:
        """Whether this process made the pool, and is not a forked child of it."""
        return os.getpid() == self.pid

    def watch(self) -> None:
        """Start the two threads, unless they run.

        RuntimeError if no thread can be started, as at the exit of the interpreter.
        """
        with self._lock:
            if self._threads or self.broken is not None:
                return
            try:
                for name, run in (("copyless-collector", self._collect), ("copyless-keeper", self._keep)):
                    thread = threading.Thread(target=run, name=name, daemon=True)
                    thread.start()
                    self._threads.append(thread)
            except BaseException as error:
                self.broken = f"the threads that manage the workers could not be started: {error}"
                self.results.put(None)  # ends the thread that was started
                raise

    def populate(self, wanted: int | None = None) -> None:
        """Start missing workers: up to `wanted`, at most the size of the pool."""
        with self._lock:
            most = self.processes if wanted is None else min(wanted, self.processes)
            if len(self.workers) >= most or not self._board.free_logs:
                return
            if self._forks:  # loaded once before the forks, instead of in each child
                from copyless._workers import worker  # noqa: F401
            snapshot = self._sealer.snapshot()  # older than the later forks, which is harmless
            while self._board.free_logs and len(self.workers) < most:
                self._start_worker(snapshot)

    def _start_worker(self, snapshot: Snapshot | None) -> None:
        log = self._board.free_logs[-1]
        arguments = self._names, self._mask, *self._how, self._board.log_offset(log), self._idle
        make = self.context.Process if self._make_process is None else self._make_process
        given = () if self._make_process is None else (self.context,)
        worker = make(*given, target=_loaders.work, args=arguments)
        worker.name = worker.name.replace("Process", self._title)
        worker.daemon = self._daemon
        if not self._forks:
            worker.name += STARTING
        register_child(worker)
        with asking_the_fork_server(self.context), signals_blocked(self.context):
            worker.start()
        worker.name = worker.name.removesuffix(STARTING)
        self._sealer.add_worker(worker, snapshot)
        self.workers.append(worker)
        self._log_of[worker] = self._board.free_logs.pop()
        self.wake()

    def resize(self, processes: int) -> bool:
        """Set the number of workers.

        Surplus workers end when they next ask for a bundle. False: there is no room for so many.
        """
        with self._lock:
            if processes > len(self._board.logs):
                return False
            surplus = len(self.workers) - processes
            self.processes = processes
            try:
                for _ in range(surplus):
                    self.tasks.put((0, 0, -1, None))
            except (OutOfSharedMemory, ClosedError):
                return False
            return True

    def _keep(self) -> None:
        """The thread of the keeper: wait for workers that end, and replace them."""
        # A signal that arrives while a thread forks is delivered to that thread, and the sleeping main thread would not
        # notice it.
        if not is_patched():  # if it is patched, this is a task of the main thread and not a thread
            block_signals()
        while True:
            with self._lock:
                watched = {worker.sentinel: worker for worker in self.workers}
                if not watched and self.closing:
                    break
            ready = Poll([*watched, self._pipe.reader])(None)
            if self._pipe.reader in ready:
                self._pipe.empty()
            self._replace([watched[sentinel] for sentinel in ready if sentinel in watched])
        self._collector.post(None)

    def _replace(self, ended: list[Any]) -> None:
        """Reap workers that have ended, and start others if more tasks may come."""
        for worker in ended:
            worker.join()
            # `active_children` in another thread may have reaped it, and records the exit code in a moment.
            for _ in range(100):
                if worker.exitcode is not None:
                    break
                time.sleep(0.002)
            self._collector.exit_codes[worker.pid] = worker.exitcode
        with self._lock:
            for worker in ended:
                if worker in self.workers:
                    self.workers.remove(worker)
                    self._collector.keep_log(self._log_of.pop(worker))
                    self._sealer.remove_worker(worker)
            if ended and not self.terminating and self.broken is None and not (self.closing and self._is_done()):
                try:
                    self.populate(None if self._idle is None else self.unfinished())
                except Exception as error:
                    self._break(f"no worker could be started: {error!r}")
        for worker in ended:
            self._collector.post((worker.pid, worker.exitcode or 0, ENDED, None))
        if not self.terminating:
            for worker in ended:
                if worker.exitcode and worker.exitcode != NO_GUARD:  # of the latter the pool's own error tells
                    events.worker_died(worker.pid, worker.exitcode, how_it_ended(worker.exitcode))

    def _break(self, why: str) -> None:
        """Mark the pool as broken: no further task will run."""
        self.broken = why
        self._collector.post(why)  # the thread of the collector fails all tasks
        with contextlib.suppress(ClosedError):
            self.tasks.shutdown(immediate=True)

    def _break_off(self, why: str) -> None:
        """Nothing more can be received from the workers: fail all tasks that are awaited, and end the workers."""
        self.broken = why
        self._fail_all(why)
        self.terminate()

    def wake(self) -> None:
        """Make the keeper check the list of workers again."""
        self._pipe.wake()

    # ---- tasks

    def seal(self, function: object, style: int, batch: Sequence[object]) -> Any:
        """Pack the tasks of a bundle."""
        return self._sealer.seal(function, style, batch)

    def promise(self, callers: int) -> None:
        """A caller will submit more, even after `close` (1), or no longer (-1)."""
        with self._lock:
            self._promised += callers
            if self._is_done():
                self._shut()

    def _is_done(self) -> bool:
        return self.closing and not self._collector.bundles and not self._waiting and not self._promised

    def submit(self, bundles: list[Bundle], promised: bool = False) -> None:
        """Send bundles to the workers, in this order."""
        events.hush(1)  # a handler of the log may need this lock
        try:
            with self._lock:
                if self.broken is not None:
                    raise errors.WorkerDiedError(self.broken)
                if self.terminating or (self.closing and not promised):
                    raise ClosedError("the pool is closed")
                self._waiting.extend(bundles)
                self._feed()
                if any(bundle.count > 1 for bundle in bundles) and self._collector.wait_less():
                    with contextlib.suppress(OutOfSharedMemory, ClosedError):
                        # no bundle has this number: the message only wakes the collector
                        self.results.put((0, 0, DONE, None))
        finally:
            events.hush(-1)
        self._fail_unsent()

    def _feed(self) -> None:
        """Send waiting bundles to the workers, as far as the window and the board have room."""
        items = []
        if self.terminating or self.broken is not None:
            return  # waiting bundles fail with the rest
        bundles = self._collector.bundles
        while self._waiting and self._board.free_rows and len(bundles) < self.window:
            bundle = self._waiting.popleft()
            if bundle.start is not None and not bundle.start():
                continue  # cancelled
            self._number += 1
            bundle.row = self._board.take_row(self._number)
            bundles[self._number] = bundle
            items.append((self._number, bundle.row, bundle.count, bundle.sealed))
            bundle.sealed = None
        try:
            self._send(items)
        except ClosedError:
            if not self.closing and self.broken is None:
                raise
            # the queue was shut down meanwhile: these bundles fail with the rest

    def _send(self, items: list[Any]) -> None:
        """Put bundles into the queue. ClosedError if it was shut down. If a bundle cannot be put, only that one
        fails.
        """
        sent = 0
        # A failed put has released the shared memory that the item names, so such an item cannot be put again.
        together = len(items) > 1 and all(type(item[3]) is bytes for item in items)
        before = self.tasks._numbers()[0] if together else 0  # only a thread that holds the lock puts here
        try:
            with contextlib.suppress(Exception):  # what is wrong is found below, for each item by itself
                while together and sent < len(items):
                    try:
                        sent += self.tasks.put_many(items[sent:])
                    except BaseException as error:
                        if not isinstance(error, Exception):  # which put some, perhaps
                            sent = self.tasks._numbers()[0] - before
                        raise
            while sent < len(items):
                try:
                    self.tasks.put(items[sent])
                except ClosedError:
                    raise
                except Exception as error:  # whatever it is, only its tasks fail, and no caller waits for them for ever
                    self._withdraw(items[sent], error)
                sent += 1
        except ClosedError:
            raise
        except BaseException as error:  # Ctrl-C, in a put that waited: no worker will ever have what was not put
            for item in items[sent:]:
                self._withdraw(item, error)
            self._collector.look_around()  # and fail them: here their callbacks might wait again
            raise

    def _withdraw(self, item: Any, error: BaseException) -> None:
        """A bundle could not be put: fail it once the lock is released."""
        bundle = self._collector.bundles.pop(item[0])
        self._board.withdraw_row(bundle.row)
        self._unsent.append((bundle, error))

    def _fail_unsent(self) -> None:
        """Fail the tasks that could not be put. Called without the lock, because callbacks run here."""
        while self._unsent:
            bundle, error = self._unsent.pop()
            for i in range(bundle.count):
                try:
                    bundle.deliver(bundle.first + i, RAISED, (seal(error), str(error)))
                except BaseException:
                    import traceback

                    traceback.print_exc()

    def unfinished(self) -> int:
        """The number of bundles that wait or run."""
        return len(self._collector.bundles) + len(self._waiting)

    def drop_waiting(self) -> list[Bundle]:
        """Take back the bundles that have not been sent."""
        with self._lock:
            dropped = list(self._waiting)
            self._waiting.clear()
        return dropped

    # ---- answers

    def _collect(self) -> None:
        """The thread of the collector: receive answers, run callbacks, send waiting bundles."""
        collector = self._collector
        while True:
            try:
                messages = collector.receive()
            except Exception as error:  # no descriptor, no room for a mapping, or no memory: nothing more can arrive
                collector.flush()
                self._break_off(f"the workers' answers could not be received: {error}")
                return
            if not self._take_all(messages):
                self._end()
                return
            del messages  # must not keep results alive
            collector.rest()
            events.hush(1)
            try:
                with self._lock:
                    self._feed()
                    if self._is_done():
                        self._shut()
            finally:
                events.hush(-1)
            self._fail_unsent()

    def _take_all(self, messages: list[Any]) -> bool:
        """Take messages. False: the last worker has ended."""
        collector = self._collector
        for message in messages:
            if type(message) is tuple:
                number, i, kind, value = message
                if kind in (DONE, MANY):  # the usual case
                    collector.gather(number, i, kind, value)
                else:
                    collector.flush()
                    self._take(number, i, kind, value)
                del message, value  # must not keep results alive
                continue
            collector.flush()
            collector.read_logs()
            if message is None:
                return False
            self._fail_all(message)
        return True

    def _take(self, number: int, i: int, kind: int, value: object) -> None:
        """Take a message that needs a check: about a worker, or an answer that is not a plain result."""
        try:
            if kind in (READY, NO_START, ENDED):
                self._note_worker(number, i, kind, value)
            else:
                self._collector.take(number, i, kind, value)
        except BaseException:  # a callback of the user raised: other callers still wait for their answers
            import traceback

            traceback.print_exc()

    def _note_worker(self, pid: int, code: int, kind: int, text: object) -> None:
        """A worker is ready, or its initializer failed, or it has ended: this message follows all others of it."""
        if kind == READY:
            self._ready.add(pid)
            self._failed_starts = 0
            return
        if kind == NO_START:
            with self._lock:
                if self.broken is None:
                    self.broken = f"the initializer of a worker process failed:\n{text}"
            self._fail_all(self.broken)
            return
        if self._collector.left_behind:
            self._collector.read_logs()
        if pid not in self._ready:
            self._failed_starts += 1 if code >= 0 else 0.05
        self._ready.discard(pid)
        if self.broken is not None or self.terminating:
            return
        if code == NO_GUARD:
            self._break(no_guard(self.context))
        elif self._failed_starts > self.processes + _FAILED_STARTS:
            self._break(
                f"worker processes end before they can start (exit code {code}){missing_guard(self.context, code)}"
            )

    def _fail_all(self, why: str) -> None:
        """Fail all tasks that wait or run."""
        with self._lock:
            bundles = [*self._collector.take_all(), *self._waiting]
            self._waiting.clear()
        for bundle in bundles:
            if bundle.sealed is not None and bundle.start is not None and not bundle.start():
                continue
            for i in range(bundle.answered, bundle.count):
                with contextlib.suppress(Exception):
                    bundle.deliver(bundle.first + i, DIED, errors.WorkerDiedError(why))

    # ---- the end

    def close(self) -> None:
        """Accept no more tasks. The workers end when all tasks are done."""
        if not self.is_mine():
            return
        with self._lock:
            if self.closing:
                return
            self.closing = True
            if self._is_done():
                self._shut()
            if not self._threads:  # the pool never had a task
                self._end()

    def _shut(self) -> None:
        """End the workers, which have nothing more to do."""
        with contextlib.suppress(ClosedError):
            self.tasks.shutdown()
        self.wake()

    def terminate(self, by: str = "terminate") -> None:
        """End the workers now. Unfinished tasks fail."""
        if not self.is_mine():
            return
        with self._lock:
            self.closing = self.terminating = True
            workers = list(self.workers)
            if self.broken is None:
                self.broken = "the workers were terminated before this task was done"
        with contextlib.suppress(ClosedError):
            self.tasks.shutdown(immediate=True)
        if by == "terminate":  # idle workers end soon and need no signal
            _wait_for_ends(workers, _IDLE_SECONDS)
        for worker in workers:
            with contextlib.suppress(ProcessLookupError):
                getattr(worker, by)()
        with contextlib.suppress(ClosedError):
            self._collector.post(self.broken)
        self.wake()
        if not self._threads:
            self._end()
        # Only the keeper waits for processes: if two threads wait for one process, one of them gets the error that it
        # does not exist.
        if len(self._threads) == 2 and threading.current_thread() not in self._threads:
            keeper = self._threads[1]
            keeper.join(_BUSY_SECONDS)
            if keeper.is_alive():  # the workers ignore SIGTERM
                for worker in workers:
                    worker.kill()
                keeper.join(5)

    def _end(self) -> None:
        """Called when no worker is left and no answer is awaited."""
        self._fail_all(self.broken or "the workers have ended")
        self.tasks.close()
        self.results.close()

    def join(self) -> None:
        """Wait until the workers and the two threads have ended. After a second, log which stopped worker it waits
        for.
        """
        if self.is_mine() and threading.current_thread() not in self._threads:
            since = time.monotonic()
            for thread in reversed(self._threads):
                thread.join(_TELL_SECONDS)
                while thread.is_alive():
                    self._tell_of_stopped(time.monotonic() - since)
                    thread.join(_TELL_SECONDS)

    def _tell_of_stopped(self, seconds: float) -> None:
        """Log the workers that do not end because they are stopped: each once, and again after a minute."""
        with self._lock:
            pids = [worker.pid for worker in self.workers if worker.pid is not None]
        for pid in pids:
            tell(pid, seconds, True, "up the end of its pool")


def _wait_for_ends(workers: list[Any], seconds: float) -> None:
    """Wait until these workers have ended, for at most so long. The keeper reaps them."""
    # On separate descriptors: eventlet lets only one task wait for a descriptor, and the keeper waits for those of the
    # workers.
    running: set[int] = set()
    deadline = time.monotonic() + seconds
    try:
        with contextlib.suppress(OSError, ValueError):  # the keeper has closed one of them: its worker has ended
            running.update(os.dup(worker.sentinel) for worker in workers)
            while running and (left := deadline - time.monotonic()) > 0:
                for ended in Poll(running)(left):
                    running.discard(ended)
                    os.close(ended)
    finally:
        for fd in running:
            os.close(fd)
