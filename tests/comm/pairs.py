"""Pending requests of copyless, combined with every blocking call: no call may hang where mpi4py does not.

Run under mpiexec on any number of ranks. Each rank starts an operation with its neighbours, makes a blocking call, and
then completes the operation. In the other case the neighbour is in a send that ends only when this rank receives.
`PAIRS=some` names the blocking calls to try.
"""

import faulthandler
import os
import sys
import time

import numpy as np
from mpi4py import MPI

from copyless.comm import mpi

faulthandler.dump_traceback_later(140, exit=True)
world = mpi.Intracomm(MPI.COMM_WORLD).Dup()
rank, size = world.rank, world.size
right, left = (rank + 1) % size, (rank - 1) % size
quiet = world.Dup()  # for blocking calls that are not collective operations of `world`


def buffers(n=3):
    return np.zeros(n), np.zeros(n * size)


def freed(comm):
    comm.Free()


def group_calls():
    one, all_ = buffers()
    counts = [1] * size
    yield "barrier", world.barrier
    yield "Barrier", world.Barrier
    yield "Ibarrier", lambda: world.Ibarrier().Wait()
    yield "Ibcast, wait", lambda: world.Ibcast(one).wait()
    yield "Bcast", lambda: world.Bcast(one, size - 1)
    yield "Gather", lambda: world.Gather(one, all_, 0)
    yield "Gatherv", lambda: world.Gatherv(one, all_, 0)
    yield "Scatter", lambda: world.Scatter(all_, one, 0)
    yield "Scatterv", lambda: world.Scatterv(all_, one, 0)
    yield "Allgather", lambda: world.Allgather(one, all_)
    yield "Allgatherv", lambda: world.Allgatherv(one, all_)
    yield "Alltoall", lambda: world.Alltoall(all_, all_.copy())
    yield "Alltoallv", lambda: world.Alltoallv(all_, all_.copy())
    yield "Reduce", lambda: world.Reduce(one, one.copy(), root=0)
    yield "Allreduce", lambda: world.Allreduce(one, one.copy())
    yield "Reduce_scatter", lambda: world.Reduce_scatter(np.zeros(size), np.zeros(1), counts)
    yield "Reduce_scatter_block", lambda: world.Reduce_scatter_block(np.zeros(size), np.zeros(1))
    yield "Scan", lambda: world.Scan(one, one.copy())
    yield "Exscan", lambda: world.Exscan(one, one.copy())
    yield "bcast", lambda: world.bcast(np.zeros(9000), size - 1)
    yield "gather", lambda: world.gather(np.zeros(9000))
    yield "scatter", lambda: world.scatter([np.zeros(9000)] * size)
    yield "allgather", lambda: world.allgather(np.zeros(9000))
    yield "alltoall", lambda: world.alltoall([np.zeros(9000)] * size)
    yield "reduce", lambda: world.reduce(1)
    yield "allreduce", lambda: world.allreduce(1)
    yield "scan", lambda: world.scan(1)
    yield "exscan", lambda: world.exscan(1)
    yield "Dup", lambda: freed(world.Dup())
    yield "Split", lambda: freed(world.Split(0, rank))
    yield "Split_type", lambda: freed(world.Split_type(MPI.COMM_TYPE_SHARED))
    yield "Create_cart", lambda: freed(world.Create_cart([size]))
    yield "Create_group", lambda: freed(world.Create_group(world.Get_group()))
    # For two ranks each: each sends the other its data before it waits.
    yield "sendrecv", lambda: quiet.sendrecv(rank, right, 3, None, left, 3)
    yield "Sendrecv", lambda: quiet.Sendrecv(one, right, 3, one.copy(), left, 3)
    yield "isend, recv", lambda: (quiet.isend(rank, right, 3), quiet.recv(None, left, 3))
    yield "Isend, Recv", lambda: (quiet.Isend(one, right, 3), quiet.Recv(one.copy(), left, 3))
    yield "isend, probe", lambda: (quiet.isend(rank, right, 3), quiet.probe(left, 3), quiet.recv(None, left, 3))
    yield "isend, Probe", lambda: (quiet.isend(rank, right, 3), quiet.Probe(left, 3), quiet.recv(None, left, 3))
    yield "isend, mprobe", lambda: (quiet.isend(rank, right, 3), quiet.mprobe(left, 3).recv())
    yield "Irecv, ssend", lambda: ssend_to(quiet.ssend, rank)
    yield "Irecv, Ssend", lambda: ssend_to(quiet.Ssend, one)
    yield "Irecv, Send", lambda: ssend_to(quiet.Send, np.zeros(100_000))


def ssend_to(send, what):
    request = quiet.Irecv(bytearray(900_000), left, 4)
    send(what, right, 4)
    request.Wait()


def begun(kind, n):
    """The operation that is pending during the blocking call, and what completes it: whether all arrived."""
    what = b"x" * n
    if kind == "isend":
        request = world.isend(what, right, 5)
        return lambda: world.recv(None, left, 5) == what and request.wait() is None
    if kind == "issend":
        request = world.issend(what, right, 5)
        return lambda: world.recv(None, left, 5) == what and request.wait() is None
    if kind == "irecv":
        request = world.irecv(None, left, 5)
        sent = world.isend(what, right, 5)
        return lambda: mpi.Request.waitall([request, sent])[0] == what
    if kind == "mprobe and irecv":
        sent = world.isend(what, right, 5)
        request = world.mprobe(left, 5).irecv()
        return lambda: mpi.Request.waitall([sent, request])[1] == what
    if kind == "improbe":
        sent = world.isend(what, right, 5)
        message = world.improbe(left, 5)
        return lambda: (message or world.mprobe(left, 5)).recv() == what and sent.wait() is None
    # The other case: the neighbour of a rank is in a send that does not end before this rank receives.
    assert kind in ("irecv, ssend", "irecv, send", "irecv, Ssend")
    request = world.irecv(None, left, 5)
    if size == 1:
        sent = world.issend(what, right, 5)
        return lambda: mpi.Request.waitall([request, sent])[0] == what
    send = world.ssend if kind == "irecv, ssend" else world.send if kind == "irecv, send" else None

    def late():
        if send is None:
            world.Ssend([bytearray(_pickled), MPI.BYTE], right, 5)
        else:
            send(what, right, 5)

    return late, lambda: request.wait() == (_value if send is None else what)


_value = {"k": 1}
_pickled = MPI.pickle.dumps(_value)
KINDS = ["isend", "issend", "irecv", "mprobe and irecv", "improbe", "irecv, ssend", "irecv, send", "irecv, Ssend"]


def main():
    wanted = os.environ.get("PAIRS", "").split(";") if os.environ.get("PAIRS") else None
    sizes = [8, 5_000, 200_000]
    began, tried = time.monotonic(), 0
    for kind in KINDS:
        for n in sizes:
            for name, call in group_calls():
                if wanted is not None and name not in wanted:
                    continue
                if "-v" in sys.argv and rank == 0:
                    print(kind, n, name, flush=True)
                end = begun(kind, n)
                if isinstance(end, tuple):
                    late, end = end
                    if rank == 0 if size % 2 else rank % 2 == 0:
                        call()  # while the send of the left neighbour waits for this rank's receive
                        late()
                    else:
                        late()
                        call()
                else:
                    call()
                assert end(), (kind, n, name)
                tried += 1
    world.barrier()
    if rank == 0:
        print(f"{tried} pairs hold on {size} in {time.monotonic() - began:.1f} s", flush=True)


main()
