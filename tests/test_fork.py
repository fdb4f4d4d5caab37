"""Forks: a child keeps what its parent held, whatever happens to either, and a fork costs the same however much that
is.
"""

import ast
import os
import socket
import subprocess
import sys
import textwrap

import pytest

import copyless
from copyless._core import _store
from tests.conftest import python, until

# ---- a tree of processes, each of which executes the test's commands

NODE = """
    import gc, os, resource, signal, socket, sys, warnings
    import numpy as np
    import copyless
    from copyless._core import _store

    said = None
    arrays, own = [], []
    warnings.simplefilter("always")

    def serve(name):
        "Answer expressions with their values, in words of Python."
        global said
        if said is not None:
            said.close()
        with socket.socket(socket.AF_UNIX) as line:
            line.connect(PLACE)
            said = line.makefile("rw")
        said.write(f"{name} {os.getpid()}\\n")
        said.flush()
        for line in said:
            try:
                answer = eval(line)
            except Exception as error:
                answer = type(error).__name__
            said.write(repr(answer) + "\\n")
            said.flush()
        os._exit(0)

    def fork(*names):
        for name in names:
            if os.fork() == 0:
                serve(name)

    def daemon(name):
        "A grandchild whose parent ends at once."
        child = os.fork()
        if child == 0:
            if os.fork() == 0:
                serve(name)
            os._exit(0)
        os.waitpid(child, 0)

    def make(n, to=arrays):
        to.extend([copyless.full(10, i) for i in range(len(to), len(to) + n)])

    def drop(of=arrays):
        of.clear()

    def sound(of=arrays):
        return all((a == i).all() for i, a in enumerate(of))

    serve("root")
"""


class Node:
    def __init__(self, line):
        self.file = line.makefile("rw")
        line.close()
        self.name, pid = self.file.readline().split()
        self.pid = int(pid)

    def __call__(self, expression):
        self.file.write(expression + "\n")
        self.file.flush()
        answer = self.file.readline()
        assert answer, f"{self.name} has ended"
        return ast.literal_eval(answer)

    def begin(self, expression):
        """Send a command, and read the answer later."""
        self.file.write(expression + "\n")
        self.file.flush()

    def end(self):
        return ast.literal_eval(self.file.readline())

    def kill(self):
        os.kill(self.pid, 9)
        with self.file:  # this closes the child's end of the connection
            until(lambda: not os.path.exists(f"/proc/{self.pid}") or is_zombie(self.pid))


