"""What belongs to the process that made it, beside what many share.

A fork copies every Python object. Some stand for something that only one process can have: its worker processes, its turn at
a task, its place among the readers of a ring. Used in the child they would speak with the parent's voice, so there every
method but `repr` and `close` raises `WrongProcessError`, and their garbage collection touches nothing shared.
"""

from __future__ import annotations

from os import getpid

from copyless.errors import WrongProcessError

__all__ = ["check_process"]


def check_process(maker: int, thing: object, instead: str) -> None:
    """Raise `WrongProcessError` unless this is the process `maker`, which made `thing`; `instead` says what to do. No system call but getpid."""
    if maker != getpid():
        raise WrongProcessError(
            f"this {type(thing).__name__} belongs to process {maker}, which made it, and cannot be used in its fork {getpid()}: {instead}"
        )
