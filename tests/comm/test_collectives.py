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


@pytest.mark.parametrize("board", [True, False])
def test_an_operation_that_fails_leaves_no_message_to_a_later_one(board, program):  # noqa: F811
    path = program("""
        import os
        import threading
        from mpi4py import MPI
        from copyless.comm import _mpi_communicator as module, mpi
        board = os.environ["BOARD"] == "True"
        if not board:
            module._board_of = lambda channel: None
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
            for call, bad in ((w.gather, 1), (w.allgather, 1), (w.gather, 0), (w.allgather, 0)):
                try:
                    call(Unloadable() if rank == bad else "c" * n)
                    assert rank and call == w.gather
                except (ValueError, mpi.CommError):
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
                    if board:  # nothing has begun
                        d.barrier()
                    else:
                        print("told", flush=True)
            else:
                d.alltoall(["e" * 5000] * 3)
        except mpi.CommError as error:
            assert "alltoall" in str(error) and ("barrier" if board else "TypeError") in str(error), error
            print("told", flush=True)
        print("held", flush=True)
    """)
    done = start(3, path, mpi=True, BOARD=str(board))
    assert (done.stdout.count("held"), done.stdout.count("told"), done.stdout.count("wrong")) == (3, 3, 0), (
        done.stdout + done.stderr
    )


INTERRUPT = """
        import signal

        def interrupted(call):
            \"\"\"Call, and raise KeyboardInterrupt in it, as Ctrl-C does, as soon as it waits.\"\"\"
            def handler(number, frame):
                while frame is not None:
                    if frame.f_code.co_name == "wait" and "_mpi_waiting" in frame.f_code.co_filename:
                        signal.setitimer(signal.ITIMER_REAL, 0)
                        raise KeyboardInterrupt
                    frame = frame.f_back
            signal.signal(signal.SIGALRM, handler)
            signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
            try:
                call()
                print("wrong: not interrupted", flush=True)
            except KeyboardInterrupt:
                pass
"""


@pytest.mark.parametrize("board", [True, False])
def test_after_ctrl_c_no_message_is_taken_for_one_of_a_later_operation(board, program):  # noqa: F811
    path = program(f"""
        from mpi4py import MPI
        from copyless.comm import _mpi_communicator as module, mpi
        import numpy as np
        {INTERRUPT}
        if not {board}:
            module._board_of = lambda channel: None
        plain, w = MPI.COMM_WORLD, mpi.Intracomm(MPI.COMM_WORLD)
        rank = w.rank
        w.allgather(0)  # makes what collective operations need
        def texts(k): return f"{{k}} of {{rank}}" + "x" * 5000
        def text(k, other): return f"{{k}} of {{other}}" + "x" * 5000
        def array(k): return np.full(100_000, k * (rank + 1))
        def same(a, b): return np.array_equal(a, b)
        # Each: a call, what it gives at this rank, and whether the others need the rank that leaves it.
        cases = [
            (lambda k: w.gather(texts(k)), lambda k: None if rank else [text(k, r) for r in range(3)], False),
            (lambda k: w.allgather(texts(k)), lambda k: [text(k, r) for r in range(3)], not {board}),
            (lambda k: w.alltoall([texts(k)] * 3), lambda k: [text(k, r) for r in range(3)], False),
            (lambda k: w.bcast(texts(k), 2), lambda k: text(k, 2), False),
            (lambda k: w.scatter([texts(k)] * 3, 2), lambda k: text(k, 2), False),
            (lambda k: w.allreduce(array(k)), lambda k: np.full(100_000, 6 * k), True),
            (lambda k: w.reduce(array(k)), lambda k: None if rank else np.full(100_000, 6 * k), True),
            (lambda k: w.allreduce(texts(k)), lambda k: text(k, 0) + text(k, 1) + text(k, 2), True),
            (lambda k: w.allreduce(array(k), lambda a, b: a + b), lambda k: np.full(100_000, 6 * k), True),
            (lambda k: w.scan(texts(k)), lambda k: "".join(text(k, r) for r in range(rank + 1)), None),
        ]
        for k, (call, gives, needed) in enumerate(cases):
            def first():
                try:
                    got = call(2 * k + 1)
                    assert rank or not needed, (k, got)
                    assert same(got, gives(2 * k + 1)), (k, got)
                except mpi.CommError as error:
                    assert "KeyboardInterrupt" in str(error) and needed is not False, (k, error)
            if needed is None:  # no rank waits for rank 2
                rank == 2 and interrupted(lambda: call(2 * k + 1)) or rank == 2 and plain.send(1, 1)
                if rank == 1:
                    plain.recv()
                if rank != 2:
                    first()
            elif rank == 0:
                interrupted(lambda: call(2 * k + 1))
                plain.send(1, 2)
            else:
                if rank == 2:
                    plain.recv()  # rank 0 has left the operation
                first()
            for again in (2, 3):
                got = call(2 * k + again)
                assert same(got, gives(2 * k + again)), (k, again, got)
        print("held", flush=True)
    """)
    done = start(3, path, mpi=True)
    assert (done.stdout.count("held"), "wrong" in done.stdout) == (3, False), done.stdout + done.stderr


