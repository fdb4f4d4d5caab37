"""Photographs are scattered to the ranks, filtered there, and gathered.

    copyless run -n 4 examples/scatter_frames.py          (or mpiexec -n 4 python examples/scatter_frames.py)

The photographs are from scikit-image and the filter from SciPy: pip install '.[demo]' installs both.
"""

import numpy as np
from scipy import ndimage

from copyless import comm


def photographs():
    from skimage import data

    return {
        name: getattr(data, name)()
        for name in ("astronaut", "camera", "coffee", "coins", "cat", "rocket", "page", "moon")
    }


def edges(image):
    grey = image.mean(axis=-1) if image.ndim == 3 else image.astype(float)
    strength = np.hypot(ndimage.sobel(grey, 0), ndimage.sobel(grey, 1))
    return (strength / max(strength.max(), 1) * 255).astype("u1")


def main():
    world = comm.world()
    parts = None
    if world.rank == 0:
        names = list(images := photographs())
        parts = [{name: images[name] for name in names[i :: world.size]} for i in range(world.size)]
    mine = world.scatter(parts)
    done = {name: edges(image) for name, image in mine.items()}
    gathered = world.gather(done)
    if world.rank == 0:
        together = {name: image for part in gathered for name, image in part.items()}
        assert together.keys() == images.keys()
        assert all((together[name] == edges(images[name])).all() for name in images)
        print(
            f"{len(together)} photographs, {sum(image.nbytes for image in images.values()):,} bytes, on {world.size} "
            f"ranks"
        )


if __name__ == "__main__":
    main()
