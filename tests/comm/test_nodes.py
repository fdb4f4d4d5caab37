"""Collective operations among nodes: MPI's own carry what leaders of nodes exchange. COPYLESS_NODES makes nodes of one
machine.
"""

import os
import shutil
import signal
import subprocess
import sys

import pytest

from tests.comm.test_comm import BIN, HERE, program, start  # noqa: F401  # a fixture
from tests.conftest import until


@pytest.mark.parametrize(("n", "nodes"), [(2, 2), (3, 2), (4, 2), (4, 3)])
@pytest.mark.parametrize("mpi", [True, "openmpi"])
def test_objects_of_all_sizes_from_every_rank(n, nodes, mpi):
    done = start(n, os.path.join(HERE, "nodes.py"), mpi=mpi, COPYLESS_NODES=str(nodes))
    assert f"hold on {n}" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize("mpi", [True, "openmpi"])
def test_leaders_in_other_operations_are_all_told_at_once(mpi, program):  # noqa: F811
    """Not after half a second, and not only the first time: every rank raises, and other communicators hold."""
    path = program("""
        import numpy as np
        from copyless import comm
        w = comm.world()
        large = np.ones(3 << 20, "u1")
        second = w.rank >= 2  # of the second of two nodes
        cases = [
            (lambda d: d.bcast(large if w.rank == 0 else None, 0), lambda d: d.bcast(None, 1), "bcast(root=0)", "bcast(root=1)"),
            (lambda d: d.allgather(large), lambda d: d.alltoall([1] * 4), "allgather", "alltoall"),
            (lambda d: d.allreduce(large), lambda d: d.allgather(large), "allreduce", "allgather"),
            (lambda d: d.scan(1), lambda d: d.reduce(1, root=3), "scan", "reduce(root=3)"),
        ]
        for one, other, first, last in cases:
            d = w.Dup()
            d.barrier()
            try:
                (other if second else one)(d)
                d.allgather(1)  # a root that was done with the mistaken one is told here
                print("wrong", first)
            except comm.mpi.CommError as error:
                assert f"{first} where" in str(error) or f"{last} where" in str(error), error
                print("caught", flush=True)
            assert w.allgather(w.rank) == list(range(w.size))
        print("end")
    """)  # noqa: E501
    done = start(4, path, mpi=mpi, COPYLESS_NODES="2")
    assert done.stdout.count("end") == 4, done.stdout + done.stderr
    assert done.stdout.count("caught") == 16, done.stdout + done.stderr
    assert "wrong" not in done.stdout


def test_ctrl_c_is_answered_while_a_leader_waits_for_others(program, tmp_path):  # noqa: F811
    path = program("""
        import os, sys, signal, time
        from copyless import comm
        w = comm.world()
        w.allgather(1)
        if w.rank == 0:
            with open(sys.argv[1], "w") as file:
                file.write(str(os.getpid()))
            try:
                w.allgather(2)
                print("wrong")
            except KeyboardInterrupt:
                print("answered", flush=True)
                w.Abort(3)
        else:
            signal.pause()
    """)
    told = tmp_path / "pid"
    launched = subprocess.Popen(
        [os.path.join(BIN, "mpiexec"), "-n", "2", sys.executable, path, str(told)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "COPYLESS_NODES": "2"},
    )
    try:
        until(lambda: told.exists() and told.read_text(), seconds=60)
        os.kill(int(told.read_text()), signal.SIGINT)
        output = launched.communicate(timeout=60)[0]
    finally:
        launched.kill()
    assert "answered" in output
    assert "wrong" not in output


@pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("unshare"), reason="needs root, and unshare, for a /dev/shm of its own"
)
def test_bundles_that_find_no_room_in_shared_memory_arrive_all_the_same(program):  # noqa: F811
    path = program("""
        import warnings
        import numpy as np
        from copyless import comm
        w = comm.world()
        warnings.simplefilter("ignore")
        big = np.full(30 << 20, w.rank, "u1")
        got = w.allgather(big)
        assert [int(each[-1]) for each in got] == [0, 1, 2]
        got = w.bcast(big if w.rank == 1 else None, 1)
        assert int(got[-1]) == 1 and got.flags.writeable
        print("held")
    """)
    mount = 'mount -t tmpfs -o size=40m tmpfs /dev/shm && mkdir -pm 700 "$COPYLESS_DIR" && exec "$@"'
    limited = ["unshare", "-m", "sh", "-c", mount, "sh"]
    done = start(3, path, mpi=True, before=limited, COPYLESS_NODES="2")
    assert done.stdout.count("held") == 3, done.stdout + done.stderr


def test_more_bytes_than_mpi_counts_are_counted_in_units_and_more_than_that_are_refused(program):  # noqa: F811
    path = program("""
        import numpy as np
        from copyless import comm
        from copyless.comm import _mpi_engine
        _mpi_engine.COUNTABLE = 10_000  # as if MPI counted no further
        w = comm.world()
        part = np.full(100_000, w.rank, "u1")
        assert [int(each[-1]) for each in w.allgather(part)] == list(range(w.size))
        got = w.gather(part, 1)
        assert got is None or [int(each[-1]) for each in got] == list(range(w.size))
        assert w.bcast(part if w.rank == 0 else None).sum() == 0
        got = w.scatter([part + r for r in range(w.size)] if w.rank == 2 else None, 2)
        assert (got == 2 + w.rank).all()
        small = np.full(20_000, w.rank, "u1")
        assert [int(each[-1]) for each in w.alltoall([small] * w.size)] == list(range(w.size))
        try:
            w.allgather(np.ones(1 << 20, "u1"))
            print("wrong")
        except (OverflowError, comm.mpi.CommError) as error:
            assert "where MPI carries 640000" in str(error), error
        assert w.allgather(w.rank) == list(range(w.size))
        print("held")
    """)
    done = start(3, path, mpi=True, COPYLESS_NODES="2")
    assert done.stdout.count("held") == 3, done.stdout + done.stderr
    assert "wrong" not in done.stdout
