"""Worker processes that take tasks from one queue: what `Pool` and `ProcessPoolExecutor` stand on.

    callers --- bundles ---> tasks (JoinableQueue, redeliver=True) ---> workers --- some answers ---> results ---> collector
                                                 board: which task of its bundle each worker is at
                                                 logs: answers that a worker has not sent yet

A bundle is some tasks of one call. A worker leases a bundle, writes on the board which of its tasks it begins, runs it, writes the
answer into its log, and so on; every few milliseconds, and at the end of the bundle, it sends what the log holds by one message;
then it acknowledges the bundle. So whoever dies anywhere, nothing is guessed:

* killed before it began a task, or between two: the queue hands the bundle out again, the board says where to go on;
* killed in the middle of a task: whoever gets the bundle next sees that this task was begun and not ended. It reports it
  as died with its worker, or, with ``retries``, runs it again, from the very bytes that were put at first;
* killed after the last result and before the acknowledgement: every task has been answered already.

A bundle that is handed out again after its row of the board was given to another says so by its number, and is dropped.
An answer lies in shared memory before the next task begins, so a task is never both answered and reported as died. The parent reads
the log of a worker that died, and that of one which has been silent for some milliseconds: it may be in a long task, with short
ones behind it.

In the parent two threads: the collector waits for results and feeds what waits; the keeper waits for workers that end,
and replaces them. A worker whose parent died ends when it next looks for work.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import sys
import threading
import time
import traceback
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import connection, current_process, parent_process, util
from types import BuiltinFunctionType, FunctionType, ModuleType, NoneType
from typing import Any

from copyless import _cooperative, _loaders, _main_changes, pickling
from copyless._cooperative import is_patched
from copyless._core import _answers, _pickles, _queue
from copyless._core._memory import Memory
from copyless._core.failures import out_of_shared_memory
from copyless._one_process import know_child
from copyless.arrays import attach, handle
from copyless.errors import (
    ClosedError,
    OutOfSharedMemory,
    StaleHandleError,
    TaskUnreadableError,
    WorkerDiedError,
)
from copyless.queues import Empty, JoinableQueue, SimpleQueue
from copyless.storage import directory, handles
from copyless.storage.blocks import allocate

__all__ = ["Crew", "Sealed"]

ROWS = 1024  # of the board: bundles that may be in the queue or under way
_NUMBER, _BEGUN, _TRIES, _PID, _NO_ROOM, _WIDTH = range(6)  # of a row
_DEAD = 1 << 32  # in _NO_ROOM: it is the answer of one who died
_IN_LOG = 1 << 33  # in _NO_ROOM: the answers lie in the log of the worker
_ATOMS = frozenset((type(None), bool, int, float, str, bytes))
_DONE, _SEALED, _RAISED, _UNREADABLE, _DIED, _UNSENDABLE, _READY, _NO_START, _ENDED, _MANY, _MIXED = range(11)
_UNPICKLABLE = (pickle.PicklingError, AttributeError, TypeError)
_FAULTS = {signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT}
FULL, SINGLE, STARRED = range(3)  # what a task of a bundle is: (args, kwargs), the one argument, the arguments
_NAMED = 4  # added to it: the function is said by its name, as a pickle of its own
_WITH_NAMES = (FunctionType, BuiltinFunctionType)
_NAMES_MOST = 64  # functions that a worker has at hand
_LOOK = 0.2  # seconds between looks for answers that found no room, or lie in a log
_PATIENCE = 0.005  # seconds that an answer may lie in a log while its worker runs other tasks
_SOON = 0.006  # from the last message to the first look
_LOG_BYTES = 8192
_RANGE_MOST = 1 << 14
_STARTING = " (worker, starting)"  # behind the name of one that imports the program's main module
_NO_GUARD = 113  # exit code of a worker whose main module makes workers
_GUARD = "what starts the program must stand under if __name__ == '__main__':"
_HOPELESS = 5  # workers in a row that end before they are ready
_IDLE_SECONDS = 0.1  # that idle workers have to end by themselves
_BUSY_SECONDS = 0.8  # that busy ones have after SIGTERM


# ---- objects on their way


class Sealed:
    """An object that is pickled when it is sealed, and made again only by `open`: where that fails, only it is lost.

    Functions and classes that have no name to be found by (lambdas, closures) go by value, with cloudpickle.
    """

    __slots__ = ("_buffers", "_data", "_handles", "_kept")

    _kept: list[Any]

    def __init__(self, obj: Any, by_value: bool = False, make: Any = None, lasting: bool = False) -> None:
        make = pickling.by_value if by_value else make
        try:
            self._data, self._buffers, self._handles = pickling.pack(obj, make, lasting=lasting)
        except _UNPICKLABLE as error:
            try:
                self._data, self._buffers, self._handles = pickling.pack(obj, pickling.by_value, lasting=lasting)
            except Exception:
                raise error from None

    def __reduce_ex__(self, protocol: Any) -> Any:
        for name in self._handles:
            pickling.note(name)
        data = pickle.PickleBuffer(self._data) if len(self._data) >= pickling.BESIDE else self._data
        return _loaders.sealed, (data, self._handles, *(pickle.PickleBuffer(buffer) for buffer in self._buffers))

    def open(self) -> Any:
        return _pickles.loads(self._data, buffers=self._buffers)


def seal(obj: Any, by_value: bool = False, make: Any = None, lasting: bool = False) -> Any:
    """A sealed object; the bytes alone where they say all. `make` makes another pickler than the plain one; `lasting`: it may be opened more than once."""
    sealed = Sealed(obj, by_value, make, lasting)
    return sealed if sealed._buffers or sealed._handles else sealed._data


def unseal(sealed: Any) -> Any:
    if type(sealed) is not bytes:
        return sealed.open()
    plain = _queue.plain_loads(sealed)
    return _pickles.loads(sealed) if plain is None else plain[0]


def _name_of(function: Any) -> bytes | None:
    """The pickle of a function that is found by its name, so that whoever loads it gets what he has already; else None."""
    if not isinstance(getattr(function, "__self__", None), (NoneType, ModuleType)):
        return None  # a bound method of something in C
    try:
        return pickle.dumps(function, 5)
    except Exception:
        return None


_named: dict[bytes, Any] = {}


def _function_of(name: bytes) -> Any:
    function = _named.get(name)
    if function is None:
        if len(_named) >= _NAMES_MOST:
            _named.clear()
        function = _named[name] = _pickles.loads(name)
    return function


def _sealed(data: Any, names: list[bytes], *buffers: Any) -> Sealed:
    sealed = Sealed.__new__(Sealed)
    sealed._data, sealed._buffers, sealed._handles = data, list(buffers), []
    # What the message holds it holds until it is unpickled, which is now: keep what the content names until it is opened.
    sealed._kept = [handles.resolve(name) for name in names]
    return sealed


def _main_must_travel(context: Any) -> bool:
    """Whether what `__main__` defines is unknown in a worker: it has no file, and the worker is no fork."""
    main = sys.modules.get("__main__")
    if getattr(main, "__file__", None) is not None or getattr(main, "__spec__", None) is not None:
        return False
    method = getattr(context, "get_start_method", lambda: "fork")()
    return method != "fork"


# ---- a worker


def _refuse_to_begin_again() -> None:
    """Where a program without a main guard makes its workers again, because one of them imports it: end that, with one message in all.

    A worker says it by its exit code: the parent's error is the message, and no traceback of each worker stands above it.
    """
    me = current_process()
    if not getattr(me, "_inheriting", False):
        return
    if me.name.endswith(_STARTING):
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        os._exit(_NO_GUARD)
    raise RuntimeError(f"worker processes cannot be started while a new process imports the program's main module: {_GUARD}")


def _forget_handlers() -> None:
    """What the parent's program does at a signal is not for its workers. What it ignores they ignore too."""
    signal.set_wakeup_fd(-1)  # a fork has its parent's, which wakes the parent's event loop
    for number in signal.valid_signals():
        with contextlib.suppress(OSError, ValueError):
            handler = signal.getsignal(number)
            if callable(handler) and handler is not signal.default_int_handler:
                signal.signal(number, signal.SIG_DFL)


