"""The heat equation in two dimensions. A plate is cut into strips, one for each rank; the ranks exchange the edges at
each step.

    copyless run -n 4 examples/stencil.py          (or mpiexec -n 4 python examples/stencil.py)

Rank 0 compares the result with the same computation by NumPy alone, and draws it.
"""

import argparse
import itertools

import numpy as np

from copyless import comm


def begin(n):
    plate = np.zeros((n, n))
    plate[n // 4 : n // 2, n // 3 : n // 2] = 100.0
    plate[0, :] = np.linspace(0, 50, n)
    return plate


def step(u):
    """One explicit step of all but the edges."""
    new = u.copy()
    new[1:-1, 1:-1] += 0.2 * (u[:-2, 1:-1] + u[2:, 1:-1] + u[1:-1, :-2] + u[1:-1, 2:] - 4 * u[1:-1, 1:-1])
    return new


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--output", help="a PNG file to draw the plate into")
    args = parser.parse_args()
    world = comm.world()
    edges = [args.size * i // world.size for i in range(world.size + 1)]
    parts = [begin(args.size)[a:b] for a, b in itertools.pairwise(edges)] if world.rank == 0 else None
    mine = world.scatter(parts)
    above = world.rank - 1 if world.rank > 0 else comm.PROC_NULL
    below = world.rank + 1 if world.rank < world.size - 1 else comm.PROC_NULL
    for _ in range(args.steps):
        requests = [world.isend(mine[0], above, 1), world.isend(mine[-1], below, 2)]
        upper, lower = world.recv(None, above, 2), world.recv(None, below, 1)
        rows = [row for row in (upper, mine, lower) if row is not None]
        for request in requests:
            request.wait()
        wide = step(np.vstack(rows))
        mine = wide[int(upper is not None) : len(wide) - int(lower is not None)]
    hottest = world.allreduce(float(mine.max()), comm.MAX)
    whole = world.gather(mine)
    if world.rank == 0:
        plate = np.vstack(whole)
        alone = begin(args.size)
        for _ in range(args.steps):
            alone = step(alone)
        assert np.allclose(plate, alone), "the strips together are the plate"
        assert hottest == plate.max()
        print(
            f"{args.size} x {args.size}, {args.steps} steps on {world.size} ranks, as NumPy alone; hottest "
            f"{hottest:.2f}"
        )
        if args.output:
            from PIL import Image

            levels = (plate / plate.max() * 255).astype("u1")
            Image.fromarray(np.dstack([levels, levels // 3, 255 - levels])).save(args.output)
            print(f"drawn in {args.output}")


if __name__ == "__main__":
    main()
