"""Python names everything that only Linux has in one module, `copyless._platform`; docs/design/platform.md says what it
must give.
"""

import ast
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from copyless import _platform

from .conftest import until

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src/copyless"
SEAM = SOURCE / "_platform.py"
PAGE = ROOT / "docs/design/platform.md"

# Names of functions and constants of modules. Names of POSIX or of other systems may occur anywhere.
NAMES = re.compile(
    r"sched_[gs]etaffinity|prctl|CDLL|PyDLL|pythonapi|pidfd_\w+|pidfd|memfd_create|memfd|eventfd\w*|EFD_\w+|timerfd\w*|signalfd|inotify\w*|epoll|EPOLL\w+"
    r"|POLLRDHUP|O_TMPFILE|O_PATH|O_NOATIME|F_OFD_\w+|F_(?:ADD|GET)_SEALS|F_SEAL_\w+|F_[SG]ETSIG|F_[SG]ETLEASE|F_NOTIFY|F_[SG]ETPIPE_SZ|MADV_\w+|MAP_\w+"
    r"|SO_PEERCRED|SO_PASSCRED|SCM_CREDENTIALS|SO_DOMAIN|SO_PROTOCOL|TCP_(?!NODELAY|MAXSEG)\w+|PR_[A-Z]\w+|CLONE_\w+|setns|unshare|splice|copy_file_range"
    r"|process_vm_\w+|getrandom|prlimit|sun_path|accept4|posix_fallocate|futex\w*|CLOCK_BOOTTIME|[gsl]\w*xattr|sysconf_linux"
)  # fmt: skip
PLACES = re.compile(r"/proc\b|/sys/(?!\w*\.py)|/dev/(?!null|tty)|/run/user\b")


