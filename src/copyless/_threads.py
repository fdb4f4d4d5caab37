"""Threads of the system, even if gevent or eventlet has turned those of `threading` into tasks."""

from __future__ import annotations

import select
import sys
import threading
import types
from collections.abc import Callable

from copyless._typing import Any

__all__ = ["is_patched", "native_lock", "original", "start_thread"]


def is_patched() -> bool:
    """Whether `select` was replaced."""
    return not isinstance(select.select, types.BuiltinFunctionType)


def original(module: str, name: str) -> Any:
    """The attribute of a module before it was patched."""
    gevent = sys.modules.get("gevent.monkey")
    if gevent is not None and gevent.is_module_patched(module):
        return gevent.get_original(module, name)
    eventlet = sys.modules.get("eventlet.patcher")
    if eventlet is not None:
        return getattr(eventlet.original(module), name)
    __import__(module)
    return getattr(sys.modules[module], name)


def start_thread(run: Callable[[], object], name: str) -> None:
    """Start a thread of the system that sleeps in C. It must not use locks of `threading`, which may be locks for
    tasks.
    """
    if is_patched():
        original("_thread", "start_new_thread")(run, ())
    else:
        threading.Thread(target=run, name=name, daemon=True).start()


def native_lock() -> Any:
    """A lock between threads of the system, held so briefly that no other task runs meanwhile."""
    return original("_thread", "allocate_lock")()
