"""The identity of this process for the store: the boot, the host, its parent, and the family that shares messages."""

from __future__ import annotations

import os
import sys

from copyless._core import _store
from copyless._platform import boot_id
from copyless._storage import settings as _settings
from copyless._storage.settings import current as settings

try:
    from _blake2 import blake2b  # the implementation in hashlib; hashlib itself loads OpenSSL
except ImportError:
    from hashlib import blake2b

from copyless._typing import TYPE_CHECKING

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

__all__ = ["blake2b", "boot", "family", "hashed", "host", "parent", "parent_process", "sends_nothing"]

_sends_nothing = False


def hashed(text: bytes) -> int:
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "little")


def host() -> int:
    """A number of the host. One kernel is one host, whatever its containers are named: registry and boot distinguish
    hosts.
    """
    name = settings().host
    return hashed(name.encode()) if name else 0


def boot() -> int:
    """A number of this boot of this kernel. Never guessed: data of another boot is removed, so a wrong number would
    destroy data.
    """
    return hashed(boot_id())


def family() -> int:
    """A number of the process family: all processes that multiprocessing started from one root share its authentication
    key.

    The ranks of an MPI program on this host are one family too: their parent is the launcher.
    """
    inherited = _settings.family()
    if inherited is None and _settings.is_mpi_rank():
        parent = os.getppid()
        inherited = f"{parent}:{_store.process_start(parent)}"
        _settings.set_family(inherited)
    if inherited is not None:
        return hashed(inherited.encode())
    if _sends_nothing:
        return int.from_bytes(os.urandom(8), "little")
    from multiprocessing.process import current_process

    return hashed(bytes(current_process().authkey))


def sends_nothing() -> None:
    """This process neither sends messages nor starts others by multiprocessing: a command.

    Its family is then a number of its own, and multiprocessing is not imported for the key that names it. To be called
    before the store is opened.
    """
    global _sends_nothing
    _sends_nothing = True


def parent_process() -> BaseProcess | None:
    """The process that started this one by multiprocessing, which it has then loaded; None: none did."""
    process = sys.modules.get("multiprocessing.process")
    asked = getattr(process, "parent_process", None)  # not yet there while another thread imports it
    return asked() if asked is not None else None


def parent() -> tuple[int, int]:
    process = parent_process()
    if process is None or process.pid is None:
        return 0, 0
    return process.pid, _store.process_start(process.pid)