def is_zombie(pid):
    try:
        with open(f"/proc/{pid}/stat") as f:
            return f.read().rpartition(") ")[2][0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


class Tree:
    def __init__(self, place):
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(place)
        self.listener.listen(200)
        self.listener.settimeout(30)
        self.nodes = {}
        self.program = subprocess.Popen([sys.executable, "-c", textwrap.dedent(NODE).replace("PLACE", repr(place))])

    def __getitem__(self, name):
        while name not in self.nodes:
            node = Node(self.listener.accept()[0])
            self.nodes[node.name] = node
        return self.nodes[name]


@pytest.fixture
def tree(tmp_path):
    copyless.zeros(1)
    found = Tree(str(tmp_path / "tree"))
    yield found
    for node in found.nodes.values():
        if not node.file.closed:
            node.kill()
    found.program.kill()
    found.program.wait()
    found.listener.close()


def used():
    """Arrays of ten numbers that some process holds."""
    copyless.reap()
    return sum(block["bytes"] == 80 for block in _store.snapshot()["blocks"])


def bytes_in_use():
    totals = _store.statistics()
    return totals["total_bytes"] - totals["warm_bytes"]


def expect_used(n):
    assert until(lambda: used() == n, lambda: f"{used()} arrays are held, expected {n}")
    _store.audit()


class Others:
    """Arrays of another process: they would be placed on memory that was freed."""

    def __init__(self, n=300):
        self.arrays = [copyless.full(10, -1.0) for _ in range(n)]

    def end(self):
        assert all((a == -1).all() for a in self.arrays)
        self.arrays.clear()


# ---- which process releases, and which dies, in which order


@pytest.mark.parametrize("first", ["parent", "child"])
@pytest.mark.parametrize("how", ["drops", "is killed"])
def test_what_one_lets_go_the_other_keeps(tree, first, how):
    root = tree["root"]
    root("make(300)")
    root("fork('child')")
    nodes = [root, tree["child"]]
    if first == "child":
        nodes.reverse()
    nodes[0]("drop()") if how == "drops" else nodes[0].kill()
    copyless.reap()
    others = Others()
    assert nodes[1]("sound()")
    others.end()
    expect_used(300)
    nodes[1]("drop()") if how == "drops" else nodes[1].kill()
    expect_used(0)


def test_what_is_made_after_the_fork_is_ones_own(tree):
    root = tree["root"]
    root("make(100)")
    root("fork('child')")
    root("make(50)")
    tree["child"]("make(30, own)")
    expect_used(180)
    root.kill()
    expect_used(130)
    assert tree["child"]("sound() and sound(own)")
    tree["child"]("drop()")
    expect_used(30)
    tree["child"].kill()
    expect_used(0)


def test_each_fork_inherits_what_was_held_at_its_own_time(tree):
    root = tree["root"]
    for name in ("first", "second", "third"):
        root("make(100)")
        root(f"fork({name!r})")
    root("drop()")
    assert [tree[name]("(len(arrays), sound())") for name in ("first", "second", "third")] == [
        (100, True), (200, True), (300, True),
    ]  # fmt: skip
    expect_used(300)
    tree["third"]("drop()")
    expect_used(200)
    tree["first"].kill()
    expect_used(200)
    tree["second"]("drop()")
    expect_used(0)


def test_a_daemon_forked_twice_keeps_what_its_grandparent_made(tree):
    root = tree["root"]
    root("make(300)")
    root("daemon('daemon')")
    root.kill()
    copyless.reap()
    others = Others()
    assert tree["daemon"]("sound()")
    others.end()
    tree["daemon"]("make(20, own)")
    assert tree["daemon"]("sound(own)")
    expect_used(320)
    tree["daemon"]("drop()")
    expect_used(20)


def test_a_child_forks_in_its_turn(tree):
    """Each generation adds arrays of its own; the middle one exits first, then the oldest."""
    root = tree["root"]
    root("make(100)")
    root("fork('child')")
    child = tree["child"]
    child("make(100)")
    child("fork('grandchild')")
    grandchild = tree["grandchild"]
    child.kill()
    expect_used(200)
    root("drop()")
    others = Others()
    assert grandchild("(len(arrays), sound())") == (200, True)
    others.end()
    expect_used(200)
    root.kill()
    expect_used(200)
    grandchild("drop()")
    expect_used(0)


def test_a_fork_inside_a_hook_of_a_fork(tree):
    """A child that forks before its own at-fork hooks have ended."""
    root = tree["root"]
    root("make(100)")
    root("os.register_at_fork(after_in_child=lambda: said is not None and globals().update(nested=True) or "
         "(os.getppid() == TOP and fork('inner')))".replace("TOP", str(root.pid)))  # fmt: skip
    root("fork('outer')")
    inner, outer = tree["inner"], tree["outer"]
    root("drop()")
    root.kill()
    others = Others()
    assert inner("sound()")
    assert outer("sound()")
    others.end()
    expect_used(100)
    outer("drop()")
    expect_used(100)
    inner("drop()")
    expect_used(0)


def test_a_child_that_executes_another_program_holds_nothing(tree):
    root = tree["root"]
    root("make(100)")
    root("fork('child')")
    child = tree["child"]
    root("drop()")
    expect_used(100)
    child.begin("os.execv('/bin/sleep', ['sleep', '60'])")
    expect_used(0)
    assert os.path.exists(f"/proc/{child.pid}")


def test_many_heirs(tree):
    root, names = tree["root"], [f"heir{i}" for i in range(40)]
    root("make(300)")
    root(f"fork(*{names})")
    heirs = [tree[name] for name in names]
    root("drop()")
    for i, heir in enumerate(heirs[:-1]):
        heir("drop()") if i % 2 else heir.kill()
    others = Others()
    assert heirs[-1]("sound()")
    others.end()
    expect_used(300)
    heirs[-1]("drop()")
    expect_used(0)


def test_a_failed_fork_changes_nothing(tree):
    root = tree["root"]
    root("make(100)")
    root("resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))")
    root("os.setresuid(65534, 65534, 0)")
    assert root("os.fork()") in ("BlockingIOError", "OSError")
    root("os.setresuid(0, 0, 0)")
    assert root("sound()")
    root("make(20)")
    expect_used(120)
    root("drop()")
    expect_used(0)
    copyless.reap()
    assert sum(owner["pid"] == 0 for owner in _store.snapshot()["owners"]) == 0


if os.geteuid() != 0:
    test_a_failed_fork_changes_nothing = pytest.mark.skip(reason="needs root")(test_a_failed_fork_changes_nothing)


# ---- the cost


def test_memory_is_free_soon_after_both_have_dropped_very_many(tree):
    before = bytes_in_use()
    root = tree["root"]
    root("make(60_000)")
    root("fork('child')")
    child = tree["child"]
    assert bytes_in_use() - before >= 60_000 * 80
    for node in (root, child):
        node.begin("drop()")
    for node in (root, child):
        node.end()
    until(lambda: bytes_in_use() <= before, lambda: f"{bytes_in_use()} bytes in use, before {before}", seconds=1)
    assert root("sound()")
    assert child("sound()")  # both live


def test_a_hundred_workers_cost_no_records_for_what_they_inherit(tree):
    root = tree["root"]
    root("make(60_000)")
    before = len(_store.snapshot()["holds"])
    names = [f"worker{i}" for i in range(100)]
    root(f"fork(*{names})")
    for name in names:
        assert tree[name]("len(arrays)") == 60_000
    assert len(_store.snapshot()["holds"]) - before < 1000
    assert tree["worker99"]("sound()")


# ---- forks when a resource is short

FULL = """
    import os, sys, warnings
    import numpy as np
    import copyless
    from copyless import OutOfSharedMemory
    from copyless._core import _store

    def fill():
        "Something else takes all that is left, to the last page."
        with open("/dev/shm/filler", "wb", buffering=0) as f:
            try:
                while True:
                    f.write(bytes(4096))
            except OSError:
                pass

    def try_to_make(n, value):
        made = []
        try:
            for _ in range(n):
                made.append(copyless.full(1000, value, "u1"))
        except OutOfSharedMemory:
            return made, True
        return made, False

    def check_a_fork(arrays):
        "The parent drops all and takes what it can get; the child's are as they were. Whether the parent was refused."
        (r, w), (r2, w2) = os.pipe(), os.pipe()
        child = os.fork()
        if child == 0:
            code = 1
            try:
                os.read(r, 1)
                wrong = sum(not (a == i % 200).all() for i, a in enumerate(arrays))
                code = 2 if wrong else 0
                for a in arrays:
                    a[:] = 201
            finally:
                os._exit(code)
        arrays.clear()
        made, refused = try_to_make(3000, 255)
        os.write(w, b"x")
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert all((a == 255).all() for a in made)
        _store.audit()
        return refused
"""


def on_a_mount(tmp_path, size, body):
    script = f'mount -t tmpfs -o size={size} tmpfs /dev/shm && exec "$0" -c "$1"'
    env = {**os.environ, "COPYLESS_SPILL": str(tmp_path)}
    env.pop("COPYLESS_DIR", None)
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script, sys.executable, textwrap.dedent(FULL) + textwrap.dedent(body)],
        capture_output=True, text=True, timeout=200, env=env,
    )  # fmt: skip
    if done.returncode != 0 and done.stderr.startswith("unshare"):
        pytest.skip("a mount of its own needs unshare(1) and user namespaces")
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.split()


