"""Connections of managers: their files, which client may delay which, and networks that are cut."""

import contextlib
import errno
import logging
import multiprocessing
import os
import pickle
import random
import shutil
import signal
import socket
import ssl
import stat
import subprocess
import sys
import threading
import time
from multiprocessing import AuthenticationError

import psutil
import pytest

import copyless
from copyless import ServerEndedError
from copyless._core import _pickles
from copyless._storage import removal, sockets
from copyless.errors import StaleHandleError
from copyless.managers import RemoteError, SyncManager, _connection, _endpoints, _handshake, _listener, _log
from tests.conftest import python, start_python, until
from tests.test_managers import CERTIFICATE, KEY, LockManager, MyManager, proven, raw, server_context, serving

FORK = multiprocessing.get_context("fork")
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
AS_NOBODY = ("setpriv", "--reuid", "12345", "--regid", "12345", "--clear-groups")
needs_another_user = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("setpriv") is None, reason="needs root and setpriv, to be another user"
)


# ---- paths


def stale(path):
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(path)
    return path


def make_file(path):
    with open(path, "w") as f:
        f.write("precious")


def make_bound(path):
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(path)
    return sock


def make_listening(path):
    sock = make_bound(path)
    sock.listen(1)
    return sock


def make_datagram(path):
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sock.bind(path)
    return sock


def make_link(path):
    make_file(path + ".target")
    os.symlink(path + ".target", path)


def make_link_to_a_stale_socket(path):
    os.symlink(stale(path + ".target"), path)


@pytest.mark.parametrize(
    "make",
    [make_file, os.mkdir, os.mkfifo, make_link, lambda path: os.symlink("nowhere", path), make_link_to_a_stale_socket, make_bound,  # noqa: E501
     make_listening, make_datagram],
    ids=["file", "directory", "fifo", "link", "dangling link", "link to a socket", "bound", "listening", "datagram"],
)  # fmt: skip
def test_what_is_no_dead_socket_of_ours_is_never_removed(tmp_path, make):
    path = str(tmp_path / "there")
    held = make(path)
    before = os.lstat(path)
    for begin in (SyncManager(path, KEY).get_server, SyncManager(path, KEY, ctx=FORK).start):
        with pytest.raises((OSError, EOFError), match="in use"):
            begin()
    after = os.lstat(path)
    assert (after.st_ino, after.st_mode, after.st_mtime_ns) == (before.st_ino, before.st_mode, before.st_mtime_ns)
    if make is make_file:
        with open(path) as f:
            assert f.read() == "precious"
    assert not [name for name in os.listdir(tmp_path) if "lock" in name or name.startswith(".")]
    if held is not None:
        held.close()


@needs_another_user
def test_a_dead_socket_of_another_user_is_left_alone(tmp_path):
    path = stale(str(tmp_path / "there"))
    os.chown(path, 12345, 12345)
    with pytest.raises(OSError, match="belongs to uid 12345"):
        SyncManager(path, KEY).get_server()
    assert os.path.exists(path)


def contend(path, barrier, answers, done):
    barrier.wait(20)
    try:
        listener = _listener.Listener(path)
    except OSError as error:
        answers.put(error.errno)
    else:
        answers.put("won")
        done.wait(20)
        listener.close()


@pytest.mark.parametrize("left", [True, False], ids=["stale", "nothing"])
def test_of_servers_that_start_at_once_exactly_one_wins(tmp_path, left):
    for i in range(10):
        path = str(tmp_path / f"there{i}")
        if left:
            stale(path)
        barrier, answers, done = FORK.Barrier(4), FORK.SimpleQueue(), FORK.Event()
        crowd = [FORK.Process(target=contend, args=(path, barrier, answers, done)) for _ in range(4)]
        for one in crowd:
            one.start()
        told = [answers.get() for _ in crowd]
        assert sorted(map(str, told)) == sorted(map(str, ["won"] + 3 * [errno.EADDRINUSE])), told
        sock = _endpoints.connected(path)  # and the winner has the name
        sock.close()
        done.set()
        for one in crowd:
            one.join()
        assert os.listdir(tmp_path) == []


