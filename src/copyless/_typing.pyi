"""What checkers read instead of `_typing.py`: the names of `typing`, and types of higher floors in annotations."""

from concurrent.futures import Future
from typing import TYPE_CHECKING as TYPE_CHECKING
from typing import Any as Any
from typing import ClassVar as ClassVar
from typing import Generic as Generic
from typing import NoReturn as NoReturn
from typing import Protocol, TypeAlias
from typing import TypeGuard as TypeGuard

from typing_extensions import Buffer
from typing_extensions import TypeVar as TypeVar

from copyless import _ctypes_of_contexts
from copyless.context import Context as Context
from copyless.managers import BaseManager as BaseManager
from copyless.managers import _proxy_types
from copyless.managers._proxy_types import ArrayProxy as ArrayProxy
from copyless.managers._proxy_types import BaseListProxy as BaseListProxy
from copyless.managers._proxy_types import BasePoolProxy as BasePoolProxy
from copyless.managers._proxy_types import DictProxy as DictProxy
from copyless.managers._proxy_types import ListProxy as ListProxy
from copyless.managers._proxy_types import PoolProxy as PoolProxy
from copyless.managers._proxy_types import SetProxy as SetProxy
from copyless.managers._proxy_types import ValueProxy as ValueProxy
from copyless.managers._server import Server as Server
from copyless.queues import _Base
from copyless.rings import RingBuffer as RingBuffer
from copyless.synchronize import Event as Event
from copyless.synchronize import Lock as Lock
from copyless.synchronize import RLock as RLock
from copyless.synchronize import RWLock as RWLock
from copyless.synchronize import Semaphore as Semaphore
from copyless.synchronize import SemLock
from copyless.waiting import Part

makers = _ctypes_of_contexts
proxy_types = _proxy_types

class HasAddress(Protocol):
    """A lock, queue or ring: (address, bytes) of its block."""

    @property
    def _address(self) -> tuple[int, int]: ...

class _HasFileno(Protocol):
    def fileno(self) -> int: ...

class _HasForWait(Protocol):
    def _for_wait(self) -> Part: ...

AnyQueue: TypeAlias = _Base[Any]

class _HasDLPack(Protocol):
    def __dlpack__(self) -> object: ...

# What `Memory` takes.
BufferLike: TypeAlias = Buffer | _HasDLPack

# What `copyless.wait` takes.
Waitable: TypeAlias = int | _HasFileno | _HasForWait | SemLock | Future[Any]
