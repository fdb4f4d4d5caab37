"""The communicator on shared memory, for the ranks of one host, without MPI.

Mirrors `mpi4py.util.pkl5`, names and signatures, and the methods of `mpi4py.MPI` that such programs use beside it
(Get_rank, Split, Dup, Merge, Barrier, ...). Ranks are started by ``copyless run -n 4 prog.py`` or `spawn`. In any other
process, `world` is a group of one.

The differences to MPI: a standard send never waits, because the message is in shared memory when it returns. `irecv` of
objects works. If a rank is killed, the ranks that wait for it get `OwnerDiedError` within a second. Received arrays are
writable and belong to the receiver; data that already lies in shared memory is sent as a handle and is the same memory
on both sides.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from copyless.comm import _custom_pickle, _local_world
from copyless.comm._communicator import COMM_NULL, Cartcomm, Comm, Intercomm, Intracomm, RankGroup
from copyless.comm._communicator import choice as _choice
from copyless.comm._constants import (
    ANY_SOURCE,
    ANY_TAG,
    BAND,
    BOR,
    BXOR,
    ERR_OTHER,
    ERR_RANK,
    ERR_ROOT,
    ERR_TAG,
    LAND,
    LOR,
    MAX,
    MAXLOC,
    MIN,
    MINLOC,
    NO_OP,
    PROC_NULL,
    PROD,
    REPLACE,
    ROOT,
    SUCCESS,
    SUM,
    UNDEFINED,
)
from copyless.comm._local_requests import (
    MESSAGE_NO_PROC,
    MESSAGE_NULL,
    REQUEST_NULL,
    CommError,
    Exception,
    Message,
    Request,
    Status,
)
from copyless.comm._local_world import world

__all__ = ["ANY_SOURCE", "ANY_TAG", "BAND", "BOR", "BSEND_OVERHEAD", "BXOR", "BYTE", "COMM_NULL", "COMM_TYPE_SHARED",
           "ERR_OTHER",
           "ERR_RANK", "ERR_ROOT", "ERR_TAG", "LAND", "LOR", "MAX", "MAXLOC", "MESSAGE_NO_PROC", "MESSAGE_NULL", "MIN",
           "MINLOC",
           "NO_OP", "OP_NULL", "PROC_NULL", "PROD", "REPLACE", "REQUEST_NULL", "ROOT", "SUCCESS", "SUM",
           "THREAD_FUNNELED",
           "THREAD_MULTIPLE", "THREAD_SERIALIZED", "THREAD_SINGLE", "UNDEFINED", "Alloc_mem", "Attach_buffer",
           "Cartcomm", "Comm", "CommError",
           "Detach_buffer", "Exception", "Free_mem", "Get_processor_name",
           "Intercomm", "Intracomm", "Message", "Pickle", "Query_thread",
           "RankGroup",
           "Request", "Status", "Wtick", "Wtime", "buffer", "get_vendor", "pickle", "spawn", "world"]  # fmt: skip

if TYPE_CHECKING:
    from multiprocessing.context import BaseContext

    from copyless._typing import Context

_T = TypeVar("_T")


class Pickle(_custom_pickle.Pickle):
    __doc__ = _custom_pickle.Pickle.__doc__

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _choice.look()


pickle: Any  # the pickler of sent objects: an attribute of the transport, which this module reads and sets
_choice.pickle = Pickle()
sys.modules[__name__].__class__ = _custom_pickle.ModuleWithPickle

# ---- names that MPI programs use, and their meaning here

THREAD_SINGLE, THREAD_FUNNELED, THREAD_SERIALIZED, THREAD_MULTIPLE = range(4)
COMM_TYPE_SHARED = 1
OP_NULL = None
BSEND_OVERHEAD = 0
BYTE = "BYTE"
buffer = memoryview


def Query_thread() -> int:
    """THREAD_MULTIPLE: any number of threads may communicate."""
    return THREAD_MULTIPLE


def Get_processor_name() -> str:
    """The name of this host."""
    return os.uname().nodename


def Wtime() -> float:
    """Seconds since some time in the past."""
    return time.perf_counter()


def Wtick() -> float:
    """The resolution of `Wtime`."""
    return time.get_clock_info("perf_counter").resolution


def get_vendor() -> tuple[str, tuple[int, ...]]:
    """Who made this, and the version: there is no MPI here."""
    from importlib.metadata import version

    return "copyless", tuple(int(part) for part in version("copyless").split(".")[:3] if part.isdigit())


def Alloc_mem(size: int) -> memoryview:
    """Memory of this many bytes, as `copyless.Alloc_mem`. Here no memory is faster to send than any other."""
    return memoryview(bytearray(size))


def Free_mem(mem: memoryview) -> None:
    """Release memory from `Alloc_mem`."""
    mem.release()


def Attach_buffer(buf: object) -> None:
    """Do nothing: every send is buffered in shared memory."""


def Detach_buffer() -> None:
    """Do nothing."""


def __getattr__(name: str) -> Any:
    """COMM_WORLD and COMM_SELF, made when they are first used."""
    if name == "COMM_WORLD":
        return world()
    if name == "COMM_SELF":
        return _local_world.own()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def spawn(fn: Callable[..., _T], n: int, *args: object, context: BaseContext | Context | None = None) -> list[_T]:
    """Run ``fn(comm, *args)`` as `n` ranks, each in its own process. Returns the list of their results.

    Parameters
    ----------
    fn
        Any callable, including lambdas and closures. Inside it, `copyless.comm.world` returns `comm`.
    n
        Number of ranks.
    args
        Passed to each rank; arrays in shared memory are sent as handles.
    context
        A context of `multiprocessing.get_context`, which determines the start method.

    Raises
    ------
    Exception
        What a rank raised, with its traceback as the cause. The other ranks are ended.
    OwnerDiedError
        If a rank was killed; the text names it.

    Examples
    --------
    >>> from copyless import comm
    >>> comm.spawn(lambda ranks, base: ranks.allgather(base + ranks.rank), 3, 10)
    [[10, 11, 12], [10, 11, 12], [10, 11, 12]]
    """
    from copyless.comm import _launcher

    return _launcher.spawn(fn, n, args, context)
