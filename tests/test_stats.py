"""What happened: each event is provoked, counted in `copyless.stats()`, and told by one line of the log `copyless`."""

import logging
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import time
from multiprocessing.reduction import ForkingPickler

import pytest

import copyless
from copyless._core import events
from tests.conftest import python, start_python, until
from tests.test_stopped import stopped_in

FORK = multiprocessing.get_context("fork")


@pytest.fixture
def log(caplog):
    """The records of the log, as (event, level, text)."""
    copyless.stats()  # what earlier tests left is told now
    events._bounds.clear()
    caplog.set_level(logging.INFO, "copyless")
    caplog.clear()

    def found(*kinds):
        return [
            (record.copyless_event, record.levelname, record.getMessage())
            for record in caplog.records
            if record.name == "copyless" and record.copyless_event in kinds
        ]

    found.record_of = lambda kind: next(r for r in caplog.records if getattr(r, "copyless_event", "") == kind)
    return found


def counted(before):
    now = copyless.stats()
    more = {name: getattr(now, name) - getattr(before, name) for name in events.NAMES}
    return {name: n for name, n in more.items() if n}


# ---- the figures


def test_the_figures_follow_what_is_made():
    kept = copyless.zeros(1)
    before = copyless.stats()
    assert before.state == "whole"
    array, queue, lock = copyless.zeros(1000), copyless.Queue(), copyless.Lock(name="t-lock")
    now = copyless.stats()
    assert now.own_blocks - before.own_blocks == now.blocks - before.blocks == 3
    assert now.own_bytes - before.own_bytes >= 8000
    assert now.bytes - before.bytes == now.own_bytes - before.own_bytes
    assert now.names - before.names == 1
    assert now.holds - before.holds == 3
    assert now.processes == before.processes >= 1
    assert 1 <= now.segments <= now.segments_limit
    assert now.total_bytes >= now.bytes
    assert now.room >= now.room_free > 0
    message = ForkingPickler.dumps(array)
    assert copyless.stats().messages - now.messages == 1
    pickle.loads(message)
    assert copyless.stats().messages == now.messages
    del array, queue, lock
    until(lambda: copyless.stats().blocks == before.blocks)
    assert copyless.stats().own_bytes == before.own_bytes
    del kept


def test_a_view_and_a_second_object_use_no_block_more():
    array = copyless.zeros(1000)
    before = copyless.stats()
    more = [array[::2], array.reshape(10, 100)]
    assert copyless.stats().own_blocks == before.own_blocks
    assert len(more) == 2


def test_persistent_names_are_counted():
    before = copyless.stats()
    copyless.zeros(3, name="t-persists", persist=True)
    try:
        now = copyless.stats()
        assert (now.persistent - before.persistent, now.names - before.names) == (1, 1)
        assert (now.own_blocks - before.own_blocks, now.blocks - before.blocks) == (0, 1)
    finally:
        copyless.unlink("t-persists")


def test_blocks_of_others_are_not_this_process_s():
    before = copyless.stats()
    other = start_python("import copyless, sys; a = copyless.zeros(500); print('made'); sys.stdin.readline()")
    try:
        assert other.stdout.readline() == "made\n"
        now = copyless.stats()
        assert (now.blocks - before.blocks, now.bytes - before.bytes) == (1, 4000)
        assert (now.own_blocks - before.own_blocks, now.processes - before.processes) == (0, 1)
    finally:
        other.communicate("\n", timeout=30)