@pytest.mark.parametrize("victim", [0, 1, 3])
@pytest.mark.parametrize("raised", ["KeyboardInterrupt", "TimeoutError"])
def test_who_leaves_an_operation_between_nodes_is_told_of_and_none_hangs(raised, victim, program):  # noqa: F811
    path = program(f"""
        from mpi4py import MPI
        from copyless.comm import mpi
        import numpy as np
        {INTERRUPT.replace("KeyboardInterrupt", raised)}
        plain, w = MPI.COMM_WORLD, mpi.Intracomm(MPI.COMM_WORLD)
        rank, size, victim = w.rank, w.size, {victim}
        large = np.ones(100_000)
        calls = [  # the victim waits for others in each
            lambda d: d.allgather(1), lambda d: d.allgather(large), lambda d: d.alltoall([large] * size),
            lambda d: d.allreduce(1), lambda d: d.allreduce(large), lambda d: d.allreduce(large, lambda a, b: a + b),
            lambda d: d.gather(large, victim), lambda d: d.bcast(large, (victim + 2) % size),
            lambda d: d.scatter([large] * size, (victim + 2) % size), lambda d: d.reduce(large, root=victim),
        ]
        for k, call in enumerate(calls):
            d = w.Dup()
            d.allgather(0)  # makes what collective operations need
            if rank == victim:
                interrupted(lambda: call(d))
            plain.barrier()  # the victim has left
            told = 0
            for each in (call, lambda d: d.allreduce(rank), lambda d: d.allreduce(large), lambda d: d.bcast(k, 2)):
                if each is call and rank == victim:
                    continue
                try:
                    each(d)
                    assert not told, "used again"
                except mpi.CommError as error:
                    assert f"rank {{victim}} failed in" in str(error) and "{raised}" in str(error), error
                    assert each is call or "make another" in str(error), error
                    told += 1
            assert told >= 3, told
            assert w.allreduce(rank) == sum(range(size))  # other communicators hold
            d.Free()
        print("held", flush=True)
    """)
    done = start(4, path, mpi=True, COPYLESS_NODES="2")
    assert (done.stdout.count("held"), "wrong" in done.stdout) == (4, False), done.stdout + done.stderr


@pytest.mark.parametrize("board", [True, False])
@pytest.mark.parametrize("nodes", ["1", "3"])
def test_no_message_that_was_left_in_a_freed_communicator_is_taken_in_a_new_one(nodes, board, program):  # noqa: F811
    """MPI gives the number of a freed communicator to a new one, with the messages that nobody received."""
    path = program(f"""
        from mpi4py import MPI
        from copyless.comm import _mpi_communicator as module, mpi
        import numpy as np
        {INTERRUPT}
        if not {board}:
            module._board_of = lambda channel: None
        plain, w = MPI.COMM_WORLD, mpi.Intracomm(MPI.COMM_WORLD)
        rank = w.rank
        w.allgather(0)
        d = w.Dup()
        d.allgather(0)
        if rank == 0:
            interrupted(lambda: d.gather(np.zeros(100_000)))
            plain.barrier()
        else:
            plain.barrier()  # rank 0 has left
            try:
                d.gather(np.zeros(100_000))
            except mpi.CommError as error:
                assert "KeyboardInterrupt" in str(error), error
        d.Free()
        for turn in (1, 2, 3):
            d = w.Dup()
            d.allgather(0)
            array = np.full(100_000, turn)
            got = d.gather(array)
            assert rank or [int(each[0]) for each in got] == [turn] * 3, got
            assert d.scatter([array] * 3)[0] == d.bcast(array)[0] == turn
            plain.barrier()
            d.Free()
        print("held", flush=True)
    """)
    done = start(3, path, mpi=True, COPYLESS_NODES=nodes)
    assert (done.stdout.count("held"), "wrong" in done.stdout) == (3, False), done.stdout + done.stderr