def test_closing_never_removes_a_successors_socket(tmp_path):
    path = str(tmp_path / "there")
    first = _listener.Listener(path)
    os.unlink(path)  # as a cleaner does
    second = _listener.Listener(path)
    first.close()
    _endpoints.connected(path).close()
    os.unlink(path)
    make_file(path)
    second.close()
    assert os.path.isfile(path)


def test_files_beside_a_socket_are_left_alone(tmp_path):
    path = str(tmp_path / "there")
    names = [
        "there.lock",
        ".there",
        ".there.lock",
        "there.sock",
        ".sock.there",
        os.path.basename(sockets._lock_of(path)),
    ]
    for name in names:
        make_file(tmp_path / name)
    stale(path)
    for _ in range(2):
        _listener.Listener(path).close()
    assert sorted(os.listdir(tmp_path)) == sorted(names)
    for name in names:
        assert (tmp_path / name).read_text() == "precious"


@needs_another_user
def test_another_user_who_holds_the_lock_makes_only_a_taken_address_busy(tmp_path):
    path = str(tmp_path / "there")
    make_file(sockets._lock_of(path))
    os.chown(sockets._lock_of(path), 12345, 12345)
    _listener.Listener(path).close()
    assert not os.path.exists(path)
    stale(path)
    with pytest.raises(OSError, match=r"\.lock cannot be locked"):
        _listener.Listener(path)
    assert os.path.exists(path)


def test_a_server_that_is_never_served_leaves_no_file(tmp_path):
    python(
        """
        import sys
        from copyless.managers import SyncManager
        servers = SyncManager(sys.argv[1], b"key").get_server(), SyncManager().get_server()
        """,
        str(tmp_path / "there"), COPYLESS_DIR=str(tmp_path),
    )  # fmt: skip
    assert os.listdir(tmp_path) == []


def test_a_servers_workers_do_not_keep_its_address_when_it_is_killed(tmp_path):
    path = str(tmp_path / "there")
    manager = MyManager(path, KEY, ctx=FORK)
    manager.register("child", callable=forked_child, exposed=("pid",))
    manager.start()
    pid = manager.child().pid()
    try:
        os.kill(manager._process.pid, signal.SIGKILL)
        manager.join()
        with MyManager(path, KEY, ctx=FORK) as again:
            assert again.Foo().f() == "f()"
    finally:
        os.kill(pid, signal.SIGKILL)


class forked_child:
    def __init__(self):
        self.child = os.fork()
        if not self.child:
            time.sleep(100)
            os._exit(0)

    def pid(self):
        return self.child


def test_the_storage_directory_may_be_deeper_than_a_sockets_path_may_be_long(tmp_path):
    place = tmp_path / ("a" * 100) / ("b" * 100)
    place.mkdir(parents=True)
    done = python(
        """
        import multiprocessing, os
        import copyless
        from copyless.managers import SyncManager
        deep = os.path.join(os.environ["COPYLESS_DIR"], "my own socket")
        for address in (None, deep):
            with SyncManager(address, b"key", ctx=multiprocessing.get_context("fork")) as manager:
                assert manager.list([1])[:] == [1]
                other = SyncManager(manager.address, b"key")
                other.connect()
                assert other.list([2])[:] == [2]
        print("well")
        """,
        COPYLESS_DIR=str(place),
    )  # fmt: skip
    assert done.stdout == "well\n"
    assert os.listdir(place) == []
    with pytest.raises(OSError, match="about 80 bytes"):
        SyncManager(str(place / ("c" * 200)), KEY).get_server()


def test_a_killed_servers_socket_goes_with_the_next_server_and_with_the_registry(tmp_path):
    code = """
        import os, signal, sys
        from copyless.managers import SyncManager
        server = SyncManager(None, b"key").get_server()
        print(server.address, flush=True)
        if sys.argv[1] == "die":
            os.kill(os.getpid(), signal.SIGKILL)
    """
    first = python(code, "die", check=False, COPYLESS_DIR=str(tmp_path)).stdout.strip()
    assert stat.S_ISSOCK(os.lstat(first).st_mode)
    assert stat.S_IMODE(os.lstat(os.path.dirname(first)).st_mode) == 0o700
    second = python(code, "die", check=False, COPYLESS_DIR=str(tmp_path)).stdout.strip()
    assert not os.path.exists(first)
    removal.remove(os.path.dirname(second))
    assert os.listdir(tmp_path) == []


