"""The methods that the communicators of both transports have. Each is written once, over a few primitives of its
transport.

`comm.local` and `comm.mpi` differ in how a message travels. What consists of sends, receives and waits is the same:

    class               methods                                    primitives
    RequestMethods      test, Wait, waitall, testany, ...          _look _await _take _finish _serve _each _await_one
    _new_status CollectiveMethods   bcast, gather, alltoall, reduce, ...       _together _root _operation _sealed
    ScanMethods         scan, exscan                               the same NeighborMethods     neighbor_allgather,
    neighbor_alltoall      the same, and _is_grid _PROC_NULL inedges outedges
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from copyless.comm._constants import SUM, Operation

__all__ = ["CollectiveMethods", "NeighborMethods", "RequestMethods", "ScanMethods"]


class RequestMethods:
    """Testing and waiting for requests: for one, or for several at once."""

    __slots__ = ()
    _UNDEFINED: int  # what the transport returns if all requests are null

    # ---- primitives

    def _look(self) -> bool:
        """Whether the request is complete."""
        raise NotImplementedError

    def _await(self) -> None:
        """Wait until the request is complete."""
        raise NotImplementedError

    def _take(self, status: Any) -> Any:
        """The received object. The request is null afterwards."""
        raise NotImplementedError

    def _finish(self, status: Any) -> Any:
        """Make the request null and drop the received object."""
        raise NotImplementedError

    @classmethod
    def _serve(cls) -> None:
        """Hand messages that have arrived to pending receives."""

    @classmethod
    def _each(cls, requests: Sequence[object]) -> Sequence[Any]:
        """The requests, as objects of this class."""
        return requests

    @classmethod
    def _await_all(cls, requests: Sequence[Any]) -> None:
        """Wait until all requests are complete."""
        for request in requests:
            request._await()

    @classmethod
    def _await_one(cls, requests: Sequence[object]) -> None:
        """Wait until one of these requests is complete. None of them is null."""
        raise NotImplementedError

    @classmethod
    def _new_status(cls) -> Any:
        raise NotImplementedError

    # ---- one request

    def test(self, status: object = None) -> tuple[bool, Any]:
        """(whether the request is complete, the received object or None)."""
        self._serve()
        return (True, self._take(status)) if self._look() else (False, None)

    def wait(self, status: object = None) -> Any:
        """Wait until the request is complete. Returns the received object, or None for a send."""
        self._await()
        return self._take(status)

    def Test(self, status: object = None) -> bool:
        """Whether the request is complete. The received object is dropped."""
        self._serve()
        if not self._look():
            return False
        self._finish(status)
        return True

    def Wait(self, status: object = None) -> bool:
        """Wait until the request is complete. The received object is dropped."""
        self._await()
        self._finish(status)
        return True

    # ---- several requests

    @classmethod
    def get_status_all(cls, requests: Sequence[object], statuses: object = None) -> bool:
        """Whether all requests are complete. They are not changed."""
        return all([request.get_status(status) for request, status in cls._with(cls._each(requests), statuses)])  # noqa: C419

    @classmethod
    def testall(cls, requests: Sequence[Any], statuses: Any = None) -> tuple[bool, Any]:
        """(whether all requests are complete, the list of received objects or None)."""
        cls._serve()
        requests = cls._each(requests)
        pairs = cls._with(requests, statuses)
        if not all(request._look() for request in requests):
            return False, None
        return True, [request._take(status) for request, status in pairs]

    @classmethod
    def waitall(cls, requests: Sequence[object], statuses: object = None) -> list[Any]:
        """Wait until all requests are complete. Returns the list of received objects."""
        requests = cls._each(requests)
        pairs = cls._with(requests, statuses)
        cls._await_all(requests)
        return [request._take(status) for request, status in pairs]

    @classmethod
    def testany(cls, requests: Sequence[Any], status: Any = None) -> tuple[int, bool, Any]:
        """(index of a complete request, whether there is one, its object); (UNDEFINED, True, None) if all are null."""
        cls._serve()
        requests = cls._each(requests)
        found = cls._first_ended(requests)
        if found is None:
            return cls._UNDEFINED, False, None
        return found, True, None if found == cls._UNDEFINED else requests[found]._take(status)

    @classmethod
    def waitany(cls, requests: Sequence[Any], status: Any = None) -> tuple[int, Any]:
        """Wait until one request is complete. (its index, its object); (UNDEFINED, None) if all are null."""
        requests = cls._each(requests)
        found = cls._await_first(requests)
        return found, None if found == cls._UNDEFINED else requests[found]._take(status)

    @classmethod
    def testsome(cls, requests: Sequence[object], statuses: object = None) -> tuple[list[int] | None, list[Any] | None]:
        """(indices of the complete requests, their objects); (None, None) if all are null."""
        cls._serve()
        requests = cls._each(requests)
        found = cls._all_ended(requests)
        if found is None:
            return None, None
        return found, [requests[i]._take(status) for i, status in cls._with(found, statuses)]

    @classmethod
    def waitsome(cls, requests: Sequence[object], statuses: object = None) -> tuple[list[int] | None, list[Any] | None]:
        """Wait until at least one request is complete; the result is that of `testsome`."""
        requests = cls._each(requests)
        cls._await_first(requests)
        return cls.testsome(requests, statuses)

    @classmethod
    def Testall(cls, requests: Sequence[Any], statuses: Any = None) -> bool:
        """`testall` without the received objects, which are dropped."""
        cls._serve()
        requests = cls._each(requests)
        if not all(request._look() for request in requests):
            return False
        for request, status in cls._with(requests, statuses):
            request._finish(status)
        return True

    @classmethod
    def Waitall(cls, requests: Sequence[object], statuses: object = None) -> bool:
        """`waitall` without the received objects, which are dropped."""
        requests = cls._each(requests)
        cls._await_all(requests)
        for request, status in cls._with(requests, statuses):
            request._finish(status)
        return True

    @classmethod
    def Testany(cls, requests: Sequence[Any], status: Any = None) -> tuple[int, bool]:
        """`testany` without the received object, which is dropped."""
        cls._serve()
        requests = cls._each(requests)
        found = cls._first_ended(requests)
        if found is None:
            return cls._UNDEFINED, False
        if found != cls._UNDEFINED:
            requests[found]._finish(status)
        return found, True

    @classmethod
    def Waitany(cls, requests: Sequence[Any], status: Any = None) -> int:
        """`waitany` without the received object, which is dropped."""
        requests = cls._each(requests)
        found = cls._await_first(requests)
        if found != cls._UNDEFINED:
            requests[found]._finish(status)
        return found

    @classmethod
    def Testsome(cls, requests: Sequence[object], statuses: object = None) -> list[int] | None:
        """`testsome` without the received objects, which are dropped."""
        cls._serve()
        requests = cls._each(requests)
        found = cls._all_ended(requests)
        for i, status in cls._with(found or [], statuses):
            requests[i]._finish(status)
        return found

    @classmethod
    def Waitsome(cls, requests: Sequence[object], statuses: object = None) -> list[int] | None:
        """`waitsome` without the received objects, which are dropped."""
        requests = cls._each(requests)
        cls._await_first(requests)
        return cls.Testsome(requests, statuses)

    @classmethod
    def _first_ended(cls, requests: Sequence[Any]) -> int | None:
        """The index of the first complete request; UNDEFINED if all are null."""
        active = False
        for i, request in enumerate(requests):
            if request:
                active = True
                if request._look():
                    return i
        return None if active else cls._UNDEFINED

    @classmethod
    def _all_ended(cls, requests: Sequence[Any]) -> list[int] | None:
        """The indices of the complete requests; None if all are null."""
        return [i for i, request in enumerate(requests) if request and request._look()] if any(requests) else None

    @classmethod
    def _await_first(cls, requests: Sequence[object]) -> int:
        """Wait until one request is complete; the result is that of `_first_ended`."""
        while (first := cls._first_ended(requests)) is None:
            cls._await_one([request for request in requests if request])
        return first

    @classmethod
    def _with(cls, requests: Sequence[Any], statuses: Any) -> list[tuple[Any, Any]]:
        """The requests, each with its status. A list of statuses is extended if it is too short; for a tuple, the
        rest have none.
        """
        if statuses is None:
            return [(request, None) for request in requests]
        if isinstance(statuses, list):
            statuses.extend(cls._new_status() for _ in range(len(requests) - len(statuses)))
        return list(zip(requests, [*statuses, *[None] * len(requests)], strict=False))


class CollectiveMethods:
    """Operations that all ranks of a communicator call together."""

    __slots__ = ()

    def _together(self) -> Any:
        """The collective operations, on a communicator of their own."""
        raise NotImplementedError

    def _root(self, root: int) -> int:
        """The root, checked."""
        raise NotImplementedError

    def _operation(self, op: object) -> Any:
        """A reduction as a function of two objects."""
        return op

    def _sealed(self, obj: object) -> Any:
        """The object, or what it is made by a caller's own functions."""
        raise NotImplementedError

    def bcast(self, obj: object = None, root: int = 0, *, readonly: bool = False, progress: bool = False) -> Any:
        """Send the root's object to every rank.

        The object is sent once to each node. There its buffers are copied once, into one block. The arrays of each rank
        are copy-on-write views of the block: writable and private, and pages that no rank changes exist once.

        Parameters
        ----------
        obj
            The object, at the root; ignored elsewhere.
        root : int
            The rank that has the object.
        readonly : bool
            Let the arrays be the block itself, read-only. This saves mapping the block again.
        progress : bool
            Show a progress bar at the root for 16 MiB or more.

        Examples
        --------
        >>> from copyless import comm
        >>> comm.world().bcast("settings")
        'settings'
        """
        return self._together().bcast(obj, self._root(root), readonly, progress)

    def gather(self, sendobj: object, root: int = 0) -> list[Any] | None:
        """The list of the objects of all ranks, at the root; None at the other ranks."""
        return self._together().gather(sendobj, self._root(root))  # type: ignore[no-any-return]

    def scatter(self, sendobj: object = None, root: int = 0) -> Any:
        """Send to each rank its item of the root's list, which must have one item for each rank."""
        return self._together().scatter(sendobj, self._root(root))

    def allgather(self, sendobj: object) -> list[Any]:
        """The list of the objects of all ranks, at every rank."""
        return self._together().allgather(sendobj)  # type: ignore[no-any-return]

    def alltoall(self, sendobj: object) -> list[Any]:
        """Send item i of this rank's list to rank i. Returns the list of the objects that the ranks sent to this
        one.
        """
        return self._together().alltoall(sendobj)  # type: ignore[no-any-return]

    def reduce(self, sendobj: object, op: Operation = SUM, root: int = 0) -> Any:
        """Combine the objects of all ranks with `op`, in the order of ranks. The result is at the root; None at the
        other ranks.

        The order is that of a binomial tree, ((0 1) (2 3)) ((4 5) (6 7)), also where the ranks of a node each compute a
        slice of large arrays. Between nodes, MPI may use another order for arrays of numbers.

        Examples
        --------
        >>> from copyless import comm
        >>> comm.world().reduce(3, comm.MAX)
        3
        """
        return self._together().reduce(sendobj, self._operation(op), self._root(root))

    def allreduce(self, sendobj: object, op: Operation = SUM) -> Any:
        """`reduce` with the result at every rank."""
        return self._together().allreduce(sendobj, self._operation(op))


