"""Collective operations within a node: small objects on a board, large arrays reduced in slices."""

import os
import pickle
import struct

import pytest

from copyless._transfer._memory import Memory
from copyless.errors import CorruptSegmentError
from tests.comm.test_comm import HERE, program, start  # noqa: F401  # a fixture


@pytest.mark.parametrize(("transport", "n"), [("local", 3), ("local", 5), ("mpi", 3), ("mpi", 4)])
def test_large_arrays_are_reduced_in_slices_to_the_same_bits(transport, n):
    done = start(n, os.path.join(HERE, "reductions.py"), mpi=transport == "mpi")
    assert done.stdout.count("held") == n, done.stdout + done.stderr


def test_objects_of_every_size_and_ranks_that_run_ahead(program):  # noqa: F811
    path = program("""
        from mpi4py import MPI
        from copyless.comm import mpi
        import numpy as np
        plain, w = MPI.COMM_WORLD, mpi.Intracomm(MPI.COMM_WORLD)
        rank, size = w.rank, w.size
        def things():
            for n in (0, 1, 100, 900, 1000, 1060, 1100, 1200, 2040, 2100, 9000, 70_000):
                yield ["x" * n if rank == k % size else k for k in range(size)]
                yield [{"n": n, "k": k, "t": "y" * (n // size)} for k in range(size)]
                yield [b"z" * n, None, {1, n}, *[rank] * size][:size]
                yield [np.arange(n), *["x" * n] * size][:size]
        def same(a, b):
            return repr(a) == repr(b)
        for i, each in enumerate(things()):
            root, mine = i % size, each[rank]
            assert same(w.bcast(mine, root), plain.bcast(mine, root))
            assert same(w.gather(mine, root), plain.gather(mine, root))
            assert same(w.scatter(each, root), plain.scatter(each, root))
            assert same(w.allgather(mine), plain.allgather(mine))
            assert same(w.alltoall(each), plain.alltoall(each))
            for op in (lambda a, b: [a, b], lambda a, b: b):
                assert same(w.reduce(mine, op, root), plain.reduce(mine, op, root))
                assert same(w.allreduce(mine, op), plain.allreduce(mine, op))
            for op in (MPI.MAX, MPI.SUM):
                assert same(w.reduce(f"{mine}", op, root), plain.reduce(f"{mine}", op, root))
                assert same(w.allreduce(f"{mine}", op), plain.allreduce(f"{mine}", op))
        for root in range(size):  # ranks that need no answer go ahead until the slots are used up
            for i in range(1000):
                got = w.bcast((root, i), root)
                assert got == (root, i)
            for i in range(1000):
                got = w.gather((rank, i), root)
                assert got is None if rank != root else got == [(k, i) for k in range(size)]
        held = [1]
        assert w.allreduce(held, MPI.MAX) is not held  # no rank gets the caller's own list
        large = np.ones(3_000_000)
        if rank == 0:
            request = plain.Isend(large, 1)  # MPI moves it only while rank 0 calls MPI, as it does while it waits
            w.barrier()
            request.Wait()
        else:
            if rank == 1:
                plain.Recv(large, 0)
            w.barrier()
        print("held", flush=True)
    """)
    done = start(3, path, mpi=True)
    assert done.stdout.count("held") == 3, done.stdout + done.stderr


def test_what_fails_in_a_reduction_is_told_to_the_ranks_that_wait(program):  # noqa: F811
    path = program("""
        from copyless.comm import mpi
        from mpi4py import MPI
        w = mpi.Intracomm(MPI.COMM_WORLD)
        def fails(a, b):
            if w.rank == 2:
                raise ZeroDivisionError("as planned")
            return a + b
        for call, told in ((lambda: w.allreduce(1, fails), {0, 1, 2, 3}), (lambda: w.reduce(1, fails, 0), {0, 2}),
                           (lambda: w.reduce(1, fails, 3), {0, 2, 3})):
            for _ in range(2):
                try:
                    call()
                    assert w.rank not in told
                except (ZeroDivisionError, mpi.CommError) as error:
                    assert w.rank in told and "as planned" in str(error), error
                    assert w.rank == 2 or "rank 2 failed in" in str(error), error
            assert w.allgather(w.rank) == [0, 1, 2, 3]
        if w.rank == 0:
            for call in (lambda: w.bcast(lambda: 1), lambda: w.scatter([1] * 3 + [lambda: 1]), lambda: w.scatter([1])):
                try:
                    call()
                    print("wrong")
                except Exception as error:
                    assert not isinstance(error, mpi.CommError), error
        assert w.bcast(5) == 5  # a root that could not pickle its object has begun nothing
        print("held", flush=True)
    """)
    done = start(4, path, mpi=True)
    assert done.stdout.count("held") == 4, done.stdout + done.stderr
    assert "wrong" not in done.stdout


