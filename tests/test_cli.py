"""The command: what it prints, as tables and as JSON."""

import io
import json
import os
import re
import shutil
import subprocess
import sys

import pytest

import copyless
from copyless.cli.text import Page, plain
from tests.conftest import start_python, until
from tests.snippets import ROOT


def run(*args, check=True, cwd=None, **env):
    done = subprocess.run(
        [os.path.join(os.path.dirname(sys.executable), "copyless"), *args],
        capture_output=True, text=True, timeout=200, cwd=cwd, env={**os.environ, "COLUMNS": "160", **env},
    )  # fmt: skip
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


def test_version_and_help():
    said = run("--version").stdout
    assert re.fullmatch(r"copyless (\S+) \(layout \d+, format \d+\)\n", said).group(1) == copyless.__version__
    everything = run("--help").stdout
    for command in ("run", "demo", "ls", "inspect", "reap", "doctor", "completion"):
        about = re.search(rf"^  {command} +(.*)$", everything, flags=re.M).group(1)
        assert about.endswith(".")  # a whole sentence, which the command's own help begins with
        said = run(command, "--help").stdout
        assert "--help" in said
        assert about in " ".join(said.split())
        assert run(command, "-h").stdout == said == run("help", command).stdout


def test_a_help_text_fits_a_narrow_terminal():
    for args in (("--help",), ("ls", "--help"), ("demo", "--help"), ("run", "--help")):
        said = run(*args, COLUMNS="50").stdout
        assert max(map(len, said.splitlines()[1:])) <= 50, args


def test_a_wrong_call_is_refused_with_the_usage_and_exit_code_2():
    for args in ((), ("nope",), ("--nope",), ("ls", "--spac", "x"), ("ls", "x", "y"), ("ls", "--kind", "tree"),
                 ("ls", "--watch", "0"), ("ls", "--pid", "x"), ("ls", "--space", "a/"), ("inspect",), ("run",),
                 ("run", "-n", "0", "true"), ("run", "-n", "x", "true"), ("demo", "--scale", "9")):  # fmt: skip
        done = run(*args, check=False)
        assert done.returncode == 2, args
        assert "usage: copyless" in (done.stderr if args else done.stdout)
        assert "Traceback" not in done.stderr


def test_a_setting_that_is_not_understood_is_said_in_one_line():
    done = run("ls", check=False, COPYLESS_IDLE="soon")
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(r"copyless: COPYLESS_IDLE='soon' is invalid: it must be .*\n", done.stderr)


@pytest.mark.parametrize(
    ("args", "code", "kind"),
    [
        ("ls --kind tree --json", 2, "UsageError"),
        ("inspect --json", 2, "UsageError"),
        ("inspect t-none --json", 1, "FileNotFoundError"),
        ("inspect 1048577 --json", 1, "FileNotFoundError"),
        ("inspect a/b --json", 1, "ValueError"),
        ("demo --start thread --json", 2, "UsageError"),
    ],
)
def test_with_json_an_error_is_json(args, code, kind):
    done = run(*args.split(), check=False)
    assert done.returncode == code
    error = json.loads(done.stdout)["error"]
    assert error["type"] == kind
    assert error["message"] in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["ls", "inspect t-x", "reap", "doctor"])
@pytest.mark.parametrize("place", ["/t-nowhere", "/proc", os.path.abspath(__file__)])
def test_a_directory_that_cannot_be_used_is_told_in_a_line(command, place):
    done = run(*command.split(), check=False, COPYLESS_DIR=place)
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) <= 1
    if command != "ls" or place == os.path.abspath(__file__):
        assert done.returncode == 1
        assert done.stderr or command == "doctor"
    elif place == "/t-nowhere":
        assert "/t-nowhere does not exist" in done.stdout


def test_output_that_cannot_be_written_is_told_in_a_line():
    command = os.path.join(os.path.dirname(sys.executable), "copyless")
    for args in ("--version", "--help", "ls", "ls --json", "inspect --help", "doctor", "completion bash"):
        done = subprocess.run(f"{command} {args} >/dev/full", shell=True, capture_output=True, text=True, timeout=60)
        assert done.returncode == 1
        assert done.stderr == "copyless: cannot write the output: No space left on device\n"
        for streams in (">&-", "2>&-", ">&- 2>&- <&-", "| true"):
            done = subprocess.run(f"{command} {args} {streams}", shell=True, capture_output=True, text=True, timeout=60)
            assert done.stderr == ""


