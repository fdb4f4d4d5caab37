"""The command: what it prints, as tables and as JSON."""

import json
import os
import re
import subprocess
import sys

import copyless
from tests.conftest import start_python


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
    for command in ("demo", "ls", "inspect", "reap", "doctor"):
        assert command in run("--help").stdout


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


def test_reap():
    child = start_python("import copyless; a = copyless.zeros(100000); print('up'); input()")
    child.stdout.readline()
    child.kill()
    child.communicate()
    report = json.loads(run("reap", "--json").stdout)
    assert set(report) == {"owners", "blocks", "segments", "messages", "bytes_given_back"}
    assert "blocks" in run("reap").stdout


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
    script = f"mount -t tmpfs -o size=4m tmpfs {tmp_path} && COPYLESS_DIR={tmp_path} exec {sys.executable} -m copyless doctor --json"
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
    assert report["ways"]["copyless"]["pipe_bytes"] * 10 < report["ways"]["pickle"]["pipe_bytes"]
    assert set(report["pipeline"]) == {"1", "4"}
    for ways in report["pipeline"].values():
        assert ways["copyless"]["missed"] == ways["copyless"]["torn"] == 0
        assert ways["copyless"]["frames_per_second"] > 0
    from PIL import Image

    with Image.open(tmp_path / "copyless-demo.png") as picture:
        assert picture.width > 1000
    assert {name for name in os.listdir("/dev/shm") if not name.startswith("copyless-")} <= before


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
