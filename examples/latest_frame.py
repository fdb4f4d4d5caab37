"""A fast camera and a slow viewer: the viewer always shows the newest frame, and the camera never waits for it.

python examples/latest_frame.py
"""

import multiprocessing
import time

import numpy as np

import copyless


def camera(ring, seconds):
    picture = np.zeros((480, 640, 3), "u1")
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        picture[:, :, 1] += 1
        ring.put(picture)
        time.sleep(0.002)
    ring.shutdown()


def main():
    ring = copyless.RingBuffer(((480, 640, 3), "u1"), slots=4)
    process = multiprocessing.get_context("spawn").Process(target=camera, args=(ring, 1.5))
    process.start()
    shown = seq = 0
    worst = 0.0
    while True:
        try:
            with ring.latest(after=seq) as frame:  # waits for a frame newer than the last one shown
                worst = max(worst, time.monotonic() - frame.timestamp)
                mean = frame.array.mean()  # in place: nothing is copied
                seq, shown = frame.seq, shown + 1
        except copyless.ClosedError:  # the camera has ended, and its last frame was shown
            break
        time.sleep(0.05)  # a slow screen
    process.join()
    print(f"{seq} frames taken, {shown} shown, none older than {worst * 1e3:.0f} ms; the last has mean {mean:.1f}")
    assert shown < seq


if __name__ == "__main__":
    main()