def work(
    names: list[bytes],
    mask: list[int],
    initializer: Any,
    initargs: Any,
    most: int | None,
    retries: int,
    log: int | None = None,
    idle: float | None = None,
) -> None:
    """What a worker process does, until the queue is shut down, its parent is gone, or it had nothing to do for `idle` seconds.

    Its log begins at `log` in the board's block.
    """
    current_process().name = current_process().name.removesuffix(_STARTING)
    _forget_handlers()
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)  # blocked by whoever started us
    try:
        tasks, results, board = (attach(name) for name in names)
    except StaleHandleError:
        return  # the parent was quicker to end than we to begin
    try:
        answers = None if log is None else _answers.Log(board, log, _LOG_BYTES, _PATIENCE)
        _work(tasks, results, memoryview(board).cast("Q"), answers, initializer, initargs, most, retries, idle)
    except KeyboardInterrupt:
        pass  # Ctrl-C reaches the parent too, which says what there is to say


def _work(
    tasks: Any,
    results: Any,
    rows: Any,
    log: Any,
    initializer: Any,
    initargs: Any,
    most: int | None,
    retries: int,
    idle: float | None,
) -> None:
    me = os.getpid()
    if initializer is not None:
        try:
            initializer(*initargs)
        except BaseException as error:
            from concurrent.futures._base import LOGGER

            LOGGER.critical("Exception in initializer:", exc_info=True)  # as the standard library's executor says it
            # Said last of all: what was logged, through a queue of the standard library perhaps, has left by then.
            report = me, 0, _NO_START, "".join(traceback.format_exception(error))
            util.Finalize(None, results.put, args=(report,), exitpriority=-50)
            return
    with contextlib.suppress(OutOfSharedMemory):  # only those who end early need have said it
        results.put((me, 0, _READY, None))
    done = 0
    while most is None or done < most:
        try:
            item = tasks._next(idle)  # ends also when the parent ended well and did not shut the queue: Ctrl-C at its exit
        except (ClosedError, EOFError, Empty):
            return
        number, row, count, sealed = item
        if count < 0:  # one worker less
            tasks.task_done(item)
            return
        at = row * _WIDTH
        if rows[at + _NUMBER] == number:
            done += _run(number, at, count, sealed, rows, results, retries, me, None if count == 1 else log)
        tasks.task_done(item)
        del item, sealed


