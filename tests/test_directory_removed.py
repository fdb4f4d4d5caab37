"""The storage directory is removed while a program runs, as by systemd at logout (RemoveIPC) and by cleaners.

Objects made before continue to work, in this process and in its forked children. New objects use a new directory. One
warning names the cause. Each program runs in a directory and processes of its own, with a time limit.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator

import pytest

PREAMBLE = """
import multiprocessing, os, shutil, signal, sys, warnings
import numpy as np, copyless
from copyless._storage import directory
fork = copyless.get_context("fork")
caught = []
warnings.showwarning = lambda message, kind, *rest: caught.append((kind, str(message)))
warnings.simplefilter("always")
array, big = copyless.full(100, 1.0), copyless.full(1 << 18, 2.0)
lock, queue, answers = copyless.Lock(), copyless.Queue(), copyless.Queue()
named = copyless.full(3, 4.0, name="old")

def remove():
    place = directory.current()
    if MODE == "directory":
        shutil.rmtree(os.environ["COPYLESS_DIR"])
    else:
        for name in os.listdir(place):
            os.unlink(os.path.join(place, name))

def child(target, *args):
    process = fork.Process(target=target, args=args)
    process.start()
    return process

def joined(process):
    process.join(20)
    assert process.exitcode == 0, process.exitcode

def square(x):
    return x * x

def total(x):
    return float(x.sum())

def forwards():
    while (item := queue.get(timeout=20)) is not None:
        answers.put(item)

def adds_one():
    item = queue.get(timeout=20)
    item += 1
    answers.put(None)

def audits():
    from copyless._core import _store
    _store.audit()