@pytest.mark.parametrize(("size", "n"), [("4m", 200), ("8m", 2000)])
def test_a_fork_on_a_full_mount(tmp_path, size, n):
    """No inherited array has wrong data. If there is no space in the parent, it gets an error."""
    assert on_a_mount(tmp_path, size, f"""
        arrays = [copyless.full(1000, i % 200, "u1") for i in range({n})]
        fill()
        print(check_a_fork(arrays))
        os.unlink("/dev/shm/filler")
        made, refused = try_to_make(500, 3)
        print(len(made), refused)
    """) == ["True", "500", "False"]  # fmt: skip


@pytest.mark.slow
def test_a_fork_with_all_holds_taken(tmp_path):
    """A million waiting messages use every entry; a fork needs none."""
    out = on_a_mount(tmp_path, "2g", """
        from multiprocessing.reduction import ForkingPickler
        arrays = [copyless.full(1000, i % 200, "u1") for i in range(300)]
        message = copyless.zeros(1)
        try:
            while True:
                ForkingPickler.dumps(message)
        except OutOfSharedMemory as error:
            print(error.limit)
        print(check_a_fork(arrays))
    """)  # fmt: skip
    assert int(out[0]) >= 1_000_000
    assert out[1] == "True"


LAST = """
    def take_all_descriptors():
        used = max(int(name) for name in os.listdir("/proc/self/fd")) + 1
        for fd in range(used):
            try:
                os.fstat(fd)
            except OSError:
                os.open("/dev/null", os.O_RDONLY)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (used, hard))
        try:
            while True:
                os.open("/dev/null", os.O_RDONLY)
        except OSError:
            return soft, hard
"""