def test_a_removed_storage_directory_gets_its_socket_again(tmp_path):
    with serving(address=None, COPYLESS_DIR=str(tmp_path)) as server:
        shutil.rmtree(os.path.dirname(server.address))
        until(lambda: os.path.exists(server.address))
        assert stat.S_IMODE(os.lstat(os.path.dirname(server.address)).st_mode) == 0o700
        manager = LockManager(server.address, KEY)
        manager.connect()
        assert manager.list([1])[:] == [1]
    assert not os.path.exists(server.address)


# ---- clients without the key


@needs_another_user
def test_another_user_cannot_reach_the_private_socket():
    with SyncManager(ctx=FORK) as manager:
        code = f"import socket; socket.socket(socket.AF_UNIX).connect({manager.address!r})"
        done = subprocess.run([*AS_NOBODY, sys.executable, "-c", code], capture_output=True, text=True)
        assert "PermissionError" in done.stderr or done.returncode == 127, done.stderr


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_silent_connections_hold_up_nobody(tmp_path, kind):
    address = ("127.0.0.1", 0) if kind == "tcp" else str(tmp_path / "there")
    with serving(address=address, COPYLESS_HOST="host-a") as server, contextlib.ExitStack() as stack:
        process = psutil.Process(server.process.pid)

        def connection():
            sock = _endpoints.connected(server.address)
            sock.settimeout(20)
            return stack.enter_context(sock)

        proved = []
        for _ in range(150):  # more than may be unproven at once
            proved.append(connection())
            _handshake._prove_as_client(proved[-1], KEY, time.monotonic() + 20)
        silent = [connection() for _ in range(700)]
        manager = LockManager(server.address, KEY)
        manager.connect()
        assert manager.list([1])[:] == [1]
        oldest, newest = silent[0], silent[-1]
        while oldest.recv(100):  # dropped
            pass
        newest.recv(100)
        newest.settimeout(0.2)
        with pytest.raises(TimeoutError):
            newest.recv(100)
        for sock in proved:
            sock.settimeout(0)
            with pytest.raises(BlockingIOError):
                sock.recv(1)
        until(lambda: process.num_threads() < 150 + _listener.UNPROVEN + 20)
    assert len(server.log) <= _log.Bounded.BURST + 20


def test_a_client_that_was_dropped_tries_again():
    listener = socket.create_server(("127.0.0.1", 0))
    tries = []

    def drop():
        with contextlib.suppress(OSError):
            while True:
                sock, _ = listener.accept()
                tries.append(1)
                sock.close()

    thread = threading.Thread(target=drop)
    thread.start()
    with pytest.raises(ConnectionResetError, match=f"{_handshake._TRIES} times"):
        _handshake.connect(listener.getsockname(), KEY)
    assert len(tries) == _handshake._TRIES
    listener.shutdown(socket.SHUT_RDWR)
    thread.join()
    listener.close()


def test_who_only_looks_whether_somebody_listens_is_not_logged():
    with serving() as server:
        for _ in range(5):
            raw(server.address).close()
        manager = LockManager(server.address, KEY)
        manager.connect()
    assert server.log == []


def test_the_log_is_bounded():
    heard = []
    logger = logging.Logger("test")
    handler = logging.Handler()
    handler.emit = lambda record: heard.append(record.getMessage())
    logger.addHandler(handler)
    bounded = _log.Bounded()
    logger.addFilter(bounded)
    for i in range(5000):
        logger.warning("line %d %s", i, "x" * 100_000)
    assert _log.Bounded.BURST <= len(heard) < _log.Bounded.BURST + 60
    assert max(map(len, heard)) < 1000
    bounded._at -= 3  # seconds later
    logger.warning("at last")
    assert heard[-1].startswith("at last (4,")
    assert heard[-1].endswith("lines before this one were left out)")
    assert any(isinstance(one, _log.Bounded) for one in _log.log.filters)


