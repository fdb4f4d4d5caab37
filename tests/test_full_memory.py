"""Full memory: every constructor raises an error with figures and a remedy, leaves nothing half made, and no process is
killed.
"""

import os
import subprocess
import sys
import textwrap

import pytest

BODY = """
    import os, sys, pickle, gc
    import numpy as np
    import copyless
    from copyless import OutOfSharedMemory, SharedMemory, Memory
    place = sys.argv[1]
    def used():
        copyless.reap(); copyless.trim(); st = os.statvfs(place); return (st.f_blocks - st.f_bfree) * st.f_frsize
    copyless.zeros(10)
    base = used()
    n = 8 << 20
    private = np.ones(n, 'u1')
    with open('/tmp/' + os.urandom(8).hex(), 'wb') as f:
        f.truncate(10)
    os.unlink(f.name)
    makers = [lambda: copyless.empty(n, 'u1'), lambda: copyless.zeros(n, 'u1'), lambda: copyless.ones(n, 'u1'),
              lambda: copyless.full(n, 1, 'u1'), lambda: copyless.array(private), lambda: copyless.asarray(private),
              lambda: copyless.empty_like(private), lambda: copyless.zeros_like(private), lambda: copyless.SharedArray(n, 'u1'),
              lambda: copyless.zeros(n, 'u1', name='big'), lambda: copyless.share([private[:1 << 20], private]),
              lambda: Memory.allocate(n), lambda: copyless.Alloc_mem(n),
              lambda: copyless.sharedctypes.RawArray('d', n // 8), lambda: copyless.sharedctypes.Array('d', n // 8),
              lambda: copyless.RingBuffer(((n // 4,), 'u1'), slots=4),
              lambda: copyless.memmap(place + '/file.bin', 'u1', 'w+', shape=n)]
    if len(sys.argv) > 2:
        makers = [lambda: SharedMemory(create=True, size=n), lambda: SharedMemory('t-full', create=True, size=n),
                  lambda: copyless.ShareableList([bytes(n)])]
    with_heads = makers[-1:] if len(sys.argv) > 2 else makers[-2:-1]  # a list's and a ring's own bytes come on top
    for make in makers:
        try:
            make()
            print('made it'); break
        except OutOfSharedMemory as error:
            assert isinstance(error, OSError) and isinstance(error, MemoryError)
            text = str(error)
            assert place in text and '4,194,304' in text and format(error.asked, ',') in text and 'Remedy' in text, text
            assert '8,388,' in text or make in with_heads, text
            assert error.asked >= n and pickle.loads(pickle.dumps(error)).asked == error.asked
        gc.collect()
        assert used() <= base + 4096, (used(), base)
        assert 'big' not in str(copyless._storage.store._store.snapshot()['names'])
    # Fill it to the brim with small ones: the last fails cleanly, every byte of the others can be written.
    kept = []
    try:
        while True:
            kept.append(copyless.full(10_000, 7, 'u1') if len(sys.argv) < 3 else SharedMemory(create=True, size=10_000))
            if len(sys.argv) > 2:
                kept[-1].buf[:] = bytes(10_000)
    except OutOfSharedMemory:
        pass
    assert len(kept) > 100, len(kept)
    if len(sys.argv) < 3:
        assert all((a == 7).all() for a in kept)
        a = kept[0]; del kept; gc.collect()
        assert copyless.zeros(1 << 20, 'u1').sum() == 0  # freed blocks make room for another size at once
    else:
        for shm in kept: shm.close(); shm.unlink()
    print('sound')
"""  # noqa: E501


@pytest.fixture(autouse=True, scope="module")
def can_mount():
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode != 0:
        pytest.skip("a mount of its own needs unshare(1) and user namespaces")


