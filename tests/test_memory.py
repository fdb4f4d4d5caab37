"""Memory objects: the behaviour of mpi4py's, compared with ours by running both, and what ours do beyond it."""

import copy
import gc
import pickle

import numpy as np
import pytest

from copyless.memory import Alloc_mem, Free_mem, Get_address, Memory, buffer, memory
from tests.conftest import python

# Each expression is evaluated with mpi4py's class and with ours as B; results and error types must agree.
EXPRESSIONS = """
B().nbytes; B().address; B().obj; B().readonly; bool(B()); len(B(b"abc")); B(b"abc", 1); B(b"abc").readonly
B(None); B(5); B("text"); B.allocate(-1); B.allocate(0).nbytes; B.allocate(1.5).nbytes; B.allocate("x")
B.allocate(4, True).tobytes(); B.allocate(4, clear=True).tobytes(); B.allocate(3).readonly
B.frombuffer(b"abc"); B.frombuffer(b"abc", True).readonly; B.frombuffer(bytearray(3), True).readonly; B.frombuffer(None)
B.frombuffer(bytearray(3)).readonly; B.fromaddress(0, 0).nbytes; B.fromaddress(0, 5); B.fromaddress(5, -1)
B.fromaddress(m.address, 4).tobytes(); B.fromaddress(m.address, 4, True).readonly; B.fromaddress(m.address, 4).obj
m.format; m.itemsize; m.nbytes; len(m); m[0]; m[-1]; m[8]; m[-9]; m["a"]; m[1.0]; m[()]; m[...]; m[None]; m[True]
m[1:3].tobytes(); m[::2]; m[::-1]; m[2:2].nbytes; len(m[2:2]); m[-3:].tobytes(); m[5:100].tobytes(); m[1:3].obj is m
m.__setitem__(0, 300); m.__setitem__(0, -1); m.__setitem__(0, b"a"); m.__setitem__(0, "a"); m.__setitem__(0, 1.5)
m.__setitem__(9, 1); m.__setitem__(slice(0, 2), b"xy"); m.tobytes(); m.__setitem__(slice(0, 2), b"xyz")
m.__setitem__(slice(0, 2), 7); m.tobytes(); m.__setitem__(slice(0, 4, 2), b"ab"); m.__setitem__(slice(0, 2), 300)
m.__setitem__(0, np.uint8(5)); m[0]; ro.__setitem__(0, 1); ro.__setitem__(slice(0, 1), b"a"); m.__delitem__(0)
m.cast("i").shape; m.cast("B", [2, 4]).shape; m.cast("q", (1,)).tolist(); m.cast("zz"); m.cast("i", [3]); m.cast("i").format
m.toreadonly().readonly; m.toreadonly().tobytes(); mb.toreadonly().obj is ba; m.tobytes("C"); m.tobytes("F"); m.tobytes(order=None)
mb == ba; mb == mb; list(mb); 98 in mb; mb.obj is ba; memoryview(m).format; memoryview(m).readonly; memoryview(ro).readonly
bytes(mb); bytearray(mb); B(np.arange(6).reshape(2, 3)[:, ::2]); B(np.arange(6).reshape(2, 3).T).nbytes
B(np.arange(3.0)).nbytes; B(np.arange(3.0)).format; B(mb).obj is mb; B(mb).tobytes(); hash(mb) == hash(mb)
MPI.Get_address(ba) == mb.address; MPI.Get_address(None); MPI.Alloc_mem(8).nbytes; MPI.Alloc_mem(0).nbytes
MPI.Free_mem(MPI.Alloc_mem(8)); m.release(); m.release(); m.address; m.nbytes; m[0]; m.tobytes(); m.obj; m.readonly; len(m)
"""  # noqa: E501
ASK = """
import sys, numpy as np
expressions = [e.strip() for e in open(sys.argv[1]).read().replace("\\n", ";").split(";") if e.strip()]
if sys.argv[2] == "mpi4py":
    from mpi4py import MPI
    B = MPI.buffer
else:
    import copyless.memory as MPI
    B = MPI.Memory
ba = bytearray(b"abcdefgh")
names = dict(B=B, MPI=MPI, np=np, ba=ba, m=B.allocate(8, True), mb=B(ba), ro=B(b"abc"))
for e in expressions:
    try:
        r = eval(e, names)
        print(e, "->", type(r).__name__ if isinstance(r, B) else repr(r).replace("Memory", "buffer"))
    except Exception as error:
        print(e, "-> raises", type(error).__name__)
"""


