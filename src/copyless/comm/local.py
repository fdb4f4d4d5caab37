"""The communicator on shared memory, for the ranks of one host, with no MPI.

Mirrors `mpi4py.util.pkl5`, names and signatures, and of `mpi4py.MPI` what such programs use beside it (Get_rank, Split, Dup, Merge,
Barrier, ...). Ranks are started by ``copyless run -n 4 prog.py`` or `spawn`; alone, `world` is a group of one.

What differs from MPI: a standard send never waits (the message is in shared memory when it returns); `irecv` works; a rank
that is killed is an `OwnerDiedError` for those who wait for it, within a second. Received arrays are writable and the
receiver's own; what lies in shared memory already crosses by its handle and is the same memory on both sides.
"""

from __future__ import annotations

import atexit
import os
import sys
import types
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from copyless import waiting
from copyless._one_process import check_in_children, check_process
from copyless.comm import _inbox, collectives, pickles
from copyless.comm._inbox import Parcel, Port
from copyless.comm.constants import (
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
    TAG_MOST,
    UNDEFINED,
)
from copyless.comm.group import Engine, Group, Receive
from copyless.errors import ClosedError, CopylessError, OwnerDiedError

if TYPE_CHECKING:
    from copyless.comm.topologies import Cartcomm

__all__ = ["ANY_SOURCE", "ANY_TAG", "BAND", "BOR", "BSEND_OVERHEAD", "BXOR", "BYTE", "COMM_NULL", "COMM_TYPE_SHARED", "ERR_OTHER",
           "ERR_RANK", "ERR_ROOT", "ERR_TAG", "LAND", "LOR", "MAX", "MAXLOC", "MESSAGE_NO_PROC", "MESSAGE_NULL", "MIN", "MINLOC",
           "NO_OP", "OP_NULL", "PROC_NULL", "PROD", "REPLACE", "REQUEST_NULL", "ROOT", "SUCCESS", "SUM", "THREAD_FUNNELED",
           "THREAD_MULTIPLE", "THREAD_SERIALIZED", "THREAD_SINGLE", "UNDEFINED", "Alloc_mem", "Attach_buffer", "Comm", "CommError",
           "Detach_buffer", "Exception", "Free_mem", "Intercomm", "Intracomm", "Message", "Pickle", "Query_thread", "RankGroup",
           "Request", "Status", "buffer", "pickle", "spawn", "world"]  # fmt: skip


# ---- errors


class Exception(CopylessError, RuntimeError):
    """Base of this module's errors. Mirrors `mpi4py.MPI.Exception`."""

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
    """A rank, a root or a tag that there is not, or a collective operation that other ranks did not call."""


# ---- how objects are pickled


class Pickle(pickles.Pickle):
    __doc__ = pickles.Pickle.__doc__

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _tell_of_pickle()


_own_pickle = False


def _tell_of_pickle() -> None:
    """Note whether `pickle` is the caller's own: the short way of sending must know."""
    global _own_pickle
    current = globals().get("pickle")
    _own_pickle = current is not None and getattr(current, "is_own", True)
    _inbox.use_own_pickle(_own_pickle)


pickle = Pickle()


def _sealed(obj: Any) -> Any:
    """The object, or what it is made by a caller's own functions."""
    return pickles.Sealed("local", *pickle.dumps_oob(obj)) if _own_pickle else obj


class _Module(types.ModuleType):
    """This module: who gives it another `pickle` tells the short way of sending."""

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "pickle":
            _tell_of_pickle()


sys.modules[__name__].__class__ = _Module


class Status:
    """What a receive or a probe tells of its message. Mirrors `mpi4py.MPI.Status`.

    Attributes
    ----------
    source, tag : int
    count : int
        Bytes of the message, as it was pickled, with its buffers.
    error : int
        Always 0.
    """

    def __init__(self) -> None:
        self.source, self.tag, self.count, self.error, self.cancelled = ANY_SOURCE, ANY_TAG, 0, 0, False

    def Get_source(self) -> int:
        return self.source

    def Get_tag(self) -> int:
        return self.tag

    def Get_error(self) -> int:
        return self.error

    def Get_count(self, datatype: Any = None) -> int:
        return self.count

    def Get_elements(self, datatype: Any = None) -> int:
        return self.count

    def Is_cancelled(self) -> bool:
        return self.cancelled

    def is_cancelled(self) -> bool:
        return self.cancelled

    def _tell(self, comm: Comm | None, message: Parcel | None) -> None:
        if message is None or comm is None:
            self.source, self.tag, self.count = PROC_NULL, ANY_TAG, 0
        else:
            self.source, self.tag, self.count = message.source, message.tag, message.nbytes

    def __repr__(self) -> str:
        return f"<Status source={self.source} tag={self.tag} count={self.count}>"


