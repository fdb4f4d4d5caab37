"""Large objects between nodes go as a head and its buffers: all ways to receive them, threads, signals."""

import os

import pytest

from tests.comm.test_comm import HERE, start


@pytest.mark.parametrize("mpi", [True, "openmpi"])
def test_each_buffer_comes_to_its_head_and_no_receive_meets_it(mpi):
    done = start(2, os.path.join(HERE, "parts.py"), mpi=mpi, COPYLESS_NODES="2")
    assert done.stdout.count("end") == 2, done.stdout + done.stderr