# ---- another user with the key


XUID = """
import multiprocessing, os, sys, threading
sys.path[:0] = sys.argv[1:2]
from copyless.managers import SyncManager
manager = SyncManager(eval(sys.argv[2]), b"a key for tests")
manager.connect()
shared, lock = manager.dict(a=1), manager.Lock()
def use(what):
    with lock:
        print(what, shared["a"], flush=True)
use("main")
for _ in range(2):
    thread = threading.Thread(target=use, args=("thread",))
    thread.start()
    thread.join()
child = multiprocessing.get_context("fork").Process(target=use, args=("child",))
child.start()
child.join()
if not (pid := os.fork()):
    use("fork")
    os._exit(0)
os.waitpid(pid, 0)
"""


@needs_another_user
def test_threads_and_forks_of_another_users_client_work():
    with serving() as server:
        done = subprocess.run(
            [*AS_NOBODY, sys.executable, "-c", XUID, ROOT, repr(server.address)],
            capture_output=True, text=True, timeout=60,
            env={k: v for k, v in os.environ.items() if k != "COPYLESS_DIR"},
        )  # fmt: skip
        if "No module named" in done.stderr or done.returncode == 127:
            pytest.skip("another user cannot read this installation")
        assert done.stdout.split() == ["main", "1", "thread", "1", "thread", "1", "child", "1", "fork", "1"], (
            done.stderr
        )
        assert done.stderr == ""
    assert server.log == []


# ---- TLS on one side only


def test_a_plain_client_at_a_tls_port_and_the_reverse(monkeypatch):
    with MyManager(("localhost", 0), KEY, ctx=FORK, ssl_context=server_context) as manager:
        begun = time.monotonic()
        with pytest.raises(AuthenticationError, match="ssl_context"):
            MyManager(("localhost", manager.address[1]), KEY).connect()
        assert time.monotonic() - begun < _endpoints.GRACE / 2
    with MyManager(("localhost", 0), KEY, ctx=FORK) as manager:
        client = ssl.create_default_context(cafile=CERTIFICATE)
        with pytest.raises(ssl.SSLError, match="does not use TLS"):
            MyManager(("localhost", manager.address[1]), KEY, ssl_context=client).connect()


def test_silent_connections_hold_up_nobody_at_a_tls_port():
    more = "manager._ssl_context = t.server_context"
    with (
        serving("MyManager", ("localhost", 0), more, COPYLESS_HOST="host-a") as server,
        contextlib.ExitStack() as stack,
    ):
        silent = [stack.enter_context(raw(server.address)) for _ in range(300)]
        manager = MyManager(
            ("localhost", server.address[1]), KEY, ssl_context=ssl.create_default_context(cafile=CERTIFICATE)
        )
        manager.connect()
        assert manager.Foo().f() == "f()"
        assert silent[0].recv(1) == b""
        silent[-1].settimeout(0.2)
        with pytest.raises(TimeoutError):
            silent[-1].recv(1)


# ---- invalid requests


def test_what_is_no_request_costs_only_its_answer():
    with serving(COPYLESS_HOST="host-a") as server:
        connection = _connection.SocketConnection(proven(server.address))
        connection.send((b"session", os.getpid(), "pickle", None))
        assert connection.recv() is False
        for said in (
            (1, ["unhashable"], "append", (), {}), (1, {}, "append", (), {}), (1, 5, "append", (), {}),
            (1, None, ["dummy"], (), {}),
            (1, None, "dummy", 5, {}), (1, None, "dummy", (), {1: 2}), ("1", None, "dummy", (), {}), (1, 2), 7, None,
            "text of 5",
            (1, None, "dummy", (), [["a", 1]]), (1, None, "get_methods", ([],), {}), (1, None, "incref", ([], []), {}),
            (1, None, "decref", ({},), {}), (1, None, "keep_for_fork", ([],), {}),
            (1, None, "keep_for_fork", (b"x" * 17,), {}),
            (1, None, "take_for_fork", ([],), {}), (1, None, "take_for_fork", (b"nobody's",), {}),
            (1, None, "create", ([],), {}),
            (1, None, "lend", ([],), {}), (1, None, "shutdown", (1, 2), {}),
        ):  # fmt: skip
            connection.send(said)
            number, kind, _ = connection.recv()
            assert number in (1, -1), said
            assert kind != 0, said
        connection.send((2, None, "dummy", (), {}))
        assert connection.recv() == (2, 0, None)
        connection.close()
        for hello in (
            (["unhashable"], 1, "pickle", None),
            (b"", "1", "pickle", None),
            (b"", 1, [], None),
            (b"", 1, "pickle", [1]),
            5,
        ):
            connection = _connection.SocketConnection(proven(server.address))
            connection.send(hello)
            with pytest.raises(_endpoints.Closed):
                connection.recv()
            connection.close()
    assert len(server.log) == 5, server.log
    assert not any("Traceback" in line for line in server.log)