class Request:
    """A send or receive under way. Mirrors `mpi4py.util.pkl5.Request`; made by isend, irecv and their kin.

    One that has been waited for is null: it is false, and waiting again gives None at once.
    """

    _number: int
    _kind: str
    _dest: int | None = None  # who must receive it, of a synchronous send

    def __init__(self, request: Request | None = None) -> None:
        other = request
        self._dest = other._dest if other is not None else None
        self._comm: Comm | None = other._comm if other is not None else None
        self._receive: Receive | None = other._receive if other is not None else None
        self._message: Parcel | None = other._message if other is not None else None
        self._number = other._number if other is not None else 0
        self._kind = other._kind if other is not None else "null"
        self._cancelled = False

    @classmethod
    def _of(cls, comm: Comm | None, kind: str, receive: Receive | None = None, number: int = 0, message: Any = None) -> Request:
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

    __hash__ = object.__hash__

    def __repr__(self) -> str:
        return f"<Request {self._kind}>"

    def Free(self) -> None:
        """Forget a request; a receive that has no message yet is taken back."""
        if self._receive is not None and self._comm is not None:
            self._comm._engine.cancel(self._receive)
        self._end()

    free = Free

    def cancel(self) -> None:
        """Take a receive back, if it has no message yet; a send is done already."""
        if self._receive is not None and self._comm is not None and self._comm._engine.cancel(self._receive):
            self._cancelled = True
            self._receive = None
            self._kind = "cancelled"

    Cancel = cancel

    def _done(self) -> bool:
        if self._receive is not None:
            return self._receive.message is not None
        if self._number and self._comm is not None:
            return self._comm._engine.acknowledged(self._number)
        return True

    def _look(self) -> bool:
        if self._done():
            return True
        assert self._comm is not None
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
                    return True  # which its wait() raises
            return False

        return waiting.Part(is_ready, ((engine.group.inboxes[engine.rank], waiting.WHOLE),))

    def _end(self) -> None:
        self._kind, self._receive, self._number, self._message, self._comm = "null", None, 0, None, None

    def _take(self, status: Status | None, open: bool = True) -> Any:
        """What it brought, unless it is not to be opened; the request is null then."""
        message = self._message if self._receive is None else self._receive.message
        if status is not None:
            status._tell(self._comm, message)
            status.cancelled = self._cancelled
        self._end()
        return message.open() if message is not None and open else None

    def get_status(self, status: Status | None = None) -> bool:
        """Whether it has ended; it stays as it is."""
        done = self._look()
        if done and status is not None:
            status._tell(self._comm, self._message if self._receive is None else self._receive.message)
            status.cancelled = self._cancelled
        return done

    def test(self, status: Status | None = None) -> tuple[bool, Any]:
        """(whether it has ended, what it brought)."""
        return (True, self._take(status)) if self._look() else (False, None)

    def wait(self, status: Status | None = None) -> Any:
        """What it brought, once it has ended."""
        self._await()
        return self._take(status)

    def _await(self) -> None:
        if not self._look():
            comm = self._comm
            assert comm is not None
            comm._engine.wait(self._done, self._sources(), awaits_receipt=self._receive is None)

    def _sources(self) -> list[int]:
        """The ranks, as the group knows them, that could end it."""
        if self._receive is not None:
            return self._receive.sources  # type: ignore[no-any-return]
        return [] if self._dest is None else [self._dest]

    def Test(self, status: Status | None = None) -> bool:
        """Whether it has ended; what it brought is dropped."""
        if not self._look():
            return False
        self._take(status, False)
        return True

    def Wait(self, status: Status | None = None) -> bool:
        """Wait until it has ended; what it brought is dropped."""
        self._await()
        self._take(status, False)
        return True

    # ---- of several

    @classmethod
    def get_status_all(cls, requests: Sequence[Request], statuses: Any = None) -> bool:
        """Whether all have ended; they stay as they are."""
        return all([request.get_status(status) for request, status in _with(requests, statuses)])  # noqa: C419

    @classmethod
    def testall(cls, requests: Sequence[Request], statuses: Any = None) -> tuple[bool, Any]:
        """(whether all have ended, the list of what they brought)."""
        pairs = _with(requests, statuses)
        if not all(request._look() for request in requests):
            return False, None
        return True, [request._take(status) for request, status in pairs]

    @classmethod
    def waitall(cls, requests: Sequence[Request], statuses: Any = None) -> list[Any]:
        """The list of what they brought, once all have ended."""
        return [request.wait(status) for request, status in _with(requests, statuses)]

    @classmethod
    def testany(cls, requests: Sequence[Request], status: Status | None = None) -> tuple[int, bool, Any]:
        """(which has ended, whether one has, what it brought); (UNDEFINED, True, None) when all are null."""
        found = _any_ended(requests)
        if found is None:
            return UNDEFINED, False, None
        return found, True, None if found == UNDEFINED else requests[found]._take(status)

    @classmethod
    def waitany(cls, requests: Sequence[Request], status: Status | None = None) -> tuple[int, Any]:
        """(which has ended, what it brought); (UNDEFINED, None) when all are null."""
        found = _wait_any(requests)
        return found, None if found == UNDEFINED else requests[found]._take(status)

    @classmethod
    def testsome(cls, requests: Sequence[Request], statuses: Any = None) -> tuple[list[int] | None, list[Any] | None]:
        """(which have ended, what they brought); (None, None) when all are null."""
        found = _some_ended(requests)
        if found is None:
            return None, None
        return found, [requests[i]._take(status) for i, status in _with(found, statuses)]

    @classmethod
    def waitsome(cls, requests: Sequence[Request], statuses: Any = None) -> tuple[list[int] | None, list[Any] | None]:
        """As `testsome`, once one has ended."""
        _wait_any(requests)
        return cls.testsome(requests, statuses)

    @classmethod
    def Testall(cls, requests: Sequence[Request], statuses: Any = None) -> bool:
        """As `testall`; what they brought is dropped."""
        return all(request._look() for request in requests) and cls.Waitall(requests, statuses)

    @classmethod
    def Waitall(cls, requests: Sequence[Request], statuses: Any = None) -> bool:
        """As `waitall`; what they brought is dropped."""
        return all([request.Wait(status) for request, status in _with(requests, statuses)])  # noqa: C419

    @classmethod
    def Testany(cls, requests: Sequence[Request], status: Status | None = None) -> tuple[int, bool]:
        """As `testany`; what it brought is dropped."""
        found = _any_ended(requests)
        if found is None:
            return UNDEFINED, False
        if found != UNDEFINED:
            requests[found]._take(status, False)
        return found, True

    @classmethod
    def Waitany(cls, requests: Sequence[Request], status: Status | None = None) -> int:
        """As `waitany`; what it brought is dropped."""
        found = _wait_any(requests)
        if found != UNDEFINED:
            requests[found]._take(status, False)
        return found

    @classmethod
    def Testsome(cls, requests: Sequence[Request], statuses: Any = None) -> list[int] | None:
        """As `testsome`; what they brought is dropped."""
        found = _some_ended(requests)
        for i, status in _with(found or [], statuses):
            requests[i]._take(status, False)
        return found

    @classmethod
    def Waitsome(cls, requests: Sequence[Request], statuses: Any = None) -> list[int] | None:
        """As `waitsome`; what they brought is dropped."""
        _wait_any(requests)
        return cls.Testsome(requests, statuses)


