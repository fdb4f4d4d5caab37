"""The storage directory: which one is used, and that no file in it is ever removed on a guess."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import stat
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import python, start_python, until

OTHER_UID = 12345
BOOT_ID = "/proc/sys/kernel/random/boot_id"
LIVE_LOCK = fcntl.F_OFD_SETLK if hasattr(fcntl, "F_OFD_SETLK") else 37


def _can(*command: str) -> bool:
    try:
        return subprocess.run(command, capture_output=True).returncode == 0
    except OSError:
        return False


root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
mounts = pytest.mark.skipif(
    os.geteuid() != 0 or not _can("unshare", "-m", "true"), reason="needs root and mount namespaces"
)


@pytest.fixture
def base() -> Iterator[str]:
    """A place for storage directories, like /dev/shm: sticky, and writable by everybody."""
    path = f"/dev/shm/t-directory-{os.getpid()}"
    os.mkdir(path)
    os.chmod(path, 0o1777)
    yield path
    shutil.rmtree(path)


def ours(base: str, uid: int | None = None, n: int = 0) -> str:
    return f"{base}/copyless-{os.geteuid() if uid is None else uid}" + (f".{n}" if n else "")


KEEPER = """
import os, sys, copyless
a = copyless.full(1000, 7.0, name="kept")
print("up")
input()
print(copyless.open("kept").sum(), copyless.ones(50_000).sum())
"""


@contextlib.contextmanager
def keeper(base: str, **env: str) -> Iterator[subprocess.Popen[str]]:
    """A process that uses the storage directory, and can still use it at the end."""
    process = start_python(KEEPER, COPYLESS_DIR=base, **env)
    assert process.stdout is not None
    assert process.stdin is not None
    try:
        assert process.stdout.readline() == "up\n", process.stderr and process.stderr.read()
        yield process
        out, error = process.communicate("\n", timeout=60)
        assert out == "7000.0 50000.0\n", error
    finally:
        process.kill()
        process.wait()


def mounted(script: str, code: str, *args: str, check: bool = True, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a program in a mount namespace of its own, after the shell's script (which sees the arguments)."""
    done = subprocess.run(
        ["unshare", "-m", "sh", "-ec", f'{script}\nexec "$0" -c "$CODE" "$@"', sys.executable, *args],
        capture_output=True, text=True, timeout=100, env={**os.environ, **env, "CODE": code},
    )  # fmt: skip
    assert not check or done.returncode == 0, done.stderr
    return done


USE = """
import sys, copyless
try:
    copyless.zeros(3)
    print("used")
except copyless.CopylessError as e:
    print(type(e).__name__, "|", e)
"""


def other_boot(tmp_path: Path) -> str:
    """The script that makes a process see another boot id."""
    (tmp_path / "boot_id").write_text("00000000-1111-2222-3333-444444444444\n")
    return f'mount --bind "{tmp_path}/boot_id" {BOOT_ID}'


# ---- which boot


@mounts
@pytest.mark.parametrize(
    "how", [f"mount -t tmpfs none {os.path.dirname(BOOT_ID)}", f"mount --bind /dev/null {BOOT_ID}"]
)
def test_a_boot_id_that_cannot_be_read_is_an_error_and_removes_nothing(base, how):
    with keeper(base):
        before = sorted(os.listdir(ours(base)))
        said = mounted(how, USE, COPYLESS_DIR=base).stdout
        assert said.startswith("BootUnknownError |")
        assert "ProcSubset=all" in said
        assert sorted(os.listdir(ours(base))) == before


@mounts
def test_a_registry_of_another_kernel_in_memory_is_left_alone(base, tmp_path):
    with keeper(base):
        before = sorted(os.listdir(ours(base)))
        said = mounted(other_boot(tmp_path), USE, COPYLESS_DIR=base).stdout
        assert said.startswith("ForeignHostError |")
        assert "another kernel" in said
        force = "import sys; sys.argv = ['copyless', 'reap', '--force']; from copyless.cli import main; main()"
        done = mounted(other_boot(tmp_path), force, check=False, COPYLESS_DIR=base)
        assert done.returncode == 1
        assert "another kernel" in done.stderr
        assert sorted(os.listdir(ours(base))) == before


