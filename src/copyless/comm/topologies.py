"""A communicator on shared memory whose ranks form a grid. Mirrors `mpi4py.MPI.Cartcomm`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from copyless.comm import collectives
from copyless.comm.constants import PROC_NULL, UNDEFINED
from copyless.comm.local import Intracomm

__all__ = ["Cartcomm"]


class Cartcomm(Intracomm):
    """Cartcomm(comm=None)

    A communicator whose ranks form a grid, made by `Intracomm.Create_cart`. Mirrors `mpi4py.MPI.Cartcomm`.

    Examples
    --------
    >>> from copyless import comm
    >>> grid = comm.local.world().Create_cart([1], periods=[True])
    >>> grid.dims, grid.coords, grid.Shift(0, 1)
    ([1], [0], (0, 0))
    """

    dims: list[int]
    periods: list[bool]

    @classmethod
    def _on(cls, comm: Intracomm, dims: Sequence[int], periods: Any) -> Cartcomm | None:
        dims = [int(dim) for dim in dims]
        periods = [False] * len(dims) if periods is None else periods
        periods = [bool(periods)] * len(dims) if isinstance(periods, (bool, int)) else [bool(period) for period in periods]
        places = math.prod(dims)
        if places > comm.size or min(dims, default=1) < 1 or len(periods) != len(dims):
            raise ValueError(f"a grid of {dims}, periods {periods}, has {places} places; there are {comm.size} ranks")
        part = comm.Split(0 if comm.rank < places else UNDEFINED, comm.rank)
        if part is None:
            return None
        made: Cartcomm = cls(part)
        made.dims, made.periods = dims, periods
        return made

    def Get_dim(self) -> int:
        """How many dimensions the grid has."""
        return len(self.dims)

    ndim = dim = property(Get_dim)

    def Get_topo(self) -> tuple[list[int], list[bool], list[int]]:
        """(ranks along each dimension, whether each is a ring, this rank's place)."""
        return self.dims, self.periods, self.coords

    topo = property(Get_topo)

    @property
    def coords(self) -> list[int]:
        """This rank's place."""
        return self.Get_coords(self.rank)

    def Get_coords(self, rank: int) -> list[int]:
        """A rank's place; the last dimension runs fastest."""
        place = []
        for dim in reversed(self.dims):
            rank, at = divmod(rank, dim)
            place.append(at)
        return place[::-1]

    def Get_cart_rank(self, coords: Sequence[int]) -> int:
        """The rank at a place. In a ring a place beyond the end is one from the beginning."""
        rank = 0
        for at, dim, ring in zip(coords, self.dims, self.periods, strict=True):
            if not ring and not 0 <= at < dim:
                raise ValueError(f"place {list(coords)} lies outside a grid of {self.dims}")
            rank = rank * dim + at % dim
        return rank

    def Shift(self, direction: int, disp: int) -> tuple[int, int]:
        """(the rank so far before this one along a dimension, the one so far behind it); PROC_NULL beyond the end."""
        return self._beside(direction, -disp), self._beside(direction, disp)

    def _beside(self, direction: int, by: int) -> int:
        coords = self.coords
        coords[direction] += by
        if not self.periods[direction] and not 0 <= coords[direction] < self.dims[direction]:
            return PROC_NULL
        return self.Get_cart_rank(coords)

    def Sub(self, remain_dims: Sequence[bool]) -> Cartcomm:
        """The grid of the ranks that differ from this one only along the dimensions that remain."""
        here = self.coords
        colour, key = 0, 0
        for at, dim, remains in zip(here, self.dims, remain_dims, strict=True):
            if remains:
                key = key * dim + at
            else:
                colour = colour * dim + at
        part = self.Split(colour, key)
        made: Cartcomm = Cartcomm(Intracomm(part))
        made.dims = [dim for dim, remains in zip(self.dims, remain_dims, strict=True) if remains]
        made.periods = [ring for ring, remains in zip(self.periods, remain_dims, strict=True) if remains]
        return made

    @property
    def inedges(self) -> list[int]:
        """The neighbours: before and behind, along each dimension."""
        return [rank for direction in range(len(self.dims)) for rank in self.Shift(direction, 1)]

    outedges = inedges

    def neighbor_allgather(self, sendobj: Any) -> list[Any]:
        """The objects of the neighbours, in the order of `inedges`; None for nobody."""
        return self.neighbor_alltoall([sendobj] * len(self.outedges))

    def neighbor_alltoall(self, sendobj: Sequence[Any] | None) -> list[Any]:
        """To each neighbour its item; the list of what came from each."""
        edges = self.outedges
        objs = [None] * len(edges) if sendobj is None else list(sendobj)
        if len(objs) != len(edges):
            raise ValueError(f"expecting {len(edges)} items, got {len(objs)}")
        twin, first = self._together().comm, collectives.tag_of("neighbor_alltoall")
        for i, (obj, rank) in enumerate(zip(objs, edges, strict=True)):
            if rank != PROC_NULL:
                twin._put(self._sealed(obj), rank, first + 16 * i)
        # What goes up arrives from below, also where both are the same rank.
        return [
            None if rank == PROC_NULL else twin.recv(None, rank, first + 16 * (i ^ 1)) for i, rank in enumerate(edges)
        ]
