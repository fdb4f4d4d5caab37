"""Full memory: every constructor says so with figures and a remedy, leaves nothing half made, and nobody is killed."""

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
        assert 'big' not in str(copyless.storage.store._store.snapshot()['names'])
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
"""


def run(mount: str, *args: str) -> str:
    script = f'mkdir -p {mount} && mount -t tmpfs -o size=4m tmpfs {mount} && exec {sys.executable} -c "$1" {mount} {" ".join(args)}'
    command = ["unshare", "-rm", "env", f"COPYLESS_DIR={mount}", "sh", "-c", script, "sh", textwrap.dedent(BODY)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, (done.returncode, done.stderr[-3000:])
    return done.stdout.strip()


def test_every_constructor_on_a_4_mib_mount(tmp_path):
    assert run(str(tmp_path / "small")) == "sound"


def test_the_drop_in_on_a_4_mib_dev_shm():
    assert run("/dev/shm", "drop-in") == "sound"


@pytest.mark.parametrize("size", ["1 << 44", "(1 << 62) + 1"])
def test_more_than_the_machine_has_is_refused_before_it_is_reserved(size):
    from tests.conftest import python

    done = python(
        f"import copyless\ntry: copyless.empty({size}, 'u1')\nexcept copyless.OutOfSharedMemory as e: print('refused', e.asked)"
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
        soft = len(os.listdir('/proc/self/fd')) - 1
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, soft))
        b = copyless.attach(h); b[0] = 1; print(a[0])           # mapped already: needs no descriptor
        try: copyless.zeros(10_000_000)
        except OSError as e: print(e.errno)
    """)
    assert done.stdout.split() == ["1.0", "24"]
