"""What the ranks do that test_rank_storm.py kills: a module for local ranks, a program for those of mpiexec."""

import faulthandler
import os
import random
import sys

import numpy as np

import copyless
from copyless import comm


def work(world, seed):
    """Operations of all kinds, the same at each rank, until one raises."""
    draw = random.Random(seed)
    rank, size = world.rank, world.size
    for i in range(1_000_000):
        n, root = draw.choice([0, 10, 3000, 40_000, 100_000]), draw.randrange(size)
        mine, every = np.full(n, rank + i, "i8"), range(i, i + size)
        what = draw.randrange(7)
        if what == 0:
            sent = world.isend((i, mine), (rank + 1) % size, i % 1000)
            number, array = world.recv(None, (rank - 1) % size, i % 1000)
            assert number == i
            assert len(array) == n
            assert (array == (rank - 1) % size + i).all()
            sent.wait()
        elif what == 1:
            got = world.gather(mine, root)
            assert got is None if rank != root else [a.tolist() for a in got] == [[k] * n for k in every]
        elif what == 2:
            assert (world.allreduce(mine, draw.choice([comm.SUM, comm.MAX])) >= i).all()
        elif what == 3:
            got = world.reduce(mine, comm.SUM, root)
            assert got is None if rank != root else len(got) == n and (got == sum(every)).all()
        elif what == 4:
            got = world.alltoall([mine + k for k in range(size)])
            assert all(len(a) == n and (a == k + rank).all() for k, a in zip(every, got, strict=True))
        elif what == 5:
            assert (world.bcast(mine, root) == root + i).all()
        else:
            assert world.allreduce(rank) == sum(range(size))
            world.barrier()


def main(seed, place):
    """A rank under mpiexec. It names its process in a directory, and says when it was told that another died."""
    faulthandler.dump_traceback_later(25)  # a rank that hangs shows where, before the test gives up
    world = comm.world()
    with open(f"{place}/new.{world.rank}", "w") as file:
        file.write(str(os.getpid()))
    os.rename(f"{place}/new.{world.rank}", f"{place}/{world.rank}")
    try:
        work(world, seed)
    except copyless.OwnerDiedError:
        print("told", flush=True)
        raise


if __name__ == "__main__":
    main(*sys.argv[1:])
