"""Which process is alive: a live process keeps its memory and its locks whatever it does; a dead one is noticed at
once.
"""

import os
import platform
import shutil
import subprocess
import sys
import textwrap

import pytest

import copyless
from copyless._core import _store
from copyless.cli.look import listing
from tests.conftest import python, start_python, until

needs_unshare = pytest.mark.skipif(
    subprocess.run(["unshare", "-rpf", "--mount-proc", "true"], capture_output=True).returncode != 0,
    reason="this system does not let us make pid namespaces",
)


def said(program):
    """The next line of a program, without its line end."""
    line = program.stdout.readline()
    assert line, program.stderr.read()
    return line.rstrip("\n")


def tell(program, line=""):
    program.stdin.write(line + "\n")
    program.stdin.flush()


def is_held(lock):
    """Whether a live process has the lock. If not, the lock is taken and released."""
    if lock.acquire(timeout=0.3):
        lock.release()
        return False
    return True


def expect_dead(lock):
    """The holder is found dead, the lock is free again, and all that the holder had is released."""
    with pytest.raises(copyless.OwnerDiedError):
        lock.acquire(timeout=20)
    assert lock.acquire(timeout=20)
    lock.release()
    until(lambda: copyless.reap() and blocks_of_arrays() == 0, lambda: f"left: {listing()['blocks']}")


def blocks_of_arrays():
    """Blocks of at least 1,000 bytes: arrays of these tests are larger than that, and locks are smaller."""
    return sum(block["bytes"] >= 1000 for block in _store.snapshot()["blocks"])


def noise():
    """Arrays of another process, of the sizes that the programs here use: they would be placed on memory that was
    freed.
    """
    return [copyless.full(n, 255, "u1") for n in (300_000, 1000, 2000) for _ in range(20)]


def expect_noise(arrays):
    assert all((a == 255).all() for a in arrays)


HELD = """
    import os, sys, copyless, numpy as np
    held = [copyless.full(n, 1 + i % 200, "u1") for n in (300_000, 1000, 2000) for i in range(10)]

    def check_held():
        assert [sorted(set(a.tolist())) for a in held] == [[1 + i % 200] for _ in range(3) for i in range(10)]
        for a in held:
            a[:] = a  # writes what stands there, which a thief would see

    def check_works():
        a = copyless.full(5000, 3.0)
        assert a.sum() == 15000.0 and copyless.asarray(np.ones(3)).sum() == 3
"""


@pytest.fixture(autouse=True)
def programs_end():
    """Also those of a failed test."""
    yield
    while _started:
        _started.pop().kill()


_started = []


def program(code):
    _started.append(start_python(textwrap.dedent(HELD) + textwrap.dedent(code)))
    return _started[-1]


# ---- descriptors that are closed


def test_a_program_that_python_daemon_makes_a_daemon_keeps_its_memory():
    """DaemonContext forks twice and closes every descriptor; the arrays were made before."""
    daemon = program("""
        import daemon
        with daemon.DaemonContext(stdin=sys.stdin, stdout=sys.stdout, stderr=sys.stderr, working_directory=os.getcwd()):
            lock = copyless.Lock(name="t-live")
            lock.acquire()
            print(os.getpid())
            sys.stdin.readline()
            check_held()
            check_works()
            print("sound")
            sys.stdin.readline()
    """)
    pid = int(said(daemon))
    daemon.wait(20)  # the started program has exited: its grandchild is the daemon
    lock = copyless.Lock(name="t-live")
    assert is_held(lock)
    others = noise()
    tell(daemon)
    assert said(daemon) == "sound"
    expect_noise(others)
    assert is_held(lock)
    del others
    os.kill(pid, 9)
    expect_dead(lock)
    daemon.communicate()


