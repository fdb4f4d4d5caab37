"""The server of a manager: it has the objects and runs the methods that clients call."""

from __future__ import annotations

import collections
import pickle
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from multiprocessing import process
from typing import TYPE_CHECKING, Any

from copyless._objects.base import Shared
from copyless._transfer.retry import send_when_room
from copyless._transfer.sealed import Sealed, seal, sealed_error
from copyless.errors import ClosedError, ForeignHostError, OutOfSharedMemory, StaleHandleError
from copyless.managers import _held
from copyless.managers._connection import PACKET_LIMIT, Broken, Connection, Unsendable, check_serializer
from copyless.managers._endpoints import Address, Closed, Silent
from copyless.managers._handshake import accept
from copyless.managers._listener import Listener, Pending
from copyless.managers._log import log
from copyless.managers._protocol import (
    ERROR,
    ONE_WAY,
    PLACE,
    PROXY,
    RETURN,
    TRACEBACK,
    UNKNOWN,
    UNSERIALIZABLE,
    AuthenticationString,
    Registry,
    request_of,
    short,
)
from copyless.managers._references import Client, References, Referent

if TYPE_CHECKING:
    import ssl

__all__ = ["Server", "public_methods"]


def public_methods(obj: object) -> list[str]:
    """The names of an object's methods that do not begin with '_'."""
    return [name for name in dir(obj) if name[0] != "_" and callable(getattr(obj, name, None))]


public_methods.__module__ = PLACE