def texts(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, text) of every string that is neither a docstring nor a statement of its own."""
    said = {
        id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, (str, bytes)) and id(node) not in said:
            yield node.lineno, node.value if isinstance(node.value, str) else node.value.decode("latin-1")


def names(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield node.lineno, node.attr
        elif isinstance(node, ast.Name):
            yield node.lineno, node.id
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.lineno, node.name
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg


def found_in(source: str) -> list[tuple[int, str]]:
    """(line, what) of each Linux-only thing that Python code names."""
    tree = ast.parse(source)
    found = [(line, name) for line, name in names(tree) if NAMES.fullmatch(name.lstrip("_"))]
    for line, text in texts(tree):
        found += [(line, match[0]) for match in PLACES.finditer(text)]
        found += [(line, word) for word in re.findall(r"\w+", text) if NAMES.fullmatch(word)]
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        arguments = [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
        if node.func.attr == "startswith" and "\0" in arguments:
            found.append((node.lineno, "a Unix socket without a file"))
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Attribute)
            and node.attr == "platform"
            and isinstance(node.value, ast.Name)
            and node.value.id == "sys"
        ):
            found.append((node.lineno, "sys.platform"))
    return sorted(set(found))


def test_only_the_seam_names_what_only_linux_has():
    sources = sorted(SOURCE.rglob("*.py"))
    assert len(sources) > 50
    told = [
        f"{path.relative_to(ROOT)}:{line}: {what}"
        for path in sources
        if path != SEAM
        for line, what in found_in(path.read_text())
    ]
    assert not told, "these go through copyless/_platform.py:\n" + "\n".join(told)
    assert len(found_in(SEAM.read_text())) > 30


@pytest.mark.parametrize(
    "planted",
    [
        "open('/proc/self/stat')", "open(f'/proc/{pid}/stat')", "x = b'/dev/shm/'", "open('/sys/fs/cgroup/memory.max')",
        "os.sched_getaffinity(0)", "from os import sched_setaffinity", "getattr(os, 'pidfd_open')",
        "fd = os.pidfd_open(1)",
        "sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)", "ctypes.CDLL(None)", "_PR_SET_PDEATHSIG = 1",
        "x = getattr(fcntl, 'F_OFD_SETLK', 37)", "fcntl.F_SETLEASE", "m.madvise(mmap.MADV_DONTFORK)",
        "os.open('.', os.O_TMPFILE)",
        "os.open('.', os.O_PATH)", "os.memfd_create('x')", "os.eventfd(0)", "select.epoll()", "select.POLLRDHUP",
        "socket.TCP_USER_TIMEOUT",
        "socket.TCP_KEEPIDLE", "os.posix_fallocate(fd, 0, 1)", "address.startswith('\\0')",
        "raise OSError('give /dev/shm more room')", "if sys.platform == 'linux': pass",
    ],
)  # fmt: skip
def test_what_is_planted_is_seen(planted):
    source = f'"""A page."""\n\ndef f():\n    {planted}\n'
    assert [line for line, _ in found_in(source)], planted
    assert {line for line, _ in found_in(source)} == {4}


@pytest.mark.parametrize(
    "planted",
    [
        '"""Reads /proc/self/stat by os.pidfd_open."""', "x = 1  # as /dev/shm does", "x = ctypes.c_int",
        "b'\\0' in text", "socket.TCP_NODELAY",
        "os.open('.', os.O_CLOEXEC | os.O_DIRECTORY | os.O_NOFOLLOW)", "open('/dev/null')",
        "fcntl.flock(fd, fcntl.LOCK_EX)", "select.poll()", "improc = '/process'",
    ],
)  # fmt: skip
def test_what_any_system_has_is_not_told(planted):
    assert found_in(f"def f():\n    x = 0\n    {planted}\n") == []


def test_the_page_tells_of_every_function_and_each_is_used():
    page = PAGE.read_text().partition("## In Python")[2].partition("\n## ")[0]
    rows = set(re.findall(r"^\| `(\w+)", page, re.M))
    assert rows == set(_platform.__all__)
    used = "\n".join(path.read_text() for path in SOURCE.rglob("*.py") if path != SEAM)
    assert [name for name in _platform.__all__ if not re.search(rf"\b{name}\b", used)] == []


def test_the_seam_imports_only_errors():
    tree = ast.parse(SEAM.read_text())
    ours = [
        node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("copyless")
    ]
    assert ours == ["copyless._typing", "copyless.errors"]


# ---- results of the functions


@pytest.fixture
def child():
    process = subprocess.Popen([sys.executable, "-c", "input()", "a word"], stdin=subprocess.PIPE)
    yield process
    process.kill()
    process.communicate()


def test_another_process_is_described(child):
    assert child.pid in _platform.children_of(os.getpid())
    # `Popen` returns once the program is being loaded; its command line is available a moment later.
    until(lambda: (_platform.command_line(child.pid) or b"").split(b"\0")[-2:-1] == [b"a word"])
    assert (_platform.memory_of(child.pid) or 0) > 0
    ended = _platform.watch_process(child.pid)
    try:
        with _platform.DescriptorSet() as together:
            together.add(ended)
            import select

            assert select.select([together.fileno()], [], [], 0)[0] == []
            os.kill(child.pid, signal.SIGSTOP)
            os.waitid(os.P_PID, child.pid, os.WSTOPPED)
            program, state = _platform.state_of_process(child.pid)
            assert "a word" in program
            assert state == "stopped"
            child.kill()
            assert select.select([together.fileno()], [], [], 60)[0]
            os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
            assert _platform.state_of_process(child.pid)[1] == "ended, not yet waited for"
    finally:
        os.close(ended)


def test_a_process_that_is_gone_is_described_as_gone(child):
    child.kill()
    child.wait()
    assert _platform.children_of(child.pid) == []
    assert _platform.command_line(child.pid) is None
    assert _platform.memory_of(child.pid) is None
    assert _platform.state_of_process(child.pid) == ("unknown program", "in an unknown state")
    with pytest.raises(ProcessLookupError):
        _platform.watch_process(child.pid)


def test_a_child_ends_with_its_parent():
    code = """if True:
        import os, subprocess, sys
        from copyless import _platform
        child = subprocess.Popen([sys.executable, "-c", "import time; print('ready', flush=True); time.sleep(600)"],
                                 preexec_fn=_platform.die_with_parent(os.getpid()), stdout=subprocess.PIPE)
        child.stdout.readline()
        print(child.pid, flush=True)
        os.kill(os.getpid(), 9)
    """
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    pid = int(parent.stdout.readline())
    try:
        ended = _platform.watch_process(pid)
    except ProcessLookupError:
        ended = None  # it has exited already, and was waited for
    if ended is not None:
        import select

        assert select.select([ended], [], [], 60)[0]
        os.close(ended)
    assert parent.wait() == -signal.SIGKILL
    parent.stdout.close()


def test_locks_of_files_are_seen_by_others_alone(tmp_path):
    first, second = (os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT) for _ in range(2))
    try:
        assert _platform.lock_in(second, 0, 0) is None
        _platform.lock_whole(first)
        assert _platform.lock_in(first, 0, 0) is None
        assert _platform.lock_in(second, 10, 5) == (0, 0)
        with pytest.raises(BlockingIOError):
            _platform.lock_whole(second)
    finally:
        os.close(first)
        os.close(second)


def test_a_nameless_file_gets_its_name_whole(tmp_path):
    fd = _platform.nameless_file(str(tmp_path), 0o600)
    try:
        os.write(fd, b"content")
        assert list(tmp_path.iterdir()) == []
        assert Path(_platform.path_of(fd)).read_bytes() == b"content"
        _platform.give_name(fd, os.fsencode(tmp_path / "named"))
        assert (tmp_path / "named").read_bytes() == b"content"
        with pytest.raises(FileExistsError):
            _platform.give_name(fd, os.fsencode(tmp_path / "named"))
        other = os.open(tmp_path / "named", os.O_RDONLY)
        assert _platform.is_open_elsewhere(fd)
        os.close(other)
    finally:
        os.close(fd)


def test_a_place_is_opened_without_the_right_to_read_it(tmp_path):
    place, link = tmp_path / "place", tmp_path / "link"
    place.mkdir(0o300)
    link.symlink_to(place)
    fd = _platform.open_place(str(place), follow=False)
    assert os.path.samestat(os.fstat(fd), os.stat(place))
    os.close(fd)
    os.close(_platform.open_place(str(link)))
    with pytest.raises(OSError, match="."):
        _platform.open_place(str(link), follow=False)


def test_the_other_end_of_a_socket(tmp_path):
    path = str(tmp_path / "s")
    one, other = socket.socketpair()
    with one, other, socket.socket(socket.AF_UNIX) as bound:
        assert _platform.credentials_of_peer(one) == (os.getpid(), os.geteuid())
        assert not _platform.is_hung_up(one.fileno())
        other.close()
        assert _platform.is_hung_up(one.fileno())
        assert not _platform.is_bound({os.fsencode(path)})
        bound.bind(path)
        assert _platform.is_bound({os.fsencode(path)})
    longest = "/tmp/" + "x" * (_platform.LONGEST_SOCKET_PATH - 5)
    with socket.socket(socket.AF_UNIX) as sock:
        with pytest.raises(FileNotFoundError):
            sock.connect(longest)
        with pytest.raises(OSError, match="too long"):
            sock.connect(longest + "x")
    assert _platform.has_no_file("\0name")
    assert not _platform.has_no_file("/tmp/name")


def test_limits_and_counts():
    assert _platform.processors() == len(_platform.usable_processors()) >= 1
    assert len(_platform.boot_id()) >= 32
    assert _platform.pid_namespace() > 0
    assert 0 < _platform.mappings() < _platform.most_mappings()
    assert _platform.address_space_in_use() > 1 << 20
    assert _platform.most_open_files() > 0
    total, available = _platform.machine_memory()
    assert total > available > 1 << 20
    assert _platform.memory_limit() is None or _platform.memory_limit() > 0
    assert "/" in dict(_platform.mounts())
    before = _platform.bytes_transferred()
    reading, writing = os.pipe()
    os.write(writing, bytes(1000))
    os.read(reading, 1000)
    os.close(reading)
    os.close(writing)
    assert _platform.bytes_transferred() >= before + 2000
