"""The communicator on MPI: mpi4py's, with large buffers sent at memory speed within a node.

Mirrors `mpi4py.util.pkl5`: ``from copyless.comm import mpi as pkl5``. The classes are subclasses of `MPI.Comm`, so
every upper-case method works. Every object is one message with the caller's tag:

    small object                        its pickle, with the buffers in it
    large buffers, same node            its pickle, and the handle of one block that the buffers were copied into
    a few large buffers, another node   its pickle; the buffers follow from their place, on tags that are copyless's
    many buffers, another node          its pickle and the buffers, copied together

The receiver's arrays use the block, or the memory that MPI received into; they are writable and belong to the receiver.
Messages are sent on the user's own communicator, so probes see them. Making a wrapper is local and needs no other rank.
Each rank enters itself into a table in its node's shared memory when it imports this module; the table tells which
ranks share a node. A rank that is not in the table gets messages by value. A receive by mpi4py itself works too, but
for large buffers of another node on the communicator COMM_WORLD only, and not for many of them: else it raises
RuntimeError.

`irecv` works. Pending receives wait in one queue for each communicator, whichever wrapper posted them, and a message
goes to the first receive that it matches. Waiting spins briefly, then yields, then sleeps, and handles Ctrl-C. Every
blocking method of this module, upper-case ones too, serves the pending receives while it waits. Methods of a raw
communicator or of the class `MPI.Request` do not: wait for a pending `irecv` before calling them
(docs/design/communicator.md).

Names that are not defined here are MPI's: ``from copyless.comm import mpi as MPI`` works for programs that send
objects. COMM_WORLD and COMM_SELF are of this module's classes.
"""

from __future__ import annotations

import sys
from typing import Any

try:
    from mpi4py import MPI
except ImportError as _error:
    raise ImportError(
        f"comm.mpi needs mpi4py and an MPI library: pip install 'copyless[mpi]' brings both ({_error}). Without MPI: "
        "copyless run -n 4 prog.py, and copyless.comm.local"
    ) from None

from copyless.comm import _custom_pickle
from copyless.comm._mpi_communicator import (
    Cartcomm,
    Comm,
    CommError,
    Distgraphcomm,
    Graphcomm,
    Intercomm,
    Intracomm,
    Topocomm,
)
from copyless.comm._mpi_communicator import choice as _choice
from copyless.comm._mpi_requests import Message, Request

__all__ = ["ANY_SOURCE", "ANY_TAG", "PROC_NULL", "ROOT", "UNDEFINED", "Cartcomm", "Comm", "CommError", "Distgraphcomm",
           "Graphcomm",
           "Intercomm", "Intracomm", "Message", "Pickle", "Request", "Status", "Topocomm", "pickle",
           "world"]  # fmt: skip

ANY_SOURCE, ANY_TAG, PROC_NULL, ROOT, UNDEFINED = MPI.ANY_SOURCE, MPI.ANY_TAG, MPI.PROC_NULL, MPI.ROOT, MPI.UNDEFINED
Status = MPI.Status


class Pickle(_custom_pickle.Pickle):
    __doc__ = _custom_pickle.Pickle.__doc__
    _buffer = MPI.buffer.frombuffer

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _choice.look()


pickle: Any  # the pickler of sent objects: an attribute of the transport, which this module reads and sets
_choice.pickle = Pickle()
sys.modules[__name__].__class__ = _custom_pickle.ModuleWithPickle

_the_world: Intracomm | None = None
_the_self: Any = None


def world() -> Intracomm:
    """MPI's world, as an `Intracomm` of this module."""
    global _the_world
    if _the_world is None:
        _the_world = Intracomm(MPI.COMM_WORLD)
    return _the_world


def __getattr__(name: str) -> Any:
    """Names of MPI that this module does not define; COMM_WORLD and COMM_SELF are of its classes."""
    global _the_self
    if name == "COMM_WORLD":
        return world()
    if name == "COMM_SELF":
        if _the_self is None:
            _the_self = Intracomm(MPI.COMM_SELF)
        return _the_self
    if name.startswith("_"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(MPI, name)