def test_without_room_for_a_board_operations_go_by_messages(program):  # noqa: F811
    path = program("""
        from copyless.comm import _mpi_communicator as module, mpi
        from copyless.errors import OutOfSharedMemory
        from mpi4py import MPI
        class Memory:
            def allocate(*args, **more):
                raise OutOfSharedMemory("none left")
        module.Memory = Memory
        w = mpi.Intracomm(MPI.COMM_WORLD)
        for i in range(3):
            assert w.allgather(w.rank) == [0, 1, 2] and w.allreduce(i) == 3 * i and w.bcast(i, i) == i
            w.barrier()
        assert w._board is None
        print("held", flush=True)
    """)
    done = start(3, path, mpi=True)
    assert done.stdout.count("held") == 3, done.stdout + done.stderr


def test_a_rank_that_dies_while_slices_are_computed_is_named(program):  # noqa: F811
    path = program("""
        import os, signal
        import numpy as np
        import copyless
        from copyless import comm
        from copyless.comm import _slices
        w = comm.world()
        def die(*args):
            os.kill(os.getpid(), signal.SIGKILL)
        if w.rank == 1:
            _slices.Division.compute = die
        try:
            w.allreduce(np.ones(100_000))
        except copyless.OwnerDiedError as error:
            assert "rank 1" in str(error)
            print("told", flush=True)
            os._exit(0)
    """)
    done = start(4, path)
    assert "told" in done.stdout, done.stdout + done.stderr
    assert "Stale" not in done.stderr


class Alone:
    """What a board needs of the messages of its communicator, if there are none."""

    def failure(self, text):
        return RuntimeError(text)


@pytest.mark.parametrize(
    ("at", "words", "error"),
    [
        (24, struct.pack("<I", 5000), "names 5000 bytes"),
        (20, struct.pack("<I", 9), "gives nothing"),
        (20, struct.pack("<I", 0), "gives nothing"),
        (20, struct.pack("<I", 2), "an object at"),
        (16, struct.pack("<I", 1), "called bcast"),
        (16, struct.pack("<I", 15), "something with tag 15 where"),
        (8, struct.pack("<Q", 99), "called"),
        (32, b"\x80\x05\x96" + b"\xff" * 7, None),
        (32, b"\xff" * 16, None),
    ],
)
def test_a_board_refuses_a_damaged_slot(at, words, error):
    from copyless.comm import _board

    memory = Memory.allocate(_board.bytes_for(2), clear=True)
    mine, theirs = _board.Board(memory, 0, 2, Alone()), _board.Board(memory, 1, 2, Alone())
    assert theirs.gather({"a": 1}, 0) is None
    begin = memory.tobytes().index(struct.pack("<Q", 1), 64)
    assert begin % 64 == 0
    memory[begin + at : begin + at + len(words)] = words
    with pytest.raises((CorruptSegmentError, RuntimeError, pickle.UnpicklingError), match=error):
        mine.gather({"a": 2}, 0)


def test_an_operation_that_fails_leaves_no_message_to_a_later_one(program):  # noqa: F811
    path = program("""
        import threading
        from mpi4py import MPI
        from copyless.comm import mpi
        w = mpi.Intracomm(MPI.COMM_WORLD)
        rank = w.rank

        class Unloadable:
            def __reduce__(self):
                return int, ("x" * 5000,)

        def add(a, b):
            if failing:
                raise ZeroDivisionError
            return a + b

        for n in (5, 5000):
            for call in (w.reduce, w.allreduce):
                failing, told = True, None
                try:
                    call("a" * n, add)  # raises at rank 0 before it has what rank 2 gives
                except (ZeroDivisionError, mpi.CommError) as error:
                    told = error
                assert told is not None or (call == w.reduce and rank)
                failing = False
                got = call("b" * n, add)
                assert got == ("b" * 3 * n if rank == 0 or call == w.allreduce else None), got
            for call in (w.gather, w.allgather):
                try:
                    call(Unloadable() if rank == 1 else "c" * n)
                    assert rank and call == w.gather
                except ValueError:
                    pass
                got = call("d" * n)
                assert got == (["d" * n] * 3 if rank == 0 or call == w.allgather else None), got
        d = w.Dup()
        try:
            if rank == 0:
                try:
                    d.alltoall([0, threading.Lock(), 2])
                    print("wrong")
                except TypeError:
                    d.barrier()
            else:
                d.alltoall(["e" * 5000] * 3)
        except mpi.CommError as error:
            assert "alltoall" in str(error) and "barrier" in str(error), error
            print("told", flush=True)
        print("held", flush=True)
    """)
    done = start(3, path, mpi=True)
    assert (done.stdout.count("held"), done.stdout.count("told"), done.stdout.count("wrong")) == (3, 3, 0), (
        done.stdout + done.stderr
    )
