"""Collective operations among nodes, with objects of all sizes from each rank: run under mpiexec with COPYLESS_NODES.

Each check compares what every rank has with what it must have.
"""

import operator
import sys

import numpy as np
from mpi4py import MPI

from copyless import comm
from copyless.comm import _slices
from copyless.comm._mpi_world import node
from copyless.comm.mpi import CommError

world = comm.world()
rank, size = world.rank, world.size
_names = world.allgather(node())
nodes_of = [list(dict.fromkeys(_names)).index(name) for name in _names]
SIZES = [0, 40, 100_000, 20 << 20]


def thing(r, turn):
    """The object of a rank: another size at each rank and turn."""
    nbytes = SIZES[(r + turn) % len(SIZES)]
    return (
        None if nbytes == 0 else {"rank": r, "a": np.full(nbytes, (r + turn) % 251, "u1"), "t": "x" * (nbytes % 1000)}
    )


def same(got, expected):
    if expected is None:
        return got is None
    return got["rank"] == expected["rank"] and got["t"] == expected["t"] and np.array_equal(got["a"], expected["a"])


def objects_of_unequal_sizes():
    for turn in range(len(SIZES)):
        for root in range(size):
            got = world.bcast(thing(root, turn) if rank == root else None, root)
            assert same(got, thing(root, turn)), ("bcast", turn, root)
            if got is not None:
                got["a"][:] = 255  # one's own: nobody else sees it
            got = world.gather(thing(rank, turn), root)
            assert rank == root or got is None
            assert rank != root or all(same(got[r], thing(r, turn)) for r in range(size)), ("gather", turn, root)
            got = world.scatter([thing(r, turn) for r in range(size)] if rank == root else None, root)
            assert same(got, thing(rank, turn)), ("scatter", turn, root)
        got = world.allgather(thing(rank, turn))
        assert all(same(got[r], thing(r, turn)) for r in range(size)), ("allgather", turn)
        for each in got:
            if each is not None:
                each["a"][:] = rank
        got = world.alltoall([thing(rank + r, turn) for r in range(size)])
        assert all(same(got[r], thing(r + rank, turn)) for r in range(size)), ("alltoall", turn)


def large_pickles_without_buffers():
    text = [f"{rank} {i}" for i in range(200_000)]
    got = world.allgather(text)
    assert all(each[7] == f"{r} 7" and len(each) == 200_000 for r, each in enumerate(got))
    assert world.bcast(text if rank == size - 1 else None, size - 1)[3] == f"{size - 1} 3"


def reductions_of_arrays_by_operations_of_mpi():
    for dtype in ("i1", "u2", "i4", "u8", "f4", "f8", "c8", "c16"):
        for count in (1, 10, 30_000):
            mine = ((np.arange(count) + rank) % 5 + 1).astype(dtype)
            all_of = np.array([((np.arange(count) + r) % 5 + 1).astype(dtype) for r in range(size)])
            for op, theirs in ((comm.SUM, np.add), (comm.PROD, np.multiply), (MPI.SUM, np.add)):
                expected = theirs.reduce(all_of, axis=0, dtype=dtype)
                got = world.allreduce(mine, op)
                assert got.dtype == mine.dtype
                assert got.flags.writeable
                assert np.array_equal(got, expected)
                got[:] = 0  # one's own
                for root in range(size):
                    got = world.reduce(mine, op, root)
                    assert got is None if rank != root else np.array_equal(got, expected)
            assert np.array_equal(mine, ((np.arange(count) + rank) % 5 + 1).astype(dtype))
            if mine.dtype.kind != "c":
                assert np.array_equal(world.allreduce(mine, comm.MAX), all_of.max(0))
                assert np.array_equal(world.allreduce(mine, MPI.MIN), all_of.min(0))
            if mine.dtype.kind in "iu":
                assert np.array_equal(world.allreduce(mine, comm.BXOR), np.bitwise_xor.reduce(all_of, axis=0))