"""


@pytest.fixture
def place() -> Iterator[str]:
    path = tempfile.mkdtemp(prefix="copyless-removed-", dir="/dev/shm")
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(params=["directory", "files"])
def run(request: pytest.FixtureRequest, place: str) -> Iterator[object]:
    """Run a program in which `remove()` removes the whole directory, or the files in it."""
    spill = tempfile.mkdtemp(prefix="copyless-spill-", dir="/var/tmp")

    def program(code: str, **env: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-c", f"MODE = {request.param!r}\n" + PREAMBLE + textwrap.dedent(code)],
            capture_output=True, text=True, timeout=90,
            env={**os.environ, "COPYLESS_DIR": place, "COPYLESS_SPILL": spill, **env},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        assert "Traceback" not in done.stderr, done.stderr[-3000:]
        return done

    yield program
    left = os.listdir(spill)
    shutil.rmtree(spill)
    assert left == []  # the last process removes the directory of spilled items with it
    there = [name for _, _, names in os.walk(place) for name in names]
    assert there == []


def test_old_arrays_stay_readable_and_writable(run):
    run("""
        remove()
        big += array.sum()
        assert big.sum() == (1 << 18) * 102
        assert copyless.attach(copyless.handle(big)) is not big and copyless.attach(copyless.handle(big))[7] == 102
        audits()
    """)


def test_an_old_lock_excludes_and_tells_of_a_dead_holder(run):
    run("""
        remove()
        assert lock.acquire(timeout=5)
        lock.release()
        def dies():
            lock.acquire()
            os.kill(os.getpid(), signal.SIGKILL)
        process = child(dies)
        process.join(20)
        try:
            lock.acquire(timeout=20)
        except copyless.OwnerDiedError:
            pass
        else:
            raise AssertionError("the death was not told")
        assert lock.acquire(timeout=20)
    """)


def test_a_holder_that_dies_after_the_removal_and_was_forked_before_is_seen_too(run):
    run("""
        def dies():
            lock.acquire()
            answers.put("held")
            queue.get(timeout=20)
            os.kill(os.getpid(), signal.SIGKILL)
        process = child(dies)
        assert answers.get(timeout=20) == "held"
        remove()
        copyless.zeros(3)
        queue.put(None)
        process.join(20)
        try:
            lock.acquire(timeout=20)
        except copyless.OwnerDiedError:
            pass
        else:
            raise AssertionError("the death was not told")
    """)


@pytest.mark.parametrize(
    "item", ["7", "'x' * 1000", "b'y' * 3_000_000", "np.arange(500_000)", "[np.arange(9), {1: 2}]"]
)
def test_items_go_through_an_old_queue_to_a_process_forked_before(run, item):
    run(f"""
        process = child(forwards)
        remove()
        for i in range(3):
            queue.put({item})
            got = answers.get(timeout=20)
            assert str(got) == str({item}), got
        queue.put(None)
        joined(process)
        audits()
    """)


def test_so_many_small_items_that_the_queue_grows(run):
    run("""
        remove()
        for i in range(30_000):
            queue.put("item %d" % i)
        assert [queue.get(timeout=20) for i in range(30_000)] == ["item %d" % i for i in range(30_000)]
        assert [kind for kind, _ in caught] == [RuntimeWarning] and "RemoveIPC" in caught[0][1], caught
    """)


def test_an_old_pool_works_on(run):
    run("""
        pool = fork.Pool(2)
        assert pool.map(square, range(4)) == [0, 1, 4, 9]
        remove()
        assert pool.map(square, range(40)) == [x * x for x in range(40)]
        assert pool.apply_async(total, (np.ones(1_000_000),)).get(20) == 1_000_000
        assert pool.apply(total, (array,)) == 100
        fresh = copyless.full(300_000, 3.0)
        assert pool.apply(total, (fresh,)) == 900_000
        pool.close()
        pool.join()
    """)


def test_new_arrays_queues_pools_and_locks_are_made_in_a_new_directory(run):
    run("""
        before = os.stat(directory.current()).st_ino, os.listdir(directory.current())
        remove()
        small, large = copyless.ones(10), copyless.ones(1 << 20)
        assert small.sum() == 10 and large.sum() == 1 << 20
        fresh = copyless.Queue()
        fresh.put(small)
        assert fresh.get(timeout=20) is not None
        other = copyless.Lock()
        with other:
            pass
        with fork.Pool(2) as pool:
            assert pool.map(square, range(5)) == [0, 1, 4, 9, 16]
            assert pool.apply(total, (big,)) == 1 << 19
        here = directory.current()
        assert any(name.startswith("registry.") for name in os.listdir(here))
        assert (os.stat(here).st_ino, sorted(os.listdir(here))) != before
        audits()
    """)


def test_a_program_that_starts_later_shares_what_is_new(run):
    run("""
        import subprocess
        remove()
        fresh = copyless.full(5, 6.0, name="fresh")
        code = "import copyless; a = copyless.open('fresh'); a += 1; print(a.sum())"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
        assert done.stdout.strip() == "35.0" and done.stderr == "", done.stderr
        assert fresh.sum() == 35
    """)


@pytest.mark.parametrize("made", ["before", "after"])
@pytest.mark.parametrize("through", ["queue", "copyless.Queue()"])
def test_a_forked_child_shares_old_and_new_arrays_through_old_and_new_queues(run, made, through):
    run(f"""
        remove()
        item = array if {made!r} == "before" else copyless.full(100, 1.0)
        queue = {through}
        process = child(adds_one)
        queue.put(item)
        answers.get(timeout=20)
        joined(process)
        assert item.sum() == 200, item.sum()
        audits()
    """)


def test_a_new_array_goes_through_an_old_queue_to_a_process_forked_before(run):
    run("""
        process = child(adds_one)
        remove()
        fresh = copyless.full(100, 1.0)
        queue.put(fresh)
        answers.get(timeout=20)
        joined(process)
        assert fresh.sum() == 200
    """)


def test_an_old_lock_goes_through_a_new_queue(run):
    run("""
        remove()
        fresh = copyless.Queue()
        def takes():
            got = fresh.get(timeout=20)
            got.acquire()
            answers.put("held")
            queue.get(timeout=20)
            got.release()
        process = child(takes)
        fresh.put(lock)
        assert answers.get(timeout=20) == "held"
        assert not lock.acquire(block=False)
        queue.put(None)
        joined(process)
        assert lock.acquire(timeout=20)
    """)


def test_an_item_of_another_directory_that_is_not_put_leaves_no_hold(run):
    run("""
        import gc, queue as stdlib
        from copyless._core import _handles
        remove()
        fresh = copyless.Queue(1)
        fresh.put(1)
        for i in range(3):
            try:
                fresh.put(array, timeout=0)
            except stdlib.Full:
                pass
        assert fresh.get(timeout=20) == 1
        fresh.put(array)
        handle = copyless.handle(array)
        del array
        gc.collect()
        assert fresh.get(timeout=20).sum() == 100  # the item kept it
        gc.collect()
        try:
            copyless.attach(handle)
        except copyless.StaleHandleError:
            pass
        else:
            raise AssertionError("something still holds it")
    """)


def test_names_are_found_in_the_old_directory_and_in_the_new_one(run):
    run("""
        remove()
        assert copyless.open("old").sum() == 12
        fresh = copyless.full(3, 5.0, name="fresh")
        assert copyless.open("fresh").sum() == 15 and copyless.open("old").sum() == 12
        copyless.unlink("old")
        for name in ("old", "never"):
            try:
                copyless.open(name, timeout=0)
            except FileNotFoundError:
                pass
            else:
                raise AssertionError(name)
        assert copyless.Lock(name="l1") is not None
    """)


def test_posix_objects_and_lists_from_before_are_used_on(run):
    run("""
        from copyless import shared_memory
        block = shared_memory.SharedMemory(create=True, size=100)
        items = copyless.ShareableList([1, "two"])
        remove()
        copyless.zeros(1)
        other = shared_memory.SharedMemory(name=block.name)
        other.buf[3] = 9
        assert block.buf[3] == 9
        again = copyless.ShareableList(name=items.shm.name)
        again[1] = "2"
        assert items[1] == "2"
        other.close(), block.close(), block.unlink()
        again.shm.close(), items.shm.close(), items.shm.unlink()
    """)


def test_one_warning_names_the_cause_and_the_remedy(run):
    run("""
        remove()
        for i in range(3):
            copyless.zeros(10), copyless.Queue(), copyless.ones(1 << 19)
            queue.put(np.arange(100_000))
        process = child(forwards)
        queue.put(None)
        joined(process)
        assert len(caught) == 1, caught
        kind, text = caught[0]
        assert kind is RuntimeWarning
        assert all(word in text for word in ("RemoveIPC", "enable-linger", "COPYLESS_DIR", "cleaner")), text
    """)


def test_a_second_removal_is_survived_as_the_first(run):
    run("""
        remove()
        second = copyless.full(10, 2.0, name="second")
        other = copyless.Queue()
        remove()
        third = copyless.full(10, 3.0)
        assert (array.sum(), second.sum(), third.sum()) == (100, 20, 30)
        for through in (queue, other, copyless.Queue()):
            for item in (array, second, third, 5, np.arange(200_000)):
                through.put(item)
                assert np.sum(through.get(timeout=20)) == np.sum(item)
        assert copyless.open("old").sum() == 12 and copyless.open("second").sum() == 20
        process = child(adds_one)
        queue.put(second)
        answers.get(timeout=20)
        joined(process)
        assert second.sum() == 30
        assert len(caught) == 1, caught
        audits()
    """)


def test_it_is_survived_although_all_descriptors_were_closed_first(run):
    run("""
        os.closerange(3, 256)
        remove()
        assert array.sum() == 100
        assert copyless.zeros(10).sum() == 0
        queue.put(array)
        assert queue.get(timeout=20).sum() == 100
        assert copyless.open("old").sum() == 12
    """)


def test_a_process_that_starts_later_is_told_why_it_cannot_follow_an_old_handle(run):
    run("""
        import subprocess
        remove()
        fresh = copyless.ones(4)
        code = '''if True:
            import copyless, sys
            try:
                copyless.attach(bytes.fromhex(sys.argv[1]))
            except copyless.ForeignHostError as error:
                assert "removed" in str(error), error
                print(copyless.attach(bytes.fromhex(sys.argv[2])).sum())
        '''
        done = subprocess.run([sys.executable, "-c", code, str(copyless.handle(array)), str(copyless.handle(fresh))],
                              capture_output=True, text=True, timeout=60)
        assert done.stdout.strip() == "4.0", done.stderr
    """)


def test_a_process_that_has_not_mapped_an_array_is_told_that_its_file_is_gone(run):
    run("""
        def looks():
            handle = queue.get(timeout=20)
            try:
                copyless.attach(handle)
            except copyless.StaleHandleError as error:
                answers.put(str(error))
            answers.put(copyless.attach(queue.get(timeout=20)).sum())
        process = child(looks)
        late = copyless.ones(1 << 20)
        remove()
        queue.put(bytes(copyless.handle(late)))
        text = answers.get(timeout=20)
        assert "removed while in use" in text and "RemoveIPC" in text, text
        queue.put(bytes(copyless.handle(array)))
        assert answers.get(timeout=20) == 100
        joined(process)
    """)


def test_without_a_spill_directory_a_large_item_of_an_old_queue_says_why_it_cannot_go(run):
    run(
        """
        queue.put(1)
        assert queue.get(timeout=20) == 1
        remove()
        queue.put(1)
        assert queue.get(timeout=20) == 1
        try:
            queue.put(np.arange(100_000))
        except copyless.CorruptSegmentError as error:
            assert "RemoveIPC" in str(error) and "reap" not in str(error), error
        else:
            raise AssertionError("it went")
        queue.put(2)
        assert queue.get(timeout=20) == 2
        fresh = copyless.Queue()
        fresh.put(np.arange(100_000))
        assert fresh.get(timeout=20).sum() == 4999950000
        """,
        COPYLESS_SPILL="",
    )


def test_memory_of_old_arrays_is_given_back_as_they_go(run):
    run("""
        import gc
        place = os.open(directory.current(), os.O_PATH)
        def free():
            st = os.statvfs("/dev/shm")
            return st.f_bavail * st.f_frsize
        large = copyless.ones(64 << 17)
        remove()
        copyless.zeros(1)
        before = free()
        del large
        gc.collect()
        assert free() - before > 60 << 20, free() - before
    """)
