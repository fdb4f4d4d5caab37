"""`BaseManager`: starts a server process or connects to one, and returns proxies of the objects that it makes there."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from multiprocessing import ProcessError, connection, get_context, process, util
from typing import TYPE_CHECKING, Any, NamedTuple

from copyless import _loaders, _platform
from copyless._one_process import check_process, register_child
from copyless.managers._connection import PACKET_LIMIT, check_serializer
from copyless.managers._link import Link
from copyless.managers._protocol import PLACE, AuthenticationString, Registry, Token
from copyless.managers._proxies import AutoProxy, BaseProxy, make_proxy
from copyless.managers._server import Server

__all__ = ["BaseManager", "Run", "State"]

if TYPE_CHECKING:
    import ssl
    from multiprocessing.context import BaseContext
    from multiprocessing.process import BaseProcess

    from typing_extensions import Self

    from copyless._typing import Context

    Address = str | bytes | tuple[str, int]


class State:
    """The state that a manager shares with its finalizer."""

    __module__ = PLACE

    INITIAL: int
    STARTED: int
    SHUTDOWN: int
    INITIAL, STARTED, SHUTDOWN = range(3)

    def __init__(self) -> None:
        self.value: int = State.INITIAL


class Run(NamedTuple):
    """The arguments of the server process."""

    server: type[Server]
    registry: Registry
    address: Address | None
    authkey: bytes
    serializer: str
    ssl_context: ssl.SSLContext | Callable[[], ssl.SSLContext] | None
    frame_limit: int


class BaseManager:
    """BaseManager(address=None, authkey=None, serializer='pickle', ctx=None, *, shutdown_timeout=1.0, ssl_context=None)

    Makes objects in a server process and returns proxies of them. Mirrors `multiprocessing.managers.BaseManager`.

    `start` starts a server process; `connect` uses one that runs already.

    Parameters
    ----------
    address
        ``(host, port)`` for TCP (port 0: any free port), or a path for a Unix socket. None: a socket in the storage
        directory, which only this user and root can reach. An existing path is reused if it is a socket of this user
        whose server has ended; otherwise OSError says that the address is in use.
    authkey : bytes
        The key that both sides must have; default: the key of the process.
    serializer
        'pickle', or 'xmlrpclib' for plain data only.
    ctx
        A context of multiprocessing, which determines how the server process is started.
    shutdown_timeout : float
        Seconds that `shutdown` waits for the server to end by itself.
    ssl_context : ssl.SSLContext, or a function that returns one
        For TCP: a server context on the side that serves, a client context on the side that connects. With the start
        methods spawn and forkserver it must be a function. Processes on the server's own host need none.

    Raises
    ------
    multiprocessing.AuthenticationError
        If the server has another key.
    ServerEndedError
        From a call whose server has ended (an EOFError and a ConnectionError).
    OSError
        If the address is in use.

    Notes
    -----
    A call on one host costs about 5 us, and no system call while both sides are awake. Over TCP it costs two messages.

    Examples
    --------
    >>> from copyless.managers import BaseManager
    >>> class Counters(BaseManager): pass
    >>> Counters.register("Counter", __import__("collections").Counter, exposed=("update", "most_common"))
    >>> with Counters() as manager:
    ...     counter = manager.Counter()
    ...     counter.update("abracadabra")
    ...     counter.most_common(1)
    [('a', 5)]
    """

    __module__ = PLACE

    _registry: Registry = {}  # noqa: RUF012
    _Server: type[Server] = Server
    frame_limit = PACKET_LIMIT  # bytes of one message over TCP
    _process: BaseProcess | None

    def __init__(
        self,
        address: Address | list[Any] | None = None,
        authkey: bytes | None = None,
        serializer: str = "pickle",
        ctx: BaseContext | Context | None = None,
        *,
        shutdown_timeout: float = 1.0,
        ssl_context: ssl.SSLContext | Callable[[], ssl.SSLContext] | None = None,
    ) -> None:
        if authkey is None:
            authkey = process.current_process().authkey
        if not isinstance(authkey, bytes):
            raise TypeError(f"authkey must be bytes, not {type(authkey).__name__}")
        self._address: Any = tuple(address) if isinstance(address, list) else address
        self._authkey = AuthenticationString(authkey)
        self._state = State()
        self._serializer = check_serializer(serializer)
        self._ctx: Any = ctx or get_context()
        self._shutdown_timeout = shutdown_timeout
        self._ssl_context = ssl_context
        self._process = None
        self._link: Link | None = None
        self._made_by = 0  # the process that started or connected it

    def __repr__(self) -> str:
        state = ("not started", "started", "shut down")[self._state.value]
        return f"<{type(self).__name__} {state}, address {self._address!r}>"

    # ---- starting and ending

    def _check_process(self) -> None:
        if self._made_by:
            check_process(
                self._made_by,
                self,
                "make proxies before the fork and use them in the child, or connect() a new manager to its address",
            )

    def _must_be_new(self) -> None:
        self._check_process()
        if self._state.value == State.STARTED:
            raise ProcessError("Already started server")
        if self._state.value == State.SHUTDOWN:
            raise ProcessError("Manager has shut down")

    def _started_link(self) -> Link:
        self._check_process()
        if self._state.value != State.STARTED:
            what = (
                "has shut down" if self._state.value == State.SHUTDOWN else "is not started: call start() or connect()"
            )
            raise ValueError(f"this {type(self).__name__} {what}")
        assert self._link is not None
        return self._link

    def get_server(self) -> Server:
        """The server, with `serve_forever()` and `address`, to run in this process."""
        self._must_be_new()
        return self._Server(
            self._registry, self._address, self._authkey, self._serializer,
            ssl_context=self._ssl_context, frame_limit=self.frame_limit,
        )  # fmt: skip

    def connect(self) -> None:
        """Connect to the server that runs at the address.

        Raises
        ------
        ConnectionRefusedError, FileNotFoundError
            If no server listens at the address.
        multiprocessing.AuthenticationError
            If the server has another key.
        ValueError
            If the manager has no address.
        """
        self._check_process()
        if self._address is None:
            raise ValueError("connect() needs an address: make the manager with address= of the server")
        context = self._ssl_context() if callable(self._ssl_context) else self._ssl_context
        # Always a new link: an existing one to this address may belong to an earlier server.
        link = Link(self._address, self._authkey, self._serializer, None, context, self.frame_limit)
        there = link.ask("where")
        link.local = there if there.startswith("/") else None
        link.enlist()
        self._link = link
        self._made_by = os.getpid()
        self._state.value = State.STARTED

    def start(self, initializer: Callable[..., object] | None = None, initargs: Iterable[object] = ()) -> None:
        """Start the server process. `initializer(*initargs)` is called there first.

        The server ends at `shutdown`, when this manager is deleted, and when this process ends, even by SIGKILL.

        Raises
        ------
        EOFError
            If the server did not start.
        """
        self._must_be_new()
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        self._address, local = self._start_process(initializer, initargs)
        self._link = Link(self._address, self._authkey, self._serializer, local, None, self.frame_limit)
        self._link.enlist()
        self._made_by = os.getpid()
        self._state.value = State.STARTED
        self.shutdown = util.Finalize(  # type: ignore[method-assign]
            self,
            type(self)._finalize_manager,
            args=(self._process, self._link, self._state, self._shutdown_timeout, self._after_shutdown()),
            exitpriority=0,
        )

    def _start_process(
        self, initializer: Callable[..., object] | None, initargs: Iterable[object]
    ) -> tuple[Address, str | None]:
        """Start the server process. Returns the address where it listens, and its private socket."""
        reader, writer = connection.Pipe(duplex=False)
        run = Run(
            self._Server,
            self._registry,
            self._address,
            self._authkey,
            self._serializer,
            self._ssl_context,
            self.frame_limit,
        )
        self._process = self._ctx.Process(
            target=_loaders.serve_manager, args=(type(self), tuple(run), writer, initializer, initargs)
        )
        ident = ":".join(str(i) for i in self._process._identity)
        self._process.name = f"{type(self).__name__}-{ident}"
        register_child(self._process)
        try:
            self._process.start()
        finally:
            writer.close()
        told: object = "nothing"
        with contextlib.suppress(EOFError):
            connection.wait([reader, self._process.sentinel])
            if reader.poll():
                told = reader.recv()
        reader.close()
        if not isinstance(told, tuple):
            self._process.join()
            raise EOFError(f"the manager's server did not start (exit code {self._process.exitcode}); it said: {told}")
        address, local = told
        return address, local

    @classmethod
    def _run_server(
        cls,
        run: Run,
        writer: connection.Connection,
        initializer: Callable[..., object] | None,
        initargs: Iterable[object],
    ) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the owner
        server: object = None
        try:
            owner = _watch_parent()
            if initializer is not None:
                initializer(*initargs)
            server = run.server(
                run.registry,
                run.address,
                run.authkey,
                run.serializer,
                ssl_context=run.ssl_context,
                frame_limit=run.frame_limit,
            )
            threading.Thread(target=_end_with, args=(owner, server), name="copyless-owner", daemon=True).start()
            writer.send((server.address, server.listener.local))
        except BaseException as error:
            with contextlib.suppress(Exception):
                writer.send(f"{type(error).__name__}: {error}")
            raise
        finally:
            writer.close()
        server.serve_forever()

    def _after_shutdown(self) -> Callable[[], None] | None:
        """Called when the server has ended."""
        return None

    @staticmethod
    def _finalize_manager(
        running: BaseProcess, link: Link, state: State, timeout: float, last: Callable[[], None] | None = None
    ) -> None:
        if running.is_alive():
            with contextlib.suppress(Exception):
                link.ask("shutdown")
            link.close()
            running.join(timeout)
            for end in (running.terminate, running.kill):
                if running.is_alive():
                    end()
                    running.join(timeout)
            running.join()
        if last is not None:
            last()
        state.value = State.SHUTDOWN

    def shutdown(self) -> None:
        """End the server that `start` started."""
        raise ValueError(f"this {type(self).__name__} did not start its server, so it cannot shut the server down")

    def join(self, timeout: float | None = None) -> None:
        """Wait until the server process has ended."""
        self._check_process()
        if self._process is not None:
            self._process.join(timeout)
            if not self._process.is_alive():
                self._process = None

    def __enter__(self) -> Self:
        self._check_process()
        if self._state.value == State.INITIAL:
            self.start()
        if self._state.value != State.STARTED:
            raise ProcessError("Manager has shut down")
        return self

    def __exit__(self, *exc: object) -> None:
        if self._process is not None:
            self.shutdown()

    # ---- objects

    def _create(self, typeid: str, /, *args: object, **kwds: object) -> tuple[Token, Sequence[str], object]:
        link = self._started_link()
        ident, exposed, direct = link.ask("create", typeid, *args, **kwds)
        return Token(typeid, self._address, ident, link.local), exposed, direct

    def _debug_info(self) -> str:
        return str(self._started_link().ask("debug_info"))

    def _number_of_objects(self) -> int:
        return int(self._started_link().ask("number_of_objects"))

    @property
    def address(self) -> Address | None:
        """The address where the server listens."""
        address: Address | None = self._address
        return address

    @classmethod
    def register(
        cls,
        typeid: str,
        callable: Callable[..., object] | None = None,
        proxytype: Callable[..., object] | None = None,
        exposed: Sequence[str] | None = None,
        method_to_typeid: Mapping[str, str] | None = None,
        create_method: bool = True,
    ) -> None:
        """Add a method `typeid` to the manager. It makes an object in the server and returns a proxy of it.

        Parameters
        ----------
        typeid : str
            The name of the method.
        callable
            Makes the object in the server. A manager that only connects needs none.
        proxytype
            The class of the proxy, derived from `BaseProxy`; default: `AutoProxy`.
        exposed
            The names of the methods that proxies may call; default: those of the proxy class, or all public methods.
        method_to_typeid
            For methods that return a proxy: their names and the `typeid` of the returned proxy.
        create_method
            If false, add no method, only the type for `method_to_typeid`.

        Raises
        ------
        TypeError
            For a proxy class that is not from `copyless.managers`, or an invalid `method_to_typeid`.

        Examples
        --------
        >>> from copyless.managers import BaseManager
        >>> class Numbers(BaseManager): pass
        >>> Numbers.register("numbers", list, exposed=("append", "__len__"))
        >>> hasattr(Numbers, "numbers")
        True
        """
        if "_registry" not in cls.__dict__:
            cls._registry = cls._registry.copy()
        proxytype = proxytype or AutoProxy
        if isinstance(proxytype, type) and not issubclass(proxytype, BaseProxy):
            raise TypeError(
                f"proxytype {proxytype.__module__}.{proxytype.__qualname__} must derive from "
                "copyless.managers.BaseProxy: import the proxy class from copyless.managers instead of "
                "multiprocessing.managers"
            )
        exposed = exposed or getattr(proxytype, "_exposed_", None)
        method_to_typeid = method_to_typeid or getattr(proxytype, "_method_to_typeid_", None)
        for pair in (method_to_typeid or {}).items():
            for name in pair:
                if not isinstance(name, str):
                    raise TypeError(f"method_to_typeid must map str to str, and {name!r} is not a str")
        cls._registry[typeid] = callable, exposed, method_to_typeid, proxytype
        if not create_method:
            return

        def create(self: BaseManager, /, *args: object, **kwds: object) -> object:
            token, exposed, direct = self._create(typeid, *args, **kwds)
            return make_proxy(
                self._started_link(), proxytype, token, self._serializer, self, self._authkey, exposed, direct
            )

        create.__name__ = create.__qualname__ = typeid
        create.__doc__ = f"Make a {typeid} in the server. Returns a proxy of it."
        setattr(cls, typeid, create)


def _watch_parent() -> int | None:
    parent = process.parent_process()
    if parent is None or parent.pid is None:
        return None
    try:
        return _platform.watch_process(parent.pid)
    except ProcessLookupError:
        raise EOFError("the process that started this manager has ended") from None


def _end_with(owner: int | None, server: Server) -> None:
    """Stop the server when the process that started it has ended, even by SIGKILL."""
    if owner is None:
        return
    waiting = select.poll()
    waiting.register(owner, select.POLLIN)
    while not waiting.poll(60_000):
        pass
    server.stop_event.set()
