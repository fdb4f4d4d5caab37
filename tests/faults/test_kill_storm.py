"""A thousand kills at random moments while survivors work: no hang, no leaked byte, no block freed while it is held.

A word of the owner slot of each victim says, after its death, what it did last: at least a fifth must have died inside
a core operation. The survivors compare what they rely on with numbers kept outside the library.
"""

import multiprocessing
import os
import random
import signal
import time

import copyless
from copyless._core import _store
from copyless.cli.look import listing
from tests.conftest import until

KILLS = 1000


def victim(pipe, kept, seed):
    """Create, attach, pickle, load, name, free, as fast as possible, until killed."""
    rng = random.Random(seed)
    handle = copyless.handle(kept)
    ours, theirs = multiprocessing.Pipe()
    n = 0
    while True:
        n += 1
        size = rng.choice([10, 300, 5000, 70_000, 300_000])
        a = copyless.empty(size, "u1")
        b = copyless.empty(rng.choice([100, 40_000]), "u1")
        attached = copyless.attach(handle)
        theirs.send(a[::2])
        del a
        c = ours.recv()
        del b, attached
        if n % 7 == 0:
            d = copyless.zeros(50, "u1", name=f"storm-{os.getpid()}-{n}")
            copyless.open(f"storm-{os.getpid()}-{n}")
            del d
        if n % 3 == 0:
            copyless.trim()  # so that segments are created and removed all the time
        if n % 50 == 0 and not pipe.poll(0):
            pipe.send(copyless.full(1000, 7, "i4"))  # sent, never loaded, or loaded by the survivor
        del c


def survive(stop, failed):
    """Work during the kills: what it holds must never change."""
    rng = random.Random(5)
    held = []
    while not stop.is_set():
        value = rng.randrange(250)
        held.append((copyless.full(rng.choice([100, 5000, 70_000]), value, "u1"), value))
        if len(held) > 20:
            array, value = held.pop(rng.randrange(20))
            if not (array == value).all():
                failed.set()
        if rng.random() < 0.02:
            copyless.reap()


def test_a_thousand_kills():
    context = multiprocessing.get_context("fork")
    kept = copyless.full(50_000, 9, "i4")
    stop, failed = context.Event(), context.Event()
    survivors = [context.Process(target=survive, args=(stop, failed)) for _ in range(2)]
    for process in survivors:
        process.start()
    rng = random.Random(1)
    before = _store.statistics()
    running: list = []
    kills = 0
    while kills < KILLS:
        while len(running) < 6:
            ours, theirs = context.Pipe()
            process = context.Process(target=victim, args=(theirs, kept, rng.random()))
            process.start()
            theirs.close()
            running.append((process, ours))
        time.sleep(rng.random() * 0.02)
        process, pipe = running.pop(rng.randrange(len(running)))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        kills += 1
        if rng.random() < 0.5:
            try:
                while pipe.poll(0):
                    assert (pipe.recv() == 7).all()  # whole, although its sender is dead
            except EOFError:
                pass
        pipe.close()
        process.close()
        assert (kept == 9).all()
    for process, pipe in running:
        process.kill()
        process.join()
        pipe.close()
    stop.set()
    for process in survivors:
        process.join(20)
        assert process.exitcode == 0
    assert not failed.is_set()
    copyless.reap()
    _store.audit()
    after = _store.statistics()
    deaths = after["deaths"] - before["deaths"]
    inside = after["deaths_in_operation"] - before["deaths_in_operation"]
    print(
        f"{deaths} deaths, {inside} inside an operation, {after['recoveries'] - before['recoveries']} taken-over locks"
    )
    assert deaths >= KILLS * 0.9  # some are killed before they have started, as forks that never registered
    assert inside >= deaths / 5
    # Only undelivered messages of this family may be left. They end with it, or expire.
    copyless.configure(message_ttl=600.0)
    mine = [block for block in listing()["blocks"] if not block["messages"]]
    assert len(mine) == 1
    until(lambda: _drop_messages() == 0)
    assert [block["bytes"] for block in listing()["blocks"]] == [kept.nbytes]


def _drop_messages() -> int:
    """End all undelivered messages, as the end of the family would."""
    for hold in _store.snapshot()["holds"]:
        if hold["kind"] == "message":
            _store.drop_message(hold["index"])
    return int(_store.statistics()["messages"])


def test_parent_and_child_of_a_fork_killed_at_random():
    for i in range(60):
        read, write = os.pipe()
        parent = os.fork()
        if parent == 0:
            arrays = [copyless.full(n, 3, "u1") for n in (100, 5000, 100_000)]
            os.write(write, b"%d " % os.getpid())
            while True:
                child = os.fork()
                if child == 0:
                    copyless.empty(1000)
                    os._exit(0 if all((a == 3).all() for a in arrays) else 1)
                if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) not in (0, -9):
                    os.write(write, b"bad ")
        os.close(write)
        pid = int(os.read(read, 20).split()[0])
        time.sleep(random.random() * 0.01)
        if i % 2:
            with open(f"/proc/{pid}/task/{pid}/children") as f:
                children = f.read().split()
            for text in children:
                try:
                    os.kill(int(text), signal.SIGKILL)
                except ProcessLookupError:
                    pass
        os.kill(pid, signal.SIGKILL)
        os.waitpid(parent, 0)
        assert b"bad" not in os.read(read, 1000)
        os.close(read)
    until(lambda: (copyless.reap(), listing()["blocks"] == [])[1])
    _store.audit()


def test_killed_all_at_once_everything_is_free_after_the_next_use():
    from tests.conftest import start_python

    group = [
        start_python("import copyless; a = [copyless.full(100_000, 1.0) for _ in range(5)]; print('up'); input()")
        for _ in range(4)
    ]
    for process in group:
        process.stdout.readline()
    for process in group:
        process.kill()
    for process in group:
        process.communicate()
    copyless.zeros(5)
    time.sleep(0.02)
    copyless.zeros(5)  # an ordinary call, not reap: it finds the dead processes by itself
    assert [b for b in listing()["blocks"] if b["bytes"] > 100] == []
