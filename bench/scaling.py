"""The Python work of one rank in collective operations of 1,000 nodes of 64 ranks, without such a machine.

    python bench/scaling.py [--nodes 1000] [--ranks 64] [--json FILE]

One process plays one rank at a time: the leader of a node, or another rank of it. Its messages from ranks of its node
are made beforehand, and MPI's operations among leaders are replaced: they fill what is received with what other nodes
would send, and are complete at once. So the figures hold what our code does in a call (packing, tables, copies,
unpickling), but no wait and no network. Each is the least of several calls.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from array import array
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from mpi4py import MPI

from copyless._transfer.packing import apart
from copyless.comm import _bundles, _collectives, _slices
from copyless.comm._mpi_engine import Leaders
from copyless.comm._mpi_nodes import Nodes
from copyless.comm._packets import Packet

OBJECT = {"step": 1, "name": "left"}


class Done:
    """A request that is complete."""

    def Test(self) -> bool:
        return True

    def wait(self) -> None:
        pass


class Network:
    """What the leaders' communicator does, as if all nodes had called the same with contents of the same sizes."""

    def __init__(self, node: int, nodes: int) -> None:
        self.node, self.nodes = node, nodes
        self.other: Any = None  # what each other node gives; None: the same as this one
        self.root = 0

    def Iallgather(self, sent: Any, received: Any) -> Done:
        row, nbytes, _ = sent
        rows = [bytes(row)] * self.nodes
        if self.other is not None:
            code, _, _, number = memoryview(row)[:32].cast("q")
            theirs = array("q", (code, len(self.other), 0, number)).tobytes().ljust(nbytes, b"\0")
            rows = [theirs] * self.nodes
            rows[self.node] = bytes(row)
        received[0][:] = b"".join(rows)
        return Done()

    def _fill(self, into: Any, what: Any) -> None:
        view = memoryview(into[0])
        for begin, count in zip(into[1][1], into[1][0], strict=True):
            view[begin : begin + count] = what[:count]

    def Ibcast(self, buffer: Any, root: int) -> Done:
        return Done()

    def Igatherv(self, sent: Any, into: Any, root: int) -> Done:
        if into is not None:
            self._fill(into, memoryview(self.other))
        return Done()

    def Iallgatherv(self, sent: Any, into: Any) -> Done:
        begin = into[1][1][self.node]
        self._fill(into, bytes(memoryview(into[0])[begin : begin + into[1][0][self.node]]))
        return Done()

    def Iscatter(self, sent: Any, received: Any, root: int) -> Done:
        if sent is not None:
            view, size = memoryview(received[0]).cast("B"), memoryview(received[0]).nbytes
            view[:] = memoryview(sent[0]).cast("B")[:size]
        return Done()

    def Iscatterv(self, source: Any, into: Any, root: int) -> Done:
        return Done()

    def Ialltoall(self, sent: Any, received: Any) -> Done:
        memoryview(received[0]).cast("B")[:] = memoryview(sent[0]).cast("B")
        return Done()

    def Ialltoallv(self, source: Any, into: Any) -> Done:
        memoryview(into[0])[:] = memoryview(source[0])[: len(memoryview(into[0]))]
        return Done()

    def Iallreduce(self, sent: Any, target: Any, op: Any) -> Done:
        return Done()


class Ranks:
    """The communicator of a node's ranks: messages to them go nowhere, and those from them are there."""

    _late: Any = None

    def __init__(self) -> None:
        self.messages: Callable[[int], Any] = lambda rank: None
        self.channel: Any = None

    def _sealed(self, obj: Any) -> Any:
        return obj

    def _put(self, packet: Any, dest: int, tag: int) -> Done:
        return Done()

    def _take(self, source: int, tag: int) -> Any:
        return tag, (self.channel.number, self.messages(source))

    def _hear(self) -> list[Any]:
        return []


class Simulated(Nodes):
    def failure(self, text: str) -> Exception:
        return ValueError(text)