def _with(requests: Sequence[Any], statuses: Any) -> list[tuple[Any, Status | None]]:
    """Each with its status. A list grows by what it lacks; what a tuple lacks is not told."""
    if statuses is None:
        return [(request, None) for request in requests]
    if isinstance(statuses, list):
        statuses.extend(Status() for _ in range(len(requests) - len(statuses)))
    return list(zip(requests, [*statuses, *[None] * len(requests)], strict=False))


def _any_ended(requests: Sequence[Request]) -> int | None:
    """The first that has ended; UNDEFINED when all are null."""
    active = False
    for i, request in enumerate(requests):
        if request:
            active = True
            if request._look():
                return i
    return None if active else UNDEFINED


def _some_ended(requests: Sequence[Request]) -> list[int] | None:
    """Those that have ended; None when all are null."""
    return [i for i, request in enumerate(requests) if request and request._look()] if any(requests) else None


def _wait_any(requests: Sequence[Request]) -> int:
    first = _any_ended(requests)
    if first is None:
        active = [request for request in requests if request]
        comm = active[0]._comm
        assert comm is not None
        sources = sorted({rank for request in active for rank in request._sources()})
        comm._engine.wait(lambda: any(request._done() for request in active), sources)
        first = _any_ended(requests)
        assert first is not None
    return first


class Message:
    """A message that a probe has matched: nobody else can receive it. Mirrors `mpi4py.util.pkl5.Message`."""

    _kind: str

    def __init__(self, message: Message | None = None) -> None:
        self._comm: Comm | None = message._comm if message is not None else None
        self._message: Parcel | None = message._message if message is not None else None
        self._kind = message._kind if message is not None else "null"

    @classmethod
    def _of(cls, comm: Comm | None, message: Parcel | None) -> Message:
        made = cls()
        made._comm, made._message, made._kind = comm, message, "nobody" if message is None else "message"
        return made

    def __bool__(self) -> bool:
        return self._kind != "null"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Message):
            return NotImplemented
        return (self._kind, self._message) == (other._kind, other._message)

    __hash__ = object.__hash__

    def __repr__(self) -> str:
        return f"<Message {self._kind}>"

    def free(self) -> None:
        """Do nothing, as there."""

    def _for_wait(self) -> waiting.Part:
        return waiting.READY

    def _take(self) -> tuple[Comm | None, Parcel | None]:
        if self._kind == "null":
            raise ValueError("the message has been received already, or there was none")
        comm, message = self._comm, self._message
        if self is not MESSAGE_NO_PROC:
            self._comm, self._message, self._kind = None, None, "null"
        return comm, message

    def recv(self, status: Status | None = None) -> Any:
        """The object."""
        comm, message = self._take()
        if status is not None:
            status._tell(comm, message)
        return None if message is None else message.open()

    def irecv(self) -> Request:
        """A request of the object; it has ended already."""
        comm, message = self._take()
        return Request._of(comm, "receive", None, 0, message)

    @classmethod
    def probe(cls, comm: Comm, source: int = ANY_SOURCE, tag: int = ANY_TAG, status: Status | None = None) -> Message:
        """Wait for a message and match it."""
        return comm.mprobe(source, tag, status)

    @classmethod
    def iprobe(
        cls, comm: Comm, source: int = ANY_SOURCE, tag: int = ANY_TAG, status: Status | None = None
    ) -> Message | None:
        """Match a message, if there is one."""
        return comm.improbe(source, tag, status)


