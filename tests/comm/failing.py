"""Reductions in which a rank fails: every rank that waits is told, no memory is left, and the next operation holds.

Run on 4 ranks, which are on one node or on two.
"""

import gc
import sys

import numpy as np

from copyless import comm
from copyless.cli.look import listing

world = comm.world()
rank, size = world.rank, world.size
transport = sys.modules[type(world).__module__]
LARGE = 40_000  # numbers


class Stubborn:
    def __reduce__(self):
        raise RuntimeError("does not pickle")

    def __add__(self, other):
        return self

    __radd__ = __add__


class Unloadable(list):
    def __reduce__(self):
        return int, ("not a number",)


def own(a, b):
    return a + b


def refuses(a, b):
    raise ZeroDivisionError("as planned")


def check(what, told, call, *args):
    """The ranks in `told` have the error; others may. Who has it from another rank knows which one failed."""
    error = None
    try:
        call(*args)
    except Exception as raised:
        error = raised
    assert error is not None or rank not in told, (what, call, args)
    if error is not None:
        assert what in str(error), (error, what, call, args)
        assert not isinstance(error, transport.CommError) or "failed in" in str(error), (error, what, call, args)
    del error
    assert world.allgather(rank) == list(range(size)), (what, call, args)
    got = world.allreduce(np.full(LARGE, rank))
    assert (got == sum(range(size))).all(), (what, call, args)


everyone = set(range(size))


def what_does_not_fit_or_cannot_be_sent(bad):
    large = np.ones(LARGE)
    above = set(range(bad + 1, size))
    unlike = np.ones(LARGE + 1) if rank == bad else large
    for op in (comm.SUM, comm.MAX, own):
        check(f"({LARGE + 1},)", everyone, world.allreduce, unlike, op)
    check("'add'", everyone, world.allreduce, np.full(LARGE, "text") if rank == bad else large)
    for root in everyone:
        check(f"({LARGE + 1},)", {root}, world.reduce, unlike, comm.SUM, root)
    check("broadcast", above | {bad} - {0}, world.scan, unlike)
    for n in (1, 4000):
        for op in (comm.SUM, own):
            for one, what in ((Stubborn(), "does not pickle"), (Unloadable(), "not a number")):
                mine = [one] * n if rank == bad else [1] * n
                check(what, everyone, world.allreduce, mine, op)
                check(what, {3}, world.reduce, mine, op, 3)
                if above:
                    check(what, above, world.scan, mine, op)
                    check(what, above, world.exscan, mine, op)


def operations_that_raise():
    large = np.ones(LARGE)
    for bad in (0, 2):  # the ranks that combine
        fails = refuses if rank == bad else own
        for mine in (1, [rank] * 4000, large, {"a": large}):
            check("", everyone, world.allreduce, mine, fails)
            for root in everyone:
                check("", {bad, root}, world.reduce, mine, fails, root)
    for bad, needs in ((1, {1, 3}), (2, {2}), (3, {3})):  # who needs what that rank combines
        fails = refuses if rank == bad else own
        for mine in (1, [rank] * 4000, large):
            check("as planned", needs, world.scan, mine, fails)
            check("as planned", needs, world.exscan, mine, fails)
    check("does not pickle", everyone, world.allreduce, 1, lambda a, b: Stubborn())
    check("does not pickle", {2}, world.reduce, 1, lambda a, b: Stubborn(), 2)


def one_slice_that_raises():
    steep = np.ones(LARGE)
    steep[-1] = 1e300
    with np.errstate(over="raise"):
        check("overflow", everyone, world.allreduce, steep, comm.PROD)
        check("overflow", {1}, world.reduce, steep, comm.PROD, 1)


def between_groups():
    half = world.Split(rank % 2, rank)
    inter = half.Create_intercomm(0, world, 1 - rank % 2, 5)
    for bad in (0, 1):  # the first of a group, which combines
        fails = refuses if rank == bad else own
        root = transport.ROOT if rank == 1 - bad else transport.PROC_NULL if rank % 2 == 1 - bad else 0
        for mine in (1, [1] * 4000, np.ones(LARGE)):
            check("as planned", everyone, inter.allreduce, mine, fails)
            check("as planned", {bad, 1 - bad}, inter.reduce, mine, fails, root)
            assert inter.allgather(rank) == [r for r in range(size) if r % 2 != rank % 2]
            assert inter.allreduce(1) == size // 2
            inter.barrier()


for rank_of_it in range(size):
    what_does_not_fit_or_cannot_be_sent(rank_of_it)
operations_that_raise()
one_slice_that_raises()
between_groups()
gc.collect()
world.barrier()
if rank == 0:
    left = [block for block in listing()["blocks"] if block["bytes"] >= 8 * LARGE]
    assert not left, left
world.barrier()
print("held", flush=True)