LEAVE = "import os, signal, copyless; a = copyless.ones(100_000, name='n'{}); os.kill(os.getpid(), signal.SIGKILL)"


@pytest.fixture
def disk(tmp_path) -> str:
    from copyless._storage import registries

    if registries.filesystem(str(tmp_path)) != "local":
        pytest.skip("the directory for temporary files lies on no disk of this machine")
    place = tmp_path / "disk"
    place.mkdir()
    return str(place)


@mounts
def test_on_a_disk_what_an_earlier_boot_left_goes_when_nobody_uses_it(disk, tmp_path):
    python(LEAVE.format(""), check=False, COPYLESS_DIR=disk)
    left = set(os.listdir(ours(disk)))
    assert len(left) == 3
    again = "import os, copyless; a = copyless.ones(5); print(sorted(os.listdir(os.path.join(os.environ['COPYLESS_DIR'], f'copyless-{os.geteuid()}'))))"  # noqa: E501
    now = mounted(other_boot(tmp_path), again, COPYLESS_DIR=disk).stdout
    assert {name for name in left if name in now} == {"registry.4"}
    assert os.listdir(disk) == []


@mounts
def test_on_a_disk_a_live_process_keeps_its_registry_whatever_the_boot_id(disk, tmp_path):
    with keeper(disk):
        said = mounted(other_boot(tmp_path), USE, COPYLESS_DIR=disk).stdout
        assert said.startswith("ForeignHostError |")
        assert "live processes use it" in said


@mounts
def test_on_a_disk_names_that_persist_are_removed_on_demand_only(disk, tmp_path):
    python(LEAVE.format(", persist=True"), check=False, COPYLESS_DIR=disk)
    left = sorted(os.listdir(ours(disk)))
    said = mounted(other_boot(tmp_path), USE, COPYLESS_DIR=disk).stdout
    assert said.startswith("ForeignHostError |")
    assert "has 1 persistent names" in said
    assert "reap --force" in said
    assert sorted(os.listdir(ours(disk))) == left
    force = 'exec "$0" -m copyless reap --force --json'
    report = json.loads(mounted(f"{other_boot(tmp_path)}\n{force}", "", COPYLESS_DIR=disk).stdout)
    assert report["files"] == 3
    assert report["in_use"] == []
    assert os.listdir(disk) == []


def test_a_file_system_that_we_do_not_know_counts_as_shared():
    from copyless._storage import registries

    assert registries.filesystem("/dev/shm") == "memory"
    assert registries.filesystem("/proc/self") == "shared"


# ---- layouts


def other_layout(path: str, layout: int, persistent: int = 0, files: int = 3) -> list[str]:
    """The files that a version with another layout leaves, as far as they are the same in all versions."""
    name = f"registry.{layout}"
    number = f"{layout}." if layout > 2 else ""
    control = bytearray(8192)
    struct.pack_into("<Q", control, 0, 0xC0BB1E5500D5EEDF)
    struct.pack_into("<I", control, 52, persistent)
    with open(f"{path}/{name}", "wb") as f:
        f.write(struct.pack("<QII", 0x7373656C79706F63, layout, 1).ljust(4096, b"\0") + control)
    names = [name, f"live.{number}00000000000000aa", f"seg.{number}00000000000000bb"][:files]
    for other in names[1:]:
        Path(f"{path}/{other}").write_bytes(b"")
    return names


@pytest.mark.parametrize("layout", [2, 3, 5])
@pytest.mark.parametrize("persistent", [0, 2])
def test_versions_live_side_by_side(base, layout, persistent):
    os.mkdir(ours(base), 0o700)
    names = other_layout(ours(base), layout, persistent)
    code = "import copyless; a = copyless.ones(100, name='a', persist=True); copyless.reap(); print(copyless.open('a').sum())"  # noqa: E501
    done = python(code, COPYLESS_DIR=base)
    assert done.stdout == "100.0\n"
    told = layout < 4 and persistent
    assert done.stderr.count("RuntimeWarning") == (1 if told else 0), done.stderr
    if told:
        assert f"2 persistent names of an older version (layout {layout}, this one is 4)" in done.stderr
    subprocess.run([sys.executable, "-m", "copyless", "reap"], check=True, capture_output=True,
                   env={**os.environ, "COPYLESS_DIR": base})  # fmt: skip
    assert set(names) < set(os.listdir(ours(base)))
    report = json.loads(
        subprocess.run([sys.executable, "-m", "copyless", "doctor", "--json"], capture_output=True, text=True,
                       env={**os.environ, "COPYLESS_DIR": base}).stdout
    )  # fmt: skip
    assert [(entry["layout"], entry["persistent names"]) for entry in report["layouts"]] == sorted(
        [(4, 1), (layout, persistent)]
    )
    python("import copyless; copyless.unlink('a')", COPYLESS_DIR=base)
    assert sorted(os.listdir(ours(base))) == sorted(names)


