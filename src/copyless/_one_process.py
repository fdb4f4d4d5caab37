"""Objects that belong to the process that made them and cannot be used in its forked children.

A fork copies every Python object. Some objects represent something that only one process can have: its worker
processes, its turn at a task, its place among the readers of a ring. If the child used its copy, it would act for the
parent. Therefore every method but `repr` and `close` raises `WrongProcessError` there, and garbage collection of the
copy changes nothing in shared memory.
"""

from __future__ import annotations

import os
import types
import weakref
from collections.abc import Callable
from multiprocessing import process
from os import getpid

from copyless._typing import Any
from copyless.errors import WrongProcessError

__all__ = ["check_in_children", "check_process", "register_child"]


def check_process(maker: int, thing: object, instead: str) -> None:
    """Raise `WrongProcessError` unless this is the process `maker`, which made `thing`; `instead` says what to do.

    No system call but getpid.
    """
    if maker != getpid():
        raise WrongProcessError(
            f"this {type(thing).__name__} was made by process {maker} and cannot be used in its forked child "
            f"{getpid()}: {instead}"
        )


_FREE = frozenset(
    (
        "__class__",
        "__init__",
        "__new__",
        "__repr__",
        "__hash__",
        "__eq__",
        "__init_subclass__",
        "__getattribute__",
        "__del__",
    )
)


def check_in_children(check: Callable[[object], None], *kinds: type, free: tuple[str, ...] = ()) -> None:
    """Make every public method and property of these classes, except the `free` ones, call `check(self)` in forked
    children.

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
            return  # a forked child of a forked child
        done = True
        for kind in kinds:
            for name, value in list(vars(kind).items()):
                public = not name.startswith("_") or (
                    name.startswith("__") and name.endswith("__") and name not in _FREE
                )
                if not public or name in free:
                    continue
                if isinstance(value, types.FunctionType):
                    setattr(kind, name, guarded(value))
                elif isinstance(value, property) and value.fget is not None:
                    setattr(kind, name, property(guarded(value.fget), value.fset, value.fdel, value.__doc__))

    os.register_at_fork(after_in_child=in_child)


_children: weakref.WeakSet[Any] = weakref.WeakSet()


def register_child(child: object) -> None:
    """Register a `multiprocessing.Process` as a child of this process only.

    In a child made by `os.fork`, multiprocessing would take the process for the child's own. At the end of the child it
    would terminate a daemon, such as a worker of the parent's pool, and fail to join it.
    """
    _children.add(child)


def _forget_children() -> None:
    known: set[Any] = getattr(process, "_children", set())
    known.difference_update(_children)
    _children.clear()


os.register_at_fork(after_in_child=_forget_children)
