"""Two cameras, a ring of 100 frames, three readers: every frame is checked by its checksum.

    python examples/frame_pipeline.py [--frames 300]

The ring is passed to the other processes as an argument. Producers write pixels directly into shared memory, and
consumers read them there. Readers that block get every frame. The reader that drops may miss some, and knows how many.
"""

import argparse
import multiprocessing
import time
import zlib

import numpy as np

import copyless

SPEC = {"rgb": ((270, 180, 3), "u1"), "camera": ((), "u1"), "number": ((), "u4"), "crc": ((), "u4")}


def produce(ring, camera, frames):
    rng = np.random.default_rng(camera)
    for number in range(frames):
        with ring.write() as frame:
            frame["rgb"][...] = rng.integers(0, 255, frame["rgb"].shape, "u1")
            frame["camera"], frame["number"] = camera, number
            frame["crc"] = zlib.crc32(frame["rgb"])
        time.sleep(0.001)


def consume(ring, policy, ready, results):
    good = bad = missed = 0
    with ring.subscribe(policy) as frames:
        ready.release()
        for frame in frames:
            with frame:
                if zlib.crc32(frame["rgb"]) == int(frame["crc"]):
                    good += 1
                else:
                    bad += 1
                missed += frame.missed
    results.put((policy, good, bad, missed))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=300)
    frames = parser.parse_args().frames
    context = multiprocessing.get_context("spawn")
    ring = copyless.RingBuffer(SPEC, slots=100)
    ready, results = copyless.Semaphore(0), copyless.Queue()
    consumers = [
        context.Process(target=consume, args=(ring, policy, ready, results)) for policy in ("block", "block", "drop")
    ]
    for process in consumers:
        process.start()
    for _ in consumers:
        ready.acquire()
    began = time.perf_counter()
    producers = [context.Process(target=produce, args=(ring, camera, frames)) for camera in (1, 2)]
    for process in producers:
        process.start()
    for process in producers:
        process.join()
    seconds = time.perf_counter() - began
    ring.shutdown()
    for _ in consumers:
        policy, good, bad, missed = results.get()
        print(f"{policy}: {good} frames whole, {bad} torn, {missed} missed")
        assert bad == 0
        assert good + missed == 2 * frames
        assert policy == "drop" or missed == 0
    for process in consumers:
        process.join()
    print(f"{2 * frames / seconds:.0f} frames a second, through {ring}")


if __name__ == "__main__":
    main()
