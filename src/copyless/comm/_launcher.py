"""Functions as ranks on this host: `spawn` starts the ranks, watches them, and ends all of them when one dies."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from copyless import _platform
from copyless.comm._programs import how_it_ended
from copyless.comm._rank_table import DIED
from copyless.errors import OwnerDiedError, StaleHandleError

if TYPE_CHECKING:
    from multiprocessing.context import BaseContext
    from multiprocessing.process import BaseProcess

    from copyless._typing import Context
    from copyless.comm._group import Group
    from copyless.queues import Queue

__all__ = ["spawn"]

T = TypeVar("T")
_GRACE = 3.0  # seconds between SIGTERM and SIGKILL to the other ranks


def _follow() -> None:
    """End this process when the process that asked for it ends."""
    from multiprocessing import parent_process

    starter = parent_process()
    if starter is not None:
        starter.join()
        os.kill(os.getpid(), signal.SIGTERM)


def _begin(group_handle: bytes, rank: int, names: list[bytes], parent: int) -> None:
    from copyless._attach import attach
    from copyless._transfer.retry import send_when_room
    from copyless._transfer.sealed import seal, sealed_error, unseal
    from copyless.comm._group import Group
    from copyless.comm._local_world import join

    if os.getppid() == parent:
        _platform.die_with_parent(parent)()
    else:  # started by a fork server, which lives longer than the process that asked
        threading.Thread(target=_follow, name="copyless-parent", daemon=True).start()
    try:
        jobs, results = (attach(name) for name in names)
        comm = join(Group.from_handle(group_handle), rank)
    except StaleHandleError:
        return  # the starter has already ended
    try:
        function, args = unseal(jobs.get())
        value = function(comm, *args)
        results.put((rank, True, seal(value)))
    except BaseException as error:
        comm._engine.group.end(rank, DIED)
        send_when_room(results.put, lambda failed: (rank, False, sealed_error(failed)), error)
        return
    comm._engine.close()


def spawn(fn: Callable[..., T], n: int, args: tuple[object, ...], context: BaseContext | Context | None) -> list[T]:
    """The work of `copyless.comm.spawn`."""
    import multiprocessing

    from copyless import _loaders
    from copyless._attach import handle
    from copyless._transfer.sealed import seal, unseal
    from copyless._workers.outcome import revive
    from copyless._workers.starting import main_must_travel
    from copyless.comm._group import Group
    from copyless.queues import Empty, Queue

    group = Group(n)
    made: Any = context or multiprocessing.get_context()
    jobs: Queue[Any] = Queue()
    answers: Queue[Any] = Queue()
    by_value = main_must_travel(made)
    group_handle, names = group.handle, [bytes(handle(jobs)), bytes(handle(answers))]
    for _ in range(n):
        jobs.put(seal((fn, args), by_value))
    ranks = [
        made.Process(target=_loaders.begin_rank, args=(group_handle, rank, names, os.getpid()), name=f"rank {rank}")
        for rank in range(n)
    ]
    values: dict[int, T] = {}
    try:
        for process in ranks:
            process.start()
        while len(values) < n:
            try:
                rank, good, value = answers.get(timeout=0.1)
            except Empty:
                _look(group, ranks, values, answers)
                continue
            if not good:
                error = revive(*value)
                if isinstance(error, OwnerDiedError):  # caused by the death of another rank: report that rank instead
                    _look(group, ranks, values, answers, seconds=1.0)
                raise error
            group.end(rank)
            values[rank] = unseal(value)
        for process in ranks:
            process.join()
        return [values[rank] for rank in range(n)]
    finally:
        for process in ranks:
            if process.pid is not None and process.exitcode is None:
                process.terminate()
        for process in ranks:
            if process.pid is not None:
                process.join(_GRACE)
                if process.exitcode is None:
                    process.kill()
                    process.join()


def _look(
    group: Group, ranks: Sequence[BaseProcess], values: dict[int, T], answers: Queue[Any], seconds: float = 0.0
) -> None:
    """Raise OwnerDiedError if a rank's process has ended without an answer."""
    deadline = time.monotonic() + seconds
    while True:
        for rank, process in enumerate(ranks):
            if process.exitcode is not None and rank not in values and answers.empty():
                if process.exitcode == 0 and seconds:
                    continue  # it sent the error that it raised
                group.end(rank, DIED)
                raise OwnerDiedError(f"rank {rank} (process {process.pid}) {how_it_ended(process.exitcode)}")
        if time.monotonic() >= deadline:
            return
        time.sleep(0.01)
