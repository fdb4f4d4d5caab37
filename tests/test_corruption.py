"""Damage: a file truncated, grown, replaced or overwritten, before attach or before the next call, is reported and
never used.

Each case runs in a process and a directory of its own, with a time limit. It must give an error, not a hang or a
signal.
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
from copyless._storage import directory
a = copyless.full(300_000, 3.0)
b = copyless.full(400_000, 4.0)
small = copyless.full(10, 5.0)
ha, hb, hs = (copyless.handle(x) for x in (a, b, small))
name = copyless.zeros(5, name='n')
place = directory.current()
by_size = sorted(glob.glob(place + '/seg.*'), key=os.path.getsize)
seg_b, seg_a = by_size[-1], by_size[-2]
registry = place + '/registry.4'
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
"""  # noqa: E501
DAMAGE = {
    "truncated": "os.truncate(seg_a, 4096 * 10)",
    "emptied": "os.truncate(seg_a, 0)",
    "grown": "os.truncate(seg_a, os.path.getsize(seg_a) + 4096)",
    "swapped": "os.rename(seg_a, seg_a + 'x'); os.rename(seg_b, seg_a); os.rename(seg_a + 'x', seg_b)",
    "replaced": "data = open(seg_a, 'rb').read(); os.unlink(seg_a); open(seg_a, 'wb').write(data[:4096] + "
    "os.urandom(len(data) - 4096))",
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
    "header noise": "f = open(registry, 'r+b'); f.write(os.urandom(120)); f.close()",
    "control noise": "f = open(registry, 'r+b'); f.seek(4096); f.write(os.urandom(8192)); f.close()",
    "owners noise": "f = open(registry, 'r+b'); f.seek(12288); f.write(os.urandom(288 * 256)); f.close()",
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


def test_a_lock_word_that_names_nobody_heals_when_nothing_else_is_damaged(place):
    noise = "f = open(registry, 'r+b'); f.seek(4096 + 8); f.write(b'\\x37\\x13\\x37\\x13'); f.close()"
    calls = "refuses(lambda: copyless.attach(ha), lambda: copyless.zeros(5), lambda: copyless.open('n'), copyless.reap)"
    assert run(f"{noise}\n{calls}", place) == ["accepted"] * 4
    assert run(f"{noise}\n{OTHER}", place) == ["accepted"]


@pytest.mark.parametrize("damage", [d for d in REGISTRY if d != "owners noise"])
def test_a_damaged_registry_is_refused_by_others(damage, place):
    assert run(f"{REGISTRY[damage]}\n{OTHER}", place) == ["refused"]


def test_a_foreign_file_in_the_registrys_place_is_refused(place):
    os.mkdir(f"{place}/copyless-{os.geteuid()}", 0o700)
    with open(f"{place}/copyless-{os.geteuid()}/registry.4", "wb") as f:
        f.write(b"something else entirely")
    code = "import copyless\ntry: copyless.zeros(3)\nexcept copyless.CorruptSegmentError as e: print('refused', 'reap --force' in str(e))"  # noqa: E501
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "COPYLESS_DIR": place}
    )
    assert done.stdout.split() == ["refused", "True"], done.stderr
    done = subprocess.run([sys.executable, "-m", "copyless", "reap", "--force", "--json"], capture_output=True,
        text=True,
                          env={**os.environ, "COPYLESS_DIR": place})  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert os.listdir(place) == []


def test_noise_over_any_table_never_hangs_or_crashes(place):
    """Each run overwrites a random part of the tables, then uses everything. Only errors are allowed."""
    for seed in range(40):
        code = f"""
            random.seed({seed})
            with open(registry, 'r+b') as f:
                f.seek(random.choice([4096 + 64, 12288 + 128 * random.randrange(4), 528384 + 4 * random.randrange(1000), 540000,
                                      4730880 + 64 * random.randrange(20), 71839744 + random.randrange(9000)]))
                f.write(random.randbytes(random.choice([4, 64, 400])))
            for call in (lambda: copyless.attach(ha), lambda: copyless.zeros(5), lambda: copyless.open('n'), lambda: copyless.full(50_000, 1.0),
                         lambda: copyless.attach(hs), copyless.reap, copyless.trim, copyless._storage.store._store.audit,
                         lambda: copyless.zeros(2, name='m'), lambda: pickle.loads(__import__('multiprocessing').reduction.ForkingPickler.dumps(a))):
                try: call()
                except (copyless.CopylessError, FileNotFoundError, FileExistsError): pass
            assert a[0] == 3.0 and b[0] == 4.0
        """  # noqa: E501
        os.mkdir(f"{place}/{seed}")
        run(code, f"{place}/{seed}")


