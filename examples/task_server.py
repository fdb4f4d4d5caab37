"""Tasks over a manager, in four programs that have no common parent: a server, a producer, a master and clients.

    python examples/task_server.py server   --address 127.0.0.1:50000
    python examples/task_server.py producer --address 127.0.0.1:50000
    python examples/task_server.py client   --address 127.0.0.1:50000     (as many as you like)
    python examples/task_server.py master   --address 127.0.0.1:50000

The server holds two queues, until Ctrl-C or SIGTERM. The producer puts Chinese personal names. Each client takes names
and sends back its counts. The master collects the results, waits until the queue is empty, checks them, and shuts the
queue down, which ends the clients. Without --address the programs connect by a socket on this host; calls then use
shared memory.
"""

import argparse
import os
import signal
import sys
import tempfile
import time
from collections import Counter

from copyless.managers import BaseManager
from copyless.queues import JoinableQueue, Queue, ShutDown

FAMILY = "王李张刘陈杨黄赵吴周徐孙马朱胡郭何高林罗"
GIVEN = ["伟", "芳", "娜", "敏", "静", "丽华", "建国", "晓明", "志强", "雪梅", "子涵", "宇轩"]
NAMES = [family + given for family in FAMILY for given in GIVEN]
KEY = b"task server of the examples"


class TaskManager(BaseManager):
    pass


def connect(address):
    for name in ("tasks", "results"):
        TaskManager.register(name)
    manager = TaskManager(address, KEY)
    deadline = time.monotonic() + 30
    while True:
        try:
            manager.connect()
            return manager
        except (ConnectionError, FileNotFoundError):
            if time.monotonic() > deadline:
                sys.exit(f"no server at {address}: start 'task_server.py server' first")
            time.sleep(0.05)


def server(address):
    tasks, results = JoinableQueue(), Queue()
    TaskManager.register("tasks", lambda: tasks)
    TaskManager.register("results", lambda: results)
    manager = TaskManager(address, KEY)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    print(f"server at {address}", flush=True)
    manager.get_server().serve_forever()


def producer(address):
    tasks = connect(address).tasks()
    for name in NAMES:
        tasks.put(name)
    print(f"put {len(NAMES)} names")


def client(address):
    manager = connect(address)
    tasks, results = manager.tasks(), manager.results()
    done = 0
    while True:
        try:
            name = tasks.get()
        except ShutDown:
            break
        results.put((name, name[0], len(name.encode())))
        tasks.task_done()
        done += 1
    print(f"client {os.getpid()} did {done} tasks")


def master(address):
    manager = connect(address)
    tasks, results = manager.tasks(), manager.results()
    answers = [results.get(timeout=30) for _ in NAMES]
    tasks.join()
    assert tasks.empty(), "the queue is drained"
    assert results.empty()
    assert sorted(name for name, *_ in answers) == sorted(NAMES), "every name once, as the text it was"
    assert all(nbytes == len(name.encode()) for name, _, nbytes in answers)
    families = Counter(family for _, family, _ in answers)
    print(f"{len(answers)} results; most frequent family names: {', '.join(f for f, _ in families.most_common(3))}")
    tasks.shutdown()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("role", choices=["server", "producer", "client", "master"])
    parser.add_argument("--address", default=os.path.join(tempfile.gettempdir(), f"copyless-tasks-{os.getuid()}"))
    args = parser.parse_args()
    host, colon, port = args.address.rpartition(":")
    address = (host, int(port)) if colon else args.address
    {"server": server, "producer": producer, "client": client, "master": master}[args.role](address)


if __name__ == "__main__":
    main()