def test_a_name_is_shown_without_its_control_characters():
    done = run("inspect", "t\x1b[2Jx", check=False)
    assert done.returncode == 1
    assert "\x1b" not in done.stderr
    kept = copyless.zeros(3, name="t é ü 日本")
    assert "t é ü 日本" in run("ls", "t é*").stdout
    assert json.loads(run("inspect", "t é ü 日本", "--json", LC_ALL="C", PYTHONUTF8="0").stdout)["shape"] == [3]
    assert "t \\xe9" in run("ls", "t ?*", PYTHONIOENCODING="ascii").stdout
    del kept


# A program in which only NumPy and cloudpickle are installed beside the package.
BARE = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"rich", "typer", "click", "psutil", "PIL", "skimage", "scipy"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
sys.argv = ["copyless", *sys.argv[1:]]
from copyless.cli import main
main()
"""


@pytest.mark.parametrize(
    "command", ["--version", "ls", "ls --json", "inspect t-bare", "reap", "doctor", "run -n 2 true"]
)
def test_a_command_needs_the_standard_library_only(command):
    kept = copyless.zeros(3, name="t-bare")
    done = subprocess.run([sys.executable, "-c", BARE, *command.split()], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    del kept


def test_what_needs_an_extra_says_so():
    done = subprocess.run([sys.executable, "-c", BARE, "demo"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert re.fullmatch(
        r"copyless: copyless demo needs the extra cli: pip install 'copyless\[cli\]' \(.*\)\n", done.stderr
    )
    code = """
import sys
sys.modules["rich"] = None  # importing it fails
import copyless
if __name__ == "__main__":
    with copyless.Pool(1) as pool:
        try:
            pool.map(abs, [1], progress=True)
        except ModuleNotFoundError as error:
            print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "pip install 'copyless[cli]'" in done.stdout, done.stderr


def test_what_another_process_wrote_does_not_steer_the_terminal():
    assert plain("a\x1b[2Jb\nc") == "a\\x1b[2Jb\\nc"
    out = io.StringIO()
    Page(out).table([("a\x1b[2J", 1), ("é", 22)], ("name", "n"), title="t", right=["n"])
    assert out.getvalue() == "\nt\nname       n\na\\x1b[2J   1\né         22\n"
    narrow = io.TextIOWrapper(io.BytesIO(), "ascii")
    Page(narrow).line("é")
    narrow.flush()
    assert narrow.buffer.getvalue() == b"\\xe9\n"


def test_ls_lists_blocks_owners_and_states():
    a = copyless.zeros((100, 100), name="t-listed")
    kept = copyless.zeros(10)
    report = json.loads(run("ls", "--json").stdout)
    by_name = {block["name"]: block for block in report["blocks"]}
    assert by_name["t-listed"]["pids"] == [os.getpid()]
    assert by_name["t-listed"]["state"] == "alive"
    assert by_name["t-listed"]["bytes"] >= a.nbytes
    assert os.getpid() in {owner["pid"] for owner in report["owners"]}
    assert report["segments"]
    table = run("ls").stdout
    for text in ("t-listed", "alive", str(os.getpid()), "KiB"):
        assert text in table
    del kept


def blocks(*args):
    return {block["name"]: block for block in json.loads(run("ls", *args, "--json").stdout)["blocks"]}


