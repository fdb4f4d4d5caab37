"""A work queue between programs that have no common parent. Start workers at any time and in any place. If one is
killed, another does its job.

python examples/jobs.py worker &          # as many as you like, in any terminal
python examples/jobs.py submit 20
python examples/jobs.py stop

python examples/jobs.py demo              # all of it in one run, and a worker is killed during a job
"""

import os
import signal
import subprocess
import sys
import time

import numpy as np

import copyless

NAME = os.environ.get("JOBS_NAME", "example-jobs")


def queues():
    """The first process makes them; they stay until `stop`, even while no program runs."""
    return (
        copyless.JoinableQueue(name=f"{NAME}-todo", redeliver=True, persist=True),
        copyless.Queue(name=f"{NAME}-results", persist=True),
    )


def worker():
    todo, results = queues()
    while True:
        try:
            with todo.lease() as job:  # acknowledged at the end; if this worker dies before, another gets it
                time.sleep(job["seconds"])
                results.put((job["number"], float(np.linalg.norm(job["data"])), os.getpid()))
        except copyless.ClosedError:
            return


def submit(n):
    todo, results = queues()
    rng = np.random.default_rng(1)
    for number in range(n):
        todo.put({"number": number, "seconds": 0.02, "data": rng.random((200, 200))})
    todo.join()
    done = {}
    while len(done) < n:
        number, norm, pid = results.get(timeout=10)
        done[number] = norm, pid
    print(f"{n} jobs done by {len({pid for _, pid in done.values()})} workers; {todo.stats().put} put in all")


def stop():
    queues()[0].shutdown()
    for name in ("todo", "results"):
        copyless.unlink(f"{NAME}-{name}")


def demo():
    os.environ["JOBS_NAME"] = f"example-jobs-{os.getpid()}"
    globals()["NAME"] = os.environ["JOBS_NAME"]
    workers = [subprocess.Popen([sys.executable, __file__, "worker"]) for _ in range(3)]
    submitter = subprocess.Popen([sys.executable, __file__, "submit", "40"])
    todo, _ = queues()
    while todo.stats().leased < 3:
        time.sleep(0.005)
    workers[0].send_signal(signal.SIGKILL)  # during a job
    print("killed a worker")
    assert submitter.wait() == 0
    stop()
    for process in workers:
        process.wait()


if __name__ == "__main__":
    command = sys.argv[1] if len(sys.argv) > 1 else "demo"
    {"worker": worker, "submit": lambda: submit(int(sys.argv[2])), "stop": stop, "demo": demo}[command]()