def test_a_daemon_that_goes_on_with_what_it_made_before():
    """Objects of all kinds that were made before, by a process whose children live longer than it."""
    daemon = program("""
        import daemon
        queue, lock, ring = copyless.Queue(), copyless.Lock(name="t-live"), copyless.RingBuffer(((5,), "u1"), slots=4)
        queue.put(copyless.full(2000, 7, "u1"))
        with daemon.DaemonContext(stdin=sys.stdin, stdout=sys.stdout, stderr=sys.stderr, working_directory=os.getcwd()):
            with lock:
                assert (queue.get(timeout=10) == 7).all()
            ring.put(np.full(5, 4, "u1"))
            assert (np.asarray(ring.latest()) == 4).all()
            check_held()
            print("sound")
    """)
    assert said(daemon) == "sound", daemon.stderr.read()
    daemon.communicate(timeout=20)


def test_numbers_of_closed_descriptors_that_the_user_uses_again(tmp_path):
    """All descriptors are closed at once. Each number then belongs to a file of the user, which must stay unchanged."""
    done = program(f"""
        import fcntl, sys
        queue, lock, ring = copyless.Queue(), copyless.Lock(), copyless.RingBuffer(((5,), "u1"), slots=4)
        queue.put(copyless.full(2000, 7, "u1"))
        highest = max(int(name) for name in os.listdir("/proc/self/fd"))
        os.closerange(3, 4096)
        files = {{}}
        while not files or max(files) < highest + 5:
            number = len(files)
            fd = os.open(f"{tmp_path}/{{number}}", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            os.write(fd, b"the user's own %d" % number)
            os.lseek(fd, 3, os.SEEK_SET)
            files[fd] = number
        assert sorted(files) == list(range(3, highest + 6))

        def untouched():
            for fd, number in files.items():
                there = os.stat(f"{tmp_path}/{{number}}")
                assert (os.fstat(fd).st_ino, there.st_nlink) == (there.st_ino, 1), number  # not closed, not replaced
                assert os.lseek(fd, 0, os.SEEK_CUR) == 3
                assert os.pread(fd, 100, 0) == b"the user's own %d" % number
                other = os.open(f"{tmp_path}/{{number}}", os.O_RDWR)
                fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.close(other)

        def use_all(fill):
            assert lock.acquire(timeout=10)
            lock.release()
            queue.put(copyless.full(3000, fill, "u1"))
            assert (queue.get(timeout=10) == fill).all()
            ring.put(np.full(5, fill, "u1"))
            assert (np.asarray(ring.latest()) == fill).all()
            new = [copyless.full(n, fill, "u1") for n in (50, 70_000, 5_000_000)]
            assert all((a == fill).all() for a in new)
            assert copyless.Lock(name="t-live").acquire(timeout=10)
            copyless.reap()
            del new
            copyless.trim()

        assert (queue.get(timeout=10) == 7).all()
        for fill in (5, 6):
            use_all(fill)
            check_held()
            untouched()
            for leave in (os._exit, sys.exit):  # a child that just ends, and one that ends as Python does
                child = os.fork()
                if child == 0:
                    use_all(8)
                    check_held()
                    untouched()
                    leave(0)
                assert os.waitpid(child, 0)[1] == 0
            untouched()
        print(len(files))
    """)
    out, err = done.communicate(timeout=60)
    assert done.returncode == 0, err
    for number in range(int(out)):  # the end of the program did not touch them either
        assert (tmp_path / str(number)).read_bytes() == b"the user's own %d" % number
    assert len(os.listdir(tmp_path)) == int(out)


def test_others_see_a_program_that_closed_its_descriptors_live_and_die():
    holder = program("""
        lock = copyless.Lock(name="t-live")
        lock.acquire()
        os.closerange(3, 4096)
        print("closed")
        sys.stdin.readline()
        check_held()
        check_works()
        print("sound")
        sys.stdin.readline()
    """)
    assert said(holder) == "closed"
    lock = copyless.Lock(name="t-live")
    others = noise()
    assert is_held(lock)
    tell(holder)
    assert said(holder) == "sound"
    expect_noise(others)
    del others
    holder.kill()
    holder.wait()
    expect_dead(lock)
    holder.communicate()


