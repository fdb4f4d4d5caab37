"""Observing without joining; the .pyx beside this file documents each name."""

from collections.abc import Iterable
from typing import TypedDict

class Owner(TypedDict):
    slot: int
    incarnation: int
    pid: int
    start: int
    alive: bool
    family: int
    pid_namespace: int
    since_ns: int
    leaving: bool
    command: str
    gone: bool
    heir_of: int
    self: bool

class Segment(TypedDict):
    slot: int
    id: str
    state: int
    external: bool
    spilled: bool
    bytes: int
    block_bytes: int
    blocks: int
    used: int

class Block(TypedDict):
    number: int
    segment: str
    bytes: int
    capacity: int
    holds: int
    generation: int
    creator_pid: int
    created_ns: int
    external: bool
    among_objects: bool
    alone: bool

class Hold(TypedDict):
    kind: str
    index: int
    channel: int
    owner: int
    block: int
    deadline_ns: int

class Name(TypedDict):
    name: str
    posix: bool
    block: int
    generation: int
    spec_offset: int
    spec_length: int

class Totals(TypedDict):
    total_bytes: int
    warm_bytes: int
    messages: int
    persistent: int
    deaths: int

class _Holder(TypedDict):
    pid: int
    lives: bool
    seconds: float

class LockHolder(_Holder, total=False):
    """The process that holds the registry's lock. `_storage/observing.py` adds what it finds out about it."""

    program: str
    state: str

class _Tables(TypedDict):
    owners: list[Owner]
    segments: list[Segment]
    blocks: list[Block]
    holds: list[Hold]
    names: list[Name]
    totals: Totals
    registry: str
    boot: int
    spill: tuple[bytes, bool]
    state: str
    holder: LockHolder | None

class Tables(_Tables, total=False):
    """A copy of the registry's tables; `_storage/observing.py` adds the note."""

    note: str | None

def liveness_is_weak() -> bool: ...

class Observer:
    found: bool
    def __init__(self, directory: int) -> None: ...
    def look(self) -> Tables: ...
    def audit(self) -> str | None: ...
    def read(self, number: int, parts: Iterable[tuple[int, int]]) -> list[bytes]: ...
    def kind(self, number: int) -> int: ...