def test_every_operation_agrees_with_mpi4py(tmp_path):
    questions = tmp_path / "questions"
    questions.write_text(EXPRESSIONS)
    theirs = python(ASK, str(questions), "mpi4py").stdout.replace("buffer", "Memory")
    ours = python(ASK, str(questions), "copyless").stdout.replace("buffer", "Memory")
    assert len(theirs.splitlines()) > 100
    assert ours.splitlines() == theirs.splitlines()


def test_names_and_aliases():
    assert memory is buffer is Memory


def test_mpi4py_takes_it_as_a_message():
    done = python("""
        from mpi4py import MPI
        from copyless.memory import Memory
        out, back = Memory.allocate(1 << 16), Memory.allocate(1 << 16, clear=True)
        out[:] = bytes(range(256)) * 256
        request = MPI.COMM_SELF.Isend([out, MPI.BYTE], dest=0)
        MPI.COMM_SELF.Recv([back, MPI.BYTE], source=0)
        request.Wait()
        print(back.tobytes() == out.tobytes())
    """)
    assert done.stdout.strip() == "True"


def test_between_two_ranks_of_mpiexec(tmp_path):
    import os
    import subprocess
    import sys

    program = tmp_path / "ranks.py"
    program.write_text(
        "from mpi4py import MPI\nfrom copyless.memory import Memory\nc = MPI.COMM_WORLD\nm = Memory.allocate(1000, "
        "clear=True)\n"
        "if c.rank == 0:\n    m[:] = bytes(1000 * [7]); c.Send(m, 1)\nelse:\n    c.Recv(m, 0); print(sum(m), "
        "flush=True)\n"
    )
    mpiexec = os.path.join(os.path.dirname(sys.executable), "mpiexec")
    done = subprocess.run(
        [mpiexec, "-n", "2", sys.executable, str(program)], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["7000"]


def test_views_outlive_release_and_free():
    m = Alloc_mem(800)
    a = np.frombuffer(m, "f8")
    a[:] = 3
    part = m[8:16]
    Free_mem(m)
    gc.collect()
    others = [Memory.allocate(800, clear=True) for _ in range(4)]
    assert a.sum() == 300
    assert part.nbytes == 8
    assert part.cast("d")[0] == 3
    del others


def test_free_mem_refuses_what_alloc_mem_did_not_give():
    for wrong in (Memory.allocate(8), Memory(b"abc"), Alloc_mem(8)[0:4]):
        with pytest.raises(ValueError, match="Alloc_mem"):
            Free_mem(wrong)
    with pytest.raises(TypeError, match="bytes"):
        Free_mem(b"abc")  # type: ignore[arg-type]
    m = Alloc_mem(8)
    Free_mem(m)
    with pytest.raises(ValueError, match="freed already"):
        Free_mem(m)
    with pytest.raises(ValueError):
        Alloc_mem(-1)


def test_get_address():
    a = np.zeros(3)
    assert Get_address(a) == a.ctypes.data


def test_plain_pickle_and_copy_store_the_bytes():
    m = Memory.allocate(5)
    m[:] = b"hello"
    for other in (pickle.loads(pickle.dumps(m)), copy.deepcopy(m)):
        m[:] = b"HELLO"
        assert other.tobytes() == b"hello"
        m[:] = b"hello"
    assert pickle.loads(pickle.dumps(m.toreadonly())).readonly


def test_repr_tells_size_and_mode():
    assert "3 bytes" in repr(Memory(b"abc"))
    assert "read-only" in repr(Memory(b"abc"))
