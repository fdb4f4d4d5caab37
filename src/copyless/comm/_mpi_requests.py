"""The results of sends, receives and probes on MPI: `Request` and `Message`. Both are public in `copyless.comm.mpi`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mpi4py import MPI

from copyless import waiting
from copyless.comm import _mpi_waiting
from copyless.comm._interface import RequestMethods
from copyless.comm._mpi_matching import Posted, Wanted, copy_status, match, state_of
from copyless.comm._mpi_messages import fetch
from copyless.comm._mpi_waiting import wait as _wait
from copyless.comm._parts import Arriving, begin_to_open

__all__ = ["Message", "Request", "mprobe"]

ANY_SOURCE, ANY_TAG, PROC_NULL = MPI.ANY_SOURCE, MPI.ANY_TAG, MPI.PROC_NULL

# memory of sends whose requests were freed before they were complete: kept until the process ends
_freed: list[Any] = []


class Request(RequestMethods, tuple):  # type: ignore[type-arg]
    """Request(request=None)

    A send or receive that may not be complete: the MPI requests that it consists of. Mirrors
    `mpi4py.util.pkl5.Request`.

    An `irecv` whose message has not arrived has no MPI request yet. Wait for it with the methods of this class, which
    serve it, and not with those of `MPI.Request`.
    """

    _UNDEFINED = MPI.UNDEFINED
    _comm: Any = None
    _posted: Posted | None = None
    _keep: Any = None  # what MPI still reads, which outlives this object if it must
    _late: Any = None  # called while a wait for it lasts

    def __new__(cls, request: Any = None) -> Request:
        if request is None:
            request = (MPI.REQUEST_NULL,)
        elif isinstance(request, MPI.Request):
            request = (request,)
        made = super().__new__(cls, request)
        if isinstance(request, Request):
            made.__dict__.update(request.__dict__)
        return made

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Request):
            return tuple(self) == tuple(other) and self._posted is other._posted
        if isinstance(other, MPI.Request):
            return self._posted is None and all(request == other for request in self)
        return NotImplemented

    def __ne__(self, other: object) -> bool:
        same = self.__eq__(other)
        return same if same is NotImplemented else not same

    def __bool__(self) -> bool:
        return self._posted is not None or any(request for request in self)

    def _end(self) -> None:
        self.__dict__.clear()

    def Free(self) -> None:
        """Free the request. A receive that has no message yet is cancelled."""
        self._withdraw()
        if self._keep is not None and not all(map(MPI.Request.Get_status, self)):
            _freed.append(self._keep)  # MPI still reads it, and does not say when it has finished
        for request in self:
            if request or self._posted is None:
                request.Free()
        self._end()

    def free(self) -> None:
        """`Free`; does nothing for a null request."""
        if self:
            self.Free()

    def _withdraw(self) -> bool:
        if self._posted is not None and self._posted.message is None:
            self._posted.cancelled = state_of(self._comm).leave(self._posted)
            return self._posted.cancelled
        return False

    def cancel(self) -> None:
        """Cancel a receive that has no message yet, or a send."""
        if self._posted is not None:
            self._withdraw()
            return
        for request in self:
            request.Cancel()

    Cancel = cancel

    def _look(self) -> bool:
        posted = self._posted
        if posted is not None:
            if posted.message is None and not posted.cancelled:
                state_of(self._comm).progress(self._comm)
            return posted.cancelled or (posted.message is not None and posted.message.ended())
        return all(map(MPI.Request.Get_status, self))

    def _for_wait(self) -> waiting.Part:
        return waiting.Part(lambda deaths: self._look(), (), True)

    def get_status(self, status: Any = None) -> bool:
        """Whether the request is complete. It is not changed."""
        _mpi_waiting.serve()
        if not self._look():
            return False
        if self._posted is not None:
            self._tell(status)
        elif status is not None:
            MPI.Request.Get_status(self[0], status)
        return True

    def _tell(self, status: Any) -> None:
        """Fill in the status of a posted receive."""
        posted = self._posted
        if status is None or posted is None:
            return
        if posted.cancelled:
            status.Set_cancelled(True)
        else:
            copy_status(status, posted.status)

    def _finish(self, status: Any) -> Arriving | None:
        """Make the request, which is complete, null. Returns its message, not unpickled."""
        posted = self._posted
        coming: Arriving | None = None
        if posted is not None:
            self._tell(status)
            coming = None if posted.cancelled else posted.message
        else:
            MPI.Request.Waitall(self, None if status is None else [status] * len(self))
        self._end()
        return coming

    def _take(self, status: Any) -> object:
        coming = self._finish(status)
        return None if coming is None else coming.open()

    def wait(self, status: object = None) -> Any:
        """Wait until the request is complete. Returns the received object, or None for a send."""
        if self._posted is None and status is None and MPI.Request.Testall(self):
            self._end()  # most sends are complete by now
            return None
        self._await()
        return self._take(status)

    def _await(self) -> None:
        _wait(self._look, self._late)

    @classmethod
    def _serve(cls) -> None:
        _mpi_waiting.serve()

    @classmethod
    def _each(cls, requests: Sequence[object]) -> Sequence[Any]:
        # Requests of MPI itself among them become null too.
        return [request if isinstance(request, Request) else Request(request) for request in requests]

    @classmethod
    def _await_all(cls, requests: Sequence[Any]) -> None:
        _wait(lambda: all(request._look() for request in requests))

    @classmethod
    def _await_one(cls, requests: Sequence[Any]) -> None:
        _wait(lambda: any(request._look() for request in requests))

    @classmethod
    def _new_status(cls) -> MPI.Status:
        return MPI.Status()


class Message(tuple):  # type: ignore[type-arg]
    """Message(message=None)

    A message that a probe has matched: only this object can receive it. Mirrors `mpi4py.util.pkl5.Message`.
    """

    _nbytes = 0
    _status: Any = None  # the status of the probe that matched it
    _arriving: Arriving | None = None  # which MPI receives already

    def __new__(cls, message: Any = None) -> Message:
        if message is None:
            message = (MPI.MESSAGE_NULL,)
        elif isinstance(message, MPI.Message):
            # Copy the constant: a message becomes null when it is received.
            message = (MPI.Message(message) if message == MPI.MESSAGE_NO_PROC else message,)
        made = super().__new__(cls, message)
        if isinstance(message, Message):
            made._nbytes, made._status, made._arriving = message._nbytes, message._status, message._arriving
        return made

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Message):
            return tuple(self) == tuple(other) and (self._arriving or None) is (other._arriving or None)
        if isinstance(other, MPI.Message):
            return not self._arriving and all(message == other for message in self)
        return NotImplemented

    def __ne__(self, other: object) -> bool:
        same = self.__eq__(other)
        return same if same is NotImplemented else not same

    def __bool__(self) -> bool:
        return bool(self._arriving) or any(message for message in self)

    def _for_wait(self) -> waiting.Part:
        return waiting.READY

    def free(self) -> None:
        """Do nothing, as in mpi4py."""
        for message in self:
            message.free()

    def recv(self, status: Any = None) -> Any:
        """Receive the object."""
        message = self[0]
        if message == MPI.MESSAGE_NO_PROC:
            MPI.Message.Recv(message, (None, 0, MPI.BYTE), status)
            return None
        if not self._arriving and (message == MPI.MESSAGE_NULL or self._status is None):
            return MPI.Message.recv(message, status)  # not matched by a probe of copyless
        obj = fetch(self._arriving or message, self._nbytes)
        copy_status(status, self._status)
        return obj

    def irecv(self) -> Request:
        """A request that receives the object; MPI begins to receive it now."""
        message = self[0]
        if message == MPI.MESSAGE_NO_PROC:
            return Request(MPI.Message.Irecv(message, (None, 0, MPI.BYTE)))
        if not self._arriving and (message == MPI.MESSAGE_NULL or self._status is None):
            return Request(MPI.Message.irecv(message))
        posted = Posted(ANY_SOURCE, ANY_TAG)
        posted.message = self._arriving or begin_to_open(message, self._nbytes)  # the MPI message is null afterwards
        posted.nbytes, posted.status = self._nbytes, self._status
        self._arriving = None
        request = Request()
        request._posted = posted
        return request

    @classmethod
    def probe(cls, comm: object, source: int = ANY_SOURCE, tag: int = ANY_TAG, status: object = None) -> Message:
        """Wait for a message and match it."""
        return mprobe(comm, source, tag, status, True)  # type: ignore[return-value]

    @classmethod
    def iprobe(
        cls, comm: object, source: int = ANY_SOURCE, tag: int = ANY_TAG, status: object = None
    ) -> Message | None:
        """Match a message if there is one; otherwise None."""
        return mprobe(comm, source, tag, status, False)


def mprobe(comm: Any, source: int, tag: int, status: Any, wait: bool) -> Message | None:
    if source == PROC_NULL:
        return Message(MPI.Comm.Mprobe(comm, source, tag, status))
    status = MPI.Status() if status is None else status
    message, nbytes = match(comm, source, tag, status, wait, Wanted.MATCHED)
    if message is None:
        return None
    if isinstance(message, Arriving):
        made = Message()
        made._arriving = message
    else:
        made = Message(message)
    made._nbytes = nbytes
    made._status = MPI.Status()
    copy_status(made._status, status)
    return made


for _class in (Request, Message):
    _class.__module__ = "copyless.comm.mpi"  # the public module
