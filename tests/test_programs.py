"""How `copyless run` starts programs and copies their output."""

import errno
import os
import re
import signal
import subprocess
import sys
import threading
import time

import pytest

from copyless import _platform
from copyless._core import _store
from copyless.comm._programs import _Output

COMMAND = os.path.join(os.path.dirname(sys.executable), "copyless")
ENVIRONMENT = [b"%b=%b" % each for each in os.environb.items()]


def run(*args, **more):
    more.setdefault("stdout", subprocess.PIPE)
    more.setdefault("stderr", subprocess.PIPE)
    return subprocess.run([COMMAND, "run", *args], text=True, timeout=60, **more)


def said(code, **more):
    """The output of a program that the function of the platform module starts."""
    reading, writing = os.pipe()
    arguments = [os.fsencode(each) for each in (sys.executable, "-c", code)]
    pid = _store.start_program(arguments[:1], arguments, ENVIRONMENT, stdout=writing, **more)
    os.close(writing)
    with open(reading) as file:
        text = file.read()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    return text.strip()


# ---- a program as a child


def test_a_program_has_only_the_descriptors_that_it_is_given():
    leaking = os.dup(0)
    os.set_inheritable(leaking, True)
    high = os.open("/dev/null", os.O_RDONLY)
    try:
        assert said("import os; print(sorted(map(int, os.listdir('/proc/self/fd')))[:-1])", stdin=high) == "[0, 1, 2]"
        assert said("import os; print(os.readlink('/proc/self/fd/0'))", stdin=high) == "/dev/null"
    finally:
        os.close(leaking)
        os.close(high)


