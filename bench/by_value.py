"""Messages by value between two ranks of one host: copyless and mpi4py.util.pkl5, in turns, in one run.

    COPYLESS_NODES=2 mpiexec -n 2 python bench/by_value.py     # one host as two nodes
    mpiexec -n 2 python bench/by_value.py                      # where /dev/shm has 64 MB, as in a container

For each size: the median time of each, the median of the ratios of neighbouring rounds, the ratio of the best times.
"""

import statistics
import time
import warnings

import numpy as np
from mpi4py import MPI
from mpi4py.util import pkl5

from copyless.comm import mpi

SIZES = [1 << k for k in (10, 13, 16, 18, 20, 22, 24, 26)]


def one_way(comm, array):
    """Send an array, receive a word."""
    if comm.rank == 0:
        comm.send(array, 1)
        comm.recv(None, 1)
    else:
        comm.recv(None, 0)
        comm.send(0, 0)


def exchange(comm, array):
    """Both send, then both receive."""
    sent = comm.isend(array, 1 - comm.rank)
    comm.recv(None, 1 - comm.rank)
    sent.wait()


def rounds(work, comms, array):
    times = [], []
    calls = max(1, min(100, (2 << 20) // array.nbytes))
    for comm in comms:
        work(comm, array)
    for k in range(21 if array.nbytes <= 1 << 22 else 9):
        for i in (0, 1) if k % 2 else (1, 0):
            MPI.COMM_WORLD.Barrier()
            began = time.perf_counter()
            for _ in range(calls):
                work(comms[i], array)
            times[i].append((time.perf_counter() - began) / calls)
    return times


def main():
    warnings.simplefilter("ignore")
    world = MPI.COMM_WORLD
    comms = pkl5.Intracomm(world.Dup()), mpi.Intracomm(world.Dup())
    for work in (one_way, exchange):
        for size in SIZES:
            theirs, ours = rounds(work, comms, np.ones(size, "u1"))
            ratio = statistics.median(b / a for a, b in zip(theirs, ours, strict=True))
            if world.rank == 0:
                print(
                    f"{work.__name__:9} {size >> 10:6} KiB: pkl5 {statistics.median(theirs) * 1e6:8.0f} us, "
                    f"ours {statistics.median(ours) * 1e6:8.0f} us, ratio {ratio:.2f}, of the best "
                    f"{min(ours) / min(theirs):.2f}",
                    flush=True,
                )


main()
