"""Read what producer.py publishes: wait for its name, read until it stops, and wait again if it was killed."""

import argparse
import time

import copyless

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--name", default="camera0")
parser.add_argument("--until", type=int, default=100, help="stop at this frame")
parser.add_argument("--timeout", type=float, default=30, help="seconds to wait for a producer")
parser.add_argument("--patience", type=float, default=1, help="seconds without a new frame before looking again")
args = parser.parse_args()

seen = 0
while seen < args.until:
    state = copyless.open(f"{args.name}.state", timeout=args.timeout)  # shape and dtype come with the name
    frame = copyless.open(args.name, timeout=args.timeout)
    print(f"attached to {args.name}: {frame.shape} {frame.dtype}", flush=True)
    last_news = time.monotonic()
    while seen < args.until and time.monotonic() - last_news < args.patience:
        number = int(state[0])
        if number > seen or 0 < number < seen:
            seen, last_news = number, time.monotonic()
        time.sleep(0.005)
    # The frames that this program holds stay readable after their producer has died. To release them frees the name for
    # the next producer.
    print(f"frame {seen}, corner {int(frame[0, 0])}", flush=True)
    del state, frame
print("done", flush=True)