@pytest.mark.parametrize("nodes", ["1", "2"])
def test_the_first_operation_of_a_communicator_can_be_called_again_after_ctrl_c(nodes, program):  # noqa: F811
    path = program(f"""
        from mpi4py import MPI
        from copyless.comm import mpi
        {INTERRUPT}
        plain, w = MPI.COMM_WORLD, mpi.Intracomm(MPI.COMM_WORLD)
        for first in (lambda d: d.allgather(1), lambda d: d.reduce(1), lambda d: d.bcast(1, 1)):
            d = w.Dup()
            if w.rank == 0:
                interrupted(lambda: first(d))
            plain.barrier()  # rank 0 has left
            first(d)
            assert d.allgather(d.rank) == [0, 1, 2]
        print("held", flush=True)
    """)
    done = start(3, path, mpi=True, COPYLESS_NODES=nodes)
    assert (done.stdout.count("held"), "wrong" in done.stdout) == (3, False), done.stdout + done.stderr


def test_an_operation_in_place_does_not_change_the_callers_object(program):  # noqa: F811
    path = program("""
        from copyless import comm
        import numpy as np
        w = comm.world()
        rank, size = w.rank, w.size
        def into_first(a, b):
            a += b
            return a
        def into_second(a, b):
            b += a
            return b
        class Adds:
            def __init__(self, value):
                self.value = value
            def __add__(self, other):
                self.value += other.value
                return self
            def __eq__(self, other):
                return self.value == other.value
        for n in (1, 400, 2000, 300_000):
            for make in (lambda k: [k] * n, lambda k: [(k, k)] * n, lambda k: np.full(n, k)):
                mine, kept = make(rank + 1), make(rank + 1)
                whole = [make(k + 1) for k in range(size)]
                for op in (into_first, into_second):
                    def true(upto):
                        if isinstance(kept, list):
                            each = whole[:upto] if op is into_first else whole[:upto][::-1]
                            return sum(each, [])
                        return sum(whole[:upto])
                    for call, upto in ((w.reduce, size), (w.allreduce, size), (w.scan, rank + 1), (w.exscan, rank)):
                        got = call(mine, op)
                        assert np.array_equal(mine, kept), (n, op, call)
                        none = (call == w.reduce and rank) or (call == w.exscan and rank == 0)
                        if op is into_second and isinstance(kept, list):
                            assert none or sorted(got) == sorted(true(upto))
                        else:
                            assert got is None if none else np.array_equal(got, true(upto)), (n, op, call, got)
            mine = Adds([rank] * n)
            for call in (w.reduce, w.allreduce, w.scan):
                got = call(mine)
                assert mine.value == [rank] * n
        print("held", flush=True)
    """)
    for mpi, nodes in ((True, "1"), (True, "2"), (False, "1")):
        done = start(4, path, mpi=mpi, COPYLESS_NODES=nodes)
        assert done.stdout.count("held") == 4, (mpi, nodes, done.stdout + done.stderr)


def test_operations_of_both_kinds_are_the_same_or_are_told(program):  # noqa: F811
    path = program("""
        import operator
        from mpi4py import MPI
        from copyless import comm
        from copyless.comm import _constants, mpi
        import numpy as np
        plain, w = MPI.COMM_WORLD, mpi.Intracomm(MPI.COMM_WORLD)
        rank, size = w.rank, w.size
        def same(a, b):
            return repr(a) == repr(b)
        nan = float("nan")
        values = [[(1, 0), (1, 1), (0, 2)], [[2, 2], [2, 1], [2, 0]],
                  [(nan, 0), (2, 1), (2, 0)], [(2, 0), (nan, 1), (2, 2)]]
        for name in ("MAXLOC", "MINLOC", "REPLACE", "NO_OP"):
            theirs, ours = getattr(MPI, name), getattr(_constants, name)
            for each in values:
                for root in range(size):
                    expected = plain.reduce(each[rank], theirs, root)
                    assert same(w.reduce(each[rank], ours if rank == 1 else theirs, root), expected), (name, each)
                assert same(w.allreduce(each[rank], ours if rank == 1 else theirs), plain.allreduce(each[rank], theirs))
        for mine in (1, np.ones(3), "x" * 3000, np.ones(100_000)):
            for odd in range(size):
                for one, other, what in ((operator.add, lambda a, b: a + b, "a function of its own"),
                                         (MPI.SUM, MPI.MAX, "MAX"), (max, comm.MAX, "MAX")):
                    for call in ("reduce", "allreduce"):
                        d = w.Dup()
                        try:
                            getattr(d, call)(mine, one if rank == odd else other)
                            for i in range(40):
                                d.barrier()
                            print("wrong", call, what, flush=True)
                        except mpi.CommError as error:
                            text = str(error)
                            assert f"called {call}" in text and " with " in text and what in text, text
                        try:
                            d.allgather(1)
                            print("wrong: goes on", flush=True)
                        except mpi.CommError as error:
                            assert "make another, as by Dup()" in str(error) and call in str(error), error
        assert w.allgather(rank) == list(range(size))
        print("held", flush=True)
    """)
    done = start(3, path, mpi=True)
    assert (done.stdout.count("held"), "wrong" in done.stdout) == (3, False), done.stdout + done.stderr