def test_ls_says_what_lies_in_a_block():
    kept = [
        copyless.zeros((4, 5), "i2", name="t-array"), copyless.zeros((), ">f4", name="t-number"),
        copyless.zeros(3, "M8[ms]", name="t-times"), copyless.zeros(3, [("x", "f4"), ("y", "u1")], name="t-fields"),
        copyless.Queue(name="t-queue"), copyless.JoinableQueue(name="t-jobs", redeliver=True),
        copyless.RingBuffer(((7, 8), "u1"), name="t-ring"), copyless.RLock(name="t-rlock"),
        copyless.RWLock(name="t-rwlock"), copyless.BoundedSemaphore(2, name="t-permits"),
        copyless.Event(name="t-event"), copyless.Barrier(2, name="t-barrier"),
        copyless.Condition(name="t-condition"),
        copyless.RingBuffer({"a": ((2,), "f8"), "b": ((), "u4")}, name="t-two"),
    ]  # fmt: skip
    value, memory = copyless.Value("i", 5), copyless.zeros(100_000)
    found = blocks()
    assert {name: (b["kind"], b["shape"], b["dtype"]) for name, b in found.items() if name} == {
        "t-array": ("array", [4, 5], "int16"), "t-number": ("array", [], ">f4"),
        "t-times": ("array", [3], "datetime64[ms]"), "t-fields": ("array", [3], "fields x, y"),
        "t-queue": ("Queue", None, None), "t-jobs": ("JoinableQueue", None, None),
        "t-ring": ("RingBuffer", [7, 8], "uint8"), "t-rlock": ("RLock", None, None), "t-rwlock": ("RWLock", None, None),
        "t-permits": ("BoundedSemaphore", None, None), "t-event": ("Event", None, None),
        "t-barrier": ("Barrier", None, None), "t-condition": ("Condition", None, None),
        "t-two": ("RingBuffer", None, "a: float64 (2,), b: uint32 ()"),
    }  # fmt: skip
    kinds = [b["kind"] for b in json.loads(run("ls", "--json").stdout)["blocks"] if b["name"] is None]
    assert {"Value", "memory"} <= set(kinds)
    assert "unreadable" not in kinds
    del kept, value, memory


def test_bytes_that_look_like_an_object_are_memory():
    like_a_lock = copyless.zeros(100, "u4")
    like_a_lock[:2] = 0x636C6F62, 1
    like_a_ring = copyless.zeros(100_000, "u4")
    like_a_ring[:2] = 0x636C6F62, 10
    like_a_list = copyless.zeros(100, "u8", name="t-like")
    like_a_list[0] = 0x3174736C6C79706C
    report = json.loads(run("ls", "--json").stdout)
    assert {block["kind"] for block in report["blocks"]} == {"memory", "unreadable", "array"}
    del like_a_list


def test_ls_shows_the_blocks_that_are_asked_for():
    kept = (
        copyless.zeros(10, name="t-cam-0"),
        copyless.zeros(10, name="t-cam-1", persist=True),
        copyless.Lock(name="t-l"),
    )
    child = start_python("import copyless; a = copyless.open('t-cam-1'); print('up'); input()")
    child.stdout.readline()
    assert set(blocks("t-cam-*")) == {"t-cam-0", "t-cam-1"}
    assert set(blocks("t-cam-?", "--persistent")) == {"t-cam-1"}
    assert set(blocks("--kind", "lock")) == {"t-l"}
    assert set(blocks("--pid", str(child.pid))) == {"t-cam-1"}
    assert set(blocks("--program", "python* -c")) == {"t-cam-1"}
    report = json.loads(run("ls", "t-cam-1", "--json").stdout)
    assert {owner["pid"] for owner in report["owners"]} == {child.pid, os.getpid()}
    totals = report["totals"]
    assert (totals["blocks"], totals["processes"]) == (1, 2)
    assert totals["of"] >= 3
    assert totals["bytes"] == report["blocks"][0]["bytes"] == totals["by_kind"]["array"]["bytes"]
    assert "total: 1 block of" in run("ls", "t-cam-1").stdout
    assert "none of" in run("ls", "t-nothing").stdout
    child.communicate("\n")
    copyless.unlink("t-cam-1")
    del kept