# ---- dead processes that look alive, and live ones that look dead


def test_a_zombie_is_dead():
    """Its parent has not waited for it: it keeps its process number and its start time."""
    zombie = program("""
        lock = copyless.Lock(name="t-live")
        lock.acquire()
        print("held")
        sys.stdin.readline()
    """)
    assert said(zombie) == "held"
    lock = copyless.Lock(name="t-live")
    assert is_held(lock)
    zombie.kill()
    os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)  # it has exited, and is not waited for
    expect_dead(lock)
    with open(f"/proc/{zombie.pid}/stat") as f:
        assert f.read().rpartition(") ")[2][0] == "Z"
    zombie.communicate()


def test_a_process_that_executes_another_program_has_ended():
    holder = program("""
        lock = copyless.Lock(name="t-live")
        lock.acquire()
        print("held")
        sys.stdin.readline()
        os.execv(sys.executable, [sys.executable, "-u", "-c", "print('another'); input()"])
    """)
    assert said(holder) == "held"
    lock = copyless.Lock(name="t-live")
    assert is_held(lock)
    tell(holder)
    assert said(holder) == "another"
    expect_dead(lock)
    assert holder.poll() is None
    tell(holder)
    holder.communicate()


def test_a_process_lives_after_the_end_of_its_main_thread():
    holder = program("""
        import ctypes, threading, time
        lock = copyless.Lock(name="t-live")

        def work():
            lock.acquire()
            deadline = time.monotonic() + 20
            while open(f"/proc/self/task/{os.getpid()}/stat").read().rpartition(") ")[2][0] != "Z":
                assert time.monotonic() < deadline
                time.sleep(0.001)
            print("the main thread has ended")
            sys.stdin.readline()
            check_held()
            check_works()
            print("sound")
            sys.stdin.readline()
            os._exit(0)

        threading.Thread(target=work).start()
        ctypes.CDLL(None).pthread_exit(None)
    """)
    assert said(holder) == "the main thread has ended"
    lock = copyless.Lock(name="t-live")
    others = noise()
    assert is_held(lock)
    tell(holder)
    assert said(holder) == "sound"
    expect_noise(others)
    del others
    holder.kill()
    holder.wait()
    expect_dead(lock)
    holder.communicate()


# ---- children that share the memory of their parent

SHARER = r"""
    #define _GNU_SOURCE
    #include <sched.h>
    #include <signal.h>
    #include <stdio.h>
    #include <unistd.h>

    static char stack[65536] __attribute__((aligned(16)));

    /* Says its number; then, as it is told, executes another program or ends. */
    static int child(void *unused)
    {
        char word = 0;
        (void)unused;
        dprintf(1, "%d\n", (int)getpid());
        if (read(0, &word, 1) == 1 && word == 'e') {
            execl("/bin/cat", "cat", (char *)NULL);
        }
        _exit(0);
    }

    int share(int vfork_too)
    {
        return clone(child, stack + sizeof stack, CLONE_VM | (vfork_too ? CLONE_VFORK : 0) | SIGCHLD, NULL);
    }
"""


@pytest.fixture(scope="module")
def sharer(tmp_path_factory):
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    place = tmp_path_factory.mktemp("sharer")
    (place / "sharer.c").write_text(textwrap.dedent(SHARER))
    subprocess.run([compiler, "-shared", "-fPIC", "-o", place / "sharer.so", place / "sharer.c"], check=True)
    return str(place / "sharer.so")


