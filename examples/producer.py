"""Publish frames under a name. Run it in one shell and consumer.py in another. Kill and restart it at any time."""

import argparse
import time

import numpy as np

import copyless

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--name", default="camera0")
parser.add_argument("--frames", type=int, default=100)
parser.add_argument("--pause", type=float, default=0.05, help="seconds between frames")
args = parser.parse_args()

# Row 0 of `state` is the number of the newest frame. It is written after the frame, so a reader never takes a
# half-written frame for a new one.
frame = copyless.zeros((240, 320), dtype="i4", name=args.name)
state = copyless.zeros(1, dtype="i8", name=f"{args.name}.state")
print(f"publishing {args.name}", flush=True)
for number in range(1, args.frames + 1):
    frame[:] = number
    state[0] = number
    time.sleep(args.pause)
print(f"published {args.frames} frames, the last holds {np.unique(frame)}", flush=True)