@pytest.mark.parametrize("spare", ["kept", "closed"])
def test_forks_without_descriptors(spare):
    """One descriptor is reserved for them. If the program closed that too, the children cannot be registered. All keep
    their data.
    """
    done = python(textwrap.dedent(LAST) + textwrap.dedent("""
        import os, resource, sys, warnings, copyless
        warnings.simplefilter("always")
        arrays = [copyless.full(1000, i % 200, "u1") for i in range(500)]
        if sys.argv[1] == "closed":
            os.closerange(3, 4096)
        (r, w), children = os.pipe(), []
        take_all_descriptors()
        for _ in range(4):
            child = os.fork()
            if child == 0:
                os.read(r, 1)
                os._exit(0 if all((a == i % 200).all() for i, a in enumerate(arrays)) else 2)
            children.append(child)
        arrays.clear()
        noise = []
        try:
            for _ in range(1000):
                noise.append(copyless.full(1000, 255, "u1"))
        except OSError:
            pass  # a new segment needs a descriptor
        os.write(w, b"xxxx")
        print([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children])
        assert all((a == 255).all() for a in noise)
    """), spare)  # fmt: skip
    assert done.stdout == "[0, 0, 0, 0]\n"
    told = done.stderr.count("RuntimeWarning: copyless: this forked child could not be registered")
    assert told == (4 if spare == "closed" else 0)


def test_what_a_child_that_could_not_be_registered_is_told():
    """One warning. The child may read. Its calls on inherited objects raise. Its own new objects work."""
    done = python(textwrap.dedent(LAST) + textwrap.dedent("""
        import os, resource, sys, warnings, copyless
        from copyless.errors import WrongProcessError
        a, queue, lock, event = copyless.full(1000, 7.0), copyless.Queue(), copyless.Lock(), copyless.Event()
        queue.put(1)
        os.closerange(3, 4096)
        limit = take_all_descriptors()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            child = os.fork()
            if child == 0:
                assert [w.category for w in caught] == [RuntimeWarning], caught
        if child == 0:
            resource.setrlimit(resource.RLIMIT_NOFILE, limit)
            assert a.sum() == 7000.0
            calls = {
                "put an array": lambda: queue.put(a), "put": lambda: queue.put(1), "get": lambda: queue.get(timeout=1),
                "acquire": lambda: lock.acquire(timeout=1), "with": lock.__enter__, "handle": lambda: copyless.handle(a),
                "handle of a view": lambda: copyless.handle(a[3:]), "share": lambda: copyless.share({"a": a}),
                "asarray": lambda: copyless.handle(copyless.asarray(a)), "set": event.set, "wait": lambda: event.wait(1),
                "handle of a queue": lambda: copyless.handle(queue),
            }
            def try_all():
                for name, call in calls.items():
                    try:
                        print(name, call())
                    except WrongProcessError:
                        pass
                    except Exception as error:
                        print(name, type(error), error)
            try_all()
            b, mine = copyless.full(1000, 8.0), copyless.Queue()
            mine.put(b)
            assert (mine.get(timeout=10) == 8).all()
            with copyless.Lock():
                pass
            assert (copyless.attach(copyless.handle(b)) == 8).all()
            grandchild = os.fork()
            if grandchild == 0:
                assert b.sum() == 8000.0 and a.sum() == 7000.0
                copyless.zeros(10)
                os._exit(0)
            assert os.waitpid(grandchild, 0)[1] == 0
            try_all()  # also after the store was opened anew
            assert a.sum() == 7000.0
            print("told", flush=True)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)
        assert lock.acquire(timeout=5) and queue.get(timeout=5) == 1 and a.sum() == 7000.0
    """))  # fmt: skip  # noqa: E501
    assert done.stdout == "told\n"
    assert done.stderr == ""


@pytest.mark.parametrize("before", [0, 1])
def test_the_directory_opened_anew_may_get_the_number_it_had(before):
    """The program closed all descriptors, so the number was free. The new one must not be taken for the former one."""
    done = python(textwrap.dedent(LAST) + textwrap.dedent("""
        import os, resource, sys, copyless
        from copyless._storage import store
        a = copyless.zeros(5)
        number = store._directory_fd
        os.closerange(3, 4096)
        limit = take_all_descriptors()
        if os.fork() == 0:
            resource.setrlimit(resource.RLIMIT_NOFILE, limit)
            os.closerange(number - int(sys.argv[1]), 4096)
            b = copyless.ones(5)
            print(copyless.attach(copyless.handle(b)).sum(), store._directory_fd - number, flush=True)
            os._exit(0)
        assert os.wait()[1] == 0
    """), str(before))  # fmt: skip
    assert done.stdout in {f"5.0 {moved}\n" for moved in (0, -1)}


