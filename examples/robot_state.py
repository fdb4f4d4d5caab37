"""A robot's state at 1 kHz: a dict of small arrays, and a controller that reads the last 50 of them at any time.

python examples/robot_state.py
"""

import multiprocessing
import time

import numpy as np

import copyless

STATE = {"q": (7, "f8"), "dq": (7, "f8"), "wrench": (6, "f8"), "gripper": ((), "f4")}


def robot(ring, steps):
    began = time.monotonic()
    for i in range(steps):
        t = i / 1000
        with ring.write() as state:
            state["q"][...] = np.sin(t * np.arange(1, 8))
            state["dq"][...] = np.cos(t * np.arange(1, 8)) * np.arange(1, 8)
            state["wrench"][...] = 0
            state["gripper"] = t % 1
        time.sleep(max(0, began + t + 0.001 - time.monotonic()))
    ring.shutdown()


def main():
    ring = copyless.RingBuffer(STATE, slots=256)
    process = multiprocessing.get_context("spawn").Process(target=robot, args=(ring, 1500))
    process.start()
    worst = 0.0
    looks = 0
    ring.latest().release()  # wait for the first state
    while True:
        try:
            with ring.latest(timeout=0.2, after=ring.stats().published):
                pass
        except copyless.ClosedError:
            break
        with ring.last(50) as states:
            if len(states) < 50:
                continue
            times = np.array([state.timestamp for state in states])
            q = np.array([state["q"] for state in states])
            dq = np.array([state["dq"] for state in states])
            slope = np.diff(q[:, 0]).sum() / 0.049  # joint 1 moves by one millisecond a step
            worst = max(worst, abs(slope - dq[:, 0].mean()))
            looks += 1
            assert (np.diff([state.seq for state in states]) == 1).all()
        time.sleep(0.01)
    process.join()
    rate = 49 / (times[-1] - times[0])
    print(f"{looks} looks at 50 states each, {rate:.0f} Hz at the end; velocity from positions within {worst:.4f}")
    assert looks > 10
    assert worst < 0.01


if __name__ == "__main__":
    main()