def _run(
    number: int, at: int, count: int, sealed: Any, rows: Any, results: Any, retries: int, me: int, log: Any
) -> int:
    first: int = rows[at + _BEGUN]
    if first:  # somebody died after he began this task
        first -= 1
        if rows[at + _TRIES] < retries:
            rows[at + _TRIES] += 1
        else:
            try:
                results.put((number, first, _DIED, rows[at + _PID]))
            except ClosedError:
                raise
            except Exception:
                _say_on_board(rows, at, first + 1 | _DEAD)
            first += 1
            rows[at + _TRIES] = 0
    if first >= count:
        return 0
    rows[at + _PID] = me
    rows[at + _BEGUN] = first + 1
    try:
        function, style, batch = unseal(sealed)
        if style & _NAMED:
            function, style = _function_of(function), style & ~_NAMED
    except BaseException as error:  # whatever an argument raises as it is made again
        for i in range(first, count):
            _answer(results.put, number, i, _UNREADABLE, _text_of(error), rows, at)
        return count - first
    if log is None:
        _run_apart(function, style, batch, number, first, count, results.put, rows, at, retries)
    else:
        if type(batch) is range and count <= _RANGE_MOST:
            batch = list(batch)  # whose items are had faster
        log.begin(number, first)
        _run_logged(log, function, style, batch, number, first, count, results.put, rows, at, retries)
    return count - first


def _run_apart(
    function: Any, style: int, batch: Any, number: int, first: int, count: int, put: Any, rows: Any, at: int, retries: int
) -> None:
    """Run tasks, each with a message of its own."""
    for i in range(first, count):
        if i != first:
            _mark(rows, at, i, retries)
        args = batch[i]
        try:
            if style == SINGLE:
                value = function(args)
            elif style == STARRED:
                value = function(*args)
            else:
                value = function(*args[0], **args[1])
        except BaseException as error:
            _answer(put, number, i, _RAISED, sealed_error(error), rows, at)
            error = None  # type: ignore[assignment]
        else:
            if type(value) in _ATOMS:
                _answer(put, number, i, _DONE, value, rows, at)
            else:
                _put_value(put, number, i, value, rows, at)
            del value
        del args


def _run_logged(
    log: Any, function: Any, style: int, batch: Any, number: int, i: int, count: int, put: Any, rows: Any, at: int, retries: int
) -> None:
    """Run tasks, and send many answers by one message."""
    tries, first = (at + _TRIES if retries else 0), i
    while i < count:
        if i != first:
            _mark(rows, at, i, retries)
        i, why, what = log.run(function, style, batch, i, count, at + _BEGUN, tries)
        if why == _answers.OTHER:
            if type(what) in _ATOMS:
                kind, value = _DONE, what
            else:
                kind, value = _value(what)
            del what
            add = log.add if kind == _DONE else log.add_sealed if kind == _SEALED and type(value) is bytes else None
            if add is None or not add(value):
                _send(log, put, number, rows, at)
                log.begin(number, i)
                if add is None or not add(value):  # not even in an empty one
                    _answer(put, number, i, kind, value, rows, at)
                    log.begin(number, i + 1)
            i += 1
            del value
            if i < count and not log.is_due():
                continue
        elif why == _answers.RAISED:
            _send(log, put, number, rows, at)
            _answer(put, number, i, _RAISED, sealed_error(what), rows, at)
            del what
            i += 1
            log.begin(number, i)
            continue
        _send(log, put, number, rows, at)
        log.begin(number, i)


def _mark(rows: Any, at: int, i: int, retries: int) -> None:
    """A task that is not the first of its bundle begins."""
    if retries:
        rows[at + _TRIES] = 0
    rows[at + _BEGUN] = i + 1


def _send(log: Any, put: Any, number: int, rows: Any, at: int) -> None:
    """Send the answers in a log. Where there is no room for the message, wait until the parent has read the log itself."""
    if log.count:
        try:
            put((number, log.first, _MIXED if log.mixed else _MANY, log.take()))
        except ClosedError:
            raise
        except Exception:
            _say_on_board(rows, at, _IN_LOG)


def _value(value: Any) -> tuple[int, Any]:
    """(kind, value) of the answer that a result is."""
    try:
        return _SEALED, seal(value)
    except BaseException as error:  # whatever it is, the task failed and not its worker
        return _UNSENDABLE, (sealed_error(error), _repr(error), _repr(value))


def _put_value(put: Any, number: int, i: int, value: Any, rows: Any, at: int) -> None:
    kind, value = _value(value)
    _answer(put, number, i, kind, value, rows, at)


def _answer(put: Any, number: int, i: int, kind: int, value: Any, rows: Any, at: int) -> None:
    """Answer one task. Where neither memory nor the disk has room for the answer, the task fails, in few bytes or in none."""
    try:
        put((number, i, kind, value))
        return
    except ClosedError:
        raise
    except Exception as error:
        del value
        short = sealed_error(error)[0], str(error)
    try:
        put((number, i, _RAISED, short))
    except ClosedError:
        raise
    except Exception:
        _say_on_board(rows, at, i + 1)


# ---- when neither memory nor the disk has room


def _say_on_board(rows: Any, at: int, mark: int) -> None:
    """Say on the board that a task's answer found no room, and wait until it was heard."""
    rows[at + _NO_ROOM] = mark
    seconds, parent = 0.0005, parent_process()
    while rows[at + _NO_ROOM] == mark:
        if parent is not None and not parent.is_alive():
            raise ClosedError("the parent process has ended, and there is no memory to tell it anything")
        time.sleep(seconds)
        seconds = min(2 * seconds, 0.01)