def simulated(rank: int, nodes: int, ranks: int) -> tuple[Simulated, Network, Ranks]:
    names = [(b"a node of a job", str(number // ranks), None) for number in range(nodes * ranks)]
    network, comm = Network(rank // ranks, nodes), Ranks()
    made = Simulated(
        comm, rank, nodes * ranks, names, lambda node, count, leads: Leaders(network, node, count) if leads else None
    )
    comm.channel = made
    return made, network, comm


def least(call: Callable[[], Any], times: int = 5, limit: float = 20.0) -> float:
    found, began = [], time.perf_counter()
    for _ in range(times):
        start = time.perf_counter()
        call()
        found.append(time.perf_counter() - start)
        if time.perf_counter() - began > limit:
            break
    return min(found)


def measure(nodes: int, ranks: int) -> dict[str, float]:
    size = nodes * ranks
    figures: dict[str, float] = {}
    figures["tables of a communicator, once"] = least(lambda: simulated(0, nodes, ranks), 3)
    leader, network, comm = simulated(0, nodes, ranks)
    member, _, its = simulated(1, nodes, ranks)

    def bundle(keys: Any, obj: Any = OBJECT) -> Any:
        return _bundles.gathered([_bundles.Stretch([(key, *apart(obj))]) for key in keys])

    one = bundle([0])
    figures["bcast of a small dict, root"] = least(lambda: leader.bcast(OBJECT, 0), 50)
    network.other = b""
    its.messages = lambda rank: one
    figures["bcast of a small dict, rank of a node"] = least(lambda: member.bcast(None, 0), 50)
    # gather: the root is the leader
    node = bundle(range(ranks))
    network.other = bytes(_bundles.view_of(node))
    comm.messages = lambda rank: one
    figures["gather of small dicts, root"] = least(lambda: leader.gather(OBJECT, 0), 3)
    network.other = None
    figures["gather of small dicts, leader"] = least(lambda: leader.gather(OBJECT, size - 1), 10)
    figures["gather of small dicts, rank of a node"] = least(lambda: member.gather(OBJECT, 0), 50)
    figures["scatter of small dicts, root"] = least(lambda: leader.scatter([OBJECT] * size, 0), 3)
    figures["allgather of small dicts, leader"] = least(lambda: leader.allgather(OBJECT), 3)
    whole = [_bundles.gathered([node] * nodes)]
    its.messages = lambda rank: whole
    figures["allgather of small dicts, rank of a node"] = least(lambda: member.allgather(OBJECT), 3)
    # alltoall
    items: list[Any] = []
    given = leader._for_nodes(items, [OBJECT] * size, {})
    turns = {"up": True}

    def of_alltoall(rank: int) -> Any:
        return given if turns["up"] else Packet.of(OBJECT)

    class Toggled:
        def __init__(self, call: Callable[[], Any]) -> None:
            self.call = call

        def __call__(self) -> None:
            turns["up"] = True
            self.call()

    comm.messages = of_alltoall
    alltoall = leader._alltoall

    def then_down(parts: Any) -> Any:
        got = alltoall(parts)
        turns["up"] = False
        return got

    leader._alltoall = then_down  # type: ignore[method-assign]
    figures["alltoall of small dicts, leader"] = least(Toggled(lambda: leader.alltoall([OBJECT] * size)), 2)
    result = _bundles.gathered([_bundles.Stretch([(key, *apart(OBJECT)) for key in range(ranks)])] * (size - ranks))
    answers = iter(())

    def of_member(rank: int) -> Any:
        return next(answers, OBJECT)

    its.messages = of_member

    def alltoall_of_member() -> None:
        nonlocal answers
        answers = iter([result])
        member.alltoall([OBJECT] * size)

    figures["alltoall of small dicts, rank of a node"] = least(alltoall_of_member, 2)
    # reductions
    numbers = np.ones(1 << 17)
    comm.messages = lambda rank: Packet.of(1)
    figures["allreduce of a number, rank 0"] = least(lambda: leader.allreduce(1, _collectives.SUM), 20)
    made = _slices.offer_of(numbers, _collectives.SUM)
    assert made is not None
    (signature, one_array), _ = made  # (it stands for those of all ranks)

    def of_slices() -> Iterator[Any]:
        """What a leader takes: offers of its children in the tree, then that each rank has written its slice."""
        below = 1
        while below < ranks:
            count = min(below, ranks - below)
            yield (signature, one_array * count), None, list(range(below, below + count))
            below *= 2
        while True:
            yield False

    def reduced_in_slices() -> None:
        messages = of_slices()
        comm.messages = lambda rank: next(messages)
        leader.allreduce(numbers, _collectives.SUM)

    figures["allreduce of 1 MiB by MPI, leader"] = least(reduced_in_slices, 10)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--ranks", type=int, default=64)
    parser.add_argument("--json")
    args = parser.parse_args()
    figures = measure(args.nodes, args.ranks)
    print(f"{args.nodes} nodes of {args.ranks} ranks, {os.cpu_count()} processors, Python {sys.version.split()[0]}")
    print(f"MPI: {MPI.get_vendor()[0]}, whose operations are not called")
    for name, seconds in figures.items():
        print(f"{name:45s} {seconds * 1e3:12.3f} ms")
    if args.json:
        with open(args.json, "w") as file:
            json.dump(figures, file, indent=2)


if __name__ == "__main__":
    main()
