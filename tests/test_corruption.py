"""Damage: a file truncated, grown, replaced or overwritten, before attach or before the next call, is told, never followed.

Each case runs in its own process and its own directory, under a time limit: an error is expected, a hang or a signal is not.
"""

import os
import random
import subprocess
import sys
import textwrap

import pytest

PREAMBLE = """
import glob, os, pickle, random, subprocess, sys
import numpy as np, copyless
from copyless import CorruptSegmentError
from copyless.storage import directory
a = copyless.full(300_000, 3.0)
b = copyless.full(400_000, 4.0)
small = copyless.full(10, 5.0)
ha, hb, hs = (copyless.handle(x) for x in (a, b, small))
name = copyless.zeros(5, name='n')
place = directory.current()
by_size = sorted(glob.glob(place + '/seg.*'), key=os.path.getsize)
seg_b, seg_a = by_size[-1], by_size[-2]
registry = place + '/registry.3'
def refuses(*calls):
    for call in calls:
        try:
            call()
        except (CorruptSegmentError,) as error:
            print('refused:', str(error)[:60])
        else:
            print('accepted')
"""
ATTACH = "refuses(lambda: copyless.attach(ha))"
OTHER = """
done = subprocess.run([sys.executable, '-c', "import sys, copyless\\n"
    "try: copyless.attach(bytes.fromhex(sys.argv[1])); print('accepted')\\n"
    "except copyless.CorruptSegmentError: print('refused: there')", ha.hex()], capture_output=True, text=True, timeout=30)
print(done.stdout.strip(), done.stderr[-500:])
"""
DAMAGE = {
    "truncated": "os.truncate(seg_a, 4096 * 10)",
    "emptied": "os.truncate(seg_a, 0)",
    "grown": "os.truncate(seg_a, os.path.getsize(seg_a) + 4096)",
    "swapped": "os.rename(seg_a, seg_a + 'x'); os.rename(seg_b, seg_a); os.rename(seg_a + 'x', seg_b)",
    "replaced": "data = open(seg_a, 'rb').read(); os.unlink(seg_a); open(seg_a, 'wb').write(data[:4096] + os.urandom(len(data) - 4096))",
    "removed": "os.unlink(seg_a)",
    "header noise": "f = open(seg_a, 'r+b'); f.write(os.urandom(120)); f.close()",
    "wrong magic": "f = open(seg_a, 'r+b'); f.write(b'COPYLESS'); f.close()",
    "wrong layout": "f = open(seg_a, 'r+b'); f.seek(8); f.write(b'\\x07'); f.close()",
    "wrong size field": "f = open(seg_a, 'r+b'); f.seek(24); f.write(b'\\x07'); f.close()",
}
REGISTRY = {
    "truncated": "os.truncate(registry, 4096)",
    "emptied": "os.truncate(registry, 0)",
    "grown": "os.truncate(registry, os.path.getsize(registry) + 1)",
    "removed": "os.unlink(registry)",
    "header noise": "f = open(registry, 'r+b'); f.write(os.urandom(120)); f.close()",
    "control noise": "f = open(registry, 'r+b'); f.seek(4096); f.write(os.urandom(8192)); f.close()",
    "lock word noise": "f = open(registry, 'r+b'); f.seek(4096 + 8); f.write(b'\\x37\\x13\\x37\\x13'); f.close()",
    "owners noise": "f = open(registry, 'r+b'); f.seek(12288); f.write(os.urandom(128 * 256)); f.close()",
}


def run(code: str, tmp_path) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", PREAMBLE + textwrap.dedent(code)], capture_output=True, text=True, timeout=60,
        env={**os.environ, "COPYLESS_DIR": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, (done.returncode, done.stderr[-2000:])
    return [line.partition(":")[0].strip() for line in done.stdout.strip().splitlines()]


@pytest.fixture
def place(tmp_path):
    path = f"/dev/shm/t-corrupt-{os.getpid()}-{random.getrandbits(32):x}"
    os.mkdir(path)
    yield path
    subprocess.run(["rm", "-rf", path], check=True)


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_segment_is_refused_at_the_next_call_and_by_others(damage, place):
    assert run(f"{DAMAGE[damage]}\n{ATTACH}\n{OTHER}", place) == ["refused", "refused"]


@pytest.mark.parametrize("damage", REGISTRY)
def test_a_damaged_registry_is_refused_at_the_next_call(damage, place):
    calls = "refuses(lambda: copyless.attach(ha), lambda: copyless.zeros(5), lambda: copyless.open('n'), copyless.reap)"
    assert run(f"{REGISTRY[damage]}\n{calls}", place) == ["refused"] * 4


@pytest.mark.parametrize("damage", [d for d in REGISTRY if d not in ("removed", "lock word noise", "owners noise")])
def test_a_damaged_registry_is_refused_by_others(damage, place):
    assert run(f"{REGISTRY[damage]}\n{OTHER}", place) == ["refused"]


def test_a_foreign_file_in_the_registrys_place_is_refused(place):
    os.mkdir(f"{place}/copyless-{os.geteuid()}", 0o700)
    with open(f"{place}/copyless-{os.geteuid()}/registry.3", "wb") as f:
        f.write(b"something else entirely")
    code = "import copyless\ntry: copyless.zeros(3)\nexcept copyless.CorruptSegmentError as e: print('refused', 'reap --force' in str(e))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "COPYLESS_DIR": place}
    )
    assert done.stdout.split() == ["refused", "True"], done.stderr
    done = subprocess.run([sys.executable, "-m", "copyless", "reap", "--force", "--json"], capture_output=True, text=True,
                          env={**os.environ, "COPYLESS_DIR": place})  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert os.listdir(place) == []


def test_noise_over_any_table_never_hangs_or_crashes(place):
    """Each run overwrites a random part of the tables, then uses everything: errors are allowed, nothing else is."""
    for seed in range(40):
        code = f"""
            random.seed({seed})
            with open(registry, 'r+b') as f:
                f.seek(random.choice([4096 + 64, 12288 + 128 * random.randrange(4), 528384 + 4 * random.randrange(1000), 540000,
                                      4730880 + 64 * random.randrange(20), 71839744 + random.randrange(9000)]))
                f.write(random.randbytes(random.choice([4, 64, 400])))
            for call in (lambda: copyless.attach(ha), lambda: copyless.zeros(5), lambda: copyless.open('n'), lambda: copyless.full(50_000, 1.0),
                         lambda: copyless.attach(hs), copyless.reap, copyless.trim, copyless.storage.store._store.audit,
                         lambda: copyless.zeros(2, name='m'), lambda: pickle.loads(__import__('multiprocessing').reduction.ForkingPickler.dumps(a))):
                try: call()
                except (copyless.CopylessError, FileNotFoundError, FileExistsError): pass
            assert a[0] == 3.0 and b[0] == 4.0
        """
        os.mkdir(f"{place}/{seed}")
        run(code, f"{place}/{seed}")


def test_a_squatted_directory_is_passed_by(place):
    base = f"{place}/copyless-{os.geteuid()}"
    os.symlink("/tmp", base)
    os.mkdir(base + ".1", 0o777)
    os.chmod(base + ".1", 0o777)
    code = "import copyless; from copyless.storage import directory; a = copyless.zeros(3); print(directory.current()); print(directory.refused())"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "COPYLESS_DIR": place}
    )
    assert done.stdout.splitlines() == [base + ".2", str([base, base + ".1"])], done.stderr