def insist(put: Any, make: Callable[..., Any], *args: Any, seconds: float = 10.0) -> None:
    """Put a short item that should not be lost: when there is no room, wait for it for a while.

    It is made of `args` for each try: a put that fails lets go of the shared memory that it names.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            put(make(*args))
            return
        except OutOfSharedMemory:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.01)


def _repr(value: Any) -> str:
    try:
        return repr(value)
    except BaseException:
        return f"<{type(value).__name__}, whose repr() failed>"


def _text_of(error: BaseException) -> str:
    try:
        return "".join(traceback.format_exception(type(error), error, error.__traceback__))
    except BaseException:
        return f"{type(error).__name__}, whose text could not be made"


def sealed_error(error: BaseException) -> tuple[Any, str]:
    """(the exception, or None when it does not survive pickling; its traceback as text)."""
    text = _text_of(error)
    try:
        sealed = seal(error)
        if type(sealed) is bytes:
            unseal(sealed)
    except BaseException:
        return None, text
    return sealed, text


# ---- the parent's side


class Bundle:
    """Tasks of one call that go together, answered in order.

    `tell(first + i, kind, value)` hears of each; `tell_done(first + i, values)`, where given, of several that went well.
    """

    __slots__ = ("count", "first", "heard", "row", "sealed", "start", "tell", "tell_done")

    def __init__(
        self,
        sealed: Any,
        count: int,
        tell: Callable[[int, int, Any], None],
        first: int = 0,
        start: Callable[[], bool] | None = None,
        tell_done: Callable[[int, list[Any]], None] | None = None,
    ) -> None:
        self.sealed, self.count, self.tell, self.first, self.start = sealed, count, tell, first, start
        self.tell_done = tell_done
        self.heard = 0  # answers to the first so many tasks
        self.row = -1  # of the board, once it is in the queue


@contextlib.contextmanager
def _unheard(context: Any) -> Iterator[None]:
    """While a worker is forked: a signal that it hears before it has forgotten its parent's handlers, the parent's loop would hear.

    Not while a program is started: the fork server would keep the mask, and hear of no child's end.
    """
    if getattr(context, "get_start_method", lambda: "fork")() != "fork":
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals() - _FAULTS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _await_ends(workers: list[Any], seconds: float) -> None:
    """Wait until they have ended, so long at most. They are not reaped: that is the keeper's business."""
    # Of its own descriptors: eventlet lets but one task wait for a number, and the keeper waits for these.
    waiting: set[int] = set()
    deadline = time.monotonic() + seconds
    try:
        with contextlib.suppress(OSError, ValueError):  # the keeper has closed one of them: it has ended
            waiting.update(os.dup(worker.sentinel) for worker in workers)
            while waiting and (left := deadline - time.monotonic()) > 0:
                for ended in connection.wait(list(waiting), left):
                    waiting.discard(ended)
                    os.close(ended)  # type: ignore[arg-type]
    finally:
        for fd in waiting:
            os.close(fd)