def test_descriptors_may_lie_where_others_go():
    code = """if True:
        import os, sys
        from copyless._core import _store
        env = [b"%b=%b" % each for each in os.environb.items()]
        report = os.dup(1)
        os.close(0)
        os.close(1)
        reading, writing = os.pipe()
        assert (reading, writing) == (0, 1)
        pid = _store.start_program([b"/bin/sh"], [b"sh", b"-c", b"echo through"], env, stdin=2, stdout=writing)
        os.close(writing)
        os.write(report, os.read(reading, 100))
        assert os.waitpid(pid, 0)[1] == 0
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr, done.returncode) == ("through\n", "", 0)


def test_signals_of_a_program():
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, signal.SIGCHLD})
    old = signal.signal(signal.SIGUSR2, lambda *_: None), signal.signal(signal.SIGALRM, signal.SIG_IGN)
    try:
        text = said("print(open('/proc/self/status').read())", blocked={signal.SIGHUP})
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        signal.signal(signal.SIGUSR2, old[0])
        signal.signal(signal.SIGALRM, old[1])
    sets = {key: int(value, 16) for key, value in re.findall(r"^(Sig\w+):\s*([0-9a-f]{16})$", text, re.M)}

    def has(key, number):
        return bool(sets[key] >> (number - 1) & 1)

    assert sets["SigBlk"] == 1 << (signal.SIGHUP - 1)
    assert has("SigIgn", signal.SIGALRM)
    assert not has("SigCgt", signal.SIGUSR2)
    # The child is a Python, which ignores SIGPIPE itself; a shell does not.
    reading, writing = os.pipe()
    shell = [b"sh", b"-c", b"grep SigIgn /proc/self/status"]
    pid = _store.start_program([b"/bin/sh"], shell, ENVIRONMENT, stdout=writing)
    os.close(writing)
    ignored = int(os.read(reading, 100).split()[1], 16)
    os.close(reading)
    os.waitpid(pid, 0)
    assert not ignored >> (signal.SIGPIPE - 1) & 1


def test_what_is_no_program_is_told(tmp_path):
    text, script = tmp_path / "text", tmp_path / "script"
    text.write_text("text")
    script.write_text("no first line that says by what")
    script.chmod(0o755)
    missing = os.fsencode(tmp_path / "missing")
    children = set(_platform.children_of(os.getpid()))
    for paths, code in (
        ([missing], errno.ENOENT),
        ([os.fsencode(text)], errno.EACCES),
        ([missing, os.fsencode(text), missing], errno.EACCES),
        ([os.fsencode(script)], errno.ENOEXEC),
        ([os.fsencode(tmp_path)], errno.EACCES),
    ):
        with pytest.raises(OSError, match=re.escape(os.strerror(code))) as raised:
            _store.start_program(paths, [b"x"], ENVIRONMENT)
        assert raised.value.errno == code
        assert set(_platform.children_of(os.getpid())) == children  # none is left; others are of earlier tests
    with pytest.raises(OSError, match=re.escape(os.strerror(errno.EBADF))):
        _store.start_program([b"/bin/true"], [b"true"], ENVIRONMENT, stdout=999_999)
    with pytest.raises(ValueError, match="NUL"):
        _store.start_program([b"/bin/true"], [b"tr\0ue"], ENVIRONMENT)
    with pytest.raises(TypeError):
        _store.start_program([b"/bin/true"], ["true"], ENVIRONMENT)
    pid = _store.start_program([missing, b"/bin/true"], [b"true"], ENVIRONMENT)
    assert os.waitpid(pid, 0)[1] == 0


def test_signals_while_programs_are_started_run_their_handlers_here_alone():
    came, stop = [], threading.Event()
    here = os.getpid()
    old = signal.signal(signal.SIGUSR1, lambda *_: came.append(os.getpid()))

    def shower():
        while not stop.is_set():
            os.kill(here, signal.SIGUSR1)

    thread = threading.Thread(target=shower)
    thread.start()
    try:
        for _ in range(100):
            pid = _store.start_program([b"/bin/true"], [b"true"], ENVIRONMENT)
            assert os.waitpid(pid, 0)[1] == 0
    finally:
        stop.set()
        thread.join()
        signal.signal(signal.SIGUSR1, old)
    assert set(came) == {here}


# ---- output


def shown_before(rank, piece, within, mark):
    """What a terminal receives, by a regular expression: (bytes, whether the line is unfinished)."""
    out = b""
    for part in re.findall(rb"[^\r\n]+|\r\n|\r|\n", piece):
        if part in (b"\n", b"\r\n"):
            out += part if within else mark + part
            within = False
        elif part == b"\r":
            out += part + mark
            within = True
        else:
            out += part if within else mark + part
            within = True
    return out, within


def test_pieces_for_a_terminal_have_their_rank_before_each_line():
    import itertools

    with open(os.devnull, "w") as nothing:
        output = _Output(nothing)
    written = []
    output._write = written.append
    for length in range(1, 7):
        for piece in map(b"".join, itertools.product((b"a", b"\r", b"\n"), repeat=length)):
            for within in (False, True):
                output.open = 1 if within else None
                written.clear()
                output.show(1, piece)
                assert (b"".join(written), output.open == 1) == shown_before(1, piece, within, b"[1] "), piece


def test_output_that_cannot_be_written_is_told_and_holds_up_no_rank():
    code = "import sys; sys.stdout.write('x' * 300_000); print('done', file=sys.stderr)"
    with open("/dev/full", "w") as full:
        done = run("-n", "2", sys.executable, "-c", code, stdout=full)
    assert done.returncode == 1
    assert done.stderr.count("done") == 2
    assert done.stderr.count("output of the ranks is lost: No space left on device") == 1


def test_a_reader_that_leaves_holds_up_no_rank():
    code = "for i in range(100_000): print(i)"
    process = subprocess.Popen([COMMAND, "run", "-n", "2", sys.executable, "-c", code], stdout=subprocess.PIPE)
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(60) == 0


def test_a_reader_that_wants_no_call_to_wait_gets_all():
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    process = subprocess.Popen([COMMAND, "run", "-n", "1", "seq", "100000"], stdout=writing)
    os.close(writing)
    with open(reading) as file:
        lines = file.read().splitlines()
    assert process.wait(60) == 0
    assert lines == [f"[0] {i}" for i in range(1, 100_001)]


def test_a_closed_output_is_no_other_file():
    script = f'"{COMMAND}" run -n 1 echo word >&- 2>"$0"'
    told = os.path.join(os.environ["COPYLESS_DIR"], "t-closed")
    done = subprocess.run(["sh", "-c", script, told], timeout=60)
    with open(told) as file:
        text = file.read()
    os.unlink(told)
    assert (done.returncode, text.count("output of the ranks is lost")) == (1, 1), text


# ---- signals


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_rank_that_goes_on_is_killed(number, code):
    program = """if True:
        import signal, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        print("ready", flush=True)
        time.sleep(600)
    """
    process = subprocess.Popen([COMMAND, "run", "-n", "2", sys.executable, "-c", program], stdout=subprocess.PIPE)
    for _ in range(2):
        assert b"ready" in process.stdout.readline()
    process.send_signal(number)
    process.communicate(timeout=30)
    assert process.returncode == code


def test_ctrl_c_that_is_ignored_stays_so():
    process = subprocess.Popen(
        [COMMAND, "run", "-n", "1", "sh", "-c", "echo ready; read line; echo $line"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )
    assert b"ready" in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(b"goes on\n", timeout=60)
    assert (out, process.returncode) == (b"[0] goes on\n", 0)


def test_children_are_waited_for_where_sigchld_was_ignored():
    done = run(
        "-n", "2", "sh", "-c", "exit 3", preexec_fn=lambda: signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    )  # fmt: skip
    assert done.returncode == 3


def test_a_process_that_a_rank_leaves_behind_does_not_hold_up_the_end():
    began = time.monotonic()
    done = run("-n", "1", "sh", "-c", "sleep 600 & echo $!")
    os.kill(int(done.stdout.split()[1]), signal.SIGKILL)
    assert done.returncode == 0
    assert time.monotonic() - began < 60


def test_each_rank_ends_as_itself():
    done = run("-n", "200", "--no-prefix", "true")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    done = run("-n", "3", "sh", "-c", "kill -SEGV $$")
    assert done.returncode == 128 + signal.SIGSEGV
    assert "was killed by SIGSEGV" in done.stderr
