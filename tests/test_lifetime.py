"""How long a block lives: messages in flight, families, expiry, failed serialisations."""

import gc
import multiprocessing
import os
import pickle
import time
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest

import copyless
from copyless._core import _store
from copyless.cli.look import listing
from tests.conftest import python, start_python, until


def messages() -> int:
    copyless.reap()
    return _store.statistics()["messages"]


def test_a_sent_array_arrives_whole_after_its_sender_let_it_go():
    ours, theirs = multiprocessing.Pipe()
    a = copyless.array(np.arange(1000))
    theirs.send(a)
    del a
    noise = [copyless.full(1000, -1) for _ in range(20)]  # one would be placed on it if it were free
    time.sleep(0.2)
    assert np.array_equal(ours.recv(), np.arange(1000))
    del noise


@pytest.mark.parametrize("end", ["returns", "killed"])
def test_a_sent_array_arrives_whole_after_its_sender_ended(context, end):
    ours, theirs = context.Pipe()
    sender = context.Process(target=_send, args=(theirs, end))
    sender.start()
    sender.join()
    assert sender.exitcode == (0 if end == "returns" else -9)
    copyless.reap()
    noise = [copyless.full(1000, -1) for _ in range(20)]
    assert np.array_equal(ours.recv(), np.arange(1000))
    del noise
    ours.close()
    theirs.close()


def _send(pipe, end):
    pipe.send(copyless.array(np.arange(1000)))
    if end == "killed":
        os.kill(os.getpid(), 9)


def test_a_receiver_that_never_used_the_package_still_gets_it():
    done = python("""
        import multiprocessing as mp, sys
        def send(pipe):
            import copyless
            pipe.send(copyless.full(1000, 3.0))
        if __name__ == '__main__':
            ours, theirs = mp.get_context('fork').Pipe()
            p = mp.get_context('fork').Process(target=send, args=(theirs,)); p.start(); p.join()
            import subprocess  # an unrelated process of the same user reaps in between
            subprocess.run([sys.executable, '-c', 'import copyless; copyless.reap(); copyless.trim()'], check=True)
            assert 'copyless' not in sys.modules
            print(ours.recv().sum())
    """)
    assert done.stdout.strip() == "3000.0", done.stderr


def test_a_receiver_killed_before_it_loads_leaves_nothing_once_the_family_has_ended():
    family = start_python("""
        import multiprocessing as mp, os, time, copyless
        def wait(pipe):
            print('ready', flush=True); time.sleep(60)
        if __name__ == '__main__':
            ours, theirs = mp.get_context('fork').Pipe()
            p = mp.get_context('fork').Process(target=wait, args=(theirs,)); p.start()
            ours.send(copyless.full(100000, 3.0))
            os.kill(p.pid, 9); p.join(); print('killed', flush=True); time.sleep(60)
    """)
    assert [family.stdout.readline() for _ in range(2)] == ["ready\n", "killed\n"]
    assert messages() == 1
    (block,) = listing()["blocks"]
    assert (block["state"], block["messages"]) == ("orphaned", 1)
    family.kill()
    family.communicate()
    assert messages() == 0
    assert listing()["blocks"] == []


def test_a_second_load_succeeds_while_any_hold_remains():
    message = ForkingPickler.dumps(copyless.full(10, 1.0))
    first = pickle.loads(message)
    second = pickle.loads(message)
    assert np.shares_memory(first, second)
    assert messages() == 0
    del first, second
    with pytest.raises(copyless.StaleHandleError, match="no longer exists"):
        pickle.loads(message)


def test_a_failed_serialisation_takes_its_holds_back():
    a = copyless.zeros(10)
    for bad in ([a, lambda: 0], [a, a[1:], {"x": open}, (i for i in ())]):
        with pytest.raises((TypeError, AttributeError, pickle.PicklingError)):
            ForkingPickler.dumps(bad)
        assert messages() == 0
    pool = multiprocessing.get_context("fork").Pool(1)
    with pytest.raises((TypeError, AttributeError, pickle.PicklingError)):
        pool.apply(len, ((a, lambda: 0),))
    assert messages() == 0
    pool.terminate()
    pool.join()


def test_a_message_nobody_loads_ends_with_its_time():
    copyless.configure(message_ttl=0.05)
    try:
        message = ForkingPickler.dumps(copyless.full(10, 1.0))
        until(lambda: messages() == 0)
        with pytest.raises(copyless.StaleHandleError):
            pickle.loads(message)
    finally:
        copyless.configure(message_ttl=600.0)


def test_handle_takes_no_hold():
    a = copyless.zeros(5)
    copyless.handle(a)
    assert messages() == 0
    (block,) = listing()["blocks"]
    assert block["holds"] == 1


