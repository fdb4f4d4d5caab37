"""Video frames and their description in ctypes memory: one process draws, another displays, with no copy between them.

The pixels are a `RawArray` that NumPy uses as its memory. The description is a `Value` of a structure; both processes
take its lock.
"""

import ctypes
import multiprocessing as mp

import numpy as np

from copyless.sharedctypes import RawArray, Value
from copyless.synchronize import Semaphore

HEIGHT, WIDTH = 480, 640


class Header(ctypes.Structure):
    _fields_ = [("number", ctypes.c_uint64), ("time", ctypes.c_double), ("mean", ctypes.c_float)]


def image_of(pixels):
    return np.frombuffer(pixels, "u1").reshape(HEIGHT, WIDTH, 3)


def draw(pixels, header, free, filled, frames):
    image = image_of(pixels)
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    for number in range(frames):
        free.acquire()
        with header.get_lock():
            image[..., 0] = rows + number
            image[..., 1] = columns + 2 * number
            image[..., 2] = number
            header.number, header.time, header.mean = number, number / 30, image.mean()
        filled.release()


def main(frames=60):
    pixels = RawArray("B", HEIGHT * WIDTH * 3)
    header = Value(Header, 0, 0.0, 0.0)
    free, filled = Semaphore(1), Semaphore(0)
    camera = mp.get_context("spawn").Process(target=draw, args=(pixels, header, free, filled, frames))
    camera.start()
    image = image_of(pixels)
    for number in range(frames):
        assert filled.acquire(timeout=60), "the camera is gone"
        with header.get_lock():
            assert header.number == number
            assert image[5, 7].tolist() == [(5 + number) % 256, (7 + 2 * number) % 256, number % 256]
            assert np.isclose(header.mean, image.mean(), rtol=1e-5)
        free.release()
    camera.join()
    print(f"{frames} frames of {image.nbytes:,} bytes, each seen where it was drawn; the last at {header.time:.2f} s")


if __name__ == "__main__":
    main()