@pytest.mark.parametrize(("transport", "nodes"), [("local", "1"), ("mpi", "1"), ("mpi", "2")])
def test_a_root_beyond_every_integer_does_not_exist(transport, nodes, program):  # noqa: F811
    path = program("""
        import sys
        from copyless import comm
        w = comm.world()
        transport = sys.modules[type(w).__module__]
        for first in (False, True):
            for root in (2**31, -2**31 - 1, 2**40, -2**63, 2**63, 10**30):
                for call in (w.bcast, w.gather, w.scatter, lambda _, root: w.reduce(1, root=root)):
                    try:
                        call([1] * w.size, root=root)
                        print("wrong")
                    except transport.CommError as error:
                        assert isinstance(error, ValueError) and str(root) in str(error), error
            w.allgather(1)
        print("held", flush=True)
    """)
    done = start(2, path, mpi=transport == "mpi", COPYLESS_NODES=nodes)
    assert (done.stdout.count("held"), "wrong" in done.stdout) == (2, False), done.stdout + done.stderr


def test_a_freed_communicator_is_freed_for_all_its_objects(program):  # noqa: F811
    path = program("""
        from mpi4py import MPI
        from copyless.comm import mpi
        def is_free(*objects):
            for each in objects:
                for call in (lambda: each.bcast(1), lambda: each.gather(1), lambda: each.allreduce(1), each.barrier,
                             lambda: each.allgather(1), lambda: each.scan(1), lambda: each.send(b"x" * 10_000, 0)):
                    try:
                        call()
                        print("wrong", flush=True)
                    except MPI.Exception as error:
                        assert error.Get_error_class() == MPI.ERR_COMM, error
        for frees in range(3):
            plain = MPI.COMM_WORLD.Dup()
            plain.Set_errhandler(MPI.ERRORS_RETURN)
            one, other = mpi.Intracomm(plain), mpi.Intracomm(plain)
            for each in (one, other):
                assert each.allgather(each.rank) == [0, 1]
            (one, other, plain)[frees].Free()
            is_free(one, other)
        plain = MPI.COMM_WORLD.Dup()
        one, other = mpi.Intracomm(plain), mpi.Intracomm(plain)
        assert one.allgather(1) == [1, 1]
        other.Free()  # which has not taken part in anything
        is_free(one, other)
        print("held", flush=True)
    """)
    done = start(2, path, mpi=True)
    assert (done.stdout.count("held"), "wrong" in done.stdout) == (2, False), done.stdout + done.stderr


def test_objects_of_every_class_for_one_communicator_meet(program):  # noqa: F811
    path = program("""
        from mpi4py import MPI
        from copyless.comm import mpi
        for classes in ((mpi.Comm, mpi.Intracomm), (mpi.Intracomm, mpi.Comm)):
            c = MPI.COMM_WORLD.Dup()
            mine = classes[MPI.COMM_WORLD.rank](c)
            mine.barrier()
            assert mine.allgather(mine.rank) == [0, 1]
            mine.barrier()
            mine.Barrier()
            assert mine.bcast(5 if mine.rank == 0 else None) == 5 and mine.allreduce(1) == 2
            mine.barrier()
        other = mpi.Intracomm(MPI.COMM_WORLD).Dup()
        try:
            other.allgather(1) if other.rank else other.barrier()  # the first operation of all
            other.barrier()
            print("wrong", flush=True)
        except mpi.CommError as error:
            assert "called allgather" in str(error) or "called barrier" in str(error), error
        print("held", flush=True)
    """)
    done = start(2, path, mpi=True)
    assert (done.stdout.count("held"), "wrong" in done.stdout) == (2, False), done.stdout + done.stderr