def test_views_outlive_the_end_of_the_creating_process():
    creator = start_python("import copyless; a = copyless.full(100000, 5.0, name='t-creator'); print('up'); input()")
    creator.stdout.readline()
    a = copyless.open("t-creator")
    view = a[::100]
    del a
    creator.kill()
    creator.communicate()
    copyless.reap()
    noise = [copyless.full(100_000, -1.0) for _ in range(4)]
    assert (view == 5.0).all()
    del noise


def test_free_memory_goes_back_when_asked_and_when_idle():
    a = copyless.full(1_000_000, 1.0)
    del a
    assert listing()["warm_bytes"] >= 8_000_000
    assert copyless.trim() >= 8_000_000
    assert listing()["warm_bytes"] == 0
    a = copyless.full(1_000_000, 1.0)
    del a
    copyless.configure(idle=0.01)
    try:
        until(lambda: (time.sleep(0.02), copyless.reap(), listing()["warm_bytes"] == 0)[2])
    finally:
        copyless.configure(idle=30.0)


def test_a_process_that_ends_gives_idle_memory_back_once():
    """It trims while it exits, and then scans its own segments: a segment that it is removing is not removed twice."""
    copyless.zeros(1)
    python("""
        import copyless
        arrays = [copyless.full(300_000, 1, "u1") for _ in range(20)]
        del arrays
        copyless.configure(idle=1e-6)  # idle by the time that it ends
    """)
    _store.audit()
    arrays = [copyless.full(300_000, i, "u1") for i in range(100)]
    assert all((a == i).all() for i, a in enumerate(arrays))
    del arrays
    _store.audit()


def test_the_warm_limit_is_kept():
    copyless.configure(warm_limit="4M")
    try:
        arrays = [copyless.full(250_000, 1.0) for _ in range(8)]
        del arrays
        gc.collect()
        assert listing()["warm_bytes"] <= 4 << 20
    finally:
        copyless.configure(warm_limit=-1)


def test_settings():
    assert copyless.configure().dir
    with pytest.raises(TypeError, match="nonsense"):
        copyless.configure(nonsense=1)
    with pytest.raises(ValueError):
        copyless.configure(idle=-1)
    copyless.zeros(1)
    with pytest.raises(RuntimeError, match="COPYLESS_DIR"):
        copyless.configure(dir="/tmp")
    done = python("import copyless; copyless.zeros(1)", COPYLESS_IDLE="soon", check=False)
    assert "COPYLESS_IDLE='soon'" in done.stderr


def test_a_sender_in_another_pid_namespace_is_seen_to_live(tmp_path):
    """Two containers over one directory: the locks say which process lives, not the process numbers."""
    other = start_python(
        "import subprocess, sys\n"
        "subprocess.run(['unshare', '-rpf', '--mount-proc', sys.executable, '-u', '-c', "
        "'import os, copyless; a = copyless.full(1000, 4.0, name=\"t-pidns\"); print(os.getpid()); input()'])"
    )
    assert other.stdout.readline() == "1\n"
    copyless.reap()
    a = copyless.open("t-pidns")
    assert a.sum() == 4000
    other.communicate("\n", timeout=20)
    assert a.sum() == 4000


def test_ctrl_c_ends_a_wait_for_a_name_and_everything_is_sound_after():
    import signal

    waiter = start_python("""
        import copyless
        a = copyless.full(10, 2.0)
        print('waiting')
        try: copyless.open('t-never-comes', timeout=None)
        except KeyboardInterrupt: print(a.sum(), copyless.zeros(3).sum())
    """)
    assert waiter.stdout.readline() == "waiting\n"
    time.sleep(0.1)
    waiter.send_signal(signal.SIGINT)
    assert waiter.communicate(timeout=10)[0] == "20.0 0.0\n"


def test_a_stopped_process_holds_nobody_up_outside_an_operation():
    import signal

    stopped = start_python("import copyless; a = copyless.ones(10, name='t-stopped'); print('up'); input()")
    stopped.stdout.readline()
    stopped.send_signal(signal.SIGSTOP)
    try:
        assert copyless.open("t-stopped").sum() == 10
    finally:
        stopped.send_signal(signal.SIGCONT)
    stopped.communicate("\n")


def test_what_was_packed_and_never_put_goes_with_its_process():
    """Found by the communicator's tests: a process that exited normally left such a hold for ever."""
    python("""
        import copyless
        from copyless._transfer import packing

        a = copyless.full(10_000, 1, "i4")
        packed = packing.pack([a])
    """)
    until(lambda: copyless.reap() and not listing()["blocks"])