def test_ls_names_the_programs(tmp_path):
    package = tmp_path / "t_robot"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "work.py").write_text(
        "import copyless\ndef work(pipe):\n    a = copyless.zeros(3, name='t-child'); pipe.send(1); pipe.recv()\n"
    )
    (package / "__main__.py").write_text(
        "import copyless, sys, multiprocessing as mp\n"
        "try:\n    from t_robot.work import work\nexcept ImportError:\n    from work import work\n"
        "if __name__ == '__main__':\n"
        "    a = copyless.zeros(3, name='t-mine')\n"
        "    here, there = mp.Pipe()\n"
        "    child = mp.get_context(sys.argv[1]).Process(target=work, args=(there,)); child.start(); here.recv()\n"
        "    print('up', flush=True); input(); here.send(1); child.join()\n"
    )
    for words in (
        ["-m", "t_robot", "spawn"], [str(package), "fork"], ["-X", "dev", str(package / "__main__.py"), "forkserver"]
    ):  # fmt: skip
        program = subprocess.Popen(
            [sys.executable, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=tmp_path
        )
        assert program.stdout.readline() == "up\n"
        found = blocks()
        assert [each["program"] for each in found["t-mine"]["holders"]] == ["t_robot"]
        assert [each["program"] for each in found["t-child"]["holders"]] == ["t_robot"]
        assert f"t_robot ({program.pid})" in run("ls", "t-mine").stdout
        program.communicate("\n", timeout=60)


def test_ls_watch_reports_until_it_is_interrupted():
    import signal

    kept = copyless.zeros(3, name="t-watched")
    command = os.path.join(os.path.dirname(sys.executable), "copyless")
    for options in ([], ["--json"]):
        watching = subprocess.Popen([command, "ls", "--watch", "0.1", *options], stdout=subprocess.PIPE,
                                    stderr=subprocess.PIPE, text=True)  # fmt: skip
        seen = 0
        for line in watching.stdout:
            seen += "t-watched" in line
            if options:
                assert json.loads(line)["totals"]["blocks"] >= 1
            if seen == 3:
                break
        watching.send_signal(signal.SIGINT)
        _, told = watching.communicate(timeout=60)
        assert (watching.returncode, told) == (0, "")
    del kept


def test_ls_watch_redraws_a_terminal():
    import fcntl
    import pty
    import signal
    import struct
    import termios

    kept = [copyless.Lock(name=f"t-lock-{i}") for i in range(30)]
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 12, 60, 0, 0))
    command = os.path.join(os.path.dirname(sys.executable), "copyless")
    env = {**os.environ, "NO_COLOR": "1", "TERM": "xterm"}
    env.pop("COLUMNS", None)
    watching = subprocess.Popen([command, "ls", "--watch", "0.1"], stdout=theirs, stderr=theirs, env=env)
    os.close(theirs)
    shown = b""
    while shown.count(b"\x1b[H") < 3:
        shown += os.read(ours, 65536)
    watching.send_signal(signal.SIGINT)
    assert watching.wait(60) == 0
    os.close(ours)
    screen = shown.split(b"\x1b[H")[1].decode().replace("\x1b[K", "").replace("\x1b[J", "").split("\r\n")
    assert len(screen) <= 12
    assert max(map(len, screen)) <= 60
    assert "more lines" in " ".join(screen)
    del kept


def test_ls_shows_what_a_dead_process_left_to_persist():
    child = start_python("import copyless; a = copyless.zeros(1000, name='t-persists', persist=True)")
    child.communicate()
    (block,) = [b for b in json.loads(run("ls", "--json").stdout)["blocks"] if b["name"] == "t-persists"]
    assert block["state"] == "persistent"
    copyless.unlink("t-persists")


def test_inspect():
    a = copyless.full((4, 5), 2.5, "f4", name="t-inspected")
    report = json.loads(run("inspect", "t-inspected", "--json").stdout)
    assert (report["shape"], report["dtype"], report["held_by"]) == ([4, 5], "float32", [os.getpid()])
    assert "2.5" in run("inspect", "t-inspected").stdout
    done = run("inspect", "t-none", check=False)
    assert done.returncode == 1
    assert "t-none" in done.stderr
    assert "Traceback" not in done.stderr
    del a


def inspected(asked):
    return json.loads(run("inspect", asked, "--json").stdout)


