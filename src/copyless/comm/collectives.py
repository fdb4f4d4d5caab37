"""Collective operations, for both transports, from sends and receives of packets on a communicator of their own.

    ranks    0   1   2   3        4   5   6   7        nodes: what shares memory
             *---+---+---+        *---+---+---+        each node has one who speaks for it: the root on the root's node, else its first rank
             |                    |
             +---- by value ------+                    between those, each byte crosses once to a node, in a binomial tree
    within a node packets are handles of one block, of which each rank gets a copy-on-write view

Reductions go in the order of ranks, as operations need not commute: a binomial tree by rank, which on nodes of consecutive ranks
crosses few times. What every rank calls in the same order keeps the messages apart; receiving is always from a named rank.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from copyless.comm.constants import SUM
from copyless.comm.packets import Packet, copy_of
from copyless.comm.progress import shown

__all__ = ["Inter", "Intra"]

_F = TypeVar("_F", bound=Callable[..., Any])

# Each message says of which operation it is, and of which root, by its tag: so mistaken calls are told, not mistaken for each other.
_KINDS = ("", "bcast", "gather", "scatter", "allgather", "alltoall", "reduce", "allreduce", "scan", "exscan", "barrier",
          "neighbor_alltoall", "Create_group", "mistaken")  # fmt: skip
_ROOTS = 2000  # MPI promises tags up to 32767


def tag_of(kind: str, root: int = 0) -> int:
    return _KINDS.index(kind) + 16 * (max(root, 0) % _ROOTS)


def said_by(tag: int) -> str:
    """The operation that a tag tells of."""
    kind = _KINDS[tag % 16] if tag % 16 < len(_KINDS) else ""
    return f"{kind}(root={tag // 16})" if kind in ("bcast", "gather", "scatter", "reduce") else kind or f"something with tag {tag}"


def _named(root_at: int | None = None) -> Callable[[_F], _F]:
    """An operation that ranks call together; the root's place among its arguments. What it calls itself is part of it."""

    def name(method: _F) -> _F:
        kind, exclusive = tag_of(method.__name__), tag_of("exscan")

        @functools.wraps(method)
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            if self.tag:
                return method(self, *args, **kwargs)
            if root_at is None:
                self.tag = exclusive if kwargs else kind  # the only one by keyword is scan's `exclusive`
            else:
                self.tag = kind + 16 * (args[root_at] % _ROOTS) if self.has_roots else kind
            try:
                return method(self, *args, **kwargs)
            finally:
                self.tag = 0

        return call  # type: ignore[return-value]

    return name


class _Lines:
    """Packets to and from ranks, on a communicator that nobody else uses."""

    draft = True  # they travel by our queues
    has_roots = True  # the same at each rank
    tag = 0  # of the operation that this rank is in

    def __init__(self, comm: Any, rank: int, size: int, nodes: Sequence[Any] | None = None) -> None:
        self.comm, self.rank, self.size = comm, rank, size
        self.nodes = list(nodes) if nodes is not None else [0] * size
        self.one_node = len(set(self.nodes)) <= 1

    def seal(self, obj: Any) -> Any:
        """The object, or the bytes of it where the caller has functions of his own for that."""
        return self.comm._sealed(obj)

    def pack(self, obj: Any) -> Packet:
        return Packet.of(self.seal(obj), not self.one_node, self.draft)

    def put(self, rank: int, packet: Any) -> Any:
        return self.comm._put(packet, rank, self.tag)

    def take(self, rank: int) -> Any:
        return self.comm._take(rank, self.tag)

    def finish(self, requests: list[Any], tell: Callable[[], Any] | None = None) -> None:
        for request in requests:
            request.wait()
            if tell is not None:
                tell()

    def put_all(self, ranks: Sequence[int], obj: Any, packet: Packet | None, title: str | None = None) -> None:
        """One packet to several ranks; what can be sent once only is packed for each. With a `title`, a large one shows a bar."""
        if packet is None:
            packet = self.pack(obj)
        if packet.handles:
            self.finish([self.put(rank, packet if i == 0 else self.pack(obj)) for i, rank in enumerate(ranks)])
            return
        here = sum(self.nodes[rank] == self.nodes[self.rank] for rank in ranks)
        once = packet.nbytes
        with shown(title, once * (1 + len(ranks) - here)) as tell:
            if here and (len(ranks) > 1 or tell is not None):
                packet.gather(tell)
            elif tell is not None:
                tell(once)
            requests = [self.put(rank, packet) for rank in ranks]
            self.finish(requests[: len(ranks) - here], None if tell is None else lambda: tell(once))
            self.finish(requests[len(ranks) - here :])