REQUEST_NULL, MESSAGE_NULL = Request(), Message()
MESSAGE_NO_PROC = Message._of(None, None)


class Comm:
    """Comm(comm=None)

    A communicator on shared memory: that of `Intracomm` and `Intercomm`. Mirrors `mpi4py.util.pkl5.Comm`.

    ``Comm(other)`` is another object for the same communicator: receives posted by one are matched before later ones of the
    other. Making one needs nobody else.
    """

    _engine: Engine
    _context: int
    _group: list[int]  # of the own group: ranks of the world
    _remote: list[int]  # of the group that one sends to
    _port: Any  # the short way; None when freed
    _twin: Any  # the collective operations, on a context of their own

    def __new__(cls, comm: Comm | None = None) -> Any:
        made = super().__new__(cls)
        if comm is not None:
            made.__dict__.update(comm.__dict__)
        return made

    def __init__(self, comm: Comm | None = None) -> None:
        if comm is None and not hasattr(self, "_engine"):
            raise ValueError("a communicator is made of another, or by comm.world(), Split and Dup")

    @classmethod
    def _of(cls, engine: Engine, context: int, group: list[int], remote: list[int], me: int) -> Any:
        made = object.__new__(cls)
        made._engine, made._context, made._group, made._remote, made._me = engine, context, group, remote, me
        made._port = Port(engine.inbox, context, remote, me)
        made._twin = None
        made.name = ""
        return made

    # ---- who

    def Get_rank(self) -> int:
        """This process's rank."""
        return self._me

    def Get_size(self) -> int:
        """Ranks in the own group."""
        return len(self._group)

    def Is_inter(self) -> bool:
        return isinstance(self, Intercomm)

    def Is_intra(self) -> bool:
        return not self.Is_inter()

    @property
    def rank(self) -> int:
        """This process's rank."""
        return self._me

    @property
    def size(self) -> int:
        """Ranks in the own group."""
        return len(self._group)

    @property
    def is_inter(self) -> bool:
        return self.Is_inter()

    def Dup(self, info: Any = None) -> Any:
        """Another communicator of the same ranks: their messages do not meet. Needs no other rank."""
        if self._port is None:
            raise ClosedError("this communicator was freed")
        made = type(self)(self)
        made._context = self._engine.derived(self._context)
        made._port = Port(self._engine.inbox, made._context, self._remote, self._me)
        made._twin = None
        return made

    Clone = Dup

    def Dup_with_info(self, info: Any) -> Any:
        """As `Dup`."""
        return self.Dup()

    def Idup(self, info: Any = None) -> tuple[Any, Request]:
        """(as `Dup`, a request that has ended)."""
        return self.Dup(), Request._of(self, "send")

    def Get_group(self) -> RankGroup:
        """The ranks of the own group."""
        return RankGroup(list(self._group), self._me)

    @property
    def group(self) -> RankGroup:
        """The ranks of the own group."""
        return self.Get_group()

    def Get_name(self) -> str:
        return self.name

    def Set_name(self, name: str) -> None:
        self.name = name

    name: str
    _me: int

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Comm):
            return NotImplemented
        return self._context == other._context and self._engine is other._engine

    __hash__ = object.__hash__

    def __bool__(self) -> bool:
        return self._port is not None

    def __repr__(self) -> str:
        name = f" {self.name!r}" if self.name else ""
        return f"<{type(self).__module__}.{type(self).__name__}{name} rank {self._me} of {len(self._group)}>"

    def __reduce__(self) -> Any:
        raise TypeError("a communicator belongs to its process: send what it is about, not itself")

    def _everyone(self) -> list[int]:
        return self._remote

    def _peer(self, rank: int, tag: int, least: int = 0) -> int:
        """A checked rank, as the world knows it."""
        if self._port is None:
            raise ClosedError("this communicator was freed")
        if not least <= tag <= TAG_MOST:
            raise CommError(ERR_TAG, f"a tag is 0 to {TAG_MOST}, not {tag}")
        if not 0 <= rank < len(self._remote):
            raise CommError(ERR_RANK, f"rank {rank}: there are ranks 0 to {len(self._remote) - 1} here")
        return self._remote[rank]

    # ---- sending

    send = _inbox.send
    bsend = _inbox.send

    def _send(self, obj: Any, dest: int, tag: int, progress: bool) -> None:
        """What does not go the short way."""
        if dest != PROC_NULL:
            title = f"rank {self._me} to {dest}" if progress else None
            self._engine.send(_sealed(obj), self._peer(dest, tag), self._context, self._me, tag, False, title)

    def ssend(self, obj: Any, dest: int, tag: int = 0) -> None:
        """As `send`, and wait until its receive has begun."""
        self.issend(obj, dest, tag).wait()

    def isend(self, obj: Any, dest: int, tag: int = 0) -> Request:
        """As `send`; the request has ended already."""
        self.send(obj, dest, tag)
        return Request._of(self, "send")

    ibsend = isend

    def issend(self, obj: Any, dest: int, tag: int = 0) -> Request:
        """As `send`; the request ends when its receive has begun."""
        if dest == PROC_NULL:
            return Request._of(self, "send")
        to = self._peer(dest, tag)
        number = self._engine.send(_sealed(obj), to, self._context, self._me, tag, synchronous=True)
        request = Request._of(self, "send", None, number)
        request._dest = to
        return request

    # ---- receiving

    def _receive(self, source: int, tag: int) -> Receive | None:
        if source == PROC_NULL:
            return None
        if source == ANY_SOURCE:
            if self._port is None:
                raise ClosedError("this communicator was freed")
            if tag < 0 and tag != ANY_TAG:
                raise CommError(ERR_TAG, f"a tag is 0 to {TAG_MOST}, or ANY_TAG, not {tag}")
            return Receive(self._context, -1, tag, self._everyone())
        return Receive(self._context, source, tag, [self._peer(source, tag, ANY_TAG)])

    recv = _inbox.recv

    def _recv(self, source: int, tag: int, status: Status | None) -> Any:
        """What does not come the short way."""
        receive = self._receive(source, tag)
        if receive is None:
            if status is not None:
                status._tell(None, None)
            return None
        engine = self._engine
        engine.post(receive)
        if receive.message is None:
            try:
                engine.wait(lambda: receive.message is not None, receive.sources)
            except BaseException:
                engine.cancel(receive)
                raise
        message: Any = receive.message
        if status is not None:
            status._tell(self, message)
        return message.open()

    def irecv(self, buf: Any = None, source: int = ANY_SOURCE, tag: int = ANY_TAG) -> Request:
        """A request that gets the next message that fits: before any receive that begins later."""
        receive = self._receive(source, tag)
        if receive is None:
            return Request._of(self, "receive")
        self._engine.progress()
        return Request._of(self, "receive", self._engine.post(receive))

    def sendrecv(
        self,
        sendobj: Any,
        dest: int,
        sendtag: int = 0,
        recvbuf: Any = None,
        source: int = ANY_SOURCE,
        recvtag: int = ANY_TAG,
        status: Status | None = None,
    ) -> Any:
        """Send one object and receive another."""
        self.send(sendobj, dest, sendtag)
        return self.recv(recvbuf, source, recvtag, status)

    def _probe(self, source: int, tag: int, status: Status | None, wait: bool, keep: bool) -> Any:
        receive = self._receive(source, tag)
        if receive is None:
            if status is not None:
                status._tell(None, None)
            return Message._of(self, None)
        engine = self._engine

        def there() -> bool:
            assert receive is not None
            engine.post(receive, keep=True)
            return receive.message is not None

        while True:
            engine.progress()
            if not there():
                if not wait:
                    return None
                engine.wait(there, receive.sources)
            if keep:
                break
            receive.message = None
            engine.post(receive)
            if receive.message is not None:
                break
            engine.cancel(receive)  # another thread was quicker
            if receive.message is not None:
                break
        if status is not None:
            status._tell(self, receive.message)
        return Message._of(self, receive.message)

    def mprobe(self, source: int = ANY_SOURCE, tag: int = ANY_TAG, status: Status | None = None) -> Message:
        """Wait for a message and match it: only its `Message` can receive it then."""
        return self._probe(source, tag, status, wait=True, keep=False)  # type: ignore[no-any-return]

    def improbe(self, source: int = ANY_SOURCE, tag: int = ANY_TAG, status: Status | None = None) -> Message | None:
        """As `mprobe`, without waiting: None when there is nothing."""
        return self._probe(source, tag, status, wait=False, keep=False)  # type: ignore[no-any-return]

    def probe(self, source: int = ANY_SOURCE, tag: int = ANY_TAG, status: Status | None = None) -> bool:
        """Wait until there is a message to receive."""
        return self._probe(source, tag, status, wait=True, keep=True) is not None

    def iprobe(self, source: int = ANY_SOURCE, tag: int = ANY_TAG, status: Status | None = None) -> bool:
        """Whether there is a message to receive."""
        return self._probe(source, tag, status, wait=False, keep=True) is not None

    # ---- together

    def _together(self) -> Any:
        if self._port is None:
            raise ClosedError("this communicator was freed")
        if self._twin is None:
            self._twin = self._make_twin()
        return self._twin

    def _make_twin(self) -> Any:
        raise NotImplementedError

    # What collective operations send and receive by: on a communicator of their own, their objects packed.

    def _sealed(self, obj: Any) -> Any:
        return _sealed(obj)

    def _put(self, packet: Any, dest: int, tag: int) -> Request:
        if _own_pickle:
            self._engine.send(packet, self._peer(dest, tag), self._context, self._me, tag)
        else:
            self.send(packet, dest, tag)
        return Request._of(self, "send")

    def _take(self, source: int, tag: int) -> Any:
        """What another rank has put. Messages of one come in order, so one with another tag is of a mistaken call."""
        found = _inbox.at_once(self, source, tag)
        if found is not _inbox.NONE_YET:
            return found
        engine, receive = self._engine, self._receive(source, tag)
        assert receive is not None
        engine.post(receive)
        if receive.message is None:
            try:
                engine.wait(lambda: receive.message is not None or engine.waits(self._context, source), receive.sources)
            except BaseException:
                engine.cancel(receive)
                raise
        if receive.message is None:
            engine.cancel(receive)
            other = engine.waits(self._context, source)
            if receive.message is None and other is not None:
                known = other.tag == collectives.tag_of("mistaken")  # another rank has found it
                text = other.open() if known else collectives.mistaken(source, other.tag, tag)
                for rank in range(0 if known else len(self._remote)):  # the others may wait for this one
                    if rank != self._me or isinstance(self, Intercomm):
                        self._put(f"rank {self._me} was told: {text}", rank, collectives.tag_of("mistaken"))
                raise CommError(ERR_OTHER, text)
        message: Any = receive.message
        return message.open()

    def _root(self, root: int) -> int:
        size, inter = len(self._remote), isinstance(self, Intercomm)
        if not 0 <= root < size and not (inter and root in (ROOT, PROC_NULL)):
            across = "; on an intercommunicator it is ROOT at the root and PROC_NULL beside it" if inter else ""
            raise CommError(ERR_ROOT, f"root {root}: there are ranks 0 to {size - 1} here{across}")
        return root

    def bcast(self, obj: Any = None, root: int = 0, *, readonly: bool = False, progress: bool = False) -> Any:
        """The root's object, at every rank.

        Its buffers are copied once, into one block; each rank's arrays are copy-on-write views of it: writable, its own, and of the
        pages that it does not change there is one copy. With `readonly` they are the block itself, which spares mapping it again.
        `progress` shows a bar at the root while 16 MiB or more are copied.
        """
        return self._together().bcast(obj, self._root(root), readonly, progress)

    def gather(self, sendobj: Any, root: int = 0) -> list[Any] | None:
        """The list of all ranks' objects, at the root; None elsewhere."""
        return self._together().gather(sendobj, self._root(root))  # type: ignore[no-any-return]

    def scatter(self, sendobj: Any = None, root: int = 0) -> Any:
        """To each rank its item of the root's list, which has as many as there are ranks."""
        return self._together().scatter(sendobj, self._root(root))

    def allgather(self, sendobj: Any) -> list[Any]:
        """The list of all ranks' objects, at every rank."""
        return self._together().allgather(sendobj)  # type: ignore[no-any-return]

    def alltoall(self, sendobj: Any) -> list[Any]:
        """To rank i its item of this rank's list; the list of what came from each."""
        return self._together().alltoall(sendobj)  # type: ignore[no-any-return]

    def reduce(self, sendobj: Any, op: Callable[[Any, Any], Any] = SUM, root: int = 0) -> Any:
        """All ranks' objects taken together by `op` in the order of ranks, at the root; None elsewhere."""
        return self._together().reduce(sendobj, op, self._root(root))

    def allreduce(self, sendobj: Any, op: Callable[[Any, Any], Any] = SUM) -> Any:
        """As `reduce`, at every rank."""
        return self._together().allreduce(sendobj, op)

    def barrier(self) -> None:
        """Wait until all ranks have come here."""
        self._together().barrier()

    Barrier = barrier

    def Free(self) -> None:
        """Give the communicator up. Messages under way on it are forgotten with the process."""
        self._port = None

    def Abort(self, errorcode: int = 0) -> None:
        """End this rank at once, badly; the others learn of it, and ``copyless run`` ends them."""
        self._engine.group.end(self._engine.rank, 3)
        os._exit(errorcode or 1)


