"""A group of ranks on this host: their inboxes, which of them live, and the engine that matches messages to receives.

The inbox of a rank is one queue. A message is in shared memory when `send` returns and outlives its sender, and a rank
that is killed anywhere leaves nothing half done. Each message has its communicator, source and tag. The receiver keeps
messages that no receive waits for in the order of arrival, and pending receives in the order of posting. Together the
two orders are MPI's: messages of one source, communicator and tag never overtake each other.

A thread that waits reads the inbox; if several wait, one reads for all. Five times a second it checks whether the ranks
that it waits for live. The table that all ranks share tells which rank was killed or has ended:

    row       [process number, its start time, its owner's slot and incarnation, state]
    state     0 expected, 1 runs, 2 ended well, 3 ended badly
    written   by the rank when it begins and ends, and by the starter when the process has ended
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from copyless import waiting
from copyless._attach import attach, handle
from copyless._core import _store
from copyless._platform import processors
from copyless._progress import shown
from copyless._storage.store import allocate, ensure_open
from copyless._transfer._memory import Memory
from copyless.comm._inbox import Inbox, Parcel
from copyless.comm._rank_table import DIED, ENDED, RUNS, joined, parts_of
from copyless.comm._rank_table import INCARNATION as _INCARNATION
from copyless.comm._rank_table import PID as _PID
from copyless.comm._rank_table import SLOT as _SLOT
from copyless.comm._rank_table import START as _START
from copyless.comm._rank_table import STATE as _STATE
from copyless.comm._rank_table import WIDTH as _WIDTH
from copyless.errors import ClosedError, OwnerDiedError, WrongProcessError
from copyless.queues import Queue

__all__ = ["Engine", "Group", "Receive"]

_LOOK = 0.2  # seconds between two checks which ranks live
_CONTEXT_OF_ACKS = -1


class Group:
    """The shared memory of a group of ranks. The starter makes it; a rank finds it by its handle, some bytes."""

    def __init__(self, size: int) -> None:
        if size < 1:
            raise ValueError(f"a group must have 1 rank or more, not {size}")
        ensure_open()
        self._store = _store.identity()
        self.size = size
        self.inboxes: list[Any] = [Queue() for _ in range(size)]
        block = allocate(8 * (size + 1) * _WIDTH, spill=True)
        block.clear()
        cell: Any = Memory(block)
        # the last row: the number of the next communicator
        self._cell = np.frombuffer(cell, "i8").reshape(size + 1, _WIDTH)
        self.table = self._cell.view(np.ndarray)
        self.table[size, 0] = 2
        from copyless.synchronize import Lock

        self._lock: Any = Lock(recover="silent")

    @property
    def handle(self) -> bytes:
        """The handle for the ranks. It is valid while the starter or a rank lives."""
        parts = [self._cell, self._lock, *self.inboxes]
        return joined([bytes(handle(part)) for part in parts])

    @classmethod
    def from_handle(cls, group_handle: bytes) -> Group:
        group = cls.__new__(cls)
        names = parts_of(group_handle)
        ensure_open()
        group._store = _store.identity()
        cell = attach(names[0])  # an array if a `Group` made it, plain memory if the command did
        is_plain = isinstance(cell, Memory)
        group._cell = np.frombuffer(cell, "i8").reshape(-1, _WIDTH) if is_plain else cell
        group.table = group._cell.view(np.ndarray)
        group._lock = attach(names[1])
        group.inboxes = [attach(name) for name in names[2:]]
        group.size = len(group.inboxes)
        return group

    def begin(self, rank: int) -> None:
        row = self.table[rank]
        row[_PID], row[_START] = os.getpid(), _store.process_start(os.getpid())
        row[_SLOT], row[_INCARNATION] = _store.owner()
        row[_STATE] = RUNS

    def end(self, rank: int, state: int = ENDED) -> None:
        if self.table[rank, _STATE] < ENDED:
            self.table[rank, _STATE] = state

    def state(self, rank: int) -> int:
        """The state of a rank. A process that no longer exists and did not record its end has died."""
        pid, start, slot, incarnation, state = self.table[rank].tolist()
        if state == RUNS:
            # The owner's slot decides, since a rank may be in another pid namespace. (Unless the store was replaced
            # meanwhile.)
            known = _store.identity() == self._store
            lives = _store.owner_lives(slot, incarnation) if known else _store.process_lives(pid, start)
        if state == RUNS and not lives:
            self.end(rank, DIED)
            state = int(self.table[rank, _STATE])
        return int(state)

    def next_contexts(self, n: int) -> int:
        """The first of `n` unused numbers for communicators."""
        with self._lock:
            first = int(self.table[self.size, 0])
            self.table[self.size, 0] = first + 2 * n
        return first


class Receive:
    """A receive, or a probe, that waits for its message."""

    __slots__ = ("context", "message", "source", "sources", "tag")

    def __init__(self, context: int, source: int, tag: int, sources: Sequence[int]) -> None:
        self.context, self.source, self.tag = context, source, tag  # source and tag: -1 means any
        self.sources = sources  # the ranks whose death would leave it waiting for ever
        self.message: Parcel | None = None

    def fits(self, message: Parcel) -> bool:
        return (self.source < 0 or self.source == message.source) and (self.tag < 0 or self.tag == message.tag)


def _drop(queues: dict[int, list[Any]], context: int, i: int) -> None:
    """Remove one from the list of a communicator. An empty list is removed, because the fast path checks whether
    there is one.
    """
    del queues[context][i]
    if not queues[context]:
        del queues[context]


def _others_here() -> bool:
    """Whether other threads of this process could send to this rank, apart from those of copyless itself."""
    me, main = threading.current_thread(), threading.main_thread()
    return any(thread is not me and (thread is main or not thread.daemon) for thread in threading.enumerate())


class Engine:
    """The part of one rank in a group. Any number of its threads may use it."""

    def __init__(self, group: Group, rank: int) -> None:
        self.group, self.rank, self.pid = group, rank, os.getpid()
        self._lock = threading.RLock()
        self._changed = threading.Condition(threading.Lock())
        self._unexpected: dict[int, list[Parcel]] = {}
        self._posted: dict[int, list[Receive]] = {}
        crowded = group.size > processors()
        self.inbox = Inbox(group.inboxes, rank, self._arrive, self._posted, self._unexpected, self._changed, crowded)
        self._acks: dict[int, bool] = {}
        self._number = 0
        self._derived: dict[int, int] = {}
        group.begin(rank)

    def _check(self) -> None:
        if self.inbox.inherited:
            raise WrongProcessError(
                f"this process was forked by rank {self.rank} and is not a rank: it cannot use the communicators "
                "of its parent"
            )

    # ---- sending

    def send(
        self,
        obj: object,
        to: int,
        context: int,
        source: int,
        tag: int,
        synchronous: bool = False,
        title: str | None = None,
    ) -> int:
        """Put a message into the inbox of a rank. Returns the number whose acknowledgement a synchronous send waits
        for, else 0.

        With a `title`, a large message shows a progress bar while it is copied.
        """
        self._check()
        number = 0
        if synchronous:
            with self._lock:
                self._number += 1
                number = self._number
                self._acks[number] = False
        try:
            self.inbox.send(obj, to, context, source, tag, number, functools.partial(shown, title) if title else None)
        except ClosedError:
            raise OwnerDiedError(f"rank {to} of the group has ended, so no process will receive the message") from None
        return number

    def acknowledged(self, number: int) -> bool:
        with self._lock:
            if self._acks.get(number, True):
                self._acks.pop(number, None)
                return True
            return False

    # ---- receiving

    def post(self, receive: Receive, keep: bool = False) -> Receive:
        """Give a receive its message if it has arrived; otherwise record the receive. `keep`: only look, for a
        probe.
        """
        self._check()
        with self._lock:
            waiting = self._unexpected.get(receive.context)
            if waiting:
                for i, message in enumerate(waiting):
                    if receive.fits(message):
                        if not keep:
                            _drop(self._unexpected, receive.context, i)
                            self._answer(message)
                        receive.message = message
                        return receive
            if not keep:
                self._posted.setdefault(receive.context, []).append(receive)
        return receive

    def derived(self, context: int) -> int:
        """The number of a communicator that is made from another. Each of its ranks computes the same number for the
        n-th one.
        """
        with self._lock:
            self._derived[context] = n = self._derived.get(context, 0) + 1
        digest = hashlib.blake2b(f"{context} {n}".encode(), digest_size=8).digest()
        return (
            int.from_bytes(digest, "little") >> 2 << 1 | 1 << 62
        )  # even: the next number belongs to its collective operations

    def waits(self, context: int, source: int, but: int) -> Parcel | None:
        """The first message of a rank that lies here, if its tag is not the one named."""
        with self._lock:
            line = self._unexpected.get(context, ())
            return next((message for message in line if message.source == source and message.tag != but), None)

    def cancel(self, receive: Receive) -> bool:
        """Withdraw a receive. False if it has its message."""
        with self._lock:
            line = self._posted.get(receive.context, [])
            if receive in line:
                _drop(self._posted, receive.context, line.index(receive))
                return True
        return False

    def _answer(self, message: Parcel) -> None:
        """Tell the sender of a synchronous message that its receive has begun."""
        if message.number:
            with contextlib.suppress(ClosedError):
                self.inbox.send(None, message.sender, _CONTEXT_OF_ACKS, 0, 0, message.number)

    def _arrive(self, message: Parcel) -> None:
        with self._lock:
            if message.context == _CONTEXT_OF_ACKS:
                if message.number in self._acks:
                    self._acks[message.number] = True
                    waiting.ring()
                return
            line = self._posted.get(message.context)
            if line:
                for i, receive in enumerate(line):
                    if receive.fits(message):
                        _drop(self._posted, message.context, i)
                        self._answer(message)
                        receive.message = message
                        waiting.ring()  # another thread may wait for it with `wait`
                        return
            self._unexpected.setdefault(message.context, []).append(message)

    def progress(self) -> None:
        """Take messages that have arrived, without waiting."""
        self._check()
        if self.inbox.begin():
            try:
                while (message := self.inbox.next(0)) is not None:
                    self._arrive(message)
            finally:
                self.inbox.leave()

    def wait(
        self, done: Callable[[], object], sources: object, deadline: float | None = None, awaits_receipt: bool = False
    ) -> bool:
        """Wait until a condition is true. False at the deadline.

        Raises OwnerDiedError if one of `sources` has died, or if all have ended. With `awaits_receipt`, the wait is for
        them to receive.
        """
        looked = time.monotonic()
        while not done():
            if deadline is not None and time.monotonic() >= deadline:
                return False
            if self.inbox.begin():
                try:
                    self.inbox.poll()
                    while not done():
                        left = _LOOK if deadline is None else max(0.0, min(_LOOK, deadline - time.monotonic()))
                        message = self.inbox.next(left)
                        if message is None:
                            break
                        self._arrive(message)
                finally:
                    self.inbox.leave()
            else:
                with self._changed:
                    self.inbox.waiting += 1
                    self._changed.wait(_LOOK)
                    self.inbox.waiting -= 1
            if time.monotonic() - looked >= _LOOK and not done():
                looked = time.monotonic()
                self._look(sources, done, awaits_receipt)
        return True

    def _look(self, sources: Any, done: Callable[[], object], awaits_receipt: bool = False) -> None:
        """Raise if what this rank waits for cannot arrive any more."""
        others = [rank for rank in sources if rank != self.rank]
        gone = [(rank, state) for rank in others if (state := self.group.state(rank)) >= ENDED]
        died = [rank for rank, state in gone if state == DIED]
        if not gone or (not died and (len(gone) < len(others) or (len(others) < len(sources) and _others_here()))):
            return
        self.progress()  # messages that they sent before
        if done():
            return
        rank = died[0] if died else gone[0][0]
        pid = int(self.group.table[rank, _PID])
        what = (
            "has died"
            if died
            else f"has ended without {'receiving' if awaits_receipt else 'sending'} the message that this rank "
            "waits for"
        )
        all_of = "" if died or len(others) == 1 else f", as have all {len(others)} ranks that could send it"
        raise OwnerDiedError(f"rank {rank} of the group (process {pid}) {what}{all_of}")

    def close(self) -> None:
        if not self.inbox.inherited:
            self.group.end(self.rank)
