"""The drop-in SharedMemory: each known defect of the standard library's (A1 to A21), and the right behaviour."""

import contextlib
import gc
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from multiprocessing import shared_memory as stdlib

import numpy as np
import pytest

import copyless
from copyless.errors import ClosedError, OutOfSharedMemory
from copyless.shared_memory import SharedMemory
from tests.conftest import python, start_python, until


def descriptors_of(name: str) -> int:
    """How many mappings this process has of that object, removed or not.

    Other threads may close some of them meanwhile.
    """
    open_files = []
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            open_files.append(os.readlink(f"/proc/self/fd/{fd}"))
    return sum(file.removesuffix(" (deleted)") == f"/dev/shm/{name}" for file in open_files)


def exists(name: str) -> bool:
    return os.path.exists(f"/dev/shm/{name}")


@pytest.fixture
def shm():
    made = SharedMemory(create=True, size=4096)
    yield made
    made.close()
    if exists(made.name):
        made.unlink()


def test_a1_an_unrelated_attacher_never_destroys(shm):
    done = python("import sys; from copyless import SharedMemory as S; S(sys.argv[1]).close()", shm.name)
    assert done.stderr == ""
    assert SharedMemory(shm.name).size == 4096


LIMITED = """
    import resource, sys
    from copyless import SharedMemory as S
    S(create=True, size=8).unlink()  # everything is imported and mapped that will be
    used = int(next(line for line in open('/proc/self/status') if line.startswith('VmSize')).split()[1]) * 1024
    resource.setrlimit(resource.RLIMIT_AS, (used + (100 << 20),) * 2)
    try:
        S(*sys.argv[1:2]) if sys.argv[1:] else S(create=True, size=1 << 30)
    except OSError as error:
        print(error.errno)
"""


def test_a2_a_failed_attach_leaves_the_block_alone():
    big = SharedMemory(create=True, size=1 << 30)
    try:
        done = python(LIMITED, big.name)
        assert (done.stdout.strip(), done.stderr) == ("12", "")
        assert SharedMemory(big.name).size == 1 << 30
    finally:
        big.close()
        big.unlink()


def test_a3_a_failed_create_leaves_nothing_and_prints_nothing():
    before = set(os.listdir("/dev/shm"))
    done = python(LIMITED)
    assert (done.stdout.strip(), done.stderr) == ("12", "")
    assert {name for name in set(os.listdir("/dev/shm")) - before if name.startswith("psm_")} == set()


def test_a4_an_attacher_never_meets_an_empty_block():
    """The maker goes on until it is told to stop: the machine decides how the two take turns."""
    name, errors, met, missed = f"t-race-{os.getpid()}", [], 0, 0
    maker = start_python("""
        import select, sys
        from copyless import SharedMemory as S
        print('go', flush=True)
        while not select.select([sys.stdin], [], [], 0)[0]:
            for i in range(20):
                s = S(sys.argv[1], create=True, size=4096); s.close(); s.unlink()
    """, name)  # fmt: skip
    assert maker.stdout.readline() == "go\n"
    deadline = time.monotonic() + 120
    while not errors and (met < 50 or missed < 50) and time.monotonic() < deadline:
        try:
            attached = SharedMemory(name)
            met += 1
            assert attached.size == 4096
        except FileNotFoundError:
            missed += 1
        except ValueError as error:
            errors.append(error)
    maker.communicate()
    assert errors == []
    assert maker.returncode == 0
    assert met >= 50


def test_a4_an_empty_file_is_waited_for_then_refused_and_can_be_unlinked():
    name = f"t-empty-{os.getpid()}"
    path = f"/dev/shm/{name}"
    open(path, "w").close()
    threading.Timer(0.1, os.truncate, (path, 512)).start()  # its creator was between its two steps
    assert SharedMemory(name).size == 512
    os.truncate(path, 0)
    with pytest.raises(ValueError, match="empty"):
        SharedMemory(name)
    os.unlink(path)


def test_a6_close_with_a_live_view_neither_raises_nor_leaks():
    shm = SharedMemory(create=True, size=100)
    name = shm.name
    view = shm.buf[:8]
    view[:] = b"kept now"
    shm.close()
    shm.close()
    assert bytes(view) == b"kept now"
    assert descriptors_of(name) == 0
    shm.unlink()
    assert bytes(view) == b"kept now"
    del view, shm
    gc.collect()
    assert descriptors_of(name) == 0


