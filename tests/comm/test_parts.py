"""Large objects between nodes go as a head and its buffers: all ways to receive them, threads, signals."""

import os

import pytest

from tests.comm.test_comm import HERE, start


@pytest.mark.parametrize("way", ["mpich", "mpich by its network", "openmpi"])
def test_each_buffer_comes_to_its_head_and_no_receive_meets_it(way):
    mpi = "openmpi" if way == "openmpi" else True
    done = start(
        2,
        os.path.join(HERE, "parts.py"),
        mpi=mpi,
        COPYLESS_NODES="2",
        MPIR_CVAR_NOLOCAL="1" if "network" in way else "0",
    )
    assert done.stdout.count("end\n") == 2, done.stdout + done.stderr
