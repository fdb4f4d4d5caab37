"""The short way of small messages on MPI; what each name does stands in the .pyx beside this file."""

from typing import Any

in_line: dict[int, tuple[Any, Any]]

def fetch(message: Any, nbytes: int) -> Any: ...
def send(self: Any, obj: Any, dest: int, tag: int = 0, *, progress: bool = False) -> None: ...
def recv(
    self: Any, buf: Any = None, source: int = ..., tag: int = ..., status: Any = None, *, progress: bool = False
) -> Any: ...