def test_a7_an_array_outlives_close_and_unlink():
    def make():
        shm = SharedMemory(create=True, size=512 * 8)
        array = np.ndarray(512, "f8", buffer=shm.buf)
        array[:] = 5
        shm.close()
        shm.unlink()
        return array

    arrays = [make() for _ in range(20)]
    gc.collect()
    assert all(array.sum() == 2560 for array in arrays)


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_a8_unlinks_in_any_order_print_nothing(start):
    done = python(f"""
        import multiprocessing as mp
        from copyless import SharedMemory as S
        def work(name):
            s = S(name); s.close()
        if __name__ == '__main__':
            s = S(create=True, size=64)
            p = mp.get_context('fork').Process(target=work, args=(s.name,)); p.start(); p.join()
            s.close(); s.unlink(); print(p.exitcode, {start!r})
    """)
    assert done.stdout.split() == ["0", start]
    assert done.stderr == ""


def test_a9_a_block_unlinked_by_a_peer_is_no_noise():
    owner = start_python("""
        from copyless import SharedMemory as S
        s = S(create=True, size=64); print(s.name); input()
    """)
    name = owner.stdout.readline().strip()
    SharedMemory(name).unlink()
    _, err = owner.communicate("\n", timeout=20)
    assert (owner.returncode, err) == (0, "")


def test_a10_a_workers_block_survives_the_worker():
    code = """
        import os, sys
        from copyless import SharedMemory as S
        r, w = os.pipe()
        pid = os.fork()
        if pid == 0:
            s = S(create=True, size=64); s.buf[:2] = b'ok'; os.write(w, s.name.encode()); os._exit(0)
        os.waitpid(pid, 0)
        name = os.read(r, 100).decode()
        import copyless; copyless.reap()
        # The parent is of the worker's family although it had not used the package before.
        s = S(name); print(bytes(s.buf[:2])); s.unlink()
    """
    preamble = "import multiprocessing.process; import copyless._storage.store as store; store.ensure_open()\n"
    import textwrap

    done = python(preamble + textwrap.dedent(code))
    assert done.stdout.strip() == "b'ok'"
    assert done.stderr == ""


@pytest.mark.parametrize("name", ["with:colon", "\xe9t\xe9", "日本語", "a b", "x" * 255, ".hidden"])
def test_a11_a12_any_file_name_is_taken(name):
    shm = SharedMemory(name, create=True, size=9)
    assert SharedMemory(name).name == name
    shm.close()
    shm.unlink()


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("nul\0tail", ValueError),
        ("", ValueError),
        ("a/b", ValueError),
        ("..", ValueError),
        ("x" * 256, OSError),
        (5, TypeError),
    ],
)
def test_a13_a_bad_name_is_refused_before_anything_is_made(name, error):
    before = set(os.listdir("/dev/shm"))
    for create in (True, False):
        with pytest.raises(error):
            SharedMemory(name, create=create, size=9)
    assert set(os.listdir("/dev/shm")) - before <= {n for n in os.listdir("/dev/shm") if n.startswith("copyless-")}


def test_a14_use_after_close_says_so(shm):
    shm.close()
    with pytest.raises(ValueError, match="closed") as caught:
        shm.buf[0]
    assert isinstance(caught.value, ClosedError)
    assert "closed" in repr(shm)


def test_a15_it_is_a_context_manager():
    with SharedMemory(create=True, size=10) as shm:
        shm.buf[0] = 1
    with pytest.raises(ValueError, match="closed"):
        _ = shm.buf
    shm.unlink()


def test_a16_readonly_mode_and_fileno():
    shm = SharedMemory(create=True, size=10, mode=0o640)
    fd = shm.fileno()
    assert os.fstat(fd).st_mode & 0o777 == 0o640
    assert os.fstat(fd).st_size == 10
    os.close(fd)
    reader = SharedMemory(shm.name, readonly=True)
    assert reader.buf.readonly
    with pytest.raises(TypeError):
        reader.buf[0] = 1
    assert pickle.loads(pickle.dumps(reader)).buf.readonly
    shm.unlink()
    with pytest.raises(FileNotFoundError):
        shm.fileno()


def test_a17_a_block_cut_by_a_peer_is_seen_at_the_next_call(shm):
    os.truncate(f"/dev/shm/{shm.name}", 100)
    assert SharedMemory(shm.name).size == 100
    os.truncate(f"/dev/shm/{shm.name}", 4096)