@pytest.mark.parametrize("end", ["execs", "ends"])
@pytest.mark.parametrize("kind", ["vfork", "CLONE_VM"])
def test_an_owner_lives_until_the_last_that_shares_its_memory_has_left_it(sharer, kind, end):
    """A killed process whose vfork child has not reached its exec: the child uses the memory, so it is not freed."""
    holder = program(f"""
        import ctypes
        lock = copyless.Lock(name="t-live")
        lock.acquire()
        ctypes.CDLL({sharer!r}).share({int(kind == "vfork")})
        while True:
            import time
            time.sleep(60)
    """)
    child = int(said(holder))
    lock = copyless.Lock(name="t-live")
    held = blocks_of_arrays()
    assert held == 30
    holder.kill()
    holder.wait()
    assert os.path.exists(f"/proc/{child}")
    assert is_held(lock)
    copyless.reap()
    assert blocks_of_arrays() == held
    tell(holder, "e" if end == "execs" else "x")
    expect_dead(lock)
    if end == "execs":
        with open(f"/proc/{child}/comm") as f:
            assert f.read() == "cat\n"
    holder.communicate()  # closes its input, at which cat exits


SYSCALL_CLONE = {"x86_64": 56, "aarch64": 220}.get(platform.machine())


@pytest.mark.skipif(SYSCALL_CLONE is None, reason="the number of clone on this machine is not known here")
def test_a_child_cloned_behind_the_c_library_is_told_and_does_not_keep_its_parent_alive():
    parent = program(f"""
        import ctypes, signal
        lock, queue = copyless.Lock(name="t-live"), copyless.Queue()
        a = copyless.zeros(1000)
        lock.acquire()
        if ctypes.PyDLL(None).syscall({SYSCALL_CLONE}, int(signal.SIGCHLD), 0, 0, 0, 0) == 0:
            for call in (lambda: copyless.zeros(10), lambda: queue.put(a), lambda: queue.put(1), lock.release,
                         lambda: lock.acquire(timeout=1), lambda: copyless.handle(a), lambda: copyless.share({{"a": a}}),
                         lambda: copyless.Lock(), lambda: copyless.open("t-live"), copyless.reap):
                try:
                    call()
                    print("no error")
                except copyless.errors.WrongProcessError:
                    pass
                except BaseException as error:
                    print(type(error), error)
            check_held()  # it may read
            print(os.getpid())
            sys.stdin.readline()
            os._exit(0)
        import time
        time.sleep(60)
    """)  # noqa: E501
    clone = said(parent)
    assert clone.isdigit(), clone
    lock = copyless.Lock(name="t-live")
    assert is_held(lock)
    parent.kill()
    parent.wait()
    expect_dead(lock)
    assert os.path.exists(f"/proc/{clone}")
    tell(parent)
    parent.communicate()


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="Python ends a process that calls PyOS_AfterFork_Child alone")
def test_a_fork_by_c_code_is_a_fork():
    """fork(2) without the hooks of Python, as in an embedding server."""
    parent = program("""
        import ctypes
        libc = ctypes.PyDLL(None)
        lock = copyless.Lock(name="t-live")
        lock.acquire()
        if libc.fork() == 0:
            libc.PyOS_AfterFork_Child()
            own = copyless.Lock(name="t-own")
            own.acquire()
            print(os.getpid())
            sys.stdin.readline()
            check_held()
            check_works()
            queue = copyless.Queue()
            queue.put(held[0])
            assert (queue.get(timeout=10) == 1).all()
            print("sound")
            sys.stdin.readline()
            os._exit(0)
        import time
        time.sleep(60)
    """)
    child = int(said(parent))
    lock, own = copyless.Lock(name="t-live"), copyless.Lock(name="t-own")
    assert is_held(lock)
    parent.kill()
    parent.wait()
    with pytest.raises(copyless.OwnerDiedError):
        lock.acquire(timeout=20)
    assert is_held(own)
    others = noise()
    tell(parent)
    assert said(parent) == "sound"
    expect_noise(others)
    del others
    os.kill(child, 9)
    expect_dead(own)
    parent.communicate()


# ---- containers