def reductions_of_arrays_that_cannot_be_written_to():
    for count in (1, 1000, 100_000):
        mine = np.full(count, rank + 1.0)
        mine.flags.writeable = False
        got = world.allreduce(mine)
        assert (got == size * (size + 1) // 2).all()
        assert got.flags.writeable
        for root in range(size):
            got = world.reduce(mine, root=root)
            assert rank != root or (got == size * (size + 1) // 2).all()
            assert rank != root or got.flags.writeable


def reductions_of_arrays_that_mpi_does_otherwise():
    holed = np.array([1.0, np.nan if rank == size - 1 else 2.0, rank])
    got = world.allreduce(holed, comm.MAX)
    assert np.isnan(got[1])
    assert got[::2].tolist() == [1, size - 1]
    wide = np.arange(12.0).reshape(3, 4)
    got = world.allreduce(wide if rank else wide[0])  # NumPy broadcasts them
    assert np.array_equal(got, wide * (size - 1) + wide[0])
    got = world.allreduce(np.ones(3, "i4") if rank else np.ones(3))
    assert got.dtype == np.float64
    assert (got == size).all()
    got = world.allreduce(np.array([True, False]))
    assert got.dtype == bool
    assert got.tolist() == [True, False]
    got = world.allreduce(np.arange(3) == rank, comm.LOR)
    assert got.tolist() == [r < size for r in range(3)]
    turned = np.asfortranarray(wide)
    assert np.array_equal(world.reduce(turned, root=0), wide * size) if rank == 0 else world.reduce(turned) is None
    assert world.allreduce(np.float64(2)) == 2.0 * size


def large_arrays_are_reduced_in_slices_by_all_ranks_of_a_node():
    """In the order of ranks within a node; among nodes MPI chooses, and a sum of two does not depend on it."""
    nodes = [[r for r in range(size) if nodes_of[r] == node] for node in sorted(set(nodes_of))]
    here = nodes[nodes_of[rank]]
    written = []
    compute = _slices.Division.compute

    def counted(division):
        compute(division)
        written.append(rank)

    def parts(of):
        return [_slices.combined([of(r) for r in members], operator.add) for members in nodes]

    def same(got, expected):
        return got.dtype == expected.dtype and got.shape == expected.shape and np.array_equal(got, expected, True)

    def every_way(of, expected, op, slices):
        mine = of(rank)
        kept = mine.copy()
        for root in (None, *range(size)):
            written.clear()
            got = world.allreduce(mine, op) if root is None else world.reduce(mine, op, root)
            assert len(written) == (len(here) > 1 and slices), (op, root, written)
            if root in (None, rank):
                assert same(got, expected), (op, root)
                got[...] = 0  # one's own
            else:
                assert got is None
            assert same(mine, kept)

    def draw(r, dtype="f8", count=60_002):
        return (np.random.default_rng(r).standard_normal(count) * 100).astype(dtype)

    _slices.Division.compute = counted
    try:
        two = parts(draw)
        if len(two) == 2:
            every_way(draw, two[0] + two[1], comm.SUM, True)
            of = lambda r: draw(r, "c16").reshape(-1, 2)  # noqa: E731
            two = parts(of)
            every_way(of, two[0] + two[1], MPI.SUM, True)
        whole = [draw(r, "i8") for r in range(size)]
        every_way(lambda r: whole[r], np.bitwise_xor.reduce(whole), comm.BXOR, True)
        every_way(lambda r: whole[r][::2], np.add.reduce(whole)[::2], comm.SUM, False)
        # What MPI does not do, or the nodes do not have alike, goes by the order of ranks from there.
        whole = [draw(r) for r in range(size)]
        whole[size - 1][7] = np.nan
        every_way(lambda r: whole[r], np.maximum.reduce(whole), comm.MAX, True)
        every_way(lambda r: whole[r], np.minimum.reduce(whole), comm.MIN, True)
        of = lambda r: draw(r, "f4", 70_000) if nodes_of[r] else draw(r, "f8", 70_000)  # noqa: E731
        every_way(of, _slices.combined(parts(of), operator.add), comm.SUM, True)
        of = lambda r: draw(r, "f2", 150_000)  # noqa: E731
        every_way(of, _slices.combined(parts(of), operator.add), comm.SUM, True)
        for odd in range(size):  # one rank of a node has something else
            of = lambda r, odd=odd: draw(r, "f4") if r == odd else draw(r)  # noqa: E731
            written.clear()
            got = world.allreduce(of(rank))
            assert same(got, _slices.combined(parts(of), operator.add))
            assert bool(written) == (len(here) > 1 and odd not in here)
            of = lambda r, odd=odd: r if r == odd else draw(r)  # noqa: E731
            assert same(world.allreduce(of(rank)), _slices.combined(parts(of), operator.add))
    finally:
        _slices.Division.compute = compute


def reductions_in_the_order_of_ranks():
    for root in range(size):
        got = world.reduce(f"{rank},", operator.add, root)
        assert got == ("".join(f"{r}," for r in range(size)) if rank == root else None)
    assert world.allreduce([rank]) == list(range(size))
    matrix = np.array([[1.0, rank + 1], [0, rank + 2]])
    expected = np.array([[1.0, 1], [0, 2]])
    for r in range(1, size):
        expected = expected @ np.array([[1.0, r + 1], [0, r + 2]])
    assert np.array_equal(world.allreduce(matrix, operator.matmul), expected)
    assert world.scan([rank]) == list(range(rank + 1))
    first = world.allreduce((rank, np.full(100_000, rank)), lambda a, b: a)
    assert first[0] == 0
    assert not first[1].any()


class Stubborn:
    def __reduce__(self):
        raise RuntimeError("does not pickle")


def error_of(call, *args):
    try:
        call(*args)
    except Exception as error:
        return error
    return None


def is_told(error, bad, name, own):
    """Whether a rank has its own error, or that of the rank that has met it."""
    if rank == bad:
        return own in str(error)
    return isinstance(error, CommError) and f"rank {bad} failed in {name}" in str(error) and own in str(error)


def errors_of_one_rank_are_raised_by_all_that_wait_and_the_next_operation_holds():
    for bad in range(size):
        mine = Stubborn() if rank == bad else [rank]
        root = (bad + 1) % size
        for name, call, *args in (
            ("bcast", world.bcast, mine, bad),
            ("allgather", world.allgather, mine),
            ("scatter", world.scatter, [mine] * size if rank == bad else None, bad),
            ("alltoall", world.alltoall, [mine] * size),
        ):
            error = error_of(call, *args)
            assert is_told(error, bad, name, "does not pickle"), (name, error)
            assert world.allgather(rank) == list(range(size)), name
        error = error_of(world.scatter, [1] if rank == bad else None, bad)
        assert is_told(error, bad, "scatter", f"expecting {size} items, got 1"), error
        error = error_of(world.gather, mine, root)
        if rank in (bad, root):
            assert is_told(error, bad, "gather", "does not pickle"), error
        else:
            assert error is None or is_told(error, bad, "gather", "does not pickle"), error
        assert world.gather(rank, root) == (list(range(size)) if rank == root else None)


def an_operation_that_raises_is_told():
    def divide(a, b):
        raise ZeroDivisionError("of the operation")

    error = error_of(world.allreduce, rank, divide)
    assert isinstance(error, CommError | ZeroDivisionError), error
    assert "of the operation" in str(error)
    assert world.allgather(rank) == list(range(size))
    error = error_of(world.reduce, rank, divide, size - 1)
    assert error is not None or rank != size - 1
    assert world.allgather(rank) == list(range(size))


def a_pending_receive_is_served_meanwhile():
    """The other side waits in a send that only the receive completes, and comes to the collective operation then."""
    big = np.ones(30 << 20, "u1")
    for call in (
        lambda: world.bcast(big if rank == 0 else None),
        lambda: world.allgather(rank),
        lambda: world.allreduce(big),
    ):
        if rank == 0:
            request = world.irecv(None, size - 1, 7)
            call()
            assert len(request.wait()) == len(big)
        elif rank == size - 1:
            world.ssend(big, 0, 7)
            call()
        else:
            call()


def the_order_of_nodes_need_not_be_that_of_ranks():
    turned = world.Split(0, (rank * 7 + 3) % (size + 1))
    order = sorted(range(size), key=lambda r: ((r * 7 + 3) % (size + 1), r))
    assert turned.allgather(rank) == order
    assert turned.allreduce([rank]) == order
    assert turned.alltoall([(rank, r) for r in range(size)]) == [(r, turned.rank) for r in order]
    assert turned.scatter([10 * r for r in range(size)] if turned.rank == 1 else None, 1) == 10 * turned.rank
    got = turned.gather((rank, np.full(50_000, rank)), size - 1)
    assert got is None or [each[0] for each in got] == order
    assert turned.reduce([rank], root=size - 1) == (order if turned.rank == size - 1 else None)
    assert (turned.allreduce(np.full(1000, rank)) == sum(range(size))).all()
    turned.Free()


CHECKS = [
    objects_of_unequal_sizes, large_pickles_without_buffers, reductions_of_arrays_by_operations_of_mpi,
    reductions_of_arrays_that_cannot_be_written_to, reductions_of_arrays_that_mpi_does_otherwise,
    large_arrays_are_reduced_in_slices_by_all_ranks_of_a_node, reductions_in_the_order_of_ranks,
    errors_of_one_rank_are_raised_by_all_that_wait_and_the_next_operation_holds, an_operation_that_raises_is_told,
    a_pending_receive_is_served_meanwhile,
    the_order_of_nodes_need_not_be_that_of_ranks,
]  # fmt: skip

if __name__ == "__main__":
    for check in CHECKS:
        if len(sys.argv) > 1 and sys.argv[1] != check.__name__:
            continue
        check()
        world.barrier()
    if rank == 0:
        print(f"all of {len(CHECKS)} hold on {size}", flush=True)