# ---- forks while another thread uses the package for the first time

FIRST = """
    import os, signal, sys, threading, time
    import copyless
    use = {"array": lambda: copyless.zeros(3), "queue": lambda: copyless.Queue(), "lock": lambda: copyless.Lock(),
           "executor": lambda: copyless.ProcessPoolExecutor, "module": lambda: __import__("copyless.rings")}[sys.argv[1]]
    thread = threading.Thread(target=use)
    thread.start()
    time.sleep(float(sys.argv[2]))  # anywhere in the import
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        use()
        os._exit(0)
    print(os.waitpid(child, 0)[1])
"""  # noqa: E501


@pytest.mark.parametrize("delay", [0.0, 0.01, 0.03, 0.06, 0.1])
@pytest.mark.parametrize("what", ["array", "queue", "lock", "executor", "module"])
def test_a_fork_during_a_first_use_in_another_thread(what, delay):
    done = python(FIRST, what, str(delay))
    assert (done.stdout, done.stderr) == ("0\n", "")


def test_a_fork_in_the_middle_of_an_import_of_ours_waits_for_nobody(tmp_path):
    """The forking thread holds a lock of a module, and the first use in another thread waits for it."""
    (tmp_path / "numpy.py").write_text("""
import os, sys, threading, time
import copyless
waiting = threading.Thread(target=lambda: copyless.zeros)
waiting.start()
deadline = time.monotonic() + 20
while waiting.ident not in copyless._first_use._busy and time.monotonic() < deadline:
    time.sleep(0.001)
began = time.monotonic()
child = os.fork()
if child == 0:
    os._exit(0)
os.waitpid(child, 0)
print(waiting.is_alive(), time.monotonic() - began < copyless._first_use._FORK_WAITS)
os._exit(0)
""")
    done = python("import copyless; copyless.zeros(3)", PYTHONPATH=str(tmp_path))
    assert done.stdout == "True True\n"


@pytest.mark.parametrize("first", ["copyless", "logging"])
def test_a_fork_while_a_first_use_needs_the_lock_of_logging(first, tmp_path):
    """`logging` takes its lock before a fork. If it was imported later, its hook runs before ours, which waits."""
    (tmp_path / "numpy.py").write_text("""
import logging, time
begun.set()
time.sleep(0.2)  # the fork has begun by then; if it has not, the test proves less
logging.getLogger("in an import").setLevel("INFO")
raise ImportError
""")
    done = python(f"""
        import {first}
        import builtins, contextlib, copyless, logging, os, threading, time

        builtins.begun = threading.Event()

        def use():
            with contextlib.suppress(ImportError):
                copyless.zeros

        thread = threading.Thread(target=use)
        thread.start()
        begun.wait()
        began = time.monotonic()
        child = os.fork()
        if child == 0:
            logging.getLogger("child").setLevel("INFO")
            os._exit(0)
        print(time.monotonic() - began < copyless._first_use._FORK_WAITS / 2, os.waitpid(child, 0)[1])
        logging.getLogger("parent").setLevel("INFO")
        thread.join()
    """, PYTHONPATH=str(tmp_path))  # fmt: skip
    assert (done.stdout, done.stderr) == ("True 0\n", "")


@pytest.mark.parametrize("hook", ["before", "after"])
def test_a_lock_of_the_users_own_at_fork_hooks(hook):
    """A lock that is taken before a fork and released after it, registered before our hooks or after them, while a
    thread uses the package under this lock.
    """
    done = python("""
        import os, sys, threading, faulthandler
        faulthandler.dump_traceback_later(50, exit=True)
        L = threading.RLock()
        register = lambda: os.register_at_fork(before=L.acquire, after_in_parent=L.release, after_in_child=L.release)
        if sys.argv[1] == "before":
            register()
        import copyless
        if sys.argv[1] == "after":
            register()
        stop, n = False, 0
        def work():
            global n
            while not stop:
                with L:
                    copyless.zeros(10)
                    n += 1
        thread = threading.Thread(target=work)
        thread.start()
        for _ in range(50):
            child = os.fork()
            if child == 0:
                copyless.zeros(10)
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
        stop = True
        thread.join()
        print(n > 0)
    """, hook)  # fmt: skip
    assert (done.stdout, done.stderr) == ("True\n", "")