def test_force_removes_this_version_alone(base):
    os.mkdir(ours(base), 0o700)
    names = other_layout(ours(base), 2)
    Path(f"{ours(base)}/registry.4").write_bytes(b"noise")
    subprocess.run([sys.executable, "-m", "copyless", "reap", "--force"], check=True, capture_output=True,
                   env={**os.environ, "COPYLESS_DIR": base})  # fmt: skip
    assert sorted(os.listdir(ours(base))) == sorted(names)


def test_a_worker_does_not_repeat_the_warning(base, tmp_path):
    os.mkdir(ours(base), 0o700)
    other_layout(ours(base), 2, 1)
    script = tmp_path / "program.py"
    script.write_text(
        "import copyless\ndef use(): copyless.zeros(3)\nif __name__ == '__main__':\n    copyless.zeros(3)\n"
        "    p = copyless.get_context('spawn').Process(target=use); p.start(); p.join(); print(p.exitcode)\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60,
                          env={**os.environ, "COPYLESS_DIR": base})  # fmt: skip
    assert done.stdout == "0\n"
    assert done.stderr.count("RuntimeWarning: copyless:") == 1


# ---- files that belong to no registry


def lock(path: str, start: int = 5, length: int = 1) -> int:
    """Lock bytes of a liveness file, as its owners do. The lock lasts as long as the descriptor."""
    fd = os.open(path, os.O_RDWR)
    fcntl.fcntl(fd, LIVE_LOCK, struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, start, length, 0))
    return fd


def test_reap_sweeps_what_no_registry_can_name(base):
    with keeper(base):
        strays = ["seg.4.00000000000000cc", "live.4.00000000000000dd", "new.4.00000000000000dd"]
        for name in strays:
            Path(f"{ours(base)}/{name}").write_bytes(b"x")
        python("import copyless; copyless.reap()", COPYLESS_DIR=base)
        assert not set(strays) & set(os.listdir(ours(base)))


@pytest.mark.parametrize("length", [1, 0])
def test_nothing_is_swept_while_another_liveness_file_is_locked(base, length):
    """One byte: an owner of a registry whose name was removed. All: a registry that is being made."""
    with keeper(base):
        strays = ["seg.4.00000000000000cc", "live.4.00000000000000dd", "new.4.00000000000000dd"]
        for name in strays:
            Path(f"{ours(base)}/{name}").write_bytes(b"x")
        fd = lock(f"{ours(base)}/{strays[1]}", 0, length)
        python("import copyless; copyless.reap()", COPYLESS_DIR=base)
        assert set(strays) < set(os.listdir(ours(base)))
        os.close(fd)
        python("import copyless; copyless.reap()", COPYLESS_DIR=base)
        assert not set(strays) & set(os.listdir(ours(base)))


def test_the_last_owner_leaves_the_registry_to_one_that_is_joining(base):
    user = start_python("import copyless; a = copyless.zeros(3); print('up'); input()", COPYLESS_DIR=base)
    assert user.stdout
    assert user.stdout.readline() == "up\n"
    live = next(name for name in os.listdir(ours(base)) if name.startswith("live."))
    fd = lock(f"{ours(base)}/{live}")
    user.communicate("\n")
    assert {"registry.4", live} <= set(os.listdir(ours(base)))
    os.close(fd)
    python("import copyless; copyless.zeros(3)", COPYLESS_DIR=base)
    assert os.listdir(base) == []