def test_a18_killed_all_at_once_leaves_nothing_after_the_next_use():
    group = subprocess.Popen(
        [sys.executable, "-c", "from copyless import SharedMemory as S; s = S(create=True, size=1 << 20); "
         "import os, time; os.fork(); os.write(1, s.name.encode() + b'\\n'); time.sleep(60)"],
        stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    names = {group.stdout.readline().strip(), group.stdout.readline().strip()}
    os.killpg(group.pid, signal.SIGKILL)
    group.wait()
    (name,) = names
    group.stdout.close()
    # "Use" is any allocation. The second victim may need a moment to be gone, and no other process may attach
    # meanwhile.
    until(lambda: (copyless.zeros(1), not exists(name))[1])
    with pytest.raises(FileNotFoundError):
        SharedMemory(name)


def test_a_killed_creators_block_vanishes_and_nothing_is_printed():
    owner = start_python("from copyless import SharedMemory as S; s = S(create=True, size=9); print(s.name); input()")
    name = owner.stdout.readline().strip()
    assert exists(name)
    owner.kill()
    assert owner.communicate()[1] == ""
    with pytest.raises(FileNotFoundError):
        SharedMemory(name)


def test_an_attacher_keeps_a_dead_creators_block():
    owner = start_python("from copyless import SharedMemory as S; s = S(create=True, size=9); print(s.name); input()")
    name = owner.stdout.readline().strip()
    mine = SharedMemory(name)
    owner.kill()
    owner.communicate()
    copyless.reap()
    assert exists(name)
    del mine
    import copyless.shared_memory as module

    module._recent.clear()
    gc.collect()
    copyless.reap()
    assert not exists(name)


def test_a19_a_pickle_of_a_dead_block_raises(shm):
    data = pickle.dumps(shm)
    shm.unlink()
    with pytest.raises(FileNotFoundError):
        pickle.loads(data)


def test_a20_pickling_keeps_track():
    shm = SharedMemory(create=True, size=9, track=False)
    assert pickle.loads(pickle.dumps(shm))._track is False
    shm.unlink()


def test_a21_no_helper_process_is_started():
    done = python("""
        import os
        from copyless import SharedMemory as S
        s = S(create=True, size=9)
        print(open(f'/proc/self/task/{os.getpid()}/children').read().split()); s.unlink()
    """)
    assert done.stdout.strip() == "[]"


def test_track_false_stays_until_unlink():
    name = python(
        "from copyless import SharedMemory as S; print(S(create=True, size=9, track=False).name)"
    ).stdout.strip()
    copyless.reap()
    again = SharedMemory(name)
    again.unlink()
    assert not exists(name)


def test_track_true_is_the_standard_librarys_tracker():
    name = python(
        "from copyless import SharedMemory as S; print(S(create=True, size=9, track=True).name)"
    ).stdout.strip()
    until(lambda: not exists(name), "the tracker did not unlink it")


def test_the_family_keeps_a_closed_block(context):
    name = f"t-family-{os.getpid()}"
    child = context.Process(target=_create, args=(name,))
    child.start()
    child.join()
    copyless.reap()
    kept = SharedMemory(name)
    assert bytes(kept.buf[:4]) == b"made"
    kept.close()
    kept.unlink()


def _create(name):
    shm = SharedMemory(name, create=True, size=64)
    shm.buf[:4] = b"made"
    shm.close()


@pytest.mark.parametrize("maker", [SharedMemory, stdlib.SharedMemory])
def test_both_modules_share_by_name(maker):
    user = stdlib.SharedMemory if maker is SharedMemory else SharedMemory
    made = maker(create=True, size=64)
    other = user(made.name)
    other.buf[:5] = b"hello"
    assert bytes(made.buf[:5]) == b"hello"
    other.close()
    assert exists(made.name)
    made.close()
    made.unlink()


def test_a_block_of_the_standard_library_is_never_unlinked_by_us():
    block = stdlib.SharedMemory(create=True, size=64)
    done = python(
        "import sys; from copyless import SharedMemory as S, reap; s = S(sys.argv[1]); del s; reap()", block.name
    )
    assert done.stderr == ""
    assert exists(block.name)
    block.close()
    block.unlink()


def test_a_name_given_again_to_another_object_is_left_alone():
    owner = start_python("from copyless import SharedMemory as S; s = S(create=True, size=9); print(s.name); input()")
    name = owner.stdout.readline().strip()
    os.unlink(f"/dev/shm/{name}")
    with open(f"/dev/shm/{name}", "wb") as f:
        f.write(b"not ours")
    owner.kill()
    owner.communicate()
    copyless.reap()
    assert exists(name)
    os.unlink(f"/dev/shm/{name}")


def test_it_crosses_to_children(context):
    shm = SharedMemory(create=True, size=64)
    child = context.Process(target=_write, args=(shm,))
    child.start()
    child.join()
    assert bytes(shm.buf[:4]) == b"made"
    shm.close()
    shm.unlink()


def _write(shm):
    shm.buf[:4] = b"made"


@pytest.mark.parametrize(("size", "error"), [(0, ValueError), (-1, ValueError), ("x", TypeError), (1.5, TypeError),
                                             (1 << 62, OutOfSharedMemory), (1 << 70, OutOfSharedMemory)])  # fmt: skip
def test_a_size_that_cannot_be(size, error):
    with pytest.raises(error):
        SharedMemory(create=True, size=size)


def test_multiprocessing_is_not_patched():
    assert multiprocessing.shared_memory.SharedMemory is stdlib.SharedMemory  # type: ignore[attr-defined]