@needs_unshare
def test_two_pid_namespaces_over_one_directory():
    """Both have process number 1. Arrays, queues and locks are shared; each sees the other alive, and notices its
    death.
    """
    code = textwrap.dedent("""
        import os, sys, copyless
        assert os.getpid() == 1
        other = sys.argv[1] == "second"
        mine, theirs = (copyless.Lock(name=f"t-ns-{i}") for i in ((2, 1) if other else (1, 2)))
        queues = [copyless.Queue(name=f"t-queue-{i}") for i in (1, 2)]
        mine.acquire()
        print("up")
        for line in sys.stdin:
            match line.split():
                case ["put", i]:
                    queues[int(i)].put(copyless.full(2000, 5.0))
                case ["get", i]:
                    array = queues[int(i)].get(timeout=20)
                    print(array.sum())
                case ["try"]:
                    try:
                        print(theirs.acquire(timeout=0.3))
                    except copyless.OwnerDiedError:
                        print("dead")
                case ["reap"]:
                    print(copyless.reap()["owners"])
    """)
    both = [
        subprocess.Popen(
            ["unshare", "-rpf", "--mount-proc", "--kill-child", sys.executable, "-u", "-c", code, name],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for name in ("first", "second")
    ]  # fmt: skip
    first, second = both
    assert [said(one) for one in both] == ["up", "up"]
    for one, other, queue in ((first, second, 0), (second, first, 1)):
        tell(one, f"put {queue}")
        tell(other, f"get {queue}")
        assert said(other) == "10000.0"
    for one in both:
        tell(one, "reap")
        assert said(one) == "0"
        tell(one, "try")
        assert said(one) == "False"
    locks = [copyless.Lock(name=f"t-ns-{i}") for i in (1, 2)]
    assert [is_held(lock) for lock in locks] == [True, True]
    first.kill()  # and with it what runs inside
    first.communicate()
    until(lambda: (tell(second, "try"), said(second))[1] == "dead", "the first is not found dead")
    assert is_held(locks[1])
    second.kill()
    second.communicate()
    expect_dead(locks[1])


# ---- systems on which a child cannot be excluded from a mapping

EMULATOR = next((path for name in ("qemu-x86_64", "qemu-x86_64-static") if (path := shutil.which(name))), None)


def test_this_system_keeps_liveness_by_a_mapping():
    copyless.zeros(1)
    assert _store.statistics()["weak_liveness"] is False
    done = python("import copyless; copyless.zeros(1); copyless.zeros(1)")
    assert done.stderr == ""


@pytest.mark.skipif(EMULATOR is None or platform.machine() != "x86_64", reason="qemu's user mode is not installed")
def test_a_system_that_ignores_madv_dontfork_is_found_out(tmp_path):
    """On these a descriptor keeps the byte. This is reported once when the store is opened, and by doctor."""
    code = textwrap.dedent("""
        import os, sys, warnings, copyless
        from copyless._core import _store
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            a = copyless.full(1000, 3.0)
            copyless.zeros(1)
        assert _store.statistics()["weak_liveness"]
        assert [w.category for w in caught] == [RuntimeWarning] and "MADV_DONTFORK" in str(caught[0].message), caught
        child = os.fork()
        if child == 0:
            b = copyless.full(1000, 4.0)
            os._exit(0 if a.sum() == 3000 and b.sum() == 4000 else 1)
        assert os.waitpid(child, 0)[1] == 0
        from copyless.cli.doctor import examine
        report = examine()
        assert any("MADV_DONTFORK" in problem for problem in report["problems"]), report
        print("weak")
    """)
    done = subprocess.run([EMULATOR, sys.executable, "-c", code], capture_output=True, text=True, timeout=250)
    assert done.stdout == "weak\n", done.stderr


def test_doctor_says_how_liveness_is_held():
    from copyless.cli.doctor import examine

    report = examine()
    assert report["facts"]["liveness"] == "held by a mapping"
    assert not any("MADV_DONTFORK" in problem for problem in report["problems"])
