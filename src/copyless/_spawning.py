"""Processes that multiprocessing starts by spawn, with variables of their own in the environment and, where asked, without the main module.

A library for numbers looks at its variables (``OMP_NUM_THREADS`` and its kin) once, when it is loaded, and that may be before
anything of ours runs. So they are given to the new program itself. This process's own environment is not touched: other threads
may start programs at the same time.
"""

from __future__ import annotations

import functools
import io
import os
import subprocess
from collections.abc import Mapping
from multiprocessing import get_all_start_methods, popen_spawn_posix, reduction, resource_tracker, spawn, util
from multiprocessing import process as _process
from multiprocessing.context import set_spawning_popen
from typing import Any

__all__ = ["Spawn"]


def _close(*descriptors: int) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


class Popen(popen_spawn_posix.Popen):
    """A program started for a process; what `Process.start` makes."""

    _fds: list[int]

    def __init__(self, process: Any, environment: Mapping[str, str], imports_main: bool) -> None:
        self._environment, self._imports_main = environment, imports_main
        super().__init__(process)

    def _launch(self, process: Any) -> None:
        del process._Popen  # ours, which is not for the child
        tracker: Any = resource_tracker.getfd()
        prepared = spawn.get_preparation_data(process._name)
        if prepared.get("start_method") not in get_all_start_methods():
            del prepared["start_method"]  # as in a worker of loky, whose method only loky's processes know
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
        ends: list[int] = []  # of the pipe that this process writes, and of that which ends with the child
        try:
            ends += os.pipe()
            ends += os.pipe()
            child_reads, we_write, self.sentinel, child_holds = ends
            started = subprocess.Popen(
                spawn.get_command_line(tracker_fd=tracker, pipe_handle=child_reads),
                executable=spawn.get_executable(),
                env={**os.environ, **self._environment},
                pass_fds=[*self._fds, tracker, child_reads, child_holds],
                restore_signals=False,
            )
            self.pid = started.pid
            started.returncode = 0  # nobody but multiprocessing shall wait for it
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
    """What a crew of workers asks of a context: processes by spawn, in an environment of their own.

    Parameters
    ----------
    base
        The context whose processes they are.
    environment
        Variables that they have beside those of this process.
    imports_main
        Whether they import the program's main module first, as multiprocessing has it; then that needs a guard.
    """

    def __init__(self, base: Any, environment: Mapping[str, str], imports_main: bool) -> None:
        self._base, self._environment, self.imports_main = base, environment, imports_main

    def Process(self, *args: Any, **kwargs: Any) -> _process.BaseProcess:
        made: Any = self._base.Process(*args, **kwargs)
        made._Popen = functools.partial(Popen, environment=self._environment, imports_main=self.imports_main)
        return made  # type: ignore[no-any-return]

    def get_start_method(self, allow_none: bool = False) -> str:
        return "spawn"