def mistaken(rank: int, theirs: int, mine: int) -> str:
    """What to say where another rank is in another operation."""
    return (
        f"rank {rank} called {said_by(theirs)} where this rank called {said_by(mine)}: the ranks of a communicator must call its "
        "collective operations in the same order, with the same root"
    )


def _tree(members: Sequence[int], me: int) -> tuple[int | None, list[int]]:
    """(who sends to me, whom I send to) in a binomial tree whose root is the first of the members."""
    i, n = members.index(me), len(members)
    mask = 1
    while mask < n and not i & mask:
        mask <<= 1
    parent = members[i - mask] if i else None
    children = []
    mask >>= 1
    while mask:
        if i + mask < n:
            children.append(members[i + mask])
        mask >>= 1
    return parent, children


class Intra(_Lines):
    """Among the ranks of one group."""

    def _speakers(self, root: int) -> list[int]:
        """Who speaks for each node, the root first."""
        first: dict[Any, int] = {self.nodes[root]: root}
        for rank, node in enumerate(self.nodes):
            first.setdefault(node, rank)
        return list(first.values())

    def _mine(self, speaker: int) -> list[int]:
        """The other ranks of a speaker's node."""
        return [rank for rank, node in enumerate(self.nodes) if node == self.nodes[speaker] and rank != speaker]

    @_named(1)
    def bcast(self, obj: Any, root: int, readonly: bool = False, progress: bool = False) -> Any:
        if self.size == 1:
            return obj
        speakers = self._speakers(root)
        packet: Packet | None = None
        if self.rank in speakers:
            parent, children = _tree(speakers, self.rank)
            if parent is not None:
                packet = self.take(parent)
            mine = self._mine(self.rank)
            if packet is None and children:
                packet = self.pack(obj)
            title = f"rank {root} to all" if progress and self.rank == root else None
            if packet is not None and mine and title is None:
                packet.gather()  # before it goes on by value: a received buffer is then this node's block
            if children or mine:
                self.put_all([*children, *mine], obj, packet, title)
        else:
            speaker = next(rank for rank in speakers if self.nodes[rank] == self.nodes[self.rank])
            packet = self.take(speaker)
        return obj if self.rank == root else packet.open(readonly)  # type: ignore[union-attr]

    @_named(1)
    def gather(self, obj: Any, root: int) -> list[Any] | None:
        own = copy_of(self.seal(obj)) if self.rank == root else None  # while the others pack
        packets = self._gather(self.pack(obj) if self.rank != root else None, root)
        if packets is None:
            return None
        return [own if rank == root else packets[rank].open() for rank in range(self.size)]

    def _gather(self, packet: Any, root: int) -> dict[int, Any] | None:
        """The packets of all other ranks, at the root."""
        speakers = self._speakers(root)
        if self.rank not in speakers:
            speaker = next(rank for rank in speakers if self.nodes[rank] == self.nodes[self.rank])
            self.finish([self.put(speaker, packet)])
            return None
        have = {rank: self.take(rank) for rank in self._mine(self.rank)}
        if self.rank != root:
            have[self.rank] = packet
            self.finish([self.put(root, have)])
            return None
        for speaker in speakers[1:]:
            have.update(self.take(speaker))
        return have

    @_named(1)
    def scatter(self, objs: Any, root: int) -> Any:
        if self.rank == root:
            objs = _listed(objs, self.size)
        speakers = self._speakers(root)
        if self.rank == root:
            requests = []
            for speaker in speakers[1:]:
                ranks = [speaker, *self._mine(speaker)]
                requests.append(self.put(speaker, {rank: self.pack(objs[rank]) for rank in ranks}))
            requests += [self.put(rank, self.pack(objs[rank])) for rank in self._mine(root)]
            self.finish(requests)
            return copy_of(self.seal(objs[root]))
        if self.rank in speakers:
            packets = self.take(root)
            mine = packets.pop(self.rank)
            self.finish([self.put(rank, packet) for rank, packet in packets.items()])
            return mine.open()
        speaker = next(rank for rank in speakers if self.nodes[rank] == self.nodes[self.rank])
        return self.take(speaker).open()

    @_named()
    def allgather(self, obj: Any) -> list[Any]:
        """Each rank's packet goes to rank 0's node once and from there to every node once."""
        if self.size == 1:
            return [copy_of(self.seal(obj))]
        packet = self.pack(obj)
        if packet.handles:  # each handle is good for one receiver
            packet.drop()
            return self.alltoall([obj] * self.size)
        have = self._gather(packet.gather() if self.rank else None, 0)
        if have is not None:
            have[0] = packet.gather()
        have = self._spread(have)
        return [copy_of(self.seal(obj)) if rank == self.rank else have[rank].open() for rank in range(self.size)]

    def _spread(self, packets: dict[int, Packet] | None) -> dict[int, Packet]:
        """A collection of packets from rank 0 to all."""
        speakers = self._speakers(0)
        if self.rank in speakers:
            parent, children = _tree(speakers, self.rank)
            if parent is not None:
                packets = self.take(parent)
            assert packets is not None
            mine = self._mine(self.rank)
            if mine:
                for packet in packets.values():
                    packet.gather()
            self.finish([self.put(rank, packets) for rank in [*children, *mine]])
            return packets
        speaker = next(rank for rank in speakers if self.nodes[rank] == self.nodes[self.rank])
        return self.take(speaker)  # type: ignore[no-any-return]

    @_named()
    def alltoall(self, objs: Any) -> list[Any]:
        objs = _listed(objs, self.size)
        others = [(self.rank + i) % self.size for i in range(1, self.size)]
        requests = [self.put(rank, self.seal(objs[rank])) for rank in others]  # no packets: each goes to one
        got = {self.rank: copy_of(self.seal(objs[self.rank]))}  # while the others send
        got |= {rank: self.take(rank) for rank in reversed(others)}
        self.finish(requests)
        return [got[rank] for rank in range(self.size)]

    @_named(2)
    def reduce(self, obj: Any, op: Any, root: int) -> Any:
        result = self._reduce(obj, _operation(op))
        if root == 0 or self.size == 1:
            return result if self.rank == root else None
        if self.rank == 0:
            self.finish([self.put(root, self.pack(result))])
        return self.take(0).open() if self.rank == root else None

    def _reduce(self, obj: Any, op: Callable[[Any, Any], Any]) -> Any:
        """The reduction in the order of ranks, at rank 0."""
        result = obj
        mask = 1
        while mask < self.size:
            if self.rank & mask:
                self.finish([self.put(self.rank - mask, self.pack(result))])
                return None
            if self.rank + mask < self.size:
                result = op(result, self.take(self.rank + mask).open())
            mask <<= 1
        return copy_of(result) if result is obj else result

    @_named()
    def allreduce(self, obj: Any, op: Any) -> Any:
        return self.bcast(self.reduce(obj, op, 0), 0)

    @_named()
    def scan(self, obj: Any, op: Any, exclusive: bool = False) -> Any:
        """The reduction over the ranks up to this one; by doubling, so each rank sends and receives log2(n) times."""
        op = _operation(op)
        whole, before = obj, None
        distance = 1
        while distance < self.size:
            requests = []
            if self.rank + distance < self.size:
                requests.append(self.put(self.rank + distance, self.pack(whole)))
            if self.rank >= distance:
                lower = self.take(self.rank - distance).open()
                if exclusive:
                    before = lower if before is None else op(lower, before)
                whole = op(lower, whole)
            self.finish(requests)
            distance <<= 1
        if exclusive:
            return before
        return copy_of(obj) if whole is obj else whole

    @_named()
    def barrier(self) -> None:
        distance = 1
        while distance < self.size:
            request = self.put((self.rank + distance) % self.size, None)
            self.take((self.rank - distance) % self.size)
            request.wait()
            distance <<= 1


