"""Processes started by spawn in an environment of their own and, if requested, without the program's main module.

A numerical library reads its variables (``OMP_NUM_THREADS`` and similar ones) once, when it is loaded. That may be
before any code of copyless runs in the new process, so the variables must be in the environment that the new program
starts with. The environment of this process is not changed, because other threads may start programs at the same time.
"""

from __future__ import annotations

import functools
import io
import os
import subprocess
from collections.abc import Mapping
from multiprocessing import popen_spawn_posix, reduction, resource_tracker, spawn, util
from multiprocessing import process as _process
from multiprocessing.context import set_spawning_popen

from copyless._storage.settings import environment_of_child
from copyless._typing import Any

__all__ = ["Spawn"]


def _close(*descriptors: int) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


class Popen(popen_spawn_posix.Popen):
    """The program that was started for a process; `Process.start` makes it."""

    _fds: list[int]

    def __init__(self, process: Any, environment: Mapping[str, str], imports_main: bool) -> None:
        self._environment, self._imports_main = environment, imports_main
        super().__init__(process)

    def _launch(self, process: Any) -> None:
        del process._Popen  # the partial of `Spawn.Process`, which the child does not need
        tracker: Any = resource_tracker.getfd()
        prepared = spawn.get_preparation_data(process._name)
        if prepared.get("start_method") not in ("fork", "spawn", "forkserver"):
            del prepared["start_method"]  # as in a worker of loky: only loky's own processes have its start method
        if not self._imports_main:
            for key in [key for key in prepared if key.startswith("init_main_")]:
                del prepared[key]
        message = io.BytesIO()
        set_spawning_popen(self)
        try:
            for part in (prepared, process):
                reduction.dump(part, message)
        finally:
            set_spawning_popen(None)
        ends: list[int] = []  # ends of the pipe that this process writes, and of the pipe that ends with the child
        try:
            ends += os.pipe()
            ends += os.pipe()
            child_reads, we_write, self.sentinel, child_holds = ends
            started = subprocess.Popen(
                spawn.get_command_line(tracker_fd=tracker, pipe_handle=child_reads),
                executable=spawn.get_executable(),
                env=environment_of_child(self._environment),
                pass_fds=[*self._fds, tracker, child_reads, child_holds],
                restore_signals=False,
            )
            self.pid = started.pid
            started.returncode = 0  # only multiprocessing waits for the process
        except BaseException:
            for end in ends:
                os.close(end)
            raise
        self.finalizer = util.Finalize(self, _close, (self.sentinel, we_write))
        os.close(child_reads)
        os.close(child_holds)
        with open(we_write, "wb", closefd=False) as stream:
            stream.write(message.getbuffer())


class Spawn:
    """A context for a worker pool. It starts processes by spawn, in an environment of their own.

    Parameters
    ----------
    base
        The context whose processes they are.
    environment
        Variables that are added to those of this process.
    imports_main
        Whether they first import the program's main module, as in multiprocessing; the main module then needs a guard.
    """

    def __init__(self, base: Any, environment: Mapping[str, str], imports_main: bool) -> None:
        self._base, self._environment, self.imports_main = base, environment, imports_main

    def Process(self, *args: Any, **kwargs: Any) -> _process.BaseProcess:
        process: Any = self._base.Process(*args, **kwargs)
        process._Popen = functools.partial(Popen, environment=self._environment, imports_main=self.imports_main)
        made: _process.BaseProcess = process
        return made

    def get_start_method(self, allow_none: bool = False) -> str:
        return "spawn"