def run(mount: str, *args: str) -> str:
    script = f'mkdir -p {mount} && mount -t tmpfs -o size=4m tmpfs {mount} && exec {sys.executable} -c "$1" {mount} {" ".join(args)}'  # noqa: E501
    command = ["unshare", "-rm", "env", f"COPYLESS_DIR={mount}", "sh", "-c", script, "sh", textwrap.dedent(BODY)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, (done.returncode, done.stderr[-3000:])
    return done.stdout.strip()


def test_every_constructor_on_a_4_mib_mount(tmp_path):
    assert run(str(tmp_path / "small")) == "sound"


def test_the_drop_in_on_a_4_mib_dev_shm():
    assert run("/dev/shm", "drop-in") == "sound"


@pytest.mark.parametrize("kind", ["tmpfs -o size=0", "ramfs"])
def test_a_mount_without_a_limit_of_its_own_has_room(tmp_path, kind):
    """Its size and free space are reported as 0. A request for more than the machine has is refused there too."""
    program = """
        import copyless, json, subprocess, sys
        a, big = copyless.zeros(10), copyless.zeros(80 << 20, 'u1')
        del big
        assert copyless.zeros(80 << 20, 'u1').__array_interface__  # kept warm meanwhile, as anywhere
        q = copyless.Queue()
        q.put(a)
        assert q.get().sum() == 0
        try:
            copyless.empty(1 << 44, 'u1')
        except copyless.OutOfSharedMemory as e:
            assert '0 free' not in str(e), e
            print(e)
        doctor = [sys.executable, '-m', 'copyless', 'doctor', '--json']
        said = json.loads(subprocess.run(doctor, capture_output=True, text=True).stdout)
        assert not any('nearly full' in each or 'has only' in each for each in said['problems']), said
        print('sound')
    """
    script = f'mount -t {kind.split()[0]} {" ".join(kind.split()[1:])} none {tmp_path} && exec {sys.executable} -c "$1"'
    command = ["unshare", "-rm", "env", f"COPYLESS_DIR={tmp_path}", "sh", "-c", script, "sh", textwrap.dedent(program)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    if "permission denied" in done.stderr and "mount" in done.stderr:
        pytest.skip("this file system may not be mounted here")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "no limit of its own" in done.stdout
    assert done.stdout.endswith("sound\n")


@pytest.mark.parametrize("size", ["1 << 44", "(1 << 62) + 1"])
def test_more_than_the_machine_has_is_refused_before_it_is_reserved(size):
    from tests.conftest import python

    done = python(
        f"import copyless\ntry: copyless.empty({size}, 'u1')\nexcept copyless.OutOfSharedMemory as e: print('refused', e.asked)"  # noqa: E501
    )
    assert done.stdout.split()[0] == "refused"


def test_no_dev_shm_at_all_says_what_to_do(tmp_path):
    from tests.conftest import python

    done = python("import copyless; copyless.zeros(3)", COPYLESS_DIR=str(tmp_path / "none"), check=False)
    assert "COPYLESS_DIR" in done.stderr.splitlines()[-1]
    assert "FileNotFoundError" in done.stderr.splitlines()[-1]


def test_too_many_open_files():
    from tests.conftest import python

    done = python("""
        import copyless, os, resource
        a = copyless.zeros(10)
        h = copyless.handle(a)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))      # those given back have higher numbers
        b = copyless.attach(h); b[0] = 1; print(a[0])           # mapped already: needs no descriptor
        try: copyless.zeros(10_000_000)
        except OSError as e: print(e.errno)
    """)
    assert done.stdout.split() == ["1.0", "24"]


# ---- programs go on when memory is full: messages and the registry's tables go to the disk

PREAMBLE = """
    import collections, faulthandler, gc, os, subprocess, sys, time
    import multiprocessing as mp
    import numpy as np
    import copyless
    from copyless import OutOfSharedMemory
    from copyless._core import _store

    faulthandler.dump_traceback_later(150, exit=True)

    def free():
        st = os.statvfs("/dev/shm")
        return st.f_bavail * st.f_frsize

    def fill():
        "Arrays that leave no room for another."
        kept = []
        for n in (1 << 20, 1 << 16, 1 << 12, 100):
            try:
                while True:
                    kept.append(copyless.full(n, 7, "u1"))
            except OutOfSharedMemory:
                pass
        return kept

    def sound():
        _store.audit()
        return "sound"
"""


def inside(tmp_path, size, body, *args, disk=None, **env):
    """Run a program where /dev/shm has `size`, and the spill directory `disk` (None: no limit of its own)."""
    (tmp_path / "program.py").write_text(textwrap.dedent(PREAMBLE) + textwrap.dedent(body))
    spill = tmp_path / "spill"
    spill.mkdir(exist_ok=True)
    script = f"mount -t tmpfs -o size={size} tmpfs /dev/shm"
    if disk is not None:
        script += f" && mount -t tmpfs -o size={disk} tmpfs {spill}"
    script += f' && exec {sys.executable} {tmp_path}/program.py "$@"'
    env = {**os.environ, "COPYLESS_SPILL": str(spill), "PYTHONWARNINGS": "ignore", **env}
    env.pop("COPYLESS_DIR", None)
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script, "sh", *args], capture_output=True, text=True, timeout=200, env=env
    )
    assert done.returncode == 0, (done.returncode, done.stdout[-2000:], done.stderr[-3000:])
    assert disk is not None or os.listdir(spill) == []
    return done.stdout.split()


