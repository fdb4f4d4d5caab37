"""Reductions of large arrays, numbers, and mixtures of them: each rank gets what a tree of whole arrays gives."""

import numpy as np

from copyless import comm
from copyless.comm import _slices

world = comm.world()
rank, size = world.rank, world.size


def large(k, dtype="f8"):
    return (np.random.default_rng(k).standard_normal(100_003) * 100).astype(dtype)


def own(a, b):
    return a + 2 * b


def same(a, b):
    return type(a) is type(b) and np.array_equal(a, b) and np.result_type(a) == np.result_type(b)


def values():
    yield [large(k) for k in range(size)], (comm.SUM, comm.PROD, comm.MAX, own)
    yield [large(k)[:100_000].reshape(4, -1) for k in range(size)], (comm.SUM, comm.MIN)
    yield [large(k)[::2] for k in range(size)], (comm.SUM,)
    yield [large(k, "i4") for k in range(size)], (comm.SUM, comm.BXOR, comm.MAX)
    yield [large(k, "c16") for k in range(size)], (comm.SUM,)
    for one in range(size):
        yield [large(k, "f4") if k == one else large(k) for k in range(size)], (comm.SUM, comm.PROD)
    for bits in range(2**size):
        yield [2 * k if bits >> k & 1 else large(k) for k in range(size)], (comm.SUM, own)


for each, operations in values():
    for op in operations:
        mine, expected = each[rank], _slices.combined(list(each), op)
        for _ in range(2):
            got = world.allreduce(mine, op)
            assert same(got, expected), (each, op)
            world.barrier()
            if isinstance(got, np.ndarray):
                got[...] = 7  # it belongs to this rank alone
        for root in {0, size // 2, size - 1}:
            got = world.reduce(mine, op, root)
            assert got is None if rank != root else same(got, expected), (each, op, root)
assert world.allgather(rank) == list(range(size))
print("held", flush=True)