def test_a_squatted_directory_is_passed_by(place):
    base = f"{place}/copyless-{os.geteuid()}"
    os.symlink("/tmp", base)
    os.mkdir(base + ".1", 0o777)
    os.chmod(base + ".1", 0o777)
    code = "import copyless; from copyless._storage import directory; a = copyless.zeros(3); print(directory.current()); print(directory.refused())"  # noqa: E501
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "COPYLESS_DIR": place}
    )
    assert done.stdout.splitlines() == [base + ".2", str([base, base + ".1"])], done.stderr


WILD = ("lock", "rlock", "semaphore", "bounded", "robust", "rwlock", "event", "condition", "barrier", "queue",
    "simple queue",
        "joinable queue", "leases", "chunk", "ring", "list", "value")  # fmt: skip


@pytest.mark.parametrize("kind", WILD)
def test_a_wild_word_in_an_object_is_an_error_or_nothing(kind, place):
    """Each word of its memory, several values each, and noise: no signal, no hang, no error of another family."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.wild_words", kind], capture_output=True, text=True, timeout=120,
        env={**os.environ, "COPYLESS_DIR": place},
    )  # fmt: skip
    lines = done.stdout.strip().splitlines()
    assert done.returncode == 0, (done.returncode, lines[-1:], done.stderr[-3000:])
    assert lines[-1].startswith("done")


ATTACHES = """
import signal, tempfile
signal.alarm(50)
f = tempfile.NamedTemporaryFile()
f.write(bytes(8192)); f.flush()
mapped = copyless.memmap(f.name, 'f8', 'r+')
held = [copyless.zeros((3, 4)), copyless.Alloc_mem(4096), copyless.Lock(), copyless.Queue(), mapped,
        copyless.zeros(4, dtype=[('a', 'i4'), ('b', 'f8', (2,))])[1:]]
