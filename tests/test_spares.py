"""A manager's small blocks are unlinked and reused: never while a process has them, and nothing is left behind."""

import mmap
import multiprocessing
import os
import signal

import numpy as np
import pytest

import copyless
from copyless.managers import SharedMemoryManager
from copyless.shared_memory import SharedMemory
from tests.conftest import ours_in_shm, python, start_python

SIZE = 1 << 16
PLACE = "/dev/shm/"


@pytest.fixture
def manager():
    with SharedMemoryManager(ctx=multiprocessing.get_context("fork")) as manager:
        yield manager


def inode(block):
    return os.stat(PLACE + block.name).st_ino


def made_and_gone(manager, size=SIZE, value=0x55, **more):
    """The inode of a block that was written, closed and unlinked."""
    block = manager.SharedMemory(size, **more)
    number = inode(block)
    block.buf[:] = bytes([value]) * size
    block.close()
    block.unlink()
    return number


def test_a_block_is_made_of_the_last_one_and_is_empty(manager):
    before = ours_in_shm()
    first = made_and_gone(manager)
    for _ in range(5):
        block = manager.SharedMemory(SIZE)
        assert inode(block) == first
        assert not any(block.buf)
        assert os.stat(PLACE + block.name).st_nlink == 1
        assert bytes(SharedMemory(block.name).buf) == bytes(SIZE)
        block.buf[:] = b"\xff" * SIZE
        assert manager.list_segments() == [block.name]
        block.close()
        block.unlink()
        assert not os.path.exists(PLACE + block.name)
        with pytest.raises(FileNotFoundError):
            SharedMemory(block.name)
        with pytest.raises(FileNotFoundError):
            block.unlink()
    assert made_and_gone(manager, SIZE + 4096) != first  # another size
    assert len(ours_in_shm() - before) == 2
    manager.shutdown()
    assert ours_in_shm() <= before


def test_at_most_a_few_are_kept(manager):
    before, descriptors = ours_in_shm(), len(os.listdir("/proc/self/fd"))
    blocks = [manager.SharedMemory(SIZE) for _ in range(40)]
    assert len(os.listdir("/proc/self/fd")) <= descriptors + 8
    for block in blocks:
        block.close()
        block.unlink()
    assert len(ours_in_shm() - before) <= 4
    assert len(os.listdir("/proc/self/fd")) <= descriptors + 8
    large = made_and_gone(manager, 2 << 20)
    again = manager.SharedMemory(2 << 20)
    assert inode(again) != large or ours_in_shm() - before == {again.name}


def in_use_by(how, block):
    if how == "view":
        return np.frombuffer(block.buf, "u1")
    if how == "another instance":
        return SharedMemory(block.name)
    if how == "descriptor":
        return os.fdopen(block.fileno(), "rb")
    if how == "read only":
        return SharedMemory(block.name, readonly=True)
    if how == "mapping":
        with open(PLACE + block.name, "rb") as file:
            return mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    if how == "hard link":
        os.link(PLACE + block.name, PLACE + "t-link")
        return None
    child = start_python(
        {
            "copyless": "from copyless.shared_memory import SharedMemory as S",
            "standard library": "from multiprocessing.shared_memory import SharedMemory as S",
        }[how]
        + "\nimport sys, os\nshm = S(sys.argv[1]); print(1); input(); print(bytes(shm.buf) == b'\\x55' * shm.size); os._exit(0)",  # noqa: E501
        block.name,
    )
    assert child.stdout.readline() == "1\n"
    return child


@pytest.mark.parametrize(
    "how",
    ["view", "another instance", "descriptor", "read only", "mapping", "hard link", "copyless", "standard library"],
)
def test_what_somebody_has_is_never_used_again(manager, how):
    block = manager.SharedMemory(SIZE)
    block.buf[:] = b"\x55" * SIZE
    number = inode(block)
    user = in_use_by(how, block)
    block.close()
    block.unlink()
    others = [manager.SharedMemory(SIZE) for _ in range(3)]
    for other in others:
        assert inode(other) != number
        other.buf[:] = b"\xaa" * SIZE
    if how == "view":
        assert (user == 0x55).all()
    elif how in ("another instance", "read only"):
        assert bytes(user.buf) == b"\x55" * SIZE
    elif how == "descriptor":
        assert user.read() == b"\x55" * SIZE
        user.close()
    elif how == "mapping":
        assert user[:] == b"\x55" * SIZE
    elif how == "hard link":
        with open(PLACE + "t-link", "rb") as file:
            assert file.read() == b"\x55" * SIZE
        os.unlink(PLACE + "t-link")
    else:
        assert user.communicate("\n")[0] == "True\n"


@pytest.mark.parametrize("what", ["cut", "hole"])
def test_what_somebody_made_smaller_is_not_used_again(manager, what):
    block = manager.SharedMemory(SIZE)
    number = inode(block)
    name = block.name
    block.close()
    if what == "cut":
        os.truncate(PLACE + name, 4096)
    else:
        import ctypes

        with open(PLACE + name, "r+b") as file:
            keep_size, punch_hole = 1, 2
            libc = ctypes.CDLL(None, use_errno=True)
            offsets = ctypes.c_int64(0), ctypes.c_int64(4096)
            assert libc.fallocate(file.fileno(), keep_size | punch_hole, *offsets) == 0
    block.unlink()
    new = manager.SharedMemory(SIZE)
    assert inode(new) != number
    new.buf[:] = b"\x01" * SIZE