class Crew:
    """Processes, their queues, and the two threads that look after them."""

    def __init__(
        self,
        processes: int,
        *,
        context: Any,
        initializer: Any = None,
        initargs: Any = (),
        max_tasks: int | None = None,
        retries: int = 0,
        window: int = ROWS,
        daemon: bool = True,
        eager: bool = True,
        title: str = "PoolWorker",
        room: int = 0,
        idle: float | None = None,
    ) -> None:
        """`room`: how many processes `resize` may make of it. `idle`: seconds after which a worker without a task ends."""
        _refuse_to_begin_again()
        self.processes = processes
        self.context = context
        self.by_value = _main_must_travel(context)
        self._forks = getattr(context, "get_start_method", lambda: "fork")() == "fork"
        self._main_of: dict[Any, _main_changes.Snapshot] = {}  # what `__main__` was when a worker began, in a session
        self._main_own: Any = None  # names of it that the workers set
        self._changes: _main_changes.Changes | None = None
        self.workers: list[Any] = []
        self.window = min(window, ROWS)
        self._mask = [int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, [])]
        self._how = initializer, initargs, max_tasks, retries
        self._idle, self.ends_idle = idle, idle is not None
        self._daemon, self._title = daemon, title
        self.tasks: Any = JoinableQueue(redeliver=True)
        self.results: Any = SimpleQueue()
        room = max(room, processes)
        block = allocate(8 * ROWS * _WIDTH + room * _LOG_BYTES, spill=True)
        block.clear()
        board: Any = Memory(block)
        self._rows = memoryview(board).cast("Q")
        self._logs = [_answers.Log(board, 8 * ROWS * _WIDTH + n * _LOG_BYTES, _LOG_BYTES, _PATIENCE) for n in range(room)]
        self._free_logs = list(range(room))
        self._log_of: dict[Any, int] = {}  # a worker's
        self._left_behind: list[tuple[int, int, int, bool, bytes]] = []  # in the logs of workers that have ended
        self._board = board
        # By address: these live as long as we, so a worker that is killed before it begins leaves no message behind. A forked one
        # too attaches anew: the objects that it inherits may be in use by another thread at the moment of the fork.
        self._names = [bytes(handle(shared)) for shared in (self.tasks, self.results, board)]
        self._free = deque(range(ROWS))  # a row rests as long as it can before it is used again
        self._lock = threading.RLock()
        self._bundles: dict[int, Bundle] = {}
        self._waiting: deque[Bundle] = deque()
        self._promised = 0
        self._number = 0
        self._last: tuple[Callable[[], Any], bytes | None] = lambda: None, None  # a function, and its name
        self.pace: tuple[Callable[[], Any], float] | None = None  # the function last mapped, and the seconds that it takes
        self._exits: dict[int, int | None] = {}
        self._hopeless = 0.0
        self._ready: set[int] = set()
        self.broken: str | None = None
        self.closing = self.terminating = False
        self._unsent: list[tuple[Bundle, Exception]] = []
        self._look = _LOOK
        self._said: deque[Any] = deque()  # to the collector by the other threads, where the queue has no room
        self.pid = os.getpid()
        # Read and written as bytes, by what no program has replaced: tasks of gevent and eventlet must not wait for each other here.
        self._wake_reader, self._wake_writer = connection.Pipe(duplex=False)
        for end in (self._wake_reader, self._wake_writer):
            os.set_blocking(end.fileno(), False)
        self.tasks.put(
            (0, 0, 0, None)
        )  # so that workers notice when whoever puts is gone; row 0 has no number 0 for long
        self._rows[_NUMBER] = 2**64 - 1
        self.results.put((0, 0, _READY, None))  # so that the collector never finds itself alone
        self._threads: list[threading.Thread] = []
        try:
            if eager:
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
        """Whether this is the process that made it, and no fork of it."""
        return os.getpid() == self.pid

    def watch(self) -> None:
        """Start the two threads, unless they run. RuntimeError where no thread can be: as at the interpreter's end."""
        with self._lock:
            if self._threads or self.broken is not None:
                return
            try:
                for name, run in (("copyless-collector", self._collect), ("copyless-keeper", self._keep)):
                    thread = threading.Thread(target=run, name=name, daemon=True)
                    thread.start()
                    self._threads.append(thread)
            except BaseException as error:
                self.broken = f"the threads that look after the workers could not be started: {error}"
                self.results.put(None)  # ends the one that could
                raise

    def populate(self, wanted: int | None = None) -> None:
        """Start what is missing."""
        snapshot: _main_changes.Snapshot | None = None  # older than the forks behind it, which harms nobody
        with self._lock:
            while self._free_logs and len(self.workers) < (self.processes if wanted is None else min(wanted, self.processes)):
                log = self._free_logs[-1]
                at = 8 * ROWS * _WIDTH + log * _LOG_BYTES
                worker = self.context.Process(target=_loaders.work, args=(self._names, self._mask, *self._how, at, self._idle))
                worker.name = worker.name.replace("Process", self._title)
                worker.daemon = self._daemon
                if not self._forks:
                    worker.name += _STARTING
                if snapshot is None and _main_changes.is_interactive():
                    snapshot = _main_changes.Snapshot(self._forks)
                know_child(worker)
                with _unheard(self.context):
                    worker.start()
                worker.name = worker.name.removesuffix(_STARTING)
                if snapshot is not None:
                    if self._main_own is None:
                        self._main_own = _main_changes.names_set_by(self._how[0])
                    self._main_of[worker] = snapshot
                self.workers.append(worker)
                self._log_of[worker] = self._free_logs.pop()
                self.wake()

    def resize(self, processes: int) -> bool:
        """Have so many workers from now on; those that are too many end, once they have nothing to do. False: there is no room for them."""
        with self._lock:
            if processes > len(self._logs):
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
        # A signal that comes while a thread forks is handled by that thread, and the main thread, asleep, would not hear of it.
        if not is_patched():  # else this is no thread of its own, but a task of the main one
            signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals() - _FAULTS)
        while True:
            with self._lock:
                watched = {worker.sentinel: worker for worker in self.workers}
                if not watched and self.closing:
                    break
            ready = connection.wait([*watched, self._wake_reader])
            if self._wake_reader in ready:
                with contextlib.suppress(OSError):
                    _cooperative.original("os", "read")(self._wake_reader.fileno(), 4096)
            ended = [watched[sentinel] for sentinel in ready if sentinel in watched]
            for worker in ended:
                worker.join()
                self._exits[worker.pid] = worker.exitcode
            with self._lock:
                for worker in ended:
                    if worker in self.workers:
                        self.workers.remove(worker)
                        self._keep_log(self._log_of.pop(worker))
                        self._main_of.pop(worker, None)
                if ended and not self.terminating and self.broken is None and not (self.closing and self._is_done()):
                    try:
                        self.populate(None if self._idle is None else self.unfinished())
                    except Exception as error:
                        self._break(f"no worker could be started: {error!r}")
            for worker in ended:
                self._say((worker.pid, worker.exitcode or 0, _ENDED, None))
        self._say(None)

    def _keep_log(self, log: int) -> None:
        """Read what a worker that has ended leaves in its log, which the next one gets."""
        left = self._logs[log].read()
        if left is not None:
            self._left_behind.append(left)
            self._logs[log].begin(0, 0)
        self._free_logs.append(log)

    def _break(self, why: str) -> None:
        """No further task will run."""
        self.broken = why
        self._say(why)  # the collector tells everyone
        with contextlib.suppress(ClosedError):
            self.tasks.shutdown(immediate=True)

    def _break_off(self, why: str) -> None:
        """Nothing more can be heard from the workers: fail what is awaited, and end them."""
        self.broken = why
        self._fail_all(why)
        self.terminate()

    def wake(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            _cooperative.original("os", "write")(self._wake_writer.fileno(), b"x")

    # ---- tasks

    def seal(self, function: Any, style: int, batch: Sequence[Any]) -> Any:
        lasting = bool(self._how[3])  # what is run again is opened again
        if self._main_of and not self.by_value and _main_changes.is_interactive():
            with self._lock:
                snapshots = list(self._main_of.values())
            changes = self._changes = _main_changes.changes_since(snapshots, self._main_own, self._changes)
            if changes is not None:
                if type(function) in _WITH_NAMES and not changes.concern(function) and (called := _name_of(function)) is not None:
                    plain = _queue.plain_dumps((called, style | _NAMED, batch))
                    if plain is not None:
                        return plain
                return seal((function, style, batch), make=changes.pickler, lasting=lasting)
        name = None
        if type(function) in _WITH_NAMES and not self.by_value:
            last, name = self._last
            if last() is not function:
                self._last = weakref.ref(function), (name := _name_of(function))
        if name is None:
            return seal((function, style, batch), self.by_value, lasting=lasting)
        return seal((name, style | _NAMED, batch), lasting=lasting)

    def promise(self, tasks: int) -> None:
        """Somebody will submit more, also after `close` (1), or no longer (-1)."""
        with self._lock:
            self._promised += tasks
            if self._is_done():
                self._shut()

    def _is_done(self) -> bool:
        return self.closing and not self._bundles and not self._waiting and not self._promised

    def submit(self, bundles: list[Bundle], promised: bool = False) -> None:
        """Give bundles to the workers, in this order."""
        with self._lock:
            if self.broken is not None:
                raise WorkerDiedError(self.broken)
            if self.terminating or (self.closing and not promised):
                raise ClosedError("it takes no more tasks: it was closed")
            self._waiting.extend(bundles)
            self._feed()
            if self._look > _SOON and any(bundle.count > 1 for bundle in bundles):
                self._look = _SOON
                with contextlib.suppress(OutOfSharedMemory, ClosedError):
                    self.results.put((0, 0, _DONE, None))  # no bundle has this number: the collector wakes, and looks at the logs soon
        self._fail_unsent()

    def _feed(self) -> None:
        items = []
        if self.terminating or self.broken is not None:
            return  # what waits is failed with the rest
        while self._waiting and self._free and len(self._bundles) < self.window:
            bundle = self._waiting.popleft()
            if bundle.start is not None and not bundle.start():
                continue  # cancelled
            row = bundle.row = self._free.popleft()
            self._number += 1
            at = row * _WIDTH
            self._rows[at + _BEGUN] = self._rows[at + _TRIES] = self._rows[at + _PID] = self._rows[at + _NO_ROOM] = 0
            self._rows[at + _NUMBER] = self._number
            self._bundles[self._number] = bundle
            items.append((self._number, row, bundle.count, bundle.sealed))
            bundle.sealed = None
        sent = 0
        # What a put that fails had packed lets go of what it names, and cannot be put again.
        together = len(items) > 1 and all(type(item[3]) is bytes for item in items)
        try:
            with contextlib.suppress(Exception):  # each by itself says what is wrong with it
                while together and sent < len(items):
                    sent += self.tasks.put_many(items[sent:])
            for item in items[sent:]:
                try:
                    self.tasks.put(item)
                except ClosedError:
                    raise
                except Exception as error:  # whatever it is, only its tasks fail, and nobody waits for them for ever
                    self._could_not_send(item[0], error)
        except ClosedError:
            if not self.closing and self.broken is None:
                raise
            # shut down meanwhile: they are in the table, and failed with the rest

    def _could_not_send(self, number: int, error: Exception) -> None:
        bundle = self._bundles.pop(number)
        self._rows[bundle.row * _WIDTH + _NUMBER] = 0
        self._free.append(bundle.row)
        self._unsent.append((bundle, error))

    def _fail_unsent(self) -> None:
        """Fail the tasks that found no room on their way to a worker; without the lock, since others hear of it."""
        while self._unsent:
            bundle, error = self._unsent.pop()
            for i in range(bundle.count):
                try:
                    bundle.tell(bundle.first + i, _RAISED, (seal(error), str(error)))
                except BaseException:
                    traceback.print_exc()

    def _collect(self) -> None:
        bundles: dict[int, Bundle] = self._bundles
        runs: dict[int, list[Any]] = {}
        while True:
            try:
                messages = self._receive()
            except Exception as error:  # no descriptor, no room for a mapping, no memory: nothing more can arrive
                self._tell_runs(runs)
                self._break_off(f"what the workers answered could not be received: {error}")
                return
            for message in messages:
                if type(message) is not tuple:
                    self._tell_runs(runs)
                    self._hear_logs()
                    if message is None:
                        self._end()
                        return
                    self._fail_all(message)
                    continue
                number, i, kind, value = message
                if kind in (_DONE, _MANY):  # most of what is heard, told by the shortest way: all of a bundle at once
                    values = [value] if kind == _DONE else _pickles.loads(value)
                    run = runs.get(number)
                    if run is None:
                        bundle = bundles.get(number)
                        run = runs[number] = [] if bundle is None else [bundle]
                    if run:
                        known = run[0].heard + len(run) - 1 - i
                        if known < 0:
                            self._tell_runs(runs)
                            self._hear_many(number, i, values)
                        elif known == 0:
                            run += values
                        else:
                            run += values[known:]
                    del values
                else:
                    self._tell_runs(runs)
                    try:
                        self._hear(number, i, kind, value)
                    except BaseException:  # a callback of the user's; whatever it raises, the others are waiting
                        traceback.print_exc()
                run = bundle = None
                del message, value  # nothing here may keep results alive
            del messages
            self._look = _SOON
            self._tell_runs(runs)
            with self._lock:
                self._feed()
                if self._is_done():
                    self._shut()
            self._fail_unsent()

    def _say(self, message: Any) -> None:
        try:
            self.results.put(message)
        except OutOfSharedMemory:
            self._said.append(message)

    def _receive(self) -> list[Any]:
        """The next answers. Those for which memory had no room are looked for on the board, after a while without others."""
        while True:
            try:
                return self.results.get_many(timeout=self._look)  # type: ignore[no-any-return]
            except Empty:
                pass
            marks, found = self._marks(), []
            self._look = 0.001 if marks else min(2 * self._look, _LOOK)  # where one finds no room, more will follow
            logs = self._read_logs()
            with contextlib.suppress(Empty):  # what these workers had put before comes before
                while True:
                    found += self.results.get_many(block=False)
            found += logs
            for number, at, mark in marks:
                i = (mark & ~_DEAD) - 1
                if mark & _IN_LOG:
                    pass
                elif mark & _DEAD:
                    found.append((number, i, _DIED, self._rows[at + _PID]))
                else:
                    error = out_of_shared_memory(0, "no room for a task's result", 0, directory.current())
                    found.append((number, i, _RAISED, (seal(error), str(error))))
                if self._rows[at + _NO_ROOM] == mark:
                    self._rows[at + _NO_ROOM] = 0
            while self._said:
                found.append(self._said.popleft())
            if found:
                return found

    def _marks(self) -> list[tuple[int, int, int]]:
        """(bundle's number, place of its row, mark) of answers that found no room."""
        with self._lock:
            places = [(number, bundle.row * _WIDTH) for number, bundle in self._bundles.items()]
        return [(number, at, mark) for number, at in places if (mark := self._rows[at + _NO_ROOM])]

    def _read_logs(self) -> list[tuple[int, int, int, bytes]]:
        """As messages, what lies in the logs of the workers and has not been heard. Their messages before it are in the queue already."""
        with self._lock:
            found = [got for log in self._logs if (got := log.read()) is not None] + self._left_behind
            self._left_behind = [left for left in self._left_behind if left[0] in self._bundles]
        messages = []
        for number, first, count, mixed, data in found:
            bundle = self._bundles.get(number)
            if bundle is not None and first + count > bundle.heard:
                messages.append((number, first, _MIXED if mixed else _MANY, data))
        messages.sort(key=lambda message: message[:2])
        return messages

    def _hear_logs(self) -> None:
        """Hear what lies in the logs and follows on what has been heard: of workers that died before they sent it."""
        for number, first, kind, data in self._read_logs():
            bundle = self._bundles.get(number)
            if bundle is not None and first <= bundle.heard:
                self._hear_many(number, first, _pickles.loads(data), kind == _MIXED)

    def _hear_many(self, number: int, first: int, values: list[Any], mixed: bool = False) -> None:
        """Answers of one bundle, from its task `first` on; what came before them and is missing lies in a log."""
        bundle = self._await(number, first)
        if bundle is None:
            return
        values = values[bundle.heard - first :]
        if not mixed:
            self._tell_values(number, bundle, values)
            return
        values.reverse()
        while values:
            value = values.pop()
            kind, value = (_SEALED, value[0]) if type(value) is tuple else (_DONE, value)
            try:
                self._hear(number, bundle.heard, kind, value)
            except BaseException:
                traceback.print_exc()

    def _await(self, number: int, i: int) -> Bundle | None:
        """The bundle, where it awaits the answer to task `i`, and those before it have been heard."""
        bundle = self._bundles.get(number)
        if bundle is None or bundle.heard >= i:
            return bundle
        self._hear_logs()
        while bundle.heard < i:  # they were lost: that cannot be, but nobody shall wait for ever
            self._hear(number, bundle.heard, _DIED, self._rows[bundle.row * _WIDTH + _PID])
        return self._bundles.get(number)

    def _tell_runs(self, runs: dict[int, list[Any]]) -> None:
        """Tell what went well, by bundle: the bundle, and the values from its first unheard task on."""
        while runs:
            number, run = runs.popitem()
            if len(run) < 2:
                continue
            bundle, values = run[0], run[1:]
            del run
            self._tell_values(number, bundle, values)

    def _tell_values(self, number: int, bundle: Bundle, values: list[Any]) -> None:
        """Tell the results of so many tasks more."""
        if not values:
            return
        at = bundle.first + bundle.heard
        self._count(number, bundle, len(values))
        try:
            if bundle.tell_done is not None:
                bundle.tell_done(at, values)
            else:
                values.reverse()
                while values:
                    at += 1
                    bundle.tell(at - 1, _DONE, values.pop())
        except BaseException:
            traceback.print_exc()

    def _count(self, number: int, bundle: Bundle, tasks: int) -> None:
        """So many more tasks of a bundle have been answered."""
        bundle.heard += tasks
        if bundle.heard == bundle.count:
            with self._lock:
                del self._bundles[number]
                self._free.append(bundle.row)

    def _hear(self, number: int, i: int, kind: int, value: Any) -> None:
        if kind == _READY:
            self._ready.add(number)
            self._hopeless = 0
            return
        if kind == _MIXED:
            self._hear_many(number, i, _pickles.loads(value), True)
            return
        if kind == _ENDED:  # comes after all that this worker said
            if self._left_behind:
                self._hear_logs()
            if number not in self._ready:
                self._hopeless += 1 if i >= 0 else 0.05
            self._ready.discard(number)
            if i == _NO_GUARD and self.broken is None and not self.terminating:
                method = self.context.get_start_method()
                self._break(
                    f"the program has no main guard. Under {method} each worker imports the program's main module anew, "
                    f"and would make its own workers there: {_GUARD}"
                )
            if self._hopeless > self.processes + _HOPELESS and self.broken is None and not self.terminating:
                self._break(f"worker processes end before they can begin (exit code {i}){self._missing_guard(i)}")
            return
        if kind == _NO_START:
            with self._lock:
                if self.broken is None:
                    self.broken = f"the initializer of a worker process failed:\n{value}"
            self._fail_all(self.broken)
            return
        bundle = self._await(number, i)
        if kind == _DIED and bundle is not None and i == bundle.heard:
            self._hear_logs()  # it had run the task and written the answer down, and died before it marked the next
        if bundle is None or i < bundle.heard:
            return
        if kind == _SEALED:
            try:
                kind, value = _DONE, unseal(value)
            except BaseException as error:  # SystemExit of a __setstate__ too
                kind, value = _UNREADABLE, _text_of(error)
        self._count(number, bundle, 1)
        bundle.tell(bundle.first + i, kind, self._error(kind, value) if kind in (_UNREADABLE, _DIED) else value)

    def _missing_guard(self, code: int) -> str:
        """A word on it where that may be why: the start of a program that a worker imports anew raises there."""
        method = getattr(self.context, "get_start_method", lambda: "fork")()
        if not getattr(self.context, "imports_main", True):
            return ""
        if code != 1 or method == "fork" or getattr(sys.modules.get("__main__"), "__file__", None) is None:
            return ""
        return (
            f". Under {method} each worker imports the program's main module anew: {_GUARD} (its output above says whether it was that)"
        )

    def _error(self, kind: int, value: Any) -> Exception:
        if kind == _UNREADABLE:
            return TaskUnreadableError(f"what was sent could not be unpickled where it arrived:\n{value}")
        code = self._exits.get(value)
        if code is not None and code < 0:
            how = f"was killed by {signal.Signals(-code).name}"
        else:
            how = "ended" if code is None else f"ended with exit code {code}"
        return WorkerDiedError(
            f"the worker process {value} {how} while it ran this task. The other tasks go on; retries=n would run it again"
        )

    def _fail_all(self, why: str) -> None:
        with self._lock:
            bundles = [*self._bundles.values(), *self._waiting]
            self._bundles.clear()
            self._waiting.clear()
        for bundle in bundles:
            if bundle.sealed is not None and bundle.start is not None and not bundle.start():
                continue
            for i in range(bundle.heard, bundle.count):
                with contextlib.suppress(Exception):
                    bundle.tell(bundle.first + i, _DIED, WorkerDiedError(why))

    # ---- the end

    def close(self) -> None:
        """No more tasks; workers end when all are done."""
        if not self.is_mine():
            return
        with self._lock:
            if self.closing:
                return
            self.closing = True
            if self._is_done():
                self._shut()
            if not self._threads:  # it never had a task
                self._end()

    def _shut(self) -> None:
        with contextlib.suppress(ClosedError):
            self.tasks.shutdown()
        self.wake()

    def unfinished(self) -> int:
        """Bundles that wait or are under way."""
        return len(self._bundles) + len(self._waiting)

    def drop_waiting(self) -> list[Bundle]:
        with self._lock:
            dropped = list(self._waiting)
            self._waiting.clear()
        return dropped

    def terminate(self, by: str = "terminate") -> None:
        """End the workers now; what was not done fails."""
        if not self.is_mine():
            return
        with self._lock:
            self.closing = self.terminating = True
            workers = list(self.workers)
            if self.broken is None:
                self.broken = "the workers were terminated before this task was done"
        with contextlib.suppress(ClosedError):
            self.tasks.shutdown(immediate=True)
        if by == "terminate":  # those that are idle have ended in a moment, and need no signal
            _await_ends(workers, _IDLE_SECONDS)
        for worker in workers:
            with contextlib.suppress(ProcessLookupError):
                getattr(worker, by)()
        with contextlib.suppress(ClosedError):
            self._say(self.broken)
        self.wake()
        if not self._threads:
            self._end()
        # Only the keeper waits for processes: of two who do at once, one is told that there is no such process.
        if len(self._threads) == 2 and threading.current_thread() not in self._threads:
            keeper = self._threads[1]
            keeper.join(_BUSY_SECONDS)
            if keeper.is_alive():  # they ignore SIGTERM
                for worker in workers:
                    worker.kill()
                keeper.join(5)

    def _end(self) -> None:
        """Nobody works any more, and nothing is awaited."""
        self._fail_all(self.broken or "the workers have ended")
        self.tasks.close()
        self.results.close()

    def join(self) -> None:
        if self.is_mine() and threading.current_thread() not in self._threads:
            for thread in reversed(self._threads):
                thread.join()