def test_references_for_a_fork_are_taken_once():
    with SyncManager(ctx=FORK) as manager:
        kept = manager.list([1])
        link = manager._link
        link.ask("keep_for_fork", b"fork")
        with pytest.raises((ValueError, RemoteError), match="already"):
            link.ask("keep_for_fork", b"fork")
        link.ask("take_for_fork", b"fork")
        with pytest.raises(StaleHandleError, match="another process has taken them"):
            link.ask("take_for_fork", b"fork")
        del kept


def test_a_grandchild_that_is_forked_before_its_parents_first_call_has_references_of_its_own():
    with SyncManager(ctx=FORK) as manager:
        kept = [manager.list([1, 2])]
        read, write = os.pipe()
        go, gone = FORK.Event(), FORK.Event()
        if not (child := os.fork()):
            if not os.fork():
                os.write(write, b"r")
                go.wait(20)
                kept[0].append(3)
                gone.wait(20)
                os.write(write, repr(kept[0][:]).encode())
                os._exit(0)
            kept[0].append(0)
            kept.clear()
            os._exit(0)
        os.close(write)
        assert os.read(read, 1) == b"r"
        os.waitpid(child, 0)
        go.set()
        until(lambda: len(kept[0]) == 4)
        kept.clear()
        assert manager._number_of_objects() == 1  # the grandchild's
        gone.set()
        assert sorted(eval(os.read(read, 100))) == [0, 1, 2, 3]
        os.close(read)
        until(lambda: manager._number_of_objects() == 0)


# ---- networks that are cut


