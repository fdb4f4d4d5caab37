"""`stats`: what is in the store, what this process uses of it, and what happened."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from copyless import _platform
from copyless._core import _store, c_library, events
from copyless._storage import directory, settings
from copyless._storage.observing import look, observing
from copyless._transfer.names import guarded_by

if TYPE_CHECKING:
    from copyless._core._observe import Tables

__all__ = ["Stats", "stats"]


class Stats(NamedTuple):
    """The figures of `stats`. Sizes are in bytes; ``_asdict()`` gives a dict, for a monitoring system.

    Attributes
    ----------
    directory : str
        The storage directory, which the processes of one user and space share.
    state : str
        ``"whole"``: the figures agree with each other. ``"changing"``: other processes kept changing the registry, so
        they may not. ``"held"``: the same, because a process holds the registry's lock, perhaps stopped or killed.
        ``"none"``: there is no store.
    blocks, bytes : int
        Blocks in use by any process, and the bytes that were asked for in them. An array, a queue, a lock, a ring and
        a large item on its way have a block each.
    own_blocks, own_bytes : int
        Those that objects of this process use.
    total_bytes, warm_bytes, spilled_bytes : int
        Of the files: all; those kept free for the next allocation; those on disk, because shared memory was full.
    messages : int
        Arrays sent and not yet loaded by a process. Items in queues do not count.
    names, persistent : int
        Names in use, and how many of them stay without a process.
    processes : int
        Processes that use the store and live.
    segments, segments_limit, holds, holds_limit, names_limit, processes_limit : int
        Entries in use of the tables with a fixed size, and their sizes.
    room, room_free : int or None
        Bytes of the file system that has the storage directory; None if it has no limit of its own.
    processes_ended, blocks_reclaimed, messages_reclaimed : int
        Processes that this process found ended without leaving, and what it reclaimed from them. These and the
        following count since this process started; in a forked child since the fork.
    messages_expired : int
        Messages that this process freed because no process loaded them in time.
    holders_died : int
        Locks that this process acquired after their holders had died.
    workers_died : int
        Workers of pools and executors of this process that died.
    refused : int
        Allocations and table entries that this process could not have; each raised `OutOfSharedMemory`.
    spilled : int
        Blocks that this process made on disk, because shared memory was full.
    holder_waits : int
        Times that this process waited a second or longer for a process that held an internal lock, or was stopped.
    """

    directory: str
    state: str
    blocks: int
    bytes: int
    own_blocks: int
    own_bytes: int
    total_bytes: int
    warm_bytes: int
    spilled_bytes: int
    messages: int
    names: int
    persistent: int
    processes: int
    segments: int
    segments_limit: int
    holds: int
    holds_limit: int
    names_limit: int
    processes_limit: int
    room: int | None
    room_free: int | None
    processes_ended: int
    blocks_reclaimed: int
    messages_reclaimed: int
    messages_expired: int
    holders_died: int
    workers_died: int
    refused: int
    spilled: int
    holder_waits: int


def stats() -> Stats:
    """What is in shared memory, what this process uses of it, and what happened since it started.

    Returns
    -------
    Stats
        A named tuple.

    Raises
    ------
    CorruptSegmentError
        If the registry is damaged.
    ForeignHostError
        If the registry is of another boot.

    Notes
    -----
    Reads the tables of the registry without its lock and without joining it, as ``copyless ls`` does: it waits for no
    process, and works while one is stopped inside the lock. Costs a copy of the tables and 1.2 us for each block of all
    processes: 0.3 ms for a hundred, 25 ms for 20,000. Each event is also a line in the log `copyless`; see
    ``docs/guide.md``.

    Examples
    --------
    >>> import copyless
    >>> before = copyless.stats()
    >>> a = copyless.zeros(1000)
    >>> now = copyless.stats()
    >>> now.own_blocks - before.own_blocks, now.own_bytes - before.own_bytes
    (1, 8000)
    >>> now.workers_died
    0
    """
    _store.news()
    own_blocks, own_bytes = _store.used_here()
    place = directory.current()
    try:
        room = _platform.mount_room(place)
    except FileNotFoundError:  # no process uses shared memory now
        room = _platform.mount_room(settings.current().dir)
    with observing() as observer:
        found = look(observer) if observer is not None else None
    figures = _of_store(found) if found is not None else dict.fromkeys(_OF_STORE, 0)
    return Stats(
        directory=place,
        state=found["state"] if found is not None else "none",
        own_blocks=own_blocks,
        own_bytes=own_bytes,
        segments_limit=c_library.MAX_SEGMENTS,
        holds_limit=c_library.MAX_HOLDS,
        names_limit=c_library.MAX_NAMES,
        processes_limit=c_library.MAX_OWNERS,
        room=room[0] if room else None,
        room_free=room[1] if room else None,
        **figures,
        **events.counts(),
    )


_OF_STORE = (
    "blocks", "bytes", "total_bytes", "warm_bytes", "spilled_bytes", "messages", "names", "persistent", "processes",
    "segments", "holds",
)  # fmt: skip


def _of_store(found: Tables) -> dict[str, int]:
    blocks = found["blocks"]
    segments = found["segments"]
    totals = found["totals"]
    kinds = [hold["kind"] for hold in found["holds"]]
    return {
        "blocks": len(blocks),
        "bytes": sum(block["bytes"] for block in blocks),
        "total_bytes": totals["total_bytes"],
        "warm_bytes": totals["warm_bytes"],
        "spilled_bytes": sum(segment["bytes"] for segment in segments if segment["spilled"]),
        "messages": kinds.count("message"),
        "names": sum(guarded_by(entry["name"]) is None for entry in found["names"]),
        "persistent": kinds.count("persist"),
        "processes": sum(owner["alive"] for owner in found["owners"]),
        "segments": len(segments),
        "holds": len(kinds),
    }