@pytest.mark.parametrize(
    ("size", "kind", "count"),
    [("4m", "arrays", 4300), ("4m", "short", 60_000), ("4m", "handles", 20_000), ("12m", "arrays", 4300),
     ("12m", "handles", 70_000), ("64m", "arrays", 6000)],
)  # fmt: skip
def test_a_queue_whose_items_are_kept(tmp_path, size, kind, count):
    """Producers put, the consumer keeps what it gets, and the waiting items need more than the memory as well."""
    body = """
        def produce(queue, kind, numbers, shared, go):
            go.wait()
            for i in numbers:
                queue.put((i, np.full(2000 if kind == "arrays" else 1, i)) if kind != "handles" else (i, shared))

        if __name__ == "__main__":
            kind, count = sys.argv[1], int(sys.argv[2])
            shared = copyless.zeros(1)
            queue, go = copyless.Queue(), copyless.Event()
            context = mp.get_context("fork")
            half = count // 2
            producers = [context.Process(target=produce, args=(queue, kind, numbers, shared, go))
                         for numbers in (range(half), range(half, count))]
            for producer in producers: producer.start()
            filler = fill()
            go.set()
            producers[0].join(); producers[1].join()  # all lies in the queue
            assert [producer.exitcode for producer in producers] == [0, 0]
            stats = queue.stats()
            assert stats.size == count and stats.spilled > 0, stats
            print(sound())
            kept = [queue.get(timeout=20) for _ in range(count)]
            assert sorted(i for i, _ in kept) == list(range(count))
            if kind != "handles":
                assert all((array == i).all() for i, array in kept)
            print(sound())
            # Half of them go: the rest are as they were, and there is room for as many again.
            kept = kept[::2]
            for i in range(300):
                queue.put((i, np.full(2000, i)))
            for i in range(300):
                assert (queue.get(timeout=20)[1] == i).all()
            assert kind == "handles" or all((array == i).all() for i, array in kept)
            del kept, filler
            print(copyless.zeros(1 << 18).sum())
    """
    assert inside(tmp_path, size, body, kind, str(count)) == ["sound", "sound", "0.0"]


@pytest.mark.parametrize(
    ("size", "start", "count"),
    [("4m", "fork", 4300), ("4m", "spawn", 600), ("64m", "fork", 1500), ("64m", "spawn", 1200)],
)
def test_a_pool_whose_results_are_kept(tmp_path, size, start, count):
    body = """
        def make(i):
            return np.full(10_000 if sys.argv[1] == "64m" else 2000, i)

        if __name__ == "__main__":
            filler = fill() if sys.argv[1] == "4m" else []
            n = int(sys.argv[3])
            with copyless.get_context(sys.argv[2]).Pool(2) as pool:
                kept = pool.map(make, range(n))
                assert all((array == i).all() for i, array in enumerate(kept))
                again = list(pool.imap_unordered(make, range(300), chunksize=7))
                assert sorted(int(array[0]) for array in again) == list(range(300))
                with copyless.get_context(sys.argv[2]).Pool(1) as other:  # made while memory is full
                    assert other.apply(sum, ([1, 2],)) == 3
                    assert (other.apply(make, (5,)) == 5).all()
                assert all((array == i).all() for i, array in enumerate(kept))
            print(sound())
    """
    assert inside(tmp_path, size, body, size, start, str(count)) == ["sound"]


@pytest.mark.parametrize("size", ["4m", "12m"])
def test_newcomers_while_memory_is_full(tmp_path, size):
    """Processes that are forked, spawned and executed join, attach, send, lock and wait; managers and ranks work."""
    (tmp_path / "stranger.py").write_text(
        "import sys, numpy as np, copyless\n"
        "queue, shared = (copyless.attach(bytes.fromhex(text)) for text in sys.argv[1:3])\n"
        "queue.put((99, np.full(3000, 99), copyless.Event(), float(shared[0])))\n"
    )
    body = """
        def visit(queue, lock, value, shared, number):
            with lock:
                value.value += 1
            inside = copyless.Lock()  # its own, which another has never seen
            queue.put((number, np.full(3000, number), inside, float(shared[0])))

        def rank(world):
            parts = world.allgather(np.full(5000, world.rank))
            return [int(part[0]) for part in parts], int(world.bcast(np.arange(3000) if world.rank == 0 else None)[-1])

        if __name__ == "__main__":
            shared = copyless.full(10, 2.5)
            queue = copyless.Queue()
            filler = fill()
            for i in range(70):
                queue.put(np.full(2000, i))
            kept = [queue.get() for _ in range(70)]
            lock, value = copyless.Lock(), copyless.Value("i")
            for method in ("fork", "spawn"):
                context = mp.get_context(method)
                visitors = [context.Process(target=visit, args=(queue, lock, value, shared, i)) for i in range(12)]
                for visitor in visitors: visitor.start()
                got = [queue.get(timeout=60) for _ in visitors]
                for visitor in visitors: visitor.join()
                assert [visitor.exitcode for visitor in visitors] == [0] * 12
                assert sorted(number for number, *_ in got) == list(range(12))
                assert all((array == number).all() and seen == 2.5 for number, array, _, seen in got)
                kept += got
            assert value.value == 24
            handles = [bytes(copyless.handle(one)).hex() for one in (queue, shared)]
            subprocess.run([sys.executable, os.path.dirname(__file__) + "/stranger.py", *handles], check=True)
            number, array, event, seen = queue.get(timeout=60)
            assert (array == 99).all() and not event.is_set() and seen == 2.5
            with copyless.Manager() as manager:
                there = manager.list([np.full(3000, i) for i in range(80)])
                assert all((there[i] == i).all() for i in range(80))
                kept += there[:]
            for ranks, last in copyless.comm.spawn(rank, 3, context=mp.get_context("fork")):
                assert ranks == [0, 1, 2] and last == 2999
            assert (shared == 2.5).all() and free() < 1 << 17
            print(sound())
    """
    assert inside(tmp_path, size, body) == ["sound"]