@pytest.mark.skipif(
    not all(shutil.which(tool) for tool in ("unshare", "ip", "nsenter"))
    or subprocess.run(["unshare", "-rn", "ip", "link"], capture_output=True).returncode != 0,
    reason="needs network namespaces: unshare, nsenter and ip",
)
def test_a_cut_network_ends_calls_and_frees_locks(tmp_path):
    (tmp_path / "server.py").write_text("""
import sys, threading, time
sys.path[:0] = sys.argv[1:2]
import tests.test_managers as t
server = t.LockManager(address=("10.99.0.1", 0), authkey=t.KEY).get_server()
print(repr(server.address), flush=True)
threading.Thread(target=server.serve_forever, daemon=True).start()
lock = t.the_lock()
while lock.acquire(False):  # until the client has it
    lock.release()
    time.sleep(0.01)
print("freed" if lock.acquire(True, 40) else "never freed", file=open(sys.argv[2] + "/server.says", "w"))
""")
    (tmp_path / "client.py").write_text("""
import sys, time
sys.path[:0] = sys.argv[1:2]
import tests.test_managers as t
from copyless import ServerEndedError
manager = t.LockManager(address=eval(sys.argv[2]), authkey=t.KEY)
manager.connect()
lock, queue = manager.the_lock(), manager.Queue()
lock.acquire()
open(sys.argv[3] + "/held", "w").close()
begun = time.monotonic()
try:
    queue.get()
except ServerEndedError as error:
    print("ended", "cut" in str(error), time.monotonic() - begun < 30, flush=True)
""")
    script = """
        set -e
        ip link set lo up
        unshare -n sleep 100 & other=$!
        sleep 0.2
        ip link add here type veth peer name there
        ip link set there netns $other
        ip addr add 10.99.0.1/24 dev here; ip link set here up
        nsenter -t $other -n ip addr add 10.99.0.2/24 dev there
        nsenter -t $other -n ip link set there up
        export COPYLESS_NETWORK_TIMEOUT=2
        COPYLESS_HOST=host-a "$1" -u "$2/server.py" "$3" "$2" > "$2/address" & server=$!
        while [ ! -s "$2/address" ]; do sleep 0.05; done
        COPYLESS_HOST=host-b nsenter -t $other -n "$1" "$2/client.py" "$3" "$(cat "$2/address")" "$2" & client=$!
        while [ ! -e "$2/held" ]; do sleep 0.05; done
        sleep 0.5
        ip addr del 10.99.0.1/24 dev here
        ip link set here down
        wait $client || true
        while [ ! -s "$2/server.says" ]; do sleep 0.05; done
        cat "$2/server.says"
        kill $server || true; kill $other || true
        wait $server || true
    """
    done = subprocess.run(
        ["unshare", "-rn", "sh", "-c", script, "sh", sys.executable, str(tmp_path), ROOT],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.stdout == "ended True True\nfreed\n", done.stderr


REMOTE = """
import sys, time
sys.path[:0] = sys.argv[1:2]
import tests.test_managers as t
manager = t.LockManager(address=eval(sys.argv[2]), authkey=t.KEY)
manager.connect()
lock, queue = manager.the_lock(), manager.the_queue()
{what}
"""


def remote(server, what):
    """A client that the server takes for one of another host."""
    return start_python(REMOTE.format(what=what), ROOT, repr(server.address), COPYLESS_HOST="host-b")


def test_a_client_that_is_gone_takes_nothing_from_a_queue_and_gives_its_locks_back():
    with serving(COPYLESS_HOST="host-a") as server:
        taker = remote(server, "lock.acquire(); print('waits', flush=True); queue.get()")
        assert taker.stdout.readline() == "waits\n", taker.stderr.read()
        waiter = remote(server, "print('waits', flush=True); lock.acquire(); print(lock.acquire(False), flush=True)")
        assert waiter.stdout.readline() == "waits\n"
        taker.kill()
        taker.communicate()
        assert waiter.communicate(timeout=30)[0] == "False\n"  # it got the lock, while the queue was still empty
        other = remote(server, "queue.put('item'); time.sleep(1); print(queue.get(timeout=5), lock.acquire(True, 5))")
        assert other.communicate(timeout=30)[0] == "item True\n"


def test_waiting_in_steps_waits_as_long_as_it_was_told():
    what = """
from queue import Empty, Full
for item in (False, None, 0):
    queue.put(item)
assert [queue.get(), queue.get(timeout=2), queue.get(True)] == [False, None, 0]
event, condition, again, small = manager.Event(), manager.Condition(), manager.RLock(), manager.Queue(1)
for seconds in (0.1, 0.7):
    begun = time.monotonic()
    for call in (lambda: queue.get(timeout=seconds), lambda: small.put(1, timeout=seconds) or small.put(2, timeout=seconds)):
        try:
            call()
            raise AssertionError("came")
        except (Empty, Full):
            pass
    assert event.wait(seconds) is False
    with condition:
        assert condition.wait(seconds) is False
    assert 4 * seconds <= time.monotonic() - begun + 0.001 < 4 * seconds + 20
    try:
        small.get_nowait()
        small.get(timeout=-1)
    except (Empty, ValueError):
        pass
    assert again.acquire() and again.acquire(True, 0.7)
    again.release(); again.release()
print("as told")
"""  # noqa: E501
    with serving(COPYLESS_HOST="host-a") as server:
        out, err = remote(server, what).communicate(timeout=60)
        assert out == "as told\n", err


def test_the_network_timeout_is_set_on_both_sides():
    copyless.configure(network_timeout=12)
    try:
        with contextlib.ExitStack() as stack:
            listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            here = stack.enter_context(socket.create_connection(listener.getsockname()))
            there = stack.enter_context(listener.accept()[0])
            for sock in (here, there):
                _connection.SocketConnection(sock)
                options = {
                    name: sock.getsockopt(socket.IPPROTO_TCP, getattr(socket, name))
                    for name in ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT", "TCP_USER_TIMEOUT")
                }
                assert options == {"TCP_KEEPIDLE": 4, "TCP_KEEPINTVL": 2, "TCP_KEEPCNT": 4, "TCP_USER_TIMEOUT": 12_000}
                assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        with pytest.raises(ValueError, match="network_timeout"):
            copyless.configure(network_timeout=-1)
    finally:
        copyless.configure(network_timeout=30.0)


# ---- a manager's own key


def read_from(queue, answers):
    try:
        proxy = queue.get(timeout=20)
        proxy.append(os.getpid())
        answers.put((list(proxy), bytes(proxy._authkey)))
    except BaseException as error:
        answers.put(repr(error))


def length_of(proxy):
    proxy.append(0)
    return len(proxy)


@pytest.mark.parametrize("address", [None, ("127.0.0.1", 0)], ids=["local", "tcp"])
def test_proxies_of_a_manager_with_its_own_key_go_through_queues_and_pools(address, context):
    with SyncManager(address, b"its very own secret", ctx=context) as manager:
        shared = manager.list([1])
        queue, answers = copyless.Queue(), copyless.Queue()
        child = context.Process(target=read_from, args=(queue, answers))
        child.start()
        queue.put(shared)
        told = answers.get(timeout=30)
        assert told == ([1, child.pid], b"its very own secret")
        child.join()
        nested = manager.list([shared])
        del shared
        with copyless.Pool(2, context=context) as pool:
            assert pool.map(length_of, [nested[0]] * 4, chunksize=1)[-1] >= 3
        with context.Pool(1) as pool:
            assert pool.apply(length_of, (nested[0],)) == 7


def test_the_key_is_in_no_message():
    from multiprocessing.reduction import ForkingPickler

    with SyncManager(None, b"its very own secret", ctx=FORK) as manager:
        assert b"secret" not in bytes(ForkingPickler.dumps(manager.list([1])))


def test_a_process_of_the_same_user_needs_no_key_at_the_private_socket_alone(tmp_path):
    path = str(tmp_path / "there")
    with SyncManager(path, KEY, ctx=FORK) as manager:
        learned = []
        connection = _handshake.connect(manager._link.local, None, session=b"s", learn=learned.append)
        assert learned == [KEY]
        connection.close()
        with pytest.raises(AuthenticationError, match="refused the authkey"):
            _handshake.connect(path, None)
        with pytest.raises(AuthenticationError, match="refused the authkey"):
            _handshake.connect(manager._link.local, b"another key")


# ---- damaged packets


def packets_of_a_session():
    """What an honest client sends, each packet once."""
    said = [
        (1, None, "create", ("list", [1, 2, 3]), {}), (2, None, "dummy", (), {}),
        (3, None, "number_of_objects", (), {}),
        (4, None, "create", ("dict",), {"a": 1}), (5, "0123456789ab-1", "append", (5,), {}),
        (6, None, "debug_info", (), {}),
        (7, None, "get_methods", ("0123456789ab-1",), {}), (8, None, "incref", ("0123456789ab-1", b"12345678"), {}),
        (0, "", "decref", ("0123456789ab-1",), {}), (9, None, "keep_for_fork", (b"12345678",), {}),
        (10, None, "take_for_fork", (b"12345678",), {}),
        (11, "0123456789ab-2", "#GETVALUE", (), {}), (12, None, "where", (), {}),
    ]  # fmt: skip
    packets = []
    for one in said:
        data, _ = _connection._pickled(one)
        packets.append(_connection._HEAD.pack(_connection._MAGIC, 0, len(data), len(data)) + data)
    return packets


def things_to_pickle():
    shared = [1, 2]
    yield from (
        None, True, 5, -5, 1 << 31, 1 << 70, 1 << 3000, -1.5, "", "r" * 300, "p9999999999\n" * 30,
        b"r\xff\xff\xff\xff" * 100, bytearray(b"p99999\n"),
        "\u20ac" * 70_000, b"x" * 70_000, (), (1,), (1, 2, 3, 4), {"a": shared, "b": shared}, {1, 2}, frozenset("ab"),
        ValueError("x"), len, Exception,
        [[i] for i in range(70_000)], range(10), 1 + 2j, slice(1, 2), bytearray(70_000),
        {str(i): i for i in range(3000)},
    )  # fmt: skip


def test_honest_pickles_pass_the_look():
    for thing in things_to_pickle():
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            data = pickle.dumps(thing, protocol)
            _pickles.check_pickle(data)
            _pickles.check_pickle(bytearray(data))
            for at in range(0, len(data), max(1, len(data) // 50)):
                with contextlib.suppress(pickle.UnpicklingError):  # a pickle that is cut off cannot be loaded
                    _pickles.check_pickle(data[:at])


@pytest.mark.parametrize(
    "bomb",
    [b"K\x01r\xff\xff\xff\x7f.", b"K\x01p2000000000\n.", b"\x96" + (1 << 34).to_bytes(8, "little") + b"x.",
     b"\x8e" + (1 << 60).to_bytes(8, "little") + b"x.", b"B\xff\xff\xff\xffx.",
     pickle.dumps(["r" * 50, b"r" * 300, 1.5, 1 << 900])[:-1] + b"r\xff\xff\xff\x7f."],
)  # fmt: skip
def test_a_pickle_that_asks_for_gigabytes_is_refused_before_it_is_loaded(bomb):
    for data in (bomb, b"\x80\x05" + bomb):
        with pytest.raises(pickle.UnpicklingError, match="more memory than it has bytes"):
            _pickles.check_pickle(data)
        with pytest.raises(pickle.UnpicklingError, match="more memory"):
            _connection._SERIALIZERS["pickle"][1](bytearray(data), [])


def test_mutated_packets_of_a_client_with_the_key_cost_no_memory():
    """PACKETS=60000 for the full measurement: growth from packet 10,000 on."""
    rng = random.Random(7)
    total = int(os.environ.get("PACKETS", "12000"))
    good = packets_of_a_session()
    with serving(more="t.logging.getLogger('copyless.managers').setLevel(100)", COPYLESS_HOST="host-a") as server:
        process = psutil.Process(server.process.pid)
        sent, before = 0, None
        while sent < total:
            sock = proven(server.address)
            connection = _connection.SocketConnection(sock)
            connection.send((rng.randbytes(16), os.getpid(), "pickle", None))
            assert connection.recv() is False
            reader = threading.Thread(target=drain, args=(sock,))
            reader.start()
            with contextlib.suppress(OSError):
                for _ in range(rng.randrange(1, 60)):
                    packet = bytearray(rng.choice(good))
                    at = range(len(packet)) if rng.random() < 0.05 else range(_connection._HEAD.size, len(packet))
                    for _ in range(rng.randrange(0, 4)):
                        packet[rng.choice(at)] = rng.randrange(256)
                    sock.sendall(packet)
                    sent += 1
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_WR)
            reader.join()
            sock.close()
            if before is None and sent >= min(10_000, total // 2):
                until(lambda: process.num_threads() < 10)
                before = process.memory_info().rss
        until(lambda: process.num_threads() < 10)
        grown = process.memory_info().rss - before
        print(f"{sent} packets: grew by {grown >> 10} KiB")
        manager = LockManager(server.address, KEY)
        manager.connect()
        assert manager.list([1])[:] == [1]
    assert grown < 1 << 20, grown


def drain(sock):
    sock.settimeout(20)
    with contextlib.suppress(OSError):
        while sock.recv(1 << 16):
            pass


def test_a_server_that_ends_says_so_to_clients_over_tcp():
    with serving(COPYLESS_HOST="host-a") as server:
        manager = LockManager(server.address, KEY)
        manager.connect()
        shared = manager.list([1])
        shared._link.local = None
        server.process.kill()
        server.process.wait()
        with pytest.raises(ServerEndedError):
            shared.append(1)
