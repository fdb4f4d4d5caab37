"""Local ranks are killed at random moments while they send, collect and reduce.

The ranks that are left must all be told, by OwnerDiedError, and no value that arrives may be wrong. Nothing is left of
the groups. `COPYLESS_STORM=500` sets how many are killed.
"""

import os
import random
import signal
import time
import traceback

import numpy as np

import copyless
from copyless import comm
from copyless.comm import _local_world
from copyless.comm._group import Group
from copyless.comm._rank_table import DIED
from tests.faults.test_channel_storm import check_nothing_left

KILLS = int(os.environ.get("COPYLESS_STORM", "45"))
SIZE = 5
EXPECTED = 0  # the state of a rank that has not begun
PATIENCE = 30  # seconds for the ranks that are left to be told: mere generosity, since they look five times a second


def work(world, seed):
    """Operations of all kinds, the same at each rank, until one raises."""
    draw = random.Random(seed)
    rank, size = world.rank, world.size
    for i in range(1_000_000):
        n, root = draw.choice([0, 10, 3000, 40_000, 100_000]), draw.randrange(size)
        mine, every = np.full(n, rank + i, "i8"), range(i, i + size)
        what = draw.randrange(7)
        if what == 0:
            sent = world.isend((i, mine), (rank + 1) % size, i % 1000)
            number, array = world.recv(None, (rank - 1) % size, i % 1000)
            assert number == i
            assert len(array) == n
            assert (array == (rank - 1) % size + i).all()
            sent.wait()
        elif what == 1:
            got = world.gather(mine, root)
            assert got is None if rank != root else [a.tolist() for a in got] == [[k] * n for k in every]
        elif what == 2:
            assert (world.allreduce(mine, draw.choice([comm.SUM, comm.MAX])) >= i).all()
        elif what == 3:
            got = world.reduce(mine, comm.SUM, root)
            assert got is None if rank != root else len(got) == n and (got == sum(every)).all()
        elif what == 4:
            got = world.alltoall([mine + k for k in range(size)])
            assert all(len(a) == n and (a == k + rank).all() for k, a in zip(every, got, strict=True))
        elif what == 5:
            assert (world.bcast(mine, root) == root + i).all()
        else:
            assert world.allreduce(rank) == sum(range(size))
            world.barrier()


def start(handle, rank, seed):
    """A rank in a forked process. It ends with 0 if it was told that another died."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        world = _local_world.join(Group.from_handle(handle), rank)
        try:
            work(world, seed)
        except copyless.OwnerDiedError:
            code = 0
        world._engine.close()
    except BaseException:
        traceback.print_exc()
    os._exit(code)


def ended(pids, seconds):
    """The exit codes of processes that end within so many seconds."""
    codes, deadline = {}, time.monotonic() + seconds
    while len(codes) < len(pids) and time.monotonic() < deadline:
        for pid in pids:
            if pid not in codes and (found := os.waitpid(pid, os.WNOHANG))[0]:
                codes[pid] = os.waitstatus_to_exitcode(found[1])
        time.sleep(0.002)
    return codes


def test_ranks_that_are_left_are_told():
    rng = random.Random(11)
    killed = groups = 0
    while killed < KILLS:
        group = Group(SIZE)
        seed = rng.random()
        pids = [start(group.handle, rank, seed) for rank in range(SIZE)]
        left = list(pids)
        try:
            for _ in range(rng.choice([1, 3, 4, 5])):
                time.sleep(rng.random() * 0.06)
                victim = left.pop(rng.randrange(len(left)))
                os.kill(victim, signal.SIGKILL)
                code = os.waitstatus_to_exitcode(os.waitpid(victim, 0)[1])
                assert code in (-signal.SIGKILL, 0)  # 0: it had been told of another
                killed += code != 0
                rank = pids.index(victim)
                if group.state(rank) == EXPECTED:  # killed before it began: only its starter can know
                    group.end(rank, DIED)
            codes = ended(left, PATIENCE)
            left = [pid for pid in left if pid not in codes]
            assert not left, "not told"
            assert set(codes.values()) <= {0}
        finally:
            for pid in left:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
        groups += 1
        del group
        copyless.reap()
    print(f"{killed} ranks of {groups} groups killed")
    check_nothing_left()
