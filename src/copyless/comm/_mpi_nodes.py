"""Collective operations on MPI among several nodes.

    ranks      0   1   2   3        4   5   6   7       nodes: ranks that share memory
               *---+---+---+        *---+---+---+       * the leader of a node: its first rank
               |                    |
               +--- MPI's own ------+                   among leaders, by `_mpi_engine`: bundles of bytes

Every operation has the same three steps, also when something fails:

1. Ranks give their leader what they contribute: a bundle, or the text of an error that they have met.
2. The leaders exchange a row each, which shows whether all are in the same operation and whether one of them has an
   error. Then MPI carries the bundles.
3. Leaders give their ranks the result, as one block for all of them, or the text of the error.

So an error of one rank (an object that cannot be pickled) is raised by every rank that waits, and the communicator can
be used on. A rank in another operation is found in step 1 by the tag of its message, or in step 2 by its leader's row.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

from copyless._progress import shown
from copyless._transfer import packing
from copyless.comm._bundles import (
    ELSEWHERE,
    SMALL,
    Bundle,
    Stretch,
    gathered,
    nbytes_of,
    objects,
    only_buffer,
    stretches,
    unwired,
    view_of,
    wired,
)
from copyless.comm._collectives import UNUSABLE, Fault, Intra, listed, mistaken, named, operation, tag_of
from copyless.comm._constants import Operation
from copyless.comm._mpi_reductions import datatype_of, operation_of, signature
from copyless.comm._packets import Packet, copy_of
from copyless.comm._slices import Division

__all__ = ["Nodes"]

_DIRECT = 1 << 16  # bytes of an object from which `alltoall` sends it from rank to rank


class Nodes(Intra):
    """Nodes(comm, rank, size, nodes, leaders, first)

    Collective operations of the ranks of one group on several nodes. `nodes` has the name of each rank's node.
    `leaders` makes the `Leaders` of (number of this rank's node, number of nodes, whether this rank leads it); every
    rank calls it, and it gives None to ranks that lead no node.
    """

    draft = one_node = False
    _error: Exception | None = None  # that this rank has met in the present operation
    amid = False  # whether this rank is in a wait or a call of the leaders, or has left it by an error

    def __init__(
        self,
        comm: object,
        rank: int,
        size: int,
        nodes: Sequence[object],
        leaders: Callable[[int, int, bool], Any],
        first: int,
    ) -> None:
        super().__init__(comm, rank, size, first)
        numbers: dict[Any, int] = {}
        self.node_of = [numbers.setdefault(node, len(numbers)) for node in nodes]
        self.members: list[list[int]] = [[] for _ in numbers]
        for member, node in enumerate(self.node_of):
            self.members[node].append(member)
        self.node = self.node_of[rank]
        here = self.members[self.node]
        self.place, self.leader = here.index(rank), here[0]
        self.leads, self.mine = rank == here[0], here[1:] if rank == here[0] else []
        self.in_order = self.node_of == sorted(self.node_of)  # the ranks of each node follow each other
        self.leaders = leaders(self.node, len(numbers), self.leads)

    # ---- errors

    def leave(self, error: BaseException) -> None:
        """Tell all ranks of an operation that this one has left in the middle, as by Ctrl-C. The rows of the leaders
        tell of other errors.

        A call of MPI among leaders cannot be taken back: it would meet the next call of the others. So nobody uses the
        communicator after that.
        """
        if self.comm._broken is None and (self.amid or not isinstance(error, Exception)):
            self.comm._broken = text = self.text_of(error)
            with contextlib.suppress(Exception):
                self.comm._tell_all(text + UNUSABLE)

    def begun(self) -> None:
        self._error, self.amid, self.touched = None, False, False
        self._refuse()
        super().begun()

    def _refuse(self) -> None:
        """Raise if a rank has left an operation in the middle, as this one was told."""
        if self.comm._broken is not None:
            raise self.failure(self.comm._broken.removesuffix(UNUSABLE) + UNUSABLE)

    def hear(self) -> None:
        self._refuse()  # this rank was told where an error is passed on as a value
        super().hear()

    def take(self, rank: int) -> Any:
        return self._amid(lambda: super(Nodes, self).take(rank))

    def finish(self, requests: list[Any]) -> None:
        self._amid(lambda: super(Nodes, self).finish(requests))

    def _amid(self, call: Callable[[], Any], *alike: type[Exception]) -> Any:
        """What a call returns that this rank must not leave by an error: others wait for what comes after it. They do
        not after an error that all leaders raise alike.
        """
        before, self.amid = self.amid, True
        try:
            made = call()
        except alike:
            self.amid = before
            raise
        self.amid = before
        return made

    def _attempt(self, call: Callable[[], object]) -> Any:
        """The result; or the text of the error, which is raised when the operation is over."""
        made = self.tried(call)
        return made.text if isinstance(made, Fault) else made

    def fault(self, error: Exception) -> Fault:
        if self._error is None:
            self._error = error
        return super().fault(error)

    def _checked(self, message: object) -> Any:
        """The message of another rank, unless it or this rank has met an error."""
        if self._error is not None:
            raise self._error
        if type(message) is str:
            raise self.failure(message)
        return message

    def _receive(self, rank: int) -> Any:
        """What a rank of this node contributes."""
        return unwired(self.taken(rank))

    def taken(self, rank: int) -> Any:
        try:
            return self.take(rank)
        except Exception as error:
            if not isinstance(error, type(self.failure(""))):
                raise  # of a signal's handler: the other rank may wait for an answer to what was not received
            self.amid = False  # the rows of the leaders tell of it
            return self.fault(error).text

    # ---- the three steps

    def _up(self, message: object) -> None:
        self.finish([self.put(self.leader, wired(message))])

    def _agree(self, bundle: Any, nbytes: int = 0, number: int = 0) -> tuple[Any, str | None]:
        """(the rows of all leaders, the text of an error that one of them has met)."""
        self.touched = True
        self._refuse()
        rows, wrong = self._amid(lambda: self.leaders.exchange(self.tag, bundle, nbytes, number, self.hear))
        if not isinstance(wrong, tuple):
            return rows, wrong
        other, theirs = wrong
        self.comm._broken = text = mistaken(self.members[other][0], theirs, self.tag)
        for rank in self.mine:
            self.comm._put(f"rank {self.rank} was told: {text}", rank, tag_of("mistaken"))
        raise self._error or self.failure(text)

    def _down(self, message: object, ranks: Sequence[int] | None = None) -> None:
        self.finish([self.put(rank, wired(message)) for rank in (self.mine if ranks is None else ranks)])

    def _result(self) -> Any:
        """What the leader gives to this rank."""
        return unwired(self.take(self.leader))

    # ---- objects

    def _entry(self, key: int, obj: object) -> tuple[int, bytes, list[Any]]:
        return (key, *packing.apart(self.seal(obj)))

    def _bundled(self, key: int, obj: object) -> Any:
        """An object, as a bundle that the node can use."""
        return gathered([Stretch([self._entry(key, obj)])])

    def _given(self, obj: object) -> Any:
        """What this rank contributes: a bundle, or at a leader a stretch that is not copied together yet."""
        made = Stretch([self._entry(self.rank, obj)])
        return made if self.leads else gathered([made])

    def _listed(self, bundles: Sequence[object], own: bool) -> list[Any]:
        """The objects of all ranks from bundles of them."""
        result: list[Any] = [None] * self.size
        for bundle in bundles:
            for rank, obj in objects(bundle, own=own):
                result[rank] = obj
        return result

    # ---- operations

    @named(1)
    def bcast(self, obj: object, root: int, readonly: bool = False, progress: bool = False) -> Any:
        message = None
        if self.rank == root:
            title = f"rank {root} to all" if progress else None
            message = self._attempt(lambda: self._for_all(root, obj, title))
        got = self._spread(message, root, readonly)
        return obj if self.rank == root else got

    def _spread(self, message: object, root: int, readonly: bool = False) -> Any:
        """The object of the root's bundle, at each other rank. Instead of the bundle it may be the text of an error."""
        at = self.node_of[root]
        if self.rank == root:
            if not self.leads:
                self._up(message)
                return self._checked(message)
        elif not self.leads:
            message = self._checked(self._result())
            return next(objects(message, readonly))[1]
        elif at == self.node:
            message = self._receive(root)
        else:
            message = b""
        nbytes = 0 if type(message) is str else nbytes_of(message)
        source = self.leaders.source([message]) if nbytes > self.leaders.inline else None
        rows, fault = self._agree(message, nbytes)
        others = [rank for rank in self.mine if rank != root]
        if fault is not None or rows.within[at]:
            message = fault if fault is not None else message or rows.inline(at)
            self._down(message, others)
        elif at == self.node:
            self._amid(
                lambda: self.leaders.bcast(source, rows.nbytes[at], at, self.hear, lambda: self._down(message, others))
            )
        else:
            message = self._amid(lambda: self.leaders.bcast(None, rows.nbytes[at], at, self.hear, lambda: None))
            self._down(message, others)
        self._checked(message)
        return None if self.rank == root else next(objects(message, readonly, not self.mine))[1]

    def _for_all(self, root: int, obj: object, title: str | None = None) -> Any:
        """The object as a bundle for this node and others; not copied together if only other nodes need it."""
        made = Stretch([self._entry(root, obj)])
        with shown(title, made.nbytes) as tell:
            if made.nbytes <= SMALL or self.mine or not self.leads:
                return gathered([made], tell)
            return made

    @named(1)
    def gather(self, obj: object, root: int) -> list[Any] | None:
        at = self.node_of[root]
        own = self._attempt(lambda: copy_of(self.seal(obj)) if self.rank == root else self._given(obj))
        if not self.leads:
            if self.rank != root:
                self._up(own)
                self._checked(own)
                return None
            got = self._checked(self._result())
        else:
            # A root that leads its node tells its own error; what it has for itself is no bundle.
            bundles = [own] if self.rank != root else [own] if self._error is not None else []
            bundles += [self._receive(rank) for rank in self.mine if rank != root]
            got = self._attempt(lambda: self._gather(bundles, at))
            if at != self.node:
                self._checked(got)
                return None
            if self.rank != root:
                self._down(got, [root])
            self._checked(got)
            if self.rank != root:
                return None
        result = self._listed(got, True)
        result[root] = own
        return result

    def _gather(self, bundles: list[Any], at: int) -> Any:
        """The bundles of all ranks, at the leader of that node; or the text of an error."""
        mine: Any = next((bundle for bundle in bundles if type(bundle) is str), b"")
        total = 0
        if mine == b"" and at != self.node:
            total = sum(map(nbytes_of, bundles))
            mine = gathered(bundles) if total <= self.leaders.inline else b""
        source = self.leaders.source(bundles) if total > self.leaders.inline else None
        rows, fault = self._agree(mine, total)
        if fault is not None:
            return fault
        if rows.total:
            whole = self._amid(lambda: self.leaders.gather(source, rows, at, self.hear), OverflowError)
            if whole is not None:
                bundles.append(whole)
        if at == self.node:
            bundles = [gathered([each]) if type(each) is Stretch else each for each in bundles]
            bundles += [rows.inline(node) for node, nbytes in enumerate(rows.within) if nbytes]
        return bundles

    @named(1)
    def scatter(self, objs: object, root: int) -> Any:
        at = self.node_of[root]
        message: Any = None
        items: list[Any] = []
        if self.rank == root:
            message = self._attempt(lambda: self._parted(items, listed(objs, self.size), root))
            if not self.leads:
                self._up(message)
        elif self.leads and at == self.node:
            message = self._receive(root)
        if self.leads:
            given = message
            message = self._attempt(lambda: self._scatter(given, at))
            self._down(message, [rank for rank in self.mine if rank != root])
        elif self.rank != root:
            message = self._result()
        self._checked(message)
        if self.rank == root:
            return copy_of(self.seal(items[root]))
        bundle, begin, end = message if isinstance(message, tuple) else (message, 0, None)
        return next(objects(bundle, own=len(self.members[self.node]) == 1, only=self.place, begin=begin, end=end))[1]

    def _parted(self, items: list[Any], objs: list[Any], root: int) -> tuple[Any, list[int]]:
        """(the objects for each node one after the other, the bytes of each node's). `items` gets the objects."""
        items += objs
        stretches = [
            Stretch([self._entry(rank, objs[rank]) if rank != root else (rank, None, ()) for rank in members])
            for members in self.members
        ]
        return gathered(stretches), [each.nbytes for each in stretches]

    def _scatter(self, message: Any, at: int) -> Any:
        """The part of this node: a bundle, or (a bundle, its first byte, its last); or the text of an error."""
        whole: Any = b""
        sizes: list[int] = []
        most = 0
        if at == self.node and type(message) is not str:
            whole, sizes = message
            most = max(sizes)
        given = message if type(message) is str else whole if nbytes_of(whole) <= self.leaders.inline else b""
        rows, fault = self._agree(given, sum(sizes), most)
        if fault is not None:
            return fault
        if rows.within[at]:
            return bytes(stretches(rows.inline(at))[self.node])
        mine = self._amid(lambda: self.leaders.scatter(whole, sizes, rows.numbers[at], at, self.hear))
        if at != self.node:
            return mine
        begin = sum(sizes[: self.node])
        end = begin + sizes[self.node]
        return (whole, begin, end) if type(whole) is Bundle else whole[begin:end]

    @named()
    def allgather(self, obj: object) -> list[Any]:
        own = self._attempt(lambda: self._given(obj))
        if self.leads:
            bundles = [own, *[self._receive(rank) for rank in self.mine]]
            message = self._attempt(lambda: self._allgather(bundles))
            self._down(message)
        else:
            self._up(own)
            message = self._result()
        return self._listed(self._checked(message), len(self.members[self.node]) == 1)

    def _allgather(self, bundles: list[Any]) -> Any:
        """The bundles of all ranks; or the text of an error."""
        mine: Any = next((bundle for bundle in bundles if type(bundle) is str), None)
        total = 0
        if mine is None:
            total = sum(map(nbytes_of, bundles))
            mine = gathered(bundles) if total <= SMALL else b""
        rows, fault = self._agree(mine, total)
        if fault is not None:
            return fault
        within = [rows.inline(node) for node, nbytes in enumerate(rows.within) if nbytes]
        got = [gathered(within)] if within else []
        if rows.total:
            got.append(self._amid(lambda: self.leaders.allgather(bundles, rows, self.hear), OverflowError))
        return got

    @named()
    def alltoall(self, objs: object) -> list[Any]:
        direct: dict[int, Packet] = {}
        items: list[Any] = []
        made = self._attempt(lambda: self._for_nodes(items, listed(objs, self.size), direct))
        if self.leads:
            given = [made, *[self._receive(rank) for rank in self.mine]]
            message = self._attempt(lambda: self._alltoall(given))
            self._down(message)
        else:
            self._up(made)
            message = self._result()
        self._checked(message)
        here = [rank for rank in self._from_here() if self.node_of[rank] == self.node]
        requests = [self.put(rank, self.seal(items[rank])) for rank in here]
        requests += [self.put(rank, packet) for rank, packet in direct.items()]
        result: list[Any] = [None] * self.size
        result[self.rank] = copy_of(self.seal(items[self.rank]))
        last = []
        for rank, obj in objects(message, own=len(self.members[self.node]) == 1, only=self.place):
            if obj is ELSEWHERE:
                last.append(rank)
            else:
                result[rank] = obj
        for rank in reversed(here):
            result[rank] = self.take(rank)
        for rank in last:
            result[rank] = self.take(rank).open()
        self.finish(requests)
        return result

    def _from_here(self) -> list[int]:
        """The other ranks, beginning with the next one."""
        return [(self.rank + i) % self.size for i in range(1, self.size)]

    def _for_nodes(self, items: list[Any], objs: list[Any], direct: dict[int, Packet]) -> tuple[Any, list[int]]:
        """(the objects for each other node one after the other, the bytes of each node's). `items` gets the objects;
        `direct` gets the packets of large ones, each with the rank that it is for.
        """
        items += objs
        stretches = []
        for node, members in enumerate(self.members):
            if node == self.node:
                continue
            entries: list[Any] = []
            for rank in members:
                data, parts = packing.apart(self.seal(objs[rank]))
                if len(data) + sum([part.nbytes for part in parts]) >= _DIRECT:
                    direct[rank] = Packet(data, parts)
                    entries.append((self.rank, None, ()))
                else:
                    entries.append((self.rank, data, parts))
            stretches.append(Stretch(entries))
        sizes = [each.nbytes for each in stretches]
        sizes.insert(self.node, 0)
        return gathered(stretches), sizes

    def _alltoall(self, given: list[Any]) -> Any:
        """What the ranks of other nodes give to those of this one; or the text of an error."""
        message = next((each for each in given if type(each) is str), None)
        parts: list[list[Any]] = [[] for _ in self.members]
        totals = [0] * len(parts)
        if message is None:
            for bundle, sizes in given:
                view, at = view_of(bundle), 0
                for node, nbytes in enumerate(sizes):
                    if nbytes:
                        parts[node].append(view[at : at + nbytes])
                        totals[node] += nbytes
                        at += nbytes
        mine: Any = b"" if message is None else message
        if message is None and sum(totals) <= self.leaders.inline:
            mine = b"".join([piece for pieces in parts for piece in pieces])
        rows, fault = self._agree(mine, sum(totals), max(totals))
        if fault is not None:
            return fault
        if min(rows.within) > 0:  # all of it is in the rows
            return b"".join([piece for node in range(len(parts)) for piece in self._for_me(rows, node)])
        got = self._amid(lambda: self.leaders.alltoall(parts, totals, max(rows.numbers), self.hear))
        return gathered([got]) if type(got) is bytes and len(got) > SMALL and self.mine else got

    def _for_me(self, rows: Any, node: int) -> list[memoryview]:
        """The stretches in a leader's row that are for this node. Each rank of its node has one for each other node."""
        if node == self.node:
            return []
        count = len(self.members[node])
        begin = count * (self.node - (self.node > node))
        return stretches(rows.inline(node))[begin : begin + count]

    # ---- reductions

    @named(2)
    def reduce(self, obj: object, op: object, root: int) -> Any:
        op, at = operation(op), self.node_of[root]
        value, found = self._met(obj, op)
        message: object = None  # what another leader gives to this one, for the root
        if self.leads:
            if isinstance(found, str):
                value = Fault(found)
            elif found:
                value = self.tried(lambda: self._by_mpi(value, obj, op))
            else:
                value = self._by_ranks(obj, value, op)
                if self.node == at and self.rank != 0:
                    message = self.take(0)
                elif self.rank == 0 and at != self.node:
                    value = self.hand(self.members[at][0], value)
            if self.node == at and self.rank != root:
                self._down(self._for_root(value) if message is None else message, [root])
        elif self.rank == root:
            message = self._result()
        if self.rank == root:
            if message is not None:
                value = self.opened(message)
            elif isinstance(value, Division):
                value = value.result(False)
        self._checked(value.text if isinstance(value, Fault) else None)
        return value if self.rank == root else None

    def _for_root(self, value: object) -> object:
        """What a leader gives to the root in its node: a packet, or the text of an error. None: the root has a part in
        the block of the result.
        """
        if isinstance(value, Division):
            return None
        packed = self._packed(value)
        return packed.text if isinstance(packed, Fault) else packed

    @named()
    def allreduce(self, obj: object, op: object) -> Any:
        op = operation(op)
        value, found = self._met(obj, op)
        if not self.leads:
            message = self._checked(self._result())
            if message is None and isinstance(value, Division):  # the result is in the block that all have a part in
                return value.result(True)
            return next(objects(message))[1]
        if isinstance(found, str):
            self._down(found)
            return self._checked(found)
        if found and isinstance(value, Division):
            division = value
            message = self._attempt(lambda: self._by_mpi(division, obj, op))
            message = message if type(message) is str else None
            self._down(message)
            self._checked(message)
            return division.result(True)
        if found:
            bundle = self._attempt(lambda: self._by_mpi_for_all(value, op))
            self._down(bundle)
            return next(objects(self._checked(bundle), own=not self.mine))[1]
        value = self._by_ranks(obj, value, op)
        message = None
        if self.rank == 0:
            message = value.text if isinstance(value, Fault) else self._attempt(lambda: self._for_all(0, value))
        got = self._spread(message, 0)
        if self.rank:
            return got
        self._checked(value.text if isinstance(value, Fault) else None)
        return value

    def _met(self, obj: object, op: Operation) -> tuple[object, str | int]:
        """(what `along` gives of this rank's node, what the leaders found): the text of an error, 1 if MPI can reduce
        the values of all nodes, else 0.
        """
        value = self.along(self.members[self.node], obj, op) if self.in_order else obj
        if not self.leads:
            return value if self.in_order else self.along(range(self.size), obj, op, True), 0
        if isinstance(value, Fault):
            return value, self._agree(value.text)[1] or value.text
        sign = 0
        if isinstance(value, Division):
            sign = signature(value.array, op, value.shape, value.has_nan)
        elif self.in_order:
            sign = signature(value, op)
        rows, fault = self._agree(b"", 0, sign)
        return value, fault if fault is not None else int(sign != 0 and rows.numbers.count(sign) == len(rows.numbers))

    def _by_mpi(self, value: object, obj: object, op: Operation) -> object:
        """MPI's reduction of the nodes' arrays, in the memory of this node's; not in the caller's own."""
        import numpy as np

        result = np.array(value) if value is obj else value  # `copy_of` would leave a read-only array read-only
        array = result.array if isinstance(result, Division) else result
        self._amid(lambda: self.leaders.allreduce(array, datatype_of(array), operation_of(op), self.hear))
        return result

    def _by_mpi_for_all(self, value: Any, op: Operation) -> Any:
        """MPI's reduction of the nodes' arrays, as a bundle for the ranks of this node."""
        if not value.flags.writeable:  # or the result would not be writable either
            value = value.copy()
        bundle = self._bundled(0, value)
        buffer = only_buffer(bundle) if type(bundle) is Bundle else None
        if buffer is not None and buffer.nbytes == value.nbytes:  # the array lies in the block: it is reduced there
            import numpy as np

            array = np.frombuffer(buffer, value.dtype)
        else:
            bundle, array = None, value.copy()
        self._amid(lambda: self.leaders.allreduce(array, datatype_of(value), operation_of(op), self.hear))
        return bundle or self._bundled(0, array)

    def _by_ranks(self, obj: object, value: object, op: Operation) -> object:
        """The reduction of the values of all nodes, in the order of ranks, at rank 0; of a leader."""
        ranks = [members[0] for members in self.members] if self.in_order else range(self.size)
        of_caller = value is obj
        if isinstance(value, Division):
            value = value.result(False)
        value = self.along(ranks, value, op, True, of_caller)
        return self._own(value, obj) if self.rank == 0 else value

    @named()
    def scan(self, obj: object, op: object, exclusive: bool = False) -> Any:
        if self.leads:
            self._agree(b"")
        return self._scan(obj, operation(op), exclusive)
