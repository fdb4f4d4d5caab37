"""Random programs of sends, receives and collectives: each rank receives from copyless what plain mpi4py gives.

Run under mpiexec (copyless on MPI) or copyless run (local ranks; the expected values then follow from the program
itself). Every rank generates the same program from a seed and runs its own part.
"""

import random
import sys

import numpy as np

from copyless import comm

world = comm.world()
rank, size = world.rank, world.size


def thing(draw, i):
    kind = draw.randrange(5)
    if kind == 0:
        return i
    if kind == 1:
        return {"i": i, "text": "x" * draw.randrange(300)}
    if kind == 2:
        return np.full(draw.choice([0, 3, 2000, 40_000]), i, "i4")
    if kind == 3:
        return [np.full(5000, i), {"n": np.float64(i)}]
    return None


def plain(obj):
    if isinstance(obj, np.ndarray):
        return ("array", str(obj.dtype), obj.shape, obj.tobytes())
    if isinstance(obj, dict):
        return {key: plain(value) for key, value in obj.items()}
    if isinstance(obj, (list, tuple)):
        return [plain(value) for value in obj]
    return obj


def program(seed):
    draw = random.Random(seed)
    steps = []
    for i in range(30):
        what = draw.choice(
            ["p2p"] * 5 + ["bcast", "gather", "scatter", "allgather", "alltoall", "allreduce", "scan", "barrier"]
        )
        if what == "p2p":
            pairs = [
                (draw.randrange(size), draw.randrange(size), draw.randrange(3)) for _ in range(draw.randrange(1, 6))
            ]
            how = [draw.choice(["recv", "irecv", "mprobe"]) for _ in pairs]
            steps.append((what, pairs, how, [thing(draw, 10 * i + k) for k in range(len(pairs))]))
        else:
            steps.append((what, draw.randrange(size), [thing(draw, 10 * i + r) for r in range(size)]))
    return steps


def play(c, steps, ours):
    heard = []
    for step in steps:
        if step[0] == "p2p":
            _, pairs, how, things = step
            sends = [
                c.isend(obj, dest, tag)
                for (source, dest, tag), obj in zip(pairs, things, strict=True)
                if source == rank
            ]
            late = []
            for (source, dest, tag), by in zip(pairs, how, strict=True):
                if dest != rank:
                    continue
                if by == "irecv" and ours:
                    late.append((len(heard), c.irecv(None, source, tag)))
                    heard.append(None)
                elif by == "mprobe" and not late:
                    heard.append(plain(c.mprobe(source, tag).recv()))
                else:
                    heard.append(plain(c.recv(None, source, tag)))
            for at, request in late:
                heard[at] = plain(request.wait())
            for send in sends:
                send.wait()
            continue
        what, root, things = step
        if what == "bcast":
            heard.append(plain(c.bcast(things[root] if rank == root else None, root)))
        elif what == "gather":
            heard.append(plain(c.gather(things[rank], root)))
        elif what == "scatter":
            heard.append(plain(c.scatter(things if rank == root else None, root)))
        elif what == "allgather":
            heard.append(plain(c.allgather(things[rank])))
        elif what == "alltoall":
            heard.append(plain(c.alltoall([(rank, thing) for thing in things])))
        elif what == "allreduce":
            heard.append(plain(c.allreduce([rank, len(str(root))])))
        elif what == "scan":
            heard.append(plain(c.scan([rank])))
        else:
            c.barrier()
    return heard


def said(steps):
    """What this rank should receive, according to the program."""
    heard = []
    for step in steps:
        if step[0] == "p2p":
            _, pairs, _, things = step
            heard += [plain(obj) for (_, dest, _), obj in zip(pairs, things, strict=True) if dest == rank]
            continue
        what, root, things = step
        answers = {
            "bcast": lambda root=root, t=things: t[root],
            "gather": lambda root=root, t=things: t if rank == root else None,
            "scatter": lambda t=things: t[rank], "allgather": lambda t=things: t,
            "alltoall": lambda t=things: [(r, t[rank]) for r in range(size)],
            "allreduce": lambda root=root: [x for r in range(size) for x in (r, len(str(root)))],
            "scan": lambda: list(range(rank + 1)),
        }  # fmt: skip
        if what != "barrier":
            heard.append(plain(answers[what]()))
    return heard


if __name__ == "__main__":
    for seed in range(int(sys.argv[1]), int(sys.argv[2])):
        steps = program(seed)
        got = play(world, steps, True)
        assert got == said(steps), seed
        if type(world).__module__.endswith(".mpi"):
            from mpi4py import MPI

            assert got == play(MPI.COMM_WORLD, steps, False), seed
    world.barrier()
    if rank == 0:
        print(f"programs hold on {size}")
