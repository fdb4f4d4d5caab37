"""Each rank sends an object with a big array to its right neighbour and receives one from its left, in two ways.

copyless run -n 4 examples/ring_of_ranks.py              (shared memory, no MPI)
mpiexec -n 4 python examples/ring_of_ranks.py            (MPI)
... --gib 4.5                                            (more than 4 GiB at once)
"""

import argparse
import time

import numpy as np

from copyless import comm


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=0.03, help="size of each array")
    args = parser.parse_args()
    world = comm.world()
    right, left = (world.rank + 1) % world.size, (world.rank - 1) % world.size
    count = int(args.gib * 2**30) // 8
    array = np.full(count, float(world.rank))
    for how in ("recv", "mprobe and Message.irecv"):
        world.barrier()
        began = time.perf_counter()
        incoming = world.irecv(None, left, 1) if how == "recv" else None
        request = world.isend({"from": world.rank, "array": array}, right, 1)
        got = incoming.wait() if incoming is not None else world.mprobe(left, 1).irecv().wait()
        request.wait()
        assert got["from"] == left
        assert len(got["array"]) == count
        assert (got["array"][:: max(1, count // 1000)] == left).all()
        got["array"][:1] = -1  # it belongs to this rank
        del got
        world.barrier()
        took = time.perf_counter() - began
        if world.rank == 0:
            print(
                f"{how}: {world.size} ranks, {count * 8:,} bytes each, {world.size * count * 8 / took / 1e9:.2f} GB/s"
            )


if __name__ == "__main__":
    main()
