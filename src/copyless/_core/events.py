"""What happened in this process: counted, and told in the log `copyless`, at most one line for each event.

A line is written by the thread that found the event out, when it has released what it held: never inside the locks of
the registry or of a pool, never between a fork and the end of its hooks. An event at such a moment is only counted.
Each kind of event has a burst of lines, and then one a second; a line says how many were left out before it.

`logging` is loaded at the first line. A program that can import nothing more (after chroot, when it dropped its rights,
or when it has no free descriptor) gets no lines, and no error.

The thread may hold locks of the program's own, and a fork holds the lock of the module `logging` while it waits for
hooks that may need those. So a line takes that lock nowhere. Nor could Ctrl-C leave it held: in Python, an exception of
a signal handler may come between `acquire` and the `try` behind it.

An error of a handler or a filter is printed, as `logging` prints those of its own handlers. It would hide the error of
the caller, or end a thread of a pool.
"""

from __future__ import annotations

import os
import time
from _thread import _local, allocate_lock, get_ident

from copyless._typing import Any

__all__ = [
    "NAMES", "counts", "holder_died", "hush", "is_quiet", "quiet_for_good", "reclaimed", "refused", "spilled", "tell",
    "waited", "worker_died",
]  # fmt: skip

NAMES = (
    "processes_ended", "blocks_reclaimed", "messages_reclaimed", "messages_expired", "holders_died", "workers_died",
    "refused", "spilled", "holder_waits",
)  # fmt: skip

_BURST = 10.0  # lines of one kind at once; then one a second
_SELDOM = frozenset({"spilled", "refused"})  # these come in thousands: one at once, then one every ten seconds

_INFO, _WARNING = 20, 30  # levels of `logging`
_unregistered: Any = None  # the logger of a program that has not asked for it

_lock = allocate_lock()
_counts = dict.fromkeys(NAMES, 0)
_forking: set[int] = set()


class _Bound:
    """The lines that one kind of event may still write."""

    __slots__ = ("at", "left_out", "most", "rate", "tokens")

    def __init__(self, kind: str) -> None:
        self.most, self.rate = (1.0, 0.1) if kind in _SELDOM else (_BURST, 1.0)
        self.tokens, self.at, self.left_out = self.most, time.monotonic(), 0


_bounds: dict[str, _Bound] = {}


class _Reasons(_local):
    number = 0


_reasons = _Reasons()
_quiet_for_good = False


def hush(more: int) -> bool:
    """Add to the number of reasons why this thread tells nothing: it holds a lock that a handler of the log may need,
    or it is telling something. Returns whether this is the only reason.
    """
    _reasons.number = number = _reasons.number + more
    return number == more


def is_quiet() -> bool:
    """Whether this thread tells nothing now."""
    return _quiet_for_good or _reasons.number != 0


def quiet_for_good() -> None:
    """This process tells nothing from now on: it is a forked child that could not be registered."""
    global _quiet_for_good
    _quiet_for_good = True


def counts() -> dict[str, int]:
    """How often each event happened in this process."""
    with _lock:
        return dict(_counts)


def _count(**more: int) -> None:
    with _lock:
        for name, n in more.items():
            _counts[name] += n


def _left_out(kind: str) -> int | None:
    """How many lines of this kind were left out since the last one; None: leave this one out, too."""
    with _lock:
        bound = _bounds.get(kind) or _bounds.setdefault(kind, _Bound(kind))
        now = time.monotonic()
        bound.tokens, bound.at = min(bound.most, bound.tokens + (now - bound.at) * bound.rate), now
        if bound.tokens < 1:
            bound.left_out += 1
            return None
        bound.tokens -= 1
        found, bound.left_out = bound.left_out, 0
        return found


def tell(level: int, kind: str, text: str, anyway: bool = False, **about: Any) -> None:
    """Write a line, unless this is no moment for it. `about`: attributes of the record, beside `copyless_event`.
    `anyway`: also inside a lock of a pool.
    """
    if get_ident() in _forking or _quiet_for_good:
        return
    only = hush(1)  # no event of the handlers themselves is told
    try:
        if only or anyway:
            _write(level, kind, text, about)
    finally:
        hush(-1)


def _write(level: int, kind: str, text: str, about: dict[str, Any]) -> None:
    log = _logger(level)
    if log is not None and (left_out := _left_out(kind)) is not None:
        more = f" ({left_out:,} lines of this kind were left out before)" if left_out else ""
        extra = {"copyless_event": kind, **{f"copyless_{name}": value for name, value in about.items()}}
        record = log.makeRecord(log.name, level, __file__, 0, "%s%s", (text, more), None, "tell", extra)
        try:
            log.handle(record)  # `log.log` would take `logging`'s lock
        except Exception:
            from logging import Handler

            printer: Any = Handler.handleError
            printer(None, record)


