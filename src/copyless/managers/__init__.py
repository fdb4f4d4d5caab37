"""Managers: objects in a server process that other processes use through proxies, on this host or another.

Mirrors `multiprocessing.managers`: *change the import, keep the code*. The differences:

* Between processes of one host, a call goes through shared memory. Between hosts it goes over TCP, with TLS if wanted
  (``ssl_context=``), and large buffers are sent beside the pickle. Arrays are sent as handles on one host, by value
  between hosts.
* Locks, events, conditions and queues of a `SyncManager` lie in shared memory. On the manager's host a proxy uses them
  directly, at full speed, and a killed client leaves no lock locked. Locks held by a client on another host are
  released when its connection ends.
* A killed client keeps no object alive. If the manager's owner is killed, the server ends. If the server is killed, a
  call that waits for its answer raises `ServerEndedError` within about a second.
* A wrong key, random bytes, an oversized message or a silent client cost the server one line in its log and no memory.
  A flood of them does not delay a client that has the key.
* If the network is cut, calls end and held locks are released after COPYLESS_NETWORK_TIMEOUT seconds.
* `SharedMemoryManager` makes blocks without a call to its server. It also makes arrays, queues, rings and locks.

Both sides prove that they have the key by HMAC-SHA256. Nothing is encrypted: between hosts use TLS or a trusted
network. A client that has the key can run any code in the server, as in the standard library.
"""

from __future__ import annotations

import importlib
from multiprocessing.managers import Namespace, RemoteError
from typing import TYPE_CHECKING, Any

from copyless._standard_names import standard_names
from copyless.managers._protocol import ERROR as ERROR
from copyless.managers._protocol import PROXY as PROXY
from copyless.managers._protocol import RETURN as RETURN
from copyless.managers._protocol import TRACEBACK as TRACEBACK
from copyless.managers._protocol import UNSERIALIZABLE as UNSERIALIZABLE
from copyless.managers._protocol import Token, dispatch
from copyless.managers._protocol import convert_to_error as convert_to_error
from copyless.managers._protocol import listener_client as listener_client
from copyless.managers._proxies import (
    AcquirerProxy,
    ArrayProxy,
    AutoProxy,
    BarrierProxy,
    BaseListProxy,
    BasePoolProxy,
    BaseProxy,
    ConditionProxy,
    DictProxy,
    EventProxy,
    IteratorProxy,
    ListProxy,
    MakeProxyType,
    NamespaceProxy,
    PoolProxy,
    RebuildProxy,
    SetProxy,
    ValueProxy,
)

__all__ = [
    "AcquirerProxy",
    "ArrayProxy",
    "AutoProxy",
    "BarrierProxy",
    "BaseListProxy",
    "BaseManager",
    "BasePoolProxy",
    "BaseProxy",
    "ConditionProxy",
    "DictProxy",
    "EventProxy",
    "IteratorProxy",
    "ListProxy",
    "MakeProxyType",
    "Namespace",
    "NamespaceProxy",
    "PoolProxy",
    "RebuildProxy",
    "RemoteError",
    "Server",
    "SetProxy",
    "SharedMemoryManager",
    "SharedMemoryServer",
    "SyncManager",
    "Token",
    "ValueProxy",
    "dispatch",
]

if TYPE_CHECKING:
    from copyless import pool as pool
    from copyless import shared_memory as shared_memory
    from copyless.managers._manager import BaseManager
    from copyless.managers._manager import State as State
    from copyless.managers._server import Server
    from copyless.managers._server import public_methods as public_methods
    from copyless.managers._shared import SharedMemoryManager, SharedMemoryServer
    from copyless.managers._sync import SyncManager
else:  # a type checker must see a misspelt name
    # A process that only uses proxies needs no pools, rings or servers: these names are imported at first use.
    _LATER = {
        "BaseManager": "_manager", "State": "_manager", "Server": "_server", "public_methods": "_server",
        "SharedMemoryManager": "_shared", "SharedMemoryServer": "_shared", "SyncManager": "_sync",
    }  # fmt: skip
    _MODULES = {"pool", "shared_memory"}
    _standard, __dir__ = standard_names(__name__, "multiprocessing.managers", without=("_SharedMemoryTracker",))

    def __getattr__(name: str) -> Any:
        if name in _LATER:
            found = getattr(importlib.import_module(f"copyless.managers.{_LATER[name]}"), name)
        elif name in _MODULES:
            found = importlib.import_module(f"copyless.{name}")
        else:
            return _standard(name)
        globals()[name] = found
        return found