class Intracomm(Comm):
    """Intracomm(comm=None)

    A communicator of one group. Mirrors `mpi4py.util.pkl5.Intracomm`.

    Examples
    --------
    >>> from copyless import comm
    >>> world = comm.world()
    >>> world.rank, world.size, world.allreduce([1])
    (0, 1, [1])
    """

    def _make_twin(self) -> Any:
        private = Intracomm._of(self._engine, self._context + 1, self._group, self._remote, self._me)
        return collectives.Intra(private, self._me, len(self._group))

    def scan(self, sendobj: Any, op: Callable[[Any, Any], Any] = SUM) -> Any:
        """The objects of the ranks up to this one taken together, in their order."""
        return self._together().scan(sendobj, op)

    def exscan(self, sendobj: Any, op: Callable[[Any, Any], Any] = SUM) -> Any:
        """The objects of the ranks before this one taken together; None at rank 0."""
        return self._together().scan(sendobj, op, exclusive=True)

    def Split(self, color: int = 0, key: int = 0) -> Intracomm | None:
        """A communicator of the ranks with the same colour, in the order of their keys; None for UNDEFINED."""
        twin = self._together()
        asked = twin.gather((color, key), 0)
        answers = None
        if asked is not None:
            groups: dict[int, list[int]] = {}
            for rank in sorted(range(self.size), key=lambda r: (asked[r][1], r)):
                if asked[rank][0] != UNDEFINED:
                    groups.setdefault(asked[rank][0], []).append(rank)
            first = self._engine.group.next_contexts(max(len(groups), 1))
            numbers = {color: first + 2 * i for i, color in enumerate(groups)}
            answers = [(numbers.get(c), groups.get(c)) for c, _ in asked]
        context, ranks = twin.scatter(answers, 0)
        if context is None:
            return None
        group = [self._group[rank] for rank in ranks]
        return type(self)._of(self._engine, context, group, group, ranks.index(self._me))  # type: ignore[no-any-return]

    def Split_type(self, split_type: int, key: int = 0, info: Any = None) -> Intracomm | None:
        """A communicator of the ranks that share memory, which are all; None for UNDEFINED."""
        return self.Split(UNDEFINED if split_type == UNDEFINED else 0, key)

    def Create(self, group: RankGroup) -> Intracomm | None:
        """A communicator of a group's ranks, in its order; None for the others. All ranks of this one call it."""
        place = group.ranks.index(self._group[self._me]) if self._group[self._me] in group.ranks else UNDEFINED
        return self.Split(UNDEFINED if place == UNDEFINED else 0, place)

    def Create_group(self, group: RankGroup, tag: int = 0) -> Intracomm | None:
        """As `Create`, called by the group's ranks only."""
        if self._group[self._me] not in group.ranks:
            return None
        twin, mark = self._together().comm, collectives.tag_of("Create_group", tag)
        ranks = [self._group.index(rank) for rank in group.ranks]
        if ranks[0] == self._me:
            context = self._engine.group.next_contexts(1)
            for rank in ranks[1:]:
                twin._put(context, rank, mark)
        else:
            context = twin._take(ranks[0], mark)
        return Intracomm._of(self._engine, context, group.ranks, group.ranks, ranks.index(self._me))  # type: ignore[no-any-return]

    def Create_cart(self, dims: Sequence[int], periods: Any = None, reorder: bool = False) -> Cartcomm | None:
        """A communicator whose ranks form a grid; None for the ranks that it has no place for."""
        from copyless.comm.topologies import Cartcomm

        return Cartcomm._on(self, dims, periods)

    def Create_intercomm(self, local_leader: int, peer_comm: Intracomm, remote_leader: int, tag: int = 0) -> Intercomm:
        """A communicator between this group and another, whose leaders know each other on `peer_comm`."""
        twin = self._together()
        answer = None
        if self.rank == local_leader:
            request = peer_comm.isend((self._group, self._engine.rank), remote_leader, tag)
            group, leader = peer_comm.recv(None, remote_leader, tag)
            request.wait()
            if self._engine.rank < leader:  # one of the two draws the number
                context = self._engine.group.next_contexts(1)
                peer_comm.send(context, remote_leader, tag)
            else:
                context = peer_comm.recv(None, remote_leader, tag)
            answer = context, group
        context, group = twin.bcast(answer, local_leader)
        local = self.Dup()
        made: Intercomm = Intercomm._of(self._engine, context, self._group, group, self._me)
        made._local = local
        return made