def _logger(level: int) -> Any:
    """The logger, if it wants lines of this level. `getLogger` and `isEnabledFor` would take `logging`'s lock."""
    global _unregistered
    try:
        import logging
    except (ImportError, OSError, MemoryError):
        return None
    manager = getattr(getattr(logging, "Logger", None), "manager", None)
    if manager is None:  # this thread is just loading it
        return None
    log = manager.loggerDict.get("copyless")
    if not isinstance(log, logging.Logger):  # the program has not asked for it, or only for one below it
        log = _unregistered
        if log is None:
            log = _unregistered = logging.Logger("copyless")
            log.parent = manager.root
    wanted = not log.disabled and manager.disable < level >= log.getEffectiveLevel()
    return log if wanted else None


def _many(n: int, what: str) -> str:
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def reclaimed(
    owners: int, blocks: int, segments: int, messages: int, expired: int, deaths: list[tuple[int, str, int]]
) -> None:
    """This process took back what others had left. `deaths`: pid, program and operation of the first owners."""
    _count(
        processes_ended=owners, blocks_reclaimed=blocks, messages_reclaimed=messages - expired, messages_expired=expired
    )
    for pid, program, op in deaths:
        if op:
            text = f"process {pid} ({program}) died inside an operation on shared memory; it was repaired"
            tell(_WARNING, "process_died", text, pid=pid, program=program)
        else:
            text = f"process {pid} ({program}) ended without leaving: it was killed, or is a child of multiprocessing"
            tell(_INFO, "process_ended", text, pid=pid, program=program)
    if blocks or segments or messages - expired:
        some = {"block": blocks, "unfinished segment": segments, "message": messages - expired}
        what = " and ".join(_many(n, each) for each, n in some.items() if n)
        text = f"reclaimed {what} of processes that have ended"
        tell(_INFO, "reclaimed", text, blocks=blocks, segments=segments, messages=messages - expired)
    if expired:
        text = (
            f"{_many(expired, 'message')} expired: sent, and not loaded by any process in time, so the memory was "
            "freed. A longer time is set by COPYLESS_MESSAGE_TTL (seconds) in the sender"
        )
        tell(_WARNING, "message_expired", text, messages=expired)


def holder_died(what: str, free: bool) -> None:
    """The holder of a lock died. `free`: this thread does not hold it now, so the line can be written."""
    _count(holders_died=1)
    if free:
        text = f"the process that held a {what} died: the data that it guards may be half changed"
        tell(_WARNING, "holder_died", text, object=what)


def worker_died(pid: int, code: int | None, how: str) -> None:
    """A worker of a pool died."""
    _count(workers_died=1)
    tell(_WARNING, "worker_died", f"the worker process {pid} {how}", pid=pid, exit_code=code)


def refused(error: OSError, asked: int) -> None:
    """Shared memory, or an entry of a table, could not be had. The caller gets the error too."""
    _count(refused=1)
    tell(_INFO, "refused", error.strerror or str(error), bytes=asked)


def spilled(blocks: int, directory: str) -> None:
    """Blocks of queues, or locks and other objects, were made on disk. `put` of a queue also warns, once."""
    _count(spilled=blocks)
    text = f"shared memory is full: {_many(blocks, 'block')} spilled to files in {directory}, which is slower"
    tell(_INFO, "spilled", text, blocks=blocks, directory=directory)


def waited(pid: int, program: str, state: str, what: str, seconds: float) -> None:
    """This process has waited for one that holds something."""
    _count(holder_waits=1)
    text = f"waiting for process {pid} ({program}), which is {state} and has held {what} for {seconds:.1f} s"
    # A thread that waits inside a lock of a pool is not through for long: this line is all that says why.
    tell(_WARNING, "holder_waited_for", text, True, pid=pid, program=program, state=state, seconds=seconds)


def _before_fork() -> None:
    _forking.add(get_ident())


def _in_parent() -> None:
    _forking.discard(get_ident())


def _in_child() -> None:
    global _lock
    _lock = allocate_lock()  # another thread of the parent may have held it
    _counts.update(dict.fromkeys(NAMES, 0))
    _bounds.clear()
    _forking.clear()


os.register_at_fork(before=_before_fork, after_in_parent=_in_parent, after_in_child=_in_child)