class ScanMethods(CollectiveMethods):
    """Reductions over the preceding ranks, on a communicator of one group."""

    __slots__ = ()

    def scan(self, sendobj: object, op: Operation = SUM) -> Any:
        """Combine the objects of ranks 0 to this one with `op`, in the order of ranks."""
        return self._together().scan(sendobj, self._operation(op))

    def exscan(self, sendobj: object, op: Operation = SUM) -> Any:
        """Combine the objects of the ranks before this one with `op`, in the order of ranks; None at rank 0."""
        return self._together().scan(sendobj, self._operation(op), exclusive=True)


class NeighborMethods(CollectiveMethods):
    """Operations that the ranks of a communicator with a topology call together."""

    __slots__ = ()
    _PROC_NULL: int
    inedges: list[int]
    outedges: list[int]

    def _is_grid(self) -> bool:
        """Whether the neighbours are the previous and the next rank along each dimension."""
        return True

    def neighbor_allgather(self, sendobj: object) -> list[Any]:
        """The objects of the neighbours that send to this rank, in the order of `inedges`; None where there is no
        rank.
        """
        return self.neighbor_alltoall([sendobj] * len(self.outedges))

    def neighbor_alltoall(self, sendobj: Sequence[Any] | None) -> list[Any]:
        """Send one item to each neighbour in `outedges`. Returns the objects from the neighbours in `inedges`."""
        sources, dests = self.inedges, self.outedges
        objs = [None] * len(dests) if sendobj is None else list(sendobj)
        if len(objs) != len(dests):
            raise ValueError(f"expecting {len(dests)} items, got {len(objs)}")
        # On a grid, an object that is sent up arrives from below, also if both neighbours are the same rank.
        apart, across = (1, 1) if self._is_grid() else (0, 0)
        nobody = self._PROC_NULL
        sends = [
            (dest, apart * i, obj) for i, (obj, dest) in enumerate(zip(objs, dests, strict=True)) if dest != nobody
        ]
        receives = [(source, apart * (i ^ across)) for i, source in enumerate(sources) if source != nobody]
        got = iter(self._together().neighbor_alltoall(sends, receives))
        return [None if source == nobody else next(got) for source in sources]