class Inter(_Lines):
    """Between two groups; `local` is the own group's. The root is ROOT there, PROC_NULL beside it, its rank across."""

    def __init__(self, comm: Any, rank: int, size: int, local: Intra, roots: tuple[int, int]) -> None:
        super().__init__(comm, rank, size)
        self.local = local
        self.one_node = local.one_node
        self._root, self._null = roots

    has_roots = False

    def pack(self, obj: Any) -> Packet:
        return Packet.of(self.seal(obj), by_value=True)  # the other group may be on other nodes

    def _role(self, root: int) -> str:
        if root == self._root:
            return "root"
        if root == self._null:
            return "aside"
        if 0 <= root < self.size:
            return "across"
        raise ValueError(
            f"root {root}: on an intercommunicator it is ROOT at the root, PROC_NULL beside it, and across the root's rank, "
            f"0 to {self.size - 1}"
        )

    @_named(1)
    def bcast(self, obj: Any, root: int, readonly: bool = False, progress: bool = False) -> Any:
        role = self._role(root)
        if role == "root":
            self.finish([self.put(0, self.pack(obj))])
        if role != "across":
            return None
        got = self.take(root).open() if self.rank == 0 else None
        return self.local.bcast(got, 0, readonly)

    @_named(1)
    def gather(self, obj: Any, root: int) -> list[Any] | None:
        role = self._role(root)
        if role == "across":
            self.finish([self.put(root, self.pack(obj))])
        return [self.take(rank).open() for rank in range(self.size)] if role == "root" else None

    @_named(1)
    def scatter(self, objs: Any, root: int) -> Any:
        role = self._role(root)
        if role == "root":
            objs = _listed(objs, self.size)
            self.finish([self.put(rank, self.pack(obj)) for rank, obj in enumerate(objs)])
        return self.take(root).open() if role == "across" else None

    @_named()
    def allgather(self, obj: Any) -> list[Any]:
        return self.alltoall([obj] * self.size)

    @_named()
    def alltoall(self, objs: Any) -> list[Any]:
        requests = [self.put(rank, self.pack(obj)) for rank, obj in enumerate(_listed(objs, self.size))]
        got = [self.take(rank).open() for rank in range(self.size)]
        self.finish(requests)
        return got

    @_named(2)
    def reduce(self, obj: Any, op: Any, root: int) -> Any:
        role = self._role(root)
        if role == "root":
            return self.take(0).open()
        if role == "across":
            result = self.local.reduce(obj, op, 0)
            if self.rank == 0:
                self.finish([self.put(root, self.pack(result))])
        return None

    @_named()
    def allreduce(self, obj: Any, op: Any) -> Any:
        """Each group gets the other's reduction."""
        result = self.local.reduce(obj, op, 0)
        got = None
        if self.rank == 0:
            request = self.put(0, self.pack(result))
            got = self.take(0).open()
            request.wait()
        return self.local.bcast(got, 0)

    @_named()
    def scan(self, obj: Any, op: Any, exclusive: bool = False) -> Any:
        raise ValueError("scan has no meaning on an intercommunicator: merge it first")

    @_named()
    def barrier(self) -> None:
        self.allreduce(0, SUM)


def _listed(objs: Any, size: int) -> list[Any]:
    objs = [None] * size if objs is None else objs if isinstance(objs, list) else list(objs)
    if len(objs) != size:
        raise ValueError(f"expecting {size} items, got {len(objs)}")
    return objs  # type: ignore[no-any-return]


def _operation(op: Any) -> Callable[[Any, Any], Any]:
    if not callable(op):
        raise TypeError(f"op is a function of two, such as copyless.comm.SUM, not {op!r}")
    return op  # type: ignore[no-any-return]
