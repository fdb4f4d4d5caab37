"""mpi4py's own tests of objects run on our communicators, by a changed import only: on MPI and on shared memory.

`make test` downloads them and runs them on 3 ranks. `make test-mpi` runs them on 1 to 4 ranks, with MPICH and Open MPI.
"""

import json
import os
import sys

import pytest

from tests.comm.test_comm import start

HERE = os.path.dirname(os.path.abspath(__file__))
SUITE = os.path.join(HERE, "conformance", "mpi4py_suite.py")
FETCHED = os.path.join(sys.prefix, "mpi4py-suite")
RANKS = [int(n) for n in os.environ.get("COPYLESS_TEST_RANKS", "3").split()]
MPIS = {"mpich": True, "openmpi": "openmpi"}
CHOSEN = os.environ.get("COPYLESS_TEST_MPIS", "mpich").split()

FILES = {
    "mpi": ["test_util_pkl5", "test_p2p_obj", "test_p2p_obj_matched", "test_cco_obj", "test_cco_obj_inter",
    "test_cco_ngh_obj",
            "test_pickle", "test_msgzero"],
    "local": ["test_util_pkl5", "test_p2p_obj", "test_p2p_obj_matched", "test_cco_obj", "test_cco_obj_inter"],
}  # fmt: skip

# Tests that cannot pass, each with the reason.
DEVIATIONS = {
    "testIrecv": "pins that irecv of pkl5 raises: ours works",
    "testCommLock": "asks for mpi4py's private table of locks",
    "testRecvObjArg": "pins mpi4py's warning that buf is deprecated; pkl5, whose names ours are, takes it in silence",
}
LOCAL_DEVIATIONS = {
    **DEVIATIONS,
    "testMixed": "sends buffers by upper-case methods, which belong to MPI",
}


def run(n, transport, mpi, report):
    deviations = LOCAL_DEVIATIONS if transport == "local" else DEVIATIONS
    skips = [argument for name in deviations for argument in ("--skip", name)]
    done = start(n, SUITE, FETCHED, ",".join(FILES[transport]), transport, report, *skips, mpi=mpi)
    for rank in range(n):
        assert os.path.exists(f"{report}.{rank}"), done.stdout + done.stderr
        with open(f"{report}.{rank}") as file:
            status = json.load(file)
        bad = {test for test, result in status.items() if result not in ("pass", "skip")}
        assert not bad, done.stdout + done.stderr
        passed = {test.partition(".")[0] for test, result in status.items() if result == "pass"}
        alone = {"test_cco_obj_inter"} if n == 1 else set()  # skips all: there is no other group
        assert passed | alone == set(FILES[transport])
        assert sum(result == "pass" for result in status.values()) > (200 if n > 1 else 150)


@pytest.mark.skipif(not os.path.isdir(FETCHED), reason="mpi4py's tests are fetched by `make test`")
@pytest.mark.parametrize("n", RANKS)
@pytest.mark.parametrize("mpi", CHOSEN)
def test_suite_on_mpi(mpi, n, tmp_path):
    run(n, "mpi", MPIS[mpi], str(tmp_path / "report"))


@pytest.mark.skipif(not os.path.isdir(FETCHED), reason="mpi4py's tests are fetched by `make test`")
@pytest.mark.parametrize("n", RANKS)
def test_suite_on_shared_memory(n, tmp_path):
    run(n, "local", False, str(tmp_path / "report"))


# ---- mpi4py.futures

FUTURES = os.path.join(HERE, "conformance", "mpi4py_futures_suite.py")
FUTURES_DEVIATIONS = {
    "ThenTest": "of mpi4py's ThenableFuture",
    "CollectTest": "of mpi4py's collect",
    "ComposeTest": "of mpi4py's compose",
    "ThreadPoolTest": "of mpi4py's ThreadPoolExecutor: threads of this process",
    "MPICommExecutorTest": "a context manager on every rank; ours is ProcessPoolExecutor(comm=...)",
    "SharedPoolInitTest": "of executors that share the workers of `python -m mpi4py.futures`",
    "test_multiple_executors": "several executors at a time, which share or start workers: ranks serve one",
    "test_shared_executors": "the same",
    "test_mpi_serialized_support": "of mpi4py's lock around MPI without threads; ours asks for THREAD_MULTIPLE",
    "test_init_kwargs": "options of MPI_Comm_spawn: our workers are ranks that run",
    "test_init_pyargs": "options of MPI_Comm_spawn",
    "test_init_sys_flags": "options of MPI_Comm_spawn",
    "test_init_globals": "options of MPI_Comm_spawn",
    "test_run_name": "the name of the main module in workers that are spawned",
    "test_max_workers_environ": "MPI4PY_FUTURES_MAX_WORKERS",
    "test_use_pkl5_kwarg": "use_pkl5: ours always sends large buffers apart",
    "test_use_pkl5_environ": "the same",
    "test_get_comm_workers": "get_comm_workers: communication among the workers",
    "test_max_workers": "asks for the private _max_workers",
    "test_bootup_shutdown_nowait": "asks for the private _pool",
    "test_shutdown": "asks for the private _pool",
    "test_shutdown_cancel": "asks for the private _pool",
    "test_init_bootup_shutdown": "asks for the private _pool",
    "test_context_manager_shutdown": "asks for the private _pool",
    "test_del_shutdown": "asks for the private _pool",
}
# Without other ranks it is copyless.ProcessPoolExecutor.
ALONE_DEVIATIONS = {
    "test_bad_unpickle": "what does not unpickle in a worker is a TaskUnreadableError, which quotes the error",
    "test_exc_unpickle": "the same",
}


def run_futures(n, transport, mpi, report):
    deviations = FUTURES_DEVIATIONS | (ALONE_DEVIATIONS if n == 1 else {})
    skips = [argument for name in deviations for argument in ("--skip", name)]
    done = start(n, FUTURES, FETCHED, transport, report, *skips, mpi=mpi)
    assert os.path.exists(report), done.stdout + done.stderr
    with open(report) as file:
        status = json.load(file)
    bad = {test for test, result in status.items() if result != "pass"}
    assert not bad, done.stdout + done.stderr
    assert len(status) >= 44, sorted(status)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(not os.path.isdir(FETCHED), reason="mpi4py's tests are fetched by `make test`")
@pytest.mark.parametrize("mpi", CHOSEN)
@pytest.mark.parametrize("n", RANKS)
def test_futures_on_mpi(n, mpi, tmp_path):
    run_futures(n, "mpi", MPIS[mpi], str(tmp_path / "report"))


@pytest.mark.skipif(not os.path.isdir(FETCHED), reason="mpi4py's tests are fetched by `make test`")
@pytest.mark.parametrize("n", RANKS)
def test_futures_on_shared_memory(n, tmp_path):
    run_futures(n, "local", False, str(tmp_path / "report"))
