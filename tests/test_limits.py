"""Each limit other than free memory says which one it is, how high it is, and what helps."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from copyless.errors import LimitExceededError, OutOfSharedMemory, SystemLimitError

REPORT = """
import json
def report(call):
    try:
        call()
    except BaseException as error:
        kinds = [kind.__name__ for kind in type(error).__mro__]
        print(json.dumps([kinds, str(error), error.errno, error.limit, error.present, error.remedy]))
    else:
        print("null")
"""


def limited(code: str, *, mount: str = "") -> list[list]:
    """The report of a program in its own process, one list a line; `mount`: options of its own tmpfs at /dev/shm."""
    program = [sys.executable, "-c", textwrap.dedent(REPORT) + textwrap.dedent(code)]
    if mount:
        if os.geteuid() != 0:
            pytest.skip("a mount of its own needs root")
        program = ["unshare", "-m", "sh", "-ec", f'mount -t tmpfs -o {mount} none /dev/shm; exec "$0" "$@"', *program]
    env = {name: value for name, value in os.environ.items() if not (mount and name == "COPYLESS_DIR")}
    done = subprocess.run(program, capture_output=True, text=True, timeout=120, env=env)
    if mount and done.stderr.startswith("unshare"):
        pytest.skip("a mount of its own needs unshare(1)")
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def check(told: list, errno: int, words: str, limit: int) -> None:
    kinds, text, number, most, present, remedy = told
    assert {"SystemLimitError", "LimitExceededError", "OutOfSharedMemory", "OSError", "MemoryError"} <= set(kinds)
    assert number == errno
    assert words in text
    assert remedy in text
    assert "bytes in all" not in text, "the room of the mount has nothing to do with it"
    assert most == limit
    assert present >= 0


def test_the_size_of_a_file_is_told_by_its_name():
    (told,) = limited(
        """
        import copyless, resource
        copyless.zeros(10)
        resource.setrlimit(resource.RLIMIT_FSIZE, (5 << 20, 5 << 20))
        report(lambda: copyless.zeros(64 << 20, "u1"))
        """
    )
    check(told, 27, "bytes of one file (RLIMIT_FSIZE)", 5 << 20)


def test_a_registry_that_may_not_be_so_large_is_told_too():
    (told,) = limited(
        """
        import copyless, os, resource, shutil, tempfile
        resource.setrlimit(resource.RLIMIT_FSIZE, (5 << 20, 5 << 20))
        os.environ["COPYLESS_DIR"] = tempfile.mkdtemp(dir="/dev/shm")
        report(lambda: copyless.zeros(10))
        shutil.rmtree(os.environ["COPYLESS_DIR"])
        """
    )
    check(told, 27, "sizing the registry", 5 << 20)


def test_address_space_is_told_by_its_name():
    (told,) = limited(
        """
        import copyless, resource
        copyless.zeros(10)
        resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
        report(lambda: copyless.zeros(2 << 30, "u1"))
        """
    )
    check(told, 12, "bytes of address space (RLIMIT_AS)", 2 << 30)


def test_blocks_of_the_drop_in_and_files_tell_their_limits_too(tmp_path):
    of_size, attached, space, file = limited(
        f"""
        import copyless, resource
        from copyless.shared_memory import SharedMemory
        there = SharedMemory(create=True, size=1 << 20)
        big = SharedMemory(create=True, size=2 << 30)
        here = int(open("/proc/self/statm").read().split()[0]) * 4096
        name = big.name
        resource.setrlimit(resource.RLIMIT_FSIZE, (3 << 20, resource.RLIM_INFINITY))
        report(lambda: SharedMemory(create=True, size=9 << 20))
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        big.close()
        resource.setrlimit(resource.RLIMIT_AS, (here - (1 << 30), resource.RLIM_INFINITY))
        report(lambda: SharedMemory(name=name))
        report(lambda: SharedMemory(create=True, size=2 << 30))
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        big.unlink()
        there.unlink()
        resource.setrlimit(resource.RLIMIT_FSIZE, (3 << 20, resource.RLIM_INFINITY))
        report(lambda: copyless.memmap({str(tmp_path / "file")!r}, "u1", "w+", shape=(9 << 20,)))
        """
    )
    check(of_size, 27, "bytes of one file (RLIMIT_FSIZE)", 3 << 20)
    check(file, 27, "bytes of one file (RLIMIT_FSIZE)", 3 << 20)
    for told in (attached, space):
        check(told, 12, "bytes of address space (RLIMIT_AS)", told[3])
        assert told[3] > 1 << 30


def test_a_block_of_the_drop_in_tells_descriptors_and_inodes():
    (told,) = limited(
        """
        import copyless, multiprocessing.shared_memory, os, resource
        from copyless.shared_memory import SharedMemory
        SharedMemory(create=True, size=100).unlink()
        there = multiprocessing.shared_memory.SharedMemory(create=True, size=100)  # not mapped here by ours
        name = there.name
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        while True:
            try:
                os.dup(0)
            except OSError:
                break
        report(lambda: SharedMemory(name=name))
        there.unlink()
        """
    )
    check(told, 24, "open files of this process (RLIMIT_NOFILE)", 64)
    (told,) = limited(
        """
        import copyless
        from copyless.shared_memory import SharedMemory
        keep = []
        report(lambda: keep.extend(SharedMemory(create=True, size=2 << 20) for _ in range(100)))
        """,
        mount="size=1g,nr_inodes=40",
    )
    check(told, 28, "files on the mount (its inodes)", 40)


def test_inodes_are_told_by_their_name():
    (told,) = limited(
        """
        import copyless
        kept = []
        report(lambda: kept.extend(copyless.empty(100_000, "u1") for _ in range(1000)))
        """,
        mount="size=1g,nr_inodes=64",
    )
    check(told, 28, "files on the mount (its inodes)", 64)


def test_descriptors_that_are_kept_are_given_back_when_there_are_too_few():
    first, opened, last = limited(
        """
        import copyless, os, resource
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
        kept = [copyless.empty(100_000, "u1") for _ in range(100)]
        ours = [fd for fd in os.listdir("/proc/self/fd") if "/seg." in os.path.realpath(f"/proc/self/fd/{fd}")]
        assert 0 < len(ours) <= 256 // 8, ours
        files = []
        def fill():
            while True:
                files.append(os.open("/dev/null", os.O_RDONLY))
        try:
            fill()
        except OSError:
            pass
        report(lambda: kept.extend(copyless.empty(100_000, "u1") for _ in range(100)))
        report(lambda: files.append(os.open("/dev/null", os.O_RDONLY)))  # and the program finds some for itself
        for array in kept:
            array[:] = 1  # looked at by its name
        try:
            fill()
        except OSError:
            pass
        def again():
            while True:
                kept.append(copyless.empty(100_000, "u1"))
                try:
                    fill()
                except OSError:
                    pass
        report(again)
        """
    )
    assert first is None
    assert opened is None
    check(last, 24, "open files of this process (RLIMIT_NOFILE)", 256)


def test_the_error_is_caught_as_its_kin():
    assert issubclass(SystemLimitError, LimitExceededError)
    assert issubclass(SystemLimitError, OutOfSharedMemory)


def test_the_page_on_limits_tells_what_the_headers_say():
    root = Path(__file__).parent.parent
    page = (root / "docs" / "limits.md").read_text()
    native = root / "src" / "copyless" / "_core" / "native"
    headers = "".join(path.read_text() for path in native.rglob("*.h"))
    rows = {"processes": "CL_CARETAKER", "segments": "CL_MAX_SEGMENTS", "holds": "CL_MAX_HOLDS",
        "names": "CL_MAX_NAMES",
            "bytes of a name": "CL_NAME_MAX", "users of a queue": "CL_USERS", "leases of a queue": "CL_LEASES",
            "members of a ring": "CL_RING_MEMBERS", "subscriptions of a ring": "CL_RING_READERS",
            "slots of a ring": "CL_RING_SLOTS_MAX"}  # fmt: skip
    for row, name in rows.items():
        value = re.search(rf"#define {name} (\d+)u", headers)
        assert value, name
        assert f"| {row} | {int(value.group(1)):,} |" in page, name


def test_waiters_and_readers_are_set_at_creation():
    import threading

    import copyless

    for wrong in (0, -1, 65537):
        with pytest.raises(ValueError, match="1 to 65,536"):
            copyless.Condition(waiters=wrong)
        with pytest.raises(ValueError, match="1 to 65,536"):
            copyless.RWLock(readers=wrong)
    changed = copyless.Condition(waiters=1)
    inside = threading.Event()
    waits = threading.Thread(target=lambda: [changed.acquire(), inside.set(), changed.wait(), changed.release()])
    waits.start()
    assert inside.wait(60)
    with changed:  # so it waits
        with pytest.raises(LimitExceededError, match="more waiters=") as told:
            changed.wait(timeout=30)
        assert told.value.limit == 1
        changed.notify()
    waits.join()
    with changed:
        assert not changed.wait(timeout=0.01)  # the place is free again
    shared = copyless.RWLock(readers=1)
    with shared.read():
        child = copyless.get_context("fork").Process(target=_reads, args=(shared,))
        child.start()
        child.join()
        assert child.exitcode == 7
    with shared.read():
        pass


def test_leases_are_set_at_creation():
    import copyless

    for wrong in (0, -1, 65537, 1 << 64):
        with pytest.raises(ValueError, match="1 to 65,536"):
            copyless.JoinableQueue(redeliver=True, leases=wrong)
    for wrong in ("3", 1.5):
        with pytest.raises(TypeError):
            copyless.JoinableQueue(redeliver=True, leases=wrong)
    with pytest.raises(ValueError, match="redeliver=True"):
        copyless.JoinableQueue(leases=3)
    copyless.JoinableQueue(redeliver=True, leases=65536).put(1)
    q = copyless.JoinableQueue(redeliver=True, leases=3)
    q.put_many(range(5))
    child = copyless.get_context("fork").Process(target=_takes_two, args=(q,))
    child.start()
    try:
        while q.stats().leased < 2:  # with the one of this process, these are as many as may be leased
            child.join(0.01)
        mine = q.get(timeout=30)
        for take in (lambda: q.get(timeout=30), q.get_nowait, q.get_many):
            with pytest.raises(LimitExceededError, match="more leases=") as told:
                take()
            assert (told.value.limit, q.qsize()) == (3, 2)
        q.task_done(mine)
        assert q.get(timeout=30) == 3
    finally:
        child.kill()
        child.join()
    with pytest.raises(LimitExceededError):
        for _ in range(3):
            q.get(timeout=30)


def _takes_two(q) -> None:
    import time

    q.get(), q.get()
    time.sleep(600)


def _reads(lock) -> None:
    try:
        lock.acquire_read(timeout=30)
    except LimitExceededError as error:
        os._exit(7 if error.limit == 1 and "more readers=" in str(error) else 8)
    os._exit(9)