class Server:
    """Serves the objects of a registry. Made by `BaseManager.get_server`; mirrors `multiprocessing.managers.Server`.

    It has one thread for each connection of a client.
    """

    __module__ = PLACE

    # Methods of the server itself that clients may call. The names are part of the protocol.
    public: tuple[str, ...] = (
        "shutdown", "create", "get_methods", "debug_info", "number_of_objects", "dummy", "incref", "decref", "lend",
        "keep_for_fork", "take_for_fork", "disown",
        "where",
    )  # fmt: skip

    def __init__(
        self,
        registry: Registry,
        address: Address | None,
        authkey: bytes,
        serializer: str = "pickle",
        *,
        ssl_context: ssl.SSLContext | Callable[[], ssl.SSLContext] | None = None,
        frame_limit: int = PACKET_LIMIT,
    ) -> None:
        if not isinstance(authkey, bytes):
            raise TypeError(f"Authkey {authkey!r} is type {type(authkey)!s}, not bytes")
        self.registry = registry
        self.authkey: bytes = AuthenticationString(authkey)
        self.ssl_context: ssl.SSLContext | None = ssl_context() if callable(ssl_context) else ssl_context
        self.frame_limit = frame_limit
        self.serializer: str = check_serializer(serializer)
        self.listener: Listener = Listener(address)
        self.address: Address = self.listener.address
        self.stop_event: threading.Event = threading.Event()
        self._references = References()
        self.id_to_obj: dict[str, Referent] = self._references.objects
        self.id_to_refcount: collections.Counter[str] = self._references.counts
        self.mutex: threading.RLock = self._references.mutex
        self._own = Client(_IN_SERVER, self._references.own)  # for proxies that are in the server itself
        self.credit: set[str] = set()  # these three attributes are those of a Link, for such proxies
        self.loans: dict[str, bytes] = {}
        self.live = 0

    def __repr__(self) -> str:
        return f"<{type(self).__name__} at {self.address!r}: {len(self.id_to_obj)} objects, {len(self._references.sessions)} clients>"  # noqa: E501

    # ---- serving

    def serve_forever(self) -> None:
        """Serve until a client calls shutdown, or until Ctrl-C. Ends with SystemExit, as the standard library's
        server.
        """
        process.current_process()._manager_server = self  # type: ignore[attr-defined]
        threading.Thread(
            target=self.listener.serve, args=(self._welcome, self.stop_event), name="copyless-listener", daemon=True
        ).start()
        try:
            while not self.stop_event.wait(1):
                self._references.expire()
                _held.release_cut(self._references)
        except (KeyboardInterrupt, SystemExit):
            pass
        finally:
            self.stop_event.set()
            self._end()
            sys.exit(0)

    def _end(self) -> None:
        self.listener.close()
        for client in self._references.clients():
            client.connection.close()

    def _welcome(self, pending: Pending) -> Callable[[], None] | None:
        """Authenticate a connection. Returns the function that serves it."""
        try:
            connection, hello = accept(pending, self.authkey, self.ssl_context, self.frame_limit)
        except Exception as error:
            if not isinstance(error, Silent) or pending.why:
                log.warning("connection of %s refused: %s", pending, pending.why or str(error) or type(error).__name__)
            pending.sock.close()
            return None
        client = self._references.join(hello.session, connection)
        threading.current_thread().name = f"client {hello}"
        return lambda: self._serve(client, hello.session, str(pending))

    # ---- the requests of one connection

    def _serve(self, client: Client, key: bytes, peer: str) -> None:
        connection = client.connection
        try:
            while not self.stop_event.is_set():
                try:
                    number, ident, method, args, kwds = request_of(connection.recv())
                except (Closed, ConnectionError, ClosedError) as error:
                    if isinstance(error, Broken):
                        log.warning("connection of %s closed: %s", peer, error)
                    break
                except OSError as error:
                    log.warning("connection of %s closed: %s", peer, error)
                    break
                except Exception as error:  # the bytes cannot be unpickled, or are not a request: tell the client
                    answer = sealed_error(error)
                    del error  # its traceback holds the objects that were unpickled so far
                    self._answer(connection, UNKNOWN, ERROR, answer)
                    continue
                if ident == ONE_WAY:
                    self._run(client, None, method, args, kwds)
                    continue
                client.number, client.given = number, ""
                kind, result = self._run(client, ident, method, args, kwds)
                self._answer(connection, number, kind, result)
                del args, kwds, result
        except (Closed, ConnectionError, ClosedError, OSError):
            self.disown(client, client.number)  # the client did not wait for its answer
        finally:
            _held.release_held(self._references, client)
            self._references.leave(key, client)
            connection.close()

    def _answer(self, connection: Connection, number: int, kind: int, result: Any) -> None:
        if kind == ERROR and not connection.shared:
            sealed, text = result
            result = _without_addresses(sealed), text
        try:
            connection.send((number, kind, result))
        except (ConnectionError, ClosedError, Closed):
            raise
        except Exception as error:
            cause = error.__cause__ if isinstance(error, Unsendable) else error
            if isinstance(error, OSError) and not connection.shared:
                raise
            if isinstance(
                error, OutOfSharedMemory
            ):  # neither memory nor disk has room: answer with an error, which takes few bytes
                send_when_room(connection.send, lambda failed: (number, ERROR, (seal(failed), str(failed))), error)
            else:
                connection.send((number, UNSERIALIZABLE, f"{short(result)}: {cause!r}"))

    # ---- calls

    def _run(
        self, client: Client, ident: str | None, method: str, args: Sequence[object], kwds: Mapping[str, object]
    ) -> tuple[int, object]:
        """(kind, result) of a request."""
        if ident is None:
            return self._run_own(client, method, args, kwds)
        try:
            obj, exposed, method_to_typeid = self.id_to_obj[ident]
        except KeyError:
            text = f"object {ident!r} no longer exists in the manager's server: all its proxies were deleted"
            return ERROR, sealed_error(KeyError(text))
        if method not in exposed:
            return self._run_special(obj, exposed, method)
        try:
            if client.connection.shared or not isinstance(obj, Shared):
                result = getattr(obj, method)(*args, **kwds)
            else:
                result = _held.call_for(self._references, client, ident, obj, method, args, kwds)
        except Closed:
            raise
        except BaseException as error:
            try:
                return ERROR, sealed_error(error)
            finally:
                del error
        typeid = method_to_typeid and method_to_typeid.get(method)
        if not typeid:
            return RETURN, result
        try:
            return PROXY, self._proxied(client, typeid, result)
        except Exception as error:  # for example a name that is not registered
            return TRACEBACK, sealed_error(error)[1]

    def _run_own(
        self, client: Client, method: str, args: Sequence[object], kwds: Mapping[str, object]
    ) -> tuple[int, object]:
        """Run a request to the server itself."""
        try:
            if method not in self.public:
                raise AttributeError(f"{method!r} is not a method of the server")
            return RETURN, getattr(self, method)(client, *args, **kwds)
        except Exception as error:
            kind = ERROR if isinstance(error, _KNOWN) else TRACEBACK
            sealed = sealed_error(error)
            return kind, sealed if kind == ERROR else sealed[1]

    @staticmethod
    def _run_special(obj: object, exposed: frozenset[str], method: str) -> tuple[int, object]:
        """Run a method that every object has, though it is not exposed."""
        try:
            if method == "#GETVALUE":
                return RETURN, obj
            if method == "__str__":
                return RETURN, str(obj)
            if method == "__repr__":
                return RETURN, repr(obj)
            raise AttributeError(
                f"method {method!r} of {type(obj)} object is not in exposed={sorted(exposed)}: add it to "
                "exposed= of register()"
            )
        except Exception as error:
            return TRACEBACK, sealed_error(error)[1]

    # ---- the methods of `Link`, for proxies in the server

    def owns(self, ident: str) -> bool:
        return ident.startswith(self._references.uuid)

    def call(
        self, ident: str, method: str, args: Sequence[object] = (), kwds: Mapping[str, object] = {}
    ) -> tuple[int, object]:
        return self._run(self._own, ident, method, args, kwds)

    def ask(self, method: str, *args: object) -> Any:
        return getattr(self, method)(self._own, *args)

    def drop(self, ident: str) -> None:
        self.decref(self._own, ident)

    # ---- methods of the server that clients call

    def create(self, client: Client, typeid: str, /, *args: object, **kwds: object) -> tuple[str, list[str], object]:
        """Make an object. Returns (ident, exposed, the object itself if the client may use it directly)."""
        make, exposed, method_to_typeid, _ = self.registry[typeid]
        if make is None:
            if kwds or len(args) != 1:
                raise ValueError("Without callable, must have one non-keyword argument")
            obj = args[0]
        else:
            obj = make(*args, **kwds)
        return self._keep(client, obj, exposed, method_to_typeid)

    def _keep(
        self, client: Client, obj: object, exposed: Iterable[str] | None, method_to_typeid: Mapping[str, str] | None
    ) -> tuple[str, list[str], object]:
        names = public_methods(obj) if exposed is None else list(exposed)
        if method_to_typeid:
            names += [name for name in method_to_typeid if name not in names]
        ident = self._references.add(client.session, Referent(obj, frozenset(names), method_to_typeid))
        client.given = ident
        return ident, names, self._direct(client, obj)

    def _proxied(self, client: Client, typeid: str, obj: object) -> tuple[list[str], str, str, object]:
        _, exposed, method_to_typeid, _ = self.registry[typeid]
        ident, names, direct = self._keep(client, obj, exposed, method_to_typeid)
        return names, typeid, ident, direct

    @staticmethod
    def _direct(client: Client, obj: object) -> Shared | None:
        return obj if client.connection.shared and isinstance(obj, Shared) else None

    def incref(self, client: Client, ident: str, loan: bytes | None = None) -> Shared | None:
        """Count one more reference of the client; `loan` is a message's, which it takes over."""
        obj = self._references.incref(client.session, ident, loan)
        client.given = ident
        return self._direct(client, obj)

    def decref(self, client: Client, ident: str) -> None:
        self._references.decref(client.session, ident)

    def disown(self, client: Client, number: int) -> None:
        """The client did not get its last answer, of that number: a reference that this gave is none."""
        if client.given and client.number == number:
            ident, client.given = client.given, ""
            self._references.decref(client.session, ident)

    def lend(self, client: Client, ident: str) -> bytes:
        """Count a reference for a message, until it is loaded or COPYLESS_MESSAGE_TTL is over."""
        return self._references.lend(ident)

    def keep_for_fork(self, client: Client, reference: bytes) -> None:
        """Keep all references of the client for the child that it is about to fork, under the name `reference`."""
        self._references.lend_all(client.session, reference)

    def take_for_fork(self, client: Client, reference: bytes) -> None:
        """Give the client the references that were kept under the name `reference`: it is the forked child."""
        self._references.take(client.session, reference)

    def get_methods(self, client: Client, ident: Any) -> list[str]:
        return sorted(self.id_to_obj[getattr(ident, "id", ident)].exposed)

    def debug_info(self, client: Client) -> str:
        """The objects in the server, one line for each."""
        with self.mutex:
            return "\n".join(
                f"  {ident}:       refcount={self.id_to_refcount[ident]}\n    {str(self.id_to_obj[ident].obj)[:75]}"
                for ident in self.id_to_obj
            )

    def number_of_objects(self, client: Client) -> int:
        return len(self.id_to_obj)

    def dummy(self, client: Client) -> None:
        """Do nothing: an answer shows that the server runs."""

    def where(self, client: Client) -> str:
        """The path of the socket for clients of this host and user; empty if there is none."""
        return self.listener.local or ""

    def shutdown(self, client: Client) -> None:
        """End the server, after the answer is sent."""
        threading.Timer(0.01, self.stop_event.set).start()


class _InServer(Connection):
    """The link of proxies in the server itself, which use its objects directly."""

    shared = True


_IN_SERVER = _InServer()
_KNOWN = (StaleHandleError, ForeignHostError)


def _without_addresses(sealed: Sealed | bytes | None) -> bytes | None:
    """A sealed exception for another host: its plain pickle, without handles."""
    if sealed is None or isinstance(sealed, bytes):
        return sealed
    try:
        return pickle.dumps(sealed.open())
    except Exception:
        return None
