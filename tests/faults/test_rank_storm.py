"""Ranks are killed at random moments while they send, collect and reduce.

The local ranks that are left must all be told, by OwnerDiedError, and no value that arrives may be wrong. Nothing is
left of the groups. Under mpiexec the launcher ends the others, or lets them live; then they are told, too.
`COPYLESS_STORM=500` sets how many are killed.
"""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

import pytest

import copyless
from copyless._core import _store
from copyless.comm import _local_world
from copyless.comm._group import Group
from copyless.comm._rank_table import DIED
from tests.conftest import until
from tests.faults import rank_work
from tests.faults.rank_work import work
from tests.faults.test_channel_storm import check_nothing_left

KILLS = int(os.environ.get("COPYLESS_STORM", "45"))
MPI_KILLS = int(os.environ.get("COPYLESS_STORM", "6")) // 2  # a job is started for each, in each way
MPIEXEC = os.path.join(os.path.dirname(sys.executable), "mpiexec")
SIZE = 5
EXPECTED = 0  # the state of a rank that has not begun
PATIENCE = 30  # seconds for the ranks that are left to be told: mere generosity, since they look five times a second


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


@pytest.mark.parametrize("ways", [[], ["-disable-auto-cleanup"]], ids=["others end", "others live"])
def test_ranks_under_mpiexec_end(ways, tmp_path):
    rng = random.Random(12)
    mpis = set(Path("/dev/shm").glob("mpich_shm_*"))
    told = 0
    for k in range(MPI_KILLS):
        place, n = tmp_path / str(k), rng.choice([2, 3, 4])
        place.mkdir()
        command = [
            MPIEXEC,
            *ways,
            "-n",
            str(n),
            sys.executable,
            "-m",
            rank_work.__name__,
            str(rng.random()),
            str(place),
        ]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as job:
            until(lambda place=place, n=n: all((place / str(rank)).exists() for rank in range(n)))
            time.sleep(rng.random() * 0.1)
            pids = [int((place / str(rank)).read_text()) for rank in range(n)]
            begins = [_store.process_start(pid) for pid in pids]
            os.kill(pids[rng.randrange(n)], signal.SIGKILL)
            try:
                said, _ = job.communicate(timeout=PATIENCE)
            except subprocess.TimeoutExpired:
                for pid in pids:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                job.kill()
                pytest.fail(job.communicate()[0])
        assert job.returncode != 0
        assert "AssertionError" not in said, said
        told += said.count("told")
        ranks = list(zip(pids, begins, strict=True))
        until(lambda ranks=ranks: not any(_store.process_lives(*rank) for rank in ranks))
    for segment in set(Path("/dev/shm").glob("mpich_shm_*")) - mpis:
        segment.unlink()  # MPICH's own, which it leaves
    print(f"{MPI_KILLS} ranks killed, {told} told")
    check_nothing_left()
