"""The results of sends, receives and probes of the local communicator: `Request`, `Message`, `Status`; and its errors.

All are public in `copyless.comm.local`. They use their communicator's engine and import no class of communicator.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from copyless import waiting
from copyless.comm._constants import ANY_SOURCE, ANY_TAG, PROC_NULL, UNDEFINED
from copyless.comm._group import Receive
from copyless.comm._inbox import Parcel
from copyless.comm._interface import RequestMethods
from copyless.errors import CopylessError, OwnerDiedError

__all__ = ["MESSAGE_NO_PROC", "MESSAGE_NULL", "REQUEST_NULL", "CommError", "Exception", "Message", "Request", "Status"]


class Exception(CopylessError, RuntimeError):
    """Base class of the errors of this module. Mirrors `mpi4py.MPI.Exception`."""

    def __init__(self, code: int = 0, text: str = "") -> None:
        super().__init__(code, text)

    def Get_error_class(self) -> int:
        """ERR_RANK, ERR_ROOT, ERR_TAG or ERR_OTHER."""
        return int(self.args[0])

    Get_error_code = Get_error_class

    def Get_error_string(self) -> str:
        return str(self.args[1])

    __str__ = Get_error_string


class CommError(Exception, ValueError):
    """A rank, root or tag that does not exist, or a collective operation that other ranks did not call. A
    ValueError.
    """


class Status:
    """The source, tag and size of a received or probed message. Mirrors `mpi4py.MPI.Status`.

    Attributes
    ----------
    source, tag : int
        The sender's rank, and the tag of the message.
    count : int
        Bytes of the message: its pickle and its buffers.
    error : int
        Always 0.
    """

    source: int
    tag: int
    count: int
    error: int
    cancelled: bool

    def __init__(self) -> None:
        self.source, self.tag, self.count, self.error, self.cancelled = ANY_SOURCE, ANY_TAG, 0, 0, False

    def Get_source(self) -> int:
        return self.source

    def Get_tag(self) -> int:
        return self.tag

    def Get_error(self) -> int:
        return self.error

    def Get_count(self, datatype: object = None) -> int:
        return self.count

    def Get_elements(self, datatype: object = None) -> int:
        return self.count

    def Is_cancelled(self) -> bool:
        return self.cancelled

    def is_cancelled(self) -> bool:
        return self.cancelled

    def _tell(self, comm: object, message: Parcel | None) -> None:
        if message is None or comm is None:
            self.source, self.tag, self.count = PROC_NULL, ANY_TAG, 0
        else:
            self.source, self.tag, self.count = message.source, message.tag, message.nbytes

    def __repr__(self) -> str:
        return f"<Status source={self.source} tag={self.tag} count={self.count}>"


class Request(RequestMethods):
    """A send or receive that may not be complete. Mirrors `mpi4py.util.pkl5.Request`; returned by isend, irecv and
    similar methods.

    After waiting, a request is null: it is false, and waiting again returns None at once.
    """

    _UNDEFINED = UNDEFINED
    _number: int
    _kind: str
    _dest: int | None = None  # for a synchronous send: the rank that must receive it

    def __init__(self, request: Request | None = None) -> None:
        other = request
        self._dest = other._dest if other is not None else None
        self._comm: Any = other._comm if other is not None else None
        self._receive: Receive | None = other._receive if other is not None else None
        self._message: Parcel | None = other._message if other is not None else None
        self._number = other._number if other is not None else 0
        self._kind = other._kind if other is not None else "null"
        self._cancelled = False

    @classmethod
    def _of(cls, comm: Any, kind: str, receive: Receive | None = None, number: int = 0, message: Any = None) -> Request:
        made = cls()
        made._comm, made._kind, made._receive, made._number, made._message = comm, kind, receive, number, message
        return made

    def __bool__(self) -> bool:
        return self._kind != "null"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Request):
            return NotImplemented
        return self is other or (
            (self._kind, self._receive, self._number) == (other._kind, other._receive, other._number)
            and (self._kind == "null" or self._receive is not None or self._number != 0)
        )

    if TYPE_CHECKING:

        def __hash__(self) -> int: ...
    else:
        __hash__ = object.__hash__

    def __repr__(self) -> str:
        return f"<Request {self._kind}>"

    def Free(self) -> None:
        """Free the request. A receive that has no message yet is cancelled."""
        if self._receive is not None and self._comm is not None:
            self._comm._engine.cancel(self._receive)
        self._end()

    free = Free

    def cancel(self) -> None:
        """Cancel a receive that has no message yet. A send is already done."""
        if self._receive is not None and self._comm is not None and self._comm._engine.cancel(self._receive):
            self._cancelled = True
            self._receive = None
            self._kind = "cancelled"

    Cancel = cancel

    def _done(self) -> bool:
        if self._receive is not None:
            return self._receive.message is not None
        if self._number and self._comm is not None:
            return bool(self._comm._engine.acknowledged(self._number))
        return True

    def _look(self) -> bool:
        if self._done():
            return True
        self._comm._engine.progress()
        return self._done()

    def _for_wait(self) -> waiting.Part:
        comm = self._comm
        if comm is None or self._done():
            return waiting.READY
        engine = comm._engine
        sources = self._receive.sources if self._receive is not None else comm._everyone()

        def is_ready(deaths: bool) -> bool:
            if self._look():
                return True
            if deaths:
                try:
                    engine._look(sources, self._done)
                except OwnerDiedError:
                    return True  # its wait() raises the error
            return False

        return waiting.Part(is_ready, ((engine.group.inboxes[engine.rank], waiting.WHOLE),))

    def _end(self) -> None:
        self._kind, self._receive, self._number, self._message, self._comm = "null", None, 0, None, None

    def _finish(self, status: Status | None) -> Parcel | None:
        """Make the request, which is complete, null. Returns its message, not unpickled."""
        message = self._message if self._receive is None else self._receive.message
        if status is not None:
            status._tell(self._comm, message)
            status.cancelled = self._cancelled
        self._kind, self._receive, self._number, self._message, self._comm = (
            "null",
            None,
            0,
            None,
            None,
        )  # the same as _end, without the call
        return message

    def _take(self, status: Status | None) -> object:
        message = self._finish(status)
        return None if message is None else message.open()

    def get_status(self, status: Status | None = None) -> bool:
        """Whether the request is complete. It is not changed."""
        done = self._look()
        if done and status is not None:
            status._tell(self._comm, self._message if self._receive is None else self._receive.message)
            status.cancelled = self._cancelled
        return done

    def _await(self) -> None:
        if not self._look():
            self._comm._engine.wait(self._done, self._sources(), awaits_receipt=self._receive is None)

    def _sources(self) -> Sequence[int]:
        """The ranks, as numbers of the group, that could complete the request."""
        if self._receive is not None:
            return self._receive.sources
        return [] if self._dest is None else [self._dest]

    @classmethod
    def _await_all(cls, requests: Sequence[Any]) -> None:
        for request in requests:
            if not request._done():  # most sends are complete
                request._await()

    @classmethod
    def _await_one(cls, requests: Sequence[Any]) -> None:
        sources = sorted({rank for request in requests for rank in request._sources()})
        requests[0]._comm._engine.wait(lambda: any(request._done() for request in requests), sources)

    @classmethod
    def _new_status(cls) -> Status:
        return Status()


class Message:
    """A message that a probe has matched: only this object can receive it. Mirrors `mpi4py.util.pkl5.Message`."""

    _kind: str

    def __init__(self, message: Message | None = None) -> None:
        self._comm: Any = message._comm if message is not None else None
        self._message: Parcel | None = message._message if message is not None else None
        self._kind = message._kind if message is not None else "null"

    @classmethod
    def _of(cls, comm: Any, message: Parcel | None) -> Message:
        made = cls()
        made._comm, made._message, made._kind = comm, message, "nobody" if message is None else "message"
        return made

    def __bool__(self) -> bool:
        return self._kind != "null"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Message):
            return NotImplemented
        return (self._kind, self._message) == (other._kind, other._message)

    if TYPE_CHECKING:

        def __hash__(self) -> int: ...
    else:
        __hash__ = object.__hash__

    def __repr__(self) -> str:
        return f"<Message {self._kind}>"

    def free(self) -> None:
        """Do nothing, as in mpi4py."""

    def _for_wait(self) -> waiting.Part:
        return waiting.READY

    def _take(self) -> tuple[Any, Parcel | None]:
        if self._kind == "null":
            raise ValueError("the message has been received already, or there was none")
        comm, message = self._comm, self._message
        if self is not MESSAGE_NO_PROC:
            self._comm, self._message, self._kind = None, None, "null"
        return comm, message

    def recv(self, status: Status | None = None) -> Any:
        """Receive the object. Raises ValueError if it was already received."""
        comm, message = self._take()
        if status is not None:
            status._tell(comm, message)
        return None if message is None else message.open()

    def irecv(self) -> Request:
        """A request that receives the object; it is already complete."""
        comm, message = self._take()
        return Request._of(comm, "receive", None, 0, message)

    @classmethod
    def probe(cls, comm: Any, source: int = ANY_SOURCE, tag: int = ANY_TAG, status: Status | None = None) -> Message:
        """Wait for a message and match it."""
        matched: Message = comm.mprobe(source, tag, status)
        return matched

    @classmethod
    def iprobe(
        cls, comm: Any, source: int = ANY_SOURCE, tag: int = ANY_TAG, status: Status | None = None
    ) -> Message | None:
        """Match a message if there is one; otherwise None."""
        matched: Message | None = comm.improbe(source, tag, status)
        return matched


REQUEST_NULL, MESSAGE_NULL = Request(), Message()
MESSAGE_NO_PROC = Message._of(None, None)


for _class in (Exception, CommError, Status, Request, Message):
    _class.__module__ = "copyless.comm.local"  # the public module