class RankGroup:
    """RankGroup(ranks, me)

    Ranks in an order, without a communicator: what `Create` makes one of. Mirrors `mpi4py.MPI.Group`.
    """

    def __init__(self, ranks: list[int], me: int = UNDEFINED) -> None:
        self.ranks, self._me = ranks, ranks[me] if 0 <= me < len(ranks) else me

    def Get_size(self) -> int:
        return len(self.ranks)

    def Get_rank(self) -> int:
        """This process's place; UNDEFINED when it has none."""
        return self.ranks.index(self._me) if self._me in self.ranks else UNDEFINED

    size = property(Get_size)
    rank = property(Get_rank)

    def _other(self, ranks: Iterable[int]) -> RankGroup:
        made = RankGroup(list(ranks))
        made._me = self._me
        return made

    def Incl(self, ranks: Sequence[int]) -> RankGroup:
        """Those at these places, in this order."""
        return self._other(self.ranks[rank] for rank in ranks)

    def Excl(self, ranks: Sequence[int]) -> RankGroup:
        """All but those at these places."""
        return self._other(rank for place, rank in enumerate(self.ranks) if place not in ranks)

    @classmethod
    def Union(cls, one: RankGroup, other: RankGroup) -> RankGroup:
        """Those of one, then those of the other that one has not."""
        return one._other([*one.ranks, *(rank for rank in other.ranks if rank not in one.ranks)])

    @classmethod
    def Translate_ranks(cls, one: RankGroup, ranks: Sequence[int], other: RankGroup) -> list[int]:
        """The places in another group of those at these places."""
        return [other.ranks.index(r) if (r := one.ranks[place]) in other.ranks else UNDEFINED for place in ranks]

    def Free(self) -> None:
        """Do nothing: there is nothing to give back."""