def test_a_child_keeps_what_it_was_forked_with(manager):
    block = manager.SharedMemory(SIZE)
    block.buf[:] = b"\x55" * SIZE
    number = inode(block)
    ask, tell = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.read(ask[0], 1)
            status = 0 if bytes(block.buf) == b"\x55" * SIZE else 3
            own = manager.SharedMemory(SIZE)
            own.buf[:] = b"\x77" * SIZE
            own.close()
            own.unlink()
        finally:
            os.write(tell[1], b"x")
            os._exit(status)
    block.close()
    block.unlink()
    for _ in range(3):
        assert made_and_gone(manager, value=0xAA) != number
    os.write(ask[1], b"x")
    os.read(tell[0], 1)
    assert os.waitpid(child, 0)[1] == 0
    for fd in (*ask, *tell):
        os.close(fd)


def test_a_taken_name_costs_nothing(manager):
    first = made_and_gone(manager)
    with manager.SharedMemory(SIZE, name="t-taken") as there:
        assert inode(there) == first
        made_and_gone(manager)
        with pytest.raises(FileExistsError):
            manager.SharedMemory(SIZE, name="t-taken")
        assert not any(there.buf)
        assert made_and_gone(manager) != first
        there.unlink()
    with manager.SharedMemory(SIZE, name="t-taken") as again:
        assert not any(again.buf)
        again.unlink()


STEPS = {
    "before the spare name": ("_posix.posix_record", 0), "after the spare name": ("_posix.posix_record", 1),
    "before rename": ("os.rename", 0), "after rename": ("os.rename", 1), "after forgetting": ("_posix.posix_forget", 1),
    "before lease": ("fcntl.fcntl", 0), "after lease": ("fcntl.fcntl", 1),
    "before link": ("os.link", 0), "after link": ("os.link", 1), "after unlink": ("os.unlink", 1),
}  # fmt: skip


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("at", [1, 2])
def test_killed_at_every_step_leaves_nothing(step, at):
    before = ours_in_shm()
    target, after = STEPS[step]
    done = python(
        """
        import os, signal, sys, fcntl, multiprocessing
        import copyless
        from copyless._core import _posix
        from copyless._storage import spare_blocks
        target, after, at = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
        manager = copyless.SharedMemoryManager(ctx=multiprocessing.get_context("fork"))
        manager.start()
        def cycle(name):
            block = manager.SharedMemory(1 << 16, name=name)
            block.close(); block.unlink()
        cycle("t-first")
        manager.SharedMemory(1 << 20)
        if target == "_posix.posix_record":
            at -= 1  # of each object once
            manager._spares.clear()
        module, _, function = target.rpartition(".")
        owner = {"os": os, "fcntl": fcntl, "_posix": _posix}[module]
        real, calls = getattr(owner, function), 0
        def step(*args, **kwds):
            global calls
            calls += 1
            if calls > at and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            result = real(*args, **kwds)
            if calls > at:
                os.kill(os.getpid(), signal.SIGKILL)
            return result
        setattr(owner, function, step)
        for i in range(4):
            cycle(f"t-{i}")
            if target == "_posix.posix_record":
                manager._spares.clear()
        """,
        target, str(after), str(at), check=False,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr

    def left():
        copyless.reap()
        return ours_in_shm() - before

    from tests.conftest import until

    until(lambda: not left(), lambda: f"left: {left()}")


@pytest.mark.parametrize("module", ["copyless.shared_memory", "multiprocessing.shared_memory"])
def test_who_attaches_meanwhile_never_sees_another_block(module):
    """Attach by name while the maker unlinks: the block of that name, whole, or nothing."""
    attacher = start_python(
        """
        import importlib, sys
        import numpy as np
        import copyless
        SharedMemory = importlib.import_module(sys.argv[1]).SharedMemory
        now = copyless.SharedMemory("t-now")
        number = np.frombuffer(now.buf, "i8")
        print("ready")
        met = 0
        while (i := int(number[0])) >= 0:
            try:
                shm = SharedMemory(f"t-race-{i}")
            except FileNotFoundError:
                continue
            met += 1
            for _ in range(2):
                seen = set(bytes(shm.buf))
                assert seen <= {0, i % 255 + 1}, (i, seen)  # it was made empty, then written
            shm.close()
        print(met)
        """,
        module, PYTHONWARNINGS="ignore",
    )  # fmt: skip
    with SharedMemoryManager(ctx=multiprocessing.get_context("fork")) as manager:
        now = manager.SharedMemory(8, name="t-now")
        number = np.frombuffer(now.buf, "i8")
        assert attacher.stdout.readline() == "ready\n"
        reused = {}
        for i in range(3000):
            number[0] = i
            block = manager.SharedMemory(SIZE, name=f"t-race-{i}")
            reused[inode(block)] = i
            np.frombuffer(block.buf, "u1")[:] = i % 255 + 1
            block.close()
            block.unlink()
        number[0] = -1
        out, err = attacher.communicate()
        assert attacher.returncode == 0, err
        assert int(out) > 10
        assert len(reused) < 2990
        del number