def test_a_rank_that_leaves_a_reduction_in_slices_is_told_of(program):  # noqa: F811
    path = program("""
        import signal
        from mpi4py import MPI
        from copyless.comm import _slices, mpi
        import numpy as np
        plain, w = MPI.COMM_WORLD, mpi.Intracomm(MPI.COMM_WORLD)
        rank, offer_of = w.rank, _slices.offer_of
        array = np.full(100_000, rank)
        w.allgather(0)
        def handler(number, frame):
            while frame is not None:
                if frame.f_code.co_name == "await_round":
                    raise KeyboardInterrupt
                frame = frame.f_back
            signal.setitimer(signal.ITIMER_REAL, 0.01)
        signal.signal(signal.SIGALRM, handler)
        def offer(obj, op):
            made = offer_of(obj, op)
            if rank == 2:
                signal.setitimer(signal.ITIMER_REAL, 0.01)  # while it waits to be told what all do together
            elif rank == 1:
                plain.recv()  # rank 2 has left
            return made
        for call in (w.allreduce, w.reduce):
            _slices.offer_of = offer
            try:
                call(array)
                print("wrong", flush=True)
            except KeyboardInterrupt:
                assert rank == 2
                plain.send(0, 1)
            except mpi.CommError as error:
                assert rank != 2 and ("KeyboardInterrupt" in str(error) or "has left" in str(error)), error
            _slices.offer_of = offer_of
            for k in (1, 2):
                got = w.allreduce(array + k)
                assert np.array_equal(got, np.full(100_000, 3 + 3 * k)), got
        print("held", flush=True)
    """)
    done = start(3, path, mpi=True)
    assert (done.stdout.count("held"), "wrong" in done.stdout) == (3, False), done.stdout + done.stderr


@pytest.mark.parametrize(("transport", "nodes"), [("local", "1"), ("mpi", "1"), ("mpi", "2")])
def test_what_fails_at_one_rank_of_a_reduction_is_told_to_all_that_wait(transport, nodes):
    done = start(4, os.path.join(HERE, "failing.py"), mpi=transport == "mpi", COPYLESS_NODES=nodes)
    assert done.stdout.count("held") == 4, done.stdout + done.stderr


def test_each_later_operation_says_what_the_mistake_was(program):  # noqa: F811
    path = program("""
        from copyless import comm
        w = comm.world()
        errors = []
        for _ in range(3):
            try:
                w.gather(1, 0) if w.rank == 0 else w.allgather(1)
            except ValueError as error:
                errors.append(str(error))
        assert errors and all("called" in each for each in errors), errors
        print("told")
    """)
    done = start(3, path)
    assert done.stdout.count("told") == 3, done.stdout + done.stderr


def test_large_arrays_on_mpi_are_reduced_without_messages(program):  # noqa: F811
    path = program("""
        from mpi4py import MPI
        from copyless.comm import mpi
        import numpy as np
        w = mpi.Intracomm(MPI.COMM_WORLD)
        rank, size = w.rank, w.size
        w.barrier()
        sent, put = [], mpi.Comm._put
        def counted(self, packet, dest, tag):
            sent.append(tag)
            return put(self, packet, dest, tag)
        mpi.Comm._put = counted
        for n in (40_000, 50_001):
            for k in range(20):
                mine = np.full(n, k + rank)
                expected = size * k + size * (size - 1) // 2
                assert (w.allreduce(mine) == expected).all() and (w.allreduce(mine, MPI.MAX) == k + size - 1).all()
                got = w.reduce(mine, root=k % size)
                assert (got == expected).all() if rank == k % size else got is None
        assert not sent, sent
        odd = np.ones(n + 1) if rank == 1 else [rank] * n if rank == 2 else mine
        for _ in range(3):  # not all have alike arrays: then they go by messages
            got = w.allreduce(odd if rank == 2 else mine, lambda a, b: 5)
            try:
                w.allreduce(odd)
                print("wrong", flush=True)
            except ValueError as error:
                assert "broadcast" in str(error), error
            assert (w.allreduce(mine) == expected).all()
        print("held", flush=True)
    """)
    done = start(4, path, mpi=True)
    assert (done.stdout.count("held"), "wrong" in done.stdout) == (4, False), done.stdout + done.stderr