def test_a_maker_that_does_not_go_on_is_an_error_in_time_and_then_forgotten(base):
    user = start_python("import copyless; a = copyless.zeros(3); print('up'); input()", COPYLESS_DIR=base)
    assert user.stdout
    assert user.stdout.readline() == "up\n"
    live = next(name for name in os.listdir(ours(base)) if name.startswith("live."))
    user.kill()
    user.wait()
    fd = lock(f"{ours(base)}/{live}", 0, 0)
    late = start_python(
        "import copyless._storage.store; copyless._storage.store._OPEN_SECONDS = 0.5\n" + USE, COPYLESS_DIR=base
    )
    assert late.communicate()[0].startswith("RegistryBusyError |")
    waiting = start_python(USE, COPYLESS_DIR=base)
    os.close(fd)
    assert waiting.communicate()[0] == "used\n"


# ---- which directory


def choose(base: str, code: str = "") -> tuple[str, str]:
    """(the directory that a process uses, its messages)."""
    program = "import copyless; copyless.zeros(3); from copyless._storage import directory; print(directory.current())"
    done = python(program + code, COPYLESS_DIR=base)
    return done.stdout.strip(), done.stderr


AS_ANOTHER = """
import os, sys, pwd, multiprocessing, multiprocessing.util, numpy, copyless, copyless.queues, copyless.arrays, copyless.cli.look
from copyless._storage import directory, store, registries
if os.geteuid() == 0:
    os.setgroups([]); os.setgid({uid}); os.setuid({uid})
"""  # noqa: E501