handles = [bytes(copyless.handle(x)) for x in held]
"""


def test_a_handle_with_any_byte_changed_is_refused_or_is_a_handle(place):
    code = ATTACHES + textwrap.dedent("""
        random.seed(7)
        attached = 0
        for handle in handles:
            tries = [handle[:n] for n in range(len(handle))] + [handle + b'x' * n for n in (1, 40)]
            for at in range(len(handle)):
                for value in (0, 1, 127, 128, 255, random.randrange(256)):
                    tries.append(handle[:at] + bytes([value]) + handle[at + 1:])
            for at in range(84, len(handle) - 8):
                for value in (0, 1, 2**31, 2**62, 2**63, 2**64 - 1, random.getrandbits(64)):
                    tries.append(handle[:at] + value.to_bytes(8, 'little') + handle[at + 8:])
            for each in tries:
                repr(copyless.Handle(each))
                try:
                    found = copyless.attach(each)
                except (ValueError, copyless.CopylessError, TypeError, IsADirectoryError, PermissionError):
                    continue
                attached += 1
                if isinstance(found, np.ndarray) and found.nbytes < 1 << 20:
                    found.copy()
        assert attached > len(handles)
        print('ended')
    """)
    assert run(code, place)[-1] == "ended"


def test_a_description_of_more_elements_than_can_be_counted_is_refused(place):
    """With strides of 0, so that it is inside the block in any case."""
    code = """
        from copyless._transfer import handles as h
        many = np.lib.stride_tricks.as_strided(a, (1 << 20, 1 << 20), (0, 0))
        good = h.encode_spec(many, 0, 3)
        print(h.decode_spec(good)[1] == many.shape)
        for shape, dtype in (((1 << 20, 1 << 40), b'<f8'), ((1 << 31, 1 << 31, 2), b'<f8'), ((1 << 40, 1 << 40), b'<U0')):
            spec = h._HEAD.pack(3, len(shape), 3, 0) + dtype + np.array([*shape, *[0] * len(shape)], '<i8').tobytes()
            try: copyless.attach(ha[:h._handles.WIRE_SIZE] + spec)
            except ValueError: print('refused')
    """  # noqa: E501
    assert run(code, place) == ["True"] + ["refused"] * 3


def test_a_handle_that_names_no_regular_file_is_refused_at_once(place):
    code = ATTACHES + textwrap.dedent("""
        import struct
        from copyless._transfer import handles as h
        spec = h.encode_spec(np.zeros(4), 0, 0)
        os.mkfifo(place + '/fifo')
        for path in (place + '/fifo', '/dev/zero', '/dev/ptmx', place, place + '/missing'):
            there = os.stat(path) if os.path.exists(path) else os.stat(place)
            try:
                copyless.attach(h.encode_file(path, there.st_dev, there.st_ino, 0, 32) + spec)
            except (ValueError, IsADirectoryError) as error:
                print('refused')
        for path in (place + '/fifo', '/dev/zero'):
            try: copyless.memmap(path, 'u1', 'r')
            except ValueError: print('refused')
        os.mkfifo('/dev/shm/copyless-fifo-%d' % os.getpid())
        try: copyless.shared_memory.SharedMemory('copyless-fifo-%d' % os.getpid(), readonly=True)
        except ValueError: print('refused')
        finally: os.unlink('/dev/shm/copyless-fifo-%d' % os.getpid())
    """)
    assert run(code, place) == ["refused"] * 8


def test_what_is_written_past_the_end_of_an_array_hits_no_object(place):
    """No array shares a segment with a lock, a queue, its chunks or a ring. The same holds for arrays made after those
    are gone.
    """
    code = """
        import ctypes
        from copyless._core import _handles, _store
        def make():
            q = copyless.JoinableQueue(redeliver=True)
            q.put(b'1' * 200)
            return [copyless.Lock(), copyless.RLock(), copyless.RWLock(), copyless.Barrier(2), copyless.Condition(), copyless.Event(),
                    copyless.Semaphore(2, robust=True), q, copyless.Queue(), copyless.RingBuffer(((4,), 'u1'), slots=2)]
        def segment(address):
            return _handles.find(address, 1)[0] // 64
        objects = make() + make()
        sizes = sorted({n for o in objects if (n := o._address[1]) <= 65536} | {65536, 128, 16384})
        arrays = [copyless.zeros(n, 'u1') for n in sizes for _ in range(6)]
        objects += make()
        chunks = {s['slot'] for s in _store.snapshot()['segments'] if s['block_bytes'] == 65536}
        of_arrays = {segment(a.ctypes.data) for a in arrays}
        of_objects = {o.block.number // 64 for o in objects}
        rings = [o.block.number // 64 for o in objects if isinstance(o, copyless.RingBuffer)]
        print('apart' if not of_arrays & of_objects else of_arrays & of_objects)
        print('alone' if len(set(rings)) == 3 and len([o for o in objects if o.block.number // 64 in rings]) == 3 else rings)
        print('chunks apart' if len(chunks - of_arrays) == 1 and len(chunks & of_arrays) == 1 else (chunks, of_arrays))
        for a in arrays:
            ctypes.memset(a.ctypes.data + a.nbytes, 0xff, 16)
        for o in objects:
            if isinstance(o, copyless.Barrier):
                try: o.wait(0.01)
                except copyless.synchronize.threading.BrokenBarrierError: pass
            elif isinstance(o, (copyless.Queue, copyless.JoinableQueue)):
                o.put(5)
                o.get()
            elif hasattr(o, 'acquire'):
                with o: pass
        _store.audit()
        del objects, o
        later = [copyless.zeros(n, 'u1') for n in sizes]
        again = {segment(a.ctypes.data) for a in later}
        print('apart' if not again & (of_objects - set(rings)) else again)
    """  # noqa: E501
    assert run(code, place) == ["apart", "alone", "chunks apart", "apart"]


def test_an_inbox_refuses_what_is_no_message_and_goes_on(place):
    code = """
        import threading
        from copyless.comm._inbox import Inbox
        def side(queues, rank):
            return Inbox(queues, rank, lambda parcel: None, {}, {}, threading.Condition(), False)
        inbox, other = copyless.SimpleQueue(), copyless.SimpleQueue()
        mine, theirs, stranger = side([inbox, other], 0), side([inbox, other], 1), side([inbox] * 5, 4)
        array = copyless.zeros(4)
        for item in (0, 'short', 'x' * 100, b'y' * 30_000, [array], array):
            inbox.put(item)
            refuses(lambda: mine.next(1))
        stranger.send('of a rank that there is not', 0, 7, 0, 0, 1)
        refuses(lambda: mine.next(1))
        for obj in (1, 'x' * 100, {'a': array}):
            theirs.send(obj, 0, 7, 1, 3, 0)
            parcel = mine.next(1)
            print(parcel.context, parcel.source, parcel.tag, parcel.nbytes > 0, type(parcel.open()).__name__)
    """
    assert run(code, place) == ["refused"] * 7 + ["7 1 3 True int", "7 1 3 True str", "7 1 3 True dict"]


def test_an_items_pickle_that_asks_for_gigabytes_is_refused(place):
    """If one byte of it is changed, the unpickler would allocate and fill the memory before it finds that the pickle is
    cut off.
    """
    code = """
        for n, (item, opcode) in enumerate((({'needle0'}, b'\\x96'), ([{'needle1'}, np.zeros(600)], b'\\x96'), ({'needle2'}, b'\\x8e'))):
            q = copyless.Queue()
            q.put(item)
            found = 0
            for path in glob.glob(place + '/seg.*'):
                with open(path, 'r+b') as f:
                    data = f.read()
                    needle = data.find(b'needle%d' % n)
                    if needle >= 0:
                        f.seek(data.rfind(b'\\x80\\x05', 0, needle) + 2)
                        found += f.write(opcode + bytes(7) + b'\\x10') == 9
            assert found == 1
            refuses(lambda: q.get(timeout=1))
            q.put(5)
            print(q.get(timeout=5))
    """  # noqa: E501
    assert run(code, place) == ["refused", "5"] * 3