class Intercomm(Comm):
    """Intercomm(comm=None)

    A communicator between two groups: ranks are those of the other. Mirrors `mpi4py.util.pkl5.Intercomm`. In collective
    operations the root says ROOT, the others of its group PROC_NULL, and the other group the root's rank.
    """

    _local: Intracomm

    def Get_remote_size(self) -> int:
        """Ranks in the other group."""
        return len(self._remote)

    @property
    def remote_size(self) -> int:
        """Ranks in the other group."""
        return len(self._remote)

    def _make_twin(self) -> Any:
        private = Intercomm._of(self._engine, self._context + 1, self._group, self._remote, self._me)
        return collectives.Inter(private, self._me, len(self._remote), self._local._together(), (ROOT, PROC_NULL))

    def Dup(self, info: Any = None) -> Any:
        """Another communicator between the same groups. Needs no other rank."""
        made = super().Dup()
        made._local = self._local.Dup()
        return made

    Clone = Dup

    def Get_remote_group(self) -> RankGroup:
        """The ranks of the other group."""
        return RankGroup(list(self._remote))

    def Merge(self, high: bool = False) -> Intracomm:
        """One communicator of both groups; the ranks of that which says `high` come last."""
        twin = self._together()
        flags = self._local.allgather(bool(high))
        theirs = twin.alltoall([flags[0]] * self.remote_size)[0]
        mine_first = (flags[0], self._group[0]) < (theirs, self._remote[0])
        group = self._group + self._remote if mine_first else self._remote + self._group
        context = None
        if self.rank == 0:
            if mine_first:
                context = self._engine.group.next_contexts(1)
                twin.finish([twin.put(0, context)])
            else:
                context = twin.take(0)
        context = self._local.bcast(context)
        return Intracomm._of(self._engine, context, group, group, group.index(self._engine.rank))  # type: ignore[no-any-return]