def test_a_forked_child_counts_what_it_inherits_and_begins_its_counts_at_zero():
    array = copyless.zeros(1000)
    events._count(workers_died=5)
    reader, writer = os.pipe()
    expected = copyless.stats().own_blocks
    pid = os.fork()
    if pid == 0:
        now = copyless.stats()
        os.write(writer, repr((now.own_blocks, now.workers_died)).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    assert os.read(reader, 100).decode() == repr((expected, 0))
    os.close(reader)
    os.close(writer)
    del array


def test_the_object_cannot_be_changed_and_has_a_dict():
    found = copyless.stats()
    with pytest.raises(AttributeError):
        found.blocks = 3
    assert found._asdict()["blocks"] == found.blocks
    assert repr(found).startswith("Stats(directory=")
    assert f"workers_died={found.workers_died}" in repr(found)


def test_it_does_not_wait_for_a_process_stopped_inside_the_lock():
    array = copyless.zeros(10)
    with stopped_in(None) as holder:
        begun = time.monotonic()
        found = copyless.stats()
        assert time.monotonic() - begun < 5
        assert holder.is_stopped()
    assert found.state == "held"
    assert found.own_blocks >= 1
    del array


def test_without_a_store_all_is_zero(tmp_path):
    done = python("import copyless; s = copyless.stats(); print(s.state, s.blocks, s.processes, s.refused)",
                  COPYLESS_DIR=str(tmp_path))  # fmt: skip
    assert done.stdout.split() == ["none", "0", "0", "0"]
    assert os.listdir(tmp_path) == []  # and it made none


def test_a_program_that_counts_nothing_loads_no_log():
    done = python("import copyless, sys; q = copyless.Queue(); q.put(1); q.get(); copyless.reap(); "
                  "print('logging' in sys.modules)")  # fmt: skip
    assert done.stdout.split() == ["False"]


# ---- the events


def test_a_killed_process_is_told_and_what_is_reclaimed(log):
    before = copyless.stats()
    other = start_python("import copyless, sys; a = [copyless.zeros(5) for _ in 'abc']; print(1); sys.stdin.read()")
    assert other.stdout.readline() == "1\n"
    other.kill()
    other.communicate()
    until(lambda: copyless.reap() and copyless.stats().processes_ended > before.processes_ended)
    assert counted(before) == {"processes_ended": 1, "blocks_reclaimed": 3}
    ((_, level, ended),) = log("process_ended")
    assert level == "INFO"
    assert f"process {other.pid} (" in ended
    ((_, level, reclaimed),) = log("reclaimed")
    assert level == "INFO"
    assert reclaimed == "reclaimed 3 blocks of processes that have ended"
    assert log.record_of("reclaimed").copyless_blocks == 3


def test_an_allocation_tells_it_too(log):
    copyless.zeros(3)
    other = start_python("import copyless, sys; a = copyless.zeros(500); print(1); sys.stdin.read()")
    assert other.stdout.readline() == "1\n"
    other.kill()
    other.communicate()
    until(lambda: [copyless.zeros(3)] and log("reclaimed"))
    assert len(log("process_ended")) == 1


def test_a_process_that_died_inside_an_operation_is_a_warning(log):
    """Its slot in the registry says what it was doing, as if SIGKILL had met it between two instructions."""
    before = copyless.stats()
    other = start_python("""
        import glob, mmap, os, signal, copyless
        from copyless._core import _store
        from copyless._storage import directory
        a = copyless.zeros(3)
        (path,) = glob.glob(directory.current() + "/registry.[0-9]*")
        with open(path, "r+b") as file:
            registry = mmap.mmap(file.fileno(), 2 << 20)
        at = 12288 + 288 * _store.owner()[0]  # layout.h: its slot
        assert int.from_bytes(registry[at + 12:at + 16], "little") == os.getpid()
        registry[at + 8] = 3  # CL_OP_FREE
        os.kill(os.getpid(), signal.SIGKILL)
    """)
    _, errors = other.communicate(timeout=60)
    assert other.returncode == -signal.SIGKILL, errors
    until(lambda: copyless.reap() and log("process_died"))
    ((_, level, text),) = log("process_died")
    assert level == "WARNING"
    assert f"process {other.pid} (" in text
    assert "died inside an operation" in text
    assert log("process_ended") == []
    assert counted(before)["processes_ended"] == 1


def test_an_expired_message_is_a_warning(log):
    before = copyless.stats()
    copyless.configure(message_ttl=0.05)
    try:
        message = ForkingPickler.dumps(copyless.full(10, 1.0))
        until(lambda: copyless.reap() and copyless.stats().messages_expired > before.messages_expired)
    finally:
        copyless.configure(message_ttl=600.0)
    assert counted(before) == {"messages_expired": 1}
    ((_, level, text),) = log("message_expired")
    assert level == "WARNING"
    assert text.startswith("1 message expired")
    assert "COPYLESS_MESSAGE_TTL" in text
    assert log("reclaimed") == []
    del message


def test_a_killed_worker_is_a_warning(log):
    before = copyless.stats()
    with copyless.Pool(1, context=FORK) as pool:
        pid = pool.apply(os.getpid)
        with pytest.raises(copyless.WorkerDiedError):
            pool.apply(os.kill, (pid, signal.SIGKILL))
        assert pool.apply(abs, (-3,)) == 3
        until(lambda: log("worker_died"))
    assert copyless.stats().workers_died - before.workers_died == 1
    ((_, level, text),) = log("worker_died")  # and not those that ended with their pool
    assert level == "WARNING"
    assert text == f"the worker process {pid} was killed by SIGKILL"
    record = log.record_of("worker_died")
    assert (record.copyless_pid, record.copyless_exit_code) == (pid, -signal.SIGKILL)


def test_a_worker_that_ends_as_it_should_is_no_event(log):
    before = copyless.stats()
    with copyless.Pool(2, context=FORK, maxtasksperchild=1) as pool:
        pool.map(abs, range(6), chunksize=1)
        pool.close()
        pool.join()
    with copyless.ProcessPoolExecutor(1, mp_context=FORK) as executor:
        executor.submit(abs, 1).result()
        executor.kill_workers()
    assert copyless.stats().workers_died == before.workers_died
    assert log("worker_died") == []


def _die_with(lock, pipe):
    getattr(lock, "acquire_write", getattr(lock, "acquire", None))()
    pipe.send(1)
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("kind", ["Lock", "RLock", "RWLock", "Semaphore"])
def test_the_death_of_a_holder_is_a_warning(kind, log):
    lock = copyless.Semaphore(robust=True) if kind == "Semaphore" else getattr(copyless, kind)()
    before = copyless.stats()
    here, there = FORK.Pipe()
    process = FORK.Process(target=_die_with, args=(lock, there))
    process.start()
    here.recv()
    process.join()
    acquire = lock.acquire_write if kind == "RWLock" else lock.acquire
    with pytest.raises(copyless.OwnerDiedError):
        acquire()
    assert copyless.stats().holders_died - before.holders_died == 1
    ((_, level, text),) = log("holder_died")
    assert level == "WARNING"
    assert kind in text
    assert acquire()
    (lock.release_write if kind == "RWLock" else lock.release)()


def test_a_lock_that_recovers_silently_is_only_counted(log):
    """Its holder has it when it finds out, and a handler of the log may need that very lock."""
    lock = copyless.Lock(recover="silent")
    before = copyless.stats()
    here, there = FORK.Pipe()
    process = FORK.Process(target=_die_with, args=(lock, there))
    process.start()
    here.recv()
    process.join()
    with lock:
        assert lock.recovered
    assert counted(before)["holders_died"] == 1
    assert log("holder_died") == []


def test_a_holder_that_is_waited_for_is_a_warning(log):
    before = copyless.stats()
    queue = copyless.Queue()
    queue.put(1)
    with stopped_in(queue, 512) as holder:
        with pytest.raises(copyless.queues.Empty):
            queue.get(timeout=1.5)
        ((_, level, text),) = log("holder_waited_for")
    assert level == "WARNING"
    assert f"waiting for process {holder.pid} (" in text
    assert copyless.stats().holder_waits - before.holder_waits == 1


def in_a_small_dev_shm(tmp_path, body, size="8m", spill=True):
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode != 0:
        pytest.skip("a mount of its own needs unshare(1) and user namespaces")
    head = "import copyless, logging, sys\nlogging.basicConfig(level='INFO', stream=sys.stdout, format='%(levelname)s %(name)s %(message)s')\n"  # noqa: E501
    (tmp_path / "program.py").write_text(head + textwrap.dedent(body))
    (tmp_path / "spill").mkdir()
    env = {**os.environ, "COPYLESS_SPILL": str(tmp_path / "spill") if spill else "", "PYTHONWARNINGS": "ignore"}
    env.pop("COPYLESS_DIR")
    script = f"mount -t tmpfs -o size={size} tmpfs /dev/shm && exec {sys.executable} {tmp_path}/program.py"
    done = subprocess.run(["unshare", "-rm", "sh", "-c", script], capture_output=True, text=True, timeout=100, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_refused_memory_is_told_once_in_a_while(tmp_path):
    lines = in_a_small_dev_shm(tmp_path, """
        for _ in range(5):
            try:
                copyless.zeros(100 << 20, dtype="u1")
            except copyless.OutOfSharedMemory:
                pass
        print(copyless.stats().refused)
    """)  # fmt: skip
    assert lines[-1] == "5"
    (line,) = lines[:-1]
    assert line.startswith("INFO copyless out of shared memory")
    assert "104,857,600" in line


def test_spilled_items_are_told_once_in_a_while(tmp_path):
    lines = in_a_small_dev_shm(tmp_path, """
        q = copyless.Queue()
        for _ in range(20):
            q.put(bytes(1 << 20))
        s = copyless.stats()
        print(s.spilled == q.stats().spilled > 5, s.spilled_bytes >= s.spilled << 20, s.refused)
        for _ in range(20):
            q.get()
    """)  # fmt: skip
    told = [line for line in lines if "spilled to files" in line]
    assert len(told) == 1
    assert told[0].startswith("INFO copyless shared memory is full")
    assert "True True 0" in lines


# ---- how they are told


def test_a_burst_is_bounded_and_says_how_many_were_left_out(log):
    for pid in range(100):
        events.worker_died(pid, 1, "ended")
    assert 10 <= len(log("worker_died")) <= 12  # it may take a second here
    bound = events._bounds["worker_died"]
    assert bound.left_out == 100 - len(log("worker_died"))
    bound.at -= 5
    events.worker_died(1, 1, "ended")
    assert f"({100 - len(log('worker_died')) + 1} lines of this kind were left out before)" in log("worker_died")[-1][2]


def test_a_thread_that_holds_a_lock_of_ours_tells_later(log):
    events.hush(1)
    try:
        other = start_python("import copyless, sys; a = copyless.zeros(500); print(1); sys.stdin.read()")
        assert other.stdout.readline() == "1\n"
        other.kill()
        other.communicate()
        copyless.reap()
        copyless.zeros(3)
        assert log("process_ended", "reclaimed") == []
    finally:
        events.hush(-1)
    copyless.zeros(3)
    assert len(log("process_ended")) == len(log("reclaimed")) == 1


class _Uses(logging.Handler):
    """A handler that uses the library for each line, as one over a queue does."""

    def __init__(self, queue):
        super().__init__()
        self.queue, self.lock_of_ours = queue, copyless.Lock()

    def emit(self, record):
        with self.lock_of_ours:
            self.queue.put(record.getMessage())
            copyless.reap()


def test_a_handler_may_use_queues_and_locks(log):
    queue = copyless.Queue()
    handler = _Uses(queue)
    logger = logging.getLogger("copyless")
    logger.addHandler(handler)
    try:
        other = start_python("import copyless, sys; a = copyless.zeros(500); print(1); sys.stdin.read()")
        assert other.stdout.readline() == "1\n"
        other.kill()
        other.communicate()
        until(lambda: copyless.reap() and log("reclaimed"))
        with copyless.Pool(1, context=FORK) as pool:
            with pytest.raises(copyless.WorkerDiedError):
                pool.apply(os.kill, (pool.apply(os.getpid), signal.SIGKILL))
            until(lambda: log("worker_died"))
    finally:
        logger.removeHandler(handler)
    told = queue.get_many(block=False)
    assert [text for text in told if "reclaimed 1 block" in text]


class _Raises(logging.Handler):
    """A handler that does not catch its errors."""

    def emit(self, record):
        raise ZeroDivisionError(record.getMessage())


def test_an_error_of_a_handler_is_printed_and_hides_no_other(log, capsys):
    handler = _Raises()
    logger = logging.getLogger("copyless")
    logger.addHandler(handler)
    try:
        with pytest.raises(copyless.OutOfSharedMemory):
            copyless.empty(1 << 50, "u1")
        assert "ZeroDivisionError" in capsys.readouterr().err
        with copyless.Pool(1, context=FORK) as pool:
            for _ in range(3):  # the thread that replaces workers goes on
                with pytest.raises(copyless.WorkerDiedError):
                    pool.apply_async(os.kill, (pool.apply(os.getpid), signal.SIGKILL)).get(20)
            assert pool.apply_async(abs, (-3,)).get(20) == 3
    finally:
        logger.removeHandler(handler)
    assert "ZeroDivisionError: the worker process" in capsys.readouterr().err


@pytest.mark.parametrize("asked", ["copyless", "copyless.managers", "another"])
def test_a_line_does_not_take_the_lock_of_logging(asked):
    """Another thread has it, as while a fork waits for hooks. A signal that raises cannot leave it held, either."""
    done = python("""
        import logging, random, signal, sys, threading
        from copyless._core import events

        class Broken(Exception): pass
        def break_it(*_): raise Broken

        logging.basicConfig(stream=sys.stdout, format="%(name)s: %(message)s")
        logging.getLogger(sys.argv[1])
        held, done = threading.Event(), threading.Event()
        def hold():
            with logging._lock:
                held.set()
                done.wait(60)
        thread = threading.Thread(target=hold)
        thread.start()
        held.wait(60)
        events.tell(logging.INFO, "worker_died", "not wanted")
        events.tell(logging.WARNING, "worker_died", "a line")
        done.set()
        thread.join()
        logging.root.setLevel(logging.ERROR)
        events.tell(logging.WARNING, "worker_died", "nor this one")
        logging.root.setLevel(logging.WARNING)
        logging.disable(logging.WARNING)
        events.tell(logging.WARNING, "worker_died", "nor this one")
        logging.disable(logging.NOTSET)

        signal.signal(signal.SIGALRM, break_it)
        random.seed(1)
        broken = 0
        for _ in range(2000):
            try:
                try:
                    signal.setitimer(signal.ITIMER_REAL, 1e-6 + random.random() * 2e-5)
                    for _ in range(20):
                        events._logger(logging.WARNING)
                finally:
                    signal.setitimer(signal.ITIMER_REAL, 0)
            except Broken:
                broken += 1
        print(broken > 0, logging._lock._is_owned())
    """, asked)  # fmt: skip
    assert done.stdout == "copyless: a line\nTrue False\n"


def test_a_forked_child_tells_nothing_of_its_parent():
    done = python("""
        import copyless, logging, os, subprocess, sys
        logging.basicConfig(level="INFO", stream=sys.stdout, format="%(process)d %(copyless_event)s")
        from copyless._core import events
        events.hush(1)
        copyless.zeros(3)
        code = "import copyless, os, signal; a = copyless.zeros(3); os.kill(os.getpid(), signal.SIGKILL)"
        subprocess.run([sys.executable, "-c", code])
        copyless.reap()  # its parent knows, and has not told
        pid = os.fork()
        if pid == 0:
            events.hush(-1)
            copyless.zeros(3)
            copyless.stats()
            os._exit(0)
        os.waitpid(pid, 0)
        events.hush(-1)
        copyless.stats()
        print("parent", os.getpid())
    """)  # fmt: skip
    lines = [line.split() for line in done.stdout.splitlines()]
    parent = lines[-1][1]
    assert [kind for pid, kind in lines[:-1] if pid == parent] == ["process_ended", "reclaimed"]
    assert {pid for pid, _ in lines[:-1]} == {parent}
