"""What belongs to the process that made it, beside what many share.

A fork copies every Python object. Some stand for something that only one process can have: its worker processes, its turn at
a task, its place among the readers of a ring. Used in the child they would speak with the parent's voice, so there every
method but `repr` and `close` raises `WrongProcessError`, and their garbage collection touches nothing shared.
"""

from __future__ import annotations

import inspect
import os
import weakref
from collections.abc import Callable
from multiprocessing import process
from os import getpid
from typing import Any

from copyless.errors import WrongProcessError

__all__ = ["check_in_children", "check_process", "know_child"]


def check_process(maker: int, thing: object, instead: str) -> None:
    """Raise `WrongProcessError` unless this is the process `maker`, which made `thing`; `instead` says what to do. No system call but getpid."""
    if maker != getpid():
        raise WrongProcessError(
            f"this {type(thing).__name__} belongs to process {maker}, which made it, and cannot be used in its fork {getpid()}: {instead}"
        )


_FREE = frozenset(("__class__", "__init__", "__new__", "__repr__", "__hash__", "__eq__", "__init_subclass__", "__getattribute__", "__del__"))


def check_in_children(check: Callable[[Any], None], *kinds: type, free: tuple[str, ...] = ()) -> None:
    """Make every public method and property of these classes, but for those that are `free`, call `check(self)` in forked children.

    It costs the process that makes the objects nothing: the methods are wrapped in the child, when it is forked.
    """

    def guarded(method: Any) -> Any:
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            check(self)
            return method(self, *args, **kwargs)

        call.__name__, call.__doc__ = method.__name__, method.__doc__
        return call

    done = False

    def in_child() -> None:
        nonlocal done
        if done:
            return  # a fork of a fork
        done = True
        for kind in kinds:
            for name, value in list(vars(kind).items()):
                public = not name.startswith("_") or (name.startswith("__") and name.endswith("__") and name not in _FREE)
                if not public or name in free:
                    continue
                if inspect.isfunction(value):
                    setattr(kind, name, guarded(value))
                elif isinstance(value, property) and value.fget is not None:
                    setattr(kind, name, property(guarded(value.fget), value.fset, value.fdel, value.__doc__))

    os.register_at_fork(after_in_child=in_child)


_children: weakref.WeakSet[Any] = weakref.WeakSet()


def know_child(child: Any) -> None:
    """Say that a `multiprocessing.Process` is this process's alone.

    In a child made by `os.fork`, multiprocessing would take it for the child's own when that ends: terminate it when it is a
    daemon, a worker of the parent's pool, and fail to join it.
    """
    _children.add(child)


def _forget_children() -> None:
    known: set[Any] = getattr(process, "_children", set())
    known.difference_update(_children)
    _children.clear()


os.register_at_fork(after_in_child=_forget_children)