# ---- names that programs written for MPI use, and what they mean here

THREAD_SINGLE, THREAD_FUNNELED, THREAD_SERIALIZED, THREAD_MULTIPLE = range(4)
COMM_TYPE_SHARED = 1
OP_NULL = None
BSEND_OVERHEAD = 0
BYTE = "BYTE"
buffer = memoryview


def Query_thread() -> int:
    """THREAD_MULTIPLE: any number of threads may communicate."""
    return THREAD_MULTIPLE


def Alloc_mem(size: int) -> memoryview:
    """Memory of so many bytes; there is no better one for communication here than any other."""
    return memoryview(bytearray(size))


def Free_mem(mem: memoryview) -> None:
    """Give up what `Alloc_mem` gave."""
    mem.release()


def Attach_buffer(buf: Any) -> None:
    """Do nothing: every send is buffered, in shared memory."""


def Detach_buffer() -> None:
    """Do nothing."""


def _null() -> Intracomm:
    made = object.__new__(Intracomm)
    made._context, made._group, made._remote, made._me, made._port, made._twin, made.name = -9, [], [], PROC_NULL, None, None, ""
    made._engine = None  # type: ignore[assignment]
    return made


COMM_NULL = _null()
_the_self: Intracomm | None = None
_CONTEXT_OF_SELF = -4


def __getattr__(name: str) -> Any:
    """COMM_WORLD and COMM_SELF, once they are asked for."""
    global _the_self
    if name == "COMM_WORLD":
        return world()
    if name == "COMM_SELF":
        engine = world()._engine
        if _the_self is None or _the_self._engine is not engine:
            _the_self = Intracomm._of(engine, _CONTEXT_OF_SELF, [engine.rank], [engine.rank], 0)
            _the_self.name = "self"
        return _the_self
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


# ---- where ranks come from

_world: Intracomm | None = None
CARD, RANK = "COPYLESS_GROUP", "COPYLESS_RANK"


def _check_process(thing: Any) -> None:
    comm = thing if isinstance(thing, Comm) else thing._comm
    if comm is not None:
        check_process(
            comm._engine.pid, thing, "a fork of a rank is no rank. Use the communicator in the rank, or comm.spawn ranks there"
        )


check_in_children(_check_process, Comm, Intracomm, Intercomm, Request, Message, free=("Free", "free"))


def join(group: Group, rank: int) -> Intracomm:
    """This process becomes a rank of a group; its world is the group's."""
    global _world
    engine = Engine(group, rank)
    ranks = list(range(group.size))
    _world = Intracomm._of(engine, 0, ranks, ranks, rank)
    _world.name = "world"
    return _world


@atexit.register
def _end() -> None:
    if _world is not None:
        _world._engine.close()


def world() -> Intracomm:
    """The communicator of all ranks that were started together; a group of one where nobody started any."""
    if _world is not None and not _world._engine.inbox.inherited:
        return _world
    card = os.environ.get(CARD)
    if card is not None and _world is None:
        # Children of a rank inherit its environment, but are no ranks.
        rank = int(os.environ.pop(RANK))
        del os.environ[CARD]
        return join(Group.of_card(bytes.fromhex(card)), rank)
    return join(Group(1), 0)


def spawn(fn: Callable[..., Any], n: int, *args: Any, context: Any = None) -> list[Any]:
    """Run ``fn(comm, *args)`` as `n` ranks, in processes of their own: the list of what each returned.

    Parameters
    ----------
    fn
        Anything that can be called; lambdas and closures too. In it, `copyless.comm.world` is `comm`.
    n
        Ranks.
    args
        Passed on to each; arrays in shared memory go by handle.
    context
        A context of `multiprocessing.get_context`, which says how processes start.

    Raises
    ------
    Exception
        What a rank raised, with its traceback there as the cause; the others are ended.
    OwnerDiedError
        When a rank was killed; it says which.

    Examples
    --------
    >>> from copyless import comm
    >>> comm.spawn(lambda ranks, base: ranks.allgather(base + ranks.rank), 3, 10)
    [[10, 11, 12], [10, 11, 12], [10, 11, 12]]
    """
    from copyless.comm import launcher

    return launcher.spawn(fn, n, args, context)