def test_inspect_finds_a_block_by_its_number_and_its_handle():
    a = copyless.zeros((10, 10))
    (number,) = [b["number"] for b in json.loads(run("ls", "--json").stdout)["blocks"] if b["bytes"] == a.nbytes]
    for asked in (str(number), copyless.handle(a).hex(), copyless.handle(a[2:]).hex().upper()):
        report = inspected(asked)
        assert (report["block"], report["kind"], report["shape"]) == (number, "memory", None)
    handle = copyless.handle(a).hex()
    del a
    done = run("inspect", handle, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    elsewhere = handle[:48] + "0" * 16 + handle[64:]  # of another registry
    assert "another storage directory" in run("inspect", elsewhere, check=False).stderr


def test_inspect_says_who_has_a_lock_and_who_waits():
    import threading

    me = os.getpid()
    lock, rlock, rwlock = copyless.Lock(name="t-lock"), copyless.RLock(name="t-rlock"), copyless.RWLock(name="t-rwlock")
    semaphore, event = copyless.Semaphore(3, name="t-sem"), copyless.Event(name="t-event")
    barrier, condition = copyless.Barrier(2, name="t-barrier"), copyless.Condition(name="t-condition")
    assert inspected("t-lock")["owner"] is None
    assert inspected("t-event")["set"] is False
    event.set()
    semaphore.acquire()
    waiting = threading.Thread(target=barrier.wait)
    waiting.start()

    def wait():
        with condition:
            condition.wait()

    notified = threading.Thread(target=wait)
    notified.start()
    until(lambda: inspected("t-condition")["waiters"])
    with lock, rlock, rlock, rwlock.read():
        assert (inspected("t-lock")["owner"]["pid"], inspected("t-lock")["owner"]["alive"]) == (me, True)
        assert f"held by process {me} (" in run("inspect", "t-lock").stdout
        seen = inspected("t-rlock")
        assert (seen["owner"]["pid"], seen["depth"]) == (me, 2)
        seen = inspected("t-rwlock")
        assert (seen["writer"], [each["pid"] for each in seen["readers"]]) == (None, [me])
    with rwlock.write():
        assert inspected("t-rwlock")["writer"]["pid"] == me
    assert inspected("t-sem")["value"] == 2
    assert inspected("t-event")["set"] is True
    until(lambda: inspected("t-barrier")["waiting"] == 1)
    assert [each["pid"] for each in inspected("t-barrier")["waiters"]] == [me]
    assert inspected("t-barrier")["parties"] == 2
    assert [each["pid"] for each in inspected("t-condition")["waiters"]] == [me]
    barrier.wait()
    with condition:
        condition.notify()
    waiting.join()
    notified.join()


def test_inspect_names_a_holder_that_was_killed():
    lock = copyless.Lock(name="t-orphan", recover="silent")
    child = start_python("import copyless; copyless.open('t-orphan').acquire(); print('up'); input()")
    child.stdout.readline()
    child.kill()
    child.communicate()
    assert inspected("t-orphan")["owner"]["alive"] is False
    assert "has ended" in run("inspect", "t-orphan").stdout
    assert lock.acquire()
    lock.release()


def test_inspect_counts_the_items_of_a_queue():
    q = copyless.JoinableQueue(name="t-jobs", redeliver=True, maxsize=7)
    for i in range(4):
        q.put(b"x" * 100 * i)
    with q.lease():
        seen = inspected("t-jobs")
        assert (seen["kind"], seen["put"], seen["taken"], seen["size"], seen["most"]) == ("JoinableQueue", 4, 1, 3, 7)
        assert seen["bytes_of_items"] >= 500
        assert [each["owner"]["pid"] for each in seen["leases"]] == [os.getpid()]
        assert [(each["puts"], each["gets"]) for each in seen["users"]] == [(True, True)]
        assert (seen["put_lock"], seen["shut_down"]) == (None, False)
        assert "3 of 7 items" in run("inspect", "t-jobs").stdout


def test_inspect_says_how_far_the_readers_of_a_ring_are_behind():
    ring = copyless.RingBuffer({"rgb": ((4, 5, 3), "u1"), "t": ((), "f8")}, slots=4, name="t-ring")
    with ring.subscribe("drop") as frames:
        for _ in range(3):
            with ring.write():
                pass
        with next(frames):
            seen = inspected("t-ring")
        assert (seen["published"], seen["slots"], seen["held"], seen["loans"]) == (3, 4, 3, 1)
        (reader,) = seen["readers"]
        assert (reader["owner"]["pid"], reader["policy"], reader["lag"], reader["taken"]) == (os.getpid(), "drop", 2, 1)
        assert [each["name"] for each in seen["frame"]] == ["rgb", "t"]
        assert seen["frame"][0]["shape"] == [4, 5, 3]
        assert "2 behind" in run("inspect", "t-ring").stdout


def test_inspect_answers_while_the_holder_is_stopped():
    import signal

    lock = copyless.Lock(name="t-stopped")
    child = start_python("import copyless; copyless.open('t-stopped').acquire(); print('up'); input()")
    child.stdout.readline()
    os.kill(child.pid, signal.SIGSTOP)
    try:
        assert inspected("t-stopped")["owner"]["pid"] == child.pid
    finally:
        child.kill()
        child.communicate()
    del lock


def test_reap():
    child = start_python("import copyless; a = copyless.zeros(100000); print('up'); input()")
    child.stdout.readline()
    child.kill()
    child.communicate()
    report = json.loads(run("reap", "--json").stdout)
    assert set(report) == {"owners", "blocks", "segments", "messages", "bytes_given_back"}
    assert "blocks" in run("reap").stdout


def test_reap_counts_what_its_own_joining_took_back():
    kept = copyless.zeros(10)  # so that the registry stays
    child = start_python(
        "import copyless; a = copyless.zeros(54321, 'u1'); b = copyless.zeros(9); print('up'); input()"
    )
    child.stdout.readline()
    child.kill()
    child.communicate()
    report = json.loads(run("reap", "--json").stdout)
    assert (report["owners"], report["blocks"]) == (1, 2)
    assert json.loads(run("reap", "--json").stdout)["owners"] == 0
    del kept


def test_reap_force_leaves_a_directory_in_use_alone(tmp_path):
    place = f"/dev/shm/t-force-{os.getpid()}"
    os.mkdir(place)
    user = start_python(
        "import copyless; a = copyless.zeros(10); print('up'); input(); print(a.sum())", COPYLESS_DIR=place
    )
    user.stdout.readline()
    with open(f"{place}/copyless-{os.geteuid()}/registry.4", "r+b") as f:
        f.seek(4096)
        f.write(os.urandom(64))
    done = run("reap", "--force", check=False, COPYLESS_DIR=place)
    assert done.returncode == 1
    assert "still use" in done.stderr
    assert user.communicate("\n")[0] == "0.0\n"
    run("reap", "--force", COPYLESS_DIR=place)
    assert os.listdir(place) == []
    os.rmdir(place)


def test_doctor():
    report = json.loads(run("doctor", "--json", check=False).stdout)
    assert report["facts"]["file system"] == "tmpfs"
    assert report["facts"]["registry"] == "sound"
    assert report["settings"]["COPYLESS_DIR"] == os.environ["COPYLESS_DIR"]
    table = run("doctor", check=False).stdout
    for text in ("/dev/shm", "tmpfs", "COPYLESS_MESSAGE_TTL", "open files"):
        assert text in table


def test_doctor_tells_what_to_change(tmp_path):
    script = f"mount -t tmpfs -o size=4m tmpfs {tmp_path} && COPYLESS_DIR={tmp_path} exec {sys.executable} -m copyless doctor --json"  # noqa: E501
    done = subprocess.run(["unshare", "-rm", "sh", "-c", script], capture_output=True, text=True)
    report = json.loads(done.stdout)
    assert done.returncode == 1
    assert any("remount" in problem for problem in report["problems"])


def test_demo(tmp_path):
    before = {name for name in os.listdir("/dev/shm") if not name.startswith("copyless-")}
    done = run("demo", "--scale", "1", "--workers", "2", "--frames", "40", "--json", cwd=tmp_path)
    report = json.loads(done.stdout)
    assert report["equal"]
    assert report["left_behind"] == []
    assert set(report["ways"]) == {"pickle", "SharedMemory", "copyless"}
    assert report["ways"]["copyless"]["pipe_bytes"] * 100 < report["ways"]["pickle"]["pipe_bytes"]
    assert set(report["pipeline"]) == {"1", "4"}
    for ways in report["pipeline"].values():
        assert ways["copyless"]["missed"] == ways["copyless"]["torn"] == 0
        assert ways["copyless"]["frames_per_second"] > 0
    from PIL import Image

    with Image.open(tmp_path / "copyless-demo.png") as picture:
        assert picture.width > 1000
    assert {name for name in os.listdir("/dev/shm") if not name.startswith("copyless-")} <= before


COMPLETE = """
eval "$(copyless completion bash)"
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMPREPLY=()
_copyless
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["in"], {"inspect"}),
        (["ls", "--ki"], {"--kind"}),
        (["ls", "--kind", "r"], {"ring"}),
        (["inspect", "t-comp"], {"t-completed", "t-completed\\ too"}),
        (["demo", "--start", "fork"], {"fork", "forkserver"}),
        (["completion", ""], {"bash", "zsh", "fish"}),
        (["run", "-n", "2", "pyproject.t"], {"pyproject.toml"}),
        (["run", "-n", "2", "x.py", "pyproject.t"], {"pyproject.toml"}),
    ],
)
def test_bash_completes(words, expected):
    kept = copyless.zeros(3, name="t-completed"), copyless.zeros(3, name="t-completed too")
    path = os.path.dirname(sys.executable) + os.pathsep + os.environ["PATH"]
    done = subprocess.run(
        ["bash", "-c", COMPLETE, "bash", "copyless", *words], capture_output=True, text=True, timeout=60,
        cwd=ROOT, env={**os.environ, "PATH": path},
    )  # fmt: skip
    assert (set(done.stdout.split("\n")) - {""}, done.stderr) == (expected, "")
    del kept


@pytest.mark.skipif(not shutil.which("fish"), reason="fish is not installed")
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("copyless in", "inspect"),
        ("copyless ls --wa", "--watch\tShow the list again every 2 seconds, or as often as this says, until Ctrl-C."),
        ("copyless inspect t-comp", "t-completed"),
        ("copyless run --overs", "--oversubscribe\tAllow more ranks than processors. Only MPI's launcher needs this"),
    ],
)
def test_fish_completes(line, expected):
    kept = copyless.zeros(3, name="t-completed")
    path = os.path.dirname(sys.executable) + os.pathsep + os.environ["PATH"]
    done = subprocess.run(
        ["fish", "-c", "copyless completion fish | source; complete -C $argv[1]", line], capture_output=True, text=True,
        timeout=60, env={**os.environ, "PATH": path},
    )  # fmt: skip
    assert done.stdout.startswith(expected)
    assert (done.stdout.count("\n"), done.stderr) == (1, "")
    del kept


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_completion_script_is_of_its_shell(shell):
    text = run("completion", shell).stdout
    for option in ("--persistent", "--watch", "--oversubscribe", "--frames"):
        assert option.lstrip("-") in text
    if shutil.which(shell):
        done = subprocess.run([shell, "-n"], input=text, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("output", ["/t-nowhere/x.png", "/dev/shm", "x.txt"])
def test_demo_refuses_a_picture_that_it_could_not_write_before_it_works(output, tmp_path):
    done = run("demo", "--output", output, check=False, cwd=tmp_path)
    assert done.returncode == 1
    assert output in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert os.listdir(tmp_path) == []


def test_queues_and_locks_are_seen():
    import numpy as np

    q = copyless.Queue(name="t-cli-queue")
    q.put(np.ones(100_000))
    ring, lock = copyless.RingBuffer(((3,), "u1"), name="t-cli-ring"), copyless.Lock(name="t-cli-lock")
    report = json.loads(run("ls", "--json").stdout)
    blocks = {block["name"]: block for block in report["blocks"]}
    number = blocks["t-cli-queue"]["number"]
    inside = [block for block in report["blocks"] if block["queues"] == [number]]
    assert any(block["bytes"] >= 800_000 and block["state"] == "in a queue" for block in inside)
    assert "in a queue" in run("ls").stdout
    seen = json.loads(run("inspect", "t-cli-queue", "--json").stdout)
    assert (seen["kind"], seen["put"], seen["size"]) == ("Queue", 1, 1)
    assert json.loads(run("inspect", "t-cli-ring", "--json").stdout)["slots"] == 8
    with lock:
        assert f"held by process {os.getpid()}" in run("inspect", "t-cli-lock").stdout
    del ring