def as_another(code: str, *args: str, uid: int = OTHER_UID, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    """Run a program as another user, without root's privileges. It imports first, since it may not read our files."""
    return python(AS_ANOTHER.format(uid=uid) + code, *args, **kwargs)


@root
@pytest.mark.parametrize("umask", [0o177, 0o777, 0o000, 0o277])
def test_a_umask_blocks_nobody(base, umask):
    code = f"""
os.umask({umask})
a = copyless.full(100_000, 3.0, name="n", persist=True)
b = copyless.ones(10)
modes = {{oct(os.lstat(os.path.join(d, name)).st_mode & 0o777) for d, dirs, files in os.walk(directory.current()) for name in files}}
print(oct(os.lstat(directory.current()).st_mode & 0o777), *modes)
"""  # noqa: E501
    assert as_another(code, COPYLESS_DIR=base).stdout == "0o700 0o600\n"
    code = "print(copyless.open('n').sum()); copyless.unlink('n')"
    assert as_another(f"os.umask({umask})\n{code}", COPYLESS_DIR=base).stdout == "300000.0\n"
    assert os.listdir(base) == []


@root
def test_a_directory_of_ours_with_a_wrong_mode_is_repaired(base):
    os.mkdir(ours(base, OTHER_UID))
    os.chown(ours(base, OTHER_UID), OTHER_UID, OTHER_UID)
    for mode in (0o600, 0o000, 0o755, 0o711):
        os.chmod(ours(base, OTHER_UID), mode)
        code = (
            "a = copyless.zeros(3); print(directory.current(), oct(os.stat(directory.current()).st_mode)); os._exit(0)"
        )
        assert as_another(code, COPYLESS_DIR=base).stdout == f"{ours(base, OTHER_UID)} 0o40700\n"


def test_a_directory_that_others_may_write_to_is_not_used(base):
    os.mkdir(ours(base))
    os.chmod(ours(base), 0o770)
    assert choose(base)[0] == ours(base, n=1)
    report = subprocess.run([sys.executable, "-m", "copyless", "doctor"], capture_output=True, text=True,
                            env={**os.environ, "COPYLESS_DIR": base, "COLUMNS": "1000"})  # fmt: skip
    assert f"{ours(base)} is yours, but others may write to it (mode 0770): remove it" in report.stdout
    os.rmdir(ours(base))


def test_a_set_group_id_parent_is_accepted(base):
    os.chmod(base, 0o2700)
    assert choose(base)[0] == ours(base)
    with keeper(base):
        assert os.stat(ours(base)).st_mode & stat.S_ISGID
        assert choose(base)[0] == ours(base)
    assert os.listdir(base) == []


def squat(path: str, uid: int = 1) -> None:
    os.mkdir(path)
    os.chown(path, uid, uid)


@root
def test_a_squat_is_passed_by_and_named_with_its_owner(base):
    squat(ours(base))
    assert choose(base)[0] == ours(base, n=1)
    report = subprocess.run([sys.executable, "-m", "copyless", "doctor"], capture_output=True, text=True,
                            env={**os.environ, "COPYLESS_DIR": base, "COLUMNS": "1000"})  # fmt: skip
    import pwd

    assert f"{ours(base)} belongs to user {pwd.getpwuid(1).pw_name} (uid 1): ask that user or an" in report.stdout


@root
def test_when_every_name_is_taken_the_error_names_the_owner_and_the_remedy(base):
    for n in range(16):
        squat(ours(base, n=n), OTHER_UID)
    done = python("import copyless\ntry: copyless.zeros(3)\nexcept PermissionError as e: print(e)", COPYLESS_DIR=base)
    assert f"{ours(base)} belongs to uid {OTHER_UID}: ask that user or an administrator to remove it" in done.stdout
    assert "COPYLESS_DIR" in done.stdout


@root
def test_the_directory_in_use_wins_over_a_name_that_came_free(base):
    squat(ours(base))
    with keeper(base):
        os.rmdir(ours(base))
        assert python("import copyless; print(copyless.open('kept').sum())", COPYLESS_DIR=base).stdout == "7000.0\n"
        # ... and over a directory that exists, is ours and is empty.
        os.mkdir(ours(base), 0o700)
        assert python("import copyless; print(copyless.open('kept').sum())", COPYLESS_DIR=base).stdout == "7000.0\n"
        os.rmdir(ours(base))
    assert os.listdir(base) == []


@root
def test_a_directory_with_names_that_persist_wins(base):
    squat(ours(base))
    python("import copyless; copyless.full(3, 2.0, name='n', persist=True)", COPYLESS_DIR=base)
    os.rmdir(ours(base))
    os.mkdir(ours(base), 0o700)
    assert python("import copyless; print(copyless.open('n').sum())", COPYLESS_DIR=base).stdout == "6.0\n"


@pytest.mark.parametrize("persistent", [0, 1])
def test_another_versions_directory_in_use_wins(base, persistent):
    os.mkdir(ours(base), 0o700)
    os.mkdir(ours(base, n=1), 0o700)
    names = other_layout(ours(base, n=1), 2, persistent)
    fd = None if persistent else lock(f"{ours(base, n=1)}/{names[1]}")
    assert choose(base)[0] == ours(base, n=1)
    if fd is not None:
        os.close(fd)
        assert choose(base)[0] == ours(base)


STARTS = """
import os, sys, numpy, copyless, copyless.arrays, copyless._storage.store, multiprocessing.util
from copyless._core import _store
from copyless._storage import directory
n, rounds, toggled = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
for _ in range(rounds):
    go, told, over = os.pipe(), os.pipe(), os.pipe()
    for i in range(n):
        if os.fork() == 0:
            os.close(go[1]); os.close(over[1])
            os.read(go[0], 1)
            copyless.zeros(3)
            os.write(told[1], f"{directory.current()} {_store.statistics()['registry']}\\n".encode())
            os.read(over[0], 1)
            sys.exit(0)
    os.close(told[1]); os.close(go[1])
    for path in toggled * 20:
        try: os.symlink("/", path)
        except FileExistsError: break  # it is theirs now
        os.unlink(path)
    with open(told[0]) as f:
        lines = [f.readline() for i in range(n)]
    os.close(over[1]); os.close(go[0]); os.close(over[0])
    assert len(set(lines)) == 1, lines
    for i in range(n): assert os.wait()[1] == 0
    assert os.listdir(os.environ["COPYLESS_DIR"]) == []
print("agreed")
"""


@root
@pytest.mark.parametrize("squats", [False, True])
def test_first_starts_at_once_agree(base, squats):
    """Many times: several processes start together, while another user takes and leaves the directory's name."""
    done = python(STARTS, "6", "40", *([ours(base)] if squats else []), COPYLESS_DIR=base)
    assert done.stdout == "agreed\n"


@root
@pytest.mark.parametrize("what", ["file", "fifo", "link", "held"])
def test_a_squat_on_the_lock_file_blocks_nobody(base, what):
    path = f"{ours(base, OTHER_UID)}.lock"
    if what in ("file", "held"):
        Path(path).write_bytes(b"")
        os.chmod(path, 0o666)
    elif what == "fifo":
        os.mkfifo(path, 0o666)
    else:
        os.symlink("/etc/passwd", path)
    os.lchown(path, 1, 1)
    fd = None
    if what == "held":
        fd = os.open(path, os.O_RDWR)
        fcntl.flock(fd, fcntl.LOCK_EX)
    code = (
        "import time; t = time.monotonic(); a = copyless.zeros(3); print(directory.current(), time.monotonic() - t < 4)"
    )
    assert as_another(code, COPYLESS_DIR=base).stdout == f"{ours(base, OTHER_UID)} True\n"
    assert os.listdir(base) == [os.path.basename(path)]
    if fd is not None:
        os.close(fd)


def test_a_process_stopped_while_it_chooses_holds_up_nobody_for_long(base):
    path = f"{ours(base)}.lock"
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(fd, fcntl.LOCK_EX)
    code = "import copyless._storage.directory; copyless._storage.directory._LOCK_SECONDS = 0.2\n" + USE
    assert python(code, COPYLESS_DIR=base).stdout == "used\n"
    os.close(fd)
    assert python(USE, COPYLESS_DIR=base).stdout == "used\n"
    assert os.listdir(base) == []


@root
def test_the_effective_user_decides(base):
    code = """
import copyless, os, pwd, numpy, multiprocessing, copyless.queues
from copyless._storage import directory
os.seteuid(12345)
a = copyless.ones(100_000)
st = os.stat(directory.current())
print(directory.current(), st.st_uid, oct(st.st_mode & 0o777), a.sum())
os.seteuid(0)
print((a + copyless.ones(100_000)).sum())
"""
    done = python(code, COPYLESS_DIR=base)
    assert done.stdout == f"{ours(base, OTHER_UID)} {OTHER_UID} 0o700 100000.0\n200000.0\n", done.stderr


# ---- one kernel is one host


@mounts
def test_containers_with_different_host_names_share_arrays(base):
    """A queue, a name and a handle are used from two UTS namespaces."""
    maker = """
import sys, copyless
a = copyless.full(50_000, 2.0, name="n"); q = copyless.Queue(name="q"); q.put(a)
print(copyless.handle(a).hex(), flush=True); input()
"""
    taker = """
import os, sys, copyless
print(os.uname().nodename, copyless.open("n").sum(), copyless.attach(bytes.fromhex(sys.argv[1])).sum(), copyless.open("q").get().sum())
"""  # noqa: E501
    with start_python(maker, COPYLESS_DIR=base) as first:
        assert first.stdout
        handle = first.stdout.readline().strip()
        done = subprocess.run(
            ["unshare", "-u", "sh", "-c", 'hostname elsewhere; exec "$0" -c "$1" "$2"', sys.executable, taker, handle],
            capture_output=True, text=True, env={**os.environ, "COPYLESS_DIR": base},
        )  # fmt: skip
        first.communicate("\n")
    assert done.stdout == "elsewhere 100000.0 100000.0 100000.0\n", done.stderr


# ---- the spill directory

PRODUCER = """
import sys, os, warnings, numpy as np, copyless
warnings.simplefilter("ignore")
q = copyless.Queue(name="q")
for i in range(5): q.put(np.full(1 << 20, float(i)))
assert q.stats().spilled > 0
print("put", q.qsize(), flush=True)
input()
print(q.qsize(), [float(q.get()[0]) for i in range(q.qsize())])
"""
CONSUMER = """
import copyless
q = copyless.open("q")
while True:
    n = q.qsize()
    try:
        if n == 0: break
        x = q.get(timeout=5)
        print("got", float(x[0]))
    except copyless.ForeignHostError as e:
        print("kept", q.qsize() == n, "PrivateTmp" in str(e) or e)
        break
"""


@mounts
@pytest.mark.parametrize("private", [False, True])
def test_a_consumer_that_sees_another_spill_directory_loses_nothing(base, tmp_path, private):
    spill = tmp_path / "spill"
    spill.mkdir()
    script = f"""
mount -t tmpfs -o size=4m none {base}
mkfifo {tmp_path}/go
sleep 60 > {tmp_path}/go & keep=$!
"$0" -c "$PRODUCER" < {tmp_path}/go > {tmp_path}/out & producer=$!
n=0; until grep -q put {tmp_path}/out; do n=$((n+1)); test $n -lt 1000; sleep 0.02; done
unshare -m sh -ec '{"mount -t tmpfs none " + str(spill) if private else ":"}; exec "$0" -c "$CODE"' "$0"
echo > {tmp_path}/go
wait $producer; kill $keep
cat {tmp_path}/out
exit 0
"""
    done = mounted(script, CONSUMER, COPYLESS_DIR=base, COPYLESS_SPILL=str(spill), PRODUCER=PRODUCER)
    lines = done.stdout.splitlines()
    got = [line for line in lines if line.startswith("got")]
    if private:
        assert lines[len(got)] == "kept True True", lines
        rest = [float(i) for i in range(len(got), 5)]
        assert lines[-1] == f"{len(rest)} {rest}", lines
    else:
        assert got == [f"got {float(i)}" for i in range(5)], (lines, done.stderr)
    assert os.listdir(spill) == []


SPILL = """
import os, sys, warnings, numpy as np, copyless, signal
warnings.simplefilter("ignore")
q = copyless.Queue()
for i in range(5): q.put(np.full(1 << 20, float(i)))
print("put", flush=True)
if sys.argv[1:] == ["die"]: os.kill(os.getpid(), signal.SIGKILL)
input()
print([float(q.get()[0]) for i in range(5)])
"""


@pytest.fixture
def spill(disk, tmp_path) -> Path:
    path = tmp_path / "spill"
    path.mkdir()
    return path


@mounts
@pytest.mark.parametrize("old", [True, False])
def test_spilled_files_of_an_earlier_boot_go_when_a_registry_is_made(base, spill, tmp_path, old):
    """Only if they are older than this boot: a false boot id alone proves nothing."""
    script = f"mount -t tmpfs -o size=4m none {base}"
    mounted(
        f"{script}\n{other_boot(tmp_path)}", SPILL, "die", check=False, COPYLESS_DIR=base, COPYLESS_SPILL=str(spill)
    )
    (left,) = spill.iterdir()
    assert len(list(left.iterdir())) > 1
    if old:
        os.utime(left / "home.4", (0, 0))
    mounted(script, USE, COPYLESS_DIR=base, COPYLESS_SPILL=str(spill))
    assert left.exists() == (not old)


@mounts
def test_spilled_files_in_use_are_kept_whatever_the_boot_id(base, spill, tmp_path):
    done = mounted(
        f"""
mount -t tmpfs -o size=4m none {base}
mkfifo {tmp_path}/go; sleep 60 > {tmp_path}/go & keep=$!
"$0" -c "$SPILLER" < {tmp_path}/go > {tmp_path}/out & producer=$!
n=0; until grep -q put {tmp_path}/out; do n=$((n+1)); test $n -lt 1000; sleep 0.02; done
touch -d 1970-01-02 {spill}/*/home.4
{other_boot(tmp_path)}
mount -t tmpfs none {base}
"$0" -c "$CODE"
umount {base}
echo > {tmp_path}/go; wait $producer; kill $keep; cat {tmp_path}/out; exit 0""",
        USE, COPYLESS_DIR=base, COPYLESS_SPILL=str(spill), SPILLER=SPILL,
    )  # fmt: skip
    assert done.stdout.splitlines() == ["used", "put", "[0.0, 1.0, 2.0, 3.0, 4.0]"], done.stderr


def test_the_spill_directory_is_the_registrys_not_the_joiners(base, tmp_path):
    ask = "import os, copyless; copyless.zeros(3); from copyless._core import _store; print(os.path.dirname(os.fsdecode(_store.spill_place()[0])))"  # noqa: E501
    first = tmp_path / "first"
    first.mkdir()
    with keeper(base, COPYLESS_SPILL=str(first)):
        for other in (str(tmp_path), "", "/nowhere"):
            assert python(ask, COPYLESS_DIR=base, COPYLESS_SPILL=other).stdout == f"{first}\n"


def test_a_killed_program_leaves_nothing_that_the_next_does_not_remove(base):
    for _ in range(3):
        python(LEAVE.format(""), check=False, COPYLESS_DIR=base)
    until(lambda: python(USE, COPYLESS_DIR=base) and os.listdir(base) == [], lambda: str(os.listdir(ours(base))))