def test_names_and_forks_while_memory_is_full(tmp_path):
    """Names of arrays, and thousands of holds of a forked child, find space in the tables on disk."""
    body = """
        def look(conn, arrays):
            conn.send(sum(float(array[0]) for array in arrays))
            conn.recv()

        if __name__ == "__main__":
            n = 4300
            warm = [copyless.zeros(1) for _ in range(n)]
            filler = fill()
            del warm  # their blocks, not their segments, are free
            arrays = [copyless.full(1, i, name=f"n{i}") for i in range(n)]
            assert copyless.open("n4200")[0] == 4200
            here, there = mp.Pipe()
            child = mp.get_context("fork").Process(target=look, args=(there, arrays))
            child.start()
            assert here.recv() == sum(range(n))
            arrays = arrays[::3]
            here.send(None); child.join()
            assert child.exitcode == 0
            assert all(copyless.open(f"n{3 * i}")[0] == 3 * i for i in range(len(arrays)))
            print(sound())
    """
    assert inside(tmp_path, "12m", body) == ["sound"]


@pytest.mark.parametrize("disk", ["none", "1m"])
def test_where_the_disk_is_full_too_one_item_fails_and_nothing_is_lost(tmp_path, disk):
    body = """
        def make(i):
            return np.full(2000, i)

        if __name__ == "__main__":
            queue = copyless.Queue()
            filler = fill()
            put = failed = 0
            for i in range(2000):
                try:
                    queue.put((i, np.full(2000, i)))
                    put += 1
                except OutOfSharedMemory:
                    failed += 1
            assert failed and put + failed == 2000
            assert sys.argv[1] == "none" or put > 20, put
            numbers = [queue.get(timeout=10) for _ in range(put)]
            assert all((array == i).all() for i, array in numbers) and queue.empty()
            del filler[:2]
            many, at = [(i, np.full(2000, i)) for i in range(200)], 0
            came = []
            while at < 200:
                try:
                    at += queue.put_many(many[at : at + 30])
                except OutOfSharedMemory:  # none of these was put
                    came.append(queue.get(timeout=10)[0])
            del numbers
            while not queue.empty():
                came.append(queue.get()[0])
            assert came == list(range(200))
            del many
            del filler[:2]
            with copyless.get_context("fork").Pool(2) as pool:
                filler += fill()
                counted, kept = collections.Counter(), []
                answers = [pool.apply_async(make, (i,)) for i in range(1500)]
                for i, answer in enumerate(answers):
                    try:
                        kept.append((i, answer.get(60)))
                        counted["result"] += 1
                    except OutOfSharedMemory as error:
                        counted["error"] += 1
                        assert "Remedy" in str(error)
                assert counted["error"] and sum(counted.values()) == 1500, counted
                assert all((array == i).all() for i, array in kept)
                for call in (lambda: pool.map(make, range(1500)), lambda: pool.apply(len, (np.zeros(1 << 18),))):
                    try:
                        call()
                        raise AssertionError("there is no room for this")
                    except OutOfSharedMemory:
                        pass
                del kept, answers, answer, filler
                deadline = time.monotonic() + 30
                while True:  # the last tasks of the map that failed may still be under way
                    try:
                        arrays = pool.map(make, range(20))
                        break
                    except OutOfSharedMemory:
                        assert time.monotonic() < deadline
                assert [int(array[0]) for array in arrays] == list(range(20))
                del arrays
            print(sound())
    """
    env = {"COPYLESS_SPILL": ""} if disk == "none" else {}
    assert inside(tmp_path, "4m", body, disk, disk="1m", **env) == ["sound"]
